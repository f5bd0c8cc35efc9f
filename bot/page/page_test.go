package page

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"footplate/controlplane/api"
	"footplate/fleet"
)

func TestLogIn(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	if r := b.get("/"); r.status != 303 || r.header.Get("Location") != "/login" {
		t.Errorf("%d to %s", r.status, r.header.Get("Location"))
	}
	if r := b.get("/builds?org=a%26b"); r.header.Get("Location") != "/login?to=%2Fbuilds%3Forg%3Da%2526b" {
		t.Errorf("to %s", r.header.Get("Location"))
	}
	b.wants(b.get("/login"), 200, "<form", `name="token"`)
	b.wants(b.login(url.Values{"token": {"wrong"}}), 403, "the token is not known")
	b.wants(b.login(url.Values{"token": {" "}}), 400, "that is not a token")
	b.wants(b.login(url.Values{"token": {strings.Repeat("x", maxToken+1)}}), 400, "that is not a token")
	// An agent's or a node's token opens nothing that a person may see.
	b.wants(b.login(url.Values{"token": {w.cfg.NodeToken}}), 403, "may not run")

	b = w.browser()
	r := b.login(url.Values{"token": {alice}, "to": {"/audit"}})
	cookie := r.header.Get("Set-Cookie")
	if r.status != 303 || r.header.Get("Location") != "/audit" || strings.Contains(cookie, alice) ||
		!strings.Contains(cookie, "HttpOnly") || !strings.Contains(cookie, "SameSite=Strict") {
		t.Errorf("%d to %s, cookie %s", r.status, r.header.Get("Location"), cookie)
	}
	r = b.wants(b.get("/"), 200, "log out", "n1")
	if strings.Contains(r.body, alice) {
		t.Error("the token stands in the page")
	}
	for _, to := range []string{"https://evil.example", "//evil.example", `/\evil.example`, "javascript:alert(1)", "evil"} {
		if r := w.browser().login(url.Values{"token": {alice}, "to": {to}}); r.header.Get("Location") != "/" {
			t.Errorf("%q leads to %s", to, r.header.Get("Location"))
		}
	}
	b = w.visitor(alice)
	b.wants(b.post("/logout", url.Values{"csrf": {b.csrf}}), 303)
	if r := b.get("/"); r.status != 303 {
		t.Errorf("after logging out: %d", r.status)
	}
}

// A log-in is of a form that the page gave to this very browser: no other site
// logs a visitor in as somebody else.
func TestLogInFromElsewhere(t *testing.T) {
	w := newWorld(t)
	b, other := w.browser(), w.browser()
	form := url.Values{"token": {alice}}
	refused := func(what string, r response) {
		t.Helper()
		b.wants(r, 403, "the form was not made for this browser", `name="csrf"`)
		for _, c := range r.header.Values("Set-Cookie") {
			if !strings.HasPrefix(c, w.page.loginCookie()+"=") {
				t.Errorf("%s sets the cookie %s", what, c)
			}
		}
	}
	refused("without a form", b.post("/login", form))
	form.Set("csrf", other.get("/login").hidden("csrf"))
	refused("the form of another browser", b.post("/login", form))
	v := w.visitor(vera)
	form.Set("csrf", v.csrf)
	refused("a form of a session", v.post("/login", form))
	// Two windows of one browser: both forms are good.
	first, second := b.get("/login").hidden("csrf"), b.get("/login").hidden("csrf")
	form.Set("csrf", first)
	b.wants(b.post("/login", form), 303)
	form.Set("csrf", second)
	b.wants(b.post("/login", form), 303)
	// What a refused log-in answers with is a form that works.
	form.Set("csrf", other.post("/login", url.Values{"token": {"wrong"}}).hidden("csrf"))
	other.wants(other.post("/login", form), 303)
}

