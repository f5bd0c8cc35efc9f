package controlplane

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"footplate/controlplane/api"
	"footplate/controlplane/catalog"
	"footplate/controlplane/op"
	"footplate/controlplane/order"
	"footplate/controlplane/state"
	"footplate/fleet"
	"footplate/fleet/lease"
)

// keeper keeps one book, as the server does.
type keeper struct{ book *order.Book }

func (k keeper) Book(do func(*order.Book)) bool { do(k.book); return true }

// hostView is a state with one pool and one host of it.
func hostView(t *testing.T) *state.View {
	t.Helper()
	ops, st := catalog.All(), state.New()
	apply := func(o *op.Op, args any) {
		raw, err := json.Marshal(args)
		if err != nil {
			t.Fatal(err)
		}
		a, err := ops.Apply(st, st.Index+1, state.Batch{At: 1_795_000_000_000, Commands: []state.Command{{
			Op: o.Name, Ver: o.Version(), By: "test", Role: fleet.System, Via: "test", Salt: "s", Args: raw,
		}}}, nil)
		if err != nil || a.Outcomes[0].Err != nil {
			t.Fatal(err, a.Outcomes[0].Err)
		}
	}
	call, err := ops.Parse("pool create linux --provider none --suspect-after 5s --fence-after 10s")
	if err != nil {
		t.Fatal(err)
	}
	apply(call.Op, call.Args)
	apply(catalog.AgentJoin, catalog.AgentJoinArgs{Host: "h1", Pool: "linux", Boot: "b1", Incarnation: 1})
	return st.Publish()
}

// longSilence is the ear of a node that has listened for a minute and heard
// nothing.
func longSilence(id fleet.NodeID) *ear {
	w := lease.NewWitness(id, 7, 1)
	for at := lease.Mono(1); at < lease.Mono(0).Add(fleet.Minute); at = at.Add(lease.TickEvery) {
		w.Tick(at)
	}
	return &ear{witness: w}
}

// TestListenerAsksTheOtherNodes: a host is lost by the word of a majority, over
// HTTP, and not by the leader's own.
func TestListenerAsksTheOtherNodes(t *testing.T) {
	v := hostView(t)
	for _, c := range []struct {
		name   string
		silent bool         // what n2 says
		asOf   uint64       // which membership it counts
		as     fleet.NodeID // who it says that it is
		hosts  int          // of how many it speaks
		term   uint64       // of the loops; the book is of 5
		want   bool
	}{
		{"a majority has heard nothing", true, 7, "n2", 1, 5, true},
		{"the other node has heard it", false, 7, "n2", 1, 5, false},
		{"the other node counts other members", true, 6, "n2", 1, 5, false},
		{"a stranger speaks", true, 7, "n9", 1, 5, false},
		{"the answer is of other hosts", true, 7, "n2", 2, 5, false},
		{"the book is of another term", true, 7, "n2", 1, 4, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			n2 := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				var q api.Testify
				if err := json.NewDecoder(r.Body).Decode(&q); err != nil || r.URL.Path != "/v1/peer.testify" || len(q.Hosts) != 1 ||
					q.Hosts[0] != (api.TestifyHost{Host: "h1", Boot: "b1", FenceAfter: 10 * fleet.Second}) {
					t.Errorf("asked %s %+v, %v", r.URL, q, err)
				}
				a := api.Testimony{Node: c.as}
				for range c.hosts {
					a.Testimonies = append(a.Testimonies, lease.Testimony{Node: "n2", Version: c.asOf, Silent: c.silent})
				}
				_ = json.NewEncoder(w).Encode(a)
			}))
			defer n2.Close()
			dead := httptest.NewServer(nil)
			dead.Close()
			nodes := func() []api.NodeAddr {
				return []api.NodeAddr{{Node: "n1"}, {Node: "n2", API: n2.URL}, {Node: "n3", API: dead.URL}}
			}
			l := &listener{
				node: "n1", ear: longSilence("n1"), given: keeper{order.Open(5, 1)}, term: c.term,
				peers:     newPeers(Config{Node: "n1", NodeToken: "secret"}, "c", nodes, slog.New(slog.NewTextHandler(io.Discard, nil))),
				members:   func() (uint64, []fleet.NodeID) { return 7, []fleet.NodeID{"n1", "n2", "n3"} },
				recovered: func() fleet.Duration { return 0 },
			}
			heard := l.listen(t.Context(), v)
			over := false
			for _, h := range heard.Hosts {
				over = over || h.Over
				if h.Host != "h1" || h.Silent < 50*fleet.Second || h.Known {
					t.Errorf("%+v", h)
				}
			}
			if over != c.want {
				t.Errorf("over: %v; %+v", over, heard)
			}
		})
	}
}

// TestListenerAsksNobodyAboutWhoIsHeard: the calls to the nodes are for hosts
// whose lease should be over.
func TestListenerAsksNobodyAboutWhoIsHeard(t *testing.T) {
	e := longSilence("n1")
	if ok, why := e.Beat(api.Beat{Host: "h1", Boot: "b1", Incarnation: 1, Beat: lease.Beat{Version: 7, FenceAfter: 10 * fleet.Second}}); !ok {
		t.Fatal(why)
	}
	l := &listener{
		node: "n1", ear: e, given: keeper{order.Open(5, 1)}, term: 5,
		peers: newPeers(Config{Node: "n1", NodeToken: "secret"}, "c", func() []api.NodeAddr {
			t.Error("the nodes are asked")
			return nil
		}, slog.New(slog.NewTextHandler(io.Discard, nil))),
		recovered: func() fleet.Duration { return 0 },
	}
	heard := l.listen(t.Context(), hostView(t))
	if need := 10*fleet.Second + lease.Margin(10*fleet.Second); len(heard.Hosts) != 0 || heard.Next < need-fleet.Second || heard.Next > need {
		t.Errorf("there is something to say of a host that is heard: %+v", heard)
	}
}
