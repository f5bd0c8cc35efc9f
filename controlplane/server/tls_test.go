package server

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"footplate/controlplane/api"
	"footplate/controlplane/catalog"
	"footplate/controlplane/certs"
	"footplate/fleet"
)

// secured is a world whose nodes have TLS.
type secured struct {
	*world
	dir string // of footplate tls init
}

func newSecured(t *testing.T, nodes int) *secured {
	t.Helper()
	s := &secured{newWorld(t, nodes), t.TempDir()}
	hosts := make(map[string][]string)
	for _, n := range s.nodes {
		hosts[string(n.id)] = []string{"127.0.0.1"}
	}
	if _, err := certs.Init(s.dir, hosts, time.Now()); err != nil {
		t.Fatal(err)
	}
	for _, n := range s.nodes {
		keep := s.keeper(filepath.Join(s.dir, string(n.id)))
		n.http.Close()
		n.server.cfg.TLS = keep
		for _, l := range []**lane{&n.server.operations, &n.server.agentLane, &n.server.streams, &n.server.peers} {
			*l = newLane(64, keep)
		}
		n.server.routes() // with the new lanes
		n.http = httptest.NewUnstartedServer(n.server)
		n.http.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
		n.http.Listener = tls.NewListener(n.http.Listener, keep.Server())
		n.http.Start()
		n.http.URL = "https://" + n.http.Listener.Addr().String()
	}
	return s
}

func (s *secured) keeper(dir string) *certs.Keeper {
	s.t.Helper()
	k, err := certs.Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		s.t.Fatal(err)
	}
	return k
}

// folder makes a folder with the authority alone.
func (s *secured) folder() string {
	s.t.Helper()
	dir := s.t.TempDir()
	ca, err := os.ReadFile(filepath.Join(s.dir, "ca.pem"))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "ca.pem"), ca, 0o600)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return dir
}

// post sends a body to a node, and reads the answer into out.
func (s *secured) post(n *node, k *certs.Keeper, secret, path string, body, out any, header ...string) error {
	s.t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		s.t.Fatal(err)
	}
	req, err := http.NewRequest(http.MethodPost, n.http.URL+path, bytes.NewReader(b))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set(api.HeaderCluster, testCluster)
	if secret != "" {
		req.Header.Set("Authorization", "Bearer "+secret)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	c := &http.Client{Transport: &http.Transport{DialTLSContext: k.Dial, DisableKeepAlives: true}, Timeout: 10 * time.Second}
	res, err := c.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if err := problemOf(res); err != nil {
		return err
	}
	got, err := io.ReadAll(res.Body)
	if err == nil && out != nil {
		err = json.Unmarshal(got, out)
	}
	return err
}

// token makes a token that is good once.
func (s *secured) token(host string) (secret string) {
	s.t.Helper()
	secret = "join-" + host + randomHex(4)
	s.log(catalog.AccessTokenCreate, catalog.AccessTokenCreateArgs{
		Name: "join-" + randomHex(4), Principal: fleet.Principal(host), Role: fleet.Agent, Once: true, Hash: hashSecret(secret),
	})
	return secret
}

// enrol lets an agent in through a node, and returns its certificates.
func (s *secured) enrol(n *node, host string) *certs.Keeper {
	s.t.Helper()
	dir := s.folder()
	if err := s.tryEnrol(n, dir, host, s.token(host)); err != nil {
		s.t.Fatal(err)
	}
	return s.keeper(dir)
}

func (s *secured) tryEnrol(n *node, dir, host, secret string) error {
	s.t.Helper()
	request, err := certs.Request(dir)
	if err != nil {
		s.t.Fatal(err)
	}
	var got api.Enrolled
	if err := s.post(n, s.keeper(s.folder()), secret, "/v1/agent.enrol", api.Enrol{Host: fleet.HostID(host), Request: string(request)}, &got); err != nil {
		return err
	}
	if got.Cluster != testCluster {
		s.t.Errorf("enrolled in cluster %q", got.Cluster)
	}
	return certs.Save(dir, []byte(got.Certificate))
}

func wants(t *testing.T, what string, err error, code fleet.Code, text string) {
	t.Helper()
	if fleet.CodeOf(err) != code || err != nil && !strings.Contains(err.Error(), text) {
		t.Errorf("%s: %v; want %q, %q", what, err, code, text)
	}
}

func syncOf(host string) api.Sync {
	return api.Sync{Host: fleet.HostID(host), Pool: "linux", Boot: "b1", Incarnation: 1, Seq: uint64(time.Now().UnixNano()), Version: "test"}
}

