package page

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"footplate/controlplane/catalog"
	"footplate/controlplane/client"
	"footplate/controlplane/op"
	"footplate/fleet"
)

// answer is what came of a command line.
type answer struct {
	Line string
	CSRF string

	Err   *fleet.Error
	Text  string
	Entry fleet.EntryNo
	Note  string // beside the answer
	Shape *shape
	Pre   string
	Help  *help
	Links []link

	// Plan is what would be done; with Key and Confirm, the line can be run.
	Plan    []string
	Dry     bool   // it was a dry run: there is nothing to confirm
	Confirm string // the plan's hash
	Key     string
	Again   bool // the outcome is unknown: ask again with the same key

	Prefill string // stands in the prompt
}

type link struct{ Text, Href string }

// maxShown bounds what a stream may write to the page.
const maxShown = 64 << 10

// run runs a command line: POST /run.
func (p *Page) run(w http.ResponseWriter, r *http.Request, v *visit) error {
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
	defer cancel()
	a := v.answer(ctx, r.PostFormValue("line"), r.PostFormValue("key"), r.PostFormValue("confirm"), false)
	p.show(w, r, v, a)
	return nil
}

// askPage answers a question: GET /ask?line=. What changes something it does
// not run, but only puts into the prompt: a link must not act.
func (p *Page) askPage(w http.ResponseWriter, r *http.Request, v *visit) error {
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
	defer cancel()
	p.show(w, r, v, v.answer(ctx, r.URL.Query().Get("line"), "", "", true))
	return nil
}

func (p *Page) helpPage(w http.ResponseWriter, r *http.Request, v *visit) error {
	p.show(w, r, v, v.answer(r.Context(), "help "+r.URL.Query().Get("of"), "", "", true))
	return nil
}

func (p *Page) show(w http.ResponseWriter, r *http.Request, v *visit, a answer) {
	status := http.StatusOK
	if a.Err != nil {
		status = a.Err.Code.Meaning().HTTP
	}
	if piece(r) {
		p.views.piece(w, status, "answer", a)
		return
	}
	p.views.page(w, status, "ask", v, a.Line, a)
}

// answer runs a command line. With reading, only what changes nothing is run.
func (v *visit) answer(ctx context.Context, line, key, confirm string, reading bool) answer {
	a := answer{Line: strings.TrimSpace(line), CSRF: v.CSRF}
	if err := v.fill(ctx, &a, key, confirm, reading); err != nil {
		a.Err = fleet.AsError(err)
	}
	return a
}

func (v *visit) fill(ctx context.Context, a *answer, key, confirm string, reading bool) error {
	words, err := op.Split(a.Line)
	if err != nil {
		return err
	}
	if len(words) > 0 && words[0] == "footplate" {
		words = words[1:] // as it is pasted from a runbook
	}
	if len(words) > 0 && words[0] == "help" {
		a.Help, err = v.help(words[1:])
		return err
	}
	call, err := v.page.cfg.Registry.ParseWords(words)
	if err != nil {
		return err
	}
	out := call.Options.Output
	if !slices.Contains([]string{"", "table", "wide", "json"}, out) {
		return fleet.Invalidf("the page does not know --output %s", out).WithHint("table, wide or json; the command line knows more")
	}
	switch {
	case call.Op.Kind == op.KindQuery:
		return v.query(ctx, a, call)
	case call.Op.Logged() && reading:
		a.Note, a.Prefill = "this changes something: it stands in the prompt, and Enter runs it", a.Line
		return nil
	case call.Op.Kind == op.KindStream:
		return v.stream(ctx, a, call)
	}
	return v.mutate(ctx, a, call, key, confirm)
}

func (v *visit) query(ctx context.Context, a *answer, call *op.Call) error {
	raw, age, err := v.api.Query(ctx, call.Op, call.Args, call.Options.Stale)
	if err != nil {
		a.offerStale(call, err)
		return err
	}
	if call.Options.Stale {
		a.Note = "stale: answered without a quorum"
		if age != "" {
			a.Note += "; node " + string(v.Node) + " heard a leader " + string(age) + " ago"
		}
	}
	if call.Options.Output == "json" {
		a.Pre = indent(raw)
		return nil
	}
	s, err := shapeOf(call.Op, raw, call.Options.Output == "wide")
	a.Shape = &s
	return err
}

// offerStale links to what can be answered without a quorum.
func (a *answer) offerStale(call *op.Call, err error) {
	if fleet.CodeOf(err) == fleet.CodeUnavailable && !call.Options.Stale {
		a.Links = append(a.Links, link{"answer from what this node has", ask(a.Line + " --stale")})
	}
}

func indent(raw json.RawMessage) string {
	var b bytes.Buffer
	if json.Indent(&b, raw, "", "  ") != nil {
		return visible(string(raw))
	}
	return visible(b.String())
}

