package logs

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"footplate/fleet"
)

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func code(t *testing.T, err error, want fleet.Code) {
	t.Helper()
	if fleet.CodeOf(err) != want {
		t.Fatalf("error is %v; want code %q", err, want)
	}
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func opened(t testing.TB, dir string, limit int64) *Store {
	t.Helper()
	s, err := open(dir, limit)
	ok(t, err)
	t.Cleanup(func() { ok(t, s.Close()) })
	return s
}

func chunk(id fleet.AttemptID, n int) Chunk {
	return Chunk{Attempt: id, N: n, At: fleet.Time(1_800_000_000_000 + n), Data: fmt.Appendf(nil, "attempt %d line %d\n", id, n)}
}

func chunks(id fleet.AttemptID, from, to int) []Chunk {
	var list []Chunk
	for n := from; n <= to; n++ {
		list = append(list, chunk(id, n))
	}
	return list
}

func final(id fleet.AttemptID, n int) Chunk {
	return Chunk{Attempt: id, N: n, At: 1, Data: []byte{}, Final: true}
}

func same(t *testing.T, want, got any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatal(diff)
	}
}

func TestOrderAndReopen(t *testing.T) {
	dir, ctx := t.TempDir(), within(t)
	check := func(s *Store) {
		t.Helper()
		got, next, err := s.Read(7, 0, 1<<20)
		ok(t, err)
		same(t, chunks(7, 0, 4), got)
		same(t, 5, next)
		got, next, err = s.Read(7, 2, 25) // the limit is passed by the chunk that reaches it
		ok(t, err)
		same(t, chunks(7, 2, 3), got)
		same(t, 4, next)
		got, next, err = s.Read(7, 5, 1<<20)
		ok(t, err)
		same(t, 0, len(got))
		same(t, 5, next)
		h := s.Have(7)
		same(t, []Range{{0, 4}, {6, 7}}, h.Ranges)
		same(t, 7, h.Last)
		same(t, -1, h.Final)
		if h = s.Have(8); !h.Complete() || h.Final != 3 {
			t.Fatalf("have %+v", h)
		}
		same(t, Held{Last: -1, Final: -1}, s.Have(9))
		same(t, []fleet.AttemptID{7, 8}, s.Attempts())
	}
	s := opened(t, dir, 1<<20)
	ok(t, s.Put(ctx, []Chunk{chunk(7, 6), chunk(7, 7), chunk(8, 2), final(8, 3), chunk(7, 1), chunk(7, 0)}))
	ok(t, s.Put(ctx, chunks(7, 2, 4)))
	ok(t, s.Put(ctx, chunks(8, 0, 1)))
	check(s)
	ok(t, s.Close())
	code(t, s.Put(ctx, chunks(8, 0, 1)), fleet.CodeUnavailable)
	check(opened(t, dir, 1<<20))
}

func TestDuplicates(t *testing.T) {
	ctx := within(t)
	s := opened(t, t.TempDir(), 1<<20)
	ok(t, s.Put(ctx, chunks(7, 0, 2)))
	used := s.active.used
	ok(t, s.Put(ctx, chunks(7, 0, 2)))
	ok(t, s.Put(ctx, append(chunks(8, 0, 0), chunks(8, 0, 0)...)))
	same(t, Stats{Attempts: 2, Chunks: 4, Segments: 1, Bytes: 4 * 17}, s.Stats())
	same(t, used+int64(frameHead+len(chunk(8, 0).Data)), s.active.used)

	other := chunk(7, 1)
	other.Data = []byte("something else")
	later := chunk(7, 1)
	later.At++
	for _, bad := range [][]Chunk{{chunk(7, 3), other}, {later}, {chunk(9, 0), {Attempt: 9, N: 0}}} {
		code(t, s.Put(ctx, bad), fleet.CodeConflict)
	}
	same(t, 2, s.Have(7).Last) // all or none
	ok(t, s.Put(ctx, []Chunk{final(7, 3)}))
	ok(t, s.Put(ctx, []Chunk{final(7, 3)}))
	code(t, s.Put(ctx, []Chunk{chunk(7, 4)}), fleet.CodeConflict)
	code(t, s.Put(ctx, []Chunk{final(7, 5)}), fleet.CodeConflict)
	code(t, s.Put(ctx, []Chunk{chunk(6, 5), final(6, 3)}), fleet.CodeConflict)
	ok(t, s.Put(ctx, []Chunk{final(6, 3)})) // what was refused left no trace

	for _, bad := range []Chunk{{N: 1}, {Attempt: 1, N: -1}, {Attempt: 1, N: maxN + 1}, {Attempt: 1, Data: make([]byte, MaxChunkBytes+1)}} {
		code(t, s.Put(ctx, []Chunk{bad}), fleet.CodeInvalid)
	}
	ok(t, s.Put(ctx, []Chunk{{Attempt: 1, N: maxN, Data: make([]byte, MaxChunkBytes)}}))
}

