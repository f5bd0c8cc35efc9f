package server

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"footplate/controlplane/api"
	"footplate/controlplane/catalog"
	"footplate/controlplane/order"
	"footplate/fleet"
)

// fleetOf makes a world of n nodes with an org and a pool.
func fleetOf(t *testing.T, n int) *world {
	w := newWorld(t, n)
	w.run("org set acme --slots 100")
	w.run("pool create linux --provider none --slots 4")
	return w
}

// agentOf is what an agent says first.
func agentOf(host fleet.HostID) api.Sync {
	return api.Sync{Host: host, Pool: "linux", Boot: "boot-1", Incarnation: 1, Seq: 1, Version: "test"}
}

// assign makes a build and gives its task to a host.
func (w *world) assign(host fleet.HostID) fleet.AttemptID {
	w.t.Helper()
	w.run("build submit --org acme --pool linux --run true")
	w.log(catalog.BuildPromote, catalog.BuildPromoteArgs{Org: "acme", Count: 10})
	h, ok := w.view.Load().Hosts.Get(host)
	if !ok {
		w.t.Fatalf("there is no host %s", host)
	}
	w.log(catalog.BuildAssign, catalog.BuildAssignArgs{Assign: []catalog.Assignment{{
		Build: w.view.Load().Build, Host: host, Boot: h.Boot, Incarnation: h.Incarnation,
	}}})
	return w.view.Load().Attempt
}

func (n *node) sendSync(q api.Sync) answered {
	n.t.Helper()
	return n.as("agent", http.MethodPost, "/v1/agent.sync", q, api.HeaderCluster, testCluster, api.HeaderVia, "agent/test")
}

func (n *node) synced(q api.Sync) api.SyncReply {
	n.t.Helper()
	var r api.SyncReply
	n.sendSync(q).into(&r)
	return r
}

func (w *world) attempt(id fleet.AttemptID) fleet.Attempt {
	at, _ := w.view.Load().Attempts.Get(id)
	return at
}

func TestSyncJoinsAndOrders(t *testing.T) {
	w := fleetOf(t, 2)
	// Through a node that does not lead.
	n := w.nodes[1]
	q := agentOf("h1")
	r := n.synced(q)
	h, ok := w.view.Load().Hosts.Get("h1")
	if !ok || h.State != fleet.HostReady || h.Boot != "boot-1" || h.Slots != 4 {
		t.Fatalf("host %+v", h)
	}
	if e := w.last(); e.By != "agent:h1" || e.Via != "agent/test" || e.Op != "agent join" {
		t.Fatalf("entry %+v", e)
	}
	if len(r.Start) != 0 || r.Known == "" || r.Members != 7 || len(r.Nodes) != 2 || r.FenceAfter != fleet.DefaultFenceAfter ||
		r.Stamp.Term != w.term || r.Stamp.At == 0 {
		t.Fatalf("reply %+v", r)
	}

	id := w.assign("h1")
	q.Seq, q.Known, q.Stamp = 2, r.Known, r.Stamp
	r = n.synced(q)
	if len(r.Start) != 1 || r.Start[0].Attempt != id || r.Start[0].N != 1 || r.Start[0].Spec == nil || len(r.Start[0].Spec.Tasks) != 1 {
		t.Fatalf("reply %+v", r)
	}
	leader := w.nodes[0].server
	if d, ok := leader.delivered(id); !ok || d.First == 0 || d.Last != d.First {
		t.Fatalf("delivered %+v, %v", d, ok)
	}

	// The agent holds it: it is no order any more, and its phases are taken.
	q.Seq, q.Known, q.Stamp = 3, r.Known, r.Stamp
	q.Attempts = []api.HeldAttempt{{Attempt: id, Phase: fleet.PhaseSteps}}
	r = n.synced(q)
	if len(r.Start) != 0 || w.attempt(id).Phase != fleet.PhaseSteps {
		t.Fatalf("reply %+v, attempt %+v", r, w.attempt(id))
	}

	// Its end is taken, and may then be forgotten.
	q.Seq, q.Known = 4, r.Known
	q.Attempts = []api.HeldAttempt{{Attempt: id, Phase: fleet.PhaseEnded, Outcome: fleet.Failed, Exit: 3, Why: "step 1 ended with code 3"}}
	r = n.synced(q)
	if !cmp.Equal(r.Forget, []fleet.AttemptID{id}) {
		t.Fatalf("reply %+v", r)
	}
	if at := w.attempt(id); at.Outcome != fleet.Failed || at.Exit != 3 {
		t.Fatalf("attempt %+v", at)
	}
}

