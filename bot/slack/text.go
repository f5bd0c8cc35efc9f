package slack

import (
	"strings"

	"footplate/bot"

	api "github.com/slack-go/slack"
)

// The sizes of what Slack takes: 3,000 characters a section, and about 13,200 in
// all blocks of a message.
const (
	maxSection = 2900
	maxBlocks  = 12000
	maxNote    = 1900
)

// plain returns a text that somebody wrote in Slack as they typed it: Slack
// escapes three characters, and makes links of what looks like one.
//
//	&lt; &gt; &amp;              < > &
//	<https://host/a|host/a>      host/a, which is what was typed
//	<mailto:a@host|a@host>       a@host
//	<#C012|ops>, <@U012|alice>   as they are: ids, never names
func plain(s string) string {
	var b strings.Builder
	for {
		before, after, found := strings.Cut(s, "<")
		b.WriteString(before)
		if !found {
			break
		}
		link, rest, closed := strings.Cut(after, ">")
		if !closed {
			b.WriteString("<" + after)
			break
		}
		b.WriteString(unlink(link))
		s = rest
	}
	return strings.NewReplacer("&lt;", "<", "&gt;", ">", "&amp;", "&").Replace(b.String())
}

// unlink returns what stands between < and >, as it was typed.
func unlink(link string) string {
	target, label, labelled := strings.Cut(link, "|")
	if target == "" {
		return "<" + link + ">"
	}
	switch target[0] {
	case '@', '#', '!':
		return "<" + target + ">"
	}
	if labelled {
		return label
	}
	return strings.TrimPrefix(target, "mailto:")
}

// afterMention returns what was said to the bot: what follows the mention of it,
// or what stands before, when nothing follows.
func afterMention(text, self string) string {
	before, after, found := strings.Cut(text, "<@"+self+">")
	if !found {
		// With a name, as old clients write it.
		if head, rest, ok := strings.Cut(text, "<@"+self+"|"); ok {
			if _, tail, closed := strings.Cut(rest, ">"); closed {
				before, after = head, tail
			}
		}
	}
	if strings.TrimSpace(after) == "" {
		return strings.TrimSpace(before)
	}
	// "@footplate: pool list"
	return strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(after), ":"))
}

// escape writes a text so that Slack reads no markup, mention or link in it.
func escape(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(s)
}

// escapeCode is escape for what stands in a code block, which three backticks
// would end.
func escapeCode(s string) string {
	return escape(strings.ReplaceAll(s, "```", "`\u200b`\u200b`"))
}

// within cuts a text to most bytes.
func within(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most-len("...")], "") + "..."
}

func section(text string) api.Block {
	o := api.NewTextBlockObject(api.MarkdownType, text, false, true)
	return api.NewSectionBlock(o, nil, nil)
}

// blocks lays a post out. echo says whether the command is shown: where it does not
// stand just above.
func blocks(p bot.Post, echo bool) []api.Block {
	var out []api.Block
	if echo && p.Echo != "" {
		line := "`" + escape(strings.ReplaceAll(within(p.Echo, 500), "`", "'")) + "`"
		out = append(out, api.NewContextBlock("", api.NewTextBlockObject(api.MarkdownType, line, false, true)))
	}
	if p.Text != "" {
		out = append(out, section(cutEscaped(p.Text, maxSection)))
	}
	for _, c := range codes(p.Code) {
		out = append(out, section(c))
	}
	if p.Note != "" {
		out = append(out, api.NewContextBlock("", api.NewTextBlockObject(api.MarkdownType, cutEscaped(p.Note, maxNote), false, true)))
	}
	if len(p.Buttons) > 0 {
		var list []api.BlockElement
		for _, b := range p.Buttons {
			id := actionCancel
			if b.Accept {
				id = actionAccept
			}
			e := api.NewButtonBlockElement(id, b.Value, api.NewTextBlockObject(api.PlainTextType, b.Label, false, false))
			if b.Accept {
				e.Style = api.StyleDanger
			}
			list = append(list, e)
		}
		out = append(out, api.NewActionBlock("ask", list...))
	}
	if len(out) == 0 {
		out = append(out, section("(nothing)"))
	}
	return out
}

// The ids of the buttons.
const (
	actionAccept = "footplate_accept"
	actionCancel = "footplate_cancel"
)

// cutEscaped escapes a text and cuts it to most bytes, but never within an escape.
func cutEscaped(s string, most int) string {
	for n := most; ; n = n * 9 / 10 {
		if e := escape(within(s, n)); len(e) <= most {
			return e
		}
	}
}

// codes returns code as blocks of at most a section each.
func codes(code string) []string {
	var out []string
	var chunk strings.Builder
	sum := 0
	flush := func() {
		if chunk.Len() > 0 {
			out = append(out, "```\n"+chunk.String()+"```")
			chunk.Reset()
		}
	}
	for _, l := range strings.Split(strings.TrimRight(code, "\n"), "\n") {
		if code == "" {
			break
		}
		e := escapeCode(l)
		if len(e) > maxSection-20 {
			e = cutEscaped(strings.ReplaceAll(l, "```", "'''"), maxSection-20)
		}
		if sum += len(e) + 1; sum > maxBlocks-2*maxSection {
			break
		}
		if chunk.Len()+len(e)+1 > maxSection-10 {
			flush()
		}
		chunk.WriteString(e + "\n")
	}
	flush()
	return out
}

// fallback is the text of a post without its layout: what a notification shows and
// a screen reader reads.
func fallback(p bot.Post) string {
	parts := []string{p.Text}
	if p.Text == "" {
		parts = append(parts, p.Code)
	}
	if len(p.Buttons) > 0 || p.Text != "" {
		parts = append(parts, p.Note)
	}
	var said []string
	for _, s := range parts {
		if s != "" {
			said = append(said, s)
		}
	}
	if len(said) == 0 {
		return "(nothing)"
	}
	return cutEscaped(strings.Join(said, "\n"), maxSection)
}
