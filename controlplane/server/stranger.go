package server

import (
	"context"
	"net/http"
	"net/url"
	"sync"
	"time"
)

// The bounds of looking for a token that this node does not know.
const (
	strangersEvery = 100 * time.Millisecond
	strangersWait  = 2 * time.Second
)

// strangers are the requests whose token this node does not know. It may have
// been made a moment ago, and acknowledged by another node, so they wait until
// this one has applied what was acknowledged before they came. All who come
// within strangersEvery share one question to the leader: a flood of wrong
// tokens costs it no more than that.
type strangers struct {
	mu   sync.Mutex
	next chan struct{} // closed after a look that has not begun yet; nil when none is due
	last time.Time     // when the last look began
}

// wait returns after a look that began after the call, or at the end of ctx.
func (s *strangers) wait(ctx context.Context, look func()) {
	s.mu.Lock()
	done := s.next
	if done == nil {
		done = make(chan struct{})
		s.next = done
		time.AfterFunc(time.Until(s.last.Add(strangersEvery)), func() {
			s.mu.Lock()
			s.next, s.last = nil, time.Now()
			s.mu.Unlock()
			look()
			close(done)
		})
	}
	s.mu.Unlock()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// caller authenticates a request by its headers.
func (s *Server) caller(r *http.Request) (Caller, error) {
	if _, term := s.cfg.Replica.Leader(); term == 0 && !s.door.knows(secretOf(r)) {
		s.strangers.wait(r.Context(), func() {
			ctx, cancel := context.WithTimeout(context.Background(), strangersWait)
			defer cancel()
			// Without an answer the token stays unknown, which is said.
			_ = s.fresh(ctx, &http.Request{URL: &url.URL{}, Header: http.Header{}})
		})
	}
	return s.door.caller(r)
}
