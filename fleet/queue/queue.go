// Package queue decides which builds leave the first stage of the queue, and
// which task gets which free slot. It is pure: plain inputs, plain answers, the
// same every time.
//
// Promotion is bounded by the orgs' plans, and fair between orgs in each pool:
// the org that uses the least of its share of the pool goes first. A build that
// its plan has no room for stops the builds behind it of the same org, so that a
// wide build is not overtaken for ever by narrow ones, and never those of
// another org. A build with more tasks than the whole plan is promoted when its
// org uses nothing: otherwise it would wait for ever.
//
// Promotion to a pool stops at the pool's high-water mark, and starts again
// below it. What is promoted takes of the org's plan and can't be taken back: it
// shall only be what the pool can start soon. A build whose pool is shut so is
// passed by: it stops no build for another pool. Of the builds that are passed
// by, room is kept in the plan for the first: else those behind it would use the
// plan up each time, and it would never meet an open pool with room in its plan.
// Nothing is kept for a pool without slots, which may stay so for days. The mark is what stops, not what is filled: the build
// that reaches it may overshoot it, so that a wide one goes when its turn comes.
package queue

import (
	"cmp"
	"slices"

	"footplate/fleet"
)

// OrgDemand is what one org wants promoted.
type OrgDemand struct {
	Org    fleet.OrgName
	Weight int    // its share; at least 1
	Slots  int    // its plan
	Using  int    // slots that its promoted builds need
	Lanes  []Lane // one a pool
}

// Lane is what one org has queued for one pool.
type Lane struct {
	Pool   fleet.PoolName
	Using  int    // slots that the org's promoted builds need there
	Queued []Item // in the order in which they are to leave
}

// Item is a queued build.
type Item struct {
	Build    fleet.BuildID
	Priority int
	Tasks    int // slots that it needs
}

// compare puts items in the order in which they are to leave.
func (a Item) compare(b Item) int {
	return cmp.Or(cmp.Compare(b.Priority, a.Priority), cmp.Compare(a.Build, b.Build))
}

// Room says how full the second stage of the queue is for one pool.
type Room struct {
	Pool    fleet.PoolName
	Slots   int // of the hosts that take work now
	Waiting int // tasks that wait for one of them, and that no gate on dispatch holds
}

// MarkPerSlot is how many tasks may wait for each slot of a pool. With one, all
// slots may become free at once and find their next tasks runnable, so no slot
// ever waits for promotion; and what is promoted starts within about the length
// of one task, which is as late as the choice between orgs can be made.
const MarkPerSlot = 1

// Mark is the high-water mark: promotion to the pool stops when so many tasks
// wait. Hosts that boot do not count. Should they never come, the builds that
// were promoted for them would hold their orgs' plans for ever; when they come,
// promotion takes one log entry.
func (r Room) Mark() int { return MarkPerSlot * r.Slots }

// Open reports whether a build may be promoted to the pool.
func (r Room) Open() bool { return r.Waiting < r.Mark() }

// Promotion says to promote the next Count builds of an org for a pool.
type Promotion struct {
	Org   fleet.OrgName
	Pool  fleet.PoolName
	Count int
}

// line is a lane while it is being promoted from.
type line struct {
	Lane
	room int // its pool's place; -1 for none
	n    int // promoted
}

