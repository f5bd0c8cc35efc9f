package agent

import (
	"cmp"
	"fmt"
	"slices"

	"footplate/controlplane/api"
	"footplate/fleet"
	"footplate/fleet/lease"
)

// The bounds of what a Duty does.
const (
	// syncTimeout is how long a sync may take before it is given up; longer than
	// the leader holds it.
	syncTimeout = api.SyncHold + 3*fleet.Second
	// askTimeout is the same for a sync that says that nothing is known: it is
	// never held.
	askTimeout = 4 * fleet.Second
	// syncApart: a sync that is younger than this is not given up for news.
	syncApart = 50 * fleet.Millisecond
	// retryFirst and retryMost bound the wait after a sync that failed. The
	// first is short: another node may well answer.
	retryFirst = 50 * fleet.Millisecond
	retryMost  = 2 * fleet.Second
	// calm is the least time between two syncs that bring nothing new.
	calm = 250 * fleet.Millisecond
	// reportWithin bounds the wait for the leader's ear of an agent that ends,
	// once its attempts have ended.
	reportWithin = 3 * fleet.Second
	// endWithin bounds the wait for attempts that were killed, when the agent
	// ends. What is left then dies with it.
	endWithin = 10 * fleet.Second
	// rememberEnds is how many attempts are remembered after they were forgotten.
	rememberEnds = 4096
)

// Identity is who an agent is; it never changes while the agent runs.
type Identity struct {
	Host        fleet.HostID
	Pool        fleet.PoolName
	Launch      fleet.LaunchID
	Boot        fleet.BootID
	Incarnation fleet.Incarnation
	Slots       int
	Version     string
	// Seeds are where the first sync goes and whom the first beats are for, before
	// the leader has said which nodes there are.
	Seeds []api.NodeAddr
}

// Duty is what an agent decides: when to sync and to beat, what to start, cancel
// and kill, when to end. It has no clock, no goroutine, no randomness and no
// I/O; the agent and the simulator drive the same one:
//
//	d := NewDuty(identity)
//	for {
//		fx := d.Step(now, input)   // input: what happened since; may be zero
//		carry out fx               // kills first; see Effects
//		wait for something to happen, at most until fx.Wake
//	}
//
// now is lease.Mono on the agent's CLOCK_BOOTTIME, and never goes back; it must
// be read before what fx sends is written to a socket, and after what input
// brings was read from one. A Duty is not safe for concurrent use. Everything
// may come late, twice or never.
//
// What it promises: an attempt is started only while a lease is held and within
// lease.StartWindow of the sync that fetched it; from that decision on it is in
// every sync until the leader has recorded its end; it is killed when its lease
// ends, and is never extended by another one.
type Duty struct {
	id     Identity
	holder *lease.Holder
	nodes  []api.NodeAddr
	fence  fleet.Duration // 0 until the leader has said it

	held []heldAttempt     // sorted by attempt
	ends []fleet.AttemptID // forgotten, oldest first

	seq     uint64
	beatSeq uint64
	out     *sent // the sync that is under way
	known   string
	stamp   lease.Stamp
	fails   int
	syncAt  lease.Mono // the next one is not sent before
	news    bool       // there is something that the newest sync did not say
	beatAt  lease.Mono // the next beat
	told    lease.Mono // the deadline that supervisors were told last

	ending   string // why everything is ended and the agent exits; "" while it isn't
	endingAt lease.Mono
	overAt   lease.Mono // when the last attempt had ended
	leaving  bool       // nobody waits for a report
	again    bool       // the agent begins anew then, as another incarnation
	reported bool       // the leader has been told that all has ended
}

// heldAttempt is an attempt from the decision to start it until it is forgotten.
type heldAttempt struct {
	api.HeldAttempt
	lease    uint64 // the number of the lease under which it was started
	dead     bool   // none of its processes is left
	canceled bool   // it was told to end
	killed   bool
}

