package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"footplate/controlplane/api"
	"footplate/fleet"
	"footplate/fleet/agent"
	"footplate/fleet/agent/attempt"
	"footplate/fleet/lease"
)

// A crowd is many agents in few processes: the agents' own logic (agent.Duty,
// and the lease in it) over the real protocol, one connection to each node for
// beats and one for syncs, as the real agent has them. What is missing is the
// machine: a task is a line in a list, that "runs" until it is told to end.
//
// It speaks HTTP by itself. Go's client would take several goroutines and
// buffers a connection, and half of the processor that the nodes are to have.

// crowdEnv makes this test binary a part of a crowd.
const crowdEnv = "FOOTPLATE_TEST_CROWD"

// crowdConfig says what one process of a crowd is.
type crowdConfig struct {
	First, Agents  int // it is the hosts First up to First+Agents
	Pool           fleet.PoolName
	Addrs          []string // base URLs
	Token, Cluster string
	Within         time.Duration // in which the agents start; all at once when 0
}

// crowdReport is what a process of a crowd says of itself. What counts up does
// so since the beginning.
type crowdReport struct {
	Ready   int // agents that hold a lease now
	Lapsed  int // leases that ran out
	Held    int // attempts that are held now
	Started int // attempts that were started
	Twice   int // tasks that ran in two places at once
	Beats, Refused, Unanswered,
	Syncs, SyncsFailed, Dials int64
	// Worst is the longest that an agent had left of its lease unused: how near
	// the nearest came to losing it is fence-after less this.
	Worst time.Duration
	CPU   time.Duration
	// BeatP50 and BeatP99 are how long beats took since the last report.
	BeatP50, BeatP99 time.Duration
	Lives            []crowdLife `json:",omitempty"` // of tasks, when asked for
}

// crowdLife is one attempt at a task. Times are those of the machine's boot clock.
type crowdLife struct {
	Build   fleet.BuildID
	Task, N int
	Host    fleet.HostID
	Begun   lease.Mono
	// Renewed is when the newest beat was sent that a majority has acknowledged;
	// 0 while the attempt runs.
	Renewed, Ended lease.Mono
}

// part is one process of a crowd.
type part struct {
	cfg    crowdConfig
	agents []*standIn

	beats, refused, unanswered, syncs, syncsFailed, dials atomic.Int64

	mu     sync.Mutex
	lapsed int
	worst  time.Duration
	took   []time.Duration // of beats
	lives  []*crowdLife
	open   map[fleet.AttemptID]*crowdLife
}

// standIn is one agent.
type standIn struct {
	part *part
	host fleet.HostID

	mu     sync.Mutex
	duty   *agent.Duty
	wake   *time.Timer
	mute   bool // its network is cut
	held   bool // it has a lease
	links  map[string]*beatLink
	fence  fleet.Duration
	syncs  int                 // grows with each sync that is sent
	under  net.Conn            // of the one that is under way
	idle   map[string]net.Conn // by node
	node   int                 // which of the nodes syncs go through
	leader string              // to which they go directly
	kept   []fleet.AttemptID
}

// beatLink is an agent's way to one node.
type beatLink struct {
	of   *standIn
	to   string
	next chan toBeat
	mu   sync.Mutex
	conn net.Conn
}

type toBeat struct {
	node fleet.NodeID
	beat api.Beat
}

// beCrowd is the main function of a process of a crowd. It does what standard
// input says, line by line, and ends with it.
func beCrowd(config string) int {
	if f := os.Getenv("ZZCROWDPROF"); f != "" {
		time.AfterFunc(15*time.Second, func() {
			w, _ := os.Create(fmt.Sprint(f, os.Getpid(), ".prof"))
			pprof.StartCPUProfile(w)
			time.AfterFunc(10*time.Second, pprof.StopCPUProfile)
		})
	}
	p := &part{open: make(map[fleet.AttemptID]*crowdLife)}
	if err := json.Unmarshal([]byte(config), &p.cfg); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	for i := range p.cfg.Agents {
		a := &standIn{part: p, host: fleet.HostID(fmt.Sprintf("%s-%05d", p.cfg.Pool, p.cfg.First+i)), links: make(map[string]*beatLink), idle: make(map[string]net.Conn)}
		id := agent.Identity{Host: a.host, Pool: p.cfg.Pool, Boot: fleet.BootID("boot-" + a.host), Incarnation: 1, Version: "crowd"}
		for _, addr := range p.cfg.Addrs {
			id.Seeds = append(id.Seeds, api.NodeAddr{API: addr})
		}
		a.duty, a.node = agent.NewDuty(id), p.cfg.First+i
		p.agents = append(p.agents, a)
		first := time.Duration(0)
		if p.cfg.Within > 0 {
			first = p.cfg.Within * time.Duration(i) / time.Duration(p.cfg.Agents)
		}
		a.mu.Lock()
		a.wake = time.AfterFunc(first, func() { a.step(agent.Input{}) })
		a.mu.Unlock()
	}
	out := json.NewEncoder(os.Stdout)
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		word, rest, _ := strings.Cut(in.Text(), " ")
		n, _ := strconv.Atoi(rest)
		switch word {
		case "mute": // cuts off n agents that have an attempt
			for _, a := range p.agents {
				if n > 0 && a.cut(true) {
					n--
				}
			}
		case "speak":
			for _, a := range p.agents {
				a.cut(false)
			}
		}
		if err := out.Encode(p.report(word == "lives")); err != nil {
			return 1
		}
	}
	return 0
}

