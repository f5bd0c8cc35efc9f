package cli

import (
	"bytes"
	"encoding"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/goccy/go-yaml"

	"footplate/controlplane/catalog"
	"footplate/controlplane/op"
	"footplate/fleet"
)

// format is what -o says.
type format string

const (
	formatTable format = "table"
	formatWide  format = "wide"
	formatJSON  format = "json"
	formatJSONL format = "jsonl"
	formatYAML  format = "yaml"
	formatCSV   format = "csv"
	formatName  format = "name"
)

func formats() []string {
	return []string{"table", "wide", "json", "jsonl", "yaml", "csv", "name"}
}

func readFormat(s string) (format, error) {
	if s == "" {
		return formatTable, nil
	}
	if slices.Contains(formats(), s) {
		return format(s), nil
	}
	e := fleet.Invalidf("--output cannot be %q", s)
	if near := fleet.Nearest(s, formats()); near != "" {
		return "", e.WithHint("did you mean %s?", near)
	}
	return "", e.WithHint("one of %s", strings.Join(formats(), ", "))
}

// printer writes answers. Times are shown in the zone of now; those of its day
// without their date.
type printer struct {
	out io.Writer
	now time.Time
}

// answer writes the answer of a query.
func (p printer) answer(o *op.Op, raw json.RawMessage, f format) error {
	switch f {
	case formatJSON:
		return p.json(raw)
	case formatJSONL:
		return p.jsonl(raw)
	case formatYAML:
		return p.yaml(raw)
	}
	rows, err := decodeRows(o, raw)
	if err != nil {
		return err
	}
	cols := columns(o.Row)
	switch {
	case f == formatName:
		return p.names(o, cols, rows)
	case f == formatCSV:
		return p.csv(cols, rows)
	case o.Many:
		return p.table(shown(cols, f == formatWide), rows, "")
	}
	return p.show(rows[0], f == formatWide)
}

func decodeRows(o *op.Op, raw json.RawMessage) ([]reflect.Value, error) {
	t := o.Row
	if o.Many {
		t = reflect.SliceOf(t)
	}
	v := reflect.New(t)
	if err := json.Unmarshal(raw, v.Interface()); err != nil {
		return nil, fleet.Internalf("the answer of %s cannot be read: %s", o.Name, err).
			WithHint("is the server of another version? -o json shows the answer as it is")
	}
	if !o.Many {
		return []reflect.Value{v.Elem()}, nil
	}
	rows := make([]reflect.Value, v.Elem().Len())
	for i := range rows {
		rows[i] = v.Elem().Index(i)
	}
	return rows, nil
}

func (p printer) json(raw json.RawMessage) error {
	var b bytes.Buffer
	if err := json.Indent(&b, raw, "", "  "); err != nil {
		return fleet.Internalf("the answer is no JSON: %s", err)
	}
	b.WriteByte('\n')
	_, err := p.out.Write(b.Bytes())
	return err
}

func (p printer) jsonl(raw json.RawMessage) error {
	list := []json.RawMessage{raw}
	if t := bytes.TrimSpace(raw); len(t) > 0 && t[0] == '[' {
		list = nil // what it holds shares its bytes with raw
		if err := json.Unmarshal(raw, &list); err != nil {
			return fleet.Internalf("the answer is no JSON: %s", err)
		}
	}
	var b bytes.Buffer
	for _, r := range list {
		if err := json.Compact(&b, r); err != nil {
			return fleet.Internalf("the answer is no JSON: %s", err)
		}
		b.WriteByte('\n')
	}
	_, err := p.out.Write(b.Bytes())
	return err
}

func (p printer) yaml(raw json.RawMessage) error {
	b, err := yaml.JSONToYAML(raw)
	if err != nil {
		return fleet.Internalf("the answer cannot be written as YAML: %s", err)
	}
	_, err = p.out.Write(b)
	return err
}

// column is one field of a row, as its tags have it:
//
//	col:"POOL"   the head of its column; without one it is in no table
//	wide:"true"  only with -o wide
//	id:"true"    what -o name prints
//
// A row whose fields all lack col is shown with all of them.
type column struct {
	name     string // in JSON
	head     string
	wide, id bool
	field    reflect.StructField
}

func columns(t reflect.Type) []column {
	var all []column
	tagged := false
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous || !f.IsExported() || name == "-" {
			continue
		}
		if name == "" {
			name = f.Name
		}
		c := column{name: name, head: f.Tag.Get("col"), wide: f.Tag.Get("wide") == "true", id: f.Tag.Get("id") == "true", field: f}
		tagged = tagged || c.head != ""
		all = append(all, c)
	}
	if !tagged {
		for i := range all {
			all[i].head = strings.ToUpper(strings.ReplaceAll(all[i].name, "_", " "))
		}
	}
	return all
}

