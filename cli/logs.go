package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"footplate/controlplane/api"
	"footplate/controlplane/catalog"
	"footplate/controlplane/client"
	"footplate/controlplane/op"
	"footplate/fleet"
)

// stream copies what a stream operation writes: its bytes as they are, but for
// build logs, which are put together from their chunks.
func (s *Session) stream(ctx context.Context, sf Surface, call *op.Call, f format) error {
	if call.Op == catalog.ClusterSnapshotSave && sf.Person {
		return fleet.Invalidf("a snapshot is not for reading").WithHint("footplate %s > FILE", call.Op.Name)
	}
	if err := s.pour(ctx, sf, call, f); err != nil {
		return err
	}
	if call.Options.Stale {
		tellStale(sf, "")
	}
	return nil
}

func (s *Session) pour(ctx context.Context, sf Surface, call *op.Call, f format) error {
	c, err := s.dial()
	if err != nil {
		return err
	}
	if a, ok := call.Args.(*catalog.BuildLogsArgs); ok {
		return s.logs(ctx, sf, *a, f, call.Options.Stale)
	}
	r, err := c.stream(ctx, call.Op, call.Args, api.Request{
		Key: call.Options.Key, Reason: call.Options.Reason, Incident: call.Options.Incident, Via: s.via,
	}, call.Options.Stale)
	if err != nil {
		return err
	}
	defer r.Close()
	if _, err := io.Copy(sf.Out, r); err != nil {
		return err
	}
	return r.Close()
}

// How long a log is asked for again while no node has more of it: a follower
// outlives a minute without a quorum.
const (
	patience       = 15 * time.Second
	followPatience = 3 * time.Minute
)

// logs writes the log of a build. A build of several tasks that is followed is
// followed in all of them at once, each line with the name of its task.
func (s *Session) logs(ctx context.Context, sf Surface, a catalog.BuildLogsArgs, f format, stale bool) error {
	if a.Follow && a.Task == "" {
		tasks, err := s.tasks(ctx, a.Build, stale)
		if err != nil {
			return err
		}
		if len(tasks) > 1 {
			return s.logsOfTasks(ctx, sf, a, f, stale, tasks)
		}
	}
	return s.log(ctx, &logWriter{out: sf.Out, color: sf.Color, lines: f == formatJSON || f == formatJSONL}, a, stale)
}

// tasks returns the names of a build's tasks, in order.
func (s *Session) tasks(ctx context.Context, id fleet.BuildID, stale bool) ([]string, error) {
	d, err := s.show(ctx, id, stale)
	if err != nil {
		return nil, err
	}
	var tasks []string
	for _, row := range d.List {
		if !slices.Contains(tasks, row.Task) {
			tasks = append(tasks, row.Task)
		}
	}
	return tasks, nil
}

func (s *Session) show(ctx context.Context, id fleet.BuildID, stale bool) (catalog.BuildDetail, error) {
	var d catalog.BuildDetail
	raw, err := insist(ctx, followPatience, func() (json.RawMessage, error) {
		ctx, cancel := context.WithTimeout(ctx, s.settings.limit())
		defer cancel()
		raw, _, err := s.dialed.query(ctx, catalog.BuildShow, &catalog.BuildArgs{Build: id}, stale)
		return raw, err
	})
	if err != nil {
		return d, err
	}
	if err := json.Unmarshal(raw, &d); err != nil {
		return d, fleet.Internalf("the answer of build show cannot be read: %s", err)
	}
	return d, nil
}

