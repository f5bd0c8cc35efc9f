package cli

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"footplate/controlplane/api"
	"footplate/controlplane/catalog"
	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
)

// node is a fake node: it speaks the API, and answers each path as a test says.
type node struct {
	*httptest.Server
	t  *testing.T
	mu sync.Mutex
	// posts are the requests that it got, in order.
	posts []api.Request
	paths map[string]http.HandlerFunc
}

func newNode(t *testing.T) *node {
	n := &node{t: t, paths: make(map[string]http.HandlerFunc)}
	n.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := n.paths[strings.TrimPrefix(r.URL.Path, "/v1/")]
		if h == nil {
			problem(w, fleet.NotFoundf("the fake has no %s", r.URL.Path))
			return
		}
		h(w, r)
	}))
	t.Cleanup(func() {
		n.CloseClientConnections()
		n.Close()
	})
	return n
}

// mutation answers a POST.
func (n *node) mutation(path string, answer func(q api.Request) (api.Reply, error)) {
	n.paths[path] = func(w http.ResponseWriter, r *http.Request) {
		var q api.Request
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
			n.t.Errorf("body of %s: %v", path, err)
		}
		n.mu.Lock()
		n.posts = append(n.posts, q)
		n.mu.Unlock()
		reply, err := answer(q)
		if err != nil {
			problem(w, err)
			return
		}
		writeJSON(w, reply)
	}
}

func (n *node) query(path string, answer any) {
	n.paths[path] = func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(api.HeaderStale) != "" || r.URL.Query().Get("stale") != "" {
			w.Header().Set(api.HeaderStale, "4s")
		}
		writeJSON(w, answer)
	}
}

