package replica

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Network connects nodes of one process in memory, for tests inside a synctest
// bubble and for simulations. Its links can be cut.
type Network struct {
	mu      sync.Mutex
	timeout time.Duration
	nodes   map[raft.ServerAddress]*raft.InmemTransport
	cut     map[[2]raft.ServerAddress]bool
}

// NewNetwork returns a network on which a call is given up after timeout.
func NewNetwork(timeout time.Duration) *Network {
	return &Network{
		timeout: timeout,
		nodes:   make(map[raft.ServerAddress]*raft.InmemTransport),
		cut:     make(map[[2]raft.ServerAddress]bool),
	}
}

func link(a, b raft.ServerAddress) [2]raft.ServerAddress {
	return [2]raft.ServerAddress{min(a, b), max(a, b)}
}

// plug attaches a node that has just started at at.
func (n *Network) plug(at raft.ServerAddress) *raft.InmemTransport {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, t := raft.NewInmemTransportWithTimeout(at, n.timeout)
	n.nodes[at] = t
	for b, other := range n.nodes {
		if b != at && !n.cut[link(at, b)] {
			t.Connect(b, other)
			other.Connect(at, t)
		}
	}
	return t
}

// unplug detaches a node that has stopped.
func (n *Network) unplug(at raft.ServerAddress, t *raft.InmemTransport) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.nodes[at] != t {
		return
	}
	delete(n.nodes, at)
	for _, other := range n.nodes {
		other.Disconnect(at)
	}
}

func (n *Network) plugged(at raft.ServerAddress) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.nodes[at] != nil
}

// Cut ends the link between the nodes at addresses a and b, both ways.
func (n *Network) Cut(a, b string) { n.set(raft.ServerAddress(a), raft.ServerAddress(b), true) }

// Mend restores the link between a and b.
func (n *Network) Mend(a, b string) { n.set(raft.ServerAddress(a), raft.ServerAddress(b), false) }

func (n *Network) set(a, b raft.ServerAddress, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[link(a, b)] = cut
	ta, tb := n.nodes[a], n.nodes[b]
	if ta == nil || tb == nil {
		return
	}
	if cut {
		ta.Disconnect(b)
		tb.Disconnect(a)
		return
	}
	ta.Connect(b, tb)
	tb.Connect(a, ta)
}

// Disk keeps what a node would keep in its data directory, in memory. It
// outlives the node.
type Disk struct {
	logs    *raft.InmemStore
	snaps   *memorySnapshots
	mu      sync.Mutex
	cluster Cluster
}

// NewDisk returns an empty disk.
func NewDisk() *Disk {
	return &Disk{logs: raft.NewInmemStore(), snaps: &memorySnapshots{}}
}

func (d *Disk) open(want Cluster) (*stores, Cluster, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cluster.ID != "" {
		if err := d.cluster.check("memory", want); err != nil {
			return nil, Cluster{}, err
		}
	} else {
		d.cluster = want
	}
	return &stores{logs: d.logs, stable: d.logs, snaps: d.snaps, close: func() error { return nil }}, d.cluster, nil
}

// Damage replaces the log entry at index by data, as a failing disk would.
func (d *Disk) Damage(index uint64, data []byte) error {
	var l raft.Log
	if err := d.logs.GetLog(index, &l); err != nil {
		return fmt.Errorf("log entry %d: %w", index, err)
	}
	l.Data = data
	return d.logs.StoreLog(&l)
}

// memorySnapshots is a raft.SnapshotStore that, unlike raft's own in memory,
// keeps the snapshot before when one fails.
type memorySnapshots struct {
	mu   sync.Mutex
	kept []*memorySink // oldest first
}

type memorySink struct {
	store *memorySnapshots
	meta  raft.SnapshotMeta
	data  bytes.Buffer
	done  bool
}

// Create implements raft.SnapshotStore.
func (m *memorySnapshots) Create(version raft.SnapshotVersion, index, term uint64, members raft.Configuration,
	membersIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	return &memorySink{store: m, meta: raft.SnapshotMeta{
		Version: version, ID: fmt.Sprintf("%d-%d", term, index), Index: index, Term: term,
		Configuration: members, ConfigurationIndex: membersIndex,
	}}, nil
}

// List implements raft.SnapshotStore.
func (m *memorySnapshots) List() ([]*raft.SnapshotMeta, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var metas []*raft.SnapshotMeta
	for _, s := range slices.Backward(m.kept) {
		meta := s.meta
		metas = append(metas, &meta)
	}
	return metas, nil
}

// Open implements raft.SnapshotStore.
func (m *memorySnapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.kept {
		if s.meta.ID == id {
			meta := s.meta
			return &meta, io.NopCloser(bytes.NewReader(s.data.Bytes())), nil
		}
	}
	return nil, nil, errors.New("no such snapshot")
}

// Write implements raft.SnapshotSink.
func (s *memorySink) Write(p []byte) (int, error) { return s.data.Write(p) }

// ID implements raft.SnapshotSink.
func (s *memorySink) ID() string { return s.meta.ID }

// Cancel implements raft.SnapshotSink.
func (s *memorySink) Cancel() error {
	s.done = true
	return nil
}

// Close implements raft.SnapshotSink.
func (s *memorySink) Close() error {
	if s.done {
		return nil
	}
	s.done = true
	s.meta.Size = int64(s.data.Len())
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	s.store.kept = append(s.store.kept, s)
	if len(s.store.kept) > snapshotsKept {
		s.store.kept = s.store.kept[1:]
	}
	return nil
}
