package server

import (
	"bytes"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// The metrics are written by ourselves, in version 0.0.4 of Prometheus' text
// format: it is a page long, and the packages that the usual client library
// brings with it cost every start of the program a millisecond of
// initialization, the CLI's too.

const textType = "text/plain; version=0.0.4; charset=utf-8"

// text is an answer to a scrape.
type text struct {
	bytes.Buffer
	name string // of the family
}

// family begins the samples of one name. Every sample of a family must follow
// it before the next begins.
func (t *text) family(name, help, kind string) {
	t.name = name
	t.WriteString("# HELP " + name + " " + help + "\n# TYPE " + name + " " + kind + "\n")
}

// sample writes one number, with labels as labels writes them.
func (t *text) sample(suffix, labels string, value float64) {
	t.WriteString(t.name + suffix)
	if labels != "" {
		t.WriteString("{" + labels + "}")
	}
	t.WriteByte(' ')
	t.WriteString(number64(value))
	t.WriteByte('\n')
}

func number64(v float64) string {
	if math.IsInf(v, 1) {
		return "+Inf"
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}

var escaper = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

// labels writes label names with their values.
func labels(names, values []string) string {
	var b strings.Builder
	for i, name := range names {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(name + `="` + escaper.Replace(values[i]) + `"`)
	}
	return b.String()
}

// series is one metric that is counted by the values of its labels. The values
// must come from a small set: a cell is never dropped.
type series[T any] struct {
	names []string

	mu    sync.Mutex
	cells map[string]*T // by the labels as they are written
}

func newSeries[T any](names ...string) *series[T] {
	return &series[T]{names: names, cells: make(map[string]*T)}
}

// WithLabelValues returns the cell of these values, in the order of the names.
func (s *series[T]) WithLabelValues(values ...string) *T {
	key := labels(s.names, values)
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.cells[key]
	if !ok {
		c = new(T)
		s.cells[key] = c
	}
	return c
}

// each yields the cells in the order of their labels.
func (s *series[T]) each(yield func(labels string, cell *T)) {
	s.mu.Lock()
	cells := maps.Clone(s.cells)
	s.mu.Unlock()
	for _, l := range slices.Sorted(maps.Keys(cells)) {
		yield(l, cells[l])
	}
}

// counter only grows.
type counter struct{ n atomic.Uint64 }

// Inc counts one more.
func (c *counter) Inc() { c.n.Add(1) }

func counters(t *text, name, help string, s *series[counter]) {
	t.family(name, help, "counter")
	s.each(func(labels string, c *counter) { t.sample("", labels, float64(c.n.Load())) })
}

// bounds are the upper bounds of a histogram's buckets, in seconds.
var bounds = [...]float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}

// histogram counts durations by how long they are.
type histogram struct {
	mu  sync.Mutex
	in  [len(bounds) + 1]uint64 // by bucket; the last is for what is longer than all bounds
	sum float64
}

// Observe counts one duration, in seconds.
func (h *histogram) Observe(seconds float64) {
	i, _ := slices.BinarySearch(bounds[:], seconds)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.in[i]++
	h.sum += seconds
}

func histograms(t *text, name, help string, s *series[histogram]) {
	t.family(name, help, "histogram")
	s.each(func(labels string, h *histogram) {
		h.mu.Lock()
		in, sum := h.in, h.sum
		h.mu.Unlock()
		n := uint64(0)
		for i, c := range in {
			n += c
			bound := math.Inf(1)
			if i < len(bounds) {
				bound = bounds[i]
			}
			t.sample("_bucket", labels+`,le="`+number64(bound)+`"`, float64(n))
		}
		t.sample("_sum", labels, sum)
		t.sample("_count", labels, float64(n))
	})
}
