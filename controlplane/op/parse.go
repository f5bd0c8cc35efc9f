package op

import (
	"slices"
	"strings"
	"unicode/utf8"

	"footplate/fleet"
)

// Options are what every operation takes beside its own arguments.
type Options struct {
	Reason   string
	DryRun   bool
	Yes      bool
	Key      string
	Incident string
	Output   string
	Stale    bool
}

// Option describes one of the options, for help and for the CLI's flags.
type Option struct {
	Flag, Help string
	Bool       bool
}

// OptionList lists the options that every operation takes.
func OptionList() []Option {
	return []Option{
		{"reason", "why, for the record", false},
		{"dry-run", "show what it would do, and do nothing", true},
		{"yes", "do not ask before something disruptive", true},
		{"idempotency-key", "the same key never acts twice", false},
		{"incident", "the incident that this belongs to", false},
		{"output", "table, wide, json, jsonl, yaml, csv or name", false},
		{"stale", "answer from any node, without a quorum", true},
	}
}

// Takes reports whether an option of every operation means something to o.
func (o *Op) Takes(option string) bool {
	switch option {
	case "output":
		return o.Kind != KindStream
	case "stale":
		return o.Kind == KindQuery || o.Kind == KindStream && !o.Logged()
	case "dry-run", "yes":
		return o.Kind == KindMutation
	}
	return o.Logged()
}

// Call is an operation with its arguments, as somebody typed it.
type Call struct {
	Op      *Op
	Args    any
	Options Options
}

// MaxLine bounds a typed command.
const MaxLine = 16 << 10

// Split cuts a typed line into words as a shell would: blanks separate, single
// and double quotes keep together, a backslash keeps the next character. The
// curly quotes that phones make count as straight ones.
func Split(line string) ([]string, error) {
	if len(line) > MaxLine {
		return nil, fleet.Invalidf("the command is %d bytes long; at most %d are allowed", len(line), MaxLine)
	}
	if !utf8.ValidString(line) {
		return nil, fleet.Invalidf("the command is not valid UTF-8")
	}
	line = strings.NewReplacer("\u201c", `"`, "\u201d", `"`, "\u2018", "'", "\u2019", "'", "\u00a0", " ").Replace(line)
	var words []string
	var word strings.Builder
	in, quote := false, rune(0)
	escaped := false
	for _, c := range line {
		switch {
		case c == 0:
			return nil, fleet.Invalidf("the command has a zero byte")
		case escaped:
			word.WriteRune(c)
			escaped = false
		case c == '\\' && quote != '\'':
			escaped, in = true, true
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '"' || c == '\''):
			quote, in = c, true
		case quote == 0 && (c == ' ' || c == '\t' || c == '\n' || c == '\r'):
			if in {
				words = append(words, word.String())
				word.Reset()
			}
			in = false
		default:
			word.WriteRune(c)
			in = true
		}
	}
	if quote != 0 {
		return nil, fleet.Invalidf("the quote %c is not closed", quote)
	}
	if escaped {
		return nil, fleet.Invalidf("the command ends with a backslash")
	}
	if in {
		words = append(words, word.String())
	}
	return words, nil
}

// Parse reads a typed line, the same in chat, runbooks and examples:
// "pool scale linux +2 --reason 'monday ramp'".
func (r *Registry) Parse(line string) (*Call, error) {
	words, err := Split(line)
	if err != nil {
		return nil, err
	}
	return r.ParseWords(words)
}

