package catalog

import (
	"cmp"
	"fmt"
	"slices"

	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
	"footplate/fleet/queue"
)

// What the loops and the agents say about builds: how a build comes from the
// queue to its end. The states:
//
//	queued --BuildPromote--> runnable --BuildAssign--> an attempt is live
//	an attempt ends by AgentReport (the host's word) or AttemptLose (the leader's)
//	a task waits again after a lost attempt; a build is finished when every task has an outcome

// BuildPromoteArgs says how many builds of which org, and for which pool, to
// promote: a rule, not a list, so that the command stays small. Without a pool
// it means the next of all pools. What a pool has room for is the promote loop's
// to decide; the plan is looked at once more when the command is applied.
type BuildPromoteArgs struct {
	Org   fleet.OrgName  `json:"org"`
	Pool  fleet.PoolName `json:"pool,omitempty"`
	Count int            `json:"count"`
}

// BuildPromote moves builds from the first stage of the queue to the second.
var BuildPromote = op.Internal(op.Spec{
	Name: "build promote", Summary: "promote the next builds of an org", Role: fleet.System,
}, func(tx *state.Tx, _ op.Meta, a BuildPromoteArgs) (op.Result, error) {
	org, ok := tx.Orgs.Get(a.Org)
	if !ok {
		return op.Result{}, fleet.NotFoundf("there is no org %q", a.Org)
	}
	v := tx.View()
	var next []state.Queued
	for lane := range v.LanesOf(a.Org) {
		if _, gated := v.Gated(fleet.GatePromotion, a.Org, lane.Pool); gated || a.Pool != "" && a.Pool != lane.Pool {
			continue
		}
		n := 0
		for q := range v.Behind(lane) {
			if n == a.Count {
				break
			}
			next = append(next, q)
			n++
		}
	}
	slices.SortFunc(next, inOrder)
	next = next[:min(len(next), a.Count)]
	using := v.SlotsOf(a.Org)
	promoted := 0
	for _, q := range next {
		b, _ := tx.Builds.Get(q.Build)
		need := b.Unfinished()
		if !queue.Fits(using, org.Slots, need) {
			break
		}
		using += need
		b.Stage, b.RunnableAt = fleet.StageRunnable, tx.At
		tx.Builds.Put(b.ID, b)
		promoted++
	}
	return op.Result{Text: fmt.Sprintf("promoted %d", promoted), Quiet: true}, nil
})

// inOrder is the order in which the queued builds of one org leave.
func inOrder(a, b state.Queued) int {
	return cmp.Or(cmp.Compare(b.Priority, a.Priority), cmp.Compare(a.Build, b.Build))
}

// Assignment gives one task to one host.
type Assignment struct {
	Build       fleet.BuildID     `json:"build"`
	Task        int               `json:"task"`
	Host        fleet.HostID      `json:"host"`
	Boot        fleet.BootID      `json:"boot"`
	Incarnation fleet.Incarnation `json:"incarnation"`
}

// BuildAssignArgs lists assignments.
type BuildAssignArgs struct {
	Assign []Assignment `json:"assign"`
}

// BuildAssign makes attempts. What no longer fits is left out: the loop looks
// again.
var BuildAssign = op.Internal(op.Spec{
	Name: "build assign", Summary: "give tasks to hosts", Role: fleet.System,
}, func(tx *state.Tx, _ op.Meta, a BuildAssignArgs) (op.Result, error) {
	if tx.Fence > 0 {
		return op.Result{Text: "assigned none: " + FenceWords(tx.View()), Quiet: true}, nil
	}
	assigned := 0
	for _, s := range a.Assign {
		b, ok := tx.Builds.Get(s.Build)
		if !ok || b.Stage != fleet.StageRunnable || b.Cancel || s.Task < 0 || s.Task >= len(b.Tasks) || !b.Tasks[s.Task].Waiting() {
			continue
		}
		h, ok := tx.Hosts.Get(s.Host)
		if !ok || h.Pool != b.Pool || !h.Schedulable() || h.Boot != s.Boot || h.Incarnation != s.Incarnation {
			continue
		}
		v := tx.View()
		if v.UsedSlots(h.ID) >= h.Slots {
			continue
		}
		if _, gated := v.Gated(fleet.GateDispatch, b.Org, b.Pool); gated {
			continue
		}
		tx.Meta.Attempt++
		id := tx.Meta.Attempt
		b.Tasks = slices.Clone(b.Tasks)
		t := &b.Tasks[s.Task]
		t.Live = id
		t.Attempts = append(slices.Clone(t.Attempts), id)
		if b.StartedAt.IsZero() {
			b.StartedAt = tx.At
		}
		tx.Builds.Put(b.ID, b)
		tx.Attempts.Put(id, fleet.Attempt{
			ID: id, Build: b.ID, Task: s.Task, N: len(t.Attempts), Host: h.ID, Boot: h.Boot, Incarnation: h.Incarnation,
			Phase: fleet.PhaseAssigned, AssignedAt: tx.At, PhaseAt: tx.At,
		})
		assigned++
	}
	return op.Result{Text: fmt.Sprintf("assigned %d", assigned), Quiet: true}, nil
})

