// Package slacktest is a Slack workspace for tests: the Web API as far as the bot
// uses it, slash commands, buttons and events over Socket Mode or signed HTTP, with
// the limits, redeliveries, disconnects and outages of the real one.
//
// People act through methods (Slash, Say, Click); what everybody sees is kept, and
// written by Transcript. What is known of the real service, and from where, is in
// the comments beside each figure: docs is Slack's documentation, bolt and slack-go
// are their clients, which the tests connect to this server.
package slacktest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// The ids of the workspace.
const (
	Team  = "T0FLEET"
	App   = "A0FLEET"
	Bot   = "U0FOOTPLATE" // the bot's user
	BotID = "B0FOOTPLATE"

	BotToken      = "xoxb-0-footplate-test"
	AppToken      = "xapp-1-A0FLEET-0-test"
	SigningSecret = "8f742231b10e8888abcd99yyyzzz85a5"

	Command = "/footplate"
)

// User is a person, or somebody who is not quite one.
type User struct {
	ID, Name   string
	Team       string // Team when empty
	Restricted bool   // a guest of several channels
	Ultra      bool   // a guest of one channel
	Stranger   bool   // of a workspace that shares a channel
	Deleted    bool
	IsBot      bool
}

// Channel is a channel, or a direct conversation with a user.
type Channel struct {
	ID, Name string
	With     string // the user, of a direct conversation
	External bool   // shared with another company
	Pending  bool   // about to be
	Away     bool   // the bot is not in it
}

// Config says how the workspace behaves. Zero means as the real one.
type Config struct {
	// RequestURL takes slash commands, clicks and events over HTTP; without it
	// they go over Socket Mode.
	RequestURL string
	Listen     string          // host:port; a free port of loopback when empty
	AckWithin  time.Duration   // 3 s (docs)
	Redeliver  []time.Duration // of events that were not acknowledged: at once, after 1 min, after 5 min (docs)
	Ping       time.Duration   // between two pings of a socket: 5 s
	Gap        time.Duration   // between two posts in a channel, beyond a few in a burst: none; the real one has about 1 s (docs)
}

// Server is a workspace.
type Server struct {
	cfg  Config
	addr string
	http *http.Server
	done chan struct{}

	mu       sync.Mutex
	secret   string // the newest signing secret
	users    map[string]User
	channels map[string]*channel
	last     int64 // the newest ts, in microseconds
	seq      int
	gaveUp   int
	limited  int
	log      []string
	limits   map[string]*limit
	outage   bool
	calls    map[string]int
	replies  map[string]*responseURL
	files    map[string]*file
	posts    map[string]time.Time // by channel
	unread   sync.WaitGroup       // events that are being delivered

	sockets sockets
}

type channel struct {
	Channel
	messages []*Message
}

// Message is a message as it is kept.
type Message struct {
	TS       string
	Thread   string // the ts of the thread that it is in; its own, when it has replies
	User     string
	Text     string
	Blocks   json.RawMessage
	Metadata json.RawMessage
	To       string // who alone sees it; "" for all
	Edits    int
	File     string
	Bot      bool
}

type limit struct {
	left  int
	after time.Duration
}

type responseURL struct {
	channel, user string
	message       *Message // that it replaces
	until         time.Time
	uses          int
}

type file struct {
	name, text string
}

// Start starts a workspace with the users alice, bob (a guest) and carol, the
// channels #ops and #shared (shared with another company), and #away, in which the
// bot is not.
func Start(cfg Config) (*Server, error) {
	if cfg.AckWithin == 0 {
		cfg.AckWithin = 3 * time.Second
	}
	if cfg.Redeliver == nil {
		cfg.Redeliver = []time.Duration{0, time.Minute, 5 * time.Minute}
	}
	if cfg.Ping == 0 {
		cfg.Ping = 5 * time.Second
	}
	s := &Server{
		cfg: cfg, secret: SigningSecret, done: make(chan struct{}), users: make(map[string]User), channels: make(map[string]*channel),
		limits: make(map[string]*limit), calls: make(map[string]int), replies: make(map[string]*responseURL),
		files: make(map[string]*file), posts: make(map[string]time.Time),
	}
	s.AddUser(User{ID: "U0ALICE", Name: "alice"})
	s.AddUser(User{ID: "U0BOB", Name: "bob", Restricted: true})
	s.AddUser(User{ID: "U0CAROL", Name: "carol"})
	s.AddUser(User{ID: Bot, Name: "footplate", IsBot: true})
	s.AddChannel(Channel{ID: "C0OPS", Name: "ops"})
	s.AddChannel(Channel{ID: "C0SHARED", Name: "shared", External: true})
	s.AddChannel(Channel{ID: "C0AWAY", Name: "away", Away: true})
	l, err := net.Listen("tcp", cmp.Or(cfg.Listen, "127.0.0.1:0"))
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	s.addr = l.Addr().String()
	mux := http.NewServeMux()
	mux.HandleFunc("/api/{method}", s.method)
	mux.HandleFunc("POST /upload/{file}", s.upload)
	mux.HandleFunc("POST /response/{id}", s.response)
	mux.HandleFunc("GET /link", s.link)
	s.http = &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() {
		defer close(s.done)
		_ = s.http.Serve(l)
	}()
	return s, nil
}

