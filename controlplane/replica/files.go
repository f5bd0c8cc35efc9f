package replica

import (
	"errors"
	"os"
	"path/filepath"

	walfs "github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/types"
	"golang.org/x/sys/unix"
)

// files are the log's files. Raft-wal reserves the space of a file when it makes
// one, but the file system still has to note of each piece, when it is first
// written to, that there is something in it; so each sync of the log waited for
// the file system's journal as well, and there for everybody else's files. Here
// the log runs into zeros that were written, and synced, before: a piece at a
// time, with one of many syncs.
type files struct {
	*walfs.FS
	zeros []byte
}

func newFiles() files { return files{walfs.New(), make([]byte, ahead)} }

// ahead is how much is filled with zeros at a time. Less brings the journal back,
// more is noticed by whoever waits for that sync.
const ahead = 1 << 20

// Create implements types.VFS.
func (f files) Create(dir, name string, size uint64) (types.WritableFile, error) {
	w, err := f.FS.Create(dir, name, size)
	if err != nil {
		return nil, err
	}
	return &file{WritableFile: w, zeros: f.zeros, end: int64(size)}, nil
}

// OpenWriter implements types.VFS.
func (f files) OpenWriter(dir, name string) (types.WritableFile, error) {
	w, err := f.FS.OpenWriter(dir, name)
	if err != nil {
		return nil, err
	}
	st, err := os.Stat(filepath.Join(dir, name))
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return &file{WritableFile: w, zeros: f.zeros, end: st.Size()}, nil
}

// file is a file that raft-wal appends to, a write and a sync at a time.
type file struct {
	types.WritableFile
	zeros  []byte
	end    int64 // of the space that was reserved
	zeroed int64 // up to here there is something
	synced bool  // with its metadata and its directory
}

// WriteAt implements io.WriterAt. What lies behind p in the file is of no
// worth: the log only appends.
func (f *file) WriteAt(p []byte, at int64) (int, error) {
	n, err := f.WritableFile.WriteAt(p, at)
	if end := at + int64(n); err == nil && end > f.zeroed {
		f.zeroed = end
		if room := f.end - end; room > 0 {
			var more int
			more, err = f.WritableFile.WriteAt(f.zeros[:min(room, ahead)], end)
			f.zeroed += int64(more)
		}
	}
	return n, err
}

// Sync returns when what was written is on disk.
func (f *file) Sync() error {
	fd, ok := f.WritableFile.(interface{ Fd() uintptr })
	if !f.synced || !ok {
		err := f.WritableFile.Sync()
		f.synced = err == nil
		return err
	}
	// The time of the last write need not be: that would be the journal again.
	for {
		if err := unix.Fdatasync(int(fd.Fd())); err != unix.EINTR {
			return err
		}
	}
}
