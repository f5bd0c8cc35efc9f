// Package logs keeps the output of builds on a node's disk: chunks, each with
// the number of its attempt and its own number in it. An agent drops a chunk
// from its spool when two nodes have said that they hold it, so Put returns
// only when the chunks are on disk.
//
// The problem is the cost of that. Waiting for the disk takes much longer than
// writing a chunk, and many agents write at once. The way chosen: all chunks
// are appended to one segment file, whatever their attempt; whoever comes first
// writes for all who wait and waits for the disk once (group commit). The file
// is made at its full size beforehand, so that syncing it need not write its
// length. A file an attempt was not chosen: each would be synced by itself.
//
// The index is in memory, 16 bytes a chunk, and is rebuilt from the segments by
// Open; the data stays on disk. A segment is deleted when all attempts in it
// were removed.
//
// Invariants. A chunk that is here never changes: the same one again is
// ignored, another with its number is refused. What was acknowledged is found
// again after a power cut; what was not may be found too.
//
// It does not order: chunks may come in any order, and a node may hold only
// some of an attempt's. Putting the nodes' parts together is the server's work.
package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sort"
	"sync"

	"footplate/fleet"
)

// MaxChunkBytes bounds the data of one chunk.
const MaxChunkBytes = 256 << 10

// segmentBytes is the size of a segment file.
const segmentBytes = 64 << 20

// keptBuffer bounds the memory that is kept between commits.
const keptBuffer = 4 << 20

// Chunk is a piece of the output of an attempt.
type Chunk struct {
	Attempt fleet.AttemptID `json:"attempt"`
	N       int             `json:"n"` // from 0
	At      fleet.Time      `json:"at"`
	Data    []byte          `json:"data"`
	Final   bool            `json:"final,omitempty"` // no chunk comes after it
}

// Range is a range of chunk numbers, both ends included.
type Range struct {
	From int `json:"from"`
	To   int `json:"to"`
}

// Held says which chunks of an attempt are here.
type Held struct {
	Ranges []Range `json:"ranges,omitempty"` // ascending
	Last   int     `json:"last"`             // highest number; -1 when there is none
	Final  int     `json:"final"`            // number of the final chunk; -1 while it is not known
	Bytes  int64   `json:"bytes"`            // of data
}

// Complete reports whether all chunks are here.
func (h Held) Complete() bool {
	return h.Final >= 0 && len(h.Ranges) == 1 && h.Ranges[0] == Range{0, h.Final}
}

// Stats says how much there is.
type Stats struct {
	Attempts int   `json:"attempts"`
	Chunks   int   `json:"chunks"`
	Segments int   `json:"segments"`
	Bytes    int64 `json:"bytes"` // of data
	// Damaged counts the segments that Open could not read to their end: what
	// stood after the damage is gone from this node. The end of the newest
	// segment, torn by a crash, does not count.
	Damaged int `json:"damaged,omitempty"`
}

// place says where a chunk is.
type place struct {
	n      uint32
	seg    uint32
	offset uint32
	size   uint32 // of the frame
}

// attempt is the index of one attempt.
type attempt struct {
	chunks []place // by n
	final  int     // -1 while unknown
	bytes  int64
}

func (a *attempt) find(n int) (int, bool) {
	if last := len(a.chunks) - 1; last >= 0 && int(a.chunks[last].n) < n {
		return last + 1, false // nearly always
	}
	i := sort.Search(len(a.chunks), func(i int) bool { return int(a.chunks[i].n) >= n })
	return i, i < len(a.chunks) && int(a.chunks[i].n) == n
}

// Store keeps chunks in a directory. Its methods may be called by any number
// of goroutines at once.
type Store struct {
	dir   string
	limit int64 // size of a segment

	token chan struct{} // held by the one who commits

	mu       sync.RWMutex
	pending  []*put
	attempts map[fleet.AttemptID]*attempt
	segments map[uint32]*segment
	removed  map[fleet.AttemptID]bool // of which chunks may still be in a segment
	watches  map[fleet.AttemptID]*watch
	damaged  int
	closed   bool

	active *segment // nil when the next chunk begins one; the token's
	next   uint32   // number of the next segment; the token's
	buf    []byte   // for write; the token's
}

// put is a call of Put that waits for its commit.
type put struct {
	chunks []Chunk
	frames [][]byte
	err    error
	done   chan struct{}
}

// watch wakes those who wait for a chunk of an attempt.
type watch struct {
	changed chan struct{}
	waiting int
}

