package attempt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"sync"

	"footplate/fleet"
)

// Chunk is a piece of an attempt's log.
type Chunk struct {
	N     uint64     `json:"n"`  // dense, from 0
	At    fleet.Time `json:"at"` // wall clock of the host
	Final bool       `json:"final,omitempty"`
	Data  []byte     `json:"data"`
}

// MaxChunk is the most bytes that one chunk holds.
const MaxChunk = 64 << 10

// The frame of a chunk, little endian: magic(4) flags(4) n(8) at(8) length(4)
// crc32c(4) data. The sum covers all of the frame but itself. A frame is
// appended by one write, so that only a crash leaves a piece of one behind,
// and only at the end.
const (
	frameMagic  = 0x316c7066 // "fpl1"
	frameHead   = 32
	frameFinal  = 1
	indexStride = 128 // chunks between two remembered offsets
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errFrame says that no whole, sound frame lies at an offset.
var errFrame = errors.New("no whole chunk there")

// Spool is the log of one attempt in a file: numbered chunks, appended by the
// supervisor and read by the agent, in another process, while it grows. It
// outlives both, so that the rest of a log can be handed over after a restart.
// It is not synced to the disk chunk by chunk: what a power cut takes is the
// tail of a log whose attempt it has ended anyway.
//
// Its methods may be called from several goroutines. There is one writer.
type Spool struct {
	mu     sync.Mutex
	f      *os.File
	write  bool
	size   int64   // bytes of whole frames that were looked at
	next   uint64  // chunks in them
	marks  []int64 // offset of every indexStride-th chunk
	final  bool
	broken error // why nothing can be appended any more
}

// OpenSpool opens the spool at path for appending, and makes it when there is
// none. A torn tail, left by a crash, is cut off.
func OpenSpool(path string) (*Spool, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open spool: %w", err)
	}
	s := &Spool{f: f, write: true}
	if err := s.scan(true); err != nil {
		f.Close()
		return nil, err
	}
	if err := f.Truncate(s.size); err != nil {
		f.Close()
		return nil, fmt.Errorf("repair spool: %w", err)
	}
	return s, nil
}

// ViewSpool opens the spool at path for reading alone. A spool that is being
// written to may be viewed: what was appended shows up in later calls.
func ViewSpool(path string) (*Spool, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("view spool: %w", err)
	}
	return &Spool{f: f}, nil
}

// Close closes the file. The chunks stay.
func (s *Spool) Close() error { return s.f.Close() }

// Remove closes the spool and removes its file.
func (s *Spool) Remove() error {
	s.f.Close()
	return os.Remove(s.f.Name())
}

// Append writes one chunk of at most MaxChunk bytes and returns its number.
// Nothing can follow a final one.
func (s *Spool) Append(at fleet.Time, data []byte, final bool) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !s.write:
		return 0, errors.New("append to spool: it is open for reading alone")
	case s.broken != nil:
		return 0, s.broken
	case s.final:
		return 0, errors.New("append to spool: its last chunk is final")
	case len(data) > MaxChunk:
		return 0, fmt.Errorf("append to spool: chunk of %d bytes; at most %d fit", len(data), MaxChunk)
	}
	b := make([]byte, 0, frameHead+len(data))
	b = appendFrame(b, Chunk{N: s.next, At: at, Final: final, Data: data})
	if _, err := s.f.WriteAt(b, s.size); err != nil {
		// Half a frame may be there; it goes with the next repair. A later
		// append in its place could be read as its continuation by a viewer.
		s.broken = fmt.Errorf("append to spool: %w", err)
		return 0, s.broken
	}
	s.advance(int64(len(b)), final)
	return s.next - 1, nil
}

// End appends the last chunk: a line that stands by itself, also after output
// that did not end its own.
func (s *Spool) End(at fleet.Time, line string) error {
	if n, ok := s.Last(); ok {
		// What cannot be read cannot be shown either.
		if last, err := s.ReadFrom(n, MaxChunk); err == nil && len(last) == 1 && !bytes.HasSuffix(last[0].Data, []byte("\n")) {
			line = "\n" + line
		}
	}
	_, err := s.Append(at, []byte(line), true)
	return err
}

func (s *Spool) advance(n int64, final bool) {
	if s.next%indexStride == 0 {
		s.marks = append(s.marks, s.size)
	}
	s.size += n
	s.next++
	s.final = final
}

// Last returns the number of the newest whole chunk; ok is false when there is
// none yet.
func (s *Spool) Last() (n uint64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.look()
	return s.next - 1, s.next > 0
}

