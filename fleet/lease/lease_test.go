package lease

import (
	"fmt"
	"strings"
	"testing"

	"footplate/fleet"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// sec is a moment, s seconds after the clocks of these tests began.
func sec(s float64) Mono { return 1e12 + Mono(s*1e9) }

var three = []fleet.NodeID{"n1", "n2", "n3"}

func TestMargin(t *testing.T) {
	// The inequality of Margin's comment, times 0.99, in microseconds of true time.
	rapid.Check(t, func(t *rapid.T) {
		f := fleet.Duration(rapid.Int64Range(1, int64(MaxFenceAfter)).Draw(t, "fence-after"))
		agentEnds := int64(f) * 1000 * 100 / 99
		testifies := int64(f+Margin(f)) * 1000 * 100 / 101
		spread := int64(AskWithin) * 1000 * 100 / 99
		if left := testifies - agentEnds - spread; left < int64(Reaction)*1000 {
			t.Fatalf("fence-after %s leaves %d us between the lease and the verdict", f, left)
		}
	})
	if got := Margin(fleet.DefaultFenceAfter); got != 3630*fleet.Millisecond {
		t.Errorf("margin of 30s is %s", got)
	}
}

func TestHolder(t *testing.T) {
	const f = 30 * fleet.Second
	type want struct {
		Number   uint64
		Deadline Mono
		Held     bool
	}
	check := func(t *testing.T, h *Holder, now Mono, w want) {
		t.Helper()
		var got want
		got.Number, got.Deadline, got.Held = h.Lease(now)
		if diff := cmp.Diff(w, got); diff != "" {
			t.Errorf("at %d: %s", now.Sub(sec(0)), diff)
		}
	}
	t.Run("counts from the sending, at a majority", func(t *testing.T) {
		h := NewHolder(f, 1, three)
		check(t, h, sec(0), want{})
		b := h.Beat(sec(0))
		h.Acked("n1", b, sec(5))
		check(t, h, sec(5), want{})
		h.Acked("n3", b, sec(6))
		check(t, h, sec(6), want{1, sec(30), true})
		check(t, h, sec(30)-1, want{1, sec(30), true})
		check(t, h, sec(30), want{1, 0, false})
	})
	t.Run("the second newest of three decides", func(t *testing.T) {
		h := NewHolder(f, 1, three)
		for i, n := range three {
			h.Acked(n, h.Beat(sec(float64(i))), sec(3))
		}
		check(t, h, sec(3), want{1, sec(31), true})
	})
	t.Run("all of two, the one of one, none of none", func(t *testing.T) {
		h := NewHolder(f, 1, three[:2])
		h.Acked("n1", h.Beat(sec(0)), sec(0))
		check(t, h, sec(0), want{})
		h = NewHolder(f, 1, three[:1])
		h.Acked("n1", h.Beat(sec(0)), sec(0))
		check(t, h, sec(0), want{1, sec(30), true})
		check(t, NewHolder(f, 1, nil), sec(0), want{})
	})
	t.Run("late, repeated, strange and impossible acknowledgements", func(t *testing.T) {
		h := NewHolder(f, 1, three[:1])
		first, second := h.Beat(sec(0)), h.Beat(sec(3))
		h.Acked("n1", second, sec(4))
		h.Acked("n1", first, sec(5))
		h.Acked("n1", second, sec(6))
		h.Acked("n9", h.Beat(sec(6)), sec(6))
		h.Acked("n1", h.Beat(sec(99)), sec(6))
		h.Acked("n1", Beat{FenceAfter: f}, sec(6))
		check(t, h, sec(6), want{1, sec(33), true})
	})
	t.Run("a lapse that nobody saw makes a new lease", func(t *testing.T) {
		h := NewHolder(f, 1, three[:1])
		h.Acked("n1", h.Beat(sec(0)), sec(0))
		b := h.Beat(sec(20))
		h.Acked("n1", b, sec(31)) // it was read late, after a stall
		check(t, h, sec(31), want{2, sec(50), true})
	})
	t.Run("an acknowledgement that came after its worth is over", func(t *testing.T) {
		h := NewHolder(f, 1, three[:1])
		h.Acked("n1", h.Beat(sec(0)), sec(31))
		check(t, h, sec(31), want{})
	})
	t.Run("fence-after changes for new beats alone", func(t *testing.T) {
		h := NewHolder(f, 1, three[:1])
		h.Acked("n1", h.Beat(sec(0)), sec(0))
		h.SetFenceAfter(10 * fleet.Second)
		h.Acked("n1", h.Beat(sec(3)), sec(3))
		check(t, h, sec(3), want{1, sec(30), true})
		h.Acked("n1", h.Beat(sec(25)), sec(25))
		check(t, h, sec(25), want{1, sec(35), true})
	})
	t.Run("members", func(t *testing.T) {
		h := NewHolder(f, 4, three)
		b := h.Beat(sec(0))
		h.Acked("n1", b, sec(0))
		h.Acked("n2", b, sec(0))
		h.SetMembers(4, []fleet.NodeID{"n9"}, sec(1)) // not newer
		h.SetMembers(3, []fleet.NodeID{"n9"}, sec(1)) // older
		check(t, h, sec(1), want{1, sec(30), true})
		h.SetMembers(5, []fleet.NodeID{"n4", "n3", "n2", "n1", "n1"}, sec(1)) // 2 of 4 are too few
		check(t, h, sec(1), want{1, 0, false})
		h.Acked("n4", h.Beat(sec(2)), sec(2))
		check(t, h, sec(2), want{2, sec(30), true})
		h.SetMembers(6, []fleet.NodeID{"n1", "n2", "n3"}, sec(3)) // what n4 said does not count any more
		check(t, h, sec(3), want{2, sec(30), true})
		if diff := cmp.Diff(three, h.Nodes()); diff != "" || h.Version() != 6 || h.Beat(sec(3)).Version != 6 {
			t.Errorf("version %d %s", h.Version(), diff)
		}
	})
	t.Run("the start window", func(t *testing.T) {
		h := NewHolder(f, 1, three[:1])
		if h.MayStart(sec(0), sec(0)) {
			t.Error("may start without a lease")
		}
		h.Acked("n1", h.Beat(sec(0)), sec(0))
		for _, row := range []struct {
			sent, now Mono
			want      bool
		}{
			{sec(0), sec(0), true},
			{sec(0), sec(5) - 1, true},
			{sec(0), sec(5), false},
			{sec(6), sec(5), false},
			{0, sec(5), false},
			{sec(29), sec(30), false}, // the lease is over
		} {
			if got := h.MayStart(row.sent, row.now); got != row.want {
				t.Errorf("sent at %d, now %d: %v", row.sent.Sub(sec(0)), row.now.Sub(sec(0)), got)
			}
		}
	})
}

// listen ticks w from one moment to another.
func listen(w *Witness, from, to Mono) {
	for t := from; t < to; t = t.Add(TickEvery) {
		w.Tick(t)
	}
	w.Tick(to)
}

func TestWitness(t *testing.T) {
	const f = 30 * fleet.Second
	need := (f + Margin(f)).Std().Seconds() // 33.63
	host := HostKey{Host: "linux-1", Boot: "b1"}
	beat := Beat{Version: 3, FenceAfter: f}
	testify := func(t *testing.T, w *Witness, at float64, silent bool, why string) {
		t.Helper()
		got := w.Testify(host, f, sec(at))
		if diff := cmp.Diff(Testimony{Node: "n1", Version: w.Version(), Silent: silent, Why: why}, got); diff != "" {
			t.Errorf("at %gs: %s", at, diff)
		}
	}
	ack := func(t *testing.T, w *Witness, at float64) {
		t.Helper()
		if ok, why := w.Beat(host, 1, beat, sec(at)); !ok {
			t.Fatalf("refused: %s", why)
		}
	}
	t.Run("testifies after the fence and the margin, to the nanosecond", func(t *testing.T) {
		w := NewWitness("n1", 3, sec(0))
		listen(w, sec(0), sec(100))
		ack(t, w, 100)
		listen(w, sec(100), sec(100+need)-1)
		if got := w.Testify(host, f, sec(100+need)-1); got.Silent {
			t.Errorf("too early: %s", got.Why)
		}
		testify(t, w, 100+need, true, "the node has acknowledged nothing for 33s630ms")
	})
	t.Run("a node that just started cannot", func(t *testing.T) {
		w := NewWitness("n1", 3, sec(0))
		listen(w, sec(0), sec(20))
		testify(t, w, 20, false, "the node has listened for 20s, and 33s630ms are needed")
		listen(w, sec(20), sec(34))
		testify(t, w, 34, true, "the node has acknowledged nothing for 33s630ms")
	})
	t.Run("nor one whose membership just changed", func(t *testing.T) {
		w := NewWitness("n1", 3, sec(0))
		listen(w, sec(0), sec(100))
		w.SetVersion(3, sec(100))
		testify(t, w, 100, true, "the node has acknowledged nothing for 33s630ms")
		w.SetVersion(4, sec(100))
		listen(w, sec(100), sec(110))
		testify(t, w, 110, false, "the node has had membership 4 for 10s, and 33s630ms are needed")
		w.SetVersion(3, sec(110)) // overwritten: back, and as new
		testify(t, w, 110, false, "the node has had membership 3 for 0s, and 33s630ms are needed")
	})
	t.Run("keeps to the longest promise", func(t *testing.T) {
		w := NewWitness("n1", 3, sec(0))
		listen(w, sec(0), sec(100))
		if ok, _ := w.Beat(host, 1, Beat{Version: 3, FenceAfter: 2 * f}, sec(100)); !ok {
			t.Fatal("refused")
		}
		ack(t, w, 101)
		listen(w, sec(101), sec(150))
		testify(t, w, 150, false, "the node acknowledged a beat 49s ago")
		listen(w, sec(150), sec(165))
		testify(t, w, 165, true, "the node has acknowledged nothing for 33s630ms")
	})
	t.Run("a stall is no silence", func(t *testing.T) {
		w := NewWitness("n1", 3, sec(0))
		listen(w, sec(0), sec(100))
		ack(t, w, 100)
		w.Tick(sec(500))
		testify(t, w, 500, false, "the node acknowledged a beat 1s ago")
		if d, heard := w.SilentFor(host, sec(500)); d != fleet.Second || !heard {
			t.Errorf("silent for %s, heard %v", d, heard)
		}
		listen(w, sec(500), sec(532))
		testify(t, w, 532, false, "the node acknowledged a beat 33s ago")
		listen(w, sec(532), sec(533))
		testify(t, w, 533, true, "the node has acknowledged nothing for 33s630ms")
	})
	t.Run("a beat that is read right after a stall counts in full", func(t *testing.T) {
		w := NewWitness("n1", 3, sec(0))
		listen(w, sec(0), sec(100))
		ack(t, w, 500)
		listen(w, sec(500), sec(533))
		testify(t, w, 533, false, "the node acknowledged a beat 33s ago")
	})
	t.Run("a clock that goes back does nothing", func(t *testing.T) {
		w := NewWitness("n1", 3, sec(50))
		w.Tick(sec(40))
		listen(w, sec(50), sec(51))
		if d, heard := w.SilentFor(host, sec(45)); d != fleet.Second || heard {
			t.Errorf("silent for %s, heard %v", d, heard)
		}
	})
	t.Run("refusals leave no trace", func(t *testing.T) {
		for _, row := range []struct {
			b    Beat
			inc  fleet.Incarnation
			want string
		}{
			{Beat{Version: 2, FenceAfter: f}, 7, "the beat counts membership 2, and the node has 3"},
			{Beat{Version: 3}, 7, "fence-after is 0s; it must lie between 0 and 1h"},
			{Beat{Version: 3, FenceAfter: MaxFenceAfter + 1}, 7, "fence-after is 1h1ms; it must lie between 0 and 1h"},
			{beat, 6, "incarnation 6 of the agent was followed by 7"},
		} {
			w := NewWitness("n1", 3, sec(0))
			listen(w, sec(0), sec(100))
			if ok, why := w.Beat(host, 7, beat, sec(100)); !ok {
				t.Fatal(why)
			}
			listen(w, sec(100), sec(110))
			if ok, why := w.Beat(host, row.inc, row.b, sec(110)); ok || why != row.want {
				t.Errorf("%v %q, want %q", ok, why, row.want)
			}
			if d, _ := w.SilentFor(host, sec(110)); d != 10*fleet.Second {
				t.Errorf("silent for %s after the refusal of %v", d, row.b)
			}
		}
	})
	t.Run("another boot is another life", func(t *testing.T) {
		w := NewWitness("n1", 3, sec(0))
		listen(w, sec(0), sec(100))
		ack(t, w, 100)
		listen(w, sec(100), sec(120))
		reborn := HostKey{Host: "linux-1", Boot: "b2"}
		if ok, why := w.Beat(reborn, 1, beat, sec(120)); !ok {
			t.Fatal(why)
		}
		listen(w, sec(120), sec(134))
		testify(t, w, 134, true, "the node has acknowledged nothing for 33s630ms")
		if w.Testify(reborn, f, sec(134)).Silent {
			t.Error("the new boot was heard")
		}
	})
	t.Run("an absurd question", func(t *testing.T) {
		w := NewWitness("n1", 3, sec(0))
		for _, d := range []fleet.Duration{0, -f, MaxFenceAfter + 1} {
			if got := w.Testify(host, d, sec(0)); got.Silent || !strings.HasPrefix(got.Why, "fence-after is ") {
				t.Errorf("%s: %+v", d, got)
			}
		}
	})
	t.Run("boots that are silent for hours are forgotten", func(t *testing.T) {
		w := NewWitness("n1", 3, sec(0))
		for i := range 20 {
			w.Beat(HostKey{Host: fleet.HostID(fmt.Sprintf("linux-%d", i)), Boot: "b"}, 1, beat, sec(0))
		}
		kept := HostKey{Host: "linux-5", Boot: "b"}
		end := sec(0).Add(forgetAfter).Add(fleet.Minute)
		listen(w, sec(0), end.Add(-fleet.Minute))
		w.Beat(kept, 1, beat, end.Add(-fleet.Minute))
		listen(w, end.Add(-fleet.Minute), end)
		if len(w.seen) != 1 || len(w.index) != 1 {
			t.Errorf("%d boots are remembered", len(w.seen))
		}
		if d, heard := w.SilentFor(kept, end); d != fleet.Minute || !heard {
			t.Errorf("silent for %s, heard %v", d, heard)
		}
	})
}

func TestLost(t *testing.T) {
	say := func(node fleet.NodeID, version uint64, silent bool) Testimony {
		return Testimony{Node: node, Version: version, Silent: silent}
	}
	q := Question{AskedAt: sec(0), Version: 3, Members: three}
	for _, row := range []struct {
		name string
		ts   []Testimony
		now  Mono
		want bool
	}{
		{"nobody", nil, sec(0), false},
		{"one of three", []Testimony{say("n1", 3, true)}, sec(0), false},
		{"two of three", []Testimony{say("n1", 3, true), say("n3", 3, true)}, sec(0), true},
		{"two of three, in time", []Testimony{say("n1", 3, true), say("n3", 3, true)}, sec(1), true},
		{"too late together", []Testimony{say("n1", 3, true), say("n3", 3, true)}, sec(1) + 1, false},
		{"before the question", []Testimony{say("n1", 3, true), say("n3", 3, true)}, sec(0) - 1, false},
		{"the same twice", []Testimony{say("n1", 3, true), say("n1", 3, true)}, sec(0), false},
		{"a stranger", []Testimony{say("n1", 3, true), say("n4", 3, true)}, sec(0), false},
		{"an older membership", []Testimony{say("n1", 3, true), say("n2", 2, true)}, sec(0), false},
		{"a newer membership", []Testimony{say("n1", 3, true), say("n2", 4, true)}, sec(0), false},
		{"one heard it", []Testimony{say("n1", 3, true), say("n2", 3, false), say("n3", 3, true)}, sec(0), true},
		{"two heard it", []Testimony{say("n1", 3, true), say("n2", 3, false), say("n3", 3, false)}, sec(0), false},
	} {
		t.Run(row.name, func(t *testing.T) {
			if got := Lost(q, row.ts, row.now); got != row.want {
				t.Errorf("got %v", got)
			}
		})
	}
	if Lost(Question{AskedAt: sec(0)}, nil, sec(0)) {
		t.Error("no members are no majority")
	}
	even := Question{AskedAt: sec(0), Version: 3, Members: []fleet.NodeID{"n1", "n2", "n3", "n4"}}
	if Lost(even, []Testimony{say("n1", 3, true), say("n2", 3, true)}, sec(0)) {
		t.Error("two of four are no majority")
	}
}

func TestMayDeclareLost(t *testing.T) {
	for _, row := range []struct {
		delivered, asked Mono
		want             bool
	}{
		{sec(0), sec(5), false},
		{sec(0), sec(5.2) - 1, false},
		{sec(0), sec(5.2), true},
		{sec(9), sec(5), false},
		{0, sec(5), false}, // unknown
	} {
		if got := MayDeclareLost(row.delivered, row.asked); got != row.want {
			t.Errorf("delivered %d, asked %d: %v", row.delivered, row.asked, got)
		}
	}
}

func TestMayReassign(t *testing.T) {
	good := Sync{Incarnation: 2, Stamp: Stamp{Term: 7, At: sec(6)}}
	with := func(change func(*Sync)) Sync {
		s := good
		change(&s)
		return s
	}
	for _, row := range []struct {
		name      string
		delivered Mono
		s         Sync
		want      bool
	}{
		{"a later sync without it", sec(0), good, true},
		{"it lists it", sec(0), with(func(s *Sync) { s.Lists = true }), false},
		{"of another incarnation", sec(0), with(func(s *Sync) { s.Incarnation = 3 }), false},
		{"stamped by another leader", sec(0), with(func(s *Sync) { s.Stamp.Term = 6 }), false},
		{"not stamped at all", sec(0), with(func(s *Sync) { s.Stamp = Stamp{} }), false},
		{"sent too early", sec(0), with(func(s *Sync) { s.Stamp.At = sec(5.2) - 1 }), false},
		{"just in time", sec(0), with(func(s *Sync) { s.Stamp.At = sec(5.2) }), true},
		{"delivered again since", sec(3), good, false},
		{"nobody knows when it was delivered", 0, good, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			if got := MayReassign(row.delivered, 2, 7, row.s); got != row.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

func TestGuard(t *testing.T) {
	b := DefaultBudget()
	for _, row := range []struct {
		name  string
		pools []PoolSilence
		want  []Held
	}{
		{"one of four", []PoolSilence{{Pool: "local", Expected: 4, Silent: 1}},
			[]Held{{"local", false, `1 of 4 hosts of pool "local" are silent or were replaced within 1m, and 3 are allowed`}}},
		{"20% of a big pool", []PoolSilence{{Pool: "linux", Expected: 100, Silent: 15, Replaced: 5}},
			[]Held{{"linux", false, `20 of 100 hosts of pool "linux" are silent or were replaced within 1m, and 20 are allowed`}}},
		{"one more holds all", []PoolSilence{{Pool: "linux", Expected: 100, Silent: 15, Replaced: 6}},
			[]Held{{"linux", true, `21 of 100 hosts of pool "linux" are silent or were replaced within 1m, and 20 are allowed: is the control plane blind?`}}},
		{"a blind pool holds itself alone", []PoolSilence{{Pool: "arm", Expected: 10, Silent: 10}, {Pool: "linux", Expected: 100, Silent: 1}},
			[]Held{
				{"arm", true, `10 of 10 hosts of pool "arm" are silent or were replaced within 1m, and 3 are allowed: is the control plane blind?`},
				{"linux", false, `1 of 100 hosts of pool "linux" are silent or were replaced within 1m, and 20 are allowed`},
			}},
		{"a little of each is much of the fleet", []PoolSilence{{Pool: "a", Expected: 5, Silent: 2}, {Pool: "b", Expected: 5, Silent: 2}},
			[]Held{
				{"a", true, "4 of all 10 hosts are silent or were replaced within 1m, and 3 are allowed: is the control plane blind?"},
				{"b", true, "4 of all 10 hosts are silent or were replaced within 1m, and 3 are allowed: is the control plane blind?"},
			}},
		{"lifted by hand", []PoolSilence{{Pool: "a", Expected: 9, Silent: 9, Released: true}, {Pool: "b", Expected: 5, Silent: 1}},
			[]Held{
				{"a", false, "the guard was lifted by hand"},
				{"b", false, `1 of 5 hosts of pool "b" are silent or were replaced within 1m, and 3 are allowed`},
			}},
		// P5's note: what was ended on purpose is neither expected nor silent.
		{"a deliberate scale-down", []PoolSilence{{Pool: "linux", Expected: 2}},
			[]Held{{"linux", false, `0 of 2 hosts of pool "linux" are silent or were replaced within 1m, and 3 are allowed`}}},
	} {
		t.Run(row.name, func(t *testing.T) {
			if diff := cmp.Diff(row.want, Guard(row.pools, b)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestOneBehindIsUnsafe plays the story of the package comment: with the rule
// that lets a beat be one membership behind, a host is declared lost while it
// holds its lease; with the rule as it is, it is not.
func TestOneBehindIsUnsafe(t *testing.T) {
	const f = 30 * fleet.Second
	host := HostKey{Host: "linux-1", Boot: "b1"}
	for _, lenient := range []bool{true, false} {
		nodes := map[fleet.NodeID]*Witness{}
		for _, n := range []fleet.NodeID{"n1", "n2", "n3", "n4", "n5"} {
			nodes[n] = NewWitness(n, 1, sec(0))
		}
		h := NewHolder(f, 1, three)
		held := false
		for at := 0.0; at < 120; at += 0.25 {
			for _, w := range nodes {
				w.Tick(sec(at))
			}
			// At 40 s n4 joins: n1, n3 and n4 have it in their logs, a majority of
			// four. Then n1 and n2 are cut off with the agent, and n5 joins.
			switch at {
			case 40:
				for _, n := range []fleet.NodeID{"n1", "n3", "n4"} {
					nodes[n].SetVersion(2, sec(at))
				}
			case 41:
				for _, n := range []fleet.NodeID{"n3", "n4", "n5"} {
					nodes[n].SetVersion(3, sec(at))
				}
			}
			b := h.Beat(sec(at))
			for _, n := range []fleet.NodeID{"n1", "n2"} {
				sent := b
				if lenient && sent.Version+1 == nodes[n].Version() {
					sent.Version++
				}
				if ok, _ := nodes[n].Beat(host, 1, sent, sec(at)); ok {
					h.Acked(n, b, sec(at))
				}
			}
			held = h.Held(sec(at))
		}
		q := Question{AskedAt: sec(120), Version: 3, Members: []fleet.NodeID{"n1", "n2", "n3", "n4", "n5"}}
		var ts []Testimony
		for _, n := range []fleet.NodeID{"n3", "n4", "n5"} {
			ts = append(ts, nodes[n].Testify(host, f, sec(120)))
		}
		if !Lost(q, ts, sec(120)) {
			t.Errorf("lenient %v: three of five heard nothing, and that is no verdict: %+v", lenient, ts)
		}
		if held != lenient {
			t.Errorf("lenient %v: held is %v", lenient, held)
		}
	}
}
