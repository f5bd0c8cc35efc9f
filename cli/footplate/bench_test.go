package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"footplate/controlplane/catalog"
	"footplate/controlplane/client"
	"footplate/fleet"
)

const (
	failoverTrials  = 10
	failoverClients = 8
	// failoverTimeout is the heartbeat timeout that nodes have by default.
	failoverTimeout = 500 * time.Millisecond
)

// worker sets an org to a number that only grows, and remembers what was
// acknowledged.
type worker struct {
	org    fleet.OrgName
	client *client.Client
	acked  atomic.Int64
	at     atomic.Int64 // when, in ns since 1970
}

func (w *worker) work(ctx context.Context) {
	for n := int64(1); ctx.Err() == nil; n++ {
		_, err := w.client.Do(ctx, catalog.OrgSet, catalog.OrgSetArgs{Org: w.org, Slots: new(int(n)), Weight: new(1)}, client.Options{})
		if err == nil {
			w.at.Store(time.Now().UnixNano())
			w.acked.Store(n)
		}
	}
}

// BenchmarkFailover kills the leader as kill -9 does, while clients of all nodes
// are at work, and measures how long it takes until an operation is acknowledged
// again, in heartbeat timeouts. Nothing that was acknowledged may be missing.
// (Goals 3a, 3b and 3d.)
func BenchmarkFailover(b *testing.B) {
	p := startPlant(b, plantConfig{nodes: 3, hosts: 1, slots: 1, fence: "10s", suspect: "5s"})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var all sync.WaitGroup
	workers := make([]*worker, failoverClients)
	for i := range workers {
		var addrs []string
		for j := range p.nodes {
			addrs = append(addrs, "http://"+p.nodes[(i+j)%len(p.nodes)].api)
		}
		c, err := client.New(client.Config{Addrs: addrs, Token: p.admin, Via: "bench/1"})
		if err != nil {
			b.Fatal(err)
		}
		workers[i] = &worker{org: fleet.OrgName(fmt.Sprint("worker-", i)), client: c}
		all.Go(func() { workers[i].work(ctx) })
	}
	var took []float64
	lost := 0
	for b.Loop() {
		for range failoverTrials {
			p.wait(20*time.Second, "every client at work", func() bool {
				return !slices.ContainsFunc(workers, func(w *worker) bool { return time.Since(time.Unix(0, w.at.Load())) > time.Second })
			})
			leader := p.leader()
			killed := time.Now()
			p.kill(leader)
			// Far too early for an election, and late enough for answers that were
			// under way.
			after := killed.Add(failoverTimeout / 5).UnixNano()
			var first int64
			p.wait(20*time.Second, "an operation to be acknowledged again", func() bool {
				first = 0
				for _, w := range workers {
					if at := w.at.Load(); at > after && (first == 0 || at < first) {
						first = at
					}
				}
				return first != 0
			})
			took = append(took, float64(first-killed.UnixNano())/float64(failoverTimeout))
			before := make([]int64, len(workers))
			for i, w := range workers {
				before[i] = w.acked.Load()
			}
			lost += missing(b, p, before)
			p.start(leader)
			p.wait(30*time.Second, "every node to be ready", func() bool { return ready(leader) })
		}
	}
	cancel()
	all.Wait()
	if lost > 0 {
		b.Errorf("%d acknowledged operations are missing", lost)
	}
	slices.Sort(took)
	b.ReportMetric(took[len(took)/2], "T-p50")
	b.ReportMetric(took[0], "T-min")
	b.ReportMetric(took[len(took)-1], "T-max")
	b.ReportMetric(float64(lost), "lost")
	b.ReportMetric(0, "ns/op")
}

// ready reports whether a node says of itself that it is ready.
func ready(n *node) bool {
	res, err := http.Get("http://" + n.api + "/readyz")
	if err != nil {
		return false
	}
	res.Body.Close()
	return res.StatusCode == http.StatusOK
}

// missing counts the workers whose org is not at least where it was
// acknowledged to be.
func missing(b *testing.B, p *plant, acked []int64) int {
	b.Helper()
	var rows []catalog.OrgRow
	if err := json.Unmarshal([]byte(p.must("org", "list", "-o", "json")), &rows); err != nil {
		b.Fatal(err)
	}
	n := 0
	for i, want := range acked {
		at := slices.IndexFunc(rows, func(r catalog.OrgRow) bool { return string(r.Name) == fmt.Sprint("worker-", i) })
		if at < 0 || int64(rows[at].Slots) < want {
			n++
		}
	}
	return n
}
