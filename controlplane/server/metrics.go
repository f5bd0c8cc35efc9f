package server

import (
	"fmt"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics is what monitoring sees.
type metrics struct {
	requests        *prometheus.CounterVec // by op and code
	seconds         *prometheus.HistogramVec
	refusals        *prometheus.CounterVec // by op
	unauthenticated prometheus.Counter
	beats           *prometheus.CounterVec // by whether they were acknowledged
	handler         http.Handler
}

func newMetrics(cfg *Config) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "footplate_requests_total", Help: "Requests answered, by operation and by the code of the error, done when there was none.",
		}, []string{"op", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "footplate_request_seconds", Help: "How long requests took, by kind of operation.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"kind"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "footplate_refusals_total", Help: "Operations that a role did not allow.",
		}, []string{"op"}),
		unauthenticated: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "footplate_unauthenticated_total", Help: "Requests without a token that is known.",
		}),
		beats: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "footplate_beats_total", Help: "Beats of agents, by whether they were acknowledged.",
		}, []string{"ack"}),
		handler: promhttp.HandlerFor(cfg.Metrics, promhttp.HandlerOpts{}),
	}
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: prometheus.Labels{"node": string(cfg.Node)}}, value)
	}
	truth := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	for _, c := range []prometheus.Collector{
		m.requests, m.seconds, m.refusals, m.unauthenticated, m.beats,
		gauge("footplate_leader", "1 while this node leads.", func() float64 { return truth(leads(cfg)) }),
		gauge("footplate_has_leader", "1 while this node knows a leader.", func() float64 { return truth(knowsLeader(cfg)) }),
		gauge("footplate_term", "The term that this node is in.", func() float64 { return float64(cfg.Status().Term) }),
		gauge("footplate_applied_index", "Index of the newest log entry that this node has applied.", func() float64 { return float64(cfg.Status().Applied) }),
		gauge("footplate_entry", "Number of the newest audit entry.", func() float64 { return float64(cfg.View().Entry) }),
		gauge("footplate_outbox_depth", "Parcels that wait for delivery.", func() float64 { return float64(cfg.View().Outbox.Len()) }),
		gauge("footplate_builds_queued", "Builds in the first stage of the queue.", func() float64 { return float64(cfg.View().Queued.Len()) }),
		gauge("footplate_tasks_waiting", "Tasks that wait for a slot.", func() float64 { return float64(cfg.View().Waiting.Len()) }),
		gauge("footplate_attempts_live", "Attempts that hold a slot.", func() float64 { return float64(cfg.View().Running.Len()) }),
	} {
		if err := cfg.Metrics.Register(c); err != nil {
			return nil, fmt.Errorf("register metric: %w", err)
		}
	}
	return m, nil
}

func leads(cfg *Config) bool { _, term := cfg.Replica.Leader(); return term != 0 }

func knowsLeader(cfg *Config) bool { id, _ := cfg.Replica.Leader(); return id != "" }
