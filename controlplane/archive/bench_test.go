package archive

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"footplate/fleet"
)

// usual makes entries as a busy cluster has them, each with what cannot be
// compressed: its salt, its key and its hash.
func usual(prev string, first fleet.EntryNo, count int) []fleet.Entry {
	entries := make([]fleet.Entry, count)
	for i := range entries {
		n := first + fleet.EntryNo(i)
		var random [32]byte
		rand.Read(random[:])
		e := &entries[i]
		*e = fleet.Entry{
			N: n, Index: uint64(n/16) + 900_000, At: fleet.Time(1_800_000_000_000 + int64(n/16)*7),
			By: fleet.Principal(fmt.Sprint("person-", n%40)), Role: fleet.Operator, Via: "cli/0.1.0",
			Op: []string{"org set", "build enqueue", "pool scale", "host drain"}[n%4], Key: hex.EncodeToString(random[:16]),
			Args:    json.RawMessage(fmt.Sprintf(`{"org":"org-%d","slots":%d,"weight":1}`, n%128, n%1000)),
			Outcome: fleet.EntryDone, Text: fmt.Sprintf(`org "org-%d": %d slots, weight 1`, n%128, n%1000),
			Salt: hex.EncodeToString(random[16:]),
		}
		if n%100_000 == 99 {
			e.Incident, e.Reason = "INC-7", "the needle"
		}
		e.Seal(prev)
		prev = e.Hash
	}
	return entries
}

