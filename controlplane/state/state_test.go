package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"reflect"
	"slices"
	"strings"
	"testing"

	"footplate/fleet"

	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// failer is a *testing.T or a *rapid.T.
type failer interface {
	Helper()
	Fatal(...any)
}

func dump(t failer, v *View) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := v.Dump(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// trace is everything of a state that a failed command could leave a mark on.
func trace(t failer, st *State) string {
	t.Helper()
	return st.Digest() + "\n" + string(dump(t, st.Peek())) + strings.Join(derivedLines(st.derived), "\n")
}

// derivedLines writes what is derived, for comparison.
func derivedLines(d derived) []string {
	var out []string
	note := func(what string, v any) { out = append(out, fmt.Sprintf("%s %v", what, v)) }
	for q := range d.Queued.All() {
		note("queued", q)
	}
	for w := range d.Waiting.All() {
		note("waiting", w)
	}
	for r := range d.Running.All() {
		note("running", r)
	}
	for h := range d.Held.All() {
		note("held", h)
	}
	d.Using.Scan(func(k fleet.OrgName, n int) bool { note("using "+string(k), n); return true })
	d.Depth.Scan(func(k fleet.PoolName, n int) bool { note("depth "+string(k), n); return true })
	return out
}

// recount derives everything from the rows alone.
func recount(st *State) []string {
	d := newDerived()
	for _, b := range st.Builds.All() {
		d.build(nil, &b)
	}
	for _, a := range st.Attempts.All() {
		d.attempt(nil, &a)
	}
	return derivedLines(d)
}

var testSpec = &fleet.BuildSpec{Tasks: []fleet.TaskSpec{{Name: "main", Steps: []fleet.Step{{Run: "true"}}}}}

// scramble makes random changes to every table.
func scramble(t *rapid.T, tx *Tx) {
	name := rapid.StringMatching(`[a-c]`)
	number := rapid.Uint64Range(1, 400)
	stages := rapid.SampledFrom([]fleet.Stage{fleet.StageQueued, fleet.StageRunnable, fleet.StageFinished})
	outcomes := rapid.SampledFrom([]fleet.Outcome{"", "", fleet.Passed, fleet.Lost})
	for range rapid.IntRange(0, 12).Draw(t, "writes") {
		s, n, gone := name.Draw(t, "name"), number.Draw(t, "number"), rapid.IntRange(0, 3).Draw(t, "gone") == 0
		switch rapid.IntRange(0, 16).Draw(t, "table") {
		case 0:
			write(tx.Nodes, fleet.NodeID(s), Node{ID: fleet.NodeID(s), API: s}, gone)
		case 1:
			write(tx.Tokens, s, fleet.Token{Name: s, Role: fleet.Admin}, gone)
		case 2:
			write(tx.Orgs, fleet.OrgName(s), fleet.Org{Name: fleet.OrgName(s), Slots: int(n)}, gone)
		case 3:
			write(tx.Pools, fleet.PoolName(s), fleet.Pool{Name: fleet.PoolName(s), Size: int(n)}, gone)
		case 4:
			write(tx.Hosts, fleet.HostID(s), fleet.Host{ID: fleet.HostID(s), Slots: int(n)}, gone)
		case 5:
			write(tx.Launches, fleet.LaunchID(n), fleet.Launch{ID: fleet.LaunchID(n), NextAt: fleet.Time(n)}, gone)
		case 6, 7, 8:
			b := fleet.Build{
				ID: fleet.BuildID(n), Org: fleet.OrgName(s), Pool: fleet.PoolName(name.Draw(t, "pool")), Spec: tx.ShareSpec(testSpec),
				Priority: rapid.IntRange(-1, 1).Draw(t, "priority"), Stage: stages.Draw(t, "stage"),
			}
			for range rapid.IntRange(1, 3).Draw(t, "tasks") {
				b.Tasks = append(b.Tasks, fleet.Task{
					Outcome: outcomes.Draw(t, "outcome"),
					Live:    fleet.AttemptID(rapid.IntRange(0, 1).Draw(t, "live")),
					Held:    fleet.AttemptID(rapid.IntRange(0, 1).Draw(t, "held")),
				})
			}
			write(tx.Builds, b.ID, b, gone)
		case 9, 10:
			write(tx.Attempts, fleet.AttemptID(n), fleet.Attempt{
				ID: fleet.AttemptID(n), Host: fleet.HostID(s), Outcome: outcomes.Draw(t, "outcome"),
			}, gone)
		case 11:
			write(tx.Gates, s, fleet.Gate{Stage: fleet.GateDispatch, Until: fleet.Time(n)}, gone)
		case 12:
			write(tx.Pauses, fleet.Loop(s), fleet.Pause{Loop: fleet.Loop(s), Until: fleet.Time(n)}, gone)
		case 13:
			tx.Remember(Remembered{ID: s + "\x00<key>", Op: s, At: tx.Clock, Outcome: Outcome{Text: "é & <b>", Result: json.RawMessage(`{"a":1}`)}}, n%2 == 0)
		case 14:
			write(tx.Refusals, s, Refusals{At: fleet.Time(n), Count: 1}, gone)
		case 15:
			write(tx.Outbox, fleet.EntryNo(n), Parcel{N: n, Show: ShowLine}, gone)
		case 16:
			write(tx.Channel, fleet.EntryNo(n), Line{N: n, Text: s}, gone)
		}
	}
	tx.Meta.Build += fleet.BuildID(rapid.IntRange(0, 1).Draw(t, "builds"))
	tx.Term++
}

func write[K key, R any](t *Table[K, R], k K, r R, gone bool) {
	if gone {
		t.Delete(k)
	} else {
		t.Put(k, r)
	}
}

// TestDo: a command that fails leaves no trace; what is derived is what a
// recount gives; views and scratch states keep out of each other's way; and a
// state that went through a snapshot is the same and stays the same.
func TestDo(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		st, index := New(), uint64(0)
		var views []*View
		var dumps [][]byte
		t.Repeat(map[string]func(*rapid.T){
			"command": func(t *rapid.T) {
				index++
				at := fleet.Time(index) * fleet.Time(rapid.SampledFrom([]fleet.Duration{1, fleet.Hour}).Draw(t, "pace"))
				before := ""
				st.Begin(index, at)
				fails := rapid.Bool().Draw(t, "fails")
				if fails {
					before = trace(t, st)
				}
				err := st.Do("alice", func(tx *Tx) error {
					scramble(t, tx)
					if fails {
						return errors.New("no")
					}
					return nil
				})
				if (err != nil) != fails {
					t.Fatalf("Do gives %v", err)
				}
				if fails && trace(t, st) != before {
					t.Fatalf("a failed command left a trace: -before +after\n%s", gocmp.Diff(before, trace(t, st)))
				}
			},
			"publish": func(t *rapid.T) {
				v := st.Publish()
				views, dumps = append(views, v), append(dumps, dump(t, v))
				if len(views) > 4 {
					views, dumps = views[1:], dumps[1:]
				}
				if diff := gocmp.Diff(derivedLines(st.derived), derivedLines(v.derived)); diff != "" {
					t.Fatalf("the view derives something else:\n%s", diff)
				}
			},
			"scratch": func(t *rapid.T) {
				if len(views) == 0 {
					return
				}
				i := rapid.IntRange(0, len(views)-1).Draw(t, "view")
				own := views[i].Scratch()
				if !bytes.Equal(dump(t, own.Publish()), dumps[i]) {
					t.Fatalf("a scratch state does not start as its view is")
				}
				own.Begin(index+1, own.Clock)
				_ = own.Do("bob", func(tx *Tx) error { scramble(t, tx); return nil })
				if diff := gocmp.Diff(recount(own), derivedLines(own.derived)); diff != "" {
					t.Fatalf("a scratch state derives wrongly: -recount +kept\n%s", diff)
				}
			},
			"restore": func(t *rapid.T) {
				copied, err := Load(bytes.NewReader(dump(t, st.Publish())))
				if err != nil {
					t.Fatal(err)
				}
				if copied.Digest() != st.Digest() {
					t.Fatal("the digest is another after a snapshot")
				}
				if a, b := trace(t, st), trace(t, copied); a != b {
					t.Fatalf("the state is another after a snapshot:\n%s", gocmp.Diff(a, b))
				}
				st = copied
			},
			"": func(t *rapid.T) {
				if diff := gocmp.Diff(recount(st), derivedLines(st.derived)); diff != "" {
					t.Fatalf("-recount +kept\n%s", diff)
				}
				for i, v := range views {
					if !bytes.Equal(dump(t, v), dumps[i]) {
						t.Fatal("a view has changed after it was published")
					}
				}
			},
		})
	})
}

