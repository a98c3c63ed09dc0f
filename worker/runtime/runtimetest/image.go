package runtimetest

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// ImageName is the test image's. No registry answers at its host.
const ImageName = "127.0.0.1:1/swarmd/testimage:v1"

// What the test image holds, for those who check what a container sees of it.
const (
	ImageEnv     = "TESTIMAGE=from-the-image"
	ImageDir     = "/srv"
	ImageUser    = "app" // in its /etc/passwd, with the ID below
	ImageUserID  = 1000
	ImageData    = "/data/seed" // a file with the text below
	ImageSeed    = "seed of the image"
	ImageLabel   = "containerd.io/snapshot/from-the-image"
	imagePath    = "PATH=/usr/bin:/bin"
	imageProgram = "/testimage"
	imagePasswd  = "root:x:0:0::/root:/\napp:x:1000:1000::/srv:/\n"
	imageGroup   = "root:x:0:\napp:x:1000:\n"
)

// Binary builds the test image's binary for this machine, static.
func Binary(t testing.TB) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "testimage")
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", path, "github.com/swarmd/swarmd/worker/runtime/runtimetest/testimage")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the test image's binary: %v\n%s", err, out)
	}
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// Archive is the test image around a binary as a docker archive, named ref. With a binary built for another
// purpose (or none) it is as good for a runtime that does not run it.
func Archive(ref, arch string, binary []byte) ([]byte, error) {
	image, err := Image(arch, binary)
	if err != nil {
		return nil, err
	}
	tag, err := name.NewTag(ref)
	if err != nil {
		return nil, fmt.Errorf("name the test image: %w", err)
	}
	var out bytes.Buffer
	if err := tarball.Write(tag, image, &out); err != nil {
		return nil, fmt.Errorf("archive the test image: %w", err)
	}
	return out.Bytes(), nil
}

// Image is the test image around a binary, to be pushed to a registry or written to a file.
func Image(arch string, binary []byte) (v1.Image, error) {
	layer, err := layerOf([]file{
		{"testimage", 0o755, binary},
		{"etc/passwd", 0o644, []byte(imagePasswd)},
		{"etc/group", 0o644, []byte(imageGroup)},
		{ImageData[1:], 0o644, []byte(ImageSeed)},
	})
	if err != nil {
		return nil, fmt.Errorf("make the test image: %w", err)
	}
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, fmt.Errorf("make the test image: %w", err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("make the test image: %w", err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", arch
	config.Created = v1.Time{Time: time.Unix(0, 0).UTC()}
	config.Config = v1.Config{
		Entrypoint: []string{imageProgram}, Cmd: []string{"sleep", "1h"},
		Env: []string{imagePath, ImageEnv}, WorkingDir: ImageDir,
		Labels:     map[string]string{ImageLabel: "not to be copied"},
		StopSignal: "SIGINT",
		Healthcheck: &v1.HealthConfig{
			Test: []string{"CMD", imageProgram, "exit", "0"}, Interval: 7 * time.Second, Timeout: 2 * time.Second, StartPeriod: 3 * time.Second, Retries: 4,
		},
	}
	return mutate.ConfigFile(image, config)
}

type file struct {
	name string
	mode int64
	body []byte
}

func layerOf(files []file) (v1.Layer, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, dir := range []string{"etc/", "data/", "srv/", "tmp/"} {
		mode := int64(0o755)
		if dir == "tmp/" {
			mode = 0o1777
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: mode}); err != nil {
			return nil, err
		}
	}
	for _, f := range files {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: f.mode, Size: int64(len(f.body))}); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.body); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(out.Bytes())), nil })
}
