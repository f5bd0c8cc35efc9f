package replica

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"unicode/utf8"

	"github.com/hashicorp/raft"

	"footplate/controlplane/state"
	"footplate/fleet"
)

// Lane orders what waits to be proposed: all of a lower lane goes before any of
// a higher one.
type Lane int

// The lanes.
const (
	// LaneOperations is for what people ask for, and for what the loops decide
	// on their behalf.
	LaneOperations Lane = iota
	// LaneBulk is for what comes from the fleet: reports of agents, hooks.
	LaneBulk
	lanes
)

const (
	entriesInFlight = 2
	entryOverhead   = 64 // of an entry, beside its commands and a byte for each

	// An entry with operations in it carries at most this much bulk, so that an
	// operation does not wait for half a mebibyte of bulk to be applied. The
	// biggest command fits, so that no bulk waits for ever.
	bulkBesideOperations = state.MaxCommandBytes + 1

	// What may wait in one lane. More is refused: with nothing done, the caller
	// can do better than wait.
	waitingBytes = 64 << 20
	waitingCount = 64 << 10
)

// The fates of a waiting command.
const (
	fateWaiting int32 = iota
	fateTaken         // by the packer: it may be in the log
	fateGone          // its caller gave up before
)

// waiting is a command on its way.
type waiting struct {
	command state.Command
	encoded []byte
	fate    atomic.Int32
	done    chan struct{} // closed when outcome and err are set
	outcome state.Outcome
	err     error
}

func (w *waiting) finish(o state.Outcome, err error) {
	w.outcome, w.err = o, err
	close(w.done)
}

// packer puts the commands that wait in one term of one leader into log
// entries. Nothing waits for company: an entry leaves as soon as one of two
// places in flight is free, with whatever waits by then.
type packer struct {
	node    fleet.NodeID
	term    uint64
	log     *slog.Logger
	machine Machine
	now     func() fleet.Time
	step    func() // the clock, for ClockStep
	submit  func(data, seal []byte) raft.ApplyFuture
	packing func(data []byte, batch state.Batch) (forget func())
	stopped <-chan struct{} // closed when raft has stopped: it may answer no more

	mu     sync.Mutex
	closed error // why nothing is accepted
	queues [lanes][]*waiting
	bytes  [lanes]int

	wake chan struct{} // holds a token while something may wait
	turn chan struct{} // holds a token while nobody packs
}

// ready completes a packer of which the fields above are set.
func (p *packer) ready() *packer {
	p.wake, p.turn = make(chan struct{}, 1), make(chan struct{}, 1)
	p.turn <- struct{}{}
	return p
}

// run packs until ctx ends, and returns when nothing is in flight.
func (p *packer) run(ctx context.Context) {
	var carriers sync.WaitGroup
	for range entriesInFlight {
		carriers.Go(func() {
			for p.carry(ctx) {
			}
		})
	}
	carriers.Wait()
}

// close fails what waits, and what comes later, with err.
func (p *packer) close(err error) {
	p.mu.Lock()
	p.closed = err
	queues := p.queues
	p.queues = [lanes][]*waiting{}
	p.mu.Unlock()
	for _, q := range queues {
		for _, w := range q {
			if w.fate.CompareAndSwap(fateWaiting, fateTaken) {
				w.finish(state.Outcome{}, err)
			}
		}
	}
}

// counts returns how many commands wait in each lane.
func (p *packer) counts() (n [lanes]int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, q := range p.queues {
		n[i] = len(q)
	}
	return n
}

