// Package archive keeps the audit log on a node's disk: every entry, for ever,
// in an embedded database, with queries, exports and the proof that nothing is
// missing or altered.
//
// It is a projection of the Raft log. Apply makes an entry, Append takes it,
// and one writer (Run) puts it into the database a little later, many at a
// time. What is not yet on disk is not lost when the power goes: it is still in
// the log, because Flush is called before each Raft snapshot and no snapshot
// passes what the archive has on disk. So entries are written without waiting
// for the disk, and only Flush waits.
//
// A node that joined by snapshot has a gap: entries that it never applied.
// Missing names it and Fill closes it with entries from a peer, from the newest
// backwards, because an entry proves the one before it: each holds the hash of
// its predecessor. So a peer can hold entries back, and cannot forge one.
//
// Invariants. An entry that is here is never replaced by another (but by the
// same with more of its fields erased). Neighbours are linked by their hashes;
// what does not link is refused, because it means that two histories have met.
// Whether an entry's hash fits its content is not judged by Append, which
// records what was applied, but by Fill, Verify and VerifyChain.
//
// It does not decide what is recorded, and it knows nothing of Raft.
package archive

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"footplate/fleet"
	"footplate/fleet/fault"
)

const (
	// linger is how long the writer waits for more entries to come, unless
	// somebody waits for it: a transaction costs as much as many entries.
	linger = 100 * time.Millisecond
	// retryAfter is the pause after a write that failed.
	retryAfter = time.Second
	// maxWrite bounds the entries of one transaction.
	maxWrite = 2048
	// maxQueue bounds the entries that wait. When the disk is merely slow,
	// Append then waits; when it fails, they are dropped and become a gap.
	maxQueue = 1 << 14
)

// Archive is the audit log of one node. Its methods may be called by any
// number of goroutines at once.
type Archive struct {
	db      *database
	cluster string

	wake  chan struct{} // something is queued
	hurry chan struct{} // somebody waits for it

	mu      sync.Mutex
	changed chan struct{}   // closed and replaced when anything below changes
	queue   [][]fleet.Entry // as Append was given them
	queued  int             // entries in queue
	joined  []fleet.Entry   // what next joined, to be used again
	fills   []*fill
	taken   uint64 // entries ever queued
	written uint64 // of these, those that the writer is done with

	last     fleet.EntryNo // highest number that Append was given
	floor    fleet.EntryNo // what this run of the node was given by snapshot ends here
	begin    fleet.EntryNo // what is before it is nowhere any more
	expected Anchor        // newest entry that is known to exist and was not queued
	have     spans         // in the database
	durable  spans         // in the database and certainly on disk
	syncing  bool          // somebody waits in Flush
	failures uint64        // writes that failed
	err      error         // of the newest write; nil when it went well
	fault    *fleet.Error  // two histories have met; for good
	closed   bool
}

type fill struct {
	entries []fleet.Entry
	done    chan error
}

// Anchor is the hash that the entry with a number is known to have.
type Anchor struct {
	N    fleet.EntryNo `json:"n"`
	Hash string        `json:"hash"`
}

// Open opens the archive of the cluster, a fleet.ClusterName, in dir, and makes
// it when there is none. It refuses the archive of another cluster. One of an
// earlier recovery epoch is gone on with: the chain does as well.
func Open(dir, cluster string) (*Archive, error) {
	id, _, err := fleet.ParseCluster(cluster)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open archive: %w", err)
	}
	db, have, err := openDatabase(filepath.Join(dir, "audit.db"), id)
	if err != nil {
		return nil, err
	}
	return &Archive{
		db:      db,
		cluster: cluster,
		wake:    make(chan struct{}, 1),
		hurry:   make(chan struct{}, 1),
		changed: make(chan struct{}),
		have:    have,
	}, nil
}

// Close closes the database. Run must have returned.
func (a *Archive) Close() error {
	a.mu.Lock()
	a.closed = true
	a.announce()
	a.mu.Unlock()
	return a.db.close()
}

// Append queues entries, which must be in order. Entries that are here already
// are compared: others under the same number are a fault, which Err and Flush
// report. It does not wait for the disk, unless very many entries wait already;
// so Run must have been started. The entries are the archive's from then on.
func (a *Archive) Append(entries []fleet.Entry) {
	for len(entries) > 0 {
		a.mu.Lock()
		for a.queued >= maxQueue && a.err == nil && a.fault == nil && !a.closed {
			changed := a.changed
			a.mu.Unlock()
			signal(a.hurry)
			<-changed
			a.mu.Lock()
		}
		room := min(maxQueue-a.queued, len(entries))
		if a.fault != nil || a.closed || room <= 0 {
			// The log still has them, because no snapshot passes them; and a
			// peer can fill them in, because the hash of the last is known.
			a.note(entries)
			if last := &entries[len(entries)-1]; last.N > a.expected.N {
				a.expected = Anchor{last.N, last.Hash}
			}
			a.mu.Unlock()
			return
		}
		a.note(entries[:room])
		a.queue = append(a.queue, entries[:room])
		a.queued += room
		a.taken += uint64(room)
		full := a.queued >= maxWrite
		a.mu.Unlock()
		signal(a.wake)
		if full {
			signal(a.hurry)
		}
		entries = entries[room:]
	}
}

