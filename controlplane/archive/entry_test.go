package archive

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"footplate/fleet"
)

// What encode writes by itself is what package encoding/json writes.
func TestEncodeAsJSON(t *testing.T) {
	full := fleet.Entry{
		N: 7, Index: 99, At: 1_764_000_000_123, By: "alice", Role: fleet.Operator, Via: "cli/0.1.0", Op: "org set", Key: "k1",
		Args: json.RawMessage(`{"org":"acme"}`), Reason: "monday", Incident: "i1", Plan: "abc", Outcome: fleet.EntryDone,
		Code: fleet.CodeConflict, Text: `made org "acme"`, Count: 3, Salt: "00ff", Prev: "p", Hash: "h",
	}
	for name, change := range map[string]func(e *fleet.Entry){
		"full":              func(*fleet.Entry) {},
		"empty":             func(e *fleet.Entry) { *e = fleet.Entry{} },
		"markup":            func(e *fleet.Entry) { e.Text, e.Args = `<b>&\`, json.RawMessage(`{"a":"<b>&\u003c"}`) },
		"quoted in args":    func(e *fleet.Entry) { e.Args = json.RawMessage(`{"a":"b \\"c\\" \\\\","d":"e f"}`) },
		"bare blank":        func(e *fleet.Entry) { e.Args = json.RawMessage(`{"a":"b\\\\", "d":1}`) },
		"control in args":   func(e *fleet.Entry) { e.Args = json.RawMessage("{\"a\":\"\n\"}") },
		"blanks in args":    func(e *fleet.Entry) { e.Args = json.RawMessage(`{ "a": "b c" }`) },
		"no args":           func(e *fleet.Entry) { e.Args = json.RawMessage{} },
		"broken args":       func(e *fleet.Entry) { e.Args = json.RawMessage(`{"a"`) },
		"null":              func(e *fleet.Entry) { e.Args = json.RawMessage(`null`) },
		"other script":      func(e *fleet.Entry) { e.Reason = "é\u2028" },
		"broken text":       func(e *fleet.Entry) { e.Text = "a\xff" },
		"control character": func(e *fleet.Entry) { e.Text = "a\n\x01\x7f" },
		"negative count":    func(e *fleet.Entry) { e.Count = -1 },
		"no time":           func(e *fleet.Entry) { e.At = 0 },
		"approved":          func(e *fleet.Entry) { e.ApprovedBy = []fleet.Principal{"bob"} },
		"erased":            func(e *fleet.Entry) { e.Erased = map[string]string{"text": "ab"} },
		"kept":              func(e *fleet.Entry) { e.Salts = map[string]string{"text": "ab"} },
	} {
		t.Run(name, func(t *testing.T) {
			e := full
			change(&e)
			var want bytes.Buffer
			enc := json.NewEncoder(&want)
			enc.SetEscapeHTML(false)
			wrong := enc.Encode(&e)
			got, err := encode(&e)
			if (wrong == nil) != (err == nil) {
				t.Fatalf("encode: %v; encoding/json: %v", err, wrong)
			}
			if diff := cmp.Diff(want.String(), string(got)+"\n"); err == nil && diff != "" {
				t.Errorf("written otherwise (-json +got):\n%s", diff)
			}
		})
	}
	if _, ok := appendEntry(nil, &full, []byte("null")); !ok {
		t.Error("a plain entry is not taken for one")
	}
}
