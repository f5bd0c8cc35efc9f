package fleet

import "strings"

// Stage is where a build is.
type Stage string

// The stages of a build.
const (
	StageQueued   Stage = "queued"   // waits for room in its org's plan and in its pool, and for gates
	StageRunnable Stage = "runnable" // tasks of it wait for a slot, or run
	StageFinished Stage = "finished"
)

// Outcome is how a build, a task or an attempt ended; "" while it has not.
type Outcome string

// The outcomes.
const (
	Passed   Outcome = "passed"
	Failed   Outcome = "failed"    // a step ended with another code than 0
	TimedOut Outcome = "timed_out" // a phase took longer than it may
	Canceled Outcome = "canceled"
	Lost     Outcome = "lost"   // the host died or was cut off
	Broken   Outcome = "broken" // the host could not run it at all; or too many attempts were lost
)

// Phase is what an attempt is doing. Every phase has a timeout and can be cancelled.
type Phase string

// The phases of an attempt, in order.
const (
	PhaseAssigned Phase = "assigned" // given to a host, which has not said that it started
	PhaseSetup    Phase = "setup"    // workspace and supervisor are made
	PhaseCheckout Phase = "checkout" // the source is fetched
	PhaseSteps    Phase = "steps"    // the commands run
	PhaseUpload   Phase = "upload"   // the rest of the log is handed over
	PhaseEnded    Phase = "ended"
)

// RetryPolicy says when a task whose attempt is in doubt is tried again.
type RetryPolicy string

// The retry policies.
const (
	// RetrySafe starts the next attempt only when the one before has certainly
	// ended by its own lease. The default.
	RetrySafe RetryPolicy = ""
	// RetryEager starts the next attempt as soon as the host is suspect: two
	// may run at once for a while.
	RetryEager RetryPolicy = "eager"
)

// Timeouts bound the phases of an attempt. Zero means the default.
type Timeouts struct {
	Setup    Duration `json:"setup,omitempty"`
	Checkout Duration `json:"checkout,omitempty"`
	Steps    Duration `json:"steps,omitempty"` // all steps together
	Upload   Duration `json:"upload,omitempty"`
}

// WithDefaults fills what is zero.
func (t Timeouts) WithDefaults() Timeouts {
	or := func(d *Duration, v Duration) {
		if *d == 0 {
			*d = v
		}
	}
	or(&t.Setup, Minute)
	or(&t.Checkout, 10*Minute)
	or(&t.Steps, Hour)
	or(&t.Upload, 5*Minute)
	return t
}

// Source is where a build's files come from. An empty Repo means none.
type Source struct {
	Repo string `json:"repo,omitempty"` // path of a git repository
	Ref  string `json:"ref,omitempty"`  // branch, tag or commit; default HEAD
}

// Step is one shell command of a task, run by /bin/sh -e.
type Step struct {
	Name    string   `json:"name,omitempty"`
	Run     string   `json:"run"`
	Timeout Duration `json:"timeout,omitempty"` // default: what is left of the task's
}

// EnvVar is one variable of a build's environment. Order is kept.
type EnvVar struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// TaskSpec is what one task does.
type TaskSpec struct {
	Name  string   `json:"name"`
	Env   []EnvVar `json:"env,omitempty"`
	Steps []Step   `json:"steps"`
}

// BuildSpec is what a build does: what a build file says. It never changes
// after the build was submitted, and is shared by all that refer to it.
type BuildSpec struct {
	Source   Source     `json:"source"`
	Env      []EnvVar   `json:"env,omitempty"`
	Timeouts Timeouts   `json:"timeouts"`
	Tasks    []TaskSpec `json:"tasks"`
	// Exclusive: no two attempts of a task of this build ever overlap, whatever
	// it costs. After its host fell silent the next attempt waits for certain
	// proof of death (the agent's own word, a new boot id, the provider), or for
	// a person's "build retry".
	Exclusive bool        `json:"exclusive,omitempty"`
	Retry     RetryPolicy `json:"retry,omitempty"`
}

// The bounds of a build spec.
const (
	MaxTasks     = 256
	MaxSteps     = 256
	MaxSpecBytes = 64 << 10 // of its JSON
)

