// Package bot is the chat: a text becomes an operation, and what came of it an
// answer. It knows no particular chat: a surface (package slack) hands it what
// was said, and posts what it answers.
//
// The words are those of the command line: one parser, one help, one set of
// errors. What chat adds is ceremony for people who type with one thumb: a plan
// with buttons before something disruptive, a question before the same is done
// twice within a minute or something is done that was said long ago, one card
// that is edited in place while something takes its time.
//
// # Once, and by one
//
// The bot keeps nothing that it could not lose: any number of replicas run, and
// any of them may get any message, or two of them the same one. The surface's
// own id of a message is the command's key, so a message never acts twice. Who
// answers follows from that: the replica whose command was the first under its
// key answers at once; one that is told that the key was known (another replica
// was first, or it was itself and died before it answered) waits until the
// first must have answered, looks whether it has, and answers only if not. What
// has no key, a question, goes by the same rule when the surface says that the
// message was delivered before.
//
// Two messages that say the same within a minute are mostly one person's second
// press of a key. Every command says that it comes from a chat, and Apply does not
// do the second: the bot asks, and what is answered with "Run it again" it says to
// be meant.
//
// A command has Budget to reach the log. Then it is said that it was not done,
// or that this is not known; in the second case the bot asks again with the same
// key until it knows, and says so. Where the surface delivers again what was not
// taken, Handle fails with CodeUnavailable instead of an answer.
//
// Everything that is said passes a Redactor.
package bot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"footplate/controlplane/api"
	"footplate/controlplane/catalog"
	"footplate/controlplane/client"
	"footplate/controlplane/op"
	"footplate/fleet"
	"footplate/fleet/fault"
)

// API is the control plane, asked on behalf of somebody: the bot has a token of
// its own, and the roles are those of the person.
type API interface {
	// Do asks for an operation that changes something; see client.Client.Do.
	Do(ctx context.Context, by fleet.Principal, o *op.Op, args any, opts client.Options) (api.Reply, error)
	// Query asks a question; see client.Client.Query.
	Query(ctx context.Context, by fleet.Principal, o *op.Op, args any, stale bool) (json.RawMessage, client.Stale, error)
	// Stream opens a stream that leaves no entry; see client.Client.Stream.
	Stream(ctx context.Context, by fleet.Principal, o *op.Op, args any, stale bool) (io.ReadCloser, error)
}

// Through returns the control plane behind a client whose token may act for the
// people of the surface.
func Through(c *client.Client) API { return through{c} }

type through struct{ c *client.Client }

func (t through) Do(ctx context.Context, by fleet.Principal, o *op.Op, args any, opts client.Options) (api.Reply, error) {
	return t.c.For(by).Do(ctx, o, args, opts)
}

func (t through) Query(ctx context.Context, by fleet.Principal, o *op.Op, args any, stale bool) (json.RawMessage, client.Stale, error) {
	return t.c.For(by).Query(ctx, o, args, stale)
}

func (t through) Stream(ctx context.Context, by fleet.Principal, o *op.Op, args any, stale bool) (io.ReadCloser, error) {
	return t.c.For(by).Stream(ctx, o, args, client.Options{Stale: stale})
}

// Place is where something is said. Only the surface reads it.
type Place struct {
	Channel string
	Thread  string // "" outside of threads
	User    string // who said it
	Reply   string // a way of the surface's own to reach that person
}

// Ref names a message that the bot has posted.
type Ref struct {
	Channel string
	ID      string
	Thread  string // where answers to it go
	Reply   string // the way to edit it, when it is shown to one person alone
}

// Message is something that was said to the bot.
type Message struct {
	ID   string          // the surface's own, the same at each delivery
	From fleet.Principal // by the surface's ids, never by a name
	Place
	Text string
	At   time.Time // when it was said; zero when the surface does not tell
	// Again says that the message was delivered before, as far as the surface knows.
	Again bool
	// Last says that it will not be delivered again, whatever becomes of it.
	Last bool
	// Private says that the answer is shown to the person alone: Handle returns
	// it instead of posting it.
	Private bool
}

// Click is a button that was pressed.
type Click struct {
	From fleet.Principal
	Place
	Card  Ref // the message that the button is in
	Value string
}