// Refused chunks do not harm those of others in the same commit.
func TestRefusedInACommonCommit(t *testing.T) {
	ctx := within(t)
	s := opened(t, t.TempDir(), 1<<20)
	ok(t, s.Put(ctx, chunks(7, 0, 0)))
	s.token <- struct{}{} // all of them wait
	other := chunk(7, 0)
	other.Data = []byte("other")
	puts := [][]Chunk{{chunk(8, 0)}, {final(8, 1), other}, {chunk(8, 1), chunk(8, 2)}}
	errs := make([]error, len(puts))
	var wg sync.WaitGroup
	for i, p := range puts {
		wg.Go(func() { errs[i] = s.Put(ctx, p) })
		poll(t, func() bool {
			s.mu.RLock()
			defer s.mu.RUnlock()
			return len(s.pending) == i+1
		})
	}
	<-s.token
	wg.Wait()
	ok(t, errs[0])
	code(t, errs[1], fleet.CodeConflict)
	ok(t, errs[2])
	same(t, []Range{{0, 2}}, s.Have(8).Ranges)
}

func poll(t testing.TB, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	ctx := within(t)
	for !cond() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("it never came true")
		}
	}
}

// However the newest segment was torn, what stands before is found again, and
// what was torn can be put again.
func TestTornTail(t *testing.T) {
	ctx := within(t)
	origin := t.TempDir()
	s := opened(t, origin, 1<<20)
	ok(t, s.Put(ctx, chunks(7, 0, 9)))
	frame := len(appendFrame(nil, &Chunk{Data: chunk(7, 9).Data}))
	used := int(s.active.used)
	image, err := os.ReadFile(s.segmentPath(0)) // as a crash leaves it: full size, zeros behind
	ok(t, err)
	same(t, 1<<20, len(image))
	for name, tear := range map[string]func([]byte) ([]byte, int){
		"nothing":          func(b []byte) ([]byte, int) { return b, 9 },
		"cut short":        func(b []byte) ([]byte, int) { return b[:used], 9 },
		"cut in a frame":   func(b []byte) ([]byte, int) { return b[:used-3], 8 },
		"cut in a size":    func(b []byte) ([]byte, int) { return b[:used-frame+2], 8 },
		"zeros in a frame": func(b []byte) ([]byte, int) { clear(b[used-5 : used]); return b, 8 },
		"a flipped bit":    func(b []byte) ([]byte, int) { b[used-frame-1] ^= 4; return b, 7 },
		"garbage behind":   func(b []byte) ([]byte, int) { copy(b[used:], "garbage garbage garbage"); return b, 9 },
		"a huge size":      func(b []byte) ([]byte, int) { copy(b[used:], "\xff\xff\xff\x7f"); return b, 9 },
		"no file content":  func([]byte) ([]byte, int) { return nil, -1 },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			b, last := tear(bytes.Clone(image))
			ok(t, os.WriteFile(filepath.Join(dir, filepath.Base(s.segmentPath(0))), b, 0o600))
			for range 2 { // what was put behind a repair is there the next time
				s := opened(t, dir, 1<<20)
				if last < 9 {
					same(t, last, s.Have(7).Last)
				}
				same(t, 0, s.Stats().Damaged)
				ok(t, s.Put(ctx, chunks(7, 0, 12)))
				got, _, err := s.Read(7, 0, 1<<20)
				ok(t, err)
				same(t, chunks(7, 0, 12), got)
				ok(t, s.Close())
				last = 12
			}
		})
	}
}

