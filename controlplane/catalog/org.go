package catalog

import (
	"context"
	"fmt"

	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
)

// OrgList lists the orgs.
var OrgList = op.Query(op.Spec{
	Name:     "org list",
	Summary:  "list the orgs and what they use of their plans",
	Role:     fleet.Viewer,
	Examples: []string{"org list"},
}, func(_ context.Context, env op.Env, _ struct{}) ([]OrgRow, error) {
	rows := []OrgRow{}
	for _, o := range env.View.Orgs.All() {
		rows = append(rows, OrgRow{o.Name, o.Slots, env.View.SlotsOf(o.Name), queuedOf(env.View, o.Name), o.Weight})
	}
	return rows, nil
})

// OrgRow is an org as lists show it.
type OrgRow struct {
	Name   fleet.OrgName `json:"name" col:"ORG" id:"true"`
	Slots  int           `json:"slots" col:"PLAN" help:"slots that it may use at once"`
	Using  int           `json:"using" col:"USING" help:"slots that its promoted builds need"`
	Queued int           `json:"queued" col:"QUEUED" help:"builds in the first stage"`
	Weight int           `json:"weight" col:"WEIGHT"`
}

func findOrg(v *state.View, name fleet.OrgName) (fleet.Org, error) {
	o, ok := v.Orgs.Get(name)
	if !ok {
		return o, fleet.NotFoundf("there is no org %q", name).WithHint("footplate org list")
	}
	return o, nil
}

// checkNames makes sure that the org and the pool that a selection names are
// there: an empty answer would hide a slip of the finger.
func checkNames(v *state.View, org fleet.OrgName, pool fleet.PoolName) error {
	if org != "" {
		if _, err := findOrg(v, org); err != nil {
			return err
		}
	}
	if pool != "" {
		if _, err := findPool(v, pool); err != nil {
			return err
		}
	}
	return nil
}

func queuedOf(v *state.View, org fleet.OrgName) int {
	n := 0
	for q := range v.Queued.From(state.Queued{Org: org, Priority: fleet.MaxPriority}) {
		if q.Org != org {
			break
		}
		n++
	}
	return n
}

// OrgSetArgs describes an org.
type OrgSetArgs struct {
	Org    fleet.OrgName `json:"org" arg:"ORG" required:"true" complete:"org" help:"its name"`
	Slots  *int          `json:"slots,omitempty" flag:"slots" help:"slots that it may use at once; left out: as before, 10 for a new org"`
	Weight *int          `json:"weight,omitempty" flag:"weight" help:"its share when slots are short; left out: as before, 1 for a new org"`
}

// Validate checks the bounds.
func (a OrgSetArgs) Validate() error {
	if err := fleet.CheckName("org", string(a.Org)); err != nil {
		return err
	}
	if a.Slots != nil && (*a.Slots < 0 || *a.Slots > 1_000_000) {
		return fleet.Invalidf("--slots is %d; it must lie between 0 and 1000000", *a.Slots)
	}
	if a.Weight != nil && (*a.Weight < 1 || *a.Weight > 1000) {
		return fleet.Invalidf("--weight is %d; it must lie between 1 and 1000", *a.Weight)
	}
	return nil
}

// OrgSet makes an org, or changes its plan.
var OrgSet = op.Mutation(op.Spec{
	Name:     "org set",
	Summary:  "make an org, or change its plan",
	Role:     fleet.Operator,
	Risk:     op.Safe,
	Show:     state.ShowLine,
	Examples: []string{"org set acme --slots 8", "org set beta --slots 4 --weight 2"},
}, func(tx *state.Tx, _ op.Meta, a OrgSetArgs) (op.Result, error) {
	did := "changed"
	org, existed := tx.Orgs.Get(a.Org)
	if !existed {
		did, org = "made", fleet.Org{Name: a.Org, Slots: 10, Weight: 1}
	}
	was := org
	if a.Slots != nil {
		org.Slots = *a.Slots
	}
	if a.Weight != nil {
		org.Weight = *a.Weight
	}
	if existed && org == was {
		return op.Result{Text: fmt.Sprintf("org %q stays at %s, weight %d", a.Org, count(org.Slots, "slot"), org.Weight)}, nil
	}
	tx.Orgs.Put(a.Org, org)
	return op.Result{Text: fmt.Sprintf("%s org %q: %s, weight %d", did, a.Org, count(org.Slots, "slot"), org.Weight)}, nil
})