// AttemptReport is what an agent says of one attempt.
type AttemptReport struct {
	Attempt fleet.AttemptID `json:"attempt"`
	Phase   fleet.Phase     `json:"phase"`
	Outcome fleet.Outcome   `json:"outcome,omitempty"` // with PhaseEnded
	Exit    int             `json:"exit,omitempty"`
	Why     string          `json:"why,omitempty"`
}

// AgentReportArgs is what changed on a host.
type AgentReportArgs struct {
	Host     fleet.HostID    `json:"host"`
	Boot     fleet.BootID    `json:"boot"`
	Attempts []AttemptReport `json:"attempts"`
}

// AgentReport takes an agent's word about its attempts. What was declared lost
// before is refused: the word comes too late.
var AgentReport = op.Internal(op.Spec{
	Name: "agent report", Summary: "take a host's word about its attempts", Role: fleet.System,
}, func(tx *state.Tx, _ op.Meta, a AgentReportArgs) (op.Result, error) {
	taken := 0
	for _, r := range a.Attempts {
		at, ok := tx.Attempts.Get(r.Attempt)
		if !ok || at.Host != a.Host || at.Boot != a.Boot {
			continue
		}
		if !at.Live() {
			// A held attempt of an exclusive build: the host's word is the proof
			// that it has ended.
			if r.Phase == fleet.PhaseEnded {
				release(tx, at)
			}
			continue
		}
		if rank(r.Phase) < rank(at.Phase) {
			continue // an older word, overtaken on its way
		}
		if at.StartedAt.IsZero() && r.Phase != fleet.PhaseAssigned {
			at.StartedAt = tx.At
		}
		if at.Phase != r.Phase {
			at.Phase, at.PhaseAt = r.Phase, tx.At
		}
		taken++
		if r.Phase == fleet.PhaseEnded {
			if !isOutcome(r.Outcome) {
				r.Outcome, r.Why = fleet.Broken, fmt.Sprintf("the host gave the outcome %q, which is none", r.Outcome)
			}
			end(tx, at, r.Outcome, r.Exit, r.Why)
			continue
		}
		tx.Attempts.Put(at.ID, at)
	}
	return op.Result{Text: fmt.Sprintf("took %d", taken), Quiet: true}, nil
})

// rank orders the phases as an attempt goes through them; what is no phase
// comes before all.
func rank(p fleet.Phase) int {
	return slices.Index([]fleet.Phase{
		fleet.PhaseAssigned, fleet.PhaseSetup, fleet.PhaseCheckout, fleet.PhaseSteps, fleet.PhaseUpload, fleet.PhaseEnded,
	}, p)
}

func isOutcome(o fleet.Outcome) bool {
	switch o {
	case fleet.Passed, fleet.Failed, fleet.TimedOut, fleet.Canceled, fleet.Lost, fleet.Broken:
		return true
	}
	return false
}

// AttemptLoseArgs names attempts that are lost.
type AttemptLoseArgs struct {
	Attempts []fleet.AttemptID `json:"attempts"`
	Why      string            `json:"why"`
	// Certain: there is proof that their processes have ended, beside the
	// lease: the agent's own word, a new boot id, the provider.
	Certain bool `json:"certain,omitempty"`
}

// AttemptLose declares attempts lost, so that their tasks are tried again.
var AttemptLose = op.Internal(op.Spec{
	Name: "attempt lose", Summary: "declare attempts lost", Role: fleet.System, Record: op.Audit, Show: state.ShowLine,
}, func(tx *state.Tx, _ op.Meta, a AttemptLoseArgs) (op.Result, error) {
	n, text := lose(tx, a.Attempts, a.Why, a.Certain)
	return op.Result{Text: text, Quiet: n == 0}, nil
})

