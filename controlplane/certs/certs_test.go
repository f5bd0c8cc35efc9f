package certs

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var here = []string{"127.0.0.1", "localhost"}

func initDir(t *testing.T, nodes ...string) string {
	t.Helper()
	dir := t.TempDir()
	list := make(map[string][]string)
	for _, n := range nodes {
		list[n] = here
	}
	if _, err := Init(dir, list, time.Now()); err != nil {
		t.Fatal(err)
	}
	return dir
}

func open(t *testing.T, dir string) *Keeper {
	t.Helper()
	k, err := Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// serve answers with who calls.
func serve(t *testing.T, c *tls.Config) (addr string) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, ok := Of(r.TLS)
		if !ok {
			io.WriteString(w, "somebody")
			return
		}
		io.WriteString(w, id.String())
	}))
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.Listener = tls.NewListener(s.Listener, c)
	s.Start()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func call(k *Keeper, addr string) (string, error) {
	t := &http.Transport{DialTLSContext: k.Dial, DisableKeepAlives: true}
	res, err := (&http.Client{Transport: t, Timeout: 5 * time.Second}).Get("https://" + addr + "/")
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return string(b), err
}

// agent gives an agent of host a folder with its certificate.
func agent(t *testing.T, from, host string) string {
	t.Helper()
	dir := t.TempDir()
	signer, err := LoadSigner(from)
	if err != nil {
		t.Fatal(err)
	}
	key, request, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := signer.Sign(request, host, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(from, authorityCert))
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{ownKey: key, ownCert: cert, authorityCert: ca} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// person gives somebody the authority alone.
func person(t *testing.T, from string) string {
	t.Helper()
	dir := t.TempDir()
	ca, err := os.ReadFile(filepath.Join(from, authorityCert))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, authorityCert), ca, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestWho: who calls whom, and what comes of it.
func TestWho(t *testing.T) {
	cluster, other := initDir(t, "n1", "n2"), initDir(t, "n1", "n2")
	n1, n2 := open(t, filepath.Join(cluster, "n1")), open(t, filepath.Join(cluster, "n2"))
	a := open(t, agent(t, filepath.Join(cluster, "n1"), "linux-4"))
	foreignAgent := agent(t, filepath.Join(other, "n1"), "linux-4")
	foreignNode := filepath.Join(other, "n2")
	for _, k := range []string{foreignAgent, foreignNode} {
		// A stranger who knows the cluster's authority, as anybody may.
		ca, _ := os.ReadFile(filepath.Join(cluster, authorityCert))
		if err := os.WriteFile(filepath.Join(k, authorityCert), ca, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name   string
		config *tls.Config
		caller *Keeper
		want   string // "" when it must fail
	}{
		{"a node calls a node", n1.Server(), n2, "node/n2"},
		{"an agent calls a node", n1.Server(), a, "agent/linux-4"},
		{"a person calls a node", n1.Server(), open(t, person(t, cluster)), "somebody"},
		{"a node of another cluster calls", n1.Server(), open(t, foreignNode), ""},
		{"an agent of another cluster calls", n1.Server(), open(t, foreignAgent), ""},
		{"a person calls another cluster", open(t, filepath.Join(other, "n1")).Server(), open(t, person(t, cluster)), ""},
		{"a node calls a node's raft", n1.Peer(), n2, "node/n2"},
		{"an agent calls a node's raft", n1.Peer(), a, ""},
		{"a person calls a node's raft", n1.Peer(), open(t, person(t, cluster)), ""},
		{"an agent poses as a node", a.Server(), n2, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := call(c.caller, serve(t, c.config))
			if c.want == "" && err == nil || c.want != "" && got != c.want {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

// TestAgentsCannotMakeNodes: what the agents' authority signs is no node,
// whatever it says.
func TestAgentsCannotMakeNodes(t *testing.T) {
	cluster := initDir(t, "n1")
	p, err := loadPair(filepath.Join(cluster, "n1", agentsCert), filepath.Join(cluster, "n1", agentsKey))
	if err != nil {
		t.Fatal(err)
	}
	made, err := p.node("n9", here, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	dir := person(t, cluster)
	if err := made.save(dir, ownCert, ownKey); err != nil {
		t.Fatal(err)
	}
	chain := append(made.certPEM(), p.certPEM()...)
	if err := os.WriteFile(filepath.Join(dir, ownCert), chain, 0o600); err != nil {
		t.Fatal(err)
	}
	forged, n1 := open(t, dir), open(t, filepath.Join(cluster, "n1"))
	for name, c := range map[string]*tls.Config{"server": n1.Server(), "peer": n1.Peer()} {
		if got, err := call(forged, serve(t, c)); err == nil {
			t.Errorf("%s takes the forged node for %s", name, got)
		}
	}
	if got, err := call(n1, serve(t, forged.Server())); err == nil {
		t.Errorf("n1 calls the forged node: %s", got)
	}
}

// TestOtherHost: a node's certificate is good for its own addresses alone.
func TestOtherHost(t *testing.T) {
	dir := t.TempDir()
	if _, err := Init(dir, map[string][]string{"n1": {"10.1.2.3"}, "n2": here}, time.Now()); err != nil {
		t.Fatal(err)
	}
	if got, err := call(open(t, filepath.Join(dir, "n2")), serve(t, open(t, filepath.Join(dir, "n1")).Server())); err == nil {
		t.Errorf("n1 is taken for 127.0.0.1: %s", got)
	}
}

// TestRenew: Init again makes new certificates under the same authority, and a
// process takes them without a restart; files that are broken change nothing.
func TestRenew(t *testing.T) {
	dir := t.TempDir()
	nodes := map[string][]string{"n1": here, "n2": here}
	if _, err := Init(dir, nodes, time.Now().Add(-nodeLife-time.Hour)); err != nil {
		t.Fatal(err)
	}
	n1, n2 := open(t, filepath.Join(dir, "n1")), open(t, filepath.Join(dir, "n2"))
	addr := serve(t, n1.Server())
	if _, err := call(n2, addr); err == nil {
		t.Fatal("certificates that have ended are good")
	}
	made, err := Init(dir, nodes, time.Now())
	if err != nil || made.Authority {
		t.Fatal(made, err)
	}
	for _, k := range []*Keeper{n1, n2} {
		if err := k.Reload(); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := call(n2, addr); err != nil || got != "node/n2" {
		t.Fatal(got, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "n1", ownKey), []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := n1.Reload(); err == nil || !strings.Contains(err.Error(), "cannot be used") {
		t.Errorf("a broken key: %v", err)
	}
	if got, err := call(n2, addr); err != nil || got != "node/n2" {
		t.Error("after a broken key:", got, err)
	}
}

// TestRun: the files are followed.
func TestRun(t *testing.T) {
	dir := initDir(t, "n1")
	k := open(t, filepath.Join(dir, "n1"))
	before := k.Ends()
	if before.IsZero() || !k.now.Load().at[0].Equal(k.times()[0]) {
		t.Fatal("nothing was read")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := k.Run(ctx); err != nil {
		t.Error(err)
	}
}

// TestBad: what is wrong is said with its name.
func TestBad(t *testing.T) {
	dir := initDir(t, "n1")
	n1 := filepath.Join(dir, "n1")
	signer, err := LoadSigner(n1)
	if err != nil {
		t.Fatal(err)
	}
	_, request, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	damaged := []byte(strings.Replace(string(request), "A", "B", 3))
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"no nodes":  {second(Init(t.TempDir(), nil, time.Now())), "no node is named"},
		"no host":   {second(Init(t.TempDir(), map[string][]string{"n1": nil}, time.Now())), `node "n1" has no host name`},
		"bad name":  {second(Init(t.TempDir(), map[string][]string{"../n1": here}, time.Now())), "../n1"},
		"no folder": {second(Open(filepath.Join(dir, "n9"), nil)), "authority cannot be read"},
		"no PEM":    {second(signer.Sign([]byte("x"), "linux-4", time.Now())), "not in PEM"},
		"damaged":   {second(signer.Sign(damaged, "linux-4", time.Now())), `host "linux-4"`},
	} {
		if c.err == nil || !strings.Contains(c.err.Error(), c.want) {
			t.Errorf("%s: %v", name, c.err)
		}
	}
	for _, secret := range []string{filepath.Join(n1, ownKey), filepath.Join(dir, authorityKey), filepath.Join(n1, agentsKey)} {
		if info, err := os.Stat(secret); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", filepath.Base(secret), info.Mode(), err)
		}
	}
	if _, err := os.Stat(filepath.Join(n1, authorityKey)); err == nil {
		t.Error("a node has the authority's key")
	}
}

func second[A any](_ A, err error) error { return err }

// FuzzSign: no request breaks the signer.
func FuzzSign(f *testing.F) {
	dir := f.TempDir()
	if _, err := Init(dir, map[string][]string{"n1": here}, time.Now()); err != nil {
		f.Fatal(err)
	}
	signer, err := LoadSigner(filepath.Join(dir, "n1"))
	if err != nil {
		f.Fatal(err)
	}
	_, request, err := NewRequest()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(request)
	f.Fuzz(func(t *testing.T, b []byte) {
		if out, err := signer.Sign(b, "linux-4", time.Now()); err == nil && len(out) == 0 {
			t.Error("nothing was signed")
		}
	})
}

// TestPlainTransport: raft's network is made of a listener and of Dial.
func TestPlainTransport(t *testing.T) {
	dir := initDir(t, "n1", "n2")
	n1, n2 := open(t, filepath.Join(dir, "n1")), open(t, filepath.Join(dir, "n2"))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	secure := tls.NewListener(l, n1.Peer())
	defer secure.Close()
	go func() {
		c, err := secure.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		io.Copy(c, c)
	}()
	c, err := n2.Dial(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
}
