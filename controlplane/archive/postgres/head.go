package postgres

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"

	"footplate/controlplane/archive"
	"footplate/fleet"
)

// lookBack is how many entries Head looks at when it looks for the first time:
// Put leaves no gap, so one is somebody's doing, and Head must stay quick with
// years of entries. Missing and Verify look at all.
const lookBack = 100_000

// Head returns the newest entry up to which none of the last is missing, the
// zero Anchor when there is none: delivery goes on after it.
func (a *Archive) Head(ctx context.Context) (archive.Anchor, error) {
	pool, err := a.ready(ctx)
	if err != nil {
		return archive.Anchor{}, err
	}
	// What was whole when last looked at is not looked at again, as long as its
	// end is there.
	a.known.Lock()
	start := a.sound
	a.known.Unlock()
	if start.N > 0 {
		var there bool
		err := pool.QueryRow(ctx, "SELECT EXISTS (SELECT FROM footplate.entries WHERE cluster = $1 AND n = $2 AND hash = $3)", a.cluster, int64(start.N), start.Hash).Scan(&there)
		if err != nil {
			return archive.Anchor{}, a.explain("read", err)
		}
		if !there {
			start = archive.Anchor{}
		}
	}
	if start.N == 0 {
		if start, err = a.start(ctx, pool); err != nil {
			return archive.Anchor{}, err
		}
	}
	head, err := a.run(ctx, pool, start)
	if err != nil {
		return archive.Anchor{}, err
	}
	a.known.Lock()
	a.sound = head
	a.known.Unlock()
	return head, nil
}

// asker is a connection, the pool of them or a transaction.
type asker interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// run returns the last entry of those that follow start without a gap.
func (a *Archive) run(ctx context.Context, db asker, start archive.Anchor) (archive.Anchor, error) {
	var n int64
	var hash string
	err := db.QueryRow(ctx, `
		SELECT n, hash FROM footplate.entries WHERE cluster = $1 AND n = (
			SELECT max(n) FROM (
				SELECT n, n - row_number() OVER (ORDER BY n) AS run FROM (
					SELECT DISTINCT n FROM footplate.entries WHERE cluster = $1 AND n > $2
				) AS once
			) AS runs WHERE run = $2
		) ORDER BY at LIMIT 1`, a.cluster, int64(start.N)).Scan(&n, &hash)
	if errors.Is(err, pgx.ErrNoRows) {
		return start, nil
	}
	if err != nil {
		return archive.Anchor{}, a.explain("read", err)
	}
	return archive.Anchor{N: fleet.EntryNo(n), Hash: hash}, nil
}

// start returns where Head begins to look: the newest entry but lookBack, or
// what the retention left.
func (a *Archive) start(ctx context.Context, db asker) (archive.Anchor, error) {
	start, err := a.dropped(ctx, db)
	if err != nil {
		return archive.Anchor{}, err
	}
	var n int64
	var hash string
	err = db.QueryRow(ctx, `SELECT n, hash FROM footplate.entries WHERE cluster = $1 AND n <= $2 + (
			SELECT n FROM footplate.entries WHERE cluster = $1 ORDER BY n DESC LIMIT 1
		) ORDER BY n DESC LIMIT 1`, a.cluster, -int64(a.lookBack)).Scan(&n, &hash)
	switch {
	case errors.Is(err, pgx.ErrNoRows), err == nil && fleet.EntryNo(n) <= start.N:
		return start, nil
	case err != nil:
		return archive.Anchor{}, a.explain("read", err)
	}
	return archive.Anchor{N: fleet.EntryNo(n), Hash: hash}, nil
}

// dropped returns the newest entry that the retention took away, or the one that
// a history which began later goes on from.
func (a *Archive) dropped(ctx context.Context, db asker) (archive.Anchor, error) {
	var n int64
	var hash string
	err := db.QueryRow(ctx, "SELECT n, hash FROM footplate.dropped WHERE cluster = $1 ORDER BY n DESC LIMIT 1", a.cluster).Scan(&n, &hash)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && fleet.EntryNo(n) < a.after.N {
		return a.after, nil
	}
	if err != nil {
		return archive.Anchor{}, a.explain("read", err)
	}
	return archive.Anchor{N: fleet.EntryNo(n), Hash: hash}, nil
}

// Missing returns the oldest gap: the first and the last number that is not
// there although a later one is. Both are 0 when there is none.
func (a *Archive) Missing(ctx context.Context) (from, to fleet.EntryNo, err error) {
	pool, err := a.ready(ctx)
	if err != nil {
		return 0, 0, err
	}
	start, err := a.dropped(ctx, pool)
	if err != nil {
		return 0, 0, err
	}
	head, err := a.run(ctx, pool, start)
	if err != nil {
		return 0, 0, err
	}
	var next *int64
	err = pool.QueryRow(ctx, "SELECT min(n) FROM footplate.entries WHERE cluster = $1 AND n > $2", a.cluster, int64(head.N)).Scan(&next)
	if err != nil || next == nil {
		return 0, 0, a.explain("read", err)
	}
	return head.N + 1, fleet.EntryNo(*next) - 1, nil
}

// Read returns the entries from from to to that are there, in order, as they
// are: nothing is checked.
func (a *Archive) Read(ctx context.Context, from, to fleet.EntryNo) ([]fleet.Entry, error) {
	pool, err := a.ready(ctx)
	if err != nil {
		return nil, err
	}
	rows, err := pool.Query(ctx, "SELECT body FROM footplate.entries WHERE cluster = $1 AND n BETWEEN $2 AND $3 ORDER BY n, at", a.cluster, int64(from), int64(to))
	if err != nil {
		return nil, a.explain("read", err)
	}
	var entries []fleet.Entry
	var body string
	_, err = pgx.ForEachRow(rows, []any{&body}, func() error {
		e, why := archive.Decode([]byte(body))
		if why != "" {
			return fleet.Conflictf("an entry in postgres %s", why)
		}
		entries = append(entries, e)
		return nil
	})
	if err != nil {
		return nil, a.explain("read", err)
	}
	return entries, nil
}
