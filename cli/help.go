package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"footplate/controlplane/op"
	"footplate/fleet"
)

// What the commands do that this package adds to the operations.
const (
	completionShort = "print the completion script of a shell: bash, zsh, fish or powershell"
	helpShort       = "explain a command"
	versionShort    = "print the version"
)

func (p *program) helpCommand() *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND]", Short: helpShort,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return p.writeRootHelp(p.out)
			}
			// A command that main has added explains itself.
			if c, rest, err := p.root.Find(args); err == nil && c != p.root && len(rest) == 0 && !p.isNoun(args[0]) {
				return c.Help()
			}
			err := p.help(p.out, args)
			if err != nil && !p.isNoun(args[0]) {
				return p.unknown(args)
			}
			return err
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
			c, rest, err := p.root.Find(args)
			if err != nil || len(rest) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			var out []string
			for _, sub := range c.Commands() {
				if sub.IsAvailableCommand() && strings.HasPrefix(sub.Name(), toComplete) {
					out = append(out, sub.Name()+"\t"+sub.Short)
				}
			}
			return out, cobra.ShellCompDirectiveNoFileComp
		},
	}
}

func (p *program) isNoun(word string) bool {
	return slices.ContainsFunc(p.registry.Ops(), func(o *op.Op) bool { return !o.Hidden() && o.Noun() == word })
}

// nounSummary lists the verbs under a prefix of names.
func (s *Session) nounSummary(prefix string) string {
	var verbs []string
	for _, o := range s.under(prefix) {
		verbs = append(verbs, strings.TrimPrefix(o.Name, prefix+" "))
	}
	return strings.Join(verbs, ", ")
}

// under returns the operations whose names begin with the words of prefix.
func (s *Session) under(prefix string) []*op.Op {
	var out []*op.Op
	for _, o := range s.registry.Ops() {
		if !o.Hidden() && strings.HasPrefix(o.Name, prefix+" ") {
			out = append(out, o)
		}
	}
	return out
}

// help explains an operation, a noun, or lists all.
func (s *Session) help(w io.Writer, words []string) error {
	if len(words) == 0 {
		return writeOperations(w, s.registry.Ops())
	}
	name := strings.Join(words, " ")
	if o, ok := s.registry.Get(name); ok && !o.Hidden() {
		return writeHelp(w, o)
	}
	if ops := s.under(name); len(ops) > 0 {
		var b strings.Builder
		for _, o := range ops {
			fmt.Fprintf(&b, "footplate %s\n    %s\n", o.Usage(), o.Summary)
		}
		fmt.Fprintf(&b, "\nfootplate help %s VERB says more.\n", name)
		_, err := io.WriteString(w, b.String())
		return err
	}
	o, rest, err := s.registry.Find(words)
	if err != nil {
		return err
	}
	return fleet.Invalidf("%s has no part %q to explain", o.Name, strings.Join(rest, " ")).WithHint("footplate help %s", o.Name)
}

