package controlplane

import (
	"testing"

	"footplate/controlplane/catalog"
	"footplate/controlplane/replica"
)

// TestNames: package replica stands below the catalog, and knows two of its
// operations by their names.
func TestNames(t *testing.T) {
	if catalog.LeaderBegin.Name != replica.LeaderBegin {
		t.Errorf("replica calls %q %q", catalog.LeaderBegin.Name, replica.LeaderBegin)
	}
	if catalog.ClusterClockStep.Name != replica.ClockStep {
		t.Errorf("replica calls %q %q", catalog.ClusterClockStep.Name, replica.ClockStep)
	}
}
