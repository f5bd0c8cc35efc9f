package controlplane

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"footplate/controlplane/archive"
	"footplate/controlplane/catalog"
	"footplate/controlplane/replica"
	"footplate/controlplane/state"
	"footplate/fleet"
)

// # Recovery
//
// The problem: the quorum is lost for ever, and what is left is a snapshot that
// somebody saved, or the data of one node. Going on from it is to go back in
// time, in a world that has not: agents run what the state takes for unstarted,
// and hold leases of nodes that are no more; numbers were given that would be
// given again; other nodes may come back, and make a majority of the old cluster;
// and what was told to the channel and to Postgres cannot be untold.
//
// The way chosen: a recovery begins an epoch, and the epoch is part of the
// cluster's name (fleet.ClusterName) in every call: of agents, of nodes to each
// other, and on Raft's own connections, where a leader of the old epoch would
// otherwise make this node give up its log for its own. An epoch is named by the
// time of the recovery, to the second, and not by a count: from the same
// snapshot one may have to begin twice, and the two must not be taken for one.
//
// The recovery is a command, applied to what was read, with its entry in the
// record, before any node runs: the state that the log begins with is of the new
// epoch already. Until every lease of the old epoch must have ended, nothing is
// given to hosts (catalog.ClusterRestore). Agents find out by themselves, end
// what they run, and join as a new incarnation, which is proof that they have.
// A node of the old epoch that comes back halts as soon as it asks one of the
// new.
//
// Builds, attempts and launches leave a gap in their numbers. Entries leave
// none, because the chain is dense and proves by that that nothing is missing:
// it goes on from the last that was read, and Postgres keeps what came after
// that under the name of the epoch before, where "audit verify" says what it is.
//
// The way not taken: the epoch as a second part of every number would stand in
// each command line for ever, for the sake of one day. To let a person say that
// the agents are dead, and to skip the wait, was not taken: half a minute is
// less than it takes to be sure.

// Recovery says what a node goes on from when the quorum is lost for ever.
type Recovery struct {
	Node          fleet.NodeID
	Dir           string // its data directory: empty for a snapshot
	Raft          string // address of Raft
	RaftAdvertise string // what others call it by; Raft when empty
	Version       string
	Cluster       string   // id that it must be; any when empty
	Snapshot      string   // file of "cluster snapshot save"; what Dir has when empty
	Record        string   // file of "audit export", for the entries up to the snapshot
	Postgres      string   // URL of the shared archive, for the same; none when empty
	NodeToken     string   // secret that the nodes share from now on
	AdminToken    string   // secret of a new admin; none when empty
	User, Reason  string   // who does it, and why
	DryRun        bool     // only look
	SkipCommand   []string // see Config
	Log           *slog.Logger

	now time.Time
}

// recoveryFlush bounds the wait for the disk.
const recoveryFlush = time.Minute

// Recovered is what was gone on from.
type Recovered struct {
	Cluster  string // id
	From, To uint64 // epochs
	SHA256   string // of the snapshot
	Index    uint64 // of the newest log entry
	Clock    fleet.Time
	Entry    fleet.EntryNo // the newest that the state knows
	Kept     fleet.EntryNo // the oldest that is there; Entry+1 when none is
	KeptFrom string        // where the record came from, or why it did not
	Pools    int
	Hosts    int
	Builds   int
	Running  int            // attempts, as the state had it
	Fence    fleet.Duration // of the leases that must end before hosts get work
	Appended fleet.EntryNo  // the entry that tells of it; 0 for a dry run
}

// Recover makes Dir the data of the first node of a cluster that goes on from a
// snapshot, or from what Dir has. What it refuses leaves Dir as it was.
func Recover(ctx context.Context, c Recovery) (Recovered, error) {
	if c.now.IsZero() {
		c.now = time.Now()
	}
	if c.Snapshot == "" {
		return c.survivor(ctx)
	}
	return c.snapshot(ctx)
}

