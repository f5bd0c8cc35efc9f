// Package bottest is a control plane in memory for tests of the bot: the real
// operations on the real state, behind the rules of the server's door (roles,
// plans, keys), without a log, and with faults on demand.
package bottest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"

	"footplate/controlplane/api"
	"footplate/controlplane/catalog"
	"footplate/controlplane/client"
	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
)

// Fault is what goes wrong with a call.
type Fault struct {
	Before error         // instead of the call
	After  error         // the call is made, and its answer lost
	Delay  time.Duration // before the call
}

// Fleet is a control plane. The methods of bot.API ask it.
type Fleet struct {
	Registry *op.Registry

	mu      sync.Mutex
	st      *state.State
	entries []fleet.Entry
	roles   map[fleet.Principal]fleet.Role
	logs    map[fleet.BuildID][]op.LogChunk
	changed chan struct{} // closed and replaced at each change
	cut     chan struct{} // closed and replaced when streams break
	fault   func(o *op.Op) Fault
	calls   int
}

// New returns a control plane with an org "acme", a pool "linux" of two hosts,
// and nobody who may do anything.
func New() *Fleet {
	f := &Fleet{
		Registry: catalog.All(), st: state.New(), roles: make(map[fleet.Principal]fleet.Role),
		logs: make(map[fleet.BuildID][]op.LogChunk), changed: make(chan struct{}), cut: make(chan struct{}),
	}
	f.Change(func(tx *state.Tx) {
		tx.Cluster = "test"
		tx.Orgs.Put("acme", fleet.Org{Name: "acme", Slots: 10, Weight: 1})
		tx.Pools.Put("linux", fleet.Pool{Name: "linux", Provider: "local", Size: 2, Slots: 2, Max: 100})
	})
	f.AddHosts(2)
	return f
}

// Change changes the state beside every operation.
func (f *Fleet) Change(change func(*state.Tx)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.st.Begin(f.st.Index+1, fleet.TimeOf(time.Now()))
	_ = f.st.Do("test", func(tx *state.Tx) error {
		change(tx)
		return nil
	})
	f.published()
}

func (f *Fleet) published() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// AddHosts makes sure that the pool "linux" has the hosts linux-1 to linux-n.
func (f *Fleet) AddHosts(n int) {
	f.Change(func(tx *state.Tx) {
		for i := 1; i <= n; i++ {
			id := fleet.HostID(fmt.Sprintf("linux-%d", i))
			if _, ok := tx.Hosts.Get(id); !ok {
				tx.Hosts.Put(id, fleet.Host{ID: id, Pool: "linux", State: fleet.HostReady, Slots: 2, CreatedAt: tx.At, Version: "0.1.0"})
			}
		}
	})
}

// Start gives the first task of a build to a host.
func (f *Fleet) Start(build fleet.BuildID, host fleet.HostID) fleet.AttemptID {
	var id fleet.AttemptID
	f.Change(func(tx *state.Tx) {
		b, _ := tx.Builds.Get(build)
		tx.Meta.Attempt++
		id = tx.Meta.Attempt
		b.Stage = fleet.StageRunnable
		b.Tasks = append([]fleet.Task(nil), b.Tasks...)
		b.Tasks[0].Live = id
		b.Tasks[0].Attempts = []fleet.AttemptID{id}
		tx.Builds.Put(build, b)
		tx.Attempts.Put(id, fleet.Attempt{ID: id, Build: build, N: 1, Host: host, Phase: fleet.PhaseSteps, StartedAt: tx.At})
	})
	return id
}

// Finish ends the attempt that Start began, and its build.
func (f *Fleet) Finish(id fleet.AttemptID, outcome fleet.Outcome, exit int) {
	f.Change(func(tx *state.Tx) {
		a, _ := tx.Attempts.Get(id)
		a.Phase, a.Outcome, a.Exit, a.EndedAt = fleet.PhaseEnded, outcome, exit, tx.At
		tx.Attempts.Put(id, a)
		b, _ := tx.Builds.Get(a.Build)
		b.Tasks = append([]fleet.Task(nil), b.Tasks...)
		b.Tasks[0].Live, b.Tasks[0].Outcome = 0, outcome
		b.Stage, b.Outcome, b.FinishedAt = fleet.StageFinished, outcome, tx.At
		tx.Builds.Put(a.Build, b)
	})
}

// Write adds output to a build's log; the last piece is final.
func (f *Fleet) Write(build fleet.BuildID, text string, final bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := len(f.logs[build])
	f.logs[build] = append(f.logs[build], op.LogChunk{
		Build: build, Task: "main", Try: 1, Attempt: 1, Host: "linux-1", N: n, Data: []byte(text), Final: final,
	})
	f.published()
}

// Grant gives somebody a role.
func (f *Fleet) Grant(p fleet.Principal, r fleet.Role) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.roles[p] = r
}

