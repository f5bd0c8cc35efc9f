package controlplane

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"sort"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"footplate/controlplane/api"
	"footplate/controlplane/state"
	"footplate/fleet"
)

// The pace of what nodes ask each other.
const (
	peerEvery   = time.Second
	peerTimeout = 900 * time.Millisecond
	peerFresh   = 5 * time.Second // what is known of a node counts for this long
)

// peers asks the other nodes how they are, and what they hold.
type peers struct {
	self    fleet.NodeID
	cluster string
	token   string
	http    *http.Client
	nodes   func() []api.NodeAddr // all, this one included
	log     *slog.Logger
	catalog string // names the operations that this node knows

	mu       sync.Mutex
	known    map[fleet.NodeID]peer
	overtook error                     // the cluster was recovered without this node
	other    map[string]api.Operations // of catalogs that are not ours, by their names
	// differ are the nodes that know other operations than this one, as they were
	// last heard; nil when there are none, as nearly always.
	differ atomic.Pointer[[]differing]
}

// peer is what is known of another node.
type peer struct {
	status api.PeerStatus
	ahead  fleet.Duration // its wall clock, of ours
	at     time.Time
}

// differing is a node that knows other operations than this one.
type differing struct {
	node    fleet.NodeID
	version string
	knows   api.Operations
}

func newPeers(cfg Config, cluster string, nodes func() []api.NodeAddr, log *slog.Logger) *peers {
	transport := &http.Transport{MaxIdleConnsPerHost: 8, IdleConnTimeout: time.Minute}
	if cfg.TLS != nil {
		transport.DialTLSContext = cfg.TLS.Dial
	}
	return &peers{
		self: cfg.Node, cluster: cluster, token: cfg.NodeToken, nodes: nodes, log: log,
		http: &http.Client{Transport: transport}, known: make(map[fleet.NodeID]peer), other: make(map[string]api.Operations),
	}
}

// others returns every node but this one.
func (p *peers) others() []api.NodeAddr {
	var out []api.NodeAddr
	for _, n := range p.nodes() {
		if n.Node != p.self {
			out = append(out, n)
		}
	}
	return out
}

