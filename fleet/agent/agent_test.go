package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"footplate/fleet"
	"footplate/fleet/agent/attempt"
	"footplate/fleet/provider"
	"footplate/fleet/provider/local"
)

func TestRunsABuild(t *testing.T) {
	w := newWorld(t, 3, 10*fleet.Second)
	dir := t.TempDir()
	w.agent(w.config(dir))
	w.run(1, "echo hello; echo world")
	w.run(2, "exit 3")
	got := w.ended(1)
	if got.Outcome != fleet.Passed {
		t.Errorf("attempt 1: %+v", got)
	}
	// The log is there when the attempt is said to have ended.
	text, copies := w.log(1)
	if copies < 2 || !strings.Contains(text, "hello\nworld\n") {
		t.Errorf("%d nodes hold the log, which is %q", copies, text)
	}
	if got := w.ended(2); got.Outcome != fleet.Failed || got.Exit != 3 {
		t.Errorf("attempt 2: %+v", got)
	}
	until(t, "nothing is held any more", func() bool {
		s, _ := w.lastSync()
		left, err := os.ReadDir(filepath.Join(dir, "attempts"))
		return len(s.Attempts) == 0 && err == nil && len(left) == 0
	})
	if seen := w.of(1).seen; seen[len(seen)-1] != fleet.PhaseEnded || !slices.IsSortedFunc(seen, func(a, b fleet.Phase) int {
		order := []fleet.Phase{fleet.PhaseSetup, fleet.PhaseCheckout, fleet.PhaseSteps, fleet.PhaseUpload, fleet.PhaseEnded}
		return slices.Index(order, a) - slices.Index(order, b)
	}) {
		t.Errorf("its phases were %v", seen)
	}
}

func TestRunsAsTheTaskUser(t *testing.T) {
	if os.Geteuid() != 0 {
		return // nobody else to run as
	}
	w := newWorld(t, 1, 10*fleet.Second)
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o711); err != nil {
		t.Fatal(err)
	}
	c := w.config(dir)
	c.TaskUser = &attempt.User{UID: 65534, GID: 65534}
	w.agent(c)
	w.run(1, "echo uid $(id -u); env | grep -i token; true")
	w.ended(1)
	if text, copies := w.log(1); copies != 1 || !strings.Contains(text, "uid 65534") || strings.Contains(text, testToken) {
		t.Errorf("%d copies of %q", copies, text)
	}
}

func TestCancelsABuild(t *testing.T) {
	w := newWorld(t, 3, 10*fleet.Second)
	w.agent(w.config(t.TempDir()))
	file := filepath.Join(t.TempDir(), "marks")
	w.run(1, marked(file))
	until(t, "it runs", func() bool { return strings.Contains(marks(t, file), "live") })
	w.do(func() { w.cancels = []fleet.AttemptID{1} })
	if got := w.ended(1); got.Outcome != fleet.Canceled {
		t.Errorf("attempt 1: %+v", got)
	}
	quiet(t, file)
}

func TestKillsWhatTheLeaderGaveUp(t *testing.T) {
	w := newWorld(t, 3, 10*fleet.Second)
	w.agent(w.config(t.TempDir()))
	file := filepath.Join(t.TempDir(), "marks")
	w.run(1, marked(file))
	until(t, "it runs", func() bool { return strings.Contains(marks(t, file), "live") })
	w.do(func() { w.kills = []fleet.AttemptID{1} })
	if got := w.ended(1); got.Outcome != fleet.Lost {
		t.Errorf("attempt 1: %+v", got)
	}
	quiet(t, file)
}

// The agent is killed with -9: its tasks die with it, and the next incarnation
// hands over what is left of their logs.
func TestAgentKilled(t *testing.T) {
	w := newWorld(t, 3, 30*fleet.Second)
	dir := t.TempDir()
	file := filepath.Join(t.TempDir(), "marks")
	first := w.process(dir)
	w.run(1, marked(file))
	until(t, "it runs", func() bool { return strings.Contains(marks(t, file), "live") })
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	killed := time.Now()
	if took := quiet(t, file).Sub(killed); took > time.Second {
		t.Errorf("the task lived on for %s", took)
	}
	s, _ := w.lastSync()
	if s.Incarnation != 1 {
		t.Errorf("incarnation %d", s.Incarnation)
	}
	w.process(dir)
	until(t, "the next incarnation is there", func() bool { s, _ := w.lastSync(); return s.Incarnation == 2 })
	if s, _ := w.lastSync(); len(s.Attempts) != 0 {
		t.Errorf("it holds %+v", s.Attempts)
	}
	until(t, "the old log is handed over", func() bool { _, copies := w.log(1); return copies >= 2 })
	if text, _ := w.log(1); !strings.Contains(text, "start 1") || !strings.Contains(text, "lost") {
		t.Errorf("the old log is %q", text)
	}
	until(t, "the old attempt is removed", func() bool {
		left, err := os.ReadDir(filepath.Join(dir, "attempts"))
		return err == nil && len(left) == 0
	})
	w.run(2, "true")
	if got := w.ended(2); got.Outcome != fleet.Passed {
		t.Errorf("attempt 2: %+v", got)
	}
}

