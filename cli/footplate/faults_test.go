package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"footplate/controlplane/archive"
	"footplate/fleet"
)

// The three scripts that came first. Each was red before its mechanism was
// there, and is red again when it is switched off.

// rounds is how often a fault is repeated: once in make test, FOOTPLATE_ROUNDS
// times in make soak.
func rounds() int {
	n, _ := strconv.Atoi(os.Getenv("FOOTPLATE_ROUNDS"))
	return max(n, 1)
}

// endHosts ends what the local provider of a plant has launched.
func endHosts(dir string) {
	files, _ := filepath.Glob(filepath.Join(dir, "*", "machine.json"))
	for _, f := range files {
		var m struct {
			PID int `json:"pid"`
		}
		if b, err := os.ReadFile(f); err == nil && json.Unmarshal(b, &m) == nil && m.PID > 1 {
			_ = syscall.Kill(m.PID, syscall.SIGCONT)
			_ = syscall.Kill(m.PID, syscall.SIGKILL)
		}
	}
}

// supervisors returns the pids, as this machine counts them, of the processes
// below pid that are supervisors.
func supervisors(pid int) []int {
	var out []int
	var walk func(int)
	walk = func(p int) {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", p))
		for _, t := range tasks {
			b, _ := os.ReadFile(t)
			for _, f := range strings.Fields(string(b)) {
				child, _ := strconv.Atoi(f)
				cmd, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", child))
				if slices.Contains(strings.Split(string(cmd), "\x00"), "supervise") {
					out = append(out, child)
				}
				walk(child)
			}
		}
	}
	walk(pid)
	return out
}

// hit is a way to hurt the host that runs a build.
type hit struct {
	name string
	do   func(t *testing.T, agent int)
	heal func(agent int)
	most time.Duration // until the next attempt starts
	// daemon: the task marks its life from a daemon that has forked twice.
	daemon bool
	// seconds that the task takes: more than the time to the next attempt, so
	// that it does not just come to its end.
	seconds int
}

func hits() []hit {
	kill := func(t *testing.T, pids ...int) {
		for _, pid := range pids {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Errorf("kill %d: %v", pid, err)
			}
		}
	}
	return []hit{
		{name: "agent", most: 10 * time.Second, seconds: 4, do: func(t *testing.T, a int) { kill(t, a) }},
		{name: "daemon", most: 10 * time.Second, seconds: 4, daemon: true, do: func(t *testing.T, a int) { kill(t, a) }},
		{name: "supervisor", most: 10 * time.Second, seconds: 4, do: func(t *testing.T, a int) { kill(t, supervisors(a)...) }},
		{name: "both", most: 10 * time.Second, seconds: 4, do: func(t *testing.T, a int) { kill(t, append(supervisors(a), a)...) }},
		{
			name: "stopped", most: 20 * time.Second, seconds: 12,
			do: func(t *testing.T, a int) {
				if err := syscall.Kill(a, syscall.SIGSTOP); err != nil {
					t.Errorf("stop %d: %v", a, err)
				}
			},
			heal: func(a int) { _ = syscall.Kill(a, syscall.SIGCONT) },
		},
	}
}

// TestAgentKilled: a host is hurt in mid-build. The build ends well as a second
// attempt, two are never alive at once, and nothing is left behind.
func TestAgentKilled(t *testing.T) {
	p := startPlant(t, plantConfig{nodes: 3, hosts: 3, slots: 2, fence: "4s", suspect: "2s"})
	for range rounds() {
		for _, h := range hits() {
			t.Run(h.name, func(t *testing.T) { hurt(t, p, h) })
		}
	}
}

func hurt(t *testing.T, p *plant, h hit) {
	m := newMarks(t)
	script := m.script(h.seconds)
	if h.daemon {
		script = m.daemonScript(h.seconds)
	}
	id := p.submitted(p.must("build", "submit", "--org", "demo", "--pool", "local", "--run", script, "-o", "json"))
	p.wait(20*time.Second, "the build to run", func() bool { return len(m.read()) == 1 })
	var agent int
	for _, a := range p.build(id).List {
		agent = p.machinePID(a.Host)
	}
	before := time.Now()
	h.do(t, agent)
	p.wait(h.most, "the next attempt", func() bool { return len(m.read()) == 2 })
	lives := m.read()
	t.Logf("%s: next attempt started %.2f s after the fault", h.name, float64(lives[1].first-before.UnixNano())/1e9)
	p.wait(30*time.Second, "the end of the build", func() bool { return p.build(id).State == "passed" })
	if h.heal != nil {
		h.heal(agent)
	}
	if o := m.overlap(); o != "" {
		t.Errorf("two attempts at once: %s", o)
	}
	d := p.build(id)
	if d.List[0].Outcome == fleet.Passed || d.List[len(d.List)-1].Outcome != fleet.Passed {
		t.Errorf("attempts ended as %+v", d.List)
	}
	// The log of the first attempt is still there.
	if out := p.must("build", "logs", id.String()); strings.Count(out, "attempt") < 1 {
		t.Errorf("build logs shows no attempts:\n%s", out)
	}
	p.wait(30*time.Second, "the pool to be whole again", func() bool { return p.ready() >= 3 })
}

