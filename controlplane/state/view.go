package state

import (
	"iter"
	"strings"

	"footplate/fleet"
)

// View is the state at one moment, for reading. It never changes; any number
// of goroutines may read it.
type View struct {
	Meta
	Nodes    Rows[fleet.NodeID, Node]
	Tokens   Rows[string, fleet.Token]
	Grants   Rows[fleet.Principal, fleet.Grant]
	Orgs     Rows[fleet.OrgName, fleet.Org]
	Pools    Rows[fleet.PoolName, fleet.Pool]
	Hosts    Rows[fleet.HostID, fleet.Host]
	Launches Rows[fleet.LaunchID, fleet.Launch]
	Builds   Rows[fleet.BuildID, fleet.Build]
	Attempts Rows[fleet.AttemptID, fleet.Attempt]
	Gates    Rows[string, fleet.Gate]
	Pauses   Rows[fleet.Loop, fleet.Pause]
	Keys     Rows[string, Remembered]
	KeyOrder Rows[fleet.EntryNo, string]
	Recent   Rows[fleet.EntryNo, string]
	Refusals Rows[string, Refusals]
	Outbox   Rows[fleet.EntryNo, Parcel]
	Channel  Rows[fleet.EntryNo, Line]
	Sinks    Rows[string, Sink]
	Erasures Rows[fleet.EntryNo, Erasure]
	Anchors  Rows[fleet.EntryNo, Anchor]
	Postings Rows[fleet.EntryNo, Posting]
	Edits    Rows[fleet.EntryNo, Edit]
	derived
}

// dumper writes the rows of one table.
type dumper struct {
	name string
	rows func(name string, emit func(table string, row any) error) error
}

func (v *View) tables() []dumper {
	return []dumper{
		{"nodes", v.Nodes.dumpRows}, {"tokens", v.Tokens.dumpRows}, {"grants", v.Grants.dumpRows}, {"orgs", v.Orgs.dumpRows},
		{"pools", v.Pools.dumpRows}, {"hosts", v.Hosts.dumpRows}, {"launches", v.Launches.dumpRows},
		{"builds", v.dumpBuilds}, {"attempts", v.Attempts.dumpRows}, {"gates", v.Gates.dumpRows},
		{"pauses", v.Pauses.dumpRows}, {"keys", v.Keys.dumpRows}, {"key_order", v.KeyOrder.dumpRows},
		{"recent", v.Recent.dumpRows}, {"refusals", v.Refusals.dumpRows}, {"outbox", v.Outbox.dumpRows}, {"channel", v.Channel.dumpRows},
		{"sinks", v.Sinks.dumpRows}, {"erasures", v.Erasures.dumpRows}, {"anchors", v.Anchors.dumpRows},
		{"postings", v.Postings.dumpRows}, {"edits", v.Edits.dumpRows},
	}
}

// Publish returns the state as it is now. What did not change since the last
// publication is shared with it.
func (st *State) Publish() *View {
	last := st.last
	if last == nil {
		last = new(View)
	}
	v := &View{
		Meta:     st.Meta,
		Nodes:    st.tables.Nodes.publish(last.Nodes),
		Tokens:   st.tables.Tokens.publish(last.Tokens),
		Grants:   st.tables.Grants.publish(last.Grants),
		Orgs:     st.tables.Orgs.publish(last.Orgs),
		Pools:    st.tables.Pools.publish(last.Pools),
		Hosts:    st.tables.Hosts.publish(last.Hosts),
		Launches: st.tables.Launches.publish(last.Launches),
		Gates:    st.tables.Gates.publish(last.Gates),
		Pauses:   st.tables.Pauses.publish(last.Pauses),
		Keys:     st.tables.Keys.publish(last.Keys),
		KeyOrder: st.tables.KeyOrder.publish(last.KeyOrder),
		Recent:   st.tables.Recent.publish(last.Recent),
		Refusals: st.tables.Refusals.publish(last.Refusals),
		Outbox:   st.tables.Outbox.publish(last.Outbox),
		Channel:  st.tables.Channel.publish(last.Channel),
		Sinks:    st.tables.Sinks.publish(last.Sinks),
		Erasures: st.tables.Erasures.publish(last.Erasures),
		Anchors:  st.tables.Anchors.publish(last.Anchors),
		Postings: st.tables.Postings.publish(last.Postings),
		Edits:    st.tables.Edits.publish(last.Edits),
		derived:  last.derived,
	}
	if st.tables.Builds.touched || st.tables.Attempts.touched {
		v.derived = st.derived.copy()
	}
	v.Builds = st.tables.Builds.publish(last.Builds)
	v.Attempts = st.tables.Attempts.publish(last.Attempts)
	st.last = v
	return v
}

// Peek returns a view of the state itself, good until its next write.
func (st *State) Peek() *View {
	return &View{
		Meta:  st.Meta,
		Nodes: st.tables.Nodes.Rows, Tokens: st.tables.Tokens.Rows, Grants: st.tables.Grants.Rows, Orgs: st.tables.Orgs.Rows,
		Pools: st.tables.Pools.Rows, Hosts: st.tables.Hosts.Rows, Launches: st.tables.Launches.Rows,
		Builds: st.tables.Builds.Rows, Attempts: st.tables.Attempts.Rows,
		Gates: st.tables.Gates.Rows, Pauses: st.tables.Pauses.Rows,
		Keys: st.tables.Keys.Rows, KeyOrder: st.tables.KeyOrder.Rows, Recent: st.tables.Recent.Rows, Refusals: st.tables.Refusals.Rows,
		Outbox: st.tables.Outbox.Rows, Channel: st.tables.Channel.Rows, Sinks: st.tables.Sinks.Rows,
		Erasures: st.tables.Erasures.Rows, Anchors: st.tables.Anchors.Rows,
		Postings: st.tables.Postings.Rows, Edits: st.tables.Edits.Rows,
		derived: st.derived,
	}
}

// Scratch returns a state of its own that starts as v is: for trials and dry
// runs. It shares what it does not change. Calls on views of one state must not
// overlap: a copy marks its source, and views share the tables that did not
// change between them. A scratch state has no digest.
func (v *View) Scratch() *State {
	st := New()
	st.j.scratch = true
	st.Meta = v.Meta
	scratch(st.tables.Nodes, v.Nodes)
	scratch(st.tables.Tokens, v.Tokens)
	scratch(st.tables.Grants, v.Grants)
	scratch(st.tables.Orgs, v.Orgs)
	scratch(st.tables.Pools, v.Pools)
	scratch(st.tables.Hosts, v.Hosts)
	scratch(st.tables.Launches, v.Launches)
	scratch(st.tables.Builds, v.Builds)
	scratch(st.tables.Attempts, v.Attempts)
	scratch(st.tables.Gates, v.Gates)
	scratch(st.tables.Pauses, v.Pauses)
	scratch(st.tables.Keys, v.Keys)
	scratch(st.tables.KeyOrder, v.KeyOrder)
	scratch(st.tables.Recent, v.Recent)
	scratch(st.tables.Refusals, v.Refusals)
	scratch(st.tables.Outbox, v.Outbox)
	scratch(st.tables.Channel, v.Channel)
	scratch(st.tables.Sinks, v.Sinks)
	scratch(st.tables.Erasures, v.Erasures)
	scratch(st.tables.Anchors, v.Anchors)
	scratch(st.tables.Postings, v.Postings)
	scratch(st.tables.Edits, v.Edits)
	st.derived = v.derived.copy()
	return st
}

func scratch[K key, R any](t *Table[K, R], rows Rows[K, R]) { t.s = rows.s.Copy() }

