package state

import (
	"bytes"
	"encoding/json"
	"fmt"

	"footplate/fleet"
)

// Command is the envelope of one operation in the log. Its fields were decided
// before it was logged: by the client (Key, Args, Reason), and by the leader
// (By, Role, Salt, Saw). Apply decides nothing of this again.
type Command struct {
	Key  string          `json:"id"` // minted by the client; with By it is remembered for KeyTTL
	Op   string          `json:"op"` // "pool scale"
	Ver  int             `json:"ov"` // of the operation's arguments and meaning
	By   fleet.Principal `json:"by"`
	Role fleet.Role      `json:"role"`
	Via  string          `json:"via"` // surface and version: "cli/0.1.0", "loop/watch"

	Reason     string            `json:"reason,omitempty"`
	Incident   string            `json:"incident,omitempty"`
	ApprovedBy []fleet.Principal `json:"approved_by,omitempty"`
	Plan       string            `json:"plan,omitempty"`   // hash of the plan that was confirmed
	Salt       string            `json:"salt,omitempty"`   // hex, for the audit entry
	Repeat     Repeat            `json:"repeat,omitempty"` // what a chat says; empty from elsewhere

	// Term is set on what the control plane decided by itself: Apply refuses it
	// in any other term.
	Term uint64 `json:"term,omitempty"`
	// Saw lists the versions of the rows that the leader decided on.
	Saw []Seen `json:"saw,omitempty"`
	// Refusal, when set, says that the leader refused the operation: Apply only
	// writes the entry.
	Refusal *fleet.Error `json:"refusal,omitempty"`

	Args json.RawMessage `json:"args,omitempty"`
}

// Seen is the version of a row at the time when the leader looked at it; 0 when
// there was no such row.
type Seen struct {
	Table   string `json:"t"`
	Key     string `json:"k"`
	Version uint64 `json:"v"`
}

// Batch is one entry of the Raft log: the commands that waited at the leader,
// in order. Each succeeds or is rolled back by itself.
type Batch struct {
	At       fleet.Time // the state clock, decided by the leader
	Commands []Command
}

// Outcome is what came of one command.
type Outcome struct {
	Entry     fleet.EntryNo   `json:"entry,omitempty"` // 0 when the operation writes none
	Text      string          `json:"text"`
	Result    json.RawMessage `json:"result,omitempty"`
	Err       *fleet.Error    `json:"err,omitempty"`
	Duplicate bool            `json:"duplicate,omitempty"` // the key was known: this is the first outcome
}

// MaxBatchBytes bounds an entry of the log. A command alone may be at most
// MaxCommandBytes, so that one always fits.
const (
	MaxBatchBytes   = 512 << 10
	MaxCommandBytes = 128 << 10
)

// batchMagic opens every packed entry; its last byte is the format's version.
var batchMagic = [4]byte{'f', 'p', 'l', 1}

// EncodeBatch packs already encoded commands into one log entry: the magic, a
// head, and the commands, each a line of JSON.
func EncodeBatch(at fleet.Time, commands [][]byte) []byte {
	size := 64
	for _, c := range commands {
		size += len(c) + 1
	}
	b := make([]byte, 0, size)
	b = append(b, batchMagic[:]...)
	b = fmt.Appendf(b, `{"at":%d,"n":%d}`, int64(at), len(commands))
	b = append(b, '\n')
	for _, c := range commands {
		b = append(b, c...)
		b = append(b, '\n')
	}
	return b
}

// EncodeCommand returns c as one line of JSON, without its newline.
func EncodeCommand(c *Command) ([]byte, error) {
	b, ok := appendCommand(c)
	var err error
	if !ok {
		b, err = json.Marshal(c)
	}
	if err != nil {
		return nil, fleet.Invalidf("operation %q cannot be encoded: %s", c.Op, err)
	}
	if len(b) > MaxCommandBytes {
		return nil, fleet.Invalidf("operation %q is %d bytes long; at most %d are allowed", c.Op, len(b), MaxCommandBytes)
	}
	return b, nil
}

// DecodeBatch unpacks a log entry. An error means that the log is corrupt or
// was written by a later version: the node must halt.
func DecodeBatch(data []byte) (Batch, error) {
	var none Batch
	if len(data) < len(batchMagic) || !bytes.Equal(data[:3], batchMagic[:3]) {
		return none, fmt.Errorf("log entry is not a batch of commands")
	}
	if data[3] != batchMagic[3] {
		return none, fmt.Errorf("log entry has format %d; this version reads %d", data[3], batchMagic[3])
	}
	line, rest, ok := bytes.Cut(data[4:], []byte{'\n'})
	if !ok {
		return none, fmt.Errorf("log entry has no head")
	}
	var head struct {
		At int64 `json:"at"`
		N  int   `json:"n"`
	}
	if err := json.Unmarshal(line, &head); err != nil {
		return none, fmt.Errorf("head of log entry: %w", err)
	}
	if head.N < 0 || head.N > len(rest)/len("{}\n") {
		return none, fmt.Errorf("log entry says that it holds %d commands", head.N)
	}
	batch := Batch{At: fleet.Time(head.At), Commands: make([]Command, head.N)}
	for i := range batch.Commands {
		line, rest, ok = bytes.Cut(rest, []byte{'\n'})
		if !ok {
			return none, fmt.Errorf("log entry ends after %d of %d commands", i, head.N)
		}
		if readCommand(line, &batch.Commands[i]) {
			continue
		}
		batch.Commands[i] = Command{}
		if err := json.Unmarshal(line, &batch.Commands[i]); err != nil {
			return none, fmt.Errorf("command %d of log entry: %w", i, err)
		}
	}
	if len(rest) != 0 {
		return none, fmt.Errorf("log entry has %d bytes after its last command", len(rest))
	}
	return batch, nil
}
