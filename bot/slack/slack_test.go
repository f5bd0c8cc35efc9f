package slack

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"footplate/bot"
	"footplate/bot/bottest"
	"footplate/bot/slack/slacktest"
	"footplate/controlplane/op"
	"footplate/fleet"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

const (
	alice = fleet.Principal("slack:" + slacktest.Team + "/U0ALICE")
	carol = fleet.Principal("slack:" + slacktest.Team + "/U0CAROL")
)

// world is a workspace, a control plane, and replicas of the bot between them.
type world struct {
	*testing.T
	*slacktest.Server
	fleet *bottest.Fleet
	bots  []*Slack
	url   string // where Slack reaches the bot over HTTP
}

// setting says how a world is made.
type setting struct {
	slacktest.Config
	http     bool
	replicas int
	sockets  int
	grace    time.Duration
	budget   time.Duration
}

func newWorld(t *testing.T, set setting) *world {
	t.Helper()
	if set.Redeliver == nil {
		set.Redeliver = []time.Duration{0, 100 * time.Millisecond, 100 * time.Millisecond}
	}
	srv, err := slacktest.Start(set.Config)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{T: t, Server: srv, fleet: bottest.New()}
	w.fleet.Grant(alice, fleet.Operator)
	w.fleet.Grant(carol, fleet.Viewer)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{}, 8)
	for range max(set.replicas, 1) {
		cfg := Config{BotToken: slacktest.BotToken, Channel: "C0OPS", APIURL: srv.URL(), Sockets: set.sockets}
		if set.http {
			cfg.SigningSecret = slacktest.SigningSecret
		} else {
			cfg.AppToken = slacktest.AppToken
		}
		log := slog.New(slog.DiscardHandler)
		if testing.Verbose() {
			log = slog.New(slog.NewTextHandler(os.Stderr, nil))
		}
		s, err := New(cfg, log)
		if err != nil {
			t.Fatal(err)
		}
		if set.grace == 0 {
			set.grace = time.Second
		}
		b, err := bot.New(bot.Config{
			Registry: w.fleet.Registry, API: w.fleet, Surface: s, Secret: s.Secret(), Redactor: s.Redactor(), Log: log,
			Grace: set.grace, Every: 20 * time.Millisecond, Budget: set.budget,
		})
		if err != nil {
			t.Fatal(err)
		}
		w.bots = append(w.bots, s)
		if set.http {
			h := httptest.NewServer(s.Handler(ctx, b))
			t.Cleanup(h.Close)
			w.url = h.URL + Path
			srv.SetRequestURL(w.url)
		}
		go func() {
			defer func() { done <- struct{}{} }()
			if err := s.Run(ctx, b); err != nil {
				t.Errorf("the bot ended: %v", err)
			}
		}()
	}
	t.Cleanup(func() {
		cancel()
		for range w.bots {
			<-done
		}
		srv.Close()
	})
	if !set.http {
		w.until("the sockets are open", func() bool { return srv.Sockets() >= len(w.bots)*w.bots[0].cfg.Sockets })
	}
	return w
}

// until waits for a condition.
func (w *world) until(what string, ok func() bool) {
	w.Helper()
	for end := time.Now().Add(15 * time.Second); !ok(); {
		if time.Now().After(end) {
			w.Fatalf("not in time: %s\n%s", what, w.Transcript())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (w *world) slash(user, channel, text string) {
	w.Helper()
	if err := w.Slash(user, channel, text); err != nil {
		w.Errorf("%s: %v", text, err)
	}
}

func (w *world) say(user, channel, text, thread string) string {
	w.Helper()
	ts, err := w.Say(user, channel, text, thread)
	if err != nil {
		w.Fatal(err)
	}
	w.Settle()
	return ts
}

// last returns the newest message of the bot in a channel that has a text in it.
func (w *world) last(channel, text string) slacktest.Message {
	w.Helper()
	var found slacktest.Message
	w.until("a message with "+text, func() bool {
		for _, m := range w.Messages(channel) {
			if m.Bot && strings.Contains(m.Show(), text) {
				found = m
			}
		}
		return found.TS != ""
	})
	return found
}

func (w *world) press(user, channel string, m slacktest.Message, label string) {
	w.Helper()
	if err := w.Click(user, channel, m.TS, label); err != nil {
		w.Errorf("press %s: %v", label, err)
	}
}

// masks hide what is another in each run.
var masks = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`\d\d:\d\d:\d\d UTC`), "HH:MM:SS UTC"},
	{regexp.MustCompile(`after \d+s`), "after Ns"},
	{regexp.MustCompile(`the same \d+s ago`), "the same Ns ago"},
}