// spent is what the process has used: its processors' time, and the bytes that
// it gave the system to write.
func spent(b *testing.B) (cpu time.Duration, written int64) {
	var u syscall.Rusage
	ok(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	text, err := os.ReadFile("/proc/self/io")
	ok(b, err)
	for line := range strings.SplitSeq(string(text), "\n") {
		if v, found := strings.CutPrefix(line, "wchar: "); found {
			written, err = strconv.ParseInt(v, 10, 64)
			ok(b, err)
		}
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), written
}

// BenchmarkWrite writes the same entries into the archive and, as the peer, into
// a table with a row for each. A batch is what comes at once; with one in a
// transaction, each waits to be written before the next comes.
func BenchmarkWrite(b *testing.B) {
	for _, batch := range []int{1, 16, 1024} {
		for name, open := range map[string]func(*testing.B) (write func([]fleet.Entry), done func()){
			"archive": benchArchive, "rows": benchRows,
		} {
			b.Run(fmt.Sprintf("%s/%d", name, batch), func(b *testing.B) {
				entries := usual("", 1, b.N)
				write, done := open(b)
				cpu, written := spent(b)
				b.ResetTimer()
				for i := 0; i < len(entries); i += batch {
					write(entries[i:min(i+batch, len(entries))])
				}
				done()
				b.StopTimer()
				cpu2, written2 := spent(b)
				b.ReportMetric(float64(cpu2-cpu)/float64(b.N), "cpu-ns/op")
				b.ReportMetric(float64(written2-written)/float64(b.N), "written-B/op")
			})
		}
	}
}

// benchArchive writes with what the writer of an Archive calls.
func benchArchive(b *testing.B) (func([]fleet.Entry), func()) {
	a, err := Open(b.TempDir(), "c1")
	ok(b, err)
	var have spans
	return func(entries []fleet.Entry) {
			have, err = a.db.put(have, Anchor{}, entries, false)
			ok(b, err)
		}, func() {
			ok(b, a.db.sync())
			ok(b, a.Close()) // the last checkpoint
		}
}

func benchRows(b *testing.B) (func([]fleet.Entry), func()) {
	const rows = 32
	db, err := sql.Open("sqlite", "file:"+filepath.Join(b.TempDir(), "rows.db")+
		"?_pragma=journal_mode(wal)&_pragma=synchronous(normal)&_pragma=cache_size(-8000)&_txlock=immediate")
	ok(b, err)
	db.SetMaxOpenConns(1)
	_, err = db.Exec(`CREATE TABLE entries (n INTEGER PRIMARY KEY, idx INTEGER NOT NULL, at INTEGER NOT NULL, by TEXT NOT NULL,
		op TEXT NOT NULL, outcome TEXT NOT NULL, incident TEXT NOT NULL, prev TEXT NOT NULL, hash TEXT NOT NULL, body BLOB NOT NULL) STRICT;
		CREATE INDEX entries_incident ON entries (incident, n) WHERE incident <> '';`)
	ok(b, err)
	const marks = "(?,?,?,?,?,?,?,?,?,?)"
	one, err := db.Prepare("INSERT INTO entries VALUES " + marks)
	ok(b, err)
	many, err := db.Prepare("INSERT INTO entries VALUES " + strings.Repeat(marks+",", rows-1) + marks)
	ok(b, err)
	return func(entries []fleet.Entry) {
			tx, err := db.Begin()
			ok(b, err)
			args := make([]any, 0, rows*10)
			for len(entries) > 0 {
				stmt, n := one, 1
				if len(entries) >= rows {
					stmt, n = many, rows
				}
				args = args[:0]
				for i := range n {
					e := &entries[i]
					line, err := encode(e)
					ok(b, err)
					args = append(args, int64(e.N), int64(e.Index), int64(e.At), string(e.By), e.Op, string(e.Outcome), e.Incident, e.Prev, e.Hash, line)
				}
				_, err := tx.Stmt(stmt).Exec(args...)
				ok(b, err)
				entries = entries[n:]
			}
			ok(b, tx.Commit())
		}, func() {
			ok(b, db.Close())
		}
}

// BenchmarkRead asks an archive of a million entries.
func BenchmarkRead(b *testing.B) {
	const total, part = 1_000_000, 20_000
	ctx := context.Background()
	a, err := Open(b.TempDir(), "c1")
	ok(b, err)
	b.Cleanup(func() { ok(b, a.Close()) })
	prev := ""
	for n := fleet.EntryNo(1); n <= total; n += part {
		entries := usual(prev, n, part)
		prev = entries[part-1].Hash
		a.have, err = a.db.put(a.have, Anchor{}, entries, false)
		ok(b, err)
	}
	ok(b, a.db.sync())
	if info, err := os.Stat(a.db.path); err == nil {
		b.Logf("%d bytes an entry in the file", info.Size()/total)
	}
	middle, err := a.Get(ctx, total/2)
	ok(b, err)
	for _, row := range []struct {
		name string
		f    Filter
	}{
		{"newest", Filter{Newest: true, Limit: 50}},
		{"operation", Filter{Newest: true, Limit: 50, Op: "host"}},
		{"person", Filter{Newest: true, Limit: 50, By: "person-7"}},
		{"incident", Filter{Newest: true, Limit: 50, Incident: "INC-7"}},
		{"nobody", Filter{By: "nobody"}},
		{"text", Filter{Newest: true, Limit: 50, Text: "The Needle"}},
		{"one", Filter{From: total / 2, To: total / 2}},
		{"time", Filter{Since: middle.At, Limit: 50}},
		{"thousand", Filter{From: total / 2, Limit: 1000}},
	} {
		b.Run(row.name, func(b *testing.B) {
			for b.Loop() {
				_, err := a.Query(ctx, row.f)
				ok(b, err)
			}
		})
	}
	b.Run("export", func(b *testing.B) {
		var size counted
		for b.Loop() {
			size = 0
			ok(b, a.Export(ctx, &size, Filter{}))
		}
		b.SetBytes(int64(size))
	})
	b.Run("verify", func(b *testing.B) {
		for b.Loop() {
			_, err := a.VerifyChain(ctx, total-100_000)
			ok(b, err)
		}
	})
}

// counted counts what is written to it.
type counted int64

func (c *counted) Write(b []byte) (int, error) {
	*c += counted(len(b))
	return len(b), nil
}
