package containerd

import (
	"context"
	"sync"
)

// execs are the processes that run in containers beside their own. A container's task is deleted only once all of them have
// ended, and none begins meanwhile: the OCI runtime must not enter what it takes apart.
type execs struct {
	mu sync.Mutex
	of map[string]*inside
}

// inside is one container's.
type inside struct {
	closed  int // deletions under way
	running map[*context.CancelFunc]struct{}
	ended   *sync.Cond // one of running has
}

// enter gives a context that ends when the container is to be deleted, and what is called at the end; false when it is being
// deleted.
func (e *execs) enter(ctx context.Context, id string) (context.Context, func(), bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	in := e.get(id)
	if in.closed > 0 {
		return nil, nil, false
	}
	ctx, cancel := context.WithCancel(ctx)
	in.running[&cancel] = struct{}{}
	return ctx, func() {
		cancel()
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(in.running, &cancel)
		in.ended.Broadcast()
		e.forget(id, in)
	}, true
}

// close ends what runs, waits for it, and lets nothing begin until what it returns is called.
func (e *execs) close(id string) (reopen func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	in := e.get(id)
	in.closed++
	for cancel := range in.running {
		(*cancel)()
	}
	for len(in.running) > 0 {
		in.ended.Wait()
	}
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		in.closed--
		e.forget(id, in)
	}
}

func (e *execs) get(id string) *inside {
	in := e.of[id]
	if in == nil {
		in = &inside{running: map[*context.CancelFunc]struct{}{}, ended: sync.NewCond(&e.mu)}
		if e.of == nil {
			e.of = map[string]*inside{}
		}
		e.of[id] = in
	}
	return in
}

func (e *execs) forget(id string, in *inside) {
	if in.closed == 0 && len(in.running) == 0 {
		delete(e.of, id)
	}
}
