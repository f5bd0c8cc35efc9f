package bot

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"footplate/controlplane/api"
	"footplate/controlplane/catalog"
	"footplate/controlplane/client"
	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
	"footplate/fleet/fault"
)

// The measures of answers.
const (
	// maxCode and maxLines are how much of a long output stands in the answer
	// itself: what a phone can show.
	maxCode  = 2000
	maxLines = 30
	// maxSnippet is how much of it is uploaded.
	maxSnippet = 1 << 20
	// askAgain is how long the bot asks what came of a command, and patience
	// what one such question may take.
	askAgain = 5 * time.Minute
	patience = 10 * time.Second
)

// run is one command of one person.
type run struct {
	*Bot
	talk *talk
	by   fleet.Principal
	line string
	call *op.Call
	key  string
	// confirm is the hash of the plan that was confirmed, or "yes".
	confirm string
	// meant says that the person was asked whether it is a second press of a key.
	meant bool
}

func (r *run) query(ctx context.Context) {
	within, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	raw, staleFor, err := r.API.Query(within, r.by, r.call.Op, r.call.Args, r.call.Options.Stale)
	if err != nil {
		r.refuse(ctx, err)
		return
	}
	out, err := rows(r.call.Op, raw, r.call.Options.Output, time.Now().In(r.Zone))
	if err != nil {
		r.talk.fail(ctx, err)
		return
	}
	r.long(ctx, Post{Note: r.stale(staleFor)}, out, false)
}

// stale says that an answer was asked for without a quorum, if it was.
func (r *run) stale(heard client.Stale) string {
	switch {
	case !r.call.Options.Stale:
		return ""
	case heard == "":
		return "stale: answered without a quorum"
	}
	return "stale: answered without a quorum; the node heard a leader " + string(heard) + " ago"
}

// refuse answers a question that got none.
func (r *run) refuse(ctx context.Context, err error) {
	if c := code(err); c == fleet.CodeUnavailable || c == fleet.CodeUnknown {
		r.talk.giveBack(ctx, fleet.Unavailablef("the control plane does not answer: nothing was done").WithHint("try again in a moment"))
		return
	}
	r.talk.fail(ctx, err)
}

// long answers with a text of any length: one sentence as a sentence, lines as
// lines, and what is too long as its beginning (or end) with all of it in a
// snippet.
func (r *run) long(ctx context.Context, p Post, text string, end bool) {
	text = r.Redactor.Redact(cleanLines(text)) // before it is cut: half a secret is not known
	text = strings.TrimRight(text, "\n")
	if !strings.Contains(text, "\n") && len(text) < 300 && r.call.Options.Output == "" {
		p.Text = text
		r.talk.say(ctx, p)
		return
	}
	take := cut
	which := "first"
	if end {
		take, which = cutEnd, "last"
	}
	head, shown, all := take(text, maxCode, maxLines)
	if shown == 0 && all > 0 { // one very long line
		head = within(text, maxCode)
		shown = 1
	}
	p.Code = head
	if shown == all && len(head) >= len(text) {
		r.talk.say(ctx, p)
		return
	}
	note := fmt.Sprintf("the %s %d of %d lines; all of them in the snippet", which, shown, all)
	if r.talk.private {
		note = fmt.Sprintf("the %s %d of %d lines; all of them in the snippet that was sent to you", which, shown, all)
	}
	if len(text) > maxSnippet {
		text, _, _ = take(text, maxSnippet, len(text))
		note = fmt.Sprintf("the %s %d of %d lines; more in the snippet, and all of them in the shell: footplate %s", which, shown, all, r.line)
	}
	if p.Note != "" {
		note = p.Note + "\n" + note
	}
	p.Note = note
	if !r.talk.say(ctx, p) {
		return
	}
	name := strings.ReplaceAll(r.call.Op.Name, " ", "-") + ".txt"
	if err := r.Surface.Upload(ctx, r.talk.place(), r.talk.private, name, text); err != nil {
		r.Log.Warn("a snippet was not uploaded", "op", r.call.Op.Name, "err", err)
		p.Note = fmt.Sprintf("the %s %d of %d lines; the rest could not be uploaded, the shell has it: footplate %s", which, shown, all, r.line)
		r.talk.say(ctx, p)
	}
}

