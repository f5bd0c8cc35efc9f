package catalog

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"

	"github.com/cockroachdb/datadriven"
)

// world is a script's fleet: the log so far, and the state that came of it.
type world struct {
	t       failer
	reg     *op.Registry
	st      *state.State
	now     fleet.Time
	log     [][]byte // batches, as the raft log has them
	entries []fleet.Entry
	shown   int                             // entries that the script has printed
	heard   map[fleet.HostID]fleet.Duration // what the answering node heard
	output  map[fleet.AttemptID][]string    // of attempts, a chunk each
	// whenWaiting is run when a reader waits for a newer view; nil ends the reader.
	whenWaiting func()
}

type failer interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

func newWorld(t failer) *world {
	return &world{
		t: t, reg: All(), st: state.New(),
		now:   fleet.TimeOf(time.Date(2026, 3, 2, 8, 0, 0, 0, time.UTC)),
		heard: make(map[fleet.HostID]fleet.Duration), output: make(map[fleet.AttemptID][]string),
	}
}

// apply puts commands into the log as one batch, and applies it as replicas do.
func (w *world) apply(commands ...state.Command) []state.Outcome {
	w.t.Helper()
	var raw [][]byte
	for i := range commands {
		b, err := state.EncodeCommand(&commands[i])
		if err != nil {
			w.t.Fatal(err)
		}
		raw = append(raw, b)
	}
	data := state.EncodeBatch(w.now, raw)
	w.log = append(w.log, data)
	applied, err := replay(w.reg, w.st, data)
	if err != nil {
		w.t.Fatal(err)
	}
	w.entries = append(w.entries, applied.Entries...)
	w.st.Publish()
	return applied.Outcomes
}

func replay(reg *op.Registry, st *state.State, data []byte) (op.Applied, error) {
	batch, err := state.DecodeBatch(data)
	if err != nil {
		return op.Applied{}, err
	}
	return reg.Apply(st, st.Index+1, batch, nil)
}

// parse reads one line of a script: "alice: pool scale linux 4" or, for what
// loops, agents and nodes propose, "provision: host gone {json}". What "alice in
// chat" has just had done is asked about, and "alice means" it.
func (w *world) parse(line string) (state.Command, *op.Call, error) {
	who, what, ok := strings.Cut(line, ": ")
	if !ok {
		w.t.Fatalf("%q names nobody", line)
	}
	who, refused := strings.CutSuffix(who, " refused")
	who, chat := strings.CutSuffix(who, " in chat")
	who, means := strings.CutSuffix(who, " means")
	c := state.Command{By: fleet.Principal(who), Role: fleet.Operator, Via: "cli/test"}
	switch {
	case chat:
		c.Repeat = state.RepeatAsk
	case means:
		c.Repeat = state.RepeatMeant
	}
	if name, raw, ok := strings.Cut(what, " {"); ok {
		o, known := w.reg.Get(name)
		if known && o.Hidden() {
			args, err := o.Decode(json.RawMessage("{" + raw))
			if err != nil {
				return c, nil, err
			}
			c.By, c.Role, c.Via, c.Op, c.Ver = fleet.Principal("loop:"+who), fleet.System, "loop/"+who, o.Name, o.Version()
			c.Term = w.st.Term
			c.Args, err = o.Encode(args)
			return c, nil, err
		}
	}
	call, err := w.reg.Parse(what)
	if err != nil {
		return c, nil, err
	}
	c.Op, c.Ver = call.Op.Name, call.Op.Version()
	c.Key, c.Reason, c.Incident = call.Options.Key, call.Options.Reason, call.Options.Incident
	if refused {
		c.Role, c.Refusal = fleet.Viewer, fleet.Deniedf("%s is a viewer; %s needs %s", who, call.Op.Name, call.Op.Role)
	}
	c.Args, err = call.Op.Encode(call.Args)
	return c, call, err
}

