package loop

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"footplate/controlplane/catalog"
	"footplate/controlplane/state"
	"footplate/fleet"
	"footplate/fleet/provider"
)

// Listing is what one provider says that there is.
type Listing struct {
	Provider  string
	Instances []provider.Instance
}

// Effects are what the providers shall be asked, each idempotent by the launch.
type Effects struct {
	Launch    []fleet.LaunchID
	Terminate []fleet.LaunchID
	Forget    []fleet.LaunchID
}

// Provision decides which hosts to launch, retire and end, so that each pool
// has the size that it shall have.
func Provision(now fleet.Time, v *state.View, listings []Listing) ([]state.Command, Effects) {
	var out []state.Command
	var fx Effects
	held := guard(now, v)
	i := -1
	for _, p := range v.Pools.All() {
		i++
		if p.Provider == "none" || p.StrandedAt != 0 {
			continue
		}
		out = append(out, size(v, p)...)
		out = append(out, hold(v, p, held[i])...)
		out = append(out, retired(now, v, p, held[i].Held)...)
	}
	for _, l := range listings {
		out = append(out, compare(now, v, l, &fx)...)
	}
	for id, l := range v.Launches.All() {
		if l.State != fleet.LaunchWanted {
			continue
		}
		switch h, ok := v.Hosts.Get(l.Host); {
		case !ok || h.State == fleet.HostEnding:
			// Not wanted any more. Should a call that is under way make it all the
			// same, it will be listed, and ended then.
			out = append(out, command(fleet.LoopProvision, catalog.LaunchReport, catalog.LaunchReportArgs{
				Launch: id, Failed: true, Why: "it was ended before it was made",
			}))
		case l.NextAt <= now:
			fx.Launch = append(fx.Launch, id)
		}
	}
	return out, fx
}

// strand notes which pools have no provider here, and which have it again.
func strand(v *state.View, providers map[string]provider.Provider) []state.Command {
	var out []state.Command
	for _, p := range v.Pools.All() {
		here := p.Provider == "none" || providers[p.Provider] != nil
		if here != (p.StrandedAt == 0) {
			out = append(out, command(fleet.LoopProvision, catalog.PoolStrand, catalog.PoolStrandArgs{Pool: p.Name, Over: here}))
		}
	}
	return out
}

// size launches or retires hosts so that pool p gets its size.
func size(v *state.View, p fleet.Pool) []state.Command {
	have := catalog.Supply(v, p.Name)
	switch {
	case have < p.Size:
		// A host that is being emptied is nearer than a new one.
		var back []fleet.HostID
		for id, h := range v.Hosts.All() {
			if h.Pool == p.Name && h.Retiring && h.State == fleet.HostReady && !h.Lost && len(back) < p.Size-have {
				back = append(back, id)
			}
		}
		if len(back) > 0 {
			return []state.Command{command(fleet.LoopProvision, catalog.HostRetire, catalog.HostRetireArgs{
				Hosts: back, Back: true, Why: fmt.Sprintf("pool %q shall have %d", p.Name, p.Size),
			})}
		}
		return []state.Command{command(fleet.LoopProvision, catalog.LaunchRecord, catalog.LaunchRecordArgs{
			Pool: p.Name, Count: min(p.Size-have, 50), Why: fmt.Sprintf("pool %q has %d of %d", p.Name, have, p.Size),
		})}
	case have > p.Size:
		var hosts []fleet.Host
		for _, h := range v.Hosts.All() {
			if h.Pool == p.Name && !h.Retiring && h.State != fleet.HostEnding {
				hosts = append(hosts, h)
			}
		}
		// First what does nothing, the emptiest next, the youngest of equals.
		slices.SortStableFunc(hosts, func(a, b fleet.Host) int {
			return cmp.Or(
				cmp.Compare(rank(a), rank(b)),
				cmp.Compare(v.UsedSlots(a.ID), v.UsedSlots(b.ID)),
				cmp.Compare(b.Launch, a.Launch), cmp.Compare(b.ID, a.ID))
		})
		var ids []fleet.HostID
		for _, h := range hosts[:have-p.Size] {
			ids = append(ids, h.ID)
		}
		return []state.Command{command(fleet.LoopProvision, catalog.HostRetire, catalog.HostRetireArgs{
			Hosts: ids, Why: fmt.Sprintf("pool %q has %d and shall have %d", p.Name, have, p.Size),
		})}
	}
	return nil
}

