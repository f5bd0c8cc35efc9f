package archive

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"footplate/fleet"
)

func exported(t testing.TB, entries []fleet.Entry, f Filter) []byte {
	t.Helper()
	a, _ := start(t, t.TempDir())
	a.Append(entries)
	var b bytes.Buffer
	ok(t, a.Export(within(t), &b, f))
	return b.Bytes()
}

func split(b []byte) []string { return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n") }

// retrail replaces the trailer by one that fits the lines before it.
func retrail(t testing.TB, lines []string) []string {
	body := lines[:len(lines)-1]
	var tr trailer
	for i, line := range body[1:] {
		e, why := decode([]byte(line))
		if why != "" {
			t.Fatal(why)
		}
		if i == 0 {
			tr.First = e.N
		}
		tr.Count++
		tr.Last, tr.Head = e.N, e.Hash
	}
	sum := sha256.Sum256([]byte(strings.Join(body, "\n") + "\n"))
	tr.SHA256 = hex.EncodeToString(sum[:])
	b, err := json.Marshal(tr)
	ok(t, err)
	return append(slices.Clone(body), string(b))
}

func line(t testing.TB, e fleet.Entry) string {
	b, err := encode(&e)
	ok(t, err)
	return string(b)
}

func TestVerifyExport(t *testing.T) {
	entries := chained("", 1, 40)
	for name, row := range map[string]struct {
		f    Filter
		want Report
	}{
		"all":   {Filter{}, Report{Count: 40, First: 1, Last: 40, Head: entries[39].Hash}},
		"range": {Filter{From: 5, Until: entries[9].At}, Report{Count: 5, First: 5, Last: 9, Head: entries[8].Hash}},
		"some":  {Filter{By: "bob"}, Report{Count: 4, First: 10, Last: 40, Head: entries[39].Hash, Selected: true}},
		"text":  {Filter{Text: "backs", To: 20}, Report{Count: 2, First: 7, Last: 14, Head: entries[13].Hash, Selected: true}},
		"none":  {Filter{From: 100}, Report{}},
		"empty": {Filter{By: "nobody"}, Report{Selected: true}},
	} {
		t.Run(name, func(t *testing.T) {
			b := exported(t, entries, row.f)
			got, err := Verify(iotest.OneByteReader(bytes.NewReader(b)))
			ok(t, err)
			row.want.ClusterID = "c1"
			if fmt.Sprint(got) != fmt.Sprint(row.want) {
				t.Fatalf("got %+v", got)
			}
		})
	}
	b := exported(t, entries, Filter{})
	if _, err := Verify(iotest.TimeoutReader(bytes.NewReader(b))); !errors.Is(err, iotest.ErrTimeout) {
		t.Fatalf("a reader that fails: %v", err)
	}
}

// Each kind of tampering is found, and the first bad entry is named. Where it
// says forged, the forger also made the trailer fit.
func TestVerifyFindsTampering(t *testing.T) {
	entries := chained("", 1, 20)
	good := split(exported(t, entries, Filter{})) // line n is entry n
	anchor := Anchor{15, entries[14].Hash}
	edit := func(n int, change func(*fleet.Entry)) func([]string) []string {
		return func(l []string) []string {
			e := entries[n-1]
			change(&e)
			l[n] = line(t, e)
			return l
		}
	}
	erased := func(change func(*fleet.Entry)) func([]string) []string {
		return edit(8, func(e *fleet.Entry) {
			ok(t, e.Erase("args"))
			change(e)
		})
	}
	for _, row := range []struct {
		name   string
		tamper func([]string) []string
		forged bool
		want   Wrong
		n      fleet.EntryNo
	}{
		{"text edited", edit(8, func(e *fleet.Entry) { e.Text = "x" }), true, Edited, 8},
		{"head edited", edit(8, func(e *fleet.Entry) { e.Via = "chat" }), true, Edited, 8},
		{"number edited", edit(8, func(e *fleet.Entry) { e.N = 12 }), true, Edited, 12},
		{"edited and sealed again", edit(8, func(e *fleet.Entry) { e.Text = "x"; e.Seal(e.Prev) }), true, Swapped, 9},
		{"another in its place", edit(8, func(e *fleet.Entry) { *e = chained("", 8, 8)[0] }), true, Swapped, 8},
		{"first edited", edit(1, func(e *fleet.Entry) { e.Reason = "x" }), true, Edited, 1},
		{"text under a claimed erasure", erased(func(e *fleet.Entry) { e.Args = json.RawMessage(`{"lie":1}`) }), true, Edited, 8},
		{"bytes moved into the salt", erased(func(e *fleet.Entry) {
			e.Salts["text"] += hex.EncodeToString([]byte(e.Text[:6]))
			e.Text = e.Text[6:]
		}), true, Edited, 8},
		{"one missing", func(l []string) []string { return slices.Delete(l, 8, 9) }, true, Missing, 8},
		{"several missing", func(l []string) []string { return slices.Delete(l, 8, 11) }, true, Missing, 8},
		{"first missing", func(l []string) []string { return slices.Delete(l, 1, 2) }, true, Missing, 1},
		{"last missing", func(l []string) []string { return slices.Delete(l, 20, 21) }, false, Truncated, 20},
		{"last missing, trailer fits", func(l []string) []string { return slices.Delete(l, 20, 21) }, true, Truncated, 20},
		{"copied", func(l []string) []string { return slices.Insert(l, 9, l[8]) }, true, Inserted, 8},
		{"made up, before", func(l []string) []string { return slices.Insert(l, 8, line(t, chained("x", 8, 8)[0])) }, true, Inserted, 8},
		{"made up, linked", func(l []string) []string {
			e := entries[7]
			e.Text = "made up"
			e.Seal(e.Prev)
			return slices.Insert(l, 8, line(t, e))
		}, true, Inserted, 8},
		{"made up, at the end", func(l []string) []string {
			return slices.Insert(l, 21, line(t, chained(entries[19].Hash, 21, 21)[0]))
		}, true, Inserted, 21},
		{"after the trailer", func(l []string) []string { return append(l, l[8]) }, false, Inserted, 21},
		{"two exchanged", func(l []string) []string { l[8], l[9] = l[9], l[8]; return l }, true, Reordered, 8},
		{"one moved far", func(l []string) []string {
			moved := l[8]
			return slices.Insert(slices.Delete(l, 8, 9), 15, moved)
		}, true, Reordered, 8},
		{"no trailer", func(l []string) []string { return l[:21] }, false, Truncated, 21},
		{"half a line", func(l []string) []string { return append(l[:12], l[12][:30]+"\x00cut") }, false, Truncated, 12},
		{"only a header", func(l []string) []string { return l[:1] }, false, Truncated, 1},
		{"nothing", func(l []string) []string { return nil }, false, Truncated, 0},
		{"not JSON", func(l []string) []string { l[8] = "{broken"; return l }, false, BadJSON, 8},
		{"an empty line", func(l []string) []string { return slices.Insert(l, 8, "") }, false, BadJSON, 8},
		{"unknown field", func(l []string) []string {
			l[8] = strings.TrimSuffix(l[8], "}") + `,"note":"x"}`
			return l
		}, false, BadJSON, 8},
		{"field twice", func(l []string) []string {
			l[8] = strings.Replace(l[8], `"text":`, `"text":"lie","text":`, 1)
			return l
		}, false, BadJSON, 8},
		{"another cluster", func(l []string) []string { l[0] = strings.Replace(l[0], "c1", "c2", 1); return l }, false, Edited, 0},
		{"header cuts the range", func(l []string) []string { l[0] = strings.Replace(l[0], `"to":20`, `"to":19`, 1); return l }, true, Inserted, 20},
		{"trailer's count", func(l []string) []string { l[21] = strings.Replace(l[21], ":20", ":21", 1); return l }, false, Missing, 0},
		{"trailer's head", func(l []string) []string {
			l[21] = strings.Replace(l[21], entries[19].Hash, entries[18].Hash, 1)
			return l
		}, false, Edited, 0},
		{"a new chain", func(l []string) []string {
			prev := entries[6].Hash
			for i := 7; i < 20; i++ {
				e := entries[i]
				e.By = "mallory"
				e.Seal(prev)
				prev = e.Hash
				l[i+1] = line(t, e)
			}
			return l
		}, true, Rewritten, 15},
	} {
		t.Run(row.name, func(t *testing.T) {
			l := row.tamper(slices.Clone(good))
			if row.forged {
				l = retrail(t, l)
			}
			data := strings.Join(l, "\n")
			if len(l) > 0 && !strings.HasSuffix(data, "cut") {
				data += "\n"
			}
			_, err := Verify(strings.NewReader(data), Anchor{3, entries[2].Hash}, anchor)
			var fault *Fault
			if !errors.As(err, &fault) {
				t.Fatalf("not found: %v", err)
			}
			if fault.Wrong != row.want || fault.N != row.n {
				t.Fatalf("found as %q at %d: %v", fault.Wrong, fault.N, err)
			}
			code(t, err, fleet.CodeConflict)
		})
	}
}

// An entry with a field properly erased is as intact as it was.
func TestVerifyAcceptsErasure(t *testing.T) {
	for _, field := range []string{"by", "args", "reason", "text"} {
		entries := chained("", 1, 10)
		ok(t, entries[4].Erase(field))
		if _, err := Verify(bytes.NewReader(exported(t, entries, Filter{}))); err != nil {
			t.Fatalf("%s: %v", field, err)
		}
	}
}

func TestTenThousandEntries(t *testing.T) {
	entries := chained("", 1, 10_000)
	began := time.Now()
	b := exported(t, entries, Filter{})
	report, err := Verify(bytes.NewReader(b))
	ok(t, err)
	if report.Count != 10_000 {
		t.Fatalf("%+v", report)
	}
	t.Logf("10,000 entries stored, exported and verified in %s", time.Since(began))
}

func FuzzVerify(f *testing.F) {
	entries := chained("", 1, 3)
	good := exported(f, entries, Filter{})
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add(exported(f, entries, Filter{By: "alice"}))
	f.Add(exported(f, nil, Filter{}))
	f.Add([]byte("{\"format\":\"footplate-audit/1\",\"cluster_id\":\"\",\"from\":1,\"to\":18446744073709551615}\n{\"n\":1}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		report, err := Verify(bytes.NewReader(data), Anchor{2, entries[1].Hash})
		if err != nil {
			var fault *Fault
			if !errors.As(err, &fault) || fault.Wrong == "" {
				t.Fatalf("an error that is no fault: %v", err)
			}
			return
		}
		// Whatever is accepted is the original or a part of it, or has nothing
		// to do with it: no byte of an anchored export can change.
		if report.Anchored == 2 && report.First == 1 && !report.Selected &&
			!bytes.Contains(data, []byte(line(t, entries[0])+"\n"+line(t, entries[1])+"\n")) {
			t.Fatalf("accepted another beginning: %q", data)
		}
	})
}
