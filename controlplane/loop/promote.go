package loop

import (
	"slices"

	"footplate/controlplane/catalog"
	"footplate/controlplane/state"
	"footplate/fleet"
	"footplate/fleet/queue"
)

// promoteAtOnce bounds how many builds one step promotes: a command that moves
// a million would stall everything behind it.
const promoteAtOnce = 1000

// Promote decides how many builds of each org and for each pool go from the
// first stage to the second. It looks at no more of the queue than can leave it.
func Promote(_ fleet.Time, v *state.View) []state.Command {
	rooms := catalog.Rooms(v)
	var demand []queue.OrgDemand
	for lane := range v.Lanes() {
		org, ok := v.Orgs.Get(lane.Org)
		i := slices.IndexFunc(rooms, func(r queue.Room) bool { return r.Pool == lane.Pool })
		if !ok || i < 0 {
			continue
		}
		// What dispatch is stopped for could not be started, and would only take of
		// the plan.
		_, held := v.Gated(fleet.GatePromotion, lane.Org, lane.Pool)
		_, stopped := v.Gated(fleet.GateDispatch, lane.Org, lane.Pool)
		if held || stopped || rooms[i].Slots == 0 {
			continue
		}
		if len(demand) == 0 || demand[len(demand)-1].Org != lane.Org {
			demand = append(demand, queue.OrgDemand{Org: lane.Org, Weight: max(org.Weight, 1), Slots: org.Slots, Using: v.SlotsOf(lane.Org)})
		}
		d := &demand[len(demand)-1]
		l := queue.Lane{Pool: lane.Pool, Using: v.SlotsIn(lane.Org, lane.Pool)}
		// A build has a task at least: no more of them fit. The first counts where
		// none does: those behind it may have to wait for it.
		most := max(1, min(promoteAtOnce, rooms[i].Mark()-rooms[i].Waiting, d.Slots-d.Using+1))
		for q := range v.Behind(lane) {
			if len(l.Queued) == most {
				break
			}
			if b, ok := v.Builds.Get(q.Build); ok {
				l.Queued = append(l.Queued, queue.Item{Build: b.ID, Priority: b.Priority, Tasks: b.Unfinished()})
			}
		}
		d.Lanes = append(d.Lanes, l)
	}
	var out []state.Command
	for _, p := range queue.Promote(demand, rooms, promoteAtOnce) {
		out = append(out, command(fleet.LoopPromote, catalog.BuildPromote, catalog.BuildPromoteArgs{Org: p.Org, Pool: p.Pool, Count: p.Count}))
	}
	return out
}