func rank(h fleet.Host) int {
	switch {
	case h.State == fleet.HostBooting:
		return 0
	case h.Draining:
		return 1
	case h.Cordoned || h.Lost || h.Suspect:
		return 2
	}
	return 3
}

// retired ends the hosts of p that are retired and idle, those that never came
// up, and those that are dead, as far as the guard allows.
func retired(now fleet.Time, v *state.View, p fleet.Pool, held bool) []state.Command {
	var idle, late, dead []fleet.HostID
	for id, h := range v.Hosts.All() {
		switch {
		case h.Pool != p.Name || h.State == fleet.HostEnding:
		case h.Lost:
			if !held {
				dead = append(dead, id)
			}
		case h.State == fleet.HostBooting && now.Sub(h.CreatedAt) > BootDeadline:
			late = append(late, id)
		case h.Retiring && v.UsedSlots(id) == 0:
			idle = append(idle, id)
		}
	}
	var out []state.Command
	for _, e := range []catalog.HostEndArgs{
		{Hosts: idle, Why: "retired and idle"},
		{Hosts: late, Why: fmt.Sprintf("not heard within %s of the launch", BootDeadline)},
		{Hosts: dead, Why: "silent, and to be replaced", Dead: true},
	} {
		if len(e.Hosts) > 0 {
			out = append(out, command(fleet.LoopProvision, catalog.HostEnd, e))
		}
	}
	return out
}

// pruneAtOnce bounds the launches that one command forgets.
const pruneAtOnce = 500

// compare holds our records against what a provider says.
func compare(now fleet.Time, v *state.View, l Listing, fx *Effects) []state.Command {
	var out []state.Command
	seen := make([]fleet.LaunchID, 0, len(l.Instances))
	for _, in := range l.Instances {
		seen = append(seen, in.Launch)
		rec, known := v.Launches.Get(in.Launch)
		host, there := v.Hosts.Get(in.Host)
		switch {
		case in.State == provider.Gone && there && host.Launch == in.Launch:
			why := "the provider says that the machine is no more"
			if in.Note != "" {
				why += " (" + in.Note + ")"
			}
			if host.State == fleet.HostEnding {
				why = host.Why
			}
			out = append(out, command(fleet.LoopProvision, catalog.HostGone, catalog.HostGoneArgs{Host: in.Host, Why: why}))
		case in.State == provider.Gone:
			fx.Forget = append(fx.Forget, in.Launch)
		case there && host.State == fleet.HostEnding,
			// Our record and the provider agree that it should not be there.
			known && !there && (rec.State == fleet.LaunchEnded || rec.State == fleet.LaunchFailed):
			fx.Terminate = append(fx.Terminate, in.Launch)
		}
	}
	// A host that shall be ended and that its provider has never made, or has
	// forgotten, is gone.
	for id, h := range v.Hosts.All() {
		rec, ok := v.Launches.Get(h.Launch)
		if ok && rec.Provider == l.Provider && h.State == fleet.HostEnding && rec.State == fleet.LaunchDone && !slices.Contains(seen, h.Launch) {
			out = append(out, command(fleet.LoopProvision, catalog.HostGone, catalog.HostGoneArgs{Host: id, Why: h.Why}))
		}
	}
	var over []fleet.LaunchID
	for id, rec := range v.Launches.All() {
		if rec.Provider == l.Provider && catalog.Prunable(now, rec) && !slices.Contains(seen, id) && len(over) < pruneAtOnce {
			over = append(over, id)
		}
	}
	if len(over) > 0 {
		out = append(out, command(fleet.LoopProvision, catalog.LaunchPrune, catalog.LaunchPruneArgs{Launches: over}))
	}
	return out
}

