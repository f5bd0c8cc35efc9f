package catalog

import (
	"context"
	"fmt"
	"io"
	"slices"

	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
	"footplate/fleet/lease"
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

// ClusterClockStep is for a gap between the state clock and the nodes' wall
// clocks that is too big to be followed without a person. The leader knows it by
// its name (replica.ClockStep), and moves the clock with its log entry.
var ClusterClockStep = op.Mutation(op.Spec{
	Name:    "cluster clock step",
	Summary: "set the state clock by the nodes' wall clocks, over whatever gap",
	Long: "Forward at once, so that pauses, tokens and grants that have ended by then end now;\n" +
		"backward by going slower. Set the nodes' clocks right first: it goes by their median.",
	Role:     fleet.Admin,
	Risk:     op.Disruptive,
	Show:     state.ShowLine,
	Examples: []string{"cluster clock step --reason 'all nodes were off over night'"},
}, func(tx *state.Tx, m op.Meta, _ struct{}) (op.Result, error) {
	return op.Result{
		Text:    fmt.Sprintf("the state clock goes by the nodes' wall clocks: it is %s", moment(m.At)),
		Changes: []string{"the state clock goes forward to the median of the nodes' wall clocks, or slower until they are there; what ends at a time by then ends now"},
	}, nil
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

// ClusterRestoreArgs says what a cluster goes on from.
type ClusterRestoreArgs struct {
	Node    fleet.NodeID  `json:"node"`
	File    string        `json:"file,omitempty"`   // the snapshot; empty when a node's own data is gone on from
	SHA256  string        `json:"sha256,omitempty"` // of the file
	Index   uint64        `json:"index"`            // of the newest log entry in it
	Entries fleet.EntryNo `json:"entries"`          // of the record, as the state counts them
	Kept    fleet.EntryNo `json:"kept"`             // the oldest of them that is there; one more than Entries when none is
	Epoch   uint64        `json:"epoch"`            // that begins
	// Tokens let nodes in, and people who have lost theirs: they replace those of
	// the same name.
	Tokens []fleet.Token `json:"tokens,omitempty"`
	User   string        `json:"user,omitempty"` // of the machine, who did it
}

// RecoveryGap is what the numbers of builds, attempts and launches leave out at
// a restore. The numbers that follow were given before, to what is lost; they
// stand in chats and tickets, in the logs on the nodes' disks and in the names
// of machines. A gap makes them different without a second part in every
// number. It is more than a fleet makes between two backups; the entries of the
// record need none: they are told apart by the epoch, and linked by hashes.
const RecoveryGap = 1_000_000

// ClusterRestore goes on from an earlier state, in a new recovery epoch. It is
// no operation for a running cluster: "footplate server restore" and "recover"
// apply it to what they have read, and the log begins with what comes of it.
//
// Attempts that the state does not know may run, on hosts that it takes for
// idle, until their leases have ended by themselves. So nothing is given out
// while Fence is set, and the leader lifts it (ClusterUnfence) when it has
// listened for as long as such a lease may last, by its own clock: the same rule
// as that of a node that has just started, and cannot testify.
var ClusterRestore = op.Internal(op.Spec{
	Name: "cluster restore", Summary: "go on from an earlier state, in a new recovery epoch", Role: fleet.System, Record: op.Audit, Show: state.ShowLine,
}, func(tx *state.Tx, _ op.Meta, a ClusterRestoreArgs) (op.Result, error) {
	switch {
	case tx.Cluster == "":
		return op.Result{}, fleet.Conflictf("the state is of no cluster: there is nothing to go on from")
	case a.Epoch <= tx.Epoch:
		return op.Result{}, fleet.Conflictf("recovery epoch %d is over; now is epoch %d", a.Epoch, tx.Epoch)
	}
	r := state.Recovery{Epoch: a.Epoch, At: tx.At, Entry: tx.Meta.Entry, Head: tx.Head, Kept: a.Kept, Launch: tx.Meta.Launch}
	tx.Epoch = a.Epoch
	tx.Meta.Build += RecoveryGap
	tx.Meta.Attempt += RecoveryGap
	tx.Meta.Launch += RecoveryGap
	r.NextLaunch = tx.Meta.Launch
	tx.Recoveries = append(slices.Clone(tx.Recoveries), r)

	tx.Fence = fleet.DefaultFenceAfter
	for _, p := range tx.Pools.All() {
		tx.Fence = max(tx.Fence, p.FenceAfter)
	}
	var nodes []fleet.NodeID
	for id := range tx.Nodes.All() {
		nodes = append(nodes, id)
	}
	for _, id := range nodes {
		tx.Nodes.Delete(id)
	}
	tx.Members++
	for _, t := range a.Tokens {
		var old []string
		for hash, o := range tx.Tokens.All() {
			if o.Name == t.Name && hash != t.Hash {
				old = append(old, hash)
			}
		}
		for _, hash := range old {
			tx.Tokens.Delete(hash)
		}
		if _, ok := tx.Tokens.Get(t.Hash); !ok {
			tx.Tokens.Put(t.Hash, t)
		}
	}
	return op.Result{Text: restoreText(a, tx.Fence)}, nil
})

func restoreText(a ClusterRestoreArgs, fence fleet.Duration) string {
	from := fmt.Sprintf("what node %s had", a.Node)
	if a.File != "" {
		from = "snapshot " + a.File
	}
	record := "with the whole record"
	switch {
	case a.Kept > a.Entries && a.Entries > 0:
		record = "without the record"
	case a.Kept > 1:
		record = fmt.Sprintf("with the record from entry %d on", a.Kept)
	}
	return fmt.Sprintf("recovery epoch %d: node %s goes on from %s, at index %d and entry %d, %s; what was done after that is lost, and hosts get work again when what they run has ended (%s)",
		a.Epoch, a.Node, from, a.Index, a.Entries, record, fence+lease.Margin(fence))
}

// ClusterUnfenceArgs says which recovery it is about.
type ClusterUnfenceArgs struct {
	Epoch uint64         `json:"epoch"`
	After fleet.Duration `json:"after"` // for so long the leader knew of the epoch
}

// ClusterUnfence ends the wait after a recovery: every lease of the epoch before
// has certainly ended.
var ClusterUnfence = op.Internal(op.Spec{
	Name: "cluster unfence", Summary: "give hosts work again after a recovery", Role: fleet.System, Record: op.Audit, Show: state.ShowLine,
}, func(tx *state.Tx, _ op.Meta, a ClusterUnfenceArgs) (op.Result, error) {
	if tx.Fence == 0 || a.Epoch != tx.Epoch {
		return op.Result{Quiet: true}, nil
	}
	tx.Fence = 0
	return op.Result{Text: fmt.Sprintf("hosts get work again: whatever ran before recovery epoch %d has ended by itself", tx.Epoch)}, nil
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
