package sim

import (
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"
)

var (
	seeds   = flag.Int("seeds", 100, "how many seeds TestSeeds plays")
	seed    = flag.Uint64("seed", 1, "the first of them")
	lines   = flag.Int("lines", 60, "how much of the timeline of a failing seed is printed")
	profile = flag.String("profile", "", "play this profile instead of the one that the seed draws")
)

// report writes what somebody needs who wants to know why a seed fails.
func report(r Result) string {
	again := fmt.Sprintf("go test ./controlplane/sim -run TestSeeds -seed %d -seeds 1 -v", r.Seed)
	if *profile != "" {
		again += fmt.Sprintf(" -profile %q", *profile)
	}
	return fmt.Sprintf("seed %d (%s) breaks %s: %s\n\n%s\n\nit plays again with\n  %s",
		r.Seed, r.Profile, r.Violation.Invariant, r.Violation.Text, strings.Join(r.Timeline, "\n"), again)
}

// TestSeeds plays random worlds: no promise is broken in any of them.
func TestSeeds(t *testing.T) {
	var sum Stats
	played := make(map[Profile]int)
	for i := range *seeds {
		r := Run(Config{Seed: *seed + uint64(i), Profile: Profile(*profile), Lines: *lines})
		if r.Violation != nil {
			t.Error(report(r))
		}
		played[r.Profile]++
		s := r.Stats
		sum.Events += s.Events
		sum.Commands += s.Commands
		sum.Entries += s.Entries
		sum.Builds += s.Builds
		sum.Attempts += s.Attempts
		sum.Lost += s.Lost
		sum.Terms += s.Terms
		sum.Launches += s.Launches
		sum.Acked += s.Acked
		sum.Unknown += s.Unknown
		sum.Released += s.Released
		sum.Retired += s.Retired
		sum.Virtual += s.Virtual
		if *seeds == 1 && r.Violation == nil {
			t.Logf("profile %s, timeline %s, its end:\n%s", r.Profile, r.Hash, strings.Join(r.Timeline, "\n"))
		}
	}
	t.Logf("%+v", sum)
	if *seeds >= 100 && *profile == "" {
		if len(played) != len(Profiles()) {
			t.Errorf("only %d of %d profiles were drawn", len(played), len(Profiles()))
		}
		if sum.Lost == 0 || sum.Retired == 0 || sum.Unknown == 0 || sum.Terms < *seeds*2 || sum.Attempts < *seeds*10 {
			t.Errorf("too little happened to prove anything: %+v", sum)
		}
	}
}

// TestReplay: a seed plays the same world each time.
func TestReplay(t *testing.T) {
	for _, p := range Profiles() {
		a, b := Run(Config{Seed: 7, Profile: p}), Run(Config{Seed: 7, Profile: p})
		if a.Hash != b.Hash || a.Stats != b.Stats || !slices.Equal(a.Timeline, b.Timeline) {
			t.Errorf("profile %s: seed 7 played two worlds: %s %+v and %s %+v", p, a.Hash, a.Stats, b.Hash, b.Stats)
		}
	}
	if Run(Config{Seed: 7, Profile: Mixed}).Hash == Run(Config{Seed: 8, Profile: Mixed}).Hash {
		t.Error("seeds 7 and 8 play the same world")
	}
}

// TestWeakenedRulesAreCaught takes one rule away at a time: some seed must find
// it out, by the invariant that the rule is there for.
func TestWeakenedRulesAreCaught(t *testing.T) {
	const seeds = 100
	for _, c := range []struct {
		weak    Weakness
		profile Profile // where it shows soonest
		breaks  []string
	}{
		{NoMargin, Mixed, []string{"P2", "P5"}},
		{NoStartWindow, Mixed, []string{"P2"}},
		{NoLeaseEnd, Silence, []string{"P2"}},
		{NoDedupe, LeaderChange, []string{"P1"}},
		{NoMajority, Partition, []string{"P2", "P5"}},
		{NoPermanence, LeaderChange, []string{"P1"}},
		{WallStart, Clocks, []string{"P5"}},
		{LateStart, LeaderChange, []string{"P5"}},
		{SeenLate, LeaderChange, []string{"clock"}},
		{NoGuard, Silence, []string{"P5"}},
		{NoMark, None, []string{"idle"}},
	} {
		t.Run(string(c.weak), func(t *testing.T) {
			t.Parallel()
			for s := uint64(1); s <= seeds; s++ {
				r := Run(Config{Seed: s, Profile: c.profile, Weak: c.weak})
				if r.Violation == nil {
					continue
				}
				// A world that lacks a rule may also stand still, or retire what lives on;
				// that is not what shows what the rule is there for.
				if other := r.Violation.Invariant; !slices.Contains(c.breaks, other) && slices.Contains([]string{"idle", "liveness", "retain"}, other) {
					continue
				}
				if !slices.Contains(c.breaks, r.Violation.Invariant) {
					t.Fatalf("found out by another invariant than %v: %s", c.breaks, report(r))
				}
				t.Logf("found out by seed %d: %s: %s", s, r.Violation.Invariant, r.Violation.Text)
				return
			}
			t.Errorf("%d seeds do not find it out", seeds)
		})
	}
}
