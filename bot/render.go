package bot

import (
	"bytes"
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
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
	t := o.Row
	if o.Many {
		t = reflect.SliceOf(t)
	}
	v := reflect.New(t)
	if err := json.Unmarshal(raw, v.Interface()); err != nil {
		return "", fleet.Internalf("the answer of %s cannot be read: %s", o.Name, err).
			WithHint("is the server of another version? -o json shows the answer as it is")
	}
	list := []reflect.Value{v.Elem()}
	if o.Many {
		list = list[:0]
		for i := range v.Elem().Len() {
			list = append(list, v.Elem().Index(i))
		}
	}
	switch {
	case format == "name":
		return names(o, list)
	case o.Many:
		return table(columns(o.Row, format == "wide"), list, "", now), nil
	}
	return show(list[0], format == "wide", now), nil
}

// column is a field of a row; its tags are those that the command line knows.
type column struct {
	name, head string
	id         bool
	field      reflect.StructField
}

// columns returns the fields of a row that a table shows.
func columns(t reflect.Type, wide bool) []column {
	all := fields(t)
	tagged := slices.ContainsFunc(all, func(c column) bool { return c.head != "" })
	var out []column
	for _, c := range all {
		if !tagged {
			c.head = strings.ToUpper(strings.ReplaceAll(c.name, "_", " "))
		}
		if c.head != "" && (wide || c.field.Tag.Get("wide") != "true") {
			out = append(out, c)
		}
	}
	return out
}

func fields(t reflect.Type) []column {
	var out []column
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous || !f.IsExported() || name == "-" {
			continue
		}
		if name == "" {
			name = f.Name
		}
		out = append(out, column{name: name, head: f.Tag.Get("col"), id: f.Tag.Get("id") == "true", field: f})
	}
	return out
}

func names(o *op.Op, list []reflect.Value) (string, error) {
	all := fields(o.Row)
	i := slices.IndexFunc(all, func(c column) bool { return c.id })
	if i < 0 {
		return "", fleet.Invalidf("%s has no names to print", o.Name).WithHint("leave --output out")
	}
	var b strings.Builder
	for _, r := range list {
		b.WriteString(plain(r.FieldByIndex(all[i].field.Index)) + "\n")
	}
	return b.String(), nil
}

func table(cols []column, list []reflect.Value, indent string, now time.Time) string {
	if len(list) == 0 {
		return indent + "none\n"
	}
	lines := make([][]string, 1, len(list)+1)
	for _, c := range cols {
		lines[0] = append(lines[0], c.head)
	}
	for _, r := range list {
		line := make([]string, len(cols))
		for i, c := range cols {
			line[i] = cell(r.FieldByIndex(c.field.Index), now)
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
	if f, ok := row.Type().FieldByName("Text"); ok && len(f.Index) == 1 && f.Type.Kind() == reflect.String {
		return clean(row.FieldByIndex(f.Index).String()) + "\n"
	}
	type pair struct{ key, value string }
	var pairs []pair
	var lists strings.Builder
	var walk func(v reflect.Value, prefix string)
	walk = func(v reflect.Value, prefix string) {
		for _, c := range fields(v.Type()) {
			f := v.FieldByIndex(c.field.Index)
			key := prefix + strings.ReplaceAll(c.name, "_", " ")
			switch {
			case strings.Contains(c.field.Tag.Get("json"), ",omitempty") && f.IsZero():
			case f.Kind() == reflect.Slice && f.Type().Elem().Kind() == reflect.Struct:
				items := make([]reflect.Value, f.Len())
				for i := range items {
					items[i] = f.Index(i)
				}
				lists.WriteString("\n" + key + ":\n" + table(columns(f.Type().Elem(), wide), items, "  ", now))
			case f.Kind() == reflect.Struct && !isText(f.Type()):
				walk(f, key+" ")
			default:
				pairs = append(pairs, pair{key, cell(f, now)})
			}
		}
	}
	walk(row, "")
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

func isText(t reflect.Type) bool {
	return t.Implements(reflect.TypeFor[encoding.TextMarshaler]()) || t.Implements(reflect.TypeFor[fmt.Stringer]())
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
	if s := plain(v); s != "" {
		return s
	}
	return "-"
}

// plain is a value as machines read it, on one line.
func plain(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case json.RawMessage:
		return clean(string(x))
	case encoding.TextMarshaler:
		b, err := x.MarshalText()
		if err != nil {
			return ""
		}
		return clean(string(b))
	case fmt.Stringer:
		return clean(x.String())
	}
	switch {
	case v.Kind() == reflect.String:
		return clean(v.String())
	case v.Kind() == reflect.Bool:
		return strconv.FormatBool(v.Bool())
	case v.CanInt():
		return strconv.FormatInt(v.Int(), 10)
	case v.CanUint():
		return strconv.FormatUint(v.Uint(), 10)
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.String:
		words := make([]string, v.Len())
		for i := range words {
			words[i] = clean(v.Index(i).String())
		}
		return strings.Join(words, ",")
	case v.Kind() == reflect.Pointer && v.IsNil(), v.Kind() == reflect.Map && v.Len() == 0:
		return ""
	}
	b, err := json.Marshal(v.Interface())
	if err != nil {
		return ""
	}
	return clean(string(b))
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
