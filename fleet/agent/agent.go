// Package agent is the process on a CI host: it takes attempts from the control
// plane, runs them, hands over their logs, and ends them when it must.
//
// The parts: Duty (step.go) decides, and is pure; this file carries out; ship.go
// hands over logs; host.go is about the machine: boot, incarnation, being pid 1.
// How one attempt is run, and how it dies with its agent, is package attempt's.
//
// One goroutine owns the Duty. Everything that waits (a sync, a beat to one node,
// the start of a supervisor, an attempt, a log) has a goroutine of its own and
// tells what came of it as an Input. So nothing that hangs keeps the lease from
// being counted, or attempts from being killed when it ends; and should this
// process hang as a whole, the supervisors know the deadline.
//
// An agent needs no disk but its own directory, and nothing in it that matters
// more than a log: what an agent was doing when it died is lost, and is done
// again elsewhere.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"footplate/controlplane/api"
	"footplate/controlplane/certs"
	"footplate/fleet"
	"footplate/fleet/agent/attempt"
	"footplate/fleet/fault"
	"footplate/fleet/lease"
)

// Config is what an agent is started with.
type Config struct {
	Host   fleet.HostID
	Pool   fleet.PoolName
	Launch fleet.LaunchID // 0 when we did not launch it
	Slots  int            // 0 for the pool's
	// Boot is the machine's boot id; the kernel's when empty. A machine that is
	// less than a kernel, like a process of the local provider, has its own.
	Boot  fleet.BootID
	Addrs []string // base URLs of nodes; one that answers is enough
	Token string   // the agents' shared one; not needed with a certificate
	// TokenFile is read again when no node knows Token any more: so the secret can
	// be changed while tasks run. Not read again when empty.
	TokenFile string
	Cluster   string // id; a node is asked when it is empty
	// Dir holds what the agent keeps. Absolute; one agent at a time; TaskUser
	// must be able to pass through its parents.
	Dir string
	// TaskUser runs the tasks; nil for the agent's own user.
	TaskUser *attempt.User
	// Exe is the footplate binary, this program when empty; Supervise are the
	// arguments that make a supervisor of it, "supervise" when nil.
	Exe       string
	Supervise []string
	Grace     time.Duration // between SIGTERM and SIGKILL of a canceled task; 10 s when 0
	Version   string
	Log       *slog.Logger
	// TLS has the cluster's authority, and the agent's own certificate; without one
	// it enrols with JoinToken, which is good once. Nil for plain HTTP.
	TLS       *certs.Keeper
	JoinToken string
	// NoNamespace does without PID namespaces also where they are allowed.
	NoNamespace bool
}

// Agent is an agent that was checked and not started.
type Agent struct {
	cfg  Config
	log  *slog.Logger
	call *caller

	inputs   chan Input
	overtook text // the cluster's name, since it was found to be of a later recovery epoch
	nodes    atomic.Pointer[[]api.NodeAddr]
	all      sync.WaitGroup // goroutines that end with the agent
	life     sync.WaitGroup // those that end with this incarnation
	// shipping are the logs of this incarnation's attempts on their way.
	shipping sync.WaitGroup

	// Owned by Run's goroutine.
	tasks    map[fleet.AttemptID]*task
	stopSync context.CancelFunc
}

