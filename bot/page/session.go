package page

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"footplate/controlplane/catalog"
	"footplate/controlplane/client"
	"footplate/fleet"
)

// sessionLife is how long a session lasts: a shift, with its hand-over.
const sessionLife = 14 * time.Hour

// maxToken bounds what is taken for a token.
const maxToken = 512

// session is what the cookie holds, sealed.
type session struct {
	Token string `json:"t"`
	Nonce string `json:"n"`
	Until int64  `json:"u"` // seconds since 1970, by the wall clock
	// Who it was at the log-in: for show, since the API decides anew each time.
	Who  fleet.Principal `json:"w,omitempty"`
	Role fleet.Role      `json:"r,omitempty"`
}

// sealer seals sessions, and makes their secrets.
type sealer struct {
	box     cipher.AEAD
	forms   []byte
	cluster string
	cookie  string // its name: browsers do not tell the ports of a host apart
}

func newSealer(key []byte, cluster string) (*sealer, error) {
	s := &sealer{cluster: cluster, cookie: "footplate-" + cluster[:min(8, len(cluster))]}
	s.forms = fleet.DeriveKey(key, "footplate page form")
	block, err := aes.NewCipher(fleet.DeriveKey(key, "footplate page session"))
	if err != nil {
		return nil, fmt.Errorf("session key: %w", err)
	}
	if s.box, err = cipher.NewGCMWithRandomNonce(block); err != nil {
		return nil, fmt.Errorf("session key: %w", err)
	}
	return s, nil
}

