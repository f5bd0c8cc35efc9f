package server

import (
	"net/http"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"footplate/controlplane/state"
	"footplate/fleet"
)

// metrics is what monitoring sees.
type metrics struct {
	cfg   *Config
	begun time.Time

	requests        *series[counter] // by op and code
	seconds         *series[histogram]
	refusals        *series[counter] // by op
	unauthenticated *counter
	beats           *series[counter] // by whether they were acknowledged

	acknowledged, refused *counter // of beats
}

func newMetrics(cfg *Config) *metrics {
	none, beats := newSeries[counter](), newSeries[counter]("ack")
	return &metrics{
		cfg: cfg, begun: time.Now(),
		requests: newSeries[counter]("op", "code"), seconds: newSeries[histogram]("kind"),
		refusals: newSeries[counter]("op"), unauthenticated: none.WithLabelValues(), beats: beats,
		acknowledged: beats.WithLabelValues("true"), refused: beats.WithLabelValues("false"),
	}
}

// serveMetrics answers /metrics.
func (s *Server) serveMetrics(w http.ResponseWriter, r *http.Request) {
	var t text
	s.metrics.count(&t)
	s.metrics.cluster(&t, s.cfg.World.Cluster(r.Context()).ClockNote != "")
	s.metrics.process(&t)
	w.Header().Set("Content-Type", textType)
	_, _ = w.Write(t.Bytes())
}

// count writes what this node has counted.
func (m *metrics) count(t *text) {
	counters(t, "footplate_requests_total", "Requests answered, by operation and by the code of the error, done when there was none.", m.requests)
	histograms(t, "footplate_request_seconds", "How long requests took, by kind of operation.", m.seconds)
	counters(t, "footplate_refusals_total", "Operations that a role did not allow.", m.refusals)
	t.family("footplate_unauthenticated_total", "Requests without a token that is known.", "counter")
	t.sample("", "", float64(m.unauthenticated.n.Load()))
	counters(t, "footplate_beats_total", "Beats of agents, by whether they were acknowledged.", m.beats)
}

// cluster writes how the node and the fleet are, as this node has it.
func (m *metrics) cluster(t *text, clockAlarm bool) {
	v, st := m.cfg.View(), m.cfg.Status()
	node := string(m.cfg.Node)
	gauge := func(name, help string, value float64) {
		t.family(name, help, "gauge")
		t.sample("", labels([]string{"node"}, []string{node}), value)
	}
	gauge("footplate_leader", "1 while this node leads.", truth(leads(m.cfg)))
	gauge("footplate_has_leader", "1 while this node knows a leader.", truth(knowsLeader(m.cfg)))
	gauge("footplate_halted", "1 when this node applies nothing any more.", truth(st.Role == halted))
	gauge("footplate_clock_alarm", "1 while this node leads, and the wall clocks are too far from the state clock to be followed.", truth(clockAlarm))
	gauge("footplate_term", "The term that this node is in.", float64(st.Term))
	gauge("footplate_applied_index", "Index of the newest log entry that this node has applied.", float64(st.Applied))
	gauge("footplate_entry", "Number of the newest audit entry.", float64(v.Entry))
	gauge("footplate_archive_behind", "Audit entries that wait to be written to this node's disk.", float64(archiveBehind(v, st.Archive)))
	gauge("footplate_outbox_depth", "Parcels that wait for delivery.", float64(v.Outbox.Len()))
	waits := waiting(m.cfg.Now(), v)
	if m.cfg.Shared != nil {
		if w, ok := m.cfg.Shared(); ok {
			waits = append(waits, w)
		}
	}
	sinks := func(name, help string, value func(Waiting) float64) {
		t.family(name, help, "gauge")
		for _, w := range waits {
			t.sample("", labels([]string{"node", "sink"}, []string{node, w.Sink}), value(w))
		}
	}
	sinks("footplate_outbox_lag_seconds", "For how long the oldest of what is not in the sink yet has waited; 0 when nothing waits.",
		func(w Waiting) float64 { return w.For.Std().Seconds() })
	sinks("footplate_outbox_pending", "Lines of the channel, and for Postgres entries, that are not in the sink yet.",
		func(w Waiting) float64 { return float64(w.Count) })
	sinks("footplate_sink_failing", "1 while the sink takes nothing.", func(w Waiting) float64 { return truth(w.Failing) })
	gauge("footplate_builds_queued", "Builds in the first stage of the queue.", float64(v.Queued.Len()))
	gauge("footplate_tasks_waiting", "Tasks that wait for a slot.", float64(v.Waiting.Len()))
	gauge("footplate_attempts_live", "Attempts that hold a slot.", float64(v.Running.Len()))

	t.family("footplate_builds", "Builds that the state holds, by stage.", "gauge")
	queued, promoted := v.Queued.Len(), runnable(v)
	for _, b := range []struct {
		stage fleet.Stage
		n     int
	}{
		{fleet.StageQueued, queued}, {fleet.StageRunnable, promoted}, {fleet.StageFinished, v.Builds.Len() - queued - promoted},
	} {
		t.sample("", labels([]string{"node", "stage"}, []string{node, string(b.stage)}), float64(b.n))
	}

	t.family("footplate_hosts", "Hosts, by pool and by the condition that host list shows.", "gauge")
	hosts := make(map[fleet.PoolName]map[string]int)
	for _, h := range v.Hosts.All() {
		if hosts[h.Pool] == nil {
			hosts[h.Pool] = make(map[string]int)
		}
		hosts[h.Pool][h.Condition()]++
	}
	// What is 0 is said too: an alarm on a series that is not there never rings.
	for pool := range v.Pools.All() {
		for _, c := range conditions {
			t.sample("", labels([]string{"node", "pool", "state"}, []string{node, string(pool), c}), float64(hosts[pool][c]))
		}
	}
}