// do runs one line, and says what came of it.
func (w *world) do(line string) string {
	w.t.Helper()
	if d, ok := strings.CutPrefix(line, "time +"); ok {
		by, err := fleet.ParseDuration(d)
		if err != nil {
			w.t.Fatal(err)
		}
		w.now = w.now.Add(by)
		w.apply()
		return "it is " + w.now.String()
	}
	if q, ok := strings.CutPrefix(line, "why "); ok {
		return w.ask("build why " + q)
	}
	if q, ok := strings.CutPrefix(line, "query: "); ok {
		return w.ask(q)
	}
	c, call, err := w.parse(line)
	if err != nil {
		return say(err)
	}
	if call != nil && call.Options.DryRun {
		plan, _, _, err := w.reg.DryRun(w.st.Publish().Scratch(), &c)
		if err != nil {
			return "would fail: " + say(err)
		}
		return "would: " + strings.Join(plan.Lines, "\nwould: ")
	}
	if call != nil && !call.Op.Logged() {
		w.t.Fatalf("%q is a query", line)
	}
	return tell(w.apply(c)[0])
}

// batch runs lines as one log entry.
func (w *world) batch(lines []string) string {
	var commands []state.Command
	for _, l := range lines {
		c, _, err := w.parse(l)
		if err != nil {
			w.t.Fatal(err)
		}
		commands = append(commands, c)
	}
	var out []string
	for _, o := range w.apply(commands...) {
		out = append(out, tell(o))
	}
	return strings.Join(out, "\n")
}

func tell(o state.Outcome) string {
	s := o.Text
	if o.Err != nil {
		s = say(o.Err)
	}
	if o.Duplicate {
		s += " (again)"
	}
	if s == "" {
		s = "nothing"
	}
	return s
}

func say(err error) string {
	e := fleet.AsError(err)
	s := fmt.Sprintf("error (%s): %s", e.Code, e.Msg)
	if e.Hint != "" {
		s += "\nhint: " + e.Hint
	}
	return s
}

// ask runs a query or a stream.
func (w *world) ask(line string) string {
	call, err := w.reg.Parse(line)
	if err != nil {
		return say(err)
	}
	env := op.Env{View: w.st.Publish(), Now: w.now, Node: "n1", World: w, Ops: w.reg, Caller: op.Caller{Principal: "alice", Role: fleet.Admin}}
	if call.Op.Kind == op.KindStream {
		var b bytes.Buffer
		if err := call.Op.Stream(context.Background(), env, call.Args, &b); err != nil {
			return b.String() + say(err)
		}
		return strings.TrimSuffix(b.String(), "\n")
	}
	got, err := call.Op.Query(context.Background(), env, call.Args)
	if err != nil {
		return say(err)
	}
	switch v := got.(type) {
	case Why:
		return v.Text
	}
	raw, err := json.Marshal(got)
	if err != nil {
		w.t.Fatal(err)
	}
	var rows []json.RawMessage
	if call.Op.Many && json.Unmarshal(raw, &rows) == nil {
		out := count(len(rows), "row")
		for _, r := range rows {
			out += "\n" + string(r)
		}
		return out
	}
	return string(raw)
}

// newEntries prints the entries that the script has not printed.
func (w *world) newEntries() string {
	out := []string{}
	for _, e := range w.entries[w.shown:] {
		s := fmt.Sprintf("%d %s %s", e.N, e.By, e.Op)
		if e.Outcome != fleet.EntryDone {
			s += fmt.Sprintf(" [%s %s]", e.Outcome, e.Code)
		}
		s += ": " + e.Text
		if e.Reason != "" {
			s += " (" + e.Reason + ")"
		}
		if e.Count > 0 {
			s += fmt.Sprintf(" after %d more", e.Count)
		}
		out = append(out, s)
	}
	w.shown = len(w.entries)
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(out, "\n")
}

// channel prints the newest lines of the channel.
func (w *world) channel(most int) string {
	var out []string
	for _, l := range w.st.Publish().Channel.Backward() {
		s := fmt.Sprintf("%d: %s %s: %s", l.N, l.By, l.Op, l.Text)
		if l.Outcome != fleet.EntryDone {
			s = fmt.Sprintf("%d: %s %s %s: %s", l.N, l.By, l.Op, l.Outcome, l.Text)
		}
		if l.Reason != "" {
			s += " (" + l.Reason + ")"
		}
		if l.Count > 1 {
			s += fmt.Sprintf(" [x%d, #%d to #%d]", l.Count, l.First, l.Last)
		}
		out = append([]string{s}, out...)
		if len(out) == most {
			break
		}
	}
	return strings.Join(append(out, fmt.Sprintf("%d lines, %d wait", w.st.Channel.Len(), w.st.Outbox.Len())), "\n")
}