// provisioner observes the providers and carries effects out, each in a
// goroutine of its own: one slow machine never holds up the others.
type provisioner struct {
	cfg     Config
	mu      sync.Mutex
	busy    map[string]bool // effects under way
	running sync.WaitGroup
}

func newProvisioner(cfg Config) *provisioner {
	return &provisioner{cfg: cfg, busy: make(map[string]bool)}
}

// callTimeout bounds one call of a provider.
const callTimeout = 30 * time.Second

func (p *provisioner) wait() { p.running.Wait() }

func (p *provisioner) step(ctx context.Context, v *state.View) []state.Command {
	// What is stranded comes first: nothing is launched that nobody can launch.
	if out := strand(v, p.cfg.Providers); len(out) > 0 {
		return out
	}
	var listings []Listing
	for name, pr := range p.cfg.Providers {
		call, cancel := context.WithTimeout(ctx, 5*time.Second)
		instances, err := pr.List(call)
		cancel()
		if err != nil {
			p.cfg.Log.Warn("a provider does not list its machines", "provider", name, "err", err)
			continue
		}
		listings = append(listings, Listing{name, instances})
	}
	slices.SortFunc(listings, func(a, b Listing) int { return cmp.Compare(a.Provider, b.Provider) })
	// The view is taken after the listing: a machine that is listed has its
	// record in it.
	v = p.cfg.View()
	commands, fx := Provision(p.cfg.Now(), v, listings)
	if Paused(p.cfg.Now(), v, fleet.LoopProvision) {
		return commands
	}
	for _, id := range fx.Launch {
		p.do(ctx, v, "launch", id, p.launch)
	}
	for _, id := range fx.Terminate {
		p.do(ctx, v, "terminate", id, func(ctx context.Context, pr provider.Provider, _ *state.View, l fleet.Launch) error {
			return pr.Terminate(ctx, l.ID)
		})
	}
	for _, id := range fx.Forget {
		p.do(ctx, v, "forget", id, func(ctx context.Context, pr provider.Provider, _ *state.View, l fleet.Launch) error {
			return pr.Forget(ctx, l.ID)
		})
	}
	return commands
}

// do carries out one effect, unless it is under way.
func (p *provisioner) do(ctx context.Context, v *state.View, what string, id fleet.LaunchID,
	f func(context.Context, provider.Provider, *state.View, fleet.Launch) error) {
	l, ok := v.Launches.Get(id)
	pr := p.cfg.Providers[l.Provider]
	if !ok || pr == nil {
		return
	}
	key := fmt.Sprint(what, id)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.busy[key] {
		return
	}
	p.busy[key] = true
	p.running.Go(func() {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		if err := f(call, pr, v, l); err != nil && ctx.Err() == nil {
			p.cfg.Log.Warn("a provider did not do as asked", "call", what, "host", l.Host, "err", err)
		}
		p.mu.Lock()
		delete(p.busy, key)
		p.mu.Unlock()
	})
}

func (p *provisioner) launch(ctx context.Context, pr provider.Provider, v *state.View, l fleet.Launch) error {
	pool, _ := v.Pools.Get(l.Pool)
	_, err := pr.Launch(ctx, provider.Request{Launch: l.ID, Host: l.Host, Pool: l.Pool, Slots: pool.Slots, Join: p.cfg.Join()})
	args := catalog.LaunchReportArgs{Launch: l.ID}
	switch {
	case err == nil:
		args.Done = true
	case ctx.Err() != nil && errors.Is(err, ctx.Err()):
		// Whether the machine exists is not known: it is asked again, by the same id.
		args.Why, args.NextAt = "no answer", p.cfg.Now().Add(fleet.Second)
	case provider.IsPermanent(err):
		args.Failed, args.Why = true, err.Error()
	default:
		args.Why = err.Error()
		args.NextAt = p.cfg.Now().Add(min(fleet.Second<<min(l.Tries, 6), fleet.Minute))
	}
	propose(ctx, p.cfg, v.Term, command(fleet.LoopProvision, catalog.LaunchReport, args))
	return err
}