func TestDamagedOldSegment(t *testing.T) {
	ctx, dir := within(t), t.TempDir()
	s := opened(t, dir, 500)
	for i := range 40 {
		ok(t, s.Put(ctx, chunks(7, i, i)))
	}
	path := s.segmentPath(1)
	_, _, err := s.Read(7, 0, 1<<20)
	ok(t, err)
	b, err := os.ReadFile(path)
	ok(t, err)
	b[len(b)-1] ^= 1
	ok(t, os.WriteFile(path, b, 0o600))
	_, next, err := s.Read(7, 0, 1<<20)
	code(t, err, fleet.CodeInternal)
	ok(t, s.Close())
	s = opened(t, dir, 500)
	same(t, 1, s.Stats().Damaged)
	same(t, []Range{{0, next - 1}, {next + 1, 39}}, s.Have(7).Ranges)
	ok(t, s.Put(ctx, chunks(7, next, next)))
	same(t, []Range{{0, 39}}, s.Have(7).Ranges)
}

// A write that fails fails its callers, and the next one begins a new segment.
func TestFailedWrite(t *testing.T) {
	ctx, dir := within(t), t.TempDir()
	s := opened(t, dir, 1<<20)
	ok(t, s.Put(ctx, chunks(7, 0, 3)))
	broken, err := os.Open(s.segmentPath(0)) // cannot be written to
	ok(t, err)
	s.mu.Lock()
	whole := s.active.file
	s.active.file = broken
	s.mu.Unlock()
	if s.Put(ctx, chunks(7, 4, 5)) == nil {
		t.Fatal("acknowledged what could not be written")
	}
	ok(t, whole.Close())
	same(t, 3, s.Have(7).Last)
	ok(t, s.Put(ctx, chunks(7, 4, 6)))
	got, _, err := s.Read(7, 0, 1<<20)
	ok(t, err)
	same(t, chunks(7, 0, 6), got)
	ok(t, s.Close())
	s = opened(t, dir, 1<<20)
	same(t, []Range{{0, 6}}, s.Have(7).Ranges)
}

func TestConcurrentWriters(t *testing.T) {
	ctx, dir := within(t), t.TempDir()
	s := opened(t, dir, 16<<10)
	var wg sync.WaitGroup
	const writers, each = 16, 60
	for w := range writers {
		id := fleet.AttemptID(w/2 + 1) // two agents' worth of the same chunks
		wg.Go(func() {
			for n := 0; n < each; n++ {
				if err := s.Put(ctx, chunks(id, n, n)); err != nil {
					t.Error(err)
				}
				if got, _, err := s.Read(id, n, 1); err != nil || len(got) != 1 || !cmp.Equal(got[0], chunk(id, n)) {
					t.Error("acknowledged and not there", got, err)
				}
			}
			if err := s.Put(ctx, []Chunk{final(id, each)}); err != nil {
				t.Error(err)
			}
		})
	}
	for id := fleet.AttemptID(1); id <= writers/2; id++ {
		wg.Go(func() { // a follower
			next := 0
			for {
				more, err := s.Wait(ctx, id, next)
				if err != nil {
					t.Error(err)
				}
				if !more || err != nil {
					break
				}
				var got []Chunk
				got, next, err = s.Read(id, next, 100)
				if err != nil || len(got) == 0 {
					t.Error(got, err)
					return
				}
			}
			if next != each+1 {
				t.Errorf("followed attempt %d to %d", id, next)
			}
		})
	}
	wg.Wait()
	ok(t, s.Close())
	s = opened(t, dir, 16<<10)
	for id := fleet.AttemptID(1); id <= writers/2; id++ {
		if h := s.Have(id); !h.Complete() || h.Last != each {
			t.Fatalf("attempt %d: %+v", id, h)
		}
	}
}

