package archive

import (
	"encoding/json"
	"testing"

	"footplate/fleet"
)

// An erasure is carried out once, whatever of it was done before, and never on
// an entry that is not intact: that would make the archive refuse all others.
func TestErase(t *testing.T) {
	ctx := within(t)
	entries := chained("", 1, 20)
	bad := entries[11]
	bad.Text = "edited"
	a, _ := start(t, t.TempDir())
	a.Append(append(append([]fleet.Entry(nil), entries[:11]...), bad))
	for _, row := range []struct {
		n       fleet.EntryNo
		fields  []string
		changed bool
		code    fleet.Code
	}{
		{3, []string{"text"}, true, ""},
		{3, []string{"text"}, false, ""},
		{3, []string{"by", "text"}, true, ""},
		{11, []string{"args", "reason", "text", "by"}, true, ""},
		{12, []string{"text"}, false, fleet.CodeConflict},
		{13, []string{"text"}, false, fleet.CodeNotFound},
		{4, []string{"hash"}, false, fleet.CodeInvalid},
	} {
		changed, err := a.Erase(ctx, row.n, row.fields)
		if changed != row.changed || fleet.CodeOf(err) != row.code {
			t.Errorf("erase %v of %d: %v, %v", row.fields, row.n, changed, err)
		}
	}
	e, err := a.Get(ctx, 3)
	ok(t, err)
	if e.Text != "" || e.By != "" || e.Op != entries[2].Op || !e.Intact() || e.Hash != entries[2].Hash {
		t.Errorf("what is left is %+v", e)
	}
	// What comes again from the log does not bring it back, and more is taken.
	a.Append(entries[2:3:3])
	if e, err = a.Get(ctx, 3); err != nil || e.Text != "" {
		t.Errorf("it is back: %+v, %v", e, err)
	}
	ok(t, a.Err())
}

func TestAbout(t *testing.T) {
	e := fleet.Entry{
		Args: json.RawMessage(`{"pool":"linux","hosts":["linux-4","linux-5"],"build":12,"count":9}`),
		Text: `host linux-4 drained. build 12 ended`,
	}
	for _, row := range []struct {
		object string
		want   bool
	}{
		{"linux", true}, {"linux-4", true}, {"linux-", false}, {"inux", false}, {"12", true}, {"1", false},
		{"build 12", true}, {"build 9", false}, {"host linux-5", true}, {"host linux", false}, {"pool linux", true}, {"drained", true}, {"org linux", false},
	} {
		if got := about(&e, row.object); got != row.want {
			t.Errorf("%q: %v", row.object, got)
		}
	}
}