// Post is something that the bot says. The texts are plain: the surface escapes
// what its markup would read.
type Post struct {
	ID      string // of what it answers: the surface keeps it with the message, for Find
	Echo    string // the command that it is about
	Text    string // a sentence or two
	Code    string // lines that stand under one another
	Note    string // what to do next, small
	Buttons []Button
}

// Button is a button. Value comes back with the click.
type Button struct {
	Label  string
	Value  string
	Accept bool
}

// Surface is where the bot speaks.
type Surface interface {
	// Post posts a message that all in the place see.
	Post(ctx context.Context, at Place, p Post) (Ref, error)
	// Update replaces a message.
	Update(ctx context.Context, r Ref, p Post) error
	// Whisper shows a message to the person of the place alone.
	Whisper(ctx context.Context, at Place, p Post) error
	// Upload puts a long text into the place, or sends it to the person alone.
	Upload(ctx context.Context, at Place, private bool, name, text string) error
	// Find returns the message in the place that was posted with this id.
	Find(ctx context.Context, at Place, id string) (Ref, bool, error)
}

// Config says what the bot needs.
type Config struct {
	Registry *op.Registry
	API      API
	Surface  Surface
	Secret   []byte // seals buttons; the same for all replicas
	Redactor *Redactor
	Zone     *time.Location // in which times are shown; nil means UTC
	Log      *slog.Logger

	// Zero means the default of each.
	Budget time.Duration // for a command to reach the log: 1.5 s
	Grace  time.Duration // after which whoever was first has answered: 10 s
	Every  time.Duration // between two edits of a card: 3 s
}

// Bot answers. Its methods may be called by any number of goroutines.
type Bot struct {
	Config
	sealer
	deliveries deliveries
	work       sync.WaitGroup
}

