package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
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
)

// TestEveryOperationAsksForItsRole asks for every operation with every role,
// and without one.
func TestEveryOperationAsksForItsRole(t *testing.T) {
	w := newWorld(t, 1)
	n := w.nodes[0]
	w.run("org set acme --slots 4")
	w.run("pool create linux --provider none")
	for _, o := range w.ops.Ops() {
		if o.Hidden() {
			if a := n.as("admin", http.MethodPost, "/v1/"+o.Path(), "{}"); a.status != http.StatusNotFound {
				t.Errorf("%s: status %d for what is hidden", o.Name, a.status)
			}
			continue
		}
		call, err := w.ops.Parse(o.Examples[0])
		if err != nil {
			t.Fatal(err)
		}
		args, err := o.Encode(call.Args)
		if err != nil {
			t.Fatal(err)
		}
		values, err := o.Values(call.Args)
		if err != nil {
			t.Fatal(err)
		}
		for _, role := range append([]fleet.Role{""}, testRoles...) {
			before := len(w.recorded())
			var a answered
			if o.Kind == op.KindQuery {
				a = n.as(string(role), http.MethodGet, "/v1/"+o.Path()+"?"+values.Encode(), nil)
			} else {
				a = n.as(string(role), http.MethodPost, "/v1/"+o.Path(), api.Request{Args: args, Confirm: "yes"})
			}
			switch {
			case role == "":
				a.problem(http.StatusUnauthorized, fleet.CodeDenied)
				if len(w.recorded()) != before {
					t.Errorf("%s: an unauthenticated request left an entry", o.Name)
				}
			case !role.May(o.Role):
				p := a.problem(http.StatusForbidden, fleet.CodeDenied)
				if !strings.Contains(p.Detail, string(o.Role)) || !strings.Contains(p.Detail, o.Name) {
					t.Errorf("%s as %s: %q names neither operation nor role", o.Name, role, p.Detail)
				}
				if o.Record == op.Audit {
					if e := w.last(); len(w.recorded()) != before+1 || e.Outcome != fleet.EntryRefused || e.Op != o.Name {
						t.Errorf("%s as %s: the refusal has no entry", o.Name, role)
					}
				}
			case a.status == http.StatusForbidden || a.status == http.StatusUnauthorized:
				t.Errorf("%s as %s: status %d", o.Name, role, a.status)
			}
		}
	}
}

func TestRepeatedRefusalsAreCounted(t *testing.T) {
	w := newWorld(t, 1)
	before := len(w.recorded())
	for range 5 {
		w.nodes[0].do("viewer", "org set acme --slots 4", api.Request{}).problem(403, fleet.CodeDenied)
	}
	if got := len(w.recorded()) - before; got != 1 {
		t.Fatalf("5 refusals made %d entries", got)
	}
	w.nodes[0].do("viewer", "org set acme --slots 4", api.Request{DryRun: true}).problem(403, fleet.CodeDenied)
	if got := len(w.recorded()) - before; got != 1 {
		t.Fatal("the refusal of a dry run left an entry")
	}
}

func TestTokenThatIsRevokedMeanwhileLoses(t *testing.T) {
	w := newWorld(t, 1)
	hash := hashSecret("admin")
	w.before = func(c state.Command) error {
		if c.Op == catalog.OrgSet.Name {
			tok, _ := w.st.Tokens.Get(hash)
			w.index++
			w.st.Begin(w.index, w.clock)
			w.st.Tokens.Put(hash, tok) // another version of the row
		}
		return nil
	}
	w.nodes[0].do("admin", "org set acme --slots 4", api.Request{}).problem(409, fleet.CodeConflict)
	if _, ok := w.view.Load().Orgs.Get("acme"); ok {
		t.Fatal("it was done")
	}
}

