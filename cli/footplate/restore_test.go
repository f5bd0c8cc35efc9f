package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"footplate/controlplane/archive/postgres/postgrestest"
	"footplate/controlplane/catalog"
	"footplate/fleet"

	"github.com/jackc/pgx/v5"
)

// with sets the value of a flag of a node.
func (n *node) with(flag, value string) {
	if i := slices.Index(n.args, flag); i >= 0 {
		n.args[i+1] = value
		return
	}
	n.args = append(n.args, flag, value)
}

// dir returns the data directory of a node.
func (n *node) dir() string { return n.args[slices.Index(n.args, "--data")+1] }

// offline runs "footplate server WORDS" for a node that does not run.
func (p *plant) offline(n *node, words ...string) (string, int) {
	args := append([]string{"server"}, words...)
	args = append(args, "--node", n.name, "--data", n.dir(), "--raft", n.raft, "--raft-advertise", n.proxy.addr,
		"--node-token-file", p.secret("node"), "--log-format", "text", "--reason", "a drill")
	cmd := exec.Command(binary, args...)
	cmd.Env = append(os.Environ(), p.extra...)
	out, _ := cmd.CombinedOutput()
	return string(out), cmd.ProcessState.ExitCode()
}

// anew starts nodes on empty directories, to join the first.
func (p *plant) anew(nodes ...*node) {
	for _, n := range nodes {
		n.with("--data", n.dir()+"-new")
		p.start(n)
	}
}

func (p *plant) whole() bool {
	st, err := p.status()
	return err == nil && len(st.Nodes) == len(p.nodes) && st.up() == len(p.nodes)
}

// runsOn returns the agent of the host that a build runs on.
func (p *plant) runsOn(id fleet.BuildID) int {
	p.t.Helper()
	for _, a := range p.build(id).List {
		if a.Host != "" && a.Outcome == "" {
			return p.machinePID(a.Host)
		}
	}
	p.t.Fatalf("build %d runs nowhere", id)
	return 0
}

