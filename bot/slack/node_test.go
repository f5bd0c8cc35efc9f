package slack

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"footplate/bot"
	"footplate/bot/slack/slacktest"
	"footplate/controlplane"
	"footplate/controlplane/catalog"
	"footplate/controlplane/client"
	"footplate/controlplane/op"
	"footplate/fleet"
)

// realNode is a real node of one, with a pool "linux", and alice its admin.
type realNode struct {
	*testing.T
	ctx      context.Context // its life
	stop     func()
	url      string
	registry *op.Registry
	root     *client.Client
	ended    chan error
}

const rootToken, botToken = "fp_admin-of-the-test", "fp_bot-of-the-test"

func startNode(t *testing.T) *realNode {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	free := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().String()
	}
	at := free()
	cp, err := controlplane.New(ctx, controlplane.Config{
		Node: "n1", Dir: t.TempDir(), Listen: at, Raft: free(), Version: "test", NodeToken: "secret-of-the-nodes", Bootstrap: true, Log: discard(),
		Tokens: []fleet.Token{
			{Name: "admin", Hash: controlplane.TokenHash(rootToken), Principal: "root", Role: fleet.Admin},
			{Name: "bot", Hash: controlplane.TokenHash(botToken), Principal: "bot", Role: fleet.Operator, Surface: "slack"},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	n := &realNode{T: t, ctx: ctx, stop: cancel, url: "http://" + at, registry: catalog.All(), ended: make(chan error, 1)}
	go func() { n.ended <- cp.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-n.ended; err != nil {
			t.Error(err)
		}
	})
	n.root = n.dial(rootToken, "cli/test")
	// A node that has just started is not told of by the first call.
	for end := time.Now().Add(20 * time.Second); ; {
		if _, _, err = n.root.Query(t.Context(), catalog.PoolList, catalog.PoolList.NewArgs(), false); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	n.asRoot("pool create linux --size 0 --max 50 --slots 2")
	n.asRoot("access grant " + string(alice) + " admin")
	return n
}

func (n *realNode) dial(token, via string) *client.Client {
	c, err := client.New(client.Config{Addrs: []string{n.url}, Token: token, Via: via, Retry: 20 * time.Second})
	if err != nil {
		n.Fatal(err)
	}
	return c
}

func (n *realNode) asRoot(line string) {
	n.Helper()
	call, err := n.registry.Parse(line)
	if err != nil {
		n.Fatal(err)
	}
	if _, err := n.root.Do(n.Context(), call.Op, call.Args, client.Options{Confirm: "yes"}); err != nil {
		n.Fatalf("%s: %v", line, err)
	}
}

// replica starts a replica of the bot at the node.
func (n *realNode) replica(cfg Config) (*Slack, *bot.Bot) {
	n.Helper()
	s, err := New(cfg, discard())
	if err != nil {
		n.Fatal(err)
	}
	b, err := bot.New(bot.Config{
		Registry: n.registry, API: bot.Through(n.dial(botToken, "slack/test")), Surface: s, Secret: s.Secret(), Redactor: s.Redactor(), Log: discard(),
	})
	if err != nil {
		n.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Run(n.ctx, b) }()
	n.Cleanup(func() {
		n.stop()
		if err := <-ended; err != nil {
			n.Error(err)
		}
	})
	return s, b
}

// The bot with a token of its own at a real node: people have the roles that they were
// granted, and their entries carry their own names and Slack's ids.
func TestRealNode(t *testing.T) {
	srv, err := slacktest.Start(slacktest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Close)
	w := &world{T: t, Server: srv}
	n := startNode(t)
	n.replica(Config{BotToken: slacktest.BotToken, AppToken: slacktest.AppToken, Channel: "C0OPS", APIURL: srv.URL()})
	w.until("the sockets are open", func() bool { return srv.Sockets() == 2 })

	w.slash("U0ALICE", "C0OPS", "pool scale linux +1 --reason 'monday ramp'")
	w.last("C0OPS", "from 0 to 1")
	w.slash("U0ALICE", "C0OPS", "pool scale linux +1 --reason 'monday ramp'")
	w.last("C0OPS", "you have done the same")
	w.slash("U0ALICE", "C0OPS", "queue pause --for 10m")
	w.press("U0ALICE", "C0OPS", w.last("C0OPS", "dispatch of all builds stops"), "Confirm")
	w.last("C0OPS", "paused dispatch")
	// Before its plan is shown again.
	w.slash("U0ALICE", "C0OPS", "queue pause --for 10m")
	w.last("C0OPS", "paused dispatch of all builds for 10m (entry ")
	w.slash("U0CAROL", "C0OPS", "pool list")
	w.last("C0OPS", `U0CAROL may not run "pool list": that takes the role viewer, and slack:T0FLEET/U0CAROL has none`)
	w.slash("U0CAROL", "C0OPS", "help")
	w.last("C0OPS", "You have no role here yet")
	// The bot's own token bounds everybody.
	w.slash("U0ALICE", "C0OPS", "access grant slack:T0FLEET/U0CAROL admin")
	w.last("C0OPS", `may not run "access grant"`)
	w.say("U0ALICE", "C0OPS", "@footplate audit tail", "")
	w.last("C0OPS", "slack:T0FLEET/U0ALICE")

	raw, _, err := n.root.Query(t.Context(), catalog.AuditTail, &catalog.AuditTailArgs{Limit: 50, By: alice}, false)
	if err != nil {
		t.Fatal(err)
	}
	var rows []catalog.EntryRow
	if err := json.Unmarshal(raw, &rows); err != nil {
		t.Fatal(err)
	}
	var ops []string
	for _, r := range rows {
		ops = append(ops, r.Op+" "+string(r.Outcome))
		var e catalog.EntryDetail
		raw, _, err := n.root.Query(t.Context(), catalog.AuditShow, &catalog.AuditShowArgs{Entry: r.N}, false)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(raw, &e); err != nil {
			t.Fatal(err)
		}
		if e.By != alice || e.Via != "slack/test" || e.Outcome == fleet.EntryDone && !strings.HasPrefix(e.Key, "slack:C0OPS//trig.") {
			t.Errorf("entry %d: by %s, via %s, key %s", e.N, e.By, e.Via, e.Key)
		}
	}
	if got := strings.Join(ops, ", "); got != "pool scale done, queue pause done, access grant refused" {
		t.Errorf("alice's entries: %s", got)
	}
}

// Two replicas of the bot at a real node get the same command of the same person at the
// same moment, as two messages: one acts, and the other asks, with what came of the first.
func TestDoubleEnter(t *testing.T) {
	const times = 200
	srv, err := slacktest.Start(slacktest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Close)
	n := startNode(t)
	var urls []string
	for range 2 {
		s, b := n.replica(Config{BotToken: slacktest.BotToken, SigningSecret: slacktest.SigningSecret, Channel: "C0OPS", APIURL: srv.URL()})
		h := httptest.NewServer(s.Handler(n.ctx, b))
		t.Cleanup(h.Close)
		urls = append(urls, h.URL+Path)
	}
	press := func(replica, i int) string {
		r, err := slacktest.Request(urls[replica], "slash_commands", map[string]string{
			"team_id": slacktest.Team, "channel_id": "C0OPS", "user_id": "U0ALICE", "command": slacktest.Command,
			"text": fmt.Sprintf("org set acme-%d --slots %d", i, i+1), "trigger_id": fmt.Sprintf("trig.%d.%d", i, replica),
		}, time.Now())
		if err != nil {
			return err.Error()
		}
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			return err.Error()
		}
		defer res.Body.Close()
		answer, err := io.ReadAll(res.Body)
		if err != nil {
			return err.Error()
		}
		return string(answer)
	}
	var next atomic.Int64
	var people sync.WaitGroup
	for range 4 {
		people.Go(func() {
			for i := int(next.Add(1)); i <= times; i = int(next.Add(1)) {
				var answers [2]string
				var both sync.WaitGroup
				for replica := range answers {
					both.Go(func() { answers[replica] = press(replica, i) })
				}
				both.Wait()
				if strings.Contains(answers[0], "Run it again") {
					answers[0], answers[1] = answers[1], answers[0]
				}
				made := fmt.Sprintf("acme-%d", i)
				if strings.Contains(answers[0], "you have done") || !strings.Contains(answers[0], made) || !strings.Contains(answers[0], "entry") ||
					!strings.Contains(answers[1], "you have done the same") || !strings.Contains(answers[1], made) || !strings.Contains(answers[1], "Run it again") {
					t.Errorf("pair %d is answered\n%s\n%s", i, answers[0], answers[1])
				}
			}
		})
	}
	people.Wait()
	raw, _, err := n.root.Query(t.Context(), catalog.AuditTail, &catalog.AuditTailArgs{Limit: 3 * times, By: alice}, false)
	if err != nil {
		t.Fatal(err)
	}
	var rows []catalog.EntryRow
	if err := json.Unmarshal(raw, &rows); err != nil {
		t.Fatal(err)
	}
	if len(rows) != times {
		t.Errorf("%d pairs left %d entries", times, len(rows))
	}
}
