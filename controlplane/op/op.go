// Package op says what an operation is: one value that holds its name, its
// typed arguments, who may run it, how risky it is, and what it does. From that
// one value come the log's command, the API endpoint, the CLI command, the chat
// command, help, completion, the confirmation, the audit entry and the
// reference page.
//
// The package is pure. It knows no particular operation: those are in package
// catalog, one file a noun.
//
// # Rules for the function of a mutation
//
// It has one shape: look, refuse, change, report. Refusals come before the
// first change. It never validates what Validate can: validation happens at
// the door, once, because a rule that is tightened later must not replay an
// old log to another state.
package op

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"

	"footplate/controlplane/state"
	"footplate/fleet"
)

// Kind is what an operation does.
type Kind string

// The kinds.
const (
	KindMutation Kind = "mutation" // changes the state, through the log
	KindQuery    Kind = "query"    // reads a view, and is never logged
	KindStream   Kind = "stream"   // writes bytes as they come; logged before when it is audited
	KindInternal Kind = "internal" // what loops, nodes and agents propose; hidden from people
)

// Risk decides the ceremony, the same on every surface.
type Risk string

// The risks.
const (
	Safe       Risk = "safe"       // runs
	Disruptive Risk = "disruptive" // shows what it would do and asks
	Dangerous  Risk = "dangerous"  // needs a reason and a second person
)

// Record is what an operation leaves in the audit log.
type Record string

// The kinds of record.
const (
	Audit    Record = "audit" // an entry
	NoRecord Record = ""      // none
)

// Spec is what an operation is, but for its arguments and what it does.
type Spec struct {
	Name     string // "noun verb"
	Summary  string // one line, lower case, no full stop
	Long     string // further help, if it needs any
	Role     fleet.Role
	Risk     Risk
	Record   Record
	Show     state.Show
	Ver      int // of arguments and meaning; 0 counts as 1
	Examples []string
	Local    bool // a query about the answering node itself: it never needs a quorum
	Opens    bool // it opens a term, so it is not bound to the one before
}

// Meta is what a mutation knows beside its arguments.
type Meta struct {
	At     fleet.Time // the state clock
	By     fleet.Principal
	Role   fleet.Role
	Via    string
	Reason string
	Index  uint64
}

// Result is what a mutation reports.
type Result struct {
	Text    string      // what was done, in a sentence without its full stop; becomes the entry's text
	Changes []string    // what changes, one line each: the plan that a dry run shows; Text when empty
	Data    any         // for -o json, if there is more to say than Text
	Show    *state.Show // instead of the operation's own, when there is nothing worth showing
	Quiet   bool        // nothing changed: no entry is written for an internal operation
}

// Caller is who asks.
type Caller struct {
	Principal fleet.Principal
	Role      fleet.Role  // what Principal may do now; empty when it has none
	Token     fleet.Token // that let the caller in; its Principal may act for Principal
}

// ForNobody returns why a token that speaks for people may do nothing by
// itself; nil when somebody is named, and for any other token.
func (c Caller) ForNobody() *fleet.Error {
	if c.Token.Surface == "" || c.Principal != c.Token.Principal {
		return nil
	}
	return fleet.Deniedf("token %q speaks for people, and has no role of its own", c.Token.Name).
		WithHint("name one of %s with the header Footplate-For, or use another token", c.Token.Surface)
}

// May returns why the caller may not run o, nil when it may.
func (c Caller) May(o *Op) *fleet.Error {
	switch {
	case !c.Role.May(o.Role) && c.ForNobody() != nil:
		return c.ForNobody()
	case !c.Role.May(o.Role) && c.Role == "":
		return fleet.Deniedf("%s may not run %q: that takes the role %s, and %s has none", c.Principal, o.Name, o.Role, c.Principal).
			WithHint("ask an admin for: footplate access grant %s %s", c.Principal, o.Role)
	case !c.Role.May(o.Role):
		return fleet.Deniedf("%s may not run %q: that takes the role %s, and %s is %s", c.Principal, o.Name, o.Role, c.Principal, c.Role).
			WithHint("ask somebody with the role %s", o.Role)
	case o.Role != fleet.Anybody && !c.Token.Covers(o.Name):
		return fleet.Deniedf("token %q is not good for %q, but for %s", c.Token.Name, o.Name, strings.Join(c.Token.Scope, ", ")).
			WithHint("use another token")
	}
	return nil
}

// Env is what a query may look at.
type Env struct {
	View   *state.View
	Now    fleet.Time // the state clock as the node reckons it
	Stale  bool       // answered without a quorum
	Caller Caller
	Node   fleet.NodeID // that answers
	World  World
	Ops    *Registry
}

