package op

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"testing"

	"footplate/controlplane/state"
	"footplate/fleet"
)

// The operations that the tests of this package run: few, and each for one
// thing that an operation can do.

type orgArgs struct {
	Org   fleet.OrgName `json:"org" arg:"ORG" required:"true" complete:"org" help:"its name"`
	Slots int           `json:"slots" flag:"slots" default:"3" help:"how many"`
}

func (a orgArgs) Validate() error {
	if a.Slots > 100 {
		return fleet.Invalidf("--slots is %d", a.Slots)
	}
	return nil
}

var orgSet = Mutation(Spec{
	Name: "org set", Summary: "set an org", Role: fleet.Operator, Show: state.ShowLine,
}, func(tx *state.Tx, m Meta, a orgArgs) (Result, error) {
	if old, ok := tx.Orgs.Get(a.Org); ok && old.Slots == a.Slots {
		return Result{}, fleet.Conflictf("org %q has %d slots already", a.Org, a.Slots)
	}
	tx.Orgs.Put(a.Org, fleet.Org{Name: a.Org, Slots: a.Slots})
	return Result{
		Text: fmt.Sprintf("org %q has %d slots", a.Org, a.Slots), Data: map[string]int{"slots": a.Slots},
		Changes: []string{fmt.Sprintf("org %s has %d slots", a.Org, a.Slots), "nothing else"},
	}, nil
})

// orgSpoil writes to everything, and fails after it.
var orgSpoil = Mutation(Spec{
	Name: "org spoil", Summary: "write and fail", Role: fleet.Operator, Show: state.ShowGroup,
}, func(tx *state.Tx, _ Meta, _ struct{}) (Result, error) {
	for name := range []rune("ab") {
		tx.Orgs.Put(fleet.OrgName(rune('a'+name)), fleet.Org{Slots: -1})
	}
	tx.Meta.Build += 7
	tx.Meta.Build++
	tx.Builds.Put(tx.Meta.Build, fleet.Build{ID: tx.Meta.Build, Stage: fleet.StageQueued})
	return Result{Text: "never told"}, fmt.Errorf("spoiled")
})

type everything struct {
	embedded
	Name    string           `json:"name" flag:"name" help:"a text" enum:"red,green"`
	Names   []string         `json:"names,omitempty" arg:"NAME" help:"texts"`
	N       int              `json:"n" flag:"number" help:"a number"`
	Small   int8             `json:"small" flag:"small" help:"a small number"`
	U       uint16           `json:"u" flag:"u" help:"no negative number"`
	On      bool             `json:"on" flag:"on" help:"a switch"`
	For     fleet.Duration   `json:"for" flag:"for" default:"1h" help:"a duration"`
	At      fleet.Time       `json:"at" flag:"at" help:"a time"`
	Size    Size             `json:"size" flag:"size" help:"a size"`
	Object  map[string]int   `json:"object" flag:"object" help:"an object"`
	List    []fleet.BuildID  `json:"list" flag:"list" help:"numbers"`
	Colours []string         `json:"colours" flag:"colour" enum:"red,green" help:"colours"`
	Secret  string           `json:"secret,omitempty" flag:"secret" secret:"true" help:"a secret"`
	Secrets []fleet.HostID   `json:"secrets,omitempty" flag:"more" secret:"true" help:"secrets"`
	Hidden  map[string]int   `json:"hidden,omitempty" flag:"hidden" secret:"true" help:"a secret object"`
	Inner   []map[string]int `json:"inner,omitempty"`
	Skipped string           `json:"-" flag:"skipped"`
}

type embedded struct {
	Deep string `json:"deep" flag:"deep" help:"of an embedded struct"`
}

var allShow = Query(Spec{
	Name: "all show", Summary: "show everything", Role: fleet.Viewer,
}, func(_ context.Context, _ Env, a everything) (everything, error) { return a, nil })

var allTake = Mutation(Spec{
	Name: "all take", Summary: "take everything", Role: fleet.Viewer,
}, func(*state.Tx, Meta, everything) (Result, error) { return Result{Text: "took"}, nil })