// writeOperations lists operations, grouped by noun.
func writeOperations(w io.Writer, ops []*op.Op) error {
	width := 0
	for _, o := range ops {
		if !o.Hidden() {
			width = max(width, len(o.Name))
		}
	}
	var b strings.Builder
	noun := ""
	for _, o := range ops {
		if o.Hidden() {
			continue
		}
		if noun != "" && noun != o.Noun() {
			b.WriteByte('\n')
		}
		noun = o.Noun()
		fmt.Fprintf(&b, "  %-*s  %s\n", width, o.Name, o.Summary)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (p *program) writeRootHelp(w io.Writer) error {
	var b strings.Builder
	b.WriteString("footplate drives a fleet of CI hosts.\n\nOperations:\n")
	if err := writeOperations(&b, p.registry.Ops()); err != nil {
		return err
	}
	b.WriteString("\nOther commands:\n")
	others := []flagLine{{"completion", completionShort}, {"help", helpShort}, {"version", versionShort}}
	for _, c := range p.extra {
		others = append(others, flagLine{c.Name, c.Short})
	}
	slices.SortFunc(others, func(a, b flagLine) int { return strings.Compare(a.flag, b.flag) })
	b.WriteString(flagLines(others))
	b.WriteString("\nFlags of every command:\n")
	b.WriteString(programHelp())
	b.WriteString("\nfootplate help COMMAND says more. Exit codes are listed there.\n")
	_, err := io.WriteString(w, b.String())
	return err
}

type flagLine struct{ flag, help string }

func flagLines(lines []flagLine) string {
	width := 0
	for _, l := range lines {
		width = max(width, len(l.flag))
	}
	var b strings.Builder
	for _, l := range lines {
		fmt.Fprintf(&b, "  %-*s  %s\n", width, l.flag, l.help)
	}
	return b.String()
}

func programHelp() string {
	var lines []flagLine
	for _, f := range programFlags() {
		lines = append(lines, flagLine{"--" + f.name + " " + f.value, f.help})
	}
	return flagLines(lines)
}

// writeHelp explains one operation.
func writeHelp(w io.Writer, o *op.Op) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n  footplate %s\n", o.Summary, o.Usage())
	if o.Long != "" {
		fmt.Fprintf(&b, "\n%s\n", o.Long)
	}
	var args, flags []flagLine
	for _, p := range o.Params {
		l := flagLine{help: paramHelp(p)}
		switch {
		case p.Arg != "":
			l.flag = p.Placeholder()
			args = append(args, l)
		case p.Flag != "":
			l.flag = "--" + p.Flag
			if !p.Bool {
				l.flag += " " + p.Value()
			}
			flags = append(flags, l)
		}
	}
	if followable(o) {
		flags = append(flags, flagLine{"--follow", "show the log as it comes, and fail when the build does not pass"})
	}
	if len(args) > 0 {
		b.WriteString("\nArguments:\n" + flagLines(args))
	}
	if len(flags) > 0 {
		b.WriteString("\nFlags:\n" + flagLines(flags))
	}
	var options []flagLine
	for _, opt := range op.OptionList() {
		l := flagLine{"--" + opt.Flag, opt.Help}
		if opt.Flag == "output" {
			l = flagLine{"-o, --output", strings.Join(formatsOf(o), ", ")}
		}
		if !opt.Bool {
			l.flag += " " + optionValue(opt.Flag)
		}
		if takes(o, opt.Flag) {
			options = append(options, l)
		}
	}
	if len(options) > 0 {
		b.WriteString("\nFlags of every operation:\n" + flagLines(options))
	}
	b.WriteString("\nFlags of every command:\n" + programHelp())
	if len(o.Examples) > 0 {
		b.WriteString("\nExamples:\n")
		for _, e := range o.Examples {
			fmt.Fprintf(&b, "  footplate %s\n", e)
		}
	}
	fmt.Fprintf(&b, "\nNeeds the role %s", o.Role)
	if o.Risk == op.Disruptive || o.Risk == op.Dangerous {
		fmt.Fprintf(&b, "; %s, so it asks first", o.Risk)
	}
	b.WriteString(".\nExit codes: " + exitCodes() + ".\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// takes reports whether an option means something to o in a shell, which knows
// more than one form of a log.
func takes(o *op.Op, option string) bool {
	return o.Takes(option) || option == "output" && len(formatsOf(o)) > 0
}

func optionValue(flag string) string {
	switch flag {
	case "idempotency-key":
		return "KEY"
	case "output":
		return "FORMAT"
	}
	return "TEXT"
}

func paramHelp(p op.Param) string {
	s := p.Help
	if len(p.Enum) > 0 && !strings.Contains(p.Help, p.Enum[0]) {
		s += "; one of " + strings.Join(p.Enum, ", ")
	}
	if p.Default != "" {
		s += " (" + p.Default + " when it is not given)"
	}
	if p.Required {
		s += " (required)"
	}
	return s
}

func exitCodes() string {
	var parts []string
	seen := make(map[int]bool)
	for _, m := range fleet.CodeTable() {
		means, _, _ := strings.Cut(m.Means, ":")
		if seen[m.Exit] {
			continue
		}
		seen[m.Exit] = true
		parts = append(parts, fmt.Sprintf("%d %s", m.Exit, means))
	}
	return strings.Join(parts, ", ")
}
