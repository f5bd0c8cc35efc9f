package catalog

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
	"footplate/fleet/lease"
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
		s := fmt.Sprintf("build %d has ended: %s at %s", b.ID, b.Outcome, moment(b.FinishedAt))
		if b.Why != "" {
			s += " (" + b.Why + ")"
		}
		return s
	case fleet.StageQueued:
		return fmt.Sprintf("build %d is queued: %s", b.ID, whyQueued(env, b))
	}
	waiting := 0
	var held fleet.Attempt
	var live []fleet.Attempt
	for _, t := range b.Tasks {
		switch {
		case t.Held != 0:
			held, _ = v.Attempts.Get(t.Held)
		case t.Live != 0:
			at, _ := v.Attempts.Get(t.Live)
			live = append(live, at)
		case t.Waiting():
			waiting++
		}
	}
	switch {
	case waiting > 0:
		s := fmt.Sprintf("build %d waits for a slot: %s", b.ID, whyWaiting(env, b))
		if len(live) > 0 {
			s = fmt.Sprintf("build %d runs in part (%s running, %d waiting): %s", b.ID, count(len(live), "task"), waiting, whyWaiting(env, b))
		}
		return s
	case len(live) > 0:
		s := fmt.Sprintf("build %d is running: %s", b.ID, runningWords(env, live))
		if b.Cancel {
			s += "; it is being cancelled"
		}
		return s
	}
	return fmt.Sprintf("build %d is exclusive and waits for proof that its attempt on host %s has ended (%s); \"build retry %d\" says that it has",
		b.ID, held.Host, held.Why, b.ID)
}

// runningWords says where the attempts are and what they do.
func runningWords(env op.Env, live []fleet.Attempt) string {
	var hosts []string
	var phases []fleet.Phase
	for _, at := range live {
		hosts, phases = append(hosts, string(at.Host)), append(phases, at.Phase)
	}
	hosts = slices.Compact(slices.Sorted(slices.Values(hosts)))
	s := fmt.Sprintf("%s on %s, ", count(len(live), "task"), names(hosts))
	if len(live) == 1 {
		s += phaseWords(live[0].Phase, "its")
		if d := env.Now.Sub(live[0].PhaseAt) / fleet.Second * fleet.Second; d > 0 {
			s += " for " + d.String()
		}
	} else {
		slices.SortFunc(phases, func(a, b fleet.Phase) int { return rank(b) - rank(a) })
		var parts []string
		for len(phases) > 0 {
			n := 1
			for n < len(phases) && phases[n] == phases[0] {
				n++
			}
			which := strconv.Itoa(n)
			if n == len(live) {
				which = "all"
			}
			parts = append(parts, which+" "+phaseWords(phases[0], "their"))
			phases = phases[n:]
		}
		s += strings.Join(parts, ", ")
	}
	for _, id := range hosts {
		if h, ok := env.View.Hosts.Get(fleet.HostID(id)); ok && h.Suspect {
			s += fmt.Sprintf("; host %s is %s: %s", id, h.Condition(), h.Why)
		}
	}
	return s
}

// phaseWords says what an attempt does in a phase.
func phaseWords(p fleet.Phase, whose string) string {
	switch p {
	case fleet.PhaseAssigned:
		return "being handed over"
	case fleet.PhaseSetup:
		return "being set up"
	case fleet.PhaseSteps:
		return "in " + whose + " steps"
	case fleet.PhaseUpload:
		return "handing over the rest of " + whose + " output"
	}
	return "in " + string(p)
}

func whyQueued(env op.Env, b fleet.Build) string {
	v := env.View
	if g, ok := v.Gated(fleet.GatePromotion, b.Org, b.Pool); ok && g.Until > env.Now {
		return gateWhy("promotion", g)
	}
	if g, ok := v.Gated(fleet.GateDispatch, b.Org, b.Pool); ok && g.Until > env.Now {
		return gateWhy("dispatch", g)
	}
	if p, ok := v.Paused(fleet.LoopPromote); ok && p.Until > env.Now {
		return pauseWhy(p)
	}
	// What gates and pools that are shut hold back is passed by; room in the plan
	// is kept for the first of it, as package queue says.
	rooms := Rooms(v)
	org, _ := v.Orgs.Get(b.Org)
	before, using := 0, v.SlotsOf(b.Org)
	this := state.Queued{Org: b.Org, Pool: b.Pool, Priority: b.Priority, Build: b.ID}
	var shut []state.Queued
	for lane := range v.LanesOf(b.Org) {
		_, held := v.Gated(fleet.GatePromotion, b.Org, lane.Pool)
		_, stopped := v.Gated(fleet.GateDispatch, b.Org, lane.Pool)
		i := slices.IndexFunc(rooms, func(r queue.Room) bool { return r.Pool == lane.Pool })
		switch {
		case held || stopped || i < 0:
		case rooms[i].Open():
			for q := range v.Behind(lane) {
				if inOrder(q, this) >= 0 {
					break
				}
				before++
			}
		case lane.Pool == b.Pool:
			return heldBack(v, b.Pool)
		case rooms[i].Slots > 0 && inOrder(lane, this) < 0:
			shut = append(shut, lane)
		}
	}
	kept := ""
	need := b.Unfinished()
	if len(shut) > 0 {
		first, _ := v.Builds.Get(slices.MinFunc(shut, inOrder).Build)
		need += first.Unfinished()
		kept = fmt.Sprintf("; %s kept for build %d, which is before this one and waits for pool %q",
			plural(first.Unfinished(), "is", "are"), first.ID, first.Pool)
	}
	if before > 0 || !queue.Fits(using, org.Slots, need) {
		s := fmt.Sprintf("org %q uses %d of the %d slots of its plan", b.Org, using, org.Slots) + stuckWords(v, b.Org) + kept
		if before > 0 {
			s += fmt.Sprintf(", and %s of it %s before this one", count(before, "build"), isAre(before))
		}
		return s
	}
	return "it will be promoted in a moment"
}

