package slacktest

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// ErrTimeout is what a person sees when the app did not answer in time.
var ErrTimeout = errors.New("operation_timeout")

// Slash has a person type the slash command. It returns when the app has
// acknowledged it; ErrTimeout when it has not.
func (s *Server) Slash(user, channelID, text string) error {
	s.mu.Lock()
	c, err := s.find(channelID)
	if err != nil {
		s.mu.Unlock()
		return err
	}
	u := s.users[user]
	id := s.id("resp")
	s.replies[id] = &responseURL{channel: c.ID, user: user, until: time.Now().Add(30 * time.Minute)}
	s.say(c, "", u, Command+" "+text)
	payload := map[string]string{
		"token": "legacy", "team_id": Team, "team_domain": "ci-fleet", "channel_id": c.ID, "channel_name": c.Name,
		"user_id": u.ID, "user_name": u.Name, "command": Command, "text": escape(text), "api_app_id": App,
		"is_enterprise_install": "false", "response_url": "http://" + s.addr + "/response/" + id, "trigger_id": s.id("trig."),
	}
	s.mu.Unlock()
	ack, err := s.deliver(envelope{kind: "slash_commands", payload: payload, reply: true})
	if err != nil {
		return s.timeout(c, u, err)
	}
	return s.answered(c, u, ack)
}

func (s *Server) timeout(c *channel, u User, err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.line(c, "", fmt.Sprintf("Slackbot (only %s sees it): %s failed with the error \"%s\"", u.Name, Command, ErrTimeout))
	return fmt.Errorf("%w (%w)", ErrTimeout, err)
}

// answered shows what came with an acknowledgement.
func (s *Server) answered(c *channel, u User, ack []byte) error {
	if len(bytes.TrimSpace(ack)) == 0 || string(bytes.TrimSpace(ack)) == "{}" {
		return nil
	}
	var a struct {
		Type   string          `json:"response_type"`
		Text   string          `json:"text"`
		Blocks json.RawMessage `json:"blocks"`
	}
	if err := json.Unmarshal(ack, &a); err != nil {
		return fmt.Errorf("the answer is no JSON: %w", err)
	}
	if a.Text == "" && a.Blocks == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := checkText(params{"text": a.Text, "blocks": string(a.Blocks)}); err != nil {
		return err
	}
	m := &Message{TS: s.ts(), User: Bot, Bot: true, Text: a.Text, Blocks: a.Blocks, To: u.ID}
	if a.Type == "in_channel" {
		m.To = ""
	}
	c.messages = append(c.messages, m)
	s.note(c, m, "footplate", "")
	return nil
}

