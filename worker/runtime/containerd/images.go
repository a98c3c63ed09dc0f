package containerd

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/swarmd/swarmd/worker/runtime"
)

// localImage is an image of containerd's store.
type localImage = images.Image

// parseReference reads what a user wrote: nginx, nginx:alpine, host:5000/a/b@sha256:... Name is what the store
// calls it, Digest what the reference itself pins.
func parseReference(text string) (name string, pinned digest.Digest, err error) {
	ref, err := reference.ParseDockerRef(text)
	if err != nil {
		return "", "", invalid("image %q is no reference: %s", text, err)
	}
	if digested, ok := ref.(reference.Digested); ok {
		pinned = digested.Digest()
	}
	return ref.String(), pinned, nil
}

// digestName is the store's name for a digest of the reference's repository.
func digestName(name string, d digest.Digest) (string, error) {
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return "", invalid("image %q is no reference: %s", name, err)
	}
	withDigest, err := reference.WithDigest(reference.TrimNamed(ref), d)
	if err != nil {
		return "", invalid("image %q: %s", name, err)
	}
	return withDigest.String(), nil
}

// findImage is the local image with the digest, under whatever name, or without one the image of the name.
func (r *Runtime) findImage(ctx context.Context, text, wanted string) (localImage, error) {
	name, pinned, err := parseReference(text)
	if err != nil {
		return localImage{}, err
	}
	if wanted == "" {
		wanted = pinned.String()
	}
	if wanted == "" {
		image, err := r.client.ImageService().Get(ctx, name)
		if errdefs.IsNotFound(err) {
			return localImage{}, fmt.Errorf("image %s is not on this node: %w", text, runtime.ErrNotFound)
		}
		return image, translate("look up image "+text, err)
	}
	d, err := digest.Parse(wanted)
	if err != nil {
		return localImage{}, invalid("image %s: digest %q: %s", text, wanted, err)
	}
	found, err := r.client.ImageService().List(ctx, "target.digest=="+d.String())
	if err != nil {
		return localImage{}, translate("look up image "+text, err)
	}
	if len(found) == 0 {
		return localImage{}, fmt.Errorf("image %s with digest %s is not on this node: %w", text, d, runtime.ErrNotFound)
	}
	if at := slices.IndexFunc(found, func(i images.Image) bool { return i.Name == name }); at >= 0 {
		return found[at], nil
	}
	return found[0], nil
}

// imageInfo is what of an image's content containers need. Content never changes under a digest.
type imageInfo struct {
	config ocispec.ImageConfig
	health *runtime.Healthcheck // nil = none
	chain  string               // the snapshot that holds all layers
	size   int64

	mu    sync.Mutex
	users map[string]specs.User
}

// user remembers what a name means in the image.
func (i *imageInfo) user(name string, lookup func() (specs.User, error)) (specs.User, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if user, ok := i.users[name]; ok {
		return user, nil
	}
	user, err := lookup()
	if err != nil {
		return specs.User{}, err
	}
	if i.users == nil || len(i.users) >= maxUsers {
		i.users = map[string]specs.User{}
	}
	i.users[name] = user
	return user, nil
}

// Bounds of what is remembered.
const (
	maxUsers  = 64
	maxImages = 256
)

type imageCache struct {
	mu    sync.Mutex
	infos map[digest.Digest]*imageInfo
}

func (c *imageCache) get(d digest.Digest) *imageInfo {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.infos[d]
}

func (c *imageCache) put(d digest.Digest, info *imageInfo) *imageInfo {
	c.mu.Lock()
	defer c.mu.Unlock()
	if there, ok := c.infos[d]; ok {
		return there
	}
	if c.infos == nil || len(c.infos) >= maxImages {
		c.infos = map[digest.Digest]*imageInfo{}
	}
	c.infos[d] = info
	return info
}