// propose waits for the outcome of c, which is what encoded decodes to.
func (p *packer) propose(ctx context.Context, lane Lane, c state.Command, encoded []byte) (state.Outcome, error) {
	w := &waiting{command: c, encoded: encoded, done: make(chan struct{})}
	if err := p.enqueue(lane, w); err != nil {
		return state.Outcome{}, err
	}
	select {
	case <-w.done:
		return w.outcome, w.err
	case <-p.stopped:
	case <-ctx.Done():
	}
	if w.fate.CompareAndSwap(fateWaiting, fateGone) {
		return state.Outcome{}, fleet.Unavailablef("operation %q was not started in time: nothing was done", c.Op).
			WithHint("try again")
	}
	select {
	case <-w.done:
		return w.outcome, w.err
	default:
		return state.Outcome{}, unknownOutcome(c.Op)
	}
}

// asLogged returns what encoded, the encoding of c, decodes to. The leader must
// apply what the others will read in the log, to the letter, and not what the
// caller gave, and encoding is not quite lossless: it mends broken UTF-8 and
// compacts arguments. Commands that it does not change, nearly all, are spared
// the decoding.
func asLogged(c state.Command, encoded []byte) (state.Command, error) {
	before, unchanged := bytes.CutSuffix(encoded[:len(encoded)-1], c.Args)
	same := c.Refusal == nil && len(c.ApprovedBy) == 0 &&
		unchanged && bytes.HasSuffix(before, []byte(`"args":`))
	for _, s := range [...]string{c.Key, c.Op, string(c.By), string(c.Role), c.Via, c.Reason, c.Incident, c.Plan, c.Salt, string(c.Repeat)} {
		same = same && utf8.ValidString(s)
	}
	for i := range c.Saw {
		same = same && utf8.ValidString(c.Saw[i].Table) && utf8.ValidString(c.Saw[i].Key)
	}
	if same {
		c.ApprovedBy = nil
		if len(c.Saw) == 0 {
			c.Saw = nil
		}
		return c, nil
	}
	var logged state.Command
	if err := json.Unmarshal(encoded, &logged); err != nil {
		return logged, fleet.Invalidf("operation %q cannot be encoded: %s", c.Op, err)
	}
	return logged, nil
}

func unknownOutcome(op string) *fleet.Error {
	return fleet.Unknownf("the outcome of operation %q is unknown", op).WithHint("ask again with the same key")
}

func (p *packer) enqueue(lane Lane, w *waiting) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case lane < 0 || lane >= lanes:
		return fleet.Internalf("there is no lane %d", lane)
	case p.closed != nil:
		return p.closed
	case len(p.queues[lane]) >= waitingCount || p.bytes[lane]+len(w.encoded) > waitingBytes:
		return fleet.Unavailablef("node %q is overloaded with %d waiting commands: nothing was done", p.node, len(p.queues[lane])).
			WithHint("try again in a few seconds")
	}
	p.queues[lane] = append(p.queues[lane], w)
	p.bytes[lane] += len(w.encoded)
	p.nudge()
	return nil
}

func (p *packer) nudge() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// take removes what fits into one entry.
func (p *packer) take() []*waiting {
	p.mu.Lock()
	defer p.mu.Unlock()
	var taken []*waiting
	room := state.MaxBatchBytes - entryOverhead
	for lane := range p.queues {
		if Lane(lane) == LaneBulk && len(taken) > 0 {
			room = min(room, bulkBesideOperations)
		}
		q := p.queues[lane]
		n := 0
		for ; n < len(q); n++ {
			size := len(q[n].encoded) + 1
			if size > room {
				break
			}
			p.bytes[lane] -= len(q[n].encoded)
			if q[n].fate.CompareAndSwap(fateWaiting, fateTaken) {
				taken = append(taken, q[n])
				room -= size
			}
		}
		clear(q[:n])
		p.queues[lane] = q[n:]
		if n < len(q) {
			p.nudge()
			break // nothing of a later lane goes before what is left of this one
		}
		p.queues[lane] = nil
	}
	return taken
}

