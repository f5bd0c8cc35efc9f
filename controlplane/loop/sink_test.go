package loop

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"footplate/controlplane/catalog"
	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
)

// sinkWorld is a control plane whose log is a slice, and a place outside that
// takes posts, with faults.
type sinkWorld struct {
	mu    sync.Mutex
	st    *state.State
	view  *state.View
	newer chan struct{}
	ops   *op.Registry
	index uint64

	rnd    *rand.Rand
	faults bool
	lead   context.CancelFunc // ends the office of whoever leads
	posts  []string           // ids, in the order in which they arrived
	texts  []string
	down   bool
	late   sync.WaitGroup // posts that are still on their way

	answers map[string]string // by key
	never   error             // why nothing can be edited
}

func newSinkWorld(seed uint64) *sinkWorld {
	w := &sinkWorld{
		st: state.New(), newer: make(chan struct{}), rnd: rand.New(rand.NewPCG(seed, 1)),
		ops: op.NewRegistry(catalog.SinkOpen, catalog.SinkSending, catalog.SinkSent, catalog.SinkDead, catalog.SinkFailing, catalog.SinkEdited, catalog.AuditErase),
	}
	w.st.Cluster, w.st.Epoch = "c1", 1
	w.view = w.st.Publish()
	return w
}

func (w *sinkWorld) now() fleet.Time { return fleet.TimeOf(time.Now()) }

// say puts lines into the channel.
func (w *sinkWorld) say(n int, group bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.index++
	w.st.Begin(w.index, w.now())
	for range n {
		w.st.Line++
		w.st.Entry++
		w.st.Channel.Put(fleet.EntryNo(w.st.Line), state.Line{
			N: w.st.Line, At: w.st.Clock, By: "alice", Outcome: fleet.EntryDone, Text: fmt.Sprintf("line %d", w.st.Line),
			First: w.st.Entry, Last: w.st.Entry, Count: 1, Group: group,
		})
		if w.st.Line > state.ChannelKeep {
			w.st.Channel.Delete(fleet.EntryNo(w.st.Line - state.ChannelKeep))
		}
	}
	w.published()
}

func (w *sinkWorld) published() {
	w.view = w.st.Publish()
	close(w.newer)
	w.newer = make(chan struct{})
}

func (w *sinkWorld) View() *state.View {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.view
}

func (w *sinkWorld) propose(ctx context.Context, c state.Command) (state.Outcome, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if ctx.Err() != nil || w.strikes() && w.office() {
		return state.Outcome{}, fleet.Unavailablef("not the leader: nothing was done")
	}
	w.index++
	out, err := w.ops.Apply(w.st, w.index, state.Batch{At: w.now(), Commands: []state.Command{c}}, nil)
	if err != nil {
		panic(err)
	}
	w.published()
	if w.strikes() && w.office() {
		return state.Outcome{}, fleet.Unknownf("leadership was lost: the outcome is unknown")
	}
	return out.Outcomes[0], nil
}

func (w *sinkWorld) strikes() bool { return w.faults && w.rnd.IntN(6) == 0 }

// office takes the office away from whoever leads.
func (w *sinkWorld) office() bool {
	w.lead()
	return true
}

// Post is Poster's.
func (w *sinkWorld) Post(ctx context.Context, id, text, _ string) (string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.down:
		return "", fleet.Unavailablef("slack is down")
	case w.strikes(): // never arrives
		return "", fleet.Unavailablef("slow down: nothing was posted")
	case w.strikes(): // arrives, and nobody hears of it
		w.arrived(id, text)
		return "", fleet.Unknownf("no answer")
	case w.strikes(): // perhaps
		return "", fleet.Unknownf("no answer")
	case w.strikes(): // the leader dies while it is on its way
		after := time.Duration(w.rnd.IntN(int(sinkCall)))
		w.late.Go(func() {
			time.Sleep(after)
			w.mu.Lock()
			defer w.mu.Unlock()
			w.arrived(id, text)
		})
		w.office()
		return "", ctx.Err()
	}
	w.arrived(id, text)
	return "ref-of-" + id, nil
}

