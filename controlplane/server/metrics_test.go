package server

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"footplate/controlplane/api"
	"footplate/controlplane/catalog"
	"footplate/fleet"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// scrape reads a node's metrics as Prometheus does.
func scrape(t *testing.T, n *node) map[string]*dto.MetricFamily {
	t.Helper()
	a := n.as("", http.MethodGet, "/metrics", nil)
	if f := expfmt.ResponseFormat(a.header); f.FormatType() != expfmt.TypeTextPlain {
		t.Fatalf("content type %q", a.header.Get("Content-Type"))
	}
	p := expfmt.NewTextParser(model.LegacyValidation)
	all, err := p.TextToMetricFamilies(strings.NewReader(string(a.body)))
	if err != nil {
		t.Fatalf("%v in\n%s", err, a.body)
	}
	return all
}

// value returns the number of one series; labels are name, value, ...
func value(t *testing.T, all map[string]*dto.MetricFamily, name string, labels ...string) float64 {
	t.Helper()
	f, ok := all[name]
	if !ok {
		t.Fatalf("no metric %s; there are %v", name, slices.Sorted(maps.Keys(all)))
	}
	for _, m := range f.Metric {
		if len(m.Label) != len(labels)/2 {
			continue
		}
		match := true
		for i, l := range m.Label {
			match = match && l.GetName() == labels[2*i] && l.GetValue() == labels[2*i+1]
		}
		if match {
			switch f.GetType() {
			case dto.MetricType_COUNTER:
				return m.Counter.GetValue()
			case dto.MetricType_GAUGE:
				return m.Gauge.GetValue()
			default:
				return float64(m.Histogram.GetSampleCount())
			}
		}
	}
	t.Fatalf("no series of %s with %v: %v", name, labels, f)
	return 0
}

func TestMetrics(t *testing.T) {
	w := fleetOf(t, 1)
	n := w.nodes[0]
	n.do("operator", "pool create mars", api.Request{})
	n.do("viewer", "pool scale linux 2", api.Request{})
	n.do("operator", "pool scale venus 2", api.Request{})
	n.synced(agentOf("h1"))
	n.synced(api.Sync{Host: "h2", Pool: "linux", Boot: "boot-2", Incarnation: 1, Seq: 1})
	w.run("host cordon h2")
	w.assign("h1")
	w.run("build submit --org acme --pool linux --run true")
	v := w.view.Load()

	all := scrape(t, n)
	for _, c := range []struct {
		want   float64
		name   string
		labels []string
	}{
		{1, "footplate_requests_total", []string{"op", "pool create", "code", "done"}},
		{1, "footplate_requests_total", []string{"op", "pool scale", "code", "denied"}},
		{1, "footplate_requests_total", []string{"op", "pool scale", "code", "not_found"}},
		{3, "footplate_request_seconds", []string{"kind", "mutation"}},
		{1, "footplate_refusals_total", []string{"op", "pool scale"}},
		{0, "footplate_unauthenticated_total", nil},
		{1, "footplate_leader", []string{"node", "n1"}},
		{1, "footplate_has_leader", []string{"node", "n1"}},
		{0, "footplate_halted", []string{"node", "n1"}},
		{0, "footplate_clock_alarm", []string{"node", "n1"}},
		{float64(v.Index), "footplate_applied_index", []string{"node", "n1"}},
		{float64(v.Entry), "footplate_entry", []string{"node", "n1"}},
		{float64(v.Outbox.Len()), "footplate_outbox_depth", []string{"node", "n1"}},
		{1, "footplate_builds_queued", []string{"node", "n1"}},
		{0, "footplate_tasks_waiting", []string{"node", "n1"}},
		{1, "footplate_attempts_live", []string{"node", "n1"}},
		{1, "footplate_builds", []string{"node", "n1", "stage", "queued"}},
		{1, "footplate_builds", []string{"node", "n1", "stage", "runnable"}},
		{0, "footplate_builds", []string{"node", "n1", "stage", "finished"}},
		{1, "footplate_hosts", []string{"node", "n1", "pool", "linux", "state", "ready"}},
		{1, "footplate_hosts", []string{"node", "n1", "pool", "linux", "state", "cordoned"}},
		{0, "footplate_hosts", []string{"node", "n1", "pool", "linux", "state", "lost"}},
		{0, "footplate_hosts", []string{"node", "n1", "pool", "mars", "state", "ready"}},
	} {
		if got := value(t, all, c.name, c.labels...); got != c.want {
			t.Errorf("%s%v is %v, not %v", c.name, c.labels, got, c.want)
		}
	}
	for _, name := range []string{
		"go_goroutines", "go_memstats_heap_alloc_bytes", "process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds",
		"process_start_time_seconds",
	} {
		if value(t, all, name) <= 0 {
			t.Errorf("%s is not positive", name)
		}
	}
	for name, f := range all {
		if f.GetHelp() == "" {
			t.Errorf("%s has no help", name)
		}
	}
}

