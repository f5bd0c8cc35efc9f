package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"footplate/controlplane/api"
	"footplate/controlplane/state"
	"footplate/fleet"
)

// The pace of the events.
const (
	heartbeat   = 15 * time.Second // between comments while nothing happens
	eventsPause = 25 * time.Millisecond
)

// events writes the lines of the channel as server-sent events, as they come:
// GET /v1/events. It begins after the line named by Last-Event-ID (or by
// ?after=), or with the newest ?last= lines, or with what comes next. Any node
// answers, also one that is cut off.
//
// A line that stands for several entries can still grow when it was sent
// already. It is sent again then, under its number, as the kind "again": who
// counts lines may ignore it.
func (s *Server) events(w http.ResponseWriter, r *http.Request) error {
	if err := s.ours(r, false); err != nil {
		return err
	}
	c, err := s.caller(r)
	if err != nil {
		return err
	}
	if no := c.ForNobody(); no != nil {
		return no
	}
	if !c.Role.May(fleet.Viewer) {
		return fleet.Deniedf("%s may not read the channel: that takes the role %s", c.Principal, fleet.Viewer)
	}
	v := s.cfg.View()
	after, err := eventsAfter(r, v)
	if err != nil {
		return err
	}
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(http.StatusOK)
	out := &eventWriter{w: w, s: s, control: http.NewResponseController(w), next: after + 1}
	if l, ok := v.Channel.Get(fleet.EntryNo(after)); ok && r.Header.Get("Last-Event-ID") != "" && l.Count > 1 {
		// It may have grown while the reader was away.
		out.line("again", l)
	}
	if _, err := fmt.Fprintf(w, ": channel of cluster %s, from node %s\n\n", s.cfg.Cluster, s.cfg.Node); err != nil {
		return nil
	}
	for out.err == nil {
		out.lines(v)
		out.flush()
		wait, cancel := context.WithTimeout(r.Context(), heartbeat)
		newer, err := s.cfg.World.WaitView(wait, v.Index)
		cancel()
		switch {
		case r.Context().Err() != nil:
			return nil
		case err != nil:
			out.comment("still here")
			continue
		}
		v = newer
		// Under load one look serves many views.
		pause := time.NewTimer(eventsPause)
		select {
		case <-pause.C:
			v = s.cfg.View()
		case <-r.Context().Done():
			pause.Stop()
			return nil
		}
	}
	return nil
}

// eventsAfter returns the number of the line after which a reader begins.
func eventsAfter(r *http.Request, v *state.View) (uint64, error) {
	q := r.URL.Query()
	number := func(name, value string) (uint64, error) {
		n, err := strconv.ParseUint(value, 10, 64)
		if err != nil {
			return 0, fleet.Invalidf("%s is %q; it must be a whole number, not negative", name, shorten(value))
		}
		return n, nil
	}
	if id := r.Header.Get("Last-Event-ID"); id != "" {
		return number("Last-Event-ID", id)
	}
	if q.Has("after") {
		return number("after", q.Get("after"))
	}
	if !q.Has("last") {
		return v.Line, nil
	}
	n, err := number("last", q.Get("last"))
	return v.Line - min(n, v.Line), err
}

// eventWriter writes lines that a reader has not seen.
type eventWriter struct {
	s       *Server
	w       http.ResponseWriter
	control *http.ResponseController
	next    uint64 // number of the next line
	last    state.Line
	err     error
}

// lines writes what is new in v.
func (e *eventWriter) lines(v *state.View) {
	if l, ok := v.Channel.Get(fleet.EntryNo(e.last.N)); ok && e.last.N != 0 && l.Count != e.last.Count {
		e.line("again", l)
	}
	for _, l := range v.Channel.From(fleet.EntryNo(e.next)) {
		if e.err != nil {
			return
		}
		if l.N > e.next {
			e.comment(fmt.Sprintf("lines %d to %d are no longer kept here: see audit tail", e.next, l.N-1))
		}
		e.line("line", l)
		e.next = l.N + 1
	}
}

func (e *eventWriter) line(kind string, l state.Line) {
	e.last = l
	b, err := json.Marshal(api.Event{Kind: kind, Line: &l})
	if err != nil {
		panic("server: a line of the channel cannot be encoded: " + err.Error())
	}
	e.print("id: %d\nevent: %s\ndata: %s\n\n", l.N, kind, b)
}

func (e *eventWriter) comment(text string) { e.print(": %s\n\n", text) }

func (e *eventWriter) print(format string, args ...any) {
	if e.err != nil {
		return
	}
	e.s.moreTime(e.w)
	_, e.err = fmt.Fprintf(e.w, format, args...)
}

func (e *eventWriter) flush() {
	if e.err == nil {
		e.err = e.control.Flush()
	}
}
