package slack

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"footplate/bot/slack/slacktest"
	"footplate/fleet"
)

// load is people who give commands without pause, each for a host of its own, so
// that it shows what was lost and what was run twice.
type load struct {
	*world
	people int
	next   atomic.Int64
	stop   chan struct{}
	wg     sync.WaitGroup

	failed atomic.Int64 // commands that Slack said had failed, and were given again
	asked  atomic.Int64 // of those, the ones of which the bot said that they were done
	mu     sync.Mutex
	took   []time.Duration // by the commands that were acknowledged
}

// hosts bounds the commands of one load.
const hosts = 20000

func startLoad(w *world, people int) *load {
	l := &load{world: w, people: people, stop: make(chan struct{})}
	w.fleet.AddHosts(hosts)
	for i := range people {
		l.hire(fmt.Sprintf("U0P%d", i))
	}
	for i := range people {
		l.wg.Go(func() {
			for {
				select {
				case <-l.stop:
					return
				default:
				}
				n := l.next.Add(1)
				if n > hosts {
					return
				}
				l.give(fmt.Sprintf("U0P%d", i), n)
			}
		})
	}
	return l
}

func (l *load) hire(user string) {
	l.AddUser(slacktest.User{ID: user, Name: strings.ToLower(user)})
	l.fleet.Grant(fleet.Principal("slack:"+slacktest.Team+"/"+user), fleet.Operator)
}

// give has a person give one command until they have an answer.
func (l *load) give(user string, n int64) {
	switch host := fmt.Sprintf("linux-%d", n); {
	case n%10 == 3:
		// Each from somebody else: a conversation takes one answer a second.
		user = fmt.Sprintf("U0Q%d", n)
		l.hire(user)
		if _, err := l.Say(user, "D"+user[1:], "host cordon "+host, ""); err != nil {
			l.Error(err)
		}
	case n%10 == 1:
		answer := l.insist(user, "host drain "+host)
		for strings.Contains(answer.Show(), "[Confirm]") {
			if err := l.Click(user, "C0OPS", answer.TS, "Confirm"); err == nil {
				return
			} else if !errors.Is(err, slacktest.ErrTimeout) {
				l.Error(err)
				return
			}
			l.failed.Add(1)
			for _, m := range l.Messages("C0OPS") {
				if m.TS == answer.TS {
					answer = m // it may have been done all the same
				}
			}
		}
	default:
		l.insist(user, "host cordon "+host)
	}
}

// insist has a person give a slash command until Slack does not say that it failed,
// and decline when the bot asks whether to do it again.
func (l *load) insist(user, command string) slacktest.Message {
	for {
		begun := time.Now()
		err := l.Slash(user, "C0OPS", command)
		took := time.Since(begun)
		l.mu.Lock()
		if err == nil {
			l.took = append(l.took, took)
		}
		l.mu.Unlock()
		if err != nil {
			if !errors.Is(err, slacktest.ErrTimeout) {
				l.Error(err)
				return slacktest.Message{}
			}
			l.failed.Add(1)
			continue
		}
		var answer slacktest.Message
		l.until("an answer", func() bool {
			for _, m := range l.Messages("C0OPS") {
				if m.To == user {
					answer = m
				}
			}
			return !strings.Contains(answer.Show(), "the answer follows")
		})
		if strings.Contains(answer.Show(), "you have done the same") {
			l.asked.Add(1)
		}
		return answer
	}
}

// finish ends the load, and checks that every command ran once, and was answered once.
func (l *load) finish() {
	l.Helper()
	close(l.stop)
	l.wg.Wait()
	l.Settle()
	given := min(l.next.Load(), hosts)
	runs := make(map[string]int)
	count := func() int {
		clear(runs)
		for _, e := range l.fleet.Entries() {
			if e.Outcome == fleet.EntryDone {
				for _, h := range strings.FieldsFunc(string(e.Args), func(r rune) bool { return strings.ContainsRune(`"[]{},:`, r) }) {
					if strings.HasPrefix(h, "linux-") {
						runs[h]++
					}
				}
			}
		}
		return len(runs)
	}
	for end := time.Now().Add(15 * time.Second); count() != int(given) && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	for n := int64(1); n <= given; n++ {
		if host := fmt.Sprintf("linux-%d", n); runs[host] == 0 {
			l.Errorf("the command for host %s was lost", host)
		}
	}
	for h, n := range runs {
		if n != 1 {
			l.Errorf("the command for host %s was run %d times", h, n)
		}
	}
	answers := func() map[string]int {
		seen := make(map[string]int)
		for n := int64(3); n <= given; n += 10 {
			for _, m := range l.Messages(fmt.Sprintf("D0Q%d", n)) {
				if m.Bot {
					seen[m.Text]++
				}
			}
		}
		return seen
	}
	for end := time.Now().Add(15 * time.Second); len(answers()) != int(given+7)/10 && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	if n := len(answers()); n != int(given+7)/10 {
		l.Errorf("%d of %d messages were answered; Slack gave up on %d", n, (given+7)/10, l.GaveUp())
	}
	for text, n := range answers() {
		if n != 1 {
			l.Errorf("%d times: %s", n, text)
		}
	}
	slices.Sort(l.took)
	l.Logf("%d commands; %d times one was lost on the way and given again, %d of those had been done; %d envelopes not acknowledged; slash commands answered in %s (half), %s (99%%), %s (all)",
		given, l.failed.Load(), l.asked.Load(), l.Unacknowledged(),
		l.took[len(l.took)/2].Round(time.Millisecond), l.took[len(l.took)*99/100].Round(time.Millisecond), l.took[len(l.took)-1].Round(time.Millisecond))
}

// A hundred cuts under load: no command is lost, and none is run twice.
func TestCuts(t *testing.T) {
	w := newWorld(t, setting{replicas: 2, Config: slacktest.Config{
		// As with the real one, the last delivery comes when the trouble is over: an
		// event whose every delivery was cut off would be Slack's loss. It comes
		// before the bot asks whether something so old is still to be done.
		AckWithin: time.Second, Redeliver: []time.Duration{0, time.Second, 40 * time.Second},
	}})
	l := startLoad(w, 6)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for cuts := 0; cuts < 100; {
		<-tick.C
		if w.Cut() {
			cuts++
		}
	}
	l.finish()
}

// Slack refreshes sockets while commands come: none fails.
func TestRefreshes(t *testing.T) {
	w := newWorld(t, setting{})
	l := startLoad(w, 6)
	// At most ten sockets may be open, and each is for more than three seconds.
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for n := range 15 {
		<-tick.C
		reason := "warning"
		if n%2 == 0 {
			reason = "refresh_requested"
		}
		w.until("a socket is open", func() bool { return w.Refresh(reason, 300*time.Millisecond) })
	}
	l.finish()
	if n := l.failed.Load(); n != 0 || w.Unacknowledged() != 0 {
		t.Errorf("%d commands failed, %d envelopes were lost, though every end was announced", n, w.Unacknowledged())
	}
}
