package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"footplate/controlplane/api"
	"footplate/controlplane/catalog"
	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
	"footplate/fleet/lease"
)

// The pace of syncs.
const (
	// syncHold is how long a sync is held open.
	syncHold = time.Duration(api.SyncHold) * time.Millisecond
	// orderHold is how long a sync is held open whose answer has an order that
	// the agent was given before and has not taken.
	orderHold = time.Second
	// syncPause is how soon after one look at the state the next is taken.
	syncPause = 20 * time.Millisecond
	// offerFor is how long, from its first delivery in a term, an attempt is
	// offered to its host. After that it never is again in this term: from then
	// on what lease.MayReassign asks for can come true, and stay true.
	offerFor = 10 * fleet.Second
)

// agents is what this node, while it leads, remembers of its agents. It is kept
// for one term: what was delivered in another is not known.
type agents struct {
	mu        sync.Mutex
	term      uint64
	delivered map[fleet.AttemptID]delivery
	heard     map[fleet.HostID]heard
	full      int // number of deliveries at which those that are over are dropped
}

// fewDeliveries are not worth tidying.
const fewDeliveries = 4096

// delivery is what is known of an attempt that was given to its host.
type delivery struct {
	first, last lease.Mono
	to          fleet.Incarnation
}

// heard is the newest sync of a host.
type heard struct {
	boot        fleet.BootID
	incarnation fleet.Incarnation
	seq         uint64
	stamp       lease.Stamp
	lists       []fleet.AttemptID // sorted
}

func newAgents() *agents {
	return &agents{delivered: make(map[fleet.AttemptID]delivery), heard: make(map[fleet.HostID]heard), full: fewDeliveries}
}

// enter forgets what was of another term. a.mu must be held.
func (a *agents) enter(term uint64) {
	if a.term != term {
		a.term = term
		clear(a.delivered)
		clear(a.heard)
	}
}

// hear notes a sync. It reports false when a newer one of the same host has been
// heard: then this one is late, and says nothing.
func (a *agents) hear(term uint64, q *api.Sync) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.enter(term)
	if h, ok := a.heard[q.Host]; ok && h.boot == q.Boot &&
		(q.Incarnation < h.incarnation || q.Incarnation == h.incarnation && q.Seq < h.seq) {
		return false
	}
	h := heard{boot: q.Boot, incarnation: q.Incarnation, seq: q.Seq, stamp: q.Stamp}
	for _, at := range q.Attempts {
		h.lists = append(h.lists, at.Attempt)
	}
	slices.Sort(h.lists)
	a.heard[q.Host] = h
	return true
}

// offers reports whether an attempt may still be offered to its host.
func (a *agents) offers(term uint64, id fleet.AttemptID, now lease.Mono) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.enter(term)
	d, ok := a.delivered[id]
	return !ok || now.Sub(d.first) < offerFor
}

// deliver notes that orders are on their way. It is called before they are sent.
func (a *agents) deliver(term uint64, v *state.View, orders []api.Order, to fleet.Incarnation, now lease.Mono) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.enter(term)
	for _, o := range orders {
		d, ok := a.delivered[o.Attempt]
		if !ok {
			d.first = now
		}
		d.last, d.to = now, to
		a.delivered[o.Attempt] = d
	}
	if len(a.delivered) < a.full {
		return
	}
	for id := range a.delivered {
		if at, ok := v.Attempts.Get(id); !ok || !at.Live() {
			delete(a.delivered, id)
		}
	}
	for id := range a.heard {
		if _, ok := v.Hosts.Get(id); !ok {
			delete(a.heard, id)
		}
	}
	a.full = max(fewDeliveries, 2*len(a.delivered))
}

// Delivered returns when an attempt was last delivered to its host, and to
// which incarnation of its agent, in the present term of this node; ok is false
// when it was not.
func (s *Server) Delivered(id fleet.AttemptID) (at lease.Mono, to fleet.Incarnation, ok bool) {
	_, term := s.cfg.Replica.Leader()
	s.agents.mu.Lock()
	defer s.agents.mu.Unlock()
	s.agents.enter(term)
	d, ok := s.agents.delivered[id]
	return d.last, d.to, ok
}

