package sim

import (
	"fmt"

	"footplate/controlplane/catalog"
	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
)

// person is who gives the commands.
const person = fleet.Principal("alice")

// people give commands, and give them again with the same key until they know
// what came of them.
type people struct {
	w     *world
	asks  []*ask
	open  int
	count int
}

// ask is one command of a person.
type ask struct {
	c       state.Command
	known   bool
	acked   bool
	outcome state.Outcome
	try     int
}

func (p *people) do(o *op.Op, args any) {
	w := p.w
	// As the door does: decode strictly, normalize, validate.
	raw, err := o.Encode(args)
	if err == nil {
		args, err = o.Decode(raw)
	}
	if err == nil {
		raw, err = o.Encode(args)
	}
	if err != nil {
		panic(fmt.Sprintf("sim: %s: %s", o.Name, err))
	}
	p.count++
	a := &ask{c: state.Command{
		Key: fmt.Sprintf("k%d", p.count), Op: o.Name, Ver: o.Version(), By: person, Role: fleet.Operator, Via: "cli/sim", Args: raw,
	}}
	p.asks = append(p.asks, a)
	p.open++
	p.send(a)
	if w.chance(100) { // an impatient one
		w.after(w.between(0, 2*sec), func() { p.send(a) })
	}
}

// send gives the command to some node, and waits for what comes of it.
func (p *people) send(a *ask) {
	w := p.w
	if a.known {
		return
	}
	a.try++
	settled := false
	settle := func(out state.Outcome, err error) {
		if settled {
			return
		}
		settled = true
		switch {
		case a.known:
		case err == nil:
			a.known, a.acked, a.outcome = true, true, out
			p.open--
			w.stats.Acked++
		default:
			if fleet.CodeOf(err) == fleet.CodeUnknown {
				w.stats.Unknown++
			}
			w.after(w.between(200*ms, 3*sec), func() { p.send(a) })
		}
	}
	n := w.nodes[w.pick(len(w.nodes))]
	reply := func(out state.Outcome, err error) {
		if w.chance(w.loss) {
			return
		}
		w.after(w.delay(), func() { settle(out, err) })
	}
	w.after(w.delay(), func() { n.run(func() { n.command(a.c, reply) }) })
	w.after(10*sec, func() { settle(state.Outcome{}, fleet.Unknownf("no answer")) })
}

// command takes a command in, or passes it on to the leader.
func (n *node) command(c state.Command, reply func(state.Outcome, error)) {
	w := n.w
	no := fleet.Unavailablef("there is no leader")
	switch {
	case n.office != nil && n.office.open:
		n.office.propose(c, reply)
	case n.office == nil && n.leads >= 0 && n.leads != n.end:
		l := w.nodes[n.leads]
		back := func(out state.Outcome, err error) { w.send(l.end, n.end, func() { reply(out, err) }) }
		w.send(n.end, l.end, func() {
			if l.office != nil && l.office.open {
				l.office.propose(c, back)
			} else {
				back(state.Outcome{}, no)
			}
		})
	default:
		reply(state.Outcome{}, no)
	}
}

var orgs = []fleet.OrgName{"acme", "beta", "crab"}

// begin sets the fleet up.
func (p *people) begin() {
	w := p.w
	for _, o := range orgs {
		p.do(catalog.OrgSet, catalog.OrgSetArgs{Org: o, Slots: new(2 + w.pick(8)), Weight: new(1 + w.pick(3))})
	}
	fences := []fleet.Duration{10 * fleet.Second, 15 * fleet.Second, 30 * fleet.Second}
	pool := func(name fleet.PoolName, provider string, size, slots int) {
		fence := fences[w.pick(len(fences))]
		p.do(catalog.PoolCreate, catalog.PoolCreateArgs{
			Pool: name, Provider: provider, Size: size, Slots: slots, Max: 60,
			SuspectAfter: min(fence, 10*fleet.Second), FenceAfter: fence,
		})
	}
	if w.chance(500) {
		w.retires = true
		p.do(catalog.BuildRetention, catalog.BuildRetentionArgs{Keep: fleet.Minute})
	}
	pool("linux", "local", 3+w.pick(5), 1+w.pick(3))
	pool("mac", "local", 1+w.pick(3), 1)
	pool("metal", "none", 0, 2)
	pool("nowhere", "none", 0, 1)
}

