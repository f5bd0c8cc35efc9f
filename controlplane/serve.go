package controlplane

import (
	"context"
	"time"

	"footplate/controlplane/api"
	"footplate/controlplane/archive"
	"footplate/controlplane/logs"
	"footplate/controlplane/replica"
	"footplate/controlplane/server"
	"footplate/controlplane/state"
	"footplate/fleet"
)

// member is the replica as the server sees it.
type member struct{ *replica.Replica }

// Propose logs a command, in the lane for people or in that for the fleet.
func (m member) Propose(ctx context.Context, bulk bool, c state.Command) (state.Outcome, error) {
	lane := replica.LaneOperations
	if bulk {
		lane = replica.LaneBulk
	}
	return m.Replica.Propose(ctx, lane, c)
}

// Contact returns how long ago a leader was heard of.
func (m member) Contact() fleet.Duration { return m.Status().LastContact }

// readAtOnce bounds what one call of a peer gets of a log.
const readAtOnce = 1 << 20

// serverConfig is what the server needs of this node.
func (n *Node) serverConfig() server.Config {
	return server.Config{
		Node: n.cfg.Node, Cluster: n.cluster.String(), Version: n.cfg.Version, NodeToken: n.cfg.NodeToken,
		Registry: n.ops, Replica: member{n.replica}, World: n.world,
		View: n.machine.View, Scratch: n.machine.Scratch, Now: n.replica.Now, Mono: mono,
		Nodes: n.nodes, Members: n.members,
		Beat: n.ear.Beat, Testify: n.ear.Testify,
		PutLogs: func(ctx context.Context, chunks []api.Chunk) error {
			put := make([]logs.Chunk, len(chunks))
			for i, c := range chunks {
				put[i] = logs.Chunk(c)
			}
			return n.logs.Put(ctx, put)
		},
		ReadLogs: func(id fleet.AttemptID, from int) []api.Chunk {
			var out []api.Chunk
			for {
				at, ok := heldAfter(n.logs.Have(id), from)
				if !ok {
					return out
				}
				chunks, next, err := n.logs.Read(id, at, readAtOnce)
				if err != nil || len(chunks) == 0 {
					return out
				}
				for _, c := range chunks {
					out = append(out, api.Chunk(c))
				}
				if from = next; len(out) > 1000 {
					return out
				}
			}
		},
		Entries: func(ctx context.Context, from, to fleet.EntryNo) ([]fleet.Entry, error) {
			return n.archive.Query(ctx, archive.Filter{From: from, To: to, Limit: int(to-from) + 1})
		},
		Shared:     n.shared.waiting,
		ArchiveErr: n.archive.Err, Status: n.status, Join: n.join, Log: n.log,
	}
}

// status is what this node tells the others of itself.
func (n *Node) status() api.PeerStatus {
	st := n.replica.Status()
	return api.PeerStatus{
		Node: n.cfg.Node, Cluster: n.cluster.String(), Version: n.cfg.Version, Catalog: n.ops.Fingerprint(),
		Role: string(st.Role), Term: st.Term, Applied: st.Applied, Archive: n.archive.Last(),
		Wall: fleet.TimeOf(time.Now()), Digests: n.machine.Digests(), Forgotten: n.world.forgotten.Load(),
	}
}

// latestMembers returns the newest membership in this node's log.
func (n *Node) latestMembers() (uint64, []fleet.NodeID) {
	version, members := n.replica.LatestMembers()
	ids := make([]fleet.NodeID, len(members))
	for i, m := range members {
		ids[i] = m.ID
	}
	return version, ids
}
