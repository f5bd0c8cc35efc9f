package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"footplate/bot/slack"
	"footplate/bot/slack/slacktest"
	"footplate/controlplane/archive/postgres/postgrestest"
	"footplate/controlplane/catalog"
	"footplate/controlplane/op"

	"github.com/jackc/pgx/v5"
)

// eraseWithin is what OPERATIONS.md promises of an erasure while all is well.
const eraseWithin = 30 * time.Second

// leak is a plant with PostgreSQL and Slack, in which secretWord gets out.
type leak struct {
	*record
	slack *slacktest.Server
}

func startLeak(t *testing.T) *leak {
	pg := postgrestest.Need(t)
	s, err := slacktest.Start(slacktest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	url := pg.URL(pg.Database(t))
	r := &record{pg: pg, url: url, plant: startPlant(t, plantConfig{
		nodes: 3, hosts: 0, slots: 1, fence: "10s", suspect: "5s",
		env: []string{
			slack.EnvBotToken + "=" + slacktest.BotToken, slack.EnvAppToken + "=" + slacktest.AppToken,
			slack.EnvChannel + "=" + opsChannel, slack.EnvAPIURL + "=" + s.URL(), envPostgres + "=" + url,
		},
	})}
	r.must("access", "grant", "slack:"+slacktest.Team+"/U0ALICE", "operator")
	r.wait(60*time.Second, "the bot in Slack", func() bool { return s.Sockets() >= 2 })
	return &leak{r, s}
}

// posted returns how many messages of the bot have it.
func (l *leak) posted() (found int) {
	for _, m := range l.slack.Messages(opsChannel) {
		if m.Bot && (strings.Contains(m.Text, secretWord) || bytes.Contains(m.Blocks, []byte(secretWord))) {
			found++
		}
	}
	return found
}

// files returns the files of a node that have it.
func (l *leak) files(t *testing.T, n *node) []string {
	return filesWith(t, filepath.Join(l.dir, n.name), secretWord)
}

// holders returns where it is.
func (l *leak) holders(t *testing.T) (where []string) {
	for _, n := range l.nodes {
		where = append(where, l.files(t, n)...)
	}
	return append(where, l.shared(t)...)
}

// shared returns where it is outside of the nodes.
func (l *leak) shared(t *testing.T) (where []string) {
	l.postgres(t, func(ctx context.Context, c *pgx.Conn) {
		var count int
		if err := c.QueryRow(ctx, "SELECT count(*) FROM footplate.entries e WHERE e::text LIKE '%' || $1 || '%'", secretWord).Scan(&count); err != nil {
			t.Fatal(err)
		}
		if count > 0 {
			where = append(where, "postgres")
		}
	})
	if n := l.posted(); n > 0 {
		where = append(where, fmt.Sprintf("%d messages in Slack", n))
	}
	return where
}

// everywhere fails the test when it has not got out to every place.
func (l *leak) everywhere(t *testing.T) {
	t.Helper()
	if all := strings.Join(l.holders(t), " "); !strings.Contains(all, "postgres") || !strings.Contains(all, "Slack") || !strings.Contains(all, ".wal") {
		t.Fatalf("it has leaked to %s alone", all)
	}
}

// TestEraseEverywhere: after audit erase what leaked is in no file of any node, in
// no table of PostgreSQL and in no message in Slack, within a bounded time.
func TestEraseEverywhere(t *testing.T) {
	r := startLeak(t)
	s := r.slack

	// It leaks by the shell, and by a mention in a channel.
	// The bot cannot edit what alice wrote: she deletes that herself.
	r.must("queue", "pause", "--org", "demo", "--for", "10m", "--yes", "--reason", "unrelated")
	r.must("org", "set", "acme", "--reason", "it is "+secretWord)
	s.Say("U0ALICE", opsChannel, "@footplate org set from-slack --slots 3 --reason '"+secretWord+"'", "")
	var leaks []catalog.EntryRow
	r.wait(30*time.Second, "both entries", func() bool {
		return r.json(&leaks, "audit", "search", "--text", secretWord) == nil && len(leaks) == 2
	})
	r.must("org", "set", "after", "--reason", "unrelated too")
	// The two lines may stand in one post.
	r.wait(60*time.Second, "it to be in Slack, and the answer", func() bool {
		return r.posted() > 0 && inChannel(s, "unrelated too") && strings.Count(transcript(s), `made org "from-slack"`) == 2
	})
	r.delivered()
	r.everywhere(t)

	began := time.Now()
	for _, l := range leaks {
		out := r.must("audit", "erase", fmt.Sprint(l.N), "--field", "reason", "--field", "args", "--field", "text", "--reason", "leak", "--yes")
		if !strings.Contains(out, fmt.Sprintf("follow within seconds: audit show %d says how far", l.N)) {
			t.Errorf("audit erase says %s", out)
		}
	}
	left := r.holders(t)
	for len(left) > 0 {
		if time.Since(began) > eraseWithin {
			t.Fatalf("after %s what was erased is still in %v", eraseWithin, left)
		}
		left = r.holders(t)
	}
	t.Logf("erased everywhere after %s", time.Since(began).Round(100*time.Millisecond))
	for _, l := range leaks {
		var d catalog.EntryDetail
		r.wait(eraseWithin, "audit show to say that it is gone", func() bool {
			d = catalog.EntryDetail{}
			if r.json(&d, "audit", "show", fmt.Sprint(l.N)) != nil {
				return false
			}
			for _, at := range d.Erasure {
				if !at.Done {
					return false
				}
			}
			return true
		})
		var where []string
		for _, at := range d.Erasure {
			where = append(where, at.Where)
		}
		for _, want := range []string{"node n1", "node n2", "node n3", "postgres", "slack"} {
			if !strings.Contains(strings.Join(where, ","), want) {
				t.Errorf("audit show %d says nothing of %s: %v", l.N, want, where)
			}
		}
	}
	if !inChannel(s, fmt.Sprintf("the answer to the command of entry %d was here", leaks[0].N)) {
		t.Error("the answer in Slack still stands")
	}
	if !inChannel(s, "unrelated too") || !inChannel(s, "(erased)") {
		t.Error("the other lines have gone from Slack, or the erased ones do not say so")
	}
	r.must("audit", "verify", "--peers", "--postgres")

	// Whoever starts again has all but that.
	for _, n := range r.nodes {
		r.kill(n)
	}
	for _, n := range r.nodes {
		r.start(n)
	}
	r.wait(60*time.Second, "the nodes to be back", func() bool {
		_, _, code := r.run("audit", "verify", "--peers")
		return code == 0
	})
	if left := r.holders(t); len(left) > 0 {
		t.Errorf("after a restart what was erased is in %v", left)
	}
}

// TestEraseUnderFaults: a node is away when something is erased, the leader is
// killed the moment that this is acknowledged, and people go on submitting builds.
// It goes all the same: from the nodes that are there and what they share as soon
// as two of three are, and from the third when that is back.
func TestEraseUnderFaults(t *testing.T) {
	t.Parallel() // it mostly waits
	r := startLeak(t)
	r.must("org", "set", "acme", "--reason", "it is "+secretWord)
	var leaks []catalog.EntryRow
	if err := r.json(&leaks, "audit", "search", "--text", secretWord); err != nil || len(leaks) != 1 {
		t.Fatalf("%d entries leak: %v", len(leaks), err)
	}
	entry := fmt.Sprint(leaks[0].N)
	r.wait(60*time.Second, "it to be in Slack", func() bool { return r.posted() > 0 })
	r.delivered()
	r.everywhere(t)

	var stop atomic.Bool
	var submitted atomic.Int64
	var load sync.WaitGroup
	t.Cleanup(func() { stop.Store(true); load.Wait() })
	for range 2 {
		load.Go(func() {
			for !stop.Load() {
				if _, _, code := r.run("build", "submit", "--org", "demo", "--pool", "local", "--run", "true"); code == 0 {
					submitted.Add(1)
				}
			}
		})
	}
	grows := func() {
		before := submitted.Load()
		r.wait(60*time.Second, "the load", func() bool { return submitted.Load() > before+2 })
	}
	grows()
	leader := r.leader()
	var away *node
	for _, n := range r.nodes {
		if n != leader {
			away = n
		}
	}
	r.kill(away)
	if len(r.files(t, away)) == 0 {
		t.Fatal("the node that goes away does not have it")
	}
	grows()
	r.must("audit", "erase", entry, "--field", "reason", "--field", "args", "--field", "text", "--reason", "leak", "--yes")
	r.kill(leader)
	if len(r.files(t, leader)) == 0 {
		t.Log("the leader had forgotten it before it was killed")
	}
	began := time.Now()
	r.start(leader)
	r.wait(eraseWithin, "it to be gone from who is there", func() bool {
		left := r.shared(t)
		for _, n := range r.nodes {
			if n != away {
				left = append(left, r.files(t, n)...)
			}
		}
		return len(left) == 0
	})
	t.Logf("gone from who was there %s after the leader started again", time.Since(began).Round(100*time.Millisecond))
	if len(r.files(t, away)) == 0 {
		t.Fatal("it is gone from a node that was away")
	}

	began = time.Now()
	r.start(away)
	r.wait(eraseWithin, "it to be gone from the node that was away", func() bool { return len(r.files(t, away)) == 0 })
	t.Logf("gone from the node that was away %s after it was back, with %d builds submitted", time.Since(began).Round(100*time.Millisecond), submitted.Load())
	grows()
	stop.Store(true)
	load.Wait()
	// Of Slack it says so later: the next leader waits until no call of the last can
	// land any more, and edits again.
	r.wait(60*time.Second, "audit show to say that it is gone", func() bool {
		var d catalog.EntryDetail
		return r.json(&d, "audit", "show", entry) == nil && len(d.Erasure) == 5 &&
			!slices.ContainsFunc(d.Erasure, func(at op.ErasedAt) bool { return !at.Done && at.Where != "slack" })
	})
	r.delivered()
	if left := r.holders(t); len(left) > 0 {
		t.Errorf("it is back in %v", left)
	}
}

func inChannel(s *slacktest.Server, text string) bool { return strings.Contains(transcript(s), text) }

func transcript(s *slacktest.Server) string {
	var b strings.Builder
	for _, m := range s.Messages(opsChannel) {
		b.WriteString(m.Text + "\n")
	}
	return b.String()
}

// filesWith returns the files below dir that have a text in them.
func filesWith(t *testing.T, dir, text string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it went while we looked
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if bytes.Contains(b, []byte(text)) {
			files = append(files, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
