package cli

import (
	"bytes"
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

// formatsOf returns the forms in which what o answers can be written; none for
// a stream, which is written as it comes.
func formatsOf(o *op.Op) []string {
	hasNames := o.Name == catalog.BuildSubmit.Name || slices.ContainsFunc(o.Params, byPosition)
	switch {
	case o == catalog.BuildLogs:
		return []string{"table", "json", "jsonl"}
	case o.Kind == op.KindStream:
		return nil
	case o.Kind == op.KindQuery:
		hasNames = slices.ContainsFunc(op.Columns(o.Row), func(c op.Column) bool { return c.ID })
	}
	return slices.DeleteFunc(formats(), func(f string) bool {
		return f == "name" && !hasNames || f == "csv" && o.Kind != op.KindQuery
	})
}

func readFormat(o *op.Op, s string) (format, error) {
	if s == "" {
		return formatTable, nil
	}
	fit := formatsOf(o)
	switch {
	case slices.Contains(fit, s):
		return format(s), nil
	case len(fit) == 0:
		e := fleet.Invalidf("%s is written as it comes: --output does not fit", o.Name)
		if hasFlag(o, "format") {
			return "", e.WithHint("--format says how")
		}
		return "", e
	case slices.Contains(formats(), s):
		return "", fleet.Invalidf("--output %s does not fit %s", s, o.Name).WithHint("one of %s", strings.Join(fit, ", "))
	}
	e := fleet.Invalidf("--output cannot be %q", s)
	if near := fleet.Nearest(s, fit); near != "" {
		return "", e.WithHint("did you mean %s?", near)
	}
	return "", e.WithHint("one of %s", strings.Join(fit, ", "))
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
	rows, err := o.Rows(raw)
	if err != nil {
		return err
	}
	cols := op.Columns(o.Row)
	switch {
	case f == formatName:
		return p.names(o, rows)
	case f == formatCSV:
		return p.csv(cols, rows)
	case o.Many:
		return p.table(op.Shown(cols, f == formatWide), rows, "")
	}
	return p.show(rows[0], f == formatWide)
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

func (p printer) names(o *op.Op, rows []reflect.Value) error {
	names, ok := o.Names(rows)
	if !ok {
		return fleet.Internalf("%s has no names to print", o.Name)
	}
	var b strings.Builder
	for _, n := range names {
		b.WriteString(clean(n) + "\n")
	}
	_, err := io.WriteString(p.out, b.String())
	return err
}

// csv writes every field that is not itself a list or an object. Times are RFC
// 3339, as in JSON. Texts are kept from being taken for formulas.
func (p printer) csv(cols []op.Column, rows []reflect.Value) error {
	cols = slices.DeleteFunc(cols, func(c op.Column) bool { return op.Nested(c.Field.Type) })
	record := make([]string, len(cols))
	for i, c := range cols {
		record[i] = c.Name
	}
	b := append(catalog.AppendCSV(nil, record), '\n')
	for _, r := range rows {
		for i, c := range cols {
			f := c.Of(r)
			record[i] = op.Plain(f)
			if f.Kind() == reflect.String {
				record[i] = catalog.Cell(record[i])
			}
		}
		b = append(catalog.AppendCSV(b, record), '\n')
	}
	_, err := p.out.Write(b)
	return err
}

// table writes rows under the heads of their columns. No line is wrapped.
func (p printer) table(cols []op.Column, rows []reflect.Value, indent string) error {
	cells := make([][]string, 0, len(rows)+1)
	head := make([]string, len(cols))
	for i, c := range cols {
		head[i] = c.Head
	}
	cells = append(cells, head)
	for _, r := range rows {
		line := make([]string, len(cols))
		for i, c := range cols {
			line[i] = p.cell(c.Of(r), false)
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
	if text, ok := op.Sentence(row); ok {
		_, err := fmt.Fprintln(p.out, clean(text))
		return err
	}
	type pair struct{ key, value string }
	var pairs []pair
	var lists []op.Part
	for _, part := range op.Parts(row) {
		switch {
		case !part.List:
			pairs = append(pairs, pair{part.Key, p.cell(part.Value, true)})
		case part.Value.Len() == 0:
			pairs = append(pairs, pair{part.Key, "none"})
		default:
			lists = append(lists, part)
		}
	}
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
		if _, err := fmt.Fprintf(p.out, "\n%s:\n", l.Key); err != nil {
			return err
		}
		if err := p.table(op.Shown(op.Columns(l.Value.Type().Elem()), wide), op.Elements(l.Value), "  "); err != nil {
			return err
		}
	}
	return nil
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
	if s := clean(op.Plain(v)); s != "" {
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
