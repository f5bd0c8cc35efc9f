package controlplane

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"sync"

	"footplate/controlplane/api"
	"footplate/controlplane/archive"
	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
)

// The measures of checking another node's archive through it.
const (
	// verifyAtOnce is how many entries one call asks for: as many of the longest
	// fit into an answer.
	verifyAtOnce = 400
	// verifyWhole is how many of the newest entries are read whole; of what is
	// older, verifySamples pieces of verifyAtOnce.
	verifyWhole   = 50_000
	verifySamples = 25
)

// VerifyEntries checks the record: this node's archive against the head of the
// chain in the replicated state and the anchors that are kept there, and then
// what else is asked for, all at once.
func (w *world) VerifyEntries(ctx context.Context, v op.Verify) []op.Checked {
	view := w.machine.View()
	anchors := knownAnchors(view)
	for _, a := range v.Anchors {
		anchors = append(anchors, archive.Anchor(a))
	}
	report, err := w.archive.VerifyChain(ctx, view.Kept(), anchors...)
	own := checked("node "+string(w.node), report, overtaken(view, err))
	if kept := view.Kept(); kept > 1 {
		own.Note = fmt.Sprintf("entries 1 to %d are nowhere any more: the cluster was recovered without them", kept-1)
	}
	if err == nil && report.Last < view.Entry {
		own.Err = fleet.Conflictf("audit log is not intact: truncated: the archive of node %s ends at entry %d, and the state is at entry %d", w.node, report.Last, view.Entry)
	}
	out := []op.Checked{own}
	var all sync.WaitGroup
	if v.Peers {
		others := w.peers.others()
		found := make([]op.Checked, len(others))
		for i, n := range others {
			all.Go(func() { found[i] = w.verifyPeer(ctx, n, view, anchors, verifyWhole) })
		}
		all.Wait()
		out = append(out, found...)
	}
	if v.Postgres {
		out = append(out, w.verifyShared(ctx, anchors))
	}
	return out
}

// overtaken says of an anchor that was not met when it may be of a history that
// a recovery has given up.
func overtaken(v *state.View, err error) error {
	var f *archive.Fault
	if !errors.As(err, &f) || f.Wrong != archive.Rewritten {
		return err
	}
	for _, r := range v.Recoveries {
		if f.N > r.Entry {
			return fleet.Conflictf("%s", fleet.AsError(err).Msg).
				WithHint("recovery epoch %d began after entry %d, at %s: an anchor that was taken before that is of an entry that the recovery lost, and says nothing about the record; leave it out",
					r.Epoch, r.Entry, r.At)
		}
	}
	return err
}

// knownAnchors returns the anchors that the state has, its head last.
func knownAnchors(v *state.View) []archive.Anchor {
	var anchors []archive.Anchor
	for _, a := range v.Anchors.All() {
		anchors = append(anchors, archive.Anchor{N: a.Entry, Hash: a.Hash})
	}
	if v.Entry > 0 {
		anchors = append(anchors, archive.Anchor{N: v.Entry, Hash: v.Head})
	}
	return anchors
}

func checked(where string, r archive.Report, err error) op.Checked {
	return op.Checked{
		Where: where, Entries: r.Count, First: r.First, Last: r.Last, Head: r.Head, Anchored: r.Anchored, Err: fleet.AsError(err),
	}
}