// shown returns the columns of a table.
func shown(cols []column, wide bool) []column {
	var out []column
	for _, c := range cols {
		if c.head == "" || c.wide && !wide {
			continue
		}
		out = append(out, c)
	}
	return out
}

func (p printer) names(o *op.Op, cols []column, rows []reflect.Value) error {
	i := slices.IndexFunc(cols, func(c column) bool { return c.id })
	if i < 0 {
		return fleet.Invalidf("%s has no names to print", o.Name).WithHint("use another --output: %s", strings.Join(formats()[:6], ", "))
	}
	var b strings.Builder
	for _, r := range rows {
		b.WriteString(clean(plain(r.FieldByIndex(cols[i].field.Index))))
		b.WriteByte('\n')
	}
	_, err := io.WriteString(p.out, b.String())
	return err
}

// csv writes every field that is not itself a list or an object. Times are RFC
// 3339, as in JSON. Texts are kept from being taken for formulas.
func (p printer) csv(cols []column, rows []reflect.Value) error {
	cols = slices.DeleteFunc(slices.Clone(cols), func(c column) bool { return nested(c.field.Type) })
	w := csv.NewWriter(p.out)
	record := make([]string, len(cols))
	for i, c := range cols {
		record[i] = c.name
	}
	if err := w.Write(record); err != nil {
		return err
	}
	for _, r := range rows {
		for i, c := range cols {
			f := r.FieldByIndex(c.field.Index)
			record[i] = plain(f)
			if f.Kind() == reflect.String {
				record[i] = catalog.Cell(record[i])
			}
		}
		if err := w.Write(record); err != nil {
			return err
		}
	}
	w.Flush()
	return w.Error()
}

// nested reports whether t is neither a word nor a number.
func nested(t reflect.Type) bool {
	if t.Kind() == reflect.Pointer {
		t = t.Elem() // nil when there is none
	}
	if t.Implements(reflect.TypeFor[encoding.TextMarshaler]()) || t.Implements(reflect.TypeFor[fmt.Stringer]()) {
		return false
	}
	switch t.Kind() {
	case reflect.Struct, reflect.Map:
		return true
	case reflect.Slice:
		return t.Elem().Kind() != reflect.String && t.Elem().Kind() != reflect.Uint8
	}
	return false
}

