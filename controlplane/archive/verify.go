package archive

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"footplate/fleet"
)

// Wrong says what is wrong with an audit log.
type Wrong string

// What can be wrong.
const (
	BadJSON   Wrong = "bad JSON"  // a line cannot be read, or says more than it may
	Edited    Wrong = "edited"    // the hash does not fit the content
	Missing   Wrong = "missing"   // a number is left out
	Inserted  Wrong = "inserted"  // a number stands there twice, or one too many
	Reordered Wrong = "reordered" // a number comes after a higher one
	Swapped   Wrong = "swapped"   // another entry stands in the place of one
	Truncated Wrong = "truncated" // the end is missing
	Rewritten Wrong = "rewritten" // the chain holds, and is not the one that was anchored
)

// Fault is the first thing that is wrong with an audit log. As a fleet.Error
// it has fleet.CodeConflict.
type Fault struct {
	Wrong Wrong
	N     fleet.EntryNo // the first bad entry; 0 when it is the header or the trailer
	Line  int           // of an export; 0 otherwise
	Text  string
}

func (f *Fault) Error() string { return f.Unwrap().Error() }

// Unwrap returns the fault as a person sees it.
func (f *Fault) Unwrap() error {
	where := ""
	if f.Line > 0 {
		where = fmt.Sprintf(" (line %d)", f.Line)
	}
	return fleet.Conflictf("audit log is not intact: %s: %s%s", f.Wrong, f.Text, where).
		WithHint("compare with another node: footplate audit export")
}

// Report says what was verified.
type Report struct {
	ClusterID string        `json:"cluster_id"`
	Count     int           `json:"count"`
	First     fleet.EntryNo `json:"first"`
	Last      fleet.EntryNo `json:"last"`
	Head      string        `json:"head"` // hash of Last
	// Selected: the export leaves out entries by intention, so that only those
	// are proven that are there.
	Selected bool `json:"selected,omitempty"`
	// Anchored is the highest anchor that was met: up to there the log is the
	// one that was anchored. After it, it is only consistent in itself.
	Anchored fleet.EntryNo `json:"anchored,omitempty"`
	// Beyond lists the anchors of entries that are not in the range verified.
	Beyond []Anchor `json:"beyond,omitempty"`
}

// chain checks entries one after the other.
type chain struct {
	selected bool
	next     fleet.EntryNo // the number that comes next; 0 when any may
	anchors  []Anchor
	report   Report
}

// check takes the next entry and says what is wrong with it. again reports
// whether a number turns up further on; it is asked at the first fault only.
func (c *chain) check(e *fleet.Entry, again func(fleet.EntryNo) bool) *Fault {
	fault := func(w Wrong, n fleet.EntryNo, format string, args ...any) *Fault {
		return &Fault{Wrong: w, N: n, Text: fmt.Sprintf(format, args...)}
	}
	want := c.next
	if want == 0 {
		want = e.N
	}
	if c.selected {
		want = max(want, e.N)
	}
	if why := e.Unsound(); why != "" {
		if e.N != want && again(want) {
			return fault(Inserted, e.N, "entry %d stands before entry %d, and %s", e.N, want, why)
		}
		return fault(Edited, e.N, "entry %d: %s", e.N, why)
	}
	switch {
	case e.N == 0:
		return fault(Inserted, e.N, "an entry has the number 0")
	case e.N < want:
		return fault(Inserted, e.N, "entry %d stands after entry %d", e.N, c.report.Last)
	case e.N > want && again(want):
		return fault(Reordered, want, "entry %d comes after entry %d", want, e.N)
	case e.N > want && e.N-1 > want:
		return fault(Missing, want, "entries %d to %d are not there", want, e.N-1)
	case e.N > want:
		return fault(Missing, want, "entry %d is not there", want)
	case c.report.Count > 0 && e.N == c.report.Last+1 && e.Prev != c.report.Head:
		if again(e.N) {
			return fault(Inserted, e.N, "entry %d is there twice, and the first does not follow entry %d", e.N, e.N-1)
		}
		return fault(Swapped, e.N, "entry %d is intact and does not follow entry %d: it, or the one before it, is another than it was", e.N, e.N-1)
	}
	for _, a := range c.anchors {
		if a.N != e.N {
			continue
		}
		if a.Hash != e.Hash {
			return fault(Rewritten, e.N, "entry %d is not the one that was anchored: the log was written anew between entries %d and %d", e.N, c.report.Anchored+1, e.N)
		}
		c.report.Anchored = e.N
	}
	if c.report.Count == 0 {
		c.report.First = e.N
	}
	c.report.Count++
	c.report.Last, c.report.Head = e.N, e.Hash
	c.next = e.N + 1
	return nil
}

