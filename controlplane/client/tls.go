package client

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"strings"

	"footplate/fleet"
)

// plainToTLS is what Go's server answers to plain HTTP on a port with TLS.
const plainToTLS = "Client sent an HTTP request to an HTTPS server"

// SpeaksTLS returns what to tell whoever called addr in plain HTTP and got this
// answer, when that is what went wrong; else nil.
func SpeaksTLS(addr string, status int, body []byte) *fleet.Error {
	if status != http.StatusBadRequest || !strings.Contains(string(body), plainToTLS) {
		return nil
	}
	return fleet.Invalidf("the node at %s speaks TLS: nothing was done", addr).
		WithHint("say https://%s, and give the cluster's ca.pem: --ca FILE, or FOOTPLATE_CA", strings.TrimPrefix(addr, "http://"))
}

// Untrusted returns what to tell whoever could not make a TLS connection to
// addr, when err says that it is a matter of certificates; else nil.
func Untrusted(addr string, err error) *fleet.Error {
	var plain tls.RecordHeaderError
	var authority x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &plain), errors.Is(err, http.ErrSchemeMismatch):
		return fleet.Invalidf("the node at %s speaks plain HTTP, no TLS: nothing was done", addr).
			WithHint("say http://%s, or start the node with --tls DIR", strings.TrimPrefix(addr, "https://"))
	case errors.As(err, &authority):
		return fleet.Invalidf("the certificate of %s is not known here: nothing was done", addr).
			WithHint("give the cluster's ca.pem, of footplate tls init: --ca FILE, or FOOTPLATE_CA")
	case errors.As(err, &host):
		return fleet.Invalidf("the certificate of %s is for other names: %s", addr, names(host.Certificate)).
			WithHint("call it by one of those, or name this one too: footplate tls init DIR --node NODE=HOST,HOST")
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fleet.Unavailablef("the certificate of %s has expired, or a clock is wrong: nothing was done", addr).
			WithHint("footplate tls init makes a new one")
	case errors.As(err, &invalid):
		return fleet.Invalidf("the certificate of %s is no good: %s", addr, err)
	}
	return nil
}

func names(c *x509.Certificate) string {
	all := append([]string(nil), c.DNSNames...)
	for _, ip := range c.IPAddresses {
		all = append(all, ip.String())
	}
	if len(all) == 0 {
		return "none"
	}
	return strings.Join(all, ", ")
}
