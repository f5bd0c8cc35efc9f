package page

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"footplate/controlplane/catalog"
	"footplate/controlplane/op"
	"footplate/fleet"
)

// What the glance shows at most of each.
const (
	maxHosts  = 60 // of a pool, those first that are not ready
	maxBuilds = 12
)

// oldAfter is the age from which an answer without a quorum is called old: well
// over the time that a change of leader takes.
const oldAfter = 3 * fleet.Second

// glance is the fleet at a glance.
type glance struct {
	Node    fleet.NodeID
	Cluster *op.Cluster
	Err     *fleet.Error
	Age     string // how old it is, when that matters
	Charts  []chart
	Queue   catalog.QueueDetail
	Slots   int
	Pools   []poolView
	Builds  []catalog.BuildRow
	More    bool // builds that are not shown
	Paused  []catalog.LoopRow
	Ready   int
	Hosts   int
	Nodes   int // that answer
}

type poolView struct {
	catalog.PoolRow
	Oldest fleet.Duration
	Hosts  []hostView
	Rest   int
	Fill   int // used of slots, in tenths
}

type hostView struct {
	catalog.HostRow
	Short string // the name without the pool's
	Full  bool
}

// query asks about what this node has.
func query[T any](ctx context.Context, v *visit, o *op.Op, args any) (out T, age fleet.Duration, err error) {
	raw, stale, err := v.api.Query(ctx, o, args, true)
	if err != nil {
		return out, 0, err
	}
	if stale != "" {
		age, _ = fleet.ParseDuration(string(stale))
	}
	if err := json.Unmarshal(raw, &out); err != nil {
		return out, age, fleet.Internalf("the answer of %s cannot be read: %s", o.Name, err)
	}
	return out, age, nil
}

func (v *visit) glance(ctx context.Context) glance {
	g := glance{Node: v.Node}
	if err := v.fillGlance(ctx, &g); err != nil {
		g.Err = fleet.AsError(err)
	}
	now, all := time.Now(), v.page.history.all()
	number := func(f float64) string { return fmt.Sprintf("%.0f", f) }
	wait := func(f float64) string { return short(fleet.Duration(f) * fleet.Second) }
	g.Charts = []chart{
		chartOf("queued, waiting", now, all, number, ceiling, []string{"queued", "waiting"},
			func(s sample) float64 { return float64(s.queued) }, func(s sample) float64 { return float64(s.waiting) }),
		chartOf("longest wait", now, all, wait, ceilingWait, []string{"for the plan", "for a slot"},
			func(s sample) float64 { return float64(s.oldestQueued / fleet.Second) }, func(s sample) float64 { return float64(s.oldestIn / fleet.Second) }),
		chartOf("running of slots", now, all, number, ceiling, []string{"running", "slots"},
			func(s sample) float64 { return float64(s.running) }, func(s sample) float64 { return float64(s.slots) }),
	}
	return g
}

func (v *visit) fillGlance(ctx context.Context, g *glance) error {
	cluster, _, err := query[op.Cluster](ctx, v, catalog.ClusterStatus, catalog.ClusterStatus.NewArgs())
	if err != nil {
		return err
	}
	g.Cluster = &cluster
	for _, n := range cluster.Nodes {
		if n.Role != "unreachable" {
			g.Nodes++
		}
	}
	var age fleet.Duration
	if g.Queue, age, err = query[catalog.QueueDetail](ctx, v, catalog.QueueStatus, catalog.QueueStatus.NewArgs()); err != nil {
		return err
	}
	if age >= oldAfter {
		g.Age = short(age)
	}
	pools, _, err := query[[]catalog.PoolRow](ctx, v, catalog.PoolList, catalog.PoolList.NewArgs())
	if err != nil {
		return err
	}
	hosts, _, err := query[[]catalog.HostRow](ctx, v, catalog.HostList, catalog.HostList.NewArgs())
	if err != nil {
		return err
	}
	loops, _, err := query[[]catalog.LoopRow](ctx, v, catalog.AutomationStatus, catalog.AutomationStatus.NewArgs())
	if err != nil {
		return err
	}
	for _, l := range loops {
		if l.Until != 0 {
			g.Paused = append(g.Paused, l)
		}
	}
	open := catalog.BuildList.NewArgs().(*catalog.BuildListArgs)
	open.State, open.Limit = "running", maxBuilds+1
	if g.Builds, _, err = query[[]catalog.BuildRow](ctx, v, catalog.BuildList, open); err != nil {
		return err
	}
	if g.More = len(g.Builds) > maxBuilds; g.More {
		g.Builds = g.Builds[:maxBuilds]
	}
	for _, p := range pools {
		g.Slots += p.Slots
		g.Pools = append(g.Pools, poolViewOf(p, hosts, g.Queue.Pools))
		g.Ready += p.Ready
		g.Hosts += p.Ready + p.Booting + p.Away
	}
	return nil
}

func poolViewOf(p catalog.PoolRow, hosts []catalog.HostRow, queues []catalog.QueuePool) poolView {
	view := poolView{PoolRow: p}
	if p.Slots > 0 {
		view.Fill = min(10, (p.Used*10+p.Slots-1)/p.Slots)
	}
	for _, q := range queues {
		if q.Pool == p.Name {
			view.Oldest = q.Oldest
		}
	}
	for _, h := range hosts {
		if h.Pool == p.Name {
			view.Hosts = append(view.Hosts, hostView{h, strings.TrimPrefix(string(h.ID), string(p.Name)+"-"), h.Slots > 0 && h.Used >= h.Slots})
		}
	}
	slices.SortStableFunc(view.Hosts, func(a, b hostView) int { return cmp.Compare(rank(a.State), rank(b.State)) })
	if len(view.Hosts) > maxHosts {
		view.Rest = len(view.Hosts) - maxHosts
		view.Hosts = view.Hosts[:maxHosts]
	}
	return view
}

// rank puts what needs a look first.
func rank(state string) int {
	order := []string{"lost", "suspect", "draining", "cordoned", "retiring", "booting"}
	if i := slices.Index(order, state); i >= 0 {
		return i
	}
	return len(order)
}

// short is a duration of two units at most: people compare, they do not add.
func short(d fleet.Duration) string {
	unit := fleet.Second
	switch {
	case d >= fleet.Day:
		unit = fleet.Hour
	case d >= fleet.Hour:
		unit = fleet.Minute
	}
	return (d / unit * unit).String()
}

func (p *Page) home(w http.ResponseWriter, r *http.Request, v *visit) error {
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
	defer cancel()
	g := v.glance(ctx)
	if v.expired.Load() {
		return g.Err
	}
	p.views.page(w, http.StatusOK, "home", v, "console", g)
	return nil
}

// pieces renders the glance and the details of the fleet, each as a piece.
func (v *visit) pieces(ctx context.Context) (map[string]string, error) {
	g := v.glance(ctx)
	out := make(map[string]string)
	for _, name := range []string{"state", "glance", "detail"} {
		var b bytes.Buffer
		if err := v.page.views.pieces.ExecuteTemplate(&b, name, g); err != nil {
			return nil, fmt.Errorf("render %s: %w", name, err)
		}
		out[name] = b.String()
	}
	return out, nil
}
