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
	opts := c.options(id, text)
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

func (c *Channel) options(id, text string) []api.MsgOption {
	return []api.MsgOption{
		api.MsgOptionText(cutEscaped(c.redactor.Redact(text), maxSection), false),
		api.MsgOptionMetadata(api.SlackMetadata{EventType: metaLine, EventPayload: map[string]any{"id": id}}),
		api.MsgOptionDisableLinkUnfurl(), api.MsgOptionDisableMediaUnfurl(),
	}
}

// Edit replaces the text of a post. Its errors are those of Post.
func (c *Channel) Edit(ctx context.Context, ts, id, text string) error {
	return c.s.replace(ctx, c.s.cfg.Channel, ts, c.options(id, text))
}

// Withdraw puts a text in the place of what the bot has answered to the message
// with that key: the answer itself, and the card that followed it.
func (c *Channel) Withdraw(ctx context.Context, key, text string) error {
	at, ok := placeOf(key)
	if !ok {
		return nil // it was not said in Slack
	}
	for _, id := range []string{key, key + bot.CardSuffix} {
		ts, ok, err := c.s.find(ctx, at.Channel, at.Thread, metaAnswer, id)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		if err := c.s.replace(ctx, at.Channel, ts, options(bot.Post{ID: id, Text: text}, false)); err != nil {
			return err
		}
	}
	return nil
}
