package catalog

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
)

// BuildSubmitArgs describes a build. What can be said by flags is folded into
// Spec before it is logged.
type BuildSubmitArgs struct {
	Org      fleet.OrgName   `json:"org" flag:"org" complete:"org" help:"the org whose plan it uses"`
	Pool     fleet.PoolName  `json:"pool" flag:"pool" complete:"pool" help:"where it runs"`
	Priority int             `json:"priority,omitempty" flag:"priority" help:"higher goes first within the org"`
	Spec     fleet.BuildSpec `json:"spec" flag:"file" help:"a build file (YAML); -f for short"`
	Count    int             `json:"count,omitempty" flag:"count" default:"1" help:"submit it this many times"`

	Repo      string            `json:"repo,omitempty" flag:"repo" help:"path of a git repository"`
	Ref       string            `json:"ref,omitempty" flag:"ref" help:"branch, tag or commit"`
	Run       []string          `json:"run,omitempty" flag:"run" help:"a shell command; may be given several times"`
	Env       []string          `json:"env,omitempty" flag:"env" help:"NAME=VALUE; may be given several times"`
	Parallel  int               `json:"parallel,omitempty" flag:"parallel" help:"run the commands as this many tasks"`
	Exclusive bool              `json:"exclusive,omitempty" flag:"exclusive" help:"never two attempts at once, whatever it costs"`
	Retry     fleet.RetryPolicy `json:"retry,omitempty" flag:"retry" enum:"eager" help:"eager: start the next attempt as soon as the host is suspect"`
	Timeout   fleet.Duration    `json:"timeout,omitempty" flag:"timeout" help:"of all steps together"`
}

// Normalize folds the flags into Spec.
func (a *BuildSubmitArgs) Normalize() error {
	s := &a.Spec
	if len(a.Run) > 0 {
		if len(s.Tasks) > 0 {
			return fleet.Invalidf("--run and a build file with tasks do not go together").WithHint("use one of them")
		}
		steps := make([]fleet.Step, len(a.Run))
		for i, r := range a.Run {
			steps[i] = fleet.Step{Run: r}
		}
		if a.Parallel < 0 || a.Parallel > fleet.MaxTasks {
			return fleet.Invalidf("--parallel is %d; it must lie between 1 and %d", a.Parallel, fleet.MaxTasks)
		}
		if a.Parallel > 1 {
			for i := range a.Parallel {
				s.Tasks = append(s.Tasks, fleet.TaskSpec{Name: fmt.Sprintf("main-%d", i+1), Steps: steps})
			}
		} else {
			s.Tasks = []fleet.TaskSpec{{Name: "main", Steps: steps}}
		}
	} else if a.Parallel > 0 {
		return fleet.Invalidf("--parallel needs --run").WithHint("in a build file, say parallel on the task")
	}
	if a.Repo != "" {
		s.Source.Repo = a.Repo
	}
	if a.Ref != "" {
		s.Source.Ref = a.Ref
	}
	for _, e := range a.Env {
		name, value, ok := strings.Cut(e, "=")
		if !ok {
			return fleet.Invalidf("--env %q has no =", e).WithHint("for example --env GOFLAGS=-v")
		}
		s.Env = append(s.Env, fleet.EnvVar{Name: name, Value: value})
	}
	s.Exclusive = s.Exclusive || a.Exclusive
	if a.Retry != "" {
		s.Retry = a.Retry
	}
	if a.Timeout != 0 {
		s.Timeouts.Steps = a.Timeout
	}
	a.Repo, a.Ref, a.Run, a.Env, a.Parallel, a.Exclusive, a.Retry, a.Timeout = "", "", nil, nil, 0, false, "", 0
	return nil
}

// Redact keeps the values of the environment out of the record: people put
// tokens there. The names stay.
func (a *BuildSubmitArgs) Redact() {
	hide := func(env []fleet.EnvVar) {
		for i := range env {
			env[i].Value = op.Redacted
		}
	}
	hide(a.Spec.Env)
	for _, t := range a.Spec.Tasks {
		hide(t.Env)
	}
}

