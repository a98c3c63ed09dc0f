package worker

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/runtime"
	"github.com/swarmd/swarmd/worker/runtime/runtimetest"
)

// puller answers for the registries of a runtime.
type puller func(ctx context.Context, req runtime.PullRequest) (runtime.Image, error)

type pullingRuntime struct {
	*runtimetest.Fake
	pull puller
}

func (r pullingRuntime) Pull(ctx context.Context, req runtime.PullRequest) (runtime.Image, error) {
	return r.pull(ctx, req)
}

func TestAgent_LongPullBreaksOff_IsTriedAgain(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, dir)
		defer h.close()
		tries := 0
		h.pull = func(ctx context.Context, req runtime.PullRequest) (runtime.Image, error) {
			if tries++; tries > 1 {
				return h.runtime.Pull(ctx, req)
			}
			for done := int64(1); done < 8; done++ {
				req.Progress(runtime.PullProgress{Done: done, Total: 10})
				if !sleep(ctx, time.Minute) {
					return runtime.Image{}, ctx.Err()
				}
			}
			return runtime.Image{}, errors.New("connection reset by peer")
		}
		h.start()
		h.manager.assign("a", stateRunning)
		h.settle(10 * time.Minute)
		h.wantState("a", stateRunning, "")
	})
}

func TestAgent_ImagesRemovedBeforeStartAndRegistryHangs_OthersStart(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		for i := range 2 * h.limits.Starts {
			h.manager.assign(fmt.Sprint("gone", i), stateReady)
		}
		h.settle(time.Second)
		_, err := h.runtime.RemoveImage(t.Context(), "nginx:alpine", false)
		must(t, err)
		h.runtime.SetBefore(func(ctx context.Context, op runtimetest.Op, name string) error {
			if op == runtimetest.OpPull && name == "nginx:alpine" {
				<-ctx.Done()
			}
			return ctx.Err()
		})
		for i := range 2 * h.limits.Starts {
			h.manager.desire(fmt.Sprint("gone", i), stateRunning)
		}
		h.settle(time.Second)
		h.manager.assignSpec("other", stateRunning, &swarmpb.ContainerSpec{Image: "other"})
		h.settle(time.Second)
		h.wantRunning("other")
	})
}