// heldBack says why nothing is promoted to a pool: as many tasks wait for a slot
// of it as it may have waiting.
func heldBack(v *state.View, name fleet.PoolName) string {
	pool, _ := v.Pools.Get(name)
	row := poolRow(v, pool)
	tasks := plural(row.Waiting, "task waits", "tasks wait")
	if row.Slots > 0 {
		return fmt.Sprintf("held back: pool %q has %s, and %s for one already; it is promoted when fewer than %d do",
			name, count(row.Slots, "slot"), tasks, queue.Room{Slots: row.Slots}.Mark())
	}
	s := fmt.Sprintf("held back: %s", noHost(pool, row))
	if row.Waiting > 0 {
		s += fmt.Sprintf(", and %s for a slot already", tasks)
	}
	switch {
	case row.Booting+row.Away > 0:
	case pool.Provider == "none":
		s += fmt.Sprintf("; start an agent with --pool %s", name)
	case pool.Size == 0:
		s += fmt.Sprintf("; \"pool scale %s 1\" gives it one", name)
	}
	return s
}

// noHost says why a pool has no host that takes work.
func noHost(pool fleet.Pool, row PoolRow) string {
	switch {
	case pool.StrandedAt != 0:
		return fmt.Sprintf("pool %q has no ready host: %s", pool.Name, strandedWords(pool))
	case row.Booting > 0:
		return fmt.Sprintf("%s of pool %q %s booting and none is ready", count(row.Booting, "host"), pool.Name, isAre(row.Booting))
	case row.Away > 0:
		s := fmt.Sprintf("pool %q has no ready host: %s cordoned, draining, suspect or lost", pool.Name, plural(row.Away, "is", "are"))
		if pool.HeldAt != 0 {
			s += "; " + heldWords(pool)
		}
		return s
	}
	return fmt.Sprintf("pool %q has no hosts (%d wanted)", pool.Name, pool.Size)
}

// stuckWords names the pools in which builds of org hold slots of its plan and
// wait for a host that is not there.
func stuckWords(v *state.View, org fleet.OrgName) string {
	var stuck []string
	for _, p := range v.Pools.All() {
		if v.DepthOf(p.Name) == 0 || poolRow(v, p).Ready > 0 {
			continue
		}
		n := 0
		for w := range v.Waiting.From(state.Waiting{Pool: p.Name, Priority: fleet.MaxPriority}) {
			if w.Pool != p.Name {
				break
			}
			if b, ok := v.Builds.Get(w.Build); ok && b.Org == org {
				n++
			}
		}
		if n > 0 {
			stuck = append(stuck, fmt.Sprintf("%d in pool %q, which has no ready host", n, p.Name))
		}
	}
	if len(stuck) == 0 {
		return ""
	}
	return " (" + strings.Join(stuck, "; ") + ")"
}

func isAre(n int) string {
	if n == 1 {
		return "is"
	}
	return "are"
}

func whyWaiting(env op.Env, b fleet.Build) string {
	v := env.View
	if v.Fence > 0 {
		return FenceWords(v)
	}
	if g, ok := v.Gated(fleet.GateDispatch, b.Org, b.Pool); ok && g.Until > env.Now {
		return gateWhy("dispatch", g)
	}
	if p, ok := v.Paused(fleet.LoopDispatch); ok && p.Until > env.Now {
		return pauseWhy(p)
	}
	pool, _ := v.Pools.Get(b.Pool)
	row := poolRow(v, pool)
	switch {
	case row.Ready == 0:
		return noHost(pool, row)
	case freeSlots(v, b.Pool) == 0:
		return fmt.Sprintf("all %s of pool %q are taken, and %s for one", count(row.Slots, "slot"), b.Pool, plural(row.Waiting, "task waits", "tasks wait"))
	}
	return "a host will take it in a moment"
}

// FenceWords says why nothing is given to hosts after a recovery.
func FenceWords(v *state.View) string {
	began := fleet.Time(0)
	if n := len(v.Recoveries); n > 0 {
		began = v.Recoveries[n-1].At
	}
	return fmt.Sprintf("the cluster was recovered at %s, and hosts are given nothing until what they may still run has ended by itself (%s)",
		moment(began), v.Fence+lease.Margin(v.Fence))
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

// moment is a time within a sentence, for people.
func moment(t fleet.Time) string { return t.Std().Format("2006-01-02 15:04:05 UTC") }

func gateWhy(what string, g fleet.Gate) string {
	s := fmt.Sprintf("%s is paused by %s until %s", what, g.By, moment(g.Until))
	if g.Reason != "" {
		s += " (" + g.Reason + ")"
	}
	return s
}

func pauseWhy(p fleet.Pause) string {
	s := fmt.Sprintf("loop %s is paused by %s until %s", p.Loop, p.By, moment(p.Until))
	if p.Reason != "" {
		s += " (" + p.Reason + ")"
	}
	return s
}
