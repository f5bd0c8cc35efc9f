package sim

import (
	"fmt"
	"hash"
	"math/rand/v2"

	"footplate/controlplane/op"
	"footplate/fleet"
	"footplate/fleet/lease"
)

// The units of true time.
const (
	ms  = int64(1e6)
	sec = 1000 * ms
)

// world is everything that there is. Endpoints of the network are numbered:
// first the nodes, then the machines.
type world struct {
	cfg     Config
	profile Profile
	rng     *rand.Rand
	ops     *op.Registry

	now   int64 // true
	seq   uint64
	queue []event

	hash      hash.Hash64
	lines     []string // a ring
	lineN     int
	violation *Violation
	stats     Stats

	// The network.
	procs   []*process       // by endpoint
	cuts    map[[2]int]int   // how many faults cut this direction
	loss    int              // per mille
	dup     int              // per mille
	slow    int              // per mille of messages that are late by seconds
	badPair map[[2]int]int64 // when a pair was last disturbed
	badAll  int64            // when all were
	badEnd  []int64          // by endpoint

	// Consensus.
	nodes  []*node
	log    []*entry
	commit int // log[:commit]
	term   uint64
	leader int // the node that leads term; -1 for none

	oracle    *oracle
	cloud     *cloud
	machines  []*machine // by endpoint less the number of nodes
	people    *people
	healed    bool
	stormTill int64 // every leader falls soon after its election
	apart     bool  // the nodes' clocks run as fast as they may, the machines' as slow
	retires   bool  // finished builds leave the state after a minute
}

type event struct {
	at  int64
	seq uint64
	do  func()
}

func (e event) before(f event) bool { return e.at < f.at || e.at == f.at && e.seq < f.seq }

// at runs do at true time t.
func (w *world) at(t int64, do func()) {
	w.seq++
	q := append(w.queue, event{max(t, w.now), w.seq, do})
	for i := len(q) - 1; i > 0; {
		up := (i - 1) / 2
		if !q[i].before(q[up]) {
			break
		}
		q[i], q[up] = q[up], q[i]
		i = up
	}
	w.queue = q
}

func (w *world) after(d int64, do func()) { w.at(w.now+d, do) }

// next runs the next event; false when there is none or a promise is broken.
func (w *world) next() bool {
	if len(w.queue) == 0 || w.violation != nil {
		return false
	}
	q := w.queue
	e := q[0]
	last := len(q) - 1
	q[0] = q[last]
	q[last] = event{}
	q = q[:last]
	for i := 0; ; {
		l := 2*i + 1
		if l >= len(q) {
			break
		}
		if l+1 < len(q) && q[l+1].before(q[l]) {
			l++
		}
		if !q[l].before(q[i]) {
			break
		}
		q[i], q[l] = q[l], q[i]
		i = l
	}
	w.queue = q
	w.now = e.at
	w.stats.Events++
	e.do()
	return true
}

// pick draws from 0..n-1.
func (w *world) pick(n int) int { return w.rng.IntN(n) }

// between draws from lo to hi.
func (w *world) between(lo, hi int64) int64 { return lo + w.rng.Int64N(hi-lo+1) }

func (w *world) chance(perMille int) bool { return w.rng.IntN(1000) < perMille }

func (w *world) salt() string { return fmt.Sprintf("%016x%016x", w.rng.Uint64(), w.rng.Uint64()) }

// note writes a line of the timeline.
func (w *world) note(format string, args ...any) {
	line := fmt.Sprintf("%9.3f  ", float64(w.now)/1e9) + fmt.Sprintf(format, args...)
	w.lines[w.lineN%len(w.lines)] = line
	w.lineN++
	w.hash.Write([]byte(line))
}

func (w *world) tail() []string {
	var out []string
	for i := max(0, w.lineN-len(w.lines)); i < w.lineN; i++ {
		out = append(out, w.lines[i%len(w.lines)])
	}
	return out
}

// broken notes that a promise is broken. The first one counts.
func (w *world) broken(invariant, format string, args ...any) {
	if w.violation != nil {
		return
	}
	w.violation = &Violation{invariant, fmt.Sprintf(format, args...)}
	w.note("BROKEN %s: %s", invariant, w.violation.Text)
}

// clock is the monotonic clock of a machine.
type clock struct{ offset, perMille int64 }

// newClock is one of a node, or of a machine of the fleet.
func (w *world) newClock(ofNode bool) clock {
	rates := []int64{1000, 1000, 999, 1001}
	switch {
	case w.apart && ofNode:
		rates = []int64{1010}
	case w.apart:
		rates = []int64{990}
	case w.profile == Clocks || w.profile == Mixed:
		rates = []int64{990, 1010, 990, 1010, 1000, 995} // the ends are where the arithmetic is tight
	}
	return clock{w.between(1, 1e6) * sec, rates[w.pick(len(rates))]}
}

