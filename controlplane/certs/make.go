package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"footplate/fleet"
)

// How long certificates are good for.
const (
	authorityLife = 10 * 365 * 24 * time.Hour
	nodeLife      = 365 * 24 * time.Hour
	// AgentLife is short, because agents renew their own.
	AgentLife = 30 * 24 * time.Hour
	// early makes up for clocks that differ.
	early = 10 * time.Minute
)

// The names of the files.
const (
	authorityCert = "ca.pem"
	authorityKey  = "ca.key"
	agentsCert    = "agents.pem"
	agentsKey     = "agents.key"
	ownCert       = "cert.pem"
	ownKey        = "key.pem"
)

// Made is what Init has made.
type Made struct {
	Authority bool     // a new one; else the one that was there has signed
	Nodes     []string // their folders
}

// Init makes, in dir, the authority of a cluster, unless it is there already,
// and a folder for each node with all that the node needs: its certificate for
// the host names and addresses that it is called by, its key, the authority and
// that of the agents. Certificates that are there are replaced: so they are
// renewed.
func Init(dir string, nodes map[string][]string, now time.Time) (Made, error) {
	var made Made
	if len(nodes) == 0 {
		return made, fleet.Invalidf("no node is named").WithHint("--node n1=10.0.0.1,ci-control-1.example.com")
	}
	for name, hosts := range nodes {
		if err := fleet.CheckName("node", name); err != nil {
			return made, err
		}
		if len(hosts) == 0 || slices.Contains(hosts, "") {
			return made, fleet.Invalidf("node %q has no host name or address", name).WithHint("--node %s=10.0.0.1,ci-control-1.example.com", name)
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return made, fmt.Errorf("make folder of certificates: %w", err)
	}
	ca, err := loadPair(filepath.Join(dir, authorityCert), filepath.Join(dir, authorityKey))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if ca, err = newAuthority(dir, now); err != nil {
			return made, err
		}
		made.Authority = true
	case err != nil:
		return made, err
	}
	agents, err := loadPair(filepath.Join(dir, agentsCert), filepath.Join(dir, agentsKey))
	if errors.Is(err, fs.ErrNotExist) {
		agents, err = ca.authority("footplate agents", 0, now)
		if err == nil {
			err = agents.save(dir, agentsCert, agentsKey)
		}
	}
	if err != nil {
		return made, err
	}
	for _, name := range sorted(nodes) {
		own, err := ca.node(name, nodes[name], now)
		if err != nil {
			return made, err
		}
		to := filepath.Join(dir, name)
		if err := os.MkdirAll(to, 0o700); err != nil {
			return made, fmt.Errorf("make folder of certificates: %w", err)
		}
		if err := errors.Join(
			own.save(to, ownCert, ownKey), agents.save(to, agentsCert, agentsKey),
			writeFile(filepath.Join(to, authorityCert), ca.certPEM(), 0o644),
		); err != nil {
			return made, err
		}
		made.Nodes = append(made.Nodes, to)
	}
	return made, nil
}

func sorted(nodes map[string][]string) []string {
	names := make([]string, 0, len(nodes))
	for n := range nodes {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// pair is a certificate with its key.
type pair struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func newAuthority(dir string, now time.Time) (pair, error) {
	ca, err := pair{}.authority("footplate", 1, now)
	if err != nil {
		return ca, err
	}
	return ca, ca.save(dir, authorityCert, authorityKey)
}

// authority makes an authority, signed by p or, when p is none, by itself;
// below it there may be so many more.
func (p pair) authority(name string, below int, now time.Time) (pair, error) {
	return p.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-early), NotAfter: now.Add(authorityLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLen: below, MaxPathLenZero: below == 0,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}, nil)
}

func (p pair) node(name string, hosts []string, now time.Time) (pair, error) {
	c := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-early), NotAfter: now.Add(nodeLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{Identity{Node, name}.uri()},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, h)
		}
	}
	return p.sign(c, nil)
}

// sign makes a certificate for the public key of somebody else, or for a new
// key of its own.
func (p pair) sign(c *x509.Certificate, public crypto.PublicKey) (pair, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return pair{}, err
	}
	c.SerialNumber = serial
	made := pair{}
	if public == nil {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return pair{}, err
		}
		made.key, public = key, key.Public()
	}
	parent, by := p.cert, p.key
	if parent == nil {
		parent, by = c, made.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, public, by)
	if err != nil {
		return pair{}, fmt.Errorf("sign certificate of %s: %w", c.Subject.CommonName, err)
	}
	made.cert, err = x509.ParseCertificate(der)
	return made, err
}

func (p pair) certPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.cert.Raw})
}

