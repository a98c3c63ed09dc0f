// Package node is one host: its containerd, its local socket, and, while it belongs to a cluster, a worker and
// perhaps a manager.
//
// A daemon may belong to no cluster yet: init, join and leave happen at run time, through the socket. It belongs to
// one exactly when its identity is on disk; what a crash leaves of a half-done init or join is removed by the next
// one. It alone writes the identity and node.json below Config.DataDir.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/swarmd/swarmd/proto/registries"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
	"github.com/swarmd/swarmd/worker"
	"github.com/swarmd/swarmd/worker/devices"
	"github.com/swarmd/swarmd/worker/network"
	"github.com/swarmd/swarmd/worker/runtime"
	"github.com/swarmd/swarmd/worker/runtime/containerd"
	"github.com/swarmd/swarmd/worker/runtime/containerd/embedded"
)

// uplink is the host's *network.Network.
type uplink interface {
	worker.Network
	// Run keeps the host's network as it should be until ctx ends.
	Run(ctx context.Context) error
	// Doctor checks what networks and published ports need.
	Doctor(ctx context.Context, tell func(*swarmpb.DoctorResponse) error) error
	Close()
}

// Config of a Node. All fields are required unless they say otherwise.
type Config struct {
	// DataDir survives reboots, RunDir need not.
	DataDir, RunDir string
	// Containerd is the socket of an existing containerd; empty = our own, embedded.
	Containerd string
	// OCIRuntime is runc, crun or a path.
	OCIRuntime string
	// SharedShim has up to 16 containers share one shim.
	SharedShim bool
	// ListenAddr is host:port of the cluster port.
	ListenAddr string
	// GossipAddr is IP:port; empty = the advertised address and the default port.
	GossipAddr string
	// CgroupParent is the cgroup below which each container gets its own.
	CgroupParent string
	// Registries says how registries are spoken to; nil = all over TLS.
	Registries *registries.Set
	// ConfigDir is where that was read from and is looked for again while the daemon runs, beside PlainRegistries, which
	// are spoken to in plain HTTP; empty = it stays as it is.
	ConfigDir       string
	PlainRegistries []string
	Version         string
	// Generic resources and EngineLabels are what the host is configured to say of itself.
	Generic      []*swarmpb.GenericResource
	EngineLabels map[string]string
	// CDIDirs have the spec files of the host's devices.
	CDIDirs []string
	Logger  *slog.Logger
}

// Node is the daemon of one host.
type Node struct {
	cfg     Config
	log     *slog.Logger
	child   *embedded.Child // nil with an existing containerd
	runtime *containerd.Runtime
	engine  runtime.Runtime // runtime, as the worker knows it
	devices *devices.Set
	network uplink
	// ended gets the error of a member that ended by itself.
	ended chan error

	// changing is held by init, join and leave, one at a time.
	changing sync.Mutex
	mu       sync.Mutex
	member   *member // nil while the node belongs to no cluster
	running  context.Context
	closing  bool // no member starts any more
	// registryProblem is why registries are not spoken to as the file says; nil = they are.
	registryProblem error
}

// New prepares the host: directories, the OCI runtime, containerd's configuration. Run starts things.
func New(cfg Config) (*Node, error) {
	for _, dir := range []string{cfg.DataDir, cfg.RunDir} {
		if !filepath.IsAbs(dir) {
			return nil, fmt.Errorf("directory %q is not an absolute path", dir)
		}
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, fmt.Errorf("make directory: %w", err)
		}
	}
	n := &Node{cfg: cfg, log: cfg.Logger, ended: make(chan error, 1)}
	address := cfg.Containerd
	exits := ""
	if address == "" {
		child, err := embedded.New(embedded.Config{
			Root: filepath.Join(cfg.DataDir, "containerd"), State: filepath.Join(cfg.RunDir, "containerd"),
			Namespace: containerd.Namespace, Logger: cfg.Logger.With("part", "containerd"),
		})
		if err != nil {
			return nil, err
		}
		n.child, address, exits = child, child.Address(), child.ExitDir()
	}
	var err error
	if n.devices, err = devices.New(cfg.CDIDirs, cfg.Logger.With("part", "devices")); err != nil {
		return nil, err
	}
	n.runtime, err = containerd.New(containerd.Config{
		Address: address, Shared: cfg.Containerd != "", Dir: cfg.DataDir, RunDir: filepath.Join(cfg.RunDir, "oci"), OCIRuntime: cfg.OCIRuntime, SharedShim: cfg.SharedShim,
		CgroupParent: cfg.CgroupParent, Registries: cfg.Registries, ExitDir: exits, Devices: n.devices,
		Logger: cfg.Logger.With("part", "runtime"),
	})
	if err != nil {
		return nil, err
	}
	n.engine = n.runtime
	n.network, err = network.New(network.Config{Dir: filepath.Join(cfg.RunDir, "network"), KeyDir: filepath.Join(n.workerDir(), "network"),
		Logger: cfg.Logger.With("part", "network")})
	if err != nil {
		return nil, err
	}
	return n, nil
}

// Socket is the path of the local socket.
func (n *Node) Socket() string { return filepath.Join(n.cfg.RunDir, "swarmd.sock") }

