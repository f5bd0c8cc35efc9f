package catalog

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"footplate/fleet"

	"github.com/google/go-cmp/cmp"
)

// TestMoment: a moment is read in every form that the help names, and nothing
// else is.
func TestMoment(t *testing.T) {
	now := fleet.TimeOf(time.Date(2026, 11, 21, 3, 0, 0, 0, time.UTC))
	for _, row := range []struct{ text, want string }{
		{"2h ago", "2026-11-21T01:00:00.000Z"},
		{"2h", "2026-11-21T01:00:00.000Z"},
		{"1d2h ago", "2026-11-20T01:00:00.000Z"},
		{"0", "2026-11-21T03:00:00.000Z"},
		{"2026-11-20", "2026-11-20T00:00:00.000Z"},
		{"2026-11-20 22:15", "2026-11-20T22:15:00.000Z"},
		{"2026-11-20T22:15:01", "2026-11-20T22:15:01.000Z"},
		{"2026-11-20T22:15:01+02:00", "2026-11-20T20:15:01.000Z"},
		{"", ""},
		{"900000d ago", "1970-01-01T00:00:00.001Z"},
	} {
		var m Moment
		if err := m.UnmarshalText([]byte(row.text)); err != nil {
			t.Errorf("%q: %v", row.text, err)
		} else if got := m.Of(now).String(); got != row.want {
			t.Errorf("%q is %s, not %s", row.text, got, row.want)
		}
	}
	for _, bad := range []string{"yesterday", "-2h", "2h  ago", "ago", " 2h", "2026-13-01", "99999999999999d", "2026-11-20 25:00"} {
		var m Moment
		if err := m.UnmarshalText([]byte(bad)); fleet.CodeOf(err) != fleet.CodeInvalid {
			t.Errorf("%q is taken, or fails with %v", bad, err)
		}
	}
}

// TestCSV: what any reader of CSV reads is the export, however it comes in
// pieces, and no cell is a formula.
func TestCSV(t *testing.T) {
	entries := []fleet.Entry{
		{N: 1, At: 1000, By: "alice", Op: "pool scale", Args: json.RawMessage(`{"size":"+2","text":"a,b"}`), Outcome: fleet.EntryDone, Text: "say \"hi\",\nthen go"},
		{N: 2, At: 2000, By: "=cmd|' /C calc'!A0", ApprovedBy: []fleet.Principal{"bob", "carol"}, Reason: "+1", Text: "-1\r\n", Incident: "@x", Op: "\tx", Count: 3},
		{N: 3, At: 3000, By: "bob", Reason: "secret", Text: "gone"},
	}
	if err := entries[2].Erase("reason"); err != nil {
		t.Fatal(err)
	}
	var lines bytes.Buffer
	fmt.Fprintln(&lines, `{"format":"x"}`)
	for _, e := range entries {
		b, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		lines.Write(append(b, '\n'))
	}
	fmt.Fprintln(&lines, `{"count":3}`)
	for _, piece := range []int{1, 7, lines.Len()} {
		var out bytes.Buffer
		c := csvEntries{w: &out}
		for b := lines.Bytes(); len(b) > 0; {
			n := min(piece, len(b))
			if _, err := c.Write(b[:n]); err != nil {
				t.Fatal(err)
			}
			b = b[n:]
		}
		if err := c.close(); err != nil {
			t.Fatal(err)
		}
		if strings.Count(out.String(), "\r\n") != 5 { // of which one is in a cell
			t.Errorf("the lines do not end as RFC 4180 has it: %q", out.String())
		}
		r := csv.NewReader(&out)
		got, err := r.ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		want := [][]string{
			csvNames[:],
			{"1", "1970-01-01T00:00:01.000Z", "alice", "", "", "", "pool scale", `{"size":"+2","text":"a,b"}`, "", "", "", "", "done", "", "say \"hi\",\nthen go", "", "", "", ""},
			// encoding/csv reads \r\n in a cell as \n.
			{"2", "1970-01-01T00:00:02.000Z", "'=cmd|' /C calc'!A0", "bob carol", "", "", "'\tx", "", "'+1", "'@x", "", "", "", "", "'-1\n", "3", "", "", ""},
			{"3", "1970-01-01T00:00:03.000Z", "bob", "", "", "", "", "", "", "", "", "", "", "", "gone", "", "reason", "", ""},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatal(diff)
		}
	}
	cut := csvEntries{w: &bytes.Buffer{}}
	if _, err := cut.Write([]byte("{\"format\"")); err != nil || cut.close() == nil {
		t.Error("an export that is cut off is taken for whole")
	}
}
