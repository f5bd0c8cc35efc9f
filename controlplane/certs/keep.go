package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
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
	ca  string // the file of the authority, of a client that has nothing else
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

// OpenAuthority reads the authority of a cluster alone, for a client that calls
// without a certificate: path is ca.pem, or a folder with it.
func OpenAuthority(path string, log *slog.Logger) (*Keeper, error) {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		path = filepath.Join(path, authorityCert)
	}
	k := &Keeper{ca: path, log: log}
	l, err := k.read()
	if err != nil {
		return nil, err
	}
	k.now.Store(l)
	return k, nil
}

// Dir returns the folder of the certificates.
func (k *Keeper) Dir() string { return k.dir }

// Authority returns the file with the authority's certificate.
func (k *Keeper) Authority() string {
	if k.ca != "" {
		return k.ca
	}
	return k.path(authorityCert)
}

// Own returns whom the own certificate names; ok is false when there is none.
func (k *Keeper) Own() (id Identity, ok bool) {
	own := k.now.Load().own
	if own == nil || own.Leaf == nil {
		return Identity{}, false
	}
	id, err := named(own.Leaf)
	return id, err == nil
}

// Sign is Signer's, with the agents' authority as the files have it now.
func (k *Keeper) Sign(request []byte, host string) ([]byte, error) {
	s, err := LoadSigner(k.dir)
	if err != nil {
		return nil, err
	}
	return s.Sign(request, host, time.Now())
}

func (k *Keeper) path(name string) string { return filepath.Join(k.dir, name) }

func (k *Keeper) read() (*loaded, error) {
	l := &loaded{pool: x509.NewCertPool(), at: k.times()}
	raw, err := os.ReadFile(k.Authority())
	if err != nil {
		return nil, fleet.Invalidf("the cluster's authority cannot be read: %s", err).WithHint("footplate tls init makes it")
	}
	if !l.pool.AppendCertsFromPEM(raw) {
		return nil, fleet.Invalidf("%s has no certificate in PEM", k.Authority()).WithHint("it is ca.pem of footplate tls init")
	}
	if k.ca != "" {
		return l, nil
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
	files := []string{k.Authority()}
	if k.ca == "" {
		files = append(files, k.path(ownCert), k.path(ownKey))
	}
	for i, name := range files {
		if info, err := os.Stat(name); err == nil {
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
		// An agent renews its own long before.
		if ends := k.Ends(); !ends.IsZero() && time.Until(ends) < warnBefore && time.Now().After(k.RenewAt().Add(24*time.Hour)) &&
			time.Since(warned) > 24*time.Hour {
			warned = time.Now()
			k.log.Warn("the certificate ends soon: footplate tls init makes a node's anew", "ends", ends)
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

// RenewAt returns when a third of the own certificate's life is left, zero when
// there is none: then it is time for another.
func (k *Keeper) RenewAt() time.Time {
	own := k.now.Load().own
	if own == nil || own.Leaf == nil {
		return time.Time{}
	}
	return own.Leaf.NotAfter.Add(-own.Leaf.NotAfter.Sub(own.Leaf.NotBefore) / 3)
}

// Superseded reports whether the own certificate does not go back to the first
// authority in the file: the cluster changes its authority, and it is time for
// another certificate.
func (k *Keeper) Superseded() bool {
	own := k.now.Load().own
	if own == nil || own.Leaf == nil {
		return false
	}
	raw, err := os.ReadFile(k.Authority())
	if err != nil {
		return false
	}
	first, _ := pem.Decode(raw)
	if first == nil {
		return false
	}
	ca, err := x509.ParseCertificate(first.Bytes)
	if err != nil {
		return false
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(ca)
	for _, der := range own.Certificate[1:] {
		if c, err := x509.ParseCertificate(der); err == nil {
			between.AddCert(c)
		}
	}
	_, err = own.Leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: own.Leaf.NotBefore.Add(early), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	return err != nil
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
