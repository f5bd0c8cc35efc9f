package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"footplate/cli"
	"footplate/controlplane"
	"footplate/controlplane/certs"
	"footplate/controlplane/replica"
	"footplate/fleet"
	"footplate/fleet/provider"
	localhosts "footplate/fleet/provider/local"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

// envPublic is where browsers find the page, when that is not a node's own address.
const envPublic = "FOOTPLATE_PUBLIC_URL"

// serverReads are the settings of a node in the environment.
func serverReads() []cli.Variable {
	return append(append(postgresReads(), slackReads()...),
		cli.Variable{Name: envPublic, Help: "URL by which browsers reach the page, when a proxy ends TLS before the nodes; --api when left out"},
		cli.Variable{Name: "GOGC", Help: "how the Go runtime collects garbage; 400 when left out"},
		notifyReads(),
		cli.Variable{Name: "SUDO_USER", Help: "set by sudo: who restores or recovers, in the record"},
	)
}

// serverCommand is "footplate server": a node of the control plane.
func serverCommand() *cobra.Command {
	var cfg controlplane.Config
	var node, nodeToken, adminToken, agentToken, botToken, local, tlsDir string
	var untilEOF bool
	c := &cobra.Command{
		Long: `A node of the control plane. Begin with one and join the others to it:

  footplate server --node n1 --data /var/lib/footplate --listen 10.0.0.1:4600 --raft 10.0.0.1:4700 --bootstrap
  footplate server --node n2 --data /var/lib/footplate --listen 10.0.0.2:4600 --raft 10.0.0.2:4700 --join http://10.0.0.1:4600

The first node makes its secrets in DATA/secrets, unless they are given: "node" goes to every
node, "agent" to every agent, "admin" to the person who goes on from here. A node with data
never begins a cluster again: the flags may stay as they are.

When a majority of the nodes is lost for ever: footplate server recover; when all are: footplate
server restore.

With --tls everything is encrypted, URLs begin with https://, and only who has a certificate of
"footplate tls init" is a node.`,
		Args: cobra.NoArgs,
	}
	c.AddCommand(restoreCommand(), recoverCommand())
	f := c.Flags()
	f.StringVar(&node, "node", "n1", "name of the node")
	f.StringVar(&cfg.Dir, "data", "", "data directory")
	f.StringVar(&cfg.Listen, "listen", "127.0.0.1:4600", "address of HTTP")
	f.StringVar(&cfg.API, "api", "", "URL by which others reach it; http://LISTEN, or https with --tls, when left out")
	f.StringVar(&cfg.Raft, "raft", "127.0.0.1:4700", "address of Raft")
	f.StringVar(&cfg.RaftAdvertise, "raft-advertise", "", "what the other nodes call it by; the address of Raft when left out")
	f.StringVar(&cfg.Cluster, "cluster", "", "id of the cluster; asked for, or made, when left out")
	f.BoolVar(&cfg.Bootstrap, "bootstrap", false, "begin a new cluster, unless there is data")
	f.StringSliceVar(&cfg.Join, "join", nil, "URLs of nodes of the cluster to join, unless there is data")
	f.StringVar(&nodeToken, "node-token-file", "", "file with the secret that the nodes share; DATA/secrets/node when left out")
	f.StringVar(&adminToken, "admin-token-file", "", "with --bootstrap: the first person's secret; DATA/secrets/admin")
	f.StringVar(&agentToken, "agent-token-file", "", "the agents' secret; DATA/secrets/agent")
	f.StringVar(&botToken, "bot-token-file", "", "the secret of the chat in Slack, when the node runs it; DATA/secrets/bot")
	f.StringVar(&tlsDir, "tls", "", "folder with the certificates of this node, of footplate tls init; plain HTTP when left out")
	f.StringVar(&local, "local-hosts", "", "directory of the local provider: hosts are processes of this machine")
	f.StringArrayVar(&cfg.SkipCommand, "skip-command", nil, "INDEX/POSITION of a poisoned command to step over, on every node alike")
	f.DurationVar(&cfg.Heartbeat, "heartbeat", 0, "how long a dead leader goes unnoticed; 500ms when left out")
	f.BoolVar(&untilEOF, "until-eof", false, "end when standard input does")
	_ = f.MarkHidden("until-eof")
	logger := logFlags(c)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		if cfg.Dir == "" {
			return fleet.Invalidf("a node needs a data directory").WithHint("say --data DIR")
		}
		if err := fleet.CheckName("node", node); err != nil {
			return err
		}
		if err := checkAddrs(cfg, tlsDir != ""); err != nil {
			return err
		}
		cfg.Node, cfg.Version = fleet.NodeID(node), cli.Version
		if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
			return fleet.Invalidf("data directory: %s", err)
		}
		secret := func(file, name string, make bool) (string, error) {
			if file == "" {
				file = filepath.Join(cfg.Dir, "secrets", name)
			}
			return readSecret(file, make)
		}
		// Secrets are made once, with the cluster: --bootstrap stays in the command
		// line, and a secret that was made later would be nobody's.
		_, hasData, err := replica.ReadCluster(cfg.Dir)
		if err != nil {
			return err
		}
		begins := cfg.Bootstrap && !hasData
		if cfg.NodeToken, err = secret(nodeToken, "node", begins); err != nil {
			return err
		}
		cfg.AgentToken, err = secret(agentToken, "agent", begins)
		if err != nil && (begins || local != "") {
			return err
		}
		if cfg.Bootstrap {
			// A node that was killed while it began its cluster goes on with these.
			for _, t := range []struct {
				file, name string
				token      fleet.Token
			}{
				{adminToken, "admin", fleet.Token{Name: "admin", Principal: "admin", Role: fleet.Admin}},
				{agentToken, "agent", fleet.Token{Name: "agents", Principal: "agents", Role: fleet.Agent}},
				{botToken, "bot", fleet.Token{Name: "bot", Principal: "bot", Role: fleet.Admin, Surface: "slack"}},
			} {
				s, err := secret(t.file, t.name, begins)
				if err != nil && begins {
					return err
				}
				if err == nil {
					t.token.Hash = controlplane.TokenHash(s)
					cfg.Tokens = append(cfg.Tokens, t.token)
				}
			}
		}
		if cfg.Postgres, err = cli.Secret(envPostgres); err != nil {
			return err
		}
		cfg.Public = os.Getenv(envPublic)
		if u, err := url.Parse(cfg.API); err == nil && cfg.Public == "" && tlsDir == "" && u.Scheme == "https" {
			cfg.Public = "https://" + u.Host // a proxy ends TLS for all who come
		}
		if cfg.Log, err = logger(); err != nil {
			return err
		}
		if tlsDir != "" {
			if cfg.TLS, err = nodeCerts(tlsDir, node, cfg.Log); err != nil {
				return err
			}
		}
		if local != "" {
			lc := localhosts.Config{Dir: local, Log: cfg.Log}
			if cfg.TLS != nil {
				ca, err := filepath.Abs(cfg.TLS.Authority())
				if err != nil {
					return badFlag("tls", tlsDir, "a folder")
				}
				lc.Extra = []string{"--ca", ca}
			}
			hosts, err := localhosts.New(lc)
			if err != nil {
				return err
			}
			cfg.Providers = map[string]provider.Provider{hosts.Name(): hosts}
		}
		if os.Getenv("GOGC") == "" {
			// What lives long is small, and every action leaves garbage on every node:
			// memory is cheaper here than the collector's time.
			debug.SetGCPercent(400)
		}
		ctx, cancel := context.WithCancel(cmd.Context())
		defer cancel()
		if untilEOF {
			go func() {
				_, _ = io.Copy(io.Discard, os.Stdin)
				cancel()
			}()
		}
		cfg.Page = browserPage
		chat, err := nodeSlack(ctx, &cfg, func() (string, error) { return secret(botToken, "bot", false) })
		if err != nil {
			return err
		}
		n, err := controlplane.New(ctx, cfg)
		if err != nil {
			return taken(err)
		}
		cfg.Log.Info("node is up", "node", cfg.Node, "listen", n.Addr().String(), "raft", cfg.Raft, "version", cfg.Version)
		if err := notifyReady(); err != nil {
			cfg.Log.Warn("systemd was not told that the node is up", "err", err)
		}
		if chat == nil {
			return n.Run(ctx)
		}
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return n.Run(ctx) })
		g.Go(func() error { return chat.keep(ctx, cfg.Log) })
		return g.Wait()
	}
	return c
}

