// Package rafttest is what the benchmarks measure footplate against: bare
// hashicorp/raft on raft-wal, one log entry a command, with raft's own batching
// on; and the way to measure, in alternated rounds.
//
// Both run in one process and on the same machine, at the same time of day: only
// ratios of rounds that were run one after the other mean anything on a machine
// that others use too.
package rafttest

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/metadb"
)

// Payload is the size of a command of bare raft, in bytes.
const Payload = 256

// counter is the least state machine: what is left is the cost of replication.
type counter struct{ n atomic.Uint64 }

func (c *counter) Apply(*raft.Log) any { return c.n.Add(1) }

func (c *counter) ApplyBatch(logs []*raft.Log) []any {
	out := make([]any, len(logs))
	for i := range out {
		out[i] = c.n.Add(1)
	}
	return out
}

func (c *counter) Snapshot() (raft.FSMSnapshot, error) { return nil, errors.New("none here") }
func (c *counter) Restore(io.ReadCloser) error         { return nil }

// Start starts three nodes of bare raft over loopback, which end with the
// benchmark, and returns what applies one payload on the leader.
func Start(b testing.TB, heartbeat time.Duration) (apply func(payload []byte) error) {
	b.Helper()
	quiet := hclog.NewNullLogger()
	var nodes []*raft.Raft
	var servers raft.Configuration
	for i := range 3 {
		dir := b.TempDir()
		meta := new(metadb.BoltMetaDB)
		logs, err := wal.Open(dir, wal.WithMetaStore(meta), wal.WithLogger(quiet))
		if err != nil {
			b.Fatal(err)
		}
		cache, err := raft.NewLogCache(128, logs)
		if err != nil {
			b.Fatal(err)
		}
		snaps, err := raft.NewFileSnapshotStoreWithLogger(filepath.Join(dir, "snaps"), 1, quiet)
		if err != nil {
			b.Fatal(err)
		}
		trans, err := raft.NewTCPTransportWithLogger("127.0.0.1:0", nil, 4, 2*time.Second, quiet)
		if err != nil {
			b.Fatal(err)
		}
		conf := raft.DefaultConfig()
		conf.LocalID = raft.ServerID(fmt.Sprint("n", i))
		conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = heartbeat, heartbeat, heartbeat/2
		conf.MaxAppendEntries = 1024
		conf.BatchApplyCh = true
		conf.SnapshotInterval, conf.SnapshotThreshold, conf.TrailingLogs = time.Hour, 1<<40, 1<<20
		conf.NoLegacyTelemetry = true
		conf.Logger = quiet
		node, err := raft.NewRaft(conf, new(counter), cache, logs, snaps, trans)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() {
			if err := errors.Join(node.Shutdown().Error(), trans.Close(), logs.Close(), meta.Close()); err != nil {
				b.Error(err)
			}
		})
		nodes = append(nodes, node)
		servers.Servers = append(servers.Servers, raft.Server{ID: conf.LocalID, Address: trans.LocalAddr()})
	}
	if err := nodes[0].BootstrapCluster(servers).Error(); err != nil {
		b.Fatal(err)
	}
	leader := -1
	Wait(b, "a leader of bare raft", func() bool {
		leader = slices.IndexFunc(nodes, func(r *raft.Raft) bool { return r.State() == raft.Leader })
		return leader >= 0
	})
	return func(payload []byte) error { return nodes[leader].Apply(payload, 0).Error() }
}

// Wait waits until ok.
func Wait(b testing.TB, what string, ok func() bool) {
	b.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(30 * time.Second); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			b.Fatalf("waited 30 s for %s", what)
		}
	}
}

// Figures are of one round.
type Figures struct {
	Rate     float64 // a second
	P50, P99 time.Duration
}

// Subject is one of the two that are compared.
type Subject struct {
	// Do does it once and returns when it was acknowledged.
	Do func(caller, i int) error
	// Settle returns when the work that was acknowledged has also been done
	// behind the scenes. It is part of the round's time. Optional.
	Settle func()
}

// round lets callers call for a while.
func round(b *testing.B, callers int, long time.Duration, s Subject) Figures {
	b.Helper()
	took := make([][]time.Duration, callers)
	began := time.Now()
	var all sync.WaitGroup
	for c := range callers {
		all.Go(func() {
			for i := 0; time.Since(began) < long; i++ {
				at := time.Now()
				if err := s.Do(c, i); err != nil {
					b.Error(err)
					return
				}
				took[c] = append(took[c], time.Since(at))
			}
		})
	}
	all.Wait()
	if s.Settle != nil {
		s.Settle()
	}
	whole := time.Since(began)
	every := slices.Concat(took...)
	if len(every) == 0 {
		b.Fatal("nothing was done")
	}
	slices.Sort(every)
	return Figures{float64(len(every)) / whole.Seconds(), every[len(every)/2], every[len(every)*99/100]}
}

// Compare runs rounds of both, in turn, and reports of each figure the median
// over the rounds: throughput of both, the latency of ours, and ratios of ours
// to raw in the same pair of rounds, that of the throughput also with its least
// and its greatest value.
func Compare(b *testing.B, callers, rounds int, long time.Duration, raw, ours Subject) {
	b.Helper()
	for b.Loop() {
		rs, os := make([]Figures, rounds), make([]Figures, rounds)
		for i := range rounds {
			rs[i] = round(b, callers, long, raw)
			os[i] = round(b, callers, long, ours)
		}
		spread := func(of func(r, o Figures) float64) []float64 {
			all := make([]float64, rounds)
			for i := range all {
				all[i] = of(rs[i], os[i])
			}
			slices.Sort(all)
			return all
		}
		median := func(unit string, of func(r, o Figures) float64) { b.ReportMetric(spread(of)[rounds/2], unit) }
		ratios := func(unit string, of func(r, o Figures) float64) {
			all := spread(of)
			b.ReportMetric(all[rounds/2], unit)
			b.ReportMetric(all[0], unit+"-min")
			b.ReportMetric(all[rounds-1], unit+"-max")
		}
		median("raw/s", func(r, _ Figures) float64 { return r.Rate })
		median("ours/s", func(_, o Figures) float64 { return o.Rate })
		median("p50-µs", func(_, o Figures) float64 { return o.P50.Seconds() * 1e6 })
		median("p99-µs", func(_, o Figures) float64 { return o.P99.Seconds() * 1e6 })
		ratios("ratio", func(r, o Figures) float64 { return o.Rate / r.Rate })
		ratios("p50-ratio", func(r, o Figures) float64 { return o.P50.Seconds() / r.P50.Seconds() })
		ratios("p99-ratio", func(r, o Figures) float64 { return o.P99.Seconds() / r.P99.Seconds() })
		b.ReportMetric(0, "ns/op")
	}
}
