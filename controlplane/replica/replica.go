// Package replica replicates the state machine of a control-plane node over
// the cluster, on hashicorp/raft. It is the only importer of that library.
//
// It takes commands, packs them into log entries, and gives each caller its
// command's outcome; it elects, and tells this node when it leads; it keeps
// log, vote and snapshots on disk. It does not know what a command means: that
// is the Machine's.
//
// # The problem
//
// Raft's cost is by entry, not by byte: an entry costs some 60 µs of encoding,
// wake-ups and bookkeeping on each node, so one entry a command leaves a small
// machine at 20,000 commands/s with the processor full. People's operations
// must not stand behind bulk traffic. A caller must be told the truth about a
// command whose leader died: nothing was done, or it is not known. And the loops
// of a leader must never act beside those of its successor.
//
// # The way chosen
//
// Commands wait in two lanes. A carrier takes all that waits, operations first,
// into one entry as soon as one of two places in flight is free (packer.go).
// Nothing is delayed for company: under load the company is there, and without
// load nobody waits. Two places are what keeps disk and network busy while the
// next entry is packed; more only make the entries smaller.
//
// A leadership is an office (office.go). It begins with the command "leader
// begin", and only when that is applied are other commands accepted and the
// loops started. Raft cannot be told "append this only in term N", and a node
// may lose leadership and win it back between two of our instructions; so each
// entry carries in its seal the term that it was packed for, and every node
// passes over an entry that landed in another. That makes "leader begin" the
// first command of its term without exception, and lets the callers of such an
// entry be told that nothing was done.
//
// What raft had appended when leadership was lost has an unknown outcome, and
// the caller is told so: the same key asked again gives the first outcome.
//
// A node halts on what it can't apply: a damaged entry, an operation that it
// does not know, a panic. It says which entry and why, and applies nothing
// after. To pass over a poisoned command is the Machine's, on a person's word.
//
// # The way not taken
//
// Raft's own batching (BatchApplyCh, one entry a command) gave, in a trial with
// three processes, half the throughput and three times the latency. Its Apply channel is
// left unbuffered: what waits, waits here, where it can still be ordered and
// refused. Waiting a millisecond for more company was not taken: it taxes the
// single operation at three in the morning, and load needs no help. A follower
// does not forward: HTTP does, where the caller's identity is.
package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"footplate/controlplane/state"
	"footplate/fleet"
)

// Machine is the state machine. Apply, Snapshot and Restore are called by one
// goroutine at a time, Try by another, alongside; Digest by any.
type Machine interface {
	// Apply applies a log entry, in the order of the log, and returns one
	// outcome a command. An error, or a panic, halts the node. Index grows, with
	// gaps; batch.At never decreases.
	Apply(index, term uint64, batch state.Batch) ([]state.Outcome, error)
	// Digest returns the newest digest, and the index at which it was taken,
	// false when there is none yet.
	Digest() (index uint64, sum string, ok bool)
	// Snapshot returns what writes the state as it is now, and the index of the
	// last entry in it. It returns at once; write runs while Apply goes on.
	Snapshot() (write func(io.Writer) error, index uint64)
	// Restore replaces the state by what a Snapshot's write wrote.
	Restore(io.Reader) error
	// Try runs commands, in order, on a copy of the state, and returns for each
	// an error when it must not be proposed; nil means that all may be.
	Try(at fleet.Time, commands []state.Command) []error
}