// sent is a sync that is under way.
type sent struct {
	seq   uint64
	at    lease.Mono
	until lease.Mono        // given up then
	ended []fleet.AttemptID // what it said has ended
}

// Input is what happened since the last step.
type Input struct {
	Sync     *Synced
	Beats    []Beaten
	Attempts []Progress
	Stop     bool // the agent was told to end
	// Recovered: the cluster goes on from an earlier state. What the agent was
	// given before may be unknown there, or be given to somebody else, and nobody
	// takes its reports.
	Recovered bool
}

// Synced is what came of a sync.
type Synced struct {
	Seq   uint64
	Reply *api.SyncReply // nil: it failed, at whatever stage
}

// Beaten is a node's answer to a beat. A beat that failed is not told.
type Beaten struct {
	To    fleet.NodeID // whom it was meant for; "" for a seed without a name
	Beat  api.Beat     // as it was in Effects
	Reply api.BeatReply
}

// Progress is what is known of an attempt now; it is told when that changes.
type Progress struct {
	Attempt fleet.AttemptID
	Phase   fleet.Phase
	Dead    bool // none of its processes is left; always so with PhaseEnded
	Outcome fleet.Outcome
	Exit    int
	Why     string
}

// Effects are what shall be done now, in the order of the fields.
type Effects struct {
	Kill   []Order // at once; the outcome is fleet.Lost, with this why
	Cancel []Order
	Start  []Start
	// Extend: the supervisors of these attempts shall know that the lease now
	// ends at Deadline.
	Extend   []fleet.AttemptID
	Deadline lease.Mono
	Forget   []fleet.AttemptID // their end is recorded: remove what is left
	Beat     *Beat
	Sync     *api.Sync // send it; the one under way, if any, is given up
	GiveUp   bool      // give the sync under way up without sending another
	Exit     bool      // nothing is left to do
	Again    bool      // with Exit: begin anew, as another incarnation
	Wake     lease.Mono
}

// Order is an order about one attempt.
type Order struct {
	Attempt fleet.AttemptID
	Why     string
}

// Start is an attempt to start.
type Start struct {
	api.Order
	By       lease.Mono // not at or after this: then its Progress is "ended", lost
	Deadline lease.Mono // at which its supervisor ends it, until it is extended
}

// Beat is a beat to be sent to every node, each by itself.
type Beat struct {
	api.Beat
	To []api.NodeAddr
}

// NewDuty returns the duty of an agent that has made sure that nothing runs.
func NewDuty(id Identity) *Duty {
	return &Duty{id: id, holder: lease.NewHolder(0, 0, nil), nodes: id.Seeds, news: true}
}

// Nodes returns the nodes of the control plane as far as they are known; not to
// be written to.
func (d *Duty) Nodes() []api.NodeAddr { return d.nodes }

// Lease returns until when the lease is held; held is false when it is not.
func (d *Duty) Lease(now lease.Mono) (deadline lease.Mono, held bool) {
	_, deadline, held = d.holder.Lease(now)
	return deadline, held
}

// Holds lists what the agent holds; for tests and the simulator.
func (d *Duty) Holds() []api.HeldAttempt {
	out := make([]api.HeldAttempt, len(d.held))
	for i, a := range d.held {
		out[i] = a.HeldAttempt
	}
	return out
}

// Step takes in what happened and says what to do.
func (d *Duty) Step(now lease.Mono, in Input) Effects {
	var fx Effects
	if in.Stop {
		d.again = false
		if d.ending == "" {
			d.end(now, "the agent was told to end")
		}
	}
	if in.Recovered && d.ending == "" {
		d.leaving, d.again = true, true
		d.end(now, "the control plane was recovered, and goes on without it")
	}
	for _, p := range in.Attempts {
		d.progress(p)
	}
	for _, b := range in.Beats {
		d.beaten(now, b)
	}
	d.lapse(now, &fx)
	if in.Sync != nil {
		d.synced(now, *in.Sync, &fx)
	}
	if d.ending != "" {
		d.killAll(&fx, d.ending)
	}
	d.extend(now, &fx)
	d.beat(now, &fx)
	if d.exits(now) {
		fx.Exit, fx.Again = true, d.again
		return fx
	}
	d.sync(now, &fx)
	fx.Wake = d.wake(now)
	return fx
}

