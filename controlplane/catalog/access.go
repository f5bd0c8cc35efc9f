package catalog

import (
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
)

// AccessWhoami says who the caller is.
var AccessWhoami = op.Query(op.Spec{
	Name:     "access whoami",
	Summary:  "say who you are here, and what you may do",
	Role:     fleet.Anybody,
	Examples: []string{"access whoami"},
}, func(_ context.Context, env op.Env, _ struct{}) (WhoamiRow, error) {
	c := env.Caller
	row := WhoamiRow{
		Principal: c.Principal, Role: c.Role, Token: c.Token.Name, Scope: c.Token.Scope, Until: c.Token.ExpiresAt,
	}
	if g, ok := env.View.Grants.Get(c.Principal); ok && c.Token.ActsFor(c.Principal) && g.Holds(env.Now) {
		row.Until = earlier(row.Until, g.Until)
	}
	for _, o := range env.Ops.Ops() {
		switch {
		case o.Hidden():
		case c.May(o) == nil:
			row.May = append(row.May, o.Name)
		default:
			row.MayNot = append(row.MayNot, o.Name)
		}
	}
	return row, nil
})

// WhoamiRow is who somebody is.
type WhoamiRow struct {
	Principal fleet.Principal `json:"principal" col:"PRINCIPAL" id:"true"`
	Role      fleet.Role      `json:"role" col:"ROLE"`
	Token     string          `json:"token" col:"TOKEN" help:"that let you in"`
	Scope     []string        `json:"scope,omitempty" col:"SCOPE" help:"what the token is good for; everything when empty"`
	Until     fleet.Time      `json:"until" col:"UNTIL" help:"when the role or the token ends"`
	May       []string        `json:"may"`
	MayNot    []string        `json:"may_not"`
}