// Config says what a node is. NodeID, Machine and Log are needed, and Dir and
// RaftAddr, or Disk and Network in their place.
type Config struct {
	NodeID fleet.NodeID
	// Cluster is compared with what Dir says, and written to a new Dir. With an
	// empty id, Dir must say.
	Cluster Cluster
	// Dir is the data directory; one process uses it at a time.
	Dir string
	// RaftAddr is the address (host:port) to listen on for the other nodes, and
	// Advertise what they call it by; by default the address listened on.
	RaftAddr, Advertise string
	// Listener and Dial replace plain TCP, for example by TLS. Optional.
	Listener net.Listener
	Dial     func(ctx context.Context, addr string) (net.Conn, error)
	// Disk and Network replace Dir and TCP by memory. RaftAddr names the node on
	// the network.
	Disk    *Disk
	Network *Network

	Machine Machine
	Log     *slog.Logger
	// Via is the surface and version on the entries that the node itself logs.
	Via string

	// Lead runs while this node leads, in that term, and ends when ctx does. It
	// starts after "leader begin" has been applied, and never before the Lead of
	// an earlier term has returned. Optional.
	Lead func(ctx context.Context, term uint64)
	// BeforeSnapshot must succeed before a snapshot of the log up to index is
	// written. Optional.
	BeforeSnapshot func(index uint64) error
	// OnMembership is told the version of the newest membership in this node's
	// log, committed or not, before the node acknowledges it to its leader, and
	// once when the node starts. Optional.
	OnMembership func(version uint64)
	// WallOffsets returns how far the wall clocks of the other nodes are ahead of
	// this one's, for those that are known. When nil, this node's own counts.
	WallOffsets func() []fleet.Duration

	// HeartbeatTimeout (500 ms by default) is how long a follower does not hear
	// of its leader before it calls it dead. 250 to 500 ms is the least that is
	// safe on machines that steal stalled processes for parts of a second.
	HeartbeatTimeout time.Duration
	// PlainElections leaves the noticing of a dead leader to raft's own timer, and
	// elections to chance, which takes twice as long. For comparison.
	PlainElections bool

	// A snapshot is taken when, at a look every SnapshotInterval (30 s), more
	// than SnapshotThreshold (4096) entries came after the last; TrailingLogs
	// (1024) entries are kept before it, for followers that lag.
	SnapshotInterval  time.Duration
	SnapshotThreshold uint64
	TrailingLogs      uint64
}

// Replica is one node's part in the replication.
type Replica struct {
	cfg     Config
	log     *slog.Logger
	cluster Cluster
	stores  *stores
	listen  net.Listener
	addr    string
	fsm     *fsm

	raft    atomic.Pointer[raft.Raft]
	office  atomic.Pointer[office] // nil but while this node leads
	begun   atomic.Bool            // Run was called
	stopped chan struct{}          // closed when raft has stopped
	closing sync.Once
	closed  error

	forgetting sync.Mutex
}

// Open opens the stores of a node and its port, and checks them. It starts
// nothing: see Run. A Replica that is not run must be closed.
func Open(cfg Config) (*Replica, error) {
	if err := fleet.CheckName("node", string(cfg.NodeID)); err != nil {
		return nil, err
	}
	if cfg.Machine == nil || cfg.Log == nil {
		return nil, fleet.Internalf("node %q has no machine or no log", cfg.NodeID)
	}
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&cfg.HeartbeatTimeout, 500*time.Millisecond)
	def(&cfg.SnapshotInterval, 30*time.Second)
	if cfg.SnapshotThreshold == 0 {
		cfg.SnapshotThreshold = 4096
	}
	if cfg.TrailingLogs == 0 {
		cfg.TrailingLogs = 1024
	}
	if cfg.Dial == nil {
		cfg.Dial = dialTCP
	}
	if cfg.Via == "" {
		cfg.Via = "node"
	}
	r := &Replica{cfg: cfg, log: cfg.Log.With("node", string(cfg.NodeID)), stopped: make(chan struct{})}
	r.fsm = newFSM(cfg.Machine, cfg.BeforeSnapshot, r.log)
	if err := raft.ValidateConfig(r.raftConfig()); err != nil {
		return nil, fleet.Invalidf("node %q is configured wrong: %s", cfg.NodeID, err)
	}

	var err error
	if cfg.Disk != nil {
		r.stores, r.cluster, err = cfg.Disk.open(cfg.Cluster)
	} else {
		r.stores, r.cluster, err = openStores(cfg.Dir, cfg.Cluster, r.log)
	}
	if err != nil {
		return nil, err
	}
	if err := r.openPort(); err != nil {
		return nil, errors.Join(err, r.stores.close())
	}
	return r, nil
}

