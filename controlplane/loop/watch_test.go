package loop

import (
	"encoding/json"
	"testing"

	"footplate/controlplane/catalog"
	"footplate/controlplane/state"
	"footplate/fleet"
)

// world returns a state with one ready host that joined at joined.
func world(t *testing.T, now, joined fleet.Time) *state.State {
	t.Helper()
	st := state.New()
	st.Begin(1, now)
	err := st.Do("test", func(tx *state.Tx) error {
		tx.Pools.Put("linux", fleet.Pool{Name: "linux", SuspectAfter: 10 * fleet.Second, FenceAfter: 30 * fleet.Second})
		tx.Hosts.Put("linux-1", fleet.Host{
			ID: "linux-1", Pool: "linux", State: fleet.HostReady, Slots: 1, Boot: "b2", Incarnation: 1, Suspect: true, JoinedAt: joined,
		})
		tx.Pauses.Put(fleet.LoopWatch, fleet.Pause{Loop: fleet.LoopWatch, Until: now.Add(fleet.Second)})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func ops(commands []state.Command) []string {
	var out []string
	for _, c := range commands {
		out = append(out, c.Op)
	}
	return out
}

// A boot that no node has heard yet looks as if it had been silent since the
// nodes began to listen.
func TestHostThatJustJoinedIsNotLost(t *testing.T) {
	const now = fleet.Time(1_000_000)
	heard := Heard{Hosts: []Hearing{{Host: "linux-1", Silent: fleet.Hour, Known: true, Over: true}}}
	for _, c := range []struct {
		here fleet.Duration
		want string
	}{
		{0, "host suspect"}, // it is not suspect any more
		{9 * fleet.Second, "host suspect"},
		{30 * fleet.Second, ""}, // the state clock may be ahead: the margin is for that too
		{33 * fleet.Second, ""},
		{34 * fleet.Second, "host lose"},
	} {
		got := ""
		for _, o := range ops(Watch(now, world(t, now, now.Add(-c.here)).Publish(), heard)) {
			got += o
		}
		if got != c.want {
			t.Errorf("%s after it joined: got %q, want %q", c.here, got, c.want)
		}
	}
}

// The verdict on a boot is on its way while the next boot joins.
func TestVerdictDoesNotMeetTheNextBoot(t *testing.T) {
	const now = fleet.Time(1_000_000)
	st := world(t, now, now.Add(-fleet.Hour))
	verdict := Watch(now, st.Publish(), Heard{Hosts: []Hearing{{Host: "linux-1", Silent: fleet.Hour, Known: true, Over: true}}})
	if len(verdict) != 1 || verdict[0].Op != catalog.HostLose.Name {
		t.Fatalf("got %v, want host lose", ops(verdict))
	}
	join, err := json.Marshal(catalog.AgentJoinArgs{Host: "linux-1", Pool: "linux", Boot: "b3", Incarnation: 1})
	if err != nil {
		t.Fatal(err)
	}
	batch := state.Batch{At: now, Commands: append([]state.Command{{Op: catalog.AgentJoin.Name, Ver: 1, Args: join}}, verdict...)}
	if _, err := catalog.All().Apply(st, 2, batch, nil); err != nil {
		t.Fatal(err)
	}
	if h, _ := st.Hosts.Get("linux-1"); h.Boot != "b3" || h.Lost || h.Suspect {
		t.Errorf("the next boot is %s: %+v", h.Condition(), h)
	}
}

// The watch loop ends pauses; when it is paused itself and nothing is logged,
// the clock of the view stands still.
func TestPauseOfAnIdleFleetEnds(t *testing.T) {
	const now = fleet.Time(1_000_000)
	v := world(t, now, now).Publish()
	if !Paused(now, v, fleet.LoopWatch) {
		t.Error("the loop is not paused")
	}
	if Paused(now.Add(fleet.Second), v, fleet.LoopWatch) {
		t.Error("the loop is paused for longer than it was meant to be")
	}
}

// To replace a lost host takes the same testimony as to declare it lost: as soon
// as the nodes do not agree any more, it is only suspect.
func TestLostHostInDoubtIsNotReplaced(t *testing.T) {
	const now = fleet.Time(1_000_000)
	for _, over := range []bool{true, false} {
		st := world(t, now, now.Add(-fleet.Hour))
		if err := st.Do("test", func(tx *state.Tx) error {
			h, _ := tx.Hosts.Get("linux-1")
			h.Lost, h.Launch = true, 1
			tx.Hosts.Put(h.ID, h)
			p, _ := tx.Pools.Get("linux")
			p.Provider, p.Size = "local", 1
			tx.Pools.Put(p.Name, p)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		heard := Heard{Hosts: []Hearing{{Host: "linux-1", Silent: fleet.Hour, Known: true, Over: over}}}
		if _, err := catalog.All().Apply(st, 2, state.Batch{At: now, Commands: Watch(now, st.Publish(), heard)}, nil); err != nil {
			t.Fatal(err)
		}
		got, _ := Provision(now, st.Publish(), nil)
		if h, _ := st.Hosts.Get("linux-1"); len(got) > 0 != over || h.Lost != over || !h.Suspect {
			t.Errorf("with testimony %v it is %s, and the loop says %v", over, h.Condition(), ops(got))
		}
	}
}
