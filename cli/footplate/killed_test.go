package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"footplate/bot/slack/slacktest"
	"footplate/controlplane/api"
	"footplate/controlplane/archive/postgres/postgrestest"
	"footplate/controlplane/catalog"
	"footplate/fleet"
	"footplate/fleet/fault"
)

// Where each point is reached. Together they are all of them.
var (
	leaderPoints = []fault.Point{
		fault.ServerReceived, fault.ServerCommit, fault.ArchiveWrite, fault.ArchiveWritten, fault.SharedPut, fault.SharedCommit,
		fault.LaunchClaimed, fault.LaunchStarted, fault.LaunchRecorded, fault.LaunchReleased,
	}
	sinkPoints = []fault.Point{fault.SinkIntent, fault.SinkPosted}
	botPoints  = []fault.Point{
		fault.BotReceived, fault.BotParsed, fault.BotProposed, fault.BotBeforePost, fault.BotAfterPost, fault.BotBeforeAck, fault.BotAfterAck,
	}
	agentPoints = []fault.Point{fault.AgentFetched, fault.AgentStarted, fault.AgentFinished, fault.AgentReported}
)

// TestKilledPoints: no point is left out.
func TestKilledPoints(t *testing.T) {
	reached := slices.Concat(leaderPoints, sinkPoints, botPoints, agentPoints)
	for _, p := range fault.Points() {
		if !slices.Contains(reached, p) {
			t.Errorf("nothing is killed at %s", p)
		}
	}
}

// TestKilledLeader: whoever leads is killed at each point between a command, its
// commit, its answer and its place in both archives, and of the launch of a host,
// while people give commands in Slack.
func TestKilledLeader(t *testing.T) {
	t.Parallel()
	pg := postgrestest.Need(t)
	url := pg.URL(pg.Database(t))
	k := startKilled(t, plantConfig{nodes: 3, hosts: 1, slots: 1, fence: "10s", suspect: "5s"}, url)
	hosts := 1
	for range rounds() {
		for _, point := range leaderPoints {
			k.leaderAt(point, func() {
				if strings.HasPrefix(string(point), "launch:") {
					hosts++
					k.must("pool", "scale", "local", fmt.Sprint(hosts))
				}
			})
		}
	}
	k.finish()
	if n := k.checkPostgres(); n == 0 {
		t.Error("there is nothing in Postgres")
	}
	k.must("audit", "verify", "--peers", "--postgres")
	k.wait(30*time.Second, "the hosts, and none beside them", func() bool {
		live, _ := filepath.Glob(filepath.Join(k.dir, "hosts", "*", "machine.json"))
		return k.ready() == hosts && len(live) == hosts
	})
}

// TestKilledSink: whoever leads is killed between the intent to post lines, the
// post and the record of it.
func TestKilledSink(t *testing.T) {
	t.Parallel()
	k := startKilled(t, plantConfig{nodes: 3, slots: 1, fence: "10s", suspect: "5s"}, "")
	for range rounds() {
		for _, point := range sinkPoints {
			k.leaderAt(point, nil)
		}
	}
	k.finish()
	k.must("audit", "verify", "--peers")
}

// killed is a plant that is killed at fault points, and people in its Slack.
type killed struct {
	*channel
	people *people
	deaths int
}

func startKilled(t *testing.T, c plantConfig, url string) *killed {
	s := startWorkspace(t)
	c.faults, c.env = true, slackEnv(s)
	if url != "" {
		c.env = append(c.env, "FOOTPLATE_POSTGRES_URL="+url)
	}
	p := startPlant(t, c)
	k := &killed{channel: readChannel(p, s, url, nil)}
	k.people = startPeople(p, s)
	return k
}

