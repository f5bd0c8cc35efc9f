package archive

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"footplate/fleet"
)

// However entries come, they end in blocks that follow one another, are no
// larger than they may be, and are few.
func TestBlocks(t *testing.T) {
	const total = 3000
	entries := chained("", 1, total)
	large := chained("", 1, 300)
	for i := range large {
		large[i].Text = strings.Repeat("x", 3000+1000*(i%50))
		large[i].Seal("")
		if i > 0 {
			large[i].Seal(large[i-1].Hash)
		}
	}
	for _, row := range []struct {
		name    string
		entries []fleet.Entry
		sizes   []int // of the writes, in turn
		most    int   // blocks
	}{
		{"one by one", entries[:1000], []int{1}, 1000/128 + 8},
		{"by and by", entries, []int{1, 200, 3, 40, 1, 1}, 2 * total / maxBlock},
		{"many", entries, []int{1000}, total/maxBlock + 3},
		{"just one too many", entries, []int{maxBlock + 1}, 2 * total / maxBlock},
		{"large ones", large, []int{20}, 60},
	} {
		t.Run(row.name, func(t *testing.T) {
			a, err := Open(t.TempDir(), "c1")
			ok(t, err)
			defer a.Close()
			for i, n := 0, 0; n < len(row.entries); i++ {
				m := min(n+row.sizes[i%len(row.sizes)], len(row.entries))
				a.have, err = a.db.put(a.have, Anchor{}, row.entries[n:m], false)
				ok(t, err)
				n = m
			}
			ctx := within(t)
			blocks, next := 0, fleet.EntryNo(1)
			for b, err := range a.db.blocks(ctx, 1, total, Filter{}) {
				ok(t, err)
				if b.first != next || b.count() > maxBlock || len(b.raw) > maxRaw && b.count() > 1 {
					t.Fatalf("entries %d to %d (%d bytes) are in one block; %d comes next", b.first, b.last, len(b.raw), next)
				}
				next = b.last + 1
				blocks++
			}
			if blocks > row.most {
				t.Errorf("%d blocks; want at most %d", blocks, row.most)
			}
			_, err = a.VerifyChain(ctx, 0)
			ok(t, err)
			got, err := a.Query(ctx, Filter{Limit: total})
			ok(t, err)
			if diff := cmp.Diff(row.entries, got); diff != "" {
				t.Fatal(diff)
			}
		})
	}
}

// odd are entries whose values could be taken for something else on the way
// through the sets and the lines.
func odd() []fleet.Entry {
	var entries []fleet.Entry
	prev := ""
	for i := range 700 {
		e := fleet.Entry{N: fleet.EntryNo(i + 1), At: fleet.Time(1_800_000_000_000 + int64(i/3)*1000), By: "alice", Op: "pool scale", Via: "chat",
			Outcome: fleet.EntryDone, Text: "scaled", Salt: fmt.Sprintf("%032x", i)}
		switch i % 11 {
		case 1:
			e.By, e.Op = "al\nice", "pool\nscale"
		case 2:
			e.By, e.Text = `bob "the <builder>"`, "SCALED\tby a \"tab\" to \u212aelvin" // the Kelvin sign is a k in lower case
		case 3:
			e.By, e.Args = "zoë", json.RawMessage(`{"by":"alice","incident":"I1","text":"Needle"}`)
		case 4:
			e.Incident, e.Outcome = "I1", fleet.EntryRefused
		case 5:
			e.Op, e.Incident = "poolside", "I1\nI2"
		case 6:
			e.Op, e.Reason = "pool", "NEEDLE in a reason"
		case 7:
			e.Key = strings.Repeat("ab", 400)
		}
		if i/256 == 1 {
			e.By, e.Incident = "only", ""
		}
		e.Seal(prev)
		prev = e.Hash
		entries = append(entries, e)
	}
	return entries
}

// A query gives what looking at every entry gives, whatever it passes over.
func TestQueryPassesOverNothing(t *testing.T) {
	ctx := within(t)
	entries := odd()
	a, _ := start(t, t.TempDir())
	a.Append(slices.Clone(entries))
	pick := func(of ...string) string { return of[mathrand.IntN(len(of))] }
	for range 100 {
		f := Filter{
			By:       fleet.Principal(pick("", "", "alice", "al\nice", "al", "ice", `bob "the <builder>"`, "zoë", "only", "nobody")),
			Op:       pick("", "", "pool", "pool scale", "pool\nscale", "poolside", "poo", "scale"),
			Outcome:  fleet.EntryOutcome(pick("", "", "", "done", "refused", "fail")),
			Incident: pick("", "", "", "I1", "I2", "I1\nI2"),
			Text:     pick("", "", "needle", "ScAled", "\t", `"tab"`, "kelvin", "ZOË", "zo", "abab", "<b", `"by":"alice"`),
			Object:   pick("", "", "", "alice", "I1", "by alice", "text Needle", "REASON", "scaled", "scale", "zoë", `a "tab"`),
			Newest:   mathrand.IntN(2) == 0,
			Limit:    len(entries),
		}
		if mathrand.IntN(2) == 0 {
			f.From, f.To = fleet.EntryNo(mathrand.IntN(800)), fleet.EntryNo(mathrand.IntN(800))
		}
		if mathrand.IntN(2) == 0 {
			f.Since = entries[0].At + fleet.Time(mathrand.IntN(260_000)) - 5000
			f.Until = f.Since + fleet.Time(mathrand.IntN(100_000))
		}
		var want, got []fleet.EntryNo
		for i := range entries {
			e := &entries[i]
			if e.N >= f.From && (f.To == 0 || e.N <= f.To) && e.At >= f.Since && (f.Until == 0 || e.At < f.Until) && f.holds(e) {
				want = append(want, e.N)
			}
		}
		if f.Newest {
			slices.Reverse(want)
		}
		list, err := a.Query(ctx, f)
		ok(t, err)
		for _, e := range list {
			got = append(got, e.N)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("%+v:\n%s", f, diff)
		}
	}
	_, err := a.VerifyChain(ctx, 0)
	ok(t, err)
}

