// Package local is the provider whose machines are processes of this machine:
// each an agent, in a directory of its own below one that all control-plane
// nodes on this machine share.
//
// # None lost, none double
//
// A launch owns the directory <Dir>/<launch>. Whoever acts on it holds a lock
// on a file in it, which the kernel releases when he dies. The process is
// started behind a gate: a shell that reads one line from a pipe of which the
// launcher alone has the other end, and becomes the agent only then. In between
// the launcher writes down, on the disk, which process it is. So a launcher that
// dies before the record takes the process with it, and the next call may start
// anew; after the record nothing is ever started again for this launch.
// What is ended or forgotten leaves a tombstone: the call of a deposed leader,
// however late, finds it.
//
// # Certainly dead
//
// As root each agent is pid 1 of a PID namespace: when it is gone the kernel has
// killed everything in it. (The machine's own /proc is mounted by the agent, who
// sees that it is pid 1.) Elsewhere the agent is a plain process, and its
// supervisors may outlive it for a moment; before such a machine is called gone
// its attempts are reaped as the next incarnation of an agent would, and where
// that fails it stays "running", with a note, until its lease has run out and
// the control plane decides without us. What a task could hide from
// attempt.Reap could hide here.
//
// A machine does not come back: its boot id is made with it, and a dead agent is
// a dead machine. Machines outlive the node that launched them. They are known
// by pid, start time and the kernel's boot id, so neither a reused pid nor a
// reboot is taken for one of them.
package local

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"footplate/fleet"
	"footplate/fleet/agent/attempt"
	"footplate/fleet/fault"
	"footplate/fleet/provider"

	"golang.org/x/sys/unix"
)

// Config says where the machines live and what they run.
type Config struct {
	// Dir holds a directory for each machine, shared by all nodes. Absolute;
	// the user of the tasks must be able to pass through its parents.
	Dir string
	// Exe is the footplate binary; this program when empty. Args are what makes
	// an agent of it, before its flags; "agent" when nil.
	Exe  string
	Args []string
	// Extra are more flags of the agents.
	Extra []string
	// Grace is how long a machine that is ended has to go by itself; 2 s when 0.
	Grace time.Duration
	// NoNamespace makes plain processes where namespaces are allowed too.
	NoNamespace bool
	Log         *slog.Logger
}

// What lies in the directory of a machine.
const (
	lockFile    = "lock"
	machineFile = "machine.json"
	tokenFile   = "token"
	logFile     = "agent.log"
	agentDir    = "agent" // of the agent's data
	attemptsDir = "attempts"
)

// defaultGrace lets an agent kill its attempts and report them.
const defaultGrace = 2 * time.Second

// gate waits for the launcher's word and becomes the machine. Without the word
// the launcher is dead, and nothing may come of it.
const gate = `read -r word <&3 && [ "$word" = go ] || exit 1; exec 3<&-; exec "$@"`

// Provider launches agents as processes of this machine.
type Provider struct {
	cfg  Config
	boot string // the kernel's
}

var _ provider.Provider = (*Provider)(nil)

// New checks c and makes its directory. It starts nothing.
func New(c Config) (*Provider, error) {
	if !filepath.IsAbs(c.Dir) {
		return nil, fleet.Invalidf("directory of the local provider %q is not an absolute path", c.Dir)
	}
	if c.Exe == "" {
		exe, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find own program: %w", err)
		}
		c.Exe = exe
	}
	if c.Args == nil {
		c.Args = []string{"agent"}
	}
	if c.Grace <= 0 {
		c.Grace = defaultGrace
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(c.Dir, 0o711); err != nil {
		return nil, fmt.Errorf("make directory of machines: %w", err)
	}
	boot, err := kernelBoot()
	if err != nil {
		return nil, err
	}
	return &Provider{cfg: c, boot: boot}, nil
}

func kernelBoot() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// Name returns "local".
func (p *Provider) Name() string { return "local" }