// World is what a query can see beside the state. The node that answers
// implements it.
type World interface {
	// Entries returns archived entries.
	Entries(ctx context.Context, f EntryFilter) ([]fleet.Entry, error)
	// ExportEntries writes entries in the format that "audit verify" reads.
	ExportEntries(ctx context.Context, f EntryFilter, w io.Writer) error
	// VerifyEntries checks the record wherever v says, and returns what it found,
	// a place each: the archive of this node first.
	VerifyEntries(ctx context.Context, v Verify) []Checked
	// Erased returns how far an erasure is on the nodes and in the shared archive.
	Erased(ctx context.Context, e state.Erasure) []ErasedAt
	// Cluster returns how the nodes are.
	Cluster(ctx context.Context) Cluster
	// SaveSnapshot writes the state as a snapshot.
	SaveSnapshot(ctx context.Context, w io.Writer) error
	// Log yields the log of an attempt from chunk number from on; with follow,
	// until its last chunk. It returns the number of the chunk after the last.
	Log(ctx context.Context, id fleet.AttemptID, from int, follow bool, yield func(LogChunk) error) (next int, err error)
	// Heard returns how long ago this node heard the host's beat; ok is false
	// when it has not since it started.
	Heard(h fleet.HostID) (ago fleet.Duration, ok bool)
	// WaitView returns a view newer than index, or ctx's error.
	WaitView(ctx context.Context, index uint64) (*state.View, error)
}

// LogChunk is one piece of an attempt's output. Chunks are numbered from 0 in
// the order in which the attempt wrote them, and can arrive in any order.
type LogChunk struct {
	Build   fleet.BuildID   `json:"build"`
	Task    string          `json:"task"`
	Try     int             `json:"try"` // 1 for the first attempt at the task
	Attempt fleet.AttemptID `json:"attempt"`
	Host    fleet.HostID    `json:"host"`
	N       int             `json:"n"`
	At      fleet.Time      `json:"at"`
	Data    []byte          `json:"data"`
	Final   bool            `json:"final,omitempty"`
}

// EntryFilter selects entries; zero fields select all.
type EntryFilter struct {
	From, To     fleet.EntryNo
	Since, Until fleet.Time
	By           fleet.Principal
	Op           string
	Outcome      fleet.EntryOutcome
	Incident     string
	Object       string // a name that stands in the arguments or the text, as a word
	Text         string
	Limit        int  // the archive's default when zero
	Newest       bool // newest first
}

// Verify says what of the record is to be checked beside the archive of the
// node that answers.
type Verify struct {
	Peers    bool          // the archives of the other nodes
	Postgres bool          // the shared archive
	Anchors  []EntryAnchor // that were noted outside
}

// ErasedAt is how far an erasure is in one place.
type ErasedAt struct {
	Where string `json:"where" col:"WHERE" id:"true"` // "node n1", "postgres", "slack"
	Done  bool   `json:"done" col:"ERASED"`
	Note  string `json:"note,omitempty" col:"NOTE"` // what is left, or in the way
}

// EntryAnchor is the hash that an entry was noted with.
type EntryAnchor struct {
	N    fleet.EntryNo `json:"n"`
	Hash string        `json:"hash"`
}

// ParseAnchor reads ENTRY:HASH.
func ParseAnchor(s string) (EntryAnchor, error) {
	n, hash, ok := strings.Cut(s, ":")
	entry, err := strconv.ParseUint(n, 10, 63)
	if _, bad := hex.DecodeString(hash); !ok || err != nil || entry == 0 || bad != nil || len(hash) != 64 {
		return EntryAnchor{}, fleet.Invalidf("%q is not an anchor", s).WithHint("ENTRY:HASH, with the whole hash, as the channel has them")
	}
	return EntryAnchor{N: fleet.EntryNo(entry), Hash: strings.ToLower(hash)}, nil
}

// Checked is what was found in one place where the record is kept.
type Checked struct {
	Where   string        `json:"where"` // "node n1", "postgres"
	Entries int           `json:"entries"`
	First   fleet.EntryNo `json:"first"`
	Last    fleet.EntryNo `json:"last"`
	Head    string        `json:"head"` // hash of Last
	// Anchored is the highest anchor that was met: up to there the record is the
	// one that was anchored.
	Anchored fleet.EntryNo `json:"anchored,omitempty"`
	Note     string        `json:"note,omitempty"` // what else there is to know
	// Err is what is wrong, nil when nothing is: with fleet.CodeConflict the
	// record is not whole, with any other it could not be checked.
	Err *fleet.Error `json:"err,omitempty"`
}

