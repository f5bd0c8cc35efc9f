package replica

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"footplate/controlplane/replica/rafttest"
	"footplate/controlplane/state"
	"footplate/fleet"
)

// The benchmark compares Replica.Propose with bare hashicorp/raft, one entry a
// command, raft's own batching on: three nodes in one process over loopback,
// the same stores, the same timeouts, payloads of 256 bytes, in alternated
// rounds. (Goals 1b and 2c of the project.)

const (
	benchRounds    = 21
	benchRound     = 200 * time.Millisecond
	benchHeartbeat = time.Second
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

// benchReplicas starts three replicas and returns what proposes one command on
// the leader.
func benchReplicas(b *testing.B) func(c state.Command) error {
	var nodes []*Replica
	var members []Member
	for i := range 3 {
		r, err := Open(Config{
			NodeID: fleet.NodeID(fmt.Sprint("n", i)), Cluster: Cluster{ID: "bench"}, Dir: b.TempDir(), RaftAddr: "127.0.0.1:0",
			Machine: new(counter), Log: slog.New(slog.DiscardHandler), HeartbeatTimeout: benchHeartbeat,
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
	rafttest.Wait(b, "a leader", func() bool {
		leader = slices.IndexFunc(nodes, func(r *Replica) bool { return r.Status().Role == RoleLeader })
		return leader >= 0
	})
	return func(c state.Command) error {
		_, err := nodes[leader].Propose(ctx, LaneOperations, c)
		return err
	}
}

// BenchmarkPropose compares throughput and latency at several numbers of
// callers.
func BenchmarkPropose(b *testing.B) {
	raw := rafttest.Start(b, benchHeartbeat)
	ours := benchReplicas(b)
	payload := make([]byte, rafttest.Payload)
	rand.Read(payload)
	// A command whose encoding has the size of the payload.
	c := state.Command{Op: "pool scale", Ver: 1, By: "alice", Role: fleet.Operator, Via: "bench"}
	c.Args = []byte(`{"pool":"linux"}`)
	c.Reason = hex.EncodeToString(payload[:(rafttest.Payload-144)/2])
	for _, callers := range []int{1, 16, 128, 1024} {
		b.Run(fmt.Sprint(callers), func(b *testing.B) {
			rafttest.Compare(b, callers, benchRounds, benchRound,
				rafttest.Subject{Do: func(int, int) error { return raw(payload) }},
				rafttest.Subject{Do: func(caller, i int) error {
					c := c
					c.Key = fmt.Sprintf("%d-%d", caller, i)
					return ours(c)
				}})
		})
	}
}
