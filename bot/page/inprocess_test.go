package page

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"footplate/controlplane/catalog"
	"footplate/fleet"
)

func TestInProcess(t *testing.T) {
	gone := make(chan error, 1)
	lost := 0
	c := &http.Client{Transport: inProcess{unauthorized: func() { lost++ }, handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/echo":
			w.Header().Set("Trailer", "Late")
			_, _ = io.Copy(w, r.Body)
			w.Header().Set("Late", "so it is")
		case "/none":
			w.WriteHeader(http.StatusUnauthorized)
		case "/live":
			w.WriteHeader(http.StatusOK)
			for {
				if _, err := io.WriteString(w, "more\n"); err != nil {
					gone <- err
					return
				}
			}
		case "/break":
			panic(http.ErrAbortHandler)
		case "/late":
			_, _ = io.WriteString(w, "begun")
			panic(http.ErrAbortHandler)
		case "/stop":
			<-r.Context().Done()
			gone <- r.Context().Err()
		}
	})}}
	res, err := c.Post("http://node/echo", "text/plain", strings.NewReader("hello"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(res.Body)
	if err != nil || string(b) != "hello" || res.Status != "200 OK" || res.Trailer.Get("Late") != "so it is" {
		t.Errorf("%q, %v, %+v", b, err, res)
	}
	if res, err := c.Get("http://node/none"); err != nil || res.StatusCode != 401 || lost != 1 {
		t.Errorf("%+v, %v, %d", res, err, lost)
	}
	// Whoever closes the body ends what writes it.
	if res, err = c.Get("http://node/live"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(res.Body, b); err != nil {
		t.Error(err)
	}
	res.Body.Close()
	if err := <-gone; err == nil {
		t.Error("it writes on")
	}
	if _, err := c.Get("http://node/break"); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%v", err)
	}
	if res, err = c.Get("http://node/late"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(res.Body); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://node/stop", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Do(r); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	<-gone
}

func TestHistoryIsBounded(t *testing.T) {
	h := new(history)
	at := time.Date(2026, 11, 21, 3, 0, 0, 0, time.UTC)
	for i := range maxSamples + 5 {
		h.add(sample{at: at.Add(time.Duration(i) * sampleEvery), queued: i})
	}
	all := h.all()
	if len(all) != maxSamples || all[0].queued != 5 || all[maxSamples-1].queued != maxSamples+4 {
		t.Errorf("%d samples, from %d", len(all), all[0].queued)
	}
}

func TestChart(t *testing.T) {
	at := time.Date(2026, 11, 21, 3, 0, 0, 0, time.UTC)
	queued := func(s sample) float64 { return float64(s.queued) }
	number := func(v float64) string { return fleet.Duration(v).String() }
	draw := func(now time.Time, all ...sample) chart {
		return chartOf("queued", now, all, number, ceiling, []string{"queued"}, queued)
	}
	if c := draw(at); !c.Empty || c.Label != "queued: not known yet" {
		t.Errorf("%+v", c)
	}
	// A sample holds until the next; a silence is a gap.
	c := draw(at.Add(5*time.Minute), sample{at: at, queued: 0}, sample{at: at.Add(5 * time.Second), queued: 4}, sample{at: at.Add(4 * time.Minute), queued: 2})
	if c.Span != "5m" || c.Series[0].Line != "M0.0 47.5H4.0V9.9H8.0M192.0 28.7H196.0" ||
		c.Series[0].Area != "M0.0 47.5H4.0V9.9H8.0V48H0.0ZM192.0 28.7H196.0V48H192.0Z" {
		t.Errorf("%+v", c)
	}
	if c.Label != "queued: queued 2ms now, at most 4ms in the last 5m" || c.Top != "5ms" {
		t.Errorf("%+v", c)
	}
	if c := draw(at.Add(30*time.Minute), sample{at: at}); c.Span != "1h" {
		t.Errorf("%+v", c)
	}
}

func TestRoundNumbers(t *testing.T) {
	for v, want := range map[float64]float64{0.5: 1, 1: 1, 3: 5, 11: 20, 4999: 5000} {
		if got := ceiling(v); got != want {
			t.Errorf("%v: %v, not %v", v, got, want)
		}
	}
	for v, want := range map[float64]float64{1: 10, 61: 120, 5000: 7200, 86400 * 3: 86400 * 5} {
		if got := ceilingWait(v); got != want {
			t.Errorf("%v s: %v, not %v", v, got, want)
		}
	}
}

func TestSampleOfQueue(t *testing.T) {
	s := sampleOf(time.Time{}, catalog.QueueDetail{
		Queued: 3, Waiting: 2, Running: 7, OldestQueued: 9000,
		Pools: []catalog.QueuePool{{Slots: 4, Oldest: 2000}, {Slots: 6, Oldest: 5000}},
	})
	if s.queued != 3 || s.waiting != 2 || s.running != 7 || s.slots != 10 || s.oldestQueued != 9000 || s.oldestIn != 5000 {
		t.Errorf("%+v", s)
	}
}