func TestProblems(t *testing.T) {
	w := newWorld(t, 1)
	n := w.nodes[0]
	long := strings.Repeat("x", maxBody)
	for _, c := range []struct {
		name, method, path, body string
		status                   int
		code                     fleet.Code
		says                     string
	}{
		{"no such path", "GET", "/v2/pool.list", "", 404, fleet.CodeNotFound, "/v2/pool.list"},
		{"no such operation", "GET", "/v1/pool.lits", "", 404, fleet.CodeNotFound, "pool.list"},
		{"nothing like it", "GET", "/v1/zzzzzzzzzzzz", "", 404, fleet.CodeNotFound, "openapi"},
		{"mutation by GET", "GET", "/v1/org.set?org=acme", "", 405, fleet.CodeInvalid, "POST"},
		{"query by POST", "POST", "/v1/pool.list", "{}", 405, fleet.CodeInvalid, "GET"},
		{"stream by PUT", "PUT", "/v1/build.logs", "{}", 405, fleet.CodeInvalid, "GET or POST"},
		{"beat by GET", "GET", "/v1/agent.beat", "", 405, fleet.CodeInvalid, "POST"},
		{"broken JSON", "POST", "/v1/org.set", "{", 400, fleet.CodeInvalid, "cut off"},
		{"cut-off string", "POST", "/v1/org.set", `{"args":{"org":"ac`, 400, fleet.CodeInvalid, "cut off"},
		{"not JSON", "POST", "/v1/org.set", "org=acme", 400, fleet.CodeInvalid, "cannot be read"},
		{"a list", "POST", "/v1/org.set", "[]", 400, fleet.CodeInvalid, "cannot be read"},
		{"unknown field", "POST", "/v1/org.set", `{"argz":{}}`, 400, fleet.CodeInvalid, "argz"},
		{"unknown argument", "POST", "/v1/org.set", `{"args":{"org":"acme","slotz":1}}`, 400, fleet.CodeInvalid, "slotz"},
		{"wrong type", "POST", "/v1/org.set", `{"args":{"org":"acme","slots":"many"}}`, 400, fleet.CodeInvalid, "slots"},
		{"something after", "POST", "/v1/org.set", `{"args":{"org":"acme"}} {}`, 400, fleet.CodeInvalid, "after"},
		{"garbage after", "POST", "/v1/org.set", `{"args":{"org":"acme"}}}`, 400, fleet.CodeInvalid, "after"},
		{"bad UTF-8", "POST", "/v1/org.set", "{\"reason\":\"\xff\xfe\"}", 400, fleet.CodeInvalid, `the request is not valid UTF-8 in "reason": nothing was done`},
		{"half a character", "POST", "/v1/org.set", `{"args":{"org":"acme"},"reason":"\ud83d"}`, 400, fleet.CodeInvalid, `the request is not valid UTF-8 in "reason": nothing was done`},
		{"bad UTF-8 in a URL", "GET", "/v1/build.list?org=%ff", "", 400, fleet.CodeInvalid, `argument "org" in the URL is not valid UTF-8`},
		{"required argument", "POST", "/v1/org.set", `{}`, 400, fleet.CodeInvalid, "ORG"},
		{"unknown URL argument", "GET", "/v1/build.list?orgg=a", "", 400, fleet.CodeInvalid, "orgg"},
		{"given twice", "GET", "/v1/build.list?org=a&org=b", "", 400, fleet.CodeInvalid, "2 times"},
		{"wrong enum", "GET", "/v1/build.list?state=sad", "", 400, fleet.CodeInvalid, "sad"},
		{"wrong stale", "GET", "/v1/build.list?stale=perhaps", "", 400, fleet.CodeInvalid, "perhaps"},
		{"long key", "POST", "/v1/org.set", `{"args":{"org":"acme"},"key":"` + long[:300] + `"}`, 400, fleet.CodeInvalid, "key"},
		{"long reason", "POST", "/v1/org.set", `{"args":{"org":"acme"},"reason":"` + long[:5000] + `"}`, 400, fleet.CodeInvalid, "reason"},
		{"control character", "POST", "/v1/org.set", `{"args":{"org":"acme"},"reason":"\u001b[2J"}`, 400, fleet.CodeInvalid, "control"},
		{"wrong repeat", "POST", "/v1/org.set", `{"args":{"org":"acme"},"repeat":"perhaps"}`, 400, fleet.CodeInvalid, "perhaps"},
		{"too large", "POST", "/v1/org.set", `{"reason":"` + long + `"}`, 413, fleet.CodeInvalid, "larger"},
		{"not found", "GET", "/v1/pool.show?pool=mars", "", 404, fleet.CodeNotFound, "mars"},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := len(w.recorded())
			p := n.as("admin", c.method, c.path, c.body).problem(c.status, c.code)
			if !strings.Contains(p.Detail+" "+p.Hint, c.says) {
				t.Errorf("%q, %q: nothing about %q", p.Detail, p.Hint, c.says)
			}
			if len(w.recorded()) != before {
				t.Error("it left an entry")
			}
		})
	}
}

func TestWrongTokens(t *testing.T) {
	n := newWorld(t, 1).nodes[0]
	for _, header := range []string{"", "Bearer", "Bearer ", "Bearer wrong", "Basic YWRtaW4=", "admin", "Bearer admin extra"} {
		req := httptest.NewRequest(http.MethodGet, "/v1/pool.list", nil)
		req.Header.Set("Authorization", header)
		rec := httptest.NewRecorder()
		n.server.ServeHTTP(rec, req)
		if rec.Code != 401 || rec.Header().Get("WWW-Authenticate") == "" || !strings.Contains(rec.Body.String(), "FOOTPLATE_TOKEN") {
			t.Errorf("%q: %d %s", header, rec.Code, rec.Body)
		}
	}
	a := n.as("", http.MethodGet, "/metrics", nil)
	if !strings.Contains(string(a.body), "footplate_unauthenticated_total 7\n") {
		t.Errorf("the metric does not count them:\n%s", a.body)
	}
}

