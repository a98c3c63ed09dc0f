package registry

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

const (
	// maxDocument bounds a manifest, an index or a configuration that is read, in bytes.
	maxDocument = 4 << 20
	// maxPlatforms of an image; of one with more none is known.
	maxPlatforms = 64
)

// platformsOf asks what operating systems and architectures an image is there for, in order. Of an index those that it lists,
// of a manifest that of its configuration; none = not known.
func platformsOf(ctx context.Context, fetcher remotes.Fetcher, found ocispec.Descriptor) ([]*swarmpb.Platform, error) {
	var out []*swarmpb.Platform
	add := func(p *ocispec.Platform) {
		if p == nil || p.OS == "" || p.OS == "unknown" || p.Architecture == "" || p.Architecture == "unknown" {
			return // what goes with an image, such as where it comes from
		}
		out = append(out, &swarmpb.Platform{Os: p.OS, Architecture: p.Architecture})
	}
	switch {
	case images.IsIndexType(found.MediaType):
		var index ocispec.Index
		if err := read(ctx, fetcher, found, &index); err != nil {
			return nil, err
		}
		for i := range index.Manifests {
			if p := index.Manifests[i].Platform; p == nil {
				return nil, nil // it may be there for any
			}
			add(index.Manifests[i].Platform)
		}
	case images.IsManifestType(found.MediaType):
		var manifest ocispec.Manifest
		if err := read(ctx, fetcher, found, &manifest); err != nil {
			return nil, err
		}
		if !images.IsConfigType(manifest.Config.MediaType) {
			return nil, nil
		}
		var config ocispec.Image
		if err := read(ctx, fetcher, manifest.Config, &config); err != nil {
			return nil, err
		}
		add(&config.Platform)
	}
	if len(out) > maxPlatforms {
		return nil, nil
	}
	compare := func(a, b *swarmpb.Platform) int {
		return cmp.Or(cmp.Compare(a.GetOs(), b.GetOs()), cmp.Compare(a.GetArchitecture(), b.GetArchitecture()))
	}
	slices.SortFunc(out, compare)
	return slices.CompactFunc(out, func(a, b *swarmpb.Platform) bool { return compare(a, b) == 0 }), nil
}

// read fetches a document, which must be what its digest says.
func read(ctx context.Context, fetcher remotes.Fetcher, d ocispec.Descriptor, into any) error {
	body, err := fetcher.Fetch(ctx, d)
	if err != nil {
		return fmt.Errorf("fetch %s: %w", d.Digest, err)
	}
	defer body.Close()
	text, err := io.ReadAll(io.LimitReader(body, maxDocument+1))
	switch {
	case err != nil:
		return fmt.Errorf("fetch %s: %w", d.Digest, err)
	case len(text) > maxDocument:
		return fmt.Errorf("fetch %s: it is longer than %d bytes", d.Digest, maxDocument)
	case d.Digest.Validate() != nil || d.Digest.Algorithm().FromBytes(text) != d.Digest:
		return fmt.Errorf("fetch %s: what came is something else", d.Digest)
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("read %s: %w", d.Digest, err)
	}
	return nil
}