// New checks the configuration. It starts nothing.
func New(cfg Config) (*Bot, error) {
	if len(cfg.Secret) == 0 {
		return nil, fleet.Internalf("the bot has no secret to seal its buttons with")
	}
	if cfg.Zone == nil {
		cfg.Zone = time.UTC
	}
	if cfg.Redactor == nil {
		cfg.Redactor = NewRedactor()
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	for _, d := range []struct {
		is   *time.Duration
		zero time.Duration
	}{{&cfg.Budget, 1500 * time.Millisecond}, {&cfg.Grace, 10 * time.Second}, {&cfg.Every, 3 * time.Second}} {
		if *d.is == 0 {
			*d.is = d.zero
		}
	}
	s, err := newSealer(cfg.Secret)
	if err != nil {
		return nil, fmt.Errorf("make the bot's seal: %w", err)
	}
	return &Bot{Config: cfg, sealer: s}, nil
}

// Wait waits for what still goes on after Handle and Click have returned; it
// ends soon after their contexts have.
func (b *Bot) Wait() { b.work.Wait() }

// late is how old a redelivered command may be before the bot asks first.
const late = time.Minute

const (
	// spare is what an answer may take beyond the command's budget.
	spare = 300 * time.Millisecond
	// postTime is how long a message waits for its answer to be posted, when all
	// else is done.
	postTime = 300 * time.Millisecond
)

// Handle answers a message, within Budget and a little. ctx is the bot's life,
// not the message's: what takes longer goes on under it. The Post is the answer
// to a private message.
//
// An error is always CodeUnavailable: nothing was done, or nobody has answered yet,
// and the surface should have the message delivered again. A private message gets that as its answer.
func (b *Bot) Handle(ctx context.Context, m Message) (Post, error) {
	d, first := b.deliveries.begin(m.ID)
	if first {
		t := b.talk(m)
		b.work.Go(func() {
			defer func() { b.deliveries.end(m.ID, d, t.err) }()
			defer t.close()
			defer t.caught(ctx)
			b.message(ctx, t, m)
		})
		d.talk = t
		close(d.begun)
	}
	return d.wait(ctx, b.Budget+spare, m.Last)
}

// Click answers a click: it edits the card. The Post is for the person alone.
func (b *Bot) Click(ctx context.Context, c Click) (Post, error) {
	t, err := b.open(c.Value)
	if err != nil {
		return b.problem(err), nil
	}
	if t.By != c.From {
		return b.problem(fleet.Deniedf("this is for %s to decide", t.By).WithHint("give the command yourself")), nil
	}
	// The two buttons of a card are one question: whichever is first answers it.
	id := "click:" + string(t.Ask) + ":" + t.Key + ":" + t.Plan
	d, first := b.deliveries.begin(id)
	if first {
		k := b.newTalk(c.Place, t.Key)
		k.ref, k.posted = c.Card, true
		b.work.Go(func() {
			defer func() { b.deliveries.end(id, d, k.err) }()
			defer k.close()
			defer k.caught(ctx)
			b.click(ctx, k, c, t)
		})
		d.talk = k
		close(d.begun)
	}
	p, err := d.wait(ctx, b.Budget+spare, true)
	if err != nil { // said on the card
		return Post{}, nil
	}
	return p, nil
}

// message does what a message says.
func (b *Bot) message(ctx context.Context, t *talk, m Message) {
	line := strings.TrimSpace(m.Text)
	words, err := split(line)
	if err != nil {
		t.fail(ctx, err)
		return
	}
	if len(words) == 0 || words[0] == "help" {
		var who *catalog.WhoamiRow
		if w, ok := b.standing(ctx, m.From); ok && len(words) < 2 {
			who = &w
		}
		p, err := help(b.Registry, words[min(1, len(words)):], who)
		if err != nil {
			t.fail(ctx, err)
			return
		}
		t.say(ctx, p)
		return
	}
	t.echo = line
	call, err := b.parse(words)
	if err != nil {
		t.fail(ctx, err)
		return
	}
	r := run{Bot: b, talk: t, by: m.From, line: line, call: call, key: m.ID, confirm: confirmation(call)}
	if call.Options.Key != "" {
		r.key = call.Options.Key
	}
	switch call.Op.Kind {
	case op.KindQuery:
		r.query(ctx)
		return
	case op.KindStream:
		r.stream(ctx)
		return
	}
	if call.Options.DryRun {
		r.dryRun(ctx)
		return
	}
	if m.Again && !m.At.IsZero() && time.Since(m.At) > late {
		age := time.Since(m.At).Round(time.Minute)
		r.ask(ctx, askLate, "", Post{
			Text: fmt.Sprintf("this was said %s ago, and reached the bot only now: do it still?", fleet.DurationOf(age)),
		})
		return
	}
	r.mutate(ctx)
}

// split cuts a line into words.
func split(line string) ([]string, error) {
	words, err := op.Split(line)
	if len(words) > 0 && words[0] == "footplate" {
		words = words[1:] // as it is pasted from a runbook
	}
	return words, err
}

func confirmation(c *op.Call) string {
	if c.Options.Yes {
		return "yes"
	}
	return ""
}

// parse reads a command. What only a shell has is refused in its own words.
func (b *Bot) parse(words []string) (*op.Call, error) {
	o, rest, err := b.Registry.Find(words)
	if err != nil {
		return nil, err
	}
	kept := words[: len(words)-len(rest) : len(words)-len(rest)]
	has := func(flag string) bool {
		for _, p := range o.Params {
			if p.Flag == flag {
				return true
			}
		}
		return false
	}
	for i, w := range rest {
		name, _, _ := strings.Cut(w, "=")
		switch {
		case w == "--":
			kept = append(kept, rest[i:]...)
			return b.call(kept)
		case w == "-":
			return nil, fleet.Invalidf("a chat has no standard input").WithHint("name them")
		case name == "-h" || name == "--help":
			return nil, fleet.Invalidf("%s is explained by help", o.Name).WithHint("help %s", o.Name)
		case (name == "-f" || name == "--file") && has("file"):
			return nil, fleet.Invalidf("a chat has no files").WithHint("say --run COMMAND, or use the shell")
		case w == "-f" && has("follow"):
			w = "--follow"
		case (name == "--follow" || w == "-f") && !has("follow") && o.Name == submit:
			continue // a chat always follows
		}
		kept = append(kept, w)
	}
	return b.call(kept)
}

func (b *Bot) call(words []string) (*op.Call, error) {
	c, err := b.Registry.ParseWords(words)
	if err != nil {
		return nil, err
	}
	return c, checkFormat(c.Options.Output)
}

// problem is an error as the bot says it.
func (b *Bot) problem(err error) Post {
	e := fleet.AsError(err)
	p := Post{Text: "error: " + e.Msg}
	if e.Hint != "" {
		p.Note = "hint: " + e.Hint
	}
	return b.redact(p)
}

// redact takes the secrets out of what is said.
func (b *Bot) redact(p Post) Post {
	p.Echo = b.Redactor.Redact(clean(p.Echo))
	p.Text = b.Redactor.Redact(cleanLines(p.Text))
	p.Code = b.Redactor.Redact(cleanLines(p.Code))
	p.Note = b.Redactor.Redact(cleanLines(p.Note))
	return p
}

// standing returns somebody's role and the operations that they may run; ok is false
// when that cannot be had.
func (b *Bot) standing(ctx context.Context, by fleet.Principal) (who catalog.WhoamiRow, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, b.Budget/2)
	defer cancel()
	raw, _, err := b.API.Query(ctx, by, catalog.AccessWhoami, &struct{}{}, true)
	return who, err == nil && json.Unmarshal(raw, &who) == nil
}

