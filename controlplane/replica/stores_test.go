package replica

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"footplate/fleet"
)

// diskNode is a node of its own with real stores and a real port.
type diskNode struct {
	*Replica
	machine *ledger
	stop    func() error
}

func diskConfig(dir string) Config {
	return Config{
		NodeID: "n1", Cluster: Cluster{ID: "c"}, Dir: dir, RaftAddr: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler),
		HeartbeatTimeout: 100 * time.Millisecond, SnapshotThreshold: 1 << 30, TrailingLogs: 5,
	}
}

func startDiskNode(t *testing.T, dir string) *diskNode {
	t.Helper()
	cfg := diskConfig(dir)
	n := &diskNode{machine: &ledger{}}
	cfg.Machine = n.machine
	var err error
	if n.Replica, err = Open(cfg); err != nil {
		t.Fatal(err)
	}
	data, err := n.HasData()
	if err != nil {
		t.Fatal(err)
	}
	if !data {
		if err := n.Bootstrap([]Member{{ID: "n1", Addr: n.Addr(), Voter: true}}); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	n.stop = func() error { cancel(); return <-ended }
	until(t, "leader", func() bool { return n.Status().Role == RoleLeader })
	return n
}

func (n *diskNode) note(t *testing.T, key string) {
	t.Helper()
	if _, err := n.Propose(t.Context(), LaneOperations, command("note", key)); err != nil {
		t.Fatal(err)
	}
}

func TestRestartFromDisk(t *testing.T) {
	dir := t.TempDir()
	var want []string
	for round := range 3 {
		n := startDiskNode(t, dir)
		if got := n.machine.keys(); !slices.Equal(got, want) {
			t.Fatalf("after a restart: %q, want %q", got, want)
		}
		for i := range 20 {
			key := fmt.Sprintf("%d-%d", round, i)
			n.note(t, key)
			want = append(want, key)
			if i == 15 && round == 1 {
				_, from, err := n.Snapshot(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if err := from.Close(); err != nil {
					t.Fatal(err)
				}
			}
		}
		begins(t, n.machine.all())
		if err := n.stop(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDamagedDirectoryIsRefused(t *testing.T) {
	good := t.TempDir()
	n := startDiskNode(t, good)
	for i := range 20 {
		n.note(t, fmt.Sprint(i))
	}
	_, from, err := n.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := from.Close(); err != nil {
		t.Fatal(err)
	}
	n.note(t, "end")
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	file := func(dir, pattern string) string {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil || len(found) == 0 {
			t.Fatalf("no %s: %v", pattern, err)
		}
		return found[0]
	}
	damage := func(pattern string, change func([]byte) []byte) func(string) {
		return func(dir string) {
			path := file(dir, pattern)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, change(b), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	flip := func(b []byte) []byte { b[len(b)/2] ^= 0x20; return b }
	half := func(b []byte) []byte { return b[:len(b)/2] }
	wipe := func(b []byte) []byte { clear(b); return b }
	remove := func(pattern string) func(string) {
		return func(dir string) {
			if err := os.RemoveAll(file(dir, pattern)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, tc := range []struct {
		name string
		harm func(dir string)
		tune func(*Config)
		want string
	}{
		{"snapshot with a flipped bit", damage("snapshots/*/state.bin", flip), nil, "is damaged: CRC mismatch"},
		{"snapshot cut short", damage("snapshots/*/state.bin", half), nil, "is damaged: CRC mismatch"},
		{"snapshot's description cut short", damage("snapshots/*/meta.json", half), nil, "is damaged"},
		{"snapshot gone", remove("snapshots/*"), nil, "what is between them is missing"},
		{"cluster file gone", remove("cluster.json"), nil, "holds a log but no cluster.json"},
		{"cluster file cut short", damage("cluster.json", half), nil, "is damaged"},
		{"log's description damaged", damage("log/wal-meta.db", wipe), nil, "open log"},
		{"other cluster", nil, func(c *Config) { c.Cluster.ID = "d" }, `belongs to cluster "c", not to "d"`},
		{"other epoch", nil, func(c *Config) { c.Cluster.Epoch = 1 }, "epoch"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(good)); err != nil {
				t.Fatal(err)
			}
			if tc.harm != nil {
				tc.harm(dir)
			}
			cfg := diskConfig(dir)
			cfg.Machine = &ledger{}
			if tc.tune != nil {
				tc.tune(&cfg)
			}
			r, err := Open(cfg)
			if err == nil {
				t.Error(r.Close())
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q in it", err, tc.want)
			}
		})
	}
}

func TestDirectoryIsForOneProcess(t *testing.T) {
	cfg := diskConfig(t.TempDir())
	cfg.Machine = &ledger{}
	r, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(cfg); fleet.CodeOf(err) != fleet.CodeConflict {
		t.Errorf("a second Open: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.Cluster = Cluster{}
	r, err = Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if r.Cluster().ID != "c" {
		t.Errorf("cluster is %+v", r.Cluster())
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.Dir = t.TempDir()
	if _, err := Open(cfg); fleet.CodeOf(err) != fleet.CodeInvalid {
		t.Errorf("a new directory of no cluster: %v", err)
	}
}

func TestDamagedSnapshotContentHalts(t *testing.T) {
	f := newFSM(&ledger{}, nil, slog.New(slog.DiscardHandler))
	for _, bad := range []string{"", "xyz", "fps1", "fps1{}", "fps1{\n", "fps9{}\n[]", "fps1{}\n[", "fps1{\"index\":3}\n{}"} {
		g := newFSM(&ledger{}, nil, f.log)
		if err := g.Restore(nopCloser{strings.NewReader(bad)}); err == nil || g.haltErr() == nil {
			t.Errorf("%q was restored", bad)
		}
	}
}

type nopCloser struct{ *strings.Reader }

func (nopCloser) Close() error { return nil }

// A follower whose log has an end that the new leader does not know cuts it
// off. After that it must be able to start again.
func TestRestartAfterLogWasCutOff(t *testing.T) {
	dir := t.TempDir()
	want := Cluster{ID: "c"}
	reopen := func() *stores {
		s, _, err := openStores(dir, want, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := reopen()
	put := func(term uint64, from, to uint64) {
		for i := from; i <= to; i++ {
			if err := s.logs.StoreLog(&raft.Log{Index: i, Term: term, Data: fmt.Append(nil, term, "/", i)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	put(1, 1, 10)
	for round := range uint64(3) {
		// What was written in this round from index 8 on is cut off in the next.
		from := 8 + round
		if err := s.logs.DeleteRange(from, 10+round); err != nil {
			t.Fatal(err)
		}
		put(round+2, from, 11+round)
		if err := s.close(); err != nil {
			t.Fatal(err)
		}
		s = reopen()
		last, err := s.logs.LastIndex()
		if err != nil || last != 11+round {
			t.Fatalf("round %d: the log ends at %d (%v), want %d", round, last, err, 11+round)
		}
		for i := uint64(1); i <= last; i++ {
			term := uint64(1)
			if i >= 8 {
				term = min(i-8, round) + 2
			}
			var l raft.Log
			if err := s.logs.GetLog(i, &l); err != nil || l.Term != term || string(l.Data) != fmt.Sprint(term, "/", i) {
				t.Errorf("round %d: entry %d is %q of term %d (%v), want term %d", round, i, l.Data, l.Term, err, term)
			}
		}
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
}
