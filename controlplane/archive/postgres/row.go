package postgres

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"footplate/controlplane/archive"
	"footplate/fleet"
)

// row is a row of footplate.entries.
type row struct {
	cluster                           string
	n                                 int64
	at                                time.Time
	logIndex                          int64
	by                                string
	approvedBy                        []string
	role, via, op                     string
	objects                           []string
	key, args, reason, incident, plan string
	outcome, code, text               string
	count                             int64
	erased                            []string
	prev, hash, body                  string
}

// column is a column of footplate.entries: its name, its type, and the field of
// a row that it has (a *string, *int64, *time.Time or *[]string).
type column struct {
	name, kind string
	field      any
}

// columns returns all columns, with the fields of r.
func (r *row) columns() []column {
	const text, number, list = "text", "bigint", "text[]"
	return []column{
		{"cluster", text, &r.cluster}, {"n", number, &r.n}, {"at", "timestamp with time zone", &r.at}, {"log_index", number, &r.logIndex},
		{"by", text, &r.by}, {"approved_by", list, &r.approvedBy}, {"role", text, &r.role}, {"via", text, &r.via}, {"op", text, &r.op},
		{"objects", list, &r.objects}, {"key", text, &r.key}, {"args", text, &r.args}, {"reason", text, &r.reason},
		{"incident", text, &r.incident}, {"plan", text, &r.plan}, {"outcome", text, &r.outcome}, {"code", text, &r.code},
		{"text", text, &r.text}, {"count", number, &r.count}, {"erased", list, &r.erased},
		{"prev", text, &r.prev}, {"hash", text, &r.hash}, {"body", text, &r.body},
	}
}

// columnNames are the names of all columns.
func columnNames() string {
	var names []string
	for _, c := range new(row).columns() {
		names = append(names, c.name)
	}
	return strings.Join(names, ", ")
}

// set makes r the row of an entry.
func (r *row) set(cluster string, e *fleet.Entry) error {
	body, err := archive.Encode(e)
	if err != nil {
		return fleet.Internalf("entry %d cannot be encoded: %s", e.N, err)
	}
	*r = row{
		cluster: cluster, n: int64(e.N), at: e.At.Std(), logIndex: int64(e.Index),
		by: storable(string(e.By)), approvedBy: r.approvedBy[:0], role: storable(string(e.Role)), via: storable(e.Via), op: storable(e.Op),
		objects: objects(r.objects[:0], e.Args), key: storable(e.Key), args: storable(string(e.Args)), reason: storable(e.Reason),
		incident: storable(e.Incident), plan: storable(e.Plan), outcome: storable(string(e.Outcome)), code: storable(string(e.Code)),
		text: storable(e.Text), count: int64(e.Count), erased: r.erased[:0], prev: e.Prev, hash: e.Hash, body: string(body),
	}
	for _, p := range e.ApprovedBy {
		r.approvedBy = append(r.approvedBy, storable(string(p)))
	}
	for _, f := range [...]string{"by", "args", "reason", "text"} { // the order of the chain
		if _, ok := e.Erased[f]; ok {
			r.erased = append(r.erased, f)
		}
	}
	return nil
}

// storable returns s without what no text of PostgreSQL may have. The body has
// it, escaped.
func storable(s string) string {
	if strings.IndexByte(s, 0) >= 0 {
		s = strings.ReplaceAll(s, "\x00", "\uFFFD")
	}
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\uFFFD")
	}
	return s
}

// The binary form of COPY: a header, the rows, a trailer. Made here because it
// costs a third of what the driver takes for any table.
const (
	copyHeader  = "PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	copyTrailer = "\xff\xff"
	oidText     = 25
)

