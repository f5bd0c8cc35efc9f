package server

import (
	"context"
	"net/http"
	"slices"
	"sync"
	"time"

	"footplate/controlplane/api"
	"footplate/controlplane/catalog"
	"footplate/controlplane/op"
	"footplate/controlplane/order"
	"footplate/controlplane/state"
	"footplate/fleet"
	"footplate/fleet/lease"
)

// joinsAtOnce is how many hosts are taken in at once.
const joinsAtOnce = 256

// syncPause is how soon after one look at the state the held syncs get the next;
// it is longer when a look takes long.
const syncPause = 20 * time.Millisecond

// deposedWithin is how soon the held syncs are let go when this node leads no
// more: another one may have orders for them.
const deposedWithin = 250 * time.Millisecond

// syncMost is how long a sync may take.
const syncMost = 4*time.Second + time.Duration(api.SyncHold)*time.Millisecond

// agents is what this node, while it leads, remembers of its agents.
type agents struct {
	mu   sync.Mutex
	book *order.Book

	held held
}

// held are the syncs that are held open. One goroutine looks at each new state
// for all of them, and wakes those whose answer may have changed: ten thousand
// that look by themselves, at every entry of the log, leave no time for anything
// else.
type held struct {
	mu       sync.Mutex
	syncs    map[*heldSync]struct{}
	watching bool
}

type heldSync struct {
	q    *api.Sync
	term uint64 // in which it is held
	mark uint64
	wake chan struct{}
}

// mark is a number that changes with all that the answer to q is made of, but
// for the passing of time.
func mark(v *state.View, members uint64, q *api.Sync) uint64 {
	sum := members
	add := func(n uint64) { sum = (sum ^ n) * 1099511628211 } // FNV-1
	add(v.Hosts.Version(q.Host))
	add(v.Pools.Version(q.Pool))
	for r := range v.Running.From(state.Running{Host: q.Host}) {
		if r.Host != q.Host {
			break
		}
		add(uint64(r.Attempt))
		add(v.Attempts.Version(r.Attempt))
	}
	for _, h := range q.Attempts {
		at, _ := v.Attempts.Get(h.Attempt)
		add(v.Attempts.Version(h.Attempt))
		add(v.Builds.Version(at.Build))
	}
	return sum
}

// leads reports whether this node leads, in that term.
func (s *Server) leads(term uint64) bool {
	_, now := s.cfg.Replica.Leader()
	return now == term
}

// hold waits until the answer to q, as it was by v, may have changed, this node
// leads no more in term, or ctx has ended.
func (s *Server) hold(ctx context.Context, q *api.Sync, v *state.View, term uint64) {
	members, _ := s.cfg.Members()
	h := &heldSync{q: q, term: term, mark: mark(v, members, q), wake: make(chan struct{})}
	all := &s.agents.held
	all.mu.Lock()
	if all.syncs == nil {
		all.syncs = make(map[*heldSync]struct{})
	}
	all.syncs[h] = struct{}{}
	if !all.watching {
		all.watching = true
		go s.watchHeld()
	}
	all.mu.Unlock()
	// The look that began before may have missed it.
	if newest := s.cfg.View(); newest.Index == v.Index || mark(newest, members, q) == h.mark {
		select {
		case <-h.wake:
		case <-ctx.Done():
		}
	}
	all.mu.Lock()
	delete(all.syncs, h)
	all.mu.Unlock()
}

// watchHeld wakes the held syncs when there is news for them, until there is
// none.
func (s *Server) watchHeld() {
	all := &s.agents.held
	for index := uint64(0); ; {
		wait, cancel := context.WithTimeout(context.Background(), deposedWithin)
		v, _ := s.cfg.World.WaitView(wait, index)
		cancel()
		news := v.Index > index
		index = v.Index
		began := time.Now()
		members, _ := s.cfg.Members()
		_, term := s.cfg.Replica.Leader()
		all.mu.Lock()
		if len(all.syncs) == 0 {
			all.watching = false
			all.mu.Unlock()
			return
		}
		for h := range all.syncs {
			if h.term != term || news && mark(v, members, h.q) != h.mark {
				close(h.wake)
				delete(all.syncs, h)
			}
		}
		all.mu.Unlock()
		// Under load one look serves many views.
		time.Sleep(max(syncPause, 8*time.Since(began)))
	}
}

// Book runs do, alone, with the book of the term in which this node leads, and
// reports whether it does.
func (s *Server) Book(do func(*order.Book)) bool {
	_, term := s.cfg.Replica.Leader()
	return term != 0 && s.agents.in(term, s.cfg.Mono(), do)
}

// in runs do with the book of a term, which is begun at now if it is new, and
// reports false when that term is over.
func (a *agents) in(term uint64, now lease.Mono, do func(*order.Book)) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.book == nil || a.book.Term() < term {
		a.book = order.Open(term, now)
	}
	if a.book.Term() != term {
		return false
	}
	do(a.book)
	return true
}