func (r *Replica) openPort() error {
	r.addr = r.cfg.RaftAddr
	if r.cfg.Network != nil {
		return nil
	}
	r.listen = r.cfg.Listener
	if r.listen == nil {
		l, err := net.Listen("tcp", r.cfg.RaftAddr)
		if err != nil {
			return fmt.Errorf("listen for the other nodes: %w", err)
		}
		r.listen = l
	}
	r.addr = r.listen.Addr().String()
	if r.cfg.Advertise != "" {
		r.addr = r.cfg.Advertise
	}
	host, _, err := net.SplitHostPort(r.addr)
	ip := net.ParseIP(host)
	if err == nil && (host == "" || ip != nil && ip.IsUnspecified()) {
		err = fleet.Invalidf("other nodes cannot call this one at %q", r.addr).
			WithHint("say how they should, or listen on one address")
	}
	if err != nil {
		return errors.Join(err, r.listen.Close())
	}
	return nil
}

// Cluster returns which cluster this node is of.
func (r *Replica) Cluster() Cluster { return r.cluster }

// Addr returns the address at which other nodes call this one.
func (r *Replica) Addr() string { return r.addr }

// Close closes a Replica that was not run.
func (r *Replica) Close() error {
	r.closing.Do(func() {
		if r.listen != nil {
			r.closed = r.listen.Close()
		}
		if errors.Is(r.closed, net.ErrClosed) {
			r.closed = nil
		}
		r.closed = errors.Join(r.closed, r.stores.close())
	})
	return r.closed
}

func (r *Replica) raftConfig() *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(r.cfg.NodeID)
	c.HeartbeatTimeout = r.cfg.HeartbeatTimeout
	c.ElectionTimeout = r.cfg.HeartbeatTimeout
	// A leader that is cut off must have noticed before the others, who notice
	// after HeartbeatTimeout, elect another.
	c.LeaderLeaseTimeout = r.cfg.HeartbeatTimeout / 2
	c.MaxAppendEntries = 1024
	c.SnapshotInterval = r.cfg.SnapshotInterval
	c.SnapshotThreshold = r.cfg.SnapshotThreshold
	c.TrailingLogs = r.cfg.TrailingLogs
	c.ShutdownOnRemove = false
	c.NoLegacyTelemetry = true
	c.Logger = newQuietLog(r.log)
	return c
}

// Run takes part in the cluster until ctx ends, which returns nil, or the node
// halts, which returns an error that names the log entry and the reason. It is
// called once, and closes r.
func (r *Replica) Run(ctx context.Context) (err error) {
	if !r.begun.CompareAndSwap(false, true) {
		return fleet.Internalf("node %q was run twice", r.cfg.NodeID)
	}
	defer func() { err = errors.Join(err, r.Close()) }()

	if err := r.findMembership(); err != nil {
		return err
	}
	transport, unplug := r.transport()
	defer unplug()
	asking := newCanvass(transport, r.cfg.HeartbeatTimeout)
	if !r.cfg.PlainElections {
		transport = asking
	}
	ra, err := r.start(transport)
	if err != nil {
		return err
	}
	asking.listen(ra)
	r.raft.Store(ra)

	inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var nudging sync.WaitGroup
	if !r.cfg.PlainElections {
		nudging.Go(func() { nudge(inner, ra, r.cfg.HeartbeatTimeout, r.log) })
	}
	last := r.follow(ctx, inner, ra)

	if ctx.Err() != nil {
		r.handOver(ra, last)
	}
	if last != nil {
		last.leave()
		// While raft runs it answers what it was given, if only with the reason
		// of the halt; what lies between its goroutines when they end it never
		// does.
		answered := time.NewTimer(2 * r.cfg.HeartbeatTimeout)
		select {
		case <-last.done:
		case <-answered.C:
		}
		answered.Stop()
	}
	close(asking.stop)
	if err := ra.Shutdown().Error(); err != nil {
		r.log.Warn("stopping raft", "err", err)
	}
	close(r.stopped)
	cancel()
	nudging.Wait()
	if last != nil {
		// Raft does not answer what lay between its goroutines when they ended, so
		// that is not waited for without end. Nor are loops that do not stop.
		patience := time.NewTimer(20 * r.cfg.HeartbeatTimeout)
		defer patience.Stop()
		select {
		case <-last.done:
		case <-patience.C:
			r.log.Warn("stopping without waiting for all that was in flight")
		}
	}
	if err := r.fsm.haltErr(); err != nil {
		return fmt.Errorf("node %q halts: %w", r.cfg.NodeID, err)
	}
	return nil
}