// snapshot goes on from a saved snapshot, in an empty directory.
func (c *Recovery) snapshot(ctx context.Context) (Recovered, error) {
	if err := mustBeEmpty(c.Dir); err != nil {
		return Recovered{}, err
	}
	m := newMachine(catalog.All(), nil, nil)
	sum, err := c.load(m)
	if err != nil {
		return Recovered{}, err
	}
	out := c.describe(m.st)
	out.SHA256 = sum
	if err := c.check(&out); err != nil {
		return out, err
	}
	at := replica.Position{Index: m.st.Index, Term: m.st.Term}
	if c.DryRun {
		return out, c.lookAtRecord(ctx, m.st, &out)
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return out, fleet.Invalidf("data directory: %s", err)
	}
	to := replica.Cluster{ID: out.Cluster, Epoch: out.To}
	err = c.refound(ctx, m, &out, at, to, to)
	if err != nil {
		err = errors.Join(err, c.clear())
	}
	return out, err
}

// clear leaves the directory of a snapshot that could not be restored as it was.
func (c *Recovery) clear() error {
	names, err := os.ReadDir(c.Dir)
	for _, n := range names {
		if n.Name() != "secrets" {
			err = errors.Join(err, os.RemoveAll(filepath.Join(c.Dir, n.Name())))
		}
	}
	return err
}

// survivor goes on from what a node has.
func (c *Recovery) survivor(ctx context.Context) (Recovered, error) {
	known, ok, err := replica.ReadCluster(c.Dir)
	if err != nil {
		return Recovered{}, err
	}
	if !ok {
		return Recovered{}, fleet.NotFoundf("data directory %q has no data to recover from", c.Dir).
			WithHint("with a snapshot in hand: footplate server restore FILE")
	}
	if err := checkName(c.Dir, c.Node); err != nil {
		return Recovered{}, err
	}
	skip, err := parseSkips(c.SkipCommand)
	if err != nil {
		return Recovered{}, err
	}
	// A dry run appends nothing: what is not known to be committed may yet be
	// given up by the others, should they come back.
	m := newMachine(catalog.All(), skip, func([]fleet.Entry) {})
	at, err := c.replay(ctx, m, known)
	if err != nil {
		return Recovered{}, err
	}
	out := c.describe(m.st)
	out.From, out.Index = max(out.From, known.Epoch), at.Index
	out.To = max(out.To, out.From+1)
	out.Kept, out.KeptFrom = m.st.Kept(), "this node's own archive"
	if err := c.check(&out); err != nil || c.DryRun {
		return out, err
	}
	return out, c.refound(ctx, m, &out, at, known, replica.Cluster{ID: known.ID, Epoch: out.To})
}

// replay applies what the node has to m.
func (c *Recovery) replay(ctx context.Context, m *machine, known replica.Cluster) (at replica.Position, err error) {
	r, err := replica.Open(c.replica(m, known)) // refuses a directory that is in use
	if err != nil {
		return at, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if c.DryRun {
		return r.Replay()
	}
	a, err := archive.Open(filepath.Join(c.Dir, "audit"), known.String())
	if err != nil {
		return at, err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	m.append = a.Append
	err = c.running(ctx, a, func(ctx context.Context) error {
		if at, err = r.Replay(); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, recoveryFlush)
		defer cancel()
		return a.Flush(ctx, m.st.Entry)
	})
	return at, err
}

// replica is the configuration of the replica that is opened, and never run.
func (c *Recovery) replica(m *machine, of replica.Cluster) replica.Config {
	return replica.Config{
		NodeID: c.Node, Cluster: of, Dir: c.Dir, RaftAddr: c.Raft, Advertise: c.RaftAdvertise, Machine: m, Log: c.Log,
	}
}

// running runs the archive while f does something.
func (c *Recovery) running(ctx context.Context, a *archive.Archive, f func(context.Context) error) error {
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- a.Run(run) }()
	err := f(ctx)
	stop()
	return errors.Join(err, <-ended)
}

