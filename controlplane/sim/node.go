package sim

import (
	"bytes"
	"fmt"
	"slices"

	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
	"footplate/fleet/lease"
)

// The pace of consensus, in true time.
const (
	tickEvery    = 200 * ms
	electionLow  = 700 * ms // without a word of a leader
	electionHigh = 1500 * ms
	officeLease  = 600 * ms // a leader that lacks a majority's answers for this long leaves
	digestEvery  = 32       // log entries
)

// entry is one entry of the log.
type entry struct {
	term  uint64
	data  []byte
	batch state.Batch
	at    int64 // when it was made
	by    int   // the leader that made it
}

// mark reports whether the entry is raft's own: the first of a term, by which
// what is before it is committed. It has no time.
func (e *entry) mark() bool { return len(e.batch.Commands) == 0 }

// node is a node of the control plane. What is on its disk survives a crash.
type node struct {
	process
	id    fleet.NodeID
	clock clock
	wall  fleet.Duration // how far its wall clock is ahead of true time

	// On disk.
	stored int // log[:stored]; always a prefix of the one log
	term   uint64
	snap   []byte
	snapAt int

	// In memory.
	st      *state.State
	view    *state.View
	applied int
	came    []int64    // by entry that is stored: when, in true time
	known   int        // committed, as far as it has heard
	lastAt  fleet.Time // the state clock of what was applied last
	seen    lease.Mono // when that came
	lag     bool       // it applies late
	heardAt int64      // a leader
	patient int64      // for how long it waits for one
	leads   int        // who leads, as far as it knows; -1
	witness *lease.Witness
	office  *office
}

// unknown is when an entry came that a node had when it started.
const unknown = -1

// version is the one membership that there is.
const version = 1

func (w *world) members() []fleet.NodeID {
	ids := make([]fleet.NodeID, len(w.nodes))
	for i, n := range w.nodes {
		ids[i] = n.id
	}
	return ids
}

func (w *world) newNode(i int) *node {
	n := &node{id: fleet.NodeID(fmt.Sprintf("n%d", i+1)), clock: w.newClock(true), leads: -1}
	w.endpoint(&n.process)
	return n
}

func (n *node) mono() lease.Mono { return n.clock.read(n.w.now) }

// boot starts the node's process: from its snapshot, or from nothing.
func (n *node) boot() {
	n.start()
	n.office, n.leads = nil, -1
	n.st, n.applied, n.known, n.lastAt, n.seen = state.New(), 0, 0, 0, n.mono()
	if n.snap != nil {
		st, err := state.Load(bytes.NewReader(n.snap))
		if err != nil {
			n.w.broken("P13", "node %s cannot load its snapshot: %s", n.id, err)
			return
		}
		n.st, n.applied, n.known, n.lastAt = st, n.snapAt, n.snapAt, st.Clock
	}
	n.came = slices.Repeat([]int64{unknown}, n.stored)
	n.view = n.st.Publish()
	n.w.oracle.heard[n.end] = n.w.now
	n.witness = lease.NewWitness(n.id, version, n.mono())
	n.heard(-1)
	n.tick()
}

func (n *node) crash() {
	if n.office != nil {
		n.office.over = true
		n.office = nil
	}
	n.kill()
}

// heard notes the word of a leader, or that one should be waited for.
func (n *node) heard(leader int) {
	n.heardAt = n.w.now
	n.patient = n.w.between(electionLow, electionHigh)
	n.leads = leader
}

func (n *node) tick() {
	w := n.w
	n.witness.Tick(n.mono())
	switch {
	case n.office != nil:
		n.office.tick()
	case w.now-n.heardAt > n.patient:
		n.campaign()
	}
	n.after(tickEvery, n.tick)
}

