package page

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"

	"footplate/controlplane/op"
)

// completeBudget bounds how long a completion may ask.
const completeBudget = 500 * time.Millisecond

// maxOffers bounds how many are offered.
const maxOffers = 50

// offer is what a word can become.
type offer struct {
	Word string `json:"word"`
	Help string `json:"help,omitempty"`
}

// offers are what the last word of a line can become.
type offers struct {
	From  int     `json:"from"` // where that word begins, in UTF-16 units as the script counts
	Usage string  `json:"usage,omitempty"`
	Words []offer `json:"words"`
}

// complete says what the last word of a line can become: GET /complete?line=.
func (p *Page) complete(w http.ResponseWriter, r *http.Request, v *visit) error {
	ctx, cancel := context.WithTimeout(r.Context(), completeBudget)
	defer cancel()
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(v.offers(ctx, r.URL.Query().Get("line")))
}

func (v *visit) offers(ctx context.Context, line string) offers {
	out := offers{From: units(line), Words: []offer{}}
	if len(line) > op.MaxLine {
		return out
	}
	words := strings.Fields(line)
	last := ""
	if line != "" && !strings.HasSuffix(line, " ") && len(words) > 0 {
		last, words = words[len(words)-1], words[:len(words)-1]
		out.From -= units(last)
	}
	if len(words) > 0 && words[0] == "footplate" {
		words = words[1:]
	}
	add := func(word, help string) {
		if strings.HasPrefix(word, last) && len(out.Words) < maxOffers {
			out.Words = append(out.Words, offer{word, help})
		}
	}
	if len(words) > 0 && words[0] == "help" {
		v.names(words[1:], add)
		return out
	}
	o, typed, err := v.page.cfg.Registry.Find(words)
	if err != nil {
		v.names(words, add)
		if len(words) == 0 {
			add("help", "explain a command")
		}
		return out
	}
	out.Usage = o.Usage()
	v.args(ctx, o, typed, last, add)
	return out
}

// names offers the words of operations' names after those typed.
func (v *visit) names(typed []string, add func(word, help string)) {
	prefix := ""
	for _, w := range typed {
		prefix += w + " "
	}
	var before string
	for _, o := range v.page.cfg.Registry.Ops() {
		rest, ok := strings.CutPrefix(o.Name, prefix)
		if o.Hidden() || !ok {
			continue
		}
		next, more, _ := strings.Cut(rest, " ")
		if next == before {
			continue
		}
		before = next
		if more == "" {
			add(next, o.Summary)
		} else {
			add(next, "")
		}
	}
}

// args offers flags and values of o.
func (v *visit) args(ctx context.Context, o *op.Op, typed []string, last string, add func(word, help string)) {
	open, positional := "", 0
	for _, w := range typed {
		switch name, _, given := strings.Cut(w, "="); {
		case open != "":
			open = ""
		case !strings.HasPrefix(w, "-") || w == "-":
			positional++
		case !given && !isBool(o, name):
			open = strings.TrimLeft(name, "-")
			if open == "o" {
				open = "output"
			}
		}
	}
	prefix := ""
	if name, _, ok := strings.Cut(last, "="); ok && open == "" && strings.HasPrefix(name, "--") {
		open, prefix = name[2:], name+"="
	}
	values := func(p op.Param) {
		for _, e := range p.Enum {
			add(prefix+e, "")
		}
		if p.Complete != "" {
			for _, n := range v.namesOf(ctx, p.Complete) {
				add(prefix+n, "")
			}
		}
	}
	switch {
	case open == "output":
		for _, f := range []string{"table", "wide", "json"} {
			add(prefix+f, "")
		}
	case open != "":
		for _, p := range o.Params {
			if p.Flag == open {
				values(p)
			}
		}
	case strings.HasPrefix(last, "-"):
		for _, p := range o.Params {
			if p.Flag != "" && p.Type != "object" {
				add("--"+p.Flag, p.Help)
			}
		}
		for _, opt := range op.OptionList() {
			if o.Takes(opt.Flag) {
				add("--"+opt.Flag, opt.Help)
			}
		}
	default:
		i := 0
		for _, p := range o.Params {
			if p.Arg == "" {
				continue
			}
			if i == positional || p.Many {
				values(p)
				return
			}
			i++
		}
	}
}

func isBool(o *op.Op, flag string) bool {
	flag = strings.TrimLeft(flag, "-")
	return slices.ContainsFunc(o.Params, func(p op.Param) bool { return p.Flag == flag && p.Bool }) ||
		slices.ContainsFunc(op.OptionList(), func(opt op.Option) bool { return opt.Flag == flag && opt.Bool })
}

// namesOf returns the names of what exists, as this node knows it.
func (v *visit) namesOf(ctx context.Context, noun string) []string {
	o, ok := v.page.cfg.Registry.Get(noun + " list")
	if !ok || o.Kind != op.KindQuery || !o.Many {
		return nil
	}
	raw, _, err := v.api.Query(ctx, o, o.NewArgs(), true)
	if err != nil {
		return nil
	}
	rows, err := o.Rows(raw)
	if err != nil {
		return nil
	}
	names, _ := o.Names(rows)
	for i, n := range names {
		names[i] = visible(n)
	}
	return names
}

// units returns the length of s in UTF-16 units.
func units(s string) int {
	n := 0
	for _, r := range s {
		n++
		if r > 0xffff {
			n++
		}
	}
	return n
}
