package state

import (
	"cmp"
	"iter"

	"footplate/fleet"

	"github.com/tidwall/btree"
)

// What is derived from the rows, kept beside them so that loops need not look
// at every build. It is rebuilt when a snapshot is loaded, and is no part of
// the digest.

// Set is an ordered set; a copy of it is O(1).
type Set[T any] struct{ t *btree.BTreeG[T] }

func newSet[T any](compare func(a, b T) int) Set[T] {
	return Set[T]{btree.NewBTreeGOptions(func(a, b T) bool { return compare(a, b) < 0 }, btree.Options{NoLocks: true})}
}

// All yields every member in order.
func (s Set[T]) All() iter.Seq[T] {
	return func(yield func(T) bool) { s.t.Scan(yield) }
}

// From yields the members that are not before t.
func (s Set[T]) From(t T) iter.Seq[T] {
	return func(yield func(T) bool) { s.t.Ascend(t, yield) }
}

// Len returns the number of members.
func (s Set[T]) Len() int { return s.t.Len() }

// Queued is a build that waits in the first stage, in its lane: builds of one
// org for one pool, which leave it in their order.
type Queued struct {
	Org      fleet.OrgName
	Pool     fleet.PoolName
	Priority int
	Build    fleet.BuildID
}

func compareQueued(a, b Queued) int {
	return cmp.Or(cmp.Compare(a.Org, b.Org), cmp.Compare(a.Pool, b.Pool),
		cmp.Compare(b.Priority, a.Priority), cmp.Compare(a.Build, b.Build))
}

// Waiting is a task that waits for a slot.
type Waiting struct {
	Pool     fleet.PoolName
	Priority int
	Build    fleet.BuildID
	Task     int
}

func compareWaiting(a, b Waiting) int {
	return cmp.Or(cmp.Compare(a.Pool, b.Pool), cmp.Compare(b.Priority, a.Priority),
		cmp.Compare(a.Build, b.Build), cmp.Compare(a.Task, b.Task))
}

// Running is an attempt that holds a slot of a host.
type Running struct {
	Host    fleet.HostID
	Attempt fleet.AttemptID
}

func compareRunning(a, b Running) int {
	return cmp.Or(cmp.Compare(a.Host, b.Host), cmp.Compare(a.Attempt, b.Attempt))
}

// Finished is a build that has ended.
type Finished struct {
	At    fleet.Time
	Build fleet.BuildID
}

func compareFinished(a, b Finished) int {
	return cmp.Or(cmp.Compare(a.At, b.At), cmp.Compare(a.Build, b.Build))
}

// derived is what is kept beside the rows.
type derived struct {
	Queued   Set[Queued]
	Waiting  Set[Waiting]
	Running  Set[Running]
	Finished Set[Finished]                   // by the time of their end, oldest first
	Held     Set[fleet.BuildID]              // exclusive builds that wait for proof of an attempt's end
	Using    *btree.Map[fleet.OrgName, int]  // slots that an org's promoted builds need
	Share    *btree.Map[string, int]         // the same, by org and pool: see share
	Depth    *btree.Map[fleet.PoolName, int] // tasks that wait for a slot, by pool
}

func newDerived() derived {
	return derived{
		Queued: newSet(compareQueued), Waiting: newSet(compareWaiting), Running: newSet(compareRunning),
		Finished: newSet(compareFinished), Held: newSet(cmp.Compare[fleet.BuildID]),
		Using: new(btree.Map[fleet.OrgName, int]), Share: new(btree.Map[string, int]), Depth: new(btree.Map[fleet.PoolName, int]),
	}
}

func (d *derived) copy() derived {
	return derived{
		Queued: Set[Queued]{d.Queued.t.Copy()}, Waiting: Set[Waiting]{d.Waiting.t.Copy()},
		Running: Set[Running]{d.Running.t.Copy()}, Finished: Set[Finished]{d.Finished.t.Copy()},
		Held: Set[fleet.BuildID]{d.Held.t.Copy()}, Using: d.Using.Copy(), Share: d.Share.Copy(), Depth: d.Depth.Copy(),
	}
}

// build brings what is derived from one build up to date.
func (d *derived) build(old, now *fleet.Build) {
	if old != nil {
		d.count(old, -1)
	}
	if now != nil {
		d.count(now, 1)
	}
}

func (d *derived) count(b *fleet.Build, sign int) {
	switch b.Stage {
	case fleet.StageQueued:
		member(d.Queued, Queued{b.Org, b.Pool, b.Priority, b.ID}, sign > 0)
	case fleet.StageFinished:
		member(d.Finished, Finished{b.FinishedAt, b.ID}, sign > 0)
	case fleet.StageRunnable:
		using, depth, held := 0, 0, false
		for i := range b.Tasks {
			if b.Tasks[i].Outcome == "" {
				using++
			}
			held = held || b.Tasks[i].Held != 0
			if b.Tasks[i].Waiting() {
				depth++
				member(d.Waiting, Waiting{b.Pool, b.Priority, b.ID, i}, sign > 0)
			}
		}
		if held {
			member(d.Held, b.ID, sign > 0)
		}
		add(d.Using, b.Org, sign*using)
		add(d.Share, share(b.Org, b.Pool), sign*using)
		add(d.Depth, b.Pool, sign*depth)
	}
}

// attempt brings what is derived from one attempt up to date.
func (d *derived) attempt(old, now *fleet.Attempt) {
	if old != nil && old.Live() {
		member(d.Running, Running{old.Host, old.ID}, false)
	}
	if now != nil && now.Live() {
		member(d.Running, Running{now.Host, now.ID}, true)
	}
}

func member[T any](s Set[T], t T, in bool) {
	if in {
		s.t.Set(t)
	} else {
		s.t.Delete(t)
	}
}

// share is the key of what an org uses of a pool.
func share(org fleet.OrgName, pool fleet.PoolName) string { return string(org) + " " + string(pool) }

func add[K ~string](m *btree.Map[K, int], k K, n int) {
	if n == 0 {
		return
	}
	old, _ := m.Get(k)
	if old+n == 0 {
		m.Delete(k)
	} else {
		m.Set(k, old+n)
	}
}