func TestWait(t *testing.T) {
	ctx := within(t)
	s := opened(t, t.TempDir(), 1<<20)
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	if _, err := s.Wait(short, 7, 0); err == nil {
		t.Fatal("no chunk, and no error")
	}
	same(t, 0, len(s.watches))
	type answer struct {
		more bool
		err  error
	}
	wait := func(n int) chan answer {
		c := make(chan answer, 1)
		go func() {
			more, err := s.Wait(ctx, 7, n)
			c <- answer{more, err}
		}()
		poll(t, func() bool {
			s.mu.RLock()
			defer s.mu.RUnlock()
			return s.watches[7] != nil && s.watches[7].waiting == 1
		})
		return c
	}
	check := func(c chan answer, more bool) {
		t.Helper()
		if got := <-c; got.more != more || got.err != nil {
			t.Fatalf("got %+v", got)
		}
	}
	come := wait(1)
	ok(t, s.Put(ctx, chunks(7, 0, 0)))
	ok(t, s.Put(ctx, chunks(7, 1, 1)))
	check(come, true)
	past := wait(3)
	ok(t, s.Put(ctx, []Chunk{final(7, 3)}))
	check(past, true)
	more, err := s.Wait(ctx, 7, 4)
	ok(t, err)
	same(t, false, more)
	removed := wait(2)
	ok(t, s.Remove(7))
	check(removed, false)
	ok(t, s.Put(ctx, chunks(8, 0, 0)))
	open := make(chan error, 1)
	go func() {
		_, err := s.Wait(ctx, 8, 1)
		open <- err
	}()
	poll(t, func() bool {
		s.mu.RLock()
		defer s.mu.RUnlock()
		return s.watches[8] != nil
	})
	ok(t, s.Close())
	code(t, <-open, fleet.CodeUnavailable)
}

func TestRemoveAndReclaim(t *testing.T) {
	ctx, dir := within(t), t.TempDir()
	s := opened(t, dir, 500)
	files := func() int {
		list, err := listSegments(dir)
		ok(t, err)
		return len(list)
	}
	for n := range 10 {
		for id := fleet.AttemptID(1); id <= 3; id++ {
			ok(t, s.Put(ctx, chunks(id, n, n)))
		}
	}
	before := files()
	ok(t, s.Remove(1))
	ok(t, s.Remove(1))
	ok(t, s.Remove(99))
	same(t, Held{Last: -1, Final: -1}, s.Have(1))
	ok(t, s.Put(ctx, chunks(1, 0, 3))) // late, and dropped
	same(t, []fleet.AttemptID{2, 3}, s.Attempts())
	same(t, before, files())
	ok(t, s.Close())

	s = opened(t, dir, 500) // it stays removed while others keep its segments
	same(t, []fleet.AttemptID{2, 3}, s.Attempts())
	ok(t, s.Remove(2))
	same(t, before, files())
	ok(t, s.Remove(3))
	same(t, 0, files())
	same(t, 0, len(s.removed))

	ok(t, s.Put(ctx, chunks(1, 0, 3))) // so late that nothing is known of it
	ok(t, s.Put(ctx, chunks(4, 0, 3)))
	ok(t, s.Close())
	s = opened(t, dir, 500)
	same(t, []fleet.AttemptID{1, 4}, s.Attempts())
	got, _, err := s.Read(1, 0, 1000)
	ok(t, err)
	same(t, chunks(1, 0, 3), got)
}