func problem(w http.ResponseWriter, err error) {
	e := fleet.AsError(err)
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(e.Code.Meaning().HTTP)
	_ = json.NewEncoder(w).Encode(api.Problem{
		Type: "about:blank", Title: string(e.Code), Status: e.Code.Meaning().HTTP, Detail: e.Msg, Code: e.Code, Hint: e.Hint, Plan: e.Plan,
	})
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// shell runs the program against fake nodes.
func shell(t *testing.T, nodes []*node, stdin string, args ...string) (stdout, stderr string, exit int) {
	t.Helper()
	var addrs []string
	for _, n := range nodes {
		addrs = append(addrs, n.URL)
	}
	t.Setenv("FOOTPLATE_ADDR", strings.Join(addrs, ","))
	t.Setenv("FOOTPLATE_TOKEN", "secret")
	t.Setenv("FOOTPLATE_CONTEXT", "")
	t.Setenv("XDG_CONFIG_HOME", filepath.Join(t.TempDir(), "none"))
	var out, errs bytes.Buffer
	exit = Main(args, strings.NewReader(stdin), &out, &errs)
	return out.String(), errs.String(), exit
}

// The exit codes are frozen: scripts depend on them.
func TestExitCodes(t *testing.T) {
	want := map[fleet.Code]int{
		"": 0, fleet.CodeInternal: 1, fleet.CodeInvalid: 2, fleet.CodeConfirm: 2, fleet.CodeDenied: 3, fleet.CodeApproval: 4,
		fleet.CodeNotFound: 5, fleet.CodeConflict: 6, fleet.CodeUnavailable: 7, fleet.CodeUnknown: 8,
	}
	got := make(map[fleet.Code]int)
	for _, m := range fleet.CodeTable() {
		got[m.Code] = m.Exit
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("fleet.CodeTable (-want +got):\n%s", diff)
	}
	for code, exit := range want {
		if code == "" || code == fleet.CodeApproval {
			continue
		}
		n, wait := newNode(t), "300ms"
		n.mutation("pool.scale", func(api.Request) (api.Reply, error) {
			return api.Reply{}, &fleet.Error{Code: code, Msg: "it went so", Hint: "do this"}
		})
		if code == fleet.CodeUnavailable {
			// A node that answers so is asked again until the time is over, and may
			// just have been asked then: the outcome is unknown. Where nobody
			// listens nothing can have been done: that is clear before the time is over.
			n, wait = &node{Server: &httptest.Server{URL: "http://127.0.0.1:1"}}, "5s"
		}
		out, errs, got := shell(t, []*node{n}, "", "pool", "scale", "linux", "+2", "--request-timeout", wait)
		if got != exit || out != "" || !strings.HasPrefix(errs, "error: ") {
			t.Errorf("%s: exit code %d, want %d; stdout %q, stderr %q", code, got, exit, out, errs)
		}
	}
}

func TestMutation(t *testing.T) {
	n := newNode(t)
	n.mutation("pool.scale", func(q api.Request) (api.Reply, error) {
		if q.DryRun {
			return api.Reply{Op: "pool scale", Plan: &fleet.Plan{Lines: []string{"pool \"linux\" gets 2 hosts"}, Hash: "abcd"}}, nil
		}
		return api.Reply{Op: "pool scale", Key: q.Key, Entry: 12, Text: "scaled pool \"linux\" from 4 to 6 hosts", Duplicate: q.Key == "again"}, nil
	})
	rows := []struct {
		name      string
		args      []string
		out, errs string
	}{
		{"text", nil, "scaled pool \"linux\" from 4 to 6 hosts\nentry 12\n", ""},
		{"dry run", []string{"--dry-run"}, "this would be done:\n  pool \"linux\" gets 2 hosts\n", "dry run: nothing was done (plan abcd)\n"},
		{"name", []string{"-o", "name"}, "linux\n", ""},
		{"dry run, names", []string{"--dry-run", "-o", "name"}, "", "this would be done:\n  pool \"linux\" gets 2 hosts\ndry run: nothing was done (plan abcd)\n"},
		{"a known key", []string{"--idempotency-key", "again"}, "scaled pool \"linux\" from 4 to 6 hosts\nentry 12\n",
			"the key was used before: this is what came of it then, and nothing was done again\n"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			out, errs, exit := shell(t, []*node{n}, "", append([]string{"pool", "scale", "linux", "-2", "--reason", "monday ramp"}, row.args...)...)
			if out != row.out || errs != row.errs || exit != 0 {
				t.Errorf("exit code %d, stdout %q, stderr %q", exit, out, errs)
			}
			q := n.posts[len(n.posts)-1]
			if q.Reason != "monday ramp" || q.Key == "" || !strings.Contains(string(q.Args), `"size":"-2"`) || q.Via != "cli/"+Version {
				t.Errorf("request %+v", q)
			}
		})
	}
	out, _, _ := shell(t, []*node{n}, "", "pool", "scale", "linux", "6", "-o", "json")
	var reply api.Reply
	if err := json.Unmarshal([]byte(out), &reply); err != nil || reply.Entry != 12 {
		t.Errorf("-o json: %v, %q", err, out)
	}
}

// A server that is older than the program is told from a slip of the fingers.
func TestOlderServer(t *testing.T) {
	n := newNode(t)
	for _, path := range []string{"pool.scale", "pool.list", "audit.export"} {
		n.paths[path] = func(w http.ResponseWriter, r *http.Request) {
			problem(w, fleet.NotFoundf("there is no operation %q", path).WithHint("did you mean /v1/pool.show?"))
		}
	}
	for _, line := range []string{"pool scale linux 2", "pool list", "audit export"} {
		out, errs, exit := shell(t, []*node{n}, "", strings.Fields(line)...)
		if exit != 5 || out != "" || !strings.Contains(errs, "it is older than this footplate (dev)\nhint: cluster status") {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q", line, exit, out, errs)
		}
	}
}

// A snapshot is not poured over a terminal or into the chat.
func TestSnapshotIsNotForReading(t *testing.T) {
	s := Session{registry: catalog.All(), settings: settings{addr: "http://127.0.0.1:1"}}
	var out bytes.Buffer
	_, err := s.Run(t.Context(), Surface{Out: &out, Err: &out, Person: true}, []string{"cluster", "snapshot", "save"})
	if fleet.CodeOf(err) != fleet.CodeInvalid || !strings.Contains(fleet.AsError(err).Hint, "> FILE") || out.Len() > 0 {
		t.Errorf("%v, and %q", err, out.String())
	}
}

