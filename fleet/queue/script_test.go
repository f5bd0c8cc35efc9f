package queue

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"footplate/fleet"

	"github.com/cockroachdb/datadriven"
)

// TestScripts plays testdata/*.txt. The words are an operator's:
//
//	promote [most=N]           which queued builds become runnable?
//	acme slots=8 weight=1 using=6 queued=1,3,1    (tasks of each build, the next first)
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
	next := fleet.BuildID(1)
	for line := range strings.Lines(d.Input) {
		alone, v := words(line)
		o := OrgDemand{Org: fleet.OrgName(alone[0]), Weight: 1, Slots: number(v["slots"])}
		if s, ok := v["weight"]; ok {
			o.Weight = number(s)
		}
		if s, ok := v["using"]; ok {
			o.Using = number(s)
		}
		for _, tasks := range strings.Split(v["queued"], ",") {
			if tasks != "" {
				o.Queued = append(o.Queued, Item{next, number(tasks)})
				next++
			}
		}
		orgs = append(orgs, o)
	}
	var b strings.Builder
	for _, p := range Promote(orgs, most) {
		for _, o := range orgs {
			if o.Org != p.Org {
				continue
			}
			var ids []string
			using := o.Using
			for _, it := range o.Queued[:p.Count] {
				ids = append(ids, it.Build.String())
				using += it.Tasks
			}
			fmt.Fprintf(&b, "%s: build %s; now uses %d of %d slots\n", p.Org, strings.Join(ids, ", "), using, o.Slots)
		}
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
