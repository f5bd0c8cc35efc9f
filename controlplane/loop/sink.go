package loop

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"footplate/controlplane/catalog"
	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
	"footplate/fleet/fault"
)

// Poster puts the channel somewhere outside, for example into Slack. It keeps
// its own pace.
type Poster interface {
	// Post posts a text under an id of ours. With CodeInvalid it will never be
	// taken; with CodeUnknown it may be there: look with Find before it is
	// posted again; with any other error it is not.
	Post(ctx context.Context, id, text, thread string) (ref string, err error)
	// Find reports whether something was posted under the id.
	Find(ctx context.Context, id string) (ref string, ok bool, err error)
	// Edit replaces the text of what was posted under the id. With CodeInvalid
	// that will never be possible.
	Edit(ctx context.Context, ref, id, text string) error
	// Withdraw puts a text in the place of what was answered there, where all see
	// it, to the command with that key. It is no error when nothing was.
	Withdraw(ctx context.Context, key, text string) error
}

// The measures of delivery to a sink.
const (
	// sinkCall bounds a call of a sink. A call of a leader that lost its office
	// can still land for that long, so its successor waits before it looks.
	sinkCall = 20 * time.Second
	// sinkLines and sinkBytes bound what is posted at once: lines that wait go
	// together, because a sink takes about one post a second.
	sinkLines = 20
	sinkBytes = 2500
	// sinkDigest is how many lines may wait before they are told of in one
	// digest, not posted one by one.
	sinkDigest = 100
	// sinkTell is after how many failures in a row it is said in the channel.
	sinkTell = 3
	// sinkBackoff is the pause after a failure, doubled up to sinkBackoffMost.
	sinkBackoff     = time.Second
	sinkBackoffMost = time.Minute
	// sinkEditFor is how long it is tried to edit a message.
	sinkEditFor = 24 * fleet.Hour
)

// NextPost returns what goes to the sink next: the number of the last line in
// it, and the text; 0 when nothing is ripe. From Sent and Sending alone it
// follows what was posted, so a successor makes the same text.
func NextPost(now fleet.Time, v *state.View, s state.Sink) (upto uint64, text string) {
	last := v.Line
	if l, ok := v.Channel.Get(fleet.EntryNo(last)); ok && l.Group && now.Sub(l.At) < state.LineGrows {
		last-- // it may still grow
	}
	if s.Sending != 0 {
		last = s.Sending
	}
	if last <= s.Sent {
		return 0, ""
	}
	first, ok := v.Channel.Get(fleet.EntryNo(s.Sent + 1))
	if !ok || last-s.Sent > sinkDigest {
		return last, digestOf(v, s, last)
	}
	var b strings.Builder
	upto = first.N
	for n := first.N; n <= last && n-s.Sent <= sinkLines; n++ {
		l, _ := v.Channel.Get(fleet.EntryNo(n))
		t := LineText(l)
		if b.Len() > 0 && b.Len()+len(t) > sinkBytes && s.Sending == 0 {
			break
		}
		if b.Len() > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(t)
		upto = n
	}
	return upto, b.String()
}

// LineText is a line of the channel as it stands in a sink.
func LineText(l state.Line) string {
	mark := ""
	if l.Outcome != fleet.EntryDone {
		mark = " (" + string(l.Outcome) + ")"
	}
	entries := fmt.Sprintf("#%d", l.First)
	if l.Last > l.First {
		entries = fmt.Sprintf("#%d-%d, %d times", l.First, l.Last, l.Count)
	}
	t := fmt.Sprintf("%s %s%s: %s", l.At.Std().Format("15:04:05Z"), l.By, mark, l.Text)
	if l.Reason != "" {
		t += " (because: " + l.Reason + ")"
	}
	return t + " [" + entries + "]"
}

