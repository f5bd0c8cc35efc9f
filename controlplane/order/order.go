// Package order is what a leader knows and decides, in one term of office, of
// the agents of its fleet: what an agent shall do, which of the attempts that it
// was given can no longer start, which hosts the nodes must be asked about, and
// whose lease is over.
//
// A Book is kept for one term and forgotten with it: a new leader begins with an
// empty one, and takes the moment at which it began for the time of every
// delivery that it knows nothing of.
//
// Nothing here has a clock, a lock or a connection: server and listener of a
// real node run it behind theirs, and the simulator runs the same code. The
// rules of the lease are fleet/lease's; here they meet the replicated state.
package order

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"strconv"

	"footplate/controlplane/api"
	"footplate/controlplane/catalog"
	"footplate/controlplane/state"
	"footplate/fleet"
	"footplate/fleet/lease"
)

// The pace of orders.
const (
	// Fresh is how old a sync may be that is answered with an order to start: well
	// below lease.StartWindow, which counts from the sending of the sync. Who sent
	// an older one is to ask again.
	Fresh = 2 * fleet.Second
	// Hold is how long a sync is held open whose answer has an order that the
	// agent was given before and has not taken; others are held for
	// api.SyncHold.
	Hold = fleet.Second
	// offerFor is how long, from its first delivery in a term, an attempt is
	// offered to its host. After that it never is again in this term: from then
	// on what lease.MayReassign asks for can come true, and stay true.
	offerFor = 10 * fleet.Second
	// acceptWithin is how long a host that is heard may take to report an
	// attempt that it was given, before somebody else gets it.
	acceptWithin = 10 * fleet.Second
)

// Book is what a leader remembers of its agents in one term.
type Book struct {
	term      uint64
	since     lease.Mono
	delivered map[fleet.AttemptID]Delivery
	heard     map[fleet.HostID]heard
	// What was found to be over is not offered any more: the finding is on its
	// way into the log, and an order that overtakes it would start what somebody
	// else is given then.
	over map[fleet.HostID]bool        // by the newest look at all hosts
	void map[fleet.AttemptID]struct{} // for the rest of the term
	full int                          // number of deliveries at which those that are over are dropped
}

// fewDeliveries are not worth tidying.
const fewDeliveries = 4096

// Delivery is when, on the leader's clock, an attempt was given to its host, for
// the first and for the last time in this term.
type Delivery struct{ First, Last lease.Mono }

// heard is the newest sync of a host.
type heard struct {
	boot        fleet.BootID
	incarnation fleet.Incarnation
	seq         uint64
	stamp       lease.Stamp
	lists       []fleet.AttemptID // sorted
}

// Open begins the book of a term, at since or later than the term began.
func Open(term uint64, since lease.Mono) *Book {
	return &Book{
		term: term, since: since, full: fewDeliveries,
		delivered: make(map[fleet.AttemptID]Delivery), heard: make(map[fleet.HostID]heard),
		over: make(map[fleet.HostID]bool), void: make(map[fleet.AttemptID]struct{}),
	}
}

// Term returns the term that the book is of.
func (b *Book) Term() uint64 { return b.term }

// Hear notes a sync. It reports false when a newer one of the same host has been
// heard: then this one is late, and says nothing.
func (b *Book) Hear(q *api.Sync) bool {
	if h, ok := b.heard[q.Host]; ok && h.boot == q.Boot &&
		(q.Incarnation < h.incarnation || q.Incarnation == h.incarnation && q.Seq < h.seq) {
		return false
	}
	h := heard{boot: q.Boot, incarnation: q.Incarnation, seq: q.Seq, stamp: q.Stamp}
	for _, at := range q.Attempts {
		h.lists = append(h.lists, at.Attempt)
	}
	slices.Sort(h.lists)
	b.heard[q.Host] = h
	return true
}

// Heard returns the number of the newest sync of a host in this term.
func (b *Book) Heard(host fleet.HostID) (seq uint64, ok bool) {
	h, ok := b.heard[host]
	return h.seq, ok
}

// Delivered returns when an attempt was given to its host in this term.
func (b *Book) Delivered(id fleet.AttemptID) (Delivery, bool) {
	d, ok := b.delivered[id]
	return d, ok
}

// Join says what a sync is to the state: join that the host as it is now must
// become known first; leave that it has no place in the fleet any more.
func Join(v *state.View, q *api.Sync) (join, leave bool) {
	h, known := v.Hosts.Get(q.Host)
	switch {
	case known && (h.State == fleet.HostEnding || h.State == fleet.HostGone):
		return false, true
	case known && h.State == fleet.HostReady && h.Boot == q.Boot && h.Incarnation == q.Incarnation:
		return false, false
	}
	return true, false
}

// News returns what of a sync the state does not know yet.
func News(v *state.View, q *api.Sync) []catalog.AttemptReport {
	var news []catalog.AttemptReport
	for _, held := range q.Attempts {
		at, ok := v.Attempts.Get(held.Attempt)
		if !ok || at.Host != q.Host || at.Boot != q.Boot {
			continue
		}
		if at.Live() && Rank(held.Phase) > Rank(at.Phase) || held.Phase == fleet.PhaseEnded && proves(v, at) {
			news = append(news, catalog.AttemptReport(held))
		}
	}
	return news
}

// Rank orders the phases of an attempt; -1 for what is none.
func Rank(p fleet.Phase) int {
	return slices.Index([]fleet.Phase{
		fleet.PhaseAssigned, fleet.PhaseSetup, fleet.PhaseCheckout, fleet.PhaseSteps, fleet.PhaseUpload, fleet.PhaseEnded,
	}, p)
}

