package order

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"footplate/controlplane/api"
	"footplate/controlplane/catalog"
	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
	"footplate/fleet/lease"
)

// world is a state, and the book of a leader that began at 1000 s on its clock.
type world struct {
	t     *testing.T
	ops   *op.Registry
	st    *state.State
	index uint64
	clock fleet.Time
	now   lease.Mono // the leader's
	book  *Book
}

const (
	term  = 5
	began = lease.Mono(1000e9)
)

func newWorld(t *testing.T) *world {
	w := &world{t: t, ops: catalog.All(), st: state.New(), clock: 1_795_000_000_000, now: began, book: Open(term, began)}
	w.run("org set acme --slots 1000")
	w.run("pool create linux --provider none --slots 100 --suspect-after 5s --fence-after 10s")
	w.log(catalog.AgentJoin, catalog.AgentJoinArgs{Host: "h1", Pool: "linux", Boot: "b1", Incarnation: 1})
	return w
}

func (w *world) log(o *op.Op, args any) {
	w.t.Helper()
	raw, err := json.Marshal(args)
	if err != nil {
		w.t.Fatal(err)
	}
	w.index++
	b := state.Batch{At: w.clock, Commands: []state.Command{{Op: o.Name, Ver: o.Version(), By: "test", Role: fleet.System, Via: "test", Salt: "s", Args: raw}}}
	applied, err := w.ops.Apply(w.st, w.index, b, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	if e := applied.Outcomes[0].Err; e != nil {
		w.t.Fatalf("%s: %v", o.Name, e)
	}
}

func (w *world) run(line string) {
	w.t.Helper()
	call, err := w.ops.Parse(line)
	if err != nil {
		w.t.Fatal(err)
	}
	w.log(call.Op, call.Args)
}

// pass lets time pass on all clocks.
func (w *world) pass(d fleet.Duration) {
	w.now = w.now.Add(d)
	w.clock = w.clock.Add(d)
	w.run("org set other --slots 1") // a view with that clock
}

func (w *world) view() *state.View { return w.st.Publish() }

// assign gives the task of a new build to h1.
func (w *world) assign(flags string) fleet.AttemptID {
	w.t.Helper()
	w.run("build submit --org acme --pool linux --run true" + flags)
	w.log(catalog.BuildPromote, catalog.BuildPromoteArgs{Org: "acme", Count: 1000})
	w.log(catalog.BuildAssign, catalog.BuildAssignArgs{Assign: []catalog.Assignment{
		{Build: w.view().Build, Host: "h1", Boot: "b1", Incarnation: 1},
	}})
	return w.view().Attempt
}

// sync is what the agent of h1 says, with the stamp of the answer that it had.
func (w *world) sync(seq uint64, stamp lease.Stamp, holds ...api.HeldAttempt) *api.Sync {
	return &api.Sync{Host: "h1", Pool: "linux", Boot: "b1", Incarnation: 1, Seq: seq, Stamp: stamp, Attempts: holds}
}

// answer hears a sync and answers it at once.
func (w *world) answer(q *api.Sync) api.SyncReply {
	w.t.Helper()
	if !w.book.Hear(q) {
		w.t.Fatal("the sync is taken for a late one")
	}
	r := Answer(w.view(), q, false, func(at fleet.Attempt) bool { return w.book.Offers(at, w.now) }, 7, nil)
	w.book.Deliver(w.view(), &r, 0, w.now)
	return r
}

func (w *world) unstarted() []fleet.AttemptID {
	return w.book.Listen(w.view(), func(fleet.Host) (fleet.Duration, bool) { return 0, true }).Unstarted
}

const window = lease.StartWindow + 2*fleet.Second // and more than the margin of its own

func TestUnstartedIsGivenElsewhere(t *testing.T) {
	w := newWorld(t)
	id := w.assign("")
	first := w.answer(w.sync(1, lease.Stamp{}))
	if len(first.Start) != 1 || first.Start[0].Attempt != id {
		t.Fatalf("%+v", first)
	}
	w.pass(acceptWithin)
	late := lease.Stamp{Term: term, At: w.now}
	for name, c := range map[string]struct {
		sync func(q *api.Sync)
		want bool
	}{
		"proven":                     {func(*api.Sync) {}, true},
		"the agent lists it":         {func(q *api.Sync) { q.Attempts = []api.HeldAttempt{{Attempt: id, Phase: fleet.PhaseAssigned}} }, false},
		"sent before the window":     {func(q *api.Sync) { q.Stamp = first.Stamp }, false},
		"stamped by another leader":  {func(q *api.Sync) { q.Stamp.Term-- }, false},
		"of another incarnation":     {func(q *api.Sync) { q.Incarnation++ }, false},
		"of another boot":            {func(q *api.Sync) { q.Boot = "b2" }, false},
		"the agent lists another":    {func(q *api.Sync) { q.Attempts = []api.HeldAttempt{{Attempt: id + 1, Phase: fleet.PhaseSteps}} }, true},
		"stamped, but at the moment": {func(q *api.Sync) { q.Stamp.At = first.Stamp.At.Add(lease.StartWindow) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			was := *w.book
			w.book.heard = make(map[fleet.HostID]heard)
			q := w.sync(2, late)
			c.sync(q)
			w.book.Hear(q)
			if got := len(w.unstarted()) > 0; got != c.want {
				t.Errorf("unstarted %v", w.unstarted())
			}
			*w.book = was
		})
	}
}

func TestUnstartedWaitsForTheHost(t *testing.T) {
	w := newWorld(t)
	w.answer(w.sync(1, lease.Stamp{}))
	w.pass(fleet.Minute)
	r := w.answer(w.sync(2, lease.Stamp{}))
	w.assign("")
	// It was not delivered yet; for a leader that has begun long ago that looks
	// like a delivery of long ago.
	w.book.Hear(w.sync(3, r.Stamp))
	if got := w.unstarted(); len(got) != 0 {
		t.Errorf("%v was given a moment ago", got)
	}
}

// TestUnstartedUnderANewLeader: it takes the beginning of its term for the time
// of the deliveries that it does not know of.
func TestUnstartedUnderANewLeader(t *testing.T) {
	w := newWorld(t)
	id := w.assign("")
	w.pass(fleet.Minute)
	w.book = Open(term, w.now)
	// Not offered again: the agent lists nothing, and gets no order.
	w.run("host cordon h1")
	stamp := lease.Stamp{Term: term, At: w.now.Add(lease.StartWindow)}
	w.book.Hear(w.sync(1, stamp))
	if got := w.unstarted(); len(got) != 0 {
		t.Errorf("%v may still start: who led before may have given it a moment ago", got)
	}
	stamp.At = w.now.Add(window)
	w.book.Hear(w.sync(2, stamp))
	if got := w.unstarted(); !slices.Equal(got, []fleet.AttemptID{id}) {
		t.Errorf("unstarted %v", got)
	}
}

// TestVerdictOvertaken: what was found to be over is not given to its host any
// more, also when the answer was made before and not sent yet: the verdict is on
// its way into the log, and somebody else is given the task then. (Seed 617 of
// the simulator: a leader that had never delivered an attempt called it lost, and
// delivered it 12 ms before that was logged.)
func TestVerdictOvertaken(t *testing.T) {
	for name, judge := range map[string]func(w *world){
		"not started in time": func(w *world) {
			w.book.Hear(w.sync(2, lease.Stamp{Term: term, At: w.now}))
			if len(w.unstarted()) != 1 {
				t.Fatal("it may still start")
			}
		},
		"its host is silent": func(w *world) {
			h := w.book.Listen(w.view(), func(fleet.Host) (fleet.Duration, bool) { return fleet.Hour, true })
			q := lease.Question{AskedAt: w.now, Version: 7, Members: []fleet.NodeID{"n1"}}
			w.book.Judge(&h, w.view(), q, []api.Testimony{{Node: "n1", Testimonies: []lease.Testimony{{Node: "n1", Version: 7, Silent: true}}}}, w.now)
			if !h.Hosts[0].Over {
				t.Fatal("its lease may hold still")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.assign("")
			w.pass(fleet.Minute)
			offers := func(at fleet.Attempt) bool { return w.book.Offers(at, w.now) }
			made := Answer(w.view(), w.sync(3, lease.Stamp{}), false, offers, 7, nil)
			if len(made.Start) != 1 {
				t.Fatalf("it is not offered at all: %+v", made)
			}
			known := made.Known
			judge(w)
			if again := Answer(w.view(), w.sync(4, lease.Stamp{}), false, offers, 7, nil); len(again.Start) != 0 {
				t.Error("it is offered after the verdict")
			}
			w.book.Deliver(w.view(), &made, 0, w.now)
			if len(made.Start) != 0 || made.Known == known {
				t.Error("it is delivered after the verdict")
			}
		})
	}
}

// TestHostHeardAgain: a host that was over and is heard again is given work.
func TestHostHeardAgain(t *testing.T) {
	w := newWorld(t)
	w.assign("")
	w.book.over["h1"] = true
	w.unstarted()
	if r := w.answer(w.sync(1, lease.Stamp{})); len(r.Start) != 1 {
		t.Errorf("%+v", r)
	}
}

// TestHeldThatNeverStarted: an exclusive build does not wait for the end of an
// attempt that its host never began, once that is sure.
func TestHeldThatNeverStarted(t *testing.T) {
	w := newWorld(t)
	id := w.assign(" --exclusive")
	r := w.answer(w.sync(1, lease.Stamp{}))
	w.log(catalog.AttemptLose, catalog.AttemptLoseArgs{Attempts: []fleet.AttemptID{id}, Why: "silent"})
	held := func() fleet.AttemptID {
		b, _ := w.view().Builds.Get(w.view().Build)
		return b.Tasks[0].Held
	}
	if held() != id {
		t.Fatal("the build does not wait for proof")
	}
	w.pass(fleet.Minute)
	w.book.Hear(w.sync(2, r.Stamp))
	if got := w.unstarted(); len(got) != 0 {
		t.Fatalf("%v may still start", got)
	}
	w.book.Hear(w.sync(3, lease.Stamp{Term: term, At: w.now}, api.HeldAttempt{Attempt: id, Phase: fleet.PhaseSteps}))
	if got := w.unstarted(); len(got) != 0 {
		t.Fatalf("%v runs", got)
	}
	w.book.Hear(w.sync(4, lease.Stamp{Term: term, At: w.now}))
	got := w.unstarted()
	if !slices.Equal(got, []fleet.AttemptID{id}) {
		t.Fatalf("unstarted %v", got)
	}
	w.log(catalog.AttemptLose, catalog.AttemptLoseArgs{Attempts: got, Why: "never started", Certain: true})
	if held() != 0 || len(w.unstarted()) != 0 {
		t.Errorf("the build waits for %d, unstarted %v", held(), w.unstarted())
	}
}

// TestHeldThatStarted: what was once reported must be proven to have ended.
func TestHeldThatStarted(t *testing.T) {
	w := newWorld(t)
	id := w.assign(" --exclusive")
	w.log(catalog.AgentReport, catalog.AgentReportArgs{Host: "h1", Boot: "b1", Attempts: []catalog.AttemptReport{{Attempt: id, Phase: fleet.PhaseSteps}}})
	w.log(catalog.AttemptLose, catalog.AttemptLoseArgs{Attempts: []fleet.AttemptID{id}, Why: "silent"})
	w.pass(fleet.Minute)
	w.book.Hear(w.sync(1, lease.Stamp{Term: term, At: w.now}))
	if got := w.unstarted(); len(got) != 0 {
		t.Errorf("%v had started", got)
	}
}

// ask listens with ears that have heard nothing for a minute, and judges.
func (w *world) ask(answers ...api.Testimony) (asked int, over bool) {
	v := w.view()
	h := w.book.Listen(v, func(fleet.Host) (fleet.Duration, bool) { return fleet.Minute, true })
	q := lease.Question{AskedAt: w.now, Version: 7, Members: []fleet.NodeID{"n1", "n2", "n3"}}
	w.book.Judge(&h, v, q, answers, w.now)
	if len(h.Hosts) != 1 || h.Hosts[0].Over != (h.Hosts[0].Why != "") {
		w.t.Fatalf("%+v", h)
	}
	return len(h.Ask), h.Hosts[0].Over
}

func says(n fleet.NodeID, silent bool) api.Testimony {
	return api.Testimony{Node: n, Testimonies: []lease.Testimony{{Node: n, Version: 7, Silent: silent}}}
}

func TestLostByMajority(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		answers []api.Testimony
		want    bool
	}{
		{nil, false},
		{[]api.Testimony{says("n1", true)}, false},
		{[]api.Testimony{says("n1", true), says("n2", false)}, false},
		{[]api.Testimony{says("n1", true), says("n2", true)}, true},
		{[]api.Testimony{says("n1", true), says("n2", false), says("n3", true)}, true},
	} {
		if asked, over := w.ask(c.answers...); asked != 1 || over != c.want {
			t.Errorf("%+v: asked about %d, over %v", c.answers, asked, over)
		}
	}
	w.log(catalog.HostLose, catalog.HostLoseArgs{Host: "h1", Boot: "b1", Incarnation: 1, Why: "test"})
	if asked, _ := w.ask(); asked != 0 {
		t.Error("asked about a host that is lost already")
	}
}

