package order

import (
	"fmt"
	"slices"

	"footplate/controlplane/api"
	"footplate/controlplane/state"
	"footplate/fleet"
	"footplate/fleet/lease"
)

// Hearing is what is known of one host that is ready, and that is or was silent.
type Hearing struct {
	Host fleet.HostID
	// Silent is for how long the leader has listened and heard nothing.
	Silent fleet.Duration
	// Known: this leader has heard it since it began to listen.
	Known bool
	// Over: a majority of the nodes has testified that its lease has ended, and
	// nothing that was on its way to it can start any more.
	Over bool
	// Why says who testified, in words.
	Why string
}

// Heard is one look at all hosts.
type Heard struct {
	Hosts []Hearing // but for those of which there is nothing to say
	// Unstarted are attempts that were given to their host, never reported, and
	// can no longer start there.
	Unstarted []fleet.AttemptID
	// Next is how long it takes, if nothing is heard, until there is somebody more
	// to ask about; 0 when there is nobody.
	Next fleet.Duration
	// Ask lists the hosts that this node has not heard for so long that their
	// lease should be over: the other nodes are to be asked about them.
	Ask   []api.TestifyHost
	asked []int // positions in Hosts
}

// Listen says what the leader knows of hosts by its own ears: silent tells for
// how long it has listened and heard nothing of one, and whether it ever did.
func (b *Book) Listen(v *state.View, silent func(fleet.Host) (fleet.Duration, bool)) Heard {
	var out Heard
	clear(b.over) // what the look before has found is in the log by now, or was not to be
	for id, h := range v.Hosts.All() {
		if h.State != fleet.HostReady {
			continue
		}
		pool, _ := v.Pools.Get(h.Pool)
		ago, known := silent(h)
		// A lost host is asked about for as long as it may be replaced.
		left := pool.FenceAfter + lease.Margin(pool.FenceAfter) - ago
		switch {
		case left > 0:
			out.due(left)
		case !h.Lost && left > -askSoonFor:
			// The others may have heard it a moment later than this node.
			out.due(askSoon)
		}
		if left <= 0 && (!h.Lost || pool.Provider != "none") {
			out.Ask = append(out.Ask, api.TestifyHost{Host: id, Boot: h.Boot, FenceAfter: pool.FenceAfter})
			out.asked = append(out.asked, len(out.Hosts))
		}
		if left <= 0 || ago >= pool.SuspectAfter || h.Suspect || h.Lost {
			out.Hosts = append(out.Hosts, Hearing{Host: id, Silent: ago, Known: known})
		}
		out.Unstarted = append(out.Unstarted, b.unstarted(v, h)...)
	}
	out.Unstarted = append(out.Unstarted, b.neverHeld(v)...)
	for _, id := range out.Unstarted {
		b.void[id] = struct{}{}
	}
	return out
}

// A host that this node has just come to think silent is asked about again after
// askSoon, for askSoonFor.
const (
	askSoon    = 20 * fleet.Millisecond
	askSoonFor = fleet.Second
)

// due notes that there is something to look at in d.
func (h *Heard) due(d fleet.Duration) {
	if h.Next == 0 || d < h.Next {
		h.Next = d
	}
}

// Judge notes whose lease is over, by what the nodes, this one among them, have
// answered to q about the hosts in Ask; the last answer came at now.
func (b *Book) Judge(h *Heard, v *state.View, q lease.Question, answers []api.Testimony, now lease.Mono) {
	for i, at := range h.asked {
		var of []lease.Testimony
		for _, a := range answers {
			of = append(of, a.Testimonies[i])
		}
		one := &h.Hosts[at]
		if lease.Lost(q, of, now) && b.settled(v, one.Host, q.AskedAt) {
			one.Over = true
			b.over[one.Host] = true
			one.Why = fmt.Sprintf("no majority of the nodes has heard it for %s: its tasks have ended by themselves", h.Ask[i].FenceAfter)
		}
	}
}

// settled reports whether nothing that was on its way to the host when the
// question was asked can start there any more.
func (b *Book) settled(v *state.View, host fleet.HostID, askedAt lease.Mono) bool {
	for _, at := range v.LiveOn(host) {
		if at.Phase == fleet.PhaseAssigned && !lease.MayDeclareLost(b.deliveredAt(at.ID), askedAt) {
			return false
		}
	}
	return true
}

func (b *Book) deliveredAt(id fleet.AttemptID) lease.Mono {
	if d, ok := b.delivered[id]; ok {
		return d.Last
	}
	return b.since
}

// unstarted returns the attempts that hold a slot of h, and can no longer start
// there: they may be given elsewhere.
func (b *Book) unstarted(v *state.View, h fleet.Host) []fleet.AttemptID {
	var out []fleet.AttemptID
	for _, at := range v.LiveOn(h.ID) {
		if at.Phase == fleet.PhaseAssigned && v.Clock.Sub(at.AssignedAt) >= acceptWithin && b.never(at, h) {
			out = append(out, at.ID)
		}
	}
	return out
}

// neverHeld returns the attempts that exclusive builds wait for, and that can
// not have started: nobody need wait for their end.
func (b *Book) neverHeld(v *state.View) []fleet.AttemptID {
	var out []fleet.AttemptID
	for id := range v.Held.All() {
		of, _ := v.Builds.Get(id)
		for _, t := range of.Tasks {
			at, ok := v.Attempts.Get(t.Held)
			if !ok || !at.StartedAt.IsZero() {
				continue
			}
			if h, ok := v.Hosts.Get(at.Host); ok && h.State == fleet.HostReady && b.never(at, h) {
				out = append(out, at.ID)
			}
		}
	}
	return out
}

// never reports whether at, which was never reported, cannot start on h any
// more, by the newest sync of the agent that it was given to.
func (b *Book) never(at fleet.Attempt, h fleet.Host) bool {
	last, ok := b.heard[h.ID]
	if !ok || at.Boot != h.Boot || last.boot != at.Boot {
		return false
	}
	_, lists := slices.BinarySearch(last.lists, at.ID)
	return lease.MayReassign(b.deliveredAt(at.ID), at.Incarnation, b.term,
		lease.Sync{Incarnation: last.incarnation, Stamp: last.stamp, Lists: lists})
}
