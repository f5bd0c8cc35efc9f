package postgres

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"footplate/controlplane/archive"
	"footplate/fleet"
)

// Each kind of tampering that the owner of the database may do is found, and
// the first bad entry is named.
func TestVerifyFindsTampering(t *testing.T) {
	a, db := open(t)
	entries := chained("", 1, 20)
	anchor := archive.Anchor{N: 15, Hash: entries[14].Hash}
	// replace writes an entry in the place of the n-th, columns and all.
	replace := func(n fleet.EntryNo, e fleet.Entry) func(*testing.T, *Archive, string) {
		return func(t *testing.T, a *Archive, db string) {
			server.Exec(t, db, fmt.Sprintf("DELETE FROM footplate.entries WHERE n = %d", n))
			insert(t, a, db, e)
		}
	}
	sql := func(sql string) func(*testing.T, *Archive, string) {
		return func(t *testing.T, _ *Archive, db string) { server.Exec(t, db, sql) }
	}
	changed := func(n int, seal bool, change func(*fleet.Entry)) fleet.Entry {
		e := chained("", 1, 20)[n-1]
		change(&e)
		if seal {
			e.Seal(e.Prev)
		}
		return e
	}
	rewritten := func(from int) []fleet.Entry {
		list := chained("", 1, 20)
		list[from-1].Text = "nothing to see here"
		for i := from - 1; i < len(list); i++ {
			list[i].Seal(list[i].Prev)
			if i+1 < len(list) {
				list[i+1].Prev = list[i].Hash
			}
		}
		return list
	}
	lie := changed(8, false, func(e *fleet.Entry) { ok(t, e.Erase("text")); e.Text = "a lie" })
	for _, row := range []struct {
		name   string
		tamper func(*testing.T, *Archive, string)
		want   archive.Wrong
		n      fleet.EntryNo
	}{
		{"a column edited", sql("UPDATE footplate.entries SET by = 'mallory' WHERE n = 8"), archive.Edited, 8},
		{"the objects edited", sql("UPDATE footplate.entries SET objects = '{}' WHERE n = 8"), archive.Edited, 8},
		{"the moment edited", sql("UPDATE footplate.entries SET at = at + interval '1 ms' WHERE n = 8"), archive.Edited, 8},
		{"the body edited", sql(`UPDATE footplate.entries SET body = replace(body, 'alice', 'mallory') WHERE n = 8`), archive.Edited, 8},
		{"the body with a second field", sql(`UPDATE footplate.entries SET body = replace(body, '"by":', '"by":"x","by":') WHERE n = 8`), archive.BadJSON, 8},
		{"the body not JSON", sql(`UPDATE footplate.entries SET body = '' WHERE n = 8`), archive.BadJSON, 8},
		{"edited and sealed again", replace(8, changed(8, true, func(e *fleet.Entry) { e.Text = "x" })), archive.Swapped, 9},
		{"deleted", sql("DELETE FROM footplate.entries WHERE n = 8"), archive.Missing, 8},
		{"several deleted", sql("DELETE FROM footplate.entries WHERE n BETWEEN 8 AND 10"), archive.Missing, 8},
		{"the first deleted", sql("DELETE FROM footplate.entries WHERE n = 1"), archive.Missing, 1},
		{"the last cut off", sql("DELETE FROM footplate.entries WHERE n >= 13"), archive.Truncated, 13},
		{"all gone", sql("TRUNCATE footplate.entries"), archive.Truncated, 1},
		{"copied", sql("INSERT INTO footplate.entries SELECT (jsonb_populate_record(e, jsonb_build_object('at', at + interval '1 ms'))).* FROM footplate.entries e WHERE n = 8"), archive.Inserted, 8},
		{"a second under its number, before it", func(t *testing.T, a *Archive, db string) {
			insert(t, a, db, changed(8, true, func(e *fleet.Entry) { e.At--; e.Prev = "x" }))
		}, archive.Inserted, 8},
		{"a second under its number, linked", func(t *testing.T, a *Archive, db string) {
			insert(t, a, db, changed(8, true, func(e *fleet.Entry) { e.At-- }))
		}, archive.Inserted, 8},
		{"one made up at the end", func(t *testing.T, a *Archive, db string) {
			insert(t, a, db, chained("x", 21, 21)...)
		}, archive.Swapped, 21},
		{"two exchanged", sql("UPDATE footplate.entries SET n = 17 - n WHERE n IN (8, 9)"), archive.Reordered, 8},
		{"two exchanged, rows and all", func(t *testing.T, a *Archive, db string) {
			server.Exec(t, db, "DELETE FROM footplate.entries WHERE n IN (8, 9)")
			insert(t, a, db, changed(8, true, func(e *fleet.Entry) { e.N = 9 }), changed(9, true, func(e *fleet.Entry) { e.N = 8 }))
		}, archive.Swapped, 8},
		{"moved to another cluster", sql("UPDATE footplate.entries SET cluster = 'c2' WHERE n = 8"), archive.Missing, 8},
		{"brought from another cluster", func(t *testing.T, a *Archive, db string) {
			server.Exec(t, db, "DELETE FROM footplate.entries WHERE n >= 12")
			b := opened(t, server.URL(db), "c2")
			ok(t, b.Put(within(t), chained("x", 1, 20)))
			server.Exec(t, db, "UPDATE footplate.entries SET cluster = 'c1' WHERE cluster = 'c2' AND n >= 12")
		}, archive.Swapped, 12},
		{"erased, with a lie instead", replace(8, lie), archive.Edited, 8},
		{"erased by hand", sql(`UPDATE footplate.entries SET text = '', body = replace(body, '"text":"' || replace(text, '"', '\"') || '"', '"text":""') WHERE n = 8`), archive.Edited, 8},
		{"written anew from 8 on", func(t *testing.T, a *Archive, db string) {
			server.Exec(t, db, "DELETE FROM footplate.entries WHERE n >= 8")
			insert(t, a, db, rewritten(8)[7:]...)
		}, archive.Rewritten, 15},
		{"written anew after the anchor", func(t *testing.T, a *Archive, db string) {
			server.Exec(t, db, "DELETE FROM footplate.entries WHERE n >= 16")
			insert(t, a, db, rewritten(16)[15:]...)
		}, "", 0}, // no later anchor: nobody can tell
		{"none", sql("SELECT 1"), "", 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			server.Exec(t, db, "TRUNCATE footplate.entries")
			ok(t, a.Put(within(t), entries))
			row.tamper(t, a, db)
			r, err := a.Verify(within(t), 0, anchor)
			if row.want == "" {
				if ok(t, err); r.Count != 20 || r.Anchored != 15 {
					t.Fatalf("report is %+v", r)
				}
				return
			}
			var fault *archive.Fault
			if !errors.As(err, &fault) {
				t.Fatalf("not found: %v, %+v", err, r)
			}
			if fault.Wrong != row.want || fault.N != row.n {
				t.Fatalf("found %s at entry %d (%v); want %s at %d", fault.Wrong, fault.N, err, row.want, row.n)
			}
			if row.n > 0 && row.want != archive.Truncated && !strings.Contains(err.Error(), fmt.Sprintf("entry %d", row.n)) && !strings.Contains(err.Error(), fmt.Sprintf("entries %d to", row.n)) {
				t.Errorf("the entry is not named: %v", err)
			}
			code(t, err, fleet.CodeConflict)
		})
	}
}