// note keeps the number of the newest entry, and where the ones that came by
// snapshot end: a number that does not follow the one before it.
func (a *Archive) note(entries []fleet.Entry) {
	for i := range entries {
		n := entries[i].N
		if n > a.last {
			if n != a.last+1 {
				a.floor = max(a.floor, n-1)
			}
			a.last = n
		}
	}
}

// Expect says that a snapshot was restored whose newest entry is upto, with
// this hash: entries up to it that are not here are a gap.
func (a *Archive) Expect(ctx context.Context, upto fleet.EntryNo, hash string) error {
	if upto == 0 {
		return nil
	}
	if err := a.settle(ctx); err != nil {
		return err
	}
	a.mu.Lock()
	held := a.have.covers(upto, upto)
	a.mu.Unlock()
	if held {
		e, err := a.Get(ctx, upto)
		if err != nil {
			return err
		}
		if e.Hash != hash {
			fault := forked(upto)
			a.mu.Lock()
			a.fault = fault
			a.announce()
			a.mu.Unlock()
			return fault
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last = max(a.last, upto)
	a.floor = max(a.floor, upto)
	if upto > a.expected.N {
		a.expected = Anchor{upto, hash}
	}
	a.announce()
	return nil
}

// BeginAt says that the entries before n are nowhere any more, because the
// cluster was recovered without them: they are not missed.
func (a *Archive) BeginAt(n fleet.EntryNo) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.begin = n
}

// Last returns the highest number that is in the archive, 0 when it is empty.
func (a *Archive) Last() fleet.EntryNo {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.have.last()
}

// Missing returns the newest gap: the numbers from and to are the first and the
// last that are not here. Both are 0 when there is none.
func (a *Archive) Missing() (from, to fleet.EntryNo) {
	a.mu.Lock()
	defer a.mu.Unlock()
	from, to = a.have.gap(max(a.have.last(), a.expected.N))
	if to < a.begin {
		return 0, 0
	}
	return max(from, min(a.begin, to)), to
}

// Err returns what keeps the archive from writing, nil when nothing does. An
// error with fleet.CodeConflict is for good: two histories have met. Any other
// is tried again each second.
func (a *Archive) Err() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fault != nil {
		return a.fault
	}
	return a.err
}

// Flush returns when every entry up to upto that this node has applied is on
// disk. Entries that came by snapshot are not waited for: the log does not have
// them either, and Missing tells of them. It fails when a write fails that
// began after the call, and when ctx ends.
func (a *Archive) Flush(ctx context.Context, upto fleet.EntryNo) error {
	a.mu.Lock()
	before := a.failures
	for {
		var err error
		switch {
		case a.fault != nil:
			err = a.fault
		case upto <= a.floor || a.durable.covers(a.floor+1, upto):
		case a.failures > before && a.err != nil:
			err = a.err
		case a.closed:
			err = errClosed
		default:
			a.syncing = true
			changed := a.changed
			a.mu.Unlock()
			signal(a.hurry)
			select {
			case <-changed:
			case <-ctx.Done():
				return fmt.Errorf("flush audit archive up to entry %d: %w", upto, ctx.Err())
			}
			a.mu.Lock()
			continue
		}
		a.mu.Unlock()
		return err
	}
}