// lose ends the live ones of attempts as lost.
func lose(tx *state.Tx, ids []fleet.AttemptID, why string, certain bool) (n int, text string) {
	var builds []fleet.BuildID
	for _, id := range ids {
		at, ok := tx.Attempts.Get(id)
		if !ok || !at.Live() {
			if ok && certain {
				release(tx, at)
			}
			continue
		}
		n++
		builds = append(builds, at.Build)
		b, _ := tx.Builds.Get(at.Build)
		end(tx, at, fleet.Lost, 0, why)
		if b.Spec.Exclusive && !certain && !b.Cancel {
			b, _ = tx.Builds.Get(at.Build)
			if b.Stage != fleet.StageFinished && b.Tasks[at.Task].Outcome == "" {
				b.Tasks = slices.Clone(b.Tasks)
				b.Tasks[at.Task].Held = at.ID
				tx.Builds.Put(b.ID, b)
			}
		}
	}
	builds = slices.Compact(slices.Sorted(slices.Values(builds)))
	noun := "build"
	if len(builds) != 1 {
		noun = "builds"
	}
	return n, fmt.Sprintf("lost %s (%s %s): %s", count(n, "attempt"), noun, numbers(builds), why)
}

// numbers writes a list of builds, cut when it is long.
func numbers(ids []fleet.BuildID) string {
	s := ""
	for i, id := range ids {
		if i == 8 {
			return fmt.Sprintf("%s, ... %d in all", s, len(ids))
		}
		if i > 0 {
			s += ", "
		}
		s += id.String()
	}
	return s
}

// release lets the task of a held attempt run again: the attempt has certainly
// ended.
func release(tx *state.Tx, at fleet.Attempt) {
	b, ok := tx.Builds.Get(at.Build)
	if !ok || at.Task >= len(b.Tasks) || b.Tasks[at.Task].Held != at.ID {
		return
	}
	b.Tasks = slices.Clone(b.Tasks)
	b.Tasks[at.Task].Held = 0
	tx.Builds.Put(b.ID, b)
}

// end ends an attempt and says what becomes of its task and build.
func end(tx *state.Tx, at fleet.Attempt, outcome fleet.Outcome, exit int, why string) {
	at.Phase, at.Outcome, at.Exit, at.Why = fleet.PhaseEnded, outcome, exit, why
	at.PhaseAt, at.EndedAt = tx.At, tx.At
	tx.Attempts.Put(at.ID, at)
	b, ok := tx.Builds.Get(at.Build)
	if !ok || at.Task >= len(b.Tasks) || b.Tasks[at.Task].Live != at.ID {
		return
	}
	b.Tasks = slices.Clone(b.Tasks)
	t := &b.Tasks[at.Task]
	t.Live = 0
	switch again := outcome == fleet.Lost || outcome == fleet.Broken; {
	case b.Cancel:
		t.Outcome = fleet.Canceled
		if outcome == fleet.Passed {
			t.Outcome = fleet.Passed
		}
	case !again:
		t.Outcome = outcome
		if why != "" {
			b.Why = why
		}
	default:
		bad := 0
		for _, id := range t.Attempts[t.Spent:] {
			if o, ok := tx.Attempts.Get(id); ok && (o.Outcome == fleet.Lost || o.Outcome == fleet.Broken) {
				bad++
			}
		}
		if bad >= fleet.MaxAttempts {
			t.Outcome = fleet.Broken
			b.Why = fmt.Sprintf("%d attempts at task %q did not come to an end; the last: %s", bad, b.Spec.Tasks[at.Task].Name, why)
		}
	}
	settle(tx, &b)
	tx.Builds.Put(b.ID, b)
}

// settle finishes b when every task of it has an outcome. The build's outcome
// is the worst of its tasks'.
func settle(tx *state.Tx, b *fleet.Build) {
	worst := fleet.Passed
	order := []fleet.Outcome{fleet.Passed, fleet.Canceled, fleet.Broken, fleet.TimedOut, fleet.Failed}
	for _, t := range b.Tasks {
		if t.Outcome == "" {
			return
		}
		if slices.Index(order, t.Outcome) > slices.Index(order, worst) {
			worst = t.Outcome
		}
	}
	b.Stage, b.Outcome, b.FinishedAt = fleet.StageFinished, worst, tx.At
	if worst == fleet.Passed {
		b.Why = ""
	}
}
