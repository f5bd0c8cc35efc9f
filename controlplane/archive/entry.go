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
	if b, ok := appendEntry(e); ok {
		return b, nil
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte{'\n'}), nil
}

// appendEntry writes what package encoding/json would, at a fraction of the
// cost, when e is as nearly all entries are: ASCII, nothing erased, nobody else's
// approval. False means that e is something else.
func appendEntry(e *fleet.Entry) ([]byte, bool) {
	if len(e.Erased) > 0 || len(e.Salts) > 0 || len(e.ApprovedBy) > 0 || e.Count < 0 || !isCompact(e.Args) {
		return nil, false
	}
	at, err := json.Marshal(e.At)
	if err != nil {
		return nil, false
	}
	b := make([]byte, 0, 512+len(e.Args)+len(e.Text)+len(e.Reason))
	plain := true
	text := func(name, s string, always bool) {
		if s == "" && !always {
			return
		}
		b = append(b, name...)
		for i := range len(s) {
			switch c := s[i]; {
			case c < ' ' || c >= 0x7f:
				plain = false
			case c == '"' || c == '\\':
				b = append(b, '\\', c)
			default:
				b = append(b, c)
			}
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
	return append(b, '}'), plain
}

// isCompact reports whether args are JSON that package encoding/json certainly
// writes as they stand.
func isCompact(args json.RawMessage) bool {
	for _, c := range args {
		if c <= ' ' || c >= 0x7f {
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
