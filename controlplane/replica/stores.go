package replica

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"

	"footplate/fleet"
)

// Cluster says which cluster a data directory belongs to.
type Cluster struct {
	ID string `json:"cluster_id"`
	// Epoch counts the recoveries: nodes of different epochs are not of one
	// cluster.
	Epoch uint64 `json:"epoch"`
}

// String returns the fleet.ClusterName.
func (c Cluster) String() string { return fleet.ClusterName(c.ID, c.Epoch) }

const (
	clusterFile      = "cluster.json"
	lockFile         = "lock"
	logDir           = "log"
	snapshotDir      = "snapshots" // the name is hashicorp/raft's
	snapshotsKept    = 2
	logCacheEntries  = 128
	snapshotMetaFile = "meta.json" // hashicorp/raft's
)

// ReadCluster reads which cluster dir belongs to. It reports false when dir is
// new.
func ReadCluster(dir string) (Cluster, bool, error) {
	path := filepath.Join(dir, clusterFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Cluster{}, false, nil
	}
	if err != nil {
		return Cluster{}, false, fmt.Errorf("read cluster id: %w", err)
	}
	var c Cluster
	if err := json.Unmarshal(b, &c); err != nil || c.ID == "" {
		return Cluster{}, false, fmt.Errorf("%s is damaged: it should hold the cluster's id and epoch", path)
	}
	return c, true, nil
}

