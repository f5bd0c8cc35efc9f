package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"footplate/controlplane/catalog"
	"footplate/controlplane/op"
	"footplate/fleet"
)

// LogReader reads the log of a build over as many streams as it takes. When a
// connection breaks or a node dies, it asks again for what comes after the last
// chunk that it has, so that none is missing and none comes twice.
type LogReader struct {
	// Open asks for the log: Client.Stream, for whomever it is.
	Open func(ctx context.Context, a catalog.BuildLogsArgs) (io.ReadCloser, error)
	// Patience is how long it is asked for again while no node has more of it.
	Patience time.Duration

	attempt  fleet.AttemptID
	next     map[fleet.AttemptID]int
	chunks   int
	tolerant bool      // goes on after a gap
	openedAt time.Time // the stream that is read, or was last
}

// LogPiece is one chunk of a log.
type LogPiece struct {
	op.LogChunk
	Line    []byte // the chunk as it came: a line of JSON
	Missing int    // how many chunks before it are not there
}

// Read calls f with each chunk, in order, until the log ends. An error of f ends
// the reading, and is returned as it is.
func (l *LogReader) Read(ctx context.Context, a catalog.BuildLogsArgs, f func(LogPiece) error) error {
	l.next = make(map[fleet.AttemptID]int)
	single := a.Task != "" || a.Follow // one task: attempts come in the order of their numbers
	gaps := 0
	trouble := trouble{since: time.Now()}
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		before := l.chunks
		l.openedAt = time.Time{}
		l.tolerant = gaps >= 3
		err := l.stream(ctx, a, f)
		var gap *gapError
		var own *readerError
		switch {
		case err == nil:
			return nil
		case errors.As(err, &own):
			return own.error
		case errors.As(err, &gap):
			gaps++
		case !Away(err) || ctx.Err() != nil:
			return err
		}
		if l.chunks > before {
			wait = 100 * time.Millisecond
		}
		if trouble.lasts(time.Now(), l.openedAt, l.chunks > before) > l.Patience {
			return err
		}
		if single && l.attempt != 0 {
			a.Attempt, a.From = l.attempt, l.next[l.attempt]
		}
		pause := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			pause.Stop()
			return ctx.Err()
		case <-pause.C:
		}
	}
}

// stream reads one stream.
func (l *LogReader) stream(ctx context.Context, a catalog.BuildLogsArgs, f func(LogPiece) error) error {
	r, err := l.Open(ctx, a)
	if err != nil {
		return err
	}
	l.openedAt = time.Now()
	defer r.Close()
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF && len(bytes.TrimSpace(line)) == 0 {
			return r.Close()
		}
		if err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF // broken off within a line
			}
			return err
		}
		var c op.LogChunk
		if err := json.Unmarshal(line, &c); err != nil {
			return fleet.Internalf("a chunk of the log cannot be read: %s", err)
		}
		if err := l.chunk(c, line, a, f); err != nil {
			return err
		}
	}
}

// chunk lets no chunk pass twice, and notices when one is missing.
func (l *LogReader) chunk(c op.LogChunk, line []byte, a catalog.BuildLogsArgs, f func(LogPiece) error) error {
	want, known := l.next[c.Attempt]
	if !known && c.Attempt == a.Attempt {
		want = a.From
	}
	switch {
	case c.N < want:
		return nil
	case c.N > want && !l.tolerant:
		return &gapError{want, c.N}
	}
	l.attempt, l.next[c.Attempt] = c.Attempt, c.N+1
	l.chunks++
	if err := f(LogPiece{c, line, c.N - want}); err != nil {
		return &readerError{err}
	}
	return nil
}

// Away reports whether err means that the cluster or the connection is away for
// the moment, not that the question was wrong.
func Away(err error) bool {
	var e *fleet.Error
	if errors.As(err, &e) {
		return e.Code == fleet.CodeUnavailable || e.Code == fleet.CodeUnknown
	}
	return true
}

// trouble is a time in which no log is to be had.
type trouble struct{ since time.Time }

// steady is how long a stream must have been open to have been a good one,
// although nothing came: a build that is queued has no log.
const steady = 5 * time.Second

// lasts returns how long there has been trouble, now that a stream has broken: of
// which it is known when it was opened, if it was, and whether chunks came.
func (t *trouble) lasts(now, openedAt time.Time, chunks bool) time.Duration {
	if chunks || !openedAt.IsZero() && now.Sub(openedAt) >= steady {
		t.since = now
	}
	return now.Sub(t.since)
}

// gapError says that a chunk came too early.
type gapError struct{ want, got int }

func (g *gapError) Error() string {
	return fmt.Sprintf("chunk %d is not there; chunk %d is", g.want, g.got)
}

// readerError is an error of whoever reads.
type readerError struct{ error }
