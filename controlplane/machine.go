package controlplane

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"footplate/controlplane/api"
	"footplate/controlplane/archive"
	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
	"footplate/fleet/lease"
)

// DigestEvery is how many log entries lie between two digests.
const DigestEvery = 16

// digestsKept is how many of the newest digests a node can compare with what
// the others say: more than a busy node gets ahead of another between two calls.
const digestsKept = 128

// machine is the replicated state machine: it applies the log to the state,
// publishes a view after each log entry, and hands entries to the archive.
type machine struct {
	ops    *op.Registry
	skip   map[uint64][]int    // commands to step over, by log index
	append func([]fleet.Entry) // to the archive
	// fits says why a command must not be logged yet, when a node would halt at
	// it; nil when there are no other nodes.
	fits func(*state.Command) *fleet.Error

	epoch uint64 // the recovery epoch that the node's data is of; 0 when it may be any
	// since is when, on this process's clock, the state came to be of its epoch.
	since atomic.Int64

	st   *state.State // owned by the goroutine that applies
	view atomic.Pointer[state.View]
	// restored is the newest entry of a snapshot that was restored, until the
	// archive has been told of it.
	restored atomic.Pointer[archive.Anchor]

	mu      sync.Mutex // of what follows
	newer   chan struct{}
	digests []api.Digest
	scratch sync.Mutex // copies of one view must not overlap
}

func newMachine(ops *op.Registry, skip map[uint64][]int, append func([]fleet.Entry)) *machine {
	m := &machine{ops: ops, skip: skip, append: append, st: state.New(), newer: make(chan struct{})}
	m.since.Store(int64(mono()))
	m.view.Store(m.st.Publish())
	return m
}

// Apply applies one log entry.
func (m *machine) Apply(index, _ uint64, b state.Batch) ([]state.Outcome, error) {
	before := m.st.Index
	applied, err := m.ops.Apply(m.st, index, b, m.skip[index])
	if err != nil {
		return nil, err
	}
	if len(applied.Entries) > 0 {
		m.append(applied.Entries)
	}
	// The same crossing on every node, also on one that was restored from a
	// snapshot: it depends on the state alone.
	if before/DigestEvery != index/DigestEvery {
		d := api.Digest{Index: index, Sum: m.st.Digest()}
		m.mu.Lock()
		m.digests = append(m.digests, d)
		if len(m.digests) > digestsKept {
			m.digests = m.digests[1:]
		}
		m.mu.Unlock()
	}
	m.publish()
	return applied.Outcomes, nil
}

func (m *machine) publish() {
	m.view.Store(m.st.Publish())
	m.mu.Lock()
	close(m.newer)
	m.newer = make(chan struct{})
	m.mu.Unlock()
}

// View returns the newest view.
func (m *machine) View() *state.View { return m.view.Load() }

// WaitView returns a view newer than index, or ctx's error.
func (m *machine) WaitView(ctx context.Context, index uint64) (*state.View, error) {
	for {
		m.mu.Lock()
		newer := m.newer
		m.mu.Unlock()
		if v := m.view.Load(); v.Index > index {
			return v, nil
		}
		select {
		case <-newer:
		case <-ctx.Done():
			return m.view.Load(), ctx.Err()
		}
	}
}

// Scratch returns a state of its own that starts as the newest view is.
func (m *machine) Scratch() *state.State {
	m.scratch.Lock()
	defer m.scratch.Unlock()
	return m.view.Load().Scratch()
}

// Digest returns the newest digest.
func (m *machine) Digest() (index uint64, sum string, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.digests) == 0 {
		return 0, "", false
	}
	d := m.digests[len(m.digests)-1]
	return d.Index, d.Sum, true
}

// Digests returns the newest digests, oldest first.
func (m *machine) Digests() []api.Digest {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]api.Digest(nil), m.digests...)
}

// Snapshot returns what writes the state as it is now.
func (m *machine) Snapshot() (write func(io.Writer) error, index uint64) {
	v := m.view.Load()
	return v.Dump, v.Index
}

// Restore replaces the state by a snapshot's.
func (m *machine) Restore(r io.Reader) error {
	st, err := state.Load(r)
	if err != nil {
		return err
	}
	if m.epoch != 0 && st.Epoch != 0 && st.Epoch != m.epoch {
		return fleet.Conflictf("the state is of recovery epoch %d, and the data directory of epoch %d: a recovery was broken off", st.Epoch, m.epoch).
			WithHint("do it again: footplate server recover")
	}
	if st.Epoch != m.st.Epoch {
		m.since.Store(int64(mono()))
	}
	m.st = st
	if st.Entry > 0 {
		m.restored.Store(&archive.Anchor{N: st.Entry, Hash: st.Head})
	}
	m.publish()
	return nil
}

// recovered returns for how long this process has known of the state's recovery
// epoch.
func (m *machine) recovered() fleet.Duration { return mono().Sub(lease.Mono(m.since.Load())) }

// Try runs commands on a copy of the state before they are proposed: one that
// panics, or that is newer than the slowest node, is refused at the door. What
// merely fails may be proposed: its failure is recorded.
func (m *machine) Try(at fleet.Time, commands []state.Command) []error {
	var errs []error
	var st *state.State
	for i := range commands {
		if st == nil {
			st = m.Scratch()
			st.Begin(st.Index+1, at)
		}
		if err := m.tryOne(st, &commands[i]); err != nil {
			if errs == nil {
				errs = make([]error, len(commands))
			}
			errs[i] = err
			st = nil // it may be half changed
		}
	}
	return errs
}

func (m *machine) tryOne(st *state.State, c *state.Command) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fleet.Internalf("%s was refused at the door: it would halt every node (%v)", c.Op, r).
				WithHint("this is a defect of footplate; the log of the leader has the details")
		}
	}()
	if m.fits != nil {
		if no := m.fits(c); no != nil {
			return no
		}
	}
	if err := m.ops.Rehearse(st, c); err != nil {
		return fleet.Internalf("%s was refused at the door: %s", c.Op, err)
	}
	return nil
}

// parseSkips reads --skip-command values: INDEX/POSITION.
func parseSkips(values []string) (map[uint64][]int, error) {
	skip := make(map[uint64][]int)
	for _, v := range values {
		var index uint64
		var n int
		if got, err := fmt.Sscanf(v, "%d/%d", &index, &n); err != nil || got != 2 || n < 0 {
			return nil, fleet.Invalidf("--skip-command %q is not understood", v).WithHint("INDEX/POSITION, as the message of the halted node names it")
		}
		skip[index] = append(skip[index], n)
	}
	return skip, nil
}
