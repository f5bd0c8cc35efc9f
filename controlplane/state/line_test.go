package state

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"footplate/fleet"
)

func lines() map[string]Command {
	full := Command{
		Key: "k1", Op: "org set", Ver: 1, By: "alice", Role: fleet.Operator, Via: "cli/0.1.0", Reason: "monday ramp", Incident: "i1",
		Plan: "abc", Salt: "00ff", Term: 7, Saw: []Seen{{"tokens", "ab", 12}, {"pools", "linux", 0}},
		Args: json.RawMessage(`{"org":"acme","why":"a b"}`),
	}
	all := map[string]Command{"full": full, "empty": {}}
	for name, change := range map[string]func(c *Command){
		"no args":             func(c *Command) { c.Args = nil },
		"empty args":          func(c *Command) { c.Args = json.RawMessage{} },
		"null":                func(c *Command) { c.Args = json.RawMessage("null") },
		"number":              func(c *Command) { c.Args = json.RawMessage("1") },
		"spaces":              func(c *Command) { c.Args = json.RawMessage(`{ "a": 1 }`) },
		"end of line in args": func(c *Command) { c.Args = json.RawMessage("{\"a\":\n1}") },
		"escaped quote":       func(c *Command) { c.Args = json.RawMessage(`{"a":"\" \\"}`) },
		"markup in args":      func(c *Command) { c.Args = json.RawMessage(`{"a":"<b>"}`) },
		"other script":        func(c *Command) { c.Args = json.RawMessage(`{"a":"é"}`) },
		"two values":          func(c *Command) { c.Args = json.RawMessage(`{"a":1},"x":{}`) },
		"args cut off":        func(c *Command) { c.Args = json.RawMessage(`{"a":1`) },
		"quote":               func(c *Command) { c.Reason = `say "no"` },
		"markup":              func(c *Command) { c.Via = "<b>&" },
		"broken text":         func(c *Command) { c.Reason = "\xff" },
		"control character":   func(c *Command) { c.Reason = "a\x01b\x7f" },
		"two lines":           func(c *Command) { c.Reason = "a\nb" },
		"negative version":    func(c *Command) { c.Ver = -1 },
		"big term":            func(c *Command) { c.Term = 1<<64 - 1 },
		"big version":         func(c *Command) { c.Saw[0].Version = 999_999_999_999_999_999 },
		"bigger version":      func(c *Command) { c.Saw[0].Version = 1_000_000_000_000_000_000 },
		"empty list":          func(c *Command) { c.Saw = []Seen{} },
		"broken list":         func(c *Command) { c.Saw[1].Key = "\xff" },
		"approved":            func(c *Command) { c.ApprovedBy = []fleet.Principal{"bob"} },
		"refused":             func(c *Command) { c.Refusal = fleet.Deniedf("no") },
	} {
		c := full
		c.Saw = append([]Seen(nil), full.Saw...)
		change(&c)
		all[name] = c
	}
	return all
}

// What is written and read here is what package encoding/json would write and
// read.
func TestPlainLines(t *testing.T) {
	for name, c := range lines() {
		t.Run(name, func(t *testing.T) {
			want, err := json.Marshal(&c)
			got, ok := appendCommand(&c)
			if err != nil {
				if ok {
					t.Fatalf("wrote %s; encoding/json fails: %v", got, err)
				}
				return
			}
			if ok {
				if diff := cmp.Diff(string(want), string(got)); diff != "" {
					t.Errorf("written otherwise (-json +got):\n%s", diff)
				}
			}
			checkLine(t, want)
		})
	}
	c := lines()["full"]
	if b, ok := appendCommand(&c); !ok || !readCommand(b, new(Command)) {
		t.Error("a plain command is not taken for one")
	}
}

// checkLine fails when readCommand reads line otherwise than encoding/json.
func checkLine(t *testing.T, line []byte) {
	var got, want Command
	if !readCommand(line, &got) {
		return
	}
	if err := json.Unmarshal(line, &want); err != nil {
		t.Fatalf("read %q; encoding/json fails: %v", line, err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%q is read otherwise (-json +got):\n%s", line, diff)
	}
}

func FuzzReadCommand(f *testing.F) {
	for _, c := range lines() {
		if b, err := json.Marshal(&c); err == nil {
			f.Add(b)
		}
	}
	f.Add([]byte(`{"id":"","op":"","ov":007,"by":"","role":"","via":""}`))
	f.Add([]byte(`{"id":"","op":"","ov":1,"by":"","role":"","via":"","args":1}}`))
	f.Add([]byte(`{"id":"","op":"","ov":1,"by":"","role":"","via":"","saw":[],"args":{}}`))
	f.Fuzz(func(t *testing.T, line []byte) { checkLine(t, line) })
}

func BenchmarkCommand(b *testing.B) {
	c := lines()["full"]
	line, _ := appendCommand(&c)
	b.Run("write", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			appendCommand(&c)
		}
	})
	b.Run("read", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			readCommand(line, new(Command))
		}
	})
	b.Run("json-read", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			var c Command
			if err := json.Unmarshal(line, &c); err != nil {
				b.Fatal(err)
			}
		}
	})
}
