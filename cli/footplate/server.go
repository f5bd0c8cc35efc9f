package main

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"footplate/cli"
	"footplate/controlplane"
	"footplate/fleet"
	"footplate/fleet/provider"
	localhosts "footplate/fleet/provider/local"

	"github.com/spf13/cobra"
)

// serverCommand is "footplate server": a node of the control plane.
func serverCommand() *cobra.Command {
	var cfg controlplane.Config
	var node, nodeToken, adminToken, agentToken, local string
	var untilEOF bool
	c := &cobra.Command{
		Long: `A node of the control plane. Begin with one and join the others to it:

  footplate server --node n1 --data /var/lib/footplate --listen 10.0.0.1:4600 --raft 10.0.0.1:4700 --bootstrap
  footplate server --node n2 --data /var/lib/footplate --listen 10.0.0.2:4600 --raft 10.0.0.2:4700 --join http://10.0.0.1:4600

The first node makes its secrets in DATA/secrets, unless they are given: "node" goes to every
node, "agent" to every agent, "admin" to the person who goes on from here. A node with data
never begins a cluster again: the flags may stay as they are.`,
		Args: cobra.NoArgs,
	}
	f := c.Flags()
	f.StringVar(&node, "node", "n1", "name of the node")
	f.StringVar(&cfg.Dir, "data", "", "data directory")
	f.StringVar(&cfg.Listen, "listen", "127.0.0.1:4600", "address of HTTP")
	f.StringVar(&cfg.API, "api", "", "URL by which others reach it; http://LISTEN when left out")
	f.StringVar(&cfg.Raft, "raft", "127.0.0.1:4700", "address of Raft")
	f.StringVar(&cfg.RaftAdvertise, "raft-advertise", "", "what the other nodes call it by; the address of Raft when left out")
	f.StringVar(&cfg.Cluster, "cluster", "", "id of the cluster; asked for, or made, when left out")
	f.BoolVar(&cfg.Bootstrap, "bootstrap", false, "begin a new cluster, unless there is data")
	f.StringSliceVar(&cfg.Join, "join", nil, "URLs of nodes of the cluster to join, unless there is data")
	f.StringVar(&nodeToken, "node-token-file", "", "file with the secret that the nodes share; DATA/secrets/node when left out")
	f.StringVar(&adminToken, "admin-token-file", "", "with --bootstrap: the first person's secret; DATA/secrets/admin")
	f.StringVar(&agentToken, "agent-token-file", "", "the agents' secret; DATA/secrets/agent")
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
		if err := checkAddrs(cfg); err != nil {
			return err
		}
		cfg.Node, cfg.Version = fleet.NodeID(node), cli.Version
		if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
			return fleet.Invalidf("data directory: %s", err)
		}
		var err error
		secret := func(file, name string, make bool) (string, error) {
			if file == "" {
				file = filepath.Join(cfg.Dir, "secrets", name)
			}
			return readSecret(file, make)
		}
		if cfg.NodeToken, err = secret(nodeToken, "node", cfg.Bootstrap); err != nil {
			return err
		}
		cfg.AgentToken, err = secret(agentToken, "agent", cfg.Bootstrap)
		if err != nil && (cfg.Bootstrap || local != "") {
			return err
		}
		if cfg.Bootstrap {
			adminSecret, err := secret(adminToken, "admin", true)
			if err != nil {
				return err
			}
			cfg.Tokens = []fleet.Token{
				{Name: "admin", Hash: controlplane.TokenHash(adminSecret), Principal: "admin", Role: fleet.Admin},
				{Name: "agents", Hash: controlplane.TokenHash(cfg.AgentToken), Principal: "agents", Role: fleet.Agent},
			}
		}
		if cfg.Log, err = logger(); err != nil {
			return err
		}
		if local != "" {
			hosts, err := localhosts.New(localhosts.Config{Dir: local, Log: cfg.Log})
			if err != nil {
				return err
			}
			cfg.Providers = map[string]provider.Provider{hosts.Name(): hosts}
		}
		ctx, cancel := context.WithCancel(cmd.Context())
		defer cancel()
		if untilEOF {
			go func() {
				_, _ = io.Copy(io.Discard, os.Stdin)
				cancel()
			}()
		}
		n, err := controlplane.New(ctx, cfg)
		if err != nil {
			return taken(err)
		}
		cfg.Log.Info("node is up", "node", cfg.Node, "listen", n.Addr().String(), "raft", cfg.Raft, "version", cfg.Version)
		return n.Run(ctx)
	}
	return c
}

// checkAddrs refuses addresses by which nobody else can reach the node: it tells
// them to the other nodes and to agents.
func checkAddrs(cfg controlplane.Config) error {
	for _, a := range []struct{ flag, addr, told, tell string }{
		{"listen", cfg.Listen, cfg.API, "--api http://HOST:"},
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
