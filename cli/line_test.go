package cli

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"footplate/controlplane/catalog"
	"footplate/controlplane/op"
	"footplate/fleet"
)

func TestReadLine(t *testing.T) {
	rows := []struct {
		name, line string
		want       string // the words, quoted by blanks; "error: ..." else
		settings   settings
	}{
		{"a relative size", "pool scale linux -2", "linux -2", settings{}},
		{"program flags between", "pool scale --token secret linux --addr=http://n1 +2", "linux +2", settings{token: "secret", addr: "http://n1"}},
		{"a value that looks like a flag", "pool scale linux 2 --reason --token", "linux 2 --reason=--token", settings{}},
		{"an em dash", "pool scale linux 2 \u2014reason ramp", "linux 2 --reason=ramp", settings{}},
		{"a value with an equals sign", "build submit --env A=b=c", "--env=A=b=c", settings{}},
		{"an operation's flag goes first", "build submit --timeout 5m", "--timeout=5m", settings{}},
		{"short output", "pool list -o json", "--output=json", settings{}},
		{"short follow", "build logs 7 -f", "7 --follow", settings{}},
		{"words after two hyphens", "host cordon -- --addr x", "-- --addr x", settings{}},
		{"no value", "pool scale linux 2 --reason", "error: --reason needs a value", settings{}},
		{"a slip", "pool scale linux 2 --reson x", "error: pool scale has no flag --reson (did you mean --reason?)", settings{}},
		{"the beginning of a flag", "pool scale linux 2 --dry", "error: pool scale has no flag --dry (did you mean --dry-run?)", settings{}},
		{"a flag of the program, wrong", "pool list --color pink", "error: --color cannot be \"pink\" (one of auto, always, never)", settings{}},
		{"no file", "build submit --file=", "error: --file names no file (- reads standard input)", settings{}},
	}
	r := catalog.All()
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			o, rest, err := r.Find(strings.Fields(row.line))
			if err != nil {
				t.Fatal(err)
			}
			var s settings
			l, err := readLine(o, rest, &s)
			got := strings.Join(l.words, " ")
			if e := fleet.AsError(err); e != nil {
				got = "error: " + e.Msg
				if e.Hint != "" {
					got += " (" + e.Hint + ")"
				}
			}
			if got != row.want {
				t.Errorf("words %q, want %q", got, row.want)
			}
			if err == nil && s != row.settings {
				t.Errorf("settings %+v, want %+v", s, row.settings)
			}
		})
	}
}

func TestNamesFromStandardInput(t *testing.T) {
	l, err := readLine(catalog.HostDrain, []string{"linux-9", "-", "--yes"}, &settings{})
	if err != nil {
		t.Fatal(err)
	}
	readIn, err := l.fill(strings.NewReader("linux-1\nlinux-2\n\n  linux-3"))
	if err != nil || !readIn {
		t.Fatalf("fill: %v, %v", readIn, err)
	}
	if got := strings.Join(l.words, " "); got != "linux-9 linux-1 linux-2 linux-3 --yes" {
		t.Errorf("words %q", got)
	}

	for in, want := range map[string]fleet.Code{"": fleet.CodeNotFound, " \n": fleet.CodeNotFound, "a --yes": fleet.CodeInvalid} {
		l, _ := readLine(catalog.HostDrain, []string{"-"}, &settings{})
		if _, err := l.fill(strings.NewReader(in)); fleet.CodeOf(err) != want {
			t.Errorf("names %q: %v; want %s", in, err, want)
		}
	}
	l, _ = readLine(catalog.HostDrain, []string{"-", "-"}, &settings{})
	if _, err := l.fill(strings.NewReader("a")); fleet.CodeOf(err) != fleet.CodeInvalid {
		t.Errorf("standard input twice: %v", err)
	}
}

// Every command line that the shell takes apart and puts together again means
// what it means in chat.
func TestExamplesMeanTheSameInShellAndChat(t *testing.T) {
	r := catalog.All()
	for _, o := range r.Ops() {
		for _, example := range o.Examples {
			chat, err := r.Parse(example)
			if err != nil {
				t.Errorf("%s: %v", example, err)
				continue
			}
			words, err := op.Split(example)
			if err != nil {
				t.Fatal(err)
			}
			_, rest, err := r.Find(words)
			if err != nil {
				t.Fatal(err)
			}
			l, err := readLine(o, rest, &settings{})
			if err != nil {
				t.Errorf("%s: %v", example, err)
				continue
			}
			shell, err := r.ParseWords(append(strings.Fields(o.Name), l.words...))
			if err != nil {
				t.Errorf("%s: %v", example, err)
				continue
			}
			inChat, err := o.Encode(chat.Args)
			if err != nil {
				t.Fatal(err)
			}
			inShell, err := o.Encode(shell.Args)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(inChat), string(inShell)); diff != "" || chat.Options != shell.Options {
				t.Errorf("%s: options %+v and %+v, arguments (-chat +shell):\n%s", example, chat.Options, shell.Options, diff)
			}
		}
	}
}