// Validate checks the build.
func (a BuildSubmitArgs) Validate() error {
	if a.Org == "" {
		return fleet.Invalidf("the build names no org").WithHint("say --org, or org: in the build file")
	}
	if a.Pool == "" {
		return fleet.Invalidf("the build names no pool").WithHint("say --pool, or pool: in the build file")
	}
	if a.Priority > fleet.MaxPriority || a.Priority < -fleet.MaxPriority {
		return fleet.Invalidf("priority %d lies outside of %d to %d", a.Priority, -fleet.MaxPriority, fleet.MaxPriority)
	}
	if a.Count < 1 || a.Count > 1000 {
		return fleet.Invalidf("--count is %d; it must lie between 1 and 1000", a.Count)
	}
	if len(a.Spec.Tasks) == 0 {
		return fleet.Invalidf("the build has nothing to run").WithHint("say --run COMMAND, or give a build file with --file")
	}
	if err := a.Spec.Validate(); err != nil {
		return err
	}
	if b, err := json.Marshal(a.Spec); err != nil || len(b) > fleet.MaxSpecBytes {
		return fleet.Invalidf("the build is %d bytes long; at most %d are allowed", len(b), fleet.MaxSpecBytes).
			WithHint("move long scripts into the repository")
	}
	return nil
}

// BuildSubmit submits a build.
var BuildSubmit = op.Mutation(op.Spec{
	Name:    "build submit",
	Summary: "submit a build, from a file or by flags",
	Role:    fleet.Responder,
	Risk:    op.Safe,
	Show:    state.ShowGroup,
	Examples: []string{
		"build submit --org acme --pool linux --run 'make test'",
		"build submit --org acme --pool linux --repo /srv/git/app --ref main --run 'go vet ./...' --run 'go test ./...'",
	},
}, buildSubmit)

// Submitted is what "build submit" gives back.
type Submitted struct {
	Build fleet.BuildID `json:"build" id:"true"` // the first
	Count int           `json:"count"`
}

func buildSubmit(tx *state.Tx, m op.Meta, a BuildSubmitArgs) (op.Result, error) {
	v := tx.View()
	if _, err := findOrg(v, a.Org); err != nil {
		return op.Result{}, err
	}
	if _, err := findPool(v, a.Pool); err != nil {
		return op.Result{}, err
	}
	if g, ok := v.Gated(fleet.GateIntake, a.Org, a.Pool); ok {
		return op.Result{}, fleet.Conflictf("intake is paused by %s until %s", g.By, moment(g.Until)).
			WithHint("footplate queue resume --stage intake")
	}
	n := max(a.Count, 1)
	first := tx.Meta.Build + 1
	spec := tx.ShareSpec(&a.Spec)
	for range n {
		tx.Meta.Build++
		tx.Builds.Put(tx.Meta.Build, fleet.Build{
			ID: tx.Meta.Build, Org: a.Org, Pool: a.Pool, Priority: a.Priority, Spec: spec, By: m.By,
			Stage: fleet.StageQueued, Tasks: make([]fleet.Task, len(spec.Tasks)), SubmittedAt: tx.At,
		})
	}
	text := fmt.Sprintf("submitted build %d", first)
	if n > 1 {
		text = fmt.Sprintf("submitted builds %d to %d", first, tx.Meta.Build)
	}
	return op.Result{
		Text: fmt.Sprintf("%s for org %q on pool %q (%s)", text, a.Org, a.Pool, count(len(spec.Tasks), "task")),
		Data: Submitted{first, n},
	}, nil
}

// BuildListArgs selects builds.
type BuildListArgs struct {
	Org   fleet.OrgName  `json:"org" flag:"org" complete:"org" help:"only of this org"`
	Pool  fleet.PoolName `json:"pool" flag:"pool" complete:"pool" help:"only for this pool"`
	State string         `json:"state" flag:"state" enum:"queued,waiting,running,passed,failed,timed_out,canceled,lost,broken,open" help:"only in this state; open means not finished"`
	Limit int            `json:"limit" flag:"limit" default:"50" help:"at most this many, newest first"`
}