func (s *sealer) shut(in session) (string, error) {
	b, err := json.Marshal(in)
	if err != nil {
		return "", fmt.Errorf("seal session: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(s.box.Seal(nil, nil, b, []byte(s.cluster))), nil
}

func (s *sealer) open(sealed string, now time.Time) (session, error) {
	var out session
	raw, err := base64.RawURLEncoding.DecodeString(sealed)
	if err != nil {
		return out, fmt.Errorf("open session: %w", err)
	}
	b, err := s.box.Open(nil, nil, raw, []byte(s.cluster))
	if err != nil {
		return out, fmt.Errorf("open session: %w", err)
	}
	if err := json.Unmarshal(b, &out); err != nil {
		return out, fmt.Errorf("open session: %w", err)
	}
	if now.Unix() >= out.Until {
		return out, fmt.Errorf("open session: it has ended")
	}
	return out, nil
}

// form returns the secret of a session's forms.
func (s *sealer) form(nonce string) string {
	m := hmac.New(sha256.New, s.forms)
	m.Write([]byte(nonce))
	return base64.RawURLEncoding.EncodeToString(m.Sum(nil))
}

// visit is one request of somebody who has logged in.
type visit struct {
	page    *Page
	session session
	api     *client.Client
	http    *http.Client
	expired atomic.Bool // the API does not know the token any more
	CSRF    string
	Node    fleet.NodeID
}

func (p *Page) visit(r *http.Request) (*visit, error) {
	c, err := r.Cookie(p.seal.cookie)
	if err != nil {
		return nil, err
	}
	s, err := p.seal.open(c.Value, time.Now())
	if err != nil {
		return nil, err
	}
	return p.visitOf(s)
}

func (p *Page) visitOf(s session) (*visit, error) {
	v := &visit{page: p, session: s, CSRF: p.seal.form(s.Nonce), Node: p.cfg.Node}
	v.http = &http.Client{Transport: inProcess{p.cfg.API, func() { v.expired.Store(true) }}}
	var err error
	v.api, err = client.New(client.Config{
		Addrs: []string{nodeAddr}, Token: s.Token, Via: p.via(), HTTP: v.http, Retry: 4 * time.Second,
	})
	return v, err
}

// nodeAddr stands for the node itself.
const nodeAddr = "http://node"

func (p *Page) via() string { return "page/" + p.cfg.Version }

func (v *visit) genuine(form string) bool { return hmac.Equal([]byte(form), []byte(v.CSRF)) }

func (p *Page) loginForm(w http.ResponseWriter, r *http.Request) {
	if _, err := p.visit(r); err == nil {
		http.Redirect(w, r, own(r.URL.Query().Get("to")), http.StatusSeeOther)
		return
	}
	p.views.page(w, http.StatusOK, "login", nil, "log in", loginView{To: own(r.URL.Query().Get("to")), CSRF: p.loginSecret(w, r)})
}

type loginView struct {
	To   string
	CSRF string
	Err  *fleet.Error
}

// loginCookie is the name of the cookie that a log-in form fits.
func (p *Page) loginCookie() string { return p.seal.cookie + "-login" }

// loginForm returns the secret of a log-in form that fits a cookie. A session's
// nonce has no blank: none of its forms fits.
func (s *sealer) loginForm(cookie string) string { return s.form("login " + cookie) }

// loginSecret returns the secret of the visitor's log-in form. The cookie stays
// when there is one: forms may be open in several windows.
func (p *Page) loginSecret(w http.ResponseWriter, r *http.Request) string {
	if c, err := r.Cookie(p.loginCookie()); err == nil && len(c.Value) == len(rand.Text()) {
		return p.seal.loginForm(c.Value)
	}
	c := p.cookie(r, rand.Text(), 0) // until the browser is closed
	c.Name = p.loginCookie()
	http.SetCookie(w, c)
	return p.seal.loginForm(c.Value)
}

// ownLogin reports whether a log-in comes from a form that this browser was given.
func (p *Page) ownLogin(r *http.Request) bool {
	c, err := r.Cookie(p.loginCookie())
	return err == nil && hmac.Equal([]byte(r.PostFormValue("csrf")), []byte(p.seal.loginForm(c.Value)))
}

// own returns a path of the page itself, whatever was asked for.
func own(to string) string {
	u, err := url.Parse(to)
	if err != nil || u.IsAbs() || u.Host != "" || !strings.HasPrefix(to, "/") || strings.HasPrefix(to, "//") || strings.ContainsAny(to, "\\\r\n") {
		return "/"
	}
	return to
}

func (p *Page) login(w http.ResponseWriter, r *http.Request) {
	to := own(r.PostFormValue("to"))
	token := strings.TrimSpace(r.PostFormValue("token"))
	refuse := func(e *fleet.Error) {
		p.views.page(w, e.Code.Meaning().HTTP, "login", nil, "log in", loginView{To: to, CSRF: p.loginSecret(w, r), Err: e})
	}
	if !p.ownLogin(r) {
		e := fleet.Deniedf("the form was not made for this browser: nobody was logged in")
		if p.secure && r.TLS == nil {
			refuse(e.WithHint("log in at %s: by another address the browser keeps no cookie", p.cfg.Public))
			return
		}
		refuse(e.WithHint("once more; the browser must keep cookies"))
		return
	}
	if token == "" || len(token) > maxToken || strings.ContainsAny(token, " \t\r\n") {
		refuse(fleet.Invalidf("that is not a token").WithHint("it is one word: paste all of it"))
		return
	}
	s := session{Token: token, Nonce: rand.Text(), Until: time.Now().Add(sessionLife).Unix()}
	v, err := p.visitOf(s)
	if err != nil {
		refuse(fleet.AsError(err))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
	defer cancel()
	if _, _, err := v.api.Query(ctx, catalog.ClusterStatus, catalog.ClusterStatus.NewArgs(), true); err != nil {
		e := fleet.AsError(err)
		if v.expired.Load() {
			e = fleet.Deniedf("the token is not known").WithHint("has it been revoked, or is it of another cluster?")
		}
		refuse(e)
		return
	}
	s.Who, s.Role = v.whoami(ctx)
	sealed, err := p.seal.shut(s)
	if err != nil {
		refuse(fleet.AsError(err))
		return
	}
	http.SetCookie(w, p.cookie(r, sealed, int(sessionLife/time.Second)))
	http.Redirect(w, r, to, http.StatusSeeOther)
}

// whoami asks who the visitor is; nobody's name when that cannot be told.
func (v *visit) whoami(ctx context.Context) (fleet.Principal, fleet.Role) {
	me, _, err := query[catalog.WhoamiRow](ctx, v, catalog.AccessWhoami, catalog.AccessWhoami.NewArgs())
	if err != nil {
		return "", ""
	}
	return me.Principal, me.Role
}

// Who says who the visitor is.
func (v *visit) Who() fleet.Principal { return v.session.Who }

// Role says what the visitor was at the log-in.
func (v *visit) Role() fleet.Role { return v.session.Role }

func (p *Page) cookie(r *http.Request, value string, age int) *http.Cookie {
	return &http.Cookie{
		Name: p.seal.cookie, Value: value, Path: "/", MaxAge: age,
		HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: p.secure || r.TLS != nil,
	}
}

func (p *Page) forget(w http.ResponseWriter, r *http.Request) { http.SetCookie(w, p.cookie(r, "", -1)) }

func (p *Page) logout(w http.ResponseWriter, r *http.Request, _ *visit) error {
	p.forget(w, r)
	http.Redirect(w, r, "/login", http.StatusSeeOther)
	return nil
}