// Edit is Poster's.
func (w *sinkWorld) Edit(ctx context.Context, ref, id, text string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.never != nil:
		return w.never
	case w.down || w.strikes():
		return fleet.Unavailablef("slack is down")
	case w.strikes(): // the leader dies while it is on its way
		after := time.Duration(w.rnd.IntN(int(sinkCall)))
		w.late.Go(func() {
			time.Sleep(after)
			w.mu.Lock()
			defer w.mu.Unlock()
			if i := slices.Index(w.posts, id); i >= 0 {
				w.texts[i] = text
			}
		})
		w.office()
		return ctx.Err()
	}
	for i, p := range w.posts {
		if p == id && ref == "ref-of-"+id {
			w.texts[i] = text
			if w.strikes() {
				return fleet.Unknownf("no answer")
			}
			return nil
		}
	}
	return fleet.Invalidf("there is no such message")
}

// Withdraw is Poster's.
func (w *sinkWorld) Withdraw(_ context.Context, key, text string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.down || w.strikes() {
		return fleet.Unavailablef("slack is down")
	}
	if _, ok := w.answers[key]; ok {
		w.answers[key] = text
	}
	return nil
}

func (w *sinkWorld) arrived(id, text string) {
	w.posts = append(w.posts, id)
	w.texts = append(w.texts, text)
}

// Find is Poster's.
func (w *sinkWorld) Find(_ context.Context, id string) (string, bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.strikes() {
		return "", false, errors.New("no answer")
	}
	for _, p := range w.posts {
		if p == id {
			return "ref-of-" + p, true, nil
		}
	}
	return "", false, nil
}

// run lets leaders follow one another until ctx ends.
func (w *sinkWorld) run(ctx context.Context) {
	for ctx.Err() == nil {
		lead, cancel := context.WithCancel(ctx)
		w.mu.Lock()
		w.lead = cancel
		w.st.Term++
		w.published()
		w.mu.Unlock()
		RunSink(lead, Config{
			Entry: func(_ context.Context, n fleet.EntryNo) (fleet.Entry, error) {
				return fleet.Entry{N: n, Key: fmt.Sprintf("key-%d", n)}, nil
			},
			View: w.View, Now: w.now, Propose: w.propose, Log: slog.New(slog.DiscardHandler),
			WaitView: func(ctx context.Context, _ uint64) (*state.View, error) {
				w.mu.Lock()
				newer := w.newer
				w.mu.Unlock()
				select {
				case <-newer:
				case <-ctx.Done():
				}
				return w.View(), ctx.Err()
			},
		}, "slack", w)
		cancel()
	}
}

// play runs f beside the leaders, and then waits until everything is there.
func (w *sinkWorld) play(t *testing.T, f func()) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		all.Go(func() { w.run(ctx) })
		for {
			if _, ok := w.View().Sinks.Get("slack"); ok {
				break
			}
			time.Sleep(time.Second)
		}
		f()
		for deadline := time.Now().Add(24 * time.Hour); ; time.Sleep(time.Second) {
			v := w.View()
			if s, _ := v.Sinks.Get("slack"); s.Sent == v.Line {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("it never got there")
			}
		}
		cancel()
		all.Wait()
		w.late.Wait()
	})
}