// A crash between the removal and its last write leaves half a record.
func TestTornRemoval(t *testing.T) {
	ctx, dir := within(t), t.TempDir()
	s := opened(t, dir, 1<<20)
	ok(t, s.Put(ctx, append(chunks(1, 0, 0), chunks(2, 0, 0)...)))
	ok(t, s.Put(ctx, chunks(3, 0, 0)))
	ok(t, s.Remove(1))
	ok(t, s.Close())
	f, err := os.OpenFile(s.removedPath(), os.O_APPEND|os.O_WRONLY, 0)
	ok(t, err)
	_, err = f.Write(encodeRemoved(2)[:7])
	ok(t, err)
	ok(t, f.Close())
	s = opened(t, dir, 1<<20)
	same(t, []fleet.AttemptID{2, 3}, s.Attempts())
	ok(t, s.Remove(3))
	ok(t, s.Close())
	s = opened(t, dir, 1<<20)
	same(t, []fleet.AttemptID{2}, s.Attempts())
}

func FuzzScan(f *testing.F) {
	var good []byte
	for _, c := range append(chunks(7, 0, 3), final(7, 4)) {
		good = appendFrame(good, &c)
	}
	f.Add(good)
	f.Add(append(bytes.Clone(good), make([]byte, 100)...))
	f.Add(good[:len(good)-5])
	f.Add([]byte("\xff\xff\x03\x00 no frame at all"))
	f.Fuzz(func(t *testing.T, data []byte) {
		// What is read is what was written, frame after frame from the start.
		var again []byte
		clean, err := scan(bytes.NewReader(data), func(offset int64, size int, c *Chunk) {
			if offset != int64(len(again)) {
				t.Fatalf("frame at %d after %d bytes", offset, len(again))
			}
			again = appendFrame(again, c)
			if len(again) != int(offset)+size {
				t.Fatalf("frame of %d bytes at %d is %d long", size, offset, len(again)-int(offset))
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(data, again) {
			t.Fatal("read what is not there")
		}
		if clean && len(data) >= len(again)+4 && !bytes.Equal(data[len(again):len(again)+4], make([]byte, 4)) {
			t.Fatal("took a damaged end for a clean one")
		}
	})
}

// The yardstick is a write and an fdatasync for each chunk, to a file of each
// writer's own.
func BenchmarkPut(b *testing.B) {
	const size = 1 << 10
	data := bytes.Repeat([]byte("x"), size)
	run := func(b *testing.B, writers, batch int, put func(b *testing.B, writer, first int)) {
		b.SetBytes(size)
		b.ResetTimer()
		var wg sync.WaitGroup
		share := max(b.N/writers/batch, 1)
		for w := range writers {
			wg.Go(func() {
				for i := range share {
					put(b, w, i*batch)
				}
			})
		}
		wg.Wait()
		b.ReportMetric(float64(share*writers*batch)/b.Elapsed().Seconds(), "chunks/s")
	}
	for _, c := range []struct{ writers, batch int }{{1, 1}, {16, 1}, {4, 500}} {
		name := fmt.Sprintf("writers=%d/batch=%d", c.writers, c.batch)
		b.Run("store/"+name, func(b *testing.B) {
			s, err := Open(b.TempDir())
			ok(b, err)
			defer s.Close()
			run(b, c.writers, c.batch, func(b *testing.B, w, first int) {
				list := make([]Chunk, c.batch)
				for i := range list {
					list[i] = Chunk{Attempt: fleet.AttemptID(w + 1), N: first + i, At: 1, Data: data}
				}
				if err := s.Put(context.Background(), list); err != nil {
					b.Error(err)
				}
			})
		})
		b.Run("plain/"+name, func(b *testing.B) {
			files := make([]*os.File, c.writers)
			for i := range files {
				f, err := os.Create(filepath.Join(b.TempDir(), "plain"))
				ok(b, err)
				defer f.Close()
				files[i] = f
			}
			run(b, c.writers, c.batch, func(b *testing.B, w, first int) {
				for range c.batch {
					if _, err := files[w].Write(data); err != nil {
						b.Error(err)
					}
					if err := unix.Fdatasync(int(files[w].Fd())); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}
