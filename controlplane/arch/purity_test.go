package arch

import (
	"bufio"
	"fmt"
	"go/ast"
	"go/token"
	"go/types"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/go/packages"
)

// pure are the packages that run in Apply, or that decide what is logged.
func pure() []string {
	return []string{
		"fleet", "fleet/queue", "fleet/lease", "controlplane/state", "controlplane/op", "controlplane/catalog", "controlplane/order",
	}
}

func load(t *testing.T, patterns ...string) []*packages.Package {
	t.Helper()
	pkgs, err := packages.Load(&packages.Config{
		Mode: packages.NeedName | packages.NeedFiles | packages.NeedSyntax | packages.NeedTypes | packages.NeedTypesInfo | packages.NeedImports | packages.NeedDeps,
	}, patterns...)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pkgs {
		for _, e := range p.Errors {
			t.Fatal(e)
		}
	}
	return pkgs
}

// TestPure: the same log gives the same state (P13), because nothing that runs
// in Apply can know anything but the log.
func TestPure(t *testing.T) {
	var patterns []string
	for _, p := range pure() {
		patterns = append(patterns, module+"/"+p)
	}
	pkgs := load(t, patterns...)
	if len(pkgs) != len(patterns) {
		t.Fatalf("%d packages are loaded, not %d", len(pkgs), len(patterns))
	}
	for _, p := range pkgs {
		for _, f := range impurities(p) {
			t.Errorf("%s: %s", f.pos, f.what)
		}
	}
}

// TestImpurityIsFound: each rule is broken once in testdata/impure, and found
// in the line that says so.
func TestImpurityIsFound(t *testing.T) {
	var got []string
	for _, f := range impurities(load(t, "./testdata/impure")[0]) {
		got = append(got, fmt.Sprintf("%d %s", f.pos.Line, f.what))
	}
	file, err := os.Open(filepath.Join("testdata", "impure", "impure.go"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	var want []string
	in := bufio.NewScanner(file)
	for n := 1; in.Scan(); n++ {
		_, list, _ := strings.Cut(in.Text(), "// finds: ")
		for _, w := range strings.Split(list, "; ") {
			if w != "" {
				want = append(want, fmt.Sprintf("%d %s", n, w))
			}
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, slices.Compact(got)); diff != "" {
		t.Errorf("-want +found\n%s", diff)
	}
}

// finding is a place where a rule is broken.
type finding struct {
	pos  token.Position
	what string
}

// banned are packages that know of the world, and those beneath them. net/url
// knows only how addresses are written.
func banned(importPath string) bool {
	if importPath == "net/url" {
		return false
	}
	for _, b := range []string{
		"os", "net", "math/rand", "crypto/rand", "sync", "log", "syscall", "unsafe", "runtime", "golang.org/x/sys",
	} {
		if importPath == b || strings.HasPrefix(importPath, b+"/") {
			return true
		}
	}
	return false
}

// worldly are the functions and variables of package time that look at a clock,
// a time zone of the machine, or wait.
func worldly(name string) bool {
	return slices.Contains([]string{
		"Now", "Since", "Until", "Local", "After", "AfterFunc", "Tick", "Sleep", "NewTimer", "NewTicker", "LoadLocation",
	}, name)
}

// impurities returns where p could know anything but its arguments.
func impurities(p *packages.Package) []finding {
	var out []finding
	note := func(n ast.Node, format string, args ...any) {
		out = append(out, finding{p.Fset.Position(n.Pos()), fmt.Sprintf(format, args...)})
	}
	info := p.TypesInfo
	for _, f := range p.Syntax {
		for _, i := range f.Imports {
			if name, err := strconv.Unquote(i.Path.Value); err == nil && banned(name) {
				note(i, "imports %s", name)
			}
		}
		sorted := make(map[ast.Node]bool) // calls whose result is sorted at once
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				note(n, "go statement")
			case *ast.SelectStmt:
				note(n, "select statement")
			case *ast.RangeStmt:
				if isMap(info.TypeOf(n.X)) {
					note(n, "ranges over a map")
				}
			case *ast.FuncDecl:
				if n.Recv == nil && n.Name.Name == "init" {
					note(n, "has an init function")
				}
			case *ast.CallExpr:
				if strings.HasPrefix(called(info, n), "slices.Sorted") && len(n.Args) > 0 {
					sorted[n.Args[0]] = true
				}
				switch name := called(info, n); name {
				case "maps.Keys", "maps.Values", "maps.All":
					if !sorted[n] {
						note(n, "%s is not sorted at once", name)
					}
				case "reflect.Value.MapRange", "reflect.Value.MapKeys":
					note(n, "ranges over a map by reflection")
				}
				for _, v := range changedBy(info, n) {
					note(n, "changes package variable %s", v)
				}
			case *ast.Ident:
				if o := info.Uses[n]; o != nil && o.Pkg() != nil && o.Pkg().Path() == "time" && worldly(o.Name()) {
					note(n, "uses time.%s", o.Name())
				}
				if o := info.Defs[n]; o != nil && isFloat(o.Type()) {
					note(n, "floating point")
				}
			case *ast.AssignStmt:
				for _, l := range n.Lhs {
					if v := packageVar(info, l); v != nil {
						note(n, "changes package variable %s", v.Name())
					}
				}
			case *ast.IncDecStmt:
				if v := packageVar(info, n.X); v != nil {
					note(n, "changes package variable %s", v.Name())
				}
			case *ast.UnaryExpr:
				if v := packageVar(info, n.X); v != nil && n.Op == token.AND {
					note(n, "takes the address of package variable %s", v.Name())
				}
			}
			if e, ok := n.(ast.Expr); ok {
				if tv, ok := info.Types[e]; ok && (tv.IsType() || tv.IsValue()) && isFloat(tv.Type) {
					note(e, "floating point")
				}
			}
			return true
		})
	}
	return out
}

