package slack

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"footplate/bot"
	"footplate/fleet"

	api "github.com/slack-go/slack"
)

// maxBody bounds what Slack may send: interactions are the longest.
const maxBody = 1 << 20

// replayWindow is how old a signature may be; slack-go checks it too.
const replayWindow = 5 * time.Minute

// replays remembers signatures, so that what was taken once is not taken again.
type replays struct {
	mu   sync.Mutex
	seen map[string]time.Time
}

// first reports whether a signature is new.
func (r *replays) first(signature string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if r.seen == nil {
		r.seen = make(map[string]time.Time)
	}
	if _, ok := r.seen[signature]; ok {
		return false
	}
	if len(r.seen) >= 1000 {
		for s, at := range r.seen {
			if now.Sub(at) > 2*replayWindow {
				delete(r.seen, s)
			}
		}
	}
	r.seen[signature] = now
	return true
}

// Handler returns what answers Slack at Path over HTTP. What takes longer than an
// answer may goes on under life.
func (s *Slack) Handler(life context.Context, b *bot.Bot) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		status, answer := s.serve(life, b, r, http.MaxBytesReader(w, r.Body, maxBody))
		if len(answer) > 0 {
			w.Header().Set("Content-Type", "application/json")
		}
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.WriteHeader(status)
		_, _ = w.Write(answer)
	})
}

// serve answers one request. Nothing of it is read before its signature is checked.
func (s *Slack) serve(life context.Context, b *bot.Bot, r *http.Request, in io.Reader) (int, []byte) {
	if s.cfg.SigningSecret == "" {
		return http.StatusNotFound, nil
	}
	if r.Method != http.MethodPost {
		return http.StatusMethodNotAllowed, nil
	}
	body, err := io.ReadAll(in)
	if err != nil {
		var long *http.MaxBytesError
		if errors.As(err, &long) {
			return http.StatusRequestEntityTooLarge, nil
		}
		return http.StatusBadRequest, nil
	}
	if err := s.signed(r.Header, body); err != nil {
		s.log.Warn("a request is not Slack's", "from", r.RemoteAddr, "err", err)
		return http.StatusUnauthorized, nil
	}
	kind, payload, err := unpack(r.Header.Get("Content-Type"), body)
	if err != nil {
		return http.StatusBadRequest, nil
	}
	if kind == kindEvent {
		var p eventPayload
		if json.Unmarshal(payload, &p) == nil && p.Type == "url_verification" {
			answer, err := json.Marshal(map[string]string{"challenge": p.Challenge})
			if err != nil {
				return http.StatusBadRequest, nil
			}
			return http.StatusOK, answer
		}
	} else if !s.replays.first(r.Header.Get("X-Slack-Signature")) {
		// Events have an id, and Slack may deliver one again with the signature of
		// before; commands and clicks come once.
		s.log.Warn("a request was replayed", "from", r.RemoteAddr)
		return http.StatusUnauthorized, nil
	}
	retry, _ := strconv.Atoi(r.Header.Get("X-Slack-Retry-Num"))
	answer, err := s.take(life, b, kind, payload, retry)
	switch code := fleet.CodeOf(err); {
	case code == fleet.CodeUnavailable && kind == kindEvent:
		return http.StatusServiceUnavailable, nil
	case code == fleet.CodeUnavailable:
		answer, _ = private(bot.Post{Text: "error: " + fleet.AsError(err).Msg})
	case err != nil:
		return http.StatusBadRequest, nil
	}
	if kind != kindSlash {
		answer = nil
	}
	return http.StatusOK, answer
}

// signed checks the signature of a request, and that it is not old.
func (s *Slack) signed(h http.Header, body []byte) error {
	v, err := api.NewSecretsVerifier(h, s.cfg.SigningSecret)
	if err != nil {
		return err
	}
	if _, err := v.Write(body); err != nil {
		return err
	}
	return v.Ensure()
}

// unpack returns what a request carries: a form with a command, a form with an
// interaction in JSON, or an event in JSON.
func unpack(contentType string, body []byte) (kind string, payload []byte, err error) {
	media, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return "", nil, malformed("request")
	}
	switch media {
	case "application/json":
		return kindEvent, body, nil
	case "application/x-www-form-urlencoded":
	default:
		return "", nil, malformed("request")
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return "", nil, malformed("request")
	}
	if p := form.Get("payload"); p != "" {
		return kindClick, []byte(p), nil
	}
	fields := make(map[string]string, len(form))
	for k := range form {
		fields[k] = form.Get(k)
	}
	payload, err = json.Marshal(fields)
	return kindSlash, payload, err
}
