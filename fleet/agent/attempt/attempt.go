// Package attempt runs one attempt at a task on a host: the workspace, the
// checkout, the steps, the log, and above all the end of it.
//
// The problem. An attempt must never outlive the agent's right to run it (P2):
// not when the agent is killed or stopped, not when its supervisor is, not when
// the task tries to get away with a double fork. And every phase must end (P10).
//
// The way chosen. Each attempt has a supervisor, a process of the same binary,
// that is pid 1 of a PID namespace: the kernel itself then kills the whole tree
// with it, however it dies. It reads a pipe whose other end the agent alone
// holds, and a timer on CLOCK_BOOTTIME set to the end of the host's lease; when
// the pipe closes or the timer fires the tree is killed at once. The agent
// watches the supervisor in turn: a phase that overruns its timeout although
// the supervisor should have ended it costs the supervisor its life. Where PID
// namespaces are not allowed the supervisor is a subreaper, and kills what is
// below it until nothing is; only its own death by kill -9 leaves processes
// behind there, which the agent, or the next one in Reap, finds by a mark in
// their environment. That is weaker: a task that sheds the mark escapes.
//
// The ways not taken. Cgroups would close that gap, but need a delegated tree
// that few hosts have ready, and hosts that do also allow namespaces. A parent
// death signal alone does not reach grandchildren. The supervisor, and not the
// agent, writes the log: so the last output before a crash is on the disk.
//
// What it does not do: talk to the control plane, or hold the lease. The
// workspaces of two attempts on one host belong to the same user.
package attempt

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"footplate/fleet"
)

// User is whom the task runs as, without supplementary groups.
type User struct {
	UID uint32 `json:"uid"`
	GID uint32 `json:"gid"`
}

// Config is what all attempts on a host have in common.
type Config struct {
	// Dir holds a directory for each attempt. Absolute; TaskUser must be able
	// to pass through its parents.
	Dir string
	// TaskUser runs the steps; nil for the agent's own user, which must then
	// have nothing to hide. Only root can choose one.
	TaskUser *User
	// Deadline returns the BOOTTIME in ns at which the host's lease now ends.
	Deadline func() int64
	Log      *slog.Logger

	Exe   string        // of footplate; default: this program
	Args  []string      // that make Exe call Supervise; default "supervise"
	Git   string        // path; default: git on the agent's own PATH
	Grace time.Duration // between SIGTERM and SIGKILL; default 10 s
	// MaxLog bounds the bytes of a log; default 64 MiB.
	MaxLog int64
	// NoNamespace does without a PID namespace also where one is allowed.
	NoNamespace bool
}

const (
	defaultGrace  = 10 * time.Second
	defaultMaxLog = 64 << 20
	// overrun is how much longer than it should a supervisor may take to end
	// a phase or an attempt before the agent kills it.
	overrun = 5 * time.Second
)

// Order says what to run.
type Order struct {
	ID    fleet.AttemptID
	Build fleet.BuildID
	Task  int // index in Spec.Tasks
	N     int // 1 for the first try at the task
	Spec  *fleet.BuildSpec
	Env   []fleet.EnvVar // beside the spec's, which goes before it
}

// PhaseChange is one step of an attempt through its phases.
type PhaseChange struct {
	Phase fleet.Phase `json:"phase"`
	At    fleet.Time  `json:"at"`
}

// State is what is known of an attempt at a moment.
type State struct {
	Phase   fleet.Phase   // PhaseSetup at first, PhaseEnded at last
	PhaseAt fleet.Time    // wall clock of the host
	Phases  []PhaseChange // all so far, the current one included
	Step    int           // the step that runs or ran last, from 1
	Chunks  uint64        // of the log that are in the spool
	// Dead: no process of the attempt is left, and its log is whole. The
	// outcome is final, although it is given only with PhaseEnded.
	Dead bool

	// With PhaseEnded. Lost: it was killed because the host may not run it any
	// more, or something killed its supervisor; it deserves another try.
	Outcome fleet.Outcome
	Exit    int
	Why     string
	EndedAt fleet.Time
}

