package containerd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/swarmd/swarmd/worker/runtime"
)

func TestReason_OfALog_OnlyWhatTheRuntimeWroteOfAStartThatFailed(t *testing.T) {
	r := &Runtime{Config: Config{Dir: t.TempDir()}, ctx: t.Context()}
	at := time.Unix(1_700_000_000, 0)
	line := func(text string) string { return "2026-01-02T15:04:05.000000000Z stderr F " + text + "\n" }
	for i, c := range []struct {
		log   string
		exit  runtime.Exit
		after time.Duration
		want  string
	}{
		{line("exec /garbage: exec format error"), runtime.Exit{Code: 1}, time.Second, "/garbage: exec format error: it is built"},
		{line(strings.Repeat("x", 8000)) + line("exec /run: permission denied"), runtime.Exit{Code: 255}, 0, "executable /run: permission denied"},
		{line("exec /garbage: exec format error"), runtime.Exit{Code: 1}, time.Minute, ""},
		{line("exec /garbage: exec format error"), runtime.Exit{Code: 2}, 0, ""},
		{line("exec /garbage: exec format error") + line("and more"), runtime.Exit{Code: 1}, 0, ""},
		{"torn", runtime.Exit{Code: 1}, 0, ""},
		{"", runtime.Exit{Code: 1}, 0, ""},
	} {
		id := string(rune('a' + i))
		if err := os.MkdirAll(r.LogDir(id), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(r.LogDir(id), "current.log"), []byte(c.log), 0o600); err != nil {
			t.Fatal(err)
		}
		c.exit.At = at.Add(c.after)
		if got := r.reasonOf(id, c.exit, at); c.want == "" && got != "" || !strings.HasPrefix(got, c.want) {
			t.Errorf("case %d: %q, want %q", i+1, got, c.want)
		}
	}
	if got := r.reasonOf("none", runtime.Exit{Code: 1, At: at}, at); got != "" {
		t.Errorf("without a log: %q", got)
	}
}