// agent lets agents in.
func (s *Server) agent(r *http.Request) (Caller, error) {
	if err := s.ours(r, true); err != nil {
		return Caller{}, err
	}
	return s.agentCaller(r)
}

// said reads what an agent says of its host, in at most so many bytes, and
// refuses what it may not say.
func said[T any](s *Server, w http.ResponseWriter, r *http.Request, most int64, host func(*T) fleet.HostID) (T, error) {
	var said T
	c, err := s.agent(r)
	if err != nil {
		return said, err
	}
	body, err := readBody(w, r, most)
	if err != nil {
		return said, err
	}
	if err := decode(body, &said); err != nil {
		return said, err
	}
	return said, s.speaksFor(c, host(&said))
}

// agentCluster tells an agent of which cluster this is, and in which recovery
// epoch: it names it in all else that it says.
func (s *Server) agentCluster(w http.ResponseWriter, r *http.Request) error {
	if err := s.ours(r, false); err != nil && !s.sameID(r) {
		return err
	}
	if _, err := s.agentCaller(r); err != nil {
		return err
	}
	return s.reply(w, map[string]string{"cluster": s.cfg.Cluster})
}

// beat acknowledges that an agent is alive: from memory, at once.
func (s *Server) beat(w http.ResponseWriter, r *http.Request) error {
	b, err := said(s, w, r, maxBody, func(b *api.Beat) fleet.HostID { return b.Host })
	if err != nil {
		return err
	}
	if err := checkAgent(b.Host, b.Boot); err != nil {
		return err
	}
	reply := api.BeatReply{Node: s.cfg.Node}
	reply.Ack, reply.Why = s.cfg.Beat(b)
	if !reply.Ack {
		reply.Members, reply.Nodes = s.cfg.Members()
	}
	if reply.Ack {
		s.metrics.acknowledged.Inc()
	} else {
		s.metrics.refused.Inc()
	}
	return s.reply(w, reply)
}

func checkAgent(host fleet.HostID, boot fleet.BootID) error {
	if err := fleet.CheckName("host", string(host)); err != nil {
		return err
	}
	if boot == "" || len(boot) > maxLabel {
		return fleet.Invalidf("host %q does not name its boot", host)
	}
	return nil
}

func checkSync(q *api.Sync) error {
	if err := checkAgent(q.Host, q.Boot); err != nil {
		return err
	}
	if err := fleet.CheckName("pool", string(q.Pool)); err != nil {
		return err
	}
	if q.Incarnation == 0 {
		return fleet.Invalidf("host %q does not name the incarnation of its agent", q.Host)
	}
	if q.Slots < 0 || q.Slots > 256 {
		return fleet.Invalidf("host %q says that it has %d slots; at most 256 are allowed", q.Host, q.Slots)
	}
	if len(q.Version) > maxLabel || len(q.Known) > maxLabel {
		return fleet.Invalidf("the sync of host %q has a field that is too long", q.Host)
	}
	for i := range q.Attempts {
		at := &q.Attempts[i]
		switch {
		case order.Rank(at.Phase) < 0:
			return fleet.Invalidf("host %q says that attempt %d is in phase %q", q.Host, at.Attempt, shorten(string(at.Phase)))
		case (at.Phase == fleet.PhaseEnded) != (at.Outcome != ""):
			return fleet.Invalidf("host %q says that attempt %d is in phase %s with outcome %q", q.Host, at.Attempt, at.Phase, shorten(string(at.Outcome)))
		case at.Outcome != "" && !slices.Contains(outcomes, at.Outcome):
			return fleet.Invalidf("host %q says that attempt %d ended as %q", q.Host, at.Attempt, shorten(string(at.Outcome)))
		case len(at.Why) > maxReason:
			at.Why = shorten(at.Why)
		}
	}
	return nil
}

var outcomes = []fleet.Outcome{fleet.Passed, fleet.Failed, fleet.TimedOut, fleet.Canceled, fleet.Lost, fleet.Broken}

// sync hears what an agent holds, and answers with what it shall do.
func (s *Server) sync(w http.ResponseWriter, r *http.Request) error {
	q, err := said(s, w, r, maxLogsBody, func(q *api.Sync) fleet.HostID { return q.Host })
	if err != nil {
		return err
	}
	if err := checkSync(&q); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), syncMost)
	defer cancel()
	via := r.Header.Get(api.HeaderVia)
	if via == "" || len(via) > maxLabel {
		via = "agent"
	}
	var reply api.SyncReply
	err = s.atLeader(ctx, r, "", func(ctx context.Context) (err error) {
		reply, err = s.syncHere(ctx, &q, via)
		return err
	}, func(ctx context.Context, at leaderAt) error {
		reply = api.SyncReply{}
		return s.ask(ctx, s.agentLane, r, at, "", q, &reply)
	})
	if err != nil {
		return err
	}
	return s.reply(w, reply)
}

