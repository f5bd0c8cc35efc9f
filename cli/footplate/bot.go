package main

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"footplate/bot"
	"footplate/bot/page"
	"footplate/bot/slack"
	"footplate/cli"
	"footplate/controlplane"
	"footplate/controlplane/catalog"
	"footplate/controlplane/client"
	"footplate/controlplane/loop"
	"footplate/fleet"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

// botReads are the settings of the bot in the environment, beside the CLI's own.
func botReads() []cli.Variable {
	return append(slackReads(), notifyReads())
}

// botCommand is "footplate bot": the Slack side by itself.
func botCommand() *cobra.Command {
	var listen string
	c := &cobra.Command{
		Long: `The chat in Slack, by itself: a node runs it too, when it is told of Slack. Run two or more;
they share the work. Its token must be made for it:

  footplate access token create slack-bot --role admin --surface slack --expires 0

Slack is set up in the environment: FOOTPLATE_SLACK_BOT_TOKEN, FOOTPLATE_SLACK_CHANNEL (an id), and
FOOTPLATE_SLACK_APP_TOKEN for Socket Mode or FOOTPLATE_SLACK_SIGNING_SECRET for HTTP. The nodes
write the channel, and need the bot token and the channel for that, but neither of the last two.`,
		Args: cobra.NoArgs,
	}
	c.Flags().StringVar(&listen, "listen", "127.0.0.1:4680", "address of HTTP, when there is a signing secret; the path is "+slack.Path)
	logger := logFlags(c)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		log, err := logger()
		if err != nil {
			return err
		}
		_, conn, err := cli.SessionOf(cmd, "slack")
		if err != nil {
			return err
		}
		side, err := openSlack(cmd.Context(), conn.Client(), log)
		if err != nil {
			return err
		}
		if side == nil {
			return fleet.Invalidf("Slack is not set up").WithHint("set %s, %s, and %s or %s", slack.EnvBotToken, slack.EnvChannel, slack.EnvAppToken, slack.EnvSigningSecret)
		}
		if !side.heard() {
			return fleet.Invalidf("it is not said how Slack reaches the bot").
				WithHint("set %s for Socket Mode, or %s for HTTP", slack.EnvAppToken, slack.EnvSigningSecret)
		}
		g, ctx := errgroup.WithContext(cmd.Context())
		g.Go(func() error { return side.run(ctx) })
		if side.byHTTP {
			l, err := net.Listen("tcp", listen)
			if err != nil {
				return taken(err)
			}
			g.Go(func() error { return serveSlack(ctx, l, side.handler) })
		}
		if err := notifyReady(); err != nil {
			log.Warn("systemd was not told that the bot is up", "err", err)
		}
		return g.Wait()
	}
	return c
}

// slackReads are the settings of Slack in the environment.
func slackReads() []cli.Variable {
	return []cli.Variable{
		{Name: slack.EnvBotToken, Help: "the app's Bot User OAuth Token (xoxb-); without any of these there is no Slack", Secret: true},
		{Name: slack.EnvAppToken, Help: "the app-level token (xapp-), for Socket Mode", Secret: true},
		{Name: slack.EnvSigningSecret, Help: "the app's signing secret, for HTTP; the path is " + slack.Path, Secret: true},
		{Name: slack.EnvChannel, Help: "the id of the channel in which everything is logged"},
		{Name: slack.EnvAPIURL, Help: "URL of the Web API, for proxies and tests; Slack's own when left out"},
	}
}

// slackSettings reads them. on is false when there are none.
func slackSettings() (cfg slack.Config, on bool, err error) {
	var unread error
	cfg, on, err = slack.FromEnv(func(name string) string {
		if name == slack.EnvChannel || name == slack.EnvAPIURL {
			return os.Getenv(name)
		}
		value, err := cli.Secret(name)
		if unread == nil {
			unread = err
		}
		return value
	})
	if unread != nil {
		return cfg, false, unread
	}
	return cfg, on, err
}

// slackSide is Slack, and the bot that answers there.
type slackSide struct {
	slack            *slack.Slack
	bot              *bot.Bot
	handler          http.Handler // of what comes over HTTP
	byHTTP, bySocket bool
}

// heard reports whether commands can come: otherwise the channel is written to, and
// no more.
func (s *slackSide) heard() bool { return s.byHTTP || s.bySocket }

// openSlack reads the settings of Slack from the environment; nil when there
// are none. c is the bot's way to the control plane.
func openSlack(life context.Context, c *client.Client, log *slog.Logger) (*slackSide, error) {
	cfg, on, err := slackSettings()
	if err != nil || !on {
		return nil, err
	}
	s, err := slack.New(cfg, log)
	if err != nil {
		return nil, err
	}
	b, err := bot.New(bot.Config{
		Registry: catalog.All(), API: bot.Through(c), Surface: s, Secret: s.Secret(), Redactor: s.Redactor(), Log: log,
	})
	if err != nil {
		return nil, err
	}
	return &slackSide{slack: s, bot: b, handler: s.Handler(life, b), byHTTP: cfg.SigningSecret != "", bySocket: cfg.AppToken != ""}, nil
}

// nodeSlack sets up Slack in a node, when the environment has its settings: the
// bot, which asks this node, and the channel.
func nodeSlack(life context.Context, cfg *controlplane.Config, secret func() (string, error)) (*slackSide, error) {
	if _, on, err := slackSettings(); err != nil || !on {
		return nil, err
	}
	token, err := secret()
	if err != nil {
		return nil, err
	}
	cc := client.Config{Addrs: []string{cfg.API}, Token: token, Via: "slack/" + cli.Version}
	scheme := "http://"
	if cfg.TLS != nil {
		scheme, cc.Dial = "https://", cfg.TLS.Dial
	}
	if cfg.API == "" {
		cc.Addrs = []string{scheme + cfg.Listen}
	}
	c, err := client.New(cc)
	if err != nil {
		return nil, err
	}
	side, err := openSlack(life, c, cfg.Log)
	if err != nil {
		return nil, err
	}
	if !side.heard() {
		cfg.Log.Info("Slack gets the channel's lines and no answers: commands there are for a footplate bot",
			"needs", slack.EnvAppToken+" or "+slack.EnvSigningSecret)
	}
	cfg.Sinks = map[string]loop.Poster{"slack": side.slack.Channel()}
	cfg.Slack = side.handler
	return side, nil
}

// keep runs the chat beside a node. What is wrong with Slack must not end the
// node: it is said, and tried again.
func (s *slackSide) keep(ctx context.Context, log *slog.Logger) error {
	for {
		err := s.run(ctx)
		if ctx.Err() != nil {
			return nil
		}
		log.Error("the chat in Slack ended; it is tried again in a minute", "err", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Minute):
		}
	}
}

// browserPage makes the page that a node serves.
func browserPage(s controlplane.PageSeed) (http.Handler, func(context.Context) error, error) {
	p, err := page.New(page.Config(s))
	if err != nil {
		return nil, nil, err
	}
	return p, p.Run, nil
}

// run takes what comes over Socket Mode, until ctx ends.
func (s *slackSide) run(ctx context.Context) error {
	defer s.bot.Wait()
	return s.slack.Run(ctx, s.bot)
}

func serveSlack(ctx context.Context, l net.Listener, h http.Handler) error {
	mux := http.NewServeMux()
	mux.Handle(slack.Path, h)
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	s := &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10,
	}
	go func() {
		<-ctx.Done()
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		defer cancel()
		_ = s.Shutdown(end)
	}()
	if err := s.Serve(l); err != http.ErrServerClosed {
		return err
	}
	return nil
}
