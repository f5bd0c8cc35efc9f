package queue

import (
	"fmt"
	"slices"
	"testing"

	"footplate/fleet"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestPromoteKeepsPlansAndMarksAndWastesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var rooms []Room
		for _, p := range []fleet.PoolName{"linux", "mac", "nowhere"} {
			rooms = append(rooms, Room{
				Pool: p, Slots: rapid.IntRange(0, 6).Draw(t, "slots of a pool"),
				Waiting: rapid.IntRange(0, 4).Draw(t, "waiting"),
			})
		}
		var orgs []OrgDemand
		build := fleet.BuildID(1)
		for i := range rapid.IntRange(1, 5).Draw(t, "orgs") {
			o := OrgDemand{
				Org: fleet.OrgName(fmt.Sprintf("o%d", i)), Weight: rapid.IntRange(1, 3).Draw(t, "weight"),
				Slots: rapid.IntRange(0, 12).Draw(t, "slots"), Using: rapid.IntRange(0, 12).Draw(t, "using"),
			}
			for _, r := range rooms {
				l := Lane{Pool: r.Pool, Using: rapid.IntRange(0, 3).Draw(t, "using there")}
				for range rapid.IntRange(0, 5).Draw(t, "builds") {
					l.Queued = append(l.Queued, Item{Build: build, Tasks: rapid.IntRange(1, 6).Draw(t, "tasks")})
					build++
				}
				o.Lanes = append(o.Lanes, l)
			}
			orgs = append(orgs, o)
		}
		most := rapid.IntRange(0, 20).Draw(t, "most")
		got := Promote(orgs, rooms, most)
		total := 0
		widest := make([]int, len(rooms)) // that was promoted: the mark is overshot by less
		after := slices.Clone(rooms)
		for _, p := range got {
			total += p.Count
			o := &orgs[slices.IndexFunc(orgs, func(o OrgDemand) bool { return o.Org == p.Org })]
			k := slices.IndexFunc(rooms, func(r Room) bool { return r.Pool == p.Pool })
			l := &o.Lanes[k]
			for _, it := range l.Queued[:p.Count] {
				if o.Using > 0 && o.Using+it.Tasks > o.Slots || o.Slots == 0 {
					t.Fatalf("%s: build %d does not fit the plan", o.Org, it.Build)
				}
				o.Using += it.Tasks
				widest[k] = max(widest[k], it.Tasks)
				after[k].Waiting += it.Tasks
			}
			l.Queued = l.Queued[p.Count:]
		}
		if total > most {
			t.Fatalf("promoted %d of at most %d", total, most)
		}
		for k, r := range after {
			if grown := r.Waiting - rooms[k].Waiting; grown > 0 && r.Waiting >= r.Mark()+widest[k] {
				t.Fatalf("pool %s: %d tasks wait; its mark is %d", r.Pool, r.Waiting, r.Mark())
			}
		}
		if total == most || len(Promote(orgs, after, 1)) > 0 {
			return // it is not over
		}
		// What is left behind: its pool is shut; or the first build of its org whose
		// pool is not has no room in the plan, less what one build that a pool with
		// slots is shut for may need.
		for _, o := range orgs {
			var first, shut *Item
			for k, l := range o.Lanes {
				if len(l.Queued) == 0 {
					continue
				}
				switch it := &l.Queued[0]; {
				case after[k].Open():
					if first == nil || it.Build < first.Build {
						first = it
					}
				case after[k].Slots > 0 && (shut == nil || it.Build < shut.Build):
					shut = it
				}
			}
			if first == nil {
				continue
			}
			kept := 0
			if shut != nil && shut.Build < first.Build {
				kept = shut.Tasks
			}
			if Fits(o.Using+kept, o.Slots, first.Tasks) {
				t.Fatalf("%s: build %d was left behind", o.Org, first.Build)
			}
		}
	})
}

func TestDispatch(t *testing.T) {
	got := Dispatch([]Waiting{{1, 0, nil}, {1, 1, []fleet.HostID{"b"}}, {2, 0, []fleet.HostID{"a", "b"}}, {3, 0, nil}},
		[]Free{{"a", 1}, {"b", 2}})
	want := []Assignment{{1, 0, "b"}, {1, 1, "a"}, {2, 0, "b"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestDispatchKeepsSlotsAndWastesNone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var hosts []Free
		room := 0
		for i := range rapid.IntRange(0, 5).Draw(t, "hosts") {
			n := rapid.IntRange(0, 3).Draw(t, "slots")
			room += n
			hosts = append(hosts, Free{fleet.HostID(fmt.Sprintf("h%d", i)), n})
		}
		var waiting []Waiting
		for i := range rapid.IntRange(0, 12).Draw(t, "waiting") {
			w := Waiting{Build: fleet.BuildID(i + 1)}
			for _, h := range hosts {
				if rapid.Bool().Draw(t, "avoid") {
					w.Avoid = append(w.Avoid, h.Host)
				}
			}
			waiting = append(waiting, w)
		}
		got := Dispatch(waiting, hosts)
		if len(got) != min(room, len(waiting)) {
			t.Fatalf("assigned %d of %d to %d slots", len(got), len(waiting), room)
		}
		used := map[fleet.HostID]int{}
		for i, a := range got {
			used[a.Host]++
			if a.Build != waiting[i].Build {
				t.Fatalf("build %d overtook build %d", a.Build, waiting[i].Build)
			}
		}
		for _, h := range hosts {
			if used[h.Host] > h.Slots {
				t.Fatalf("host %s got %d tasks for %d slots", h.Host, used[h.Host], h.Slots)
			}
		}
	})
}
