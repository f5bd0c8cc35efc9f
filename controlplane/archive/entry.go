package archive

import (
	"bytes"
	"encoding/json"
	"strconv"

	"footplate/fleet"
)

// encode returns e as one line of JSON, without its newline. Nothing is escaped
// that need not be: the arguments are covered by the hash as they stand.
func encode(e *fleet.Entry) ([]byte, error) {
	at, err := e.At.MarshalJSON()
	if err != nil {
		return nil, err
	}
	return appendJSON(make([]byte, 0, 640+len(e.Args)+len(e.Text)+len(e.Reason)), e, at)
}

// encoder makes the lines of many entries in one buffer, which it uses again.
type encoder struct {
	buf  []byte
	list [][]byte
}

// maxKept is how large a buffer may be kept: not for ever that of the largest.
const maxKept = 4 << 20

// lines returns the lines of entries, which are valid until the next call. When
// one cannot be encoded, the number is its index.
func (c *encoder) lines(entries []fleet.Entry) (_ [][]byte, n int, err error) {
	if cap(c.buf) > maxKept {
		c.buf = nil
	}
	b := c.buf[:0]
	c.list = c.list[:0]
	var at []byte // of the entry before: those of one log entry have it in common
	for i := range entries {
		start := len(b)
		if i == 0 || entries[i].At != entries[i-1].At {
			at, err = entries[i].At.MarshalJSON()
		}
		if err == nil {
			b, err = appendJSON(b, &entries[i], at)
		}
		if err != nil {
			return nil, i, err
		}
		// When b moves, earlier lines stay valid where they were.
		c.list = append(c.list, b[start:len(b):len(b)])
	}
	c.buf = b
	return c.list, 0, nil
}

// appendJSON appends the line of e, whose moment is at in JSON.
func appendJSON(b []byte, e *fleet.Entry, at []byte) ([]byte, error) {
	if b, ok := appendEntry(b, e, at); ok {
		return b, nil
	}
	var w bytes.Buffer
	enc := json.NewEncoder(&w)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		return b, err
	}
	return append(b, bytes.TrimSuffix(w.Bytes(), []byte{'\n'})...), nil
}

// plain tells the bytes that stand in a JSON string as they are.
var plain = func() (t [256]bool) {
	for c := ' '; c < 0x7f; c++ {
		t[c] = c != '"' && c != '\\'
	}
	return t
}()

// appendEntry writes what package encoding/json would, at a fraction of the
// cost, when e is as nearly all entries are: ASCII, nothing erased, nobody else's
// approval. False means that e is something else, and b is as it was.
func appendEntry(b []byte, e *fleet.Entry, at []byte) ([]byte, bool) {
	if len(e.Erased) > 0 || len(e.Salts) > 0 || len(e.ApprovedBy) > 0 || e.Count < 0 || !isCompact(e.Args) {
		return b, false
	}
	start, ascii := b, true
	text := func(name, s string, always bool) {
		if s == "" && !always {
			return
		}
		b = append(b, name...)
		for s != "" {
			i := 0
			for i < len(s) && plain[s[i]] {
				i++
			}
			b = append(b, s[:i]...)
			if i == len(s) {
				break
			}
			if c := s[i]; c == '"' || c == '\\' {
				b = append(b, '\\', c)
			} else {
				ascii = false
			}
			s = s[i+1:]
		}
		b = append(b, '"')
	}
	number := func(name string, n uint64) {
		b = append(b, name...)
		b = strconv.AppendUint(b, n, 10)
	}
	number(`{"n":`, uint64(e.N))
	number(`,"index":`, e.Index)
	b = append(append(b, `,"at":`...), at...)
	text(`,"by":"`, string(e.By), true)
	text(`,"role":"`, string(e.Role), true)
	text(`,"via":"`, e.Via, true)
	text(`,"op":"`, e.Op, true)
	text(`,"key":"`, e.Key, false)
	if len(e.Args) > 0 {
		b = append(append(b, `,"args":`...), e.Args...)
	}
	text(`,"reason":"`, e.Reason, false)
	text(`,"incident":"`, e.Incident, false)
	text(`,"plan":"`, e.Plan, false)
	text(`,"outcome":"`, string(e.Outcome), true)
	text(`,"code":"`, string(e.Code), false)
	text(`,"text":"`, e.Text, true)
	if e.Count > 0 {
		number(`,"count":`, uint64(e.Count))
	}
	text(`,"salt":"`, e.Salt, false)
	text(`,"prev":"`, e.Prev, true)
	text(`,"hash":"`, e.Hash, true)
	if !ascii {
		return start, false
	}
	return append(b, '}'), true
}

// isCompact reports whether args are JSON that package encoding/json certainly
// writes as they stand.
func isCompact(args json.RawMessage) bool {
	quoted := false
	for i := 0; i < len(args); i++ {
		switch c := args[i]; {
		case plain[c]:
			if c == ' ' && !quoted {
				return false
			}
		case c == '"':
			quoted = !quoted
		case c == '\\':
			i++ // no quote, or not JSON
		default:
			return false
		}
	}
	return len(args) == 0 || json.Valid(args)
}

// decode reads a line that encode wrote, and says what is wrong with any other:
// one entry has one form, so that nothing can be hidden in a field that is
// unknown or stands twice.
func decode(line []byte) (e fleet.Entry, wrong string) {
	if err := json.Unmarshal(line, &e); err != nil {
		return e, "it is not the JSON of an entry: " + err.Error()
	}
	again, err := encode(&e)
	if err != nil || !bytes.Equal(line, again) {
		return e, "it is not the JSON of an entry as footplate writes it"
	}
	return e, ""
}
