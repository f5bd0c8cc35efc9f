package catalog

import (
	"context"
	"fmt"
	"strings"

	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
)

// What leaves the state, so that it does not grow for ever. The record tells of
// it for good.

// BuildRetentionArgs says how long finished builds are kept.
type BuildRetentionArgs struct {
	Keep fleet.Duration `json:"keep" arg:"DURATION" required:"true" help:"how long after its end a build is kept, for example 14d"`
}

// The bounds of the retention time.
const (
	minRetention = fleet.Minute
	maxRetention = 3650 * fleet.Day
)

// Validate checks the bounds.
func (a BuildRetentionArgs) Validate() error {
	if a.Keep < minRetention || a.Keep > maxRetention {
		return fleet.Invalidf("the retention time is %s; it must lie between %s and %s", a.Keep, minRetention, maxRetention)
	}
	return nil
}

// BuildRetention changes how long finished builds are kept.
var BuildRetention = op.Mutation(op.Spec{
	Name:    "build retention",
	Summary: "change how long finished builds and their output are kept",
	Long: "After this long a finished build leaves the state, and its output the disks of\n" +
		"the nodes; the record tells for good what came of it. automation status shows\n" +
		"the time that holds now.",
	Role:     fleet.Admin,
	Risk:     op.Disruptive,
	Show:     state.ShowLine,
	Examples: []string{"build retention 14d", "build retention 36h --reason 'the disks are full'"},
}, func(tx *state.Tx, _ op.Meta, a BuildRetentionArgs) (op.Result, error) {
	was := tx.KeepFor()
	if was == a.Keep {
		return op.Result{Text: fmt.Sprintf("finished builds are kept for %s, as before", a.Keep)}, nil
	}
	tx.Retention = a.Keep
	text := fmt.Sprintf("finished builds are kept for %s instead of %s", a.Keep, was)
	res := op.Result{Text: text, Changes: []string{text}}
	const most = 10_000 // counted; beyond it the number makes no difference
	over := 0
	for f := range tx.Finished.All() {
		if f.At.Add(a.Keep) > tx.At || over > most {
			break
		}
		over++
	}
	switch {
	case over > most:
		res.Changes = append(res.Changes, fmt.Sprintf("more than %d builds leave the state now, with their output", most))
	case over > 0:
		res.Changes = append(res.Changes, plural(over, "build leaves the state now, with its output", "builds leave the state now, with their output"))
	}
	return res, nil
})

// BuildRetireArgs names a build whose time in the state is over. It is one, so
// that each has an entry of its own to be found by.
type BuildRetireArgs struct {
	Build fleet.BuildID `json:"build"`
}

// BuildRetire takes a finished build out of the state with all that hangs on
// it. Its entry tells what came of it.
var BuildRetire = op.Internal(op.Spec{
	Name: "build retire", Summary: "take a finished build out of the state", Role: fleet.System, Record: op.Audit,
}, func(tx *state.Tx, _ op.Meta, a BuildRetireArgs) (op.Result, error) {
	b, ok := tx.Builds.Get(a.Build)
	if !ok || b.Stage != fleet.StageFinished || b.FinishedAt.Add(tx.KeepFor()) > tx.At {
		return op.Result{Quiet: true}, nil
	}
	attempts := 0
	for _, t := range b.Tasks {
		for _, id := range t.Attempts {
			tx.Attempts.Delete(id)
			attempts++
		}
	}
	tx.Builds.Delete(b.ID)
	text := fmt.Sprintf("%s%q is retired: it %s at %s", retiredWords(b.ID), b.Org, outcomeWords(b.Outcome), moment(b.FinishedAt))
	if b.Why != "" {
		text += " (" + b.Why + ")"
	}
	return op.Result{Text: fmt.Sprintf("%s, after %s at %s on pool %q; submitted at %s by %s",
		text, count(attempts, "attempt"), count(len(b.Tasks), "task"), b.Pool, moment(b.SubmittedAt), b.By)}, nil
})

// retiredWords begin the text of a retired build's entry, by which it is found.
func retiredWords(id fleet.BuildID) string { return fmt.Sprintf("build %d of org ", id) }

// outcomeWords says what a build did when it ended.
func outcomeWords(o fleet.Outcome) string {
	switch o {
	case fleet.TimedOut:
		return "timed out"
	case fleet.Canceled:
		return "was cancelled"
	case fleet.Broken:
		return "could not be run"
	}
	return string(o)
}

// buildOf finds a build for a reader. One that was retired is told apart, by
// what the record says of it, from one that never was.
func buildOf(ctx context.Context, env op.Env, id fleet.BuildID) (fleet.Build, error) {
	b, err := findBuild(env.View, id)
	if err == nil || !retired(env.View.Meta, id) {
		return b, err
	}
	entries, err := env.World.Entries(ctx, op.EntryFilter{Op: BuildRetire.Name, Text: retiredWords(id), Newest: true, Limit: 1})
	if err != nil {
		return b, err
	}
	if len(entries) == 0 {
		return b, fleet.NotFoundf("build %d is retired", id).WithHint("footplate audit tail --op 'build retire'")
	}
	return b, fleet.NotFoundf("%s", entries[0].Text).WithHint("footplate audit show %d", entries[0].N)
}

// retired reports whether a build that is not in the state once was.
func retired(m state.Meta, id fleet.BuildID) bool { return id > 0 && id <= m.Build }

// settleAtOnce bounds how many counters one command settles.
const settleAtOnce = 200

// RefusalSettle closes the counters of refusals whose window is over. What was
// counted and not told until then has its entry here.
var RefusalSettle = op.Internal(op.Spec{
	Name: "refusal settle", Summary: "close the counters of repeated refusals", Role: fleet.System, Record: op.Audit, Show: state.ShowLine,
}, func(tx *state.Tx, _ op.Meta, _ struct{}) (op.Result, error) {
	var over, told []string
	for id, r := range tx.Refusals.All() {
		if r.At.Add(state.RefusalWindow) > tx.At {
			continue
		}
		over = append(over, id)
		if by, what, ok := strings.Cut(id, "\x00"); ok && r.Count > 0 {
			name, _, _ := strings.Cut(what, "\x00")
			told = append(told, fmt.Sprintf("%s by %s, %s", name, by, plural(r.Count, "time", "times")))
		}
		if len(over) == settleAtOnce {
			break
		}
	}
	for _, id := range over {
		tx.Refusals.Delete(id)
	}
	if len(told) == 0 {
		return op.Result{Quiet: true}, nil
	}
	return op.Result{Text: "refused again, and only counted: " + strings.Join(told, "; ")}, nil
})
