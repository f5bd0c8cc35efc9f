package server

import (
	"context"
	"net/http"
	"strings"

	"footplate/controlplane/api"
	"footplate/controlplane/catalog"
	"footplate/controlplane/certs"
	"footplate/controlplane/op"
	"footplate/fleet"
)

// agentCaller says which agent a request comes from: by the certificate that it
// shows, by the word of a node that has seen one, or by a token of the agents.
func (s *Server) agentCaller(r *http.Request) (Caller, error) {
	id, ok := certs.Of(r.TLS)
	passedOn, _ := strings.CutPrefix(r.Header.Get(api.HeaderFor), "agent:")
	switch {
	case s.cfg.TLS == nil || !ok:
	case id.Kind == certs.Agent:
		return s.enrolled(fleet.HostID(id.Name), certs.KeyOf(r.TLS))
	case passedOn != "":
		if c, err := s.door.Authenticate(secretOf(r)); err != nil || c.Role != fleet.System {
			return Caller{}, fleet.Deniedf("node %q does not come with the nodes' secret", id.Name)
		}
		return s.enrolled(fleet.HostID(passedOn), "")
	}
	c, err := s.caller(r)
	if err != nil {
		return Caller{}, err
	}
	if c.Role != fleet.Agent {
		return Caller{}, fleet.Deniedf("%s is not an agent: only agents may say this", c.Principal)
	}
	return c, nil
}

// enrolled returns the agent of a host that has enrolled with a key; with any,
// when another node has compared it.
func (s *Server) enrolled(host fleet.HostID, key string) (Caller, error) {
	v := s.cfg.View()
	if v.Cluster == "" {
		return Caller{}, fleet.Unavailablef("node %q has not been told of the agents yet", s.cfg.Node).WithHint("try again in a few seconds")
	}
	who := fleet.AgentOf(host)
	g, ok := v.Grants.Get(who)
	if !ok || g.Role != fleet.Agent || key != "" && g.Key != key {
		return Caller{}, fleet.Deniedf("the certificate of %s is void: it was revoked, or the host was removed or has enrolled anew", who).
			WithHint("remove cert.pem and key.pem of its --tls folder, and let it enrol: footplate access token create %s --role agent --once", host)
	}
	return Caller{Caller: op.Caller{Principal: who, Role: fleet.Agent}}, nil
}

// speaksFor refuses an agent that speaks for another host than its own. Whoever
// comes with the agents' shared token may speak for any host that has not
// enrolled.
func (s *Server) speaksFor(c Caller, host fleet.HostID) error {
	who := fleet.AgentOf(host)
	if c.token == "" {
		if c.Principal != who {
			return fleet.Deniedf("the certificate of %s is not for host %q", c.Principal, shorten(string(host))).WithHint("start the agent with --host %s, or let it enrol anew", strings.TrimPrefix(string(c.Principal), "agent:"))
		}
		return nil
	}
	if s.cfg.TLS == nil {
		return nil
	}
	if _, ok := s.cfg.View().Grants.Get(who); ok {
		return fleet.Deniedf("host %q has enrolled, and comes without its certificate", host).
			WithHint("start its agent with --tls, or void the certificate: footplate access revoke %s", who)
	}
	return nil
}

// readEnrol reads a request for a certificate, and returns the hash of its key.
func (s *Server) readEnrol(w http.ResponseWriter, r *http.Request) (q api.Enrol, key string, err error) {
	if s.cfg.TLS == nil {
		return q, "", fleet.Invalidf("node %q has no TLS, so no host can enrol: nothing was done", s.cfg.Node).
			WithHint("start the nodes with --tls DIR, or give the agent a token of role agent: --token-file")
	}
	body, err := readBody(w, r, maxBody)
	if err != nil {
		return q, "", err
	}
	if err := decode(body, &q); err != nil {
		return q, "", err
	}
	if err := fleet.CheckName("host", string(q.Host)); err != nil {
		return q, "", err
	}
	key, err = certs.RequestKey([]byte(q.Request), string(q.Host))
	return q, key, err
}

// enrol gives a host's agent its first certificate, for a token that is good
// once. Who has no such token leaves no entry, only a line in the node's log.
func (s *Server) enrol(w http.ResponseWriter, r *http.Request) error {
	if err := s.ours(r, false); err != nil {
		return err
	}
	q, key, err := s.readEnrol(w, r)
	if err != nil {
		return err
	}
	hash := hashSecret(secretOf(r))
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
	defer cancel()
	var reply api.Enrolled
	err = s.atLeader(ctx, r, "", func(ctx context.Context) error {
		if err := s.cfg.Replica.ReadIndex(ctx); err != nil {
			return err
		}
		t, ok := s.cfg.View().Tokens.Get(hash)
		if !ok {
			_, err := s.door.stranger("the token is not known")
			return fleet.AsError(err).WithHint("make one: footplate access token create %s --role agent --once", q.Host)
		}
		if no := t.MayEnrol(q.Host, key, s.cfg.Now()); no != nil {
			return no
		}
		if err := s.propose(ctx, catalog.HostEnrol, q.Host, "agent", catalog.HostEnrolArgs{Host: q.Host, Token: hash, Key: key}); err != nil {
			return err
		}
		return s.sign(q, &reply)
	}, func(ctx context.Context, at leaderAt) error {
		reply = api.Enrolled{}
		return s.ask(ctx, s.agentLane, r, at, "", q, &reply)
	})
	// To ask again with the same key is to ask once, so nothing is in doubt.
	if e := fleet.AsError(err); e != nil && e.Code == fleet.CodeUnknown {
		err = fleet.Unavailablef("%s", e.Msg).WithHint("ask again with the same key")
	}
	if err != nil {
		return err
	}
	return s.reply(w, reply)
}

// renew gives an agent a new certificate for the key of the one that it shows.
func (s *Server) renew(w http.ResponseWriter, r *http.Request) error {
	c, err := s.agent(r)
	if err != nil {
		return err
	}
	q, key, err := s.readEnrol(w, r)
	if err != nil {
		return err
	}
	if c.token != "" {
		return fleet.Deniedf("the agent of host %q has no certificate to renew", q.Host).
			WithHint("let it enrol: footplate access token create %s --role agent --once", q.Host)
	}
	if err := s.speaksFor(c, q.Host); err != nil {
		return err
	}
	if key != certs.KeyOf(r.TLS) {
		return fleet.Deniedf("a certificate is renewed for the same key alone").WithHint("for another, let host %s enrol anew", q.Host)
	}
	var reply api.Enrolled
	if err := s.sign(q, &reply); err != nil {
		return err
	}
	s.log.Info("the certificate of an agent is renewed", "host", q.Host)
	return s.reply(w, reply)
}

func (s *Server) sign(q api.Enrol, into *api.Enrolled) error {
	cert, err := s.cfg.TLS.Sign([]byte(q.Request), string(q.Host))
	if err != nil {
		return err
	}
	*into = api.Enrolled{Cluster: s.cfg.Cluster, Certificate: string(cert)}
	return nil
}
