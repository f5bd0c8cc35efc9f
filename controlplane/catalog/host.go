package catalog

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
)

// HostListArgs selects hosts.
type HostListArgs struct {
	Pool  fleet.PoolName `json:"pool" flag:"pool" complete:"pool" help:"only of this pool"`
	State string         `json:"state" flag:"state" enum:"booting,ready,cordoned,draining,retiring,suspect,lost,ending" help:"only in this condition"`
}

// HostList lists the hosts.
var HostList = op.Query(op.Spec{
	Name:     "host list",
	Summary:  "list the hosts",
	Role:     fleet.Viewer,
	Examples: []string{"host list", "host list --pool linux --state suspect -o name"},
}, func(_ context.Context, env op.Env, a HostListArgs) ([]HostRow, error) {
	if err := checkNames(env.View, "", a.Pool); err != nil {
		return nil, err
	}
	rows := []HostRow{}
	for _, h := range env.View.Hosts.All() {
		if (a.Pool == "" || h.Pool == a.Pool) && (a.State == "" || h.Condition() == a.State) {
			rows = append(rows, hostRow(env, h))
		}
	}
	return rows, nil
})

// HostRow is a host as lists show it.
type HostRow struct {
	ID      fleet.HostID   `json:"id" col:"HOST" id:"true"`
	Pool    fleet.PoolName `json:"pool" col:"POOL"`
	State   string         `json:"state" col:"STATE"`
	Used    int            `json:"used" col:"USED"`
	Slots   int            `json:"slots" col:"SLOTS"`
	Heard   string         `json:"heard" col:"HEARD" help:"since the answering node heard its beat"`
	Since   fleet.Time     `json:"since" col:"SINCE" wide:"true"`
	Version string         `json:"version" col:"AGENT" wide:"true"`
	Why     string         `json:"why,omitempty" col:"WHY" wide:"true"`
}

func hostRow(env op.Env, h fleet.Host) HostRow {
	row := HostRow{
		ID: h.ID, Pool: h.Pool, State: h.Condition(), Used: env.View.UsedSlots(h.ID), Slots: h.Slots,
		Since: h.CreatedAt, Version: h.Version, Why: h.Why,
	}
	if ago, ok := env.World.Heard(h.ID); ok {
		row.Heard = (ago / 100 * 100).String()
	}
	return row
}

// HostArgs names one host.
type HostArgs struct {
	Host fleet.HostID `json:"host" arg:"HOST" required:"true" complete:"host" help:"the host"`
}

// HostShow shows a host and what runs on it.
var HostShow = op.Query(op.Spec{
	Name:     "host show",
	Summary:  "show a host and what runs on it",
	Role:     fleet.Viewer,
	Examples: []string{"host show linux-1"},
}, func(_ context.Context, env op.Env, a HostArgs) (HostDetail, error) {
	h, err := findHost(env.View, a.Host)
	if err != nil {
		return HostDetail{}, err
	}
	d := HostDetail{HostRow: hostRow(env, h), Boot: h.Boot, Incarnation: h.Incarnation, Running: []AttemptRow{}}
	for _, at := range env.View.LiveOn(h.ID) {
		d.Running = append(d.Running, attemptRow(env.View, at))
	}
	return d, nil
})

// HostDetail is a host in full.
type HostDetail struct {
	HostRow
	Boot        fleet.BootID      `json:"boot"`
	Incarnation fleet.Incarnation `json:"incarnation"`
	Running     []AttemptRow      `json:"running"`
}

func findHost(v *state.View, id fleet.HostID) (fleet.Host, error) {
	h, ok := v.Hosts.Get(id)
	if !ok {
		return h, fleet.NotFoundf("there is no host %q", id).WithHint("footplate host list")
	}
	return h, nil
}

// HostsArgs names hosts.
type HostsArgs struct {
	Hosts []fleet.HostID `json:"hosts" arg:"HOST" required:"true" complete:"host" help:"the hosts; - reads names from standard input"`
}