func (p pair) save(dir, cert, key string) error {
	der, err := x509.MarshalPKCS8PrivateKey(p.key)
	if err != nil {
		return err
	}
	raw := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	return errors.Join(
		writeFile(filepath.Join(dir, key), raw, 0o600),
		writeFile(filepath.Join(dir, cert), p.certPEM(), 0o644),
	)
}

// writeFile replaces a file whole: whoever reads it meanwhile reads the old one.
func writeFile(path string, data []byte, mode fs.FileMode) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, data, mode); err != nil {
		return fmt.Errorf("write certificate: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write certificate: %w", err)
	}
	return nil
}

func loadPair(cert, key string) (pair, error) {
	c, err := readBlock(cert, "CERTIFICATE")
	if err != nil {
		return pair{}, err
	}
	k, err := readBlock(key, "PRIVATE KEY")
	if err != nil {
		return pair{}, err
	}
	parsed, err := x509.ParseCertificate(c)
	if err != nil {
		return pair{}, fleet.Invalidf("certificate %s cannot be read: %s", cert, err)
	}
	private, err := x509.ParsePKCS8PrivateKey(k)
	if err != nil {
		return pair{}, fleet.Invalidf("key %s cannot be read: %s", key, err)
	}
	signer, ok := private.(crypto.Signer)
	if !ok {
		return pair{}, fleet.Invalidf("key %s cannot sign", key)
	}
	return pair{parsed, signer}, nil
}

func readBlock(path, want string) ([]byte, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read certificate: %w", err)
	}
	block, _ := pem.Decode(raw)
	if block == nil || block.Type != want {
		return nil, fleet.Invalidf("%s is no %s in PEM", path, strings.ToLower(want))
	}
	return block.Bytes, nil
}

// Signer lets agents in: it has the agents' authority.
type Signer struct{ ca pair }

// LoadSigner reads the agents' authority from the folder of a node.
func LoadSigner(dir string) (*Signer, error) {
	p, err := loadPair(filepath.Join(dir, agentsCert), filepath.Join(dir, agentsKey))
	if err != nil {
		return nil, err
	}
	return &Signer{p}, nil
}

// Sign gives the bearer of the key behind a certificate request (PEM) a
// certificate as the agent of a host. Nothing of the request is taken over but
// the key. The answer (PEM) has the agents' authority behind the certificate.
func (s *Signer) Sign(request []byte, host string, now time.Time) ([]byte, error) {
	r, err := readRequest(request, host)
	if err != nil {
		return nil, err
	}
	made, err := s.ca.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: host}, NotBefore: now.Add(-early), NotAfter: now.Add(AgentLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs: []*url.URL{Identity{Agent, host}.uri()},
	}, r.PublicKey)
	if err != nil {
		return nil, err
	}
	return append(made.certPEM(), s.ca.certPEM()...), nil
}

func readRequest(request []byte, host string) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode(request)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, fleet.Invalidf("the certificate request of host %q is not in PEM", host)
	}
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fleet.Invalidf("the certificate request of host %q cannot be read: %s", host, err)
	}
	if err := r.CheckSignature(); err != nil {
		return nil, fleet.Invalidf("whoever asks for the certificate of host %q does not have its key", host)
	}
	return r, nil
}

// RequestKey returns the hash of the key behind a certificate request, as KeyOf
// returns that of a certificate.
func RequestKey(request []byte, host string) (string, error) {
	r, err := readRequest(request, host)
	if err != nil {
		return "", err
	}
	return keyHash(r.RawSubjectPublicKeyInfo), nil
}

// Request returns a request for a certificate for the key in dir, which it makes
// if there is none.
func Request(dir string) ([]byte, error) {
	key := filepath.Join(dir, ownKey)
	raw, err := readBlock(key, "PRIVATE KEY")
	if errors.Is(err, fs.ErrNotExist) {
		made, request, err := NewRequest()
		if err != nil {
			return nil, err
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make folder of certificates: %w", err)
		}
		return request, writeFile(key, made, 0o600)
	}
	if err != nil {
		return nil, err
	}
	private, err := x509.ParsePKCS8PrivateKey(raw)
	if err != nil {
		return nil, fleet.Invalidf("key %s cannot be read: %s", key, err)
	}
	return requestFor(private)
}

// Save puts a certificate (PEM) beside the key that it is for.
func Save(dir string, cert []byte) error { return writeFile(filepath.Join(dir, ownCert), cert, 0o644) }

func requestFor(private crypto.PrivateKey) ([]byte, error) {
	req, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, private)
	if err != nil {
		return nil, fmt.Errorf("make certificate request: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: req}), nil
}

// NewRequest makes a key and the request for a certificate for it, both PEM.
func NewRequest() (key, request []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, err
	}
	request, err = requestFor(private)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), request, err
}
