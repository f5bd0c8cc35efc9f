package controlplane

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"footplate/controlplane/archive"
	"footplate/controlplane/catalog"
	"footplate/controlplane/replica"
	"footplate/controlplane/state"
	"footplate/fleet"
)

// past is a cluster's past: its state at some moment, and the record up to then
// and beyond.
type past struct {
	dir      string
	snapshot string // file
	record   string // file
	entries  fleet.EntryNo
	head     string
}

// newPast makes the files of a backup: a snapshot of n entries, and an export of
// more.
func newPast(t *testing.T, cluster string, n, more int) past {
	t.Helper()
	p := past{dir: t.TempDir()}
	a, err := archive.Open(filepath.Join(p.dir, "audit"), cluster)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	m := newMachine(catalog.All(), nil, a.Append)
	do := func(name string, args any) {
		t.Helper()
		raw, err := json.Marshal(args)
		if err != nil {
			t.Fatal(err)
		}
		out, err := m.Apply(m.st.Index+1, 3, state.Batch{At: m.st.Clock + 1000, Commands: []state.Command{{
			Op: name, Ver: 1, By: "alice", Role: fleet.Admin, Via: "test", Salt: "00", Args: raw,
		}}})
		if err != nil || out[0].Err != nil {
			t.Fatal(name, err, out)
		}
	}
	do("cluster init", catalog.ClusterInitArgs{Cluster: cluster, Tokens: []fleet.Token{{Name: "nodes", Hash: TokenHash("the secret of the nodes"), Principal: "nodes", Role: fleet.System}}})
	do("node join", catalog.NodeJoinArgs{Node: "n9", API: "http://127.0.0.1:1", Raft: "127.0.0.1:2"})
	do("pool create", catalog.PoolCreateArgs{Pool: "linux", Provider: "none", FenceAfter: 40 * fleet.Second, SuspectAfter: 5 * fleet.Second})
	for m.st.Meta.Entry < fleet.EntryNo(n) {
		do("org set", catalog.OrgSetArgs{Org: fleet.OrgName(fmt.Sprintf("org-%d", m.st.Meta.Entry))})
	}
	write := func(name string, to func(*bytes.Buffer) error) string {
		t.Helper()
		var b bytes.Buffer
		if err := to(&b); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(p.dir, name)
		if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	p.entries, p.head = m.st.Meta.Entry, m.st.Head
	p.snapshot = write("state.snapshot", func(b *bytes.Buffer) error { return m.View().Dump(b) })
	for range more {
		do("org set", catalog.OrgSetArgs{Org: fleet.OrgName(fmt.Sprintf("org-%d", m.st.Meta.Entry))})
	}
	p.record = write("record.jsonl", func(b *bytes.Buffer) error { return a.Export(context.Background(), b, archive.Filter{}) })
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	return p
}

// recovery restores p into dir.
func (p past) recovery(dir string) Recovery {
	return Recovery{
		Node: "n1", Dir: dir, Raft: "127.0.0.1:0", Version: "test", Snapshot: p.snapshot, Record: p.record,
		NodeToken: "a new secret of the nodes", User: "alice", Reason: "a drill", Log: slog.New(slog.DiscardHandler),
	}
}

// reopened is what a node finds in a directory that was recovered.
func reopened(t *testing.T, dir string) (*machine, *archive.Archive, replica.Cluster) {
	t.Helper()
	known, ok, err := replica.ReadCluster(dir)
	if err != nil || !ok {
		t.Fatal("the directory is of no cluster:", err)
	}
	a, err := archive.Open(filepath.Join(dir, "audit"), known.String())
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	m := newMachine(catalog.All(), nil, a.Append)
	m.epoch = known.Epoch
	r, err := replica.Open(replica.Config{NodeID: "n1", Cluster: known, Dir: dir, RaftAddr: "127.0.0.1:0", Machine: m, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Replay(); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	return m, a, known
}

func TestRecoverFromSnapshot(t *testing.T) {
	p := newPast(t, "c1", 3500, 40)
	dir := filepath.Join(t.TempDir(), "data")
	if err := os.MkdirAll(filepath.Join(dir, "secrets"), 0o700); err != nil {
		t.Fatal(err) // secrets that a person put back are no data
	}
	c := p.recovery(dir)
	c.now = time.Date(2026, 11, 21, 12, 45, 0, 0, time.UTC)
	done, err := Recover(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if done.From != 1 || done.To != 20261121124500 || done.Kept != 1 || done.Entry != p.entries || done.Appended != p.entries+1 || done.Fence != 40*fleet.Second {
		t.Errorf("%+v", done)
	}
	m, a, known := reopened(t, dir)
	v := m.View()
	if known.String() != "c1/20261121124500" || v.Epoch != 20261121124500 || v.Fence == 0 || v.Nodes.Len() != 0 || v.Meta.Entry != p.entries+1 {
		t.Errorf("cluster %s, state %+v, %d nodes", known, v.Meta, v.Nodes.Len())
	}
	if _, ok := v.Tokens.Get(TokenHash("a new secret of the nodes")); !ok || v.Tokens.Len() != 1 {
		t.Errorf("the nodes' new secret is not in the state, or the old one is as well: %d tokens", v.Tokens.Len())
	}
	a.BeginAt(v.Kept())
	report, err := a.VerifyChain(t.Context(), v.Kept(), knownAnchors(v)...)
	if err != nil || report.Count != int(p.entries)+1 || report.Anchored != p.entries+1 {
		t.Errorf("%+v, %v", report, err)
	}
	e, err := a.Get(t.Context(), p.entries+1)
	if err != nil || e.Op != "cluster restore" || e.Reason != "a drill" || !strings.Contains(string(e.Args), done.SHA256) || !strings.Contains(string(e.Args), `"user":"alice"`) {
		t.Errorf("the entry of the restore is %+v, %v", e, err)
	}

	t.Run("again from the same snapshot is another epoch", func(t *testing.T) {
		c := p.recovery(filepath.Join(t.TempDir(), "data"))
		c.now = time.Date(2026, 11, 21, 12, 45, 1, 0, time.UTC)
		if done, err := Recover(t.Context(), c); err != nil || done.To != 20261121124501 {
			t.Errorf("%+v, %v", done, err)
		}
	})
	t.Run("a dry run does nothing", func(t *testing.T) {
		c := p.recovery(filepath.Join(t.TempDir(), "data"))
		c.DryRun = true
		done, err := Recover(t.Context(), c)
		if _, no := os.Stat(c.Dir); err != nil || !os.IsNotExist(no) || done.Kept != 1 || done.Appended != 0 {
			t.Errorf("%+v, %v, %v", done, err, no)
		}
	})
	t.Run("without the record", func(t *testing.T) {
		c := p.recovery(filepath.Join(t.TempDir(), "data"))
		c.Record = ""
		if done, err := Recover(t.Context(), c); err != nil || done.Kept != p.entries+1 {
			t.Fatalf("%+v, %v", done, err)
		}
		m, a, _ := reopened(t, c.Dir)
		v := m.View()
		a.BeginAt(v.Kept())
		if report, err := a.VerifyChain(t.Context(), v.Kept(), knownAnchors(v)...); err != nil || report.Count != 1 {
			t.Errorf("%+v, %v", report, err)
		}
		if from, to := a.Missing(); to != 0 {
			t.Errorf("entries %d to %d are missed, and nobody has them", from, to)
		}
		var b bytes.Buffer
		if err := a.Export(t.Context(), &b, archive.Filter{}); err != nil {
			t.Fatal(err)
		}
		if report, err := archive.Verify(&b); err != nil || report.First != v.Kept() {
			t.Errorf("its export: %+v, %v", report, err)
		}
	})
}

// TestRecoverRefuses: what cannot be restored is refused by name, and leaves the
// directory as it was.
func TestRecoverRefuses(t *testing.T) {
	p, other := newPast(t, "c1", 30, 5), newPast(t, "c2", 30, 5)
	longer := newPast(t, "c1", 60, 0)
	good, err := os.ReadFile(p.snapshot)
	if err != nil {
		t.Fatal(err)
	}
	file := func(b []byte) string {
		f := filepath.Join(t.TempDir(), "bad.snapshot")
		if err := os.WriteFile(f, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return f
	}
	replaced := func(old, new string) string {
		t.Helper()
		b := bytes.Replace(good, []byte(old), []byte(new), 1)
		if bytes.Equal(b, good) {
			t.Fatalf("the snapshot has no %s", old)
		}
		return file(b)
	}
	lines := bytes.SplitAfter(good, []byte{'\n'})
	for _, row := range []struct {
		name string
		tune func(*Recovery)
		want string
	}{
		{"no file", func(c *Recovery) { c.Snapshot = "/nowhere/x" }, `snapshot "/nowhere/x" cannot be read`},
		{"empty", func(c *Recovery) { c.Snapshot = file(nil) }, "it is empty or cut off"},
		{"another kind of file", func(c *Recovery) { c.Snapshot = p.record }, "is not a footplate.snapshot"},
		{"cut short", func(c *Recovery) { c.Snapshot = file(good[:len(good)/2]) }, "cut off"},
		{"without its end", func(c *Recovery) { c.Snapshot = file(bytes.Join(lines[:len(lines)-2], nil)) }, "is cut off"},
		{"a row less", func(c *Recovery) {
			c.Snapshot = file(bytes.Join(append(append([][]byte{}, lines[:4]...), lines[5:]...), nil))
		}, "is damaged"},
		{"a number edited", func(c *Recovery) { c.Snapshot = replaced(`"slots":10`, `"slots":99`) }, "is damaged"},
		{"something behind it", func(c *Recovery) { c.Snapshot = file(append(bytes.Clone(good), 'x')) }, "goes on after its tail"},
		{"a newer version", func(c *Recovery) { c.Snapshot = replaced(`"version":`, `"version":9`) }, "this program reads"},
		{"another cluster", func(c *Recovery) { c.Cluster = "c7" }, `is of cluster "c1", not of "c7"`},
		{"the record of another cluster", func(c *Recovery) { c.Record = other.record }, "record"},
		{"a record that ends before", func(c *Recovery) { c.Snapshot = longer.snapshot }, "the export ends at entry 35, and the snapshot at entry 60"},
		{"no record", func(c *Recovery) { c.Record = p.snapshot }, "audit log is not intact"},
	} {
		t.Run(row.name, func(t *testing.T) {
			for _, dry := range []bool{true, false} {
				c := p.recovery(filepath.Join(t.TempDir(), "data"))
				c.DryRun = dry
				row.tune(&c)
				_, err := Recover(t.Context(), c)
				if err == nil || !strings.Contains(err.Error(), row.want) {
					t.Errorf("got %v, want %q in it", err, row.want)
				}
				if names, _ := os.ReadDir(c.Dir); len(names) > 0 {
					t.Errorf("it left %v behind", names)
				}
			}
		})
	}
	t.Run("every bit counts", func(t *testing.T) {
		for at := 0; at < len(good); at += 37 {
			b := bytes.Clone(good)
			b[at] ^= 4
			c := p.recovery(filepath.Join(t.TempDir(), "data"))
			c.Snapshot, c.Record, c.DryRun = file(b), "", true
			if _, err := Recover(t.Context(), c); err == nil {
				t.Errorf("byte %d was changed, and nobody noticed", at)
			}
		}
	})
	t.Run("a directory with data", func(t *testing.T) {
		c := p.recovery(t.TempDir())
		if _, err := Recover(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		before := tree(t, c.Dir)
		_, err := Recover(t.Context(), c)
		if fleet.CodeOf(err) != fleet.CodeConflict || !strings.Contains(err.Error(), c.Dir) {
			t.Errorf("got %v", err)
		}
		if after := tree(t, c.Dir); after != before {
			t.Errorf("it changed the directory:\n%s\n%s", before, after)
		}
	})
}

func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		fmt.Fprintf(&b, "%s %s\n", path, TokenHash(string(data)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestRecoverFromSurvivor: a node goes on from what it has, more than once.
func TestRecoverFromSurvivor(t *testing.T) {
	p := newPast(t, "c1", 20, 0)
	dir := t.TempDir()
	if _, err := Recover(t.Context(), Recovery{Node: "n1", Dir: dir, Log: slog.New(slog.DiscardHandler)}); fleet.CodeOf(err) != fleet.CodeNotFound || !strings.Contains(err.Error(), dir) {
		t.Errorf("an empty directory: %v", err)
	}
	c := p.recovery(dir)
	first, err := Recover(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	c.Snapshot, c.Record = "", ""
	c.Node = "n2"
	if _, err := Recover(t.Context(), c); fleet.CodeOf(err) != fleet.CodeConflict {
		t.Errorf("another node's directory: %v", err)
	}
	c.Node = "n1"
	before := tree(t, dir)
	dry := c
	dry.DryRun = true
	if _, err := Recover(t.Context(), dry); err != nil || tree(t, dir) != before {
		t.Errorf("a dry run: %v, or it changed something", err)
	}
	second, err := Recover(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if second.From != first.To || second.To <= first.To || second.Entry != first.Appended || second.Kept != 1 {
		t.Errorf("%+v after %+v", second, first)
	}
	m, a, known := reopened(t, dir)
	if v := m.View(); known.Epoch != second.To || len(v.Recoveries) != 2 || v.Meta.Build != 2*catalog.RecoveryGap {
		t.Errorf("%s, %+v", known, v.Meta)
	}
	if report, err := a.VerifyChain(t.Context(), 1, knownAnchors(m.View())...); err != nil || report.Last != second.Appended {
		t.Errorf("%+v, %v", report, err)
	}

	t.Run("broken off before the end", func(t *testing.T) {
		// The state was written, and the directory is of the epoch before.
		b, err := json.Marshal(replica.Cluster{ID: "c1", Epoch: first.To})
		if err != nil {
			t.Fatal(err)
		}
		broken := filepath.Join(t.TempDir(), "data")
		if err := os.CopyFS(broken, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(broken, "cluster.json"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		m := newMachine(catalog.All(), nil, func([]fleet.Entry) {})
		m.epoch = first.To
		r, err := replica.Open(replica.Config{NodeID: "n1", Dir: broken, RaftAddr: "127.0.0.1:0", Machine: m, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		_, err = r.Replay()
		if err == nil || !strings.Contains(err.Error(), "broken off") {
			t.Errorf("a node starts on it: %v", err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		c := c
		c.Dir = broken
		if third, err := Recover(t.Context(), c); err != nil || third.To <= second.To {
			t.Errorf("again: %+v, %v", third, err)
		}
	})
}
