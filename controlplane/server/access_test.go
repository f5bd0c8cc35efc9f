package server

import (
	"net/http"
	"strings"
	"testing"

	"footplate/controlplane/api"
	"footplate/controlplane/catalog"
	"footplate/controlplane/op"
	"footplate/fleet"
)

// botWorld has a bot's token, of the role admin, for the people in Slack.
func botWorld(t *testing.T, ops ...*op.Op) *world {
	w := newWorld(t, 2, ops...)
	w.log(catalog.AccessTokenCreate, catalog.AccessTokenCreateArgs{
		Name: "slack-bot", Role: fleet.Admin, Surface: "slack", Hash: hashSecret("bot"),
	})
	return w
}

const someone = "slack:T1/U1"

// TestEveryOperationByEveryRole: who may run what is as the registry says, for
// a token of a role, for somebody in chat with that role, and on every node.
func TestEveryOperationByEveryRole(t *testing.T) {
	w := botWorld(t)
	roles := []fleet.Role{"", fleet.Viewer, fleet.Responder, fleet.Operator, fleet.Admin}
	for _, o := range w.ops.Ops() {
		if o.Hidden() {
			continue
		}
		call, err := w.ops.Parse(o.Examples[0])
		if err != nil {
			t.Fatal(err)
		}
		method, path, body := http.MethodGet, "/v1/"+o.Path(), any(nil)
		if o.Logged() {
			raw, err := o.Encode(call.Args)
			if err != nil {
				t.Fatal(err)
			}
			method, body = http.MethodPost, api.Request{Args: raw, DryRun: o.Kind == op.KindMutation}
		} else {
			values, err := o.Values(call.Args)
			if err != nil {
				t.Fatal(err)
			}
			path += "?" + values.Encode()
		}
		for _, role := range roles {
			if role == "" {
				w.try(catalog.AccessRevoke, catalog.AccessRevokeArgs{Principal: someone})
			} else {
				w.log(catalog.AccessGrant, catalog.AccessGrantArgs{Principal: someone, Role: role})
			}
			may := role.May(o.Role)
			for i, n := range w.nodes {
				// Much of it is not possible here: who may run it is told so, who may not is
				// denied.
				asked := map[string]answered{"chat": n.as("bot", method, path, body, api.HeaderFor, someone)}
				if role != "" {
					asked["token"] = n.as(string(role), method, path, body)
				}
				for surface, a := range asked {
					if denied := a.status == http.StatusForbidden; denied == may {
						t.Errorf("%s by %s %q at node %d: status %d", o.Name, surface, role, i+1, a.status)
					}
				}
			}
		}
		for _, n := range w.nodes {
			for what, a := range map[string]answered{
				"no token":         n.as("", method, path, body),
				"an unknown token": n.as("guess", method, path, body),
			} {
				if a.status != http.StatusUnauthorized {
					t.Errorf("%s with %s: status %d", o.Name, what, a.status)
				}
			}
		}
	}
}

// TestActingFor: for whom a token may act.
func TestActingFor(t *testing.T) {
	w := botWorld(t)
	n := w.nodes[0]
	w.log(catalog.AccessTokenCreate, catalog.AccessTokenCreateArgs{
		Name: "weak-bot", Role: fleet.Viewer, Surface: "slack", Hash: hashSecret("weak"),
	})
	w.log(catalog.AccessGrant, catalog.AccessGrantArgs{Principal: someone, Role: fleet.Operator})
	set := catalog.OrgSet.Path()
	args := api.Request{Args: []byte(`{"org":"acme"}`), Via: "slack/test"}
	for _, c := range []struct {
		what, token, who string
		status           int
	}{
		{"a bot for somebody in Slack", "bot", someone, http.StatusOK},
		{"a bot for somebody whom nobody knows", "bot", "slack:T1/U9", http.StatusForbidden},
		{"a bot for somebody elsewhere", "bot", "irc:alice", http.StatusForbidden},
		{"a bot for a name", "bot", "the-admin", http.StatusForbidden},
		{"a bot for a loop", "bot", "loop:watch", http.StatusForbidden},
		{"an admin who is no bot", "admin", someone, http.StatusForbidden},
		{"a bot that may only look", "weak", someone, http.StatusForbidden},
		{"nonsense", "bot", "slack:" + strings.Repeat("x", 200), http.StatusBadRequest},
	} {
		if a := n.as(c.token, http.MethodPost, "/v1/"+set, args, api.HeaderFor, c.who); a.status != c.status {
			t.Errorf("%s: status %d, %s", c.what, a.status, a.body)
		}
	}
	// By itself a bot may nothing, whatever the role of its token.
	for _, r := range []struct {
		method, path string
		body         any
	}{
		{http.MethodPost, "/v1/" + set, args},
		{http.MethodGet, "/v1/" + catalog.OrgList.Path(), nil},
		{http.MethodGet, "/v1/" + catalog.AuditExport.Path(), nil},
		{http.MethodGet, "/v1/events", nil},
	} {
		a := n.as("bot", r.method, r.path, r.body)
		if a.status != http.StatusForbidden || !strings.Contains(string(a.body), `token \"slack-bot\" speaks for people`) || !strings.Contains(string(a.body), api.HeaderFor) {
			t.Errorf("a bot for nobody at %s: status %d, %s", r.path, a.status, a.body)
		}
	}
	if a := n.as("bot", http.MethodGet, "/v1/"+catalog.AccessWhoami.Path(), nil); a.status != http.StatusOK || strings.Contains(string(a.body), `"admin"`) {
		t.Errorf("who a bot is: status %d, %s", a.status, a.body)
	}
	if e := w.entryOf(set); e.By != someone || e.Role != fleet.Operator || e.Via != "slack/test" {
		t.Errorf("the entry is %+v", e)
	}
}

