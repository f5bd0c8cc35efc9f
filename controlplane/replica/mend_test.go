package replica

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	walfs "github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"
)

// fullDisk is a disk with room for so many files of a log, and so many bytes in
// the last of them, and for the log's description or not.
type fullDisk struct {
	types.VFS
	*metadb.BoltMetaDB
	files    int
	bytes    int64
	describe bool
}

const plenty = 1 << 30

func (d *fullDisk) Create(dir, name string, size uint64) (types.WritableFile, error) {
	if d.files == 0 {
		return nil, syscall.ENOSPC
	}
	d.files--
	f, err := d.VFS.Create(dir, name, size)
	if d.files > 0 {
		return f, err
	}
	return fullFile{f, d.bytes}, err
}

func (d *fullDisk) CommitState(s types.PersistentState) error {
	if !d.describe {
		return syscall.ENOSPC
	}
	return d.BoltMetaDB.CommitState(s)
}

type fullFile struct {
	types.WritableFile
	most int64
}

// WriteAt writes what there is room for, as the kernel does.
func (f fullFile) WriteAt(b []byte, at int64) (int, error) {
	room := max(f.most-at, 0)
	if int64(len(b)) <= room {
		return f.WritableFile.WriteAt(b, at)
	}
	n, err := f.WritableFile.WriteAt(b[:room], at)
	if err == nil {
		err = syscall.ENOSPC
	}
	return n, err
}

// fill writes entries to the log of a new data directory, a batch at a time,
// until that fails, and returns the last index that was acknowledged. Files of
// the log are full at fileSize bytes.
func (d *fullDisk) fill(t *testing.T, dir string, batch int, describe bool) (acked uint64, err error) {
	t.Helper()
	if err := writeCluster(dir, Cluster{ID: "c"}); err != nil {
		t.Fatal(err)
	}
	logs := filepath.Join(dir, logDir)
	if err := os.Mkdir(logs, 0o700); err != nil {
		t.Fatal(err)
	}
	d.VFS, d.BoltMetaDB, d.describe = walfs.New(), new(metadb.BoltMetaDB), true
	w, err := wal.Open(logs, wal.WithMetaStore(d), wal.WithSegmentSize(fileSize), wal.WithLogger(newQuietLog(slog.New(slog.DiscardHandler))),
		wal.WithSegmentFiler(segments{segment.NewFiler(logs, d)}))
	if err != nil {
		t.Fatal(err)
	}
	d.describe = describe
	for err == nil && acked < 4*fileSize>>10 {
		var entries []*raft.Log
		for i := range uint64(batch) {
			entries = append(entries, &raft.Log{Index: acked + i + 1, Term: 1, Data: filling})
		}
		if err = w.StoreLogs(entries); err == nil {
			acked += uint64(batch)
		}
	}
	if err := errors.Join(w.Close(), d.BoltMetaDB.Close()); err != nil {
		t.Fatal(err)
	}
	return acked, err
}

const fileSize = 64 << 10

var filling = bytes.Repeat([]byte{'x'}, 1<<10)

// endOfFirst returns how many bytes of the first file of a log are in use when
// it is full.
func endOfFirst(t *testing.T, batch int) int64 {
	t.Helper()
	dir := t.TempDir()
	if _, err := (&fullDisk{files: 99, bytes: plenty}).fill(t, dir, batch, true); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, logDir, "*.wal"))
	if err != nil || len(files) < 2 {
		t.Fatalf("%q, %v", files, err)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	return int64(len(bytes.TrimRight(b, "\x00")))
}

// A node whose disk was full, or that was killed, when a file of its log was
// full and the next had to be made, comes back with all that it acknowledged
// once there is room.
func TestRestartAfterDiskWasFullAtEndOfFile(t *testing.T) {
	small, big := endOfFirst(t, 4), endOfFirst(t, 100)
	for _, tc := range []struct {
		name     string
		disk     fullDisk
		describe bool
		batch    int
		want     error
	}{
		{"no room to describe the next file", fullDisk{files: 9, bytes: plenty}, false, 4, wal.ErrSealed},
		{"no room for the next file", fullDisk{files: 1, bytes: plenty}, true, 4, wal.ErrSealed},
		// A file ends with an index of 4 bytes an entry and a mark of 8.
		{"no room for the mark at the end", fullDisk{files: 1, bytes: small - 2}, true, 4, syscall.ENOSPC},
		{"no room for the index", fullDisk{files: 1, bytes: small - 100}, true, 4, syscall.ENOSPC},
		{"no room for the last entry", fullDisk{files: 1, bytes: small - 600}, true, 4, syscall.ENOSPC},
		{"no room for the mark in a second file", fullDisk{files: 2, bytes: small - 2}, true, 4, syscall.ENOSPC},
		// A write of 100 entries fills a file by itself.
		{"no room for the only write to a first file", fullDisk{files: 1, bytes: big - 2}, true, 100, syscall.ENOSPC},
		{"no room for the only write to a second file", fullDisk{files: 2, bytes: big - 2}, true, 100, syscall.ENOSPC},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			acked, err := tc.disk.fill(t, dir, tc.batch, tc.describe)
			if !errors.Is(err, tc.want) {
				t.Fatalf("writing failed with %v after %d entries, want %v", err, acked, tc.want)
			}
			for round := range uint64(3) {
				s, _, err := openStores(dir, Cluster{ID: "c"}, slog.New(slog.DiscardHandler))
				if err != nil {
					t.Fatal(err)
				}
				last, err := s.logs.LastIndex()
				if want := acked + round; err != nil || last != want {
					t.Fatalf("round %d: the log ends at %d (%v), want %d", round, last, err, want)
				}
				for i := uint64(1); i <= last; i++ {
					var l raft.Log
					want := filling
					if i > acked {
						want = fmt.Append(nil, i)
					}
					if err := s.logs.GetLog(i, &l); err != nil || l.Index != i || !bytes.Equal(l.Data, want) {
						t.Fatalf("round %d: entry %d reads %q, %v", round, i, l.Data, err)
					}
				}
				if err := s.logs.StoreLog(&raft.Log{Index: last + 1, Term: 2, Data: fmt.Append(nil, last+1)}); err != nil {
					t.Fatalf("round %d: %s", round, err)
				}
				if err := s.close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}
