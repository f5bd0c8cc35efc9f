package controlplane

import (
	"slices"
	"testing"

	"footplate/controlplane/logs"
	"footplate/controlplane/state"
	"footplate/fleet"
)

// TestDropRetired: the output of a retired build goes; that of a build that is
// there stays, and so does that of one that this node has not heard of yet.
func TestDropRetired(t *testing.T) {
	store, err := logs.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	st := state.New()
	st.Begin(1, 1)
	err = st.Do("test", func(tx *state.Tx) error {
		for id := fleet.AttemptID(1); id <= 3; id++ {
			tx.Attempts.Put(id, fleet.Attempt{ID: id})
		}
		tx.Meta.Attempt = 3
		tx.Attempts.Delete(2)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for id := fleet.AttemptID(1); id <= 4; id++ {
		if err := store.Put(t.Context(), []logs.Chunk{{Attempt: id, Data: []byte("output"), Final: true}}); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []int{1, 0} {
		if n, err := dropRetired(t.Context(), store, st.Publish()); err != nil || n != want {
			t.Fatalf("dropped %d, %v; want %d", n, err, want)
		}
	}
	if got := store.Attempts(); !slices.Equal(got, []fleet.AttemptID{1, 3, 4}) {
		t.Errorf("the node holds the output of %v", got)
	}
}