func (d *Duty) find(id fleet.AttemptID) (int, bool) {
	return slices.BinarySearchFunc(d.held, id, func(a heldAttempt, id fleet.AttemptID) int { return cmp.Compare(a.Attempt, id) })
}

func (d *Duty) end(now lease.Mono, why string) {
	d.ending, d.endingAt = why, now
}

// progress takes in the word of a supervisor.
func (d *Duty) progress(p Progress) {
	i, ok := d.find(p.Attempt)
	if !ok {
		return
	}
	a := &d.held[i]
	if a.Phase == fleet.PhaseEnded {
		return // the first word is the last
	}
	a.dead = a.dead || p.Dead || p.Phase == fleet.PhaseEnded
	h := api.HeldAttempt{Attempt: p.Attempt, Phase: p.Phase}
	if p.Phase == fleet.PhaseEnded {
		h.Outcome, h.Exit, h.Why = p.Outcome, p.Exit, p.Why
	}
	if h != a.HeldAttempt {
		a.HeldAttempt = h
		d.news = true
	}
}

// beaten counts an acknowledgement, or learns from a refusal.
func (d *Duty) beaten(now lease.Mono, b Beaten) {
	if b.To != "" && b.To != b.Reply.Node {
		return // another node answers at its address
	}
	if b.Reply.Ack {
		held := d.holder.Held(now)
		d.holder.Acked(b.Reply.Node, b.Beat.Beat, now)
		if !held && d.holder.Held(now) && d.fails == 0 {
			d.news, d.syncAt = true, now // what could not be started before may be now
		}
		return
	}
	d.members(now, b.Reply.Members, b.Reply.Nodes)
}

// members takes in a membership that is newer than ours.
func (d *Duty) members(now lease.Mono, version uint64, nodes []api.NodeAddr) {
	if len(nodes) == 0 || version < d.holder.Version() {
		return
	}
	d.nodes = nodes
	if version == d.holder.Version() {
		return
	}
	ids := make([]fleet.NodeID, len(nodes))
	for i, n := range nodes {
		ids[i] = n.Node
	}
	d.holder.SetMembers(version, ids, now)
	d.beatAt = now // beats that counted the old one are refused
}

// lapse kills what was started under a lease that is over.
func (d *Duty) lapse(now lease.Mono, fx *Effects) {
	number, _, held := d.holder.Lease(now)
	for i := range d.held {
		a := &d.held[i]
		if !a.dead && !a.killed && (!held || a.lease != number) {
			d.kill(a, "the host lost its lease", fx)
		}
	}
}

func (d *Duty) kill(a *heldAttempt, why string, fx *Effects) {
	if a.dead || a.killed {
		return
	}
	a.killed = true
	fx.Kill = append(fx.Kill, Order{a.Attempt, why})
}

func (d *Duty) killAll(fx *Effects, why string) {
	for i := range d.held {
		d.kill(&d.held[i], why, fx)
	}
}

