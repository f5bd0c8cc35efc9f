package replica

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"footplate/controlplane/state"
	"footplate/fleet"
)

// LeaderBegin is the operation that a leader proposes first in its term. Its
// arguments are LeaderBeginArgs.
const LeaderBegin = "leader begin"

// LeaderBeginArgs are the arguments of LeaderBegin, in its version 1.
type LeaderBeginArgs struct {
	Node fleet.NodeID `json:"node"`
	Term uint64       `json:"term"`
}

// ClockStep is the operation with which a person lets the state clock follow the
// nodes' wall clocks over any gap: forward with the log entry that the operation
// is in, backward by going slower for as long as this leader leads.
const ClockStep = "cluster clock step"

// office is one node's leadership in one term: from the moment when its
// "leader begin" is applied until the loss of leadership.
type office struct {
	r      *Replica
	ra     *raft.Raft
	term   uint64
	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{} // closed when everything of it has ended
	packer *packer
	reads  reads

	mu     sync.Mutex
	clock  StateClock
	last   time.Time // when clock was advanced
	median time.Time // of the wall clocks, as of looked
	looked time.Time
	alarm  bool
}

// takeOffice begins an office; before is the one before it on this node, nil
// for the first.
func (r *Replica) takeOffice(ctx context.Context, ra *raft.Raft, before *office) *office {
	o := &office{r: r, ra: ra, term: ra.CurrentTerm(), done: make(chan struct{})}
	o.ctx, o.cancel = context.WithCancel(ctx)
	o.reads.verify = o.verify
	o.packer = (&packer{
		node: r.cfg.NodeID, term: o.term, log: r.log, machine: r.cfg.Machine, now: o.now, step: o.step, packing: r.fsm.packing,
		stopped: r.stopped,
		submit: func(data, seal []byte) raft.ApplyFuture {
			return ra.ApplyLog(raft.Log{Data: data, Extensions: seal}, 0)
		},
	}).ready()
	r.log.Info("elected", "term", o.term)
	go func() {
		defer close(o.done)
		o.serve(before)
	}()
	return o
}

// leave ends the office: nothing more is accepted, and what waits is refused.
func (o *office) leave() {
	o.r.office.CompareAndSwap(o, nil)
	o.cancel()
	o.packer.close(notLeader(o.r.cfg.NodeID))
}

func (o *office) serve(before *office) {
	log := o.r.log.With("term", o.term)
	if !o.catchUp() {
		return
	}
	o.startClock()
	if !o.begin() {
		return
	}
	var ends sync.WaitGroup
	defer ends.Wait()
	ends.Go(func() { o.packer.run(o.ctx) })
	o.r.office.Store(o)
	if o.ctx.Err() != nil {
		o.r.office.CompareAndSwap(o, nil)
		return
	}
	log.Info("took office")
	defer log.Info("left office")

	if before != nil {
		select {
		case <-before.done:
		default:
			// Two terms of the loops never overlap on one node.
			log.Warn("waiting for the loops of the term before to end")
			select {
			case <-before.done:
			case <-o.ctx.Done():
				return
			}
		}
	}
	if o.r.cfg.Lead != nil {
		o.r.cfg.Lead(o.ctx, o.term)
	}
	<-o.ctx.Done()
}

// begin proposes "leader begin" and waits until it is applied. It reports false
// when the office ended before.
func (o *office) begin() bool {
	for try := 1; o.ctx.Err() == nil; try++ {
		err := o.proposeBegin(try)
		if err == nil {
			return true
		}
		o.r.log.Warn("beginning the term failed", "term", o.term, "err", err)
		select {
		case <-o.ctx.Done():
		case <-time.After(o.r.cfg.HeartbeatTimeout):
		}
	}
	return false
}

func (o *office) proposeBegin(try int) error {
	args, err := json.Marshal(LeaderBeginArgs{Node: o.r.cfg.NodeID, Term: o.term})
	if err != nil {
		return err
	}
	salt := make([]byte, 16)
	rand.Read(salt)
	c := state.Command{
		Key:  fmt.Sprintf("leader-begin/%d/%d", o.term, try),
		Op:   LeaderBegin,
		Ver:  1,
		By:   fleet.Principal("node:" + string(o.r.cfg.NodeID)),
		Role: fleet.System,
		Via:  o.r.cfg.Via,
		Salt: hex.EncodeToString(salt),
		Term: o.term,
		Args: args,
	}
	encoded, err := state.EncodeCommand(&c)
	if err != nil {
		return err
	}
	data := state.EncodeBatch(o.now(), [][]byte{encoded})
	future := o.ra.ApplyLog(raft.Log{Data: data, Extensions: sealEntry(o.term, data)}, 0)
	if err := future.Error(); err != nil {
		return err
	}
	switch result := future.Response().(type) {
	case error:
		return result
	case []state.Outcome:
		if err := result[0].Err; err != nil {
			return err
		}
	}
	return nil
}

