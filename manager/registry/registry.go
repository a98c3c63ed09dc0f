// Package registry asks image registries which digest a tag stands for, so that all nodes run the same image, and what
// platforms the image is there for, so that no other node is given it.
//
// It promises an answer or an error within a bounded time, whatever the registry does, and that one which was silent
// is not waited for again for a while. It keeps no credentials.
package registry

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/distribution/reference"

	"github.com/swarmd/swarmd/proto/registries"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// Bounds of what a user waits for.
const (
	// DefaultTimeout is how long a registry, with its mirrors, has to answer.
	DefaultTimeout = 3 * time.Second
	// minSilent is how long a registry that did not answer in that time is not asked again, twice as long after each
	// further time, up to maxSilence: a cluster without a way to its registry does not wait for it at every turn.
	minSilent  = 15 * time.Second
	maxSilence = 4 * time.Minute
	// maxAtOnce bounds the questions under way; who comes later waits for a place, within the same time.
	maxAtOnce = 32
	maxSilent = 256
)

// Config of a Resolver.
type Config struct {
	// HostDir says how registries are spoken to, in containerd's form (hosts.toml below a directory each); empty = all
	// over TLS.
	HostDir string
	// Timeout of an answer; 0 = DefaultTimeout.
	Timeout time.Duration
}

// Resolver finds digests.
type Resolver struct {
	cfg    Config
	places chan struct{}

	mu     sync.Mutex
	silent map[string]silence // by registry
}

// silence of a registry: for how long it is not asked.
type silence struct {
	until time.Time
	pause time.Duration
	// hosts is how it was spoken to: it is asked at once when somebody has changed that.
	hosts string
}

// New makes a Resolver.
func New(cfg Config) *Resolver {
	if cfg.Timeout <= 0 {
		cfg.Timeout = DefaultTimeout
	}
	return &Resolver{cfg: cfg, places: make(chan struct{}, maxAtOnce), silent: map[string]silence{}}
}

// Resolve returns the digest (sha256:...) of the manifest or index that the image's reference stands for now, and the
// platforms that it is there for; none where that cannot be found out. A reference with a digest is that digest, whatever the
// registry says: it is asked for the platforms alone, and without an answer there are none. The error says in one line what
// the user can do.
func (r *Resolver) Resolve(ctx context.Context, image string, auth *swarmpb.RegistryAuth) (string, []*swarmpb.Platform, error) {
	ref, err := reference.ParseDockerRef(image)
	if err != nil {
		return "", nil, fmt.Errorf("image %q is no reference: %w", image, err)
	}
	digest, platforms, err := r.resolve(ctx, ref, auth)
	if digested, ok := ref.(reference.Digested); ok && ctx.Err() == nil {
		if digest != digested.Digest().String() {
			platforms = nil
		}
		return digested.Digest().String(), platforms, nil
	}
	return digest, platforms, err
}

func (r *Resolver) resolve(ctx context.Context, ref reference.Named, auth *swarmpb.RegistryAuth) (string, []*swarmpb.Platform, error) {
	host := reference.Domain(ref)
	if r.isSilent(host) {
		return "", nil, fmt.Errorf("registry %s did not answer a moment ago", host)
	}
	asked, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	digest, platforms, err := r.ask(asked, ref.String(), auth)
	switch {
	case errors.Is(err, errBusy) && ctx.Err() == nil:
		return "", nil, err
	case err == nil:
		r.setHeard(host)
		return digest, platforms, nil
	case ctx.Err() != nil:
		return "", nil, ctx.Err()
	case asked.Err() != nil:
		r.setSilent(host)
		return "", nil, fmt.Errorf("registry %s has not answered within %s", host, r.cfg.Timeout)
	}
	r.setHeard(host)
	return "", nil, registries.Explain(host, registries.User(auth, host), err)
}

// errBusy is about this manager, not about the registry.
var errBusy = errors.New("this manager asks registries for too many other images at the moment; try again")

func (r *Resolver) ask(ctx context.Context, ref string, auth *swarmpb.RegistryAuth) (string, []*swarmpb.Platform, error) {
	select {
	case r.places <- struct{}{}:
		defer func() { <-r.places }()
	case <-ctx.Done():
		return "", nil, errBusy
	}
	options := config.HostOptions{Credentials: func(host string) (string, string, error) {
		user, secret := registries.Secret(auth, host)
		return user, secret, nil
	}}
	if r.cfg.HostDir != "" {
		options.HostDir = config.HostDirFromRoot(r.cfg.HostDir)
	}
	resolver := docker.NewResolver(docker.ResolverOptions{Hosts: config.ConfigureHosts(ctx, options)})
	name, found, err := resolver.Resolve(ctx, ref)
	if err != nil {
		return "", nil, err
	}
	if err := found.Digest.Validate(); err != nil {
		return "", nil, errors.New("it names no valid digest")
	}
	// The digest is good without: then a node of another platform says so when it has pulled the image.
	fetcher, err := resolver.Fetcher(ctx, name)
	if err != nil {
		return found.Digest.String(), nil, nil
	}
	platforms, err := platformsOf(ctx, fetcher, found)
	if err != nil {
		return found.Digest.String(), nil, nil
	}
	return found.Digest.String(), platforms, nil
}

func (r *Resolver) isSilent(host string) bool {
	r.mu.Lock()
	was := r.silent[host]
	r.mu.Unlock()
	return time.Now().Before(was.until) && was.hosts == r.hosts(host)
}

// hosts is how a registry is spoken to.
func (r *Resolver) hosts(host string) string {
	if r.cfg.HostDir == "" {
		return ""
	}
	text, _ := os.ReadFile(filepath.Join(r.cfg.HostDir, host, "hosts.toml")) // none, or one that cannot be read, is as good as empty
	return string(text)
}

func (r *Resolver) setSilent(host string) {
	hosts := r.hosts(host)
	r.mu.Lock()
	defer r.mu.Unlock()
	pause := min(max(minSilent, 2*r.silent[host].pause), maxSilence)
	if len(r.silent) >= maxSilent {
		clear(r.silent)
	}
	r.silent[host] = silence{time.Now().Add(pause), pause, hosts}
}

func (r *Resolver) setHeard(host string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.silent, host)
}
