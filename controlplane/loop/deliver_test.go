package loop

import (
	"testing"

	"footplate/controlplane/catalog"
	"footplate/controlplane/state"
	"footplate/fleet"
)

// TestAnchor: the head of the chain goes to the channel an hour after the
// cluster began, then at most once an hour, and only when something happened.
func TestAnchor(t *testing.T) {
	reg := catalog.All()
	st := state.New()
	now := fleet.Time(1_800_000_000_000)
	apply := func(c state.Command) {
		t.Helper()
		out, err := reg.Apply(st, st.Index+1, state.Batch{At: now, Commands: []state.Command{c}}, nil)
		if err != nil || out.Outcomes[0].Err != nil {
			t.Fatal(err, out)
		}
	}
	work := func() {
		apply(command(fleet.LoopDeliver, catalog.NodeJoin, catalog.NodeJoinArgs{Node: fleet.NodeID("n" + now.String())}))
	}
	// step runs the loop until it has nothing more to do, and counts the anchors.
	step := func() (anchors int) {
		t.Helper()
		for range 10 {
			commands := Deliver(now, st.Publish())
			if len(commands) == 0 {
				return anchors
			}
			for _, c := range commands {
				if c.Op == catalog.AuditAnchor.Name {
					anchors++
				}
				apply(c)
			}
		}
		t.Fatal("the loop does not come to rest")
		return 0
	}
	if step() != 0 {
		t.Error("nothing was anchored")
	}
	work()
	for _, row := range []struct {
		after fleet.Duration
		work  bool
		want  int
	}{
		{0, false, 0},
		{AnchorEvery - 1, true, 0},
		{1, false, 1},
		{0, true, 0},            // not twice in an hour
		{AnchorEvery, false, 1}, // for what came then
		{AnchorEvery, false, 0}, // nothing but the anchor itself
		{10 * AnchorEvery, true, 1},
	} {
		now = now.Add(row.after)
		if row.work {
			work()
		}
		if got := step(); got != row.want {
			t.Fatalf("%s later, with work %v: %d anchors, not %d", row.after, row.work, got, row.want)
		}
	}
	for range 2 * state.AnchorsKeep {
		now = now.Add(AnchorEvery)
		work()
		step()
	}
	v := st.Publish()
	if v.Anchors.Len() != state.AnchorsKeep {
		t.Errorf("%d anchors are kept, not %d", v.Anchors.Len(), state.AnchorsKeep)
	}
	for _, a := range v.Anchors.Backward() {
		if last, ok := v.Channel.Get(fleet.EntryNo(v.Line)); !ok || last.First != a.Entry+1 {
			t.Errorf("the newest anchor, of entry %d, is not the last line of the channel: %+v", a.Entry, last)
		}
		break
	}
}
