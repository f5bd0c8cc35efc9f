package replica

import (
	"context"
	"io"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// quietLog passes on what hashicorp's libraries log. They call a retry an
// error and a transition information; by our levels the one is a warning, and
// the other is for debugging, because this package logs transitions itself.
type quietLog struct{ to *slog.Logger }

func newQuietLog(to *slog.Logger) hclog.Logger {
	l := hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: "raft", Level: hclog.Off, Output: io.Discard})
	l.RegisterSink(quietLog{to})
	return l
}

// Accept implements hclog.SinkAdapter.
func (q quietLog) Accept(_ string, level hclog.Level, msg string, args ...any) {
	at := slog.LevelDebug
	if level >= hclog.Warn {
		at = slog.LevelInfo
	}
	if level >= hclog.Error {
		at = slog.LevelWarn
	}
	if q.to.Enabled(context.Background(), at) {
		q.to.Log(context.Background(), at, "raft: "+msg, args...)
	}
}
