package slack

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"footplate/bot"
	"footplate/fleet"

	api "github.com/slack-go/slack"
)

// The kinds of metadata that our messages carry.
const (
	metaAnswer = "footplate_answer"
	metaLine   = "footplate_line"
)

// bearer adds the token to every call: slack-go sends it in the form, and not
// everything that speaks Slack's API reads it there.
type bearer struct {
	token string
	next  http.RoundTripper
}

// RoundTrip is http.RoundTripper's.
func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Header.Get("Authorization") == "" {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+b.token)
	}
	return b.next.RoundTrip(r)
}

// callTimeout bounds one call of the Web API.
const callTimeout = 10 * time.Second

// web is the Web API, at the pace that Slack allows.
type web struct {
	*api.Client
	base  *url.URL
	plain *http.Client // for response URLs, which must not be sent the token
	pace  pacer
}

func newWeb(cfg Config) (*web, error) {
	at := cfg.APIURL
	if at == "" {
		at = api.APIURL
	}
	if !strings.HasSuffix(at, "/") {
		at += "/"
	}
	base, err := url.Parse(at)
	if err != nil {
		return nil, fleet.Invalidf("%s: %s", EnvAPIURL, err)
	}
	return &web{
		Client: api.New(cfg.BotToken, api.OptionAppLevelToken(cfg.AppToken), api.OptionAPIURL(at),
			api.OptionHTTPClient(&http.Client{Transport: bearer{cfg.BotToken, http.DefaultTransport}, Timeout: callTimeout})),
		base:  base,
		plain: &http.Client{Timeout: callTimeout},
	}, nil
}

// pacer lets about one message a second into a channel, and a few at once.
type pacer struct {
	mu   sync.Mutex
	next map[string]time.Time
}

const (
	gap   = time.Second
	burst = 4
)

// wait waits for the channel's turn.
func (p *pacer) wait(ctx context.Context, channel string) error {
	p.mu.Lock()
	if p.next == nil {
		p.next = make(map[string]time.Time)
	}
	now := time.Now()
	for c, at := range p.next {
		if now.Sub(at) > time.Minute {
			delete(p.next, c)
		}
	}
	at := p.next[channel]
	if earliest := now.Add(-burst * gap); at.Before(earliest) {
		at = earliest
	}
	p.next[channel] = at.Add(gap)
	p.mu.Unlock()
	return pause(ctx, at.Sub(now))
}

// hold keeps everybody from a channel for a while.
func (p *pacer) hold(channel string, d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if until := time.Now().Add(d); p.next[channel].Before(until) {
		p.next[channel] = until
	}
}

func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// try makes a call, and makes it again as long as Slack says that it comes too
// soon. Nothing else is tried again here: a post that may have arrived must not be
// repeated blindly.
func try(ctx context.Context, f func(context.Context) error) error {
	for {
		err := f(ctx)
		var early *api.RateLimitedError
		if !errors.As(err, &early) {
			return wrap(err)
		}
		after := max(early.RetryAfter, time.Second)
		if end, ok := ctx.Deadline(); ok && time.Until(end) < after {
			return fleet.Unavailablef("Slack takes no more for now").WithHint("it asks to wait %s", fleet.DurationOf(after))
		}
		if err := pause(ctx, after); err != nil {
			return fleet.Unavailablef("Slack takes no more for now: %s", err)
		}
	}
}

// wrap gives an error of the Web API a code: Unavailable when nothing was done,
// Unknown when it may have been, Invalid when Slack has refused it for good.
func wrap(err error) error {
	if err == nil {
		return nil
	}
	var refused api.SlackErrorResponse
	var status api.StatusCodeError
	var dial *net.OpError
	var known *fleet.Error
	switch {
	case errors.As(err, &known):
		return err
	case errors.As(err, &refused):
		switch refused.Err {
		case "internal_error", "fatal_error", "service_unavailable", "request_timeout", "team_added_to_org":
			return fleet.Unknownf("Slack failed: %s", refused.Err)
		case "not_in_channel", "channel_not_found":
			return fleet.Invalidf("the bot is not in the channel (%s)", refused.Err).WithHint("/invite the app there")
		case "missing_scope":
			return fleet.Invalidf("the app lacks a scope: %s", refused.Needed).WithHint("add it on the app's page, and install the app again")
		}
		return fleet.Invalidf("Slack refuses: %s", refused.Err)
	case errors.As(err, &status) && status.Code < 500:
		return fleet.Invalidf("Slack answers %s", status.Status)
	case errors.As(err, &dial) && dial.Op == "dial":
		return fleet.Unavailablef("Slack cannot be reached")
	}
	return fleet.Unknownf("Slack did not answer: %s", cause(err))
}

