package catalog

import (
	"fmt"

	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
)

// SinkArgs names a sink and lines of the channel up to a number.
type SinkArgs struct {
	Sink string `json:"sink"`
	Upto uint64 `json:"upto,omitempty"`
	Why  string `json:"why,omitempty"`
	// Ref is the sink's own name of the message that was sent, when it quotes
	// the lines.
	Ref  string `json:"ref,omitempty"`
	Edit uint64 `json:"edit,omitempty"` // that has ended
}

// SinkOpen begins delivery to a sink: with the next line, because whoever
// connects a new one does not want the past in it.
var SinkOpen = op.Internal(op.Spec{
	Name: "sink open", Summary: "begin to deliver the channel to a sink", Role: fleet.System, Record: op.Audit, Show: state.ShowLine,
}, func(tx *state.Tx, _ op.Meta, a SinkArgs) (op.Result, error) {
	if _, ok := tx.Sinks.Get(a.Sink); ok {
		return op.Result{Quiet: true}, nil
	}
	tx.Sinks.Put(a.Sink, state.Sink{Name: a.Sink, Sent: tx.Line, Entry: tx.Entry})
	return op.Result{Text: fmt.Sprintf("the channel goes to %s from here on", a.Sink)}, nil
})

// SinkSending says that lines up to a number are about to be sent.
var SinkSending = op.Internal(op.Spec{
	Name: "sink sending", Summary: "send lines of the channel to a sink", Role: fleet.System,
}, func(tx *state.Tx, _ op.Meta, a SinkArgs) (op.Result, error) {
	s, ok := tx.Sinks.Get(a.Sink)
	switch {
	case !ok:
		return op.Result{}, fleet.NotFoundf("there is no sink %q", a.Sink)
	case s.Sending != 0:
		return op.Result{}, fleet.Conflictf("lines up to %d are on their way to %s", s.Sending, a.Sink)
	case a.Upto <= s.Sent || a.Upto > tx.Line:
		return op.Result{}, fleet.Conflictf("%s has lines up to %d of %d, so %d cannot be next", a.Sink, s.Sent, tx.Line, a.Upto)
	}
	s.Sending, s.SendingAt = a.Upto, tx.At
	if l, ok := tx.Channel.Get(fleet.EntryNo(a.Upto)); ok {
		s.SendingEntry = l.Last
	}
	tx.Sinks.Put(a.Sink, s)
	return op.Result{Quiet: true}, nil
})

// SinkSent says that what was on its way is there.
var SinkSent = op.Internal(op.Spec{
	Name: "sink sent", Summary: "note that lines are in a sink", Role: fleet.System, Record: op.Audit,
}, func(tx *state.Tx, _ op.Meta, a SinkArgs) (op.Result, error) {
	s, err := underway(tx, a)
	if err != nil {
		return op.Result{}, err
	}
	if a.Ref != "" {
		p := state.Posting{Sink: a.Sink, From: s.Sent + 1, Upto: a.Upto, Ref: a.Ref}
		for _, l := range tx.Channel.From(fleet.EntryNo(p.From)) {
			if l.N > p.Upto {
				break
			}
			if p.First == 0 {
				p.First = l.First
			}
			p.Last = l.Last
		}
		if p.First != 0 {
			tx.Post(p, s.SendingAt)
		}
	}
	res := op.Result{Quiet: true}
	if s.FailingAt != 0 {
		res = op.Result{Text: fmt.Sprintf("%s takes the channel again; it had not since %s", a.Sink, moment(s.FailingAt))}
	}
	s.Arrive()
	s.FailingAt, s.Why = 0, ""
	tx.Sinks.Put(a.Sink, s)
	return res, nil
})

// SinkDead says that a sink will never take what was on its way.
var SinkDead = op.Internal(op.Spec{
	Name: "sink dead", Summary: "give up lines that a sink does not take", Role: fleet.System, Record: op.Audit, Show: state.ShowLine,
}, func(tx *state.Tx, _ op.Meta, a SinkArgs) (op.Result, error) {
	s, err := underway(tx, a)
	if err != nil {
		return op.Result{}, err
	}
	from := s.Sent + 1
	s.Dead += a.Upto - s.Sent
	s.Arrive()
	tx.Sinks.Put(a.Sink, s)
	lines := fmt.Sprintf("line %d", a.Upto)
	if from < a.Upto {
		lines = fmt.Sprintf("lines %d to %d", from, a.Upto)
	}
	return op.Result{Text: fmt.Sprintf("%s does not take %s of the channel: %s", a.Sink, lines, a.Why)}, nil
})

