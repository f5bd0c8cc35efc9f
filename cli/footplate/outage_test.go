package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"footplate/bot/slack/slacktest"
	"footplate/controlplane/archive/postgres/postgrestest"
	"footplate/controlplane/catalog"
	"footplate/controlplane/client"
	"footplate/controlplane/state"
	"footplate/fleet"
)

// The load of an outage: so many operations a second by people, and every so
// often a build.
const (
	outageRate  = 15
	outageBuild = 2 * time.Second
)

// outageLong is how long Slack and Postgres are away: seconds in make test,
// FOOTPLATE_OUTAGE in make soak.
func outageLong(t *testing.T) time.Duration {
	s := os.Getenv("FOOTPLATE_OUTAGE")
	if s == "" {
		return 18 * time.Second
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatalf("FOOTPLATE_OUTAGE: %v", err)
	}
	return d
}

// TestOutage: Slack and PostgreSQL are away while people and builds are at work.
// Slack fails, hangs and refuses in turns; PostgreSQL is stopped. Operations,
// builds and the console's channel go on as before, and when both are back
// everything arrives there: once, and in order.
func TestOutage(t *testing.T) {
	long := outageLong(t)
	o := startOutage(t)
	calm := min(2*time.Minute, max(4*time.Second, long/4))
	o.phase("before", calm)
	for o.got() < 20 { // so that there is something in the channel before
		o.pass(time.Second)
	}
	before := o.size()

	o.set("away")
	away := o.entry()
	o.pg.Stop()
	turns := []trouble{fails, hangs, refuses, hangs, fails, refuses}
	for _, how := range turns {
		o.trouble(how)
		o.pass(long / time.Duration(len(turns)))
	}
	during := o.size()
	if show := o.show(away + 5); !strings.Contains(show, "slack: pending") && !strings.Contains(show, "slack: sending") {
		t.Errorf("audit show of entry %d, during the outage: %s", away+5, show)
	}
	var late fleet.EntryNo
	o.wait(5*time.Second, "an entry that is in the channel of the console", func() bool {
		late = o.lastShown()
		return late > away+5
	})
	most := o.worst()
	if most["lines"] < float64(outageRate)*long.Seconds()/2 || most["entries"] < float64(outageRate)*long.Seconds()/2 {
		t.Errorf("the metrics say that at most %v lines and %v entries waited", most["lines"], most["entries"])
	}

	o.set("back")
	if err := o.pg.Start(); err != nil {
		t.Fatal(err)
	}
	o.trouble(none)
	back := time.Now()
	var posted, stored, commanded time.Duration
	taken := make(chan struct{})
	go func() {
		defer close(taken)
		for o.slack.Slash("U0ALICE", opsChannel, "org set from-slack --slots 3") != nil && time.Since(back) < 3*time.Minute {
		}
	}()
	o.wait(3*time.Minute, "what waited to arrive", func() bool {
		note := func(d *time.Duration, ok func() bool) bool {
			if *d == 0 && ok() {
				*d = time.Since(back)
			}
			return *d != 0
		}
		there := note(&posted, func() bool { return o.posted().newest >= late })
		there = note(&stored, func() bool { return o.lag()["entries"] < outageRate }) && there
		return note(&commanded, func() bool {
			select {
			case <-taken:
				return true
			default:
				return false
			}
		}) && there
	})
	o.phase("after", calm)
	o.end()
	o.checkBuilds()

	// Everything has arrived.
	last := o.lastShown()
	o.wait(3*time.Minute, "the last line in Slack", func() bool { return o.posted().newest >= last })
	o.wait(3*time.Minute, "the last entry in Postgres", func() bool {
		out, _, code := o.run("audit", "verify", "--peers", "--postgres")
		return code == 0 && !strings.Contains(out, "wait to be delivered") && !strings.Contains(out, "behind")
	})
	o.wait(20*time.Second, "the metrics to say that nothing waits", func() bool {
		m := o.lag()
		return m["lines"]+m["entries"]+m["parcels"] == 0
	})
	if show := o.show(late); !strings.Contains(show, "slack: sent") {
		t.Errorf("audit show of entry %d, after the outage: %s", late, show)
	}
	lines, digests, covered := o.checkSlack()
	entries := o.checkPostgres()

	t.Logf("away %s: %d entries in Postgres, once and in order; %d posts with %d lines of the channel, and %d digests that name %d more",
		long, entries, o.posted().posts, lines, digests, covered)
	t.Logf("after Slack was back, the lines of the outage were there in %s, a command from Slack was taken in %s; Postgres had caught up in %s",
		posted.Round(100*time.Millisecond), commanded.Round(100*time.Millisecond), stored.Round(100*time.Millisecond))
	if n, most := o.errors.Load(), int64(entries)/200; n > most {
		t.Errorf("%d operations failed, of which at most %d may", n, most)
	} else if n > 0 {
		t.Logf("%d operations met no leader", n)
	}
	o.report(before, during)
}

