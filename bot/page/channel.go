package page

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"footplate/controlplane/api"
	"footplate/controlplane/state"
	"footplate/fleet"
)

// The pace of what is live.
const (
	backlog     = 60              // lines of the channel at first
	beatEvery   = 5 * time.Second // the script takes three beats of silence for a lost connection
	glanceEvery = 2 * time.Second
	glanceSoon  = 150 * time.Millisecond // after a line: it says that something changed
	writeWithin = 15 * time.Second
)

// longAnswer writes an answer that may last, though each of its writes may not.
type longAnswer struct {
	w       http.ResponseWriter
	control *http.ResponseController
}

func newLongAnswer(w http.ResponseWriter) longAnswer {
	return longAnswer{w, http.NewResponseController(w)}
}

func (l longAnswer) write(b []byte) error {
	// A writer without deadlines, in tests, needs none.
	_ = l.control.SetWriteDeadline(time.Now().Add(writeWithin))
	_, err := l.w.Write(b)
	return err
}

// eventStream writes server-sent events.
type eventStream struct{ longAnswer }

func newEventStream(w http.ResponseWriter) eventStream {
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Accel-Buffering", "no")
	return eventStream{newLongAnswer(w)}
}

// send writes one event. Without an id the reader keeps the one that it has.
func (e eventStream) send(id, kind, data string) error {
	var b strings.Builder
	if id != "" {
		b.WriteString("id: " + id + "\n")
	}
	b.WriteString("event: " + kind + "\n")
	for line := range strings.SplitSeq(strings.ReplaceAll(data, "\r", ""), "\n") {
		b.WriteString("data: " + line + "\n")
	}
	b.WriteByte('\n')
	if err := e.write([]byte(b.String())); err != nil {
		return err
	}
	return e.control.Flush()
}

// json sends a value.
func (e eventStream) json(id, kind string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode event: %w", err)
	}
	return e.send(id, kind, string(b))
}

// lastEvent is where the reader of a stream is: a browser that reconnects by
// itself says it in a header, the script in the URL.
func lastEvent(r *http.Request) string {
	if id := r.Header.Get("Last-Event-ID"); id != "" {
		return id
	}
	return r.URL.Query().Get("after")
}

// The id of a line has the recovery epoch before its number: after a recovery the
// numbers of the lines that were lost are given again, to others, and who went on
// after the number alone would miss as many as were lost.

func (p *Page) lineID(n uint64) string { return fmt.Sprintf("%d.%d", p.cfg.Epoch, n) }

// place returns the number of the line that an id is of; with anew, it is of a
// channel that is over, and the reader has to begin again.
func (p *Page) place(id string) (after string, anew bool) {
	epoch, n, ok := strings.Cut(id, ".")
	switch {
	case !ok:
		return id, false
	case epoch != strconv.FormatUint(p.cfg.Epoch, 10):
		return "", true
	}
	return n, false
}

// heard is what comes from the API's stream of events: a line, or a note that
// lines before the next one are no longer kept.
type heard struct {
	kind string // line, again, gap
	line state.Line
	note string
}