// SinkFailing says that a sink takes nothing now: once, until it does again.
var SinkFailing = op.Internal(op.Spec{
	Name: "sink failing", Summary: "note that a sink takes nothing", Role: fleet.System, Record: op.Audit, Show: state.ShowLine,
}, func(tx *state.Tx, _ op.Meta, a SinkArgs) (op.Result, error) {
	s, ok := tx.Sinks.Get(a.Sink)
	if !ok || s.FailingAt != 0 {
		return op.Result{Quiet: true}, nil
	}
	s.FailingAt, s.Why = tx.At, a.Why
	tx.Sinks.Put(a.Sink, s)
	return op.Result{Text: fmt.Sprintf("the channel does not get to %s: %s", a.Sink, a.Why)}, nil
})

// SinkEdited says that a message in a sink was made anew without what was erased
// of an entry, or why that cannot be.
var SinkEdited = op.Internal(op.Spec{
	Name: "sink edited", Summary: "note that a message in a sink was made anew", Role: fleet.System, Record: op.Audit, Show: state.ShowLine,
}, func(tx *state.Tx, _ op.Meta, a SinkArgs) (op.Result, error) {
	e, ok := tx.Edits.Get(fleet.EntryNo(a.Edit))
	if !ok || e.EndedAt != 0 {
		return op.Result{Quiet: true}, nil
	}
	e.EndedAt, e.Why = tx.At, a.Why
	tx.Edits.Put(fleet.EntryNo(e.N), e)
	if a.Why == "" {
		return op.Result{Quiet: true}, nil
	}
	return op.Result{Text: fmt.Sprintf("%s still has what was erased of entry %d: %s; delete it there by hand", e.Sink, e.Entry, a.Why)}, nil
})

func underway(tx *state.Tx, a SinkArgs) (state.Sink, error) {
	s, ok := tx.Sinks.Get(a.Sink)
	switch {
	case !ok:
		return s, fleet.NotFoundf("there is no sink %q", a.Sink)
	case s.Sending == 0 || s.Sending != a.Upto:
		return s, fleet.Conflictf("lines up to %d are not on their way to %s", a.Upto, a.Sink)
	}
	return s, nil
}

// delivery says where the line of an entry is.
func delivery(v *state.View, n fleet.EntryNo) string {
	for _, p := range v.Outbox.All() {
		if p.Entry == n {
			return "pending"
		}
	}
	for _, l := range v.Channel.Backward() {
		if l.Last < n {
			break
		}
		if l.First > n {
			continue
		}
		return fmt.Sprintf("sent, as line %d of the channel", l.N) + inSinks(v, n)
	}
	for _, l := range v.Channel.All() {
		if n < l.First {
			return "older than what the channel still has" + inSinks(v, n)
		}
		break
	}
	return "nothing to deliver"
}

// inSinks says how far an entry, whose line is in the channel or has been, got.
func inSinks(v *state.View, n fleet.EntryNo) string {
	words := ""
	for _, s := range v.Sinks.All() {
		switch {
		case n <= s.Entry:
			words += "; " + s.Name + ": sent"
		case n <= s.SendingEntry:
			words += "; " + s.Name + ": sending"
		default:
			words += "; " + s.Name + ": pending"
		}
	}
	return words
}

// erasedInSinks says how far the erasure of an entry is where the channel goes.
func erasedInSinks(v *state.View, n fleet.EntryNo) []op.ErasedAt {
	var out []op.ErasedAt
	for name := range v.Sinks.All() {
		at := op.ErasedAt{Where: name, Done: true}
		edited, waiting := 0, 0
		for _, e := range v.Edits.All() {
			switch {
			case e.Entry != n || e.Sink != name:
			case e.EndedAt == 0:
				waiting++
			case e.Why != "":
				at.Done, at.Note = false, e.Why+": delete it there by hand"
			case e.Posting != 0:
				edited++
			}
		}
		if waiting > 0 {
			at.Done, at.Note = false, plural(waiting, "edit waits", "edits wait")
		} else if at.Done && edited > 0 {
			at.Note = plural(edited, "message was edited", "messages were edited")
		}
		out = append(out, at)
	}
	return out
}
