package op_test

import (
	"context"
	"encoding/json"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"

	"footplate/controlplane/op"
	"footplate/fleet"
)

func TestColumns(t *testing.T) {
	type inner struct {
		Used  int `json:"used"`
		Slots int `json:"slots_all"`
	}
	type base struct {
		Name fleet.HostID `json:"name" col:"HOST" id:"true"`
		Why  string       `json:"why,omitempty" col:"WHY" wide:"true"`
	}
	type row struct {
		base
		Text   string            `json:"text_of"`
		Until  fleet.Time        `json:"until,omitzero" col:"UNTIL"`
		Scope  []string          `json:"scope" col:"SCOPE"`
		Exit   *int              `json:"exit,omitempty" col:"EXIT"`
		Load   inner             `json:"load"`
		Hosts  []base            `json:"hosts"`
		Labels map[string]string `json:"labels"`
		Hidden string            `json:"-"`
	}
	type found struct {
		Name, Head         string
		Wide, ID, Optional bool
	}
	heads := func(cols []op.Column) (out []found) {
		for _, c := range cols {
			out = append(out, found{c.Name, c.Head, c.Wide, c.ID, c.Optional})
		}
		return out
	}
	want := []found{
		{Name: "name", Head: "HOST", ID: true}, {Name: "why", Head: "WHY", Wide: true, Optional: true}, {Name: "text_of"},
		{Name: "until", Head: "UNTIL", Optional: true}, {Name: "scope", Head: "SCOPE"}, {Name: "exit", Head: "EXIT", Optional: true},
		{Name: "load"}, {Name: "hosts"}, {Name: "labels"},
	}
	cols := op.Columns(reflect.TypeFor[row]())
	if diff := cmp.Diff(want, heads(cols)); diff != "" {
		t.Errorf("columns (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]found{want[0], want[3], want[4], want[5]}, heads(op.Shown(cols, false))); diff != "" {
		t.Errorf("columns of a table (-want +got):\n%s", diff)
	}
	if got := len(op.Shown(cols, true)); got != 5 {
		t.Errorf("a wide table has %d columns, want 5", got)
	}
	if diff := cmp.Diff([]found{{Name: "used", Head: "USED"}, {Name: "slots_all", Head: "SLOTS ALL"}}, heads(op.Columns(reflect.TypeFor[inner]()))); diff != "" {
		t.Errorf("columns of a row without heads (-want +got):\n%s", diff)
	}

	exit := 0
	r := reflect.ValueOf(row{base: base{Name: "linux-1"}, Scope: []string{"a", "b"}, Exit: &exit, Hosts: []base{{}}, Labels: map[string]string{}})
	var parts []string
	for _, p := range op.Parts(r) {
		s := p.Key + "=" + op.Plain(p.Value)
		if p.List {
			s = p.Key + ", a list"
		}
		parts = append(parts, s)
	}
	if diff := cmp.Diff([]string{"name=linux-1", "text of=", "scope=a,b", "exit=0", "load used=0", "load slots all=0", "hosts, a list", "labels="}, parts); diff != "" {
		t.Errorf("parts (-want +got):\n%s", diff)
	}
}

func TestSentence(t *testing.T) {
	type said struct {
		Text string `json:"text"`
	}
	if text, ok := op.Sentence(reflect.ValueOf(said{"all is well"})); !ok || text != "all is well" {
		t.Errorf("a sentence: %q, %v", text, ok)
	}
	type more struct{ said }
	if _, ok := op.Sentence(reflect.ValueOf(more{said{"of a part"}})); ok {
		t.Error("the sentence of an embedded row was taken for that of the whole")
	}
}

func TestRowsOfAnAnswer(t *testing.T) {
	type row struct {
		Name string `json:"name" id:"true"`
	}
	list := op.Query(op.Spec{Name: "thing list"}, func(context.Context, op.Env, struct{}) ([]row, error) { return nil, nil })
	one := op.Query(op.Spec{Name: "thing show"}, func(context.Context, op.Env, struct{}) (row, error) { return row{}, nil })
	for o, raw := range map[*op.Op]string{list: `[{"name":"a"},{"name":"b","of a later version":1}]`, one: `{"name":"a"}`} {
		rows, err := o.Rows(json.RawMessage(raw))
		if err != nil {
			t.Fatal(err)
		}
		names, ok := o.Names(rows)
		if want := []string{"a", "b"}[:len(rows)]; !ok || !cmp.Equal(want, names) {
			t.Errorf("names of %s: %q, %v; want %q", o.Name, names, ok, want)
		}
		if _, err := o.Rows(json.RawMessage(`"a word"`)); fleet.CodeOf(err) != fleet.CodeInternal {
			t.Errorf("rows of %s from a word: %v; want an internal error", o.Name, err)
		}
	}
}
