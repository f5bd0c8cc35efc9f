package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"footplate/controlplane/api"
	"footplate/controlplane/catalog"
	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
)

// node is something that answers as a node does.
type node struct {
	*httptest.Server
	mu   sync.Mutex
	asks []api.Request
}

// serve makes a node. answer is called for each request, with the command that
// it carries, if any.
func serve(t *testing.T, answer func(w http.ResponseWriter, r *http.Request, n int)) *node {
	t.Helper()
	n := new(node)
	n.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var q api.Request
		if b, err := io.ReadAll(r.Body); err == nil && len(b) > 0 {
			if err := json.Unmarshal(b, &q); err != nil {
				t.Error(err)
			}
		}
		n.mu.Lock()
		n.asks = append(n.asks, q)
		nth := len(n.asks)
		n.mu.Unlock()
		answer(w, r, nth)
	}))
	t.Cleanup(func() {
		n.CloseClientConnections()
		n.Close()
	})
	return n
}

func (n *node) asked() []api.Request {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.asks)
}

func refuse(w http.ResponseWriter, e *fleet.Error) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(e.Code.Meaning().HTTP)
	_ = json.NewEncoder(w).Encode(api.Problem{
		Type: "about:blank", Title: "x", Status: e.Code.Meaning().HTTP, Detail: e.Msg, Code: e.Code, Hint: e.Hint, Plan: e.Plan,
	})
}

func done(w http.ResponseWriter) { _ = json.NewEncoder(w).Encode(api.Reply{Text: "done", Entry: 7}) }

func hangUp() { panic(http.ErrAbortHandler) }

func connect(t *testing.T, retry time.Duration, addrs ...string) *Client {
	t.Helper()
	c, err := New(Config{Addrs: addrs, Token: "secret", Via: "test/1", Retry: retry})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// nobody returns an address at which nothing listens.
func nobody(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "http://" + l.Addr().String()
}

var scale = &catalog.PoolScaleArgs{Pool: "linux", Size: op.Size{N: 2, Relative: true}}

func code(t *testing.T, err error, want fleet.Code) *fleet.Error {
	t.Helper()
	e, ok := err.(*fleet.Error)
	if !ok || e.Code != want {
		t.Fatalf("error %#v (%v); want code %s", err, err, want)
	}
	return e
}

func TestAddresses(t *testing.T) {
	for _, addrs := range [][]string{nil, {""}, {"127.0.0.1:4600"}, {"ftp://x"}, {"http://ok", "http://"}, {"http://a b"}} {
		_, err := New(Config{Addrs: addrs})
		code(t, err, fleet.CodeInvalid)
	}
	given := []string{"http://n1:4600/"}
	if _, err := New(Config{Addrs: given}); err != nil || given[0] != "http://n1:4600/" {
		t.Fatalf("%v, %v", given, err)
	}
}

func TestDoSendsTheWholeCommand(t *testing.T) {
	n := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) {
		if r.Method != "POST" || r.URL.Path != "/v1/pool.scale" || r.Header.Get("Authorization") != "Bearer secret" || r.Header.Get(api.HeaderVia) != "test/1" {
			t.Errorf("%s %s %v", r.Method, r.URL, r.Header)
		}
		done(w)
	})
	r, err := connect(t, 0, n.URL).Do(t.Context(), catalog.PoolScale, scale,
		Options{Key: "k", Reason: "why", Incident: "i", Confirm: "yes", DryRun: true})
	if err != nil || r.Text != "done" || r.Entry != 7 {
		t.Fatalf("%+v, %v", r, err)
	}
	q := n.asked()[0]
	if string(q.Args) != `{"pool":"linux","size":"+2"}` || q.Key != "k" || q.Reason != "why" || q.Incident != "i" || q.Confirm != "yes" || !q.DryRun || q.Via != "test/1" {
		t.Fatalf("%+v", q)
	}
}

func TestErrorsComeBackAsTheyWereRaised(t *testing.T) {
	raised := &fleet.Error{
		Code: fleet.CodeConfirm, Msg: "not confirmed", Hint: "look",
		Plan: &fleet.Plan{Lines: []string{"a", "b"}, Hash: "h"},
	}
	n := serve(t, func(w http.ResponseWriter, _ *http.Request, _ int) { refuse(w, raised) })
	c := connect(t, 0, n.URL)
	_, err := c.Do(t.Context(), catalog.PoolScale, scale, Options{})
	if e := code(t, err, fleet.CodeConfirm); e.Msg != raised.Msg || e.Hint != raised.Hint || e.Plan == nil || e.Plan.Hash != "h" {
		t.Fatalf("%+v", e)
	}
	if len(n.asked()) != 1 {
		t.Fatalf("asked %d times", len(n.asked()))
	}
	// An error with the status of success.
	raised.Code = fleet.CodeApproval
	_, err = c.Do(t.Context(), catalog.PoolScale, scale, Options{})
	code(t, err, fleet.CodeApproval)
}

