package replica

import (
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"footplate/fleet"
)

// What is done to a data directory when the quorum is lost for ever. All of it
// is between Open and Run, on one node: what comes of it is a cluster of one,
// whose log begins with a snapshot, and which the others join as new nodes.

// Position is where a log ends.
type Position struct {
	Index, Term uint64
	At          fleet.Time // the state clock
}

// Replay applies everything that this node has on disk to the machine, also
// what it does not know to be committed: a part of the others may have
// acknowledged it. It is for a Replica that does not run, and will not.
func (r *Replica) Replay() (Position, error) {
	metas, err := r.stores.snaps.List()
	if err != nil {
		return Position{}, fmt.Errorf("list snapshots: %w", err)
	}
	if len(metas) > 0 {
		_, from, err := r.stores.snaps.Open(metas[0].ID)
		if err != nil {
			return Position{}, fmt.Errorf("open snapshot: %w", err)
		}
		err = r.fsm.Restore(from)
		if err := errors.Join(err, from.Close()); err != nil {
			return Position{}, err
		}
	}
	end, err := r.stores.logs.LastIndex()
	if err != nil {
		return Position{}, fmt.Errorf("read log: %w", err)
	}
	pos := r.fsm.position()
	for i := pos.Index + 1; i <= end; i++ {
		var l raft.Log
		if err := r.stores.logs.GetLog(i, &l); err != nil {
			return Position{}, fmt.Errorf("log entry %d cannot be read: %w", i, err)
		}
		r.fsm.Apply(&l)
		if err := r.fsm.haltErr(); err != nil {
			return Position{}, err
		}
	}
	pos = r.fsm.position()
	return Position{Index: pos.Index, Term: pos.Term, At: pos.At}, nil
}

// Refound makes what the machine holds the beginning of a cluster of one, this
// node, in cluster's recovery epoch. The log that was here is given up, and the
// directory is of the new epoch when this returns, and not before: until then it
// can be done again. It is for a Replica that does not run, and will not.
func (r *Replica) Refound(cluster Cluster, at Position) error {
	if r.raft.Load() != nil {
		return fleet.Conflictf("node %q is running: it cannot be recovered", r.cfg.NodeID)
	}
	members := raft.Configuration{Servers: []raft.Server{{
		ID: raft.ServerID(r.cfg.NodeID), Address: raft.ServerAddress(r.addr), Suffrage: raft.Voter,
	}}}
	term := max(at.Term, 1)
	voted, err := r.stores.stable.GetUint64(keyCurrentTerm)
	if err != nil && err.Error() != "not found" { // raft's own way to tell
		return fmt.Errorf("read term: %w", err)
	}
	if err := r.stores.stable.SetUint64(keyCurrentTerm, max(voted, term)); err != nil {
		return fmt.Errorf("write term: %w", err)
	}
	write, _ := r.cfg.Machine.Snapshot()
	s := &snapshot{fsm: r.fsm, write: write, pos: position{
		Index: at.Index, Term: term, At: at.At, Members: membersOf(members), Version: at.Index, seen: time.Now(),
	}}
	_, names := raft.NewInmemTransport(raft.ServerAddress(r.addr)) // it only spells the member's address
	sink, err := r.stores.snaps.Create(1, at.Index, term, members, at.Index, names)
	if err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	if err := s.Persist(sink); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	first, err := r.stores.logs.FirstIndex()
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	last, err := r.stores.logs.LastIndex()
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	if last > 0 {
		if err := r.stores.logs.DeleteRange(first, last); err != nil {
			return fmt.Errorf("cut log: %w", err)
		}
	}
	if r.cfg.Disk == nil {
		if err := writeCluster(r.cfg.Dir, cluster); err != nil {
			return err
		}
	}
	r.cluster = cluster
	return nil
}

// keyCurrentTerm is where hashicorp/raft keeps its term.
var keyCurrentTerm = []byte("CurrentTerm")
