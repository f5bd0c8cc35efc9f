package state

import (
	"encoding/json"
	"strconv"
	"strings"
)

// Nearly every command in the log is plain: ASCII without anything to escape,
// no refusal, nobody else's approval. Such a line is written and read here,
// byte for byte as package encoding/json would, at a fraction of the cost, which
// every follower has for every command. All else is left to that package.

// isPlain reports whether s stands for itself in a JSON string.
func isPlain[S ~string | ~[]byte](s S) bool {
	for i := range len(s) {
		if !plain(s[i]) {
			return false
		}
	}
	return true
}

func plain(c byte) bool {
	return c >= ' ' && c < 0x7f && c != '"' && c != '\\' && c != '<' && c != '>' && c != '&'
}

// isCompact reports whether package encoding/json would write raw, if it is
// valid, as it stands.
func isCompact(raw json.RawMessage) bool {
	quoted, escaped := false, false
	for _, c := range raw {
		switch {
		case escaped:
			escaped = false
		case c == '"':
			quoted = !quoted
			continue
		case c == '\\':
			escaped = true
			continue
		case c == ' ' && !quoted:
			return false
		}
		if !plain(c) && c != '"' && c != '\\' {
			return false
		}
	}
	return true
}

// appendCommand writes a plain command; false means that c is not plain.
func appendCommand(c *Command) ([]byte, bool) {
	if c.Refusal != nil || len(c.ApprovedBy) > 0 || c.Ver < 0 || !isCompact(c.Args) || len(c.Args) > 0 && !json.Valid(c.Args) {
		return nil, false
	}
	size := 128 + len(c.Args)
	for _, s := range [...]string{c.Key, c.Op, string(c.By), string(c.Role), c.Via, c.Reason, c.Incident, c.Plan, c.Salt, string(c.Repeat)} {
		if !isPlain(s) {
			return nil, false
		}
		size += len(s) + len(`"incident":"",`)
	}
	for i := range c.Saw {
		if !isPlain(c.Saw[i].Table) || !isPlain(c.Saw[i].Key) {
			return nil, false
		}
		size += 64 + len(c.Saw[i].Table) + len(c.Saw[i].Key)
	}
	b := make([]byte, 0, size)
	text := func(name, s string) {
		b = append(b, name...)
		b = append(b, s...)
		b = append(b, '"')
	}
	some := func(name, s string) {
		if s != "" {
			text(name, s)
		}
	}
	text(`{"id":"`, c.Key)
	text(`,"op":"`, c.Op)
	b = append(b, `,"ov":`...)
	b = strconv.AppendInt(b, int64(c.Ver), 10)
	text(`,"by":"`, string(c.By))
	text(`,"role":"`, string(c.Role))
	text(`,"via":"`, c.Via)
	some(`,"reason":"`, c.Reason)
	some(`,"incident":"`, c.Incident)
	some(`,"plan":"`, c.Plan)
	some(`,"salt":"`, c.Salt)
	some(`,"repeat":"`, string(c.Repeat))
	if c.Term != 0 {
		b = append(b, `,"term":`...)
		b = strconv.AppendUint(b, c.Term, 10)
	}
	for i := range c.Saw {
		if i == 0 {
			b = append(b, `,"saw":[`...)
		} else {
			b = append(b, ',')
		}
		text(`{"t":"`, c.Saw[i].Table)
		text(`,"k":"`, c.Saw[i].Key)
		b = append(b, `,"v":`...)
		b = strconv.AppendUint(b, c.Saw[i].Version, 10)
		b = append(b, '}')
	}
	if len(c.Saw) > 0 {
		b = append(b, ']')
	}
	if len(c.Args) > 0 {
		b = append(b, `,"args":`...)
		b = append(b, c.Args...)
	}
	return append(b, '}'), true
}

// readCommand reads what appendCommand has written. False means that line is
// something else, and that c is in no good state.
func readCommand(line []byte, c *Command) bool {
	// One string holds all the texts of the command.
	r := lineReader{rest: string(line)}
	r.text(`{"id":"`, &c.Key)
	r.text(`,"op":"`, &c.Op)
	c.Ver = int(r.number(`,"ov":`))
	r.text(`,"by":"`, (*string)(&c.By))
	r.text(`,"role":"`, (*string)(&c.Role))
	r.text(`,"via":"`, &c.Via)
	r.some(`,"reason":"`, &c.Reason)
	r.some(`,"incident":"`, &c.Incident)
	r.some(`,"plan":"`, &c.Plan)
	r.some(`,"salt":"`, &c.Salt)
	r.some(`,"repeat":"`, (*string)(&c.Repeat))
	if r.has(`,"term":`) {
		c.Term = r.number(`,"term":`)
	}
	if r.skip(`,"saw":[`) {
		for more := true; more && !r.wrong; more = r.skip(`,`) {
			var s Seen
			r.text(`{"t":"`, &s.Table)
			r.text(`,"k":"`, &s.Key)
			s.Version = r.number(`,"v":`)
			r.need(`}`)
			c.Saw = append(c.Saw, s)
		}
		r.need(`]`)
	}
	if r.skip(`,"args":`) {
		args := strings.TrimSuffix(r.rest, "}")
		if len(args) == len(r.rest) {
			return false
		}
		c.Args = json.RawMessage(args)
		return !r.wrong && isCompact(c.Args) && json.Valid(c.Args)
	}
	return !r.wrong && r.rest == "}"
}

// lineReader reads a line from its beginning; wrong, once set, stays.
type lineReader struct {
	rest  string
	wrong bool
}

func (r *lineReader) has(s string) bool { return strings.HasPrefix(r.rest, s) }

func (r *lineReader) skip(s string) bool {
	after, ok := strings.CutPrefix(r.rest, s)
	r.rest = after
	return ok
}

func (r *lineReader) need(s string) { r.wrong = !r.skip(s) || r.wrong }

// text reads name, which ends with a quote, and the text up to the next one.
func (r *lineReader) text(name string, into *string) {
	r.need(name)
	end := strings.IndexByte(r.rest, '"')
	if end < 0 || !isPlain(r.rest[:end]) {
		r.wrong = true
		return
	}
	*into, r.rest = r.rest[:end], r.rest[end+1:]
}

// some reads a text that is left out when it is empty.
func (r *lineReader) some(name string, into *string) {
	if r.has(name) {
		r.text(name, into)
	}
}

// number reads name and a whole number as strconv writes it. Numbers of more
// digits than any counter here will have are not plain.
func (r *lineReader) number(name string) uint64 {
	const most = 18
	r.need(name)
	n, i := uint64(0), 0
	for i < len(r.rest) && i <= most && r.rest[i] >= '0' && r.rest[i] <= '9' {
		n = n*10 + uint64(r.rest[i]-'0')
		i++
	}
	r.wrong = r.wrong || i == 0 || i > most || i > 1 && r.rest[0] == '0'
	r.rest = r.rest[i:]
	return n
}
