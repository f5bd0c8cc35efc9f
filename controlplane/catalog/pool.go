package catalog

import (
	"context"
	"fmt"

	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
	"footplate/fleet/lease"
)

// PoolList lists the pools.
var PoolList = op.Query(op.Spec{
	Name:     "pool list",
	Summary:  "list the pools",
	Role:     fleet.Viewer,
	Examples: []string{"pool list"},
}, func(_ context.Context, env op.Env, _ struct{}) ([]PoolRow, error) {
	rows := make([]PoolRow, 0, env.View.Pools.Len())
	for _, p := range env.View.Pools.All() {
		rows = append(rows, poolRow(env.View, p))
	}
	return rows, nil
})

// PoolRow is a pool as lists show it.
type PoolRow struct {
	Name     fleet.PoolName `json:"name" col:"POOL" id:"true"`
	Provider string         `json:"provider" col:"PROVIDER"`
	Size     int            `json:"size" col:"WANTED"`
	Ready    int            `json:"ready" col:"READY"`
	Booting  int            `json:"booting" col:"BOOTING"`
	Away     int            `json:"away" col:"AWAY" help:"cordoned, draining, suspect or lost"`
	Slots    int            `json:"slots" col:"SLOTS" help:"of ready hosts"`
	Used     int            `json:"used" col:"USED"`
	Waiting  int            `json:"waiting" col:"WAITING" help:"tasks that wait for a slot"`
	Min      int            `json:"min" col:"MIN" wide:"true"`
	Max      int            `json:"max" col:"MAX" wide:"true"`
}

func poolRow(v *state.View, p fleet.Pool) PoolRow {
	row := PoolRow{Name: p.Name, Provider: p.Provider, Size: p.Size, Waiting: v.DepthOf(p.Name), Min: p.Min, Max: p.Max}
	for _, h := range v.Hosts.All() {
		if h.Pool != p.Name {
			continue
		}
		row.Used += v.UsedSlots(h.ID)
		switch {
		case h.Schedulable():
			row.Ready++
			row.Slots += h.Slots
		case h.State == fleet.HostBooting:
			row.Booting++
		case h.State == fleet.HostReady:
			row.Away++
		}
	}
	return row
}

// PoolArgs names one pool.
type PoolArgs struct {
	Pool fleet.PoolName `json:"pool" arg:"POOL" required:"true" complete:"pool" help:"the pool"`
}

// PoolShow shows a pool and its hosts.
var PoolShow = op.Query(op.Spec{
	Name:     "pool show",
	Summary:  "show a pool and its hosts",
	Role:     fleet.Viewer,
	Examples: []string{"pool show linux"},
}, func(_ context.Context, env op.Env, a PoolArgs) (PoolDetail, error) {
	p, err := findPool(env.View, a.Pool)
	if err != nil {
		return PoolDetail{}, err
	}
	d := PoolDetail{PoolRow: poolRow(env.View, p), SuspectAfter: p.SuspectAfter, FenceAfter: p.FenceAfter, HeldAt: p.HeldAt, HeldWhy: p.HeldWhy, Hosts: []HostRow{}}
	if p.StrandedAt != 0 {
		d.Stranded = strandedWords(p)
	}
	for _, h := range env.View.Hosts.All() {
		if h.Pool == p.Name {
			d.Hosts = append(d.Hosts, hostRow(env, h))
		}
	}
	return d, nil
})

// PoolDetail is a pool in full.
type PoolDetail struct {
	PoolRow
	SuspectAfter fleet.Duration `json:"suspect_after" help:"a host silent for this long gets no new work"`
	FenceAfter   fleet.Duration `json:"fence_after" help:"a host silent for this long has ended its tasks"`
	HeldAt       fleet.Time     `json:"held_at,omitempty" help:"since when its silent hosts are not replaced"`
	HeldWhy      string         `json:"held_why,omitempty" help:"why they are not"`
	Stranded     string         `json:"stranded,omitempty" help:"why nobody launches and ends its hosts"`
	Hosts        []HostRow      `json:"hosts"`
}

func findPool(v *state.View, name fleet.PoolName) (fleet.Pool, error) {
	p, ok := v.Pools.Get(name)
	if !ok {
		return p, fleet.NotFoundf("there is no pool %q", name).WithHint("footplate pool list")
	}
	return p, nil
}

// PoolCreateArgs describes a new pool.
type PoolCreateArgs struct {
	Pool         fleet.PoolName `json:"pool" arg:"POOL" required:"true" help:"its name"`
	Provider     string         `json:"provider" flag:"provider" default:"local" help:"where its hosts come from; none for hosts that join by themselves" enum:"local,none"`
	Size         int            `json:"size" flag:"size" help:"hosts wanted"`
	Slots        int            `json:"slots" flag:"slots" default:"2" help:"tasks at once on each host"`
	Min          int            `json:"min" flag:"min" help:"never fewer hosts than this"`
	Max          int            `json:"max" flag:"max" default:"100" help:"never more hosts than this"`
	SuspectAfter fleet.Duration `json:"suspect_after" flag:"suspect-after" default:"10s" help:"a host silent for this long gets no new work"`
	FenceAfter   fleet.Duration `json:"fence_after" flag:"fence-after" default:"30s" help:"a host silent for this long has ended its tasks"`
}

