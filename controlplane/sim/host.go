package sim

import (
	"fmt"
	"slices"
	"strings"

	"footplate/controlplane/api"
	"footplate/fleet"
	"footplate/fleet/agent"
	"footplate/fleet/lease"
	"footplate/fleet/provider"
)

// machine is a host of the fleet: its agent, and the trees of its attempts.
type machine struct {
	process // the agent
	host    fleet.HostID
	pool    fleet.PoolName
	launch  fleet.LaunchID // 0: it joins by itself
	slots   int
	clock   clock

	up     bool
	gone   bool // for good
	goneAt int64

	boot        int
	incarnation fleet.Incarnation // on disk
	acks        []int64           // by node: when a beat of this boot was acknowledged last, or when it began
	backAt      int64             // when a silence as long as the fence ended; 0 for never
	bootAt      int64             // when it was switched on last

	duty   *agent.Duty
	target int // the node that syncs go to
	arm    int
	trees  []*tree // that live
	byID   map[fleet.AttemptID]*tree
}

// tree is a supervisor and the processes of one attempt.
type tree struct {
	m        *machine
	life     int // of the agent that started it
	attempt  fleet.AttemptID
	build    fleet.BuildID
	task     int
	eager    bool
	deadline lease.Mono
	started  bool
	alive    bool
	dying    bool
	killed   string
	canceled bool
	ended    bool          // its end was told
	finished fleet.Outcome // its own end, when it came to one
}

func (w *world) newMachine(host fleet.HostID, pool fleet.PoolName, launch fleet.LaunchID, slots int) *machine {
	m := &machine{host: host, pool: pool, launch: launch, slots: slots, clock: w.newClock(false), acks: make([]int64, len(w.nodes))}
	w.endpoint(&m.process)
	m.target = w.pick(len(w.nodes))
	w.machines = append(w.machines, m)
	return m
}

func (m *machine) mono() lease.Mono     { return m.clock.read(m.w.now) }
func (m *machine) bootID() fleet.BootID { return fleet.BootID(fmt.Sprintf("%s-b%d", m.host, m.boot)) }

// switchOn boots the machine, d from now.
func (m *machine) switchOn(d int64) {
	m.w.after(d, func() {
		if m.gone || m.up {
			return
		}
		m.up = true
		m.boot++
		m.incarnation = 0
		m.backAt = 0
		m.bootAt = m.w.now
		for i := range m.acks {
			m.acks[i] = m.w.now // it was not silent before there was anybody to speak
		}
		m.startAgent()
	})
}

// switchOff ends everything on the machine at once.
func (m *machine) switchOff() {
	m.up = false
	m.kill()
	for _, t := range slices.Clone(m.trees) {
		t.dead()
	}
}

// die ends the machine for good.
func (m *machine) die(why string) {
	if m.gone {
		return
	}
	m.w.note("machine %s dies: %s", m.host, why)
	m.gone, m.goneAt = true, m.w.now
	m.switchOff()
}

// killAgent kills the agent; its trees follow, and then it is started anew.
func (m *machine) killAgent(again int64) {
	m.kill()
	for _, t := range m.trees {
		t.die(m.w.between(0, 300*ms), "")
	}
	boot := m.boot
	m.w.after(again, func() {
		if m.up && m.boot == boot && !m.alive {
			m.startAgent()
		}
	})
}

// startAgent starts the next incarnation, once the old trees are dead.
func (m *machine) startAgent() {
	if !m.up || m.alive {
		return
	}
	if len(m.trees) > 0 {
		boot := m.boot
		m.w.after(50*ms, func() {
			if m.boot == boot {
				m.startAgent()
			}
		})
		return
	}
	m.incarnation++
	m.start()
	m.byID = make(map[fleet.AttemptID]*tree)
	slots := m.slots
	if m.launch != 0 {
		slots = 0
	}
	m.duty = agent.NewDuty(agent.Identity{
		Host: m.host, Pool: m.pool, Launch: m.launch, Boot: m.bootID(), Incarnation: m.incarnation, Slots: slots,
		Version: "sim", Seeds: m.w.addrs(),
	})
	m.w.note("agent of %s starts (boot %d, incarnation %d)", m.host, m.boot, m.incarnation)
	m.step(agent.Input{})
}

