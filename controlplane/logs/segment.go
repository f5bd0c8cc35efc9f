package logs

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"footplate/fleet"
)

// A frame is a chunk as it is on disk, numbers in little-endian order:
//
//	size     4  of the whole frame
//	crc32    4  (Castagnoli) of all that follows
//	flags    1  1: final
//	attempt  8
//	n        4
//	at       8
//	data
//
// A size of 0 is the end: the rest of a segment is zeros.
const (
	frameHead = 4 + 4 + 1 + 8 + 4 + 8
	maxFrame  = frameHead + MaxChunkBytes
	maxN      = 1<<31 - 1
	flagFinal = 1
)

// checksum is CRC-32C. The table is made at the first call, not whenever the
// program starts.
func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

func appendFrame(b []byte, c *Chunk) []byte {
	begin := len(b)
	b = binary.LittleEndian.AppendUint32(b, uint32(frameHead+len(c.Data)))
	b = append(b, 0, 0, 0, 0)
	var flags byte
	if c.Final {
		flags = flagFinal
	}
	b = append(b, flags)
	b = binary.LittleEndian.AppendUint64(b, uint64(c.Attempt))
	b = binary.LittleEndian.AppendUint32(b, uint32(c.N))
	b = binary.LittleEndian.AppendUint64(b, uint64(c.At))
	b = append(b, c.Data...)
	binary.LittleEndian.PutUint32(b[begin+4:], checksum(b[begin+8:]))
	return b
}

// parseFrame reads a frame of exactly len(b) bytes. The chunk's data is part
// of b.
func parseFrame(b []byte) (c Chunk, ok bool) {
	if len(b) < frameHead || len(b) > maxFrame || int(binary.LittleEndian.Uint32(b)) != len(b) ||
		binary.LittleEndian.Uint32(b[4:]) != checksum(b[8:]) {
		return c, false
	}
	c = Chunk{
		Attempt: fleet.AttemptID(binary.LittleEndian.Uint64(b[9:])),
		N:       int(binary.LittleEndian.Uint32(b[17:])),
		At:      fleet.Time(binary.LittleEndian.Uint64(b[21:])),
		Data:    b[frameHead:],
		Final:   b[8] == flagFinal,
	}
	return c, b[8] <= flagFinal && c.Attempt != 0 && c.N <= maxN
}

// scan calls each for every frame of a segment until the first that is not
// whole. It reports whether the segment ends there as it should: with zeros or
// with the file. The chunk is valid until the next.
func scan(r io.Reader, each func(offset int64, size int, c *Chunk)) (clean bool, err error) {
	in := bufio.NewReaderSize(r, 256<<10)
	buf := make([]byte, maxFrame)
	for offset := int64(0); ; {
		n, err := io.ReadFull(in, buf[:4])
		if errors.Is(err, io.EOF) {
			return true, nil
		}
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return !slices.ContainsFunc(buf[:n], func(b byte) bool { return b != 0 }), nil
		}
		if err != nil {
			return false, err
		}
		size := binary.LittleEndian.Uint32(buf)
		if size == 0 {
			return true, nil
		}
		if size < frameHead || size > maxFrame {
			return false, nil
		}
		if _, err := io.ReadFull(in, buf[4:size]); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return false, nil
			}
			return false, err
		}
		c, ok := parseFrame(buf[:size])
		if !ok {
			return false, nil
		}
		each(offset, int(size), &c)
		offset += int64(size)
	}
}

// segment is a file of frames.
type segment struct {
	number   uint32
	file     *os.File
	used     int64                   // bytes of frames; the token's
	attempts map[fleet.AttemptID]int // frames by attempt
}

const segmentSuffix = ".seg"

// createSegment makes a file with its space reserved.
func createSegment(dir, path string, number uint32, size int64) (_ *segment, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(path)
		}
	}()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
		// Some file systems cannot reserve; the size alone helps too.
		if !errors.Is(err, unix.EOPNOTSUPP) {
			return nil, fmt.Errorf("reserve %s: %w", path, err)
		}
		if err := f.Truncate(size); err != nil {
			return nil, err
		}
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	if err := syncDir(dir); err != nil {
		return nil, err
	}
	return &segment{number: number, file: f, attempts: make(map[fleet.AttemptID]int)}, nil
}

// append writes frames behind those that are there and returns when they are
// on disk.
func (s *segment) append(frames []byte) error {
	if _, err := s.file.WriteAt(frames, s.used); err != nil {
		return err
	}
	if err := unix.Fdatasync(int(s.file.Fd())); err != nil {
		return err
	}
	s.used += int64(len(frames))
	return nil
}

// seal cuts off what is not used.
func (s *segment) seal() error {
	if err := s.file.Truncate(s.used); err != nil {
		return err
	}
	return s.file.Sync()
}

func listSegments(dir string) ([]uint32, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var numbers []uint32
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), segmentSuffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(name, 10, 32)
		if err != nil {
			continue
		}
		numbers = append(numbers, uint32(n))
	}
	slices.Sort(numbers)
	return numbers, nil
}

// The file of removed attempts is a row of records: the attempt's number and
// the checksum of its bytes. A record torn by a crash was not acknowledged.
const removedRecord = 8 + 4

func encodeRemoved(id fleet.AttemptID) []byte {
	b := binary.LittleEndian.AppendUint64(make([]byte, 0, removedRecord), uint64(id))
	return binary.LittleEndian.AppendUint32(b, checksum(b))
}

func readRemoved(path string) (map[fleet.AttemptID]bool, error) {
	removed := make(map[fleet.AttemptID]bool)
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	whole := 0
	for ; len(b) >= removedRecord; b = b[removedRecord:] {
		if checksum(b[:8]) != binary.LittleEndian.Uint32(b[8:]) {
			break
		}
		removed[fleet.AttemptID(binary.LittleEndian.Uint64(b))] = true
		whole += removedRecord
	}
	if len(b) > 0 { // what is appended next must not stand behind a torn record
		if err := os.Truncate(path, int64(whole)); err != nil {
			return nil, err
		}
	}
	return removed, nil
}

func appendRemoved(path string, id fleet.AttemptID) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(encodeRemoved(id)); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func writeRemoved(dir, path string, removed map[fleet.AttemptID]bool) error {
	var b []byte
	for id := range removed {
		b = append(b, encodeRemoved(id)...)
	}
	f, err := os.Create(path + ".new")
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