// TestAgentsWithCertificates: a certificate speaks for its own host alone, on
// every node, and until it is revoked.
func TestAgentsWithCertificates(t *testing.T) {
	t.Parallel()
	s := newSecured(t, 2)
	s.run("pool create linux --provider none")
	n1, n2 := s.nodes[0], s.nodes[1]
	four, five := s.enrol(n2, "linux-4"), s.enrol(n1, "linux-5")
	nobody := s.keeper(s.folder())
	beat := func(n *node, k *certs.Keeper, secret, host string) error {
		return s.post(n, k, secret, "/v1/agent.beat", api.Beat{Host: fleet.HostID(host), Boot: "b1"}, nil)
	}
	wants(t, "its own host", beat(n1, four, "", "linux-4"), "", "")
	wants(t, "another host", beat(n1, four, "", "linux-5"), fleet.CodeDenied, `the certificate of agent:linux-4 is not for host "linux-5"`)
	wants(t, "no certificate", beat(n1, nobody, "", "linux-4"), fleet.CodeDenied, "no token")
	wants(t, "the agents' token, for a host of its own", beat(n1, nobody, "agent", "linux-6"), "", "")
	wants(t, "the agents' token, for a host that has enrolled", beat(n1, nobody, "agent", "linux-4"), fleet.CodeDenied, "comes without its certificate")
	wants(t, "another host's log", s.post(n1, four, "", "/v1/agent.logs", api.Chunks{Host: "linux-5"}, nil), fleet.CodeDenied, "not for host")
	// Through the follower: the leader has not seen the certificate.
	wants(t, "sync", s.post(n2, four, "", "/v1/agent.sync", syncOf("linux-4"), nil), "", "")
	if h, ok := s.view.Load().Hosts.Get("linux-4"); !ok || h.State != fleet.HostReady {
		t.Errorf("after a sync through the follower: %+v", h)
	}
	wants(t, "sync of another host", s.post(n2, four, "", "/v1/agent.sync", syncOf("linux-5"), nil), fleet.CodeDenied, "not for host")
	// Nobody but a node may vouch for an agent.
	for name, k := range map[string]*certs.Keeper{"nobody": nobody, "an agent": five} {
		err := s.post(n1, k, testNodeToken, "/v1/agent.sync", syncOf("linux-4"), nil, api.HeaderFor, "agent:linux-4", api.HeaderForwarded, "n2")
		wants(t, name+" vouches", err, fleet.CodeDenied, "")
	}
	other := s.keeper(filepath.Join(s.dir, "n2"))
	wants(t, "a node without the secret vouches", s.post(n1, other, "agent", "/v1/agent.sync", syncOf("linux-4"), nil, api.HeaderFor, "agent:linux-4"), fleet.CodeDenied, "nodes' secret")

	s.run("access revoke agent:linux-4")
	wants(t, "after it was revoked", beat(n1, four, "", "linux-4"), fleet.CodeDenied, "void")
	wants(t, "after it was revoked, through the follower", s.post(n2, four, "", "/v1/agent.sync", syncOf("linux-4"), nil), fleet.CodeDenied, "void")
	wants(t, "the other", beat(n1, five, "", "linux-5"), "", "")
	// Enrolled anew, the former key is void.
	newer := s.enrol(n1, "linux-5")
	wants(t, "enrolled anew", beat(n2, newer, "", "linux-5"), "", "")
	wants(t, "the former key", beat(n2, five, "", "linux-5"), fleet.CodeDenied, "void")
	// So is that of a host that was removed: it needs a new token.
	wants(t, "before it is removed", s.post(n1, newer, "", "/v1/agent.sync", syncOf("linux-5"), nil), "", "")
	s.log(catalog.HostLose, catalog.HostLoseArgs{Host: "linux-5", Why: "silent"})
	s.run("host remove linux-5")
	wants(t, "after it was removed", s.post(n1, newer, "", "/v1/agent.sync", syncOf("linux-5"), nil), fleet.CodeDenied, "the host was removed")
	wants(t, "after it was removed, a beat", beat(n2, newer, "", "linux-5"), fleet.CodeDenied, "void")
	wants(t, "with a new token", beat(n1, s.enrol(n2, "linux-5"), "", "linux-5"), "", "")
}

