// Package state is the replicated state: its tables, how a command changes
// them, the view that readers see, the digest that replicas compare, and the
// snapshot. It is pure: the same log gives the same state, byte for byte (P13).
// It reads no clock, no random source, no network and no disk, and ranges over
// no map.
//
// # Design
//
// The problem: loops, queries, dry runs and snapshots all want to read a
// consistent state while Apply writes to it, and one bad command in a packed
// log entry must leave no trace.
//
// The way chosen: every table is a copy-on-write structure whose rows are
// never written to in place. Apply works on the tables themselves and notes
// each write in a journal; a command that fails is undone from the journal.
// After each log entry the tables that changed are copied, which is O(1), and
// published as a View through an atomic pointer by whoever owns the State.
//
// The way not taken: copying the tables before each command, and dropping the
// copy on failure, needs no journal, but then every command pays for copied
// tree nodes, which was the greater part of Apply's time. A lock around
// mutable maps would let a slow reader stop Apply.
//
// The digest is a sum of row hashes. Each row is hashed once, when it is written,
// so taking a digest costs next to nothing, rows that did not change cost
// nothing, and the order of writes does not matter.
package state

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"

	"footplate/fleet"
)

// journal notes how to undo the writes of the command that is being applied.
type journal struct {
	index uint64 // of the log entry that is being applied
	undo  []func()
	doing bool // a command, which may fail: nothing else is undone
	// scratch is set on a state that is only for trials: nobody compares it.
	scratch bool
	sum     []byte // scratch space of hashRow
	// In a rehearsal, the rows written so far, each as it was before.
	rehearsal bool
	written   []Seen
}

// tables are the rows, for writing.
type tables struct {
	Nodes    *Table[fleet.NodeID, Node]
	Tokens   *Table[string, fleet.Token] // by hash
	Grants   *Table[fleet.Principal, fleet.Grant]
	Orgs     *Table[fleet.OrgName, fleet.Org]
	Pools    *Table[fleet.PoolName, fleet.Pool]
	Hosts    *Table[fleet.HostID, fleet.Host]
	Launches *Table[fleet.LaunchID, fleet.Launch]
	Builds   *Table[fleet.BuildID, fleet.Build]
	Attempts *Table[fleet.AttemptID, fleet.Attempt]
	Gates    *Table[string, fleet.Gate] // by Gate.Key
	Pauses   *Table[fleet.Loop, fleet.Pause]
	Keys     *Table[string, Remembered]
	KeyOrder *Table[fleet.EntryNo, string] // Keys by age
	Recent   *Table[fleet.EntryNo, string] // of KeyOrder, what chats have had done within RepeatWindow
	Refusals *Table[string, Refusals]
	Outbox   *Table[fleet.EntryNo, Parcel]
	Channel  *Table[fleet.EntryNo, Line]
	Sinks    *Table[string, Sink]
	Erasures *Table[fleet.EntryNo, Erasure] // by the entry that they are of
	Anchors  *Table[fleet.EntryNo, Anchor]
	Postings *Table[fleet.EntryNo, Posting]
	Edits    *Table[fleet.EntryNo, Edit]
}

// State is the replicated state. One goroutine owns it.
type State struct {
	Meta
	tables
	derived
	j     *journal
	last  *View
	specs *specs
	all   []anyTable
}

// New returns an empty state.
func New() *State {
	j := new(journal)
	st := &State{j: j, derived: newDerived(), specs: newSpecs()}
	st.tables = tables{
		Nodes:    named[fleet.NodeID, Node]("nodes", j),
		Tokens:   named[string, fleet.Token]("tokens", j),
		Grants:   named[fleet.Principal, fleet.Grant]("grants", j),
		Orgs:     named[fleet.OrgName, fleet.Org]("orgs", j),
		Pools:    named[fleet.PoolName, fleet.Pool]("pools", j),
		Hosts:    named[fleet.HostID, fleet.Host]("hosts", j),
		Launches: numbered[fleet.LaunchID, fleet.Launch]("launches", j),
		Builds:   numbered[fleet.BuildID, fleet.Build]("builds", j),
		Attempts: numbered[fleet.AttemptID, fleet.Attempt]("attempts", j),
		Gates:    named[string, fleet.Gate]("gates", j),
		Pauses:   named[fleet.Loop, fleet.Pause]("pauses", j),
		Keys:     named[string, Remembered]("keys", j),
		KeyOrder: numbered[fleet.EntryNo, string]("key_order", j),
		Recent:   numbered[fleet.EntryNo, string]("recent", j),
		Refusals: named[string, Refusals]("refusals", j),
		Outbox:   numbered[fleet.EntryNo, Parcel]("outbox", j),
		Channel:  numbered[fleet.EntryNo, Line]("channel", j),
		Sinks:    named[string, Sink]("sinks", j),
		Erasures: numbered[fleet.EntryNo, Erasure]("erasures", j),
		Anchors:  numbered[fleet.EntryNo, Anchor]("anchors", j),
		Postings: numbered[fleet.EntryNo, Posting]("postings", j),
		Edits:    numbered[fleet.EntryNo, Edit]("edits", j),
	}
	st.all = []anyTable{
		st.Nodes, st.Tokens, st.Grants, st.Orgs, st.Pools, st.Hosts, st.Launches, st.Builds, st.Attempts,
		st.Gates, st.Pauses, st.Keys, st.KeyOrder, st.Recent, st.Refusals, st.Outbox, st.Channel, st.Sinks,
		st.Erasures, st.Anchors, st.Postings, st.Edits,
	}
	st.Builds.onChange = func(old, now *fleet.Build) {
		st.derived.build(old, now)
		st.specs.build(old, now)
	}
	st.Attempts.onChange = func(old, now *fleet.Attempt) { st.derived.attempt(old, now) }
	return st
}

