package controlplane

import (
	"context"
	"log/slog"
	"net/http"

	"footplate/controlplane/catalog"
	"footplate/controlplane/op"
	"footplate/fleet"
)

// PageSeed is what the page in the browser needs of its node.
type PageSeed struct {
	Node     fleet.NodeID
	Cluster  string // id
	Epoch    uint64
	Version  string
	Registry *op.Registry
	API      http.Handler // the node's own, called in process
	Key      []byte       // the same on every node
	Queue    func(context.Context) (catalog.QueueDetail, error)
	Log      *slog.Logger
	Public   string // URL by which browsers reach the cluster; empty when it is the nodes' own
}

// PageMaker makes what answers in a browser, and what keeps it up to date while
// the node runs.
type PageMaker func(PageSeed) (h http.Handler, run func(context.Context) error, err error)

func (n *Node) pageSeed() PageSeed {
	return PageSeed{
		Node: n.cfg.Node, Cluster: n.cfg.Cluster, Epoch: n.cluster.Epoch, Version: n.cfg.Version, Registry: n.ops,
		API: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { n.server.ServeHTTP(w, r) }),
		Key: fleet.DeriveKey([]byte(n.cfg.NodeToken), "footplate page"), Log: n.log, Public: n.cfg.Public,
		Queue: func(ctx context.Context) (catalog.QueueDetail, error) {
			got, err := catalog.QueueStatus.Query(ctx, op.Env{
				View: n.machine.View(), Now: n.replica.Now(), Stale: true, Node: n.cfg.Node, World: n.world, Ops: n.ops,
				Caller: op.Caller{Principal: "page", Role: fleet.Viewer},
			}, catalog.QueueStatus.NewArgs())
			if err != nil {
				return catalog.QueueDetail{}, err
			}
			return got.(catalog.QueueDetail), nil
		},
	}
}