// outage is a plant with people at work whose commands are measured.
type outage struct {
	*channel
	way     *way
	pg      *postgrestest.Server
	clients []*client.Client
	stop    context.CancelFunc
	all     sync.WaitGroup
	errors  atomic.Int64
	orgs    atomic.Int64

	mu      sync.Mutex
	now     string                                // the phase
	took    map[string]map[string][]time.Duration // by phase, what people waited for
	asked   map[fleet.EntryNo]time.Time           // acknowledged, and not in the console yet
	early   map[fleet.EntryNo]time.Time           // in the console before the answer was here
	builds  []fleet.BuildID
	samples map[string]map[string]float64 // by phase, the most of what the metrics said
}

func startOutage(t *testing.T) *outage {
	pg := postgrestest.Need(t)
	s, err := slacktest.Start(slacktest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	w := startWay(t, s)
	o := &outage{
		way: w, pg: pg, now: "start",
		took: map[string]map[string][]time.Duration{}, asked: map[fleet.EntryNo]time.Time{}, early: map[fleet.EntryNo]time.Time{},
		samples: map[string]map[string]float64{},
	}
	url := pg.URL(pg.Database(t))
	p := startPlant(t, plantConfig{
		nodes: 3, hosts: 2, slots: 2, fence: "10s", suspect: "5s", env: append(slackEnv(s), "FOOTPLATE_POSTGRES_URL="+url),
	})
	o.channel = readChannel(p, s, url, o.saw)
	o.must("access", "grant", "slack:"+slacktest.Team+"/U0ALICE", "operator")
	for i := range o.nodes {
		o.clients = append(o.clients, o.client(i, o.admin))
	}
	ctx, cancel := context.WithCancel(context.Background())
	o.stop = cancel
	t.Cleanup(o.end)
	o.all.Go(func() { o.people(ctx) })
	o.all.Go(func() { o.watch(ctx) })
	return o
}

// end ends the load.
func (o *outage) end() {
	if o.stop == nil {
		return
	}
	o.set("end")
	waitFor(o.t, 20*time.Second, "the console to have what was acknowledged", func() bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		return len(o.asked) == 0
	})
	o.stop()
	o.stop = nil
	o.all.Wait()
}

// people give commands at a steady rate, whatever comes of them: who waits for
// an answer before the next would hide what is slow.
func (o *outage) people(ctx context.Context) {
	var at sync.WaitGroup
	defer at.Wait()
	tick := time.NewTicker(time.Second / outageRate)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		phase := o.phaseNow()
		if phase == "end" {
			continue
		}
		at.Go(func() { o.act(ctx, phase, n) })
		if n%int(outageBuild.Seconds()*outageRate) == 0 {
			at.Go(func() { o.submitOne(ctx) })
		}
	}
}

func (o *outage) act(ctx context.Context, phase string, n int) {
	began := time.Now()
	reply, err := o.clients[n%len(o.clients)].Do(ctx, catalog.OrgSet, catalog.OrgSetArgs{
		Org: fleet.OrgName(fmt.Sprintf("org-%d", n%50)), Slots: new(n + 1), Weight: new(1),
	}, client.Options{})
	if err != nil {
		if ctx.Err() == nil {
			o.failed(err)
		}
		return
	}
	now := time.Now()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.add(phase, "operation", now.Sub(began))
	if at, ok := o.early[reply.Entry]; ok {
		delete(o.early, reply.Entry)
		o.add(phase, "console", max(0, at.Sub(now)))
		return
	}
	o.asked[reply.Entry] = now
}

// failed notes that there was no leader for longer than a client is patient. On
// a machine with far more to do than it can, that happens, and it is not Slack's
// doing, nor PostgreSQL's; anything else is wrong.
func (o *outage) failed(err error) {
	if c := fleet.CodeOf(err); c != fleet.CodeUnavailable && c != fleet.CodeUnknown {
		o.t.Error(err)
	}
	o.errors.Add(1)
}

// add notes how long something took; o.mu is held.
func (o *outage) add(phase, what string, d time.Duration) {
	if o.took[phase] == nil {
		o.took[phase] = map[string][]time.Duration{}
	}
	o.took[phase][what] = append(o.took[phase][what], d)
}

