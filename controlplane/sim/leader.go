package sim

import (
	"fmt"
	"slices"
	"time"

	"footplate/controlplane/api"
	"footplate/controlplane/catalog"
	"footplate/controlplane/loop"
	"footplate/controlplane/op"
	"footplate/controlplane/order"
	"footplate/controlplane/replica"
	"footplate/controlplane/state"
	"footplate/fleet"
	"footplate/fleet/lease"
	"footplate/fleet/queue"
)

// office is the leadership of one node in one term, for as long as the node
// believes in it.
type office struct {
	w    *world
	n    *node
	term uint64
	upto int  // what is in the log up to here has to be applied before the clock starts
	told bool // "leader begin" is proposed
	open bool // it is applied
	over bool

	clock replica.StateClock
	read  lease.Mono // when clock was advanced

	match []int   // by node: what it has stored
	ackAt []int64 // by node: when it answered last

	queue    []proposal
	flushing bool
	pending  []inFlight // in the log, by index
	stray    []proposal // proposed although another leads already

	loops   []*runner
	busy    map[string]bool // provider calls under way
	book    *order.Book
	waits   []*heldSync
	looking bool
}

type proposal struct {
	c    state.Command
	done func(state.Outcome, error)
}

type inFlight struct {
	index int
	of    []proposal
}

func newOffice(n *node) *office {
	o := &office{
		w: n.w, n: n, term: n.w.term,
		match: make([]int, len(n.w.nodes)), ackAt: make([]int64, len(n.w.nodes)),
		busy: make(map[string]bool), book: order.Open(n.w.term, n.mono()),
	}
	for i := range o.ackAt {
		o.ackAt[i] = n.w.now
	}
	n.office = o
	n.heard(n.end)
	for o.upto = n.stored; o.upto > n.applied && o.w.log[o.upto-1].mark(); o.upto-- {
	}
	o.append(0, nil)
	o.replicate()
	o.catchUp()
	return o
}

// catchUp begins when the log is applied, as package replica does: only then is it
// known where the log left the clock.
func (o *office) catchUp() {
	weak := o.w.cfg.Weak == WallStart && o.n.lastAt.IsZero() || o.w.cfg.Weak == LateStart && !o.n.lastAt.IsZero()
	if o.told || o.n.applied < o.upto && !weak {
		return
	}
	o.told = true
	o.startClock()
	o.begin(1)
}

// after does do while the office lasts.
func (o *office) after(d int64, do func()) {
	o.n.after(d, func() {
		if !o.over {
			do()
		}
	})
}

// begin opens the term, as package replica does.
func (o *office) begin(try int) {
	args, err := catalog.LeaderBegin.Encode(catalog.LeaderBeginArgs{Node: o.n.id, Term: o.term})
	if err != nil {
		panic(err)
	}
	o.propose(state.Command{
		Key: fmt.Sprintf("leader-begin/%d/%d", o.term, try), Op: catalog.LeaderBegin.Name, Ver: 1,
		By: fleet.Principal("node:" + o.n.id), Role: fleet.System, Via: "sim", Term: o.term, Args: args,
	}, func(out state.Outcome, err error) {
		switch {
		case o.over:
		case err != nil || out.Err != nil:
			o.after(500*ms, func() { o.begin(try + 1) })
		default:
			o.enter()
		}
	})
}

// enter starts what a leader does by itself.
func (o *office) enter() {
	o.open = true
	o.setUp()
	o.loops = []*runner{
		{o: o, name: fleet.LoopPromote, step: pure(o, o.promote)},
		{o: o, name: fleet.LoopDispatch, step: pure(o, loop.Dispatch)},
		{o: o, name: fleet.LoopProvision, step: o.provision},
		{o: o, name: fleet.LoopWatch, step: o.watch},
		{o: o, name: fleet.LoopDeliver, step: pure(o, loop.Deliver)},
		{o: o, name: fleet.LoopRetain, step: pure(o, loop.Retain)},
	}
	for _, r := range o.loops {
		r.run()
	}
}

