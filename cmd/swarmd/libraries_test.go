package main

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
)

func TestLogrus_OfALibrary_IsKeptForDebuggingInOurFormat(t *testing.T) {
	for level, want := range map[slog.Level]string{
		slog.LevelInfo:  "",
		slog.LevelDebug: `level=DEBUG msg="progress stream failed to recv" part=library severity=error error="context canceled"`,
	} {
		var stderr, ours bytes.Buffer
		from := logrus.New()
		from.SetOutput(&stderr)
		routeLogrus(from, slog.New(slog.NewTextHandler(&ours, &slog.HandlerOptions{Level: level})))
		from.WithError(errors.New("context canceled")).Error("progress stream failed to recv")
		if _, line, _ := strings.Cut(strings.TrimSpace(ours.String()), " "); line != want || stderr.Len() > 0 {
			t.Errorf("%s: logged %q, want %q; beside it %q", level, line, want, stderr.String())
		}
	}
}
