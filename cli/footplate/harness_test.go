package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"footplate/controlplane/catalog"
	"footplate/controlplane/op"
	"footplate/fleet"
	"footplate/fleet/fault"
)

// binary is footplate as people run it, built once for all tests.
var binary string

func TestMain(m *testing.M) {
	if config := os.Getenv(crowdEnv); config != "" {
		os.Exit(beCrowd(config))
	}
	if os.Getenv(echoEnv) != "" {
		os.Exit(beEcho())
	}
	if os.Getenv(rehearsing) != "" {
		os.Exit(m.Run()) // it builds versions of its own
	}
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "footplate-bin-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		if err := os.Chmod(dir, 0o755); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		binary = filepath.Join(dir, "footplate")
		build := exec.Command("go", "build", "-o", binary, ".")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build footplate: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// plant is a whole footplate on real processes: nodes, whose Raft goes through
// proxies that can be cut, and a local pool.
type plant struct {
	t     testing.TB
	dir   string
	nodes []*node
	admin string
	certs string   // folder of tls init; "" for plain HTTP
	extra []string // environment of the nodes
}

// node is one process of the control plane.
type node struct {
	name      string
	api, raft string
	args      []string
	proxy     *proxy
	env       []string // beside the plant's
	cmd       *exec.Cmd
	done      chan struct{}
}

// plantConfig says what to plant.
type plantConfig struct {
	nodes, hosts, slots int
	fence, suspect      string
	listen              string // address of the nodes' APIs; loopback when empty
	tls                 bool
	env                 []string // of the nodes, beside the test's own
	faults              bool     // the nodes die at the fault point in NODE.fault
}

func startPlant(t testing.TB, c plantConfig) *plant {
	t.Helper()
	dir, err := os.MkdirTemp("", "footplate-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	p := &plant{t: t, dir: dir, extra: c.env}
	if c.listen == "" {
		c.listen = "127.0.0.1"
	}
	t.Cleanup(p.stop)
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"node", "agent", "admin", "bot"} {
		if err := os.MkdirAll(filepath.Join(dir, "secrets"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p.secret(s), []byte("secret-of-"+s+"-for-tests\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p.admin = "secret-of-admin-for-tests"
	if c.tls {
		p.certs = filepath.Join(dir, "tls")
		p.initTLS(c.nodes)
	}
	for i := range c.nodes {
		n := &node{name: fmt.Sprintf("n%d", i+1), api: freeAddr(t, c.listen), raft: freeAddr(t, "127.0.0.1")}
		n.proxy = startProxy(t, n.raft)
		n.args = []string{
			"server", "--node", n.name, "--data", filepath.Join(dir, n.name), "--listen", n.api,
			"--raft", n.raft, "--raft-advertise", n.proxy.addr, "--local-hosts", filepath.Join(dir, "hosts"),
			"--node-token-file", p.secret("node"), "--agent-token-file", p.secret("agent"),
			"--bot-token-file", p.secret("bot"), "--until-eof", "--log-format", "text",
		}
		if c.faults {
			n.env = []string{fault.Env + "=@" + filepath.Join(dir, n.name+".fault")}
		}
		if c.tls {
			n.args = append(n.args, "--tls", filepath.Join(p.certs, n.name))
		}
		if i == 0 {
			n.args = append(n.args, "--bootstrap", "--admin-token-file", p.secret("admin"))
		} else {
			n.args = append(n.args, "--join", p.url(p.nodes[0]))
		}
		p.nodes = append(p.nodes, n)
	}
	for _, n := range p.nodes {
		p.start(n)
	}
	p.wait(30*time.Second, "every node", func() bool {
		st, err := p.status()
		return err == nil && len(st.Nodes) == c.nodes && st.up() == c.nodes
	})
	p.must("org", "set", "demo", "--slots", "1000")
	p.must("pool", "create", "local", "--size", strconv.Itoa(c.hosts), "--slots", strconv.Itoa(c.slots),
		"--fence-after", c.fence, "--suspect-after", c.suspect)
	p.wait(30*time.Second, "every host", func() bool { return p.ready() >= c.hosts })
	return p
}

// initTLS makes the certificates of the nodes, or renews them.
func (p *plant) initTLS(nodes int) {
	p.t.Helper()
	args := []string{"tls", "init", p.certs}
	for i := range nodes {
		args = append(args, "--node", fmt.Sprintf("n%d=127.0.0.1", i+1))
	}
	if out, err := exec.Command(binary, args...).CombinedOutput(); err != nil {
		p.t.Fatalf("footplate %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func (p *plant) url(n *node) string {
	if p.certs != "" {
		return "https://" + n.api
	}
	return "http://" + n.api
}

func (p *plant) secret(name string) string { return filepath.Join(p.dir, "secrets", name) }

func (p *plant) stop() {
	for _, n := range p.nodes {
		if n.cmd != nil {
			_ = n.cmd.Process.Signal(syscall.SIGCONT)
			_ = n.cmd.Process.Kill()
			<-n.done
		}
	}
	endHosts(filepath.Join(p.dir, "hosts"))
	if p.t.Failed() {
		for _, n := range p.nodes {
			b, _ := os.ReadFile(filepath.Join(p.dir, n.name+".log"))
			lines := bytes.Split(b, []byte("\n"))
			p.t.Logf("end of the log of %s:\n%s", n.name, bytes.Join(lines[max(0, len(lines)-25):], []byte("\n")))
		}
	}
	_ = os.RemoveAll(p.dir)
}

func (p *plant) start(n *node) {
	p.t.Helper()
	logFile, err := os.OpenFile(filepath.Join(p.dir, n.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
	defer logFile.Close()
	n.cmd = exec.Command(binary, n.args...)
	n.cmd.Env = slices.Concat(os.Environ(), p.extra, n.env)
	n.cmd.Stdout, n.cmd.Stderr = logFile, logFile
	if _, err := n.cmd.StdinPipe(); err != nil {
		p.t.Fatal(err)
	}
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := n.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	cmd, done := n.cmd, make(chan struct{})
	n.done = done
	go func() {
		_ = cmd.Wait()
		close(done)
	}()
}

// kill ends a node as kill -9 does.
func (p *plant) kill(n *node) {
	_ = n.cmd.Process.Kill()
	<-n.done
	n.cmd = nil
}

// leader returns the node that leads.
func (p *plant) leader() *node {
	p.t.Helper()
	var leader *node
	p.wait(20*time.Second, "a leader", func() bool {
		st, err := p.status()
		if err != nil {
			return false
		}
		for _, n := range p.nodes {
			if n.name == string(st.Leader) && n.cmd != nil {
				leader = n
				return true
			}
		}
		return false
	})
	return leader
}

type clusterStatus struct{ op.Cluster }

func (s clusterStatus) up() int {
	up := 0
	for _, n := range s.Nodes {
		if n.Role == "leader" || n.Role == "follower" {
			up++
		}
	}
	return up
}

func (p *plant) status() (clusterStatus, error) {
	var st clusterStatus
	err := p.json(&st.Cluster, "cluster", "status")
	return st, err
}

func (p *plant) ready() int {
	var rows []catalog.PoolRow
	if err := p.json(&rows, "pool", "list"); err != nil || len(rows) == 0 {
		return 0
	}
	return rows[0].Ready
}

func (p *plant) env() []string {
	var addrs []string
	for _, n := range p.nodes {
		addrs = append(addrs, p.url(n))
	}
	env := os.Environ()
	if p.certs != "" {
		env = append(env, "FOOTPLATE_CA="+filepath.Join(p.certs, "ca.pem"))
	}
	return append(env, "FOOTPLATE_ADDR="+strings.Join(addrs, ","), "FOOTPLATE_TOKEN="+p.admin)
}

// run runs the CLI, and returns its standard output and its exit code.
func (p *plant) run(args ...string) (string, string, int) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Env = p.env()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return out.String(), err.Error(), -1
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func (p *plant) must(args ...string) string {
	p.t.Helper()
	out, errs, code := p.run(args...)
	if code != 0 {
		p.t.Fatalf("footplate %s: exit %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

func (p *plant) json(into any, args ...string) error {
	out, errs, code := p.run(append(args, "-o", "json")...)
	if code != 0 {
		return fmt.Errorf("footplate %s: exit %d: %s", strings.Join(args, " "), code, errs)
	}
	return json.Unmarshal([]byte(out), into)
}

func (p *plant) wait(most time.Duration, what string, ok func() bool) {
	p.t.Helper()
	waitFor(p.t, most, what, ok)
}

// waitFor polls a condition of real processes.
func waitFor(t testing.TB, most time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(most)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s", most, what)
		}
		<-tick.C
	}
}

func (p *plant) build(id fleet.BuildID) catalog.BuildDetail {
	var d catalog.BuildDetail
	if err := p.json(&d, "build", "show", id.String()); err != nil {
		p.t.Logf("build show: %v", err)
	}
	return d
}

// submit submits a build that marks its life in a file: a line at its start,
// one every 50 ms, and one at its end, each with the attempt's number.
func (p *plant) submit(marks *marks, seconds int, extra ...string) fleet.BuildID {
	p.t.Helper()
	args := append([]string{"build", "submit", "--org", "demo", "--pool", "local", "--run", marks.script(seconds), "-o", "json"}, extra...)
	return p.submitted(p.must(args...))
}

// submitted returns the build that an answer of "build submit" names.
func (p *plant) submitted(out string) fleet.BuildID {
	p.t.Helper()
	var reply struct {
		Result catalog.Submitted `json:"result"`
	}
	if err := json.Unmarshal([]byte(out), &reply); err != nil || reply.Result.Build == 0 {
		p.t.Fatalf("build submit answered %s (%v)", out, err)
	}
	return reply.Result.Build
}

// script is a shell script that marks its life for so many seconds.
func (m *marks) script(seconds int) string {
	return fmt.Sprintf(`m() { echo "$1 $FOOTPLATE_BUILD.$FOOTPLATE_TASK $FOOTPLATE_ATTEMPT $(date +%%s%%N)" >> %s; }
m start; i=0; while [ $i -lt %d ]; do m tick; sleep 0.05; i=$((i+1)); done; m end`, m.file, seconds*20)
}

// machinePID returns the process of a local host.
func (p *plant) machinePID(host fleet.HostID) int {
	p.t.Helper()
	files, _ := filepath.Glob(filepath.Join(p.dir, "hosts", "*", "machine.json"))
	for _, f := range files {
		b, _ := os.ReadFile(f)
		var m struct {
			Host fleet.HostID `json:"host"`
			PID  int          `json:"pid"`
		}
		if json.Unmarshal(b, &m) == nil && m.Host == host {
			return m.PID
		}
	}
	p.t.Fatalf("host %s has no machine", host)
	return 0
}

// marks is the file in which builds mark their lives.
type marks struct{ file string }

func newMarks(t testing.TB) *marks {
	dir, err := os.MkdirTemp("", "footplate-marks-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	m := &marks{filepath.Join(dir, "marks")}
	if err := errors.Join(os.Chmod(dir, 0o777), os.WriteFile(m.file, nil, 0o666), os.Chmod(m.file, 0o666)); err != nil {
		t.Fatal(err)
	}
	return m
}

// daemonScript marks its life from a daemon that has forked twice and left its
// session, while the step itself only waits.
func (m *marks) daemonScript(seconds int) string {
	return fmt.Sprintf(`export M=%s; (setsid sh -c '
m() { echo "$1 $FOOTPLATE_BUILD.$FOOTPLATE_TASK $FOOTPLATE_ATTEMPT $(date +%%s%%N)" >> $M; }
while :; do m tick; sleep 0.05; done' >/dev/null 2>&1 &)
sleep %d`, m.file, seconds)
}

// life is what one attempt marked.
type life struct {
	task, attempt string
	first, last   int64 // ns
	ended         bool
}

func (m *marks) read() []life {
	b, _ := os.ReadFile(m.file)
	by := map[string]*life{}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) != 4 {
			continue
		}
		at, _ := strconv.ParseInt(f[3], 10, 64)
		l := by[f[1]+" "+f[2]]
		if l == nil {
			l = &life{task: f[1], attempt: f[2], first: at}
			by[f[1]+" "+f[2]] = l
		}
		l.last = max(l.last, at)
		l.ended = l.ended || f[0] == "end"
	}
	var out []life
	for _, l := range by {
		out = append(out, *l)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].first < out[j].first })
	return out
}

// overlap returns two attempts at one task that were alive at the same time.
func (m *marks) overlap() string {
	last := map[string]life{}
	for _, l := range m.read() {
		if before, ok := last[l.task]; ok && before.last >= l.first {
			return fmt.Sprintf("task %s: attempt %s was alive until %d, attempt %s since %d", l.task, before.attempt, before.last, l.attempt, l.first)
		}
		last[l.task] = l
	}
	return ""
}

// proxy carries TCP connections to target, and can be cut: then nothing passes,
// though every process lives.
type proxy struct {
	addr string
	mu   sync.Mutex
	cut  bool
	open map[net.Conn]bool
}

func startProxy(t testing.TB, target string) *proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	p := &proxy{addr: l.Addr().String(), open: map[net.Conn]bool{}}
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go p.carry(in, target)
		}
	}()
	return p
}

func (p *proxy) carry(in net.Conn, target string) {
	defer in.Close()
	out, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer out.Close()
	p.mu.Lock()
	if p.cut {
		p.mu.Unlock()
		return
	}
	p.open[in], p.open[out] = true, true
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.open, in)
		delete(p.open, out)
		p.mu.Unlock()
	}()
	go func() {
		_, _ = io.Copy(out, in)
		out.Close()
		in.Close()
	}()
	_, _ = io.Copy(in, out)
}

// set cuts the proxy or mends it.
func (p *proxy) set(cut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = cut
	if cut {
		for c := range p.open {
			c.Close()
		}
	}
}

// givenAddrs are the addresses that freeAddr has returned.
var givenAddrs sync.Map

// freeAddr returns an address that nobody listens at. Its port is below those that
// outgoing connections are given: one of them would take it before it is used.
func freeAddr(t testing.TB, host string) string {
	t.Helper()
	for range 1000 {
		addr := net.JoinHostPort(host, strconv.Itoa(20_000+rand.IntN(12_000)))
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		_ = l.Close()
		if _, given := givenAddrs.LoadOrStore(addr, true); !given {
			return addr
		}
	}
	t.Fatalf("no port of %s is free", host)
	return ""
}