// load reads the snapshot into m, all of it and nothing but it.
func (c *Recovery) load(m *machine) (sum string, err error) {
	f, err := os.Open(c.Snapshot)
	if err != nil {
		return "", fleet.NotFoundf("snapshot %q cannot be read: %s", c.Snapshot, errors.Unwrap(err))
	}
	defer f.Close()
	h := sha256.New()
	if err := m.Restore(io.TeeReader(f, h)); err != nil {
		return "", fleet.Invalidf("snapshot %q cannot be restored: %s", c.Snapshot, err).
			WithHint("take another one; nothing was done")
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// describe says what st has.
func (c *Recovery) describe(st *state.State) Recovered {
	out := Recovered{
		Cluster: st.Cluster, From: st.Epoch, Index: st.Index, Clock: st.Clock, Entry: st.Meta.Entry,
		Pools: st.Pools.Len(), Hosts: st.Hosts.Len(), Builds: st.Builds.Len(),
	}
	// Named by the time, so that two that began from the same state differ.
	stamp, _ := strconv.ParseUint(c.now.UTC().Format("20060102150405"), 10, 64)
	out.To = max(out.From+1, stamp)
	for _, at := range st.Attempts.All() {
		if at.Live() {
			out.Running++
		}
	}
	return out
}

// check refuses what is not the cluster that is meant.
func (c *Recovery) check(out *Recovered) error {
	from := fmt.Sprintf("snapshot %q", c.Snapshot)
	if c.Snapshot == "" {
		from = fmt.Sprintf("data directory %q", c.Dir)
	}
	switch {
	case out.Cluster == "":
		return fleet.Invalidf("%s is of a cluster that never began", from)
	case c.Cluster != "" && out.Cluster != c.Cluster:
		return fleet.Conflictf("%s is of cluster %q, not of %q", from, out.Cluster, c.Cluster).WithHint("check --cluster; nothing was done")
	}
	return nil
}

// mustBeEmpty refuses a directory that has anything but secrets.
func mustBeEmpty(dir string) error {
	names, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fleet.Invalidf("data directory: %s", err)
	}
	var there []string
	for _, n := range names {
		if n.Name() != "secrets" {
			there = append(there, n.Name())
		}
	}
	if len(there) == 0 {
		return nil
	}
	return fleet.Conflictf("data directory %q has data (%s): a snapshot is restored into an empty one", dir, strings.Join(there, ", ")).
		WithHint("move it away, do not remove it: footplate server recover can go on from a node's data, and that is newer than any snapshot")
}

// refound applies the recovery to what m has, and writes what comes of it into
// the directory, which is of the cluster of, and becomes of the cluster to.
func (c *Recovery) refound(ctx context.Context, m *machine, out *Recovered, at replica.Position, of, to replica.Cluster) error {
	if err := checkName(c.Dir, c.Node); err != nil {
		return err
	}
	a, err := archive.Open(filepath.Join(c.Dir, "audit"), of.String())
	if err != nil {
		return err
	}
	m.append = a.Append
	err = c.running(ctx, a, func(ctx context.Context) error {
		if err := c.fillRecord(ctx, a, m.st, out); err != nil {
			return err
		}
		if err := c.apply(m, out, &at); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, recoveryFlush)
		defer cancel()
		return a.Flush(ctx, m.st.Entry)
	})
	if err := errors.Join(err, a.Close()); err != nil {
		return err
	}
	r, err := replica.Open(c.replica(m, of))
	if err != nil {
		return err
	}
	return errors.Join(r.Refound(to, at), r.Close())
}

// apply applies the command that tells of the recovery.
func (c *Recovery) apply(m *machine, out *Recovered, at *replica.Position) error {
	args := catalog.ClusterRestoreArgs{
		Node: c.Node, SHA256: out.SHA256, Index: out.Index, Entries: out.Entry, Kept: out.Kept, Epoch: out.To, User: c.User,
		Tokens: []fleet.Token{{Name: "nodes", Hash: TokenHash(c.NodeToken), Principal: "nodes", Role: fleet.System}},
	}
	if c.Snapshot != "" {
		args.File = filepath.Base(c.Snapshot)
	}
	if c.AdminToken != "" {
		args.Tokens = append(args.Tokens, fleet.Token{
			Name: "recovery", Hash: TokenHash(c.AdminToken), Principal: "admin", Role: fleet.Admin,
		})
	}
	raw, err := catalog.ClusterRestore.Encode(args)
	if err != nil {
		return err
	}
	at.Index++
	at.At = max(fleet.TimeOf(c.now), out.Clock)
	outcomes, err := m.Apply(at.Index, at.Term, state.Batch{At: at.At, Commands: []state.Command{{
		Key: "cluster-restore/" + strconv.FormatUint(out.To, 10), Op: catalog.ClusterRestore.Name, Ver: catalog.ClusterRestore.Version(),
		By: fleet.Principal("node:" + c.Node), Role: fleet.System, Via: "node/" + c.Version, Reason: c.Reason,
		Salt: NewSecret("")[:32], Args: raw,
	}}})
	if err != nil {
		return err
	}
	if outcomes[0].Err != nil {
		return outcomes[0].Err
	}
	out.Appended, out.Fence = outcomes[0].Entry, m.st.Fence
	return nil
}

