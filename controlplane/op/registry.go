package op

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"

	"footplate/controlplane/state"
	"footplate/fleet"
)

// Registry is a list of operations, found by name.
type Registry struct {
	ops    []*Op
	byName map[string]*Op
}

// NewRegistry makes a registry. Two operations of one name are a mistake in
// the program, and panic.
func NewRegistry(ops ...*Op) *Registry {
	r := &Registry{ops: ops, byName: make(map[string]*Op, len(ops))}
	for _, o := range ops {
		if r.byName[o.Name] != nil {
			panic("op: two operations are named " + o.Name)
		}
		r.byName[o.Name] = o
	}
	return r
}

// Versions returns the version of each operation, by name.
func (r *Registry) Versions() map[string]int {
	out := make(map[string]int, len(r.ops))
	for _, o := range r.ops {
		out[o.Name] = o.Version()
	}
	return out
}

// Fingerprint names the operations with their versions: it is the same of
// programs that know the same.
func (r *Registry) Fingerprint() string {
	h := sha256.New()
	for _, o := range r.ops {
		fmt.Fprintf(h, "%s %d\n", o.Name, o.Version())
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// Ops returns every operation, in the order of the catalog.
func (r *Registry) Ops() []*Op { return r.ops }

// Get returns the operation with that name.
func (r *Registry) Get(name string) (*Op, bool) {
	o, ok := r.byName[name]
	return o, ok
}

// Applied is what applying one log entry gave.
type Applied struct {
	Outcomes []state.Outcome // one a command
	Entries  []fleet.Entry   // for the archive, in order
}

// Apply applies one log entry to st. It is pure. skip holds the positions of
// commands to step over ("--skip-command"). An error means that this node must
// halt: it cannot know what the others made of the entry. A panic in an
// operation passes through; the caller halts on it.
func (r *Registry) Apply(st *state.State, index uint64, b state.Batch, skip []int) (Applied, error) {
	st.Begin(index, b.At)
	out := Applied{Outcomes: make([]state.Outcome, len(b.Commands)), Entries: make([]fleet.Entry, 0, len(b.Commands))}
	for i := range b.Commands {
		c := &b.Commands[i]
		o, err := r.logged(index, c)
		if err != nil {
			return out, err
		}
		out.Outcomes[i] = r.located(st, o, c, i, slices.Contains(skip, i), &out.Entries)
	}
	return out, nil
}

// located is one, and says of a panic which command of the log it was: a person
// must name it to step over it.
func (r *Registry) located(st *state.State, o *Op, c *state.Command, i int, skipped bool, entries *[]fleet.Entry) state.Outcome {
	defer func() {
		if p := recover(); p != nil {
			panic(fmt.Sprintf("command %d, %s by %s: %v (to step over it, start every node with --skip-command %d/%d)",
				i, c.Op, c.By, p, st.Index, i))
		}
	}()
	return r.one(st, o, c, skipped, entries)
}

// logged returns the operation of a command in the log.
func (r *Registry) logged(index uint64, c *state.Command) (*Op, error) {
	o, ok := r.byName[c.Op]
	switch {
	case !ok:
		return nil, fmt.Errorf("log entry %d has operation %q, which this version does not know: install a newer footplate", index, c.Op)
	case o.apply == nil:
		return nil, fmt.Errorf("log entry %d has operation %q, which cannot be logged", index, c.Op)
	case c.Ver > o.Version():
		return nil, fmt.Errorf("log entry %d has version %d of operation %q; this version knows %d: install a newer footplate", index, c.Ver, c.Op, o.Version())
	}
	return o, nil
}

// Rehearse runs c on st, a scratch state on which Begin was called, to find out
// whether Apply would fail or panic. What is the same for every operation, the
// entry and the key, is left out: nobody sees it.
func (r *Registry) Rehearse(st *state.State, c *state.Command) error {
	o, err := r.logged(st.Index, c)
	if err == nil && c.Refusal == nil {
		res, err := o.run(st, c)
		_ = o.outcome(res, err)
	}
	return err
}

// run does what the operation does, on what the leader saw.
func (o *Op) run(st *state.State, c *state.Command) (res Result, err error) {
	err = st.Do(c.By, func(tx *state.Tx) error {
		for _, s := range c.Saw {
			if v, ok := st.VersionOf(s.Table, s.Key); !ok || v != s.Version {
				return changedSince(s)
			}
		}
		var err error
		res, err = o.apply(tx, Meta{At: st.Clock, By: c.By, Role: c.Role, Via: c.Via, Reason: c.Reason, Index: st.Index}, c.Args)
		return err
	})
	return res, err
}

// outcome is what the caller is told.
func (o *Op) outcome(res Result, err error) state.Outcome {
	out := state.Outcome{Text: res.Text, Err: fleet.AsError(err)}
	if res.Data != nil {
		raw, jerr := json.Marshal(res.Data)
		if jerr != nil {
			panic(fmt.Sprintf("op: result of %s cannot be encoded: %v", o.Name, jerr))
		}
		out.Result = raw
	}
	return out
}

// one applies one command, and writes its entry in the same step.
func (r *Registry) one(st *state.State, o *Op, c *state.Command, skipped bool, entries *[]fleet.Entry) state.Outcome {
	keyID, argsHash := "", ""
	if c.Key != "" {
		keyID, argsHash = string(c.By)+"\x00"+c.Key, hashArgs(c)
		if known, ok := st.Keys.Get(keyID); ok {
			if known.Args != argsHash {
				err := fleet.Conflictf("key %q was used for another command (%s)", c.Key, known.Op).WithHint("use a new key")
				return state.Outcome{Err: err, Entry: r.record(st, o, c, fleet.EntryFailed, Result{}, err, entries)}
			}
			again := known.Outcome
			again.Duplicate = true
			return again
		}
	}

	if c.Repeat == state.RepeatAsk && c.Refusal == nil && !skipped {
		if again := Repeats(st.Peek(), st.Clock, c); again != nil {
			// Nothing is decided yet: there is no entry, and the key stays free for the
			// answer.
			return state.Outcome{Err: again}
		}
	}

	var res Result
	var err error
	outcome := fleet.EntryDone
	switch {
	case skipped:
		outcome = fleet.EntrySkipped
		err = fleet.Internalf("%s was stepped over by --skip-command", o.Name)
	case c.Refusal != nil:
		outcome = fleet.EntryRefused
		err = c.Refusal
	case c.Term != 0 && c.Term != st.Term && !o.Opens:
		outcome = fleet.EntryFailed
		err = fleet.Conflictf("%s was decided in term %d; now is term %d", o.Name, c.Term, st.Term)
	default:
		res, err = o.run(st, c)
		if err != nil {
			outcome = fleet.EntryFailed
		}
	}

	out := o.outcome(res, err)
	out.Entry = r.record(st, o, c, outcome, res, out.Err, entries)
	if keyID != "" && outcome != fleet.EntryRefused {
		recent := c.Repeat != "" && outcome == fleet.EntryDone
		st.Remember(state.Remembered{ID: keyID, Op: c.Op, Args: argsHash, At: st.Clock, Outcome: out}, recent)
	}
	return out
}

// Repeats returns the question whether to do c again, when it is to be asked and
// the same person has just had the same done in a chat: what failed is tried
// again without a word. The first outcome is part of the question.
//
// It is Apply that decides, so that two replicas of a bot which get the two
// presses of a key at the same moment cannot both act.
func Repeats(v *state.View, now fleet.Time, c *state.Command) *fleet.Error {
	if c.Repeat != state.RepeatAsk {
		return nil
	}
	first, ok := v.JustDone(c.By, hashArgs(c), now)
	if !ok {
		return nil
	}
	msg := fmt.Sprintf("you have done the same %s ago: %s", max(now.Sub(first.At)/fleet.Second*fleet.Second, fleet.Second), first.Outcome.Text)
	if first.Outcome.Entry != 0 {
		msg += fmt.Sprintf(" (entry %d)", first.Outcome.Entry)
	}
	return &fleet.Error{Code: fleet.CodeConfirm, Msg: msg, Hint: "nothing was done now; if it is meant, ask again and say so"}
}

// record writes the audit entry of a command and puts it into the outbox; 0
// when the command leaves none.
func (r *Registry) record(st *state.State, o *Op, c *state.Command, outcome fleet.EntryOutcome, res Result, err *fleet.Error, entries *[]fleet.Entry) fleet.EntryNo {
	if o.Record != Audit && outcome != fleet.EntrySkipped {
		return 0
	}
	if o.Kind == KindInternal && (res.Quiet || outcome == fleet.EntryFailed) {
		return 0
	}
	count := 0
	if outcome == fleet.EntryRefused {
		id := string(c.By) + "\x00" + c.Op + "\x00" + string(err.Code)
		known, ok := st.Refusals.Get(id)
		if ok && known.At.Add(state.RefusalWindow) > st.Clock {
			known.Count++
			st.Refusals.Put(id, known)
			return 0
		}
		count = known.Count
		st.Refusals.Put(id, state.Refusals{At: st.Clock})
	}
	text := res.Text
	var code fleet.Code
	if err != nil {
		text, code = err.Msg, err.Code
	}
	st.Entry++
	*entries = append(*entries, fleet.Entry{
		N: st.Entry, Index: st.Index, At: st.Clock,
		By: c.By, ApprovedBy: c.ApprovedBy, Role: c.Role, Via: c.Via, Op: c.Op, Key: c.Key,
		Args: o.Redact(c.Args), Reason: c.Reason, Incident: c.Incident, Plan: c.Plan,
		Outcome: outcome, Code: code, Text: text, Count: count, Salt: c.Salt,
	})
	e := &(*entries)[len(*entries)-1]
	e.Seal(st.Head)
	st.Head = e.Hash

	show := o.Show
	if res.Show != nil {
		show = *res.Show
	}
	if outcome != fleet.EntryDone && show != state.ShowNone {
		show = state.ShowLine
	}
	if show != state.ShowNone {
		st.Parcel++
		st.Outbox.Put(fleet.EntryNo(st.Parcel), state.Parcel{
			N: st.Parcel, Entry: e.N, Show: show,
			Line: state.Line{
				At: e.At, By: e.By, Via: e.Via, Op: e.Op, Outcome: e.Outcome,
				Text: e.Text, Reason: e.Reason, First: e.N, Last: e.N, Count: 1, Group: show == state.ShowGroup,
			},
		})
	}
	return e.N
}

func hashArgs(c *state.Command) string {
	var buf [512]byte // most fit; more is put elsewhere
	b := append(append(buf[:0], c.Op...), 0)
	sum := sha256.Sum256(append(b, c.Args...))
	return hex.EncodeToString(sum[:16])
}

// changedSince says which row the leader did not see as it is now.
func changedSince(s state.Seen) error {
	if s.Table == "tokens" { // keyed by a secret's hash
		return fleet.Conflictf("the token has changed since this was decided").WithHint("look again, and repeat")
	}
	return fleet.Conflictf("%s %q has changed since this was decided", s.Table, s.Key).WithHint("look again, and repeat")
}

// DryRun says what a command would do, on a scratch state: its plan, or the
// error that it would meet.
//
// on are the rows that the plan depends on: when they are as they were, it is
// still the plan.
func (r *Registry) DryRun(st *state.State, c *state.Command) (plan *fleet.Plan, on []state.Seen, res Result, err error) {
	o, ok := r.byName[c.Op]
	if !ok || o.apply == nil {
		return nil, nil, res, fleet.Invalidf("there is no operation %q", c.Op)
	}
	st.Begin(st.Index, st.Clock)
	on = st.Written(func() {
		res, err = o.run(st, c)
	})
	if err != nil {
		return nil, nil, Result{}, err
	}
	lines := res.Changes
	if len(lines) == 0 {
		lines = []string{res.Text}
	}
	h := sha256.New()
	h.Write([]byte(hashArgs(c)))
	for _, l := range lines {
		h.Write([]byte{0})
		h.Write([]byte(l))
	}
	return &fleet.Plan{Lines: lines, Hash: hex.EncodeToString(h.Sum(nil)[:8])}, on, res, nil
}