// transport returns raft's way to the other nodes, and what ends it.
func (r *Replica) transport() (transport, func()) {
	if r.cfg.Network != nil {
		at := raft.ServerAddress(r.addr)
		t := r.cfg.Network.plug(at)
		return t, func() { r.cfg.Network.unplug(at, t) }
	}
	// A call over a link that swallows packets must end before the peer's
	// connection is missed for long, and yet outlast a stalled disk.
	timeout := max(4*r.cfg.HeartbeatTimeout, time.Second)
	t := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream:  &stream{Listener: r.listen, advertise: addr(r.addr), dial: r.cfg.Dial, most: r.cfg.HeartbeatTimeout, cluster: r.cluster.String(), log: r.log},
		MaxPool: 4,
		Timeout: timeout,
		Logger:  newQuietLog(r.log),
	})
	return t, func() {
		t.CloseStreams()
		if err := t.Close(); err != nil {
			r.log.Warn("closing the port", "err", err)
		}
	}
}

// start restores the snapshot and starts raft.
func (r *Replica) start(transport transport) (ra *raft.Raft, err error) {
	running := new(atomic.Bool)
	logs := checkedLog{
		LogStore: r.stores.logs, halt: r.fsm.halt, running: running, newest: r.fsm.newest,
		applied: func() uint64 { return r.fsm.position().Version },
		arrived: &r.fsm.arrived,
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
		if halted := r.fsm.haltErr(); halted != nil {
			err = halted
		}
		if err == nil {
			return
		}
		if ra != nil {
			err = errors.Join(err, ra.Shutdown().Error())
		}
		ra, err = nil, fmt.Errorf("start node %q: %w", r.cfg.NodeID, err)
	}()
	ra, err = raft.NewRaft(r.raftConfig(), r.fsm, logs, r.stores.stable, r.stores.snaps, transport)
	running.Store(true)
	return ra, err
}

// findMembership looks up the newest membership that this node knows, before
// anything can change it.
func (r *Replica) findMembership() error {
	r.fsm.newest.tell = r.cfg.OnMembership
	first, err := r.stores.logs.FirstIndex()
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	last, err := r.stores.logs.LastIndex()
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	known := uint64(0)
	if snaps, err := r.stores.snaps.List(); err == nil && len(snaps) > 0 {
		known = snaps[0].ConfigurationIndex
	}
	return r.fsm.newest.find(r.stores.logs, max(first, 1)-1, last, known)
}

// LatestMembers returns the newest membership in this node's log, committed or
// not, and its version. On a node that does not run it is empty.
func (r *Replica) LatestMembers() (version uint64, members []Member) {
	ra := r.raft.Load()
	if ra == nil {
		return 0, nil
	}
	// The version is read on both sides: between two equal ones nothing changed.
	for {
		version = r.fsm.newest.version.Load()
		members = membersOf(ra.GetConfiguration().Configuration())
		if r.fsm.newest.version.Load() == version {
			return version, members
		}
	}
}

// follow serves one office after the other until ctx ends or the node halts. It
// returns the last.
func (r *Replica) follow(ctx, inner context.Context, ra *raft.Raft) *office {
	var last *office
	for {
		select {
		case leads := <-ra.LeaderCh():
			// Two true in a row are two terms: the loss between them was dropped.
			if last != nil {
				last.leave()
			}
			if leads {
				last = r.takeOffice(inner, ra, last)
			}
		case <-r.fsm.halted:
			return last
		case <-ctx.Done():
			return last
		}
	}
}

