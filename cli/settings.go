package cli

import (
	"cmp"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"footplate/fleet"
)

// settings are what the program itself takes, beside the operations' own flags.
type settings struct {
	addr, token, ca, color string
	timeout                fleet.Duration
}

// programFlag is a flag of the program.
type programFlag struct{ name, value, help string }

func programFlags() []programFlag {
	return []programFlag{
		{"addr", "URL", "where the nodes are, with commas between (FOOTPLATE_ADDR)"},
		{"token", "TOKEN", "who you are (FOOTPLATE_TOKEN)"},
		{"ca", "FILE", "the cluster's ca.pem, or its folder, when the nodes have TLS (FOOTPLATE_CA)"},
		{"request-timeout", "DURATION", "give up after this long; 30s when it is not given"},
		{"color", "WHEN", "auto, always or never"},
	}
}

func (s *settings) has(flag string) bool {
	switch flag {
	case "addr", "token", "ca", "color", "request-timeout":
		return true
	}
	return false
}

func (s *settings) set(flag, value string) error {
	switch flag {
	case "addr":
		s.addr = value
	case "token":
		s.token = value
	case "ca":
		s.ca = value
	case "color":
		switch value {
		case "auto", "always", "never":
		default:
			return fleet.Invalidf("--color cannot be %q", value).WithHint("one of auto, always, never")
		}
		s.color = value
	case "request-timeout":
		d, err := fleet.ParseDuration(value)
		if err != nil {
			return err
		}
		if d <= 0 {
			return fleet.Invalidf("--request-timeout is %s; it must be longer than nothing", d)
		}
		s.timeout = d
	}
	return nil
}

// leading takes the program's flags that stand before the command.
func (s *settings) leading(args []string) ([]string, error) {
	for len(args) > 0 {
		name, value, given := strings.Cut(args[0], "=")
		flag, ok := strings.CutPrefix(name, "--")
		if !ok || !s.has(flag) {
			break
		}
		args = args[1:]
		if !given {
			if len(args) == 0 {
				return nil, fleet.Invalidf("--%s needs a value", flag)
			}
			value, args = args[0], args[1:]
		}
		if err := s.set(flag, value); err != nil {
			return nil, err
		}
	}
	return args, nil
}

// defaultTimeout bounds a request that is no stream.
const defaultTimeout = 30 * time.Second

func (s *settings) limit() time.Duration {
	if s.timeout > 0 {
		return s.timeout.Std()
	}
	return defaultTimeout
}

// endpoint is where the nodes are, who asks them, and whom to trust.
type endpoint struct {
	addrs     []string
	token, ca string
}

// endpoint returns where the nodes are, the token and the authority: from the
// flags, else the environment, else the context file. The file's token is used
// with the file's address only, so that it never travels to a stranger.
func (s *settings) endpoint() (to endpoint, err error) {
	addr := cmp.Or(s.addr, os.Getenv("FOOTPLATE_ADDR"))
	to.token, to.ca = s.token, cmp.Or(s.ca, os.Getenv("FOOTPLATE_CA"))
	if to.token == "" {
		if to.token, err = Secret("FOOTPLATE_TOKEN"); err != nil {
			return to, err
		}
	}
	if addr == "" || to.token == "" {
		file, err := readContext()
		if err != nil {
			return to, err
		}
		addr = cmp.Or(addr, file.Addr)
		if addr == file.Addr {
			to.token, to.ca = cmp.Or(to.token, file.Token), cmp.Or(to.ca, file.CA)
		}
	}
	scheme := "http://"
	if to.ca != "" {
		scheme = "https://"
	}
	for a := range strings.SplitSeq(addr, ",") {
		if a = strings.TrimSpace(a); a == "" {
			continue
		}
		if !strings.Contains(a, "://") {
			a = scheme + a
		}
		to.addrs = append(to.addrs, strings.TrimRight(a, "/"))
	}
	if len(to.addrs) == 0 {
		return to, fleet.Invalidf("no node's address is known").
			WithHint("export FOOTPLATE_ADDR=http://127.0.0.1:4600, or start a cluster: footplate dev")
	}
	return to, nil
}

// contextFile is what $FOOTPLATE_CONTEXT, or footplate/context.yaml in the
// user's configuration folder, holds.
type contextFile struct {
	Addr  string `yaml:"addr"`
	Token string `yaml:"token"`
	CA    string `yaml:"ca"`
}

func readContext() (contextFile, error) {
	var c contextFile
	path, named := os.Getenv("FOOTPLATE_CONTEXT"), true
	if path == "" {
		named = false
		dir, err := os.UserConfigDir()
		if err != nil {
			return c, nil // no home: nothing to read
		}
		path = filepath.Join(dir, "footplate", "context.yaml")
	}
	data, err := os.ReadFile(path)
	if os.IsNotExist(err) && !named {
		return c, nil
	}
	if err != nil {
		return c, fleet.Invalidf("context file: %s", fileError(err)).WithHint("FOOTPLATE_CONTEXT names it")
	}
	if err := yaml.UnmarshalWithOptions(data, &c, yaml.Strict()); err != nil {
		return c, fleet.Invalidf("context file %s: %s", path, yaml.FormatError(err, false, false)).WithHint("it has addr, token and ca")
	}
	return c, nil
}
