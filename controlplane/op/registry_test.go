package op

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"footplate/controlplane/state"
	"footplate/fleet"

	"github.com/google/go-cmp/cmp"
)

func dump(t testing.TB, st *state.State) string {
	t.Helper()
	var b bytes.Buffer
	if err := st.Publish().Dump(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// checkChain fails unless the entries are dense, whole and each fits the one
// before it, and the last is the head of the state.
func (l *log) checkChain() {
	l.t.Helper()
	prev := ""
	for i, e := range l.entries {
		if e.N != fleet.EntryNo(i+1) || e.Prev != prev || !e.Intact() {
			l.t.Fatalf("entry %d does not fit: n %d, prev %q, %s", i+1, e.N, e.Prev, e.Unsound())
		}
		prev = e.Hash
	}
	if l.st.Head != prev || l.st.Entry != fleet.EntryNo(len(l.entries)) {
		l.t.Fatalf("the state has head %q and %d entries, the chain %q and %d", l.st.Head, l.st.Entry, prev, len(l.entries))
	}
}

// texts writes the entries in short.
func (l *log) texts() []string {
	out := []string{}
	for _, e := range l.entries {
		s := fmt.Sprintf("%d %s %s: %s", e.N, e.Op, e.Outcome, e.Text)
		if e.Count > 0 {
			s += fmt.Sprintf(" (x%d)", e.Count)
		}
		out = append(out, s)
	}
	return out
}

func TestPackedBatch(t *testing.T) {
	l := newLog(t)
	l.apply(set("acme", 1))
	outs := l.apply(set("beta", 2), state.Command{Op: "org spoil", Key: "k"}, set("acme", 1), set("acme", 5), state.Command{Op: "org touch"})
	var got []string
	for _, o := range outs {
		s := fmt.Sprintf("%d %s %s", o.Entry, o.Text, o.Result)
		if o.Err != nil {
			s = fmt.Sprintf("%d %s: %s", o.Entry, o.Err.Code, o.Err.Msg)
		}
		got = append(got, s)
	}
	want := []string{
		`2 org "beta" has 2 slots {"slots":2}`,
		`3 internal: spoiled`,
		`4 conflict: org "acme" has 1 slots already`,
		`5 org "acme" has 5 slots {"slots":5}`,
		`0 touched `,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if diff := cmp.Diff([]string{
		`1 org set done: org "acme" has 1 slots`, `2 org set done: org "beta" has 2 slots`, `3 org spoil failed: spoiled`,
		`4 org set failed: org "acme" has 1 slots already`, `5 org set done: org "acme" has 5 slots`,
	}, l.texts()); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	l.checkChain()
	if l.st.Meta.Build != 0 || l.st.Orgs.Len() != 2 || l.st.Builds.Len() != 0 || l.st.Queued.Len() != 0 {
		t.Error("the failed command left something")
	}
	if n := l.st.Outbox.Len(); n != 5 {
		t.Errorf("%d parcels in the outbox, not 5", n)
	}
	if p, _ := l.st.Outbox.Get(3); p.Show != state.ShowLine || p.Line.Outcome != fleet.EntryFailed || p.Line.Text != "spoiled" {
		t.Errorf("a failure shows as %+v", p)
	}
}

// TestFailureLeavesOnlyItsEntry: apart from entry, key and parcel the state is
// that of a log without the failed command.
func TestFailureLeavesOnlyItsEntry(t *testing.T) {
	with, without := newLog(t), newLog(t)
	for _, l := range []*log{with, without} {
		l.apply(set("acme", 1), set("beta", 2))
	}
	with.one(state.Command{Op: "org spoil"})
	without.apply()
	for n := range with.st.Outbox.All() {
		if n > 2 {
			with.st.Outbox.Delete(n)
		}
	}
	with.st.Entry, with.st.Head, with.st.Parcel = without.st.Entry, without.st.Head, without.st.Parcel
	if diff := cmp.Diff(dump(t, without.st), dump(t, with.st)); diff != "" {
		t.Errorf("-without +with\n%s", diff)
	}
	if with.st.Digest() != without.st.Digest() {
		t.Error("the digests differ")
	}
}

func TestDedupe(t *testing.T) {
	l := newLog(t)
	keyed := func(c state.Command, key string) state.Command { c.Key = key; return c }
	first := l.one(keyed(set("acme", 1), "k1"))
	again := l.one(keyed(set("acme", 1), "k1"))
	want := first
	want.Duplicate = true
	if diff := cmp.Diff(want, again); diff != "" {
		t.Errorf("a repeated key: -want +got\n%s", diff)
	}
	other := l.one(keyed(set("acme", 2), "k1"))
	if fleet.CodeOf(other.Err) != fleet.CodeConflict || other.Err.Msg != `key "k1" was used for another command (org set)` {
		t.Errorf("the key with other arguments gives %+v", other)
	}
	if o := l.one(state.Command{Key: "k1", Op: "org spoil"}); fleet.CodeOf(o.Err) != fleet.CodeConflict {
		t.Errorf("the key with another operation gives %+v", o)
	}
	bob := keyed(set("acme", 2), "k1")
	bob.By, bob.Role = "bob", fleet.Operator
	if o := l.one(bob); o.Err != nil || o.Duplicate {
		t.Errorf("the key of another principal gives %+v", o)
	}
	// A failure is remembered as well.
	failed := l.one(keyed(set("acme", 2), "k2"))
	again = l.one(keyed(set("acme", 2), "k2"))
	if failed.Err == nil || !again.Duplicate || again.Entry != failed.Entry || again.Err == nil {
		t.Errorf("a failure repeated gives %+v", again)
	}
	// Within one batch too.
	outs := l.apply(keyed(set("acme", 7), "k3"), keyed(set("acme", 7), "k3"))
	if outs[0].Duplicate || !outs[1].Duplicate || outs[0].Entry != outs[1].Entry {
		t.Errorf("twice in a batch: %+v", outs)
	}
	if len(l.entries) != 6 { // a conflict over a key has its entry too
		t.Errorf("entries: %v", l.texts())
	}
	l.now = l.now.Add(state.KeyTTL)
	if o := l.one(keyed(set("acme", 8), "k1")); o.Err != nil || o.Duplicate {
		t.Errorf("after a day the key gives %+v", o)
	}
	l.checkChain()
}

// TestRepeats: two presses of a key in one batch act once, whichever replica of a
// bot they come from; what they ask leaves no entry and no key. A command that is
// stepped over asks nothing.
func TestRepeats(t *testing.T) {
	l := newLog(t)
	press := func(key string, says state.Repeat) state.Command {
		c := set("acme", 7)
		c.Key, c.Repeat = key, says
		return c
	}
	outs := l.apply(press("k1", state.RepeatAsk), press("k2", state.RepeatAsk))
	if outs[0].Err != nil || fleet.CodeOf(outs[1].Err) != fleet.CodeConfirm || outs[1].Entry != 0 || outs[1].Err.Plan != nil ||
		outs[1].Err.Msg != `you have done the same 1s ago: org "acme" has 7 slots (entry 1)` {
		t.Errorf("two presses give %+v", outs)
	}
	if len(l.entries) != 1 || l.st.Keys.Len() != 1 {
		t.Errorf("they leave %v and %d keys", l.texts(), l.st.Keys.Len())
	}
	applied, err := l.reg.Apply(l.st, l.st.Index+1, state.Batch{At: l.now, Commands: []state.Command{press("k3", state.RepeatAsk)}}, []int{0})
	if err != nil || len(applied.Entries) != 1 || applied.Entries[0].Outcome != fleet.EntrySkipped {
		t.Errorf("stepping over gives %+v, %v", applied, err)
	}
}

// TestRefusals: the repeats of a refusal make one entry a window, which says
// how many there were; the window is by principal, operation and code.
func TestRefusals(t *testing.T) {
	l := newLog(t)
	refused := func(by fleet.Principal, e *fleet.Error) state.Command {
		c := set("acme", 1)
		c.By, c.Role, c.Refusal, c.Key = by, fleet.Viewer, e, "same"
		return c
	}
	no := fleet.Deniedf("alice may not")
	for i := range 5 {
		if o := l.one(refused("alice", no)); fleet.CodeOf(o.Err) != fleet.CodeDenied || (o.Entry == 0) != (i > 0) || o.Duplicate {
			t.Errorf("refusal %d gives %+v", i, o)
		}
		l.now = l.now.Add(10 * fleet.Second)
	}
	l.one(refused("bob", fleet.Deniedf("bob may not")))
	l.one(refused("alice", fleet.Conflictf("alice is too early")))
	l.now = l.now.Add(10 * fleet.Second) // a minute after the first
	l.one(refused("alice", no))
	l.now = l.now.Add(2 * fleet.Minute)
	l.one(refused("alice", no))
	if diff := cmp.Diff([]string{
		"1 org set refused: alice may not", "2 org set refused: bob may not", "3 org set refused: alice is too early",
		"4 org set refused: alice may not (x4)", "5 org set refused: alice may not",
	}, l.texts()); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	l.checkChain()
	if l.st.Orgs.Len() != 0 || l.st.Keys.Len() != 0 {
		t.Error("a refusal changed something")
	}
}

func TestTermFence(t *testing.T) {
	l := newLog(t)
	l.st.Term = 4
	c := set("acme", 1)
	for _, term := range []uint64{3, 5} {
		c.Term = term
		o := l.one(c)
		if fleet.CodeOf(o.Err) != fleet.CodeConflict || o.Err.Msg != fmt.Sprintf("org set was decided in term %d; now is term 4", term) {
			t.Errorf("term %d gives %+v", term, o)
		}
	}
	c.Term = 4
	if o := l.one(c); o.Err != nil {
		t.Errorf("its own term gives %+v", o)
	}
	// What opens a term is not bound to the one before.
	if o := l.one(state.Command{Op: "term open", By: "node:n1", Role: fleet.System, Term: 6, Args: args(map[string]int{"term": 6})}); o.Err != nil || l.st.Term != 6 {
		t.Errorf("opening term 6 gives %+v", o)
	}
	// What a loop was too late with leaves no entry.
	if o := l.one(state.Command{Op: "org tidy", By: "loop:watch", Role: fleet.System, Term: 3}); o.Err == nil || o.Entry != 0 {
		t.Errorf("a deposed loop gives %+v", o)
	}
}

func TestSaw(t *testing.T) {
	l := newLog(t)
	l.one(set("acme", 1)) // at index 1
	saw := func(s ...state.Seen) state.Command { c := set("acme", 2); c.Saw = s; return c }
	for _, row := range []struct {
		name string
		seen []state.Seen
		want string
	}{
		{"an older row", []state.Seen{{Table: "orgs", Key: "acme", Version: 0}}, `orgs "acme" has changed since this was decided`},
		{"a row that went", []state.Seen{{Table: "orgs", Key: "beta", Version: 3}}, `orgs "beta" has changed since this was decided`},
		{"one of two", []state.Seen{{Table: "orgs", Key: "acme", Version: 1}, {Table: "tokens", Key: "x", Version: 9}}, `the token has changed since this was decided`},
		{"no such table", []state.Seen{{Table: "ogres", Key: "acme"}}, `ogres "acme" has changed since this was decided`},
	} {
		if o := l.one(saw(row.seen...)); fleet.CodeOf(o.Err) != fleet.CodeConflict || o.Err.Msg != row.want {
			t.Errorf("%s gives %+v", row.name, o)
		}
	}
	if o := l.one(saw(state.Seen{Table: "orgs", Key: "acme", Version: 1}, state.Seen{Table: "orgs", Key: "beta"})); o.Err != nil {
		t.Errorf("what was seen right gives %+v", o)
	}
	l.checkChain()
}

func TestHalts(t *testing.T) {
	for _, row := range []struct {
		name, want string
		c          state.Command
	}{
		{"unknown", `log entry 5 has operation "org dance", which this version does not know: install a newer footplate`, state.Command{Op: "org dance", Ver: 1}},
		{"newer", `log entry 5 has version 3 of operation "org tidy"; this version knows 2: install a newer footplate`, state.Command{Op: "org tidy", Ver: 3}},
		{"a query", `log entry 5 has operation "org list", which cannot be logged`, state.Command{Op: "org list", Ver: 1}},
		{"a stream without a note", `log entry 5 has operation "org dump", which cannot be logged`, state.Command{Op: "org dump", Ver: 1}},
		{"nameless", `log entry 5 has operation "", which this version does not know: install a newer footplate`, state.Command{}},
	} {
		// A skip does not help against what this version cannot know.
		for _, skip := range [][]int{nil, {0}} {
			if _, err := registry().Apply(state.New(), 5, state.Batch{Commands: []state.Command{row.c}}, skip); err == nil || err.Error() != row.want {
				t.Errorf("%s: %v, not %s", row.name, err, row.want)
			}
		}
	}
	for _, ver := range []int{0, 1, 2} {
		if _, err := registry().Apply(state.New(), 5, state.Batch{Commands: []state.Command{{Op: "org tidy", Ver: ver}}}, nil); err != nil {
			t.Errorf("version %d: %v", ver, err)
		}
	}
}

func TestSkip(t *testing.T) {
	st, reg := state.New(), registry()
	b := state.Batch{At: 1000, Commands: []state.Command{set("acme", 1), set("beta", 2), {Op: "org touch", Key: "k"}}}
	applied, err := reg.Apply(st, 5, b, []int{2, 0})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := st.Orgs.Get("acme"); ok || st.Orgs.Len() != 1 {
		t.Error("the skipped command was run, or its neighbour was not")
	}
	var got []string
	for _, e := range applied.Entries {
		got = append(got, fmt.Sprintf("%s %s: %s", e.Op, e.Outcome, e.Text))
	}
	if diff := cmp.Diff([]string{
		"org set skipped: org set was stepped over by --skip-command", `org set done: org "beta" has 2 slots`,
		"org touch skipped: org touch was stepped over by --skip-command",
	}, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if fleet.CodeOf(applied.Outcomes[0].Err) != fleet.CodeInternal {
		t.Errorf("got %+v", applied.Outcomes[0])
	}
}

// TestRecord: who leaves an entry, and who shows in the channel.
func TestRecord(t *testing.T) {
	l := newLog(t)
	loop := func(a tidyArgs) state.Command {
		return state.Command{Op: "org tidy", By: "loop:watch", Role: fleet.System, Ver: 2, Args: args(a)}
	}
	for _, row := range []struct {
		name           string
		c              state.Command
		entries, lines int
	}{
		{"a mutation", set("acme", 1), 1, 1},
		{"a mutation without a show", state.Command{Op: "all take"}, 1, 0},
		{"a stream with a note", state.Command{Op: "org dump noted"}, 1, 1},
		{"a loop", loop(tidyArgs{Text: "x"}), 1, 1},
		{"a loop with nothing to say", loop(tidyArgs{Quiet: true}), 0, 0},
		{"a loop that fails", loop(tidyArgs{Fail: true}), 0, 0},
		{"a loop that hides", loop(tidyArgs{Text: "x", Hide: true}), 1, 0},
		{"a loop without a record", state.Command{Op: "org touch"}, 0, 0},
	} {
		entries, lines := len(l.entries), l.st.Outbox.Len()
		o := l.one(row.c)
		if n := len(l.entries) - entries; n != row.entries || (o.Entry != 0) != (n == 1) {
			t.Errorf("%s leaves %d entries, and says %d", row.name, n, o.Entry)
		}
		if n := l.st.Outbox.Len() - lines; n != row.lines {
			t.Errorf("%s leaves %d lines", row.name, n)
		}
	}
	l.checkChain()
}

// TestEntry: everything that was known of a command is in its entry.
func TestEntry(t *testing.T) {
	l := newLog(t)
	l.st.Term = 2
	l.one(state.Command{
		Key: "k", Op: "all take", Ver: 1, By: "alice", Role: fleet.Operator, Via: "cli/1", Reason: "why not", Incident: "inc-1",
		ApprovedBy: []fleet.Principal{"bob"}, Plan: "abc", Salt: "00ff", Term: 2,
		Args: args(everything{Name: "red", Secret: "hunter2"}),
	})
	e := l.entries[0]
	if strings.Contains(string(e.Args), "hunter2") || !strings.Contains(string(e.Args), `"secret":"[redacted]"`) {
		t.Errorf("arguments are recorded as %s", e.Args)
	}
	e.Args, e.Hash = nil, ""
	want := fleet.Entry{
		N: 1, Index: 1, At: l.now, By: "alice", ApprovedBy: []fleet.Principal{"bob"}, Role: fleet.Operator, Via: "cli/1",
		Op: "all take", Key: "k", Reason: "why not", Incident: "inc-1", Plan: "abc", Outcome: fleet.EntryDone, Text: "took", Salt: "00ff",
	}
	if diff := cmp.Diff(want, e); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestRedact(t *testing.T) {
	a := args(everything{Name: "red", Secret: "hunter2", Secrets: []fleet.HostID{"hunter3", ""}, Hidden: map[string]int{"hunter4": 4}})
	got := string(allTake.Redact(a))
	if strings.Contains(got, "hunter") || !strings.Contains(got, `"secrets":["[redacted]",""]`) || !strings.Contains(got, `"name":"red"`) {
		t.Errorf("redacted to %s", got)
	}
	if a := args(map[string]int{"x": 1}); string(orgSet.Redact(a)) != string(a) {
		t.Error("arguments without a secret are changed")
	}
	if got := string(allTake.Redact(json.RawMessage(`{"secret":5}`))); got != `"unreadable"` {
		t.Errorf("what cannot be read is recorded as %s", got)
	}
	if got := allTake.Redact(nil); got != nil {
		t.Errorf("nothing is recorded as %s", got)
	}
}

func TestDryRun(t *testing.T) {
	l := newLog(t)
	l.one(set("beta", 1))
	before := dump(t, l.st)
	view := l.st.Publish()
	var on []state.Seen
	try := func(c state.Command) (plan *fleet.Plan, res Result, err error) {
		plan, on, res, err = l.reg.DryRun(view.Scratch(), &c)
		return plan, res, err
	}
	plan, res, err := try(set("acme", 1))
	if err != nil || res.Text != `org "acme" has 1 slots` {
		t.Fatalf("got %v, %v", res, err)
	}
	if diff := cmp.Diff([]string{"org acme has 1 slots", "nothing else"}, plan.Lines); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]state.Seen{{Table: "orgs", Key: "acme"}}, on); diff != "" {
		t.Errorf("the plan depends on other rows: %s", diff)
	}
	if p, _, _ := try(set("acme", 1)); p.Hash != plan.Hash || len(p.Hash) != 16 {
		t.Error("the same plan has another hash")
	}
	if p, _, _ := try(set("acme", 2)); p.Hash == plan.Hash {
		t.Error("another plan has the same hash")
	}
	if p, _, err := try(state.Command{Op: "all take"}); err != nil || !cmp.Equal(p.Lines, []string{"took"}) {
		t.Errorf("a plan without changes is %v, %v", p, err)
	}
	if _, _, err := try(set("beta", 1)); fleet.CodeOf(err) != fleet.CodeConflict {
		t.Errorf("what would fail gives %v", err)
	}
	for _, name := range []string{"org dance", "org list"} {
		if _, _, err := try(state.Command{Op: name}); fleet.CodeOf(err) != fleet.CodeInvalid {
			t.Errorf("%s gives %v", name, err)
		}
	}
	if dump(t, l.st) != before {
		t.Error("a dry run changed the state")
	}
}

func TestTwoOfOneName(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("two operations of one name are taken")
		}
	}()
	NewRegistry(orgSet, orgSet)
}

// TestUnreadableArgs: arguments that this version cannot read fail their
// command alone, the same on every node.
func TestUnreadableArgs(t *testing.T) {
	l := newLog(t)
	outs := l.apply(state.Command{Op: "org set", Args: json.RawMessage(`{"org":5}`)}, set("acme", 1))
	if fleet.CodeOf(outs[0].Err) != fleet.CodeInternal || outs[1].Err != nil {
		t.Errorf("got %+v", outs)
	}
	l.checkChain()
}

// TestRehearse: a rehearsal fails and panics as Apply would, and touches
// nothing but its scratch state.
func TestRehearse(t *testing.T) {
	l := newLog(t)
	l.one(set("beta", 1))
	before := dump(t, l.st)
	scratch := l.st.Publish().Scratch()
	scratch.Begin(l.st.Index+1, l.now)
	for _, c := range []state.Command{set("acme", 1), set("beta", 1), {Op: "org spoil", Key: "k"}, {Op: "org tidy", Ver: 2}} {
		if err := l.reg.Rehearse(scratch, &c); err != nil {
			t.Errorf("%s: %v", c.Op, err)
		}
	}
	if _, ok := scratch.Orgs.Get("acme"); !ok {
		t.Error("what was rehearsed before is not there")
	}
	for _, c := range []state.Command{{Op: "org dance"}, {Op: "org list"}, {Op: "org tidy", Ver: 3}} {
		_, want := l.reg.Apply(state.New(), scratch.Index, state.Batch{Commands: []state.Command{c}}, nil)
		if err := l.reg.Rehearse(scratch, &c); err == nil || want == nil || err.Error() != want.Error() {
			t.Errorf("%s: %v, not %v", c.Op, err, want)
		}
	}
	if dump(t, l.st) != before {
		t.Error("a rehearsal changed the state")
	}
}
