package sim

import (
	"footplate/controlplane/api"
	"footplate/controlplane/catalog"
	"footplate/controlplane/op"
	"footplate/controlplane/order"
	"footplate/controlplane/state"
	"footplate/fleet"
)

// This file mirrors how controlplane/server/agents.go carries a sync on the
// leader; what is decided on the way is package order's.

const (
	syncHold  = int64(api.SyncHold) * ms
	orderHold = int64(order.Hold) * ms
	syncPause = 20 * ms
)

// heldSync is a sync that waits for something to say.
type heldSync struct {
	q       *api.Sync
	begun   int64
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
	h := &heldSync{q: q, begun: o.w.now, replyTo: reply}
	fail := func() { h.reply(nil) }
	o.readIndex(func(ok bool) {
		if !ok || !o.book.Hear(q) {
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
	join, leave := order.Join(o.n.view, q)
	if h.leave = leave; !join {
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

func (o *office) report(h *heldSync, fail, then func()) {
	q := h.q
	news := order.News(o.n.view, q)
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

func (o *office) hold(h *heldSync) {
	if o.over {
		h.reply(nil)
		return
	}
	if o.answer(h) {
		return
	}
	o.waits = append(o.waits, h)
	for _, end := range []int64{orderHold, syncHold} {
		o.after(max(h.begun+end-o.w.now, 0), func() { o.answer(h) })
	}
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
	now := o.n.mono()
	reply := order.Answer(o.n.view, h.q, h.leave, func(at fleet.Attempt) bool { return o.book.Offers(at, now) }, version, o.w.addrs())
	held := fleet.Duration((o.w.now - h.begun) / ms)
	if !order.Due(h.q, &reply, held) {
		return false
	}
	o.book.Deliver(o.n.view, &reply, held, now)
	h.reply(&reply)
	return true
}

func (w *world) addrs() []api.NodeAddr {
	out := make([]api.NodeAddr, len(w.nodes))
	for i, n := range w.nodes {
		out[i] = api.NodeAddr{Node: n.id, API: "http://" + string(n.id)}
	}
	return out
}
