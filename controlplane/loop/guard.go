package loop

import (
	"cmp"
	"fmt"
	"slices"

	"footplate/controlplane/catalog"
	"footplate/controlplane/state"
	"footplate/fleet"
	"footplate/fleet/lease"
)

// silence is a host that is not heard.
type silence struct {
	at   fleet.Time // since when
	pool int        // its place among the pools
}

// guard says of each pool, in their order, whether its silent hosts may be
// replaced: when too many fell silent at once, it is more likely that we are
// blind (P5).
//
// A hold begins when more hosts than the budget allows fell silent within one
// window of it, whenever that was; those that fall silent singly, over hours,
// are no wave. It lasts as long as more are silent than the budget allows, at
// whatever time they fell silent: hosts that flicker do not end it.
func guard(now fleet.Time, v *state.View) []lease.Held {
	b := lease.DefaultBudget()
	var pools []lease.PoolSilence
	var rows []fleet.Pool
	place := make(map[fleet.PoolName]int)
	for _, p := range v.Pools.All() {
		place[p.Name] = len(pools)
		pools, rows = append(pools, lease.PoolSilence{Pool: p.Name}), append(rows, p)
	}
	var silent []silence
	for _, h := range v.Hosts.All() {
		k, ok := place[h.Pool]
		switch {
		case !ok || h.State != fleet.HostReady:
			continue
		case h.Lost && rows[k].Provider == "none":
			continue // it left by itself, and nobody replaces it: it says nothing of the rest
		}
		pools[k].Expected++
		if h.Suspect || h.Lost {
			silent = append(silent, silence{h.SilentAt, k})
		}
	}
	replaced := 0
	for _, l := range v.Launches.All() {
		if k, ok := place[l.Pool]; ok && l.DeadAt != 0 && now.Sub(l.DeadAt) < b.Window {
			pools[k].Replaced++
			replaced++
		}
	}
	// judge asks about some of the silent hosts, as if the others were heard.
	// What the whole fleet is held for does not concern a pool that is heard.
	judge := func(of []silence) []lease.Held {
		asked := slices.Clone(pools)
		for _, s := range of {
			asked[s.pool].Silent++
		}
		answers := lease.Guard(asked, b)
		for k := range answers {
			if answers[k].Held && asked[k].Silent == 0 {
				answers[k] = lease.Held{Pool: asked[k].Pool, Why: fmt.Sprintf("every host of pool %q is heard", asked[k].Pool)}
			}
		}
		return answers
	}
	answers := judge(silent)
	for k := range answers {
		answers[k].Held = answers[k].Held && rows[k].HeldAt != 0
	}
	slices.SortFunc(silent, func(a, b silence) int { return cmp.Compare(a.at, b.at) })
	for i, end := 0, 0; i < len(silent); i++ {
		for end < len(silent) && silent[end].at.Sub(silent[i].at) < b.Window {
			end++
		}
		if i > 0 && silent[i].at == silent[i-1].at || end-i+replaced <= b.Hosts {
			continue
		}
		for k, h := range judge(silent[i:end]) {
			if h.Held {
				answers[k] = h
			}
		}
	}
	return answers
}

// hold records when the guard begins to hold something back in pool p, and when
// that is over.
func hold(v *state.View, p fleet.Pool, g lease.Held) []state.Command {
	switch {
	case g.Held && p.HeldAt == 0 && slices.ContainsFunc(hostsOf(v, p.Name), func(h fleet.Host) bool { return h.Lost && h.State == fleet.HostReady }):
	case !g.Held && p.HeldAt != 0:
	default:
		return nil
	}
	return []state.Command{command(fleet.LoopProvision, catalog.PoolHold, catalog.PoolHoldArgs{Pool: p.Name, Over: !g.Held, Why: g.Why})}
}

func hostsOf(v *state.View, pool fleet.PoolName) []fleet.Host {
	var out []fleet.Host
	for _, h := range v.Hosts.All() {
		if h.Pool == pool {
			out = append(out, h)
		}
	}
	return out
}
