package containerd

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/containerd/v2/core/transfer"
	transferimage "github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"

	"github.com/swarmd/swarmd/proto/registries"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/runtime"
)

const (
	progressEvery = 250 * time.Millisecond
	// silentFor is how long a registry that did not answer is not asked again for an image that is here.
	silentFor = 15 * time.Second
	maxSilent = 256
)

// pulls joins pulls of the same image and remembers registries that were silent.
type pulls struct {
	mu      sync.Mutex
	flights map[string]*flight
	silent  map[string]time.Time // by registry, until when
}

// flight is one pull under way. It ends with the last of its waiters: one that hangs is not in the way of a new try.
type flight struct {
	cancel  context.CancelFunc
	waiters int
	done    chan struct{}
	image   runtime.Image
	err     error
}

// do has fn run once for all that ask at the same time, under a context that ends with base or the last of them.
func (p *pulls) do(ctx, base context.Context, key string, fn func(context.Context) (runtime.Image, error)) (runtime.Image, error) {
	p.mu.Lock()
	f, ok := p.flights[key]
	if !ok {
		within, cancel := context.WithCancel(base)
		f = &flight{cancel: cancel, done: make(chan struct{})}
		if p.flights == nil {
			p.flights = map[string]*flight{}
		}
		p.flights[key] = f
		go func() {
			defer close(f.done)
			defer cancel()
			f.image, f.err = fn(within)
			p.land(key, f)
		}()
	}
	f.waiters++
	p.mu.Unlock()
	select {
	case <-f.done:
		return f.image, f.err
	case <-ctx.Done():
	}
	p.mu.Lock()
	f.waiters--
	last := f.waiters == 0
	p.mu.Unlock()
	if last {
		p.land(key, f)
		f.cancel()
	}
	return runtime.Image{}, ctx.Err()
}

// land makes room for the next pull of the key.
func (p *pulls) land(key string, f *flight) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.flights[key] == f {
		delete(p.flights, key)
	}
}

func (p *pulls) isSilent(host string, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return now.Before(p.silent[host])
}

func (p *pulls) setSilent(host string, until time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.silent == nil || len(p.silent) >= maxSilent {
		p.silent = map[string]time.Time{}
	}
	p.silent[host] = until
}

// Pull fetches and unpacks, as the request's policy says. Where it says nothing, what is here under the digest is not
// asked for, and what is here under the tag is used when the registry does not give another.
func (r *Runtime) Pull(ctx context.Context, req runtime.PullRequest) (runtime.Image, error) {
	name, pinned, err := parseReference(req.Image)
	if err != nil {
		return runtime.Image{}, fmt.Errorf("pull: %w", err)
	}
	wanted := pinned
	if req.Digest != "" {
		if wanted, err = digest.Parse(req.Digest); err != nil {
			return runtime.Image{}, fmt.Errorf("pull %s: %w", req.Image, invalid("digest %q: %s", req.Digest, err))
		}
	}
	if req.Policy == swarmpb.PullPolicy_PULL_POLICY_UNSPECIFIED && wanted != "" {
		req.Policy = swarmpb.PullPolicy_PULL_POLICY_MISSING
	}
	auth, err := proto.MarshalOptions{Deterministic: true}.Marshal(req.Auth)
	if err != nil {
		return runtime.Image{}, fmt.Errorf("pull %s: %w", req.Image, err)
	}
	ctx = r.namespaced(ctx)
	key := fmt.Sprintf("%s %s %d %x", name, wanted, req.Policy, sha256.Sum256(auth))
	image, err := r.pulls.do(ctx, r.ctx, key, func(ctx context.Context) (runtime.Image, error) {
		return r.pull(ctx, name, wanted, req)
	})
	if err != nil {
		return runtime.Image{}, fmt.Errorf("pull %s: %w", req.Image, err)
	}
	return image, nil
}