// setUp does what the first leader of a cluster does.
func (o *office) setUp() {
	system := func(p *op.Op, args any) {
		raw, err := p.Encode(args)
		if err != nil {
			panic(err)
		}
		o.propose(state.Command{Op: p.Name, Ver: p.Version(), By: fleet.Principal("node:" + o.n.id), Role: fleet.System, Via: "sim", Args: raw},
			func(state.Outcome, error) {})
	}
	system(catalog.ClusterInit, catalog.ClusterInitArgs{Cluster: "sim"})
	for _, n := range o.w.nodes {
		system(catalog.NodeJoin, catalog.NodeJoinArgs{Node: n.id, API: "http://" + string(n.id), Raft: string(n.id) + ":1"})
	}
}

// leave ends the office: what waits is refused, what is under way is unknown.
func (o *office) leave(why string) {
	if o.over {
		return
	}
	o.over = true
	o.n.office = nil
	o.n.heard(-1)
	o.w.note("%s leaves office (term %d): %s", o.n.id, o.term, why)
	for _, p := range o.queue {
		p.done(state.Outcome{}, fleet.Unavailablef("node %s does not lead", o.n.id))
	}
	for _, f := range o.pending {
		for _, p := range f.of {
			p.done(state.Outcome{}, fleet.Unknownf("the leadership was lost"))
		}
	}
	for _, p := range o.stray {
		p.done(state.Outcome{}, fleet.Unknownf("the leadership was lost"))
	}
	for _, h := range o.waits {
		h.reply(nil)
	}
}

func (o *office) tick() {
	answered := 1
	for i, at := range o.ackAt {
		if i != o.n.end && o.w.now-at < officeLease {
			answered++
		}
	}
	if answered < majority(len(o.w.nodes)) {
		o.leave("no majority answers")
		return
	}
	o.n.heardAt = o.w.now
	o.replicate()
}

// propose logs a command. done is called once, or never if the node crashes.
func (o *office) propose(c state.Command, done func(state.Outcome, error)) {
	if o.over {
		done(state.Outcome{}, fleet.Unavailablef("node %s does not lead", o.n.id))
		return
	}
	if c.Salt == "" {
		c.Salt = o.w.salt()
	}
	if o.w.cfg.Weak == NoDedupe {
		// The oracle still knows it: by the salt.
		o.w.oracle.keyOf[c.Salt] = c.Key
		c.Key = ""
	}
	o.queue = append(o.queue, proposal{c, done})
	if !o.flushing {
		o.flushing = true
		o.after(o.w.between(200_000, 3*ms), o.flush)
	}
}

// flush packs what waits into one log entry.
func (o *office) flush() {
	w := o.w
	o.flushing = false
	of := o.queue
	o.queue = nil
	if w.term != o.term {
		o.stray = append(o.stray, of...)
		return
	}
	commands := make([][]byte, len(of))
	for i := range of {
		b, err := state.EncodeCommand(&of[i].c)
		if err != nil {
			panic(err)
		}
		commands[i] = b
	}
	o.append(o.now(), commands)
	if w.cfg.Weak == NoPermanence {
		for i, p := range of {
			if p.c.By == person {
				p.done(state.Outcome{Text: "before it is committed"}, nil)
				of[i].done = func(state.Outcome, error) {}
			}
		}
	}
	o.pending = append(o.pending, inFlight{len(w.log), of})
	o.replicate()
}

// append makes an entry of the log.
func (o *office) append(at fleet.Time, commands [][]byte) {
	w := o.w
	data := state.EncodeBatch(at, commands)
	batch, err := state.DecodeBatch(data)
	if err != nil {
		panic(err)
	}
	w.log = append(w.log, &entry{o.term, data, batch, w.now, o.n.end})
	o.n.store(len(w.log))
}

