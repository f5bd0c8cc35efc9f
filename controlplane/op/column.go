package op

import (
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"footplate/fleet"
)

// Column is one field of a query's row, as its tags have it:
//
//	json:"pool"  its name
//	col:"POOL"   the head of its column; without one it is in no table
//	wide:"true"  only in a wide table
//	id:"true"    the name of what the row is about
//	help:"..."   one line, for the reference
//
// A row whose fields all lack col has all of them in its tables. Each surface
// draws its own tables; what stands in them it has from here.
type Column struct {
	Name     string // in JSON
	Head     string // empty when it is in no table
	Wide, ID bool
	Optional bool // absent from JSON when it is empty
	Field    reflect.StructField
}

// Columns returns the fields of a row, those of embedded structs among them.
func Columns(t reflect.Type) []Column {
	var all []Column
	tagged := false
	for _, f := range reflect.VisibleFields(t) {
		name, rest, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous || !f.IsExported() || name == "-" {
			continue
		}
		if name == "" {
			name = f.Name
		}
		c := Column{
			Name: name, Head: f.Tag.Get("col"), Wide: f.Tag.Get("wide") == "true", ID: f.Tag.Get("id") == "true",
			Optional: strings.Contains(rest, "omitempty") || strings.Contains(rest, "omitzero"), Field: f,
		}
		tagged = tagged || c.Head != ""
		all = append(all, c)
	}
	if !tagged {
		for i := range all {
			all[i].Head = strings.ToUpper(strings.ReplaceAll(all[i].Name, "_", " "))
		}
	}
	return all
}

// Of returns the column's value in a row.
func (c Column) Of(row reflect.Value) reflect.Value { return row.FieldByIndex(c.Field.Index) }

// Shown returns the columns of a table.
func Shown(cols []Column, wide bool) []Column {
	var out []Column
	for _, c := range cols {
		if c.Head != "" && (wide || !c.Wide) {
			out = append(out, c)
		}
	}
	return out
}

// Rows reads the answer of a query: its rows, one when it is no list.
func (o *Op) Rows(raw json.RawMessage) ([]reflect.Value, error) {
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
	return Elements(v.Elem()), nil
}

// Elements returns what a slice holds.
func Elements(list reflect.Value) []reflect.Value {
	out := make([]reflect.Value, list.Len())
	for i := range out {
		out[i] = list.Index(i)
	}
	return out
}

// Names returns the names of what rows are about, of which a surface still has
// to make text that is safe to show; ok is false when they have none.
func (o *Op) Names(rows []reflect.Value) (names []string, ok bool) {
	for _, c := range Columns(o.Row) {
		if !c.ID {
			continue
		}
		for _, r := range rows {
			names = append(names, Plain(c.Of(r)))
		}
		return names, true
	}
	return nil, false
}

// Part is one piece of a row that is shown by itself: a line, or a list of rows
// with a table of its own.
type Part struct {
	Column
	Key   string // the column's name and those of the structs around it, in words
	Value reflect.Value
	List  bool
}

// Parts takes a row apart. What is optional and empty is left out.
func Parts(row reflect.Value) []Part { return appendParts(nil, row, "") }

func appendParts(out []Part, row reflect.Value, prefix string) []Part {
	for _, c := range Columns(row.Type()) {
		v := c.Of(row)
		key := prefix + strings.ReplaceAll(c.Name, "_", " ")
		switch {
		case c.Optional && v.IsZero():
		case v.Kind() == reflect.Struct && Nested(v.Type()):
			out = appendParts(out, v, key+" ")
		default:
			list := v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Struct
			out = append(out, Part{Column: c, Key: key, Value: v, List: list})
		}
	}
	return out
}

// Sentence returns what a row says in a sentence of its own: its field "text".
// That of a row embedded in it says less than the whole.
func Sentence(row reflect.Value) (text string, ok bool) {
	f, ok := row.Type().FieldByName("Text")
	if !ok || len(f.Index) > 1 || f.Type.Kind() != reflect.String || f.Tag.Get("json") != "text" {
		return "", false
	}
	return row.FieldByIndex(f.Index).String(), true
}

// Nested reports whether t is neither a word nor a number nor a list of words.
func Nested(t reflect.Type) bool {
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

// Plain returns a value as machines read it, empty when there is none. Words of
// a list have commas between.
func Plain(v reflect.Value) string {
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
	case (v.Kind() == reflect.Map || v.Kind() == reflect.Slice) && v.Len() == 0, v.Kind() == reflect.Struct && v.IsZero():
		return ""
	}
	b, err := json.Marshal(v.Interface())
	if err != nil {
		return ""
	}
	return string(b)
}