// handOver lets a node that stops in good order finish what is in flight and
// give leadership away, so that nobody has to notice that it is gone.
func (r *Replica) handOver(ra *raft.Raft, last *office) {
	if last == nil || ra.State() != raft.Leader {
		return
	}
	last.leave()
	patience := time.NewTimer(2 * r.cfg.HeartbeatTimeout)
	defer patience.Stop()
	select {
	case <-last.done:
	case <-patience.C:
		return
	}
	done := make(chan error, 1)
	go func() { done <- ra.LeadershipTransfer().Error() }()
	select {
	case err := <-done:
		if err != nil {
			r.log.Info("leadership could not be handed over", "err", err)
		}
	case <-patience.C:
	}
}

// Propose logs c and returns its outcome, whose Err says whether it succeeded.
// An error says that there is no outcome: with CodeUnavailable nothing was done,
// with CodeUnknown it may have been; otherwise the command was refused. Leader
// only.
func (r *Replica) Propose(ctx context.Context, lane Lane, c state.Command) (state.Outcome, error) {
	encoded, err := state.EncodeCommand(&c)
	if err != nil {
		return state.Outcome{}, err
	}
	o := r.office.Load()
	if o == nil {
		return state.Outcome{}, notLeader(r.cfg.NodeID)
	}
	logged, err := asLogged(c, encoded)
	if err != nil {
		return state.Outcome{}, err
	}
	return o.packer.propose(ctx, lane, logged, encoded)
}

// ReadIndex returns when what this node has applied includes everything that
// was acknowledged, anywhere, before the call: a read after it is linearizable.
// Callers at the same time share the proof. Leader only.
func (r *Replica) ReadIndex(ctx context.Context) error {
	o := r.office.Load()
	if o == nil {
		return notLeader(r.cfg.NodeID)
	}
	read := o.reads.join()
	select {
	case <-read.done:
		return read.err
	case <-r.stopped:
		return notLeader(r.cfg.NodeID)
	case <-ctx.Done():
		return fleet.Unavailablef("node %q could not prove in time that it leads", r.cfg.NodeID).
			WithHint("try again, or read with --stale")
	}
}

// Now returns the state clock: the leader's, which what is logged next will not
// be before, and elsewhere an estimate.
func (r *Replica) Now() fleet.Time {
	if o := r.office.Load(); o != nil {
		return o.now()
	}
	pos := r.fsm.position()
	if pos.At.IsZero() {
		return fleet.TimeOf(time.Now())
	}
	return pos.At.Add(fleet.DurationOf(time.Since(pos.seen)))
}

// Snapshot takes a snapshot now and returns it with the index of the last entry
// in it, for the caller to read and close. When nothing is new since the last
// one, that is returned.
func (r *Replica) Snapshot(ctx context.Context) (index uint64, from io.ReadCloser, err error) {
	ra := r.raft.Load()
	if ra == nil {
		return 0, nil, fleet.Unavailablef("node %q is starting: nothing was done", r.cfg.NodeID).WithHint("try again in a few seconds")
	}
	done := make(chan error, 1)
	go func() { done <- ra.Snapshot().Error() }()
	select {
	case err = <-done:
	case <-ctx.Done():
		return 0, nil, fleet.Unknownf("the snapshot was not finished in time").WithHint("it goes on: ask again later")
	}
	if err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return 0, nil, fmt.Errorf("take snapshot: %w", err)
	}
	metas, err := r.stores.snaps.List()
	if err != nil {
		return 0, nil, fmt.Errorf("list snapshots: %w", err)
	}
	if len(metas) == 0 {
		return 0, nil, fleet.NotFoundf("node %q has nothing to take a snapshot of", r.cfg.NodeID)
	}
	meta, from, err := r.stores.snaps.Open(metas[0].ID)
	if err != nil {
		return 0, nil, fmt.Errorf("open snapshot: %w", err)
	}
	return meta.Index, from, nil
}

// Role is what a node is in its cluster at the moment.
type Role string

// The roles.
const (
	RoleStarting  Role = "starting"
	RoleFollower  Role = "follower"
	RoleCandidate Role = "candidate"
	RoleElected   Role = "elected" // leads for raft, but its term has not begun
	RoleLeader    Role = "leader"
	RoleHalted    Role = "halted"
	RoleStopped   Role = "stopped"
)

