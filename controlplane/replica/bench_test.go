package replica

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/metadb"

	"footplate/controlplane/state"
	"footplate/fleet"
)

// The benchmark compares Replica.Propose with bare hashicorp/raft, one entry a
// command, raft's own batching on: three nodes in one process over loopback,
// the same stores, the same timeouts, payloads of 256 bytes, in alternated
// rounds. (Goals 1b and 2c of the project.)

const (
	benchPayload = 256
	benchRounds  = 21
	benchRound   = 200 * time.Millisecond
)

// counter is the least Machine: what is left is the cost of replication.
type counter struct{ n atomic.Uint64 }

func (c *counter) Apply(_, _ uint64, b state.Batch) ([]state.Outcome, error) {
	out := make([]state.Outcome, len(b.Commands))
	for i := range out {
		out[i].Entry = fleet.EntryNo(c.n.Add(1))
	}
	return out, nil
}

func (c *counter) Digest() (uint64, string, bool) { return 0, "", false }
func (c *counter) Snapshot() (func(io.Writer) error, uint64) {
	return func(io.Writer) error { return nil }, 0
}
func (c *counter) Restore(io.Reader) error                 { return nil }
func (c *counter) Try(fleet.Time, []state.Command) []error { return nil }

// rawFSM is the least raft.FSM.
type rawFSM struct{ n atomic.Uint64 }

func (f *rawFSM) Apply(*raft.Log) any { return f.n.Add(1) }
func (f *rawFSM) ApplyBatch(logs []*raft.Log) []any {
	out := make([]any, len(logs))
	for i := range out {
		out[i] = f.n.Add(1)
	}
	return out
}
func (f *rawFSM) Snapshot() (raft.FSMSnapshot, error) { return nil, fmt.Errorf("none here") }
func (f *rawFSM) Restore(io.ReadCloser) error         { return nil }

// benchRaw starts bare raft and returns what applies one payload on the leader.
func benchRaw(b *testing.B) func(payload []byte) error {
	var nodes []*raft.Raft
	var c raft.Configuration
	for i := range 3 {
		dir := filepath.Join(b.TempDir(), "log")
		meta := new(metadb.BoltMetaDB)
		quiet := newQuietLog(slog.New(slog.DiscardHandler))
		w, err := wal.Open(b.TempDir(), wal.WithMetaStore(meta), wal.WithLogger(quiet))
		if err != nil {
			b.Fatal(err)
		}
		cache, err := raft.NewLogCache(logCacheEntries, w)
		if err != nil {
			b.Fatal(err)
		}
		snaps, err := raft.NewFileSnapshotStoreWithLogger(dir, 1, quiet)
		if err != nil {
			b.Fatal(err)
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		at := addr(l.Addr().String())
		trans := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			Stream:  &stream{Listener: l, advertise: at, dial: dialTCP, most: time.Second},
			MaxPool: 4, Timeout: 2 * time.Second, Logger: quiet,
		})
		conf := (&Replica{cfg: Config{
			NodeID: fleet.NodeID(fmt.Sprint("n", i)), HeartbeatTimeout: time.Second,
			SnapshotInterval: time.Hour, SnapshotThreshold: 1 << 40, TrailingLogs: 1 << 20,
		}, log: slog.New(slog.DiscardHandler)}).raftConfig()
		conf.BatchApplyCh = true
		ra, err := raft.NewRaft(conf, &rawFSM{}, cache, w, snaps, trans)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() {
			if err := ra.Shutdown().Error(); err != nil {
				b.Error(err)
			}
			trans.CloseStreams()
			if err := w.Close(); err != nil {
				b.Error(err)
			}
			if err := meta.Close(); err != nil {
				b.Error(err)
			}
		})
		nodes = append(nodes, ra)
		c.Servers = append(c.Servers, raft.Server{ID: conf.LocalID, Address: raft.ServerAddress(at)})
	}
	if err := nodes[0].BootstrapCluster(c).Error(); err != nil {
		b.Fatal(err)
	}
	leader := -1
	waitFor(b, func() bool {
		leader = slices.IndexFunc(nodes, func(r *raft.Raft) bool { return r.State() == raft.Leader })
		return leader >= 0
	})
	return func(payload []byte) error { return nodes[leader].Apply(payload, 0).Error() }
}

