package server

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"footplate/controlplane/api"
	"footplate/controlplane/certs"
	"footplate/fleet"
)

// leaderAt is where the leader is.
type leaderAt struct {
	node fleet.NodeID
	api  string
}

// retryEvery is the pause before the leader is asked again.
const retryEvery = 25 * time.Millisecond

// atLeader runs here on the leader, if that is this node, and otherwise there.
// While there is no leader it waits for one. What failed without effect is
// tried again for leaderWait; what failed with an unknown outcome for
// unsureWait, with the same key, so that it can only act once. What another
// node has passed on is not passed on again.
func (s *Server) atLeader(ctx context.Context, r *http.Request, key string, here func(context.Context) error, there func(context.Context, leaderAt) error) error {
	if r.Header.Get(api.HeaderForwarded) != "" {
		return here(ctx)
	}
	patience := time.Now().Add(leaderWait)
	unsure := false
	for {
		var err error
		nobody := false
		leader, term := s.cfg.Replica.Leader()
		at, known := s.address(leader)
		switch {
		case term != 0:
			err = here(ctx)
		case known && at.node != s.cfg.Node:
			err = there(ctx, at)
		default:
			nobody, err = true, errNobody
		}
		switch fleet.CodeOf(err) {
		case fleet.CodeUnknown:
			if !unsure {
				unsure, patience = true, time.Now().Add(unsureWait)
			}
		case fleet.CodeUnavailable:
		default:
			return err
		}
		s.pause(ctx, r)
		if ctx.Err() == nil && time.Now().Before(patience) {
			continue
		}
		if unsure {
			return fleet.Unknownf("what came of it is not known: the leader was lost in the middle").
				WithHint("repeat it with --idempotency-key %s: it tells what came of it, and never acts twice", key)
		}
		if nobody {
			return s.noLeader(ctx) // it costs more to say why than to look again
		}
		return err
	}
}

// errNobody stands for what noLeader says, until somebody is to hear it.
var errNobody = fleet.Unavailablef("there is no leader")

// pause waits before the leader is asked again: the longer, the more agents do,
// so that a fleet that waits does not keep the nodes from electing one.
func (s *Server) pause(ctx context.Context, r *http.Request) {
	wait := retryEvery
	if strings.HasPrefix(r.URL.Path, "/v1/agent.") {
		n := s.waiting.Add(1)
		defer s.waiting.Add(-1)
		wait = min(wait+time.Duration(n)*time.Millisecond/4, leaderWait/4)
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// address returns where a node is.
func (s *Server) address(id fleet.NodeID) (leaderAt, bool) {
	for _, n := range s.cfg.Nodes() {
		if n.Node == id && n.API != "" {
			return leaderAt{id, n.API}, true
		}
	}
	return leaderAt{}, false
}

// halted is the role of a node that applies nothing any more.
const halted = "halted"

// noLeader says why nobody leads, as far as this node can tell: a node that is
// cut off must not say that there is no leader.
func (s *Server) noLeader(ctx context.Context) *fleet.Error {
	if s.cfg.Status().Role == halted {
		return fleet.Unavailablef("node %q has halted: nothing was done", s.cfg.Node).WithHint("ask another node; the log of node %s says why", s.cfg.Node)
	}
	nodes := s.cfg.World.Cluster(ctx).Nodes
	reached := 0
	for _, n := range nodes {
		if n.Node == s.cfg.Node || n.Role != "unreachable" {
			reached++
		}
	}
	if len(nodes) > 1 && reached <= len(nodes)/2 {
		return fleet.Unavailablef("node %q is cut off: it reaches %d of %d nodes; nothing was done", s.cfg.Node, reached, len(nodes)).
			WithHint("ask another node")
	}
	if leader, _ := s.cfg.Replica.Leader(); leader != "" {
		return fleet.Unavailablef("node %q leads, but is not ready yet: nothing was done", leader).WithHint("try again in a few seconds")
	}
	return fleet.Unavailablef("there is no leader at the moment: nothing was done").WithHint("try again in a few seconds")
}

// fresh returns when this node has applied everything that was acknowledged,
// anywhere, before the call.
func (s *Server) fresh(ctx context.Context, r *http.Request) error {
	err := s.atLeader(ctx, r, "", s.cfg.Replica.ReadIndex, func(ctx context.Context, at leaderAt) error {
		// A leader that has died without a word must not cost all of the patience.
		call, cancel := context.WithTimeout(ctx, leaderWait)
		defer cancel()
		req, err := http.NewRequestWithContext(call, http.MethodGet, at.api+"/v1/peer.index", nil)
		if err != nil {
			return fmt.Errorf("ask node %s for its index: %w", at.node, err)
		}
		req.Header.Set("Authorization", "Bearer "+s.cfg.NodeToken)
		req.Header.Set(api.HeaderCluster, s.cfg.Cluster)
		res, _, err := s.call(s.peers, req, at)
		if err == nil {
			err = problemOf(res)
		}
		if err != nil {
			return fleet.Unavailablef("the leader %q does not answer: %s", at.node, err).WithHint("try again in a few seconds")
		}
		defer res.Body.Close()
		var got peerIndex
		if err := json.NewDecoder(res.Body).Decode(&got); err != nil {
			return fleet.Unavailablef("the leader %q does not answer: %s", at.node, err).WithHint("try again in a few seconds")
		}
		if got.Index == 0 {
			return nil
		}
		if _, err := s.cfg.World.WaitView(ctx, got.Index-1); err != nil {
			return fleet.Unavailablef("node %q is behind the leader", s.cfg.Node).WithHint("ask another node")
		}
		return nil
	})
	// What reads has a way out that nothing else has.
	var e *fleet.Error
	if errors.As(err, &e) && e.Code == fleet.CodeUnavailable && !strings.Contains(e.Hint, "--stale") {
		return fleet.Unavailablef("%s", e.Msg).WithHint("%s, or read with --stale", cmp.Or(e.Hint, "try again"))
	}
	return err
}

// ask passes a command on to the leader, and reads its answer.
func (s *Server) ask(ctx context.Context, l *lane, r *http.Request, at leaderAt, key string, body, into any) error {
	res, err := s.send(ctx, l, r, at, key, body)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxLogsBody))
	if err == nil {
		err = json.Unmarshal(b, into)
	}
	if err != nil {
		return lost(at)
	}
	return nil
}