// end completes the report.
func (c *chain) end() Report {
	for _, a := range c.anchors {
		if c.report.Count == 0 || a.N < c.report.First || a.N > c.report.Last {
			c.report.Beyond = append(c.report.Beyond, a)
		}
	}
	return c.report
}

// VerifyChain verifies what is in the archive from the entry since on (all when
// 0), against the anchors too. The error is a *Fault when something is wrong,
// and has fleet.CodeUnavailable when entries have not yet come from the peers.
// The report tells of what is sound before a fault.
func (a *Archive) VerifyChain(ctx context.Context, since fleet.EntryNo, anchors ...Anchor) (Report, error) {
	if err := a.settle(ctx); err != nil {
		return Report{}, fmt.Errorf("verify audit archive: %w", err)
	}
	since = max(since, 1)
	last := a.Last()
	c := chain{next: since, anchors: anchors, report: Report{ClusterID: a.cluster}}
	if last < since {
		return c.end(), nil
	}
	if err := a.complete(since, last); err != nil {
		return c.report, err
	}
	if since > 1 { // the entry before it must be followed
		e, err := a.Get(ctx, since-1)
		if err != nil && fleet.CodeOf(err) != fleet.CodeNotFound {
			return c.report, err
		}
		if err == nil {
			c.report.Last, c.report.Head = since-1, e.Hash
		}
	}
	before := c.report
	var again block // what stands beside the lines, made anew from them
	for b, err := range a.db.blocks(ctx, since, last, Filter{}) {
		if b != nil && err != nil {
			return c.report, &Fault{Wrong: BadJSON, N: max(b.first, since), Text: fleet.AsError(err).Msg}
		}
		if err != nil {
			return c.report, err
		}
		again.reset()
		for i := range b.count() {
			n, line := b.first+fleet.EntryNo(i), b.line(i)
			e, why := decode(line)
			if why != "" {
				return c.report, &Fault{Wrong: BadJSON, N: n, Text: fmt.Sprintf("entry %d: %s", n, why)}
			}
			again.add(&e, line)
			if n < since {
				continue // an earlier part of the block that has since
			}
			if c.report.Count == 0 && before.Head != "" && e.N == since && e.Prev != before.Head && e.Unsound() == "" {
				return c.report, &Fault{Wrong: Swapped, N: e.N, Text: fmt.Sprintf("entry %d does not follow entry %d", e.N, since-1)}
			}
			if fault := c.check(&e, func(fleet.EntryNo) bool { return false }); fault != nil {
				return c.report, fault
			}
			if e.N != n {
				return c.report, &Fault{Wrong: Reordered, N: e.N, Text: fmt.Sprintf("entry %d stands in the place of entry %d", e.N, n)}
			}
		}
		if !again.same(b) {
			n := max(b.first, since)
			return c.report, &Fault{Wrong: Edited, N: n, Text: fmt.Sprintf("entries %d to %d: what queries select them by differs from them", b.first, b.last)}
		}
	}
	if n, err := a.strange(ctx, last); err != nil {
		return c.report, err
	} else if n > 0 {
		return c.report, &Fault{Wrong: Inserted, N: n, Text: fmt.Sprintf("entry %d stands after entry %d, the last", n, last)}
	}
	if c.next <= last {
		return c.report, &Fault{Wrong: Truncated, N: c.next, Text: fmt.Sprintf("entries %d to %d are not there", c.next, last)}
	}
	return c.end(), nil
}

