package bot

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"footplate/controlplane/api"
	"footplate/controlplane/catalog"
	"footplate/fleet"
)

// submit is the operation that a chat always follows.
const submit = "build submit"

const (
	// followFor is how long a card is kept up to date.
	followFor = 2 * time.Hour
	// followPatience is how long a log that is followed is asked for again while no
	// node has more of it, as in the shell.
	followPatience = 3 * time.Minute
)

// progress is how far a long operation is.
type progress struct {
	text   string   // of the card
	detail []string // lines for the card's thread, all so far; each is posted once
	over   bool
}

// follow keeps an answer up to date while what it has begun goes on: one card,
// edited in place, with the detail in its thread.
func (r *run) follow(ctx context.Context, said Post, reply api.Reply) {
	var look func(context.Context) (progress, error)
	hint := ""
	switch args := r.call.Args.(type) {
	case *catalog.BuildSubmitArgs:
		var made catalog.Submitted
		if json.Unmarshal(reply.Result, &made) != nil || made.Count != 1 {
			return
		}
		look, hint = r.buildProgress(made.Build), fmt.Sprintf("build logs %d", made.Build)
	case *catalog.HostsArgs:
		if r.call.Op.Name != catalog.HostDrain.Name || len(args.Hosts) > 20 {
			return
		}
		look, hint = r.drainProgress(args.Hosts), "host list --state draining"
	default:
		return
	}
	card := r.talk
	if card.private || card.ref.Reply != "" {
		card = r.card()
	}
	r.keep(ctx, card, said, hint, look)
}

// CardSuffix stands behind the id of a message in that of the card that follows
// its answer.
const CardSuffix = ":card"

// card returns a talk for all in the channel, where the answer was for one
// person.
func (r *run) card() *talk {
	t := r.newTalk(r.talk.at, r.talk.id+CardSuffix)
	t.echo = r.talk.echo
	return t
}

// keep edits a card until what it shows is over.
func (r *run) keep(ctx context.Context, card *talk, said Post, hint string, look func(context.Context) (progress, error)) {
	until := time.Now().Add(followFor)
	shown, posted := said.Text, 0
	for wait := time.Duration(0); ; wait = r.Every {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			// Whoever restarts the bot does not take the card up again.
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			card.say(last, Post{Text: shown, Note: join(said.Note, "the bot was stopped, and this card with it: "+hint)})
			cancel()
			return
		}
		within, cancel := context.WithTimeout(ctx, patience)
		p, err := look(within)
		cancel()
		if err != nil {
			if c := code(err); c != fleet.CodeUnavailable && c != fleet.CodeUnknown || time.Now().After(until) {
				card.say(ctx, Post{Text: shown, Note: join(said.Note, "not followed any more: "+fleet.AsError(err).Msg)})
				return
			}
			continue
		}
		if p.over && !card.posted && posted == 0 {
			return // there was nothing to follow, and the answer was given
		}
		p.over = p.over || time.Now().After(until)
		if p.text != shown || !card.posted || p.over {
			shown = p.text
			if !card.say(ctx, Post{Text: p.text, Note: join(said.Note, hint)}) && !card.posted {
				return
			}
		}
		if more := p.detail[min(posted, len(p.detail)):]; len(more) > 0 {
			head, _, _ := cutEnd(strings.Join(more, "\n"), maxCode, maxLines)
			if _, err := r.Surface.Post(ctx, card.place(), r.redact(Post{Text: head})); err != nil {
				r.Log.Warn("the detail of a card was not posted", "err", err)
			}
			posted = len(p.detail)
		}
		if p.over {
			return
		}
	}
}

func join(notes ...string) string {
	return strings.Join(slices.DeleteFunc(notes, func(s string) bool { return s == "" }), "; ")
}

