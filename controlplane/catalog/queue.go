package catalog

import (
	"context"
	"fmt"
	"slices"

	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
	"footplate/fleet/queue"
)

// QueueStatus shows the queue.
var QueueStatus = op.Query(op.Spec{
	Name:     "queue status",
	Summary:  "show how many builds wait, for what, and what stops them",
	Role:     fleet.Viewer,
	Examples: []string{"queue status"},
}, func(_ context.Context, env op.Env, _ struct{}) (QueueDetail, error) {
	v := env.View
	d := QueueDetail{Queued: v.Queued.Len(), Waiting: v.Waiting.Len(), Running: v.Running.Len(), Pools: []QueuePool{}, Gates: []GateRow{}}
	oldest := func(at fleet.Time) fleet.Duration { return max(0, env.Now.Sub(at)) / 1000 * 1000 }
	for q := range v.Queued.All() {
		if b, ok := v.Builds.Get(q.Build); ok {
			d.OldestQueued = max(d.OldestQueued, oldest(b.SubmittedAt))
		}
	}
	for _, p := range v.Pools.All() {
		row := QueuePool{Pool: p.Name, Waiting: v.DepthOf(p.Name)}
		pr := poolRow(v, p)
		row.Mark = queue.Room{Slots: pr.Slots}.Mark()
		row.Slots, row.Used = pr.Slots, pr.Used
		for w := range v.Waiting.From(state.Waiting{Pool: p.Name, Priority: fleet.MaxPriority}) {
			if w.Pool != p.Name {
				break
			}
			if b, ok := v.Builds.Get(w.Build); ok {
				row.Oldest = max(row.Oldest, oldest(b.RunnableAt))
			}
		}
		d.Pools = append(d.Pools, row)
	}
	for _, g := range v.Gates.All() {
		if g.Until > env.Now {
			d.Gates = append(d.Gates, gateRow(g))
		}
	}
	return d, nil
})

// Rooms says of each pool, in their order, how full the second stage is.
func Rooms(v *state.View) []queue.Room {
	rooms := make([]queue.Room, 0, v.Pools.Len())
	for _, p := range v.Pools.All() {
		rooms = append(rooms, room(v, p.Name))
	}
	for _, h := range v.Hosts.All() {
		if i := slices.IndexFunc(rooms, func(r queue.Room) bool { return r.Pool == h.Pool }); i >= 0 && h.Schedulable() {
			rooms[i].Slots += h.Slots
		}
	}
	return rooms
}

// room counts what waits for a slot of pool. What a gate on dispatch holds does
// not: it stands in nobody's way.
func room(v *state.View, pool fleet.PoolName) queue.Room {
	r := queue.Room{Pool: pool, Waiting: v.DepthOf(pool)}
	gates := false
	for _, g := range v.Gates.All() {
		gates = gates || g.Stage == fleet.GateDispatch && g.Until > v.Clock
	}
	if !gates {
		return r
	}
	for w := range v.Waiting.From(state.Waiting{Pool: pool, Priority: fleet.MaxPriority}) {
		if w.Pool != pool {
			break
		}
		b, ok := v.Builds.Get(w.Build)
		if !ok {
			continue
		}
		if _, gated := v.Gated(fleet.GateDispatch, b.Org, b.Pool); gated {
			r.Waiting--
		}
	}
	return r
}

// QueueDetail is the queue at a glance.
type QueueDetail struct {
	Queued       int            `json:"queued" help:"builds in the first stage"`
	OldestQueued fleet.Duration `json:"oldest_queued"`
	Waiting      int            `json:"waiting" help:"tasks that wait for a slot"`
	Running      int            `json:"running" help:"attempts that hold a slot"`
	Pools        []QueuePool    `json:"pools"`
	Gates        []GateRow      `json:"gates"`
}

// QueuePool is the second stage for one pool.
type QueuePool struct {
	Pool    fleet.PoolName `json:"pool" col:"POOL" id:"true"`
	Waiting int            `json:"waiting" col:"WAITING"`
	Mark    int            `json:"mark" col:"MARK" help:"promotion to the pool stops when so many tasks wait"`
	Oldest  fleet.Duration `json:"oldest" col:"OLDEST"`
	Used    int            `json:"used" col:"USED"`
	Slots   int            `json:"slots" col:"SLOTS"`
}

