package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"footplate/bot/slack"
	"footplate/bot/slack/slacktest"
	"footplate/controlplane/catalog"
	"footplate/fleet"
)

// The rehearsal plays OPERATIONS.md as it is written. The document's machines are
// n1, n2 and n3 (nodes), build-1 and build-2 (hosts), bot-1 and bot-2 (the chat by
// itself), db (PostgreSQL), and the desk of whoever types. Each of them but the desk is a real systemd, as pid 1 of
// namespaces of its own, over an overlay of this machine, with an address of its own
// on a bridge: the units are started by the systemctl of the document.
//
// A block of the document is played when the line before it says where:
//
//	<!-- at desk -->
//
// with what happens beside it, which is the test's to do: see block.
//
// A block without prompts is a script, and must end with 0. In a block with prompts
// ("$ footplate ...") each command must show what stands below it: figures, ids and
// times may differ, lines of three dots stand for any lines. What only looks is
// repeated until it does, for a while. What begins with "error:" must fail.
//
// What stands in for something: ssh and scp enter the machines (testdata/rehearsal),
// the Slack of the document is slacktest (substitutions), and door is the public
// address at which Slack calls.
var substitutions = []struct{ written, played string }{
	{"xoxb-...", slacktest.BotToken},
	{"xapp-...", slacktest.AppToken + "\nFOOTPLATE_SLACK_API_URL=http://" + deskAddr + ":8080/api/"},
	{"C0123456789", opsChannel},
	{"0123456789abcdef0123456789abcdef", slacktest.SigningSecret},
}

// deskAddr is the desk's address, and of Slack.
const deskAddr = "10.0.0.100"

// nextSigningSecret is the document's, after Slack has made another one.
const nextSigningSecret = "fedcba9876543210fedcba9876543210"

// machines are the document's, with the last byte of their addresses.
var machines = []struct {
	name string
	last int
}{{"n1", 1}, {"n2", 2}, {"n3", 3}, {"db", 9}, {"build-1", 11}, {"build-2", 12}, {"bot-1", 21}, {"bot-2", 22}}

// The environment of the process that plays, in namespaces of its own.
const (
	rehearsing  = "FOOTPLATE_REHEARSAL"        // is set there
	rehearsalCG = "FOOTPLATE_REHEARSAL_CGROUP" // the cgroup of its machines
)

// TestOperations plays the procedures of OPERATIONS.md on machines with systemd.
func TestOperations(t *testing.T) {
	t.Parallel() // it mostly waits
	if os.Getenv(rehearsing) != "" {
		play(t)
		return
	}
	cg, err := rehearsalCgroup()
	if err == nil {
		defer removeCgroup(cg)
		_, err = os.Stat("/lib/systemd/systemd")
	}
	if err == nil {
		var out []byte
		if out, err = exec.Command("unshare", append(slices.Clone(apart), "true")...).CombinedOutput(); err != nil {
			err = fmt.Errorf("unshare: %w: %s", err, out)
		}
	}
	if err != nil {
		t.Log(err)
		need(t, "systemd", false)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	args := append(slices.Clone(apart), os.Args[0], "-test.run", "^TestOperations$", "-test.v", "-test.timeout", "20m")
	cmd := exec.CommandContext(ctx, "unshare", args...)
	cmd.Env = append(os.Environ(), rehearsing+"=1", rehearsalCG+"="+cg)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}

// apart are the namespaces of a rehearsal: when its process ends, all that it
// started does.
var apart = []string{"--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--net", "--ipc", "--propagation", "private"}

// rehearsalCgroup makes a cgroup (version 2) for the machines.
func rehearsalCgroup() (string, error) {
	if os.Geteuid() != 0 {
		return "", errors.New("only root can make machines")
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); f[2] == "cgroup2" {
			dir := filepath.Join(f[1], fmt.Sprintf("footplate-rehearsal-%d", os.Getpid()))
			return dir, os.Mkdir(dir, 0o755)
		}
	}
	return "", errors.New("there is no cgroup of version 2")
}

