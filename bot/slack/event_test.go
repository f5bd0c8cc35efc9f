package slack

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"footplate/bot"
	"footplate/bot/slack/slacktest"
)

var me = self{Team: slacktest.Team, User: slacktest.Bot}

func TestPlain(t *testing.T) {
	for in, want := range map[string]string{
		"pool list":                               "pool list",
		"--reason 'a &amp; b &lt;c&gt;'":          "--reason 'a & b <c>'",
		"--repo <https://git.example/app>":        "--repo https://git.example/app",
		"see <http://git.example|git.example>":    "see git.example",
		"by <mailto:a@example.com|a@example.com>": "by a@example.com",
		"in <#C012|ops> by <@U012>":               "in <#C012> by <@U012>",
		"<!channel>":                              "<!channel>",
		"a < b":                                   "a < b",
		"<|x>":                                    "<|x>",
		"&amp;lt;":                                "&lt;",
	} {
		if got := plain(in); got != want {
			t.Errorf("plain(%q) = %q, want %q", in, got, want)
		}
	}
	for in, want := range map[string]string{
		"<@U0FOOTPLATE> pool list":           "pool list",
		"<@U0FOOTPLATE>: pool list":          "pool list",
		"hey <@U0FOOTPLATE> pool list":       "pool list",
		"pool list <@U0FOOTPLATE>":           "pool list",
		"<@U0FOOTPLATE|footplate> pool list": "pool list",
		"<@U0FOOTPLATE>":                     "",
	} {
		if got := afterMention(in, slacktest.Bot); got != want {
			t.Errorf("afterMention(%q) = %q, want %q", in, got, want)
		}
	}
}