// applied hands out the outcomes of one log entry.
func (o *office) applied(index int, a op.Applied) {
	if len(o.pending) == 0 || o.pending[0].index != index {
		return
	}
	of := o.pending[0].of
	o.pending = o.pending[1:]
	// What acts on an outcome sees a view with it.
	o.n.view = o.n.st.Publish()
	for i, p := range of {
		p.done(a.Outcomes[i], nil)
	}
}

// published wakes who waits for a newer view.
func (o *office) published() {
	if o.over {
		return
	}
	o.catchUp()
	if !o.open {
		return
	}
	for _, r := range o.loops {
		r.newer()
	}
	o.look()
}

// startClock sets the state clock to where the log left it, and adds what has
// passed since that came here, as package replica does.
func (o *office) startClock() {
	o.read = o.n.mono()
	if o.n.lastAt.IsZero() {
		o.clock = replica.StartClock(o.n.wallNow())
		return
	}
	o.clock = replica.StartClock(o.n.lastAt.Add(o.read.Sub(o.n.seen)))
	o.w.oracle.resumed(o)
}

// epoch is when the world began, on a wall clock that is right.
const epoch = fleet.Time(1_795_000_000_000)

func (n *node) wallNow() fleet.Time { return epoch.Add(seconds(n.w.now)).Add(n.wall) }

// now advances the state clock.
func (o *office) now() fleet.Time {
	var others []fleet.Duration
	for _, m := range o.w.nodes {
		if m != o.n && o.w.reach(o.n.end, m.end) {
			others = append(others, m.wallNow().Sub(o.n.wallNow()))
		}
	}
	median := replica.Median(o.n.wallNow().Std(), others, len(o.w.nodes))
	mono := o.n.mono()
	at := o.clock.Advance(time.Duration(mono-o.read), median)
	o.read = mono
	return at
}

// runner steps one loop, as loop's does: it waits for the outcomes of what it
// proposed, and then for a newer view or a tick.
type runner struct {
	o    *office
	name fleet.Loop
	step func(v *state.View, decided func([]state.Command))
	idle bool
	turn int // which wait this is
}

// loopTick is how often a loop looks when nothing changes. It is longer than
// loop.TickEvery to save time; nothing leans on it.
const loopTick = 400 * ms

func (r *runner) run() {
	r.idle = false
	v := r.o.n.view
	r.step(v, func(commands []state.Command) {
		if loop.Paused(r.o.now(), v, r.name) {
			commands = nil
		}
		left := len(commands)
		for _, c := range commands {
			c.Term = v.Term
			r.o.propose(c, func(state.Outcome, error) {
				if left--; left == 0 {
					r.wait()
				}
			})
		}
		if len(commands) == 0 {
			r.wait()
		}
	})
}

func (r *runner) wait() {
	r.idle = true
	r.turn++
	r.wake(loopTick)
}

func (r *runner) wake(d int64) {
	turn := r.turn
	r.o.after(d, func() {
		if r.idle && r.turn == turn {
			r.run()
		}
	})
}

func (r *runner) newer() {
	if r.idle {
		r.turn++
		r.wake(r.o.w.between(1*ms, 15*ms))
	}
}

func pure(o *office, step func(fleet.Time, *state.View) []state.Command) func(*state.View, func([]state.Command)) {
	return func(v *state.View, decided func([]state.Command)) { decided(step(o.now(), v)) }
}

