package postgres

import (
	"encoding/json"
	"testing"

	"footplate/controlplane/archive"
	"footplate/fleet"
)

// Each field, and all of them one after the other, is erased in the database as
// in the entry, and the chain is as whole as before.
func TestErase(t *testing.T) {
	for _, fields := range [][]string{{"by"}, {"args"}, {"reason"}, {"text"}, {"text", "args"}, {"by", "reason", "text", "args"}} {
		a, db := open(t)
		ctx := within(t)
		entries := chained("", 1, 30)
		entries[13].Args = json.RawMessage(`{"host":"é <b> &","n":1.50e3}`)
		for i := 13; i < len(entries); i++ {
			entries[i].Seal(entries[i-1].Hash)
		}
		ok(t, a.Put(ctx, entries))
		for _, n := range []int{14, 20, 21} { // approved, refused, approved
			for _, f := range fields {
				e := &entries[n-1]
				ok(t, e.Erase(f))
				ok(t, a.Erase(ctx, e))
				ok(t, a.Erase(ctx, e)) // again
			}
		}
		equal(t, stored(t, db, "c1"), entries)
		r, err := a.Verify(ctx, 0)
		if ok(t, err); r.Head != entries[29].Hash {
			t.Fatalf("report is %+v", r)
		}
	}
}

// An entry that is delivered again with more of it erased is erased; with less,
// it stays erased.
func TestPutErases(t *testing.T) {
	a, db := open(t)
	ctx := within(t)
	entries := chained("", 1, 30)
	ok(t, a.Put(ctx, entries))
	before := entries[6]
	ok(t, entries[6].Erase("reason"))
	ok(t, a.Put(ctx, entries[5:9]))
	equal(t, stored(t, db, "c1"), entries)
	ok(t, a.Put(ctx, []fleet.Entry{before}))
	equal(t, stored(t, db, "c1"), entries)
	_, err := a.Verify(ctx, 0)
	ok(t, err)
}

// The database takes nothing for an erasure that is none, not even from the
// role that may erase.
func TestEraseRefuses(t *testing.T) {
	a, db := open(t)
	ctx := within(t)
	entries := chained("", 1, 30)
	ok(t, entries[20].Erase("reason"))
	ok(t, a.Put(ctx, entries))
	for name, row := range map[string]struct {
		n     int
		erase string
		lie   func(*fleet.Entry)
	}{
		"another text beside it":     {7, "args", func(e *fleet.Entry) { e.Text = "x" }},
		"another reason beside it":   {7, "args", func(e *fleet.Entry) { e.Reason = "" }},
		"other arguments":            {7, "text", func(e *fleet.Entry) { e.Args = json.RawMessage(`{"for":"30m","hosts":["ci-17","ci-18"]}`) }},
		"another operation":          {7, "text", func(e *fleet.Entry) { e.Op = "host list" }},
		"another hash":               {7, "text", func(e *fleet.Entry) { e.Hash = e.Prev }},
		"another predecessor":        {7, "text", func(e *fleet.Entry) { e.Prev = e.Hash }},
		"another moment":             {7, "text", func(e *fleet.Entry) { e.At++ }},
		"a text that stays":          {7, "text", func(e *fleet.Entry) { e.Text = "a lie" }},
		"a leaf of something else":   {7, "text", func(e *fleet.Entry) { e.Erased["text"] = e.Hash }},
		"a salt of something else":   {7, "text", func(e *fleet.Entry) { e.Salts["by"] = e.Salts["args"] }},
		"no approval any more":       {7, "text", func(e *fleet.Entry) { e.ApprovedBy = nil }},
		"another approval":           {7, "text", func(e *fleet.Entry) { e.ApprovedBy[0] = "mallory" }},
		"an approval that stays":     {7, "by", func(e *fleet.Entry) { e.ApprovedBy = []fleet.Principal{"carol"} }},
		"a salt left":                {7, "text", func(e *fleet.Entry) { e.Salt = "00" }},
		"nothing erased":             {7, "", func(e *fleet.Entry) { e.Text = "x" }},
		"what was erased given back": {21, "", func(e *fleet.Entry) { *e = chained("", 1, 30)[20] }},
		"another leaf than before":   {21, "text", func(e *fleet.Entry) { e.Erased["reason"] = e.Hash }},
	} {
		t.Run(name, func(t *testing.T) {
			before := stored(t, db, "c1")
			e := stored(t, db, "c1")[row.n-1]
			if row.erase != "" {
				ok(t, e.Erase(row.erase))
			}
			row.lie(&e)
			body, err := archive.Encode(&e)
			ok(t, err)
			_, err = a.pool.Exec(ctx, "SELECT footplate.erase('c1', $1, $2)", row.n, string(body))
			if err == nil {
				t.Error("taken")
			}
			equal(t, stored(t, db, "c1"), before)
		})
	}
	e := chained("", 1, 40)[39]
	code(t, a.Erase(ctx, &e), fleet.CodeInvalid)
	ok(t, e.Erase("text"))
	code(t, a.Erase(ctx, &e), fleet.CodeNotFound)
	e = chained("x", 1, 7)[6]
	ok(t, e.Erase("text"))
	code(t, a.Erase(ctx, &e), fleet.CodeConflict)
}