// slack is what a busy machine may add. The rule leaves lease.Reaction for it.
const slack = time.Second

// The agent is stopped: its supervisors know when the lease ends.
func TestAgentStopped(t *testing.T) {
	const fence = 2 * fleet.Second
	w := newWorld(t, 3, fence)
	file := filepath.Join(t.TempDir(), "marks")
	p := w.process(t.TempDir())
	w.run(1, marked(file))
	until(t, "it runs", func() bool { return strings.Contains(marks(t, file), "live") })
	if err := p.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	stopped := time.Now()
	until(t, "its lease is over", func() bool { return time.Since(stopped) > fence.Std() })
	if took := quiet(t, file).Sub(stopped); took > fence.Std()+slack {
		t.Errorf("the task lived on for %s", took)
	}
	if err := p.Process.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if got := w.ended(1); got.Outcome != fleet.Lost {
		t.Errorf("attempt 1: %+v", got)
	}
}

// One of three nodes is not needed; with two gone the lease ends, and with it
// the tasks, in time. When they are back the loss is reported, and work goes on.
func TestLeaseOfAMajority(t *testing.T) {
	const fence = 3 * fleet.Second
	w := newWorld(t, 3, fence)
	w.agent(w.config(t.TempDir()))
	file := filepath.Join(t.TempDir(), "marks")
	w.run(1, marked(file))
	until(t, "it runs", func() bool { return strings.Contains(marks(t, file), "live") })
	w.deaf(true, 0)
	alone := time.Now()
	until(t, "more than the fence has passed", func() bool { return time.Since(alone) > fence.Std()+500*time.Millisecond })
	later := time.Now()
	until(t, "the task lives on, because two of three nodes hear its host", func() bool {
		info, err := os.Stat(file)
		return err == nil && info.ModTime().After(later)
	})
	w.deaf(true, 1)
	cut := time.Now()
	// It can still tell, through the node that is left.
	if got := w.ended(1); got.Outcome != fleet.Lost || !strings.Contains(got.Why, "lease") {
		t.Errorf("attempt 1: %+v", got)
	}
	if took := quiet(t, file).Sub(cut); took > fence.Std()+slack {
		t.Errorf("the task lived on for %s", took)
	}
	w.run(2, "true")
	w.deaf(false, 0, 1)
	if got := w.ended(2); got.Outcome != fleet.Passed {
		t.Errorf("attempt 2: %+v", got)
	}
}

// Without a lease nothing is started, although the leader answers.
func TestStartsNothingWithoutALease(t *testing.T) {
	w := newWorld(t, 3, 2*fleet.Second)
	for _, i := range []int{1, 2} {
		w.nodes[i].deaf = true
	}
	w.run(1, "true")
	w.agent(w.config(t.TempDir()))
	until(t, "it has been told several times", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.syncs) > 4
	})
	if g := w.of(1); g.last.Phase != "" {
		t.Fatalf("it was started: %+v", g.last)
	}
	w.deaf(false, 1, 2)
	if got := w.ended(1); got.Outcome != fleet.Passed {
		t.Errorf("attempt 1: %+v", got)
	}
}