// Behind a proxy that ends TLS the node sees none of it, and is told by a setting;
// not by the request, in which anybody can say anything.
func TestPublicURL(t *testing.T) {
	w := newWorld(t)
	plain := w.page
	for _, row := range []struct {
		public string
		secure bool
	}{{"", false}, {"http://ci.example:8080", false}, {"https://ci.example/", true}} {
		cfg := plain.cfg
		cfg.Public = row.public
		p, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		w.stopPage()
		w.page = p
		w.startPage(free(t))
		b := w.browser()
		r := b.get("/login", "X-Forwarded-Proto", "https", "Forwarded", "proto=https")
		login, _, _ := strings.Cut(r.header.Get("Set-Cookie"), ";")
		sent := []string{"Cookie", login, "X-Forwarded-Proto", "https"}
		in := b.post("/login", url.Values{"token": {alice}, "csrf": {r.hidden("csrf")}}, sent...)
		out := b.post("/login", url.Values{"token": {"wrong"}, "csrf": {"none"}})
		for _, cookie := range append(append(r.header.Values("Set-Cookie"), in.header.Values("Set-Cookie")...), out.header.Values("Set-Cookie")...) {
			if strings.Contains(cookie, "; Secure") != row.secure {
				t.Errorf("with the public URL %q the cookie is %q", row.public, cookie)
			}
		}
		if in.status != 303 || len(in.header.Values("Set-Cookie")) != 1 {
			t.Errorf("with the public URL %q: %d, %q", row.public, in.status, in.header)
		}
		if hint := strings.Contains(out.body, "log in at https://ci.example"); hint != row.secure {
			t.Errorf("with the public URL %q: %s", row.public, out.body)
		}
		// The proxy may ask for another host than the browser did.
		for origin, want := range map[string]int{strings.TrimSuffix(row.public, "/"): 303, "https://evil.example": 403} {
			if origin == "" {
				continue
			}
			q := b.request(http.MethodPost, "/login", url.Values{"token": {alice}, "csrf": {r.hidden("csrf")}}.Encode(),
				"Content-Type", "application/x-www-form-urlencoded", "Cookie", login, "Origin", origin)
			b.wants(b.do(q), want)
		}
	}
	for _, bad := range []string{"ci.example", "ftp://ci.example", "https://", "https://ci.example/footplate", "https://me@ci.example", "https://ci.example?x", ":"} {
		cfg := plain.cfg
		cfg.Public = bad
		if _, err := New(cfg); fleet.CodeOf(err) != fleet.CodeInvalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestSessionsAreSealed(t *testing.T) {
	s, err := newSealer(testKey, "cluster-1")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	sealed, err := s.shut(session{Token: "secret", Nonce: "n", Until: now.Add(time.Hour).Unix()})
	if err != nil || strings.Contains(sealed, "secret") {
		t.Fatal(sealed, err)
	}
	opens := func(s *sealer, sealed string, at time.Time) bool {
		got, err := s.open(sealed, at)
		return err == nil && got.Token == "secret"
	}
	other := func(key, cluster string) *sealer {
		s, err := newSealer([]byte(strings.Repeat(key, 32)), cluster)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if !opens(s, sealed, now) || !opens(other("k", "cluster-1"), sealed, now) {
		t.Error("a session does not open on every node of the cluster")
	}
	if opens(s, sealed, now.Add(time.Hour)) {
		t.Error("a session opens after its end")
	}
	if opens(other("x", "cluster-1"), sealed, now) || opens(other("k", "cluster-2"), sealed, now) {
		t.Error("a session opens in another cluster")
	}
	for i := range sealed {
		b := []byte(sealed)
		b[i] = 'A' + (b[i]-'A'+1)%26
		if string(b) != sealed && opens(s, string(b), now) && i < len(sealed)-1 {
			t.Fatalf("a session with another letter %d opens", i)
		}
	}
}

// A form acts only with the secret of the session in whose page it stood, and
// when it comes from the page itself.
func TestForgedForms(t *testing.T) {
	w := newWorld(t)
	a, v := w.visitor(alice), w.visitor(vera)
	before := len(w.entries())
	line := url.Values{"line": {"org set acme --slots 4"}}
	with := func(csrf string) url.Values {
		f := url.Values{"csrf": {csrf}}
		for k := range line {
			f[k] = line[k]
		}
		return f
	}
	a.wants(a.post("/run", line), 403, "not of this session")
	a.wants(a.post("/run", with(v.csrf)), 403, "not of this session")
	a.wants(a.post("/run", with(a.csrf), "Sec-Fetch-Site", "cross-site"), 403, "another site")
	a.wants(a.post("/run", with(a.csrf), "Sec-Fetch-Site", "same-site"), 403, "another site")
	a.wants(a.post("/run", with(a.csrf), "Sec-Fetch-Site", "", "Origin", "https://evil.example"), 403, "another site")
	a.wants(a.post("/logout", url.Values{}), 403)
	a.wants(a.get("/run?"+with(a.csrf).Encode()), 404)
	huge := with(a.csrf)
	huge.Set("more", strings.Repeat("x", maxBody))
	a.wants(a.post("/run", huge), 403)
	if n := len(w.entries()); n != before {
		t.Errorf("%d entries came of forged forms", n-before)
	}
	a.wants(a.post("/run", with(a.csrf)), 200, "made org")
}

func TestHeadersOnEveryAnswer(t *testing.T) {
	w := newWorld(t)
	b := w.visitor(vera)
	for _, path := range []string{"/", "/login", "/builds", "/audit", "/audit/1", "/help", "/ask?line=queue+status", "/nothing", "/builds/77", "/static/page.js", "/complete?line="} {
		r := b.get(path)
		for k, v := range headers {
			if got := r.header.Get(k); got != v && k != "Cache-Control" {
				t.Errorf("%s: %s is %q", path, k, got)
			}
		}
		if strings.Contains(r.body, " style=") || strings.Contains(r.body, " onclick=") || strings.Contains(r.body, "<script>") {
			t.Errorf("%s has something inline, which the policy forbids", path)
		}
	}
	js := b.get("/static/page.js").header
	if js.Get("Content-Type") != "text/javascript; charset=utf-8" || js.Get("Cache-Control") != "no-cache" {
		t.Errorf("%v", js)
	}
	if h := b.get(w.page.assetPath("page.css")).header; !strings.Contains(h.Get("Cache-Control"), "immutable") {
		t.Errorf("%v", h)
	}
	b.wants(b.get("/nothing"), 404, "there is no such page")
	b.wants(b.get("/static/none.js"), 404)
}

func TestPrompt(t *testing.T) {
	w := newWorld(t)
	b := w.visitor(alice)
	b.wants(b.run("pool create linux --provider none --size 0"), 200, `made pool &#34;linux&#34;`, `href="/audit/`)
	b.wants(b.run("pool list"), 200, "<table>", ">linux</a>", `href="/ask?line=pool&#43;show&#43;linux"`)
	b.wants(b.run("footplate  pool show linux "), 200, "<dl", "linux")
	b.wants(b.run("pool list -o json"), 200, "<pre", "&#34;name&#34;: &#34;linux&#34;")
	b.wants(b.run("pool list -o yaml"), 400, "the page does not know --output yaml")
	b.wants(b.run("queue status --stale"), 200, "stale: answered without a quorum")
	b.wants(b.run("pool lits"), 400, "error:", "did you mean &#34;pool list&#34;?")
	b.wants(b.run("pool show nosuch"), 404, "there is no pool &#34;nosuch&#34;")
	b.wants(b.run(""), 400, "no command is given")
	b.wants(b.run("help"), 200, "pool scale", "keys")
	b.wants(b.run("help pool"), 200, "pool scale")
	b.wants(b.run("help pool scale"), 200, "pool scale POOL SIZE", "needs the role")
	b.wants(b.run("help pool scael"), 400, "did you mean")
	b.wants(b.run("build logs 7 --task main"), 200, `href="/builds/7?task=main#log"`)
	b.wants(b.run("audit export --to 2"), 200, "<pre", "cluster init")
	b.wants(b.run("cluster snapshot save"), 400, "the command line")
	b.wants(b.run("queue pause --for 10m --dry-run"), 200, "dry run: nothing was done", "dispatch of all builds stops for 10m")
	b.wants(b.run("org set acme --slots 4 -o json"), 200, "&#34;entry&#34;:")
	b.wants(b.run("build submit --org acme --pool linux --run true"), 200, `href="/builds/1"`)

	// Whoever may not is told so, as on every surface.
	v := w.visitor(vera)
	v.wants(v.run("org set acme --slots 9"), 403, "vera may not run")
	v.wants(v.run("org list"), 200, ">acme<")

	// The same key never acts twice.
	first := b.run("org set acme --slots 5", "key", "k1")
	again := b.run("org set acme --slots 5", "key", "k1")
	if strings.Contains(first.body, "nothing was done again") || !strings.Contains(again.body, "nothing was done again") {
		t.Errorf("%s\n%s", first.body, again.body)
	}
}

func TestDisruptiveShowsItsPlanAndAsks(t *testing.T) {
	w := newWorld(t)
	b := w.visitor(alice)
	b.run("pool create linux --provider none --size 0")
	before := len(w.entries())
	line := "queue pause --for 10m --reason 'disk is full'"
	plan := b.wants(b.run(line), 200, "this would be done:", "dispatch of all builds stops for 10m", `class="confirm"`)
	if n := len(w.entries()); n != before {
		t.Fatalf("%d entries before it was confirmed", n-before)
	}
	if c := plan.hidden("confirm"); len(c) != 16 {
		t.Errorf("the form confirms %q, which is no plan", c)
	}
	b.wants(b.run(line, "confirm", "0123456789abcdef", "key", plan.hidden("key")), 409, "has changed since it was shown", `class="confirm"`)
	b.wants(b.run(line, "confirm", plan.hidden("confirm"), "key", plan.hidden("key")), 200, "paused dispatch of all builds for 10m")
	b.wants(b.run("queue pause --stage intake --yes"), 200, "paused intake")
	last := w.entries()
	if e := last[len(last)-2]; e.Op != "queue pause" || e.By != "alice" || e.Via != "page/0.1.0" || e.Reason != "disk is full" {
		t.Errorf("%+v", e)
	}
	// Without the script it is a form on a page of its own.
	r := b.post("/run", url.Values{"line": {line}, "csrf": {b.csrf}})
	b.wants(r, 200, "<!doctype html>", `class="confirm"`, "this would be done:")
	b.wants(b.get("/"), 200, "<b>dispatch is paused</b>", "disk is full")
}

// A link cannot act: it puts the command into the prompt.
func TestLinksDoNotAct(t *testing.T) {
	w := newWorld(t)
	b := w.visitor(alice)
	before := len(w.entries())
	for _, line := range []string{"org set acme --slots 4", "queue pause --yes", "cluster snapshot save"} {
		b.wants(b.get("/ask?line="+url.QueryEscape(line)), 200, "Enter runs it", `value="`+line+`"`)
	}
	if n := len(w.entries()); n != before {
		t.Errorf("links have left %d entries", n-before)
	}
	b.wants(b.get("/ask?line=org+list"), 200, "none")
}

// When it is not known what came of a command, the page says so, and asking
// again with the same key tells without doing it twice.
func TestUnknownOutcome(t *testing.T) {
	w := newWorld(t)
	b := w.visitor(alice)
	w.meddle(func(out http.ResponseWriter, r *http.Request, real http.Handler) {
		real.ServeHTTP(discard{http.Header{}}, r)
		panic(http.ErrAbortHandler)
	})
	r := b.wants(b.run("org set acme --slots 4", "key", "once"), 504, "it is not known whether org set was done", "ask again with the same key")
	if r.hidden("key") != "once" {
		t.Errorf("the form has the key %q", r.hidden("key"))
	}
	w.meddle(nil)
	b.wants(b.run(r.hidden("line"), "key", r.hidden("key"), "confirm", r.hidden("confirm")), 200, "made org &#34;acme&#34;", "nothing was done again")
	n := 0
	for _, e := range w.entries() {
		if e.Op == "org set" {
			n++
		}
	}
	if n != 1 {
		t.Errorf("it was done %d times", n)
	}
}

type discard struct{ header http.Header }

func (d discard) Header() http.Header         { return d.header }
func (d discard) Write(b []byte) (int, error) { return len(b), nil }
func (d discard) WriteHeader(int)             {}

// Without a leader the page shows what the node has, and how old that is.
func TestNoLeader(t *testing.T) {
	w := newWorld(t)
	b := w.visitor(alice)
	b.run("pool create linux --provider none --size 0")
	age := "2s"
	w.meddle(func(out http.ResponseWriter, r *http.Request, real http.Handler) {
		if r.URL.Query().Get("stale") == "true" {
			real.ServeHTTP(aged{out, age}, r)
			return
		}
		out.Header().Set("Content-Type", "application/problem+json")
		out.WriteHeader(503)
		fmt.Fprint(out, `{"code":"unavailable","detail":"nobody leads: nothing was done"}`)
	})
	if r := b.get("/"); strings.Contains(r.body, "no leader") {
		t.Error("two seconds are no reason to alarm")
	}
	age = "45s"
	b.wants(b.get("/"), 200, "<b>no leader.</b>", "45s ago", ">linux</a>")
	b.wants(b.get("/builds"), 200, "<b>no leader.</b> This is 45s old")
	b.wants(b.run("pool list"), 503, "nobody leads", `href="/ask?line=pool&#43;list&#43;--stale"`)
	b.wants(b.run("pool list --stale"), 200, ">linux</a>", "heard a leader 45s ago")
	b.wants(b.run("org set acme --slots 1"), 503, "nothing was done")
}

// aged makes an answer old.
type aged struct {
	http.ResponseWriter
	age string
}

func (a aged) WriteHeader(status int) {
	a.Header().Set(api.HeaderStale, a.age)
	a.ResponseWriter.WriteHeader(status)
}

// A token that is not known any more ends the session.
func TestTokenIsGone(t *testing.T) {
	w := newWorld(t)
	b := w.visitor(alice)
	w.meddle(func(out http.ResponseWriter, _ *http.Request, _ http.Handler) {
		out.Header().Set("Content-Type", "application/problem+json")
		out.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(out, `{"code":"denied","detail":"the token is not known"}`)
	})
	if r := b.get("/builds"); r.status != 303 || r.header.Get("Location") != "/login?to=%2Fbuilds" {
		t.Errorf("%d to %s", r.status, r.header.Get("Location"))
	}
	if r := b.get("/"); r.status != 303 { // the cookie is gone too
		t.Errorf("%d", r.status)
	}
}

func TestTextFromElsewhereIsEscaped(t *testing.T) {
	w := newWorld(t)
	b := w.visitor(alice)
	evil := `<img src=x onerror=alert(1)>"'&` + "\u202e"
	w.does("org set acme --slots 4 --reason " + quote(evil))
	b.run("queue pause --yes --reason " + quote(evil))
	e := w.entries()
	last := e[len(e)-2].N
	for _, path := range []string{"/", "/audit", fmt.Sprint("/audit/", last), "/ask?line=" + url.QueryEscape(evil), "/ask?line=audit+tail", "/builds?org=" + url.QueryEscape(evil)} {
		r := b.get(path)
		if strings.Contains(r.body, "<img") || strings.Contains(r.body, "\u202e") {
			t.Errorf("%s shows it as it is: %s", path, r.body)
		}
		if !strings.Contains(r.body, "&lt;img") {
			t.Errorf("%s does not show it: %s", path, r.body)
		}
	}
	line := b.events("/events?after=0").next("line")
	for !strings.Contains(line.data, "&lt;img") {
		line = b.events("/events?after=" + line.id).next("line")
	}
	if strings.Contains(line.data, "<img") || strings.Contains(line.data, "\u202e") {
		t.Error(line.data)
	}
}

// Who comes back to the channel misses no line and gets none twice.
func TestChannelGoesOnWhereItWas(t *testing.T) {
	w := newWorld(t)
	b := w.visitor(vera)
	w.does("org set acme --slots 4")
	first := b.events("/events")
	if h := first.next("hello"); h.data != "n1" {
		t.Errorf("%+v", h)
	}
	seen := make(map[string]bool)
	var last event
	read := func(s *sse, upto string) {
		for !strings.Contains(last.data, upto) {
			last = s.next("line")
			if seen[last.id] {
				t.Fatalf("line %s came twice", last.id)
			}
			seen[last.id] = true
		}
	}
	read(first, "acme")
	first.body.Close()
	w.does("org set bolt --slots 4")
	w.does("org set cola --slots 4")
	read(b.events("/events", "Last-Event-ID", last.id), "cola")
	w.does("org set dime --slots 4")
	read(b.events("/events?after="+last.id), "dime")
	for n := range len(seen) {
		if !seen[w.page.lineID(uint64(n+1))] {
			t.Errorf("line %d is missing", n+1)
		}
	}
	// The glance comes with it, and again when something has changed.
	s := b.events("/events")
	s.next("piece-glance")
	w.does("pool create linux --provider none --size 0")
	for !strings.Contains(s.next("piece-detail").data, ">linux</a>") {
		continue
	}
	b.wants(b.get("/events?after=x", "Accept", "text/event-stream"), 400, "Last-Event-ID")
}

// After a recovery lines have numbers that others had before: who comes back is
// given the channel anew.
func TestChannelOfARecoveredCluster(t *testing.T) {
	w := newWorld(t)
	b := w.visitor(vera)
	w.does("org set acme --slots 4")
	last := b.events("/events").next("line")
	cfg := w.page.cfg
	cfg.Epoch = 20261121132854
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.stopPage()
	w.page = p
	w.startPage(strings.TrimPrefix(w.url, "http://"))
	for _, s := range []*sse{b.events("/events?after=0.999999"), b.events("/events", "Last-Event-ID", last.id)} {
		if e := s.next("anew"); !strings.Contains(e.data, "recovered") {
			t.Errorf("%+v", e)
		}
		if e := s.next("line"); e.id != "20261121132854.1" {
			t.Errorf("the first line is %+v", e)
		}
	}
	// In the same epoch it goes on.
	if e := b.events("/events?after=20261121132854.1").next("line"); e.id != "20261121132854.2" {
		t.Errorf("the next line is %+v", e)
	}
}

func TestReadChannelTellsWhatIsNotKept(t *testing.T) {
	var got []heard
	readChannel(strings.NewReader(": channel of c\n\n: lines 3 to 9 are no longer kept here: see audit tail\n\nid: 10\nevent: line\ndata: {\"kind\":\"line\",\"line\":{\"n\":10}}\n\ndata: broken\n\n"),
		func(h heard) bool { got = append(got, h); return true })
	if len(got) != 2 || got[0].kind != "gap" || got[0].note != "lines 3 to 9 are no longer kept here: see audit tail" || got[1].line.N != 10 {
		t.Errorf("%+v", got)
	}
}

func TestCompletion(t *testing.T) {
	w := newWorld(t)
	w.does("pool create linux --provider none --size 0")
	w.does("pool create lima --provider none --size 0")
	b := w.visitor(vera)
	for line, want := range map[string]string{
		"po":                            `"word":"pool"`,
		"pool s":                        `"word":"scale","help":"change`,
		"cluster snapshot ":             `"word":"save"`,
		"pool show li":                  `{"word":"lima"},{"word":"linux"}`,
		"footplate pool show linu":      `{"word":"linux"}`,
		"host list --p":                 `"word":"--pool"`,
		"host list --pool ":             `{"word":"lima"},{"word":"linux"}`,
		"host list --pool=linu":         `{"word":"--pool=linux"}`,
		"host list --state su":          `{"word":"suspect"}`,
		"queue status --output ":        `{"word":"wide"}`,
		"help poo":                      `"word":"pool"`,
		"queue pause --stage dispatch ": `"words":[]`,
		"nothing of the kind ":          `"words":[]`,
		"pool show \U0001f600":          `"from":10`,
	} {
		r := b.get("/complete?line=" + url.QueryEscape(line))
		if !strings.Contains(r.body, want) {
			t.Errorf("%q: %s is not in %s", line, want, r.body)
		}
	}
}

func TestBuildsAndAuditCanBeFiltered(t *testing.T) {
	w := newWorld(t)
	w.does("org set acme --slots 4")
	w.does("org set bolt --slots 4")
	w.does("pool create linux --provider none --size 0")
	w.does("build submit --org acme --pool linux --run true")
	w.does("build submit --org bolt --pool linux --run true --run false")
	b := w.visitor(vera)
	b.wants(b.get("/builds"), 200, `href="/builds/1"`, `href="/builds/2"`)
	if r := b.wants(b.get("/builds?org=bolt&state="), 200, `href="/builds/2"`, `value="bolt"`); strings.Contains(r.body, `href="/builds/1"`) {
		t.Error(r.body)
	}
	b.wants(b.get("/builds?state=nonsense"), 400, "--state cannot be &#34;nonsense&#34;")
	b.wants(b.get("/builds/2"), 200, "<h1>build 2</h1>", `data-log="/builds/2/log"`, "waiting")
	b.wants(b.get("/builds/2?task=nosuch"), 404, "no task")
	b.wants(b.get("/builds/x"), 404, "no number of a build")
	r := b.wants(b.get("/audit?by=alice&op=org+set"), 200, "made org &#34;acme&#34;", `value="org set"`)
	if strings.Contains(r.body, "build submit") || strings.Index(r.body, "bolt") > strings.Index(r.body, "acme") {
		t.Errorf("not the newest of them first: %s", r.body)
	}
	b.wants(b.get("/audit/1"), 200, "<h1>entry 1</h1>", "its hash fits", `href="/audit/2"`)
	b.wants(b.get("/audit/99999"), 404, "there is no entry")
	b.wants(b.get("/audit/0"), 404)
}

// A link on another site arrives without the cookie, which is kept back there:
// it is followed once more from a page of ours.
func TestLinkFromAnotherSite(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	r := b.get("/builds?org=%22%3E", "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate")
	b.wants(r, 200, `http-equiv="refresh" content="0; url=/builds?org=%22%3E"`)
	if r := b.get("/builds", "Sec-Fetch-Site", "same-origin", "Sec-Fetch-Mode", "navigate"); r.status != 303 {
		t.Errorf("without a session it goes round in circles: %d", r.status)
	}
}

// Streams are bounded; a page that is too many says so.
func TestTooManyStreams(t *testing.T) {
	w := newWorld(t)
	b := w.visitor(vera)
	for range maxStreams {
		leave, err := w.page.enter()
		if err != nil {
			t.Fatal(err)
		}
		defer leave()
	}
	b.wants(b.get("/events", "Accept", "text/event-stream"), 503, "too many pages open")
}
