package attempt_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"footplate/fleet"
	"footplate/fleet/agent/attempt"
)

// The test binary is its own supervisor, and its own agent where one must be
// killed.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "supervise":
			os.Exit(attempt.Supervise(os.Args[2:], os.Stderr))
		case "fake-agent":
			os.Exit(fakeAgent(os.Args[2]))
		}
	}
	os.Exit(m.Run())
}

// agentOrder is what a fake agent is told.
type agentOrder struct {
	Dir         string
	NoNamespace bool
	Lease       time.Duration // renewed by itself until it is stopped
	User        *attempt.User
	Order       attempt.Order
}

// fakeAgent runs one attempt and renews its lease, until it is killed.
func fakeAgent(arg string) int {
	var o agentOrder
	if err := json.Unmarshal([]byte(arg), &o); err != nil {
		fmt.Println(err)
		return 1
	}
	lease := func() int64 { return attempt.Now() + int64(o.Lease) }
	run, err := attempt.Start(context.Background(), attempt.Config{
		Dir: o.Dir, NoNamespace: o.NoNamespace, TaskUser: o.User, Deadline: lease,
	}, o.Order)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	for tick := time.NewTicker(o.Lease / 4); ; <-tick.C {
		run.Extend(lease())
	}
}

// world is where one test's attempts live.
type world struct {
	t    *testing.T
	dir  string
	mark string // in the environment of all that the test starts
	cfg  attempt.Config
}

func newWorld(t *testing.T, noNamespace bool) *world {
	t.Helper()
	base, err := os.MkdirTemp("", "attempt")
	if err != nil {
		t.Fatal(err)
	}
	// The task's user must pass through.
	if err := os.Chmod(base, 0o711); err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, dir: filepath.Join(base, "attempts"), mark: "mark-" + filepath.Base(base)}
	w.cfg = attempt.Config{
		Dir:         w.dir,
		NoNamespace: noNamespace,
		Deadline:    func() int64 { return attempt.Now() + int64(time.Minute) },
		Grace:       300 * time.Millisecond,
	}
	if os.Geteuid() == 0 {
		w.cfg.TaskUser = &attempt.User{UID: 65534, GID: 65534}
	}
	t.Cleanup(func() {
		for _, pid := range w.alive() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		w.wait("everything to be dead", 5*time.Second, func() bool { return len(w.alive()) == 0 })
		if err := os.RemoveAll(base); err != nil {
			t.Error(err)
		}
	})
	return w
}

// modes runs a test with a PID namespace, where one is allowed, and without.
func modes(t *testing.T, f func(*testing.T, *world)) {
	for _, plain := range []bool{false, true} {
		t.Run(map[bool]string{false: "namespace", true: "subreaper"}[plain], func(t *testing.T) {
			t.Parallel()
			f(t, newWorld(t, plain))
		})
	}
}

func (w *world) wait(what string, d time.Duration, ok func() bool) time.Duration {
	w.t.Helper()
	began := time.Now()
	for tick := time.NewTicker(5 * time.Millisecond); !ok(); <-tick.C {
		if time.Since(began) > d {
			w.t.Fatalf("waited %s for %s", d, what)
		}
	}
	return time.Since(began)
}