// y2k is where the timestamps of PostgreSQL begin.
var y2k = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// appendRow appends a row, of which these are the columns, in the binary form.
func appendRow(b []byte, columns []column) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(columns)))
	for _, c := range columns {
		switch v := c.field.(type) {
		case *string:
			b = appendText(b, *v)
		case *int64:
			b = binary.BigEndian.AppendUint32(b, 8)
			b = binary.BigEndian.AppendUint64(b, uint64(*v))
		case *time.Time:
			b = binary.BigEndian.AppendUint32(b, 8)
			b = binary.BigEndian.AppendUint64(b, uint64(v.UnixMicro()-y2k.UnixMicro()))
		case *[]string:
			at := len(b)
			b = append(b, 0, 0, 0, 0) // the length, known at the end
			dimensions := min(len(*v), 1)
			b = binary.BigEndian.AppendUint32(b, uint32(dimensions))
			b = binary.BigEndian.AppendUint32(b, 0) // no nulls
			b = binary.BigEndian.AppendUint32(b, oidText)
			if dimensions > 0 {
				b = binary.BigEndian.AppendUint32(b, uint32(len(*v)))
				b = binary.BigEndian.AppendUint32(b, 1) // the first index
			}
			for _, s := range *v {
				b = appendText(b, s)
			}
			binary.BigEndian.PutUint32(b[at:], uint32(len(b)-at-4))
		default:
			panic("postgres: column " + c.name + " has a field of another type")
		}
	}
	return b
}

func appendText(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

// objects appends what the arguments of an operation name, as noun/name, sorted.
func objects(found []string, args json.RawMessage) []string {
	if len(args) > 2 && json.Valid(args) {
		w := walk{rest: args, found: found}
		w.value("", false)
		found = w.found
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// maxObject bounds the name of an object, in bytes: the index takes no more
// than 2700, and refuses the whole entry.
const maxObject = 500

// object returns the name of an object.
func object(noun, name string) string {
	s := noun + "/" + name
	if len(s) > maxObject {
		s = s[:maxObject]
	}
	return storable(s)
}

// Verify holds what is stored to what these rules make of the body. Whoever
// changes them makes old entries look edited: that takes a migration which brings
// the column objects up to date.

// nounOf returns the noun that key is, or is the plural of: what the arguments
// of operations call what they are about.
func nounOf(key string) (noun string, plural bool) {
	noun = key
	switch {
	case strings.HasSuffix(key, "ies"):
		noun = key[:len(key)-3] + "y"
	case strings.HasSuffix(key, "ches"):
		noun = key[:len(key)-2]
	case strings.HasSuffix(key, "s"):
		noun = key[:len(key)-1]
	}
	switch noun {
	case "agent", "alert", "attempt", "build", "entry", "host", "node", "org", "pool", "principal", "provider", "role",
		"runbook", "schedule", "switch", "task", "throttle", "token", "user":
		return noun, noun != key
	}
	return "", false
}

// walk goes through JSON, which is valid, and keeps what is named.
type walk struct {
	rest  []byte
	found []string
}

// next skips to the next token and returns its first byte.
func (w *walk) next() byte {
	for w.rest[0] <= ' ' || w.rest[0] == ',' || w.rest[0] == ':' {
		w.rest = w.rest[1:]
	}
	return w.rest[0]
}

// value takes a value, which names a noun ("" for none). With plural, a number
// is a count and names nothing.
func (w *walk) value(noun string, plural bool) {
	switch w.next() {
	case '{':
		w.rest = w.rest[1:]
		for w.next() != '}' {
			key := w.text()
			of, many := nounOf(key)
			if key == "id" { // {"attempts": [{"id": "4711.1"}]}
				of = noun
			}
			w.value(of, many)
		}
		w.rest = w.rest[1:]
	case '[':
		w.rest = w.rest[1:]
		for w.next() != ']' {
			w.value(noun, false)
		}
		w.rest = w.rest[1:]
	case '"':
		if s := w.text(); s != "" && noun != "" {
			w.found = append(w.found, object(noun, s))
		}
	default:
		end := bytes.IndexAny(w.rest, ",]} \t\r\n")
		if end < 0 {
			end = len(w.rest)
		}
		if c := w.rest[0]; noun != "" && !plural && (c == '-' || c >= '0' && c <= '9') {
			w.found = append(w.found, object(noun, string(w.rest[:end])))
		}
		w.rest = w.rest[end:]
	}
}

// text takes a string.
func (w *walk) text() string {
	end, escaped := 1, false
	for ; w.rest[end] != '"'; end++ {
		if w.rest[end] == '\\' {
			end++
			escaped = true
		}
	}
	raw := w.rest[:end+1]
	w.rest = w.rest[end+1:]
	if !escaped {
		return string(raw[1:end])
	}
	var s string
	_ = json.Unmarshal(raw, &s) // valid: it is part of what is
	return s
}

// month returns the first moment of the month of at.
func month(at fleet.Time) time.Time {
	t := at.Std()
	return time.Date(t.Year(), t.Month(), 1, 0, 0, 0, 0, time.UTC)
}
