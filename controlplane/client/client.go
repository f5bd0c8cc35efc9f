// Package client is the Go client of footplate: it finds a node that answers,
// tries again what can be tried again, and gives errors back as they were
// raised.
//
// A command is tried again with the same key, so that it acts once, whatever
// broke on the way. Each try is given up after a while, longer from try to try:
// a node that was stopped or cut off takes a connection and never answers.
package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"footplate/controlplane/api"
	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"

	"github.com/google/uuid"
)

// Config says how to reach the cluster.
type Config struct {
	Addrs []string // base URLs of nodes; any of them will do
	Token string
	Via   string       // surface and version: "cli/0.1.0"
	HTTP  *http.Client // optional
	// Dial makes TLS connections, to https:// addresses, in the place of HTTP's:
	// certs.Keeper has it. Optional.
	Dial  func(ctx context.Context, network, addr string) (net.Conn, error)
	Retry time.Duration // how long a call is tried again; DefaultRetry when zero
}

// DefaultRetry outlasts the change of a leader.
const DefaultRetry = 8 * time.Second

// refusedFor is how long a call is tried again while no address takes a
// connection at all: then it is more likely that nothing runs there.
const refusedFor = 2 * time.Second

// answerWithin is how long the n-th try waits for the beginning of an answer.
func answerWithin(n int) time.Duration { return min(2500*time.Millisecond<<min(n, 4), 30*time.Second) }

// Client calls the nodes of one cluster. Its methods may be called by any
// number of goroutines at once.
type Client struct {
	cfg  Config
	by   fleet.Principal // for whom; the bearer of the token when empty
	http *http.Client
	next *atomic.Int64 // index of the address to try first
}

// For returns a client that asks for p: for a bot, whose token may act for the
// people of its surface. Both share their connections.
func (c *Client) For(p fleet.Principal) *Client {
	other := *c
	other.by = p
	return &other
}

// New checks the addresses. It calls nobody.
func New(cfg Config) (*Client, error) {
	if len(cfg.Addrs) == 0 {
		return nil, fleet.Invalidf("no address of the control plane is given").WithHint("set FOOTPLATE_ADDR, for example to http://127.0.0.1:4600")
	}
	cfg.Addrs = slices.Clone(cfg.Addrs)
	for i, a := range cfg.Addrs {
		u, err := url.Parse(a)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return nil, fleet.Invalidf("address %q is not a URL of a node", a).WithHint("for example http://127.0.0.1:4600")
		}
		cfg.Addrs[i] = strings.TrimRight(a, "/")
	}
	if cfg.Retry == 0 {
		cfg.Retry = DefaultRetry
	}
	c := &Client{cfg: cfg, http: cfg.HTTP, next: new(atomic.Int64)}
	if c.http == nil {
		c.http = &http.Client{Transport: &http.Transport{
			DialContext: (&net.Dialer{Timeout: 2 * time.Second}).DialContext, DialTLSContext: cfg.Dial,
			MaxIdleConnsPerHost: 256, IdleConnTimeout: time.Minute,
		}}
	}
	return c, nil
}

// Options go with an operation that changes something; see api.Request.
type Options struct {
	Key, Reason, Incident, Confirm string
	DryRun                         bool
	Repeat                         state.Repeat
	Stale                          bool // of a stream that leaves no entry: without a quorum, from whatever the node has
}

// Stale says how old a stale answer may be: the time since the node last heard
// a leader. It is empty for any other answer.
type Stale string

// Do asks for an operation that changes something. With CodeUnavailable nothing
// was done; with CodeUnknown it may have been, and the hint names the key to
// ask again with.
func (c *Client) Do(ctx context.Context, o *op.Op, args any, opts Options) (api.Reply, error) {
	raw, err := o.Encode(args)
	if err != nil {
		return api.Reply{}, err
	}
	body, key, err := c.request(o, raw, opts)
	if err != nil {
		return api.Reply{}, err
	}
	var reply api.Reply
	tries := 0
	err = c.command(ctx, o, key, func(call call) error {
		reply = api.Reply{}
		tries++
		b, _, err := c.ask(call, http.MethodPost, "/v1/"+o.Path(), body)
		if err != nil {
			return err
		}
		if err := json.Unmarshal(b, &reply); err != nil {
			return fleet.Unknownf("the answer of %s cannot be read: %s", call.addr, err)
		}
		return nil
	})
	// What was asked for twice here is no duplicate of the caller's.
	reply.Duplicate = reply.Duplicate && tries == 1
	return reply, err
}

