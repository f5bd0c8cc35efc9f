package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	walfs "github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/segment"

	"footplate/controlplane/state"
)

const leaked = "hunter2-was-here"

func (n *diskNode) leak(t *testing.T, key string) {
	t.Helper()
	c := command("note", key)
	c.Reason = leaked
	if _, err := n.Propose(t.Context(), LaneOperations, c); err != nil {
		t.Fatal(err)
	}
}

// holding returns the files below dir that have what was leaked in them.
func holding(t *testing.T, dir string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(leaked)) {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// forget calls Forget until it is done.
func (n *diskNode) forget(t *testing.T, index uint64) {
	t.Helper()
	until(t, "the log to be forgotten", func() bool {
		done, err := n.Forget(t.Context(), index)
		if err != nil {
			t.Fatal(err)
		}
		return done
	})
}

// TestForget: what was logged leaves the disk, and nothing else does.
func TestForget(t *testing.T) {
	dir := t.TempDir()
	n := startDiskNode(t, dir)
	var want []string
	note := func(key string) {
		n.note(t, key)
		want = append(want, key)
	}
	for i := range 10 {
		note(fmt.Sprintf("before-%d", i))
	}
	n.leak(t, "leak")
	want = append(want, "leak")
	if _, from, err := n.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	} else if err := from.Close(); err != nil {
		t.Fatal(err)
	}
	note("erased")
	index := n.Status().Applied
	if len(holding(t, dir)) == 0 {
		t.Fatal("what was leaked is not on the disk at all")
	}
	n.forget(t, index)
	if files := holding(t, dir); len(files) > 0 {
		t.Errorf("it is still in %q", files)
	}
	if metas, err := n.stores.snaps.List(); err != nil || len(metas) != 1 {
		t.Errorf("%d snapshots are left, %v", len(metas), err)
	}
	if done, err := n.Forget(t.Context(), index); err != nil || !done {
		t.Errorf("forgotten, and then not: %v, %v", done, err)
	}
	if keep := n.raft.Load().ReloadableConfig().TrailingLogs; keep != 5 {
		t.Errorf("from now on %d entries stay for followers, not 5", keep)
	}
	note("after")
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	n = startDiskNode(t, dir)
	if got := n.machine.keys(); !slices.Equal(got, want) {
		t.Errorf("after a restart: %q, want %q", got, want)
	}
	if done, err := n.Forget(t.Context(), index); err != nil || !done {
		t.Errorf("after a restart it is not forgotten: %v, %v", done, err)
	}
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
}

