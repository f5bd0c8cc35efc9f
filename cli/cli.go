// Package cli is footplate on the command line: every operation of the
// catalog as a command, with tables and JSON, help and completion.
//
// The command tree, its help and its completion are generated from the catalog.
// The words after a command's name are parsed by package op, the same parser
// that reads chat and runbooks, so that the surfaces cannot differ; cobra finds
// the command and completes, and parses no operation's flags. Parsing and
// validation need no server.
//
// The package knows nothing of servers, agents and chats: main passes in what
// else the program can do, as commands of its own.
//
// # Exit codes
//
// They are fleet.CodeTable's, and frozen. What was interrupted by a signal ends
// with 130.
package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"footplate/controlplane/catalog"
	"footplate/fleet"
)

// Version is the version of the program; set when it is linked.
var Version = "dev"

// exitInterrupted is the exit code after a signal, as shells have it for SIGINT.
const exitInterrupted = 130

// Command is a command that main adds beside the operations. It is made when
// something is to be done with it, so that the others do not wait for it.
type Command struct {
	Name, Short string
	Make        func() *cobra.Command
	Reads       []Variable // of the environment, beside the flags
	// Offline, in the place of Make, is a form of the operation Name that asks no
	// server: it runs when the operation is given arguments by position.
	Offline func(ctx context.Context, s Surface, args []string) error
}

// Variable is a variable of the environment that is a setting. One that is read by
// Secret may be given as NAME_FILE too.
type Variable struct {
	Name, Help string
	Secret     bool
}

// variables are those that the CLI itself reads.
func variables() []Variable {
	return []Variable{
		{Name: "FOOTPLATE_ADDR", Help: "URLs of the nodes, with commas between"},
		{Name: "FOOTPLATE_TOKEN", Help: "who you are", Secret: true},
		{Name: "FOOTPLATE_CA", Help: "the cluster's ca.pem, or its folder, when the nodes have TLS"},
		{Name: "FOOTPLATE_CONTEXT", Help: "a YAML file with addr, token and ca, which are used where nothing else says them; footplate/context.yaml in the user's configuration folder when left out"},
		{Name: "NO_COLOR", Help: "no colors, when it is not empty"},
		{Name: "TERM", Help: "no colors, when it is dumb"},
	}
}

