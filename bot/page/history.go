package page

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"footplate/controlplane/catalog"
	"footplate/fleet"
)

// The charts show the last hour, in this node's memory.
const (
	sampleEvery = 5 * time.Second
	maxSamples  = int(time.Hour / sampleEvery)
)

// sample is the queue at one moment.
type sample struct {
	at                     time.Time
	queued, waiting        int
	running, slots         int
	oldestQueued, oldestIn fleet.Duration // the longest wait in either stage
}

func sampleOf(at time.Time, d catalog.QueueDetail) sample {
	s := sample{at: at, queued: d.Queued, waiting: d.Waiting, running: d.Running, oldestQueued: d.OldestQueued}
	for _, p := range d.Pools {
		s.slots += p.Slots
		s.oldestIn = max(s.oldestIn, p.Oldest)
	}
	return s
}

// history is a ring of samples.
type history struct {
	mu   sync.Mutex
	ring [maxSamples]sample
	n    int // ever added
}

func (h *history) add(s sample) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ring[h.n%maxSamples] = s
	h.n++
}

// all returns the samples, oldest first.
func (h *history) all() []sample {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]sample, 0, min(h.n, maxSamples))
	for i := max(0, h.n-maxSamples); i < h.n; i++ {
		out = append(out, h.ring[i%maxSamples])
	}
	return out
}

// chart is a small picture of a series over the last hour.
type chart struct {
	Title  string
	Now    string // the newest value, in words
	Label  string // all of it in words, for those who do not see it
	Top    string // what the upper edge stands for
	Span   string // from the left edge to now
	Series []series
	Empty  bool
}

// series is one line of a chart, as paths in a box of chartWidth by chartHeight.
type series struct {
	Name       string
	Line, Area string
}

const (
	chartWidth  = 240
	chartHeight = 48
)

// spans are what a chart can reach back: the least that shows all there is.
var spans = [...]time.Duration{5 * time.Minute, 20 * time.Minute, time.Hour}

// chartOf draws values of the samples up to now. Where there were none, for
// example because the node was down, there is a gap.
func chartOf(title string, now time.Time, all []sample, format func(float64) string, round func(float64) float64, names []string, values ...func(sample) float64) chart {
	c := chart{Title: title, Empty: len(all) == 0}
	if c.Empty {
		c.Now, c.Label = "–", title+": not known yet"
		return c
	}
	top := 1.0
	for _, s := range all {
		for _, v := range values {
			top = max(top, v(s))
		}
	}
	top = round(top)
	c.Top = format(top)
	newest := all[len(all)-1]
	span := spans[len(spans)-1]
	for _, d := range spans {
		if now.Sub(all[0].at) <= d {
			span = d
			break
		}
	}
	c.Span = short(fleet.DurationOf(span))
	var nows, labels []string
	for i, v := range values {
		high := 0.0
		for _, s := range all {
			high = max(high, v(s))
		}
		nows = append(nows, format(v(newest)))
		labels = append(labels, fmt.Sprintf("%s %s now, at most %s in the last %s", names[i], format(v(newest)), format(high), c.Span))
		line, area := paths(now, span, all, top, v)
		c.Series = append(c.Series, series{names[i], line, area})
	}
	c.Now = strings.Join(nows, " / ")
	c.Label = title + ": " + strings.Join(labels, "; ")
	return c
}

// paths returns a line through the samples, and the area under it. A sample
// holds until the next one.
func paths(now time.Time, span time.Duration, all []sample, top float64, value func(sample) float64) (line, area string) {
	var l, a strings.Builder
	x := func(t time.Time) float64 { return max(0, chartWidth*(1-float64(now.Sub(t))/float64(span))) }
	var begun, end, last float64
	shut := func() {
		if l.Len() > 0 {
			fmt.Fprintf(&l, "H%.1f", end)
			fmt.Fprintf(&a, "H%.1fV%dH%.1fZ", end, chartHeight, begun)
		}
	}
	for i, s := range all {
		y := (chartHeight-1)*(1-value(s)/top) + 0.5
		switch {
		case i == 0 || s.at.Sub(all[i-1].at) > 3*sampleEvery:
			shut()
			begun = x(s.at)
			fmt.Fprintf(&l, "M%.1f %.1f", begun, y)
			fmt.Fprintf(&a, "M%.1f %.1f", begun, y)
		case y != last:
			step := fmt.Sprintf("H%.1fV%.1f", x(s.at), y)
			l.WriteString(step)
			a.WriteString(step)
		}
		end, last = min(chartWidth, x(s.at.Add(sampleEvery))), y
	}
	shut()
	return l.String(), a.String()
}

// ceiling returns the next round number: 1, 2, 5, 10, 20 ...
func ceiling(v float64) float64 {
	for unit := 1.0; ; unit *= 10 {
		for _, m := range []float64{1, 2, 5} {
			if m*unit >= v {
				return m * unit
			}
		}
	}
}

// ceilingWait returns the next round number of seconds, as people count time.
func ceilingWait(v float64) float64 {
	for _, m := range []float64{10, 30, 60, 120, 300, 600, 1800, 3600, 2 * 3600, 6 * 3600, 12 * 3600} {
		if m >= v {
			return m
		}
	}
	const day = 24 * 3600
	return ceiling(v/day) * day
}
