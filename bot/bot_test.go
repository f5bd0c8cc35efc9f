package bot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"footplate/bot/bottest"
	"footplate/controlplane/catalog"
	"footplate/controlplane/client"
	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
)

const alice = fleet.Principal("slack:T1/U1")

// screen is a surface that keeps what is on it.
type screen struct {
	mu    sync.Mutex
	posts []*shown
	err   error         // of the next posts
	slow  time.Duration // that a post takes
	blind bool          // nothing is found
}

type shown struct {
	Post
	at      Place
	edits   int
	whisper bool
	file    string
}

func (s *screen) Post(ctx context.Context, at Place, p Post) (Ref, error) {
	if s.slow > 0 {
		select {
		case <-time.After(s.slow):
		case <-ctx.Done():
			return Ref{}, ctx.Err()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return Ref{}, s.err
	}
	s.posts = append(s.posts, &shown{Post: p, at: at})
	id := fmt.Sprint(len(s.posts) - 1)
	thread := at.Thread
	if thread == "" {
		thread = id
	}
	return Ref{Channel: at.Channel, ID: id, Thread: thread}, nil
}

// card returns a post as it is now.
func (s *screen) card(n int) shown {
	s.mu.Lock()
	defer s.mu.Unlock()
	return *s.posts[n]
}

func (s *screen) Update(_ context.Context, r Ref, p Post) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var n int
	if _, err := fmt.Sscan(r.ID, &n); err != nil || n >= len(s.posts) {
		return errors.New("no such message")
	}
	s.posts[n].Post = p
	s.posts[n].edits++
	return nil
}

func (s *screen) Whisper(_ context.Context, at Place, p Post) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.posts = append(s.posts, &shown{Post: p, at: at, whisper: true})
	return nil
}

func (s *screen) Upload(_ context.Context, at Place, private bool, name, text string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.posts = append(s.posts, &shown{at: at, file: name + "\n" + text, whisper: private})
	return nil
}

func (s *screen) Find(_ context.Context, _ Place, id string) (Ref, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, p := range s.posts {
		if p.ID == id && !s.blind {
			return Ref{ID: fmt.Sprint(i)}, true, nil
		}
	}
	return Ref{}, false, nil
}

// texts returns the texts on the screen, each with how often it was edited.
func (s *screen) texts() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, p := range s.posts {
		t := p.Text
		if p.Code != "" && t == "" {
			t = p.Code
		}
		out = append(out, t)
	}
	return out
}

// in runs a test in a bubble with a control plane, a screen, and replicas of the bot.
func in(t *testing.T, replicas int, f func(w *room)) {
	synctest.Test(t, func(t *testing.T) {
		w := &room{T: t, fleet: bottest.New(), screen: new(screen)}
		w.fleet.Grant(alice, fleet.Operator)
		ctx, cancel := context.WithCancel(t.Context())
		w.ctx = ctx
		for range replicas {
			b, err := New(Config{Registry: w.fleet.Registry, API: w.fleet, Surface: w.screen, Secret: []byte("secret")})
			if err != nil {
				t.Fatal(err)
			}
			w.bots = append(w.bots, b)
		}
		f(w)
		cancel()
		for _, b := range w.bots {
			b.Wait()
		}
	})
}

type room struct {
	*testing.T
	ctx    context.Context
	fleet  *bottest.Fleet
	screen *screen
	bots   []*Bot
}

// said is a message in a thread.
func said(id, text string) Message {
	return Message{ID: id, From: alice, Text: text, At: time.Now(), Place: Place{Channel: "C1", Thread: "t", User: "U1"}}
}

func slash(id, text string) Message {
	m := said(id, text)
	m.Private, m.At = true, time.Time{}
	return m
}

func (w *room) handle(replica int, m Message) Post {
	w.Helper()
	begun := time.Now()
	p, err := w.bots[replica].Handle(w.ctx, m)
	if fleet.CodeOf(err) == fleet.CodeUnavailable && !m.Last {
		time.Sleep(time.Minute) // until Slack tells it once more
		m.Again = true
		begun = time.Now()
		p, err = w.bots[replica].Handle(w.ctx, m)
	}
	if err != nil {
		w.Errorf("%s: %v", m.Text, err)
	}
	if took := time.Since(begun); took > 2*time.Second {
		w.Errorf("%s: answered after %s", m.Text, took)
	}
	return p
}

