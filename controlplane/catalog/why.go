package catalog

import (
	"fmt"

	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
	"footplate/fleet/queue"
)

// Why answers "build why".
type Why struct {
	Build fleet.BuildID `json:"build"`
	State string        `json:"state"`
	Text  string        `json:"text"` // in a sentence
}

// whyBuild says in a sentence why a build is not running: the first thing that
// stands in its way.
func whyBuild(env op.Env, b fleet.Build) string {
	v := env.View
	switch b.Stage {
	case fleet.StageFinished:
		s := fmt.Sprintf("build %d has ended: %s at %s", b.ID, b.Outcome, b.FinishedAt)
		if b.Why != "" {
			s += " (" + b.Why + ")"
		}
		return s
	case fleet.StageQueued:
		return fmt.Sprintf("build %d is queued: %s", b.ID, whyQueued(env, b))
	}
	waiting, running := 0, 0
	var held, live fleet.Attempt
	for _, t := range b.Tasks {
		switch {
		case t.Held != 0:
			held, _ = v.Attempts.Get(t.Held)
		case t.Live != 0:
			running++
			live, _ = v.Attempts.Get(t.Live)
		case t.Waiting():
			waiting++
		}
	}
	switch {
	case waiting > 0:
		s := fmt.Sprintf("build %d waits for a slot: %s", b.ID, whyWaiting(env, b))
		if running > 0 {
			s = fmt.Sprintf("build %d runs in part (%s running, %d waiting): %s", b.ID, count(running, "task"), waiting, whyWaiting(env, b))
		}
		return s
	case running > 0:
		s := fmt.Sprintf("build %d is running: %s on host %s, in %s since %s", b.ID, count(running, "task"), live.Host, live.Phase, live.PhaseAt)
		if h, ok := v.Hosts.Get(live.Host); ok && h.Suspect {
			s += fmt.Sprintf("; the host is %s: %s", h.Condition(), h.Why)
		}
		if b.Cancel {
			s += "; it is being cancelled"
		}
		return s
	}
	return fmt.Sprintf("build %d is exclusive and waits for proof that its attempt on host %s has ended (%s); \"build retry %d\" says that it has",
		b.ID, held.Host, held.Why, b.ID)
}

func whyQueued(env op.Env, b fleet.Build) string {
	v := env.View
	if g, ok := v.Gated(fleet.GatePromotion, b.Org, b.Pool); ok && g.Until > env.Now {
		return gateWhy("promotion", g)
	}
	if p, ok := v.Paused(fleet.LoopPromote); ok && p.Until > env.Now {
		return pauseWhy(p)
	}
	org, _ := v.Orgs.Get(b.Org)
	before := 0
	for q := range v.Queued.From(state.Queued{Org: b.Org, Priority: fleet.MaxPriority}) {
		if q.Org != b.Org || q.Build == b.ID {
			break
		}
		// What another gate holds back is passed by.
		if other, ok := v.Builds.Get(q.Build); ok {
			if _, gated := v.Gated(fleet.GatePromotion, other.Org, other.Pool); !gated {
				before++
			}
		}
	}
	using := v.SlotsOf(b.Org)
	if before > 0 || !queue.Fits(using, org.Slots, b.Unfinished()) {
		s := fmt.Sprintf("org %q uses %d of the %d slots of its plan", b.Org, using, org.Slots)
		if before > 0 {
			s += fmt.Sprintf(", and %s of it %s before this one", count(before, "build"), isAre(before))
		}
		return s
	}
	return "it will be promoted in a moment"
}

func isAre(n int) string {
	if n == 1 {
		return "is"
	}
	return "are"
}

func whyWaiting(env op.Env, b fleet.Build) string {
	v := env.View
	if g, ok := v.Gated(fleet.GateDispatch, b.Org, b.Pool); ok && g.Until > env.Now {
		return gateWhy("dispatch", g)
	}
	if p, ok := v.Paused(fleet.LoopDispatch); ok && p.Until > env.Now {
		return pauseWhy(p)
	}
	pool, _ := v.Pools.Get(b.Pool)
	row := poolRow(v, pool)
	switch {
	case row.Ready == 0 && row.Booting > 0:
		return fmt.Sprintf("%s of pool %q %s booting and none is ready", count(row.Booting, "host"), b.Pool, isAre(row.Booting))
	case row.Ready == 0 && row.Away > 0:
		return fmt.Sprintf("pool %q has no ready host: %s cordoned, draining, suspect or lost", b.Pool, plural(row.Away, "is", "are"))
	case row.Ready == 0:
		return fmt.Sprintf("pool %q has no hosts (%d wanted)", b.Pool, pool.Size)
	case freeSlots(v, b.Pool) == 0:
		return fmt.Sprintf("all %s of pool %q are taken, and %s for one", count(row.Slots, "slot"), b.Pool, plural(row.Waiting, "task waits", "tasks wait"))
	}
	return "a host will take it in a moment"
}

// freeSlots counts the slots of a pool that may be given a task now.
func freeSlots(v *state.View, pool fleet.PoolName) int {
	n := 0
	for _, h := range v.Hosts.All() {
		if h.Pool == pool && h.Schedulable() {
			n += max(0, h.Slots-v.UsedSlots(h.ID))
		}
	}
	return n
}

func gateWhy(what string, g fleet.Gate) string {
	s := fmt.Sprintf("%s is paused by %s until %s", what, g.By, g.Until)
	if g.Reason != "" {
		s += " (" + g.Reason + ")"
	}
	return s
}

func pauseWhy(p fleet.Pause) string {
	s := fmt.Sprintf("loop %s is paused by %s until %s", p.Loop, p.By, p.Until)
	if p.Reason != "" {
		s += " (" + p.Reason + ")"
	}
	return s
}
