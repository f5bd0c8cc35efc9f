package main

import (
	"context"
	"io"
	"iter"

	"footplate/bot/console"
	"footplate/cli"
	"footplate/controlplane/state"
	"footplate/fleet"

	"github.com/spf13/cobra"
)

// chatCommand is "footplate chat": the console.
func chatCommand() *cobra.Command {
	return &cobra.Command{
		Long: `The channel live, and a prompt that takes the same commands as the shell, without the
word footplate. Tab completes, the arrows bring earlier commands back, Ctrl-C ends what
runs, "exit" or Ctrl-D ends the chat. Fed from a pipe or a file it plays a script to its end,
and its exit code is that of the first command that failed.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			session, conn, err := cli.SessionOf(cmd, "chat")
			if err != nil {
				return err
			}
			color := cli.Colors(cmd, cmd.OutOrStdout())
			failed, err := console.Run(cmd.Context(), console.Config{
				Commands: chat{session, conn, color},
				In:       cmd.InOrStdin(),
				Out:      cmd.OutOrStdout(),
				Color:    color,
				Welcome:  `The channel, and commands as in the shell. "help" lists them, Ctrl-D leaves.`,
			})
			if err != nil || failed == nil {
				return err
			}
			return cli.Told(failed)
		},
	}
}

// chat lets the console use what the command line has.
type chat struct {
	session *cli.Session
	conn    *cli.Connection
	color   bool
}

func (c chat) Run(ctx context.Context, words []string, out io.Writer, ask func([]string) (bool, error)) (fleet.EntryNo, bool, error) {
	done, err := c.session.Run(ctx, cli.Surface{Out: out, Err: out, Ask: ask, Color: c.color, Person: true}, words)
	return done.Entry, done.Shown, err
}

func (c chat) Complete(ctx context.Context, words []string) []string {
	return c.session.Complete(ctx, words)
}

func (c chat) Lines(ctx context.Context, last int) iter.Seq2[state.Line, error] {
	return c.conn.Lines(ctx, last)
}

func (c chat) WriteError(w io.Writer, err error) { cli.WriteError(w, err, c.color) }
