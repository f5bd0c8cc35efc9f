package replica

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"footplate/controlplane/state"
	"footplate/fleet"
)

// seal is what travels beside each entry in raft's Extensions: a checksum of
// the entry, because raft-wal keeps none by entry, and the term that the entry
// was packed for.
const sealSize = 4 + 8

func sealEntry(term uint64, data []byte) []byte {
	seal := make([]byte, sealSize)
	binary.BigEndian.PutUint64(seal[4:], term)
	binary.BigEndian.PutUint32(seal, sealSum(seal[4:], data))
	return seal
}

func sealSum(term, data []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	return crc32.Update(crc32.Checksum(term, table), table, data)
}

// openSeal checks data and returns the term that it was packed for.
func openSeal(seal, data []byte) (uint64, error) {
	if len(seal) != sealSize {
		return 0, fmt.Errorf("log entry has a seal of %d bytes instead of %d", len(seal), sealSize)
	}
	if binary.BigEndian.Uint32(seal) != sealSum(seal[4:], data) {
		return 0, errors.New("log entry does not fit its checksum: it was damaged on disk or on its way")
	}
	return binary.BigEndian.Uint64(seal[4:]), nil
}

// errVoid is the result of an entry that landed in another term than it was
// packed for: no node applied it.
var errVoid = errors.New("the entry was packed for another term")

// position is how far the log has been applied, and what the log itself says
// about the cluster. All but seen is the same on every node, and is kept in
// snapshots.
type position struct {
	Index   uint64     `json:"index"`
	Term    uint64     `json:"term"`
	At      fleet.Time `json:"at"` // the state clock
	Members []Member   `json:"members"`
	// Version is that of the membership: the index of the entry that set it.
	Version uint64 `json:"version"`

	seen time.Time // when the entry that set At arrived in this node's log
}

// fsm adapts a Machine to raft. Raft calls it from one goroutine.
type fsm struct {
	machine Machine
	before  func(index uint64) error
	log     *slog.Logger
	newest  *membership
	arrived arrivals

	snapshot atomic.Uint64 // index of the newest snapshot

	own sync.Map // *byte, the first of an entry packed here -> state.Batch

	mu      sync.Mutex
	now     position
	changed chan struct{} // closed at the next move, when somebody waits
	err     error         // why it halted
	halted  chan struct{}
}

func newFSM(m Machine, before func(uint64) error, log *slog.Logger) *fsm {
	return &fsm{machine: m, before: before, log: log, newest: new(membership), halted: make(chan struct{})}
}

// halt stops everything for ever; the first reason stays.
func (f *fsm) halt(err error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
		close(f.halted)
	}
	return f.err
}

func (f *fsm) haltErr() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

func (f *fsm) position() position {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

func (f *fsm) move(to position) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now = to
	if f.changed != nil {
		close(f.changed)
		f.changed = nil
	}
}

