package page

import (
	"encoding/json"
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

// shapeOf makes an answer readable.
func shapeOf(o *op.Op, raw json.RawMessage, wide bool) (shape, error) {
	rows, err := o.Rows(raw)
	if err != nil {
		return shape{}, err
	}
	if o.Many {
		return shape{Grids: []grid{gridOf("", o.Row, rows, wide)}}, nil
	}
	return shapeOfRow(rows[0], wide), nil
}

func shapeOfRow(row reflect.Value, wide bool) shape {
	var out shape
	if text, ok := op.Sentence(row); ok {
		out.Text = visible(text)
		return out
	}
	for _, p := range op.Parts(row) {
		switch {
		case !p.List:
			out.Fields = append(out.Fields, field{p.Key, cellOf(p.Column, p.Value)})
		case p.Value.Len() == 0:
			out.Fields = append(out.Fields, field{p.Key, cell{Text: "none"}})
		default:
			out.Grids = append(out.Grids, gridOf(p.Key, p.Value.Type().Elem(), op.Elements(p.Value), wide))
		}
	}
	return out
}

func gridOf(name string, t reflect.Type, rows []reflect.Value, wide bool) grid {
	g := grid{Name: name}
	shown := op.Shown(op.Columns(t), wide)
	for _, c := range shown {
		h := head{c.Head, numeric(c)}
		if c.Field.Tag.Get("col") == "" {
			h.Text = strings.ToLower(h.Text) // a name, not a head
		}
		g.Head = append(g.Head, h)
	}
	for _, r := range rows {
		line := make([]cell, len(shown))
		for i, c := range shown {
			line[i] = cellOf(c, c.Of(r))
		}
		g.Rows = append(g.Rows, line)
	}
	return g
}

// numeric reports whether a column is set flush right.
func numeric(c op.Column) bool {
	t := c.Field.Type
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t.Kind() >= reflect.Int && t.Kind() <= reflect.Float64 && t != reflect.TypeFor[fleet.Time]()
}

// cellOf returns a value as people read it; "–" when there is none.
func cellOf(c op.Column, v reflect.Value) cell {
	out := cell{Num: numeric(c)}
	if v.Kind() == reflect.Pointer && !v.IsNil() {
		v = v.Elem()
	}
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
	switch c.Name {
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

// plain is op.Plain, with room to wrap between the words of a list.
func plain(v reflect.Value) string {
	if v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.String {
		words := make([]string, v.Len())
		for i := range words {
			words[i] = v.Index(i).String()
		}
		return strings.Join(words, ", ")
	}
	return op.Plain(v)
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
