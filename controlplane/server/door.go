package server

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"strings"
	"unicode"
	"unicode/utf8"

	"footplate/controlplane/api"
	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
	"footplate/fleet/fault"

	"github.com/google/uuid"
)

// Door is the one way in for operations, whatever surface they come from. It
// decides what only the leader may decide before a command is logged: who asks,
// whether they may, whether the arguments are right, whether it is confirmed.
//
// What is malformed or unauthenticated is counted and leaves no entry; what a
// role forbids has an entry; a dry run writes nothing.
type Door struct {
	cfg     *Config
	metrics *metrics
}

// Caller is somebody whom a token let in.
type Caller struct {
	op.Caller
	token string // its hash
}

// saw lists what the caller's right rests on: a token or a role that is taken
// away meanwhile wins.
func (c Caller) saw(v *state.View) []state.Seen {
	saw := []state.Seen{{Table: "tokens", Key: c.token, Version: v.Tokens.Version(c.token)}}
	if c.Principal != c.Token.Principal && c.Token.Surface != "" {
		saw = append(saw, state.Seen{Table: "grants", Key: string(c.Principal), Version: v.Grants.Version(c.Principal)})
	}
	return saw
}

// The bounds of what comes with an operation.
const (
	maxKey    = 200
	maxReason = 4 << 10
	maxLabel  = 200
)

// Authenticate returns whom a token's secret lets in.
func (d *Door) Authenticate(secret string) (Caller, error) {
	v := d.cfg.View()
	hash := hashSecret(secret)
	if t, ok := v.Tokens.Get(hash); ok && secret != "" {
		if t.Expired(d.cfg.Now()) {
			return d.stranger("token %q has expired on %s", t.Name, t.ExpiresAt)
		}
		if t.Once {
			return Caller{}, fleet.Deniedf("token %q lets host %q enrol, and nothing else", t.Name, t.Principal).
				WithHint("give it to footplate agent --join-token-file")
		}
		c := Caller{op.Caller{Principal: t.Principal, Role: t.Role, Token: t}, hash}
		if t.Surface != "" {
			c.Role = "" // it has no say of its own: its role bounds those for whom it asks
		}
		return c, nil
	}
	if subtle.ConstantTimeCompare([]byte(hash), []byte(hashSecret(d.cfg.NodeToken))) == 1 {
		return Caller{op.Caller{Principal: "nodes", Role: fleet.System}, hash}, nil
	}
	if v.Tokens.Len() == 0 {
		return Caller{}, fleet.Unavailablef("node %q has not been told of the cluster's tokens yet: nothing was done", d.cfg.Node).
			WithHint("try again in a few seconds")
	}
	if secret == "" {
		return d.stranger("the request has no token")
	}
	return d.stranger("the token is not known")
}

// knows reports whether a secret is none, or one that Authenticate can judge.
func (d *Door) knows(secret string) bool {
	hash := hashSecret(secret)
	_, ok := d.cfg.View().Tokens.Get(hash)
	return ok || secret == "" || subtle.ConstantTimeCompare([]byte(hash), []byte(hashSecret(d.cfg.NodeToken))) == 1
}

func (d *Door) stranger(format string, args ...any) (Caller, error) {
	d.metrics.unauthenticated.Inc()
	return Caller{}, &statusError{fleet.Deniedf(format, args...).WithHint("set FOOTPLATE_TOKEN, or give --token"), http.StatusUnauthorized}
}

// actingFor returns p as the caller for whom c, a bot, asks: with the role that
// p was granted, and at most the bot's own.
func (d *Door) actingFor(c Caller, p fleet.Principal) (Caller, error) {
	if !c.Token.ActsFor(p) {
		return Caller{}, fleet.Deniedf("token %q may not act for %s", c.Token.Name, p).
			WithHint("make a token for that: footplate access token create NAME --surface SURFACE")
	}
	if err := fleet.CheckPrincipal(p); err != nil {
		return Caller{}, err
	}
	c.Principal, c.Role = p, ""
	if g, ok := d.cfg.View().Grants.Get(p); ok && g.Holds(d.cfg.Now()) {
		c.Role = g.Role.Below(c.Token.Role)
	}
	return c, nil
}

