package agent

import (
	"testing"

	"footplate/controlplane/api"
)

// TestSyncsGoToTheLeader: directly, once it is known, and through another node
// when it is silent, for a while.
func TestSyncsGoToTheLeader(t *testing.T) {
	nodes := []api.NodeAddr{{Node: "n1", API: "http://1"}, {Node: "n2", API: "http://2"}, {Node: "n3", API: "http://3"}}
	k := newCaller(Config{Host: "h1"})
	for _, n := range nodes {
		k.lead(n.Node, nodes)
		if at := k.current(nodes); at != n.API {
			t.Fatalf("%s leads, and syncs go to %s", n.Node, at)
		}
	}
	k.turn("http://3", true)
	other := k.current(nodes)
	if other == "http://3" {
		t.Error("syncs go on to a node that was silent")
	}
	k.lead("n3", nodes)
	if at := k.current(nodes); at != other {
		t.Errorf("syncs go to %s; the leader was silent a moment ago, and %s answered", at, other)
	}
	k.turn(other, false)
	if at := k.current(nodes); at == other || at == "http://3" {
		t.Errorf("%s has no leader to pass syncs on to, and they go to %s", other, at)
	}
	k.shun = 0
	k.lead("n3", nodes)
	if at := k.current(nodes); at != "http://3" {
		t.Errorf("n3 leads, and was silent long ago: syncs go to %s", at)
	}
	if at := k.current(nodes[2:]); at != "http://3" {
		t.Errorf("there is only one node, and syncs go to %q", at)
	}
}