// Validate checks the bounds.
func (a PoolCreateArgs) Validate() error {
	if err := fleet.CheckName("pool", string(a.Pool)); err != nil {
		return err
	}
	switch {
	case len(a.Pool) > 50: // its hosts' names are longer, and names have at most 63
		return fleet.Invalidf("pool %q is longer than 50 characters", a.Pool)
	case a.Slots < 1 || a.Slots > 256:
		return fleet.Invalidf("--slots is %d; it must lie between 1 and 256", a.Slots)
	case a.Min < 0 || a.Max < a.Min || a.Max > 100_000:
		return fleet.Invalidf("--min %d and --max %d do not fit", a.Min, a.Max).WithHint("0 <= min <= max <= 100000")
	case a.Size < a.Min || a.Size > a.Max:
		return fleet.Invalidf("--size %d lies outside of %d to %d", a.Size, a.Min, a.Max).WithHint("--min and --max set the bounds")
	case a.SuspectAfter < fleet.Second || a.FenceAfter < 2*fleet.Second || a.SuspectAfter > a.FenceAfter || a.FenceAfter > lease.MaxFenceAfter:
		return fleet.Invalidf("--suspect-after %s and --fence-after %s do not fit", a.SuspectAfter, a.FenceAfter).
			WithHint("1s <= suspect-after <= fence-after, and 2s <= fence-after <= %s", lease.MaxFenceAfter)
	}
	return nil
}

// PoolCreate makes a pool.
var PoolCreate = op.Mutation(op.Spec{
	Name:     "pool create",
	Summary:  "make a pool of hosts",
	Role:     fleet.Operator,
	Risk:     op.Safe,
	Show:     state.ShowLine,
	Examples: []string{"pool create linux --size 4 --slots 2", "pool create mac --provider none --slots 1"},
}, poolCreate)

func poolCreate(tx *state.Tx, _ op.Meta, a PoolCreateArgs) (op.Result, error) {
	if _, ok := tx.Pools.Get(a.Pool); ok {
		return op.Result{}, fleet.Conflictf("pool %q exists already", a.Pool).WithHint("footplate pool show %s", a.Pool)
	}
	tx.Pools.Put(a.Pool, fleet.Pool{
		Name: a.Pool, Provider: a.Provider, Size: a.Size, Slots: a.Slots, Min: a.Min, Max: a.Max,
		SuspectAfter: a.SuspectAfter, FenceAfter: a.FenceAfter,
	})
	return op.Result{Text: fmt.Sprintf("made pool %q: %s of %s, %s each", a.Pool,
		count(a.Size, "host"), a.Provider, count(a.Slots, "slot"))}, nil
}

// PoolScaleArgs says how large a pool shall be.
type PoolScaleArgs struct {
	Pool fleet.PoolName `json:"pool" arg:"POOL" required:"true" complete:"pool" help:"the pool"`
	Size op.Size        `json:"size" arg:"SIZE" required:"true" help:"hosts wanted: 6, +2 or -2"`
}

// PoolScale changes how many hosts a pool shall have.
var PoolScale = op.Mutation(op.Spec{
	Name:    "pool scale",
	Summary: "change how many hosts a pool shall have",
	Long: "Hosts are launched in parallel. To shrink, the emptiest hosts are drained first\n" +
		"and ended when they are idle: no build is killed.",
	Role:     fleet.Operator,
	Risk:     op.Safe,
	Show:     state.ShowLine,
	Examples: []string{"pool scale linux 6", "pool scale linux +2 --reason 'monday ramp'", "pool scale linux -2"},
}, poolScale)

func poolScale(tx *state.Tx, _ op.Meta, a PoolScaleArgs) (op.Result, error) {
	p, err := findPool(tx.View(), a.Pool)
	if err != nil {
		return op.Result{}, err
	}
	if p.Provider == "none" {
		return op.Result{}, fleet.Conflictf("pool %q has no provider: its hosts join by themselves", a.Pool).
			WithHint("start an agent with --pool %s on each host", a.Pool)
	}
	was, now := p.Size, a.Size.Of(p.Size)
	if now < p.Min || now > p.Max {
		return op.Result{}, fleet.Conflictf("pool %q may have %d to %d hosts, not %d", a.Pool, p.Min, p.Max, now).
			WithHint("its bounds are those that pool create was given; another pool can have others")
	}
	p.Size = now
	tx.Pools.Put(p.Name, p)
	if was == now {
		return op.Result{Text: fmt.Sprintf("pool %q stays at %s", a.Pool, count(now, "host"))}, nil
	}
	return op.Result{Text: fmt.Sprintf("scaled pool %q from %d to %s", a.Pool, was, count(now, "host"))}, nil
}

// count writes a number with its noun.
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
