package state

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"footplate/fleet"

	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func encode(t failer, c *Command) []byte {
	t.Helper()
	b, err := EncodeCommand(c)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBatchRoundTrip(t *testing.T) {
	text := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"", "pool scale", "a\nb", "<&>\u2028\x00"}))
	rapid.Check(t, func(t *rapid.T) {
		want := Batch{At: fleet.Time(rapid.Int64().Draw(t, "at")), Commands: []Command{}}
		var raw [][]byte
		for range rapid.IntRange(0, 5).Draw(t, "commands") {
			c := Command{
				Key: text.Draw(t, "key"), Op: text.Draw(t, "op"), Ver: rapid.Int().Draw(t, "ver"),
				By: fleet.Principal(text.Draw(t, "by")), Role: fleet.Role(text.Draw(t, "role")), Via: text.Draw(t, "via"),
				Reason: text.Draw(t, "reason"), Incident: text.Draw(t, "incident"), Plan: text.Draw(t, "plan"),
				Salt: text.Draw(t, "salt"), Repeat: Repeat(text.Draw(t, "repeat")), Term: rapid.Uint64().Draw(t, "term"),
			}
			if rapid.Bool().Draw(t, "full") {
				c.ApprovedBy = []fleet.Principal{"bob", fleet.Principal(text.Draw(t, "approved"))}
				c.Saw = []Seen{{"tokens", text.Draw(t, "seen"), rapid.Uint64().Draw(t, "version")}}
				c.Refusal = fleet.Deniedf("no").WithHint("%s", text.Draw(t, "hint"))
				args, err := json.Marshal(map[string]string{"x": text.Draw(t, "arg")})
				if err != nil {
					t.Fatal(err)
				}
				c.Args = args
			}
			want.Commands = append(want.Commands, c)
			raw = append(raw, encode(t, &c))
		}
		got, err := DecodeBatch(EncodeBatch(want.At, raw))
		if err != nil {
			t.Fatal(err)
		}
		if diff := gocmp.Diff(want, got); diff != "" {
			t.Fatalf("-before +after\n%s", diff)
		}
	})
}

// TestEncodeCommand: arguments that were written by hand take one line; those
// that are too long, or no JSON, are refused before they reach the log.
func TestEncodeCommand(t *testing.T) {
	b := encode(t, &Command{Op: "org set", Args: json.RawMessage("{\n  \"org\": \"acme\"\n}")})
	if bytes.Contains(b, []byte{'\n'}) {
		t.Errorf("a command takes more than one line: %s", b)
	}
	if _, err := DecodeBatch(EncodeBatch(1, [][]byte{b})); err != nil {
		t.Error(err)
	}
	for name, c := range map[string]*Command{
		"too long": {Op: "org set", Reason: strings.Repeat("x", MaxCommandBytes)},
		"no JSON":  {Op: "org set", Args: json.RawMessage("{")},
	} {
		if _, err := EncodeCommand(c); fleet.CodeOf(err) != fleet.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDecodeBatchRefuses(t *testing.T) {
	one := encode(t, &Command{Op: "org set"})
	good := EncodeBatch(7, [][]byte{one, one})
	for _, row := range []struct {
		name, data, want string
	}{
		{"nothing", "", "log entry is not a batch of commands"},
		{"something else", "{}\n", "log entry is not a batch of commands"},
		{"a later format", "fpl\x02{\"at\":1,\"n\":0}\n", "log entry has format 2; this version reads 1"},
		{"no head", "fpl\x01{\"at\":1", "log entry has no head"},
		{"a broken head", "fpl\x01{\"at\":\n", "head of log entry: unexpected end of JSON input"},
		{"a fraction of a time", "fpl\x01{\"at\":1.5,\"n\":0}\n", "head of log entry: json"},
		{"fewer than none", "fpl\x01{\"at\":1,\"n\":-1}\n", "log entry says that it holds -1 commands"},
		{"more than there is room for", "fpl\x01{\"at\":1,\"n\":3}\n{}\n{}\n", "log entry says that it holds 3 commands"},
		{"cut off between commands", string(good[:len(good)-len(one)-1]), "log entry ends after 1 of 2 commands"},
		{"cut off in a command", string(good[:len(good)-9]), "log entry ends after 1 of 2 commands"},
		{"a command of no JSON", strings.Replace(string(good), `"op"`, `"op`, 1), "command 0 of log entry: invalid character"},
		{"a command of another shape", "fpl\x01{\"at\":1,\"n\":1}\n{\"ov\":\"x\"}\n", "command 0 of log entry: json"},
		{"more behind", string(good) + "x", "log entry has 1 bytes after its last command"},
	} {
		t.Run(row.name, func(t *testing.T) {
			b, err := DecodeBatch([]byte(row.data))
			if err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("DecodeBatch says %v, not %q", err, row.want)
			}
			if b.Commands != nil {
				t.Error("something of a bad entry is used")
			}
		})
	}
}

func FuzzDecodeBatch(f *testing.F) {
	one, err := EncodeCommand(&Command{Key: "k", Op: "pool scale", By: "alice", Args: json.RawMessage(`{"pool":"linux"}`)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(EncodeBatch(0, nil))
	f.Add(EncodeBatch(1_700_000_000_000, [][]byte{one, one}))
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := DecodeBatch(data)
		if err != nil {
			return
		}
		var raw [][]byte
		for i := range b.Commands {
			c, err := EncodeCommand(&b.Commands[i])
			if err != nil {
				return // longer than a command may be
			}
			raw = append(raw, c)
		}
		again, err := DecodeBatch(EncodeBatch(b.At, raw))
		if err != nil {
			t.Fatal(err)
		}
		var raw2 [][]byte
		for i := range again.Commands {
			raw2 = append(raw2, encode(t, &again.Commands[i]))
		}
		if diff := gocmp.Diff(raw, raw2); diff != "" {
			t.Fatalf("-once +twice\n%s", diff)
		}
	})
}
