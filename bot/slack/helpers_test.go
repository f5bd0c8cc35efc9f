package slack

import (
	"log/slog"

	"footplate/controlplane/client"
)

func optionsWithKey(key string) client.Options { return client.Options{Key: key} }

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }
