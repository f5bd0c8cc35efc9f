package sim

import (
	"fmt"
	"slices"
	"strings"

	"footplate/controlplane/api"
	"footplate/controlplane/catalog"
	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
	"footplate/fleet/lease"
)

// This file mirrors controlplane/server/agents.go: how the leader answers a
// sync. The digest of an answer is computed more cheaply here.

const (
	syncHold  = 4 * sec
	orderHold = sec
	syncPause = 20 * ms
	offerFor  = 10 * fleet.Second
)

type delivery struct {
	first, last lease.Mono
	to          fleet.Incarnation
}

type heard struct {
	boot        fleet.BootID
	incarnation fleet.Incarnation
	seq         uint64
	stamp       lease.Stamp
	lists       []fleet.AttemptID
}

// heldSync is a sync that waits for something to say.
type heldSync struct {
	q       *api.Sync
	until   int64
	leave   bool
	done    bool
	replyTo func(*api.SyncReply)
}

func (h *heldSync) reply(r *api.SyncReply) {
	if !h.done {
		h.done = true
		h.replyTo(r)
	}
}

// hear notes a sync; false when a newer one of the same host has been heard.
func (o *office) hear(q *api.Sync) bool {
	if h, ok := o.heard[q.Host]; ok && h.boot == q.Boot &&
		(q.Incarnation < h.incarnation || q.Incarnation == h.incarnation && q.Seq < h.seq) {
		return false
	}
	h := heard{boot: q.Boot, incarnation: q.Incarnation, seq: q.Seq, stamp: q.Stamp}
	for _, at := range q.Attempts {
		h.lists = append(h.lists, at.Attempt)
	}
	slices.Sort(h.lists)
	o.heard[q.Host] = h
	return true
}

// readIndex proves that this node has led all through, after it was called.
func (o *office) readIndex(then func(ok bool)) {
	w := o.w
	index := o.n.known
	said := make([]bool, len(w.nodes))
	yes, over := 1, false
	finish := func(ok bool) {
		if !over {
			over = true
			then(ok && !o.over && o.n.applied >= index)
		}
	}
	for _, f := range w.nodes {
		if f == o.n {
			continue
		}
		w.send(o.n.end, f.end, func() {
			if f.term > o.term {
				return
			}
			w.send(f.end, o.n.end, func() {
				if !said[f.end] {
					said[f.end] = true
					if yes++; yes >= majority(len(w.nodes)) {
						finish(true)
					}
				}
			})
		})
	}
	if yes >= majority(len(w.nodes)) {
		finish(true)
	}
	o.n.after(2*sec, func() { finish(false) })
}

// sync answers a sync on the leader; reply gets nil when that fails.
func (o *office) sync(q *api.Sync, reply func(*api.SyncReply)) {
	h := &heldSync{q: q, until: o.w.now + syncHold, replyTo: reply}
	fail := func() { h.reply(nil) }
	o.readIndex(func(ok bool) {
		if !ok || !o.hear(q) {
			fail()
			return
		}
		o.join(h, fail, func() {
			if h.leave {
				o.hold(h)
				return
			}
			o.report(h, fail, func() { o.hold(h) })
		})
	})
}

func (o *office) proposeFor(p *op.Op, host fleet.HostID, args any, done func(error)) {
	raw, err := p.Encode(args)
	if err != nil {
		panic(err)
	}
	o.propose(state.Command{
		Op: p.Name, Ver: p.Version(), By: fleet.Principal("agent:" + host), Role: fleet.Agent, Via: "agent", Args: raw,
	}, func(out state.Outcome, err error) {
		if err == nil && out.Err != nil {
			err = out.Err
		}
		done(err)
	})
}

func (o *office) join(h *heldSync, fail, then func()) {
	q := h.q
	host, known := o.n.view.Hosts.Get(q.Host)
	switch {
	case known && (host.State == fleet.HostEnding || host.State == fleet.HostGone):
		h.leave = true
		then()
		return
	case known && host.State == fleet.HostReady && host.Boot == q.Boot && host.Incarnation == q.Incarnation:
		then()
		return
	}
	o.proposeFor(catalog.AgentJoin, q.Host, catalog.AgentJoinArgs{
		Host: q.Host, Pool: q.Pool, Launch: q.Launch, Boot: q.Boot, Incarnation: q.Incarnation, Slots: q.Slots, Version: q.Version,
	}, func(err error) {
		switch {
		case fleet.CodeOf(err) == fleet.CodeConflict:
			h.leave = true
		case err != nil:
			fail()
			return
		}
		then()
	})
}

func rank(p fleet.Phase) int {
	return slices.Index([]fleet.Phase{
		fleet.PhaseAssigned, fleet.PhaseSetup, fleet.PhaseCheckout, fleet.PhaseSteps, fleet.PhaseUpload, fleet.PhaseEnded,
	}, p)
}

func (o *office) report(h *heldSync, fail, then func()) {
	q, v := h.q, o.n.view
	var news []catalog.AttemptReport
	for _, held := range q.Attempts {
		at, ok := v.Attempts.Get(held.Attempt)
		if !ok || at.Host != q.Host || at.Boot != q.Boot {
			continue
		}
		if at.Live() && rank(held.Phase) > rank(at.Phase) || held.Phase == fleet.PhaseEnded && proves(v, at) {
			news = append(news, catalog.AttemptReport(held))
		}
	}
	if len(news) == 0 {
		then()
		return
	}
	o.proposeFor(catalog.AgentReport, q.Host, catalog.AgentReportArgs{Host: q.Host, Boot: q.Boot, Attempts: news}, func(err error) {
		if err != nil {
			fail()
			return
		}
		then()
	})
}

func proves(v *state.View, at fleet.Attempt) bool {
	b, ok := v.Builds.Get(at.Build)
	return ok && at.Task < len(b.Tasks) && b.Tasks[at.Task].Held == at.ID
}

func (o *office) hold(h *heldSync) {
	if o.over {
		h.reply(nil)
		return
	}
	if o.answer(h) {
		return
	}
	o.waits = append(o.waits, h)
	o.after(syncHold-orderHold, func() { o.answer(h) })
	o.after(max(h.until-o.w.now, 0), func() { o.answer(h) })
}

// look looks at every sync that waits, a little after the state has changed.
func (o *office) look() {
	if o.looking || len(o.waits) == 0 {
		return
	}
	o.looking = true
	o.after(syncPause, func() {
		o.looking = false
		waits := o.waits
		o.waits = nil
		for _, h := range waits {
			if !h.done && !o.answer(h) {
				o.waits = append(o.waits, h)
			}
		}
	})
}

// answer answers a sync when there is something to say, or it was held for long
// enough.
func (o *office) answer(h *heldSync) bool {
	if h.done {
		return true
	}
	reply := o.orders(h)
	end := h.until
	if len(reply.Start) > 0 {
		end -= syncHold - orderHold
	}
	if reply.Known == h.q.Known && o.w.now < end {
		return false
	}
	now := o.n.mono()
	for _, s := range reply.Start {
		d, ok := o.delivered[s.Attempt]
		if !ok {
			d.first = now
		}
		d.last, d.to = now, h.q.Incarnation
		o.delivered[s.Attempt] = d
	}
	reply.Stamp = lease.Stamp{Term: o.term, At: now}
	h.reply(reply)
	return true
}

// orders says what an agent shall do.
func (o *office) orders(h *heldSync) *api.SyncReply {
	q, v := h.q, o.n.view
	reply := &api.SyncReply{FenceAfter: fleet.DefaultFenceAfter, Leave: h.leave, Members: version, Nodes: o.w.addrs()}
	if host, ok := v.Hosts.Get(q.Host); ok {
		reply.Leave = h.leave || host.State == fleet.HostEnding || host.State == fleet.HostGone
	}
	if p, ok := v.Pools.Get(q.Pool); ok {
		reply.FenceAfter = p.FenceAfter
	}
	holds := make(map[fleet.AttemptID]bool, len(q.Attempts))
	for _, held := range q.Attempts {
		holds[held.Attempt] = true
		at, ok := v.Attempts.Get(held.Attempt)
		mine := ok && at.Host == q.Host && at.Boot == q.Boot
		switch {
		case mine && at.Live():
			if at.Cancel && held.Phase != fleet.PhaseEnded {
				reply.Cancel = append(reply.Cancel, at.ID)
			}
		case held.Phase == fleet.PhaseEnded:
			if !mine || !proves(v, at) {
				reply.Forget = append(reply.Forget, held.Attempt)
			}
		default:
			reply.Kill = append(reply.Kill, held.Attempt)
		}
	}
	if !reply.Leave {
		now := o.n.mono()
		for _, at := range v.LiveOn(q.Host) {
			if at.Phase != fleet.PhaseAssigned || at.Boot != q.Boot || at.Incarnation != q.Incarnation || at.Cancel || holds[at.ID] {
				continue
			}
			if d, ok := o.delivered[at.ID]; ok && now.Sub(d.first) >= offerFor {
				continue
			}
			if b, ok := v.Builds.Get(at.Build); ok {
				reply.Start = append(reply.Start, api.Order{Attempt: at.ID, Build: at.Build, Task: at.Task, N: at.N, Spec: b.Spec})
			}
		}
	}
	var s strings.Builder
	for _, x := range reply.Start {
		fmt.Fprintf(&s, "s%d", x.Attempt)
	}
	fmt.Fprintf(&s, "c%vk%vf%vl%v%d", reply.Cancel, reply.Kill, reply.Forget, reply.Leave, reply.FenceAfter)
	reply.Known = s.String()
	return reply
}

func (w *world) addrs() []api.NodeAddr {
	out := make([]api.NodeAddr, len(w.nodes))
	for i, n := range w.nodes {
		out[i] = api.NodeAddr{Node: n.id, API: "http://" + string(n.id)}
	}
	return out
}
