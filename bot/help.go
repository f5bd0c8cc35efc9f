package bot

import (
	"fmt"
	"slices"
	"strings"

	"footplate/controlplane/catalog"
	"footplate/controlplane/op"
	"footplate/fleet"
)

// help explains an operation, a noun, or lists all that somebody may run; everything
// when it is not known who they are.
func help(r *op.Registry, words []string, who *catalog.WhoamiRow) (Post, error) {
	if len(words) == 0 {
		return overview(r, who), nil
	}
	name := strings.Join(words, " ")
	if o, ok := r.Get(name); ok && !o.Hidden() {
		return explain(o), nil
	}
	var b strings.Builder
	for _, o := range r.Ops() {
		if !o.Hidden() && strings.HasPrefix(o.Name, name+" ") {
			fmt.Fprintf(&b, "%s\n    %s\n", o.Usage(), o.Summary)
		}
	}
	if b.Len() > 0 {
		return Post{Code: b.String(), Note: fmt.Sprintf("help %s VERB says more", name)}, nil
	}
	o, rest, err := r.Find(words)
	if err != nil {
		return Post{}, err
	}
	return Post{}, fleet.Invalidf("%s has no part %q to explain", o.Name, strings.Join(rest, " ")).WithHint("help %s", o.Name)
}

func overview(r *op.Registry, who *catalog.WhoamiRow) Post {
	var nouns []string
	verbs := make(map[string][]string)
	width := 0
	for _, o := range r.Ops() {
		if o.Hidden() || who != nil && !slices.Contains(who.May, o.Name) {
			continue
		}
		if len(verbs[o.Noun()]) == 0 {
			nouns = append(nouns, o.Noun())
			width = max(width, len(o.Noun()))
		}
		verbs[o.Noun()] = append(verbs[o.Noun()], o.Verb())
	}
	var b strings.Builder
	for _, n := range nouns {
		fmt.Fprintf(&b, "%-*s  %s\n", width, n, strings.Join(verbs[n], ", "))
	}
	p := Post{
		Text: "footplate drives a fleet of CI hosts. The commands are those of the shell, without the word footplate:",
		Code: b.String(), Note: "help NOUN says more, and help NOUN VERB everything",
	}
	switch {
	case who == nil:
	case who.Role == "":
		p.Text = "footplate drives a fleet of CI hosts. You have no role here yet, and may run these commands:"
		p.Note = fmt.Sprintf("ask an admin for more: footplate access grant %s viewer", who.Principal)
	default:
		p.Text = fmt.Sprintf("footplate drives a fleet of CI hosts. You are %s, and may run these commands:", who.Role)
	}
	return p
}

func explain(o *op.Op) Post {
	var b strings.Builder
	b.WriteString(o.Usage() + "\n")
	if o.Long != "" {
		b.WriteString("\n" + o.Long + "\n")
	}
	width := 0
	for _, p := range o.Params {
		if inChat(p) {
			width = max(width, len(p.Placeholder()))
		}
	}
	for i, p := range o.Params {
		if !inChat(p) {
			continue
		}
		if i == 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "%-*s  %s", width, p.Placeholder(), p.Help)
		if len(p.Enum) > 0 && !strings.Contains(p.Help, p.Enum[0]) {
			b.WriteString("; one of " + strings.Join(p.Enum, ", "))
		}
		if p.Default != "" {
			b.WriteString(" (" + p.Default + " when it is not given)")
		}
		b.WriteByte('\n')
	}
	for i, e := range o.Examples {
		if i == 0 {
			b.WriteString("\nfor example\n")
		}
		b.WriteString("  " + e + "\n")
	}
	note := fmt.Sprintf("needs the role %s", o.Role)
	if o.Risk == op.Disruptive || o.Risk == op.Dangerous {
		note += fmt.Sprintf("; %s, so it asks first", o.Risk)
	}
	return Post{Text: o.Summary, Code: b.String(), Note: note}
}

// inChat reports whether a parameter can be given in a chat: files cannot.
func inChat(p op.Param) bool { return p.Flag+p.Arg != "" && p.Type != "object" }
