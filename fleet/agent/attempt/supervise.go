package attempt

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"footplate/fleet"
)

// The descriptors that the supervisor is started with.
const (
	controlFD = 3 // from the agent: a job, then commands, a line each
	reportFD  = 4 // to the agent: reports, a line each
)

const (
	flushAfter = 250 * time.Millisecond
	flushBytes = 16 << 10
	// lastWords bounds what is still tried after the tree is dead: writing the
	// end of the log, telling the agent.
	lastWords = 2 * time.Second
)

// Supervise is the main function of the supervisor process, the hidden command
// "footplate supervise". It returns its exit code. args are ignored: they show
// the attempt in a list of processes.
func Supervise(args []string, stderr io.Writer) int {
	// All children are made by this thread. It never ends before the process
	// does, so their parent-death signal means the death of the supervisor,
	// and what it gave up (new privileges, capabilities) they don't have.
	runtime.LockOSThread()
	for _, fd := range []int{controlFD, reportFD} {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
			fmt.Fprintln(stderr, "error: supervise is started by the agent, not by hand")
			return 2
		}
		unix.CloseOnExec(fd)
		if err := unix.SetNonblock(fd, true); err != nil {
			fmt.Fprintf(stderr, "error: prepare pipe to the agent: %v\n", err)
			return 1
		}
	}
	s := &supervisor{
		control:  os.NewFile(controlFD, "control"),
		reports:  os.NewFile(reportFD, "report"),
		children: make(map[int]chan<- syscall.WaitStatus),
		born:     make(chan struct{}, 1),
		told:     make(chan struct{}, 1),
	}
	lines := bufio.NewReader(s.control)
	line, err := lines.ReadBytes('\n')
	if err != nil {
		fmt.Fprintln(stderr, "error: the agent ended before it gave the attempt")
		return 1
	}
	if err := json.Unmarshal(line, &s.job); err != nil {
		fmt.Fprintf(stderr, "error: understand the job: %v\n", err)
		return 1
	}
	return s.run(lines, stderr)
}

type supervisor struct {
	job     job
	control *os.File
	reports *os.File

	ctx   context.Context // its cause, a *verdict, says how the attempt ends
	end   context.CancelCauseFunc
	dying atomic.Bool // nothing may be started any more

	mu       sync.Mutex // held over a fork, so that no child exits unknown
	children map[int]chan<- syscall.WaitStatus
	born     chan struct{}

	spool  *Spool
	out    *os.File // the log's pipe: steps and headers write here, in order
	logged chan struct{}

	outbox sync.Mutex
	queue  []report
	chunks uint64 // written, and not yet told
	told   chan struct{}
	closed bool
}

// verdict is a Result on its way through contexts.
type verdict struct{ Result }

func (v *verdict) Error() string { return string(v.Outcome) + ": " + v.Why }

func verdictf(o fleet.Outcome, format string, args ...any) *verdict {
	return &verdict{Result{Outcome: o, Why: fmt.Sprintf(format, args...)}}
}

// verdictOf returns why ctx ended.
func verdictOf(ctx context.Context) *verdict {
	var v *verdict
	if errors.As(context.Cause(ctx), &v) {
		return v
	}
	return verdictf(fleet.Broken, "%v", context.Cause(ctx))
}

func (s *supervisor) run(lines *bufio.Reader, stderr io.Writer) int {
	s.ctx, s.end = context.WithCancelCause(context.Background())
	defer s.end(nil)

	if !s.job.Namespace {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			fmt.Fprintf(stderr, "error: become subreaper: %v\n", err)
			return 1
		}
	}
	timer, err := newLease(s.job.Lease)
	if err != nil {
		fmt.Fprintf(stderr, "error: %v\n", err)
		return 1
	}
	go s.obey(lines, timer)
	go s.watchLease(timer)
	go s.watchSignals()
	go s.reap()
	sent := make(chan struct{})
	go func() { defer close(sent); s.send() }()

	began := wallNow()
	v := s.attempt(stderr)
	s.killAll()
	v.At = wallNow()
	s.closeLog(v, v.At.Sub(began), stderr)
	if err := writeFile(filepath.Join(s.job.Dir, resultFile), v.Result); err != nil {
		fmt.Fprintf(stderr, "error: %v\n", err)
	}
	s.tell(report{End: &v.Result}, true)
	select {
	case <-sent:
	case <-time.After(lastWords):
	}
	return 0
}