// What was erased is nowhere in the files, also not in the copies of its entry
// that were made when small blocks were joined.
func TestErasedIsGoneFromTheFiles(t *testing.T) {
	ctx, dir := within(t), t.TempDir()
	entries := chained("", 1, 300)
	secrets := map[int]string{}
	for i := range entries {
		if i%10 == 5 {
			var random [24]byte
			rand.Read(random[:])
			secrets[i] = "S" + strings.ToUpper(hex.EncodeToString(random[:]))
			entries[i].Text = secrets[i]
		}
		prev := ""
		if i > 0 {
			prev = entries[i-1].Hash
		}
		entries[i].Seal(prev)
	}
	a, _ := start(t, dir)
	for i := range entries {
		a.Append(entries[i : i+1 : i+1])
		_, err := a.Get(ctx, entries[i].N) // makes the writer write
		ok(t, err)
	}
	found := func() (n int) {
		for _, name := range []string{"audit.db", "audit.db-wal"} {
			b, err := os.ReadFile(filepath.Join(dir, name))
			ok(t, err)
			for _, s := range secrets {
				n += bytes.Count(b, []byte(s[1:24])) // all of it in one piece is not certain
			}
		}
		return n
	}
	if found() < len(secrets) {
		t.Fatal("the test does not see what it looks for")
	}
	for i := range secrets {
		erased := entries[i]
		ok(t, erased.Erase("text"))
		a.Append([]fleet.Entry{erased})
	}
	_, err := a.Get(ctx, 1)
	ok(t, err)
	if n := found(); n > 0 {
		t.Fatalf("the secrets are still there %d times", n)
	}
	_, err = a.VerifyChain(ctx, 0)
	ok(t, err)
}

func FuzzShorten(f *testing.F) {
	f.Add([]byte(`{"n":1,"key":"00ff00ff00ff00ff00ff","salt":"0","prev":"","hash":"` + strings.Repeat("0a", 32) + `"}`))
	f.Add([]byte("\x01\"key\":\"" + strings.Repeat("a", 600) + "\x01"))
	f.Add([]byte(`"hash":"` + strings.Repeat("a", 17)))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := lengthen(nil, shorten(nil, b))
		if err != nil || !bytes.Equal(got, b) {
			t.Fatalf("%q became %q, %v", b, got, err)
		}
		_, _ = lengthen(nil, b) // whatever it is
	})
}

func FuzzUnpack(f *testing.F) {
	b := block{first: 1, last: 1}
	b.add(&fleet.Entry{N: 1}, []byte(`{"n":1}`))
	var p packer
	f.Add(bytes.Clone(p.pack(&b)))
	f.Fuzz(func(t *testing.T, body []byte) {
		var p packer
		b := block{first: 1, last: 2}
		if p.unpack(&b, body) == nil && b.count() != 2 {
			t.Fatalf("%d entries are two", b.count())
		}
	})
}

// childDir tells a process of this test to write into an archive until it is
// killed.
const childDir = "FOOTPLATE_TEST_ARCHIVE"

// A process that is killed while it writes leaves an archive that is whole, and
// that has all that it said was on disk.
func TestKilledWhileWriting(t *testing.T) {
	const total = 20_000
	entries := chained("", 1, total)
	if dir := os.Getenv(childDir); dir != "" {
		a, _ := start(t, dir)
		for n := max(0, int(a.Last())-100); n < total; {
			m := min(n+1+mathrand.IntN(300), total)
			a.Append(entries[n:m])
			n = m
			if mathrand.IntN(3) == 0 {
				ok(t, a.Flush(context.Background(), fleet.EntryNo(n)))
				fmt.Printf("flushed %d\n", n)
			}
		}
		return
	}
	dir := t.TempDir()
	kills := 0
	for round := range 6 {
		cmd := exec.CommandContext(within(t), os.Args[0], "-test.run=^TestKilledWhileWriting$")
		cmd.Env = append(os.Environ(), childDir+"="+dir)
		out, err := cmd.StdoutPipe()
		ok(t, err)
		ok(t, cmd.Start())
		var flushed fleet.EntryNo
		lines := bufio.NewScanner(out)
		for i := mathrand.IntN(12); i >= 0 && lines.Scan(); i-- {
			_, _ = fmt.Sscanf(lines.Text(), "flushed %d", &flushed)
		}
		ok(t, cmd.Process.Kill())
		var exit *exec.ExitError
		if err := cmd.Wait(); errors.As(err, &exit) && !exit.Exited() {
			kills++
		}
		a, stop := start(t, dir)
		if a.Last() < flushed {
			t.Fatalf("round %d: entries up to %d were flushed, and %d is the last", round, flushed, a.Last())
		}
		report, err := a.VerifyChain(within(t), 0)
		ok(t, err)
		if report.Last != a.Last() || report.Last > 0 && report.Head != entries[report.Last-1].Hash {
			t.Fatalf("round %d: %+v", round, report)
		}
		stop()
	}
	if kills == 0 {
		t.Fatal("nobody was killed")
	}
}
