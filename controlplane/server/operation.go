package server

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	"footplate/controlplane/api"
	"footplate/controlplane/op"
	"footplate/fleet"
)

// queryTimeout bounds a query.
const queryTimeout = 30 * time.Second

// operation answers every operation of the registry.
func (s *Server) operation(w http.ResponseWriter, r *http.Request) {
	path := r.PathValue("operation")
	o, ok := s.byPath[path]
	if !ok {
		s.failAs(w, http.StatusNotFound, s.noOperation(path))
		return
	}
	l := s.operations
	if o.Kind == op.KindStream {
		l = s.streams
	}
	s.in(l, func(w http.ResponseWriter, r *http.Request) error {
		begun := time.Now()
		err := s.run(w, r, o)
		code := string(fleet.CodeOf(err))
		if err == nil {
			code = "done"
		}
		s.metrics.requests.WithLabelValues(o.Name, code).Inc()
		s.metrics.seconds.WithLabelValues(string(o.Kind)).Observe(time.Since(begun).Seconds())
		return err
	})(w, r)
}

func (s *Server) noOperation(path string) *fleet.Error {
	var known []string
	for _, o := range s.cfg.Registry.Ops() {
		if !o.Hidden() {
			known = append(known, o.Path())
		}
	}
	e := fleet.NotFoundf("there is no operation %q", shorten(path))
	if near := fleet.Nearest(shorten(path), known); near != "" {
		return e.WithHint("did you mean /v1/%s?", near)
	}
	return e.WithHint("/v1/openapi.json lists them")
}

func (s *Server) run(w http.ResponseWriter, r *http.Request, o *op.Op) error {
	switch {
	case o.Kind == op.KindMutation && r.Method != http.MethodPost:
		return wrongMethod(w, r, http.MethodPost)
	case o.Kind == op.KindQuery && r.Method != http.MethodGet:
		return wrongMethod(w, r, http.MethodGet)
	case o.Kind == op.KindStream && r.Method != http.MethodGet && r.Method != http.MethodPost:
		return wrongMethod(w, r, http.MethodGet, http.MethodPost)
	}
	if err := s.ours(r, false); err != nil {
		return err
	}
	c, err := s.caller(r)
	if err != nil {
		return err
	}
	switch o.Kind {
	case op.KindMutation:
		return s.mutation(w, r, c, o)
	case op.KindStream:
		return s.stream(w, r, c, o)
	default:
		return s.query(w, r, o)
	}
}

// ours refuses a request that was meant for another cluster.
func (s *Server) ours(r *http.Request, needed bool) error {
	got := r.Header.Get(api.HeaderCluster)
	if got == s.cfg.Cluster || got == "" && !needed {
		return nil
	}
	if got == "" {
		return fleet.Invalidf("the request does not name the cluster").WithHint("send its id in the header %s", api.HeaderCluster)
	}
	id, epoch, _ := fleet.ParseCluster(s.cfg.Cluster)
	switch of, other, err := fleet.ParseCluster(got); {
	case err != nil || of != id:
		return fleet.Conflictf("node %q is of cluster %s, not %s: nothing was done", s.cfg.Node, s.cfg.Cluster, shorten(got)).WithHint("check the address")
	case other < epoch:
		return fleet.Conflictf("cluster %q was recovered and is in epoch %d, and who asks is of epoch %d: nothing was done, and what it reports counts no more", id, epoch, other).
			WithHint("an agent ends what it runs and joins again by itself; of a node, move the data directory away and let it join again")
	default:
		return fleet.Conflictf("node %q is of epoch %d of cluster %q, which was recovered since and is in epoch %d: nothing was done", s.cfg.Node, epoch, id, other).
			WithHint("stop the node, move its data directory away and let it join again")
	}
}

// sameID reports whether a request is meant for this cluster, in whichever
// recovery epoch: who asks for the epoch may well be of another.
func (s *Server) sameID(r *http.Request) bool {
	mine, _, err := fleet.ParseCluster(s.cfg.Cluster)
	id, _, other := fleet.ParseCluster(r.Header.Get(api.HeaderCluster))
	return err == nil && other == nil && id == mine
}

// request reads what came with a command, and gives it a key before anything
// else is done.
func (s *Server) request(w http.ResponseWriter, r *http.Request, o *op.Op) (api.Request, error) {
	var q api.Request
	body, err := readBody(w, r, maxBody)
	if err != nil {
		return q, err
	}
	if err := decode(body, &q); err != nil {
		return q, err
	}
	s.complete(r, &q)
	if err := check(&q); err != nil {
		return q, err
	}
	_, err = o.Decode(q.Args)
	return q, err
}

func (s *Server) complete(r *http.Request, q *api.Request) {
	if q.Key == "" {
		q.Key = MintKey()
	}
	if q.Via == "" {
		q.Via = r.Header.Get(api.HeaderVia)
	}
	if q.Via == "" {
		q.Via = "api"
	}
}

