package replica

import (
	"testing"
	"time"

	"footplate/fleet"
)

func TestClockFollowsMedianSlowly(t *testing.T) {
	start := fleet.TimeOf(time.Date(2026, 11, 21, 3, 0, 0, 0, time.UTC))
	c := StartClock(start)
	wall := start.Std().Add(4 * time.Second)
	last := c.Now()
	for i := range 200 {
		wall = wall.Add(time.Second)
		at := c.Advance(time.Second, wall)
		if step := at.Sub(last); step < fleet.Second || step > 1050*fleet.Millisecond {
			t.Fatalf("second %d took %s", i, step)
		}
		last = at
	}
	if last != fleet.TimeOf(wall) {
		t.Errorf("clock is %s after 200 s, the nodes' is %s", last, fleet.TimeOf(wall))
	}
}

func TestClockNeverGoesBack(t *testing.T) {
	start := fleet.TimeOf(time.Date(2026, 11, 21, 3, 0, 0, 0, time.UTC))
	c := StartClock(start)
	wall := start.Std().Add(-9 * time.Second)
	last := c.Now()
	for range 1000 {
		wall = wall.Add(100 * time.Millisecond)
		at := c.Advance(100*time.Millisecond, wall)
		if at <= last {
			t.Fatalf("clock went from %s to %s", last, at)
		}
		last = at
	}
	if gap, alarm := c.Gap(); alarm || gap > -3*fleet.Second || gap < -5*fleet.Second {
		t.Errorf("gap is %s, alarm %t; wanted 9 s less 5 s", gap, alarm)
	}
	if at := c.Advance(-time.Hour, time.Time{}); at != last {
		t.Errorf("clock went from %s to %s without time passing", last, at)
	}
}

func TestClockWaitsForPersonOverBigGap(t *testing.T) {
	start := fleet.TimeOf(time.Date(2026, 11, 21, 3, 0, 0, 0, time.UTC))
	for _, tc := range []struct {
		name string
		off  time.Duration
		want fleet.Time // a second after the step
	}{
		{"ahead", time.Hour, start.Add(2*fleet.Second + fleet.Hour)},
		{"behind", -time.Hour, start.Add(1950 * fleet.Millisecond)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := StartClock(start)
			wall := start.Std().Add(tc.off + time.Second)
			if at := c.Advance(time.Second, wall); at != start.Add(fleet.Second) {
				t.Errorf("clock followed to %s", at)
			}
			if gap, alarm := c.Gap(); !alarm || gap != fleet.DurationOf(tc.off) {
				t.Errorf("gap is %s, alarm %t", gap, alarm)
			}
			c.Step()
			if at := c.Advance(time.Second, wall.Add(time.Second)); at != tc.want {
				t.Errorf("clock stepped to %s, want %s", at, tc.want)
			}
			if _, alarm := c.Gap(); alarm {
				t.Error("alarm goes on")
			}
		})
	}
}

func TestMedian(t *testing.T) {
	wall := time.Date(2026, 11, 21, 3, 0, 0, 0, time.UTC)
	for _, tc := range []struct {
		name   string
		others []fleet.Duration
		voters int
		want   time.Time
	}{
		{"alone", nil, 1, wall},
		{"one bad clock of three", []fleet.Duration{20, fleet.Hour}, 3, wall.Add(20 * time.Millisecond)},
		{"own clock bad", []fleet.Duration{fleet.Hour, fleet.Hour + 10}, 3, wall.Add(time.Hour)},
		{"two of three known", []fleet.Duration{100}, 3, wall.Add(50 * time.Millisecond)},
		{"minority known", nil, 3, time.Time{}},
		{"two of five known", []fleet.Duration{5}, 5, time.Time{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := Median(wall, tc.others, tc.voters); !got.Equal(tc.want) {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}
