package main

import (
	"errors"
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"footplate/cli"
	"footplate/controlplane/certs"
	"footplate/fleet"
	"footplate/fleet/agent"
	"footplate/fleet/agent/attempt"

	"github.com/spf13/cobra"
)

// taskUser runs the tasks of an agent that is root, unless it is told another.
const taskUser = "nobody"

// agentCommand is "footplate agent": the process on a CI host.
func agentCommand() *cobra.Command {
	var cfg agent.Config
	var host, pool, boot, tokenFile, joinFile, tlsDir, caFile, runAs string
	var launch uint64
	c := &cobra.Command{
		Long: `The process on a CI host: it takes tasks from the control plane, runs them, hands
over their logs, and ends them by itself when it may no longer run them.

Where the nodes have TLS it comes with a certificate of its own, which it gets with a token
that is good once, and renews by itself:

  footplate access token create linux-4 --role agent --once --expires 1h
  footplate agent --host linux-4 --pool linux --addrs https://10.0.0.1:4600 --tls DIR --join-token-file FILE

DIR has the cluster's ca.pem in it, and gets the rest. Once the host has enrolled, the flag may
stay and the file may go.

As root it runs tasks as another user, in PID namespaces; that user must be able to
pass through the parents of --dir.`,
		Args: cobra.NoArgs,
	}
	f := c.Flags()
	name, _ := os.Hostname()
	f.StringVar(&host, "host", name, "name of this host")
	f.StringVar(&pool, "pool", "", "the pool that it belongs to")
	f.Uint64Var(&launch, "launch", 0, "number of the launch, when a provider made it")
	f.IntVar(&cfg.Slots, "slots", 0, "tasks at once; the pool's when left out")
	f.StringVar(&boot, "boot", "", "boot id; the kernel's when left out")
	f.StringSliceVar(&cfg.Addrs, "addrs", nil, "URLs of nodes of the control plane")
	f.StringVar(&tokenFile, "token-file", "", "file with the agents' secret")
	f.StringVar(&joinFile, "join-token-file", "", "file with a token that is good once, until the host has enrolled; with --tls")
	f.StringVar(&tlsDir, "tls", "", "folder with the cluster's ca.pem, and the agent's certificate and key")
	f.StringVar(&caFile, "ca", "", "in the place of --tls: the cluster's ca.pem, with --token-file")
	f.StringVar(&cfg.Cluster, "cluster", "", "id of the cluster; a node is asked when left out")
	f.StringVar(&cfg.Dir, "dir", "/var/lib/footplate-agent", "directory for what it keeps")
	f.StringVar(&runAs, "task-user", taskUser, "who runs the tasks when the agent is root; root to run them as root")
	logger := logFlags(c)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		switch {
		case pool == "" || len(cfg.Addrs) == 0 || tokenFile == "" && tlsDir == "":
			return fleet.Invalidf("an agent needs --pool, --addrs and --token-file, or --tls").
				WithHint("the token is in DATA/secrets/agent of the first node")
		case joinFile != "" && tlsDir == "":
			return fleet.Invalidf("--join-token-file gets the agent a certificate, and there is no --tls").
				WithHint("--tls DIR, with the cluster's ca.pem in it")
		case tlsDir != "" && (caFile != "" || tokenFile != ""):
			return fleet.Invalidf("--tls goes with neither --ca nor --token-file").WithHint("--ca FILE --token-file FILE for the agents' shared token")
		}
		var err error
		if tokenFile != "" {
			if cfg.Token, err = readSecret(tokenFile, false); err != nil {
				return err
			}
			cfg.TokenFile = tokenFile
		}
		if cfg.Dir, err = filepath.Abs(cfg.Dir); err != nil {
			return badFlag("dir", cfg.Dir, "a directory")
		}
		if os.Geteuid() == 0 && runAs != "root" {
			if cfg.TaskUser, err = findUser(runAs); err != nil {
				return err
			}
		}
		if cfg.Log, err = logger(); err != nil {
			return err
		}
		if err := openCerts(&cfg, tlsDir, caFile, joinFile); err != nil {
			return err
		}
		cfg.Host, cfg.Pool, cfg.Boot = fleet.HostID(host), fleet.PoolName(pool), fleet.BootID(boot)
		cfg.Launch, cfg.Version = fleet.LaunchID(launch), cli.Version
		a, err := agent.New(cfg)
		if err != nil {
			return err
		}
		return a.Run(cmd.Context())
	}
	return c
}

// openCerts opens what the agent is to use of TLS.
func openCerts(cfg *agent.Config, tlsDir, caFile, joinFile string) (err error) {
	switch {
	case tlsDir != "":
		if cfg.TLS, err = certs.Open(tlsDir, cfg.Log); err != nil {
			return err
		}
	case caFile != "":
		cfg.TLS, err = certs.OpenAuthority(caFile, cfg.Log)
		return err
	}
	if joinFile == "" {
		return nil
	}
	if cfg.JoinToken, err = readSecret(joinFile, false); err != nil {
		if _, enrolled := cfg.TLS.Own(); enrolled {
			return nil // it has been used, and was removed
		}
		return fleet.AsError(err).WithHint("footplate access token create HOST --role agent --once makes it")
	}
	return nil
}

func findUser(name string) (*attempt.User, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return nil, badFlag("task-user", name, "there is no such user on this machine")
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return nil, badFlag("task-user", name, "its ids are not numbers")
	}
	return &attempt.User{UID: uint32(uid), GID: uint32(gid)}, nil
}
