package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"footplate/controlplane/state"
	"footplate/fleet"
)

const beat = 500 * time.Millisecond // the default HeartbeatTimeout

// world is a cluster in one synctest bubble.
type world struct {
	t     *testing.T
	net   *Network
	nodes []*node
	tune  func(*Config)
}

type node struct {
	*Replica
	cfg     Config
	disk    *Disk
	machine *ledger
	stop    context.CancelFunc
	ended   chan error
}

func newWorld(t *testing.T, n int, tune func(*Config)) *world {
	w := &world{t: t, net: NewNetwork(beat), tune: tune}
	for i := range n {
		w.add(fmt.Sprintf("n%d", i+1))
	}
	var members []Member
	for _, n := range w.nodes {
		members = append(members, Member{ID: n.cfg.NodeID, Addr: n.cfg.RaftAddr, Voter: true})
	}
	for _, n := range w.nodes {
		if err := n.Bootstrap(members); err != nil {
			t.Fatal(err)
		}
		n.run()
	}
	return w
}

// add opens a node with an empty disk; it does not run yet.
func (w *world) add(id string) *node {
	n := &node{disk: NewDisk()}
	n.cfg = Config{
		NodeID: fleet.NodeID(id), RaftAddr: id + ":1", Cluster: Cluster{ID: "c"},
		Disk: n.disk, Network: w.net, Log: slog.New(slog.DiscardHandler),
	}
	if w.tune != nil {
		w.tune(&n.cfg)
	}
	w.nodes = append(w.nodes, n)
	w.open(n)
	return n
}

func (w *world) open(n *node) {
	n.machine = &ledger{}
	n.cfg.Machine = n.machine
	var err error
	if n.Replica, err = Open(n.cfg); err != nil {
		w.t.Fatal(err)
	}
}

func (n *node) run() {
	ctx, stop := context.WithCancel(context.Background())
	n.stop = stop
	n.ended = make(chan error, 1)
	r, ended := n.Replica, n.ended
	go func() { ended <- r.Run(ctx) }()
}

func (w *world) stopAll() {
	for _, n := range w.nodes {
		if n.stop == nil {
			continue
		}
		n.stop()
		if err := <-n.ended; err != nil {
			w.t.Errorf("node %s: %s", n.cfg.NodeID, err)
		}
	}
}

func (w *world) cut(n *node, cut bool) {
	for _, o := range w.nodes {
		if o == n {
			continue
		}
		if cut {
			w.net.Cut(n.cfg.RaftAddr, o.cfg.RaftAddr)
		} else {
			w.net.Mend(n.cfg.RaftAddr, o.cfg.RaftAddr)
		}
	}
}

// crash ends a node without letting it hand anything over, and leaves it out of
// what stopAll checks.
func (w *world) crash(n *node) {
	w.cut(n, true)
	n.stop()
	<-n.ended
	n.stop = nil
	w.cut(n, false)
}

// until waits for a condition.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("no %s in a minute", what)
		}
		wait := time.NewTimer(time.Millisecond)
		<-wait.C
	}
}

// leader waits for one of nodes, all by default, to hold office.
func (w *world) leader(nodes ...*node) *node {
	w.t.Helper()
	if nodes == nil {
		nodes = w.nodes
	}
	var found *node
	until(w.t, "leader", func() bool {
		for _, n := range nodes {
			if n.stop != nil && n.Status().Role == RoleLeader {
				found = n
			}
		}
		return found != nil
	})
	return found
}

func (w *world) others(n *node) []*node {
	return slices.DeleteFunc(slices.Clone(w.nodes), func(o *node) bool { return o == n })
}

func command(op, key string) state.Command {
	return state.Command{Key: key, Op: op, Ver: 1, By: "alice", Role: fleet.Operator, Via: "test"}
}

func propose(n *node, op, key string) (state.Outcome, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return n.Propose(ctx, LaneOperations, command(op, key))
}

// persist proposes until it is acknowledged, on whatever node leads.
func (w *world) persist(key string) {
	w.t.Helper()
	until(w.t, "acknowledgement", func() bool {
		_, err := propose(w.leader(), "note", key)
		return err == nil
	})
}