// replicas applies the log to two further replicas, one of them restored from a
// snapshot half-way, and returns the digest that all three have.
func (w *world) replicas() string {
	w.t.Helper()
	want := w.st.Digest()
	for _, half := range []int{-1, len(w.log) / 2} {
		st := state.New()
		for i, data := range w.log {
			if i == half {
				var b bytes.Buffer
				if err := st.Publish().Dump(&b); err != nil {
					w.t.Fatal(err)
				}
				var err error
				if st, err = state.Load(&b); err != nil {
					w.t.Fatal(err)
				}
			}
			if _, err := replay(w.reg, st, data); err != nil {
				w.t.Fatal(err)
			}
			if i%3 == 0 {
				st.Digest() // how often it is taken makes no difference
			}
		}
		if got := st.Digest(); got != want {
			w.t.Fatalf("a replica with a snapshot at %d has digest %s, the first has %s", half, got, want)
		}
	}
	prev := ""
	for i, e := range w.entries {
		if e.N != fleet.EntryNo(i+1) || e.Prev != prev || !e.Intact() {
			w.t.Fatalf("entry %d does not fit the chain", e.N)
		}
		prev = e.Hash
	}
	if w.st.Head != prev {
		w.t.Fatalf("the head of the chain is %q, not %q", w.st.Head, prev)
	}
	return want
}

// TestScripts plays testdata/*.txt: the operator's own command lines, with what
// comes of them. After "run" each line is a log entry of its own, after "batch"
// all are one; "repeat" runs its lines many times; "entries", "channel" and
// "digest" print. Rewrite them with -rewrite, and read the diff.
func TestScripts(t *testing.T) {
	mentioned, played := make(map[string]bool), 0
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		if filepath.Ext(path) != ".txt" || strings.Contains(path, "history") {
			return
		}
		played++
		w := newWorld(t)
		ended := false
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			w.t = t
			ended = d.Cmd == "digest"
			lines := strings.Split(d.Input, "\n")
			for _, l := range lines {
				for _, o := range w.reg.Ops() {
					mentioned[o.Name] = mentioned[o.Name] || strings.Contains(l+" ", ": "+o.Name+" ")
				}
				mentioned["build why"] = mentioned["build why"] || strings.HasPrefix(l, "why ")
			}
			switch d.Cmd {
			case "run":
				var out []string
				for _, l := range lines {
					answer := w.do(l)
					if len(lines) > 1 {
						answer = "> " + l + "\n" + answer
					}
					out = append(out, answer)
				}
				return strings.Join(out, "\n")
			case "batch":
				return w.batch(lines)
			case "repeat":
				var n int
				d.ScanArgs(t, "n", &n)
				last := ""
				for range n {
					for _, l := range lines {
						last = w.do(l)
					}
				}
				return fmt.Sprintf("%d times; the last: %s", n, last)
			case "output":
				var id uint64
				d.ScanArgs(t, "attempt", &id)
				w.output[fleet.AttemptID(id)] = lines
				return "noted"
			case "heard":
				var host, ago string
				d.ScanArgs(t, "host", &host)
				d.ScanArgs(t, "ago", &ago)
				dur, err := fleet.ParseDuration(ago)
				if err != nil {
					t.Fatal(err)
				}
				w.heard[fleet.HostID(host)] = dur
				return "noted"
			case "entries":
				return w.newEntries()
			case "channel":
				most := 20
				d.MaybeScanArgs(t, "most", &most)
				return w.channel(most)
			case "digest":
				return w.replicas()
			}
			t.Fatalf("there is no directive %q", d.Cmd)
			return ""
		})
		if !ended {
			t.Errorf("%s does not end with a digest", path)
		}
	})
	if files, err := filepath.Glob("testdata/*.txt"); err != nil || played != len(files) {
		return // only some were asked for
	}
	for _, o := range All().Ops() {
		if !mentioned[o.Name] {
			t.Errorf("no script mentions %q", o.Name)
		}
	}
}

