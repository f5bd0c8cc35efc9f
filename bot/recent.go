package bot

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"footplate/controlplane/api"
	"footplate/controlplane/catalog"
	"footplate/controlplane/op"
	"footplate/fleet"
)

// window is how long the same command of the same person is taken for a second
// press of the same key.
const window = time.Minute

// recent remembers what people have just run here.
type recent struct {
	mu   sync.Mutex
	runs map[string]*ran
}

// ran is a command that was run, or runs.
type ran struct {
	at    time.Time
	key   string
	over  chan struct{}
	reply api.Reply
	err   error
}

// sameness is what makes two commands of a person the same: not their words but
// what they mean.
func (r *run) sameness() string {
	args, err := r.call.Op.Encode(r.call.Args)
	if err != nil {
		return ""
	}
	return string(r.by) + "\x00" + r.call.Op.Name + "\x00" + string(args)
}

// started notes that a command runs; the function that it returns, what came of
// it.
func (rs *recent) started(r *run) func(api.Reply, error) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	now := time.Now()
	for id, old := range rs.runs {
		if now.Sub(old.at) > window {
			delete(rs.runs, id)
		}
	}
	if rs.runs == nil {
		rs.runs = make(map[string]*ran)
	}
	id := r.sameness()
	n := &ran{at: now, key: r.key, over: make(chan struct{})}
	rs.runs[id] = n
	return func(reply api.Reply, err error) {
		n.reply, n.err = reply, err
		close(n.over)
		rs.mu.Lock()
		defer rs.mu.Unlock()
		// What was not done may be tried again at once.
		if err != nil && rs.runs[id] == n {
			delete(rs.runs, id)
		}
	}
}

// repeated asks, when the same person has run the same command within window,
// whether it shall be run again, and reports whether it has asked.
func (b *Bot) repeated(ctx context.Context, r run) bool {
	b.recent.mu.Lock()
	before := b.recent.runs[r.sameness()]
	b.recent.mu.Unlock()
	if before != nil && time.Since(before.at) < window && before.key != r.key {
		select {
		case <-before.over:
		case <-ctx.Done():
			return false
		}
		if before.err == nil {
			r.ask(ctx, askRepeat, "", onceMore(before.reply.Text, before.reply.Entry, time.Since(before.at)))
			return true
		}
	}
	// Another replica may have taken the first press.
	if e, ok := r.entry(ctx, func(e *catalog.EntryDetail) bool {
		return e.Key != r.key && e.Outcome == fleet.EntryDone && time.Since(e.At.Std()) < window && r.sameArgs(e.Args)
	}); ok {
		r.ask(ctx, askRepeat, "", onceMore(e.Text, e.N, time.Since(e.At.Std())))
		return true
	}
	return false
}

// onceMore asks whether to do something again.
func onceMore(text string, entry fleet.EntryNo, ago time.Duration) Post {
	return Post{
		Text: fmt.Sprintf("you have done the same %s ago: %s (entry %d). Do it again?", fleet.DurationOf(max(ago.Round(time.Second), time.Second)), text, entry),
	}
}

func (r *run) sameArgs(recorded json.RawMessage) bool {
	args, err := r.call.Op.Encode(r.call.Args)
	if err != nil {
		return false
	}
	var a, b bytes.Buffer
	return json.Compact(&a, r.call.Op.Redact(args)) == nil && json.Compact(&b, recorded) == nil && bytes.Equal(a.Bytes(), b.Bytes())
}

// done returns the entry of this very command, if it was done.
func (r *run) done(ctx context.Context) (*catalog.EntryDetail, bool) {
	return r.entry(ctx, func(e *catalog.EntryDetail) bool { return e.Key == r.key && e.Outcome == fleet.EntryDone })
}

// entry returns the newest entry of this person and operation that fits, of
// those that can matter. Without an answer there is none: the record is asked
// to spare people trouble, not to keep a promise.
func (r *run) entry(ctx context.Context, fits func(*catalog.EntryDetail) bool) (*catalog.EntryDetail, bool) {
	ctx, cancel := context.WithTimeout(ctx, r.Budget/2)
	defer cancel()
	var rows []catalog.EntryRow
	if !r.look(ctx, catalog.AuditTail, &catalog.AuditTailArgs{Limit: 5, By: r.by, Op: r.call.Op.Name}, &rows) {
		return nil, false
	}
	for i := len(rows) - 1; i >= 0; i-- {
		if rows[i].By != r.by || time.Since(rows[i].At.Std()) > ticketLife+window {
			continue
		}
		var e catalog.EntryDetail
		if r.look(ctx, catalog.AuditShow, &catalog.AuditShowArgs{Entry: rows[i].N}, &e) && fits(&e) {
			return &e, true
		}
	}
	return nil, false
}

func (r *run) look(ctx context.Context, o *op.Op, args, into any) bool {
	raw, _, err := r.API.Query(ctx, r.by, o, args, false)
	return err == nil && json.Unmarshal(raw, into) == nil
}