// SetFault has fault decide of each call what goes wrong with it; nil stops that.
func (f *Fleet) SetFault(fault func(o *op.Op) Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault = fault
}

// CutStreams breaks every stream that is open.
func (f *Fleet) CutStreams() {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.cut)
	f.cut = make(chan struct{})
}

// Entries returns the record.
func (f *Fleet) Entries() []fleet.Entry {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]fleet.Entry(nil), f.entries...)
}

// Calls counts the calls of Do.
func (f *Fleet) Calls() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

// trouble makes the fault of a call happen; after is the rest of it.
func (f *Fleet) trouble(ctx context.Context, o *op.Op) (after, err error) {
	f.mu.Lock()
	fault := f.fault
	f.mu.Unlock()
	if fault == nil {
		return nil, ctx.Err()
	}
	what := fault(o)
	if what.Delay > 0 {
		select {
		case <-time.After(what.Delay):
		case <-ctx.Done():
			return nil, fleet.Unknownf("it is not known whether %s was done", o.Name)
		}
	}
	return what.After, what.Before
}

// Do is bot.API's.
func (f *Fleet) Do(ctx context.Context, by fleet.Principal, o *op.Op, args any, opts client.Options) (api.Reply, error) {
	after, err := f.trouble(ctx, o)
	if err != nil {
		return api.Reply{}, err
	}
	reply, err := f.do(by, o, args, opts)
	if after != nil {
		return api.Reply{}, after
	}
	return reply, err
}