// cause is an error without the URL, which may have a secret in it.
func cause(err error) string {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	return err.Error()
}

// options lays a post out for chat.postMessage and its kin.
func options(p bot.Post, echo bool) []api.MsgOption {
	opts := []api.MsgOption{
		api.MsgOptionText(fallback(p), false), api.MsgOptionBlocks(blocks(p, echo)...),
		api.MsgOptionDisableLinkUnfurl(), api.MsgOptionDisableMediaUnfurl(),
	}
	if p.ID != "" {
		opts = append(opts, api.MsgOptionMetadata(api.SlackMetadata{EventType: metaAnswer, EventPayload: map[string]any{"id": p.ID}}))
	}
	return opts
}

// direct reports whether a channel is a conversation with one person.
func direct(channel string) bool { return strings.HasPrefix(channel, "D") }

// Post is bot.Surface's.
func (s *Slack) Post(ctx context.Context, at bot.Place, p bot.Post) (bot.Ref, error) {
	opts := options(p, at.Thread == "" && !direct(at.Channel))
	if at.Thread != "" {
		opts = append(opts, api.MsgOptionTS(at.Thread))
	}
	channel, ts, err := s.send(ctx, at.Channel, opts)
	if err != nil {
		return bot.Ref{}, err
	}
	ref := bot.Ref{Channel: channel, ID: ts, Thread: at.Thread}
	if ref.Thread == "" {
		ref.Thread = ts
	}
	return ref, nil
}

// send posts a message when it is the channel's turn.
func (s *Slack) send(ctx context.Context, channel string, opts []api.MsgOption) (in, ts string, err error) {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	err = try(ctx, func(ctx context.Context) (err error) {
		if err := s.web.pace.wait(ctx, channel); err != nil {
			return fleet.Unavailablef("too much is being posted: %s", err)
		}
		in, ts, err = s.web.PostMessageContext(ctx, channel, opts...)
		var early *api.RateLimitedError
		if errors.As(err, &early) {
			s.web.pace.hold(channel, early.RetryAfter)
		}
		return err
	})
	return in, ts, err
}

// sendTimeout bounds a post with all its waiting.
const sendTimeout = time.Minute

// Update is bot.Surface's.
func (s *Slack) Update(ctx context.Context, r bot.Ref, p bot.Post) error {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	if r.Reply != "" {
		return s.respond(ctx, r.Reply, p, true)
	}
	return s.replace(ctx, r.Channel, r.ID, options(p, r.Thread == r.ID && !direct(r.Channel)))
}

// replace makes a message anew.
func (s *Slack) replace(ctx context.Context, channel, ts string, opts []api.MsgOption) error {
	return try(ctx, func(ctx context.Context) error {
		_, _, _, err := s.web.UpdateMessageContext(ctx, channel, ts, opts...)
		return err
	})
}

// Whisper is bot.Surface's.
func (s *Slack) Whisper(ctx context.Context, at bot.Place, p bot.Post) error {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	if at.Reply != "" {
		if err := s.respond(ctx, at.Reply, p, false); err == nil || fleet.CodeOf(err) == fleet.CodeUnknown {
			return err
		}
	}
	p.ID = "" // a message for one person has no metadata
	opts := append(options(p, true), api.MsgOptionTS(at.Thread))
	return try(ctx, func(ctx context.Context) error {
		_, err := s.web.PostEphemeralContext(ctx, at.Channel, at.User, opts...)
		return err
	})
}