// earlier returns the earlier of two moments, where zero is never.
func earlier(a, b fleet.Time) fleet.Time {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// AccessExplainArgs names an operation.
type AccessExplainArgs struct {
	Operation []string        `json:"operation" arg:"OPERATION" required:"true" help:"the operation, as its words"`
	Principal fleet.Principal `json:"principal,omitempty" flag:"principal" complete:"access" help:"whom to ask about; you, when it is left out"`
}

// AccessExplain says whether somebody may run an operation, and why.
var AccessExplain = op.Query(op.Spec{
	Name:     "access explain",
	Summary:  "say whether somebody may run an operation, and why",
	Role:     fleet.Anybody,
	Examples: []string{"access explain host drain", "access explain pool scale --principal slack:T024BE7LD/U024BE7LH"},
}, func(_ context.Context, env op.Env, a AccessExplainArgs) (ExplainRow, error) {
	name := strings.Join(a.Operation, " ")
	o, ok := env.Ops.Get(name)
	if !ok || o.Hidden() {
		e := fleet.NotFoundf("there is no operation %q", name).WithHint("footplate help lists them")
		switch near, rest, err := env.Ops.Find(strings.Fields(name)); {
		case err != nil:
			e = e.WithHint("%s", fleet.AsError(err).Hint)
		case len(rest) > 0:
			e = e.WithHint("did you mean %q?", near.Name)
		}
		return ExplainRow{}, e
	}
	row := ExplainRow{Principal: env.Caller.Principal, Operation: o.Name, Needs: o.Role, Risk: o.Risk}
	if a.Principal == "" || a.Principal == env.Caller.Principal {
		row.Role = env.Caller.Role
		if no := env.Caller.May(o); no != nil {
			row.Why = no.Msg
		} else {
			row.May, row.Why = true, mayBecause(env.Caller, env)
		}
		return row, nil
	}
	if !env.Caller.Role.May(fleet.Viewer) {
		return ExplainRow{}, fleet.Deniedf("%s may not ask about others: that takes the role %s", env.Caller.Principal, fleet.Viewer)
	}
	g, ok := env.View.Grants.Get(a.Principal)
	if !ok || !g.Holds(env.Now) {
		return ExplainRow{}, fleet.NotFoundf("%s has been granted no role", a.Principal).WithHint("footplate access list")
	}
	asked := op.Caller{Principal: a.Principal, Role: g.Role}
	row.Principal, row.Role = a.Principal, g.Role
	if no := asked.May(o); no != nil {
		row.Why = no.Msg
	} else {
		row.May, row.Why = true, grantWords(g)
	}
	return row, nil
})

// ExplainRow says what somebody may do.
type ExplainRow struct {
	Principal fleet.Principal `json:"principal" col:"PRINCIPAL" id:"true"`
	Operation string          `json:"operation" col:"OPERATION"`
	May       bool            `json:"may" col:"MAY"`
	Role      fleet.Role      `json:"role" col:"ROLE"`
	Needs     fleet.Role      `json:"needs" col:"NEEDS"`
	Risk      op.Risk         `json:"risk" col:"RISK"`
	Why       string          `json:"why" col:"WHY"`
}

func mayBecause(c op.Caller, env op.Env) string {
	if g, ok := env.View.Grants.Get(c.Principal); ok && c.Token.ActsFor(c.Principal) && g.Holds(env.Now) {
		return grantWords(g)
	}
	return fmt.Sprintf("token %q has the role %s", c.Token.Name, c.Role)
}

func grantWords(g fleet.Grant) string {
	s := fmt.Sprintf("%s granted the role %s on %s", g.By, g.Role, moment(g.At))
	if g.Until != 0 {
		s += fmt.Sprintf(", until %s", moment(g.Until))
	}
	return s
}

// AccessList lists who may do what.
var AccessList = op.Query(op.Spec{
	Name:     "access list",
	Summary:  "list the tokens and the roles that were granted",
	Role:     fleet.Viewer,
	Examples: []string{"access list"},
}, func(_ context.Context, env op.Env, _ struct{}) ([]AccessRow, error) {
	rows := []AccessRow{}
	for _, t := range env.View.Tokens.All() {
		row := AccessRow{
			Kind: "token", Name: t.Name, Principal: t.Principal, Role: t.Role, Scope: t.Scope,
			Until: t.ExpiresAt, By: t.MadeBy, Expired: t.Expired(env.Now),
		}
		switch {
		case t.Surface != "":
			row.Principal = fleet.Principal(t.Surface + ":*")
		case t.Once:
			row.Principal, row.Once, row.Used = fleet.AgentOf(fleet.HostID(t.Principal)), true, t.UsedAt
		}
		rows = append(rows, row)
	}
	for _, g := range env.View.Grants.All() {
		rows = append(rows, AccessRow{
			Kind: "grant", Name: string(g.Principal), Principal: g.Principal, Role: g.Role,
			Until: g.Until, By: g.By, Expired: !g.Holds(env.Now),
		})
	}
	slices.SortStableFunc(rows, func(a, b AccessRow) int {
		if c := strings.Compare(b.Kind, a.Kind); c != 0 { // tokens first
			return c
		}
		return strings.Compare(a.Name, b.Name)
	})
	return rows, nil
})

// AccessRow is a token or a granted role as lists show it.
type AccessRow struct {
	Kind      string          `json:"kind" col:"KIND"`
	Name      string          `json:"name" col:"NAME" id:"true"`
	Principal fleet.Principal `json:"principal" col:"PRINCIPAL" help:"who acts by it"`
	Role      fleet.Role      `json:"role" col:"ROLE"`
	Scope     []string        `json:"scope,omitempty" col:"SCOPE" help:"operations that a token is good for; all when empty"`
	Until     fleet.Time      `json:"until" col:"UNTIL" help:"when it ends; never when empty"`
	Expired   bool            `json:"expired" col:"EXPIRED"`
	Once      bool            `json:"once,omitempty" col:"ONCE" help:"it lets one host enrol, one time"`
	Used      fleet.Time      `json:"used,omitzero" col:"USED" help:"when that was"`
	By        fleet.Principal `json:"by,omitempty" col:"BY" help:"who made it"`
}

// AccessGrantArgs gives a role.
type AccessGrantArgs struct {
	Principal fleet.Principal `json:"principal" arg:"PRINCIPAL" required:"true" complete:"access" help:"who: SURFACE:ID, for example slack:T024BE7LD/U024BE7LH"`
	Role      fleet.Role      `json:"role" arg:"ROLE" required:"true" enum:"viewer,responder,operator,admin" help:"what they may do"`
	For       fleet.Duration  `json:"for,omitempty" flag:"for" help:"it ends by itself after this long; for good when it is left out"`
}

// Validate checks who it is, and the expiry.
func (a AccessGrantArgs) Validate() error {
	if a.For < 0 {
		return fleet.Invalidf("--for is %s; it must be positive", a.For)
	}
	return fleet.CheckPrincipal(a.Principal)
}

// AccessGrant gives somebody on a surface a role.
var AccessGrant = op.Mutation(op.Spec{
	Name:     "access grant",
	Summary:  "give somebody in chat a role, or another one",
	Role:     fleet.Admin,
	Risk:     op.Safe,
	Show:     state.ShowLine,
	Examples: []string{"access grant slack:T024BE7LD/U024BE7LH operator", "access grant slack:T024BE7LD/U024BE7LH admin --for 2h"},
}, func(tx *state.Tx, m op.Meta, a AccessGrantArgs) (op.Result, error) {
	g := fleet.Grant{Principal: a.Principal, Role: a.Role, By: m.By, At: tx.At}
	text := fmt.Sprintf("%s is %s", a.Principal, a.Role)
	if a.For > 0 {
		g.Until = tx.At.Add(a.For)
		text += fmt.Sprintf(" for %s", a.For)
	}
	if old, ok := tx.Grants.Get(a.Principal); ok && old.Holds(tx.At) {
		if err := keepsAdmin(tx, func(p fleet.Principal) bool { return p == a.Principal && (a.Role != fleet.Admin || a.For > 0) }, nil); err != nil {
			return op.Result{}, err
		}
		text += fmt.Sprintf(" (was %s)", old.Role)
	}
	tx.Grants.Put(a.Principal, g)
	return op.Result{Text: text, Data: g}, nil
})

// AccessRevokeArgs names somebody.
type AccessRevokeArgs struct {
	Principal fleet.Principal `json:"principal" arg:"PRINCIPAL" required:"true" complete:"access" help:"who: SURFACE:ID, or agent:HOST"`
}

// AccessRevoke takes a granted role away.
var AccessRevoke = op.Mutation(op.Spec{
	Name:     "access revoke",
	Summary:  "take away a granted role, or the right of an agent that has enrolled",
	Role:     fleet.Admin,
	Risk:     op.Safe,
	Show:     state.ShowLine,
	Examples: []string{"access revoke slack:T024BE7LD/U024BE7LH", "access revoke agent:linux-4"},
}, func(tx *state.Tx, _ op.Meta, a AccessRevokeArgs) (op.Result, error) {
	old, ok := tx.Grants.Get(a.Principal)
	if !ok {
		return op.Result{}, fleet.NotFoundf("%s has been granted no role", a.Principal).WithHint("footplate access list")
	}
	if err := keepsAdmin(tx, func(p fleet.Principal) bool { return p == a.Principal }, nil); err != nil {
		return op.Result{}, err
	}
	tx.Grants.Delete(a.Principal)
	if old.Key != "" {
		return op.Result{Text: fmt.Sprintf("the certificate of %s is void", a.Principal)}, nil
	}
	return op.Result{Text: fmt.Sprintf("%s is no longer %s", a.Principal, old.Role)}, nil
})

// keepsAdmin refuses what would leave nobody who can grant anything: without
// the grants and tokens that are going, there must be an admin left, for good.
func keepsAdmin(tx *state.Tx, going func(fleet.Principal) bool, token func(fleet.Token) bool) error {
	left := false
	lost := false
	for _, t := range tx.Tokens.All() {
		if t.Role != fleet.Admin || t.ExpiresAt != 0 || len(t.Scope) > 0 || t.Surface != "" {
			continue
		}
		if token != nil && token(t) {
			lost = true
			continue
		}
		left = true
	}
	for p, g := range tx.Grants.All() {
		if g.Role != fleet.Admin || g.Until != 0 {
			continue
		}
		if going != nil && going(p) {
			lost = true
			continue
		}
		left = true
	}
	if lost && !left {
		return fleet.Conflictf("nobody would be left who is admin for good").WithHint("make another admin first")
	}
	return nil
}

// AccessTokenCreateArgs describes a token. Its secret is made where it will be
// used; only the hash comes here.
type AccessTokenCreateArgs struct {
	Name      string          `json:"name" arg:"NAME" required:"true" help:"its name, for lists and for the record"`
	Role      fleet.Role      `json:"role" flag:"role" required:"true" enum:"viewer,responder,operator,admin,agent,system" help:"what it lets its bearer do, at most; system is for the nodes"`
	Principal fleet.Principal `json:"principal,omitempty" flag:"principal" help:"who acts by it; its name when it is left out"`
	Expires   fleet.Duration  `json:"expires" flag:"expires" default:"90d" help:"how long it is good for; 0 for ever"`
	Scope     []string        `json:"scope,omitempty" flag:"scope" help:"an operation that it is good for, or a noun; all when it is left out"`
	Surface   string          `json:"surface,omitempty" flag:"surface" help:"for a bot: it acts for the people of this surface (slack), each with their own role"`
	Once      bool            `json:"once,omitempty" flag:"once" help:"it lets the agent of the host with its name enrol, one time"`
	Hash      string          `json:"hash" secret:"true" help:"hex SHA-256 of the secret; the command line makes both"`
}

// SetHash sets the hash of the secret that was made for the token.
func (a *AccessTokenCreateArgs) SetHash(hash string) { a.Hash = hash }

// Validate checks the names.
func (a AccessTokenCreateArgs) Validate() error {
	if err := fleet.CheckName("token", a.Name); err != nil {
		return err
	}
	if a.Expires < 0 {
		return fleet.Invalidf("--expires is %s; it must be positive, or 0 for ever", a.Expires)
	}
	if strings.Contains(string(a.Principal), ":") {
		return fleet.Invalidf("principal %q is somebody on a surface; a token is for a name", a.Principal).
			WithHint("footplate access grant gives somebody on a surface a role")
	}
	if a.Role == fleet.System && (a.Expires != 0 || a.Surface != "" || len(a.Scope) > 0) {
		return fleet.Invalidf("a secret of the nodes has no scope and no surface, and must not end by itself").WithHint("--role system --expires 0")
	}
	if a.Once {
		switch {
		case a.Role != fleet.Agent:
			return fleet.Invalidf("--once is for agents, not for the role %s", a.Role).WithHint("--role agent --once")
		case a.Surface != "" || len(a.Scope) > 0:
			return fleet.Invalidf("--once goes with neither --surface nor --scope")
		}
		return fleet.CheckName("host", string(a.who()))
	}
	if a.Surface != "" {
		return fleet.CheckPrincipal(fleet.Principal(a.Surface + ":x"))
	}
	return nil
}

// who acts by the token.
func (a AccessTokenCreateArgs) who() fleet.Principal {
	if a.Principal == "" {
		return fleet.Principal(a.Name)
	}
	return a.Principal
}

// AccessTokenCreate makes a token.
var AccessTokenCreate = op.Mutation(op.Spec{
	Name:    "access token create",
	Summary: "make a token that lets a script, a bot or an agent in",
	Long: "The secret is made by the command line and shown once; the cluster knows only its hash. " +
		"A scope is an operation or a noun: --scope \"host list\" --scope build. " +
		"With --once it lets one host enrol, the one with its name or --principal: footplate agent --join-token-file.",
	Role: fleet.Admin,
	Risk: op.Safe,
	Show: state.ShowLine,
	Examples: []string{
		"access token create nightly --role responder --expires 30d --scope build",
		"access token create slack-bot --role admin --surface slack --expires 0",
		"access token create linux-4 --role agent --once --expires 1h",
	},
}, func(tx *state.Tx, m op.Meta, a AccessTokenCreateArgs) (op.Result, error) {
	if raw, err := hex.DecodeString(a.Hash); err != nil || len(raw) != 32 {
		return op.Result{}, fleet.Invalidf("token %q comes without the hash of its secret", a.Name).
			WithHint("the secret is made where it is used, never in chat: run footplate access token create in a shell")
	}
	old := "" // the hash of a token that this one replaces
	for _, t := range tx.Tokens.All() {
		if t.Name != a.Name {
			continue
		}
		if old = t.Hash; !spent(t, tx.At) {
			return op.Result{}, fleet.Conflictf("there is a token %q already", a.Name).WithHint("footplate access token revoke %s, or choose another name", a.Name)
		}
	}
	if _, ok := tx.Tokens.Get(a.Hash); ok {
		return op.Result{}, fleet.Conflictf("another token has the same secret").WithHint("make a new secret")
	}
	if old != "" {
		tx.Tokens.Delete(old)
	}
	t := fleet.Token{
		Name: a.Name, Hash: a.Hash, Principal: a.who(), Role: a.Role, Scope: a.Scope, Surface: a.Surface, Once: a.Once, MadeAt: tx.At, MadeBy: m.By,
	}
	text := fmt.Sprintf("made token %q: %s is %s", a.Name, t.Principal, a.Role)
	if a.Once {
		text = fmt.Sprintf("made token %q: host %s may enrol with it, once", a.Name, t.Principal)
	}
	if a.Surface != "" {
		text += fmt.Sprintf(", and acts for people in %s", a.Surface)
	}
	if len(a.Scope) > 0 {
		text += ", for " + strings.Join(a.Scope, ", ")
	}
	if a.Expires > 0 {
		t.ExpiresAt = tx.At.Add(a.Expires)
		text += fmt.Sprintf(", for %s", a.Expires)
	}
	tx.Tokens.Put(t.Hash, t)
	return op.Result{Text: text}, nil
})

// spent reports whether a token is of no use any more, and its name is free.
func spent(t fleet.Token, now fleet.Time) bool {
	return t.Once && (t.UsedAt != 0 || t.Expired(now))
}

// AccessTokenRevokeArgs names a token.
type AccessTokenRevokeArgs struct {
	Name string `json:"name" arg:"NAME" required:"true" complete:"access" help:"the token"`
}

// AccessTokenRevoke ends a token at once.
var AccessTokenRevoke = op.Mutation(op.Spec{
	Name:     "access token revoke",
	Summary:  "end a token at once",
	Role:     fleet.Admin,
	Risk:     op.Safe,
	Show:     state.ShowLine,
	Examples: []string{"access token revoke nightly"},
}, func(tx *state.Tx, _ op.Meta, a AccessTokenRevokeArgs) (op.Result, error) {
	var found []fleet.Token
	for _, t := range tx.Tokens.All() {
		if t.Name == a.Name {
			found = append(found, t)
		}
	}
	if len(found) == 0 {
		return op.Result{}, fleet.NotFoundf("there is no token %q", a.Name).WithHint("footplate access list")
	}
	if err := keepsAdmin(tx, nil, func(t fleet.Token) bool { return t.Name == a.Name }); err != nil {
		return op.Result{}, err
	}
	for _, t := range found {
		tx.Tokens.Delete(t.Hash)
	}
	return op.Result{Text: fmt.Sprintf("ended token %q of %s", a.Name, found[0].Principal)}, nil
})
