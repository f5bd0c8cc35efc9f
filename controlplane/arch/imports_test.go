package arch

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const module = "footplate"

// listed is what "go list" says of a package.
type listed struct {
	ImportPath string
	Name       string
	Imports    []string
}

// own returns the path of a package of ours without the module; ok is false
// for one of others.
func own(importPath string) (string, bool) {
	return strings.CutPrefix(importPath, module+"/")
}

func packagesOf(t *testing.T) []listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Name,Imports", module+"/...")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []listed
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	return pkgs
}

// table is imports.txt.
type table struct {
	ours   map[string][]string // package -> what of ours it may import
	others map[string][]string // module of others -> who may import it
}

func readTable(text string) (table, error) {
	t := table{ours: make(map[string][]string), others: make(map[string][]string)}
	for n, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		name, list, ok := strings.Cut(line, ":")
		if !ok {
			return t, fmt.Errorf("line %d has no colon", n+1)
		}
		into := t.ours
		if other, ok := strings.CutPrefix(name, "@"); ok {
			into, name = t.others, other
		}
		if _, twice := into[name]; twice {
			return t, fmt.Errorf("line %d is the second about %s", n+1, name)
		}
		into[name] = strings.Fields(list)
	}
	return t, nil
}

// check returns what is wrong with pkgs by the table, in order.
func (t table) check(pkgs []listed) []string {
	var wrong []string
	there := make(map[string]bool)
	for _, p := range pkgs {
		name, _ := own(p.ImportPath)
		there[name] = true
		allowed, known := t.ours[name]
		if !known {
			wrong = append(wrong, fmt.Sprintf("package %s is not in imports.txt", name))
		}
		for _, i := range p.Imports {
			if of, ok := own(i); ok {
				if known && !slices.Contains(allowed, of) && !slices.Contains(allowed, "*") {
					wrong = append(wrong, fmt.Sprintf("package %s may not import %s", name, of))
				}
				continue
			}
			for other, who := range t.others {
				if (i == other || strings.HasPrefix(i, other+"/")) && !slices.Contains(who, name) {
					wrong = append(wrong, fmt.Sprintf("package %s may not import %s: only %s may", name, i, strings.Join(who, ", ")))
				}
			}
		}
		if p.Name == "main" {
			for user, list := range t.ours {
				if slices.Contains(list, name) {
					wrong = append(wrong, fmt.Sprintf("package %s may import %s, which is a main", user, name))
				}
			}
		}
	}
	for name, list := range t.ours {
		if !there[name] {
			wrong = append(wrong, fmt.Sprintf("package %s is in imports.txt, and is gone", name))
		}
		for _, of := range list {
			if of != "*" && !there[of] {
				wrong = append(wrong, fmt.Sprintf("package %s may import %s, which is gone", name, of))
			}
		}
	}
	slices.Sort(wrong)
	return wrong
}

// TestImports: the ladder of imports is climbed in one direction.
func TestImports(t *testing.T) {
	text, err := os.ReadFile("imports.txt")
	if err != nil {
		t.Fatal(err)
	}
	table, err := readTable(string(text))
	if err != nil {
		t.Fatalf("imports.txt: %v", err)
	}
	for _, w := range table.check(packagesOf(t)) {
		t.Error(w)
	}
}

// TestImportsAreChecked breaks each rule of the table once.
func TestImportsAreChecked(t *testing.T) {
	table, err := readTable("a: b\nb:\nmain: *\nc: gone main # a comment\n\n@raft.org/raft: b\n")
	if err != nil {
		t.Fatal(err)
	}
	got := table.check([]listed{
		{module + "/a", "a", []string{"fmt", module + "/b", module + "/c", "raft.org/raft", "raft.org/rafters"}},
		{module + "/b", "b", []string{module + "/a", "raft.org/raft/v2"}},
		{module + "/main", "main", []string{module + "/a"}},
		{module + "/new", "new", []string{"raft.org/raft/v2"}},
	})
	if diff := cmp.Diff([]string{
		"package a may not import c",
		"package a may not import raft.org/raft: only b may",
		"package b may not import a",
		"package c is in imports.txt, and is gone",
		"package c may import gone, which is gone",
		"package c may import main, which is a main",
		"package new is not in imports.txt",
		"package new may not import raft.org/raft/v2: only b may",
	}, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	for _, text := range []string{"a", "a:\na:\n"} {
		if _, err := readTable(text); err == nil {
			t.Errorf("the table %q is taken", text)
		}
	}
}

// noPackage are names that say nothing of what is inside.
func noPackage(name string) bool {
	return slices.Contains([]string{"util", "utils", "common", "helper", "helpers", "types", "models", "base", "core", "internal", "pkg", "cmd"}, name)
}

func badPackageNames(pkgs []listed) []string {
	var wrong []string
	for _, p := range pkgs {
		name, _ := own(p.ImportPath)
		for _, part := range strings.Split(name, "/") {
			if noPackage(part) {
				wrong = append(wrong, fmt.Sprintf("package %s: %q says nothing of what is inside", name, part))
			}
		}
		if p.Name != "main" && p.Name != path.Base(p.ImportPath) {
			wrong = append(wrong, fmt.Sprintf("package %s is named %s", name, p.Name))
		}
	}
	return wrong
}

// TestPackageNames: a package is named for what is inside.
func TestPackageNames(t *testing.T) {
	for _, w := range badPackageNames(packagesOf(t)) {
		t.Error(w)
	}
	got := badPackageNames([]listed{{module + "/fleet/util", "util", nil}, {module + "/internal/x", "x", nil}, {module + "/a", "b", nil}})
	if len(got) != 3 {
		t.Errorf("bad names are not found: %v", got)
	}
}