// nodeCerts opens the certificates of a node, and refuses those of another.
func nodeCerts(dir, node string, log *slog.Logger) (*certs.Keeper, error) {
	k, err := certs.Open(dir, log)
	if err != nil {
		return nil, err
	}
	own, ok := k.Own()
	switch {
	case !ok:
		return nil, fleet.Invalidf("%s has no certificate of a node", dir).WithHint("give the node's own folder: DIR/%s of footplate tls init DIR", node)
	case own != certs.Identity{Kind: certs.Node, Name: node}:
		return nil, fleet.Invalidf("the certificate in %s is of %s, not of node %q", dir, own, node).WithHint("--tls DIR/%s, or another --node", node)
	}
	if _, err := certs.LoadSigner(dir); err != nil {
		return nil, fleet.Invalidf("the authority of the agents: %s", err).WithHint("copy the node's whole folder of footplate tls init")
	}
	return k, nil
}

// checkAddrs refuses addresses by which nobody else can reach the node, which
// tells them to the other nodes and to agents, and those of a cluster that it is
// not to be of.
func checkAddrs(cfg controlplane.Config, secure bool) error {
	if cfg.Bootstrap && len(cfg.Join) > 0 {
		return fleet.Invalidf("--bootstrap begins a new cluster, and --join takes part in one: they do not go together").
			WithHint("--bootstrap on the first node alone, --join on the others")
	}
	scheme, other, why := "http://", "https://", "is without --tls"
	if secure {
		scheme, other, why = other, scheme, "has --tls"
	}
	for _, u := range cfg.Join {
		if rest, ok := strings.CutPrefix(u, other); ok {
			return fleet.Invalidf("--join %s does not fit: this node %s, and all nodes are alike", u, why).WithHint("--join %s%s", scheme, rest)
		}
	}
	for _, a := range []struct{ flag, addr, told, tell string }{
		{"listen", cfg.Listen, cfg.API, "--api " + scheme + "HOST:"},
		{"raft", cfg.Raft, cfg.RaftAdvertise, "--raft-advertise HOST:"},
	} {
		host, port, err := net.SplitHostPort(a.addr)
		if err != nil {
			return badFlag(a.flag, a.addr, "HOST:PORT")
		}
		if a.told == "" && everyAddress(host) {
			return fleet.Invalidf("--%s %s is every address of this machine, and the others must be told one", a.flag, a.addr).
				WithHint("say %s%s as well, with the name or address that they know", a.tell, port)
		}
	}
	return nil
}

