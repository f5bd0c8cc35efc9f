package sim

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"footplate/controlplane/catalog"
	"footplate/controlplane/loop"
	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
	"footplate/fleet/lease"
)

// oracle applies the log the moment it is committed, knows the truth, and holds
// the one against the other.
type oracle struct {
	w     *world
	st    *state.State
	view  *state.View
	index int

	ends     []fleet.Time // the state clock after each entry of the log
	since    fleet.Time   // that after the first
	ahead    int64        // the least that it was ahead of the fastest that may be
	heard    []int64      // by node: when the last entry came that it has applied, or it started
	opened   fleet.Time   // the clock of the newest leader when it began, at openedAt
	openedAt int64
	term     uint64 // of that leader

	digests map[int]string
	hashes  []string          // of entries, by number less 1
	keys    []string          // of entries
	head    string            // of the chain
	effects map[string]int    // by principal and key: how often a command had an effect
	keyOf   map[string]string // by salt, where a weakness has taken the key away
	shown   []fleet.EntryNo   // what the channel must show, in order
	setAt   map[string]int64  // by override: when it was set, in true time
	// replaced is when silent hosts of each pool were replaced lately, in true time.
	replaced map[fleet.PoolName][]int64
	setFor   map[string]fleet.Duration
	trees    map[[2]int][]*tree // that live, by build and task
	passed   map[fleet.AttemptID]fleet.Outcome

	progressAt int64                    // when a task or a retired build came to its end last
	endedAt    map[state.Finished]int64 // when it was seen first
	retired    map[fleet.BuildID]bool
}

func newOracle(w *world) *oracle {
	o := &oracle{
		w: w, st: state.New(),
		digests: make(map[int]string), effects: make(map[string]int), keyOf: make(map[string]string),
		replaced: make(map[fleet.PoolName][]int64),
		setAt:    make(map[string]int64), setFor: make(map[string]fleet.Duration),
		trees: make(map[[2]int][]*tree), passed: make(map[fleet.AttemptID]fleet.Outcome),
		heard:   make([]int64, len(w.nodes)),
		endedAt: make(map[state.Finished]int64), retired: make(map[fleet.BuildID]bool),
	}
	o.view = o.st.Publish()
	return o
}

// apply applies one committed entry, and looks at what it did.
func (o *oracle) apply(e *entry) {
	w, before := o.w, o.view
	o.index++
	applied, err := w.apply(o.st, o.index, e.batch)
	if err != nil {
		w.broken("P13", "log entry %d cannot be applied: %s", o.index, err)
		return
	}
	if o.index%digestEvery == 0 {
		o.digests[o.index] = o.st.Digest()
	}
	o.view = o.st.Publish()
	o.clock(e)
	for i := range e.batch.Commands {
		o.command(e, i, applied.Outcomes[i], before)
	}
	for i := range applied.Entries {
		o.entry(&applied.Entries[i])
	}
	for n := before.Parcel + 1; n <= o.view.Parcel; n++ {
		p, ok := o.view.Outbox.Get(fleet.EntryNo(n))
		if !ok {
			w.broken("P4", "parcel %d is not in the outbox after it was put there", n)
		}
		o.shown = append(o.shown, p.Entry)
	}
	o.bounds()
}

// The pace of the state clock: true time, a clock's 1% and the slew of 5%, either
// way; and what is lost where milliseconds are cut off.
const (
	fastest  = 107 // percent
	slowest  = 93
	rounding = 10 * ms
)

// clock checks that the state clock runs no faster than it may between any two
// entries, and no slower while one node leads.
func (o *oracle) clock(e *entry) {
	o.ends = append(o.ends, o.view.Clock)
	if e.mark() {
		return
	}
	if e.term == o.term {
		if ran, must := o.view.Clock.Sub(o.opened), seconds((e.at-o.openedAt)*slowest/100-rounding); ran < must {
			o.w.broken("clock", "the state clock ran %s in %.3f s of one leader", ran, float64(e.at-o.openedAt)/1e9)
		}
	}
	ahead := int64(o.view.Clock.Sub(epoch))*ms - e.at*fastest/100
	if o.since.IsZero() {
		o.since, o.ahead = o.view.Clock, ahead
	}
	if ahead > o.ahead+rounding {
		o.w.broken("P5", "the state clock ran %.3f s faster than it may", float64(ahead-o.ahead)/1e9)
	}
	o.ahead = min(o.ahead, ahead)
}

