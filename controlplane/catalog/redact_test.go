package catalog

import (
	"strings"
	"testing"
)

// TestSecretsStayOutOfTheRecord: the values of a build's environment are in the
// state, which its host needs, and in no entry.
func TestSecretsStayOutOfTheRecord(t *testing.T) {
	w := newWorld(t)
	for _, line := range []string{
		"alice: pool create linux --provider none", "alice: org set acme",
		"bob: build submit --org acme --pool linux --run 'make deploy' --env TOKEN=hunter2 --env CI=",
		`bob: build submit --org acme --pool linux --file '{"tasks":[{"name":"main","env":[{"name":"TOKEN","value":"hunter2"}],"steps":[{"run":"make deploy"}]}]}'`,
	} {
		w.do(line)
	}
	one, _ := w.st.Builds.Get(1)
	two, _ := w.st.Builds.Get(2)
	if one.Spec.Env[0].Value != "hunter2" || two.Spec.Tasks[0].Env[0].Value != "hunter2" {
		t.Error("the builds have lost their environment")
	}
	submitted := 0
	for _, e := range w.entries {
		args := string(e.Args)
		if strings.Contains(args+e.Text, "hunter2") {
			t.Errorf("entry %d tells the secret: %s", e.N, args)
		}
		if e.Op == BuildSubmit.Name && strings.Contains(args, `"name":"TOKEN"`) && strings.Contains(args, "make deploy") {
			submitted++
		}
	}
	if submitted != 2 {
		t.Errorf("%d entries name the variable and the step", submitted)
	}
}
