package lease

import (
	"fmt"
	"slices"

	"footplate/fleet"
)

// Question is what the leader asks all nodes at one moment.
type Question struct {
	AskedAt Mono           // on the leader's clock, before the first node was asked
	Version uint64         // of the newest membership in the leader's log
	Members []fleet.NodeID // of that version
}

// Lost reports whether the testimonies given to q, the last of which arrived at
// now, prove that the lease ended that the host held when q was asked, and every
// one before. It needs a majority of the members; the leader's own is one of the
// testimonies. Several of one node count once, those of strangers not at all.
//
// It says nothing of attempts that were still on their way: see MayDeclareLost.
func Lost(q Question, testimonies []Testimony, now Mono) bool {
	if len(q.Members) == 0 || now < q.AskedAt || now-q.AskedAt > Mono(0).Add(AskWithin) {
		return false
	}
	silent := make([]fleet.NodeID, 0, len(testimonies))
	for _, t := range testimonies {
		if t.Silent && t.Version == q.Version && slices.Contains(q.Members, t.Node) && !slices.Contains(silent, t.Node) {
			silent = append(silent, t.Node)
		}
	}
	return len(silent) >= majority(len(q.Members))
}

// MayDeclareLost reports whether a host that is Lost by a question asked at
// askedAt takes an attempt with it that was last delivered to it, in the answer
// to a sync, at deliveredAt. An attempt that is known to have started needs no
// such question. A new leader takes the beginning of its term for deliveredAt.
//
// The agent starts an attempt only within StartWindow of sending the request, and
// the request was sent before it was answered; so after StartWindow and a margin
// for the clocks' rates the attempt has started under a lease that q proves to
// have ended, or never will.
func MayDeclareLost(deliveredAt, askedAt Mono) bool {
	return deliveredAt > 0 && askedAt-deliveredAt >= Mono(0).Add(StartWindow+startMargin)
}

// Stamp is put by the leader into the answer to every sync, and comes back with
// the agent's next one, unread. It proves that a request was sent after that
// answer was: a request alone can have been under way for any time.
type Stamp struct {
	Term uint64 `json:"term"`
	At   Mono   `json:"at"` // on the leader's clock
}

// MayReassign reports whether an attempt that was delivered to a host and never
// reported may be given to another while the host lives: the sync that the leader
// looks at, of the same incarnation that the attempt was delivered to, lists it
// not, and was sent (by the stamp that it brought back) more than StartWindow
// and a margin after the leader of this term last delivered it. A new leader
// takes the beginning of its term for deliveredAt.
//
// The agent for its part lists an attempt in every sync that it sends after the
// decision to start it, and drops the answers to syncs that it has given up.
func MayReassign(deliveredAt Mono, deliveredTo fleet.Incarnation, term uint64, sync Sync) bool {
	return deliveredAt > 0 && sync.Incarnation == deliveredTo && !sync.Lists && sync.Stamp.Term == term &&
		sync.Stamp.At-deliveredAt >= Mono(0).Add(StartWindow+startMargin)
}

// Sync is what MayReassign needs to know of an agent's sync.
type Sync struct {
	Incarnation fleet.Incarnation
	Stamp       Stamp // of the newest answer that the agent had when it sent the sync
	Lists       bool  // it lists the attempt in question, in whatever phase
}

// Budget bounds how many hosts may be silent or freshly replaced before the guard
// holds: the larger of a number and a share.
type Budget struct {
	Hosts         int            // of one pool, and of the fleet, that are always allowed
	PoolPerMille  int            // of a pool's expected hosts
	FleetPerMille int            // of all expected hosts
	Window        fleet.Duration // in which replacements count as fresh
}

// DefaultBudget allows 3 hosts or 20% of a pool, and 3 hosts or 25% of the fleet,
// in 60 s. The 3 hold for the fleet too: else a fleet of four could not lose two.
func DefaultBudget() Budget {
	return Budget{Hosts: 3, PoolPerMille: 200, FleetPerMille: 250, Window: 60 * fleet.Second}
}

// PoolSilence is what the guard knows of a pool.
type PoolSilence struct {
	Pool fleet.PoolName
	// Expected is how many hosts should be heard: what was launched, less what
	// was ended on purpose. A deliberate scale-down so never looks like silence.
	Expected int
	// Silent is how many of them are silent now, from suspect on: the wave shows
	// here before its first host is dead.
	Silent int
	// Replaced is how many were declared dead within the window.
	Replaced int
	// Released: a person has looked, and lifted the guard for a time.
	Released bool
}

// Held is the guard's answer for one pool.
type Held struct {
	Pool fleet.PoolName
	Held bool
	Why  string // in a sentence
}

// Guard says for each pool whether its dead hosts may be replaced. When more is
// silent than the budget allows, nothing of that pool is replaced, not a part:
// it is more likely that the control plane is blind than that they all died. It
// is asked before a host is replaced, never before an attempt is declared lost.
//
// The answers are in the order of pools.
func Guard(pools []PoolSilence, b Budget) []Held {
	var expected, gone int
	for _, p := range pools {
		expected += p.Expected
		if !p.Released {
			gone += p.Silent + p.Replaced
		}
	}
	fleetAllows := max(b.Hosts, expected*b.FleetPerMille/1000)
	out := make([]Held, len(pools))
	for i, p := range pools {
		mine, allows := p.Silent+p.Replaced, max(b.Hosts, p.Expected*b.PoolPerMille/1000)
		h := Held{Pool: p.Pool}
		switch {
		case p.Released:
			h.Why = "the guard was lifted by hand"
		case mine > allows:
			h.Held = true
			h.Why = fmt.Sprintf("%d of %d hosts of pool %q are silent or were replaced within %s, and %d are allowed: is the control plane blind?",
				mine, p.Expected, p.Pool, b.Window, allows)
		case gone > fleetAllows:
			h.Held = true
			h.Why = fmt.Sprintf("%d of all %d hosts are silent or were replaced within %s, and %d are allowed: is the control plane blind?",
				gone, expected, b.Window, fleetAllows)
		default:
			h.Why = fmt.Sprintf("%d of %d hosts of pool %q are silent or were replaced within %s, and %d are allowed",
				mine, p.Expected, p.Pool, b.Window, allows)
		}
		out[i] = h
	}
	return out
}
