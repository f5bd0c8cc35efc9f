package state

import (
	"cmp"

	"footplate/fleet"
)

// Node is a member of the control plane.
type Node struct {
	ID   fleet.NodeID `json:"id"`
	API  string       `json:"api"`  // base URL, for clients, agents and the other nodes
	Raft string       `json:"raft"` // host:port
	At   fleet.Time   `json:"at"`
}

// KeyTTL is how long a command's key is remembered, on the state clock.
const KeyTTL = 24 * fleet.Hour

// Remembered is the first outcome of a command key.
type Remembered struct {
	ID      string     `json:"id"` // (principal, key)
	Op      string     `json:"op"`
	Args    string     `json:"args"` // hex SHA-256 of operation and arguments
	At      fleet.Time `json:"at"`
	Outcome Outcome    `json:"outcome"`
}

// Repeat is what a chat says of a command that may be a second press of the same
// key. Only chats say it: what comes from elsewhere has keys of its own making.
type Repeat string

// What a chat can say.
const (
	RepeatAsk   Repeat = "ask"   // if the person has just had the same done, it is not done
	RepeatMeant Repeat = "meant" // the person was asked, and means it
)

// RepeatWindow is how long the same command of the same person is taken for a
// second press of the same key, on the state clock.
const RepeatWindow = fleet.Minute

// Refusals counts the repeats of one refusal, so that they make one entry.
type Refusals struct {
	At    fleet.Time `json:"at"`    // of the newest entry
	Count int        `json:"count"` // since then, not in an entry yet
}

// RefusalWindow: repeats of a refusal within it are counted, not written.
const RefusalWindow = fleet.Minute

// Show is how an operation appears in the channel.
type Show string

// The ways to appear in the channel.
const (
	ShowNone  Show = ""
	ShowLine  Show = "line"  // a line of its own
	ShowGroup Show = "group" // one line for a run of the same operation by the same principal
)

// Parcel is one thing that the outbox holds for the channel, until it was
// delivered.
type Parcel struct {
	N     uint64        `json:"n"`
	Entry fleet.EntryNo `json:"entry"`
	Show  Show          `json:"show"`
	Line  Line          `json:"line"`
}

// Line is one line of the channel.
type Line struct {
	N       uint64             `json:"n"` // dense, in the order of delivery
	At      fleet.Time         `json:"at"`
	By      fleet.Principal    `json:"by"`
	Via     string             `json:"via"`
	Op      string             `json:"op"`
	Outcome fleet.EntryOutcome `json:"outcome"`
	Text    string             `json:"text"`
	Reason  string             `json:"reason,omitempty"`
	First   fleet.EntryNo      `json:"first"` // the entries that it stands for
	Last    fleet.EntryNo      `json:"last"`
	Count   int                `json:"count"`
	Group   bool               `json:"group,omitempty"` // what comes within LineGrows may join it
}

// LineGrows is how long after its newest entry a line of a group may grow.
const LineGrows = 2 * fleet.Second

// ChannelKeep is how many lines of the console's channel stay in the state;
// older ones are in the archive, as entries.
const ChannelKeep = 1000

// Meta is what the state holds beside its tables.
type Meta struct {
	Cluster string       `json:"cluster"`
	Epoch   uint64       `json:"epoch"`
	Index   uint64       `json:"index"` // of the newest applied log entry
	Term    uint64       `json:"term"`  // of the newest "leader begin"
	Leader  fleet.NodeID `json:"leader"`
	Clock   fleet.Time   `json:"clock"`

	Build   fleet.BuildID   `json:"build"` // the newest number given, of each kind
	Attempt fleet.AttemptID `json:"attempt"`
	Entry   fleet.EntryNo   `json:"entry"`
	Launch  fleet.LaunchID  `json:"launch"`
	Parcel  uint64          `json:"parcel"`
	Line    uint64          `json:"line"`
	Key     uint64          `json:"key"`
	Posting uint64          `json:"posting,omitempty"`
	Edit    uint64          `json:"edit,omitempty"`
	Members uint64          `json:"members"` // version of the membership
	Head    string          `json:"head"`    // hash of the newest entry

	Retention fleet.Duration `json:"retention,omitempty"` // of finished builds; 0 means the default

	// Recoveries are the times at which the cluster went on from an earlier
	// state, oldest first: each began an epoch.
	Recoveries []Recovery `json:"recoveries,omitempty"`
	// Fence, after a recovery, is how long the leases of the epoch before may
	// last: until they certainly have ended, hosts are given nothing. 0 when they
	// have.
	Fence fleet.Duration `json:"fence,omitempty"`
}

// Recovery is one time that the cluster went on from an earlier state. What was
// done between that and the loss is of the epoch before, and is not part of the
// record any more.
type Recovery struct {
	Epoch uint64     `json:"epoch"` // that it began
	At    fleet.Time `json:"at"`
	// Entry is the last entry of the epoch before that the record goes on from,
	// and Head its hash; Kept is the oldest that came with it, Entry+1 when none
	// did.
	Entry fleet.EntryNo `json:"entry"`
	Head  string        `json:"head"`
	Kept  fleet.EntryNo `json:"kept"`
	// Launch is the number of the newest launch that the state knew; those up to
	// NextLaunch were of the part that was lost, if there were any.
	Launch     fleet.LaunchID `json:"launch"`
	NextLaunch fleet.LaunchID `json:"next_launch"`
}

// Kept returns the oldest entry that the record still has: 1, unless the
// cluster was recovered without the whole of it.
func (m *Meta) Kept() fleet.EntryNo {
	kept := fleet.EntryNo(1)
	for _, r := range m.Recoveries {
		kept = max(kept, r.Kept)
	}
	return kept
}

// LostLaunch reports whether a launch is one that was made, if at all, after
// the state that the cluster went on from.
func (m *Meta) LostLaunch(id fleet.LaunchID) bool {
	for _, r := range m.Recoveries {
		if id > r.Launch && id <= r.NextLaunch {
			return true
		}
	}
	return false
}

// KeepFor returns how long finished builds stay in the state.
func (m *Meta) KeepFor() fleet.Duration { return cmp.Or(m.Retention, fleet.DefaultRetention) }