// Validate reports what is wrong with s, naming the field.
func (s *BuildSpec) Validate() error {
	switch {
	case len(s.Tasks) == 0:
		return Invalidf("build has no tasks").WithHint("give steps, or tasks with steps")
	case len(s.Tasks) > MaxTasks:
		return Invalidf("build has %d tasks; at most %d are allowed", len(s.Tasks), MaxTasks)
	case s.Source.Repo == "" && s.Source.Ref != "":
		return Invalidf("source has a ref but no repo").WithHint("set source.repo")
	case s.Source.Repo != "" && s.Source.Repo[0] != '/':
		return Invalidf("source.repo %q is not an absolute path", s.Source.Repo)
	case strings.ContainsRune(s.Source.Repo+s.Source.Ref, 0):
		return Invalidf("source has a zero byte")
	case len(s.Source.Ref) > 0 && s.Source.Ref[0] == '-':
		return Invalidf("source.ref %q begins with a hyphen", s.Source.Ref)
	case s.Retry != RetrySafe && s.Retry != RetryEager:
		return Invalidf("retry %q is not known", s.Retry).WithHint("leave it out, or say eager")
	case s.Exclusive && s.Retry == RetryEager:
		return Invalidf("exclusive and retry: eager contradict each other").WithHint("choose one")
	}
	t := s.Timeouts
	for _, d := range []struct {
		name string
		v    Duration
	}{{"setup", t.Setup}, {"checkout", t.Checkout}, {"steps", t.Steps}, {"upload", t.Upload}} {
		if d.v < 0 || d.v > 7*Day {
			return Invalidf("timeouts.%s is %s; it must lie between 0 and 7d", d.name, d.v)
		}
	}
	if err := validateEnv("env", s.Env); err != nil {
		return err
	}
	seen := make(map[string]bool, len(s.Tasks))
	for i, task := range s.Tasks {
		if err := CheckName("task", task.Name); err != nil {
			return err
		}
		if seen[task.Name] {
			return Invalidf("two tasks are named %q", task.Name)
		}
		seen[task.Name] = true
		if len(task.Steps) == 0 {
			return Invalidf("task %q has no steps", task.Name)
		}
		if len(task.Steps) > MaxSteps {
			return Invalidf("task %q has %d steps; at most %d are allowed", task.Name, len(task.Steps), MaxSteps)
		}
		if err := validateEnv("tasks["+task.Name+"].env", task.Env); err != nil {
			return err
		}
		for j, step := range s.Tasks[i].Steps {
			if step.Run == "" {
				return Invalidf("step %d of task %q has nothing to run", j+1, task.Name)
			}
			if strings.ContainsRune(step.Run, 0) {
				return Invalidf("step %d of task %q has a zero byte", j+1, task.Name)
			}
			if step.Timeout < 0 || step.Timeout > 7*Day {
				return Invalidf("timeout of step %d of task %q is %s; it must lie between 0 and 7d", j+1, task.Name, step.Timeout)
			}
		}
	}
	return nil
}

func validateEnv(where string, env []EnvVar) error {
	for _, v := range env {
		ok := v.Name != ""
		for i := 0; i < len(v.Name); i++ {
			c := v.Name[i]
			letter := c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
			if !letter && (i == 0 || c < '0' || c > '9') {
				ok = false
			}
		}
		if !ok {
			return Invalidf("%s: %q cannot be the name of a variable", where, v.Name)
		}
		if strings.ContainsRune(v.Value, 0) {
			return Invalidf("%s: the value of %s has a zero byte", where, v.Name)
		}
	}
	return nil
}

// Build is one submission.
type Build struct {
	ID       BuildID    `json:"id"`
	Org      OrgName    `json:"org"`
	Pool     PoolName   `json:"pool"`
	Priority int        `json:"priority,omitempty"` // higher goes first
	Spec     *BuildSpec `json:"spec,omitempty"`     // shared, never written to
	By       Principal  `json:"by"`

	Stage   Stage   `json:"stage"`
	Outcome Outcome `json:"outcome,omitempty"`
	Why     string  `json:"why,omitempty"` // of the outcome, in a sentence
	Cancel  bool    `json:"cancel,omitempty"`
	Tasks   []Task  `json:"tasks"` // replaced as a whole, never written to in place

	SubmittedAt Time `json:"submitted_at"`
	RunnableAt  Time `json:"runnable_at"`
	StartedAt   Time `json:"started_at"`
	FinishedAt  Time `json:"finished_at"`
}

// MaxPriority is the highest priority that a build may have; the lowest is its
// negative.
const MaxPriority = 1000

// Unfinished returns how many tasks of b have no outcome: the slots that it
// needs.
func (b *Build) Unfinished() int {
	n := 0
	for i := range b.Tasks {
		if b.Tasks[i].Outcome == "" {
			n++
		}
	}
	return n
}

// Task is one unit of a build, which occupies one slot while it runs.
type Task struct {
	Outcome  Outcome     `json:"outcome,omitempty"`  // "" while it has not ended
	Live     AttemptID   `json:"live,omitempty"`     // the attempt that holds a slot now; 0 when none
	Held     AttemptID   `json:"held,omitempty"`     // a lost attempt of an exclusive build that may still run
	Attempts []AttemptID `json:"attempts,omitempty"` // all, oldest first
	Spent    int         `json:"spent,omitempty"`    // attempts before a person said "build retry": they count against MaxAttempts no more
}

// Waiting reports whether the task needs a slot and has none.
func (t Task) Waiting() bool { return t.Outcome == "" && t.Live == 0 && t.Held == 0 }

// DefaultRetention is how long finished builds stay in the state, unless
// "build retention" says otherwise.
const DefaultRetention = 7 * Day

// MaxAttempts bounds the attempts of a task that were lost: a task that kills
// its hosts must not kill the fleet.
const MaxAttempts = 5

// Attempt is one try at a task.
type Attempt struct {
	ID          AttemptID   `json:"id"`
	Build       BuildID     `json:"build"`
	Task        int         `json:"task"` // index in the build's tasks
	N           int         `json:"n"`    // 1 for the first try at the task
	Host        HostID      `json:"host"`
	Boot        BootID      `json:"boot"`
	Incarnation Incarnation `json:"incarnation"`

	Phase   Phase   `json:"phase"`
	Outcome Outcome `json:"outcome,omitempty"`
	Exit    int     `json:"exit,omitempty"` // of the step that ended it
	Why     string  `json:"why,omitempty"`
	Cancel  bool    `json:"cancel,omitempty"` // the host is being told to end it

	AssignedAt Time `json:"assigned_at"`
	StartedAt  Time `json:"started_at"`
	PhaseAt    Time `json:"phase_at"` // when it entered Phase
	EndedAt    Time `json:"ended_at"`
}

// Live reports whether the attempt holds a slot.
func (a Attempt) Live() bool { return a.Outcome == "" }
