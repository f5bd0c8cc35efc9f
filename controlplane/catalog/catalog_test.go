package catalog

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"footplate/controlplane/op"
	"footplate/controlplane/state"
	"footplate/fleet"
)

var (
	snake   = regexp.MustCompile(`^[a-z][a-z0-9]*(_[a-z0-9]+)*$`)
	dashed  = regexp.MustCompile(`^[a-z][a-z0-9]*(-[a-z0-9]+)*$`)
	shouted = regexp.MustCompile(`^[A-Z]+$`)
	aName   = regexp.MustCompile(`^[a-z]+ [a-z]+( [a-z]+)?$`)
)

// TestEveryOperation: each is named, described and documented as the others are.
func TestEveryOperation(t *testing.T) {
	reg := All()
	for _, o := range reg.Ops() {
		t.Run(o.Name, func(t *testing.T) {
			if !aName.MatchString(o.Name) {
				t.Errorf("the name is not noun and verb")
			}
			if s := o.Summary; s == "" || s != strings.TrimSpace(s) || strings.HasSuffix(s, ".") || strings.Contains(s, "\n") || s[0] < 'a' || s[0] > 'z' {
				t.Errorf("the summary %q is not a line in lower case without a full stop", s)
			}
			if !o.Role.Valid() && o.Role != fleet.Anybody {
				t.Errorf("there is no role %q", o.Role)
			}
			if hidden := o.Kind == op.KindInternal; o.Hidden() != hidden || (o.Role == fleet.System || o.Role == fleet.Agent) != hidden {
				t.Errorf("kind %s, role %s and hidden %v do not fit", o.Kind, o.Role, o.Hidden())
			}
			switch o.Kind {
			case op.KindMutation:
				if o.Risk != op.Safe && o.Risk != op.Disruptive && o.Risk != op.Dangerous {
					t.Errorf("there is no risk %q", o.Risk)
				}
				if o.Record != op.Audit || !o.Logged() {
					t.Error("a mutation leaves no record")
				}
				if o.Show == state.ShowNone {
					t.Error("what a person does is not shown")
				}
			case op.KindQuery:
				if o.Record != op.NoRecord || o.Logged() || o.Show != state.ShowNone {
					t.Error("a query is logged")
				}
				if o.Role != fleet.Viewer && o.Role != fleet.Anybody {
					t.Errorf("a query needs the role %s", o.Role)
				}
			case op.KindStream:
				if o.Logged() != (o.Record == op.Audit) {
					t.Error("record and log do not fit")
				}
			case op.KindInternal:
				if len(o.Examples) != 0 {
					t.Error("an internal operation has examples")
				}
			}
			checkParams(t, o)
			checkExamples(t, reg, o)
			if o.Many {
				checkRow(t, o.Row)
			}
		})
	}
}

func checkParams(t *testing.T, o *op.Op) {
	many := false
	flags := make(map[string]bool)
	for _, opt := range op.OptionList() {
		// What is for the record only has no meaning where nothing is recorded.
		flags[opt.Flag] = o.Logged() || opt.Flag == "output" || opt.Flag == "stale"
	}
	for _, p := range o.Params {
		if !snake.MatchString(p.Name) {
			t.Errorf("JSON name %q is not in snake case", p.Name)
		}
		if o.Hidden() {
			if p.Flag+p.Arg != "" {
				t.Errorf("%s of an internal operation can be typed", p.Name)
			}
			continue
		}
		if p.Help == "" || strings.HasSuffix(p.Help, ".") {
			t.Errorf("help of %s is %q", p.Name, p.Help)
		}
		if (p.Flag == "") == (p.Arg == "") && !p.Secret { // a secret is not typed
			t.Errorf("%s has flag %q and place-holder %q; it needs one of them", p.Name, p.Flag, p.Arg)
		}
		if p.Flag != "" && (!dashed.MatchString(p.Flag) || flags[p.Flag]) {
			t.Errorf("flag --%s is no flag, or taken", p.Flag)
		}
		flags[p.Flag] = true
		if p.Arg != "" && (!shouted.MatchString(p.Arg) || many) {
			t.Errorf("place-holder %s is not one, or comes after all were taken", p.Arg)
		}
		many = many || p.Arg != "" && p.Many
		if p.Default != "" && len(p.Enum) > 0 && !slices.Contains(p.Enum, p.Default) {
			t.Errorf("default %q of %s is none of %v", p.Default, p.Name, p.Enum)
		}
		if p.Required && p.Default != "" {
			t.Errorf("%s is required, and has a default", p.Name)
		}
		if p.Complete != "" {
			if list, ok := All().Get(p.Complete + " list"); !ok || !list.Many {
				t.Errorf("%s is completed by %q, which cannot be listed", p.Name, p.Complete)
			}
		}
		if p.Default != "" {
			raw := reflect.ValueOf(o.NewArgs()).Elem()
			if got := fieldOf(t, raw, p.Name); got.IsZero() && p.Default != "0" {
				t.Errorf("default %q of %s cannot be read", p.Default, p.Name)
			}
		}
	}
}

