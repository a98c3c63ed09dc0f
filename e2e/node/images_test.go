package node_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/swarmd/swarmd/e2e/image"
)

// afar sends what is written at about 2 MB a second, as a registry far away.
type afar struct{ http.ResponseWriter }

func (w afar) Write(p []byte) (n int, err error) {
	const chunk = 128 << 10
	for err == nil && n < len(p) {
		var more int
		more, err = w.ResponseWriter.Write(p[n:min(n+chunk, len(p))])
		n += more
		time.Sleep(60 * time.Millisecond)
	}
	return n, err
}

// TestImages_PulledFromAfar_TellsHowFarItIs: of one that takes long, who creates the service and who looks at its tasks see
// how far it is. An image that containers use is removed only when none does.
func TestImages_PulledFromAfar_TellsHowFarItIs(t *testing.T) {
	t.Parallel()
	c := newHosts(t, 1, "--insecure-registry", registryHost)
	c.ok(t, 1, "init", "--no-rebalance", "--advertise-addr", c.addr(1))
	c.nodesReady(t, 1)
	origin := newMirror(registryHost)
	far := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			w = afar{w}
		}
		origin.ServeHTTP(w, r)
	})
	origin.serve(t, c, far)
	content := make([]byte, 20<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(content)
	spec := whoami(t, "v1")
	spec.Files = append(spec.Files, image.File{Path: "/ballast", Content: content})
	origin.push(t, c, "far", spec)

	ref := registryHost + "/team/app:far"
	created := c.tap(t, 1, "service", "create", "--name", "far", "--update-monitor", "500ms", ref)
	told := regexp.MustCompile(`pulling ` + regexp.QuoteMeta(ref) + `: [1-9][0-9.]*MB of 2[0-9.]*MB`)
	until(t, func() error {
		if tasks := c.tasks(t, "far"); len(tasks) != 1 || tasks[0].State != "preparing" || !told.MatchString(tasks[0].Message) {
			return fmt.Errorf("want one task that says how far its image is:\n%s", describe(tasks))
		}
		return nil
	})
	<-created.done
	out := slices.Concat(created.printed(false), created.printed(true))
	if code := created.cmd.ProcessState.ExitCode(); code != 0 || !slices.ContainsFunc(out, told.MatchString) {
		t.Errorf("service create: exit %d, %q does not say how far the image was", code, out)
	}
	c.runningAre(t, "far", 1)

	c.refused(t, 1, []string{ref, "in use by containers"}, "image", "rm", ref)
	c.remove(t, "far")
	c.runningAre(t, "far", 0)
	until(t, func() error { // its container goes after its process
		if _, errs, code := c.ctl(1, "image", "rm", ref); code != 0 {
			return fmt.Errorf("image rm: exit %d, %s", code, errs)
		}
		return nil
	})
	if out := c.ok(t, 1, "image", "ls", "--format", "json"); strings.Contains(out, "/team/app") {
		t.Errorf("the image is still listed:\n%s", out)
	}
	until(t, func() error { // the files too
		blobs := filepath.Join(c.host(1).Dir, "data/containerd/root/io.containerd.content.v1.content/blobs/sha256")
		entries, err := os.ReadDir(blobs)
		if err != nil || len(entries) > 0 {
			return fmt.Errorf("%d blobs are left, %v", len(entries), err)
		}
		return nil
	})
}