// step lets the agent decide, and carries out what it says.
func (m *machine) step(in agent.Input) {
	w := m.w
	fx := m.duty.Step(m.mono(), in)
	for _, o := range fx.Kill {
		m.byID[o.Attempt].kill(o.Why)
	}
	for _, o := range fx.Cancel {
		m.byID[o.Attempt].cancel()
	}
	for _, s := range fx.Start {
		t := &tree{m: m, life: m.life, attempt: s.Attempt, build: s.Build, task: s.Task, eager: s.Spec.Retry == fleet.RetryEager, deadline: s.Deadline}
		m.byID[s.Attempt] = t
		late := w.between(2*ms, 100*ms)
		if w.chance(30) {
			late = w.between(sec, 6*sec)
		}
		m.after(late, func() {
			switch {
			case t.killed != "":
				t.tell(fleet.Lost, t.killed)
			case m.mono() >= s.By:
				t.tell(fleet.Lost, "it could not be started in time")
			default:
				t.spawn()
			}
		})
	}
	for _, id := range fx.Extend {
		t := m.byID[id]
		t.deadline = fx.Deadline
		if t.started {
			t.watchDeadline()
		}
	}
	for _, id := range fx.Forget {
		delete(m.byID, id)
	}
	if fx.Beat != nil {
		for _, to := range fx.Beat.To {
			m.beat(to, fx.Beat.Beat)
		}
	}
	if fx.GiveUp {
		m.target = (m.target + 1) % len(w.nodes)
	}
	if fx.Sync != nil {
		m.sync(fx.Sync)
	}
	if fx.Exit {
		m.exit()
		return
	}
	m.arm++
	arm := m.arm
	wake := m.bound(func() {
		m.run(func() {
			if m.arm == arm {
				m.step(agent.Input{})
			}
		})
	})
	w.at(m.clock.when(fx.Wake), wake)
}

// exit: the agent has nothing left to do. A machine of the provider ends with
// its agent, or waits until it is ended.
func (m *machine) exit() {
	m.w.note("agent of %s exits", m.host)
	if m.launch != 0 && m.w.chance(500) {
		m.die("its agent has exited")
		return
	}
	again := m.w.between(sec, 5*sec)
	if m.launch != 0 {
		again = 3600 * sec
	}
	m.killAgent(again)
}

func (m *machine) beat(to api.NodeAddr, b api.Beat) {
	w := m.w
	life := m.life
	n := w.nodes[slices.IndexFunc(w.nodes, func(n *node) bool { return n.id == to.Node })]
	w.send(m.end, n.end, func() {
		sent := b.Beat
		sent.FenceAfter = w.worth(sent.FenceAfter)
		reply := api.BeatReply{Node: n.id}
		reply.Ack, reply.Why = n.witness.Beat(lease.HostKey{Host: b.Host, Boot: b.Boot}, b.Incarnation, sent, n.mono())
		if reply.Ack && b.Boot == m.bootID() {
			m.acked(n)
		}
		if !reply.Ack {
			reply.Members, reply.Nodes = version, w.addrs()
		}
		w.send(n.end, m.end, func() {
			if m.life == life {
				m.step(agent.Input{Beats: []agent.Beaten{{To: to.Node, Beat: b, Reply: reply}}})
			}
		})
	})
}

// silentFor returns for how long no majority of the nodes has acknowledged
// anything of this boot.
func (m *machine) silentFor() int64 {
	sorted := slices.Sorted(slices.Values(m.acks))
	return m.w.now - sorted[len(sorted)-majority(len(sorted))]
}

// acked notes that a node has acknowledged a beat of this boot.
func (m *machine) acked(n *node) {
	silent := m.silentFor()
	m.acks[n.end] = m.w.now
	pool, ok := m.w.oracle.view.Pools.Get(m.pool)
	if ok && silent >= int64(pool.FenceAfter)*ms && m.silentFor() < silent {
		m.backAt = m.w.now
	}
}

// heardBy says when each node heard it last.
func (m *machine) heardBy() string {
	var s []string
	for i, at := range m.acks {
		s = append(s, fmt.Sprintf("%s %.1f s ago", m.w.nodes[i].id, float64(m.w.now-at)/1e9))
	}
	return strings.Join(s, ", ")
}