func TestSyncIsHeldOpenUntilThereIsSomethingToSay(t *testing.T) {
	w := fleetOf(t, 1)
	_, got := w.held("h1")
	select {
	case r := <-got:
		t.Fatalf("answered at once: %d %s", r.status, r.body)
	case <-time.After(50 * time.Millisecond):
	}
	w.run("org set other --slots 1") // news, but none for this host
	id := w.assign("h1")
	var r api.SyncReply
	(<-got).into(&r)
	if len(r.Start) != 1 || r.Start[0].Attempt != id {
		t.Fatalf("%+v", r)
	}
}

// held lets a host that is known sync again, for which there is nothing to say.
func (w *world) held(host fleet.HostID) (q api.Sync, answer chan answered) {
	w.t.Helper()
	n := w.nodes[0]
	q = agentOf(host)
	q.Known = n.synced(q).Known
	q.Seq = 2
	answer = make(chan answered, 1)
	go func() { answer <- n.sendSync(q) }()
	until(w.t, "the sync", func() bool { return w.heardSeq(host) == 2 })
	return q, answer
}

// heardSeq returns the number of the newest sync that the first node heard.
func (w *world) heardSeq(host fleet.HostID) (seq uint64) {
	w.nodes[0].server.Book(func(b *order.Book) { seq, _ = b.Heard(host) })
	return seq
}

// delivered says when the leader gave an attempt to its host.
func (s *Server) delivered(id fleet.AttemptID) (d order.Delivery, ok bool) {
	s.Book(func(b *order.Book) { d, ok = b.Delivered(id) })
	return d, ok
}

func TestSyncEndsWithoutNews(t *testing.T) {
	t.Parallel()
	w := fleetOf(t, 1)
	n := w.nodes[0]
	q := agentOf("h1")
	q.Known = n.synced(q).Known
	q.Seq = 2
	begun := time.Now()
	if r := n.synced(q); r.Known != q.Known || len(r.Start) != 0 {
		t.Fatalf("%+v", r)
	}
	if took := time.Since(begun); took < api.SyncHold.Std()-100*time.Millisecond || took > syncMost {
		t.Fatalf("held open for %s", took)
	}
	// An order that was missed comes again soon.
	w.assign("h1")
	q.Seq, q.Known = 3, n.synced(q).Known
	begun = time.Now()
	if r := n.synced(q); len(r.Start) != 1 {
		t.Fatalf("%+v", r)
	}
	if took := time.Since(begun); took > 2*order.Hold.Std() {
		t.Fatalf("an order was held back for %s", took)
	}
}

// TestOldSyncIsAskedAgain: an order that comes up when a sync was held for so long
// that it would come too late is given with the next sync, which is asked for at
// once.
func TestOldSyncIsAskedAgain(t *testing.T) {
	t.Parallel()
	w := fleetOf(t, 1)
	q, got := w.held("h1")
	old := time.NewTimer(order.Fresh.Std() + 100*time.Millisecond)
	<-old.C
	begun := time.Now()
	id := w.assign("h1")
	var r api.SyncReply
	(<-got).into(&r)
	if len(r.Start) != 0 {
		t.Fatalf("an order was given with a sync that is too old: %+v", r)
	}
	q.Seq, q.Known = 3, r.Known
	if r = w.nodes[0].synced(q); len(r.Start) != 1 || r.Start[0].Attempt != id {
		t.Fatalf("%+v", r)
	}
	if took := time.Since(begun); took > time.Second {
		t.Fatalf("it took %s until the order was given", took)
	}
}

