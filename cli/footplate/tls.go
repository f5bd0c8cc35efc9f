package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"footplate/controlplane/certs"
	"footplate/fleet"

	"github.com/spf13/cobra"
)

// tlsCommand is "footplate tls": the certificates of a cluster.
func tlsCommand() *cobra.Command {
	c := &cobra.Command{
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return fleet.Invalidf("tls needs to be told what to do").WithHint("footplate tls init DIR --node n1=HOST[,HOST]")
		},
	}
	c.AddCommand(tlsInit())
	return c
}

func tlsInit() *cobra.Command {
	var nodes []string
	c := &cobra.Command{
		Use:   "init DIR --node NAME=HOST[,HOST] ...",
		Short: "make the certificates of the nodes, or renew them",
		Long: `Makes, in DIR, the authority of a cluster and a folder for each node, with all that
"footplate server --tls" needs. HOST is each name or address that the node is called by:

  footplate tls init certs --node n1=10.0.0.1 --node n2=10.0.0.2 --node n3=10.0.0.3,n3.example.com

Run again, it renews the certificates, or makes those of more nodes; the authority stays.
A node takes new files within seconds, without a restart. Certificates of nodes are good for a
year; agents renew their own. DIR/ca.key is needed here alone: keep DIR in a safe place.`,
		Args: cobra.ExactArgs(1),
	}
	c.Flags().StringArrayVar(&nodes, "node", nil, "NAME=HOST[,HOST]: a node, and what it is called by")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		named, err := parseNodes(nodes)
		if err != nil {
			return err
		}
		dir := args[0]
		made, err := certs.Init(dir, named, time.Now())
		if err != nil {
			return err
		}
		out := cmd.OutOrStdout()
		say := func(format string, args ...any) { fmt.Fprintf(out, format+"\n", args...) }
		if made.Authority {
			say("made the authority of a cluster in %s", dir)
		} else {
			say("signed by the authority that is in %s", dir)
		}
		for _, folder := range made.Nodes {
			name := filepath.Base(folder)
			say("made %s for node %s, at %s", folder, name, strings.Join(named[name], ", "))
		}
		say("")
		say("Copy each folder to its node, for the node's user alone: footplate server --tls FOLDER")
		say("Copy %s to people and agents: footplate --ca FILE, FOOTPLATE_CA, footplate agent --tls FOLDER", filepath.Join(dir, "ca.pem"))
		say("Keep %s here: whoever has it can make nodes", filepath.Join(dir, "ca.key"))
		return nil
	}
	return c
}

// parseNodes reads NAME=HOST[,HOST].
func parseNodes(list []string) (map[string][]string, error) {
	nodes := make(map[string][]string)
	for _, s := range list {
		name, hosts, ok := strings.Cut(s, "=")
		if !ok {
			return nil, badFlag("node", s, "NAME=HOST[,HOST], for example n1=10.0.0.1")
		}
		if _, twice := nodes[name]; twice {
			return nil, badFlag("node", s, "each node once, with all its hosts: "+name+"=HOST,HOST")
		}
		for h := range strings.SplitSeq(hosts, ",") {
			h = strings.TrimSpace(h)
			if strings.ContainsAny(h, " /") || strings.Count(h, ":") == 1 {
				return nil, badFlag("node", s, "a host name or an address, without scheme and port")
			}
			nodes[name] = append(nodes[name], h)
		}
		slices.Sort(nodes[name])
	}
	return nodes, nil
}