func (o *outage) submitOne(ctx context.Context) {
	args := &catalog.BuildSubmitArgs{Org: "demo", Pool: "local", Run: []string{"sleep 0.3"}, Count: 1}
	if err := args.Normalize(); err != nil {
		o.t.Error(err)
		return
	}
	reply, err := o.clients[0].Do(ctx, catalog.BuildSubmit, args, client.Options{})
	if err != nil {
		if ctx.Err() == nil {
			o.failed(err)
		}
		return
	}
	b, err := strconv.Atoi(regexp.MustCompile(`\d+`).FindString(reply.Text))
	if err != nil {
		o.t.Errorf("build submit answers %q", reply.Text)
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.builds = append(o.builds, fleet.BuildID(b))
}

// saw notes when an operation is in the channel of the console.
func (o *outage) saw(l state.Line) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	for n := l.First; n <= l.Last; n++ {
		if at, ok := o.asked[n]; ok {
			delete(o.asked, n)
			o.add(o.now, "console", now.Sub(at))
		} else if l.Op == catalog.OrgSet.Name {
			o.early[n] = now
		}
	}
}

// watch reads the metrics.
func (o *outage) watch(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for said := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		m := o.lag()
		for i, n := range o.nodes {
			for name, v := range metricsOf(n) {
				switch name {
				case "process_resident_memory_bytes":
					m[fmt.Sprintf("memory of n%d", i+1)] = v
				case "go_memstats_heap_alloc_bytes":
					m[fmt.Sprintf("heap of n%d", i+1)] = v
				}
			}
		}
		o.mu.Lock()
		if o.samples[o.now] == nil {
			o.samples[o.now] = map[string]float64{}
		}
		for name, v := range m {
			o.samples[o.now][name] = max(o.samples[o.now][name], v)
		}
		now := o.now
		o.mu.Unlock()
		if time.Since(said) > time.Minute {
			said = time.Now()
			o.t.Logf("%s %s: %v", said.Format(time.TimeOnly), now, m)
		}
	}
}

// lag returns how many lines and entries wait, by the metrics.
func (o *outage) lag() map[string]float64 {
	out := map[string]float64{"lines": 0, "entries": 0, "parcels": 0}
	for _, n := range o.nodes {
		for name, v := range metricsOf(n) {
			switch {
			case strings.HasPrefix(name, "footplate_outbox_pending{") && strings.Contains(name, `sink="postgres"`):
				out["entries"] = max(out["entries"], v)
			case strings.HasPrefix(name, "footplate_outbox_pending{"):
				out["lines"] = max(out["lines"], v)
			case strings.HasPrefix(name, "footplate_outbox_depth{"):
				out["parcels"] = max(out["parcels"], v)
			}
		}
	}
	return out
}

// metricsOf returns the samples of a node, by name and labels.
func metricsOf(n *node) map[string]float64 {
	out := map[string]float64{}
	c := http.Client{Timeout: 5 * time.Second}
	res, err := c.Get("http://" + n.api + "/metrics")
	if err != nil {
		return out
	}
	defer res.Body.Close()
	for in := bufio.NewScanner(res.Body); in.Scan(); {
		name, value, ok := strings.Cut(in.Text(), " ")
		if v, err := strconv.ParseFloat(value, 64); ok && err == nil {
			out[name] = v
		}
	}
	return out
}

func (o *outage) set(phase string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.now = phase
}

func (o *outage) phaseNow() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.now
}

func (o *outage) phase(name string, long time.Duration) {
	o.set(name)
	o.pass(long)
}

// pass lets the load go on.
func (o *outage) pass(long time.Duration) {
	o.t.Helper()
	end := time.Now().Add(long)
	waitFor(o.t, long+time.Minute, "the time to pass", func() bool { return !time.Now().Before(end) })
}

func (o *outage) trouble(how trouble) {
	o.slack.Outage(how == fails)
	o.way.set(how)
}

// got is how many lines are in Slack.
func (o *outage) got() int { return len(o.posted().parts) }

// entry is the newest entry.
func (o *outage) entry() fleet.EntryNo {
	var rows []catalog.EntryRow
	if err := o.json(&rows, "audit", "search", "--limit", "1"); err != nil || len(rows) != 1 {
		o.t.Fatalf("%v, %v", rows, err)
	}
	return rows[0].N
}

// show is what is said of the delivery of an entry.
func (o *outage) show(n fleet.EntryNo) string {
	var d catalog.EntryDetail
	if err := o.json(&d, "audit", "show", fmt.Sprint(n)); err != nil {
		o.t.Error(err)
	}
	return d.Delivery
}

// size is how many bytes the state has, as a snapshot.
func (o *outage) size() int { return len(o.must("cluster", "snapshot", "save")) }

func (o *outage) worst() map[string]float64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := map[string]float64{}
	for _, m := range o.samples {
		for name, v := range m {
			out[name] = max(out[name], v)
		}
	}
	return out
}