func TestMetricsOfTrouble(t *testing.T) {
	w := fleetOf(t, 1)
	n := w.nodes[0]
	n.archived.Store(2)
	n.clockNote.Store(true)
	n.halted.Store(true)
	all := scrape(t, n)
	if got, want := value(t, all, "footplate_archive_behind", "node", "n1"), float64(w.view.Load().Entry-2); got != want || want <= 0 {
		t.Errorf("the archive is %v behind, not %v", got, want)
	}
	if value(t, all, "footplate_clock_alarm", "node", "n1") != 1 {
		t.Error("the clock's alarm is not said")
	}
	if value(t, all, "footplate_halted", "node", "n1") != 1 {
		t.Error("it is not said that the node has halted")
	}
}

// TestMetricsOfSinks: how much waits for each sink, and for how long.
func TestMetricsOfSinks(t *testing.T) {
	w := fleetOf(t, 1)
	n := w.nodes[0]
	w.log(catalog.SinkOpen, catalog.SinkArgs{Sink: "slack"})
	series := func(what, sink string) float64 {
		return value(t, scrape(t, n), "footplate_"+what, "node", "n1", "sink", sink)
	}
	if got := series("outbox_lag_seconds", "slack"); got != 0 {
		t.Errorf("nothing waits, and the lag is %v s", got)
	}
	w.log(catalog.OutboxDeliver, catalog.OutboxDeliverArgs{Upto: w.view.Load().Parcel})
	v := w.view.Load()
	s, _ := v.Sinks.Get("slack")
	pending := v.Line - s.Sent
	first, _ := v.Channel.Get(fleet.EntryNo(s.Sent + 1))
	if pending == 0 || first.N == 0 {
		t.Fatalf("no line waits: %+v", s)
	}
	if got := waiting(first.At.Add(90*fleet.Second), v); len(got) != 1 || got[0] != (Waiting{Sink: "slack", Count: pending, For: 90 * fleet.Second}) {
		t.Errorf("90 s after the oldest line: %+v", got)
	}
	if got := series("outbox_pending", "slack"); got != float64(pending) {
		t.Errorf("%v lines wait, not %d", got, pending)
	}
	w.log(catalog.SinkFailing, catalog.SinkArgs{Sink: "slack", Why: "away"})
	if got := series("sink_failing", "slack"); got != 1 {
		t.Error("that it fails is not said")
	}
	n.server.cfg.Shared = func() (Waiting, bool) {
		return Waiting{Sink: "postgres", Count: 7, For: 3 * fleet.Second, Failing: true}, true
	}
	for what, want := range map[string]float64{"outbox_pending": 7, "outbox_lag_seconds": 3, "sink_failing": 1} {
		if got := series(what, "postgres"); got != want {
			t.Errorf("%s of postgres is %v, not %v", what, got, want)
		}
	}
}

// TestMetricsAreDocumented compares what is served with the table in
// OPERATIONS.md.
func TestMetricsAreDocumented(t *testing.T) {
	w := fleetOf(t, 1)
	w.log(catalog.SinkOpen, catalog.SinkArgs{Sink: "slack"})
	doc, err := os.ReadFile("../../OPERATIONS.md")
	if err != nil {
		t.Fatal(err)
	}
	told := make(map[string]bool)
	for _, m := range regexp.MustCompile("(?m)^\\| `(footplate_[a-z_]+)").FindAllStringSubmatch(string(doc), -1) {
		told[m[1]] = true
	}
	n := w.nodes[0]
	n.do("viewer", "pool scale linux 2", api.Request{}) // a request, and a refusal
	n.server.metrics.beats.WithLabelValues("true").Inc()
	served := scrape(t, n)
	for name := range served {
		if strings.HasPrefix(name, "footplate_") && !told[name] {
			t.Errorf("%s is not in OPERATIONS.md", name)
		}
	}
	for name := range told {
		if served[name] == nil {
			t.Errorf("%s is in OPERATIONS.md, and is not served", name)
		}
	}
}

