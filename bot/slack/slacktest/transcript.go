package slacktest

import (
	"encoding/json"
	"fmt"
	"strings"
)

// block is as much of a Block Kit block as is shown.
type block struct {
	Type     string    `json:"type"`
	BlockID  string    `json:"block_id"`
	Text     text      `json:"text"`
	Elements []element `json:"elements"`
}

type text struct {
	Type string `json:"type"`
	Text string `json:"text"`
}

// element is a button, whose text is an object, or a piece of context, whose text is
// a string.
type element struct {
	Type     string          `json:"type"`
	Text     json.RawMessage `json:"text"`
	ActionID string          `json:"action_id"`
	Value    string          `json:"value"`
	Style    string          `json:"style"`
}

func (e element) label() string {
	var s string
	if json.Unmarshal(e.Text, &s) == nil {
		return s
	}
	var t text
	_ = json.Unmarshal(e.Text, &t)
	return t.Text
}

// Transcript returns everything that was said, pressed and shown, in order.
func (s *Server) Transcript() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.log, "\n") + "\n"
}

// Note writes a line of the test's own into the transcript.
func (s *Server) Note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.log) > 0 {
		s.log = append(s.log, "")
	}
	s.log = append(s.log, "== "+fmt.Sprintf(format, args...))
}

// line adds to the transcript.
func (s *Server) line(c *channel, thread, what string) {
	name := "#" + c.Name
	if c.With != "" {
		name = "direct"
	}
	if thread != "" {
		name += ", thread"
	}
	lines := strings.Split(what, "\n")
	s.log = append(s.log, fmt.Sprintf("[%s] %s", name, lines[0]))
	for _, l := range lines[1:] {
		s.log = append(s.log, strings.TrimRight("    "+l, " "))
	}
}

func (s *Server) say(c *channel, thread string, u User, what string) {
	s.line(c, thread, u.Name+": "+what)
}

// note adds a message to the transcript as people see it.
func (s *Server) note(c *channel, m *Message, who, verb string) {
	head := who
	if verb != "" {
		head += " " + verb
	}
	if m.To != "" {
		head += fmt.Sprintf(" (only %s sees it)", s.users[m.To].Name)
	}
	thread := m.Thread
	if thread == m.TS {
		thread = ""
	}
	body := m.Show()
	if m.File != "" {
		f := s.files[m.File]
		lines := strings.Split(strings.TrimRight(f.text, "\n"), "\n")
		body = fmt.Sprintf("%s (%d lines, the last: %s)", f.name, len(lines), lines[len(lines)-1])
	}
	s.line(c, thread, head+":\n"+body)
}

// Show writes a message as people see it.
func (m *Message) Show() string {
	var blocks []block
	if m.Blocks == nil || json.Unmarshal(m.Blocks, &blocks) != nil {
		return unescape(m.Text)
	}
	var out []string
	for _, b := range blocks {
		switch b.Type {
		case "section":
			out = append(out, unescape(b.Text.Text))
		case "context":
			for _, e := range b.Elements {
				out = append(out, "~ "+strings.ReplaceAll(unescape(e.label()), "\n", "\n~ "))
			}
		case "actions":
			var buttons []string
			for _, e := range b.Elements {
				buttons = append(buttons, "["+e.label()+"]")
			}
			out = append(out, strings.Join(buttons, " "))
		default:
			out = append(out, "("+b.Type+")")
		}
	}
	return strings.Join(out, "\n")
}

func unescape(s string) string {
	return strings.NewReplacer("&lt;", "<", "&gt;", ">", "&amp;", "&").Replace(s)
}