// Run is one attempt, from Start to its end.
type Run struct {
	id         fleet.AttemptID
	dir        string
	log        *slog.Logger
	timeouts   fleet.Timeouts
	grace      time.Duration
	namespaced bool
	cmd        *exec.Cmd
	control    *os.File
	spool      *Spool

	mu     sync.Mutex
	state  State
	forced *verdict    // why the agent killed the supervisor, if it did
	limit  *time.Timer // the backstop of the phase
	end    *Result     // as the supervisor told
	next   command     // to be sent

	ordered  chan struct{} // next is not empty
	changed  chan struct{}
	hurry    chan struct{} // closed when the upload must not be waited for
	handed   chan struct{} // closed when the log was handed over
	cleared  chan struct{} // closed when the workspace is empty
	done     chan struct{}
	onceHand sync.Once
	onceFast sync.Once
}

// Start begins the attempt and returns while it is in PhaseSetup. When ctx ends
// it is killed. An error means that nothing runs: conflict when there is an
// attempt of this id on the host already, unavailable when the lease is over.
func Start(ctx context.Context, c Config, o Order) (*Run, error) {
	if err := c.fill(); err != nil {
		return nil, err
	}
	if o.Spec == nil || o.Task < 0 || o.Task >= len(o.Spec.Tasks) {
		return nil, fleet.Invalidf("attempt %s has no task %d", o.ID, o.Task)
	}
	lease := c.Deadline()
	if Now() >= lease {
		return nil, fleet.Unavailablef("attempt %s cannot start: the host's lease is over", o.ID)
	}
	if err := os.MkdirAll(c.Dir, 0o711); err != nil {
		return nil, fmt.Errorf("make directory of attempts: %w", err)
	}
	r := &Run{
		id:       o.ID,
		dir:      Dir(c.Dir, o.ID),
		log:      c.Log.With("attempt", o.ID, "build", o.Build),
		timeouts: o.Spec.Timeouts.WithDefaults(),
		grace:    c.Grace,
		ordered:  make(chan struct{}, 1),
		changed:  make(chan struct{}, 1),
		hurry:    make(chan struct{}),
		handed:   make(chan struct{}),
		cleared:  make(chan struct{}),
		done:     make(chan struct{}),
	}
	if err := os.Mkdir(r.dir, 0o711); errors.Is(err, os.ErrExist) {
		return nil, fleet.Conflictf("attempt %s is on this host already", o.ID)
	} else if err != nil {
		return nil, fmt.Errorf("make directory of attempt %s: %w", o.ID, err)
	}
	reports, err := r.launch(c)
	if err != nil {
		if err := os.RemoveAll(r.dir); err != nil {
			r.log.Warn("remove directory of attempt", "err", err)
		}
		return nil, fmt.Errorf("start supervisor of attempt %s: %w", o.ID, err)
	}
	r.enter(fleet.PhaseSetup, wallNow())
	go r.give(job{
		Attempt: o.ID, Dir: r.dir, Namespace: r.namespaced, Lease: lease,
		Source: o.Spec.Source, Steps: o.Spec.Tasks[o.Task].Steps,
		Timeouts: r.timeouts, Grace: c.Grace, Env: environment(o, r.dir),
		User: c.TaskUser, Git: c.Git, Shell: "/bin/sh", MaxLog: c.MaxLog,
	})
	stop := context.AfterFunc(ctx, func() { r.Kill("the agent ends") })
	go func() {
		defer stop()
		r.watch(reports)
	}()
	return r, nil
}