// carry takes one entry through: it packs it, hands it to raft, waits for what
// comes of it, and tells the callers. It reports false when ctx has ended.
// Packing and handing over is done by one carrier at a time, so that entries
// keep their order.
func (p *packer) carry(ctx context.Context) bool {
	select {
	case <-p.turn:
	case <-ctx.Done():
		return false
	}
	select {
	case <-p.wake:
	case <-ctx.Done():
		p.turn <- struct{}{}
		return false
	}
	// The callers whose outcomes have just been handed out run first: what they
	// ask for next goes along. This is no delay but for a busy processor.
	runtime.Gosched()
	batch, commands := p.try(p.take())
	if len(batch) == 0 {
		p.turn <- struct{}{}
		return true
	}
	if slices.ContainsFunc(commands, func(c state.Command) bool { return c.Op == ClockStep }) {
		p.step()
	}
	entry := state.Batch{At: p.now(), Commands: commands}
	encoded := make([][]byte, len(batch))
	for i, w := range batch {
		encoded[i] = w.encoded
	}
	data := state.EncodeBatch(entry.At, encoded)
	forget := p.packing(data, entry)
	defer forget()
	future := p.submit(data, sealEntry(p.term, data))
	p.turn <- struct{}{}
	p.deliver(batch, future)
	return true
}

// try refuses the commands that would stop every node. It returns the others.
func (p *packer) try(batch []*waiting) ([]*waiting, []state.Command) {
	if len(batch) == 0 {
		return nil, nil
	}
	commands := make([]state.Command, len(batch))
	for i, w := range batch {
		commands[i] = w.command
	}
	errs, err := p.tryMachine(commands)
	if err == nil && errs == nil {
		return batch, commands
	}
	kept, left := batch[:0], commands[:0]
	for i, w := range batch {
		refused := err
		if refused == nil {
			refused = errs[i]
		}
		if refused == nil {
			kept, left = append(kept, w), append(left, commands[i])
			continue
		}
		w.finish(state.Outcome{}, fleet.AsError(refused))
	}
	return kept, left
}

func (p *packer) tryMachine(commands []state.Command) (errs []error, err error) {
	defer func() {
		if r := recover(); r != nil {
			p.log.Error("panic while trying commands", "err", r, "stack", string(debug.Stack()))
			err = fleet.Internalf("trying the operation failed: nothing was done").WithHint("see the log of node %q", p.node)
		}
	}()
	errs = p.machine.Try(p.now(), commands)
	if errs != nil && len(errs) != len(commands) {
		return nil, fmt.Errorf("%d results of trying %d commands", len(errs), len(commands))
	}
	return errs, nil
}

// deliver waits for future and hands each command its part.
func (p *packer) deliver(batch []*waiting, future raft.ApplyFuture) {
	err := future.Error()
	var outcomes []state.Outcome
	if err == nil {
		switch r := future.Response().(type) {
		case []state.Outcome:
			outcomes = r
		case error:
			err = r
		}
		if err == nil && len(outcomes) != len(batch) {
			err = fmt.Errorf("%d outcomes for %d commands", len(outcomes), len(batch))
		}
	}
	if err == nil {
		for i, w := range batch {
			w.finish(outcomes[i], nil)
		}
		return
	}
	for _, w := range batch {
		if neverLogged(err) {
			w.finish(state.Outcome{}, p.notLeader())
		} else {
			w.finish(state.Outcome{}, unknownOutcome(w.command.Op))
		}
	}
}

// neverLogged reports whether err, of an entry that was handed to raft, means
// that no node will ever apply it. Raft answers so before it appends; once it
// has appended, it says that leadership was lost, or that it shuts down.
func neverLogged(err error) bool {
	return errors.Is(err, raft.ErrNotLeader) || errors.Is(err, raft.ErrLeadershipTransferInProgress) ||
		errors.Is(err, raft.ErrEnqueueTimeout) || errors.Is(err, errVoid)
}

func (p *packer) notLeader() *fleet.Error { return notLeader(p.node) }

func notLeader(node fleet.NodeID) *fleet.Error {
	return fleet.Unavailablef("node %q is not the leader: nothing was done", node).WithHint("try again in a few seconds")
}