// done counts the entries of commands that were done.
func (w *room) done() int {
	n := 0
	for _, e := range w.fleet.Entries() {
		if e.Outcome == fleet.EntryDone {
			n++
		}
	}
	return n
}

func (w *room) want(what string, got, want any) {
	w.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		w.Errorf("%s: %v, want %v\n%s", what, got, want, strings.Join(w.screen.texts(), "\n"))
	}
}

const scaled = `scaled pool "linux" from 2 to 3 hosts`

// The same message at two replicas at once: one run, one answer.
func TestOneAnswer(t *testing.T) {
	in(t, 2, func(w *room) {
		var wg sync.WaitGroup
		for i := range 2 {
			wg.Go(func() { w.handle(i, said("1", "pool scale linux +1")) })
		}
		wg.Wait()
		time.Sleep(time.Minute)
		w.want("done", w.done(), 1)
		w.want("shown", w.screen.texts(), []string{scaled})
	})
}

// The same to one replica twice, while the first still goes on.
func TestSameDelivery(t *testing.T) {
	in(t, 1, func(w *room) {
		w.fleet.SetFault(func(*op.Op) bottest.Fault { return bottest.Fault{Delay: 400 * time.Millisecond} })
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() { w.want("answer", w.handle(0, slash("1", "pool scale linux +1")).Text, scaled) })
		}
		wg.Wait()
		w.want("done", w.done(), 1)
	})
}

// The replica that ran the command dies before it answers: another, to which the
// message is delivered again, answers for it, and does not run it again. Should that
// one die too while it waits for the first, a third does.
func TestAnswerForTheDead(t *testing.T) {
	in(t, 3, func(w *room) {
		w.screen.err = errors.New("killed")
		w.handle(0, said("1", "pool scale linux +1"))
		w.screen.err = nil
		again := said("1", "pool scale linux +1")
		again.Again = true
		life, die := context.WithCancel(w.ctx)
		begun := time.Now()
		if _, err := w.bots[1].Handle(life, again); fleet.CodeOf(err) != fleet.CodeUnavailable {
			w.Errorf("it was acknowledged before anybody had answered: %v", err)
		}
		if took := time.Since(begun); took > 0 {
			w.Errorf("it was given back after %s, though all that is left is to wait", took)
		}
		time.Sleep(time.Second)
		die()
		w.handle(2, again)
		time.Sleep(time.Minute)
		w.want("done", w.done(), 1)
		w.want("shown", w.screen.texts(), []string{scaled})
	})
}

// A question that is delivered again is answered again only if it was not before.
func TestQuestionAgain(t *testing.T) {
	in(t, 3, func(w *room) {
		m := said("1", "pool list -o name")
		w.handle(0, m)
		m.Again = true
		w.handle(1, m)
		time.Sleep(time.Minute)
		w.want("shown", len(w.screen.texts()), 1)
	})
}

// What is said by a slow replica, when another may have taken it for dead, is looked
// for before it is posted.
func TestLateAnswer(t *testing.T) {
	in(t, 2, func(w *room) {
		w.fleet.SetFault(func(o *op.Op) bottest.Fault {
			if o.Name != "pool scale" || w.fleet.Calls() > 0 {
				return bottest.Fault{}
			}
			return bottest.Fault{After: fleet.Unknownf("the connection broke")}
		})
		w.screen.slow = 0
		w.handle(0, said("1", "pool scale linux +1"))
		time.Sleep(time.Minute)
		w.want("done", w.done(), 1)
		w.want("shown", w.screen.texts(), []string{scaled})
		if n := w.screen.card(0).edits; n != 1 {
			t.Errorf("the card was edited %d times", n)
		}
	})
}

