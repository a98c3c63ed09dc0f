package image

import (
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Whoami is the demo image around the static whoami binary: it listens on port 80 and says version. The versions "crash", "sick"
// and "health" are special: see e2e/whoami.
func Whoami(binary, version string) Spec {
	spec := Spec{
		Files: []File{
			{Path: "/whoami", Source: binary, Mode: 0o755},
			{Path: "/bin/sh", Link: "/whoami"},
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
	switch version {
	case "crash":
		spec.Config.Env = append(spec.Config.Env, "CRASH_AFTER=3s")
	case "sick":
		spec.Config.Env = append(spec.Config.Env, "HEALTHY_AFTER=never")
	case "health":
		spec.Config.Healthcheck = &v1.HealthConfig{Test: []string{"CMD", "/whoami", "get", "/healthz"}, Interval: time.Second, Timeout: 5 * time.Second, Retries: 2}
	}
	return spec
}