// What is said to the bot is read; what is not is not, and above all not what the bot
// says itself.
func TestReadEvent(t *testing.T) {
	event := func(change func(e map[string]any)) []byte {
		e := map[string]any{"type": "app_mention", "user": "U0ALICE", "channel": "C0OPS", "ts": "1795250000.000100", "text": "<@U0FOOTPLATE> pool list"}
		change(e)
		b, err := json.Marshal(map[string]any{"type": "event_callback", "event_id": "Ev0123", "team_id": slacktest.Team, "event": e})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	w, err := readEvent(event(func(map[string]any) {}), 2, me)
	if err != nil {
		t.Fatal(err)
	}
	want := &bot.Message{
		ID: "slack:C0OPS/1795250000.000100/Ev0123", From: "slack:T0FLEET/U0ALICE", Text: "pool list", At: time.Unix(1795250000, 0), Again: true,
		Place: bot.Place{Channel: "C0OPS", Thread: "1795250000.000100", User: "U0ALICE"},
	}
	if d := cmp.Diff(want, w.message); d != "" {
		t.Error(d)
	}
	for name, change := range map[string]func(e map[string]any){
		"by a bot":               func(e map[string]any) { e["bot_id"] = "B1" },
		"by the bot itself":      func(e map[string]any) { e["user"] = slacktest.Bot },
		"by nobody":              func(e map[string]any) { delete(e, "user") },
		"an edit":                func(e map[string]any) { e["subtype"] = "message_changed" },
		"said to others":         func(e map[string]any) { e["type"] = "message"; e["channel_type"] = "channel" },
		"something else":         func(e map[string]any) { e["type"] = "reaction_added" },
		"in a group of people":   func(e map[string]any) { e["type"] = "message"; e["channel_type"] = "mpim" },
		"a message of an app":    func(e map[string]any) { e["subtype"] = "bot_message" },
		"a message that is gone": func(e map[string]any) { e["subtype"] = "message_deleted" },
	} {
		if w, err := readEvent(event(change), 0, me); err != nil || w.message != nil {
			t.Errorf("%s: %+v, %v", name, w.message, err)
		}
	}
	for name, change := range map[string]func(e map[string]any){
		"a user that is no id":    func(e map[string]any) { e["user"] = "alice/../admin" },
		"a channel that is none":  func(e map[string]any) { e["channel"] = "#ops" },
		"a time that is none":     func(e map[string]any) { e["ts"] = "now" },
		"a thread that is none":   func(e map[string]any) { e["thread_ts"] = "x" },
		"a user of another shape": func(e map[string]any) { e["user"] = 7 },
	} {
		if _, err := readEvent(event(change), 0, me); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// checkSaid holds of whatever was read: ids are ids, and texts are texts.
func checkSaid(t *testing.T, w said) {
	t.Helper()
	if w.message == nil && w.click == nil {
		return
	}
	if !isID(w.user) || !isID(w.channel) {
		t.Errorf("user %q, channel %q", w.user, w.channel)
	}
	from := ""
	if w.message != nil {
		from = string(w.message.From)
		if w.message.ID == "" || len(w.message.ID) > 200 {
			t.Errorf("the id is %q", w.message.ID)
		}
	} else {
		from = string(w.click.From)
	}
	if from != "slack:"+me.Team+"/"+w.user || w.user == me.User && w.message != nil && !w.message.Private {
		t.Errorf("from %q", from)
	}
}

func FuzzPayloads(f *testing.F) {
	f.Add([]byte(`{"type":"event_callback","event_id":"Ev1","event":{"type":"app_mention","user":"U1","channel":"C1","ts":"1.2","text":"<@U0FOOTPLATE> x"}}`))
	f.Add([]byte(`{"team_id":"T1","channel_id":"C1","user_id":"U1","text":"x","trigger_id":"1.2.3","response_url":"https://hooks.slack.com/x"}`))
	f.Add([]byte(`{"type":"block_actions","user":{"id":"U1"},"container":{"message_ts":"1.2","channel_id":"C1"},"actions":[{"action_id":"footplate_accept","value":"v"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, read := range []func() (said, error){
			func() (said, error) { return readSlash(b, me) },
			func() (said, error) { return readClick(b, me) },
			func() (said, error) { return readEvent(b, 1, me) },
		} {
			if w, err := read(); err == nil {
				checkSaid(t, w)
			}
		}
		if kind, payload, err := unpack("application/x-www-form-urlencoded", b); err == nil && kind == kindSlash && !json.Valid(payload) {
			t.Errorf("a form became %q", payload)
		}
	})
}

// Whatever somebody types, what the bot echoes of it has no markup, mention or link
// that Slack would read, and fits.
func FuzzBlocks(f *testing.F) {
	f.Add("a <b> & c", "x\n```\ny", "note")
	f.Add("<!channel>", strings.Repeat("&", 20000), strings.Repeat("<", 5000))
	f.Fuzz(func(t *testing.T, text, code, note string) {
		p := bot.Post{Echo: text, Text: text, Code: code, Note: note, Buttons: []bot.Button{{Label: "Confirm", Value: "v", Accept: true}}}
		raw, err := json.Marshal(blocks(p, true))
		if err != nil {
			t.Fatal(err)
		}
		var list []struct {
			Type     string
			Text     struct{ Text string }
			Elements []struct{ Text json.RawMessage }
		}
		if err := json.Unmarshal(raw, &list); err != nil {
			t.Fatal(err)
		}
		sum := 0
		check := func(s string) {
			sum += len(s)
			if len(s) > 3000 || strings.ContainsAny(s, "<>") {
				t.Errorf("%d bytes: %.200q", len(s), s)
			}
			if inner := strings.TrimSuffix(strings.TrimPrefix(s, "```\n"), "```"); len(inner) < len(s) && strings.Contains(inner, "```") && utf8.ValidString(code) {
				t.Errorf("the code ends early: %.200q", s)
			}
		}
		for _, b := range list {
			if b.Type == "section" {
				check(b.Text.Text)
			}
			for _, e := range b.Elements {
				var s string
				if json.Unmarshal(e.Text, &s) == nil {
					check(s)
				}
			}
		}
		if fb := fallback(p); len(fb) > 4000 || fb == "" || strings.ContainsAny(fb, "<>") {
			t.Errorf("fallback %.200q", fb)
		}
		if sum > 13200 {
			t.Errorf("all blocks are %d bytes long", sum)
		}
	})
}

func FuzzPlain(f *testing.F) {
	f.Add("a <b|c> &amp;")
	f.Fuzz(func(t *testing.T, s string) {
		// What was typed comes back from how Slack hands it over.
		if !strings.ContainsAny(s, "<>") {
			if got := plain(escape(s)); got != s && !strings.Contains(s, "&") {
				t.Errorf("%q became %q", s, got)
			}
		}
		_ = afterMention(s, slacktest.Bot)
	})
}