// catchUp waits until all is applied that had a time of its own in the log when
// this node was elected: only then is it known where the log left the clock. It
// reports false when the office ended before.
func (o *office) catchUp() bool {
	last, err := o.lastStamped(o.r.fsm.position().Index)
	if err != nil {
		o.r.fsm.halt(fmt.Errorf("the end of the log cannot be read: %w", err))
		return false
	}
	return o.r.fsm.wait(o.ctx, last) == nil
}

// startClock sets the clock to where the log left it, plus the time that has
// passed on this node since that came here: so the gap between two leaders is
// bridged without trust in any wall clock, however late it was applied, and the
// clock never gains on the time that has truly passed. What has passed since
// anything earlier does not count: the leader that wrote the end of the log may
// have begun its clock anew, behind that.
func (o *office) startClock() {
	o.mu.Lock()
	defer o.mu.Unlock()
	pos := o.r.fsm.position()
	o.last = time.Now()
	if pos.At.IsZero() {
		// The first leader of all: there is no clock to go on from.
		o.clock = StartClock(fleet.TimeOf(o.last))
		return
	}
	o.clock = StartClock(pos.At.Add(fleet.DurationOf(o.last.Sub(pos.seen))))
}

// lastStamped returns the index of the last entry in the log that may have a
// time of its own, which all have but memberships and raft's own marks; or
// applied, when there is none after that.
func (o *office) lastStamped(applied uint64) (uint64, error) {
	logs := o.r.stores.logs
	end, err := logs.LastIndex()
	if err != nil {
		return 0, err
	}
	for i := end; i > applied; i-- {
		var l raft.Log
		switch err := logs.GetLog(i, &l); {
		case errors.Is(err, raft.ErrLogNotFound):
			return i, nil // in a snapshot that is being restored
		case err != nil:
			return 0, err
		case l.Type == raft.LogCommand:
			return i, nil
		}
	}
	return applied, nil
}

// now advances the state clock.
func (o *office) now() fleet.Time {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	var median time.Time
	switch {
	case o.looked.IsZero() || now.Sub(o.looked) >= offsetsEvery:
		o.looked = now
		o.median = o.r.medianWall(now)
		median = o.median
	case !o.median.IsZero():
		median = o.median.Add(now.Sub(o.looked))
	}
	at := o.clock.Advance(now.Sub(o.last), median)
	o.last = now
	if gap, alarm := o.clock.Gap(); alarm != o.alarm {
		o.alarm = alarm
		if alarm {
			o.r.log.Error("the state clock is too far from the nodes' clocks to follow them: check them, then step it", "term", o.term, "gap", gap.String())
		} else {
			o.r.log.Info("the state clock follows the nodes' clocks again", "term", o.term)
		}
	}
	return at
}

// step lets the clock follow the wall clocks over any gap, once.
func (o *office) step() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.clock.Step()
}

func (r *Replica) medianWall(now time.Time) time.Time {
	if r.cfg.WallOffsets == nil {
		return now
	}
	voters := 0
	for _, m := range r.fsm.position().Members {
		if m.Voter {
			voters++
		}
	}
	return Median(now, r.cfg.WallOffsets(), voters)
}

// reads lets one proof of leadership serve all readers who came before it
// began.
type reads struct {
	verify func() error

	mu      sync.Mutex
	running bool
	next    *read
}

type read struct {
	done chan struct{}
	err  error
}

func (s *reads) join() *read {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next == nil {
		s.next = &read{done: make(chan struct{})}
	}
	if !s.running {
		s.running = true
		go s.run()
	}
	return s.next
}

func (s *reads) run() {
	for {
		s.mu.Lock()
		current := s.next
		s.next = nil
		if current == nil {
			s.running = false
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		current.err = s.verify()
		close(current.done)
	}
}

// verify proves that this node has led all through, and waits until everything
// is applied that had been committed when it was called.
func (o *office) verify() error {
	index := o.ra.CommitIndex()
	if err := o.ra.VerifyLeader().Error(); err != nil {
		return notLeader(o.r.cfg.NodeID)
	}
	// With the same term after as before, the commit index was this term's.
	if o.ra.CurrentTerm() != o.term || o.ctx.Err() != nil {
		return notLeader(o.r.cfg.NodeID)
	}
	if err := o.r.fsm.wait(o.ctx, index); err != nil {
		return notLeader(o.r.cfg.NodeID)
	}
	return nil
}