// TestDigestOrder: the order in which rows came does not matter, what is in
// them and when they were written does.
func TestDigestOrder(t *testing.T) {
	build := func(order []int, extra func(*State)) string {
		st := New()
		st.Begin(1, 1000)
		for _, i := range order {
			st.Orgs.Put(fleet.OrgName(rune('a'+i)), fleet.Org{Slots: i})
			st.Builds.Put(fleet.BuildID(i), fleet.Build{ID: fleet.BuildID(i), Spec: st.ShareSpec(testSpec)})
			if i == 2 {
				st.Digest() // in between, or not
			}
		}
		if extra != nil {
			extra(st)
		}
		return st.Digest()
	}
	want := build([]int{0, 1, 2, 3}, nil)
	for _, order := range [][]int{{3, 2, 1, 0}, {1, 3, 0, 2}, {0, 0, 1, 2, 3, 3}} {
		if got := build(order, nil); got != want {
			t.Errorf("order %v gives another digest", order)
		}
	}
	for name, extra := range map[string]func(*State){
		"a row more":      func(st *State) { st.Orgs.Put("z", fleet.Org{}) },
		"a row less":      func(st *State) { st.Orgs.Delete("a") },
		"another row":     func(st *State) { st.Orgs.Put("a", fleet.Org{Slots: 9}) },
		"another table":   func(st *State) { st.Orgs.Delete("a"); st.Gates.Put("a", fleet.Gate{}) },
		"another version": func(st *State) { st.Begin(2, 1000); st.Index = 1; st.Orgs.Put("a", fleet.Org{Slots: 0}) },
		"another clock":   func(st *State) { st.Clock++ },
		"another counter": func(st *State) { st.Entry++ },
	} {
		if build([]int{0, 1, 2, 3}, extra) == want {
			t.Errorf("%s leaves the digest as it was", name)
		}
	}
}

