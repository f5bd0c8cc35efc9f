// Package loop is what the leader does by itself: promote, dispatch, provision,
// watch, deliver, retain; a file a loop.
//
// # Design
//
// The problem: automation that holds state of its own, acts on events, and
// mixes deciding with doing cannot be tested, repeats itself after a crash, and
// goes static when an event is missed.
//
// The way chosen: each loop is a pure step over a view of the replicated state
// and what was observed beside it. It compares what is with what should be and
// returns commands; it has no clock, no goroutine and no I/O, so the simulator
// runs the very same code. An effect on the outside (launch a machine, end one)
// is first recorded by a command and then carried out from the record, so that
// a new leader goes on where the old one stopped. A thin runner steps each loop
// whenever the state has changed, and at least every TickEvery; it waits for
// the outcome of what it proposed before it steps again, so no step ever acts
// on a view without the results of the one before. Every command carries the
// term in which it was decided: Apply refuses it in another.
//
// The way not taken: reacting to events of Apply. An event that is lost in a
// change of leaders is lost for good, a state that is looked at again is not.
package loop

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
	"footplate/fleet/provider"
)

// The pace of the loops.
const (
	// TickEvery is how often a loop looks when nothing changes.
	TickEvery = 250 * time.Millisecond
	// WatchdogAfter: a leader one of whose loops has not decided for this long
	// gives up its office.
	WatchdogAfter = 15 * time.Second
	// StepEvery is how close two steps of a loop follow one another. Each log
	// entry wakes every loop: what changes within so short a time is seen in one
	// step, and the loops do not stand in the way of whoever makes the changes.
	StepEvery = 5 * time.Millisecond
	// With ten thousand hosts a step takes longer than that: then the next waits
	// for stepShare times as long: on a machine that is too small for its fleet the
	// loops must not take from the raft that they need.
	stepShare = 4
	stepMost  = TickEvery
	// DeliverEvery is the pause between two deliveries: what came meanwhile goes
	// with the next, and an action's line does not get in the way of the next
	// action.
	DeliverEvery = 50 * time.Millisecond
	// RetainEvery is the pause between two lots that leave the state: nobody
	// waits for it.
	RetainEvery = time.Second
)

// Config is what the loops need of the node that they run on.
type Config struct {
	View func() *state.View
	// WaitView returns when the state is newer than index, or ctx has ended.
	WaitView func(ctx context.Context, index uint64) (*state.View, error)
	Now      func() fleet.Time // the state clock
	Propose  func(ctx context.Context, c state.Command) (state.Outcome, error)
	// Listen gathers what the watch loop needs to know of hosts.
	Listen func(ctx context.Context, v *state.View) Heard
	// Providers are where hosts come from, by name.
	Providers map[string]provider.Provider
	// Sinks are where the channel goes beside the console, by name.
	Sinks map[string]Poster
	// Entry returns an entry of the record.
	Entry func(ctx context.Context, n fleet.EntryNo) (fleet.Entry, error)
	// Join is what a new machine is told.
	Join func() provider.Join
	// StepDown hands the office to another node.
	StepDown func()
	Log      *slog.Logger
}

// Decided says when each loop has last decided.
type Decided struct{ at [6]atomic.Int64 }

// Ago returns how long ago the loop that decided longest ago did.
func (d *Decided) Ago(now time.Time) time.Duration {
	var most time.Duration
	for i := range d.at {
		if t := d.at[i].Load(); t != 0 {
			most = max(most, now.Sub(time.Unix(0, t)))
		}
	}
	return most
}

