package op

import (
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"footplate/fleet"
)

// Param is one argument of an operation, read from the tags of its field:
//
//	json:"pool"      its name in the log and the API
//	flag:"pool"      its flag; without one it is given by position, or only in JSON
//	arg:"POOL"       its place-holder: it is given by position, in the order of the fields
//	help:"..."       one line
//	default:"1h"     when it is not given
//	complete:"pool"  the noun whose names complete it
//	enum:"a,b"       the values that it may have
//	required:"true"
//	secret:"true"    never shown or recorded
//
// A slice given by position takes all that follow.
type Param struct {
	Name, Flag, Arg, Help, Default, Complete string
	Enum                                     []string
	Required, Secret, Many, Bool             bool
	Type                                     string // for help: "string", "number", "duration", "size", "time", "object"

	index []int
}

var textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()

// paramsOf reads the parameters of every operation each time that the program
// starts, the shortest command too: so it goes through each tag once.
func paramsOf(t reflect.Type) []Param { return appendParams(make([]Param, 0, t.NumField()), t, nil) }

func appendParams(out []Param, t reflect.Type, at []int) []Param {
	for i := range t.NumField() {
		f := t.Field(i)
		index := append(slices.Clip(at), i)
		if f.Anonymous && f.Type.Kind() == reflect.Struct {
			out = appendParams(out, f.Type, index)
			continue
		}
		p := Param{index: index}
		for key, value := range tags(string(f.Tag)) {
			switch key {
			case "json":
				p.Name, _, _ = strings.Cut(value, ",")
			case "flag":
				p.Flag = value
			case "arg":
				p.Arg = value
			case "help":
				p.Help = value
			case "default":
				p.Default = value
			case "complete":
				p.Complete = value
			case "enum":
				p.Enum = strings.Split(value, ",")
			case "required":
				p.Required = value == "true"
			case "secret":
				p.Secret = value == "true"
			}
		}
		if p.Name == "" || p.Name == "-" {
			continue
		}
		ft := f.Type
		if ft.Kind() == reflect.Slice && ft.Elem().Kind() != reflect.Uint8 && p.Flag+p.Arg != "" {
			p.Many = true
			ft = ft.Elem()
		}
		if ft.Kind() == reflect.Pointer && p.Flag+p.Arg != "" {
			ft = ft.Elem() // nil when it is not given
		}
		switch {
		case ft == reflect.TypeFor[fleet.Duration]():
			p.Type = "duration"
		case ft == reflect.TypeFor[fleet.Time]():
			p.Type = "time"
		case ft == reflect.TypeFor[Size]():
			p.Type = "size"
		case ft.Kind() == reflect.String:
			p.Type = "string"
		case ft.Kind() == reflect.Bool:
			p.Type, p.Bool = "bool", true
		case ft.Kind() >= reflect.Int && ft.Kind() <= reflect.Uint64:
			p.Type = "number"
		default:
			p.Type = "object"
		}
		out = append(out, p)
	}
	return out
}