// wait returns when index has been applied.
func (f *fsm) wait(ctx context.Context, index uint64) error {
	for {
		f.mu.Lock()
		if f.now.Index >= index {
			f.mu.Unlock()
			return nil
		}
		if f.changed == nil {
			f.changed = make(chan struct{})
		}
		changed := f.changed
		f.mu.Unlock()
		select {
		case <-changed:
		case <-f.halted:
			return f.haltErr()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Apply implements raft.FSM.
func (f *fsm) Apply(l *raft.Log) any { return f.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch implements raft.BatchingFSM. A result is []state.Outcome or an
// error.
func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	results := make([]any, len(logs))
	pos := f.position()
	err := f.haltErr()
	for i, l := range logs {
		if err != nil {
			results[i] = err
			continue
		}
		switch l.Type {
		case raft.LogConfiguration:
			pos.Members = membersOf(raft.DecodeConfiguration(l.Data))
			pos.Version = l.Index
		case raft.LogCommand:
			var outcomes []state.Outcome
			outcomes, err = f.applyEntry(&pos, l)
			switch {
			case errors.Is(err, errVoid):
				results[i] = err
				err = nil
			case err != nil:
				err = f.halt(fmt.Errorf("log entry %d of term %d cannot be applied: %w", l.Index, l.Term, err))
				results[i] = err
				continue
			default:
				results[i] = outcomes
			}
		}
		pos.Index, pos.Term = l.Index, l.Term
	}
	f.move(pos)
	return results
}

func (f *fsm) applyEntry(pos *position, l *raft.Log) (_ []state.Outcome, err error) {
	term, err := openSeal(l.Extensions, l.Data)
	if err != nil {
		return nil, err
	}
	if term != l.Term {
		return nil, errVoid
	}
	batch, ok := f.packedHere(l.Data)
	if !ok {
		if batch, err = state.DecodeBatch(l.Data); err != nil {
			return nil, err
		}
	}
	// No leader stamps an earlier time than the log holds; a damaged one must not
	// turn the clock back.
	batch.At = max(batch.At, pos.At)
	defer func() {
		if p := recover(); p != nil {
			f.log.Error("panic while applying a log entry", "index", l.Index, "err", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	outcomes, err := f.machine.Apply(l.Index, l.Term, batch)
	if err != nil {
		return nil, err
	}
	if len(outcomes) != len(batch.Commands) {
		return nil, fmt.Errorf("%d outcomes for %d commands", len(outcomes), len(batch.Commands))
	}
	pos.At, pos.seen = batch.At, f.arrived.of(l.Index)
	return outcomes, nil
}

// arrivals are the times at which the entries of the log came to this node, of
// those that it has not applied yet.
type arrivals struct {
	mu   sync.Mutex
	runs []arrival
}

type arrival struct {
	first, last uint64
	at          time.Time
}

// note says that the entries from first to last have come. They replace what was
// in their place.
func (a *arrivals) note(first, last uint64, at time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for n := len(a.runs); n > 0 && a.runs[n-1].first >= first; n-- {
		a.runs = a.runs[:n-1]
	}
	if n := len(a.runs); n > 0 {
		a.runs[n-1].last = min(a.runs[n-1].last, first-1)
	}
	a.runs = append(a.runs, arrival{first, last, at})
}

// of returns when the entry at index came, and forgets what is before it: that
// was applied. Of what was in the log when the node started nothing is known
// but that it is there now.
func (a *arrivals) of(index uint64) time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(a.runs) > 0 && a.runs[0].last < index {
		a.runs = a.runs[1:]
	}
	if len(a.runs) == 0 || a.runs[0].first > index {
		return time.Now()
	}
	return a.runs[0].at
}

// packing remembers what data, an entry packed by this node, decodes to, until
// the returned function is called. Raft hands the very same bytes back when the
// entry is committed, and decoding them again would be the leader's biggest
// cost by far.
func (f *fsm) packing(data []byte, batch state.Batch) (forget func()) {
	f.own.Store(&data[0], batch)
	return func() { f.own.Delete(&data[0]) }
}

func (f *fsm) packedHere(data []byte) (state.Batch, bool) {
	if len(data) == 0 {
		return state.Batch{}, false
	}
	batch, ok := f.own.Load(&data[0])
	if !ok {
		return state.Batch{}, false
	}
	return batch.(state.Batch), true
}

// snapshotMagic opens every snapshot; a position as one line of JSON follows,
// and then what the machine wrote.
const snapshotMagic = "fps1"

type snapshot struct {
	fsm   *fsm
	pos   position
	write func(io.Writer) error
}

// Snapshot implements raft.FSM.
func (f *fsm) Snapshot() (_ raft.FSMSnapshot, err error) {
	if err := f.haltErr(); err != nil {
		return nil, err
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic while taking a snapshot: %v", p)
		}
	}()
	write, _ := f.machine.Snapshot()
	return &snapshot{fsm: f, pos: f.position(), write: write}, nil
}

// Persist implements raft.FSMSnapshot.
func (s *snapshot) Persist(sink raft.SnapshotSink) error {
	err := s.persist(sink)
	if err != nil {
		return errors.Join(err, sink.Cancel())
	}
	if err := sink.Close(); err != nil {
		return err
	}
	s.fsm.snapshot.Store(s.pos.Index)
	return nil
}

func (s *snapshot) persist(sink io.Writer) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic while writing a snapshot: %v", p)
		}
	}()
	if s.fsm.before != nil {
		if err := s.fsm.before(s.pos.Index); err != nil {
			return fmt.Errorf("prepare snapshot at index %d: %w", s.pos.Index, err)
		}
	}
	head, err := json.Marshal(s.pos)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(sink, 256<<10)
	if _, err := fmt.Fprintf(w, "%s%s\n", snapshotMagic, head); err != nil {
		return err
	}
	if err := s.write(w); err != nil {
		return err
	}
	return w.Flush()
}

// Release implements raft.FSMSnapshot.
func (s *snapshot) Release() {}

// Restore implements raft.FSM. What the machine holds after a failed one is
// not known, so that halts the node.
func (f *fsm) Restore(from io.ReadCloser) error {
	if err := f.haltErr(); err != nil {
		return err
	}
	pos, err := f.restore(from)
	if err != nil {
		return f.halt(fmt.Errorf("snapshot cannot be restored: %w", err))
	}
	f.snapshot.Store(pos.Index)
	f.move(pos)
	// A snapshot that a leader sent stands for the log that this node lacks, and
	// for the membership in it.
	f.newest.set(max(f.newest.version.Load(), pos.Version))
	return nil
}

func (f *fsm) restore(from io.Reader) (pos position, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	r := bufio.NewReaderSize(from, 256<<10)
	magic := make([]byte, len(snapshotMagic))
	if _, err := io.ReadFull(r, magic); err != nil {
		return pos, fmt.Errorf("it is cut short: %w", err)
	}
	if string(magic) != snapshotMagic {
		return pos, fmt.Errorf("it begins with %q instead of %q: not a snapshot, or one of another version", magic, snapshotMagic)
	}
	head, err := r.ReadBytes('\n')
	if err != nil {
		return pos, fmt.Errorf("it is cut short: %w", err)
	}
	if err := json.Unmarshal(head, &pos); err != nil {
		return pos, fmt.Errorf("its head is damaged: %w", err)
	}
	pos.seen = time.Now()
	return pos, f.machine.Restore(r)
}