// removeCgroup removes a cgroup and those in it, whose processes have ended.
func removeCgroup(dir string) {
	var all []string
	_ = filepath.WalkDir(dir, func(path string, e fs.DirEntry, _ error) error {
		if e != nil && e.IsDir() {
			all = append(all, path)
		}
		return nil
	})
	slices.Reverse(all)
	for _, d := range all {
		_ = os.Remove(d)
	}
}

// rehearsal is a play of the document.
type rehearsal struct {
	t     *testing.T
	dir   string // the desk
	tool  string // where ssh, scp and the pids of the machines are
	slack *slacktest.Server
	door  *door
	said  int    // commands in Slack
	newer string // the binary of the upgrade
}

func play(t *testing.T) {
	r := &rehearsal{t: t, dir: filepath.Join(t.TempDir(), "desk"), tool: t.TempDir()}
	began := time.Now()
	r.newer = r.build("v1.1.0") // the stage has no module cache
	r.setStage()
	t.Logf("%s: the machines are up", time.Since(began).Round(100*time.Millisecond))
	var err error
	if r.slack, err = slacktest.Start(slacktest.Config{Listen: deskAddr + ":8080"}); err != nil {
		t.Fatal(err)
	}
	defer r.slack.Close()

	if r.door, err = openDoor(r.dir); err != nil {
		t.Fatal(err)
	}
	defer r.door.close()

	var w *watcher
	for _, b := range played(r.document()) {
		at := time.Now()
		var c *chatter
		switch {
		case b.has("last") && w != nil:
			w.end()
			w = nil
			r.inChat("bots by themselves, after all the rest")
		case b.has("watch"):
			w = r.watch()
		case b.has("upgrade"):
			r.sh(`cp "$NEW" "$DESK/new" && mv "$DESK/new" "$DESK/footplate"`, "NEW="+r.newer, "DESK="+r.dir)
		case b.has("gone"):
			r.sh(`ssh build-1 'rm /etc/footplate/tls/cert.pem /etc/footplate/tls/key.pem; systemctl restart footplate-agent'`)
		case b.has("regenerate"):
			c = r.chat()
		}
		if !r.block(b) {
			r.journals()
			t.FailNow()
		}
		if c != nil {
			c.end()
		}
		for _, at := range []string{"nodes", "bots"} {
			if b.has(at) {
				r.door.lead(at)
				r.slack.SetRequestURL("http://" + deskAddr + ":8081" + slack.Path)
				r.inChat(at)
			}
		}
		t.Logf("%s: line %d at %s took %s", time.Since(began).Round(100*time.Millisecond), b.line, b.at, time.Since(at).Round(100*time.Millisecond))
	}
	r.afterwards()
}

// afterwards asks whether all works still: a command from Slack by the bot's new
// secret, its line in the channel, and the record in every place.
func (r *rehearsal) afterwards() {
	defer func() {
		if r.t.Failed() {
			r.journals()
		}
	}()
	r.inChat("nodes again")
	r.t.Logf("%d lines of the record are in Slack", len(inSlack(r.slack)))
	line := fmt.Sprintf(`org "from-slack": %d slots`, r.said)
	if !eventually(60*time.Second, func() bool {
		return slices.ContainsFunc(r.slack.Messages(opsChannel), func(m slacktest.Message) bool { return strings.Contains(m.Text, line) })
	}) {
		r.t.Errorf("the channel in Slack does not say: %s", line)
	}
	if out, err := r.run("footplate audit verify --peers --postgres"); err != nil {
		r.t.Errorf("audit verify: %v\n%s", err, out)
	}
}

