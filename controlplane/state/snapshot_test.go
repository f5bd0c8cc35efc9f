package state

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"footplate/fleet"
)

// sample is a state with something in it.
func sample() *State {
	st := New()
	st.Begin(9, 1_700_000_000_000)
	_ = st.Do("alice", func(tx *Tx) error {
		tx.Cluster, tx.Epoch, tx.Term = "c-1", 1, 3
		tx.Orgs.Put("acme", fleet.Org{Name: "acme", Slots: 4, Weight: 1})
		tx.Tokens.Put("ab", fleet.Token{Name: "ci", Hash: "ab", Principal: "token:ci", Role: fleet.Admin})
		tx.Builds.Put(300, fleet.Build{
			ID: 300, Org: "acme", Pool: "linux", Spec: testSpec, Stage: fleet.StageRunnable,
			Tasks: []fleet.Task{{Live: 2, Attempts: []fleet.AttemptID{1, 2}}, {}},
		})
		tx.Attempts.Put(2, fleet.Attempt{ID: 2, Build: 300, Host: "linux-1", Why: "é <&> \u2028"})
		tx.Meta.Build = 300
		return nil
	})
	st.Remember(Remembered{ID: "alice\x00k", Op: "org set", At: st.Clock, Outcome: Outcome{
		Entry: 1, Text: "made", Result: json.RawMessage(`{"a":[1]}`), Err: fleet.Invalidf("no").WithHint("yes"),
	}}, false)
	return st
}

// sealed gives lines of a snapshot a tail that fits.
func sealed(lines ...string) string {
	text := strings.Join(lines, "\n") + "\n"
	sum := sha256.Sum256([]byte(text))
	return text + fmt.Sprintf(`{"rows":%d,"sha256":%q}`, len(lines)-1, hex.EncodeToString(sum[:])) + "\n"
}

const sampleHead = `{"format":"footplate.snapshot","version":2,"meta":{}}`

func TestLoadRefuses(t *testing.T) {
	whole := string(dump(t, sample().Publish()))
	lines := strings.SplitAfter(whole, "\n")
	lines = lines[:len(lines)-1]
	for _, row := range []struct{ name, text, want string }{
		{"empty", "", "snapshot has no head: it is empty or cut off"},
		{"half a head", lines[0][:20], "snapshot has no head: it is empty or cut off"},
		{"something else", "PK\x03\x04\n" + whole, "snapshot is not a footplate.snapshot"},
		{"another format", sealed(`{"format":"x"}`), "snapshot is not a footplate.snapshot"},
		{"a later version", sealed(`{"format":"footplate.snapshot","version":3}`), "snapshot has version 3; this program reads 2"},
		{"only a head", lines[0], "snapshot is cut off after 0 rows"},
		{"no tail", strings.Join(lines[:len(lines)-1], ""), "snapshot is cut off after 7 rows"},
		{"half a tail", whole[:len(whole)-4], "snapshot is cut off after 7 rows"},
		{"a line missing", lines[0] + strings.Join(lines[2:], ""), "snapshot is damaged: its 6 rows do not have the checksum in its tail"},
		{"a line twice", lines[0] + lines[1] + strings.Join(lines[1:], ""), "snapshot is damaged: its 8 rows"},
		{"lines swapped", lines[0] + lines[2] + lines[1] + strings.Join(lines[3:], ""), "snapshot is damaged: its 7 rows"},
		{"another head", strings.Replace(whole, `"term":3`, `"term":4`, 1), "snapshot is damaged"},
		{"a row tampered with", strings.Replace(whole, `"slots":4`, `"slots":5`, 1), "snapshot is damaged"},
		{"a line of no JSON", sealed(sampleHead, `{"t":"orgs",`), "row 1 of snapshot: unexpected end of JSON input"},
		{"a table of tomorrow", sealed(sampleHead, `{"t":"dreams","row":{}}`), `row 1 of snapshot is of table "dreams", which this program does not know`},
		{"a row of another shape", sealed(sampleHead, `{"t":"orgs","row":{"k":5}}`), "row 1 of snapshot: row of orgs: json"},
		{"a row with more than this program knows", sealed(sampleHead, `{"t":"orgs","row":{"k":"acme","v":1,"r":{"name":"acme","dreams":1}}}`),
			`row 1 of snapshot: row of orgs: it has a field "dreams", which this program does not know: it was written by a later version`},
		{"a spec with more", sealed(sampleHead, `{"t":"specs","row":{"n":1,"spec":{"dreams":1}}}`), `it has a field "dreams"`},
		{"a build with more", sealed(sampleHead, `{"t":"builds","row":{"k":3,"v":1,"r":{"id":3,"tasks":[{"dreams":1}]}}}`), `it has a field "dreams"`},
		{"a line with more", sealed(sampleHead, `{"t":"orgs","row":{},"dreams":1}`), `row 1 of snapshot: it has a field "dreams"`},
		{"meta with more", sealed(`{"format":"footplate.snapshot","version":2,"meta":{"dreams":1}}`), `head of snapshot: it has a field "dreams", which this program does not know`},
		{"a later version with more", sealed(`{"format":"footplate.snapshot","version":3,"dreams":1}`), "snapshot has version 3; this program reads 2"},
		{"two rows in a line", sealed(sampleHead, `{"t":"orgs","row":{"k":"acme"}}{"t":"orgs","row":{"k":"beta"}}`), "row 1 of snapshot: something stands after its end"},
		{"a number without end", sealed(sampleHead, `{"t":"builds","row":{"k":18446744073709551615,"v":1,"r":{}}}`), "row 1 of snapshot: row of builds has number 18446744073709551615, which no row can have"},
		{"more after the tail", whole + "\n", "snapshot goes on after its tail"},
	} {
		t.Run(row.name, func(t *testing.T) {
			st, err := Load(strings.NewReader(row.text))
			if err == nil || st != nil {
				t.Fatalf("Load gives %v, %v", st, err)
			}
			if !strings.Contains(err.Error(), row.want) {
				t.Errorf("Load says %q, not %q", err, row.want)
			}
		})
	}
}