// place is where answers to the answer go: into its thread.
func (t *talk) place() Place {
	at := t.at
	if t.posted && t.ref.Thread != "" {
		at.Channel, at.Thread = t.ref.Channel, t.ref.Thread
	}
	return at
}

func (r *run) stream(ctx context.Context) {
	o := r.call.Op
	if o.Logged() {
		r.talk.fail(ctx, fleet.Invalidf("%s writes a file, and a chat has none", o.Name).WithHint("in the shell: footplate %s", r.line))
		return
	}
	if logs, ok := r.call.Args.(*catalog.BuildLogsArgs); ok {
		if logs.Follow {
			r.followLog(ctx)
			return
		}
		text, err := r.log(ctx)
		if err != nil && text == "" {
			r.refuse(ctx, err)
			return
		}
		p := Post{Note: r.stale("")}
		if err != nil {
			p.Note = join(p.Note, "the log broke off: "+fleet.AsError(err).Msg)
		}
		if text == "" {
			text = "no output yet"
		}
		r.long(ctx, p, text, true)
		return
	}
	within, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	in, err := r.API.Stream(within, r.by, o, r.call.Args, r.call.Options.Stale)
	if err != nil {
		r.refuse(ctx, err)
		return
	}
	defer in.Close()
	b, err := io.ReadAll(io.LimitReader(in, maxSnippet+1))
	switch {
	case err != nil:
		r.refuse(ctx, err)
	case len(b) > maxSnippet || !utf8.Valid(b):
		r.talk.fail(ctx, fleet.Invalidf("%s gives more than a chat can hold", o.Name).WithHint("in the shell: footplate %s", r.line))
	default:
		r.long(ctx, Post{Note: r.stale("")}, string(b), false)
	}
}

// log reads the log of a build, as far as there is one.
func (r *run) log(ctx context.Context) (string, error) {
	within, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var l logText
	err := r.readLog(within, patience/2, l.add)
	return l.text(), err
}

// readLog calls f with each chunk of the build's log. When it breaks it is asked for
// again, for as long as most: but not the first time, when somebody waits for an
// answer.
func (r *run) readLog(ctx context.Context, most time.Duration, f func(client.LogPiece)) error {
	args, _ := r.call.Args.(*catalog.BuildLogsArgs)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	opened := false
	l := client.LogReader{Patience: most, Open: func(ctx context.Context, a catalog.BuildLogsArgs) (io.ReadCloser, error) {
		in, err := r.API.Stream(ctx, r.by, r.call.Op, &a, r.call.Options.Stale)
		if err != nil && !opened {
			stop()
		}
		opened = opened || err == nil
		return in, err
	}}
	return l.Read(ctx, *args, func(p client.LogPiece) error {
		f(p)
		return nil
	})
}

// logText is the newest part of a log. Reader and writer may be two.
type logText struct {
	mu  sync.Mutex
	b   []byte
	has fleet.AttemptID // whose output is last in b
}

func (l *logText) add(c client.LogPiece) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.Attempt != l.has {
		if len(l.b) > 0 && l.b[len(l.b)-1] != '\n' {
			l.b = append(l.b, '\n')
		}
		l.b = fmt.Appendf(l.b, "-- task %s, attempt %d on host %s\n", c.Task, c.Try, c.Host)
		l.has = c.Attempt
	}
	if c.Missing > 0 {
		l.b = fmt.Appendf(l.b, "-- chunks %d to %d are not there\n", c.N-c.Missing, c.N-1)
	}
	l.b = append(l.b, c.Data...)
	if over := len(l.b) - 2*maxSnippet; over > 0 {
		l.b = slices.Clone(l.b[over+maxSnippet:])
	}
}