// Validate checks the bounds.
func (a BuildListArgs) Validate() error {
	if a.Limit < 0 {
		return fleet.Invalidf("--limit is %d; it must not be negative", a.Limit).WithHint("0 lists all")
	}
	return nil
}

// BuildList lists builds, newest first.
var BuildList = op.Query(op.Spec{
	Name:     "build list",
	Summary:  "list builds, newest first",
	Role:     fleet.Viewer,
	Examples: []string{"build list", "build list --org acme --state running"},
}, func(_ context.Context, env op.Env, a BuildListArgs) ([]BuildRow, error) {
	if err := checkNames(env.View, a.Org, a.Pool); err != nil {
		return nil, err
	}
	rows := []BuildRow{}
	for _, b := range env.View.Builds.Backward() {
		if a.Org != "" && b.Org != a.Org || a.Pool != "" && b.Pool != a.Pool {
			continue
		}
		row := buildRow(env.View, b)
		if a.State != "" && row.State != a.State && (a.State != "open" || b.Stage == fleet.StageFinished) {
			continue
		}
		rows = append(rows, row)
		if a.Limit > 0 && len(rows) == a.Limit {
			break
		}
	}
	return rows, nil
})

// BuildRow is a build as lists show it.
type BuildRow struct {
	ID        fleet.BuildID   `json:"id" col:"BUILD" id:"true"`
	Org       fleet.OrgName   `json:"org" col:"ORG"`
	Pool      fleet.PoolName  `json:"pool" col:"POOL"`
	State     string          `json:"state" col:"STATE"`
	Tasks     string          `json:"tasks" col:"TASKS" help:"how many have passed, of all"`
	Attempts  int             `json:"attempts" col:"ATTEMPTS"`
	Hosts     string          `json:"hosts" col:"HOSTS"`
	Submitted fleet.Time      `json:"submitted_at" col:"SUBMITTED"`
	Finished  fleet.Time      `json:"finished_at" col:"FINISHED" wide:"true"`
	By        fleet.Principal `json:"by" col:"BY" wide:"true"`
	Why       string          `json:"why,omitempty" col:"WHY" wide:"true"`
}

func buildRow(v *state.View, b fleet.Build) BuildRow {
	row := BuildRow{
		ID: b.ID, Org: b.Org, Pool: b.Pool, State: buildState(b), Submitted: b.SubmittedAt,
		Finished: b.FinishedAt, By: b.By, Why: b.Why,
	}
	passed := 0
	var hosts []string
	for _, t := range b.Tasks {
		row.Attempts += len(t.Attempts)
		if t.Outcome == fleet.Passed {
			passed++
		}
		if a, ok := v.Attempts.Get(t.Live); ok && !slices.Contains(hosts, string(a.Host)) {
			hosts = append(hosts, string(a.Host))
		}
	}
	row.Tasks = fmt.Sprintf("%d/%d", passed, len(b.Tasks))
	row.Hosts = strings.Join(hosts, ",")
	return row
}

// buildState says in one word how a build is.
func buildState(b fleet.Build) string {
	switch b.Stage {
	case fleet.StageQueued:
		return "queued"
	case fleet.StageFinished:
		return string(b.Outcome)
	}
	for _, t := range b.Tasks {
		if t.Live != 0 {
			return "running"
		}
	}
	return "waiting"
}

// BuildArgs names one build.
type BuildArgs struct {
	Build fleet.BuildID `json:"build" arg:"BUILD" required:"true" complete:"build" help:"its number"`
}