func (c *Config) fill() error {
	switch {
	case !filepath.IsAbs(c.Dir):
		return fleet.Invalidf("directory of attempts %q is not an absolute path", c.Dir)
	case c.Deadline == nil:
		return fleet.Invalidf("attempts need a lease")
	case c.TaskUser != nil && os.Geteuid() != 0:
		return fleet.Invalidf("only root can run tasks as another user").WithHint("leave the task user out")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Exe == "" {
		c.Exe = "/proc/self/exe" // also when the file was replaced meanwhile
	}
	if c.Args == nil {
		c.Args = []string{"supervise"}
	}
	if c.Git == "" {
		c.Git = "git"
	}
	if !filepath.IsAbs(c.Git) {
		// Without a git the checkout fails, and says so.
		if git, err := exec.LookPath(c.Git); err == nil {
			c.Git = git
		}
	}
	if c.Grace <= 0 {
		c.Grace = defaultGrace
	}
	if c.MaxLog <= 0 {
		c.MaxLog = defaultMaxLog
	}
	return nil
}

// launch starts the supervisor, in a PID namespace where that is allowed, and
// writes down which process it is before it has anything to do.
func (r *Run) launch(c Config) (reports *os.File, err error) {
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	spool, err := OpenSpool(filepath.Join(r.dir, logFile))
	if err != nil {
		return nil, err
	}
	spool.Close()
	if r.spool, err = ViewSpool(filepath.Join(r.dir, logFile)); err != nil {
		return nil, err
	}
	stderr, err := os.OpenFile(filepath.Join(r.dir, errFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		r.spool.Close()
		return nil, err
	}
	defer stderr.Close()
	controlR, controlW, err := os.Pipe()
	if err != nil {
		r.spool.Close()
		return nil, err
	}
	defer controlR.Close()
	reportR, reportW, err := os.Pipe()
	if err != nil {
		controlW.Close()
		r.spool.Close()
		return nil, err
	}
	defer reportW.Close()

	start := func(attr *syscall.SysProcAttr) error {
		r.cmd = exec.Command(c.Exe, append(c.Args[:len(c.Args):len(c.Args)], r.id.String())...)
		r.cmd.Dir = r.dir
		r.cmd.Env = []string{"PATH=" + defaultPath, workspaceVar + "=" + filepath.Join(r.dir, workDir)}
		r.cmd.Stderr = stderr
		r.cmd.ExtraFiles = []*os.File{controlR, reportW} // controlFD, reportFD
		r.cmd.SysProcAttr = attr
		return r.cmd.Start()
	}
	err = errors.ErrUnsupported
	if !c.NoNamespace {
		err = start(namespace())
		r.namespaced = err == nil
		if err != nil {
			r.log.Info("no PID namespace; going on with a subreaper", "err", err)
		}
	}
	if err != nil {
		// A session of its own keeps a terminal's signals away.
		err = start(&syscall.SysProcAttr{Setsid: true})
	}
	if err == nil {
		err = r.identify(boot)
		if err != nil {
			_ = r.cmd.Process.Kill()
			_ = r.cmd.Wait()
		}
	}
	if err != nil {
		controlW.Close()
		reportR.Close()
		r.spool.Close()
		return nil, err
	}
	r.control = controlW
	return reportR, nil
}

// namespace asks for a PID namespace, and a mount namespace for the /proc that
// goes with it. Who isn't root needs a user namespace for that, in which the
// supervisor stays who it is and may mount.
func namespace() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}
	if uid, gid := os.Geteuid(), os.Getegid(); uid != 0 {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: gid, HostID: gid, Size: 1}}
		attr.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN}
	}
	return attr
}

func (r *Run) identify(boot string) error {
	pid := r.cmd.Process.Pid
	stat, err := readStat(pid)
	if err != nil {
		return fmt.Errorf("identify supervisor: %w", err)
	}
	return writeFile(filepath.Join(r.dir, identityFile),
		identity{Attempt: r.id.String(), PID: pid, Start: stat.start, Boot: boot, Namespace: r.namespaced})
}