// tags yields the keys and values of a struct tag, which go vet has checked.
func tags(tag string) iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for tag != "" {
			key, rest, ok := strings.Cut(strings.TrimLeft(tag, " "), `:"`)
			end := 0
			for end < len(rest) && rest[end] != '"' {
				if rest[end] == '\\' {
					end++
				}
				end++
			}
			if !ok || end >= len(rest) {
				return
			}
			value := rest[:end]
			if strings.Contains(value, `\`) {
				value, _ = strconv.Unquote(`"` + value + `"`)
			}
			if !yield(key, value) {
				return
			}
			tag = rest[end+1:]
		}
	}
}

// Placeholder is how usage and errors name the parameter.
func (p Param) Placeholder() string {
	switch {
	case p.Arg != "" && p.Many:
		return p.Arg + "..."
	case p.Arg != "":
		return p.Arg
	case p.Flag != "":
		return "--" + p.Flag
	}
	return p.Name
}

// Value is how usage names what a flag takes: the noun that it names, one of a
// few words, or its type.
func (p Param) Value() string {
	switch {
	case len(p.Enum) > 0:
		return strings.ToUpper(p.Flag) // its words are in the help
	case p.Complete != "":
		return strings.ToUpper(p.Complete)
	case p.Type == "object":
		return "FILE"
	case p.Type == "string":
		return "TEXT"
	}
	return strings.ToUpper(p.Type)
}

// set gives the parameter its values in args, a struct.
func (p Param) set(args reflect.Value, values []string) error {
	f := args.FieldByIndex(p.index)
	if p.Many {
		s := reflect.MakeSlice(f.Type(), 0, len(values))
		for _, v := range values {
			e := reflect.New(f.Type().Elem()).Elem()
			if err := p.setOne(e, v); err != nil {
				return err
			}
			s = reflect.Append(s, e)
		}
		f.Set(s)
		return nil
	}
	if len(values) != 1 {
		return fleet.Invalidf("%s is given %d times", p.Placeholder(), len(values))
	}
	return p.setOne(f, values[0])
}

// checkEnum refuses a value that is not one of Enum, wherever it came from.
// Empty stands for "not given", unless there is a default.
func (p Param) checkEnum(f reflect.Value) error {
	switch {
	case len(p.Enum) == 0:
		return nil
	case p.Many:
		for i := range f.Len() {
			if err := p.allows(f.Index(i).String()); err != nil {
				return err
			}
		}
		return nil
	case f.IsZero() && p.Default == "":
		return nil
	}
	return p.allows(f.String())
}

func (p Param) allows(s string) error {
	if len(p.Enum) == 0 || slices.Contains(p.Enum, s) {
		return nil
	}
	return fleet.Invalidf("%s cannot be %q", p.Placeholder(), s).WithHint("one of %s", strings.Join(p.Enum, ", "))
}

func (p Param) setOne(f reflect.Value, s string) error {
	if f.Kind() == reflect.Pointer && p.Type != "object" {
		f.Set(reflect.New(f.Type().Elem()))
		f = f.Elem()
	}
	if err := p.allows(s); err != nil {
		return err
	}
	if f.Addr().Type().Implements(textUnmarshaler) {
		if err := f.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(s)); err != nil {
			if fe := asFleet(err); fe != nil {
				return fleet.Invalidf("%s: %s", p.Placeholder(), fe.Msg).WithHint("%s", fe.Hint)
			}
			return fleet.Invalidf("%s: %s", p.Placeholder(), err)
		}
		return nil
	}
	switch {
	case f.Kind() == reflect.String:
		f.SetString(s)
	case f.Kind() == reflect.Bool:
		b, err := strconv.ParseBool(s)
		if err != nil {
			return fleet.Invalidf("%s is %q; it must be true or false", p.Placeholder(), s)
		}
		f.SetBool(b)
	case f.CanInt():
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || f.OverflowInt(n) {
			return fleet.Invalidf("%s is %q; it must be a whole number", p.Placeholder(), s)
		}
		f.SetInt(n)
	case f.CanUint():
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil || f.OverflowUint(n) {
			return fleet.Invalidf("%s is %q; it must be a whole number, not negative", p.Placeholder(), s)
		}
		f.SetUint(n)
	default:
		if err := json.Unmarshal([]byte(s), f.Addr().Interface()); err != nil {
			return fleet.Invalidf("%s must be JSON: %s", p.Placeholder(), jsonError(err))
		}
	}
	return nil
}

// Bind makes arguments from words: those given by position, and those given by
// flag or, in a URL, by name. It validates them.
func (o *Op) Bind(positional []string, named map[string][]string) (any, error) {
	args, err := o.BindLoose(positional, named)
	if err != nil {
		return nil, err
	}
	if err := o.Validate(args); err != nil {
		return nil, err
	}
	return args, nil
}

// BindLoose is Bind without the validation, for callers that still add to the
// arguments.
func (o *Op) BindLoose(positional []string, named map[string][]string) (any, error) {
	args := o.NewArgs()
	v := reflect.ValueOf(args).Elem()
	rest := positional
	known := 0
	for _, p := range o.Params {
		if p.Arg != "" && len(rest) > 0 {
			take := rest[:1]
			if p.Many {
				take = rest
			}
			rest = rest[len(take):]
			if err := p.set(v, take); err != nil {
				return nil, err
			}
		}
		values, ok := named[p.Name]
		if p.Flag != "" && p.Flag != p.Name && !ok {
			values, ok = named[p.Flag]
		}
		if ok {
			known++
			if err := p.set(v, values); err != nil {
				return nil, err
			}
		}
	}
	if len(rest) > 0 {
		return nil, fleet.Invalidf("%s does not take %q", o.Name, rest[0]).WithHint("footplate %s", o.Usage())
	}
	if known < len(named) {
		for _, name := range slices.Sorted(maps.Keys(named)) {
			if !slices.ContainsFunc(o.Params, func(p Param) bool { return p.Name == name || p.Flag == name }) {
				return nil, o.unknownFlag(name)
			}
		}
	}
	return args, nil
}

func (o *Op) unknownFlag(name string) error {
	e := fleet.Invalidf("%s has no flag --%s", o.Name, name)
	var flags []string
	for _, p := range o.Params {
		if p.Flag != "" {
			flags = append(flags, p.Flag)
		}
	}
	if near := fleet.Nearest(name, flags); near != "" {
		return e.WithHint("did you mean --%s?", near)
	}
	return e.WithHint("footplate help %s lists them", o.Name)
}

// Usage returns the operation's synopsis: "pool scale POOL SIZE [--for DURATION]".
func (o *Op) Usage() string {
	var b strings.Builder
	b.WriteString(o.Name)
	for _, p := range o.Params {
		if p.Arg == "" {
			continue
		}
		if p.Required {
			b.WriteString(" " + p.Placeholder())
		} else {
			b.WriteString(" [" + p.Placeholder() + "]")
		}
	}
	for _, p := range o.Params {
		if p.Flag == "" {
			continue
		}
		s := "--" + p.Flag
		if !p.Bool {
			s += " " + p.Value()
		}
		if !p.Required {
			s = "[" + s + "]"
		}
		b.WriteString(" " + s)
	}
	return b.String()
}

func asFleet(err error) *fleet.Error {
	var e *fleet.Error
	if errors.As(err, &e) {
		return e
	}
	return nil
}

// Size is a number of hosts: "6" is that many, "+2" and "-2" that many more or
// fewer.
type Size struct {
	N        int
	Relative bool
	given    bool // by text: "0" is not the same as nothing
}

// Of returns the size that s means for something of size now.
func (s Size) Of(now int) int {
	if s.Relative {
		return now + s.N
	}
	return s.N
}

func (s Size) String() string {
	if s.Relative && s.N >= 0 {
		return "+" + strconv.Itoa(s.N)
	}
	return strconv.Itoa(s.N)
}

// MarshalText writes String's form.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads "6", "+2" and "-2"; also with the minus sign that phones
// make of a hyphen.
func (s *Size) UnmarshalText(b []byte) error {
	text := strings.Replace(strings.Replace(string(b), "\u2212", "-", 1), "\u2013", "-", 1)
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil {
		return fleet.Invalidf("%q is not a size", string(b)).WithHint("for example 6, +2 or -2")
	}
	*s = Size{N: int(n), Relative: text[0] == '+' || text[0] == '-', given: true}
	return nil
}

// Values writes arguments as the words of a URL, for Bind to read.
func (o *Op) Values(args any) (url.Values, error) {
	v := reflect.ValueOf(args)
	if v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	out := url.Values{}
	for _, p := range o.Params {
		f := v.FieldByIndex(p.index)
		if f.IsZero() && p.Default == "" {
			continue
		}
		if !p.Many {
			s, err := p.text(f)
			if err != nil {
				return nil, err
			}
			out.Set(p.Name, s)
			continue
		}
		for i := range f.Len() {
			s, err := p.text(f.Index(i))
			if err != nil {
				return nil, err
			}
			out.Add(p.Name, s)
		}
	}
	return out, nil
}

func (p Param) text(f reflect.Value) (string, error) {
	if f.Kind() == reflect.Pointer && p.Type != "object" {
		f = f.Elem()
	}
	if p.Type == "object" {
		b, err := json.Marshal(f.Interface())
		return string(b), err
	}
	if t, ok := f.Interface().(encoding.TextMarshaler); ok {
		b, err := t.MarshalText()
		return string(b), err
	}
	if p.Type == "string" {
		return f.String(), nil
	}
	return fmt.Sprint(f.Interface()), nil
}