// Main runs the program and returns its exit code.
func Main(args []string, stdin io.Reader, stdout, stderr io.Writer, extra ...Command) int {
	p := &program{
		Session: Session{
			registry: catalog.All(),
			via:      "cli/" + Version,
			offline:  make(map[string]func(context.Context, Surface, []string) error),
		},
		in: stdin, out: stdout, err: stderr,
	}
	for _, c := range extra {
		if c.Offline != nil {
			p.offline[c.Name] = c.Offline
		} else {
			p.extra = append(p.extra, c)
		}
	}
	args, err := p.settings.leading(args)
	if err != nil {
		return p.fail(err)
	}
	if len(args) == 0 || len(args) == 1 && slices.Contains([]string{"help", "--help", "-h"}, args[0]) {
		if err := p.writeRootHelp(p.out); err != nil {
			return p.fail(err)
		}
		return 0
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // the second signal ends at once
	err = p.main(ctx, args)
	var f failed
	switch {
	case err == nil:
		return 0
	case errors.As(err, &f):
		return f.exit
	case ctx.Err() != nil && fleet.CodeOf(err) != fleet.CodeUnknown:
		fmt.Fprintln(stderr, "interrupted")
		return exitInterrupted
	}
	return p.fail(err)
}

// program is one run of the program.
type program struct {
	Session
	in       io.Reader
	out, err io.Writer
	extra    []Command
	root     *cobra.Command // made when an operation's name is not all there is
}

// main runs an operation, or else what cobra makes of args.
func (p *program) main(ctx context.Context, args []string) error {
	if o, rest, err := p.registry.Find(args); err == nil {
		_, err := p.run(ctx, p.surface(ctx), o, rest)
		return err
	}
	p.root = p.tree()
	p.root.SetArgs(args)
	p.root.SetIn(p.in)
	p.root.SetOut(p.out)
	p.root.SetErr(p.err)
	return p.root.ExecuteContext(context.WithValue(ctx, sessionKey{}, p))
}

// fail tells a person of an error, and returns its exit code.
func (p *program) fail(err error) int {
	WriteError(p.err, err, p.colors(p.err))
	return fleet.CodeOf(err).Meaning().Exit
}

// Told returns an error that ends the program with err's exit code, and is not
// said again.
func Told(err error) error {
	var f failed
	if errors.As(err, &f) {
		return f
	}
	return failed{fleet.CodeOf(err).Meaning().Exit}
}

// WriteError writes an error as every surface of ours words it, unless all was
// said of it already.
func WriteError(w io.Writer, err error, color bool) {
	var f failed
	if errors.As(err, &f) {
		return
	}
	e := fleet.AsError(err)
	var b strings.Builder
	if e.Plan != nil {
		b.WriteString("this would be done:\n")
		for _, l := range e.Plan.Lines {
			b.WriteString("  " + clean(l) + "\n")
		}
	}
	head := "error:"
	if color {
		head = "\x1b[31merror:\x1b[0m"
	}
	b.WriteString(head + " " + cleanLines(e.Msg) + "\n")
	if e.Hint != "" {
		b.WriteString("hint: " + cleanLines(e.Hint) + "\n")
	}
	// There is nobody left to tell when this fails.
	_, _ = io.WriteString(w, b.String())
}

// sessionKey is where a command's context holds the program.
type sessionKey struct{}

// SessionOf returns a session for a command that main has added, with the
// address and the token that the program was given, and the version of the
// surface: "chat" makes "chat/1.2.0".
func SessionOf(cmd *cobra.Command, surface string) (*Session, *Connection, error) {
	p, ok := cmd.Context().Value(sessionKey{}).(*program)
	if !ok {
		return nil, nil, fleet.Internalf("command %s does not run under cli.Main", cmd.Name())
	}
	s := p.Session
	s.via = surface + "/" + Version
	to, err := s.settings.endpoint()
	if err != nil {
		return nil, nil, err
	}
	conn, err := connect(to, s.via, s.settings.timeout.Std())
	if err != nil {
		return nil, nil, err
	}
	s.dialed = conn
	return &s, conn, nil
}

// Colors reports whether w takes colours: a terminal, unless --color or
// NO_COLOR say otherwise.
func Colors(cmd *cobra.Command, w io.Writer) bool {
	p, ok := cmd.Context().Value(sessionKey{}).(*program)
	return ok && p.colors(w)
}

func (p *program) colors(w io.Writer) bool {
	switch p.settings.color {
	case "never":
		return false
	case "always":
		return true
	}
	return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && isTerminal(w)
}

// isTerminal reports whether f is a terminal.
func isTerminal(f any) bool {
	file, ok := f.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// tree makes the tree of commands: for what cobra does, which is the commands
// that are no operations, completion, and words that stand in the wrong place.
func (p *program) tree() *cobra.Command {
	root := &cobra.Command{
		Use:           "footplate",
		Short:         "drive a fleet of CI hosts",
		Args:          cobra.ArbitraryArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return p.writeRootHelp(p.out)
			}
			return p.unknown(args)
		},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fleet.Invalidf("%s", err).WithHint("%s --help", cmd.CommandPath())
	})
	for _, f := range programFlags() {
		root.PersistentFlags().Var(programValue{&p.settings, f}, f.name, f.help)
		_ = root.RegisterFlagCompletionFunc(f.name, p.completeProgramFlag(f.name))
	}
	operationHelp := func(cmd *cobra.Command, args []string) {
		if err := p.help(p.out, strings.Fields(cmd.CommandPath())[1:]); err != nil {
			WriteError(p.err, err, false)
		}
	}
	defaultHelp := root.HelpFunc()
	root.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		if cmd == root {
			_ = p.writeRootHelp(p.out)
			return
		}
		defaultHelp(cmd, args)
	})

	nodes := map[string]*cobra.Command{"": root}
	for _, o := range p.registry.Ops() {
		if o.Hidden() {
			continue
		}
		parent, path := root, ""
		words := strings.Fields(o.Name)
		for _, w := range words[:len(words)-1] {
			path = strings.TrimSpace(path + " " + w)
			node := nodes[path]
			if node == nil {
				at := path
				node = &cobra.Command{
					Use: w, Short: p.nounSummary(at), Args: cobra.ArbitraryArgs,
					RunE: func(cmd *cobra.Command, args []string) error {
						return p.unknown(append(strings.Fields(at), args...))
					},
				}
				node.SetHelpFunc(operationHelp)
				nodes[path] = node
				parent.AddCommand(node)
			}
			parent = node
		}
		leaf := &cobra.Command{
			Use: words[len(words)-1], Short: o.Summary, DisableFlagParsing: true,
			RunE: func(cmd *cobra.Command, args []string) error {
				_, err := p.run(cmd.Context(), p.surface(cmd.Context()), o, args)
				return err
			},
			ValidArgsFunction: p.completer(o),
		}
		leaf.SetHelpFunc(operationHelp)
		parent.AddCommand(leaf)
	}
	root.AddCommand(p.versionCommand(), p.referenceCommand())
	root.SetHelpCommand(p.helpCommand())
	for _, x := range p.extra {
		c := x.Make()
		c.Use, c.Short = x.Name, x.Short
		root.AddCommand(c)
	}
	root.InitDefaultHelpFlag()
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		if c.Name() == "completion" {
			c.Short, c.Args, c.RunE = completionShort, cobra.ArbitraryArgs, completionNeedsShell
		}
		if !p.isNoun(c.Name()) {
			usageErrors(c)
		}
	}
	return root
}

