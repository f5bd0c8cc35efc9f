package controlplane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"footplate/controlplane/api"
	"footplate/controlplane/archive"
	"footplate/controlplane/catalog"
	"footplate/controlplane/logs"
	"footplate/controlplane/op"
	"footplate/controlplane/replica"
	"footplate/controlplane/state"
	"footplate/fleet"
)

// world is what queries can see beside the state, on this node.
type world struct {
	node    fleet.NodeID
	version string
	machine *machine
	replica *replica.Replica
	archive *archive.Archive
	logs    *logs.Store
	peers   *peers
	ear     *ear
	shared  *shared // nil when there is none
	// forgotten is the index up to which this node's disk has nothing of the log
	// that was erased.
	forgotten atomic.Uint64
}

// Entries returns archived entries.
func (w *world) Entries(ctx context.Context, f op.EntryFilter) ([]fleet.Entry, error) {
	return w.archive.Query(ctx, archive.Filter(f))
}

// ExportEntries writes entries in the format that "audit verify" reads.
func (w *world) ExportEntries(ctx context.Context, f op.EntryFilter, out io.Writer) error {
	return w.archive.Export(ctx, out, archive.Filter(f))
}

// Cluster returns how the nodes are.
func (w *world) Cluster(context.Context) op.Cluster {
	st := w.replica.Status()
	c := op.Cluster{
		Node: w.node, Role: string(st.Role), Leader: st.Leader, Term: st.Term,
		Index: st.Applied, Commit: st.Commit, Contact: st.LastContact,
	}
	if note := w.shared.note(); note != "" {
		c.Notes = append(c.Notes, note)
	}
	if st.ClockAlarm {
		c.ClockNote = fmt.Sprintf("the nodes' wall clocks are %s ahead of the state clock, too far to be followed: set them right, then: footplate cluster clock step", st.ClockGap)
	}
	known := w.peers.fresh()
	v := w.machine.View()
	if v.Fence > 0 {
		c.Notes = append(c.Notes, catalog.FenceWords(v))
	}
	for _, m := range st.Members {
		n, _ := v.Nodes.Get(m.ID)
		row := op.ClusterNode{Node: m.ID, API: n.API}
		switch k, ok := known[m.ID]; {
		case m.ID == w.node:
			row.Role, row.Applied, row.Version = string(st.Role), st.Applied, w.version
			if st.Digest != "" {
				row.Digest = digestWords(api.Digest{Index: st.DigestIndex, Sum: st.Digest})
			}
		case !ok:
			row.Role = "unreachable"
			row.Note = fmt.Sprintf("node %s has not heard it for %s", w.node, fleet.DurationOf(peerFresh))
		default:
			row.Role, row.Applied, row.Version = k.status.Role, k.status.Applied, k.status.Version
			if row.Role == string(replica.RoleLeader) && st.Leader != m.ID {
				row.Role, row.Note = "unknown", "it led when it was last heard"
			}
			if n := len(k.status.Digests); n > 0 {
				row.Digest = digestWords(k.status.Digests[n-1])
			}
		}
		c.Nodes = append(c.Nodes, row)
	}
	slices.SortFunc(c.Nodes, func(a, b op.ClusterNode) int { return strings.Compare(string(a.Node), string(b.Node)) })
	return c
}

func digestWords(d api.Digest) string { return fmt.Sprintf("%d:%.8s", d.Index, d.Sum) }

// SaveSnapshot writes the state as a snapshot.
func (w *world) SaveSnapshot(_ context.Context, out io.Writer) error {
	return w.machine.View().Dump(out)
}

// Heard returns how long ago this node heard the host's beat.
func (w *world) Heard(id fleet.HostID) (fleet.Duration, bool) {
	h, ok := w.machine.View().Hosts.Get(id)
	if !ok {
		return 0, false
	}
	return w.ear.silent(h)
}

// WaitView returns a view newer than index.
func (w *world) WaitView(ctx context.Context, index uint64) (*state.View, error) {
	return w.machine.WaitView(ctx, index)
}

// The pace of following a log: how long to wait for the next chunk on this
// node's disk before the other nodes are asked.
const logPatience = 300 * time.Millisecond

// Log yields the log of an attempt, from this node's disk and the others'.
func (w *world) Log(ctx context.Context, id fleet.AttemptID, from int, follow bool, yield func(op.LogChunk) error) (int, error) {
	next, over := from, false
	emit := func(c api.Chunk) error {
		next = c.N + 1
		over = c.Final
		return yield(op.LogChunk{N: c.N, At: c.At, Data: c.Data, Final: c.Final})
	}
	for !over {
		chunks, _, err := w.logs.Read(id, next, 256<<10)
		if err != nil {
			return next, err
		}
		for _, c := range chunks {
			if err := emit(api.Chunk(c)); err != nil {
				return next, err
			}
		}
		if len(chunks) > 0 {
			continue
		}
		ended := true
		if at, ok := w.machine.View().Attempts.Get(id); ok {
			ended = !at.Live()
		}
		before := next
		found, silent := w.peers.logs(ctx, id, next)
		for _, c := range found {
			// While the attempt lives, what is missing is on its way. After it
			// has ended, the gap is shown as what it is: a jump in the numbers.
			if c.N != next && !ended {
				break
			}
			if err := emit(c); err != nil {
				return next, err
			}
		}
		switch {
		case next > before:
		case ended:
			// The rest of what this node holds, behind a gap that nobody can fill.
			later, ok := heldAfter(w.logs.Have(id), next)
			switch {
			case !ok && len(silent) > 0:
				return next, fleet.Unavailablef("the rest of the log is on nodes that do not answer: %s", strings.Join(silent, ", ")).
					WithHint("try again when they are back")
			case !ok:
				return next, nil
			}
			next = later
		case !follow:
			return next, nil
		default:
			wait, cancel := context.WithTimeout(ctx, logPatience)
			_, err := w.logs.Wait(wait, id, next)
			cancel()
			if ctx.Err() != nil {
				return next, ctx.Err()
			}
			if err != nil && !errors.Is(err, context.DeadlineExceeded) {
				return next, err
			}
		}
	}
	return next, nil
}

// heldAfter returns the first chunk number from n on that is held.
func heldAfter(h logs.Held, n int) (int, bool) {
	for _, r := range h.Ranges {
		if r.To >= n {
			return max(r.From, n), true
		}
	}
	return 0, false
}