// Final reports whether the newest chunk is marked final: the log is whole.
func (s *Spool) Final() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.look()
	return s.final
}

// ReadFrom returns chunks from number n on: as many as fit into max bytes of
// data, but at least one where there is one. It returns none when n was not
// written yet. A chunk that was damaged on the disk is an error.
func (s *Spool) ReadFrom(n uint64, max int) ([]Chunk, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.look()
	if n >= s.next {
		return nil, nil
	}
	off := s.marks[n/indexStride]
	for i := n - n%indexStride; i < n; i++ {
		h, _, err := readHead(s.f, off)
		if err != nil {
			return nil, fmt.Errorf("read chunk %d of spool: %w", i, err)
		}
		off += frameHead + int64(h.length)
	}
	var chunks []Chunk
	for total := 0; n < s.next; n++ {
		c, size, err := readFrame(s.f, off)
		if err != nil {
			return chunks, fmt.Errorf("read chunk %d of spool: %w", n, err)
		}
		if total += len(c.Data); len(chunks) > 0 && total > max {
			break
		}
		chunks = append(chunks, c)
		off += size
	}
	return chunks, nil
}

// look takes in what a writer in another process appended.
func (s *Spool) look() {
	if !s.write && !s.final {
		// What can't be read now is as good as not written yet.
		_ = s.scan(false)
	}
}

// scan walks over the frames beyond s.size. With verify it reads and checks
// the data too.
func (s *Spool) scan(verify bool) error {
	info, err := s.f.Stat()
	if err != nil {
		return fmt.Errorf("scan spool: %w", err)
	}
	for !s.final {
		h, _, err := readHead(s.f, s.size)
		size := frameHead + int64(h.length)
		if err == nil && (h.n != s.next || s.size+size > info.Size()) {
			err = errFrame
		}
		if err == nil && verify {
			_, _, err = readFrame(s.f, s.size)
		}
		if errors.Is(err, errFrame) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("scan spool: %w", err)
		}
		s.advance(size, h.flags&frameFinal != 0)
	}
	return nil
}

type head struct {
	flags  uint32
	n      uint64
	at     fleet.Time
	length uint32
	sum    uint32
}

func appendFrame(b []byte, c Chunk) []byte {
	start := len(b)
	var flags uint32
	if c.Final {
		flags |= frameFinal
	}
	b = binary.LittleEndian.AppendUint32(b, frameMagic)
	b = binary.LittleEndian.AppendUint32(b, flags)
	b = binary.LittleEndian.AppendUint64(b, c.N)
	b = binary.LittleEndian.AppendUint64(b, uint64(c.At))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(c.Data)))
	sum := crc32.Update(crc32.Checksum(b[start:], castagnoli), castagnoli, c.Data)
	b = binary.LittleEndian.AppendUint32(b, sum)
	return append(b, c.Data...)
}

// readHead returns the head of the frame at off, and its bytes.
func readHead(r io.ReaderAt, off int64) (head, [frameHead]byte, error) {
	var b [frameHead]byte
	if n, err := r.ReadAt(b[:], off); n < frameHead {
		if err == io.EOF {
			err = errFrame
		}
		return head{}, b, err
	}
	h := head{
		flags:  binary.LittleEndian.Uint32(b[4:]),
		n:      binary.LittleEndian.Uint64(b[8:]),
		at:     fleet.Time(binary.LittleEndian.Uint64(b[16:])),
		length: binary.LittleEndian.Uint32(b[24:]),
		sum:    binary.LittleEndian.Uint32(b[28:]),
	}
	if binary.LittleEndian.Uint32(b[:]) != frameMagic || h.length > MaxChunk {
		return head{}, b, errFrame
	}
	return h, b, nil
}

func readFrame(r io.ReaderAt, off int64) (Chunk, int64, error) {
	h, raw, err := readHead(r, off)
	if err != nil {
		return Chunk{}, 0, err
	}
	data := make([]byte, h.length)
	if n, err := r.ReadAt(data, off+frameHead); n < len(data) {
		if err == io.EOF {
			err = errFrame
		}
		return Chunk{}, 0, err
	}
	if crc32.Update(crc32.Checksum(raw[:frameHead-4], castagnoli), castagnoli, data) != h.sum {
		return Chunk{}, 0, errFrame
	}
	return Chunk{N: h.n, At: h.at, Final: h.flags&frameFinal != 0, Data: data}, frameHead + int64(h.length), nil
}
