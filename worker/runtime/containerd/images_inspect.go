package containerd

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"

	"github.com/swarmd/swarmd/worker/runtime"
)

// ImageDetail is all about an image of the local store.
type ImageDetail struct {
	runtime.Image
	// Platforms (os/architecture) that the store has a manifest of.
	Platforms []string
	// Config is the image's configuration for this platform, JSON as in the OCI image specification.
	Config []byte
	// Layers, the lowest first.
	Layers []ImageLayer
}

// ImageLayer is a layer as it was fetched.
type ImageLayer struct {
	Digest string
	Size   int64 // bytes
}

// InspectImage looks into an image of the local store.
func (r *Runtime) InspectImage(ctx context.Context, text string) (ImageDetail, error) {
	ctx = r.namespaced(ctx)
	image, err := r.findImage(ctx, text, "")
	if err != nil {
		return ImageDetail{}, err
	}
	info, err := r.imageInfo(ctx, image)
	if err != nil {
		return ImageDetail{}, err
	}
	store := r.client.ContentStore()
	manifest, err := images.Manifest(ctx, store, image.Target, platforms.Default())
	if err != nil {
		return ImageDetail{}, translate("read image "+image.Name, err)
	}
	out := ImageDetail{Image: describeImage(image, info)}
	if out.Config, err = content.ReadBlob(ctx, store, manifest.Config); err != nil {
		return ImageDetail{}, translate("read image "+image.Name, err)
	}
	for _, layer := range manifest.Layers {
		out.Layers = append(out.Layers, ImageLayer{layer.Digest.String(), layer.Size})
	}
	if out.Platforms, err = r.platformsOf(ctx, image); err != nil {
		return ImageDetail{}, fmt.Errorf("read image %s: %w", image.Name, err)
	}
	return out, nil
}

// platformsOf are those of an index whose manifests are here; one manifest alone is of one platform.
func (r *Runtime) platformsOf(ctx context.Context, image localImage) ([]string, error) {
	store := r.client.ContentStore()
	if images.IsManifestType(image.Target.MediaType) {
		found, err := images.Platforms(ctx, store, image.Target)
		if err != nil {
			return nil, err
		}
		var out []string
		for _, p := range found {
			out = append(out, platforms.Format(p))
		}
		return out, nil
	}
	children, err := images.Children(ctx, store, image.Target)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, child := range children {
		if _, err := store.Info(ctx, child.Digest); err == nil && child.Platform != nil {
			out = append(out, platforms.Format(*child.Platform))
		}
	}
	return out, nil
}
