package op

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

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
	out := Applied{Outcomes: make([]state.Outcome, len(b.Commands))}
	for i := range b.Commands {
		c := &b.Commands[i]
		o, ok := r.byName[c.Op]
		switch {
		case !ok:
			return out, fmt.Errorf("log entry %d has operation %q, which this version does not know: install a newer footplate", index, c.Op)
		case o.apply == nil:
			return out, fmt.Errorf("log entry %d has operation %q, which cannot be logged", index, c.Op)
		case c.Ver > o.Version():
			return out, fmt.Errorf("log entry %d has version %d of operation %q; this version knows %d: install a newer footplate", index, c.Ver, c.Op, o.Version())
		}
		var skipped bool
		for _, n := range skip {
			skipped = skipped || n == i
		}
		outcome, entry := r.one(st, o, c, skipped)
		out.Outcomes[i] = outcome
		if entry != nil {
			out.Entries = append(out.Entries, *entry)
		}
	}
	return out, nil
}

// one applies one command, and writes its entry in the same step.
func (r *Registry) one(st *state.State, o *Op, c *state.Command, skipped bool) (state.Outcome, *fleet.Entry) {
	keyID, argsHash := "", ""
	if c.Key != "" {
		keyID, argsHash = string(c.By)+"\x00"+c.Key, hashArgs(c)
		if known, ok := st.Keys.Get(keyID); ok {
			if known.Args != argsHash {
				return state.Outcome{Err: fleet.Conflictf("key %q was used for another command (%s)", c.Key, known.Op).
					WithHint("use a new key")}, nil
			}
			again := known.Outcome
			again.Duplicate = true
			return again, nil
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
		err = st.Do(c.By, func(tx *state.Tx) error {
			for _, s := range c.Saw {
				if v, ok := st.VersionOf(s.Table, s.Key); !ok || v != s.Version {
					return fleet.Conflictf("%s %q has changed since this was decided", s.Table, s.Key).WithHint("look again, and repeat")
				}
			}
			var err error
			res, err = o.apply(tx, Meta{At: st.Clock, By: c.By, Role: c.Role, Via: c.Via, Reason: c.Reason, Index: st.Index}, c.Args)
			return err
		})
		if err != nil {
			outcome = fleet.EntryFailed
		}
	}

	out := state.Outcome{Text: res.Text, Err: fleet.AsError(err)}
	if res.Data != nil {
		raw, jerr := json.Marshal(res.Data)
		if jerr != nil {
			panic(fmt.Sprintf("op: result of %s cannot be encoded: %v", o.Name, jerr))
		}
		out.Result = raw
	}
	entry := r.record(st, o, c, outcome, res, out.Err)
	if entry != nil {
		out.Entry = entry.N
	}
	if keyID != "" && outcome != fleet.EntryRefused {
		st.Remember(state.Remembered{ID: keyID, Op: c.Op, Args: argsHash, At: st.Clock, Outcome: out})
	}
	return out, entry
}

// record writes the audit entry of a command and puts it into the outbox; nil
// when the command leaves none.
func (r *Registry) record(st *state.State, o *Op, c *state.Command, outcome fleet.EntryOutcome, res Result, err *fleet.Error) *fleet.Entry {
	if o.Record != Audit && outcome != fleet.EntrySkipped {
		return nil
	}
	if o.Kind == KindInternal && (res.Quiet || outcome == fleet.EntryFailed) {
		return nil
	}
	count := 0
	if outcome == fleet.EntryRefused {
		id := string(c.By) + "\x00" + c.Op + "\x00" + string(err.Code)
		known, ok := st.Refusals.Get(id)
		if ok && known.At.Add(state.RefusalWindow) > st.Clock {
			known.Count++
			st.Refusals.Put(id, known)
			return nil
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
	e := fleet.Entry{
		N: st.Entry, Index: st.Index, At: st.Clock,
		By: c.By, ApprovedBy: c.ApprovedBy, Role: c.Role, Via: c.Via, Op: c.Op, Key: c.Key,
		Args: o.Redact(c.Args), Reason: c.Reason, Incident: c.Incident, Plan: c.Plan,
		Outcome: outcome, Code: code, Text: text, Count: count, Salt: c.Salt,
	}
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
				Text: e.Text, Reason: e.Reason, First: e.N, Last: e.N, Count: 1,
			},
		})
	}
	return &e
}

func hashArgs(c *state.Command) string {
	h := sha256.New()
	h.Write([]byte(c.Op))
	h.Write([]byte{0})
	h.Write(c.Args)
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// DryRun says what a command would do, on a scratch state: its plan, or the
// error that it would meet.
func (r *Registry) DryRun(st *state.State, c *state.Command) (*fleet.Plan, Result, error) {
	o, ok := r.byName[c.Op]
	if !ok || o.apply == nil {
		return nil, Result{}, fleet.Invalidf("there is no operation %q", c.Op)
	}
	st.Begin(st.Index, st.Clock)
	var res Result
	err := st.Do(c.By, func(tx *state.Tx) error {
		var err error
		res, err = o.apply(tx, Meta{At: st.Clock, By: c.By, Role: c.Role, Via: c.Via, Reason: c.Reason, Index: st.Index}, c.Args)
		return err
	})
	if err != nil {
		return nil, Result{}, err
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
	return &fleet.Plan{Lines: lines, Hash: hex.EncodeToString(h.Sum(nil)[:8])}, res, nil
}
