package main

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"footplate/controlplane/archive"
	"footplate/controlplane/archive/postgres/postgrestest"
	"footplate/controlplane/catalog"
	"footplate/controlplane/op"
	"footplate/fleet"

	"github.com/jackc/pgx/v5"
	"github.com/klauspost/compress/s2"
)

// secretWord is what leaks in these tests.
const secretWord = "HUNTER2-and-more-of-it"

// TestRecord plays with the record of three real nodes and a real PostgreSQL:
// it is searched, tampered with in every place where it is kept, erased from,
// and kept while the shared archive is away.
func TestRecord(t *testing.T) {
	pg := postgrestest.Need(t)
	database := pg.Database(t)
	t.Setenv("FOOTPLATE_POSTGRES_URL", pg.URL(database))
	r := &record{plant: startPlant(t, plantConfig{nodes: 3, slots: 1, fence: "10s", suspect: "5s"}), pg: pg, url: pg.URL(database)}
	for i := range 12 {
		r.must("org", "set", "acme", "--slots", fmt.Sprint(10+i), "--incident", "I7", "--reason", "ramp")
	}
	r.must("queue", "pause", "--org", "acme", "--for", "10m", "--yes", "--reason", "the password is "+secretWord)
	r.run("org", "set", "acme", "--weight", "-1")
	r.must("queue", "resume", "--org", "acme", "--yes")
	r.delivered()

	t.Run("search", r.search)
	t.Run("export", r.tamperExport)
	t.Run("node", r.tamperNode)
	t.Run("postgres", r.tamperPostgres)
	t.Run("erase", r.erase)
	t.Run("outage", r.outage)
}

type record struct {
	*plant
	pg  *postgrestest.Server
	url string
}

// entries returns the record as the nodes tell it.
func (r *record) entries() []fleet.Entry {
	r.t.Helper()
	var out []fleet.Entry
	lines := strings.Split(strings.TrimSpace(r.must("audit", "export")), "\n")
	for _, l := range lines[1 : len(lines)-1] {
		e, why := archive.Decode([]byte(l))
		if why != "" {
			r.t.Fatal(why)
		}
		out = append(out, e)
	}
	return out
}

// delivered waits until the shared archive has what the nodes have.
func (r *record) delivered() {
	r.t.Helper()
	r.wait(60*time.Second, "the shared archive to have everything", func() bool {
		out, _, code := r.run("audit", "verify", "--peers", "--postgres")
		return code == 0 && !strings.Contains(out, "wait to be delivered") && !strings.Contains(out, "behind")
	})
}

// postgres runs SQL as the superuser of the database.
func (r *record) postgres(t *testing.T, f func(ctx context.Context, c *pgx.Conn)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := pgx.Connect(ctx, r.url)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(ctx)
	f(ctx, c)
}

