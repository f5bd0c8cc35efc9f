package lease

import (
	"fmt"

	"footplate/fleet"
)

// HostKey names one boot of a host: another boot is another life.
type HostKey struct {
	Host fleet.HostID `json:"host"`
	Boot fleet.BootID `json:"boot"`
}

// Testimony is what one node says about one boot of a host.
type Testimony struct {
	Node    fleet.NodeID `json:"node"`
	Version uint64       `json:"members"` // of the newest membership in its log
	// Silent: for the whole time that was asked about, and the margin, the node
	// has run, has had this membership, and has acknowledged nothing.
	Silent bool   `json:"silent"`
	Why    string `json:"why"` // in a sentence
}

// Witness is a node's side: it acknowledges beats and remembers that it did. It
// lives in memory alone; a node that restarts makes a new one.
//
// Its owner must serialize the calls, and send an acknowledgement only after
// Beat has returned. All now are of the one monotonic clock of the process.
type Witness struct {
	node      fleet.NodeID
	version   uint64
	versionAt Mono // when the version became what it is, on the liveness clock
	startedAt Mono // on the liveness clock

	live     Mono // the liveness clock: counts the time in which the node listened
	calledAt Mono // the real clock at the newest call

	seen  []acked
	index map[HostKey]int // in seen
}

// acked is what a witness remembers of a boot that it acknowledged. Moments are
// on the liveness clock.
type acked struct {
	key         HostKey
	incarnation fleet.Incarnation
	at          Mono // the newest acknowledgement
	clearAt     Mono // when all acknowledgements and their margins have run out
}

// forgetAfter is how long after its last acknowledgement a boot is remembered. It
// exceeds any FenceAfter with its margin: a boot that was forgotten is as silent
// as one that was never heard.
const forgetAfter = 2 * MaxFenceAfter

// NewWitness returns the witness of a node that starts at now with a membership
// of that version in its log.
func NewWitness(node fleet.NodeID, version uint64, now Mono) *Witness {
	return &Witness{
		node: node, version: version,
		versionAt: now, startedAt: now, live: now, calledAt: now,
		index: make(map[HostKey]int),
	}
}

// advance moves the liveness clock, by no more than StallAfter at a time.
func (w *Witness) advance(now Mono) {
	if now <= w.calledAt {
		return
	}
	w.live += min(now-w.calledAt, Mono(0).Add(StallAfter))
	w.calledAt = now
}

// Tick is called every TickEvery, so that a pause without calls means a stall. It
// also forgets one boot at most that was silent for hours.
func (w *Witness) Tick(now Mono) {
	w.advance(now)
	if len(w.seen) == 0 {
		return
	}
	// A different one each time, without keeping a cursor that removals would upset.
	i := int(now/Mono(0).Add(TickEvery)) % len(w.seen)
	if w.live > w.seen[i].at.Add(forgetAfter) {
		w.forget(i)
	}
}

func (w *Witness) forget(i int) {
	last := len(w.seen) - 1
	delete(w.index, w.seen[i].key)
	if i != last {
		w.seen[i] = w.seen[last]
		w.index[w.seen[i].key] = i
	}
	w.seen = w.seen[:last]
}

// SetVersion tells the witness the version of the newest membership in the node's
// log. It may go back, when an uncommitted one is overwritten. It is to be told
// before the node acknowledges the log entry to its leader, the proof leans on
// that: what wraps the log store sees the entry in time.
func (w *Witness) SetVersion(version uint64, now Mono) {
	w.advance(now)
	if version != w.version {
		w.version, w.versionAt = version, w.live
	}
}

// Version returns the version of the membership that the witness was told last.
func (w *Witness) Version() uint64 { return w.version }

// Beat decides whether a beat of that boot and incarnation is acknowledged, and
// records it if so. Otherwise why says why not, in a sentence; after a refusal
// for the membership's sake the agent is to be told the committed one.
func (w *Witness) Beat(host HostKey, incarnation fleet.Incarnation, b Beat, now Mono) (ok bool, why string) {
	w.advance(now)
	i, known := w.index[host]
	switch {
	case b.Version < w.version:
		return false, fmt.Sprintf("the beat counts membership %d, and the node has %d", b.Version, w.version)
	case b.FenceAfter <= 0 || b.FenceAfter > MaxFenceAfter:
		return false, fmt.Sprintf("fence-after is %s; it must lie between 0 and %s", b.FenceAfter, MaxFenceAfter)
	case known && incarnation < w.seen[i].incarnation:
		return false, fmt.Sprintf("incarnation %d of the agent was followed by %d", incarnation, w.seen[i].incarnation)
	}
	if !known {
		i = len(w.seen)
		w.index[host] = i
		w.seen = append(w.seen, acked{key: host})
	}
	s := &w.seen[i]
	s.incarnation = incarnation
	s.at = w.live
	s.clearAt = max(s.clearAt, w.live.Add(b.FenceAfter).Add(Margin(b.FenceAfter)))
	return true, ""
}

// SilentFor returns for how long the node has listened and acknowledged nothing
// of that boot; heard is false when it never did, and then it is the time since
// the node started.
func (w *Witness) SilentFor(host HostKey, now Mono) (d fleet.Duration, heard bool) {
	w.advance(now)
	if i, ok := w.index[host]; ok {
		return w.live.Sub(w.seen[i].at), true
	}
	return w.live.Sub(w.startedAt), false
}

// Testify says whether the node has acknowledged nothing of that boot for
// fenceAfter and the margin.
//
// fenceAfter must be the longest that a beat of that boot may have carried: after
// a pool's value was lowered, the old one is asked about until its margin is over.
// (A witness that heard the longer promise itself keeps to it; one that was
// restarted meanwhile cannot know.)
func (w *Witness) Testify(host HostKey, fenceAfter fleet.Duration, now Mono) Testimony {
	w.advance(now)
	t := Testimony{Node: w.node, Version: w.version}
	need := fenceAfter + Margin(fenceAfter)
	enough := Mono(0).Add(need)
	i, known := w.index[host]
	switch {
	case fenceAfter <= 0 || fenceAfter > MaxFenceAfter:
		t.Why = fmt.Sprintf("fence-after is %s; it must lie between 0 and %s", fenceAfter, MaxFenceAfter)
	case w.live-w.startedAt < enough:
		t.Why = fmt.Sprintf("the node has listened for %s, and %s are needed", w.live.Sub(w.startedAt), need)
	case w.live-w.versionAt < enough:
		t.Why = fmt.Sprintf("the node has had membership %d for %s, and %s are needed", w.version, w.live.Sub(w.versionAt), need)
	case known && (w.live-w.seen[i].at < enough || w.live < w.seen[i].clearAt):
		t.Why = fmt.Sprintf("the node acknowledged a beat %s ago", w.live.Sub(w.seen[i].at))
	default:
		t.Silent = true
		t.Why = fmt.Sprintf("the node has acknowledged nothing for %s", need)
	}
	return t
}
