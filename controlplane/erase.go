package controlplane

import (
	"context"
	"time"

	"footplate/controlplane/state"
	"footplate/fleet"
)

// eraseEvery is how often a node looks whether the state has new erasures.
const eraseEvery = 200 * time.Millisecond

// erase makes this node's archive as the state says: level-triggered, so that
// it does not matter when an entry came, from the log again or from a peer.
func (n *Node) erase(ctx context.Context) error {
	tick := time.NewTicker(eraseEvery)
	defer tick.Stop()
	done := make(map[fleet.EntryNo]int) // fields erased
	told := make(map[fleet.EntryNo]bool)
	var last state.Rows[fleet.EntryNo, state.Erasure]
	open := true
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		v := n.machine.View()
		if !open && v.Erasures == last {
			continue
		}
		last, open = v.Erasures, false
		if _, gap := n.archive.Missing(); gap > 0 {
			clear(done) // what comes from a peer may not be erased there yet
			open = v.Erasures.Len() > 0
		}
		fresh := false
		for id, row := range v.Erasures.All() {
			if done[id] == len(row.Fields) {
				continue
			}
			changed, err := n.archive.Erase(ctx, id, row.Fields)
			if err != nil {
				open = true
				if !told[id] && ctx.Err() == nil {
					told[id] = true
					n.log.Warn("an erasure waits", "entry", id, "err", err)
				}
				continue
			}
			done[id] = len(row.Fields)
			if changed {
				fresh = true
				n.log.Info("erased", "entry", id, "fields", row.Fields)
			}
		}
		if fresh {
			n.forget(ctx)
		}
	}
}

// forget takes a snapshot, whose state does not have what was erased. Raft
// drops the log before it but for what slow followers need.
func (n *Node) forget(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	_, from, err := n.replica.Snapshot(ctx)
	if err != nil {
		n.log.Warn("no snapshot could be taken after an erasure; the next has it", "err", err)
		return
	}
	_ = from.Close() // only read
}
