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