// machine is what is written down of one, before it is let go.
type machine struct {
	Host      fleet.HostID `json:"host"`
	Boot      fleet.BootID `json:"boot"` // the machine's own
	PID       int          `json:"pid"`
	Start     uint64       `json:"start"`       // clock ticks after boot, from /proc/<pid>/stat
	Kernel    string       `json:"kernel_boot"` // the kernel's boot id
	Namespace bool         `json:"namespace,omitempty"`
	Ended     bool         `json:"ended,omitempty"` // it was asked to end
	Gone      string       `json:"gone,omitempty"`  // it is certainly dead, and this is why
}

func (p *Provider) dir(id fleet.LaunchID) string { return filepath.Join(p.cfg.Dir, id.String()) }

// tombstone is the file that stays of a launch that was forgotten, or ended
// before it began.
func (p *Provider) tombstone(id fleet.LaunchID) string {
	return filepath.Join(p.cfg.Dir, id.String()+".ended")
}

// Launch starts an agent.
func (p *Provider) Launch(ctx context.Context, r provider.Request) (provider.Instance, error) {
	in := provider.Instance{Launch: r.Launch, Host: r.Host, State: provider.Gone}
	if r.Launch == 0 {
		return in, provider.Permanent(fleet.Invalidf("a launch needs a number"))
	}
	if err := fleet.CheckName("host", string(r.Host)); err != nil {
		return in, provider.Permanent(err)
	}
	if err := ctx.Err(); err != nil {
		return in, fmt.Errorf("launch host %s: %w", r.Host, err)
	}
	unlock, err := p.claim(ctx, r.Launch)
	if err != nil {
		return in, fmt.Errorf("launch host %s: %w", r.Host, err)
	}
	defer unlock()
	if _, err := os.Stat(p.tombstone(r.Launch)); err == nil {
		in.Note = "it was ended before"
		return in, p.remove(r.Launch)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return in, fmt.Errorf("launch host %s: %w", r.Host, err)
	}
	m, ok, err := p.read(r.Launch)
	if err != nil {
		return in, fmt.Errorf("launch host %s: %w", r.Host, err)
	}
	if !ok {
		fault.Here(fault.LaunchClaimed)
		if m, err = p.start(r); err != nil {
			return in, fmt.Errorf("launch host %s: %w", r.Host, err)
		}
	}
	return p.look(ctx, r.Launch, m), nil
}

// claim makes the directory of a launch, unless it is there, and locks it.
func (p *Provider) claim(ctx context.Context, id fleet.LaunchID) (unlock func(), err error) {
	for {
		if err := os.Mkdir(p.dir(id), 0o711); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		unlock, err := p.lock(ctx, id)
		if !errors.Is(err, fs.ErrNotExist) {
			return unlock, err
		}
		// It was removed in between.
	}
}