func (l *logText) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.ToValidUTF8(string(l.b), "\uFFFD")
}

// dryRun shows what a command would do.
func (r *run) dryRun(ctx context.Context) {
	within, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	opts := r.options("")
	opts.DryRun = true
	reply, err := r.API.Do(within, r.by, r.call.Op, r.call.Args, opts)
	switch {
	case err != nil:
		r.refuse(ctx, err)
	case reply.Plan == nil:
		r.talk.fail(ctx, fleet.Internalf("the server sent no plan of %s", r.call.Op.Name))
	default:
		r.talk.say(ctx, Post{
			Text: "this would be done:", Code: strings.Join(reply.Plan.Lines, "\n"), Note: "dry run: nothing was done (plan " + reply.Plan.Hash + ")",
		})
	}
}

func (r *run) options(confirm string) client.Options {
	o, repeat := r.call.Options, state.RepeatAsk
	if r.meant {
		repeat = state.RepeatMeant
	}
	return client.Options{Key: r.key, Reason: o.Reason, Incident: o.Incident, Confirm: confirm, Repeat: repeat}
}

// ask answers with a question and its two buttons.
func (r *run) ask(ctx context.Context, why ask, plan string, p Post) {
	t := ticket{
		Ask: why, Line: r.line, Key: r.key, Plan: plan, By: r.by, Meant: r.meant,
		Until: time.Now().Add(ticketLife).Unix(),
	}
	no, err := r.seal(t)
	if err != nil {
		r.talk.fail(ctx, err)
		return
	}
	t.Accept = true
	yes, err := r.seal(t)
	if err != nil {
		r.talk.fail(ctx, err)
		return
	}
	label := map[ask]string{askConfirm: "Confirm", askRepeat: "Run it again", askLate: "Run it now"}[why]
	p.Buttons = []Button{{label, yes, true}, {"Cancel", no, false}}
	if p.Note != "" {
		p.Note += "\n"
	}
	p.Note += fmt.Sprintf("nothing is done until you decide; the buttons are good for %s, and only for you", fleet.DurationOf(ticketLife))
	r.talk.say(ctx, p)
}

// click does what a button says.
func (b *Bot) click(ctx context.Context, k *talk, c Click, t ticket) {
	k.echo = t.Line
	words, err := split(t.Line)
	if err != nil {
		k.fail(ctx, err)
		return
	}
	call, err := b.parse(words)
	if err != nil {
		k.fail(ctx, err) // another version made the button
		return
	}
	r := run{
		Bot: b, talk: k, by: c.From, line: t.Line, call: call, key: t.Key,
		confirm: cmp.Or(t.Plan, confirmation(call)), meant: t.Meant || t.Ask == askRepeat,
	}
	if !t.Accept {
		// Another replica may have taken the other button a moment ago.
		if e, ok := r.done(ctx); ok {
			k.say(ctx, Post{Text: e.Text, Note: fmt.Sprintf("it was done before you cancelled: entry %d", e.N)})
			return
		}
		k.say(ctx, Post{Text: "cancelled: nothing was done"})
		return
	}
	if time.Now().Unix() > t.Until {
		k.fail(ctx, fleet.Conflictf("the question is more than %s old: nothing was done", fleet.DurationOf(ticketLife)).WithHint("give the command again"))
		return
	}
	r.mutate(ctx)
}

// done returns the entry of this very command, if it was done. Without an answer
// there is none: the record is asked to spare people trouble, not to keep a
// promise.
func (r *run) done(ctx context.Context) (*catalog.EntryDetail, bool) {
	ctx, cancel := context.WithTimeout(ctx, r.Budget/2)
	defer cancel()
	var rows []catalog.EntryRow
	if !r.look(ctx, catalog.AuditTail, &catalog.AuditTailArgs{Limit: 5, By: r.by, Op: r.call.Op.Name}, &rows) {
		return nil, false
	}
	for i := len(rows) - 1; i >= 0; i-- {
		var e catalog.EntryDetail
		if rows[i].Outcome == fleet.EntryDone && r.look(ctx, catalog.AuditShow, &catalog.AuditShowArgs{Entry: rows[i].N}, &e) && e.Key == r.key {
			return &e, true
		}
	}
	return nil, false
}