// alive lists the processes with the world's mark in their environment or
// command line.
func (w *world) alive() []int {
	var pids []int
	names, _ := filepath.Glob("/proc/[0-9]*")
	for _, name := range names {
		env, _ := os.ReadFile(name + "/environ")
		cmd, _ := os.ReadFile(name + "/cmdline")
		if bytes.Contains(env, []byte(w.mark)) || bytes.Contains(cmd, []byte(w.mark)) {
			if pid, err := strconv.Atoi(filepath.Base(name)); err == nil && pid != os.Getpid() {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

func (w *world) order(steps ...string) attempt.Order {
	task := fleet.TaskSpec{Name: "main"}
	for _, s := range steps {
		task.Steps = append(task.Steps, fleet.Step{Run: s})
	}
	return attempt.Order{
		ID: 7, Build: 3, N: 1,
		Spec: &fleet.BuildSpec{Env: []fleet.EnvVar{{Name: "MARK", Value: w.mark}}, Tasks: []fleet.TaskSpec{task}},
	}
}

func (w *world) start(o attempt.Order) *attempt.Run {
	w.t.Helper()
	run, err := attempt.Start(w.t.Context(), w.cfg, o)
	if err != nil {
		w.t.Fatal(err)
	}
	return run
}

// finish hands the log over and returns the end and the log.
func (w *world) finish(run *attempt.Run) (attempt.State, string) {
	w.t.Helper()
	run.Uploaded()
	select {
	case <-run.Done():
	case <-time.After(20 * time.Second):
		run.Kill("the test gives up")
		w.t.Fatalf("attempt does not end: %+v", run.State())
	}
	if s := run.State(); !s.Dead || s.Phase != fleet.PhaseEnded {
		w.t.Errorf("done, but %+v", s)
	}
	if pids := w.alive(); len(pids) > 0 {
		w.t.Errorf("processes left behind: %v", pids)
	}
	log := w.log(run.Log())
	if !run.Log().Final() {
		w.t.Errorf("log has no final chunk:\n%s", log)
	}
	return run.State(), log
}

func (w *world) log(s *attempt.Spool) string {
	w.t.Helper()
	var b strings.Builder
	for n := uint64(0); ; {
		chunks, err := s.ReadFrom(n, 1<<20)
		if err != nil {
			w.t.Fatal(err)
		}
		if len(chunks) == 0 {
			return b.String()
		}
		for _, c := range chunks {
			if c.N != n {
				w.t.Fatalf("chunk %d where %d should be", c.N, n)
			}
			n++
			b.Write(c.Data)
		}
	}
}

func (w *world) want(run *attempt.Run, outcome fleet.Outcome, why string) string {
	w.t.Helper()
	s, log := w.finish(run)
	if s.Outcome != outcome || !strings.Contains(s.Why, why) {
		w.t.Errorf("outcome %q (%s), want %q (%s); log:\n%s", s.Outcome, s.Why, outcome, why, log)
	}
	if r, ok, err := attempt.Recall(w.dir, run.ID()); err != nil || !ok || r.Outcome != outcome {
		w.t.Errorf("recalled %+v, %v, %v; want %q", r, ok, err, outcome)
	}
	return log
}

// hang is a step that says that it has begun and goes on for ever.
const hang = `echo begun; while :; do sleep 0.05; done`

func (w *world) inStep(run *attempt.Run) {
	w.t.Helper()
	w.wait("the step to begin", 10*time.Second, func() bool {
		return strings.Contains(w.log(run.Log()), "\nbegun\n")
	})
}

// What came of an attempt stands on a line of its own.
func TestUnendedLine(t *testing.T) {
	for _, row := range []struct {
		step    string
		outcome fleet.Outcome
		why     string
		last    string
	}{
		{"printf hello", fleet.Passed, "", "\nhello\n# passed in "},
		{"printf hello; exit 3", fleet.Failed, "step 1 exited with code 3", "\nhello\n# failed: step 1 exited with code 3\n"},
		{"true", fleet.Passed, "", "$ true\n# passed in "},
	} {
		w := newWorld(t, false)
		if log := w.want(w.start(w.order(row.step)), row.outcome, row.why); !strings.Contains(log, row.last) {
			t.Errorf("log:\n%s", log)
		}
	}
}

func TestPassed(t *testing.T) {
	modes(t, func(t *testing.T, w *world) {
		run := w.start(w.order("echo one; echo two >&2", "cat /dev/null\npwd"))
		log := w.want(run, fleet.Passed, "")
		if got := run.Namespaced(); got && w.cfg.NoNamespace || !got && !w.cfg.NoNamespace && os.Geteuid() == 0 {
			t.Errorf("namespaced: %v", got)
		}
		work := filepath.Join(attempt.Dir(w.dir, 7), "work")
		if head := "$ echo one; echo two >&2\none\ntwo\n$ cat /dev/null\n> pwd\n" + work + "\n# passed in "; !strings.HasPrefix(log, head) {
			t.Errorf("log:\n%s\nshould begin with\n%s", log, head)
		}
		var phases []fleet.Phase
		for _, p := range run.State().Phases {
			phases = append(phases, p.Phase)
		}
		if !slices.Equal(phases, []fleet.Phase{fleet.PhaseSetup, fleet.PhaseSteps, fleet.PhaseUpload, fleet.PhaseEnded}) {
			t.Errorf("phases %v", phases)
		}
		if err := run.Forget(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(attempt.Dir(w.dir, 7)); !os.IsNotExist(err) {
			t.Errorf("after Forget: %v", err)
		}
	})
}

func TestFailed(t *testing.T) {
	modes(t, func(t *testing.T, w *world) {
		run := w.start(w.order("true", "false; exit 0", "echo never"))
		log := w.want(run, fleet.Failed, "step 2 exited with code 1")
		if strings.Contains(log, "\nnever") || run.State().Exit != 1 {
			t.Errorf("exit %d, log:\n%s", run.State().Exit, log)
		}
	})
}

func TestDaemonIsKilledAtTheEnd(t *testing.T) {
	modes(t, func(t *testing.T, w *world) {
		w.want(w.start(w.order(daemon(w))), fleet.Passed, "")
	})
}

// daemon double-forks a process that holds on to nothing of its parents' but,
// in its command line, the mark.
func daemon(w *world) string {
	return `(setsid sh -c 'while :; do sleep 0.05; done # ` + w.mark + `' </dev/null >/dev/null 2>&1 &)`
}

func TestTwiceTheSame(t *testing.T) {
	w := newWorld(t, false)
	run := w.start(w.order(hang))
	if _, err := attempt.Start(t.Context(), w.cfg, w.order("true")); fleet.CodeOf(err) != fleet.CodeConflict {
		t.Errorf("second start: %v", err)
	}
	run.Kill("enough")
	w.want(run, fleet.Lost, "enough")
}

func TestLeaseIsOver(t *testing.T) {
	w := newWorld(t, false)
	w.cfg.Deadline = attempt.Now
	if _, err := attempt.Start(t.Context(), w.cfg, w.order("true")); fleet.CodeOf(err) != fleet.CodeUnavailable {
		t.Errorf("start: %v", err)
	}
}

func TestLeaseEnds(t *testing.T) {
	modes(t, func(t *testing.T, w *world) {
		lease := attempt.Now() + int64(800*time.Millisecond)
		w.cfg.Deadline = func() int64 { return lease }
		run := w.start(w.order(daemon(w) + "; " + hang))
		w.inStep(run)
		longer := lease + int64(700*time.Millisecond)
		run.Extend(longer)
		w.wait("the first lease to pass", 5*time.Second, func() bool { return attempt.Now() > lease+int64(300*time.Millisecond) })
		if run.State().Phase != fleet.PhaseSteps {
			t.Errorf("an extended lease ended: %+v", run.State())
		}
		w.wait("the tree to be dead", 5*time.Second, func() bool { return len(w.alive()) == 0 })
		if over := time.Duration(attempt.Now() - longer); over < 0 || over > time.Second {
			t.Errorf("ended %s after the lease", over)
		}
		w.want(run, fleet.Lost, "lease ended")
	})
}

// agent starts a fake agent and waits until its task runs.
func (w *world) agent(lease time.Duration, steps ...string) *exec.Cmd {
	w.t.Helper()
	b, err := json.Marshal(agentOrder{
		Dir: w.dir, NoNamespace: w.cfg.NoNamespace, Lease: lease, User: w.cfg.TaskUser, Order: w.order(steps...),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "fake-agent", string(b))
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	w.wait("the task to run", 10*time.Second, func() bool {
		s, err := attempt.Log(w.dir, 7)
		if err != nil {
			return false
		}
		defer s.Close()
		return strings.Contains(w.log(s), "\nbegun\n")
	})
	return cmd
}

func (w *world) supervisor() int {
	w.t.Helper()
	var id struct{ PID int }
	b, err := os.ReadFile(filepath.Join(attempt.Dir(w.dir, 7), "supervisor.json"))
	if err == nil {
		err = json.Unmarshal(b, &id)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return id.PID
}

// tree counts what is alive beside the fake agent, which has the mark in its
// command line.
func (w *world) tree(agent *exec.Cmd) int {
	n := 0
	for _, pid := range w.alive() {
		if pid != agent.Process.Pid {
			n++
		}
	}
	return n
}

func (w *world) reaped(why string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Second)
	defer cancel()
	ids, err := attempt.Reap(ctx, w.dir)
	if err != nil || !slices.Equal(ids, []fleet.AttemptID{7}) {
		w.t.Fatalf("reaped %v, %v", ids, err)
	}
	if n := len(w.alive()); n > 0 {
		w.t.Errorf("%d processes alive after Reap", n)
	}
	r, ok, err := attempt.Recall(w.dir, 7)
	if err != nil || !ok || r.Outcome != fleet.Lost || !strings.Contains(r.Why, why) {
		w.t.Errorf("recalled %+v, %v, %v", r, ok, err)
	}
	s, err := attempt.Log(w.dir, 7)
	if err != nil {
		w.t.Fatal(err)
	}
	defer s.Close()
	if !s.Final() {
		w.t.Errorf("the log has no end:\n%s", w.log(s))
	}
	if err := attempt.Forget(w.dir, 7); err != nil {
		w.t.Error(err)
	}
}

func TestAgentKilled(t *testing.T) {
	modes(t, func(t *testing.T, w *world) {
		agent := w.agent(time.Minute, daemon(w)+"; "+hang)
		_ = agent.Process.Kill()
		_ = agent.Wait()
		t.Logf("dead after %s", w.wait("the tree to be dead", time.Second, func() bool { return len(w.alive()) == 0 }))
		w.reaped("the agent ended")
	})
}

func TestSupervisorKilled(t *testing.T) {
	modes(t, func(t *testing.T, w *world) {
		run := w.start(w.order(daemon(w) + "; " + hang))
		w.inStep(run)
		if err := syscall.Kill(w.supervisor(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		t.Logf("dead after %s", w.wait("the tree to be dead", time.Second, func() bool { return len(w.alive()) == 0 }))
		w.want(run, fleet.Lost, "the supervisor died: signal: killed")
	})
}

func TestBothKilled(t *testing.T) {
	modes(t, func(t *testing.T, w *world) {
		agent := w.agent(time.Minute, daemon(w)+"; "+hang)
		// The agent first is stopped, so that it can't clear up.
		_ = agent.Process.Signal(syscall.SIGSTOP)
		_ = syscall.Kill(w.supervisor(), syscall.SIGKILL)
		_ = agent.Process.Kill()
		_ = agent.Wait()
		w.reaped("the agent ended")
	})
}

// A stopped supervisor sees neither its pipe nor its lease.
func TestSupervisorStoppedAgentKilled(t *testing.T) {
	modes(t, func(t *testing.T, w *world) {
		agent := w.agent(time.Minute, daemon(w)+"; "+hang)
		_ = syscall.Kill(w.supervisor(), syscall.SIGSTOP)
		_ = agent.Process.Kill()
		_ = agent.Wait()
		w.reaped("the agent ended")
	})
}

// A power cut can tear the file that says which process the supervisor is.
func TestReapWithoutIdentity(t *testing.T) {
	modes(t, func(t *testing.T, w *world) {
		agent := w.agent(time.Minute, daemon(w)+"; "+hang)
		_ = syscall.Kill(w.supervisor(), syscall.SIGSTOP)
		_ = agent.Process.Kill()
		_ = agent.Wait()
		if err := os.WriteFile(filepath.Join(attempt.Dir(w.dir, 7), "supervisor.json"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		w.reaped("the agent ended")
	})
}

func TestAgentStopped(t *testing.T) {
	modes(t, func(t *testing.T, w *world) {
		const lease = 1500 * time.Millisecond
		agent := w.agent(lease, daemon(w)+"; "+hang)
		_ = agent.Process.Signal(syscall.SIGSTOP)
		took := w.wait("the lease to end the tree", lease+time.Second, func() bool { return w.tree(agent) == 0 })
		t.Logf("dead %s after the stop", took)
		w.wait("the supervisor to write it down", time.Second, func() bool {
			_, ok, err := attempt.Recall(w.dir, 7)
			return ok && err == nil
		})
		_ = agent.Process.Kill()
		_ = agent.Wait()
		w.reaped("lease ended")
	})
}

// A pid that was reused must not be killed.
func TestReapSparesStrangers(t *testing.T) {
	w := newWorld(t, false)
	stranger := exec.Command("sleep", "60")
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stranger.Process.Kill(); _ = stranger.Wait() }()
	dir := attempt.Dir(w.dir, 7)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	id := fmt.Sprintf(`{"pid":%d,"start":1,"boot":%q,"namespace":true}`, stranger.Process.Pid, strings.TrimSpace(string(boot)))
	if err := os.WriteFile(filepath.Join(dir, "supervisor.json"), []byte(id), 0o600); err != nil {
		t.Fatal(err)
	}
	w.reaped("the agent ended")
	if err := stranger.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("a stranger was killed: %v", err)
	}
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", stranger.Process.Pid)); err != nil || bytes.Contains(b, []byte(") Z ")) {
		t.Errorf("a stranger was killed: %s", b)
	}
}

// program writes an executable shell script.
func (w *world) program(text string) string {
	w.t.Helper()
	name := filepath.Join(filepath.Dir(w.dir), "program-"+strconv.Itoa(len(text)))
	if err := os.WriteFile(name, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		w.t.Fatal(err)
	}
	return name
}

// inPhase makes an attempt that hangs in a phase, and waits until it does.
func (w *world) inPhase(p fleet.Phase, t fleet.Timeouts) *attempt.Run {
	w.t.Helper()
	o := w.order(hang)
	o.Spec.Timeouts = t
	switch p {
	case fleet.PhaseSetup:
		w.cfg.Exe = w.program("exec sleep 60 # " + w.mark)
		w.cfg.Args = []string{w.mark}
	case fleet.PhaseCheckout:
		o.Spec.Source.Repo = filepath.Dir(w.dir)
		w.cfg.Git = w.program("trap '' TERM; while :; do sleep 0.05; done # " + w.mark)
	case fleet.PhaseUpload:
		o = w.order("true")
		o.Spec.Timeouts = t
	}
	run := w.start(o)
	w.wait("phase "+string(p), 10*time.Second, func() bool {
		now := run.State().Phase
		return now == p || now == fleet.PhaseEnded
	})
	if p == fleet.PhaseSteps {
		w.inStep(run)
	}
	return run
}

func TestTimeout(t *testing.T) {
	short := 700 * fleet.Millisecond
	for p, timeouts := range map[fleet.Phase]fleet.Timeouts{
		fleet.PhaseSetup:    {Setup: short},
		fleet.PhaseCheckout: {Checkout: short},
		fleet.PhaseSteps:    {Steps: short},
	} {
		t.Run(string(p), func(t *testing.T) {
			modes(t, func(t *testing.T, w *world) {
				w.want(w.inPhase(p, timeouts), fleet.TimedOut, "took longer than 700ms")
			})
		})
	}
	t.Run("step", func(t *testing.T) {
		modes(t, func(t *testing.T, w *world) {
			o := w.order("trap 'echo tidied; exit 0' TERM; " + hang)
			o.Spec.Tasks[0].Steps[0].Timeout = short
			o.Spec.Tasks[0].Steps[0].Name = "slow"
			if log := w.want(w.start(o), fleet.TimedOut, `step 1 "slow" took longer than 700ms`); !strings.Contains(log, "\ntidied\n") {
				t.Errorf("the step was not asked to end; log:\n%s", log)
			}
		})
	})
	t.Run("upload", func(t *testing.T) {
		w := newWorld(t, false)
		run := w.inPhase(fleet.PhaseUpload, fleet.Timeouts{Upload: 100 * fleet.Millisecond})
		<-run.Done()
		w.want(run, fleet.Passed, "")
	})
}

func TestCancel(t *testing.T) {
	for _, p := range []fleet.Phase{fleet.PhaseCheckout, fleet.PhaseSteps} {
		t.Run(string(p), func(t *testing.T) {
			modes(t, func(t *testing.T, w *world) {
				run := w.inPhase(p, fleet.Timeouts{})
				run.Cancel("alice asked for it")
				log := w.want(run, fleet.Canceled, "alice asked for it")
				if !strings.HasSuffix(log, "# canceled: alice asked for it\n") {
					t.Errorf("log:\n%s", log)
				}
			})
		})
	}
	t.Run("setup", func(t *testing.T) {
		modes(t, func(t *testing.T, w *world) {
			run := w.inPhase(fleet.PhaseSetup, fleet.Timeouts{})
			run.Cancel("alice asked for it")
			w.want(run, fleet.Canceled, "alice asked for it")
		})
	})
	t.Run("upload", func(t *testing.T) {
		w := newWorld(t, false)
		run := w.inPhase(fleet.PhaseUpload, fleet.Timeouts{})
		run.Cancel("too late")
		<-run.Done()
		w.want(run, fleet.Passed, "")
	})
}

func TestEnvironment(t *testing.T) {
	t.Setenv("FOOTPLATE_TOKEN", "secret")
	w := newWorld(t, false)
	secret := filepath.Join(filepath.Dir(w.dir), "token")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	o := w.order("env | sort", "id -u; id -G; cat /proc/1/environ | tr '\\0' '\\n' || true", "cat "+secret+" || true", "grep -E 'NoNewPrivs|CapEff' /proc/self/status")
	o.Env = []fleet.EnvVar{{Name: "EXTRA", Value: "1"}}
	o.Spec.Tasks[0].Env = []fleet.EnvVar{{Name: "FOOTPLATE_ATTEMPT", Value: "99"}, {Name: "LANG", Value: "C"}}
	log := w.want(w.start(o), fleet.Passed, "")
	want := map[string]string{
		"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C", "CI": "true",
		"HOME": attempt.Dir(w.dir, 7) + "/home", "TMPDIR": attempt.Dir(w.dir, 7) + "/tmp", "MARK": w.mark, "EXTRA": "1",
		"FOOTPLATE_BUILD": "3", "FOOTPLATE_TASK": "main", "FOOTPLATE_TASK_INDEX": "0", "FOOTPLATE_TASK_COUNT": "1",
		"FOOTPLATE_ATTEMPT": "7", "FOOTPLATE_WORKSPACE": attempt.Dir(w.dir, 7) + "/work", "PWD": attempt.Dir(w.dir, 7) + "/work",
	}
	sc := bufio.NewScanner(strings.NewReader(log))
	for sc.Scan() && !strings.HasPrefix(sc.Text(), "$ id") {
		if name, value, ok := strings.Cut(sc.Text(), "="); ok {
			if v, known := want[name]; (!known || v != value) && name != "_" && name != "OLDPWD" {
				t.Errorf("the task has %s", sc.Text())
			}
			delete(want, name)
		}
	}
	if len(want) > 0 {
		t.Errorf("the task lacks %v", want)
	}
	if !strings.Contains(log, "NoNewPrivs:\t1") || !strings.Contains(log, "CapEff:\t0000000000000000") || strings.Contains(log, "FOOTPLATE_TOKEN") {
		t.Errorf("log:\n%s", log)
	}
	if os.Geteuid() == 0 && (!strings.Contains(log, "\n65534\n65534\n") || strings.Contains(log, "secret")) {
		t.Errorf("the task is not confined; log:\n%s", log)
	}
}

func TestLogIsCut(t *testing.T) {
	w := newWorld(t, false)
	w.cfg.MaxLog = 100_000
	log := w.want(w.start(w.order("head -c 3000000 /dev/zero | tr '\\0' x", "echo on")), fleet.Passed, "")
	if len(log) > 101_000 || !strings.Contains(log, "\n# the log is cut here: it is longer than 100000 bytes\n# passed in ") {
		t.Errorf("log of %d bytes ends with %q", len(log), log[max(0, len(log)-200):])
	}
}

// repository makes a git repository with a branch, a tag and two commits.
func (w *world) repository() (dir, first string) {
	w.t.Helper()
	dir = filepath.Join(filepath.Dir(w.dir), "repo")
	script := `git init -q -b main "$1" && cd "$1" && git config user.email a@b.c && git config user.name n &&
echo one >f && git add f && git commit -q -m one && git tag v1 && git rev-parse HEAD &&
git checkout -q -b other && echo two >f && ln -s /etc l && git add . && git commit -q -m two && git checkout -q main && chmod 700 .`
	cmd := exec.Command("sh", "-c", script, "sh", dir)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null")
	out, err := cmd.CombinedOutput()
	if err != nil {
		w.t.Fatalf("%v\n%s", err, out)
	}
	return dir, strings.TrimSpace(string(out))
}

func TestCheckout(t *testing.T) {
	w := newWorld(t, false)
	repo, first := w.repository()
	id := fleet.AttemptID(0)
	try := func(repo, ref string) *attempt.Run {
		id++
		o := w.order("cat f; touch new; git status --short")
		o.ID = id
		o.Spec.Source = fleet.Source{Repo: repo, Ref: ref}
		return w.start(o)
	}
	for ref, content := range map[string]string{"": "one", "main": "one", "other": "two", "v1": "one", first: "one", first[:8]: "one", "refs/heads/other": "two"} {
		if log := w.want(try(repo, ref), fleet.Passed, ""); !strings.Contains(log, "\n"+content+"\n?? new\n") {
			t.Errorf("ref %q: log:\n%s", ref, log)
		}
	}
	w.want(try(repo, "nope"), fleet.Failed, `ref "nope" does not exist in `+repo)
	w.want(try(repo+"x", ""), fleet.Failed, `repository "`+repo+`x" does not exist`)
	empty := t.TempDir()
	w.want(try(empty, ""), fleet.Failed, `clone of repository "`+empty+`" failed: `)
}

func TestNoGit(t *testing.T) {
	w := newWorld(t, false)
	w.cfg.Git = "/nonexistent/git"
	o := w.order("true")
	o.Spec.Source.Repo = filepath.Dir(w.dir)
	w.want(w.start(o), fleet.Broken, "start /nonexistent/git")
}

func TestSuperviseByHand(t *testing.T) {
	out, err := exec.Command(os.Args[0], "supervise").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "not by hand") {
		t.Errorf("%v: %s", err, out)
	}
}
