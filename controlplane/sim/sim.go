// Package sim is the simulated world: the real state, operations, loops, lease
// rules and agent decisions, in virtual time, against simulated machines and a
// simulated network, with faults. A seed decides everything; the promises of
// DESIGN.md are checked while it runs and once more when all faults are over.
//
// # Design
//
// The problem: what goes wrong in a distributed system needs a rare order of
// rare events, and a test with real processes meets few of them and can't meet
// one again.
//
// The way chosen: one goroutine, one queue of events, one seeded source of
// chance (PCG, part of the world). True time is kept apart from every clock:
// each machine has a monotonic clock that runs within 1% of it, and each node a
// wall clock that jumps. Promises about time and overlap are judged on the true
// timeline, which nothing that is tested can see. What is pure runs as it is:
// state.State, op.Registry.Apply, loop.Promote, Dispatch, Watch, Provision,
// Deliver and Retain, lease.Holder, Witness, Lost, MayDeclareLost and MayReassign,
// agent.Duty, replica.StateClock, and all of order: what an agent is told, whom
// the nodes are asked about, and whose lease is over. The shells that do I/O in
// the server are mirrored, and have to follow when those change: the carrying
// of a sync (server/agents.go: sync.go here), and controlplane/hearing.go with
// loop's runner and provisioner (leader.go here).
//
// The way not taken: whole nodes inside testing/synctest. They are tested so
// too, in package replica; but goroutines there are scheduled as the runtime
// likes, so a failing seed would not play again.
//
// # What is modelled
//
// Consensus: one log. A leader appends; a follower that is reached stores; what
// a majority has stored is committed, by the leader of the same term alone, whose
// first entry is raft's own mark.
// Votes go to who has everything that the voter has, and not while a leader is
// heard. What the new leader has not stored is cut off. A deposed leader goes on
// believing until it hears of the new term or misses a majority's answers for a
// while, or for as long as it is stopped; what it proposed has an unknown
// outcome. Every node applies by itself, late. A node that crashes forgets its
// state and its witness, and starts from its newest snapshot, or from nothing.
//
// Network: delay, loss, duplicates, late retransmissions, cuts in one direction
// or both between any two of nodes and machines. Machines: a provider that is
// slow, fails, and does what it says that it did not; deaths, reboots with a new
// boot id. Processes: agents are killed and started anew as the next incarnation
// once the old trees are dead, or stopped; nodes crash or are stopped. Tasks die
// as real ones do: by their agent's order, with their agent, with their machine,
// or by their supervisor when the lease ends, each after some true time.
//
// # What is not
//
// Changes of the membership (fleet/lease simulates those), log shipping and the
// upload phase's wait for it, disks that fail or lie, stopped supervisors and
// paused virtual machines (outside the bounds of P2), refusals by role and
// confirmation (they are the door's), the archive and sinks other than the
// console's channel, the size of log entries, Try before a proposal, the
// watchdog of the loops. Of a leader's clock replica.StateClock is real, and when
// it is set is mirrored (office.catchUp, and node.apply for what that goes by).
//
// Beside the promises, the world must come to rest when the faults are over. How
// long that takes depends on how much is left to do, which a pool of one slot
// does one by one: so what is bounded is how long nothing comes to its end
// (patience), and how long a slot is free while a build waits that it could be
// given (idleness).
//
// Where a promise leaves something to people, the simulated ones do it: they
// scale a pool up for the hosts that were cordoned, and they say "build retry"
// for exclusive builds that have waited long for proof (Stats.Released).
package sim

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"math/rand/v2"

	"footplate/controlplane/catalog"
)

// Profile says which faults there are.
type Profile string

// The profiles.
const (
	None         Profile = "none"
	LeaderChange Profile = "leader change" // nodes crash, and leaders are cut off
	Partition    Profile = "partition"     // cuts of all kinds
	Pause        Profile = "pause"         // nodes and agents are stopped for a while
	Loss         Profile = "loss"          // loss, duplicates, long delays
	Clocks       Profile = "clocks"        // rates at the ends, wall clocks that jump, with some of all else
	Machines     Profile = "machines"      // deaths, reboots, agents killed, a bad provider
	Quorum       Profile = "quorum"        // the nodes lose each other and nothing else happens
	Silence      Profile = "mass silence"  // much of the fleet falls silent at once
	Mixed        Profile = "mixed"         // everything
	drawn        Profile = ""              // by the seed
)

// Profiles lists every profile.
func Profiles() []Profile {
	return []Profile{None, LeaderChange, Partition, Pause, Loss, Clocks, Machines, Quorum, Silence, Mixed}
}

// Weakness takes one rule away, to show that the invariants find it out.
type Weakness string

// The weaknesses.
const (
	Strict        Weakness = ""
	NoMargin      Weakness = "the leader asks without a margin"
	NoStartWindow Weakness = "an order that is not taken at once is given elsewhere"
	NoLeaseEnd    Weakness = "tasks go on when the lease ends"
	NoDedupe      Weakness = "keys are not remembered"
	NoMajority    Weakness = "the leader's own silence is enough"
	NoPermanence  Weakness = "acknowledged before it is committed"
	WallStart     Weakness = "a leader that has applied nothing yet begins at its wall clock"
	LateStart     Weakness = "a leader that has not applied its log begins at its own clock"
	SeenLate      Weakness = "what passed before a log entry was applied is forgotten"
	NoGuard       Weakness = "silent hosts are replaced whatever their number"
	NoMark        Weakness = "promotion goes by the plans alone"
)

// Config says which world to play.
type Config struct {
	Seed    uint64
	Profile Profile // drawn by the seed when empty
	Weak    Weakness
	Lines   int // of the timeline that are kept; 60 when zero
}

// Violation is a broken promise.
type Violation struct {
	Invariant string // "P2", "liveness", ...
	Text      string
}

// Stats count what happened, so that a test can tell that something did.
type Stats struct {
	Events, Commands, Entries, Builds, Attempts, Lost, Terms, Launches, Acked, Unknown int

	Retired  int // builds that left the state
	Released int // by a person: exclusive builds that waited for proof
	Virtual  int // seconds
}

// Result is what came of a run.
type Result struct {
	Seed      uint64
	Profile   Profile
	Hash      string     // of the whole timeline
	Violation *Violation // nil when every promise was kept
	Timeline  []string   // its end
	Stats     Stats
}

// Run plays the world of cfg to its end, or to the first broken promise.
func Run(cfg Config) Result {
	w := &world{
		cfg: cfg, rng: rand.New(rand.NewPCG(cfg.Seed, 0x666f6f74706c6174)),
		ops: catalog.All(), hash: fnv.New64a(), leader: -1,
		cuts: make(map[[2]int]int), badPair: make(map[[2]int]int64),
	}
	w.lines = make([]string, cmp.Or(cfg.Lines, 60))
	all := Profiles()
	drawnProfile := all[w.pick(len(all))]
	w.profile = cfg.Profile
	if w.profile == drawn {
		w.profile = drawnProfile
	}
	w.build()
	w.play()
	w.stats.Virtual = int(w.now / sec)
	return Result{
		Seed: cfg.Seed, Profile: w.profile, Hash: fmt.Sprintf("%016x", w.hash.Sum64()),
		Violation: w.violation, Timeline: w.tail(), Stats: w.stats,
	}
}
