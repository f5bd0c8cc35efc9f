package replica

import (
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// transport is what raft needs to reach the other nodes.
type transport interface {
	raft.Transport
	raft.WithPreVote
	raft.WithClose
}

// canvass is a transport that asks for pre-votes with an ear for who else asks.
//
// A node asks the others whether they would vote for it before it stands for
// election, and they refuse while they have not noticed themselves that the
// leader is gone. So the first who notices is refused by the second; the second
// asks a moment later, and is refused as well when its log is shorter. Raft lets
// both wait for one to two timeouts then, in which nobody leads. But a node that
// asks has noticed. So after a refusal the canvass waits until that node asks in
// its turn, and asks it once more.
//
// Then there are two who may both stand, and could split the vote, after which
// they would wait as long. So of two with equal logs the one with the lower id
// goes first: the other holds the consent that it was given back for a while.
//
// Nothing of this touches raft's safety: a pre-vote promises nothing.
type canvass struct {
	transport
	timeout time.Duration // HeartbeatTimeout
	stop    chan struct{} // closed when the node stops

	mu    sync.Mutex
	pleas map[raft.ServerID]plea
	next  chan struct{} // closed at the next plea
}

// plea is the last request of a node for a pre-vote.
type plea struct {
	raft.RequestPreVoteRequest
	count int
	at    time.Time
}

func newCanvass(t transport, timeout time.Duration) *canvass {
	return &canvass{
		transport: t, timeout: timeout, stop: make(chan struct{}),
		pleas: make(map[raft.ServerID]plea), next: make(chan struct{}),
	}
}

// listen makes c hear what is asked of ra.
func (c *canvass) listen(ra *raft.Raft) {
	ra.RegisterObserver(raft.NewObserver(nil, false, func(o *raft.Observation) bool {
		if req, ok := o.Data.(raft.RequestPreVoteRequest); ok {
			c.hear(req)
		}
		return false
	}))
}

func (c *canvass) hear(req raft.RequestPreVoteRequest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	from := raft.ServerID(req.ID)
	c.pleas[from] = plea{req, c.pleas[from].count + 1, time.Now()}
	close(c.next)
	c.next = make(chan struct{})
}

// heard returns how often a node has asked.
func (c *canvass) heard(from raft.ServerID) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pleas[from].count
}

// RequestPreVote implements raft.WithPreVote.
func (c *canvass) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	before := c.heard(id)
	err := c.transport.RequestPreVote(id, target, args, resp)
	if err == nil && !resp.Granted && resp.Term <= args.Term && c.await(id, before) {
		// Once more and not again: the node may be waiting for us in the same way,
		// and the two would never stop.
		*resp = raft.RequestPreVoteResponse{}
		err = c.transport.RequestPreVote(id, target, args, resp)
	}
	if err == nil && resp.Granted {
		c.giveWay(id, args)
	}
	return err
}

// await waits until the node from has asked more often than before. It reports
// false when it does not, until raft has given the election up.
func (c *canvass) await(from raft.ServerID, before int) bool {
	over := time.NewTimer(c.timeout)
	defer over.Stop()
	for {
		c.mu.Lock()
		count, next := c.pleas[from].count, c.next
		c.mu.Unlock()
		if count != before {
			return true
		}
		select {
		case <-next:
		case <-over.C:
			return false
		case <-c.stop:
			return false
		}
	}
}

// giveWay waits, with the consent of the node id in hand, while another goes
// first. When that wins its election, raft has forgotten by then what the
// consent was for.
func (c *canvass) giveWay(id raft.ServerID, args *raft.RequestPreVoteRequest) {
	if id < raft.ServerID(args.ID) {
		// It may have noticed just now, and its own request be on the way.
		c.pause(c.timeout / 50)
	}
	if c.second(args) {
		// A slow disk takes long over the six times that two nodes write down a
		// term and a vote.
		c.pause(c.timeout / 2)
	}
}

func (c *canvass) pause(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-c.stop:
	}
}

// second reports whether a node with a lower id and a log that is no shorter
// has asked for the same election.
func (c *canvass) second(args *raft.RequestPreVoteRequest) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, p := range c.pleas {
		if id < raft.ServerID(args.ID) && p.Term == args.Term && time.Since(p.at) < c.timeout &&
			(p.LastLogTerm > args.LastLogTerm || p.LastLogTerm == args.LastLogTerm && p.LastLogIndex >= args.LastLogIndex) {
			return true
		}
	}
	return false
}
