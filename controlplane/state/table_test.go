package state

import (
	"cmp"
	"maps"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// pair is a row as a model knows it.
type pair[K key] struct {
	K K
	V uint64 // version
	R int
}

func contents[K key](t Rows[K, int]) []pair[K] {
	out := []pair[K]{}
	for k, r := range t.All() {
		out = append(out, pair[K]{k, t.Version(k), r})
	}
	return out
}

func model[K key](m map[K]pair[K]) []pair[K] {
	out := make([]pair[K], 0, len(m))
	for _, p := range m {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b pair[K]) int { return cmp.Compare(a.K, b.K) })
	return out
}

// checkTable compares t with what the model says, by every way of reading it.
func checkTable[K key](t *rapid.T, what string, rows Rows[K, int], want []pair[K], probe K) {
	t.Helper()
	if diff := gocmp.Diff(want, contents(rows)); diff != "" {
		t.Fatalf("%s: -model +table\n%s", what, diff)
	}
	if rows.Len() != len(want) {
		t.Fatalf("%s: Len is %d, not %d", what, rows.Len(), len(want))
	}
	back := []K{}
	for k := range rows.Backward() {
		back = append(back, k)
	}
	slices.Reverse(back)
	from, keys := []K{}, []K{}
	for k := range rows.From(probe) {
		from = append(from, k)
	}
	i := len(want)
	for n, p := range want {
		keys = append(keys, p.K)
		if p.K >= probe {
			i = min(i, n)
		}
	}
	if !slices.Equal(keys, back) {
		t.Fatalf("%s: backward gives %v, not %v", what, back, keys)
	}
	if !slices.Equal(keys[i:], from) {
		t.Fatalf("%s: from %v gives %v, not %v", what, probe, from, keys[i:])
	}
	r, ok := rows.Get(probe)
	n := slices.IndexFunc(want, func(p pair[K]) bool { return p.K == probe })
	if ok != (n >= 0) || ok && r != want[n].R {
		t.Fatalf("%s: Get(%v) gives %v, %v", what, probe, r, ok)
	}
}

// runModel drives a table with random writes, rollbacks and publications beside
// a map.
func runModel[K key](t *rapid.T, table *Table[K, int], j *journal, keys *rapid.Generator[K]) {
	now := make(map[K]pair[K])
	begin := maps.Clone(now) // at the start of the command
	var last Rows[K, int]
	var views []Rows[K, int]
	var wants [][]pair[K]
	t.Repeat(map[string]func(*rapid.T){
		"put": func(t *rapid.T) {
			k, r := keys.Draw(t, "key"), rapid.IntRange(0, 99).Draw(t, "row")
			table.Put(k, r)
			now[k] = pair[K]{k, j.index, r}
		},
		"delete": func(t *rapid.T) {
			k := keys.Draw(t, "key")
			table.Delete(k)
			delete(now, k)
		},
		"command": func(*rapid.T) {
			j.undo = j.undo[:0]
			j.index++
			begin = maps.Clone(now)
		},
		"undo": func(*rapid.T) {
			for i := len(j.undo) - 1; i >= 0; i-- {
				j.undo[i]()
			}
			j.undo = j.undo[:0]
			now = maps.Clone(begin)
		},
		"publish": func(*rapid.T) {
			last = table.publish(last)
			views, wants = append(views, last), append(wants, model(now))
		},
		"scratch": func(t *rapid.T) {
			if len(views) == 0 {
				return
			}
			// What is written to a copy of a view reaches neither the view nor the table.
			own := last.s.Copy()
			own.Set(keys.Draw(t, "key"), &rec[int]{row: -1})
			own.Delete(keys.Draw(t, "key"))
		},
		"digest": func(t *rapid.T) {
			var sum digest
			for k, p := range now {
				sum += table.hashRow(k, &rec[int]{version: p.V, row: p.R})
			}
			if got := table.digest(); got != sum {
				t.Fatalf("digest is %v; counted anew it is %v", got, sum)
			}
		},
		"": func(t *rapid.T) {
			probe := keys.Draw(t, "probe")
			checkTable(t, "table", table.Rows, model(now), probe)
			for i := range views {
				checkTable(t, "view", views[i], wants[i], probe)
			}
		},
	})
}

// TestTableModel: a table does what a map does, and a view of it stands still.
func TestTableModel(t *testing.T) {
	t.Run("tree", func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) {
			j := &journal{doing: true}
			runModel(t, named[string, int]("names", j), j, rapid.StringMatching(`[a-d]{0,2}`))
		})
	})
	t.Run("pages", func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) {
			j := &journal{doing: true}
			runModel(t, numbered[uint64, int]("numbers", j), j, rapid.SampledFrom([]uint64{
				0, 1, 2, 254, 255, 256, 257, 511, 512, 65534, 65535, 65536, 65537, 65792, 131071, 131072, 200000,
			}))
		})
	})
}

// TestRowsStop: whoever ranges over a table may stop.
func TestRowsStop(t *testing.T) {
	j := &journal{doing: true}
	numbers, names := numbered[uint64, int]("numbers", j), named[string, int]("names", j)
	for i := range 600 {
		numbers.Put(uint64(i), i)
		names.Put(string(rune('a'+i)), i)
	}
	for range 3 {
		for k, r := range numbers.From(300) {
			if k != 300 || r != 300 {
				t.Errorf("first from 300 is %d", k)
			}
			break
		}
		for k := range numbers.Backward() {
			if k != 599 {
				t.Errorf("last is %d", k)
			}
			break
		}
		for _, r := range names.All() {
			if r != 0 {
				t.Errorf("first name is of row %d", r)
			}
			break
		}
	}
}

// TestPagesEmptied: a table of numbers whose last row goes while it is ranged
// over must not panic, and takes rows again.
func TestPagesEmptied(t *testing.T) {
	table := numbered[uint64, int]("numbers", new(journal))
	for n := range uint64(700) {
		table.Put(n, 1)
	}
	for n := range table.All() {
		table.Delete(n)
	}
	for range table.Backward() {
		t.Error("there is a row in an empty table")
	}
	table.Put(3, 7)
	if got := contents(table.Rows); len(got) != 1 || got[0].K != 3 {
		t.Errorf("got %v", got)
	}
}
