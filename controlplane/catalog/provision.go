package catalog

import (
	"fmt"
	"strings"

	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
)

// What the watch and provision loops say about hosts.

// HostSuspectArgs names hosts that fell silent, or that are heard again.
type HostSuspectArgs struct {
	Hosts []fleet.HostID `json:"hosts"`
	Again bool           `json:"again,omitempty"` // heard again
	Doubt bool           `json:"doubt,omitempty"` // were lost, and are only suspect now
	Why   string         `json:"why"`
}

// HostSuspect marks hosts that get no new work because they are silent.
var HostSuspect = op.Internal(op.Spec{
	Name: "host suspect", Summary: "mark hosts that fell silent, or that are heard again", Role: fleet.System, Record: op.Audit, Show: state.ShowLine,
}, func(tx *state.Tx, _ op.Meta, a HostSuspectArgs) (op.Result, error) {
	var back []string // of those that were lost, which was told
	for _, id := range a.Hosts {
		h, ok := tx.Hosts.Get(id)
		if !ok || h.State != fleet.HostReady {
			continue
		}
		if !h.Suspect {
			h.SilentAt = tx.At
		}
		h.Suspect, h.Why = !a.Again, a.Why
		if h.Lost && (a.Again || a.Doubt) {
			back = append(back, string(id))
			h.Lost = false
		}
		if a.Again {
			h.Why, h.SilentAt = "", 0
		}
		tx.Hosts.Put(id, h)
	}
	switch {
	case len(back) == 0:
		return op.Result{Text: "marked", Quiet: true}, nil
	case a.Doubt:
		return op.Result{Text: fmt.Sprintf("%s may live: %s", names(back), a.Why)}, nil
	}
	return op.Result{Text: fmt.Sprintf("%s back: %s", names(back), a.Why)}, nil
})

// HostLoseArgs names a host whose lease has certainly ended.
type HostLoseArgs struct {
	Host fleet.HostID `json:"host"`
	// Boot and Incarnation are those that were silent: an agent that has joined
	// since was not. Empty means any.
	Boot        fleet.BootID      `json:"boot,omitempty"`
	Incarnation fleet.Incarnation `json:"incarnation,omitempty"`
	Why         string            `json:"why"`
}

// HostLose declares the attempts of a silent host lost. The host itself stays:
// whether it is replaced is another verdict, with a guard of its own.
var HostLose = op.Internal(op.Spec{
	Name: "host lose", Summary: "declare the attempts of a silent host lost", Role: fleet.System, Record: op.Audit, Show: state.ShowLine,
}, func(tx *state.Tx, _ op.Meta, a HostLoseArgs) (op.Result, error) {
	h, ok := tx.Hosts.Get(a.Host)
	if !ok || h.State != fleet.HostReady || h.Lost || a.Boot != "" && (h.Boot != a.Boot || h.Incarnation != a.Incarnation) {
		return op.Result{Quiet: true}, nil
	}
	if !h.Suspect {
		h.SilentAt = tx.At
	}
	h.Suspect, h.Lost, h.Why = true, true, a.Why
	tx.Hosts.Put(h.ID, h)
	var ids []fleet.AttemptID
	for _, at := range tx.View().LiveOn(h.ID) {
		ids = append(ids, at.ID)
	}
	text := fmt.Sprintf("host %s is lost: %s", h.ID, a.Why)
	if n, lost := lose(tx, ids, fmt.Sprintf("host %s: %s", h.ID, a.Why), false); n > 0 {
		text = lost
	}
	return op.Result{Text: text}, nil
})

// HostRetireArgs names hosts that shall be ended when they are idle.
type HostRetireArgs struct {
	Hosts []fleet.HostID `json:"hosts"`
	Back  bool           `json:"back,omitempty"` // no: keep them after all
	Why   string         `json:"why"`
}