// golden compares the transcript with testdata/NAME.txt.
func (w *world) golden(name string) {
	w.Helper()
	got := w.Transcript()
	for _, m := range masks {
		got = m.pattern.ReplaceAllString(got, m.with)
	}
	file := filepath.Join("testdata", name+".txt")
	if *rewrite {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			w.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			w.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		w.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		w.Errorf("the transcript is another (-want +got); -rewrite writes it anew:\n%s", d)
	}
}

// both runs a test over Socket Mode and over HTTP: the same transcript is wanted.
func both(t *testing.T, f func(w *world)) {
	for _, over := range []string{"socket", "http"} {
		t.Run(over, func(t *testing.T) { f(newWorld(t, setting{http: over == "http"})) })
	}
}

func TestSurfaces(t *testing.T) {
	both(t, func(w *world) {
		w.Note("a slash command, answered to one person")
		w.slash("U0ALICE", "C0OPS", "pool list")
		w.slash("U0ALICE", "C0OPS", "host show linux-1")
		w.Note("a mention, answered in its thread; slash commands cannot be given in threads, mentions can")
		ts := w.say("U0ALICE", "C0OPS", "@footplate pool scale linux +1 --reason 'monday ramp'", "")
		w.last("C0OPS", "scaled")
		w.say("U0ALICE", "C0OPS", "@footplate: pool list -o name", ts)
		w.last("C0OPS", "linux\n")
		w.Note("a direct message")
		w.say("U0ALICE", "D0ALICE", "queue status", "")
		w.last("D0ALICE", "queued")
		w.Note("help")
		w.slash("U0ALICE", "C0OPS", "help host drain")
		w.golden("surfaces")
	})
}

func TestConfirm(t *testing.T) {
	both(t, func(w *world) {
		w.Note("something disruptive shows its plan and asks")
		w.say("U0ALICE", "C0OPS", "@footplate queue pause --for 30m --reason 'database is full'", "")
		card := w.last("C0OPS", "this would be done")
		w.Note("only the person who gave it may decide")
		w.press("U0CAROL", "C0OPS", card, "Confirm")
		w.Note("confirmed, and pressed once more by a nervous finger on an old screen")
		w.press("U0ALICE", "C0OPS", card, "Confirm")
		w.last("C0OPS", "paused dispatch")
		w.Note("a slash command asks the person alone")
		w.slash("U0ALICE", "C0OPS", "host drain linux-2")
		card = w.last("C0OPS", "host linux-2 gets no new work")
		w.press("U0ALICE", "C0OPS", card, "Cancel")
		w.last("C0OPS", "cancelled")
		w.Note("the world moves between the plan and the click")
		w.slash("U0ALICE", "C0OPS", "host drain linux-1")
		card = w.last("C0OPS", "host linux-1 gets no new work; 0 tasks")
		w.fleet.Start(w.submit(), "linux-1")
		w.press("U0ALICE", "C0OPS", card, "Confirm")
		card = w.last("C0OPS", "now this would be done")
		w.press("U0ALICE", "C0OPS", card, "Confirm")
		w.last("C0OPS", "draining: 0 of 1")
		w.fleet.Finish(1, fleet.Passed, 0)
		w.last("C0OPS", "host linux-1 is empty")
		w.golden("confirm")
	})
}

// submit submits a build by the side, and returns its number.
func (w *world) submit() fleet.BuildID {
	w.Helper()
	call, err := w.fleet.Registry.Parse("build submit --org acme --pool linux --run 'make test'")
	if err != nil {
		w.Fatal(err)
	}
	w.fleet.Grant("test", fleet.Admin)
	if _, err := w.fleet.Do(w.Context(), "test", call.Op, call.Args, optionsWithKey("by-the-side")); err != nil {
		w.Fatal(err)
	}
	return 1
}