// synced takes in the answer to a sync.
func (d *Duty) synced(now lease.Mono, s Synced, fx *Effects) {
	if d.out == nil || s.Seq != d.out.seq {
		return // it was given up, and what it brings is too old to be trusted
	}
	out := *d.out
	d.out = nil
	r := s.Reply
	// That a host is ended is said out of the log, without a stamp. Anything else
	// from an earlier term is the word of a leader that was deposed.
	final := r != nil && r.Leave && r.Stamp.Term == 0
	if r == nil || r.Stamp.Term < d.stamp.Term && !final {
		d.failed(now)
		return
	}
	d.fails, d.syncAt = 0, now
	if r.Known == d.known && now < out.at.Add(calm) {
		d.syncAt = out.at.Add(calm)
	}
	d.known, d.stamp = r.Known, r.Stamp
	if r.FenceAfter > 0 && r.FenceAfter != d.fence {
		d.fence = r.FenceAfter
		d.holder.SetFenceAfter(r.FenceAfter)
		d.beatAt = now
	}
	d.members(now, r.Members, r.Nodes)
	if r.Leave && d.ending == "" {
		d.leaving = true
		d.end(now, "the host is ended")
	}
	for _, id := range r.Kill {
		d.disown(id, out, fx)
	}
	for _, id := range r.Forget {
		d.forget(id, out, fx)
	}
	for _, id := range r.Cancel {
		if i, ok := d.find(id); ok && !d.held[i].dead && !d.held[i].canceled {
			d.held[i].canceled = true
			fx.Cancel = append(fx.Cancel, Order{id, "canceled"})
		}
	}
	for _, o := range r.Start {
		d.start(now, o, out, fx)
	}
	d.reported = d.ending != "" && d.allEnded(out.ended)
}

// disown ends an attempt that is not ours any more. Its end is reported all the
// same: a build may wait for proof of it.
func (d *Duty) disown(id fleet.AttemptID, out sent, fx *Effects) {
	i, ok := d.find(id)
	switch {
	case !ok:
	case d.held[i].Phase == fleet.PhaseEnded:
		d.forget(id, out, fx)
	default:
		d.kill(&d.held[i], "the control plane has given it up", fx)
	}
}

// forget drops an attempt whose end the leader has been told.
func (d *Duty) forget(id fleet.AttemptID, out sent, fx *Effects) {
	i, ok := d.find(id)
	if !ok || d.held[i].Phase != fleet.PhaseEnded || !slices.Contains(out.ended, id) {
		return
	}
	d.held = slices.Delete(d.held, i, i+1)
	d.ends = append(d.ends, id)
	if len(d.ends) > rememberEnds {
		d.ends = slices.Clone(d.ends[len(d.ends)-rememberEnds:])
	}
	fx.Forget = append(fx.Forget, id)
}

// start decides whether an attempt is started.
func (d *Duty) start(now lease.Mono, o api.Order, out sent, fx *Effects) {
	i, ok := d.find(o.Attempt)
	switch {
	case ok || slices.Contains(d.ends, o.Attempt):
		return // it is under way, or over: nothing is run twice
	case d.ending != "":
		return
	case !d.holder.MayStart(out.at, now):
		// Too late, or there is no lease yet. The leader is asked again, as one
		// who knows nothing of the order.
		d.known = ""
		d.news = true
		d.syncAt = now.Add(calm)
		return
	}
	number, deadline, _ := d.holder.Lease(now)
	d.held = slices.Insert(d.held, i, heldAttempt{
		HeldAttempt: api.HeldAttempt{Attempt: o.Attempt, Phase: fleet.PhaseSetup}, lease: number,
	})
	d.news = true
	fx.Start = append(fx.Start, Start{Order: o, By: min(out.at.Add(lease.StartWindow), deadline), Deadline: deadline})
}

// extend tells the supervisors when the lease was renewed.
func (d *Duty) extend(now lease.Mono, fx *Effects) {
	number, deadline, held := d.holder.Lease(now)
	if !held || deadline == d.told {
		return
	}
	d.told = deadline
	for _, a := range d.held {
		if !a.dead && !a.killed && a.lease == number {
			fx.Extend = append(fx.Extend, a.Attempt)
		}
	}
	fx.Deadline = deadline
}

// beatEvery is how often to beat: several times within the fence, also when
// that is short.
func (d *Duty) beatEvery() fleet.Duration { return min(lease.BeatEvery, d.fence/5) }

