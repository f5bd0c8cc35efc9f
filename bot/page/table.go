package page

import (
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode"

	"footplate/controlplane/op"
	"footplate/fleet"
)

// cell is one value as the page shows it.
type cell struct {
	Text string
	Href string // where it leads
	At   string // a time, in RFC 3339: the script shows it in the zone of the visitor
	Word string // a state or an outcome, for its colour
	Long bool   // a sentence: it gets a line of its own where space is short
	Num  bool
}

// grid is a table.
type grid struct {
	Name string // of a list within an answer
	Head []head
	Rows [][]cell
}

type head struct {
	Text string
	Num  bool
}

// field is one line of an answer that is no list.
type field struct {
	Name string
	Cell cell
}

// shape is the answer of a query: a sentence, or fields and tables.
type shape struct {
	Text   string
	Fields []field
	Grids  []grid
}

// shapeOf makes an answer readable. The tags of a row's fields are those that
// the command line knows: col is the head of its column, wide keeps it out of
// the plain table.
func shapeOf(o *op.Op, raw json.RawMessage, wide bool) (shape, error) {
	t := o.Row
	if o.Many {
		t = reflect.SliceOf(t)
	}
	v := reflect.New(t)
	if err := json.Unmarshal(raw, v.Interface()); err != nil {
		return shape{}, fleet.Internalf("the answer of %s cannot be read: %s", o.Name, err).WithHint("--output json shows it as it is")
	}
	if o.Many {
		return shape{Grids: []grid{gridOf("", v.Elem(), wide)}}, nil
	}
	return shapeOfRow(v.Elem(), wide), nil
}

func shapeOfRow(row reflect.Value, wide bool) shape {
	var out shape
	if f, ok := row.Type().FieldByName("Text"); ok && len(f.Index) == 1 && f.Tag.Get("json") == "text" {
		out.Text = visible(row.FieldByIndex(f.Index).String())
		return out
	}
	var walk func(v reflect.Value, prefix string)
	walk = func(v reflect.Value, prefix string) {
		for _, c := range columns(v.Type()) {
			f := v.FieldByIndex(c.index)
			name := prefix + strings.ReplaceAll(c.name, "_", " ")
			switch {
			case c.optional && f.IsZero():
			case f.Kind() == reflect.Slice && f.Type().Elem().Kind() == reflect.Struct:
				if f.Len() > 0 {
					out.Grids = append(out.Grids, gridOf(name, f, wide))
				} else {
					out.Fields = append(out.Fields, field{name, cell{Text: "none"}})
				}
			case f.Kind() == reflect.Struct && nested(f.Type()):
				walk(f, name+" ")
			default:
				out.Fields = append(out.Fields, field{name, cellOf(c, f)})
			}
		}
	}
	walk(row, "")
	return out
}

func gridOf(name string, rows reflect.Value, wide bool) grid {
	g := grid{Name: name}
	var shown []column
	for _, c := range columns(rows.Type().Elem()) {
		if c.head != "" && (wide || !c.wide) {
			shown = append(shown, c)
			g.Head = append(g.Head, head{c.head, c.numeric})
		}
	}
	for i := range rows.Len() {
		line := make([]cell, len(shown))
		for j, c := range shown {
			line[j] = cellOf(c, rows.Index(i).FieldByIndex(c.index))
		}
		g.Rows = append(g.Rows, line)
	}
	return g
}

// column is one field of a row.
type column struct {
	name, head         string
	id, wide, optional bool
	numeric            bool
	index              []int
}

func columns(t reflect.Type) []column {
	var all []column
	tagged := false
	for _, f := range reflect.VisibleFields(t) {
		name, rest, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous || !f.IsExported() || name == "-" {
			continue
		}
		if name == "" {
			name = f.Name
		}
		k := f.Type.Kind()
		c := column{
			name: name, head: f.Tag.Get("col"), id: f.Tag.Get("id") == "true", wide: f.Tag.Get("wide") == "true",
			optional: strings.Contains(rest, "omitempty"), index: f.Index,
			numeric: k >= reflect.Int && k <= reflect.Float64 && f.Type != reflect.TypeFor[fleet.Time](),
		}
		tagged = tagged || c.head != ""
		all = append(all, c)
	}
	if !tagged {
		for i := range all {
			all[i].head = strings.ReplaceAll(all[i].name, "_", " ")
		}
	}
	return all
}

// nested reports whether t is neither a word nor a number.
func nested(t reflect.Type) bool {
	if t.Implements(reflect.TypeFor[encoding.TextMarshaler]()) || t.Implements(reflect.TypeFor[fmt.Stringer]()) {
		return false
	}
	return t.Kind() == reflect.Struct || t.Kind() == reflect.Map || t.Kind() == reflect.Pointer
}

// cellOf returns a value as people read it; "–" when there is none.
func cellOf(c column, v reflect.Value) cell {
	out := cell{Num: c.numeric}
	none := v.IsZero()
	switch x := v.Interface().(type) {
	case fleet.Time:
		if none {
			return cell{Text: "–"}
		}
		return timeCell(x)
	case bool:
		if x {
			return cell{Text: "yes"}
		}
		return cell{Text: "no"}
	case fleet.BuildID:
		if !none {
			out.Href = "/builds/" + x.String()
		}
	case fleet.EntryNo:
		if !none {
			out.Href = "/audit/" + strconv.FormatUint(uint64(x), 10)
		}
	case fleet.HostID:
		if !none {
			out.Href = ask("host show " + quote(string(x)))
		}
	case fleet.PoolName:
		if !none {
			out.Href = ask("pool show " + quote(string(x)))
		}
	case fleet.AttemptID, fleet.LaunchID:
	default:
		none = false
	}
	if !none {
		out.Text = visible(plain(v))
	}
	switch c.name {
	case "state", "outcome", "role", "phase":
		out.Word = out.Text
	case "text", "why", "reason":
		out.Long = true
	}
	if out.Text == "" && !out.Long {
		out.Text = "–"
	}
	return out
}

func timeCell(t fleet.Time) cell {
	return cell{Text: t.Std().Format("2006-01-02 15:04:05 UTC"), At: t.Std().Format(time.RFC3339Nano)}
}

// plain returns a value as text.
func plain(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case json.RawMessage:
		return string(x)
	case encoding.TextMarshaler:
		b, err := x.MarshalText()
		if err != nil {
			return ""
		}
		return string(b)
	case fmt.Stringer:
		return x.String()
	}
	switch {
	case v.Kind() == reflect.String:
		return v.String()
	case v.CanInt():
		return strconv.FormatInt(v.Int(), 10)
	case v.CanUint():
		return strconv.FormatUint(v.Uint(), 10)
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.String:
		words := make([]string, v.Len())
		for i := range words {
			words[i] = v.Index(i).String()
		}
		return strings.Join(words, ", ")
	case v.IsZero():
		return ""
	}
	b, err := json.Marshal(v.Interface())
	if err != nil {
		return ""
	}
	return string(b)
}

// visible makes visible what could forge a line or turn the direction of
// writing. Lines end where they ended.
func visible(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n', r == '\t':
			return r
		case unicode.IsControl(r), unicode.Is(unicode.Bidi_Control, r), r == '\u2028', r == '\u2029':
			return '\ufffd'
		}
		return r
	}, strings.ToValidUTF8(s, "\ufffd"))
}

// ask is where the answer to a question stands.
func ask(line string) string { return "/ask?line=" + escapeQuery(line) }

// quote makes one word of s in a command line.
func quote(s string) string {
	if s != "" && !strings.ContainsAny(s, " \t\n\r'\"\\") {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