// start makes the process. The caller holds the lock, and there is no record.
func (p *Provider) start(r provider.Request) (machine, error) {
	if info, err := os.Stat(p.cfg.Exe); err != nil {
		return machine{}, provider.Permanent(fmt.Errorf("the agent's program: %w", err))
	} else if info.IsDir() || info.Mode()&0o111 == 0 {
		return machine{}, provider.Permanent(fmt.Errorf("the agent's program %s cannot be run", p.cfg.Exe))
	}
	dir := p.dir(r.Launch)
	data := filepath.Join(dir, agentDir)
	if err := os.Mkdir(data, 0o711); err != nil && !errors.Is(err, fs.ErrExist) {
		return machine{}, err
	}
	token := filepath.Join(dir, tokenFile)
	if err := os.WriteFile(token, []byte(r.Join.Token+"\n"), 0o600); err != nil {
		return machine{}, err
	}
	out, err := os.OpenFile(filepath.Join(dir, logFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return machine{}, err
	}
	defer out.Close()
	held, open, err := os.Pipe()
	if err != nil {
		return machine{}, err
	}
	defer held.Close()
	defer open.Close()

	boot := newBoot()
	args := []string{"-c", gate, "machine-" + r.Launch.String(), p.cfg.Exe}
	args = append(args, p.cfg.Args...)
	args = append(args,
		"--host", string(r.Host), "--pool", string(r.Pool), "--launch", r.Launch.String(), "--slots", strconv.Itoa(r.Slots),
		"--addrs", strings.Join(r.Join.Addrs, ","), "--cluster", r.Join.Cluster, "--token-file", token,
		"--boot", string(boot), "--dir", data)
	args = append(args, p.cfg.Extra...)
	try := func(flags uintptr) (*exec.Cmd, error) {
		cmd := exec.Command("/bin/sh", args...)
		cmd.Dir = dir
		cmd.Env = environment()
		cmd.Stdout, cmd.Stderr = out, out
		cmd.ExtraFiles = []*os.File{held}
		// A session of its own: neither a terminal nor the end of this node
		// reaches it.
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: flags}
		return cmd, cmd.Start()
	}
	m := machine{Host: r.Host, Boot: boot, Kernel: p.boot}
	var cmd *exec.Cmd
	err = errors.ErrUnsupported
	if !p.cfg.NoNamespace && os.Geteuid() == 0 {
		cmd, err = try(unix.CLONE_NEWPID | unix.CLONE_NEWNS)
		m.Namespace = err == nil
		if err != nil {
			p.cfg.Log.Info("no PID namespace for a machine; going on with a plain process", "host", r.Host, "err", err)
		}
	}
	if err != nil {
		cmd, err = try(0)
	}
	if err != nil {
		return machine{}, fmt.Errorf("start the agent: %w", err)
	}
	// Whoever is the parent collects it; should this process die first, init does.
	go func() { _ = cmd.Wait() }()
	fault.Here(fault.LaunchStarted)

	m.PID = cmd.Process.Pid
	m.Start, err = startTime(m.PID)
	if err == nil {
		err = p.write(r.Launch, m)
	}
	if err != nil {
		// The gate closes with the pipe: no machine comes of it.
		return machine{}, err
	}
	fault.Here(fault.LaunchRecorded)
	if _, err := open.WriteString("go\n"); err != nil {
		p.cfg.Log.Warn("a machine died behind its gate", "host", r.Host, "err", err)
	}
	fault.Here(fault.LaunchReleased)
	return m, nil
}

// environment is what an agent is given: nothing secret passes through.
func environment() []string {
	var env []string
	for _, name := range []string{"PATH", "HOME", "LANG", "TMPDIR"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

func newBoot() fleet.BootID {
	var b [16]byte
	rand.Read(b[:]) // never fails
	return fleet.BootID(hex.EncodeToString(b[:]))
}

// List looks at every machine.
func (p *Provider) List(ctx context.Context) ([]provider.Instance, error) {
	ids, err := p.launches()
	if err != nil {
		return nil, err
	}
	var all []provider.Instance
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("list machines: %w", err)
		}
		m, ok, err := p.read(id)
		if err != nil {
			return nil, fmt.Errorf("list machines: %w", err)
		}
		// What was claimed and not recorded is not a machine yet.
		if ok {
			all = append(all, p.look(ctx, id, m))
		}
	}
	return all, nil
}

