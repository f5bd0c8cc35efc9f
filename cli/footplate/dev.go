package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"footplate/cli"
	"footplate/controlplane/archive/postgres"
	"footplate/controlplane/catalog"
	"footplate/controlplane/certs"
	"footplate/controlplane/client"
	"footplate/controlplane/op"
	"footplate/fleet"
	"footplate/fleet/agent"
	"footplate/fleet/provider/local"

	"github.com/spf13/cobra"
)

// devCommand is "footplate dev": all of it on one machine, with nothing to
// install.
func devCommand() *cobra.Command {
	d := dev{out: os.Stdout}
	c := &cobra.Command{
		Long: `Everything on one machine, with nothing to install: a control plane of real
processes that may be killed, a pool "local" whose hosts are processes too, an org
"demo", and a token. Ends with Ctrl-C; a node that dies is started again. The nodes take
Slack and the shared archive from the environment, as footplate server does.`,
		Args: cobra.NoArgs,
	}
	f := c.Flags()
	f.IntVar(&d.nodes, "nodes", 3, "nodes of the control plane: 1, 3 or 5")
	f.IntVar(&d.hosts, "hosts", 4, "hosts of the pool")
	f.IntVar(&d.slots, "slots", 2, "tasks at once on each host")
	f.StringVar(&d.data, "data", "", "keep the data in this directory; a temporary one when left out")
	f.StringVar(&d.listen, "listen", "127.0.0.1:4600", "address of the first node; the others have the ports after it, Raft those 100 on")
	f.BoolVar(&d.tls, "tls", false, "with TLS, by certificates that it makes in its data")
	f.DurationVar(&d.restart, "restart-after", 2*time.Second, "how long a node that died stays away")
	f.StringVar(&d.fence, "fence-after", "30s", "of the pool: a host silent for this long has ended its tasks")
	f.StringVar(&d.suspect, "suspect-after", "10s", "of the pool: a host silent for this long gets no new work")
	c.RunE = func(cmd *cobra.Command, _ []string) error { return d.run(cmd.Context()) }
	return c
}

type dev struct {
	nodes, hosts, slots          int
	data, listen, fence, suspect string
	restart                      time.Duration
	tls                          bool
	out                          io.Writer

	host    string
	port    int
	secrets map[string]string
	mu      sync.Mutex
}

func (d *dev) say(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fmt.Fprintf(d.out, format+"\n", args...)
}

