package slack

import (
	"context"
	"encoding/json"
	"net"
	"strings"
	"testing"
	"time"

	"footplate/bot"
	"footplate/bot/slack/slacktest"
	"footplate/controlplane"
	"footplate/controlplane/catalog"
	"footplate/controlplane/client"
	"footplate/fleet"
)

// The bot with a token of its own at a real node: people have the roles that they were
// granted, and their entries carry their own names and Slack's ids.
func TestRealNode(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	free := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().String()
	}
	const admin, botToken = "fp_admin-of-the-test", "fp_bot-of-the-test"
	at := free()
	n, err := controlplane.New(ctx, controlplane.Config{
		Node: "n1", Dir: t.TempDir(), Listen: at, Raft: free(), Version: "test", NodeToken: "secret-of-the-nodes", Bootstrap: true, Log: discard(),
		Tokens: []fleet.Token{
			{Name: "admin", Hash: controlplane.TokenHash(admin), Principal: "root", Role: fleet.Admin},
			{Name: "bot", Hash: controlplane.TokenHash(botToken), Principal: "bot", Role: fleet.Operator, Surface: "slack"},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 2)
	go func() { ended <- n.Run(ctx) }()

	srv, err := slacktest.Start(slacktest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{T: t, Server: srv}
	dial := func(token, via string) *client.Client {
		c, err := client.New(client.Config{Addrs: []string{"http://" + at}, Token: token, Via: via, Retry: 20 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	registry := catalog.All()
	root := dial(admin, "cli/test")
	asRoot := func(line string) string {
		t.Helper()
		call, err := registry.Parse(line)
		if err != nil {
			t.Fatal(err)
		}
		reply, err := root.Do(t.Context(), call.Op, call.Args, client.Options{Confirm: "yes"})
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		return reply.Text
	}
	// A node that has just started is not told of by the first call.
	for end := time.Now().Add(20 * time.Second); ; {
		if _, _, err = root.Query(t.Context(), catalog.PoolList, catalog.PoolList.NewArgs(), false); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	asRoot("pool create linux --size 0 --max 50 --slots 2")
	asRoot("access grant " + string(alice) + " admin")

	s, err := New(Config{BotToken: slacktest.BotToken, AppToken: slacktest.AppToken, Channel: "C0OPS", APIURL: srv.URL()}, discard())
	if err != nil {
		t.Fatal(err)
	}
	b, err := bot.New(bot.Config{
		Registry: registry, API: bot.Through(dial(botToken, "slack/test")), Surface: s, Secret: s.Secret(), Redactor: s.Redactor(), Log: discard(),
	})
	if err != nil {
		t.Fatal(err)
	}
	go func() { ended <- s.Run(ctx, b) }()
	defer func() {
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		srv.Close()
	}()
	w.until("the sockets are open", func() bool { return srv.Sockets() == 2 })

	w.slash("U0ALICE", "C0OPS", "pool scale linux +1 --reason 'monday ramp'")
	w.last("C0OPS", "from 0 to 1")
	w.slash("U0ALICE", "C0OPS", "pool scale linux +1 --reason 'monday ramp'")
	w.last("C0OPS", "you have done the same")
	w.slash("U0ALICE", "C0OPS", "queue pause --for 10m")
	w.press("U0ALICE", "C0OPS", w.last("C0OPS", "dispatch of all builds stops"), "Confirm")
	w.last("C0OPS", "paused dispatch")
	w.slash("U0CAROL", "C0OPS", "pool list")
	w.last("C0OPS", `U0CAROL may not run "pool list": that takes the role viewer, and slack:T0FLEET/U0CAROL has none`)
	w.slash("U0CAROL", "C0OPS", "help")
	w.last("C0OPS", "You have no role here yet")
	// The bot's own token bounds everybody.
	w.slash("U0ALICE", "C0OPS", "access grant slack:T0FLEET/U0CAROL admin")
	w.last("C0OPS", `may not run "access grant"`)
	w.say("U0ALICE", "C0OPS", "@footplate audit tail", "")
	w.last("C0OPS", "slack:T0FLEET/U0ALICE")

	raw, _, err := root.Query(t.Context(), catalog.AuditTail, &catalog.AuditTailArgs{Limit: 50, By: alice}, false)
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
		raw, _, err := root.Query(t.Context(), catalog.AuditShow, &catalog.AuditShowArgs{Entry: r.N}, false)
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