// A stream that leaves an entry says why.
func TestAuditedStream(t *testing.T) {
	n := newNode(t)
	var q api.Request
	n.paths["cluster.snapshot.save"] = func(w http.ResponseWriter, r *http.Request) {
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
			t.Errorf("body: %v", err)
		}
		fmt.Fprint(w, "the state")
	}
	out, errs, exit := shell(t, []*node{n}, "", "cluster", "snapshot", "save", "--reason", "before the upgrade")
	if exit != 0 || out != "the state" || q.Reason != "before the upgrade" || q.Key == "" {
		t.Errorf("exit code %d, stdout %q, stderr %q, request %+v", exit, out, errs, q)
	}
}

func TestNamesOfSubmittedBuilds(t *testing.T) {
	n := newNode(t)
	n.mutation("build.submit", func(q api.Request) (api.Reply, error) {
		return api.Reply{Op: "build submit", Text: "submitted builds 7 to 9", Result: json.RawMessage(`{"build":7,"count":3}`)}, nil
	})
	out, errs, exit := shell(t, []*node{n}, "", "build", "submit", "--org", "acme", "--pool", "linux", "--run", "true", "--count", "3", "-o", "name")
	if out != "7\n8\n9\n" || exit != 0 {
		t.Errorf("exit code %d, stdout %q, stderr %q", exit, out, errs)
	}
}

// draining is a fake node with a plan of a drain.
func draining(t *testing.T) *node {
	n := newNode(t)
	n.mutation("host.drain", func(q api.Request) (api.Reply, error) {
		if q.DryRun {
			return api.Reply{Op: "host drain", Plan: &fleet.Plan{Lines: []string{"host linux-3 gets no new work; 2 tasks on it may finish"}, Hash: "h1"}}, nil
		}
		if q.Confirm != "h1" && q.Confirm != "yes" {
			return api.Reply{}, fleet.Conflictf("the plan has changed since it was shown")
		}
		return api.Reply{Op: "host drain", Key: q.Key, Entry: 3, Text: "host linux-3 draining"}, nil
	})
	return n
}

func TestNamesPipedInAreOneInvocation(t *testing.T) {
	n := draining(t)
	out, errs, exit := shell(t, []*node{n}, "linux-3\nlinux-4\nlinux-5\n", "host", "drain", "-", "--yes")
	if exit != 0 || out != "host linux-3 draining\nentry 3\n" {
		t.Errorf("exit code %d, stdout %q, stderr %q", exit, out, errs)
	}
	if len(n.posts) != 1 || string(n.posts[0].Args) != `{"hosts":["linux-3","linux-4","linux-5"]}` || n.posts[0].Confirm != "yes" {
		t.Errorf("requests %+v", n.posts)
	}
}