func TestThreeNodesAgree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, nil)
		defer w.stopAll()
		l := w.leader()
		if o, err := propose(l, "note", "a"); err != nil || o.Text != "a" {
			t.Fatalf("got %+v, %v", o, err)
		}
		if _, err := propose(w.others(l)[0], "note", "b"); fleet.CodeOf(err) != fleet.CodeUnavailable {
			t.Errorf("a follower answered %v", err)
		}
		if err := l.ReadIndex(t.Context()); err != nil {
			t.Error(err)
		}
		if err := w.others(l)[0].ReadIndex(t.Context()); fleet.CodeOf(err) != fleet.CodeUnavailable {
			t.Errorf("a follower read: %v", err)
		}
		until(t, "agreement", func() bool {
			return !slices.ContainsFunc(w.nodes, func(n *node) bool { return len(n.machine.keys()) != 1 })
		})
		for _, n := range w.nodes {
			all := n.machine.all()
			if all[0].Op != LeaderBegin || all[0].Term != l.Status().LeaderTerm {
				t.Errorf("the first command is %+v", all[0])
			}
			s := n.Status()
			if s.Leader != l.cfg.NodeID || len(s.Members) != 3 || s.MembersVersion != 1 {
				t.Errorf("status is %+v", s)
			}
		}
	})
}

func TestEachCommandGetsItsOwnOutcome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, nil)
		defer w.stopAll()
		l := w.leader()
		var all sync.WaitGroup
		for i := range 300 {
			all.Go(func() {
				key := fmt.Sprint("k", i)
				op := []string{"note", "fail", "refuse"}[i%3]
				o, err := propose(l, op, key)
				switch op {
				case "note":
					if err != nil || o.Err != nil || o.Text != key {
						t.Errorf("%s: %+v, %v", key, o, err)
					}
				case "fail":
					if err != nil || fleet.CodeOf(o.Err) != fleet.CodeConflict || !strings.HasPrefix(o.Err.Msg, key+" ") {
						t.Errorf("%s: %+v, %v", key, o, err)
					}
				case "refuse":
					if fleet.CodeOf(err) != fleet.CodeInternal {
						t.Errorf("%s: %+v, %v", key, o, err)
					}
				}
			})
		}
		all.Wait()
		if n := len(l.machine.keys()); n != 100 {
			t.Errorf("%d commands were applied, want 100", n)
		}
		entries := map[uint64]bool{}
		for _, x := range l.machine.all() {
			entries[x.Index] = true
		}
		if len(entries) > 20 {
			t.Errorf("300 commands at once took %d entries", len(entries))
		}
	})
}

func TestOperationsGoBeforeBulk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, nil)
		defer w.stopAll()
		l := w.leader()
		l.machine.applying = make(chan struct{})
		var all sync.WaitGroup
		send := func(lane Lane, key string) {
			all.Go(func() {
				c := command("note", key)
				c.Reason = strings.Repeat("x", 64<<10)
				if _, err := l.Propose(context.Background(), lane, c); err != nil {
					t.Errorf("%s: %s", key, err)
				}
			})
			synctest.Wait()
		}
		// Two entries fill the places in flight; what comes then, waits.
		for i := range 40 {
			send(LaneBulk, fmt.Sprint("bulk", i))
		}
		send(LaneOperations, "op")
		if s := l.Status(); s.WaitingOperations != 1 || s.WaitingBulk < 30 {
			t.Errorf("%d operations and %d bulk wait", s.WaitingOperations, s.WaitingBulk)
		}
		close(l.machine.applying)
		all.Wait()
		if at := slices.Index(l.machine.keys(), "op"); at > 2 {
			t.Errorf("the operation went after %d of 40 bulk commands", at)
		}
	})
}

