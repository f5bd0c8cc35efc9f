package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"footplate/controlplane/api"
	"footplate/fleet"
	"footplate/fleet/agent/attempt"
	"footplate/fleet/lease"
)

// The test binary is also the supervisor, and an agent in a process of its own.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "supervise":
			os.Exit(attempt.Supervise(os.Args[2:], os.Stderr))
		case "agent":
			os.Exit(beAgent(os.Args[2:]))
		}
	}
	os.Exit(m.Run())
}

// beAgent is what "footplate agent" is. It takes the flags of the local provider.
func beAgent(args []string) int {
	c := Config{Version: "test", Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Grace: time.Second}
	for i := 0; i+1 < len(args); i += 2 {
		v := args[i+1]
		switch args[i] {
		case "--host":
			c.Host = fleet.HostID(v)
		case "--pool":
			c.Pool = fleet.PoolName(v)
		case "--launch":
			n, _ := strconv.ParseUint(v, 10, 64)
			c.Launch = fleet.LaunchID(n)
		case "--slots":
			c.Slots, _ = strconv.Atoi(v)
		case "--addrs":
			c.Addrs = strings.Split(v, ",")
		case "--token-file":
			b, _ := os.ReadFile(v)
			c.Token = strings.TrimSpace(string(b))
		case "--cluster":
			c.Cluster = v
		case "--boot":
			c.Boot = fleet.BootID(v)
		case "--dir":
			c.Dir = v
		}
	}
	a, err := New(c)
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		err = a.Run(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		return 1
	}
	return 0
}

const (
	testToken   = "an-agent's-secret"
	testCluster = "c1"
)

// world is a control plane of a few nodes, as agents see it: it speaks the real
// protocol, and keeps what the real one keeps in a few maps.
type world struct {
	t     *testing.T
	fence fleet.Duration
	nodes []*node
	done  chan struct{}

	mu       sync.Mutex
	orders   map[fleet.AttemptID]*given
	cancels  []fleet.AttemptID
	kills    []fleet.AttemptID
	leave    bool
	syncs    []api.Sync
	changed  chan struct{}
	mistakes []string

	asked atomic.Int32 // of which cluster it is
}

type given struct {
	order api.Order
	told  bool
	seen  []fleet.Phase
	last  api.HeldAttempt
	ended time.Time
}

// node is one node of it.
type node struct {
	w    *world
	id   fleet.NodeID
	srv  *httptest.Server
	deaf bool // answers nothing: w.mu
	logs map[fleet.AttemptID]map[int]api.Chunk
}

func newWorld(t *testing.T, nodes int, fence fleet.Duration) *world {
	t.Helper()
	w := &world{
		t: t, fence: fence, done: make(chan struct{}),
		orders: make(map[fleet.AttemptID]*given), changed: make(chan struct{}),
	}
	for i := range nodes {
		n := &node{w: w, id: fleet.NodeID(fmt.Sprintf("n%d", i+1)), logs: make(map[fleet.AttemptID]map[int]api.Chunk)}
		mux := http.NewServeMux()
		mux.HandleFunc("POST /v1/agent.beat", n.beat)
		mux.HandleFunc("POST /v1/agent.sync", n.sync)
		mux.HandleFunc("POST /v1/agent.logs", n.take)
		mux.HandleFunc("GET /v1/agent.cluster", n.cluster)
		n.srv = httptest.NewServer(mux)
		w.nodes = append(w.nodes, n)
	}
	t.Cleanup(func() {
		close(w.done)
		for _, n := range w.nodes {
			n.srv.CloseClientConnections()
			n.srv.Close()
		}
		for _, m := range w.mistakes {
			t.Error(m)
		}
	})
	return w
}

func (w *world) addrs() []string {
	var out []string
	for _, n := range w.nodes {
		out = append(out, n.srv.URL)
	}
	return out
}

func (w *world) members() []api.NodeAddr {
	var out []api.NodeAddr
	for _, n := range w.nodes {
		out = append(out, api.NodeAddr{Node: n.id, API: n.srv.URL})
	}
	return out
}

// do changes the world and wakes the syncs that are held open.
func (w *world) do(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
	close(w.changed)
	w.changed = make(chan struct{})
}

// deaf makes nodes answer nothing, or answer again.
func (w *world) deaf(deaf bool, nodes ...int) {
	w.do(func() {
		for _, i := range nodes {
			w.nodes[i].deaf = deaf
		}
	})
}

