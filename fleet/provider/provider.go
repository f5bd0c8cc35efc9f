// Package provider says what a provider is: where hosts come from. The
// implementations are in packages of their own, and providertest is the suite
// that each of them must pass.
//
// A provider remembers by the id of the launch alone. The control plane writes
// the launch down before it calls, and calls again when it does not know what
// came of a call: after a crash, a timeout, or from another node while the call
// of the deposed leader is still under way. So the one thing that a provider
// must never do is to make a second machine for an id.
package provider

import (
	"context"
	"errors"

	"footplate/fleet"
)

// Request asks for one machine.
type Request struct {
	Launch fleet.LaunchID
	Host   fleet.HostID
	Pool   fleet.PoolName
	Slots  int
	Join   Join
}

// Join is what a new machine's agent must know to find its control plane.
type Join struct {
	Addrs   []string // base URLs of nodes
	Token   string   // of the agent; a secret
	Cluster string
}

// State is whether a machine exists.
type State string

// The states.
const (
	// Running: the machine may be up. What a provider cannot know counts as
	// running.
	Running State = "running"
	// Gone: the machine is no more, and nothing that ran on it runs. It is taken
	// for proof: attempts are given elsewhere on the strength of it.
	Gone State = "gone"
)

// Instance is a machine as its provider knows it.
type Instance struct {
	Launch fleet.LaunchID `json:"launch"`
	Host   fleet.HostID   `json:"host"`
	State  State          `json:"state"`
	Note   string         `json:"note,omitempty"` // in a sentence, for people
}

// Provider makes and ends machines for one cluster. All methods may be called
// at any time, from several goroutines, nodes and processes at once, about the
// same launch too. Each returns soon after ctx has ended, with an error that
// wraps ctx's; whether the call took effect is then not known.
type Provider interface {
	// Name is what pools call it, for example "local".
	Name() string

	// Launch makes the machine of r.Launch, unless it was made before: then it
	// answers with the machine that there is, or says that it is gone. An id
	// that was ended or forgotten makes no machine any more; its answer is an
	// instance that is Gone. A *PermanentError says that no machine will ever
	// come of this id; any other error that asking again may help.
	Launch(ctx context.Context, r Request) (Instance, error)

	// List returns every machine that was launched for this cluster, in the
	// order of their launches, those that are gone included until they are
	// forgotten. A machine that dies is listed as gone within a second.
	List(ctx context.Context) ([]Instance, error)

	// Terminate ends the machine of a launch. It may return before the machine
	// is gone: List says when it is. To end what is gone, or never was, is no
	// error.
	Terminate(ctx context.Context, id fleet.LaunchID) error

	// Forget removes what is kept of a machine that is gone; one that is not is
	// a conflict. To forget what is not known is no error.
	Forget(ctx context.Context, id fleet.LaunchID) error
}

// PermanentError says that what was asked for will never work, however often
// it is tried.
type PermanentError struct{ Err error }

// Permanent marks err as permanent; nil stays nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &PermanentError{Err: err}
}

func (e *PermanentError) Error() string { return e.Err.Error() }

// Unwrap returns the error that is permanent.
func (e *PermanentError) Unwrap() error { return e.Err }

// IsPermanent reports whether err says that trying again is of no use.
func IsPermanent(err error) bool {
	var p *PermanentError
	return errors.As(err, &p)
}
