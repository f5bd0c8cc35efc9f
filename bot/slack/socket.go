package slack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"footplate/bot"
	"footplate/fleet"
	"footplate/fleet/fault"

	"github.com/gorilla/websocket"
)

// The measures of Socket Mode.
const (
	helloTime = 10 * time.Second // from the dialling to "hello"
	silence   = 30 * time.Second // Slack pings more often than this
	linger    = time.Minute      // an announced end is waited for, no longer
	steady    = 2 * time.Second  // a socket that lived as long was a good one
	maxWait   = 10 * time.Second // between two tries: Slack allows about 50 a minute
	maxAck    = 20<<10 - 512     // Slack drops an acknowledgement of 20 KB in silence
	maxAtOnce = 256              // envelopes in hand; more are left to Slack
	maxFrame  = 1 << 20
)

// frame is what Slack writes to a socket.
type frame struct {
	Type     string          `json:"type"`
	Reason   string          `json:"reason"`
	Envelope string          `json:"envelope_id"`
	Payload  json.RawMessage `json:"payload"`
	Retry    int             `json:"retry_attempt"`
	Num      int             `json:"num_connections"`
}

// link is one socket.
type link struct {
	conn    *websocket.Conn
	write   sync.Mutex
	leaving chan struct{} // closed when another should take its place
	reason  string        // why; set before leaving is closed
	once    sync.Once
	opened  time.Time
}

func (l *link) leave(reason string) {
	l.once.Do(func() {
		l.reason = reason
		close(l.leaving)
	})
}

func (l *link) send(v any) error {
	l.write.Lock()
	defer l.write.Unlock()
	if err := l.conn.SetWriteDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return err
	}
	return l.conn.WriteJSON(v)
}

// links are the open sockets.
type links struct {
	mu   sync.Mutex
	open map[*link]bool
}

func (ls *links) add(l *link) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.open == nil {
		ls.open = make(map[*link]bool)
	}
	ls.open[l] = true
}

func (ls *links) remove(l *link) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	delete(ls.open, l)
}

func (ls *links) count() int {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	return len(ls.open)
}

// other returns another open socket, nil when there is none.
func (ls *links) other(than *link) *link {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for l := range ls.open {
		if l != than {
			return l
		}
	}
	return nil
}

// runSockets keeps the sockets open until ctx ends. What came over them goes on under
// life.
func (s *Slack) runSockets(ctx, life context.Context, b *bot.Bot) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var keepers, work sync.WaitGroup
	hands := make(chan struct{}, maxAtOnce)
	for range s.cfg.Sockets {
		keepers.Go(func() {
			if err := s.keep(ctx, life, b, &work, hands); err != nil {
				cancel(err)
			}
		})
	}
	keepers.Wait()
	// What was taken may still be acknowledged.
	done := make(chan struct{})
	go func() {
		defer close(done)
		work.Wait()
	}()
	select {
	case <-done:
	case <-time.After(stopTime):
	}
	s.links.mu.Lock()
	for l := range s.links.open {
		_ = l.conn.Close()
	}
	s.links.mu.Unlock()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// keep keeps one socket open: when it leaves, the next is dialled while it is still
// read. An error is one that waiting will not mend.
func (s *Slack) keep(ctx, life context.Context, b *bot.Bot, work *sync.WaitGroup, hands chan struct{}) error {
	wait := time.Duration(0)
	for ctx.Err() == nil {
		// Sockets that were cut together are not dialled together.
		if wait > 0 && pause(ctx, wait/2+rand.N(wait/2+1)) != nil {
			return nil
		}
		l, err := s.dial(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if e := fleet.AsError(err); e.Code == fleet.CodeInvalid {
				return e
			}
			wait = min(max(2*wait, 250*time.Millisecond), maxWait)
			s.log.Warn("no socket to Slack; trying again", "err", err, "wait", wait.String())
			continue
		}
		s.links.add(l)
		go func() {
			defer s.links.remove(l)
			s.read(life, b, l, work, hands)
		}()
		select {
		case <-ctx.Done():
			return nil // runSockets closes it, when what came over it is acknowledged
		case <-l.leaving:
		}
		switch l.reason {
		case "link_disabled":
			_ = l.conn.Close()
			wait = 3 * maxWait
			s.log.Error("Socket Mode is turned off for the app", "hint", "turn it on, on the app's page")
		case "too_many_websockets":
			_ = l.conn.Close()
			wait = max(2*wait, 5*time.Second)
			s.log.Error("too many sockets are open for this app token", "hint", "is another bot running with it?")
		case "warning", "refresh_requested":
			wait = 0
			time.AfterFunc(linger, func() { _ = l.conn.Close() })
		default:
			_ = l.conn.Close()
			// Slack was there a moment ago: it is not left alone for long.
			if wait = min(max(2*wait, 20*time.Millisecond), time.Second); time.Since(l.opened) > steady {
				wait = 0
			}
			s.log.Warn("a socket to Slack was lost", "reason", l.reason)
		}
	}
	return nil
}