// TestNextLook: the leader looks again when a host may have been silent for long
// enough, and soon again while it is not agreed that it is.
func TestNextLook(t *testing.T) {
	w := newWorld(t)
	w.log(catalog.AgentJoin, catalog.AgentJoinArgs{Host: "h2", Pool: "linux", Boot: "b1", Incarnation: 1})
	need := 10*fleet.Second + lease.Margin(10*fleet.Second)
	for _, c := range []struct {
		h1, h2 fleet.Duration // silent for
		want   fleet.Duration
	}{
		{0, fleet.Second, need - fleet.Second},
		{need - 1, 0, 1},
		{need, 0, askSoon},
		{need + askSoonFor - 1, need - 1, 1},
		{need + askSoonFor, need + fleet.Hour, 0}, // not soon: the others have said no for long
	} {
		h := w.book.Listen(w.view(), func(h fleet.Host) (fleet.Duration, bool) {
			if h.ID == "h1" {
				return c.h1, true
			}
			return c.h2, true
		})
		if h.Next != c.want {
			t.Errorf("silent for %s and %s: the next look is in %s, want %s", c.h1, c.h2, h.Next, c.want)
		}
	}
}

// TestNotLostWhileAnOrderIsUnderWay: the lease of the host is over, but what it
// was just given could begin under a new one.
func TestNotLostWhileAnOrderIsUnderWay(t *testing.T) {
	w := newWorld(t)
	w.pass(fleet.Minute)
	id := w.assign("")
	r := w.answer(w.sync(1, lease.Stamp{}))
	if len(r.Start) != 1 {
		t.Fatalf("%+v", r)
	}
	all := []api.Testimony{says("n1", true), says("n2", true), says("n3", true)}
	w.pass(lease.StartWindow)
	if _, over := w.ask(all...); over {
		t.Error("lost at the end of the start window, without its margin")
	}
	w.pass(2 * fleet.Second)
	if _, over := w.ask(all...); !over {
		t.Error("not lost after the start window and its margin")
	}
	// A leader that knows of no delivery counts from its own beginning.
	w.book = Open(term+1, w.now)
	if _, over := w.ask(all...); over {
		t.Error("lost by a leader that has just begun")
	}
	w.log(catalog.AgentReport, catalog.AgentReportArgs{Host: "h1", Boot: "b1", Attempts: []catalog.AttemptReport{{Attempt: id, Phase: fleet.PhaseSetup}}})
	if _, over := w.ask(all...); !over {
		t.Error("what has started is not under way")
	}
}

