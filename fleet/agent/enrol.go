package agent

import (
	"context"
	"encoding/json"
	"net/http"
	"path/filepath"
	"time"

	"footplate/controlplane/api"
	"footplate/controlplane/certs"
	"footplate/fleet"
)

// renewEvery is how often the agent looks whether its certificate must be
// renewed, and tries again when that failed.
const renewEvery = 15 * time.Second

// enrol makes sure that the agent has a certificate, when it is to come with
// one. The key is made here and stays here. Asked again with the same key, the
// control plane answers again: an answer that was lost costs no token.
func (a *Agent) enrol(ctx context.Context) error {
	keep := a.cfg.TLS
	if keep == nil {
		return nil
	}
	own, ok := keep.Own()
	switch {
	case ok && own != certs.Identity{Kind: certs.Agent, Name: string(a.cfg.Host)}:
		return fleet.Invalidf("the certificate in %s is of %s, not of the agent of host %q", keep.Dir(), own, a.cfg.Host).
			WithHint("give the agent a folder of its own, with ca.pem in it")
	case ok && time.Now().Before(keep.Ends()):
		return nil
	case a.cfg.JoinToken == "" && a.cfg.Token != "" && !ok:
		return nil // it comes with the agents' shared token
	case a.cfg.JoinToken == "":
		why := "has no certificate"
		if ok {
			why = "has a certificate that ended on " + fleet.TimeOf(keep.Ends()).String()
		}
		return fleet.Invalidf("host %q %s", a.cfg.Host, why).
			WithHint("footplate access token create %s --role agent --once; then start the agent with --join-token-file", a.cfg.Host)
	}
	request, err := certs.Request(keep.Dir())
	if err != nil {
		return err
	}
	// Without the certificate that has ended, which no node would take.
	authority, err := certs.OpenAuthority(keep.Authority(), a.log)
	if err != nil {
		return err
	}
	call := newCaller(Config{Token: a.cfg.JoinToken, Version: a.cfg.Version, TLS: authority})
	call.cluster.Store(a.cfg.Cluster)
	defer call.close()
	return a.insist(ctx, func(addr string) (done bool, err error) {
		got, err := a.certificate(ctx, call, addr, "/v1/agent.enrol", request)
		switch fleet.CodeOf(err) {
		case "":
			a.log.Info("the host has enrolled", "api", addr, "ends", keep.Ends())
			if a.cfg.Cluster != "" {
				return true, nil
			}
			a.call.cluster.Store(got.Cluster)
			return true, replaceFile(filepath.Join(a.cfg.Dir, clusterFile), []byte(got.Cluster+"\n"))
		case fleet.CodeDenied, fleet.CodeInvalid, fleet.CodeNotFound, fleet.CodeConflict:
			return true, err
		}
		return false, err
	})
}

// certificate asks one node for a certificate, and keeps it.
func (a *Agent) certificate(ctx context.Context, call *caller, addr, path string, request []byte) (got api.Enrolled, err error) {
	ctx, cancel := context.WithTimeout(ctx, logsTimeout)
	defer cancel()
	body, err := json.Marshal(api.Enrol{Host: a.cfg.Host, Request: string(request)})
	if err != nil {
		return got, err
	}
	if err := call.send(ctx, call.logs, http.MethodPost, addr, path, body, &got); err != nil {
		return got, err
	}
	if err := certs.Save(a.cfg.TLS.Dir(), []byte(got.Certificate)); err != nil {
		return got, err
	}
	return got, a.cfg.TLS.Reload()
}

// renew keeps the certificate from ending, and from going back to an authority
// that is replaced, until work ends.
func (a *Agent) renew(work context.Context) {
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	for {
		if at := a.cfg.TLS.RenewAt(); !at.IsZero() && (time.Now().After(at) || a.cfg.TLS.Superseded()) {
			if err := a.renewOnce(work); err == nil {
				a.log.Info("the certificate is renewed", "ends", a.cfg.TLS.Ends())
			} else if work.Err() == nil {
				a.log.Warn("the certificate is not renewed yet", "ends", a.cfg.TLS.Ends(), "err", err)
			}
		}
		select {
		case <-work.Done():
			return
		case <-tick.C:
		}
	}
}

func (a *Agent) renewOnce(work context.Context) error {
	request, err := certs.Request(a.cfg.TLS.Dir())
	if err != nil {
		return err
	}
	for _, n := range *a.nodes.Load() {
		if n.API == "" {
			continue
		}
		if _, err = a.certificate(work, a.call, n.API, "/v1/agent.renew", request); err == nil {
			return nil
		}
	}
	return err
}