// New checks c. It starts nothing.
func New(c Config) (*Agent, error) {
	if err := fleet.CheckName("host", string(c.Host)); err != nil {
		return nil, err
	}
	if err := fleet.CheckName("pool", string(c.Pool)); err != nil {
		return nil, err
	}
	var addrs []string
	for _, a := range c.Addrs {
		if a = strings.TrimRight(strings.TrimSpace(a), "/"); a == "" {
			continue
		}
		if !strings.Contains(a, "://") {
			scheme := "http://"
			if c.TLS != nil {
				scheme = "https://"
			}
			a = scheme + a
		}
		if c.TLS != nil && strings.HasPrefix(a, "http://") {
			return nil, fleet.Invalidf("the agent of host %q is to use TLS, and %s is without", c.Host, a).WithHint("https://%s", strings.TrimPrefix(a, "http://"))
		}
		addrs = append(addrs, a)
	}
	c.Addrs = addrs
	switch {
	case len(c.Addrs) == 0:
		return nil, fleet.Invalidf("agent of host %q knows no node", c.Host).WithHint("give the address of at least one")
	case c.Token == "" && c.TLS == nil && c.JoinToken != "":
		return nil, fleet.Invalidf("a token that is good once is for a certificate, and the agent of host %q has no TLS", c.Host).
			WithHint("--tls DIR, with the cluster's ca.pem in it")
	case c.Token == "" && c.TLS == nil:
		return nil, fleet.Invalidf("agent of host %q has no token", c.Host).WithHint("the nodes keep it in DATA/secrets/agent")
	case !filepath.IsAbs(c.Dir):
		return nil, fleet.Invalidf("directory of the agent %q is not an absolute path", c.Dir)
	case c.Slots < 0:
		return nil, fleet.Invalidf("an agent with %d slots makes no sense", c.Slots)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	a := &Agent{
		cfg: c, log: c.Log.With("host", c.Host), call: newCaller(c),
		inputs: make(chan Input), tasks: make(map[fleet.AttemptID]*task),
	}
	return a, nil
}

func now() lease.Mono { return lease.Mono(attempt.Now()) }

func (a *Agent) attemptsDir() string { return filepath.Join(a.cfg.Dir, "attempts") }

// Run runs the agent until ctx ends, or the control plane ends the host. It
// returns nil when every attempt has ended; when it returns an error at the
// start nothing was run.
func (a *Agent) Run(ctx context.Context) error {
	unlock, err := openDir(a.cfg.Dir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := Reachable(a.cfg.Dir, a.cfg.TaskUser); err != nil {
		return err
	}
	// What waits for the network ends with this; attempts do not.
	work, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer a.call.close()
	defer a.all.Wait()
	defer stopWork()
	if err := a.beInit(work); err != nil {
		return err
	}
	boot := a.cfg.Boot
	if boot == "" {
		if boot, err = kernelBoot(); err != nil {
			return err
		}
	}
	for first := true; ; first = false {
		again, err := a.live(ctx, work, boot, first)
		if !again || err != nil {
			return err
		}
		a.log.Info("the agent begins anew, as one of the recovered cluster", "cluster", a.call.cluster.Load())
	}
}

// live is one incarnation of the agent. It reports again when another must
// follow it, because the cluster was recovered; first is that of the process.
func (a *Agent) live(ctx, process context.Context, boot fleet.BootID, first bool) (again bool, err error) {
	work, stopWork := context.WithCancel(process)
	defer a.life.Wait()
	defer a.shipping.Wait()
	defer stopWork()
	old, err := a.reap(ctx)
	if err != nil {
		return false, err
	}
	if first {
		if err := a.enrol(ctx); err != nil {
			return false, err
		}
	}
	if err := a.learnCluster(ctx); err != nil {
		return false, err
	}
	incarnation, err := nextIncarnation(a.cfg.Dir, boot)
	if err != nil {
		return false, err
	}
	id := Identity{
		Host: a.cfg.Host, Pool: a.cfg.Pool, Launch: a.cfg.Launch, Boot: boot, Incarnation: incarnation,
		Slots: a.cfg.Slots, Version: a.cfg.Version,
	}
	for _, addr := range a.cfg.Addrs {
		id.Seeds = append(id.Seeds, api.NodeAddr{API: addr})
	}
	a.nodes.Store(&id.Seeds)
	if a.cfg.TLS != nil && first {
		a.all.Go(func() { _ = a.cfg.TLS.Run(process) })
		a.all.Go(func() { a.renew(process) })
	}
	a.log.Info("agent is up", "pool", a.cfg.Pool, "boot", boot, "incarnation", incarnation, "version", a.cfg.Version, "reaped", len(old))
	for _, id := range old {
		a.life.Go(func() { a.shipOld(work, id) })
	}
	a.life.Go(func() { a.dwell(work) })
	again = a.drive(ctx, work, NewDuty(id))
	a.log.Info("agent ends")
	return again, nil
}

// dwellEvery is how often the agent looks whether its directory is there.
const dwellEvery = 2 * time.Second

// dwell ends the agent when its directory is gone. Nothing can run without it,
// and whoever has deleted it, a cluster's folder perhaps with all that was in
// it, finds no agent by its files any more.
func (a *Agent) dwell(work context.Context) {
	tick := time.NewTicker(dwellEvery)
	defer tick.Stop()
	for {
		select {
		case <-work.Done():
			return
		case <-tick.C:
		}
		if _, err := os.Stat(a.cfg.Dir); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		a.log.Error("the directory of the agent is gone, so the agent ends", "dir", a.cfg.Dir)
		a.tell(work, Input{Stop: true})
		return
	}
}

// reap makes sure that nothing of an earlier incarnation runs. It does not
// return before that, but for the end of ctx: an agent that can't say so must
// not say that it is there.
func (a *Agent) reap(ctx context.Context) ([]fleet.AttemptID, error) {
	for {
		try, cancel := context.WithTimeout(ctx, 30*time.Second)
		ids, err := attempt.Reap(try, a.attemptsDir())
		cancel()
		if err == nil {
			return ids, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		a.log.Error("attempts of the agent before this one may still run", "err", err)
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(time.Second):
		}
	}
}

// clusterFile keeps the id of the cluster that this host was found to be of.
const clusterFile = "cluster"

// learnCluster finds out of which cluster this host is, when it was not told. It
// asks once: should its addresses come to be another cluster's, that one refuses
// it. A later recovery epoch of its own cluster is no other: see overtaken.
func (a *Agent) learnCluster(ctx context.Context) error {
	name := filepath.Join(a.cfg.Dir, clusterFile)
	if next := a.overtook.Load(); next != "" {
		a.call.cluster.Store(next)
		if a.cfg.Cluster != "" {
			return nil
		}
		return replaceFile(name, []byte(next+"\n"))
	}
	if a.cfg.Cluster != "" {
		return nil
	}
	b, err := os.ReadFile(name)
	if err == nil {
		a.call.cluster.Store(strings.TrimSpace(string(b)))
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read id of the cluster: %w", err)
	}
	return a.insist(ctx, func(addr string) (done bool, err error) {
		id, err := a.call.whichCluster(ctx, addr)
		switch fleet.CodeOf(err) {
		case "":
			a.log.Info("the host is of a cluster", "cluster", id, "api", addr)
			a.call.cluster.Store(id)
			return true, replaceFile(name, []byte(id+"\n"))
		case fleet.CodeDenied:
			if a.cfg.Token == "" {
				return true, err
			}
			return true, fleet.Deniedf("%s does not know this agent's token", addr).WithHint("copy DATA/secrets/agent of the first node")
		case fleet.CodeNotFound:
			return true, fleet.NotFoundf("%s does not tell agents of which cluster it is", addr).WithHint("say it: --cluster ID; cluster status shows it")
		}
		return false, err
	})
}

// insist tries one address after the other, and all of them again, until try
// is done: then its error is for good.
func (a *Agent) insist(ctx context.Context, try func(addr string) (done bool, err error)) error {
	for {
		for _, addr := range a.cfg.Addrs {
			done, err := try(addr)
			if done {
				return err
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			a.complain(addr, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// doubt ends this incarnation when a node refused a call because the cluster was
// recovered. One such node is enough: others that still take its beats are of the
// epoch before, and the recovered cluster counts on none of them.
func (a *Agent) doubt(work context.Context, addr string, err error) {
	if fleet.CodeOf(err) == fleet.CodeConflict && a.overtaken(work, addr) {
		a.tell(work, Input{Recovered: true})
	}
}

// overtaken reports whether the node at addr is of this host's cluster in a later
// recovery epoch.
func (a *Agent) overtaken(ctx context.Context, addr string) bool {
	id, epoch, err := fleet.ParseCluster(a.call.cluster.Load())
	if err != nil {
		return false
	}
	name, err := a.call.whichCluster(ctx, addr)
	if err != nil {
		return false
	}
	of, other, err := fleet.ParseCluster(name)
	if err != nil || of != id || other <= epoch {
		return false
	}
	a.overtook.Store(name)
	return true
}

// drive runs the duty until there is nothing left to do, and reports whether
// another incarnation must follow.
func (a *Agent) drive(ctx, work context.Context, d *Duty) (again bool) {
	defer a.close()
	stop := ctx.Done()
	wake := time.NewTimer(time.Hour)
	defer wake.Stop()
	var in Input
	for {
		at := now()
		fx := d.Step(at, in)
		nodes := d.Nodes()
		a.nodes.Store(&nodes)
		a.carryOut(work, fx)
		if fx.Exit {
			return fx.Again
		}
		wake.Reset(time.Duration(max(0, fx.Wake-at)))
		select {
		case <-stop:
			stop = nil
			in = Input{Stop: true}
		case <-wake.C:
			in = Input{}
		case in = <-a.inputs:
		}
	}
}

// close ends what the duty left: what did not end in time ends now, and the
// last words of the logs are waited for, but not for long.
func (a *Agent) close() {
	if a.stopSync != nil {
		a.stopSync()
	}
	for _, t := range a.tasks {
		t.kill("the agent ends")
	}
	clear(a.tasks)
	shipped := make(chan struct{})
	go func() { a.shipping.Wait(); close(shipped) }()
	select {
	case <-shipped:
	case <-time.After(lastLines):
	}
}

// lastLines is how long an agent that ends waits for logs to be handed over.
const lastLines = time.Second

// tell hands an input to the loop.
func (a *Agent) tell(work context.Context, in Input) {
	select {
	case a.inputs <- in:
	case <-work.Done():
	}
}

// carryOut does what the duty says. Nothing in here waits.
func (a *Agent) carryOut(work context.Context, fx Effects) {
	for _, o := range fx.Kill {
		a.log.Info("killing an attempt", "attempt", o.Attempt, "why", o.Why)
		a.tasks[o.Attempt].kill(o.Why)
	}
	for _, o := range fx.Cancel {
		a.tasks[o.Attempt].cancel(o.Why)
	}
	for _, s := range fx.Start {
		a.log.Info("starting an attempt", "attempt", s.Attempt, "build", s.Build)
		t := newTask(s)
		a.tasks[s.Attempt] = t
		fault.Here(fault.AgentFetched)
		a.life.Go(func() { a.runTask(work, t) })
	}
	for _, id := range fx.Extend {
		a.tasks[id].extend(fx.Deadline)
	}
	for _, id := range fx.Forget {
		close(a.tasks[id].forgotten)
		delete(a.tasks, id)
	}
	if fx.Beat != nil {
		for _, n := range fx.Beat.To {
			if n.API != "" {
				a.life.Go(func() { a.beat(work, n, fx.Beat.Beat) })
			}
		}
	}
	if (fx.Sync != nil || fx.GiveUp) && a.stopSync != nil {
		a.stopSync()
		a.stopSync = nil
	}
	if fx.GiveUp {
		a.call.turn(a.call.current(*a.nodes.Load()), true)
	}
	if fx.Sync != nil {
		var ctx context.Context
		ctx, a.stopSync = context.WithCancel(work)
		a.life.Go(func() { a.sync(ctx, work, *fx.Sync) })
	}
}

// beat sends one beat to one node.
func (a *Agent) beat(work context.Context, n api.NodeAddr, b api.Beat) {
	ctx, cancel := context.WithTimeout(work, beatTimeout)
	defer cancel()
	var r api.BeatReply
	if err := a.call.post(ctx, a.call.beats, n.API, "/v1/agent.beat", b, &r); err != nil {
		a.log.Debug("a beat was not answered", "node", n.Node, "api", n.API, "err", err)
		if work.Err() == nil {
			a.call.blame(n.API, b.SentAt)
		}
		a.doubt(work, n.API, err)
		return
	}
	if !r.Ack {
		a.log.Debug("a beat was refused", "node", r.Node, "why", r.Why)
	}
	a.tell(work, Input{Beats: []Beaten{{To: n.Node, Beat: b, Reply: r}}})
}

// sync says what there is to say: to the leader, or through the node that
// answered last.
func (a *Agent) sync(ctx, work context.Context, s api.Sync) {
	var r api.SyncReply
	addr, through, done := a.call.through(ctx, *a.nodes.Load())
	defer done()
	err := a.call.post(through, a.call.syncs, addr, "/v1/agent.sync", s, &r)
	out := &Synced{Seq: s.Seq}
	switch {
	case ctx.Err() != nil:
		return // given up: nobody waits for it
	case err != nil:
		answer := (*fleet.Error)(nil)
		silent := !errors.As(err, &answer)
		if through.Err() != nil {
			err = context.Cause(through)
		}
		a.call.turn(addr, silent)
		a.complain(addr, err)
		a.doubt(work, addr, err)
	default:
		a.complain(addr, nil)
		a.call.lead(r.Leader, r.Nodes)
		out.Reply = &r
	}
	a.tell(work, Input{Sync: out})
}

// complain logs that syncs fail, once for each reason in a row. Only one sync
// is under way at a time.
func (a *Agent) complain(addr string, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text == a.call.said.Load() {
		return
	}
	a.call.said.Store(text)
	switch fleet.CodeOf(err) {
	case "":
		a.log.Info("the control plane answers", "api", addr)
	case fleet.CodeDenied, fleet.CodeConflict, fleet.CodeNotFound, fleet.CodeInvalid:
		a.log.Error("the control plane refuses this host", "api", addr, "err", err, "hint", fleet.AsError(err).Hint)
	default:
		a.log.Warn("the control plane does not answer", "api", addr, "err", err)
	}
}

// task is one attempt, from the order to its end. Orders may come before its
// supervisor is up. Its lock is never held over anything that waits.
type task struct {
	start     Start
	forgotten chan struct{} // closed when its end is recorded

	mu       sync.Mutex
	run      *attempt.Run
	deadline lease.Mono
	killed   string
	canceled string
}

func newTask(s Start) *task {
	return &task{start: s, forgotten: make(chan struct{}), deadline: s.Deadline}
}

// order notes an order, and passes it on when there is somebody to pass it to.
func (t *task) order(note func(), pass func(*attempt.Run)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	note()
	if t.run != nil {
		pass(t.run)
	}
}

func (t *task) kill(why string) {
	t.order(func() { t.killed = why }, func(r *attempt.Run) { r.Kill(why) })
}

func (t *task) cancel(why string) {
	t.order(func() { t.canceled = why }, func(r *attempt.Run) { r.Cancel(why) })
}

func (t *task) extend(deadline lease.Mono) {
	t.order(func() { t.deadline = deadline }, func(r *attempt.Run) { r.Extend(int64(deadline)) })
}

// lostError says that an attempt was not started because the host may not.
type lostError struct{ why string }

func (e *lostError) Error() string { return e.why }

// may returns until when the attempt may run now, if it may be started.
func (t *task) may() (deadline lease.Mono, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.killed != "":
		return 0, &lostError{t.killed}
	case now() >= t.start.By:
		return 0, &lostError{"it could not be started in time"}
	}
	return t.deadline, nil
}

// begin starts the supervisor.
func (t *task) begin(c attempt.Config) (*attempt.Run, error) {
	deadline, err := t.may()
	if err != nil {
		return nil, err
	}
	c.Deadline = func() int64 { return int64(deadline) }
	o := t.start
	// Attempts end by the duty's word, and not when some context does.
	run, err := attempt.Start(context.Background(), c, attempt.Order{
		ID: o.Attempt, Build: o.Build, Task: o.Task, N: o.N, Spec: o.Spec,
	})
	if fleet.CodeOf(err) == fleet.CodeUnavailable {
		return nil, &lostError{err.Error()}
	}
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.run = run
	// What was ordered while it was being started.
	switch {
	case t.killed != "":
		run.Kill(t.killed)
	case t.canceled != "":
		run.Cancel(t.canceled)
	}
	run.Extend(int64(t.deadline))
	return run, nil
}

// runTask follows one attempt to its end, hands over its log and removes it.
func (a *Agent) runTask(work context.Context, t *task) {
	id := t.start.Attempt
	run, err := t.begin(attempt.Config{
		Dir: a.attemptsDir(), TaskUser: a.cfg.TaskUser, Exe: a.cfg.Exe, Args: a.cfg.Supervise,
		Grace: a.cfg.Grace, NoNamespace: a.cfg.NoNamespace, Log: a.log,
	})
	if err != nil {
		p := Progress{Attempt: id, Phase: fleet.PhaseEnded, Dead: true, Outcome: fleet.Broken, Why: err.Error()}
		if lost := (*lostError)(nil); errors.As(err, &lost) {
			p.Outcome = fleet.Lost
		}
		a.log.Warn("an attempt could not be started", "attempt", id, "build", t.start.Build, "err", err)
		a.tell(work, Input{Attempts: []Progress{p}})
		return
	}
	fault.Here(fault.AgentStarted)
	more := make(chan struct{}, 1)
	shipped := make(chan struct{})
	a.shipping.Go(func() {
		defer close(shipped)
		a.ship(work, id, run.Log(), more)
		run.Uploaded()
	})
	var last Progress
	for {
		s := run.State()
		p := Progress{Attempt: id, Phase: s.Phase, Dead: s.Dead, Outcome: s.Outcome, Exit: s.Exit, Why: s.Why}
		if p != last {
			last = p
			if s.Phase == fleet.PhaseEnded {
				fault.Here(fault.AgentFinished)
			}
			a.log.Info("attempt", "attempt", id, "build", t.start.Build, "phase", s.Phase, "outcome", s.Outcome, "why", s.Why)
			a.tell(work, Input{Attempts: []Progress{p}})
		}
		select {
		case more <- struct{}{}:
		default:
		}
		if s.Phase == fleet.PhaseEnded {
			break
		}
		select {
		case <-run.Changed():
		case <-run.Done():
		case <-work.Done():
			return // the agent exits, and what still runs dies with it
		}
	}
	// The log of an attempt that was killed or canceled may follow after its
	// end. When the agent ends first, the next one goes on.
	select {
	case <-shipped:
	case <-work.Done():
		return
	}
	select {
	case <-t.forgotten:
	case <-work.Done():
		return
	}
	fault.Here(fault.AgentReported)
	if err := run.Forget(); err != nil {
		a.log.Warn("remove what is left of an attempt", "attempt", id, "err", err)
	}
}