func lost(at leaderAt) error {
	return fleet.Unknownf("the connection to the leader %s broke off before it answered", at.node)
}

// send passes a request on to the leader and returns its answer, if that is no
// error. An error with CodeUnavailable means that nothing was done, one with
// CodeUnknown that something may have been.
func (s *Server) send(ctx context.Context, l *lane, r *http.Request, at leaderAt, key string, body any) (*http.Response, error) {
	b, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, at.api+r.URL.Path, bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("pass on to node %s: %w", at.node, err)
	}
	for _, h := range []string{"Authorization", api.HeaderVia, api.HeaderFor} {
		if v := r.Header.Get(h); v != "" {
			req.Header.Set(h, v)
		}
	}
	if id, ok := certs.Of(r.TLS); ok && id.Kind == certs.Agent {
		// Its certificate does not come along: this node, which has seen it,
		// vouches for the agent.
		req.Header.Set("Authorization", "Bearer "+s.cfg.NodeToken)
		req.Header.Set(api.HeaderFor, string(fleet.AgentOf(fleet.HostID(id.Name))))
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set(api.HeaderCluster, s.cfg.Cluster)
	req.Header.Set(api.HeaderForwarded, string(s.cfg.Node))
	if key != "" {
		// Go's transport may then repeat it by itself when it finds that the
		// connection it has kept is gone.
		req.Header.Set("Idempotency-Key", key)
	}
	res, sent, err := s.call(l, req, at)
	switch {
	case err == nil:
		return res, problemOf(res)
	case sent:
		return nil, lost(at)
	}
	return nil, fleet.Unavailablef("the leader %q cannot be reached: nothing was done", at.node).WithHint("try again in a few seconds")
}

// call makes one call to the leader, and gives it up when another node leads
// before it has answered. sent reports whether anything was written.
func (s *Server) call(l *lane, req *http.Request, at leaderAt) (res *http.Response, sent bool, err error) {
	ctx, cancel := context.WithCancel(req.Context())
	s.outward.Add(1)
	end := sync.OnceFunc(func() {
		cancel()
		s.outward.Add(-1)
	})
	var wrote atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { wrote.Store(true) }})
	answered := make(chan struct{})
	go func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-answered:
				return
			case <-tick.C:
				if leader, _ := s.cfg.Replica.Leader(); leader != at.node && leader != "" {
					cancel()
					return
				}
			}
		}
	}()
	res, err = l.client.Do(req.WithContext(ctx))
	close(answered)
	if err != nil {
		end()
		return nil, wrote.Load(), err
	}
	// The context lives as long as the body is read.
	res.Body = &boundBody{res.Body, end}
	return res, true, nil
}

// boundBody ends a call's context with its body.
type boundBody struct {
	io.ReadCloser
	end func()
}

func (b *boundBody) Close() error {
	defer b.end()
	return b.ReadCloser.Close()
}

// problemOf returns the error that an answer is, nil when it is none, and
// closes its body then.
func problemOf(res *http.Response) error {
	if res.StatusCode < 300 && res.Header.Get("Content-Type") != "application/problem+json" {
		return nil
	}
	defer res.Body.Close()
	var p api.Problem
	b, err := io.ReadAll(io.LimitReader(res.Body, maxBody))
	if err != nil || json.Unmarshal(b, &p) != nil || p.Code == "" {
		return fleet.Unknownf("the leader answers %s", res.Status)
	}
	e := &fleet.Error{Code: p.Code, Msg: p.Detail, Hint: p.Hint, Plan: p.Plan}
	if res.StatusCode != e.Code.Meaning().HTTP {
		return &statusError{e, res.StatusCode}
	}
	return e
}