// Run serves until ctx ends. Containers, and our containerd, go on when it returns. The membership ends before anything
// else does: the local socket answers until a leader has handed its leadership over.
func (n *Node) Run(ctx context.Context) error {
	local, err := wire.ListenLocal(n.Socket())
	if err != nil {
		return err
	}
	server := wire.NewServer(wire.ServerConfig{Local: true, Logger: n.log})
	swarmpb.RegisterLocalServer(server, &localServer{node: n})
	swarmpb.RegisterControlServer(server, controlSwitch{node: n})
	swarmpb.RegisterLogsServer(server, logsSwitch{control: controlSwitch{node: n}})
	if err := wire.CheckAccess(server); err != nil {
		return errors.Join(err, local.Close())
	}
	outer := ctx
	// What everything else stands on goes on until the membership has ended.
	running, finish := context.WithCancel(context.WithoutCancel(ctx))
	defer finish()
	g, ctx := errgroup.WithContext(ctx)
	n.mu.Lock()
	n.running = running
	n.mu.Unlock()
	if n.child != nil {
		g.Go(func() error { return n.child.Run(running) })
	}
	g.Go(func() error { return n.runtime.Run(running) })
	g.Go(func() error { return n.network.Run(running) })
	if n.cfg.ConfigDir != "" {
		g.Go(func() error { return n.watchRegistries(ctx) })
	}
	resumed := make(chan struct{})
	g.Go(func() error { return n.resume(ctx, resumed) })
	g.Go(func() error {
		// No call is answered before: an init that came first would take this host for one without a cluster.
		select {
		case <-resumed:
			return server.Serve(local)
		case <-ctx.Done():
			return errors.Join(ctx.Err(), local.Close())
		}
	})
	g.Go(func() error {
		<-ctx.Done()
		n.shutDown()
		stopServer(server)
		finish()
		return ctx.Err()
	})
	err = g.Wait()
	n.network.Close()
	if outer.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// resume starts what the node was before, closes resumed, and then watches that what it is does not end by itself.
func (n *Node) resume(ctx context.Context, resumed chan<- struct{}) error {
	state, id, err := n.load()
	if err != nil {
		return err
	}
	if id != nil {
		if err := n.comeBack(*id, state); err != nil {
			return err
		}
		n.log.Info("resumed", "node", id.NodeID, "cluster", id.ClusterID, "role", id.Role.Name())
		close(resumed)
	} else {
		n.log.Info("ready; this host belongs to no cluster yet", "socket", n.Socket())
		n.changing.Lock()
		close(resumed)
		n.finishLeave(ctx)
		n.changing.Unlock()
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-n.ended:
		return err
	}
}

// comeBack takes up the membership that is on disk. A manager that does not start is tried again beside the worker,
// unless it is the only one: nobody could bring its data back, or lead the worker.
func (n *Node) comeBack(id wire.Identity, st state) error {
	m, err := n.newMember(id, st)
	if err != nil {
		return err
	}
	if id.Role == roleManager {
		m.resumed = true
		if _, err := m.openResumed(); err != nil {
			if m.alone() && errors.Is(err, errDataMissing) {
				return fmt.Errorf("%w, and no other manager is known to begin again from: restore it from a backup, or remove %s to make this host leave its cluster",
					err, n.identityDir())
			} else if m.alone() {
				return err
			}
			m.fail(err)
		}
	}
	return n.start(m)
}

// current is the membership, nil without one.
func (n *Node) current() *member {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.member
}

// start takes over an opened member.
func (n *Node) start(m *member) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closing {
		return errors.Join(wire.Errorf(wire.CodeUnavailable, "swarmd is stopping; try again once it has started"), m.closePart())
	}
	n.member = m
	m.start(n.running, n.ended)
	return nil
}

// stopMember ends the membership's work and returns it, stopped.
func (n *Node) stopMember() *member {
	n.mu.Lock()
	m := n.member
	n.member = nil
	n.mu.Unlock()
	if m != nil {
		m.stop()
	}
	return m
}

// stopTimeout bounds the end of a membership when swarmd stops: 2 s to hand leadership over, 5 s for Raft to answer
// what is under way, and what the disk needs.
const stopTimeout = 15 * time.Second

// shutDown ends the membership's work, so that none starts again. The member stays: calls are told that swarmd stops.
func (n *Node) shutDown() {
	n.mu.Lock()
	n.closing = true
	m := n.member
	n.mu.Unlock()
	if m == nil {
		return
	}
	stopped := make(chan struct{})
	go func() { m.stop(); close(stopped) }()
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case <-stopped:
	case <-timer.C:
		n.log.Error("the node's work does not end; stopping all the same", "after", stopTimeout)
	}
}

// stopping says whether swarmd is about to end.
func (n *Node) stopping() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.closing
}

// stopGrace is how long calls under way may take when a server stops.
const stopGrace = 2 * time.Second

func stopServer(s *grpc.Server) {
	hard := time.AfterFunc(stopGrace, s.Stop)
	defer hard.Stop()
	s.GracefulStop()
}

// explain adds what to do to errors of the host that have one cause.
func (n *Node) explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return wire.Errorf(wire.CodeResourceExhausted, "no space is left below %s: free some and try again (%w)", n.cfg.DataDir, err)
	case errors.Is(err, syscall.EROFS), errors.Is(err, syscall.EIO):
		return wire.Errorf(wire.CodeUnavailable, "the disk below %s cannot be written: check the host's disk (%w)", n.cfg.DataDir, err)
	}
	return err
}
