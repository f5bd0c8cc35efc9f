// Package server is the HTTP side of a node: every operation behind one generic
// handler, the events of the channel, what agents say, what nodes say to each
// other, and what monitoring asks.
//
// It knows no particular operation: paths, methods, arguments and the OpenAPI
// document come from the registry. It decides nothing that is replicated: that
// is Apply's, behind the Replica.
//
// # Which node answers
//
// Any node takes any request. What changes something is passed on to the leader
// with the caller's own token. A read is answered by the node that was asked,
// after it has applied everything that was acknowledged before (the leader
// proves that it leads and says how far that is); so reads are linearizable and
// yet cost the leader one small question. With Footplate-Stale a node answers
// from what it has.
//
// # What a failure means
//
// A command's key is minted, at the latest, by the first node that sees it,
// before anything is sent. So whatever breaks on the way, the same command can
// be asked for again: the key makes it act once. The node does so itself for a
// few seconds; after that it says "nothing was done" only where nothing was
// sent or everybody said so, and otherwise that the outcome is unknown, naming
// the key.
//
// # Lanes
//
// People, agents, streams and nodes each have their own bound of requests at
// once, and what is passed on to the leader goes over one pool of connections a
// lane: a fleet of agents cannot starve a person.
package server

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"footplate/controlplane/api"
	"footplate/controlplane/certs"
	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
	"footplate/fleet/lease"
)

// Replica is the replicated state machine as the server sees it.
type Replica interface {
	// Propose logs a command: what a person asks for, or, in bulk, behind it,
	// what agents say. An error says that there is no outcome: with
	// CodeUnavailable nothing was done, with CodeUnknown it may have been.
	Propose(ctx context.Context, bulk bool, c state.Command) (state.Outcome, error)
	// ReadIndex returns when this node, which leads, has applied everything that
	// was acknowledged before the call.
	ReadIndex(ctx context.Context) error
	// Leader says who leads, "" when nobody is known to, and in which term this
	// node does, 0 when it does not.
	Leader() (id fleet.NodeID, term uint64)
	// Contact returns how long ago this node heard a leader; 0 on the leader.
	Contact() fleet.Duration
}

// Config is what the server needs of its node. Everything is needed but where
// it says otherwise.
type Config struct {
	Node    fleet.NodeID
	Cluster string // id
	Version string
	// NodeToken is the secret that the nodes share. It lets a node in before the
	// state has any token.
	NodeToken string

	Registry *op.Registry
	Replica  Replica
	World    op.World
	View     func() *state.View
	// Scratch returns a state of its own that starts as the newest view is.
	Scratch func() *state.State
	Now     func() fleet.Time // the state clock
	Mono    func() lease.Mono // never 0, never jumps

	// Nodes returns where the nodes are.
	Nodes func() []api.NodeAddr
	// Members returns the committed membership and its version, for agents.
	Members func() (version uint64, nodes []api.NodeAddr)

	// Beat hears an agent, and says whether it is acknowledged.
	Beat func(api.Beat) (ok bool, why string)
	// Testify says what this node has heard of hosts.
	Testify func(api.Testify) []lease.Testimony
	// PutLogs returns when the chunks are on this node's disk.
	PutLogs func(ctx context.Context, chunks []api.Chunk) error
	// ReadLogs returns chunks that this node holds, in order, from a number on.
	ReadLogs func(id fleet.AttemptID, from int) []api.Chunk
	// Entries returns audit entries that this node holds, both ends included.
	Entries func(ctx context.Context, from, to fleet.EntryNo) ([]fleet.Entry, error)
	// Shared says what waits to be delivered to the shared archive; ok is false
	// when this node does not deliver. Optional.
	Shared func() (w Waiting, ok bool)
	// ArchiveErr says what keeps the audit archive from writing, nil when nothing
	// does. Optional.
	ArchiveErr func() error
	// Status says how this node is.
	Status func() api.PeerStatus
	// Join takes a node into the cluster: called on the leader alone.
	Join func(ctx context.Context, j api.Join) error

	// TLS has the certificates of the node: then only nodes that show one are
	// nodes, and agents may come with one. Serve is given a listener that asks
	// for them. Optional.
	TLS *certs.Keeper
	// Page answers what is no path of the API, Slack what is posted to
	// /slack/events. Optional.
	Page, Slack http.Handler

	Log *slog.Logger
}

// The bounds of requests.
const (
	maxBody      = 1 << 20
	maxLogsBody  = 16 << 20
	readTimeout  = 30 * time.Second // of a body
	writeTimeout = 60 * time.Second // of an answer, or of one write of a stream
	callTimeout  = 10 * time.Second // of an operation, all in all
	// leaderWait is how long a request waits for a leader.
	leaderWait = 2 * time.Second
	// maxConns is how many connections may be open, where the system allows as
	// many. Agents hold a few each.
	maxConns = 32768
	// unsureWait is how long the node goes on asking what came of a command that
	// it has sent.
	unsureWait = 5 * time.Second
)