func writeCluster(dir string, c Cluster) error {
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, clusterFile)
	f, err := os.Create(path + ".new")
	if err != nil {
		return fmt.Errorf("write cluster id: %w", err)
	}
	_, err = f.Write(append(b, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return fmt.Errorf("write cluster id: %w", err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// check returns an error when what is on disk, have, is not of the cluster
// that the configuration names, want.
func (have Cluster) check(dir string, want Cluster) error {
	if want.ID != "" && have.ID != want.ID {
		return fleet.Conflictf("data directory %q belongs to cluster %q, not to %q", dir, have.ID, want.ID).
			WithHint("start with the right --data, or remove the directory to join %q as a new node", want.ID)
	}
	if want.ID != "" && have.Epoch != want.Epoch {
		return fleet.Conflictf("data directory %q is of recovery epoch %d of cluster %q, which is in epoch %d", dir, have.Epoch, have.ID, want.Epoch).
			WithHint("move the directory away and let the node join again")
	}
	return nil
}

// stores is where a node keeps its log, its vote and its snapshots.
type stores struct {
	logs   raft.LogStore
	stable raft.StableStore
	snaps  raft.SnapshotStore
	// scrub takes off the disk what dropped entries and snapshots leave there; see
	// Replica.Forget. Nil for a store in memory.
	scrub func(index, first uint64) (done bool, err error)
	close func() error
}

// segments are the files of the log. When the end of the log is cut off, as a
// new leader does with what its predecessor could not commit, raft-wal v0.4.0
// calls the file sealed but writes no index into it, and after a restart it
// finds nothing in there (hashicorp/raft-wal issue 31). Such a file is read
// through when it is opened, as an unsealed one is; what was cut off stays
// hidden, because the next file begins with its number.
type segments struct{ *segment.Filer }

// Open opens a sealed file for reading.
func (s segments) Open(info types.SegmentInfo) (types.SegmentReader, error) {
	if info.IndexStart == 0 {
		return s.RecoverTail(info)
	}
	return s.Filer.Open(info)
}

// mend gives the log's last file a successor when it is full and has none.
// Raft-wal v0.4.0 makes that in the background, after it has acknowledged what
// filled the file; when the disk is full then, or the process ends, it finds
// the file full for ever after: "segment is sealed". It takes a file for full as
// well when the disk was full before the end of the write that would have
// filled it. Such a write was not acknowledged, and all before it is kept: the
// file is closed at its last entry that was. It gets no index, see segments.
func (s segments) mend(dir string, meta types.MetaStore, log *slog.Logger) error {
	state, err := meta.Load(dir)
	if err != nil || len(state.Segments) == 0 {
		return err
	}
	tail := &state.Segments[len(state.Segments)-1]
	if !tail.SealTime.IsZero() {
		return nil
	}
	file, err := s.RecoverTail(*tail)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it was about to be created, which opening the log does
	}
	if err != nil {
		return err
	}
	full, _, err := file.Sealed()
	end := file.LastIndex()
	if err := errors.Join(err, file.Close()); err != nil || !full {
		return err
	}
	next := *tail
	next.ID, next.CreateTime = state.NextSegmentID, time.Now()
	state.NextSegmentID++
	if end == 0 {
		*tail = next // nothing in it was ever acknowledged
	} else {
		tail.SealTime, tail.MaxIndex = next.CreateTime, end
		next.BaseIndex, next.MinIndex = end+1, end+1
		state.Segments = append(state.Segments, next)
	}
	if err := meta.CommitState(state); err != nil {
		return err
	}
	log.Warn("mended the log: its last file was full and had no successor", "dir", dir, "index", end)
	return nil
}

// openStores opens what is in dir, and checks all of it that can be checked
// without applying it.
func openStores(dir string, want Cluster, log *slog.Logger) (_ *stores, _ Cluster, err error) {
	var closers []func() error
	closeAll := func() error {
		var errs []error
		for i := len(closers) - 1; i >= 0; i-- {
			errs = append(errs, closers[i]())
		}
		return errors.Join(errs...)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, closeAll())
		}
	}()

	if err := os.MkdirAll(filepath.Join(dir, logDir), 0o700); err != nil {
		return nil, Cluster{}, fmt.Errorf("open data directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, Cluster{}, fmt.Errorf("open data directory: %w", err)
	}
	closers = append(closers, lock.Close)
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, Cluster{}, fleet.Conflictf("data directory %q is in use by another process", dir).
			WithHint("stop the other node, or give this one a directory of its own with --data")
	}

	have, known, err := ReadCluster(dir)
	if err != nil {
		return nil, Cluster{}, err
	}
	if known {
		if err := have.check(dir, want); err != nil {
			return nil, Cluster{}, err
		}
	}

	quiet := newQuietLog(log)
	// The log does not close its own metadata, which stays locked then.
	meta := new(metadb.BoltMetaDB)
	closers = append(closers, meta.Close)
	logs := filepath.Join(dir, logDir)
	segments := segments{segment.NewFiler(logs, newFiles())}
	if err := segments.mend(logs, meta, log); err != nil {
		return nil, Cluster{}, fmt.Errorf("open log in %s: %w", logs, err)
	}
	w, err := wal.Open(logs, wal.WithLogger(quiet), wal.WithMetaStore(meta), wal.WithSegmentFiler(segments))
	if err != nil {
		return nil, Cluster{}, fmt.Errorf("open log in %s: %w", logs, err)
	}
	closers = append(closers, w.Close)
	cached, err := raft.NewLogCache(logCacheEntries, w)
	if err != nil {
		return nil, Cluster{}, fmt.Errorf("open log: %w", err)
	}
	snaps, err := raft.NewFileSnapshotStoreWithLogger(dir, snapshotsKept, quiet)
	if err != nil {
		return nil, Cluster{}, fmt.Errorf("open snapshots: %w", err)
	}
	s := &stores{logs: cached, stable: w, snaps: snaps, close: closeAll}
	s.scrub = func(index, first uint64) (bool, error) {
		if err := scrubSnapshots(filepath.Join(dir, snapshotDir), snaps, index); err != nil {
			return false, err
		}
		return scrubLog(logs, first)
	}
	if err := checkSnapshots(filepath.Join(dir, snapshotDir), s); err != nil {
		return nil, Cluster{}, err
	}

	if !known {
		switch used, err := raft.HasExistingState(s.logs, s.stable, s.snaps); {
		case err != nil:
			return nil, Cluster{}, fmt.Errorf("look into data directory: %w", err)
		case used:
			return nil, Cluster{}, fleet.Conflictf("data directory %q holds a log but no %s", dir, clusterFile).
				WithHint("put the file back from another node, or remove the directory and let the node join again")
		case want.ID == "":
			return nil, Cluster{}, fleet.Invalidf("data directory %q is new, and no cluster id was given", dir).
				WithHint("bootstrap a cluster, or join one")
		}
		if err := writeCluster(dir, want); err != nil {
			return nil, Cluster{}, err
		}
		have = want
	}
	return s, have, nil
}

