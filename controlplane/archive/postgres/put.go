package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"footplate/controlplane/archive"
	"footplate/fleet"
	"footplate/fleet/fault"
)

// Put stores entries, which must follow one another and the newest that is
// there. Those that are there already are compared: another entry under the
// same number is a conflict, and one with more of its fields erased is erased
// there too. All or none are stored. Retryable tells whether it is worth
// trying again; after fleet.CodeUnknown they may have been stored, and putting
// them again does no harm.
func (a *Archive) Put(ctx context.Context, entries []fleet.Entry) error {
	if len(entries) == 0 {
		return nil
	}
	for i := range entries {
		if i > 0 && (entries[i].N != entries[i-1].N+1 || entries[i].Prev != entries[i-1].Hash) {
			return unsound(&entries[i], fmt.Sprintf("it does not follow entry %d", entries[i-1].N))
		}
	}
	pool, err := a.ready(ctx)
	if err != nil {
		return err
	}
	if err := a.addMonths(ctx, pool, entries); err != nil {
		return err
	}
	first, last := &entries[0], &entries[len(entries)-1]
	var erase []*fleet.Entry
	committing := false
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		// One at a time for each cluster: what is looked at stays as it is
		// until the commit, even when an old leader still delivers.
		var locked pgx.Batch
		locked.Queue("SELECT pg_advisory_xact_lock(hashtextextended('footplate entries ' || $1, 0))", a.cluster)
		locked.Queue("SELECT n, prev, hash, cardinality(erased) FROM footplate.entries WHERE cluster = $1 AND n BETWEEN $2 AND $3 ORDER BY n",
			a.cluster, int64(first.N)-1, int64(last.N)+1)
		results := tx.SendBatch(ctx, &locked)
		if _, err := results.Exec(); err != nil {
			_ = results.Close()
			return err
		}
		there := make(map[fleet.EntryNo]struct{})
		found, err := results.Query()
		if err != nil {
			_ = results.Close()
			return err
		}
		var n, gone int64
		var prev, hash string
		_, err = pgx.ForEachRow(found, []any{&n, &prev, &hash, &gone}, func() error {
			no := fleet.EntryNo(n)
			there[no] = struct{}{}
			switch {
			case no < first.N:
				if hash != first.Prev {
					return unlinked(first.N, no)
				}
			case no > last.N:
				if prev != last.Hash {
					return unlinked(no, last.N)
				}
			default:
				e := &entries[no-first.N]
				if hash != e.Hash {
					return fleet.Conflictf("entry %d in postgres is another than the one here", no).
						WithHint("two histories have met: see footplate audit verify here and against postgres; a recovered cluster needs a name of its own there")
				}
				if len(e.Erased) > int(gone) {
					erase = append(erase, e)
				}
			}
			return nil
		})
		if closing := results.Close(); err == nil {
			err = closing
		}
		if err != nil {
			return err
		}
		if _, ok := there[first.N-1]; !ok && first.N > 1 {
			switch before, err := a.dropped(ctx, tx); {
			case err != nil:
				return err
			case before.N != first.N-1:
				return fleet.Unavailablef("postgres does not have entry %d, which entry %d follows", first.N-1, first.N).
					WithHint("what is missing is delivered first")
			case before.Hash != first.Prev:
				return unlinked(first.N, first.N-1)
			}
		}
		src := source{cluster: a.cluster, rest: entries, there: there}
		_, err = tx.Conn().PgConn().CopyFrom(ctx, &src, "COPY footplate.entries ("+columnNames()+") FROM STDIN BINARY")
		if src.err != nil {
			return src.err // of which the server only repeats the text
		}
		if err != nil {
			return err
		}
		committing = true
		fault.Here(fault.SharedPut)
		return nil
	})
	if err != nil {
		var pg *pgconn.PgError
		if errors.As(err, &pg) && pg.Code == "23514" {
			a.forgetMonths()
		}
		err = a.explain("write to", err)
		if committing && fleet.CodeOf(err) == fleet.CodeUnavailable {
			return fleet.Unknownf("%s", err).WithHint("the entries may have been stored; they are put again")
		}
		return err
	}
	fault.Here(fault.SharedCommit)
	for _, e := range erase {
		if err := a.Erase(ctx, e); err != nil {
			return err
		}
	}
	a.known.Lock()
	if a.sound.N == first.N-1 {
		a.sound = archive.Anchor{N: last.N, Hash: last.Hash}
	}
	a.known.Unlock()
	return nil
}

// source is what COPY reads: the rows of the entries that are not there yet,
// made while the server takes those before them. An entry that is not sound
// ends the copying, and nothing is stored.
type source struct {
	cluster string
	rest    []fleet.Entry
	there   map[fleet.EntryNo]struct{}

	row     row
	columns []column // of row
	buf     []byte   // made and not read yet
	ended   bool
	err     error
}

