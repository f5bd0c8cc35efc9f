package loop

import (
	"fmt"

	"footplate/controlplane/catalog"
	"footplate/controlplane/state"
	"footplate/fleet"
	"footplate/fleet/lease"
)

// Heard is what the leader knows of hosts beside the state: from its own ears,
// and from what the other nodes testify. Hosts and attempts that it does not
// list are fine.
type Heard struct {
	Hosts []Hearing
	// Unstarted are attempts that were delivered to their host, never reported,
	// and can no longer start there.
	Unstarted []fleet.AttemptID
	// Next is how long it takes at least until there is more to know, if nothing
	// is heard; 0 when that is not known.
	Next fleet.Duration
	// Recovered is for how long, by its own clock, this node has known of the
	// state's recovery epoch.
	Recovered fleet.Duration
}

// Hearing is what is known of one host.
type Hearing struct {
	Host fleet.HostID
	// Silent is for how long the leader has listened and heard nothing.
	Silent fleet.Duration
	// Known: this leader has heard it since it began to listen. Until then a
	// short silence says nothing.
	Known bool
	// Over: a majority of the nodes has testified that its lease has ended, and
	// nothing that was on its way to it can start any more.
	Over bool
	// Why says who testified, in words.
	Why string
}

// BootDeadline is how long a launched host may take until its agent is heard.
const BootDeadline = 2 * fleet.Minute

// Watch decides which hosts are suspect, which attempts are lost, and which
// overrides are over.
func Watch(now fleet.Time, v *state.View, heard Heard) []state.Command {
	var out []state.Command
	var suspect, again, doubt []fleet.HostID
	for _, h := range heard.Hosts {
		host, ok := v.Hosts.Get(h.Host)
		if !ok || host.State != fleet.HostReady {
			continue
		}
		pool, _ := v.Pools.Get(host.Pool)
		// A boot that was never heard counts as silent since the nodes began to
		// listen; it cannot have been for longer than it is here.
		here := now.Sub(host.JoinedAt)
		silent := min(h.Silent, here) >= pool.SuspectAfter
		switch {
		case silent && !host.Suspect:
			suspect = append(suspect, h.Host)
		case !silent && host.Suspect && h.Known:
			again = append(again, h.Host)
		case h.Over && here >= pool.FenceAfter+lease.Margin(pool.FenceAfter) && !host.Lost:
			out = append(out, command(fleet.LoopWatch, catalog.HostLose, catalog.HostLoseArgs{
				Host: h.Host, Boot: host.Boot, Incarnation: host.Incarnation, Why: h.Why,
			}))
		case host.Lost && !h.Over && pool.Provider != "none":
			// To replace it takes the same testimony as to declare its attempts
			// lost, and it must hold still: others may hear it again before this
			// node does.
			doubt = append(doubt, h.Host)
		}
		if silent && !host.Lost {
			if ids := eager(v, h.Host); len(ids) > 0 {
				out = append(out, command(fleet.LoopWatch, catalog.AttemptLose, catalog.AttemptLoseArgs{
					Attempts: ids, Why: fmt.Sprintf("host %s is silent, and the build asks for an eager retry", h.Host),
				}))
			}
		}
	}
	if len(suspect) > 0 {
		out = append(out, command(fleet.LoopWatch, catalog.HostSuspect, catalog.HostSuspectArgs{
			Hosts: suspect, Why: "its agent is not heard",
		}))
	}
	if len(doubt) > 0 {
		out = append(out, command(fleet.LoopWatch, catalog.HostSuspect, catalog.HostSuspectArgs{
			Hosts: doubt, Doubt: true, Why: "the nodes do not agree any more that it is silent",
		}))
	}
	if len(again) > 0 {
		out = append(out, command(fleet.LoopWatch, catalog.HostSuspect, catalog.HostSuspectArgs{Hosts: again, Again: true, Why: "its agent is heard again"}))
	}
	if len(heard.Unstarted) > 0 {
		out = append(out, command(fleet.LoopWatch, catalog.AttemptLose, catalog.AttemptLoseArgs{
			Attempts: heard.Unstarted, Why: "the host did not start it in time", Certain: true,
		}))
	}
	if v.Fence > 0 && heard.Recovered >= v.Fence+lease.Margin(v.Fence) {
		out = append(out, command(fleet.LoopWatch, catalog.ClusterUnfence, catalog.ClusterUnfenceArgs{Epoch: v.Epoch, After: heard.Recovered}))
	}
	var over catalog.OverrideExpireArgs
	for k, g := range v.Gates.All() {
		if g.Until <= now {
			over.Gates = append(over.Gates, k)
		}
	}
	for l, p := range v.Pauses.All() {
		if p.Until <= now {
			over.Pauses = append(over.Pauses, l)
		}
	}
	if len(over.Gates)+len(over.Pauses) > 0 {
		out = append(out, command(fleet.LoopWatch, catalog.OverrideExpire, over))
	}
	return out
}

// eager returns the attempts on host whose builds do not want to wait for the
// end of its lease.
func eager(v *state.View, host fleet.HostID) []fleet.AttemptID {
	var ids []fleet.AttemptID
	for _, at := range v.LiveOn(host) {
		if b, ok := v.Builds.Get(at.Build); ok && b.Spec.Retry == fleet.RetryEager {
			ids = append(ids, at.ID)
		}
	}
	return ids
}