// digestOf tells of lines that waited too long to be posted one by one. It names
// all their entries, also of lines so old that only the archive has them.
func digestOf(v *state.View, s state.Sink, upto uint64) string {
	var last state.Line
	have, done, other := 0, 0, 0
	for n := s.Sent + 1; n <= upto; n++ {
		l, ok := v.Channel.Get(fleet.EntryNo(n))
		if !ok {
			continue
		}
		last = l
		have++
		if l.Outcome == fleet.EntryDone {
			done += l.Count
		} else {
			other += l.Count
		}
	}
	from, to := s.Entry+1, last.Last
	if s.Sending != 0 {
		to = s.SendingEntry
	}
	t := fmt.Sprintf("%d lines could not be posted here when they came: entries #%d-%d", upto-s.Sent, from, to)
	if have > 0 {
		t += fmt.Sprintf(", up to %s; ", last.At)
		if uint64(have) < upto-s.Sent {
			t += fmt.Sprintf("of the newest %d lines, ", have)
		}
		t += fmt.Sprintf("%d done, %d failed or refused", done, other)
	}
	return t + fmt.Sprintf(". Read them with: footplate audit export --from %d --to %d", from, to)
}

// sink delivers the channel to one sink while this node leads.
type sink struct {
	name  string
	to    Poster
	cfg   Config
	log   *slog.Logger
	since time.Time // when this node began to lead

	editAfter time.Time // when the next edit may be tried
	editFails int       // in a row
}

// RunSink delivers the channel to a sink until ctx ends. What was posted is
// noted before and after, so that every line gets there once, in order, whoever
// leads: a post in doubt is looked up before it is repeated.
func RunSink(ctx context.Context, cfg Config, name string, to Poster) {
	s := &sink{name: name, to: to, cfg: cfg, log: cfg.Log.With("sink", name), since: time.Now()}
	failures := 0
	for ctx.Err() == nil {
		v := cfg.View()
		did, err := s.step(ctx, v)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			failures++
			s.log.Warn("the channel does not get to a sink", "err", err, "failures", failures)
			if failures == sinkTell {
				s.propose(ctx, v, catalog.SinkFailing, catalog.SinkArgs{Sink: name, Why: fleet.AsError(err).Msg})
			}
			pause(ctx, min(sinkBackoff<<min(failures-1, 10), sinkBackoffMost))
		case did:
			failures = 0
		default:
			wait, cancel := context.WithTimeout(ctx, TickEvery)
			_, _ = cfg.WaitView(wait, v.Index)
			cancel()
		}
	}
}

// step takes one thing as far as it gets, and reports whether there was one.
func (s *sink) step(ctx context.Context, v *state.View) (did bool, err error) {
	row, ok := v.Sinks.Get(s.name)
	if !ok {
		return true, s.propose(ctx, v, catalog.SinkOpen, catalog.SinkArgs{Sink: s.name})
	}
	if Paused(s.cfg.Now(), v, fleet.LoopDeliver) {
		return false, nil
	}
	if time.Now().After(s.editAfter) {
		if e, ok := s.nextEdit(v); ok {
			return s.edit(ctx, v, e)
		}
	}
	doubt := row.Sending != 0
	upto, text := NextPost(s.cfg.Now(), v, row)
	if upto == 0 {
		return false, nil
	}
	if doubt {
		upto = row.Sending
		// What the leader before has sent may still land.
		pause(ctx, sinkCall-time.Since(s.since))
	} else if err := s.propose(ctx, v, catalog.SinkSending, catalog.SinkArgs{Sink: s.name, Upto: upto}); err != nil {
		return true, err
	}
	args := catalog.SinkArgs{Sink: s.name, Upto: upto}
	id := postID(v, upto)
	fault.Here(fault.SinkIntent)
	sent := func(ref string) error {
		if upto-row.Sent <= sinkDigest { // a digest quotes nothing
			args.Ref = ref
		}
		return s.propose(ctx, v, catalog.SinkSent, args)
	}
	for {
		if doubt {
			ref, found, err := s.find(ctx, id)
			if err != nil {
				return true, err
			}
			if found {
				return true, sent(ref)
			}
		}
		call, cancel := context.WithTimeout(ctx, sinkCall)
		ref, err := s.to.Post(call, id, text, "")
		cancel()
		if err == nil {
			fault.Here(fault.SinkPosted)
		}
		switch e := (*fleet.Error)(nil); {
		case err == nil:
			return true, sent(ref)
		case errors.As(err, &e) && e.Code == fleet.CodeInvalid:
			args.Why = e.Msg
			return true, s.propose(ctx, v, catalog.SinkDead, args)
		case ctx.Err() == nil && errors.As(err, &e) && e.Code == fleet.CodeUnknown && !doubt:
			doubt = true
		default:
			return true, err
		}
	}
}