func (p *part) report(lives bool) crowdReport {
	r := crowdReport{
		Beats: p.beats.Load(), Refused: p.refused.Load(), Unanswered: p.unanswered.Load(),
		Syncs: p.syncs.Load(), SyncsFailed: p.syncsFailed.Load(), Dials: p.dials.Load(),
	}
	var use syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &use) == nil {
		r.CPU = time.Duration(use.Utime.Nano() + use.Stime.Nano())
	}
	for _, a := range p.agents {
		a.mu.Lock()
		if _, held := a.duty.Lease(lease.Mono(attempt.Now())); held {
			r.Ready++
		}
		r.Held += len(a.kept)
		a.mu.Unlock()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	r.Lapsed, r.Worst, r.Started = p.lapsed, p.worst, len(p.lives)
	slices.Sort(p.took)
	if n := len(p.took); n > 0 {
		r.BeatP50, r.BeatP99 = p.took[n/2], p.took[n*99/100]
	}
	p.took, p.worst = nil, 0
	if lives {
		for _, l := range p.lives {
			r.Lives = append(r.Lives, *l)
		}
	}
	return r
}

// cut cuts the agent off, if it has an attempt, or joins it up again.
func (a *standIn) cut(off bool) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.mute == off || off && len(a.kept) == 0 {
		return false
	}
	a.mute = off
	if off {
		for _, l := range a.links {
			l.close()
		}
		if a.under != nil {
			a.under.Close()
		}
		for to, c := range a.idle {
			c.Close()
			delete(a.idle, to)
		}
	}
	return true
}

// step is what the real agent's loop does once.
func (a *standIn) step(in agent.Input) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for {
		at := lease.Mono(attempt.Now())
		fx := a.duty.Step(at, in)
		in = a.carryOut(at, fx)
		if fx.Exit {
			return
		}
		if in.Attempts == nil {
			a.wake.Reset(time.Duration(max(0, fx.Wake-at)))
			return
		}
	}
}

// carryOut does what the duty says, and returns what came of it at once.
func (a *standIn) carryOut(at lease.Mono, fx agent.Effects) (in agent.Input) {
	_, held := a.duty.Lease(at)
	if a.held && !held {
		a.part.mu.Lock()
		a.part.lapsed++
		a.part.mu.Unlock()
	}
	a.held = held
	for _, o := range fx.Kill {
		in.Attempts = append(in.Attempts, a.end(at, o.Attempt, fleet.Lost, o.Why))
	}
	for _, o := range fx.Cancel {
		in.Attempts = append(in.Attempts, a.end(at, o.Attempt, fleet.Canceled, o.Why))
	}
	for _, s := range fx.Start {
		a.kept = append(a.kept, s.Attempt)
		l := &crowdLife{Build: s.Build, Task: s.Task, N: s.N, Host: a.host, Begun: at}
		a.part.mu.Lock()
		a.part.lives = append(a.part.lives, l)
		a.part.open[s.Attempt] = l
		a.part.mu.Unlock()
		in.Attempts = append(in.Attempts, agent.Progress{Attempt: s.Attempt, Phase: fleet.PhaseSteps})
	}
	if fx.Beat != nil && !a.mute {
		a.fence = fx.Beat.FenceAfter
		for _, n := range fx.Beat.To {
			if n.API != "" {
				a.link(n.API).send(toBeat{n.Node, fx.Beat.Beat})
			}
		}
	}
	if (fx.Sync != nil || fx.GiveUp) && a.under != nil {
		a.under.Close()
		a.under = nil
	}
	if fx.GiveUp {
		a.node, a.leader = a.node+1, ""
	}
	if fx.Sync != nil {
		a.syncs++
		if a.mute {
			go a.synced(fx.Sync.Seq, nil)
			return in
		}
		to := a.leader
		if nodes := a.duty.Nodes(); to == "" {
			to = nodes[a.node%len(nodes)].API
		}
		a.under = a.idle[to]
		delete(a.idle, to)
		go a.sync(a.syncs, a.under, to, *fx.Sync)
	}
	return in
}