// LastSync returns the newest sync of a host in the present term of this node,
// and whether it listed the attempt; ok is false when there was none.
func (s *Server) LastSync(host fleet.HostID, id fleet.AttemptID) (lease.Sync, bool) {
	_, term := s.cfg.Replica.Leader()
	s.agents.mu.Lock()
	defer s.agents.mu.Unlock()
	s.agents.enter(term)
	h, ok := s.agents.heard[host]
	_, lists := slices.BinarySearch(h.lists, id)
	return lease.Sync{Incarnation: h.incarnation, Stamp: h.stamp, Lists: lists}, ok
}

// agent lets agents in.
func (s *Server) agent(r *http.Request) (Caller, error) {
	if err := s.ours(r, true); err != nil {
		return Caller{}, err
	}
	c, err := s.door.caller(r)
	if err != nil {
		return Caller{}, err
	}
	if c.Role != fleet.Agent {
		return Caller{}, fleet.Deniedf("%s is not an agent: only agents may say this", c.Principal)
	}
	return c, nil
}

// beat acknowledges that an agent is alive: from memory, at once.
func (s *Server) beat(w http.ResponseWriter, r *http.Request) error {
	if _, err := s.agent(r); err != nil {
		return err
	}
	body, err := readBody(w, r, maxBody)
	if err != nil {
		return err
	}
	var b api.Beat
	if err := decode(body, &b); err != nil {
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
	s.metrics.beats.WithLabelValues(fmt.Sprint(reply.Ack)).Inc()
	return s.reply(w, reply)
}

func checkAgent(host fleet.HostID, boot fleet.BootID) error {
	if err := fleet.CheckName("host", string(host)); err != nil {
		return err
	}
	if boot == "" || len(boot) > maxLabel {
		return fleet.Invalidf("host %s does not name its boot", host)
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
		return fleet.Invalidf("host %s does not name the incarnation of its agent", q.Host)
	}
	if q.Slots < 0 || q.Slots > 256 {
		return fleet.Invalidf("host %s says that it has %d slots; at most 256 are allowed", q.Host, q.Slots)
	}
	if len(q.Version) > maxLabel || len(q.Known) > maxLabel {
		return fleet.Invalidf("the sync of host %s has a field that is too long", q.Host)
	}
	for i := range q.Attempts {
		at := &q.Attempts[i]
		switch {
		case rank(at.Phase) < 0:
			return fleet.Invalidf("host %s says that attempt %d is in phase %q", q.Host, at.Attempt, shorten(string(at.Phase)))
		case (at.Phase == fleet.PhaseEnded) != (at.Outcome != ""):
			return fleet.Invalidf("host %s says that attempt %d is in phase %s with outcome %q", q.Host, at.Attempt, at.Phase, shorten(string(at.Outcome)))
		case at.Outcome != "" && !slices.Contains(outcomes, at.Outcome):
			return fleet.Invalidf("host %s says that attempt %d ended as %q", q.Host, at.Attempt, shorten(string(at.Outcome)))
		case len(at.Why) > maxReason:
			at.Why = shorten(at.Why)
		}
	}
	return nil
}

var (
	phases   = [...]fleet.Phase{fleet.PhaseAssigned, fleet.PhaseSetup, fleet.PhaseCheckout, fleet.PhaseSteps, fleet.PhaseUpload, fleet.PhaseEnded}
	outcomes = []fleet.Outcome{fleet.Passed, fleet.Failed, fleet.TimedOut, fleet.Canceled, fleet.Lost, fleet.Broken}
)

// rank orders the phases; -1 for what is none.
func rank(p fleet.Phase) int { return slices.Index(phases[:], p) }

// sync hears what an agent holds, and answers with what it shall do.
func (s *Server) sync(w http.ResponseWriter, r *http.Request) error {
	if _, err := s.agent(r); err != nil {
		return err
	}
	body, err := readBody(w, r, maxLogsBody)
	if err != nil {
		return err
	}
	var q api.Sync
	if err := decode(body, &q); err != nil {
		return err
	}
	if err := checkSync(&q); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
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
	until := time.Now().Add(syncHold)
	// Proof that this node leads, given after the agent has sent its request.
	// Who leads next begins after it, so the start window of what is ordered here
	// is over when a new leader thinks it is; and the view has every attempt
	// that the agent can know of, so what is missing there may be killed.
	if err := s.cfg.Replica.ReadIndex(ctx); err != nil {
		return api.SyncReply{}, err
	}
	_, term := s.cfg.Replica.Leader()
	if term == 0 {
		return api.SyncReply{}, fleet.Unavailablef("node %s is not the leader any more", s.cfg.Node)
	}
	if !s.agents.hear(term, q) {
		return api.SyncReply{}, fleet.Conflictf("host %s has sent a newer sync than this one", q.Host)
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
		reply := s.orders(v, q, term, leave)
		end := until
		if len(reply.Start) > 0 {
			end = until.Add(orderHold - syncHold)
		}
		if reply.Known != q.Known || !time.Now().Before(end) {
			now := s.cfg.Mono()
			s.agents.deliver(term, v, reply.Start, q.Incarnation, now)
			reply.Stamp = lease.Stamp{Term: term, At: now}
			if _, now := s.cfg.Replica.Leader(); now != term {
				return api.SyncReply{}, fleet.Unavailablef("node %s is not the leader any more", s.cfg.Node)
			}
			return reply, nil
		}
		wait, cancel := context.WithDeadline(ctx, end)
		_, err := s.cfg.World.WaitView(wait, v.Index)
		if err == nil {
			// Under load one look serves many views.
			pause := time.NewTimer(syncPause)
			select {
			case <-pause.C:
			case <-wait.Done():
				pause.Stop()
			}
		}
		cancel()
		if ctx.Err() != nil {
			return api.SyncReply{}, ctx.Err()
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
	h, known := s.cfg.View().Hosts.Get(q.Host)
	switch {
	case known && (h.State == fleet.HostEnding || h.State == fleet.HostGone):
		return true, nil
	case known && h.State == fleet.HostReady && h.Boot == q.Boot && h.Incarnation == q.Incarnation:
		return false, nil
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
	v := s.cfg.View()
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
		return nil
	}
	return s.propose(ctx, catalog.AgentReport, q.Host, via, catalog.AgentReportArgs{Host: q.Host, Boot: q.Boot, Attempts: news})
}

// proves reports whether a task waits for the proof that at has ended.
func proves(v *state.View, at fleet.Attempt) bool {
	b, ok := v.Builds.Get(at.Build)
	return ok && at.Task < len(b.Tasks) && b.Tasks[at.Task].Held == at.ID
}

// orders says what an agent shall do, as v has it. Known is its digest.
func (s *Server) orders(v *state.View, q *api.Sync, term uint64, leave bool) api.SyncReply {
	reply := api.SyncReply{FenceAfter: fleet.DefaultFenceAfter, Leave: leave}
	reply.Members, reply.Nodes = s.cfg.Members()
	if h, ok := v.Hosts.Get(q.Host); ok {
		reply.Leave = leave || h.State == fleet.HostEnding || h.State == fleet.HostGone
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
		now := s.cfg.Mono()
		for _, at := range v.LiveOn(q.Host) {
			if at.Phase != fleet.PhaseAssigned || at.Boot != q.Boot || at.Incarnation != q.Incarnation || at.Cancel || holds[at.ID] ||
				!s.agents.offers(term, at.ID, now) {
				continue
			}
			if b, ok := v.Builds.Get(at.Build); ok {
				reply.Start = append(reply.Start, api.Order{Attempt: at.ID, Build: at.Build, Task: at.Task, N: at.N, Spec: b.Spec})
			}
		}
	}
	reply.Known = digest(&reply)
	return reply
}

// digest names what a reply says; never empty.
func digest(reply *api.SyncReply) string {
	b, err := json.Marshal(reply)
	if err != nil {
		panic("server: the answer to a sync cannot be encoded: " + err.Error())
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}
