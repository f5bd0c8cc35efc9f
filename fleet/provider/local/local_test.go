package local

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"footplate/fleet"
	"footplate/fleet/fault"
	"footplate/fleet/provider"
	"footplate/fleet/provider/providertest"
)

// The test binary is also the machine and the launcher that dies.
func TestMain(m *testing.M) {
	if len(os.Args) > 3 {
		switch os.Args[1] {
		case "machine":
			beMachine(os.Args[2], os.Args[3:])
		case "launcher":
			beLauncher(os.Args[3])
		}
	}
	os.Exit(m.Run())
}

// beMachine says that it is there, with a line in a file for each start, and
// stays until it is told to end.
func beMachine(births string, args []string) {
	f := flag.NewFlagSet("machine", flag.ExitOnError)
	launch := f.String("launch", "", "")
	token := f.String("token-file", "", "")
	dir := f.String("dir", "", "")
	for _, name := range []string{"host", "pool", "slots", "addrs", "cluster", "boot"} {
		f.String(name, "", "")
	}
	stubborn := f.Bool("stubborn", false, "")
	child := f.Bool("child", false, "")
	_ = f.Parse(args)
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	if *child {
		cmd := exec.Command("sleep", "600")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := cmd.Start(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	if b, err := os.ReadFile(*token); err != nil || len(bytes.TrimSpace(b)) == 0 || *dir == "" {
		fmt.Fprintln(os.Stderr, "no token", err)
		os.Exit(1)
	}
	out, err := os.OpenFile(filepath.Join(births, *launch), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Fprintf(out, "pid %d of %d\n", os.Getpid(), os.Getppid())
	for range end {
		if !*stubborn {
			os.Exit(0)
		}
	}
}

// beLauncher launches, and dies at the point that the environment names.
func beLauncher(order string) {
	var o struct {
		Config  Config
		Request provider.Request
	}
	if err := json.Unmarshal([]byte(order), &o); err != nil {
		panic(err)
	}
	p, err := New(o.Config)
	if err == nil {
		_, err = p.Launch(context.Background(), o.Request)
	}
	panic(fmt.Sprintf("still there at %s: %v", os.Getenv(fault.Env), err))
}

type place struct {
	cfg    Config
	births string
}

func newPlace(t *testing.T, namespace bool, extra ...string) place {
	t.Helper()
	dir := t.TempDir()
	pl := place{births: filepath.Join(dir, "births"), cfg: Config{
		Dir: filepath.Join(dir, "machines"), Extra: extra, Grace: 300 * time.Millisecond, NoNamespace: !namespace,
	}}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	pl.cfg.Exe, pl.cfg.Args = exe, []string{"machine", pl.births}
	if err := os.Mkdir(pl.births, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := EndAll(pl.cfg.Dir); err != nil {
			t.Errorf("end all: %v", err)
		}
	})
	return pl
}

func (pl place) open(t testing.TB) *Provider {
	t.Helper()
	p, err := New(pl.cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (pl place) record(t testing.TB, id fleet.LaunchID) machine {
	t.Helper()
	m, ok, err := pl.open(t).read(id)
	if err != nil || !ok {
		t.Fatalf("record of launch %d: %v, %v", id, ok, err)
	}
	return m
}

func (pl place) started(t testing.TB, id fleet.LaunchID) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(pl.births, id.String()))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return bytes.Count(b, []byte("\n"))
}

func (pl place) kill(t testing.TB, id fleet.LaunchID) {
	t.Helper()
	if err := unix.Kill(pl.record(t, id).PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

func (pl place) crash(t testing.TB, point string, r provider.Request) {
	t.Helper()
	order, err := json.Marshal(map[string]any{"Config": pl.cfg, "Request": r})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(pl.cfg.Exe, "launcher", point, string(order))
	cmd.Env = append(os.Environ(), fault.Env+"="+point)
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("the launcher did not die at %s: %v\n%s", point, err, out)
	}
}

// modes are the two kinds of machine.
func modes(t *testing.T, f func(t *testing.T, namespace bool)) {
	for _, namespace := range []bool{true, false} {
		t.Run("namespace="+strconv.FormatBool(namespace), func(t *testing.T) { f(t, namespace) })
	}
}

func TestConformance(t *testing.T) {
	modes(t, func(t *testing.T, namespace bool) {
		providertest.Run(t, func(t *testing.T) providertest.World {
			pl := newPlace(t, namespace)
			return providertest.World{
				Open: func(t testing.TB) provider.Provider { return pl.open(t) },
				Kill: pl.kill, Started: pl.started, Crash: pl.crash,
				Points: []string{
					string(fault.LaunchClaimed), string(fault.LaunchStarted), string(fault.LaunchRecorded), string(fault.LaunchReleased),
				},
			}
		})
	})
}

func (pl place) up(t *testing.T, id fleet.LaunchID) {
	t.Helper()
	until(t, "the machine is up", func() bool { return pl.started(t, id) > 0 })
}

// A machine is told to end first, and killed when it does not.
func TestTerminateStubborn(t *testing.T) {
	modes(t, func(t *testing.T, namespace bool) {
		pl := newPlace(t, namespace, "--stubborn")
		p := pl.open(t)
		if _, err := p.Launch(t.Context(), providertest.Request(1)); err != nil {
			t.Fatal(err)
		}
		pl.up(t, 1)
		m := pl.record(t, 1)
		if err := p.Terminate(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		if start, err := startTime(m.PID); err == nil && start == m.Start {
			if fd, err := m.open(); err != nil || fd >= 0 && !exited(fd, 0) {
				t.Errorf("process %d still runs", m.PID)
			}
		}
	})
}

// A machine that is stopped can be ended too.
func TestTerminateStopped(t *testing.T) {
	modes(t, func(t *testing.T, namespace bool) {
		pl := newPlace(t, namespace)
		p := pl.open(t)
		if _, err := p.Launch(t.Context(), providertest.Request(1)); err != nil {
			t.Fatal(err)
		}
		pl.up(t, 1)
		if err := unix.Kill(pl.record(t, 1).PID, unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		if err := p.Terminate(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		all, err := p.List(t.Context())
		if err != nil || len(all) != 1 || all[0].State != provider.Gone {
			t.Errorf("listed %+v, %v", all, err)
		}
	})
}

// With a namespace nothing survives the machine, in whatever session it is.
func TestNothingSurvivesTheMachine(t *testing.T) {
	if os.Geteuid() != 0 {
		return // plain processes alone: what their attempts leave is attempt.Reap's matter
	}
	pl := newPlace(t, true, "--child")
	p := pl.open(t)
	if _, err := p.Launch(t.Context(), providertest.Request(1)); err != nil {
		t.Fatal(err)
	}
	pl.up(t, 1)
	m := pl.record(t, 1)
	if !m.Namespace {
		t.Fatal("the machine has no namespace")
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", m.PID, m.PID))
	var child machine
	if err == nil {
		// Any thread may be the parent; the children of all are looked through.
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", m.PID))
		for _, name := range threads {
			more, _ := os.ReadFile(name)
			b = append(b, more...)
		}
		if f := strings.Fields(string(b)); len(f) > 0 {
			child.PID, err = strconv.Atoi(f[0])
		}
	}
	if err != nil || child.PID == 0 {
		t.Fatalf("no child found: %q, %v", b, err)
	}
	if child.Start, err = startTime(child.PID); err != nil {
		t.Fatal(err)
	}
	pl.kill(t, 1)
	until(t, "the machine is gone", func() bool {
		all, err := p.List(t.Context())
		return err == nil && len(all) == 1 && all[0].State == provider.Gone
	})
	// At this very moment, not some time later.
	if fd, err := child.open(); err != nil || fd >= 0 && !exited(fd, 0) {
		t.Errorf("the child %d of a machine that is gone still runs", child.PID)
	}
}

// A machine outlives the process that launched it.
func TestOutlivesItsLauncher(t *testing.T) {
	modes(t, func(t *testing.T, namespace bool) {
		pl := newPlace(t, namespace)
		pl.crash(t, string(fault.LaunchReleased), providertest.Request(1))
		pl.up(t, 1)
		all, err := pl.open(t).List(t.Context())
		if err != nil || len(all) != 1 || all[0].State != provider.Running {
			t.Errorf("listed %+v, %v", all, err)
		}
	})
}

// The pid of a dead machine may be somebody else's by now.
func TestReusedPID(t *testing.T) {
	pl := newPlace(t, true)
	p := pl.open(t)
	if _, err := p.Launch(t.Context(), providertest.Request(1)); err != nil {
		t.Fatal(err)
	}
	pl.up(t, 1)
	pl.kill(t, 1)
	m := pl.record(t, 1)
	m.PID = os.Getpid()
	if err := p.write(1, m); err != nil {
		t.Fatal(err)
	}
	all, err := p.List(t.Context())
	if err != nil || len(all) != 1 || all[0].State != provider.Gone {
		t.Errorf("listed %+v, %v", all, err)
	}
	if err := p.Terminate(t.Context(), 1); err != nil { // must not end this test
		t.Error(err)
	}
}

func TestRebooted(t *testing.T) {
	pl := newPlace(t, true)
	p := pl.open(t)
	if _, err := p.Launch(t.Context(), providertest.Request(1)); err != nil {
		t.Fatal(err)
	}
	pl.up(t, 1)
	before := pl.record(t, 1)
	m := before
	m.Kernel = "another"
	if err := p.write(1, m); err != nil {
		t.Fatal(err)
	}
	all, err := p.List(t.Context())
	if err != nil || len(all) != 1 || all[0].State != provider.Gone || !strings.Contains(all[0].Note, "rebooted") {
		t.Errorf("listed %+v, %v", all, err)
	}
	if err := p.write(1, before); err != nil {
		t.Fatal(err)
	}
}

func TestPermanentErrors(t *testing.T) {
	pl := newPlace(t, true)
	noExe := pl
	noExe.cfg.Exe = filepath.Join(t.TempDir(), "missing")
	if _, err := noExe.open(t).Launch(t.Context(), providertest.Request(1)); !provider.IsPermanent(err) {
		t.Errorf("without a program: %v", err)
	}
	bad := providertest.Request(2)
	bad.Host = "../evil"
	if _, err := pl.open(t).Launch(t.Context(), bad); !provider.IsPermanent(err) {
		t.Errorf("with a bad name: %v", err)
	}
	if _, err := New(Config{Dir: "relative"}); fleet.CodeOf(err) != fleet.CodeInvalid {
		t.Errorf("with a relative directory: %v", err)
	}
	if all, err := pl.open(t).List(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("listed %+v, %v", all, err)
	}
}

// Nobody but the agent's user may read its token.
func TestTokenIsPrivate(t *testing.T) {
	pl := newPlace(t, true)
	if _, err := pl.open(t).Launch(t.Context(), providertest.Request(1)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{tokenFile, machineFile, logFile} {
		info, err := os.Stat(filepath.Join(pl.cfg.Dir, "1", name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	m := pl.record(t, 1)
	for _, name := range []string{"environ", "cmdline"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", m.PID, name))
		if err != nil || bytes.Contains(b, []byte("a-secret-of-no-worth")) {
			t.Errorf("the token is in %s of the agent: %v", name, err)
		}
	}
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for deadline := time.Now().Add(15 * time.Second); !ok(); <-look.C {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}