// HostRetire drains hosts for good, or keeps them after all.
var HostRetire = op.Internal(op.Spec{
	Name: "host retire", Summary: "drain hosts to end them", Role: fleet.System, Record: op.Audit, Show: state.ShowLine,
}, func(tx *state.Tx, _ op.Meta, a HostRetireArgs) (op.Result, error) {
	var ids []string
	for _, id := range a.Hosts {
		h, ok := tx.Hosts.Get(id)
		if !ok || h.Retiring != a.Back || h.State == fleet.HostEnding {
			continue
		}
		h.Retiring, h.Why = !a.Back, a.Why
		tx.Hosts.Put(id, h)
		ids = append(ids, string(id))
	}
	if len(ids) == 0 {
		return op.Result{Quiet: true}, nil
	}
	did := "drained to be ended"
	if a.Back {
		did = "kept after all"
	}
	return op.Result{Text: fmt.Sprintf("%s %s: %s", names(ids), did, a.Why)}, nil
})

// HostEndArgs names hosts that the provider shall end.
type HostEndArgs struct {
	Hosts []fleet.HostID `json:"hosts"`
	Why   string         `json:"why"`
	// Dead: the host is silent, and whatever ran on it has ended. Without it,
	// only an idle host is ended.
	Dead bool `json:"dead,omitempty"`
}

// HostEnd records that hosts shall be ended, before the provider is told.
var HostEnd = op.Internal(op.Spec{
	Name: "host end", Summary: "record that hosts shall be ended", Role: fleet.System, Record: op.Audit, Show: state.ShowLine,
}, func(tx *state.Tx, _ op.Meta, a HostEndArgs) (op.Result, error) {
	var ids []string
	for _, id := range a.Hosts {
		h, ok := tx.Hosts.Get(id)
		if !ok || h.State == fleet.HostEnding || a.Dead && !h.Lost && h.State == fleet.HostReady {
			continue
		}
		if tx.View().UsedSlots(id) > 0 {
			continue
		}
		h.State, h.Why = fleet.HostEnding, a.Why
		tx.Hosts.Put(id, h)
		if l, ok := tx.Launches.Get(h.Launch); ok && a.Dead {
			l.DeadAt = tx.At
			tx.Launches.Put(l.ID, l)
		}
		ids = append(ids, string(id))
	}
	if len(ids) == 0 {
		return op.Result{Quiet: true}, nil
	}
	return op.Result{Text: fmt.Sprintf("ending %s: %s", names(ids), a.Why)}, nil
})

// HostGoneArgs names a host that is no more.
type HostGoneArgs struct {
	Host fleet.HostID `json:"host"`
	Why  string       `json:"why"`
}

// HostGone takes a host out: the provider says that the machine is no more, so
// whatever ran on it has certainly ended.
var HostGone = op.Internal(op.Spec{
	Name: "host gone", Summary: "take out a host that is no more", Role: fleet.System, Record: op.Audit, Show: state.ShowLine,
}, func(tx *state.Tx, _ op.Meta, a HostGoneArgs) (op.Result, error) {
	h, ok := tx.Hosts.Get(a.Host)
	if !ok {
		return op.Result{Quiet: true}, nil
	}
	text := fmt.Sprintf("host %s is gone: %s", h.ID, a.Why)
	if n, lost := lose(tx, attemptsOn(tx, h.ID), fmt.Sprintf("host %s is gone: %s", h.ID, a.Why), true); n > 0 {
		text = lost
	}
	if l, ok := tx.Launches.Get(h.Launch); ok {
		l.State = fleet.LaunchEnded
		tx.Launches.Put(l.ID, l)
	}
	tx.Hosts.Delete(h.ID)
	return op.Result{Text: text}, nil
})

// LaunchRecordArgs says how many hosts to launch.
type LaunchRecordArgs struct {
	Pool  fleet.PoolName `json:"pool"`
	Count int            `json:"count"`
	Why   string         `json:"why"`
}