// heardByNone returns how long ago any node acknowledged a beat.
func (m *machine) heardByNone() int64 { return m.w.now - slices.Max(m.acks) }

func (m *machine) sync(q *api.Sync) {
	w, life := m.w, m.life
	n := w.nodes[m.target]
	answer := func(r *api.SyncReply) {
		if m.life != life {
			return
		}
		if r == nil {
			m.target = (m.target + 1) % len(w.nodes)
		}
		m.step(agent.Input{Sync: &agent.Synced{Seq: q.Seq, Reply: r}})
	}
	if !n.alive && w.cuts[[2]int{m.end, n.end}] == 0 {
		m.after(w.delay(), func() { answer(nil) }) // connection refused
		return
	}
	w.send(m.end, n.end, func() {
		n.sync(q, func(r *api.SyncReply) { w.send(n.end, m.end, func() { answer(r) }) })
	})
}

// sync takes a sync in, or passes it on to the leader.
func (n *node) sync(q *api.Sync, reply func(*api.SyncReply)) {
	w := n.w
	switch {
	case n.office != nil && n.office.open:
		n.office.sync(q, reply)
	case n.office == nil && n.leads >= 0 && n.leads != n.end:
		l := w.nodes[n.leads]
		back := func(r *api.SyncReply) { w.send(l.end, n.end, func() { reply(r) }) }
		w.send(n.end, l.end, func() {
			if l.office != nil && l.office.open {
				l.office.sync(q, back)
			} else {
				back(nil)
			}
		})
	default:
		reply(nil)
	}
}

// spawn starts the processes of an attempt.
func (t *tree) spawn() {
	w := t.m.w
	t.started, t.alive = true, true
	t.m.trees = append(t.m.trees, t)
	w.stats.Attempts++
	w.note("attempt %d of build %d task %d runs on %s", t.attempt, t.build, t.task, t.m.host)
	w.oracle.started(t)
	t.watchDeadline()
	if t.canceled {
		t.die(w.between(0, 500*ms), fleet.Canceled)
	}
	setup := w.between(5*ms, 300*ms)
	checkout := setup + w.between(20*ms, 3*sec)
	steps := checkout + w.between(200*ms, 20*sec)
	if w.chance(150) { // long enough to meet the end of a lease
		steps += w.between(20*sec, 90*sec)
	}
	phase := func(d int64, p fleet.Phase) {
		w.after(d, func() {
			if t.alive && !t.dying {
				t.progress(agent.Progress{Attempt: t.attempt, Phase: p})
			}
		})
	}
	phase(setup, fleet.PhaseCheckout)
	phase(checkout, fleet.PhaseSteps)
	outcome := fleet.Passed
	switch d := w.pick(100); {
	case d < 10:
		outcome = fleet.Failed
	case d < 13:
		outcome = fleet.TimedOut
	case d < 15:
		outcome = fleet.Broken
	}
	w.after(steps, func() {
		if t.alive && !t.dying {
			t.finished = outcome
			t.dead()
			t.tell(outcome, "")
		}
	})
}

// watchDeadline is the supervisor's own watch over the lease.
func (t *tree) watchDeadline() {
	w := t.m.w
	deadline := t.deadline
	w.at(t.m.clock.when(deadline), func() {
		if t.alive && !t.dying && t.deadline == deadline && w.cfg.Weak != NoLeaseEnd {
			w.note("attempt %d on %s ends with the lease", t.attempt, t.m.host)
			w.oracle.fenced(t)
			t.die(w.reaction(), fleet.Lost)
		}
	})
}

// reaction is how long it takes until killed processes are gone: within
// lease.Reaction.
func (w *world) reaction() int64 {
	if w.chance(150) {
		return w.between(200*ms, 1700*ms)
	}
	return w.between(0, 150*ms)
}

func (t *tree) kill(why string) {
	w := t.m.w
	if why == "the host lost its lease" {
		if w.cfg.Weak == NoLeaseEnd {
			return
		}
		if t.alive && !t.dying {
			w.oracle.fenced(t)
		}
	}
	t.killed = why
	if t.started {
		t.die(w.reaction(), fleet.Lost)
	}
}