// secretOf returns the token's secret that a request comes with.
func secretOf(r *http.Request) string {
	scheme, secret, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(secret)
}

// caller authenticates a request by its headers.
func (d *Door) caller(r *http.Request) (Caller, error) {
	c, err := d.Authenticate(secretOf(r))
	if p := r.Header.Get(api.HeaderFor); p != "" && err == nil {
		return d.actingFor(c, fleet.Principal(p))
	}
	return c, err
}

// MintKey returns a new key for a command.
func MintKey() string { return uuid.Must(uuid.NewV7()).String() }

// check refuses a request that is wrong in itself.
func check(q *api.Request) error {
	for _, f := range []struct {
		name, value string
		most        int
	}{
		{"key", q.Key, maxKey}, {"reason", q.Reason, maxReason}, {"incident", q.Incident, maxLabel},
		{"confirm", q.Confirm, maxLabel}, {"via", q.Via, maxLabel},
	} {
		switch {
		case len(f.value) > f.most:
			return fleet.Invalidf("%s is %d bytes long; at most %d are allowed", f.name, len(f.value), f.most)
		case !utf8.ValidString(f.value):
			return fleet.Invalidf("%s is not valid UTF-8", f.name)
		case strings.ContainsFunc(f.value, func(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\t' }):
			return fleet.Invalidf("%s has a control character in it", f.name)
		}
	}
	switch q.Repeat {
	case "", state.RepeatAsk, state.RepeatMeant:
		return nil
	}
	return fleet.Invalidf("repeat is %q; it can be %s or %s", q.Repeat, state.RepeatAsk, state.RepeatMeant)
}

// Do runs an operation that is logged, on the leader: elsewhere it fails with
// CodeUnavailable. An error of the operation itself comes back as it was raised.
func (d *Door) Do(ctx context.Context, c Caller, o *op.Op, q api.Request) (api.Reply, error) {
	if o.Hidden() || !o.Logged() {
		return api.Reply{}, fleet.Invalidf("%q is not an operation that changes something", o.Name)
	}
	if err := check(&q); err != nil {
		return api.Reply{}, err
	}
	args, err := o.Decode(q.Args)
	if err != nil {
		return api.Reply{}, err
	}
	raw, err := o.Encode(args)
	if err != nil {
		return api.Reply{}, err
	}
	if q.Key == "" {
		q.Key = MintKey()
	}
	cmd := state.Command{
		Key: q.Key, Op: o.Name, Ver: o.Version(), By: c.Principal, Role: c.Role, Via: q.Via,
		Reason: q.Reason, Incident: q.Incident, Salt: randomHex(16), Repeat: q.Repeat, Args: raw,
	}
	if no := c.May(o); no != nil {
		d.metrics.refusals.WithLabelValues(o.Name).Inc()
		if q.DryRun {
			return api.Reply{}, no
		}
		return api.Reply{}, d.refuse(ctx, cmd, no)
	}
	if q.DryRun {
		return d.dryRun(ctx, &cmd)
	}
	view := d.cfg.View()
	if _, done := view.Keys.Get(string(c.Principal) + "\x00" + q.Key); !done {
		// Whoever is to be asked is asked before a plan is shown. Apply has the last
		// word.
		if again := op.Repeats(view, d.cfg.Now(), &cmd); again != nil {
			return api.Reply{}, again
		}
		// A command that is repeated with its key was confirmed before, and its
		// plan is no longer what would be done.
		if err := d.confirm(ctx, o, &cmd, q.Confirm); err != nil {
			return api.Reply{}, err
		}
	}
	cmd.Saw = append(cmd.Saw, c.saw(view)...)
	fault.Here(fault.ServerReceived)
	out, err := d.cfg.Replica.Propose(ctx, false, cmd)
	if err != nil {
		return api.Reply{}, err
	}
	fault.Here(fault.ServerCommit)
	if out.Err != nil {
		return api.Reply{}, out.Err
	}
	return api.Reply{Op: o.Name, Key: q.Key, Entry: out.Entry, Text: out.Text, Result: out.Result, Duplicate: out.Duplicate}, nil
}

// refuse records that a command was refused, and returns why. Without the
// record there is no refusal: the caller is told what kept it from being made.
func (d *Door) refuse(ctx context.Context, cmd state.Command, why *fleet.Error) error {
	// The key stays free for the day when the command is allowed, and the plan
	// is shown to the caller alone.
	recorded := *why
	recorded.Plan = nil
	cmd.Key, cmd.Refusal = "", &recorded
	if _, err := d.cfg.Replica.Propose(ctx, false, cmd); err != nil {
		return err
	}
	return why
}

func (d *Door) dryRun(ctx context.Context, cmd *state.Command) (api.Reply, error) {
	if err := d.cfg.Replica.ReadIndex(ctx); err != nil {
		return api.Reply{}, err
	}
	plan, _, text, err := d.plan(cmd)
	if err != nil {
		return api.Reply{}, err
	}
	return api.Reply{Op: cmd.Op, Key: cmd.Key, Text: text, Plan: plan}, nil
}

// plan says what cmd would do now.
func (d *Door) plan(cmd *state.Command) (plan *fleet.Plan, on []state.Seen, text string, err error) {
	defer func() {
		if p := recover(); p != nil {
			id := newID()
			d.cfg.Log.Error("panic in a dry run", "id", id, "op", cmd.Op, "err", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = internal(d.cfg.Node, id)
		}
	}()
	plan, on, res, err := d.cfg.Registry.DryRun(d.cfg.Scratch(), cmd)
	return plan, on, res.Text, err
}

// confirm makes sure that what is disruptive was confirmed, and notes the plan
// in cmd. Confirmed with a plan's hash, that must still be the plan.
func (d *Door) confirm(ctx context.Context, o *op.Op, cmd *state.Command, confirm string) error {
	yes := confirm == "yes"
	asks := o.Risk == op.Disruptive || o.Risk == op.Dangerous
	if !asks && (yes || confirm == "") {
		return nil
	}
	if o.Risk == op.Dangerous {
		if cmd.Reason == "" {
			return fleet.Invalidf("%q is dangerous: it needs a reason", o.Name).WithHint("--reason")
		}
		return d.refuse(ctx, *cmd, &fleet.Error{Code: fleet.CodeApproval, Msg: fmt.Sprintf("%q needs a second person's approval", o.Name)})
	}
	plan, on, _, err := d.plan(cmd)
	switch {
	case confirm == "" && err != nil:
		return err
	case confirm == "":
		return &fleet.Error{
			Code: fleet.CodeConfirm, Msg: fmt.Sprintf("%q is %s, and was not confirmed: nothing was done", o.Name, o.Risk),
			Hint: "look at the plan, then repeat with --yes", Plan: plan,
		}
	case err != nil && yes:
		return nil // it fails in Apply too, and leaves its entry
	case yes:
		cmd.Plan = plan.Hash
		return nil
	}
	if err == nil && plan.Hash == confirm {
		cmd.Plan = plan.Hash
		cmd.Saw = append(cmd.Saw, on...) // Apply holds the world to it
		return nil
	}
	changed := fleet.Conflictf("the plan of %q has changed since it was shown: nothing was done", o.Name).WithHint("look at the new plan, and confirm that")
	if e := (*fleet.Error)(nil); errors.As(err, &e) {
		changed = fleet.Conflictf("the plan of %q has changed since it was shown: %s", o.Name, e.Msg).WithHint("%s", e.Hint)
	}
	changed.Plan = plan
	return d.refuse(ctx, *cmd, changed)
}