// response takes what an app sends to a response_url: at most five times within 30
// minutes (docs).
func (s *Server) response(w http.ResponseWriter, r *http.Request) {
	p, err := readParams(r)
	s.mu.Lock()
	defer s.mu.Unlock()
	to := s.replies[r.PathValue("id")]
	if s.outage {
		http.Error(w, "service unavailable", http.StatusServiceUnavailable)
		return
	}
	if to == nil || to.uses >= 5 || time.Now().After(to.until) {
		http.Error(w, "used_url", http.StatusNotFound)
		return
	}
	if err == nil {
		err = checkText(p)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	to.uses++
	c := s.channels[to.channel]
	if m := to.message; m != nil && p["replace_original"] == "true" {
		m.Text, m.Blocks = p["text"], raw(p["blocks"])
		m.Edits++
		s.note(c, m, "footplate", "edits")
	} else {
		m := &Message{TS: s.ts(), User: Bot, Bot: true, Text: p["text"], Blocks: raw(p["blocks"]), To: to.user}
		if p["response_type"] == "in_channel" {
			m.To = ""
		}
		c.messages = append(c.messages, m)
		s.note(c, m, "footplate", "")
	}
	_, _ = io.WriteString(w, "ok")
}

// Say has a person write a message, perhaps in a thread, and returns its ts. When it
// mentions the bot, or is said to it directly, the app is told, until it has
// acknowledged: Settle waits for that.
func (s *Server) Say(user, channelID, text, thread string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := s.find(channelID)
	if err != nil {
		return "", err
	}
	u := s.users[user]
	m := &Message{TS: s.ts(), User: user, Bot: u.IsBot, Text: escape(strings.ReplaceAll(text, "@footplate", "\x00"))}
	m.Text = strings.ReplaceAll(m.Text, "\x00", "<@"+Bot+">")
	if err := s.place(c, m, thread); err != nil {
		return "", err
	}
	s.say(c, m.Thread, u, text)
	event := map[string]any{
		"type": "message", "channel_type": "im", "user": user, "text": m.Text, "ts": m.TS, "channel": c.ID, "event_ts": m.TS, "team": u.Team,
	}
	switch {
	case c.With != "":
	case strings.Contains(m.Text, "<@"+Bot+">"):
		event["type"] = "app_mention"
		delete(event, "channel_type")
	default:
		return m.TS, nil
	}
	if m.Thread != "" {
		event["thread_ts"] = m.Thread
	}
	if u.IsBot {
		event["bot_id"] = "B" + u.ID[1:]
	}
	s.event(event, c)
	return m.TS, nil
}

// event delivers an event until it is acknowledged; s.mu is held.
func (s *Server) event(event map[string]any, c *channel) {
	payload := map[string]any{
		"token": "legacy", "team_id": Team, "api_app_id": App, "type": "event_callback", "event_id": s.id("Ev"), "event_time": time.Now().Unix(),
		"is_ext_shared_channel": c.External, "event": event, "authorizations": []any{map[string]any{"team_id": Team, "user_id": Bot, "is_bot": true}},
	}
	e := envelope{kind: "events_api", payload: payload}
	s.unread.Go(func() {
		_, err := s.deliver(e)
		for n, wait := range s.cfg.Redeliver {
			if err == nil {
				return
			}
			select {
			case <-time.After(wait):
			case <-s.done:
				return
			}
			e.retry, e.why = n+1, "http_timeout"
			if !errors.Is(err, ErrTimeout) {
				e.why = "connection_failed"
			}
			_, err = s.deliver(e)
		}
		if err != nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.gaveUp++
			s.line(c, "", fmt.Sprintf("Slack gives up on event %s: %s", payload["event_id"], err))
		}
	})
}

// GaveUp counts the events that were never acknowledged, however often they were
// delivered.
func (s *Server) GaveUp() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gaveUp
}

// Click has a person press the button with a label in a message; ts is that of the
// message.
func (s *Server) Click(user, channelID, ts, label string) error {
	s.mu.Lock()
	c, err := s.find(channelID)
	if err != nil {
		s.mu.Unlock()
		return err
	}
	u := s.users[user]
	m := s.findMessage(c, ts)
	if m == nil {
		s.mu.Unlock()
		return fmt.Errorf("there is no message %s", ts)
	}
	var blocks []block
	_ = json.Unmarshal(m.Blocks, &blocks)
	var action map[string]any
	for _, b := range blocks {
		for _, e := range b.Elements {
			if e.Type == "button" && e.label() == label {
				action = map[string]any{
					"type": "button", "action_id": e.ActionID, "block_id": b.BlockID, "value": e.Value, "action_ts": s.ts(),
					"text": map[string]any{"type": "plain_text", "text": label},
				}
			}
		}
	}
	if action == nil {
		s.mu.Unlock()
		return fmt.Errorf("message %s has no button %q", ts, label)
	}
	id := s.id("resp")
	s.replies[id] = &responseURL{channel: c.ID, user: user, until: time.Now().Add(30 * time.Minute), message: m}
	container := map[string]any{"type": "message", "message_ts": m.TS, "channel_id": c.ID, "is_ephemeral": m.To != ""}
	if m.Thread != "" {
		container["thread_ts"] = m.Thread
	}
	payload := map[string]any{
		"type": "block_actions", "token": "legacy", "api_app_id": App, "trigger_id": s.id("trig."), "team": map[string]any{"id": Team, "domain": "ci-fleet"},
		"user": map[string]any{"id": u.ID, "username": u.Name, "team_id": u.Team}, "channel": map[string]any{"id": c.ID, "name": c.Name},
		"container": container, "response_url": "http://" + s.addr + "/response/" + id, "actions": []any{action}, "is_enterprise_install": false,
	}
	if m.To == "" {
		payload["message"] = m.json(false)
	}
	s.line(c, m.Thread, fmt.Sprintf("%s presses [%s]", u.Name, label))
	s.mu.Unlock()
	if _, err := s.deliver(envelope{kind: "interactive", payload: payload}); err != nil {
		return s.timeout(c, u, err)
	}
	return nil
}

