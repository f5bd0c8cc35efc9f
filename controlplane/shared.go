package controlplane

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"footplate/controlplane/archive"
	"footplate/controlplane/archive/postgres"
	"footplate/controlplane/op"
	"footplate/controlplane/replica"
	"footplate/controlplane/server"
	"footplate/controlplane/state"
	"footplate/fleet"
)

const (
	// sharedLook is how often the leader looks whether something is to be erased
	// in the shared archive.
	sharedLook = time.Second
	// sharedCall bounds one erasure there.
	sharedCall = 30 * time.Second
	// sharedAtOnce is how many entries of an earlier epoch go at a time.
	sharedAtOnce = 2000
	// sharedBehind is how many entries may be on their way before it is said.
	sharedBehind = 5000
)

// shared is the archive in PostgreSQL: the leader delivers to it, any node
// verifies it, and nothing waits for it.
//
// Each recovery epoch has a name of its own there. Under that of an earlier one
// stands what the record goes on from, and behind it, it may be, what was done
// after that and was lost in the recovery: it is left as it is.
type shared struct {
	url     string
	cluster replica.Cluster
	from    *archive.Archive
	log     *slog.Logger

	mu      sync.Mutex
	epochs  map[uint64]*postgres.Archive
	deliver *postgres.Deliverer // while this node leads
	failed  error               // of the last erasure
}

// newShared makes the shared archive, without looking at it; nil when url is
// empty.
func newShared(url string, cluster replica.Cluster, from *archive.Archive, log *slog.Logger) (*shared, error) {
	if url == "" {
		return nil, nil
	}
	s := &shared{url: url, cluster: cluster, from: from, log: log, epochs: make(map[uint64]*postgres.Archive)}
	if _, err := postgres.New(url, cluster.ID); err != nil {
		return nil, err
	}
	return s, nil
}

// stretch is what of the record is of one recovery epoch.
type stretch struct {
	epoch uint64
	after archive.Anchor // the entry that it goes on from
	last  archive.Anchor // its last that is still part of the record; zero for the present epoch
	next  uint64         // the epoch after it
}

// stretches returns the epochs of the record, oldest first.
func stretches(m *state.Meta) []stretch {
	out := []stretch{{epoch: 1}}
	for _, r := range m.Recoveries {
		from := archive.Anchor{N: r.Entry, Hash: r.Head}
		out[len(out)-1].last, out[len(out)-1].next = from, r.Epoch
		out = append(out, stretch{epoch: r.Epoch, after: from})
	}
	return out
}

// stretchOf returns the epoch that an entry is of.
func stretchOf(m *state.Meta, n fleet.EntryNo) stretch {
	all := stretches(m)
	for _, e := range all {
		if n > e.after.N && n <= e.last.N {
			return e
		}
	}
	return all[len(all)-1]
}

// of returns the shared archive of a recovery epoch.
func (s *shared) of(e stretch) (*postgres.Archive, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.epochs[e.epoch]; a != nil {
		return a, nil
	}
	a, err := postgres.New(s.url, fleet.ClusterName(s.cluster.ID, e.epoch))
	if err != nil {
		return nil, err
	}
	s.epochs[e.epoch] = a.After(e.after)
	return a, nil
}

func (s *shared) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.epochs {
		a.Close()
	}
}

// read returns entries of the record from the shared archive, whichever epoch
// they are of.
func (s *shared) read(ctx context.Context, m *state.Meta, from, to fleet.EntryNo) ([]fleet.Entry, error) {
	var out []fleet.Entry
	for _, e := range stretches(m) {
		first, last := max(from, e.after.N+1), to
		if e.last.N > 0 {
			last = min(last, e.last.N)
		}
		if first > last {
			continue
		}
		a, err := s.of(e)
		if err != nil {
			return nil, err
		}
		got, err := a.Read(ctx, first, last)
		if err != nil {
			return nil, err
		}
		out = append(out, got...)
	}
	return out, nil
}

// complete brings what an earlier epoch had not delivered when it ended.
func (s *shared) complete(ctx context.Context, e stretch, kept fleet.EntryNo) error {
	a, err := s.of(e)
	if err != nil {
		return err
	}
	for {
		call, cancel := context.WithTimeout(ctx, sharedCall)
		head, err := a.Head(call)
		if err == nil && (head.N >= e.last.N || head.N+1 < kept) {
			cancel()
			return nil // all is there, or the rest is nowhere any more
		}
		var entries []fleet.Entry
		if err == nil {
			entries, err = s.from.Query(call, archive.Filter{From: head.N + 1, To: e.last.N, Limit: sharedAtOnce})
		}
		if err == nil {
			err = a.Put(call, entries)
		}
		cancel()
		if err != nil {
			return err
		}
		if len(entries) == 0 {
			return fleet.Unavailablef("this node does not have entry %d yet", head.N+1)
		}
	}
}

