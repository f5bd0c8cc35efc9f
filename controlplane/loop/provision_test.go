package loop

import (
	"context"
	"testing"

	"footplate/controlplane/catalog"
	"footplate/controlplane/state"
	"footplate/fleet"
	"footplate/fleet/provider"

	"github.com/google/go-cmp/cmp"
)

// noMachines is a provider without machines.
type noMachines struct{ provider.Provider }

func (noMachines) List(context.Context) ([]provider.Instance, error) { return nil, nil }

// TestStranded: a leader without a pool's provider says so once, and records no
// launch that nobody carries out; with it, the pool goes on.
func TestStranded(t *testing.T) {
	f := &fleetOf{t: t, reg: catalog.All(), st: state.New(), now: 1_772_438_400_000}
	f.st.Begin(1, f.now)
	f.run("alice: pool create linux --size 2")
	f.run("alice: pool create mac --provider none")
	p := newProvisioner(Config{View: f.st.Publish, Now: func() fleet.Time { return f.now }})
	step := func(times int, providers map[string]provider.Provider) []string {
		p.cfg.Providers = providers
		var ops []string
		for range times {
			for _, c := range p.step(t.Context(), f.st.Publish()) {
				ops = append(ops, c.Op)
				f.apply(c)
			}
		}
		return ops
	}
	if diff := cmp.Diff([]string{"pool strand"}, step(3, nil)); diff != "" {
		t.Errorf("without the provider (-want +got):\n%s", diff)
	}
	if row, _ := f.st.Publish().Pools.Get("linux"); row.StrandedAt != f.now {
		t.Errorf("the pool is %+v, not stranded", row)
	}
	if diff := cmp.Diff([]string{"pool strand", "launch record"}, step(2, map[string]provider.Provider{"local": noMachines{}})); diff != "" {
		t.Errorf("with the provider again (-want +got):\n%s", diff)
	}
}