func TestBuildFileGivesDefaults(t *testing.T) {
	file := filepath.Join(t.TempDir(), "build.yaml")
	if err := os.WriteFile(file, []byte("org: acme\npool: linux\npriority: 3\nsteps:\n  - echo hello\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	parse := func(words ...string) *catalog.BuildSubmitArgs {
		t.Helper()
		l, err := readLine(catalog.BuildSubmit, words, &settings{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.fill(nil); err != nil {
			t.Fatal(err)
		}
		call, err := catalog.All().ParseWords(append([]string{"build", "submit"}, l.words...))
		if err != nil {
			t.Fatal(err)
		}
		return call.Args.(*catalog.BuildSubmitArgs)
	}
	a := parse("-f", file)
	if a.Org != "acme" || a.Pool != "linux" || a.Priority != 3 || len(a.Spec.Tasks) != 1 || a.Spec.Tasks[0].Steps[0].Run != "echo hello" {
		t.Errorf("from the file: %+v", a)
	}
	a = parse("--file="+file, "--org", "beta", "--priority=0", "--exclusive")
	if a.Org != "beta" || a.Pool != "linux" || a.Priority != 0 || !a.Spec.Exclusive {
		t.Errorf("flags over the file: %+v", a)
	}
}

func TestEndpoint(t *testing.T) {
	dir := t.TempDir()
	context := filepath.Join(dir, "context.yaml")
	if err := os.WriteFile(context, []byte("addr: 127.0.0.1:1, http://n2:2/\ntoken: from-file\nca: from-file.pem\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	rows := []struct {
		name       string
		flags      settings
		addr, tok  string // of the environment
		ca         string
		file       string
		wantAddrs  []string
		wantToken  string
		wantCA     string
		wantFailed fleet.Code
	}{
		{"nothing", settings{}, "", "", "", "", nil, "", "", fleet.CodeInvalid},
		{"environment", settings{}, "http://a:1,b:2", "t", "", "", []string{"http://a:1", "http://b:2"}, "t", "", ""},
		{"flags go first", settings{addr: "c:3", token: "u"}, "http://a:1", "t", "", "", []string{"http://c:3"}, "u", "", ""},
		{"an authority means TLS", settings{}, "a:1,http://b:2", "t", "e.pem", "", []string{"https://a:1", "http://b:2"}, "t", "e.pem", ""},
		{"its flag goes first", settings{ca: "f.pem"}, "a:1", "t", "e.pem", "", []string{"https://a:1"}, "t", "f.pem", ""},
		{"file", settings{}, "", "", "", context, []string{"https://127.0.0.1:1", "http://n2:2"}, "from-file", "from-file.pem", ""},
		{"the file's token stays with its address", settings{addr: "evil:1"}, "", "", "", context, []string{"http://evil:1"}, "", "", ""},
		{"a named file must be there", settings{}, "", "", "", filepath.Join(dir, "none"), nil, "", "", fleet.CodeInvalid},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			t.Setenv("FOOTPLATE_ADDR", row.addr)
			t.Setenv("FOOTPLATE_TOKEN", row.tok)
			t.Setenv("FOOTPLATE_CA", row.ca)
			t.Setenv("FOOTPLATE_CONTEXT", row.file)
			t.Setenv("XDG_CONFIG_HOME", dir)
			to, err := row.flags.endpoint()
			if fleet.CodeOf(err) != row.wantFailed || to.token != row.wantToken || to.ca != row.wantCA || !cmp.Equal(to.addrs, row.wantAddrs) {
				t.Errorf("endpoint: %+v, %v", to, err)
			}
		})
	}
}

func TestComplete(t *testing.T) {
	s := Session{registry: catalog.All()}
	t.Setenv("FOOTPLATE_ADDR", "")
	t.Setenv("FOOTPLATE_CONTEXT", "")
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	for line, want := range map[string]string{
		"po":                          "pool",
		"pool s":                      "show scale",
		"cluster ":                    "status snapshot clock",
		"cluster snapshot ":           "save",
		"pool scale linux --re":       "--reason",
		"queue pause --stage ":        "intake promotion dispatch",
		"queue pause --stage=p":       "--stage=promotion",
		"automation pause p":          "promote provision",
		"automation pause watch ":     "",
		"host list -o j":              "json jsonl",
		"host list --output=na":       "--output=name",
		"host cordon -- --":           "",
		"build submit --fol":          "--follow",
		"nix ":                        "",
		"pool list --color a":         "auto always",
		"build logs 7 --task main --": "--task --follow --attempt --from --output --stale",
	} {
		words := strings.Split(line, " ")
		if got := strings.Join(s.Complete(context.Background(), words), " "); got != want {
			t.Errorf("complete %q: %q, want %q", line, got, want)
		}
	}
}

// Whatever is typed, the shell understands it or refuses it, and reads nothing
// twice.
func FuzzReadLine(f *testing.F) {
	r := catalog.All()
	for _, o := range r.Ops() {
		for _, e := range o.Examples {
			f.Add(e)
		}
	}
	f.Add("host drain - -- - --yes=\u2014x -f=-")
	f.Add("build submit -f - --file=- \u2014reason")
	f.Fuzz(func(t *testing.T, text string) {
		words, err := op.Split(text)
		if err != nil {
			return
		}
		o, rest, err := r.Find(words)
		if err != nil {
			return
		}
		l, err := readLine(o, rest, &settings{})
		if err != nil || l.file != "" && l.file != "-" {
			return
		}
		if _, err := l.fill(strings.NewReader("linux-1 7")); err != nil {
			return
		}
		_, _ = r.ParseWords(append(strings.Fields(o.Name), l.words...))
	})
}