// Waiting is what has not reached a place to which entries are delivered.
type Waiting struct {
	Sink    string
	Count   uint64
	For     fleet.Duration // since the oldest of it came
	Failing bool           // the place takes nothing now
}

// waiting says what of the channel waits for each sink.
func waiting(now fleet.Time, v *state.View) []Waiting {
	var out []Waiting
	for name, s := range v.Sinks.All() {
		w := Waiting{Sink: name, Count: v.Line - min(s.Sent, v.Line), Failing: s.FailingAt != 0}
		if w.Count > 0 {
			// What is older than all that the channel still has waits at least as long.
			for _, l := range v.Channel.From(fleet.EntryNo(s.Sent + 1)) {
				w.For = max(0, now.Sub(l.At))
				break
			}
			if s.FailingAt != 0 {
				w.For = max(w.For, now.Sub(s.FailingAt))
			}
		}
		out = append(out, w)
	}
	return out
}

// conditions are those of fleet.Host.Condition that a host can stay in.
var conditions = [...]string{"booting", "ready", "cordoned", "draining", "retiring", "suspect", "lost", "ending"}

// process writes how the process is, under the names that dashboards know.
func (m *metrics) process(t *text) {
	one := func(name, help, kind string, value float64) {
		t.family(name, help, kind)
		t.sample("", "", value)
	}
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	one("go_goroutines", "Number of goroutines that currently exist.", "gauge", float64(runtime.NumGoroutine()))
	one("go_memstats_heap_alloc_bytes", "Bytes of the heap that are in use.", "gauge", float64(mem.HeapAlloc))
	one("go_memstats_sys_bytes", "Bytes that the Go runtime has from the system.", "gauge", float64(mem.Sys))
	one("go_memstats_alloc_bytes_total", "Bytes allocated on the heap, freed ones included.", "counter", float64(mem.TotalAlloc))
	one("go_gc_cycles_total", "Garbage collections done.", "counter", float64(mem.NumGC))
	one("process_start_time_seconds", "When this node was started, in seconds since 1970.", "gauge", float64(m.begun.UnixMilli())/1000)
	var use syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &use) == nil {
		one("process_cpu_seconds_total", "Processor time used, by user and system.", "counter",
			(time.Duration(use.Utime.Nano()) + time.Duration(use.Stime.Nano())).Seconds())
	}
	if n, ok := residentBytes(); ok {
		one("process_resident_memory_bytes", "Memory that the process has in use.", "gauge", float64(n))
	}
	if open, err := os.ReadDir("/proc/self/fd"); err == nil {
		one("process_open_fds", "File descriptors that are open.", "gauge", float64(len(open)))
	}
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) == nil {
		one("process_max_fds", "File descriptors that may be open.", "gauge", float64(limit.Cur))
	}
}

// residentBytes reads what proc_pid_statm(5) says.
func residentBytes() (int, bool) {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, false
	}
	f := strings.Fields(string(b))
	if len(f) < 2 {
		return 0, false
	}
	pages, err := strconv.Atoi(f[1])
	return pages * os.Getpagesize(), err == nil
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func leads(cfg *Config) bool { _, term := cfg.Replica.Leader(); return term != 0 }

func knowsLeader(cfg *Config) bool { id, _ := cfg.Replica.Leader(); return id != "" }

// archiveBehind returns how many of the entries that v knows of lie beyond the
// newest in the archive.
func archiveBehind(v *state.View, newest fleet.EntryNo) fleet.EntryNo {
	if newest >= v.Entry {
		return 0
	}
	return v.Entry - newest
}

// runnable counts the builds in the second stage without a look at those that
// are finished, of which there may be a million. Each has a task that waits for
// a slot, holds one, or waits for the proof that an attempt has ended.
func runnable(v *state.View) int {
	n := 0
	var last fleet.BuildID
	for w := range v.Waiting.All() {
		if w.Build != last { // the tasks of a build lie together
			last = w.Build
			n++
		}
	}
	others := make(map[fleet.BuildID]bool)
	note := func(id fleet.BuildID) {
		if b, ok := v.Builds.Get(id); ok && !slices.ContainsFunc(b.Tasks, fleet.Task.Waiting) {
			others[id] = true
		}
	}
	for r := range v.Running.All() {
		if at, ok := v.Attempts.Get(r.Attempt); ok {
			note(at.Build)
		}
	}
	for id := range v.Held.All() {
		note(id)
	}
	return n + len(others)
}