// startWorkspace starts a Slack whose last delivery of an event comes when the
// trouble is over, as it does with the real one.
func startWorkspace(t *testing.T) *slacktest.Server {
	s, err := slacktest.Start(slacktest.Config{Redeliver: []time.Duration{500 * time.Millisecond, 4 * time.Second, 15 * time.Second}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// leaderAt has the leader die at a point, and starts it again. provoke, if any,
// has it get there.
func (k *killed) leaderAt(point fault.Point, provoke func()) {
	k.t.Helper()
	began := time.Now()
	for range 5 {
		l := k.leader()
		file := filepath.Join(k.dir, l.name+".fault")
		if err := os.WriteFile(file+".new", []byte(point), 0o600); err != nil {
			k.t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			k.t.Fatal(err)
		}
		if provoke != nil {
			provoke()
		}
		select {
		case <-l.done:
			k.died(l.cmd, l.name, point)
			l.cmd = nil
			k.deaths++
			k.leader() // another one, because this one is not there
			k.start(l)
			k.t.Logf("%s at %s, after %s", l.name, point, time.Since(began).Round(time.Millisecond))
			return
		case <-time.After(25 * time.Second): // it leads no more, or has nothing to do there
		}
		if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
			k.t.Fatal(err)
		}
	}
	k.t.Fatalf("no leader got to %s", point)
}

// died checks that a process died as if by kill -9, and not of something else.
func (p *plant) died(cmd *exec.Cmd, name string, at fault.Point) {
	p.t.Helper()
	status, _ := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !status.Signaled() || status.Signal() != syscall.SIGKILL {
		p.t.Errorf("%s was to be killed at %s, and ended with %v", name, at, cmd.ProcessState)
	}
}

// finish ends the load, waits until everything has arrived and looks at it.
func (k *killed) finish() {
	k.t.Helper()
	k.wait(30*time.Second, "every node", func() bool { return digestsAgree(k.plant) })
	k.people.finish()
	var last api.Reply
	if err := k.json(&last, "org", "set", "the-last", "--slots", "1"); err != nil {
		k.t.Fatal(err)
	}
	k.wait(90*time.Second, "the last line in Slack", func() bool { return k.posted().newest >= last.Entry })
	if k.url != "" {
		k.wait(60*time.Second, "the last entry in Postgres", func() bool {
			out, _, code := k.run("audit", "verify", "--peers", "--postgres")
			return code == 0 && !strings.Contains(out, "wait to be delivered") && !strings.Contains(out, "behind")
		})
	}
	lines, digests, covered := k.checkSlack()
	k.people.check()
	k.wait(20*time.Second, "the digests to agree", func() bool { return digestsAgree(k.plant) })
	k.t.Logf("%d deaths of a leader; %d lines in Slack, once and in order, %d digests with %d more; %s", k.deaths, lines, digests, covered, k.people.summary())
}

// people give commands in Slack, in each of the ways that there are, each for an
// org of its own: so it shows what was lost and what was done twice.
type people struct {
	*plant
	slack *slacktest.Server
	stop  chan struct{}
	quiet atomic.Bool
	all   sync.WaitGroup
	mu    sync.Mutex
	said  []*saying

	done, undone, silent int // of what was said: done, not done, not answered
}

// saying is one command.
type saying struct {
	org  string
	how  string // slash, mention or direct
	user string
	ack  bool // of a slash command: Slack did not say that it failed
}

// The pace of the people, and where they are: an answer takes a second of the
// conversation that it is in.
const (
	sayEvery  = 200 * time.Millisecond
	talkers   = 8
	channels  = 8
	madeWords = `made org "%s"`
)

func startPeople(p *plant, s *slacktest.Server) *people {
	pe := &people{plant: p, slack: s, stop: make(chan struct{})}
	for i := range talkers {
		u := fmt.Sprintf("U0P%d", i)
		s.AddUser(slacktest.User{ID: u, Name: strings.ToLower(u)})
		p.must("access", "grant", "slack:"+slacktest.Team+"/"+u, "operator")
	}
	for i := range channels {
		s.AddChannel(slacktest.Channel{ID: fmt.Sprintf("C0M%d", i), Name: fmt.Sprint("talk-", i)})
	}
	pe.all.Go(pe.talk)
	p.t.Cleanup(pe.end)
	return pe
}

func (p *people) talk() {
	tick := time.NewTicker(sayEvery)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-p.stop:
			return
		case <-tick.C:
		}
		if p.quiet.Load() {
			continue
		}
		s := &saying{org: fmt.Sprintf("org-%05d", n), user: fmt.Sprintf("U0P%d", n%talkers)}
		command := "org set " + s.org + " --slots 3"
		p.mu.Lock()
		p.said = append(p.said, s)
		p.mu.Unlock()
		switch n % 4 {
		case 0, 1:
			s.how = "slash"
			p.all.Go(func() {
				err := p.slack.Slash(s.user, opsChannel, command)
				if err != nil && !errors.Is(err, slacktest.ErrTimeout) {
					p.t.Error(err)
				}
				p.mu.Lock()
				defer p.mu.Unlock()
				s.ack = err == nil
			})
		case 2:
			s.how = "mention"
			if _, err := p.slack.Say(s.user, fmt.Sprintf("C0M%d", n/4%channels), "@footplate "+command, ""); err != nil {
				p.t.Error(err)
			}
		default:
			s.how = "direct"
			if _, err := p.slack.Say(s.user, "D"+s.user[1:], command, ""); err != nil {
				p.t.Error(err)
			}
		}
	}
}