// Fill stores entries that a peer gave, in order and without a gap, and returns
// when they are written. They must be intact and end just below an entry that
// is here or at the one that Expect named, since the newer entry proves the
// older one; what Missing returns is filled from its end.
func (a *Archive) Fill(ctx context.Context, entries []fleet.Entry) error {
	if len(entries) == 0 {
		return nil
	}
	for i := range entries {
		e := &entries[i]
		if why := e.Unsound(); why != "" {
			return fleet.Conflictf("entry %d from a peer is not intact: %s", e.N, why).WithHint("ask another node")
		}
		if i > 0 && (e.N != entries[i-1].N+1 || e.Prev != entries[i-1].Hash) {
			return fleet.Conflictf("entry %d from a peer does not follow entry %d", e.N, entries[i-1].N).WithHint("ask another node")
		}
	}
	f := &fill{entries: entries, done: make(chan error, 1)}
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return errClosed
	}
	a.fills = append(a.fills, f)
	a.mu.Unlock()
	signal(a.hurry)
	select {
	case err := <-f.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

var errClosed = fleet.Unavailablef("the audit archive is closed")

// Run writes what is queued, until ctx ends; then it writes the rest.
func (a *Archive) Run(ctx context.Context) error {
	retry := time.NewTimer(time.Hour)
	defer retry.Stop()
	for {
		var again <-chan time.Time
		a.mu.Lock()
		if a.err != nil && a.queued > 0 {
			retry.Reset(retryAfter)
			again = retry.C
		}
		a.mu.Unlock()
		select {
		case <-a.wake:
			pause := time.NewTimer(linger)
			select {
			case <-pause.C:
			case <-a.hurry:
			case <-ctx.Done():
			}
			pause.Stop()
		case <-a.hurry:
		case <-again:
		case <-ctx.Done():
		}
		for a.work() {
		}
		if ctx.Err() != nil {
			a.mu.Lock()
			a.syncing = true
			a.mu.Unlock()
			for a.work() {
			}
			a.mu.Lock()
			a.closed = true
			fills := a.fills
			a.fills = nil
			a.announce()
			a.mu.Unlock()
			for _, f := range fills {
				f.done <- errClosed
			}
			return nil
		}
	}
}

// work does one transaction's worth, and reports whether there is more.
func (a *Archive) work() (more bool) {
	a.mu.Lock()
	batch := a.next()
	fills := a.fills
	a.fills = nil
	sync := a.syncing
	a.syncing = false
	have := slices.Clone(a.have) // only this goroutine writes to it
	expected := a.expected
	a.mu.Unlock()

	// store puts entries and, only when that went well, changes have.
	store := func(entries []fleet.Entry, proven bool) error {
		if len(entries) > 0 {
			fault.Here(fault.ArchiveWrite)
		}
		more, err := a.db.put(slices.Clone(have), expected, entries, proven)
		if err == nil {
			have = more
		}
		if len(entries) > 0 {
			fault.Here(fault.ArchiveWritten)
		}
		return err
	}
	var fault *fleet.Error
	done := len(batch)
	err := store(batch, false)
	var c *conflict
	if errors.As(err, &c) {
		// What comes before the conflict is as good as ever.
		fault = c.err
		err = store(batch[:c.at], false)
	}
	if err != nil {
		done, fault = 0, nil
	}
	filled := make([]error, len(fills))
	for i, f := range fills {
		filled[i] = store(f.entries, true)
		if errors.As(filled[i], &c) {
			filled[i] = c.err
		}
	}
	if err == nil && sync {
		err = a.db.sync()
	}

	a.mu.Lock()
	defer a.mu.Unlock()
	a.err = err
	if err != nil {
		a.failures++
	}
	a.have = have
	if err == nil && sync {
		a.durable = slices.Clone(have)
	}
	a.written += uint64(done)
	if done > 0 {
		a.queue[0] = a.queue[0][done:]
		a.queued -= done
		clear(a.joined) // no longer needed: none may be kept from the collector
		if len(a.queue[0]) == 0 {
			a.queue = a.queue[1:]
		}
	}
	if fault != nil {
		a.fault = fault
		a.written += uint64(a.queued)
		a.queue, a.queued = nil, 0
	}
	a.announce()
	// Told only now that Missing knows of it too.
	for i, f := range fills {
		f.done <- filled[i]
	}
	return err == nil && (a.queued > 0 || len(a.fills) > 0)
}

// next joins what is queued, up to a transaction's worth, at the head of the
// queue, and returns it. a.mu must be held.
func (a *Archive) next() []fleet.Entry {
	if a.queued == 0 {
		return nil
	}
	n, total := 1, len(a.queue[0])
	for n < len(a.queue) && total < maxWrite {
		total += len(a.queue[n])
		n++
	}
	if n > 1 {
		a.joined = a.joined[:0]
		for _, entries := range a.queue[:n] { // the first may be what was joined before
			a.joined = append(a.joined, entries...)
		}
		a.queue = slices.Replace(a.queue, 0, n, a.joined)
	}
	return a.queue[0]
}

// settle waits until what was appended before the call can be read, or cannot
// be written.
func (a *Archive) settle(ctx context.Context) error {
	a.mu.Lock()
	target := a.taken
	for a.written < target && a.err == nil && a.fault == nil && !a.closed {
		changed := a.changed
		a.mu.Unlock()
		signal(a.hurry)
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
		a.mu.Lock()
	}
	a.mu.Unlock()
	return nil
}

// announce wakes whoever waits for a change. a.mu must be held.
func (a *Archive) announce() {
	close(a.changed)
	a.changed = make(chan struct{})
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func forked(n fleet.EntryNo) *fleet.Error {
	return fleet.Conflictf("entry %d in the audit archive is another than the one in the log", n).
		WithHint("compare with the archives of the other nodes: footplate audit verify")
}
