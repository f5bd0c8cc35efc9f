package slacktest

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// maxConnections is how many sockets an app may have open (docs).
const maxConnections = 10

// maxAck is from when on Slack drops an acknowledgement in silence (slack-go).
const maxAck = 20 << 10

// sockets are the open ones.
type sockets struct {
	mu      sync.Mutex
	open    []*socket
	tickets map[string]bool
	acks    map[string]chan json.RawMessage
	n       int
	lost    int // envelopes that went down with their socket
}

type socket struct {
	conn  *websocket.Conn
	write sync.Mutex
	gone  chan struct{} // closed with the socket
	once  sync.Once
	last  bool // nothing new is written to it
}

func (c *socket) send(v any) error {
	c.write.Lock()
	defer c.write.Unlock()
	_ = c.conn.SetWriteDeadline(time.Now().Add(time.Second))
	return c.conn.WriteJSON(v)
}

func (c *socket) cut() {
	c.once.Do(func() { close(c.gone) })
	_ = c.conn.NetConn().Close()
}

func (ss *sockets) ticket() string {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if ss.tickets == nil {
		ss.tickets = make(map[string]bool)
		ss.acks = make(map[string]chan json.RawMessage)
	}
	ss.n++
	t := fmt.Sprintf("ticket-%d", ss.n)
	ss.tickets[t] = true
	return t
}

// link opens a socket; its URL is good once.
func (s *Server) link(w http.ResponseWriter, r *http.Request) {
	ss := &s.sockets
	t := r.URL.Query().Get("ticket")
	s.mu.Lock()
	down := s.outage
	s.mu.Unlock()
	ss.mu.Lock()
	ok := ss.tickets[t] && !down
	delete(ss.tickets, t)
	ss.mu.Unlock()
	if !ok {
		http.Error(w, "the ticket is used", http.StatusForbidden)
		return
	}
	// Go clients send Origin: https://api.slack.com (slack-go).
	up := websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }}
	conn, err := up.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	c := &socket{conn: conn, gone: make(chan struct{})}
	ss.mu.Lock()
	if len(ss.open) >= maxConnections {
		ss.mu.Unlock()
		_ = c.send(map[string]any{"type": "disconnect", "reason": "too_many_websockets"})
		_ = conn.Close()
		return
	}
	ss.open = append(ss.open, c)
	n := len(ss.open)
	ss.mu.Unlock()
	_ = c.send(map[string]any{
		"type": "hello", "num_connections": n, "connection_info": map[string]any{"app_id": App},
		"debug_info": map[string]any{"host": "applink-test", "build_number": 1, "approximate_connection_time": 3600},
	})
	go s.ping(c)
	ss.read(c)
	c.cut()
	ss.mu.Lock()
	ss.open = slices.DeleteFunc(ss.open, func(o *socket) bool { return o == c })
	ss.mu.Unlock()
}

func (s *Server) ping(c *socket) {
	tick := time.NewTicker(s.cfg.Ping)
	defer tick.Stop()
	for {
		if err := c.conn.WriteControl(websocket.PingMessage, []byte("Ping from slacktest"), time.Now().Add(time.Second)); err != nil {
			return
		}
		select {
		case <-tick.C:
		case <-c.gone:
			return
		}
	}
}

// read takes acknowledgements: {"envelope_id": ..., "payload": ...}. slack-go leaves
// an empty payload out, bolt sends {}.
func (ss *sockets) read(c *socket) {
	for {
		_, b, err := c.conn.ReadMessage()
		if err != nil {
			return
		}
		var a struct {
			Envelope string          `json:"envelope_id"`
			Payload  json.RawMessage `json:"payload"`
		}
		if len(b) >= maxAck || json.Unmarshal(b, &a) != nil {
			continue
		}
		ss.mu.Lock()
		ch := ss.acks[a.Envelope]
		delete(ss.acks, a.Envelope)
		ss.mu.Unlock()
		if ch != nil {
			ch <- a.Payload
		}
	}
}

