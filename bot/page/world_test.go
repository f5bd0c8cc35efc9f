package page

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"footplate/controlplane"
	"footplate/controlplane/catalog"
	"footplate/controlplane/client"
	"footplate/controlplane/op"
	"footplate/fleet"
)

// The people of the tests, by their tokens.
const (
	alice = "token-of-alice-who-is-operator"
	vera  = "token-of-vera-who-is-viewer"
)

var testKey = bytes.Repeat([]byte("k"), 32)

// world is a real control plane of one node, and the page before it.
type world struct {
	t    testing.TB
	url  string // of the page
	page *Page

	cfg   controlplane.Config
	node  *controlplane.Node
	ended chan error
	stop  context.CancelFunc
	api   *client.Client // alice's, past the page

	serve  net.Listener
	server *http.Server

	mu sync.Mutex
	// between, when it is set, answers a call of the API, or leaves it to real.
	between func(w http.ResponseWriter, r *http.Request, real http.Handler)
	logs    *fakeLogs
}

func free(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, logs: newFakeLogs(), cfg: controlplane.Config{
		Node: "n1", Dir: t.TempDir(), Listen: free(t), Raft: free(t), Version: "0.1.0", Bootstrap: true,
		NodeToken: "secret-of-the-nodes", Heartbeat: 200 * time.Millisecond, Log: slog.New(slog.DiscardHandler),
		Tokens: []fleet.Token{
			{Name: "alice", Hash: controlplane.TokenHash(alice), Principal: "alice", Role: fleet.Operator},
			{Name: "vera", Hash: controlplane.TokenHash(vera), Principal: "vera", Role: fleet.Viewer},
		},
	}}
	w.startNode()
	t.Cleanup(w.stopNode)
	var err error
	w.api, err = client.New(client.Config{Addrs: []string{"http://" + w.cfg.Listen}, Token: alice, Via: "cli/0.1.0"})
	if err != nil {
		t.Fatal(err)
	}
	w.eventually("the node leads", func() bool {
		_, _, err := w.api.Query(context.Background(), catalog.PoolList, catalog.PoolList.NewArgs(), false)
		return err == nil
	})
	w.page = w.newPage(testKey, "cluster-1")
	w.startPage(free(t))
	t.Cleanup(w.stopPage)
	return w
}

func (w *world) startNode() {
	w.t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	node, err := controlplane.New(ctx, w.cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.node, w.stop, w.ended = node, stop, make(chan error, 1)
	go func() { w.ended <- node.Run(ctx) }()
}

func (w *world) stopNode() {
	w.t.Helper()
	w.stop()
	if err := <-w.ended; err != nil {
		w.t.Error(err)
	}
}

func (w *world) newPage(key []byte, cluster string) *Page {
	w.t.Helper()
	to := &url.URL{Scheme: "http", Host: w.cfg.Listen}
	real := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) }, FlushInterval: -1,
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
		ErrorLog:     slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
	}
	p, err := New(Config{
		Node: "n1", Cluster: cluster, Version: "0.1.0", Registry: catalog.All(), Key: key, Log: slog.New(slog.DiscardHandler),
		API: http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
			w.mu.Lock()
			between := w.between
			w.mu.Unlock()
			switch {
			case between != nil:
				between(out, r, real)
			case w.logs.answers(out, r):
			default:
				real.ServeHTTP(out, r)
			}
		}),
		Queue: func(ctx context.Context) (d catalog.QueueDetail, err error) {
			raw, _, err := w.api.Query(ctx, catalog.QueueStatus, catalog.QueueStatus.NewArgs(), true)
			if err == nil {
				err = json.Unmarshal(raw, &d)
			}
			return d, err
		},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

func (w *world) meddle(f func(w http.ResponseWriter, r *http.Request, real http.Handler)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.between = f
}

func (w *world) startPage(addr string) {
	w.t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		w.t.Fatal(err)
	}
	w.url = "http://" + addr
	w.server = &http.Server{Handler: w.page, ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = w.server.Serve(l) }()
}

// stopPage cuts off all who are connected.
func (w *world) stopPage() { _ = w.server.Close() }

// eventually waits until something is so.
func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(30 * time.Second); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			w.t.Fatalf("waited 30 s: %s", what)
		}
	}
}

// does runs a line past the page.
func (w *world) does(line string) fleet.EntryNo {
	w.t.Helper()
	call, err := catalog.All().Parse(line)
	if err != nil {
		w.t.Fatal(err)
	}
	r, err := w.api.Do(context.Background(), call.Op, call.Args, client.Options{Reason: call.Options.Reason, Confirm: "yes"})
	if err != nil {
		w.t.Fatalf("%s: %v", line, err)
	}
	return r.Entry
}