func TestNothingAcknowledgedIsLostWhenLeaderIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, nil)
		defer w.stopAll()
		var (
			mu     sync.Mutex
			acked  []string
			nothad []string // answered: nothing was done
			doubt  atomic.Int64
			stop   = make(chan struct{})
			all    sync.WaitGroup
		)
		for c := range 8 {
			all.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					// Clients keep asking the node that they know: so also the one cut off.
					n := w.nodes[(c+i)%3]
					key := fmt.Sprintf("c%d-%d", c, i)
					_, err := propose(n, "note", key)
					mu.Lock()
					switch fleet.CodeOf(err) {
					case "":
						acked = append(acked, key)
					case fleet.CodeUnavailable:
						nothad = append(nothad, key)
					case fleet.CodeUnknown:
						doubt.Add(1)
					default:
						t.Errorf("%s: %s", key, err)
					}
					mu.Unlock()
					wait := time.NewTimer(time.Millisecond)
					<-wait.C
				}
			})
		}
		for range 5 {
			l := w.leader()
			wait := time.NewTimer(time.Second)
			<-wait.C
			w.cut(l, true)
			next := w.leader(w.others(l)...)
			until(t, "stepping down", func() bool { return l.Status().Role != RoleLeader })
			if next == l {
				t.Fatal("no new leader")
			}
			w.cut(l, false)
		}
		close(stop)
		all.Wait()
		w.persist("last")
		until(t, "agreement", func() bool {
			return !slices.ContainsFunc(w.nodes, func(n *node) bool { return !slices.Contains(n.machine.keys(), "last") })
		})
		first := w.nodes[0].machine.all()
		for _, n := range w.nodes {
			if !slices.Equal(n.machine.all(), first) {
				t.Errorf("node %s applied something else", n.cfg.NodeID)
			}
		}
		have := map[string]int{}
		for _, k := range w.nodes[0].machine.keys() {
			have[k]++
		}
		for _, k := range acked {
			if have[k] != 1 {
				t.Errorf("%s was acknowledged and applied %d times", k, have[k])
			}
		}
		for _, k := range nothad {
			if have[k] != 0 {
				t.Errorf("%s was answered with nothing done, and was applied", k)
			}
		}
		if len(acked) < 100 || doubt.Load() == 0 {
			t.Errorf("only %d acknowledged, %d in doubt: the test tests nothing", len(acked), doubt.Load())
		}
		begins(t, first)
	})
}

// begins checks that each term's first command is its "leader begin", and that
// time only moves forward.
func begins(t *testing.T, lines []line) {
	t.Helper()
	var last line
	for _, x := range lines {
		if x.Term != last.Term && x.Op != LeaderBegin {
			t.Errorf("term %d begins with %q", x.Term, x.Op)
		}
		if x.At < last.At {
			t.Errorf("the clock went from %s to %s at entry %d", last.At, x.At, x.Index)
		}
		last = x
	}
}

func TestUnknownAndUnavailable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, nil)
		defer w.stopAll()
		l := w.leader()
		w.cut(l, true)
		// The first two are handed to raft, each in an entry of its own; the third
		// waits for a place.
		codes := make(chan fleet.Code, 3)
		for i := range 3 {
			go func() {
				_, err := propose(l, "note", fmt.Sprint(i))
				codes <- fleet.CodeOf(err)
			}()
			synctest.Wait()
		}
		got := []fleet.Code{<-codes, <-codes, <-codes}
		slices.Sort(got)
		if want := []fleet.Code{fleet.CodeUnavailable, fleet.CodeUnknown, fleet.CodeUnknown}; !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		w.cut(l, false)
	})
}

func TestCallerGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, nil)
		defer w.stopAll()
		l := w.leader()
		l.machine.applying = make(chan struct{})
		codes := make([]fleet.Code, 3)
		var all sync.WaitGroup
		for i := range codes {
			all.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				defer cancel()
				_, err := l.Propose(ctx, LaneOperations, command("note", fmt.Sprint(i)))
				codes[i] = fleet.CodeOf(err)
			})
			synctest.Wait()
		}
		all.Wait()
		if want := []fleet.Code{fleet.CodeUnknown, fleet.CodeUnknown, fleet.CodeUnavailable}; !slices.Equal(codes, want) {
			t.Errorf("got %q, want %q", codes, want)
		}
		close(l.machine.applying)
		if _, err := propose(l, "note", "3"); err != nil {
			t.Fatal(err)
		}
		if got := l.machine.keys(); !slices.Equal(got, []string{"0", "1", "3"}) {
			t.Errorf("applied %q", got)
		}
	})
}

func TestLoopsOfTwoTermsNeverOverlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		running := map[fleet.NodeID]int{}
		served := map[fleet.NodeID][]uint64{}
		w := newWorld(t, 3, func(c *Config) {
			id := c.NodeID
			c.Lead = func(ctx context.Context, term uint64) {
				mu.Lock()
				if running[id]++; running[id] > 1 {
					t.Errorf("two terms at once on node %s", id)
				}
				served[id] = append(served[id], term)
				mu.Unlock()
				<-ctx.Done()
				wait := time.NewTimer(5 * time.Second) // a loop that is slow to end
				<-wait.C
				mu.Lock()
				running[id]--
				mu.Unlock()
			}
		})
		defer w.stopAll()
		l := w.leader()
		w.cut(l, true)
		next := w.leader(w.others(l)...)
		until(t, "loss of office", func() bool { return l.Status().Role == RoleFollower })
		if _, err := propose(l, "note", "x"); fleet.CodeOf(err) != fleet.CodeUnavailable {
			t.Errorf("out of office: %v", err)
		}
		w.cut(l, false)
		w.persist("healed")
		if err := next.Transfer(t.Context(), l.cfg.NodeID); err != nil {
			t.Fatal(err)
		}
		again := w.leader(l)
		if _, err := propose(again, "note", "y"); err != nil {
			t.Errorf("commands must not wait for the loops of the term before: %s", err)
		}
		until(t, "second term of the loops", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(served[l.cfg.NodeID]) == 2
		})
		mu.Lock()
		defer mu.Unlock()
		if terms := served[l.cfg.NodeID]; terms[1] != again.Status().LeaderTerm {
			t.Errorf("the loops ran in terms %d", terms)
		}
	})
}

func TestHalt(t *testing.T) {
	for _, tc := range []struct {
		op   string
		want string
	}{
		{"poison", `operation "poison" is unknown: it needs version 9`},
		{"crash", "panic: crash"},
	} {
		t.Run(tc.op, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 1, nil)
				n := w.leader()
				if _, err := propose(n, "note", "a"); err != nil {
					t.Fatal(err)
				}
				if _, err := propose(n, tc.op, "b"); fleet.CodeOf(err) != fleet.CodeUnknown {
					t.Errorf("the caller was told %v", err)
				}
				index := n.Status().Commit
				check := func() {
					t.Helper()
					err := <-n.ended
					want := fmt.Sprintf("log entry %d of term", index)
					if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), tc.want) {
						t.Errorf("Run returned %v, want %q and %q in it", err, want, tc.want)
					}
					if s := n.Status(); s.Role != RoleHalted || s.Applied != index-1 || len(n.machine.keys()) != 1 {
						t.Errorf("status is %+v, applied %q", s, n.machine.keys())
					}
				}
				check()
				w.open(n)
				n.run()
				check()
			})
		})
	}
}

func TestHaltOnDamagedEntry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, nil)
		n := w.leader()
		for i := range 5 {
			if _, err := propose(n, "note", fmt.Sprint(i)); err != nil {
				t.Fatal(err)
			}
		}
		index := n.machine.all()[3].Index
		n.stop()
		if err := <-n.ended; err != nil {
			t.Fatal(err)
		}
		if err := n.disk.Damage(index, []byte("fpl\x01{}\n")); err != nil {
			t.Fatal(err)
		}
		w.open(n)
		n.run()
		err := <-n.ended
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("log entry %d ", index)) || !strings.Contains(err.Error(), "checksum") {
			t.Errorf("Run returned %v", err)
		}
		if got := n.machine.keys(); !slices.Equal(got, []string{"0", "1"}) {
			t.Errorf("applied %q", got)
		}
	})
}

func TestEntryOfAnotherTermIsPassedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, nil)
		defer w.stopAll()
		l := w.leader()
		l.office.Load().packer.term-- // as if leadership had been lost and won between packing and appending
		if _, err := propose(l, "note", "late"); fleet.CodeOf(err) != fleet.CodeUnavailable {
			t.Errorf("the caller was told %v", err)
		}
		l.office.Load().packer.term++
		if _, err := propose(l, "note", "next"); err != nil {
			t.Fatal(err)
		}
		until(t, "agreement", func() bool {
			return !slices.ContainsFunc(w.nodes, func(n *node) bool { return !slices.Equal(n.machine.keys(), []string{"next"}) })
		})
	})
}

// failover returns how long after a leader of n nodes is cut off the next
// acknowledges, the shortest first.
func failover(t *testing.T, n, rounds int, tune func(*Config)) (took []time.Duration) {
	w := newWorld(t, n, tune)
	defer w.stopAll()
	for i := range rounds {
		l := w.leader()
		w.persist(fmt.Sprint("before", i))
		wait := time.NewTimer(3*time.Second + time.Duration(i)*37*time.Millisecond)
		<-wait.C
		began := time.Now()
		w.cut(l, true)
		until(t, "acknowledgement", func() bool {
			for _, n := range w.others(l) {
				if n.Status().Role == RoleLeader {
					if _, err := propose(n, "note", fmt.Sprint("after", i)); err == nil {
						return true
					}
				}
			}
			return false
		})
		took = append(took, time.Since(began))
		w.cut(l, false)
	}
	slices.Sort(took)
	return took
}