// TestEveryTable: a table that is in State is also in the digest, in Publish,
// in peek, in Scratch and in Dump, under one name.
func TestEveryTable(t *testing.T) {
	st := New()
	st.Begin(7, 1000)
	fields := reflect.TypeFor[tables]()
	var names []string
	for _, table := range st.all {
		names = append(names, table.tableName())
		raw := json.RawMessage(`{"k":5,"v":7,"r":{}}`)
		switch reflect.TypeOf(table).Elem().Field(0).Type {
		case reflect.TypeFor[Rows[fleet.EntryNo, string]]():
			raw = json.RawMessage(`{"k":5,"v":7,"r":"x"}`)
		}
		if table.load(newStrictReader(), raw) != nil {
			raw = json.RawMessage(`{"k":"x","v":7,"r":{}}`)
			if err := table.load(newStrictReader(), raw); err != nil {
				t.Fatalf("%s: %v", table.tableName(), err)
			}
		}
	}
	if len(names) != fields.NumField() {
		t.Errorf("State.all has %d tables, and there are %d: %v", len(names), fields.NumField(), names)
	}
	if sorted := slices.Sorted(slices.Values(names)); len(slices.Compact(sorted)) != len(names) {
		t.Errorf("two tables share a name: %v", names)
	}
	one := func(what string, v reflect.Value) {
		for i := range fields.NumField() {
			f := v.FieldByName(fields.Field(i).Name)
			switch {
			case !f.IsValid():
				t.Errorf("%s has no %s", what, fields.Field(i).Name)
			case f.Kind() == reflect.Struct && f.FieldByName("s").IsNil():
				t.Errorf("%s leaves out %s", what, fields.Field(i).Name)
			case f.Kind() == reflect.Struct:
				if n := f.MethodByName("Len").Call(nil)[0].Int(); n != 1 {
					t.Errorf("%s has %d rows of %s, not 1", what, n, fields.Field(i).Name)
				}
			}
		}
	}
	v := st.Publish()
	one("Publish", reflect.ValueOf(v).Elem())
	one("Publish, again", reflect.ValueOf(st.Publish()).Elem())
	one("peek", reflect.ValueOf(st.Peek()).Elem())
	one("Scratch", reflect.ValueOf(v.Scratch().Publish()).Elem())
	text := string(dump(t, v))
	var dumped []string
	for _, d := range v.tables() {
		dumped = append(dumped, d.name)
		if !strings.Contains(text, `{"t":"`+d.name+`",`) {
			t.Errorf("no row of %s is in the dump", d.name)
		}
	}
	if diff := gocmp.Diff(names, dumped); diff != "" {
		t.Errorf("-State.all +View.tables\n%s", diff)
	}
	whole := st.Digest()
	for i := range fields.NumField() {
		one := New()
		if loaded, err := Load(strings.NewReader(text)); err == nil {
			one = loaded
		} else {
			t.Fatal(err)
		}
		table := reflect.ValueOf(&one.tables).Elem().Field(i)
		k := reflect.New(table.MethodByName("Delete").Type().In(0)).Elem()
		if k.Kind() == reflect.String {
			k.SetString("x")
		} else {
			k.SetUint(5)
		}
		table.MethodByName("Delete").Call([]reflect.Value{k})
		if one.Digest() == whole {
			t.Errorf("%s is no part of the digest", fields.Field(i).Name)
		}
		if v, ok := st.VersionOf(names[i], k.String()); k.Kind() == reflect.String && (!ok || v != 7) {
			t.Errorf("version of a row of %s is %d, %v", names[i], v, ok)
		}
	}
	if v, ok := st.VersionOf("builds", "5"); !ok || v != 7 {
		t.Errorf("version of build 5 is %d, %v", v, ok)
	}
	for _, key := range []string{"6", "", "five", "-1", "99999999999999999999"} {
		if v, ok := st.VersionOf("builds", key); !ok || v != 0 {
			t.Errorf("version of build %q is %d, %v", key, v, ok)
		}
	}
	if _, ok := st.VersionOf("bilds", "5"); ok {
		t.Error("there is no table bilds")
	}
}