// BuildShow shows a build with its tasks and attempts.
var BuildShow = op.Query(op.Spec{
	Name:     "build show",
	Summary:  "show a build with its tasks and attempts",
	Role:     fleet.Viewer,
	Examples: []string{"build show 7"},
}, func(ctx context.Context, env op.Env, a BuildArgs) (BuildDetail, error) {
	b, err := buildOf(ctx, env, a.Build)
	if err != nil {
		return BuildDetail{}, err
	}
	d := BuildDetail{BuildRow: buildRow(env.View, b), Source: b.Spec.Source, Exclusive: b.Spec.Exclusive, Retry: b.Spec.Retry, List: []AttemptRow{}}
	for i, t := range b.Tasks {
		if len(t.Attempts) == 0 {
			d.List = append(d.List, AttemptRow{Build: b.ID, Task: b.Spec.Tasks[i].Name, Phase: "waiting", Outcome: t.Outcome})
		}
		for _, id := range t.Attempts {
			if at, ok := env.View.Attempts.Get(id); ok {
				d.List = append(d.List, attemptRow(env.View, at))
			}
		}
	}
	return d, nil
})

// BuildDetail is a build in full.
type BuildDetail struct {
	BuildRow
	Source    fleet.Source      `json:"source"`
	Exclusive bool              `json:"exclusive,omitempty"`
	Retry     fleet.RetryPolicy `json:"retry,omitempty"`
	List      []AttemptRow      `json:"attempt_list"`
}

// AttemptRow is an attempt as lists show it.
type AttemptRow struct {
	Build   fleet.BuildID   `json:"build" col:"BUILD"`
	Task    string          `json:"task" col:"TASK"`
	Try     int             `json:"try" col:"TRY"`
	Attempt fleet.AttemptID `json:"attempt" col:"ATTEMPT"`
	Host    fleet.HostID    `json:"host" col:"HOST"`
	Phase   string          `json:"phase" col:"PHASE"`
	Outcome fleet.Outcome   `json:"outcome" col:"OUTCOME"`
	Exit    *int            `json:"exit,omitempty" col:"EXIT" help:"of the step that ended it; none while it runs, and when no step did"`
	Started fleet.Time      `json:"started_at" col:"STARTED"`
	Ended   fleet.Time      `json:"ended_at" col:"ENDED"`
	Why     string          `json:"why,omitempty" col:"WHY"`
}

func attemptRow(v *state.View, a fleet.Attempt) AttemptRow {
	row := AttemptRow{
		Build: a.Build, Try: a.N, Attempt: a.ID, Host: a.Host, Phase: string(a.Phase), Outcome: a.Outcome,
		Started: a.StartedAt, Ended: a.EndedAt, Why: a.Why,
	}
	if a.Outcome == fleet.Passed || a.Exit != 0 {
		row.Exit = &a.Exit
	}
	if b, ok := v.Builds.Get(a.Build); ok && a.Task < len(b.Spec.Tasks) {
		row.Task = b.Spec.Tasks[a.Task].Name
	}
	return row
}

func findBuild(v *state.View, id fleet.BuildID) (fleet.Build, error) {
	b, ok := v.Builds.Get(id)
	if !ok {
		return b, fleet.NotFoundf("there is no build %d", id).WithHint("footplate build list")
	}
	return b, nil
}

// BuildWhy says why a build is not running.
var BuildWhy = op.Query(op.Spec{
	Name:     "build why",
	Summary:  "say why a build is not running",
	Role:     fleet.Viewer,
	Examples: []string{"build why 7"},
}, func(ctx context.Context, env op.Env, a BuildArgs) (Why, error) {
	b, err := buildOf(ctx, env, a.Build)
	if err != nil {
		return Why{}, err
	}
	return Why{b.ID, buildState(b), whyBuild(env, b)}, nil
})

// BuildsArgs names builds.
type BuildsArgs struct {
	Builds []fleet.BuildID `json:"builds" arg:"BUILD" required:"true" complete:"build" help:"their numbers; - reads them from standard input"`
}

