package fleet

import "strings"

// Role says what a principal may do. People's roles are ordered: each may do
// what the ones before it may. Agent and System stand apart.
type Role string

// The roles.
const (
	Viewer    Role = "viewer"    // look
	Responder Role = "responder" // calm things down: pause, cancel, cordon
	Operator  Role = "operator"  // change the fleet
	Admin     Role = "admin"     // change who may change the fleet
	Agent     Role = "agent"     // a CI host's agent: its own sync, beats and logs
	System    Role = "system"    // the control plane itself: its loops and nodes

	// Anybody is what an operation asks of whoever is known at all.
	Anybody Role = "anybody"
)

func (r Role) rank() int {
	switch r {
	case Viewer:
		return 1
	case Responder:
		return 2
	case Operator:
		return 3
	case Admin:
		return 4
	}
	return 0
}

// Valid reports whether r is a role.
func (r Role) Valid() bool { return r.rank() > 0 || r == Agent || r == System }

// May reports whether a principal with role r may do what needs role need.
// An agent may do only what is an agent's, the system only what is the
// system's; nobody else may do either.
func (r Role) May(need Role) bool {
	if need == Anybody {
		return true
	}
	if need == Agent || need == System {
		return r == need
	}
	return need.rank() > 0 && r.rank() >= need.rank()
}

// Below returns the lesser of two roles of people; none when either is of
// another kind.
func (r Role) Below(other Role) Role {
	switch {
	case r.rank() == 0 || other.rank() == 0:
		return ""
	case r.rank() < other.rank():
		return r
	}
	return other
}

// Token lets a principal in. Only its hash is kept.
type Token struct {
	Name      string    `json:"name"`
	Hash      string    `json:"hash"` // hex SHA-256 of the secret
	Principal Principal `json:"principal"`
	Role      Role      `json:"role"`

	// Scope are the operations, or nouns for all of their operations, that the
	// token is good for; all that its role allows when empty.
	Scope []string `json:"scope,omitempty"`
	// Surface is set on a bot's token: it may act for the principals of that
	// surface ("slack" for "slack:T1/U2"), each with the role that was granted to
	// it, and at most with the token's.
	Surface   string    `json:"surface,omitempty"`
	ExpiresAt Time      `json:"expires_at,omitzero"` // never when zero
	MadeAt    Time      `json:"made_at,omitzero"`
	MadeBy    Principal `json:"made_by,omitempty"`

	// Once is set on a token that lets the agent of the host Principal enrol, one
	// time, and is good for nothing else. It was used at UsedAt, for the key with
	// the hash UsedFor.
	Once    bool   `json:"once,omitempty"`
	UsedAt  Time   `json:"used_at,omitzero"`
	UsedFor string `json:"used_for,omitempty"`
}

// EnrolAgain is how long whoever has used a token once may ask again, with the
// same key: the answer may have been lost.
const EnrolAgain = 10 * Minute

// MayEnrol says what keeps a host from enrolling with the token and a key, by
// its hash; nil when nothing does.
func (t Token) MayEnrol(host HostID, key string, now Time) *Error {
	another := "make a new one: footplate access token create %s --role agent --once"
	switch {
	case !t.Once:
		return Deniedf("token %q is not for one enrolment", t.Name).WithHint(another, host)
	case t.Principal != Principal(host):
		return Deniedf("token %q is for host %q, not %q", t.Name, t.Principal, host).WithHint(another, host)
	case t.UsedAt != 0 && t.UsedFor == key && now < t.UsedAt.Add(EnrolAgain):
		return nil
	case t.UsedAt != 0:
		return Deniedf("token %q was used on %s, and is good once", t.Name, t.UsedAt).WithHint(another, host)
	case t.Expired(now):
		return Deniedf("token %q has expired on %s", t.Name, t.ExpiresAt).WithHint(another, host)
	}
	return nil
}

// Covers reports whether the token is good for the operation with that name.
func (t Token) Covers(operation string) bool {
	if len(t.Scope) == 0 {
		return true
	}
	for _, s := range t.Scope {
		if operation == s || strings.HasPrefix(operation, s+" ") {
			return true
		}
	}
	return false
}

// Expired reports whether the token is of no use any more at now.
func (t Token) Expired(now Time) bool { return t.ExpiresAt != 0 && t.ExpiresAt <= now }

// ActsFor reports whether the token may act for p.
func (t Token) ActsFor(p Principal) bool {
	surface, id, ok := strings.Cut(string(p), ":")
	return ok && id != "" && t.Surface != "" && surface == t.Surface
}

// Grant gives a principal that a surface names a role.
type Grant struct {
	Principal Principal `json:"principal"`
	Role      Role      `json:"role"`
	By        Principal `json:"by"`
	At        Time      `json:"at"`
	Until     Time      `json:"until,omitzero"` // for good when zero
	// Key is the hash of the key of an agent that has enrolled: its certificates
	// are good for as long as the grant, and no other's are.
	Key string `json:"key,omitempty"`
}

// AgentOf is the agent of a host that has enrolled, as a principal.
func AgentOf(host HostID) Principal { return Principal("agent:" + host) }

// Holds reports whether the grant is good at now.
func (g Grant) Holds(now Time) bool { return g.Role != "" && (g.Until == 0 || g.Until > now) }

// CheckPrincipal checks the name of somebody on a surface: "slack:T024BE7LD/U024BE7LH",
// SURFACE:ID. Ids are taken as they are: a name can be changed by whoever bears it.
func CheckPrincipal(p Principal) error {
	surface, id, ok := strings.Cut(string(p), ":")
	switch {
	case !ok || surface == "" || id == "":
		return Invalidf("%q is nobody on a surface", p).WithHint("SURFACE:ID, for example slack:T024BE7LD/U024BE7LH")
	case surface == "loop" || surface == "node" || surface == "agent" || surface == "token":
		return Invalidf("principals of %q cannot be given a role", surface).WithHint("what they may do is fixed")
	case len(p) > 100 || strings.ContainsFunc(string(p), func(r rune) bool { return r <= ' ' || r >= 0x7f }):
		return Invalidf("principal %q has blanks or other characters than ASCII, or is too long", p)
	}
	return nil
}
