package node

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/swarmd/swarmd/proto/registries"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

func TestRegistries_FileChangesWhileTheDaemonRuns_CountsWithoutARestart(t *testing.T) {
	h := newHost(t)
	h.cfg.ConfigDir = t.TempDir()
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(h.cfg.ConfigDir, registries.FileName), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n, local, _ := h.start(t)
	hosts := func() string {
		text, _ := os.ReadFile(filepath.Join(n.runtime.RegistriesDir(), "a.local", "hosts.toml"))
		return string(text)
	}
	// shows waits until the daemon's problems and what it wrote for containerd are as wanted.
	shows := func(what, problem, server string) {
		t.Helper()
		var problems []string
		if _, err := eventually(t, func(ctx context.Context) (any, error) {
			info, err := local.GetInfo(ctx, &swarmpb.GetInfoRequest{})
			if err != nil {
				return nil, err
			}
			problems = info.GetProblems()
			told := strings.Contains(strings.Join(problems, "\n"), registries.FileName)
			if told != (problem != "") || !strings.Contains(strings.Join(problems, "\n"), problem) || !strings.Contains(hosts(), server) {
				<-time.After(20 * time.Millisecond) // between two looks
				return nil, wire.Errorf(wire.CodeUnavailable, "not yet")
			}
			return nil, nil
		}); err != nil {
			t.Fatalf("%s: problems %q, hosts.toml %q", what, problems, hosts())
		}
	}
	write("[[registry]]\nhost = \"a.local\"\nplain_http = true\n")
	shows("a new file", "", `server = "http://a.local"`)
	write("[[registry]]\nhost = \"a.local\"\nplain_htp = true\n")
	shows("a mistake", registries.FileName+`:3: unknown setting "plain_htp"`, `server = "http://a.local"`)
	write("[[registry]]\nhost = \"a.local\"\n")
	shows("put right", "", `server = "https://a.local"`)
}
