package worker

import (
	"context"
	"fmt"
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
		Resources: &swarmpb.Resources{NanoCpus: int64(goruntime.NumCPU()) * 1_000_000_000, MemoryBytes: memoryBytes("/proc/meminfo"), Generic: genericOf(cfg)},
		Engine:    engine,
		Network:   cfg.Network.Status(),
	}
}

// watchNetwork has the managers told of the node's network whenever that changes, until ctx ends.
func (a *Agent) watchNetwork(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.cfg.Network.Changes():
			poke(a.session.described)
		}
		if !sleep(ctx, a.cfg.Limits.StatusDelay) {
			return
		}
	}
}

// networkProblems are what does not work of the node's network, one line each.
func networkProblems(n *swarmpb.NodeNetwork) []string {
	var out []string
	for _, p := range n.GetProblems() {
		out = append(out, "network: "+oneLine(p))
	}
	for _, c := range n.GetConflicts() {
		by := c.GetProcess()
		if by == "" {
			by = "something else on this host"
		}
		out = append(out, oneLine(fmt.Sprintf("network: port %d/%s is published by a service and taken by %s: it is not served on this host; "+
			"end that, or publish another port", c.GetPort(), c.GetProtocol().Name(), by)))
	}
	return out
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