// Server is the HTTP side of a node.
type Server struct {
	cfg     Config
	log     *slog.Logger
	door    *Door
	byPath  map[string]*op.Op
	metrics *metrics
	agents  *agents
	mux     *http.ServeMux

	strangers                             strangers
	operations, agentLane, streams, peers *lane
	openAPI                               []byte
	readTimeout, writeTimeout             time.Duration
	maxConns                              int
	joins                                 chan struct{}
	waiting                               atomic.Int64 // agents that wait for a leader
	outward                               atomic.Int64 // requests that are passed on, each over a connection
}

// New makes a server. It starts nothing.
func New(cfg Config) (*Server, error) {
	switch {
	case cfg.Registry == nil, cfg.Replica == nil, cfg.World == nil, cfg.View == nil, cfg.Scratch == nil, cfg.Now == nil, cfg.Mono == nil,
		cfg.Nodes == nil, cfg.Members == nil, cfg.Beat == nil, cfg.Testify == nil, cfg.PutLogs == nil, cfg.ReadLogs == nil,
		cfg.Entries == nil, cfg.Status == nil, cfg.Join == nil, cfg.Log == nil:
		return nil, fmt.Errorf("server of node %q lacks a part", cfg.Node)
	case cfg.NodeToken == "":
		return nil, fleet.Invalidf("node %q has no token for the other nodes", cfg.Node).WithHint("--node-token-file")
	}
	s := &Server{
		cfg: cfg, log: cfg.Log, byPath: make(map[string]*op.Op), agents: new(agents), joins: make(chan struct{}, joinsAtOnce),
		operations: newLane(512, cfg.TLS), agentLane: newLane(16384, cfg.TLS), streams: newLane(2048, cfg.TLS), peers: newLane(512, cfg.TLS),
		readTimeout: readTimeout, writeTimeout: writeTimeout, maxConns: connsHere(),
	}
	for _, o := range cfg.Registry.Ops() {
		if !o.Hidden() {
			s.byPath[o.Path()] = o
		}
	}
	var err error
	if s.openAPI, err = openAPI(cfg.Registry, cfg.Version); err != nil {
		return nil, err
	}
	s.metrics = newMetrics(&s.cfg)
	s.door = &Door{cfg: &s.cfg, metrics: s.metrics}
	s.routes()
	return s, nil
}

// Door returns the way in for callers in the same process.
func (s *Server) Door() *Door { return s.door }

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.guarded(w, r) }

// Serve answers requests on l until ctx ends, which returns nil. Requests that
// are under way then may finish for a few seconds; what is held open is let go.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	srv := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		BaseContext:       func(net.Listener) context.Context { return inner },
		ConnState:         newCrowd(s.maxConns, &s.outward).note,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	for _, l := range []*lane{s.operations, s.agentLane, s.streams, s.peers} {
		defer l.client.CloseIdleConnections()
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(l) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve HTTP: %w", err)
	case <-ctx.Done():
	}
	cancel()
	patience, stop := context.WithTimeout(context.Background(), 2*time.Second)
	defer stop()
	if err := srv.Shutdown(patience); err != nil {
		// What does not let go is cut off.
		_ = srv.Close()
	}
	if err := <-failed; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve HTTP: %w", err)
	}
	return nil
}

// lane bounds the requests of one kind that are answered at once.
type lane struct {
	places chan struct{}
	client *http.Client // to the leader
}