func TestConfirmation(t *testing.T) {
	session := func(t *testing.T, n *node) *Session {
		return &Session{registry: catalog.All(), via: "cli/test", settings: settings{addr: n.URL, token: "secret"}}
	}
	t.Run("yes", func(t *testing.T) {
		n := draining(t)
		var out bytes.Buffer
		var asked []string
		done, err := session(t, n).Run(t.Context(), Surface{Out: &out, Err: &out, Ask: func(lines []string) (bool, error) {
			asked = lines
			return true, nil
		}}, []string{"host", "drain", "linux-3"})
		if err != nil || done.Entry != 3 || !done.Shown {
			t.Errorf("done %+v, %v", done, err)
		}
		if diff := cmp.Diff([]string{"host linux-3 gets no new work; 2 tasks on it may finish"}, asked); diff != "" {
			t.Errorf("asked (-want +got):\n%s", diff)
		}
		if len(n.posts) != 2 || n.posts[1].Confirm != "h1" || n.posts[0].Key != n.posts[1].Key {
			t.Errorf("requests %+v; want the plan's hash as confirmation, under one key", n.posts)
		}
	})
	t.Run("no", func(t *testing.T) {
		n := draining(t)
		var out bytes.Buffer
		_, err := session(t, n).Run(t.Context(), Surface{Out: &out, Err: &out, Ask: func([]string) (bool, error) { return false, nil }},
			[]string{"host", "drain", "linux-3"})
		if fleet.CodeOf(err) != fleet.CodeConfirm || len(n.posts) != 1 || !n.posts[0].DryRun {
			t.Errorf("%v; requests %+v", err, n.posts)
		}
	})
	t.Run("the world has moved", func(t *testing.T) {
		n := draining(t)
		var out bytes.Buffer
		plain := n.paths["host.drain"]
		n.paths["host.drain"] = func(w http.ResponseWriter, r *http.Request) {
			if len(n.posts) == 1 {
				problem(w, fleet.Conflictf("the plan has changed since it was shown"))
				return
			}
			plain(w, r)
		}
		_, err := session(t, n).Run(t.Context(), Surface{Out: &out, Err: &out, Ask: func([]string) (bool, error) { return true, nil }},
			[]string{"host", "drain", "linux-3"})
		if fleet.CodeOf(err) != fleet.CodeConflict {
			t.Errorf("%v; want a conflict", err)
		}
	})
	t.Run("nobody to ask", func(t *testing.T) {
		n := draining(t)
		_, errs, exit := shell(t, []*node{n}, "y\n", "host", "drain", "linux-3")
		if exit != 2 || len(n.posts) != 0 || !strings.Contains(errs, "hint: repeat with --yes") {
			t.Errorf("exit code %d, stderr %q, requests %+v", exit, errs, n.posts)
		}
	})
	t.Run("the server asks", func(t *testing.T) {
		n := newNode(t)
		n.mutation("pool.scale", func(q api.Request) (api.Reply, error) {
			if q.Confirm != "h2" {
				return api.Reply{}, &fleet.Error{Code: fleet.CodeConfirm, Msg: "that is a lot", Plan: &fleet.Plan{Lines: []string{"500 hosts go"}, Hash: "h2"}}
			}
			return api.Reply{Op: "pool scale", Text: "scaled"}, nil
		})
		var out bytes.Buffer
		_, err := session(t, n).Run(t.Context(), Surface{Out: &out, Err: &out, Ask: func([]string) (bool, error) { return true, nil }},
			[]string{"pool", "scale", "linux", "0"})
		if err != nil || out.String() != "scaled\n" {
			t.Errorf("%v, %q", err, out.String())
		}
		_, errs, exit := shell(t, []*node{n}, "", "pool", "scale", "linux", "0")
		if exit != 2 || !strings.Contains(errs, "  500 hosts go\n") {
			t.Errorf("exit code %d, stderr %q; want the plan", exit, errs)
		}
	})
}

