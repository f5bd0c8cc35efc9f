package loop

import (
	"footplate/controlplane/catalog"
	"footplate/controlplane/state"
	"footplate/fleet"
	"footplate/fleet/queue"
)

// promoteAtOnce bounds how many builds one step promotes: a command that moves
// a million would stall everything behind it.
const promoteAtOnce = 1000

// Promote decides how many builds of each org go from the first stage to the
// second.
func Promote(_ fleet.Time, v *state.View) []state.Command {
	var demand []queue.OrgDemand
	for q := range v.Queued.All() {
		b, ok := v.Builds.Get(q.Build)
		if !ok {
			continue
		}
		if _, gated := v.Gated(fleet.GatePromotion, b.Org, b.Pool); gated {
			continue
		}
		if len(demand) == 0 || demand[len(demand)-1].Org != q.Org {
			org, ok := v.Orgs.Get(q.Org)
			if !ok {
				continue
			}
			demand = append(demand, queue.OrgDemand{Org: q.Org, Weight: max(org.Weight, 1), Slots: org.Slots, Using: v.SlotsOf(q.Org)})
		}
		d := &demand[len(demand)-1]
		if len(d.Queued) < promoteAtOnce {
			d.Queued = append(d.Queued, queue.Item{Build: b.ID, Tasks: b.Unfinished()})
		}
	}
	var out []state.Command
	for _, p := range queue.Promote(demand, promoteAtOnce) {
		out = append(out, command(fleet.LoopPromote, catalog.BuildPromote, catalog.BuildPromoteArgs{Org: p.Org, Count: p.Count}))
	}
	return out
}
