package state

import "footplate/fleet"

// Asked is whether a command may be the same as one of a moment ago: people press
// Enter twice, and two replicas of a chat may each take one of the two.
type Asked string

// What a command can say of that; what comes from a script says nothing.
const (
	AskRepeat Asked = "ask"   // a repeat is not done, but asked about
	Meant     Asked = "meant" // it is done
)

// RepeatWindow is how long the same command of the same person is taken for a
// second press of the same key, on the state clock.
const RepeatWindow = fleet.Minute

// repeatsKeep bounds how many commands are remembered for that.
const repeatsKeep = 1000

// Repeat is a command that was done, by what makes another one its repeat.
type Repeat struct {
	ID  string     `json:"id"`  // hash of principal, operation and arguments
	Key string     `json:"key"` // under which its outcome is remembered
	At  fleet.Time `json:"at"`
}

// RememberRepeat keeps what would be a repeat of a command that was remembered
// under key.
func (st *State) RememberRepeat(id, key string) {
	st.Repeat++
	st.Repeats.Put(fleet.EntryNo(st.Repeat), Repeat{ID: id, Key: key, At: st.Clock})
	if st.Repeat > repeatsKeep {
		st.Repeats.Delete(fleet.EntryNo(st.Repeat - repeatsKeep))
	}
}

// Repeated returns what came of the newest command that one with this id would
// repeat, and when it was done.
func (v *View) Repeated(now fleet.Time, id string) (first Outcome, at fleet.Time, ok bool) {
	for _, r := range v.Repeats.Backward() {
		if r.At.Add(RepeatWindow) <= now {
			break
		}
		if r.ID != id {
			continue
		}
		known, ok := v.Keys.Get(r.Key)
		return known.Outcome, r.At, ok
	}
	return first, 0, false
}