// JustDone returns the newest outcome of a command that a chat has had done for
// by, with these arguments as Remembered has them, within RepeatWindow before
// now.
func (v *View) JustDone(by fleet.Principal, args string, now fleet.Time) (Remembered, bool) {
	for _, id := range v.Recent.Backward() {
		k, _ := v.Keys.Get(id)
		if k.At.Add(RepeatWindow) <= now {
			break
		}
		if k.Args == args && strings.HasPrefix(id, string(by)+"\x00") {
			return k, true
		}
	}
	return Remembered{}, false
}

// SlotsOf returns the slots that org's promoted builds need.
func (v *View) SlotsOf(org fleet.OrgName) int {
	n, _ := v.derived.Using.Get(org)
	return n
}

// SlotsIn returns the slots that org's promoted builds need in pool.
func (v *View) SlotsIn(org fleet.OrgName, pool fleet.PoolName) int {
	n, _ := v.derived.Share.Get(share(org, pool))
	return n
}

// Lanes yields the first build of every lane, in order: what is behind it need
// not be looked at when it cannot leave.
func (v *View) Lanes() iter.Seq[Queued] {
	return func(yield func(Queued) bool) { v.lanes(Queued{Priority: fleet.MaxPriority}, yield) }
}

// LanesOf yields the first build of every lane of org.
func (v *View) LanesOf(org fleet.OrgName) iter.Seq[Queued] {
	return func(yield func(Queued) bool) {
		v.lanes(Queued{Org: org, Priority: fleet.MaxPriority}, func(q Queued) bool { return q.Org == org && yield(q) })
	}
}

func (v *View) lanes(from Queued, yield func(Queued) bool) {
	for {
		var first Queued
		for q := range v.Queued.From(from) {
			first = q
			break
		}
		if first.Build == 0 || !yield(first) {
			return
		}
		// Behind the last that the lane can have.
		from = Queued{Org: first.Org, Pool: first.Pool, Priority: -fleet.MaxPriority - 1}
	}
}

// Behind yields first and what is behind it in its lane.
func (v *View) Behind(first Queued) iter.Seq[Queued] {
	return func(yield func(Queued) bool) {
		for q := range v.Queued.From(first) {
			if q.Org != first.Org || q.Pool != first.Pool || !yield(q) {
				return
			}
		}
	}
}

// DepthOf returns the number of tasks that wait for a slot in pool.
func (v *View) DepthOf(pool fleet.PoolName) int {
	n, _ := v.derived.Depth.Get(pool)
	return n
}

// Retired reports whether an attempt that was made is not in the state any more:
// its build was retired.
func (v *View) Retired(id fleet.AttemptID) bool {
	_, ok := v.Attempts.Get(id)
	return !ok && id > 0 && id <= v.Attempt
}

// LiveOn yields the attempts that hold a slot of host, oldest first.
func (v *View) LiveOn(host fleet.HostID) []fleet.Attempt {
	var out []fleet.Attempt
	for r := range v.Running.From(Running{Host: host}) {
		if r.Host != host {
			break
		}
		a, _ := v.Attempts.Get(r.Attempt)
		out = append(out, a)
	}
	return out
}

// UsedSlots returns how many slots of host are taken.
func (v *View) UsedSlots(host fleet.HostID) int {
	n := 0
	for r := range v.Running.From(Running{Host: host}) {
		if r.Host != host {
			break
		}
		n++
	}
	return n
}

// Gated returns the gate that stops stage for org and pool, if one does.
func (v *View) Gated(stage fleet.GateStage, org fleet.OrgName, pool fleet.PoolName) (fleet.Gate, bool) {
	for _, g := range v.Gates.All() {
		if g.Until > v.Clock && g.Stops(stage, org, pool) {
			return g, true
		}
	}
	return fleet.Gate{}, false
}

// Paused returns the pause of loop, if it has one.
func (v *View) Paused(loop fleet.Loop) (fleet.Pause, bool) {
	p, ok := v.Pauses.Get(loop)
	if !ok || p.Until <= v.Clock {
		return fleet.Pause{}, false
	}
	return p, true
}
