package loop

import (
	"footplate/controlplane/catalog"
	"footplate/controlplane/state"
	"footplate/fleet"
	"footplate/fleet/queue"
)

// dispatchAtOnce bounds the assignments of one command.
const dispatchAtOnce = 500

// Dispatch decides which waiting task gets which free slot.
func Dispatch(_ fleet.Time, v *state.View) []state.Command {
	var out []state.Command
	if v.Fence > 0 {
		return nil
	}
	for _, p := range v.Pools.All() {
		if v.DepthOf(p.Name) == 0 {
			continue // ten thousand hosts need not be looked at for nobody
		}
		var hosts []queue.Free
		room := 0
		for _, h := range v.Hosts.All() {
			if h.Pool != p.Name || !h.Schedulable() {
				continue
			}
			if free := h.Slots - v.UsedSlots(h.ID); free > 0 {
				hosts = append(hosts, queue.Free{Host: h.ID, Slots: free})
				room += free
			}
		}
		if room == 0 {
			continue
		}
		var assign []catalog.Assignment
		for _, a := range queue.Dispatch(waiting(v, p.Name, min(room, dispatchAtOnce)), hosts) {
			h, _ := v.Hosts.Get(a.Host)
			assign = append(assign, catalog.Assignment{
				Build: a.Build, Task: a.Task, Host: a.Host, Boot: h.Boot, Incarnation: h.Incarnation,
			})
		}
		if len(assign) > 0 {
			out = append(out, command(fleet.LoopDispatch, catalog.BuildAssign, catalog.BuildAssignArgs{Assign: assign}))
		}
	}
	return out
}

// waiting returns the first tasks that wait for a slot of pool, at most most.
func waiting(v *state.View, pool fleet.PoolName, most int) []queue.Waiting {
	var out []queue.Waiting
	for w := range v.Waiting.From(state.Waiting{Pool: pool, Priority: fleet.MaxPriority}) {
		if w.Pool != pool || len(out) == most {
			break
		}
		b, ok := v.Builds.Get(w.Build)
		if !ok || b.Cancel {
			continue
		}
		if _, gated := v.Gated(fleet.GateDispatch, b.Org, b.Pool); gated {
			continue
		}
		q := queue.Waiting{Build: w.Build, Task: w.Task}
		for _, id := range b.Tasks[w.Task].Attempts {
			if at, ok := v.Attempts.Get(id); ok && (at.Outcome == fleet.Lost || at.Outcome == fleet.Broken) {
				q.Avoid = append(q.Avoid, at.Host)
			}
		}
		out = append(out, q)
	}
	return out
}