// run delivers and erases until ctx ends: while this node leads.
func (s *shared) run(ctx context.Context, view func() *state.View) {
	v := view()
	epochs := stretches(&v.Meta)
	now := epochs[len(epochs)-1]
	a, err := s.of(now)
	if err != nil {
		s.log.Error("the postgres archive cannot be used", "err", err)
		return
	}
	d := postgres.NewDeliverer(a, s.from, s.log)
	s.set(d, nil)
	defer s.set(nil, nil)
	var delivery sync.WaitGroup
	delivery.Go(func() { _ = d.Run(ctx) }) // ends with ctx alone
	defer delivery.Wait()
	for _, e := range epochs[:len(epochs)-1] {
		delivery.Go(func() { s.catchUp(ctx, e, v.Kept()) })
	}

	tick := time.NewTicker(sharedLook)
	defer tick.Stop()
	done := make(map[fleet.EntryNo]int) // fields erased there
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var failed error
		for n, row := range view().Erasures.All() {
			if done[n] == len(row.Fields) || n > d.Status().Head.N {
				continue // what is delivered later is delivered erased, or comes up again
			}
			at, _ := s.of(stretchOf(&v.Meta, n)) // its URL was read before
			switch err := s.erase(ctx, at, n, row.Fields); {
			case err == nil:
				done[n] = len(row.Fields)
			case ctx.Err() == nil:
				failed = err
			}
		}
		s.set(d, failed)
	}
}