// TestDeposedLeaderLetsSyncsGo: another one may have orders for them.
func TestDeposedLeaderLetsSyncsGo(t *testing.T) {
	t.Parallel()
	w := fleetOf(t, 1)
	_, got := w.held("h1")
	begun := time.Now()
	w.lead("") // a leader that is cut off: it applies nothing that would tell it
	if r := <-got; r.status != http.StatusServiceUnavailable {
		t.Fatalf("answered with status %d", r.status)
	}
	// Meanwhile it is looked for another leader.
	if took := time.Since(begun); took > leaderWait+2*time.Second {
		t.Fatalf("it was let go after %s", took)
	}
}

func TestOrderIsNotOfferedForEver(t *testing.T) {
	t.Parallel()
	w := fleetOf(t, 1)
	n := w.nodes[0]
	q := agentOf("h1")
	n.synced(q)
	id := w.assign("h1")
	q.Seq = 2
	if r := n.synced(q); len(r.Start) != 1 {
		t.Fatalf("%+v", r)
	}
	n.mono.Add(9 * 1e9)
	q.Seq = 3
	if r := n.synced(q); len(r.Start) != 1 {
		t.Fatalf("%+v", r)
	}
	if d, _ := n.server.delivered(id); d.Last.Sub(d.First) != 9*fleet.Second {
		t.Fatalf("delivered %+v", d)
	}
	n.mono.Add(2 * 1e9)
	q.Seq = 4
	r := n.synced(q)
	if len(r.Start) != 0 {
		t.Fatalf("%+v", r)
	}
	n.mono.Add(6 * 1e9)
	q.Seq, q.Stamp = 5, n.synced(q).Stamp
	n.synced(q)
	// Now it may be given elsewhere, by the rule of the lease.
	w.mu.Lock()
	w.clock = w.clock.Add(fleet.Minute)
	w.mu.Unlock()
	w.run("org set other --slots 1") // a view with that clock
	if got := n.unstarted(); !cmp.Equal(got, []fleet.AttemptID{id}) {
		t.Fatalf("%v", got)
	}
	// A new term knows nothing of it: it is offered again.
	w.lead("n1")
	if got := n.unstarted(); len(got) != 0 {
		t.Fatal("the new term remembers a sync of the old one")
	}
	if _, ok := n.server.delivered(id); ok {
		t.Fatal("the new term remembers a delivery of the old one")
	}
	q.Seq = 6
	if r := n.synced(q); len(r.Start) != 1 {
		t.Fatalf("%+v", r)
	}
}

// unstarted are the attempts that a node, which leads, gives elsewhere.
func (n *node) unstarted() (ids []fleet.AttemptID) {
	n.server.Book(func(b *order.Book) {
		ids = b.Listen(n.view.Load(), func(fleet.Host) (fleet.Duration, bool) { return 0, true }).Unstarted
	})
	return ids
}

