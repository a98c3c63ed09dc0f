package worker

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/swarmd/swarmd/worker/runtime"
)

// pullStall is how long a pull may make no progress before it is given up and tried again.
const pullStall = 5 * time.Minute

var errStalled = errors.New("no progress for 5 minutes")

// pulls shares one pull among the tasks that want the same image, and bounds those under way.
type pulls struct {
	runtime runtime.Runtime
	slots   chan struct{}

	mu     sync.Mutex
	flight map[pullKey]*flight
}

type pullKey struct{ image, digest string }

type flight struct {
	done    chan struct{}
	image   runtime.Image
	err     error
	waiters int
	cancel  context.CancelCauseFunc
}

func newPulls(rt runtime.Runtime, limit int) *pulls {
	return &pulls{runtime: rt, slots: make(chan struct{}, limit), flight: map[pullKey]*flight{}}
}

// get has the image pulled. The pull goes on while somebody waits for it; goer runs it.
func (p *pulls) get(ctx context.Context, key pullKey, goer func(func(context.Context)) bool) (runtime.Image, error) {
	f := p.join(key, goer)
	defer p.part(key, f)
	select {
	case <-f.done:
		return f.image, f.err
	case <-ctx.Done():
		return runtime.Image{}, ctx.Err()
	}
}

func (p *pulls) join(key pullKey, goer func(func(context.Context)) bool) *flight {
	p.mu.Lock()
	defer p.mu.Unlock()
	f, ok := p.flight[key]
	if !ok {
		f = &flight{done: make(chan struct{})}
		started := goer(func(base context.Context) {
			ctx, cancel := context.WithCancelCause(base)
			defer cancel(nil)
			p.mu.Lock()
			f.cancel = cancel
			abandoned := f.waiters == 0
			p.mu.Unlock()
			if abandoned {
				cancel(context.Canceled)
			}
			f.image, f.err = p.pull(ctx, key)
			p.mu.Lock()
			p.land(key, f)
			p.mu.Unlock()
			close(f.done)
		})
		if !started {
			f.err = context.Canceled
			close(f.done)
		} else {
			p.flight[key] = f
		}
	}
	f.waiters++
	return f
}

// part leaves a flight. One that nobody waits for ends, and who comes later gets a new one.
func (p *pulls) part(key pullKey, f *flight) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f.waiters--
	if f.waiters > 0 {
		return
	}
	p.land(key, f)
	if f.cancel != nil {
		f.cancel(context.Canceled)
	}
}

// land takes a flight off the list. p.mu is held.
func (p *pulls) land(key pullKey, f *flight) {
	if p.flight[key] == f {
		delete(p.flight, key)
	}
}

func (p *pulls) pull(ctx context.Context, key pullKey) (runtime.Image, error) {
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-ctx.Done():
		return runtime.Image{}, ctx.Err()
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := time.AfterFunc(pullStall, func() { cancel(errStalled) })
	defer stall.Stop()
	var last runtime.PullProgress
	image, err := p.runtime.Pull(ctx, runtime.PullRequest{Image: key.image, Digest: key.digest, Progress: func(now runtime.PullProgress) {
		if now != last {
			last = now
			stall.Reset(pullStall)
		}
	}})
	if err != nil && errors.Is(context.Cause(ctx), errStalled) {
		err = errStalled
	}
	return image, err
}
