package state

import "footplate/fleet"

// Sink is how far the lines of the channel got to somewhere outside: pending
// (after Sent), sending, sent. What was skipped as undeliverable is counted.
type Sink struct {
	Name string `json:"name"`
	Sent uint64 `json:"sent"` // every line up to this number is there, or was skipped
	// Entry is the newest entry of those lines: what comes next is about later ones,
	// whatever the channel still has of them.
	Entry fleet.EntryNo `json:"entry,omitempty"`
	// Sending is the last line of what is on its way, 0 when nothing is. It is
	// set before the first try, so that whoever leads next looks there before it
	// sends the same again.
	Sending      uint64        `json:"sending,omitempty"`
	SendingEntry fleet.EntryNo `json:"sending_entry,omitempty"` // the newest entry of it
	SendingAt    fleet.Time    `json:"sending_at,omitzero"`
	Dead         uint64        `json:"dead,omitempty"` // lines that the sink would never take
	// FailingAt is since when nothing gets there, zero when it does; Why says
	// what the sink answered.
	FailingAt fleet.Time `json:"failing_at,omitzero"`
	Why       string     `json:"why,omitempty"`
}

// Arrive moves what was being sent to what is sent, or skipped.
func (s *Sink) Arrive() {
	s.Sent, s.Entry = s.Sending, max(s.Entry, s.SendingEntry)
	s.Sending, s.SendingEntry, s.SendingAt = 0, 0, 0
}

// PostingsKeep is how many postings stay in the state: what is older can no
// longer be edited where it is.
const PostingsKeep = 5000

// Posting is a message in a sink that quotes lines of the channel.
type Posting struct {
	N     uint64        `json:"n"`
	Sink  string        `json:"sink"`
	From  uint64        `json:"from"` // lines
	Upto  uint64        `json:"upto"`
	First fleet.EntryNo `json:"first"` // the entries that they stand for
	Last  fleet.EntryNo `json:"last"`
	Ref   string        `json:"ref"` // the sink's own name of it
}

// EditsKeep is how many edits that have ended stay in the state.
const EditsKeep = 1000

// Edit is a message in a sink that must be made anew without what was erased of
// an entry: an intent until it has ended.
type Edit struct {
	N       uint64        `json:"n"`
	Sink    string        `json:"sink"`
	Entry   fleet.EntryNo `json:"entry"`
	Posting uint64        `json:"posting,omitempty"` // 0: what answers the command of the entry there
	Term    uint64        `json:"term"`              // in which it was asked for
	At      fleet.Time    `json:"at"`
	EndedAt fleet.Time    `json:"ended_at,omitzero"`
	Why     string        `json:"why,omitempty"` // it could not be done; "" when it was
}

// Post notes a message that a sink has taken, and asks for its edit when
// something of it was erased while it was on its way, since then.
func (tx *Tx) Post(p Posting, since fleet.Time) {
	tx.Posting++
	p.N = tx.Posting
	tx.Postings.Put(fleet.EntryNo(p.N), p)
	if p.N > PostingsKeep {
		tx.Postings.Delete(fleet.EntryNo(p.N - PostingsKeep))
	}
	var late []fleet.EntryNo
	for n, e := range tx.Erasures.From(p.First) {
		if n > p.Last {
			break
		}
		if e.At >= since {
			late = append(late, n)
		}
	}
	for _, n := range late {
		tx.edit(Edit{Sink: p.Sink, Entry: n, Posting: p.N})
	}
}

// editSinks asks for the edit of all that quotes an entry in the sinks.
func (tx *Tx) editSinks(n fleet.EntryNo) {
	oldest := make(map[string]Posting)
	var in []Posting
	for _, p := range tx.Postings.Backward() {
		oldest[p.Sink] = p
		if p.First <= n && n <= p.Last {
			in = append(in, p)
		}
	}
	for _, p := range in {
		tx.edit(Edit{Sink: p.Sink, Entry: n, Posting: p.N})
	}
	var sinks []string
	for name := range tx.Sinks.All() {
		sinks = append(sinks, name)
	}
	for _, name := range sinks {
		tx.edit(Edit{Sink: name, Entry: n})
		if p, ok := oldest[name]; ok && p.N > 1 && n < p.First {
			tx.edit(Edit{Sink: name, Entry: n, EndedAt: tx.At, Why: "its line is older than what can be found there"})
		}
	}
}

// edit adds an edit, and drops those that ended long ago.
func (tx *Tx) edit(e Edit) {
	tx.Meta.Edit++
	e.N, e.Term, e.At = tx.Meta.Edit, tx.Term, tx.At
	tx.Edits.Put(fleet.EntryNo(e.N), e)
	var old []fleet.EntryNo
	for n, e := range tx.Edits.All() {
		if tx.Edits.Len()-len(old) <= EditsKeep {
			break
		}
		if e.EndedAt != 0 {
			old = append(old, n)
		}
	}
	for _, n := range old {
		tx.Edits.Delete(n)
	}
}