func TestAnotherCluster(t *testing.T) {
	n := newWorld(t, 1).nodes[0]
	n.as("viewer", http.MethodGet, "/v1/pool.list", nil, api.HeaderCluster, "c2").problem(409, fleet.CodeConflict)
	n.as("agent", http.MethodPost, "/v1/agent.beat", "{}").problem(400, fleet.CodeInvalid)
	n.as("agent", http.MethodPost, "/v1/agent.beat", "{}", api.HeaderCluster, "c2").problem(409, fleet.CodeConflict)
	n.as(testNodeToken, http.MethodPost, "/v1/peer.testify", "{}").problem(400, fleet.CodeInvalid)
	if a := n.as(testNodeToken, http.MethodGet, "/v1/peer.status", nil); a.status != 200 {
		t.Fatalf("a node that does not know the cluster yet is refused: %s", a.body)
	}
}

func TestMutationLeavesItsEntry(t *testing.T) {
	w := newWorld(t, 1)
	var r api.Reply
	w.nodes[0].do("operator", "pool create linux --provider none", api.Request{Reason: "first pool", Incident: "i-1", Via: "cli/1"}).into(&r)
	e := w.last()
	if r.Entry != e.N || r.Key == "" || r.Key != e.Key || r.Text != e.Text || e.By != "the-operator" || e.Reason != "first pool" ||
		e.Incident != "i-1" || e.Via != "cli/1" || len(e.Salt) != 32 || !e.Intact() {
		t.Fatalf("reply %+v, entry %+v", r, e)
	}
	// A failure of the operation itself comes back as it was raised, and has its
	// entry too.
	p := w.nodes[0].do("operator", "pool create linux --provider none", api.Request{}).problem(409, fleet.CodeConflict)
	if e := w.last(); e.Outcome != fleet.EntryFailed || e.Text != p.Detail {
		t.Fatalf("problem %+v, entry %+v", p, e)
	}
}

func TestSameKeyActsOnce(t *testing.T) {
	w := newWorld(t, 1)
	n := w.nodes[0]
	w.run("pool create linux")
	var first, second api.Reply
	n.do("operator", "pool scale linux +2", api.Request{Key: "k1"}).into(&first)
	n.do("operator", "pool scale linux +2", api.Request{Key: "k1"}).into(&second)
	if first.Duplicate || !second.Duplicate || second.Entry != first.Entry || second.Text != first.Text {
		t.Fatalf("first %+v, second %+v", first, second)
	}
	if p, _ := w.view.Load().Pools.Get("linux"); p.Size != 2 {
		t.Fatalf("size %d", p.Size)
	}
	n.do("operator", "pool scale linux +3", api.Request{Key: "k1"}).problem(409, fleet.CodeConflict)
	// The key is the principal's own.
	var other api.Reply
	n.do("admin", "pool scale linux +2", api.Request{Key: "k1"}).into(&other)
	if other.Duplicate {
		t.Fatal("another's key was taken for the same")
	}
}

func TestDryRunAndConfirmation(t *testing.T) {
	w := newWorld(t, 1)
	n := w.nodes[0]
	w.run("pool create linux --provider none")
	w.log(catalog.AgentJoin, catalog.AgentJoinArgs{Host: "h1", Pool: "linux", Boot: "b1", Incarnation: 1})
	before := len(w.recorded())

	var dry api.Reply
	n.do("operator", "host drain h1", api.Request{DryRun: true}).into(&dry)
	if dry.Plan == nil || len(dry.Plan.Lines) != 1 || !strings.Contains(dry.Plan.Lines[0], "h1") || dry.Entry != 0 {
		t.Fatalf("%+v", dry)
	}
	p := n.do("operator", "host drain h1", api.Request{}).problem(409, fleet.CodeConfirm)
	if p.Plan == nil || p.Plan.Hash != dry.Plan.Hash {
		t.Fatalf("%+v", p)
	}
	n.do("operator", "host drain h9", api.Request{}).problem(404, fleet.CodeNotFound)
	if len(w.recorded()) != before {
		t.Fatal("what was not confirmed left an entry")
	}
	if h, _ := w.view.Load().Hosts.Get("h1"); h.Draining {
		t.Fatal("a dry run was done")
	}

	p = n.do("operator", "host drain h1", api.Request{Confirm: "0123456789abcdef"}).problem(409, fleet.CodeConflict)
	if p.Plan == nil || p.Plan.Hash != dry.Plan.Hash || !strings.Contains(p.Detail, "changed") {
		t.Fatalf("%+v", p)
	}
	if e := w.last(); e.Outcome != fleet.EntryRefused || e.Op != "host drain" {
		t.Fatalf("the refusal has no entry: %+v", e)
	}

	var done, again api.Reply
	n.do("operator", "host drain h1", api.Request{Confirm: dry.Plan.Hash, Key: "k"}).into(&done)
	if e := w.last(); e.Plan != dry.Plan.Hash || e.N != done.Entry {
		t.Fatalf("%+v", e)
	}
	// The plan is another one now, but this is the same command.
	n.do("operator", "host drain h1", api.Request{Confirm: dry.Plan.Hash, Key: "k"}).into(&again)
	if !again.Duplicate || again.Entry != done.Entry {
		t.Fatalf("%+v", again)
	}
	var yes api.Reply
	n.do("operator", "queue pause --for 5m", api.Request{Confirm: "yes"}).into(&yes)
	if e := w.last(); e.Plan == "" {
		t.Fatal("the entry of a confirmed operation has no plan")
	}
}