func (s *Server) mutation(w http.ResponseWriter, r *http.Request, c Caller, o *op.Op) error {
	q, err := s.request(w, r, o)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
	defer cancel()
	var reply api.Reply
	unsure := false // an earlier try of this node's own may have acted
	once := func(err error) error {
		unsure = unsure || fleet.CodeOf(err) == fleet.CodeUnknown
		return err
	}
	err = s.atLeader(ctx, r, q.Key, func(ctx context.Context) (err error) {
		reply, err = s.door.Do(ctx, c, o, q)
		return once(err)
	}, func(ctx context.Context, at leaderAt) error {
		reply = api.Reply{}
		return once(s.ask(ctx, s.operations, r, at, q.Key, q, &reply))
	})
	if err != nil {
		return err
	}
	// What this node has asked for twice by itself is no duplicate of the caller's.
	reply.Duplicate = reply.Duplicate && !unsure
	return s.reply(w, reply)
}

// stale reports whether a request is content with what this node has.
func stale(r *http.Request, args url.Values) (bool, error) {
	value := r.Header.Get(api.HeaderStale)
	if args.Has("stale") {
		value = args.Get("stale")
		args.Del("stale")
	}
	if value == "" {
		return false, nil
	}
	b, err := strconv.ParseBool(value)
	if err != nil {
		return false, fleet.Invalidf("stale is %q; it must be true or false", shorten(value))
	}
	return b, nil
}

// arguments reads a request's arguments from its URL.
func arguments(r *http.Request) (url.Values, error) {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, fleet.Invalidf("the arguments in the URL cannot be read")
	}
	for name, list := range values {
		if !utf8.ValidString(name) {
			return nil, fleet.Invalidf("an argument in the URL has a name that is not valid UTF-8")
		}
		for _, v := range list {
			if !utf8.ValidString(v) {
				return nil, fleet.Invalidf("argument %q in the URL is not valid UTF-8", shorten(name))
			}
		}
	}
	return values, nil
}

// env is what a read sees: with a proof that it is fresh, unless the caller is
// content with less.
func (s *Server) env(ctx context.Context, w http.ResponseWriter, r *http.Request, o *op.Op, stale bool) (op.Env, error) {
	if stale {
		w.Header().Set(api.HeaderStale, s.cfg.Replica.Contact().String())
	} else if err := s.fresh(ctx, r); err != nil {
		return op.Env{}, err
	}
	// Again, by the tokens as they are now.
	c, err := s.caller(r)
	if err != nil {
		return op.Env{}, err
	}
	if no := c.May(o); no != nil {
		s.metrics.refusals.WithLabelValues(o.Name).Inc()
		return op.Env{}, no
	}
	return op.Env{
		View: s.cfg.View(), Now: s.cfg.Now(), Stale: stale, Caller: c.Caller, Node: s.cfg.Node, World: s.cfg.World, Ops: s.cfg.Registry,
	}, nil
}

func (s *Server) query(w http.ResponseWriter, r *http.Request, o *op.Op) error {
	values, err := arguments(r)
	if err != nil {
		return err
	}
	old, err := stale(r, values)
	if err != nil {
		return err
	}
	args, err := o.Bind(nil, values)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), queryTimeout)
	defer cancel()
	env, err := s.env(ctx, w, r, o, old || o.Local)
	if err != nil {
		return err
	}
	res, err := o.Query(ctx, env, args)
	if err != nil {
		return err
	}
	return s.reply(w, res)
}

func (s *Server) stream(w http.ResponseWriter, r *http.Request, c Caller, o *op.Op) error {
	var q api.Request
	var old bool
	if r.Method == http.MethodPost {
		var err error
		if q, err = s.request(w, r, o); err != nil {
			return err
		}
		if old, err = stale(r, url.Values{}); err != nil {
			return err
		}
	} else {
		values, err := arguments(r)
		if err != nil {
			return err
		}
		if old, err = stale(r, values); err != nil {
			return err
		}
		bound, err := o.Bind(nil, values)
		if err != nil {
			return err
		}
		if q.Args, err = o.Encode(bound); err != nil {
			return err
		}
		s.complete(r, &q)
	}
	args, err := o.Decode(q.Args)
	if err != nil {
		return err
	}
	if o.Logged() {
		if old {
			return fleet.Invalidf("%q leaves an entry: it cannot be answered without a quorum", o.Name).WithHint("leave --stale out")
		}
		return s.notedStream(w, r, c, o, q, args)
	}
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
	defer cancel()
	env, err := s.env(ctx, w, r, o, old)
	if err != nil {
		return err
	}
	return s.pour(w, r, o, env, args)
}