// fieldOf returns the field with that JSON name.
func fieldOf(t *testing.T, v reflect.Value, name string) reflect.Value {
	for _, f := range reflect.VisibleFields(v.Type()) {
		if n, _, _ := strings.Cut(f.Tag.Get("json"), ","); n == name && !f.Anonymous {
			return v.FieldByIndex(f.Index)
		}
	}
	t.Fatalf("%s has no field %s", v.Type(), name)
	return reflect.Value{}
}

func checkExamples(t *testing.T, reg *op.Registry, o *op.Op) {
	if !o.Hidden() && len(o.Examples) == 0 {
		t.Error("there is no example")
	}
	for _, line := range o.Examples {
		call, err := reg.Parse(line)
		if err != nil {
			t.Errorf("example %q: %v", line, err)
			continue
		}
		if call.Op != o {
			t.Errorf("example %q is of %s", line, call.Op.Name)
		}
		raw, err := o.Encode(call.Args)
		if err != nil {
			t.Fatal(err)
		}
		again, err := o.Decode(raw)
		if err != nil {
			t.Errorf("example %q: its arguments as JSON %s: %v", line, raw, err)
			continue
		}
		if back, err := o.Encode(again); err != nil || string(back) != string(raw) {
			t.Errorf("example %q: %s comes back as %s, %v", line, raw, back, err)
		}
	}
}

// checkRow: each field of a table's row has a column, and one is its id.
func checkRow(t *testing.T, row reflect.Type) {
	ids := 0
	columns := make(map[string]bool)
	for _, f := range reflect.VisibleFields(row) {
		if f.Anonymous {
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if !snake.MatchString(name) {
			t.Errorf("JSON name %q of %s is not in snake case", name, f.Name)
		}
		col := f.Tag.Get("col")
		if col == "" || col != strings.ToUpper(col) || columns[col] {
			t.Errorf("column %q of %s is none, or there twice", col, f.Name)
		}
		columns[col] = true
		if f.Tag.Get("id") == "true" {
			ids++
		}
	}
	if ids != 1 {
		t.Errorf("%d columns are the id", ids)
	}
}

// TestEveryOperationIsListed: an operation that is defined is in All.
func TestEveryOperationIsListed(t *testing.T) {
	pkgs, err := parser.ParseDir(token.NewFileSet(), ".", func(f fs.FileInfo) bool { return !strings.HasSuffix(f.Name(), "_test.go") }, 0)
	if err != nil {
		t.Fatal(err)
	}
	defined, listed := make(map[string]bool), make(map[string]bool)
	ast.Inspect(pkgs["catalog"], func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.ValueSpec:
			for i, v := range n.Values {
				if call, ok := v.(*ast.CallExpr); ok {
					fun := call.Fun
					if index, ok := fun.(*ast.IndexExpr); ok {
						fun = index.X
					}
					if sel, ok := fun.(*ast.SelectorExpr); ok && slices.Contains([]string{"Mutation", "Query", "Stream", "Internal"}, sel.Sel.Name) {
						defined[n.Names[i].Name] = true
					}
				}
			}
		case *ast.FuncDecl:
			if n.Name.Name == "All" {
				ast.Inspect(n.Body, func(n ast.Node) bool {
					if id, ok := n.(*ast.Ident); ok {
						listed[id.Name] = true
					}
					return true
				})
			}
		}
		return true
	})
	for name := range defined {
		if !listed[name] {
			t.Errorf("%s is not in All", name)
		}
	}
	if n := len(All().Ops()); n != len(defined) {
		t.Errorf("%d operations are defined, and All has %d", len(defined), n)
	}
}

