package bot

import (
	"regexp"
	"strings"
)

// redacted stands where a secret was.
const redacted = "[redacted]"

// secret is one way in which a secret is written. What with keeps is the text
// around it.
type secret struct {
	pattern *regexp.Regexp
	with    string
}

// secrets lists what is taken for a secret, the longest forms first: a later
// pattern sees what an earlier one has left.
func secrets() []secret {
	list := []struct{ pattern, with string }{
		// Private keys, also when the end is cut off.
		{`-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----(?s:.*?)(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\z)`, redacted},
		// Passwords in URLs.
		{`([A-Za-z][A-Za-z0-9+.-]*://[^\s/:@"'<>]*):[^\s/"'<>]+@`, "$1:" + redacted + "@"},
		{`(https://hooks\.slack\.com/[a-z]+/)[A-Za-z0-9/_-]+`, "$1" + redacted},
		// Authorization headers.
		{`(?i)(\bauthorization["']?\s*[:=]\s*["']?(?:(?:bearer|basic|token)\s+)?)[^\s"',;]+`, "$1" + redacted},
		{`(?i)(\b(?:bearer|basic)\s+)[A-Za-z0-9._~+/-]{8,}=*`, "$1" + redacted},
		// Tokens that are known by how they begin: of Slack, of footplate, of AWS,
		// of GitHub and GitLab, and JSON web tokens.
		{`\bxox[a-z](?:\.xox[a-z])?-[A-Za-z0-9-]+`, redacted},
		{`\bxapp-[A-Za-z0-9-]+`, redacted},
		{`\bfp_[A-Za-z0-9_]{8,}`, redacted},
		{`\b(?:AKIA|ASIA)[A-Z0-9]{16}\b`, redacted},
		{`\b(?:gh[pousr]_|github_pat_|glpat-)[A-Za-z0-9_-]{16,}`, redacted},
		{`\beyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]{6,}(?:\.[A-Za-z0-9_-]*)?`, redacted},
		// Whatever is called a secret: NAME=value, "name": "value", --name value.
		{`(?i)((?:^|[^A-Za-z0-9])[A-Za-z0-9_-]*(?:password|passwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|credential)[A-Za-z0-9_-]*["']?(?:=|:\s*))(?:"[^"]*"|'[^']*'|[^\s"',;)}]+)`, "$1" + redacted},
		{`(?i)(--[a-z-]*(?:password|passwd|secret|token|api-key|access-key)\s+)(?:"[^"]*"|'[^']*'|[^\s"'-][^\s"']*)`, "$1" + redacted},
	}
	out := make([]secret, len(list))
	for i, l := range list {
		out[i] = secret{regexp.MustCompile(l.pattern), l.with}
	}
	return out
}

// Redactor takes secrets out of texts. It knows secrets by how they are
// written, so it is a net below those who keep them out of a text in the first
// place, not a reason not to. It may be used by any number of goroutines.
type Redactor struct {
	secrets []secret
	known   []string
}

// NewRedactor returns a redactor that also knows the given secrets as they
// stand, for example the bot's own tokens.
func NewRedactor(known ...string) *Redactor {
	r := &Redactor{secrets: secrets()}
	for _, k := range known {
		if len(k) >= 8 { // what is shorter stands in texts by chance
			r.known = append(r.known, k)
		}
	}
	return r
}

// Redact returns s with every secret in it replaced.
func (r *Redactor) Redact(s string) string {
	for _, k := range r.known {
		s = strings.ReplaceAll(s, k, redacted)
	}
	for _, p := range r.secrets {
		s = p.pattern.ReplaceAllString(s, p.with)
	}
	return s
}
