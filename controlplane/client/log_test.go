package client

import (
	"testing"
	"time"
)

// Whoever follows a build that is queued for long gives up no sooner for it.
func TestTrouble(t *testing.T) {
	begun := time.Date(2026, 11, 21, 3, 0, 0, 0, time.UTC)
	at := func(d time.Duration) time.Time { return begun.Add(d) }
	tr := trouble{since: begun}
	for _, row := range []struct {
		now    time.Duration
		opened time.Duration // -1: it could not be
		chunks bool
		want   time.Duration
	}{
		{now: 10 * time.Second, opened: -1, want: 10 * time.Second},
		{now: 12 * time.Second, opened: 11 * time.Second, want: 12 * time.Second}, // broke at once
		{now: 10 * time.Minute, opened: 13 * time.Second, want: 0},                // was open, and quiet
		{now: 11 * time.Minute, opened: -1, want: time.Minute},
		{now: 12 * time.Minute, opened: 12 * time.Minute, chunks: true, want: 0},
	} {
		var opened time.Time
		if row.opened >= 0 {
			opened = at(row.opened)
		}
		if got := tr.lasts(at(row.now), opened, row.chunks); got != row.want {
			t.Errorf("after %s: trouble for %s, want %s", row.now, got, row.want)
		}
	}
}
