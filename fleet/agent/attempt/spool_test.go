package attempt_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"footplate/fleet"
	"footplate/fleet/agent/attempt"
)

func filled(t testing.TB, chunks ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "log")
	s, err := attempt.OpenSpool(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i, c := range chunks {
		if n, err := s.Append(fleet.Time(i+1), []byte(c), false); err != nil || n != uint64(i) {
			t.Fatalf("append: %d, %v", n, err)
		}
	}
	return path
}

func TestSpoolRepair(t *testing.T) {
	path := filled(t, "zero", "one", "two")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	frame := len(whole) - 32 - len("two") // where the last one begins
	for cut := frame; cut < len(whole); cut++ {
		if err := os.WriteFile(path, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := attempt.OpenSpool(path)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := s.Append(9, []byte("TWO"), true); err != nil || n != 2 {
			t.Fatalf("cut at %d: append: %d, %v", cut, n, err)
		}
		s.Close()
		v, err := attempt.ViewSpool(path)
		if err != nil {
			t.Fatal(err)
		}
		chunks, err := v.ReadFrom(1, 1000)
		if err != nil || len(chunks) != 2 || string(chunks[0].Data) != "one" || string(chunks[1].Data) != "TWO" || !chunks[1].Final || !v.Final() {
			t.Fatalf("cut at %d: %+v, %v", cut, chunks, err)
		}
		v.Close()
	}
}

func TestSpoolGrowsUnderView(t *testing.T) {
	path := filled(t)
	w, err := attempt.OpenSpool(path)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	v, err := attempt.ViewSpool(path)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if _, ok := v.Last(); ok {
		t.Error("an empty spool has a last chunk")
	}
	const many = 1000 // several marks
	for i := range many {
		if _, err := w.Append(1, bytes.Repeat([]byte{byte(i)}, i%7), false); err != nil {
			t.Fatal(err)
		}
		if last, ok := v.Last(); !ok || last != uint64(i) {
			t.Fatalf("last is %d, %v after %d", last, ok, i)
		}
	}
	for _, n := range []uint64{0, 1, 127, 128, 129, 640, many - 1} {
		chunks, err := v.ReadFrom(n, 10)
		if err != nil || len(chunks) == 0 || chunks[0].N != n || !bytes.Equal(chunks[0].Data, bytes.Repeat([]byte{byte(n)}, int(n)%7)) {
			t.Errorf("read from %d: %+v, %v", n, chunks, err)
		}
	}
	if chunks, err := v.ReadFrom(many, 10); err != nil || len(chunks) != 0 {
		t.Errorf("read beyond the end: %v, %v", chunks, err)
	}
	if _, err := w.Append(1, make([]byte, attempt.MaxChunk+1), false); err == nil {
		t.Error("an oversized chunk was taken")
	}
	if _, err := w.Append(1, nil, true); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Append(1, nil, false); err == nil {
		t.Error("a chunk was taken after the final one")
	}
	if err := w.Remove(); err != nil {
		t.Error(err)
	}
}

// Whatever lies in the file, opening it gives a spool that can be appended to,
// and a view of it only whole chunks.
func FuzzSpool(f *testing.F) {
	whole, err := os.ReadFile(filled(f, "zero", "", "two"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(whole[:len(whole)-1])
	f.Add(append(bytes.Clone(whole), whole...))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		v, err := attempt.ViewSpool(path)
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		_, _ = v.ReadFrom(0, 1<<20) // may be damaged, must return
		s, err := attempt.OpenSpool(path)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if s.Final() {
			return
		}
		n, err := s.Append(1, []byte("x"), true)
		if err != nil {
			t.Fatal(err)
		}
		again, err := attempt.OpenSpool(path)
		if err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		chunks, err := again.ReadFrom(0, 1<<20)
		if err != nil || uint64(len(chunks)) != n+1 || string(chunks[n].Data) != "x" {
			t.Fatalf("%d chunks after %d, %v", len(chunks), n, err)
		}
	})
}
