package cli

import (
	"fmt"
	"io"
	"os"
	"strings"

	"footplate/controlplane/op"
	"footplate/fleet"

	"github.com/spf13/cobra"
)

// The reference stands between these lines of a document.
const (
	referenceBegin = "<!-- operations:begin -->\n"
	referenceEnd   = "<!-- operations:end -->\n"
)

// referenceCommand is "footplate reference": for those who write documents, so
// it is not listed.
func (p *program) referenceCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use: "reference", Short: "print the reference of the operations, in Markdown", Args: cobra.NoArgs, Hidden: true,
		RunE: func(*cobra.Command, []string) error {
			if file == "" {
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
	head, rest, ok := strings.Cut(doc, referenceBegin)
	_, tail, ok2 := strings.Cut(rest, referenceEnd)
	if !ok || !ok2 {
		return "", fleet.Invalidf("the document has no place for the reference").
			WithHint("it stands between the lines %s and %s", strings.TrimSpace(referenceBegin), strings.TrimSpace(referenceEnd))
	}
	var b strings.Builder
	if err := WriteReference(&b, r); err != nil {
		return "", err
	}
	return head + referenceBegin + "\n" + strings.TrimRight(b.String(), "\n") + "\n\n" + referenceEnd + tail, nil
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
