package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"strings"
	"testing"

	"footplate/controlplane"
	"footplate/controlplane/catalog"
	"footplate/controlplane/client"
	"footplate/fleet"
)

// A node tells others where it is: an address that means something on its own
// machine alone is refused, with the flag that says it better.
func TestCheckAddrs(t *testing.T) {
	const http, raft = "10.0.0.1:4600", "10.0.0.1:4700"
	for _, row := range []struct {
		name string
		cfg  controlplane.Config
		tls  bool
		hint string // of the error; "" when there is none
	}{
		{"one address", controlplane.Config{Listen: http, Raft: raft}, false, ""},
		{"a name", controlplane.Config{Listen: "n1.example:4600", Raft: "n1.example:4700"}, false, ""},
		{"every IPv4 address", controlplane.Config{Listen: "0.0.0.0:4600", Raft: raft}, false, "--api http://HOST:4600"},
		{"every address", controlplane.Config{Listen: "[::]:4600", Raft: raft}, false, "--api http://HOST:4600"},
		{"no host", controlplane.Config{Listen: http, Raft: ":4700"}, false, "--raft-advertise HOST:4700"},
		{"every address, and both told", controlplane.Config{Listen: ":4600", API: "https://n1.example", Raft: ":4700", RaftAdvertise: raft}, false, ""},
		{"every address, with TLS", controlplane.Config{Listen: ":4600", Raft: raft}, true, "--api https://HOST:4600"},
		{"to join without TLS", controlplane.Config{Listen: http, Raft: raft, Join: []string{"http://n1:4600"}}, true, "--join https://n1:4600"},
		{"to join with TLS", controlplane.Config{Listen: http, Raft: raft, Join: []string{"https://n1:4600"}}, false, "--join http://n1:4600"},
		{"to begin and to join", controlplane.Config{Listen: http, Raft: raft, Bootstrap: true, Join: []string{"http://n1:4600"}}, false, "--bootstrap on the first node alone"},
		{"no port", controlplane.Config{Listen: "10.0.0.1", Raft: raft}, false, "HOST:PORT"},
	} {
		err := checkAddrs(row.cfg, row.tls)
		if row.hint == "" && err != nil {
			t.Errorf("%s: %v", row.name, err)
		}
		if e := fleet.AsError(err); row.hint != "" && (e == nil || e.Code != fleet.CodeInvalid || !strings.Contains(e.Hint, row.hint)) {
			t.Errorf("%s: %+v; want the hint %q", row.name, e, row.hint)
		}
	}
}

func TestAddressTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = net.Listen("tcp", l.Addr().String())
	if e := fleet.AsError(taken(err)); e.Code != fleet.CodeConflict || !strings.Contains(e.Msg, l.Addr().String()) {
		t.Errorf("%+v; want a conflict that names the address", e)
	}
}

// TestNewTokenEverywhere: a token that was acknowledged lets its bearer in at
// every node, also at one that has not applied it yet.
func TestNewTokenEverywhere(t *testing.T) {
	t.Parallel()
	p := startPlant(t, plantConfig{nodes: 3, slots: 1, fence: "10s", suspect: "5s"})
	at := func(token string, nodes ...*node) *client.Client {
		var addrs []string
		for _, n := range nodes {
			addrs = append(addrs, p.url(n))
		}
		c, err := client.New(client.Config{Addrs: addrs, Token: token, Via: "test/1"})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	leader := p.leader()
	admin := at(p.admin, leader)
	for i := range 30 {
		secret := fmt.Sprintf("fp_%032d", i)
		sum := sha256.Sum256([]byte(secret))
		args := catalog.AccessTokenCreateArgs{Name: fmt.Sprintf("t%d", i), Role: fleet.Viewer}
		args.SetHash(hex.EncodeToString(sum[:]))
		if _, err := admin.Do(t.Context(), catalog.AccessTokenCreate, &args, client.Options{}); err != nil {
			t.Fatal(err)
		}
		for _, n := range p.nodes {
			// Stale, so that the query itself does not wait for anything.
			if _, _, err := at(secret, n).Query(t.Context(), catalog.AccessWhoami, &struct{}{}, true); err != nil {
				t.Fatalf("token %d at node %s: %v", i, n.name, err)
			}
		}
	}
	if _, _, err := at("fp_wrong", p.nodes...).Query(t.Context(), catalog.AccessWhoami, &struct{}{}, true); fleet.CodeOf(err) != fleet.CodeDenied {
		t.Errorf("a wrong token: %v", err)
	}
}
