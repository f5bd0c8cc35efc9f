package lease

import (
	"fmt"
	"slices"
	"sort"
	"testing"

	"footplate/fleet"

	"pgregory.net/rapid"
)

// world is one host and some nodes in true time, in nanoseconds, with clocks
// that run within 1% of it, a network that loses and delays, nodes that restart
// and stall, and memberships that change by one.
type world struct {
	now    int64 // true
	weak   weakness
	pick   func(n int, what string) int // 0..n-1
	events []event

	agent      clock
	holder     *Holder
	agentHears int64 // the agent is stopped until then
	mail       []func()

	nodes   []*node
	configs [][]fleet.NodeID // by version less 1; the newest may be uncommitted
	commit  int              // configs[:commit] are committed

	dead                        uint64 // the newest lease that was declared lost
	violations, verdicts, helds int
}

type event struct {
	at int64
	do func()
}

// weakness takes one mechanism away.
type weakness string

const (
	strict      weakness = ""
	noMargin    weakness = "no margin"
	oneBehind   weakness = "beats one change behind are acknowledged"
	noStability weakness = "a node testifies for a membership that it has just got"
	noUptime    weakness = "a node that just started testifies"
	minority    weakness = "one testimony is enough"
	longAsk     weakness = "testimonies of different moments count together"
	unstuck     weakness = "a lease that ran out unnoticed comes back to life"
)

type clock struct {
	offset, perMille int64
}

func (c clock) read(true_ int64) Mono { return Mono(c.offset + true_/1000*c.perMille) }

type node struct {
	id      fleet.NodeID
	clock   clock
	w       *Witness
	version int // in its log; on disk
	link    bool
	stalled bool
}

const (
	ms         = int64(1e6)
	fenceAfter = 10 * fleet.Second
)

var theHost = HostKey{Host: "linux-1", Boot: "b1"}

func newWorld(weak weakness, pick func(int, string) int) *world {
	w := &world{weak: weak, pick: pick}
	w.agent = w.newClock("agent")
	first := 1 + 2*pick(3, "first nodes")
	for i := range 7 {
		n := &node{id: fleet.NodeID(fmt.Sprintf("n%d", i+1)), clock: w.newClock("node"), link: true}
		w.nodes = append(w.nodes, n)
		if i < first {
			n.version = 1
		}
		n.w = NewWitness(n.id, uint64(n.version), n.clock.read(0))
	}
	w.configs = [][]fleet.NodeID{nil}
	for _, n := range w.nodes[:first] {
		w.configs[0] = append(w.configs[0], n.id)
	}
	w.commit = 1
	w.holder = NewHolder(fenceAfter, 1, w.configs[0])
	return w
}

func (w *world) newClock(who string) clock {
	// The ends are where the arithmetic is tight.
	rates := []int64{990, 1000, 1010, 990, 1010, 995}
	return clock{offset: 1e12 + int64(w.pick(1000, who+" offset"))*1e9, perMille: rates[w.pick(len(rates), who+" rate")]}
}

func (w *world) after(d int64, do func()) { w.events = append(w.events, event{w.now + d, do}) }

// run advances true time by d, and carries out what falls into it.
func (w *world) run(d int64) {
	end := w.now + d
	for {
		sort.SliceStable(w.events, func(i, j int) bool { return w.events[i].at < w.events[j].at })
		if len(w.events) == 0 || w.events[0].at > end {
			break
		}
		e := w.events[0]
		w.events = w.events[1:]
		w.now = e.at
		e.do()
		if h := w.holder; h.number <= w.dead && h.deadline > w.agent.read(w.now) {
			w.violations++ // what was declared lost is back
		}
	}
	w.now = end
	for _, n := range w.nodes {
		if !n.stalled {
			n.w.Tick(n.clock.read(w.now))
		}
	}
}

