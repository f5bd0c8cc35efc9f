package cli

import (
	"fmt"
	"io"
	"os"
	"strings"

	"footplate/controlplane/op"
	"footplate/fleet"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// The reference stands between these lines of a document.
const (
	referenceBegin = "<!-- operations:begin -->\n"
	referenceEnd   = "<!-- operations:end -->\n"

	configurationBegin = "<!-- configuration:begin -->\n"
	configurationEnd   = "<!-- configuration:end -->\n"
)

// referenceCommand is "footplate reference": for those who write documents, so
// it is not listed.
func (p *program) referenceCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use: "reference", Short: "print the references of the operations and of the configuration, in Markdown", Args: cobra.NoArgs, Hidden: true,
		RunE: func(*cobra.Command, []string) error {
			if file == "" {
				if err := p.writeConfiguration(p.out); err != nil {
					return err
				}
				return WriteReference(p.out, p.registry)
			}
			old, err := os.ReadFile(file)
			if err != nil {
				return fleet.NotFoundf("cannot read %q: %s", file, err)
			}
			doc, err := withReference(string(old), p.registry)
			if err != nil {
				return err
			}
			var b strings.Builder
			if err := p.writeConfiguration(&b); err != nil {
				return err
			}
			if doc, err = between(doc, configurationBegin, configurationEnd, b.String()); err != nil {
				return err
			}
			if doc == string(old) {
				return nil
			}
			if err := os.WriteFile(file, []byte(doc), 0o644); err != nil {
				return fleet.Invalidf("cannot write %q: %s", file, err)
			}
			return nil
		},
	}
	c.Flags().StringVar(&file, "write", "", "put it between the markers of this file")
	return c
}

// withReference returns doc with the reference between its markers.
func withReference(doc string, r *op.Registry) (string, error) {
	var b strings.Builder
	if err := WriteReference(&b, r); err != nil {
		return "", err
	}
	return between(doc, referenceBegin, referenceEnd, b.String())
}

// between returns doc with text between two of its lines.
func between(doc, begin, end, text string) (string, error) {
	head, rest, ok := strings.Cut(doc, begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return "", fleet.Invalidf("the document has no place for the reference").
			WithHint("it stands between the lines %s and %s", strings.TrimSpace(begin), strings.TrimSpace(end))
	}
	return head + begin + "\n" + strings.TrimRight(text, "\n") + "\n\n" + end + tail, nil
}