// resumed checks that a new leader's clock goes on from where the log left it,
// with all that has passed since the end of the log came to that node. With each
// leader the state clock so falls behind by no more than what the last entry took
// from its stamp to the next leader's disk, or, if that node was started since, to
// its state.
func (o *oracle) resumed(l *office) {
	w, n := o.w, l.n
	o.opened, o.openedAt, o.term = l.clock.Now(), w.now, l.term
	if ran, must := o.opened.Sub(o.ends[n.applied-1]), seconds((w.now-o.heard[n.end])*slowest/100-rounding); ran < must {
		w.broken("clock", "%s goes on %s after the end of the log, which came to it %.3f s ago", n.id, ran, float64(w.now-o.heard[n.end])/1e9)
	}
}

func (o *oracle) entry(e *fleet.Entry) {
	w := o.w
	w.stats.Entries++
	w.note("#%d %s %s: %s", e.N, e.By, e.Op, e.Text)
	if int(e.N) != len(o.hashes)+1 || e.Prev != o.head || !e.Intact() {
		w.broken("P3", "entry %d does not follow entry %d in the chain", e.N, len(o.hashes))
	}
	o.hashes = append(o.hashes, e.Hash)
	key := e.Key
	if k, ok := o.keyOf[e.Salt]; ok {
		key = k
	}
	o.keys = append(o.keys, key)
	o.head = e.Hash
}

func (o *oracle) command(e *entry, i int, out state.Outcome, before *state.View) {
	w, c := o.w, &e.batch.Commands[i]
	w.stats.Commands++
	key := c.Key
	if k, ok := o.keyOf[c.Salt]; ok {
		key = k
	}
	if key != "" && !out.Duplicate {
		id := string(c.By) + "/" + key
		o.effects[id]++
		if o.effects[id] > 1 {
			w.broken("P1", "the command with key %s (%s) had an effect twice", id, c.Op)
		}
	}
	if out.Err != nil || out.Duplicate {
		return
	}
	args := func(into any) {
		if err := json.Unmarshal(c.Args, into); err != nil {
			panic(err)
		}
	}
	switch c.Op {
	case catalog.BuildSubmit.Name:
		w.stats.Builds++
	case catalog.AgentReport.Name:
		var a catalog.AgentReportArgs
		args(&a)
		for _, r := range a.Attempts {
			if was, ok := before.Attempts.Get(r.Attempt); ok && was.Live() && r.Phase == fleet.PhaseEnded {
				o.progressAt = w.now
			}
			if at, _ := o.view.Attempts.Get(r.Attempt); r.Outcome == fleet.Passed && at.Outcome == fleet.Passed && o.passed[r.Attempt] != fleet.Passed {
				w.broken("result", "attempt %d is recorded as passed, and did not", r.Attempt)
			}
		}
	case catalog.BuildRetire.Name:
		var a catalog.BuildRetireArgs
		args(&a)
		if out.Entry != 0 {
			o.retire(e, i, a.Build, before)
		}
	case catalog.HostLose.Name:
		if out.Entry == 0 {
			return
		}
		w.stats.Lost++
		var a catalog.HostLoseArgs
		args(&a)
		o.silent(e, before, a.Host, "declared lost")
	case catalog.HostEnd.Name:
		var a catalog.HostEndArgs
		args(&a)
		if out.Entry == 0 || !a.Dead {
			return
		}
		var replaced []fleet.PoolName
		for _, id := range a.Hosts {
			was, _ := before.Hosts.Get(id)
			if now, _ := o.view.Hosts.Get(id); now.State == fleet.HostEnding && was.State == fleet.HostReady {
				o.silent(e, before, id, "replaced")
				o.mass(before, was.Pool)
				replaced = append(replaced, was.Pool)
			}
		}
		for _, p := range replaced {
			o.replaced[p] = append(o.replaced[p], o.w.now)
		}
	case catalog.QueuePause.Name:
		var a catalog.QueuePauseArgs
		args(&a)
		g := fleet.Gate{Stage: a.Stage, Org: a.Org, Pool: a.Pool}
		o.setAt["gate "+g.Key()], o.setFor["gate "+g.Key()] = e.at, a.For
	case catalog.AutomationPause.Name:
		var a catalog.AutomationPauseArgs
		args(&a)
		o.setAt["pause "+string(a.Loop)], o.setFor["pause "+string(a.Loop)] = e.at, a.For
	case catalog.OverrideExpire.Name:
		var a catalog.OverrideExpireArgs
		args(&a)
		for _, k := range a.Gates {
			_, was := before.Gates.Get(k)
			if _, is := o.view.Gates.Get(k); was && !is {
				o.expired("gate " + k)
			}
		}
		for _, l := range a.Pauses {
			_, was := before.Pauses.Get(l)
			if _, is := o.view.Pauses.Get(l); was && !is {
				o.expired("pause " + string(l))
			}
		}
	case catalog.LaunchRecord.Name:
		var a catalog.LaunchRecordArgs
		args(&a)
		was, _ := before.Pools.Get(a.Pool)
		is, _ := o.view.Pools.Get(a.Pool)
		if have := catalog.Supply(o.view, a.Pool); have > max(was.Size, is.Size) && out.Entry != 0 {
			w.broken("launch", "pool %q shall have %d hosts, and a launch makes them %d", a.Pool, is.Size, have)
		}
	}
}

