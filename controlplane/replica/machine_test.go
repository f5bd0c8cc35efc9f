package replica

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"sync"

	"footplate/controlplane/state"
	"footplate/fleet"
)

// ledger is a Machine that writes down what it is told.
type ledger struct {
	mu       sync.Mutex
	index    uint64
	lines    []line
	blind    bool // tries nothing
	broken   bool // every Apply fails
	applying chan struct{}
}

type line struct {
	Index uint64
	Term  uint64
	At    fleet.Time
	Op    string
	Key   string
}

func (l *ledger) Apply(index, term uint64, b state.Batch) ([]state.Outcome, error) {
	if l.applying != nil {
		<-l.applying
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]state.Outcome, len(b.Commands))
	for i, c := range b.Commands {
		switch {
		case l.broken || c.Op == "poison":
			return nil, fmt.Errorf("operation %q is unknown: it needs version 9", c.Op)
		case c.Op == "crash":
			panic("crash")
		case c.Op == "fail":
			out[i].Err = fleet.Conflictf("%s is not possible", c.Key)
			continue
		}
		l.lines = append(l.lines, line{index, term, b.At, c.Op, c.Key})
		out[i].Entry = fleet.EntryNo(len(l.lines))
		out[i].Text = c.Key
	}
	l.index = index
	return out, nil
}

func (l *ledger) Digest() (uint64, string, bool) { return 0, "", false }

func (l *ledger) Snapshot() (func(io.Writer) error, uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := slices.Clone(l.lines)
	return func(w io.Writer) error { return json.NewEncoder(w).Encode(lines) }, l.index
}

func (l *ledger) Restore(r io.Reader) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = nil
	return json.NewDecoder(r).Decode(&l.lines)
}

func (l *ledger) Try(_ fleet.Time, commands []state.Command) []error {
	if l.blind {
		return nil
	}
	errs := make([]error, len(commands))
	for i, c := range commands {
		if c.Op == "refuse" {
			errs[i] = fleet.Internalf("operation %q panicked: nothing was done", c.Op)
		}
	}
	return errs
}

func (l *ledger) all() []line {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.lines)
}

// keys returns the keys of all commands but those of the nodes themselves.
func (l *ledger) keys() []string {
	var keys []string
	for _, x := range l.all() {
		if x.Op != LeaderBegin {
			keys = append(keys, x.Key)
		}
	}
	return keys
}
