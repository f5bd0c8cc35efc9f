package cli_test

import (
	"bufio"
	"flag"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

var updateScripts = flag.Bool("update-scripts", false, "rewrite what the scripts compare with cmp")

// binary builds footplate as people run it, once for all tests.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "footplate-cli-")
	if err != nil {
		return "", err
	}
	// Tasks of builds run as another user.
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	path := filepath.Join(dir, "footplate")
	build := exec.Command("go", "build", "-o", path, "./footplate")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", &buildError{err, out}
	}
	return path, nil
})

type buildError struct {
	err error
	out []byte
}

func (e *buildError) Error() string { return e.err.Error() + "\n" + string(e.out) }

func TestMain(m *testing.M) {
	code := m.Run()
	if built {
		path, _ := binary()
		_ = os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

var built bool

func footplate(t testing.TB) string {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatalf("build footplate: %v", err)
	}
	built = true
	return path
}

// TestScript plays sessions: testdata/script/*.txtar. In them, "exec footplate"
// runs the real program, and "exits CODE footplate ..." says with which exit
// code it must end.
func TestScript(t *testing.T) {
	dir := filepath.Dir(footplate(t))
	testscript.Run(t, testscript.Params{
		Dir:           filepath.Join("testdata", "script"),
		UpdateScripts: *updateScripts,
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", dir+string(os.PathListSeparator)+e.Getenv("PATH"))
			e.Setenv("XDG_CONFIG_HOME", filepath.Join(e.WorkDir, ".config"))
			e.Setenv("TZ", "UTC")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "dev": dev},
	})
}

// dev starts "footplate dev" with the arguments given, points the commands that
// follow at it, and ends it with the script.
func dev(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		ts.Fatalf("dev cannot be negated")
	}
	// Tasks run as another user, and must be able to pass through to their
	// workspaces; a script's own directory is closed to them.
	data, err := os.MkdirTemp("", "footplate-script-")
	ts.Check(err)
	ts.Check(os.Chmod(data, 0o711))
	port := freePorts(ts)
	cmd := exec.Command(filepath.Join(filepath.Dir(mustBinary(ts)), "footplate"),
		append([]string{"dev", "--data", data, "--listen", "127.0.0.1:" + strconv.Itoa(port)}, args...)...)
	out, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	ts.Defer(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
		_ = os.RemoveAll(data)
	})
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		words, ok := strings.CutPrefix(lines.Text(), "export ")
		if !ok {
			continue
		}
		for _, w := range strings.Fields(words) {
			name, value, _ := strings.Cut(w, "=")
			ts.Setenv(name, value)
		}
		go func() {
			for lines.Scan() { // what it says later is of no interest
			}
		}()
		return
	}
	ts.Fatalf("dev did not come up")
}

func mustBinary(ts *testscript.TestScript) string {
	path, err := binary()
	ts.Check(err)
	return path
}

// freePorts returns a port with free ones after it, and 100 on, as dev wants.
func freePorts(ts *testscript.TestScript) int {
	for range 100 {
		first, err := net.Listen("tcp", "127.0.0.1:0")
		ts.Check(err)
		port := first.Addr().(*net.TCPAddr).Port
		first.Close()
		free := port < 65000
		for _, p := range []int{port, port + 1, port + 2, port + 100, port + 101, port + 102} {
			l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(p))
			if free = free && err == nil; err == nil {
				l.Close()
			}
		}
		if free {
			return port
		}
	}
	ts.Fatalf("no free ports")
	return 0
}

// exits runs a command that must end with an exit code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND [ARGUMENT...]")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := "0"
	if e, ok := err.(*exec.ExitError); ok {
		got = e.String()[len("exit status "):]
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if got != args[0] {
		ts.Fatalf("exit code %s, want %s\nstdout: %s\nstderr: %s", got, args[0], ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	}
}
