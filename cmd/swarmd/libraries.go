package main

import (
	"context"
	"io"
	"log/slog"

	"github.com/sirupsen/logrus"
)

// routeLogrus takes over what libraries say through logrus: containerd's client does, in a format of its own. Nothing
// of it is for an operator, as every error comes back to the caller too; it is kept for debugging.
func routeLogrus(from *logrus.Logger, to *slog.Logger) {
	from.SetOutput(io.Discard)
	from.SetLevel(logrus.InfoLevel)
	from.ReplaceHooks(logrus.LevelHooks{})
	from.AddHook(logrusHook{to.With("part", "library")})
}

// logrusHook hands entries on at level debug.
type logrusHook struct{ to *slog.Logger }

func (logrusHook) Levels() []logrus.Level { return logrus.AllLevels }

func (h logrusHook) Fire(e *logrus.Entry) error {
	ctx := e.Context
	if ctx == nil {
		ctx = context.Background()
	}
	attrs := make([]slog.Attr, 0, 1+len(e.Data))
	attrs = append(attrs, slog.String("severity", e.Level.String()))
	for name, value := range e.Data {
		attrs = append(attrs, slog.Any(name, value))
	}
	h.to.LogAttrs(ctx, slog.LevelDebug, e.Message, attrs...)
	return nil
}
