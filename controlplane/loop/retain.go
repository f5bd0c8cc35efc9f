package loop

import (
	"footplate/controlplane/catalog"
	"footplate/controlplane/state"
	"footplate/fleet"
)

// What leaves the state in one step: at most so many builds, and no more of them
// once so many attempts go with them.
const (
	retireBuilds   = 50
	retireAttempts = 1000
)

// Retain decides what leaves the state: finished builds whose retention time is
// over, oldest first, and counters of refusals whose window is.
func Retain(now fleet.Time, v *state.View) []state.Command {
	var out []state.Command
	attempts := 0
	for f := range v.Finished.All() {
		if f.At.Add(v.KeepFor()) > now || len(out) == retireBuilds || attempts >= retireAttempts {
			break
		}
		b, _ := v.Builds.Get(f.Build)
		for _, t := range b.Tasks {
			attempts += len(t.Attempts)
		}
		out = append(out, command(fleet.LoopRetain, catalog.BuildRetire, catalog.BuildRetireArgs{Build: f.Build}))
	}
	for _, r := range v.Refusals.All() {
		if r.At.Add(state.RefusalWindow) <= now {
			return append(out, command(fleet.LoopRetain, catalog.RefusalSettle, struct{}{}))
		}
	}
	return out
}