// TestRestore: all nodes are killed, and the first is made anew from a snapshot
// that is older than what the hosts run. Nothing runs twice, though the state
// knows less than the hosts do; the record goes on and verifies, here and in
// Postgres, where what was lost stands too.
func TestRestore(t *testing.T) {
	t.Parallel()
	pg := postgrestest.Need(t)
	url := pg.URL(pg.Database(t))
	p := startPlant(t, plantConfig{nodes: 3, hosts: 3, slots: 2, fence: "6s", suspect: "3s", env: []string{envPostgres + "=" + url}})
	r := &record{plant: p, pg: pg, url: url}
	m := newMarks(t)
	began := p.submit(m, 20)
	p.wait(20*time.Second, "a build to run", func() bool { return len(m.read()) == 1 })
	p.must("queue", "pause", "--stage", "dispatch", "--for", "10m", "--yes")
	waiting := p.submit(m, 20)

	snapshot, export := filepath.Join(p.dir, "state.snapshot"), filepath.Join(p.dir, "record.jsonl")
	save := func(file string, words ...string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(p.must(words...)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	save(snapshot, "cluster", "snapshot", "save")
	last := r.entries()
	kept := last[len(last)-1].N

	// What the snapshot does not know: a build runs that waits there, another was
	// submitted, a key was used, and the record has gone on.
	p.must("queue", "resume", "--stage", "dispatch", "--yes")
	unknown := p.submit(m, 60)
	p.wait(20*time.Second, "all builds to run", func() bool { return len(m.read()) == 3 })
	p.must("org", "set", "lost", "--slots", "3", "--idempotency-key", "once")
	save(export, "audit", "export")
	r.delivered()

	// The agent of the build that waits in the snapshot is stopped: it cannot hear
	// that the cluster was recovered, and its task goes on until its lease ends.
	deaf := p.runsOn(waiting)
	_ = syscall.Kill(deaf, syscall.SIGSTOP)
	t.Cleanup(func() { _ = syscall.Kill(deaf, syscall.SIGCONT) })
	for _, n := range p.nodes {
		p.kill(n)
	}
	killed := time.Now()

	first := p.nodes[0]
	if out, code := p.offline(first, "restore", snapshot, "--record", export); code != 6 || !strings.Contains(out, first.dir()) {
		t.Errorf("restored over data: exit %d\n%s", code, out)
	}
	old := first.dir()
	first.with("--data", old+"-new")
	if out, code := p.offline(first, "restore", snapshot, "--record", export, "--dry-run"); code != 0 || !strings.Contains(out, "dry run") {
		t.Errorf("dry run: exit %d\n%s", code, out)
	}
	if _, err := os.Stat(first.dir()); !os.IsNotExist(err) {
		t.Errorf("a dry run made the data directory: %v", err)
	}
	out, code := p.offline(first, "restore", snapshot, "--record", export)
	if code != 0 {
		t.Fatalf("restore: exit %d\n%s", code, out)
	}
	t.Logf("%s", out)
	p.start(first)
	p.anew(p.nodes[1:]...)
	p.wait(30*time.Second, "the recovered cluster", p.whole)
	p.must("queue", "resume", "--stage", "dispatch", "--yes")
	if out := p.must("build", "why", waiting.String()); !strings.Contains(out, "was recovered at") {
		t.Errorf("build why: %s", out)
	}
	p.wait(30*time.Second, "the hosts to come back", func() bool { return p.ready() >= 2 })
	t.Logf("hosts are back %.1f s after the last node was killed", time.Since(killed).Seconds())
	runs := func(id fleet.BuildID) bool {
		for _, l := range m.read() {
			if strings.HasPrefix(l.task, id.String()+".") && l.first > killed.UnixNano() {
				return true
			}
		}
		return false
	}
	p.wait(60*time.Second, "the builds to run again", func() bool { return runs(began) && runs(waiting) })
	t.Logf("builds run again %.1f s after the last node was killed", time.Since(killed).Seconds())
	_ = syscall.Kill(deaf, syscall.SIGCONT)
	p.wait(60*time.Second, "every host", func() bool { return p.ready() >= 3 })
	for _, id := range []fleet.BuildID{began, waiting} {
		p.wait(60*time.Second, "the end of the builds", func() bool { return p.build(id).State == "passed" })
	}
	if o := m.overlap(); o != "" {
		t.Errorf("two attempts at once: %s", o)
	}
	if _, _, code := p.run("build", "show", unknown.String()); code != 5 {
		t.Errorf("build %d, which was submitted after the snapshot, is there: exit %d", unknown, code)
	}
	p.wait(10*time.Second, "the lost build to have ended", func() bool {
		lives := m.read()
		return slices.ContainsFunc(lives, func(l life) bool {
			return strings.HasPrefix(l.task, unknown.String()+".") && time.Now().UnixNano()-l.last > int64(2*time.Second)
		})
	})
	if next := p.submit(m, 1); next <= unknown || next < catalog.RecoveryGap {
		t.Errorf("the next build is %d, and %d was given before", next, unknown)
	}
	if out := p.must("org", "set", "lost", "--slots", "3", "--idempotency-key", "once"); !strings.Contains(out, "made org") {
		t.Errorf("a key of the lost part is remembered: %s", out)
	}

	p.wait(20*time.Second, "the digests to agree", func() bool { return digestsAgree(p) })
	r.delivered()
	verified := p.must("audit", "verify", "--peers", "--postgres")
	if !strings.Contains(verified, "are not part of the record") || !strings.Contains(verified, fmt.Sprintf("entries %d to ", kept+1)) {
		t.Errorf("audit verify does not tell of the entries after %d:\n%s", kept, verified)
	}
	t.Logf("%s", verified)
	entries := r.entries()
	at := slices.IndexFunc(entries, func(e fleet.Entry) bool { return e.Op == "cluster restore" })
	if at < 0 || entries[at].N != kept+1 || entries[at].Reason != "a drill" || entries[0].N != 1 {
		t.Errorf("the record tells of the restore at %d, and begins with %d; entry %d was the last of the snapshot", at, entries[0].N, kept)
	}
	lines := strings.SplitAfter(p.must("audit", "export"), "\n")
	altered := filepath.Join(p.dir, "anchors")
	if err := os.WriteFile(altered, []byte(strings.Join(lines, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	p.must("audit", "verify", altered)

	t.Run("tampered", func(t *testing.T) {
		for _, row := range []struct {
			name string
			n    fleet.EntryNo
		}{{"before the snapshot", kept - 1}, {"lost", kept + 2}, {"after the restore", 0}} {
			r.postgres(t, func(ctx context.Context, c *pgx.Conn) {
				where := "cluster NOT LIKE '%/%' AND n = $1"
				if row.n == 0 {
					where, row.n = "cluster LIKE '%/%' AND n = $1", kept+2
				}
				var before string
				if err := c.QueryRow(ctx, "SELECT text FROM footplate.entries WHERE "+where, int64(row.n)).Scan(&before); err != nil {
					t.Fatal(row.name, err)
				}
				set := func(text string) {
					if _, err := c.Exec(ctx, "UPDATE footplate.entries SET text = $2 WHERE "+where, int64(row.n), text); err != nil {
						t.Fatal(row.name, err)
					}
				}
				set("nothing happened")
				out, errs, code := p.run("audit", "verify", "--postgres")
				if code == 0 || !strings.Contains(out+errs, fmt.Sprintf("entry %d", row.n)) {
					t.Errorf("%s: exit %d\n%s%s", row.name, code, out, errs)
				}
				set(before)
			})
		}
		p.must("audit", "verify", "--postgres")
	})

	t.Run("a node of the old epoch halts", func(t *testing.T) {
		n := *p.nodes[1]
		p.kill(p.nodes[1])
		n.args = slices.Clone(n.args)
		n.with("--data", strings.TrimSuffix(n.dir(), "-new"))
		p.start(&n)
		defer func() { _ = n.cmd.Process.Kill() }()
		waitFor(t, 20*time.Second, "it to halt", func() bool {
			select {
			case <-n.done:
				return true
			default:
				return false
			}
		})
		if b, _ := os.ReadFile(filepath.Join(p.dir, n.name+".log")); !strings.Contains(string(b), "move the data directory away") {
			t.Errorf("its log does not say what to do")
		}
		p.start(p.nodes[1])
		p.wait(30*time.Second, "the node", p.whole)
	})
}

// TestQuorumLost: two of three nodes are lost for ever, and the third goes on
// from what it has. The two come back all the same, with their data, and are a
// majority of the old cluster: they halt, and disturb nobody.
func TestQuorumLost(t *testing.T) {
	t.Parallel() // it mostly waits
	p := startPlant(t, plantConfig{nodes: 3, hosts: 2, slots: 2, fence: "4s", suspect: "2s"})
	m := newMarks(t)
	build := p.submit(m, 15)
	p.wait(20*time.Second, "the build to run", func() bool { return len(m.read()) == 1 })
	p.must("org", "set", "kept", "--slots", "7")
	p.wait(10*time.Second, "the digests to agree", func() bool { return digestsAgree(p) })
	p.kill(p.nodes[0])
	p.kill(p.nodes[1])
	p.wait(20*time.Second, "operations to be refused", func() bool {
		_, _, code := p.run("org", "set", "kept", "--slots", "8")
		return code == 7 || code == 8
	})
	survivor := p.nodes[2]
	if out, code := p.offline(survivor, "recover"); code != 6 || !strings.Contains(out, "in use") {
		t.Errorf("recovered under a running node: exit %d\n%s", code, out)
	}
	p.kill(survivor)
	killed := time.Now()
	if out, code := p.offline(survivor, "recover", "--dry-run"); code != 0 {
		t.Errorf("dry run: exit %d\n%s", code, out)
	}
	out, code := p.offline(survivor, "recover")
	if code != 0 {
		t.Fatalf("recover: exit %d\n%s", code, out)
	}
	t.Logf("%s", out)
	p.start(survivor)
	p.wait(20*time.Second, "the survivor to lead", func() bool {
		st, err := p.status()
		return err == nil && len(st.Nodes) == 1 && string(st.Leader) == survivor.name
	})

	// The others were not lost after all.
	lost := []node{*p.nodes[0], *p.nodes[1]}
	for i := range lost {
		p.start(&lost[i])
	}
	for i := range lost {
		waitFor(t, 30*time.Second, lost[i].name+" to halt", func() bool {
			select {
			case <-lost[i].done:
				return true
			default:
				return false
			}
		})
	}
	if st, err := p.status(); err != nil || string(st.Leader) != survivor.name {
		t.Errorf("the survivor does not lead any more: %+v, %v", st, err)
	}
	for _, n := range p.nodes[:2] {
		n.args = slices.DeleteFunc(n.args, func(a string) bool { return a == "--bootstrap" })
		n.with("--join", p.url(survivor))
	}
	p.anew(p.nodes[:2]...)
	p.wait(30*time.Second, "the cluster", p.whole)
	p.wait(60*time.Second, "the end of the build", func() bool { return p.build(build).State == "passed" })
	t.Logf("the build ended %.1f s after the survivor was stopped", time.Since(killed).Seconds())
	if o := m.overlap(); o != "" {
		t.Errorf("two attempts at once: %s", o)
	}
	if out := p.must("org", "list"); !strings.Contains(out, "kept") {
		t.Errorf("what was acknowledged is lost: %s", out)
	}
	p.wait(20*time.Second, "the digests to agree", func() bool { return digestsAgree(p) })
	p.wait(20*time.Second, "the record everywhere", func() bool {
		_, _, code := p.run("audit", "verify", "--peers")
		return code == 0
	})
	if out := p.must("audit", "search", "--op", "cluster restore"); !strings.Contains(out, "goes on from what node n3 had") {
		t.Errorf("the record does not tell of it: %s", out)
	}
}
