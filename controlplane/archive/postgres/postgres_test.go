package postgres

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"footplate/controlplane/archive"
	"footplate/controlplane/archive/postgres/postgrestest"
	"footplate/fleet"
)

// server is the one of all tests of this package; each has its own database.
var server *postgrestest.Server

func TestMain(m *testing.M) {
	if url := os.Getenv(deliverHere); url != "" {
		deliverUntilKilled(url)
		return
	}
	os.Exit(postgrestest.Run(m, func(s *postgrestest.Server) { server = s }))
}

// evening is when the entries of the tests begin: ten minutes before a month
// does.
const evening = fleet.Time(1_796_082_600_000) // 2026-11-30T23:50:00Z

// chained makes entries first to last that follow prev, a second apart.
func chained(prev string, first, last fleet.EntryNo) []fleet.Entry {
	var entries []fleet.Entry
	for n := first; n <= last; n++ {
		e := fleet.Entry{
			N: n, Index: uint64(n) * 3, At: evening.Add(fleet.Duration(n) * 1000),
			By: "alice", Role: fleet.Operator, Via: "cli/0.1.0", Op: "pool scale", Key: fmt.Sprintf("k%d", n),
			Args: json.RawMessage(`{"pool":"linux","size":"6","note":"a && b <c>"}`), Outcome: fleet.EntryDone,
			Text: fmt.Sprintf("pool \"linux\" scaled to %d & more", n), Salt: fmt.Sprintf("%032x", n),
		}
		switch {
		case n%10 == 0:
			e.By, e.Role, e.Op, e.Outcome, e.Code, e.Count, e.Text = "bob", fleet.Viewer, "pool pause", fleet.EntryRefused, fleet.CodeDenied, 2, "refused: a viewer may not — é"
		case n%7 == 0:
			e.Op, e.Incident, e.Reason = "host drain", "INC-7", "queue backs up"
			e.Args, e.ApprovedBy = json.RawMessage(`{"hosts":["ci-17","ci-18"],"for":"30m"}`), []fleet.Principal{"carol"}
		case n%5 == 0:
			e.By, e.Role, e.Via, e.Op, e.Key, e.Args = "loop:provision", fleet.System, "loop/provision", "host lose", "", json.RawMessage(`{"host":"ci-17","why":"silent"}`)
			e.Text = "host ci-17 is lost"
		}
		e.Seal(prev)
		prev = e.Hash
		entries = append(entries, e)
	}
	return entries
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func code(t testing.TB, err error, want fleet.Code) {
	t.Helper()
	if fleet.CodeOf(err) != want {
		t.Fatalf("error is %v; want code %q", err, want)
	}
}

// open opens the archive of cluster c1 in a new database.
func open(t testing.TB) (*Archive, string) {
	t.Helper()
	name := server.Database(t)
	return opened(t, server.URL(name), "c1"), name
}

func opened(t testing.TB, url, cluster string) *Archive {
	t.Helper()
	a, err := Open(within(t), url, cluster)
	ok(t, err)
	t.Cleanup(a.Close)
	return a
}

// stored returns the entries of the cluster as the bodies have them.
func stored(t testing.TB, database, cluster string) []fleet.Entry {
	t.Helper()
	ctx := within(t)
	conn, err := pgx.Connect(ctx, server.URL(database))
	ok(t, err)
	defer func() { _ = conn.Close(ctx) }()
	rows, err := conn.Query(ctx, "SELECT body FROM footplate.entries WHERE cluster = $1 ORDER BY n, at", cluster)
	ok(t, err)
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	ok(t, err)
	var entries []fleet.Entry
	for _, l := range lines {
		e, why := archive.Decode([]byte(l))
		if why != "" {
			t.Fatal(why)
		}
		entries = append(entries, e)
	}
	return entries
}

func equal(t testing.TB, got, want []fleet.Entry) {
	t.Helper()
	for i := range min(len(got), len(want)) {
		if d := cmp.Diff(want[i], got[i], cmpopts.EquateEmpty()); d != "" {
			t.Fatalf("entries differ at the %dth (-want +got):\n%s", i+1, d)
		}
	}
	if len(got) != len(want) {
		t.Fatalf("there are %d entries; want %d", len(got), len(want))
	}
}

func TestPut(t *testing.T) {
	a, db := open(t)
	ctx := within(t)
	entries := chained("", 1, 1000) // over the end of a month
	head := func(want fleet.EntryNo) {
		t.Helper()
		got, err := a.Head(ctx)
		ok(t, err)
		var hash string
		if want > 0 {
			hash = entries[want-1].Hash
		}
		if got != (archive.Anchor{N: want, Hash: hash}) {
			t.Fatalf("head is %v; want entry %d", got, want)
		}
	}
	head(0)
	ok(t, a.Put(ctx, nil))
	ok(t, a.Put(ctx, entries[:1]))
	ok(t, a.Put(ctx, entries[1:700]))
	head(700)
	ok(t, a.Put(ctx, entries[1:700])) // delivered again
	ok(t, a.Put(ctx, entries[500:]))  // half of it
	head(1000)
	equal(t, stored(t, db, "c1"), entries)

	r, err := a.Verify(ctx, 0, archive.Anchor{N: 800, Hash: entries[799].Hash})
	ok(t, err)
	if r.Count != 1000 || r.First != 1 || r.Last != 1000 || r.Head != entries[999].Hash || r.Anchored != 800 {
		t.Fatalf("report is %+v", r)
	}
	r, err = a.Verify(ctx, 401)
	ok(t, err)
	if r.Count != 600 || r.First != 401 {
		t.Fatalf("report from 401 on is %+v", r)
	}
	if from, to, err := a.Missing(ctx); err != nil || from != 0 || to != 0 {
		t.Fatalf("missing %d to %d, %v", from, to, err)
	}
}

// What cannot stand beside what is there is refused and changes nothing.
func TestPutRefuses(t *testing.T) {
	a, db := open(t)
	ctx := within(t)
	entries := chained("", 1, 30)
	ok(t, a.Put(ctx, entries[:20]))

	other := chained("", 1, 30)
	other[17].Text = "something else"
	for i := 17; i < 30; i++ {
		other[i].Seal(other[i-1].Hash)
	}
	edited := chained("", 1, 30)
	edited[24].Text = "something else"
	for name, row := range map[string]struct {
		entries []fleet.Entry
		want    fleet.Code
		says    string
	}{
		"another history":        {other[10:], fleet.CodeConflict, "entry 18 in postgres is another than the one here"},
		"another history, later": {other[20:], fleet.CodeConflict, "entry 21 does not follow entry 20 in postgres"},
		"another history, ahead": {other[18:19], fleet.CodeConflict, "entry 19 does not follow entry 18 in postgres"},
		"a gap":                  {entries[22:], fleet.CodeUnavailable, "postgres does not have entry 22, which entry 23 follows"},
		"a gap within":           {append(entries[20:22:22], entries[23:]...), fleet.CodeConflict, "entry 24 of this node is not intact, and was not delivered to postgres: it does not follow entry 22"},
		"not intact":             {edited[20:], fleet.CodeConflict, "entry 25 of this node is not intact, and was not delivered to postgres: its hash does not fit its content"},
	} {
		t.Run(name, func(t *testing.T) {
			err := a.Put(ctx, row.entries)
			code(t, err, row.want)
			if err.Error() != row.says {
				t.Errorf("it says %q; want %q", err, row.says)
			}
			if Retryable(err) != (row.want == fleet.CodeUnavailable) {
				t.Errorf("retryable: %v", Retryable(err))
			}
			equal(t, stored(t, db, "c1"), entries[:20])
		})
	}
	ok(t, a.Put(ctx, entries[20:]))
}

// Entries with whatever can be in a text are stored, and verified.
func TestPutAnything(t *testing.T) {
	a, db := open(t)
	ctx := within(t)
	deep := strings.Repeat("[", 9000) + strings.Repeat("]", 9000)
	var entries []fleet.Entry
	prev := ""
	for i, odd := range []string{"zero \x00 byte", "\xff\xfe", "\u2028 <&>", `\u0000 \ud800`, "\t\n\r\"'\\", random(100_000), "🚂", "$1; DROP TABLE x; --", `\N`} {
		e := fleet.Entry{
			N: fleet.EntryNo(i + 1), Index: 1 << 62, At: evening.Add(fleet.Duration(i)), By: "alice", Role: fleet.Admin,
			Via: odd, Op: odd, Key: odd, Reason: odd, Incident: odd, Plan: odd, Outcome: fleet.EntryFailed, Code: fleet.CodeInvalid, Text: odd, Salt: "00",
		}
		args, err := json.Marshal(map[string]any{"host": odd, "pools": []string{"a", "b"}, "n": 1e300})
		ok(t, err)
		e.Args = args
		e.Seal(prev)
		prev = e.Hash
		entries = append(entries, e)
	}
	for _, args := range []string{deep, `{"host":"\ud800","build":1e999999,"nodes":3}`, `{"host":{"id":"x"},"builds":[1,2]}`, `"text"`} {
		e := fleet.Entry{N: fleet.EntryNo(len(entries) + 1), At: 1, By: "x", Op: "y", Args: json.RawMessage(args), Outcome: fleet.EntryDone}
		e.Seal(prev)
		prev = e.Hash
		entries = append(entries, e)
	}
	ok(t, a.Put(ctx, entries))
	equal(t, stored(t, db, "c1"), entries)
	_, err := a.Verify(ctx, 0)
	ok(t, err)
	server.Exec(t, db, "SELECT footplate.parsed(args) FROM footplate.entries")
}

// random returns text that does not compress.
func random(n int) string {
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "%x", sha256.Sum256([]byte{byte(i), byte(i >> 8)}))
	}
	return b.String()
}