func TestAsk(t *testing.T) {
	for answer, want := range map[string]bool{"y\n": true, " YES \n": true, "n\n": false, "\n": false, "": false, "yes please\n": false} {
		var out bytes.Buffer
		got, err := ask(t.Context(), strings.NewReader(answer), &out, []string{"host linux-3 gets no new work"})
		if got != want || err != nil || out.String() != "  host linux-3 gets no new work\ngo on? [y/N] " {
			t.Errorf("answer %q: %t, %v, after %q", answer, got, err, out.String())
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	never, write := io.Pipe()
	defer write.Close()
	if yes, err := ask(ctx, never, io.Discard, nil); yes || err == nil {
		t.Errorf("interrupted: %t, %v", yes, err)
	}
}

// Whoever does not know what came of a command is told the key, and repeating
// the command with it tells.
func TestOutcomeUnknown(t *testing.T) {
	n := newNode(t)
	n.mutation("pool.scale", func(q api.Request) (api.Reply, error) {
		return api.Reply{}, fleet.Unknownf("leadership was lost while the command was on its way")
	})
	_, errs, exit := shell(t, []*node{n}, "", "pool", "scale", "linux", "6", "--request-timeout", "300ms")
	if exit != 8 {
		t.Errorf("exit code %d, stderr %q", exit, errs)
	}
	key := n.posts[0].Key
	if len(key) != 36 || key[14] != '7' || !strings.Contains(errs, key) {
		t.Errorf("key %q, stderr %q; want the key, a UUID of version 7, in the hint", key, errs)
	}
	for _, q := range n.posts {
		if q.Key != key {
			t.Errorf("a retry has key %q, not %q", q.Key, key)
		}
	}
}

func TestStaleAnswerSaysSo(t *testing.T) {
	n := newNode(t)
	n.query("pool.list", []catalog.PoolRow{{Name: "linux", Provider: "local"}})
	out, errs, exit := shell(t, []*node{n}, "", "pool", "list", "--stale", "-o", "name")
	if exit != 0 || out != "linux\n" || !strings.HasPrefix(errs, "stale: ") || !strings.Contains(errs, "4s") {
		t.Errorf("exit code %d, stdout %q, stderr %q", exit, out, errs)
	}
	_, errs, _ = shell(t, []*node{n}, "", "pool", "list")
	if errs != "" {
		t.Errorf("stderr %q", errs)
	}
}

// Without a quorum the record and the logs are there for who says --stale.
func TestStaleStream(t *testing.T) {
	n := newNode(t)
	n.query("build.show", detail("running", "unit", "lint"))
	n.logs([]op.LogChunk{chunk("unit", 1, 9, 0, true), chunk("lint", 1, 10, 0, true)}, nil)
	n.paths["audit.export"] = func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "the record") }
	for _, path := range []string{"build.show", "build.logs", "audit.export"} {
		answer := n.paths[path]
		n.paths[path] = func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Get("stale") != "true" {
				problem(w, fleet.Conflictf("no quorum"))
				return
			}
			answer(w, r)
		}
	}
	for _, row := range []struct{ line, want string }{
		{"build logs 7", "line 0 of try 1\n"},
		{"build logs 7 --follow", "lint | line 0 of try 1\n"},
		{"audit export", "the record\n"},
	} {
		out, errs, exit := shell(t, []*node{n}, "", append(strings.Fields(row.line), "--stale")...)
		if exit != 0 || !strings.Contains(out, row.want) || errs != "stale: answered without a quorum\n" {
			t.Errorf("%s --stale: exit code %d, stdout %q, stderr %q", row.line, exit, out, errs)
		}
		if _, errs, exit = shell(t, []*node{n}, "", strings.Fields(row.line)...); exit != 6 || strings.Contains(errs, "stale") {
			t.Errorf("%s: exit code %d, stderr %q", row.line, exit, errs)
		}
	}
}

func TestCompletionAsksForNames(t *testing.T) {
	n := newNode(t)
	n.query("pool.list", []catalog.PoolRow{{Name: "linux"}, {Name: "mac"}})
	out, _, _ := shell(t, []*node{n}, "", "__complete", "pool", "show", "")
	if out != "linux\nmac\n:4\n" {
		t.Errorf("completions %q", out)
	}
	out, _, _ = shell(t, []*node{n}, "", "__complete", "host", "list", "--pool", "m")
	if out != "mac\n:4\n" {
		t.Errorf("completions %q", out)
	}
	// A node that does not answer costs half a second, and no error.
	n.paths["pool.list"] = func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	begun := time.Now()
	out, _, exit := shell(t, []*node{n}, "", "__complete", "pool", "show", "")
	if out != ":4\n" || exit != 0 || time.Since(begun) > 4*completeBudget {
		t.Errorf("completions %q, exit code %d, after %s", out, exit, time.Since(begun))
	}
}

// chunk is a piece of a log; its text tells which.
func chunk(task string, try int, attempt fleet.AttemptID, n int, final bool) op.LogChunk {
	return op.LogChunk{
		Build: 7, Task: task, Try: try, Attempt: attempt, Host: fleet.HostID(fmt.Sprintf("linux-%d", try)), N: n,
		Data: fmt.Appendf(nil, "line %d of try %d\n", n, try), Final: final,
	}
}

