package worker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/docker/go-units"
	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
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

// pullKey is what tasks share a pull by: who may not see an image does not get it with the credentials of others.
type pullKey struct {
	image, digest string
	policy        swarmpb.PullPolicy
	auth          string // RegistryAuth in its wire form; empty = none
	// withheld: there are credentials, which this process has not been told yet.
	withheld bool
}

type flight struct {
	done    chan struct{}
	image   runtime.Image
	err     error
	waiters int
	got     runtime.PullProgress
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
			f.image, f.err = p.pull(ctx, key, f)
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

func (p *pulls) pull(ctx context.Context, key pullKey, f *flight) (runtime.Image, error) {
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
	request := runtime.PullRequest{Image: key.image, Digest: key.digest, Policy: key.policy, Progress: func(now runtime.PullProgress) {
		if now != last {
			last = now
			stall.Reset(pullStall)
			p.mu.Lock()
			f.got = now
			p.mu.Unlock()
		}
	}}
	if key.auth != "" {
		request.Auth = &swarmpb.RegistryAuth{}
		if err := proto.Unmarshal([]byte(key.auth), request.Auth); err != nil {
			return runtime.Image{}, fmt.Errorf("read registry credentials: %w", err)
		}
	}
	image, err := p.runtime.Pull(ctx, request)
	if err != nil && errors.Is(context.Cause(ctx), errStalled) {
		err = errStalled
	}
	return image, err
}

// progress is how far the pull of a key is; zero while nothing is known.
func (p *pulls) progress(key pullKey) runtime.PullProgress {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f, ok := p.flight[key]; ok {
		return f.got
	}
	return runtime.PullProgress{}
}

// unsealed is a template as it may be written to disk: without credentials. Empty ones say that there are some.
func unsealed(template *swarmpb.AssignedTemplate) *swarmpb.AssignedTemplate {
	if template.GetRegistryAuth() == nil {
		return template
	}
	template = swarmpb.Clone(template)
	template.RegistryAuth = &swarmpb.RegistryAuth{}
	return template
}

// told is a template as a manager sent it: empty credentials are none.
func told(template *swarmpb.AssignedTemplate) *swarmpb.AssignedTemplate {
	if auth := template.GetRegistryAuth(); auth == nil || proto.Size(auth) > 0 {
		return template
	}
	template = swarmpb.Clone(template)
	template.RegistryAuth = nil
	return template
}

// pullOf is the pull that a task's container needs, with the newest credentials of its service.
func (f *fleet) pullOf(t *task, spec runtime.Spec) pullKey {
	f.mu.Lock()
	template := f.templates[templateKey{t.assigned.GetServiceId(), t.assigned.GetTemplateVersion()}]
	f.mu.Unlock()
	key := pullKey{image: spec.Image, digest: spec.Digest, policy: spec.Container.GetPullPolicy()}
	if auth := template.GetRegistryAuth(); auth != nil {
		if wire, err := (proto.MarshalOptions{Deterministic: true}).Marshal(auth); err == nil {
			key.auth, key.withheld = string(wire), len(wire) == 0
		}
	}
	return key
}

// waitsForCredentials is what a task says whose image is only to be had with credentials that are still to come: they are
// not on the disk, so that a process that begins has none before it has a session.
const waitsForCredentials = "waiting for the managers to send the credentials of its registry"

// pull tries until the image is there, an error is final, or the time for passing errors, from the first one on, is over.
func (f *fleet) pull(wait context.Context, t *task, spec runtime.Spec) (runtime.Image, error) {
	pause := backoff{min: f.cfg.Limits.RetryMin, max: f.cfg.Limits.RetryMax}
	var until time.Time
	for {
		key := f.pullOf(t, spec) // with what credentials there are by now
		image, err := f.pullShown(wait, t, key)
		if err == nil || wait.Err() != nil {
			return image, err
		}
		if until.IsZero() {
			until = time.Now().Add(f.cfg.Limits.PullFor)
		}
		text := explainPull(key.image, err)
		switch missing := errors.Is(err, runtime.ErrNotFound); {
		case missing && key.withheld:
			f.say(t, waitsForCredentials, "")
			until = time.Time{}
		case missing || isFinal(err):
			return image, finalError{errors.New(text)}
		case !time.Now().Before(until):
			return image, fmt.Errorf("%s (tried for %s)", text, f.cfg.Limits.PullFor)
		default:
			f.sayTrouble(t, text)
		}
		sleep(wait, pause.next(nil))
	}
}

// Bounds of the pause between two words about a pull: a long one is told of less often, as each goes into the log of
// all managers.
const (
	progressMin = time.Second
	progressMax = 10 * time.Second
)

// pullShown pulls once, and tells meanwhile how far it is.
func (f *fleet) pullShown(wait context.Context, t *task, key pullKey) (runtime.Image, error) {
	ctx, cancel := context.WithCancel(wait)
	var telling sync.WaitGroup
	telling.Go(func() {
		var told runtime.PullProgress
		for began := time.Now(); sleep(ctx, min(max(progressMin, time.Since(began)/10), progressMax)); {
			if now := f.pulls.progress(key); now != told && now.Total > 0 {
				told = now
				f.say(t, fmt.Sprintf("pulling %s: %s of %s", key.image, units.HumanSize(float64(now.Done)), units.HumanSize(float64(now.Total))), "")
			}
		}
	})
	image, err := f.pulls.get(wait, key, f.spawn)
	cancel()
	telling.Wait() // nothing is said of a pull that is over
	return image, err
}