func (w *world) entries() []catalog.EntryRow {
	w.t.Helper()
	raw, _, err := w.api.Query(context.Background(), catalog.AuditTail, &catalog.AuditTailArgs{Limit: 100}, false)
	if err != nil {
		w.t.Fatal(err)
	}
	var rows []catalog.EntryRow
	if err := json.Unmarshal(raw, &rows); err != nil {
		w.t.Fatal(err)
	}
	return rows
}

// browser is a browser without a script: it has a cookie, and sends what a form
// sends.
type browser struct {
	w    *world
	http *http.Client
	csrf string
}

func (w *world) browser() *browser {
	jar, err := cookiejar.New(nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return &browser{w: w, http: &http.Client{
		Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// visitor is a browser that has logged in.
func (w *world) visitor(token string) *browser {
	w.t.Helper()
	b := w.browser()
	if r := b.login(url.Values{"token": {token}}); r.status != http.StatusSeeOther {
		w.t.Fatalf("log in: %d %s", r.status, r.body)
	}
	r := b.get("/")
	_, rest, ok := strings.Cut(r.body, `name="csrf" value="`)
	if !ok {
		w.t.Fatalf("the page has no form: %s", r.body)
	}
	b.csrf, _, _ = strings.Cut(rest, `"`)
	return b
}

type response struct {
	status int
	header http.Header
	body   string
}

func (b *browser) do(r *http.Request) response {
	b.w.t.Helper()
	res, err := b.http.Do(r)
	if err != nil {
		b.w.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		b.w.t.Fatal(err)
	}
	return response{res.StatusCode, res.Header, string(body)}
}

func (b *browser) request(method, path, body string, header ...string) *http.Request {
	b.w.t.Helper()
	r, err := http.NewRequestWithContext(context.Background(), method, b.w.url+path, strings.NewReader(body))
	if err != nil {
		b.w.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	return r
}

func (b *browser) get(path string, header ...string) response {
	b.w.t.Helper()
	return b.do(b.request(http.MethodGet, path, "", header...))
}

func (b *browser) post(path string, form url.Values, header ...string) response {
	b.w.t.Helper()
	return b.do(b.request(http.MethodPost, path, form.Encode(), append([]string{"Content-Type", "application/x-www-form-urlencoded", "Sec-Fetch-Site", "same-origin"}, header...)...))
}

// login fills in the form.
func (b *browser) login(form url.Values) response {
	b.w.t.Helper()
	form.Set("csrf", b.get("/login").hidden("csrf"))
	return b.post("/login", form)
}

// run types a line into the prompt; more are further fields of the form.
func (b *browser) run(line string, more ...string) response {
	b.w.t.Helper()
	f := url.Values{"line": {line}, "csrf": {b.csrf}}
	for i := 0; i < len(more); i += 2 {
		f.Set(more[i], more[i+1])
	}
	return b.post("/run", f, "X-Piece", "1")
}

// wants checks that an answer has all of texts, and returns it.
func (b *browser) wants(r response, status int, texts ...string) response {
	b.w.t.Helper()
	if r.status != status {
		b.w.t.Errorf("status %d, not %d: %s", r.status, status, r.body)
	}
	for _, want := range texts {
		if !strings.Contains(r.body, want) {
			b.w.t.Errorf("%q is not in: %s", want, r.body)
		}
	}
	return r
}

// hidden returns the value of a hidden field of a form.
func (r response) hidden(name string) string {
	_, rest, _ := strings.Cut(r.body, `name="`+name+`" value="`)
	value, _, _ := strings.Cut(rest, `"`)
	return value
}

// sse is a stream of events.
type sse struct {
	t    testing.TB
	body io.ReadCloser
	rest []byte
}

type event struct{ id, kind, data string }

func (b *browser) events(path string, header ...string) *sse {
	b.w.t.Helper()
	r := b.request(http.MethodGet, path, "", append([]string{"Accept", "text/event-stream"}, header...)...)
	res, err := b.http.Do(r)
	if err != nil {
		b.w.t.Fatal(err)
	}
	if res.StatusCode != http.StatusOK || res.Header.Get("Content-Type") != "text/event-stream" {
		b.w.t.Fatalf("%s: %s", path, res.Status)
	}
	s := &sse{t: b.w.t, body: res.Body}
	b.w.t.Cleanup(func() { s.body.Close() })
	return s
}

// next returns the next event of one of the kinds.
func (s *sse) next(kinds ...string) event {
	s.t.Helper()
	for {
		e, err := s.read()
		if err != nil {
			s.t.Fatalf("waiting for %v: %v", kinds, err)
		}
		for _, k := range kinds {
			if e.kind == k {
				return e
			}
		}
	}
}

func (s *sse) read() (event, error) {
	for {
		if i := bytes.Index(s.rest, []byte("\n\n")); i >= 0 {
			var e event
			var data []string
			for l := range strings.SplitSeq(string(s.rest[:i]), "\n") {
				switch name, value, _ := strings.Cut(l, ": "); name {
				case "id":
					e.id = value
				case "event":
					e.kind = value
				case "data":
					data = append(data, value)
				}
			}
			s.rest = s.rest[i+2:]
			e.data = strings.Join(data, "\n")
			return e, nil
		}
		b := make([]byte, 64<<10)
		n, err := s.body.Read(b)
		s.rest = append(s.rest, b[:n]...)
		if n == 0 && err != nil {
			return event{}, err
		}
	}
}

// fakeBuild is a build whose log the tests write themselves, chunk by chunk. It
// speaks as "build show" and "build logs" do.
const fakeBuild = fleet.BuildID(900)

type fakeLogs struct {
	mu     sync.Mutex
	sent   []op.LogChunk
	over   bool
	change chan struct{}
	cut    chan struct{} // closed to break all streams off
	tasks  []string
}

func newFakeLogs() *fakeLogs {
	return &fakeLogs{change: make(chan struct{}), cut: make(chan struct{}), tasks: []string{"main"}}
}

func (f *fakeLogs) update(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	close(f.change)
	f.change = make(chan struct{})
}

// write adds a chunk, in whatever order.
func (f *fakeLogs) write(task string, attempt fleet.AttemptID, n int, text string) {
	f.update(func() {
		f.sent = append(f.sent, op.LogChunk{
			Build: fakeBuild, Task: task, Try: 1, Attempt: attempt, Host: "linux-1", N: n, Data: []byte(text),
		})
	})
}

func (f *fakeLogs) end() { f.update(func() { f.over = true }) }

// breakOff cuts the streams that are open.
func (f *fakeLogs) breakOff() {
	f.update(func() { close(f.cut); f.cut = make(chan struct{}) })
}

func (f *fakeLogs) answers(w http.ResponseWriter, r *http.Request) bool {
	if r.URL.Query().Get("build") != fakeBuild.String() {
		return false
	}
	switch r.URL.Path {
	case "/v1/build.show":
		f.mu.Lock()
		d := catalog.BuildDetail{BuildRow: catalog.BuildRow{
			ID: fakeBuild, Org: "acme", Pool: "linux", State: "running", Tasks: fmt.Sprint("0/", len(f.tasks)), Submitted: fleet.TimeOf(time.Now()), By: "alice",
		}}
		for i, t := range f.tasks {
			d.List = append(d.List, catalog.AttemptRow{Build: fakeBuild, Task: t, Try: 1, Attempt: fleet.AttemptID(i + 1), Host: "linux-1", Phase: "steps", Started: d.Submitted})
		}
		if f.over {
			d.State, d.Finished = "passed", d.Submitted+1000
		}
		f.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(d)
	case "/v1/build.logs":
		f.stream(w, r)
	default:
		return false
	}
	return true
}

func (f *fakeLogs) stream(w http.ResponseWriter, r *http.Request) {
	args, err := catalog.BuildLogs.Bind(nil, r.URL.Query())
	if err != nil {
		panic(err)
	}
	a := args.(*catalog.BuildLogsArgs)
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Trailer", "Footplate-Stream-Error")
	w.WriteHeader(http.StatusOK)
	f.mu.Lock()
	cut := f.cut
	f.mu.Unlock()
	for done := 0; ; {
		f.mu.Lock()
		sent, over, change := f.sent, f.over, f.change
		f.mu.Unlock()
		for ; done < len(sent); done++ {
			c := sent[done]
			if a.Task != "" && c.Task != a.Task || c.Attempt < a.Attempt || c.Attempt == a.Attempt && c.N < a.From {
				continue
			}
			if json.NewEncoder(w).Encode(c) != nil {
				return
			}
		}
		_ = http.NewResponseController(w).Flush()
		if over || !a.Follow {
			return
		}
		select {
		case <-change:
		case <-cut:
			panic(http.ErrAbortHandler)
		case <-r.Context().Done():
			return
		}
	}
}