// deliver writes an envelope to any one of the sockets, and waits for its
// acknowledgement, which may come over another. What goes down with its socket is
// lost, as it is in the real service.
func (ss *sockets) deliver(e envelope, within time.Duration) ([]byte, error) {
	timer := time.NewTimer(within)
	defer timer.Stop()
	ss.mu.Lock()
	live := slices.DeleteFunc(slices.Clone(ss.open), func(c *socket) bool { return c.last })
	if len(live) == 0 {
		ss.mu.Unlock()
		if e.kind != "events_api" {
			<-timer.C
		}
		return nil, errors.New("no socket is open")
	}
	c := live[rand.IntN(len(live))]
	ss.n++
	id := fmt.Sprintf("envelope-%d", ss.n)
	ack := make(chan json.RawMessage, 1)
	ss.acks[id] = ack
	ss.mu.Unlock()
	frame := map[string]any{"envelope_id": id, "type": e.kind, "accepts_response_payload": e.reply, "payload": e.payload}
	if e.kind == "events_api" {
		frame["retry_attempt"], frame["retry_reason"] = e.retry, e.why
	}
	if c.send(frame) != nil {
		c.cut() // a socket that cannot be written to is none
	}
	select {
	case p := <-ack:
		return p, nil
	case <-timer.C:
		return nil, ss.forget(id, ErrTimeout)
	case <-c.gone:
	}
	// The acknowledgement may have been read before the end, or come over another
	// socket. Of an event Slack finds out soon; whoever gave a command waits.
	rest := within
	if e.kind == "events_api" {
		rest = min(within, 50*time.Millisecond)
	}
	late := time.NewTimer(rest)
	defer late.Stop()
	select {
	case p := <-ack:
		return p, nil
	case <-timer.C:
	case <-late.C:
	}
	return nil, ss.forget(id, errors.New("the socket was cut"))
}

func (ss *sockets) forget(id string, err error) error {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	delete(ss.acks, id)
	ss.lost++
	return err
}

// Sockets counts the open sockets.
func (s *Server) Sockets() int {
	s.sockets.mu.Lock()
	defer s.sockets.mu.Unlock()
	return len(s.sockets.open)
}

// Unacknowledged counts the envelopes that were written to a socket, or meant for
// one, and never acknowledged.
func (s *Server) Unacknowledged() int {
	s.sockets.mu.Lock()
	defer s.sockets.mu.Unlock()
	return s.sockets.lost
}

// Cut cuts one of the sockets, without a word. It reports whether there was one.
func (s *Server) Cut() bool {
	s.sockets.mu.Lock()
	defer s.sockets.mu.Unlock()
	if len(s.sockets.open) == 0 {
		return false
	}
	s.sockets.open[rand.IntN(len(s.sockets.open))].cut()
	return true
}

// Refresh tells one of the sockets that it will be closed, as Slack does every few
// hours with the reason "warning" (about 10 s ahead) or "refresh_requested". For
// linger it is used like the others; then nothing new is written to it, and when what
// was written must have been acknowledged it is closed.
func (s *Server) Refresh(reason string, linger time.Duration) bool {
	s.sockets.mu.Lock()
	defer s.sockets.mu.Unlock()
	if len(s.sockets.open) == 0 {
		return false
	}
	c := s.sockets.open[rand.IntN(len(s.sockets.open))]
	_ = c.send(map[string]any{"type": "disconnect", "reason": reason, "debug_info": map[string]any{"host": "applink-test"}})
	time.AfterFunc(linger, func() {
		s.sockets.mu.Lock()
		c.last = true
		s.sockets.mu.Unlock()
		time.AfterFunc(s.cfg.AckWithin, c.cut)
	})
	return true
}

func (ss *sockets) cutAll() {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	for _, c := range ss.open {
		c.cut()
	}
}

func (ss *sockets) closeAll() { ss.cutAll() }
