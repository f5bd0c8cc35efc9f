package main

import (
	"context"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestConfigurationReference: what OPERATIONS.md says of flags and the environment
// is what the program takes.
func TestConfigurationReference(t *testing.T) {
	doc, err := os.ReadFile("../../OPERATIONS.md")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "OPERATIONS.md")
	if err := os.WriteFile(file, doc, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(binary, "reference", "--write", file).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	fresh, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(fresh) != string(doc) {
		t.Error("OPERATIONS.md is out of date: make reference")
	}

	_, reference, _ := strings.Cut(string(doc), "<!-- configuration:begin -->")
	reference, _, _ = strings.Cut(reference, "<!-- configuration:end -->")
	read := environment(t)
	if len(read) < 12 {
		t.Errorf("only %d variables were found in the code", len(read))
	}
	for name, where := range read {
		if !strings.Contains(reference, "| `"+name+"` |") {
			t.Errorf("%s reads %s from the environment, and the configuration reference does not have it", where, name)
		}
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `([A-Z_]+)` \\|").FindAllStringSubmatch(reference, -1) {
		if read[m[1]] == "" {
			t.Errorf("the configuration reference has %s, which nothing reads", m[1])
		}
	}
}

// TestSecretFiles: every secret of the environment may be a file, which NAME_FILE
// names; the configuration reference says so, and whoever reads it says what is
// wrong with it.
func TestSecretFiles(t *testing.T) {
	doc, err := os.ReadFile("../../OPERATIONS.md")
	if err != nil {
		t.Fatal(err)
	}
	_, reference, _ := strings.Cut(string(doc), "<!-- configuration:begin -->")
	reference, _, _ = strings.Cut(reference, "<!-- configuration:end -->")
	files := make(map[string]bool) // by the variable's name
	for _, m := range regexp.MustCompile("(?m)^\\| `([A-Z_]+)` \\|.*`([A-Z_]+)_FILE`").FindAllStringSubmatch(reference, -1) {
		files[m[1]] = m[1] == m[2]
	}
	for name := range environment(t) {
		if regexp.MustCompile(`TOKEN|SECRET|POSTGRES`).MatchString(name) && !files[name] {
			t.Errorf("%s is a secret, and the configuration reference has no %s_FILE", name, name)
		}
	}
	dir := t.TempDir()
	absent := filepath.Join(dir, "absent")
	server := []string{"server", "--data", filepath.Join(dir, "data"), "--listen", "127.0.0.1:1", "--raft", "127.0.0.1:2", "--bootstrap"}
	recover := []string{"server", "recover", "--data", filepath.Join(dir, "data")}
	readers := map[string][][]string{
		"FOOTPLATE_TOKEN":                {{"pool", "list"}, {"chat"}, {"bot"}},
		"FOOTPLATE_POSTGRES_URL":         {server, recover, {"postgres", "init"}, {"dev"}},
		"FOOTPLATE_SLACK_BOT_TOKEN":      {server, {"bot"}, {"dev"}},
		"FOOTPLATE_SLACK_APP_TOKEN":      {server, {"bot"}, {"dev"}},
		"FOOTPLATE_SLACK_SIGNING_SECRET": {server, {"bot"}, {"dev"}},
	}
	for name := range files {
		if readers[name] == nil {
			t.Errorf("the configuration reference has %s_FILE, and it is not known here who reads it", name)
		}
		for _, args := range readers[name] {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			cmd := exec.CommandContext(ctx, binary, args...)
			cmd.WaitDelay = time.Second
			cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "FOOTPLATE_ADDR=http://127.0.0.1:1", name + "_FILE=" + absent}
			out, err := cmd.CombinedOutput()
			cancel()
			if want := name + `_FILE: cannot open "` + absent + `": no such file or directory`; err == nil || !strings.Contains(string(out), "error: "+want) {
				t.Errorf("footplate %s: %v: %s\nwant %s", strings.Join(args, " "), err, out, want)
			}
		}
	}
}

// environment returns the variables that the program reads, with where: what
// os.Getenv and its like, Secret too, are called with, and every constant that is such a name.
func environment(t *testing.T) map[string]string {
	t.Helper()
	read := make(map[string]string)
	constants := make(map[string]string) // by their names in the code
	var calls []struct{ name, where string }
	named := regexp.MustCompile(`^FOOTPLATE_[A-Z_]+$`)
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case path == "../../fleet/agent/attempt", path == "../../fleet/fault": // what a build is given; what tests set
			return filepath.SkipDir
		case path == "../../cli/secret.go": // reads what it is told: TestSecretFiles
			return nil
		case d.IsDir() && (strings.HasPrefix(d.Name(), ".") && len(d.Name()) > 2 || strings.HasSuffix(d.Name(), "test") || d.Name() == "testdata"):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ValueSpec:
				for i, v := range n.Values {
					if s, ok := text(v); ok && i < len(n.Names) && named.MatchString(s) {
						constants[n.Names[i].Name] = s
						read[s] = path
					}
				}
			case *ast.CallExpr:
				if id, ok := n.Fun.(*ast.Ident); ok && id.Name == "Secret" {
					if s, ok := text(n.Args[0]); ok {
						read[s] = path
					}
				}
				f, ok := n.Fun.(*ast.SelectorExpr)
				if !ok || f.Sel.Name != "Getenv" && f.Sel.Name != "LookupEnv" {
					return true
				}
				if s, ok := text(n.Args[0]); ok {
					read[s] = path
				} else if id, ok := n.Args[0].(*ast.Ident); ok {
					calls = append(calls, struct{ name, where string }{id.Name, path})
				} else {
					t.Errorf("%s: what is read from the environment is not a name", path)
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range calls {
		// The local provider hands some on to the agents that it starts; package slack
		// asks bot.go for its own.
		if constants[c.name] == "" && !strings.HasSuffix(c.where, "provider/local/local.go") && !strings.HasSuffix(c.where, "footplate/bot.go") {
			t.Errorf("%s reads %s from the environment, which is no constant", c.where, c.name)
		}
	}
	return read
}

func text(e ast.Expr) (string, bool) {
	lit, ok := e.(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return "", false
	}
	s, err := strconv.Unquote(lit.Value)
	return s, err == nil
}
