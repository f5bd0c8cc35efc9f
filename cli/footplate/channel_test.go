package main

import (
	"context"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"footplate/bot/slack"
	"footplate/bot/slack/slacktest"
	"footplate/controlplane/client"
	"footplate/controlplane/state"
	"footplate/fleet"

	"github.com/jackc/pgx/v5"
)

// slackEnv is the environment of those who speak in Slack.
func slackEnv(s *slacktest.Server) []string {
	return []string{
		slack.EnvBotToken + "=" + slacktest.BotToken, slack.EnvAppToken + "=" + slacktest.AppToken,
		slack.EnvChannel + "=" + opsChannel, slack.EnvAPIURL + "=" + s.URL(),
	}
}

// client returns a client that begins with one of the nodes.
func (p *plant) client(first int, token string) *client.Client {
	var addrs []string
	for i := range p.nodes {
		addrs = append(addrs, p.url(p.nodes[(first+i)%len(p.nodes)]))
	}
	c, err := client.New(client.Config{Addrs: addrs, Token: token, Via: "test/1"})
	if err != nil {
		p.t.Fatal(err)
	}
	return c
}

// channel reads the channel of the console beside what gets into Slack and
// PostgreSQL, to compare them.
type channel struct {
	*plant
	slack *slacktest.Server
	url   string // of the database; "" without

	mu    sync.Mutex
	lines map[uint64]state.Line
}

// readChannel reads until the end of the test. saw, if any, is told of each line.
func readChannel(p *plant, s *slacktest.Server, url string, saw func(state.Line)) *channel {
	c := &channel{plant: p, slack: s, url: url, lines: map[uint64]state.Line{}}
	ctx, cancel := context.WithCancel(context.Background())
	var reader sync.WaitGroup
	reader.Go(func() { c.follow(ctx, p.client(1, p.admin), saw) })
	p.t.Cleanup(func() {
		cancel()
		reader.Wait()
	})
	return c
}

func (c *channel) follow(ctx context.Context, from *client.Client, saw func(state.Line)) {
	newest := uint64(0)
	for ctx.Err() == nil {
		for e, err := range from.Events(ctx, newest) {
			if err != nil {
				break
			}
			if e.Line == nil {
				continue
			}
			newest = max(newest, e.Line.N)
			c.mu.Lock()
			c.lines[e.Line.N] = *e.Line
			c.mu.Unlock()
			if saw != nil {
				saw(*e.Line)
			}
		}
	}
}

// lastShown is the newest entry in the channel of the console.
func (c *channel) lastShown() fleet.EntryNo {
	c.mu.Lock()
	defer c.mu.Unlock()
	last := fleet.EntryNo(0)
	for _, l := range c.lines {
		last = max(last, l.Last)
	}
	return last
}

// posted is what is in Slack.
type posted struct {
	posts  int
	parts  []piece
	newest fleet.EntryNo
}

// piece is one line in a post, or a digest of many.
type piece struct {
	first, last fleet.EntryNo
	lines       uint64 // of a digest
}

var (
	lineMark   = regexp.MustCompile(`\[#(\d+)(?:-(\d+), \d+ times)?\]$`)
	digestMark = regexp.MustCompile(`^(\d+) lines could not be posted here when they came: entries #(\d+)-(\d+)`)
)

func (c *channel) posted() posted {
	var out posted
	for _, m := range c.slack.Messages(opsChannel) {
		if m.Thread != "" || m.To != "" {
			continue
		}
		n := len(out.parts)
		for _, l := range strings.Split(m.Text, "\n") {
			var p piece
			if f := digestMark.FindStringSubmatch(l); f != nil {
				p = piece{number(f[2]), number(f[3]), uint64(number(f[1]))}
			} else if f := lineMark.FindStringSubmatch(l); f != nil {
				p = piece{first: number(f[1]), last: max(number(f[1]), number(f[2]))}
			} else {
				continue
			}
			out.parts = append(out.parts, p)
			out.newest = max(out.newest, p.last)
		}
		if len(out.parts) > n {
			out.posts++
		}
	}
	return out
}

func number(s string) fleet.EntryNo {
	n, _ := strconv.ParseUint(s, 10, 64)
	return fleet.EntryNo(n)
}

// checkSlack goes through the lines of the console and the posts in Slack side
// by side: each line is there once, in its place, or in the digest that names it.
func (c *channel) checkSlack() (lines, digests int, covered uint64) {
	p := c.posted()
	c.wait(10*time.Second, "the console to have what Slack has", func() bool { return c.lastShown() >= p.newest })
	c.mu.Lock()
	defer c.mu.Unlock()
	next := uint64(0)
	for n, l := range c.lines {
		if l.First == p.parts[0].first {
			next = n
		}
	}
	if next == 0 {
		c.t.Fatalf("Slack begins with entry %d, which is no line", p.parts[0].first)
	}
	told := p.parts[0].first - 1 // up to this entry
	for _, p := range p.parts {
		l, ok := c.lines[next]
		if !ok {
			c.t.Fatalf("Slack has entry %d where line %d of the channel should be, which nobody has seen", p.first, next)
		}
		if p.lines == 0 {
			if l.First != p.first || l.Last != p.last {
				c.t.Fatalf("Slack has entries %d to %d where line %d of the channel should be: entries %d to %d", p.first, p.last, next, l.First, l.Last)
			}
			lines++
			next++
			told = p.last
			continue
		}
		end := c.lines[next+p.lines-1]
		if p.first <= told || p.first > l.First || p.last != end.Last {
			c.t.Fatalf("a digest in Slack of %d lines names entries %d to %d; lines %d to %d of the channel are entries %d to %d",
				p.lines, p.first, p.last, next, end.N, l.First, end.Last)
		}
		digests++
		covered += p.lines
		next += p.lines
		told = p.last
	}
	return lines, digests, covered
}

// checkPostgres compares Postgres with the record of the nodes.
func (c *channel) checkPostgres() int {
	r := &record{plant: c.plant, url: c.url}
	want := r.entries()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	db, err := pgx.Connect(ctx, c.url)
	if err != nil {
		c.t.Fatal(err)
	}
	defer db.Close(ctx)
	// By the transactions that brought them: in the order in which they came.
	rows, err := db.Query(ctx, "SELECT body FROM footplate.entries ORDER BY xmin::text::bigint, n")
	if err != nil {
		c.t.Fatal(err)
	}
	got, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		c.t.Fatal(err)
	}
	for i, e := range want {
		if i >= len(got) {
			c.t.Fatalf("entry %d is not in Postgres", e.N)
		}
		if got[i] != line(e) {
			c.t.Fatalf("row %d in Postgres is %s, not entry %d", i+1, got[i], e.N)
		}
	}
	return len(want)
}