// strange returns the first number after last that is in the database and that
// no entry of the archive has, 0 when there is none.
func (a *Archive) strange(ctx context.Context, last fleet.EntryNo) (fleet.EntryNo, error) {
	var n sql.NullInt64
	if err := a.db.read.QueryRowContext(ctx, "SELECT max(first) FROM blocks WHERE first > ?", int64(last)).Scan(&n); err != nil {
		return 0, fmt.Errorf("read audit archive: %w", err)
	}
	// What was written meanwhile is known as soon as its writer is done with it.
	if err := a.settle(ctx); err != nil {
		return 0, fmt.Errorf("verify audit archive: %w", err)
	}
	if !n.Valid || fleet.EntryNo(n.Int64) <= a.Last() {
		return 0, nil
	}
	return fleet.EntryNo(n.Int64), nil
}

// maxLine bounds a line of an export.
const maxLine = 4 << 20

// Verify reads an export and verifies it, against the anchors too. The error is
// a *Fault when something is wrong with the export, any other when r cannot be
// read. The report tells of what is sound before a fault.
func Verify(r io.Reader, anchors ...Anchor) (Report, error) {
	in := lines{r: bufio.NewReaderSize(r, 64<<10)}
	c := chain{anchors: anchors}
	// at finishes a fault: a reader that failed has no say about the rest.
	at := func(f *Fault, line int) (Report, error) {
		if in.err != nil && !errors.Is(in.err, io.EOF) && !errors.Is(in.err, errLong) {
			return c.report, fmt.Errorf("read audit export: %w", in.err)
		}
		f.Line = line
		return c.report, f
	}

	first, ok := in.next()
	if !ok && in.n == 0 {
		return at(&Fault{Wrong: Truncated, Text: "the export is empty"}, 0)
	}
	var h header
	if why := strict(first, &h); why != "" {
		if in.cut {
			return at(&Fault{Wrong: Truncated, Text: "the export ends in its header"}, 1)
		}
		return at(&Fault{Wrong: BadJSON, Text: "the header " + why}, 1)
	}
	if h.Format != exportFormat {
		return at(&Fault{Wrong: BadJSON, Text: fmt.Sprintf("the header names the format %q; this version reads %q", h.Format, exportFormat)}, 1)
	}
	if (h.From == 0) != (h.To == 0) || h.From > h.To {
		return at(&Fault{Wrong: Edited, Text: fmt.Sprintf("the header names entries %d to %d", h.From, h.To)}, 1)
	}
	c.selected, c.next = h.Only != nil, h.From
	c.report.ClusterID, c.report.Selected = h.ClusterID, c.selected
	sum := sha256.New()
	sum.Write(first)
	sum.Write([]byte{'\n'})

	// again looks for a number in the rest of the export, which it uses up.
	again := func(n fleet.EntryNo) bool {
		found := false
		for {
			line, ok := in.next()
			if !ok {
				return found
			}
			found = found || bytes.HasPrefix(line, fmt.Appendf(nil, `{"n":%d,`, n))
		}
	}
	for {
		line, ok := in.next()
		at1 := in.n
		switch {
		case !ok && errors.Is(in.err, errLong):
			return at(&Fault{Wrong: BadJSON, N: c.next, Text: fmt.Sprintf("a line is longer than %d bytes", maxLine)}, at1)
		case !ok:
			return at(&Fault{Wrong: Truncated, N: c.next, Text: fmt.Sprintf("the export ends without a trailer, after entry %d", c.report.Last)}, at1)
		case bytes.HasPrefix(line, []byte(`{"count":`)):
			fault := c.close(h, line, hex.EncodeToString(sum.Sum(nil)))
			if fault == nil {
				if _, more := in.next(); more {
					return at(&Fault{Wrong: Inserted, N: c.next, Text: "something stands after the trailer"}, in.n)
				}
				if in.err != nil && !errors.Is(in.err, io.EOF) {
					return at(&Fault{Wrong: Inserted, N: c.next, Text: "something stands after the trailer"}, in.n)
				}
				return c.end(), nil
			}
			if fault.Wrong == BadJSON && in.cut {
				fault.Wrong, fault.N = Truncated, c.next
			}
			return at(fault, at1)
		}
		e, why := decode(line)
		if why != "" {
			if in.cut {
				return at(&Fault{Wrong: Truncated, N: c.next, Text: fmt.Sprintf("the export ends in the middle of a line, after entry %d", c.report.Last)}, at1)
			}
			return at(&Fault{Wrong: BadJSON, N: c.next, Text: fmt.Sprintf("the line after entry %d: %s", c.report.Last, why)}, at1)
		}
		if h.To == 0 || e.N > h.To && (c.selected || c.next > h.To) {
			return at(&Fault{Wrong: Inserted, N: e.N, Text: fmt.Sprintf("entry %d lies beyond the header's last, %d", e.N, h.To)}, at1)
		}
		sum.Write(line)
		sum.Write([]byte{'\n'})
		if fault := c.check(&e, again); fault != nil {
			return at(fault, at1)
		}
	}
}

