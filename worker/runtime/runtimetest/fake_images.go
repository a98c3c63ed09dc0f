package runtimetest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/runtime"
)

// Pull implements Runtime.
func (f *Fake) Pull(ctx context.Context, req runtime.PullRequest) (runtime.Image, error) {
	ref, err := canonical(req.Image)
	if err != nil {
		return runtime.Image{}, err
	}
	if err := f.enter(ctx, OpPull, req.Image); err != nil {
		return runtime.Image{}, err
	}
	f.mu.Lock()
	f.lastPull = req
	image, _, missing := f.local(req.Image, req.Digest)
	f.mu.Unlock()
	switch {
	case req.Policy == swarmpb.PullPolicy_PULL_POLICY_NEVER && missing != nil:
		return runtime.Image{}, fmt.Errorf("pull %s: %w", req.Image, &runtime.PullError{Reason: "it is not on this node, and its pull policy is never", Err: runtime.ErrNotFound})
	case missing == nil && (req.Policy == swarmpb.PullPolicy_PULL_POLICY_NEVER || req.Policy == swarmpb.PullPolicy_PULL_POLICY_MISSING):
		return listed(ref, image), nil
	}
	image, err = f.remote(ref, req.Digest)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		f.images[ref] = image
		return listed(ref, image), nil
	}
	if !errors.Is(err, runtime.ErrNotFound) {
		if image, _, missing := f.local(req.Image, req.Digest); missing == nil {
			return listed(ref, image), nil
		}
	}
	return runtime.Image{}, fmt.Errorf("pull image %s: %w", req.Image, err)
}

// LastPull is what was asked for last.
func (f *Fake) LastPull() runtime.PullRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lastPull
}

func (f *Fake) remote(ref, digest string) (FakeImage, error) {
	var image FakeImage
	if f.config.Remote != nil {
		var err error
		if image, err = f.config.Remote(ref, digest); err != nil {
			return FakeImage{}, err
		}
	}
	switch {
	case image.Digest == "" && digest != "":
		image.Digest = digest
	case image.Digest == "":
		image.Digest = digestOf([]byte(ref))
	case digest != "" && digest != image.Digest:
		return FakeImage{}, fmt.Errorf("digest %s: %w", digest, runtime.ErrNotFound)
	}
	image.size, image.created = 1<<20, time.Now()
	return image, nil
}

// Import implements Runtime, for docker archives.
func (f *Fake) Import(ctx context.Context, archive io.Reader) ([]runtime.Image, error) {
	ref, image, err := readArchive(archive)
	if err != nil {
		return nil, fmt.Errorf("import: %w: %w", err, runtime.ErrInvalid)
	}
	if ref, err = canonical(ref); err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	image.created, image.loaded = time.Now(), true
	f.mu.Lock()
	defer f.mu.Unlock()
	f.images[ref] = image
	return []runtime.Image{listed(ref, image)}, ctx.Err()
}

// Images implements Runtime.
func (f *Fake) Images(context.Context) ([]runtime.Image, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []runtime.Image
	for _, ref := range slices.Sorted(maps.Keys(f.images)) {
		out = append(out, listed(ref, f.images[ref]))
	}
	return out, nil
}

// RemoveImage implements Runtime.
func (f *Fake) RemoveImage(_ context.Context, image string, force bool) ([]string, error) {
	ref, err := canonical(image)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.images[ref]; !ok {
		return nil, fmt.Errorf("remove image %s: %w", image, runtime.ErrNotFound)
	}
	for _, c := range f.containers {
		if used, err := canonical(c.spec.Image); err == nil && used == ref && !force {
			return nil, fmt.Errorf("remove image %s: container %s uses it: %w", image, c.spec.ID, runtime.ErrInUse)
		}
	}
	delete(f.images, ref)
	return []string{ref}, nil
}

// local finds an image in the store by its name, and by digest where one is given.
func (f *Fake) local(image, digest string) (FakeImage, string, error) {
	ref, err := canonical(image)
	if err != nil {
		return FakeImage{}, "", err
	}
	found, ok := f.images[ref]
	if !ok || digest != "" && digest != found.Digest {
		return FakeImage{}, "", fmt.Errorf("image %s: %w", image, runtime.ErrNotFound)
	}
	return found, found.Digest, nil
}

// canonical is the full reference: docker.io/library/nginx:alpine.
func canonical(ref string) (string, error) {
	parsed, err := name.ParseReference(ref, name.WeakValidation)
	if err != nil {
		return "", fmt.Errorf("image reference %q is not valid: %w", ref, runtime.ErrInvalid)
	}
	return strings.Replace(parsed.Name(), "index.docker.io/", "docker.io/", 1), nil
}

func listed(ref string, image FakeImage) runtime.Image {
	return runtime.Image{Name: ref, Digest: image.Digest, Size: image.size, CreatedAt: image.created, Loaded: image.loaded}
}

func digestOf(body []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(body)) }