// checkSnapshots refuses a store whose newest snapshot is damaged, or whose log
// does not go on where that snapshot ends. Raft by itself would take an older
// snapshot, and panic later at the gap.
func checkSnapshots(dir string, s *stores) error {
	const hint = "remove the data directory and let the node join again: the others have everything"
	names, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list snapshots: %w", err)
	}
	for _, d := range names {
		if !d.IsDir() || strings.HasSuffix(d.Name(), ".tmp") {
			continue
		}
		var meta raft.SnapshotMeta
		b, err := os.ReadFile(filepath.Join(dir, d.Name(), snapshotMetaFile))
		if err == nil {
			err = json.Unmarshal(b, &meta)
		}
		if err != nil {
			return fleet.Internalf("snapshot %s in %s is damaged: %s", d.Name(), dir, err).WithHint(hint)
		}
	}
	metas, err := s.snaps.List()
	if err != nil {
		return fmt.Errorf("list snapshots: %w", err)
	}
	var end uint64
	if len(metas) > 0 {
		_, r, err := s.snaps.Open(metas[0].ID)
		if err != nil {
			return fleet.Internalf("snapshot %s in %s is damaged: %s", metas[0].ID, dir, err).WithHint(hint)
		}
		if err := r.Close(); err != nil {
			return fmt.Errorf("close snapshot: %w", err)
		}
		end = metas[0].Index
	}
	first, err := s.logs.FirstIndex()
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	if first > end+1 {
		return fleet.Internalf("the log in %s begins at entry %d, and the newest snapshot ends at %d: what is between them is missing",
			filepath.Dir(dir), first, end).WithHint(hint)
	}
	return nil
}

// checkedLog halts the node when its log can't be read or written. Raft would
// panic at the one, and go on as a follower at the other.
type checkedLog struct {
	raft.LogStore
	halt    func(error) error
	running *atomic.Bool // raft's goroutines have started
	newest  *membership
	applied func() uint64 // version of the membership that was applied
	arrived *arrivals
}

// membership is the version of the newest membership in the log, committed or
// not.
type membership struct {
	version atomic.Uint64
	tell    func(version uint64)
}

func (m *membership) set(version uint64) {
	if m.version.Swap(version) != version && m.tell != nil {
		m.tell(version)
	}
}

// find looks the newest membership of a log up that ends with last, and was
// applied up to applied.
func (m *membership) find(logs raft.LogStore, applied, last, known uint64) error {
	for i := last; i > applied; i-- {
		var l raft.Log
		if err := logs.GetLog(i, &l); err != nil {
			if errors.Is(err, raft.ErrLogNotFound) {
				break
			}
			return fmt.Errorf("log entry %d cannot be read: %w", i, err)
		}
		if l.Type == raft.LogConfiguration {
			m.set(i)
			return nil
		}
	}
	m.set(known)
	return nil
}

// IsMonotonic implements raft.MonotonicLogStore.
func (c checkedLog) IsMonotonic() bool {
	m, ok := c.LogStore.(raft.MonotonicLogStore)
	return ok && m.IsMonotonic()
}

// GetLog implements raft.LogStore.
func (c checkedLog) GetLog(index uint64, l *raft.Log) error {
	err := c.LogStore.GetLog(index, l)
	// raft-wal goes on reading what was dropped from the file that it writes to,
	// and Forget has overwritten that. Looked at afterwards: it may go meanwhile.
	if first, e := c.FirstIndex(); e == nil && index < first {
		return raft.ErrLogNotFound
	}
	if err == nil && l.Index != index {
		err = fmt.Errorf("entry %d is there instead", l.Index)
	}
	if err != nil && !errors.Is(err, raft.ErrLogNotFound) {
		err = c.halt(fmt.Errorf("log entry %d cannot be read: %w", index, err))
		if c.running.Load() {
			// Raft holds no lock here and would panic next, which would hide the
			// reason: its goroutine ends, with its deferred calls, and Run reports.
			runtime.Goexit()
		}
	}
	return err
}