// catchUp completes an earlier epoch, however often it has to try.
func (s *shared) catchUp(ctx context.Context, e stretch, kept fleet.EntryNo) {
	said := ""
	for {
		err := s.complete(ctx, e, kept)
		if err == nil || ctx.Err() != nil {
			return
		}
		if err.Error() != said {
			said = err.Error()
			s.log.Warn("entries of an earlier recovery epoch are not in the postgres archive yet", "epoch", e.epoch, "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(5 * sharedLook):
		}
	}
}

func (s *shared) set(d *postgres.Deliverer, failed error) {
	s.mu.Lock()
	before := s.failed
	s.deliver, s.failed = d, failed
	s.mu.Unlock()
	if failed != nil && fmt.Sprint(before) != failed.Error() {
		s.log.Warn("an erasure has not reached the postgres archive", "err", failed)
	}
}

// erase brings an erasure, which the archive of this node has carried out, to
// the shared archive.
func (s *shared) erase(ctx context.Context, a *postgres.Archive, n fleet.EntryNo, fields []string) error {
	ctx, cancel := context.WithTimeout(ctx, sharedCall)
	defer cancel()
	e, err := s.from.Get(ctx, n)
	if err != nil {
		return err
	}
	if len(e.Erased) < len(fields) {
		return fleet.Unavailablef("entry %d is not erased on this node yet", n)
	}
	err = a.Erase(ctx, &e)
	if fleet.CodeOf(err) == fleet.CodeNotFound {
		return nil // its month was dropped
	}
	return err
}

// erased says how far an erasure is in the shared archive.
func (s *shared) erased(ctx context.Context, m *state.Meta, e state.Erasure) *op.ErasedAt {
	at := &op.ErasedAt{Where: "postgres"}
	a, err := s.of(stretchOf(m, e.Entry))
	fields := 0
	if err == nil {
		fields, err = a.Erased(ctx, e.Entry)
	}
	switch {
	case fleet.CodeOf(err) == fleet.CodeNotFound:
		at.Done, at.Note = true, "it does not have the entry"
	case err != nil:
		at.Note = fleet.AsError(err).Msg
	case fields < len(e.Fields):
		at.Note = "not yet"
	default:
		at.Done = true
	}
	return at
}

// status returns how far delivery got; ok is false where this node does not
// deliver.
func (s *shared) status() (st postgres.Status, ok bool) {
	if s == nil {
		return st, false
	}
	s.mu.Lock()
	d, failed := s.deliver, s.failed
	s.mu.Unlock()
	if d == nil {
		return st, false
	}
	st = d.Status()
	if st.Err == nil {
		st.Err = failed
	}
	return st, true
}

// waiting says what waits to be delivered; ok is false where this node does not
// deliver.
func (s *shared) waiting() (w server.Waiting, ok bool) {
	st, ok := s.status()
	if !ok {
		return w, false
	}
	w = server.Waiting{Sink: "postgres", Count: st.Behind, Failing: st.Err != nil}
	if st.Behind > 0 {
		ctx, cancel := context.WithTimeout(context.Background(), sharedLook)
		defer cancel()
		if oldest, err := s.from.Query(ctx, archive.Filter{From: st.Head.N + 1, Limit: 1}); err == nil && len(oldest) > 0 {
			w.For = max(0, fleet.TimeOf(time.Now()).Sub(oldest[0].At))
		}
	}
	return w, true
}

// note says what a person should know of the shared archive, "" when all is
// well or another node delivers.
func (s *shared) note() string {
	st, ok := s.status()
	switch {
	case !ok || st.Err == nil && st.Behind < sharedBehind:
		return ""
	case st.Err == nil:
		return fmt.Sprintf("postgres: %d entries behind, and catching up", st.Behind)
	case st.Since.IsZero():
		return fmt.Sprintf("postgres: %s", fleet.AsError(st.Err).Msg)
	}
	return fmt.Sprintf("postgres: %d entries behind since %s: %s", st.Behind, fleet.TimeOf(st.Since), fleet.AsError(st.Err).Msg)
}

// verifyShared checks what the shared archive has, against the anchors and this
// node's own archive.
func (w *world) verifyShared(ctx context.Context, anchors []archive.Anchor) op.Checked {
	if w.shared == nil {
		return op.Checked{Where: sharedWhere, Err: fleet.NotFoundf("this node has no postgres archive").WithHint("start it with FOOTPLATE_POSTGRES_URL")}
	}
	v := w.machine.View()
	epochs := stretches(&v.Meta)
	total, notes := 0, []string(nil)
	for _, e := range epochs[:len(epochs)-1] {
		c := w.verifyEarlier(ctx, e, v, anchors)
		total += c.Entries
		if c.Note != "" {
			notes = append(notes, c.Note)
		}
		if c.Err != nil {
			c.Entries = total
			return c
		}
	}
	c := w.verifyPresent(ctx, epochs[len(epochs)-1], anchors)
	c.Entries += total
	if c.Note != "" {
		notes = append(notes, c.Note)
	}
	c.Note = strings.Join(notes, "; ")
	return c
}

// verifyEarlier checks what the shared archive has of an earlier epoch: what the
// record goes on from, and what stands behind that.
func (w *world) verifyEarlier(ctx context.Context, e stretch, v *state.View, anchors []archive.Anchor) op.Checked {
	a, err := w.shared.of(e)
	if err != nil {
		return op.Checked{Where: sharedWhere, Err: fleet.AsError(err)}
	}
	head, err := a.Head(ctx)
	if err != nil {
		return op.Checked{Where: sharedWhere, Err: fleet.AsError(err)}
	}
	var met []archive.Anchor
	for _, anchor := range append([]archive.Anchor{e.last}, anchors...) {
		if anchor.N > e.after.N && anchor.N <= min(e.last.N, head.N) {
			met = append(met, anchor)
		}
	}
	// What is there must be what is here, also where the last was not delivered.
	if own, err := w.archive.Get(ctx, min(head.N, e.last.N)); err == nil && own.Intact() && own.N > e.after.N {
		met = append(met, archive.Anchor{N: own.N, Hash: own.Hash})
	}
	report, err := a.Verify(ctx, 0, met...)
	c := checked(sharedWhere, report, err)
	switch {
	case err != nil:
	case report.Last > e.last.N:
		lost := report.Last - e.last.N
		c.Entries -= int(lost)
		c.Note = fmt.Sprintf("entries %d to %d of epoch %d are not part of the record: they were made after entry %d, which epoch %d goes on from, and the recovery lost what they tell of; they are intact",
			e.last.N+1, report.Last, e.epoch, e.last.N, e.next)
	case head.N < e.last.N && head.N+1 < v.Kept():
		c.Note = fmt.Sprintf("entries %d to %d of epoch %d were never delivered, and the recovery went on without them", head.N+1, min(e.last.N, v.Kept()-1), e.epoch)
	case head.N < e.last.N:
		c.Note = fmt.Sprintf("%d more of epoch %d wait to be delivered", e.last.N-head.N, e.epoch)
	}
	return c
}

const sharedWhere = "postgres"

// verifyPresent checks what the shared archive has of the present epoch.
func (w *world) verifyPresent(ctx context.Context, e stretch, anchors []archive.Anchor) op.Checked {
	a, err := w.shared.of(e)
	if err != nil {
		return op.Checked{Where: sharedWhere, Err: fleet.AsError(err)}
	}
	st, ok := w.shared.status() // before it is read: more is delivered meanwhile
	head, err := a.Head(ctx)
	if err != nil {
		return op.Checked{Where: sharedWhere, Err: fleet.AsError(err)}
	}
	// What is not there yet cannot be met there; what is there is vouched for
	// by the newest of it here.
	var met []archive.Anchor
	for _, anchor := range anchors {
		if anchor.N > e.after.N && anchor.N <= head.N {
			met = append(met, anchor)
		}
	}
	if e, err := w.archive.Get(ctx, head.N); err == nil && e.Intact() {
		met = append(met, archive.Anchor{N: e.N, Hash: e.Hash})
	}
	report, err := a.Verify(ctx, 0, met...)
	c := checked(sharedWhere, report, err)
	if ok && err == nil && st.Head.N > report.Last {
		c.Err = fleet.Conflictf("audit log is not intact: truncated: it was delivered up to entry %d, and ends at entry %d", st.Head.N, report.Last)
	}
	if last := w.archive.Last(); err == nil && last > report.Last {
		c.Note = fmt.Sprintf("%d more wait to be delivered", last-report.Last)
	}
	return c
}
