package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"footplate/controlplane/api"
	"footplate/controlplane/catalog"
	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
	"footplate/fleet/lease"
)

// The secrets of the tests: the role is the secret, but for the nodes'.
const (
	testCluster   = "c1"
	testNodeToken = "nodes-secret"
)

var testRoles = []fleet.Role{fleet.Viewer, fleet.Responder, fleet.Operator, fleet.Admin, fleet.Agent}

// world is a cluster in memory: one state, applied by the real registry, that
// every node sees at once.
type world struct {
	t   testing.TB
	ops *op.Registry

	mu      sync.Mutex
	st      *state.State
	view    atomic.Pointer[state.View]
	newer   chan struct{}
	index   uint64
	term    uint64
	leader  fleet.NodeID // "" when there is none
	clock   fleet.Time
	entries []fleet.Entry
	reads   int // calls of ReadIndex
	// before runs before a command is logged, and may fail it. after runs when it
	// was applied.
	before, after func(c state.Command) error
	nodes         []*node
	chunks        map[fleet.AttemptID][]op.LogChunk
}

// node is one node of it.
type node struct {
	*world
	id     fleet.NodeID
	server *Server
	http   *httptest.Server
	// cutOff: it hears of no leader, and reaches nobody.
	cutOff atomic.Bool
	beats  atomic.Int64
	deaf   atomic.Bool // acknowledges no beat
	// Troubles that the node tells of itself.
	halted, clockNote atomic.Bool
	archived          atomic.Uint64 // newest entry in its archive; all when 0, else it cannot write
	put               struct {
		sync.Mutex
		chunks []api.Chunk
	}
	mono atomic.Int64
}

// newWorld makes a cluster of n nodes; the first leads. ops are operations of
// the test beside the catalog's.
func newWorld(t testing.TB, n int, ops ...*op.Op) *world {
	t.Helper()
	w := &world{
		t: t, ops: op.NewRegistry(append(append([]*op.Op(nil), catalog.All().Ops()...), ops...)...),
		st: state.New(), newer: make(chan struct{}), clock: fleet.TimeOf(time.Now()),
		chunks: make(map[fleet.AttemptID][]op.LogChunk),
	}
	w.view.Store(w.st.Publish())
	for i := range n {
		w.add(fleet.NodeID(fmt.Sprintf("n%d", i+1)))
	}
	w.lead("n1")
	var tokens []fleet.Token
	for _, r := range testRoles {
		tokens = append(tokens, fleet.Token{Name: string(r), Hash: hashSecret(string(r)), Principal: fleet.Principal("the-" + string(r)), Role: r})
	}
	tokens = append(tokens, fleet.Token{Name: "nodes", Hash: hashSecret(testNodeToken), Principal: "nodes", Role: fleet.System})
	w.log(catalog.ClusterInit, catalog.ClusterInitArgs{Cluster: testCluster, Tokens: tokens})
	return w
}

