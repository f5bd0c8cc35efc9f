package server

import (
	"bufio"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"footplate/controlplane/api"
	"footplate/fleet"
)

// eventStream reads server-sent events.
type eventStream struct {
	t    *testing.T
	in   *bufio.Reader
	stop func() error
}

func (n *node) events(t *testing.T, query string, header ...string) *eventStream {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, n.http.URL+"/v1/events"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer viewer")
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { res.Body.Close() })
	if res.StatusCode != 200 || res.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%s, %v", res.Status, res.Header)
	}
	return &eventStream{t, bufio.NewReader(res.Body), res.Body.Close}
}

// next returns the next event, and its id and kind as SSE has them.
func (e *eventStream) next() (id, kind string, ev api.Event) {
	e.t.Helper()
	for {
		line, err := e.in.ReadString('\n')
		if err != nil {
			e.t.Fatal(err)
		}
		line = strings.TrimSuffix(line, "\n")
		switch name, value, _ := strings.Cut(line, ": "); {
		case line == "" && ev.Line != nil:
			return id, kind, ev
		case name == "id":
			id = value
		case name == "event":
			kind = value
		case name == "data":
			if err := json.Unmarshal([]byte(value), &ev); err != nil {
				e.t.Fatal(err)
			}
		}
	}
}

func TestEventsGoOnWhereTheyWere(t *testing.T) {
	w := newWorld(t, 2)
	w.run("org set acme --slots 4")
	w.run("pool create linux")
	w.deliver()
	have := w.view.Load().Line
	if have < 3 {
		t.Fatalf("%d lines", have)
	}

	all := w.nodes[1].events(t, "?after=0")
	for n := range have {
		id, kind, ev := all.next()
		if kind != "line" || ev.Kind != kind || ev.Line.N != n+1 || id != fleet.AttemptID(n+1).String() {
			t.Fatalf("id %s, kind %s, %+v", id, kind, ev.Line)
		}
	}
	live := w.nodes[0].events(t, "")
	newest := w.nodes[0].events(t, "?last=1")
	if _, _, ev := newest.next(); ev.Line.N != have {
		t.Fatalf("%+v", ev.Line)
	}
	resumed := w.nodes[0].events(t, "", "Last-Event-ID", fleet.AttemptID(have-1).String())
	if _, _, ev := resumed.next(); ev.Line.N != have {
		t.Fatalf("%+v", ev.Line)
	}

	w.lead("") // the channel needs no leader to be read
	w.run("pool scale linux 3")
	w.deliver()
	for _, s := range []*eventStream{all, live, newest, resumed} {
		if _, _, ev := s.next(); ev.Line.N != have+1 || ev.Line.Op != "pool scale" {
			t.Fatalf("%+v", ev.Line)
		}
	}
	for _, wrong := range []string{"?after=x", "?last=-1"} {
		w.nodes[0].as("viewer", http.MethodGet, "/v1/events"+wrong, nil).problem(400, fleet.CodeInvalid)
	}
	w.nodes[0].as("viewer", http.MethodGet, "/v1/events", nil, "Last-Event-ID", "x").problem(400, fleet.CodeInvalid)
	w.nodes[0].as("agent", http.MethodGet, "/v1/events", nil).problem(403, fleet.CodeDenied)
}

func TestLineThatGrowsIsSentAgain(t *testing.T) {
	w := newWorld(t, 1)
	w.run("org set acme --slots 4")
	w.run("pool create linux")
	w.deliver()
	live := w.nodes[0].events(t, "")
	submit := func() {
		w.run("build submit --org acme --pool linux --run true")
		w.deliver()
	}
	submit()
	id, kind, first := live.next()
	if kind != "line" || first.Line.Count != 1 {
		t.Fatalf("%s %+v", kind, first.Line)
	}
	submit()
	again, kind, second := live.next()
	if kind != "again" || again != id || second.Line.Count != 2 || second.Line.N != first.Line.N {
		t.Fatalf("%s %s %+v", again, kind, second.Line)
	}
	// Who was away while it grew is told too.
	back := w.nodes[0].events(t, "", "Last-Event-ID", id)
	if _, kind, ev := back.next(); kind != "again" || ev.Line.Count != 2 {
		t.Fatalf("%s %+v", kind, ev.Line)
	}
}
