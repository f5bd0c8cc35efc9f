package archive

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"strings"

	"footplate/fleet"
)

// DefaultLimit is how many entries a query gives when it does not say.
const DefaultLimit = 1000

// Filter selects entries. What is zero selects all.
type Filter struct {
	From, To     fleet.EntryNo // numbers, both included
	Since, Until fleet.Time    // Since included, Until not

	By       fleet.Principal
	Op       string // an operation, or a noun for all of its operations
	Outcome  fleet.EntryOutcome
	Incident string
	Text     string // part of the text, reason, arguments, operation or principal, in any case

	Limit  int  // DefaultLimit when zero
	Newest bool // from the newest backwards
}

// selective reports whether f leaves out entries between the first and the last.
func (f Filter) selective() bool {
	return f.By != "" || f.Op != "" || f.Outcome != "" || f.Incident != "" || f.Text != ""
}

// Query returns the entries that f selects, in the order of their numbers, or
// backwards with Newest. What was appended before the call is among them. Gaps
// that Missing tells of are left out.
func (a *Archive) Query(ctx context.Context, f Filter) ([]fleet.Entry, error) {
	if f.Limit < 0 {
		return nil, fleet.Invalidf("limit %d is negative", f.Limit)
	}
	if f.Limit == 0 {
		f.Limit = DefaultLimit
	}
	if err := a.settle(ctx); err != nil {
		return nil, fmt.Errorf("query audit archive: %w", err)
	}
	var entries []fleet.Entry
	for row, err := range a.db.rows(ctx, f) {
		if err != nil {
			return nil, err
		}
		e, why := decode(row.body)
		if why != "" {
			return nil, fleet.Internalf("entry %d in the audit archive is damaged: %s", row.n, why).
				WithHint("see footplate audit verify")
		}
		if !f.holds(&e) {
			continue
		}
		entries = append(entries, e)
		if len(entries) == f.Limit {
			break
		}
	}
	return entries, nil
}

// Get returns one entry.
func (a *Archive) Get(ctx context.Context, n fleet.EntryNo) (fleet.Entry, error) {
	entries, err := a.Query(ctx, Filter{From: n, To: n})
	switch {
	case err != nil:
		return fleet.Entry{}, err
	case n == 0 || len(entries) == 0:
		return fleet.Entry{}, fleet.NotFoundf("entry %d is not in the audit archive", n).
			WithHint("the newest is %d", a.Last())
	}
	return entries[0], nil
}

// holds reports whether f.Text is in e. The rest of f is the database's.
func (f Filter) holds(e *fleet.Entry) bool {
	if f.Text == "" {
		return true
	}
	want := strings.ToLower(f.Text)
	for _, s := range []string{e.Text, e.Reason, string(e.Args), e.Op, string(e.By)} {
		if strings.Contains(strings.ToLower(s), want) {
			return true
		}
	}
	return false
}

// row is an entry as the database has it. The bytes are valid until the next.
type row struct {
	n        fleet.EntryNo
	idx      uint64
	at       fleet.Time
	by       fleet.Principal
	op       string
	outcome  fleet.EntryOutcome
	incident string
	prev     string
	hash     string
	body     sql.RawBytes
}

// rows yields what f selects but for its Text and Limit. The last pair has the
// error when there is one.
func (d *database) rows(ctx context.Context, f Filter) iter.Seq2[*row, error] {
	return func(yield func(*row, error) bool) {
		fail := func(err error) { yield(nil, fmt.Errorf("read audit archive: %w", err)) }
		from, to, err := d.bounds(ctx, f)
		if err != nil {
			fail(err)
			return
		}
		if from > to {
			return
		}
		where, args := "n BETWEEN ? AND ?", []any{int64(from), int64(to)}
		and := func(cond string, values ...any) {
			where += " AND " + cond
			args = append(args, values...)
		}
		if f.Since != 0 {
			and("at >= ?", int64(f.Since))
		}
		if f.Until != 0 {
			and("at < ?", int64(f.Until))
		}
		if f.By != "" {
			and("by = ?", string(f.By))
		}
		if f.Op != "" {
			and("(op = ? OR (op >= ? AND op < ?))", f.Op, f.Op+" ", f.Op+"!") // "!" follows the space
		}
		if f.Outcome != "" {
			and("outcome = ?", string(f.Outcome))
		}
		if f.Incident != "" {
			and("incident = ? AND incident <> ''", f.Incident) // the second half lets the index serve
		}
		order := "n"
		if f.Newest {
			order = "n DESC"
		}
		rows, err := d.read.QueryContext(ctx, "SELECT n, idx, at, by, op, outcome, incident, prev, hash, body FROM entries WHERE "+
			where+" ORDER BY "+order, args...)
		if err != nil {
			fail(err)
			return
		}
		defer rows.Close()
		var r row
		for rows.Next() {
			if err := rows.Scan(&r.n, &r.idx, &r.at, &r.by, &r.op, &r.outcome, &r.incident, &r.prev, &r.hash, &r.body); err != nil {
				fail(err)
				return
			}
			if !yield(&r, nil) {
				return
			}
		}
		if err := rows.Err(); err != nil {
			fail(err)
		}
	}
}

// bounds turns the numbers and moments of f into numbers: from the first that
// may be selected to the last. from > to when none can be.
func (d *database) bounds(ctx context.Context, f Filter) (from, to fleet.EntryNo, err error) {
	var last sql.NullInt64
	if err := d.read.QueryRowContext(ctx, "SELECT max(n) FROM entries").Scan(&last); err != nil {
		return 0, 0, err
	}
	from, to = max(f.From, 1), fleet.EntryNo(last.Int64)
	if f.To != 0 {
		to = min(to, f.To)
	}
	if f.Since != 0 {
		if from, err = d.firstAt(ctx, f.Since, from, to); err != nil {
			return 0, 0, err
		}
	}
	if f.Until != 0 {
		end, err := d.firstAt(ctx, f.Until, from, to)
		if err != nil {
			return 0, 0, err
		}
		to = min(to, end-1)
	}
	return from, to, nil
}

// firstAt returns the first number from from to to whose entry is not before
// t, and to+1 when there is none. The state clock never goes back.
func (d *database) firstAt(ctx context.Context, t fleet.Time, from, to fleet.EntryNo) (fleet.EntryNo, error) {
	lo, hi := from, to+1
	for lo < hi {
		mid := lo + (hi-lo)/2
		var n, at int64
		err := d.read.QueryRowContext(ctx, "SELECT n, at FROM entries WHERE n >= ? AND n < ? ORDER BY n LIMIT 1", int64(mid), int64(hi)).Scan(&n, &at)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			hi = mid
		case err != nil:
			return 0, err
		case fleet.Time(at) >= t:
			hi = mid
		default:
			lo = fleet.EntryNo(n) + 1
		}
	}
	return lo, nil
}
