package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"footplate/controlplane/api"
	"footplate/controlplane/catalog"
	"footplate/controlplane/op"
	"footplate/fleet"
)

// Session runs command lines on a cluster for one person on one surface. The
// shell makes one for its one command, the console chat one for all.
type Session struct {
	registry *op.Registry
	settings settings
	via      string
	offline  map[string]func(ctx context.Context, s Surface, args []string) error
	dialed   cluster // nil until something was asked
}

// cluster is the control plane as a session sees it.
type cluster interface {
	do(ctx context.Context, o *op.Op, args any, r api.Request) (api.Reply, error)
	query(ctx context.Context, o *op.Op, args any, stale bool) (answer json.RawMessage, staleFor string, err error)
	stream(ctx context.Context, o *op.Op, args any, r api.Request, stale bool) (io.ReadCloser, error)
}

// Surface is where a command was typed.
type Surface struct {
	In       io.Reader // names for "-", a build file for "-f -"
	Out, Err io.Writer
	// Ask shows what would be done and asks whether to do it; nil when there is
	// nobody to ask.
	Ask    func(lines []string) (bool, error)
	Color  bool // Out takes colours
	Person bool // Out is before somebody's eyes, not a file or a pipe
}

// Done is what came of a command line.
type Done struct {
	Entry fleet.EntryNo // that it left in the record; 0 when none
	Shown bool          // it has a line in the channel
}

// failed ends a command with an exit code of its own, after everything was
// said.
type failed struct{ exit int }

func (f failed) Error() string { return fmt.Sprintf("exit code %d", f.exit) }

// dial returns the cluster, whose address is looked up at the first use: help
// and bad usage need none.
func (s *Session) dial() (cluster, error) {
	if s.dialed == nil {
		to, err := s.settings.endpoint()
		if err != nil {
			return nil, err
		}
		c, err := connect(to, s.via, s.settings.timeout.Std())
		if err != nil {
			return nil, err
		}
		s.dialed = c
	}
	return s.dialed, nil
}

// Run runs one command line, cut into words: an operation, or help.
func (s *Session) Run(ctx context.Context, sf Surface, words []string) (Done, error) {
	if len(words) > 0 && words[0] == "help" {
		return Done{}, s.help(sf.Out, words[1:])
	}
	o, rest, err := s.registry.Find(words)
	if err != nil {
		return Done{}, err
	}
	one := *s // its flags hold for this line alone
	return one.run(ctx, sf, o, rest)
}

// run runs an operation with the words after its name.
func (s *Session) run(ctx context.Context, sf Surface, o *op.Op, words []string) (Done, error) {
	before := s.settings
	l, err := readLine(o, words, &s.settings)
	if err != nil {
		return Done{}, err
	}
	if s.dialed != nil && (s.settings.addr != before.addr || s.settings.token != before.token) {
		return Done{}, fleet.Invalidf("--addr and --token cannot be changed here").WithHint("leave, and give them when you come back")
	}
	if l.help {
		return Done{}, writeHelp(sf.Out, o)
	}
	if sf.In == nil {
		sf.In = strings.NewReader("")
	}
	if run := s.offline[o.Name]; run != nil && len(l.words) > 0 && !strings.HasPrefix(l.words[0], "--") {
		return Done{}, run(ctx, sf, l.words)
	}
	readIn, err := l.fill(sf.In)
	if err != nil {
		return Done{}, err
	}
	if readIn {
		sf.Ask = nil // the answer would have to come from where the names came
	}
	if o.Name == catalog.AuditVerify.Name {
		if l.words, err = anchorFiles(l.words); err != nil {
			return Done{}, err
		}
	}
	call, err := s.registry.ParseWords(append(strings.Fields(o.Name), l.words...))
	if err != nil {
		return Done{}, err
	}
	f, err := readFormat(o, call.Options.Output)
	if err != nil {
		return Done{}, err
	}
	switch o.Kind {
	case op.KindQuery:
		return Done{}, s.query(ctx, sf, call, f)
	case op.KindStream:
		return Done{}, s.stream(ctx, sf, call, f)
	}
	return s.mutate(ctx, sf, call, f, l.follow)
}