// attempt runs the phases and says how they ended.
func (s *supervisor) attempt(stderr io.Writer) *verdict {
	if v := s.setup(stderr); v != nil {
		return v
	}
	t := s.job.Timeouts
	if s.job.Source.Repo != "" {
		s.phase(fleet.PhaseCheckout)
		ctx, stop := bounded(s.ctx, t.Checkout, "checkout")
		v := s.checkout(ctx)
		stop()
		if v != nil {
			return v
		}
	}
	s.phase(fleet.PhaseSteps)
	ctx, stop := bounded(s.ctx, t.Steps, "the steps")
	defer stop()
	for i, step := range s.job.Steps {
		s.tell(report{Step: i + 1}, false)
		if v := s.step(ctx, i, step); v != nil {
			return v
		}
	}
	return verdictf(fleet.Passed, "")
}

func bounded(ctx context.Context, d fleet.Duration, what string) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, d.Std(), verdictf(fleet.TimedOut, "%s took longer than %s", what, d))
}

func (s *supervisor) phase(p fleet.Phase) { s.tell(report{Phase: p, At: wallNow()}, false) }

// setup makes the workspace and the log, and gives up what the task must not
// have.
func (s *supervisor) setup(stderr io.Writer) *verdict {
	if s.job.Namespace {
		// A /proc of its own shows the task its own processes, and no others.
		// Where it can't be mounted the namespace holds all the same.
		err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		if err == nil {
			err = unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
		}
		if err != nil {
			fmt.Fprintf(stderr, "warning: mount /proc: %v\n", err)
		}
	}
	if err := s.openLog(); err != nil {
		return verdictf(fleet.Broken, "%v", err)
	}
	unix.Umask(0o022)
	for _, name := range []string{workDir, homeDir, tmpDir} {
		dir := filepath.Join(s.job.Dir, name)
		err := os.Mkdir(dir, 0o700)
		if u := s.job.User; err == nil && u != nil {
			err = os.Lchown(dir, int(u.UID), int(u.GID))
		}
		if err != nil {
			return verdictf(fleet.Broken, "make workspace: %v", err)
		}
	}
	// Capabilities that a user namespace gave for the mounts above are not for
	// the task. Privileges by setuid programs aren't, either.
	_ = unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return verdictf(fleet.Broken, "give up new privileges: %v", err)
	}
	if s.ctx.Err() != nil {
		return verdictOf(s.ctx)
	}
	return nil
}

func (s *supervisor) step(ctx context.Context, i int, step fleet.Step) *verdict {
	name := fmt.Sprintf("step %d", i+1)
	if step.Name != "" {
		name = fmt.Sprintf("step %d %q", i+1, step.Name)
	}
	s.say("$ %s\n", strings.ReplaceAll(strings.TrimRight(step.Run, "\n"), "\n", "\n> "))
	if step.Timeout > 0 {
		var stop context.CancelFunc
		ctx, stop = bounded(ctx, step.Timeout, name)
		defer stop()
	}
	status, v := s.exec(ctx, program{
		argv: []string{s.job.Shell, "-e", "-c", step.Run},
		dir:  filepath.Join(s.job.Dir, workDir),
		env:  s.job.Env,
		out:  s.out,
		user: s.job.User,
	})
	switch {
	case v != nil:
		return v
	case status.Signaled():
		v = verdictf(fleet.Failed, "%s was ended by signal %d (%s)", name, status.Signal(), status.Signal())
		v.Exit = 128 + int(status.Signal())
		return v
	case status.ExitStatus() != 0:
		v = verdictf(fleet.Failed, "%s exited with code %d", name, status.ExitStatus())
		v.Exit = status.ExitStatus()
		return v
	}
	return nil
}

// program is what exec runs, in a session of its own.
type program struct {
	argv []string
	dir  string
	env  []string
	out  *os.File // standard output and standard error
	user *User    // nil: as the supervisor
}