// campaign asks for votes.
func (n *node) campaign() {
	w := n.w
	n.heard(-1)
	votes := 1
	for _, m := range w.nodes {
		if m != n && w.reach(n.end, m.end) && m.stored <= n.stored && m.office == nil && w.now-m.heardAt > electionLow/2 {
			votes++
		}
	}
	if votes < majority(len(w.nodes)) {
		return
	}
	if w.commit > n.stored {
		panic("sim: a node without all that is committed was elected")
	}
	w.term++
	w.stats.Terms++
	w.leader = n.end
	if lost := len(w.log) - n.stored; lost > 0 {
		w.note("%s is elected (term %d), and %d uncommitted log entries are gone", n.id, w.term, lost)
	} else {
		w.note("%s is elected (term %d)", n.id, w.term)
	}
	w.log = w.log[:n.stored]
	for _, m := range w.nodes {
		m.stored = min(m.stored, len(w.log))
		m.came = m.came[:min(len(m.came), m.stored)]
		if m != n && w.reach(n.end, m.end) {
			m.term = w.term
			m.heard(n.end)
		}
	}
	n.term = w.term
	newOffice(n)
	if w.now < w.stormTill {
		w.after(w.between(0, 400*ms), func() {
			if n.office != nil && !w.healed {
				w.fall(n)
			}
		})
	}
}

// store has log[:upto] on the disk from now on.
func (n *node) store(upto int) {
	for n.stored < upto {
		n.stored++
		n.came = append(n.came, n.w.now)
	}
}

// apply applies what is committed, up to log[:to].
func (n *node) apply(to int) {
	w := n.w
	for n.applied < min(to, n.stored, w.commit) && w.violation == nil {
		e := w.log[n.applied]
		n.applied++
		applied, err := w.apply(n.st, n.applied, e.batch)
		if err != nil {
			w.broken("P13", "node %s halts at log entry %d: %s", n.id, n.applied, err)
			return
		}
		came := n.came[n.applied-1]
		if came == unknown {
			came = w.now
		}
		if !e.mark() {
			n.lastAt, n.seen = max(n.lastAt, e.batch.At), n.clock.read(came)
			if w.cfg.Weak == SeenLate {
				n.seen = n.mono()
			}
			w.oracle.heard[n.end] = came
		}
		w.oracle.compare(n, applied)
		if n.applied%200 == 0 && w.chance(500) {
			n.snapshot()
		}
		if n.office != nil {
			n.office.applied(n.applied, applied)
		}
	}
	if n.office != nil {
		n.view = n.st.Publish()
		n.office.published()
	}
}

func (n *node) snapshot() {
	var b bytes.Buffer
	if err := n.st.Publish().Dump(&b); err != nil {
		n.w.broken("P13", "node %s cannot write a snapshot: %s", n.id, err)
	}
	n.snap, n.snapAt = b.Bytes(), n.applied
}

// apply applies a batch to one state. A panic is a halt.
func (w *world) apply(st *state.State, index int, b state.Batch) (a op.Applied, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	return w.ops.Apply(st, uint64(index), b, nil)
}

// replicate sends what a leader has to everyone.
func (o *office) replicate() {
	w, n := o.w, o.n
	upto, commit := len(w.log), w.commit
	real := w.term == o.term
	for _, f := range w.nodes {
		if f == n {
			continue
		}
		w.send(n.end, f.end, func() {
			if o.term < f.term {
				later := f.term
				w.send(f.end, n.end, func() {
					if later > n.term {
						n.term = later
					}
					if !o.over && later > o.term {
						o.leave("it has heard of a later term")
					}
				})
				return
			}
			if f.office != nil && f.office.term < o.term {
				f.office.leave("it has heard the leader of a later term")
			}
			f.term = o.term
			f.heard(n.end)
			if real && w.term == o.term {
				f.store(min(upto, len(w.log)))
				f.known = max(f.known, min(commit, f.stored))
				if !f.lag || w.chance(60) {
					f.apply(f.known)
				}
			}
			w.send(f.end, n.end, func() { o.acked(f.end, upto) })
		})
	}
}

// acked counts a follower's answer.
func (o *office) acked(f, upto int) {
	w := o.w
	if o.over {
		return
	}
	o.ackAt[f] = w.now
	if w.term != o.term {
		return
	}
	o.match[f] = max(o.match[f], min(upto, len(w.log)))
	o.match[o.n.end] = o.n.stored
	sorted := slices.Sorted(slices.Values(o.match))
	m := sorted[len(sorted)-majority(len(sorted))]
	if m > w.commit && w.log[m-1].term == o.term {
		for w.commit < m && w.violation == nil {
			w.commit++
			w.oracle.apply(w.log[w.commit-1])
		}
		o.n.known = w.commit
		o.n.apply(w.commit)
	}
}
