// Package api holds what travels over HTTP: types alone, no code that acts.
//
// Operations: POST /v1/<noun>.<verb> with a Request for what changes
// something, GET /v1/<noun>.<verb>?arg=... for what reads; a stream answers
// with lines as they come. Errors are Problem documents (RFC 9457). Beside the
// operations there are GET /v1/events (server-sent events), /v1/openapi.json,
// /healthz, /readyz and /metrics; what agents use, under /v1/agent.*; and what
// nodes say to each other, under /v1/peer.*.
package api

import (
	"encoding/json"

	"footplate/controlplane/state"
	"footplate/fleet"
	"footplate/fleet/lease"
)

// The headers of our own.
const (
	// HeaderCluster carries the cluster id. Agents and nodes must send it; a
	// wrong one is refused.
	HeaderCluster = "Footplate-Cluster"
	// HeaderForwarded names the node that passed a request on; such a request
	// is not passed on again.
	HeaderForwarded = "Footplate-Forwarded"
	// HeaderStale, in a request, asks for an answer without a quorum; in an
	// answer it says that it is one, and how old: the time since the node last
	// heard a leader.
	HeaderStale = "Footplate-Stale"
	// HeaderVia names the surface and its version, for example "cli/0.1.0".
	HeaderVia = "Footplate-Via"
	// HeaderFor names the principal for whom a bot asks. The bot's token must be
	// made for that surface; the role is the principal's.
	HeaderFor = "Footplate-For"
	// HeaderRequest names a request, in its answer and in the node's log.
	HeaderRequest = "Footplate-Request"
	// HeaderStreamError is a trailer: a Problem, when a stream broke off.
	HeaderStreamError = "Footplate-Stream-Error"
)

// Request asks for an operation that changes something.
type Request struct {
	Args     json.RawMessage `json:"args,omitempty"`
	Key      string          `json:"key,omitempty"` // minted by the client; by the server when empty
	Reason   string          `json:"reason,omitempty"`
	Incident string          `json:"incident,omitempty"`
	DryRun   bool            `json:"dry_run,omitempty"`
	// Confirm is needed for what is disruptive: "yes", or the hash of the plan
	// that was shown, which then must still be the plan.
	Confirm string `json:"confirm,omitempty"`
	Via     string `json:"via,omitempty"`
	// Repeat is what a chat says. With "ask", what the same person has had done
	// in a chat within state.RepeatWindow fails with CodeConfirm and without a
	// plan; with "meant" it is done again.
	Repeat state.Repeat `json:"repeat,omitempty"`
}

// Reply answers a Request.
type Reply struct {
	Op        string          `json:"op"`
	Key       string          `json:"key,omitempty"`
	Entry     fleet.EntryNo   `json:"entry,omitempty"`
	Text      string          `json:"text"`
	Result    json.RawMessage `json:"result,omitempty"`
	Duplicate bool            `json:"duplicate,omitempty"` // the key was known: nothing was done again
	Plan      *fleet.Plan     `json:"plan,omitempty"`      // of a dry run
}

// Problem is an error, as RFC 9457 has it: media type application/problem+json.
type Problem struct {
	Type   string      `json:"type"` // "about:blank"
	Title  string      `json:"title"`
	Status int         `json:"status"`
	Detail string      `json:"detail"`
	Code   fleet.Code  `json:"code"`
	Hint   string      `json:"hint,omitempty"`
	Plan   *fleet.Plan `json:"plan,omitempty"`
	// Request is the id under which the node's log may say more.
	Request string `json:"request,omitempty"`
}

// Enrol asks for a certificate for a host's agent: POST /v1/agent.enrol with a
// token that is good once, POST /v1/agent.renew with the certificate that it
// has. Request is a certificate request in PEM; renewed is the same key.
type Enrol struct {
	Host    fleet.HostID `json:"host"`
	Request string       `json:"request"`
}

// Enrolled answers with the certificate, and the agents' authority behind it,
// in PEM.
type Enrolled struct {
	Cluster     string `json:"cluster"` // id
	Certificate string `json:"certificate"`
}

// Event is one server-sent event of GET /v1/events. Its SSE "event" field is
// Kind and its "id" the line's number, so that a reader goes on where it was
// with Last-Event-ID.
type Event struct {
	Kind string      `json:"kind"` // "line"
	Line *state.Line `json:"line,omitempty"`
}

// Beat is what an agent sends to every node every BeatEvery: POST /v1/agent.beat.
// A node answers from memory; a beat never goes through the log.
type Beat struct {
	Host        fleet.HostID      `json:"host"`
	Boot        fleet.BootID      `json:"boot"`
	Incarnation fleet.Incarnation `json:"incarnation"`
	Seq         uint64            `json:"seq"`
	lease.Beat                    // the version of the membership that the agent counts, and what the beat is worth
}

// BeatReply says whether the node acknowledges the beat.
type BeatReply struct {
	Node fleet.NodeID `json:"node"`
	Ack  bool         `json:"ack"`
	Why  string       `json:"why,omitempty"`
	// Members and Nodes are the committed membership as the node knows it, when
	// the beat was refused: the agent's may be old.
	Members uint64     `json:"members,omitempty"`
	Nodes   []NodeAddr `json:"nodes,omitempty"`
}

// BeatEvery is how often an agent beats.
const BeatEvery = 3 * fleet.Second

