package containerd_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/swarmd/swarmd/worker/runtime/containerd"
	"github.com/swarmd/swarmd/worker/runtime/containerd/embedded"
	"github.com/swarmd/swarmd/worker/runtime/runtimetest"
)

// TestMain is containerd and its shim too: the child that the tests run is this very binary.
func TestMain(m *testing.M) {
	if embedded.Dispatch() {
		return
	}
	code := m.Run()
	if err := shared.close(); err != nil {
		fmt.Fprintln(os.Stderr, "left behind:", err)
		code = 1
	}
	os.Exit(code)
}

// cgroupParent of every container of these tests.
var cgroupParent = "/swarmd-test-" + strconv.Itoa(os.Getpid())

// shared is one containerd for all tests that do not stop it.
var shared daemon

type daemon struct {
	once  sync.Once
	root  string
	child *embedded.Child
	err   error
	stop  context.CancelFunc
	ended chan struct{}
	// cleanup runs once containerd has ended.
	cleanup []func() error
}

// requireRoot skips where containers cannot run.
func requireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("containers need root")
	}
	if _, err := exec.LookPath("runc"); err != nil {
		t.Skip("no runc on this host: apt-get install runc")
	}
}

// open starts containerd on the first call.
func (d *daemon) open(t testing.TB) *embedded.Child {
	t.Helper()
	requireRoot(t)
	d.once.Do(d.start)
	if d.err != nil {
		t.Fatal(d.err)
	}
	return d.child
}

func (d *daemon) start() {
	if d.root, d.err = os.MkdirTemp("", "ctr"); d.err != nil { // short: sockets live below it
		return
	}
	d.err = d.startAgain()
}

// startAgain is what the next process does: it runs a child of its own on the same directories.
func (d *daemon) startAgain() error {
	child, err := embedded.New(embedded.Config{Root: filepath.Join(d.root, "data"), State: filepath.Join(d.root, "run")})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	d.child, d.stop, d.ended = child, cancel, make(chan struct{})
	go func() {
		defer close(d.ended)
		if err := child.Run(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "run containerd:", err)
		}
	}()
	ready, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return child.Ready(ready)
}

// close ends containerd and says what the tests have left on the machine.
func (d *daemon) close() error {
	if d.child == nil {
		return nil
	}
	d.stop()
	<-d.ended
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := d.child.StopChild(ctx); err != nil {
		return err
	}
	for _, clean := range d.cleanup {
		if err := clean(); err != nil {
			return err
		}
	}
	if err := leftovers(d.root); err != nil {
		return err
	}
	return os.RemoveAll(d.root)
}

// leftovers looks for processes, mounts and cgroups; it removes the empty cgroup parent.
func leftovers(root string) error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, " "+root) {
			return fmt.Errorf("mount %s", line)
		}
	}
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return err
	}
	for _, file := range lines {
		line, err := os.ReadFile(file)
		if err == nil && bytes.Contains(line, []byte(root)) {
			return fmt.Errorf("process %s: %s", file, bytes.ReplaceAll(line, []byte{0}, []byte{' '}))
		}
	}
	for _, pattern := range []string{"/sys/fs/cgroup" + cgroupParent, "/sys/fs/cgroup/*" + cgroupParent} {
		dirs, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, dir := range dirs {
			if err := os.Remove(dir); err != nil {
				return fmt.Errorf("cgroup: %w", err)
			}
		}
	}
	return nil
}

// open makes a runtime on the configuration and runs it until the returned function is called, or the test ends.
func open(t testing.TB, c containerd.Config) (*containerd.Runtime, func()) {
	t.Helper()
	r, stop := start(t, c)
	t.Cleanup(stop)
	return r, stop
}

// start is open for a test that sees to the end itself.
func start(t testing.TB, c containerd.Config) (*containerd.Runtime, func()) {
	t.Helper()
	r, err := containerd.New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	return r, sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run of the runtime: %v", err)
		}
	})
}

// configure is a runtime's configuration on a containerd, in directories of the test's own.
func configure(t testing.TB, child *embedded.Child) containerd.Config {
	t.Helper()
	dir := t.TempDir()
	return containerd.Config{
		Address: child.Address(), Dir: filepath.Join(dir, "data"), RunDir: filepath.Join(dir, "run"),
		CgroupParent: cgroupParent, ExitDir: child.ExitDir(),
	}
}

var testBinary = struct {
	sync.Mutex
	body []byte
}{}

// binary of the test image, built once.
func binary(t testing.TB) []byte {
	testBinary.Lock()
	defer testBinary.Unlock()
	if testBinary.body == nil {
		testBinary.body = runtimetest.Binary(t)
	}
	return testBinary.body
}

// emptyRegistry is a registry on the loopback, as host:port.
func emptyRegistry(t testing.TB) string {
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}