// retire checks that a build that leaves the state had ended, and long enough
// ago by the state clock, whose pace is judged elsewhere.
func (o *oracle) retire(e *entry, i int, id fleet.BuildID, before *state.View) {
	w := o.w
	b, ok := before.Builds.Get(id)
	if age := o.view.Clock.Sub(b.FinishedAt); !ok || b.Stage != fleet.StageFinished || age < o.view.KeepFor() {
		w.broken("retain", "build %d (%s) was retired %s after its end; builds are kept for %s", id, b.Stage, age, o.view.KeepFor())
	}
	for _, c := range e.batch.Commands[:i] {
		var a catalog.BuildsArgs
		if c.Op == catalog.BuildRetry.Name && json.Unmarshal(c.Args, &a) == nil && slices.Contains(a.Builds, id) && b.Outcome != fleet.Passed {
			w.broken("retain", "build %d was retired in the very log entry that retries it", id)
		}
	}
	for k, trees := range o.trees {
		if k[0] == int(id) && len(trees) > 0 && !trees[0].eager {
			w.broken("retain", "build %d was retired, and its attempt %d lives", id, trees[0].attempt)
		}
	}
	if _, there := o.view.Builds.Get(id); there || o.retired[id] {
		w.broken("retain", "build %d was retired, and is there", id)
	}
	w.stats.Retired++
	o.retired[id] = true
	o.progressAt = w.now
}

// overdue returns a finished build that should have left the state; 0 when none
// should. The state clock may run 1% and its slew of 5% slower than true time,
// and the loop may be paused for as long as people do it.
func (o *oracle) overdue() fleet.BuildID {
	w := o.w
	for f := range o.view.Finished.All() {
		at, ok := o.endedAt[f]
		if !ok {
			at = w.now
			o.endedAt[f] = at
		}
		if w.now-at > int64(o.view.KeepFor())*ms*107/100+40*sec {
			return f.Build
		}
	}
	return 0
}

// startable returns, by pool, a build that a free slot could be given.
func (o *oracle) startable() map[fleet.PoolName]fleet.BuildID {
	v := o.view
	slots, free := make(map[fleet.PoolName]int), make(map[fleet.PoolName]int)
	for id, h := range v.Hosts.All() {
		if h.Schedulable() {
			slots[h.Pool] += h.Slots
			free[h.Pool] += max(0, h.Slots-v.UsedSlots(id))
		}
	}
	out := make(map[fleet.PoolName]fleet.BuildID)
	if loop.Paused(v.Clock, v, fleet.LoopPromote) || loop.Paused(v.Clock, v, fleet.LoopDispatch) {
		return out
	}
	gated := func(stage fleet.GateStage, b fleet.Build) bool {
		_, is := v.Gated(stage, b.Org, b.Pool)
		return is
	}
	waiting := make(map[fleet.PoolName]int)
	for t := range v.Waiting.All() {
		if b, _ := v.Builds.Get(t.Build); !b.Cancel && !gated(fleet.GateDispatch, b) {
			waiting[t.Pool]++
			if free[t.Pool] > 0 {
				out[t.Pool] = t.Build
			}
		}
	}
	queued := make(map[fleet.OrgName][]fleet.Build)
	for q := range v.Queued.All() {
		if b, _ := v.Builds.Get(q.Build); !gated(fleet.GatePromotion, b) && !gated(fleet.GateDispatch, b) {
			queued[b.Org] = append(queued[b.Org], b)
		}
	}
	for _, name := range orgs {
		builds := queued[name]
		org, _ := v.Orgs.Get(name)
		using, kept := v.SlotsOf(name), 0
		slices.SortFunc(builds, func(a, b fleet.Build) int {
			return cmp.Or(cmp.Compare(b.Priority, a.Priority), cmp.Compare(a.ID, b.ID))
		})
		for _, b := range builds {
			need := b.Unfinished()
			if slots[b.Pool] == 0 {
				continue
			}
			if waiting[b.Pool] >= slots[b.Pool] { // room is kept for the first of these
				kept = cmp.Or(kept, need)
				continue
			}
			if using+kept+need > org.Slots && using+kept > 0 {
				break // it waits for the plan, and those behind it for it
			}
			if free[b.Pool] > 0 {
				out[b.Pool] = b.ID
			}
		}
	}
	return out
}