// HostCordon gives hosts no new work.
var HostCordon = op.Mutation(op.Spec{
	Name:     "host cordon",
	Summary:  "give hosts no new work; what runs goes on",
	Role:     fleet.Responder,
	Risk:     op.Safe,
	Show:     state.ShowLine,
	Examples: []string{"host cordon linux-3", "host cordon linux-3 linux-4 --reason 'disk errors'"},
}, func(tx *state.Tx, m op.Meta, a HostsArgs) (op.Result, error) {
	return eachHost(tx, a.Hosts, "cordoned", func(h *fleet.Host) (string, bool) {
		if h.Cordoned {
			return "is cordoned already", false
		}
		h.Cordoned, h.Why = true, because("cordoned", m)
		return "gets no new work", true
	})
})

// HostUncordon lets hosts get new work again, also those that were drained.
var HostUncordon = op.Mutation(op.Spec{
	Name:     "host uncordon",
	Summary:  "let cordoned or drained hosts get new work again",
	Role:     fleet.Responder,
	Risk:     op.Safe,
	Show:     state.ShowLine,
	Examples: []string{"host uncordon linux-3", "host uncordon linux-3 linux-4"},
}, func(tx *state.Tx, _ op.Meta, a HostsArgs) (op.Result, error) {
	return eachHost(tx, a.Hosts, "uncordoned", func(h *fleet.Host) (string, bool) {
		if !h.Cordoned && !h.Draining {
			return "is not cordoned", false
		}
		h.Cordoned, h.Draining = false, false
		if !h.Retiring && !h.Suspect && !h.Lost {
			h.Why = ""
		}
		return "may get new work", true
	})
})

// HostDrain empties hosts.
var HostDrain = op.Mutation(op.Spec{
	Name:     "host drain",
	Summary:  "give hosts no new work and let what runs finish",
	Role:     fleet.Operator,
	Risk:     op.Disruptive,
	Show:     state.ShowLine,
	Examples: []string{"host drain linux-3", "host drain linux-3 linux-4 --reason 'kernel update'"},
}, func(tx *state.Tx, m op.Meta, a HostsArgs) (op.Result, error) {
	v := tx.View()
	return eachHost(tx, a.Hosts, "draining", func(h *fleet.Host) (string, bool) {
		if h.Draining {
			return "is draining already", false
		}
		h.Draining, h.Why = true, because("drained", m)
		return fmt.Sprintf("gets no new work; %s on it may finish", count(v.UsedSlots(h.ID), "task")), true
	})
})