func (s *Session) query(ctx context.Context, sf Surface, call *op.Call, f format) error {
	c, err := s.dial()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.settings.limit())
	defer cancel()
	raw, staleFor, err := c.query(ctx, call.Op, call.Args, call.Options.Stale)
	if err != nil {
		return err
	}
	if call.Options.Stale {
		tellStale(sf, staleFor)
	}
	return printer{sf.Out, time.Now()}.answer(call.Op, raw, f)
}

func tellStale(sf Surface, staleFor string) {
	note := "stale: answered without a quorum"
	if staleFor != "" {
		note += "; the node heard a leader " + clean(staleFor) + " ago"
	}
	fmt.Fprintln(sf.Err, note)
}

func (s *Session) mutate(ctx context.Context, sf Surface, call *op.Call, f format, follow bool) (Done, error) {
	o, opts := call.Op, call.Options
	var done Done
	if a, ok := call.Args.(*catalog.BuildSubmitArgs); ok && follow && a.Count > 1 {
		return done, fleet.Invalidf("--follow goes with one build, not with --count %d", a.Count)
	}
	asks := o.Risk == op.Disruptive || o.Risk == op.Dangerous
	if asks && !opts.Yes && !opts.DryRun && sf.Ask == nil {
		return done, fleet.AsError(&fleet.Error{
			Code: fleet.CodeConfirm, Msg: fmt.Sprintf("%s is %s, and there is nobody to ask", o.Name, o.Risk),
		}).WithHint("repeat with --yes; --dry-run shows what it would do")
	}
	c, err := s.dial()
	if err != nil {
		return done, err
	}
	secret := secretOf(call)
	key := opts.Key
	if key == "" {
		id, err := uuid.NewV7()
		if err != nil {
			return done, fmt.Errorf("mint a key: %w", err)
		}
		key = id.String()
	}
	send := func(dryRun bool, confirm string) (api.Reply, error) {
		ctx, cancel := context.WithTimeout(ctx, s.settings.limit())
		defer cancel()
		return c.do(ctx, o, call.Args, api.Request{
			Key: key, Reason: opts.Reason, Incident: opts.Incident, DryRun: dryRun, Confirm: confirm, Via: s.via,
		})
	}

	if opts.DryRun {
		reply, err := send(true, "")
		if err != nil {
			return done, err
		}
		return done, printPlan(sf, reply, f)
	}
	confirm := ""
	switch {
	case opts.Yes:
		confirm = "yes"
	case asks:
		reply, err := send(true, "")
		if err != nil {
			return done, err
		}
		if confirm, err = confirmed(sf, o, reply.Plan); err != nil {
			return done, err
		}
	}
	reply, err := send(false, confirm)
	// What is safe as a rule can be disruptive as asked for: the server says so
	// and sends the plan along.
	if e := fleet.AsError(err); e != nil && e.Code == fleet.CodeConfirm && e.Plan != nil && confirm == "" && sf.Ask != nil {
		if confirm, err = confirmed(sf, o, e.Plan); err != nil {
			return done, err
		}
		reply, err = send(false, confirm)
	}
	if err = tellSecret(sf, secret, &reply, f, nameKey(err, key)); err != nil {
		return done, err
	}
	done = Done{Entry: reply.Entry, Shown: o.Show != ""}
	if err := printReply(sf, call, reply, f); err != nil {
		return done, err
	}
	if follow {
		return done, s.followSubmitted(ctx, sf, reply)
	}
	return done, nil
}

// nameKey makes sure that whoever does not know what came of a command learns
// how to find out.
func nameKey(err error, key string) error {
	e := fleet.AsError(err)
	if e == nil || e.Code != fleet.CodeUnknown || strings.Contains(e.Hint, key) {
		return err
	}
	return e.WithHint("repeat it with --idempotency-key %s: it tells what came of it, and never acts twice", key)
}

// confirmed shows a plan and returns the confirmation of exactly that plan.
func confirmed(sf Surface, o *op.Op, plan *fleet.Plan) (string, error) {
	if plan == nil {
		return "", fleet.Internalf("the server sent no plan of %s", o.Name)
	}
	lines := make([]string, len(plan.Lines))
	for i, l := range plan.Lines {
		lines[i] = clean(l)
	}
	yes, err := sf.Ask(lines)
	if err != nil {
		return "", err
	}
	if !yes {
		return "", &fleet.Error{Code: fleet.CodeConfirm, Msg: "not confirmed: nothing was done"}
	}
	return plan.Hash, nil
}

