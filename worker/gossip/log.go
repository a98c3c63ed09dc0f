package gossip

import (
	"context"
	"io"
	"log"
	"log/slog"
	"strings"
	"sync"
	"time"
)

const (
	// warnings of the library that are logged in a period; whoever can reach the port can cause any number.
	warnings      = 5
	warningPeriod = time.Minute
)

// newLogger has the library's log go to ours.
func newLogger(to *slog.Logger) *log.Logger {
	return log.New(&logWriter{log: to}, "", 0)
}

// logWriter takes the library's lines: what it calls an error is a warning here, as nothing depends on gossip alone, and
// all else is for debugging.
type logWriter struct {
	log *slog.Logger

	mu         sync.Mutex
	since      time.Time
	told, held int
}

var _ io.Writer = (*logWriter)(nil)

func (w *logWriter) Write(line []byte) (int, error) {
	text := strings.TrimSpace(string(line))
	level := slog.LevelDebug
	if strings.HasPrefix(text, "[ERR") {
		level = slog.LevelWarn
	}
	if _, rest, ok := strings.Cut(text, "] "); ok {
		text = strings.TrimPrefix(rest, "memberlist: ")
	}
	if level == slog.LevelDebug {
		w.log.Log(context.Background(), level, "gossip", "message", text)
		return len(line), nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if now := time.Now(); now.Sub(w.since) > warningPeriod {
		if w.held > 0 {
			w.log.Warn("gossip: more of the kind was left out", "lines", w.held)
		}
		w.since, w.told, w.held = now, 0, 0
	}
	if w.told >= warnings {
		w.held++
		return len(line), nil
	}
	w.told++
	w.log.Warn("gossip", "message", text)
	return len(line), nil
}
