// Package measure has what the programs that measure the product share: a cluster on the hosts of a lab, driven
// through the local sockets as swarmctl does, its CPU and memory, and medians.
package measure

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/swarmd/swarmd/e2e/lab"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// Image is what the demo archive names the service that everything here runs.
const Image = "whoami:v1"

const (
	readyWithin = 30 * time.Second
	pollEvery   = 5 * time.Millisecond
	chunkSize   = 1 << 20
)

// Config of a Cluster.
type Config struct {
	// Dir holds the hosts' directories.
	Dir string
	// Swarmd is the binary under test, Archive the demo image.
	Swarmd, Archive string
	// DiskMiB, unless 0, is the size of a disk that each host has for its data.
	DiskMiB int
	// Env is added to swarmd's environment.
	Env []string
}

// Cluster is a lab whose first hosts are the managers.
type Cluster struct {
	*lab.Lab
	cfg    Config
	hosts  []*Host
	asked  *Host
	tokens *swarmpb.JoinTokens
}

// Host is a host with a client of its local socket.
type Host struct {
	*lab.Host
	NodeID string
	Local  swarmpb.LocalClient
	// Control answers on a manager alone.
	Control swarmpb.ControlClient
	conn    *grpc.ClientConn
}

// Found makes a lab of one host and a cluster on it; it also says how long init took until the node was ready.
func Found(ctx context.Context, cfg Config) (*Cluster, time.Duration, error) {
	if os.Geteuid() != 0 {
		return nil, 0, errors.New("namespaces and containers need root")
	}
	if err := os.RemoveAll(cfg.Dir); err != nil {
		return nil, 0, err
	}
	l, err := lab.New(lab.Config{Dir: cfg.Dir, Swarmd: cfg.Swarmd, Env: cfg.Env})
	if err != nil {
		return nil, 0, err
	}
	c := &Cluster{Lab: l, cfg: cfg}
	took, err := c.init(ctx)
	if err != nil {
		return nil, 0, c.Close(err)
	}
	return c, took, nil
}

// Close ends the cluster and removes all of it. With the error of what went wrong it leaves the hosts' logs, and
// adds to the error where they are.
func (c *Cluster) Close(err error) error {
	for _, h := range c.hosts {
		_ = h.conn.Close()
	}
	if err != nil {
		return errors.Join(fmt.Errorf("%w (the hosts' logs are %s/node-*/swarmd.log)", err, c.cfg.Dir), c.Lab.Close())
	}
	return errors.Join(c.Lab.Close(), os.RemoveAll(c.cfg.Dir))
}

// Manager is the one that is asked: the first host, or what Ask has chosen.
func (c *Cluster) Manager() *Host { return c.asked }

// Ask has another manager asked from now on.
func (c *Cluster) Ask(h *Host) { c.asked = h }

// Members are all hosts, the managers first.
func (c *Cluster) Members() []*Host { return c.hosts }

// Leader is the manager that leads, as the one that is asked sees it.
func (c *Cluster) Leader(ctx context.Context) (*Host, error) {
	var leader *Host
	err := until(ctx, func() error {
		r, err := c.Manager().Control.GetCluster(ctx, &swarmpb.GetClusterRequest{})
		if err != nil {
			return err
		}
		for _, h := range c.hosts {
			if h.NodeID == r.GetLeader() {
				leader = h
				return nil
			}
		}
		return errors.New("there is no leader")
	})
	return leader, err
}

func (c *Cluster) init(ctx context.Context) (time.Duration, error) {
	h, err := c.add(ctx)
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	made, err := h.Local.Init(ctx, &swarmpb.InitRequest{AdvertiseAddress: h.Addr.String(), Spec: &swarmpb.ClusterSpec{NoRebalance: true}})
	if err != nil {
		return 0, fmt.Errorf("init: %w", err)
	}
	h.NodeID, c.tokens, c.asked = made.GetNodeId(), made.GetTokens(), h
	err = c.Await(ctx, h, swarmpb.NodeState_NODE_STATE_READY)
	return time.Since(begin), err
}

// Join adds a host as a worker; it says how long the join took until the manager saw the node ready.
func (c *Cluster) Join(ctx context.Context) (*Host, time.Duration, error) {
	return c.join(ctx, c.tokens.GetWorker())
}

// JoinManager adds a host as a manager and waits until it votes.
func (c *Cluster) JoinManager(ctx context.Context) (*Host, error) {
	h, _, err := c.join(ctx, c.tokens.GetManager())
	if err != nil {
		return nil, err
	}
	return h, c.AwaitVoter(ctx, h)
}

// AwaitVoter waits until a host is a manager that votes and answers.
func (c *Cluster) AwaitVoter(ctx context.Context, h *Host) error {
	return until(ctx, func() error {
		r, err := c.Manager().Control.GetNode(ctx, &swarmpb.GetNodeRequest{Node: h.NodeID})
		if err != nil {
			return err
		}
		if m := r.GetNode().GetManager(); !m.GetVoter() || !m.GetReachable() {
			return fmt.Errorf("%s is no voter yet", h.Name)
		}
		return nil
	})
}