// logs serves the log of build 7: chunks from what the caller asks for on; the
// connection breaks after each that cut says.
func (n *node) logs(chunks []op.LogChunk, cut func(op.LogChunk) bool) {
	n.paths["build.logs"] = func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		q.Del("stale") // the server's own
		args, err := catalog.BuildLogs.Bind(nil, q)
		if err != nil {
			problem(w, err)
			return
		}
		a := args.(*catalog.BuildLogsArgs)
		w.WriteHeader(http.StatusOK)
		for _, c := range chunks {
			if a.Task != "" && c.Task != a.Task || c.Attempt < a.Attempt || c.Attempt == a.Attempt && c.N < a.From {
				continue
			}
			_ = json.NewEncoder(w).Encode(c)
			if cut != nil && cut(c) {
				_ = http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			}
		}
	}
}

func detail(state string, tasks ...string) catalog.BuildDetail {
	d := catalog.BuildDetail{BuildRow: catalog.BuildRow{ID: 7, State: state}}
	for _, t := range tasks {
		d.List = append(d.List, catalog.AttemptRow{Build: 7, Task: t})
	}
	return d
}

func TestLogsOutliveTheirNode(t *testing.T) {
	chunks := []op.LogChunk{
		chunk("main", 1, 9, 0, false), chunk("main", 1, 9, 1, false),
		chunk("main", 2, 12, 0, false), chunk("main", 2, 12, 1, false), chunk("main", 2, 12, 2, true),
	}
	want := "--- task main, attempt 1 on host linux-1 ---\nline 0 of try 1\nline 1 of try 1\n" +
		"--- task main, attempt 2 on host linux-2 ---\nline 0 of try 2\nline 1 of try 2\nline 2 of try 2\n"
	n := newNode(t)
	n.query("build.show", detail("running", "main"))
	var mu sync.Mutex
	broken := make(map[string]bool)
	n.logs(chunks, func(c op.LogChunk) bool {
		mu.Lock()
		defer mu.Unlock()
		id := fmt.Sprint(c.Attempt, c.N)
		again := broken[id]
		broken[id] = true
		return !again && !c.Final
	})
	out, errs, exit := shell(t, []*node{n}, "", "build", "logs", "7", "-f")
	if exit != 0 || out != want {
		t.Errorf("exit code %d, stderr %q, stdout (-want +got):\n%s", exit, errs, cmp.Diff(want, out))
	}
}

func TestLogsWithAGapAreAskedForAgain(t *testing.T) {
	all := []op.LogChunk{chunk("main", 1, 9, 0, false), chunk("main", 1, 9, 1, false), chunk("main", 1, 9, 2, true)}
	n := newNode(t)
	asked := 0
	n.logs(all, nil)
	whole := n.paths["build.logs"]
	n.logs([]op.LogChunk{all[0], all[2]}, nil)
	gap := n.paths["build.logs"]
	n.paths["build.logs"] = func(w http.ResponseWriter, r *http.Request) {
		if asked++; asked == 1 {
			gap(w, r)
			return
		}
		whole(w, r)
	}
	want := "--- task main, attempt 1 on host linux-1 ---\nline 0 of try 1\nline 1 of try 1\nline 2 of try 1\n"
	out, errs, exit := shell(t, []*node{n}, "", "build", "logs", "7")
	if exit != 0 || out != want {
		t.Errorf("exit code %d, stderr %q, stdout %q", exit, errs, out)
	}
	// When nobody has it, the log goes on and says so.
	n.paths["build.logs"] = gap
	out, _, exit = shell(t, []*node{n}, "", "build", "logs", "7")
	if exit != 0 || !strings.Contains(out, "--- chunks 1 to 1 are not there ---\nline 2 of try 1\n") {
		t.Errorf("exit code %d, stdout %q", exit, out)
	}
}