// exec runs p until it exits. When ctx ends first, p's process group is asked
// to end, and everything is killed after the grace time; the verdict is then
// ctx's. What p leaves behind in the background lives on until the attempt
// ends.
func (s *supervisor) exec(ctx context.Context, p program) (syscall.WaitStatus, *verdict) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, verdictf(fleet.Broken, "start %s: %v", p.argv[0], err)
	}
	defer null.Close()
	attr := &syscall.ProcAttr{
		Dir:   p.dir,
		Env:   p.env,
		Files: []uintptr{null.Fd(), p.out.Fd(), p.out.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL},
	}
	if u := p.user; u != nil {
		attr.Sys.Credential = &syscall.Credential{Uid: u.UID, Gid: u.GID}
	}
	if ctx.Err() != nil {
		return 0, verdictOf(ctx)
	}
	done := make(chan syscall.WaitStatus, 1)
	s.mu.Lock()
	pid, err := syscall.ForkExec(p.argv[0], p.argv, attr)
	if err == nil {
		s.children[pid] = done
	}
	s.mu.Unlock()
	if err != nil {
		return 0, verdictf(fleet.Broken, "start %s in %s: %v", p.argv[0], p.dir, err)
	}
	select {
	case s.born <- struct{}{}:
	default:
	}
	// killAll may have looked just before the fork.
	if s.dying.Load() {
		_ = unix.Kill(-pid, unix.SIGKILL)
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	select {
	case status := <-done:
		if ctx.Err() != nil && s.dying.Load() {
			return 0, verdictOf(ctx)
		}
		return status, nil
	case <-ctx.Done():
	}
	_ = unix.Kill(-pid, unix.SIGTERM)
	grace := time.After(s.job.Grace)
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for {
		select {
		case <-grace:
			return 0, verdictOf(ctx)
		case <-look.C:
			// The shell may be gone before what it started has tidied up.
			if unix.Kill(-pid, 0) == unix.ESRCH || s.dying.Load() {
				return 0, verdictOf(ctx)
			}
		}
	}
}

// reap collects every child that exits, those too that lost their parents.
func (s *supervisor) reap() {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch err {
		case nil:
			s.mu.Lock()
			done := s.children[pid]
			delete(s.children, pid)
			s.mu.Unlock()
			if done != nil {
				done <- status
			}
		case syscall.ECHILD:
			<-s.born
		}
	}
}

// killAll ends every process of the attempt but the supervisor, and returns
// when they are gone.
func (s *supervisor) killAll() {
	s.dying.Store(true)
	if s.job.Namespace && os.Getpid() == 1 {
		killNamespace()
		return
	}
	killDescendants()
}

// die ends the attempt at once: nobody may be left to see to it that no other
// runs beside it.
func (s *supervisor) die(why string) {
	s.dying.Store(true)
	s.end(verdictf(fleet.Lost, "%s", why))
	s.killAll()
	// The rest is courtesy, and must not keep the process alive.
	time.AfterFunc(lastWords, func() { os.Exit(1) })
}

// obey reads the agent's commands until the agent is no more.
func (s *supervisor) obey(lines *bufio.Reader, timer *leaseTimer) {
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			s.die("the agent ended")
			return
		}
		var c command
		if json.Unmarshal(line, &c) != nil {
			continue // from a newer agent
		}
		if c.Extend != 0 {
			if err := timer.set(c.Extend); err != nil {
				s.die(err.Error())
				return
			}
		}
		if c.Cancel != "" {
			s.end(verdictf(fleet.Canceled, "%s", c.Cancel))
		}
	}
}

func (s *supervisor) watchLease(timer *leaseTimer) {
	err := timer.wait()
	if err != nil {
		s.die(err.Error())
		return
	}
	s.die("the host's lease ended")
}

func (s *supervisor) watchSignals() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	sig := <-c
	s.end(verdictf(fleet.Lost, "the supervisor was told to end (%s)", sig))
}

// leaseTimer fires at a moment on CLOCK_BOOTTIME, which a Go timer can't: the
// monotonic clock behind those stands still while the machine is suspended.
type leaseTimer struct {
	mu       sync.Mutex
	fd       int
	f        *os.File
	deadline int64
}

func newLease(deadline int64) (*leaseTimer, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make lease timer: %w", err)
	}
	t := &leaseTimer{fd: fd, f: os.NewFile(uintptr(fd), "lease")}
	return t, t.set(deadline)
}

func (t *leaseTimer) set(deadline int64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.deadline = deadline
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(max(1, deadline))} // zero would disarm
	if err := unix.TimerfdSettime(t.fd, unix.TFD_TIMER_ABSTIME, &spec, nil); err != nil {
		return fmt.Errorf("set lease timer: %w", err)
	}
	return nil
}

// wait returns nil when the deadline has passed.
func (t *leaseTimer) wait() error {
	var b [8]byte
	for {
		if _, err := t.f.Read(b[:]); err != nil {
			return fmt.Errorf("wait for lease timer: %w", err)
		}
		t.mu.Lock()
		over := Now() >= t.deadline
		t.mu.Unlock()
		if over {
			return nil
		}
	}
}

