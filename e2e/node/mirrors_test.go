package node_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sys/unix"

	"github.com/swarmd/swarmd/e2e/image"
)

// mirror is a registry on the switch, in plain HTTP and open to all. It remembers what hosts ask it for.
type mirror struct {
	addr   string
	store  http.Handler
	server *http.Server
	served chan error

	mu sync.Mutex
	// asked are the requests of hosts, METHOD PATH STATUS; credentials are those that they showed.
	asked, credentials []string
}

func newMirror(addr string) *mirror {
	return &mirror{addr: addr, store: registry.New(registry.Logger(log.New(io.Discard, "", 0)))}
}

func (m *mirror) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer := &statusWriter{ResponseWriter: w, status: http.StatusOK}
	m.store.ServeHTTP(answer, r)
	if host, _, _ := net.SplitHostPort(r.RemoteAddr); strings.HasPrefix(m.addr, host+":") {
		return // the test's own
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked = append(m.asked, fmt.Sprintf("%s %s %d", r.Method, r.URL.Path, answer.status))
	if shown := r.Header.Get("Authorization"); shown != "" {
		m.credentials = append(m.credentials, shown)
	}
}

type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// gave counts the layers and configurations that hosts have got from it since the last call.
func (m *mirror) gave(t *testing.T) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for _, line := range m.asked {
		if strings.HasPrefix(line, "GET") && strings.Contains(line, "/blobs/") && strings.HasSuffix(line, " 200") {
			n++
		}
	}
	t.Logf("%s was asked for %q", m.addr, m.asked)
	m.asked = nil
	return n
}

func (m *mirror) start(t *testing.T, c *cluster) {
	t.Helper()
	m.serve(t, c, m)
}

// serve is start with a handler before the mirror's own.
func (m *mirror) serve(t *testing.T, c *cluster, h http.Handler) {
	t.Helper()
	l, err := c.lab.Listen("tcp", m.addr)
	if err != nil {
		t.Fatal(err)
	}
	m.served, m.server = make(chan error, 1), &http.Server{Handler: h, ErrorLog: log.New(io.Discard, "", 0)}
	go func() { m.served <- m.server.Serve(l) }()
	t.Cleanup(m.stop)
}

func (m *mirror) stop() {
	if m.served != nil {
		_ = m.server.Close()
		<-m.served
		m.served = nil
	}
}

