package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"footplate/fleet"
	"footplate/fleet/agent/attempt"
)

// kernelBoot reads the boot id of this kernel.
func kernelBoot() (fleet.BootID, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return fleet.BootID(strings.TrimSpace(string(b))), nil
}

// openDir makes the agent's directory and keeps other agents out of it.
func openDir(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("make directory of the agent: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock directory of the agent: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fleet.Conflictf("another agent uses %s", dir).WithHint("end it, or give this one a directory of its own")
	}
	return func() { f.Close() }, nil
}

// Reachable makes sure that the tasks' user can pass through dir and what is
// above it: else every attempt would break, one after the other.
func Reachable(dir string, u *attempt.User) error {
	if u == nil {
		return nil
	}
	try := exec.Command("/bin/sh", "-c", ":")
	try.Dir = dir // is gone to as that user
	try.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: u.UID, Gid: u.GID}}
	err := try.Run()
	if !errors.Is(err, fs.ErrPermission) {
		if err != nil {
			return fmt.Errorf("try a command as user %d: %w", u.UID, err)
		}
		return nil
	}
	closed := dir
	for at := dir; ; at = filepath.Dir(at) { // the topmost that is closed to others
		if info, err := os.Stat(at); err == nil && info.Mode()&0o001 == 0 {
			closed = at
		}
		if at == filepath.Dir(at) {
			break
		}
	}
	return fleet.Invalidf("user %d, who runs the tasks, cannot reach %s", u.UID, dir).WithHint("chmod o+x %s, or choose another directory", closed)
}

// incarnationFile counts the starts of the agent on one boot of the machine.
const incarnationFile = "incarnation.json"

type incarnationRecord struct {
	Boot        fleet.BootID      `json:"boot"`
	Incarnation fleet.Incarnation `json:"incarnation"`
}

// nextIncarnation counts one more start, on the disk before it is used: no
// incarnation is ever used twice on one boot.
func nextIncarnation(dir string, boot fleet.BootID) (fleet.Incarnation, error) {
	name := filepath.Join(dir, incarnationFile)
	var r incarnationRecord
	b, err := os.ReadFile(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return 0, fmt.Errorf("read incarnation: %w", err)
	default:
		if err := json.Unmarshal(b, &r); err != nil {
			return 0, fmt.Errorf("read incarnation from %s: %w", name, err)
		}
	}
	if r.Boot != boot {
		r = incarnationRecord{Boot: boot}
	}
	r.Incarnation++
	if b, err = json.Marshal(r); err != nil {
		return 0, err
	}
	if err := replaceFile(name, append(b, '\n')); err != nil {
		return 0, fmt.Errorf("write incarnation: %w", err)
	}
	return r.Incarnation, nil
}

// replaceFile replaces name by b, whole or not at all, on the disk.
func replaceFile(name string, b []byte) error {
	f, err := os.OpenFile(name+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(name+".new", name); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// beInit does what pid 1 of a namespace must: it sees its own processes in
// /proc, and collects those that lost their parents. For any other it does
// nothing.
func (a *Agent) beInit(work context.Context) error {
	if os.Getpid() != 1 {
		return nil
	}
	if self, err := os.Readlink("/proc/self"); err == nil && self != "1" {
		// The /proc of the namespace above: by it every pid is somebody else's.
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("make mounts private: %w", err)
		}
		if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return fmt.Errorf("mount /proc: %w", err)
		}
	}
	a.all.Go(func() { collectStrays(work) })
	return nil
}

// strayAfter is how long a dead child must lie before it is taken for one that
// nobody waits for. Our own are waited for at once.
const strayAfter = 10 * time.Second

// collectStrays reaps children that are not ours by birth: they come to pid 1
// when their parents die.
func collectStrays(work context.Context) {
	look := time.NewTicker(strayAfter)
	defer look.Stop()
	before := make(map[int]bool)
	for {
		select {
		case <-work.Done():
			return
		case <-look.C:
		}
		found := make(map[int]bool)
		for _, pid := range deadChildren() {
			if before[pid] {
				var status syscall.WaitStatus
				_, _ = syscall.Wait4(pid, &status, syscall.WNOHANG, nil)
				continue
			}
			found[pid] = true
		}
		before = found
	}
}

func deadChildren() []int {
	names, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil
	}
	var dead []int
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		s := string(b)
		f := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
		if len(f) > 1 && f[0] == "Z" && f[1] == "1" {
			if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name))); err == nil {
				dead = append(dead, pid)
			}
		}
	}
	return dead
}