// LaunchRecord records launches, before the provider is called.
var LaunchRecord = op.Internal(op.Spec{
	Name: "launch record", Summary: "record launches before the provider is called", Role: fleet.System, Record: op.Audit, Show: state.ShowLine,
}, func(tx *state.Tx, _ op.Meta, a LaunchRecordArgs) (op.Result, error) {
	p, err := findPool(tx.View(), a.Pool)
	if err != nil {
		return op.Result{}, err
	}
	// Counted again here: of two loops that saw the same gap, one launches.
	if have := Supply(tx.View(), a.Pool); have+a.Count > p.Size {
		a.Count = p.Size - have
	}
	if a.Count <= 0 {
		return op.Result{Quiet: true}, nil
	}
	var ids []string
	for range a.Count {
		id, host := nextHost(tx, p.Name)
		tx.Launches.Put(id, fleet.Launch{
			ID: id, Pool: p.Name, Provider: p.Provider, Host: host, State: fleet.LaunchWanted, At: tx.At, NextAt: tx.At,
		})
		tx.Hosts.Put(host, fleet.Host{
			ID: host, Pool: p.Name, Launch: id, State: fleet.HostBooting, Slots: p.Slots, CreatedAt: tx.At,
		})
		ids = append(ids, string(host))
	}
	return op.Result{Text: fmt.Sprintf("launching %s: %s", names(ids), a.Why)}, nil
})

// nextHost gives the next launch its number and its host a name that no host
// which joined by itself has.
func nextHost(tx *state.Tx, pool fleet.PoolName) (fleet.LaunchID, fleet.HostID) {
	for {
		tx.Meta.Launch++
		host := fleet.HostID(fmt.Sprintf("%s-%d", pool, tx.Meta.Launch))
		if _, taken := tx.Hosts.Get(host); !taken {
			return tx.Meta.Launch, host
		}
	}
}

// Supply counts the hosts of a pool that are there or on their way, and meant
// to stay.
func Supply(v *state.View, pool fleet.PoolName) int {
	n := 0
	for _, h := range v.Hosts.All() {
		if h.Pool == pool && h.State != fleet.HostEnding && !h.Retiring {
			n++
		}
	}
	return n
}

// LaunchReportArgs is what a provider said.
type LaunchReportArgs struct {
	Launch fleet.LaunchID `json:"launch"`
	Done   bool           `json:"done,omitempty"`
	Failed bool           `json:"failed,omitempty"` // it will never exist
	Why    string         `json:"why,omitempty"`
	NextAt fleet.Time     `json:"next_at,omitempty"` // neither: try again then
}

// LaunchReport records what a provider said of a launch.
var LaunchReport = op.Internal(op.Spec{
	Name: "launch report", Summary: "record what a provider said of a launch", Role: fleet.System, Record: op.Audit, Show: state.ShowLine,
}, func(tx *state.Tx, _ op.Meta, a LaunchReportArgs) (op.Result, error) {
	l, ok := tx.Launches.Get(a.Launch)
	if !ok || l.State != fleet.LaunchWanted {
		return op.Result{Quiet: true}, nil
	}
	l.Tries++
	l.Why = a.Why
	// A host whose agent has joined does exist, whatever the provider says.
	h, _ := tx.Hosts.Get(l.Host)
	switch {
	case a.Done, h.Launch == l.ID && h.State == fleet.HostReady:
		l.State = fleet.LaunchDone
		tx.Launches.Put(l.ID, l)
		return op.Result{Quiet: true}, nil
	case a.Failed:
		l.State = fleet.LaunchFailed
		tx.Launches.Put(l.ID, l)
		tx.Hosts.Delete(l.Host)
		return op.Result{Text: fmt.Sprintf("launch of host %s failed: %s", l.Host, a.Why)}, nil
	}
	l.NextAt = a.NextAt
	tx.Launches.Put(l.ID, l)
	return op.Result{
		Text:  fmt.Sprintf("launch of host %s did not work (try %d), next try at %s: %s", l.Host, l.Tries, a.NextAt, strings.TrimSpace(a.Why)),
		Quiet: l.Tries > 1,
	}, nil
})

// LaunchKeep is for how long a launch is remembered at least: longer than any
// call of a provider can be under way.
const LaunchKeep = fleet.Day