// dial opens a socket and waits for Slack's "hello".
func (s *Slack) dial(ctx context.Context) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, helloTime)
	defer cancel()
	_, at, err := s.web.StartSocketModeContext(ctx)
	if err != nil {
		return nil, wrap(err)
	}
	dialer := websocket.Dialer{HandshakeTimeout: helloTime}
	conn, _, err := dialer.DialContext(ctx, at, nil)
	if err != nil {
		return nil, fleet.Unknownf("the socket could not be opened: %s", cause(err)) // the URL is a secret
	}
	conn.SetReadLimit(maxFrame)
	// ReadJSON knows nothing of contexts.
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	var f frame
	_ = conn.SetReadDeadline(time.Now().Add(helloTime))
	err = conn.ReadJSON(&f)
	if !stop() || err != nil || f.Type != "hello" {
		_ = conn.Close()
		if err == nil {
			err = fmt.Errorf("it began with %q %s", f.Type, f.Reason)
		}
		return nil, fleet.Unknownf("Slack did not greet on the socket: %s", err)
	}
	s.log.Info("socket to Slack is open", "connections", f.Num)
	return &link{conn: conn, leaving: make(chan struct{}), opened: time.Now()}, nil
}

// read reads a socket until it is closed.
func (s *Slack) read(life context.Context, b *bot.Bot, l *link, work *sync.WaitGroup, hands chan struct{}) {
	defer l.conn.Close()
	alive := func() error { return l.conn.SetReadDeadline(time.Now().Add(silence)) }
	l.conn.SetPingHandler(func(data string) error {
		if err := alive(); err != nil {
			return err
		}
		err := l.conn.WriteControl(websocket.PongMessage, []byte(data), time.Now().Add(time.Second))
		var closing *websocket.CloseError
		if errors.As(err, &closing) || errors.Is(err, websocket.ErrCloseSent) {
			return nil
		}
		return err
	})
	for {
		if err := alive(); err != nil {
			l.leave(err.Error())
			return
		}
		_, raw, err := l.conn.ReadMessage()
		if err != nil {
			l.leave(err.Error())
			return
		}
		var f frame
		if err := json.Unmarshal(raw, &f); err != nil {
			s.log.Warn("a frame of Slack cannot be read", "err", err)
			continue
		}
		switch {
		case f.Type == "disconnect":
			l.leave(f.Reason)
		case f.Envelope != "":
			select {
			case hands <- struct{}{}:
			default:
				s.log.Error("too much comes from Slack at once; it is left to be delivered again")
				continue
			}
			work.Go(func() {
				defer func() { <-hands }()
				s.envelope(life, b, l, f)
			})
		}
	}
}

// envelope does what came in an envelope, and acknowledges it: not what shall be
// delivered again.
func (s *Slack) envelope(life context.Context, b *bot.Bot, l *link, f frame) {
	fault.Here(fault.BotReceived)
	answer, err := s.take(life, b, f.Type, f.Payload, f.Retry)
	switch code := fleet.CodeOf(err); {
	case code == fleet.CodeUnavailable && f.Type == kindEvent:
		s.log.Warn("an event is left to be delivered again", "err", err)
		return
	case code == fleet.CodeUnavailable:
		answer, _ = private(bot.Post{Text: "error: " + fleet.AsError(err).Msg})
	case err != nil:
		s.log.Warn("an envelope of Slack cannot be read", "kind", f.Type, "err", err)
	}
	ack := map[string]any{"envelope_id": f.Envelope}
	if len(answer) > 0 && f.Type == kindSlash {
		if len(answer) > maxAck {
			answer, _ = private(bot.Post{Text: "the answer is too long for Slack: use the shell"})
		}
		ack["payload"] = json.RawMessage(answer)
	}
	fault.Here(fault.BotBeforeAck)
	defer fault.Here(fault.BotAfterAck)
	if err := l.send(ack); err != nil {
		_ = l.conn.Close() // so that another takes its place
		// Slack takes it over any other socket too.
		if o := s.links.other(l); o != nil && o.send(ack) == nil {
			return
		}
		s.log.Warn("an envelope was not acknowledged", "kind", f.Type, "err", err)
	}
}