// machineOf finds the machine of a host.
func (o *oracle) machineOf(id fleet.HostID) *machine {
	for _, m := range o.w.machines {
		if m.host == id {
			return m
		}
	}
	return nil
}

// silent checks that a host was truly silent when it was judged so.
func (o *oracle) silent(e *entry, before *state.View, id fleet.HostID, what string) {
	h, _ := before.Hosts.Get(id)
	pool, _ := before.Pools.Get(h.Pool)
	m := o.machineOf(id)
	if m == nil || !m.up || h.Boot != m.bootID() {
		return // that boot is over: silent for ever
	}
	d := m.silentFor()
	if m.bootAt == o.w.now-d {
		// Of a boot that no majority has heard yet the watch loop knows no more
		// than when it joined, on the state clock, which may run 7% fast.
		d = d * 107 / 100
	}
	// What was decided may be overtaken by a host that is just heard again: a
	// round of questions to the nodes takes up to 0.9 s, and its command must be
	// logged before the provision loop can know.
	if d < int64(pool.FenceAfter)*ms && (m.backAt == 0 || e.at-m.backAt > 2*sec) {
		o.w.broken("P5", "host %s was %s %.3f s after a majority had heard it; fence-after is %s; heard by node: %s",
			id, what, float64(m.silentFor())/1e9, pool.FenceAfter, m.heardBy())
	}
}

// mass checks that no host is replaced while much of its pool is silent, or has
// just been replaced.
func (o *oracle) mass(before *state.View, name fleet.PoolName) {
	pool, _ := before.Pools.Get(name)
	expected, silent := 0, 0
	for id, h := range before.Hosts.All() {
		if h.Pool != name || h.State != fleet.HostReady {
			continue
		}
		expected++
		// Long enough for everyone to have noticed, also a leader that just began.
		if m := o.machineOf(id); h.Lost && m != nil && (m.gone || m.heardByNone() > int64(pool.SuspectAfter)*ms+15*sec) {
			silent++
		}
	}
	b := lease.DefaultBudget()
	// The window is one of the state clock, which may run 7% fast.
	window := int64(b.Window) * ms * 100 / 107
	o.replaced[name] = slices.DeleteFunc(o.replaced[name], func(at int64) bool { return o.w.now-at >= window })
	gone := len(o.replaced[name])
	if allowed := max(b.Hosts, expected*b.PoolPerMille/1000); silent+gone > allowed {
		o.w.broken("P5", "a host of pool %q was replaced while %d of %d were silent, and %d had just been replaced; %d are allowed",
			name, silent, expected, gone, allowed)
	}
}

// expired checks that an override did not end before its time: the state clock
// may run 1% and its slew of 5% faster than true time, and no more.
func (o *oracle) expired(k string) {
	at, ok := o.setAt[k]
	if !ok {
		return // of all loops at once
	}
	if lived, long := o.w.now-at, int64(o.setFor[k])*ms; lived*107/100 < long {
		o.w.broken("P5", "%s was set for %s, and ended after %.1f s", k, o.setFor[k], float64(lived)/1e9)
	}
}

