package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"footplate/fleet"
)

// lookEvery is how often the files are looked at.
const lookEvery = 10 * time.Second

// dialTimeout bounds the making of a connection.
const dialTimeout = 2 * time.Second

// warnBefore is how long before its end a certificate is warned of.
const warnBefore = 30 * 24 * time.Hour

// Keeper has the certificates of a process as the files have them now.
type Keeper struct {
	dir string
	log *slog.Logger
	now atomic.Pointer[loaded]
}

type loaded struct {
	pool *x509.CertPool
	own  *tls.Certificate // nil when the process has none of its own
	at   [3]time.Time     // of the files
}

// Open reads the certificates in dir: ca.pem, and cert.pem with key.pem. A
// client that has only the authority comes with no certificate of its own.
func Open(dir string, log *slog.Logger) (*Keeper, error) {
	k := &Keeper{dir: dir, log: log}
	l, err := k.read()
	if err != nil {
		return nil, err
	}
	k.now.Store(l)
	return k, nil
}

func (k *Keeper) path(name string) string { return filepath.Join(k.dir, name) }

func (k *Keeper) read() (*loaded, error) {
	l := &loaded{pool: x509.NewCertPool(), at: k.times()}
	raw, err := os.ReadFile(k.path(authorityCert))
	if err != nil {
		return nil, fleet.Invalidf("the cluster's authority cannot be read: %s", err).WithHint("footplate tls init makes it")
	}
	if !l.pool.AppendCertsFromPEM(raw) {
		return nil, fleet.Invalidf("%s has no certificate in PEM", k.path(authorityCert))
	}
	own, err := tls.LoadX509KeyPair(k.path(ownCert), k.path(ownKey))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return l, nil
	case err != nil:
		return nil, fleet.Invalidf("certificate %s and its key cannot be used: %s", k.path(ownCert), err)
	}
	l.own = &own
	return l, nil
}

func (k *Keeper) times() (at [3]time.Time) {
	for i, name := range []string{authorityCert, ownCert, ownKey} {
		if info, err := os.Stat(k.path(name)); err == nil {
			at[i] = info.ModTime()
		}
	}
	return at
}

// Run follows the files until ctx ends. Connections that are open stay as they
// are; new ones use what was read last. Files that cannot be used are told of,
// and what there was goes on being used.
func (k *Keeper) Run(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	var told [3]time.Time
	var warned time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if at := k.times(); at != k.now.Load().at && at != told {
			told = at
			if err := k.Reload(); err != nil {
				k.log.Error("new certificates cannot be used", "err", err)
			} else {
				k.log.Info("certificates were read anew", "ends", k.Ends())
			}
		}
		if ends := k.Ends(); !ends.IsZero() && time.Until(ends) < warnBefore && time.Since(warned) > 24*time.Hour {
			warned = time.Now()
			k.log.Warn("the certificate ends soon: footplate tls init makes a new one", "ends", ends)
		}
	}
}

// Reload reads the files at once.
func (k *Keeper) Reload() error {
	l, err := k.read()
	if err != nil {
		return err
	}
	k.now.Store(l)
	return nil
}

// Ends returns when the own certificate ends, zero when there is none.
func (k *Keeper) Ends() time.Time {
	own := k.now.Load().own
	if own == nil || own.Leaf == nil {
		return time.Time{}
	}
	return own.Leaf.NotAfter
}

var errNone = errors.New("this process has no certificate of its own")

func (k *Keeper) base() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			if own := k.now.Load().own; own != nil {
				return own, nil
			}
			return nil, errNone
		},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if own := k.now.Load().own; own != nil {
				return own, nil
			}
			return new(tls.Certificate), nil // none to show
		},
	}
}

// Server is for what people, agents and nodes call: whoever shows a certificate
// must show one of the cluster; people show none.
func (k *Keeper) Server() *tls.Config {
	c := k.base()
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		now := k.base()
		now.ClientAuth, now.ClientCAs = tls.VerifyClientCertIfGiven, k.now.Load().pool
		now.VerifyConnection = func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 {
				return nil
			}
			_, err := identify(s.VerifiedChains)
			return err
		}
		return now, nil
	}
	return c
}

// Dial calls a node of the cluster. The host that is called must be in the
// node's certificate. It fits http.Transport's DialTLSContext.
func (k *Keeper) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	c := k.base()
	c.ServerName, c.RootCAs = host, k.now.Load().pool
	c.VerifyConnection = func(s tls.ConnectionState) error { return isNode(s.VerifiedChains) }
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: dialTimeout}, Config: c}
	return d.DialContext(ctx, network, addr)
}

// Peer is for what only nodes call: both sides must be nodes.
func (k *Keeper) Peer() *tls.Config {
	c := k.base()
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		now := k.base()
		now.ClientAuth, now.ClientCAs = tls.RequireAndVerifyClientCert, k.now.Load().pool
		now.VerifyConnection = func(s tls.ConnectionState) error { return isNode(s.VerifiedChains) }
		return now, nil
	}
	return c
}

func isNode(chains [][]*x509.Certificate) error {
	id, err := identify(chains)
	if err == nil && id.Kind != Node {
		err = errors.New(id.String() + " is not a node")
	}
	return err
}
