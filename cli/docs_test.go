package cli

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"footplate/controlplane/catalog"
	"footplate/controlplane/op"
)

func readDoc(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// The reference goes between its markers, and nothing else changes. That the one
// in OPERATIONS.md is fresh is tested in controlplane/arch.
func TestReferenceHasItsPlace(t *testing.T) {
	doc, err := withReference("before\n"+referenceBegin+"old\n"+referenceEnd+"after\n", catalog.All())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(doc, "before\n"+referenceBegin) || !strings.HasSuffix(doc, referenceEnd+"after\n") || strings.Contains(doc, "old\n") {
		t.Errorf("the document became\n%.200s ...", doc)
	}
	if again, err := withReference(doc, catalog.All()); err != nil || again != doc {
		t.Errorf("a second time changes it: %v", err)
	}
	if _, err := withReference("no markers\n", catalog.All()); err == nil {
		t.Error("a document without a place for the reference was taken")
	}
}

// shellOnly ends what the parser of operations is given: the rest is the shell's.
var shellOnly = regexp.MustCompile(`\s+([|>#&;]|\.\.\.|\s{2,}).*$`)

// commandLines returns the command lines of footplate in a document: in its code
// blocks those that begin with footplate, after a prompt or not, and the words
// between backquotes that do.
func commandLines(doc string) []string {
	var out []string
	fenced := false
	for line := range strings.Lines(strings.ReplaceAll(doc, "\\\n", " ")) {
		if strings.HasPrefix(line, "```") {
			fenced = !fenced
			continue
		}
		code := fenced || strings.HasPrefix(line, "    ")
		line = strings.TrimSpace(line)
		if code {
			line = strings.TrimPrefix(line, "$ ")
			if l, ok := strings.CutPrefix(line, "footplate "); ok {
				l, _, _ = strings.Cut(l, "   ") // a remark beside it
				out = append(out, strings.TrimSpace(shellOnly.ReplaceAllString(l, "")))
			}
			continue
		}
		for i, part := range strings.Split(line, "`") {
			if l, ok := strings.CutPrefix(part, "footplate "); ok && i%2 == 1 {
				out = append(out, l)
			}
		}
	}
	return out
}

// Every command line of the documents is one that the program takes.
func TestCommandsInDocuments(t *testing.T) {
	ops := catalog.All()
	p := &program{Session: Session{registry: ops}}
	p.root = p.tree()
	// What main adds parses its own flags; usage lines have no values.
	other := regexp.MustCompile(`^(dev|server|agent|chat|bot|tls|postgres|help|reference|completion)\b`)
	usage := regexp.MustCompile(`\$\d|\[|\b[A-Z]{2,}\b`)
	for _, name := range []string{"README.md", "OPERATIONS.md"} {
		lines := commandLines(readDoc(t, name))
		if len(lines) < 10 {
			t.Errorf("%s: only %d command lines were found", name, len(lines))
		}
		for _, l := range lines {
			if other.MatchString(l) || usage.MatchString(l) {
				continue
			}
			words, err := op.Split(l)
			if err != nil {
				t.Errorf("%s: %s: %v", name, l, err)
				continue
			}
			o, rest, err := ops.Find(words)
			if err != nil {
				t.Errorf("%s: footplate %s: %v", name, l, err)
				continue
			}
			typed, err := readLine(o, rest, &settings{})
			if err == nil && typed.file == "" && !offlineForm(o, typed.words) {
				_, err = ops.ParseWords(append(strings.Fields(o.Name), typed.words...))
			}
			if err != nil {
				t.Errorf("%s: footplate %s: %v", name, l, err)
			}
		}
	}
}

// offlineForm reports whether the words are for a form of o that main adds:
// "audit verify FILE".
func offlineForm(o *op.Op, words []string) bool {
	return o.Name == "audit verify" && len(words) > 0
}

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.+)$`)
	strange = regexp.MustCompile(`[^a-z0-9 _-]`)
)

// anchors are the names of a document's headings, as GitHub makes them.
func anchors(doc string) map[string]bool {
	out := make(map[string]bool)
	seen := make(map[string]int)
	for _, m := range heading.FindAllStringSubmatch(doc, -1) {
		a := strings.ReplaceAll(strange.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-")
		n := seen[a]
		seen[a]++
		if n > 0 {
			a += "-" + string(rune('0'+n))
		}
		out[a] = true
	}
	return out
}

// Every link of the documents leads somewhere.
func TestLinksInDocuments(t *testing.T) {
	for _, name := range []string{"README.md", "OPERATIONS.md", "CHANGELOG.md"} {
		for _, m := range link.FindAllStringSubmatch(readDoc(t, name), -1) {
			file, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(file, "://") {
				continue
			}
			if file == "" {
				file = name
			}
			if _, err := os.Stat(filepath.Join("..", file)); err != nil {
				t.Errorf("%s: %s leads nowhere", name, m[1])
				continue
			}
			if anchor != "" && !anchors(readDoc(t, file))[anchor] {
				t.Errorf("%s: %s has no heading %q", name, file, anchor)
			}
		}
	}
}
