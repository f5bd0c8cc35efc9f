package replica

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"

	"footplate/controlplane/state"
	"footplate/fleet"
)

func TestLeaderAppliesWhatIsLogged(t *testing.T) {
	if n := reflect.TypeFor[state.Command]().NumField(); n != 16 {
		t.Fatalf("a command has %d fields: asLogged must know each", n)
	}
	for name, change := range map[string]func(*state.Command){
		"as it is":          func(*state.Command) {},
		"broken UTF-8":      func(c *state.Command) { c.Reason = "a\xffb" },
		"markup":            func(c *state.Command) { c.Reason = "<a> & \u2028" },
		"no arguments":      func(c *state.Command) { c.Args = nil },
		"empty arguments":   func(c *state.Command) { c.Args = json.RawMessage{} },
		"null":              func(c *state.Command) { c.Args = json.RawMessage("null") },
		"spaces":            func(c *state.Command) { c.Args = json.RawMessage(`{ "a": 1 }`) },
		"markup in args":    func(c *state.Command) { c.Args = json.RawMessage(`{"a":"<b>"}`) },
		"broken args":       func(c *state.Command) { c.Args = json.RawMessage("{\"a\":\"\xff\"}") },
		"empty lists":       func(c *state.Command) { c.Saw, c.ApprovedBy = []state.Seen{}, []fleet.Principal{} },
		"lists":             func(c *state.Command) { c.Saw, c.ApprovedBy = []state.Seen{{Key: "\xff"}}, []fleet.Principal{"bob"} },
		"refusal":           func(c *state.Command) { c.Refusal = fleet.Deniedf("no\xff").WithHint("ask") },
		"args are a suffix": func(c *state.Command) { c.Args = json.RawMessage(`1`) },
	} {
		t.Run(name, func(t *testing.T) {
			c := command("note", "k")
			c.Args, c.Term, c.Salt, c.Plan, c.Incident = json.RawMessage(`{"pool":"linux"}`), 7, "00ff", "abc", "i1"
			change(&c)
			encoded, err := state.EncodeCommand(&c)
			if err != nil {
				t.Fatal(err)
			}
			got, err := asLogged(c, encoded)
			if err != nil {
				t.Fatal(err)
			}
			read, err := state.DecodeBatch(state.EncodeBatch(1, [][]byte{bytes.Clone(encoded)}))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(read.Commands[0], got); diff != "" {
				t.Errorf("the leader and the others differ:\n%s", diff)
			}
		})
	}
}