// LaunchPruneArgs names launches that are over and that no provider lists.
type LaunchPruneArgs struct {
	Launches []fleet.LaunchID `json:"launches"`
}

// LaunchPrune forgets launches that are over. While a provider lists a machine,
// its launch says what shall become of it, so that the provider's word is
// needed; its whole life is in the record.
var LaunchPrune = op.Internal(op.Spec{
	Name: "launch prune", Summary: "forget launches that are over", Role: fleet.System,
}, func(tx *state.Tx, _ op.Meta, a LaunchPruneArgs) (op.Result, error) {
	n := 0
	for _, id := range a.Launches {
		if l, ok := tx.Launches.Get(id); ok && Prunable(tx.At, l) {
			tx.Launches.Delete(id)
			n++
		}
	}
	return op.Result{Text: fmt.Sprintf("forgot %s", plural(n, "launch", "launches")), Quiet: true}, nil
})

// Prunable reports whether a launch is over and old.
func Prunable(now fleet.Time, l fleet.Launch) bool {
	return (l.State == fleet.LaunchEnded || l.State == fleet.LaunchFailed) && l.At.Add(LaunchKeep) <= now
}

// PoolHoldArgs says that the guard holds a pool, or does no more.
type PoolHoldArgs struct {
	Pool fleet.PoolName `json:"pool"`
	Over bool           `json:"over,omitempty"`
	Why  string         `json:"why"`
}

// PoolHold records that the guard holds back the replacement of a pool's silent
// hosts, and tells people: once when it begins, and once when it is over.
var PoolHold = op.Internal(op.Spec{
	Name: "pool hold", Summary: "hold back the replacement of silent hosts", Role: fleet.System, Record: op.Audit, Show: state.ShowLine,
}, func(tx *state.Tx, _ op.Meta, a PoolHoldArgs) (op.Result, error) {
	p, ok := tx.Pools.Get(a.Pool)
	if !ok || (p.HeldAt != 0) != a.Over {
		return op.Result{Quiet: true}, nil
	}
	text := fmt.Sprintf("silent hosts of pool %q are replaced again: %s", p.Name, a.Why)
	p.HeldAt, p.HeldWhy = 0, ""
	if !a.Over {
		p.HeldAt, p.HeldWhy = tx.At, a.Why
		text = fmt.Sprintf("silent hosts of pool %q are not replaced for now (if they are dead, \"host remove\" says so): %s", p.Name, a.Why)
	}
	tx.Pools.Put(p.Name, p)
	return op.Result{Text: text}, nil
})

// PoolStrandArgs says that the leader does not have a pool's provider, or has
// it again.
type PoolStrandArgs struct {
	Pool fleet.PoolName `json:"pool"`
	Over bool           `json:"over,omitempty"`
}

// PoolStrand records that nobody launches and ends the hosts of a pool, and
// tells people: once when it begins, and once when it is over.
var PoolStrand = op.Internal(op.Spec{
	Name: "pool strand", Summary: "note that the provider of a pool is not there", Role: fleet.System, Record: op.Audit, Show: state.ShowLine,
}, func(tx *state.Tx, _ op.Meta, a PoolStrandArgs) (op.Result, error) {
	p, ok := tx.Pools.Get(a.Pool)
	if !ok || (p.StrandedAt != 0) != a.Over {
		return op.Result{Quiet: true}, nil
	}
	p.StrandedAt = 0
	text := fmt.Sprintf("the leader has the provider %q of pool %q again", p.Provider, p.Name)
	if !a.Over {
		p.StrandedAt = tx.At
		text = strandedWords(p)
	}
	tx.Pools.Put(p.Name, p)
	return op.Result{Text: text}, nil
})

// strandedWords says what becomes of a pool without its provider.
func strandedWords(p fleet.Pool) string {
	return fmt.Sprintf("hosts of pool %q are neither launched nor ended since %s: the leader was started without the provider %q", p.Name, moment(p.StrandedAt), p.Provider)
}