// Run runs the loops until ctx ends: while this node leads.
func Run(ctx context.Context, cfg Config) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p := newProvisioner(cfg)
	var heard Heard // the watch loop's
	loops := []struct {
		name fleet.Loop
		rest time.Duration // after it has done something
		step func(ctx context.Context, v *state.View) []state.Command
	}{
		{fleet.LoopPromote, 0, func(_ context.Context, v *state.View) []state.Command { return Promote(cfg.Now(), v) }},
		{fleet.LoopDispatch, 0, func(_ context.Context, v *state.View) []state.Command { return Dispatch(cfg.Now(), v) }},
		{fleet.LoopProvision, 0, p.step},
		{fleet.LoopWatch, 0, func(ctx context.Context, v *state.View) []state.Command {
			heard = cfg.Listen(ctx, v)
			return Watch(cfg.Now(), v, heard)
		}},
		{fleet.LoopDeliver, DeliverEvery, func(_ context.Context, v *state.View) []state.Command { return Deliver(cfg.Now(), v) }},
		{fleet.LoopRetain, RetainEvery, func(_ context.Context, v *state.View) []state.Command { return Retain(cfg.Now(), v) }},
	}
	var decided Decided
	var all sync.WaitGroup
	for i, l := range loops {
		decided.at[i].Store(time.Now().UnixNano())
		all.Go(func() {
			r := runner{cfg: cfg, name: l.name, rest: l.rest, step: l.step, decided: &decided.at[i]}
			if l.name == fleet.LoopWatch {
				r.next = &heard.Next
			}
			r.run(ctx)
		})
	}
	for name, to := range cfg.Sinks {
		all.Go(func() { RunSink(ctx, cfg, name, to) })
	}
	all.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				if ago := decided.Ago(time.Now()); ago > WatchdogAfter {
					cfg.Log.Error("a loop has not decided for too long: giving up the office", "ago", ago)
					cfg.StepDown()
					cancel()
					return
				}
			}
		}
	})
	all.Wait()
	p.wait()
}

// runner steps one loop.
type runner struct {
	cfg     Config
	name    fleet.Loop
	rest    time.Duration
	step    func(ctx context.Context, v *state.View) []state.Command
	decided *atomic.Int64
	next    *fleet.Duration // until the next step, as the last one has found; nil, or 0, when it has not
}

func (r *runner) run(ctx context.Context) {
	for {
		began := time.Now()
		v := r.cfg.View()
		commands := r.step(ctx, v)
		took := time.Since(began)
		r.decided.Store(time.Now().UnixNano())
		if Paused(r.cfg.Now(), v, r.name) {
			commands = nil
		}
		r.propose(ctx, v, commands)
		if len(commands) > 0 {
			pause(ctx, r.rest)
		}
		pause(ctx, max(StepEvery, took+min(stepShare*took, stepMost))-time.Since(began))
		if ctx.Err() != nil {
			return
		}
		tick := TickEvery
		if r.next != nil && *r.next > 0 {
			tick = min(tick, r.next.Std())
		}
		wait, cancel := context.WithTimeout(ctx, tick)
		_, _ = r.cfg.WaitView(wait, v.Index) // also for what changed since the step
		cancel()
	}
}

func pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// Paused reports whether a loop is paused at now. The clock of the view itself
// stands still while nothing is logged, and the watch loop, which ends pauses,
// can be paused too: by that clock its pause might never be over.
func Paused(now fleet.Time, v *state.View, l fleet.Loop) bool {
	p, ok := v.Pauses.Get(l)
	return ok && p.Until > now
}

// propose logs commands and waits for what comes of them. What fails is
// decided anew from the state as it is then.
func (r *runner) propose(ctx context.Context, v *state.View, commands []state.Command) {
	var all sync.WaitGroup
	for _, c := range commands {
		all.Go(func() { propose(ctx, r.cfg, v.Term, c) })
	}
	all.Wait()
}

func propose(ctx context.Context, cfg Config, term uint64, c state.Command) {
	c.Term = term
	c.Salt = salt()
	out, err := cfg.Propose(ctx, c)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		cfg.Log.Warn("a loop's command has no outcome", "op", c.Op, "actor", c.By, "err", err)
	case out.Err != nil:
		cfg.Log.Warn("a loop's command was not possible", "op", c.Op, "actor", c.By, "err", out.Err)
	}
}

func salt() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// command makes a loop's command. Term and salt are the runner's to set.
func command(l fleet.Loop, o *op.Op, args any) state.Command {
	raw, err := json.Marshal(args)
	if err != nil {
		panic(fmt.Sprintf("loop: arguments of %s cannot be encoded: %v", o.Name, err))
	}
	return state.Command{
		Op: o.Name, Ver: o.Version(), By: fleet.Principal("loop:" + l), Role: fleet.System, Via: "loop/" + string(l), Args: raw,
	}
}
