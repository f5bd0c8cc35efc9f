package fleet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// TestDeriveKey: RFC 5869's own test case 3 has no salt and no purpose.
func TestDeriveKey(t *testing.T) {
	if got := fmt.Sprintf("%x", DeriveKey(bytes.Repeat([]byte{0x0b}, 22), "")); got != "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d" {
		t.Errorf("the key is %s", got)
	}
	a, b := DeriveKey([]byte("secret"), "a"), DeriveKey([]byte("secret"), "b")
	if bytes.Equal(a, b) || !bytes.Equal(a, DeriveKey([]byte("secret"), "a")) || bytes.Equal(a, DeriveKey([]byte("other"), "a")) {
		t.Error("keys of one secret and purpose are the same, and of others not")
	}
}

func TestValidName(t *testing.T) {
	for s, want := range map[string]bool{
		"a": true, "linux-2": true, strings.Repeat("a", 63): true,
		"": false, "-a": false, "a-": false, "1a": false, "Linux": false, "a_b": false, "a b": false,
		"\u00e4": false, strings.Repeat("a", 64): false,
	} {
		if got := ValidName(s); got != want {
			t.Errorf("ValidName(%q) = %v", s, got)
		}
	}
}

func TestDuration(t *testing.T) {
	for text, want := range map[string]Duration{
		"0": 0, "250ms": 250, "30s": 30 * Second, "1h30m": 90 * Minute, "2d": 2 * Day, "-5m": -5 * Minute, "90m": 90 * Minute,
	} {
		if got, err := ParseDuration(text); err != nil || got != want {
			t.Errorf("ParseDuration(%q) = %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "-", "5", "m", "5x", "1.5h", "1h 2m", "99999999999999999999h", "106751991168d"} {
		if got, err := ParseDuration(text); CodeOf(err) != CodeInvalid {
			t.Errorf("ParseDuration(%q) = %d, %v", text, got, err)
		}
	}
}

// The tests of this package need the standard library alone: make demo runs
// them as another user, without a module cache.
func TestDurationRoundTrip(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 10_000 {
		d := Duration(random.Int64() >> random.IntN(63))
		if random.IntN(2) == 0 {
			d = -d
		}
		if got, err := ParseDuration(d.String()); err != nil || got != d {
			t.Fatalf("%d is written %q, which reads %d (%v)", int64(d), d, int64(got), err)
		}
	}
}

func TestTimeRoundTrip(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 10_000 {
		at := Time(1 + random.Int64N(4e12))
		b, err := json.Marshal(at)
		if err != nil {
			t.Fatal(err)
		}
		var got Time
		if err := json.Unmarshal(b, &got); err != nil || got != at {
			t.Fatalf("%d is written %s, which reads %d (%v)", at, b, got, err)
		}
	}
	var never Time
	if b, _ := json.Marshal(never); string(b) != "null" {
		t.Errorf("zero is written %s", b)
	}
	if err := json.Unmarshal([]byte(`"yesterday"`), &never); CodeOf(err) != CodeInvalid {
		t.Errorf("yesterday: %v", err)
	}
}

func TestRoleMay(t *testing.T) {
	order := []Role{Viewer, Responder, Operator, Admin}
	for i, have := range order {
		for j, need := range order {
			if got := have.May(need); got != (i >= j) {
				t.Errorf("%s may %s: %v", have, need, got)
			}
		}
		for _, apart := range []Role{Agent, System, "", "root"} {
			if have.May(apart) || apart.May(have) {
				t.Errorf("%q and %q may do what is the other's", have, apart)
			}
		}
	}
	if !Agent.May(Agent) || !System.May(System) || Agent.May(System) || System.May(Agent) {
		t.Error("agent and system do not stand apart")
	}
}

// The exit codes are frozen: scripts depend on them.
func TestExitCodesAreFrozen(t *testing.T) {
	var got []string
	for _, m := range CodeTable() {
		got = append(got, fmt.Sprintf("%s %d %d", m.Code, m.HTTP, m.Exit))
	}
	want := []string{
		" 200 0", "internal 500 1", "invalid 400 2", "confirm 409 2", "denied 403 3", "approval 202 4",
		"not_found 404 5", "conflict 409 6", "unavailable 503 7", "unknown 504 8",
	}
	if g, w := strings.Join(got, "\n"), strings.Join(want, "\n"); g != w {
		t.Errorf("got\n%s\nwant\n%s", g, w)
	}
}

func TestAsError(t *testing.T) {
	inner := NotFoundf("there is no pool %q", "x").WithHint("look")
	if got := AsError(fmt.Errorf("apply: %w", inner)); got != inner {
		t.Errorf("a wrapped error became %v", got)
	}
	if got := AsError(errors.New("boom")); got.Code != CodeInternal || got.Msg != "boom" {
		t.Errorf("a plain error became %+v", got)
	}
	if AsError(nil) != nil || CodeOf(nil) != "" {
		t.Error("nil is an error")
	}
}

func TestBuildSpecValidate(t *testing.T) {
	good := func() *BuildSpec {
		return &BuildSpec{Tasks: []TaskSpec{{Name: "main", Steps: []Step{{Run: "true"}}}}}
	}
	if err := good().Validate(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*BuildSpec){
		"no tasks":      func(s *BuildSpec) { s.Tasks = nil },
		"no steps":      func(s *BuildSpec) { s.Tasks[0].Steps = nil },
		"nothing runs":  func(s *BuildSpec) { s.Tasks[0].Steps[0].Run = "" },
		"zero byte":     func(s *BuildSpec) { s.Tasks[0].Steps[0].Run = "a\x00b" },
		"bad name":      func(s *BuildSpec) { s.Tasks[0].Name = "Main" },
		"same name":     func(s *BuildSpec) { s.Tasks = append(s.Tasks, s.Tasks[0]) },
		"relative repo": func(s *BuildSpec) { s.Source.Repo = "x" },
		"zero in repo":  func(s *BuildSpec) { s.Source.Repo = "/x\x00" },
		"ref alone":     func(s *BuildSpec) { s.Source.Ref = "main" },
		"ref an option": func(s *BuildSpec) { s.Source = Source{"/x", "--upload-pack=x"} },
		"zero in ref":   func(s *BuildSpec) { s.Source = Source{"/x", "a\x00"} },
		"env name":      func(s *BuildSpec) { s.Env = []EnvVar{{"A-B", ""}} },
		"env value":     func(s *BuildSpec) { s.Env = []EnvVar{{"A", "\x00"}} },
		"retry":         func(s *BuildSpec) { s.Retry = "never" },
		"contradiction": func(s *BuildSpec) { s.Retry, s.Exclusive = RetryEager, true },
		"timeout":       func(s *BuildSpec) { s.Timeouts.Checkout = -1 },
		"step timeout":  func(s *BuildSpec) { s.Tasks[0].Steps[0].Timeout = 8 * Day },
	} {
		s := good()
		spoil(s)
		if err := s.Validate(); CodeOf(err) != CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEntryChain(t *testing.T) {
	e := Entry{
		N: 2, Index: 7, At: 1000, By: "alice", Role: Operator, Via: "cli", Op: "pool scale",
		Args: json.RawMessage(`{"pool": "linux"}`), Reason: "why", Outcome: EntryDone, Text: "scaled",
		Salt: strings.Repeat("ab", 16),
	}
	e.Seal("00")
	if !e.Intact() {
		t.Fatal("a sealed entry is not intact")
	}
	for name, change := range map[string]func(*Entry){
		"n": func(e *Entry) { e.N++ }, "at": func(e *Entry) { e.At++ }, "by": func(e *Entry) { e.By = "bob" },
		"approved": func(e *Entry) { e.ApprovedBy = []Principal{"bob"} }, "role": func(e *Entry) { e.Role = Admin },
		"op": func(e *Entry) { e.Op = "pool show" }, "args": func(e *Entry) { e.Args = nil }, "reason": func(e *Entry) { e.Reason = "" },
		"outcome": func(e *Entry) { e.Outcome = EntryFailed }, "text": func(e *Entry) { e.Text = "no" }, "prev": func(e *Entry) { e.Prev = "01" },
		"count": func(e *Entry) { e.Count++ }, "salt": func(e *Entry) { e.Salt = strings.Repeat("ac", 16) },
	} {
		c := e
		if change(&c); c.Intact() {
			t.Errorf("a change of %s goes unnoticed", name)
		}
	}
	b, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	var back Entry
	if err := json.Unmarshal(b, &back); err != nil || !back.Intact() {
		t.Errorf("an entry that travelled as JSON is not intact: %v", err)
	}
	hash := e.Hash
	for _, f := range []string{"args", "reason", "text", "by"} {
		if err := e.Erase(f); err != nil || !e.Intact() || e.Hash != hash {
			t.Errorf("after erasing %s: %v, %s", f, err, e.Unsound())
		}
	}
	if err := e.Erase("op"); CodeOf(err) != CodeInvalid {
		t.Errorf("erasing op: %v", err)
	}
	e.Text = "forged"
	if e.Intact() {
		t.Error("a value in an erased field goes unnoticed")
	}
}

func TestNearest(t *testing.T) {
	words := []string{"pool", "host", "build", "queue"}
	for in, want := range map[string]string{"pol": "pool", "biuld": "build", "hosts": "host", "zebra": "", "x": ""} {
		if got := Nearest(in, words); got != want {
			t.Errorf("Nearest(%q) = %q", in, got)
		}
	}
}