// A node dies while a log is on its way: another takes its place.
func TestLogsSurviveANode(t *testing.T) {
	w := newWorld(t, 3, 10*fleet.Second)
	w.agent(w.config(t.TempDir()))
	gate := filepath.Join(t.TempDir(), "gate")
	w.run(1, fmt.Sprintf("echo before; while [ ! -e %s ]; do sleep 0.05; done; echo after", gate))
	until(t, "two nodes hold the beginning", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		n := 0
		for _, node := range w.nodes {
			if len(node.logs[1]) > 0 {
				n++
			}
		}
		return n == 2
	})
	w.mu.Lock()
	dead := slices.IndexFunc(w.nodes, func(n *node) bool { return len(n.logs[1]) > 0 })
	w.mu.Unlock()
	w.nodes[dead].srv.CloseClientConnections()
	w.nodes[dead].srv.Close()
	if err := os.WriteFile(gate, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if got := w.ended(1); got.Outcome != fleet.Passed {
		t.Errorf("attempt 1: %+v", got)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, n := range w.nodes {
		var text strings.Builder
		final := false
		for _, c := range n.logs[1] {
			text.Write(c.Data)
			final = final || c.Final
		}
		if i != dead && (!final || !strings.Contains(text.String(), "after")) {
			t.Errorf("node %s holds %q", n.id, text.String())
		}
	}
}

// A node that hangs does not hold a log up.
func TestLogsPassANodeThatHangs(t *testing.T) {
	w := newWorld(t, 3, 10*fleet.Second)
	w.agent(w.config(t.TempDir()))
	until(t, "it is there", func() bool { _, ok := w.lastSync(); return ok })
	w.deaf(true, 1) // the first choice of attempt 1
	w.run(1, "echo hello")
	if got := w.ended(1); got.Outcome != fleet.Passed {
		t.Errorf("attempt 1: %+v", got)
	}
	if text, copies := w.log(1); copies != 2 || !strings.Contains(text, "hello\n") {
		t.Errorf("%d nodes hold the log, which is %q", copies, text)
	}
}

func TestStopsGracefully(t *testing.T) {
	w := newWorld(t, 3, 10*fleet.Second)
	stop := w.agent(w.config(t.TempDir()))
	file := filepath.Join(t.TempDir(), "marks")
	w.run(1, marked(file))
	until(t, "it runs", func() bool { return strings.Contains(marks(t, file), "live") })
	began := time.Now()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("it took %s", took)
	}
	if g := w.of(1); g.ended.IsZero() || g.last.Outcome != fleet.Lost {
		t.Errorf("reported: %+v", g.last)
	}
	quiet(t, file)
	if text, copies := w.log(1); copies < 2 || !strings.Contains(text, "told to end") {
		t.Errorf("%d nodes hold the log, which is %q", copies, text)
	}
}

func TestLeavesWhenTheHostIsEnded(t *testing.T) {
	w := newWorld(t, 1, 10*fleet.Second)
	p := w.process(t.TempDir())
	until(t, "it is there", func() bool { _, ok := w.lastSync(); return ok })
	w.do(func() { w.leave = true })
	done := make(chan error, 1)
	go func() { done <- p.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("it stays")
	}
}

// Whoever deletes the folder of a cluster leaves no agents behind that nobody
// can find.
func TestEndsWithItsDirectory(t *testing.T) {
	w := newWorld(t, 1, 10*fleet.Second)
	dir := filepath.Join(t.TempDir(), "agent")
	p := w.process(dir)
	until(t, "it is there", func() bool { _, ok := w.lastSync(); return ok })
	done := make(chan error, 1)
	go func() { done <- p.Wait() }()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Error("it stays")
	}
}

func TestOneAgentADirectory(t *testing.T) {
	w := newWorld(t, 1, 10*fleet.Second)
	dir := t.TempDir()
	w.agent(w.config(dir))
	until(t, "it is there", func() bool { _, ok := w.lastSync(); return ok })
	second, err := New(w.config(dir))
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Run(t.Context()); fleet.CodeOf(err) != fleet.CodeConflict {
		t.Errorf("a second agent: %v", err)
	}
}

