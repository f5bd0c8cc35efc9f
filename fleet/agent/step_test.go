package agent

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"footplate/controlplane/api"
	"footplate/fleet"
	"footplate/fleet/lease"
)

// duty drives a Duty in virtual time, with a control plane of three nodes that
// the test plays by hand.
type duty struct {
	t    *testing.T
	d    *Duty
	now  lease.Mono
	fx   Effects
	sync *api.Sync // the newest that was sent
	beat *Beat
	term uint64
}

const fence = 30 * fleet.Second

var three = []api.NodeAddr{{Node: "n1", API: "http://n1"}, {Node: "n2", API: "http://n2"}, {Node: "n3", API: "http://n3"}}

func newDuty(t *testing.T) *duty {
	d := &duty{t: t, now: 1e12, term: 3, d: NewDuty(Identity{
		Host: "linux-1", Pool: "linux", Boot: "b", Incarnation: 1, Slots: 4, Version: "test",
		Seeds: []api.NodeAddr{{API: "http://n1"}},
	})}
	d.step(Input{})
	return d
}

// step lets the duty decide, and keeps what it sent.
func (d *duty) step(in Input) Effects {
	d.t.Helper()
	d.fx = d.d.Step(d.now, in)
	if d.fx.Sync != nil {
		d.sync = d.fx.Sync
	}
	if d.fx.Beat != nil {
		d.beat = d.fx.Beat
	}
	if !d.fx.Exit && d.fx.Wake <= d.now {
		d.t.Fatalf("wakes at %d, and it is %d", d.fx.Wake, d.now)
	}
	return d.fx
}

// pass lets time pass.
func (d *duty) pass(by fleet.Duration) Effects {
	d.t.Helper()
	d.now = d.now.Add(by)
	return d.step(Input{})
}

func (d *duty) reply(change func(*api.SyncReply)) *api.SyncReply {
	r := &api.SyncReply{
		Nodes: three, Members: 5, FenceAfter: fence, Known: "k" + string(rune('0'+d.sync.Seq%10)),
		Stamp: lease.Stamp{Term: d.term, At: d.now},
	}
	if change != nil {
		change(r)
	}
	return r
}

// answer answers the sync that is under way.
func (d *duty) answer(change func(*api.SyncReply)) Effects {
	d.t.Helper()
	return d.step(Input{Sync: &Synced{Seq: d.sync.Seq, Reply: d.reply(change)}})
}

// ack lets nodes acknowledge the newest beat.
func (d *duty) ack(nodes ...fleet.NodeID) Effects {
	d.t.Helper()
	var in Input
	for _, n := range nodes {
		in.Beats = append(in.Beats, Beaten{To: n, Beat: d.beat.Beat, Reply: api.BeatReply{Node: n, Ack: true}})
	}
	return d.step(in)
}

// leased returns a duty that holds a lease.
func leased(t *testing.T) *duty {
	d := newDuty(t)
	d.answer(nil)
	d.ack("n1", "n2")
	if _, held := d.d.Lease(d.now); !held {
		t.Fatal("no lease")
	}
	return d
}

func order(id fleet.AttemptID) api.Order {
	return api.Order{Attempt: id, Build: 1, N: 1, Spec: &fleet.BuildSpec{}}
}

func give(ids ...fleet.AttemptID) func(*api.SyncReply) {
	return func(r *api.SyncReply) {
		for _, id := range ids {
			r.Start = append(r.Start, order(id))
		}
	}
}

func ids(orders []Order) []fleet.AttemptID {
	var out []fleet.AttemptID
	for _, o := range orders {
		out = append(out, o.Attempt)
	}
	return out
}

func started(fx Effects) []fleet.AttemptID {
	var out []fleet.AttemptID
	for _, s := range fx.Start {
		out = append(out, s.Attempt)
	}
	return out
}