// listen reads a request; ok is false when it was answered already.
func (n *node) listen(rw http.ResponseWriter, r *http.Request, into any) bool {
	if r.Header.Get("Authorization") != "Bearer "+testToken || r.Header.Get(api.HeaderCluster) != testCluster {
		n.w.do(func() { n.w.mistakes = append(n.w.mistakes, "a call without token or cluster: "+r.URL.Path) })
	}
	err := json.NewDecoder(r.Body).Decode(into)
	n.w.mu.Lock()
	deaf := n.deaf
	n.w.mu.Unlock()
	switch {
	case err != nil:
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return false
	case deaf:
		select { // like a node that is cut off
		case <-r.Context().Done():
		case <-n.w.done:
		}
		return false
	}
	return true
}

func answer(rw http.ResponseWriter, v any) {
	rw.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(rw).Encode(v)
}

func (n *node) cluster(rw http.ResponseWriter, r *http.Request) {
	n.w.asked.Add(1)
	if r.Header.Get("Authorization") != "Bearer "+testToken {
		rw.WriteHeader(http.StatusForbidden)
		answer(rw, api.Problem{Code: fleet.CodeDenied, Detail: "the token is not known"})
		return
	}
	answer(rw, map[string]string{"cluster": testCluster})
}

func (n *node) beat(rw http.ResponseWriter, r *http.Request) {
	var b api.Beat
	if !n.listen(rw, r, &b) {
		return
	}
	reply := api.BeatReply{Node: n.id, Ack: b.Version == 1}
	if !reply.Ack {
		reply.Why, reply.Members, reply.Nodes = "wrong membership", 1, n.w.members()
	}
	answer(rw, reply)
}

func (n *node) sync(rw http.ResponseWriter, r *http.Request) {
	var s api.Sync
	if !n.listen(rw, r, &s) {
		return
	}
	w := n.w
	w.mu.Lock()
	w.syncs = append(w.syncs, s)
	for _, h := range s.Attempts {
		g := w.orders[h.Attempt]
		if g == nil {
			continue
		}
		g.last = h
		if len(g.seen) == 0 || g.seen[len(g.seen)-1] != h.Phase {
			g.seen = append(g.seen, h.Phase)
		}
		if h.Phase == fleet.PhaseEnded && g.ended.IsZero() {
			g.ended = time.Now()
		}
	}
	close(w.changed)
	w.changed = make(chan struct{})
	w.mu.Unlock()
	hold := time.After(2 * time.Second)
	for {
		w.mu.Lock()
		reply := w.reply(s)
		changed := w.changed
		w.mu.Unlock()
		if reply.Known != s.Known {
			answer(rw, reply)
			return
		}
		select {
		case <-changed:
		case <-hold:
			answer(rw, reply)
			return
		case <-r.Context().Done():
			return
		case <-w.done:
			return
		}
	}
}

func (w *world) reply(s api.Sync) api.SyncReply {
	r := api.SyncReply{
		Nodes: w.members(), Members: 1, FenceAfter: w.fence, Leave: w.leave, Cancel: w.cancels, Kill: w.kills,
	}
	var ids []fleet.AttemptID
	for id := range w.orders {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		g := w.orders[id]
		i := slices.IndexFunc(s.Attempts, func(h api.HeldAttempt) bool { return h.Attempt == id })
		switch {
		case i >= 0 && s.Attempts[i].Phase == fleet.PhaseEnded:
			r.Forget = append(r.Forget, id)
		case i < 0 && g.ended.IsZero() && g.last.Phase == "":
			r.Start = append(r.Start, g.order)
		}
	}
	b, _ := json.Marshal(r)
	sum := sha256.Sum256(b)
	r.Known = hex.EncodeToString(sum[:8])
	r.Stamp = lease.Stamp{Term: 1, At: lease.Mono(time.Now().UnixNano())}
	return r
}

func (n *node) take(rw http.ResponseWriter, r *http.Request) {
	var c api.Chunks
	if !n.listen(rw, r, &c) {
		return
	}
	n.w.do(func() {
		for _, ch := range c.Chunks {
			of := n.logs[ch.Attempt]
			if of == nil {
				of = make(map[int]api.Chunk)
				n.logs[ch.Attempt] = of
			}
			if old, ok := of[ch.N]; ok && !bytes.Equal(old.Data, ch.Data) {
				n.w.mistakes = append(n.w.mistakes, fmt.Sprintf("chunk %d of attempt %d came twice, and not the same", ch.N, ch.Attempt))
			}
			of[ch.N] = ch
		}
	})
}