// talk is the answer to one message or click: one message, edited in place.
type talk struct {
	b     *Bot
	at    Place
	echo  string
	id    string
	begun time.Time
	err   error // why the message should be delivered again

	private bool // the first thing said goes to whoever waits for Handle
	last    bool // it will not be delivered again
	look    bool // somebody may have answered already
	posted  bool
	ref     Ref
	said    chan struct{} // closed when whoever waits has an answer
	answer  Post          // that; set before
	settled chan struct{} // closed when it is known what to answer
	waits   atomic.Bool   // for whoever was first: it is not known who answers
	hold    time.Duration // how long to wait for that to be posted; set before
	closed  chan struct{} // closed when everything is said

	once  sync.Once // of settled
	mu    sync.Mutex
	spoke bool
	gone  bool // nobody waits any more
}

func (b *Bot) talk(m Message) *talk {
	t := b.newTalk(m.Place, m.ID)
	t.private, t.last, t.look = m.Private, m.Last, m.Again && !m.Private
	return t
}

func (b *Bot) newTalk(at Place, id string) *talk {
	return &talk{
		b: b, at: at, id: id, begun: time.Now(),
		said: make(chan struct{}), settled: make(chan struct{}), closed: make(chan struct{}),
	}
}

func (t *talk) close() { close(t.closed) }

// settle lets go of whoever waits, after hold.
func (t *talk) settle(hold time.Duration) {
	t.once.Do(func() {
		t.hold = hold
		close(t.settled)
	})
}

// wait waits until everything is said, or for as long as the surface can. last says
// that it is for a delivery after which none follows.
func (d *delivery) wait(ctx context.Context, most time.Duration, last bool) (Post, error) {
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-d.begun:
	case <-ctx.Done():
		return Post{}, stopping()
	}
	t := d.talk
	end := time.Now().Add(most)
	for settled := t.settled; ; settled = nil {
		select {
		case <-settled:
			// What is left is to post the answer, which may have to wait for its turn.
			timer.Reset(min(t.hold, time.Until(end)))
		case <-t.said:
			return t.answer, nil
		case <-t.closed:
			select {
			case <-t.said:
				return t.answer, nil
			default:
				return Post{}, t.err
			}
		case <-timer.C:
			// This replica may die while it waits for another: then somebody else
			// shall be told.
			if t.waits.Load() && !last {
				return Post{}, fleet.Unavailablef("it is not known yet who answers")
			}
			t.mu.Lock()
			defer t.mu.Unlock()
			t.gone = true
			if t.private && !t.spoke {
				return Post{Text: "this takes longer than usual; the answer follows"}, nil
			}
			return Post{}, nil
		case <-ctx.Done():
			if t.private {
				return Post{Text: "the bot is being stopped; audit tail tells whether it was done"}, nil
			}
			return Post{}, stopping()
		}
	}
}

func stopping() error { return fleet.Unavailablef("the bot is being stopped") }

// first makes sure that nobody else has answered: only then it returns true.
// after is how long to wait before looking.
func (t *talk) first(ctx context.Context, after time.Duration) bool {
	if after > 0 {
		t.waits.Store(true)
		defer t.waits.Store(false)
		t.settle(0)
		select {
		case <-time.After(after):
		case <-ctx.Done():
			return false
		}
	}
	t.look = false
	_, found, err := t.b.Surface.Find(ctx, t.at, t.id)
	if err != nil {
		t.b.Log.Warn("cannot look for an answer; answering", "err", err)
	}
	return !found
}

