package controlplane

import (
	"context"
	"fmt"
	"sync"
	"time"

	"footplate/controlplane/api"
	"footplate/controlplane/loop"
	"footplate/controlplane/state"
	"footplate/fleet"
	"footplate/fleet/lease"
)

// started is the origin of this process's monotonic clock.
var started = time.Now()

// mono is the monotonic clock of this process; never 0.
func mono() lease.Mono { return lease.Mono(time.Since(started)) + 1 }

// ear is the node's witness, with its lock.
type ear struct {
	mu      sync.Mutex
	witness *lease.Witness
}

func newEar(node fleet.NodeID) *ear {
	return &ear{witness: lease.NewWitness(node, 0, mono())}
}

// run keeps the witness aware of stalls of this process.
func (e *ear) run(ctx context.Context) error {
	tick := time.NewTicker(lease.TickEvery.Std())
	defer tick.Stop()
	for {
		e.mu.Lock()
		e.witness.Tick(mono())
		e.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// member tells the witness the version of the newest membership in the log.
func (e *ear) member(version uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.witness.SetVersion(version, mono())
}

// Beat decides whether a beat is acknowledged, and records it before it answers.
func (e *ear) Beat(b api.Beat) (ok bool, why string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.witness.Beat(lease.HostKey{Host: b.Host, Boot: b.Boot}, b.Incarnation, b.Beat, mono())
}

// Testify answers for this node.
func (e *ear) Testify(q api.Testify) []lease.Testimony {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := make([]lease.Testimony, len(q.Hosts))
	for i, h := range q.Hosts {
		out[i] = e.witness.Testify(lease.HostKey{Host: h.Host, Boot: h.Boot}, h.FenceAfter, mono())
	}
	return out
}

func (e *ear) silent(h fleet.Host) (fleet.Duration, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.witness.SilentFor(lease.HostKey{Host: h.ID, Boot: h.Boot}, mono())
}

// deliveries is what the server remembers of what it gave to agents.
type deliveries interface {
	// Delivered says when an attempt was last delivered in this node's present
	// term, and to which incarnation.
	Delivered(id fleet.AttemptID) (at lease.Mono, to fleet.Incarnation, ok bool)
	// LastSync returns the newest sync of a host, and whether it listed the attempt.
	LastSync(host fleet.HostID, id fleet.AttemptID) (lease.Sync, bool)
}

// listener gathers what the watch loop needs to know of hosts.
type listener struct {
	node    fleet.NodeID
	ear     *ear
	peers   *peers
	given   deliveries
	members func() (version uint64, ids []fleet.NodeID) // the newest in this node's log
	term    uint64
	since   lease.Mono // when this term began here
}

// listen asks the other nodes about every host that this one has not heard for
// so long that its lease should be over.
func (l *listener) listen(ctx context.Context, v *state.View) loop.Heard {
	var heard loop.Heard
	var ask api.Testify
	var asked []int // positions in heard.Hosts
	for id, h := range v.Hosts.All() {
		if h.State != fleet.HostReady {
			continue
		}
		pool, _ := v.Pools.Get(h.Pool)
		silent, known := l.ear.silent(h)
		if silent >= pool.FenceAfter+lease.Margin(pool.FenceAfter) && !h.Lost {
			ask.Hosts = append(ask.Hosts, api.TestifyHost{Host: id, Boot: h.Boot, FenceAfter: pool.FenceAfter})
			asked = append(asked, len(heard.Hosts))
		}
		heard.Hosts = append(heard.Hosts, loop.Hearing{Host: id, Silent: silent, Known: known})
		heard.Unstarted = append(heard.Unstarted, l.unstarted(v, h)...)
	}
	if len(ask.Hosts) == 0 {
		return heard
	}
	version, ids := l.members()
	q := lease.Question{AskedAt: mono(), Version: version, Members: ids}
	all := append(l.peers.testify(ctx, ask), api.Testimony{Node: l.node, Testimonies: l.ear.Testify(ask)})
	now := mono()
	for i, at := range asked {
		var of []lease.Testimony
		for _, t := range all {
			of = append(of, t.Testimonies[i])
		}
		h := &heard.Hosts[at]
		if !lease.Lost(q, of, now) || !l.settled(v, h.Host, q.AskedAt) {
			continue
		}
		h.Over = true
		h.Why = fmt.Sprintf("no majority of the nodes has heard it for %s: its tasks have ended by themselves", ask.Hosts[i].FenceAfter)
	}
	return heard
}

// settled reports whether nothing that was on its way to the host when the
// question was asked can start there any more.
func (l *listener) settled(v *state.View, host fleet.HostID, askedAt lease.Mono) bool {
	for _, at := range v.LiveOn(host) {
		if at.Phase == fleet.PhaseAssigned && !lease.MayDeclareLost(l.deliveredAt(at.ID), askedAt) {
			return false
		}
	}
	return true
}

func (l *listener) deliveredAt(id fleet.AttemptID) lease.Mono {
	if at, _, ok := l.given.Delivered(id); ok {
		return at
	}
	return l.since
}

// acceptWithin is how long a host that is heard may take to report an attempt
// that it was given, before somebody else gets it.
const acceptWithin = 10 * fleet.Second

// unstarted returns the attempts on h that were given to it, never reported,
// and can no longer start there: live ones may be given elsewhere, and an
// exclusive build need not wait for such a one any longer.
func (l *listener) unstarted(v *state.View, h fleet.Host) []fleet.AttemptID {
	var out []fleet.AttemptID
	never := func(at fleet.Attempt) bool {
		sync, ok := l.given.LastSync(h.ID, at.ID)
		return ok && at.Boot == h.Boot && lease.MayReassign(l.deliveredAt(at.ID), at.Incarnation, l.term, sync)
	}
	for _, at := range v.LiveOn(h.ID) {
		if at.Phase == fleet.PhaseAssigned && v.Clock.Sub(at.AssignedAt) >= acceptWithin && never(at) {
			out = append(out, at.ID)
		}
	}
	for id := range v.Held.All() {
		b, _ := v.Builds.Get(id)
		for _, t := range b.Tasks {
			if at, ok := v.Attempts.Get(t.Held); ok && at.Host == h.ID && at.StartedAt.IsZero() && never(at) {
				out = append(out, at.ID)
			}
		}
	}
	return out
}