// A command that comes again after more than a minute asks before it acts; the answer
// runs it under its own key.
func TestLateCommand(t *testing.T) {
	in(t, 2, func(w *room) {
		m := said("1", "pool scale linux +1")
		m.Again = true
		time.Sleep(5 * time.Minute)
		w.handle(0, m)
		time.Sleep(time.Minute)
		w.want("done", w.done(), 0)
		card := w.screen.card(0)
		w.want("question", card.Text, "this was said 5m ago, and reached the bot only now: do it still?")
		w.click(1, alice, 0, 0)
		w.want("done", w.done(), 1)
		w.want("shown", w.screen.texts(), []string{scaled})
		if e := w.fleet.Entries()[0]; e.Key != "1" {
			t.Errorf("it ran under the key %q", e.Key)
		}
	})
}

// click presses a button of a card, and returns what the person alone is told.
func (w *room) click(replica int, by fleet.Principal, card, button int) string {
	w.Helper()
	return w.press(replica, by, card, w.screen.card(card).Buttons[button].Value)
}

func (w *room) press(replica int, by fleet.Principal, card int, value string) string {
	w.Helper()
	p, err := w.bots[replica].Click(w.ctx, Click{
		From: by, Place: Place{Channel: "C1", Thread: "t"}, Card: Ref{Channel: "C1", ID: fmt.Sprint(card), Thread: "t"}, Value: value,
	})
	if err != nil {
		w.Error(err)
	}
	return p.Text
}

// A confirmation is of one plan, by one person, for a while, and once.
func TestConfirmation(t *testing.T) {
	in(t, 3, func(w *room) {
		w.handle(0, said("1", "host drain linux-1"))
		w.want("done", w.done(), 0)
		buttons := slices.Clone(w.screen.card(0).Buttons)
		w.want("somebody else", w.click(1, "slack:T1/U2", 0, 0), "error: this is for slack:T1/U1 to decide")
		w.want("forged", w.press(1, alice, 0, "AAAA"+buttons[0].Value[4:]), "error: this button is no good any more")
		w.want("done", w.done(), 0)
		// Both replicas take a click.
		var wg sync.WaitGroup
		for i := range 2 {
			wg.Go(func() { w.press(i, alice, 0, buttons[0].Value) })
		}
		wg.Wait()
		time.Sleep(time.Minute)
		w.want("done", w.done(), 1)
		// "Cancel" on an old screen, at another replica, does not say that nothing
		// was done.
		w.press(2, alice, 0, buttons[1].Value)
		time.Sleep(time.Minute)
		if got := w.screen.texts()[0]; strings.Contains(got, "nothing") {
			t.Errorf("the card says %q", got)
		}

		w.handle(0, said("2", "host drain linux-2"))
		last := len(w.screen.posts) - 1
		time.Sleep(6 * time.Minute)
		w.click(1, alice, last, 0)
		w.want("done", w.done(), 1)
		w.want("card", w.screen.texts()[last], "error: the question is more than 5m old: nothing was done")
	})
}

// The same person repeating the same command within a minute is asked, whichever
// replica has it; later, or in other words that mean something else, not.
func TestDoubleEnter(t *testing.T) {
	in(t, 2, func(w *room) {
		w.want("first", w.handle(0, slash("1", "pool scale linux +1")).Text, scaled)
		time.Sleep(10 * time.Second)
		for i, again := range []string{"pool scale linux +1", `footplate  pool scale "linux" +1`} {
			p := w.handle(i, slash(fmt.Sprint(i, "again"), again))
			w.want("question", p.Text, "you have done the same 10s ago: "+scaled+" (entry 1). Do it again?")
			w.want("buttons", len(p.Buttons), 2)
		}
		w.want("another", w.handle(1, slash("3", "pool scale linux +2")).Text, `scaled pool "linux" from 3 to 5 hosts`)
		w.fleet.Grant("slack:T1/U2", fleet.Operator)
		other := slash("4", "pool scale linux +1")
		other.From = "slack:T1/U2"
		w.want("somebody else", w.handle(1, other).Text, `scaled pool "linux" from 5 to 6 hosts`)
		time.Sleep(time.Minute)
		w.want("later", w.handle(1, slash("5", "pool scale linux +1")).Text, `scaled pool "linux" from 6 to 7 hosts`)
		// What failed may be tried again at once.
		for i := range 2 {
			w.want("failed", w.handle(0, slash(fmt.Sprint("f", i), "host cordon linux-9")).Text, `error: there is no host "linux-9"`)
		}
	})
}

