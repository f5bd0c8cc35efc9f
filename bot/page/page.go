// Package page is the console page: the channel live and a prompt that takes
// the same commands as every other surface, the fleet at a glance, a build's
// page with its log, and an explorer of the record. Every node serves it.
//
// The page has no powers of its own. Each request carries its visitor's token to
// the API of the node that the page runs in, and shows what that answers: roles,
// plans, confirmations and the record are the API's. What it reads for the
// glance, it reads stale, so that it works without a quorum; it says how old the
// answer is as soon as that matters.
//
// # How it is made
//
// HTML is rendered here, by html/template, also each piece that comes live: the
// script puts pieces into place and knows nothing of what they mean. Without the
// script the prompt, the lists, builds and the record still work; what is live
// needs it. Nothing is inline, so the content security policy allows only the
// files of this package. Text from elsewhere (reasons, log lines) is escaped, and
// what could turn the direction of writing or steer a terminal is made visible.
//
// # Sessions
//
// The cookie holds the visitor's token, sealed with a key that the nodes share:
// a session survives the loss of a node, and no node keeps a list. So logging
// out makes the browser forget; what ends a session that was stolen is its
// expiry, or the end of the token. A POST needs the session's own secret beside
// the cookie, and must come from the page itself; so must the log-in, whose form
// has a secret that fits a cookie of its own: nobody is logged in as somebody else
// without noticing.
package page

import (
	"context"
	"embed"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"footplate/controlplane/catalog"
	"footplate/controlplane/op"
	"footplate/fleet"
)

// Config is what the page needs of its node. Everything is needed but Public.
type Config struct {
	Node     fleet.NodeID
	Cluster  string // id
	Epoch    uint64 // of recovery: with it the channel is another one
	Version  string
	Registry *op.Registry
	// API is the node's own HTTP API. It is called in process, with the visitor's token.
	API http.Handler
	// Key is a secret that all nodes of the cluster share, of 32 bytes or more.
	Key []byte
	// Queue returns the queue as the node has it, for the charts.
	Queue func(ctx context.Context) (catalog.QueueDetail, error)
	Log   *slog.Logger
	// Public is the URL by which browsers reach the page, when a proxy before the
	// nodes ends TLS: what a request says of that is not believed.
	Public string
}

// The bounds of requests.
const (
	maxBody     = 64 << 10
	callTimeout = 30 * time.Second // of a request that is no stream
	maxStreams  = 512              // at once: the channel and logs that are followed
)

// Page is the console page of a node.
type Page struct {
	cfg     Config
	secure  bool // browsers come by TLS, whatever the node sees
	mux     *http.ServeMux
	cross   *http.CrossOriginProtection
	seal    *sealer
	history *history
	assets  map[string]asset
	views   *views
	streams chan struct{}
}

//go:embed static templates
var files embed.FS

// New makes the page. It starts nothing.
func New(cfg Config) (*Page, error) {
	if cfg.Registry == nil || cfg.API == nil || cfg.Queue == nil || cfg.Log == nil || len(cfg.Key) < 32 {
		return nil, fleet.Internalf("the console page of node %q lacks a part", cfg.Node)
	}
	p := &Page{
		cfg: cfg, cross: http.NewCrossOriginProtection(),
		history: new(history), streams: make(chan struct{}, maxStreams),
	}
	if err := p.public(); err != nil {
		return nil, err
	}
	var err error
	if p.seal, err = newSealer(cfg.Key, cfg.Cluster); err != nil {
		return nil, err
	}
	if p.assets, err = readAssets(); err != nil {
		return nil, err
	}
	if p.views, err = readViews(p); err != nil {
		return nil, err
	}
	p.routes()
	return p, nil
}

// public takes in by which URL browsers come.
func (p *Page) public() error {
	if p.cfg.Public == "" {
		return nil
	}
	u, err := url.Parse(p.cfg.Public)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
		return fleet.Invalidf("the public URL %q is not one of a page", p.cfg.Public).WithHint("for example https://footplate.example: without a path")
	}
	p.secure = u.Scheme == "https"
	// A proxy may tell the node another host than the browser has asked for.
	if err := p.cross.AddTrustedOrigin(u.Scheme + "://" + u.Host); err != nil {
		return fleet.Invalidf("the public URL %q is not one of a page: %s", p.cfg.Public, err)
	}
	return nil
}