// HostRemove takes out hosts that are lost for good: a person says that they
// are dead.
var HostRemove = op.Mutation(op.Spec{
	Name:    "host remove",
	Summary: "take out hosts that are lost for good",
	Long: "Whoever removes a lost host says that it is dead: what ran on it has ended, and\n" +
		"exclusive builds that wait for proof of that go on. A host of one's own leaves the\n" +
		"list; one that footplate has launched is ended by its provider and replaced, also\n" +
		"when the guard holds that back. One that is ending, and stays so because its provider\n" +
		"is not there to end it, leaves the list: should the provider still have its machine\n" +
		"when it comes back, it ends it then. The certificate of a removed host is void: its\n" +
		"agent needs a new one-time token. A host that is heard is not removed.",
	Role:     fleet.Operator,
	Risk:     op.Disruptive,
	Show:     state.ShowLine,
	Examples: []string{"host remove mac-3", "host remove mac-3 mac-4 --reason 'sold'"},
}, func(tx *state.Tx, m op.Meta, a HostsArgs) (op.Result, error) {
	var res op.Result
	var removed, ending, others []string
	var builds []fleet.BuildID // that waited for proof
	all := slices.Compact(slices.Sorted(slices.Values(a.Hosts)))
	missing := 0
	for _, id := range all {
		h, ok := tx.Hosts.Get(id)
		switch {
		case !ok:
			missing++
			others = append(others, fmt.Sprintf("there is no host %q", id))
			continue
		case h.State != fleet.HostEnding && (h.State != fleet.HostReady || !h.Lost):
			others = append(others, fmt.Sprintf("host %q is %s, not lost", id, h.Condition()))
			continue
		}
		ids := attemptsOn(tx, id)
		for _, at := range ids {
			if held, ok := tx.Attempts.Get(at); ok {
				builds = append(builds, held.Build)
			}
		}
		lose(tx, ids, fmt.Sprintf("host %s was removed by %s", id, m.By), true)
		if g, ok := tx.Grants.Get(fleet.AgentOf(id)); ok && g.Key != "" {
			tx.Grants.Delete(g.Principal)
			res.Changes = append(res.Changes, fmt.Sprintf("the certificate of host %s is void", id))
		}
		if h.Launch != 0 && h.State != fleet.HostEnding {
			h.State, h.Why = fleet.HostEnding, because("removed", m)
			tx.Hosts.Put(id, h)
			ending = append(ending, string(id))
			res.Changes = append(res.Changes, fmt.Sprintf("host %s is ended by its provider, and replaced", id))
			continue
		}
		change := fmt.Sprintf("host %s leaves the list", id)
		if l, ok := tx.Launches.Get(h.Launch); ok {
			l.State = fleet.LaunchEnded
			tx.Launches.Put(l.ID, l)
			change += "; its provider ends its machine, should it still have it"
		}
		tx.Hosts.Delete(id)
		removed = append(removed, string(id))
		res.Changes = append(res.Changes, change)
	}
	var did []string
	if len(removed) > 0 {
		did = append(did, "removed "+names(removed))
	}
	if len(ending) > 0 {
		did = append(did, "ending "+names(ending))
	}
	switch {
	case missing == len(all):
		return op.Result{}, fleet.NotFoundf("%s", strings.Join(others, "; ")).WithHint("footplate host list")
	case len(did) == 0:
		return op.Result{}, fleet.Conflictf("%s", strings.Join(others, "; ")).WithHint("footplate host drain, then end its agent, and wait until it is lost")
	}
	if len(builds) > 0 {
		waited := numbers(slices.Compact(slices.Sorted(slices.Values(builds))))
		did = append(did, "exclusive builds that waited for this go on: "+waited)
		res.Changes = append(res.Changes, "exclusive builds that wait for this go on: "+waited)
	}
	res.Text = strings.Join(append(did, others...), "; ")
	for _, o := range others {
		res.Changes = append(res.Changes, "nothing: "+o)
	}
	return res, nil
})

func because(what string, m op.Meta) string {
	s := what + " by " + string(m.By)
	if m.Reason != "" {
		s += ": " + m.Reason
	}
	return s
}

// eachHost changes the named hosts. Those that do not exist are told apart;
// when none exists the operation fails.
func eachHost(tx *state.Tx, ids []fleet.HostID, done string, change func(*fleet.Host) (string, bool)) (op.Result, error) {
	var res op.Result
	var changed, missing, same []string
	ids = slices.Compact(slices.SortedFunc(slices.Values(ids), cmp.Compare[fleet.HostID]))
	for _, id := range ids {
		h, ok := tx.Hosts.Get(id)
		if !ok || h.State == fleet.HostEnding {
			missing = append(missing, strconv.Quote(string(id)))
			res.Changes = append(res.Changes, fmt.Sprintf("host %q does not exist", id))
			continue
		}
		what, did := change(&h)
		res.Changes = append(res.Changes, fmt.Sprintf("host %s %s", id, what))
		if did {
			tx.Hosts.Put(id, h)
			changed = append(changed, string(id))
		} else {
			same = append(same, string(id))
		}
	}
	if len(changed)+len(same) == 0 {
		return op.Result{}, fleet.NotFoundf("there is no host %s", strings.Join(missing, ", ")).WithHint("footplate host list")
	}
	res.Text = fmt.Sprintf("%s %s", names(changed), done)
	if len(changed) == 0 {
		res.Text = fmt.Sprintf("nothing to do: %s %s %s already", names(same), isAre(len(same)), done)
	}
	if len(missing) > 0 {
		res.Text += fmt.Sprintf("; %d of %d not done, no such host: %s", len(missing), len(ids), strings.Join(missing, ", "))
	}
	return res, nil
}

// names writes a list of hosts, cut when it is long.
func names(ids []string) string {
	const most = 8
	switch {
	case len(ids) == 1:
		return "host " + ids[0]
	case len(ids) > most:
		return fmt.Sprintf("%d hosts (%s, ...)", len(ids), strings.Join(ids[:most], ", "))
	}
	return fmt.Sprintf("%d hosts (%s)", len(ids), strings.Join(ids, ", "))
}
