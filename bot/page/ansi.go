package page

import (
	"encoding/hex"
	"fmt"
	"html"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// painter turns the output of a program into HTML: colours and weights become
// classes, a line that is written over shows its last words, and everything else
// that steers a terminal is left out. What it cannot tell yet, half a letter or
// half a sequence, waits for the next chunk.
type painter struct {
	style style
	held  []byte // an incomplete end
}

// style is how letters look: colours are 0 for none, or 1 to 16.
type style struct {
	fg, bg                        int
	bold, dim, italic, under, inv bool
}

// maxHeld bounds a sequence that does not end.
const maxHeld = 1024

// ink is what paint has made of a chunk.
type ink struct {
	done strings.Builder
	line []run // the line that is being written
	any  bool  // something stands before the line in this chunk
}

type run struct {
	style style
	text  []byte
}

func (k *ink) write(s style, r rune) {
	n := len(k.line)
	if n == 0 || k.line[n-1].style != s {
		k.line = append(k.line, run{style: s})
		n++
	}
	k.line[n-1].text = utf8.AppendRune(k.line[n-1].text, r)
}

func (k *ink) flush() {
	for _, r := range k.line {
		text := html.EscapeString(string(r.text))
		if c := r.style.classes(); c != "" {
			text = `<span class="` + c + `">` + text + `</span>`
		}
		k.done.WriteString(text)
	}
	k.line = k.line[:0]
}

func (k *ink) newline() {
	k.flush()
	k.done.WriteByte('\n')
	k.any = true
}

// paint returns a chunk as HTML.
func (p *painter) paint(chunk []byte) string {
	b := chunk
	if len(p.held) > 0 {
		b = append(p.held, chunk...)
		p.held = nil
	}
	var k ink
	for len(b) > 0 {
		n := 1
		switch c := b[0]; {
		case c == 0x1b:
			var ok bool
			if n, ok = p.escape(b); !ok {
				p.hold(b)
				b = nil
				continue
			}
		case c == '\r':
			// With a line feed it is the end of a line; alone it begins the line
			// anew. A line that was begun in an earlier chunk stands.
			switch {
			case len(b) == 1:
				p.hold(b)
			case b[1] == '\n':
			case len(k.line) == 0 && !k.any:
				k.newline()
			default:
				k.line = k.line[:0]
			}
		case c == '\n':
			k.newline()
		case c < utf8.RuneSelf:
			if c == '\t' || c >= ' ' && c != 0x7f {
				k.write(p.style, rune(c))
			}
		case !utf8.FullRune(b):
			p.hold(b)
			b = nil
			continue
		default:
			var r rune
			if r, n = utf8.DecodeRune(b); unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || r == '\u2028' || r == '\u2029' {
				r = utf8.RuneError
			}
			k.write(p.style, r)
		}
		b = b[n:]
	}
	k.flush()
	return k.done.String()
}

// hold keeps an incomplete end; one that grows too long is no sequence.
func (p *painter) hold(b []byte) {
	if len(b) <= maxHeld {
		p.held = append([]byte(nil), b...)
	}
}

// escape reads one sequence, and returns its length; false when it is not
// complete. The forms are those of ECMA-48.
func (p *painter) escape(b []byte) (n int, complete bool) {
	if len(b) < 2 {
		return 0, false
	}
	switch c := b[1]; {
	case c == '[':
		for i := 2; i < len(b); i++ {
			switch {
			case b[i] >= 0x40 && b[i] <= 0x7e:
				if b[i] == 'm' {
					p.style.set(string(b[2:i]))
				}
				return i + 1, true
			case b[i] < 0x20 || b[i] > 0x7e:
				return i, true // broken off by something else
			}
		}
		return 0, false
	case strings.IndexByte("]PX^_", c) >= 0: // strings, up to their terminator
		for i := 2; i < len(b); i++ {
			switch {
			case b[i] == 0x07 || b[i] == '\n':
				return i + 1, true
			case b[i] == 0x1b && i+1 < len(b):
				if b[i+1] == '\\' {
					return i + 2, true
				}
				return i, true
			}
		}
		return 0, false
	case c >= 0x20 && c <= 0x2f:
		for i := 2; i < len(b); i++ {
			if b[i] < 0x20 || b[i] > 0x2f {
				return i + 1, true
			}
		}
		return 0, false
	case c < 0x20 || c > 0x7e:
		return 1, true
	}
	return 2, true
}

// set applies the parameters of SGR.
func (s *style) set(params string) {
	var list []int
	for f := range strings.FieldsFuncSeq(params, func(r rune) bool { return r == ';' || r == ':' }) {
		n, err := strconv.Atoi(f)
		if err != nil {
			return
		}
		list = append(list, n)
	}
	if len(list) == 0 || strings.HasPrefix(params, ";") {
		*s = style{}
	}
	for i := 0; i < len(list); i++ {
		switch n := list[i]; {
		case n == 0:
			*s = style{}
		case n == 1:
			s.bold = true
		case n == 2:
			s.dim = true
		case n == 3:
			s.italic = true
		case n == 4:
			s.under = true
		case n == 7:
			s.inv = true
		case n == 22:
			s.bold, s.dim = false, false
		case n == 23:
			s.italic = false
		case n == 24:
			s.under = false
		case n == 27:
			s.inv = false
		case n >= 30 && n <= 37:
			s.fg = n - 30 + 1
		case n == 39:
			s.fg = 0
		case n >= 40 && n <= 47:
			s.bg = n - 40 + 1
		case n == 49:
			s.bg = 0
		case n >= 90 && n <= 97:
			s.fg = n - 90 + 9
		case n >= 100 && n <= 107:
			s.bg = n - 100 + 9
		case n == 38 || n == 48:
			c, used := extended(list[i+1:])
			i += used
			if n == 38 {
				s.fg = c
			} else {
				s.bg = c
			}
		}
	}
}

// extended reads the rest of "38;5;N" or "38;2;R;G;B", as the nearest of the
// sixteen colours: those have been chosen to be readable.
func extended(list []int) (colour, used int) {
	switch {
	case len(list) >= 2 && list[0] == 5:
		n := list[1]
		switch {
		case n < 0 || n > 255:
			return 0, 2
		case n < 16:
			return n + 1, 2
		case n < 232:
			n -= 16
			return nearest(n/36*51, n/6%6*51, n%6*51), 2
		}
		grey := (n-232)*10 + 8
		return nearest(grey, grey, grey), 2
	case len(list) >= 4 && list[0] == 2:
		return nearest(list[1], list[2], list[3]), 4
	}
	return 0, len(list)
}

func nearest(r, g, b int) int {
	most := max(r, g, b)
	if most < 50 {
		return 1
	}
	c := 0
	for i, v := range []int{r, g, b} {
		if v*2 > most {
			c |= 1 << i
		}
	}
	if most > 200 && c != 7 || most > 220 {
		c += 8
	} else if c == 7 && most < 130 {
		c = 8
	}
	return c + 1
}

func (s style) classes() string {
	if s == (style{}) {
		return ""
	}
	fg, bg := s.fg, s.bg
	if s.inv {
		fg, bg = bg, fg
	}
	var c []string
	add := func(on bool, name string) {
		if on {
			c = append(c, name)
		}
	}
	add(s.inv && fg == 0 && bg == 0, "tv")
	add(fg > 0, fmt.Sprint("f", fg))
	add(bg > 0, fmt.Sprint("g", bg))
	add(s.bold, "tb")
	add(s.dim, "td")
	add(s.italic, "ti")
	add(s.under, "tu")
	return strings.Join(c, " ")
}

// String writes the painter's state, for the place of a reader in a log.
func (p *painter) String() string {
	flags := 0
	for i, on := range []bool{p.style.bold, p.style.dim, p.style.italic, p.style.under, p.style.inv} {
		if on {
			flags |= 1 << i
		}
	}
	return fmt.Sprintf("%d.%d.%d.%s", p.style.fg, p.style.bg, flags, hex.EncodeToString(p.held))
}

// painterOf reads what String wrote; what is wrong is a painter at the beginning.
func painterOf(s string) *painter {
	part := strings.Split(s, ".")
	if len(part) != 4 {
		return &painter{}
	}
	var n [3]int
	for i := range n {
		v, err := strconv.Atoi(part[i])
		if err != nil || v < 0 || v > 31 || i < 2 && v > 16 {
			return &painter{}
		}
		n[i] = v
	}
	held, err := hex.DecodeString(part[3])
	if err != nil || len(held) > maxHeld {
		return &painter{}
	}
	on := func(i int) bool { return n[2]&(1<<i) != 0 }
	return &painter{style{n[0], n[1], on(0), on(1), on(2), on(3), on(4)}, held}
}