// TestKeysExpire: a key is remembered for KeyTTL on the state clock, also when
// nothing else is left and when the clock of a leader goes back.
func TestKeysExpire(t *testing.T) {
	st := New()
	start := fleet.Time(1_000_000)
	for i := range 300 {
		st.Begin(uint64(i+1), start.Add(fleet.Duration(i)*fleet.Minute))
		st.Remember(Remembered{ID: fmt.Sprintf("alice\x00%d", i), At: st.Clock}, false)
	}
	for _, row := range []struct {
		at   fleet.Duration
		left int
	}{
		{KeyTTL - 1, 300}, {KeyTTL, 299}, {0, 299}, {KeyTTL + 99*fleet.Minute, 200},
		{KeyTTL + 299*fleet.Minute - 1, 1}, {KeyTTL + 299*fleet.Minute, 0}, {3 * KeyTTL, 0},
	} {
		st.Begin(st.Index+1, start.Add(row.at))
		if st.Keys.Len() != row.left || st.KeyOrder.Len() != row.left {
			t.Errorf("after %s there are %d keys in an order of %d, not %d", row.at, st.Keys.Len(), st.KeyOrder.Len(), row.left)
		}
	}
	st.Remember(Remembered{ID: "alice\x00again", At: st.Clock}, false)
	if st.Keys.Len() != 1 || st.Key != 301 {
		t.Errorf("%d keys, counter %d", st.Keys.Len(), st.Key)
	}
}

