package containerd_test

import (
	"errors"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"

	"github.com/swarmd/swarmd/worker/runtime"
	"github.com/swarmd/swarmd/worker/runtime/containerd"
	"github.com/swarmd/swarmd/worker/runtime/runtimetest"
)

func TestPull_PartOfTheLocalImageIsGone_WorthATryLater(t *testing.T) {
	h := newHost(t)
	image := h.load()
	services, err := client.New(h.config.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer services.Close()
	if err := services.ContentStore().Delete(namespaces.WithNamespace(h.ctx, containerd.Namespace), digest.Digest(image.Digest)); err != nil {
		t.Fatal(err)
	}
	h.runtime, _ = open(t, configure(t, h.daemon.child)) // it has not read the image before
	request := runtime.PullRequest{Image: runtimetest.ImageName, Digest: image.Digest}
	if _, err := h.runtime.Pull(h.ctx, request); err == nil || errors.Is(err, runtime.ErrNotFound) || errors.Is(err, runtime.ErrInvalid) {
		t.Errorf("error is %v, want a passing one", err)
	}
	h.load()
	if again, err := h.runtime.Pull(h.ctx, request); err != nil || again.Digest != image.Digest {
		t.Errorf("loaded again: %+v, %v", again, err)
	}
}
