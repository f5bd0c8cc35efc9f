package fault

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"footplate/fleet"
)

// TestHere: a process dies when it gets to the point for the n-th time, and
// nowhere else.
func TestHere(t *testing.T) {
	if os.Getenv("FAULT_TEST_CHILD") != "" {
		for i := range 5 {
			Here(BotReceived)
			Here(SinkPosted)
			_, _ = os.Stdout.WriteString(string(rune('0' + i)))
		}
		os.Exit(0)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		arm, out string
		dies     bool
	}{
		{"", "01234", false},
		{"sink:posted", "", true},
		{"sink:posted:3", "01", true},
		{"sink:posted:6", "01234", false},
		{"sink:intent", "01234", false},
	} {
		cmd := exec.Command(exe, "-test.run", "^TestHere$")
		cmd.Env = []string{"FAULT_TEST_CHILD=1", Env + "=" + row.arm}
		out, err := cmd.Output()
		var exit *exec.ExitError
		status, _ := cmd.ProcessState.Sys().(syscall.WaitStatus)
		if died := errors.As(err, &exit) && status.Signaled() && status.Signal() == syscall.SIGKILL; died != row.dies || string(out) != row.out {
			t.Errorf("armed with %q: said %q, %v; want %q, killed %v", row.arm, out, err, row.out, row.dies)
		}
	}
}

// A name that is not there, or a number that is none, is refused.
func TestArm(t *testing.T) {
	for text, want := range map[string]int64{"agent:fetched": 1, "agent:fetched:1": 1, "agent:fetched:12": 12} {
		if c, err := arm(text); err != nil || c.at != AgentFetched || c.left.Load() != want {
			t.Errorf("%q: %+v, %v", text, c, err)
		}
	}
	if c, err := arm(""); c != nil || err != nil {
		t.Errorf("nothing: %+v, %v", c, err)
	}
	for _, text := range []string{"agent", "agent:fetched:0", "agent:fetched:-1", "agent:fetched:x", "agent:fetched:", ":1", "agent:fetched "} {
		if _, err := arm(text); fleet.CodeOf(err) != fleet.CodeInvalid || fleet.AsError(err).Hint == "" {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// A file arms a process that runs, once.
func TestFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "at")
	c, err := arm("@" + file)
	if err != nil {
		t.Fatal(err)
	}
	if c.hit(SinkPosted) {
		t.Error("there is no file, and it hit")
	}
	if err := os.WriteFile(file, []byte(SinkPosted), 0o600); err != nil {
		t.Fatal(err)
	}
	if c.hit(SinkIntent) || !c.hit(SinkPosted) || c.hit(SinkPosted) {
		t.Error("it does not hit the point in the file, once")
	}
}

// Every point is in the list, once, with a name of its own.
func TestPoints(t *testing.T) {
	src, err := os.ReadFile("fault.go")
	if err != nil {
		t.Fatal(err)
	}
	points := Points()
	for i, p := range points {
		if slices.Contains(points[:i], p) {
			t.Errorf("%s is there twice", p)
		}
	}
	if n := strings.Count(string(src), " Point = \""); n != len(points) {
		t.Errorf("%d points are named and %d are in the list", n, len(points))
	}
}