// bounds checks what must hold in every state.
func (o *oracle) bounds() {
	w, v := o.w, o.view
	for id, h := range v.Hosts.All() {
		if used := v.UsedSlots(id); used > h.Slots {
			w.broken("slots", "host %s has %d slots, and %d are taken", id, h.Slots, used)
		}
	}
	for id, org := range v.Orgs.All() {
		if using := v.SlotsOf(id); using > org.Slots {
			builds := 0
			for _, b := range v.Builds.All() {
				if b.Org == id && b.Stage == fleet.StageRunnable && b.Unfinished() > 0 {
					builds++
				}
			}
			if builds > 1 {
				w.broken("plan", "org %q uses %d of %d slots with %d builds", id, using, org.Slots, builds)
			}
		}
	}
}

// compare holds a node that has applied an entry against the oracle.
func (o *oracle) compare(n *node, a op.Applied) {
	for i := range a.Entries {
		e := &a.Entries[i]
		if int(e.N) > len(o.hashes) || o.hashes[e.N-1] != e.Hash {
			o.w.broken("P13", "entry %d is another one on node %s", e.N, n.id)
		}
	}
	if n.applied%digestEvery == 0 {
		if d := n.st.Digest(); d != o.digests[n.applied] {
			o.w.broken("P13", "at log entry %d node %s has digest %s instead of %s", n.applied, n.id, d, o.digests[n.applied])
		}
	}
}

// started notes that the processes of an attempt have started.
func (o *oracle) started(t *tree) {
	k := [2]int{int(t.build), t.task}
	for _, x := range o.trees[k] {
		if !t.eager {
			o.w.broken("P2", "attempt %d of task %d of build %d starts on %s while attempt %d lives on %s",
				t.attempt, t.task, t.build, t.m.host, x.attempt, x.m.host)
		}
	}
	o.trees[k] = append(o.trees[k], t)
}

func (o *oracle) ended(t *tree) {
	k := [2]int{int(t.build), t.task}
	var left []*tree
	for _, x := range o.trees[k] {
		if x != t {
			left = append(left, x)
		}
	}
	o.trees[k] = left
	if t.finished != "" {
		o.passed[t.attempt] = t.finished
	}
}

// fenced checks that an attempt that ended with the lease had a reason to.
func (o *oracle) fenced(t *tree) {
	w := o.w
	pool, _ := o.view.Pools.Get(t.m.pool)
	need := int64(pool.FenceAfter)*ms*103/100 + 12*sec
	well := 0
	for _, n := range w.nodes {
		if w.undisturbed(t.m.end, n.end) > need {
			well++
		}
	}
	if well >= majority(len(w.nodes)) {
		w.broken("P2", "attempt %d on %s was killed by its lease although %d nodes and the agent were there all the time", t.attempt, t.m.host, well)
	}
}

// settled says what is still under way; "" when nothing is.
func (o *oracle) settled() string {
	w, v := o.w, o.view
	if id := o.overdue(); id != 0 {
		w.broken("retain", "build %d ended long ago, and is there", id)
	}
	if w.people.open > 0 {
		return fmt.Sprintf("%d commands have no answer", w.people.open)
	}
	var open []string
	for id, b := range v.Builds.All() {
		if b.Stage != fleet.StageFinished {
			open = append(open, fmt.Sprintf("%d (%s, pool %s, %+v)", id, b.Stage, b.Pool, b.Tasks))
		}
	}
	if len(open) > 0 {
		return "builds have not ended: " + strings.Join(open[:min(len(open), 3)], "; ")
	}
	if v.Outbox.Len() > 0 {
		return "the outbox is not empty"
	}
	if w.retires && v.Builds.Len() > 0 {
		return fmt.Sprintf("%d builds have not left the state", v.Builds.Len())
	}
	for _, n := range w.nodes {
		if n.applied != w.commit || w.commit != len(w.log) {
			return fmt.Sprintf("node %s has applied %d of %d", n.id, n.applied, len(w.log))
		}
	}
	for name, p := range v.Pools.All() {
		if p.Provider == "none" {
			continue
		}
		ready := 0
		for id, h := range v.Hosts.All() {
			if h.Pool != name {
				continue
			}
			if h.State != fleet.HostReady || h.Suspect || h.Lost || h.Retiring {
				return fmt.Sprintf("host %s is %s", id, h.Condition())
			}
			ready++
		}
		if ready != p.Size {
			return fmt.Sprintf("pool %q has %d hosts and shall have %d", name, ready, p.Size)
		}
	}
	for _, m := range w.cloud.order {
		if h, ok := v.Hosts.Get(m.host); !m.gone && (!ok || h.State != fleet.HostReady) {
			return fmt.Sprintf("machine %s runs, and nobody wants it", m.host)
		}
		if m.gone {
			return fmt.Sprintf("machine %s is gone, and not forgotten", m.host)
		}
	}
	return ""
}