func TestDigestNamesTheAnswer(t *testing.T) {
	base := api.SyncReply{
		Start: []api.Order{{Attempt: 1}}, Cancel: []fleet.AttemptID{2}, Kill: []fleet.AttemptID{3}, Forget: []fleet.AttemptID{4},
		Members: 7, FenceAfter: fleet.Second, Nodes: []api.NodeAddr{{Node: "n1", API: "http://n1"}},
	}
	seen := map[string]string{digest(&base): "the first"}
	for name, change := range map[string]func(*api.SyncReply){
		"start":  func(r *api.SyncReply) { r.Start = []api.Order{{Attempt: 1}, {Attempt: 5}} },
		"cancel": func(r *api.SyncReply) { r.Cancel = nil },
		"kill":   func(r *api.SyncReply) { r.Kill, r.Forget = []fleet.AttemptID{3, 4}, nil },
		"forget": func(r *api.SyncReply) { r.Forget = []fleet.AttemptID{44} },
		"leave":  func(r *api.SyncReply) { r.Leave = true },
		"member": func(r *api.SyncReply) { r.Members = 8 },
		"fence":  func(r *api.SyncReply) { r.FenceAfter++ },
		"nodes":  func(r *api.SyncReply) { r.Nodes = []api.NodeAddr{{Node: "n1", API: "http://n2"}} },
	} {
		r := base
		change(&r)
		d := digest(&r)
		if other, ok := seen[d]; ok {
			t.Errorf("%s has the digest of %s", name, other)
		}
		seen[d] = name
	}
	stamped := base
	stamped.Stamp = lease.Stamp{Term: 1, At: 2}
	if digest(&stamped) != digest(&base) {
		t.Error("the stamp is in the digest: no sync would be held open")
	}
}

