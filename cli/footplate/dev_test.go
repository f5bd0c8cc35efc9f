package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"footplate/bot/slack"
	"footplate/bot/slack/slacktest"
	"footplate/controlplane/archive/postgres/postgrestest"
)

// TestDevWithSlackAndPostgres: footplate dev with the settings of Slack and of the
// shared archive, as secrets in files: a command in Slack is done, its line is in
// the channel, the record is in Postgres, and no node dies on the way.
func TestDevWithSlackAndPostgres(t *testing.T) {
	t.Parallel()
	pg := postgrestest.Need(t)
	s, err := slacktest.Start(slacktest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	dir := t.TempDir()
	env := []string{slack.EnvChannel + "=" + opsChannel, slack.EnvAPIURL + "=" + s.URL()}
	for name, secret := range map[string]string{
		slack.EnvBotToken: slacktest.BotToken, slack.EnvAppToken: slacktest.AppToken, envPostgres: pg.URL(pg.Database(t)),
	} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(secret+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		env = append(env, name+"_FILE="+file)
	}

	d := startDev(t, env)
	run := func(args ...string) (string, error) {
		cmd := exec.Command(binary, args...)
		cmd.Env = append(os.Environ(), d.env...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := run("access", "grant", "slack:"+slacktest.Team+"/U0ALICE", "operator"); err != nil {
		t.Fatalf("access grant: %v: %s", err, out)
	}
	if !eventually(60*time.Second, func() bool {
		err = s.Slash("U0ALICE", opsChannel, "org set from-slack --slots 3")
		return err == nil
	}) {
		t.Errorf("a command in Slack is not answered: %v", err)
	}
	if !eventually(60*time.Second, func() bool {
		for _, m := range s.Messages(opsChannel) {
			// With its number: the answer to the command has it too.
			if strings.Contains(m.Text, `made org "from-slack"`) && strings.Contains(m.Text, "[#") {
				return true
			}
		}
		return false
	}) {
		t.Errorf("the channel does not tell of it:\n%s", s.Transcript())
	}
	var out string
	if !eventually(60*time.Second, func() bool {
		out, err = run("audit", "verify", "--peers", "--postgres")
		return err == nil && strings.Contains(out, "the record is whole")
	}) {
		t.Errorf("audit verify: %v: %s", err, out)
	}
	d.end()

	// The next day it goes on, with the clock of that day.
	cmd := exec.Command(d.cmd.Path, d.cmd.Args[1:]...)
	cmd.Env, cmd.Stdout, cmd.Stderr = d.cmd.Env, &d.out, &d.out
	d.cmd = cmd
	d.start()
	if out, err := run("audit", "search", "--op", "cluster clock step", "-o", "name"); err != nil || strings.TrimSpace(out) == "" {
		t.Errorf("the state clock is not set when it starts again: %v: %s", err, out)
	}
	d.end()
	if said := d.out.String(); strings.Contains(said, "died") {
		t.Errorf("a node died:\n%s", said)
	}
}

// TestDevWithWrongSettings: what is wrong with a setting is said at once, and not
// in the log of a node that is started again and again.
func TestDevWithWrongSettings(t *testing.T) {
	t.Parallel()
	for want, env := range map[string]string{
		"FOOTPLATE_SLACK_BOT_TOKEN is no bot token":      slack.EnvBotToken + "=xoxp-1",
		"the url of the postgres archive cannot be read": envPostgres + "=mysql://localhost/footplate",
	} {
		cmd := exec.CommandContext(t.Context(), binary, "dev", "--listen", "127.0.0.1:1")
		cmd.Env = append(os.Environ(), env)
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v: %s", env, err, out)
		}
	}
}

// devRun is a footplate dev that runs.
type devRun struct {
	t   *testing.T
	cmd *exec.Cmd
	out lockedBuffer
	env []string // that it says to export
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// startDev starts one, and waits until it is up.
func startDev(t *testing.T, env []string) *devRun {
	t.Helper()
	dir, err := os.MkdirTemp("", "footplate-dev-test-")
	if err != nil {
		t.Fatal(err)
	}
	d := &devRun{t: t}
	d.cmd = exec.Command(binary, "dev", "--hosts", "1", "--listen", freeDev(t), "--data", filepath.Join(dir, "data"))
	d.cmd.Env = append(os.Environ(), env...)
	d.cmd.Stdout, d.cmd.Stderr = &d.out, &d.out
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if d.cmd.ProcessState == nil {
			d.end()
		}
		if t.Failed() {
			for i := range 3 {
				b, _ := os.ReadFile(filepath.Join(dir, "data", fmt.Sprintf("n%d.log", i+1)))
				t.Logf("log of n%d:\n%s", i+1, b[max(0, len(b)-3000):])
			}
		}
		_ = os.RemoveAll(dir)
	})
	d.start()
	return d
}

// start starts it, and waits until it is up.
func (d *devRun) start() {
	d.t.Helper()
	before := len(d.out.String())
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	said := regexp.MustCompile(`(?m)^export (FOOTPLATE_ADDR=\S+) (FOOTPLATE_TOKEN=\S+)$`)
	if !eventually(90*time.Second, func() bool { d.env = said.FindStringSubmatch(d.out.String()[before:]); return d.env != nil }) {
		d.t.Fatalf("footplate dev does not come up:\n%s", d.out.String())
	}
	d.env = d.env[1:]
}

// end ends it as Ctrl-C does.
func (d *devRun) end() {
	_ = d.cmd.Process.Signal(syscall.SIGINT)
	if err := d.cmd.Wait(); err != nil && d.cmd.ProcessState.ExitCode() != 130 {
		d.t.Errorf("footplate dev ended: %v\n%s", err, d.out.String())
	}
}

// freeDev returns an address that has free ports where dev looks for them: below
// those that the kernel gives to whoever connects.
func freeDev(t *testing.T) string {
	t.Helper()
	for n := range 50 {
		first := 20000 + (os.Getpid()*211+n*311)%10000
		free := true
		for _, p := range []int{0, 1, 2, 100, 101, 102} {
			l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(first+p)))
			if err != nil {
				free = false
				continue
			}
			l.Close()
		}
		if free {
			return net.JoinHostPort("127.0.0.1", strconv.Itoa(first))
		}
	}
	t.Fatal("there are no free ports in a row")
	return ""
}
