// Package controlplane puts a node of the control plane together, in one
// straight line: stores, replica, ears, loops, HTTP.
package controlplane

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"footplate/controlplane/api"
	"footplate/controlplane/archive"
	"footplate/controlplane/catalog"
	"footplate/controlplane/certs"
	"footplate/controlplane/logs"
	"footplate/controlplane/loop"
	"footplate/controlplane/op"
	"footplate/controlplane/replica"
	"footplate/controlplane/server"
	"footplate/controlplane/state"
	"footplate/fleet"
	"footplate/fleet/provider"

	"golang.org/x/sync/errgroup"
)

// Config is what a node needs to know before there is a cluster. What an
// operator may want to change at three in the morning is not here: it is
// replicated state.
type Config struct {
	Node   fleet.NodeID
	Dir    string // of its data; one process at a time
	Listen string // of HTTP: host:port
	API    string // base URL by which others reach Listen; http://Listen, or https, when empty
	Raft   string // of Raft: host:port
	// RaftAdvertise is what the other nodes call Raft by; Raft when empty.
	RaftAdvertise string
	Version       string
	// TLS has the certificates of the node: everything is encrypted then, and
	// only nodes with a certificate of the cluster are nodes. Without it there is
	// plain HTTP and TCP.
	TLS *certs.Keeper

	// Cluster is the id of the cluster. With Bootstrap it may be left out, and
	// one is made; a node that joins asks the nodes at Join for it.
	Cluster   string
	Bootstrap bool     // begin a new cluster, unless Dir has data
	Join      []string // base URLs of nodes of the cluster to join, unless Dir has data

	// NodeToken is the secret that the nodes share. Tokens, with Bootstrap, are
	// the first that let people and agents in.
	NodeToken string
	Tokens    []fleet.Token

	Providers map[string]provider.Provider
	// Sinks are where the channel goes beside the console, by name; the same on
	// every node.
	Sinks map[string]loop.Poster
	// Page makes what answers in a browser, Slack answers Slack over HTTP. Both
	// are optional.
	Page        PageMaker
	Public      string // URL by which browsers reach the page; empty when it is API
	Slack       http.Handler
	AgentToken  string   // given to machines that a provider makes
	Postgres    string   // URL of the shared archive; none when empty
	SkipCommand []string // INDEX/POSITION of poisoned commands to step over
	Heartbeat   time.Duration
	Log         *slog.Logger
}

