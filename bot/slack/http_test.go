package slack

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"footplate/bot/slack/slacktest"
)

// What is forged, stale or replayed is not taken; what is Slack's is.
func TestSignatures(t *testing.T) {
	w := newWorld(t, setting{http: true})
	url := w.url
	command := func(trigger string) map[string]string {
		return map[string]string{
			"team_id": slacktest.Team, "channel_id": "C0OPS", "user_id": "U0ALICE", "command": "/footplate", "text": "pool scale linux +1",
			"trigger_id": trigger, "response_url": w.URL(),
		}
	}
	event := func(id string) map[string]any {
		return map[string]any{
			"type": "event_callback", "team_id": slacktest.Team, "event_id": id,
			"event": map[string]any{"type": "message", "channel_type": "im", "user": "U0ALICE", "channel": "D0ALICE", "ts": "1.000001", "text": "pool scale linux +1"},
		}
	}
	request := func(kind string, payload any, at time.Time, change func(*http.Request)) *http.Request {
		t.Helper()
		r, err := slacktest.Request(url, kind, payload, at)
		if err != nil {
			t.Fatal(err)
		}
		if change != nil {
			change(r)
		}
		return r
	}
	now := time.Now()
	resign := func(secret string) func(*http.Request) {
		return func(r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			r.Body = io.NopCloser(bytes.NewReader(b))
			slacktest.Sign(r.Header, b, now, secret)
		}
	}
	rows := []struct {
		name   string
		r      *http.Request
		status int
		runs   int // commands that the control plane was asked for
	}{
		{"no signature", request("slash_commands", command("1"), now, func(r *http.Request) { r.Header.Del("X-Slack-Signature") }), 401, 0},
		{"empty signature", request("slash_commands", command("2"), now, func(r *http.Request) { r.Header.Set("X-Slack-Signature", "v0=") }), 401, 0},
		{"another version", request("slash_commands", command("3"), now, func(r *http.Request) {
			r.Header.Set("X-Slack-Signature", "v1"+r.Header.Get("X-Slack-Signature")[2:])
		}), 401, 0},
		{"another secret", request("slash_commands", command("4"), now, resign("0123456789abcdef0123456789abcdef")), 401, 0},
		{"the empty secret", request("slash_commands", command("5"), now, resign("")), 401, 0},
		{"another body", request("slash_commands", command("6"), now, func(r *http.Request) {
			r.Body = io.NopCloser(strings.NewReader("text=pool+scale+linux+%2B9"))
			r.ContentLength = -1
		}), 401, 0},
		{"another time stamp", request("slash_commands", command("7"), now, func(r *http.Request) {
			r.Header.Set("X-Slack-Request-Timestamp", "1700000000")
		}), 401, 0},
		{"six minutes old", request("slash_commands", command("8"), now.Add(-6*time.Minute), nil), 401, 0},
		{"six minutes ahead", request("slash_commands", command("9"), now.Add(6*time.Minute), nil), 401, 0},
		{"no time stamp", request("slash_commands", command("10"), now, func(r *http.Request) { r.Header.Del("X-Slack-Request-Timestamp") }), 401, 0},
		{"by GET", request("slash_commands", command("11"), now, func(r *http.Request) { r.Method = http.MethodGet }), 405, 0},
		{"too long", request("slash_commands", map[string]string{"text": strings.Repeat("x", maxBody)}, now, nil), 413, 0},
		{"without a user", request("slash_commands", map[string]string{"text": "pool list"}, now, nil), 400, 0},
		{"neither form nor JSON", request("events_api", event("Ev1"), now, func(r *http.Request) { r.Header.Set("Content-Type", "text/plain") }), 400, 0},
		{"a click that cannot be read", request("interactive", "nonsense", now, nil), 400, 0},
		{"a good command", request("slash_commands", command("12"), now, nil), 200, 1},
		{"the same, replayed", request("slash_commands", command("12"), now, nil), 401, 0},
		{"a good event", request("events_api", event("Ev2"), now, nil), 200, 1}, // is asked about: alice has done the same
		{"the same, delivered again", request("events_api", event("Ev2"), now.Add(time.Second), nil), 200, 0},
	}
	for _, row := range rows {
		before := w.fleet.Calls()
		res, err := http.DefaultClient.Do(row.r)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if runs := w.fleet.Calls() - before; res.StatusCode != row.status || runs != row.runs {
			t.Errorf("%s: status %d, want %d; %d runs, want %d", row.name, res.StatusCode, row.status, runs, row.runs)
		}
	}

	res, err := http.DefaultClient.Do(request("events_api", map[string]any{"type": "url_verification", "challenge": "3eZb"}, now, nil))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var answer map[string]string
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil || answer["challenge"] != "3eZb" {
		t.Errorf("the challenge is answered with %v (%v)", answer, err)
	}
}
