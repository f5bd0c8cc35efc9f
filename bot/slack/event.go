package slack

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"footplate/bot"
	"footplate/fleet"
)

// What Slack sends, as far as it is read. Only ids are: a name is what somebody
// calls themselves. The same payloads come over a socket and over HTTP.

type slashPayload struct {
	Team        string `json:"team_id"`
	Channel     string `json:"channel_id"`
	User        string `json:"user_id"`
	Text        string `json:"text"`
	ResponseURL string `json:"response_url"`
	Trigger     string `json:"trigger_id"`
}

type clickPayload struct {
	Type string `json:"type"`
	Team struct {
		ID string `json:"id"`
	} `json:"team"`
	User struct {
		ID string `json:"id"`
	} `json:"user"`
	Channel struct {
		ID string `json:"id"`
	} `json:"channel"`
	Container struct {
		Message   string `json:"message_ts"`
		Channel   string `json:"channel_id"`
		Thread    string `json:"thread_ts"`
		Ephemeral bool   `json:"is_ephemeral"`
	} `json:"container"`
	ResponseURL string `json:"response_url"`
	Actions     []struct {
		ID    string `json:"action_id"`
		Value string `json:"value"`
		At    string `json:"action_ts"`
	} `json:"actions"`
}

type eventPayload struct {
	Type      string `json:"type"`
	Challenge string `json:"challenge"`
	Team      string `json:"team_id"`
	ID        string `json:"event_id"`
	External  bool   `json:"is_ext_shared_channel"`
	Event     struct {
		Type        string `json:"type"`
		Subtype     string `json:"subtype"`
		ChannelType string `json:"channel_type"`
		Channel     string `json:"channel"`
		User        string `json:"user"`
		BotID       string `json:"bot_id"`
		Text        string `json:"text"`
		TS          string `json:"ts"`
		Thread      string `json:"thread_ts"`
	} `json:"event"`
}

// maxRetries is how often Slack delivers an event again.
const maxRetries = 3

// self is who the bot is in Slack.
type self struct {
	Team, Enterprise, User string
}

// said is something that was said to the bot, or a button that was pressed, as far as
// a payload tells: whether the person may is another question.
type said struct {
	user, channel string
	external      bool // the payload itself says that the channel is shared
	message       *bot.Message
	click         *bot.Click
}

func (s self) principal(user string) fleet.Principal {
	return fleet.Principal("slack:" + s.Team + "/" + user)
}

// isID reports whether s can be one of Slack's ids: nothing else is let into a
// principal, a key or a call.
func isID(s string) bool {
	if len(s) < 2 || len(s) > 64 {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'A' || c > 'Z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

func isTS(s string) bool {
	head, tail, ok := strings.Cut(s, ".")
	return ok && digits(head) && digits(tail)
}

func digits(s string) bool {
	if s == "" || len(s) > 20 {
		return false
	}
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}

// keyOf makes the key of a message: Slack's own id of it, and where the answer to
// it stands.
func keyOf(channel, thread, id string) string { return "slack:" + channel + "/" + thread + "/" + id }

// placeOf returns where the answer to a message stands; ok is false when the key
// is not that of a message in Slack.
func placeOf(key string) (at bot.Place, ok bool) {
	rest, ok := strings.CutPrefix(key, "slack:")
	parts := strings.SplitN(rest, "/", 3)
	if !ok || len(parts) < 3 || !isID(parts[0]) || parts[1] != "" && !isTS(parts[1]) {
		return bot.Place{}, false
	}
	return bot.Place{Channel: parts[0], Thread: parts[1]}, true
}

func malformed(what string) error { return fleet.Invalidf("the %s cannot be read", what) }

// readSlash reads a slash command.
func readSlash(b []byte, me self) (said, error) {
	var p slashPayload
	if json.Unmarshal(b, &p) != nil || !isID(p.User) || !isID(p.Channel) || p.Trigger == "" || len(p.Trigger) > 150 {
		return said{}, malformed("slash command")
	}
	return said{user: p.User, channel: p.Channel, message: &bot.Message{
		ID: keyOf(p.Channel, "", p.Trigger), From: me.principal(p.User), Text: plain(p.Text), Private: true,
		Place: bot.Place{Channel: p.Channel, User: p.User, Reply: p.ResponseURL},
	}}, nil
}

// readClick reads an interaction; a zero said is one that means nothing to the bot.
func readClick(b []byte, me self) (said, error) {
	var p clickPayload
	if json.Unmarshal(b, &p) != nil {
		return said{}, malformed("interaction")
	}
	if p.Type != "block_actions" || len(p.Actions) == 0 || p.Actions[0].ID != actionAccept && p.Actions[0].ID != actionCancel {
		return said{}, nil
	}
	channel := p.Container.Channel
	if channel == "" {
		channel = p.Channel.ID
	}
	if !isID(p.User.ID) || !isID(channel) || !isTS(p.Container.Message) || p.Container.Thread != "" && !isTS(p.Container.Thread) {
		return said{}, malformed("interaction")
	}
	card := bot.Ref{Channel: channel, ID: p.Container.Message, Thread: p.Container.Thread}
	if p.Container.Ephemeral {
		card.Reply = p.ResponseURL
	} else if card.Thread == "" {
		card.Thread = card.ID
	}
	return said{user: p.User.ID, channel: channel, click: &bot.Click{
		From: me.principal(p.User.ID), Card: card, Value: p.Actions[0].Value,
		Place: bot.Place{Channel: channel, Thread: p.Container.Thread, User: p.User.ID, Reply: p.ResponseURL},
	}}, nil
}

// readEvent reads an event; retry is how often it was delivered before. A zero said
// is one that is not for the bot: what bots write, the bot itself among them, what
// is edited or deleted, what is said to others.
func readEvent(b []byte, retry int, me self) (said, error) {
	var p eventPayload
	if json.Unmarshal(b, &p) != nil {
		return said{}, malformed("event")
	}
	e := p.Event
	if p.Type != "event_callback" || e.BotID != "" || e.Subtype != "" || e.User == me.User || e.User == "" {
		return said{}, nil
	}
	direct := e.Type == "message" && e.ChannelType == "im"
	if !direct && e.Type != "app_mention" {
		return said{}, nil
	}
	if !isID(p.ID) && !isEventID(p.ID) || !isID(e.User) || !isID(e.Channel) || !isTS(e.TS) || e.Thread != "" && !isTS(e.Thread) {
		return said{}, malformed("event")
	}
	text, thread := e.Text, e.Thread
	if !direct {
		text = afterMention(text, me.User)
		if thread == "" {
			thread = e.TS // the answer opens a thread
		}
	} else if strings.Contains(text, "<@"+me.User+">") {
		text = afterMention(text, me.User)
	}
	return said{user: e.User, channel: e.Channel, external: p.External, message: &bot.Message{
		ID: keyOf(e.Channel, thread, p.ID), From: me.principal(e.User), Text: plain(text), At: timeOf(e.TS),
		Again: retry > 0, Last: retry >= maxRetries,
		Place: bot.Place{Channel: e.Channel, Thread: thread, User: e.User},
	}}, nil
}

func isEventID(s string) bool { return strings.HasPrefix(s, "Ev") && isID(strings.ToUpper(s)) }

// timeOf returns when a message was written.
func timeOf(ts string) time.Time {
	head, _, _ := strings.Cut(ts, ".")
	sec, err := strconv.ParseInt(head, 10, 64)
	if err != nil || sec <= 0 || sec > 1<<40 {
		return time.Time{}
	}
	return time.Unix(sec, 0)
}