// TokenHash returns what is kept of a token's secret.
func TokenHash(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// NewSecret makes a secret of 256 random bits.
func NewSecret(prefix string) string {
	var b [32]byte
	rand.Read(b[:]) // never fails
	return prefix + hex.EncodeToString(b[:])
}

// Node is one node of the control plane.
type Node struct {
	cfg     Config
	log     *slog.Logger
	cluster replica.Cluster
	ops     *op.Registry
	machine *machine
	archive *archive.Archive
	logs    *logs.Store
	replica *replica.Replica
	ear     *ear
	peers   *peers
	world   *world
	server  *server.Server
	http    net.Listener
	shared  *shared                     // nil when there is none
	page    func(context.Context) error // nil when there is none
	fresh   bool                        // had no data when it was opened
}

// New opens the stores and the ports of a node, and checks them. It starts
// nothing; a Node that is not run must be closed.
func New(ctx context.Context, cfg Config) (_ *Node, err error) {
	n := &Node{cfg: cfg, log: cfg.Log.With("node", cfg.Node), ops: catalog.All()}
	if cfg.API == "" {
		n.cfg.API = "http://" + cfg.Listen
		if cfg.TLS != nil {
			n.cfg.API = "https://" + cfg.Listen
		}
	}
	skip, err := parseSkips(cfg.SkipCommand)
	if err != nil {
		return nil, err
	}
	if err := checkName(cfg.Dir, cfg.Node); err != nil {
		return nil, err
	}
	if n.cluster, err = n.whichCluster(ctx); err != nil {
		return nil, err
	}
	n.cfg.Cluster = n.cluster.ID
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	if n.archive, err = archive.Open(filepath.Join(cfg.Dir, "audit"), n.cluster.String()); err != nil {
		return nil, err
	}
	if n.logs, err = logs.Open(filepath.Join(cfg.Dir, "logs")); err != nil {
		return nil, err
	}
	if n.shared, err = newShared(cfg.Postgres, n.cluster, n.archive, n.log); err != nil {
		return nil, err
	}
	n.machine = newMachine(n.ops, skip, n.archive.Append)
	n.machine.epoch = n.cluster.Epoch
	n.ear = newEar(cfg.Node)
	n.peers = newPeers(cfg, n.cluster.String(), n.nodes, n.log)
	n.peers.catalog, n.machine.fits = n.ops.Fingerprint(), n.peers.fits
	rc := replica.Config{
		NodeID: cfg.Node, Cluster: n.cluster,
		Dir: cfg.Dir, RaftAddr: cfg.Raft, Advertise: cfg.RaftAdvertise, Machine: n.machine, Log: cfg.Log, Via: "node/" + cfg.Version,
		Lead: n.lead, BeforeSnapshot: n.flushArchive, WallOffsets: n.peers.wallOffsets,
		OnMembership: n.ear.member, HeartbeatTimeout: cfg.Heartbeat,
	}
	if cfg.TLS != nil {
		l, err := net.Listen("tcp", cfg.Raft)
		if err != nil {
			return nil, fmt.Errorf("listen for Raft: %w", err)
		}
		rc.Listener = tls.NewListener(l, cfg.TLS.Peer())
		rc.Dial = func(ctx context.Context, addr string) (net.Conn, error) { return cfg.TLS.Dial(ctx, "tcp", addr) }
	}
	if n.replica, err = replica.Open(rc); err != nil {
		return nil, err
	}
	hasData, err := n.replica.HasData()
	if err != nil {
		return nil, err
	}
	n.fresh = !hasData
	if err := n.checkLog(ctx); err != nil {
		return nil, err
	}
	if n.fresh && cfg.Bootstrap {
		if err := n.replica.Bootstrap([]replica.Member{{ID: cfg.Node, Addr: n.replica.Addr(), Voter: true}}); err != nil {
			return nil, err
		}
	}
	n.world = &world{
		node: cfg.Node, version: cfg.Version, machine: n.machine, replica: n.replica,
		archive: n.archive, logs: n.logs, peers: n.peers, ear: n.ear, shared: n.shared,
	}
	sc := n.serverConfig()
	sc.TLS, sc.Slack = cfg.TLS, cfg.Slack
	if cfg.Page != nil {
		if sc.Page, n.page, err = cfg.Page(n.pageSeed()); err != nil {
			return nil, err
		}
	}
	if n.server, err = server.New(sc); err != nil {
		return nil, err
	}
	if n.http, err = net.Listen("tcp", cfg.Listen); err != nil {
		return nil, fmt.Errorf("listen for HTTP: %w", err)
	}
	if cfg.TLS != nil {
		n.http = tls.NewListener(n.http, cfg.TLS.Server())
	}
	return n, nil
}

// checkName refuses the data directory of another node.
func checkName(dir string, node fleet.NodeID) error {
	file := filepath.Join(dir, "node")
	b, err := os.ReadFile(file)
	switch owner := strings.TrimSpace(string(b)); {
	case errors.Is(err, os.ErrNotExist):
		if err := os.WriteFile(file, []byte(string(node)+"\n"), 0o600); err != nil {
			return fmt.Errorf("data directory: %w", err)
		}
		return nil
	case err != nil:
		return fmt.Errorf("data directory: %w", err)
	case owner != string(node):
		return fleet.Conflictf("data directory %q is of node %q, not %q", dir, owner, node).WithHint("give the node a directory of its own")
	}
	return nil
}

// checkLog refuses a log that ends before what this node is known to have
// applied: it was cut off or damaged, and a node that forgets what it has
// acknowledged must not vote.
func (n *Node) checkLog(ctx context.Context) error {
	newest := n.archive.Last()
	if newest == 0 {
		return nil
	}
	e, err := n.archive.Get(ctx, newest)
	if err != nil {
		return err
	}
	end, err := n.replica.End()
	if err != nil {
		return err
	}
	if end < e.Index {
		return fleet.Internalf("the log of node %q ends at entry %d, and its audit archive has what was done at %d: the log was damaged or cut off", n.cfg.Node, end, e.Index).
			WithHint("move %s away and let the node join again", n.cfg.Dir)
	}
	return nil
}

// whichCluster finds out which cluster this node is of, and in which recovery
// epoch: its data says, or the configuration, or the nodes that it joins.
func (n *Node) whichCluster(ctx context.Context) (replica.Cluster, error) {
	known, ok, err := replica.ReadCluster(n.cfg.Dir)
	none := replica.Cluster{}
	switch {
	case err != nil:
		return none, err
	case strings.Contains(n.cfg.Cluster, "/"):
		return none, fleet.Invalidf("--cluster %s is not the id of a cluster: it has a slash", n.cfg.Cluster)
	case ok && n.cfg.Cluster != "" && known.ID != n.cfg.Cluster:
		return none, fleet.Conflictf("data directory %s is of cluster %s, not %s", n.cfg.Dir, known.ID, n.cfg.Cluster).
			WithHint("give the node a directory of its own")
	case ok:
		return known, nil
	case n.cfg.Bootstrap && n.cfg.Cluster != "":
		return replica.Cluster{ID: n.cfg.Cluster, Epoch: 1}, nil
	case n.cfg.Bootstrap:
		return replica.Cluster{ID: NewSecret("")[:16], Epoch: 1}, nil
	case len(n.cfg.Join) == 0 && n.cfg.Cluster != "":
		return replica.Cluster{ID: n.cfg.Cluster, Epoch: 1}, nil
	case len(n.cfg.Join) == 0:
		return none, fleet.Invalidf("node %q has no data, and neither --bootstrap nor --join is given", n.cfg.Node).
			WithHint("--bootstrap on the first node, --join URL on the others")
	}
	// The cluster is not known yet, so the question cannot name it.
	ask := newPeers(n.cfg, "", nil, n.log)
	for {
		var last error
		for _, a := range n.cfg.Join {
			var st api.PeerStatus
			call, cancel := context.WithTimeout(ctx, 2*time.Second)
			last = ask.call(call, http.MethodGet, api.NodeAddr{API: a}, "/v1/peer.status", nil, &st)
			cancel()
			if last == nil && st.Cluster != "" {
				id, epoch, err := fleet.ParseCluster(st.Cluster)
				if err == nil && n.cfg.Cluster != "" && id != n.cfg.Cluster {
					err = fleet.Conflictf("the node at %s is of cluster %s, not %s", a, id, n.cfg.Cluster).WithHint("check --join and --cluster")
				}
				return replica.Cluster{ID: id, Epoch: epoch}, err
			}
			if fleet.CodeOf(last) == fleet.CodeDenied {
				return none, fleet.Deniedf("the nodes at %s do not know this node's secret", strings.Join(n.cfg.Join, ", ")).
					WithHint("copy DATA/secrets/node of the first node, or say --node-token-file")
			}
		}
		n.log.Info("waiting for a node to join", "addrs", n.cfg.Join, "err", last)
		select {
		case <-ctx.Done():
			return none, ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// Addr returns the address that HTTP listens on.
func (n *Node) Addr() net.Addr { return n.http.Addr() }

// Close closes a Node that was not run.
func (n *Node) Close() error {
	var errs []error
	if n.http != nil {
		errs = append(errs, n.http.Close())
	}
	if n.replica != nil {
		errs = append(errs, n.replica.Close())
	}
	return errors.Join(append(errs, n.closeStores())...)
}

func (n *Node) closeStores() error {
	var errs []error
	if n.shared != nil {
		n.shared.close()
	}
	if n.logs != nil {
		errs = append(errs, n.logs.Close())
	}
	if n.archive != nil {
		errs = append(errs, n.archive.Close())
	}
	return errors.Join(errs...)
}

// Run takes part in the cluster until ctx ends, which returns nil, or the node
// halts.
func (n *Node) Run(ctx context.Context) error {
	archiveCtx, stopArchive := context.WithCancel(context.WithoutCancel(ctx))
	defer stopArchive()
	archived := make(chan error, 1)
	go func() { archived <- n.archive.Run(archiveCtx) }()

	g, run := errgroup.WithContext(ctx)
	if n.cfg.TLS != nil {
		g.Go(func() error { return n.cfg.TLS.Run(run) })
	}
	g.Go(func() error { return n.replica.Run(run) })
	g.Go(func() error { return n.ear.run(run) })
	g.Go(func() error { return n.peers.run(run) })
	g.Go(func() error { return n.server.Serve(run, n.http) })
	g.Go(func() error { return n.compare(run) })
	g.Go(func() error { return n.fill(run) })
	g.Go(func() error { return n.erase(run) })
	g.Go(func() error { return n.introduce(run) })
	g.Go(func() error { return n.sweep(run) })
	if n.page != nil {
		g.Go(func() error { return n.page(run) })
	}
	err := g.Wait()
	stopArchive()
	err = errors.Join(err, <-archived, n.closeStores())
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// nodes returns where the nodes are.
func (n *Node) nodes() []api.NodeAddr {
	var out []api.NodeAddr
	for id, row := range n.machine.View().Nodes.All() {
		out = append(out, api.NodeAddr{Node: id, API: row.API})
	}
	return out
}

// members returns the committed membership with addresses, for agents.
func (n *Node) members() (version uint64, nodes []api.NodeAddr) {
	st := n.replica.Status()
	v := n.machine.View()
	for _, m := range st.Members {
		row, _ := v.Nodes.Get(m.ID)
		nodes = append(nodes, api.NodeAddr{Node: m.ID, API: row.API})
	}
	return st.MembersVersion, nodes
}

// joinWords is what a new machine is told.
func (n *Node) joinWords() provider.Join {
	j := provider.Join{Token: n.cfg.AgentToken, Cluster: n.cluster.String()}
	for _, a := range n.nodes() {
		j.Addrs = append(j.Addrs, a.API)
	}
	return j
}

// flushArchive lets no snapshot pass what the archive has on disk.
func (n *Node) flushArchive(uint64) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return n.archive.Flush(ctx, n.machine.View().Entry)
}

// lead runs while this node leads.
func (n *Node) lead(ctx context.Context, term uint64) {
	n.log.Info("leading", "term", term)
	if err := n.begin(ctx); err != nil {
		n.log.Warn("the term did not begin well", "term", term, "err", err)
	}
	if n.shared != nil {
		var delivery sync.WaitGroup
		defer delivery.Wait()
		sharing, end := context.WithCancel(ctx)
		defer end()
		delivery.Go(func() { n.shared.run(sharing, n.machine.View) })
	}
	hear := &listener{
		node: n.cfg.Node, ear: n.ear, peers: n.peers, given: n.server, members: n.latestMembers,
		term: term, recovered: n.machine.recovered,
	}
	loop.Run(ctx, loop.Config{
		View: n.machine.View, WaitView: n.machine.WaitView, Now: n.replica.Now,
		Propose: func(ctx context.Context, c state.Command) (state.Outcome, error) {
			return n.replica.Propose(ctx, replica.LaneOperations, c)
		},
		Listen: hear.listen, Providers: n.cfg.Providers, Sinks: n.cfg.Sinks, Entry: n.archive.Get, Join: n.joinWords, Log: n.log,
		StepDown: func() {
			to, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			if err := n.replica.Transfer(to, ""); err != nil {
				n.log.Error("the office could not be handed over", "err", err)
			}
		},
	})
	n.log.Info("no longer leading", "term", term)
}

// begin gives a new cluster its id and its first tokens, and names this node.
func (n *Node) begin(ctx context.Context) error {
	if n.machine.View().Cluster == "" {
		tokens := append([]fleet.Token{{
			Name: "nodes", Hash: TokenHash(n.cfg.NodeToken), Principal: "nodes", Role: fleet.System,
		}}, n.cfg.Tokens...)
		if err := n.propose(ctx, catalog.ClusterInit, catalog.ClusterInitArgs{Cluster: n.cfg.Cluster, Tokens: tokens}); err != nil {
			return err
		}
	}
	return n.propose(ctx, catalog.NodeJoin, catalog.NodeJoinArgs{Node: n.cfg.Node, API: n.cfg.API, Raft: n.replica.Addr()})
}

// propose logs a command of this node's own.
func (n *Node) propose(ctx context.Context, o *op.Op, args any) error {
	raw, err := o.Encode(args)
	if err != nil {
		return err
	}
	out, err := n.replica.Propose(ctx, replica.LaneOperations, state.Command{
		Op: o.Name, Ver: o.Version(), By: fleet.Principal("node:" + n.cfg.Node), Role: fleet.System,
		Via: "node/" + n.cfg.Version, Salt: NewSecret("")[:32], Args: raw,
	})
	switch {
	case err != nil:
		return err
	case out.Err != nil:
		return out.Err
	}
	return nil
}

// introduce asks the cluster to take this node in when it is new, and to note
// its address when that has changed.
func (n *Node) introduce(ctx context.Context) error {
	me := api.Join{Node: n.cfg.Node, API: n.cfg.API, Raft: n.replica.Addr()}
	for !n.introduced() {
		addrs := append([]string(nil), n.cfg.Join...)
		for _, o := range n.peers.others() {
			addrs = append(addrs, o.API)
		}
		if len(addrs) > 0 && n.replica.Status().Role != replica.RoleLeader {
			if err := n.peers.join(ctx, addrs, me); err != nil {
				n.log.Info("not taken into the cluster yet", "err", err)
				if fleet.CodeOf(err) == fleet.CodeConflict {
					// It may have been recovered; a node whose log nobody confirms
					// any more knows of no others than those that it is told.
					for _, a := range addrs {
						n.peers.ask(ctx, api.NodeAddr{API: a})
					}
				}
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(500 * time.Millisecond):
		}
	}
	return nil
}

func (n *Node) introduced() bool {
	row, ok := n.machine.View().Nodes.Get(n.cfg.Node)
	return ok && row.API == n.cfg.API
}

// join takes a node in: leader only.
func (n *Node) join(ctx context.Context, j api.Join) error {
	if err := fleet.CheckName("node", string(j.Node)); err != nil {
		return err
	}
	if err := n.replica.AddVoter(ctx, j.Node, j.Raft); err != nil {
		return err
	}
	return n.propose(ctx, catalog.NodeJoin, catalog.NodeJoinArgs{Node: j.Node, API: j.API, Raft: j.Raft})
}

// compare looks after this node itself: it says when the archive cannot be
// written, and halts the node when the majority has another state.
func (n *Node) compare(ctx context.Context) error {
	tick := time.NewTicker(peerEvery)
	defer tick.Stop()
	told := fmt.Sprint(error(nil)) // what was last said of the archive
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := n.archive.Err(); fmt.Sprint(err) != told {
			told = fmt.Sprint(err)
			if err != nil {
				n.log.Error("the audit archive cannot be written; entries wait in memory", "err", err)
			} else {
				n.log.Info("the audit archive is written again")
			}
		}
		if err := n.peers.outvoted(n.machine.Digests(), len(n.replica.Status().Members)); err != nil {
			n.log.Error("halting: this node has gone wrong", "err", err)
			return err
		}
	}
}

// fill fills what the archive lacks from the other nodes: a node that joined
// by snapshot has not seen the entries before it.
func (n *Node) fill(ctx context.Context) error {
	for {
		wait := time.Second
		if head := n.machine.restored.Swap(nil); head != nil {
			n.archive.BeginAt(n.machine.View().Kept())
			if err := n.archive.Expect(ctx, head.N, head.Hash); err != nil && ctx.Err() == nil {
				return err
			}
		}
		if from, to := n.archive.Missing(); to > 0 {
			const some = 200 // as many of the longest fit into an answer
			if to-from >= some {
				from = to - some + 1
			}
			got, err := n.peers.entries(ctx, from, to)
			if err == nil {
				err = n.archive.Fill(ctx, got)
			}
			if err == nil {
				wait = 0
			} else if ctx.Err() == nil {
				n.log.Warn("the audit archive has a gap that is not filled yet", "from", from, "to", to, "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}
