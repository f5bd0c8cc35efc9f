package catalog

import (
	"fmt"
	"slices"

	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
)

// AgentJoinArgs is what a starting agent says of itself.
type AgentJoinArgs struct {
	Host        fleet.HostID      `json:"host"`
	Pool        fleet.PoolName    `json:"pool"`
	Launch      fleet.LaunchID    `json:"launch,omitempty"` // when we launched it
	Boot        fleet.BootID      `json:"boot"`
	Incarnation fleet.Incarnation `json:"incarnation"`
	Slots       int               `json:"slots,omitempty"` // 0 means the pool's
	Version     string            `json:"version"`
}

// AgentJoin takes in an agent that has started. Whatever an earlier boot or
// incarnation of its host ran has certainly ended: a reboot ends everything,
// and a new incarnation makes sure that the old trees are dead before it says
// that it is there.
var AgentJoin = op.Internal(op.Spec{
	Name: "agent join", Summary: "take in a host whose agent has started", Role: fleet.System, Record: op.Audit, Show: state.ShowGroup,
}, func(tx *state.Tx, _ op.Meta, a AgentJoinArgs) (op.Result, error) {
	h, known := tx.Hosts.Get(a.Host)
	switch {
	case known && h.State == fleet.HostEnding:
		return op.Result{}, fleet.Conflictf("host %q is being ended", a.Host).WithHint("a machine's id is never used again")
	case !known && a.Launch != 0:
		return op.Result{}, fleet.Conflictf("host %q was ended", a.Host).WithHint("a machine's id is never used again")
	case known && slices.Contains(h.FormerBoots, a.Boot):
		return op.Result{}, fleet.Conflictf("host %q was rebooted since: boot %s is over", a.Host, a.Boot).
			WithHint("end this agent; a machine that was restored from a snapshot must be rebooted")
	case known && h.Boot == a.Boot && a.Incarnation < h.Incarnation:
		return op.Result{}, fleet.Conflictf("host %q has a newer agent: incarnation %d", a.Host, h.Incarnation).WithHint("end this one")
	case known && h.Boot == a.Boot && a.Incarnation == h.Incarnation && h.State == fleet.HostReady:
		return op.Result{Text: fmt.Sprintf("host %s is known", a.Host), Quiet: true}, nil
	}
	// A host that joins by itself may change its pool; one that was launched
	// belongs to the pool that it was launched for.
	if h.Launch != 0 {
		a.Pool = h.Pool
	}
	pool, ok := tx.Pools.Get(a.Pool)
	if !ok {
		return op.Result{}, fleet.NotFoundf("there is no pool %q", a.Pool).WithHint("footplate pool create %s --provider none", a.Pool)
	}
	text := fmt.Sprintf("host %s joined pool %q", a.Host, a.Pool)
	if known && h.Boot != "" {
		why := fmt.Sprintf("the agent of host %s was started anew", a.Host)
		text = why
		if h.Boot != a.Boot {
			why = fmt.Sprintf("host %s was rebooted", a.Host)
			text = why
			former := append(slices.Clone(h.FormerBoots), h.Boot)
			h.FormerBoots = former[max(0, len(former)-fleet.MaxFormerBoots):]
		}
		if n, lost := lose(tx, attemptsOn(tx, a.Host), why, true); n > 0 {
			text = lost
		}
	}
	if !known {
		h = fleet.Host{ID: a.Host, CreatedAt: tx.At}
	}
	h.Pool = a.Pool
	h.State, h.Boot, h.Incarnation, h.Version = fleet.HostReady, a.Boot, a.Incarnation, a.Version
	h.Suspect, h.Lost, h.SilentAt, h.JoinedAt = false, false, 0, tx.At
	h.Slots = pool.Slots
	if a.Slots > 0 {
		h.Slots = a.Slots
	}
	if !h.Cordoned && !h.Draining && !h.Retiring {
		h.Why = ""
	}
	tx.Hosts.Put(h.ID, h)
	return op.Result{Text: text}, nil
})

// HostEnrolArgs is an agent that asks for a certificate.
type HostEnrolArgs struct {
	Host  fleet.HostID `json:"host"`
	Token string       `json:"token" secret:"true"` // its hash
	Key   string       `json:"key"`                 // hex SHA-256 of the public key
}

// HostEnrol uses a token that is good once, and notes the key of the host's
// agent: certificates for another key are void from then on. The answer may
// get lost, so the same agent may ask again for a while.
var HostEnrol = op.Internal(op.Spec{
	Name: "host enrol", Summary: "let a host's agent in with a token that is good once", Role: fleet.Agent, Record: op.Audit, Show: state.ShowLine,
}, func(tx *state.Tx, _ op.Meta, a HostEnrolArgs) (op.Result, error) {
	t, ok := tx.Tokens.Get(a.Token)
	if !ok {
		return op.Result{}, fleet.Deniedf("the token of host %q is not known any more", a.Host).
			WithHint("make a new one: footplate access token create %s --role agent --once", a.Host)
	}
	if no := t.MayEnrol(a.Host, a.Key, tx.At); no != nil {
		return op.Result{}, no
	}
	who := fleet.AgentOf(a.Host)
	if g, ok := tx.Grants.Get(who); t.UsedAt != 0 {
		if !ok || g.Key != a.Key {
			return op.Result{}, fleet.Deniedf("%s was let in, and that was taken back since", who).
				WithHint("make a new token: footplate access token create %s --role agent --once", a.Host)
		}
		return op.Result{Quiet: true}, nil
	}
	t.UsedAt, t.UsedFor = tx.At, a.Key
	tx.Tokens.Put(a.Token, t)
	text := fmt.Sprintf("host %s has enrolled with token %q of %s", a.Host, t.Name, t.MadeBy)
	if _, ok := tx.Grants.Get(who); ok {
		text += "; the certificate that it had is void"
	}
	tx.Grants.Put(who, fleet.Grant{Principal: who, Role: fleet.Agent, By: t.MadeBy, At: tx.At, Key: a.Key})
	return op.Result{Text: text}, nil
})

// attemptsOn returns the attempts that a host holds, and those that an
// exclusive build still waits for.
func attemptsOn(tx *state.Tx, host fleet.HostID) []fleet.AttemptID {
	v := tx.View()
	var ids []fleet.AttemptID
	for _, at := range v.LiveOn(host) {
		ids = append(ids, at.ID)
	}
	for _, b := range heldBuilds(v) {
		for _, t := range b.Tasks {
			if at, ok := v.Attempts.Get(t.Held); ok && at.Host == host {
				ids = append(ids, at.ID)
			}
		}
	}
	return ids
}

// heldBuilds returns the exclusive builds that wait for proof of an attempt's
// end.
func heldBuilds(v *state.View) []fleet.Build {
	var out []fleet.Build
	for id := range v.Held.All() {
		b, _ := v.Builds.Get(id)
		out = append(out, b)
	}
	return out
}