func (r *Runtime) pull(ctx context.Context, name string, wanted digest.Digest, req runtime.PullRequest) (runtime.Image, error) {
	local, missing := r.findImage(ctx, name, wanted.String())
	if missing != nil && !errors.Is(missing, runtime.ErrNotFound) {
		return runtime.Image{}, missing
	}
	host := registries.HostOf(name)
	if req.Policy == swarmpb.PullPolicy_PULL_POLICY_NEVER {
		if missing != nil {
			return runtime.Image{}, &runtime.PullError{Reason: "it is not on this node, and its pull policy is never", Err: runtime.ErrNotFound}
		}
		return r.use(ctx, local)
	}
	if missing == nil && (req.Policy == swarmpb.PullPolicy_PULL_POLICY_MISSING || r.pulls.isSilent(host, time.Now())) {
		image, err := r.use(ctx, local)
		if !errdefs.IsNotFound(err) {
			return image, err
		}
		r.log.Warn("a part of the local image is gone; it is fetched again", "image", name, "error", err)
		missing = err
	}
	image, err := r.fetch(ctx, name, wanted, req, missing == nil)
	if err == nil {
		return r.use(ctx, image)
	}
	if ctx.Err() != nil {
		return runtime.Image{}, ctx.Err()
	}
	err = pullError(host, req.Auth, err)
	// Who asks for it every time takes a refusal for an answer; others may have loaded what no registry has.
	refused := errors.Is(err, runtime.ErrNotFound) && req.Policy == swarmpb.PullPolicy_PULL_POLICY_ALWAYS
	if missing == nil && !refused {
		r.pulls.setSilent(host, time.Now().Add(silentFor))
		r.log.Warn("no answer from the registry; the local image is used", "image", name, "error", err)
		return r.use(ctx, local)
	}
	return runtime.Image{}, err
}

// use makes sure that the image is unpacked.
func (r *Runtime) use(ctx context.Context, image localImage) (runtime.Image, error) {
	info, err := r.imageInfo(ctx, image)
	if err != nil {
		return runtime.Image{}, err
	}
	snapshotter, err := r.snapshotterName(ctx)
	if err != nil {
		return runtime.Image{}, err
	}
	if _, err := r.client.SnapshotService(snapshotter).Stat(ctx, info.chain); errdefs.IsNotFound(err) {
		if err := r.unpack(ctx, image); err != nil {
			return runtime.Image{}, err
		}
	} else if err != nil {
		return runtime.Image{}, translate("look for unpacked image", err)
	}
	return describeImage(image, info), nil
}