// request returns the body of a command, and its key.
func (c *Client) request(o *op.Op, args json.RawMessage, opts Options) (body []byte, key string, err error) {
	if opts.Key == "" {
		opts.Key = uuid.Must(uuid.NewV7()).String()
	}
	body, err = json.Marshal(api.Request{
		Args: args, Key: opts.Key, Reason: opts.Reason, Incident: opts.Incident,
		DryRun: opts.DryRun, Confirm: opts.Confirm, Via: c.cfg.Via, Repeat: opts.Repeat,
	})
	if err != nil {
		return nil, "", fleet.Invalidf("arguments of %s: %s", o.Name, err)
	}
	return body, opts.Key, nil
}

// command tries f until it is known what came of a command.
func (c *Client) command(ctx context.Context, o *op.Op, key string, f func(call) error) error {
	doubt := false
	err := c.retry(ctx, func(call call) error {
		err := f(call)
		doubt = doubt || fleet.CodeOf(err) == fleet.CodeUnknown
		return err
	})
	if c := fleet.CodeOf(err); c == fleet.CodeUnknown || c == fleet.CodeUnavailable && doubt {
		return fleet.Unknownf("it is not known whether %s was done", o.Name).
			WithHint("ask again with --idempotency-key %s: it never acts twice", key)
	}
	return err
}

// read tries f, which changes nothing, until it gives an answer.
func (c *Client) read(ctx context.Context, f func(call) error) error {
	err := c.retry(ctx, f)
	if e := fleet.AsError(err); e != nil && e.Code == fleet.CodeUnknown {
		return &fleet.Error{Code: fleet.CodeUnavailable, Msg: e.Msg, Hint: "try again"}
	}
	return err
}

// Query asks a question; the answer is its JSON.
func (c *Client) Query(ctx context.Context, o *op.Op, args any, stale bool) (json.RawMessage, Stale, error) {
	q, err := o.Values(args)
	if err != nil {
		return nil, "", err
	}
	if stale {
		q.Set("stale", "true")
	}
	var out []byte
	var age Stale
	err = c.read(ctx, func(call call) error {
		b, h, err := c.ask(call, http.MethodGet, "/v1/"+o.Path()+"?"+q.Encode(), nil)
		if err == nil {
			out, age = b, Stale(h.Get(api.HeaderStale))
		}
		return err
	})
	return out, age, err
}

