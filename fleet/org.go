package fleet

// Org is a customer or team that submits builds.
type Org struct {
	Name   OrgName `json:"name"`
	Slots  int     `json:"slots"`  // the plan: how many slots it may use at once
	Weight int     `json:"weight"` // its share when slots are short; at least 1
}

// GateStage is what a gate stops.
type GateStage string

// The stages that a gate can stop.
const (
	GateIntake    GateStage = "intake"    // build submit is refused
	GatePromotion GateStage = "promotion" // queued builds stay queued
	GateDispatch  GateStage = "dispatch"  // runnable builds stay runnable
)

// Gate is a stop on the queue, set by hand, that ends by itself. An empty Org
// or Pool means all. It is an override: it always has an expiry.
type Gate struct {
	Stage  GateStage `json:"stage"`
	Org    OrgName   `json:"org,omitempty"`
	Pool   PoolName  `json:"pool,omitempty"`
	By     Principal `json:"by"`
	Reason string    `json:"reason,omitempty"`
	At     Time      `json:"at"`
	Until  Time      `json:"until"`
}

// Key names the gate: one gate for each stage, org and pool.
func (g Gate) Key() string { return string(g.Stage) + "/" + string(g.Org) + "/" + string(g.Pool) }

// Stops reports whether g holds back a build of org for pool.
func (g Gate) Stops(stage GateStage, org OrgName, pool PoolName) bool {
	return g.Stage == stage && (g.Org == "" || g.Org == org) && (g.Pool == "" || g.Pool == pool)
}

// Loop names one of the things that the leader does by itself.
type Loop string

// The loops.
const (
	LoopPromote   Loop = "promote"
	LoopDispatch  Loop = "dispatch"
	LoopProvision Loop = "provision"
	LoopWatch     Loop = "watch"
	LoopDeliver   Loop = "deliver"
	LoopRetain    Loop = "retain"
)

// Loops lists every loop, in the order in which a build meets them.
func Loops() []Loop {
	return []Loop{LoopPromote, LoopDispatch, LoopProvision, LoopWatch, LoopDeliver, LoopRetain}
}

// Pause stops a loop from acting: it goes on deciding, and does nothing. It is
// an override: it always has an expiry.
type Pause struct {
	Loop   Loop      `json:"loop"`
	By     Principal `json:"by"`
	Reason string    `json:"reason,omitempty"`
	At     Time      `json:"at"`
	Until  Time      `json:"until"`
}