func TestPanicsBecomeProblems(t *testing.T) {
	type none struct{}
	bad := op.Query(op.Spec{Name: "test panic", Role: fleet.Viewer, Examples: []string{"test panic"}},
		func(context.Context, op.Env, none) (none, error) { panic("secret detail") })
	broken := op.Query(op.Spec{Name: "test broken", Role: fleet.Viewer, Examples: []string{"test broken"}},
		func(context.Context, op.Env, none) (none, error) { return none{}, errors.New("secret detail") })
	crash := op.Mutation(op.Spec{Name: "test crash", Role: fleet.Viewer, Examples: []string{"test crash"}},
		func(*state.Tx, op.Meta, none) (op.Result, error) { panic("secret detail") })
	w := newWorld(t, 1, bad, broken, crash)
	for _, a := range []answered{
		w.nodes[0].as("viewer", http.MethodGet, "/v1/test.panic", nil),
		w.nodes[0].as("viewer", http.MethodGet, "/v1/test.broken", nil),
		w.nodes[0].as("viewer", http.MethodPost, "/v1/test.crash", `{"dry_run":true}`),
	} {
		p := a.problem(500, fleet.CodeInternal)
		if strings.Contains(p.Detail+p.Hint, "secret") || !strings.Contains(p.Hint, "n1") {
			t.Errorf("%+v", p)
		}
	}
	if a := w.nodes[0].as("viewer", http.MethodGet, "/v1/pool.list", nil); a.status != 200 {
		t.Fatal("the server is gone")
	}
}

func TestTooManyRequestsAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	n := w.nodes[0]
	n.server.operations = newLane(1, nil)
	n.server.operations.places <- struct{}{}
	a := n.as("viewer", http.MethodGet, "/v1/pool.list", nil)
	a.problem(503, fleet.CodeUnavailable)
	if a.header.Get("Retry-After") == "" {
		t.Fatal("no Retry-After")
	}
	// The agents' lane is another.
	if a := n.as("agent", http.MethodPost, "/v1/agent.beat", api.Beat{Host: "h1", Boot: "b"}, api.HeaderCluster, testCluster); a.status != 200 {
		t.Fatalf("%s", a.body)
	}
}

func TestFollowerPassesOn(t *testing.T) {
	w := newWorld(t, 3)
	var r api.Reply
	w.nodes[2].do("operator", "pool create linux", api.Request{Via: "cli/1", Key: "k"}).into(&r)
	if e := w.last(); e.N != r.Entry || e.By != "the-operator" || e.Via != "cli/1" || e.Key != "k" {
		t.Fatalf("%+v", e)
	}
	// Errors, plans and statuses come through as they were raised.
	w.nodes[1].do("operator", "pool create linux", api.Request{}).problem(409, fleet.CodeConflict)
	w.nodes[1].do("viewer", "pool create mac", api.Request{}).problem(403, fleet.CodeDenied)
	if e := w.last(); e.Outcome != fleet.EntryRefused || e.By != "the-viewer" {
		t.Fatalf("%+v", e)
	}
	if p := w.nodes[1].do("operator", "queue pause", api.Request{}).problem(409, fleet.CodeConfirm); p.Plan == nil {
		t.Fatal("the plan is lost on the way")
	}
	var dry api.Reply
	w.nodes[1].do("operator", "pool scale linux 3", api.Request{DryRun: true}).into(&dry)
	if dry.Plan == nil {
		t.Fatalf("%+v", dry)
	}
	// Nothing is passed on twice.
	p := w.nodes[1].as("operator", http.MethodPost, "/v1/pool.scale", `{"args":{"pool":"linux","size":"3"}}`, api.HeaderForwarded, "n3").problem(503, fleet.CodeUnavailable)
	if !strings.Contains(p.Detail, "nothing was done") {
		t.Fatalf("%+v", p)
	}
}

