// Package lease holds the rules by which a host keeps its tasks and the control
// plane may give them elsewhere. The agent (Holder), every node (Witness), the
// leader (Lost, MayDeclareLost, MayReassign, Guard) and the simulator run this
// same code. It is pure: it has no clock, no goroutine and no I/O, and nothing
// in it is safe for concurrent use. It decides; it neither sends nor kills.
//
// # The problem
//
// A task must never run in two places at once (P2), though a silent host and a
// dead one look the same. So the host ends its tasks by itself, and the leader
// waits until it has certainly done so. No clock of one machine is compared with
// a clock of another; all that is assumed is that each runs within 1% of true.
//
// # The way chosen
//
// The agent beats every few seconds to every node. Its lease holds while a
// majority of the nodes have acknowledged beats that it SENT within FenceAfter.
// A node records an acknowledgement before it answers. The leader asks every
// node; when a majority, itself included, testify that they have acknowledged
// nothing for FenceAfter plus Margin, the lease is over: the two majorities share
// a node, which cannot be on both sides.
//
// Seven things make that argument hold, and each has a test that fails without it:
//
//  1. Rates. The agent's clock may be slow while the node's is fast: Margin.
//  2. One moment. Testimonies of different moments prove nothing together: the
//     host may have been heard by one node before and by another since. All are
//     given within AskWithin of the question, and Margin covers that.
//  3. Lapses stick. An agent that slept through the end of its lease and then
//     finds acknowledgements in its socket has a NEW lease; the attempts of the
//     old one were declared lost meanwhile. Hence the number of a lease: an
//     attempt ends with the lease under which it was started.
//  4. Restarts. A node that just started does not know what it acknowledged
//     before: it testifies nothing for as long as such a lease may last.
//  5. Memberships. Agent and leader may count different sets of nodes; see below.
//  6. Deliveries. An attempt that is on its way to the agent could start under a
//     new lease after the testimony: MayDeclareLost asks for StartWindow first.
//  7. FenceAfter may change. Every beat carries the value that it is worth, and
//     the witness keeps the longest promise that it made.
//
// # Memberships
//
// Memberships change by one node at a time, and the next change is proposed only
// after the one before it is committed, so the majorities of two neighbours meet.
// A node's version is that of the newest membership IN ITS LOG, committed or not;
// agents are told committed ones only. The rules: a node acknowledges no beat
// with an older version than its own; and it testifies only for the version that
// it has had for the whole silence; and the leader counts only testimonies for
// the version of its own. Let the agent count version a and the leader version l:
//
//   - l and a are the same or neighbours: the majorities meet.
//   - l is further on: a+1 was committed before l was proposed, so a majority of
//     a+1 has a+1 in its log, and one of them is among those that acknowledged.
//     It did so before it had a+1, so before l was proposed, so before the
//     silence began of those who have had l all the time. That beat is too old.
//   - l is further back: l+1 was committed before the agent could hear of a, so a
//     majority of l+1 has it, and one of those asked testifies for l+1 or later.
//
// Acknowledging beats that are one change behind (as the first design had it) is
// not safe: of 1 2 3 the nodes 1 and 2 are cut off together with the agent while
// 4 and 5 join. Node 1 has heard of 4, and goes on acknowledging a beat for
// {1 2 3}; 3, 4 and 5 are a majority of five, and have truly heard nothing.
// TestOneBehindIsUnsafe plays it. The price of strictness is one refused beat
// after a change (the refusal brings the new membership), that no attempt is
// declared lost for FenceAfter after it, and that a node whose newest membership
// is never committed (its leader died in the very act, and no other follows)
// acknowledges nothing.
//
// # Stalls
//
// A witness that was stopped, or starved, has not listened. That cannot make its
// testimony false: it acknowledged nothing while it stood still, and "I have
// acknowledged nothing" is all that it testifies. It would make it unkind: hosts
// would be called silent that nobody listened to (P5). So a stall does not count
// as silence, which makes testimony late, and never early. A paused machine whose
// clock stands still is late for the same reason.
//
// The agent's side is the other way round: its clock must not stand still, or a
// laptop lid would stretch the lease. It counts on CLOCK_BOOTTIME, and supervisors
// know the deadline too. A virtual machine paused by its hypervisor without a
// correction of that clock is outside the bounds; its results are fenced instead.
//
// # The way not taken
//
// Leases through the log (as etcd has them) would cost an entry a beat, and end
// with the quorum. A blanket grace after each election (Nomad: 300 s; Eureka:
// 5 min) makes every fail-over a time in which no loss is noticed; here a new
// leader asks its peers instead, who have listened all the while.
package lease

import "footplate/fleet"

// Mono is a moment on the monotonic clock of one machine, in nanoseconds: for an
// agent CLOCK_BOOTTIME, for a node any clock that never jumps. Always positive;
// zero means "never". It is meaningless to another machine, and after a reboot.
type Mono int64

// Add returns m+d.
func (m Mono) Add(d fleet.Duration) Mono { return m + Mono(d)*1e6 }

// Sub returns m-u, rounded toward zero to the millisecond.
func (m Mono) Sub(u Mono) fleet.Duration { return fleet.Duration((m - u) / 1e6) }

// The bounds.
const (
	// BeatEvery is how often an agent beats to every node.
	BeatEvery = 3 * fleet.Second
	// StartWindow: an attempt starts within this much of the sending of the
	// request that fetched it, on the agent's clock, or not at all.
	StartWindow = 5 * fleet.Second
	// AskWithin: testimonies count together when the last of them arrived
	// within this much of the question, on the leader's clock.
	AskWithin = fleet.Second
	// Reaction is what Margin leaves, in true time, between the end of the lease
	// and the earliest verdict, for the processes to be gone.
	Reaction = 1900 * fleet.Millisecond
	// MaxFenceAfter is the longest FenceAfter that a witness can vouch for.
	MaxFenceAfter = fleet.Hour
	// StallAfter: a witness that was not called for longer than this stalled, and
	// only this much of the pause counts as listening.
	StallAfter = fleet.Second
	// TickEvery is how often Witness.Tick is to be called: well within StallAfter.
	TickEvery = 250 * fleet.Millisecond
)

// Margin is how much longer than fenceAfter a witness waits before it testifies.
//
// Let every clock run within 1% of true. A node acknowledged at true time A a
// beat that was sent before A. The agent, its clock slow, ends its lease by
// A + F/0.99. The node, its clock fast, testifies no earlier than A + (F+m)/1.01.
// The verdict needs the lease to have ended when the FIRST testimony of the same
// question was given, up to AskWithin/0.99 before, and Reaction before that:
//
//	(F+m)/1.01 >= F/0.99 + AskWithin/0.99 + Reaction
//	m >= (1.01/0.99 - 1) F + 1.01/0.99 AskWithin + 1.01 Reaction
//	m >= 0.0203 F + 1.0203 s + 1.919 s
//
// which 21 per mille of F, rounded up, and 3 s cover.
func Margin(fenceAfter fleet.Duration) fleet.Duration {
	return (fenceAfter*21+999)/1000 + 3*fleet.Second
}

// startMargin is to StartWindow what Margin is to FenceAfter: the agent's clock
// slow and the leader's fast, 5 s become 5.102 s.
const startMargin = 200 * fleet.Millisecond

// majority is the least number that is more than half of n.
func majority(n int) int { return n/2 + 1 }