// Two presses at the same moment, at one replica or two, while the first is still
// under way: one act, one question that has what came of it, and the answer to that
// acts once.
func TestDoubleEnterAtOnce(t *testing.T) {
	for replicas := 1; replicas <= 2; replicas++ {
		in(t, replicas, func(w *room) {
			w.fleet.SetFault(func(*op.Op) bottest.Fault { return bottest.Fault{Delay: 500 * time.Millisecond} })
			var wg sync.WaitGroup
			answers := make([]Post, 2)
			for i := range 2 {
				wg.Go(func() {
					time.Sleep(time.Duration(i) * 100 * time.Millisecond * time.Duration(2-replicas))
					answers[i] = w.handle(i%replicas, slash(fmt.Sprint(i), "pool scale linux +1"))
				})
			}
			wg.Wait()
			w.want("done", w.done(), 1)
			if len(answers[0].Buttons) > 0 {
				slices.Reverse(answers)
			}
			w.want("first", answers[0].Text, scaled)
			w.want("second", answers[1].Text, "you have done the same 1s ago: "+scaled+" (entry 1). Do it again?")
			w.want("button", answers[1].Buttons[0].Label, "Run it again")
			for range 2 {
				w.press(replicas-1, alice, 0, answers[1].Buttons[0].Value)
			}
			time.Sleep(time.Minute)
			w.want("done", w.done(), 2)
		})
	}
}

// What is disruptive is asked about before its plan is shown; when both plans were
// shown already, at the second confirmation, which then is not asked for again.
func TestDoubleConfirm(t *testing.T) {
	in(t, 2, func(w *room) {
		for i := range 2 {
			w.handle(i, said(fmt.Sprint(i), "queue pause --for 10m"))
		}
		w.click(0, alice, 0, 0)
		w.want("first", w.screen.texts()[0], "paused dispatch of all builds for 10m")
		w.click(1, alice, 1, 0)
		w.want("second", w.screen.texts()[1], "you have done the same 1s ago: paused dispatch of all builds for 10m (entry 1). Do it again?")
		w.want("done", w.done(), 1)
		w.handle(0, said("2", "queue pause --for 10m"))
		w.want("third", w.screen.texts()[2], "you have done the same 1s ago: paused dispatch of all builds for 10m (entry 1). Do it again?")
		w.click(0, alice, 1, 0)
		w.want("meant", w.screen.texts()[1], "paused dispatch of all builds for 10m")
		w.want("done", w.done(), 2)
		w.click(1, alice, 2, 0)
		w.want("the plan", w.screen.texts()[2], "this would be done:")
		w.want("done", w.done(), 2)
		w.click(0, alice, 2, 0)
		w.want("done", w.done(), 3)
	})
}

// submit submits a build beside the bot, and starts it.
func (w *room) submit(key string, host fleet.HostID) fleet.AttemptID {
	w.Helper()
	call, err := w.fleet.Registry.Parse("build submit --org acme --pool linux --run make")
	if err != nil {
		w.Fatal(err)
	}
	reply, err := w.fleet.Do(w.ctx, alice, call.Op, call.Args, client.Options{Key: key})
	if err != nil {
		w.Fatal(err)
	}
	var made catalog.Submitted
	if err := json.Unmarshal(reply.Result, &made); err != nil {
		w.Fatal(err)
	}
	return w.fleet.Start(made.Build, host)
}