func newLane(n int, secure *certs.Keeper) *lane {
	d := &net.Dialer{Timeout: time.Second, KeepAlive: 15 * time.Second}
	transport := &http.Transport{
		DialContext: d.DialContext, MaxIdleConnsPerHost: min(n, 256), IdleConnTimeout: time.Minute, DisableCompression: true,
	}
	if secure != nil {
		transport.DialTLSContext = secure.Dial
	}
	return &lane{
		places: make(chan struct{}, n),
		client: &http.Client{
			Transport:     transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// enter takes a place, and reports false when there is none for a while.
func (l *lane) enter(ctx context.Context) bool {
	select {
	case l.places <- struct{}{}:
		return true
	default:
	}
	patience := time.NewTimer(time.Second)
	defer patience.Stop()
	select {
	case l.places <- struct{}{}:
		return true
	case <-patience.C:
	case <-ctx.Done():
	}
	return false
}

func (l *lane) leave() { <-l.places }

// in answers with h in a lane.
func (s *Server) in(l *lane, h func(w http.ResponseWriter, r *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !l.enter(r.Context()) {
			w.Header().Set("Retry-After", "1")
			s.fail(w, r, fleet.Unavailablef("node %q has too many requests at once: nothing was done", s.cfg.Node).
				WithHint("try again, or ask another node"))
			return
		}
		defer l.leave()
		if err := h(w, r); err != nil {
			s.fail(w, r, err)
		}
	}
}

func (s *Server) routes() {
	m := http.NewServeMux()
	only := func(method, path string, l *lane, h func(http.ResponseWriter, *http.Request) error) {
		m.HandleFunc(path, s.in(l, func(w http.ResponseWriter, r *http.Request) error {
			if r.Method != method {
				return wrongMethod(w, r, method)
			}
			return h(w, r)
		}))
	}
	// The lane of an operation depends on its kind: see operation.
	m.HandleFunc("/v1/{operation}", s.operation)
	only(http.MethodGet, "/v1/events", s.streams, s.events)
	only(http.MethodGet, "/v1/openapi.json", s.operations, s.serveOpenAPI)

	only(http.MethodGet, "/v1/agent.cluster", s.agentLane, s.agentCluster)
	only(http.MethodPost, "/v1/agent.beat", s.agentLane, s.beat)
	only(http.MethodPost, "/v1/agent.sync", s.agentLane, s.sync)
	only(http.MethodPost, "/v1/agent.logs", s.agentLane, s.takeLogs)
	only(http.MethodPost, "/v1/agent.enrol", s.agentLane, s.enrol)
	only(http.MethodPost, "/v1/agent.renew", s.agentLane, s.renew)

	only(http.MethodGet, "/v1/peer.status", s.peers, s.peerStatus)
	only(http.MethodGet, "/v1/peer.index", s.peers, s.peerIndex)
	only(http.MethodPost, "/v1/peer.testify", s.peers, s.peerTestify)
	only(http.MethodPost, "/v1/peer.join", s.peers, s.peerJoin)
	only(http.MethodGet, "/v1/peer.logs", s.peers, s.peerLogs)
	only(http.MethodGet, "/v1/peer.entries", s.peers, s.peerEntries)
	only(http.MethodGet, "/v1/peer.operations", s.peers, s.peerOperations)

	m.HandleFunc("/healthz", s.healthz)
	m.HandleFunc("/readyz", s.readyz)
	m.HandleFunc("/metrics", s.serveMetrics)
	nothing := func(w http.ResponseWriter, r *http.Request) {
		s.failAs(w, http.StatusNotFound, fleet.NotFoundf("there is nothing at %s", shorten(r.URL.Path)).
			WithHint("operations are at /v1/<noun>.<verb>; /v1/openapi.json lists them"))
	}
	m.HandleFunc("/v1/", nothing)
	if s.cfg.Page != nil {
		m.Handle("/", s.cfg.Page)
	} else {
		m.HandleFunc("/", nothing)
	}
	if s.cfg.Slack != nil {
		m.Handle("/slack/events", s.cfg.Slack)
	}
	s.mux = m
}

// guarded answers a request, and turns a panic into an error with an id.
func (s *Server) guarded(w http.ResponseWriter, r *http.Request) {
	out := &answer{ResponseWriter: w}
	h := w.Header()
	h.Set(api.HeaderRequest, newID())
	if !strings.HasPrefix(r.URL.Path, "/v1/agent.") {
		forBrowsers(h)
	}
	control := http.NewResponseController(w)
	// A writer that has no deadlines, in tests, needs none.
	// Without a body, what is read is whether the caller is still there: for as
	// long as the answer takes.
	if r.ContentLength != 0 {
		_ = control.SetReadDeadline(time.Now().Add(s.readTimeout))
	}
	s.moreTime(w)
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
			panic(p)
		}
		id := h.Get(api.HeaderRequest)
		s.log.Error("panic while answering a request", "id", id, "path", r.URL.Path, "err", fmt.Sprint(p), "stack", string(debug.Stack()))
		if out.begun {
			panic(http.ErrAbortHandler)
		}
		s.failAs(out, http.StatusInternalServerError, internal(s.cfg.Node, id))
	}()
	s.mux.ServeHTTP(out, r)
}

// forBrowsers says what a browser is told of whatever it gets here; the page
// says more of its own. Strict-Transport-Security is not among it: it holds for
// a host with all its ports, and other things listen there.
func forBrowsers(h http.Header) {
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
}

// moreTime lets what is written next take its time, however long ago the
// request began.
func (s *Server) moreTime(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.writeTimeout))
}

// answer notes whether an answer has begun.
type answer struct {
	http.ResponseWriter
	begun bool
}

func (a *answer) WriteHeader(status int) { a.begun = true; a.ResponseWriter.WriteHeader(status) }

func (a *answer) Write(b []byte) (int, error) { a.begun = true; return a.ResponseWriter.Write(b) }

// Unwrap lets http.ResponseController find what it controls.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// newID names what is found again in the log.
func newID() string { return randomHex(6) }

func randomHex(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

func hashSecret(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}