// promote promotes; without the mark, whatever the plans have room for.
func (o *office) promote(now fleet.Time, v *state.View) []state.Command {
	if o.w.cfg.Weak != NoMark {
		return loop.Promote(now, v)
	}
	var out []state.Command
	for name, org := range v.Orgs.All() {
		var next fleet.Build
		for lane := range v.LanesOf(name) {
			b, _ := v.Builds.Get(lane.Build)
			_, gated := v.Gated(fleet.GatePromotion, b.Org, b.Pool)
			if !gated && (next.ID == 0 || b.Priority > next.Priority || b.Priority == next.Priority && b.ID < next.ID) {
				next = b
			}
		}
		if next.ID == 0 || !queue.Fits(v.SlotsOf(name), org.Slots, next.Unfinished()) {
			continue
		}
		raw, err := catalog.BuildPromote.Encode(catalog.BuildPromoteArgs{Org: name, Count: 1000})
		if err != nil {
			panic(err)
		}
		out = append(out, state.Command{Op: catalog.BuildPromote.Name, Ver: 1, By: "loop:promote", Role: fleet.System, Args: raw})
	}
	return out
}

// watch gathers what is heard, as controlplane's listener does, and decides.
func (o *office) watch(v *state.View, decided func([]state.Command)) {
	w, now := o.w, o.now()
	heard := o.book.Listen(v, func(h fleet.Host) (fleet.Duration, bool) { return o.silent(v, h) })
	if w.cfg.Weak == NoStartWindow {
		heard.Unstarted = o.hasty(v)
	}
	decide := func() {
		out := loop.Heard{Unstarted: heard.Unstarted}
		for _, h := range heard.Hosts {
			out.Hosts = append(out.Hosts, loop.Hearing(h))
		}
		decided(loop.Watch(now, v, out))
	}
	if len(heard.Ask) == 0 {
		decide()
		return
	}
	testify := func(n *node) api.Testimony {
		out := api.Testimony{Node: n.id}
		for _, h := range heard.Ask {
			out.Testimonies = append(out.Testimonies, n.witness.Testify(lease.HostKey{Host: h.Host, Boot: h.Boot}, w.worth(h.FenceAfter), n.mono()))
		}
		return out
	}
	q := lease.Question{AskedAt: o.n.mono(), Version: version, Members: w.members()}
	if w.cfg.Weak == NoMajority {
		q.Members = []fleet.NodeID{o.n.id}
	}
	var all []api.Testimony
	over := false
	finish := func() {
		if over {
			return
		}
		over = true
		all = append(all, testify(o.n))
		o.book.Judge(&heard, v, q, all, o.n.mono())
		decide()
	}
	left := len(w.nodes) - 1
	for _, f := range w.nodes {
		if f == o.n {
			continue
		}
		w.send(o.n.end, f.end, func() {
			t := testify(f)
			w.send(f.end, o.n.end, func() {
				if over || o.over || slices.ContainsFunc(all, func(x api.Testimony) bool { return x.Node == f.id }) {
					return
				}
				all = append(all, t)
				if left--; left == 0 {
					finish()
				}
			})
		})
	}
	o.after(900*ms, finish)
	if left == 0 {
		finish()
	}
}

// silent is what the leader's own witness says of a host. Without the margin it
// asks the nodes as soon as the fence is over that they are told.
func (o *office) silent(v *state.View, h fleet.Host) (fleet.Duration, bool) {
	ago, known := o.n.witness.SilentFor(lease.HostKey{Host: h.ID, Boot: h.Boot}, o.n.mono())
	pool, _ := v.Pools.Get(h.Pool)
	if less := o.w.worth(pool.FenceAfter); less != pool.FenceAfter && ago >= less+lease.Margin(less) {
		ago = max(ago, pool.FenceAfter+lease.Margin(pool.FenceAfter))
	}
	return ago, known
}

// hasty gives what was delivered, and not taken at once, elsewhere.
func (o *office) hasty(v *state.View) []fleet.AttemptID {
	var out []fleet.AttemptID
	for r := range v.Running.All() {
		at, _ := v.Attempts.Get(r.Attempt)
		if d, ok := o.book.Delivered(at.ID); ok && at.Phase == fleet.PhaseAssigned && o.n.mono().Sub(d.First) > 500*fleet.Millisecond {
			out = append(out, at.ID)
		}
	}
	return out
}