func TestFailover(t *testing.T) {
	const rounds = 21
	var plain []time.Duration
	synctest.Test(t, func(t *testing.T) {
		plain = failover(t, 3, rounds, func(c *Config) { c.PlainElections = true })
	})
	for _, n := range []int{3, 5} {
		t.Run(fmt.Sprint(n, " nodes"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				took := failover(t, n, rounds, nil)
				t.Logf("p50 %s max %s; plain p50 %s max %s", took[rounds/2], took[rounds-1], plain[rounds/2], plain[rounds-1])
				// A leader's heartbeats are up to a fifth of a timeout apart, so a node
				// may notice a little before or after.
				if most := took[rounds-1]; most > beat*11/10 {
					t.Errorf("the slowest took %s, more than 1.1 timeouts", most)
				}
				if took[rounds/2] > plain[rounds/2]*3/4 {
					t.Errorf("p50 is %s, plain %s", took[rounds/2], plain[rounds/2])
				}
			})
		})
	}
}

func TestJoinAndRemove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, func(c *Config) { c.SnapshotThreshold, c.TrailingLogs = 5, 1 })
		defer w.stopAll()
		l := w.leader()
		for i := range 20 {
			w.persist(fmt.Sprint(i))
		}
		index, from, err := l.Snapshot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := from.Close(); err != nil || index != l.Status().Applied {
			t.Errorf("snapshot at %d, %v; applied %d", index, err, l.Status().Applied)
		}
		if err := l.AddVoter(t.Context(), "n2", "n2:1"); fleet.CodeOf(err) != fleet.CodeUnavailable {
			t.Errorf("adding a node that is not there: %v", err)
		}
		for i, id := range []string{"n2", "n3"} {
			version := l.Status().MembersVersion
			n := w.add(id)
			n.run()
			until(t, "port", func() bool { return w.net.plugged("n2:1") })
			synctest.Wait()
			if err := l.AddVoter(t.Context(), n.cfg.NodeID, n.cfg.RaftAddr); err != nil {
				t.Fatal(err)
			}
			if err := l.AddVoter(t.Context(), n.cfg.NodeID, n.cfg.RaftAddr); err != nil {
				t.Errorf("adding it again: %s", err)
			}
			if err := l.AddVoter(t.Context(), "other", n.cfg.RaftAddr); fleet.CodeOf(err) != fleet.CodeConflict {
				t.Errorf("adding another at its address: %v", err)
			}
			w.persist(id)
			until(t, "catching up", func() bool { return len(n.machine.keys()) == 21+i })
			s := n.Status()
			latest, _ := n.LatestMembers()
			if len(s.Members) != 2+i || s.MembersVersion <= version || latest != s.MembersVersion {
				t.Errorf("members are %+v, version %d after %d, latest %d", s.Members, s.MembersVersion, version, latest)
			}
		}
		if err := l.Transfer(t.Context(), "n3"); err != nil {
			t.Fatal(err)
		}
		next := w.leader(w.nodes[2])
		if err := next.Remove(t.Context(), "n1"); err != nil {
			t.Fatal(err)
		}
		if err := next.Transfer(t.Context(), "n1"); fleet.CodeOf(err) != fleet.CodeNotFound {
			t.Errorf("transfer to a removed node: %v", err)
		}
		w.persist("end")
		if got := len(next.Status().Members); got != 2 {
			t.Errorf("%d members", got)
		}
	})
}

func TestRestartKeepsClockAndMembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, func(c *Config) { c.SnapshotInterval, c.SnapshotThreshold, c.TrailingLogs = time.Second, 10, 5 })
		defer w.stopAll()
		for i := range 60 {
			w.persist(fmt.Sprint(i))
			wait := time.NewTimer(100 * time.Millisecond)
			<-wait.C
		}
		for i, n := range w.nodes {
			until(t, "snapshot", func() bool { return n.Status().Snapshot > 0 })
			w.crash(n)
			w.open(n)
			if err := n.Bootstrap([]Member{{ID: n.cfg.NodeID, Addr: n.cfg.RaftAddr, Voter: true}}); fleet.CodeOf(err) != fleet.CodeConflict {
				t.Errorf("bootstrap of a node with data: %v", err)
			}
			n.run()
			w.persist(fmt.Sprint("after", i))
			until(t, "catching up", func() bool { return len(n.machine.keys()) == 61+i })
			s := n.Status()
			if len(s.Members) != 3 || s.MembersVersion != 1 || s.Snapshot == 0 {
				t.Errorf("status is %+v", s)
			}
			if d := s.Clock.Sub(fleet.TimeOf(time.Now())); d < -2*fleet.Second || d > 2*fleet.Second {
				t.Errorf("the state clock is %s off", d)
			}
			begins(t, n.machine.all())
		}
	})
}