func TestReadsAreFreshOnAnyNode(t *testing.T) {
	w := newWorld(t, 3)
	w.run("pool create linux")
	for _, n := range w.nodes {
		before := w.reads
		var rows []catalog.PoolRow
		n.as("viewer", http.MethodGet, "/v1/pool.list", nil).into(&rows)
		if len(rows) != 1 || w.reads != before+1 {
			t.Errorf("node %s: %d rows, %d proofs", n.id, len(rows), w.reads-before)
		}
	}
	before := w.reads
	for _, a := range []answered{
		w.nodes[2].as("viewer", http.MethodGet, "/v1/pool.list?stale=1", nil),
		w.nodes[2].as("viewer", http.MethodGet, "/v1/pool.list", nil, api.HeaderStale, "true"),
	} {
		var rows []catalog.PoolRow
		a.into(&rows)
		if a.header.Get(api.HeaderStale) != "0s" || w.reads != before {
			t.Errorf("stale header %q, %d proofs", a.header.Get(api.HeaderStale), w.reads-before)
		}
	}
}

func TestReadWaitsForWhatTheNodeLacks(t *testing.T) {
	w := newWorld(t, 2)
	behind := w.view.Load()
	late := make(chan struct{})
	n := w.nodes[1]
	// The node applies nothing until late.
	view := func() *state.View {
		select {
		case <-late:
			return w.view.Load()
		default:
			return behind
		}
	}
	waiting := make(chan struct{})
	n.server.cfg.View = view
	n.server.cfg.World = slowWorld{n, func(ctx context.Context, index uint64) (*state.View, error) {
		close(waiting)
		<-late
		return n.WaitView(ctx, index)
	}}
	w.run("pool create linux")
	got := make(chan answered, 1)
	go func() { got <- n.as("viewer", http.MethodGet, "/v1/pool.list", nil) }()
	<-waiting
	select {
	case a := <-got:
		t.Fatalf("answered before it had caught up: %s", a.body)
	default:
	}
	close(late)
	var rows []catalog.PoolRow
	(<-got).into(&rows)
	if len(rows) != 1 {
		t.Fatalf("%d rows", len(rows))
	}
}

type slowWorld struct {
	*node
	wait func(context.Context, uint64) (*state.View, error)
}

func (s slowWorld) WaitView(ctx context.Context, index uint64) (*state.View, error) {
	return s.wait(ctx, index)
}

func TestNoLeader(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3)
	w.run("pool create linux")
	w.lead("")
	for i, a := range []answered{
		w.nodes[0].do("operator", "pool scale linux 2", api.Request{}),
		w.nodes[0].as("viewer", http.MethodGet, "/v1/pool.list", nil),
	} {
		if p := a.problem(503, fleet.CodeUnavailable); !strings.Contains(p.Detail, "no leader") || !strings.Contains(p.Detail, "nothing was done") {
			t.Errorf("%+v", p)
		} else if strings.Contains(p.Hint, "--stale") != (i == 1) {
			t.Errorf("hint %q", p.Hint)
		}
	}
	// What is wrong in itself needs no leader to say so.
	w.nodes[0].as("operator", http.MethodPost, "/v1/pool.scale", `{"args":{"pool":1}}`).problem(400, fleet.CodeInvalid)
	if a := w.nodes[0].as("viewer", http.MethodGet, "/v1/pool.list?stale=1", nil); a.status != 200 {
		t.Fatalf("%s", a.body)
	}
	var h health
	if a := w.nodes[0].as("", http.MethodGet, "/readyz", nil); a.status != 503 || json.Unmarshal(a.body, &h) != nil || !strings.Contains(h.Why, "no leader") {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if a := w.nodes[0].as("", http.MethodGet, "/healthz", nil); a.status != 200 {
		t.Fatalf("%s", a.body)
	}
	// One comes while the request waits.
	got := make(chan answered, 1)
	go func() { got <- w.nodes[0].do("operator", "pool scale linux 2", api.Request{}) }()
	until(t, "the request", func() bool { return len(w.nodes[0].server.operations.places) == 1 })
	w.lead("n2")
	if a := <-got; a.status != 200 {
		t.Fatalf("%s", a.body)
	}
}

func TestCutOffNodeSaysSo(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3)
	n := w.nodes[2]
	n.cutOff.Store(true)
	p := n.do("operator", "pool create linux", api.Request{}).problem(503, fleet.CodeUnavailable)
	if !strings.Contains(p.Detail, "cut off") || !strings.Contains(p.Detail, "1 of 3") {
		t.Fatalf("%+v", p)
	}
	var h health
	if a := n.as("", http.MethodGet, "/readyz", nil); a.status != 503 || json.Unmarshal(a.body, &h) != nil || !strings.Contains(h.Why, "cut off") {
		t.Fatalf("%d %s", a.status, a.body)
	}
	a := n.as("viewer", http.MethodGet, "/v1/pool.list?stale=1", nil)
	if a.status != 200 || a.header.Get(api.HeaderStale) != "42s" {
		t.Fatalf("%d, stale %q", a.status, a.header.Get(api.HeaderStale))
	}
}

