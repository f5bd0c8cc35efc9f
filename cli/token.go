package cli

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"footplate/controlplane/api"
	"footplate/controlplane/catalog"
	"footplate/controlplane/op"
	"footplate/fleet"
)

// secretOf makes the secret of a token that is to be made, and puts its hash into
// the arguments: the secret never leaves this machine. It is empty for any other
// operation.
func secretOf(call *op.Call) string {
	args, ok := call.Args.(*catalog.AccessTokenCreateArgs)
	if !ok || args.Hash != "" {
		return ""
	}
	var b [32]byte
	rand.Read(b[:]) // never fails
	secret := "fp_" + hex.EncodeToString(b[:])
	sum := sha256.Sum256([]byte(secret))
	args.SetHash(hex.EncodeToString(sum[:]))
	return secret
}

// tellSecret hands over the secret of a token that was made, or may have been.
func tellSecret(sf Surface, secret string, reply *api.Reply, f format, err error) error {
	switch {
	case secret == "":
		return err
	case fleet.CodeOf(err) == fleet.CodeUnknown:
		fmt.Fprintf(sf.Err, "secret, if the token was made: %s\n", secret)
		return &fleet.Error{
			Code: fleet.CodeUnknown, Msg: fleet.AsError(err).Msg,
			Hint: "footplate access list shows whether the token is there",
		}
	case err != nil:
		return err
	}
	switch f {
	case formatJSON, formatJSONL, formatYAML:
		reply.Result, err = json.Marshal(map[string]string{"secret": secret})
		return err
	case formatName:
		_, err = fmt.Fprintf(sf.Err, "secret %s\n", secret)
		return err
	}
	reply.Text += "\nsecret " + secret
	_, err = fmt.Fprintln(sf.Err, "the secret is shown this once: keep it where secrets are kept")
	return err
}