// private is a post as the body of an acknowledgement or of a response URL.
func private(p bot.Post) ([]byte, error) {
	b, err := json.Marshal(map[string]any{
		"response_type": "ephemeral", "text": fallback(p), "blocks": blocks(p, true), "unfurl_links": false, "unfurl_media": false,
	})
	if err != nil {
		return nil, fmt.Errorf("write an answer: %w", err)
	}
	return b, nil
}

// respond uses a response URL.
func (s *Slack) respond(ctx context.Context, to string, p bot.Post, replace bool) error {
	u, err := url.Parse(to)
	if err != nil || !(u.Scheme == "https" && (u.Hostname() == "slack.com" || strings.HasSuffix(u.Hostname(), ".slack.com"))) &&
		!(u.Scheme == s.web.base.Scheme && u.Host == s.web.base.Host) {
		return fleet.Invalidf("the response URL is not Slack's")
	}
	body, err := json.Marshal(map[string]any{
		"response_type": "ephemeral", "replace_original": replace, "text": fallback(p), "blocks": blocks(p, true),
	})
	if err != nil {
		return fmt.Errorf("write an answer: %w", err)
	}
	return try(ctx, func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, to, bytes.NewReader(body))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/json")
		res, err := s.web.plain.Do(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		why, _ := io.ReadAll(io.LimitReader(res.Body, 200))
		switch {
		case res.StatusCode == http.StatusTooManyRequests:
			return &api.RateLimitedError{RetryAfter: time.Second}
		case res.StatusCode >= 500:
			return fleet.Unknownf("Slack answers %s", res.Status)
		case res.StatusCode >= 300:
			return fleet.Invalidf("Slack answers %s: %s", res.Status, strings.TrimSpace(string(why)))
		}
		return nil
	})
}

// Upload is bot.Surface's.
func (s *Slack) Upload(ctx context.Context, at bot.Place, private bool, name, text string) error {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	if private {
		err := try(ctx, func(ctx context.Context) error {
			c, _, _, err := s.web.OpenConversationContext(ctx, &api.OpenConversationParameters{Users: []string{at.User}})
			if err == nil {
				at.Channel, at.Thread = c.ID, ""
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return try(ctx, func(ctx context.Context) error {
		_, err := s.web.UploadFileContext(ctx, api.UploadFileParameters{
			Filename: name, Title: name, Content: text, FileSize: len(text), SnippetType: "text", Channel: at.Channel, ThreadTimestamp: at.Thread,
		})
		return err
	})
}

// Find is bot.Surface's.
func (s *Slack) Find(ctx context.Context, at bot.Place, id string) (bot.Ref, bool, error) {
	ts, ok, err := s.find(ctx, at.Channel, at.Thread, metaAnswer, id)
	ref := bot.Ref{Channel: at.Channel, ID: ts, Thread: at.Thread}
	if ref.Thread == "" {
		ref.Thread = ts
	}
	return ref, ok, err
}

// findPages bounds how far back a message is looked for, in pages of findPage.
const (
	findPages = 5
	findPage  = 200
)

// find returns the ts of our message with that id in its metadata.
func (s *Slack) find(ctx context.Context, channel, thread, kind, id string) (string, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	cursor := ""
	for range findPages {
		var list []api.Message
		more := false
		err := try(ctx, func(ctx context.Context) (err error) {
			if thread != "" {
				list, more, cursor, err = s.web.GetConversationRepliesContext(ctx, &api.GetConversationRepliesParameters{
					ChannelID: channel, Timestamp: thread, Cursor: cursor, Limit: findPage, IncludeAllMetadata: true,
				})
				return err
			}
			res, err := s.web.GetConversationHistoryContext(ctx, &api.GetConversationHistoryParameters{
				ChannelID: channel, Cursor: cursor, Limit: findPage, IncludeAllMetadata: true,
			})
			if err == nil {
				list, more, cursor = res.Messages, res.HasMore, res.ResponseMetaData.NextCursor
			}
			return err
		})
		if err != nil {
			return "", false, err
		}
		for _, m := range list {
			if m.Metadata.EventType == kind && m.Metadata.EventPayload["id"] == id {
				return m.Timestamp, true, nil
			}
		}
		if !more || cursor == "" {
			break
		}
	}
	return "", false, nil
}