func TestSyncCancelsKillsAndForgets(t *testing.T) {
	w := fleetOf(t, 1)
	n := w.nodes[0]
	q := agentOf("h1")
	n.synced(q)
	n.synced(api.Sync{Host: "h2", Pool: "linux", Boot: "boot-2", Incarnation: 1, Seq: 1})
	canceled, gone, lost, elsewhere, never := w.assign("h1"), w.assign("h1"), w.assign("h1"), w.assign("h2"), w.assign("h1")
	q.Seq = 2
	for _, id := range []fleet.AttemptID{canceled, gone, lost} {
		q.Attempts = append(q.Attempts, api.HeldAttempt{Attempt: id, Phase: fleet.PhaseSteps})
	}
	n.synced(q)
	w.run("build cancel " + w.attempt(canceled).Build.String())
	w.run("build cancel " + w.attempt(never).Build.String())
	w.log(catalog.AttemptLose, catalog.AttemptLoseArgs{Attempts: []fleet.AttemptID{lost, gone}, Why: "test"})
	q.Seq = 3
	q.Attempts[1] = api.HeldAttempt{Attempt: gone, Phase: fleet.PhaseEnded, Outcome: fleet.Passed}
	q.Attempts = append(q.Attempts,
		api.HeldAttempt{Attempt: elsewhere, Phase: fleet.PhaseSteps},
		api.HeldAttempt{Attempt: 999, Phase: fleet.PhaseSetup},
		api.HeldAttempt{Attempt: 998, Phase: fleet.PhaseEnded, Outcome: fleet.Passed})
	r := n.synced(q)
	want := api.SyncReply{
		Cancel: []fleet.AttemptID{canceled},
		Kill:   []fleet.AttemptID{lost, elsewhere, 999},
		Forget: []fleet.AttemptID{gone, 998},
	}
	if d := cmp.Diff(want, api.SyncReply{Start: r.Start, Cancel: r.Cancel, Kill: r.Kill, Forget: r.Forget, Leave: r.Leave}); d != "" {
		t.Fatal(d)
	}
	// The word of the host came too late: it changed nothing.
	if at := w.attempt(gone); at.Outcome != fleet.Lost {
		t.Fatalf("%+v", at)
	}
	if at := w.attempt(elsewhere); at.Phase != fleet.PhaseAssigned {
		t.Fatalf("%+v", at)
	}
}

func TestHeldAttemptIsReportedBeforeItIsForgotten(t *testing.T) {
	w := fleetOf(t, 1)
	n := w.nodes[0]
	q := agentOf("h1")
	n.synced(q)
	w.run("build submit --org acme --pool linux --run true --exclusive")
	b := w.view.Load().Build
	w.log(catalog.BuildPromote, catalog.BuildPromoteArgs{Org: "acme", Count: 1})
	w.log(catalog.BuildAssign, catalog.BuildAssignArgs{Assign: []catalog.Assignment{{Build: b, Host: "h1", Boot: "boot-1", Incarnation: 1}}})
	id := w.view.Load().Attempt
	w.log(catalog.AttemptLose, catalog.AttemptLoseArgs{Attempts: []fleet.AttemptID{id}, Why: "silent"})
	if row, _ := w.view.Load().Builds.Get(b); row.Tasks[0].Held != id {
		t.Fatalf("%+v", row.Tasks[0])
	}
	q.Seq = 2
	q.Attempts = []api.HeldAttempt{{Attempt: id, Phase: fleet.PhaseSteps}}
	if r := n.synced(q); !cmp.Equal(r.Kill, []fleet.AttemptID{id}) {
		t.Fatalf("%+v", r)
	}
	q.Seq = 3
	q.Attempts[0] = api.HeldAttempt{Attempt: id, Phase: fleet.PhaseEnded, Outcome: fleet.Lost}
	if r := n.synced(q); !cmp.Equal(r.Forget, []fleet.AttemptID{id}) {
		t.Fatalf("%+v", r)
	}
	if row, _ := w.view.Load().Builds.Get(b); row.Tasks[0].Held != 0 {
		t.Fatalf("the proof was not taken: %+v", row.Tasks[0])
	}
}