// end ends an attempt.
func (a *standIn) end(at lease.Mono, id fleet.AttemptID, outcome fleet.Outcome, why string) agent.Progress {
	a.kept = slices.DeleteFunc(a.kept, func(k fleet.AttemptID) bool { return k == id })
	a.part.mu.Lock()
	if l := a.part.open[id]; l != nil {
		l.Ended = at
		delete(a.part.open, id)
	}
	a.part.mu.Unlock()
	return agent.Progress{Attempt: id, Phase: fleet.PhaseEnded, Dead: true, Outcome: outcome, Why: why}
}

// sync sends a sync, and waits for the answer.
func (a *standIn) sync(n int, conn net.Conn, to string, s api.Sync) {
	body, _ := json.Marshal(s)
	answer, status, err := []byte(nil), 0, errUnused
	if conn != nil {
		answer, status, err = a.part.exchange(conn, 10*time.Second, to, "/v1/agent.sync", body)
	}
	if errors.Is(err, errUnused) { // as any client of HTTP does
		if conn != nil {
			conn.Close()
		}
		if conn, err = a.part.dial(to); err == nil {
			a.mu.Lock()
			if a.syncs == n && !a.mute {
				a.under = conn
			} else {
				conn.Close()
			}
			a.mu.Unlock()
			answer, status, err = a.part.exchange(conn, 10*time.Second, to, "/v1/agent.sync", body)
		}
	}
	var reply *api.SyncReply
	if err == nil && status == http.StatusOK {
		reply = new(api.SyncReply)
		err = json.Unmarshal(answer, reply)
	}
	a.mu.Lock()
	given := a.syncs != n
	if !given {
		a.under = nil
	}
	switch {
	case err == nil && !given && !a.mute:
		a.idle[to] = conn
	case conn != nil:
		conn.Close()
	}
	if given {
		a.mu.Unlock()
		return // nobody waits for it
	}
	a.leader = ""
	if reply == nil {
		a.node++
	} else {
		for _, o := range reply.Nodes {
			if o.Node == reply.Leader {
				a.leader = o.API
			}
		}
	}
	a.mu.Unlock()
	a.synced(s.Seq, reply)
}

func (a *standIn) synced(seq uint64, r *api.SyncReply) {
	a.part.syncs.Add(1)
	if r == nil {
		a.part.syncsFailed.Add(1)
	}
	a.step(agent.Input{Sync: &agent.Synced{Seq: seq, Reply: r}})
}

// link returns the way to a node.
func (a *standIn) link(to string) *beatLink {
	l := a.links[to]
	if l == nil {
		l = &beatLink{of: a, to: to, next: make(chan toBeat, 1)}
		a.links[to] = l
		go l.run()
	}
	return l
}

// send sends a beat, unless the one before still waits.
func (l *beatLink) send(b toBeat) {
	select {
	case l.next <- b:
	default:
		l.of.part.unanswered.Add(1)
	}
}

func (l *beatLink) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn != nil {
		l.conn.Close()
	}
}

func (l *beatLink) run() {
	p := l.of.part
	for b := range l.next {
		began := time.Now()
		body, _ := json.Marshal(b.beat)
		var reply api.BeatReply
		answer, err := l.ask(body)
		if err == nil {
			err = json.Unmarshal(answer, &reply)
		}
		took := time.Since(began)
		p.beats.Add(1)
		switch {
		case err != nil:
			p.unanswered.Add(1)
			continue
		case !reply.Ack:
			p.refused.Add(1)
		}
		p.mu.Lock()
		p.took = append(p.took, took)
		p.mu.Unlock()
		l.of.heard(b, reply)
	}
}

