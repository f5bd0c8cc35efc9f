package bot

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"time"

	"footplate/fleet"
)

// ask is why a button is there.
type ask string

const (
	askConfirm ask = "confirm" // a plan was shown
	askRepeat  ask = "repeat"  // the same was done a moment ago
	askLate    ask = "late"    // it was said long ago
)

// ticket is what a pair of buttons stands for. It travels in the buttons
// themselves, sealed, so that any replica can take the click, and nobody but
// the bot can read or make one: the command may have a secret in it.
type ticket struct {
	Ask    ask             `json:"a"`
	Line   string          `json:"l"`           // the command
	Key    string          `json:"k"`           // under which it is run
	Plan   string          `json:"p,omitempty"` // that is, or was, confirmed
	Meant  bool            `json:"m,omitempty"` // although it may be a second press
	By     fleet.Principal `json:"b"`           // who may press
	Until  int64           `json:"u"`           // Unix seconds
	Accept bool            `json:"y"`
}

// The bounds of tickets.
const (
	// ticketLife is how long a question may be answered.
	ticketLife = 5 * time.Minute
	// maxTicket is how long a sealed ticket may be: what Slack takes as the
	// value of a button.
	maxTicket = 2000
)

// sealer seals and opens tickets.
type sealer struct{ aead cipher.AEAD }

func newSealer(secret []byte) (sealer, error) {
	block, err := aes.NewCipher(fleet.DeriveKey(secret, "footplate bot ticket"))
	if err != nil {
		return sealer{}, err
	}
	aead, err := cipher.NewGCM(block)
	return sealer{aead}, err
}

// seal returns a ticket as the value of a button.
func (s sealer) seal(t ticket) (string, error) {
	b, err := json.Marshal(t)
	if err != nil {
		return "", fleet.Internalf("the question cannot be written: %s", err)
	}
	nonce := make([]byte, s.aead.NonceSize())
	_, _ = rand.Read(nonce) // never fails
	v := base64.RawURLEncoding.EncodeToString(s.aead.Seal(nonce, nonce, b, nil))
	if len(v) > maxTicket {
		return "", fleet.Invalidf("the command is too long to be asked about in a chat").
			WithHint("give it in the shell, or with --yes")
	}
	return v, nil
}

// open returns the ticket of a button.
func (s sealer) open(v string) (ticket, error) {
	var t ticket
	bad := fleet.Invalidf("this button is no good any more").WithHint("give the command again")
	raw, err := base64.RawURLEncoding.DecodeString(v)
	if err != nil || len(raw) < s.aead.NonceSize() {
		return t, bad
	}
	b, err := s.aead.Open(nil, raw[:s.aead.NonceSize()], raw[s.aead.NonceSize():], nil)
	if err != nil || json.Unmarshal(b, &t) != nil {
		return t, bad
	}
	return t, nil
}
