package server

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// brokenText reports whether a text in JSON is none: it has bytes that are not
// UTF-8, or half of a surrogate pair, written \ud800. Package encoding/json takes
// both and puts U+FFFD in their place, and so the record would say what nobody
// said. where is the field that the first one is in, as "args.run[2]"; empty when
// it is in none.
func brokenText(b []byte) (where string, broken bool) {
	// Nearly all that comes has neither.
	if utf8.Valid(b) && !bytes.Contains(b, []byte(`\ud`)) && !bytes.Contains(b, []byte(`\uD`)) {
		return "", false
	}
	// What is open around the place that is looked at: an object with its newest
	// name, or a list with the number of the element.
	type level struct {
		list bool
		name string
		n    int
	}
	var open []level
	path := func() string {
		var p strings.Builder
		for _, l := range open {
			switch {
			case l.list:
				p.WriteString("[" + strconv.Itoa(l.n) + "]")
			case l.name != "":
				if p.Len() > 0 {
					p.WriteByte('.')
				}
				p.WriteString(l.name)
			}
		}
		return p.String()
	}
	isName := false // the next text is the name of a field
	for i := 0; i < len(b); {
		switch c := b[i]; c {
		case '{', '[':
			open = append(open, level{list: c == '['})
			isName = c == '{'
		case '}', ']':
			open = open[:max(0, len(open)-1)]
			isName = false
		case ',':
			isName = false
			if len(open) > 0 {
				top := &open[len(open)-1]
				isName = !top.list
				top.name = ""
				top.n++
			}
		case '"':
			text := b[i:textEnd(b, i)]
			i += len(text)
			if !utf8.Valid(text) || halfPair(text) {
				return path(), true
			}
			if isName && len(open) > 0 {
				_ = json.Unmarshal(text, &open[len(open)-1].name)
				isName = false
			}
			continue
		default:
			if c >= utf8.RuneSelf {
				if r, n := utf8.DecodeRune(b[i:]); r == utf8.RuneError && n == 1 {
					return path(), true
				}
			}
		}
		i++
	}
	return "", false
}

// textEnd returns where the text in quotes that begins at i ends.
func textEnd(b []byte, i int) int {
	for i++; i < len(b); i++ {
		switch b[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return len(b)
}

// halfPair reports whether a text has an escaped surrogate without its other
// half.
func halfPair(text []byte) bool {
	for i := 0; i < len(text); i++ {
		if text[i] != '\\' {
			continue
		}
		r := escaped(text[i:])
		switch {
		case !utf16.IsSurrogate(r):
			i++ // also what is escaped by it, which may be another backslash
		case utf16.DecodeRune(r, escaped(text[min(i+6, len(text)):])) == utf8.RuneError:
			return true
		default:
			i += 11
		}
	}
	return false
}

// escaped returns the character that text begins with when it is written as \u and
// four digits, 0 for anything else.
func escaped(text []byte) rune {
	if len(text) < 6 || text[0] != '\\' || text[1] != 'u' {
		return 0
	}
	n, err := strconv.ParseUint(string(text[2:6]), 16, 16)
	if err != nil {
		return 0
	}
	return rune(n)
}