// What follows makes world the op.World of its queries.

var errArchive = errors.New("the archive is closed")

func (w *world) Entries(_ context.Context, f op.EntryFilter) ([]fleet.Entry, error) {
	var out []fleet.Entry
	for _, e := range w.entries {
		if f.From != 0 && e.N < f.From || f.To != 0 && e.N > f.To || f.By != "" && e.By != f.By || f.Op != "" && e.Op != f.Op || !strings.Contains(e.Text, f.Text) ||
			e.At < f.Since || f.Until != 0 && e.At >= f.Until || f.Outcome != "" && e.Outcome != f.Outcome || f.Incident != "" && e.Incident != f.Incident || !strings.Contains(e.Text, f.Object) {
			continue
		}
		if row, ok := w.st.Erasures.Get(e.N); ok {
			for _, field := range row.Fields {
				if err := e.Erase(field); err != nil {
					return nil, err
				}
			}
		}
		if f.Newest {
			out = append([]fleet.Entry{e}, out...)
		} else {
			out = append(out, e)
		}
	}
	if f.Limit > 0 && len(out) > f.Limit {
		out = out[:f.Limit]
	}
	return out, nil
}

func (w *world) ExportEntries(_ context.Context, f op.EntryFilter, out io.Writer) error {
	_, err := fmt.Fprintf(out, "entries %d to %d from %q to %q\n", f.From, f.To, f.Since, f.Until)
	return err
}

func (w *world) Erased(_ context.Context, e state.Erasure) []op.ErasedAt {
	return []op.ErasedAt{{Where: "node n1", Done: len(w.entries[e.Entry-1].Erased) == len(e.Fields), Note: "by the archive of this test"}}
}

func (w *world) VerifyEntries(_ context.Context, v op.Verify) []op.Checked {
	own := op.Checked{Where: "node n1"}
	if len(w.entries) == 0 {
		own.Err = fleet.Internalf("%s", errArchive)
		return []op.Checked{own}
	}
	own.Entries, own.First, own.Last, own.Head = len(w.entries), 1, w.st.Entry, w.st.Head
	for _, a := range v.Anchors {
		if int(a.N) > len(w.entries) {
			continue
		}
		if w.entries[a.N-1].Hash != a.Hash {
			own.Err = fleet.Conflictf("audit log is not intact: rewritten: entry %d is not the one that was anchored", a.N)
			break
		}
		own.Anchored = max(own.Anchored, a.N)
	}
	all := []op.Checked{own}
	if v.Peers {
		all = append(all, op.Checked{Where: "node n2", Entries: len(w.entries), First: 1, Last: w.st.Entry, Head: w.st.Head})
	}
	if v.Postgres {
		all = append(all, op.Checked{Where: "postgres", Err: fleet.NotFoundf("this node has no postgres archive").WithHint("start the node with FOOTPLATE_POSTGRES_URL")})
	}
	return all
}

func (w *world) Cluster(context.Context) op.Cluster {
	return op.Cluster{Node: "n1", Role: "leader", Leader: w.st.Leader, Term: w.st.Term, Index: w.st.Index}
}

func (w *world) SaveSnapshot(_ context.Context, out io.Writer) error {
	_, err := fmt.Fprintln(out, "a snapshot")
	return err
}

func (w *world) Log(_ context.Context, id fleet.AttemptID, from int, _ bool, yield func(op.LogChunk) error) (int, error) {
	chunks := w.output[id]
	for n := from; n < len(chunks); n++ {
		if err := yield(op.LogChunk{N: n, Data: []byte(chunks[n]), Final: n == len(chunks)-1}); err != nil {
			return n, err
		}
	}
	return max(from, len(chunks)), nil
}

func (w *world) Heard(h fleet.HostID) (fleet.Duration, bool) {
	ago, ok := w.heard[h]
	return ago, ok
}

func (w *world) WaitView(ctx context.Context, index uint64) (*state.View, error) {
	if w.whenWaiting == nil {
		return nil, context.Canceled
	}
	w.whenWaiting()
	return w.st.Publish(), nil
}