// Status is how a node sees the cluster.
type Status struct {
	Node    fleet.NodeID `json:"node"`
	Cluster Cluster      `json:"cluster"`
	Role    Role         `json:"role"`
	Halted  string       `json:"halted,omitempty"` // why
	Term    uint64       `json:"term"`
	// LeaderTerm is the term in which this node holds office, 0 when it does not.
	LeaderTerm uint64       `json:"leader_term,omitempty"`
	Leader     fleet.NodeID `json:"leader,omitempty"` // empty when unknown
	LeaderAddr string       `json:"leader_addr,omitempty"`

	Last    uint64 `json:"last"`    // index of the last entry on disk
	Commit  uint64 `json:"commit"`  // known to be committed
	Applied uint64 `json:"applied"` // by the machine
	// Snapshot is the index of the last entry in the newest snapshot.
	Snapshot uint64 `json:"snapshot,omitempty"`
	// LastContact is how long ago a leader was heard of; 0 on the leader.
	LastContact fleet.Duration `json:"last_contact"`

	// Members are the nodes as of Applied. MembersVersion is the index of the
	// log entry that made them so.
	Members        []Member `json:"members"`
	MembersVersion uint64   `json:"members_version"`

	Clock fleet.Time `json:"clock"` // see Now
	// ClockGap is how far the nodes' wall clocks are ahead of the state clock, on
	// the leader, and ClockAlarm says that this is too far to be followed.
	ClockGap   fleet.Duration `json:"clock_gap"`
	ClockAlarm bool           `json:"clock_alarm,omitempty"`

	DigestIndex uint64 `json:"digest_index,omitempty"`
	Digest      string `json:"digest,omitempty"`

	// WaitingOperations and WaitingBulk count the commands not yet packed.
	WaitingOperations int `json:"waiting_operations"`
	WaitingBulk       int `json:"waiting_bulk"`
}

// Leader says who leads, "" when nobody is known to, and in which term this node
// does, 0 when it does not: what Status says of it, at once.
func (r *Replica) Leader() (leader fleet.NodeID, term uint64) {
	ra := r.raft.Load()
	if ra == nil {
		return "", 0
	}
	_, id := ra.LeaderWithID()
	if o := r.office.Load(); o != nil && ra.State() == raft.Leader && o.term == ra.CurrentTerm() && r.fsm.haltErr() == nil {
		term = o.term
	}
	return fleet.NodeID(id), term
}

// Status returns how this node sees the cluster. It never waits.
func (r *Replica) Status() Status {
	pos := r.fsm.position()
	s := Status{
		Node: r.cfg.NodeID, Cluster: r.cluster, Role: RoleStarting,
		Applied: pos.Index, Members: pos.Members, MembersVersion: pos.Version,
		Clock: r.Now(),
	}
	s.DigestIndex, s.Digest, _ = r.cfg.Machine.Digest()
	if ra := r.raft.Load(); ra != nil {
		addr, id := ra.LeaderWithID()
		s.Leader, s.LeaderAddr = fleet.NodeID(id), string(addr)
		s.Term, s.Last, s.Commit = ra.CurrentTerm(), ra.LastIndex(), ra.CommitIndex()
		if heard := ra.LastContact(); !heard.IsZero() {
			s.LastContact = fleet.DurationOf(time.Since(heard))
		}
		switch ra.State() {
		case raft.Follower:
			s.Role = RoleFollower
		case raft.Candidate:
			s.Role = RoleCandidate
		case raft.Leader:
			s.Role, s.LastContact = RoleElected, 0
		case raft.Shutdown:
			s.Role = RoleStopped
		}
	}
	if o := r.office.Load(); o != nil && s.Role == RoleElected && o.term == s.Term {
		s.Role, s.LeaderTerm = RoleLeader, o.term
		waiting := o.packer.counts()
		s.WaitingOperations, s.WaitingBulk = waiting[LaneOperations], waiting[LaneBulk]
		o.mu.Lock()
		s.ClockGap, s.ClockAlarm = o.clock.Gap()
		o.mu.Unlock()
	}
	s.Snapshot = r.fsm.snapshot.Load()
	if err := r.fsm.haltErr(); err != nil {
		s.Role, s.Halted = RoleHalted, err.Error()
	}
	return s
}