// checkBuilds waits for the builds, and notes how long each took, by phase.
func (o *outage) checkBuilds() {
	o.mu.Lock()
	builds := slices.Clone(o.builds)
	o.mu.Unlock()
	for _, id := range builds[max(0, len(builds)-20):] {
		o.wait(30*time.Second, "the end of the builds", func() bool { return o.build(id).State == "passed" })
	}
	var rows []catalog.BuildRow
	if err := o.json(&rows, "build", "list", "--limit", "0"); err != nil {
		o.t.Fatal(err)
	}
	for _, b := range rows {
		if b.State != "passed" || b.Attempts != 1 {
			o.t.Errorf("build %d %s in %d attempts", b.ID, b.State, b.Attempts)
		}
	}
}

// report logs latencies by phase, with their ratio to those before.
func (o *outage) report(before, during int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	of := func(phase, what string, permille int) time.Duration {
		d := slices.Sorted(slices.Values(o.took[phase][what]))
		if len(d) == 0 {
			return 0
		}
		return d[min(len(d)-1, len(d)*permille/1000)]
	}
	for _, what := range []string{"operation", "console"} {
		calm := []time.Duration{of("before", what, 500), of("before", what, 990)}
		for _, phase := range []string{"before", "away", "back", "after"} {
			p50, p99 := of(phase, what, 500), of(phase, what, 990)
			o.t.Logf("%-9s %-6s %6d: p50 %8s p99 %8s; times before: %.2f and %.2f", what, phase, len(o.took[phase][what]),
				p50.Round(10*time.Microsecond), p99.Round(10*time.Microsecond), float64(p50)/float64(calm[0]), float64(p99)/float64(calm[1]))
		}
		if away := of("away", what, 500); away > 5*calm[0]+100*time.Millisecond {
			o.t.Errorf("%s: half within %s while Slack and Postgres are away, and within %s before", what, away, calm[0])
		}
	}
	o.t.Logf("the state is %d bytes before and %d at the end of the outage", before, during)
	for _, phase := range []string{"before", "away", "back", "after", "end"} {
		if m := o.samples[phase]; m != nil {
			o.t.Logf("%-6s at most: %.0f lines and %.0f entries waited; memory %.1f, %.1f, %.1f MiB, heap %.1f, %.1f, %.1f MiB", phase, m["lines"], m["entries"],
				m["memory of n1"]/(1<<20), m["memory of n2"]/(1<<20), m["memory of n3"]/(1<<20),
				m["heap of n1"]/(1<<20), m["heap of n2"]/(1<<20), m["heap of n3"]/(1<<20))
		}
	}
}

// trouble is what is wrong with the way to Slack.
type trouble int

const (
	none    trouble = iota
	fails           // it answers 503
	hangs           // it takes connections and bytes, and never answers
	refuses         // it takes no connection
)

// way is the way to Slack: a proxy that can hang and refuse.
type way struct {
	addr, to string

	mu   sync.Mutex
	how  trouble
	in   net.Listener
	open map[net.Conn]bool
}

// startWay has everything of s lead through a proxy.
func startWay(t testing.TB, s *slacktest.Server) *way {
	w := &way{to: strings.TrimSuffix(strings.TrimPrefix(s.URL(), "http://"), "/api/"), open: map[net.Conn]bool{}}
	w.addr = freeAddr(t, "127.0.0.1")
	if err := w.listen(); err != nil {
		t.Fatal(err)
	}
	s.Through(w.addr)
	t.Cleanup(func() { w.set(refuses) })
	return w
}

// listen begins to take connections; w.mu is held, or nobody else is there.
func (w *way) listen() error {
	in, err := net.Listen("tcp", w.addr)
	if err != nil {
		return err
	}
	w.in = in
	go func() {
		for {
			c, err := in.Accept()
			if err != nil {
				return
			}
			go w.carry(c)
		}
	}()
	return nil
}

// set changes what is wrong. What hung does not go on later: whoever waited has
// given it up.
func (w *way) set(how trouble) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if how != hangs {
		for c := range w.open {
			c.Close()
		}
	}
	w.how = how
	switch {
	case how == refuses && w.in != nil:
		w.in.Close()
		w.in = nil
	case how != refuses && w.in == nil:
		if err := w.listen(); err != nil {
			panic(err) // the port is ours
		}
	}
}

func (w *way) now() trouble {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.how
}

func (w *way) carry(in net.Conn) {
	defer in.Close()
	out, err := net.Dial("tcp", w.to)
	if err != nil {
		return
	}
	defer out.Close()
	w.mu.Lock()
	w.open[in], w.open[out] = true, true
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		delete(w.open, in)
		delete(w.open, out)
		w.mu.Unlock()
	}()
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.copy(in, out)
	}()
	w.copy(out, in)
	in.Close()
	out.Close()
	<-done
}

// copy carries bytes, and swallows them while the way hangs.
func (w *way) copy(to io.Writer, from io.Reader) {
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		if w.now() != hangs && n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