func (r *run) look(ctx context.Context, o *op.Op, args, into any) bool {
	raw, _, err := r.API.Query(ctx, r.by, o, args, false)
	return err == nil && json.Unmarshal(raw, into) == nil
}

// mutate runs a command, and says what came of it.
func (r *run) mutate(ctx context.Context) {
	within, cancel := context.WithTimeout(ctx, r.Budget)
	fault.Here(fault.BotParsed)
	reply, err := r.API.Do(within, r.by, r.call.Op, r.call.Args, r.options(r.confirm))
	fault.Here(fault.BotProposed)
	cancel()
	if code(err) == fleet.CodeUnknown {
		r.talk.say(ctx, Post{
			Text: fmt.Sprintf("it is not known yet whether %s was done", r.call.Op.Name),
			Note: "asking again with the same key, which never acts twice; the answer follows",
		})
		reply, err = r.insist(ctx)
	}
	r.answer(ctx, reply, err)
}

// insist asks what came of a command until it is known, or for long enough.
func (r *run) insist(ctx context.Context) (api.Reply, error) {
	until := time.Now().Add(askAgain)
	for pause := 500 * time.Millisecond; ; pause = min(2*pause, 15*time.Second) {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return api.Reply{}, r.notKnown()
		}
		within, cancel := context.WithTimeout(ctx, patience)
		reply, err := r.API.Do(within, r.by, r.call.Op, r.call.Args, r.options(r.confirm))
		cancel()
		// "Nothing was done" is true of this question, not of the first.
		if c := code(err); c != fleet.CodeUnknown && c != fleet.CodeUnavailable {
			reply.Duplicate = false // it is the first that anybody says of it
			return reply, err
		}
		if time.Now().After(until) {
			return api.Reply{}, r.notKnown()
		}
	}
}

func (r *run) notKnown() error {
	return fleet.Unknownf("it is not known whether %s was done", r.call.Op.Name).
		WithHint("footplate audit tail tells; or repeat it with --idempotency-key %s, which never acts twice", r.key)
}

// answer says what came of a command.
func (r *run) answer(ctx context.Context, reply api.Reply, err error) {
	if err == nil {
		p := Post{Text: reply.Text}
		if reply.Entry != 0 {
			p.Note = fmt.Sprintf("entry %d", reply.Entry)
		}
		if reply.Duplicate && !r.talk.posted && !r.talk.private {
			// Whoever was first under the key answers, if it is alive.
			if !r.talk.first(ctx, r.Grace) {
				return
			}
		}
		if r.talk.say(ctx, p) {
			r.follow(ctx, p, reply)
		}
		return
	}
	e := fleet.AsError(err)
	switch {
	case e.Code == fleet.CodeUnavailable:
		nothing := fleet.Unavailablef("%s", e.Msg).WithHint("try again, or use the shell: footplate %s", r.line)
		if !strings.Contains(e.Msg, "nothing was done") {
			nothing.Msg += ": nothing was done"
		}
		r.talk.giveBack(ctx, nothing)
	case e.Plan == nil && e.Code == fleet.CodeConfirm:
		// What was confirmed stays confirmed.
		r.ask(ctx, askRepeat, r.confirm, Post{Text: e.Msg + ". Do it again?"})
	case e.Plan != nil && (e.Code == fleet.CodeConfirm || e.Code == fleet.CodeConflict):
		p := Post{Text: "this would be done:", Code: strings.Join(e.Plan.Lines, "\n")}
		if e.Code == fleet.CodeConflict {
			p.Text = e.Msg + "\nnow this would be done:"
		}
		r.ask(ctx, askConfirm, e.Plan.Hash, p)
	default:
		r.talk.fail(ctx, e)
	}
}