// TestLeaderKilled: the leader is killed under load. Nothing acknowledged is
// lost, no build is killed, the digests agree and the record is whole.
func TestLeaderKilled(t *testing.T) {
	p := startPlant(t, plantConfig{nodes: 3, hosts: 3, slots: 2, fence: "10s", suspect: "5s"})
	for range rounds() {
		m := newMarks(t)
		builds := []fleet.BuildID{p.submit(m, 6), p.submit(m, 6)}
		p.wait(20*time.Second, "the builds to run", func() bool { return len(m.read()) == 2 })

		// People at work: each cordons and drains nothing, but sets an org to a
		// number that only grows, and remembers what was acknowledged.
		var stop atomic.Bool
		var all sync.WaitGroup
		acked := make([]atomic.Int64, 4)
		var mu sync.Mutex
		var ackTimes []time.Time
		for w := range acked {
			all.Go(func() {
				for n := int64(1); !stop.Load(); n++ {
					_, _, code := p.run("org", "set", fmt.Sprintf("worker-%d", w), "--slots", strconv.FormatInt(n, 10))
					if code == 0 {
						acked[w].Store(n)
						mu.Lock()
						ackTimes = append(ackTimes, time.Now())
						mu.Unlock()
					}
				}
			})
		}
		p.wait(20*time.Second, "the load", func() bool { return acked[0].Load() > 5 })
		leader := p.leader()
		killed := time.Now()
		p.kill(leader)
		p.wait(20*time.Second, "an operation to be acknowledged again", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(ackTimes) > 0 && ackTimes[len(ackTimes)-1].After(killed.Add(50*time.Millisecond))
		})
		mu.Lock()
		for _, at := range ackTimes {
			if at.After(killed.Add(20 * time.Millisecond)) {
				t.Logf("acknowledged again %.2f s after the leader was killed", at.Sub(killed).Seconds())
				break
			}
		}
		mu.Unlock()
		p.start(leader)
		for _, id := range builds {
			p.wait(40*time.Second, "the end of the builds", func() bool { return p.build(id).State == "passed" })
			if d := p.build(id); d.Attempts != 1 {
				t.Errorf("build %d took %d attempts: the leader's death cost it one", id, d.Attempts)
			}
		}
		stop.Store(true)
		all.Wait()
		var orgs []struct {
			Name  string `json:"name"`
			Slots int64  `json:"slots"`
		}
		if err := p.json(&orgs, "org", "list"); err != nil {
			t.Fatal(err)
		}
		for _, o := range orgs {
			var w int
			if n, _ := fmt.Sscanf(o.Name, "worker-%d", &w); n == 1 && o.Slots < acked[w].Load() {
				t.Errorf("%s was acknowledged to be at %d and is at %d", o.Name, acked[w].Load(), o.Slots)
			}
		}
		p.wait(20*time.Second, "the digests to agree", func() bool { return digestsAgree(p) })
		p.must("audit", "verify")
	}
	export := p.must("audit", "export")
	if _, err := archive.Verify(strings.NewReader(export)); err != nil {
		t.Errorf("the export does not verify: %v", err)
	}
	tampered := strings.Replace(export, "worker-1", "worker-2", 1)
	if _, err := archive.Verify(strings.NewReader(tampered)); err == nil {
		t.Error("a tampered export verifies")
	}
}

func digestsAgree(p *plant) bool {
	st, err := p.status()
	if err != nil || st.up() != len(st.Nodes) {
		return false
	}
	for _, n := range st.Nodes {
		if n.Digest != st.Nodes[0].Digest || n.Digest == "" {
			return false
		}
	}
	return true
}

// TestNoQuorum: every process lives, and for a while no two nodes can talk
// Raft. No build is killed, and what ended meanwhile is reported afterwards.
func TestNoQuorum(t *testing.T) {
	t.Parallel()
	p := startPlant(t, plantConfig{nodes: 3, hosts: 2, slots: 2, fence: "4s", suspect: "2s"})
	long := 15 * time.Second
	if rounds() > 1 {
		long = time.Minute
	}
	for range rounds() {
		m := newMarks(t)
		short := p.submit(m, 5)
		through := p.submit(m, int(long.Seconds())+8)
		p.wait(20*time.Second, "the builds to run", func() bool { return len(m.read()) == 2 })
		for _, n := range p.nodes {
			n.proxy.set(true)
		}
		cut := time.Now()
		p.wait(10*time.Second, "the operations to be refused", func() bool {
			_, errs, code := p.run("org", "set", "demo", "--slots", "999")
			return code == 7 || code == 8 && strings.Contains(errs, "unknown")
		})
		if out, errs, code := p.run("build", "show", through.String(), "--stale"); code != 0 {
			t.Errorf("a stale read without a quorum: exit %d\n%s%s", code, out, errs)
		}
		waitFor(t, long+5*time.Second, "the time to pass", func() bool { return time.Since(cut) > long })
		for _, n := range p.nodes {
			n.proxy.set(false)
		}
		for _, id := range []fleet.BuildID{short, through} {
			p.wait(40*time.Second, "the end of the builds", func() bool { return p.build(id).State == "passed" })
			if d := p.build(id); d.Attempts != 1 {
				t.Errorf("build %d took %d attempts: a time without a quorum cost it one: %+v", id, d.Attempts, d.List)
			}
		}
		if o := m.overlap(); o != "" {
			t.Errorf("two attempts at once: %s", o)
		}
	}
}
