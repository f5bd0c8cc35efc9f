package archive

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
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
	Object   string // a name that stands in the arguments or the text, as a word: a host, a pool, a build ("build 12"), an org
	Text     string // part of the text, reason, arguments, operation or principal, in any case

	Limit  int  // DefaultLimit when zero
	Newest bool // from the newest backwards
}

// selective reports whether f leaves out entries between the first and the last.
func (f Filter) selective() bool {
	return f.By != "" || f.Op != "" || f.Outcome != "" || f.Incident != "" || f.Object != "" || f.Text != ""
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
		e, why := decode(row.line)
		if why != "" {
			return nil, damaged(fmt.Sprintf("entry %d", row.n), why)
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

func damaged(what, why string) *fleet.Error {
	return fleet.Internalf("%s in the audit archive: damaged: %s", what, why).WithHint("see footplate audit verify")
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

// holds reports whether f selects e, whose number and moment fit already.
func (f Filter) holds(e *fleet.Entry) bool {
	if f.By != "" && e.By != f.By || f.Outcome != "" && e.Outcome != f.Outcome || f.Incident != "" && e.Incident != f.Incident ||
		f.Op != "" && e.Op != f.Op && !strings.HasPrefix(e.Op, f.Op+" ") {
		return false
	}
	if f.Object != "" && !about(e, f.Object) {
		return false
	}
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

// about reports whether an entry names an object in its arguments or its text.
// Of "build 12" the number must be that of a build: other things have numbers
// too.
func about(e *fleet.Entry, object string) bool {
	if hasWord(e.Text, object) {
		return true
	}
	noun, name, ok := strings.Cut(object, " ")
	if !ok {
		return hasWord(string(e.Args), object)
	}
	var args map[string]json.RawMessage
	if json.Unmarshal(e.Args, &args) != nil {
		return false
	}
	return hasWord(string(args[noun]), name) || hasWord(string(args[noun+"s"]), name)
}

// hasWord reports whether word stands in s by itself: "linux" does not stand in
// "linux-4".
func hasWord(s, word string) bool {
	inName := func(c byte) bool {
		return c == '-' || c == '_' || c >= 0x80 || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
	}
	for at := 0; ; at++ {
		i := strings.Index(s[at:], word)
		if i < 0 {
			return false
		}
		at += i
		end := at + len(word)
		if (at == 0 || !inName(s[at-1])) && (end == len(s) || !inName(s[end])) {
			return true
		}
	}
}

// sieve tells most lines that a filter does not select without decoding them.
type sieve struct {
	parts [][]byte // each stands in the line of an entry that is selected
	text  []byte   // and this, in lower case; none when it could stand there escaped
	lower []byte   // the line in lower case
}

func (f Filter) sieve() *sieve {
	v := &sieve{}
	part := func(name, value, end string) {
		if value == "" {
			return
		}
		// As encode writes it.
		b, err := encode(&fleet.Entry{Via: value})
		if err != nil {
			return
		}
		_, b, _ = bytes.Cut(b, []byte(`"via":"`))
		b, _, _ = bytes.Cut(b, []byte(`","op":`))
		v.parts = append(v.parts, append(append([]byte(name), b...), end...))
	}
	part(`"by":"`, string(f.By), `"`)
	part(`"op":"`, f.Op, "") // and what begins so
	part(`"outcome":"`, string(f.Outcome), `"`)
	part(`"incident":"`, f.Incident, `"`)
	_, name, ok := strings.Cut(f.Object, " ")
	if !ok {
		name = f.Object
	}
	if !strings.ContainsFunc(name, func(r rune) bool { return r >= 0x80 || !plain[byte(r)] }) {
		part("", name, "") // what is plain may not stand there otherwise
	}
	for i := range len(f.Text) {
		if !plain[f.Text[i]] {
			return v
		}
	}
	v.text = []byte(strings.ToLower(f.Text))
	return v
}

// passes reports whether line must be decoded to know whether it is selected.
func (v *sieve) passes(line []byte) bool {
	for _, p := range v.parts {
		if !bytes.Contains(line, p) {
			return false
		}
	}
	if len(v.text) == 0 {
		return true
	}
	v.lower = v.lower[:0]
	for _, c := range line {
		if c >= 0x80 {
			return true // what is lower case there is not told byte by byte
		}
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		v.lower = append(v.lower, c)
	}
	return bytes.Contains(v.lower, v.text)
}

// row is an entry as the database has it. The bytes are valid until the next.
type row struct {
	n    fleet.EntryNo
	line []byte
}

// rows yields the entries of the range of f, but for most of those that the
// rest of f leaves out; holds tells which. The last pair has the error when
// there is one.
func (d *database) rows(ctx context.Context, f Filter) iter.Seq2[row, error] {
	return func(yield func(row, error) bool) {
		from, to, err := d.bounds(ctx, f)
		if err != nil {
			yield(row{}, fmt.Errorf("read audit archive: %w", err))
			return
		}
		v := f.sieve()
		for b, err := range d.blocks(ctx, from, to, f) {
			if err != nil {
				yield(row{}, err)
				return
			}
			first, last := int(max(from, b.first)-b.first), int(min(to, b.last)-b.first)
			for i := range last - first + 1 {
				at := first + i
				if f.Newest {
					at = last - i
				}
				r := row{b.first + fleet.EntryNo(at), b.line(at)}
				if v.passes(r.line) && !yield(r, nil) {
					return
				}
			}
		}
	}
}

// blocks yields the blocks that have numbers from from to to, but for those
// that have nothing that f selects. Each is valid until the next. The last pair
// has the error when there is one, and with it the bounds of a block that is
// damaged.
func (d *database) blocks(ctx context.Context, from, to fleet.EntryNo, f Filter) iter.Seq2[*block, error] {
	return func(yield func(*block, error) bool) {
		if from > to {
			return
		}
		fail := func(err error) { yield(nil, fmt.Errorf("read audit archive: %w", err)) }
		where := "first <= ?1 AND first >= coalesce((SELECT max(first) FROM blocks WHERE first <= ?2), 0) AND last >= ?2"
		args := []any{int64(to), int64(from)}
		in := func(column string, values ...string) {
			var any []string
			for _, v := range values {
				any = append(any, "instr("+column+", ?)")
				args = append(args, []byte("\n"+v))
			}
			where += " AND (" + strings.Join(any, " OR ") + ")"
		}
		if f.By != "" {
			in("by", oneLine.Replace(string(f.By))+"\n")
		}
		if f.Op != "" {
			op := oneLine.Replace(f.Op)
			in("op", op+"\n", op+" ")
		}
		if f.Outcome != "" {
			in("outcome", oneLine.Replace(string(f.Outcome))+"\n")
		}
		if f.Incident != "" {
			in("incident", oneLine.Replace(f.Incident)+"\n")
		}
		order := "first"
		if f.Newest {
			order = "first DESC"
		}
		rows, err := d.read.QueryContext(ctx, "SELECT "+columns+" FROM blocks WHERE "+where+" ORDER BY "+order, args...)
		if err != nil {
			fail(err)
			return
		}
		defer rows.Close()
		var b block
		var p packer
		var body sql.RawBytes
		for rows.Next() {
			if err := b.scan(rows, &body); err != nil {
				fail(err)
				return
			}
			if err := p.unpack(&b, body); err != nil {
				yield(&b, damaged(fmt.Sprintf("entries %d to %d", b.first, b.last), err.Error()))
				return
			}
			if !yield(&b, nil) {
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
	if err := d.read.QueryRowContext(ctx, "SELECT last FROM blocks ORDER BY first DESC LIMIT 1").Scan(&last); err != nil && !errors.Is(err, sql.ErrNoRows) {
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
	if from > to {
		return to + 1, nil
	}
	// The first block that ends not before t, by where blocks begin.
	var begin sql.NullInt64
	if err := d.read.QueryRowContext(ctx, "SELECT max(first) FROM blocks WHERE first <= ?", int64(from)).Scan(&begin); err != nil {
		return 0, err
	}
	lo, hi := fleet.EntryNo(begin.Int64), to+1
	for lo < hi {
		mid := lo + (hi-lo)/2
		var first, at int64
		err := d.read.QueryRowContext(ctx, "SELECT first, at_last FROM blocks WHERE first >= ? AND first < ? ORDER BY first LIMIT 1",
			int64(mid), int64(hi)).Scan(&first, &at)
		switch {
		case errors.Is(err, sql.ErrNoRows), err == nil && fleet.Time(at) >= t:
			hi = mid
		case err != nil:
			return 0, err
		default:
			lo = fleet.EntryNo(first) + 1
		}
	}
	for b, err := range d.blocks(ctx, max(lo, from), to, Filter{}) {
		if err != nil {
			return 0, err
		}
		for i := range b.count() {
			e, why := decode(b.line(i))
			if why != "" {
				return 0, damaged(fmt.Sprintf("entry %d", b.first+fleet.EntryNo(i)), why)
			}
			if n := b.first + fleet.EntryNo(i); e.At >= t && n >= from {
				return min(n, to+1), nil
			}
		}
	}
	return to + 1, nil
}
