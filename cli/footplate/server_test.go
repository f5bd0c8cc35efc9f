package main

import (
	"net"
	"strings"
	"testing"

	"footplate/controlplane"
	"footplate/fleet"
)

// A node tells others where it is: an address that means something on its own
// machine alone is refused, with the flag that says it better.
func TestCheckAddrs(t *testing.T) {
	const http, raft = "10.0.0.1:4600", "10.0.0.1:4700"
	for _, row := range []struct {
		name string
		cfg  controlplane.Config
		hint string // of the error; "" when there is none
	}{
		{"one address", controlplane.Config{Listen: http, Raft: raft}, ""},
		{"a name", controlplane.Config{Listen: "n1.example:4600", Raft: "n1.example:4700"}, ""},
		{"every IPv4 address", controlplane.Config{Listen: "0.0.0.0:4600", Raft: raft}, "--api http://HOST:4600"},
		{"every address", controlplane.Config{Listen: "[::]:4600", Raft: raft}, "--api http://HOST:4600"},
		{"no host", controlplane.Config{Listen: http, Raft: ":4700"}, "--raft-advertise HOST:4700"},
		{"every address, and both told", controlplane.Config{Listen: ":4600", API: "https://n1.example", Raft: ":4700", RaftAdvertise: raft}, ""},
		{"no port", controlplane.Config{Listen: "10.0.0.1", Raft: raft}, "HOST:PORT"},
	} {
		err := checkAddrs(row.cfg)
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
