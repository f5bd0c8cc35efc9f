// Command footplate drives a fleet of CI hosts: the CLI, and the processes
// behind it, in one binary. Only it sees every package: what the command line
// cannot know of itself is passed in here.
package main

import (
	"fmt"
	"log/slog"
	"os"

	"footplate/cli"
	"footplate/fleet"
	"footplate/fleet/agent/attempt"
	"footplate/fleet/fault"

	"github.com/spf13/cobra"
)

func main() {
	// The supervisor is started for every attempt, as pid 1 of a namespace: it
	// goes its own short way.
	if len(os.Args) > 1 && os.Args[1] == "supervise" {
		os.Exit(attempt.Supervise(os.Args[2:], os.Stderr))
	}
	if err := fault.Check(); err != nil {
		fmt.Fprintf(os.Stderr, "error: %s\n", err)
		os.Exit(2)
	}
	os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr,
		cli.Command{Name: "audit verify", Offline: verifyFile},
		cli.Command{Name: "chat", Short: "the channel live, and a prompt that takes the same commands", Make: chatCommand},
		cli.Command{Name: "dev", Short: "run everything on this machine: nodes, a local pool with agents, an org and a token", Make: devCommand, Reads: serverReads()},
		cli.Command{Name: "server", Short: "run a node of the control plane", Make: serverCommand, Reads: serverReads()},
		cli.Command{Name: "bot", Short: "run the chat in Slack, by itself", Make: botCommand, Reads: botReads()},
		cli.Command{Name: "tls", Short: "make the certificates of a cluster", Make: tlsCommand},
		cli.Command{Name: "postgres", Short: "make the tables of the shared archive", Make: postgresCommand, Reads: postgresReads()},
		cli.Command{Name: "agent", Short: "run the agent of a CI host", Make: agentCommand},
	))
}

func badFlag(name, value, hint string) error {
	return fleet.Invalidf("--%s is %q", name, value).WithHint("%s", hint)
}

// logFlags adds --log-format and --log-level, and returns what makes the logger.
func logFlags(c *cobra.Command) func() (*slog.Logger, error) {
	format := c.Flags().String("log-format", "json", "json or text")
	level := c.Flags().String("log-level", "info", "debug, info, warn or error")
	return func() (*slog.Logger, error) {
		var l slog.Level
		if err := l.UnmarshalText([]byte(*level)); err != nil {
			return nil, badFlag("log-level", *level, "debug, info, warn or error")
		}
		opts := &slog.HandlerOptions{Level: l}
		switch *format {
		case "json":
			return slog.New(slog.NewJSONHandler(os.Stderr, opts)), nil
		case "text":
			return slog.New(slog.NewTextHandler(os.Stderr, opts)), nil
		}
		return nil, badFlag("log-format", *format, "json or text")
	}
}
