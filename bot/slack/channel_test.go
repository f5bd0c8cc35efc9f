package slack

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"footplate/bot"
	"footplate/bot/slack/slacktest"
	"footplate/fleet"
)

func newSlack(t *testing.T, cfg slacktest.Config) (*world, *Slack) {
	t.Helper()
	srv, err := slacktest.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Close)
	s, err := New(Config{
		BotToken: slacktest.BotToken, SigningSecret: slacktest.SigningSecret, Channel: "C0OPS", APIURL: srv.URL(),
	}, discard())
	if err != nil {
		t.Fatal(err)
	}
	return &world{T: t, Server: srv}, s
}

// A line shows up once, escaped, without secrets, and is found by its id.
func TestChannel(t *testing.T) {
	w, s := newSlack(t, slacktest.Config{})
	ch := s.Channel()
	ts, err := ch.Post(t.Context(), "line-7", "alice drained <!channel> & https://ops:hunter2@db.example", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ch.Post(t.Context(), "line-8", "why", ts); err != nil {
		t.Fatal(err)
	}
	m := w.Messages("C0OPS")
	if len(m) != 2 || m[0].Text != "alice drained &lt;!channel&gt; &amp; https://ops:[redacted]@db.example" || m[1].Thread != ts {
		t.Errorf("%+v", m)
	}
	for id, want := range map[string]bool{"line-7": true, "line-9": false} {
		if at, ok, err := ch.Find(t.Context(), id); err != nil || ok != want || ok && at != ts {
			t.Errorf("find %s: %s, %v, %v", id, at, ok, err)
		}
	}
	// The answer to a command with the same id is something else.
	if _, err := s.Post(t.Context(), bot.Place{Channel: "C0OPS"}, bot.Post{ID: "line-9", Text: "x"}); err != nil {
		t.Fatal(err)
	}
	if _, ok, _ := ch.Find(t.Context(), "line-9"); ok {
		t.Error("an answer was taken for a line")
	}
}

// A code says whether a line may have been posted: only then it must be looked for.
func TestChannelErrors(t *testing.T) {
	w, s := newSlack(t, slacktest.Config{})
	ch := s.Channel()
	w.Outage(true)
	if _, err := ch.Post(t.Context(), "1", "x", ""); fleet.CodeOf(err) != fleet.CodeUnknown {
		t.Errorf("during an outage: %v", err)
	}
	w.Outage(false)
	w.AddChannel(slacktest.Channel{ID: "C0OPS", Name: "ops", Away: true})
	if _, err := ch.Post(t.Context(), "1", "x", ""); fleet.CodeOf(err) != fleet.CodeInvalid || fleet.AsError(err).Hint != "/invite the app there" {
		t.Errorf("outside of the channel: %v", err)
	}
	w.Close()
	_, _ = ch.Post(t.Context(), "1", "x", "") // over a connection from before
	if _, err := ch.Post(t.Context(), "1", "x", ""); fleet.CodeOf(err) != fleet.CodeUnavailable {
		t.Errorf("nobody there: %v", err)
	}
}

// Retry-After is obeyed, by everybody who posts to the channel, and posts keep to about
// one a second by themselves.
func TestPace(t *testing.T) {
	t.Parallel()
	w, s := newSlack(t, slacktest.Config{Gap: time.Second})
	ch := s.Channel()
	w.Limit("chat.postMessage", 1, 2*time.Second)
	begun := time.Now()
	if _, err := ch.Post(t.Context(), "0", "x", ""); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took < 2*time.Second {
		t.Errorf("Slack asked to wait 2s; it was called again after %s", took)
	}
	for i := range 6 {
		if _, err := ch.Post(t.Context(), fmt.Sprint(i), "x", ""); err != nil {
			t.Fatal(err)
		}
	}
	// The server answers what comes faster with 429, which it does not count.
	if n := w.Calls("chat.postMessage"); n != 7 {
		t.Errorf("%d posts", n)
	}
	if n := w.Limited(); n != 1 {
		t.Errorf("Slack said %d times that it was too much", n)
	}
}

// An outage of Slack stops nothing: what is asked meanwhile is lost with Slack, and
// afterwards the bot answers, by itself.
func TestOutage(t *testing.T) {
	w := newWorld(t, setting{})
	w.Outage(true)
	w.until("the sockets are gone", func() bool { return w.Sockets() == 0 })
	if err := w.Slash("U0ALICE", "C0OPS", "pool list"); err == nil {
		t.Error("answered during the outage")
	}
	w.Outage(false)
	w.until("the sockets are back", func() bool { return w.Sockets() == 2 })
	w.slash("U0ALICE", "C0OPS", "pool list")
	w.last("C0OPS", "linux")
}

// What waiting will not mend ends the bot with a word that helps.
func TestFatal(t *testing.T) {
	srv, err := slacktest.Start(slacktest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	for name, cfg := range map[string]Config{
		"invalid_auth":           {BotToken: "xoxb-wrong", AppToken: slacktest.AppToken},
		"not_allowed_token_type": {BotToken: slacktest.BotToken, AppToken: "xapp-wrong"},
	} {
		cfg.Channel, cfg.APIURL = "C0OPS", srv.URL()
		s, err := New(cfg, discard())
		if err != nil {
			t.Fatal(err)
		}
		b, err := bot.New(bot.Config{Surface: s, Secret: s.Secret()})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Run(t.Context(), b); fleet.CodeOf(err) != fleet.CodeInvalid || !strings.Contains(err.Error(), "_") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestConfig(t *testing.T) {
	good := map[string]string{
		EnvBotToken: "xoxb-1-2", EnvAppToken: "xapp-1-2", EnvChannel: "C0123456789",
	}
	get := func(change map[string]string) func(string) string {
		return func(name string) string {
			if v, ok := change[name]; ok {
				return v
			}
			return good[name]
		}
	}
	if _, on, err := FromEnv(func(string) string { return "" }); on || err != nil {
		t.Errorf("nothing is set: %v, %v", on, err)
	}
	if cfg, on, err := FromEnv(get(nil)); !on || err != nil || cfg.Channel != "C0123456789" {
		t.Errorf("%+v, %v, %v", cfg, on, err)
	}
	for want, change := range map[string]map[string]string{
		"Slack has no bot token":                                      {EnvBotToken: ""},
		"FOOTPLATE_SLACK_BOT_TOKEN is no bot token: it must begin":    {EnvBotToken: "xoxp-1"},
		"FOOTPLATE_SLACK_APP_TOKEN is no app-level token":             {EnvAppToken: "xoxb-1"},
		"FOOTPLATE_SLACK_SIGNING_SECRET is too short":                 {EnvSigningSecret: "x"},
		"Slack has no channel to log to":                              {EnvChannel: ""},
		`FOOTPLATE_SLACK_CHANNEL is "#ops", which is no id of a`:      {EnvChannel: "#ops"},
		`FOOTPLATE_SLACK_API_URL is "slack.com/api", which is no URL`: {EnvAPIURL: "slack.com/api"},
	} {
		_, on, err := FromEnv(get(change))
		e := fleet.AsError(err)
		if !on || e == nil || !strings.HasPrefix(e.Msg, want) || e.Hint == "" {
			t.Errorf("want %q: %v, %v", want, on, err)
		}
	}
}
