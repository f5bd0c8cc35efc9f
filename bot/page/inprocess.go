package page

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"

	"footplate/controlplane/api"
)

// inProcess calls a handler as if over HTTP, without a socket. What the handler
// writes can be read as it comes.
type inProcess struct {
	handler http.Handler
	// unauthorized is called when the handler does not know the token.
	unauthorized func()
}

// RoundTrip answers once the handler has begun to.
func (t inProcess) RoundTrip(r *http.Request) (*http.Response, error) {
	in := r.Clone(r.Context())
	in.RequestURI = r.URL.RequestURI()
	in.Host = r.URL.Host
	in.RemoteAddr = "page"
	if r.Context().Value(staleKey{}) != nil {
		in.Header.Set(api.HeaderStale, "true")
	}
	if in.Body == nil {
		in.Body = http.NoBody
	}
	from, to := io.Pipe()
	w := &pipeWriter{header: make(http.Header), to: to, begun: make(chan struct{}), broken: make(chan struct{})}
	res := &http.Response{
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: r, Body: from, ContentLength: -1, Trailer: make(http.Header),
	}
	w.res = res
	go func() {
		defer in.Body.Close()
		defer func() {
			if recover() != nil { // as a connection that breaks
				w.once.Do(func() { close(w.broken) })
				to.CloseWithError(io.ErrUnexpectedEOF)
			}
		}()
		t.handler.ServeHTTP(w, in)
		w.end()
	}()
	select {
	case <-w.begun:
	case <-w.broken:
		return nil, io.ErrUnexpectedEOF
	case <-r.Context().Done():
		from.CloseWithError(r.Context().Err())
		return nil, r.Context().Err()
	}
	if res.StatusCode == http.StatusUnauthorized {
		t.unauthorized()
	}
	return res, nil
}

// pipeWriter is the ResponseWriter of a call in process.
type pipeWriter struct {
	header http.Header
	to     *io.PipeWriter
	res    *http.Response
	once   sync.Once
	begun  chan struct{}
	broken chan struct{}
}

func (w *pipeWriter) Header() http.Header { return w.header }

func (w *pipeWriter) WriteHeader(status int) {
	w.once.Do(func() {
		w.res.StatusCode, w.res.Status = status, fmt.Sprint(status, " ", http.StatusText(status))
		w.res.Header = w.header.Clone()
		close(w.begun)
	})
}

func (w *pipeWriter) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	n, err := w.to.Write(b)
	if errors.Is(err, io.ErrClosedPipe) {
		err = http.ErrAbortHandler // the reader has gone
	}
	return n, err
}

// Flush does nothing: what was written was read.
func (w *pipeWriter) Flush() { w.WriteHeader(http.StatusOK) }

// end hands over the trailers, and ends the body.
func (w *pipeWriter) end() {
	w.WriteHeader(http.StatusOK)
	for _, k := range w.header.Values("Trailer") {
		w.res.Trailer[http.CanonicalHeaderKey(k)] = w.header.Values(k)
	}
	w.to.Close()
}