var orgList = Query(Spec{
	Name: "org list", Summary: "list orgs", Role: fleet.Viewer,
}, func(_ context.Context, env Env, _ struct{}) ([]fleet.Org, error) {
	var out []fleet.Org
	for _, o := range env.View.Orgs.All() {
		out = append(out, o)
	}
	return out, nil
})

var orgDump = Stream(Spec{Name: "org dump", Summary: "dump orgs", Role: fleet.Viewer}, nil,
	func(_ context.Context, env Env, a struct{}, w io.Writer) error {
		_, err := fmt.Fprintln(w, env.View.Orgs.Len())
		return err
	})

var orgDumpNoted = Stream(Spec{Name: "org dump noted", Summary: "dump orgs, for the record", Role: fleet.Admin, Show: state.ShowLine},
	func(*state.Tx, Meta, struct{}) (Result, error) { return Result{Text: "dumped"}, nil },
	func(context.Context, Env, struct{}, io.Writer) error { return nil })

type tidyArgs struct {
	Text  string `json:"text"`
	Quiet bool   `json:"quiet"`
	Fail  bool   `json:"fail"`
	Hide  bool   `json:"hide"`
}

var orgTidy = Internal(Spec{Name: "org tidy", Summary: "tidy", Role: fleet.System, Record: Audit, Show: state.ShowLine, Ver: 2},
	func(tx *state.Tx, _ Meta, a tidyArgs) (Result, error) {
		if a.Fail {
			return Result{}, fleet.Conflictf("nothing to tidy")
		}
		res := Result{Text: a.Text, Quiet: a.Quiet}
		if none := state.ShowNone; a.Hide {
			res.Show = &none
		}
		return res, nil
	})

var orgTouch = Internal(Spec{Name: "org touch", Summary: "leave no record", Role: fleet.System},
	func(*state.Tx, Meta, struct{}) (Result, error) { return Result{Text: "touched"}, nil })

var termOpen = Internal(Spec{Name: "term open", Summary: "open a term", Role: fleet.System, Opens: true, Record: Audit},
	func(tx *state.Tx, _ Meta, a struct {
		Term uint64 `json:"term"`
	}) (Result, error) {
		tx.Term = a.Term
		return Result{Text: "opened"}, nil
	})

func registry() *Registry {
	return NewRegistry(termOpen, orgSet, orgSpoil, orgList, orgDump, orgDumpNoted, orgTidy, orgTouch, allShow, allTake)
}

// log applies commands as the replicas do, and keeps the entries.
type log struct {
	t       testing.TB
	reg     *Registry
	st      *state.State
	entries []fleet.Entry
	now     fleet.Time
}

func newLog(t testing.TB) *log {
	return &log{t: t, reg: registry(), st: state.New(), now: 1_700_000_000_000}
}

// apply applies one batch.
func (l *log) apply(commands ...state.Command) []state.Outcome {
	l.t.Helper()
	var raw [][]byte
	for i := range commands {
		if commands[i].Ver == 0 {
			commands[i].Ver = 1
		}
		if commands[i].By == "" {
			commands[i].By, commands[i].Role, commands[i].Via = "alice", fleet.Operator, "test"
		}
		b, err := state.EncodeCommand(&commands[i])
		if err != nil {
			l.t.Fatal(err)
		}
		raw = append(raw, b)
	}
	batch, err := state.DecodeBatch(state.EncodeBatch(l.now, raw))
	if err != nil {
		l.t.Fatal(err)
	}
	applied, err := l.reg.Apply(l.st, l.st.Index+1, batch, nil)
	if err != nil {
		l.t.Fatal(err)
	}
	if len(applied.Outcomes) != len(commands) {
		l.t.Fatalf("%d outcomes of %d commands", len(applied.Outcomes), len(commands))
	}
	l.entries = append(l.entries, applied.Entries...)
	return applied.Outcomes
}

// one applies a batch of one command.
func (l *log) one(c state.Command) state.Outcome { l.t.Helper(); return l.apply(c)[0] }

func args(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

func set(org string, slots int) state.Command {
	return state.Command{Op: "org set", Args: args(map[string]any{"org": org, "slots": slots})}
}