// pause has nothing said while f runs.
func (p *people) pause(f func()) {
	p.quiet.Store(true)
	defer p.quiet.Store(false)
	f()
}

func (p *people) end() {
	select {
	case <-p.stop:
	default:
		close(p.stop)
	}
	p.all.Wait()
}

// finish ends the talk and waits for what is still being delivered.
func (p *people) finish() {
	p.end()
	p.slack.Settle()
}

// answers returns what the bot has answered about an org, oldest first.
func (p *people) answers(org string) (out []string) {
	for _, c := range p.places() {
		for _, m := range p.slack.Messages(c) {
			// What everybody sees in the channel is its log.
			if m.Bot && (c != opsChannel || m.To != "") && strings.Contains(m.Show(), org) {
				out = append(out, m.Show())
			}
		}
	}
	return out
}

func (p *people) places() []string {
	out := []string{opsChannel}
	for i := range channels {
		out = append(out, fmt.Sprintf("C0M%d", i))
	}
	for i := range talkers {
		out = append(out, fmt.Sprintf("D0P%d", i))
	}
	return out
}

// answered waits until every event is answered: whoever is told of one again looks
// first whether it was. That holds unless the last delivery of all is taken by
// somebody who is killed too, which a leader that dies every other second does.
func (p *people) answered() {
	p.t.Helper()
	p.slack.Settle()
	open := ""
	p.wait(40*time.Second, "an answer to everything that Slack delivers until it is taken", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, s := range p.said {
			if s.how != "slash" && s.org > open {
				if !strings.Contains(strings.Join(p.answers(s.org), ""), fmt.Sprintf(madeWords, s.org)) {
					return false
				}
				open = s.org
			}
		}
		return true
	})
}