// BuildCancel ends builds in whatever phase they are.
var BuildCancel = op.Mutation(op.Spec{
	Name:     "build cancel",
	Summary:  "end builds, in whatever phase they are",
	Role:     fleet.Responder,
	Risk:     op.Safe,
	Show:     state.ShowGroup,
	Examples: []string{"build cancel 7", "build cancel 7 8 9 --reason 'wrong branch'"},
}, func(tx *state.Tx, m op.Meta, a BuildsArgs) (op.Result, error) {
	return eachBuild(tx, a.Builds, "cancelled", func(b *fleet.Build) (string, bool) {
		if b.Stage == fleet.StageFinished {
			return fmt.Sprintf("has ended already (%s)", b.Outcome), false
		}
		if b.Cancel {
			return "is being cancelled already", false
		}
		was := buildState(*b)
		b.Cancel, b.Why = true, because("cancelled", m)
		b.Tasks = slices.Clone(b.Tasks)
		for i := range b.Tasks {
			t := &b.Tasks[i]
			if at, ok := tx.Attempts.Get(t.Live); ok {
				at.Cancel = true
				tx.Attempts.Put(at.ID, at)
			} else if t.Outcome == "" {
				t.Outcome, t.Held = fleet.Canceled, 0
			}
		}
		settle(tx, b)
		return "was " + was + "; is cancelled", true
	})
})

// BuildRetry runs what did not pass of finished builds again.
var BuildRetry = op.Mutation(op.Spec{
	Name:    "build retry",
	Summary: "run again what did not pass of builds",
	Long: "A finished build goes back into the queue with the tasks that did not pass. An\n" +
		"exclusive build that waits for proof that a lost attempt has ended goes on: whoever\n" +
		"retries it says that the attempt is dead.",
	Role:     fleet.Responder,
	Risk:     op.Safe,
	Show:     state.ShowGroup,
	Examples: []string{"build retry 7"},
}, func(tx *state.Tx, _ op.Meta, a BuildsArgs) (op.Result, error) {
	return eachBuild(tx, a.Builds, "retried", func(b *fleet.Build) (string, bool) {
		again := 0
		tasks := slices.Clone(b.Tasks)
		for i := range tasks {
			t := &tasks[i]
			switch {
			case b.Stage == fleet.StageFinished && t.Outcome != fleet.Passed:
				t.Outcome = ""
			case t.Held != 0:
			default:
				continue
			}
			t.Held, t.Spent = 0, len(t.Attempts)
			again++
		}
		switch {
		case again > 0:
		case b.Stage == fleet.StageFinished:
			return "has passed: there is nothing to retry", false
		default:
			return "has not ended: there is nothing to retry yet", false
		}
		b.Tasks = tasks
		if b.Stage == fleet.StageFinished {
			b.Stage, b.Outcome, b.Why, b.Cancel = fleet.StageQueued, "", "", false
			b.RunnableAt, b.StartedAt, b.FinishedAt = 0, 0, 0
		}
		return "runs again: " + count(again, "task"), true
	})
})

// eachBuild changes the named builds. Those that do not exist are told apart;
// when none exists the operation fails.
func eachBuild(tx *state.Tx, ids []fleet.BuildID, done string, change func(*fleet.Build) (string, bool)) (op.Result, error) {
	var res op.Result
	var changed, same, missing []string
	var gone fleet.BuildID // one that is retired
	ids = slices.Compact(slices.Sorted(slices.Values(ids)))
	for _, id := range ids {
		b, ok := tx.Builds.Get(id)
		if !ok && retired(tx.Meta, id) {
			same, gone = append(same, id.String()+" is retired"), id
			continue
		}
		if !ok {
			missing = append(missing, id.String())
			continue
		}
		what, did := change(&b)
		res.Changes = append(res.Changes, fmt.Sprintf("build %d %s", id, what))
		if did {
			tx.Builds.Put(id, b)
			changed = append(changed, id.String())
		} else {
			same = append(same, id.String()+" "+what)
		}
	}
	switch {
	case len(changed)+len(same) == 0:
		return op.Result{}, fleet.NotFoundf("there is no build %s", strings.Join(missing, ", ")).WithHint("footplate build list")
	case len(changed) == 0:
		about := gone
		if gone == 0 {
			about = ids[slices.IndexFunc(ids, func(id fleet.BuildID) bool { return !slices.Contains(missing, id.String()) })]
		}
		return op.Result{}, fleet.Conflictf("build %s", strings.Join(same, "; build ")).WithHint("footplate build show %d", about)
	}
	noun := "build"
	if len(changed) > 1 {
		noun = "builds"
	}
	res.Text = fmt.Sprintf("%s %s %s", done, noun, strings.Join(changed, ", "))
	if len(same) > 0 {
		res.Text += "; build " + strings.Join(same, "; build ")
	}
	if len(missing) > 0 {
		res.Text += fmt.Sprintf("; %d of %d not done, no such build: %s", len(missing), len(ids), strings.Join(missing, ", "))
	}
	return res, nil
}

