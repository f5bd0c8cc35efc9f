package catalog

import (
	"context"
	"fmt"
	"io"

	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
)

// ClusterStatus shows the nodes.
var ClusterStatus = op.Query(op.Spec{
	Name:     "cluster status",
	Summary:  "show the nodes of the control plane",
	Long:     "The node that answers tells how it sees the others; it needs no quorum for that.",
	Role:     fleet.Viewer,
	Local:    true,
	Examples: []string{"cluster status"},
}, func(ctx context.Context, env op.Env, _ struct{}) (op.Cluster, error) {
	c := env.World.Cluster(ctx)
	c.Cluster = env.View.Cluster
	return c, nil
})

// ClusterSnapshotSave writes the whole state, for a backup.
var ClusterSnapshotSave = op.Stream(op.Spec{
	Name:     "cluster snapshot save",
	Summary:  "write the replicated state as a snapshot, for a backup",
	Role:     fleet.Admin,
	Risk:     op.Safe,
	Show:     state.ShowLine,
	Examples: []string{"cluster snapshot save --reason 'before the upgrade'"},
}, func(tx *state.Tx, m op.Meta, _ struct{}) (op.Result, error) {
	return op.Result{Text: fmt.Sprintf("snapshot of the state at index %d is read", m.Index)}, nil
}, func(ctx context.Context, env op.Env, _ struct{}, w io.Writer) error {
	return env.World.SaveSnapshot(ctx, w)
})

// LeaderBeginArgs says who leads.
type LeaderBeginArgs struct {
	Node fleet.NodeID `json:"node"`
	Term uint64       `json:"term"`
}

// LeaderBegin opens a term: it is the first command of a leader. What was
// decided in an earlier term is refused after it.
var LeaderBegin = op.Internal(op.Spec{
	Name: "leader begin", Summary: "open a leader's term", Role: fleet.System, Opens: true, Record: op.Audit, Show: state.ShowLine,
}, func(tx *state.Tx, _ op.Meta, a LeaderBeginArgs) (op.Result, error) {
	if a.Term <= tx.Term {
		return op.Result{}, fleet.Conflictf("term %d is over; now is term %d", a.Term, tx.Term)
	}
	tx.Term, tx.Leader = a.Term, a.Node
	return op.Result{Text: fmt.Sprintf("node %s leads (term %d)", a.Node, a.Term)}, nil
})

// ClusterInitArgs begins a cluster.
type ClusterInitArgs struct {
	Cluster string        `json:"cluster"`
	Tokens  []fleet.Token `json:"tokens"`
}

// ClusterInit gives a new cluster its id and its first tokens. Done again it
// changes nothing.
var ClusterInit = op.Internal(op.Spec{
	Name: "cluster init", Summary: "begin a cluster", Role: fleet.System, Record: op.Audit, Show: state.ShowLine,
}, func(tx *state.Tx, _ op.Meta, a ClusterInitArgs) (op.Result, error) {
	if tx.Cluster != "" {
		return op.Result{Quiet: true}, nil
	}
	tx.Cluster, tx.Epoch = a.Cluster, 1
	for _, t := range a.Tokens {
		tx.Tokens.Put(t.Hash, t)
	}
	return op.Result{Text: fmt.Sprintf("began cluster %s", a.Cluster)}, nil
})

// NodeJoinArgs describes a node.
type NodeJoinArgs struct {
	Node fleet.NodeID `json:"node"`
	API  string       `json:"api"`
	Raft string       `json:"raft"`
}

// NodeJoin takes in a node of the control plane, or its new address.
var NodeJoin = op.Internal(op.Spec{
	Name: "node join", Summary: "take in a node", Role: fleet.System, Record: op.Audit, Show: state.ShowLine,
}, func(tx *state.Tx, _ op.Meta, a NodeJoinArgs) (op.Result, error) {
	old, known := tx.Nodes.Get(a.Node)
	if known && old.API == a.API && old.Raft == a.Raft {
		return op.Result{Quiet: true}, nil
	}
	if !known {
		tx.Members++
	}
	tx.Nodes.Put(a.Node, state.Node{ID: a.Node, API: a.API, Raft: a.Raft, At: tx.At})
	return op.Result{Text: fmt.Sprintf("node %s is at %s", a.Node, a.API)}, nil
})
