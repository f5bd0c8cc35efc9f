package client

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"

	"footplate/fleet"
)

// TestUntrusted: what is wrong with certificates is said with what to do, and is
// not tried again, but for what another node may not have.
func TestUntrusted(t *testing.T) {
	const addr = "https://10.0.0.1:4600"
	cert := &x509.Certificate{DNSNames: []string{"n1.example.com"}, IPAddresses: []net.IP{net.IPv4(10, 0, 0, 2)}}
	for name, row := range map[string]struct {
		err  error
		code fleet.Code // "" when it is no matter of certificates
		want string     // of message and hint
	}{
		"another authority": {&tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{Cert: cert}}, fleet.CodeInvalid, "--ca FILE"},
		"another name":      {&tls.CertificateVerificationError{Err: x509.HostnameError{Certificate: cert, Host: "10.0.0.1"}}, fleet.CodeInvalid, "n1.example.com, 10.0.0.2"},
		"no name":           {x509.HostnameError{Certificate: &x509.Certificate{}, Host: "10.0.0.1"}, fleet.CodeInvalid, "other names: none"},
		"expired":           {x509.CertificateInvalidError{Cert: cert, Reason: x509.Expired}, fleet.CodeUnavailable, "tls init makes a new one"},
		"no good":           {x509.CertificateInvalidError{Cert: cert, Reason: x509.NotAuthorizedToSign}, fleet.CodeInvalid, "is no good"},
		"plain HTTP":        {tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake"}, fleet.CodeInvalid, "say http://10.0.0.1:4600"},
		"as net/http says":  {http.ErrSchemeMismatch, fleet.CodeInvalid, "say http://10.0.0.1:4600"},
		"cut off":           {errors.New("connection reset by peer"), "", ""},
	} {
		e := Untrusted(addr, fmt.Errorf("Get %q: %w", addr, row.err))
		if row.code == "" {
			if e != nil {
				t.Errorf("%s: %v", name, e)
			}
			continue
		}
		if e == nil || e.Code != row.code || !strings.Contains(e.Msg+"\n"+e.Hint, row.want) {
			t.Errorf("%s: %+v; want %s, %q", name, e, row.code, row.want)
		}
	}
}

// TestSpeaksTLS: only Go's own words for it count.
func TestSpeaksTLS(t *testing.T) {
	const said = "Client sent an HTTP request to an HTTPS server.\n"
	if e := SpeaksTLS("http://n1:4600", http.StatusBadRequest, []byte(said)); e == nil || !strings.Contains(e.Hint, "https://n1:4600") {
		t.Errorf("%+v", e)
	}
	if e := SpeaksTLS("http://n1:4600", http.StatusOK, []byte(said)); e != nil {
		t.Errorf("an answer: %v", e)
	}
	if e := SpeaksTLS("http://n1:4600", http.StatusBadRequest, []byte(`{"code":"invalid"}`)); e != nil {
		t.Errorf("another error: %v", e)
	}
}