func TestUnknownOutcomeIsAskedForAgain(t *testing.T) {
	w := newWorld(t, 3)
	w.run("pool create linux")
	// The leader dies right after it has logged the command.
	w.after = func(c state.Command) error {
		if c.Op == catalog.PoolScale.Name && w.leader == "n1" {
			w.leader = "n2"
			w.term++
			return fleet.Unknownf("the outcome is unknown")
		}
		return nil
	}
	var r api.Reply
	w.nodes[2].do("operator", "pool scale linux +2", api.Request{}).into(&r)
	if p, _ := w.view.Load().Pools.Get("linux"); p.Size != 2 || r.Duplicate || r.Entry == 0 {
		t.Fatalf("size %d, %+v", p.Size, r)
	}
}

func TestUnknownOutcomeNamesTheKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	w.run("pool create linux")
	w.after = func(c state.Command) error {
		if c.Op == catalog.PoolScale.Name {
			w.leader = ""
			return fleet.Unknownf("the outcome is unknown")
		}
		return nil
	}
	p := w.nodes[1].do("operator", "pool scale linux +2", api.Request{Key: "my-key"}).problem(504, fleet.CodeUnknown)
	if !strings.Contains(p.Hint, "my-key") {
		t.Fatalf("%+v", p)
	}
}

func TestLeaderThatBreaksTheConnection(t *testing.T) {
	w := newWorld(t, 2)
	w.run("pool create linux")
	// Something that takes the request and hangs up, once.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var calls atomic.Int64
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			calls.Add(1)
			b := make([]byte, 64)
			_, _ = c.Read(b)
			c.Close()
		}
	}()
	n := w.nodes[1]
	n.server.cfg.Nodes = func() []api.NodeAddr {
		if calls.Load() == 0 {
			return []api.NodeAddr{{Node: "n1", API: "http://" + l.Addr().String()}}
		}
		return w.addrs()
	}
	var r api.Reply
	n.do("operator", "pool scale linux +2", api.Request{}).into(&r)
	if p, _ := w.view.Load().Pools.Get("linux"); p.Size != 2 || calls.Load() == 0 {
		t.Fatalf("size %d after %d broken calls", p.Size, calls.Load())
	}
}

func TestStoppedLeaderIsGivenUpWhenAnotherLeads(t *testing.T) {
	w := newWorld(t, 3)
	w.run("pool create linux")
	stuck := make(chan struct{})
	free := make(chan struct{})
	var once sync.Once
	old := w.nodes[0].http.Config.Handler
	w.nodes[0].http.Config.Handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "pool.scale") {
			_, _ = io.ReadAll(r.Body)
			once.Do(func() { close(stuck) })
			<-free
		}
		old.ServeHTTP(rw, r)
	})
	defer close(free)
	got := make(chan answered, 1)
	go func() { got <- w.nodes[2].do("operator", "pool scale linux +2", api.Request{}) }()
	<-stuck
	w.lead("n2")
	var r api.Reply
	(<-got).into(&r)
	if p, _ := w.view.Load().Pools.Get("linux"); p.Size != 2 {
		t.Fatalf("size %d", p.Size)
	}
}