// setStage boots the machines and gives them a network.
func (r *rehearsal) setStage() {
	t := r.t
	source, err := filepath.Abs("testdata/rehearsal")
	if err != nil {
		t.Fatal(err)
	}
	r.sh(`mkdir -p "$DESK" && cp "$SOURCE"/* "$TOOL" && cp -r ../../deploy "$DESK" && cp "$BINARY" "$DESK/footplate"
		ip link set lo up; ip link add lan type bridge; ip addr add `+deskAddr+`/24 dev lan; ip link set lan up
		mount -t tmpfs tmpfs /root; umask 022
		echo FOOTPLATE_SLACK_API_URL=http://`+deskAddr+`:8080/api/ >> "$DESK/deploy/systemd/bot.env"
		for n in 1 2 3; do echo "10.0.0.$n n$n"; done | cat /etc/hosts - > "$TOOL/hosts"; mount --bind "$TOOL/hosts" /etc/hosts`,
		"SOURCE="+source, "BINARY="+r.build("v1.0.0"))
	var booting sync.WaitGroup
	failed := make([]error, len(machines))
	for i, m := range machines {
		booting.Go(func() { failed[i] = r.boot(m.name, m.last) })
	}
	booting.Wait()
	if err := errors.Join(failed...); err != nil {
		t.Fatal(err)
	}
	// The database is the document's condition, not its procedure.
	r.sh(`ssh db '
		pg_dropcluster 15 main 2>/dev/null
		pg_createcluster 15 main -- --auth-host=scram-sha-256 -E UTF8 --locale=C.UTF-8 --no-sync &&
		echo "host all all 10.0.0.0/24 scram-sha-256" >> /etc/postgresql/15/main/pg_hba.conf &&
		echo "listen_addresses = '"'*'"'" >> /etc/postgresql/15/main/postgresql.conf &&
		systemctl start postgresql@15-main'`)
}

// build builds the program as another version.
func (r *rehearsal) build(version string) string {
	r.t.Helper()
	to := filepath.Join(r.tool, "footplate-"+version)
	cmd := exec.Command("go", "build", "-ldflags", "-X footplate/cli.Version="+version, "-o", to, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		r.t.Fatalf("build %s: %v\n%s", version, err, out)
	}
	return to
}

// boot boots a machine, and waits until its systemd answers.
func (r *rehearsal) boot(name string, last int) error {
	log, err := os.Create(filepath.Join(r.tool, name+".boot"))
	if err != nil {
		return err
	}
	defer log.Close()
	cg := filepath.Join(os.Getenv(rehearsalCG), name)
	if err := os.Mkdir(cg, 0o755); err != nil {
		return err
	}
	cmd := exec.Command("bash", "-c", `echo $$ > "$0/cgroup.procs" && exec unshare --pid --fork --mount --uts --ipc --net --cgroup --propagation private "$1/machine" "$2" "$1/$2"`,
		cg, r.tool, name)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	children := fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid)
	var pid string
	if !eventually(10*time.Second, func() bool {
		b, _ := os.ReadFile(children)
		pid = strings.TrimSpace(string(b))
		return pid != "" && !strings.Contains(pid, " ")
	}) {
		return fmt.Errorf("%s is not started", name)
	}
	if err := os.WriteFile(filepath.Join(r.tool, name+".pid"), []byte(pid), 0o644); err != nil {
		return err
	}
	link := "v" + strconv.Itoa(last)
	if out, err := r.run(fmt.Sprintf(`ip link add %[1]s type veth peer name eth0 netns %[2]s && ip link set %[1]s master lan up &&
		nsenter -t %[2]s -n ip addr add 10.0.0.%[3]d/24 dev eth0 && nsenter -t %[2]s -n ip link set eth0 up`, link, pid, last)); err != nil {
		return fmt.Errorf("the network of %s: %w: %s", name, err, out)
	}
	var state []byte
	if !eventually(60*time.Second, func() bool {
		state, _ = r.run("ssh " + name + " systemctl is-system-running")
		return strings.TrimSpace(string(state)) == "running"
	}) {
		b, _ := os.ReadFile(log.Name())
		return fmt.Errorf("%s does not boot: %s\n%s", name, state, b)
	}
	return nil
}

// run runs a script at the desk, with what earlier ones have exported.
func (r *rehearsal) run(script string, env ...string) ([]byte, error) {
	return r.runFor(3*time.Minute, script, env...)
}

