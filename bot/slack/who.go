package slack

import (
	"context"
	"sync"
	"time"

	"footplate/fleet"
)

// The measures of what is remembered about people and channels.
const (
	fresh    = 5 * time.Minute // is not asked about again
	usable   = time.Hour       // while Slack does not answer
	lookTime = 800 * time.Millisecond
	maxKnown = 10000
)

// directory knows who may talk to the bot, and where. What it does not know and
// cannot find out it refuses.
type directory struct {
	mu    sync.Mutex
	known map[string]verdict
}

// verdict is what was found out about a user or a channel: nil means welcome.
type verdict struct {
	at  time.Time
	why *fleet.Error
}

// allowed says why somebody may not command the bot in a channel; nil when they may.
func (s *Slack) allowed(ctx context.Context, me self, w said) *fleet.Error {
	if w.external {
		return shared()
	}
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	user := make(chan *fleet.Error, 1)
	go func() { user <- s.verdict(w.user, func() (*fleet.Error, error) { return s.lookUser(ctx, me, w.user) }) }()
	var channel *fleet.Error
	if !direct(w.channel) {
		channel = s.verdict(w.channel, func() (*fleet.Error, error) { return s.lookChannel(ctx, w.channel) })
	}
	if why := <-user; why != nil {
		return why
	}
	return channel
}

func shared() *fleet.Error {
	return fleet.Deniedf("this channel is shared with another company: commands are not taken here").WithHint("use a channel of your own")
}

// verdict returns what is known about an id, or finds it out.
func (s *Slack) verdict(id string, look func() (*fleet.Error, error)) *fleet.Error {
	d := &s.directory
	d.mu.Lock()
	known, ok := d.known[id]
	d.mu.Unlock()
	if ok && time.Since(known.at) < fresh {
		return known.why
	}
	why, err := look()
	if err != nil {
		if ok && time.Since(known.at) < usable {
			return known.why
		}
		s.log.Warn("cannot check who is asking", "id", id, "err", err)
		return fleet.Unavailablef("Slack does not say who you are: nothing was done").WithHint("try again in a moment, or use the shell")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.known == nil || len(d.known) >= maxKnown {
		d.known = make(map[string]verdict)
	}
	d.known[id] = verdict{time.Now(), why}
	return why
}

func (s *Slack) lookUser(ctx context.Context, me self, id string) (*fleet.Error, error) {
	u, err := s.web.GetUserInfoContext(ctx, id)
	if err != nil {
		if wrapped := fleet.AsError(wrap(err)); wrapped.Code == fleet.CodeInvalid && wrapped.Msg == "Slack refuses: user_not_found" {
			return fleet.Deniedf("Slack does not know who you are: nothing was done"), nil
		}
		return nil, wrap(err)
	}
	switch {
	case u.ID != id || u.Deleted || u.IsBot:
		return fleet.Deniedf("only people of this workspace may command the fleet"), nil
	case u.IsRestricted || u.IsUltraRestricted:
		return fleet.Deniedf("guests may not command the fleet").WithHint("ask a member of this workspace"), nil
	case u.IsStranger || u.TeamID != me.Team && (me.Enterprise == "" || u.Enterprise.EnterpriseID != me.Enterprise):
		return fleet.Deniedf("people of other workspaces may not command the fleet").WithHint("ask a member of this workspace"), nil
	}
	return nil, nil
}

func (s *Slack) lookChannel(ctx context.Context, id string) (*fleet.Error, error) {
	c, err := s.channelInfo(ctx, id)
	if err != nil {
		// Slash commands work where the bot is not, in private channels too, and
		// nothing can be known about those.
		if e := fleet.AsError(err); e.Code == fleet.CodeInvalid {
			return fleet.Deniedf("the bot cannot see this channel: commands are not taken here").WithHint("/invite the app, or write to it directly"), nil
		}
		return nil, err
	}
	if c.IsExtShared || c.IsPendingExtShared {
		return shared(), nil
	}
	return nil, nil
}
