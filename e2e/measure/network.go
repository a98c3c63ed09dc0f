package measure

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// besides is the group of what Begin starts, beside those of the hosts.
const besides = "besides"

// group is the lab's, above those of its hosts.
func (c *Cluster) group() string { return filepath.Dir(c.hosts[0].cgroup()) }

// CPU is what the whole lab has used: all hosts with their containers, and what Begin has started.
func (c *Cluster) CPU() (time.Duration, error) {
	body, err := os.ReadFile(filepath.Join(cpuacct, c.group(), "cpuacct.usage"))
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(body)), 10, 64)
	return time.Duration(n), err
}

// Begin starts a program in a network namespace of the lab, by its path, with its CPU counted. The caller waits for it.
func (c *Cluster) Begin(ctx context.Context, namespace string, argv ...string) (*exec.Cmd, error) {
	dir := filepath.Join(cpuacct, c.group(), besides)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("count CPU: %w", err)
	}
	// The shell enters the group itself, so that nothing of the program is missed.
	script := `echo $$ >"$0"/cgroup.procs && exec nsenter --net="$1" -- "${@:2}"`
	cmd := exec.CommandContext(ctx, "/bin/bash", append([]string{"-c", script, dir, namespace}, argv...)...)
	cmd.Stderr = os.Stderr
	return cmd, nil
}

// CreateNetwork makes a network.
func (c *Cluster) CreateNetwork(ctx context.Context, name string) (id string, err error) {
	r, err := c.Manager().Control.CreateNetwork(ctx, &swarmpb.CreateNetworkRequest{Spec: &swarmpb.NetworkSpec{Name: name}, RequestId: swarmpb.NewID()})
	return r.GetId(), err
}

// HostOf is the host that a task runs on.
func (c *Cluster) HostOf(task *swarmpb.TaskInfo) *Host {
	for _, h := range c.hosts {
		if h.NodeID == task.GetNodeId() {
			return h
		}
	}
	return nil
}