func (r *rehearsal) runFor(most time.Duration, script string, env ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), most)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", `[ ! -f "$TOOL/env" ] || . "$TOOL/env"; cd "$DESK" 2>/dev/null || true
`+script)
	cmd.Env = append([]string{
		"PATH=" + r.tool + ":" + r.dir + ":" + os.Getenv("PATH"), "HOME=" + r.dir, "DESK=" + r.dir, "TOOL=" + r.tool, "REHEARSAL=" + r.tool,
		"LANG=C.UTF-8", "TZ=UTC",
	}, env...)
	if len(env) > 0 { // it has not got a desk yet
		cmd.Dir, _ = os.Getwd()
		cmd.Args[2] = script
	}
	cmd.WaitDelay = time.Second
	return cmd.CombinedOutput()
}

func (r *rehearsal) sh(script string, env ...string) {
	r.t.Helper()
	if out, err := r.run(script, env...); err != nil {
		r.t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

// block is a block of a document that is played.
type block struct {
	line  int
	at    string
	lines []string
	notes []string
}

// has reports whether something happens beside a block:
//
//	watch       before it: builds and callers are watched from here on
//	upgrade     before it: the desk has a new program
//	gone        before it: host build-1 loses its certificate
//	regenerate  while it is played: Slack has made another signing secret, and people go on
//	nodes, bots after it: Slack's requests come to the nodes, or to the bots
//	last        it is played after those without this, when nothing is watched any more
func (b block) has(note string) bool { return slices.Contains(b.notes, note) }

var placed = regexp.MustCompile(`^<!-- at ([a-z0-9-]+)((?:, (?:watch|upgrade|gone|regenerate|nodes|bots|last))*) -->$`)

// played returns the blocks of a document that are played, in their order.
func played(doc string) (out []block) {
	lines := strings.Split(doc, "\n")
	for i := 0; i < len(lines); i++ {
		m := placed.FindStringSubmatch(lines[i])
		if m == nil {
			continue
		}
		b := block{line: i + 1, at: m[1], notes: strings.FieldsFunc(m[2], func(c rune) bool { return c == ',' || c == ' ' })}
		for i++; i < len(lines) && lines[i] == ""; i++ {
		}
		for ; i < len(lines) && (strings.HasPrefix(lines[i], "    ") || lines[i] == ""); i++ {
			b.lines = append(b.lines, strings.TrimPrefix(lines[i], "    "))
		}
		i--
		out = append(out, b)
	}
	slices.SortStableFunc(out, func(a, b block) int {
		switch {
		case a.has("last") == b.has("last"):
			return 0
		case a.has("last"):
			return 1
		}
		return -1
	})
	return out
}

func (r *rehearsal) document() string {
	b, err := os.ReadFile("../../OPERATIONS.md")
	if err != nil {
		r.t.Fatal(err)
	}
	return string(b)
}

// step is a command with what it shows, or a script.
type step struct {
	command string
	shows   []string
	prompt  bool
}

// prompt is where somebody types; the log of a build has the like of it.
var prompt = regexp.MustCompile(`^\$ (footplate|FOOTPLATE_\w+=|ssh|psql) ?`)

func (b block) steps() (out []step) {
	for _, l := range b.lines {
		if prompt.MatchString(l) {
			out = append(out, step{command: l[2:], prompt: true})
			continue
		}
		if len(out) == 0 {
			out = append(out, step{})
		}
		last := &out[len(out)-1]
		switch {
		case !last.prompt || len(last.shows) == 0 && strings.HasSuffix(last.command, "\\"):
			last.command += "\n" + l
		case l != "":
			last.shows = append(last.shows, l)
		}
	}
	return out
}

// looks is what may be repeated until it shows what is expected.
var looks = regexp.MustCompile(`^(ssh \S+ '?)?(footplate (\S+ ){1,2}(list|show|status|verify|tail|why|whoami)\b|systemctl (status|is-active)|curl|journalctl|psql|cat .*openssl verify)`)

// block plays a block, and reports whether all was as it is written.
func (r *rehearsal) block(b block) bool {
	for _, s := range b.steps() {
		script := s.command
		for _, s := range substitutions {
			script = strings.ReplaceAll(script, s.written, s.played)
		}
		if b.at == "desk" {
			script = "set -eo pipefail\n" + script + "\n{ export -p; declare -f; } > \"$TOOL/env.new\" && mv \"$TOOL/env.new\" \"$TOOL/env\""
		} else {
			script = "ssh " + b.at + " " + quoted("set -eo pipefail\n"+script)
		}
		var out []byte
		var err error
		why := ""
		try := func() bool {
			out, err = r.run(script)
			fails := len(s.shows) > 0 && strings.HasPrefix(s.shows[0], "error:")
			switch {
			case err != nil && !fails:
				why = err.Error()
			case err == nil && fails:
				why = "it did not fail"
			case s.prompt:
				why = differs(string(out), s.shows)
			default:
				why = ""
			}
			return why == ""
		}
		ok := false
		if s.prompt && looks.MatchString(s.command) {
			ok = eventually(45*time.Second, try)
		} else {
			ok = try()
		}
		if !ok {
			r.t.Errorf("OPERATIONS.md, block of line %d, at %s:\n$ %s\n%s\n--- shows\n%s--- instead of\n%s\n", b.line, b.at, s.command, why, out, strings.Join(s.shows, "\n"))
			return false
		}
	}
	return true
}

func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// plain makes of a line what is the same in every play: figures, ids, times and
// who leads differ.
func plain(line string) string {
	// But versions.
	line = regexp.MustCompile(`\bv\d+\.\d+\.\d+\b`).ReplaceAllStringFunc(line, func(v string) string {
		return strings.Map(func(c rune) rune {
			if c >= '0' && c <= '9' {
				return 'a' + c - '0'
			}
			return c
		}, v)
	})
	for _, p := range []struct{ what, is string }{
		{`fp_[0-9a-f]+`, "fp_"}, {`\b\d+:[0-9a-f]{8}\b`, "-"}, {`\b[0-9a-f]{8,}\b`, "0"}, {`\b(leader|follower)\b`, "role"}, {`\b(\d+(ms|µs|us|[dhms])){1,4}\b`, "0s"}, {`\d+`, "0"}, {`[\s-]+`, " "},
	} {
		line = regexp.MustCompile(p.what).ReplaceAllString(line, p.is)
	}
	return strings.TrimSpace(line)
}

// differs says which line is not there, in the order of the document; "" when all
// are. What the document leaves out at the end is left out.
func differs(out string, want []string) string {
	got := slices.DeleteFunc(strings.Split(out, "\n"), func(l string) bool { return strings.TrimSpace(l) == "" })
	i, skip := 0, false
	for _, w := range want {
		if strings.TrimSpace(w) == "..." {
			skip = true
			continue
		}
		for skip && i < len(got) && !same(got[i], w) {
			i++
		}
		if i >= len(got) || !same(got[i], w) {
			return "there is no line: " + w
		}
		i, skip = i+1, false
	}
	if i < len(got) && !skip && len(want) > 0 {
		return "there is also: " + got[i]
	}
	return ""
}

func same(got, want string) bool {
	g, w := plain(got), plain(want)
	if start, ok := strings.CutSuffix(w, "..."); ok {
		return strings.HasPrefix(g, strings.TrimSpace(start))
	}
	return g == w
}

// eventually tries something until it is so, and reports whether it was in time.
func eventually(most time.Duration, ok func() bool) bool {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(most); ; <-tick.C {
		if ok() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

// journals shows the end of the logs of the machines.
func (r *rehearsal) journals() {
	for _, m := range machines {
		out, _ := r.run("ssh " + m.name + " 'journalctl -n 25 --no-pager -u footplate-server -u footplate-agent -u footplate-bot -o cat'")
		r.t.Logf("journal of %s:\n%s", m.name, out)
	}
}

// watcher looks at what the procedures cost: a build that runs all the while on
// each host, and a caller.
type watcher struct {
	r       *rehearsal
	builds  []fleet.BuildID
	stop    context.CancelFunc
	done    chan struct{}
	calls   atomic.Int64
	failed  []string
	longest time.Duration
}

// callerPatience is the longest that an operation may take while secrets are
// changed and nodes are started anew one by one: an election and some.
const callerPatience = 10 * time.Second

func (r *rehearsal) watch() *watcher {
	w := &watcher{r: r, done: make(chan struct{})}
	for range 2 {
		out, err := r.run("footplate build submit --org acme --pool linux --run 'while :; do sleep 1; done' -o name")
		id, perr := strconv.ParseUint(strings.TrimSpace(string(out)), 10, 64)
		if err != nil || perr != nil {
			r.t.Fatalf("submit: %v: %s", err, out)
		}
		w.builds = append(w.builds, fleet.BuildID(id))
	}
	out, err := r.run(`footplate access token create watcher --role operator 2>/dev/null | sed -n 's/^secret //p'`)
	if err != nil {
		r.t.Fatalf("a token of its own: %v: %s", err, out)
	}
	// Of its own: the desk's is replaced.
	env := fmt.Sprintf("FOOTPLATE_TOKEN=%s ", strings.TrimSpace(string(out)))
	// A node that has not applied it yet does not know it for some milliseconds.
	if !eventually(10*time.Second, func() bool { _, err := r.run(env + "footplate access whoami"); return err == nil }) {
		r.t.Fatal("the watcher is not known")
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.stop = cancel
	go func() {
		defer close(w.done)
		for n := 0; ctx.Err() == nil; n++ {
			at := time.Now()
			out, err := r.run(env + fmt.Sprintf("footplate org set watched --slots %d", 1+n%9))
			if took := time.Since(at); took > w.longest {
				w.longest = took
			}
			if err != nil {
				w.failed = append(w.failed, fmt.Sprintf("%s: %v: %s", at.Format(time.TimeOnly), err, out))
			}
			w.calls.Add(1)
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
			}
		}
	}()
	return w
}

// end says what was seen.
func (w *watcher) end() {
	w.stop()
	<-w.done
	t := w.r.t
	for _, id := range w.builds {
		out, err := w.r.run(fmt.Sprintf("footplate build show %s -o json", id))
		var d catalog.BuildDetail
		if err == nil {
			err = json.Unmarshal(out, &d)
		}
		if err != nil || d.State != "running" || d.Attempts != 1 {
			t.Errorf("build %s, which was to run all the while: %v\n%s", id, err, out)
		}
	}
	t.Logf("%d operations while it was played, the longest took %s", w.calls.Load(), w.longest.Round(time.Millisecond))
	if len(w.failed) > 0 {
		t.Errorf("%d of %d operations failed, the first:\n%s", len(w.failed), w.calls.Load(), w.failed[0])
	}
	if w.longest > callerPatience {
		t.Errorf("an operation took %s", w.longest)
	}
}

// inChat makes sure that commands in Slack are done.
func (r *rehearsal) inChat(who string) {
	r.t.Helper()
	r.said++
	var err error
	at := time.Now()
	if !eventually(60*time.Second, func() bool {
		err = r.slack.Slash("U0ALICE", opsChannel, fmt.Sprintf("org set from-slack --slots %d", r.said))
		return err == nil
	}) {
		r.journals()
		r.t.Fatalf("Slack's commands are not answered by the %s: %v", who, err)
	}
	acked := time.Since(at)
	done := regexp.MustCompile(fmt.Sprintf(`(?m)^from-slack +%d `, r.said))
	var out []byte
	if !eventually(20*time.Second, func() bool {
		out, _ = r.run("footplate org list")
		return done.Match(out)
	}) {
		r.journals()
		r.t.Fatalf("a command in Slack that the %s have acknowledged was not done:\n%s\n%s", who, out, r.slack.Transcript())
	}
	r.t.Logf("a command in Slack, by the %s: acknowledged after %s, done after %s", who, acked.Round(time.Millisecond), time.Since(at).Round(time.Millisecond))
}

// door is the public address at which Slack calls: it passes requests on to the
// first machine that can be connected to, beginning with another one each time.
type door struct {
	desk string
	http *http.Server

	mu    sync.Mutex
	to    []string
	calls int
}

func openDoor(desk string) (*door, error) {
	d := &door{desk: desk}
	l, err := net.Listen("tcp", deskAddr+":8081")
	if err != nil {
		return nil, err
	}
	d.http = &http.Server{Handler: d, ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = d.http.Serve(l) }()
	return d, nil
}

func (d *door) close() { _ = d.http.Close() }

// lead has it lead to the nodes, or to the bots.
func (d *door) lead(to string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.to = []string{"https://n1:4600", "https://n2:4600", "https://n3:4600"}
	if to == "bots" {
		d.to = []string{"http://10.0.0.21:4680", "http://10.0.0.22:4680"}
	}
}

func (d *door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	d.calls++
	to := append(slices.Clone(d.to[d.calls%len(d.to):]), d.to[:d.calls%len(d.to)]...)
	d.mu.Unlock()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	trust := x509.NewCertPool()
	files, _ := filepath.Glob(filepath.Join(d.desk, "certs*", "ca.pem"))
	for _, f := range files {
		b, _ := os.ReadFile(f)
		trust.AppendCertsFromPEM(b)
	}
	t := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: trust}, DisableKeepAlives: true}
	for _, base := range to {
		req, err := http.NewRequestWithContext(r.Context(), r.Method, base+r.URL.Path, bytes.NewReader(body))
		if err != nil {
			break
		}
		req.Header = r.Header.Clone()
		res, err := t.RoundTrip(req)
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" {
			continue
		}
		if err != nil {
			break
		}
		defer res.Body.Close()
		w.Header().Set("Content-Type", res.Header.Get("Content-Type"))
		w.WriteHeader(res.StatusCode)
		_, _ = io.Copy(w, res.Body)
		return
	}
	w.WriteHeader(http.StatusBadGateway)
}