// StoreLog implements raft.LogStore.
func (c checkedLog) StoreLog(l *raft.Log) error { return c.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore.
func (c checkedLog) StoreLogs(logs []*raft.Log) error {
	// Told before the entry is acknowledged to the leader: the leases lean on it.
	for _, l := range logs {
		if l.Type == raft.LogConfiguration {
			c.newest.set(l.Index)
		}
	}
	if len(logs) > 0 {
		c.arrived.note(logs[0].Index, logs[len(logs)-1].Index, time.Now())
	}
	err := c.LogStore.StoreLogs(logs)
	if err != nil && len(logs) > 0 {
		err = fmt.Errorf("log entry %d cannot be written: %w", logs[0].Index, err)
		if strings.Contains(err.Error(), wal.ErrSealed.Error()) { // raft's cache keeps only the text
			err = fmt.Errorf("%w: the next file of the log could not be made: is the disk full?", err)
		}
		err = c.halt(err)
	}
	return err
}

// DeleteRange implements raft.LogStore.
func (c checkedLog) DeleteRange(first, last uint64) error {
	err := c.LogStore.DeleteRange(first, last)
	if end, e := c.LastIndex(); err == nil && e == nil && c.newest.version.Load() > end && end > 0 {
		// The end of the log was cut off, and with it the newest membership.
		begin, e := c.FirstIndex()
		if e == nil {
			e = c.newest.find(c.LogStore, max(begin, 1)-1, end, c.applied())
		}
		err = e
	}
	return err
}

// stream is raft's network: plain TCP, or what Config.Listener and Config.Dial
// make of it. Whoever calls says first of which cluster it is: raft itself would
// follow a leader of another one, or of an earlier recovery epoch, and give up
// its own log for that leader's.
type stream struct {
	net.Listener
	advertise addr
	dial      func(ctx context.Context, addr string) (net.Conn, error)
	most      time.Duration // a dial may take
	cluster   string        // fleet.ClusterName
	log       *slog.Logger
	told      atomic.Int64 // when it was last said that somebody else calls, in Unix seconds
}

// strangersEvery is how often it is said that somebody calls who is not of this
// cluster: a node that does, does it many times a second.
const strangersEvery = 30 * time.Second

// helloMost bounds what a caller says first.
const helloMost = 512

func hello(cluster string) string { return "footplate raft " + cluster + "\n" }

// Accept implements net.Listener. What the caller says first is read with the
// rest, because nobody may wait for it here.
func (s *stream) Accept() (net.Conn, error) {
	c, err := s.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &answered{Conn: c, in: bufio.NewReaderSize(c, helloMost), stream: s}, nil
}

// answered is a connection that somebody else began.
type answered struct {
	net.Conn
	in     *bufio.Reader
	stream *stream
	known  bool // the caller is of this cluster
}

// Read implements net.Conn. Raft reads from one goroutine.
func (a *answered) Read(b []byte) (int, error) {
	if !a.known {
		line, err := a.in.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			return 0, errors.New("the caller is no node")
		case err != nil:
			return 0, err // nobody who had something to say
		case string(line) != hello(a.stream.cluster):
			a.stream.stranger(a.RemoteAddr(), strings.TrimSpace(string(line)))
			return 0, errors.New("the caller is of another cluster")
		}
		a.known = true
	}
	return a.in.Read(b)
}

type addr string

func (a addr) Network() string { return "tcp" }
func (a addr) String() string  { return string(a) }

// Addr implements net.Listener: it is what the other nodes call.
func (s *stream) Addr() net.Addr { return s.advertise }

func (s *stream) stranger(from net.Addr, hello string) {
	now := time.Now().Unix()
	if last := s.told.Load(); now-last < int64(strangersEvery/time.Second) || !s.told.CompareAndSwap(last, now) {
		return
	}
	s.log.Warn("somebody of another cluster calls, or of another recovery epoch, and is not listened to",
		"from", from.String(), "hello", hello, "cluster", s.cluster)
}

// Dial implements raft.StreamLayer.
func (s *stream) Dial(to raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), min(timeout, s.most))
	defer cancel()
	c, err := s.dial(ctx, string(to))
	if err != nil {
		return nil, err
	}
	if _, err := c.Write([]byte(hello(s.cluster))); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func dialTCP(ctx context.Context, to string) (net.Conn, error) {
	d := net.Dialer{KeepAlive: 5 * time.Second}
	return d.DialContext(ctx, "tcp", to)
}