// Tx is the state in the hands of one command.
type Tx struct {
	*State
	// At is the state clock of this command.
	At fleet.Time
	// By is who gave the command.
	By fleet.Principal
}

// View returns the state as this command sees it, for reading functions. It
// is good until the command's next write.
func (tx *Tx) View() *View { return tx.State.Peek() }

// Begin opens a log entry: index is its Raft index, at the leader's clock. The
// state clock never moves backwards. Keys older than KeyTTL are forgotten, and
// after RepeatWindow what chats have had done.
func (st *State) Begin(index uint64, at fleet.Time) {
	st.j.index = index
	st.Index = index
	st.Clock = max(st.Clock, at)
	for _, n := range st.olderThan(RepeatWindow, st.Recent.Rows) {
		st.Recent.Delete(n)
	}
	for _, n := range st.olderThan(KeyTTL, st.KeyOrder.Rows) {
		id, _ := st.KeyOrder.Get(n)
		st.Keys.Delete(id)
		st.KeyOrder.Delete(n)
	}
}

// olderThan returns the numbers of the keys in order that are older than ttl.
func (st *State) olderThan(ttl fleet.Duration, order Rows[fleet.EntryNo, string]) []fleet.EntryNo {
	var old []fleet.EntryNo
	for n, id := range order.All() {
		if k, ok := st.Keys.Get(id); ok && k.At.Add(ttl) > st.Clock {
			break
		}
		old = append(old, n)
	}
	return old
}

// Do runs f as one command by by: when f fails, its writes are undone.
func (st *State) Do(by fleet.Principal, f func(*Tx) error) error {
	meta := st.Meta
	st.j.doing = true
	err := f(&Tx{State: st, At: st.Clock, By: by})
	st.j.doing = false
	if err != nil {
		for i := len(st.j.undo) - 1; i >= 0; i-- {
			st.j.undo[i]()
		}
		st.Meta = meta
	}
	st.j.undo = st.j.undo[:0]
	return err
}

// Written runs f, and returns the rows that it wrote, each as it was before:
// what a plan depends on.
func (st *State) Written(f func()) []Seen {
	st.j.rehearsal, st.j.written = true, nil
	f()
	st.j.rehearsal = false
	return st.j.written
}

// VersionOf returns the version of a row named as in Seen; ok is false when
// there is no such table.
func (st *State) VersionOf(table, key string) (version uint64, ok bool) {
	for _, t := range st.all {
		if t.tableName() == table {
			return t.versionOf(key), true
		}
	}
	return 0, false
}

// Remember keeps the first outcome of a command's key; recent says that a chat
// has had it done.
func (st *State) Remember(r Remembered, recent bool) {
	st.Key++
	st.Keys.Put(r.ID, r)
	st.KeyOrder.Put(fleet.EntryNo(st.Key), r.ID)
	if recent {
		st.Recent.Put(fleet.EntryNo(st.Key), r.ID)
	}
}

// Digest returns a hash of the whole state, the same on every replica that has
// applied the same log.
func (st *State) Digest() string {
	var b []byte
	for _, t := range st.all {
		b = binary.LittleEndian.AppendUint64(b, uint64(t.digest()))
	}
	meta, err := json.Marshal(st.Meta)
	if err != nil {
		panic("state: meta cannot be encoded: " + err.Error())
	}
	sum := sha256.Sum256(append(b, meta...))
	return hex.EncodeToString(sum[:16])
}