func TestLogsOfSeveralTasks(t *testing.T) {
	n := newNode(t)
	n.query("build.show", detail("running", "unit", "lint"))
	n.logs([]op.LogChunk{chunk("unit", 1, 9, 0, true), chunk("lint", 1, 10, 0, true)}, nil)
	out, errs, exit := shell(t, []*node{n}, "", "build", "logs", "7", "--follow")
	for _, want := range []string{"unit | line 0 of try 1\n", "lint | line 0 of try 1\n", "lint | --- task lint, attempt 1 on host linux-1 ---\n"} {
		if exit != 0 || !strings.Contains(out, want) {
			t.Errorf("exit code %d, stderr %q, stdout %q; want %q in it", exit, errs, out, want)
		}
	}
}

func TestSubmitAndFollow(t *testing.T) {
	for state, want := range map[string]int{"passed": 0, "failed": 1, "canceled": 1} {
		n := newNode(t)
		n.mutation("build.submit", func(q api.Request) (api.Reply, error) {
			return api.Reply{Op: "build submit", Text: "submitted build 7", Result: json.RawMessage(`{"build":7,"count":1}`)}, nil
		})
		n.query("build.show", detail(state, "main"))
		n.logs([]op.LogChunk{chunk("main", 1, 9, 0, true)}, nil)
		out, errs, exit := shell(t, []*node{n}, "", "build", "submit", "--org", "acme", "--pool", "linux", "--run", "true", "--follow")
		if exit != want || !strings.Contains(out, "line 0 of try 1\n") || !strings.Contains(errs, "build 7: "+state) {
			t.Errorf("%s: exit code %d, want %d; stdout %q, stderr %q", state, exit, want, out, errs)
		}
	}
}