// buildProgress follows a build.
func (r *run) buildProgress(id fleet.BuildID) func(context.Context) (progress, error) {
	var lines []string
	said := make(map[string]bool)
	return func(ctx context.Context) (progress, error) {
		raw, _, err := r.API.Query(ctx, r.by, catalog.BuildShow, &catalog.BuildArgs{Build: id}, false)
		if err != nil {
			return progress{}, err
		}
		var d catalog.BuildDetail
		if err := json.Unmarshal(raw, &d); err != nil {
			return progress{}, fleet.Internalf("build %d cannot be read: %s", id, err)
		}
		note := func(format string, args ...any) {
			if l := fmt.Sprintf(format, args...); !said[l] {
				said[l] = true
				lines = append(lines, l)
			}
		}
		for _, a := range d.List {
			if a.Attempt == 0 {
				continue
			}
			note("task %s, attempt %d: on host %s", a.Task, a.Try, a.Host)
			if a.Outcome != "" {
				l := fmt.Sprintf("task %s, attempt %d: %s", a.Task, a.Try, a.Outcome)
				if a.Exit != nil && *a.Exit != 0 {
					l += fmt.Sprintf(", exit code %d", *a.Exit)
				}
				if a.Why != "" {
					l += " (" + a.Why + ")"
				}
				note("%s", l)
			}
		}
		text := fmt.Sprintf("build %d for org %q on pool %q: %s, %s tasks ended", d.ID, d.Org, d.Pool, d.State, d.Tasks)
		over := !d.Finished.IsZero()
		if over {
			text = fmt.Sprintf("build %d for org %q on pool %q: %s after %s", d.ID, d.Org, d.Pool, d.State, d.Finished.Sub(d.Submitted)/1000*1000)
			if d.Why != "" {
				text += " (" + d.Why + ")"
			}
		}
		return progress{text, lines, over}, nil
	}
}

// drainProgress follows hosts that are drained. One that was uncordoned is not: what
// is on it goes on, and more comes.
func (r *run) drainProgress(hosts []fleet.HostID) func(context.Context) (progress, error) {
	var lines []string
	empty := make(map[fleet.HostID]bool)
	return func(ctx context.Context) (progress, error) {
		tasks, left := 0, 0
		var given []string
		for _, h := range hosts {
			if empty[h] {
				continue
			}
			raw, _, err := r.API.Query(ctx, r.by, catalog.HostShow, &catalog.HostArgs{Host: h}, false)
			var d catalog.HostDetail
			switch {
			case fleet.CodeOf(err) == fleet.CodeNotFound:
			case err != nil:
				return progress{}, err
			case json.Unmarshal(raw, &d) != nil:
				return progress{}, fleet.Internalf("host %q cannot be read", h)
			}
			switch {
			case d.State == "ready" || d.State == "cordoned":
				given = append(given, string(h))
			case d.Used > 0:
				tasks += d.Used
				left++
			default:
				empty[h] = true
				lines = append(lines, fmt.Sprintf("host %s is empty", h))
			}
		}
		text := fmt.Sprintf("draining: %d of %d hosts are empty, tasks left on the others: %d", len(empty), len(hosts), tasks)
		if left == 0 {
			text = fmt.Sprintf("drained: %d of %d hosts are empty", len(empty), len(hosts))
			if len(empty) == 0 {
				text = "not drained"
			}
		}
		if len(given) > 0 {
			text += "; uncordoned before it was empty: " + strings.Join(given, ", ")
		}
		return progress{text, lines, left == 0}, nil
	}
}

// followLog shows the end of a log that goes on.
func (r *run) followLog(ctx context.Context) {
	var l logText
	ended := make(chan error, 1)
	if r.talk.private {
		r.talk.say(ctx, Post{Text: "the log follows in the channel"})
		r.talk = r.card()
	}
	reading, stop := context.WithTimeout(ctx, followFor)
	defer stop()
	r.work.Go(func() { ended <- r.readLog(reading, followPatience, l.add) })
	shown := ""
	for over := false; !over; {
		var err error
		select {
		case err = <-ended:
			over = true
		case <-time.After(r.Every):
		}
		if err != nil && l.text() == "" {
			r.refuse(ctx, err)
			return
		}
		all := strings.TrimRight(r.Redactor.Redact(cleanLines(l.text())), "\n")
		tail, _, _ := cutEnd(all, maxCode, maxLines)
		if tail == "" {
			tail = within(all, maxCode)
		}
		if tail == shown && !over {
			continue
		}
		shown = tail
		p := Post{Code: tail, Note: "the log goes on"}
		if over {
			switch {
			case err == nil:
				p.Note = "the end of the log"
			case reading.Err() == nil:
				p.Note = "the log broke off: " + fleet.AsError(err).Msg
			case ctx.Err() == nil:
				p.Note = fmt.Sprintf("not followed any more after %s: %s", fleet.DurationOf(followFor), r.line)
			default:
				p.Note = "the bot was stopped, and this with it: " + r.line
			}
		}
		if tail == "" {
			p.Text = "no output"
		}
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		r.talk.say(last, p)
		cancel()
	}
}