// Close ends the workspace.
func (s *Server) Close() {
	s.sockets.closeAll()
	_ = s.http.Close()
	<-s.done
	s.unread.Wait()
}

// URL returns the address of the Web API, for FOOTPLATE_SLACK_API_URL.
func (s *Server) URL() string { return "http://" + s.addr + "/api/" }

// Through has the app reach the workspace through addr, a proxy before it: what it is
// told of sockets and response URLs leads there too.
func (s *Server) Through(addr string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addr = addr
}

// SetRequestURL has what people do delivered over HTTP.
func (s *Server) SetRequestURL(url string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cfg.RequestURL = url
}

// SetSigningSecret has the workspace sign with another secret: the one before is
// of no use from then on (docs).
func (s *Server) SetSigningSecret(secret string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secret = secret
}

// AddUser adds or replaces a user.
func (s *Server) AddUser(u User) {
	if u.Team == "" {
		u.Team = Team
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users[u.ID] = u
	if !u.IsBot {
		s.channels["D"+u.ID[1:]] = &channel{Channel: Channel{ID: "D" + u.ID[1:], With: u.ID}}
	}
}

// AddChannel adds or replaces a channel.
func (s *Server) AddChannel(c Channel) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.channels[c.ID] = &channel{Channel: c}
}

// Limit has the next n calls of a method answered with 429 and Retry-After, in
// whole seconds.
func (s *Server) Limit(method string, n int, after time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limits[method] = &limit{n, after}
}

// Outage begins or ends an outage: the Web API answers 503, every socket is cut, and
// none can be opened.
func (s *Server) Outage(on bool) {
	s.mu.Lock()
	s.outage = on
	s.mu.Unlock()
	if on {
		s.sockets.cutAll()
	}
}

// Calls counts the calls of a method that got through.
func (s *Server) Calls(method string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[method]
}

// Limited counts the calls that were answered with 429.
func (s *Server) Limited() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.limited
}

// Messages returns the messages of a channel, oldest first, with what only one
// person sees.
func (s *Server) Messages(channel string) []Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Message
	if c := s.channels[channel]; c != nil {
		for _, m := range c.messages {
			out = append(out, *m)
		}
	}
	return out
}

// Settle waits until every event was delivered, or given up.
func (s *Server) Settle() { s.unread.Wait() }

// ts returns the next time stamp, which is unique.
func (s *Server) ts() string {
	s.last = max(s.last+1, time.Now().UnixMicro())
	return fmt.Sprintf("%d.%06d", s.last/1e6, s.last%1e6)
}

func (s *Server) id(prefix string) string {
	s.seq++
	return fmt.Sprintf("%s%010d", prefix, s.seq)
}

// apiError is an error as Slack words it.
type apiError string

func (e apiError) Error() string { return string(e) }

// params are those of a call: from a form, or from JSON.
type params map[string]string

func readParams(r *http.Request) (params, error) {
	p := make(params)
	body, err := io.ReadAll(io.LimitReader(r.Body, 4<<20))
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/json") {
		if len(body) == 0 {
			return p, nil
		}
		var raw map[string]json.RawMessage
		if err := json.Unmarshal(body, &raw); err != nil {
			return nil, apiError("invalid_json")
		}
		for k, v := range raw {
			var text string
			if json.Unmarshal(v, &text) != nil {
				text = string(v)
			}
			p[k] = text
		}
		return p, nil
	}
	r.Body = io.NopCloser(strings.NewReader(string(body)))
	if err := r.ParseForm(); err != nil {
		return nil, apiError("invalid_form_data")
	}
	for k, v := range r.Form {
		p[k] = v[0]
	}
	return p, nil
}

