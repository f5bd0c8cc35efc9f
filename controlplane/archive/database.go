package archive

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"

	_ "modernc.org/sqlite" // the driver "sqlite"

	"footplate/fleet"
)

// format is the version of the tables, kept in user_version.
const format = 1

// The columns beside body are what queries select by; body is the entry as it
// is exported, and what is verified. There are no more indexes than this,
// because writing an entry must cost next to nothing: the moments of entries
// never go back, so a moment is found by its number.
const schema = `
CREATE TABLE entries (
	n        INTEGER PRIMARY KEY,
	idx      INTEGER NOT NULL,
	at       INTEGER NOT NULL,
	by       TEXT NOT NULL,
	op       TEXT NOT NULL,
	outcome  TEXT NOT NULL,
	incident TEXT NOT NULL,
	prev     TEXT NOT NULL,
	hash     TEXT NOT NULL,
	body     BLOB NOT NULL
) STRICT;
CREATE INDEX entries_incident ON entries (incident, n) WHERE incident <> '';
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
`

const (
	columns   = 10
	rowMarks  = "(?,?,?,?,?,?,?,?,?,?)"
	bulkRows  = 32 // entries that one statement inserts, where so many wait
	insertSQL = "INSERT INTO entries (n, idx, at, by, op, outcome, incident, prev, hash, body) VALUES "
)

// database is the SQLite file: one connection that writes, some that read.
type database struct {
	path  string
	write *sql.DB
	read  *sql.DB

	insert, insertBulk, body, hash, prev, erase, setMeta *sql.Stmt
}

// conflict says that an entry cannot be stored beside those that are here.
type conflict struct {
	at  int // index of the entry
	err *fleet.Error
}

func (c *conflict) Error() string { return c.err.Error() }

func openDatabase(path, cluster string) (_ *database, have spans, err error) {
	d := &database{path: path}
	defer func() {
		if err != nil {
			d.close()
			var e *fleet.Error
			if !errors.As(err, &e) {
				err = fmt.Errorf("open audit archive %s: %w", path, err)
			}
		}
	}()
	dsn := func(pragmas ...string) string {
		u := url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath()}
		return u.String() + "?_pragma=" + strings.Join(append(pragmas, "busy_timeout(10000)"), "&_pragma=")
	}
	if d.write, err = sql.Open("sqlite", dsn("journal_mode(wal)", "synchronous(normal)", "cache_size(-8000)")+"&_txlock=immediate"); err != nil {
		return nil, nil, err
	}
	d.write.SetMaxOpenConns(1)
	if d.read, err = sql.Open("sqlite", dsn("query_only(1)", "cache_size(-4000)")); err != nil {
		return nil, nil, err
	}
	d.read.SetMaxOpenConns(4)

	var version int
	if err := d.write.QueryRow("PRAGMA user_version").Scan(&version); err != nil {
		return nil, nil, fleet.Internalf("audit archive %s cannot be read: %s", path, err).
			WithHint("move the file away: the node fills its archive again from its peers")
	}
	if version > format {
		return nil, nil, fleet.Conflictf("audit archive %s has format %d; this version reads %d", path, version, format).
			WithHint("run the version of footplate that wrote it")
	}
	if version == 0 {
		if err := d.create(cluster); err != nil {
			return nil, nil, err
		}
	}
	owner, err := d.meta("cluster")
	if err != nil {
		return nil, nil, err
	}
	if owner != cluster {
		return nil, nil, fleet.Conflictf("audit archive %s belongs to cluster %q, not to %q", path, owner, cluster).
			WithHint("start the node with the data directory of its own cluster")
	}
	list, err := d.meta("have")
	if err != nil {
		return nil, nil, err
	}
	if err := json.Unmarshal([]byte(list), &have); err != nil {
		return nil, nil, err
	}
	for _, s := range []struct {
		stmt **sql.Stmt
		text string
	}{
		{&d.insert, insertSQL + rowMarks},
		{&d.insertBulk, insertSQL + strings.Repeat(rowMarks+",", bulkRows-1) + rowMarks},
		{&d.body, "SELECT body FROM entries WHERE n = ?"},
		{&d.hash, "SELECT hash FROM entries WHERE n = ?"},
		{&d.prev, "SELECT prev FROM entries WHERE n = ?"},
		{&d.erase, "UPDATE entries SET by = ?, body = ? WHERE n = ?"},
		{&d.setMeta, "UPDATE meta SET value = ? WHERE key = ?"},
	} {
		if *s.stmt, err = d.write.Prepare(s.text); err != nil {
			return nil, nil, err
		}
	}
	return d, have, nil
}