// push puts an image into the mirror, as one that copies its origin has it.
func (m *mirror) push(t *testing.T, c *cluster, tag string, spec image.Spec) string {
	t.Helper()
	img, err := image.Build(spec)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(m.addr+"/team/app:"+tag, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img, remote.WithTransport(&http.Transport{DialContext: c.lab.Dial, DisableKeepAlives: true})); err != nil {
		t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return digest.String()
}

// TestRegistry_Mirrors: mirrors are asked in their order, one that is down or has nothing leads to the next, and none learns
// the origin's credentials.
func TestRegistry_Mirrors(t *testing.T) {
	t.Parallel()
	origin, configDir := serveGuarded(t)
	first, second := newMirror("10.77.0.254:5001"), newMirror("10.77.0.254:5002")
	file := fmt.Sprintf("[[registry]]\nhost = %q\nca = \"ca.pem\"\nmirrors = [%q, %q]\n", registryHost, first.addr, second.addr)
	for _, m := range []*mirror{first, second} {
		file += fmt.Sprintf("\n[[registry]]\nhost = %q\nplain_http = true\n", m.addr)
	}
	if err := os.WriteFile(filepath.Join(configDir, "registries.toml"), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	c := newHosts(t, 1, "--config-dir", configDir)
	origin.start(t, c)
	c.ok(t, 1, "init", "--no-rebalance", "--advertise-addr", c.addr(1))
	c.nodesReady(t, 1)
	ann := user{c, t.TempDir()}
	if out, code := ann.ctl(t, registryPassword, "login", "--config-dir", configDir, "-u", "ann", "--password-stdin", registryHost); code != 0 {
		t.Fatalf("login: %d, %s", code, out)
	}
	// runs makes a service of a version, and says how many parts of its image each mirror gave.
	runs := func(t *testing.T, version, digest string) (fromFirst, fromSecond int) {
		t.Helper()
		ann.ok(t, ann.create("app-"+version, "/team/app:"+version, "--with-registry-auth")...)
		c.runningAre(t, "app-"+version, 1)
		if got, want := ann.imageOf(t, "app-"+version), registryHost+"/team/app:"+version+" "+digest; got != want {
			t.Errorf("the service shows %q, want %q", got, want)
		}
		return first.gave(t), second.gave(t)
	}
	t.Run("FirstIsDownAndSecondHasNothing_OriginServes", func(t *testing.T) {
		second.start(t, c)
		digest := origin.push(t, "v1", whoami(t, "v1"))
		if a, b := runs(t, "v1", digest); a+b != 0 {
			t.Errorf("the mirrors gave %d and %d parts", a, b)
		}
	})
	t.Run("FirstIsDown_SecondServes", func(t *testing.T) {
		second.start(t, c)
		digest := origin.push(t, "v2", whoami(t, "v2"))
		second.push(t, c, "v2", whoami(t, "v2"))
		if a, b := runs(t, "v2", digest); a != 0 || b == 0 {
			t.Errorf("the mirrors gave %d and %d parts", a, b)
		}
	})
	origin.stop()
	t.Run("OriginIsDead_SecondServes", func(t *testing.T) {
		second.start(t, c)
		digest := second.push(t, c, "v3", whoami(t, "v3"))
		if a, b := runs(t, "v3", digest); a != 0 || b == 0 {
			t.Errorf("the mirrors gave %d and %d parts", a, b)
		}
	})
	t.Run("OriginIsDead_FirstServesBeforeSecond", func(t *testing.T) {
		first.start(t, c)
		second.start(t, c)
		digest := first.push(t, c, "v4", whoami(t, "v4"))
		second.push(t, c, "v4", whoami(t, "v4"))
		if a, b := runs(t, "v4", digest); a == 0 || b != 0 {
			t.Errorf("the mirrors gave %d and %d parts", a, b)
		}
	})
	first.stop()
	second.stop()
	t.Run("AllAreDead_TaskSaysSo_AndRunsOnceOneIsBack", func(t *testing.T) {
		c.ok(t, 1, "service", "create", "--detach", "--no-resolve-image", "--name", "late", registryHost+"/team/app:v5")
		until(t, func() error {
			if tasks := c.tasks(t, "late"); len(tasks) != 1 || !strings.Contains(tasks[0].Error+tasks[0].Message, "connection refused") {
				return fmt.Errorf("want one task that says so:\n%s", describe(tasks))
			}
			return nil
		})
		second.start(t, c)
		second.push(t, c, "v5", whoami(t, "v5"))
		c.runningAre(t, "late", 1)
	})
	t.Run("FirstIsSilent_SecondServes", func(t *testing.T) {
		silence(t, c, first.addr)
		second.start(t, c)
		digest := second.push(t, c, "v6", whoami(t, "v6"))
		if _, b := runs(t, "v6", digest); b == 0 {
			t.Errorf("the second mirror gave nothing")
		}
	})
	for _, m := range []*mirror{first, second} {
		if len(m.credentials) > 0 {
			t.Errorf("mirror %s was shown %q", m.addr, m.credentials)
		}
	}
}

// silence makes an address of the switch that takes no connection and refuses none, as a host that is off: the kernel drops
// what comes for a listener whose queue is full.
func silence(t *testing.T, c *cluster, addr string) {
	t.Helper()
	l, err := c.lab.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var shrink error
	if err := raw.Control(func(fd uintptr) { shrink = unix.Listen(int(fd), 0) }); err != nil || shrink != nil {
		t.Fatal(err, shrink)
	}
	for range 8 { // more than the kernel queues
		within, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		conn, err := c.lab.Dial(within, "tcp", addr)
		cancel()
		if err != nil {
			return
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
	t.Fatalf("%s goes on taking connections", addr)
}