// Cluster is how the nodes are, as the answering node sees them.
type Cluster struct {
	Cluster   string         `json:"cluster"` // id
	Node      fleet.NodeID   `json:"node"`
	Role      string         `json:"role"`
	Leader    fleet.NodeID   `json:"leader"`
	Term      uint64         `json:"term"`
	Index     uint64         `json:"index"`
	Commit    uint64         `json:"commit"`
	Contact   fleet.Duration `json:"leader_heard"` // so long ago
	ClockNote string         `json:"clock_note,omitempty"`
	Notes     []string       `json:"notes,omitempty"` // what is behind or away outside of the cluster
	Nodes     []ClusterNode  `json:"nodes"`
}

// ClusterNode is one node of the control plane.
type ClusterNode struct {
	Node    fleet.NodeID `json:"node"`
	Role    string       `json:"role"` // leader, follower, unreachable
	API     string       `json:"api"`
	Applied uint64       `json:"applied"`
	Digest  string       `json:"digest,omitempty"` // newest, as INDEX:HASH
	Version string       `json:"version,omitempty"`
	Note    string       `json:"note,omitempty"`
}

// Op is one operation.
type Op struct {
	Spec
	Kind   Kind
	Params []Param
	Row    reflect.Type // of a query's rows; nil when it has none
	Many   bool         // a query that yields a list of Row
	args   reflect.Type
	apply  func(tx *state.Tx, m Meta, args json.RawMessage) (Result, error)
	query  func(ctx context.Context, env Env, args any) (any, error)
	stream func(ctx context.Context, env Env, args any, w io.Writer) error
}

// Noun returns the first word of the name.
func (o *Op) Noun() string { n, _, _ := strings.Cut(o.Name, " "); return n }

// Verb returns the name without the noun.
func (o *Op) Verb() string { _, v, _ := strings.Cut(o.Name, " "); return v }

// Path returns the name as the API spells it: "pool.scale".
func (o *Op) Path() string { return strings.ReplaceAll(o.Name, " ", ".") }

// Version returns the version of the operation's arguments and meaning.
func (o *Op) Version() int { return max(o.Ver, 1) }

// Hidden reports whether people can't call the operation.
func (o *Op) Hidden() bool { return o.Kind == KindInternal }

// Logged reports whether the operation goes through the log.
func (o *Op) Logged() bool { return o.apply != nil }

// normalizer is implemented by arguments that can be given in several ways: it
// brings them to the one form that is logged.
type normalizer interface{ Normalize() error }

// redactor is implemented by arguments that hold secrets deeper than in a
// parameter of their own: it replaces them by Redacted.
type redactor interface{ Redact() }

// Redacted stands in the record for a secret.
const Redacted = "[redacted]"

// validator is implemented by arguments that can be wrong in themselves.
type validator interface{ Validate() error }

func define[A any](s Spec, k Kind) *Op {
	t := reflect.TypeFor[A]()
	return &Op{Spec: s, Kind: k, args: t, Params: paramsOf(t)}
}

func applyOf[A any](f func(*state.Tx, Meta, A) (Result, error)) func(*state.Tx, Meta, json.RawMessage) (Result, error) {
	return func(tx *state.Tx, m Meta, raw json.RawMessage) (Result, error) {
		var a A
		if len(raw) > 0 {
			if err := json.Unmarshal(raw, &a); err != nil {
				return Result{}, fleet.Internalf("arguments in the log cannot be read: %s", err)
			}
		}
		return f(tx, m, a)
	}
}

// Mutation defines an operation that changes the state.
func Mutation[A any](s Spec, f func(*state.Tx, Meta, A) (Result, error)) *Op {
	o := define[A](s, KindMutation)
	o.Record = Audit
	o.apply = applyOf(f)
	return o
}

// Internal defines what a loop, a node or an agent proposes.
func Internal[A any](s Spec, f func(*state.Tx, Meta, A) (Result, error)) *Op {
	o := define[A](s, KindInternal)
	o.apply = applyOf(f)
	return o
}

// Query defines an operation that reads. R is a struct, or a slice of structs
// that becomes a table; see Column for its tags.
func Query[A, R any](s Spec, f func(context.Context, Env, A) (R, error)) *Op {
	o := define[A](s, KindQuery)
	o.Row = reflect.TypeFor[R]()
	if o.Row.Kind() == reflect.Slice {
		o.Row, o.Many = o.Row.Elem(), true
	}
	o.query = func(ctx context.Context, env Env, args any) (any, error) { return f(ctx, env, *args.(*A)) }
	return o
}

// Stream defines an operation that writes bytes as they come. When note is not
// nil the operation is audited: note is applied, as a mutation, before.
func Stream[A any](s Spec, note func(*state.Tx, Meta, A) (Result, error), f func(context.Context, Env, A, io.Writer) error) *Op {
	o := define[A](s, KindStream)
	if note != nil {
		o.Record = Audit
		o.apply = applyOf(note)
	}
	o.stream = func(ctx context.Context, env Env, args any, w io.Writer) error { return f(ctx, env, *args.(*A), w) }
	return o
}

