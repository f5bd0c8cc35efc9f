package archive

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/klauspost/compress/s2"

	"footplate/fleet"
)

// Entries are kept in blocks of neighbours, compressed together: their lines
// are alike, so a block is a fraction of them, and the database has one row to
// write where it had hundreds. S2 and not a stronger codec, because the writer
// shares its processor with Raft: it costs a quarter of what Zstandard does, and
// the bulk of what remains are hashes, salts and keys, which nothing compresses.
const (
	// maxBlock and maxRaw bound a block: the entries, and the bytes of their
	// lines unless it holds only one.
	maxBlock = 256
	maxRaw   = 256 << 10
)

// block is a run of entries without a gap, as the database keeps it. The values
// beside raw tell what a query need not read.
type block struct {
	first, last     fleet.EntryNo
	atFirst, atLast fleet.Time
	by              set
	op              set
	outcome         set
	incident        set
	prev            string // of the first
	hash            string // of the last

	raw  []byte // the lines of the entries, each with its newline
	ends []int  // where each ends in raw, behind the newline
}

// set is some distinct values in the order in which they came, each between
// newlines, so that a value is found by looking for it with its newlines. A
// newline inside a value counts as a blank: a block may be read in vain, and is
// never left out in error.
type set struct {
	list []byte
	last string
	seen map[string]struct{}
}

var oneLine = strings.NewReplacer("\n", " ")

func (s *set) add(v string) {
	if v == "" || v == s.last {
		return
	}
	s.last = v
	if _, ok := s.seen[v]; ok {
		return
	}
	if s.seen == nil {
		s.seen = make(map[string]struct{})
		for old := range strings.SplitSeq(strings.Trim(string(s.list), "\n"), "\n") {
			s.seen[old] = struct{}{}
		}
	}
	flat := oneLine.Replace(v)
	if _, ok := s.seen[flat]; !ok {
		if len(s.list) == 0 {
			s.list = append(s.list, '\n')
		}
		s.list = append(append(s.list, flat...), '\n')
		s.seen[flat] = struct{}{}
	}
}

func (s *set) reset() {
	s.list, s.last = s.list[:0], ""
	clear(s.seen)
}

func (b *block) count() int { return len(b.ends) }

// line returns the i-th line without its newline.
func (b *block) line(i int) []byte {
	start := 0
	if i > 0 {
		start = b.ends[i-1]
	}
	return b.raw[start : b.ends[i]-1]
}

// room reports whether another line of this length may be added.
func (b *block) room(length int) bool {
	return b.count() == 0 || b.count() < maxBlock && len(b.raw)+length < maxRaw
}

// add adds the next entry.
func (b *block) add(e *fleet.Entry, line []byte) {
	if b.count() == 0 {
		b.first, b.atFirst, b.prev = e.N, e.At, e.Prev
	}
	b.last, b.atLast, b.hash = e.N, e.At, e.Hash
	b.by.add(string(e.By))
	b.op.add(e.Op)
	b.outcome.add(string(e.Outcome))
	b.incident.add(e.Incident)
	b.raw = append(append(b.raw, line...), '\n')
	b.ends = append(b.ends, len(b.raw))
}

// precede puts the block older, which ends where b begins, before b.
func (b *block) precede(older *block) {
	if b.count() > 0 {
		shift := len(older.raw)
		older.raw = append(older.raw, b.raw...)
		for _, end := range b.ends {
			older.ends = append(older.ends, end+shift)
		}
		older.last, older.atLast, older.hash = b.last, b.atLast, b.hash
		for _, s := range []struct{ to, from *set }{
			{&older.by, &b.by}, {&older.op, &b.op}, {&older.outcome, &b.outcome}, {&older.incident, &b.incident},
		} {
			for v := range strings.SplitSeq(strings.Trim(string(s.from.list), "\n"), "\n") {
				s.to.add(v)
			}
		}
	}
	*b = *older
}

func (b *block) reset() {
	for _, s := range []*set{&b.by, &b.op, &b.outcome, &b.incident} {
		s.reset()
	}
	b.raw, b.ends = b.raw[:0], b.ends[:0]
}

// same reports whether what stands beside the lines is equal.
func (b *block) same(o *block) bool {
	return b.first == o.first && b.last == o.last && b.atFirst == o.atFirst && b.atLast == o.atLast &&
		b.prev == o.prev && b.hash == o.hash &&
		bytes.Equal(b.by.list, o.by.list) && bytes.Equal(b.op.list, o.op.list) &&
		bytes.Equal(b.outcome.list, o.outcome.list) && bytes.Equal(b.incident.list, o.incident.list)
}