func TestRefusals(t *testing.T) {
	both(t, func(w *world) {
		w.AddUser(slacktest.User{ID: "U0DAVE", Name: "dave"})
		w.AddUser(slacktest.User{ID: "U0ERIN", Name: "erin", Team: "T0OTHER", Stranger: true})
		w.Note("a role that does not allow it")
		w.slash("U0CAROL", "C0OPS", "pool scale linux 9")
		w.Note("nobody in particular")
		w.slash("U0DAVE", "C0OPS", "pool list")
		w.Note("a guest, by every way")
		w.slash("U0BOB", "C0OPS", "pool list")
		w.say("U0BOB", "C0OPS", "@footplate pool list", "")
		w.last("C0OPS", "guests")
		w.say("U0BOB", "D0BOB", "pool list", "")
		w.last("D0BOB", "guests")
		w.Note("somebody from another company, and a channel shared with one")
		w.slash("U0ERIN", "C0OPS", "pool list")
		w.slash("U0ALICE", "C0SHARED", "pool list")
		w.say("U0ALICE", "C0SHARED", "@footplate pool list", "")
		w.last("C0SHARED", "shared with another company")
		w.golden("refusals")
		// What was not let in was not asked of the control plane.
		for _, e := range w.fleet.Entries() {
			if e.By != carol {
				t.Errorf("entry %d by %s: %s", e.N, e.By, e.Text)
			}
		}
	})
}

func TestLong(t *testing.T) {
	both(t, func(w *world) {
		w.Note("a build is one card, edited in place, with its detail in the thread")
		w.say("U0ALICE", "C0OPS", "@footplate build submit --org acme --pool linux --run 'make test'", "")
		w.last("C0OPS", "queued, 0/1 tasks ended")
		at := w.fleet.Start(1, "linux-1")
		w.last("C0OPS", "on host linux-1")
		w.fleet.Finish(at, fleet.Failed, 2)
		w.last("C0OPS", "failed, exit code 2")
		w.Note("long output is cut, and whole in a snippet")
		for range 200 {
			w.fleet.Write(1, "ok  \tacme/app/some/package\t0.01s & <none>\n", false)
		}
		w.fleet.Write(1, "FAIL\n", true)
		w.say("U0ALICE", "C0OPS", "@footplate build logs 1", "")
		w.until("the snippet is there", func() bool { return w.Calls("files.completeUploadExternal") == 1 })
		w.golden("long")
	})
}

// A log that is followed is one card, which shows its end.
func TestFollow(t *testing.T) {
	w := newWorld(t, setting{})
	w.fleet.Start(w.submit(), "linux-1")
	w.fleet.Write(1, "go vet ./...\n", false)
	w.say("U0ALICE", "C0OPS", "@footplate build logs 1 --follow", "")
	card := w.last("C0OPS", "the log goes on")
	for i := range 50 {
		w.fleet.Write(1, fmt.Sprintf("ok %d\n", i), false)
	}
	w.last("C0OPS", "ok 49")
	w.fleet.Write(1, "FAIL\n", true)
	w.fleet.Finish(1, fleet.Failed, 1)
	if m := w.last("C0OPS", "the end of the log"); m.TS != card.TS || !strings.Contains(m.Show(), "FAIL") || strings.Contains(m.Show(), "go vet") {
		t.Errorf("the card ends as\n%s", m.Show())
	}
	if n := len(w.Messages("C0OPS")); n != 2 {
		t.Errorf("%d messages", n)
	}
}

// What is too long for an answer to one person goes to that person.
func TestPrivateSnippet(t *testing.T) {
	w := newWorld(t, setting{})
	w.fleet.AddHosts(100)
	w.slash("U0ALICE", "C0OPS", "host list")
	if m := w.last("C0OPS", "the first 30 of 101 lines"); m.To != "U0ALICE" {
		t.Errorf("it was shown to %q", m.To)
	}
	w.until("the snippet is there", func() bool { return len(w.Messages("D0ALICE")) == 1 })
	if text := w.File(w.Messages("D0ALICE")[0].File); strings.Count(text, "\n") != 100 || !strings.Contains(text, "linux-100") {
		t.Errorf("the snippet is %q", text)
	}
}