func (w *world) byID(id fleet.NodeID) *node {
	return w.nodes[slices.IndexFunc(w.nodes, func(n *node) bool { return n.id == id })]
}

func (w *world) delay() int64 {
	return []int64{1 * ms, 20 * ms, 900 * ms, 4000 * ms}[w.pick(4, "delay")]
}

// atAgent runs do when the agent next runs.
func (w *world) atAgent(do func()) {
	if w.agentHears > w.now {
		w.mail = append(w.mail, do)
		return
	}
	do()
}

// beat sends one beat to every node that the agent knows.
func (w *world) beat() {
	if w.agentHears > w.now {
		return
	}
	b := w.holder.Beat(w.agent.read(w.now))
	for _, id := range w.holder.Nodes() {
		n := w.byID(id)
		if !n.link || w.pick(8, "request lost") == 7 {
			continue
		}
		w.after(w.delay(), func() {
			if n.stalled {
				return
			}
			sent := b
			if w.weak == oneBehind && int(b.Version) == n.version-1 {
				sent.Version++
			}
			sent.FenceAfter = w.worth()
			ok, _ := n.w.Beat(theHost, 1, sent, n.clock.read(w.now))
			if !n.link || w.pick(8, "answer lost") == 7 {
				return
			}
			// Only what is committed, and only what this node has.
			tell := min(n.version, w.commit)
			w.after(w.delay(), func() {
				w.atAgent(func() {
					now := w.agent.read(w.now)
					if ok {
						w.acked(n.id, b, now)
					} else {
						w.holder.SetMembers(uint64(tell), w.configs[tell-1], now)
					}
				})
			})
		})
	}
}

// worth is the FenceAfter that the nodes are told; without the margin it is less
// than the agent's by just that margin.
func (w *world) worth() fleet.Duration {
	d := fenceAfter
	if w.weak == noMargin {
		for d+Margin(d) > fenceAfter {
			d -= 10 * fleet.Millisecond
		}
	}
	return d
}

func (w *world) acked(id fleet.NodeID, b Beat, now Mono) {
	number := w.holder.number
	defer func() {
		if w.weak == unstuck && number > 0 {
			// As a holder would be that computes its deadline and nothing else.
			w.holder.number = number
		}
	}()
	w.holder.Acked(id, b, now)
}

func (w *world) restart(n *node) {
	now := n.clock.read(w.now)
	n.stalled = false
	if w.weak == noUptime {
		now -= Mono(0).Add(fleet.Hour)
	}
	n.w = NewWitness(n.id, uint64(n.version), now)
	if w.weak == noUptime {
		// Ticks up to now, so that its liveness clock is an hour old.
		for t := now; t < n.clock.read(w.now); t += Mono(0).Add(fleet.Second) {
			n.w.Tick(t)
		}
	}
}

func (w *world) store(n *node, version int) {
	n.version = version
	if w.weak == noStability {
		n.w.version = uint64(version)
		return
	}
	n.w.SetVersion(uint64(version), n.clock.read(w.now))
}

// change proposes the next membership by a node that has the newest committed
// one, when there is none under way.
func (w *world) change() {
	if w.commit < len(w.configs) {
		return
	}
	next := slices.Clone(w.configs[w.commit-1])
	i := w.pick(len(w.nodes), "who joins or leaves")
	id := w.nodes[i].id
	if j := slices.Index(next, id); j >= 0 {
		if len(next) == 1 {
			return
		}
		next = slices.Delete(next, j, j+1)
	} else {
		next = append(next, id)
	}
	leader := w.nodes[w.pick(len(w.nodes), "leader of the change")]
	if leader.version != w.commit || leader.stalled || !slices.Contains(next, leader.id) {
		return
	}
	w.configs = append(w.configs, next)
	w.store(leader, len(w.configs))
}

