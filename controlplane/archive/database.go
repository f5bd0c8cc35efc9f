package archive

import (
	"bytes"
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
const format = 2

// A row is a block; the columns before body say which queries may pass it over,
// and where its neighbours join. There are no indexes, because the moments of
// entries never go back, so a moment is found by its number, and because a block
// is passed over in a microsecond.
const schema = `
CREATE TABLE blocks (
	first    INTEGER PRIMARY KEY,
	last     INTEGER NOT NULL,
	at_first INTEGER NOT NULL,
	at_last  INTEGER NOT NULL,
	prev     TEXT NOT NULL,
	hash     TEXT NOT NULL,
	by       BLOB NOT NULL,
	op       BLOB NOT NULL,
	outcome  BLOB NOT NULL,
	incident BLOB NOT NULL,
	body     BLOB NOT NULL
) STRICT;
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
`

const (
	columns   = "first, last, at_first, at_last, prev, hash, by, op, outcome, incident, body"
	insertSQL = "INSERT INTO blocks (" + columns + ") VALUES (?,?,?,?,?,?,?,?,?,?,?)"
	// The block that has the entry with a number, or none.
	holderSQL = "SELECT " + columns + " FROM blocks WHERE first = (SELECT max(first) FROM blocks WHERE first <= ?1) AND last >= ?1"
	// The block that ends with an entry, if it has at most so many more.
	beforeSQL = "SELECT " + columns + " FROM blocks WHERE first = (SELECT max(first) FROM blocks WHERE first <= ?1) AND last = ?1 AND last - first < ?2"
)

// database is the SQLite file: one connection that writes, some that read.
type database struct {
	path  string
	write *sql.DB
	read  *sql.DB

	insert, remove, holder, before, hash, prev, setMeta *sql.Stmt

	packer packer // the writer's
	block  block  // that insert fills, to be used again
	enc    encoder
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
	if d.write, err = sql.Open("sqlite", dsn("journal_mode(wal)", "synchronous(normal)", "cache_size(-8000)",
		// What was erased must not lie on in pages that became free.
		"secure_delete(1)",
		// A checkpoint waits for the disk twice, and Raft's log with it.
		"wal_autocheckpoint(4000)")+"&_txlock=immediate"); err != nil {
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
	if version == 1 {
		return nil, nil, fleet.Conflictf("audit archive %s has format 1, from before the first release; this version reads %d", path, format).
			WithHint("move the file away: the node fills its archive again from its peers")
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
		{&d.insert, insertSQL},
		{&d.remove, "DELETE FROM blocks WHERE first = ?"},
		{&d.holder, holderSQL},
		{&d.before, beforeSQL},
		{&d.hash, "SELECT hash FROM blocks WHERE first = (SELECT max(first) FROM blocks WHERE first <= ?1) AND last = ?1"},
		{&d.prev, "SELECT prev FROM blocks WHERE first = ?"},
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
	lines, n, err := d.enc.lines(entries)
	if err != nil {
		return nil, &conflict{n, fleet.Internalf("entry %d cannot be encoded: %s", entries[n].N, err)}
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
			same, err := tx.compare(e, lines[i])
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
		if err := tx.insert(entries[i:j], lines[i:j]); err != nil {
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
	if tx.erased {
		// The write-ahead log has what was erased too. A reader may be in the
		// way; then the log is overwritten in its turn.
		if _, err := d.write.Exec("PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
			return nil, fmt.Errorf("write audit archive: %w", err)
		}
	}
	return have, nil
}

// transaction is one call of put.
type transaction struct {
	d      *database
	tx     *sql.Tx
	held   block // the one that compare looked at last
	erased bool  // an entry was replaced by one with more of it erased
}

// link checks that entries[i:j], none of which is here, fit to one another, to
// their neighbours that are here, and to the entry that a snapshot named.
func (t *transaction) link(have spans, expected Anchor, entries []fleet.Entry, i, j int, proven bool) error {
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

// scan reads a row with the columns of a block.
func (b *block) scan(row interface{ Scan(...any) error }, body any) error {
	return row.Scan(&b.first, &b.last, &b.atFirst, &b.atLast, &b.prev, &b.hash,
		&b.by.list, &b.op.list, &b.outcome.list, &b.incident.list, body)
}

// compare reports whether e is the entry that is here under its number. Of two
// that differ only in what was erased, the one with more erased stays.
func (t *transaction) compare(e *fleet.Entry, line []byte) (bool, error) {
	if t.held.count() == 0 || e.N < t.held.first || e.N > t.held.last {
		t.held = block{}
		var body []byte
		if err := t.held.scan(t.tx.Stmt(t.d.holder).QueryRow(int64(e.N)), &body); err != nil {
			return false, fmt.Errorf("read audit archive: %w", err)
		}
		if err := t.d.packer.unpack(&t.held, body); err != nil {
			t.held = block{}
			return false, nil
		}
	}
	at := int(e.N - t.held.first)
	old := t.held.line(at)
	if bytes.Equal(old, line) {
		return true, nil
	}
	stored, why := decode(old)
	if why != "" || stored.Hash != e.Hash || stored.Unsound() != "" || e.Unsound() != "" {
		return false, nil
	}
	if len(e.Erased) <= len(stored.Erased) {
		return true, nil
	}
	var b block
	for i := range t.held.count() {
		if i == at {
			b.add(e, line)
			continue
		}
		other, why := decode(t.held.line(i))
		if why != "" {
			return false, nil
		}
		b.add(&other, t.held.line(i))
	}
	if err := t.remove(t.held.first); err != nil {
		return false, err
	}
	if err := t.store(&b); err != nil {
		return false, err
	}
	t.held, t.erased = b, true
	return true, nil
}

// insert stores entries that follow one another and are not here. Small blocks
// before them are taken up into the new ones: each that is not larger than what
// comes after it, so that an entry is written again a few times at most however
// slowly entries come, and no run of small blocks is left behind.
func (t *transaction) insert(entries []fleet.Entry, lines [][]byte) error {
	t.held = block{}
	b := &t.d.block
	b.reset()
	for n := entries[0].N; n > 1; n = b.first {
		most := min(b.count()+len(entries), maxBlock/2, maxBlock-b.count())
		var older block
		var body []byte
		err := older.scan(t.tx.Stmt(t.d.before).QueryRow(int64(n-1), most), &body)
		if errors.Is(err, sql.ErrNoRows) {
			break
		}
		if err != nil {
			return fmt.Errorf("read audit archive: %w", err)
		}
		// What is damaged stays as it is, for Verify to find.
		if t.d.packer.unpack(&older, body) != nil || len(older.raw) > maxRaw/2 || len(older.raw)+len(b.raw) > maxRaw {
			break
		}
		if err := t.remove(older.first); err != nil {
			return err
		}
		b.precede(&older)
	}
	for i := range entries {
		if !b.room(len(lines[i])) {
			if err := t.store(b); err != nil {
				return err
			}
			b.reset()
		}
		b.add(&entries[i], lines[i])
	}
	return t.store(b)
}

func (t *transaction) remove(first fleet.EntryNo) error {
	if _, err := t.tx.Stmt(t.d.remove).Exec(int64(first)); err != nil {
		return fmt.Errorf("write audit archive: %w", err)
	}
	return nil
}

func (t *transaction) store(b *block) error {
	// An empty list is not nil, which would be NULL.
	list := func(s *set) []byte { return append([]byte{}, s.list...) }
	if _, err := t.tx.Stmt(t.d.insert).Exec(int64(b.first), int64(b.last), int64(b.atFirst), int64(b.atLast),
		b.prev, b.hash, list(&b.by), list(&b.op), list(&b.outcome), list(&b.incident), t.d.packer.pack(b)); err != nil {
		return fmt.Errorf("write audit archive: %w", err)
	}
	return nil
}
