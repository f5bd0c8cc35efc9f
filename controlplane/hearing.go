package controlplane

import (
	"context"
	"sync"
	"time"

	"footplate/controlplane/api"
	"footplate/controlplane/loop"
	"footplate/controlplane/order"
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

// listener gathers what the watch loop needs to know of hosts.
type listener struct {
	node    fleet.NodeID
	ear     *ear
	peers   *peers
	given   interface{ Book(func(*order.Book)) bool }   // what the server remembers of its agents
	members func() (version uint64, ids []fleet.NodeID) // the newest in this node's log
	term    uint64
	// recovered is for how long this node has known of the recovery epoch.
	recovered func() fleet.Duration
}

// listen asks the other nodes about every host that this one has not heard for
// so long that its lease should be over.
func (l *listener) listen(ctx context.Context, v *state.View) loop.Heard {
	var heard order.Heard
	l.book(func(b *order.Book) { heard = b.Listen(v, l.ear.silent) })
	if len(heard.Ask) > 0 {
		ask := api.Testify{Hosts: heard.Ask}
		version, ids := l.members()
		q := lease.Question{AskedAt: mono(), Version: version, Members: ids}
		answers := append(l.peers.testify(ctx, ask), api.Testimony{Node: l.node, Testimonies: l.ear.Testify(ask)})
		l.book(func(b *order.Book) { b.Judge(&heard, v, q, answers, mono()) })
	}
	out := loop.Heard{
		Unstarted: heard.Unstarted, Next: heard.Next, Hosts: make([]loop.Hearing, len(heard.Hosts)), Recovered: l.recovered(),
	}
	for i, h := range heard.Hosts {
		out.Hosts[i] = loop.Hearing(h)
	}
	return out
}

// book runs do with the book of the term that the loops are of.
func (l *listener) book(do func(*order.Book)) {
	l.given.Book(func(b *order.Book) {
		if b.Term() == l.term {
			do(b)
		}
	})
}