// imageInfo reads manifest and configuration for this platform.
func (r *Runtime) imageInfo(ctx context.Context, image localImage) (*imageInfo, error) {
	if info := r.images.get(image.Target.Digest); info != nil {
		return info, nil
	}
	store, platform := r.client.ContentStore(), platforms.Default()
	manifest, err := images.Manifest(ctx, store, image.Target, platform)
	if errdefs.IsNotFound(err) && !strings.Contains(err.Error(), "content") {
		return nil, invalid("image %s is not made for this node's platform, %s", image.Name, platforms.DefaultString())
	}
	if err != nil {
		return nil, translate("read image "+image.Name, err)
	}
	body, err := content.ReadBlob(ctx, store, manifest.Config)
	if err != nil {
		return nil, translate("read image "+image.Name, err)
	}
	var config ocispec.Image
	var docker struct { // what OCI's has no place for
		Config struct{ Healthcheck *runtime.Healthcheck }
	}
	if err := errors.Join(json.Unmarshal(body, &config), json.Unmarshal(body, &docker)); err != nil {
		return nil, invalid("image %s: its configuration is not understood: %s", image.Name, oneLine(err.Error()))
	}
	if config.Architecture != "" && !platform.Match(config.Platform) {
		return nil, invalid("image %s is made for %s, this node is %s", image.Name, platforms.Format(config.Platform), platforms.DefaultString())
	}
	info := &imageInfo{config: config.Config, health: docker.Config.Healthcheck, chain: identity.ChainID(config.RootFS.DiffIDs).String(), size: manifest.Config.Size}
	for _, layer := range manifest.Layers {
		info.size += layer.Size
	}
	return r.images.put(image.Target.Digest, info), nil
}

// Healthcheck is that of a local image; nil when it has none.
func (r *Runtime) Healthcheck(ctx context.Context, image, digest string) (*runtime.Healthcheck, error) {
	ctx = r.namespaced(ctx)
	found, err := r.findImage(ctx, image, digest)
	if err != nil {
		return nil, err
	}
	info, err := r.imageInfo(ctx, found)
	if err != nil || info.health == nil {
		return nil, err
	}
	check := *info.health
	check.Test = slices.Clone(check.Test)
	return &check, nil
}

func (r *Runtime) unpack(ctx context.Context, image localImage) error {
	snapshotter, err := r.snapshotterName(ctx)
	if err != nil {
		return err
	}
	ctx, done, err := r.client.WithLease(ctx)
	if err != nil {
		return translate("unpack image "+image.Name, err)
	}
	defer done(context.WithoutCancel(ctx))
	return translate("unpack image "+image.Name, client.NewImage(r.client, image).Unpack(ctx, snapshotter))
}

// snapshotterName asks containerd, once, whether overlayfs works here.
func (r *Runtime) snapshotterName(ctx context.Context) (string, error) {
	r.mu.Lock()
	name := r.snapshotter
	r.mu.Unlock()
	if name != "" {
		return name, nil
	}
	got, err := r.client.IntrospectionService().Plugins(ctx, "type==io.containerd.snapshotter.v1")
	if err != nil {
		return "", translate("ask containerd for its snapshotters", err)
	}
	for _, wanted := range []string{"overlayfs", "native"} {
		for _, plugin := range got.Plugins {
			if plugin.ID == wanted && plugin.InitErr == nil {
				r.mu.Lock()
				r.snapshotter = wanted
				r.mu.Unlock()
				return wanted, nil
			}
		}
	}
	return "", fmt.Errorf("containerd at %s has neither the overlayfs nor the native snapshotter", r.Address)
}

// Import reads a docker or OCI archive, plain or compressed, and unpacks its images for this platform.
func (r *Runtime) Import(ctx context.Context, archive io.Reader) ([]runtime.Image, error) {
	ctx = r.namespaced(ctx)
	plain, err := compression.DecompressStream(archive)
	if err != nil {
		return nil, fmt.Errorf("import images: %w", importError(err))
	}
	defer plain.Close()
	var unnamed []string
	found, err := r.client.Import(ctx, plain, client.WithImageLabels(map[string]string{loadedLabel: "true"}), client.WithImageRefTranslator(normalName), client.WithDigestRef(func(d digest.Digest) string {
		unnamed = append(unnamed, d.String())
		return ""
	}), client.WithSkipDigestRef(func(name string) bool { return name != "" }))
	if err != nil {
		return nil, fmt.Errorf("import images: %w", importError(err))
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("import images: %w", invalid("the archive names no image (it holds %s); save it with a name, as in docker save NAME:TAG", strings.Join(unnamed, ", ")))
	}
	var out []runtime.Image
	for _, image := range found {
		made, err := r.imported(ctx, image)
		if err != nil {
			return nil, fmt.Errorf("import images: %w", err)
		}
		out = append(out, made)
	}
	return out, nil
}

// loadedLabel marks what came out of an archive. It is of an image's record here: no image can bring it along.
const loadedLabel = "swarmd.loaded"