// Run samples the queue for the charts until ctx ends.
func (p *Page) Run(ctx context.Context) error {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for {
		one, cancel := context.WithTimeout(ctx, sampleEvery)
		d, err := p.cfg.Queue(one)
		cancel()
		switch {
		case err == nil:
			p.history.add(sampleOf(time.Now(), d))
		case ctx.Err() == nil:
			p.cfg.Log.Debug("the queue was not sampled for the console page", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// routes are all paths of the page: none begins with /v1.
func (p *Page) routes() {
	m := http.NewServeMux()
	m.HandleFunc("GET /static/{file}", p.static)
	m.HandleFunc("GET /favicon.ico", p.favicon)
	m.HandleFunc("GET /login", p.loginForm)
	m.HandleFunc("POST /login", p.login)

	seen := func(pattern string, h func(http.ResponseWriter, *http.Request, *visit) error) {
		m.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { p.visited(w, r, h) })
	}
	seen("GET /{$}", p.home)
	seen("POST /logout", p.logout)
	seen("POST /run", p.run)
	seen("GET /ask", p.askPage)
	seen("GET /complete", p.complete)
	seen("GET /events", p.events)
	seen("GET /builds", p.builds)
	seen("GET /builds/{build}", p.build)
	seen("GET /builds/{build}/log", p.follow)
	seen("GET /builds/{build}/log.txt", p.plainLog)
	seen("GET /audit", p.audit)
	seen("GET /audit/{entry}", p.entry)
	seen("GET /help", p.helpPage)
	seen("GET /", func(http.ResponseWriter, *http.Request, *visit) error {
		return fleet.NotFoundf("there is no such page")
	})
	p.mux = m
}

// headers stand on every answer.
var headers = map[string]string{
	"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
		"form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
	"X-Content-Type-Options":       "nosniff",
	"X-Frame-Options":              "DENY",
	"Referrer-Policy":              "no-referrer",
	"Cross-Origin-Opener-Policy":   "same-origin",
	"Cross-Origin-Resource-Policy": "same-origin",
	"Permissions-Policy":           "camera=(), geolocation=(), microphone=()",
	"Cache-Control":                "no-store",
}

// ServeHTTP answers one request.
func (p *Page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	for k, v := range headers {
		w.Header().Set(k, v)
	}
	if err := p.cross.Check(r); err != nil {
		p.fail(w, r, nil, fleet.Deniedf("the request comes from another site: nothing was done"))
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	p.mux.ServeHTTP(w, r)
}

// visited answers a request of somebody who has logged in.
func (p *Page) visited(w http.ResponseWriter, r *http.Request, h func(http.ResponseWriter, *http.Request, *visit) error) {
	v, err := p.visit(r)
	if err != nil {
		p.toLogin(w, r)
		return
	}
	if r.Method == http.MethodPost && !v.genuine(r.PostFormValue("csrf")) {
		p.fail(w, r, v, fleet.Deniedf("the form is not of this session: nothing was done").WithHint("load the page again"))
		return
	}
	err = h(w, r, v)
	switch {
	case v.expired.Load() && err != nil:
		p.forget(w, r)
		p.toLogin(w, r)
	case err != nil:
		p.fail(w, r, v, err)
	}
}

// piece reports whether the script asks, for a piece of a page.
func piece(r *http.Request) bool { return r.Header.Get("X-Piece") != "" }

// toLogin sends the visitor to the login form, and back here afterwards.
func (p *Page) toLogin(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Sec-Fetch-Site") == "cross-site" && r.Header.Get("Sec-Fetch-Mode") == "navigate" && r.Method == http.MethodGet {
		// A link on another site led here, and the browser kept the cookie back.
		// From a page of ours it sends it.
		p.views.write(w, http.StatusOK, p.views.pieces, "again", own(r.URL.RequestURI()))
		return
	}
	to := "/login"
	if r.Method == http.MethodGet && !piece(r) && r.URL.Path != "/" && r.Header.Get("Accept") != "text/event-stream" {
		to += "?to=" + escapeQuery(r.URL.RequestURI())
	}
	if piece(r) || r.Header.Get("Accept") == "text/event-stream" {
		w.Header().Set("Location", to)
		http.Error(w, "the session has ended", http.StatusUnauthorized)
		return
	}
	http.Redirect(w, r, to, http.StatusSeeOther)
}

// fail shows an error: as a piece to the script, as a page to a browser.
func (p *Page) fail(w http.ResponseWriter, r *http.Request, v *visit, err error) {
	e := fleet.AsError(err)
	if strings.HasPrefix(r.URL.Path, "/static/") || v == nil || r.Header.Get("Accept") == "text/event-stream" {
		http.Error(w, e.Msg, e.Code.Meaning().HTTP)
		return
	}
	if piece(r) {
		p.views.piece(w, e.Code.Meaning().HTTP, "answer", answer{Err: e})
		return
	}
	p.views.page(w, e.Code.Meaning().HTTP, "failed", v, e.Msg, e)
}

// enter takes one of the places for streams.
func (p *Page) enter() (leave func(), err error) {
	select {
	case p.streams <- struct{}{}:
		return func() { <-p.streams }, nil
	default:
		return nil, fleet.Unavailablef("node %q has too many pages open", p.cfg.Node).WithHint("ask another node")
	}
}