// notedStream answers with a stream that leaves an entry: the leader notes it,
// and then writes.
func (s *Server) notedStream(w http.ResponseWriter, r *http.Request, c Caller, o *op.Op, q api.Request, args any) error {
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
	defer cancel()
	var reply api.Reply
	var from *http.Response
	err := s.atLeader(ctx, r, q.Key, func(ctx context.Context) (err error) {
		reply, err = s.door.Do(ctx, c, o, q)
		return err
	}, func(_ context.Context, at leaderAt) (err error) {
		// The stream may take longer than the question.
		from, err = s.send(r.Context(), s.streams, r, at, q.Key, q)
		return err
	})
	if err != nil {
		return err
	}
	if from == nil {
		if q.DryRun {
			return s.reply(w, reply)
		}
		env := op.Env{View: s.cfg.View(), Now: s.cfg.Now(), Caller: c.Caller, Node: s.cfg.Node, World: s.cfg.World, Ops: s.cfg.Registry}
		return s.pour(w, r, o, env, args)
	}
	defer from.Body.Close()
	out := s.newTap(w, from.Header.Get("Content-Type"))
	_, err = io.Copy(out, from.Body)
	switch broken := from.Trailer.Get(api.HeaderStreamError); {
	case err != nil:
		return s.closeTap(r, out, fleet.Unavailablef("the connection to the leader broke off in the middle").WithHint("ask again"))
	case broken != "":
		out.close()
		w.Header().Set(api.HeaderStreamError, broken)
		return nil
	}
	return s.closeTap(r, out, nil)
}

// pour writes what a stream operation writes, as it comes.
func (s *Server) pour(w http.ResponseWriter, r *http.Request, o *op.Op, env op.Env, args any) error {
	out := s.newTap(w, "application/octet-stream")
	// Whoever follows a build that has not begun must see that somebody answers.
	patience := time.AfterFunc(beginAfter, out.answer)
	defer patience.Stop()
	return s.closeTap(r, out, o.Stream(r.Context(), env, args, out))
}

// closeTap ends a stream. An error before the first byte is an answer like any
// other; after it, it goes into the trailer.
func (s *Server) closeTap(r *http.Request, out *tap, err error) error {
	out.close()
	if err == nil {
		if !out.begun {
			out.begin()
		}
		return nil
	}
	if !out.begun {
		return err
	}
	e := s.shown(r.URL.Path, out.w.Header().Get(api.HeaderRequest), err)
	if out.failed != nil || r.Context().Err() != nil {
		e = fleet.Unavailablef("node %q lets go of the stream", s.cfg.Node).WithHint("ask again, or ask another node")
	}
	b, err := json.Marshal(problem(e, e.Code.Meaning().HTTP))
	if err != nil {
		return fmt.Errorf("encode problem: %w", err)
	}
	out.w.Header().Set(api.HeaderStreamError, string(b))
	return nil
}

// flushAfter is how long a piece of a stream may wait for company.
const flushAfter = 10 * time.Millisecond

// beginAfter is how long a stream may be silent before its answer begins. An
// error until then is an answer like any other.
const beginAfter = time.Second

// tap writes a stream: soon, but not each small piece by itself.
type tap struct {
	s    *Server
	w    http.ResponseWriter
	kind string

	mu      sync.Mutex
	begun   bool
	closed  bool
	flushed time.Time
	timer   *time.Timer // nil while nothing waits
	failed  error
}

func (s *Server) newTap(w http.ResponseWriter, kind string) *tap {
	return &tap{s: s, w: w, kind: kind}
}

func (t *tap) begin() {
	t.begun = true
	h := t.w.Header()
	h.Set("Content-Type", t.kind)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	h.Set("Trailer", api.HeaderStreamError)
	t.w.WriteHeader(http.StatusOK)
}

// Write writes a piece, and sees to it that it is sent soon.
func (t *tap) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.failed != nil {
		return 0, t.failed
	}
	if !t.begun {
		t.begin()
	}
	t.s.moreTime(t.w)
	n, err := t.w.Write(b)
	if err != nil {
		t.failed = err
		return n, err
	}
	if time.Since(t.flushed) > flushAfter {
		t.flush()
	} else if t.timer == nil {
		t.timer = time.AfterFunc(flushAfter, func() {
			t.mu.Lock()
			defer t.mu.Unlock()
			t.timer = nil
			if !t.closed {
				t.flush()
			}
		})
	}
	return n, t.failed
}

func (t *tap) flush() {
	t.flushed = time.Now()
	if err := http.NewResponseController(t.w).Flush(); err != nil {
		t.failed = err
	}
}

// answer begins the answer, if nothing has, without a byte of the stream.
func (t *tap) answer() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.begun && !t.closed {
		t.begin()
		t.flush()
	}
}

// close makes sure that nobody writes any more.
func (t *tap) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	if t.timer != nil {
		t.timer.Stop()
	}
	t.s.moreTime(t.w) // for the end of the stream, after a long silence
}

func (s *Server) serveOpenAPI(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(s.openAPI)
	return nil
}
