// Package image builds the small container images of the demo and the tests out of static binaries, without a
// network, and writes them as OCI archives.
package image

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// File is one file of an image, from the host's path Source or with Content.
type File struct {
	Path    string // in the image, absolute
	Source  string
	Content []byte
	Mode    int64
	// Link makes it a symbolic link to that path instead.
	Link string
}

// Spec is what an image is built from. The result depends on nothing else: the same spec has the same digest.
type Spec struct {
	Files  []File
	Config v1.Config
	// Architecture; empty = this machine's.
	Architecture string
}

// Build makes the image.
func Build(spec Spec) (v1.Image, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	dirs := map[string]bool{}
	for _, f := range spec.Files {
		if err := addFile(w, f, dirs); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("write layer: %w", err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	if err != nil {
		return nil, fmt.Errorf("make layer: %w", err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, fmt.Errorf("add layer: %w", err)
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("read config: %w", err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Config = "linux", spec.Architecture, spec.Config
	if file.Architecture == "" {
		file.Architecture = runtime.GOARCH
	}
	return mutate.ConfigFile(img, file)
}

func addFile(w *tar.Writer, f File, dirs map[string]bool) error {
	content := f.Content
	if f.Source != "" {
		var err error
		if content, err = os.ReadFile(f.Source); err != nil {
			return fmt.Errorf("read %s: %w", f.Path, err)
		}
	}
	name := strings.TrimPrefix(f.Path, "/")
	var parents []string
	for d := filepath.Dir(name); d != "." && !dirs[d]; d = filepath.Dir(d) {
		parents = append([]string{d}, parents...)
		dirs[d] = true
	}
	for _, d := range parents {
		mode := int64(0o755)
		if d == "tmp" {
			mode = 0o1777
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: mode}); err != nil {
			return fmt.Errorf("write layer: %w", err)
		}
	}
	if f.Link != "" {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: f.Link, Mode: 0o777}); err != nil {
			return fmt.Errorf("write layer: %w", err)
		}
		return nil
	}
	mode := f.Mode
	if mode == 0 {
		mode = 0o644
	}
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content))}); err != nil {
		return fmt.Errorf("write layer: %w", err)
	}
	if _, err := w.Write(content); err != nil {
		return fmt.Errorf("write layer: %w", err)
	}
	return nil
}

// WriteArchive writes images as one OCI archive at path; the map's keys are their references.
func WriteArchive(path string, images map[string]v1.Image) error {
	dir, err := os.MkdirTemp(filepath.Dir(path), ".oci-")
	if err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	defer os.RemoveAll(dir)
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	for ref, img := range images {
		notes := map[string]string{"io.containerd.image.name": ref, "org.opencontainers.image.ref.name": ref}
		if err := p.AppendImage(img, layout.WithAnnotations(notes)); err != nil {
			return fmt.Errorf("write archive: %w", err)
		}
	}
	out, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	defer out.Close()
	w := tar.NewWriter(out)
	err = fs.WalkDir(os.DirFS(dir), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		return addFile(w, File{Path: "/" + name, Source: filepath.Join(dir, name)}, map[string]bool{"blobs": true, "blobs/sha256": true})
	})
	if err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	return out.Close()
}