func (c clock) read(t int64) lease.Mono { return lease.Mono(c.offset + t/1000*c.perMille) }

// when returns the first true moment at which c reads m or more.
func (c clock) when(m lease.Mono) int64 { return ((int64(m)-c.offset)/c.perMille + 1) * 1000 }

// process is something that can be killed, started anew, and stopped. What
// comes while it is stopped waits for it.
type process struct {
	w       *world
	end     int // its endpoint
	alive   bool
	life    int // how often it was started
	stopped int // by how many faults
	mail    []func()
}

// run does do as soon as the process runs, or never.
func (p *process) run(do func()) {
	switch {
	case !p.alive:
	case p.stopped > 0:
		p.mail = append(p.mail, p.bound(do))
	default:
		do()
	}
}

// bound returns do for this life of the process alone.
func (p *process) bound(do func()) func() {
	life := p.life
	return func() {
		if p.alive && p.life == life {
			do()
		}
	}
}

// after does do in this life of the process, d later or when it runs again.
func (p *process) after(d int64, do func()) {
	do = p.bound(do)
	p.w.after(d, func() { p.run(do) })
}

func (p *process) start() {
	p.alive = true
	p.life++
	p.w.disturbed(p.end)
}

func (p *process) kill() {
	p.alive = false
	p.life++
	p.mail = nil
	p.w.disturbed(p.end)
}

func (p *process) stop(d int64) {
	p.stopped++
	p.w.disturbed(p.end)
	p.w.after(d, func() {
		if p.stopped == 0 {
			return
		}
		p.stopped--
		p.w.disturbed(p.end)
		p.flush()
	})
}

// flush hands over the mail, in order.
func (p *process) flush() {
	for p.stopped == 0 && len(p.mail) > 0 {
		do := p.mail[0]
		p.mail = p.mail[1:]
		do()
	}
}

// disturbed notes that an endpoint was killed, started, stopped or continued.
func (w *world) disturbed(end int) { w.badEnd[end] = w.now }

// delay is how long a message is under way.
func (w *world) delay() int64 {
	if w.chance(w.slow) {
		return w.between(200*ms, 5*sec)
	}
	return w.between(200_000, 12*ms)
}

// send does do at the other end, if the message arrives: perhaps late, perhaps
// twice.
func (w *world) send(from, to int, do func()) {
	arrive := func() { w.procs[to].run(do) }
	if w.cuts[[2]int{from, to}] > 0 || w.chance(w.loss) {
		if w.chance(300) { // it is sent again, by the machine below
			w.after(w.between(sec, 8*sec), func() {
				if w.cuts[[2]int{from, to}] == 0 {
					arrive()
				}
			})
		}
		return
	}
	w.after(w.delay(), arrive)
	if w.dup > 0 && w.chance(w.dup) {
		w.after(w.delay()*3, arrive)
	}
}

// reach reports whether two endpoints hear each other now.
func (w *world) reach(a, b int) bool {
	up := func(i int) bool { return w.procs[i].alive && w.procs[i].stopped == 0 }
	return up(a) && up(b) && w.cuts[[2]int{a, b}] == 0 && w.cuts[[2]int{b, a}] == 0
}

// cut cuts one direction for d.
func (w *world) cut(from, to int, d int64) {
	if from == to {
		return
	}
	k := [2]int{from, to}
	w.cuts[k]++
	w.disturb(from, to)
	w.after(d, func() {
		if w.healed {
			return
		}
		w.cuts[k]--
		w.disturb(from, to)
	})
}

func (w *world) disturb(a, b int) { w.badPair[[2]int{min(a, b), max(a, b)}] = w.now }

// undisturbed returns for how long two endpoints have heard each other without
// any fault.
func (w *world) undisturbed(a, b int) int64 {
	if !w.reach(a, b) || w.loss > 0 || w.slow > 0 {
		return 0
	}
	return w.now - max(w.badAll, w.badEnd[a], w.badEnd[b], w.badPair[[2]int{min(a, b), max(a, b)}])
}

// endpoint gives a process its place in the network.
func (w *world) endpoint(p *process) int {
	p.w, p.end = w, len(w.procs)
	w.procs = append(w.procs, p)
	w.badEnd = append(w.badEnd, w.now)
	return p.end
}

func majority(n int) int { return n/2 + 1 }

func seconds(t int64) fleet.Duration { return fleet.Duration(t / ms) }
