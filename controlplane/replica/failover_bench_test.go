package replica

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"footplate/controlplane/replica/rafttest"
	"footplate/fleet"
)

// wire is the network of one node, which can be torn out as the kernel does it
// for a process that is killed: the port and all connections are gone at once.
type wire struct {
	net.Listener
	mu    sync.Mutex
	torn  bool
	conns []net.Conn
}

func (w *wire) keep(c net.Conn, err error) (net.Conn, error) {
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.torn {
		c.Close()
		return nil, net.ErrClosed
	}
	w.conns = append(w.conns, c)
	return c, nil
}

// Accept implements net.Listener.
func (w *wire) Accept() (net.Conn, error) { return w.keep(w.Listener.Accept()) }

func (w *wire) dial(ctx context.Context, to string) (net.Conn, error) {
	return w.keep(dialTCP(ctx, to))
}

func (w *wire) tear() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.torn = true
	w.Listener.Close()
	for _, c := range w.conns {
		c.Close()
	}
}

// wired is a node of BenchmarkFailover.
type wired struct {
	cfg   Config
	wire  *wire
	r     atomic.Pointer[Replica]
	stop  context.CancelFunc
	ended chan error
}

func (n *wired) open(b *testing.B) {
	at := n.cfg.RaftAddr
	l, err := net.Listen("tcp", at)
	if err != nil {
		b.Fatal(err)
	}
	n.wire = &wire{Listener: l}
	n.cfg.RaftAddr = l.Addr().String()
	n.cfg.Listener, n.cfg.Dial, n.cfg.Machine = n.wire, n.wire.dial, new(counter)
	r, err := Open(n.cfg)
	if err != nil {
		b.Fatal(err)
	}
	n.r.Store(r)
}

func (n *wired) run() {
	ctx, stop := context.WithCancel(context.Background())
	n.stop, n.ended = stop, make(chan error, 1)
	r := n.r.Load()
	go func() { n.ended <- r.Run(ctx) }()
}

// failoverTrials is enough for the followers' logs to differ in length, at the
// moment of the failure, in some of them.
const failoverTrials = 20

// BenchmarkFailover tears the leader's network out, with callers at work, and
// measures how long it takes until a command is acknowledged again, in heartbeat
// timeouts. (Goals 3a and 3b of the project, without processes.)
func BenchmarkFailover(b *testing.B) {
	const (
		heartbeat = 500 * time.Millisecond
		callers   = 8
	)
	var (
		nodes   []*wired
		members []Member
	)
	for i := range 3 {
		n := &wired{cfg: Config{
			NodeID: fleet.NodeID(fmt.Sprint("n", i)), Cluster: Cluster{ID: "bench"}, Dir: b.TempDir(), RaftAddr: "127.0.0.1:0",
			Log: slog.New(slog.DiscardHandler), HeartbeatTimeout: heartbeat,
		}}
		n.open(b)
		nodes = append(nodes, n)
		members = append(members, Member{ID: n.cfg.NodeID, Addr: n.cfg.RaftAddr, Voter: true})
	}
	for _, n := range nodes {
		if err := n.r.Load().Bootstrap(members); err != nil {
			b.Fatal(err)
		}
		n.run()
	}
	leader := func() (l *wired) {
		for _, n := range nodes {
			if n.r.Load().Status().Role == RoleLeader {
				l = n
			}
		}
		return l
	}
	// acked is when a command was last acknowledged by a node other than victim.
	var acked atomic.Int64
	var victim atomic.Pointer[wired]
	ctx, cancel := context.WithCancel(context.Background())
	propose := func(key string) bool {
		for _, n := range nodes {
			if n == victim.Load() {
				continue
			}
			short, cancel := context.WithTimeout(ctx, 2*heartbeat)
			_, err := n.r.Load().Propose(short, LaneOperations, command("note", key))
			cancel()
			if err == nil && n != victim.Load() {
				acked.Store(time.Now().UnixNano())
				return true
			}
		}
		return false
	}
	var all sync.WaitGroup
	for c := range callers {
		all.Go(func() {
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for i := 0; ctx.Err() == nil; i++ {
				if !propose(fmt.Sprint(c, "-", i)) {
					<-tick.C
				}
			}
		})
	}
	var took []float64
	for b.Loop() {
		for i := range failoverTrials {
			rafttest.Wait(b, "an acknowledgement", func() bool { return propose(fmt.Sprint("before-", i)) })
			// Not always the same time after the last heartbeat.
			pause := time.NewTimer(heartbeat + time.Duration(i)*7*time.Millisecond)
			<-pause.C
			var l *wired
			rafttest.Wait(b, "a leader", func() bool { l = leader(); return l != nil })
			began := time.Now()
			victim.Store(l)
			l.wire.tear()
			tick := time.NewTicker(time.Millisecond)
			for acked.Load() < began.UnixNano() {
				<-tick.C
			}
			tick.Stop()
			took = append(took, float64(acked.Load()-began.UnixNano())/float64(heartbeat))
			l.stop()
			if err := <-l.ended; err != nil {
				b.Fatal(err)
			}
			l.open(b)
			l.run()
			victim.Store(nil)
			rafttest.Wait(b, "the node to catch up", func() bool {
				now := leader()
				return now != nil && l.r.Load().Status().Applied+50 > now.r.Load().Status().Applied
			})
		}
	}
	cancel()
	all.Wait()
	for _, n := range nodes {
		n.stop()
		if err := <-n.ended; err != nil {
			b.Error(err)
		}
	}
	slices.Sort(took)
	b.ReportMetric(took[0], "T-min")
	b.ReportMetric(took[len(took)/2], "T-p50")
	b.ReportMetric(took[len(took)-1], "T-max")
	b.ReportMetric(0, "ns/op")
}