// chatter is somebody who gives commands in Slack while it gets another signing
// secret.
type chatter struct {
	r    *rehearsal
	stop context.CancelFunc
	done chan struct{}

	mu        sync.Mutex
	good, bad int
	goodAt    time.Time // when the last that was acknowledged was given
	badAt     time.Time // when the last that was refused was
	wrong     []string
}

// chat begins it. It returns when a command was refused for the new secret.
func (r *rehearsal) chat() *chatter {
	c := &chatter{r: r, done: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	c.stop = cancel
	go func() {
		defer close(c.done)
		for n := 1; ctx.Err() == nil; n++ {
			if n == 4 {
				r.slack.SetSigningSecret(nextSigningSecret)
			}
			c.say(n)
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
			}
		}
	}()
	if !eventually(30*time.Second, func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.bad > 0 }) {
		r.t.Errorf("what Slack has signed with its new secret is taken before anybody knows that")
	}
	return c
}

func (c *chatter) say(n int) {
	at := time.Now()
	err := c.r.slack.Slash("U0ALICE", opsChannel, fmt.Sprintf("org set in-chat --slots %d", n))
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil:
		c.good++
		c.goodAt = at
	case n >= 4 && strings.Contains(err.Error(), "401"):
		c.bad++
		c.badAt = at
	default:
		c.wrong = append(c.wrong, fmt.Sprintf("command %d: %v", n, err))
	}
}

// end says what came of it, when the secret was changed everywhere: from then on
// every command is taken, and what was acknowledged before was done, once.
func (c *chatter) end() {
	changed := time.Now()
	t := c.r.t
	if !eventually(30*time.Second, func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.goodAt.Sub(changed) > time.Second }) {
		t.Error("no command was taken after the secret was changed")
	}
	c.stop()
	<-c.done
	if c.badAt.After(changed) {
		t.Errorf("a command was refused that was given %s after the secret was changed everywhere", c.badAt.Sub(changed))
	}
	if len(c.wrong) > 0 {
		t.Errorf("%d commands failed for another reason than the new secret, the first: %s", len(c.wrong), c.wrong[0])
	}
	done := 0
	if !eventually(20*time.Second, func() bool {
		out, _ := c.r.run(`footplate audit search --op 'org set' --object in-chat --outcome done --limit 500 -o jsonl`)
		done = strings.Count(string(out), "\n")
		return done == c.good
	}) {
		t.Errorf("%d commands were acknowledged while the signing secret was changed, and %d entries tell of them", c.good, done)
	}
	t.Logf("%d commands in Slack while the signing secret was changed: %d were done, %d refused", c.good+c.bad+len(c.wrong), done, c.bad)
}