// run orders an attempt that runs a script.
func (w *world) run(id fleet.AttemptID, script string) {
	w.do(func() {
		w.orders[id] = &given{order: api.Order{Attempt: id, Build: 1, N: 1, Spec: &fleet.BuildSpec{
			Tasks: []fleet.TaskSpec{{Name: "main", Steps: []fleet.Step{{Run: script}}}},
		}}}
	})
}

// of returns what is known of an attempt.
func (w *world) of(id fleet.AttemptID) given {
	w.mu.Lock()
	defer w.mu.Unlock()
	g := *w.orders[id]
	g.seen = slices.Clone(g.seen)
	return g
}

// log returns the output of an attempt and how many nodes hold all of it.
func (w *world) log(id fleet.AttemptID) (text string, copies int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range w.nodes {
		var b strings.Builder
		chunks := n.logs[id]
		for i := 0; ; i++ {
			c, ok := chunks[i]
			if !ok {
				break
			}
			b.Write(c.Data)
			if c.Final {
				copies++
				break
			}
		}
		if b.Len() > len(text) {
			text = b.String()
		}
	}
	return text, copies
}

func (w *world) ended(id fleet.AttemptID) api.HeldAttempt {
	w.t.Helper()
	until(w.t, fmt.Sprintf("attempt %d has ended", id), func() bool { return !w.of(id).ended.IsZero() })
	return w.of(id).last
}

func (w *world) lastSync() (s api.Sync, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.syncs) == 0 {
		return s, false
	}
	return w.syncs[len(w.syncs)-1], true
}

func (w *world) config(dir string) Config {
	log := slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return Config{
		Log:  log,
		Host: "linux-1", Pool: "linux", Slots: 4, Addrs: w.addrs(), Token: testToken, Cluster: testCluster,
		Dir: dir, Version: "test", Grace: 500 * time.Millisecond,
	}
}

// agent runs an agent in this process; stop ends it and waits.
func (w *world) agent(c Config) (stop func() error) {
	w.t.Helper()
	a, err := New(c)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	once := sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(20 * time.Second):
			return fmt.Errorf("the agent does not end")
		}
	})
	w.t.Cleanup(func() {
		if err := once(); err != nil {
			w.t.Errorf("the agent: %v", err)
		}
	})
	return once
}

// process runs an agent in a process of its own.
func (w *world) process(dir string) *exec.Cmd {
	w.t.Helper()
	token := filepath.Join(w.t.TempDir(), "token")
	if err := os.WriteFile(token, []byte(testToken+"\n"), 0o600); err != nil {
		w.t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	cmd := exec.Command(exe, "agent", "--host", "linux-1", "--pool", "linux", "--slots", "4",
		"--addrs", strings.Join(w.addrs(), ","), "--token-file", token, "--cluster", testCluster, "--dir", dir)
	cmd.Stderr = os.Stderr
	if !testing.Verbose() {
		cmd.Stderr = nil
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGCONT)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// marked is a script that writes its marks into a file: one line at its start,
// and one every 20 ms while it lives.
func marked(file string) string {
	return fmt.Sprintf(`echo "start $FOOTPLATE_ATTEMPT"
echo "start $FOOTPLATE_ATTEMPT" >> %[1]s
while :; do echo "live $FOOTPLATE_ATTEMPT" >> %[1]s; sleep 0.02; done`, file)
}

func marks(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(b)
}

// quiet waits until nothing is appended to a marks file for 500 ms, and returns
// when the last mark was made.
func quiet(t *testing.T, file string) time.Time {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		if since := time.Since(info.ModTime()); since > 500*time.Millisecond {
			return info.ModTime()
		}
		if time.Now().After(deadline) {
			t.Fatal("the task lives on")
		}
		<-time.After(20 * time.Millisecond)
	}
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for deadline := time.Now().Add(20 * time.Second); !ok(); <-look.C {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s\n%s", what, stacks())
		}
	}
}

// stacks shows what every goroutine waits for.
func stacks() string {
	b := make([]byte, 1<<20)
	return string(b[:runtime.Stack(b, true)])
}