// ParseWords reads a command that is already cut into words.
func (r *Registry) ParseWords(words []string) (*Call, error) {
	o, rest, err := r.Find(words)
	if err != nil {
		return nil, err
	}
	call := &Call{Op: o}
	var positional []string
	named := make(map[string][]string)
	for i := 0; i < len(rest); i++ {
		w := rest[i]
		if w == "--" {
			positional = append(positional, rest[i+1:]...)
			break
		}
		// An em dash is what phones make of two hyphens.
		if d, ok := strings.CutPrefix(w, "\u2014"); ok {
			w = "--" + d
		}
		if w == "-o" {
			w = "--output"
		} else if v, ok := strings.CutPrefix(w, "-o="); ok {
			w = "--output=" + v
		}
		flag, ok := strings.CutPrefix(w, "--")
		if !ok {
			if len(w) > 1 && w[0] == '-' && (w[1] < '0' || w[1] > '9') {
				return nil, o.unknownFlag(strings.TrimLeft(w, "-"))
			}
			positional = append(positional, w)
			continue
		}
		name, value, given := strings.Cut(flag, "=")
		isBool, known := o.flagKind(name)
		if !known {
			return nil, o.unknownFlag(name)
		}
		if !given {
			switch {
			case isBool:
				value = "true"
			case i+1 < len(rest):
				i++
				value = rest[i]
			default:
				return nil, fleet.Invalidf("--%s needs a value", name)
			}
		}
		taken := false
		// A flag of the operation's own has its own meaning.
		if !slices.ContainsFunc(o.Params, func(p Param) bool { return p.Flag == name }) {
			if taken, err = call.Options.set(name, value); err != nil {
				return nil, err
			}
		}
		if !taken {
			named[name] = append(named[name], value)
		}
	}
	call.Args, err = o.Bind(positional, named)
	if err != nil {
		return nil, err
	}
	return call, nil
}

func (o *Op) flagKind(name string) (isBool, known bool) {
	for _, p := range o.Params {
		if p.Flag == name && name != "" {
			return p.Bool, true
		}
	}
	for _, opt := range OptionList() {
		if opt.Flag == name {
			return opt.Bool, true
		}
	}
	return false, false
}

func (opts *Options) set(name, value string) (taken bool, err error) {
	if !utf8.ValidString(value) {
		return true, fleet.Invalidf("--%s is not valid UTF-8", name)
	}
	yes := func(b *bool) (bool, error) {
		switch value {
		case "true":
			*b = true
		case "false":
			*b = false
		default:
			return true, fleet.Invalidf("--%s is %q; it must be true or false", name, value)
		}
		return true, nil
	}
	switch name {
	case "reason":
		opts.Reason = value
	case "idempotency-key":
		opts.Key = value
	case "incident":
		opts.Incident = value
	case "output":
		opts.Output = value
	case "dry-run":
		return yes(&opts.DryRun)
	case "yes":
		return yes(&opts.Yes)
	case "stale":
		return yes(&opts.Stale)
	default:
		return false, nil
	}
	return true, nil
}

// Find returns the operation that words begin with, and the words after its
// name. An error suggests what may have been meant; nothing is ever run on a
// guess.
func (r *Registry) Find(words []string) (*Op, []string, error) {
	if len(words) == 0 {
		return nil, nil, fleet.Invalidf("no command is given").WithHint("footplate help lists them")
	}
	for n := min(3, len(words)); n >= 2; n-- {
		if o, ok := r.Get(strings.Join(words[:n], " ")); ok && !o.Hidden() {
			return o, words[n:], nil
		}
	}
	var nouns, verbs []string
	for _, o := range r.Ops() {
		if o.Hidden() {
			continue
		}
		if len(nouns) == 0 || nouns[len(nouns)-1] != o.Noun() {
			nouns = append(nouns, o.Noun())
		}
		if o.Noun() == words[0] {
			verbs = append(verbs, o.Verb())
		}
	}
	switch {
	case len(verbs) == 0:
		e := fleet.Invalidf("there is no command %q", words[0])
		if near := fleet.Nearest(words[0], nouns); near != "" {
			return nil, nil, e.WithHint("did you mean %q?", near)
		}
		return nil, nil, e.WithHint("footplate help lists them")
	case len(words) == 1:
		return nil, nil, fleet.Invalidf("%s needs a verb", words[0]).WithHint("one of %s", strings.Join(verbs, ", "))
	}
	e := fleet.Invalidf("%s has no verb %q", words[0], words[1])
	if near := fleet.Nearest(words[1], verbs); near != "" {
		return nil, nil, e.WithHint("did you mean \"%s %s\"?", words[0], near)
	}
	return nil, nil, e.WithHint("one of %s", strings.Join(verbs, ", "))
}