// fillRecord fills the archive with the entries that the state goes on from.
func (c *Recovery) fillRecord(ctx context.Context, a *archive.Archive, st *state.State, out *Recovered) error {
	head := archive.Anchor{N: st.Meta.Entry, Hash: st.Head}
	out.Kept = head.N + 1
	switch {
	case c.Snapshot == "":
		// Its own archive; a gap in it was to be filled by the others.
		a.BeginAt(st.Kept())
		out.Kept, out.KeptFrom = st.Kept(), "this node's own archive"
		if err := a.Expect(ctx, head.N, head.Hash); err != nil {
			return err
		}
		from, to := a.Missing()
		if to > 0 && c.Postgres != "" {
			if why := c.fromPostgres(ctx, a, st, from); why != nil {
				c.Log.Warn("the shared archive does not fill the gap in the record", "err", why)
			}
		}
		if _, to = a.Missing(); to > 0 {
			out.Kept = to + 1
			out.KeptFrom = fmt.Sprintf("this node's own archive, which lacks entries up to %d", to)
		}
		return nil
	case c.Record != "":
		f, err := os.Open(c.Record)
		if err != nil {
			return fleet.NotFoundf("record %q cannot be read: %s", c.Record, errors.Unwrap(err))
		}
		defer f.Close()
		out.Kept, err = a.Import(ctx, f, head)
		out.KeptFrom = c.Record
		if err != nil {
			return c.badRecord(err)
		}
		return nil
	case c.Postgres != "":
		if err := a.Expect(ctx, head.N, head.Hash); err != nil {
			return err
		}
		why := c.fromPostgres(ctx, a, st, st.Kept())
		if _, to := a.Missing(); to < head.N {
			out.Kept, out.KeptFrom = max(to+1, st.Kept()), "the shared archive"
		}
		if why != nil {
			out.KeptFrom = fmt.Sprintf("the shared archive does not give it: %s", fleet.AsError(why).Msg)
			c.Log.Warn("the record does not come from the shared archive", "err", why)
		}
		return nil
	}
	out.KeptFrom = "neither --record nor a shared archive was given"
	return nil
}

func (c *Recovery) badRecord(err error) error {
	e := fleet.AsError(err)
	return &fleet.Error{Code: e.Code, Msg: fmt.Sprintf("record %q: %s", c.Record, e.Msg), Hint: e.Hint}
}

// lookAtRecord says, for a dry run, what fillRecord would find.
func (c *Recovery) lookAtRecord(ctx context.Context, st *state.State, out *Recovered) error {
	dir, err := os.MkdirTemp("", "footplate-restore-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	a, err := archive.Open(dir, fleet.ClusterName(out.Cluster, out.From))
	if err != nil {
		return err
	}
	err = c.running(ctx, a, func(ctx context.Context) error { return c.fillRecord(ctx, a, st, out) })
	return errors.Join(err, a.Close())
}

// fromPostgres fills the archive from the shared one, from the newest backwards
// to the entry from. What does not fit the hash of the newer is refused.
func (c *Recovery) fromPostgres(ctx context.Context, a *archive.Archive, st *state.State, from fleet.EntryNo) error {
	s, err := newShared(c.Postgres, replica.Cluster{ID: st.Cluster, Epoch: st.Epoch}, a, c.Log)
	if err != nil {
		return err
	}
	defer s.close()
	for {
		first, last := a.Missing()
		if last < max(from, 1) || last == 0 {
			return nil
		}
		first = max(first, from)
		if last-first >= sharedAtOnce {
			first = last - sharedAtOnce + 1
		}
		call, cancel := context.WithTimeout(ctx, sharedCall)
		got, err := s.read(call, &st.Meta, first, last)
		if err == nil && (len(got) == 0 || got[len(got)-1].N != last) {
			err = fleet.NotFoundf("it does not have entry %d", last)
		}
		if err == nil {
			// After a gap, what is before it cannot be linked.
			at := len(got) - 1
			for at > 0 && got[at-1].N == got[at].N-1 {
				at--
			}
			err = a.Fill(call, got[at:])
		}
		cancel()
		if err != nil {
			return err
		}
	}
}
