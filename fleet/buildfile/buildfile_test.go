package buildfile

import (
	"errors"
	"os"
	"strings"
	"testing"

	"footplate/fleet"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	got, err := Parse("build.yaml", []byte(`
org: acme
pool: linux
priority: 5
source: {repo: /srv/git/app, ref: main}
env: {B: "2", A: 1.20}
timeouts: {checkout: 5m, steps: 20m}
retry: eager
tasks:
  - name: test
    parallel: 2
    steps:
      - go vet ./...
      - {name: tests, run: go test ./..., timeout: 10m}
  - name: lint
    env: {X: "y"}
    steps:
      - |
        echo one
        echo two
`))
	if err != nil {
		t.Fatal(err)
	}
	steps := []fleet.Step{{Run: "go vet ./..."}, {Name: "tests", Run: "go test ./...", Timeout: 10 * fleet.Minute}}
	want := &Submission{
		Org: "acme", Pool: "linux", Priority: 5,
		Spec: fleet.BuildSpec{
			Source:   fleet.Source{Repo: "/srv/git/app", Ref: "main"},
			Env:      []fleet.EnvVar{{Name: "B", Value: "2"}, {Name: "A", Value: "1.20"}},
			Timeouts: fleet.Timeouts{Checkout: 5 * fleet.Minute, Steps: 20 * fleet.Minute},
			Retry:    fleet.RetryEager,
			Tasks: []fleet.TaskSpec{
				{Name: "test-1", Steps: steps}, {Name: "test-2", Steps: steps},
				{Name: "lint", Env: []fleet.EnvVar{{Name: "X", Value: "y"}}, Steps: []fleet.Step{{Run: "echo one\necho two\n"}}},
			},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestParseErrors(t *testing.T) {
	for _, row := range []struct{ in, msg, hint string }{
		{"", "b.yaml is empty", "a build needs an org, a pool and steps"},
		{"stepz: [a]", `b.yaml:1:1: unknown field "stepz"`, `did you mean "steps"?`},
		{"org: acme\nquux: 1", `b.yaml:2:1: unknown field "quux"`, "one of org, pool, priority, source, env, timeouts, exclusive, retry, steps, tasks"},
		{"steps: a", "b.yaml:1:8: steps must be a list, not text", ""},
		{"steps: [{run: [a]}]", "b.yaml:1:15: run must be text, not a list", ""},
		{"steps: ['']", "b.yaml:1:9: a step has nothing to run", ""},
		{"steps: [a]\nsteps: [b]", "", ""},
		{"[a]", "b.yaml:1:1: a build file must be a mapping, not a list", ""},
		{"steps: [a]\npriority: high", "b.yaml:2:11: priority must be a whole number, not text", ""},
		{"steps: [a]\npriority: 99999", "b.yaml:2:11: priority is 99999; it must lie between -1000 and 1000", ""},
		{"steps: [a]\ntimeouts: {steps: soon}", `b.yaml:2:19: steps: duration "soon" is not understood`, "for example 30s, 5m or 1h30m"},
		{"steps: [a]\nexclusive: maybe", "b.yaml:2:12: exclusive must be true or false, not text", ""},
		{"steps: [a]\nexclusive: true\nretry: eager", "b.yaml: exclusive and retry: eager contradict each other", "choose one"},
		{"steps: [a]\ntasks: [{name: x, steps: [b]}]", "b.yaml:1:8: a build has steps or tasks, not both", "move the steps into a task"},
		{"tasks: [{steps: [a]}]", "b.yaml:1:9: a task has no name", "give it a name: it stands in logs and commands"},
		{"tasks: []", "b.yaml: build has no tasks", "give steps, or tasks with steps"},
		{"steps: [&a x, *a]", "b.yaml:1:9: a step must be text, not an anchor or alias, which are not allowed here", ""},
		{"steps: [a]\n---\nsteps: [b]", "b.yaml:3:1: a build file is one document", ""},
		{"steps: [a]\nsource: {ref: main}", "b.yaml:2:9: source has a ref but no repo", "set source.repo"},
		{"steps: [a]\nsource: {repo: app}", `b.yaml:2:9: source.repo "app" is not an absolute path`, ""},
		{"steps: [a]\nenv: {A: 1, 1B: 2}", `b.yaml:2:13: env: "1B" cannot be the name of a variable`, ""},
		{"steps: [a]\nenv: {A: }", "b.yaml:2:9: the value of A must be text, not nothing", ""},
		{"steps: [a]\nretry: always", `b.yaml:2:8: retry "always" is not known`, "leave it out, or say eager"},
		{"steps: [a]\ntimeouts:\n  steps: 8d", "b.yaml:3:3: timeouts.steps is 8d; it must lie between 0 and 7d", ""},
		{"org: Acme\nsteps: [a]", `b.yaml:1:6: org "Acme" is not a valid name`,
			"use 1 to 63 lower-case letters, digits and hyphens, beginning with a letter"},
		{"tasks:\n- name: x\n  steps: [a]\n- name: x\n  steps: [a]", `b.yaml:4:3: two tasks are named "x"`, ""},
		{"tasks: [{name: x, parallel: 2, steps: [a]}, {name: x-2, steps: [a]}]", `b.yaml:1:45: two tasks are named "x-2"`, ""},
		{"tasks: [{name: x, parallel: 200, steps: [a]}, {name: y, parallel: 57, steps: [a]}]", "b.yaml:1:47: a build has at most 256 tasks", ""},
		{"tasks: [{name: x}]", `b.yaml:1:9: task "x" has no steps`, ""},
		{"steps: [a]\ntasks: []", "b.yaml:1:8: a build has steps or tasks, not both", "move the steps into a task"},
		{"steps: [\"a\\0b\"]", "b.yaml:1:9: a step has a zero byte", ""},
		{"steps: [~]", "b.yaml:1:9: a step must be text, not nothing", ""},
		{"<<: {a: b}", "b.yaml:1:1: a key must be text, not a merge key, which is not allowed here", ""},
		{"%YAML 1.2\n---\nsteps: [a]", "b.yaml:1:1: a build file has no directives", "leave the line out"},
		{strings.Repeat("- ", MaxBytes/2), "b.yaml: line 1 nests too deep", ""},
		{"steps: [a\n", "", ""},
		{"steps: [\"\xff\"]", "b.yaml: line 1 is not valid UTF-8", ""},
		{strings.Repeat("[", 1000), "b.yaml: line 1 nests too deep", ""},
		{strings.Repeat("#", MaxBytes+1), "b.yaml is 65537 bytes long; at most 65536 are allowed", "move long scripts into the repository"},
	} {
		_, err := Parse("b.yaml", []byte(row.in))
		var e *fleet.Error
		switch {
		case !errors.As(err, &e) || e.Code != fleet.CodeInvalid:
			t.Errorf("%.40q: %v", row.in, err)
		case row.msg == "":
			if !strings.HasPrefix(e.Msg, "b.yaml:") {
				t.Errorf("%q: %q does not say where", row.in, e.Msg)
			}
		case e.Msg != row.msg || e.Hint != row.hint:
			t.Errorf("%.40q:\n got %q, %q\nwant %q, %q", row.in, e.Msg, e.Hint, row.msg, row.hint)
		}
	}
}

func TestExample(t *testing.T) {
	b, err := os.ReadFile("../../deploy/example/build.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Parse("build.yaml", b); err != nil {
		t.Error(err)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"org: a\npool: b\nsteps: [a, {run: b}]", "tasks: [{name: x, parallel: 3, steps: [a]}]",
		"a: &x [*x]", "steps: !!str x", "? [a]\n: b", "steps: [a]\n---\n", "env: {1: 2}", "{", "\t",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := Parse("f", data)
		var e *fleet.Error
		switch {
		case err == nil && s.Spec.Validate() != nil:
			t.Errorf("an invalid build was read: %v", s.Spec.Validate())
		case err != nil && (!errors.As(err, &e) || e.Code != fleet.CodeInvalid):
			t.Errorf("error is %v", err)
		}
	})
}

// What editors leave at the edges of lines never reaches the shell.
func TestEditors(t *testing.T) {
	got, err := Parse("b.yaml", []byte("\ufeffsteps:\r\n- |\r\n  one\r\n  two\r\n"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]fleet.Step{{Run: "one\ntwo\n"}}, got.Spec.Tasks[0].Steps); diff != "" {
		t.Error(diff)
	}
}