// fetch asks the registry. With a fallback at hand its silence is not waited out.
func (r *Runtime) fetch(ctx context.Context, name string, wanted digest.Digest, req runtime.PullRequest, fallback bool) (localImage, error) {
	ref := name
	if wanted != "" {
		var err error
		if ref, err = digestName(name, wanted); err != nil {
			return localImage{}, err
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	meter := newMeter(req.Progress)
	if fallback {
		watchdog := time.AfterFunc(r.Silence, func() { cancel(fmt.Errorf("the registry has said nothing for %s", r.Silence)) })
		defer watchdog.Stop()
		meter.heard = func() { watchdog.Reset(r.Silence) }
	}
	err := r.transferOrPull(ctx, ref, req.Auth, meter)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	if err != nil {
		return localImage{}, err
	}
	image, err := r.client.ImageService().Get(ctx, ref)
	if err != nil {
		return localImage{}, translate("look up pulled image", err)
	}
	return image, r.tag(ctx, name, image)
}

// tag gives an image pulled by digest its tag too, if that is free: containers run by digest, people look for names.
func (r *Runtime) tag(ctx context.Context, name string, image localImage) error {
	if name == image.Name || strings.Contains(name, "@") {
		return nil
	}
	_, err := r.client.ImageService().Create(ctx, images.Image{Name: name, Target: image.Target})
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return translate("name pulled image", err)
	}
	return nil
}

// keeper answers with credentials for their own registry alone: a mirror, or who it leads to, learns none. It never
// fails, as containerd would wait for its answer then.
type keeper struct{ auth *swarmpb.RegistryAuth }

func (k keeper) GetCredentials(_ context.Context, _, host string) (registry.Credentials, error) {
	user, secret := registries.Secret(k.auth, host)
	return registry.Credentials{Host: host, Username: user, Secret: secret}, nil
}

func (r *Runtime) transferOrPull(ctx context.Context, ref string, auth *swarmpb.RegistryAuth, meter *meter) error {
	snapshotter, err := r.snapshotterName(ctx)
	if err != nil {
		return err
	}
	service, err := r.hasTransfer(ctx)
	if err != nil {
		return err
	}
	dir := r.registriesDir()
	if !service {
		resolver := docker.NewResolver(docker.ResolverOptions{Hosts: config.ConfigureHosts(ctx, config.HostOptions{
			HostDir: config.HostDirFromRoot(dir),
			Credentials: func(host string) (string, string, error) {
				user, secret := registries.Secret(auth, host)
				return user, secret, nil
			},
		})})
		_, err := r.client.Pull(ctx, ref, client.WithPullUnpack, client.WithPullSnapshotter(snapshotter), client.WithResolver(resolver))
		return err
	}
	options := []registry.Opt{registry.WithHostDir(dir)}
	if auth != nil {
		options = append(options, registry.WithCredentials(keeper{auth}))
	}
	source, err := registry.NewOCIRegistry(ctx, ref, options...)
	if err != nil {
		return err
	}
	platform := platforms.DefaultSpec()
	store := transferimage.NewStore(ref, transferimage.WithPlatforms(platform), transferimage.WithUnpack(platform, snapshotter))
	return r.client.Transfer(ctx, source, store, transfer.WithProgress(meter.note))
}

// hasTransfer asks containerd, once, for a service that those before 2.0 lack.
func (r *Runtime) hasTransfer(ctx context.Context) (bool, error) {
	r.mu.Lock()
	known := r.transfer
	r.mu.Unlock()
	if known != nil {
		return *known, nil
	}
	got, err := r.client.IntrospectionService().Plugins(ctx, "type==io.containerd.grpc.v1,id==transfer")
	if err != nil {
		return false, translate("ask containerd for its services", err)
	}
	version, err := r.client.Version(ctx)
	if err != nil {
		return false, translate("ask containerd for its version", err)
	}
	old := strings.HasPrefix(strings.TrimPrefix(version.Version, "v"), "1.") // 1.7 has an unfinished one
	has := !old && len(got.Plugins) > 0 && got.Plugins[0].InitErr == nil
	r.mu.Lock()
	r.transfer = &has
	r.mu.Unlock()
	return has, nil
}

// goneHere is containerd's own store missing a part of an image, which says nothing of the registry's.
var goneHere = regexp.MustCompile(`content digest \S+: not found|snapshot \S+ does not exist`)

// pullError says what a user can do about it.
func pullError(host string, auth *swarmpb.RegistryAuth, err error) error {
	text := oneLine(err.Error())
	if goneHere.MatchString(text) {
		return fmt.Errorf("a part of it is gone from this node: %s", text)
	}
	if strings.Contains(text, "no match for platform") {
		return invalid("it is not made for this node's platform, %s", platforms.DefaultString())
	}
	why := registries.Explain(host, registries.User(auth, host), err)
	if errors.Is(why, registries.ErrMissing) || errors.Is(why, registries.ErrDenied) {
		return &runtime.PullError{Reason: why.Reason, Err: runtime.ErrNotFound}
	}
	return why
}

// meter adds up what a transfer says of its parts.
type meter struct {
	report func(runtime.PullProgress)
	heard  func()
	mu     sync.Mutex
	parts  map[string]runtime.PullProgress
	last   time.Time
}

func newMeter(report func(runtime.PullProgress)) *meter {
	return &meter{report: report, heard: func() {}, parts: map[string]runtime.PullProgress{}}
}

func (m *meter) note(p transfer.Progress) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p.Total > 0 {
		m.heard()
		m.parts[p.Name] = runtime.PullProgress{Done: min(p.Progress, p.Total), Total: p.Total}
	}
	if m.report == nil || time.Since(m.last) < progressEvery {
		return
	}
	m.last = time.Now()
	var sum runtime.PullProgress
	for _, part := range m.parts {
		sum.Done += part.Done
		sum.Total += part.Total
	}
	m.report(sum)
}
