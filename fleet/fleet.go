// Package fleet holds the nouns of footplate: the words that appear in types,
// tables, commands, flags, messages and documents, one word for one thing.
//
// It imports the standard library alone, and it is pure: no clock, no random
// source, no I/O. Everything that is replicated is made of these types, so a
// field here is a field in the log for ever: names of JSON fields are never
// renamed or reused, and a new field must mean "as before" when it is absent.
package fleet

import "strconv"

// The ids. Each is a type of its own, so that the compiler keeps them apart.
type (
	// OrgName names a customer or team, for example "acme".
	OrgName string
	// PoolName names a pool, for example "linux".
	PoolName string
	// HostID names one machine for as long as it lives; never reused.
	HostID string
	// NodeID names a node of the control plane, for example "n1".
	NodeID string
	// Principal names who acts: "alice", "token:ci", "agent:linux-4", "node:n1".
	Principal string
	// BootID changes when a host reboots: a host with a new boot id has lost
	// everything that it was doing.
	BootID string
)

type (
	// BuildID numbers builds densely from 1, in the order of their submission.
	BuildID uint64
	// AttemptID numbers attempts densely from 1, over all builds.
	AttemptID uint64
	// EntryNo numbers the entries of the audit log densely from 1.
	EntryNo uint64
	// LaunchID numbers launch records densely from 1.
	LaunchID uint64
	// Incarnation counts the starts of the agent process on one boot of a host.
	Incarnation uint64
)

func (id BuildID) String() string   { return strconv.FormatUint(uint64(id), 10) }
func (id AttemptID) String() string { return strconv.FormatUint(uint64(id), 10) }
func (id LaunchID) String() string  { return strconv.FormatUint(uint64(id), 10) }

// ValidName reports whether s can name an org, a pool, a host or a node: 1 to
// 63 lower-case letters, digits and hyphens, beginning with a letter and not
// ending with a hyphen (a DNS label, RFC 1123, that starts with a letter).
func ValidName(s string) bool {
	if len(s) == 0 || len(s) > 63 || s[0] < 'a' || s[0] > 'z' || s[len(s)-1] == '-' {
		return false
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// CheckName returns an invalid-argument error that names what when s is no
// valid name, and nil otherwise.
func CheckName(what, s string) error {
	if ValidName(s) {
		return nil
	}
	return Invalidf("%s %q is not a valid name", what, s).
		WithHint("use 1 to 63 lower-case letters, digits and hyphens, beginning with a letter")
}