func TestErrors(t *testing.T) {
	both(t, func(w *world) {
		w.Note("typos: suggested, never run on a guess")
		for _, line := range []string{
			"pool lits", "hots list", "pool scale linux +2 --resaon x", "pool", "pool scale linux many", "pool scale linux +2 --reason \u201cmonday ramp",
		} {
			w.slash("U0ALICE", "C0OPS", line)
		}
		w.Note("what phones make of quotes and hyphens, and what Slack makes of angles and ampersands")
		w.slash("U0ALICE", "C0OPS", "host cordon linux-1 \u2014reason \u201cdisk & <fan> errors\u201d")
		w.slash("U0ALICE", "C0OPS", "host show linux-1")
		w.Note("errors read as in the shell")
		w.slash("U0ALICE", "C0OPS", "host drain linux-99")
		w.say("U0ALICE", "C0OPS", "@footplate build show 4711", "")
		w.last("C0OPS", "4711")
		w.Note("what only a shell has")
		w.slash("U0ALICE", "C0OPS", "build submit -f build.yaml")
		w.slash("U0ALICE", "C0OPS", "host cordon -")
		w.slash("U0ALICE", "C0OPS", "cluster snapshot save")
		w.slash("U0ALICE", "C0OPS", "pool list -o yaml")
		w.Note("secrets stay secret in what is echoed")
		w.slash("U0ALICE", "C0OPS", "pool scale linux +1 --token xoxb-123-secret --reason 'see https://ops:hunter22@db.example'")
		w.slash("U0ALICE", "C0OPS", "queue pause --for 5m --reason 'see https://ops:hunter22@db.example, AKIAABCDEFGHIJKLMNOP'")
		w.golden("errors")
		if s := w.Transcript(); strings.Count(s, "hunter22") != 2 || strings.Count(s, "AKIA") != 1 { // in what alice typed
			w.Error("a secret was echoed")
		}
	})
}

func TestTrouble(t *testing.T) {
	t.Parallel()
	both(t, func(w *world) {
		down := fleet.Unavailablef("no leader")
		w.Note("no leader: a command that Slack will not deliver again is answered")
		w.fleet.SetFault(func(*op.Op) bottest.Fault { return bottest.Fault{Before: down} })
		w.slash("U0ALICE", "C0OPS", "pool scale linux +1")
		w.Note("and one that it will is left to Slack until there is one")
		n := 0
		w.fleet.SetFault(func(o *op.Op) bottest.Fault {
			if o.Name == "pool scale" {
				n++
			}
			if n < 3 {
				return bottest.Fault{Before: down}
			}
			return bottest.Fault{}
		})
		w.say("U0ALICE", "C0OPS", "@footplate pool scale linux +1", "")
		w.last("C0OPS", "scaled")
		w.Note("a fate that is not known is said, and followed up with the same key")
		w.fleet.SetFault(nil)
		lost := 0
		w.fleet.SetFault(func(o *op.Op) bottest.Fault {
			if o.Name == "pool scale" {
				if lost++; lost < 3 {
					return bottest.Fault{After: fleet.Unknownf("the connection broke")}
				}
			}
			return bottest.Fault{}
		})
		w.slash("U0ALICE", "C0OPS", "pool scale linux +2")
		w.last("C0OPS", "to 5")
		w.fleet.SetFault(nil)
		w.Note("the same again within a minute is asked about")
		w.slash("U0ALICE", "C0OPS", "pool scale linux +2")
		card := w.last("C0OPS", "you have done the same")
		w.press("U0ALICE", "C0OPS", card, "Run it again")
		w.last("C0OPS", "to 7")
		w.slash("U0ALICE", "C0OPS", "pool scale linux +2")
		w.press("U0ALICE", "C0OPS", w.last("C0OPS", "you have done the same"), "Cancel")
		w.last("C0OPS", "cancelled")
		w.golden("trouble")
	})
}