// A log that is followed outlives its stream and the leader: what was written meanwhile
// comes, and nothing comes twice. When there is no leader for long, it says so.
func TestFollowBreaks(t *testing.T) {
	in(t, 1, func(w *room) {
		at := w.submit("s", "linux-1")
		away := func(o *op.Op) bottest.Fault {
			return bottest.Fault{Before: fleet.Unavailablef("there is no leader: nothing was done")}
		}
		w.fleet.Write(1, "one\n", false)
		w.handle(0, said("1", "build logs 1 --follow"))
		time.Sleep(5 * time.Second)
		const head = "-- task main, attempt 1 on host linux-1\n"
		w.want("before", w.screen.card(0).Code, head+"one")
		for i, line := range []string{"two", "three"} {
			w.fleet.SetFault(away)
			w.fleet.CutStreams()
			w.fleet.Write(1, line+"\n", false)
			time.Sleep(2 * time.Minute)
			w.want("meanwhile", w.screen.card(0).Note, "the log goes on")
			w.fleet.SetFault(nil)
			time.Sleep(10 * time.Second)
			w.want("afterwards", w.screen.card(0).Code, head+[]string{"one\ntwo", "one\ntwo\nthree"}[i])
		}
		w.fleet.Write(1, "four\n", true)
		w.fleet.Finish(at, fleet.Passed, 0)
		time.Sleep(5 * time.Second)
		w.want("all", w.screen.card(0).Code, head+"one\ntwo\nthree\nfour")
		w.want("at the end", w.screen.card(0).Note, "the end of the log")

		w.submit("t", "linux-2")
		w.fleet.Write(2, "one\n", false)
		w.handle(0, said("2", "build logs 2 --follow"))
		w.fleet.SetFault(away)
		w.fleet.CutStreams()
		time.Sleep(5 * time.Minute)
		w.want("no leader", w.screen.card(1).Note, "the log broke off: there is no leader: nothing was done")
		// Whoever asks only now is answered.
		w.want("asked now", w.handle(0, slash("3", "build logs 2")).Text, "error: the control plane does not answer: nothing was done")
		p := w.handle(0, slash("4", "build logs 2 --stale"))
		w.want("stale", p.Code+"; "+p.Note, "-- task main, attempt 1 on host linux-2\none; stale: answered without a quorum")
	})
}

// A drain that somebody calls off is over, and its card says so.
func TestDrainCalledOff(t *testing.T) {
	in(t, 1, func(w *room) {
		looks := 0
		w.fleet.SetFault(func(o *op.Op) bottest.Fault {
			if o == catalog.HostShow {
				looks++
			}
			return bottest.Fault{}
		})
		first := w.submit("a", "linux-1")
		w.submit("b", "linux-2")
		uncordon := func(id fleet.HostID) {
			w.fleet.Change(func(tx *state.Tx) {
				h, _ := tx.Hosts.Get(id)
				h.Draining = false
				tx.Hosts.Put(id, h)
			})
			time.Sleep(10 * time.Second)
		}
		w.handle(0, said("1", "host drain linux-1 linux-2 --yes"))
		time.Sleep(10 * time.Second)
		w.want("begun", w.screen.card(0).Text, "draining: 0 of 2 hosts are empty, tasks left on the others: 2")
		w.fleet.Finish(first, fleet.Passed, 0)
		time.Sleep(10 * time.Second)
		w.want("half", w.screen.card(0).Text, "draining: 1 of 2 hosts are empty, tasks left on the others: 1")
		uncordon("linux-1") // it was empty
		w.want("still half", w.screen.card(0).Text, "draining: 1 of 2 hosts are empty, tasks left on the others: 1")
		uncordon("linux-2")
		w.want("called off", w.screen.card(0).Text, "drained: 1 of 2 hosts are empty; uncordoned before it was empty: linux-2")
		before := looks
		time.Sleep(time.Hour)
		w.want("looks at the hosts after that", looks-before, 0)

		w.handle(0, said("2", "host drain linux-2 --yes"))
		time.Sleep(10 * time.Second)
		n := len(w.screen.texts()) - 1
		w.want("again", w.screen.card(n).Text, "draining: 0 of 1 hosts are empty, tasks left on the others: 1")
		uncordon("linux-2")
		w.want("called off", w.screen.card(n).Text, "not drained; uncordoned before it was empty: linux-2")
	})
}

