package server

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"footplate/controlplane/api"
	"footplate/fleet"
)

// serve answers on a port as a node does, with at most so many connections.
func (n *node) serve(t *testing.T, most int) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n.server.maxConns = most
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.server.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// acknowledged runs an operation over a connection of its own, and fails unless
// it is done within a second or two.
func acknowledged(t *testing.T, addr string) {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 2 * time.Second}
	req, err := http.NewRequest(http.MethodPost, "http://"+addr+"/v1/org.set", strings.NewReader(`{"args":{"org":"acme","slots":4}}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer operator")
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, _ := io.ReadAll(res.Body); res.StatusCode != http.StatusOK {
		t.Fatalf("an operation is answered with %s: %s", res.Status, b)
	}
}

// closed reports whether the node closes a connection within a time.
func closed(c net.Conn, within time.Duration) bool {
	_ = c.SetReadDeadline(time.Now().Add(within))
	_, err := io.Copy(io.Discard, c)
	var late net.Error
	return err == nil || !asTimeout(err, &late)
}

func asTimeout(err error, into *net.Error) bool {
	e, ok := err.(net.Error)
	*into = e
	return ok && e.Timeout()
}

// TestIdleConnections: 5000 connections that say nothing keep nobody out, and no
// more stay open than may.
func TestIdleConnections(t *testing.T) {
	addr := newWorld(t, 1).nodes[0].serve(t, 1000)
	conns := make([]net.Conn, 5000)
	for i := range conns {
		conns[i] = dial(t, addr)
	}
	acknowledged(t, addr)
	if !closed(conns[0], 2*time.Second) {
		t.Error("the connection that waited longest is still open")
	}
	// Whoever is being answered stays, though it came before all of the others.
	if closed(conns[len(conns)-1], 10*time.Millisecond) {
		t.Error("the newest connection was closed")
	}
}

// TestStreamOutlivesTheCrowd: who is being answered is not pushed out.
func TestStreamOutlivesTheCrowd(t *testing.T) {
	w := newWorld(t, 1)
	addr := w.nodes[0].serve(t, 50)
	c := dial(t, addr)
	fmt.Fprintf(c, "GET /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer viewer\r\n\r\n")
	in := bufio.NewReader(c)
	if line, err := in.ReadString('\n'); err != nil || !strings.Contains(line, "200") {
		t.Fatalf("%q, %v", line, err)
	}
	for range 200 {
		dial(t, addr)
	}
	acknowledged(t, addr)
	w.run("org set beta --slots 1")
	w.deliver()
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			t.Fatal("the stream was cut off:", err)
		}
		if strings.Contains(line, "beta") {
			return
		}
	}
}

// TestCrowdTakesTurns: agents that ask in turn, and are a few too many, do not
// each lose their connection every time.
func TestCrowdTakesTurns(t *testing.T) {
	t.Parallel()
	const most, agents, rounds = 90, 100, 20
	c := newCrowd(most, new(atomic.Int64))
	conns := make([]*countedConn, agents)
	dials := 0
	for range rounds {
		for i := range conns {
			if conns[i] == nil || conns[i].closed {
				if conns[i] != nil {
					c.note(conns[i], http.StateClosed)
				}
				conns[i] = new(countedConn)
				c.note(conns[i], http.StateNew)
				dials++
			}
			c.note(conns[i], http.StateActive)
			c.note(conns[i], http.StateIdle)
		}
	}
	if dials > agents*rounds/2 {
		t.Errorf("%d agents dialed %d times in %d rounds, where %d connections are allowed", agents, dials, rounds, most)
	}
	if c.open > agents {
		t.Errorf("%d connections are counted", c.open)
	}
}

// countedConn is a connection of which only the end matters.
type countedConn struct {
	net.Conn
	closed bool
}

func (c *countedConn) Close() error { c.closed = true; return nil }

// TestSlowloris: requests that never end are cut off, and keep nobody out.
func TestSlowloris(t *testing.T) {
	t.Parallel()
	addr := newWorld(t, 1).nodes[0].serve(t, maxConns)
	conns := make([]net.Conn, 1000)
	for i := range conns {
		conns[i] = dial(t, addr)
		fmt.Fprintf(conns[i], "POST /v1/org.set HTTP/1.1\r\nHost: x\r\nX-Slow: ")
	}
	acknowledged(t, addr)
	if !closed(conns[0], 8*time.Second) {
		t.Error("a header that never ends is waited for")
	}
}

// TestLargeHeaders: 10 MB of headers are not read.
func TestLargeHeaders(t *testing.T) {
	t.Parallel()
	addr := newWorld(t, 1).nodes[0].serve(t, maxConns)
	c := dial(t, addr)
	fmt.Fprintf(c, "GET /v1/pool.list HTTP/1.1\r\nHost: x\r\n")
	line := "X-Large: " + strings.Repeat("x", 1000) + "\r\n"
	sent := 0
	for sent < 10<<20 {
		n, err := io.WriteString(c, line)
		if sent += n; err != nil {
			break // the node has closed it
		}
	}
	if sent >= 10<<20 {
		t.Errorf("the node has taken %d bytes of headers", sent)
	}
	acknowledged(t, addr)
}

// TestEndlessBody: a body that is too large, or never ends, is not read for ever.
func TestEndlessBody(t *testing.T) {
	t.Parallel()
	n := newWorld(t, 1).nodes[0]
	n.server.readTimeout = time.Second
	addr := n.serve(t, maxConns)
	for name, size := range map[string]string{"with its length": "Content-Length: 1099511627776", "in chunks": "Transfer-Encoding: chunked"} {
		c := dial(t, addr)
		fmt.Fprintf(c, "POST /v1/org.set HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer operator\r\n%s\r\n\r\n", size)
		piece := strings.Repeat("x", 64<<10)
		if strings.HasPrefix(size, "Transfer") {
			piece = fmt.Sprintf("%x\r\n%s\r\n", len(piece), piece)
		}
		sent := 0
		_ = c.SetWriteDeadline(time.Now().Add(10 * time.Second))
		for sent < 64<<20 {
			n, err := io.WriteString(c, piece)
			if sent += n; err != nil {
				break
			}
		}
		if sent >= 64<<20 {
			t.Errorf("%s: the node reads on after %d bytes", name, sent)
		}
		acknowledged(t, addr)
	}
	// A body that comes to a stop.
	c := dial(t, addr)
	fmt.Fprintf(c, "POST /v1/org.set HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer operator\r\nContent-Length: 100\r\n\r\n{")
	acknowledged(t, addr)
	if !closed(c, 5*time.Second) {
		t.Error("a body that stopped is waited for")
	}
}

// TestHeaders: what a browser is told, and the id that an error and the log share.
func TestHeaders(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	n := w.nodes[0]
	n.server.cfg.Page = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Security-Policy", "the page's own")
		io.WriteString(w, "the page")
	})
	n.server.cfg.Slack = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "slack") })
	n.server.routes()
	for path, want := range map[string]struct {
		status int
		body   string
		policy string
	}{
		"/":              {200, "the page", "the page's own"},
		"/builds/1":      {200, "the page", "the page's own"},
		"/slack/events":  {200, "slack", "default-src 'none'"},
		"/healthz":       {200, "ok", "default-src 'none'"},
		"/v1/pool.list":  {200, "[]", "default-src 'none'"},
		"/v1/pool.paint": {404, "there is no operation", "default-src 'none'"},
		"/v1/a/b":        {404, "there is nothing at /v1/a/b", "default-src 'none'"},
	} {
		a := n.as("viewer", http.MethodGet, path, nil)
		h := a.header
		if a.status != want.status || !strings.Contains(string(a.body), want.body) || !strings.HasPrefix(h.Get("Content-Security-Policy"), want.policy) {
			t.Errorf("%s: %d %s, %v", path, a.status, a.body, h)
		}
		if h.Get("X-Content-Type-Options") != "nosniff" || h.Get("X-Frame-Options") != "DENY" || h.Get("Referrer-Policy") != "no-referrer" {
			t.Errorf("%s lacks a header: %v", path, h)
		}
		if id := h.Get(api.HeaderRequest); id == "" || want.status == 404 && !strings.Contains(string(a.body), `"request":"`+id+`"`) {
			t.Errorf("%s: request %q, %s", path, id, a.body)
		}
	}
	if p := n.as("", http.MethodGet, "/v1/pool.list", nil).problem(401, fleet.CodeDenied); p.Request == "" {
		t.Error("a refusal has no id")
	}
}
