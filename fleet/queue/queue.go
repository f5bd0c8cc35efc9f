// Package queue decides which builds leave the first stage of the queue, and
// which task gets which free slot. It is pure: plain inputs, plain answers, the
// same every time.
//
// Promotion is fair between orgs and bounded by their plans: the org that uses
// the least of its share goes first. A build that its plan has no room for
// stops the builds behind it of the same org, so that a wide build is not
// overtaken for ever by narrow ones, and never those of another org. A build
// with more tasks than the whole plan is promoted when its org uses nothing:
// otherwise it would wait for ever.
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
	Queued []Item // in the order in which they are to leave
}

// Item is a queued build.
type Item struct {
	Build fleet.BuildID
	Tasks int // slots that it needs
}

// Promotion says to promote the next Count builds of an org.
type Promotion struct {
	Org   fleet.OrgName
	Count int
}

// Promote decides what to promote: at most most builds in all. The answer is in
// the order of the orgs' names.
func Promote(orgs []OrgDemand, most int) []Promotion {
	orgs = slices.Clone(orgs)
	counts := make([]int, len(orgs))
	for range most {
		best := -1
		for i, o := range orgs {
			if counts[i] == len(o.Queued) || !Fits(o.Using, o.Slots, o.Queued[counts[i]].Tasks) {
				continue
			}
			// Using/Weight, compared without a fraction.
			if best < 0 || o.Using*orgs[best].Weight < orgs[best].Using*o.Weight ||
				o.Using*orgs[best].Weight == orgs[best].Using*o.Weight && o.Org < orgs[best].Org {
				best = i
			}
		}
		if best < 0 {
			break
		}
		orgs[best].Using += orgs[best].Queued[counts[best]].Tasks
		counts[best]++
	}
	var out []Promotion
	for i, n := range counts {
		if n > 0 {
			out = append(out, Promotion{orgs[i].Org, n})
		}
	}
	slices.SortFunc(out, func(a, b Promotion) int { return cmp.Compare(a.Org, b.Org) })
	return out
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