// TestSinkOnce: whatever fails and whoever leads, each line gets there once and
// in order.
func TestSinkOnce(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := newSinkWorld(seed)
			w.faults = true
			first := uint64(0)
			w.play(t, func() {
				first = w.View().Line
				for range 40 {
					w.mu.Lock()
					n, group, gap := 1+w.rnd.IntN(4), w.rnd.IntN(3) == 0, time.Duration(w.rnd.IntN(3000))*time.Millisecond
					w.mu.Unlock()
					w.say(n, group)
					time.Sleep(gap)
				}
			})
			seen := make(map[string]bool)
			for _, id := range w.posts {
				if seen[id] {
					t.Errorf("%s was posted twice", id)
				}
				seen[id] = true
			}
			next := first + 1
			for _, text := range w.texts {
				if strings.Contains(text, "could not be posted") {
					t.Fatalf("a digest, though little waited: %s", text)
				}
				for _, l := range strings.Split(text, "\n") {
					if !strings.Contains(l, "alice: ") {
						next++ // of the delivery itself
						continue
					}
					if want := fmt.Sprintf("alice: line %d [", next); !strings.Contains(l, want) {
						t.Fatalf("got %q where line %d is due", l, next)
					}
					next++
				}
			}
			if next != w.View().Line+1 {
				t.Errorf("the last line there is %d of %d", next-1, w.View().Line)
			}
		})
	}
}

// TestSinkOutage: an hour without the sink makes one digest, not a flood, and
// is said in the channel once.
func TestSinkOutage(t *testing.T) {
	w := newSinkWorld(1)
	said := 0
	w.play(t, func() {
		w.mu.Lock()
		w.down = true
		w.mu.Unlock()
		for range 60 {
			w.say(30, false)
			time.Sleep(time.Minute)
		}
		s, _ := w.View().Sinks.Get("slack")
		if s.FailingAt == 0 || s.Why != "slack is down" {
			t.Errorf("the sink is said to be well: %+v", s)
		}
		w.mu.Lock()
		w.down = false
		w.mu.Unlock()
	})
	for id := range w.View().Outbox.All() {
		_ = id
		said++
	}
	if said != 2 { // it opened, and it failed
		t.Errorf("%d lines tell of the delivery itself", said)
	}
	// Together the posts name every line from the first to the last, also those
	// that the channel has forgotten.
	next := uint64(0)
	for _, text := range w.texts {
		var n, from, to uint64
		if _, err := fmt.Sscanf(text, "%d lines could not be posted here when they came: entries #%d-%d", &n, &from, &to); err != nil {
			t.Fatalf("no digest: %s", text)
		}
		if from <= next || from > next+3 || to < from+n-1 {
			t.Errorf("%d lines are said to be entries %d to %d, after entry %d", n, from, to, next)
		}
		next = to
	}
	if last, _ := w.View().Channel.Get(fleet.EntryNo(w.View().Line)); next != uint64(last.Last) {
		t.Errorf("the posts end with entry %d, the channel with %d", next, last.Last)
	}
	if len(w.posts) > 3 || len(w.posts) == 0 || !strings.Contains(w.texts[len(w.texts)-1], "could not be posted") {
		t.Errorf("%d posts after the outage, the last is %q", len(w.posts), w.texts)
	}
}

// TestNextPost: a line that may still grow waits until it cannot, and what
// waits goes together.
func TestNextPost(t *testing.T) {
	w := newSinkWorld(1)
	w.say(3, false)
	w.say(1, true)
	v, now := w.View(), w.now()
	none := state.Sink{Name: "slack"}
	if upto, text := NextPost(now, v, none); upto != 3 || strings.Count(text, "\n") != 2 {
		t.Errorf("first lines up to %d: %s", upto, text)
	}
	if upto, _ := NextPost(now, v, state.Sink{Sent: 3}); upto != 0 {
		t.Errorf("line %d is sent though it may grow", upto)
	}
	if upto, _ := NextPost(now.Add(state.LineGrows), v, state.Sink{Sent: 3}); upto != 4 {
		t.Errorf("line %d, not 4, when it has stopped growing", upto)
	}
	// In doubt the same is made again, whatever came since.
	_, before := NextPost(now, v, none)
	w.say(10, false)
	if upto, again := NextPost(now, w.View(), state.Sink{Sending: 3}); upto != 3 || again != before {
		t.Errorf("a repeat goes up to %d:\n%s\ninstead of\n%s", upto, again, before)
	}
	w.say(sinkDigest, false)
	if upto, text := NextPost(now, w.View(), none); upto != w.View().Line || !strings.Contains(text, "could not be posted") {
		t.Errorf("no digest: up to %d, %s", upto, text)
	}
}

