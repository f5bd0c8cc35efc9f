package attempt

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// procStat is what is needed of /proc/<pid>/stat.
type procStat struct {
	pid, ppid int
	state     byte   // 'Z' and 'X' have exited
	tty       int    // 0 without a terminal
	start     uint64 // clock ticks after boot
}

func readStat(pid int) (procStat, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return procStat{}, err
	}
	return parseStat(b)
}

func parseStat(b []byte) (procStat, error) {
	// The command stands in parentheses and may itself hold any byte but NUL.
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || end < open {
		return procStat{}, errors.New("stat of a process is not understood")
	}
	f := strings.Fields(string(b[end+1:]))
	if len(f) < 20 {
		return procStat{}, errors.New("stat of a process is too short")
	}
	var s procStat
	var errs [4]error
	s.pid, errs[0] = strconv.Atoi(strings.TrimSpace(string(b[:open])))
	s.state = f[0][0]
	s.ppid, errs[1] = strconv.Atoi(f[1])
	s.tty, errs[2] = strconv.Atoi(f[4])
	s.start, errs[3] = strconv.ParseUint(f[19], 10, 64)
	return s, errors.Join(errs[:]...)
}

// processes lists the processes that have not exited.
func processes() []procStat {
	names, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	all := make([]procStat, 0, len(names))
	for _, name := range names {
		pid, err := strconv.Atoi(filepath.Base(name))
		if err != nil {
			continue
		}
		if s, err := readStat(pid); err == nil && s.state != 'Z' && s.state != 'X' {
			all = append(all, s)
		}
	}
	return all
}

// descendants lists the living processes below root.
func descendants(root int) []int {
	children := make(map[int][]int)
	for _, p := range processes() {
		children[p.ppid] = append(children[p.ppid], p.pid)
	}
	var found []int
	for next := children[root]; len(next) > 0; {
		pid := next[0]
		next = append(next[1:len(next):len(next)], children[pid]...)
		found = append(found, pid)
	}
	return found
}

// killNamespace kills everything in the PID namespace of which the caller is
// the init, but the caller, and returns when all of it is gone. One call of
// kill reaches every process at once: none can slip away by forking.
func killNamespace() {
	for {
		if err := unix.Kill(-1, unix.SIGKILL); err == unix.ESRCH {
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// killDescendants kills all processes below the caller, which is their
// subreaper: whatever loses its parent becomes a child of the caller and is
// met in the next round. It returns when none is left.
func killDescendants() {
	for {
		pids := descendants(os.Getpid())
		if len(pids) == 0 {
			return
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// sweep kills the processes that belong to the attempt in dir and have lost
// their supervisor, and waits until they are gone. It is for what no PID
// namespace takes along: hosts without them, and a supervisor whose identity
// was not written down. They are known by the variable that every process of an attempt inherits, or by working in the
// attempt's directory without a terminal (somebody who looks around there has
// one). What took pains to shed both is not found.
func sweep(dir string, deadline time.Time) error {
	mark := workspaceVar + "=" + filepath.Join(dir, workDir)
	for {
		left := 0
		for _, p := range processes() {
			if p.pid == os.Getpid() || !belongs(p, dir, mark) {
				continue
			}
			left++
			_ = unix.Kill(p.pid, unix.SIGKILL)
		}
		if left == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d processes of the attempt in %s do not die", left, dir)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func belongs(p procStat, dir, mark string) bool {
	if env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.pid)); err == nil {
		for v := range bytes.SplitSeq(env, []byte{0}) {
			if string(v) == mark {
				return true
			}
		}
	}
	if p.tty != 0 {
		return false
	}
	cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", p.pid))
	return err == nil && (cwd == dir || strings.HasPrefix(cwd, dir+"/"))
}

// identity tells one process from every other, also after its pid was reused
// and after a reboot.
type identity struct {
	Attempt   string `json:"attempt"`
	PID       int    `json:"pid"`
	Start     uint64 `json:"start"` // clock ticks after boot, from /proc/<pid>/stat
	Boot      string `json:"boot"`  // the kernel's boot id
	Namespace bool   `json:"namespace,omitempty"`
}

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// open returns a pidfd of the process, -1 when it is no more.
func (id identity) open() (int, error) {
	fd, err := unix.PidfdOpen(id.PID, 0)
	if err == unix.ESRCH || err == unix.EINVAL {
		return -1, nil
	}
	if err != nil {
		return -1, fmt.Errorf("open process %d: %w", id.PID, err)
	}
	// The start time is looked at after the pidfd was taken, so a match means
	// that the pidfd is of the process meant, and signals sent through it
	// reach no other.
	if s, err := readStat(id.PID); err != nil || s.start != id.Start {
		unix.Close(fd)
		return -1, nil
	}
	return fd, nil
}

// exited waits until the process of pidfd has exited, at most for d. A pidfd
// becomes readable when the last thread is gone; for the init of a namespace
// that is after everything else in it is.
func exited(pidfd int, d time.Duration) bool {
	until := time.Now().Add(d)
	for {
		left := max(0, time.Until(until))
		fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int((left+time.Millisecond-1)/time.Millisecond))
		if n > 0 {
			return true
		}
		if err != unix.EINTR && time.Until(until) <= 0 {
			return false
		}
	}
}