// TestEnrol: a token is good once, for one key; whoever has lost the answer is
// answered again.
func TestEnrol(t *testing.T) {
	t.Parallel()
	s := newSecured(t, 2)
	n1, n2 := s.nodes[0], s.nodes[1]
	secret, mine := s.token("linux-4"), s.folder()
	before := len(s.recorded())
	wants(t, "not known", s.tryEnrol(n1, s.folder(), "linux-4", "no-such-token"), fleet.CodeDenied, "not known")
	wants(t, "another host", s.tryEnrol(n1, s.folder(), "linux-5", secret), fleet.CodeDenied, `is for host "linux-4"`)
	wants(t, "the shared token", s.tryEnrol(n1, s.folder(), "linux-4", "agent"), fleet.CodeDenied, "is not for one enrolment")
	if got := len(s.recorded()); got != before {
		t.Errorf("strangers left %d entries", got-before)
	}
	wants(t, "another use of the token", s.post(n1, s.keeper(s.folder()), secret, "/v1/agent.beat", api.Beat{Host: "linux-4", Boot: "b"}, nil), fleet.CodeDenied, "and nothing else")
	wants(t, "the first time", s.tryEnrol(n2, mine, "linux-4", secret), "", "")
	if e := s.last(); e.Op != catalog.HostEnrol.Name || e.By != "agent:linux-4" {
		t.Errorf("the entry is %+v", e)
	}
	entries := len(s.recorded())
	wants(t, "the answer was lost", s.tryEnrol(n1, mine, "linux-4", secret), "", "")
	wants(t, "another key", s.tryEnrol(n1, s.folder(), "linux-4", secret), fleet.CodeDenied, "was used on")
	if got := len(s.recorded()); got != entries {
		t.Errorf("%d more entries", got-entries)
	}
	s.mu.Lock()
	s.clock = s.clock.Add(fleet.EnrolAgain)
	s.mu.Unlock()
	wants(t, "too late", s.tryEnrol(n1, mine, "linux-4", secret), fleet.CodeDenied, "was used on")

	// Renewed is the same key alone.
	k := s.keeper(mine)
	renew := func(k *certs.Keeper, host, dir string) error {
		request, err := certs.Request(dir)
		if err != nil {
			t.Fatal(err)
		}
		var got api.Enrolled
		if err := s.post(n2, k, "", "/v1/agent.renew", api.Enrol{Host: fleet.HostID(host), Request: string(request)}, &got); err != nil {
			return err
		}
		return certs.Save(dir, []byte(got.Certificate))
	}
	wants(t, "renewed", renew(k, "linux-4", mine), "", "")
	wants(t, "renewed for another host", renew(k, "linux-5", mine), fleet.CodeDenied, "not for host")
	wants(t, "renewed for another key", renew(k, "linux-4", s.folder()), fleet.CodeDenied, "for the same key alone")
	wants(t, "with the renewed one", s.post(n1, s.keeper(mine), "", "/v1/agent.beat", api.Beat{Host: "linux-4", Boot: "b"}, nil), "", "")
}

// TestNodesNeedCertificates: the nodes' secret alone is not enough.
func TestNodesNeedCertificates(t *testing.T) {
	t.Parallel()
	s := newSecured(t, 2)
	n1 := s.nodes[0]
	join := api.Join{Node: "n2", API: s.nodes[1].http.URL, Raft: "127.0.0.1:1"}
	wants(t, "no certificate", s.post(n1, s.keeper(s.folder()), testNodeToken, "/v1/peer.join", join, nil), fleet.CodeDenied, "no node's certificate")
	wants(t, "an agent", s.post(n1, s.enrol(n1, "linux-4"), testNodeToken, "/v1/peer.join", join, nil), fleet.CodeDenied, "no node's certificate")
	n2 := s.keeper(filepath.Join(s.dir, "n2"))
	wants(t, "no secret", s.post(n1, n2, "", "/v1/peer.join", join, nil), fleet.CodeDenied, "no token")
	wants(t, "a node", s.post(n1, n2, testNodeToken, "/v1/peer.join", join, nil), "", "")
	join.Node = "n3"
	wants(t, "a node as another", s.post(n1, n2, testNodeToken, "/v1/peer.join", join, nil), fleet.CodeDenied, "may not join with the certificate of node/n2")
}

// TestNoTLS: without TLS there is nothing to enrol for.
func TestNoTLS(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	a := w.nodes[0].as("agent", http.MethodPost, "/v1/agent.enrol", api.Enrol{Host: "linux-4"})
	if p := a.problem(400, fleet.CodeInvalid); !strings.Contains(p.Detail, "has no TLS") || !strings.Contains(p.Hint, "--tls DIR") {
		t.Errorf("%+v", p)
	}
}
