package replica

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/raft"
)

// forgetWait bounds the wait for the entry that makes the log grow.
const forgetWait = 2 * time.Second

// Forget takes what was logged up to index off this node's disk: it takes a
// snapshot, drops the log up to index, removes the snapshots of before, and
// overwrites what raft-wal leaves of dropped entries in a file that it goes on
// writing to. It is done when it returns true. Until then the log must grow by an
// entry or two, for which a leader sees; call it again.
//
// A follower that lacks what was dropped is sent the snapshot instead.
func (r *Replica) Forget(ctx context.Context, index uint64) (done bool, err error) {
	r.forgetting.Lock()
	defer r.forgetting.Unlock()
	ra := r.raft.Load()
	if ra == nil {
		return false, nil // it is starting
	}
	first, err := r.firstIndex()
	if err != nil {
		return false, err
	}
	if r.fsm.snapshot.Load() < index || first <= index {
		if err := r.cutLog(ctx, ra, index); err != nil {
			return false, err
		}
		if first, err = r.firstIndex(); err != nil {
			return false, err
		}
	}
	done = r.fsm.snapshot.Load() >= index && first > index
	if done && r.stores.scrub != nil {
		done, err = r.stores.scrub(index, first)
	}
	if !done && err == nil && ra.State() == raft.Leader {
		if err := ra.Barrier(forgetWait).Error(); err != nil {
			r.log.Debug("the log did not grow", "err", err)
		}
	}
	return done, err
}

// firstIndex returns the index of the first entry that the log has, or will
// have.
func (r *Replica) firstIndex() (uint64, error) {
	first, err := r.stores.logs.FirstIndex()
	if err != nil {
		return 0, fmt.Errorf("read log: %w", err)
	}
	if first == 0 {
		first = r.fsm.snapshot.Load() + 1
	}
	return first, nil
}

// cutLog takes a snapshot, and drops the log up to index. What comes after stays:
// it is what followers may still need.
func (r *Replica) cutLog(ctx context.Context, ra *raft.Raft, index uint64) error {
	keep := ra.ReloadableConfig()
	none := keep
	none.TrailingLogs = 0
	if last := ra.LastIndex(); last > index {
		none.TrailingLogs = min(keep.TrailingLogs, last-index)
	}
	if err := ra.ReloadConfig(none); err != nil {
		return fmt.Errorf("drop the log: %w", err)
	}
	_, from, err := r.Snapshot(ctx)
	if err == nil {
		err = from.Close() // only read
	}
	if again := ra.ReloadConfig(keep); again != nil {
		err = errors.Join(err, fmt.Errorf("keep the log again: %w", again))
	}
	return err
}

// scrubSnapshots removes the snapshots of the time before index.
func scrubSnapshots(dir string, snaps raft.SnapshotStore, index uint64) error {
	metas, err := snaps.List()
	if err != nil {
		return fmt.Errorf("list snapshots: %w", err)
	}
	for i, m := range metas {
		if i == 0 || m.Index >= index {
			continue // the newest is what the node starts from
		}
		if err := os.RemoveAll(filepath.Join(dir, m.ID)); err != nil {
			return fmt.Errorf("remove a snapshot: %w", err)
		}
	}
	return syncDir(dir)
}

// What raft-wal v0.4.0 writes into a file: a header, and frames, each with a
// header of its own and filled up to a multiple of that.
const (
	walSuffix     = ".wal"
	walFileHeader = 32
	walFrame      = 8
	walEntry      = 1
	walIndex      = 2
	walCommit     = 3
)

// scrubLog overwrites with zeros what the files of the log hold of entries
// before first, which were dropped: raft-wal removes a file when all in it was
// dropped, and the one that it writes to fills up in its own time. It reports
// whether nothing was left for later.
//
// The frames stay where they are, because a start reads the file from frame to
// frame, and so does everything behind the last commit but one: that commit
// alone is checked against its checksum at a start.
func scrubLog(dir string, first uint64) (done bool, err error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return false, fmt.Errorf("list log: %w", err)
	}
	done = true
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), walSuffix) {
			continue
		}
		all, err := scrubFile(filepath.Join(dir, f.Name()), first)
		if errors.Is(err, os.ErrNotExist) {
			continue // it was dropped meanwhile
		}
		if err != nil {
			return false, fmt.Errorf("overwrite dropped entries of the log in %s: %w", f.Name(), err)
		}
		done = done && all
	}
	return done, nil
}

// span is a piece of a file.
type span struct{ at, size int64 }

func scrubFile(path string, first uint64) (done bool, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	ripe, later := dropped(f, first)
	// The commit that makes an entry ripe must be on the disk before it.
	if len(ripe) > 0 {
		if err := f.Sync(); err != nil {
			return false, err
		}
	}
	wrote := false
	for _, s := range ripe {
		b := make([]byte, s.size)
		if _, err := f.ReadAt(b, s.at); err != nil {
			return false, err
		}
		if isZero(b) {
			continue
		}
		clear(b)
		if _, err := f.WriteAt(b, s.at); err != nil {
			return false, err
		}
		wrote = true
	}
	if wrote {
		err = f.Sync()
	}
	return !later, err
}

// dropped returns where a file of the log holds entries before first that can
// be overwritten; later says that there are some that cannot yet.
func dropped(f io.ReaderAt, first uint64) (ripe []span, later bool) {
	r := bufio.NewReaderSize(io.NewSectionReader(f, 0, 1<<62), 256<<10)
	var head [walFileHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, false // nothing was written yet
	}
	index := binary.LittleEndian.Uint64(head[8:])
	at := int64(walFileHeader)
	var batch, before []span // since the last commit, and of the one before it
	for {
		var h [walFrame]byte
		if _, err := io.ReadFull(r, h[:]); err != nil || h == [walFrame]byte{} {
			break
		}
		size := int64(binary.LittleEndian.Uint32(h[4:]))
		switch h[0] {
		case walCommit:
			// What a later commit follows is not checked any more.
			ripe = append(ripe, before...)
			before, batch = batch, nil
			at += walFrame
			continue
		case walEntry:
			if index < first && size > 0 {
				batch = append(batch, span{at + walFrame, size})
			}
			index++
		case walIndex:
		default: // what a crash has left behind the end
			return ripe, len(before)+len(batch) > 0
		}
		size += (walFrame - size%walFrame) % walFrame
		if _, err := r.Discard(int(size)); err != nil {
			return ripe, true // it is being written
		}
		at += walFrame + size
	}
	return ripe, len(before)+len(batch) > 0
}

func isZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
