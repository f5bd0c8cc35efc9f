// Package console is the chat in a terminal: the channel live, and a prompt that
// takes the same commands as every other surface.
//
// On a terminal the prompt has editing, history and completion; lines of the
// channel that arrive while somebody types do not disturb it, and Ctrl-C ends the
// command that runs, or else the chat. With input from a pipe or a file it plays
// a script: each command is echoed, and its line in the channel awaited before
// the next, so that a transcript reads in the order of events.
//
// The package parses nothing and asks no server itself: what it needs is in
// Commands.
package console

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"iter"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
)

// Commands is what the console talks to.
type Commands interface {
	// Run runs a command line that is cut into words. It writes the answer to
	// out, and returns the entry that the command left, if any, and whether that
	// has a line in the channel. ask shows a plan, and asks whether to go on.
	Run(ctx context.Context, words []string, out io.Writer, ask func(plan []string) (bool, error)) (entry fleet.EntryNo, shown bool, err error)
	// Complete returns what the last word can become.
	Complete(ctx context.Context, words []string) []string
	// Lines yields the newest lines of the channel, at most last, and then those
	// that come, until ctx ends. After an error it goes on.
	Lines(ctx context.Context, last int) iter.Seq2[state.Line, error]
	// WriteError writes an error as every surface words it.
	WriteError(w io.Writer, err error)
}

// Config says where the console is.
type Config struct {
	Commands Commands
	In       io.Reader
	Out      io.Writer
	Color    bool
	Zone     *time.Location // nil means the local one
	Welcome  string         // shown first on a terminal
}

// The console's measures.
const (
	// Backlog is how many lines of the channel are shown at first.
	Backlog = 20
	// lineWait is how long a script waits for a command's line in the channel.
	lineWait = 3 * time.Second
)

// Run runs the chat until its input or ctx ends. Failures of commands are
// answers, not errors of the chat: a script goes on after them, and the first is
// returned as failed.
func Run(ctx context.Context, cfg Config) (failed, err error) {
	if cfg.Zone == nil {
		cfg.Zone = time.Local
	}
	c := &console{Config: cfg, seen: make(chan struct{})}
	var lines input
	if f, ok := cfg.In.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		t, err := openTerminal(ctx, c, f)
		if err != nil {
			return nil, err
		}
		defer t.close()
		lines, c.Out, c.live = t, t, true
	} else {
		c.Out = &shared{w: cfg.Out}
		lines = &script{c: c, in: bufio.NewReader(cfg.In)}
	}

	watch, stop := context.WithCancel(ctx)
	first := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { c.follow(watch, first) })
	defer wg.Wait()
	defer stop()
	if c.live && cfg.Welcome != "" {
		fmt.Fprintln(c.Out, cfg.Welcome)
	}
	if !c.live {
		// The backlog belongs before the first command of a script.
		select {
		case <-first:
		case <-ctx.Done():
		case <-time.After(lineWait):
		}
	}
	for {
		line, err := lines.read(ctx)
		if err == io.EOF {
			return c.failed, nil
		}
		if err != nil {
			return c.failed, err
		}
		if done := c.command(ctx, lines, line); done {
			return c.failed, nil
		}
	}
}

// input is where command lines come from.
type input interface {
	// read returns the next line; io.EOF at the end.
	read(ctx context.Context) (string, error)
	// confirm asks for a "yes".
	confirm(ctx context.Context) (bool, error)
	// running calls f with a context that ends when the person interrupts.
	running(ctx context.Context, f func(context.Context))
}

type console struct {
	Config
	live   bool  // on a terminal
	failed error // of a script's commands, the first

	mu   sync.Mutex
	upto fleet.EntryNo // the newest entry that was seen in the channel
	seen chan struct{} // closed and replaced at each line
}

// command runs one line, and reports whether it ends the chat.
func (c *console) command(ctx context.Context, lines input, line string) (done bool) {
	words, err := op.Split(line)
	if err != nil {
		c.fail(err)
		return false
	}
	if len(words) > 0 && words[0] == "footplate" {
		words = words[1:] // as it is pasted from a runbook
	}
	if len(words) == 0 {
		return false
	}
	if len(words) == 1 && (words[0] == "exit" || words[0] == "quit") {
		return true
	}
	lines.running(ctx, func(ctx context.Context) {
		ask := func(plan []string) (bool, error) {
			fmt.Fprintln(c.Out, "this would be done:")
			for _, l := range plan {
				fmt.Fprintln(c.Out, "  "+safe(l))
			}
			return lines.confirm(ctx)
		}
		entry, shown, err := c.Commands.Run(ctx, words, c.Out, ask)
		switch {
		case err != nil && ctx.Err() != nil:
			fmt.Fprintln(c.Out, "interrupted")
		case err != nil:
			c.fail(err)
		}
		if shown && entry != 0 && !c.live {
			c.await(ctx, entry)
		}
	})
	return false
}

// fail tells that a command has failed.
func (c *console) fail(err error) {
	c.Commands.WriteError(c.Out, err)
	if c.failed == nil && !c.live {
		c.failed = err
	}
}

// follow prints the lines of the channel. It closes first when the backlog has
// been printed, or nothing is to be had.
func (c *console) follow(ctx context.Context, first chan<- struct{}) {
	opened := sync.OnceFunc(func() { close(first) })
	defer opened()
	broken := false
	for l, err := range c.Commands.Lines(ctx, Backlog) {
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			if !broken {
				c.Commands.WriteError(c.Out, fleet.AsError(err))
			}
			broken = true
			opened()
			continue
		}
		broken = false
		if l.N == 0 {
			opened() // the end of the backlog
			continue
		}
		fmt.Fprintln(c.Out, FormatLine(l, c.Zone, c.Color))
		c.mu.Lock()
		c.upto = max(c.upto, l.Last)
		close(c.seen)
		c.seen = make(chan struct{})
		c.mu.Unlock()
	}
}

// await waits until the channel has shown an entry.
func (c *console) await(ctx context.Context, entry fleet.EntryNo) {
	ctx, cancel := context.WithTimeout(ctx, lineWait)
	defer cancel()
	for {
		c.mu.Lock()
		upto, seen := c.upto, c.seen
		c.mu.Unlock()
		if upto >= entry {
			return
		}
		select {
		case <-seen:
		case <-ctx.Done():
			return
		}
	}
}

// shared lets one write at a time pass.
type shared struct {
	mu sync.Mutex
	w  io.Writer
}

func (s *shared) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(b)
}

// script reads commands from a pipe or a file, and echoes them. Empty lines and
// lines that begin with # are left out.
type script struct {
	c  *console
	in *bufio.Reader
}

func (s *script) read(ctx context.Context) (string, error) {
	for ctx.Err() == nil {
		line, err := s.next()
		if err != nil {
			return "", err
		}
		if line != "" && line[0] != '#' {
			return line, nil
		}
	}
	return "", io.EOF
}

func (s *script) next() (string, error) {
	line, err := s.in.ReadString('\n')
	if err != nil && (err != io.EOF || line == "") {
		return "", err
	}
	line = strings.TrimSpace(line)
	if line != "" && line[0] != '#' {
		fmt.Fprintln(s.c.Out, "> "+safe(line))
	}
	return line, nil
}

func (s *script) confirm(context.Context) (bool, error) {
	fmt.Fprintln(s.c.Out, "type yes to confirm")
	line, err := s.next()
	if err == io.EOF {
		return false, nil
	}
	return line == "yes", err
}

func (s *script) running(ctx context.Context, f func(context.Context)) { f(ctx) }