// act gives one command at random.
func (p *people) act() {
	w := p.w
	v := w.oracle.view
	build := func() fleet.BuildID { return fleet.BuildID(1 + w.pick(int(v.Meta.Build)+1)) }
	var hosts []fleet.HostID
	for id, h := range v.Hosts.All() {
		if h.Launch != 0 { // of the others there are no more to be had
			hosts = append(hosts, id)
		}
	}
	org := func() fleet.OrgName { return orgs[w.pick(len(orgs))] }
	pool := func() fleet.PoolName {
		return []fleet.PoolName{"linux", "linux", "linux", "mac", "metal", "nowhere"}[w.pick(6)]
	}
	switch d := w.pick(100); {
	case d < 62:
		s := fleet.BuildSpec{}
		for i := range 1 + w.pick(2)*w.pick(5) {
			s.Tasks = append(s.Tasks, fleet.TaskSpec{Name: fmt.Sprintf("t%d", i+1), Steps: []fleet.Step{{Run: "make"}}})
		}
		switch w.pick(8) {
		case 0:
			s.Exclusive = true
		case 1:
			s.Retry = fleet.RetryEager
		}
		p.do(catalog.BuildSubmit, catalog.BuildSubmitArgs{Org: org(), Pool: pool(), Priority: w.pick(3) * 5, Spec: s, Count: 1 + w.pick(3)})
	case d < 70:
		p.do(catalog.BuildCancel, catalog.BuildsArgs{Builds: []fleet.BuildID{build()}})
	case d < 75:
		p.do(catalog.BuildRetry, catalog.BuildsArgs{Builds: []fleet.BuildID{build()}})
	case d < 81:
		sizes := []op.Size{{N: 1, Relative: true}, {N: -1, Relative: true}, {N: 2 + w.pick(7)}}
		p.do(catalog.PoolScale, catalog.PoolScaleArgs{Pool: "linux", Size: sizes[w.pick(3)]})
	case d < 84 && len(hosts) > 0:
		p.do(catalog.HostCordon, catalog.HostsArgs{Hosts: []fleet.HostID{hosts[w.pick(len(hosts))]}})
	case d < 86 && len(hosts) > 0:
		p.do(catalog.HostDrain, catalog.HostsArgs{Hosts: []fleet.HostID{hosts[w.pick(len(hosts))]}})
	case d < 92:
		a := catalog.QueuePauseArgs{For: fleet.Duration(2+w.pick(40)) * fleet.Second}
		a.Stage = []fleet.GateStage{fleet.GateIntake, fleet.GatePromotion, fleet.GateDispatch}[w.pick(3)]
		if w.chance(500) {
			a.Org = org()
		}
		p.do(catalog.QueuePause, a)
	case d < 94:
		p.do(catalog.QueueResume, catalog.QueueGateArgs{Stage: fleet.GateDispatch})
	case d < 96:
		l := fleet.Loops()[w.pick(len(fleet.Loops()))]
		a := catalog.AutomationPauseArgs{For: fleet.Duration(2+w.pick(20)) * fleet.Second}
		a.Loop = l
		p.do(catalog.AutomationPause, a)
	case d < 97:
		p.do(catalog.AutomationResume, catalog.AutomationArgs{})
	default:
		o := org()
		old, _ := v.Orgs.Get(o)
		p.do(catalog.OrgSet, catalog.OrgSetArgs{Org: o, Slots: new(min(old.Slots+1, 30))})
	}
}

// release says of exclusive builds that still wait for proof that their attempt
// has ended: it has. That is a person's to say; an attempt that was lost on its
// way to a host that lives has nobody else to say it.
func (p *people) release() {
	var held []fleet.BuildID
	for id := range p.w.oracle.view.Held.All() {
		held = append(held, id)
	}
	if len(held) > 0 {
		p.w.stats.Released += len(held)
		p.do(catalog.BuildRetry, catalog.BuildsArgs{Builds: held})
	}
	p.w.after(30*sec, p.release)
}

// finish gives each pool as many hosts again as were set aside: there is no
// other way to give them work.
func (p *people) finish() {
	v := p.w.oracle.view
	for _, pool := range v.Pools.All() {
		if pool.Provider == "none" {
			continue
		}
		aside := 0
		for _, h := range v.Hosts.All() {
			if h.Pool == pool.Name && (h.Cordoned || h.Draining) && h.State != fleet.HostEnding {
				aside++
			}
		}
		p.do(catalog.PoolScale, catalog.PoolScaleArgs{Pool: pool.Name, Size: op.Size{N: min(aside+3, 60)}})
	}
}
