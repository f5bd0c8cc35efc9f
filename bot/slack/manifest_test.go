package slack

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"footplate/bot/slack/slacktest"

	"github.com/goccy/go-yaml"
)

// manifest is an app manifest as far as ours has it. The fields, what they may be,
// and the names of scopes and events are those of Slack's own schema
// (github.com/slackapi/manifest-schema, version 1, against which both files were
// checked).
type manifest struct {
	DisplayInformation struct {
		Name, Description string
	} `yaml:"display_information"`
	Features struct {
		BotUser struct {
			DisplayName  string `yaml:"display_name"`
			AlwaysOnline bool   `yaml:"always_online"`
		} `yaml:"bot_user"`
		AppHome struct {
			Messages bool `yaml:"messages_tab_enabled"`
			ReadOnly bool `yaml:"messages_tab_read_only_enabled"`
		} `yaml:"app_home"`
		SlashCommands []struct {
			Command, URL, Description string
			UsageHint                 string `yaml:"usage_hint"`
			ShouldEscape              bool   `yaml:"should_escape"`
		} `yaml:"slash_commands"`
	}
	OAuth struct {
		Scopes struct{ Bot []string }
	} `yaml:"oauth_config"`
	Settings struct {
		Events struct {
			RequestURL string   `yaml:"request_url"`
			Bot        []string `yaml:"bot_events"`
		} `yaml:"event_subscriptions"`
		Interactivity struct {
			Enabled    bool   `yaml:"is_enabled"`
			RequestURL string `yaml:"request_url"`
		}
		OrgDeploy  bool `yaml:"org_deploy_enabled"`
		SocketMode bool `yaml:"socket_mode_enabled"`
		Rotation   bool `yaml:"token_rotation_enabled"`
	}
}

func readManifest(t *testing.T, name string) (m manifest) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("../../deploy/slack", name))
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.NewDecoder(bytes.NewReader(raw), yaml.Strict()).Decode(&m); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return m
}

// scopes are those that each method of the Web API, called through slack-go's
// function of this name, and each event need; from the pages of the methods and
// events in Slack's documentation. Empty: none but the token.
var scopes = map[string][]string{
	"AuthTestContext":               {},
	"StartSocketModeContext":        {}, // connections:write, of the app-level token
	"GetConversationInfoContext":    {"channels:read", "groups:read", "im:read"},
	"GetConversationHistoryContext": {"channels:history", "groups:history", "im:history", "metadata.message:read"},
	"GetConversationRepliesContext": {"channels:history", "groups:history", "im:history", "metadata.message:read"},
	"GetUserInfoContext":            {"users:read"},
	"OpenConversationContext":       {"im:write"},
	"PostMessageContext":            {"chat:write"},
	"PostEphemeralContext":          {"chat:write"},
	"UpdateMessageContext":          {"chat:write"},
	"UploadFileContext":             {"files:write"},

	"app_mention":     {"app_mentions:read"},
	"message.im":      {"im:history"},
	slacktest.Command: {"commands"},
}

// called returns the functions of slack-go's client that this package calls.
func called(t *testing.T) (names []string) {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			method, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if of, ok := method.X.(*ast.SelectorExpr); ok && of.Sel.Name == "web" && ast.IsExported(method.Sel.Name) && !slices.Contains(names, method.Sel.Name) {
				names = append(names, method.Sel.Name)
			}
			return true
		})
	}
	return names
}

// Both manifests ask for what the code uses, and for nothing else; and they differ
// in how Slack reaches the bot alone.
func TestManifests(t *testing.T) {
	uses := called(t)
	if len(uses) < 8 {
		t.Errorf("only %d methods were found in the code: %v", len(uses), uses)
	}
	for name, socket := range map[string]bool{"socket-mode.yaml": true, "http.yaml": false} {
		m := readManifest(t, name)
		needs := make(map[string]string)
		for _, what := range slices.Concat(uses, m.Settings.Events.Bot, []string{slacktest.Command}) {
			list, ok := scopes[what]
			if !ok {
				t.Errorf("%s: it is not said which scopes %s needs", name, what)
			}
			for _, s := range list {
				needs[s] = what
			}
		}
		for s, what := range needs {
			if !slices.Contains(m.OAuth.Scopes.Bot, s) {
				t.Errorf("%s lacks the scope %s, for %s", name, s, what)
			}
		}
		for _, s := range m.OAuth.Scopes.Bot {
			if needs[s] == "" {
				t.Errorf("%s has the scope %s, which nothing needs", name, s)
			}
		}
		if !slices.Equal(m.Settings.Events.Bot, []string{"app_mention", "message.im"}) {
			t.Errorf("%s has the events %v", name, m.Settings.Events.Bot)
		}
		command := m.Features.SlashCommands[0]
		if len(m.Features.SlashCommands) != 1 || command.Command != slacktest.Command || !command.ShouldEscape {
			t.Errorf("%s: the command must be %s, and mentions in it ids: %+v", name, slacktest.Command, command)
		}
		if !m.Features.AppHome.Messages || m.Features.AppHome.ReadOnly || !m.Settings.Interactivity.Enabled {
			t.Errorf("%s: people cannot write to the app, or not click", name)
		}
		if m.Settings.SocketMode != socket {
			t.Errorf("%s: Socket Mode is %v", name, m.Settings.SocketMode)
		}
		for what, url := range map[string]string{"the command": command.URL, "events": m.Settings.Events.RequestURL, "clicks": m.Settings.Interactivity.RequestURL} {
			if socket != (url == "") || !socket && !strings.HasSuffix(url, Path) {
				t.Errorf("%s: %s go to %q", name, what, url)
			}
		}
	}
}
