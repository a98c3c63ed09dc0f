package containerd

import (
	"context"

	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
)

// A containerd that starts ends every shim whose container has ended meanwhile, and its exit code with it. It leaves alone those
// that have a record in its sandbox store under their ID. Such a record pins the shim of each container that runs: the exit is
// there when containerd answers, whenever it came. What ended before it started is in its exit directory besides, see
// package embedded.

// pin keeps the exit of a running container through a restart of containerd. Older ones, which have no sandboxes, can lose it.
func (r *Runtime) pin(ctx context.Context, id string) {
	_, err := r.client.SandboxStore().Create(ctx, sandbox.Sandbox{ID: id, Runtime: sandbox.RuntimeOpts{Name: shimRuntime}})
	if err != nil && ctx.Err() == nil && !errdefs.IsAlreadyExists(err) && !errdefs.IsNotImplemented(err) {
		r.log.Debug("pin the shim of a container", "task", id, "error", err)
	}
}

// unpin is for a container whose exit is known.
func (r *Runtime) unpin(ctx context.Context, id string) {
	err := r.client.SandboxStore().Delete(ctx, id)
	if err != nil && ctx.Err() == nil && !errdefs.IsNotFound(err) && !errdefs.IsNotImplemented(err) {
		r.log.Debug("let go of the shim of a container", "task", id, "error", err)
	}
}

// sweepPins removes those of containers that are no more.
func (r *Runtime) sweepPins(ctx context.Context) {
	pins, err := r.client.SandboxStore().List(ctx)
	if err != nil {
		return // it has none, or is away: the next process looks again
	}
	for _, p := range pins {
		if checkID(p.ID) != nil {
			continue
		}
		unlock := r.ids.lock(p.ID)
		if s, err := r.readState(p.ID); err != nil || s.Exit != nil {
			r.unpin(ctx, p.ID)
		}
		unlock()
	}
}
