package replica

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLogRunsIntoZeros(t *testing.T) {
	dir, vfs := t.TempDir(), newFiles()
	const size = 5 * ahead / 2
	w, err := vfs.Create(dir, "log", size)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "log")
	// Before anything is read: what is only reserved counts as a hole then.
	if _, err := w.WriteAt([]byte{1}, 0); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if at, err := f.Seek(0, unix.SEEK_HOLE); err != nil || at < ahead {
		t.Errorf("behind a byte there is something up to %d; %v", at, err)
	}

	var want []byte
	write := func(length int) {
		t.Helper()
		p := bytes.Repeat([]byte{byte(len(want)%255 + 1)}, length)
		if n, err := w.WriteAt(p, int64(len(want))); n != length || err != nil {
			t.Fatal(n, err)
		}
		if err := w.Sync(); err != nil {
			t.Fatal(err)
		}
		want = append(want, p...)
		have, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		rest, ok := bytes.CutPrefix(have, want)
		if !ok || bytes.Trim(rest, "\x00") != nil {
			t.Fatalf("after %d bytes the file has other things in it", len(want))
		}
		if most := max(size, len(want)); len(have) != most {
			t.Fatalf("the file has %d bytes, of which %d were reserved", len(have), size)
		}
	}
	write(100)
	write(ahead - 100)
	write(200)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if w, err = vfs.OpenWriter(dir, "log"); err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	write(50)
	write(size - len(want))
	write(10) // raft-wal's last write to a file goes beyond its size
}
