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