// check compares what was said with the record and with the answers.
func (p *people) check() {
	p.t.Helper()
	if n := p.slack.GaveUp(); n != 0 {
		p.t.Errorf("Slack gave up on %d events", n)
	}
	acted := map[string]int{}
	for _, e := range (&record{plant: p.plant}).entries() {
		var args catalog.OrgSetArgs
		if e.Op == catalog.OrgSet.Name && e.Outcome == fleet.EntryDone && json.Unmarshal(e.Args, &args) == nil {
			acted[string(args.Org)]++
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.said {
		var made, nothing, follows int
		answers := p.answers(s.org)
		for _, a := range answers {
			switch {
			case strings.Contains(a, fmt.Sprintf(madeWords, s.org)):
				made++
			case strings.Contains(a, "nothing was done"):
				nothing++
			default:
				follows++
			}
		}
		n := acted[s.org]
		bad := ""
		switch {
		case n > 1:
			bad = fmt.Sprintf("was done %d times", n)
		case made > 1:
			bad = fmt.Sprintf("was answered %d times", made)
		case made == 1 && n == 0, s.how != "slash" && n == 0:
			bad = "was lost"
		case nothing > 0 && n == 1 && made == 0:
			bad = "was done, and the answer says that it was not"
		case s.ack && n == 1 && made == 0 && follows == 0:
			bad = "was acknowledged and done, and nothing was answered"
		case s.how != "slash" && made == 0:
			p.silent++ // see answered
		}
		if bad != "" {
			p.t.Errorf("%s %s %s; answers: %q", s.how, s.org, bad, answers)
		}
		if n == 1 {
			p.done++
		} else {
			p.undone++
		}
	}
}

func (p *people) summary() string {
	return fmt.Sprintf("%d commands: %d done once, %d of slash commands not done and not said to be, %d done whose answer died with the bot",
		len(p.said), p.done, p.undone, p.silent)
}

// mortal is a process that the test starts again when it died.
type mortal struct {
	p    *plant
	name string
	args []string
	env  []string
	cmd  *exec.Cmd
	done chan struct{}
}

func (p *plant) mortal(name string, env []string, args ...string) *mortal {
	m := &mortal{p: p, name: name, args: args, env: append(env, fault.Env+"=@"+filepath.Join(p.dir, name+".fault"))}
	m.start()
	p.t.Cleanup(func() {
		_ = m.cmd.Process.Kill()
		<-m.done
	})
	return m
}

func (m *mortal) start() {
	m.p.t.Helper()
	out, err := os.OpenFile(filepath.Join(m.p.dir, m.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		m.p.t.Fatal(err)
	}
	defer out.Close()
	m.cmd, m.done = exec.Command(binary, m.args...), make(chan struct{})
	m.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + m.p.dir}, m.env...)
	m.cmd.Stdout, m.cmd.Stderr = out, out
	if err := m.cmd.Start(); err != nil {
		m.p.t.Fatal(err)
	}
	go func(cmd *exec.Cmd, done chan struct{}) {
		_ = cmd.Wait()
		close(done)
	}(m.cmd, m.done)
}

// at has the process die at a point, and starts it again.
func (m *mortal) at(point fault.Point) {
	m.p.t.Helper()
	file := filepath.Join(m.p.dir, m.name+".fault")
	if err := errors.Join(os.WriteFile(file+".new", []byte(point), 0o600), os.Rename(file+".new", file)); err != nil {
		m.p.t.Fatal(err)
	}
	select {
	case <-m.done:
		m.p.died(m.cmd, m.name, point)
	case <-time.After(30 * time.Second):
		m.p.t.Fatalf("%s did not get to %s in 30 s", m.name, point)
	}
	m.start()
}

// TestKilledBot: the bot is killed at each point between a message in Slack, its
// command, the answer and the acknowledgement; another one goes on.
func TestKilledBot(t *testing.T) {
	t.Parallel()
	s := startWorkspace(t)
	p := startPlant(t, plantConfig{nodes: 1, slots: 1, fence: "10s", suspect: "5s"})
	var bots []*mortal
	for _, name := range []string{"bot-1", "bot-2"} {
		bots = append(bots, p.mortal(name, append(slackEnv(s), "FOOTPLATE_ADDR="+p.url(p.nodes[0]), "FOOTPLATE_TOKEN=secret-of-bot-for-tests"),
			"bot", "--log-format", "text"))
	}
	p.wait(20*time.Second, "the sockets of both", func() bool { return s.Sockets() == 4 })
	pe := startPeople(p, s)
	deaths := 0
	for range rounds() {
		for i, point := range botPoints {
			bots[i%2].at(point)
			deaths++
			p.wait(20*time.Second, "the sockets of both", func() bool { return s.Sockets() == 4 })
		}
		pe.pause(pe.answered)
	}
	pe.finish()
	pe.check()
	if pe.silent > 0 {
		t.Errorf("%d events were done and not answered", pe.silent)
	}
	p.must("audit", "verify")
	t.Logf("%d deaths of a bot; %s", deaths, pe.summary())
}

// TestKilledAgent: an agent is killed at each point of the life of an attempt,
// and comes back. Every build passes, two attempts are never alive at once, the
// logs are there.
func TestKilledAgent(t *testing.T) {
	t.Parallel()
	p := startPlant(t, plantConfig{nodes: 1, slots: 1, fence: "10s", suspect: "5s"})
	p.must("pool", "create", "farm", "--provider", "none", "--slots", "2", "--fence-after", "4s", "--suspect-after", "2s")
	var agents []*mortal
	for _, name := range []string{"farm-1", "farm-2"} {
		agents = append(agents, p.mortal(name, nil, "agent", "--host", name, "--pool", "farm", "--boot", "boot-of-"+name,
			"--addrs", p.url(p.nodes[0]), "--token-file", p.secret("agent"), "--dir", filepath.Join(p.dir, name), "--log-format", "text"))
	}
	m := newMarks(t)
	var builds []fleet.BuildID
	var stop atomic.Bool
	var all sync.WaitGroup
	all.Go(func() {
		tick := time.NewTicker(400 * time.Millisecond)
		defer tick.Stop()
		for !stop.Load() {
			<-tick.C
			out := p.must("build", "submit", "--org", "demo", "--pool", "farm", "--run", "echo word of $FOOTPLATE_BUILD; "+m.script(1), "-o", "json")
			builds = append(builds, p.submitted(out))
		}
	})
	deaths := 0
	for range rounds() {
		for i, point := range agentPoints {
			agents[i%2].at(point)
			deaths++
		}
	}
	stop.Store(true)
	all.Wait()
	again := 0
	for _, id := range builds {
		p.wait(60*time.Second, fmt.Sprintf("the end of build %d", id), p.passed(id))
		d := p.build(id)
		again += d.Attempts - 1
		if out := p.must("build", "logs", id.String()); strings.Count(out, fmt.Sprintf("\nword of %d\n", id)) < 1 {
			t.Errorf("the log of build %d: %s", id, out)
		}
	}
	if o := m.overlap(); o != "" {
		t.Errorf("two attempts at once: %s", o)
	}
	p.must("audit", "verify")
	t.Logf("%d deaths of an agent; %d builds passed, with %d attempts beside the first", deaths, len(builds), again)
}
