package controlplane

import (
	"context"
	"time"

	"footplate/controlplane/logs"
	"footplate/controlplane/state"
)

// sweepEvery is how often a node drops the output of retired builds. It is not
// urgent: nobody can ask for it any more.
const sweepEvery = time.Minute

// sweep drops the output of retired builds from this node's disk. Each node
// does so by itself, by what its own state says: one that was away catches up.
func (n *Node) sweep(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		removed, err := dropRetired(ctx, n.logs, n.machine.View())
		switch {
		case err != nil && ctx.Err() == nil:
			n.log.Warn("the output of retired builds is not dropped", "err", err)
		case removed > 0:
			n.log.Info("dropped the output of retired builds", "attempts", removed)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// dropRetired drops the output of the attempts that v does not have any more.
// What v does not have yet, on a node that is behind, stays.
func dropRetired(ctx context.Context, store *logs.Store, v *state.View) (removed int, err error) {
	for _, id := range store.Attempts() {
		if !v.Retired(id) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return removed, err
		}
		if err := store.Remove(id); err != nil {
			return removed, err
		}
		removed++
	}
	return removed, nil
}