// imported makes an image usable or, when it cannot be, removes its name again.
func (r *Runtime) imported(ctx context.Context, image localImage) (runtime.Image, error) {
	info, err := r.imageInfo(ctx, image)
	if err == nil {
		err = r.unpack(ctx, image)
	}
	if err != nil {
		return runtime.Image{}, errors.Join(err, r.client.ImageService().Delete(context.WithoutCancel(ctx), image.Name))
	}
	return describeImage(image, info), nil
}

// normalName gives a name of an archive the store's form; a bare tag of an OCI archive names nothing.
func normalName(name string) string {
	if !strings.ContainsAny(name, "/:") {
		return ""
	}
	normal, _, err := parseReference(name)
	if err != nil {
		return ""
	}
	return normal
}

// importError tells a bad archive from a bad disk.
func importError(err error) error {
	text := err.Error()
	for _, sign := range []string{"unrecognized image format", "archive/tar:", "gzip:", "invalid header", "unexpected EOF", "EOF", "manifest.json", "index.json", "oci-layout", "invalid character"} {
		if strings.Contains(text, sign) {
			return invalid("this is no docker or OCI archive: %s", oneLine(text))
		}
	}
	return translate("read archive", err)
}

func describeImage(image localImage, info *imageInfo) runtime.Image {
	return runtime.Image{Name: image.Name, Digest: image.Target.Digest.String(), Size: info.size, CreatedAt: image.CreatedAt, Loaded: image.Labels[loadedLabel] != ""}
}

// Images of the local store. Names by digest are left out where the same image has a better one.
func (r *Runtime) Images(ctx context.Context) ([]runtime.Image, error) {
	ctx = r.namespaced(ctx)
	found, err := r.client.ImageService().List(ctx)
	if err != nil {
		return nil, translate("list images", err)
	}
	named := map[digest.Digest]bool{}
	for _, image := range found {
		if !strings.Contains(image.Name, "@") {
			named[image.Target.Digest] = true
		}
	}
	var out []runtime.Image
	for _, image := range found {
		if strings.Contains(image.Name, "@") && named[image.Target.Digest] {
			continue
		}
		info, err := r.imageInfo(ctx, image)
		if err != nil { // a pull in flight, or of another platform
			info = &imageInfo{size: image.Target.Size}
		}
		out = append(out, describeImage(image, info))
	}
	slices.SortFunc(out, func(a, b runtime.Image) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// RemoveImage removes a name and, with the last name, the content. It returns the names removed.
func (r *Runtime) RemoveImage(ctx context.Context, text string, force bool) ([]string, error) {
	ctx = r.namespaced(ctx)
	image, err := r.findImage(ctx, text, "")
	if err != nil {
		return nil, fmt.Errorf("remove image: %w", err)
	}
	all, err := r.client.ImageService().List(ctx, "target.digest=="+image.Target.Digest.String())
	if err != nil {
		return nil, translate("remove image "+text, err)
	}
	remove := []string{image.Name}
	others := 0
	for _, other := range all {
		switch {
		case other.Name == image.Name:
		case strings.Contains(other.Name, "@"):
			remove = append(remove, other.Name)
		default:
			others++
		}
	}
	if others > 0 { // the content stays under those names
		remove = remove[:1]
	} else if users, err := r.usersOf(image.Target.Digest.String()); err != nil {
		return nil, fmt.Errorf("remove image %s: find its containers: %w", text, err)
	} else if len(users) > 0 && !force {
		return nil, fmt.Errorf("remove image %s: %w by containers %s", text, runtime.ErrInUse, strings.Join(users, ", "))
	}
	for i, name := range remove {
		var options []images.DeleteOpt
		if i == len(remove)-1 {
			options = append(options, images.SynchronousDelete())
		}
		if err := r.client.ImageService().Delete(ctx, name, options...); err != nil && !errdefs.IsNotFound(err) {
			return remove[:i], translate("remove image "+name, err)
		}
	}
	return remove, nil
}

// usersOf are the containers that use an image. Where that cannot be told of one, it is an error.
func (r *Runtime) usersOf(digest string) (users []string, err error) {
	ids, err := r.known()
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		s, err := r.readState(id)
		switch {
		case errors.Is(err, runtime.ErrNotFound):
		case err != nil:
			return nil, err
		case s.Digest == digest:
			users = append(users, id)
		}
	}
	return users, nil
}