// printPlan says what would be done. Where names are asked for there are none
// yet, so that nothing is piped on.
func printPlan(sf Surface, reply api.Reply, f format) error {
	const note = "dry run: nothing was done"
	out := sf.Out
	switch f {
	case formatJSON, formatJSONL, formatYAML:
		reply.Text = note
		return printRaw(sf, reply, f)
	case formatName:
		out = sf.Err
	}
	if reply.Plan == nil {
		return fleet.Internalf("the server sent no plan of %s", reply.Op)
	}
	b := new(strings.Builder)
	b.WriteString("this would be done:\n")
	for _, l := range reply.Plan.Lines {
		b.WriteString("  " + clean(l) + "\n")
	}
	if _, err := io.WriteString(out, b.String()); err != nil {
		return err
	}
	_, err := fmt.Fprintf(sf.Err, note+" (plan %s)\n", clean(reply.Plan.Hash))
	return err
}

func printRaw(sf Surface, reply api.Reply, f format) error {
	raw, err := json.Marshal(reply)
	if err != nil {
		return fleet.Internalf("the reply cannot be written: %s", err)
	}
	p := printer{sf.Out, time.Now()}
	switch f {
	case formatYAML:
		return p.yaml(raw)
	case formatJSONL:
		return p.jsonl(raw)
	}
	return p.json(raw)
}

func printReply(sf Surface, call *op.Call, reply api.Reply, f format) error {
	switch f {
	case formatJSON, formatJSONL, formatYAML:
		return printRaw(sf, reply, f)
	case formatName:
		names, err := namesOf(call, reply)
		if err != nil {
			return err
		}
		for _, n := range names {
			if _, err := fmt.Fprintln(sf.Out, n); err != nil {
				return err
			}
		}
		return nil
	}
	text := cleanLines(reply.Text) + "\n"
	if reply.Entry != 0 {
		text += fmt.Sprintf("entry %d\n", reply.Entry)
	}
	if _, err := io.WriteString(sf.Out, text); err != nil {
		return err
	}
	if reply.Duplicate {
		_, err := fmt.Fprintln(sf.Err, "the key was used before: this is what came of it then, and nothing was done again")
		return err
	}
	return nil
}

// namesOf returns the names that -o name prints after a mutation: of what it
// made, else of what it was told to change.
func namesOf(call *op.Call, reply api.Reply) ([]string, error) {
	if call.Op.Name == catalog.BuildSubmit.Name {
		made, err := submitted(reply)
		if err != nil {
			return nil, err
		}
		var names []string
		for i := range max(made.Count, 1) {
			names = append(names, (made.Build + fleet.BuildID(i)).String())
		}
		return names, nil
	}
	raw, err := call.Op.Encode(call.Args)
	if err != nil {
		return nil, err
	}
	var args map[string]json.RawMessage
	if err := json.Unmarshal(raw, &args); err != nil {
		return nil, fleet.Internalf("arguments of %s: %s", call.Op.Name, err)
	}
	param := call.Op.Params[slices.IndexFunc(call.Op.Params, byPosition)]
	value, ok := args[param.Name]
	if !ok {
		return nil, nil // it was left out
	}
	list := []json.RawMessage{value}
	if param.Many {
		list = nil
		if err := json.Unmarshal(value, &list); err != nil {
			return nil, fleet.Internalf("arguments of %s: %s", call.Op.Name, err)
		}
	}
	var names []string
	for _, raw := range list {
		var s string
		if json.Unmarshal(raw, &s) != nil {
			s = string(raw)
		}
		names = append(names, clean(s))
	}
	return names, nil
}

func byPosition(p op.Param) bool { return p.Arg != "" }

func submitted(reply api.Reply) (catalog.Submitted, error) {
	var made catalog.Submitted
	if err := json.Unmarshal(reply.Result, &made); err != nil {
		return made, fleet.Internalf("the reply to %s cannot be read: %s", reply.Op, err)
	}
	return made, nil
}
