package console

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"footplate/controlplane/state"
	"footplate/fleet"
)

// fake is a cluster of one verb: "do TEXT" leaves an entry, and its line comes
// to the channel a little later.
type fake struct {
	mu      sync.Mutex
	lines   []state.Line
	more    chan struct{}
	started chan struct{} // "wait" says that it runs
}

func newFake() *fake {
	f := &fake{more: make(chan struct{}), started: make(chan struct{}, 1)}
	f.post("alice", "cli/0.1.0", "made pool \"linux\"", "monday ramp")
	return f
}

var at = fleet.TimeOf(time.Date(2026, 11, 21, 3, 12, 7, 0, time.UTC))

func (f *fake) post(by fleet.Principal, via, text, reason string) fleet.EntryNo {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := uint64(len(f.lines) + 1)
	f.lines = append(f.lines, state.Line{
		N: n, At: at, By: by, Via: via, Op: "pool scale", Outcome: fleet.EntryDone, Text: text, Reason: reason,
		First: fleet.EntryNo(n), Last: fleet.EntryNo(n), Count: 1,
	})
	close(f.more)
	f.more = make(chan struct{})
	return fleet.EntryNo(n)
}

func (f *fake) Run(ctx context.Context, words []string, out io.Writer, ask func([]string) (bool, error)) (fleet.EntryNo, bool, error) {
	switch words[0] {
	case "do":
		fmt.Fprintln(out, "did", words[1])
		return f.post("bob", "chat/0.1.0", "did "+words[1], ""), true, nil
	case "ask":
		yes, err := ask([]string{"host linux-3 gets no new work"})
		if err != nil || !yes {
			return 0, false, errors.Join(err, &fleet.Error{Code: fleet.CodeConfirm, Msg: "not confirmed: nothing was done"})
		}
		fmt.Fprintln(out, "confirmed")
		return 0, false, nil
	case "wait":
		f.started <- struct{}{}
		<-ctx.Done()
		return 0, false, ctx.Err()
	}
	return 0, false, fleet.Invalidf("there is no command %q", words[0]).WithHint("did you mean \"do\"?")
}

func (f *fake) Complete(_ context.Context, words []string) []string {
	var out []string
	for _, c := range []string{"pool", "poll", "do"} {
		if len(words) == 1 && strings.HasPrefix(c, words[0]) {
			out = append(out, c)
		}
	}
	return out
}

func (f *fake) Lines(ctx context.Context, last int) iter.Seq2[state.Line, error] {
	return func(yield func(state.Line, error) bool) {
		sent := 0
		for {
			f.mu.Lock()
			lines, more := f.lines, f.more
			f.mu.Unlock()
			begun := sent > 0
			for ; sent < len(lines); sent++ {
				if !yield(lines[sent], nil) {
					return
				}
			}
			if !begun && !yield(state.Line{}, nil) {
				return
			}
			select {
			case <-more:
			case <-ctx.Done():
				return
			}
		}
	}
}

func (f *fake) WriteError(w io.Writer, err error) {
	e := fleet.AsError(err)
	fmt.Fprintf(w, "error: %s\n", e.Msg)
	if e.Hint != "" {
		fmt.Fprintf(w, "hint: %s\n", e.Hint)
	}
}

// A script is echoed, and each command's line in the channel stands before the
// next command.
func TestScript(t *testing.T) {
	f := newFake()
	var out bytes.Buffer
	in := "# a comment\n\ndo one\nfootplate do two\nask\nyes\nask\nno\nnothing\n'open\nexit\ndo three\n"
	failed, err := Run(t.Context(), Config{Commands: f, In: strings.NewReader(in), Out: &out, Zone: time.UTC})
	if err != nil {
		t.Fatal(err)
	}
	if fleet.CodeOf(failed) != fleet.CodeConfirm {
		t.Errorf("failed: %v; want the first that did, which was not confirmed", failed)
	}
	want := `03:12:07 alice (cli) pool scale: made pool "linux" — monday ramp  [#1]
> do one
did one
03:12:07 bob (chat) pool scale: did one  [#2]
> footplate do two
did two
03:12:07 bob (chat) pool scale: did two  [#3]
> ask
this would be done:
  host linux-3 gets no new work
type yes to confirm
> yes
confirmed
> ask
this would be done:
  host linux-3 gets no new work
type yes to confirm
> no
error: not confirmed: nothing was done
> nothing
error: there is no command "nothing"
hint: did you mean "do"?
> 'open
error: the quote ' is not closed
> exit
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("transcript (-want +got):\n%s", diff)
	}
}

func TestFormatLine(t *testing.T) {
	line := state.Line{
		N: 3, At: at, By: "alice", Via: "cli/0.1.0", Op: "pool scale", Outcome: fleet.EntryDone,
		Text: "scaled pool \"linux\" from 4 to 6 hosts", Reason: "monday ramp", First: 12, Last: 12, Count: 1,
	}
	with := func(change func(*state.Line)) state.Line {
		l := line
		change(&l)
		return l
	}
	rows := []struct {
		name  string
		line  state.Line
		color bool
		want  string
	}{
		{"a person", line, false, `03:12:07 alice (cli) pool scale: scaled pool "linux" from 4 to 6 hosts — monday ramp  [#12]`},
		{"a person, in colour", line, true, `03:12:07 alice (cli) pool scale: scaled pool "linux" from 4 to 6 hosts — monday ramp  [#12]`},
		{"a loop", with(func(l *state.Line) { l.By, l.Via, l.Reason = "loop:watch", "loop/watch", "" }), true,
			"\x1b[2m03:12:07 loop:watch pool scale: scaled pool \"linux\" from 4 to 6 hosts  [#12]\x1b[0m"},
		{"a refusal", with(func(l *state.Line) { l.Outcome, l.Text, l.Reason = fleet.EntryRefused, "alice may not", "" }), true,
			"\x1b[31m03:12:07 alice (cli) pool scale refused: alice may not  [#12]\x1b[0m"},
		{"a group", with(func(l *state.Line) { l.Count, l.Last, l.Reason = 3, 14, "" }), false,
			`03:12:07 alice (cli) pool scale: scaled pool "linux" from 4 to 6 hosts (the last of 3)  [#12-14]`},
		{"a forged line", with(func(l *state.Line) { l.Reason = "x\r\n03:12:08 bob: \x1b[2J" }), false,
			"03:12:07 alice (cli) pool scale: scaled pool \"linux\" from 4 to 6 hosts — x\ufffd\ufffd03:12:08 bob: \ufffd[2J  [#12]"},
	}
	for _, r := range rows {
		if got := FormatLine(r.line, time.UTC, r.color); got != r.want {
			t.Errorf("%s:\n got %q\nwant %q", r.name, got, r.want)
		}
	}
}