func TestStreams(t *testing.T) {
	type none struct{}
	fails := op.Stream(op.Spec{Name: "test fails", Role: fleet.Viewer, Examples: []string{"test fails"}}, nil,
		func(_ context.Context, _ op.Env, _ none, w io.Writer) error {
			fmt.Fprintln(w, "a line")
			return fleet.NotFoundf("the rest is gone").WithHint("look elsewhere")
		})
	early := op.Stream(op.Spec{Name: "test early", Role: fleet.Viewer, Examples: []string{"test early"}}, nil,
		func(context.Context, op.Env, none, io.Writer) error { return fleet.NotFoundf("there is none") })
	empty := op.Stream(op.Spec{Name: "test empty", Role: fleet.Viewer, Examples: []string{"test empty"}}, nil,
		func(context.Context, op.Env, none, io.Writer) error { return nil })
	w := newWorld(t, 2, fails, early, empty)
	for _, n := range w.nodes {
		a := n.as("viewer", http.MethodGet, "/v1/test.fails", nil)
		var p api.Problem
		if a.status != 200 || string(a.body) != "a line\n" || json.Unmarshal([]byte(a.trailer.Get(api.HeaderStreamError)), &p) != nil ||
			p.Code != fleet.CodeNotFound || p.Hint != "look elsewhere" {
			t.Errorf("%d %q %v", a.status, a.body, a.trailer)
		}
		n.as("viewer", http.MethodPost, "/v1/test.early", "{}").problem(404, fleet.CodeNotFound)
		if a := n.as("viewer", http.MethodPost, "/v1/test.empty", ""); a.status != 200 || len(a.body) != 0 || a.trailer.Get(api.HeaderStreamError) != "" {
			t.Errorf("%d %q %v", a.status, a.body, a.trailer)
		}
		// A stream that leaves an entry does so once, and before its first byte.
		before := len(w.recorded())
		a = n.as("admin", http.MethodPost, "/v1/cluster.snapshot.save", api.Request{Reason: "backup"})
		if a.status != 200 || len(a.body) == 0 || a.trailer.Get(api.HeaderStreamError) != "" {
			t.Fatalf("%d %s %v", a.status, a.body, a.trailer)
		}
		if e := w.last(); len(w.recorded()) != before+1 || e.Op != "cluster snapshot save" || e.Reason != "backup" {
			t.Errorf("%+v", e)
		}
		if a = n.as("admin", http.MethodGet, "/v1/cluster.snapshot.save", nil); a.status != 200 || len(w.recorded()) != before+2 {
			t.Errorf("%d, %d entries", a.status, len(w.recorded())-before)
		}
		n.as("operator", http.MethodPost, "/v1/cluster.snapshot.save", "{}").problem(403, fleet.CodeDenied)
	}
}

// TestLogsWithoutAQuorum: a node that is cut off shows the logs that it has, to
// who is content with that.
func TestLogsWithoutAQuorum(t *testing.T) {
	t.Parallel()
	w := fleetOf(t, 3)
	n := w.nodes[2]
	n.synced(agentOf("h1"))
	id := w.assign("h1")
	w.chunks[id] = []op.LogChunk{{N: 0, Data: []byte("hello\n")}, {N: 1, Final: true}}
	n.cutOff.Store(true)
	path := "/v1/build.logs?build=" + w.attempt(id).Build.String()
	if p := n.as("viewer", http.MethodGet, path, nil).problem(503, fleet.CodeUnavailable); !strings.Contains(p.Hint, "--stale") {
		t.Errorf("%+v", p)
	}
	for _, a := range []answered{
		n.as("viewer", http.MethodGet, path+"&stale=true", nil),
		n.as("viewer", http.MethodGet, path, nil, api.HeaderStale, "true"),
	} {
		var c op.LogChunk
		if err := json.NewDecoder(bytes.NewReader(a.body)).Decode(&c); err != nil || string(c.Data) != "hello\n" || c.Host != "h1" {
			t.Fatalf("%d %s %v", a.status, a.body, err)
		}
		if a.header.Get(api.HeaderStale) != "42s" {
			t.Errorf("stale %q", a.header.Get(api.HeaderStale))
		}
	}
	// What leaves an entry cannot be had so.
	n.as("admin", http.MethodGet, "/v1/cluster.snapshot.save?stale=true", nil).problem(400, fleet.CodeInvalid)
}

func TestStreamSendsEachPieceSoon(t *testing.T) {
	type none struct{}
	next := make(chan string)
	slow := op.Stream(op.Spec{Name: "test slow", Role: fleet.Viewer, Examples: []string{"test slow"}}, nil,
		func(_ context.Context, _ op.Env, _ none, w io.Writer) error {
			for s := range next {
				if _, err := io.WriteString(w, s); err != nil {
					return err
				}
			}
			return nil
		})
	n := newWorld(t, 1, slow).nodes[0]
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, n.http.URL+"/v1/test.slow", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer viewer")
	go func() { next <- "one;"; next <- "two;" }()
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b := make([]byte, 8)
	if _, err := io.ReadFull(res.Body, b); err != nil || string(b) != "one;two;" {
		t.Fatalf("%q, %v", b, err)
	}
	next <- "end"
	close(next)
	if rest, err := io.ReadAll(res.Body); err != nil || string(rest) != "end" {
		t.Fatalf("%q, %v", rest, err)
	}
}

