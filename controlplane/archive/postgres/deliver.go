package postgres

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/failsafe-go/failsafe-go"
	"github.com/failsafe-go/failsafe-go/retrypolicy"

	"footplate/controlplane/archive"
	"footplate/fleet"
)

const (
	// batch is how many entries are put at a time. A commit costs as much as
	// hundreds of entries do.
	batch = 2000
	// batchBytes is about how much is put at a time, when entries are large.
	batchBytes = 8 << 20
	// poll is how often the source is asked for something new. It answers from
	// memory.
	poll = 200 * time.Millisecond
	// stepTimeout bounds one look at the database, and one batch.
	stepTimeout = 30 * time.Second
	// backoffMin and backoffMax bound the pause after a failure, which doubles.
	backoffMin = 250 * time.Millisecond
	backoffMax = 30 * time.Second
)

// Source is where the entries come from: the embedded archive of a node.
type Source interface {
	// Last returns the highest number that is there, 0 when none is.
	Last() fleet.EntryNo
	// Query returns the entries that f selects in the order of their numbers.
	Query(ctx context.Context, f archive.Filter) ([]fleet.Entry, error)
}

// Deliverer brings the entries of a node into the database: in order, each
// once, however often either of them is away. It keeps nothing of its own: where
// it goes on, the database tells.
type Deliverer struct {
	to   *Archive
	from Source
	log  *slog.Logger

	batch                        int
	size                         int // of the next batch: smaller after one that failed
	poll, backoffMin, backoffMax time.Duration

	mu     sync.Mutex
	status Status
	known  bool // the head in status is that of the database
}

// Status is how far delivery got.
type Status struct {
	Head     archive.Anchor // newest entry that is in the database, as far as is known
	Behind   uint64         // entries that the node has and the database has not
	PutCount uint64         // entries put by this Deliverer
	PutAt    time.Time      // of the newest of them
	Failures uint64         // attempts that failed
	Err      error          // what keeps it from delivering now, nil when nothing does
	Since    time.Time      // of Err: when it began to fail
}

// NewDeliverer makes a Deliverer, which does nothing until Run.
func NewDeliverer(to *Archive, from Source, log *slog.Logger) *Deliverer {
	return &Deliverer{to: to, from: from, log: log, batch: batch, size: batch, poll: poll, backoffMin: backoffMin, backoffMax: backoffMax}
}

// Run delivers until ctx ends. Two that run at once do no harm: they deliver
// the same. It never gives up: what a person must mend, such as a password, is
// tried again too, and Status says what it is.
func (d *Deliverer) Run(ctx context.Context) error {
	d.mu.Lock()
	d.known = false // others may have delivered meanwhile
	d.mu.Unlock()
	retry := retrypolicy.NewBuilder[any]().
		WithBackoff(d.backoffMin, d.backoffMax).
		WithJitterFactor(0.2).
		WithMaxRetries(-1).
		Build()
	tick := time.NewTicker(d.poll)
	defer tick.Stop()
	for ctx.Err() == nil {
		err := failsafe.With(retry).WithContext(ctx).RunWithExecution(func(exec failsafe.Execution[any]) error {
			return d.note(exec.Context(), d.step(exec.Context()))
		})
		if err != nil {
			break // ctx has ended
		}
		if d.Status().Behind > 0 {
			continue
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	return nil
}

// Status returns how far delivery got.
func (d *Deliverer) Status() Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.status
	if last := d.from.Last(); last > s.Head.N {
		s.Behind = uint64(last - s.Head.N)
	}
	return s
}

// step delivers one batch, if there is something to deliver.
func (d *Deliverer) step(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	d.mu.Lock()
	head, known := d.status.Head, d.known
	d.mu.Unlock()
	if !known {
		var err error
		if head, err = d.to.Head(ctx); err != nil {
			return err
		}
		d.mu.Lock()
		d.status.Head, d.known = head, true
		d.mu.Unlock()
	}
	if d.from.Last() <= head.N {
		return nil
	}
	entries, err := d.from.Query(ctx, archive.Filter{From: head.N + 1, Limit: min(d.size, d.batch)})
	if err != nil {
		return err
	}
	for i := range entries {
		if want := head.N + 1 + fleet.EntryNo(i); entries[i].N != want {
			// The node's own archive has a gap, which its peers fill.
			if i == 0 {
				return fleet.Unavailablef("this node does not have entries %d to %d, which postgres needs next", want, entries[i].N-1).
					WithHint("it is getting them from its peers")
			}
			entries = entries[:i]
			break
		}
	}
	if len(entries) == 0 {
		return nil
	}
	if some := atOnce(entries); len(some) < len(entries) {
		entries, d.size = some, len(some) // nor are so many read for nothing next time
	}
	if err := d.to.Put(ctx, entries); err != nil {
		// It may have been too much for the time that there is: ours, or that of a
		// statement_timeout. The same again would fail for ever.
		d.size = max(len(entries)/2, 1)
		return err
	}
	d.size = min(d.size+d.size/8+1, d.batch)
	last := &entries[len(entries)-1]
	d.mu.Lock()
	d.status.Head = archive.Anchor{N: last.N, Hash: last.Hash}
	d.status.PutCount += uint64(len(entries))
	d.status.PutAt = time.Now()
	d.mu.Unlock()
	return nil
}

// atOnce returns as many of the entries as are put at a time: of large ones, fewer.
func atOnce(entries []fleet.Entry) []fleet.Entry {
	bytes := 0
	for i := range entries {
		e := &entries[i]
		if bytes += len(e.Args) + len(e.Text) + len(e.Reason); bytes > batchBytes && i > 0 {
			return entries[:i]
		}
	}
	return entries
}

// note keeps what came of a step. A line is logged when it is another than that
// of the step before.
func (d *Deliverer) note(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return err
	}
	d.mu.Lock()
	before := d.status.Err
	d.status.Err = err
	switch {
	case err == nil:
		d.status.Since = time.Time{}
	default:
		d.known = false
		d.status.Failures++
		if before == nil {
			d.status.Since = time.Now()
		}
	}
	d.mu.Unlock()
	switch {
	case err != nil && (before == nil || before.Error() != err.Error()):
		level := slog.LevelWarn
		if !Retryable(err) {
			level = slog.LevelError // somebody should act
		}
		d.log.Log(ctx, level, "the postgres archive does not take entries; they wait on this node", "behind", d.Status().Behind, "err", err, "hint", fleet.AsError(err).Hint)
	case err == nil && before != nil:
		d.log.Info("the postgres archive takes entries again", "behind", d.Status().Behind)
	}
	return err
}