// verifyPeer checks the archive of another node with what this node knows. The
// other is asked for its entries, not for its opinion: all of the newest whole
// ones, and pieces of what is older, each against the chain here.
func (w *world) verifyPeer(ctx context.Context, n api.NodeAddr, view *state.View, anchors []archive.Anchor, whole fleet.EntryNo) op.Checked {
	where := "node " + string(n.Node)
	var st api.PeerStatus
	if err := w.peers.call(ctx, http.MethodGet, n, "/v1/peer.status", nil, &st); err != nil {
		return op.Checked{Where: where, Err: fleet.Unavailablef("%s does not answer: %s", where, fleet.AsError(err).Msg).WithHint("footplate cluster status")}
	}
	last, note := view.Entry, ""
	if st.Applied < view.Index && st.Archive < last {
		last = st.Archive
		note = fmt.Sprintf("%d entries behind", view.Entry-last)
	}
	kept := view.Kept()
	begin := kept
	if last >= kept+whole {
		begin = last - whole + 1
		note = fmt.Sprintf("the newest %d whole, samples of what is older", whole)
	}
	total := 0
	for range verifySamples {
		if begin == kept {
			break
		}
		from := kept + fleet.EntryNo(rand.Uint64N(uint64(begin-kept)))
		r, err := w.verifyPiece(ctx, n, kept, from, min(from+verifyAtOnce-1, begin-1), anchors)
		total += r.Count
		if err != nil {
			return checked(where, r, err)
		}
	}
	r, err := w.verifyPiece(ctx, n, kept, begin, last, anchors)
	r.Count += total
	c := checked(where, r, err)
	c.Note = note
	return c
}

// verifyPiece checks a peer's entries from from to to: each follows the one
// before it, and the first follows the one that this node has before it. Before
// kept there is none.
func (w *world) verifyPiece(ctx context.Context, n api.NodeAddr, kept, from, to fleet.EntryNo, anchors []archive.Anchor) (archive.Report, error) {
	before := archive.Anchor{}
	if from == kept && from > 1 {
		before.N = from - 1 // nobody has it: what follows it is vouched for by its own end
	} else if from > 1 {
		e, err := w.archive.Get(ctx, from-1)
		if err != nil {
			return archive.Report{}, err
		}
		before = archive.Anchor{N: e.N, Hash: e.Hash}
	}
	if from > to {
		return archive.Report{}, nil
	}
	// The last here vouches for the piece, when it is not one that was anchored.
	if e, err := w.archive.Get(ctx, to); err == nil && e.Intact() {
		anchors = append(anchors[:len(anchors):len(anchors)], archive.Anchor{N: e.N, Hash: e.Hash})
	}
	c := archive.NewChain(w.peers.cluster, before, anchors...)
	for at := from; at <= to; {
		end := min(at+verifyAtOnce-1, to)
		entries, err := w.peerEntries(ctx, n, at, end)
		if err != nil {
			return c.Report(), err
		}
		for i := range entries {
			again := func(no fleet.EntryNo) bool {
				for _, e := range entries[i+1:] {
					if e.N == no {
						return true
					}
				}
				return false
			}
			if fault := c.Check(&entries[i], again); fault != nil {
				return c.Report(), fault
			}
		}
		if next := c.Report().Last + 1; next <= end {
			return c.Report(), &archive.Fault{Wrong: archive.Truncated, N: next, Text: fmt.Sprintf("entries %d to %d are not there", next, to)}
		}
		at = end + 1
	}
	return c.Report(), nil
}

// peerEntries asks a node for entries. One that it cannot read is found by
// halves.
func (w *world) peerEntries(ctx context.Context, n api.NodeAddr, from, to fleet.EntryNo) ([]fleet.Entry, error) {
	var got []fleet.Entry
	q := url.Values{"from": {strconv.FormatUint(uint64(from), 10)}, "to": {strconv.FormatUint(uint64(to), 10)}}
	err := w.peers.call(ctx, http.MethodGet, n, "/v1/peer.entries?"+q.Encode(), nil, &got)
	switch {
	case err == nil || ctx.Err() != nil:
		return got, err
	case fleet.CodeOf(err) != fleet.CodeInternal:
		return nil, err
	case from == to:
		return nil, &archive.Fault{Wrong: archive.BadJSON, N: from, Text: fmt.Sprintf("entry %d cannot be read there", from)}
	}
	middle := from + (to-from)/2
	if got, err = w.peerEntries(ctx, n, from, middle); err != nil {
		return nil, err
	}
	rest, err := w.peerEntries(ctx, n, middle+1, to)
	return append(got, rest...), err
}