// entryOf returns the newest entry of a done operation with that path.
func (w *world) entryOf(path string) fleet.Entry {
	var found fleet.Entry
	for _, e := range w.recorded() {
		if strings.ReplaceAll(e.Op, " ", ".") == path && e.Outcome == fleet.EntryDone {
			found = e
		}
	}
	return found
}

// TestRightsEnd: what ends, a token or a role, ends at once and by itself.
func TestRightsEnd(t *testing.T) {
	w := botWorld(t)
	w.log(catalog.AccessTokenCreate, catalog.AccessTokenCreateArgs{
		Name: "short", Role: fleet.Operator, Expires: fleet.Hour, Hash: hashSecret("short"),
	})
	w.log(catalog.AccessTokenCreate, catalog.AccessTokenCreateArgs{
		Name: "narrow", Role: fleet.Operator, Scope: []string{"build", "org list"}, Hash: hashSecret("narrow"),
	})
	w.log(catalog.AccessGrant, catalog.AccessGrantArgs{Principal: someone, Role: fleet.Operator, For: fleet.Hour})
	status := func(token, path string, header ...string) int {
		method, body := http.MethodGet, any(nil)
		if path == "org.set" {
			method, body = http.MethodPost, api.Request{Args: []byte(`{"org":"acme"}`)}
		}
		return w.nodes[1].as(token, method, "/v1/"+path, body, header...).status
	}
	if got := status("short", "org.set"); got != http.StatusOK {
		t.Errorf("a token that is good: %d", got)
	}
	if got := status("bot", "org.set", api.HeaderFor, someone); got != http.StatusOK {
		t.Errorf("a role that is good: %d", got)
	}
	for path, want := range map[string]int{
		"org.list": http.StatusOK, "build.list": http.StatusOK, "access.whoami": http.StatusOK,
		"org.set": http.StatusForbidden, "host.list": http.StatusForbidden,
	} {
		if got := status("narrow", path); got != want {
			t.Errorf("%s with a token for builds: %d", path, got)
		}
	}
	w.mu.Lock()
	w.clock = w.clock.Add(2 * fleet.Hour)
	w.mu.Unlock()
	if got := status("short", "org.set"); got != http.StatusUnauthorized {
		t.Errorf("a token that has expired: %d", got)
	}
	if got := status("bot", "org.set", api.HeaderFor, someone); got != http.StatusForbidden {
		t.Errorf("a role that has ended: %d", got)
	}
	w.log(catalog.AccessTokenRevoke, catalog.AccessTokenRevokeArgs{Name: "narrow"})
	if got := status("narrow", "build.list"); got != http.StatusUnauthorized {
		t.Errorf("a token that was ended: %d", got)
	}
}

// TestRevokedMeanwhile: a role that is taken away while a command is on its way
// wins, as a token does.
func TestRevokedMeanwhile(t *testing.T) {
	w := botWorld(t)
	w.log(catalog.AccessGrant, catalog.AccessGrantArgs{Principal: someone, Role: fleet.Operator})
	v := w.view.Load()
	door := w.nodes[0].server.Door()
	bot, err := door.Authenticate("bot")
	if err != nil {
		t.Fatal(err)
	}
	who, err := door.actingFor(bot, someone)
	if err != nil || who.Role != fleet.Operator {
		t.Fatal(who.Role, err)
	}
	saw := who.saw(v)
	w.log(catalog.AccessRevoke, catalog.AccessRevokeArgs{Principal: someone})
	c := w.command(catalog.OrgSet, catalog.OrgSetArgs{Org: "acme"})
	c.Saw = saw
	w.mu.Lock()
	out := w.apply(c)
	w.mu.Unlock()
	if out.Err == nil || out.Err.Code != fleet.CodeConflict {
		t.Errorf("it was done all the same: %+v", out)
	}
}

// TestLastAdmin: nobody can lock everybody out.
func TestLastAdmin(t *testing.T) {
	w := newWorld(t, 1)
	if err := w.try(catalog.AccessTokenRevoke, catalog.AccessTokenRevokeArgs{Name: "admin"}); fleet.CodeOf(err) != fleet.CodeConflict {
		t.Errorf("the last admin's token is gone: %v", err)
	}
	w.log(catalog.AccessGrant, catalog.AccessGrantArgs{Principal: someone, Role: fleet.Admin})
	if err := w.try(catalog.AccessTokenRevoke, catalog.AccessTokenRevokeArgs{Name: "admin"}); err != nil {
		t.Errorf("with another admin: %v", err)
	}
	for what, out := range map[string]error{
		"revoked":         w.try(catalog.AccessRevoke, catalog.AccessRevokeArgs{Principal: someone}),
		"made a viewer":   w.try(catalog.AccessGrant, catalog.AccessGrantArgs{Principal: someone, Role: fleet.Viewer}),
		"only for a time": w.try(catalog.AccessGrant, catalog.AccessGrantArgs{Principal: someone, Role: fleet.Admin, For: fleet.Hour}),
	} {
		if fleet.CodeOf(out) != fleet.CodeConflict {
			t.Errorf("the last admin was %s: %v", what, out)
		}
	}
}

// try applies a command of the test's own, and returns what it fails with.
func (w *world) try(o *op.Op, args any) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if out := w.apply(w.command(o, args)); out.Err != nil {
		return out.Err
	}
	return nil
}
