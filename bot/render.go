package bot

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"footplate/controlplane/op"
	"footplate/fleet"
)

// formats are those of the command line that a chat can show.
func formats() []string { return []string{"table", "wide", "json", "name"} }

func checkFormat(f string) error {
	if f == "" || slices.Contains(formats(), f) {
		return nil
	}
	return fleet.Invalidf("--output cannot be %q in a chat", f).WithHint("one of %s; the shell has more", strings.Join(formats(), ", "))
}

// rows writes the answer of a query as a chat shows it. now says which times
// need no date, and in which zone they are shown.
func rows(o *op.Op, raw json.RawMessage, format string, now time.Time) (string, error) {
	if format == "json" {
		var b bytes.Buffer
		if err := json.Indent(&b, raw, "", "  "); err != nil {
			return "", fleet.Internalf("the answer of %s is no JSON: %s", o.Name, err)
		}
		return b.String(), nil
	}
	list, err := o.Rows(raw)
	if err != nil {
		return "", err
	}
	switch {
	case format == "name":
		names, ok := o.Names(list)
		if !ok {
			return "", fleet.Invalidf("%s has no names to print", o.Name).WithHint("leave --output out")
		}
		var b strings.Builder
		for _, n := range names {
			b.WriteString(clean(n) + "\n")
		}
		return b.String(), nil
	case o.Many:
		return table(op.Shown(op.Columns(o.Row), format == "wide"), list, "", now), nil
	}
	return show(list[0], format == "wide", now), nil
}

func table(cols []op.Column, list []reflect.Value, indent string, now time.Time) string {
	if len(list) == 0 {
		return indent + "none\n"
	}
	lines := make([][]string, 1, len(list)+1)
	for _, c := range cols {
		lines[0] = append(lines[0], c.Head)
	}
	for _, r := range list {
		line := make([]string, len(cols))
		for i, c := range cols {
			line[i] = cell(c.Of(r), now)
		}
		lines = append(lines, line)
	}
	width := make([]int, len(cols))
	for _, l := range lines {
		for i, s := range l {
			width[i] = max(width[i], utf8.RuneCountInString(s))
		}
	}
	var b strings.Builder
	for _, l := range lines {
		var row strings.Builder
		row.WriteString(indent)
		for i, s := range l {
			row.WriteString(s + strings.Repeat(" ", width[i]-utf8.RuneCountInString(s)+2))
		}
		b.WriteString(strings.TrimRight(row.String(), " ") + "\n")
	}
	return b.String()
}

// show writes one row: a sentence when it has one of its own, else a line for
// each field, and a table for each list in it.
func show(row reflect.Value, wide bool, now time.Time) string {
	if text, ok := op.Sentence(row); ok {
		return clean(text) + "\n"
	}
	type pair struct{ key, value string }
	var pairs []pair
	var lists strings.Builder
	for _, p := range op.Parts(row) {
		if p.List {
			cols := op.Shown(op.Columns(p.Value.Type().Elem()), wide)
			lists.WriteString("\n" + p.Key + ":\n" + table(cols, op.Elements(p.Value), "  ", now))
		} else {
			pairs = append(pairs, pair{p.Key, cell(p.Value, now)})
		}
	}
	width := 0
	for _, p := range pairs {
		width = max(width, len(p.key))
	}
	var b strings.Builder
	for _, p := range pairs {
		fmt.Fprintf(&b, "%-*s %s\n", width+1, p.key+":", p.value)
	}
	return b.String() + lists.String()
}

// cell is a value as people read it; "-" when there is none.
func cell(v reflect.Value, now time.Time) string {
	switch x := v.Interface().(type) {
	case fleet.Time:
		if x.IsZero() {
			return "-"
		}
		t := x.Std().In(now.Location())
		if t.Format(time.DateOnly) == now.Format(time.DateOnly) {
			return t.Format("15:04:05 MST")
		}
		return t.Format("2006-01-02 15:04:05 MST")
	case bool:
		if x {
			return "yes"
		}
		return "no"
	case fleet.AttemptID, fleet.BuildID, fleet.LaunchID, fleet.EntryNo:
		if v.IsZero() {
			return "-"
		}
	}
	if s := clean(op.Plain(v)); s != "" {
		return s
	}
	return "-"
}

// clean makes a text from elsewhere one line that stays where it is put: no
// control characters, and none that turn the direction of writing.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case unicode.IsControl(r), r >= '\u202a' && r <= '\u202e', r >= '\u2066' && r <= '\u2069', r == '\u2028', r == '\u2029':
			return '\uFFFD'
		}
		return r
	}, s)
}

// cleanLines is clean for a text of several lines.
func cleanLines(s string) string {
	lines := strings.Split(strings.ReplaceAll(s, "\r\n", "\n"), "\n")
	for i, l := range lines {
		lines[i] = clean(strings.TrimRight(strings.ReplaceAll(l, "\t", "    "), " \r"))
	}
	return strings.Join(lines, "\n")
}

// cut returns the first lines of s, at most so many bytes and lines, and how many
// of how many they are.
func cut(s string, bytes, most int) (head string, shown, all int) {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	size := 0
	for shown < min(len(lines), most) {
		if size += len(lines[shown]) + 1; size > bytes {
			break
		}
		shown++
	}
	return strings.Join(lines[:shown], "\n"), shown, len(lines)
}

// cutEnd is cut for the last lines.
func cutEnd(s string, bytes, most int) (tail string, shown, all int) {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	size := 0
	for shown < min(len(lines), most) {
		if size += len(lines[len(lines)-1-shown]) + 1; size > bytes {
			break
		}
		shown++
	}
	return strings.Join(lines[len(lines)-shown:], "\n"), shown, len(lines)
}

// within cuts one line to most bytes.
func within(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most-len("...")], "") + "..."
}