// TestRunnableIsCounted compares the count with a look at every build.
func TestRunnableIsCounted(t *testing.T) {
	w := fleetOf(t, 1)
	n := w.nodes[0]
	compare := func(when string, want int) {
		t.Helper()
		v := w.view.Load()
		by := make(map[fleet.Stage]int)
		for _, b := range v.Builds.All() {
			by[b.Stage]++
		}
		if got := runnable(v); got != by[fleet.StageRunnable] || got != want {
			t.Errorf("%s: %d are runnable, not %d; %v", when, got, want, by)
		}
	}
	compare("at first", 0)
	n.synced(agentOf("h1"))
	id := w.assign("h1")
	compare("one runs", 1)
	w.run("build submit --org acme --pool linux --run true --parallel 3")
	w.run("build submit --org acme --pool linux --run true --exclusive")
	w.log(catalog.BuildPromote, catalog.BuildPromoteArgs{Org: "acme", Count: 10})
	compare("one waits with three tasks, one with one", 3)
	v := w.view.Load()
	w.log(catalog.BuildAssign, catalog.BuildAssignArgs{Assign: []catalog.Assignment{
		{Build: v.Build - 1, Task: 1, Host: "h1", Boot: "boot-1", Incarnation: 1},
		{Build: v.Build, Host: "h1", Boot: "boot-1", Incarnation: 1},
	}})
	compare("one waits and runs", 3)
	w.log(catalog.AttemptLose, catalog.AttemptLoseArgs{Attempts: []fleet.AttemptID{w.view.Load().Attempt}, Why: "test"})
	compare("one waits for proof", 3)
	w.log(catalog.AgentReport, catalog.AgentReportArgs{Host: "h1", Boot: "boot-1", Attempts: []catalog.AttemptReport{
		{Attempt: id, Phase: fleet.PhaseEnded, Outcome: fleet.Passed},
	}})
	compare("one is finished", 2)
}

func TestTextIsEscaped(t *testing.T) {
	var out text
	s := newSeries[counter]("a", "b")
	odd := "back\\slash \"quotes\" and\na new line"
	s.WithLabelValues(odd, "").Inc()
	h := newSeries[histogram]("kind")
	for _, seconds := range []float64{.001, .0011, 3, 11} {
		h.WithLabelValues("x").Observe(seconds)
	}
	counters(&out, "odd_total", "An odd one.", s)
	histograms(&out, "seconds", "How long.", h)
	p := expfmt.NewTextParser(model.LegacyValidation)
	all, err := p.TextToMetricFamilies(&out.Buffer)
	if err != nil {
		t.Fatal(err)
	}
	if value(t, all, "odd_total", "a", odd, "b", "") != 1 {
		t.Error(all["odd_total"])
	}
	got := all["seconds"].Metric[0].Histogram
	var buckets []string
	for _, b := range got.Bucket {
		buckets = append(buckets, fmt.Sprintf("%g:%d", b.GetUpperBound(), b.GetCumulativeCount()))
	}
	want := "0.001:1 0.0025:2 0.005:2 0.01:2 0.025:2 0.05:2 0.1:2 0.25:2 0.5:2 1:2 2.5:2 5:3 10:3 +Inf:4"
	if strings.Join(buckets, " ") != want || got.GetSampleCount() != 4 || got.GetSampleSum() != 14.0021 {
		t.Errorf("%v, %d in all, sum %v", buckets, got.GetSampleCount(), got.GetSampleSum())
	}
}

// TestReadyzNotes: what is wrong with a node that answers all the same is said,
// and is no reason to ask another.
func TestReadyzNotes(t *testing.T) {
	n := fleetOf(t, 1).nodes[0]
	var h health
	n.as("", http.MethodGet, "/readyz", nil).into(&h)
	if len(h.Notes) != 0 || h.Status != "ok" {
		t.Fatalf("%+v", h)
	}
	n.archived.Store(1)
	n.clockNote.Store(true)
	n.as("", http.MethodGet, "/readyz", nil).into(&h)
	if len(h.Notes) != 2 || !strings.Contains(h.Notes[0], "entries wait in memory") || !strings.Contains(h.Notes[1], "an hour ahead") || h.Why != "" {
		t.Fatalf("%+v", h)
	}
}
