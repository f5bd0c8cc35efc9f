package controlplane

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"footplate/controlplane/api"
	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
)

// eraseEvery is how often a node looks whether the state has new erasures.
const eraseEvery = 200 * time.Millisecond

// forgetAgain is the pause before the log is looked at again, when what is to
// leave it could not yet.
const forgetAgain = time.Second

// erase makes this node's archive and its log as the state says: level-triggered,
// so that it does not matter when an entry came, from the log again or from a peer.
func (n *Node) erase(ctx context.Context) error {
	tick := time.NewTicker(eraseEvery)
	defer tick.Stop()
	done := make(map[fleet.EntryNo]int) // fields erased
	told := make(map[fleet.EntryNo]bool)
	var last state.Rows[fleet.EntryNo, state.Erasure]
	var again time.Time // when the log is looked at
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
		newest := uint64(0)
		for id, row := range v.Erasures.All() {
			newest = max(newest, row.Index)
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
				n.log.Info("erased", "entry", id, "fields", row.Fields)
			}
		}
		if newest > n.world.forgotten.Load() {
			if time.Now().After(again) && !n.forget(ctx, newest) {
				again = time.Now().Add(forgetAgain)
			}
			open = open || newest > n.world.forgotten.Load()
		}
	}
}

// forget takes what was logged up to index off this node's disk, and reports
// whether it is gone.
func (n *Node) forget(ctx context.Context, index uint64) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	done, err := n.replica.Forget(ctx, index)
	if err != nil && ctx.Err() == nil {
		n.log.Warn("the log still has what was erased; it is tried again", "err", err)
	}
	if done {
		n.world.forgotten.Store(index)
		n.log.Info("the log and the snapshots have nothing that was erased", "index", index)
	}
	return done
}

// Erased returns how far an erasure is on the nodes and in the shared archive.
func (w *world) Erased(ctx context.Context, e state.Erasure) []op.ErasedAt {
	others := w.peers.others()
	out := make([]op.ErasedAt, 1, 2+len(others))
	own, err := w.archive.Get(ctx, e.Entry)
	out[0] = erasedOnNode(w.node, e, []fleet.Entry{own}, w.forgotten.Load(), err)
	found := make([]op.ErasedAt, len(others))
	ctx, cancel := context.WithTimeout(ctx, peerTimeout)
	defer cancel()
	var all sync.WaitGroup
	for i, p := range others {
		all.Go(func() {
			var st api.PeerStatus
			err := w.peers.call(ctx, http.MethodGet, p, "/v1/peer.status", nil, &st)
			var there []fleet.Entry
			if err == nil {
				there, err = w.peerEntries(ctx, p, e.Entry, e.Entry)
			}
			found[i] = erasedOnNode(p.Node, e, there, st.Forgotten, err)
		})
	}
	var shared *op.ErasedAt
	if w.shared != nil {
		all.Go(func() { shared = w.shared.erased(ctx, &w.machine.View().Meta, e) })
	}
	all.Wait()
	slices.SortFunc(found, func(a, b op.ErasedAt) int { return strings.Compare(a.Where, b.Where) })
	out = append(out, found...)
	if shared != nil {
		out = append(out, *shared)
	}
	return out
}

// erasedOnNode says how far an erasure is on a node, by the entry that it has in
// its archive and the index up to which its log was forgotten.
func erasedOnNode(id fleet.NodeID, e state.Erasure, there []fleet.Entry, forgotten uint64, err error) op.ErasedAt {
	at := op.ErasedAt{Where: "node " + string(id)}
	switch {
	case fleet.CodeOf(err) == fleet.CodeNotFound || err == nil && len(there) == 0:
		at.Note = "its archive does not have the entry yet"
	case err != nil:
		at.Note = "it does not answer"
	case len(there[0].Erased) < len(e.Fields):
		at.Note = "not yet in its archive"
	case forgotten < e.Index:
		at.Note = "not yet in its log and snapshots"
	default:
		at.Done = true
	}
	return at
}
