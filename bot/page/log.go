package page

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"html/template"
	"net/http"
	"sync"
	"time"

	"footplate/controlplane/catalog"
	"footplate/controlplane/op"
	"footplate/fleet"
)

// maxBehind bounds what waits for one reader of a log. What is older is left
// out, which the numbers of the chunks tell the reader: the end of a log is what
// people come for.
const maxBehind = 1 << 20

// place is where a reader of a task's log is.
type place struct {
	Attempt fleet.AttemptID `json:"a"`
	Next    int             `json:"n"`
	Paint   string          `json:"p"` // the painter's state
}

// places is where a reader is in each task: the id of its events.
type places map[string]place

func (p places) String() string {
	b, err := json.Marshal(p)
	if err != nil {
		panic("page: a place in a log cannot be written: " + err.Error())
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// placesOf reads what String wrote; of what is wrong, nothing.
func placesOf(id string) places {
	out := make(places)
	b, err := base64.RawURLEncoding.DecodeString(id)
	if err != nil || len(b) > 64<<10 || json.Unmarshal(b, &out) != nil || out == nil {
		return make(places)
	}
	return out
}

// chunkView is a chunk as the script takes it.
type chunkView struct {
	Attempt fleet.AttemptID `json:"a"`
	N       int             `json:"n"`
	HTML    template.HTML   `json:"html"`

	task  string
	after place
	row   catalog.AttemptRow
}

// reel holds what was read of the logs and not sent yet.
type reel struct {
	mu    sync.Mutex
	queue []chunkView
	size  int
	notes []string
	more  chan struct{} // of one place
}

func (q *reel) wake() {
	select {
	case q.more <- struct{}{}:
	default:
	}
}

func (q *reel) add(c chunkView) {
	q.mu.Lock()
	q.queue = append(q.queue, c)
	q.size += len(c.HTML)
	for q.size > maxBehind && len(q.queue) > 1 {
		q.size -= len(q.queue[0].HTML)
		q.queue = q.queue[1:]
	}
	q.mu.Unlock()
	q.wake()
}

func (q *reel) note(text string) {
	q.mu.Lock()
	if n := len(q.notes); n == 0 || q.notes[n-1] != text {
		q.notes = append(q.notes, text)
	}
	q.mu.Unlock()
	q.wake()
}

func (q *reel) take() (queue []chunkView, notes []string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	queue, notes = q.queue, q.notes
	q.queue, q.size, q.notes = nil, 0, nil
	return queue, notes
}

// maxMissing bounds how many chunks of a gap are waited for.
const maxMissing = 1000

// How long a log is asked for again while it cannot be had.
const (
	retryLog    = 500 * time.Millisecond
	maxRetryLog = 5 * time.Second
)

// readTask reads the log of one task into the reel, until it ends. When the
// stream breaks it asks again for what comes after the last chunk that it has,
// so that none is missing and none comes twice. A chunk that comes after later
// ones is sent too: the script puts it into its place.
func (v *visit) readTask(ctx context.Context, id fleet.BuildID, task string, at place, q *reel) {
	paint := painterOf(at.Paint)
	missing := make(map[int]bool) // of the attempt, before at.Next: they may still come
	for wait := retryLog; ; wait = min(2*wait, maxRetryLog) {
		args := catalog.BuildLogsArgs{Build: id, Task: task, Follow: true, Attempt: at.Attempt, From: at.Next}
		err := v.logChunks(ctx, args, func(c op.LogChunk) error {
			wait = retryLog
			if c.Attempt < at.Attempt {
				return nil
			}
			if c.Attempt > at.Attempt {
				at, paint = place{Attempt: c.Attempt}, &painter{}
				clear(missing)
			}
			var html string
			switch late := missing[c.N]; {
			case c.N < at.Next && !late:
				return nil
			case late:
				delete(missing, c.N)
				html = new(painter).paint(c.Data)
			default:
				if c.N > at.Next {
					for n := max(at.Next, c.N-maxMissing); n < c.N; n++ {
						missing[n] = true
					}
					paint = &painter{}
				}
				html = paint.paint(c.Data)
				at = place{c.Attempt, c.N + 1, paint.String()}
			}
			q.add(chunkView{
				Attempt: c.Attempt, N: c.N, HTML: template.HTML(html), task: task, after: at,
				row: catalog.AttemptRow{Build: id, Task: c.Task, Try: c.Try, Attempt: c.Attempt, Host: c.Host},
			})
			return nil
		})
		var e *fleet.Error
		switch {
		case err == nil || ctx.Err() != nil || v.expired.Load():
			return
		case errors.As(err, &e) && e.Code != fleet.CodeUnavailable && e.Code != fleet.CodeUnknown:
			q.note("the log of task " + visible(task) + " cannot be shown: " + visible(e.Msg))
			return
		}
		q.note("the log of task " + visible(task) + " cannot be had for now; asking again")
		pause := time.NewTimer(wait)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return
		}
	}
}

// follow sends the log of a build as it grows, and how the build is: GET
// /builds/17/log. A reader that comes back goes on where it was.
func (p *Page) follow(w http.ResponseWriter, r *http.Request, v *visit) error {
	id, err := buildID(r)
	if err != nil {
		return err
	}
	leave, err := p.enter()
	if err != nil {
		return err
	}
	defer leave()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	chosen := r.URL.Query().Get("task")
	b, err := v.build(ctx, id, chosen)
	if err != nil {
		return err
	}
	at := placesOf(lastEvent(r))
	q := &reel{more: make(chan struct{}, 1)}
	var readers sync.WaitGroup
	for _, task := range b.Followed {
		from := at[task]
		readers.Go(func() { v.readTask(ctx, id, task, from, q) })
	}
	ended := make(chan struct{})
	go func() {
		readers.Wait()
		close(ended)
	}()

	out := newEventStream(w)
	if err := out.send("", "hello", string(p.cfg.Node)); err != nil {
		return nil
	}
	beat, look := time.NewTicker(beatEvery), time.NewTicker(glanceEvery)
	defer beat.Stop()
	defer look.Stop()
	shown := ""
	glance := func() error {
		one, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		b, err := v.build(one, id, chosen)
		if err != nil {
			return nil // it says so at the next look, or the logs do
		}
		var html bytes.Buffer
		if err := p.views.pieces.ExecuteTemplate(&html, "build", b); err != nil {
			p.cfg.Log.Error("a build cannot be shown", "build", id, "err", err)
			return nil
		}
		if shown == html.String() {
			return nil
		}
		shown = html.String()
		return out.send("", "piece-build", shown)
	}
	known := make(map[fleet.AttemptID]bool)
	send := func() error {
		queue, notes := q.take()
		for _, c := range queue {
			if !known[c.Attempt] {
				known[c.Attempt] = true
				var html bytes.Buffer
				if err := p.views.pieces.ExecuteTemplate(&html, "attempt", c.row); err != nil {
					p.cfg.Log.Error("an attempt cannot be shown", "err", err)
					return err
				}
				if err := out.send("", "attempt", html.String()); err != nil {
					return err
				}
			}
			at[c.task] = c.after
			if err := out.json(at.String(), "chunk", c); err != nil {
				return err
			}
		}
		for _, n := range notes {
			if err := out.send("", "note", n); err != nil {
				return err
			}
		}
		return nil
	}
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case <-beat.C:
			err = out.send("", "beat", "")
		case <-look.C:
			err = glance()
		case <-q.more:
			err = send()
		case <-ended:
			if ctx.Err() != nil {
				return nil
			}
			if v.expired.Load() {
				_ = out.send("", "gone", "")
				return nil
			}
			if err = send(); err == nil {
				err = glance()
			}
			if err == nil {
				err = out.send("", "end", "")
			}
			if err == nil {
				err = errors.New("the end was sent")
			}
		}
		if err != nil {
			return nil
		}
	}
}
