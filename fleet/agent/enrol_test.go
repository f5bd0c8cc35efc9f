package agent

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"footplate/controlplane/api"
	"footplate/controlplane/certs"
	"footplate/fleet"
)

// office signs what agents ask for, over TLS, as a node does.
type office struct {
	t    *testing.T
	dir  string // of footplate tls init
	url  string
	sign *certs.Signer

	mu     sync.Mutex
	asked  []string         // paths
	keys   map[string]bool  // of the requests
	fail   int              // answers to lose
	age    time.Duration    // of the certificates that are given
	denied *fleet.Error     // instead of an answer
	shown  []certs.Identity // by whoever renewed
}

func newOffice(t *testing.T) *office {
	t.Helper()
	o := &office{t: t, dir: t.TempDir(), keys: make(map[string]bool)}
	if _, err := certs.Init(o.dir, map[string][]string{"n1": {"127.0.0.1"}}, time.Now()); err != nil {
		t.Fatal(err)
	}
	keep, err := certs.Open(filepath.Join(o.dir, "n1"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if o.sign, err = certs.LoadSigner(filepath.Join(o.dir, "n1")); err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(o)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.Listener = tls.NewListener(s.Listener, keep.Server())
	s.Start()
	t.Cleanup(s.Close)
	o.url = "https://" + s.Listener.Addr().String()
	return o
}

func (o *office) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var q api.Enrol
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		o.t.Error(err)
	}
	key, err := certs.RequestKey([]byte(q.Request), string(q.Host))
	if err != nil {
		o.t.Error(err)
	}
	o.asked, o.keys[key] = append(o.asked, r.URL.Path), true
	if id, ok := certs.Of(r.TLS); ok {
		o.shown = append(o.shown, id)
	}
	switch {
	case o.denied != nil:
		w.WriteHeader(http.StatusForbidden)
		_ = json.NewEncoder(w).Encode(api.Problem{Code: o.denied.Code, Detail: o.denied.Msg})
		return
	case o.fail > 0:
		o.fail--
		panic(http.ErrAbortHandler)
	}
	cert, err := o.sign.Sign([]byte(q.Request), string(q.Host), time.Now().Add(-o.age))
	if err != nil {
		o.t.Error(err)
	}
	_ = json.NewEncoder(w).Encode(api.Enrolled{Cluster: testCluster, Certificate: string(cert)})
}

// agent makes an agent with a folder that has the authority in it.
func (o *office) agent(join string) *Agent {
	o.t.Helper()
	dir := o.t.TempDir()
	ca, err := os.ReadFile(filepath.Join(o.dir, "ca.pem"))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "ca.pem"), ca, 0o600)
	}
	if err != nil {
		o.t.Fatal(err)
	}
	return o.again(dir, "linux-4", join)
}

func (o *office) again(dir, host, join string) *Agent {
	o.t.Helper()
	keep, err := certs.Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		o.t.Fatal(err)
	}
	a, err := New(Config{Host: fleet.HostID(host), Pool: "linux", Addrs: []string{o.url}, Dir: o.t.TempDir(), TLS: keep, JoinToken: join})
	if err != nil {
		o.t.Fatal(err)
	}
	a.nodes.Store(&[]api.NodeAddr{{Node: "n1", API: o.url}})
	return a
}