// benchReplicas starts three replicas and returns what proposes one command on
// the leader.
func benchReplicas(b *testing.B) func(c state.Command) error {
	var nodes []*Replica
	var members []Member
	for i := range 3 {
		r, err := Open(Config{
			NodeID: fleet.NodeID(fmt.Sprint("n", i)), Cluster: Cluster{ID: "bench"}, Dir: b.TempDir(), RaftAddr: "127.0.0.1:0",
			Machine: new(counter), Log: slog.New(slog.DiscardHandler), HeartbeatTimeout: time.Second,
			SnapshotInterval: time.Hour, SnapshotThreshold: 1 << 40, TrailingLogs: 1 << 20,
		})
		if err != nil {
			b.Fatal(err)
		}
		nodes = append(nodes, r)
		members = append(members, Member{ID: r.cfg.NodeID, Addr: r.Addr(), Voter: true})
	}
	if err := nodes[0].Bootstrap(members); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	for _, r := range nodes {
		all.Go(func() {
			if err := r.Run(ctx); err != nil {
				b.Error(err)
			}
		})
	}
	b.Cleanup(func() { cancel(); all.Wait() })
	leader := -1
	waitFor(b, func() bool {
		leader = slices.IndexFunc(nodes, func(r *Replica) bool { return r.Status().Role == RoleLeader })
		return leader >= 0
	})
	return func(c state.Command) error {
		_, err := nodes[leader].Propose(ctx, LaneOperations, c)
		return err
	}
}

func waitFor(b *testing.B, ok func() bool) {
	b.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			b.Fatal("no leader")
		}
		wait := time.NewTimer(5 * time.Millisecond)
		<-wait.C
	}
}

// figures are of one round.
type figures struct {
	rate     float64 // a second
	p50, p99 time.Duration
}

// round lets callers call do for a while.
func round(b *testing.B, callers int, do func(caller, i int) error) figures {
	b.Helper()
	took := make([][]time.Duration, callers)
	began := time.Now()
	var all sync.WaitGroup
	for c := range callers {
		all.Go(func() {
			for i := 0; time.Since(began) < benchRound; i++ {
				at := time.Now()
				if err := do(c, i); err != nil {
					b.Error(err)
					return
				}
				took[c] = append(took[c], time.Since(at))
			}
		})
	}
	all.Wait()
	whole := time.Since(began)
	every := slices.Concat(took...)
	slices.Sort(every)
	if len(every) == 0 {
		b.Fatal("nothing was done")
	}
	return figures{float64(len(every)) / whole.Seconds(), every[len(every)/2], every[len(every)*99/100]}
}

func medianOf(n int, of func(i int) float64) float64 {
	all := make([]float64, n)
	for i := range all {
		all[i] = of(i)
	}
	slices.Sort(all)
	return all[n/2]
}

// BenchmarkPropose reports medians over the rounds: commands/s of both and the
// latency of ours, and as ratios, ours over raw's in the same pair of rounds,
// throughput, p50 and p99.
func BenchmarkPropose(b *testing.B) {
	raw := benchRaw(b)
	ours := benchReplicas(b)
	payload := make([]byte, benchPayload)
	rand.Read(payload)
	// A command whose encoding has the size of the payload.
	c := state.Command{Op: "pool scale", Ver: 1, By: "alice", Role: fleet.Operator, Via: "bench"}
	c.Args = []byte(`{"pool":"linux"}`)
	c.Reason = hex.EncodeToString(payload[:(benchPayload-144)/2])
	for _, callers := range []int{1, 16, 128, 1024} {
		b.Run(fmt.Sprint(callers), func(b *testing.B) {
			for b.Loop() {
				var rs, os []figures
				for range benchRounds {
					rs = append(rs, round(b, callers, func(int, int) error { return raw(payload) }))
					os = append(os, round(b, callers, func(caller, i int) error {
						c := c
						c.Key = fmt.Sprintf("%d-%d", caller, i)
						return ours(c)
					}))
				}
				median := func(unit string, of func(i int) float64) { b.ReportMetric(medianOf(benchRounds, of), unit) }
				median("raw/s", func(i int) float64 { return rs[i].rate })
				median("ours/s", func(i int) float64 { return os[i].rate })
				median("ratio", func(i int) float64 { return os[i].rate / rs[i].rate })
				median("p50-ratio", func(i int) float64 { return float64(os[i].p50) / float64(rs[i].p50) })
				median("p99-ratio", func(i int) float64 { return float64(os[i].p99) / float64(rs[i].p99) })
				median("p50-µs", func(i int) float64 { return os[i].p50.Seconds() * 1e6 })
				median("p99-µs", func(i int) float64 { return os[i].p99.Seconds() * 1e6 })
				b.ReportMetric(0, "ns/op")
			}
		})
	}
}