func TestLateSyncSaysNothing(t *testing.T) {
	w := fleetOf(t, 1)
	n := w.nodes[0]
	q := agentOf("h1")
	q.Seq = 5
	n.synced(q)
	q.Seq = 4
	n.sendSync(q).problem(409, fleet.CodeConflict)
	q.Incarnation, q.Seq = 2, 1
	n.synced(q)
	q.Incarnation, q.Seq = 1, 99
	n.sendSync(q).problem(409, fleet.CodeConflict)
	// Phases do not go backwards.
	q.Incarnation, q.Seq = 2, 2
	id := w.assign("h1")
	q.Attempts = []api.HeldAttempt{{Attempt: id, Phase: fleet.PhaseUpload}}
	n.synced(q)
	q.Seq, q.Attempts = 3, []api.HeldAttempt{{Attempt: id, Phase: fleet.PhaseSetup}}
	n.synced(q)
	if at := w.attempt(id); at.Phase != fleet.PhaseUpload {
		t.Fatalf("%+v", at)
	}
}

func TestHostThatWasEndedIsSentAway(t *testing.T) {
	w := fleetOf(t, 1)
	n := w.nodes[0]
	q := agentOf("h9")
	q.Launch = 77 // launched by us once, and ended
	if r := n.synced(q); !r.Leave {
		t.Fatalf("%+v", r)
	}
	q.Launch, q.Pool = 0, "mars"
	n.sendSync(q).problem(404, fleet.CodeNotFound)
}

func TestSyncThatIsWrong(t *testing.T) {
	n := fleetOf(t, 1).nodes[0]
	for name, wrong := range map[string]func(*api.Sync){
		"host":          func(q *api.Sync) { q.Host = "No Host" },
		"boot":          func(q *api.Sync) { q.Boot = "" },
		"pool":          func(q *api.Sync) { q.Pool = "" },
		"incarnation":   func(q *api.Sync) { q.Incarnation = 0 },
		"slots":         func(q *api.Sync) { q.Slots = -1 },
		"phase":         func(q *api.Sync) { q.Attempts = []api.HeldAttempt{{Attempt: 1, Phase: "asleep"}} },
		"ended without": func(q *api.Sync) { q.Attempts = []api.HeldAttempt{{Attempt: 1, Phase: fleet.PhaseEnded}} },
		"outcome before": func(q *api.Sync) {
			q.Attempts = []api.HeldAttempt{{Attempt: 1, Phase: fleet.PhaseSetup, Outcome: fleet.Passed}}
		},
		"outcome": func(q *api.Sync) {
			q.Attempts = []api.HeldAttempt{{Attempt: 1, Phase: fleet.PhaseEnded, Outcome: "so-so"}}
		},
	} {
		q := agentOf("h1")
		wrong(&q)
		if a := n.sendSync(q); a.status != 400 {
			t.Errorf("%s: status %d: %s", name, a.status, a.body)
		}
	}
	n.as("operator", http.MethodPost, "/v1/agent.sync", agentOf("h1"), api.HeaderCluster, testCluster).problem(403, fleet.CodeDenied)
}

func TestSyncWithoutProofGivesNoOrder(t *testing.T) {
	t.Parallel()
	w := fleetOf(t, 1)
	n := w.nodes[0]
	n.synced(agentOf("h1"))
	id := w.assign("h1")
	n.cutOff.Store(true) // it led, and does not any more
	q := agentOf("h1")
	q.Seq = 2
	n.sendSync(q).problem(503, fleet.CodeUnavailable)
	n.cutOff.Store(false)
	if _, ok := n.server.delivered(id); ok {
		t.Fatal("an order was delivered without proof of office")
	}
}

func TestBeat(t *testing.T) {
	t.Parallel()
	w := fleetOf(t, 2)
	n := w.nodes[1]
	b := api.Beat{Host: "h1", Boot: "boot-1", Incarnation: 1, Seq: 1}
	b.Version, b.FenceAfter = 7, 30*fleet.Second
	var r api.BeatReply
	n.as("agent", http.MethodPost, "/v1/agent.beat", b, api.HeaderCluster, testCluster).into(&r)
	if !r.Ack || r.Node != "n2" || n.beats.Load() != 1 {
		t.Fatalf("%+v", r)
	}
	// Nothing but the agent's own node is needed.
	w.lead("")
	n.deaf.Store(true)
	r = api.BeatReply{}
	n.as("agent", http.MethodPost, "/v1/agent.beat", b, api.HeaderCluster, testCluster).into(&r)
	if r.Ack || r.Why == "" || r.Members != 7 || len(r.Nodes) != 2 {
		t.Fatalf("%+v", r)
	}
	n.as("viewer", http.MethodPost, "/v1/agent.beat", b, api.HeaderCluster, testCluster).problem(403, fleet.CodeDenied)
}

