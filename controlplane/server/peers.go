package server

import (
	"context"
	"fmt"
	"net/http"
	"strconv"

	"footplate/controlplane/api"
	"footplate/controlplane/certs"
	"footplate/fleet"
)

// peer lets nodes in. The question of a node that does not know the cluster's
// id yet names none, and that of one of another recovery epoch the other one:
// anonymous allows that.
func (s *Server) peer(r *http.Request, anonymous bool) error {
	if err := s.ours(r, !anonymous); err != nil && !(anonymous && s.sameID(r)) {
		return err
	}
	if id, ok := certs.Of(r.TLS); s.cfg.TLS != nil && (!ok || id.Kind != certs.Node) {
		return fleet.Deniedf("whoever asks has shown no node's certificate: only nodes may ask this").
			WithHint("footplate tls init makes it; footplate server --tls DIR")
	}
	c, err := s.caller(r)
	if err != nil {
		return err
	}
	if c.Role != fleet.System {
		return fleet.Deniedf("%s is not a node: only nodes may ask this", c.Principal)
	}
	return nil
}

func (s *Server) peerStatus(w http.ResponseWriter, r *http.Request) error {
	if err := s.peer(r, true); err != nil {
		return err
	}
	return s.reply(w, s.cfg.Status())
}

func (s *Server) peerOperations(w http.ResponseWriter, r *http.Request) error {
	if err := s.peer(r, false); err != nil {
		return err
	}
	return s.reply(w, api.Operations(s.cfg.Registry.Versions()))
}

// peerIndex is how far a node must have applied to have everything that was
// acknowledged before it asked.
type peerIndex struct {
	Index uint64 `json:"index"`
}

func (s *Server) peerIndex(w http.ResponseWriter, r *http.Request) error {
	if err := s.peer(r, false); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), leaderWait)
	defer cancel()
	if err := s.cfg.Replica.ReadIndex(ctx); err != nil {
		return err
	}
	return s.reply(w, peerIndex{s.cfg.View().Index})
}

func (s *Server) peerTestify(w http.ResponseWriter, r *http.Request) error {
	if err := s.peer(r, false); err != nil {
		return err
	}
	body, err := readBody(w, r, maxLogsBody)
	if err != nil {
		return err
	}
	var q api.Testify
	if err := decode(body, &q); err != nil {
		return err
	}
	return s.reply(w, api.Testimony{Node: s.cfg.Node, Testimonies: s.cfg.Testify(q)})
}

func (s *Server) peerJoin(w http.ResponseWriter, r *http.Request) error {
	if err := s.peer(r, false); err != nil {
		return err
	}
	body, err := readBody(w, r, maxBody)
	if err != nil {
		return err
	}
	var j api.Join
	if err := decode(body, &j); err != nil {
		return err
	}
	if id, ok := certs.Of(r.TLS); ok && id.Name != string(j.Node) && r.Header.Get(api.HeaderForwarded) == "" {
		return fleet.Deniedf("node %q may not join with the certificate of %s", j.Node, id).WithHint("give each node its own folder of footplate tls init")
	}
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
	defer cancel()
	// To join twice is to join once: no key is needed.
	err = s.atLeader(ctx, r, "", func(ctx context.Context) error { return s.cfg.Join(ctx, j) },
		func(ctx context.Context, at leaderAt) error {
			var none struct{}
			return s.ask(ctx, s.peers, r, at, "", j, &none)
		})
	if err != nil {
		return err
	}
	return s.reply(w, struct{}{})
}

// number reads a number from the URL; def when it is not there.
func number(r *http.Request, name string, def uint64) (uint64, error) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return def, nil
	}
	n, err := strconv.ParseUint(text, 10, 53)
	if err != nil {
		return 0, fleet.Invalidf("%s is %q; it must be a whole number, not negative", name, shorten(text))
	}
	return n, nil
}

// peerLogs answers with the chunks of an attempt that this node holds, from one
// number on, gaps left out.
func (s *Server) peerLogs(w http.ResponseWriter, r *http.Request) error {
	if err := s.peer(r, false); err != nil {
		return err
	}
	attempt, err := number(r, "attempt", 0)
	if err != nil {
		return err
	}
	from, err := number(r, "from", 0)
	if err != nil {
		return err
	}
	out := api.Chunks{Chunks: s.cfg.ReadLogs(fleet.AttemptID(attempt), int(from))}
	if out.Chunks == nil {
		out.Chunks = []api.Chunk{}
	}
	return s.reply(w, out)
}

// maxPeerEntries bounds the entries of one answer.
const maxPeerEntries = 10_000

func (s *Server) peerEntries(w http.ResponseWriter, r *http.Request) error {
	if err := s.peer(r, false); err != nil {
		return err
	}
	from, err := number(r, "from", 1)
	if err != nil {
		return err
	}
	to, err := number(r, "to", 0)
	if err != nil {
		return err
	}
	if from == 0 || to < from || to-from >= maxPeerEntries {
		return fleet.Invalidf("entries %d to %d cannot be asked for at once", from, to).WithHint("at most %d, from 1 on", maxPeerEntries)
	}
	entries, err := s.cfg.Entries(r.Context(), fleet.EntryNo(from), fleet.EntryNo(to))
	if err != nil {
		return err
	}
	if entries == nil {
		entries = []fleet.Entry{}
	}
	return s.reply(w, entries)
}

// takeLogs puts chunks of an agent's logs on this node's disk, and answers when
// they are there.
func (s *Server) takeLogs(w http.ResponseWriter, r *http.Request) error {
	q, err := said(s, w, r, maxLogsBody, func(q *api.Chunks) fleet.HostID { return q.Host })
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
	defer cancel()
	if err := s.cfg.PutLogs(ctx, q.Chunks); err != nil {
		if fleet.CodeOf(err) == fleet.CodeInternal {
			return fmt.Errorf("store log chunks of host %s: %w", q.Host, err)
		}
		return err
	}
	return s.reply(w, struct{}{})
}
