package slack

import (
	"context"

	"footplate/bot"

	api "github.com/slack-go/slack"
)

// Channel posts lines to the channel in which everything is logged. Whoever uses it
// keeps the order, and remembers what was sent.
type Channel struct {
	s        *Slack
	redactor *bot.Redactor
}

// Channel returns the channel of the settings.
func (s *Slack) Channel() *Channel { return &Channel{s, s.Redactor()} }

// Post posts a text with an id of ours, perhaps in the thread of an earlier post,
// and returns Slack's. It waits for its turn: Slack takes about one post a second.
//
// With CodeUnavailable nothing was posted. With CodeUnknown it may have been: look
// with Find before it is posted again. With CodeInvalid Slack will never take it.
func (c *Channel) Post(ctx context.Context, id, text, thread string) (ts string, err error) {
	text = c.redactor.Redact(text)
	opts := []api.MsgOption{
		api.MsgOptionText(cutEscaped(text, maxSection), false),
		api.MsgOptionMetadata(api.SlackMetadata{EventType: metaLine, EventPayload: map[string]any{"id": id}}),
		api.MsgOptionDisableLinkUnfurl(), api.MsgOptionDisableMediaUnfurl(),
	}
	if thread != "" {
		opts = append(opts, api.MsgOptionTS(thread))
	}
	_, ts, err = c.s.send(ctx, c.s.cfg.Channel, opts)
	return ts, err
}

// Find looks for a post of the channel, not of a thread in it, by the id that it was
// posted with.
func (c *Channel) Find(ctx context.Context, id string) (ts string, ok bool, err error) {
	return c.s.find(ctx, c.s.cfg.Channel, "", metaLine, id)
}