func (d *database) create(cluster string) error {
	tx, err := d.write.Begin()
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.Exec(schema + fmt.Sprintf("PRAGMA user_version = %d;", format)); err != nil {
		return err
	}
	if _, err := tx.Exec("INSERT INTO meta VALUES ('cluster', ?), ('have', '[]'), ('synced', '0')", cluster); err != nil {
		return err
	}
	return tx.Commit()
}

func (d *database) meta(key string) (string, error) {
	var v string
	err := d.write.QueryRow("SELECT value FROM meta WHERE key = ?", key).Scan(&v)
	return v, err
}

func (d *database) close() error {
	var errs []error
	// The reader first: the last connection to close folds the write-ahead log
	// into the file, and a reader may not.
	for _, db := range []*sql.DB{d.read, d.write} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	return errors.Join(errs...)
}

// sync returns when all that was committed is on disk: in WAL mode a commit
// with synchronous=FULL syncs the whole write-ahead log, with what earlier
// commits left in it.
func (d *database) sync() error {
	if _, err := d.write.Exec("PRAGMA synchronous = FULL"); err != nil {
		return fmt.Errorf("sync audit archive: %w", err)
	}
	_, err := d.write.Exec("UPDATE meta SET value = value + 1 WHERE key = 'synced'")
	if _, e := d.write.Exec("PRAGMA synchronous = NORMAL"); err == nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("sync audit archive: %w", err)
	}
	return nil
}

// put stores entries in one transaction and returns have with them. Those that
// are here already are compared. With proven, entries are taken only if a newer
// one vouches for them. The error is a *conflict when an entry cannot stand
// beside those that are here; then nothing was stored.
func (d *database) put(have spans, expected Anchor, entries []fleet.Entry, proven bool) (spans, error) {
	if len(entries) == 0 {
		return have, nil
	}
	bodies := make([][]byte, len(entries))
	for i := range entries {
		var err error
		if bodies[i], err = encode(&entries[i]); err != nil {
			return nil, &conflict{i, fleet.Internalf("entry %d cannot be encoded: %s", entries[i].N, err)}
		}
	}
	sqlTx, err := d.write.Begin()
	if err != nil {
		return nil, fmt.Errorf("write audit archive: %w", err)
	}
	defer sqlTx.Rollback()
	tx := transaction{d: d, tx: sqlTx}

	for i := 0; i < len(entries); {
		e := &entries[i]
		if have.covers(e.N, e.N) {
			same, err := tx.compare(e, bodies[i])
			if err != nil {
				return nil, err
			}
			if !same {
				return nil, &conflict{i, forked(e.N)}
			}
			i++
			continue
		}
		j := i + 1
		for j < len(entries) && entries[j].N == entries[j-1].N+1 && !have.covers(entries[j].N, entries[j].N) {
			j++
		}
		if err := tx.link(have, expected, entries, i, j, proven); err != nil {
			return nil, err
		}
		if err := tx.insert(entries[i:j], bodies[i:j]); err != nil {
			return nil, err
		}
		have = have.add(e.N, entries[j-1].N)
		i = j
	}
	list, err := json.Marshal(have)
	if err != nil {
		return nil, err
	}
	if _, err := sqlTx.Stmt(d.setMeta).Exec(string(list), "have"); err != nil {
		return nil, fmt.Errorf("write audit archive: %w", err)
	}
	if err := sqlTx.Commit(); err != nil {
		return nil, fmt.Errorf("write audit archive: %w", err)
	}
	return have, nil
}