// method answers a call of the Web API.
func (s *Server) method(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("method")
	p, err := readParams(r)
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok && p != nil {
		token = p["token"]
	}
	var res map[string]any
	s.mu.Lock()
	if s.outage {
		s.mu.Unlock()
		http.Error(w, "service unavailable", http.StatusServiceUnavailable)
		return
	}
	if l := s.limits[name]; l != nil && l.left > 0 {
		l.left--
		s.limited++
		s.mu.Unlock()
		tooMany(w, l.after)
		return
	}
	if name == "chat.postMessage" && err == nil {
		if wait := s.tooFast(p["channel"]); wait > 0 {
			s.limited++
			s.mu.Unlock()
			tooMany(w, wait)
			return
		}
	}
	s.calls[name]++
	if err == nil {
		err = authorized(name, token)
	}
	if err == nil {
		res, err = s.call(name, p)
	}
	s.mu.Unlock()
	if err == errNoMethod {
		http.NotFound(w, r)
		return
	}
	if err != nil {
		res = map[string]any{"ok": false, "error": err.Error()}
	} else {
		res["ok"] = true
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	_ = json.NewEncoder(w).Encode(res)
}

func tooMany(w http.ResponseWriter, after time.Duration) {
	w.Header().Set("Retry-After", strconv.Itoa(int((after+time.Second-1)/time.Second)))
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(http.StatusTooManyRequests)
	_, _ = io.WriteString(w, `{"ok":false,"error":"ratelimited"}`)
}

// burst is how many posts to a channel may come faster than the rate. The real
// figure is not told (docs: "short bursts are tolerated").
const burst = 6

// tooFast returns how long a post to a channel has to wait.
func (s *Server) tooFast(channel string) time.Duration {
	if s.cfg.Gap == 0 {
		return 0
	}
	now := time.Now()
	due := s.posts[channel] // when all that was posted would have been, at the rate
	if early := due.Add(-(burst - 1) * s.cfg.Gap); now.Before(early) {
		return early.Sub(now)
	}
	if due.Before(now) {
		due = now
	}
	s.posts[channel] = due.Add(s.cfg.Gap)
	return 0
}

func authorized(method, token string) error {
	want := BotToken
	if method == "apps.connections.open" {
		want = AppToken
	}
	switch {
	case method == "api.test":
		return nil
	case token == "":
		return apiError("not_authed")
	case token != want && (token == AppToken || token == BotToken):
		return apiError("not_allowed_token_type")
	case token != want:
		return apiError("invalid_auth")
	}
	return nil
}

const errNoMethod = apiError("unknown_method")

// call does what a method does; s.mu is held.
func (s *Server) call(name string, p params) (map[string]any, error) {
	switch name {
	case "api.test":
		return map[string]any{}, nil
	case "auth.test":
		return map[string]any{
			"url": "https://ci-fleet.slack.com/", "team": "CI Fleet", "user": "footplate", "team_id": Team, "user_id": Bot, "bot_id": BotID,
			"is_enterprise_install": false,
		}, nil
	case "apps.connections.open":
		return map[string]any{"url": "ws://" + s.addr + "/link?ticket=" + s.sockets.ticket()}, nil
	case "chat.postMessage":
		return s.postMessage(p)
	case "chat.update":
		return s.update(p)
	case "chat.postEphemeral":
		return s.postEphemeral(p)
	case "conversations.info":
		c, err := s.find(p["channel"])
		if err != nil {
			return nil, err
		}
		return map[string]any{"channel": s.channelJSON(c)}, nil
	case "conversations.open":
		u, ok := s.users[p["users"]]
		if !ok {
			return nil, apiError("user_not_found")
		}
		return map[string]any{"channel": map[string]any{"id": "D" + u.ID[1:]}}, nil
	case "conversations.history", "conversations.replies":
		return s.history(name, p)
	case "users.info":
		u, ok := s.users[p["user"]]
		if !ok {
			return nil, apiError("user_not_found")
		}
		return map[string]any{"user": map[string]any{
			"id": u.ID, "team_id": u.Team, "name": u.Name, "deleted": u.Deleted, "is_bot": u.IsBot, "is_restricted": u.Restricted,
			"is_ultra_restricted": u.Ultra, "is_stranger": u.Stranger, "profile": map[string]any{"real_name": u.Name},
		}}, nil
	case "files.getUploadURLExternal":
		if n, err := strconv.Atoi(p["length"]); err != nil || n <= 0 || p["filename"] == "" {
			return nil, apiError("invalid_arguments")
		}
		id := s.id("F")
		s.files[id] = &file{name: p["filename"]}
		return map[string]any{"upload_url": "http://" + s.addr + "/upload/" + id, "file_id": id}, nil
	case "files.completeUploadExternal":
		return s.completeUpload(p)
	}
	return nil, errNoMethod
}

func (s *Server) channelJSON(c *channel) map[string]any {
	out := map[string]any{
		"id": c.ID, "is_channel": c.With == "", "is_im": c.With != "", "is_member": !c.Away, "is_private": false, "is_archived": false,
		"is_shared": c.External, "is_ext_shared": c.External, "is_pending_ext_shared": c.Pending,
	}
	if c.With == "" {
		out["name"] = c.Name
	} else {
		out["user"] = c.With
	}
	return out
}

// find returns a channel; a user's id stands for the direct conversation.
func (s *Server) find(id string) (*channel, error) {
	if strings.HasPrefix(id, "U") {
		id = "D" + id[1:]
	}
	c := s.channels[id]
	if c == nil {
		return nil, apiError("channel_not_found")
	}
	return c, nil
}

func (s *Server) findMessage(c *channel, ts string) *Message {
	for _, m := range c.messages {
		if m.TS == ts {
			return m
		}
	}
	return nil
}

// checkText refuses what the real service refuses (figures from the docs; the sum of
// all blocks from bolt-js#2509).
func checkText(p params) error {
	if len(p["text"]) > 40000 {
		return apiError("msg_too_long")
	}
	if p["blocks"] == "" {
		if p["text"] == "" {
			return apiError("no_text")
		}
		return nil
	}
	var blocks []block
	if json.Unmarshal([]byte(p["blocks"]), &blocks) != nil || len(blocks) > 50 {
		return apiError("invalid_blocks")
	}
	sum := 0
	for _, b := range blocks {
		size := len(b.Text.Text)
		bad := b.Type == "section" && (size == 0 || size > 3000) || len(b.BlockID) > 255
		for _, e := range b.Elements {
			size += len(e.label())
			bad = bad || e.Type == "button" && (len(e.label()) > 75 || len(e.Value) > 2000 || len(e.ActionID) > 255)
		}
		if bad || len(b.Elements) > 25 {
			return apiError("invalid_blocks")
		}
		sum += size
	}
	if sum > 13200 {
		return apiError("msg_blocks_too_long")
	}
	return nil
}

func (s *Server) postMessage(p params) (map[string]any, error) {
	c, err := s.find(p["channel"])
	if err != nil {
		return nil, err
	}
	if c.Away {
		return nil, apiError("not_in_channel")
	}
	if err := checkText(p); err != nil {
		return nil, err
	}
	if p["metadata"] != "" {
		var meta struct {
			EventType    string         `json:"event_type"`
			EventPayload map[string]any `json:"event_payload"`
		}
		if json.Unmarshal([]byte(p["metadata"]), &meta) != nil || meta.EventType == "" {
			return nil, apiError("invalid_metadata_format")
		}
	}
	m := &Message{TS: s.ts(), User: Bot, Bot: true, Text: p["text"], Blocks: raw(p["blocks"]), Metadata: raw(p["metadata"])}
	if err := s.place(c, m, p["thread_ts"]); err != nil {
		return nil, err
	}
	s.note(c, m, "footplate", "")
	return map[string]any{"channel": c.ID, "ts": m.TS, "message": m.json(true)}, nil
}

// place adds a message to a channel, perhaps in a thread.
func (s *Server) place(c *channel, m *Message, thread string) error {
	if thread != "" {
		parent := s.findMessage(c, thread)
		if parent == nil {
			return apiError("thread_not_found")
		}
		if parent.Thread == "" {
			parent.Thread = parent.TS
		}
		m.Thread = parent.Thread
	}
	c.messages = append(c.messages, m)
	return nil
}

func (s *Server) update(p params) (map[string]any, error) {
	c, err := s.find(p["channel"])
	if err != nil {
		return nil, err
	}
	m := s.findMessage(c, p["ts"])
	switch {
	case m == nil:
		return nil, apiError("message_not_found")
	case !m.Bot || m.To != "":
		return nil, apiError("cant_update_message")
	}
	if err := checkText(p); err != nil {
		return nil, err
	}
	// A text without blocks removes the blocks.
	m.Text, m.Blocks = p["text"], raw(p["blocks"])
	if p["metadata"] != "" {
		m.Metadata = raw(p["metadata"])
	}
	m.Edits++
	s.note(c, m, "footplate", "edits")
	return map[string]any{"channel": c.ID, "ts": m.TS, "text": m.Text, "message": m.json(true)}, nil
}

func (s *Server) postEphemeral(p params) (map[string]any, error) {
	c, err := s.find(p["channel"])
	if err != nil {
		return nil, err
	}
	if _, ok := s.users[p["user"]]; !ok {
		return nil, apiError("user_not_in_channel")
	}
	if err := checkText(p); err != nil {
		return nil, err
	}
	m := &Message{TS: s.ts(), User: Bot, Bot: true, Text: p["text"], Blocks: raw(p["blocks"]), To: p["user"], Thread: p["thread_ts"]}
	c.messages = append(c.messages, m)
	s.note(c, m, "footplate", "")
	return map[string]any{"message_ts": m.TS}, nil
}

func (s *Server) history(method string, p params) (map[string]any, error) {
	c, err := s.find(p["channel"])
	if err != nil {
		return nil, err
	}
	if c.Away {
		return nil, apiError("not_in_channel")
	}
	limit := 100
	if p["limit"] != "" {
		if limit, err = strconv.Atoi(p["limit"]); err != nil || limit < 1 || limit > 999 {
			return nil, apiError("invalid_limit")
		}
	}
	var list []*Message
	for _, m := range c.messages {
		in := m.Thread == "" || m.Thread == m.TS
		if method == "conversations.replies" {
			in = m.TS == p["ts"] || m.Thread == p["ts"]
		}
		if in && m.To == "" && (p["oldest"] == "" || m.TS > p["oldest"]) && (p["latest"] == "" || m.TS < p["latest"]) {
			list = append(list, m)
		}
	}
	if method == "conversations.replies" && len(list) == 0 {
		return nil, apiError("thread_not_found")
	}
	if method == "conversations.history" {
		slices.Reverse(list)
	}
	from := 0
	if p["cursor"] != "" {
		if from, err = strconv.Atoi(strings.TrimPrefix(p["cursor"], "next:")); err != nil || from < 0 || from > len(list) {
			return nil, apiError("invalid_cursor")
		}
	}
	page := list[from:min(from+limit, len(list))]
	out := make([]any, len(page))
	for i, m := range page {
		out[i] = m.json(p["include_all_metadata"] == "true" || p["include_all_metadata"] == "1")
	}
	more := from+limit < len(list)
	res := map[string]any{"messages": out, "has_more": more}
	if more {
		res["response_metadata"] = map[string]any{"next_cursor": fmt.Sprintf("next:%d", from+limit)}
	}
	return res, nil
}

func raw(s string) json.RawMessage {
	if s == "" {
		return nil
	}
	return json.RawMessage(s)
}

// json returns a message as the API shows it.
func (m *Message) json(metadata bool) map[string]any {
	out := map[string]any{"type": "message", "ts": m.TS, "user": m.User, "text": m.Text}
	if m.Bot {
		out["bot_id"], out["app_id"], out["team"] = BotID, App, Team
	}
	if m.Thread != "" {
		out["thread_ts"] = m.Thread
	}
	if m.Blocks != nil {
		out["blocks"] = m.Blocks
	}
	if m.Metadata != nil && metadata {
		out["metadata"] = m.Metadata
	}
	if m.Edits > 0 {
		out["edited"] = map[string]any{"user": m.User, "ts": m.TS}
	}
	return out
}

// upload takes the content of a file.
func (s *Server) upload(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	f := s.files[r.PathValue("file")]
	s.mu.Unlock()
	if f == nil {
		http.NotFound(w, r)
		return
	}
	in, _, err := r.FormFile("file")
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	defer in.Close()
	b, err := io.ReadAll(io.LimitReader(in, 8<<20))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	f.text = string(b)
	s.mu.Unlock()
	_, _ = io.WriteString(w, "OK - "+strconv.Itoa(len(b)))
}

func (s *Server) completeUpload(p params) (map[string]any, error) {
	var list []struct {
		ID    string `json:"id"`
		Title string `json:"title"`
	}
	if json.Unmarshal([]byte(p["files"]), &list) != nil || len(list) == 0 {
		return nil, apiError("invalid_arguments")
	}
	out := []any{}
	for _, l := range list {
		f := s.files[l.ID]
		if f == nil || f.text == "" {
			return nil, apiError("file_not_found")
		}
		out = append(out, map[string]any{"id": l.ID, "title": l.Title})
		if p["channel_id"] == "" {
			continue
		}
		c, err := s.find(p["channel_id"])
		if err != nil {
			return nil, err
		}
		m := &Message{TS: s.ts(), User: Bot, Bot: true, File: l.ID, Text: p["initial_comment"]}
		if err := s.place(c, m, p["thread_ts"]); err != nil {
			return nil, err
		}
		s.note(c, m, "footplate", "uploads")
	}
	return map[string]any{"files": out}, nil
}

// File returns the content of a file.
func (s *Server) File(id string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.files[id]; f != nil {
		return f.text
	}
	return ""
}
