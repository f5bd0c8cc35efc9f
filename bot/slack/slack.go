// Package slack is the chat in Slack: slash commands, mentions and direct messages
// become messages of package bot, and its answers posts, cards and snippets. It is
// the only package that knows Slack's API, which it reaches through slack-go.
//
// Slack reaches it over Socket Mode, or over HTTP at Path. Only ids are trusted,
// never names; guests, people of other workspaces, and channels that are shared
// with other companies are refused; what bots write is not read.
//
// # Sockets
//
// The way chosen: two sockets or more, each replaced before it is given up. When
// Slack announces that it will close one, a new one is opened while the old is still
// read and acknowledged on, for as long as Slack keeps it. slack-go's own client,
// the way not taken, drops the old one first: what Slack writes to it meanwhile is
// lost, and Slack does not deliver slash commands and clicks again. A socket that is
// cut without notice can take an envelope down with it: events come again by
// themselves; of a command the person sees that it failed, and giving it again is
// safe, because package bot asks before it does the same twice.
package slack

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"footplate/bot"
	"footplate/fleet"

	api "github.com/slack-go/slack"
)

// Path is where Slack sends commands, clicks and events over HTTP.
const Path = "/slack/events"

// Slack is one workspace. It implements bot.Surface.
type Slack struct {
	cfg       Config
	web       *web
	log       *slog.Logger
	directory directory
	replays   replays
	links     links

	mu sync.Mutex
	me self // zero until Slack has told
}

// New checks the settings. It calls nobody.
func New(cfg Config, log *slog.Logger) (*Slack, error) {
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	if cfg.Sockets == 0 {
		cfg.Sockets = 2
	}
	w, err := newWeb(cfg)
	if err != nil {
		return nil, err
	}
	return &Slack{cfg: cfg, web: w, log: log}, nil
}

// Secret is what seals the buttons: the same in every replica of this app.
func (s *Slack) Secret() []byte {
	return fleet.DeriveKey([]byte(s.cfg.BotToken), "footplate slack")
}

// Redactor returns a redactor that knows the app's own secrets.
func (s *Slack) Redactor() *bot.Redactor {
	return bot.NewRedactor(s.cfg.BotToken, s.cfg.AppToken, s.cfg.SigningSecret)
}

// Sockets counts the sockets over which commands can come now.
func (s *Slack) Sockets() int { return s.links.count() }

// stopTime is how long commands that were taken may go on when the bot is stopped.
const stopTime = 3 * time.Second

// Run takes what comes over Socket Mode, until ctx ends, and lets b answer it. An
// error is one that waiting will not mend: a token that is wrong, a scope that is
// missing. Without an app-level token it only finds out who the bot is.
func (s *Slack) Run(ctx context.Context, b *bot.Bot) error {
	for wait := time.Second; ; wait = min(2*wait, time.Minute) {
		_, err := s.self(ctx)
		if err == nil {
			break
		}
		if e := fleet.AsError(err); e.Code == fleet.CodeInvalid {
			return e
		}
		s.log.Warn("Slack does not answer; trying again", "err", err, "wait", wait.String())
		if pause(ctx, wait) != nil {
			return nil
		}
	}
	if s.cfg.AppToken == "" {
		<-ctx.Done()
		return nil
	}
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	err := s.runSockets(ctx, life, b)
	time.AfterFunc(stopTime, stop)
	b.Wait()
	return err
}

// self returns who the bot is, once Slack has told.
func (s *Slack) self(ctx context.Context) (self, error) {
	s.mu.Lock()
	me := s.me
	s.mu.Unlock()
	if me.Team != "" {
		return me, nil
	}
	var res *api.AuthTestResponse
	err := try(ctx, func(ctx context.Context) (err error) {
		res, err = s.web.AuthTestContext(ctx)
		return err
	})
	if err != nil {
		return me, err
	}
	if !isID(res.TeamID) || !isID(res.UserID) {
		return me, fleet.Unknownf("Slack does not say who the bot is")
	}
	me = self{Team: res.TeamID, Enterprise: res.EnterpriseID, User: res.UserID}
	s.mu.Lock()
	s.me = me
	s.mu.Unlock()
	s.log.Info("the bot is in Slack", "team", me.Team, "user", me.User)
	return me, nil
}

func (s *Slack) channelInfo(ctx context.Context, id string) (*api.Channel, error) {
	c, err := s.web.GetConversationInfoContext(ctx, &api.GetConversationInfoInput{ChannelID: id})
	return c, wrap(err)
}

// The kinds of what comes, as Socket Mode names them.
const (
	kindSlash = "slash_commands"
	kindClick = "interactive"
	kindEvent = "events_api"
)

// take does what Slack has sent. The answer goes with the acknowledgement. An error
// is CodeInvalid when what was sent cannot be read, and CodeUnavailable when it
// should be sent again.
func (s *Slack) take(life context.Context, b *bot.Bot, kind string, payload []byte, retry int) (answer []byte, err error) {
	within, cancel := context.WithTimeout(life, lookTime)
	me, err := s.self(within)
	cancel()
	if err != nil {
		return nil, fleet.Unavailablef("Slack does not say who the bot is: nothing was done")
	}
	var w said
	switch kind {
	case kindSlash:
		w, err = readSlash(payload, me)
	case kindClick:
		w, err = readClick(payload, me)
	case kindEvent:
		w, err = readEvent(payload, retry, me)
	default:
		return nil, nil // of a kind that nobody has asked for
	}
	if err != nil {
		return nil, err
	}
	if w.message == nil && w.click == nil {
		return nil, nil
	}
	if no := s.allowed(life, me, w); no != nil {
		return s.refuse(life, w, no)
	}
	if w.click != nil {
		p, err := b.Click(life, *w.click)
		if err == nil && !p.Empty() {
			err = s.Whisper(life, w.click.Place, p)
		}
		if err != nil {
			s.log.Warn("a click was not answered", "err", err)
		}
		return nil, nil
	}
	p, err := b.Handle(life, *w.message)
	if err != nil {
		return nil, err
	}
	if p.Empty() {
		return nil, nil
	}
	return private(p)
}

// refuse tells somebody that they may not. It is a line in the log, and no entry in
// the record: what was not let in must not fill that.
func (s *Slack) refuse(ctx context.Context, w said, no *fleet.Error) ([]byte, error) {
	s.log.Warn("refused in Slack", "user", w.user, "channel", w.channel, "code", string(no.Code), "err", no.Msg)
	p := bot.Post{Text: "error: " + no.Msg}
	if no.Hint != "" {
		p.Note = "hint: " + no.Hint
	}
	switch {
	case w.message != nil && w.message.Private:
		return private(p)
	case w.message != nil && no.Code == fleet.CodeUnavailable && !w.message.Last:
		return nil, no
	case w.message != nil && w.message.Again:
		return nil, nil // it was said before
	}
	at := bot.Place{Channel: w.channel, User: w.user}
	if w.click != nil {
		at = w.click.Place
	} else {
		at = w.message.Place
	}
	var err error
	if direct(at.Channel) {
		_, err = s.Post(ctx, at, p)
	} else {
		err = s.Whisper(ctx, at, p)
	}
	if err != nil {
		s.log.Warn("a refusal was not told", "err", err)
	}
	return nil, nil
}
