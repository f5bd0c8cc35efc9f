package attempt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"footplate/fleet"
)

// Dir is the directory of the attempt id below root (Config.Dir).
func Dir(root string, id fleet.AttemptID) string { return filepath.Join(root, id.String()) }

// Reap is what a new incarnation of the agent calls before anything else. It
// makes sure that every process of the attempts that an earlier incarnation
// started below root is dead, ends their logs and results where the supervisor
// could not, empties their workspaces, and returns their ids in order. With an
// error, which it also returns when ctx ends first, something may still run:
// the agent must not say otherwise to the control plane.
func Reap(ctx context.Context, root string) ([]fleet.AttemptID, error) {
	entries, err := os.ReadDir(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list attempts: %w", err)
	}
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	var ids []fleet.AttemptID
	for _, e := range entries {
		if n, err := strconv.ParseUint(e.Name(), 10, 64); err == nil && e.IsDir() {
			ids = append(ids, fleet.AttemptID(n))
		}
	}
	slices.Sort(ids)
	// The attempts die side by side: a supervisor that needs long to go must
	// not hold up the others.
	errs := make([]error, len(ids))
	done := make(chan struct{})
	for i, id := range ids {
		go func() {
			defer func() { done <- struct{}{} }()
			if errs[i] = reapOne(ctx, Dir(root, id), boot); errs[i] != nil {
				errs[i] = fmt.Errorf("reap attempt %s: %w", id, errs[i])
			}
		}()
	}
	for range ids {
		<-done
	}
	return ids, errors.Join(errs...)
}

func reapOne(ctx context.Context, dir, boot string) error {
	var id identity
	ok, err := readFile(filepath.Join(dir, identityFile), &id)
	known := ok && err == nil
	if known && id.Boot == boot {
		if err := id.end(ctx); err != nil {
			return err
		}
	}
	// Without an identity the agent ended before it gave the supervisor its
	// job, or a power cut tore the file: the mark finds a supervisor too.
	if !known || id.Boot == boot && !id.Namespace {
		if err := sweep(dir, deadlineOf(ctx)); err != nil {
			return err
		}
	}
	if _, err := conclude(dir, Result{Outcome: fleet.Lost, Why: "the agent ended", At: wallNow()}); err != nil {
		return err
	}
	return clearDir(dir)
}

func deadlineOf(ctx context.Context) time.Time {
	if d, ok := ctx.Deadline(); ok {
		return d
	}
	return time.Now().Add(time.Minute)
}

// end makes sure that the process is no more, and with it its namespace.
func (id identity) end(ctx context.Context) error {
	pidfd, err := id.open()
	if err != nil || pidfd < 0 {
		return err
	}
	defer unix.Close(pidfd)
	if !id.Namespace {
		// A subreaper that is killed leaves its tree behind. It has seen the
		// agent go, and clears up itself, unless it is stopped.
		_ = unix.PidfdSendSignal(pidfd, unix.SIGCONT, nil, 0)
		if exited(pidfd, lastWords+time.Second) {
			return nil
		}
	}
	if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
		return fmt.Errorf("kill supervisor %d: %w", id.PID, err)
	}
	for !exited(pidfd, 20*time.Millisecond) {
		if ctx.Err() != nil {
			return fmt.Errorf("supervisor %d does not die: %w", id.PID, ctx.Err())
		}
	}
	return nil
}

// Recall returns how the attempt id below root ended, as its supervisor or
// Reap wrote it down; ok is false when nothing is known of it.
func Recall(root string, id fleet.AttemptID) (r Result, ok bool, err error) {
	ok, err = readFile(filepath.Join(Dir(root, id), resultFile), &r)
	return r, ok, err
}

// Log opens the log of the attempt id below root for reading.
func Log(root string, id fleet.AttemptID) (*Spool, error) {
	return ViewSpool(filepath.Join(Dir(root, id), logFile))
}

// Forget removes all that is left of the attempt id below root. It must have
// ended.
func Forget(root string, id fleet.AttemptID) error {
	dir := Dir(root, id)
	if err := clearDir(dir); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// clearDir removes what the task could write to.
func clearDir(dir string) error {
	for _, name := range []string{workDir, homeDir, tmpDir} {
		name = filepath.Join(dir, name)
		err := os.RemoveAll(name)
		if err != nil && os.Geteuid() != 0 {
			// Directories without write permission (Go's module cache has
			// them) stop only who isn't root. Root must not follow this path:
			// Chmod follows links.
			_ = filepath.WalkDir(name, func(path string, d fs.DirEntry, err error) error {
				if d != nil && d.IsDir() {
					_ = os.Chmod(path, 0o700)
				}
				return nil
			})
			err = os.RemoveAll(name)
		}
		if err != nil {
			return fmt.Errorf("clear workspace: %w", err)
		}
	}
	return nil
}
