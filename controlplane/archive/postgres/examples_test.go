package postgres

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"footplate/fleet"
)

// Each example is a question and one line, which the reader may run, and which
// answers the question.
func TestExamples(t *testing.T) {
	a, db := open(t)
	ctx := within(t)
	nine := fleet.TimeOf(time.Date(2026, 11, 21, 9, 0, 0, 0, time.UTC))
	now := fleet.TimeOf(time.Now())
	var entries []fleet.Entry
	prev := ""
	for _, e := range []fleet.Entry{
		{At: nine.Add(1000), By: "alice", Role: fleet.Operator, Op: "host drain", Args: json.RawMessage(`{"hosts":["ci-17","ci-18"]}`), Incident: "INC-7", Reason: "panics", Text: "ci-17 and ci-18 drain"},
		{At: nine.Add(2000), By: "loop:provision", Role: fleet.System, Op: "host end", Args: json.RawMessage(`{"hosts":["ci-17"]}`), Text: "ci-17 is ended"},
		{At: nine.Add(3000), By: "bob", Role: fleet.Viewer, Op: "pool pause", Args: json.RawMessage(`{"pool":"linux"}`), Outcome: fleet.EntryRefused, Code: fleet.CodeDenied, Count: 3, Text: "bob may not"},
		{At: nine.Add(4000), By: "carol", Role: fleet.Operator, Op: "pool scale", Args: json.RawMessage(`{"pool":"linux","size":"+2"}`), Incident: "INC-7", Reason: "queue", Text: "pool linux scaled to 8"},
		{At: nine.Add(5000), By: "loop:provision", Role: fleet.System, Op: "host launch", Args: json.RawMessage(`{"pool":"linux"}`), Text: "2 hosts launched"},
		{At: now, By: "alice", Role: fleet.Operator, Op: "pool pause", Args: json.RawMessage(`{"pool":"mac"}`), Text: "pool mac is paused"},
		{At: now, By: "dave", Role: fleet.Viewer, Op: "pool pause", Outcome: fleet.EntryRefused, Code: fleet.CodeDenied, Text: "dave may not"},
		{At: now, By: "loop:watch", Role: fleet.System, Op: "host suspect", Args: json.RawMessage(`{"hosts":["ci-18"]}`), Text: "ci-18 is silent"},
	} {
		e.N = fleet.EntryNo(len(entries) + 1)
		if e.Outcome == "" {
			e.Outcome = fleet.EntryDone
		}
		e.Seal(prev)
		prev = e.Hash
		entries = append(entries, e)
	}
	ok(t, a.Put(ctx, entries))
	got := make(map[string][]string) // the last column of each row
	u := server.URL(db) + "&options=-crole%3Dfootplate_reader%20-ctimezone%3DUTC"
	conn, err := pgx.Connect(ctx, u)
	ok(t, err)
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	for _, part := range strings.Split(strings.TrimSpace(Examples()), "\n\n") {
		lines := strings.Split(part, "\n")
		question, isQuestion := strings.CutPrefix(lines[0], "-- ")
		if len(lines) != 2 || !isQuestion || !strings.HasSuffix(question, "?") || !strings.HasSuffix(lines[1], ";") {
			t.Fatalf("not a question and a line:\n%s", part)
		}
		rows, err := conn.Query(ctx, lines[1])
		ok(t, err)
		list, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (string, error) {
			values, err := r.Values()
			if err != nil {
				return "", err
			}
			b, err := json.Marshal(values[1:])
			return string(b), err
		})
		if err != nil {
			t.Fatalf("%s: %v", lines[1], err)
		}
		got[question] = list
	}
	weeks := got["How many operations did each person make, week by week?"]
	if len(weeks) < 4 {
		t.Errorf("weeks: %v", weeks)
	}
	delete(got, "How many operations did each person make, week by week?")
	delete(got, "What was refused in the last week, and to whom?") // as old as the machine's clock says
	want := map[string][]string{
		"Who did what today?": {`["alice","pool pause","done","pool mac is paused"]`, `["dave","pool pause","refused","dave may not"]`},
		"What did the automation do while we worked on this incident?": {`["loop:provision","host end","ci-17 is ended"]`},
		"What is the timeline of this incident?":                       {`["alice","host drain","ci-17 and ci-18 drain","panics"]`, `["loop:provision","host end","ci-17 is ended",""]`, `["carol","pool scale","pool linux scaled to 8","queue"]`},
		"Which incidents were there, and who worked on them?":          {`["2026-11-21T09:00:01Z","2026-11-21T09:00:04Z",["alice","carol"]]`},
		"What happened to this host?":                                  {`["alice","host drain","ci-17 and ci-18 drain"]`, `["loop:provision","host end","ci-17 is ended"]`},
		"Who scaled this pool, to what, and why?":                      {`["carol","+2","queue"]`},
		"What was done between two moments, by anybody?":               {`["alice","host drain","ci-17 and ci-18 drain"]`, `["loop:provision","host end","ci-17 is ended"]`, `["bob","pool pause","bob may not"]`, `["carol","pool scale","pool linux scaled to 8"]`, `["loop:provision","host launch","2 hosts launched"]`},
	}
	if late := time.Now().UTC(); late.Year() == 2026 && late.YearDay() == 325 { // the day of the fixture is today
		delete(want, "Who did what today?")
		delete(got, "Who did what today?")
	}
	if now := time.Now(); now.After(nine.Std()) && now.Before(nine.Std().Add(time.Hour)) {
		delete(want, "What was done between two moments, by anybody?")
		delete(got, "What was done between two moments, by anybody?")
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	var refused []string
	rows, err := conn.Query(ctx, "SELECT by || ' ' || times FROM footplate.refusals")
	ok(t, err)
	refused, err = pgx.CollectRows(rows, pgx.RowTo[string])
	ok(t, err)
	if d := cmp.Diff([]string{"bob 4", "dave 1"}, refused); d != "" {
		t.Error(d)
	}
}