var errClosed = fleet.Unavailablef("the log store is closed")

// Open opens the store in dir, and makes it when there is none. Chunks that a
// crash left unfinished are dropped.
func Open(dir string) (*Store, error) { return open(dir, segmentBytes) }

func open(dir string, limit int64) (_ *Store, err error) {
	s := &Store{
		dir:      dir,
		limit:    limit,
		token:    make(chan struct{}, 1),
		attempts: make(map[fleet.AttemptID]*attempt),
		segments: make(map[uint32]*segment),
		watches:  make(map[fleet.AttemptID]*watch),
	}
	defer func() {
		if err != nil {
			s.Close()
			err = fmt.Errorf("open log store: %w", err)
		}
	}()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if s.removed, err = readRemoved(s.removedPath()); err != nil {
		return nil, err
	}
	numbers, err := listSegments(dir)
	if err != nil {
		return nil, err
	}
	for i, number := range numbers {
		if err := s.load(number, i == len(numbers)-1); err != nil {
			return nil, err
		}
	}
	if err := s.reclaim(); err != nil {
		return nil, err
	}
	return s, s.forget()
}

// load reads a segment into the index.
func (s *Store) load(number uint32, newest bool) error {
	s.next = number + 1
	f, err := os.OpenFile(s.segmentPath(number), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	seg := &segment{number: number, file: f, attempts: make(map[fleet.AttemptID]int)}
	s.segments[number] = seg
	size, err := f.Seek(0, 2)
	if err != nil {
		return err
	}
	if _, err := f.Seek(0, 0); err != nil {
		return err
	}
	clean, err := scan(f, func(offset int64, size int, c *Chunk) {
		seg.used = offset + int64(size)
		seg.attempts[c.Attempt]++
		if s.removed[c.Attempt] {
			return
		}
		s.index(c, place{uint32(c.N), number, uint32(offset), uint32(size)})
	})
	if err != nil {
		return err
	}
	if !clean && !newest {
		s.damaged++ // left as it is, for whoever wants to look
		return nil
	}
	if seg.used == size {
		return f.Sync()
	}
	// Not finished when the node stopped. The rest of it may hold half a frame,
	// or a frame that never reached the disk and looks as if it had: cut the
	// first off, and bring the second there, before either can matter.
	if err := f.Truncate(seg.used); err != nil {
		return err
	}
	return f.Sync()
}

// index adds a chunk to the index and reports whether it was not there.
func (s *Store) index(c *Chunk, p place) bool {
	a := s.attempts[c.Attempt]
	if a == nil {
		a = &attempt{final: -1}
		s.attempts[c.Attempt] = a
	}
	i, found := a.find(c.N)
	if found {
		return false
	}
	a.chunks = slices.Insert(a.chunks, i, p)
	a.bytes += int64(len(c.Data))
	if c.Final {
		a.final = c.N
	}
	return true
}

// Close closes the files. What Put acknowledged is on disk already.
func (s *Store) Close() error {
	s.token <- struct{}{}
	defer func() { <-s.token }()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	var errs []error
	for _, seg := range s.segments {
		errs = append(errs, seg.file.Close())
	}
	for _, w := range s.watches {
		close(w.changed)
	}
	s.watches = make(map[fleet.AttemptID]*watch)
	return errors.Join(errs...)
}

// Put stores chunks, all or none, and returns when they are on disk. A chunk
// that is here already is ignored; one that differs from the one here is
// refused with fleet.CodeConflict. Chunks of an attempt that was removed are
// dropped. When ctx ends first, the chunks may or may not be stored: put them
// again.
func (s *Store) Put(ctx context.Context, chunks []Chunk) error {
	if len(chunks) == 0 {
		return nil
	}
	p := &put{chunks: chunks, frames: make([][]byte, len(chunks)), done: make(chan struct{})}
	total := 0
	for i := range chunks {
		c := &chunks[i]
		switch {
		case c.Attempt == 0:
			return fleet.Invalidf("a log chunk names no attempt")
		case c.N < 0 || c.N > maxN:
			return fleet.Invalidf("log chunk %d of attempt %d: the number is out of range", c.N, c.Attempt)
		case len(c.Data) > MaxChunkBytes:
			return fleet.Invalidf("log chunk %d of attempt %d has %d bytes; at most %d are allowed", c.N, c.Attempt, len(c.Data), MaxChunkBytes)
		}
		total += frameHead + len(c.Data)
	}
	// Copies, so that the caller may use its memory again when ctx ends early.
	buf := make([]byte, 0, total)
	p.chunks = slices.Clone(chunks)
	for i := range p.chunks {
		begin := len(buf)
		buf = appendFrame(buf, &chunks[i])
		p.frames[i] = buf[begin:len(buf):len(buf)]
		p.chunks[i].Data = p.frames[i][frameHead:]
	}

	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return errClosed
	}
	s.pending = append(s.pending, p)
	s.mu.Unlock()
	for {
		select {
		case <-p.done:
			return p.err
		case s.token <- struct{}{}:
			// Those whom the last commit woke come back in this moment: letting
			// them queue first makes one commit of what would be two.
			runtime.Gosched()
			s.commit()
			<-s.token
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// staged is a chunk on its way to the disk.
type staged struct {
	chunk *Chunk
	frame []byte
	place place
}

type chunkKey struct {
	attempt fleet.AttemptID
	n       int
}

// commit writes what waits. The caller has the token.
func (s *Store) commit() {
	s.mu.Lock()
	batch := s.pending
	s.pending = nil
	closed := s.closed
	s.mu.Unlock()
	if len(batch) == 0 {
		return
	}
	var fresh []staged
	here := make(map[chunkKey]int)           // index in fresh
	finals := make(map[fleet.AttemptID]int)  // among fresh
	highest := make(map[fleet.AttemptID]int) // among fresh
	for _, p := range batch {
		if closed {
			p.err = errClosed
			continue
		}
		mark := len(fresh)
		for i := range p.chunks {
			var add bool
			if add, p.err = s.admit(&p.chunks[i], p.frames[i], fresh, here, finals, highest); p.err != nil {
				break
			}
			if add {
				c := &p.chunks[i]
				here[chunkKey{c.Attempt, c.N}] = len(fresh)
				fresh = append(fresh, staged{chunk: c, frame: p.frames[i]})
				if c.Final {
					finals[c.Attempt] = c.N
				}
				highest[c.Attempt] = max(highest[c.Attempt], c.N)
			}
		}
		if p.err != nil { // all or none; those after it are judged without it
			for _, st := range fresh[mark:] {
				delete(here, chunkKey{st.chunk.Attempt, st.chunk.N})
			}
			fresh = fresh[:mark]
			clear(finals)
			clear(highest)
			for _, st := range fresh {
				if st.chunk.Final {
					finals[st.chunk.Attempt] = st.chunk.N
				}
				highest[st.chunk.Attempt] = max(highest[st.chunk.Attempt], st.chunk.N)
			}
		}
	}
	if len(fresh) > 0 {
		if err := s.write(fresh); err != nil {
			for _, p := range batch {
				if p.err == nil {
					p.err = fmt.Errorf("write log chunks: %w", err)
				}
			}
		} else {
			s.publish(fresh)
		}
	}
	for _, p := range batch {
		close(p.done)
	}
}

// admit says whether c is to be written: not when it is here or on its way.
func (s *Store) admit(c *Chunk, frame []byte, fresh []staged, here map[chunkKey]int, finals, highest map[fleet.AttemptID]int) (bool, error) {
	other := func() error {
		return fleet.Conflictf("log chunk %d of attempt %d is here already, and is another", c.N, c.Attempt)
	}
	if i, ok := here[chunkKey{c.Attempt, c.N}]; ok {
		if !bytes.Equal(fresh[i].frame, frame) {
			return false, other()
		}
		return false, nil
	}
	final, last := -1, -1
	if n, ok := finals[c.Attempt]; ok {
		final = n
	}
	if n, ok := highest[c.Attempt]; ok {
		last = n
	}
	s.mu.RLock()
	removed := s.removed[c.Attempt]
	var p place
	found := false
	if a := s.attempts[c.Attempt]; a != nil {
		var i int
		if i, found = a.find(c.N); found {
			p = a.chunks[i]
		}
		final = max(final, a.final)
		if len(a.chunks) > 0 {
			last = max(last, int(a.chunks[len(a.chunks)-1].n))
		}
	}
	seg := s.segments[p.seg]
	s.mu.RUnlock()
	switch {
	case removed:
		return false, nil
	case found:
		old := make([]byte, p.size)
		if _, err := seg.file.ReadAt(old, int64(p.offset)); err != nil {
			return false, fmt.Errorf("read log chunk: %w", err)
		}
		if !bytes.Equal(old, frame) {
			return false, other()
		}
		return false, nil
	case final >= 0 && (c.N > final || c.Final):
		return false, fleet.Conflictf("log chunk %d of attempt %d comes after the final one, %d", c.N, c.Attempt, final)
	case c.Final && c.N < last:
		return false, fleet.Conflictf("log chunk %d of attempt %d cannot be the final one: chunk %d is here", c.N, c.Attempt, last)
	}
	return true, nil
}

// write puts frames on disk and notes their places. The caller has the token.
// After a failure the segment gets no more: what the disk holds of it behind
// the last acknowledged frame is not known.
func (s *Store) write(fresh []staged) (err error) {
	buf := s.buf[:0]
	flush := func() error {
		if len(buf) == 0 {
			return nil
		}
		if err := s.active.append(buf); err != nil {
			return err
		}
		buf = buf[:0]
		return nil
	}
	defer func() {
		if s.buf = nil; cap(buf) <= keptBuffer {
			s.buf = buf
		}
		if err != nil && s.active != nil {
			s.active.file.Truncate(s.active.used) // else Open does it
			s.active = nil
		}
	}()
	for i := range fresh {
		st := &fresh[i]
		if s.active != nil && s.active.used+int64(len(buf)+len(st.frame)) > s.limit {
			if err := flush(); err != nil {
				return err
			}
			if err := s.active.seal(); err != nil {
				return err
			}
			s.active = nil
		}
		if s.active == nil {
			if err := s.begin(); err != nil {
				return err
			}
		}
		st.place = place{uint32(st.chunk.N), s.active.number, uint32(s.active.used + int64(len(buf))), uint32(len(st.frame))}
		buf = append(buf, st.frame...)
	}
	return flush()
}

// begin makes the next segment.
func (s *Store) begin() error {
	seg, err := createSegment(s.dir, s.segmentPath(s.next), s.next, s.limit)
	if err != nil {
		return err
	}
	s.next++
	s.active = seg
	s.mu.Lock()
	s.segments[seg.number] = seg
	s.mu.Unlock()
	return nil
}

// publish makes chunks that are on disk visible and wakes who waits for them.
func (s *Store) publish(fresh []staged) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range fresh {
		st := &fresh[i]
		s.segments[st.place.seg].attempts[st.chunk.Attempt]++
		s.index(st.chunk, st.place)
		s.wake(st.chunk.Attempt)
	}
}

// wake wakes those who wait for the attempt. s.mu must be held.
func (s *Store) wake(id fleet.AttemptID) {
	if w := s.watches[id]; w != nil {
		close(w.changed)
		delete(s.watches, id)
	}
}

// Read returns the chunks of an attempt from number from on, in order and
// without a gap, and the number after the last of them: from itself when that
// chunk is not here. It stops when the data is max bytes or more.
func (s *Store) Read(id fleet.AttemptID, from, max int) (chunks []Chunk, next int, err error) {
	type piece struct {
		place
		file *os.File
	}
	var pieces []piece
	next = from
	s.mu.RLock()
	if s.closed {
		s.mu.RUnlock()
		return nil, from, errClosed
	}
	if a := s.attempts[id]; a != nil && from >= 0 {
		i, found := a.find(from)
		for size := 0; found && i < len(a.chunks) && int(a.chunks[i].n) == next && (size < max || size == 0); i++ {
			p := a.chunks[i]
			pieces = append(pieces, piece{p, s.segments[p.seg].file})
			size += int(p.size) - frameHead
			next++
		}
	}
	s.mu.RUnlock()
	for i, p := range pieces {
		b := make([]byte, p.size)
		if _, err := p.file.ReadAt(b, int64(p.offset)); err != nil {
			if errors.Is(err, os.ErrClosed) { // removed meanwhile
				return chunks, from + i, nil
			}
			return chunks, from + i, fmt.Errorf("read log chunk %d of attempt %d: %w", p.n, id, err)
		}
		c, ok := parseFrame(b)
		if !ok || c.Attempt != id || c.N != int(p.n) {
			return chunks, from + i, fleet.Internalf("log chunk %d of attempt %d is damaged on disk", p.n, id).
				WithHint("another node may have it")
		}
		chunks = append(chunks, c)
	}
	return chunks, next, nil
}

// Have says which chunks of an attempt are here.
func (s *Store) Have(id fleet.AttemptID) Held {
	s.mu.RLock()
	defer s.mu.RUnlock()
	h := Held{Last: -1, Final: -1}
	a := s.attempts[id]
	if a == nil {
		return h
	}
	h.Final, h.Bytes = a.final, a.bytes
	for _, p := range a.chunks {
		n := int(p.n)
		if i := len(h.Ranges) - 1; i >= 0 && h.Ranges[i].To+1 == n {
			h.Ranges[i].To = n
		} else {
			h.Ranges = append(h.Ranges, Range{n, n})
		}
		h.Last = n
	}
	return h
}

// Attempts returns the attempts of which there are chunks, in order.
func (s *Store) Attempts() []fleet.AttemptID {
	s.mu.RLock()
	defer s.mu.RUnlock()
	ids := make([]fleet.AttemptID, 0, len(s.attempts))
	for id := range s.attempts {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// Stats says how much there is.
func (s *Store) Stats() Stats {
	s.mu.RLock()
	defer s.mu.RUnlock()
	st := Stats{Attempts: len(s.attempts), Segments: len(s.segments), Damaged: s.damaged}
	for _, a := range s.attempts {
		st.Chunks += len(a.chunks)
		st.Bytes += a.bytes
	}
	return st
}

// Wait returns when chunk n of an attempt is here (true), or will never be
// because the log ends before it or was removed (false).
func (s *Store) Wait(ctx context.Context, id fleet.AttemptID, n int) (bool, error) {
	for {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return false, errClosed
		}
		if a := s.attempts[id]; a != nil {
			if _, found := a.find(n); found {
				s.mu.Unlock()
				return true, nil
			}
			if a.final >= 0 && n > a.final {
				s.mu.Unlock()
				return false, nil
			}
		}
		if s.removed[id] {
			s.mu.Unlock()
			return false, nil
		}
		w := s.watches[id]
		if w == nil {
			w = &watch{changed: make(chan struct{})}
			s.watches[id] = w
		}
		w.waiting++
		s.mu.Unlock()
		var err error
		select {
		case <-w.changed:
		case <-ctx.Done():
			err = ctx.Err()
		}
		s.mu.Lock()
		if w.waiting--; w.waiting == 0 && s.watches[id] == w {
			delete(s.watches, id)
		}
		s.mu.Unlock()
		if err != nil {
			return false, err
		}
	}
}

// Remove forgets an attempt, for good once it returns, and deletes the segments
// in which nothing else is left.
func (s *Store) Remove(id fleet.AttemptID) error {
	s.token <- struct{}{} // no chunk of it is on its way meanwhile
	defer func() { <-s.token }()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosed
	}
	if s.attempts[id] == nil {
		return nil
	}
	if err := appendRemoved(s.removedPath(), id); err != nil {
		return fmt.Errorf("remove log of attempt %d: %w", id, err)
	}
	s.removed[id] = true
	delete(s.attempts, id)
	s.wake(id)
	if err := s.reclaim(); err != nil {
		return fmt.Errorf("remove log of attempt %d: %w", id, err)
	}
	return nil
}

// reclaim deletes the segments of which all attempts were removed, then forgets
// the removed attempts that are in no segment any more; in this order, so that
// a crash between the two brings no chunk back.
func (s *Store) reclaim() error {
	deleted := false
	for number, seg := range s.segments {
		live := seg == s.active
		for id := range seg.attempts {
			if !s.removed[id] {
				live = true
				break
			}
		}
		if live {
			continue
		}
		seg.file.Close()
		if err := os.Remove(s.segmentPath(number)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		delete(s.segments, number)
		deleted = true
	}
	if !deleted {
		return nil
	}
	if err := syncDir(s.dir); err != nil {
		return err
	}
	return s.forget()
}

// forget drops the removed attempts that are in no segment any more, on disk
// before in memory: a chunk of theirs that comes late is stored as if it were
// the first, and must not be taken for removed by the next Open.
func (s *Store) forget() error {
	keep := make(map[fleet.AttemptID]bool)
	for id := range s.removed {
		if s.mentioned(id) {
			keep[id] = true
		}
	}
	if len(keep) == len(s.removed) {
		return nil
	}
	if err := writeRemoved(s.dir, s.removedPath(), keep); err != nil {
		return err
	}
	s.removed = keep
	return nil
}

// mentioned reports whether a segment has chunks of the attempt.
func (s *Store) mentioned(id fleet.AttemptID) bool {
	for _, seg := range s.segments {
		if seg.attempts[id] > 0 {
			return true
		}
	}
	return false
}

func (s *Store) segmentPath(number uint32) string {
	return filepath.Join(s.dir, fmt.Sprintf("%010d%s", number, segmentSuffix))
}

func (s *Store) removedPath() string { return filepath.Join(s.dir, "removed") }
