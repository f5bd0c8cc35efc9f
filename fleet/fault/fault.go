// Package fault has the named points at which tests kill a process: between a
// command, its commit, its answer, its line in the channel and its place in the
// record, and between an attempt and the word of it.
//
// FOOTPLATE_FAULT=NAME, or NAME:3 for the third time, has the process kill itself,
// as kill -9 does, when it gets to the point. FOOTPLATE_FAULT=@FILE has it look at
// every point whether the file names it, and remove the file before it dies: so a
// process can be armed while it runs, for example the one that leads. It is for
// tests alone; without it a point costs one look at a variable that is nil.
package fault

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"footplate/fleet"
)

// Env names the variable that arms a point.
const Env = "FOOTPLATE_FAULT"

// Point is a place in the code.
type Point string

// The points, in the order in which a command, a line or an attempt passes them.
const (
	// A message in Slack, in whoever runs the bot.
	BotReceived    Point = "bot:received"     // an envelope is read
	BotParsed      Point = "bot:parsed"       // it is a command; nothing is proposed
	BotProposed    Point = "bot:proposed"     // it is known what came of it
	BotBeforePost  Point = "bot:before-post"  // the answer is about to be posted
	BotAfterPost   Point = "bot:after-post"   // it is in Slack
	BotBeforeAck   Point = "bot:before-ack"   // all is done but the acknowledgement
	BotAfterAck    Point = "bot:after-ack"    // Slack will not send it again
	ServerReceived Point = "server:received"  // a command of a person is at the leader
	ServerCommit   Point = "server:committed" // it is in the log, and not answered

	// A line of the channel, and an entry of the record, in the leader.
	SinkIntent     Point = "sink:intent"     // it is logged that lines are being sent
	SinkPosted     Point = "sink:posted"     // they are there, and that is not logged
	ArchiveWrite   Point = "archive:write"   // entries are about to be written to disk
	ArchiveWritten Point = "archive:written" // they are written, and nobody was told
	SharedPut      Point = "shared:put"      // entries are in PostgreSQL's transaction
	SharedCommit   Point = "shared:commit"   // it is committed, and nobody was told

	// The launch of a local host, in the leader.
	LaunchClaimed  Point = "launch:claimed"  // the directory is ours, nothing runs
	LaunchStarted  Point = "launch:started"  // the process is behind its gate
	LaunchRecorded Point = "launch:recorded" // it is written down, and still behind its gate
	LaunchReleased Point = "launch:released" // it is the agent

	// An attempt, in the agent.
	AgentFetched  Point = "agent:fetched"  // it was given to this host, and is not started
	AgentStarted  Point = "agent:started"  // its supervisor runs, and nobody was told
	AgentFinished Point = "agent:finished" // it has ended, and nobody was told
	AgentReported Point = "agent:reported" // its end is recorded, its spool is still here
)

// Points are all of them.
func Points() []Point {
	return []Point{
		BotReceived, BotParsed, BotProposed, BotBeforePost, BotAfterPost, BotBeforeAck, BotAfterAck, ServerReceived, ServerCommit,
		SinkIntent, SinkPosted, ArchiveWrite, ArchiveWritten, SharedPut, SharedCommit,
		LaunchClaimed, LaunchStarted, LaunchRecorded, LaunchReleased,
		AgentFetched, AgentStarted, AgentFinished, AgentReported,
	}
}

// charge is what the environment has armed.
type charge struct {
	at   Point
	left atomic.Int64 // how often it may still be passed
	file string       // in the place of at: what names the point
}

// armed is read from the environment once, and never set again.
var armed, errArmed = arm(os.Getenv(Env))

// Check fails when the environment arms a point that there is not: a test that
// means another would pass for nothing.
func Check() error { return errArmed }

// Here is a point.
func Here(p Point) {
	if armed != nil && armed.hit(p) {
		die()
	}
}

func (c *charge) hit(p Point) bool {
	if c.file == "" {
		return c.at == p && c.left.Add(-1) == 0
	}
	b, err := os.ReadFile(c.file)
	// Of several that get there at once, one removes it, and is enough.
	return err == nil && Point(b) == p && os.Remove(c.file) == nil
}

// arm reads what the environment says; nil when it says nothing.
func arm(text string) (*charge, error) {
	if text == "" {
		return nil, nil
	}
	if file, ok := strings.CutPrefix(text, "@"); ok {
		return &charge{file: file}, nil
	}
	c := &charge{at: Point(text)}
	n := int64(1)
	// The name has a colon of its own.
	if i := strings.LastIndexByte(text, ':'); i > 0 {
		if m, err := strconv.ParseInt(text[i+1:], 10, 64); err == nil {
			c.at, n = Point(text[:i]), m
		}
	}
	if !slices.Contains(Points(), c.at) {
		return nil, fleet.Invalidf("%s names %q, which is no fault point", Env, c.at).WithHint("unset it: it is for tests alone")
	}
	if n < 1 {
		return nil, fleet.Invalidf("%s is %q: %d is not a time that a point is reached", Env, text, n).WithHint("unset it: it is for tests alone")
	}
	c.left.Store(n)
	return c, nil
}

// die ends the process as kill -9 does: nothing is flushed, closed or told.
func die() {
	_ = syscall.Kill(syscall.Getpid(), syscall.SIGKILL)
	select {} // the signal may take a moment
}
