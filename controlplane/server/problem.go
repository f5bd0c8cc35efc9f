package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"footplate/controlplane/api"
	"footplate/fleet"
)

// problem writes an error as RFC 9457 has it.
func problem(e *fleet.Error, status int) api.Problem {
	return api.Problem{
		Type: "about:blank", Title: http.StatusText(status), Status: status,
		Detail: e.Msg, Code: e.Code, Hint: e.Hint, Plan: e.Plan,
	}
}

// statusError is an error whose HTTP status is not its code's.
type statusError struct {
	as     *fleet.Error
	status int
}

func (e *statusError) Error() string { return e.as.Msg }
func (e *statusError) Unwrap() error { return e.as }

// fail answers with err. What is not for people's eyes goes to the log, and the
// answer names where.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	if a, ok := w.(*answer); ok && a.begun {
		s.log.Warn("an answer broke off", "path", r.URL.Path, "err", err)
		panic(http.ErrAbortHandler)
	}
	if fleet.CodeOf(err) == fleet.CodeDenied {
		s.log.Info("a request is refused", "id", w.Header().Get(api.HeaderRequest), "path", r.URL.Path, "from", r.RemoteAddr, "err", err)
	}
	var fixed *statusError
	if errors.As(err, &fixed) {
		s.failAs(w, fixed.status, fixed.as)
		return
	}
	e := s.shown(r.URL.Path, w.Header().Get(api.HeaderRequest), err)
	s.failAs(w, e.Code.Meaning().HTTP, e)
}

// shown returns err as people may see it; id is the request's.
func (s *Server) shown(what, id string, err error) *fleet.Error {
	var e *fleet.Error
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return fleet.Unavailablef("node %q could not answer in time", s.cfg.Node).WithHint("try again, or ask another node")
	}
	s.log.Error("a request failed", "id", id, "op", what, "err", err)
	return internal(s.cfg.Node, id)
}

func internal(node fleet.NodeID, id string) *fleet.Error {
	return fleet.Internalf("something went wrong on node %q (%s)", node, id).WithHint("the log of node %s says more under %s", node, id)
}

func (s *Server) failAs(w http.ResponseWriter, status int, e *fleet.Error) {
	if status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="footplate"`)
	}
	w.Header().Set("Content-Type", "application/problem+json")
	p := problem(e, status)
	p.Request = w.Header().Get(api.HeaderRequest)
	s.write(w, status, p)
}

// reply answers with v.
func (s *Server) reply(w http.ResponseWriter, v any) error {
	w.Header().Set("Content-Type", "application/json")
	s.write(w, http.StatusOK, v)
	return nil
}

func (s *Server) write(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic("server: an answer cannot be encoded: " + err.Error())
	}
	w.Header().Set("Cache-Control", "no-store")
	// An operation may have taken long: the time for writing begins here.
	s.moreTime(w)
	w.WriteHeader(status)
	// Who hung up hears nothing.
	_, _ = w.Write(append(b, '\n'))
}

func wrongMethod(w http.ResponseWriter, r *http.Request, want ...string) error {
	w.Header().Set("Allow", strings.Join(want, ", "))
	return &statusError{
		fleet.Invalidf("%s does not take %s", shorten(r.URL.Path), shorten(r.Method)).WithHint("use %s", strings.Join(want, " or ")),
		http.StatusMethodNotAllowed,
	}
}

// shorten makes what a stranger sent fit for an error.
func shorten(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) > 80 {
		s = strings.ToValidUTF8(s[:80], "") + "..."
	}
	return s
}

// readBody reads a request's body. Once it is there, the connection may be held
// open for as long as it takes.
func readBody(w http.ResponseWriter, r *http.Request, most int64) ([]byte, error) {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, most))
	if err == nil {
		// Else it stays: the rest of the body is still to come, or never will.
		_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	}
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return nil, &statusError{
			fleet.Invalidf("the request is larger than %d bytes: nothing was done", most).WithHint("send less at once"),
			http.StatusRequestEntityTooLarge,
		}
	case err != nil:
		w.Header().Set("Connection", "close")
		return nil, fleet.Invalidf("the request ends early: nothing was done").WithHint("send it again")
	}
	return b, nil
}

// decode reads one JSON object, strictly: it is valid UTF-8, has no field that
// is not known, and nothing follows it. An empty body counts as an empty object.
func decode(b []byte, into any) error {
	if where, broken := brokenText(b); broken {
		if where == "" {
			return fleet.Invalidf("the request is not valid UTF-8: nothing was done")
		}
		return fleet.Invalidf("the request is not valid UTF-8 in %q: nothing was done", shorten(where))
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		var e *fleet.Error
		switch {
		case errors.As(err, &e):
			return e
		case errors.Is(err, io.ErrUnexpectedEOF):
			return fleet.Invalidf("the request is cut off after %d bytes: nothing was done", len(b))
		}
		return fleet.Invalidf("the request cannot be read: %s", strings.TrimPrefix(err.Error(), "json: ")).
			WithHint("/v1/openapi.json says what it looks like")
	}
	if _, err := dec.Token(); err != io.EOF {
		return fleet.Invalidf("the request has something after its object: nothing was done")
	}
	return nil
}