// final checks what must hold when all is over.
func (o *oracle) final() {
	w, v := o.w, o.view
	// P1: what was acknowledged is there, once.
	builds := 0
	for _, a := range w.people.asks {
		id := string(person) + "/" + a.c.Key
		if o.effects[id] != 1 {
			w.broken("P1", "the acknowledged command %s (%s) is in the log %d times", id, a.c.Op, o.effects[id])
			return
		}
		if n := a.outcome.Entry; n == 0 || int(n) > len(o.keys) || o.keys[n-1] != a.c.Key {
			w.broken("P1", "the acknowledged command %s (%s) is not in entry %d", id, a.c.Op, n)
			return
		}
		var s catalog.Submitted
		if a.c.Op == catalog.BuildSubmit.Name && a.outcome.Err == nil && json.Unmarshal(a.outcome.Result, &s) == nil {
			builds += s.Count
			if _, ok := v.Builds.Get(s.Build); !ok && !o.retired[s.Build] {
				w.broken("P1", "build %d was acknowledged, and is not there", s.Build)
			}
		}
	}
	if builds != v.Builds.Len()+len(o.retired) {
		w.broken("P1", "%d builds were acknowledged, %d are there, and %d were retired", builds, v.Builds.Len(), len(o.retired))
	}
	for id, at := range v.Attempts.All() {
		if _, ok := v.Builds.Get(at.Build); !ok {
			w.broken("retain", "attempt %d is there, and its build %d is not", id, at.Build)
		}
	}
	o.channel()
	o.replay()
}

// channel checks P4 on the console's channel: each entry once, in order.
func (o *oracle) channel() {
	w := o.w
	var got []fleet.EntryNo
	for _, l := range o.view.Channel.All() {
		if int(l.Last-l.First)+1 != l.Count {
			w.broken("P4", "line %d says that it stands for %d entries, from %d to %d", l.N, l.Count, l.First, l.Last)
		}
		for n := l.First; n <= l.Last; n++ {
			got = append(got, n)
		}
	}
	if o.view.Line <= state.ChannelKeep && len(got) != len(o.shown) || len(got) > len(o.shown) {
		w.broken("P4", "%d entries are shown, and %d should be", len(got), len(o.shown))
		return
	}
	want := o.shown[len(o.shown)-len(got):]
	for i := range got {
		if got[i] != want[i] {
			w.broken("P4", "entry %d is shown where entry %d should be", got[i], want[i])
			return
		}
	}
}

// replay checks P13: the log, read from its bytes, gives the same state from
// the start and from a snapshot taken half-way.
func (o *oracle) replay() {
	w := o.w
	want := o.st.Digest()
	for _, n := range w.nodes {
		if d := n.st.Digest(); d != want {
			w.broken("P13", "at the end node %s has digest %s instead of %s", n.id, d, want)
		}
	}
	st := state.New()
	var restored *state.State
	for i, e := range w.log {
		b, err := state.DecodeBatch(e.data)
		if err == nil {
			_, err = w.apply(st, i+1, b)
		}
		if err == nil && restored != nil {
			_, err = w.apply(restored, i+1, b)
		}
		if err != nil {
			w.broken("P13", "replay of log entry %d: %s", i+1, err)
			return
		}
		if i == len(w.log)/2 {
			var snap bytes.Buffer
			if err = st.Publish().Dump(&snap); err == nil {
				restored, err = state.Load(&snap)
			}
			if err != nil {
				w.broken("P13", "snapshot half-way: %s", err)
				return
			}
		}
	}
	if d := st.Digest(); d != want {
		w.broken("P13", "the replayed log gives digest %s instead of %s", d, want)
	}
	if d := restored.Digest(); d != want {
		w.broken("P13", "replay from a snapshot gives digest %s instead of %s", d, want)
	}
	w.note("final digest %s after %d log entries", want, len(w.log))
}