func want[T any](t *testing.T, what string, got, wanted T) {
	t.Helper()
	if diff := cmp.Diff(wanted, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func TestFirstSteps(t *testing.T) {
	d := newDuty(t)
	if d.sync == nil || d.sync.Seq != 1 || d.sync.Host != "linux-1" || len(d.sync.Attempts) != 0 {
		t.Fatalf("the first sync is %+v", d.sync)
	}
	if d.beat != nil {
		t.Fatal("it beats before it knows what a beat is worth")
	}
	fx := d.answer(nil)
	if fx.Beat == nil || len(fx.Beat.To) != 3 || fx.Beat.Version != 5 || fx.Beat.FenceAfter != fence || fx.Beat.SentAt != d.now {
		t.Errorf("the first beat is %+v", fx.Beat)
	}
	if fx.Sync == nil || fx.Sync.Known != "k1" || fx.Sync.Stamp.At != d.now || fx.Sync.Members != 5 {
		t.Errorf("the second sync is %+v", fx.Sync)
	}
}

func TestStartsOnlyWithALease(t *testing.T) {
	d := newDuty(t)
	fx := d.answer(give(7))
	want(t, "started without a lease", started(fx), nil)
	if fx := d.ack("n1"); fx.Sync != nil {
		t.Error("one of three is no majority")
	}
	fx = d.ack("n2")
	if fx.Sync == nil || fx.Sync.Known != "" {
		t.Fatalf("with the lease it must ask at once, as one who knows nothing: %+v", fx.Sync)
	}
	fx = d.answer(give(7))
	want(t, "started", started(fx), []fleet.AttemptID{7})
	s := fx.Start[0]
	want(t, "deadline", s.Deadline, d.now.Add(fence))
	want(t, "start by", s.By, d.now.Add(lease.StartWindow))
	want(t, "in the next sync", fx.Sync.Attempts, []api.HeldAttempt{{Attempt: 7, Phase: fleet.PhaseSetup}})
	// Told again, by a leader that has not heard of it yet, it is not started again.
	want(t, "started twice", started(d.answer(give(7))), nil)
}

func TestStartWindow(t *testing.T) {
	d := leased(t)
	d.now = d.now.Add(lease.StartWindow)
	fx := d.answer(give(7))
	want(t, "started too late", started(fx), nil)
	if fx.Sync != nil {
		t.Error("asked again at once: a leader that answers late would be flooded")
	}
	fx = d.pass(calm)
	if fx.Sync == nil || fx.Sync.Known != "" || len(fx.Sync.Attempts) != 0 {
		t.Errorf("the next sync is %+v", fx.Sync)
	}
	want(t, "started in time", started(d.answer(give(7))), []fleet.AttemptID{7})
}

func TestAnswersToSyncsThatWereGivenUpAreDropped(t *testing.T) {
	d := leased(t)
	d.answer(give(1))
	old := d.sync.Seq
	d.now = d.now.Add(fleet.Second)
	fx := d.step(Input{Attempts: []Progress{{Attempt: 1, Phase: fleet.PhaseSteps}}})
	if fx.Sync == nil || fx.Sync.Seq == old {
		t.Fatal("news must not wait for a sync that is held open")
	}
	fx = d.step(Input{Sync: &Synced{Seq: old, Reply: d.reply(give(2))}})
	want(t, "started by an old answer", started(fx), nil)
}

func TestNewsWaitsForAYoungSync(t *testing.T) {
	d := leased(t)
	d.answer(give(1))
	at := d.now
	fx := d.step(Input{Attempts: []Progress{{Attempt: 1, Phase: fleet.PhaseSteps}}})
	if fx.Sync != nil {
		t.Error("a sync was given up as soon as it was sent")
	}
	want(t, "wakes", fx.Wake, at.Add(syncApart))
	if fx = d.pass(syncApart); fx.Sync == nil || fx.Sync.Attempts[0].Phase != fleet.PhaseSteps {
		t.Errorf("the sync is %+v", fx.Sync)
	}
}

func TestLeaseEnds(t *testing.T) {
	d := leased(t)
	d.answer(give(1, 2))
	d.step(Input{Attempts: []Progress{{Attempt: 2, Phase: fleet.PhaseUpload, Dead: true}}})
	end, _ := d.d.Lease(d.now)
	d.now = end - 1
	want(t, "killed early", d.step(Input{}).Kill, nil)
	if d.fx.Wake > end {
		t.Errorf("it sleeps until %d, and its lease ends at %d", d.fx.Wake, end)
	}
	d.now = end
	want(t, "killed", ids(d.step(Input{}).Kill), []fleet.AttemptID{1})
	want(t, "killed again", ids(d.pass(fleet.Second).Kill), nil)
	// A new lease does not bring the old attempts back.
	d.ack("n1", "n2", "n3")
	if _, held := d.d.Lease(d.now); !held {
		t.Fatal("no new lease")
	}
	want(t, "extended", d.fx.Extend, nil)
	d.step(Input{Attempts: []Progress{{Attempt: 1, Phase: fleet.PhaseEnded, Outcome: fleet.Lost, Why: "the host lost its lease"}}})
	d.now = d.now.Add(lease.StartWindow)
	d.step(Input{Sync: &Synced{Seq: d.sync.Seq}})
	d.pass(fleet.Second)
	want(t, "reported", d.sync.Attempts, []api.HeldAttempt{
		{Attempt: 1, Phase: fleet.PhaseEnded, Outcome: fleet.Lost, Why: "the host lost its lease"},
		{Attempt: 2, Phase: fleet.PhaseUpload},
	})
}

// An agent that slept through the end of its lease finds acknowledgements in its
// sockets: they make a new lease, and what ran under the old one must die.
func TestSleptThroughTheEnd(t *testing.T) {
	d := leased(t)
	d.answer(give(1))
	d.pass(20 * fleet.Second) // the acknowledgements of this beat wait in the socket
	beat := d.beat.Beat
	d.now = d.now.Add(20 * fleet.Second)
	fx := d.step(Input{Beats: []Beaten{
		{To: "n1", Beat: beat, Reply: api.BeatReply{Node: "n1", Ack: true}},
		{To: "n2", Beat: beat, Reply: api.BeatReply{Node: "n2", Ack: true}},
	}})
	want(t, "killed", ids(fx.Kill), []fleet.AttemptID{1})
	want(t, "extended", fx.Extend, nil)
	if _, held := d.d.Lease(d.now); !held {
		t.Error("there should be a new lease")
	}
}

func TestExtends(t *testing.T) {
	d := leased(t)
	d.answer(give(1))
	if fx := d.pass(lease.BeatEvery); fx.Beat == nil {
		t.Fatal("no beat")
	}
	fx := d.ack("n3")
	want(t, "extended by one node", fx.Extend, nil)
	sent := d.beat.SentAt
	fx = d.ack("n1")
	want(t, "extended", fx.Extend, []fleet.AttemptID{1})
	want(t, "deadline", fx.Deadline, sent.Add(fence))
}

func TestForgetsOnlyWhatItReported(t *testing.T) {
	d := leased(t)
	d.answer(give(1))
	end := Progress{Attempt: 1, Phase: fleet.PhaseEnded, Dead: true, Outcome: fleet.Passed}
	fx := d.step(Input{Attempts: []Progress{end}})
	// The answer to a sync that did not say that it ended: a leader from before.
	fx = d.answer(func(r *api.SyncReply) { r.Forget = []fleet.AttemptID{1} })
	want(t, "forgotten", fx.Forget, nil)
	want(t, "reported", d.sync.Attempts, []api.HeldAttempt{{Attempt: 1, Phase: fleet.PhaseEnded, Outcome: fleet.Passed}})
	fx = d.answer(func(r *api.SyncReply) { r.Forget = []fleet.AttemptID{1} })
	want(t, "forgotten", fx.Forget, []fleet.AttemptID{1})
	want(t, "held", len(d.sync.Attempts), 0)
	// A deposed leader that still thinks it assigned must not have it run again.
	want(t, "started again", started(d.answer(give(1))), nil)
}

func TestKillByTheLeader(t *testing.T) {
	d := leased(t)
	d.answer(give(1))
	kill := func(r *api.SyncReply) { r.Kill = []fleet.AttemptID{1} }
	fx := d.answer(kill)
	want(t, "killed", ids(fx.Kill), []fleet.AttemptID{1})
	want(t, "killed again", ids(d.answer(kill).Kill), nil)
	d.step(Input{Attempts: []Progress{{Attempt: 1, Phase: fleet.PhaseEnded, Outcome: fleet.Lost, Why: "x"}}})
	d.pass(fleet.Second)
	want(t, "its end is reported", d.sync.Attempts, []api.HeldAttempt{{Attempt: 1, Phase: fleet.PhaseEnded, Outcome: fleet.Lost, Why: "x"}})
	want(t, "forgotten", d.answer(kill).Forget, []fleet.AttemptID{1})
}

func TestCancelOnce(t *testing.T) {
	d := leased(t)
	d.answer(give(1))
	cancel := func(r *api.SyncReply) { r.Cancel = []fleet.AttemptID{1, 99} }
	want(t, "canceled", ids(d.answer(cancel).Cancel), []fleet.AttemptID{1})
	want(t, "canceled again", ids(d.answer(cancel).Cancel), nil)
}

func TestRetriesAndTimesOut(t *testing.T) {
	d := newDuty(t)
	var waits []fleet.Duration
	for range 12 {
		at := d.now
		fx := d.step(Input{Sync: &Synced{Seq: d.sync.Seq}})
		for fx.Sync == nil {
			d.now = fx.Wake
			fx = d.step(Input{})
		}
		waits = append(waits, d.now.Sub(at))
	}
	if waits[0] > retryFirst+1 || slices.Max(waits) > retryMost+1 || waits[11] < retryMost/2 {
		t.Errorf("waits are %v", waits)
	}
	seq := d.sync.Seq
	fx := d.pass(syncTimeout)
	if !fx.GiveUp || fx.Sync != nil {
		t.Fatalf("a sync without an answer is not given up: %+v", fx)
	}
	if fx = d.pass(retryMost); fx.Sync == nil || fx.Sync.Seq == seq {
		t.Error("no new sync after one that timed out")
	}
}

func TestAnswersThatSayNothingNewDoNotMakeItSpin(t *testing.T) {
	d := leased(t)
	known := d.sync.Known
	fx := d.answer(func(r *api.SyncReply) { r.Known = known })
	if fx.Sync != nil {
		t.Error("asked again at once")
	}
	if fx = d.pass(calm); fx.Sync == nil {
		t.Error("not asked again")
	}
}

func TestDeposedLeaderIsNotObeyed(t *testing.T) {
	d := leased(t)
	d.answer(nil)
	d.term = 2
	fx := d.answer(func(r *api.SyncReply) {
		r.Start = []api.Order{order(9)}
		r.Leave = true
	})
	want(t, "started", started(fx), nil)
	if fx.Exit || len(fx.Kill) > 0 {
		t.Error("it left by the word of a deposed leader")
	}
}

func TestRefusedBeatsTeachTheMembership(t *testing.T) {
	d := leased(t)
	five := append(slices.Clone(three), api.NodeAddr{Node: "n4", API: "http://n4"}, api.NodeAddr{Node: "n5", API: "http://n5"})
	fx := d.step(Input{Beats: []Beaten{{To: "n1", Beat: d.beat.Beat, Reply: api.BeatReply{Node: "n1", Members: 9, Nodes: five}}}})
	if fx.Beat == nil || fx.Beat.Version != 9 || len(fx.Beat.To) != 5 {
		t.Fatalf("after a refusal it beats %+v", fx.Beat)
	}
	// 2 of 5 acknowledged: the lease is over, by the new count.
	if _, held := d.d.Lease(d.now); held {
		t.Error("two of five are no majority")
	}
	fx = d.step(Input{Beats: []Beaten{{To: "n1", Beat: d.beat.Beat, Reply: api.BeatReply{Node: "n1", Members: 5, Nodes: three}}}})
	if fx.Beat != nil {
		t.Error("an older membership was taken in")
	}
}

func TestAcksOfStrangersDoNotCount(t *testing.T) {
	d := newDuty(t)
	d.answer(nil)
	d.step(Input{Beats: []Beaten{
		{To: "n1", Beat: d.beat.Beat, Reply: api.BeatReply{Node: "n1", Ack: true}},
		{To: "n2", Beat: d.beat.Beat, Reply: api.BeatReply{Node: "n1", Ack: true}}, // another answers there
		{To: "n3", Beat: d.beat.Beat, Reply: api.BeatReply{Node: "n9", Ack: true}},
	}})
	if _, held := d.d.Lease(d.now); held {
		t.Error("one node was counted as a majority")
	}
}

func TestLeaveWithoutAStamp(t *testing.T) {
	d := leased(t)
	d.answer(nil)
	if fx := d.step(Input{Sync: &Synced{Seq: d.sync.Seq, Reply: &api.SyncReply{Leave: true}}}); !fx.Exit {
		t.Error("it stays")
	}
}

func TestLeave(t *testing.T) {
	d := leased(t)
	d.answer(give(1))
	fx := d.answer(func(r *api.SyncReply) { r.Leave = true })
	want(t, "killed", ids(fx.Kill), []fleet.AttemptID{1})
	if fx.Exit {
		t.Fatal("it exits before its attempt has ended")
	}
	if fx = d.step(Input{Attempts: []Progress{{Attempt: 1, Phase: fleet.PhaseEnded, Outcome: fleet.Lost}}}); !fx.Exit {
		t.Error("it does not exit")
	}
}

func TestStop(t *testing.T) {
	end := Progress{Attempt: 1, Phase: fleet.PhaseEnded, Outcome: fleet.Lost, Why: "the agent was told to end"}
	t.Run("idle", func(t *testing.T) {
		if fx := leased(t).step(Input{Stop: true}); !fx.Exit {
			t.Error("it does not exit")
		}
	})
	t.Run("reports first", func(t *testing.T) {
		d := leased(t)
		d.answer(give(1))
		fx := d.step(Input{Stop: true})
		want(t, "killed", ids(fx.Kill), []fleet.AttemptID{1})
		d.now = d.now.Add(syncApart)
		fx = d.step(Input{Attempts: []Progress{end}})
		if fx.Exit || fx.Sync == nil || fx.Sync.Attempts[0].Outcome != fleet.Lost {
			t.Fatalf("no report: %+v", fx)
		}
		if fx = d.answer(give(2)); !fx.Exit || len(fx.Start) > 0 {
			t.Errorf("after the report: %+v", fx)
		}
	})
	t.Run("nobody listens", func(t *testing.T) {
		d := leased(t)
		d.answer(give(1))
		d.step(Input{Stop: true})
		d.step(Input{Attempts: []Progress{end}})
		if fx := d.pass(reportWithin - 1); fx.Exit {
			t.Error("it did not wait")
		}
		if fx := d.pass(1); !fx.Exit {
			t.Error("it waits for ever")
		}
	})
	t.Run("an attempt does not die", func(t *testing.T) {
		d := leased(t)
		d.answer(give(1))
		d.step(Input{Stop: true})
		if fx := d.pass(endWithin); !fx.Exit {
			t.Error("it waits for ever")
		}
	})
}

func TestShortFence(t *testing.T) {
	d := newDuty(t)
	d.answer(func(r *api.SyncReply) { r.FenceAfter = fleet.Second })
	d.ack("n1", "n2", "n3")
	at := d.now
	for fx := d.fx; fx.Beat == nil || fx.Beat.SentAt == at; fx = d.step(Input{}) {
		d.now = d.fx.Wake
	}
	if got := d.now.Sub(at); got > 250 {
		t.Errorf("with a fence of 1s it beats after %s", got)
	}
}

// TestDutyUnderAnything drives a duty through anything that can happen, and
// checks what it promises at every step.
func TestDutyUnderAnything(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) { anything(rt, 200) })
}