// give sends the job, and then the newest commands as they come. It alone
// writes to the pipe, so that nobody else waits for a supervisor that doesn't
// read.
func (r *Run) give(j job) {
	enc := json.NewEncoder(r.control)
	err := enc.Encode(j)
	for err == nil {
		select {
		case <-r.done:
			return
		case <-r.ordered:
		}
		r.mu.Lock()
		c := r.next
		r.next = command{}
		r.mu.Unlock()
		err = enc.Encode(c)
	}
	if !errors.Is(err, os.ErrClosed) && !errors.Is(err, unix.EPIPE) {
		r.log.Warn("write to the supervisor", "err", err)
	}
}

// order changes the next command.
func (r *Run) order(change func(*command)) {
	r.mu.Lock()
	change(&r.next)
	r.mu.Unlock()
	select {
	case r.ordered <- struct{}{}:
	default:
	}
}

// ID returns the attempt's number.
func (r *Run) ID() fleet.AttemptID { return r.id }

// Namespaced reports whether the attempt has a PID namespace, so that nothing
// of it can outlive its supervisor.
func (r *Run) Namespaced() bool { return r.namespaced }

// Extend says that the host's lease now ends at deadline, a BOOTTIME in ns.
func (r *Run) Extend(deadline int64) {
	r.order(func(c *command) { c.Extend = deadline })
}

// Cancel asks the attempt to end, in whatever phase it is: what runs gets
// SIGTERM, and SIGKILL after the grace time. An attempt whose steps have ended
// keeps its outcome. It returns at once.
func (r *Run) Cancel(why string) {
	if why == "" {
		why = "canceled"
	}
	r.hasten()
	r.order(func(c *command) { c.Cancel = why })
	time.AfterFunc(r.grace+overrun, func() { r.force(verdictf(fleet.Canceled, "%s", why)) })
}

// Kill ends the attempt at once, with the outcome lost. It returns at once;
// Done tells when the tree is dead.
func (r *Run) Kill(why string) {
	r.hasten()
	r.force(verdictf(fleet.Lost, "%s", why))
}

func (r *Run) hasten() { r.onceFast.Do(func() { close(r.hurry) }) }

// Uploaded says that all of the log, its final chunk included, was handed over.
func (r *Run) Uploaded() { r.onceHand.Do(func() { close(r.handed) }) }

// State returns what is known now.
func (r *Run) State() State {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.state
	s.Phases = append([]PhaseChange(nil), s.Phases...)
	return s
}

// Changed receives after the state changed, chunks of the log included; several
// changes may make one signal.
func (r *Run) Changed() <-chan struct{} { return r.changed }

// Log returns the log as it grows, for reading. It stays open until Forget.
func (r *Run) Log() *Spool { return r.spool }

// Done is closed when the attempt is in PhaseEnded.
func (r *Run) Done() <-chan struct{} { return r.done }

// Forget waits for the end and removes what is left of the attempt, its log
// included.
func (r *Run) Forget() error {
	<-r.done
	<-r.cleared
	r.spool.Close()
	return os.RemoveAll(r.dir)
}

