package attempt

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"footplate/fleet"
)

// gitSettings is the whole configuration of the git that checks out: no other
// file is read. It must be a file, because settings given with -c don't reach
// the upload-pack that serves the clone. The repository belongs to whoever it
// belongs to, so safe.directory is open; what could run a program is closed.
const gitSettings = `[safe]
	directory = *
[protocol]
	allow = never
[protocol "file"]
	allow = always
[protocol "ext"]
	allow = never
[core]
	hooksPath = /dev/null
	fsmonitor = false
[init]
	templateDir =
[submodule]
	recurse = false
[advice]
	detachedHead = false
[gc]
	auto = 0
`

// checkout fetches the source into the workspace. git runs as the agent's own
// user and the files are given to the task's user afterwards: the task's user
// need not, and should not, be able to read the repositories of every org.
func (s *supervisor) checkout(ctx context.Context) *verdict {
	repo, ref := s.job.Source.Repo, s.job.Source.Ref
	if ref == "" {
		ref = "HEAD"
	}
	s.say("# checkout of %s at %s\n", repo, ref)
	if _, err := os.Stat(repo); err != nil {
		if os.IsNotExist(err) {
			return verdictf(fleet.Failed, "repository %q does not exist", repo)
		}
		return verdictf(fleet.Failed, "repository %q cannot be read: %v", repo, err)
	}
	settings := filepath.Join(s.job.Dir, gitConfig)
	if err := os.WriteFile(settings, []byte(gitSettings), 0o600); err != nil {
		return verdictf(fleet.Broken, "write git's settings: %v", err)
	}
	work := filepath.Join(s.job.Dir, workDir)
	// --no-local has upload-pack serve a consistent view, where a copy of the
	// files could catch the repository in the middle of a gc.
	_, failed, v := s.git(ctx, "clone", "--quiet", "--no-checkout", "--no-local", "--no-hardlinks",
		"--no-recurse-submodules", "--template=", "--", repo, work)
	if v != nil {
		return v
	}
	if failed != "" {
		return verdictf(fleet.Failed, "clone of repository %q failed: %s", repo, failed)
	}
	commit, v := s.resolve(ctx, work, ref)
	if v != nil {
		return v
	}
	if commit == "" {
		return verdictf(fleet.Failed, "ref %q does not exist in %s", ref, repo)
	}
	_, failed, v = s.git(ctx, "-C", work, "checkout", "--quiet", "--force", "--detach", commit)
	if v != nil {
		return v
	}
	if failed != "" {
		return verdictf(fleet.Failed, "checkout of %q from repository %q failed: %s", ref, repo, failed)
	}
	s.say("# commit %s\n", commit)
	if s.job.User == nil {
		return nil
	}
	// No process of the task runs yet, so nobody can swap a file for a link
	// under the walk.
	err := filepath.WalkDir(work, func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			err = os.Lchown(path, int(s.job.User.UID), int(s.job.User.GID))
		}
		return err
	})
	if ctx.Err() != nil {
		return verdictOf(ctx)
	}
	if err != nil {
		return verdictf(fleet.Broken, "give the workspace to the task's user: %v", err)
	}
	return nil
}

// resolve returns the commit that ref names, "" when there is none: a branch,
// a tag or a commit, in this order.
func (s *supervisor) resolve(ctx context.Context, work, ref string) (string, *verdict) {
	names := []string{"refs/remotes/origin/" + strings.TrimPrefix(ref, "refs/heads/"), "refs/tags/" + strings.TrimPrefix(ref, "refs/tags/")}
	if ref == "HEAD" {
		names = []string{"HEAD"}
	}
	if isHex(ref) {
		names = append(names, ref)
	}
	for _, name := range names {
		out, failed, v := s.git(ctx, "-C", work, "rev-parse", "--verify", "--quiet", "--end-of-options", name+"^{commit}")
		if v != nil {
			return "", v
		}
		if out = strings.TrimSpace(out); failed == "" && isHex(out) {
			return out, nil
		}
	}
	return "", nil
}

func isHex(s string) bool {
	if len(s) < 4 || len(s) > 64 {
		return false
	}
	return strings.Trim(s, "0123456789abcdefABCDEF") == ""
}

// git runs one git command. failed is "" when it exited with 0, else its last
// line. What it says goes into the log when it fails.
func (s *supervisor) git(ctx context.Context, args ...string) (out, failed string, v *verdict) {
	name := filepath.Join(s.job.Dir, gitOutput)
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return "", "", verdictf(fleet.Broken, "start git: %v", err)
	}
	defer f.Close()
	status, v := s.exec(ctx, program{
		argv: append([]string{s.job.Git}, args...),
		dir:  s.job.Dir,
		env: []string{
			"PATH=" + defaultPath,
			"HOME=" + filepath.Join(s.job.Dir, homeDir),
			"LC_ALL=C",
			"GIT_CONFIG_GLOBAL=" + filepath.Join(s.job.Dir, gitConfig),
			"GIT_CONFIG_NOSYSTEM=1",
			"GIT_ALLOW_PROTOCOL=file",
			"GIT_TERMINAL_PROMPT=0",
			workspaceVar + "=" + filepath.Join(s.job.Dir, workDir),
		},
		out: f,
	})
	if v != nil {
		return "", "", v
	}
	const most = 64 << 10
	b := make([]byte, most)
	n, _ := f.ReadAt(b, 0)
	out = string(b[:n])
	if status.ExitStatus() == 0 {
		return out, "", nil
	}
	text := strings.TrimSpace(strings.ToValidUTF8(out, "\ufffd"))
	if text != "" {
		s.say("%s\n", text)
	}
	for line := range strings.SplitSeq(text, "\n") {
		if line, fatal := strings.CutPrefix(line, "fatal: "); fatal {
			return out, line, nil
		}
	}
	if text == "" {
		return out, fmt.Sprintf("git exited with code %d", status.ExitStatus()), nil
	}
	return out, text[strings.LastIndexByte(text, '\n')+1:], nil
}