// beat sends one to every node, once the leader has said what a beat is worth.
func (d *Duty) beat(now lease.Mono, fx *Effects) {
	if d.fence == 0 || now < d.beatAt || d.leaving {
		return
	}
	d.beatSeq++
	d.beatAt = now.Add(d.beatEvery())
	fx.Beat = &Beat{To: d.nodes, Beat: api.Beat{
		Host: d.id.Host, Boot: d.id.Boot, Incarnation: d.id.Incarnation, Seq: d.beatSeq, Beat: d.holder.Beat(now),
	}}
}

// failed puts the next sync off, a little differently on each host.
func (d *Duty) failed(now lease.Mono) {
	wait := min(retryFirst<<min(d.fails, 10), retryMost)
	d.fails++
	d.known = ""
	d.syncAt = now.Add(wait/2 + fleet.Duration(d.dice()%uint64(wait/2+1)))
	d.news = true
}

// dice is a number that looks random and depends on host and sync alone (FNV-1a).
func (d *Duty) dice() uint64 {
	h := uint64(14695981039346656037)
	for _, c := range []byte(fmt.Sprint(d.id.Host, d.id.Boot, d.seq)) {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return h >> 16
}

// sync sends one when none is under way, or when there is news that the one
// under way does not say.
func (d *Duty) sync(now lease.Mono, fx *Effects) {
	if d.out != nil && now >= d.out.until {
		d.out = nil
		d.failed(now)
		fx.GiveUp = true
	}
	if d.out != nil && (!d.news || now < d.out.at.Add(syncApart)) {
		return
	}
	if now < d.syncAt {
		return
	}
	d.seq++
	d.news = false
	s := api.Sync{
		Host: d.id.Host, Pool: d.id.Pool, Launch: d.id.Launch, Boot: d.id.Boot, Incarnation: d.id.Incarnation,
		Seq: d.seq, Slots: d.id.Slots, Version: d.id.Version, Attempts: d.Holds(),
		Members: d.holder.Version(), Known: d.known, Stamp: d.stamp,
	}
	d.out = &sent{seq: d.seq, at: now, until: now.Add(syncTimeout)}
	if d.known == "" {
		d.out.until = now.Add(askTimeout)
	}
	for _, a := range d.held {
		if a.Phase == fleet.PhaseEnded {
			d.out.ended = append(d.out.ended, a.Attempt)
		}
	}
	fx.Sync, fx.GiveUp = &s, false
}

// allEnded reports whether every attempt has ended and is among those named.
func (d *Duty) allEnded(named []fleet.AttemptID) bool {
	for _, a := range d.held {
		if a.Phase != fleet.PhaseEnded || !slices.Contains(named, a.Attempt) {
			return false
		}
	}
	return true
}

// exits reports whether an agent that ends has nothing left to do.
func (d *Duty) exits(now lease.Mono) bool {
	if d.ending == "" {
		return false
	}
	over := true
	for _, a := range d.held {
		over = over && a.Phase == fleet.PhaseEnded
	}
	if over && d.overAt == 0 {
		d.overAt = now
	}
	switch {
	case !over:
		return now >= d.endingAt.Add(endWithin)
	case d.leaving, d.reported, len(d.held) == 0:
		return true
	}
	return now >= d.overAt.Add(reportWithin)
}

// wake is when something is due although nothing happens.
func (d *Duty) wake(now lease.Mono) lease.Mono {
	w := now.Add(fleet.Minute)
	sooner := func(m lease.Mono) {
		if m > now {
			w = min(w, m)
		}
	}
	if d.fence > 0 && !d.leaving {
		sooner(d.beatAt)
	}
	if _, deadline, held := d.holder.Lease(now); held {
		sooner(deadline)
	}
	switch {
	case d.out == nil:
		sooner(d.syncAt)
	default:
		sooner(d.out.until)
		if d.news {
			sooner(max(d.syncAt, d.out.at.Add(syncApart)))
		}
	}
	if d.ending != "" {
		sooner(d.endingAt.Add(endWithin))
		if d.overAt != 0 {
			sooner(d.overAt.Add(reportWithin))
		}
	}
	return w
}