// TestLoadTampered: no byte of a snapshot can be changed or left out and the
// snapshot still load as something else.
func TestLoadTampered(t *testing.T) {
	st := sample()
	whole := dump(t, st.Publish())
	for i := range whole {
		for _, c := range []byte{whole[i] ^ 1, whole[i] ^ 0x20, '0', '\n'} {
			bad := bytes.Clone(whole)
			bad[i] = c
			if got, err := Load(bytes.NewReader(bad)); err == nil && got.Digest() != st.Digest() {
				t.Fatalf("byte %d as %q loads as another state", i, c)
			}
		}
		if _, err := Load(bytes.NewReader(whole[:i])); err == nil {
			t.Fatalf("a snapshot that is cut off after %d bytes loads", i)
		}
	}
}

type failingWriter struct{ left int }

var errFull = errors.New("disk is full")

func (w *failingWriter) Write(b []byte) (int, error) {
	if w.left -= len(b); w.left < 0 {
		return 0, errFull
	}
	return len(b), nil
}

func TestDumpToFullDisk(t *testing.T) {
	st := sample()
	for i := range 400 {
		st.Orgs.Put(fleet.OrgName(fmt.Sprintf("org-%d", i)), fleet.Org{Name: "some name of an org that is rather long, to fill the disk sooner"})
	}
	v := st.Publish()
	size := len(dump(t, v))
	for _, left := range []int{0, 10, size / 2, size - 1} {
		if err := v.Dump(&failingWriter{left}); !errors.Is(err, errFull) || !strings.HasPrefix(err.Error(), "write snapshot: ") {
			t.Errorf("with room for %d bytes Dump gives %v", left, err)
		}
	}
	if err := v.Dump(&failingWriter{size}); err != nil {
		t.Error(err)
	}
}

// TestLoadGoesOn: a restored state takes further commands as the first does.
func TestLoadGoesOn(t *testing.T) {
	st := sample()
	again, err := Load(bytes.NewReader(dump(t, st.Publish())))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*State{st, again} {
		s.Begin(10, s.Clock.Add(KeyTTL))
		_ = s.Do("bob", func(tx *Tx) error { tx.Orgs.Put("beta", fleet.Org{}); return nil })
		_ = s.Do("bob", func(tx *Tx) error { tx.Orgs.Delete("acme"); return errors.New("no") })
	}
	if trace(t, st) != trace(t, again) {
		t.Error("the two have parted")
	}
	if st.Keys.Len() != 0 {
		t.Error("the key has not expired")
	}
}

func FuzzLoad(f *testing.F) {
	whole := dump(f, sample().Publish())
	f.Add(whole)
	f.Add([]byte(sealed(sampleHead)))
	f.Add([]byte(sealed(sampleHead, `{"t":"builds","row":{"k":3,"v":1,"r":{"id":3,"stage":"runnable","tasks":[{}]}}}`)))
	f.Add([]byte(sealed(sampleHead, `{"t":"builds","row":null}`, `{"t":"keys","row":{"k":"","v":1,"r":null}}`)))
	f.Fuzz(func(t *testing.T, data []byte) {
		check := func(data []byte) {
			st, err := Load(bytes.NewReader(data))
			if (err == nil) == (st == nil) {
				t.Fatalf("Load gives %v, %v", st, err)
			}
			if err != nil {
				return
			}
			again, err := Load(bytes.NewReader(dump(t, st.Publish())))
			if err != nil {
				t.Fatalf("what was loaded cannot be loaded again: %v", err)
			}
			if again.Digest() != st.Digest() {
				t.Fatal("the digest changes on the way through a snapshot")
			}
		}
		check(data)
		// With a checksum that fits, so that the rows are looked at too.
		check([]byte(sealed(strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")...)))
	})
}

// slowReader gives a byte at a time.
type slowReader struct{ r io.Reader }

func (s slowReader) Read(b []byte) (int, error) { return s.r.Read(b[:min(1, len(b))]) }

func TestLoadByBytes(t *testing.T) {
	st := sample()
	got, err := Load(slowReader{bytes.NewReader(dump(t, st.Publish()))})
	if err != nil || got.Digest() != st.Digest() {
		t.Errorf("Load gives %v", err)
	}
}
