package controlplane

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"slices"
	"sync"
	"testing"
	"time"

	"footplate/controlplane/api"
	"footplate/controlplane/archive"
	"footplate/controlplane/catalog"
	"footplate/controlplane/client"
	"footplate/controlplane/replica"
	"footplate/controlplane/replica/rafttest"
	"footplate/fleet"
)

// The benchmarks compare whole nodes of the control plane with bare
// hashicorp/raft: three of each in this process, over loopback, on raft-wal,
// with the same timeouts, in alternated rounds. See BENCHMARKS.md.
const (
	benchRounds    = 11
	benchRound     = time.Second // in 300 ms the round's end, see settled, was a sixth of it
	benchHeartbeat = time.Second
	benchToken     = "secret-of-the-bench"
)

// benchCluster starts three nodes and returns them, the leader first.
func benchCluster(b *testing.B, edit ...func(*Config)) []*Node {
	b.Helper()
	was := debug.SetGCPercent(400) // as "footplate server" sets it; bare raft has it too
	b.Cleanup(func() { debug.SetGCPercent(was) })
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	b.Cleanup(func() { cancel(); all.Wait() })
	free := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		defer l.Close()
		return l.Addr().String()
	}
	var nodes []*Node
	for i := range 3 {
		cfg := Config{
			Node: fleet.NodeID(fmt.Sprint("n", i+1)), Dir: b.TempDir(), Listen: free(), Raft: free(), Version: "bench",
			NodeToken: "secret-of-the-nodes", Heartbeat: benchHeartbeat, Log: slog.New(slog.DiscardHandler),
		}
		for _, f := range edit {
			f(&cfg)
		}
		if i == 0 {
			cfg.Bootstrap = true
			cfg.Tokens = []fleet.Token{{Name: "bench", Hash: TokenHash(benchToken), Principal: "alice", Role: fleet.Operator}}
		} else {
			cfg.Join = []string{nodes[0].cfg.API}
		}
		n, err := New(ctx, cfg)
		if err != nil {
			b.Fatal(err)
		}
		nodes = append(nodes, n)
		all.Go(func() {
			if err := n.Run(ctx); err != nil {
				b.Error(err)
			}
		})
		rafttest.Wait(b, "the node to join", func() bool {
			return n.introduced() && len(n.replica.Status().Members) == i+1
		})
	}
	leader := slices.IndexFunc(nodes, func(n *Node) bool { return n.replica.Status().Role == replica.RoleLeader })
	if leader < 0 {
		b.Fatal("no node leads")
	}
	nodes[0], nodes[leader] = nodes[leader], nodes[0]
	return nodes
}

// settled waits until the archives of all nodes have what was acknowledged: the
// record is a part of each action, though nobody waits for it.
func settled(b *testing.B, nodes []*Node) {
	last := nodes[0].machine.View().Entry
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var all sync.WaitGroup
	for _, n := range nodes {
		all.Go(func() {
			for v := n.machine.View(); v.Entry < last; {
				var err error
				if v, err = n.machine.WaitView(ctx, v.Index); err != nil {
					b.Error(err)
					return
				}
			}
			// A query waits for what is queued, and keeps it waiting no longer.
			newest, err := n.archive.Query(ctx, archive.Filter{Newest: true, Limit: 1})
			if err != nil || len(newest) == 0 || newest[0].N < last {
				b.Errorf("entry %d is not in the archive: %v, %v", last, newest, err)
			}
		})
	}
	all.Wait()
}

func benchPayload() []byte {
	p := make([]byte, rafttest.Payload)
	rand.Read(p)
	return p
}

// benchAction is one action of an operator: it differs from call to call.
func benchAction(caller, i int) catalog.OrgSetArgs {
	slots, weight := i%1000, 1
	return catalog.OrgSetArgs{Org: fleet.OrgName(fmt.Sprint("org-", caller)), Slots: &slots, Weight: &weight}
}

// benchDoor does actions on nodes through the one door of the leader.
func benchDoor(b *testing.B, nodes []*Node) rafttest.Subject {
	door := nodes[0].server.Door()
	return rafttest.Subject{
		Settle: func() { settled(b, nodes) },
		Do: func(caller, i int) error {
			args, err := json.Marshal(benchAction(caller, i))
			if err != nil {
				return err
			}
			who, err := door.Authenticate(benchToken)
			if err != nil {
				return err
			}
			_, err = door.Do(context.Background(), who, catalog.OrgSet, api.Request{Args: args, Via: "bench/1"})
			return err
		},
	}
}

// BenchmarkActions compares actions submitted in the leader's process, through
// the one door: the caller's token, role, arguments, key, throttles, and the
// audit entry in the same log entry. (Goals 1a and 1b.)
func BenchmarkActions(b *testing.B) {
	raw := rafttest.Start(b, benchHeartbeat)
	nodes := benchCluster(b)
	payload := benchPayload()
	for _, callers := range []int{1, 16, 128, 1024} {
		b.Run(fmt.Sprint(callers), func(b *testing.B) {
			rafttest.Compare(b, callers, benchRounds, benchRound,
				rafttest.Subject{Do: func(int, int) error { return raw(payload) }},
				benchDoor(b, nodes))
		})
	}
}

// BenchmarkHTTP compares the latency of one action through HTTP with that of
// bare raft in its own process. (Goal 2a.)
func BenchmarkHTTP(b *testing.B) {
	raw := rafttest.Start(b, benchHeartbeat)
	nodes := benchCluster(b)
	payload := benchPayload()
	c, err := client.New(client.Config{Addrs: []string{nodes[0].cfg.API}, Token: benchToken, Via: "bench/1"})
	if err != nil {
		b.Fatal(err)
	}
	b.Run("1", func(b *testing.B) {
		rafttest.Compare(b, 1, benchRounds, benchRound,
			rafttest.Subject{Do: func(int, int) error { return raw(payload) }},
			rafttest.Subject{
				Settle: func() { settled(b, nodes) },
				Do: func(caller, i int) error {
					_, err := c.Do(context.Background(), catalog.OrgSet, benchAction(caller, i), client.Options{})
					return err
				},
			})
	})
}