func (r *record) search(t *testing.T) {
	search := func(args ...string) []catalog.EntryRow {
		t.Helper()
		var rows []catalog.EntryRow
		if err := r.json(&rows, append([]string{"audit", "search"}, args...)...); err != nil {
			t.Fatal(err)
		}
		return rows
	}
	all := search("--limit", "1000")
	if len(all) < 17 || !slices.IsSortedFunc(all, func(a, b catalog.EntryRow) int { return int(b.N) - int(a.N) }) {
		t.Fatalf("%d entries, or not the newest first", len(all))
	}
	for _, row := range []struct {
		want int
		args []string
	}{
		{12, []string{"--incident", "I7"}},
		{12, []string{"--incident", "I7", "--by", "admin", "--since", "2h ago", "--object", "acme", "--op", "org", "--outcome", "done", "--text", "RAMP"}},
		{0, []string{"--incident", "I7", "--until", "2h ago"}},
		{0, []string{"--object", "acm"}},
		{14, []string{"--object", "acme"}},
		{2, []string{"--op", "queue"}},
		{1, []string{"--op", "queue pause"}},
		{1, []string{"--text", strings.ToLower(secretWord)}},
		{5, []string{"--limit", "5"}},
	} {
		if got := search(row.args...); len(got) != row.want {
			t.Errorf("audit search %q finds %d entries, not %d", row.args, len(got), row.want)
		}
	}
	rows, err := csv.NewReader(strings.NewReader(r.must("audit", "export", "--format", "csv", "--incident", "I7"))).ReadAll()
	if err != nil || len(rows) != 13 {
		t.Errorf("%d lines of CSV, %v", len(rows), err)
	}
	anchors := filepath.Join(t.TempDir(), "channel.txt")
	e := r.entries()
	if err := os.WriteFile(anchors, fmt.Appendf(nil, "03:00 loop: audit verify --anchor %d:%s\nand %d:%s", e[2].N, e[2].Hash, e[9].N, e[9].Hash), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := r.must("audit", "verify", "--anchor", anchors); strings.Count(out, "is the one that was anchored") != 2 {
		t.Errorf("audit verify --anchor FILE: %s", out)
	}
}

// found runs "audit verify" and checks that it names what is wrong, where, and
// the first bad entry.
func (r *record) found(t *testing.T, want []string, args ...string) {
	t.Helper()
	out, errs, code := r.run(append([]string{"audit", "verify"}, args...)...)
	if code != 6 {
		t.Errorf("audit verify %s ends with exit code %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	for _, w := range want {
		if !strings.Contains(errs, w) {
			t.Errorf("audit verify %s does not say %q:\n%s", strings.Join(args, " "), w, errs)
		}
	}
}

// line is an entry as it is kept.
func line(e fleet.Entry) string {
	b, err := archive.Encode(&e)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// rewritten returns entries with another text in the one at i, and everything
// after it sealed anew: a chain that holds.
func rewritten(entries []fleet.Entry, i int) []fleet.Entry {
	out := slices.Clone(entries)
	out[i].Text = "nothing happened here"
	for ; i < len(out); i++ {
		prev := ""
		if i > 0 {
			prev = out[i-1].Hash
		}
		out[i].Seal(prev)
	}
	return out
}

// tampering is something that somebody did to the lines of a record, of which
// the entry at 9 is number 10.
var tampering = []struct {
	name string
	do   func(entries []fleet.Entry, lines []string) []string
	want string // in the words of "audit verify"
	n    string // the first bad entry
}{
	{"a text edited", func(e []fleet.Entry, l []string) []string {
		e[9].Text = "did nothing"
		l[9] = line(e[9])
		return l
	}, "edited", "entry 10"},
	{"a person swapped for another", func(e []fleet.Entry, l []string) []string {
		e[9].By = "mallory"
		l[9] = line(e[9])
		return l
	}, "edited", "entry 10"},
	{"an entry deleted", func(_ []fleet.Entry, l []string) []string { return slices.Delete(l, 9, 10) }, "missing", "entry 10"},
	{"three deleted", func(_ []fleet.Entry, l []string) []string { return slices.Delete(l, 9, 12) }, "missing", "entries 10 to 12"},
	{"an entry twice", func(_ []fleet.Entry, l []string) []string { return slices.Insert(l, 10, l[9]) }, "inserted", "entry 10"},
	{"two in the wrong order", func(_ []fleet.Entry, l []string) []string {
		l[9], l[10] = l[10], l[9]
		return l
	}, "reordered", "entry 10"},
	{"one made anew", func(e []fleet.Entry, l []string) []string {
		e[9].Text = "did nothing"
		e[9].Seal(e[8].Hash)
		l[9] = line(e[9])
		return l
	}, "swapped", "entry 11"},
	{"the end cut off", func(_ []fleet.Entry, l []string) []string { return l[:9] }, "truncated", "entr"},
	{"no JSON", func(_ []fleet.Entry, l []string) []string { l[9] = "what is this"; return l }, "bad JSON", "entry"},
	{"a field that is unknown", func(_ []fleet.Entry, l []string) []string {
		l[9] = strings.Replace(l[9], `{"n":10,`, `{"n":10,"note":"x",`, 1)
		return l
	}, "bad JSON", "entry"},
	{"erased without its hash", func(e []fleet.Entry, l []string) []string {
		if err := e[9].Erase("text"); err != nil {
			panic(err)
		}
		e[9].Erased["text"] = strings.Repeat("0", 64)
		l[9] = line(e[9])
		return l
	}, "edited", "entry 10"},
	{"all written anew", func(e []fleet.Entry, l []string) []string {
		for i, e := range rewritten(e, 9) {
			l[i] = line(e)
		}
		return l
	}, "rewritten", "entry"},
}

func (r *record) tamperExport(t *testing.T) {
	whole := r.must("audit", "export")
	lines := strings.Split(strings.TrimSpace(whole), "\n")
	entries := r.entries()
	last := entries[len(entries)-1]
	file := filepath.Join(t.TempDir(), "export.jsonl")
	write := func(lines []string) {
		if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(lines)
	r.must("audit", "verify", file, "--anchor", fmt.Sprintf("%d:%s", last.N, last.Hash))
	for _, row := range tampering {
		t.Run(row.name, func(t *testing.T) {
			own := slices.Clone(lines)
			body := row.do(slices.Clone(entries), slices.Clone(own[1:len(own)-1]))
			write(slices.Concat(own[:1], body, own[len(own)-1:]))
			r.found(t, []string{row.want, row.n}, file, fmt.Sprintf("%d:%s", last.N, last.Hash))
		})
	}
	for _, row := range []struct{ name, old, new, want string }{
		{"another trailer", `"count":`, `"count":1`, "the trailer"},
		{"another header", `"from":1,`, `"from":2,`, "entry 1"},
		{"no trailer", lines[len(lines)-1], "", "truncated"},
		{"of another cluster", `"cluster_id":"`, `"cluster_id":"x`, "the header"},
	} {
		t.Run(row.name, func(t *testing.T) {
			if err := os.WriteFile(file, []byte(strings.TrimSuffix(strings.Replace(whole, row.old, row.new, 1), "\n\n")), 0o600); err != nil {
				t.Fatal(err)
			}
			r.found(t, []string{row.want}, file)
		})
	}
}

// blocks is the embedded archive of a node, from outside.
type blocks struct {
	t  *testing.T
	db *sql.DB
}

func (b blocks) exec(query string, args ...any) {
	b.t.Helper()
	if _, err := b.db.Exec(query, args...); err != nil {
		b.t.Fatal(err)
	}
}

// write puts lines in the place of all blocks: one whose columns are those of
// the first, and say that it goes to last.
func (b blocks) write(lines []string, last int) {
	b.t.Helper()
	body := s2.Encode(nil, []byte(strings.Join(lines, "\n")+"\n"))
	b.exec("DELETE FROM blocks WHERE first > 1")
	b.exec("UPDATE blocks SET last = ?, body = ? WHERE first = 1", last, body)
}

// tamperNode tampers with the archive of a follower under its feet, and asks
// that node as well as another one.
func (r *record) tamperNode(t *testing.T) {
	leader := r.leader()
	victim := r.nodes[slices.IndexFunc(r.nodes, func(n *node) bool { return n != leader })]
	db, err := sql.Open("sqlite", "file:"+filepath.Join(r.dir, victim.name, "audit", "audit.db")+"?_pragma=busy_timeout(10000)&_pragma=secure_delete(1)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	b := blocks{t, db}
	b.exec("CREATE TABLE kept AS SELECT * FROM blocks")
	restore := func() {
		b.exec("DELETE FROM blocks")
		b.exec("INSERT INTO blocks SELECT * FROM kept")
	}
	defer b.exec("DROP TABLE kept")
	entries := r.entries()
	var lines []string
	for _, e := range entries {
		lines = append(lines, line(e))
	}
	there := "node " + victim.name + ": "
	verify := func(t *testing.T, want []string, elsewhere bool) {
		t.Helper()
		r.found(t, append([]string{there}, want...), "--addr", "http://"+victim.api)
		if elsewhere {
			r.found(t, []string{there, "whole: node " + leader.name}, "--addr", "http://"+leader.api, "--peers")
		}
	}
	for _, row := range tampering {
		t.Run(row.name, func(t *testing.T) {
			defer restore()
			changed := row.do(slices.Clone(entries), slices.Clone(lines))
			b.write(changed, len(lines))
			want := row.want
			if want == "reordered" {
				want = "missing" // a node does not look further for the one that is not in its place
			}
			if len(changed) != len(lines) { // the block is damaged as a whole
				verify(t, []string{"bad JSON", "entries 1 to"}, true)
				return
			}
			verify(t, []string{want, row.n}, true)
		})
	}
	for _, row := range []struct {
		name, sql string
		want      []string
		elsewhere bool
	}{
		{"a block deleted", "DELETE FROM blocks WHERE first = 1", []string{"entr"}, true},
		{"a body that is none", "UPDATE blocks SET body = x'00112233' WHERE first = 1", []string{"bad JSON", "entries 1 to"}, true},
		{"a block under another number", "UPDATE blocks SET first = 1000001, last = last + 1000000 WHERE first = 1", []string{"entr"}, true},
		{"a block twice", "INSERT INTO blocks SELECT first+1000000, last+1000000, at_first, at_last, prev, hash, by, op, outcome, incident, body FROM blocks WHERE first = 1", []string{"inserted", "entry 1000001"}, false},
		{"what a search looks at", "UPDATE blocks SET by = x'0a' WHERE first = 1", []string{"edited", "what queries select them by"}, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			defer restore()
			b.exec(row.sql)
			verify(t, row.want, row.elsewhere)
		})
	}
	r.must("audit", "verify", "--peers")
}

func (r *record) tamperPostgres(t *testing.T) {
	r.postgres(t, func(ctx context.Context, c *pgx.Conn) {
		exec := func(sql string, args ...any) {
			t.Helper()
			if _, err := c.Exec(ctx, sql, args...); err != nil {
				t.Fatal(err)
			}
		}
		exec("CREATE TABLE kept AS SELECT * FROM footplate.entries")
		defer exec("DROP TABLE kept")
		entries := r.entries()
		forged := rewritten(entries, 9)
		leader := "http://" + r.leader().api
		for _, row := range []struct {
			name string
			sql  []string
			want []string
		}{
			{"a column edited", []string{"UPDATE footplate.entries SET text = 'x' WHERE n = 10"}, []string{"edited", "entry 10", "column text"}},
			{"a body edited", []string{"UPDATE footplate.entries SET body = replace(body, 'acme', 'acne') WHERE n = 10"}, []string{"entry 10"}},
			{"another person", []string{`UPDATE footplate.entries SET by = 'mallory', body = replace(body, '"by":"admin"', '"by":"mallory"') WHERE n = 10`}, []string{"edited", "entry 10"}},
			{"a row deleted", []string{"DELETE FROM footplate.entries WHERE n = 10"}, []string{"missing", "entry 10"}},
			{"rows deleted", []string{"DELETE FROM footplate.entries WHERE n BETWEEN 10 AND 12"}, []string{"missing", "entries 10 to 12"}},
			{"a number twice", []string{"INSERT INTO footplate.entries SELECT (e).* FROM (SELECT e FROM footplate.entries e WHERE n = 10) AS x WHERE false",
				"CREATE TEMP TABLE twice AS SELECT * FROM footplate.entries WHERE n = 10", "UPDATE twice SET at = at + interval '1 second'",
				"INSERT INTO footplate.entries SELECT * FROM twice", "DROP TABLE twice"}, []string{"entry 10"}},
			{"two numbers exchanged", []string{"UPDATE footplate.entries SET n = -1 WHERE n = 10", "UPDATE footplate.entries SET n = 10 WHERE n = 11", "UPDATE footplate.entries SET n = 11 WHERE n = -1"}, []string{"entry 1"}},
			{"the end cut off", []string{fmt.Sprintf("DELETE FROM footplate.entries WHERE n > %d", len(entries)-3)}, []string{"truncated", fmt.Sprintf("ends at entry %d", len(entries)-3)}},
			{"the beginning cut off", []string{"DELETE FROM footplate.entries WHERE n < 5"}, []string{"entr"}},
			{"no JSON", []string{"UPDATE footplate.entries SET body = 'x' WHERE n = 10"}, []string{"bad JSON", "entry 10"}},
			{"moved to another cluster", []string{"UPDATE footplate.entries SET cluster = 'other' WHERE n = 10"}, []string{"missing", "entry 10"}},
			{"a hash of another", []string{"UPDATE footplate.entries SET hash = prev WHERE n = 10"}, []string{"edited", "entry 10", "column hash"}},
			{"all written anew", nil, []string{"entry"}},
		} {
			t.Run(row.name, func(t *testing.T) {
				defer func() {
					exec("TRUNCATE footplate.entries")
					exec("INSERT INTO footplate.entries SELECT * FROM kept")
				}()
				for _, s := range row.sql {
					exec(s)
				}
				if row.sql == nil {
					for _, e := range forged[9:] {
						exec("UPDATE footplate.entries SET body = $2, prev = $3, hash = $4, text = $5 WHERE n = $1", int64(e.N), line(e), e.Prev, e.Hash, e.Text)
					}
				}
				r.found(t, append([]string{"postgres: ", "whole: node "}, row.want...), "--addr", leader, "--postgres")
			})
		}
	})
	r.delivered()
}

// erase takes a secret out of the record, and looks for it everywhere.
func (r *record) erase(t *testing.T) {
	var rows []catalog.EntryRow
	if err := r.json(&rows, "audit", "search", "--text", secretWord); err != nil || len(rows) != 1 {
		t.Fatalf("%d entries have the secret, %v", len(rows), err)
	}
	n := fmt.Sprint(rows[0].N)
	if out, errs, code := r.run("audit", "erase", n, "--field", "reason", "--reason", "leak"); code == 0 {
		t.Fatalf("erased without being confirmed: %s%s", out, errs)
	}
	key := hex.EncodeToString([]byte("erase"))
	for range 2 { // the same key: once
		r.must("audit", "erase", n, "--field", "reason", "--reason", "leak", "--yes", "--idempotency-key", key)
	}
	holders := func() (where []string) {
		for _, node := range r.nodes {
			for _, name := range []string{"audit.db", "audit.db-wal"} {
				b, err := os.ReadFile(filepath.Join(r.dir, node.name, "audit", name))
				if err != nil && !errors.Is(err, os.ErrNotExist) {
					t.Fatal(err)
				}
				if bytes.Contains(b, []byte(secretWord[:12])) {
					where = append(where, node.name+"/"+name)
				}
			}
			if out, _, _ := r.run("audit", "export", "--addr", "http://"+node.api, "--stale"); strings.Contains(out, secretWord) {
				where = append(where, node.name+" export")
			}
			snapshot, _ := filepath.Glob(filepath.Join(r.dir, node.name, "*", "*", "state.bin"))
			slices.Sort(snapshot)
			if len(snapshot) == 0 {
				where = append(where, node.name+", which has taken no snapshot")
			} else if b, err := os.ReadFile(snapshot[len(snapshot)-1]); err != nil || bytes.Contains(b, []byte(secretWord)) {
				where = append(where, node.name+"'s snapshot")
			}
		}
		r.postgres(t, func(ctx context.Context, c *pgx.Conn) {
			var count int
			if err := c.QueryRow(ctx, "SELECT count(*) FROM footplate.entries e WHERE e::text LIKE '%' || $1 || '%'", secretWord).Scan(&count); err != nil {
				t.Fatal(err)
			}
			if count > 0 {
				where = append(where, "postgres")
			}
		})
		return where
	}
	deadline := time.Now().Add(20 * time.Second)
	for left := holders(); len(left) > 0; left = holders() {
		if time.Now().After(deadline) {
			t.Fatalf("what was erased is still in %v", left)
		}
	}
	r.delivered()
	if out := r.must("audit", "show", n); !strings.Contains(out, "erased") || strings.Contains(out, secretWord) {
		t.Errorf("audit show: %s", out)
	}

	// A node that reads the log again, and one that begins anew, erase it too.
	victim := r.nodes[slices.IndexFunc(r.nodes, func(n *node) bool { return n != r.leader() })]
	r.kill(victim)
	if err := os.RemoveAll(filepath.Join(r.dir, victim.name, "audit")); err != nil {
		t.Fatal(err)
	}
	r.start(victim)
	r.wait(30*time.Second, "the node to fill its archive", func() bool {
		_, _, code := r.run("audit", "verify", "--addr", "http://"+victim.api)
		return code == 0
	})
	deadline = time.Now().Add(20 * time.Second)
	for left := holders(); len(left) > 0; left = holders() {
		if time.Now().After(deadline) {
			t.Fatalf("what was erased is back in %v", left)
		}
	}
}

// outage stops PostgreSQL, works on, and starts it again.
func (r *record) outage(t *testing.T) {
	r.pg.Stop()
	for i := range 30 {
		r.must("org", "set", "acme", "--slots", fmt.Sprint(100+i))
	}
	leader := "http://" + r.leader().api
	r.wait(30*time.Second, "the status to tell", func() bool {
		var c op.Cluster
		return r.json(&c, "cluster", "status", "--addr", leader) == nil && len(c.Notes) > 0 && strings.Contains(c.Notes[0], "entries behind since")
	})
	if _, errs, code := r.run("audit", "verify", "--postgres"); code != 7 || !strings.Contains(errs, "postgres: ") {
		t.Errorf("audit verify --postgres ends with exit code %d: %s", code, errs)
	}
	// Whoever leads next takes over.
	r.kill(r.leader())
	r.must("org", "set", "acme", "--slots", "200")
	if err := r.pg.Start(); err != nil {
		t.Fatal(err)
	}
	for _, n := range r.nodes {
		if n.cmd == nil {
			r.start(n)
		}
	}
	r.delivered()
	want := r.entries()
	r.postgres(t, func(ctx context.Context, c *pgx.Conn) {
		rows, err := c.Query(ctx, "SELECT body FROM footplate.entries ORDER BY n, at")
		if err != nil {
			t.Fatal(err)
		}
		got, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		for i := range min(len(got), len(want)) {
			if got[i] != line(want[i]) {
				t.Fatalf("row %d is %s, not entry %d", i+1, got[i], want[i].N)
			}
		}
		if len(got) < len(want) {
			t.Errorf("%d of %d entries are there", len(got), len(want))
		}
	})
	var raw map[string]json.RawMessage
	if err := r.json(&raw, "audit", "verify", "--peers", "--postgres"); err != nil {
		t.Error(err)
	}
}