// proves reports whether a task waits for the proof that at has ended.
func proves(v *state.View, at fleet.Attempt) bool {
	b, ok := v.Builds.Get(at.Build)
	return ok && at.Task < len(b.Tasks) && b.Tasks[at.Task].Held == at.ID
}

// Answer says what an agent shall do, as v has it. leave says that it was found
// to have no place in the fleet; offers is Book.Offers of the present moment.
// Members and nodes are those that the agent is told of; Known is the digest of
// all this.
func Answer(v *state.View, q *api.Sync, leave bool, offers func(fleet.Attempt) bool, members uint64, nodes []api.NodeAddr) api.SyncReply {
	r := api.SyncReply{FenceAfter: fleet.DefaultFenceAfter, Leave: leave, Members: members, Nodes: nodes}
	if h, ok := v.Hosts.Get(q.Host); ok {
		r.Leave = leave || h.State == fleet.HostEnding || h.State == fleet.HostGone
	}
	if p, ok := v.Pools.Get(q.Pool); ok {
		r.FenceAfter = p.FenceAfter
	}
	holds := make(map[fleet.AttemptID]bool, len(q.Attempts))
	for _, held := range q.Attempts {
		holds[held.Attempt] = true
		at, ok := v.Attempts.Get(held.Attempt)
		mine := ok && at.Host == q.Host && at.Boot == q.Boot
		switch {
		case mine && at.Live():
			if at.Cancel && held.Phase != fleet.PhaseEnded {
				r.Cancel = append(r.Cancel, at.ID)
			}
		case held.Phase == fleet.PhaseEnded:
			if !mine || !proves(v, at) {
				r.Forget = append(r.Forget, held.Attempt)
			}
		default:
			r.Kill = append(r.Kill, held.Attempt)
		}
	}
	if !r.Leave {
		for _, at := range v.LiveOn(q.Host) {
			if at.Phase != fleet.PhaseAssigned || at.Boot != q.Boot || at.Incarnation != q.Incarnation || at.Cancel || holds[at.ID] ||
				!offers(at) {
				continue
			}
			if of, ok := v.Builds.Get(at.Build); ok {
				r.Start = append(r.Start, api.Order{Attempt: at.ID, Build: at.Build, Task: at.Task, N: at.N, Spec: of.Spec})
			}
		}
	}
	r.Known = digest(&r)
	return r
}

// Offers reports whether an attempt may still be offered to its host.
func (b *Book) Offers(at fleet.Attempt, now lease.Mono) bool {
	if _, void := b.void[at.ID]; void || b.over[at.Host] {
		return false
	}
	d, ok := b.delivered[at.ID]
	return !ok || now.Sub(d.First) < offerFor
}

// Due reports whether the answer r to q is to be given now, after q was held
// for so long.
func Due(q *api.Sync, r *api.SyncReply, held fleet.Duration) bool {
	return r.Known != q.Known || held >= api.SyncHold || len(r.Start) > 0 && held >= Hold
}

// Deliver notes that the orders of r are on their way, and puts its stamp on it.
// It is called before r is sent, the answer to a sync that was held for so long.
// An order that must not be given any more, by what was found since r was made,
// is taken out, and so is one that would come too late to be taken.
func (b *Book) Deliver(v *state.View, r *api.SyncReply, held fleet.Duration, now lease.Mono) {
	given := len(r.Start)
	r.Start = slices.DeleteFunc(r.Start, func(o api.Order) bool {
		at, ok := v.Attempts.Get(o.Attempt)
		return !ok || !b.Offers(at, now) || held > Fresh
	})
	if len(r.Start) < given {
		r.Known = digest(r)
	}
	r.Stamp = lease.Stamp{Term: b.term, At: now}
	for _, o := range r.Start {
		d, ok := b.delivered[o.Attempt]
		if !ok {
			d.First = now
		}
		d.Last = now
		b.delivered[o.Attempt] = d
	}
	if len(b.delivered) < b.full {
		return
	}
	maps.DeleteFunc(b.delivered, func(id fleet.AttemptID, _ Delivery) bool {
		at, ok := v.Attempts.Get(id)
		return !ok || !at.Live()
	})
	maps.DeleteFunc(b.void, func(id fleet.AttemptID, _ struct{}) bool {
		at, ok := v.Attempts.Get(id)
		return !ok || !at.Live()
	})
	maps.DeleteFunc(b.heard, func(id fleet.HostID, _ heard) bool {
		_, ok := v.Hosts.Get(id)
		return !ok
	})
	b.full = max(fewDeliveries, 2*len(b.delivered))
}

// digest names what a reply says; never empty. Of an order the attempt is
// enough: what belongs to it never changes.
func digest(r *api.SyncReply) string {
	var t []byte
	list := func(what byte, ids []fleet.AttemptID) {
		t = append(t, what)
		for _, id := range ids {
			t = append(strconv.AppendUint(t, uint64(id), 10), ' ')
		}
	}
	t = append(t, 's')
	for _, o := range r.Start {
		t = append(strconv.AppendUint(t, uint64(o.Attempt), 10), ' ')
	}
	list('c', r.Cancel)
	list('k', r.Kill)
	list('f', r.Forget)
	t = strconv.AppendBool(t, r.Leave)
	t = strconv.AppendUint(append(t, 'm'), r.Members, 10)
	t = strconv.AppendInt(append(t, 'a'), int64(r.FenceAfter), 10)
	for _, n := range r.Nodes {
		t = append(append(append(append(t, ' '), n.Node...), '='), n.API...)
	}
	sum := sha256.Sum256(t)
	return hex.EncodeToString(sum[:8])
}