func (w *world) add(id fleet.NodeID) *node {
	w.t.Helper()
	n := &node{world: w, id: id}
	n.mono.Store(1e9)
	s, err := New(Config{
		Node: id, Cluster: testCluster, Version: "test", NodeToken: testNodeToken, Registry: w.ops, Replica: n, World: n,
		View: w.view.Load, Scratch: n.scratch, Now: n.now, Mono: func() lease.Mono { return lease.Mono(n.mono.Load()) },
		Nodes: w.addrs, Members: func() (uint64, []api.NodeAddr) { return 7, w.addrs() },
		Beat: func(api.Beat) (bool, string) {
			n.beats.Add(1)
			if n.deaf.Load() {
				return false, "the membership is old"
			}
			return true, ""
		},
		Testify: func(q api.Testify) []lease.Testimony {
			out := make([]lease.Testimony, len(q.Hosts))
			for i := range out {
				out[i] = lease.Testimony{Node: id, Version: 7, Silent: true}
			}
			return out
		},
		PutLogs: func(_ context.Context, chunks []api.Chunk) error {
			n.put.Lock()
			defer n.put.Unlock()
			n.put.chunks = append(n.put.chunks, chunks...)
			return nil
		},
		ReadLogs: func(id fleet.AttemptID, from int) (out []api.Chunk) {
			n.put.Lock()
			defer n.put.Unlock()
			for _, c := range n.put.chunks {
				if c.Attempt == id && c.N >= from {
					out = append(out, c)
				}
			}
			return out
		},
		Entries: func(_ context.Context, from, to fleet.EntryNo) (out []fleet.Entry, _ error) {
			for _, e := range w.recorded() {
				if e.N >= from && e.N <= to {
					out = append(out, e)
				}
			}
			return out, nil
		},
		Status: func() api.PeerStatus {
			st := api.PeerStatus{Node: id, Cluster: testCluster, Role: "follower", Applied: w.view.Load().Index, Archive: w.view.Load().Entry}
			if n.halted.Load() {
				st.Role = halted
			}
			if a := n.archived.Load(); a != 0 {
				st.Archive = fleet.EntryNo(a)
			}
			return st
		},
		ArchiveErr: func() error {
			if n.archived.Load() != 0 {
				return errors.New("no space left on device")
			}
			return nil
		},
		Join: func(_ context.Context, j api.Join) error {
			_, err := n.Propose(context.Background(), false, w.command(catalog.NodeJoin, catalog.NodeJoinArgs{Node: j.Node, API: j.API, Raft: j.Raft}))
			return err
		},
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	n.server = s
	n.http = httptest.NewServer(s)
	w.t.Cleanup(func() {
		n.http.CloseClientConnections()
		n.http.Close()
	})
	w.nodes = append(w.nodes, n)
	return n
}

func (w *world) addrs() (out []api.NodeAddr) {
	for _, n := range w.nodes {
		out = append(out, api.NodeAddr{Node: n.id, API: n.http.URL})
	}
	return out
}

// lead gives the office to a node; to nobody when id is empty.
func (w *world) lead(id fleet.NodeID) {
	w.mu.Lock()
	w.leader = id
	if id != "" {
		w.term++
		w.apply(w.command(catalog.LeaderBegin, catalog.LeaderBeginArgs{Node: id, Term: w.term}))
	}
	w.mu.Unlock()
}

func (w *world) command(o *op.Op, args any) state.Command {
	raw, err := json.Marshal(args)
	if err != nil {
		w.t.Fatal(err)
	}
	return state.Command{Op: o.Name, Ver: 1, By: "test", Role: fleet.System, Via: "test", Salt: randomHex(16), Args: raw}
}

// log applies a command of the test's own.
func (w *world) log(o *op.Op, args any) state.Outcome {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.apply(w.command(o, args))
	if out.Err != nil {
		w.t.Fatalf("%s: %v", o.Name, out.Err)
	}
	return out
}

// run applies a typed operation, as the test's own.
func (w *world) run(line string) {
	w.t.Helper()
	call, err := w.ops.Parse(line)
	if err != nil {
		w.t.Fatal(err)
	}
	w.log(call.Op, call.Args)
}

// apply applies one command through the log's own format. w.mu must be held.
func (w *world) apply(c state.Command) state.Outcome {
	encoded, err := state.EncodeCommand(&c)
	if err != nil {
		w.t.Fatal(err)
	}
	w.index++
	w.clock++
	batch, err := state.DecodeBatch(state.EncodeBatch(w.clock, [][]byte{encoded}))
	if err != nil {
		w.t.Fatal(err)
	}
	applied, err := w.ops.Apply(w.st, w.index, batch, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	w.entries = append(w.entries, applied.Entries...)
	w.view.Store(w.st.Publish())
	close(w.newer)
	w.newer = make(chan struct{})
	return applied.Outcomes[0]
}

func (w *world) recorded() []fleet.Entry {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]fleet.Entry(nil), w.entries...)
}

// last returns the newest entry.
func (w *world) last() fleet.Entry {
	all := w.recorded()
	return all[len(all)-1]
}

// deliver brings the outbox into the channel.
func (w *world) deliver() {
	w.t.Helper()
	w.log(catalog.OutboxDeliver, catalog.OutboxDeliverArgs{Upto: w.view.Load().Parcel})
}

// The node as Replica.

func (n *node) Propose(_ context.Context, _ bool, c state.Command) (state.Outcome, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.leader != n.id || n.cutOff.Load() {
		return state.Outcome{}, fleet.Unavailablef("node %q is not the leader: nothing was done", n.id)
	}
	if n.before != nil {
		if err := n.before(c); err != nil {
			return state.Outcome{}, err
		}
	}
	out := n.apply(c)
	if n.after != nil {
		if err := n.after(c); err != nil {
			return state.Outcome{}, err
		}
	}
	return out, nil
}

func (n *node) ReadIndex(context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.reads++
	if n.leader != n.id || n.cutOff.Load() {
		return fleet.Unavailablef("node %q is not the leader", n.id)
	}
	return nil
}

func (n *node) Leader() (fleet.NodeID, uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.cutOff.Load():
		return "", 0
	case n.leader == n.id:
		return n.id, n.term
	}
	return n.leader, 0
}

func (n *node) Contact() fleet.Duration {
	if n.cutOff.Load() {
		return 42 * fleet.Second
	}
	return 0
}

func (n *node) scratch() *state.State {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.view.Load().Scratch()
}

func (n *node) now() fleet.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.clock
}

// The node as World.