// everyAddress reports whether whoever listens on host can be reached by every
// address of the machine, and so by none that is known.
func everyAddress(host string) bool {
	ip := net.ParseIP(host)
	return host == "" || ip != nil && ip.IsUnspecified()
}

// taken words the error of a node that finds an address in use.
func taken(err error) error {
	var listen *net.OpError
	if errors.Is(err, syscall.EADDRINUSE) && errors.As(err, &listen) {
		return fleet.Conflictf("address %s is taken", listen.Addr).WithHint("end what listens there, or choose another --listen or --raft")
	}
	return err
}

// readSecret reads a secret from a file, and makes it when it may.
func readSecret(file string, mayMake bool) (string, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) && mayMake {
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return "", fleet.Invalidf("secret: %s", err)
		}
		b = []byte(controlplane.NewSecret("fp_") + "\n")
		err = os.WriteFile(file, b, 0o600)
	}
	if err != nil {
		return "", fleet.Invalidf("secret: %s", err).WithHint("copy it from the first node's DATA/secrets")
	}
	s := strings.TrimSpace(string(b))
	if len(s) < 16 {
		return "", fleet.Invalidf("secret in %s is shorter than 16 characters", file)
	}
	return s, nil
}

// shutdownGrace is how long a child may take to end before it is killed.
const shutdownGrace = 5 * time.Second