// Stream opens a stream. Its Read gives the error that the server met, at the
// end of what came before; a connection that broke is io.ErrUnexpectedEOF.
// Options are for a stream that leaves an entry.
func (c *Client) Stream(ctx context.Context, o *op.Op, args any, opts ...Options) (io.ReadCloser, error) {
	var res *http.Response
	var with Options
	if len(opts) > 0 {
		with = opts[0]
	}
	if !o.Logged() {
		q, err := o.Values(args)
		if err != nil {
			return nil, err
		}
		if with.Stale {
			q.Set("stale", "true")
		}
		err = c.read(ctx, func(call call) (err error) {
			res, err = c.open(call, http.MethodGet, "/v1/"+o.Path()+"?"+q.Encode(), nil, nil)
			return err
		})
		if err != nil {
			return nil, err
		}
		return &stream{res}, nil
	}
	raw, err := o.Encode(args)
	if err != nil {
		return nil, err
	}
	body, key, err := c.request(o, raw, with)
	if err != nil {
		return nil, err
	}
	err = c.command(ctx, o, key, func(call call) (err error) {
		res, err = c.open(call, http.MethodPost, "/v1/"+o.Path(), body, nil)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &stream{res}, nil
}

type stream struct{ res *http.Response }

// Read reads on; at the end it gives the error that the server met.
func (s *stream) Read(b []byte) (int, error) {
	n, err := s.res.Body.Read(b)
	if err == io.EOF {
		if t := s.res.Trailer.Get(api.HeaderStreamError); t != "" {
			err = problem([]byte(t), s.res.Status)
		}
	} else if err != nil {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// Close ends the stream.
func (s *stream) Close() error { return s.res.Body.Close() }

// Events yields the events after the line with number after, and goes on until
// ctx ends or the connection breaks, which is the last that it yields.
func (c *Client) Events(ctx context.Context, after uint64) iter.Seq2[api.Event, error] {
	return func(yield func(api.Event, error) bool) {
		var res *http.Response
		err := c.read(ctx, func(call call) (err error) {
			res, err = c.open(call, http.MethodGet, "/v1/events", nil, http.Header{"Last-Event-Id": {strconv.FormatUint(after, 10)}})
			return err
		})
		if err != nil {
			yield(api.Event{}, err)
			return
		}
		defer res.Body.Close()
		in := bufio.NewScanner(res.Body)
		in.Buffer(nil, 1<<20)
		for in.Scan() {
			data, ok := strings.CutPrefix(in.Text(), "data: ")
			if !ok {
				continue
			}
			var e api.Event
			if err := json.Unmarshal([]byte(data), &e); err != nil {
				yield(e, fmt.Errorf("event cannot be read: %w", err))
				return
			}
			if !yield(e, nil) {
				return
			}
		}
		if ctx.Err() == nil {
			yield(api.Event{}, fleet.Unavailablef("the connection broke"))
		}
	}
}

// call is one try.
type call struct {
	ctx    context.Context
	addr   string
	within time.Duration // for the answer to begin
}

// errRefused marks that an address took no connection.
type errRefused struct{ as *fleet.Error }

func (e errRefused) Error() string { return e.as.Msg }

// Unwrap gives the error that a person sees.
func (e errRefused) Unwrap() error { return e.as }

// retry calls f with one address after the other, until it works, fails for a
// reason that another node would give too, or the time is over.
func (c *Client) retry(ctx context.Context, f func(call) error) error {
	begun := time.Now()
	refused := true // by all, so far
	for tries := 0; ; tries++ {
		at := c.next.Load()
		err := f(call{ctx, c.cfg.Addrs[int(at)%len(c.cfg.Addrs)], answerWithin(tries)})
		code := fleet.CodeOf(err)
		if code != fleet.CodeUnavailable && code != fleet.CodeUnknown {
			return err
		}
		var none errRefused
		if errors.As(err, &none) {
			err = none.as
		} else {
			refused = false
		}
		c.next.CompareAndSwap(at, at+1)
		patience := c.cfg.Retry
		if refused {
			patience = min(patience, refusedFor)
		}
		round := (tries+1)%len(c.cfg.Addrs) == 0
		if ctx.Err() != nil || time.Since(begun) > patience && (round || !refused) {
			return err
		}
		if !round {
			continue
		}
		t := time.NewTimer(50 * time.Millisecond)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return err
		}
	}
}

func (c *Client) ask(call call, method, path string, body []byte) ([]byte, http.Header, error) {
	res, err := c.open(call, method, path, body, nil)
	if err != nil {
		return nil, nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, nil, fleet.Unknownf("the connection to %s broke", call.addr)
	}
	return b, res.Header, nil
}

// open makes one call and returns its answer, once it has begun, if it is no
// error.
func (c *Client) open(call call, method, path string, body []byte, header http.Header) (*http.Response, error) {
	ctx, cancel := context.WithCancel(call.ctx)
	late := time.AfterFunc(call.within, cancel)
	req, err := http.NewRequestWithContext(ctx, method, call.addr+path, bytes.NewReader(body))
	if err != nil {
		cancel()
		return nil, fleet.Invalidf("address: %s", err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	req.Header.Set("Authorization", "Bearer "+c.cfg.Token)
	req.Header.Set(api.HeaderVia, c.cfg.Via)
	if c.by != "" {
		req.Header.Set(api.HeaderFor, string(c.by))
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.http.Do(req)
	late.Stop()
	if err != nil {
		cancel()
		if e := Untrusted(call.addr, err); e != nil {
			return nil, e
		}
		var dial *net.OpError
		if errors.As(err, &dial) && dial.Op == "dial" {
			return nil, errRefused{fleet.Unavailablef("no node answers at %s: nothing was done", strings.Join(c.cfg.Addrs, ", ")).
				WithHint("check FOOTPLATE_ADDR, and that the nodes run")}
		}
		if ctx.Err() != nil && call.ctx.Err() == nil {
			return nil, fleet.Unknownf("node at %s did not answer within %s", call.addr, call.within)
		}
		return nil, fleet.Unknownf("the connection to %s broke", call.addr)
	}
	res.Body = &answer{res.Body, cancel}
	if res.StatusCode >= 300 || res.Header.Get("Content-Type") == "application/problem+json" {
		defer res.Body.Close()
		b, _ := io.ReadAll(io.LimitReader(res.Body, 1<<20))
		if e := SpeaksTLS(call.addr, res.StatusCode, b); e != nil {
			return nil, e
		}
		return nil, problem(b, res.Status)
	}
	return res, nil
}

// answer ends a call's context with its body.
type answer struct {
	io.ReadCloser
	cancel context.CancelFunc
}

// Close ends the call.
func (b *answer) Close() error {
	defer b.cancel()
	return b.ReadCloser.Close()
}

// problem returns the error that a server raised.
func problem(b []byte, status string) error {
	var p api.Problem
	if json.Unmarshal(b, &p) != nil || p.Code == "" {
		e := fleet.Internalf("the server answers %s", status)
		if strings.HasPrefix(status, "5") { // a proxy, for a node that it does not reach
			e.Code = fleet.CodeUnknown
		}
		return e.WithHint("is this the address of a footplate node?")
	}
	return &fleet.Error{Code: p.Code, Msg: p.Detail, Hint: p.Hint, Plan: p.Plan}
}
