package worker

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/runtime"
	"github.com/swarmd/swarmd/worker/runtime/runtimetest"
)

func TestAgent_TagMovesBetweenReplicas_OneTemplateRunsOneDigestWhileItCanBeHad(t *testing.T) {
	first, second := "sha256:"+strings.Repeat("a", 64), "sha256:"+strings.Repeat("b", 64)
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, dir)
		defer h.close()
		tag, gone := first, false
		h.runtime = runtimetest.NewFake(runtimetest.FakeConfig{Remote: func(_, digest string) (runtimetest.FakeImage, error) {
			if gone && digest == first {
				return runtimetest.FakeImage{}, fmt.Errorf("digest %s: %w", digest, runtime.ErrNotFound)
			}
			if digest == "" {
				digest = tag
			}
			return runtimetest.FakeImage{Digest: digest}, nil
		}})
		h.start()
		assign := func(id string, version uint64) {
			spec := &swarmpb.TaskSpec{Container: &swarmpb.ContainerSpec{Image: "nginx:alpine"}}
			h.manager.change(
				templateChange(&swarmpb.AssignedTemplate{ServiceId: "s", Version: version, Spec: spec}),
				taskChange(&swarmpb.AssignedTask{Id: id, ServiceId: "s", ServiceName: "web", Slot: 1, TemplateVersion: version, DesiredState: stateRunning}),
			)
			h.settle(time.Second)
		}
		want := func(id, digest string) {
			t.Helper()
			if got := h.wantState(id, stateRunning, "").GetContainer().GetImageDigest(); got != digest {
				t.Errorf("task %s runs %s, want %s", id, got, digest)
			}
		}
		assign("a", 1)
		want("a", first)
		tag = second
		if err := h.runtime.Exit("a", 1); err != nil {
			t.Fatal(err)
		}
		h.settle(time.Second)
		assign("b", 1)
		want("b", first) // what ended before has told
		h.restart()
		assign("c", 1)
		want("c", first) // and is remembered
		assign("d", 2)
		want("d", second) // another template asks anew
		gone = true
		assign("e", 1)
		want("e", second) // better than not running
	})
}