func TestComplete(t *testing.T) {
	f := newFake()
	candidates := func(words []string) []string { return f.Complete(context.Background(), words) }
	rows := []struct {
		line, want string
		offers     []string
	}{
		{"d", "do ", nil},
		{"p", "po", nil},
		{"po", "po", []string{"pool", "poll"}},
		{"footplate d", "footplate do ", nil},
		{"x", "x", nil},
		{"", "", []string{"pool", "poll", "do"}},
	}
	for _, r := range rows {
		got, offers := complete(r.line, candidates)
		if got != r.want || !cmp.Equal(offers, r.offers) {
			t.Errorf("complete(%q) = %q, %q; want %q, %q", r.line, got, offers, r.want, r.offers)
		}
	}
}

// screen is a terminal and the person before it.
type screen struct {
	t      *testing.T
	person *os.File
	mu     sync.Mutex
	text   strings.Builder
}

// newScreen opens a pseudo-terminal and returns the program's end of it.
func newScreen(t *testing.T) (*screen, *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(int(program.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 200}); err != nil {
		t.Fatal(err)
	}
	s := &screen{t: t, person: person}
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := person.Read(b)
			s.mu.Lock()
			s.text.Write(b[:n])
			s.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return s, program
}

func (s *screen) types(keys string) {
	s.t.Helper()
	if _, err := s.person.WriteString(keys); err != nil {
		s.t.Fatal(err)
	}
}

// sees waits until text stands on the screen, after what was seen before.
func (s *screen) sees(text string) {
	s.t.Helper()
	for until := time.Now().Add(10 * time.Second); time.Now().Before(until); {
		s.mu.Lock()
		all := s.text.String()
		_, rest, ok := strings.Cut(all, text)
		if ok {
			s.text.Reset()
			s.text.WriteString(rest)
		}
		s.mu.Unlock()
		if ok {
			return
		}
		pause := time.NewTimer(5 * time.Millisecond)
		<-pause.C
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.t.Fatalf("the screen does not show %q but %q", text, s.text.String())
}

func TestTerminal(t *testing.T) {
	f := newFake()
	s, tty := newScreen(t)
	ended := make(chan error, 1)
	go func() {
		failed, err := Run(t.Context(), Config{Commands: f, In: tty, Out: tty, Zone: time.UTC, Welcome: "welcome"})
		if failed != nil {
			t.Errorf("on a terminal, %v is no failure of the chat", failed)
		}
		ended <- err
	}()
	s.sees("welcome")
	s.sees(`made pool "linux"`)
	s.sees(prompt)

	// A line that arrives while somebody types stands above what was typed.
	s.types("do o")
	s.sees("do o")
	f.post("loop:watch", "loop/watch", "host lost", "")
	s.sees("loop:watch pool scale: host lost  [#2]\r\n")
	s.sees(prompt + "do o")
	s.types("ne\r")
	s.sees("did one\r\n")
	s.sees("bob (chat) pool scale: did one  [#3]")

	// Completion, history.
	s.types("p\t")
	s.sees("po")
	s.types("\t")
	s.sees("pool  poll")
	s.types("\x15d\ttwo\r")
	s.sees("did two\r\n")
	s.types("\x1b[A\r")
	s.sees("did two\r\n")

	// Ctrl-C ends what runs, and not the chat.
	s.types("wait\r")
	<-f.started
	s.types("\x03")
	s.sees("interrupted")

	s.types("ask\r")
	s.sees("host linux-3 gets no new work\r\n")
	s.sees("type yes to confirm> ")
	s.types("yes\r")
	s.sees("confirmed\r\n")
	s.sees(prompt)

	s.types("nothing\r")
	s.sees("there is no command")
	s.sees(prompt)
	s.types("\x04")
	select {
	case err := <-ended:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Ctrl-D does not end the chat")
	}
}