// GateRow is a gate as lists show it.
type GateRow struct {
	Stage  fleet.GateStage `json:"stage" col:"STAGE"`
	Org    string          `json:"org" col:"ORG"`
	Pool   string          `json:"pool" col:"POOL"`
	By     fleet.Principal `json:"by" col:"BY"`
	Until  fleet.Time      `json:"until" col:"UNTIL"`
	Reason string          `json:"reason,omitempty" col:"REASON"`
}

func gateRow(g fleet.Gate) GateRow {
	return GateRow{g.Stage, orAll(string(g.Org)), orAll(string(g.Pool)), g.By, g.Until, g.Reason}
}

func orAll(s string) string {
	if s == "" {
		return "all"
	}
	return s
}

// QueueGateArgs names a gate.
type QueueGateArgs struct {
	Stage fleet.GateStage `json:"stage" flag:"stage" default:"dispatch" enum:"intake,promotion,dispatch" help:"what is stopped"`
	Org   fleet.OrgName   `json:"org,omitempty" flag:"org" complete:"org" help:"only builds of this org"`
	Pool  fleet.PoolName  `json:"pool,omitempty" flag:"pool" complete:"pool" help:"only builds for this pool"`
}

// QueuePauseArgs names a gate and when it ends.
type QueuePauseArgs struct {
	QueueGateArgs
	For fleet.Duration `json:"for" flag:"for" default:"1h" help:"it ends by itself after this long"`
}

// Validate checks the expiry.
func (a QueuePauseArgs) Validate() error { return checkExpiry(a.For) }

// maxOverride is the longest that an override may last.
const maxOverride = 7 * fleet.Day

func checkExpiry(d fleet.Duration) error {
	if d < fleet.Second || d > maxOverride {
		return fleet.Invalidf("--for is %s; it must lie between 1s and %s", d, maxOverride)
	}
	return nil
}

// QueuePause stops intake, promotion or dispatch for a while.
var QueuePause = op.Mutation(op.Spec{
	Name:    "queue pause",
	Summary: "stop intake, promotion or dispatch for a while",
	Long:    "What runs goes on. The gate ends by itself; a person ends it with queue resume.",
	Role:    fleet.Responder,
	Risk:    op.Disruptive,
	Show:    state.ShowLine,
	Examples: []string{
		"queue pause --for 30m --reason 'database is full'",
		"queue pause --stage promotion --org acme --for 2h",
	},
}, func(tx *state.Tx, m op.Meta, a QueuePauseArgs) (op.Result, error) {
	if err := checkNames(tx.View(), a.Org, a.Pool); err != nil {
		return op.Result{}, err
	}
	g := fleet.Gate{Stage: a.Stage, Org: a.Org, Pool: a.Pool, By: m.By, Reason: m.Reason, At: tx.At, Until: tx.At.Add(a.For)}
	tx.Gates.Put(g.Key(), g)
	return op.Result{
		Text:    fmt.Sprintf("paused %s for %s", gateWords(a.QueueGateArgs), a.For),
		Changes: []string{fmt.Sprintf("%s stops for %s", gateWords(a.QueueGateArgs), a.For)},
	}, nil
})

// QueueResume opens a gate again.
var QueueResume = op.Mutation(op.Spec{
	Name:     "queue resume",
	Summary:  "end a pause of intake, promotion or dispatch",
	Role:     fleet.Responder,
	Risk:     op.Safe,
	Show:     state.ShowLine,
	Examples: []string{"queue resume", "queue resume --stage promotion --org acme"},
}, func(tx *state.Tx, _ op.Meta, a QueueGateArgs) (op.Result, error) {
	g := fleet.Gate{Stage: a.Stage, Org: a.Org, Pool: a.Pool}
	old, ok := tx.Gates.Get(g.Key())
	if !ok || old.Until <= tx.At {
		if err := checkNames(tx.View(), a.Org, a.Pool); err != nil {
			return op.Result{}, err
		}
		return op.Result{}, fleet.NotFoundf("%s is not paused", gateWords(a)).WithHint("footplate queue status lists what is")
	}
	tx.Gates.Delete(g.Key())
	return op.Result{Text: fmt.Sprintf("resumed %s", gateWords(a))}, nil
})

func gateWords(a QueueGateArgs) string {
	s := string(a.Stage)
	if a.Org != "" {
		s += fmt.Sprintf(" of org %q", a.Org)
	}
	if a.Pool != "" {
		s += fmt.Sprintf(" to pool %q", a.Pool)
	}
	if a.Org == "" && a.Pool == "" {
		s += " of all builds"
	}
	return s
}
