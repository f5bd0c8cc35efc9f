package queue

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"footplate/fleet"

	"github.com/cockroachdb/datadriven"
)

// TestScripts plays testdata/*.txt. The words are an operator's:
//
//	promote [most=N]           which queued builds become runnable?
//	pool mac slots=4 waiting=3                    (no pool named: "linux" with room for all)
//	acme slots=8 weight=1 using=6 mac=2 queued=1,3,mac:1,1^5
//
// It uses 6 slots of its plan, 2 of them in mac. The last are the tasks of each build, the oldest first, with its pool, linux
// when left out, and its priority.
//
//	dispatch                   which waiting task gets which free slot?
//	host linux-1 slots=2
//	task 7/0 avoid=linux-1     (build/task, the next first)
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			switch d.Cmd {
			case "promote":
				most := 100
				d.MaybeScanArgs(t, "most", &most)
				return promoteScript(d, most)
			case "dispatch":
				return dispatchScript(d)
			}
			d.Fatalf(t, "unknown command %q", d.Cmd)
			return ""
		})
	})
}

// words splits a line into what stands alone and its name=value pairs.
func words(line string) (alone []string, values map[string]string) {
	values = map[string]string{}
	for _, w := range strings.Fields(line) {
		if name, value, ok := strings.Cut(w, "="); ok {
			values[name] = value
		} else {
			alone = append(alone, w)
		}
	}
	return alone, values
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		panic(err)
	}
	return n
}

func promoteScript(d *datadriven.TestData, most int) string {
	var orgs []OrgDemand
	var rooms []Room
	next := fleet.BuildID(1)
	for line := range strings.Lines(d.Input) {
		alone, v := words(line)
		or := func(name string, n int) int {
			if s, ok := v[name]; ok {
				return number(s)
			}
			return n
		}
		if alone[0] == "pool" {
			rooms = append(rooms, Room{Pool: fleet.PoolName(alone[1]), Slots: or("slots", 0), Waiting: or("waiting", 0)})
			continue
		}
		o := OrgDemand{Org: fleet.OrgName(alone[0]), Weight: or("weight", 1), Slots: number(v["slots"]), Using: or("using", 0)}
		for _, s := range strings.Split(v["queued"], ",") {
			if s == "" {
				continue
			}
			it := Item{Build: next}
			next++
			pool := fleet.PoolName("linux")
			if p, rest, ok := strings.Cut(s, ":"); ok {
				pool, s = fleet.PoolName(p), rest
			}
			if rest, p, ok := strings.Cut(s, "^"); ok {
				s, it.Priority = rest, number(p)
			}
			it.Tasks = number(s)
			i := slices.IndexFunc(o.Lanes, func(l Lane) bool { return l.Pool == pool })
			if i < 0 {
				i = len(o.Lanes)
				o.Lanes = append(o.Lanes, Lane{Pool: pool, Using: or(string(pool), o.Using)})
			}
			o.Lanes[i].Queued = append(o.Lanes[i].Queued, it)
		}
		for _, l := range o.Lanes {
			slices.SortStableFunc(l.Queued, func(a, b Item) int { return b.Priority - a.Priority })
		}
		orgs = append(orgs, o)
	}
	if len(rooms) == 0 {
		rooms = []Room{{Pool: "linux", Slots: 1000}}
	}
	var b strings.Builder
	got := Promote(orgs, rooms, most)
	for len(got) > 0 {
		i := slices.IndexFunc(orgs, func(o OrgDemand) bool { return o.Org == got[0].Org })
		var ids []string
		using := orgs[i].Using
		for len(got) > 0 && got[0].Org == orgs[i].Org {
			k := slices.IndexFunc(orgs[i].Lanes, func(l Lane) bool { return l.Pool == got[0].Pool })
			for _, it := range orgs[i].Lanes[k].Queued[:got[0].Count] {
				ids = append(ids, it.Build.String())
				using += it.Tasks
			}
			got = got[1:]
		}
		fmt.Fprintf(&b, "%s: build %s; now uses %d of %d slots\n", orgs[i].Org, strings.Join(ids, ", "), using, orgs[i].Slots)
	}
	if b.Len() == 0 {
		return "nothing\n"
	}
	return b.String()
}

func dispatchScript(d *datadriven.TestData) string {
	var hosts []Free
	var waiting []Waiting
	for line := range strings.Lines(d.Input) {
		alone, v := words(line)
		switch alone[0] {
		case "host":
			hosts = append(hosts, Free{fleet.HostID(alone[1]), number(v["slots"])})
		case "task":
			build, task, _ := strings.Cut(alone[1], "/")
			w := Waiting{Build: fleet.BuildID(number(build)), Task: number(task)}
			for _, h := range strings.Split(v["avoid"], ",") {
				if h != "" {
					w.Avoid = append(w.Avoid, fleet.HostID(h))
				}
			}
			waiting = append(waiting, w)
		}
	}
	got := Dispatch(waiting, hosts)
	var b strings.Builder
	for _, a := range got {
		fmt.Fprintf(&b, "task %s/%d -> %s\n", a.Build, a.Task, a.Host)
	}
	for _, w := range waiting[len(got):] {
		fmt.Fprintf(&b, "task %s/%d waits\n", w.Build, w.Task)
	}
	if b.Len() == 0 {
		return "nothing\n"
	}
	return b.String()
}