func (t *tree) cancel() {
	t.canceled = true
	if t.started {
		t.die(t.m.w.between(10*ms, 4*sec), fleet.Canceled)
	}
}

// die ends the processes in d.
func (t *tree) die(d int64, outcome fleet.Outcome) {
	if !t.alive {
		return
	}
	t.dying = true
	t.m.w.after(d, func() {
		if t.alive {
			t.dead()
			if outcome != "" {
				t.tell(outcome, t.killed)
			}
		}
	})
}

// dead: none of its processes is left.
func (t *tree) dead() {
	if !t.alive {
		return
	}
	t.alive = false
	t.m.trees = slices.DeleteFunc(t.m.trees, func(x *tree) bool { return x == t })
	t.m.w.oracle.ended(t)
}

func (t *tree) tell(o fleet.Outcome, why string) {
	t.progress(agent.Progress{Attempt: t.attempt, Phase: fleet.PhaseEnded, Dead: true, Outcome: o, Why: why})
}

func (t *tree) progress(p agent.Progress) {
	if t.m.life == t.life {
		t.m.run(func() { t.m.step(agent.Input{Attempts: []agent.Progress{p}}) })
	}
}

// cloud is the provider of pools that have one. It keeps its promise: one
// machine for a launch. All else about it can be bad.
type cloud struct {
	w       *world
	failing int // per mille of calls
	slow    int // per mille
	made    map[fleet.LaunchID]*machine
	ended   map[fleet.LaunchID]bool
	order   []*machine // not forgotten
}

func (c *cloud) latency() int64 {
	if c.w.chance(c.slow) {
		return c.w.between(sec, 40*sec)
	}
	return c.w.between(20*ms, 800*ms)
}

func (c *cloud) launch(l fleet.Launch, slots int, answer func(err string, permanent bool)) {
	w := c.w
	w.after(c.latency(), func() {
		reply := func(err string, permanent bool) {
			w.after(c.latency(), func() { answer(err, permanent) })
		}
		switch {
		case c.made[l.ID] != nil || c.ended[l.ID]:
			reply("", false)
			return
		case w.chance(c.failing):
			switch w.pick(4) {
			case 0:
				c.ended[l.ID] = true
				reply("no such image", true)
				return
			case 1:
				reply("try again", false)
				return
			case 2: // it has an effect all the same
				c.make(l, slots)
				reply("internal error", false)
				return
			case 3: // nobody hears of it
				c.make(l, slots)
				return
			}
		}
		c.make(l, slots)
		reply("", false)
	})
}

func (c *cloud) make(l fleet.Launch, slots int) {
	w := c.w
	w.stats.Launches++
	m := w.newMachine(l.Host, l.Pool, l.ID, slots)
	c.made[l.ID] = m
	c.order = append(c.order, m)
	w.note("machine %s is made", l.Host)
	boots := w.between(500*ms, 6*sec)
	if c.failing > 0 && w.chance(50) {
		boots = w.between(60*sec, 200*sec)
	}
	m.switchOn(boots)
}

func (c *cloud) list() []provider.Instance {
	var out []provider.Instance
	for _, m := range c.order {
		s := provider.Running
		if m.gone && c.w.now-m.goneAt > 700*ms {
			s = provider.Gone
		}
		out = append(out, provider.Instance{Launch: m.launch, Host: m.host, State: s})
	}
	slices.SortStableFunc(out, func(a, b provider.Instance) int { return int(a.Launch) - int(b.Launch) })
	return out
}

func (c *cloud) terminate(id fleet.LaunchID, done func()) {
	c.w.after(c.latency(), func() {
		c.ended[id] = true
		if m := c.made[id]; m != nil {
			m.die("it is terminated")
		}
		c.w.after(c.w.delay(), done)
	})
}

func (c *cloud) forget(id fleet.LaunchID, done func()) {
	c.w.after(c.latency(), func() {
		if m := c.made[id]; m != nil && m.gone {
			c.ended[id] = true
			c.order = slices.DeleteFunc(c.order, func(x *machine) bool { return x == m })
		}
		c.w.after(c.w.delay(), done)
	})
}