// run keeps what is known of the other nodes up to date.
func (p *peers) run(ctx context.Context) error {
	tick := time.NewTicker(peerEvery)
	defer tick.Stop()
	for {
		var all sync.WaitGroup
		for _, n := range p.others() {
			all.Go(func() { p.ask(ctx, n) })
		}
		all.Wait()
		p.mu.Lock()
		err := p.overtook
		p.mu.Unlock()
		if err != nil {
			p.log.Error("halting: the cluster goes on without what this node has", "err", err, "hint", fleet.AsError(err).Hint)
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (p *peers) ask(ctx context.Context, n api.NodeAddr) {
	ctx, cancel := context.WithTimeout(ctx, peerTimeout)
	defer cancel()
	var st api.PeerStatus
	sent := time.Now()
	if err := p.call(ctx, http.MethodGet, n, "/v1/peer.status", nil, &st); err != nil {
		p.log.Debug("a node does not answer", "peer", n.Node, "err", err)
		return
	}
	if st.Cluster != p.cluster {
		p.stranger(st)
		return
	}
	if n.Node == "" {
		return // asked only for that
	}
	took := time.Since(sent)
	middle := sent.Add(took / 2) // of the question and the answer
	p.mu.Lock()
	p.known[n.Node] = peer{st, st.Wall.Sub(fleet.TimeOf(middle)), time.Now()}
	p.mu.Unlock()
	p.compare(ctx, n, st.Catalog)
}

// compare notes which nodes know other operations than this one, and learns
// which those are when it hears of them for the first time.
func (p *peers) compare(ctx context.Context, n api.NodeAddr, catalog string) {
	p.mu.Lock()
	_, have := p.other[catalog]
	p.mu.Unlock()
	if catalog != p.catalog && !have {
		var knows api.Operations
		if err := p.call(ctx, http.MethodGet, n, "/v1/peer.operations", nil, &knows); err != nil {
			p.log.Debug("a node does not say what it knows", "peer", n.Node, "err", err)
			return
		}
		p.mu.Lock()
		p.other[catalog] = knows
		p.mu.Unlock()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var differ []differing
	for _, o := range p.others() {
		k := p.known[o.Node].status
		if knows, ok := p.other[k.Catalog]; ok && k.Catalog != p.catalog {
			differ = append(differ, differing{o.Node, k.Version, knows})
		}
	}
	if differ == nil {
		p.differ.Store(nil)
		return
	}
	p.differ.Store(&differ)
}

// fits refuses a command that another node does not know: it would halt there. A
// node that is away counts as it was last heard.
func (p *peers) fits(c *state.Command) *fleet.Error {
	differ := p.differ.Load()
	if differ == nil {
		return nil
	}
	for _, d := range *differ {
		if known := d.knows[c.Op]; known < c.Ver {
			return fleet.Conflictf("node %q (%s) does not know %q as this version means it, and would halt: nothing was done", d.node, d.version, c.Op).
				WithHint("upgrade every node first: footplate cluster status shows their versions")
		}
	}
	return nil
}

// stranger is told of a node that is of another cluster now. When it is this one
// in a later recovery epoch, this node must halt: with others of its own epoch it
// could still make a majority, and do beside the recovered cluster what that does.
func (p *peers) stranger(st api.PeerStatus) {
	id, epoch, err := fleet.ParseCluster(p.cluster)
	of, other, bad := fleet.ParseCluster(st.Cluster)
	if err != nil || bad != nil || of != id || other <= epoch {
		p.log.Debug("a node is of another cluster", "peer", st.Node, "cluster", st.Cluster)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.overtook = fleet.Conflictf("cluster %q was recovered: node %q is of epoch %d, and this node's data of epoch %d", id, st.Node, other, epoch).
		WithHint("move the data directory away and let the node join again")
}

// fresh returns what is known of the other nodes and not too old.
func (p *peers) fresh() map[fleet.NodeID]peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make(map[fleet.NodeID]peer, len(p.known))
	for id, k := range p.known {
		if time.Since(k.at) < peerFresh {
			out[id] = k
		}
	}
	return out
}

// wallOffsets returns how far the other nodes' wall clocks are ahead of ours.
func (p *peers) wallOffsets() []fleet.Duration {
	var out []fleet.Duration
	for _, k := range p.fresh() {
		out = append(out, k.ahead)
	}
	return out
}

// outvoted compares digests. It returns an error when a majority of the voters
// agrees on another digest than ours at the same index: then it is this node
// that has gone wrong, and must halt.
func (p *peers) outvoted(ours []api.Digest, voters int) error {
	known := p.fresh()
	for _, d := range ours {
		votes := make(map[string]int)
		for _, k := range known {
			for _, o := range k.status.Digests {
				if o.Index == d.Index {
					votes[o.Sum]++
				}
			}
		}
		for sum, n := range votes {
			if sum != d.Sum && n > voters/2 {
				return fmt.Errorf("state differs from the majority's at index %d: %d of %d nodes have digest %s, this one %s; "+
					"move its data directory away and let it join again", d.Index, n, voters, sum, d.Sum)
			}
		}
	}
	return nil
}

// testify asks the other nodes about hosts, and returns the answers that came
// in time, in no order.
func (p *peers) testify(ctx context.Context, q api.Testify) []api.Testimony {
	ctx, cancel := context.WithTimeout(ctx, peerTimeout)
	defer cancel()
	var mu sync.Mutex
	var out []api.Testimony
	var all sync.WaitGroup
	for _, n := range p.others() {
		all.Go(func() {
			var t api.Testimony
			if err := p.call(ctx, http.MethodPost, n, "/v1/peer.testify", q, &t); err != nil {
				p.log.Debug("a node does not testify", "peer", n.Node, "err", err)
				return
			}
			if t.Node != n.Node || len(t.Testimonies) != len(q.Hosts) {
				p.log.Warn("a node's testimony does not fit the question", "peer", n.Node)
				return
			}
			mu.Lock()
			out = append(out, t)
			mu.Unlock()
		})
	}
	all.Wait()
	return out
}

// logs returns the chunks of an attempt that the other nodes hold, from number
// from on, each once, in order; and the nodes that did not answer.
func (p *peers) logs(ctx context.Context, id fleet.AttemptID, from int) (chunks []api.Chunk, silent []string) {
	ctx, cancel := context.WithTimeout(ctx, peerTimeout)
	defer cancel()
	var mu sync.Mutex
	byN := make(map[int]api.Chunk)
	var all sync.WaitGroup
	for _, n := range p.others() {
		all.Go(func() {
			var got api.Chunks
			q := url.Values{"attempt": {id.String()}, "from": {strconv.Itoa(from)}}
			err := p.call(ctx, http.MethodGet, n, "/v1/peer.logs?"+q.Encode(), nil, &got)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				silent = append(silent, string(n.Node))
				return
			}
			for _, c := range got.Chunks {
				byN[c.N] = c
			}
		})
	}
	all.Wait()
	for _, c := range byN {
		chunks = append(chunks, c)
	}
	sort.Slice(chunks, func(i, j int) bool { return chunks[i].N < chunks[j].N })
	sort.Strings(silent)
	return chunks, silent
}

// entries returns audit entries that this node lacks, from whichever node has
// them.
func (p *peers) entries(ctx context.Context, from, to fleet.EntryNo) ([]fleet.Entry, error) {
	var last error = fleet.Unavailablef("there is no other node to ask")
	for _, n := range p.others() {
		var got []fleet.Entry
		q := url.Values{"from": {strconv.FormatUint(uint64(from), 10)}, "to": {strconv.FormatUint(uint64(to), 10)}}
		if last = p.call(ctx, http.MethodGet, n, "/v1/peer.entries?"+q.Encode(), nil, &got); last == nil && len(got) > 0 {
			return got, nil
		}
	}
	return nil, last
}

// join asks the nodes at addrs to take this one in.
func (p *peers) join(ctx context.Context, addrs []string, j api.Join) error {
	var last error = fleet.Invalidf("no address to join at is given")
	for _, a := range addrs {
		call, cancel := context.WithTimeout(ctx, 10*time.Second)
		last = p.call(call, http.MethodPost, api.NodeAddr{API: a}, "/v1/peer.join", j, nil)
		cancel()
		if last == nil {
			return nil
		}
	}
	return last
}

// call makes one call to a node. An answer that is an error comes back as the
// error that the node raised.
func (p *peers) call(ctx context.Context, method string, n api.NodeAddr, path string, body, into any) error {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("encode call of node %s: %w", n.Node, err)
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, n.API+path, r)
	if err != nil {
		return fmt.Errorf("call node %s: %w", n.Node, err)
	}
	req.Header.Set("Authorization", "Bearer "+p.token)
	req.Header.Set(api.HeaderCluster, p.cluster)
	req.Header.Set(api.HeaderVia, "node/"+string(p.self))
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := p.http.Do(req)
	if err != nil {
		return fmt.Errorf("call node %s: %w", n.Node, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 64<<20))
	if err != nil {
		return fmt.Errorf("read answer of node %s: %w", n.Node, err)
	}
	if res.StatusCode >= 300 {
		var pr api.Problem
		if json.Unmarshal(b, &pr) == nil && pr.Code != "" {
			return &fleet.Error{Code: pr.Code, Msg: pr.Detail, Hint: pr.Hint}
		}
		return fmt.Errorf("node %s answers %s", n.Node, res.Status)
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("answer of node %s: %w", n.Node, err)
	}
	return nil
}