func (p *Provider) launches() ([]fleet.LaunchID, error) {
	entries, err := os.ReadDir(p.cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("list machines: %w", err)
	}
	var ids []fleet.LaunchID
	for _, e := range entries {
		if n, err := strconv.ParseUint(e.Name(), 10, 64); err == nil && e.IsDir() {
			ids = append(ids, fleet.LaunchID(n))
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// look says what has become of m.
func (p *Provider) look(ctx context.Context, id fleet.LaunchID, m machine) provider.Instance {
	in := provider.Instance{Launch: id, Host: m.Host, State: provider.Running}
	why, dead := p.dead(m)
	if !dead {
		return in
	}
	if !m.Namespace && m.Gone == "" && m.Kernel == p.boot {
		// Its supervisors may still be at it.
		if err := p.reap(ctx, id); err != nil {
			in.Note = fmt.Sprintf("its agent is no more, but its tasks may run: %v", err)
			return in
		}
	}
	in.State, in.Note = provider.Gone, why
	return in
}

// dead reports whether the process of m, and for a namespace all that was in
// it, is no more.
func (p *Provider) dead(m machine) (why string, dead bool) {
	switch {
	case m.Gone != "":
		return m.Gone, true
	case m.Kernel != p.boot:
		return "the machine under it was rebooted", true
	}
	fd, err := m.open()
	if err != nil {
		return "", false // not known, so it may live
	}
	if fd < 0 {
		return m.epitaph(), true
	}
	defer unix.Close(fd)
	if exited(fd, 0) {
		return m.epitaph(), true
	}
	return "", false
}

func (m machine) epitaph() string {
	if m.Ended {
		return "it was ended"
	}
	return fmt.Sprintf("its process %d died", m.PID)
}

// reapWithin bounds the wait for the last processes of a plain machine within
// one call; the next one goes on.
const reapWithin = 2 * time.Second

// reap makes sure that nothing is left of the attempts of a plain machine whose
// agent is dead, and writes that down.
func (p *Provider) reap(ctx context.Context, id fleet.LaunchID) error {
	ctx, cancel := context.WithTimeout(ctx, reapWithin)
	defer cancel()
	unlock, err := p.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	m, ok, err := p.read(id)
	if err != nil || !ok || m.Gone != "" {
		return err
	}
	if _, err := attempt.Reap(ctx, filepath.Join(p.dir(id), agentDir, attemptsDir)); err != nil {
		return err
	}
	m.Gone = m.epitaph()
	return p.write(id, m)
}

// Terminate asks the agent to end, and kills it when it takes longer than the
// grace time.
func (p *Provider) Terminate(ctx context.Context, id fleet.LaunchID) error {
	if err := p.terminate(ctx, id, p.cfg.Grace); err != nil {
		return fmt.Errorf("end machine of launch %s: %w", id, err)
	}
	return nil
}

func (p *Provider) terminate(ctx context.Context, id fleet.LaunchID, grace time.Duration) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m, known, err := p.condemn(ctx, id)
	if err != nil || !known {
		return err
	}
	fd, err := m.open() // waits for nothing, so the lock is not needed any more
	if err != nil || fd < 0 {
		return err
	}
	defer unix.Close(fd)
	if grace > 0 {
		if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil && err != unix.ESRCH {
			return err
		}
		for until := time.Now().Add(grace); time.Now().Before(until) && ctx.Err() == nil; {
			if exited(fd, 20*time.Millisecond) {
				return nil
			}
		}
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
		return err
	}
	for !exited(fd, 20*time.Millisecond) {
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// condemn writes down that the machine shall end, so that nobody starts it.
func (p *Provider) condemn(ctx context.Context, id fleet.LaunchID) (m machine, known bool, err error) {
	if _, err := os.Stat(p.dir(id)); errors.Is(err, fs.ErrNotExist) {
		// A launch that is still on its way must find that it comes too late.
		return m, false, p.bury(id)
	}
	unlock, err := p.lock(ctx, id)
	if errors.Is(err, fs.ErrNotExist) {
		return m, false, p.bury(id)
	}
	if err != nil {
		return m, false, err
	}
	defer unlock()
	m, ok, err := p.read(id)
	if err != nil {
		return m, false, err
	}
	if !ok {
		if err := p.bury(id); err != nil {
			return m, false, err
		}
		return m, false, p.remove(id)
	}
	if m.Gone != "" || m.Kernel != p.boot {
		return m, false, nil
	}
	if !m.Ended {
		if _, dead := p.dead(m); dead {
			return m, true, nil
		}
		m.Ended = true
		err = p.write(id, m)
	}
	return m, true, err
}

func (p *Provider) bury(id fleet.LaunchID) error {
	return writeDurably(p.tombstone(id), nil)
}

// Forget removes the directory of a machine that is gone.
func (p *Provider) Forget(ctx context.Context, id fleet.LaunchID) error {
	err := p.forget(ctx, id)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget machine of launch %s: %w", id, err)
	}
	return nil
}

func (p *Provider) forget(ctx context.Context, id fleet.LaunchID) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m, ok, err := p.read(id)
	if err != nil || !ok {
		return err
	}
	if in := p.look(ctx, id, m); in.State != provider.Gone {
		return fleet.Conflictf("machine of host %s still runs", m.Host).WithHint("end it first")
	}
	unlock, err := p.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	// The tombstone first: at no moment is there neither.
	if err := p.bury(id); err != nil {
		return err
	}
	return p.remove(id)
}

// remove removes the directory of a launch. The caller holds its lock. It is
// renamed first: who waits for the lock would put the file back while the
// directory is emptied.
func (p *Provider) remove(id fleet.LaunchID) error {
	away := filepath.Join(p.cfg.Dir, fmt.Sprintf(".away-%s-%s", id, newBoot()))
	if err := os.Rename(p.dir(id), away); err != nil {
		return err
	}
	return os.RemoveAll(away)
}

// lock waits until this caller alone may act on the launch. It fails with
// fs.ErrNotExist when the directory is not there (any more).
func (p *Provider) lock(ctx context.Context, id fleet.LaunchID) (unlock func(), err error) {
	name := filepath.Join(p.dir(id), lockFile)
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for {
		f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			// Whoever held it may have removed the directory meanwhile, and
			// another may have been made: the lock must be the one that the next
			// caller will see.
			if same(f, name) {
				return func() { f.Close() }, nil
			}
		}
		f.Close()
		if err != nil && err != unix.EWOULDBLOCK && err != unix.EINTR {
			return nil, fmt.Errorf("lock machine: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for another call about the machine: %w", ctx.Err())
		case <-again.C:
		}
	}
}

func same(f *os.File, name string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(name)
	return err == nil && os.SameFile(a, b)
}

// read returns the record of a launch; ok is false when there is none.
func (p *Provider) read(id fleet.LaunchID) (m machine, ok bool, err error) {
	b, err := os.ReadFile(filepath.Join(p.dir(id), machineFile))
	if errors.Is(err, fs.ErrNotExist) {
		return m, false, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	if err != nil {
		return m, false, fmt.Errorf("read record of launch %s: %w", id, err)
	}
	return m, true, nil
}

func (p *Provider) write(id fleet.LaunchID, m machine) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return writeDurably(filepath.Join(p.dir(id), machineFile), append(b, '\n'))
}

// writeDurably replaces name by b, whole or not at all, on the disk.
func writeDurably(name string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// open returns a pidfd of the machine's process, -1 when it is no more.
func (m machine) open() (int, error) {
	fd, err := unix.PidfdOpen(m.PID, 0)
	if err == unix.ESRCH || err == unix.EINVAL {
		return -1, nil
	}
	if err != nil {
		return -1, fmt.Errorf("open process %d: %w", m.PID, err)
	}
	// Looked at after the pidfd was taken: a match means that it is of this
	// process.
	start, err := startTime(m.PID)
	switch {
	case err == nil && start == m.Start:
		return fd, nil
	case err == nil, errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ESRCH):
		unix.Close(fd)
		return -1, nil
	}
	// Not to know is not to know that it is dead.
	unix.Close(fd)
	return -1, err
}

// exited waits, for d at most, until the process of a pidfd has exited. For the
// init of a namespace that is after everything else in it has.
func exited(pidfd int, d time.Duration) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	n, _ := unix.Poll(fds, int(d/time.Millisecond))
	return n > 0
}

// startTime reads when a process started, in clock ticks after boot.
func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The command stands in parentheses and may hold any byte.
	s := string(b)
	f := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	if len(f) < 20 {
		return 0, fmt.Errorf("stat of process %d is not understood", pid)
	}
	return strconv.ParseUint(f[19], 10, 64)
}

// EndAll kills every machine below dir and returns when all are gone.
func EndAll(dir string) error {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	p, err := New(Config{Dir: dir})
	if err != nil {
		return err
	}
	ids, err := p.launches()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	errs := make([]error, len(ids))
	var all sync.WaitGroup
	for i, id := range ids {
		all.Go(func() {
			if err := p.terminate(ctx, id, 0); err != nil {
				errs[i] = fmt.Errorf("end machine of launch %s: %w", id, err)
				return
			}
			m, ok, err := p.read(id)
			if err != nil || !ok {
				errs[i] = err
				return
			}
			for in := p.look(ctx, id, m); in.State != provider.Gone; in = p.look(ctx, id, m) {
				if ctx.Err() != nil {
					errs[i] = fmt.Errorf("machine of host %s does not end: %s", in.Host, in.Note)
					return
				}
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}