func (c *Cluster) join(ctx context.Context, token string) (*Host, time.Duration, error) {
	h, err := c.add(ctx)
	if err != nil {
		return nil, 0, err
	}
	begin := time.Now()
	made, err := h.Local.Join(ctx, &swarmpb.JoinRequest{
		Token: token, Managers: []string{c.Manager().Addr.String()}, AdvertiseAddress: h.Addr.String(),
	})
	if err != nil {
		return nil, 0, fmt.Errorf("join: %w", err)
	}
	h.NodeID = made.GetNodeId()
	err = c.Await(ctx, h, swarmpb.NodeState_NODE_STATE_READY)
	return h, time.Since(begin), err
}

// add makes a host that runs swarmd, outside of any cluster, and has the image.
func (c *Cluster) add(ctx context.Context) (*Host, error) {
	on, err := c.AddHost()
	if err != nil {
		return nil, err
	}
	h := &Host{Host: on}
	if c.cfg.DiskMiB > 0 {
		if err := h.OwnDisk(c.cfg.DiskMiB); err != nil {
			return nil, err
		}
	}
	if h.conn, err = wire.DialLocal(on.Socket()); err != nil {
		return nil, err
	}
	h.Local, h.Control = swarmpb.NewLocalClient(h.conn), swarmpb.NewControlClient(h.conn)
	c.hosts = append(c.hosts, h)
	if err := h.account(); err != nil {
		return nil, err
	}
	if err := h.Up(ctx); err != nil {
		return nil, err
	}
	return h, h.load(ctx, c.cfg.Archive)
}

// Up starts swarmd and waits until it answers.
func (h *Host) Up(ctx context.Context) error {
	if err := h.StartSwarmd(); err != nil {
		return err
	}
	return h.Answers(ctx)
}

// Answers waits until swarmd answers on its local socket.
func (h *Host) Answers(ctx context.Context) error {
	return until(ctx, func() error {
		h.Reconnect()
		_, err := h.Local.GetInfo(ctx, &swarmpb.GetInfoRequest{})
		return err
	})
}

// Reconnect has the next call dial at once, after a daemon that was gone: a client's pause would be measured.
func (h *Host) Reconnect() { h.conn.ResetConnectBackoff() }

// Keeper is the manager that the host's worker has its session with.
func (c *Cluster) Keeper(ctx context.Context, h *Host) (*Host, error) {
	var keeper *Host
	err := until(ctx, func() error {
		info, err := h.Local.GetInfo(ctx, &swarmpb.GetInfoRequest{})
		if err != nil {
			return err
		}
		address, _, _ := strings.Cut(info.GetConnectedTo(), ":")
		for _, m := range c.hosts {
			if m.Addr.String() == address {
				keeper = m
				return nil
			}
		}
		return fmt.Errorf("%s has no session with a manager: %q", h.Name, info.GetConnectedTo())
	})
	return keeper, err
}

func (h *Host) load(ctx context.Context, archive string) error {
	f, err := os.Open(archive)
	if err != nil {
		return fmt.Errorf("open the image (make image builds it): %w", err)
	}
	defer f.Close()
	return until(ctx, func() error { // containerd may still be starting
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return err
		}
		stream, err := h.Local.LoadImage(ctx)
		if err != nil {
			return err
		}
		for chunk := make([]byte, chunkSize); ; {
			n, err := f.Read(chunk)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
			if stream.Send(&swarmpb.LoadImageRequest{Chunk: chunk[:n]}) != nil {
				break // the answer says why
			}
		}
		_, err = stream.CloseAndRecv()
		return err
	})
}

// Await waits until the manager sees the host in that state.
func (c *Cluster) Await(ctx context.Context, h *Host, state swarmpb.NodeState) error {
	return until(ctx, func() error {
		r, err := c.Manager().Control.GetNode(ctx, &swarmpb.GetNodeRequest{Node: h.NodeID})
		if err != nil {
			return err
		}
		if got := r.GetNode().GetStatus().GetState(); got != state {
			return fmt.Errorf("%s is %s, not %s", h.Name, got.Name(), state.Name())
		}
		return nil
	})
}

// FirstProcess is the pid, outside the host, of a container's first process, as its task's ID names it.
func (h *Host) FirstProcess(task string) (int, error) {
	body, err := os.ReadFile(filepath.Join(freezer, h.cgroup(), task, "cgroup.procs"))
	if err != nil {
		return 0, fmt.Errorf("find the processes of task %s: %w", task, err)
	}
	first, err := strconv.Atoi(append(strings.Fields(string(body)), "none")[0])
	if err != nil {
		return 0, fmt.Errorf("find the processes of task %s: %w", task, err)
	}
	return first, nil
}

// Kill kills a container's first process with SIGKILL, as its task's ID names it.
func (h *Host) Kill(task string) error {
	first, err := h.FirstProcess(task)
	if err != nil {
		return err
	}
	p, err := os.FindProcess(first)
	if err != nil {
		return err
	}
	return p.Kill()
}

// until repeats fn until it succeeds; after half a minute it returns its last error.
func until(ctx context.Context, fn func() error) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		err := fn()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}
