package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"footplate/controlplane/catalog"
	"footplate/controlplane/op"
	"footplate/fleet"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden files")

// golden compares got with a file of testdata, which is printed for people.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *rewrite {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got); after -rewrite read the diff:\n%s", name, diff)
	}
}

var (
	zone  = time.FixedZone("CET", 3600)
	today = time.Date(2026, 11, 21, 4, 30, 0, 0, zone)
	noon  = fleet.TimeOf(time.Date(2026, 11, 21, 2, 12, 7, 0, time.UTC))
	past  = fleet.TimeOf(time.Date(2026, 11, 20, 22, 1, 2, 0, time.UTC))
)

func TestRender(t *testing.T) {
	hosts := []catalog.HostRow{
		{ID: "linux-1", Pool: "linux", State: "ready", Used: 1, Slots: 2, Heard: "1s200ms", Since: noon, Version: "0.1.0"},
		{ID: "linux-2", Pool: "linux", State: "cordoned", Slots: 2, Since: past, Why: "cordoned by alice: Plattenfehler \u00fcber Nacht \x1b[2Jgone\nforged"},
		{ID: "h", Pool: "\u65e5\u672c\u8a9e", State: "e\u0301tat", Slots: 2, Since: past},
	}
	rows := []struct {
		title  string
		op     *op.Op
		answer any
	}{
		{"a list", catalog.HostList, hosts},
		{"an empty list", catalog.HostList, []catalog.HostRow{}},
		{"a thing with a list", catalog.PoolShow, catalog.PoolDetail{
			PoolRow:      catalog.PoolRow{Name: "linux", Provider: "local", Size: 3, Ready: 2, Slots: 4, Used: 1, Max: 100},
			SuspectAfter: 10 * fleet.Second, FenceAfter: 30 * fleet.Second, Hosts: hosts[:2],
		}},
		{"a build", catalog.BuildShow, catalog.BuildDetail{
			BuildRow: catalog.BuildRow{ID: 7, Org: "acme", Pool: "linux", State: "running", Tasks: "0/2", Attempts: 1, Hosts: "linux-1", Submitted: noon, By: "alice"},
			Source:   fleet.Source{Repo: "/srv/git/app", Ref: "main"},
			List: []catalog.AttemptRow{
				{Build: 7, Task: "main-1", Try: 1, Attempt: 9, Host: "linux-1", Phase: "steps", Started: noon},
				{Build: 7, Task: "main-2", Phase: "waiting"},
			},
		}},
		{"an empty queue", catalog.QueueStatus, catalog.QueueDetail{Pools: []catalog.QueuePool{}, Gates: []catalog.GateRow{}}},
		{"a cluster", catalog.ClusterStatus, op.Cluster{
			Node: "n1", Role: "leader", Leader: "n1", Term: 3, Index: 120, Commit: 120,
			Nodes: []op.ClusterNode{{Node: "n1", Role: "leader", API: "http://127.0.0.1:4600", Applied: 120, Digest: "100:ab12", Version: "dev"}, {Node: "n2", Role: "unreachable", API: "http://127.0.0.1:4601", Note: "no answer for 3s"}},
		}},
		{"an entry", catalog.AuditShow, catalog.EntryDetail{
			Entry: fleet.Entry{
				N: 12, Index: 40, At: noon, By: "alice", Role: fleet.Operator, Via: "cli/dev", Op: "pool scale", Key: "k",
				Args: json.RawMessage(`{"pool":"linux","size":"+2"}`), Outcome: fleet.EntryDone, Text: "scaled pool \"linux\" from 4 to 6 hosts", Prev: "aa", Hash: "bb",
			}, Intact: true, Delivery: "sent, as line 3 of the channel",
		}},
		{"a sentence", catalog.BuildWhy, catalog.Why{Build: 7, State: "queued", Text: "build 7 is queued: it will be promoted in a moment"}},
		{"a proof", catalog.AuditVerify, catalog.Verified{Node: "n1", Entries: 3, Head: "ff", Text: "the record is whole: 3 entries, each fits the one before it"}},
	}
	var got strings.Builder
	for _, r := range rows {
		raw, err := json.Marshal(r.answer)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range formatsOf(r.op) {
			got.WriteString("## " + r.title + ": " + r.op.Name + " -o " + f + "\n")
			var out bytes.Buffer
			if err := (printer{&out, today}).answer(r.op, raw, format(f)); err != nil {
				t.Errorf("%s -o %s: %v", r.op.Name, f, err)
			}
			got.WriteString(out.String() + "\n")
		}
	}
	golden(t, "render.golden", got.String())
}

func TestAnswerOfAnotherVersion(t *testing.T) {
	var out bytes.Buffer
	err := printer{&out, today}.answer(catalog.PoolList, json.RawMessage(`[{"name":"linux","colour":"red"}]`), formatName)
	if err != nil || out.String() != "linux\n" {
		t.Errorf("a field of a later version: %q, %v; want it passed over", out.String(), err)
	}
	err = printer{&out, today}.answer(catalog.PoolList, json.RawMessage(`{"name":"linux"}`), formatTable)
	if fleet.CodeOf(err) != fleet.CodeInternal {
		t.Errorf("an object for a list: %v; want an internal error", err)
	}
}

func TestColumnsOf(t *testing.T) {
	for s, want := range map[string]int{"": 0, "abc": 3, "\u00fcber": 4, "\u65e5\u672c": 4, "e\u0301": 1, "\U0001f682": 2} {
		if got := columnsOf(s); got != want {
			t.Errorf("columnsOf(%q) = %d, want %d", s, got, want)
		}
	}
}

func TestCleanLeavesNothingForTheTerminal(t *testing.T) {
	for _, s := range []string{"\x1b[31m", "a\rb", "a\nb", "\u202ereversed", "\x00", "\u009b2J", "\xff\xfe"} {
		got := clean(s)
		if strings.ContainsFunc(got, unsafeRune) {
			t.Errorf("clean(%q) = %q", s, got)
		}
	}
	if got := clean("plain \u00fc \u2014 text"); got != "plain \u00fc \u2014 text" {
		t.Errorf("clean changed plain text: %q", got)
	}
}

// A number that may be missing is told from one that is 0.
func TestWhatMayBeMissing(t *testing.T) {
	type row struct {
		Name  string          `json:"name" col:"NAME" id:"true"`
		Exit  *int            `json:"exit" col:"EXIT"`
		Ended *fleet.Time     `json:"ended_at" col:"ENDED"`
		Heard *fleet.Duration `json:"heard" col:"HEARD"`
	}
	zero, heard := 0, fleet.Duration(0)
	o := op.Query(op.Spec{Name: "thing list"}, func(context.Context, op.Env, struct{}) ([]row, error) { return nil, nil })
	raw, err := json.Marshal([]row{{"a", &zero, &noon, &heard}, {Name: "b"}})
	if err != nil {
		t.Fatal(err)
	}
	for f, want := range map[format]string{
		formatTable: "NAME  EXIT  ENDED     HEARD\na     0     03:12:07  -\nb     -     -         -\n",
		formatCSV:   "name,exit,ended_at,heard\na,0,2026-11-21T02:12:07.000Z,0s\nb,,,\n",
	} {
		var out bytes.Buffer
		if err := (printer{&out, today}).answer(o, raw, f); err != nil {
			t.Errorf("-o %s: %v", f, err)
		}
		if diff := cmp.Diff(want, out.String()); diff != "" {
			t.Errorf("-o %s (-want +got):\n%s", f, diff)
		}
	}
}