func TestSnapshotWaitsForArchive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		full := errors.New("disk of the archive is full")
		var broken atomic.Bool
		broken.Store(true)
		w := newWorld(t, 1, func(c *Config) {
			c.BeforeSnapshot = func(uint64) error {
				if broken.Load() {
					return full
				}
				return nil
			}
		})
		defer w.stopAll()
		w.persist("a")
		n := w.leader()
		if _, _, err := n.Snapshot(t.Context()); err == nil || !strings.Contains(err.Error(), full.Error()) {
			t.Errorf("got %v", err)
		}
		if at := n.Status().Snapshot; at != 0 {
			t.Errorf("a snapshot was taken at %d", at)
		}
		broken.Store(false)
		_, from, err := n.Snapshot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(from)
		if err != nil || !strings.HasPrefix(string(b), snapshotMagic) || !strings.Contains(string(b), `"Key":"a"`) {
			t.Errorf("the snapshot reads %q, %v", b, err)
		}
	})
}

func TestBadClockIsNotFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var off atomic.Int64
		w := newWorld(t, 1, func(c *Config) {
			c.WallOffsets = func() []fleet.Duration {
				return []fleet.Duration{fleet.Duration(off.Load()), fleet.Duration(off.Load())}
			}
		})
		defer w.stopAll()
		n := w.leader()
		off.Store(int64(fleet.Hour))
		wait := time.NewTimer(5 * time.Second)
		<-wait.C
		w.persist("a")
		if s := n.Status(); !s.ClockAlarm || s.Clock.Sub(fleet.TimeOf(time.Now())) > fleet.Second {
			t.Errorf("status is %+v", s)
		}
		if _, err := propose(n, ClockStep, "b"); err != nil {
			t.Fatal(err)
		}
		if s := n.Status(); s.ClockAlarm || s.Clock.Sub(fleet.TimeOf(time.Now())) < 59*fleet.Minute {
			t.Errorf("after the step, status is %+v", s)
		}
		// It is stamped on the step's own entry.
		all := n.machine.all()
		if l := all[len(all)-1]; l.Op != ClockStep || l.At.Sub(fleet.TimeOf(time.Now())) < 59*fleet.Minute {
			t.Errorf("the step is stamped %s", l.At)
		}
		begins(t, n.machine.all())
	})
}

// A leader that has started again and not yet applied its log knows no time but
// its own wall clock's, which may be wrong by days. It goes on from the log all
// the same: for the state no time has passed while nobody led.
func TestRestartedLeaderGoesOnFromLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, nil)
		defer w.stopAll()
		n := w.leader()
		if d := n.Status().Clock.Sub(fleet.TimeOf(time.Now())); d < -fleet.Second || d > fleet.Second {
			t.Errorf("the first leader of all starts the clock %s off", d)
		}
		w.persist("before")
		n.stop()
		if err := <-n.ended; err != nil {
			t.Fatal(err)
		}
		end := n.Status().Clock
		wait := time.NewTimer(72 * time.Hour)
		<-wait.C
		w.open(n)
		n.machine.applying = make(chan struct{})
		n.run()
		// The first entry of its term is stamped while the log is still to be applied.
		until(t, "election", func() bool { return n.Status().Role == RoleElected })
		synctest.Wait()
		close(n.machine.applying)
		w.persist("after")
		lines := n.machine.all()
		for _, l := range lines {
			if passed := l.At.Sub(end); passed > 5*fleet.Second {
				t.Errorf("%q of %s is stamped %s after the end of the log", l.Op, l.Key, passed)
			}
		}
		begins(t, lines)
		if s := n.Status(); !s.ClockAlarm || s.Clock.Sub(end) > 5*fleet.Second {
			t.Errorf("the clock went on by %s, alarm %t", s.Clock.Sub(end), s.ClockAlarm)
		}
	})
}