func anything(rt *rapid.T, steps int) {
	type running struct {
		deadline lease.Mono // as its supervisor knows it
		killed   bool
		ended    bool
		listed   bool // it must be in every sync
	}
	d := NewDuty(Identity{Host: "h", Pool: "p", Boot: "b", Incarnation: 1, Seeds: three[:1]})
	now := lease.Mono(1e12)
	var (
		out      *api.Sync
		outAt    lease.Mono
		old      []Synced // answers that may still arrive
		beats    []api.Beat
		attempts = map[fleet.AttemptID]*running{}
		born     []fleet.AttemptID
		next     fleet.AttemptID
		wake     = now
	)
	step := func(in Input) {
		fx := d.Step(now, in)
		for _, o := range fx.Kill {
			if r := attempts[o.Attempt]; r == nil || r.killed {
				rt.Fatalf("attempt %d is killed twice, or does not run", o.Attempt)
			} else {
				r.killed = true
			}
		}
		for _, s := range fx.Start {
			deadline, held := d.Lease(now)
			if !held || s.Deadline != deadline || s.By > outAt.Add(lease.StartWindow) || s.By <= now || attempts[s.Attempt] != nil {
				rt.Fatalf("attempt %d must not be started: lease %v until %d, order %+v, now %d", s.Attempt, held, deadline, s, now)
			}
			attempts[s.Attempt] = &running{deadline: deadline, listed: true}
			born = append(born, s.Attempt)
		}
		for _, id := range fx.Extend {
			r := attempts[id]
			if now >= r.deadline || r.killed {
				rt.Fatalf("attempt %d is extended after the end of its lease", id)
			}
			r.deadline = fx.Deadline
		}
		for _, id := range fx.Forget {
			if !attempts[id].ended {
				rt.Fatalf("attempt %d is forgotten and has not ended", id)
			}
			attempts[id].listed = false
		}
		for id, r := range attempts {
			if !r.killed && !r.ended && now >= r.deadline {
				rt.Fatalf("attempt %d outlives its lease: %d, and it is %d", id, r.deadline, now)
			}
		}
		if fx.Beat != nil {
			beats = append(beats, fx.Beat.Beat)
		}
		if fx.Sync != nil {
			for id, r := range attempts {
				if r.listed && !slices.ContainsFunc(fx.Sync.Attempts, func(h api.HeldAttempt) bool { return h.Attempt == id }) {
					rt.Fatalf("attempt %d is missing in %+v", id, fx.Sync)
				}
			}
			out, outAt = fx.Sync, now
		}
		if fx.Wake <= now {
			rt.Fatalf("it wakes at %d, and it is %d", fx.Wake, now)
		}
		wake = fx.Wake
	}
	step(Input{})
	for range steps {
		switch rapid.IntRange(0, 9).Draw(rt, "what") {
		case 0, 1: // time passes, until it asked to be woken at most
			now = min(now.Add(fleet.Duration(rapid.IntRange(1, 4000).Draw(rt, "ms"))), wake)
			if rapid.IntRange(0, 5).Draw(rt, "sleeps") == 0 {
				// The process stood still, and the first thing that it sees then may
				// be something else than the time.
				now = now.Add(fleet.Duration(rapid.IntRange(1, 40000).Draw(rt, "sleep")))
				if n := len(beats); n > 0 && rapid.Bool().Draw(rt, "acks wait") {
					step(Input{Beats: []Beaten{
						{To: "n1", Beat: beats[n-1], Reply: api.BeatReply{Node: "n1", Ack: true}},
						{To: "n2", Beat: beats[n-1], Reply: api.BeatReply{Node: "n2", Ack: true}},
					}})
				}
				continue
			}
			step(Input{})
		case 2, 3, 4: // an answer
			if out == nil {
				continue
			}
			r := &api.SyncReply{
				Nodes: three, Members: uint64(rapid.IntRange(3, 5).Draw(rt, "members")), FenceAfter: fence,
				Known: rapid.SampledFrom([]string{"a", "b"}).Draw(rt, "known"),
				Stamp: lease.Stamp{Term: uint64(rapid.IntRange(1, 2).Draw(rt, "term")), At: now},
			}
			for range rapid.IntRange(0, 2).Draw(rt, "starts") {
				if len(born) > 0 && rapid.Bool().Draw(rt, "again") {
					r.Start = append(r.Start, order(rapid.SampledFrom(born).Draw(rt, "which")))
					continue
				}
				next++
				r.Start = append(r.Start, order(next))
			}
			for _, id := range born {
				switch rapid.IntRange(0, 5).Draw(rt, "order") {
				case 0:
					r.Kill = append(r.Kill, id)
				case 1:
					r.Cancel = append(r.Cancel, id)
				case 2:
					r.Forget = append(r.Forget, id)
				}
			}
			s := Synced{Seq: out.Seq, Reply: r}
			switch rapid.IntRange(0, 5).Draw(rt, "fate") {
			case 0:
				s.Reply = nil
			case 1:
				old = append(old, s)
				continue
			}
			step(Input{Sync: &s})
		case 5: // an answer from long ago
			if len(old) > 0 {
				s := rapid.SampledFrom(old).Draw(rt, "old")
				step(Input{Sync: &s})
			}
		case 6, 7: // acknowledgements, of whatever beat
			if len(beats) == 0 {
				continue
			}
			b := beats[len(beats)-1]
			if rapid.IntRange(0, 4).Draw(rt, "late") == 0 {
				b = rapid.SampledFrom(beats).Draw(rt, "beat")
			}
			var in Input
			for _, n := range three {
				if rapid.IntRange(0, 3).Draw(rt, string(n.Node)) > 0 {
					in.Beats = append(in.Beats, Beaten{To: n.Node, Beat: b, Reply: api.BeatReply{Node: n.Node, Ack: true}})
				}
			}
			step(in)
		case 8, 9: // an attempt gets on
			if len(born) == 0 {
				continue
			}
			id := rapid.SampledFrom(born).Draw(rt, "who")
			r := attempts[id]
			if r.ended {
				continue
			}
			p := Progress{Attempt: id, Phase: fleet.PhaseSteps}
			if r.killed || rapid.Bool().Draw(rt, "ends") {
				r.ended = true
				p = Progress{Attempt: id, Phase: fleet.PhaseEnded, Dead: true, Outcome: fleet.Passed}
			}
			step(Input{Attempts: []Progress{p}})
		}
	}
}