// close checks the trailer.
func (c *chain) close(h header, line []byte, sum string) *Fault {
	var t trailer
	if why := strict(line, &t); why != "" {
		return &Fault{Wrong: BadJSON, Text: "the trailer " + why}
	}
	r := c.report
	switch {
	case !c.selected && h.To != 0 && c.next <= h.To:
		return &Fault{Wrong: Truncated, N: c.next, Text: fmt.Sprintf("entries %d to %d are not there", c.next, h.To)}
	case t.Count > r.Count && t.Last > r.Last:
		return &Fault{Wrong: Truncated, N: c.next, Text: fmt.Sprintf("the trailer counts %d entries, and %d are there", t.Count, r.Count)}
	case t.Count > r.Count:
		return &Fault{Wrong: Missing, Text: fmt.Sprintf("the trailer counts %d entries, and %d are there", t.Count, r.Count)}
	case t.Count < r.Count:
		return &Fault{Wrong: Inserted, Text: fmt.Sprintf("the trailer counts %d entries, and %d are there", t.Count, r.Count)}
	case t.First != r.First || t.Last != r.Last || t.Head != r.Head:
		return &Fault{Wrong: Edited, Text: fmt.Sprintf("the trailer names entries %d to %d, and %d to %d are there, or another last hash", t.First, t.Last, r.First, r.Last)}
	case t.SHA256 != sum:
		return &Fault{Wrong: Edited, Text: "the sum of all lines is not the trailer's: the header or the selection was changed"}
	}
	return nil
}

// strict decodes a line that has exactly the form that its type is written in.
func strict[T any](line []byte, v *T) string {
	if err := json.Unmarshal(line, v); err != nil {
		return "cannot be read: " + err.Error()
	}
	again, err := json.Marshal(v)
	if err != nil || !bytes.Equal(again, line) {
		return "is not written as footplate writes it"
	}
	return ""
}

// lines reads lines of at most maxLine bytes.
type lines struct {
	r   *bufio.Reader
	n   int   // of the line that next returned
	cut bool  // that line has no newline: it is the last
	err error // what ended the reading
	buf []byte
}

var errLong = errors.New("line too long")

// next returns the next line without its newline; it is valid until the call
// after. It reports false when there is none.
func (l *lines) next() ([]byte, bool) {
	if l.err != nil {
		return nil, false
	}
	l.buf = l.buf[:0]
	for {
		part, err := l.r.ReadSlice('\n')
		l.buf = append(l.buf, part...)
		switch {
		case len(l.buf) > maxLine:
			l.n++
			l.err = errLong
			return nil, false
		case err == nil:
			l.n++
			return l.buf[:len(l.buf)-1], true
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		}
		l.err = err
		if len(l.buf) == 0 || !errors.Is(err, io.EOF) {
			return nil, false
		}
		l.n++
		l.cut = true
		return l.buf, true
	}
}