// TestRecent: what a chat has had done is found for RepeatWindow on the state
// clock, the newest first, and then leaves the state; its key stays.
func TestRecent(t *testing.T) {
	st := New()
	start := fleet.Time(1_000_000)
	did := func(after fleet.Duration, id, args string, recent bool) {
		st.Begin(st.Index+1, start.Add(after))
		st.Remember(Remembered{ID: id, Args: args, At: st.Clock, Outcome: Outcome{Text: id}}, recent)
	}
	did(0, "alice\x001", "x", true)
	did(0, "ali\x001", "y", true)
	did(1, "alice\x002", "x", false) // not in a chat
	did(20*fleet.Second, "alice\x003", "x", true)
	did(30*fleet.Second, "alice\x004", "z", true)
	v := st.Publish()
	for _, row := range []struct {
		by   fleet.Principal
		args string
		at   fleet.Duration
		want string
	}{
		{"alice", "x", 30 * fleet.Second, "alice\x003"},
		{"alice", "x", RepeatWindow + 20*fleet.Second - 1, "alice\x003"},
		{"alice", "x", RepeatWindow + 20*fleet.Second, ""},
		{"alice", "z", RepeatWindow + 20*fleet.Second, "alice\x004"},
		{"ali", "y", RepeatWindow - 1, "ali\x001"},
		{"alice", "y", 0, ""},
		{"ali", "x", 0, ""},
	} {
		if got, ok := v.JustDone(row.by, row.args, start.Add(row.at)); got.ID != row.want || ok != (row.want != "") {
			t.Errorf("%s, %s after %s: %q, not %q", row.by, row.args, row.at, got.ID, row.want)
		}
	}
	for _, row := range []struct {
		at   fleet.Duration
		left int
	}{{RepeatWindow - 1, 4}, {RepeatWindow, 2}, {RepeatWindow + 20*fleet.Second, 1}, {0, 1}, {RepeatWindow + 30*fleet.Second, 0}} {
		st.Begin(st.Index+1, start.Add(row.at))
		if st.Recent.Len() != row.left || st.Keys.Len() != 5 {
			t.Errorf("after %s there are %d recent of %d keys, not %d of 5", row.at, st.Recent.Len(), st.Keys.Len(), row.left)
		}
	}
}

func TestClockNeverGoesBack(t *testing.T) {
	st := New()
	st.Begin(1, 5000)
	st.Begin(2, 3000)
	if st.Clock != 5000 || st.Index != 2 {
		t.Errorf("clock %d, index %d", st.Clock, st.Index)
	}
}

