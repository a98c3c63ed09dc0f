package image

import v1 "github.com/google/go-containerregistry/pkg/v1"

// Whoami is the demo image around the static whoami binary: it listens on port 80 and says version.
func Whoami(binary, version string) Spec {
	return Spec{
		Files: []File{
			{Path: "/whoami", Source: binary, Mode: 0o755},
			{Path: "/etc/passwd", Content: []byte("root:x:0:0:root:/:/whoami\nnobody:x:65534:65534:nobody:/:/whoami\n")},
			{Path: "/etc/group", Content: []byte("root:x:0:\nnogroup:x:65534:\n")},
		},
		Config: v1.Config{
			Entrypoint:   []string{"/whoami"},
			Env:          []string{"PATH=/", "WHOAMI_VERSION=" + version},
			ExposedPorts: map[string]struct{}{"80/tcp": {}},
			StopSignal:   "SIGTERM",
		},
	}
}
