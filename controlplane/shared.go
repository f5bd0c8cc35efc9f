package controlplane

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"footplate/controlplane/archive"
	"footplate/controlplane/archive/postgres"
	"footplate/controlplane/op"
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
	// sharedBehind is how many entries may be on their way before it is said.
	sharedBehind = 5000
)

// shared is the archive in PostgreSQL: the leader delivers to it, any node
// verifies it, and nothing waits for it.
type shared struct {
	url, cluster string
	from         *archive.Archive
	log          *slog.Logger

	mu      sync.Mutex
	epoch   uint64
	archive *postgres.Archive
	deliver *postgres.Deliverer // while this node leads
	failed  error               // of the last erasure
}

// newShared makes the shared archive, without looking at it; nil when url is
// empty.
func newShared(url, cluster string, from *archive.Archive, log *slog.Logger) (*shared, error) {
	if url == "" {
		return nil, nil
	}
	s := &shared{url: url, cluster: cluster, from: from, log: log}
	if _, err := s.of(1); err != nil {
		return nil, err
	}
	return s, nil
}

// of returns the shared archive of a recovery epoch: after a recovery the
// history is another, and has a name of its own there.
func (s *shared) of(epoch uint64) (*postgres.Archive, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.archive != nil && s.epoch == max(epoch, 1) {
		return s.archive, nil
	}
	name := s.cluster
	if epoch > 1 {
		name = fmt.Sprintf("%s/%d", s.cluster, epoch)
	}
	a, err := postgres.New(s.url, name)
	if err != nil {
		return nil, err
	}
	if s.archive != nil {
		s.archive.Close()
	}
	s.archive, s.epoch = a, max(epoch, 1)
	return a, nil
}

func (s *shared) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.archive.Close()
}

// run delivers and erases until ctx ends: while this node leads.
func (s *shared) run(ctx context.Context, view func() *state.View) {
	a, err := s.of(view().Epoch)
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
			switch err := s.erase(ctx, a, n, row.Fields); {
			case err == nil:
				done[n] = len(row.Fields)
			case ctx.Err() == nil:
				failed = err
			}
		}
		s.set(d, failed)
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
	const where = "postgres"
	if w.shared == nil {
		return op.Checked{Where: where, Err: fleet.NotFoundf("this node has no postgres archive").WithHint("start it with FOOTPLATE_POSTGRES_URL")}
	}
	a, err := w.shared.of(w.machine.View().Epoch)
	if err != nil {
		return op.Checked{Where: where, Err: fleet.AsError(err)}
	}
	head, err := a.Head(ctx)
	if err != nil {
		return op.Checked{Where: where, Err: fleet.AsError(err)}
	}
	// What is not there yet cannot be met there; what is there is vouched for
	// by the newest of it here.
	var met []archive.Anchor
	for _, anchor := range anchors {
		if anchor.N <= head.N {
			met = append(met, anchor)
		}
	}
	if e, err := w.archive.Get(ctx, head.N); err == nil && e.Intact() {
		met = append(met, archive.Anchor{N: e.N, Hash: e.Hash})
	}
	report, err := a.Verify(ctx, 0, met...)
	c := checked(where, report, err)
	if st, ok := w.shared.status(); ok && err == nil && st.Head.N > report.Last {
		c.Err = fleet.Conflictf("audit log is not intact: truncated: it was delivered up to entry %d, and ends at entry %d", st.Head.N, report.Last)
	}
	if last := w.archive.Last(); err == nil && last > report.Last {
		c.Note = fmt.Sprintf("%d more wait to be delivered", last-report.Last)
	}
	return c
}