// TestEnrolling: the key is made once, an answer that is lost is asked for
// again with it, and who has a certificate does not ask.
func TestEnrolling(t *testing.T) {
	o := newOffice(t)
	o.fail = 1
	a := o.agent("a-token")
	// An agent before this one came as far as its key.
	request, err := certs.Request(a.cfg.TLS.Dir())
	if err != nil {
		t.Fatal(err)
	}
	if key, err := certs.RequestKey(request, "linux-4"); err != nil {
		t.Fatal(err)
	} else {
		o.keys[key] = true
	}
	if err := a.enrol(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(o.asked) != 2 || len(o.keys) != 1 {
		t.Errorf("asked %v with %d keys", o.asked, len(o.keys))
	}
	if id, ok := a.cfg.TLS.Own(); !ok || id.String() != "agent/linux-4" || a.call.cluster.Load() != testCluster {
		t.Errorf("the agent is %s of cluster %q", id, a.call.cluster)
	}
	if info, err := os.Stat(filepath.Join(a.cfg.TLS.Dir(), "key.pem")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key: %v, %v", info, err)
	}
	for name, join := range map[string]string{"with the token": "a-token", "without": ""} {
		if err := o.again(a.cfg.TLS.Dir(), "linux-4", join).enrol(t.Context()); err != nil || len(o.asked) != 2 {
			t.Errorf("%s: %v, asked %v", name, err, o.asked)
		}
	}
	err = o.again(a.cfg.TLS.Dir(), "linux-5", "a-token").enrol(t.Context())
	if e := fleet.AsError(err); e == nil || !strings.Contains(e.Msg, "is of agent/linux-4") {
		t.Errorf("another host's folder: %v", err)
	}
}

// TestEnrollingRefused: what will not get better ends the agent, and says what to do.
func TestEnrollingRefused(t *testing.T) {
	o := newOffice(t)
	err := o.agent("").enrol(t.Context())
	if e := fleet.AsError(err); e == nil || !strings.Contains(e.Hint, "access token create linux-4 --role agent --once") {
		t.Errorf("without a token: %+v", e)
	}
	o.denied = fleet.Deniedf("token is not known")
	if err := o.agent("a-token").enrol(t.Context()); fleet.CodeOf(err) != fleet.CodeDenied {
		t.Errorf("with a wrong one: %v", err)
	}
	stranger := newOffice(t)
	a := o.agent("a-token")
	a.cfg.Addrs = []string{stranger.url}
	err = a.enrol(t.Context())
	if e := fleet.AsError(err); e == nil || e.Code != fleet.CodeInvalid || len(stranger.asked) > 0 {
		t.Errorf("at another cluster: %v; the token went there: %v", err, stranger.asked)
	}
}

// TestRenewing: a certificate whose last third has begun is renewed, with the
// same key, and by showing it; one that has ended needs a token again.
func TestRenewing(t *testing.T) {
	o := newOffice(t)
	o.age = certs.AgentLife * 3 / 4
	a := o.agent("a-token")
	if err := a.enrol(t.Context()); err != nil {
		t.Fatal(err)
	}
	old := a.cfg.TLS.Ends()
	o.mu.Lock()
	o.age = 0
	o.mu.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	done := make(chan struct{})
	go func() { a.renew(ctx); close(done) }()
	for !a.cfg.TLS.Ends().After(old) && ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Millisecond):
		}
	}
	cancel()
	<-done
	if a.cfg.TLS.Ends().Sub(old) < certs.AgentLife/2 {
		t.Fatalf("it ended at %s, and ends at %s", old, a.cfg.TLS.Ends())
	}
	if len(o.keys) != 1 || len(o.shown) != 1 || o.shown[0].String() != "agent/linux-4" || o.asked[len(o.asked)-1] != "/v1/agent.renew" {
		t.Errorf("%d keys, shown %v, asked %v", len(o.keys), o.shown, o.asked)
	}

	o.age = certs.AgentLife + time.Hour
	ended := o.agent("a-token")
	if err := ended.enrol(t.Context()); err != nil {
		t.Fatal(err)
	}
	err := o.again(ended.cfg.TLS.Dir(), "linux-4", "").enrol(t.Context())
	if e := fleet.AsError(err); e == nil || !strings.Contains(e.Msg, "has a certificate that ended on") {
		t.Errorf("after it has ended: %v", err)
	}
	o.age = 0
	anew := o.again(ended.cfg.TLS.Dir(), "linux-4", "another-token")
	if err := anew.enrol(t.Context()); err != nil || !anew.cfg.TLS.Ends().After(time.Now()) {
		t.Errorf("with another token: %v, ends at %s", err, anew.cfg.TLS.Ends())
	}
}

// TestTLSConfig: what cannot work is said before anything is started.
func TestTLSConfig(t *testing.T) {
	o := newOffice(t)
	keep := o.agent("").cfg.TLS
	base := Config{Host: "linux-4", Pool: "linux", Addrs: []string{"n1:4600"}, Dir: t.TempDir()}
	for name, row := range map[string]struct {
		change func(*Config)
		want   string // "" when it is right
	}{
		"a certificate":             {func(c *Config) { c.TLS = keep }, ""},
		"plain, with a token":       {func(c *Config) { c.Token = "t" }, ""},
		"plain, and nothing":        {func(*Config) {}, "has no token"},
		"plain, and good once":      {func(c *Config) { c.JoinToken = "t" }, "has no TLS"},
		"a certificate and http://": {func(c *Config) { c.TLS, c.Addrs = keep, []string{"http://n1:4600"} }, "is to use TLS"},
	} {
		c := base
		row.change(&c)
		a, err := New(c)
		if row.want == "" && err != nil || row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil && c.TLS != nil && a.cfg.Addrs[0] != "https://n1:4600" {
			t.Errorf("%s: the address is %s", name, a.cfg.Addrs[0])
		}
	}
}