func TestChannelLines(t *testing.T) {
	n := newNode(t)
	more := make(chan state.Line)
	n.paths["events"] = func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		send := func(l state.Line) {
			b, _ := json.Marshal(api.Event{Kind: "line", Line: &l})
			fmt.Fprintf(w, "id: %d\nevent: line\ndata: %s\n\n", l.N, b)
			_ = http.NewResponseController(w).Flush()
		}
		for i := range 30 {
			send(state.Line{N: uint64(i + 1), First: fleet.EntryNo(i + 1), Last: fleet.EntryNo(i + 1), Count: 1})
		}
		for {
			select {
			case l := <-more:
				send(l)
			case <-r.Context().Done():
				return
			}
		}
	}
	c, err := connect(endpoint{addrs: []string{n.URL}, token: "secret"}, "test", 0)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var got []string
	for l, err := range c.Lines(ctx, 3) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%d:%d-%d/%d", l.N, l.First, l.Last, l.Count))
		switch len(got) {
		case 4: // the end of the backlog
			go func() {
				more <- state.Line{N: 31, First: 31, Last: 31, Count: 1}
				more <- state.Line{N: 31, First: 31, Last: 34, Count: 4} // the run has grown
			}()
		case 6:
			cancel()
		}
	}
	want := []string{"28:28-28/1", "29:29-29/1", "30:30-30/1", "0:0-0/0", "31:31-31/1", "31:32-34/3"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

// Every operation of the catalog has its command, help and place in the
// reference; what is not for people has none.
func TestEveryOperationIsACommand(t *testing.T) {
	p := &program{Session: Session{registry: catalog.All()}, in: strings.NewReader(""), out: io.Discard, err: io.Discard}
	p.root = p.tree()
	var reference bytes.Buffer
	if err := WriteReference(&reference, p.registry); err != nil {
		t.Fatal(err)
	}
	for _, o := range p.registry.Ops() {
		c, rest, err := p.root.Find(strings.Fields(o.Name))
		found := err == nil && len(rest) == 0 && c.DisableFlagParsing
		var help bytes.Buffer
		helped := p.help(&help, strings.Fields(o.Name)) == nil
		listed := strings.Contains(reference.String(), "\n#### "+o.Name+"\n")
		if want := !o.Hidden(); found != want || helped != want || listed != want {
			t.Errorf("%s: command %t, help %t, reference %t; want %t", o.Name, found, helped, listed, want)
		}
		for _, e := range o.Examples {
			if !strings.Contains(help.String(), "footplate "+e+"\n") {
				t.Errorf("help of %s does not show %q", o.Name, e)
			}
		}
	}
}

// The help of the whole program is written without making its commands: it lists
// them all the same.
func TestRootHelpListsEveryCommand(t *testing.T) {
	var help bytes.Buffer
	p := &program{
		Session: Session{registry: catalog.All()}, in: strings.NewReader(""), out: io.Discard, err: io.Discard,
		extra: []Command{{Name: "zeppelin", Short: "fly", Make: func() *cobra.Command { return &cobra.Command{} }}},
	}
	if err := p.writeRootHelp(&help); err != nil {
		t.Fatal(err)
	}
	_, others, _ := strings.Cut(help.String(), "\nOther commands:\n")
	others, _, _ = strings.Cut(others, "\n\n")
	var got, want []string
	for line := range strings.Lines(others) {
		got = append(got, strings.Join(strings.Fields(line), " "))
	}
	root := p.tree()
	root.InitDefaultHelpCmd()
	for _, c := range root.Commands() {
		if !c.Hidden && !p.isNoun(c.Name()) {
			want = append(want, c.Name()+" "+c.Short)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" || len(got) < 4 {
		t.Errorf("other commands (-tree +help):\n%s", diff)
	}
}

// The secret of a token is made here and shown once; the cluster gets its hash.
func TestTokenCreate(t *testing.T) {
	n := newNode(t)
	lost := false
	n.mutation("access.token.create", func(q api.Request) (api.Reply, error) {
		if lost {
			return api.Reply{}, fleet.Unknownf("leadership was lost while the command was on its way")
		}
		return api.Reply{Op: "access token create", Key: q.Key, Entry: 7, Text: "made token \"ci\": ci is viewer"}, nil
	})
	secret := regexp.MustCompile(`fp_[0-9a-f]{64}`)
	create := []string{"access", "token", "create", "ci", "--role", "viewer", "--request-timeout", "300ms"}
	for _, row := range []struct {
		name      string
		flags     []string
		lost      bool
		out, errs string // with SECRET for it
		exit      int
	}{
		{name: "text", out: "made token \"ci\": ci is viewer\nsecret SECRET\nentry 7\n", errs: "the secret is shown this once: keep it where secrets are kept\n"},
		{name: "name", flags: []string{"-o", "name"}, out: "ci\n", errs: "secret SECRET\n"},
		{name: "unknown", lost: true, errs: "secret, if the token was made: SECRET\nerror: it is not known whether access token create was done\nhint: footplate access list shows whether the token is there", exit: 8},
	} {
		lost = row.lost
		out, errs, exit := shell(t, []*node{n}, "", append(slices.Clone(create), row.flags...)...)
		shown := secret.FindString(out + errs)
		if got := strings.ReplaceAll(out, shown, "SECRET"); got != row.out || exit != row.exit {
			t.Errorf("%s: exit code %d, stdout %q, want %q", row.name, exit, got, row.out)
		}
		if got := strings.ReplaceAll(errs, shown, "SECRET"); !strings.HasPrefix(got, row.errs) {
			t.Errorf("%s: stderr %q, want %q", row.name, got, row.errs)
		}
		sum := sha256.Sum256([]byte(shown))
		q := string(n.posts[len(n.posts)-1].Args)
		if !strings.Contains(q, hex.EncodeToString(sum[:])) || strings.Contains(q, shown) {
			t.Errorf("%s: the cluster was told %s of the secret %q", row.name, q, shown)
		}
	}
	lost = false
	out, _, _ := shell(t, []*node{n}, "", append(create, "-o", "json")...)
	var reply struct {
		Result struct {
			Secret string `json:"secret"`
		} `json:"result"`
	}
	if err := json.Unmarshal([]byte(out), &reply); err != nil || !secret.MatchString(reply.Result.Secret) {
		t.Errorf("-o json: %v, %q", err, out)
	}
}