// A run of hex digits is kept as a mark, the number of its bytes, and the bytes:
// the codec does not see that a digit is half a byte. No line has the byte that
// is the mark, because JSON escapes it; were it there, it would be a mark with
// no bytes.
const (
	mark   = 1
	minHex = 16
	maxHex = 2 * 255
)

// hexFields begin the fields whose values are hex, in their order in a line.
var hexFields = [...][]byte{[]byte(`"key":"`), []byte(`"salt":"`), []byte(`"prev":"`), []byte(`"hash":"`)}

// shorten appends line to dst with the values of the hexFields as bytes.
func shorten(dst, line []byte) []byte {
	for _, name := range hexFields {
		i := bytes.Index(line, name)
		if i < 0 {
			continue
		}
		i += len(name)
		dst, line = literal(dst, line[:i]), line[i:]
		start := len(dst)
		dst = append(dst, mark, 0)
		i = 0
		for i+1 < len(line) && i < maxHex && digit[line[i]] >= 0 && digit[line[i+1]] >= 0 {
			dst = append(dst, byte(digit[line[i]]<<4|digit[line[i+1]]))
			i += 2
		}
		if i < minHex {
			dst = dst[:start]
			continue
		}
		dst[start+1] = byte(i / 2)
		line = line[i:]
	}
	return literal(dst, line)
}

func literal(dst, b []byte) []byte {
	for {
		i := bytes.IndexByte(b, mark)
		if i < 0 {
			return append(dst, b...)
		}
		dst = append(append(dst, b[:i]...), mark, 0)
		b = b[i+1:]
	}
}

// digit is what a hex digit is worth, and -1 for all that is none.
var digit = func() (t [256]int16) {
	for c := range t {
		t[c] = int16(strings.IndexByte("0123456789abcdef", byte(c)))
	}
	return t
}()

// lengthen appends to dst what shorten was given.
func lengthen(dst, b []byte) ([]byte, error) {
	for {
		i := bytes.IndexByte(b, mark)
		if i < 0 {
			return append(dst, b...), nil
		}
		dst = append(dst, b[:i]...)
		if i+1 >= len(b) || i+2+int(b[i+1]) > len(b) {
			return nil, errors.New("its last hex digits are cut off")
		}
		n := int(b[i+1])
		if n == 0 {
			dst = append(dst, mark)
		}
		dst = hex.AppendEncode(dst, b[i+2:i+2+n])
		b = b[i+2+n:]
	}
}

// packer holds what compressing and reading a block can use again.
type packer struct{ short, body []byte }

// pack returns the compressed lines of b, which are valid until the next call.
func (p *packer) pack(b *block) []byte {
	p.short = p.short[:0]
	for i := range b.count() {
		p.short = append(shorten(p.short, b.line(i)), '\n')
	}
	if n := s2.MaxEncodedLen(len(p.short)); cap(p.body) < n {
		p.body = make([]byte, n)
	}
	p.body = s2.Encode(p.body[:cap(p.body)], p.short)
	return p.body
}

// maxUnpacked bounds what a block may grow to when it is read: a damaged file
// must not take all memory.
const maxUnpacked = 64 << 20

// unpack reads what pack wrote into b, whose first and last must be set.
func (p *packer) unpack(b *block, body []byte) error {
	n, err := s2.DecodedLen(body)
	if err != nil {
		return err
	}
	if n > maxUnpacked {
		return fmt.Errorf("its size of %d bytes is impossible", n)
	}
	if cap(p.short) < n {
		p.short = make([]byte, n)
	}
	if p.short, err = s2.Decode(p.short[:cap(p.short)], body); err != nil {
		return err
	}
	if b.raw, err = lengthen(slices.Grow(b.raw[:0], 2*n), p.short); err != nil {
		return err
	}
	b.ends = b.ends[:0]
	for at := 0; at < len(b.raw); {
		i := bytes.IndexByte(b.raw[at:], '\n')
		if i < 0 {
			return errors.New("its last line has no end")
		}
		at += i + 1
		b.ends = append(b.ends, at)
	}
	if b.count() == 0 || b.last < b.first || uint64(b.count()-1) != uint64(b.last-b.first) {
		return fmt.Errorf("%d entries are in the place of entries %d to %d", b.count(), b.first, b.last)
	}
	return nil
}