// insist calls f again while the cluster is away, for as long as most.
func insist[T any](ctx context.Context, most time.Duration, f func() (T, error)) (T, error) {
	since := time.Now()
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		v, err := f()
		if err == nil || !client.Away(err) || ctx.Err() != nil || time.Since(since) > most {
			return v, err
		}
		if !pause(ctx, wait) {
			return v, ctx.Err()
		}
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// log copies one log to w, over as many streams as it takes.
func (s *Session) log(ctx context.Context, w *logWriter, a catalog.BuildLogsArgs, stale bool) error {
	l := client.LogReader{Patience: patience, Open: func(ctx context.Context, a catalog.BuildLogsArgs) (io.ReadCloser, error) {
		return s.dialed.stream(ctx, catalog.BuildLogs, &a, api.Request{Via: s.via}, stale)
	}}
	if a.Follow {
		l.Patience = followPatience
	}
	err := l.Read(ctx, a, w.chunk)
	return errors.Join(w.finish(), err)
}

// logWriter puts chunks together.
type logWriter struct {
	out     io.Writer
	color   bool
	lines   bool // write the chunks themselves, as lines of JSON
	attempt fleet.AttemptID
	midLine bool
}

func (w *logWriter) chunk(p client.LogPiece) error {
	if w.lines {
		return w.write(p.Line)
	}
	if p.Attempt != w.attempt {
		if err := w.note("--- task %s, attempt %d on host %s ---", p.Task, p.Try, p.Host); err != nil {
			return err
		}
		w.attempt = p.Attempt
	}
	if p.Missing > 0 {
		if err := w.note("--- chunks %d to %d are not there ---", p.N-p.Missing, p.N-1); err != nil {
			return err
		}
	}
	if len(p.Data) > 0 {
		w.midLine = p.Data[len(p.Data)-1] != '\n'
	}
	return w.write(p.Data)
}

func (w *logWriter) write(b []byte) error {
	_, err := w.out.Write(b)
	return err
}

// note writes a line of our own between the lines of the log.
func (w *logWriter) note(format string, args ...any) error {
	if err := w.finish(); err != nil {
		return err
	}
	text := clean(fmt.Sprintf(format, args...))
	if w.color {
		text = "\x1b[0;2m" + text + "\x1b[0m"
	}
	return w.write([]byte(text + "\n"))
}

// finish ends a line that was begun.
func (w *logWriter) finish() error {
	if !w.midLine {
		return nil
	}
	w.midLine = false
	return w.write([]byte{'\n'})
}

func (s *Session) logsOfTasks(ctx context.Context, sf Surface, a catalog.BuildLogsArgs, f format, stale bool, tasks []string) error {
	width := 0
	for _, t := range tasks {
		width = max(width, len(t))
	}
	out := &sharedWriter{out: sf.Out}
	errs := make([]error, len(tasks))
	var wg sync.WaitGroup
	for i, t := range tasks {
		wg.Go(func() {
			a := a
			a.Task = t
			w := &logWriter{color: sf.Color, lines: f == formatJSON || f == formatJSONL}
			var lw *lineWriter
			if w.lines {
				w.out = out
			} else {
				lw = &lineWriter{out: out, prefix: fmt.Sprintf("%-*s | ", width, t)}
				w.out = lw
			}
			errs[i] = s.log(ctx, w, a, stale)
			if lw != nil {
				errs[i] = errors.Join(errs[i], lw.flush())
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// sharedWriter lets one write at a time pass.
type sharedWriter struct {
	mu  sync.Mutex
	out io.Writer
}

func (w *sharedWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.out.Write(b)
}

// lineWriter passes whole lines on, each with a prefix.
type lineWriter struct {
	out    io.Writer
	prefix string
	rest   []byte
}

// maxLineHeld bounds what is held back of a line without an end.
const maxLineHeld = 64 << 10

func (w *lineWriter) Write(b []byte) (int, error) {
	w.rest = append(w.rest, b...)
	var done []byte
	for {
		i := bytes.IndexByte(w.rest, '\n')
		if i < 0 {
			break
		}
		done = append(append(done, w.prefix...), w.rest[:i+1]...)
		w.rest = w.rest[i+1:]
	}
	if len(done) > 0 {
		if _, err := w.out.Write(done); err != nil {
			return 0, err
		}
	}
	if len(w.rest) > maxLineHeld {
		return len(b), w.flush()
	}
	return len(b), nil
}

func (w *lineWriter) flush() error {
	if len(w.rest) == 0 {
		return nil
	}
	line := append(append([]byte(w.prefix), w.rest...), '\n')
	w.rest = nil
	_, err := w.out.Write(line)
	return err
}

// followSubmitted follows the log of a build that was just submitted, and fails
// when it does not pass.
func (s *Session) followSubmitted(ctx context.Context, sf Surface, reply api.Reply) error {
	made, err := submitted(reply)
	if err != nil {
		return err
	}
	if err := s.logs(ctx, sf, catalog.BuildLogsArgs{Build: made.Build, Follow: true}, formatTable, false); err != nil {
		return err
	}
	d, err := s.show(ctx, made.Build, false)
	if err != nil {
		return err
	}
	text := fmt.Sprintf("build %d: %s", made.Build, d.State)
	if d.Why != "" {
		text += ": " + d.Why
	}
	fmt.Fprintln(sf.Err, clean(text))
	if d.State != string(fleet.Passed) {
		return failed{fleet.CodeInternal.Meaning().Exit}
	}
	return nil
}