func (n *node) Entries(_ context.Context, f op.EntryFilter) (out []fleet.Entry, _ error) {
	for _, e := range n.recorded() {
		if (f.From == 0 || e.N >= f.From) && (f.To == 0 || e.N <= f.To) && (f.By == "" || e.By == f.By) && (f.Op == "" || e.Op == f.Op) {
			out = append(out, e)
		}
	}
	return out, nil
}

func (n *node) ExportEntries(_ context.Context, _ op.EntryFilter, w io.Writer) error {
	enc := json.NewEncoder(w)
	for _, e := range n.recorded() {
		if err := enc.Encode(e); err != nil {
			return err
		}
	}
	return nil
}

func (n *node) Erased(context.Context, state.Erasure) []op.ErasedAt { return nil }

func (n *node) VerifyEntries(context.Context, op.Verify) []op.Checked {
	return []op.Checked{{Where: "node " + string(n.id), Entries: len(n.recorded())}}
}

func (n *node) Cluster(context.Context) op.Cluster {
	leader, _ := n.Leader()
	c := op.Cluster{Node: n.id, Leader: leader}
	if n.clockNote.Load() {
		c.ClockNote = "the wall clocks are an hour ahead"
	}
	for _, o := range n.nodes {
		row := op.ClusterNode{Node: o.id, Role: "follower", API: o.http.URL}
		if n.cutOff.Load() && o != n {
			row.Role = "unreachable"
		}
		c.Nodes = append(c.Nodes, row)
	}
	return c
}

func (n *node) SaveSnapshot(_ context.Context, w io.Writer) error { return n.view.Load().Dump(w) }

func (n *node) Log(_ context.Context, id fleet.AttemptID, from int, _ bool, yield func(op.LogChunk) error) (int, error) {
	for _, c := range n.chunks[id] {
		if c.N < from {
			continue
		}
		if err := yield(c); err != nil {
			return from, err
		}
		from = c.N + 1
	}
	return from, nil
}

func (n *node) Heard(fleet.HostID) (fleet.Duration, bool) { return 0, true }

func (n *node) WaitView(ctx context.Context, index uint64) (*state.View, error) {
	for {
		n.mu.Lock()
		newer := n.newer
		n.mu.Unlock()
		if v := n.view.Load(); v.Index > index {
			return v, nil
		}
		select {
		case <-newer:
		case <-ctx.Done():
			return n.view.Load(), ctx.Err()
		}
	}
}

// answered is an answer to a test's request.
type answered struct {
	t       testing.TB
	status  int
	header  http.Header
	trailer http.Header
	body    []byte
}

// as sends a request with a role's token and returns the answer.
func (n *node) as(token, method, path string, body any, header ...string) answered {
	n.t.Helper()
	var r io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		r = strings.NewReader(b)
	case []byte:
		r = bytes.NewReader(b)
	default:
		raw, err := json.Marshal(b)
		if err != nil {
			n.t.Fatal(err)
		}
		r = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(n.t.Context(), method, n.http.URL+path, r)
	if err != nil {
		n.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		n.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		n.t.Fatal(err)
	}
	return answered{n.t, res.StatusCode, res.Header, res.Trailer, b}
}

func (a answered) into(v any) {
	a.t.Helper()
	if a.status != http.StatusOK {
		a.t.Fatalf("status %d: %s", a.status, a.body)
	}
	if err := json.Unmarshal(a.body, v); err != nil {
		a.t.Fatalf("answer %q: %v", a.body, err)
	}
}

// problem returns the problem that an answer is, and checks its form.
func (a answered) problem(status int, code fleet.Code) api.Problem {
	a.t.Helper()
	var p api.Problem
	if err := json.Unmarshal(a.body, &p); err != nil {
		a.t.Fatalf("answer %q: %v", a.body, err)
	}
	if a.status != status || p.Status != status || p.Code != code || p.Detail == "" || p.Title == "" || p.Type != "about:blank" {
		a.t.Fatalf("status %d, problem %+v; want %d %s", a.status, p, status, code)
	}
	if got := a.header.Get("Content-Type"); got != "application/problem+json" {
		a.t.Fatalf("content type %q", got)
	}
	return p
}

// do asks for an operation by its typed line.
func (n *node) do(token, line string, q api.Request) answered {
	n.t.Helper()
	call, err := n.ops.Parse(line)
	if err != nil {
		n.t.Fatal(err)
	}
	if q.Args, err = call.Op.Encode(call.Args); err != nil {
		n.t.Fatal(err)
	}
	return n.as(token, http.MethodPost, "/v1/"+call.Op.Path(), q)
}

// until waits for a condition.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited too long for %s", what)
		}
		<-time.After(2 * time.Millisecond)
	}
}
