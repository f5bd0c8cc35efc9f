package sim

import (
	"fmt"

	"footplate/controlplane/loop"
	"footplate/fleet"
)

// build makes the world.
func (w *world) build() {
	size := 3
	if w.chance(200) {
		size = 5
	}
	w.apart = w.profile == Clocks && w.chance(400)
	for i := range size {
		n := w.newNode(i)
		w.nodes = append(w.nodes, n)
	}
	w.oracle = newOracle(w)
	w.cloud = &cloud{w: w, made: make(map[fleet.LaunchID]*machine), ended: make(map[fleet.LaunchID]bool)}
	w.people = &people{w: w}
	switch w.profile {
	case Loss:
		w.loss, w.dup, w.slow = 10+w.pick(100), 50, 30
	case Mixed:
		w.loss, w.dup, w.slow = w.pick(30), 20, w.pick(15)
	case Machines:
		w.cloud.failing, w.cloud.slow = 200+w.pick(400), 100
	}
	if w.profile == Mixed {
		w.cloud.failing, w.cloud.slow = w.pick(300), 50
	}
	for _, n := range w.nodes {
		n.lag = w.profile != None && w.chance(200)
		n.boot()
	}
	for i := range 1 + w.pick(3) {
		m := w.newMachine(fleet.HostID(fmt.Sprintf("metal-%d", i+1)), "metal", 0, 1+w.pick(2))
		m.switchOn(w.between(sec, 20*sec))
	}
	w.note("seed %d, profile %s, %d nodes", w.cfg.Seed, w.profile, size)
}

// play runs the world: a time with faults, and a time without, in which all
// that was begun comes to its end.
func (w *world) play() {
	w.at(2*sec, w.people.begin)
	trouble := w.between(60, 150) * sec
	w.at(8*sec, func() { w.again(trouble, 500*ms, 5*sec, w.people.act) })
	w.at(12*sec, func() { w.again(trouble, 2*sec, 14*sec, w.fault) })
	w.at(trouble, w.heal)
	w.at(trouble+45*sec, w.people.finish)
	w.at(trouble+60*sec, func() { // until now nowhere has no host
		w.newMachine("nowhere-1", "nowhere", 0, 2).switchOn(0)
	})
	w.at(trouble+100*sec, w.people.release)
	w.at(trouble+25*sec, w.idleness)
	over := false
	for w.now < trouble+90*sec && w.next() {
	}
	var check func()
	check = func() {
		if w.oracle.settled() == "" {
			over = true
			return
		}
		w.after(sec, check)
	}
	w.after(0, check)
	for !over && w.next() {
		if quiet := w.now - max(w.oracle.progressAt, trouble+100*sec); quiet > patience {
			w.broken("liveness", "nothing has come to its end for %d s, %d s after the last fault: %s", quiet/sec, (w.now-trouble)/sec, w.oracle.settled())
		}
	}
	if w.violation == nil {
		w.oracle.final()
	}
}

// patience is how long nothing may come to its end, when the faults are over and
// people have done their part, while something is still to be done. It is the
// longest task, behind the longest way to a host for it: a machine that does not
// boot, its end, and a launch whose calls are slow and are tried again; and what
// a person is waited for.
const patience = longestTask + int64(loop.BootDeadline)*ms + 2*longestCall + 60*sec + // the pause between two tries
	40*sec + // the longest fence with its margin
	30*sec // people.release

// The longest that spawn and cloud.latency draw.
const (
	longestTask = 120 * sec
	longestCall = 40 * sec
)

// idleAfter is how long a slot may be free while a build waits that it could be
// given: some log entries, and a change of leaders.
const idleAfter = 10

// idleness looks each second for slots that are free while work waits for them.
func (w *world) idleness() {
	since := make(map[fleet.PoolName]int)
	var look func()
	look = func() {
		can := w.oracle.startable()
		for name := range w.oracle.view.Pools.All() {
			b := can[name]
			if b == 0 {
				since[name] = 0
			} else if since[name]++; since[name] > idleAfter {
				w.broken("idle", "pool %q has had a free slot for %d s, and build %d could have had it", name, since[name], b)
			}
		}
		w.after(sec, look)
	}
	look()
}