func TestHeldOpenIsNotTimedOut(t *testing.T) {
	type none struct{}
	quiet := make(chan struct{})
	slow := op.Stream(op.Spec{Name: "test quiet", Role: fleet.Viewer, Examples: []string{"test quiet"}}, nil,
		func(ctx context.Context, _ op.Env, _ none, w io.Writer) error {
			if _, err := io.WriteString(w, "one;"); err != nil {
				return err
			}
			select {
			case <-quiet:
			case <-ctx.Done():
				return ctx.Err()
			}
			return nil
		})
	w := newWorld(t, 1, slow)
	n := w.nodes[0]
	n.server.readTimeout, n.server.writeTimeout = 50*time.Millisecond, 50*time.Millisecond
	events := n.events(t, "")
	got := make(chan answered, 2)
	go func() { got <- n.as("viewer", http.MethodGet, "/v1/test.quiet", nil) }()
	go func() { got <- n.as("viewer", http.MethodPost, "/v1/test.quiet", "{}") }()
	begun := time.Now()
	until(t, "longer than the timeouts", func() bool { return time.Since(begun) > 200*time.Millisecond })
	close(quiet)
	for range 2 {
		if a := <-got; a.status != 200 || string(a.body) != "one;" || a.trailer.Get(api.HeaderStreamError) != "" {
			t.Fatalf("%d %q %v", a.status, a.body, a.trailer)
		}
	}
	w.deliver()
	if _, _, ev := events.next(); ev.Line == nil {
		t.Fatal("no line")
	}
}

func TestBodyThatNeverComes(t *testing.T) {
	n := newWorld(t, 1).nodes[0]
	n.server.readTimeout = 50 * time.Millisecond
	c, err := net.Dial("tcp", n.http.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "POST /v1/org.set HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer admin\r\nContent-Length: 100\r\n\r\n{\"args\":")
	b, err := io.ReadAll(c)
	if err != nil || !strings.Contains(string(b), "400 Bad Request") || !strings.Contains(string(b), "ends early") {
		t.Fatalf("%q, %v", b, err)
	}
}

func TestServeLetsGoOfWhatIsHeldOpen(t *testing.T) {
	w := newWorld(t, 1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.nodes[0].server.Serve(ctx, l) }()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+l.Addr().String()+"/v1/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer viewer")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	cancel()
	if _, err := io.ReadAll(res.Body); err != nil {
		t.Logf("the stream ended with %v", err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestOpenAPI(t *testing.T) {
	w := newWorld(t, 1)
	var doc struct {
		OpenAPI string
		Info    struct{ Title, Version string }
		Paths   map[string]map[string]struct {
			OperationID string `json:"operationId"`
			Parameters  []struct{ Name, In string }
			RequestBody *struct {
				Content map[string]struct {
					Schema struct {
						Properties struct {
							Args struct{ Properties map[string]any }
						}
					}
				}
			}
			Responses map[string]any
		}
		Components struct{ Schemas map[string]any }
	}
	w.nodes[0].as("", http.MethodGet, "/v1/openapi.json", nil).into(&doc)
	if doc.OpenAPI != "3.1.0" || doc.Info.Title == "" || doc.Info.Version == "" || doc.Components.Schemas["Problem"] == nil {
		t.Fatalf("%+v", doc.Info)
	}
	ids := make(map[string]bool)
	for _, o := range w.ops.Ops() {
		item, ok := doc.Paths["/v1/"+o.Path()]
		if ok == o.Hidden() {
			t.Errorf("%s: hidden %v, in the document %v", o.Name, o.Hidden(), ok)
		}
		for method, x := range item {
			if ids[x.OperationID] || x.OperationID == "" {
				t.Errorf("%s: id %q is used twice", o.Name, x.OperationID)
			}
			ids[x.OperationID] = true
			if x.Responses["200"] == nil || x.Responses["503"] == nil {
				t.Errorf("%s: responses %v", o.Name, x.Responses)
			}
			for _, p := range o.Params {
				found := false
				for _, q := range x.Parameters {
					found = found || q.Name == p.Name
				}
				if x.RequestBody != nil {
					found = x.RequestBody.Content["application/json"].Schema.Properties.Args.Properties[p.Name] != nil
				}
				if !found {
					t.Errorf("%s by %s: no parameter %s", o.Name, method, p.Name)
				}
			}
		}
	}
}

// FuzzRequest sends what it likes to a mutation: it never panics, answers with
// a problem or a reply, and logs nothing that is not valid.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		`{}`, `{"args":{"pool":"linux","size":"+2"},"key":"k","reason":"r"}`, `{"args":null}`, `{"args":"x"}`, `{"dry_run":true,"args":{"pool":"linux"}}`,
		"{\"args\":{\"pool\":\"\xff\"}}", `{"args":{"pool":"linux","size":99999999999999999999}}`, `[`, `null`, `{"confirm":"yes","args":{"pool":"\u0000"}}`,
	} {
		f.Add([]byte(s))
	}
	w := newWorld(f, 1)
	w.run("pool create linux")
	f.Fuzz(func(t *testing.T, body []byte) {
		rec := httptest.NewRecorder()
		req := httptest.NewRequest(http.MethodPost, "/v1/pool.scale", strings.NewReader(string(body)))
		req.Header.Set("Authorization", "Bearer operator")
		w.nodes[0].server.ServeHTTP(rec, req)
		if rec.Code == 500 || !json.Valid(rec.Body.Bytes()) {
			t.Fatalf("%d %s", rec.Code, rec.Body)
		}
	})
}