// events sends the lines of the channel and the fleet at a glance, as both
// change: GET /events.
func (p *Page) events(w http.ResponseWriter, r *http.Request, v *visit) error {
	leave, err := p.enter()
	if err != nil {
		return err
	}
	defer leave()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	after, anew := p.place(lastEvent(r))
	body, err := v.channel(ctx, after)
	if err != nil {
		return err
	}
	defer body.Close()
	lines := make(chan heard, 16)
	go func() {
		defer close(lines)
		readChannel(body, func(h heard) bool {
			select {
			case lines <- h:
				return true
			case <-ctx.Done():
				return false
			}
		})
	}()

	out := newEventStream(w)
	if err := out.send("", "hello", string(p.cfg.Node)); err != nil {
		return nil
	}
	if anew {
		if err := out.send("", "anew", "the cluster was recovered: what was here and is not below is lost"); err != nil {
			return nil
		}
	}
	beat, look := time.NewTicker(beatEvery), time.NewTimer(0)
	defer beat.Stop()
	defer look.Stop()
	// The fleet is looked at beside the lines: none waits for it.
	looks := make(chan map[string]string, 1)
	looking := false
	shown := make(map[string]string)
	for {
		select {
		case <-ctx.Done():
			return nil
		case h, ok := <-lines:
			if !ok {
				return nil // the reader comes back
			}
			if err := p.sendLine(out, h); err != nil {
				return nil
			}
			if h.kind == "line" && !looking {
				look.Reset(glanceSoon)
			}
		case <-beat.C:
			if err := out.send("", "beat", ""); err != nil {
				return nil
			}
		case <-look.C:
			looking = true
			go func() {
				one, cancel := context.WithTimeout(ctx, callTimeout)
				defer cancel()
				pieces, err := v.pieces(one)
				if err != nil {
					p.cfg.Log.Error("the glance of the console page failed", "err", err)
				}
				looks <- pieces
			}()
		case pieces := <-looks:
			looking = false
			look.Reset(glanceEvery)
			if v.expired.Load() {
				_ = out.send("", "gone", "")
				return nil
			}
			for name, html := range pieces {
				if shown[name] == html {
					continue
				}
				shown[name] = html
				if err := out.send("", "piece-"+name, html); err != nil {
					return nil
				}
			}
		}
	}
}

func (p *Page) sendLine(out eventStream, h heard) error {
	if h.kind == "gap" {
		return out.send("", "gap", h.note)
	}
	var b bytes.Buffer
	if err := p.views.pieces.ExecuteTemplate(&b, "line", lineView{h.line, automatic(h.line)}); err != nil {
		p.cfg.Log.Error("a line of the channel cannot be shown", "err", err)
		return err
	}
	return out.send(p.lineID(h.line.N), h.kind, b.String())
}

// lineView is a line of the channel.
type lineView struct {
	state.Line
	Automatic bool
}

// Surface is where it came from, without the version.
func (l lineView) Surface() string { s, _, _ := strings.Cut(l.Via, "/"); return s }

// automatic reports whether no person stands behind the line.
func automatic(l state.Line) bool {
	for _, prefix := range []string{"loop:", "node:", "agent:", "system"} {
		if strings.HasPrefix(string(l.By), prefix) {
			return true
		}
	}
	return false
}

// channel opens the API's stream of events, after the line named by after, or
// with the newest.
func (v *visit) channel(ctx context.Context, after string) (io.ReadCloser, error) {
	q := url.Values{"last": {strconv.Itoa(backlog)}}
	if after != "" {
		q = url.Values{}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, nodeAddr+"/v1/events?"+q.Encode(), nil)
	if err != nil {
		return nil, fmt.Errorf("open the channel: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+v.session.Token)
	req.Header.Set(api.HeaderVia, v.page.via())
	if after != "" {
		req.Header.Set("Last-Event-ID", after)
	}
	res, err := v.http.Do(req)
	if err != nil {
		return nil, fleet.Unavailablef("node %q does not give the channel", v.Node)
	}
	if res.StatusCode != http.StatusOK {
		defer res.Body.Close()
		var problem api.Problem
		if json.NewDecoder(io.LimitReader(res.Body, maxBody)).Decode(&problem) != nil || problem.Code == "" {
			return nil, fleet.Internalf("node %q does not give the channel", v.Node)
		}
		return nil, &fleet.Error{Code: problem.Code, Msg: problem.Detail, Hint: problem.Hint}
	}
	return res.Body, nil
}

// readChannel calls f with each event, until it returns false or the stream
// ends. Of the comments it reads those that say which lines are no longer kept.
func readChannel(body io.Reader, f func(heard) bool) {
	in := bufio.NewScanner(body)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		line := in.Text()
		if note, ok := strings.CutPrefix(line, ": lines "); ok {
			if !f(heard{kind: "gap", note: "lines " + note}) {
				return
			}
			continue
		}
		data, ok := strings.CutPrefix(line, "data: ")
		if !ok {
			continue
		}
		var e api.Event
		if json.Unmarshal([]byte(data), &e) != nil || e.Line == nil {
			continue
		}
		if !f(heard{kind: e.Kind, line: *e.Line}) {
			return
		}
	}
}
