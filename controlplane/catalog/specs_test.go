package catalog

import (
	"bytes"
	"encoding/json"
	"fmt"
	"runtime"
	"testing"
	"time"

	"footplate/controlplane/state"
	"footplate/fleet"
)

// manyBuilds returns a state with n submissions, each a command of its own, of
// which every one of kinds in turn says something else.
func manyBuilds(t testing.TB, n, kinds int) *state.State {
	t.Helper()
	reg, st := All(), state.New()
	apply := func(o string, args any) {
		raw, err := json.Marshal(args)
		if err != nil {
			t.Fatal(err)
		}
		out, err := reg.Apply(st, st.Index+1, state.Batch{At: st.Clock + 1, Commands: []state.Command{{
			Op: o, Ver: 1, By: "alice", Role: fleet.Operator, Via: "cli/test", Salt: "00", Args: raw,
		}}}, nil)
		if err == nil && out.Outcomes[0].Err != nil {
			err = out.Outcomes[0].Err
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	apply("org set", OrgSetArgs{Org: "demo"})
	apply("pool create", PoolCreateArgs{Pool: "linux", Provider: "none", FenceAfter: fleet.DefaultFenceAfter})
	for i := range n {
		apply("build submit", BuildSubmitArgs{Org: "demo", Pool: "linux", Count: 1, Spec: fleet.BuildSpec{
			Source: fleet.Source{Repo: "/srv/git/app", Ref: fmt.Sprint("v", i%kinds)},
			Env:    []fleet.EnvVar{{Name: "CI", Value: "true"}, {Name: "GOFLAGS", Value: "-mod=vendor"}},
			Tasks: []fleet.TaskSpec{
				{Name: "test", Steps: []fleet.Step{{Name: "vet", Run: "go vet ./..."}, {Name: "test", Run: "go test -race ./..."}}},
				{Name: "lint", Steps: []fleet.Step{{Run: "staticcheck ./..."}}},
			},
		}})
	}
	return st
}

// TestSpecsAreShared: builds that say the same share one spec, in the state and
// in a snapshot, and it goes with the last of them.
func TestSpecsAreShared(t *testing.T) {
	const n, kinds = 400, 3
	st := manyBuilds(t, n, kinds)
	distinct := func(st *state.State) int {
		seen := make(map[*fleet.BuildSpec]bool)
		for _, b := range st.Builds.All() {
			if b.Spec.Source.Ref != fmt.Sprint("v", int(b.ID-1)%kinds) {
				t.Fatalf("build %d has the spec of %s", b.ID, b.Spec.Source.Ref)
			}
			seen[b.Spec] = true
		}
		return len(seen)
	}
	if got := distinct(st); got != kinds {
		t.Errorf("%d builds of %d kinds have %d specs", n, kinds, got)
	}
	var b bytes.Buffer
	if err := st.Publish().Dump(&b); err != nil {
		t.Fatal(err)
	}
	if got := bytes.Count(b.Bytes(), []byte("staticcheck")); got != kinds {
		t.Errorf("the snapshot has %d specs of %d", got, kinds)
	}
	again, err := state.Load(&b)
	if err != nil {
		t.Fatal(err)
	}
	if got := distinct(again); got != kinds || again.Digest() != st.Digest() {
		t.Errorf("after a snapshot %d specs, digest %s, not %s", got, again.Digest(), st.Digest())
	}
	// The last build goes, and a failed command leaves nothing.
	var first *fleet.BuildSpec
	_ = again.Do("alice", func(tx *state.Tx) error {
		for id := fleet.BuildID(1); id <= n; id += kinds {
			row, _ := tx.Builds.Get(id)
			first = row.Spec
			tx.Builds.Delete(id)
		}
		return nil
	})
	same := *first
	if again.ShareSpec(&same) != &same {
		t.Error("a spec that no build has is kept")
	}
}

// BenchmarkSpecs measures what a build costs when all say the same: in memory,
// and in a snapshot.
func BenchmarkSpecs(b *testing.B) {
	const n = 100_000
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		st := manyBuilds(b, n, 1)
		v := st.Publish()
		runtime.GC()
		runtime.ReadMemStats(&after)
		var out bytes.Buffer
		if err := v.Dump(&out); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/n, "heap-B/build")
		b.ReportMetric(float64(out.Len())/n, "snapshot-B/build")
		began := time.Now()
		if _, err := state.Load(&out); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(time.Since(began).Seconds(), "load-s")
		runtime.KeepAlive(st)
	}
}
