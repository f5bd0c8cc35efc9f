package replica

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"footplate/fleet"
)

// Member is one node of the cluster.
type Member struct {
	ID    fleet.NodeID `json:"id"`
	Addr  string       `json:"addr"` // of raft
	Voter bool         `json:"voter"`
}

func membersOf(c raft.Configuration) []Member {
	members := make([]Member, len(c.Servers))
	for i, s := range c.Servers {
		members[i] = Member{ID: fleet.NodeID(s.ID), Addr: string(s.Address), Voter: s.Suffrage == raft.Voter}
	}
	return members
}

// HasData reports whether this node has a log, a vote or a snapshot: such a
// node never bootstraps.
func (r *Replica) HasData() (bool, error) {
	return raft.HasExistingState(r.stores.logs, r.stores.stable, r.stores.snaps)
}

// End returns the index of the last entry that this node has on disk, in its
// log or in a snapshot. It is for a Replica that does not run yet.
func (r *Replica) End() (uint64, error) {
	end, err := r.stores.logs.LastIndex()
	if err != nil {
		return 0, fmt.Errorf("open log: %w", err)
	}
	snaps, err := r.stores.snaps.List()
	if err != nil {
		return 0, fmt.Errorf("list snapshots: %w", err)
	}
	if len(snaps) > 0 {
		end = max(end, snaps[0].Index)
	}
	return end, nil
}

// Bootstrap makes a new cluster of members. It is called once in a cluster's
// life, on one of them, between Open and Run. A node with data refuses.
func (r *Replica) Bootstrap(members []Member) error {
	if r.raft.Load() != nil {
		return fleet.Conflictf("node %q is running: it cannot bootstrap", r.cfg.NodeID)
	}
	var c raft.Configuration
	for _, m := range members {
		if err := fleet.CheckName("node", string(m.ID)); err != nil {
			return err
		}
		s := raft.Server{ID: raft.ServerID(m.ID), Address: raft.ServerAddress(m.Addr), Suffrage: raft.Nonvoter}
		if m.Voter {
			s.Suffrage = raft.Voter
		}
		c.Servers = append(c.Servers, s)
	}
	conf := r.raftConfig()
	err := raft.BootstrapCluster(conf, r.stores.logs, r.stores.stable, r.stores.snaps, nil, c)
	if errors.Is(err, raft.ErrCantBootstrap) {
		return fleet.Conflictf("node %q has data already: it does not bootstrap again", r.cfg.NodeID).
			WithHint("start it without bootstrapping")
	}
	if err != nil {
		return fmt.Errorf("bootstrap cluster %q: %w", r.cluster.ID, err)
	}
	return nil
}

// leading returns raft when this node leads, and a CodeUnavailable error
// otherwise.
func (r *Replica) leading() (*raft.Raft, error) {
	ra := r.raft.Load()
	if ra == nil || r.office.Load() == nil {
		return nil, notLeader(r.cfg.NodeID)
	}
	return ra, nil
}

// AddVoter adds a node to the cluster; it has a vote at once. Adding one that
// is there already at that address does nothing. Leader only.
//
// The node must be up: a cluster of one that grows to two needs both from then
// on.
func (r *Replica) AddVoter(ctx context.Context, id fleet.NodeID, at string) error {
	ra, err := r.leading()
	if err != nil {
		return err
	}
	if err := fleet.CheckName("node", string(id)); err != nil {
		return err
	}
	for _, m := range membersOf(ra.GetConfiguration().Configuration()) {
		switch {
		case m.ID == id && m.Addr == at && m.Voter:
			return nil
		case m.ID != id && m.Addr == at:
			return fleet.Conflictf("address %q is node %q's already", at, m.ID).
				WithHint("give node %q an address of its own, or remove %q first", id, m.ID)
		}
	}
	if err := r.reach(ctx, at); err != nil {
		return fleet.Unavailablef("node %q cannot be reached at %q: %s: nothing was done", id, at, err).
			WithHint("start it first, and check the address that it advertises")
	}
	timeout := r.patience(ctx)
	return r.changed(ctx, "add node "+string(id), func() raft.Future {
		return ra.AddVoter(raft.ServerID(id), raft.ServerAddress(at), 0, timeout)
	})
}

// Remove takes a node out of the cluster. Removing one that is not there does
// nothing. Leader only.
func (r *Replica) Remove(ctx context.Context, id fleet.NodeID) error {
	ra, err := r.leading()
	if err != nil {
		return err
	}
	found, others := false, 0
	for _, m := range membersOf(ra.GetConfiguration().Configuration()) {
		switch {
		case m.ID == id:
			found = true
		case m.Voter:
			others++
		}
	}
	if !found {
		return nil
	}
	if others == 0 {
		return fleet.Conflictf("node %q is the only one with a vote: it cannot be removed", id).
			WithHint("add another node first")
	}
	timeout := r.patience(ctx)
	return r.changed(ctx, "remove node "+string(id), func() raft.Future {
		return ra.RemoveServer(raft.ServerID(id), 0, timeout)
	})
}

// Transfer hands leadership to the node to, to the most advanced one when it is
// empty. Leader only.
func (r *Replica) Transfer(ctx context.Context, to fleet.NodeID) error {
	ra, err := r.leading()
	if err != nil {
		return err
	}
	if to == "" {
		return r.changed(ctx, "transfer leadership", ra.LeadershipTransfer)
	}
	for _, m := range membersOf(ra.GetConfiguration().Configuration()) {
		if m.ID == to && m.Voter {
			if m.ID == r.cfg.NodeID {
				return nil
			}
			return r.changed(ctx, "transfer leadership to "+string(to), func() raft.Future {
				return ra.LeadershipTransferToServer(raft.ServerID(m.ID), raft.ServerAddress(m.Addr))
			})
		}
	}
	return fleet.NotFoundf("no node %q with a vote", to).WithHint("footplate cluster status")
}

// changed starts a change and waits for it. A change that was started goes on
// when ctx ends.
func (r *Replica) changed(ctx context.Context, what string, start func() raft.Future) error {
	done := make(chan error, 1)
	go func() { done <- start().Error() }()
	select {
	case err := <-done:
		switch {
		case err == nil:
			return nil
		case neverLogged(err):
			return notLeader(r.cfg.NodeID)
		case errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrRaftShutdown):
			return fleet.Unknownf("%s: leadership was lost on the way: the outcome is unknown", what).
				WithHint("look at footplate cluster status, then ask again")
		}
		return fmt.Errorf("%s: %w", what, err)
	case <-ctx.Done():
		return fleet.Unknownf("%s: not done in time: the outcome is unknown", what).
			WithHint("look at footplate cluster status, then ask again")
	}
}

// patience is how long raft may wait before it starts a change.
func (r *Replica) patience(ctx context.Context) time.Duration {
	if d, ok := ctx.Deadline(); ok {
		return max(time.Until(d), time.Millisecond)
	}
	return 10 * r.cfg.HeartbeatTimeout
}

// reach tries to connect to a node.
func (r *Replica) reach(ctx context.Context, at string) error {
	if r.cfg.Network != nil {
		if !r.cfg.Network.plugged(raft.ServerAddress(at)) {
			return errors.New("nobody listens there")
		}
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 4*r.cfg.HeartbeatTimeout)
	defer cancel()
	c, err := r.cfg.Dial(ctx, at)
	if err != nil {
		return err
	}
	return c.Close()
}