func TestLogsGoToTheDiskAndToPeers(t *testing.T) {
	w := fleetOf(t, 1)
	n := w.nodes[0]
	chunks := api.Chunks{Host: "h1", Chunks: []api.Chunk{
		{Attempt: 1, N: 0, Data: []byte("a\n")}, {Attempt: 1, N: 2, Data: []byte{0xff, 0x00}, Final: true}, {Attempt: 2, N: 0},
	}}
	if a := n.as("agent", http.MethodPost, "/v1/agent.logs", chunks, api.HeaderCluster, testCluster); a.status != 200 {
		t.Fatalf("%s", a.body)
	}
	var got api.Chunks
	n.as(testNodeToken, http.MethodGet, "/v1/peer.logs?attempt=1&from=0", nil, api.HeaderCluster, testCluster).into(&got)
	if d := cmp.Diff(chunks.Chunks[:2], got.Chunks); d != "" {
		t.Fatal(d)
	}
	n.as("agent", http.MethodPost, "/v1/agent.logs", `{"chunks":[{"data":"`+strings.Repeat("A", maxLogsBody)+`"}]}`, api.HeaderCluster, testCluster).
		problem(413, fleet.CodeInvalid)
}

func TestPeers(t *testing.T) {
	t.Parallel()
	w := fleetOf(t, 2)
	n := w.nodes[1]
	peer := func(method, path string, body any) answered {
		return n.as(testNodeToken, method, path, body, api.HeaderCluster, testCluster)
	}
	var st api.PeerStatus
	peer("GET", "/v1/peer.status", nil).into(&st)
	if st.Node != "n2" || st.Cluster != testCluster {
		t.Fatalf("%+v", st)
	}
	var testimony api.Testimony
	peer("POST", "/v1/peer.testify", api.Testify{Hosts: []api.TestifyHost{{Host: "h1"}, {Host: "h2"}}}).into(&testimony)
	if testimony.Node != "n2" || len(testimony.Testimonies) != 2 {
		t.Fatalf("%+v", testimony)
	}
	var entries []fleet.Entry
	peer("GET", "/v1/peer.entries?from=1&to=2", nil).into(&entries)
	if len(entries) != 2 || entries[0].N != 1 || !entries[0].Intact() {
		t.Fatalf("%+v", entries)
	}
	peer("GET", "/v1/peer.entries?from=0&to=2", nil).problem(400, fleet.CodeInvalid)
	peer("GET", "/v1/peer.entries?from=1&to=999999", nil).problem(400, fleet.CodeInvalid)
	peer("GET", "/v1/peer.logs?attempt=x", nil).problem(400, fleet.CodeInvalid)
	// The leader takes it in, whoever is asked.
	if a := peer("POST", "/v1/peer.join", api.Join{Node: "n3", API: "http://n3", Raft: "n3:1"}); a.status != 200 {
		t.Fatalf("%s", a.body)
	}
	if row, ok := w.view.Load().Nodes.Get("n3"); !ok || row.API != "http://n3" {
		t.Fatalf("%+v", row)
	}
	peer("GET", "/v1/peer.index", nil).problem(503, fleet.CodeUnavailable) // n2 does not lead
	n.as("admin", "GET", "/v1/peer.status", nil, api.HeaderCluster, testCluster).problem(403, fleet.CodeDenied)
}