// Nothing was proposed: it is said, or left to be delivered again; the last time it is
// said in any case.
func TestUnavailable(t *testing.T) {
	in(t, 1, func(w *room) {
		w.fleet.SetFault(func(*op.Op) bottest.Fault { return bottest.Fault{Before: fleet.Unavailablef("there is no leader")} })
		w.want("answer", w.handle(0, slash("1", "pool scale linux +1")).Text, "error: there is no leader: nothing was done")
		m := said("2", "pool scale linux +1")
		if _, err := w.bots[0].Handle(w.ctx, m); fleet.CodeOf(err) != fleet.CodeUnavailable {
			t.Errorf("it was taken: %v", err)
		}
		if _, err := w.bots[0].Handle(w.ctx, said("3", "pool list")); fleet.CodeOf(err) != fleet.CodeUnavailable {
			t.Errorf("it was taken: %v", err)
		}
		w.want("shown", len(w.screen.texts()), 0)
		m.Again, m.Last = true, true
		w.handle(0, m)
		time.Sleep(time.Minute)
		w.want("shown", w.screen.texts(), []string{"error: there is no leader: nothing was done"})
		w.fleet.SetFault(nil)
		m = said("4", "pool scale linux +1")
		w.handle(0, m)
		w.want("done", w.done(), 1)
	})
}

// A fate that is not known is never called "nothing was done": the bot asks again with
// the key, however long it takes.
func TestUnknown(t *testing.T) {
	in(t, 1, func(w *room) {
		n := 0
		w.fleet.SetFault(func(o *op.Op) bottest.Fault {
			if o.Name != "pool scale" {
				return bottest.Fault{}
			}
			switch n++; {
			case n == 1:
				return bottest.Fault{After: fleet.Unknownf("the connection broke")}
			case n < 5:
				return bottest.Fault{Before: fleet.Unavailablef("there is no leader: nothing was done")}
			}
			return bottest.Fault{}
		})
		w.want("answer", w.handle(0, slash("1", "pool scale linux +1")).Text, "it is not known yet whether pool scale was done")
		time.Sleep(time.Minute)
		w.want("done", w.done(), 1)
		w.want("whispered", w.screen.texts(), []string{scaled})

		w.fleet.SetFault(func(*op.Op) bottest.Fault { return bottest.Fault{Before: fleet.Unknownf("the connection broke")} })
		w.handle(0, slash("2", "pool scale linux +5"))
		time.Sleep(10 * time.Minute)
		w.want("given up", w.screen.texts()[1], "error: it is not known whether pool scale was done")
	})
}

// A control plane that hangs costs the person who asks two seconds, and nobody else
// anything.
func TestHanging(t *testing.T) {
	in(t, 1, func(w *room) {
		w.fleet.SetFault(func(o *op.Op) bottest.Fault {
			if o.Name == "pool scale" {
				return bottest.Fault{Delay: time.Hour}
			}
			return bottest.Fault{}
		})
		w.want("answer", w.handle(0, slash("1", "pool scale linux +1")).Text, "it is not known yet whether pool scale was done")
		w.want("others", w.handle(0, slash("2", "pool list -o name")).Code, "linux")
		w.fleet.SetFault(nil)
		time.Sleep(time.Minute)
		w.want("done", w.done(), 1)
		// A chat that hangs holds up nobody either.
		w.screen.slow = time.Hour
		w.handle(0, said("3", "pool list"))
	})
}