func (s *sink) find(ctx context.Context, id string) (ref string, found bool, err error) {
	call, cancel := context.WithTimeout(ctx, sinkCall)
	defer cancel()
	return s.to.Find(call, id)
}

func (s *sink) propose(ctx context.Context, v *state.View, o *op.Op, args catalog.SinkArgs) error {
	c := command(fleet.LoopDeliver, o, args)
	c.Term, c.Salt = v.Term, salt()
	out, err := s.cfg.Propose(ctx, c)
	if err == nil && out.Err != nil {
		return out.Err
	}
	return err
}

// postID is the id under which lines up to a number are posted.
func postID(v *state.View, upto uint64) string {
	return fmt.Sprintf("%s/%d/%d", v.Cluster, v.Epoch, upto)
}

// nextEdit returns what is to be edited next. What another leader may have
// begun waits until its call has ended: it could land late, with an older text.
func (s *sink) nextEdit(v *state.View) (state.Edit, bool) {
	for _, e := range v.Edits.All() {
		if e.Sink == s.name && e.EndedAt == 0 {
			return e, e.Term == v.Term || time.Since(s.since) >= sinkCall
		}
	}
	return state.Edit{}, false
}

// edit makes one message anew. It does not keep lines from being posted: what
// fails is tried again in its own time.
func (s *sink) edit(ctx context.Context, v *state.View, e state.Edit) (bool, error) {
	args := catalog.SinkArgs{Sink: s.name, Edit: e.N}
	err := s.carryOut(ctx, v, e)
	switch {
	case ctx.Err() != nil:
		return true, nil
	case err == nil:
	case fleet.CodeOf(err) == fleet.CodeInvalid:
		args.Why = fleet.AsError(err).Msg
	case s.cfg.Now().Sub(e.At) > sinkEditFor:
		args.Why = fmt.Sprintf("it could not be edited for %s (%s)", sinkEditFor, fleet.AsError(err).Msg)
	default:
		s.log.Warn("what was erased is still in a sink", "entry", e.Entry, "err", err)
		s.editAfter = time.Now().Add(min(sinkBackoff<<min(s.editFails, 10), sinkBackoffMost))
		s.editFails++
		return true, nil
	}
	s.editFails = 0
	return true, s.propose(ctx, v, catalog.SinkEdited, args)
}

func (s *sink) carryOut(ctx context.Context, v *state.View, e state.Edit) error {
	ctx, cancel := context.WithTimeout(ctx, sinkCall)
	defer cancel()
	if e.Posting == 0 {
		entry, err := s.cfg.Entry(ctx, e.Entry)
		if err != nil || entry.Key == "" {
			return err
		}
		return s.to.Withdraw(ctx, entry.Key, fmt.Sprintf("the answer to the command of entry %d was here; something of it was erased", e.Entry))
	}
	p, ok := v.Postings.Get(fleet.EntryNo(e.Posting))
	if !ok {
		return fleet.Invalidf("its line is older than what can be found there")
	}
	return s.to.Edit(ctx, p.Ref, postID(v, p.Upto), postingText(v, p, e.Entry))
}

// postingText is what a message says now.
func postingText(v *state.View, p state.Posting, erased fleet.EntryNo) string {
	var b strings.Builder
	for n := p.From; n <= p.Upto; n++ {
		l, ok := v.Channel.Get(fleet.EntryNo(n))
		if !ok {
			return fmt.Sprintf("lines of the entries #%d-%d were here; something of #%d was erased. Read the others with: footplate audit export --from %d --to %d",
				p.First, p.Last, erased, p.First, p.Last)
		}
		if n > p.From {
			b.WriteByte('\n')
		}
		b.WriteString(LineText(l))
	}
	return b.String()
}
