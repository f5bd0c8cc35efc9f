package queue

import (
	"fmt"
	"testing"

	"footplate/fleet"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func items(tasks ...int) []Item {
	var out []Item
	for i, n := range tasks {
		out = append(out, Item{fleet.BuildID(i + 1), n})
	}
	return out
}

func TestPromote(t *testing.T) {
	for _, row := range []struct {
		name string
		orgs []OrgDemand
		most int
		want []Promotion
	}{
		{"as far as the plan goes", []OrgDemand{{"acme", 1, 3, 1, items(1, 1, 1)}}, 10, []Promotion{{"acme", 2}}},
		{"a wide build stops those behind it", []OrgDemand{{"acme", 1, 4, 2, items(1, 3, 1)}}, 10, []Promotion{{"acme", 1}}},
		{"a blocked org stops no other", []OrgDemand{{"acme", 1, 1, 1, items(1)}, {"beta", 1, 1, 0, items(1)}}, 10, []Promotion{{"beta", 1}}},
		{"wider than the plan, alone", []OrgDemand{{"acme", 1, 2, 0, items(5, 1)}}, 10, []Promotion{{"acme", 1}}},
		{"wider than the plan, not alone", []OrgDemand{{"acme", 1, 2, 1, items(5)}}, 10, nil},
		{"no plan", []OrgDemand{{"acme", 1, 0, 0, items(1)}}, 10, nil},
		{"by share", []OrgDemand{{"acme", 1, 9, 0, items(1, 1, 1, 1, 1, 1)}, {"beta", 2, 9, 0, items(1, 1, 1, 1, 1, 1)}}, 6,
			[]Promotion{{"acme", 2}, {"beta", 4}}},
		{"the one that uses least first", []OrgDemand{{"acme", 1, 9, 5, items(1, 1)}, {"beta", 1, 9, 0, items(1, 1)}}, 2, []Promotion{{"beta", 2}}},
	} {
		t.Run(row.name, func(t *testing.T) {
			if diff := cmp.Diff(row.want, Promote(row.orgs, row.most)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestPromoteKeepsPlansAndWastesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var orgs []OrgDemand
		for i := range rapid.IntRange(1, 5).Draw(t, "orgs") {
			orgs = append(orgs, OrgDemand{
				Org: fleet.OrgName(fmt.Sprintf("o%d", i)), Weight: rapid.IntRange(1, 3).Draw(t, "weight"),
				Slots: rapid.IntRange(0, 12).Draw(t, "slots"), Using: rapid.IntRange(0, 12).Draw(t, "using"),
				Queued: items(rapid.SliceOfN(rapid.IntRange(1, 6), 0, 8).Draw(t, "tasks")...),
			})
		}
		most := rapid.IntRange(0, 20).Draw(t, "most")
		counts := map[fleet.OrgName]int{}
		total := 0
		for _, p := range Promote(orgs, most) {
			counts[p.Org] = p.Count
			total += p.Count
		}
		if total > most {
			t.Fatalf("promoted %d of at most %d", total, most)
		}
		for _, o := range orgs {
			using := o.Using
			for _, it := range o.Queued[:counts[o.Org]] {
				if !Fits(using, o.Slots, it.Tasks) {
					t.Fatalf("%s: build %d does not fit", o.Org, it.Build)
				}
				using += it.Tasks
			}
			if rest := o.Queued[counts[o.Org]:]; total < most && len(rest) > 0 && Fits(using, o.Slots, rest[0].Tasks) {
				t.Fatalf("%s: build %d was left behind", o.Org, rest[0].Build)
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
