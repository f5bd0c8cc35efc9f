package main

import (
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"strings"

	"footplate/cli"
	"footplate/controlplane"
	"footplate/fleet"
	"footplate/fleet/lease"

	"github.com/spf13/cobra"
)

// restoreCommand is "footplate server restore": from a snapshot.
func restoreCommand() *cobra.Command {
	var cfg controlplane.Recovery
	c := &cobra.Command{
		Use:   "restore FILE",
		Short: "make the first node of a cluster from a saved snapshot",
		Long: `For when all nodes are lost. FILE is what "footplate cluster snapshot save" wrote. The data
directory must be empty, but for DATA/secrets, and nothing is written unless all of FILE is sound.
Then start this node as ever, and the others with --join on empty directories.

What was done after the snapshot is lost. The cluster begins a new recovery epoch: agents end what
they run and join again by themselves, nodes of the old epoch are refused, and hosts get work when
every lease of the old epoch must have ended. The numbers of builds, attempts and launches leave
out a million, so that none is given twice.

The record comes from --record, a file of "footplate audit export" that was made after the
snapshot, or else from the shared archive (FOOTPLATE_POSTGRES_URL). Without either, the record
begins with the entry of the restore.

  footplate server restore state.snapshot --record record.jsonl --node n1 --data /var/lib/footplate --raft 10.0.0.1:4700`,
		Args: cobra.ExactArgs(1),
	}
	run := recovery(c, &cfg)
	c.Flags().StringVar(&cfg.Record, "record", "", "file of footplate audit export, made after the snapshot")
	c.Flags().StringVar(&cfg.Cluster, "cluster", "", "id of the cluster that it must be; any when left out")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		cfg.Snapshot = args[0]
		return run(cmd)
	}
	return c
}

// recoverCommand is "footplate server recover": from what a node has.
func recoverCommand() *cobra.Command {
	var cfg controlplane.Recovery
	c := &cobra.Command{
		Use:   "recover",
		Short: "go on from this node's data alone, when a majority is lost for ever",
		Long: `For when a majority of the nodes is lost for ever, and this one's data is there. Choose the
survivor that "footplate cluster status --stale" shows the furthest, stop it, and do this there.
Then start it as ever, and the others with --join on empty directories.

What the lost nodes acknowledged among themselves, and this one had not received yet, is lost:
usually nothing or the last fractions of a second, and more if this node was cut off or behind.
What this node has and the others had not confirmed is kept. As with "footplate server restore" a
new recovery epoch begins. Never do it while a majority may come back: those nodes would find out
and halt, and what they had acknowledged meanwhile would be lost.

  footplate server recover --node n2 --data /var/lib/footplate --raft 10.0.0.2:4700`,
		Args: cobra.NoArgs,
	}
	run := recovery(c, &cfg)
	c.Flags().StringArrayVar(&cfg.SkipCommand, "skip-command", nil, "INDEX/POSITION of a poisoned command to step over, as for the server")
	c.RunE = func(cmd *cobra.Command, _ []string) error { return run(cmd) }
	return c
}

// recovery gives c the flags of a recovery, and returns what does it.
func recovery(c *cobra.Command, cfg *controlplane.Recovery) func(*cobra.Command) error {
	var node, nodeToken, adminToken string
	f := c.Flags()
	f.StringVar(&node, "node", "n1", "name of the node")
	f.StringVar(&cfg.Dir, "data", "", "data directory")
	f.StringVar(&cfg.Raft, "raft", "127.0.0.1:4700", "address of Raft")
	f.StringVar(&cfg.RaftAdvertise, "raft-advertise", "", "what the other nodes call it by; the address of Raft when left out")
	f.StringVar(&cfg.Reason, "reason", "", "why: it stands in the record")
	f.BoolVar(&cfg.DryRun, "dry-run", false, "say what would be done, and do nothing")
	f.StringVar(&nodeToken, "node-token-file", "", "file with the secret that the nodes share from now on; DATA/secrets/node, made if need be")
	f.StringVar(&adminToken, "admin-token-file", "", "file with the secret of a new admin, made if need be: for when nobody has one any more")
	logger := logFlags(c)
	return func(cmd *cobra.Command) error {
		if cfg.Dir == "" {
			return fleet.Invalidf("a node needs a data directory").WithHint("say --data DIR")
		}
		if err := fleet.CheckName("node", node); err != nil {
			return err
		}
		cfg.Node, cfg.Version = fleet.NodeID(node), cli.Version
		cfg.User = whoami()
		var err error
		if cfg.Postgres, err = cli.Secret(envPostgres); err != nil {
			return err
		}
		if cfg.Log, err = logger(); err != nil {
			return err
		}
		if nodeToken == "" {
			nodeToken = filepath.Join(cfg.Dir, "secrets", "node")
		}
		if !cfg.DryRun {
			// What is refused must leave nothing behind, so it is looked at first.
			look := *cfg
			look.DryRun = true
			if _, err := controlplane.Recover(cmd.Context(), look); err != nil {
				return err
			}
			if cfg.NodeToken, err = readSecret(nodeToken, true); err != nil {
				return err
			}
			if adminToken != "" {
				if cfg.AdminToken, err = readSecret(adminToken, true); err != nil {
					return err
				}
			}
		}
		done, err := controlplane.Recover(cmd.Context(), *cfg)
		if err != nil {
			return err
		}
		sayRecovered(cmd.OutOrStdout(), cfg, &done, nodeToken)
		return nil
	}
}

// whoami returns the user of this machine.
func whoami() string {
	if s := os.Getenv("SUDO_USER"); s != "" {
		return s
	}
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return ""
}

func sayRecovered(out io.Writer, cfg *controlplane.Recovery, r *controlplane.Recovered, nodeToken string) {
	say := func(what, format string, args ...any) {
		fmt.Fprintf(out, "%-9s "+format+"\n", append([]any{what}, args...)...)
	}
	if cfg.Snapshot != "" {
		say("snapshot", "%s, sha256 %s", cfg.Snapshot, r.SHA256)
	}
	say("cluster", "%s, recovery epoch %d, which follows %d", r.Cluster, r.To, r.From)
	say("state", "log index %d, entry %d, clock %s", r.Index, r.Entry, r.Clock)
	say("holds", "%d pools, %d hosts, %d builds, %d attempts that ran", r.Pools, r.Hosts, r.Builds, r.Running)
	switch {
	case r.Kept > r.Entry:
		say("record", "none: %s", r.KeptFrom)
	default:
		say("record", "entries %d to %d, from %s", r.Kept, r.Entry, r.KeptFrom)
	}
	if cfg.DryRun {
		say("", "this was a dry run: nothing was done")
		return
	}
	say("done", "entry %d tells of it; hosts get work %s after the node was started", r.Appended, r.Fence+lease.Margin(r.Fence))
	say("next", "%s", strings.Join([]string{
		"start node " + string(cfg.Node) + " as ever",
		"move the data directories of all other nodes away",
		"copy " + nodeToken + " to them",
		"start them with --join",
	}, "; "))
}
