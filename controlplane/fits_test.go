package controlplane

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"footplate/controlplane/api"
	"footplate/controlplane/catalog"
	"footplate/controlplane/state"
	"footplate/fleet"
)

// TestNewerThanTheSlowestNode: what another node does not know is refused at the
// door, until that node has been upgraded; also while it is away.
func TestNewerThanTheSlowestNode(t *testing.T) {
	ops := catalog.All()
	old := api.Operations(ops.Versions())
	delete(old, "pool scale")
	st := api.PeerStatus{Node: "n2", Cluster: "c", Version: "v0.9", Catalog: "an older one"}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/peer.status":
			_ = json.NewEncoder(w).Encode(st)
		case "/v1/peer.operations":
			_ = json.NewEncoder(w).Encode(old)
		}
	}))
	n2 := api.NodeAddr{Node: "n2", API: srv.URL}
	log := slog.New(slog.DiscardHandler)
	p := newPeers(Config{Node: "n1"}, "c", func() []api.NodeAddr { return []api.NodeAddr{{Node: "n1"}, n2} }, log)
	p.catalog = ops.Fingerprint()
	m := newMachine(ops, nil, func([]fleet.Entry) {})
	m.fits = p.fits

	try := func(name string) error {
		if errs := m.Try(1, []state.Command{{Op: name, Ver: 1, By: "alice", Role: fleet.Operator, Args: json.RawMessage("{}")}}); errs != nil {
			return errs[0]
		}
		return nil
	}
	if err := try("pool scale"); err != nil {
		t.Fatalf("before another node was heard: %v", err)
	}
	p.ask(t.Context(), n2)
	refused := func(when string) {
		t.Helper()
		err := try("pool scale")
		if fleet.CodeOf(err) != fleet.CodeConflict || !strings.Contains(err.Error(), `node "n2" (v0.9)`) {
			t.Errorf("%s: an operation that n2 does not know: %v", when, err)
		}
		if err := try("org set"); err != nil {
			t.Errorf("%s: an operation that it knows: %v", when, err)
		}
	}
	refused("n2 is older")
	srv.CloseClientConnections()
	p.ask(t.Context(), api.NodeAddr{Node: "n2", API: "http://127.0.0.1:1"})
	refused("n2 is away")
	old["pool scale"], st.Catalog = 0, "another older one"
	p.ask(t.Context(), n2)
	refused("n2 has an older version of it")
	st.Catalog, st.Version = p.catalog, "v1.0"
	p.ask(t.Context(), n2)
	if err := try("pool scale"); err != nil {
		t.Errorf("after the upgrade of n2: %v", err)
	}
	srv.Close()
}