// TestFollow: who follows a build sees every attempt, also one that begins
// while he waits, and the end.
func TestFollow(t *testing.T) {
	w := newWorld(t)
	for _, line := range []string{
		"alice: pool create linux --provider none", "alice: org set acme",
		`agent: agent join {"host":"h1","pool":"linux","boot":"b1","incarnation":1,"version":"1"}`,
		"alice: build submit --org acme --pool linux --run x",
		`promote: build promote {"org":"acme","count":1}`,
	} {
		w.do(line)
	}
	assign := `dispatch: build assign {"assign":[{"build":1,"task":0,"host":"h1","boot":"b1","incarnation":1}]}`
	todo := []func(){
		func() { w.do(assign); w.output[1] = []string{"first"} },
		func() { w.do(`watch: attempt lose {"attempts":[1],"why":"gone","certain":true}`) },
		func() { w.do(assign); w.output[2] = []string{"second", "third"} },
		func() {
			w.do(`agent: agent report {"host":"h1","boot":"b1","attempts":[{"attempt":2,"phase":"ended","outcome":"passed"}]}`)
		},
	}
	w.whenWaiting = func() {
		if len(todo) == 0 {
			t.Fatal("the build has ended, and the reader still waits")
		}
		todo[0]()
		todo = todo[1:]
	}
	var got []string
	dec := json.NewDecoder(strings.NewReader(w.ask("build logs 1 --follow")))
	for dec.More() {
		var c op.LogChunk
		if err := dec.Decode(&c); err != nil {
			t.Fatal(err)
		}
		got = append(got, c.Attempt.String()+" "+string(c.Data))
	}
	if want := []string{"1 first", "2 second", "2 third"}; !slices.Equal(got, want) {
		t.Errorf("the reader saw %q, not %q", got, want)
	}
}

// TestNotFound: whoever names a thing that does not exist is told which, in
// the same words by every operation.
func TestNotFound(t *testing.T) {
	known := map[string]any{"org": "acme", "pool": "linux", "host": "mac-a", "build": 1}
	missing := map[string]any{"org": "nope-9", "pool": "nope-9", "host": "nope-9", "build": 999}
	tried := 0
	for _, o := range All().Ops() {
		for _, p := range o.Params {
			if o.Hidden() || missing[p.Complete] == nil || o == OrgSet { // which makes one
				continue
			}
			tried++
			t.Run(o.Name+" "+p.Placeholder(), func(t *testing.T) {
				w := newWorld(t)
				for _, l := range []string{
					"alice: org set acme --slots 4", "alice: pool create linux --provider none",
					`agents: agent join {"host":"mac-a","pool":"linux","slots":1,"boot":"b","incarnation":1,"version":"1"}`,
					"alice: build submit --org acme --pool linux --run true",
				} {
					if got := w.do(l); strings.HasPrefix(got, "error") {
						t.Fatalf("%s: %s", l, got)
					}
				}
				call, err := w.reg.Parse(o.Examples[0])
				if err != nil {
					t.Fatal(err)
				}
				raw, err := o.Encode(call.Args)
				if err != nil {
					t.Fatal(err)
				}
				args := make(map[string]any)
				if err := json.Unmarshal(raw, &args); err != nil {
					t.Fatal(err)
				}
				for _, other := range o.Params {
					if v := known[other.Complete]; v != nil && (other.Required || o == BuildSubmit) {
						args[other.Name] = v
					}
				}
				args[p.Name] = missing[p.Complete]
				if p.Many {
					args[p.Name] = []any{missing[p.Complete]}
				}
				raw, err = json.Marshal(args)
				if err != nil {
					t.Fatal(err)
				}
				a, err := o.Decode(raw)
				if err != nil {
					t.Fatal(err)
				}
				if o.Logged() {
					if raw, err = o.Encode(a); err != nil {
						t.Fatal(err)
					}
					if e := w.apply(state.Command{By: "alice", Role: fleet.Admin, Via: "cli/test", Op: o.Name, Ver: o.Version(), Args: raw})[0].Err; e != nil {
						err = e
					}
				} else {
					env := op.Env{View: w.st.Publish(), Now: w.now, World: w, Ops: w.reg, Caller: op.Caller{Principal: "alice", Role: fleet.Admin}}
					if o.Kind == op.KindStream {
						err = o.Stream(t.Context(), env, a, io.Discard)
					} else {
						_, err = o.Query(t.Context(), env, a)
					}
				}
				want := fmt.Sprintf("there is no %s %q", p.Complete, missing[p.Complete])
				if p.Complete == "build" {
					want = "there is no build 999"
				}
				if e := fleet.AsError(err); e == nil || e.Code != fleet.CodeNotFound || e.Msg != want || e.Hint == "" {
					t.Errorf("got %v, want not_found: %s, with a hint", err, want)
				}
			})
		}
	}
	if tried < 20 {
		t.Errorf("only %d were tried", tried)
	}
}
