package slack

import (
	"net/url"
	"strings"

	"footplate/fleet"
)

// Config says how to reach Slack.
type Config struct {
	BotToken string // xoxb-...
	// AppToken (xapp-...) is for Socket Mode, SigningSecret for HTTP. With both, both
	// ways are open; without either nobody is heard, and the channel is written to
	// all the same.
	AppToken, SigningSecret string
	Channel                 string // the id of the channel where everything is logged
	APIURL                  string // of the Web API; Slack's own when empty
	Sockets                 int    // open at the same time; 2 when zero
}

// The environment variables of the settings.
const (
	EnvBotToken      = "FOOTPLATE_SLACK_BOT_TOKEN"
	EnvAppToken      = "FOOTPLATE_SLACK_APP_TOKEN"
	EnvSigningSecret = "FOOTPLATE_SLACK_SIGNING_SECRET"
	EnvChannel       = "FOOTPLATE_SLACK_CHANNEL"
	EnvAPIURL        = "FOOTPLATE_SLACK_API_URL"
)

// FromEnv reads the settings from the environment. on is false when there are
// none: then Slack is not used.
func FromEnv(getenv func(string) string) (cfg Config, on bool, err error) {
	cfg = Config{
		BotToken: getenv(EnvBotToken), AppToken: getenv(EnvAppToken), SigningSecret: getenv(EnvSigningSecret),
		Channel: getenv(EnvChannel), APIURL: getenv(EnvAPIURL),
	}
	if cfg == (Config{}) {
		return cfg, false, nil
	}
	return cfg, true, cfg.Check()
}

// Check says what is wrong with the settings.
func (c Config) Check() error {
	switch {
	case c.BotToken == "":
		return fleet.Invalidf("Slack has no bot token").WithHint("set %s; it is on the app's page under OAuth & Permissions", EnvBotToken)
	case !strings.HasPrefix(c.BotToken, "xoxb-"):
		return fleet.Invalidf("%s is no bot token: it must begin with xoxb-", EnvBotToken).WithHint("take the Bot User OAuth Token of the app's page")
	case c.AppToken != "" && !strings.HasPrefix(c.AppToken, "xapp-"):
		return fleet.Invalidf("%s is no app-level token: it must begin with xapp-", EnvAppToken).
			WithHint("make one on the app's page under Basic Information, with the scope connections:write")
	case c.SigningSecret != "" && len(c.SigningSecret) < 16:
		return fleet.Invalidf("%s is too short to be a signing secret", EnvSigningSecret).WithHint("it is on the app's page under Basic Information")
	case c.Channel == "":
		return fleet.Invalidf("Slack has no channel to log to").WithHint("set %s to its id, for example C0123456789", EnvChannel)
	case !isChannelID(c.Channel):
		return fleet.Invalidf("%s is %q, which is no id of a channel", EnvChannel, c.Channel).
			WithHint("the id, for example C0123456789, is at the bottom of the channel's details")
	case c.Sockets < 0 || c.Sockets > 10:
		return fleet.Invalidf("%d sockets are not possible: Slack allows 1 to 10", c.Sockets)
	}
	if c.APIURL != "" {
		if u, err := url.Parse(c.APIURL); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return fleet.Invalidf("%s is %q, which is no URL", EnvAPIURL, c.APIURL).WithHint("for example https://slack.com/api/")
		}
	}
	return nil
}

func isChannelID(s string) bool {
	if len(s) < 3 || s[0] != 'C' && s[0] != 'G' && s[0] != 'D' {
		return false
	}
	for _, c := range s {
		if (c < 'A' || c > 'Z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}
