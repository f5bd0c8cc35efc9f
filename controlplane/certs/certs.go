// Package certs is mutual TLS for the cluster: it makes the certificates of the
// nodes, signs those of the agents, and keeps what a process uses up to date
// with the files, without a restart.
//
// # Who vouches for whom
//
// A cluster has one authority (ca.pem, ca.key). It signs a certificate for each
// node, and one for the authority of the agents (agents.pem, agents.key), which
// every node has, so that any of them can let an agent in. The key of the first
// is needed for new nodes alone and can lie in a safe.
//
// A certificate says what its bearer is in a URI: footplate:node/n1 or
// footplate:agent/linux-4. What the agents' authority signed can only be an
// agent: a node that was broken into cannot make another node.
//
// People are not here: they come with tokens.
package certs

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// Kind is what the bearer of a certificate is.
type Kind string

// The kinds.
const (
	Node  Kind = "node"
	Agent Kind = "agent"
)

// Identity is who a certificate says its bearer is.
type Identity struct {
	Kind Kind
	Name string
}

const scheme = "footplate"

func (i Identity) uri() *url.URL {
	return &url.URL{Scheme: scheme, Opaque: string(i.Kind) + "/" + i.Name}
}

func (i Identity) String() string { return string(i.Kind) + "/" + i.Name }

// Of returns who is at the other end of a connection; ok is false when it has
// shown no certificate of this cluster. The connection must have been made with
// one of the configurations of this package.
func Of(c *tls.ConnectionState) (id Identity, ok bool) {
	if c == nil || len(c.VerifiedChains) == 0 {
		return Identity{}, false
	}
	id, err := identify(c.VerifiedChains)
	return id, err == nil
}

// KeyOf returns the hash of the key of whoever Of names: hex SHA-256.
func KeyOf(c *tls.ConnectionState) string {
	return keyHash(c.VerifiedChains[0][0].RawSubjectPublicKeyInfo)
}

func keyHash(spki []byte) string {
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:])
}

// identify reads whom a certificate names, and checks that whoever signed it may
// give such a name.
func identify(chains [][]*x509.Certificate) (Identity, error) {
	id, err := named(chains[0][0])
	if err != nil {
		return id, err
	}
	switch id.Kind {
	case Agent:
		return id, nil
	case Node:
		for _, chain := range chains {
			if len(chain) == 2 { // signed by the authority itself
				return id, nil
			}
		}
		return Identity{}, fmt.Errorf("the certificate says %s, and was not signed by the cluster's authority itself", id)
	}
	return Identity{}, errors.New("the certificate names neither a node nor an agent")
}

// named reads the one name of ours in a certificate.
func named(c *x509.Certificate) (id Identity, err error) {
	for _, u := range c.URIs {
		kind, name, ok := strings.Cut(u.Opaque, "/")
		if u.Scheme != scheme || !ok || name == "" {
			continue
		}
		if id.Name != "" {
			return Identity{}, errors.New("the certificate has two names")
		}
		id = Identity{Kind(kind), name}
	}
	return id, nil
}