// insert puts rows past all checks, as whoever owns the database can.
func insert(t *testing.T, a *Archive, db string, entries ...fleet.Entry) {
	t.Helper()
	ctx := within(t)
	conn, err := pgx.Connect(ctx, server.URL(db))
	ok(t, err)
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.PgConn().CopyFrom(ctx, bytes.NewReader(binaryRows(t, a.cluster, entries)), "COPY footplate.entries ("+columnNames()+") FROM STDIN BINARY")
	ok(t, err)
}

// binaryRows are the rows of entries as COPY takes them.
func binaryRows(t testing.TB, cluster string, entries []fleet.Entry) []byte {
	t.Helper()
	b := []byte(copyHeader)
	var r row
	for i := range entries {
		ok(t, r.set(cluster, &entries[i]))
		b = appendRow(b, r.columns())
	}
	return append(b, copyTrailer...)
}

// Verification sees one state of the database while entries keep coming.
func TestVerifyWhileDelivering(t *testing.T) {
	a, _ := open(t)
	ctx := within(t)
	entries := chained("", 1, 2000)
	done := make(chan error, 1)
	go func() {
		for i := 0; i < len(entries); i += 100 {
			if err := a.Put(ctx, entries[i:i+100]); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for last := fleet.EntryNo(0); last < 2000; {
		r, err := a.Verify(ctx, 0)
		if ok(t, err); r.Last < last {
			t.Fatalf("it went back from %d to %d", last, r.Last)
		}
		last = r.Last
	}
	ok(t, <-done)
}
