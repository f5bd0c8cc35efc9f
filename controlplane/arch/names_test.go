package arch

import (
	"fmt"
	"go/ast"
	"go/token"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/go/packages"
)

// emptySuffix returns the suffix of a type's name that says nothing of it.
func emptySuffix(name string) string {
	for _, s := range []string{"Manager", "Helper", "Service", "Info", "Impl", "Data"} {
		if strings.HasSuffix(name, s) {
			return s
		}
	}
	return ""
}

func badTypeNames(pkgs []*packages.Package) []string {
	var wrong []string
	for _, p := range pkgs {
		for _, f := range p.Syntax {
			ast.Inspect(f, func(n ast.Node) bool {
				if spec, ok := n.(*ast.TypeSpec); ok && token.IsExported(spec.Name.Name) {
					if s := emptySuffix(spec.Name.Name); s != "" {
						wrong = append(wrong, fmt.Sprintf("%s.%s: %s says nothing", p.Name, spec.Name.Name, s))
					}
				}
				return true
			})
		}
	}
	return wrong
}

// TestTypeNames: a type is named for what it is.
func TestTypeNames(t *testing.T) {
	pkgs, err := packages.Load(&packages.Config{Mode: packages.NeedName | packages.NeedFiles | packages.NeedSyntax | packages.NeedCompiledGoFiles}, module+"/...")
	if err != nil {
		t.Fatal(err)
	}
	if len(pkgs) < len(pure()) {
		t.Fatalf("only %d packages are loaded", len(pkgs))
	}
	for _, w := range badTypeNames(pkgs) {
		t.Error(w)
	}
	got := badTypeNames(load(t, "./testdata/util"))
	if diff := cmp.Diff([]string{
		"util.HostManager: Manager says nothing", "util.Helper: Helper says nothing", "util.FleetService: Service says nothing",
		"util.HostInfo: Info says nothing", "util.StoreImpl: Impl says nothing", "util.HostData: Data says nothing",
	}, got); diff != "" {
		t.Errorf("-want +found\n%s", diff)
	}
}
