package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// need ends a test on a machine that lacks a part; where FOOTPLATE_REQUIRE
// names the part, its lack is a failure, so that nothing goes green by skipping.
func need(t *testing.T, part string, there bool) {
	t.Helper()
	switch {
	case there:
	case slices.Contains(strings.Split(os.Getenv("FOOTPLATE_REQUIRE"), ","), part):
		t.Fatalf("%s is needed here (FOOTPLATE_REQUIRE), and is not there", part)
	default:
		t.Skipf("this machine has no %s", part)
	}
}

// island is a network namespace with one host in it, and a link that can be cut.
type island struct{ name, here, there string }

func newIsland(t *testing.T) *island {
	t.Helper()
	if os.Geteuid() != 0 {
		need(t, "netns", false)
	}
	n := os.Getpid() % 250
	i := &island{
		name: fmt.Sprintf("fp%d", os.Getpid()),
		here: fmt.Sprintf("10.231.%d.1", n), there: fmt.Sprintf("10.231.%d.2", n),
	}
	ip := func(args ...string) error {
		out, err := exec.Command("ip", args...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
		}
		return err
	}
	need(t, "netns", ip("netns", "add", i.name) == nil)
	t.Cleanup(func() { _ = ip("netns", "del", i.name) })
	for _, args := range [][]string{
		{"link", "add", i.name + "h", "type", "veth", "peer", "name", "eth0", "netns", i.name},
		{"addr", "add", i.here + "/30", "dev", i.name + "h"},
		{"link", "set", i.name + "h", "up"},
		{"-n", i.name, "addr", "add", i.there + "/30", "dev", "eth0"},
		{"-n", i.name, "link", "set", "lo", "up"},
		{"-n", i.name, "link", "set", "eth0", "up"},
	} {
		if err := ip(args...); err != nil {
			t.Fatal(err)
		}
	}
	return i
}

func (i *island) link(t *testing.T, state string) {
	t.Helper()
	if out, err := exec.Command("ip", "-n", i.name, "link", "set", "eth0", state).CombinedOutput(); err != nil {
		t.Fatalf("link %s: %v: %s", state, err, out)
	}
}

// agent starts an agent of pool "away"; on an island when there is one.
func (p *plant) agent(host string, i *island) *exec.Cmd {
	p.t.Helper()
	var st struct {
		Cluster string `json:"cluster_id"`
	}
	if err := readJSON(filepath.Join(p.dir, "n1", "cluster.json"), &st); err != nil {
		p.t.Fatal(err)
	}
	var addrs []string
	for _, n := range p.nodes {
		addrs = append(addrs, "http://"+n.api)
	}
	args := []string{
		binary, "agent", "--host", host, "--pool", "away", "--boot", "boot-of-" + host, "--cluster", st.Cluster,
		"--addrs", strings.Join(addrs, ","), "--token-file", p.secret("agent"), "--dir", filepath.Join(p.dir, "agent-"+host),
	}
	if i != nil {
		args = append([]string{"ip", "netns", "exec", i.name}, args...)
	}
	cmd := exec.Command(args[0], args[1:]...)
	logFile, err := os.Create(filepath.Join(p.dir, "agent-"+host+".log"))
	if err != nil {
		p.t.Fatal(err)
	}
	defer logFile.Close()
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// TestHostCutOff: a host drops off the network while its processes live on, or
// its agent is stopped. Its task ends by itself before the next attempt starts
// elsewhere, and when all is back the host is as good as new. No provider helps:
// what is shown is the lease.
func TestHostCutOff(t *testing.T) {
	i := newIsland(t)
	p := startPlant(t, plantConfig{nodes: 3, hosts: 0, slots: 1, fence: "4s", suspect: "2s", listen: i.here})
	p.must("pool", "create", "away", "--provider", "none", "--slots", "1", "--fence-after", "4s", "--suspect-after", "2s")
	agent := p.agent("island", i)
	ready := func(n int) func() bool {
		return func() bool { return strings.Count(p.must("host", "list", "--state", "ready", "-o", "name"), "\n") == n }
	}
	p.wait(20*time.Second, "the host on the island", ready(1))
	signal := func(s syscall.Signal) func(*testing.T) {
		return func(t *testing.T) {
			if err := agent.Process.Signal(s); err != nil {
				t.Fatal(err)
			}
		}
	}
	mainland := false
	for range rounds() {
		for _, way := range []struct {
			name     string
			cut, end func(*testing.T)
		}{
			{"network", func(t *testing.T) { i.link(t, "down") }, func(t *testing.T) { i.link(t, "up") }},
			{"stopped", signal(syscall.SIGSTOP), signal(syscall.SIGCONT)},
		} {
			t.Run(way.name, func(t *testing.T) {
				// The task is longer than the time to the next attempt: it does not
				// just come to its end.
				m := newMarks(t)
				if mainland {
					p.must("host", "cordon", "mainland") // the build is the island's
				}
				id := p.submitted(p.must("build", "submit", "--org", "demo", "--pool", "away", "--run", m.script(12), "-o", "json"))
				p.wait(20*time.Second, "the build to run", func() bool { return len(m.read()) == 1 })
				if mainland {
					p.must("host", "uncordon", "mainland")
				} else {
					p.agent("mainland", nil)
					mainland = true
				}
				p.wait(20*time.Second, "the other host", ready(2))
				cut := time.Now()
				way.cut(t)
				p.wait(30*time.Second, "the next attempt", func() bool { return len(m.read()) == 2 })
				p.wait(30*time.Second, "the end of the build", func() bool { return p.build(id).State == "passed" })
				lives := m.read()
				t.Logf("the task ended by itself %.2f s after the fault, the next attempt started after %.2f s",
					float64(lives[0].last-cut.UnixNano())/1e9, float64(lives[1].first-cut.UnixNano())/1e9)
				if o := m.overlap(); o != "" {
					t.Errorf("two attempts at once: %s", o)
				}
				way.end(t)
				p.wait(30*time.Second, "the host to be back", ready(2))
			})
		}
	}
}
