package server

import (
	"context"
	"fmt"
	"net/http"

	"footplate/fleet"
)

// readyAfter: a node that has not heard a leader for longer than this is not
// ready.
const readyAfter = 5 * fleet.Second

// health is what /healthz and /readyz answer.
type health struct {
	Status string       `json:"status"` // ok or not ready
	Node   fleet.NodeID `json:"node"`
	Role   string       `json:"role"`
	Leader fleet.NodeID `json:"leader,omitempty"`
	Why    string       `json:"why,omitempty"`
	// Notes are what somebody should look at although requests are answered.
	Notes []string `json:"notes,omitempty"`
}

// healthz says that the process is up.
func (s *Server) healthz(w http.ResponseWriter, _ *http.Request) {
	leader, _ := s.cfg.Replica.Leader()
	_ = s.reply(w, health{Status: "ok", Node: s.cfg.Node, Role: s.cfg.Status().Role, Leader: leader})
}

// readyz says whether requests should be sent to this node.
func (s *Server) readyz(w http.ResponseWriter, r *http.Request) {
	leader, term := s.cfg.Replica.Leader()
	h := health{Status: "ok", Node: s.cfg.Node, Role: s.cfg.Status().Role, Leader: leader}
	switch contact := s.cfg.Replica.Contact(); {
	case h.Role == halted || leader == "" || leader == s.cfg.Node && term == 0:
		h.Why = s.noLeader(r.Context()).Msg
	case s.cfg.View().Cluster == "":
		h.Why = "the node has not got the cluster's state yet"
	case contact > readyAfter:
		h.Why = "the node has not heard its leader for " + contact.String()
	}
	h.Notes = s.notes(r.Context())
	status := http.StatusOK
	if h.Why != "" {
		h.Status, status = "not ready", http.StatusServiceUnavailable
	}
	w.Header().Set("Content-Type", "application/json")
	s.write(w, status, h)
}

// notes says what is wrong with this node that is no reason to send requests to
// another: where every disk is full, the tools must answer all the same.
func (s *Server) notes(ctx context.Context) []string {
	var out []string
	if s.cfg.ArchiveErr != nil && s.cfg.ArchiveErr() != nil {
		out = append(out, fmt.Sprintf("the audit archive cannot be written, and %d entries wait in memory: the log of node %s says why",
			archiveBehind(s.cfg.View(), s.cfg.Status().Archive), s.cfg.Node))
	}
	cluster := s.cfg.World.Cluster(ctx)
	if note := cluster.ClockNote; note != "" {
		out = append(out, note)
	}
	return append(out, cluster.Notes...)
}