// replicate brings the newest membership to one of its nodes, and commits it when
// a majority has it.
func (w *world) replicate() {
	newest := w.configs[len(w.configs)-1]
	n := w.byID(newest[w.pick(len(newest), "who stores")])
	if n.version < len(w.configs) && !n.stalled {
		w.store(n, len(w.configs))
	}
	have := 0
	for _, id := range newest {
		if w.byID(id).version == len(w.configs) {
			have++
		}
	}
	if have >= majority(len(newest)) {
		w.commit = len(w.configs)
	}
}

// ask plays the leader's question, and checks the verdict against the truth.
func (w *world) ask() {
	newest := w.configs[len(w.configs)-1]
	leader := w.byID(newest[w.pick(len(newest), "who asks")])
	if leader.version == 0 || leader.stalled {
		return
	}
	members := w.configs[leader.version-1]
	if !slices.Contains(members, leader.id) {
		return
	}
	// A deposed leader can ask, and cannot commit the verdict: that takes its
	// entry on a majority that has nothing newer.
	if leader.version < w.commit {
		return
	}
	q := Question{AskedAt: leader.clock.read(w.now), Version: uint64(leader.version), Members: members}
	asked := w.worth()
	agentNow := w.agent.read(w.now)
	number, heldAt := w.holder.number, w.holder.deadline != 0 && agentNow < w.holder.deadline.Add(Reaction*99/100)
	if w.holder.Deadline() > agentNow {
		w.helds++
	}
	var ts []Testimony
	for i, id := range members {
		n := w.byID(id)
		if n.stalled || n != leader && w.pick(10, "no testimony") == 9 {
			continue
		}
		if w.weak == longAsk && i > 0 {
			// In between the world goes on; the check below sees the end of it.
			w.run(int64(w.pick(8000, "between the testimonies")) * ms)
			w.beat()
			agentNow = w.agent.read(w.now)
			number, heldAt = w.holder.number, number == w.holder.number && w.holder.Deadline() > agentNow
		}
		ts = append(ts, n.w.Testify(theHost, asked, n.clock.read(w.now)))
	}
	now := leader.clock.read(w.now)
	if w.weak == longAsk {
		now = q.AskedAt
	}
	lost := Lost(q, ts, now)
	if w.weak == minority {
		lost = slices.ContainsFunc(ts, func(t Testimony) bool { return t.Silent })
	}
	if !lost {
		return
	}
	w.verdicts++
	w.dead = max(w.dead, number)
	if heldAt && w.holder.number == number {
		w.violations++
	}
}

// askSpread is ask with the testimonies spread over the time that is allowed,
// while messages arrive.
func (w *world) askSpread() {
	newest := w.configs[len(w.configs)-1]
	leader := w.byID(newest[w.pick(len(newest), "who asks")])
	if leader.version == 0 || leader.stalled || leader.version < w.commit {
		return
	}
	members := w.configs[leader.version-1]
	q := Question{AskedAt: leader.clock.read(w.now), Version: uint64(leader.version), Members: members}
	number, held := w.holder.number, w.holder.deadline != 0 && w.agent.read(w.now) < w.holder.deadline.Add(Reaction*99/100)
	var ts []Testimony
	for _, id := range members {
		w.run(int64(w.pick(400, "between the testimonies")) * ms)
		if n := w.byID(id); !n.stalled {
			ts = append(ts, n.w.Testify(theHost, fenceAfter, n.clock.read(w.now)))
		}
	}
	if leader.version < w.commit || !Lost(q, ts, leader.clock.read(w.now)) {
		return
	}
	w.verdicts++
	w.dead = max(w.dead, number)
	if held {
		w.violations++
	}
	// No lease that was begun before the question is alive after it.
	if n, _, alive := w.holder.Lease(w.agent.read(w.now)); alive && n == number {
		w.violations++
	}
}

