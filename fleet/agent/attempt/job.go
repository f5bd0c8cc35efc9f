package attempt

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"footplate/fleet"
)

// What lies in the directory of an attempt. Only the agent's user may read the
// files; the three directories are the task's.
const (
	logFile      = "log"
	identityFile = "supervisor.json"
	resultFile   = "result.json"
	errFile      = "supervisor.err"
	gitConfig    = "gitconfig"
	gitOutput    = "git.out"
	workDir      = "work"
	homeDir      = "home"
	tmpDir       = "tmp"
)

// workspaceVar names the workspace to the task. No build can set it, so it
// also marks the processes of an attempt where there are no PID namespaces.
const workspaceVar = "FOOTPLATE_WORKSPACE"

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// job is the first line that the supervisor is sent: all that it must know.
// The lines after it are of type command.
type job struct {
	Attempt   fleet.AttemptID `json:"attempt"`
	Dir       string          `json:"dir"`
	Namespace bool            `json:"namespace"`
	Lease     int64           `json:"lease"` // BOOTTIME ns at which the tree dies
	Source    fleet.Source    `json:"source"`
	Steps     []fleet.Step    `json:"steps"`
	Timeouts  fleet.Timeouts  `json:"timeouts"`
	Grace     time.Duration   `json:"grace"`
	Env       []string        `json:"env"`
	User      *User           `json:"user,omitempty"`
	Git       string          `json:"git"`
	Shell     string          `json:"shell"`
	MaxLog    int64           `json:"max_log"`
}

// command is a line from the agent to the supervisor.
type command struct {
	Extend int64  `json:"extend,omitempty"` // the lease now ends at this BOOTTIME
	Cancel string `json:"cancel,omitempty"` // why
}

// report is a line from the supervisor to the agent. Each field that is set
// says something new.
type report struct {
	Phase  fleet.Phase `json:"phase,omitempty"`
	At     fleet.Time  `json:"at,omitempty"`
	Step   int         `json:"step,omitempty"`   // the step that begins, from 1
	Chunks uint64      `json:"chunks,omitempty"` // of the log, written so far
	End    *Result     `json:"end,omitempty"`
}

// Result is how an attempt ended.
type Result struct {
	Outcome fleet.Outcome `json:"outcome"`
	Exit    int           `json:"exit,omitempty"` // of the step that ended it
	Why     string        `json:"why,omitempty"`
	At      fleet.Time    `json:"at"`
}

func wallNow() fleet.Time { return fleet.TimeOf(time.Now()) }

// environment is the whole environment of the steps: nothing of the agent's
// own passes through. Where a name appears twice the later one counts, so a
// build may set its own PATH, and can't say that it is another attempt.
func environment(o Order, dir string) []string {
	task := o.Spec.Tasks[o.Task]
	vars := []fleet.EnvVar{
		{Name: "PATH", Value: defaultPath},
		{Name: "HOME", Value: filepath.Join(dir, homeDir)},
		{Name: "TMPDIR", Value: filepath.Join(dir, tmpDir)},
		{Name: "LANG", Value: "C.UTF-8"},
		{Name: "CI", Value: "true"},
	}
	vars = append(vars, o.Env...)
	vars = append(vars, o.Spec.Env...)
	vars = append(vars, task.Env...)
	vars = append(vars,
		fleet.EnvVar{Name: "FOOTPLATE_BUILD", Value: o.Build.String()},
		fleet.EnvVar{Name: "FOOTPLATE_TASK", Value: task.Name},
		fleet.EnvVar{Name: "FOOTPLATE_TASK_INDEX", Value: strconv.Itoa(o.Task)},
		fleet.EnvVar{Name: "FOOTPLATE_TASK_COUNT", Value: strconv.Itoa(len(o.Spec.Tasks))},
		fleet.EnvVar{Name: "FOOTPLATE_ATTEMPT", Value: o.ID.String()},
		fleet.EnvVar{Name: workspaceVar, Value: filepath.Join(dir, workDir)},
	)
	at := make(map[string]int, len(vars))
	env := make([]string, 0, len(vars))
	for _, v := range vars {
		line := v.Name + "=" + v.Value
		if i, ok := at[v.Name]; ok {
			env[i] = line
			continue
		}
		at[v.Name] = len(env)
		env = append(env, line)
	}
	return env
}

// writeFile replaces name by v as JSON, whole or not at all.
func writeFile(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(name), err)
	}
	if err := os.WriteFile(name+".new", append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(name), err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(name), err)
	}
	return nil
}

// readFile reads what writeFile wrote. ok is false when there is no such file.
func readFile(name string, v any) (ok bool, err error) {
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		return false, fmt.Errorf("read %s: %w", filepath.Base(name), err)
	}
	return true, nil
}

// closing is the last line of a log.
func closing(r Result) string {
	if r.Why == "" {
		return fmt.Sprintf("# %s\n", r.Outcome)
	}
	return fmt.Sprintf("# %s: %s\n", r.Outcome, r.Why)
}

// conclude makes sure that the attempt in dir, all of whose processes are
// dead, has a result and a log that ends. What is there already stays.
func conclude(dir string, r Result) (Result, error) {
	var have Result
	// A result that can't be read is none: it is written in one rename, so it
	// was damaged, and r is the best that can be said.
	ok, _ := readFile(filepath.Join(dir, resultFile), &have)
	if ok {
		r = have
	}
	s, err := OpenSpool(filepath.Join(dir, logFile))
	if err != nil {
		return r, err
	}
	defer s.Close()
	if !s.Final() {
		if err := s.End(r.At, closing(r)); err != nil {
			return r, err
		}
	}
	if !ok {
		return r, writeFile(filepath.Join(dir, resultFile), r)
	}
	return r, nil
}
