package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"footplate/controlplane/api"
	"footplate/controlplane/client"
	"footplate/fleet"
	"footplate/fleet/lease"
)

// The bounds of a call. A sync is given up by the duty.
const (
	beatTimeout = 2500 * time.Millisecond
	dialTimeout = 2 * time.Second
	logsTimeout = 10 * time.Second
	// shunFor is how long syncs go through other nodes than one that was silent.
	shunFor   = 30 * fleet.Second
	maxAnswer = 64 << 20 // hundreds of the largest build specs
)

// caller talks to nodes. Syncs, beats and logs have connections of their own:
// a log that crawls must not hold up a beat.
type caller struct {
	token, cluster text // its name changes when it is recovered
	tokenFile, via string

	syncs, beats, logs *http.Client

	mu      sync.Mutex
	node    int        // which of the nodes syncs go through while leader is not known
	leader  string     // to which they go directly
	shunned string     // a node that was silent
	shun    lease.Mono // until when syncs go through others, if there are any
	addr    string     // that the newest sync went through
	sentAt  lease.Mono // when it did
	abandon context.CancelCauseFunc

	said text // the newest failure of a sync that was logged
}

// text is a string that several goroutines may use.
type text struct{ v atomic.Value }

func (t *text) Load() string {
	s, _ := t.v.Load().(string)
	return s
}

func (t *text) Store(s string) { t.v.Store(s) }

func newCaller(c Config) *caller {
	pool := func(idle int) *http.Client {
		t := &http.Transport{
			DialContext:         (&net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}).DialContext,
			MaxIdleConnsPerHost: idle,
			IdleConnTimeout:     time.Minute,
		}
		if c.TLS != nil {
			t.DialTLSContext = c.TLS.Dial
		}
		return &http.Client{Transport: t}
	}
	k := &caller{
		tokenFile: c.TokenFile, via: "agent/" + c.Version,
		syncs: pool(2), beats: pool(1), logs: pool(4),
	}
	k.token.Store(c.Token)
	k.cluster.Store(c.Cluster)
	// Not all agents of a fleet begin with the same node.
	for _, b := range []byte(c.Host) {
		k.node = (k.node*31 + int(b)) & 0xffff
	}
	return k
}

// current returns the base URL of the node that syncs go through.
func (k *caller) current(nodes []api.NodeAddr) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.pick(nodes)
}

func (k *caller) pick(nodes []api.NodeAddr) string {
	if k.leader != "" {
		k.addr = k.leader
		return k.addr
	}
	for i := range 2 * len(nodes) {
		n := nodes[k.node%len(nodes)]
		// The second time round any will do.
		if n.API != "" && (!k.shuns(n.API) || i >= len(nodes)) {
			k.addr = n.API
			return n.API
		}
		k.node++
	}
	return ""
}

func (k *caller) shuns(addr string) bool { return addr == k.shunned && now() < k.shun }

// through says which node a sync that is sent now goes through. Its context
// ends early when that node is found not to answer.
func (k *caller) through(ctx context.Context, nodes []api.NodeAddr) (addr string, _ context.Context, done func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	k.abandon, k.sentAt = cancel, now()
	return k.pick(nodes), ctx, func() { cancel(nil) }
}

// turn goes on to the next node, unless that has been done. A node that is silent
// is not soon tried again while there are others.
func (k *caller) turn(from string, silent bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.addr != from {
		return
	}
	if silent {
		k.shunned, k.shun = from, now().Add(shunFor)
	}
	k.node++
	k.addr, k.leader = "", ""
}

// lead is told who answered: a node that passes syncs on, and the answers back,
// does as much work as the leader, for nothing.
func (k *caller) lead(leader fleet.NodeID, nodes []api.NodeAddr) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.leader = ""
	for _, n := range nodes {
		if n.Node == leader && !k.shuns(n.API) {
			k.leader = n.API
		}
	}
}

// blame is told that a beat that was sent at a moment was not answered by a
// node. A sync that waits for the same node, and was sent before, need not be
// waited for any longer: one is held open on purpose, a beat never is.
func (k *caller) blame(addr string, at lease.Mono) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.abandon != nil && k.addr == addr && k.sentAt <= at {
		k.abandon(fleet.Unavailablef("%s does not answer", addr))
	}
}

func (k *caller) close() {
	for _, c := range []*http.Client{k.syncs, k.beats, k.logs} {
		c.CloseIdleConnections()
	}
}

// post sends in and reads out. The error is the one that the server raised,
// where it did.
func (k *caller) post(ctx context.Context, c *http.Client, base, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	return k.send(ctx, c, http.MethodPost, base, path, body, out)
}

// whichCluster asks a node of which cluster it is.
func (k *caller) whichCluster(ctx context.Context, base string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, beatTimeout)
	defer cancel()
	var answer struct {
		Cluster string `json:"cluster"`
	}
	if err := k.send(ctx, k.syncs, http.MethodGet, base, "/v1/agent.cluster", nil, &answer); err != nil {
		return "", err
	}
	if answer.Cluster == "" {
		return "", fleet.Unavailablef("%s is of no cluster yet", base)
	}
	return answer.Cluster, nil
}

// readToken reads the token anew when the one that was sent is not known any
// more: whoever changed it in the cluster has put the new one in the file before.
func (k *caller) readToken(sent string) {
	if k.tokenFile == "" || k.token.Load() != sent {
		return
	}
	if b, err := os.ReadFile(k.tokenFile); err == nil && len(bytes.TrimSpace(b)) > 0 {
		k.token.Store(string(bytes.TrimSpace(b)))
	}
}

func (k *caller) send(ctx context.Context, c *http.Client, method, base, path string, body []byte, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, base+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	token := k.token.Load()
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	req.Header.Set(api.HeaderVia, k.via)
	// Whatever an agent says may be said twice: should the node have closed the
	// connection that was kept, it is said again on another. Nothing is sent.
	req.Header["Idempotency-Key"] = nil
	if cluster := k.cluster.Load(); cluster != "" {
		req.Header.Set(api.HeaderCluster, cluster)
	}
	resp, err := c.Do(req)
	if err != nil {
		if e := client.Untrusted(base, err); e != nil {
			return e
		}
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("read answer of %s: %w", base, err)
	}
	if resp.StatusCode/100 != 2 {
		if resp.StatusCode == http.StatusUnauthorized {
			k.readToken(token)
		}
		var p api.Problem
		if json.Unmarshal(answer, &p) == nil && p.Code != "" {
			return &fleet.Error{Code: p.Code, Msg: p.Detail, Hint: p.Hint}
		}
		if e := client.SpeaksTLS(base, resp.StatusCode, answer); e != nil {
			return e
		}
		return fleet.Unavailablef("%s answers %s", base, resp.Status)
	}
	if out == nil || len(bytes.TrimSpace(answer)) == 0 {
		return nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("understand answer of %s: %w", base, err)
	}
	return nil
}