// TestForgetAndCrash: at whatever moment the node is killed, its log begins and
// ends where it did, and all of it can be read.
func TestForgetAndCrash(t *testing.T) {
	dir := t.TempDir()
	n := startDiskNode(t, dir)
	defer func() {
		if err := n.stop(); err != nil {
			t.Error(err)
		}
	}()
	for round := range 12 {
		n.leak(t, fmt.Sprintf("leak-%d", round))
		index := n.Status().Last
		if round%3 == 0 { // several in one commit
			ended := make(chan error, 20)
			for i := range cap(ended) {
				go func() {
					_, err := n.Propose(t.Context(), LaneOperations, command("note", fmt.Sprintf("%d-%d", round, i)))
					ended <- err
				}()
			}
			for range cap(ended) {
				if err := <-ended; err != nil {
					t.Fatal(err)
				}
			}
		}
		for done := false; !done; {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			var err error
			done, err = n.Forget(ctx, index)
			cancel()
			if err != nil {
				t.Fatal(err)
			}
			crashed := filepath.Join(t.TempDir(), "n1")
			if err := os.CopyFS(crashed, os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
			first, _ := n.stores.logs.FirstIndex()
			last, _ := n.stores.logs.LastIndex()
			s, _, err := openStores(crashed, Cluster{}, n.log)
			if err != nil {
				t.Fatal(err)
			}
			f, _ := s.logs.FirstIndex()
			l, _ := s.logs.LastIndex()
			if f != first || l != last {
				t.Fatalf("round %d: after a crash the log is %d to %d, not %d to %d", round, f, l, first, last)
			}
			for i := f; i != 0 && i <= l; i++ {
				var e raft.Log
				if err := s.logs.GetLog(i, &e); err != nil || e.Index != i {
					t.Fatalf("entry %d: %v", i, err)
				}
				if e.Type != raft.LogCommand {
					continue
				}
				if _, err := openSeal(e.Extensions, e.Data); err != nil {
					t.Fatalf("entry %d: %v", i, err)
				}
			}
			if err := s.close(); err != nil {
				t.Fatal(err)
			}
		}
		if files := holding(t, filepath.Join(dir, logDir)); len(files) > 0 {
			t.Fatalf("round %d: it is still in %q", round, files)
		}
	}
}

// together stores entries in one commit.
func together(t *testing.T, s raft.LogStore, from, to uint64) {
	t.Helper()
	var logs []*raft.Log
	for i := from; i <= to; i++ {
		logs = append(logs, &raft.Log{Index: i, Term: 1, Type: raft.LogCommand, Data: state.EncodeBatch(1, [][]byte{[]byte(leaked)})})
	}
	if err := s.StoreLogs(logs); err != nil {
		t.Fatal(err)
	}
}

// TestScrubInLastCommit: entries that were dropped out of the middle of the last
// commit stay until there is another one, because a start checks that commit, and
// takes the log without it when it does not fit.
func TestScrubInLastCommit(t *testing.T) {
	dir := t.TempDir()
	var meta *metadb.BoltMetaDB // which the log does not close
	open := func() *wal.WAL {
		meta = new(metadb.BoltMetaDB)
		s, err := wal.Open(dir, wal.WithSegmentFiler(segments{segment.NewFiler(dir, walfs.New())}), wal.WithMetaStore(meta))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	together(t, s, 1, 2)
	together(t, s, 3, 6)
	if err := s.DeleteRange(1, 4); err != nil {
		t.Fatal(err)
	}
	for _, more := range []bool{false, true} {
		last := uint64(6)
		if more {
			together(t, s, 7, 7)
			last = 7
		}
		done, err := scrubLog(dir, 5)
		if err != nil || done != more {
			t.Errorf("another commit: %v; done: %v, %v", more, done, err)
		}
		if err := errors.Join(s.Close(), meta.Close()); err != nil {
			t.Fatal(err)
		}
		s = open()
		first, _ := s.FirstIndex()
		if l, _ := s.LastIndex(); l != last || first != 5 {
			t.Fatalf("another commit: %v; after a start the log is %d to %d, not 5 to %d", more, first, l, last)
		}
	}
	if err := errors.Join(s.Close(), meta.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestFollowerAsksForForgotten: a follower that was away is behind what the leader
// has dropped and overwritten. Raft must hear that it is not there, and sends a
// snapshot; that it could not be read halted the leader, and then the next one.
func TestFollowerAsksForForgotten(t *testing.T) {
	dir := t.TempDir()
	s, _, err := openStores(dir, Cluster{ID: "c"}, diskConfig(dir).Log)
	if err != nil {
		t.Fatal(err)
	}
	together(t, s.logs, 1, 6)
	together(t, s.logs, 7, 7)
	together(t, s.logs, 8, 8)
	logs := checkedLog{
		LogStore: s.logs, running: new(atomic.Bool), newest: new(membership), applied: func() uint64 { return 0 },
		halt: func(err error) error {
			t.Errorf("it halts: %v", err)
			return err
		},
	}
	if err := logs.DeleteRange(1, 4); err != nil {
		t.Fatal(err)
	}
	for _, scrubbed := range []bool{false, true} {
		if scrubbed {
			if done, err := scrubLog(filepath.Join(dir, logDir), 5); err != nil || !done {
				t.Fatal(done, err)
			}
		}
		for i := uint64(1); i <= 8; i++ {
			var l raft.Log
			if err := logs.GetLog(i, &l); i < 5 && !errors.Is(err, raft.ErrLogNotFound) || i >= 5 && err != nil {
				t.Errorf("overwritten: %v; entry %d: %v", scrubbed, i, err)
			}
		}
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
}

// TestDroppedFrames: of a file as raft-wal writes it, what lies before an entry
// and behind the last commit but one.
func TestDroppedFrames(t *testing.T) {
	dir := t.TempDir()
	s, _, err := openStores(dir, Cluster{ID: "c"}, diskConfig(dir).Log)
	if err != nil {
		t.Fatal(err)
	}
	together(t, s.logs, 1, 3)
	together(t, s.logs, 4, 6)
	together(t, s.logs, 7, 7)
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, logDir, "*"+walSuffix))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		first uint64
		ripe  int
		later bool
	}{{1, 0, false}, {2, 1, false}, {4, 3, false}, {6, 5, false}, {7, 6, false}, {8, 6, true}} {
		ripe, later := dropped(bytes.NewReader(b), c.first)
		if len(ripe) != c.ripe || later != c.later {
			t.Errorf("before entry %d: %d can be overwritten (later: %v), not %d (%v)", c.first, len(ripe), later, c.ripe, c.later)
		}
		for _, r := range ripe {
			if !bytes.Contains(b[r.at:r.at+r.size], []byte(leaked)) {
				t.Errorf("%v is not an entry", r)
			}
		}
	}
}