// BuildLogsArgs says which log.
type BuildLogsArgs struct {
	Build   fleet.BuildID   `json:"build" arg:"BUILD" required:"true" complete:"build" help:"its number"`
	Task    string          `json:"task" flag:"task" help:"only of this task; needed to follow one of several"`
	Follow  bool            `json:"follow" flag:"follow" help:"go on until the build has ended; -f for short"`
	Attempt fleet.AttemptID `json:"attempt" flag:"attempt" help:"begin with this attempt"`
	From    int             `json:"from" flag:"from" help:"begin with this chunk of the first attempt"`
}

// BuildLogs writes the output of a build: every attempt at each of its tasks,
// as a stream of LogChunk, one a line.
var BuildLogs = op.Stream(op.Spec{
	Name:     "build logs",
	Summary:  "show the output of a build, and follow it live",
	Role:     fleet.Viewer,
	Examples: []string{"build logs 7", "build logs 7 --task main --follow"},
}, nil, buildLogs)

func buildLogs(ctx context.Context, env op.Env, a BuildLogsArgs, w io.Writer) error {
	b, err := buildOf(ctx, env, a.Build)
	if err != nil {
		return err
	}
	task := -1
	for i, t := range b.Spec.Tasks {
		if t.Name == a.Task || len(b.Spec.Tasks) == 1 && a.Task == "" {
			task = i
		}
	}
	if a.Task != "" && task < 0 {
		return fleet.NotFoundf("build %d has no task %q", b.ID, a.Task).WithHint("footplate build show %d", b.ID)
	}
	if a.Follow && task < 0 {
		return fleet.Invalidf("build %d has %d tasks: one can be followed at a time", b.ID, len(b.Tasks)).
			WithHint("say --task, for example --task %s", b.Spec.Tasks[0].Name)
	}
	if a.Attempt != 0 && !slices.ContainsFunc(b.Tasks, func(t fleet.Task) bool { return slices.Contains(t.Attempts, a.Attempt) }) {
		return fleet.NotFoundf("build %d has no attempt %d", b.ID, a.Attempt).WithHint("footplate build show %d", b.ID)
	}
	out := json.NewEncoder(w)
	emit := func(at fleet.Attempt) func(op.LogChunk) error {
		return func(c op.LogChunk) error {
			c.Build, c.Task, c.Try, c.Attempt, c.Host = b.ID, b.Spec.Tasks[at.Task].Name, at.N, at.ID, at.Host
			return out.Encode(c)
		}
	}
	done := a.Attempt // attempts before it were seen already
	from := a.From
	for view := env.View; ; {
		b, ok := view.Builds.Get(a.Build)
		if !ok {
			return nil
		}
		var ids []fleet.AttemptID
		for i, t := range b.Tasks {
			if task < 0 || i == task {
				ids = append(ids, t.Attempts...)
			}
		}
		// In the order of the attempts, over all tasks: that is what "before"
		// means to a reader who comes back.
		slices.Sort(ids)
		for _, id := range ids {
			at, ok := view.Attempts.Get(id)
			if !ok || id < done {
				continue
			}
			if _, err := env.World.Log(ctx, id, from, a.Follow, emit(at)); err != nil {
				return err
			}
			done, from = id+1, 0
		}
		if !a.Follow || b.Stage == fleet.StageFinished {
			return nil
		}
		if view, err = env.World.WaitView(ctx, view.Index); err != nil {
			return err
		}
	}
}