func (r *Run) wake() {
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// force kills the supervisor because of v, unless it is dead.
func (r *Run) force(v *verdict) {
	r.mu.Lock()
	if r.state.Dead || r.forced != nil {
		r.mu.Unlock()
		return
	}
	r.forced = v
	r.mu.Unlock()
	if r.namespaced {
		_ = r.cmd.Process.Kill()
		return
	}
	// A subreaper must kill its tree itself. Only one that doesn't is killed.
	r.control.Close()
	_ = r.cmd.Process.Signal(unix.SIGCONT)
	time.AfterFunc(lastWords+time.Second, func() { _ = r.cmd.Process.Kill() })
}

// enter moves to a phase and sets the backstop of its timeout.
func (r *Run) enter(p fleet.Phase, at fleet.Time) {
	r.mu.Lock()
	r.state.Phase, r.state.PhaseAt = p, at
	r.state.Phases = append(r.state.Phases, PhaseChange{p, at})
	if r.limit != nil {
		r.limit.Stop()
		r.limit = nil
	}
	var most fleet.Duration
	slack := r.grace + overrun
	switch p {
	case fleet.PhaseSetup:
		// The supervisor can't bound this phase: it comes to be in it.
		most, slack = r.timeouts.Setup, 0
	case fleet.PhaseCheckout:
		most = r.timeouts.Checkout
	case fleet.PhaseSteps:
		most = r.timeouts.Steps
	}
	if most > 0 {
		v := verdictf(fleet.TimedOut, "%s took longer than %s", p, most)
		r.limit = time.AfterFunc(most.Std()+slack, func() { r.force(v) })
	}
	r.mu.Unlock()
	r.wake()
}

// watch follows the supervisor to its end and the attempt to its own.
func (r *Run) watch(reports *os.File) {
	read := make(chan struct{})
	go func() { defer close(read); r.listen(reports) }()
	err := r.cmd.Wait()
	<-read
	reports.Close()
	r.control.Close()

	r.mu.Lock()
	if r.limit != nil {
		r.limit.Stop()
	}
	end, forced := r.end, r.forced
	r.mu.Unlock()
	if !r.namespaced {
		if err := sweep(r.dir, time.Now().Add(time.Minute)); err != nil {
			r.log.Error("processes of an attempt outlive it", "err", err)
		}
	}
	result := Result{Outcome: fleet.Lost, At: wallNow()}
	switch {
	case end != nil:
		result = *end
	case forced != nil:
		result.Outcome, result.Why = forced.Outcome, forced.Why
	default:
		result.Why = r.obituary(err)
	}
	result, err = conclude(r.dir, result)
	if err != nil {
		r.log.Error("end the log of an attempt", "err", err)
	}
	go func() {
		defer close(r.cleared)
		if err := clearDir(r.dir); err != nil {
			r.log.Warn("clear workspace of attempt", "err", err)
		}
	}()

	last, ok := r.spool.Last()
	r.mu.Lock()
	r.state.Dead = true
	if ok {
		r.state.Chunks = last + 1
	}
	r.mu.Unlock()
	r.enter(fleet.PhaseUpload, wallNow())
	// Neither the timeout nor a cancellation of this phase changes the
	// outcome: the work is done, and the log stays in the spool.
	if result.Outcome != fleet.Lost {
		limit := time.NewTimer(r.timeouts.Upload.Std())
		select {
		case <-r.handed:
		case <-r.hurry:
		case <-limit.C:
			r.log.Warn("the log was not handed over in time", "timeout", r.timeouts.Upload)
		}
		limit.Stop()
	}
	r.mu.Lock()
	r.state.Outcome, r.state.Exit, r.state.Why = result.Outcome, result.Exit, result.Why
	r.state.EndedAt = wallNow()
	r.mu.Unlock()
	r.enter(fleet.PhaseEnded, wallNow())
	close(r.done)
}

// listen takes the supervisor's reports until it is no more.
func (r *Run) listen(reports *os.File) {
	lines := bufio.NewReader(reports)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		var m report
		if json.Unmarshal(line, &m) != nil {
			continue
		}
		if m.Phase != "" {
			r.enter(m.Phase, m.At)
		}
		r.mu.Lock()
		if m.Step > 0 {
			r.state.Step = m.Step
		}
		r.state.Chunks = max(r.state.Chunks, m.Chunks)
		if m.End != nil {
			r.end = m.End
		}
		r.mu.Unlock()
		r.wake()
	}
}

// obituary says why the supervisor died without a word.
func (r *Run) obituary(err error) string {
	how := "the supervisor ended early"
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		how = "the supervisor died: " + exit.ProcessState.String()
	}
	b, _ := os.ReadFile(filepath.Join(r.dir, errFile))
	first, _, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
	if first != "" {
		how += ": " + first
	}
	return how
}