// writeConfiguration writes the settings of the program in Markdown: what the
// processes are started with. What an operator may want to change at three in the
// morning is not among them: it is replicated, and has operations.
func (p *program) writeConfiguration(w io.Writer) error {
	var b strings.Builder
	b.WriteString("### The CLI\n\n")
	b.WriteString("| flag | meaning |\n| --- | --- |\n")
	for _, f := range programFlags() {
		fmt.Fprintf(&b, "| `--%s` | %s |\n", f.name, cellMD(f.help))
	}
	b.WriteByte('\n')
	writeVariables(&b, variables())
	for _, c := range p.extra {
		made := c.Make()
		for _, sub := range append([]*cobra.Command{made}, made.Commands()...) {
			name, short := c.Name, c.Short
			if sub != made {
				name, short = c.Name+" "+sub.Name(), sub.Short
			} else if made.HasSubCommands() {
				continue
			}
			fmt.Fprintf(&b, "### footplate %s\n\n%s%s.\n\n", name, strings.ToUpper(short[:1]), short[1:])
			var flags strings.Builder
			sub.LocalFlags().VisitAll(func(f *pflag.Flag) {
				if !f.Hidden && f.Name != "help" {
					fmt.Fprintf(&flags, "| `--%s` | %s | %s |\n", f.Name, cellMD(defaultOf(f)), cellMD(f.Usage))
				}
			})
			if flags.Len() > 0 {
				fmt.Fprintf(&b, "| flag | default | meaning |\n| --- | --- | --- |\n%s\n", &flags)
			}
			writeVariables(&b, c.Reads)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// defaultOf returns what a flag is when it is left out; "" when that is nothing,
// or depends on the machine.
func defaultOf(f *pflag.Flag) string {
	if name, _ := os.Hostname(); f.DefValue == "false" || f.DefValue == "[]" || f.DefValue == "0s" || f.DefValue == name {
		return ""
	}
	return f.DefValue
}

func writeVariables(b *strings.Builder, list []Variable) {
	if len(list) == 0 {
		return
	}
	b.WriteString("| environment | meaning |\n| --- | --- |\n")
	for _, v := range list {
		help := cellMD(v.Help)
		if v.Secret {
			help += "; or `" + v.Name + "_FILE`, a file with it"
		}
		fmt.Fprintf(b, "| `%s` | %s |\n", v.Name, help)
	}
	b.WriteByte('\n')
}

// WriteReference writes the reference of the operations in Markdown, as it
// stands in OPERATIONS.md.
func WriteReference(w io.Writer, r *op.Registry) error {
	var b strings.Builder
	noun := ""
	for _, o := range r.Ops() {
		if o.Hidden() {
			continue
		}
		if o.Noun() != noun {
			noun = o.Noun()
			fmt.Fprintf(&b, "### %s\n\n", noun)
		}
		fmt.Fprintf(&b, "#### %s\n\n", o.Name)
		fmt.Fprintf(&b, "%s%s.", strings.ToUpper(o.Summary[:1]), o.Summary[1:])
		if o.Long != "" {
			fmt.Fprintf(&b, " %s", strings.ReplaceAll(o.Long, "\n", " "))
		}
		fmt.Fprintf(&b, "\n\n```\nfootplate %s\n```\n\n", o.Usage())
		fmt.Fprintf(&b, "Role: %s. Risk: %s. Record: %s. API: `%s /v1/%s`.\n\n", o.Role, riskWord(o), recordWord(o), method(o), o.Path())
		if len(o.Params) > 0 {
			b.WriteString("| argument | in JSON | type | default | meaning |\n| --- | --- | --- | --- | --- |\n")
			for _, p := range o.Params {
				typ, def, help := p.Type, p.Default, p.Help
				if p.Many {
					typ = "list of " + typ
				}
				if len(p.Enum) > 0 && !strings.Contains(help, p.Enum[0]) {
					help += "; one of " + strings.Join(p.Enum, ", ")
				}
				if p.Required {
					def = "required"
				}
				fmt.Fprintf(&b, "| `%s` | `%s` | %s | %s | %s |\n", p.Placeholder(), p.Name, typ, cellMD(def), cellMD(help))
			}
			b.WriteByte('\n')
		}
		if len(o.Examples) > 0 {
			b.WriteString("```\n")
			for _, e := range o.Examples {
				fmt.Fprintf(&b, "footplate %s\n", e)
			}
			b.WriteString("```\n\n")
		}
	}
	b.WriteString("### Flags of every operation\n\n| flag | meaning |\n| --- | --- |\n")
	for _, o := range op.OptionList() {
		help := o.Help
		if o.Flag == "output" {
			help = strings.Join(formats(), ", ")
		}
		fmt.Fprintf(&b, "| `--%s` | %s |\n", o.Flag, cellMD(help))
	}
	for _, f := range programFlags() {
		fmt.Fprintf(&b, "| `--%s` | %s |\n", f.name, cellMD(f.help))
	}
	b.WriteString("\n### Exit codes\n\n| exit code | code | HTTP | meaning |\n| --- | --- | --- | --- |\n")
	for _, m := range fleet.CodeTable() {
		code := "`" + string(m.Code) + "`"
		if m.Code == "" {
			code = ""
		}
		fmt.Fprintf(&b, "| %d | %s | %d | %s |\n", m.Exit, code, m.HTTP, cellMD(m.Means))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func cellMD(s string) string { return strings.ReplaceAll(s, "|", `\|`) }

func riskWord(o *op.Op) string {
	if o.Risk == "" {
		return string(op.Safe)
	}
	return string(o.Risk)
}

func recordWord(o *op.Op) string {
	if o.Record == "" {
		return "none"
	}
	return string(o.Record)
}

func method(o *op.Op) string {
	if o.Kind == op.KindMutation {
		return "POST"
	}
	return "GET"
}