// heard takes in the answer to a beat.
func (a *standIn) heard(b toBeat, r api.BeatReply) {
	a.mu.Lock()
	mute := a.mute
	left := time.Duration(0)
	if at := lease.Mono(attempt.Now()); a.held && a.fence > 0 {
		deadline, _ := a.duty.Lease(at)
		left = a.fence.Std() - time.Duration(deadline-at)
	}
	a.mu.Unlock()
	if mute {
		return
	}
	a.part.mu.Lock()
	a.part.worst = max(a.part.worst, left)
	a.part.mu.Unlock()
	a.step(agent.Input{Beats: []agent.Beaten{{To: b.node, Beat: b.beat, Reply: r}}})
}

// ask sends one beat.
func (l *beatLink) ask(body []byte) ([]byte, error) {
	l.mu.Lock()
	conn := l.conn
	l.mu.Unlock()
	answer, status, err := []byte(nil), 0, errUnused
	const within = 2500 * time.Millisecond
	if conn != nil {
		answer, status, err = l.of.part.exchange(conn, within, l.to, "/v1/agent.beat", body)
	}
	if errors.Is(err, errUnused) {
		if conn != nil {
			conn.Close()
		}
		if conn, err = l.of.part.dial(l.to); err == nil {
			l.mu.Lock()
			l.conn = conn
			l.mu.Unlock()
			answer, status, err = l.of.part.exchange(conn, within, l.to, "/v1/agent.beat", body)
		}
	}
	if err != nil {
		l.mu.Lock()
		l.conn = nil
		l.mu.Unlock()
		if conn != nil {
			conn.Close()
		}
		return nil, err
	}
	if status != http.StatusOK {
		return nil, fmt.Errorf("%s answers %d: %s", l.to, status, answer)
	}
	return answer, nil
}

func (p *part) dial(to string) (net.Conn, error) {
	p.dials.Add(1)
	return net.DialTimeout("tcp", strings.TrimPrefix(to, "http://"), 2*time.Second)
}

// errUnused says that a connection was closed before anything of the answer came.
var errUnused = errors.New("the connection was closed")

var readers = sync.Pool{New: func() any { return bufio.NewReader(nil) }}

// exchange sends a request and reads its answer. While it waits it holds a
// small buffer, and no more.
func (p *part) exchange(conn net.Conn, within time.Duration, to, path string, body []byte) (answer []byte, status int, err error) {
	_ = conn.SetDeadline(time.Now().Add(within))
	req := make([]byte, 0, 512+len(body))
	req = fmt.Appendf(req, "POST %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\n%s: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n",
		path, strings.TrimPrefix(to, "http://"), p.cfg.Token, api.HeaderCluster, p.cfg.Cluster, len(body))
	if _, err := conn.Write(append(req, body...)); err != nil {
		return nil, 0, unused(err)
	}
	var buf [512]byte
	n, err := conn.Read(buf[:])
	if err != nil {
		return nil, 0, unused(err)
	}
	r := readers.Get().(*bufio.Reader)
	defer readers.Put(r)
	r.Reset(io.MultiReader(bytes.NewReader(buf[:n]), conn))
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		return nil, 0, err
	}
	defer res.Body.Close()
	answer, err = io.ReadAll(res.Body)
	return answer, res.StatusCode, err
}

// unused says whether a connection was found closed.
func unused(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed) {
		return err
	}
	return errUnused
}

// crowd is a crowd as a test sees it.
type crowd struct {
	t     testing.TB
	parts []*crowdPart
}

type crowdPart struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

// startCrowd starts so many agents, in so many processes.
func startCrowd(t testing.TB, p *plant, pool fleet.PoolName, agents, processes int, within time.Duration) *crowd {
	t.Helper()
	st, err := p.status()
	if err != nil {
		t.Fatal(err)
	}
	c := &crowd{t: t}
	t.Cleanup(c.stop)
	for i := range processes {
		first, end := agents*i/processes, agents*(i+1)/processes
		cfg := crowdConfig{
			First: first, Agents: end - first, Pool: pool, Token: "secret-of-agent-for-tests", Cluster: st.Cluster.Cluster, Within: within,
		}
		for _, n := range p.nodes {
			cfg.Addrs = append(cfg.Addrs, p.url(n))
		}
		config, err := json.Marshal(cfg)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), crowdEnv+"="+string(config))
		cmd.Stderr = os.Stderr
		in, err1 := cmd.StdinPipe()
		out, err2 := cmd.StdoutPipe()
		if err := errors.Join(err1, err2, cmd.Start()); err != nil {
			t.Fatal(err)
		}
		c.parts = append(c.parts, &crowdPart{cmd, in, json.NewDecoder(out)})
	}
	return c
}