func (d *dev) run(ctx context.Context) (err error) {
	if d.nodes != 1 && d.nodes != 3 && d.nodes != 5 {
		return badFlag("nodes", strconv.Itoa(d.nodes), "1, 3 or 5")
	}
	if d.hosts < 0 || d.hosts > 64 {
		return badFlag("hosts", strconv.Itoa(d.hosts), "0 to 64")
	}
	var port string
	if d.host, port, err = net.SplitHostPort(d.listen); err != nil {
		return badFlag("listen", d.listen, "HOST:PORT")
	}
	if d.port, err = strconv.Atoi(port); err != nil || d.port < 1 || d.port > 65000 {
		return badFlag("listen", d.listen, "HOST:PORT with a port from 1 to 65000")
	}
	if everyAddress(d.host) {
		return badFlag("listen", d.listen, "one address of this machine, by which the nodes find each other")
	}
	// The nodes read them too, but what they say is in their logs.
	if _, _, err := slackSettings(); err != nil {
		return err
	}
	if url, err := cli.Secret(envPostgres); err != nil {
		return err
	} else if url != "" {
		a, err := postgres.New(url, "-") // it calls nobody
		if err != nil {
			return err
		}
		a.Close()
	}
	if d.data == "" {
		if d.data, err = os.MkdirTemp("", "footplate-dev-"); err != nil {
			return fleet.Invalidf("temporary directory: %s", err)
		}
		defer os.RemoveAll(d.data)
		// Tasks run as another user, and must reach their workspaces.
		if err := os.Chmod(d.data, 0o711); err != nil {
			return fleet.Invalidf("temporary directory: %s", err)
		}
	} else if d.data, err = filepath.Abs(d.data); err != nil {
		return badFlag("data", d.data, "a directory")
	}
	unlock, err := d.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := d.reachable(); err != nil {
		return err
	}
	d.secrets = map[string]string{}
	for _, name := range []string{"admin", "agent", "node", "bot"} {
		if d.secrets[name], err = readSecret(d.secretFile(name), true); err != nil {
			return err
		}
	}
	if d.tls {
		if err := d.certify(); err != nil {
			return err
		}
	}
	for i := range d.nodes {
		for _, a := range []string{d.apiAddr(i), d.raftAddr(i)} {
			l, err := net.Listen("tcp", a)
			if err != nil {
				return fleet.Conflictf("address %s is taken", a).WithHint("end what listens there, or choose another --listen")
			}
			l.Close()
		}
	}

	started := time.Now()
	nodes, stopNodes := context.WithCancel(ctx)
	var all sync.WaitGroup
	for i := range d.nodes {
		all.Go(func() { d.keepNode(nodes, i) })
	}
	defer func() {
		stopNodes()
		all.Wait()
		if e := local.EndAll(d.hostsDir()); e != nil && err == nil {
			err = e
		}
	}()
	if err := d.prepare(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	d.say("footplate dev: %s and %s are up after %s. Data is in %s.",
		count(d.nodes, "node"), count(d.hosts, "host"), time.Since(started).Round(100*time.Millisecond), d.data)
	d.say("")
	export := fmt.Sprintf("export FOOTPLATE_ADDR=%s FOOTPLATE_TOKEN=%s", d.addrs(), d.secrets["admin"])
	if d.tls {
		export += " FOOTPLATE_CA=" + d.authority()
	}
	d.say("%s", export)
	d.say("")
	d.say("In another terminal, with that line in it:")
	d.say("  footplate build submit --org demo --pool local --run 'echo hello from $(hostname)' --follow")
	d.say("  footplate chat            the channel live, and a prompt")
	d.say("  footplate cluster status  then kill -9 the leader (pids are in %s) and look again", filepath.Join(d.data, "n*.pid"))
	d.say("Ctrl-C ends everything.")
	<-ctx.Done()
	d.say("ending")
	return nil
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

func (d *dev) apiAddr(i int) string  { return net.JoinHostPort(d.host, strconv.Itoa(d.port+i)) }
func (d *dev) raftAddr(i int) string { return net.JoinHostPort(d.host, strconv.Itoa(d.port+100+i)) }
func (d *dev) hostsDir() string      { return filepath.Join(d.data, "hosts") }
func (d *dev) secretFile(name string) string {
	return filepath.Join(d.data, "secrets", name)
}

func (d *dev) addrs() string {
	var out []string
	for i := range d.nodes {
		out = append(out, d.url(i))
	}
	return strings.Join(out, ",")
}

func (d *dev) url(i int) string {
	if d.tls {
		return "https://" + d.apiAddr(i)
	}
	return "http://" + d.apiAddr(i)
}

func (d *dev) certsDir() string  { return filepath.Join(d.data, "tls") }
func (d *dev) authority() string { return filepath.Join(d.certsDir(), "ca.pem") }

// certify makes the certificates of the nodes, or renews them.
func (d *dev) certify() error {
	nodes := make(map[string][]string)
	for i := range d.nodes {
		nodes[fmt.Sprintf("n%d", i+1)] = []string{d.host}
	}
	_, err := certs.Init(d.certsDir(), nodes, time.Now())
	return err
}

// lock makes sure that one dev at a time uses the data.
func (d *dev) lock() (unlock func(), err error) {
	if err := os.MkdirAll(d.data, 0o711); err != nil {
		return nil, fleet.Invalidf("data directory: %s", err)
	}
	f, err := os.OpenFile(filepath.Join(d.data, "dev.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fleet.Invalidf("data directory: %s", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fleet.Conflictf("another footplate dev uses %s", d.data).WithHint("end it, or choose another --data")
	}
	return func() { f.Close() }, nil
}

// reachable refuses data that the hosts' tasks could not reach: their agents would
// refuse it one by one, each in a log of its own.
func (d *dev) reachable() error {
	if os.Geteuid() != 0 {
		return nil
	}
	u, err := findUser(taskUser)
	if err != nil {
		return err
	}
	return agent.Reachable(d.data, u)
}

// keepNode runs node i and starts it again when it dies.
func (d *dev) keepNode(ctx context.Context, i int) {
	name := fmt.Sprintf("n%d", i+1)
	for ctx.Err() == nil {
		err := d.runNode(ctx, i, name)
		if ctx.Err() != nil {
			return
		}
		d.say("node %s died (%v); starting it again in %s. Its log: %s", name, err, d.restart, filepath.Join(d.data, name+".log"))
		select {
		case <-ctx.Done():
		case <-time.After(d.restart):
		}
	}
}

func (d *dev) runNode(ctx context.Context, i int, name string) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	logFile, err := os.OpenFile(filepath.Join(d.data, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer logFile.Close()
	args := []string{
		"server", "--node", name, "--data", filepath.Join(d.data, name), "--until-eof",
		"--listen", d.apiAddr(i), "--raft", d.raftAddr(i), "--local-hosts", d.hostsDir(),
		"--node-token-file", d.secretFile("node"), "--agent-token-file", d.secretFile("agent"),
		"--bot-token-file", d.secretFile("bot"),
		// All nodes and what the hosts build share this machine: a leader that gets
		// no time for half a second is not dead.
		"--heartbeat", "1s",
	}
	if i == 0 {
		args = append(args, "--bootstrap", "--admin-token-file", d.secretFile("admin"))
	} else {
		args = append(args, "--join", d.url(0))
	}
	if d.tls {
		args = append(args, "--tls", filepath.Join(d.certsDir(), name))
	}
	cmd := exec.Command(exe, args...)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	// The node ends when this process does, however it ends: its standard input
	// is a pipe from here.
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	pidFile := filepath.Join(d.data, name+".pid")
	if err := os.WriteFile(pidFile, []byte(strconv.Itoa(cmd.Process.Pid)+"\n"), 0o644); err != nil {
		d.say("%s is not written: %v", pidFile, err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err = <-done:
	case <-ctx.Done():
		stdin.Close()
		select {
		case err = <-done:
		case <-time.After(shutdownGrace):
			_ = cmd.Process.Kill()
			err = <-done
		}
	}
	os.Remove(pidFile)
	return err
}

// prepare waits for the control plane and gives it an org and a pool.
func (d *dev) prepare(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cfg := client.Config{Addrs: strings.Split(d.addrs(), ","), Token: d.secrets["admin"], Via: "dev/" + cli.Version}
	if d.tls {
		trust, err := certs.OpenAuthority(d.authority(), slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		cfg.Dial = trust.Dial
	}
	c, err := client.New(cfg)
	if err != nil {
		return err
	}
	ops := catalog.All()
	do := func(line string) error {
		call, err := ops.Parse(line)
		if err != nil {
			return err
		}
		_, err = c.Do(ctx, call.Op, call.Args, client.Options{Reason: "footplate dev starts", Confirm: "yes"})
		return err
	}
	if err := d.until(ctx, "the nodes", func() (string, bool) {
		var st op.Cluster
		if err := d.query(ctx, c, ops, "cluster status", &st); err != nil {
			return err.Error(), false
		}
		up := 0
		for _, n := range st.Nodes {
			if n.Role == "leader" || n.Role == "follower" {
				up++
			}
		}
		return fmt.Sprintf("%d of %d", up, d.nodes), up == d.nodes
	}); err != nil {
		return err
	}
	var pools []catalog.PoolRow
	if err := d.query(ctx, c, ops, "pool list", &pools); err != nil {
		return err
	}
	lines := []string{
		"org set demo --slots 64",
		fmt.Sprintf("pool create local --provider local --size %d --slots %d --fence-after %s --suspect-after %s", d.hosts, d.slots, d.fence, d.suspect),
	}
	if slices.ContainsFunc(pools, func(p catalog.PoolRow) bool { return p.Name == "local" }) {
		// From an earlier time. The state clock stood still since, and all nodes have
		// this machine's.
		lines = []string{catalog.ClusterClockStep.Name, fmt.Sprintf("pool scale local %d", d.hosts)}
	}
	for _, line := range lines {
		if err := do(line); err != nil {
			return err
		}
	}
	return d.until(ctx, "the hosts", func() (string, bool) {
		var rows []catalog.PoolRow
		if err := d.query(ctx, c, ops, "pool list", &rows); err != nil {
			return err.Error(), false
		}
		for _, r := range rows {
			if r.Name == "local" {
				return fmt.Sprintf("%d of %d", r.Ready, d.hosts), r.Ready >= d.hosts
			}
		}
		return "no pool", false
	})
}

func (d *dev) query(ctx context.Context, c *client.Client, ops *op.Registry, line string, into any) error {
	call, err := ops.Parse(line)
	if err != nil {
		return err
	}
	raw, _, err := c.Query(ctx, call.Op, call.Args, false)
	if err != nil {
		return err
	}
	return json.Unmarshal(raw, into)
}

// until waits for a condition, and says what it waits for when that takes long.
func (d *dev) until(ctx context.Context, what string, ready func() (string, bool)) error {
	told := time.Now()
	for {
		how, ok := ready()
		if ok {
			return nil
		}
		if time.Since(told) > 5*time.Second {
			d.say("waiting for %s: %s", what, how)
			told = time.Now()
		}
		select {
		case <-ctx.Done():
			return fleet.Unavailablef("%s did not come up: %s", what, how).WithHint("the nodes' logs are %s", filepath.Join(d.data, "n*.log"))
		case <-time.After(100 * time.Millisecond):
		}
	}
}