func TestNextAddressWhenOneIsDown(t *testing.T) {
	n := serve(t, func(w http.ResponseWriter, _ *http.Request, _ int) { done(w) })
	c := connect(t, 0, nobody(t), nobody(t), n.URL)
	for range 2 {
		if _, err := c.Do(t.Context(), catalog.PoolScale, scale, Options{}); err != nil {
			t.Fatal(err)
		}
	}
	if c.next.Load() != 2 {
		t.Fatal("it does not stay with what works")
	}
}

func TestNobodyAnswers(t *testing.T) {
	a, b := nobody(t), nobody(t)
	begun := time.Now()
	_, err := connect(t, time.Hour, a, b).Do(t.Context(), catalog.PoolScale, scale, Options{})
	e := code(t, err, fleet.CodeUnavailable)
	if !strings.Contains(e.Msg, a) || !strings.Contains(e.Msg, b) || !strings.Contains(e.Msg, "nothing was done") || time.Since(begun) > 2*refusedFor {
		t.Fatalf("%v after %s", e, time.Since(begun))
	}
}

func TestBrokenConnectionIsTriedAgainWithTheSameKey(t *testing.T) {
	n := serve(t, func(w http.ResponseWriter, _ *http.Request, nth int) {
		switch nth {
		case 1:
			hangUp()
		case 2:
			refuse(w, fleet.Unknownf("lost"))
		case 3:
			refuse(w, fleet.Unavailablef("no leader"))
		case 4: // an answer that is cut off
			w.Header().Set("Content-Length", "100")
			fmt.Fprint(w, `{"text":`)
		default:
			done(w)
		}
	})
	if _, err := connect(t, 0, n.URL).Do(t.Context(), catalog.PoolScale, scale, Options{}); err != nil {
		t.Fatal(err)
	}
	all := n.asked()
	if len(all) != 5 || all[0].Key == "" {
		t.Fatalf("asked %d times: %+v", len(all), all)
	}
	for _, q := range all {
		if q.Key != all[0].Key || string(q.Args) != string(all[0].Args) {
			t.Fatalf("%+v and %+v", all[0], q)
		}
	}
}

func TestUnknownOutcomeNamesTheKey(t *testing.T) {
	n := serve(t, func(w http.ResponseWriter, _ *http.Request, nth int) {
		if nth == 1 {
			hangUp()
		}
		refuse(w, fleet.Unavailablef("no leader: nothing was done"))
	})
	// The last try did nothing; the first may have.
	_, err := connect(t, 200*time.Millisecond, n.URL).Do(t.Context(), catalog.PoolScale, scale, Options{Key: "my-key"})
	if e := code(t, err, fleet.CodeUnknown); !strings.Contains(e.Hint, "my-key") {
		t.Fatalf("%+v", e)
	}
	n = serve(t, func(w http.ResponseWriter, _ *http.Request, _ int) { refuse(w, fleet.Unavailablef("no leader")) })
	_, err = connect(t, 100*time.Millisecond, n.URL).Do(t.Context(), catalog.PoolScale, scale, Options{})
	code(t, err, fleet.CodeUnavailable)
	// A read has no outcome that could be unknown.
	n = serve(t, func(http.ResponseWriter, *http.Request, int) { hangUp() })
	_, _, err = connect(t, 100*time.Millisecond, n.URL).Query(t.Context(), catalog.PoolList, &struct{}{}, false)
	code(t, err, fleet.CodeUnavailable)
}

func TestNodeThatNeverAnswersIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked []string
		c, err := New(Config{Addrs: []string{"http://stopped", "http://well"}, HTTP: &http.Client{
			Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				asked = append(asked, r.URL.Host)
				if r.URL.Host == "stopped" {
					<-r.Context().Done()
					return nil, r.Context().Err()
				}
				return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(`{"text":"done"}`)), Request: r}, nil
			}),
		}})
		if err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		if _, err := c.Do(t.Context(), catalog.PoolScale, scale, Options{}); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begun); took != answerWithin(0) || len(asked) != 2 {
			t.Fatalf("took %s, asked %v", took, asked)
		}
	})
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestContextEndsTheTrying(t *testing.T) {
	n := serve(t, func(w http.ResponseWriter, _ *http.Request, _ int) { refuse(w, fleet.Unavailablef("no leader")) })
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, _, err := connect(t, time.Hour, n.URL).Query(ctx, catalog.PoolList, &struct{}{}, false)
	code(t, err, fleet.CodeUnavailable)
}