// called names the function of a call, "" when it has no name: "slices.Sorted",
// "reflect.Value.MapKeys", "clear".
func called(info *types.Info, call *ast.CallExpr) string {
	fun := ast.Unparen(call.Fun)
	if index, ok := fun.(*ast.IndexExpr); ok {
		fun = index.X
	}
	var id *ast.Ident
	switch fun := fun.(type) {
	case *ast.Ident:
		id = fun
	case *ast.SelectorExpr:
		id = fun.Sel
	default:
		return ""
	}
	switch o := info.Uses[id].(type) {
	case *types.Builtin:
		return o.Name()
	case *types.Func:
		name := o.Name()
		if recv := o.Signature().Recv(); recv != nil {
			if named, ok := types.Unalias(recv.Type()).(*types.Named); ok {
				name = named.Obj().Name() + "." + name
			}
		}
		if o.Pkg() != nil {
			return o.Pkg().Name() + "." + name
		}
	}
	return ""
}

// changedBy names the package variables that a call changes: by clear, delete
// and copy, or by a method with a pointer receiver.
func changedBy(info *types.Info, call *ast.CallExpr) []string {
	var target ast.Expr
	switch called(info, call) {
	case "clear", "delete", "copy":
		target = call.Args[0]
	default:
		sel, ok := ast.Unparen(call.Fun).(*ast.SelectorExpr)
		if !ok {
			return nil
		}
		method := info.Selections[sel]
		if method == nil || method.Kind() != types.MethodVal {
			return nil
		}
		recv := method.Obj().(*types.Func).Signature().Recv()
		_, byPointer := recv.Type().(*types.Pointer)
		_, isPointer := info.TypeOf(sel.X).Underlying().(*types.Pointer)
		if !byPointer || isPointer {
			return nil
		}
		target = sel.X
	}
	if v := packageVar(info, target); v != nil {
		return []string{v.Name()}
	}
	return nil
}

// packageVar returns the package variable that e is a part of, nil when it is
// part of none.
func packageVar(info *types.Info, e ast.Expr) *types.Var {
	for {
		switch x := e.(type) {
		case *ast.ParenExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.SliceExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		case *ast.SelectorExpr:
			if v, ok := info.Uses[x.Sel].(*types.Var); ok && !v.IsField() {
				return global(v)
			}
			e = x.X
		case *ast.Ident:
			v, _ := info.Uses[x].(*types.Var)
			return global(v)
		default:
			return nil
		}
	}
}

func global(v *types.Var) *types.Var {
	if v == nil || v.Pkg() == nil || v.Parent() != v.Pkg().Scope() {
		return nil
	}
	return v
}

func isMap(t types.Type) bool {
	if t == nil {
		return false
	}
	_, ok := t.Underlying().(*types.Map)
	return ok
}

func isFloat(t types.Type) bool {
	if t == nil {
		return false
	}
	b, ok := t.Underlying().(*types.Basic)
	return ok && b.Info()&(types.IsFloat|types.IsComplex) != 0
}