// escape writes a text as Slack hands it to apps.
func escape(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(s)
}

// envelope is what is delivered to the app.
type envelope struct {
	kind    string
	payload any
	reply   bool // an answer may come with the acknowledgement
	retry   int
	why     string
}

// deliver hands something to the app, and returns what came with its
// acknowledgement.
func (s *Server) deliver(e envelope) ([]byte, error) {
	s.mu.Lock()
	to, secret, down := s.cfg.RequestURL, s.secret, s.outage
	s.mu.Unlock()
	switch {
	case down:
		return nil, errors.New("outage")
	case to != "":
		return s.post(to, secret, e)
	}
	return s.sockets.deliver(e, s.cfg.AckWithin)
}

// Request returns the signed request that carries something over HTTP, as Slack
// would send it.
func Request(to, kind string, payload any, at time.Time) (*http.Request, error) {
	return request(to, kind, payload, at, SigningSecret)
}

func request(to, kind string, payload any, at time.Time, secret string) (*http.Request, error) {
	b, err := json.Marshal(payload)
	if err != nil {
		return nil, err
	}
	kindOf := "application/x-www-form-urlencoded"
	form := url.Values{}
	switch kind {
	case "slash_commands":
		fields, ok := payload.(map[string]string)
		if !ok {
			return nil, fmt.Errorf("a slash command is a form, not %T", payload)
		}
		for k, v := range fields {
			form.Set(k, v)
		}
		b = []byte(form.Encode())
	case "interactive":
		form.Set("payload", string(b))
		b = []byte(form.Encode())
	default:
		kindOf = "application/json"
	}
	r, err := http.NewRequest(http.MethodPost, to, bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", kindOf)
	Sign(r.Header, b, at, secret)
	return r, nil
}

// Sign signs a request as Slack does: HMAC-SHA256 of "v0:", the time stamp and the
// body.
func Sign(h http.Header, body []byte, at time.Time, secret string) {
	stamp := strconv.FormatInt(at.Unix(), 10)
	mac := hmac.New(sha256.New, []byte(secret))
	_, _ = fmt.Fprintf(mac, "v0:%s:%s", stamp, body)
	h.Set("X-Slack-Request-Timestamp", stamp)
	h.Set("X-Slack-Signature", "v0="+hex.EncodeToString(mac.Sum(nil)))
}

func (s *Server) post(to, secret string, e envelope) ([]byte, error) {
	r, err := request(to, e.kind, e.payload, time.Now(), secret)
	if err != nil {
		return nil, err
	}
	if e.retry > 0 {
		r.Header.Set("X-Slack-Retry-Num", strconv.Itoa(e.retry))
		r.Header.Set("X-Slack-Retry-Reason", e.why)
	}
	client := http.Client{Timeout: s.cfg.AckWithin}
	res, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	if res.StatusCode/100 != 2 {
		return nil, fmt.Errorf("http_error: %s", res.Status)
	}
	return b, nil
}