// again does do at random intervals until the time of trouble is over.
func (w *world) again(until, lo, hi int64, do func()) {
	if w.now >= until {
		return
	}
	do()
	w.after(w.between(lo, hi), func() { w.again(until, lo, hi, do) })
}

// fault draws a fault of the profile.
func (w *world) fault() {
	switch w.profile {
	case LeaderChange:
		w.leaderFault()
	case Partition:
		w.networkFault()
	case Pause:
		w.pauseFault()
	case Clocks:
		switch w.pick(6) {
		case 0, 1:
			w.clockFault()
		case 2, 3:
			w.networkFault()
		case 4:
			w.pauseFault()
		case 5:
			for _, n := range w.nodes {
				if w.chance(600) {
					w.restart(n, w.between(100*ms, 15*sec))
				}
			}
		}
	case Machines:
		w.machineFault()
	case Quorum:
		w.quorumFault()
	case Silence:
		w.silenceFault()
	case Mixed:
		[]func(){w.leaderFault, w.networkFault, w.pauseFault, w.clockFault, w.machineFault, w.machineFault, w.networkFault, w.silenceFault}[w.pick(8)]()
	}
}

// span draws how long a fault lasts: mostly short, sometimes longer than the
// longest fence.
func (w *world) span() int64 {
	if w.chance(400) {
		return w.between(10*sec, 60*sec)
	}
	return w.between(100*ms, 8*sec)
}

func (w *world) anyNode() *node { return w.nodes[w.pick(len(w.nodes))] }

func (w *world) anyMachine() *machine { return w.machines[w.pick(len(w.machines))] }

// restart crashes a node, and starts it again d later.
func (w *world) restart(n *node, d int64) {
	if !n.alive {
		return
	}
	w.note("node %s crashes for %.1f s", n.id, float64(d)/1e9)
	n.crash()
	n.stopped = 0
	w.after(d, func() {
		if !n.alive {
			w.note("node %s starts", n.id)
			n.boot()
		}
	})
}

func (w *world) leaderFault() {
	if w.chance(60) { // no control plane at all
		d := w.span()
		for _, n := range w.nodes {
			w.restart(n, d+w.between(0, 3*sec))
		}
		return
	}
	n := w.anyNode()
	if w.leader >= 0 && w.chance(700) {
		n = w.nodes[w.leader]
	}
	switch w.pick(5) {
	case 0, 1:
		w.restart(n, w.between(100*ms, 15*sec))
	case 2:
		d := w.span()
		w.note("node %s is cut off from the others for %.1f s", n.id, float64(d)/1e9)
		for _, m := range w.nodes {
			w.cut(n.end, m.end, d)
			if w.chance(800) {
				w.cut(m.end, n.end, d)
			}
		}
	case 3:
		w.stopNode(n)
	case 4:
		d := w.between(3*sec, 25*sec)
		w.note("leaders fall as they begin, for %.1f s", float64(d)/1e9)
		w.stormTill = max(w.stormTill, w.now+d)
		w.fall(n)
	}
}

// fall ends a leader that has just begun, or is about to.
func (w *world) fall(n *node) {
	switch w.pick(3) {
	case 0:
		w.restart(n, w.between(100*ms, 3*sec))
	case 1:
		for _, m := range w.nodes {
			w.cut(n.end, m.end, 2*sec)
			w.cut(m.end, n.end, 2*sec)
		}
	case 2:
		n.stop(w.between(500*ms, 3*sec))
	}
}

func (w *world) stopNode(n *node) {
	d := min(w.span(), 30*sec)
	if n.alive {
		w.note("node %s is stopped for %.1f s", n.id, float64(d)/1e9)
		n.stop(d)
	}
}

