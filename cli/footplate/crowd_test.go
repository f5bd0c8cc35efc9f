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
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"footplate/controlplane/api"
	"footplate/controlplane/client"
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
	Synced  int // agents that a leader has answered since they were told "mark"
	Beats, Refused, Unanswered,
	Syncs, SyncsFailed, Dials int64
	// Worst is the longest that an agent had left of its lease unused: how near
	// the nearest came to losing it is fence-after less this.
	Worst time.Duration
	// Late is by how much the process itself was too late, at worst, since the last
	// report: what the machine did to it, and no node.
	Late time.Duration
	CPU  time.Duration
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
	Ended   lease.Mono // 0 while it runs
	// Renewed is when the newest beat was sent that a majority has acknowledged,
	// of an agent that was cut off.
	Renewed lease.Mono
}

// crowdSide is one process of a crowd.
type crowdSide struct {
	cfg    crowdConfig
	agents []*standIn
	header string // of every request, but for its path and length

	beats, refused, unanswered, syncs, syncsFailed, dials atomic.Int64

	mu     sync.Mutex
	lapsed int
	worst  time.Duration
	late   time.Duration
	took   []time.Duration // of beats
	lives  []*crowdLife
	open   map[fleet.AttemptID]*crowdLife
}

// standIn is one agent.
type standIn struct {
	part *crowdSide
	host fleet.HostID

	mu     sync.Mutex
	duty   *agent.Duty
	wake   *time.Timer
	mute   bool // its network is cut
	held   bool // it has a lease
	marked bool // a leader has answered since the mark
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
	p := &crowdSide{open: make(map[fleet.AttemptID]*crowdLife)}
	if err := json.Unmarshal([]byte(config), &p.cfg); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	p.header = crowdHeader(p.cfg.Token, p.cfg.Cluster)
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
	go p.watchLate()
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
		case "mark":
			for _, a := range p.agents {
				a.mu.Lock()
				a.marked = false
				a.mu.Unlock()
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

// watchLate notices when the process stands still.
func (p *crowdSide) watchLate() {
	const every = 20 * time.Millisecond
	last := time.Now()
	for range time.Tick(every) {
		late := time.Since(last) - every
		last = time.Now()
		p.mu.Lock()
		p.late = max(p.late, late)
		p.mu.Unlock()
	}
}

func (p *crowdSide) report(lives bool) crowdReport {
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
		if a.marked {
			r.Synced++
		}
		a.mu.Unlock()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	r.Lapsed, r.Worst, r.Late, r.Started = p.lapsed, p.worst, p.late, len(p.lives)
	slices.Sort(p.took)
	if n := len(p.took); n > 0 {
		r.BeatP50, r.BeatP99 = p.took[n/2], p.took[n*99/100]
	}
	p.took, p.worst, p.late = nil, 0, 0
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
		deadline, _ := a.duty.Lease(lease.Mono(attempt.Now()))
		a.part.mu.Lock()
		for _, id := range a.kept {
			if l := a.part.open[id]; l != nil {
				l.Renewed = deadline - lease.Mono(0).Add(a.fence)
			}
		}
		a.part.mu.Unlock()
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
		answer, status, err = a.part.exchange(conn, 15*time.Second, "/v1/agent.sync", body)
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
			answer, status, err = a.part.exchange(conn, 15*time.Second, "/v1/agent.sync", body)
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
		a.marked = true
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
	var said []byte // the newest acknowledgement, and what it means
	var meant api.BeatReply
	for b := range l.next {
		began := time.Now()
		body, _ := json.Marshal(b.beat)
		reply := meant
		answer, err := l.ask(body)
		if err == nil && (!meant.Ack || !bytes.Equal(answer, said)) {
			reply = api.BeatReply{}
			err = json.Unmarshal(answer, &reply)
			said, meant = answer, reply
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
		answer, status, err = l.of.part.exchange(conn, within, "/v1/agent.beat", body)
	}
	if errors.Is(err, errUnused) {
		if conn != nil {
			conn.Close()
		}
		if conn, err = l.of.part.dial(l.to); err == nil {
			l.mu.Lock()
			l.conn = conn
			l.mu.Unlock()
			answer, status, err = l.of.part.exchange(conn, within, "/v1/agent.beat", body)
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

// crowdHeader is what stands in every request between its path and its length.
func crowdHeader(token, cluster string) string {
	return fmt.Sprintf(" HTTP/1.1\r\nHost: crowd\r\nAuthorization: Bearer %s\r\n%s: %s\r\nContent-Type: application/json\r\nContent-Length: ",
		token, api.HeaderCluster, cluster)
}

func (p *crowdSide) dial(to string) (net.Conn, error) {
	p.dials.Add(1)
	return net.DialTimeout("tcp", strings.TrimPrefix(to, "http://"), 2*time.Second)
}

// errUnused says that a connection was closed before anything of the answer came.
var errUnused = errors.New("the connection was closed")

var readers = sync.Pool{New: func() any { return bufio.NewReader(nil) }}

// exchange sends a request and reads its answer. While it waits it holds a
// small buffer, and no more.
func (p *crowdSide) exchange(conn net.Conn, within time.Duration, path string, body []byte) (answer []byte, status int, err error) {
	_ = conn.SetDeadline(time.Now().Add(within))
	req := append(append(make([]byte, 0, 1024), "POST "+path...), p.header...)
	req = append(strconv.AppendInt(req, int64(len(body)), 10), "\r\n\r\n"...)
	if _, err := conn.Write(append(req, body...)); err != nil {
		return nil, 0, unused(err)
	}
	var buf [1024]byte
	n, err := conn.Read(buf[:])
	if err != nil {
		return nil, 0, unused(err)
	}
	if head, rest, ok := bytes.Cut(buf[:n], []byte("\r\n\r\n")); ok {
		_, length, _ := bytes.Cut(head, []byte("\r\nContent-Length: "))
		length, _, _ = bytes.Cut(length, []byte("\r"))
		if l, err := strconv.Atoi(string(length)); err == nil && l == len(rest) && len(head) > 12 {
			status, err = strconv.Atoi(string(head[9:12]))
			return slices.Clone(rest), status, err
		}
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
		sum.Synced += r.Synced
		sum.Late = max(sum.Late, r.Late)
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

const crowdFence = 30 * fleet.Second // as pools have it by default

// crowdPool is the pool of crowds.
const crowdPool = "crowd"

// crowdPlant starts three nodes, and a crowd.
func crowdPlant(t testing.TB, agents int, fence, suspect string) (*plant, *crowd) {
	p := startPlant(t, plantConfig{nodes: 3, hosts: 0, slots: 1, fence: "30s", suspect: "10s"})
	p.must("pool", "create", crowdPool, "--provider", "none", "--slots", "1", "--fence-after", fence, "--suspect-after", suspect)
	p.must("org", "set", "demo", "--slots", strconv.Itoa(agents))
	// A process may open 20,000 files on some machines, and an agent needs five.
	return p, startCrowd(t, p, crowdPool, agents, (agents+2999)/3000, time.Duration(agents)*time.Second/400)
}

// ready waits until every agent has its lease.
func (c *crowd) ready(agents int) {
	c.t.Helper()
	most := time.Minute + time.Duration(agents)*20*time.Millisecond
	waitFor(c.t, most, "every agent of the crowd", func() bool { return c.tell("report").Ready == agents })
}

// run submits a build of so many tasks, and waits until they run.
func (c *crowd) run(p *plant, tasks int) {
	c.t.Helper()
	before := c.tell("report").Held
	for left := tasks; left > 0; left -= fleet.MaxTasks {
		var y strings.Builder
		fmt.Fprintf(&y, "org: demo\npool: %s\ntasks:\n", crowdPool)
		for i := range min(left, fleet.MaxTasks) {
			fmt.Fprintf(&y, "- name: t%d\n  steps: [\"true\"]\n", i)
		}
		file := filepath.Join(p.dir, "crowd.yaml")
		if err := os.WriteFile(file, []byte(y.String()), 0o600); err != nil {
			c.t.Fatal(err)
		}
		p.must("build", "submit", "-f", file)
	}
	waitFor(c.t, time.Minute, "every task", func() bool { return c.tell("report").Held == before+tasks })
}

// verdicts counts the hosts that were called silent, and those that were called
// lost, by the record.
func (p *plant) verdicts() (suspect, lost int) {
	p.t.Helper()
	for line := range strings.Lines(p.must("audit", "export", "--op", "host", "--outcome", "done")) {
		var e struct {
			Op   string
			Args struct {
				Hosts []fleet.HostID
				Again bool
			}
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			p.t.Fatal(err)
		}
		switch {
		case e.Op == "host lose":
			lost++
		case e.Op == "host suspect" && !e.Args.Again:
			suspect += len(e.Args.Hosts)
		}
	}
	return suspect, lost
}

// again returns how late attempts of agents that were cut off were given to
// others, past the earliest moment at which that is safe. It fails when a task
// was in two places at once.
func again(t testing.TB, lives []crowdLife, fence fleet.Duration) []time.Duration {
	t.Helper()
	type task struct {
		build fleet.BuildID
		task  int
	}
	by := make(map[task][]crowdLife)
	for _, l := range lives {
		k := task{l.Build, l.Task}
		by[k] = append(by[k], l)
	}
	var late []time.Duration
	for k, of := range by {
		slices.SortFunc(of, func(a, b crowdLife) int { return a.N - b.N })
		for i, l := range of[:len(of)-1] {
			next := of[i+1]
			if l.Ended == 0 || l.Ended >= next.Begun {
				t.Errorf("build %d task %d ran on %s (until %d) and on %s (since %d)", k.build, k.task, l.Host, l.Ended, next.Host, next.Begun)
			}
			if l.Renewed != 0 {
				late = append(late, time.Duration(next.Begun-l.Renewed.Add(fence+lease.Margin(fence))))
			}
		}
	}
	slices.Sort(late)
	return late
}

// TestCrowd kills the leader under a small crowd, and cuts off some of its
// agents: the first costs nobody anything, and the others' tasks are given to
// others, not before they have ended.
func TestCrowd(t *testing.T) {
	const agents, tasks, cutOff, fence = 300, 100, 5, 8 * fleet.Second
	p, c := crowdPlant(t, agents, "8s", "4s")
	c.ready(agents)
	c.run(p, tasks)
	c.tell("mark")
	p.kill(p.leader())
	waitFor(t, 30*time.Second, "every agent to be answered by the new leader", func() bool { return c.tell("report").Synced == agents })
	r := c.tell("report")
	suspect, lost := p.verdicts()
	if lost > 0 || r.Lapsed > 0 || r.Started != tasks {
		t.Errorf("the death of the leader: %d hosts were called lost, %d suspect, %d lost their lease, %d attempts for %d tasks (the crowd was late by %s)",
			lost, suspect, r.Lapsed, r.Started, tasks, r.Late)
	}
	c.tell("mute", cutOff)
	waitFor(t, time.Minute, "the tasks to run elsewhere", func() bool { return c.tell("report").Started == tasks+cutOff })
	if _, lost := p.verdicts(); lost != cutOff {
		t.Errorf("%d agents were cut off, and %d called lost", cutOff, lost)
	}
	late := again(t, c.tell("lives").Lives, fence)
	if len(late) != cutOff || late[0] < 0 {
		t.Errorf("attempts were given again %v past the earliest safe moment", late)
	}
	t.Logf("attempts were given again %v past the earliest safe moment", late)
}

// crowdAgents is how many agents a crowd of the benchmarks has.
func crowdAgents() int {
	if n, err := strconv.Atoi(os.Getenv("FOOTPLATE_CROWD")); err == nil && n > 0 {
		return n
	}
	return 10_000
}

// BenchmarkCrowd kills the leader ten times while ten thousand agents are there,
// and measures how long operations and agents are without one. No host may be
// called silent or lost for it, and no agent lose its lease. (Goal 3d.) Then all
// nodes are killed at once, and then a tenth of the agents with their tasks.
// (Goals 4a and 4c.)
func BenchmarkCrowd(b *testing.B) {
	agents := crowdAgents()
	began := time.Now()
	p, c := crowdPlant(b, agents, "30s", "10s")
	c.ready(agents)
	b.ReportMetric(time.Since(began).Seconds(), "s-join")
	say := func(what string) crowdReport {
		r := c.tell("report")
		line := fmt.Sprintf("%5.0fs %-10s ready %d lapsed %d synced %d unanswered %d failed %d dials %d, used of a lease %.1fs, late %.1fs, beats p50 %s p99 %s, cpu %.1fs",
			time.Since(began).Seconds(), what, r.Ready, r.Lapsed, r.Synced, r.Unanswered, r.SyncsFailed, r.Dials, r.Worst.Seconds(), r.Late.Seconds(),
			r.BeatP50.Round(time.Microsecond), r.BeatP99.Round(time.Microsecond), r.CPU.Seconds())
		for _, n := range p.nodes {
			m := scrape(n)
			line += fmt.Sprintf("; %s cpu %.1fs rss %.0fM files %.0f", n.name, m.sum("process_cpu_seconds_total", ""),
				m.sum("process_resident_memory_bytes", "")/1e6, m.sum("process_open_fds", ""))
		}
		fmt.Fprintln(os.Stderr, line) // a benchmark's own log is cut off
		return r
	}
	say("joined")
	cl, err := client.New(client.Config{Addrs: []string{p.url(p.nodes[0]), p.url(p.nodes[1]), p.url(p.nodes[2])}, Token: p.admin, Via: "bench/1"})
	if err != nil {
		b.Fatal(err)
	}
	w := &worker{org: "worker-0", client: cl}
	work, stop := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() { w.work(work) })
	defer all.Wait()
	defer stop()
	var acked, synced []float64
	for b.Loop() {
		for range failoverTrials {
			p.wait(time.Minute, "the client at work", func() bool { return time.Since(time.Unix(0, w.at.Load())) < time.Second })
			leader := p.leader()
			c.tell("mark")
			killed := time.Now()
			p.kill(leader)
			after := killed.Add(failoverTimeout / 5).UnixNano()
			p.wait(time.Minute, "an operation to be acknowledged again", func() bool { return w.at.Load() > after })
			acked = append(acked, float64(w.at.Load()-killed.UnixNano())/1e9)
			p.wait(2*time.Minute, "every agent to be answered", func() bool { return c.tell("report").Synced == agents })
			synced = append(synced, time.Since(killed).Seconds())
			p.start(leader)
			p.wait(time.Minute, "every node to be ready", func() bool { return ready(leader) })
			// Long enough for a host that was not heard to be called silent.
			p.wait(time.Minute, "a while", func() bool { return time.Since(killed) > 12*time.Second })
			say("killed " + leader.name)
		}
	}
	// A host that was silent since the last one died would be called lost by now.
	quiet := time.Now()
	p.wait(time.Minute, "a while", func() bool { return time.Since(quiet) > (crowdFence + lease.Margin(crowdFence)).Std() })
	r := say("quiet")
	suspect, lost := p.verdicts()
	b.ReportMetric(float64(suspect), "suspect")
	b.ReportMetric(float64(lost), "lost")
	b.ReportMetric(float64(r.Lapsed), "fenced")
	slices.Sort(acked)
	slices.Sort(synced)
	b.ReportMetric(acked[len(acked)/2], "s-ack-p50")
	b.ReportMetric(acked[len(acked)-1], "s-ack-max")
	b.ReportMetric(synced[len(synced)/2], "s-synced-p50")
	b.ReportMetric(synced[len(synced)-1], "s-synced-max")
	b.ReportMetric(0, "ns/op")
	if lost > 0 || r.Lapsed > 0 {
		b.Errorf("%d hosts were called lost, %d suspect, and %d agents lost their lease", lost, suspect, r.Lapsed)
	}

	c.run(p, agents/10)
	for _, n := range p.nodes {
		p.kill(n)
	}
	c.tell("mark")
	killed := time.Now()
	for _, n := range p.nodes {
		p.start(n)
	}
	p.wait(2*time.Minute, "every agent to be answered", func() bool { return c.tell("report").Synced == agents })
	b.ReportMetric(time.Since(killed).Seconds(), "s-all-restarted")
	r = say("restarted")
	if r.Lapsed > 0 || r.Started != agents/10 {
		b.Errorf("all nodes were restarted: %d agents lost their lease, %d attempts for %d tasks", r.Lapsed, r.Started, agents/10)
	}
	// Nodes that have just started testify nothing for a while.
	p.wait(time.Minute, "a while", func() bool { return time.Since(killed) > (crowdFence + lease.Margin(crowdFence)).Std() })
	cut := make([]int, len(c.parts))
	for i := range cut {
		cut[i] = agents / 10 // those that have tasks
	}
	c.tell("mute", cut...)
	p.wait(3*time.Minute, "the tasks to run elsewhere", func() bool { return c.tell("report").Started >= agents/5 })
	say("cut off")
	late := again(b, c.tell("lives").Lives, crowdFence)
	b.ReportMetric(late[len(late)/2].Seconds(), "s-again-p50")
	b.ReportMetric(late[len(late)*99/100].Seconds(), "s-again-p99")
	b.ReportMetric(late[len(late)-1].Seconds(), "s-again-max")
}

// echoEnv makes this test binary a bare server that says back what it hears, by
// the same means as a node: what a beat costs beside it is ours.
const echoEnv = "FOOTPLATE_TEST_ECHO"

// beEcho is the main function of the bare server. It prints its address, and
// ends with its standard input.
func beEcho() int {
	debug.SetGCPercent(400) // as a node has it
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(l.Addr())
	go func() {
		_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write(b)
		}))
	}()
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

// usage is what a process has used up, by proc(5).
func usage(t testing.TB, pid int) (cpu time.Duration, resident int64) {
	t.Helper()
	stat, err1 := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	statm, err2 := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	_, rest, _ := bytes.Cut(stat, []byte(") "))
	f := strings.Fields(string(rest))
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	pages, _ := strconv.ParseInt(strings.Fields(string(statm))[1], 10, 64)
	return time.Duration(user+system) * time.Second / 100, pages * int64(os.Getpagesize()) // USER_HZ is 100
}

const (
	beatAgents  = 2000
	beatRounds  = 7
	beatsARound = 5 // of each agent
)

// BenchmarkBeat sends the beats of two thousand agents, each over a connection of
// its own, to a node and to a bare server, in turn, and compares what processor
// each has used. Then both are left alone: what memory do they take for each of
// the connections? (Goals 5a and 5c.)
func BenchmarkBeat(b *testing.B) {
	p := startPlant(b, plantConfig{nodes: 1, hosts: 0, slots: 1, fence: "30s", suspect: "10s"})
	st, err := p.status()
	if err != nil {
		b.Fatal(err)
	}
	bare := exec.Command(os.Args[0])
	bare.Env = append(os.Environ(), echoEnv+"=1")
	in, err1 := bare.StdinPipe()
	out, err2 := bare.StdoutPipe()
	if err := errors.Join(err1, err2, bare.Start()); err != nil {
		b.Fatal(err)
	}
	defer func() {
		_ = in.Close()
		_ = bare.Wait()
	}()
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	sides := [2]*beatSide{{addr: p.nodes[0].api, pid: p.nodes[0].cmd.Process.Pid}, {addr: strings.TrimSpace(addr), pid: bare.Process.Pid}}
	for _, s := range sides {
		s.part = &crowdSide{header: crowdHeader("secret-of-agent-for-tests", st.Cluster.Cluster)}
		_, s.before = usage(b, s.pid)
		for i := range beatAgents {
			conn, err := net.Dial("tcp", s.addr)
			if err != nil {
				b.Fatal(err)
			}
			defer conn.Close()
			body, _ := json.Marshal(api.Beat{
				Host: fleet.HostID(fmt.Sprintf("crowd-%05d", i)), Boot: "boot", Incarnation: 1, Seq: 1,
				Beat: lease.Beat{Version: 1 << 40, FenceAfter: crowdFence},
			})
			s.conns, s.bodies = append(s.conns, conn), append(s.bodies, body)
		}
	}
	var ratios, ours, theirs []float64
	for b.Loop() {
		for range beatRounds {
			us, bare := sides[0].beat(b), sides[1].beat(b)
			ours, theirs, ratios = append(ours, us), append(theirs, bare), append(ratios, us/bare)
		}
	}
	median := func(of []float64) float64 { slices.Sort(of); return of[len(of)/2] }
	b.ReportMetric(median(ratios), "cpu/bare")
	b.ReportMetric(ratios[0], "cpu/bare-min")
	b.ReportMetric(ratios[len(ratios)-1], "cpu/bare-max")
	b.ReportMetric(median(ours), "us-cpu")
	b.ReportMetric(median(theirs), "us-cpu-bare")
	for i, name := range []string{"KiB-conn", "KiB-conn-bare"} {
		_, now := usage(b, sides[i].pid)
		b.ReportMetric(float64(now-sides[i].before)/beatAgents/1024, name)
	}
	b.ReportMetric(0, "ns/op")
}

// beatSide is a server that beats are sent to.
type beatSide struct {
	part   *crowdSide
	addr   string
	pid    int
	before int64 // memory
	conns  []net.Conn
	bodies [][]byte
}

// beat sends a round of beats, and returns the processor time of one, in
// microseconds.
func (s *beatSide) beat(b *testing.B) float64 {
	b.Helper()
	began, _ := usage(b, s.pid)
	var all sync.WaitGroup
	var failed atomic.Int64
	const hands = 64
	for h := range hands {
		all.Go(func() {
			for range beatsARound {
				for i := h; i < beatAgents; i += hands {
					if _, status, err := s.part.exchange(s.conns[i], time.Minute, "/v1/agent.beat", s.bodies[i]); err != nil || status != http.StatusOK {
						failed.Add(1)
					}
				}
			}
		})
	}
	all.Wait()
	if n := failed.Load(); n > 0 {
		b.Fatalf("%d beats were not answered", n)
	}
	ended, _ := usage(b, s.pid)
	return float64((ended - began).Microseconds()) / (beatAgents * beatsARound)
}