func (s *source) Read(p []byte) (int, error) {
	if s.columns == nil {
		s.columns = s.row.columns()
		s.buf = append(s.buf, copyHeader...)
	}
	n := copy(p, s.buf)
	s.buf = s.buf[:copy(s.buf, s.buf[n:])]
	for n < len(p) && !s.ended {
		if len(s.rest) == 0 {
			s.buf = append(s.buf, copyTrailer...)
			s.ended = true
		} else if s.err = s.next(); s.err != nil {
			return n, s.err
		}
		k := copy(p[n:], s.buf)
		n += k
		s.buf = s.buf[:copy(s.buf, s.buf[k:])]
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// next makes the row of the next entry, if it is not there.
func (s *source) next() error {
	e := &s.rest[0]
	s.rest = s.rest[1:]
	if why := e.Unsound(); why != "" {
		return unsound(e, why)
	}
	if _, ok := s.there[e.N]; ok {
		return nil
	}
	if err := s.row.set(s.cluster, e); err != nil {
		return err
	}
	s.buf = appendRow(s.buf, s.columns)
	return nil
}

func unsound(e *fleet.Entry, why string) *fleet.Error {
	return fleet.Conflictf("entry %d of this node is not intact, and was not delivered to postgres: %s", e.N, why).
		WithHint("compare with the other nodes: footplate audit verify")
}

func unlinked(n, before fleet.EntryNo) *fleet.Error {
	return fleet.Conflictf("entry %d does not follow entry %d in postgres", n, before).
		WithHint("two histories have met: see footplate audit verify here and against postgres; a recovered cluster needs a name of its own there")
}

// addMonths makes the partitions that the entries need, and that of the month
// after, so that the first entry of a month does not wait for it.
func (a *Archive) addMonths(ctx context.Context, pool execer, entries []fleet.Entry) error {
	need := func(m time.Time) error {
		a.known.Lock()
		_, ok := a.months[m]
		a.known.Unlock()
		if ok {
			return nil
		}
		if _, err := pool.Exec(ctx, "SELECT footplate.add_month($1)", m); err != nil {
			return a.explain("write to", err)
		}
		a.known.Lock()
		a.months[m] = struct{}{}
		a.known.Unlock()
		return nil
	}
	var newest time.Time
	for i := range entries {
		m := month(entries[i].At)
		if m.Equal(newest) {
			continue
		}
		newest = m
		if err := need(m); err != nil {
			return err
		}
	}
	return need(newest.AddDate(0, 1, 0))
}

type execer interface {
	Exec(context.Context, string, ...any) (pgconn.CommandTag, error)
}

// forgetMonths has the partitions looked for again.
func (a *Archive) forgetMonths() {
	a.known.Lock()
	defer a.known.Unlock()
	clear(a.months)
}

// Erase erases in the database what is erased in e, which must be there. The
// value is out of reach at once; the files of the server lose it at the next
// VACUUM of the table, and its backups when they expire.
func (a *Archive) Erase(ctx context.Context, e *fleet.Entry) error {
	if why := e.Unsound(); why != "" || len(e.Erased) == 0 {
		return fleet.Invalidf("entry %d is not one with an erased field", e.N)
	}
	body, err := archive.Encode(e)
	if err != nil {
		return fleet.Internalf("entry %d cannot be encoded: %s", e.N, err)
	}
	pool, err := a.ready(ctx)
	if err != nil {
		return err
	}
	_, err = pool.Exec(ctx, "SELECT footplate.erase($1, $2, $3)", a.cluster, int64(e.N), string(body))
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		switch pg.Code {
		case "P0002":
			return fleet.NotFoundf("entry %d is not in the audit archive in postgres", e.N)
		case "23514":
			return fleet.Conflictf("entry %d in postgres cannot be erased: %s", e.N, a.clean(pg.Message)).
				WithHint("see footplate audit verify against postgres")
		case "22P05":
			return fleet.Conflictf("entry %d in postgres cannot be erased: it has a zero byte, which postgres cannot compare", e.N).
				WithHint("as the owner of the database: DELETE FROM footplate.entries WHERE cluster = '%s' AND n = %d; it is delivered again, erased", a.cluster, e.N)
		}
	}
	return a.explain("erase in", err)
}

// Erased returns how many fields of an entry are erased in the database. The
// error has fleet.CodeNotFound when the entry is not there.
func (a *Archive) Erased(ctx context.Context, n fleet.EntryNo) (fields int, err error) {
	pool, err := a.ready(ctx)
	if err != nil {
		return 0, err
	}
	err = pool.QueryRow(ctx, "SELECT cardinality(erased) FROM footplate.entries WHERE cluster = $1 AND n = $2", a.cluster, int64(n)).Scan(&fields)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, fleet.NotFoundf("entry %d is not in the audit archive in postgres", n)
	}
	if err != nil {
		return 0, a.explain("read", err)
	}
	return fields, nil
}