// Promote decides what to promote: at most most builds in all. The answer is in
// the order of the orgs' names, and of the pools' for each.
func Promote(orgs []OrgDemand, rooms []Room, most int) []Promotion {
	orgs, rooms = slices.Clone(orgs), slices.Clone(rooms)
	lines := make([][]*line, len(orgs))
	first := make([]*line, len(orgs)) // whose first build is the next of its org
	open := func(l *line) bool { return l.room >= 0 && rooms[l.room].Open() }
	for i, o := range orgs {
		for _, l := range o.Lanes {
			at := slices.IndexFunc(rooms, func(r Room) bool { return r.Pool == l.Pool })
			lines[i] = append(lines[i], &line{Lane: l, room: at})
		}
		first[i] = next(o, lines[i], rooms)
	}
	for range most {
		best := -1
		for i, l := range first {
			if l == nil {
				continue
			}
			if !open(l) { // by what another org was given
				if first[i] = next(orgs[i], lines[i], rooms); first[i] == nil {
					continue
				}
				l = first[i]
			}
			// Using/Weight, compared without a fraction.
			if best < 0 {
				best = i
			} else if c := cmp.Compare(l.Using*orgs[best].Weight, first[best].Using*orgs[i].Weight); c < 0 || c == 0 && orgs[i].Org < orgs[best].Org {
				best = i
			}
		}
		if best < 0 {
			break
		}
		l := first[best]
		tasks := l.Queued[l.n].Tasks
		orgs[best].Using += tasks
		l.Using += tasks
		rooms[l.room].Waiting += tasks
		l.n++
		first[best] = next(orgs[best], lines[best], rooms)
	}
	var out []Promotion
	for i := range lines {
		for _, l := range lines[i] {
			if l.n > 0 {
				out = append(out, Promotion{orgs[i].Org, l.Pool, l.n})
			}
		}
	}
	slices.SortFunc(out, func(a, b Promotion) int {
		return cmp.Or(cmp.Compare(a.Org, b.Org), cmp.Compare(a.Pool, b.Pool))
	})
	return out
}

// next returns the lane whose first build is the next to leave of org o; nil
// when none can.
func next(o OrgDemand, lines []*line, rooms []Room) *line {
	lines = slices.DeleteFunc(slices.Clone(lines), func(l *line) bool { return l.n == len(l.Queued) })
	slices.SortFunc(lines, func(a, b *line) int { return a.Queued[a.n].compare(b.Queued[b.n]) })
	kept := 0
	for _, l := range lines {
		tasks := l.Queued[l.n].Tasks
		switch {
		case l.room < 0:
		case rooms[l.room].Open():
			if Fits(o.Using+kept, o.Slots, tasks) {
				return l
			}
			return nil
		case kept == 0 && rooms[l.room].Slots > 0:
			kept = tasks
		}
	}
	return nil
}

// Fits reports whether a plan of so many slots, of which using are needed
// already, has room for a build that needs need.
func Fits(using, slots, need int) bool {
	return using+need <= slots || using == 0 && slots > 0
}

// Waiting is a task that waits for a slot.
type Waiting struct {
	Build fleet.BuildID
	Task  int
	// Avoid are hosts on which an earlier attempt at it was lost or broken.
	Avoid []fleet.HostID
}

// Free is a host with free slots.
type Free struct {
	Host  fleet.HostID
	Slots int
}

// Assignment gives a task to a host.
type Assignment struct {
	Build fleet.BuildID
	Task  int
	Host  fleet.HostID
}

// Dispatch gives tasks, in their order, to hosts, as long as there are slots:
// to the host with the most free slots, and to one that a task avoids only when
// there is no other.
func Dispatch(waiting []Waiting, hosts []Free) []Assignment {
	hosts = slices.Clone(hosts)
	slices.SortFunc(hosts, func(a, b Free) int { return cmp.Compare(a.Host, b.Host) })
	var out []Assignment
	for _, w := range waiting {
		best, bestAvoided := -1, true
		for i, h := range hosts {
			if h.Slots <= 0 { // fewer than none, when slots were taken from a busy host
				continue
			}
			avoided := slices.Contains(w.Avoid, h.Host)
			if best < 0 || bestAvoided && !avoided || avoided == bestAvoided && h.Slots > hosts[best].Slots {
				best, bestAvoided = i, avoided
			}
		}
		if best < 0 {
			break
		}
		hosts[best].Slots--
		out = append(out, Assignment{w.Build, w.Task, hosts[best].Host})
	}
	return out
}