func TestObjects(t *testing.T) {
	for args, want := range map[string]string{
		``:                       "",
		`{}`:                     "",
		`{"host":"h1","x":"h2"}`: "host/h1",
		`{"hosts":["h2","h1","h2"],"pool":"linux"}`:              "host/h1 host/h2 pool/linux",
		`{"builds":[7,8],"attempts":[{"id":"7.1","host":"h1"}]}`: "attempt/7.1 build/7 build/8 host/h1",
		`{"builds":12,"pool":"","switches":["s"],"entries":[1]}`: "entry/1 switch/s",
		`{"assign":[{"build":7,"host":"h1"},{"build":8}]}`:       "build/7 build/8 host/h1",
		`{"host`: "",
	} {
		if got := strings.Join(objects(nil, json.RawMessage(args)), " "); got != want {
			t.Errorf("%s names %q; want %q", args, got, want)
		}
	}
}

// Clusters that share a database do not see one another.
func TestClusters(t *testing.T) {
	a, db := open(t)
	b := opened(t, server.URL(db), "c2")
	ctx := within(t)
	ok(t, a.Put(ctx, chained("", 1, 30)))
	ok(t, b.Put(ctx, chained("x", 1, 10)))
	for _, row := range []struct {
		a    *Archive
		want fleet.EntryNo
	}{{a, 30}, {b, 10}} {
		head, err := row.a.Head(ctx)
		ok(t, err)
		r, err := row.a.Verify(ctx, 0)
		ok(t, err)
		if head.N != row.want || r.Last != row.want {
			t.Errorf("head %d, verified to %d; want %d", head.N, r.Last, row.want)
		}
	}
}

