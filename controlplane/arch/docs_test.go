package arch

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"footplate/cli"
	"footplate/controlplane/catalog"
)

const begin, end = "<!-- operations:begin -->", "<!-- operations:end -->"

// TestReferenceIsFresh: the reference of the operations in OPERATIONS.md is
// what the program prints.
func TestReferenceIsFresh(t *testing.T) {
	var want bytes.Buffer
	if err := cli.WriteReference(&want, catalog.All()); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join("..", "..", "OPERATIONS.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(data), begin)
	got, _, ended := strings.Cut(rest, end)
	if !ok || !ended {
		t.Fatalf("OPERATIONS.md has no lines %s and %s", begin, end)
	}
	fresh, stale := strings.Split(strings.TrimSpace(want.String()), "\n"), strings.Split(strings.TrimSpace(got), "\n")
	for i := range max(len(fresh), len(stale)) {
		switch {
		case i >= len(fresh):
			t.Fatalf("line %d of the reference in OPERATIONS.md is too much: run make reference\n%s", i+1, stale[i])
		case i >= len(stale):
			t.Fatalf("line %d of the reference is missing in OPERATIONS.md: run make reference\n%s", i+1, fresh[i])
		case fresh[i] != stale[i]:
			t.Fatalf("line %d of the reference in OPERATIONS.md is stale: run make reference\nit says     %s\nit must say %s", i+1, stale[i], fresh[i])
		}
	}
}
