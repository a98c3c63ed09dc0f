package worker

import (
	"context"
	"os"
	goruntime "runtime"
	"strconv"
	"strings"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// describe says what this host is. What cannot be found out is left empty: it comes with a later description.
func describe(ctx context.Context, cfg Config) *swarmpb.NodeDescription {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	engine := &swarmpb.EngineDescription{Version: cfg.Version, Labels: cfg.Labels}
	if info, err := cfg.Runtime.Info(ctx); err == nil {
		engine.ContainerdVersion, engine.OciRuntime = info.Version, info.OCIRuntime
	}
	return &swarmpb.NodeDescription{
		Hostname:  cfg.Hostname,
		Platform:  platform(),
		Resources: &swarmpb.Resources{NanoCpus: int64(goruntime.NumCPU()) * 1_000_000_000, MemoryBytes: memoryBytes("/proc/meminfo")},
		Engine:    engine,
	}
}

func platform() *swarmpb.Platform {
	return &swarmpb.Platform{Os: goruntime.GOOS, Architecture: goruntime.GOARCH}
}

// memoryBytes is the host's memory, 0 when it cannot be read.
func memoryBytes(meminfo string) int64 {
	body, err := os.ReadFile(meminfo)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(body)) {
		fields := strings.Fields(line)
		if len(fields) >= 2 && fields[0] == "MemTotal:" {
			kib, err := strconv.ParseInt(fields[1], 10, 64)
			if err != nil {
				return 0
			}
			return kib * 1024
		}
	}
	return 0
}