// syncHere answers a sync on the leader.
func (s *Server) syncHere(ctx context.Context, q *api.Sync, via string) (api.SyncReply, error) {
	begun := time.Now()
	// Proof that this node leads, given after the agent has sent its request.
	// Who leads next begins after it, so the start window of what is ordered here
	// is over when a new leader thinks it is; and the view has every attempt
	// that the agent can know of, so what is missing there may be killed.
	if err := s.cfg.Replica.ReadIndex(ctx); err != nil {
		return api.SyncReply{}, err
	}
	deposed := fleet.Unavailablef("node %q is not the leader any more", s.cfg.Node)
	_, term := s.cfg.Replica.Leader()
	newest := false
	switch {
	case term == 0, !s.agents.in(term, s.cfg.Mono(), func(b *order.Book) { newest = b.Hear(q) }):
		return api.SyncReply{}, deposed
	case !newest:
		return api.SyncReply{}, fleet.Conflictf("host %q has sent a newer sync than this one", q.Host)
	}
	leave, err := s.join(ctx, q, via)
	if err != nil {
		return api.SyncReply{}, err
	}
	if !leave {
		if err := s.report(ctx, q, via); err != nil {
			return api.SyncReply{}, err
		}
	}
	for {
		v := s.cfg.View()
		members, nodes := s.cfg.Members()
		now := s.cfg.Mono()
		reply := order.Answer(v, q, leave, func(at fleet.Attempt) (ok bool) {
			s.agents.in(term, now, func(b *order.Book) { ok = b.Offers(at, now) })
			return ok
		}, members, nodes)
		reply.Leader = s.cfg.Node
		if held := fleet.DurationOf(time.Since(begun)); order.Due(q, &reply, held) {
			if !s.agents.in(term, now, func(b *order.Book) { b.Deliver(v, &reply, held, s.cfg.Mono()) }) {
				return api.SyncReply{}, deposed
			}
			if !s.leads(term) {
				return api.SyncReply{}, deposed
			}
			return reply, nil
		}
		end := begun.Add(api.SyncHold.Std())
		if len(reply.Start) > 0 {
			end = begun.Add(order.Hold.Std())
		}
		wait, cancel := context.WithDeadline(ctx, end)
		s.hold(wait, q, v, term)
		cancel()
		if ctx.Err() != nil {
			return api.SyncReply{}, ctx.Err()
		}
		if !s.leads(term) {
			return api.SyncReply{}, deposed
		}
	}
}

// propose logs what an agent says.
func (s *Server) propose(ctx context.Context, o *op.Op, host fleet.HostID, via string, args any) error {
	raw, err := o.Encode(args)
	if err != nil {
		return err
	}
	out, err := s.cfg.Replica.Propose(ctx, true, state.Command{
		Op: o.Name, Ver: o.Version(), By: fleet.Principal("agent:" + host), Role: fleet.Agent, Via: via, Salt: randomHex(16), Args: raw,
	})
	switch {
	case err != nil:
		return err
	case out.Err != nil:
		return out.Err
	}
	return nil
}

// join makes the state know the host as it is. It reports leave when the host
// has no place in the fleet any more.
func (s *Server) join(ctx context.Context, q *api.Sync, via string) (leave bool, err error) {
	join, leave := order.Join(s.cfg.View(), q)
	if !join {
		return leave, nil
	}
	// A fleet that starts all at once is taken in by and by: who has given up
	// meanwhile, and asks again, must not stand in the way of the others twice.
	select {
	case s.joins <- struct{}{}:
		defer func() { <-s.joins }()
	case <-ctx.Done():
		return false, ctx.Err()
	}
	if join, leave = order.Join(s.cfg.View(), q); !join || ctx.Err() != nil {
		return leave, ctx.Err()
	}
	err = s.propose(ctx, catalog.AgentJoin, q.Host, via, catalog.AgentJoinArgs{
		Host: q.Host, Pool: q.Pool, Launch: q.Launch, Boot: q.Boot, Incarnation: q.Incarnation, Slots: q.Slots, Version: q.Version,
	})
	// A conflict is the answer to a machine that was ended, and to an agent that
	// was followed by another.
	if fleet.CodeOf(err) == fleet.CodeConflict {
		s.log.Info("a host is sent away", "host", q.Host, "err", err)
		return true, nil
	}
	return false, err
}

// report logs what of a sync is news.
func (s *Server) report(ctx context.Context, q *api.Sync, via string) error {
	news := order.News(s.cfg.View(), q)
	if len(news) == 0 {
		return nil
	}
	return s.propose(ctx, catalog.AgentReport, q.Host, via, catalog.AgentReportArgs{Host: q.Host, Boot: q.Boot, Attempts: news})
}