// erase erases the text of an entry.
func (w *sinkWorld) erase(t *testing.T, n fleet.EntryNo) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.index++
	out, err := w.ops.Apply(w.st, w.index, state.Batch{At: w.now(), Commands: []state.Command{{
		Op: catalog.AuditErase.Name, Ver: 1, By: "root", Role: fleet.Admin, Reason: "leak",
		Args: fmt.Appendf(nil, `{"entry":%d,"fields":["text"]}`, n),
	}}}, nil)
	if err != nil || out.Outcomes[0].Err != nil {
		t.Fatal(err, out.Outcomes[0].Err)
	}
	w.published()
}

func (w *sinkWorld) edited() bool {
	for _, e := range w.View().Edits.All() {
		if e.EndedAt == 0 {
			return false
		}
	}
	return true
}

// TestSinkErase: what is erased leaves what was posted, also when the post is on
// its way at that moment, whatever fails and whoever leads; and the other lines
// of the post stay.
func TestSinkErase(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := newSinkWorld(seed)
			w.faults = true
			w.answers = make(map[string]string)
			var erased []uint64
			w.play(t, func() {
				for range 30 {
					w.say(3, false)
					v := w.View()
					// Two of a post, so that the edit for the first can be on its way
					// still when the second is erased, with the text of before.
					w.mu.Lock()
					picks := w.rnd.Perm(3)[:2]
					w.mu.Unlock()
					for _, pick := range picks {
						w.mu.Lock()
						wait := time.Duration(w.rnd.IntN(4000)) * time.Millisecond
						w.mu.Unlock()
						time.Sleep(wait)
						l, _ := v.Channel.Get(fleet.EntryNo(v.Line - uint64(pick)))
						w.mu.Lock()
						w.answers[fmt.Sprintf("key-%d", l.First)] = "quotes it"
						w.mu.Unlock()
						w.erase(t, l.First)
						erased = append(erased, l.N)
					}
				}
				for deadline := time.Now().Add(time.Hour); !w.edited(); time.Sleep(time.Second) {
					if time.Now().After(deadline) {
						t.Fatal("not all was edited")
					}
				}
			})
			if !w.edited() {
				t.Error("not all was edited in the end")
			}
			all := strings.Join(w.texts, "\n") + "\n"
			for _, n := range erased {
				if strings.Contains(all, fmt.Sprintf(": line %d [", n)) {
					t.Errorf("line %d is still there", n)
				}
			}
			if got := strings.Count(all, "(erased)"); got != len(erased) {
				t.Errorf("%d lines of %d say that they were erased", got, len(erased))
			}
			for key, text := range w.answers {
				if !strings.Contains(text, "was erased") {
					t.Errorf("the answer to %s says %q", key, text)
				}
			}
		})
	}
}

// TestSinkEraseNever: what can never be edited is said once, and what could not
// be for a day too.
func TestSinkEraseNever(t *testing.T) {
	for _, row := range []struct {
		why  *fleet.Error
		want string
		wait time.Duration
	}{
		{fleet.Invalidf("Slack refuses: cant_update_message"), "slack still has what was erased of entry 2: Slack refuses: cant_update_message; delete it there by hand", time.Minute},
		{fleet.Unavailablef("no answer"), "slack still has what was erased of entry 2: it could not be edited for 1d (no answer); delete it there by hand", 25 * time.Hour},
	} {
		w := newSinkWorld(1)
		w.never = row.why
		w.play(t, func() {
			w.say(1, false)
			time.Sleep(10 * time.Second)
			w.erase(t, w.View().Entry)
			time.Sleep(row.wait)
			if !w.edited() {
				t.Error("it is tried for ever")
			}
		})
		var said []string
		for _, p := range w.View().Outbox.All() {
			if p.Line.Op == catalog.SinkEdited.Name {
				said = append(said, p.Line.Text)
			}
		}
		if len(said) != 1 || said[0] != row.want {
			t.Errorf("%s: said %q", row.why.Msg, said)
		}
	}
}
