package archive

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"footplate/fleet"
)

// chained makes entries first to last that follow prev.
func chained(prev string, first, last fleet.EntryNo) []fleet.Entry {
	var entries []fleet.Entry
	for n := first; n <= last; n++ {
		e := fleet.Entry{
			N: n, Index: uint64(n) * 3, At: fleet.Time(1_800_000_000_000 + int64(n)*1000),
			By: "alice", Role: fleet.Operator, Via: "cli/0.1.0", Op: "pool scale", Key: fmt.Sprintf("k%d", n),
			Args: json.RawMessage(`{"pool":"linux","note":"a && b <c>"}`), Outcome: fleet.EntryDone,
			Text: fmt.Sprintf("pool \"linux\" scaled to %d & more", n), Salt: fmt.Sprintf("%032x", n),
		}
		switch {
		case n%10 == 0:
			e.By, e.Op, e.Outcome, e.Text = "bob", "pool pause", fleet.EntryRefused, "Refused: a viewer may not"
		case n%7 == 0:
			e.Op, e.Incident, e.Reason = "host drain", "INC-7", "queue backs up"
		}
		e.Seal(prev)
		prev = e.Hash
		entries = append(entries, e)
	}
	return entries
}

// start opens the archive in dir and runs its writer; stop ends it.
func start(t testing.TB, dir string) (a *Archive, stop func()) {
	t.Helper()
	a, err := Open(dir, "c1")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			if err := a.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(stop)
	return a, stop
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func code(t *testing.T, err error, want fleet.Code) {
	t.Helper()
	if fleet.CodeOf(err) != want {
		t.Fatalf("error is %v; want code %q", err, want)
	}
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestAppendAndReopen(t *testing.T) {
	dir, ctx := t.TempDir(), within(t)
	entries := chained("", 1, 300)
	a, stop := start(t, dir)
	a.Append(entries[:200])
	a.Append(entries[150:]) // a replay overlaps
	ok(t, a.Flush(ctx, 300))
	if a.Last() != 300 {
		t.Fatalf("last is %d", a.Last())
	}
	stop()
	code(t, a.Flush(ctx, 301), fleet.CodeUnavailable)

	a, _ = start(t, dir)
	a.Append(entries)
	ok(t, a.Flush(ctx, 300))
	got, err := a.Query(ctx, Filter{})
	ok(t, err)
	if diff := cmp.Diff(entries, got); diff != "" {
		t.Fatal(diff)
	}
	report, err := a.VerifyChain(ctx, 0, Anchor{120, entries[119].Hash}, Anchor{900, "x"})
	ok(t, err)
	want := Report{ClusterID: "c1", Count: 300, First: 1, Last: 300, Head: entries[299].Hash, Anchored: 120, Beyond: []Anchor{{900, "x"}}}
	if diff := cmp.Diff(want, report); diff != "" {
		t.Fatal(diff)
	}
	if _, err := Open(dir, "c2"); fleet.CodeOf(err) != fleet.CodeConflict {
		t.Fatalf("the archive of another cluster: %v", err)
	}
}

// A node that dies between append and flush finds what was written, and the log
// brings the rest again.
func TestCrashBeforeFlush(t *testing.T) {
	dir, ctx := t.TempDir(), within(t)
	entries := chained("", 1, 500)
	a, _ := start(t, dir)
	a.Append(entries[:400])
	_, err := a.Get(ctx, 400) // written, and nobody flushed
	ok(t, err)
	crashed := t.TempDir()
	for _, name := range []string{"audit.db", "audit.db-wal"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		ok(t, err)
		if name == "audit.db-wal" {
			b = b[:len(b)*2/3] // the end did not reach the disk
		}
		ok(t, os.WriteFile(filepath.Join(crashed, name), b, 0o600))
	}
	b, _ := start(t, crashed)
	if b.Last() >= 400 {
		t.Fatalf("last is %d after the loss of the log's end", b.Last())
	}
	b.Append(entries)
	ok(t, b.Flush(ctx, 500))
	_, err = b.VerifyChain(ctx, 0)
	ok(t, err)
	if from, to := b.Missing(); from != 0 || to != 0 {
		t.Fatalf("missing %d to %d", from, to)
	}
}

func TestOtherContentRefused(t *testing.T) {
	entries := chained("", 1, 20)
	resealed := chained("", 1, 20)
	resealed[9].Text = "nothing happened"
	resealed[9].Seal(resealed[8].Hash)
	edited := chained("", 1, 20)
	edited[9].Text = "nothing happened"
	fork := chained(chained("", 1, 19)[18].Hash, 20, 21)
	fork[0].Text = "another twentieth"
	fork[0].Seal(fork[0].Prev)
	fork[1].Seal(fork[0].Hash)
	for name, bad := range map[string][]fleet.Entry{
		"resealed": resealed[9:10], "edited": edited[9:10], "does not follow": fork[1:],
	} {
		t.Run(name, func(t *testing.T) {
			ctx := within(t)
			a, _ := start(t, t.TempDir())
			a.Append(entries)
			a.Append(bad)
			code(t, a.Flush(ctx, 21), fleet.CodeConflict)
			code(t, a.Err(), fleet.CodeConflict)
			got, err := a.Query(ctx, Filter{})
			ok(t, err)
			if diff := cmp.Diff(entries, got); diff != "" {
				t.Fatal(diff)
			}
		})
	}
}

func TestErasedIsTheSameEntry(t *testing.T) {
	ctx := within(t)
	entries := chained("", 1, 5)
	erased := entries[2]
	ok(t, erased.Erase("text"))
	a, _ := start(t, t.TempDir())
	a.Append(entries)
	a.Append([]fleet.Entry{erased})
	a.Append(entries) // a replay does not bring it back
	ok(t, a.Flush(ctx, 5))
	got, err := a.Get(ctx, 3)
	ok(t, err)
	if got.Text != "" || got.Hash != entries[2].Hash {
		t.Fatalf("got %+v", got)
	}
	_, err = a.VerifyChain(ctx, 0)
	ok(t, err)
}

func TestFillFromPeers(t *testing.T) {
	ctx := within(t)
	entries := chained("", 1, 100)
	a, _ := start(t, t.TempDir())
	ok(t, a.Expect(ctx, 60, entries[59].Hash))
	ok(t, a.Flush(ctx, 60)) // came by snapshot
	if from, to := a.Missing(); from != 1 || to != 60 {
		t.Fatalf("missing %d to %d", from, to)
	}
	a.Append(entries[60:])
	ok(t, a.Flush(ctx, 100))
	code(t, a.Export(ctx, discard{}, Filter{}), fleet.CodeUnavailable)
	_, err := a.VerifyChain(ctx, 0)
	code(t, err, fleet.CodeUnavailable)
	_, err = a.VerifyChain(ctx, 61)
	ok(t, err)

	code(t, a.Fill(ctx, entries[10:50]), fleet.CodeConflict) // nothing proves the fiftieth
	forged := chained("", 1, 60)
	forged[40].Text = "forged"
	code(t, a.Fill(ctx, forged), fleet.CodeConflict)
	for i := 40; i < 60; i++ {
		forged[i].Seal(forged[i-1].Hash)
	}
	code(t, a.Fill(ctx, forged), fleet.CodeConflict)
	ok(t, a.Fill(ctx, entries[30:70]))
	if from, to := a.Missing(); from != 1 || to != 30 {
		t.Fatalf("missing %d to %d", from, to)
	}
	ok(t, a.Fill(ctx, entries[:30]))
	if from, to := a.Missing(); from != 0 || to != 0 {
		t.Fatalf("missing %d to %d", from, to)
	}
	_, err = a.VerifyChain(ctx, 0)
	ok(t, err)
	code(t, a.Expect(ctx, 100, "another"), fleet.CodeConflict)
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }

func TestFlushWaitsForTheEntry(t *testing.T) {
	a, _ := start(t, t.TempDir())
	entries := chained("", 1, 10)
	flushed := make(chan error, 1)
	go func() { flushed <- a.Flush(within(t), 10) }()
	a.Append(entries[:5])
	short, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := a.Flush(short, 6); err == nil {
		t.Fatal("flushed what was never appended")
	}
	a.Append(entries[5:])
	ok(t, <-flushed)
}

// A write that fails is reported, and tried again until it goes well.
func TestFailingDiskHeals(t *testing.T) {
	ctx := within(t)
	a, _ := start(t, t.TempDir())
	entries := chained("", 1, 20)
	a.Append(entries[:10])
	ok(t, a.Flush(ctx, 10))
	pages := func(n int) {
		_, err := a.db.write.Exec(fmt.Sprintf("PRAGMA max_page_count = %d", n))
		ok(t, err)
	}
	pages(1) // no page more than there are
	big := chained(entries[9].Hash, 11, 400)
	a.Append(big)
	if err := a.Flush(ctx, 400); err == nil || fleet.CodeOf(a.Err()) == fleet.CodeConflict {
		t.Fatalf("flush on a full disk: %v", err)
	}
	pages(1 << 30)
	for a.Flush(ctx, 400) != nil {
		ok(t, ctx.Err())
	}
	ok(t, a.Err())
	_, err := a.VerifyChain(ctx, 0)
	ok(t, err)
}

// What finds no room while the disk fails becomes a gap that peers fill, and
// nothing is flushed past it.
func TestFullQueueBecomesAGap(t *testing.T) {
	ctx := within(t)
	a, _ := start(t, t.TempDir())
	pages := func(n int) {
		_, err := a.db.write.Exec(fmt.Sprintf("PRAGMA max_page_count = %d", n))
		ok(t, err)
	}
	pages(1)
	entries := chained("", 1, maxQueue+500)
	a.Append(entries[:maxQueue])
	a.Append(entries[maxQueue:]) // waits until the first write has failed
	pages(1 << 30)
	for a.Flush(ctx, maxQueue) != nil {
		ok(t, ctx.Err())
	}
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if a.Flush(short, maxQueue+500) == nil {
		t.Fatal("flushed what was dropped")
	}
	from, to := a.Missing()
	if from != maxQueue+1 || to != maxQueue+500 {
		t.Fatalf("missing %d to %d", from, to)
	}
	ok(t, a.Fill(ctx, entries[from-1:to]))
	a.Append(chained(entries[to-1].Hash, to+1, to+5))
	ok(t, a.Flush(ctx, to+5))
	_, err := a.VerifyChain(ctx, 0)
	ok(t, err)
}

func TestQuery(t *testing.T) {
	ctx := within(t)
	entries := chained("", 1, 100)
	a, _ := start(t, t.TempDir())
	a.Append(entries)
	at := func(n int) fleet.Time { return entries[n-1].At }
	for _, row := range []struct {
		name string
		f    Filter
		want []fleet.EntryNo
	}{
		{"range", Filter{From: 98}, []fleet.EntryNo{98, 99, 100}},
		{"newest", Filter{Newest: true, Limit: 2}, []fleet.EntryNo{100, 99}},
		{"time", Filter{Since: at(4), Until: at(6)}, []fleet.EntryNo{4, 5}},
		{"between two moments", Filter{Since: at(4) + 1, Until: at(6) + 1}, []fleet.EntryNo{5, 6}},
		{"before all", Filter{Until: at(1)}, nil},
		{"after all", Filter{Since: at(100) + 1}, nil},
		{"by", Filter{By: "bob", To: 30}, []fleet.EntryNo{10, 20, 30}},
		{"outcome", Filter{Outcome: fleet.EntryRefused, From: 85}, []fleet.EntryNo{90, 100}},
		{"op", Filter{Op: "host drain", To: 20}, []fleet.EntryNo{7, 14}},
		{"noun", Filter{Op: "host", To: 20}, []fleet.EntryNo{7, 14}},
		{"no noun", Filter{Op: "hos"}, nil},
		{"incident", Filter{Incident: "INC-7", Newest: true, Limit: 1}, []fleet.EntryNo{98}},
		{"text", Filter{Text: "refused: A", Limit: 2}, []fleet.EntryNo{10, 20}},
		{"text in reason", Filter{Text: "BACKS", Limit: 1}, []fleet.EntryNo{7}},
		{"beyond", Filter{From: 1 << 63}, nil},
		{"backwards", Filter{From: 9, To: 3}, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, err := a.Query(ctx, row.f)
			ok(t, err)
			var numbers []fleet.EntryNo
			for _, e := range got {
				numbers = append(numbers, e.N)
			}
			if diff := cmp.Diff(row.want, numbers); diff != "" {
				t.Fatal(diff)
			}
		})
	}
	_, err := a.Get(ctx, 101)
	code(t, err, fleet.CodeNotFound)
	_, err = a.Get(ctx, 0)
	code(t, err, fleet.CodeNotFound)
}

func TestConcurrentUse(t *testing.T) {
	ctx := within(t)
	const last = 4_000
	entries := chained("", 1, last)
	a, _ := start(t, t.TempDir())
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; i < last; i += 50 {
			a.Append(entries[i : i+50])
		}
	})
	for range 4 {
		wg.Go(func() {
			for _, n := range []fleet.EntryNo{10, last / 2, last} {
				if err := a.Flush(ctx, n); err != nil {
					t.Error(err)
				}
				got, err := a.Query(ctx, Filter{Newest: true, Limit: 5})
				if err != nil || len(got) != 5 || got[0].N < n {
					t.Errorf("after %d: %d entries, %v", n, len(got), err)
				}
				if _, err := a.VerifyChain(ctx, n-9); err != nil {
					t.Error(err)
				}
				a.Missing()
			}
		})
	}
	wg.Wait()
	if report, err := a.VerifyChain(ctx, 0); err != nil || report.Count != last {
		t.Fatal(report, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	ok(t, os.WriteFile(filepath.Join(dir, "audit.db"), []byte("this is no database, and quite long enough to be none: "+fmt.Sprint(make([]int, 600))), 0o600))
	_, err := Open(dir, "c1")
	code(t, err, fleet.CodeInternal)
	if fleet.AsError(err).Hint == "" {
		t.Fatal("no hint")
	}

	dir = t.TempDir()
	_, stop := start(t, dir)
	stop()
	db, err := sql.Open("sqlite", filepath.Join(dir, "audit.db"))
	ok(t, err)
	_, err = db.Exec("PRAGMA user_version = 99")
	ok(t, err)
	ok(t, db.Close())
	_, err = Open(dir, "c1")
	code(t, err, fleet.CodeConflict)
}

// What is done to the file behind the archive's back is found, and the first bad
// entry is named. The 600 entries are in blocks that begin with 1, 257 and 513.
func TestVerifyChainFindsTampering(t *testing.T) {
	forged := func(t *testing.T, a *Archive, change func(e *fleet.Entry)) {
		rewrite(t, a, 1, func(lines []string) []string {
			e, why := decode([]byte(lines[7]))
			if why != "" {
				t.Fatal(why)
			}
			change(&e)
			lines[7] = line(t, e)
			return lines
		})
	}
	sql := func(statements string) func(*testing.T, *Archive) {
		return func(t *testing.T, a *Archive) {
			_, err := a.db.write.Exec(statements)
			ok(t, err)
		}
	}
	lines := func(change func([]string) []string) func(*testing.T, *Archive) {
		return func(t *testing.T, a *Archive) { rewrite(t, a, 1, change) }
	}
	for _, row := range []struct {
		name   string
		tamper func(*testing.T, *Archive)
		want   Wrong
		n      fleet.EntryNo
	}{
		{"edited", func(t *testing.T, a *Archive) { forged(t, a, func(e *fleet.Entry) { e.Text += "0" }) }, Edited, 8},
		{"edited and sealed", func(t *testing.T, a *Archive) {
			forged(t, a, func(e *fleet.Entry) { e.Text += "0"; e.Seal(e.Prev) })
		}, Swapped, 9},
		{"line deleted", lines(func(l []string) []string { return slices.Delete(l, 7, 8) }), BadJSON, 1},
		{"line replaced by its neighbour", lines(func(l []string) []string { l[7] = l[8]; return l }), Missing, 8},
		{"lines exchanged", lines(func(l []string) []string { l[7], l[8] = l[8], l[7]; return l }), Missing, 8},
		{"line twice", lines(func(l []string) []string { l[8] = l[7]; return l }), Inserted, 8},
		{"no JSON", lines(func(l []string) []string { l[7] = "{}"; return l }), BadJSON, 8},
		{"not compressed", sql("UPDATE blocks SET body = x'7b7d' WHERE first = 257"), BadJSON, 257},
		{"cut", sql("UPDATE blocks SET body = substr(body, 1, length(body)/2) WHERE first = 257"), BadJSON, 257},
		{"block deleted", sql("DELETE FROM blocks WHERE first = 257"), Missing, 257},
		{"first block deleted", sql("DELETE FROM blocks WHERE first = 1"), Missing, 1},
		{"last block deleted", sql("DELETE FROM blocks WHERE first = 513"), Truncated, 513},
		{"all deleted", sql("DELETE FROM blocks"), Truncated, 1},
		{"bodies exchanged", sql("UPDATE blocks SET body = (SELECT b.body FROM blocks b WHERE b.first = 258 - blocks.first) WHERE first < 513"), Missing, 1},
		{"blocks exchanged", sql(`UPDATE blocks SET first = -first WHERE first < 513;
			UPDATE blocks SET first = 258 + first, last = CASE first WHEN -1 THEN 512 ELSE 256 END WHERE first < 0`), Missing, 1},
		{"block twice", sql("INSERT INTO blocks SELECT 2, 257, at_first, at_last, prev, hash, by, op, outcome, incident, body FROM blocks WHERE first = 1"), Inserted, 1},
		{"block twice, at the end", sql("INSERT INTO blocks SELECT 601, 856, at_first, at_last, prev, hash, by, op, outcome, incident, body FROM blocks WHERE first = 1"), Inserted, 601},
		{"moved", sql("UPDATE blocks SET first = 250 WHERE first = 257"), BadJSON, 250},
		{"longer", sql("UPDATE blocks SET last = 900 WHERE first = 513"), BadJSON, 513},
		{"moment of the first", sql("UPDATE blocks SET at_first = at_first + 1 WHERE first = 257"), Edited, 257},
		{"moment of the last", sql("UPDATE blocks SET at_last = 0 WHERE first = 257"), Edited, 257},
		{"previous hash", sql("UPDATE blocks SET prev = 'x' WHERE first = 257"), Edited, 257},
		{"hash", sql("UPDATE blocks SET hash = 'x' WHERE first = 257"), Edited, 257},
		{"persons", sql("UPDATE blocks SET by = CAST(replace(CAST(by AS TEXT), 'bob', 'eve') AS BLOB) WHERE first = 257"), Edited, 257},
		{"operations", sql("UPDATE blocks SET op = x'' WHERE first = 257"), Edited, 257},
		{"outcomes", sql("UPDATE blocks SET outcome = x'' WHERE first = 257"), Edited, 257},
		{"incidents", sql("UPDATE blocks SET incident = x'' WHERE first = 257"), Edited, 257},
	} {
		t.Run(row.name, func(t *testing.T) {
			ctx := within(t)
			a, _ := start(t, t.TempDir())
			a.Append(chained("", 1, 600))
			ok(t, a.Flush(ctx, 600))
			row.tamper(t, a)
			_, err := a.VerifyChain(ctx, 0)
			fault, isFault := err.(*Fault)
			if !isFault || fault.Wrong != row.want || fault.N != row.n {
				t.Fatalf("got %v", err)
			}
		})
	}
}

// rewrite changes the lines of the block that begins with first.
func rewrite(t *testing.T, a *Archive, first fleet.EntryNo, change func(lines []string) []string) {
	t.Helper()
	var b block
	var body []byte
	ok(t, b.scan(a.db.holder.QueryRow(int64(first)), &body))
	var p packer
	ok(t, p.unpack(&b, body))
	lines := change(split(b.raw))
	b.raw, b.ends = nil, nil
	for _, l := range lines {
		b.raw = append(append(b.raw, l...), '\n')
		b.ends = append(b.ends, len(b.raw))
	}
	_, err := a.db.write.Exec("UPDATE blocks SET body = ? WHERE first = ?", p.pack(&b), int64(first))
	ok(t, err)
}