func TestDue(t *testing.T) {
	order := api.SyncReply{Known: "k", Start: []api.Order{{Attempt: 1}}}
	for _, c := range []struct {
		known string
		r     api.SyncReply
		held  fleet.Duration
		want  bool
	}{
		{"other", api.SyncReply{Known: "k"}, 0, true},
		{"k", api.SyncReply{Known: "k"}, api.SyncHold - 1, false},
		{"k", api.SyncReply{Known: "k"}, api.SyncHold, true},
		{"k", order, Hold - 1, false},
		{"k", order, Hold, true},
	} {
		if got := Due(&api.Sync{Known: c.known}, &c.r, c.held); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

// TestLateOrderIsTakenOut: what an old sync would bring too late is left to the
// next one, and does not count as delivered.
func TestLateOrderIsTakenOut(t *testing.T) {
	w := newWorld(t)
	id := w.assign("")
	for _, held := range []fleet.Duration{Fresh + 1, Fresh} {
		r := Answer(w.view(), w.sync(1, lease.Stamp{}), false, func(fleet.Attempt) bool { return true }, 1, nil)
		given := r.Known
		w.book.Deliver(w.view(), &r, held, w.now)
		_, delivered := w.book.Delivered(id)
		if in := held <= Fresh; len(r.Start) == 1 != in || delivered != in || r.Known == given != in {
			t.Errorf("held for %s: %+v, delivered %v", held, r, delivered)
		}
	}
}

func TestBookIsTidied(t *testing.T) {
	w := newWorld(t)
	live := w.assign("")
	var r api.SyncReply
	for id := range fleet.AttemptID(fewDeliveries) {
		w.book.delivered[1000+id] = Delivery{First: w.now, Last: w.now} // long ended
		w.book.void[1000+id] = struct{}{}
	}
	w.book.Hear(&api.Sync{Host: "gone", Boot: "b", Incarnation: 1, Seq: 3})
	w.book.Hear(w.sync(3, lease.Stamp{}))
	r.Start = append(r.Start, api.Order{Attempt: live})
	w.book.Deliver(w.view(), &r, 0, w.now)
	if _, ok := w.book.Delivered(live); !ok || len(w.book.delivered) != 1 {
		t.Errorf("%d deliveries are kept", len(w.book.delivered))
	}
	if len(w.book.void) != 0 {
		t.Errorf("%d attempts that have ended are kept out", len(w.book.void))
	}
	if _, ok := w.book.Heard("gone"); ok {
		t.Error("a host that the state does not know is kept")
	}
	if seq, ok := w.book.Heard("h1"); !ok || seq != 3 {
		t.Error("a host of the fleet was dropped")
	}
}

func TestNewsIsWhatTheStateDoesNotKnow(t *testing.T) {
	w := newWorld(t)
	id := w.assign("")
	w.log(catalog.AgentReport, catalog.AgentReportArgs{Host: "h1", Boot: "b1", Attempts: []catalog.AttemptReport{{Attempt: id, Phase: fleet.PhaseCheckout}}})
	steps := api.HeldAttempt{Attempt: id, Phase: fleet.PhaseSteps}
	for _, c := range []struct {
		held api.HeldAttempt
		boot fleet.BootID
		want bool
	}{
		{steps, "b1", true},
		{steps, "b2", false},
		{api.HeldAttempt{Attempt: id, Phase: fleet.PhaseCheckout}, "b1", false},
		{api.HeldAttempt{Attempt: id, Phase: fleet.PhaseSetup}, "b1", false},
		{api.HeldAttempt{Attempt: 999, Phase: fleet.PhaseSteps}, "b1", false},
	} {
		q := w.sync(1, lease.Stamp{}, c.held)
		q.Boot = c.boot
		var want []catalog.AttemptReport
		if c.want {
			want = []catalog.AttemptReport{catalog.AttemptReport(c.held)}
		}
		if d := cmp.Diff(want, News(w.view(), q)); d != "" {
			t.Errorf("%+v: %s", c, d)
		}
	}
}