// TestViewQuestions: the small questions that views answer.
func TestViewQuestions(t *testing.T) {
	st := New()
	st.Begin(1, 1000)
	st.Gates.Put("a", fleet.Gate{Stage: fleet.GateDispatch, Org: "acme", Until: 1000})
	st.Gates.Put("b", fleet.Gate{Stage: fleet.GateDispatch, Org: "acme", Pool: "linux", Until: 1001})
	st.Pauses.Put(fleet.LoopPromote, fleet.Pause{Loop: fleet.LoopPromote, Until: 1000})
	st.Pauses.Put(fleet.LoopWatch, fleet.Pause{Loop: fleet.LoopWatch, Until: 1001})
	st.Attempts.Put(1, fleet.Attempt{ID: 1, Host: "h1"})
	st.Attempts.Put(2, fleet.Attempt{ID: 2, Host: "h2"})
	st.Attempts.Put(3, fleet.Attempt{ID: 3, Host: "h1", Outcome: fleet.Passed})
	st.Attempts.Put(4, fleet.Attempt{ID: 4, Host: "h1"})
	v := st.Publish()
	if _, ok := v.Gated(fleet.GateDispatch, "acme", "mac"); ok {
		t.Error("a gate whose time is over still stops")
	}
	if g, ok := v.Gated(fleet.GateDispatch, "acme", "linux"); !ok || g.Pool != "linux" {
		t.Errorf("gated gives %v, %v", g, ok)
	}
	if _, ok := v.Gated(fleet.GatePromotion, "acme", "linux"); ok {
		t.Error("a gate stops another stage")
	}
	if _, ok := v.Paused(fleet.LoopPromote); ok {
		t.Error("a pause whose time is over still holds")
	}
	if _, ok := v.Paused(fleet.LoopWatch); !ok {
		t.Error("watch is paused")
	}
	var ids []fleet.AttemptID
	for _, a := range v.LiveOn("h1") {
		ids = append(ids, a.ID)
	}
	if !slices.Equal(ids, []fleet.AttemptID{1, 4}) || v.UsedSlots("h1") != 2 || v.UsedSlots("h3") != 0 {
		t.Errorf("on h1 live %v, %d slots", ids, v.UsedSlots("h1"))
	}
	if v.SlotsOf("acme") != 0 || v.SlotsIn("acme", "linux") != 0 || v.DepthOf("linux") != 0 {
		t.Error("something is counted that is not there")
	}
}

// TestLanes: what is queued lies in lanes by org and pool, and what is promoted
// is counted for both.
func TestLanes(t *testing.T) {
	st := New()
	st.Begin(1, 1000)
	put := func(id fleet.BuildID, org fleet.OrgName, pool fleet.PoolName, stage fleet.Stage, priority int) {
		st.Builds.Put(id, fleet.Build{ID: id, Org: org, Pool: pool, Stage: stage, Priority: priority, Tasks: make([]fleet.Task, 2)})
	}
	put(1, "acme", "mac", fleet.StageQueued, 0)
	put(2, "acme", "linux", fleet.StageQueued, -fleet.MaxPriority)
	put(3, "acme", "linux", fleet.StageQueued, fleet.MaxPriority)
	put(4, "acme", "linux", fleet.StageRunnable, 0)
	put(5, "acme-2", "linux", fleet.StageQueued, 0)
	put(6, "acme", "linux", fleet.StageQueued, 0)
	put(6, "acme", "linux", fleet.StageFinished, 0)
	v := st.Publish()
	read := func(seq iter.Seq[Queued]) string {
		var ids []string
		for q := range seq {
			ids = append(ids, q.Build.String())
		}
		return strings.Join(ids, " ")
	}
	first := Queued{Org: "acme", Pool: "linux", Priority: fleet.MaxPriority, Build: 3}
	for _, c := range []struct{ what, got, want string }{
		{"lanes", read(v.Lanes()), "3 1 5"},
		{"lanes of acme", read(v.LanesOf("acme")), "3 1"},
		{"lanes of nobody", read(v.LanesOf("beta")), ""},
		{"behind", read(v.Behind(first)), "3 2"},
	} {
		if c.got != c.want {
			t.Errorf("%s: builds %q instead of %q", c.what, c.got, c.want)
		}
	}
	if a, b, c := v.SlotsOf("acme"), v.SlotsIn("acme", "linux"), v.SlotsIn("acme", "mac"); a != 2 || b != 2 || c != 0 {
		t.Errorf("acme uses %d slots, %d of linux, %d of mac", a, b, c)
	}
}