func (w *world) step() {
	// rapid prefers small numbers: the ordinary things have them.
	switch w.pick(24, "step") {
	default:
		w.beat()
	case 11, 12, 13:
		w.replicate()
	case 14:
		w.askSpread()
	case 15, 16:
		w.run(int64(w.pick(4, "long"))*2500*ms + int64(w.pick(100, "fine"))*10*ms)
	case 17, 18:
		w.change()
	case 19:
		n := w.nodes[w.pick(len(w.nodes), "link")]
		n.link = !n.link
	case 20:
		w.restart(w.nodes[w.pick(len(w.nodes), "restart")])
	case 21:
		n := w.nodes[w.pick(len(w.nodes), "stall")]
		n.stalled = true
		w.after(int64(1+w.pick(20, "for"))*700*ms, func() { n.stalled = false })
	case 22:
		// The agent is stopped, and finds its mail when it runs again.
		d := int64(1+w.pick(14, "the agent stops for")) * 1000 * ms
		w.agentHears = w.now + d
		w.after(d, func() {
			if w.now < w.agentHears {
				return
			}
			mail := w.mail
			w.mail = nil
			for _, do := range mail {
				do()
			}
		})
	case 23:
		for _, n := range w.nodes {
			n.link = w.pick(3, "cut") < 2
		}
	}
	// Ticks come often; time passes in between.
	for range 1 + w.pick(5, "quarters") {
		w.run(250 * ms)
	}
	w.ask()
}

// run plays steps and reports how many verdicts were wrong.
func play(weak weakness, steps int, pick func(int, string) int) *world {
	w := newWorld(weak, pick)
	for range steps {
		w.step()
	}
	return w
}

// TestNeverLostWhileHeld is P2: whatever happens to clocks, network, nodes and
// memberships, no verdict falls while the host holds the lease that it had when
// the question was asked, nor within Reaction after it.
func TestNeverLostWhileHeld(t *testing.T) {
	verdicts, helds := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		w := play(strict, 120, func(n int, what string) int { return rapid.IntRange(0, n-1).Draw(t, what) })
		if w.violations > 0 {
			t.Fatalf("%d verdicts while the lease was held", w.violations)
		}
		verdicts += w.verdicts
		helds += w.helds
	})
	t.Logf("%d verdicts, %d questions about a held lease", verdicts, helds)
	if verdicts < 100 || helds < 100 {
		t.Errorf("%d verdicts, and %d questions about a held lease: too few to prove anything", verdicts, helds)
	}
}

// pcg is a small generator of its own (PCG-XSH-RR), for long runs by seed.
func seeded(seed uint64) func(int, string) int {
	state := seed*2862933555777941757 + 3037000493
	return func(n int, _ string) int {
		state = state*6364136223846793005 + 1442695040888963407
		x := uint32(((state >> 18) ^ state) >> 27)
		rot := uint32(state >> 59)
		x = x>>rot | x<<(-rot&31)
		return int(uint64(x) * uint64(n) >> 32)
	}
}

// TestNeverLostWhileHeldSeeds plays more, and longer, than rapid's budget allows.
func TestNeverLostWhileHeldSeeds(t *testing.T) {
	for seed := range uint64(3000) {
		if w := play(strict, 200, seeded(seed)); w.violations > 0 {
			t.Fatalf("seed %d: %d verdicts while the lease was held", seed, w.violations)
		}
	}
}

// TestWeakenedRulesAreCaught takes each mechanism away in turn: the property
// above must then fail, or it would prove nothing about that mechanism.
func TestWeakenedRulesAreCaught(t *testing.T) {
	for _, weak := range []weakness{noMargin, oneBehind, noStability, noUptime, minority, longAsk, unstuck} {
		t.Run(string(weak), func(t *testing.T) {
			const seeds = 6000
			for seed := range uint64(seeds) {
				if play(weak, 200, seeded(seed)).violations > 0 {
					t.Logf("caught by seed %d", seed)
					return
				}
			}
			t.Errorf("not caught by %d seeds", seeds)
		})
	}
}