func TestConfigIsChecked(t *testing.T) {
	good := Config{Host: "h", Pool: "p", Addrs: []string{"127.0.0.1:1"}, Token: "t", Dir: "/d"}
	if _, err := New(good); err != nil {
		t.Errorf("a good one: %v", err)
	}
	for name, spoil := range map[string]func(*Config){
		"host": func(c *Config) { c.Host = "A B" }, "pool": func(c *Config) { c.Pool = "" },
		"addrs": func(c *Config) { c.Addrs = []string{" "} }, "token": func(c *Config) { c.Token = "" },
		"dir": func(c *Config) { c.Dir = "relative" }, "slots": func(c *Config) { c.Slots = -1 },
	} {
		c := good
		spoil(&c)
		if _, err := New(c); fleet.CodeOf(err) != fleet.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestIncarnations(t *testing.T) {
	dir := t.TempDir()
	for _, step := range []struct {
		boot fleet.BootID
		want fleet.Incarnation
	}{{"a", 1}, {"a", 2}, {"b", 1}, {"b", 2}} {
		if got, err := nextIncarnation(dir, step.boot); err != nil || got != step.want {
			t.Errorf("boot %s: %d, %v, want %d", step.boot, got, err, step.want)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, incarnationFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if n, err := nextIncarnation(dir, "b"); err == nil {
		t.Errorf("a damaged record gave incarnation %d", n)
	}
}

// An agent of the local provider is pid 1 of its machine: it runs builds there,
// and when it is killed the provider knows that everything is dead.
func TestOnALocalMachine(t *testing.T) {
	w := newWorld(t, 3, 10*fleet.Second)
	dir := t.TempDir()
	p, err := local.New(local.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := local.EndAll(dir); err != nil {
			t.Error(err)
		}
	})
	if _, err := p.Launch(t.Context(), provider.Request{
		Launch: 1, Host: "linux-1", Pool: "linux", Slots: 2,
		Join: provider.Join{Addrs: w.addrs(), Token: testToken, Cluster: testCluster},
	}); err != nil {
		t.Fatal(err)
	}
	w.run(1, "echo hello")
	if got := w.ended(1); got.Outcome != fleet.Passed {
		b, _ := os.ReadFile(filepath.Join(dir, "1", "agent.log"))
		t.Fatalf("attempt 1: %+v\n%s", got, b)
	}
	file := filepath.Join(t.TempDir(), "marks")
	w.run(2, marked(file)+" & (setsid sh -c '"+marked(file)+"' &) ; wait")
	until(t, "it runs", func() bool { return strings.Contains(marks(t, file), "live") })
	if s, _ := w.lastSync(); s.Boot == "" || s.Launch != 1 {
		t.Errorf("it says of itself %+v", s)
	}
	killed := time.Now()
	if err := p.Terminate(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	until(t, "the machine is gone", func() bool {
		all, err := p.List(t.Context())
		return err == nil && len(all) == 1 && all[0].State == provider.Gone
	})
	gone := time.Now()
	if last := quiet(t, file); last.After(gone) {
		t.Errorf("something lived on for %s", last.Sub(killed))
	}
	if got := w.of(2).last; got.Outcome != fleet.Lost {
		t.Errorf("a machine that is ended should have reported its attempt: %+v", got)
	}
}

// An agent that was not told of which cluster it is asks a node, once: it names
// the cluster in all that it says, also after its next start.
func TestLearnsTheCluster(t *testing.T) {
	w := newWorld(t, 3, 10*fleet.Second)
	c := w.config(t.TempDir())
	c.Cluster = ""
	stop := w.agent(c)
	w.run(1, "true")
	if got := w.ended(1); got.Outcome != fleet.Passed {
		t.Errorf("attempt 1: %+v", got)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	asked := w.asked.Load()
	stop = w.agent(c)
	until(t, "the next incarnation is there", func() bool { s, _ := w.lastSync(); return s.Incarnation == 2 })
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if asked != 1 || w.asked.Load() != 1 {
		t.Errorf("the nodes were asked %d times, and %d times in all; want once", asked, w.asked.Load())
	}

	c.Dir, c.Token = t.TempDir(), "a-stranger's-secret"
	stranger, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := stranger.Run(ctx); fleet.CodeOf(err) != fleet.CodeDenied {
		t.Errorf("with a wrong token: %v", err)
	}
}

// What would break every attempt is said at once, with the directory that is in
// the way.
func TestTaskUserCannotReachTheDirectory(t *testing.T) {
	if os.Geteuid() != 0 {
		return // nobody else to run as
	}
	w := newWorld(t, 1, 10*fleet.Second)
	closed := filepath.Join(t.TempDir(), "closed")
	if err := os.Mkdir(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(filepath.Dir(closed)), 0o711); err != nil {
		t.Fatal(err)
	}
	c := w.config(filepath.Join(closed, "agent"))
	c.TaskUser = &attempt.User{UID: 65534, GID: 65534}
	a, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	err = a.Run(ctx)
	if e := fleet.AsError(err); e == nil || e.Code != fleet.CodeInvalid || !strings.HasPrefix(e.Hint, "chmod o+x "+closed+",") {
		t.Errorf("%+v; want it to name %s", e, closed)
	}
	if err := os.Chmod(closed, 0o711); err != nil {
		t.Fatal(err)
	}
	w.agent(c)
	w.run(1, "true")
	if got := w.ended(1); got.Outcome != fleet.Passed {
		t.Errorf("attempt 1: %+v", got)
	}
}
