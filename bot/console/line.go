package console

import (
	"fmt"
	"strings"
	"time"
	"unicode"

	"footplate/controlplane/state"
	"footplate/fleet"
)

// FormatLine returns a line of the channel as people read it, in the zone loc:
//
//	03:12:07 alice (cli) pool scale: scaled pool "linux" from 4 to 6 hosts — monday ramp  [#12]
//
// With color, what the automation did is dim and what failed is red.
func FormatLine(l state.Line, loc *time.Location, color bool) string {
	var b strings.Builder
	b.WriteString(l.At.Std().In(loc).Format("15:04:05 "))
	b.WriteString(safe(string(l.By)))
	surface, _, _ := strings.Cut(l.Via, "/")
	if surface != "" && !automatic(l) {
		fmt.Fprintf(&b, " (%s)", safe(surface))
	}
	b.WriteString(" " + safe(l.Op))
	if l.Outcome != fleet.EntryDone {
		b.WriteString(" " + safe(string(l.Outcome)))
	}
	b.WriteString(": " + safe(l.Text))
	if l.Reason != "" {
		b.WriteString(" — " + safe(l.Reason))
	}
	if l.Count > 1 {
		fmt.Fprintf(&b, " (the last of %d)  [#%d-%d]", l.Count, l.First, l.Last)
	} else {
		fmt.Fprintf(&b, "  [#%d]", l.First)
	}
	switch {
	case !color:
		return b.String()
	case l.Outcome != fleet.EntryDone:
		return "\x1b[31m" + b.String() + "\x1b[0m"
	case automatic(l):
		return "\x1b[2m" + b.String() + "\x1b[0m"
	}
	return b.String()
}

// automatic reports whether no person stands behind the line.
func automatic(l state.Line) bool {
	for _, prefix := range []string{"loop:", "node:", "agent:", "system"} {
		if strings.HasPrefix(string(l.By), prefix) {
			return true
		}
	}
	return false
}

// safe makes text from elsewhere safe for a terminal: a reason must not move
// the cursor or forge a line.
func safe(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || r == '\u2028' || r == '\u2029' {
			return '\ufffd'
		}
		return r
	}, s)
}