func (c *crowd) stop() {
	for _, p := range c.parts {
		_ = p.in.Close()
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	}
	c.parts = nil
}

// tell says something to every process of the crowd, and sums what they answer.
func (c *crowd) tell(words string, args ...int) crowdReport {
	c.t.Helper()
	var sum crowdReport
	for i, p := range c.parts {
		line := words
		if len(args) > 0 {
			line = fmt.Sprintf("%s %d", words, args[i])
		}
		if _, err := fmt.Fprintln(p.in, line); err != nil {
			c.t.Fatalf("a crowd does not listen: %v", err)
		}
	}
	for _, p := range c.parts {
		var r crowdReport
		if err := p.out.Decode(&r); err != nil {
			c.t.Fatalf("a crowd does not answer: %v", err)
		}
		sum.Ready += r.Ready
		sum.Lapsed += r.Lapsed
		sum.Held += r.Held
		sum.Started += r.Started
		sum.Beats += r.Beats
		sum.Refused += r.Refused
		sum.Unanswered += r.Unanswered
		sum.Syncs += r.Syncs
		sum.SyncsFailed += r.SyncsFailed
		sum.Dials += r.Dials
		sum.CPU += r.CPU
		sum.Worst = max(sum.Worst, r.Worst)
		sum.BeatP50 = max(sum.BeatP50, r.BeatP50)
		sum.BeatP99 = max(sum.BeatP99, r.BeatP99)
		sum.Lives = append(sum.Lives, r.Lives...)
	}
	return sum
}

// scrape reads the metrics of a node: what a metric's name begins, up to a space,
// is summed over all labels that have the text in them.
type scraped string

func scrape(n *node) scraped {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.api+"/metrics", nil)
	if err != nil {
		return ""
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return ""
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(res.Body)
	return scraped(text)
}

// sum adds up the samples of a metric whose labels have the text in them.
func (s scraped) sum(metric, labels string) float64 {
	sum := 0.0
	for line := range strings.Lines(string(s)) {
		if rest, ok := strings.CutPrefix(line, metric); ok && rest != "" && (rest[0] == ' ' || rest[0] == '{') && strings.Contains(rest, labels) {
			v, _ := strconv.ParseFloat(strings.TrimSpace(rest[strings.LastIndexByte(rest, ' '):]), 64)
			sum += v
		}
	}
	return sum
}

func TestCrowdTry(t *testing.T) {
	agents, _ := strconv.Atoi(os.Getenv("CROWD"))
	secs, _ := strconv.Atoi(os.Getenv("SECS"))
	p := startPlant(t, plantConfig{nodes: 3, hosts: 0, slots: 1, fence: "30s", suspect: "10s"})
	p.must("pool", "create", "crowd", "--provider", "none", "--slots", "1")
	began := time.Now()
	c := startCrowd(t, p, "crowd", agents, (agents+2999)/3000, time.Duration(agents)*time.Millisecond)
	say := func() {
		r := c.tell("report")
		line := fmt.Sprintf("%6.1fs ready %d lapsed %d beats %d refused %d unanswered %d syncs %d failed %d dials %d worst %s p50 %s p99 %s cpu %.1f|",
			time.Since(began).Seconds(), r.Ready, r.Lapsed, r.Beats, r.Refused, r.Unanswered, r.Syncs, r.SyncsFailed, r.Dials, r.Worst, r.BeatP50, r.BeatP99, r.CPU.Seconds())
		for _, n := range p.nodes {
			m := scrape(n)
			line += fmt.Sprintf(" %s cpu %.1f rss %.0fM fds %.0f gor %.0f sus %.0f lost %.0f lead %.0f;", n.name, m.sum("process_cpu_seconds_total", ""),
				m.sum("process_resident_memory_bytes", "")/1e6, m.sum("process_open_fds", ""), m.sum("go_goroutines", ""),
				m.sum("footplate_hosts", `state="suspect"`), m.sum("footplate_hosts", `state="lost"`), m.sum("footplate_leader", ""))
		}
		fmt.Println(line)
	}
	for time.Since(began) < time.Duration(secs)*time.Second {
		<-time.After(3 * time.Second)
		say()
	}
	exec.Command("cp", p.dir+"/n1.log", p.dir+"/n2.log", p.dir+"/n3.log", "/tmp/crowd").Run()
}
