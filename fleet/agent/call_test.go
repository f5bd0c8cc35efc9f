package agent

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"footplate/controlplane/api"
	"footplate/fleet"
)

// TestTokenIsChanged: an agent whose token is not known any more reads the file
// again, and goes on with what it finds there.
func TestTokenIsChanged(t *testing.T) {
	known := "the-first"
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+known {
			w.WriteHeader(http.StatusUnauthorized)
			_ = json.NewEncoder(w).Encode(api.Problem{Code: fleet.CodeDenied, Detail: "the token is not known"})
		}
	}))
	defer srv.Close()
	file := filepath.Join(t.TempDir(), "token")
	write := func(secret string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(secret+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	k := newCaller(Config{Host: "h", Token: "the-first", TokenFile: file})
	defer k.close()
	call := func() error { return k.post(t.Context(), k.beats, srv.URL, "/", struct{}{}, nil) }
	if err := call(); err != nil {
		t.Fatal(err)
	}
	write("the-second")
	if err := call(); err != nil {
		t.Errorf("while the first is still known: %v", err)
	}
	known = "the-second"
	if err := call(); fleet.CodeOf(err) != fleet.CodeDenied {
		t.Errorf("the first is not known any more: %v", err)
	}
	if err := call(); err != nil {
		t.Errorf("with what is in the file: %v", err)
	}
	known = "the-third"
	write("")
	for range 2 {
		if err := call(); fleet.CodeOf(err) != fleet.CodeDenied {
			t.Errorf("the file is empty: %v", err)
		}
	}
	write("the-third")
	_ = call()
	if err := call(); err != nil {
		t.Errorf("the file is mended: %v", err)
	}
}