// stream shows the beginning of what a stream operation writes. Logs have pages
// of their own.
func (v *visit) stream(ctx context.Context, a *answer, call *op.Call) error {
	if args, ok := call.Args.(*catalog.BuildLogsArgs); ok {
		to := url.URL{Path: "/builds/" + args.Build.String(), Fragment: "log"}
		if args.Task != "" {
			to.RawQuery = url.Values{"task": {args.Task}}.Encode()
		}
		a.Links = append(a.Links, link{"the log of build " + args.Build.String(), to.String()})
		return nil
	}
	if call.Op.Logged() {
		return fleet.Invalidf("%s writes a file: the page cannot take it", call.Op.Name).WithHint("run it from the command line: footplate %s", call.Op.Name)
	}
	r, err := v.api.Stream(ctx, call.Op, call.Args, client.Options{Stale: call.Options.Stale})
	if err != nil {
		a.offerStale(call, err)
		return err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxShown+1))
	if err != nil {
		return err
	}
	if call.Options.Stale {
		a.Note = "stale: answered without a quorum"
	}
	if len(b) > maxShown {
		b = b[:bytes.LastIndexByte(b[:maxShown], '\n')+1]
		a.Note = "this is only the beginning: the command line writes all of it"
	}
	if !utf8.Valid(b) {
		return fleet.Invalidf("%s writes no text: the page cannot show it", call.Op.Name).WithHint("run it from the command line")
	}
	a.Pre = visible(string(b))
	return nil
}

// mutate runs what changes something. What is disruptive is shown first, and
// run when the plan's hash comes back and is still the plan.
func (v *visit) mutate(ctx context.Context, a *answer, call *op.Call, key, confirm string) error {
	o, opts := call.Op, call.Options
	if opts.Key != "" {
		key = opts.Key
	}
	if key == "" || len(key) > 128 {
		key = newKey()
	}
	send := client.Options{Key: key, Reason: opts.Reason, Incident: opts.Incident, Confirm: confirm}
	if opts.Yes && confirm == "" {
		send.Confirm = "yes"
	}
	send.DryRun = opts.DryRun || send.Confirm == "" && (o.Risk == op.Disruptive || o.Risk == op.Dangerous)
	reply, err := v.api.Do(ctx, o, call.Args, send)
	if err != nil {
		e := fleet.AsError(err)
		switch {
		case e.Code == fleet.CodeUnknown:
			// The same words again, with the same key, never act twice.
			a.Key, a.Confirm, a.Again = key, confirm, true
			e = e.WithHint("ask again: with the same key it never acts twice")
		case e.Plan != nil && e.Code == fleet.CodeConfirm:
			// What is safe as a rule can be disruptive as asked for.
			a.Plan, a.Confirm, a.Key = e.Plan.Lines, e.Plan.Hash, key
			return nil
		case e.Plan != nil:
			// The plan has changed: the new one can be confirmed.
			a.Plan, a.Confirm, a.Key = e.Plan.Lines, e.Plan.Hash, newKey()
		}
		return e
	}
	if send.DryRun {
		if reply.Plan == nil {
			return fleet.Internalf("the server sent no plan of %s", o.Name)
		}
		a.Plan, a.Dry = reply.Plan.Lines, opts.DryRun
		if !a.Dry {
			a.Confirm, a.Key = reply.Plan.Hash, key
		}
		return nil
	}
	a.Text, a.Entry = visible(reply.Text), reply.Entry
	if reply.Duplicate {
		a.Note = "the key was used before: this is what came of it then, and nothing was done again"
	}
	if opts.Output == "json" {
		b, err := json.Marshal(reply)
		if err != nil {
			return fleet.Internalf("the reply cannot be written: %s", err)
		}
		a.Pre = indent(b)
	}
	var made catalog.Submitted
	if o.Name == catalog.BuildSubmit.Name && json.Unmarshal(reply.Result, &made) == nil && made.Build != 0 {
		a.Links = append(a.Links, link{"build " + made.Build.String(), "/builds/" + made.Build.String()})
	}
	return nil
}

// newKey mints the key of a command.
func newKey() string { return "page-" + rand.Text() }

// help explains an operation, or lists those of a noun, or all.
type help struct {
	Title string
	Op    *op.Op
	Usage string
	Args  []op.Param
	Flags []op.Param
	Opts  []op.Option
	Ops   []helpLine
	Roots bool // of everything: the keys are explained too
}

type helpLine struct {
	Name, Summary string
	Needs         fleet.Role // that the visitor lacks
}

func (v *visit) help(words []string) (*help, error) {
	registry := v.page.cfg.Registry
	name := strings.Join(words, " ")
	if o, ok := registry.Get(name); ok && !o.Hidden() {
		h := &help{Title: o.Name, Op: o, Usage: o.Usage()}
		for _, param := range o.Params {
			switch {
			case param.Arg != "":
				h.Args = append(h.Args, param)
			case param.Flag != "" && param.Type != "object":
				h.Flags = append(h.Flags, param)
			}
		}
		for _, opt := range op.OptionList() {
			if o.Takes(opt.Flag) {
				h.Opts = append(h.Opts, opt)
			}
		}
		return h, nil
	}
	h := &help{Title: "commands", Roots: name == ""}
	if name != "" {
		h.Title = name
	}
	for _, o := range registry.Ops() {
		if !o.Hidden() && (name == "" || strings.HasPrefix(o.Name, name+" ")) {
			l := helpLine{Name: o.Name, Summary: o.Summary}
			if r := v.session.Role; r != "" && !r.May(o.Role) {
				l.Needs = o.Role
			}
			h.Ops = append(h.Ops, l)
		}
	}
	if len(h.Ops) > 0 {
		return h, nil
	}
	o, rest, err := registry.Find(words)
	if err != nil {
		var e *fleet.Error
		if errors.As(err, &e) && strings.HasPrefix(e.Hint, "footplate help") {
			err = e.WithHint("help lists them")
		}
		return nil, err
	}
	return nil, fleet.Invalidf("%s has no part %q to explain", o.Name, strings.Join(rest, " ")).WithHint("help %s", o.Name)
}
