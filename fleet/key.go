package fleet

import (
	"crypto/hkdf"
	"crypto/sha256"
)

// DeriveKey returns a key of 32 bytes for one purpose (HKDF with SHA-256, RFC
// 5869): the same of the same secret, and telling nothing of the secret or of
// the keys for other purposes. The secret must be one that nobody can guess: a
// password is none.
func DeriveKey(secret []byte, purpose string) []byte {
	key, err := hkdf.Key(sha256.New, secret, nil, purpose, sha256.Size)
	if err != nil {
		panic("fleet: derive a key: " + err.Error()) // of one block, whatever the secret
	}
	return key
}