// transaction is one call of put.
type transaction struct {
	d  *database
	tx *sql.Tx
}

// link checks that entries[i:j], none of which is here, fit to one another, to
// their neighbours that are here, and to the entry that a snapshot named.
func (t transaction) link(have spans, expected Anchor, entries []fleet.Entry, i, j int, proven bool) error {
	for k := i; k < j; k++ {
		e := &entries[k]
		var prev string
		switch {
		case k > i:
			prev = entries[k-1].Hash
		case e.N > 1 && have.covers(e.N-1, e.N-1):
			if err := t.tx.Stmt(t.d.hash).QueryRow(int64(e.N - 1)).Scan(&prev); err != nil {
				return fmt.Errorf("read audit archive: %w", err)
			}
		case e.N > 1 && e.N-1 == expected.N:
			prev = expected.Hash
		default:
			prev = e.Prev // nothing to compare with
		}
		if e.Prev != prev {
			return &conflict{k, fleet.Conflictf("entry %d does not follow entry %d in the audit archive", e.N, e.N-1).
				WithHint("compare with the archives of the other nodes: footplate audit verify")}
		}
		if e.N == expected.N && e.Hash != expected.Hash {
			return &conflict{k, forked(e.N)}
		}
	}
	last := &entries[j-1]
	if have.covers(last.N+1, last.N+1) {
		var prev string
		if err := t.tx.Stmt(t.d.prev).QueryRow(int64(last.N + 1)).Scan(&prev); err != nil {
			return fmt.Errorf("read audit archive: %w", err)
		}
		if prev != last.Hash {
			return &conflict{j - 1, fleet.Conflictf("entry %d in the audit archive does not follow entry %d", last.N+1, last.N).
				WithHint("ask another node")}
		}
	} else if proven && last.N != expected.N {
		return &conflict{j - 1, fleet.Conflictf("entry %d cannot be proven: entry %d is not in the audit archive", last.N, last.N+1).
			WithHint("fill the newest gap from its end")}
	}
	return nil
}

// compare reports whether e is the entry that is here under its number. Of two
// that differ only in what was erased, the one with more erased stays.
func (t transaction) compare(e *fleet.Entry, body []byte) (bool, error) {
	var old []byte
	if err := t.tx.Stmt(t.d.body).QueryRow(int64(e.N)).Scan(&old); err != nil {
		return false, fmt.Errorf("read audit archive: %w", err)
	}
	if string(old) == string(body) {
		return true, nil
	}
	stored, why := decode(old)
	if why != "" || stored.Hash != e.Hash || stored.Unsound() != "" || e.Unsound() != "" {
		return false, nil
	}
	if len(e.Erased) <= len(stored.Erased) {
		return true, nil
	}
	if _, err := t.tx.Stmt(t.d.erase).Exec(string(e.By), body, int64(e.N)); err != nil {
		return false, fmt.Errorf("write audit archive: %w", err)
	}
	return true, nil
}

func (t transaction) insert(entries []fleet.Entry, bodies [][]byte) error {
	one, bulk := t.tx.Stmt(t.d.insert), t.tx.Stmt(t.d.insertBulk)
	args := make([]any, 0, bulkRows*columns)
	for len(entries) > 0 {
		stmt, rows := one, 1
		if len(entries) >= bulkRows {
			stmt, rows = bulk, bulkRows
		}
		args = args[:0]
		for i := range rows {
			e := &entries[i]
			args = append(args, int64(e.N), int64(e.Index), int64(e.At), string(e.By), e.Op,
				string(e.Outcome), e.Incident, e.Prev, e.Hash, bodies[i])
		}
		if _, err := stmt.ExecContext(context.Background(), args...); err != nil {
			return fmt.Errorf("write audit archive: %w", err)
		}
		entries, bodies = entries[rows:], bodies[rows:]
	}
	return nil
}
