package state

import (
	"slices"

	"footplate/fleet"
)

// Erased stands in the place of what was erased.
const Erased = "(erased)"

// Erasure says which fields of an entry are erased. The archives make it so:
// also that of a node that joins later, or that reads the log again.
type Erasure struct {
	Entry  fleet.EntryNo `json:"entry"`
	Fields []string      `json:"fields"` // in the order of the chain
	At     fleet.Time    `json:"at"`
	Index  uint64        `json:"index"` // of its log entry: what was logged up to it is to leave the disks
}

// AnchorsKeep is how many anchors stay in the state. The channel has them all.
const AnchorsKeep = 48

// Anchor is the hash of an entry, as it went to the channel.
type Anchor struct {
	Entry fleet.EntryNo `json:"entry"`
	Hash  string        `json:"hash"`
	At    fleet.Time    `json:"at"`
}

// Forget takes fields of an entry out of the state, and has the sinks follow.
func (tx *Tx) Forget(n fleet.EntryNo, fields []string) {
	tx.forget(n, fields)
	tx.editSinks(n)
}

// forget takes fields of an entry out of what the state itself holds of it: its
// line in the channel and in the outbox, and the outcome that its key is
// remembered with. A key whose arguments were erased is a conflict from then
// on: whether it was the same command is not known any more.
func (tx *Tx) forget(n fleet.EntryNo, fields []string) {
	by, args := slices.Contains(fields, "by"), slices.Contains(fields, "args")
	reason, text := slices.Contains(fields, "reason"), slices.Contains(fields, "text")
	forget := func(l Line) (Line, bool) {
		before := l
		if by && l.By != "" {
			l.By = Erased
		}
		if reason && l.Reason != "" {
			l.Reason = Erased
		}
		if text && l.Last == n { // a group shows the text of its newest
			l.Text = Erased
		}
		return l, l != before
	}
	var parcels []Parcel
	for _, p := range tx.Outbox.All() {
		if p.Entry == n {
			parcels = append(parcels, p)
		}
	}
	for _, p := range parcels {
		var changed bool
		if p.Line, changed = forget(p.Line); changed {
			tx.Outbox.Put(fleet.EntryNo(p.N), p)
		}
	}
	var lines []Line
	for _, l := range tx.Channel.Backward() {
		if l.Last < n {
			break
		}
		if l.First <= n {
			lines = append(lines, l)
		}
	}
	for _, l := range lines {
		if l, changed := forget(l); changed {
			tx.Channel.Put(fleet.EntryNo(l.N), l)
		}
	}
	if !text && !args {
		return
	}
	// Outcomes are remembered in the order of their entries; some have none.
	id := ""
	for _, k := range tx.KeyOrder.Backward() {
		r, _ := tx.Keys.Get(k)
		if r.Outcome.Entry == n {
			id = k
		}
		if r.Outcome.Entry != 0 && r.Outcome.Entry <= n {
			break
		}
	}
	if r, ok := tx.Keys.Get(id); ok && id != "" {
		if args { // their hash has no salt: a short secret could be guessed from it
			r.Args = Erased
		}
		if text {
			r.Outcome.Text, r.Outcome.Result = Erased, nil
			if r.Outcome.Err != nil {
				err := *r.Outcome.Err
				err.Msg, err.Hint = Erased, ""
				r.Outcome.Err = &err
			}
		}
		tx.Keys.Put(id, r)
	}
}
