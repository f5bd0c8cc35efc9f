package bot

import (
	"strings"
	"testing"
)

// planted are secrets in the ways in which they turn up; SECRET must go, and the rest
// stay.
func planted() []struct{ name, before, secret, after string } {
	return []struct{ name, before, secret, after string }{
		{"Slack bot token", "use ", "xoxb-1234567890-abcdefGHIJ", " there"},
		{"Slack user token", "", "xoxp-1-2-3-deadbeef", ""},
		{"Slack rotating token", "a ", "xoxe.xoxp-1-Mi0yLTEyMw", "."},
		{"Slack app token", "(", "xapp-1-A0123-4567-abcdef", ")"},
		{"Slack webhook", "post to https://hooks.slack.com/services/", "T000/B000/aB3dE5gH7jK9mN2p", " please"},
		{"footplate token", "FOO ", "fp_0123456789abcdef0123456789abcdef", ", and so on"},
		{"AWS key id", "key ", "AKIAABCDEFGHIJKLMNOP", " of prod"},
		{"AWS secret", "aws_secret_access_key=", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", " region=eu"},
		{"authorization header", "Authorization: Bearer ", "abc.def-ghi", ""},
		{"basic authorization", `-H "Authorization: Basic `, "dXNlcjpwYXNz", `" https://x`},
		{"bearer alone", "sent bearer ", "a1b2c3d4e5f6", " to it"},
		{"password in a URL", "postgres://ops:", "hunter2", "@db.example:5432/fleet"},
		{"password with signs in a URL", "https://ops:", "p:a$s?w@rd", "@host/path"},
		{"private key", "key: ", "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nIBAAK\n-----END RSA PRIVATE KEY-----", "\nbye"},
		{"private key that is cut off", "", "-----BEGIN PRIVATE KEY-----\nMIIEow", ""},
		{"variable", "build submit --env DB_PASSWORD=", "hunter2", " --org acme"},
		{"quoted variable", `--env "API_TOKEN=`, "s3cr3t-value", `"`},
		{"JSON", `{"client_secret": "`, "s3cr3t value", `", "id": 7}`},
		{"flag", "login --password ", "hunter2", " --user ops"},
		{"GitHub", "", "ghp_0123456789abcdefghijABCDEFGHIJ012345", ""},
		{"JSON web token", "cookie ", "eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJSM", " set"},
	}
}

func TestRedact(t *testing.T) {
	r := NewRedactor("very-own-signing-secret")
	for _, p := range planted() {
		got := r.Redact(p.before + p.secret + p.after)
		if strings.Contains(got, p.secret) || !strings.Contains(got, redacted) {
			t.Errorf("%s: %q", p.name, got)
		}
		for _, part := range strings.FieldsFunc(p.secret, func(r rune) bool { return strings.ContainsRune("\n -:@/.", r) }) {
			if len(part) > 5 && !strings.Contains("BEGIN PRIVATE", part) && strings.Contains(got, part) {
				t.Errorf("%s: a part of it is left: %q", p.name, got)
			}
		}
		if tail := strings.Trim(p.after, "\"' "); !strings.HasSuffix(strings.Trim(got, "\"' "), tail) {
			t.Errorf("%s: what follows is gone: %q", p.name, got)
		}
	}
	if got := r.Redact("it is very-own-signing-secret."); got != "it is [redacted]." {
		t.Errorf("a known secret: %q", got)
	}
	for _, plain := range []string{
		"", "scaled pool \"linux\" from 2 to 3 hosts", "the token is not known", "set FOOTPLATE_TOKEN, or give --token",
		"host linux-1 gets no new work; 2 tasks on it may finish", "https://ci.example/builds/7?tab=log", "access token create --name ci",
		"ops@example.com asked for it at 03:12:07", "basic checks pass", "git@github.com:acme/app.git",
	} {
		if got := r.Redact(plain); got != plain {
			t.Errorf("%q became %q", plain, got)
		}
	}
}

// Whatever stands around it, a secret goes, and redacting again changes nothing.
func FuzzRedact(f *testing.F) {
	f.Add("", "", 0)
	f.Add("pool scale linux +2 --reason '", "' --incident 7", 3)
	f.Add("a:b@c https://", "\n\"x\"", 11)
	r := NewRedactor()
	all := planted()
	f.Fuzz(func(t *testing.T, before, after string, n int) {
		p := all[uint(n)%uint(len(all))]
		in := before + " " + p.before + p.secret + p.after + " " + after
		out := r.Redact(in)
		// What stands before may be a secret's beginning itself, and swallow it; but
		// it may not save it.
		if strings.Contains(out, p.secret) && !strings.Contains(before+" "+after, p.secret) {
			t.Errorf("%q\nbecame %q\nwith %q in it", in, out, p.secret)
		}
		if again := r.Redact(out); strings.Contains(again, p.secret) && !strings.Contains(before+after, p.secret) {
			t.Errorf("again: %q", again)
		}
	})
}