// Sync is what an agent says to the leader, through any node: POST
// /v1/agent.sync. It is held open for up to SyncHold while there is nothing to
// say. Attempts lists everything that the agent holds.
type Sync struct {
	Host        fleet.HostID      `json:"host"`
	Pool        fleet.PoolName    `json:"pool"`
	Launch      fleet.LaunchID    `json:"launch,omitempty"`
	Boot        fleet.BootID      `json:"boot"`
	Incarnation fleet.Incarnation `json:"incarnation"`
	Seq         uint64            `json:"seq"` // grows by one a sync
	Slots       int               `json:"slots,omitempty"`
	Version     string            `json:"version"`
	Attempts    []HeldAttempt     `json:"attempts"`
	Members     uint64            `json:"members"`
	// Known is the digest of the last reply ("" at first): the leader holds
	// the request open until its answer would differ.
	Known string `json:"known,omitempty"`
	// Stamp is the stamp of the newest reply that the agent had when it sent this.
	Stamp lease.Stamp `json:"stamp"`
}

// SyncHold is how long the leader holds a sync open at most. The longer, the
// less an idle fleet costs. A sync that is too old for an order to start is
// answered when there is one, and the agent asks again.
const SyncHold = 8 * fleet.Second

// HeldAttempt is an attempt that an agent holds.
type HeldAttempt struct {
	Attempt fleet.AttemptID `json:"attempt"`
	Phase   fleet.Phase     `json:"phase"`
	Outcome fleet.Outcome   `json:"outcome,omitempty"`
	Exit    int             `json:"exit,omitempty"`
	Why     string          `json:"why,omitempty"`
}

// SyncReply is what the agent shall do. It is level-triggered: it lists all
// that holds now, not what changed.
type SyncReply struct {
	Start  []Order           `json:"start,omitempty"`  // assigned, and not held by the agent yet
	Cancel []fleet.AttemptID `json:"cancel,omitempty"` // end them, and report
	Kill   []fleet.AttemptID `json:"kill,omitempty"`   // not the agent's any more (lost, unknown): end them at once, and forget them
	Forget []fleet.AttemptID `json:"forget,omitempty"` // their end is recorded
	Leave  bool              `json:"leave,omitempty"`  // the host was ended: end everything and exit

	// Leader is who answers: the next sync had better go there directly.
	Leader     fleet.NodeID   `json:"leader,omitempty"`
	Nodes      []NodeAddr     `json:"nodes"`
	Members    uint64         `json:"members"`
	FenceAfter fleet.Duration `json:"fence_after"`
	Known      string         `json:"known"` // to send with the next sync
	Stamp      lease.Stamp    `json:"stamp"` // likewise
}

// NodeAddr is where a node is.
type NodeAddr struct {
	Node fleet.NodeID `json:"node"`
	API  string       `json:"api"` // base URL
}

// Order is an attempt to start.
type Order struct {
	Attempt fleet.AttemptID  `json:"attempt"`
	Build   fleet.BuildID    `json:"build"`
	Task    int              `json:"task"`
	N       int              `json:"n"`
	Spec    *fleet.BuildSpec `json:"spec"`
}

// Chunk is a piece of an attempt's output on its way to a node: POST
// /v1/agent.logs with Chunks. The node answers when they are on its disk. An
// agent forgets a chunk when two nodes (or all, when there are fewer) hold it.
type Chunk struct {
	Attempt fleet.AttemptID `json:"attempt"`
	N       int             `json:"n"` // from 0
	At      fleet.Time      `json:"at"`
	Data    []byte          `json:"data"`
	Final   bool            `json:"final,omitempty"`
}

// Chunks is the body of /v1/agent.logs, and the answer of /v1/peer.logs.
type Chunks struct {
	Host   fleet.HostID `json:"host,omitempty"`
	Chunks []Chunk      `json:"chunks"`
}

// PeerStatus answers GET /v1/peer.status, which nodes ask each other every
// second.
type PeerStatus struct {
	Node    fleet.NodeID  `json:"node"`
	Cluster string        `json:"cluster"`
	Version string        `json:"version"`
	Catalog string        `json:"catalog"` // names the operations that it knows: the same on nodes that know the same
	Role    string        `json:"role"`
	Term    uint64        `json:"term"`
	Applied uint64        `json:"applied"`
	Archive fleet.EntryNo `json:"archive"` // newest entry on its disk
	Wall    fleet.Time    `json:"wall"`    // its wall clock
	// Forgotten is the index up to which its disk has nothing of the log that was
	// erased.
	Forgotten uint64 `json:"forgotten,omitempty"`
	// Digests are the newest digests that it has taken, oldest first.
	Digests []Digest `json:"digests,omitempty"`
}

// Operations answers GET /v1/peer.operations: the version of each operation
// that a node knows, by name.
type Operations map[string]int

// Digest is the hash of the state at an index of the log.
type Digest struct {
	Index uint64 `json:"index"`
	Sum   string `json:"sum"`
}

// Testify asks a node which of these hosts it has certainly not acknowledged
// for their FenceAfter and its margin: POST /v1/peer.testify.
type Testify struct {
	Hosts []TestifyHost `json:"hosts"`
}

// TestifyHost is one host that is asked about.
type TestifyHost struct {
	Host       fleet.HostID   `json:"host"`
	Boot       fleet.BootID   `json:"boot"`
	FenceAfter fleet.Duration `json:"fence_after"`
}

// Testimony answers Testify: one testimony for each host, in order.
type Testimony struct {
	Node        fleet.NodeID      `json:"node"`
	Testimonies []lease.Testimony `json:"testimonies"`
}

// Join asks the leader to take a node into the cluster: POST /v1/peer.join.
type Join struct {
	Node fleet.NodeID `json:"node"`
	API  string       `json:"api"`
	Raft string       `json:"raft"`
}