// openLog starts the one goroutine that writes the spool.
func (s *supervisor) openLog() error {
	spool, err := OpenSpool(filepath.Join(s.job.Dir, logFile))
	if err != nil {
		return err
	}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("make the log's pipe: %w", err)
	}
	// The end that the steps write to must stay blocking: programs don't
	// expect EAGAIN from their standard output.
	if err := unix.SetNonblock(p[0], true); err != nil {
		return fmt.Errorf("make the log's pipe: %w", err)
	}
	s.spool = spool
	s.out = os.NewFile(uintptr(p[1]), "output")
	s.logged = make(chan struct{})
	in := os.NewFile(uintptr(p[0]), "output")
	go func() {
		defer close(s.logged)
		defer in.Close()
		if err := s.copyLog(in); err != nil {
			s.end(verdictf(fleet.Broken, "the log cannot be written: %v", err))
		}
		// Nobody must block on a pipe that nobody reads.
		_ = in.SetReadDeadline(time.Time{})
		_, _ = io.Copy(io.Discard, in)
	}()
	return nil
}

// say writes a line of the supervisor's own into the log, in order with the
// output of the steps.
func (s *supervisor) say(format string, args ...any) { fmt.Fprintf(s.out, format, args...) }

// copyLog cuts what comes out of in into chunks, until every writer is gone or
// the log is as long as it may be.
func (s *supervisor) copyLog(in *os.File) error {
	var (
		buf   = make([]byte, flushBytes)
		n     int
		total int64
	)
	flush := func() error {
		if n == 0 {
			return nil
		}
		_, err := s.spool.Append(wallNow(), buf[:n], false)
		total += int64(n)
		n = 0
		s.tellChunks()
		return err
	}
	for {
		room := min(int64(len(buf)), s.job.MaxLog-total)
		if room <= 0 {
			line := fmt.Sprintf("\n# the log is cut here: it is longer than %d bytes\n", s.job.MaxLog)
			_, err := s.spool.Append(wallNow(), []byte(line), false)
			s.tellChunks()
			return err
		}
		if n == 0 {
			_ = in.SetReadDeadline(time.Time{})
		}
		m, err := in.Read(buf[n:room])
		if n == 0 {
			_ = in.SetReadDeadline(time.Now().Add(flushAfter))
		}
		n += m
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded), int64(n) == room:
			err = flush()
		case err == io.EOF:
			return flush()
		}
		if err != nil {
			return err
		}
	}
}

// closeLog writes the last line, once all that wrote before it is dead.
func (s *supervisor) closeLog(v *verdict, took fleet.Duration, stderr io.Writer) {
	if s.spool == nil {
		return
	}
	s.out.Close()
	select {
	case <-s.logged:
	case <-time.After(lastWords):
		fmt.Fprintln(stderr, "warning: the log's pipe is still held open")
		return
	}
	line := closing(v.Result)
	if v.Outcome == fleet.Passed {
		line = fmt.Sprintf("# passed in %s\n", took)
	}
	if err := s.spool.End(v.At, line); err != nil {
		fmt.Fprintf(stderr, "error: %v\n", err)
	}
	s.tellChunks()
}

// tell queues r for the agent. It never blocks: a stopped agent must not hold
// up the attempt. last says that nothing follows.
func (s *supervisor) tell(r report, last bool) {
	s.outbox.Lock()
	s.queue = append(s.queue, r)
	s.closed = s.closed || last
	s.outbox.Unlock()
	s.wake()
}

func (s *supervisor) tellChunks() {
	last, ok := s.spool.Last()
	if !ok {
		return
	}
	s.outbox.Lock()
	s.chunks = last + 1
	s.outbox.Unlock()
	s.wake()
}

func (s *supervisor) wake() {
	select {
	case s.told <- struct{}{}:
	default:
	}
}

// send writes the queued reports until the last one is out or the agent gone.
func (s *supervisor) send() {
	enc := json.NewEncoder(s.reports)
	for range s.told {
		s.outbox.Lock()
		queue, chunks, closed := s.queue, s.chunks, s.closed
		s.queue, s.chunks = nil, 0
		s.outbox.Unlock()
		if chunks > 0 {
			queue = append([]report{{Chunks: chunks}}, queue...)
		}
		for _, r := range queue {
			if enc.Encode(r) != nil {
				return
			}
		}
		if closed {
			return
		}
	}
}