// TestLeaderBehindItsLog: nodes that were restarted went on from the end of the
// log, without the hour in which there was no leader. Whoever leads after them
// must not count that hour, though it has passed since it last applied anything.
func TestLeaderBehindItsLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, nil)
		defer w.stopAll()
		last := w.nodes[2]
		w.persist("before")
		until(t, "the last node to have it", func() bool { return len(last.machine.keys()) == 1 })
		if w.leader() == last {
			if err := last.Transfer(t.Context(), "n1"); err != nil {
				t.Fatal(err)
			}
			w.leader(w.nodes[0])
		}
		synctest.Wait()
		end := last.Status().Clock
		// It goes on applying only when it leads.
		last.machine.applying = make(chan struct{})
		for _, n := range w.nodes[:2] {
			w.crash(n)
		}
		wait := time.NewTimer(time.Hour)
		<-wait.C
		w.cut(last, true)
		for _, n := range w.nodes[:2] {
			w.open(n)
			n.run()
		}
		l := w.leader(w.nodes[0], w.nodes[1])
		until(t, "acknowledgement", func() bool {
			_, err := propose(l, "note", "between")
			return err == nil
		})
		w.cut(last, false)
		until(t, "handing over", func() bool {
			if last.Status().Role == RoleElected {
				return true
			}
			if l := w.leader(w.nodes[0], w.nodes[1]); l.Status().Role == RoleLeader {
				_ = l.Transfer(t.Context(), "n3")
			}
			return last.Status().Role == RoleElected
		})
		synctest.Wait()
		close(last.machine.applying)
		w.persist("after")
		for _, l := range last.machine.all() {
			if passed := l.At.Sub(end); passed > fleet.Minute {
				t.Errorf("%q of %s is stamped %s after the end of the log", l.Op, l.Key, passed)
			}
		}
	})
}

// TestLeaderAppliedLate: what a node had in its log for a while, and applies only
// when it leads, does not take that while from the state clock.
func TestLeaderAppliedLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, nil)
		defer w.stopAll()
		late := w.nodes[2]
		if w.leader() == late {
			if err := late.Transfer(t.Context(), "n1"); err != nil {
				t.Fatal(err)
			}
			w.leader(w.nodes[0])
		}
		w.persist("before")
		synctest.Wait()
		late.machine.applying = make(chan struct{})
		w.persist("not applied")
		synctest.Wait() // until it is in the late node's log as well
		const while = 20 * time.Second
		wait := time.NewTimer(while)
		<-wait.C
		if err := w.leader().Transfer(t.Context(), "n3"); err != nil {
			t.Fatal(err)
		}
		until(t, "the late node's election", func() bool { return late.Status().Role == RoleElected })
		close(late.machine.applying)
		w.leader(late)
		w.persist("after")
		all := late.machine.all()
		passed := all[len(all)-1].At.Sub(all[len(all)-3].At) // "leader begin" lies between
		if off := passed.Std() - while; off < -time.Second || off > time.Second {
			t.Errorf("%s passed on the state clock, in %s", passed, while)
		}
	})
}

// TestArrivals: what replaces the end of a log came when it came, and not when
// that end did: the clock would gain on true time.
func TestArrivals(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	var a arrivals
	a.note(5, 8, at(1))
	a.note(9, 9, at(2))
	a.note(7, 7, at(3)) // of another leader
	a.note(8, 10, at(4))
	for index, want := range map[uint64]int{5: 1, 6: 1, 7: 3, 8: 4, 10: 4} {
		b := arrivals{runs: slices.Clone(a.runs)}
		if got := b.of(index); got != at(want) {
			t.Errorf("entry %d came at %s, want %s", index, got, at(want))
		}
	}
	if a.of(10); len(a.runs) != 1 {
		t.Errorf("what was applied is remembered: %v", a.runs)
	}
	if got := a.of(4); time.Since(got) > time.Minute {
		t.Errorf("of what was there before nothing is known, but %s", got)
	}
}

func TestStoppingLeaderHandsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, nil)
		defer w.stopAll()
		l := w.leader()
		w.persist("a")
		began := time.Now()
		l.stop()
		if err := <-l.ended; err != nil {
			t.Fatal(err)
		}
		l.stop = nil
		w.persist("b")
		if took := time.Since(began); took > beat/2 {
			t.Errorf("it took %s", took)
		}
	})
}