// NewArgs returns a pointer to new arguments with their defaults.
func (o *Op) NewArgs() any {
	p := reflect.New(o.args)
	for _, param := range o.Params {
		if param.Default != "" {
			// A default that cannot be read is found by the catalog's tests.
			_ = param.set(p.Elem(), []string{param.Default})
		}
	}
	return p.Interface()
}

// Validate checks arguments made by NewArgs, Bind or Decode.
func (o *Op) Validate(args any) error {
	if n, ok := args.(normalizer); ok {
		if err := n.Normalize(); err != nil {
			return err
		}
	}
	v := reflect.ValueOf(args).Elem()
	for _, param := range o.Params {
		f := v.FieldByIndex(param.index)
		if param.Required && f.IsZero() {
			return fleet.Invalidf("%s needs %s", o.Name, param.Placeholder()).WithHint("footplate %s", o.Usage())
		}
		if err := param.checkEnum(f); err != nil {
			return err
		}
	}
	if val, ok := args.(validator); ok {
		return val.Validate()
	}
	if val, ok := v.Interface().(validator); ok {
		return val.Validate()
	}
	return nil
}

// Decode reads arguments from JSON, strictly: unknown fields and trailing
// bytes are errors. It validates them.
func (o *Op) Decode(raw json.RawMessage) (any, error) {
	args := o.NewArgs()
	if len(bytes.TrimSpace(raw)) > 0 {
		dec := json.NewDecoder(bytes.NewReader(raw))
		dec.DisallowUnknownFields()
		if err := dec.Decode(args); err != nil {
			if fe := asFleet(err); fe != nil {
				return nil, fe
			}
			return nil, fleet.Invalidf("arguments of %s: %s", o.Name, jsonError(err)).
				WithHint("footplate help %s lists them", o.Name)
		}
		if _, err := dec.Token(); err != io.EOF {
			return nil, fleet.Invalidf("arguments of %s: there is more after the object", o.Name)
		}
	}
	if err := o.Validate(args); err != nil {
		return nil, err
	}
	return args, nil
}

// jsonError says what is wrong with JSON, without the names of Go's types.
func jsonError(err error) string {
	var wrong *json.UnmarshalTypeError
	switch {
	case !errors.As(err, &wrong):
	case err != error(wrong): // said by a type of ours, in its own words
		own, _, _ := strings.Cut(err.Error(), ": json: ")
		return own
	case wrong.Field == "":
		return fmt.Sprintf("a JSON object is wanted, not %s", wrong.Value)
	default:
		return fmt.Sprintf("%s cannot be %s", wrong.Field, wrong.Value)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return "the JSON is cut off"
	}
	return strings.TrimPrefix(err.Error(), "json: ")
}

// Encode writes arguments as the log keeps them.
func (o *Op) Encode(args any) (json.RawMessage, error) {
	b, err := json.Marshal(args)
	if err != nil {
		return nil, fleet.Invalidf("arguments of %s: %s", o.Name, err)
	}
	return b, nil
}

// Redact returns args, as the log has them, with the values of secret
// parameters replaced.
func (o *Op) Redact(args json.RawMessage) json.RawMessage {
	v := reflect.New(o.args)
	own, secret := v.Interface().(redactor)
	for _, p := range o.Params {
		secret = secret || p.Secret
	}
	if !secret || len(args) == 0 {
		return args
	}
	if json.Unmarshal(args, v.Interface()) != nil {
		return json.RawMessage(`"unreadable"`)
	}
	for _, p := range o.Params {
		if p.Secret {
			redact(v.Elem().FieldByIndex(p.index))
		}
	}
	if own != nil {
		own.Redact()
	}
	b, err := json.Marshal(v.Interface())
	if err != nil {
		return json.RawMessage(`"unreadable"`)
	}
	return b
}

// redact replaces what is in f: texts, also in a list, by a note; all else by
// its zero value.
func redact(f reflect.Value) {
	switch {
	case f.IsZero():
	case f.Kind() == reflect.String:
		f.SetString(Redacted)
	case f.Kind() == reflect.Slice && f.Type().Elem().Kind() == reflect.String:
		for i := range f.Len() {
			redact(f.Index(i))
		}
	default:
		f.SetZero()
	}
}

// Query runs a query.
func (o *Op) Query(ctx context.Context, env Env, args any) (any, error) {
	return o.query(ctx, env, args)
}

// Stream runs a stream.
func (o *Op) Stream(ctx context.Context, env Env, args any, w io.Writer) error {
	return o.stream(ctx, env, args, w)
}