// table writes rows under the heads of their columns. No line is wrapped.
func (p printer) table(cols []column, rows []reflect.Value, indent string) error {
	cells := make([][]string, 0, len(rows)+1)
	head := make([]string, len(cols))
	for i, c := range cols {
		head[i] = c.head
	}
	cells = append(cells, head)
	for _, r := range rows {
		line := make([]string, len(cols))
		for i, c := range cols {
			line[i] = p.cell(r.FieldByIndex(c.field.Index), false)
		}
		cells = append(cells, line)
	}
	width := make([]int, len(cols))
	for _, line := range cells {
		for i, s := range line {
			width[i] = max(width[i], columnsOf(s))
		}
	}
	var b strings.Builder
	for _, line := range cells {
		b.WriteString(indent)
		for i, s := range line {
			b.WriteString(s)
			if i < len(line)-1 {
				b.WriteString(strings.Repeat(" ", width[i]-columnsOf(s)+2))
			}
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(p.out, b.String())
	return err
}

// show writes one row: a sentence when it has one of its own, else a line for
// each field, and then a table for each list in it.
func (p printer) show(row reflect.Value, wide bool) error {
	if f, ok := sentence(row.Type()); ok {
		_, err := fmt.Fprintln(p.out, clean(row.FieldByIndex(f.Index).String()))
		return err
	}
	type pair struct{ key, value string }
	var pairs []pair
	type list struct {
		name string
		rows reflect.Value
	}
	var lists []list
	var walk func(v reflect.Value, prefix string)
	walk = func(v reflect.Value, prefix string) {
		for _, c := range columns(v.Type()) {
			f := v.FieldByIndex(c.field.Index)
			key := prefix + strings.ReplaceAll(c.name, "_", " ")
			switch {
			case strings.Contains(c.field.Tag.Get("json"), ",omitempty") && f.IsZero():
			case f.Kind() == reflect.Slice && f.Type().Elem().Kind() == reflect.Struct:
				if f.Len() == 0 {
					pairs = append(pairs, pair{key, "none"})
				} else {
					lists = append(lists, list{key, f})
				}
			case f.Kind() == reflect.Struct && nested(f.Type()):
				walk(f, key+" ")
			default:
				pairs = append(pairs, pair{key, p.cell(f, true)})
			}
		}
	}
	walk(row, "")
	width := 0
	for _, kv := range pairs {
		width = max(width, columnsOf(kv.key))
	}
	for _, kv := range pairs {
		if _, err := fmt.Fprintf(p.out, "%s:%s%s\n", kv.key, strings.Repeat(" ", width-columnsOf(kv.key)+1), kv.value); err != nil {
			return err
		}
	}
	for _, l := range lists {
		rows := make([]reflect.Value, l.rows.Len())
		for i := range rows {
			rows[i] = l.rows.Index(i)
		}
		if _, err := fmt.Fprintf(p.out, "\n%s:\n", l.name); err != nil {
			return err
		}
		if err := p.table(shown(columns(l.rows.Type().Elem()), wide), rows, "  "); err != nil {
			return err
		}
	}
	return nil
}

// sentence returns the field that says everything: "text" of the row itself,
// not of a row embedded in it.
func sentence(t reflect.Type) (reflect.StructField, bool) {
	f, ok := t.FieldByName("Text")
	return f, ok && len(f.Index) == 1 && f.Type.Kind() == reflect.String && f.Tag.Get("json") == "text"
}

// cell returns a value as people read it; "-" when there is none. A duration
// of nothing is none: nothing waits, or there was nobody to hear.
func (p printer) cell(v reflect.Value, long bool) string {
	if v.Kind() == reflect.Pointer && !v.IsNil() {
		v = v.Elem()
	}
	switch x := v.Interface().(type) {
	case fleet.Time:
		if x.IsZero() {
			return "-"
		}
		return p.clock(x, long)
	case bool:
		if x {
			return "yes"
		}
		return "no"
	case fleet.AttemptID, fleet.BuildID, fleet.LaunchID, fleet.EntryNo, fleet.Duration:
		if v.IsZero() {
			return "-"
		}
	}
	if s := clean(plain(v)); s != "" {
		return s
	}
	return "-"
}

// clock returns a time in the local zone.
func (p printer) clock(t fleet.Time, long bool) string {
	local := t.Std().In(p.now.Location())
	y, m, d := local.Date()
	ny, nm, nd := p.now.Date()
	if !long && y == ny && m == nm && d == nd {
		return local.Format("15:04:05")
	}
	return local.Format("2006-01-02 15:04:05 MST")
}

// plain returns a value as machines read it.
func plain(v reflect.Value) string {
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return ""
		}
		v = v.Elem()
	}
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
	case v.Kind() == reflect.Bool:
		return strconv.FormatBool(v.Bool())
	case v.CanInt():
		return strconv.FormatInt(v.Int(), 10)
	case v.CanUint():
		return strconv.FormatUint(v.Uint(), 10)
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.String:
		words := make([]string, v.Len())
		for i := range words {
			words[i] = v.Index(i).String()
		}
		return strings.Join(words, ",")
	case nested(v.Type()) && v.IsZero():
		return ""
	}
	b, err := json.Marshal(v.Interface())
	if err != nil {
		return ""
	}
	return string(b)
}

// clean makes text from elsewhere safe for a terminal: a reason or a file name
// must not move the cursor or forge a line.
func clean(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return unsafeRune(r) }) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if unsafeRune(r) {
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// cleanLines is clean for text that may have several lines.
func cleanLines(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = clean(l)
	}
	return strings.Join(lines, "\n")
}

// unsafeRune reports control characters, and those that turn the direction of
// writing.
func unsafeRune(r rune) bool {
	return unicode.IsControl(r) || r >= '\u202a' && r <= '\u202e' || r >= '\u2066' && r <= '\u2069' || r == '\u2028' || r == '\u2029' || r == unicode.ReplacementChar
}

// columnsOf returns how many columns of a terminal s takes: none for marks that
// combine, two for wide letters (the blocks that Unicode's East Asian Width
// gives as W, coarsely).
func columnsOf(s string) int {
	n := 0
	for _, r := range s {
		switch {
		case r < 0x300:
			n++
		case unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf):
		case r >= 0x1100 && r <= 0x115f, r >= 0x2e80 && r <= 0xa4cf, r >= 0xac00 && r <= 0xd7a3,
			r >= 0xf900 && r <= 0xfaff, r >= 0xfe30 && r <= 0xfe6f, r >= 0xff00 && r <= 0xff60,
			r >= 0xffe0 && r <= 0xffe6, r >= 0x1f300 && r <= 0x1faff, r >= 0x20000 && r <= 0x3fffd:
			n += 2
		default:
			n++
		}
	}
	return n
}