// say answers, or replaces what was answered. It reports whether it was said.
func (t *talk) say(ctx context.Context, p Post) bool {
	if p.Echo == "" {
		p.Echo = t.echo
	}
	p.ID = t.id
	p = t.b.redact(p)
	if t.private && !t.posted {
		t.mu.Lock()
		waits := !t.spoke && !t.gone
		t.spoke = true
		if waits {
			t.answer = p
			close(t.said)
		}
		t.mu.Unlock()
		if waits {
			return true
		}
		if err := t.b.Surface.Whisper(ctx, t.at, p); err != nil {
			t.b.Log.Warn("an answer was not shown", "err", err)
			return false
		}
		return true
	}
	if !t.look {
		t.settle(postTime)
	}
	if t.posted {
		if err := t.b.Surface.Update(ctx, t.ref, p); err != nil {
			t.b.Log.Warn("a card was not edited", "err", err)
			return false
		}
		return true
	}
	// After half of the grace another replica may have taken this for dead.
	switch {
	case t.look:
		if !t.first(ctx, t.b.Grace) {
			return false
		}
	case time.Since(t.begun) > t.b.Grace/2:
		if !t.first(ctx, 0) {
			return false
		}
	}
	fault.Here(fault.BotBeforePost)
	ref, err := t.b.Surface.Post(ctx, t.at, p)
	fault.Here(fault.BotAfterPost)
	if err != nil {
		t.b.Log.Warn("an answer was not posted", "err", err)
		return false
	}
	t.ref, t.posted = ref, true
	return true
}

// caught turns a panic into an answer: the bot may run in a node of the control
// plane, which must not die of what somebody has typed.
func (t *talk) caught(ctx context.Context) {
	if p := recover(); p != nil {
		t.b.Log.Error("panic in the bot", "id", t.id, "err", fmt.Sprint(p), "stack", string(debug.Stack()))
		t.fail(ctx, fleet.Internalf("the bot failed at this, and has logged why (%s)", t.id).WithHint("use the shell"))
	}
}

// fail answers with an error.
func (t *talk) fail(ctx context.Context, err error) { t.say(ctx, t.b.problem(err)) }

// giveBack has the message delivered again, unless there is nobody who would.
func (t *talk) giveBack(ctx context.Context, err error) {
	if t.private || t.posted || t.last {
		t.fail(ctx, err)
		return
	}
	t.err = err
}

// delivery is one message in the hands of this process.
type delivery struct {
	begun chan struct{}
	talk  *talk
	at    time.Time
}

// deliveries are the messages that this process has seen. The same one, come
// again, waits for the first.
type deliveries struct {
	mu    sync.Mutex
	known map[string]*delivery
	order []string
}

// maxDeliveries and deliveryLife bound the memory. Slack delivers again for
// about six minutes.
const (
	maxDeliveries = 20000
	deliveryLife  = time.Hour
)

func (ds *deliveries) begin(id string) (d *delivery, first bool) {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	if d, ok := ds.known[id]; ok {
		return d, false
	}
	if ds.known == nil {
		ds.known = make(map[string]*delivery)
	}
	now := time.Now()
	for len(ds.order) > 0 {
		old, ok := ds.known[ds.order[0]]
		if ok && len(ds.order) < maxDeliveries && now.Sub(old.at) < deliveryLife {
			break
		}
		delete(ds.known, ds.order[0])
		ds.order = ds.order[1:]
	}
	d = &delivery{begun: make(chan struct{}), at: now}
	ds.known[id] = d
	ds.order = append(ds.order, id)
	return d, true
}

// end closes a delivery; one that failed is taken again.
func (ds *deliveries) end(id string, d *delivery, err error) {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	if err != nil && ds.known[id] == d {
		delete(ds.known, id)
	}
}

// code is the code of an error; a context that has ended is "not known".
func code(err error) fleet.Code {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fleet.CodeUnknown
	}
	return fleet.CodeOf(err)
}

// Empty reports whether there is nothing in p to show.
func (p Post) Empty() bool { return p.Text == "" && p.Code == "" && p.Note == "" }