// completionNeedsShell is what completion does when it is given no shell that it
// knows.
func completionNeedsShell(cmd *cobra.Command, args []string) error {
	e := fleet.Invalidf("completion needs a shell")
	if len(args) > 0 {
		e = fleet.Invalidf("there is no completion for %q", args[0])
	}
	return e.WithHint("one of bash, zsh, fish, powershell")
}

// usageErrors makes what cobra says of a command's arguments bad usage.
func usageErrors(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				if _, ok := err.(*fleet.Error); ok {
					return err
				}
				return fleet.Invalidf("%s", err).WithHint("%s --help", cmd.CommandPath())
			}
			return nil
		}
	}
	for _, sub := range c.Commands() {
		usageErrors(sub)
	}
}

// unknown says what is wrong with words that are no operation. Nothing is ever
// run on a guess.
func (p *program) unknown(words []string) error {
	if flag := words[len(words)-1]; len(words) > 1 && strings.HasPrefix(flag, "-") {
		words = words[:len(words)-1]
	}
	_, _, err := p.registry.Find(words)
	e := fleet.AsError(err)
	if e == nil {
		return fleet.Invalidf("there is no command %q", strings.Join(words, " ")).WithHint("footplate help lists them")
	}
	if len(words) > 0 && !slices.ContainsFunc(p.root.Commands(), func(c *cobra.Command) bool { return c.Name() == words[0] }) {
		var names []string
		for _, c := range p.root.Commands() {
			if !c.Hidden {
				names = append(names, c.Name())
			}
		}
		if near := fleet.Nearest(words[0], names); near != "" {
			return e.WithHint("did you mean %q?", near)
		}
	}
	return e
}

// surface is the shell that the program was started from.
func (p *program) surface(ctx context.Context) Surface {
	s := Surface{In: p.in, Out: p.out, Err: p.err, Color: p.colors(p.out), Person: isTerminal(p.out)}
	if isTerminal(p.in) {
		s.Ask = func(lines []string) (bool, error) { return ask(ctx, p.in, p.err, lines) }
	}
	return s
}

// ask shows a plan and asks whether to go on. Whoever interrupts has said no.
func ask(ctx context.Context, in io.Reader, out io.Writer, lines []string) (bool, error) {
	for _, l := range lines {
		fmt.Fprintln(out, "  "+l)
	}
	fmt.Fprint(out, "go on? [y/N] ")
	type answer struct {
		text string
		err  error
	}
	answered := make(chan answer, 1)
	go func() { // a read of a terminal cannot be called off: it ends with the program
		text, err := bufio.NewReader(in).ReadString('\n')
		answered <- answer{text, err}
	}()
	select {
	case <-ctx.Done():
		fmt.Fprintln(out)
		return false, ctx.Err()
	case a := <-answered:
		if a.err != nil && a.err != io.EOF {
			return false, fmt.Errorf("read the answer: %w", a.err)
		}
		switch strings.ToLower(strings.TrimSpace(a.text)) {
		case "y", "yes":
			return true, nil
		}
		return false, nil
	}
}

func (p *program) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: versionShort, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			_, err := fmt.Fprintf(p.out, "footplate %s (%s, %s/%s)\n", Version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}

// programValue lets cobra parse a flag of the program, for commands whose flags
// it parses.
type programValue struct {
	s *settings
	f programFlag
}

func (v programValue) String() string { return "" }

// Set is pflag's.
func (v programValue) Set(value string) error {
	if err := v.s.set(v.f.name, value); err != nil {
		return errors.New(err.Error())
	}
	return nil
}

// Type names the value in help.
func (v programValue) Type() string { return strings.ToLower(v.f.value) }