func TestQuery(t *testing.T) {
	n := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) {
		if r.Method != "GET" || r.URL.Path != "/v1/build.list" {
			t.Errorf("%s %s", r.Method, r.URL)
		}
		if r.URL.Query().Get("stale") == "true" {
			w.Header().Set(api.HeaderStale, "3s")
		}
		fmt.Fprintf(w, "%q", r.URL.Query().Get("org")+" "+r.URL.Query().Get("limit"))
	})
	c := connect(t, 0, n.URL)
	raw, age, err := c.Query(t.Context(), catalog.BuildList, &catalog.BuildListArgs{Org: "a&b", Limit: 0}, true)
	if err != nil || string(raw) != `"a\u0026b 0"` && string(raw) != `"a&b 0"` || age != "3s" {
		t.Fatalf("%s, %q, %v", raw, age, err)
	}
	if _, age, err = c.Query(t.Context(), catalog.BuildList, &catalog.BuildListArgs{}, false); err != nil || age != "" {
		t.Fatalf("%q, %v", age, err)
	}
}

func TestSomethingElseAnswers(t *testing.T) {
	for status, want := range map[int]fleet.Code{404: fleet.CodeInternal, 502: fleet.CodeUnavailable} {
		n := serve(t, func(w http.ResponseWriter, _ *http.Request, _ int) {
			w.WriteHeader(status)
			fmt.Fprint(w, "<html>")
		})
		_, _, err := connect(t, 100*time.Millisecond, n.URL).Query(t.Context(), catalog.PoolList, &struct{}{}, false)
		code(t, err, want)
	}
}

func TestStream(t *testing.T) {
	n := serve(t, func(w http.ResponseWriter, r *http.Request, nth int) {
		switch nth {
		case 1:
			refuse(w, fleet.Unavailablef("no leader"))
			return
		case 2:
			if r.Method != "GET" || r.URL.Query().Get("build") != "7" || r.URL.Query().Get("follow") != "true" {
				t.Errorf("%s %s", r.Method, r.URL)
			}
		}
		w.Header().Set("Trailer", api.HeaderStreamError)
		fmt.Fprintln(w, "a line")
		w.(http.Flusher).Flush()
		switch nth {
		case 2:
			b, _ := json.Marshal(api.Problem{Code: fleet.CodeNotFound, Detail: "the rest is gone", Hint: "look"})
			w.Header().Set(api.HeaderStreamError, string(b))
		case 3:
			hangUp()
		}
	})
	c := connect(t, 0, n.URL)
	args := &catalog.BuildLogsArgs{Build: 7, Follow: true}
	for _, check := range []func(error){
		func(err error) {
			if e := code(t, err, fleet.CodeNotFound); e.Hint != "look" {
				t.Errorf("%+v", e)
			}
		},
		func(err error) {
			if !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%v", err)
			}
		},
		func(err error) {
			if err != nil {
				t.Error(err)
			}
		},
	} {
		r, err := c.Stream(t.Context(), catalog.BuildLogs, args)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if string(b) != "a line\n" {
			t.Errorf("%q", b)
		}
		check(err)
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestStreamThatLeavesAnEntry(t *testing.T) {
	n := serve(t, func(w http.ResponseWriter, r *http.Request, nth int) {
		if nth == 1 {
			hangUp()
		}
		if r.Method != "POST" {
			t.Errorf("%s %s", r.Method, r.URL)
		}
		fmt.Fprint(w, "snapshot")
	})
	r, err := connect(t, 0, n.URL).Stream(t.Context(), catalog.ClusterSnapshotSave, &struct{}{}, Options{Reason: "backup"})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if b, err := io.ReadAll(r); err != nil || string(b) != "snapshot" {
		t.Fatalf("%q, %v", b, err)
	}
	all := n.asked()
	if len(all) != 2 || all[0].Key == "" || all[1].Key != all[0].Key || all[1].Reason != "backup" {
		t.Fatalf("%+v", all)
	}
}

func TestEvents(t *testing.T) {
	n := serve(t, func(w http.ResponseWriter, r *http.Request, nth int) {
		if nth == 1 {
			refuse(w, fleet.Unavailablef("busy"))
			return
		}
		if r.Header.Get("Last-Event-ID") != "4" {
			t.Errorf("%v", r.Header)
		}
		fmt.Fprint(w, ": hello\n\n")
		for i := uint64(5); i < 7; i++ {
			b, _ := json.Marshal(api.Event{Kind: "line", Line: &state.Line{N: i, Text: strings.Repeat("long ", 40_000)}})
			fmt.Fprintf(w, "id: %d\nevent: line\ndata: %s\n\n", i, b)
		}
	})
	var got []uint64
	var last error
	for e, err := range connect(t, 0, n.URL).Events(t.Context(), 4) {
		if err != nil {
			last = err
			continue
		}
		got = append(got, e.Line.N)
	}
	if !slices.Equal(got, []uint64{5, 6}) {
		t.Fatalf("%v", got)
	}
	code(t, last, fleet.CodeUnavailable)
}
