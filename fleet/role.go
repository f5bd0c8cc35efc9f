package fleet

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
	if need == Agent || need == System {
		return r == need
	}
	return need.rank() > 0 && r.rank() >= need.rank()
}

// Token lets a principal in. Only its hash is kept.
type Token struct {
	Name      string    `json:"name"`
	Hash      string    `json:"hash"` // hex SHA-256 of the secret
	Principal Principal `json:"principal"`
	Role      Role      `json:"role"`
}
