package cli

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"footplate/controlplane/op"
)

// completeBudget bounds how long a completion may ask the cluster.
const completeBudget = 500 * time.Millisecond

// completer completes the words of an operation for the shell.
func (p *program) completer(o *op.Op) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
		words, files := p.complete(cmd.Context(), o, args, toComplete, true)
		if files {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return words, cobra.ShellCompDirectiveNoFileComp
	}
}

func (p *program) completeProgramFlag(flag string) cobra.CompletionFunc {
	return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		if flag == "color" {
			return []string{"auto", "always", "never"}, cobra.ShellCompDirectiveNoFileComp
		}
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
}

// Complete returns what the last of words, which may be empty, can become.
func (s *Session) Complete(ctx context.Context, words []string) []string {
	if len(words) == 0 {
		words = []string{""}
	}
	typed, last := words[:len(words)-1], words[len(words)-1]
	if o, rest, err := s.registry.Find(typed); err == nil {
		found, _ := s.complete(ctx, o, rest, last, false)
		return found
	}
	prefix := ""
	for _, w := range typed {
		prefix += w + " "
	}
	var out []string
	for _, o := range s.registry.Ops() {
		rest, ok := strings.CutPrefix(o.Name, prefix)
		if o.Hidden() || !ok {
			continue
		}
		next, _, _ := strings.Cut(rest, " ")
		if strings.HasPrefix(next, last) && (len(out) == 0 || out[len(out)-1] != next) {
			out = append(out, next)
		}
	}
	return out
}

// complete returns what last, after the words typed behind the name of o, can
// become; files reports that it is the name of a file. With described, what a
// flag means comes after a tab.
func (s *Session) complete(ctx context.Context, o *op.Op, typed []string, last string, described bool) (words []string, files bool) {
	add := func(word, help string) {
		if !strings.HasPrefix(word, last) {
			return
		}
		if described && help != "" {
			word += "\t" + help
		}
		words = append(words, word)
	}
	positional := 0
	var open string // the flag whose value comes next
	literal := false
	for _, w := range typed {
		switch {
		case open != "":
			open = ""
		case literal:
			positional++
		case w == "--":
			literal = true
		case strings.HasPrefix(w, "-") && w != "-":
			if strings.Contains(w, "=") {
				continue
			}
			flag := strings.TrimLeft(w, "-")
			switch {
			case w == "-o":
				flag = "output"
			case w == "-f" && hasFlag(o, "file"):
				flag = "file"
			}
			isBool, known := flagKind(o, flag)
			if known && !isBool || !known && s.settings.has(flag) {
				open = flag
			}
		default:
			positional++
		}
	}
	prefix := ""
	if name, value, ok := strings.Cut(last, "="); ok && strings.HasPrefix(name, "--") && open == "" {
		open, prefix = name[2:], name+"="
		_ = value
	}
	offer := func(p op.Param) bool {
		for _, e := range p.Enum {
			add(prefix+e, "")
		}
		if p.Complete != "" {
			for _, n := range s.namesOfNoun(ctx, p.Complete) {
				add(prefix+n, "")
			}
		}
		return p.Type == "object"
	}
	if open != "" {
		switch open {
		case "output":
			for _, f := range formatsOf(o) {
				add(prefix+f, "")
			}
		case "color":
			for _, c := range []string{"auto", "always", "never"} {
				add(prefix+c, "")
			}
		}
		for _, p := range o.Params {
			if p.Flag == open {
				return words, offer(p) || words == nil && (p.Flag == "repo")
			}
		}
		return words, false
	}
	if strings.HasPrefix(last, "-") && !literal {
		for _, p := range o.Params {
			if p.Flag != "" {
				add("--"+p.Flag, p.Help)
			}
		}
		if followable(o) {
			add("--follow", "show the log as it comes")
		}
		for _, opt := range op.OptionList() {
			if takes(o, opt.Flag) {
				add("--"+opt.Flag, opt.Help)
			}
		}
		if !described {
			return words, false
		}
		add("--help", "explain the command")
		return words, false
	}
	i := 0
	for _, p := range o.Params {
		if p.Arg == "" {
			continue
		}
		if i == positional || p.Many {
			offer(p)
			return words, false
		}
		i++
	}
	return words, s.offline[o.Name] != nil && positional == 0
}

// namesOfNoun asks for the names of what exists, from any node, with little
// patience: a completion is worth no more.
func (s *Session) namesOfNoun(ctx context.Context, noun string) []string {
	o, ok := s.registry.Get(noun + " list")
	if !ok || o.Kind != op.KindQuery {
		return nil
	}
	c, err := s.dial()
	if err != nil {
		return nil
	}
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, completeBudget)
	defer cancel()
	raw, _, err := c.query(ctx, o, o.NewArgs(), true)
	if err != nil {
		return nil
	}
	rows, err := o.Rows(raw)
	if err != nil {
		return nil
	}
	names, _ := o.Names(rows)
	for i, n := range names {
		names[i] = clean(n)
	}
	return names
}
