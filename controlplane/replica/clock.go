package replica

import (
	"slices"
	"time"

	"footplate/fleet"
)

// The limits of the state clock. A node's wall clock off by less than
// clockBound is taken for drift or a late synchronisation, and is followed so
// slowly that no period of the fleet ends noticeably early or late; a bigger
// gap is taken for a fault, and a person decides.
const (
	clockSlewPerMille = 50               // 5%: a gap of 10 s is closed in 200 s
	clockBound        = 10 * time.Second // a bigger gap is not followed
	offsetsEvery      = time.Second      // how often the other nodes' clocks are looked at
)

// StateClock is the clock that the leader stamps on what it logs: the last
// committed clock, plus the monotonic time that has passed since, slewed at a
// bounded rate towards the median of the nodes' wall clocks. It never goes
// backwards, and it never jumps unless a person said so: see Step.
//
// It is a plain value and reads no clock itself.
type StateClock struct {
	at    time.Duration // since 1970-01-01 UTC
	gap   time.Duration // how far the median is ahead, at the last Advance
	alarm bool
	step  bool
}

// StartClock begins a clock at at.
func StartClock(at fleet.Time) StateClock {
	return StateClock{at: at.Std().Sub(time.Unix(0, 0))}
}

// Advance moves the clock on by elapsed, the monotonic time since the last
// call, and returns it. Median is the median of the nodes' wall clocks, the
// zero time when it is not known.
func (c *StateClock) Advance(elapsed time.Duration, median time.Time) fleet.Time {
	elapsed = max(elapsed, 0)
	c.at += elapsed
	if median.IsZero() {
		return c.Now()
	}
	c.gap = median.Sub(time.Unix(0, 0)) - c.at
	if c.step && c.gap > 0 {
		c.at += c.gap
		c.gap = 0
	}
	far := c.gap > clockBound || c.gap < -clockBound
	if !far {
		c.step = false
	}
	c.alarm = far && !c.step
	if c.alarm {
		return c.Now()
	}
	most := elapsed * clockSlewPerMille / 1000
	slew := min(max(c.gap, -most), most)
	c.at += slew
	c.gap -= slew
	return c.Now()
}

// Now returns the clock as of the last Advance.
func (c *StateClock) Now() fleet.Time { return fleet.Time(c.at / time.Millisecond) }

// Step lets the clock follow the wall clocks over any gap, once: forward at
// the next Advance, backward by slewing.
func (c *StateClock) Step() { c.step = true }

// Gap returns how far the nodes' wall clocks were ahead at the last Advance,
// and whether that is too far to be followed.
func (c *StateClock) Gap() (fleet.Duration, bool) { return fleet.DurationOf(c.gap), c.alarm }

// Median returns the median of the nodes' wall clocks, given this node's own
// and how far each of the others is ahead of it. With an even number it is the
// mean of the two in the middle. It is the zero time when fewer than a majority
// of the voters are known: a minority may be wrong together.
func Median(wall time.Time, others []fleet.Duration, voters int) time.Time {
	if len(others)+1 < voters/2+1 {
		return time.Time{}
	}
	all := make([]fleet.Duration, 0, len(others)+1)
	all = append(append(all, 0), others...)
	slices.Sort(all)
	lower, upper := all[(len(all)-1)/2], all[len(all)/2]
	return wall.Add(lower.Std() + (upper-lower).Std()/2)
}