func (w *world) networkFault() {
	d := w.span()
	if w.chance(300) {
		w.leaderFault()
		return
	}
	if len(w.machines) == 0 {
		return
	}
	m := w.anyMachine()
	what := w.pick(3)
	w.note("network fault %d around %s for %.1f s", what, m.host, float64(d)/1e9)
	for _, n := range w.nodes {
		switch what {
		case 0: // from all
			w.cut(m.end, n.end, d)
			if w.chance(800) {
				w.cut(n.end, m.end, d)
			}
		case 1: // from some, in some direction
			if w.chance(500) {
				w.cut(m.end, n.end, d)
			}
			if w.chance(500) {
				w.cut(n.end, m.end, d)
			}
		case 2: // many machines from one node
			if n.end == w.leader || w.chance(100) {
				for _, x := range w.machines {
					if w.chance(700) {
						w.cut(x.end, n.end, d)
					}
				}
			}
		}
	}
}

func (w *world) pauseFault() {
	if w.chance(400) {
		n := w.anyNode()
		if w.leader >= 0 && w.chance(500) {
			n = w.nodes[w.leader]
		}
		w.stopNode(n)
		return
	}
	m := w.anyMachine()
	d := w.span()
	if m.alive {
		w.note("agent of %s is stopped for %.1f s", m.host, float64(d)/1e9)
		m.stop(d)
	}
}

// clockFault lets wall clocks jump.
func (w *world) clockFault() {
	jump := fleet.Duration(w.between(-5*86400, 5*86400)) * fleet.Second
	if w.chance(300) {
		jump = fleet.Duration(w.between(-20, 20)) * fleet.Second
	}
	if w.chance(300) {
		w.note("the wall clocks of all nodes jump by %s", jump)
		for _, n := range w.nodes {
			n.wall += jump
		}
		return
	}
	n := w.anyNode()
	w.note("the wall clock of %s jumps by %s", n.id, jump)
	n.wall += jump
}

func (w *world) machineFault() {
	m := w.anyMachine()
	if m.gone || !m.up {
		return
	}
	switch w.pick(5) {
	case 0:
		if m.launch != 0 {
			m.die("hardware")
		}
	case 1:
		w.note("machine %s reboots", m.host)
		m.switchOff()
		m.switchOn(w.between(500*ms, 25*sec))
	case 2, 3:
		if m.alive {
			w.note("agent of %s is killed", m.host)
			m.stopped = 0
			m.killAgent(w.between(300*ms, 8*sec))
		}
	case 4:
		if m.alive {
			m.stop(w.span())
		}
	}
}

// quorumFault: the nodes lose each other; agents and nodes live and talk.
func (w *world) quorumFault() {
	d := w.between(10*sec, 60*sec)
	w.note("all nodes lose each other for %.1f s", float64(d)/1e9)
	for _, a := range w.nodes {
		for _, b := range w.nodes {
			w.cut(a.end, b.end, d)
		}
	}
}

// silenceFault: much of the fleet falls silent at once.
func (w *world) silenceFault() {
	d := w.between(15*sec, 70*sec)
	share := 400 + w.pick(600)
	w.note("%d per mille of the machines are cut off for %.1f s", share, float64(d)/1e9)
	for _, m := range w.machines {
		if w.chance(share) {
			for _, n := range w.nodes {
				w.cut(m.end, n.end, d)
				w.cut(n.end, m.end, d)
			}
		}
	}
}

// heal ends every fault.
func (w *world) heal() {
	w.note("all faults are over")
	w.healed = true
	w.stormTill = 0
	w.cuts = make(map[[2]int]int)
	w.loss, w.dup, w.slow = 0, 0, 0
	w.cloud.failing, w.cloud.slow = 0, 0
	w.badAll = w.now
	for _, n := range w.nodes {
		n.lag = false
		n.stopped = 0
		if !n.alive {
			n.boot()
		}
		n.flush()
	}
	for _, m := range w.machines {
		m.stopped = 0
		m.flush()
	}
}