// worth is the fence that nodes are told. Without the margin it is less than
// the agent's by just that.
func (w *world) worth(d fleet.Duration) fleet.Duration {
	if w.cfg.Weak != NoMargin {
		return d
	}
	f := d
	for f+lease.Margin(f) > d {
		f -= 10 * fleet.Millisecond
	}
	return f
}

// provision observes the provider and carries effects out, as loop's
// provisioner does.
func (o *office) provision(_ *state.View, decided func([]state.Command)) {
	w := o.w
	listed := w.cloud.list()
	o.after(w.between(1*ms, 40*ms), func() {
		v := o.n.view
		var listings []loop.Listing
		if !w.chance(w.cloud.failing / 2) {
			listings = []loop.Listing{{Provider: "local", Instances: listed}}
		}
		commands, fx := loop.Provision(o.now(), v, listings)
		if w.cfg.Weak == NoGuard {
			commands = append(commands, unguarded(v)...)
		}
		if !loop.Paused(o.now(), v, fleet.LoopProvision) {
			for _, id := range fx.Launch {
				o.call("launch", id, v, o.launch)
			}
			for _, id := range fx.Terminate {
				o.call("terminate", id, v, func(_ *state.View, l fleet.Launch, done func()) { w.cloud.terminate(l.ID, done) })
			}
			for _, id := range fx.Forget {
				o.call("forget", id, v, func(_ *state.View, l fleet.Launch, done func()) { w.cloud.forget(l.ID, done) })
			}
		}
		decided(commands)
	})
}

// unguarded replaces every lost host.
func unguarded(v *state.View) []state.Command {
	var out []state.Command
	for id, h := range v.Hosts.All() {
		if h.Lost && h.State == fleet.HostReady && h.Launch != 0 {
			raw, err := catalog.HostEnd.Encode(catalog.HostEndArgs{Hosts: []fleet.HostID{id}, Why: "unguarded", Dead: true})
			if err != nil {
				panic(err)
			}
			out = append(out, state.Command{Op: catalog.HostEnd.Name, Ver: 1, By: "loop:provision", Role: fleet.System, Args: raw})
		}
	}
	return out
}

func (o *office) call(what string, id fleet.LaunchID, v *state.View, f func(*state.View, fleet.Launch, func())) {
	l, ok := v.Launches.Get(id)
	key := fmt.Sprint(what, id)
	if !ok || o.busy[key] {
		return
	}
	o.busy[key] = true
	f(v, l, func() {
		o.n.run(func() { delete(o.busy, key) })
	})
}

func (o *office) launch(v *state.View, l fleet.Launch, done func()) {
	pool, _ := v.Pools.Get(l.Pool)
	answered := false
	report := func(args catalog.LaunchReportArgs) {
		done()
		if answered || o.over || !o.n.alive {
			return
		}
		answered = true
		args.Launch = l.ID
		raw, err := catalog.LaunchReport.Encode(args)
		if err != nil {
			panic(err)
		}
		o.propose(state.Command{
			Op: catalog.LaunchReport.Name, Ver: catalog.LaunchReport.Version(), By: "loop:provision", Role: fleet.System,
			Via: "loop/provision", Term: v.Term, Args: raw,
		}, func(state.Outcome, error) {})
	}
	o.w.cloud.launch(l, pool.Slots, func(err string, permanent bool) {
		o.n.run(func() {
			switch {
			case err == "":
				report(catalog.LaunchReportArgs{Done: true})
			case permanent:
				report(catalog.LaunchReportArgs{Failed: true, Why: err})
			default:
				report(catalog.LaunchReportArgs{Why: err, NextAt: o.now().Add(min(fleet.Second<<min(l.Tries, 6), fleet.Minute))})
			}
		})
	})
	o.after(30*sec, func() {
		if !answered {
			report(catalog.LaunchReportArgs{Why: "no answer", NextAt: o.now().Add(fleet.Second)})
		}
	})
}