func (f *Fleet) do(by fleet.Principal, o *op.Op, args any, opts client.Options) (api.Reply, error) {
	raw, err := o.Encode(args)
	if err != nil {
		return api.Reply{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	role := f.roles[by]
	cmd := state.Command{
		Key: opts.Key, Op: o.Name, Ver: o.Version(), By: by, Role: role, Via: "test", Reason: opts.Reason, Args: raw,
		Repeat: opts.Repeat,
		Salt:   fmt.Sprintf("%032x", f.st.Index),
	}
	if no := (op.Caller{Principal: by, Role: role}).May(o); no != nil {
		if !opts.DryRun {
			f.refuse(cmd, no)
		}
		return api.Reply{}, no
	}
	plan, _, res, planErr := f.Registry.DryRun(f.st.Publish().Scratch(), &cmd)
	if opts.DryRun {
		return api.Reply{Op: o.Name, Key: opts.Key, Text: res.Text, Plan: plan}, planErr
	}
	if _, known := f.st.Keys.Get(string(by) + "\x00" + opts.Key); !known {
		if again := op.Repeats(f.st.Peek(), fleet.TimeOf(time.Now()), &cmd); again != nil {
			return api.Reply{}, again
		}
		if no := f.confirm(&cmd, o, opts.Confirm, plan, planErr); no != nil {
			return api.Reply{}, no
		}
	}
	out := f.apply(cmd)
	if out.Err != nil {
		return api.Reply{}, out.Err
	}
	return api.Reply{Op: o.Name, Key: opts.Key, Entry: out.Entry, Text: out.Text, Result: out.Result, Duplicate: out.Duplicate}, nil
}

// confirm makes sure that what is disruptive was confirmed.
func (f *Fleet) confirm(cmd *state.Command, o *op.Op, confirm string, plan *fleet.Plan, planErr error) error {
	switch {
	case o.Risk != op.Disruptive || confirm == "yes":
		return nil
	case planErr != nil:
		return planErr
	case confirm == "":
		return &fleet.Error{
			Code: fleet.CodeConfirm, Msg: fmt.Sprintf("%q is %s, and was not confirmed: nothing was done", o.Name, o.Risk),
			Hint: "look at the plan, then repeat with --yes", Plan: plan,
		}
	case plan.Hash != confirm:
		no := fleet.Conflictf("the plan of %q has changed since it was shown: nothing was done", o.Name).WithHint("look at the new plan, and confirm that")
		f.refuse(*cmd, no)
		no.Plan = plan
		return no
	}
	cmd.Plan = plan.Hash
	return nil
}

func (f *Fleet) refuse(cmd state.Command, why *fleet.Error) {
	recorded := *why
	cmd.Key, cmd.Refusal = "", &recorded
	f.apply(cmd)
}

func (f *Fleet) apply(cmd state.Command) state.Outcome {
	done, err := f.Registry.Apply(f.st, f.st.Index+1, state.Batch{At: fleet.TimeOf(time.Now()), Commands: []state.Command{cmd}}, nil)
	if err != nil {
		panic(err)
	}
	f.entries = append(f.entries, done.Entries...)
	f.published()
	return done.Outcomes[0]
}

// Query is bot.API's.
func (f *Fleet) Query(ctx context.Context, by fleet.Principal, o *op.Op, args any, stale bool) (json.RawMessage, client.Stale, error) {
	after, err := f.trouble(ctx, o)
	if err != nil {
		return nil, "", err
	}
	f.mu.Lock()
	env, no := f.env(by, o)
	f.mu.Unlock()
	if no != nil {
		return nil, "", no
	}
	res, err := query(ctx, o, env, args)
	if err != nil {
		return nil, "", err
	}
	raw, err := json.Marshal(res)
	if after != nil {
		err = after
	}
	age := client.Stale("")
	if stale {
		age = "40ms"
	}
	return raw, age, err
}

// query runs a query. What it asks of the world that no test of the bot needs is
// answered with an error.
func query(ctx context.Context, o *op.Op, env op.Env, args any) (res any, err error) {
	defer func() {
		if recover() != nil {
			err = fleet.Internalf("there is no answer to %s in a test", o.Name)
		}
	}()
	return o.Query(ctx, env, args)
}

func (f *Fleet) env(by fleet.Principal, o *op.Op) (op.Env, error) {
	caller := op.Caller{Principal: by, Role: f.roles[by]}
	if no := caller.May(o); no != nil {
		return op.Env{}, no
	}
	return op.Env{View: f.st.Publish(), Now: f.st.Clock, Caller: caller, Node: "n1", World: world{f: f}, Ops: f.Registry}, nil
}

// Stream is bot.API's. A stale one is answered without a leader.
func (f *Fleet) Stream(ctx context.Context, by fleet.Principal, o *op.Op, args any, stale bool) (io.ReadCloser, error) {
	if _, err := f.trouble(ctx, o); err != nil && !(stale && fleet.CodeOf(err) == fleet.CodeUnavailable) {
		return nil, err
	}
	f.mu.Lock()
	env, no := f.env(by, o)
	cut := f.cut
	f.mu.Unlock()
	if no != nil {
		return nil, no
	}
	out, in := io.Pipe()
	begun := make(chan error, 1)
	ctx, stop := context.WithCancel(ctx)
	go func() {
		select {
		case <-cut:
			in.CloseWithError(io.ErrUnexpectedEOF)
			stop()
		case <-ctx.Done():
		}
	}()
	go func() {
		defer stop()
		err := o.Stream(ctx, env, args, &tap{in, begun})
		select {
		case begun <- err:
		default:
		}
		in.CloseWithError(err)
	}()
	select {
	case err := <-begun:
		if err != nil {
			return nil, err
		}
		return out, nil
	case <-time.After(beginAfter):
		return out, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// beginAfter is how long a node waits for the first of a stream before it begins
// the answer without.
const beginAfter = time.Second

// tap says when the first byte is written: an error before it is an answer.
type tap struct {
	w     io.Writer
	begun chan error
}

// Write writes a piece.
func (t *tap) Write(b []byte) (int, error) {
	select {
	case t.begun <- nil:
	default:
	}
	return t.w.Write(b)
}

// world is what queries can see beside the state. What a test of the bot never
// asks for is left to the nil interface.
type world struct {
	op.World
	f *Fleet
}

// Entries returns entries of the record.
func (w world) Entries(_ context.Context, q op.EntryFilter) ([]fleet.Entry, error) {
	var out []fleet.Entry
	all := w.f.Entries()
	for i := range all {
		e := all[i]
		if q.Newest {
			e = all[len(all)-1-i]
		}
		if q.By != "" && e.By != q.By || q.Op != "" && e.Op != q.Op || q.From != 0 && e.N < q.From || q.To != 0 && e.N > q.To {
			continue
		}
		if out = append(out, e); q.Limit > 0 && len(out) == q.Limit {
			break
		}
	}
	return out, nil
}

// ExportEntries writes the record as lines of JSON.
func (w world) ExportEntries(ctx context.Context, q op.EntryFilter, out io.Writer) error {
	entries, err := w.Entries(ctx, q)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	for _, e := range entries {
		if err := json.NewEncoder(&b).Encode(e); err != nil {
			return err
		}
	}
	_, err = out.Write(b.Bytes())
	return err
}

// Log yields what Write has written.
func (w world) Log(ctx context.Context, id fleet.AttemptID, from int, follow bool, yield func(op.LogChunk) error) (int, error) {
	for {
		w.f.mu.Lock()
		at, _ := w.f.st.Attempts.Get(id)
		chunks, changed := w.f.logs[at.Build], w.f.changed
		w.f.mu.Unlock()
		for ; from < len(chunks); from++ {
			if err := yield(chunks[from]); err != nil {
				return from, err
			}
			if chunks[from].Final {
				return from + 1, nil
			}
		}
		if !follow {
			return from, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return from, ctx.Err()
		}
	}
}

// Heard says that every host is well.
func (w world) Heard(fleet.HostID) (fleet.Duration, bool) { return 0, true }

// WaitView waits for a change.
func (w world) WaitView(ctx context.Context, index uint64) (*state.View, error) {
	for {
		w.f.mu.Lock()
		v, changed := w.f.st.Publish(), w.f.changed
		w.f.mu.Unlock()
		if v.Index > index {
			return v, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
