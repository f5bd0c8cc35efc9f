package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"footplate/controlplane/archive"
	"footplate/fleet"
)

// Verify verifies what is in the database from the entry since on (all that the
// retention has left when 0), against the anchors too. Each anchor must be met:
// an entry beyond the last one there counts as cut off, so give only anchors of
// what was delivered. The error is an *archive.Fault when something is wrong,
// and names the first bad entry. The report tells of what is sound before it.
func (a *Archive) Verify(ctx context.Context, since fleet.EntryNo, anchors ...archive.Anchor) (archive.Report, error) {
	pool, err := a.ready(ctx)
	if err != nil {
		return archive.Report{}, err
	}
	// One view of the database for all: what is delivered meanwhile is not seen.
	tx, err := pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return archive.Report{}, a.explain("read", err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()

	before, err := a.dropped(ctx, tx)
	if err != nil {
		return archive.Report{}, err
	}
	if since > before.N+1 {
		before = archive.Anchor{N: since - 1}
		err := tx.QueryRow(ctx, "SELECT hash FROM footplate.entries WHERE cluster = $1 AND n = $2", a.cluster, int64(before.N)).Scan(&before.Hash)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return archive.Report{}, a.explain("read", err)
		}
	}
	c := archive.NewChain(a.cluster, before, anchors...)
	rows, err := tx.Query(ctx, "SELECT "+columnNames()+" FROM footplate.entries WHERE cluster = $1 AND n > $2 ORDER BY n, at", a.cluster, int64(before.N))
	if err != nil {
		return archive.Report{}, a.explain("read", err)
	}
	defer rows.Close()
	var got, want row
	gotColumns, wantColumns := got.columns(), want.columns()
	fields := make([]any, len(gotColumns))
	for i, c := range gotColumns {
		fields[i] = c.field
	}
	again := func(no fleet.EntryNo) bool {
		rows.Close() // a fault is certain: the rest is not needed
		var there bool
		err := tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM footplate.entries WHERE cluster = $1 AND (n, at) > ($2, $3) AND body LIKE $4)",
			a.cluster, got.n, got.at, fmt.Sprintf(`{"n":%d,%%`, no)).Scan(&there)
		return err == nil && there
	}
	for rows.Next() {
		if err := rows.Scan(fields...); err != nil {
			return c.Report(), a.explain("read", err)
		}
		n := fleet.EntryNo(got.n)
		e, why := archive.Decode([]byte(got.body))
		if why != "" {
			return c.Report(), &archive.Fault{Wrong: archive.BadJSON, N: n, Text: fmt.Sprintf("entry %d: %s", n, why)}
		}
		if fault := c.Check(&e, again); fault != nil {
			return c.Report(), fault
		}
		if err := want.set(a.cluster, &e); err != nil {
			return c.Report(), err
		}
		for i, col := range gotColumns {
			if !same(col.field, wantColumns[i].field) {
				return c.Report(), &archive.Fault{Wrong: archive.Edited, N: n, Text: fmt.Sprintf("entry %d: its column %s is not what it says", n, col.name)}
			}
		}
	}
	if err := rows.Err(); err != nil {
		return c.Report(), a.explain("read", err)
	}
	report := c.Report()
	for _, beyond := range report.Beyond {
		if last := max(report.Last, before.N); beyond.N > last {
			return report, &archive.Fault{Wrong: archive.Truncated, N: last + 1, Text: fmt.Sprintf("entry %d was anchored, and what is there ends at entry %d", beyond.N, last)}
		}
	}
	return report, nil
}

// same reports whether two fields of a row have the same value.
func same(a, b any) bool {
	switch a := a.(type) {
	case *string:
		return *a == *b.(*string)
	case *int64:
		return *a == *b.(*int64)
	case *time.Time:
		return a.Equal(*b.(*time.Time))
	}
	return slices.Equal(*a.(*[]string), *b.(*[]string))
}