// No command that the catalog knows breaks the parser, the help or the rendering.
func TestEveryOperation(t *testing.T) {
	in(t, 1, func(w *room) {
		w.fleet.Grant(alice, fleet.Admin)
		b := w.bots[0]
		for i, o := range w.fleet.Registry.Ops() {
			if o.Hidden() {
				continue
			}
			p, err := help(w.fleet.Registry, strings.Fields(o.Name), nil)
			if err != nil || !strings.Contains(p.Code, o.Usage()) {
				t.Errorf("help %s: %v", o.Name, err)
			}
			for j, e := range o.Examples {
				words, err := op.Split(e)
				if err != nil {
					t.Fatal(err)
				}
				call, err := b.parse(words)
				if err != nil {
					if !strings.Contains(fleet.AsError(err).Msg, "chat") {
						t.Errorf("%s: %v", e, err)
					}
					continue
				}
				if call.Op != o {
					t.Errorf("%s is %s", e, call.Op.Name)
				}
				if o.Kind == op.KindMutation && !slices.Contains(words, "--dry-run") {
					e += " --dry-run"
				}
				w.handle(0, said(fmt.Sprint("e", i, "-", j), e))
			}
		}
		w.fleet.Grant(alice, fleet.Viewer)
		if p := w.handle(0, slash("h1", "help")); strings.Contains(p.Code, "drain") || !strings.Contains(p.Code, "pool") {
			t.Errorf("the help of a viewer:\n%s", p.Code)
		}
		w.fleet.Grant(alice, "")
		if p := w.handle(0, slash("h2", "help")); strings.Contains(p.Code, "pool") || !strings.Contains(p.Note, "access grant slack:T1/U1") {
			t.Errorf("the help of nobody:\n%s\n%s", p.Code, p.Note)
		}
	})
}

// What breaks the bot is an answer, and the bot lives on.
func TestPanic(t *testing.T) {
	in(t, 1, func(w *room) {
		w.fleet.SetFault(func(*op.Op) bottest.Fault { panic("broken") })
		w.want("answer", w.handle(0, slash("1", "pool list")).Text, "error: the bot failed at this, and has logged why (1)")
		w.fleet.SetFault(nil)
		w.want("answer", w.handle(0, slash("2", "pool list -o name")).Code, "linux")
	})
}

// A ticket is good for those who made it alone.
func TestTicket(t *testing.T) {
	a, err := newSealer([]byte("a"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := newSealer([]byte("b"))
	if err != nil {
		t.Fatal(err)
	}
	want := ticket{Ask: askConfirm, Line: "host drain linux-1 --reason 's3cret'", Key: "k", Plan: "p", By: alice, Until: 1, Accept: true}
	v, err := a.seal(want)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := a.open(v); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := b.open(v); err == nil {
		t.Error("another secret opens it")
	}
	for i := range v {
		if _, err := a.open(v[:i] + "A" + v[i+1:]); err == nil && v[i] != 'A' && i < len(v)-1 {
			t.Errorf("changed at %d, and taken", i)
		}
	}
	want.Line = strings.Repeat("x", 2000)
	if _, err := a.seal(want); fleet.CodeOf(err) != fleet.CodeInvalid {
		t.Errorf("too long: %v", err)
	}
}

// Whatever is typed, it is read or refused with a word, and what is read again from
// what the bot would put into a button means the same.
func FuzzParse(f *testing.F) {
	fl := bottest.New()
	for _, o := range fl.Registry.Ops() {
		for _, e := range o.Examples {
			f.Add(e)
		}
	}
	f.Add("host cordon - -- -f")
	f.Add("build submit --follow -f=x --file=")
	b, err := New(Config{Registry: fl.Registry, API: fl, Surface: new(screen), Secret: []byte("secret")})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, line string) {
		words, err := op.Split(line)
		if err != nil {
			return
		}
		call, err := b.parse(words)
		if err != nil {
			if e := fleet.AsError(err); e.Msg == "" || e.Code == fleet.CodeInternal {
				t.Errorf("%q: %v", line, err)
			}
			return
		}
		if call.Op.Hidden() {
			t.Errorf("%q is %s, which is nobody's", line, call.Op.Name)
		}
		words, err = op.Split(strings.TrimSpace(line))
		if err != nil {
			t.Fatal(err)
		}
		again, err := b.parse(words)
		if err != nil || again.Op != call.Op || !reflect.DeepEqual(again.Args, call.Args) {
			t.Errorf("%q means another thing the second time: %v", line, err)
		}
		if p := b.redact(Post{Echo: line, Text: line, Code: line}); strings.ContainsAny(p.Echo, "\n\x00\x1b") || strings.ContainsAny(p.Code, "\x00\x1b") {
			t.Errorf("%q is echoed as %q", line, p.Echo)
		}
	})
}