// Several that put the same at once, as an old leader and a new one do.
func TestPutTogether(t *testing.T) {
	a, db := open(t)
	ctx := within(t)
	entries := chained("", 1, 1000)
	var group errgroup.Group
	for range 4 {
		b := opened(t, server.URL(db), "c1")
		group.Go(func() error {
			for i := 0; i < len(entries); i += 100 {
				if err := b.Put(ctx, entries[i:i+100]); err != nil {
					return err
				}
			}
			return nil
		})
	}
	ok(t, group.Wait())
	equal(t, stored(t, db, "c1"), entries)
	_, err := a.Verify(ctx, 0)
	ok(t, err)
}

// However the database isolates transactions as a rule, who has waited for the
// lock sees what the one before it has stored: of two histories one is refused, and
// what is the same is there once.
func TestPutUnderAnotherIsolation(t *testing.T) {
	a, db := open(t)
	ctx := within(t)
	for _, level := range []string{"repeatable read", "serializable"} {
		server.Exec(t, db, fmt.Sprintf("ALTER DATABASE %s SET default_transaction_isolation = '%s'", db, level))
		for _, other := range []bool{false, true} {
			cluster := fmt.Sprint(level, other)
			mine := chained("", 1, 20)
			theirs := chained("", 1, 20)
			if other {
				for i := range theirs { // another moment, so that no key of the table is the same
					theirs[i].At = theirs[i].At.Add(500)
				}
				prev := ""
				for i := range theirs {
					theirs[i].Seal(prev)
					prev = theirs[i].Hash
				}
			}
			holder, err := pgx.Connect(ctx, server.URL(db))
			ok(t, err)
			_, err = holder.Exec(ctx, "SELECT pg_advisory_lock(hashtextextended('footplate entries ' || $1::text, 0))", cluster)
			ok(t, err)
			errs := make(chan error, 2)
			for _, entries := range [][]fleet.Entry{mine, theirs} {
				b := opened(t, server.URL(db), cluster)
				go func() { errs <- b.Put(ctx, entries) }()
			}
			until(t, "both wait for the lock", func() bool {
				var n int
				ok(t, a.pool.QueryRow(ctx, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted").Scan(&n))
				return n == 2
			})
			ok(t, holder.Close(ctx))
			first, second := <-errs, <-errs
			if first == nil {
				first = second
			}
			if other {
				code(t, first, fleet.CodeConflict)
			} else {
				ok(t, first)
			}
			if got := stored(t, db, cluster); len(got) != 20 {
				t.Errorf("%s, another history %v: %d entries are there", level, other, len(got))
			}
		}
	}
}

// A gap that somebody made is named, and closed by delivery.
func TestMissing(t *testing.T) {
	a, db := open(t)
	ctx := within(t)
	entries := chained("", 1, 100)
	ok(t, a.Put(ctx, entries))
	server.Exec(t, db, "DELETE FROM footplate.entries WHERE n IN (31, 32, 60)")
	from, to, err := a.Missing(ctx)
	if ok(t, err); from != 31 || to != 32 {
		t.Fatalf("missing %d to %d", from, to)
	}
	b := opened(t, server.URL(db), "c1") // a has counted them already
	head, err := b.Head(ctx)
	if ok(t, err); head.N != 30 {
		t.Fatalf("head is %d", head.N)
	}
	ok(t, b.Put(ctx, entries[30:40]))
	other := entries[59]
	other.Text = "something else"
	other.Seal(other.Prev)
	if err := b.Put(ctx, []fleet.Entry{other}); fleet.CodeOf(err) != fleet.CodeConflict || !strings.Contains(err.Error(), "entry 61 does not follow entry 60") {
		t.Fatalf("a gap was filled with something else: %v", err)
	}
	ok(t, b.Put(ctx, entries[40:]))
	if head, err = b.Head(ctx); err != nil || head.N != 100 {
		t.Fatalf("head is %d, %v", head.N, err)
	}
	server.Exec(t, db, "DELETE FROM footplate.entries WHERE n IN (30, 85)")
	for lookBack, want := range map[fleet.EntryNo]fleet.EntryNo{100: 29, 70: 29, 69: 84, 15: 84, 14: 100, 1: 100} {
		c := opened(t, server.URL(db), "c1")
		c.lookBack = lookBack
		if head, err := c.Head(ctx); err != nil || head != (archive.Anchor{N: want, Hash: entries[want-1].Hash}) {
			t.Errorf("looking back %d, head is %d, %v; want %d", lookBack, head.N, err, want)
		}
	}
	ok(t, b.Put(ctx, entries[28:]))
	server.Exec(t, db, "DELETE FROM footplate.entries WHERE n = 1 OR n = 100")
	if head, err = b.Head(ctx); err != nil || head.N != 0 {
		t.Fatalf("head is %d, %v", head.N, err)
	}
	if from, to, err = a.Missing(ctx); err != nil || from != 1 || to != 1 {
		t.Fatalf("missing %d to %d, %v", from, to, err)
	}
}

// Months are made ahead, by any number at once, and again when taken away.
func TestMonths(t *testing.T) {
	a, db := open(t)
	ctx := within(t)
	server.Exec(t, db, fmt.Sprintf("ALTER DATABASE %s SET default_transaction_isolation = 'repeatable read'", db))
	var group errgroup.Group
	for range 8 {
		group.Go(func() error {
			b, err := Open(ctx, server.URL(db), "c1")
			if err != nil {
				return err
			}
			defer b.Close()
			return b.addMonths(ctx, b.pool, chained("", 1, 1))
		})
	}
	ok(t, group.Wait())
	months := func() (names []string) {
		t.Helper()
		rows, err := a.pool.Query(ctx, "SELECT relname::text FROM pg_class WHERE oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'footplate.entries'::regclass) ORDER BY 1")
		ok(t, err)
		names, err = pgx.CollectRows(rows, pgx.RowTo[string])
		ok(t, err)
		return names
	}
	if d := cmp.Diff([]string{"entries_2026_11", "entries_2026_12"}, months()); d != "" {
		t.Fatal(d)
	}
	entries := chained("", 1, 1000)
	ok(t, a.Put(ctx, entries[:100]))
	server.Exec(t, db, "DROP TABLE footplate.entries_2026_12")
	err := a.Put(ctx, entries[100:])
	code(t, err, fleet.CodeUnavailable)
	if !Retryable(err) {
		t.Fatal("not retryable")
	}
	ok(t, a.Put(ctx, entries[100:]))
	if d := cmp.Diff([]string{"entries_2026_11", "entries_2026_12", "entries_2027_01"}, months()); d != "" {
		t.Fatal(d)
	}
}

// The retention takes whole months away, and the chain goes on from there.
func TestRetention(t *testing.T) {
	a, db := open(t)
	ctx := within(t)
	entries := chained("", 1, 1000)
	ok(t, a.Put(ctx, entries))
	server.Exec(t, db, "SELECT footplate.drop_months_before('2026-12-24')")
	b := opened(t, server.URL(db), "c1")
	last := fleet.EntryNo(599) // the second before midnight
	for _, a := range []*Archive{a, b} {
		r, err := a.Verify(ctx, 0)
		ok(t, err)
		head, err := a.Head(ctx)
		ok(t, err)
		from, to, err := a.Missing(ctx)
		ok(t, err)
		if r.First != last+1 || r.Count != 401 || head.N != 1000 || from != 0 || to != 0 {
			t.Fatalf("report %+v, head %d, missing %d to %d", r, head.N, from, to)
		}
	}
	more := chained(entries[999].Hash, 1001, 1002)
	ok(t, b.Put(ctx, more))
	server.Exec(t, db, "SELECT footplate.drop_months_before('2027-06-01')")
	c := opened(t, server.URL(db), "c1")
	head, err := c.Head(ctx)
	if ok(t, err); head != (archive.Anchor{N: 1002, Hash: more[1].Hash}) {
		t.Fatalf("head is %v", head)
	}
	ok(t, c.Put(ctx, chained(head.Hash, 1003, 1004)))
	code(t, c.Put(ctx, chained("x", 1003, 1003)), fleet.CodeConflict)
	server.Exec(t, db, "UPDATE footplate.dropped SET hash = 'x' WHERE n = 1002")
	_, err = c.Verify(ctx, 0)
	var fault *archive.Fault
	if !errors.As(err, &fault) || fault.Wrong != archive.Swapped || fault.N != 1003 {
		t.Fatalf("got %v", err)
	}
}
