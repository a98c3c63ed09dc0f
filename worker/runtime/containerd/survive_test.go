package containerd_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	goruntime "runtime"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/runtime"
	"github.com/swarmd/swarmd/worker/runtime/containerd"
	"github.com/swarmd/swarmd/worker/runtime/containerd/embedded"
	"github.com/swarmd/swarmd/worker/runtime/runtimetest"
)

// host is a containerd of one test's own, with a runtime on it and the test image loaded.
type host struct {
	t       *testing.T
	daemon  *daemon
	config  containerd.Config
	runtime *containerd.Runtime
	ctx     context.Context
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{t: t, daemon: &daemon{}}
	child := h.daemon.open(t)
	t.Cleanup(func() {
		if err := h.daemon.close(); err != nil {
			t.Errorf("left behind: %v", err)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	h.ctx, h.config = ctx, configure(t, child)
	h.runtime, _ = open(t, h.config)
	h.load()
	return h
}

func (h *host) load() runtime.Image {
	h.t.Helper()
	archive, err := runtimetest.Archive(runtimetest.ImageName, goruntime.GOARCH, binary(h.t))
	if err != nil {
		h.t.Fatal(err)
	}
	images, err := h.runtime.Import(h.ctx, bytes.NewReader(archive))
	if err != nil {
		h.t.Fatal(err)
	}
	return images[0]
}

func (h *host) run(id string, args ...string) uint32 {
	h.t.Helper()
	return h.runSpec(runtime.Spec{ID: id, Image: runtimetest.ImageName, Container: &swarmpb.ContainerSpec{Args: args}})
}

func (h *host) runSpec(spec runtime.Spec) uint32 {
	h.t.Helper()
	h.t.Cleanup(func() {
		if err := h.runtime.Remove(h.ctx, spec.ID); err != nil {
			h.t.Errorf("remove %s: %v", spec.ID, err)
		}
	})
	if err := h.runtime.Create(h.ctx, spec); err != nil {
		h.t.Fatal(err)
	}
	pid, err := h.runtime.Start(h.ctx, spec.ID)
	if err != nil {
		h.t.Fatal(err)
	}
	return pid
}

func (h *host) wantExit(id string, code uint32) {
	h.t.Helper()
	exit, err := h.runtime.Wait(h.ctx, id)
	if err != nil {
		h.t.Fatal(err)
	}
	if exit.Code != code || exit.Unknown || exit.At.IsZero() {
		h.t.Fatalf("%s ended as %+v, want code %d", id, exit, code)
	}
}

// daemonPid is containerd's, from its pid file.
func (h *host) daemonPid() int {
	h.t.Helper()
	body, err := os.ReadFile(filepath.Join(h.daemon.root, "run", "containerd.pid"))
	if err != nil {
		h.t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscanf(string(body), `{"pid":%d,`, &pid); err != nil {
		h.t.Fatalf("pid file %s: %v", body, err)
	}
	return pid
}

// eventually asks until the answer is yes.
func (h *host) eventually(what string, yes func() bool) {
	h.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !yes() {
		select {
		case <-tick.C:
		case <-h.ctx.Done():
			h.t.Fatalf("never: %s", what)
		}
	}
}

func TestContainerd_Killed_ContainersStayAndAreRuledAsBefore(t *testing.T) {
	h := newHost(t)
	pid := h.run("stays", "sleep")
	before := h.daemonPid()
	if err := unix.Kill(before, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	h.eventually("containerd runs again", func() bool {
		_, err := h.runtime.Info(h.ctx)
		return err == nil && h.daemonPid() != before
	})
	list, err := h.runtime.List(h.ctx)
	if err != nil || len(list) != 1 || list[0].Pid != pid || list[0].State != runtime.Running {
		t.Fatalf("list is %+v, %v; want the container running as %d", list, err, pid)
	}
	exit, err := h.runtime.Stop(h.ctx, "stays", "SIGTERM", 30*time.Second)
	if err != nil || exit.Code != 143 {
		t.Fatalf("stop: %+v, %v", exit, err)
	}
	h.run("another", "exit", "3")
	h.wantExit("another", 3)
}

func TestContainerd_Away_ExitsAreNotLost(t *testing.T) {
	h := newHost(t)
	pid := h.run("ends", "sleep")
	waited := make(chan runtime.Exit, 1)
	go func() {
		exit, _ := h.runtime.Wait(h.ctx, "ends")
		waited <- exit
	}()
	// Stopped, so that it cannot be started again before the container has ended.
	ctx, cancel := context.WithTimeout(h.ctx, 20*time.Second)
	defer cancel()
	if err := h.daemon.child.StopChild(ctx); err != nil {
		t.Fatal(err)
	}
	h.daemon.stop()
	<-h.daemon.ended
	if err := unix.Kill(int(pid), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	bundle := filepath.Join(h.daemon.root, "run", "state", "io.containerd.runtime.v2.task", containerd.Namespace, "ends")
	h.eventually("the shim wrote the exit down", func() bool {
		_, err := os.Stat(filepath.Join(bundle, "exit.json"))
		return !errors.Is(err, fs.ErrNotExist)
	})
	if err := h.daemon.startAgain(); err != nil {
		t.Fatal(err)
	}
	if exit := <-waited; exit.Code != 137 || exit.Unknown {
		t.Fatalf("the waiter was told %+v, want code 137", exit)
	}
	h.wantExit("ends", 137)
}

// What ends while containerd is starting is in no record that is read before: its shim is pinned.
func TestContainerd_AwayAndExitNotRecorded_ExitIsNotLostAndNoPinIsLeft(t *testing.T) {
	h := newHost(t)
	config := h.config
	config.ExitDir = "" // as if it had ended after the bundles were read
	config.Dir, config.RunDir = t.TempDir(), t.TempDir()
	h.runtime, _ = open(t, config)
	pid := h.run("ends", "sleep")
	pins, err := client.New(h.daemon.child.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer pins.Close()
	ours := namespaces.WithNamespace(h.ctx, containerd.Namespace)
	h.eventually("its shim is pinned", func() bool {
		_, err := pins.SandboxStore().Get(ours, "ends")
		return err == nil
	})
	if err := h.daemon.child.StopChild(h.ctx); err != nil {
		t.Fatal(err)
	}
	h.daemon.stop()
	<-h.daemon.ended
	if err := unix.Kill(int(pid), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	h.eventually("the process is gone", func() bool { return zombie(pid) })
	if err := h.daemon.startAgain(); err != nil {
		t.Fatal(err)
	}
	h.wantExit("ends", 137)
	h.eventually("no pin is left", func() bool {
		left, err := pins.SandboxStore().List(ours)
		return err == nil && len(left) == 0
	})
}

// A kill between containerd's start and our record of it must not make a task's process a second time.
func TestCreate_StartedButNotRecorded_IsTakenUpAndNotStartedAgain(t *testing.T) {
	h := newHost(t)
	spec := runtime.Spec{ID: "unrecorded", Image: runtimetest.ImageName, Container: &swarmpb.ContainerSpec{Args: []string{"sleep"}}}
	pid := h.runSpec(spec)
	record := filepath.Join(h.config.Dir, "containers", spec.ID, "state.json")
	body, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	before := regexp.MustCompile(`"(pid|ticks)":\d+`).ReplaceAll(body, []byte(`"$1":0`))
	if bytes.Equal(before, body) {
		t.Fatalf("no pid in %s", body)
	}
	if err := os.WriteFile(record, before, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := h.runtime.Create(h.ctx, spec); err != nil {
		t.Fatal(err)
	}
	again, err := h.runtime.Start(h.ctx, spec.ID)
	if err != nil || again != pid {
		t.Errorf("process %d, %v; it was %d", again, err, pid)
	}
	if exit, err := h.runtime.Stop(h.ctx, spec.ID, "SIGKILL", time.Second); err != nil || exit.Code != 137 {
		t.Errorf("stop: %+v, %v", exit, err)
	}
}

func TestShim_Killed_ExitIsTold(t *testing.T) {
	h := newHost(t)
	pid := h.run("orphan", "sleep")
	shim := parentOf(t, int(pid))
	if err := unix.Kill(shim, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	exit, err := h.runtime.Wait(h.ctx, "orphan")
	if err != nil || exit.Code != 137 && !exit.Unknown {
		t.Fatalf("wait: %+v, %v", exit, err)
	}
	h.eventually("the container's process is gone", func() bool { return zombie(pid) })
}

// zombie says whether a process is gone: nobody reaps where no init runs.
func zombie(pid uint32) bool {
	body, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || bytes.Contains(body, []byte(") Z "))
}

func parentOf(t *testing.T, pid int) int {
	t.Helper()
	body, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	var state string
	var parent int
	if _, err := fmt.Sscanf(string(body[bytes.LastIndexByte(body, ')')+1:]), "%s %d", &state, &parent); err != nil {
		t.Fatal(err)
	}
	return parent
}

func TestChild_SecondProcess_AdoptsTheFirstOnes(t *testing.T) {
	h := newHost(t)
	pid := h.daemonPid()
	container := h.run("stays", "sleep")
	h.daemon.stop()
	<-h.daemon.ended
	if err := h.daemon.startAgain(); err != nil {
		t.Fatal(err)
	}
	if again := h.daemonPid(); again != pid {
		t.Fatalf("containerd is process %d now, was %d", again, pid)
	}
	list, err := h.runtime.List(h.ctx)
	if err != nil || len(list) != 1 || list[0].Pid != container {
		t.Fatalf("list is %+v, %v", list, err)
	}
}

func TestChild_PidFileOfAnotherProcess_IsNotAdopted(t *testing.T) {
	requireRoot(t)
	root := t.TempDir()
	state, err := os.MkdirTemp("", "ctr")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(state) })
	child, err := embedded.New(embedded.Config{Root: root, State: state})
	if err != nil {
		t.Fatal(err)
	}
	stale := fmt.Sprintf(`{"pid":%d,"started":1}`, os.Getpid())
	if err := os.WriteFile(filepath.Join(state, "containerd.pid"), []byte(stale), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := child.StopChild(t.Context()); err != nil { // and we live on
		t.Fatal(err)
	}
}

func TestPull_FromPlainRegistry_ByTagAndDigest(t *testing.T) {
	h := newHost(t)
	address := emptyRegistry(t)
	config := h.config
	config.Dir, config.RunDir = t.TempDir(), t.TempDir()
	config.InsecureRegistries = []string{address}
	r, _ := open(t, config)
	image, err := runtimetest.Image(goruntime.GOARCH, binary(t))
	if err != nil {
		t.Fatal(err)
	}
	tag := address + "/demo/app:v1"
	push(t, address, "demo/app", "v1", image)
	want, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	for _, request := range []runtime.PullRequest{
		{Image: tag},
		{Image: tag, Digest: want.String()},
		{Image: address + "/demo/app@" + want.String()},
	} {
		got, err := r.Pull(h.ctx, request)
		if err != nil || got.Digest != want.String() || got.Size <= 0 {
			t.Fatalf("pull %+v: %+v, %v", request, got, err)
		}
	}
	if _, err := r.RemoveImage(h.ctx, tag, false); err != nil {
		t.Fatal(err)
	}
	got, err := r.Pull(h.ctx, runtime.PullRequest{Image: tag, Digest: want.String()})
	if err != nil || got.Digest != want.String() {
		t.Fatalf("pull by digest anew: %+v, %v", got, err)
	}
}

// push uploads an image to a registry.
func push(t *testing.T, address, repository, tag string, image v1.Image) {
	t.Helper()
	send := func(method, path, contentType string, body []byte) {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), method, "http://"+address+"/v2/"+repository+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Content-Type", contentType)
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != http.StatusCreated {
			t.Fatalf("%s %s: %s", method, path, answer.Status)
		}
	}
	blob := func(body []byte, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		send(http.MethodPost, fmt.Sprintf("/blobs/uploads/?digest=sha256:%x", sha256.Sum256(body)), "application/octet-stream", body)
	}
	layers, err := image.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, layer := range layers {
		content, err := layer.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		blob(io.ReadAll(content))
	}
	blob(image.RawConfigFile())
	manifest, err := image.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	mediaType, err := image.MediaType()
	if err != nil {
		t.Fatal(err)
	}
	send(http.MethodPut, "/manifests/"+tag, string(mediaType), manifest)
}

func TestInit_Asked_ReapsAndPassesSignals(t *testing.T) {
	h := newHost(t)
	h.runSpec(runtime.Spec{ID: "init", Image: runtimetest.ImageName, Container: &swarmpb.ContainerSpec{Args: []string{"sleep"}, Init: true}})
	exit, err := h.runtime.Stop(h.ctx, "init", "SIGTERM", 30*time.Second)
	if err != nil || exit.Code != 143 {
		t.Fatalf("stop: %+v, %v", exit, err)
	}
	h.runSpec(runtime.Spec{ID: "init-exit", Image: runtimetest.ImageName, Container: &swarmpb.ContainerSpec{Args: []string{"exit", "7"}, Init: true}})
	h.wantExit("init-exit", 7)
}

func TestCreate_Reserved_Refused(t *testing.T) {
	h := newHost(t)
	for what, spec := range map[string]*swarmpb.ContainerSpec{
		"label":       {Labels: map[string]string{"containerd.io/gc.ref.content": "x"}},
		"capability":  {CapAdd: []string{"NONSENSE"}},
		"volume":      {Mounts: []*swarmpb.Mount{{Type: swarmpb.MountType_MOUNT_TYPE_VOLUME, Source: "../up", Target: "/v"}}},
		"target":      {Mounts: []*swarmpb.Mount{{Type: swarmpb.MountType_MOUNT_TYPE_TMPFS, Target: "relative"}}},
		"stop signal": {StopSignal: "SIGNONE"},
		"user":        {User: "nobody-there"},
	} {
		err := h.runtime.Create(h.ctx, runtime.Spec{ID: "refused", Image: runtimetest.ImageName, Container: spec})
		if !errors.Is(err, runtime.ErrInvalid) || strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "/tmp") {
			t.Errorf("%s: error is %v, want one line that is %q", what, err, runtime.ErrInvalid)
		}
	}
	for _, id := range []string{"", "../up", "a/b", ".", ".."} {
		if err := h.runtime.Create(h.ctx, runtime.Spec{ID: id, Image: runtimetest.ImageName}); !errors.Is(err, runtime.ErrInvalid) {
			t.Errorf("ID %q: error is %v", id, err)
		}
	}
	if list, err := h.runtime.List(h.ctx); err != nil || len(list) > 0 {
		t.Errorf("list is %+v, %v", list, err)
	}
}
