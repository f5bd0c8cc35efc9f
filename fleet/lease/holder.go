package lease

import (
	"slices"

	"footplate/fleet"
)

// Beat is what one beat is worth once it is acknowledged. Version and FenceAfter
// travel; SentAt is the agent's own and stays with it.
type Beat struct {
	Version    uint64         `json:"members"`     // of the membership that the agent counts
	FenceAfter fleet.Duration `json:"fence_after"` // for how long an acknowledgement holds, from SentAt
	SentAt     Mono           `json:"-"`
}

// Holder is the agent's side: it knows until when the host holds its lease.
type Holder struct {
	fenceAfter fleet.Duration
	version    uint64
	nodes      []fleet.NodeID // sorted
	until      []Mono         // by node: when its newest acknowledgement runs out; 0 for none

	number   uint64 // of the newest lease
	deadline Mono   // of that lease; 0 when it is over
}

// NewHolder returns a holder without a lease, counting nodes as the membership of
// that version. The version of the first nodes that an agent is configured with
// is 0: witnesses refuse it, and tell the real one.
func NewHolder(fenceAfter fleet.Duration, version uint64, nodes []fleet.NodeID) *Holder {
	h := &Holder{fenceAfter: fenceAfter}
	h.setNodes(version, nodes)
	return h
}

// SetFenceAfter changes what the beats from now on are worth. Acknowledgements
// of earlier ones keep the worth that they were given for.
func (h *Holder) SetFenceAfter(d fleet.Duration) { h.fenceAfter = d }

// SetMembers makes the holder count another membership, when its version is
// newer. Acknowledgements of nodes that are no members any more do not count;
// those of the others do.
func (h *Holder) SetMembers(version uint64, nodes []fleet.NodeID, now Mono) {
	if version <= h.version {
		return
	}
	h.settle(now)
	h.setNodes(version, nodes)
	h.renew(now)
}

func (h *Holder) setNodes(version uint64, nodes []fleet.NodeID) {
	sorted := slices.Clone(nodes)
	slices.Sort(sorted)
	sorted = slices.Compact(sorted)
	until := make([]Mono, len(sorted))
	for i, n := range sorted {
		if j, ok := slices.BinarySearch(h.nodes, n); ok {
			until[i] = h.until[j]
		}
	}
	h.version, h.nodes, h.until = version, sorted, until
}

// Version returns the version of the membership that is counted.
func (h *Holder) Version() uint64 { return h.version }

// Nodes returns the membership that is counted, sorted; not to be written to.
func (h *Holder) Nodes() []fleet.NodeID { return h.nodes }

// Beat returns the beat to be sent now to every node. It is made before anything
// is written to a socket: its SentAt must not be later than the sending.
func (h *Holder) Beat(now Mono) Beat {
	return Beat{Version: h.version, FenceAfter: h.fenceAfter, SentAt: now}
}

// Acked counts node's acknowledgement of b. Late and repeated ones are harmless.
func (h *Holder) Acked(node fleet.NodeID, b Beat, now Mono) {
	h.settle(now)
	i, ok := slices.BinarySearch(h.nodes, node)
	if !ok || b.SentAt <= 0 || b.SentAt > now {
		return
	}
	h.until[i] = max(h.until[i], b.SentAt.Add(b.FenceAfter))
	h.renew(now)
}

// settle ends the lease when it has run out, before anything can renew it: one
// that ran out unnoticed must not come back to life.
func (h *Holder) settle(now Mono) {
	if now >= h.deadline {
		h.deadline = 0
	}
}

// renew computes the deadline anew; a lease that was over becomes a new one.
func (h *Holder) renew(now Mono) {
	var d Mono
	if len(h.until) > 0 {
		newest := slices.Clone(h.until)
		slices.Sort(newest)
		d = newest[len(newest)-majority(len(newest))]
	}
	if d <= now {
		h.deadline = 0
		return
	}
	if h.deadline == 0 {
		h.number++
	}
	h.deadline = d
}

// Lease returns the number of the lease that is held at now and when it runs out
// unless it is renewed. held is false when there is none. An attempt belongs to
// the lease under which it was started: when the number has changed, or nothing
// is held, it must be ended, and its supervisor's deadline must not be extended.
func (h *Holder) Lease(now Mono) (number uint64, deadline Mono, held bool) {
	h.settle(now)
	return h.number, h.deadline, h.deadline != 0
}

// Held reports whether a lease is held at now.
func (h *Holder) Held(now Mono) bool {
	_, _, held := h.Lease(now)
	return held
}

// Deadline returns when the newest lease runs out, 0 when it has or there was none.
func (h *Holder) Deadline() Mono { return h.deadline }

// MayStart reports whether an attempt may be started at now that came in the
// answer to a request sent at requestSentAt.
func (h *Holder) MayStart(requestSentAt, now Mono) bool {
	return h.Held(now) && requestSentAt > 0 && requestSentAt <= now && now-requestSentAt < Mono(0).Add(StartWindow)
}
