package sim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"

	"google.golang.org/grpc"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker"
	"github.com/swarmd/swarmd/worker/network"
	"github.com/swarmd/swarmd/worker/network/networktest"
	"github.com/swarmd/swarmd/worker/runtime/runtimetest"
)

// host is a machine with an agent: its runtime and its network outlive the agent's process.
type host struct {
	c       *cluster
	name    string
	runtime *runtimetest.Fake
	net     *fakeNet
	cancel  context.CancelFunc
	done    chan error

	mu    sync.Mutex
	isCut bool
	conns []*grpc.ClientConn
}

func nodeID(name string) string { return swarmpb.DerivedID("sim", name) }

// join makes a node of a host, and starts its agent.
func (c *cluster) join(name string) *host {
	c.t.Helper()
	c.put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: &swarmpb.Node{
		Id: nodeID(name), Role: swarmpb.NodeRole_NODE_ROLE_WORKER, Spec: &swarmpb.NodeSpec{DesiredRole: swarmpb.NodeRole_NODE_ROLE_WORKER}}}})
	h := &host{
		c: c, name: name, runtime: runtimetest.NewFake(runtimetest.FakeConfig{}),
		net: newFakeNet(),
	}
	c.hosts[name] = h
	h.start()
	return h
}

// start runs an agent, as a new process does.
func (h *host) start() {
	h.c.t.Helper()
	agent, err := worker.New(worker.Config{
		NodeID: nodeID(h.name), Hostname: h.name, ListenAddress: "192.0.2.7:2377", Dir: filepath.Join(h.c.dir, h.name),
		Runtime: h.runtime, Network: h.net, Dial: h.dial,
		Managers: []*swarmpb.ManagerPeer{{NodeId: managerID, Address: "192.0.2.1:2377"}},
		Logger:   slog.New(slog.DiscardHandler),
	})
	if err != nil {
		h.c.t.Fatalf("agent of %s: %v", h.name, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	h.cancel, h.done = cancel, make(chan error, 1)
	go func() { h.done <- agent.Run(ctx) }()
}

// stop ends the agent; its containers go on.
func (h *host) stop() {
	if h.cancel == nil {
		return
	}
	h.cancel()
	if err := <-h.done; err != nil {
		h.c.t.Errorf("agent of %s: %v", h.name, err)
	}
	h.cancel = nil
	h.disconnect()
}

// cut takes the manager away from the host, or gives it back.
func (h *host) cut(is bool) {
	h.mu.Lock()
	h.isCut = is
	h.mu.Unlock()
	h.disconnect()
}

func (h *host) disconnect() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, conn := range h.conns {
		_ = conn.Close()
	}
	h.conns = nil
}

func (h *host) dial(context.Context, string) (worker.Conn, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.isCut {
		return nil, errors.New("no route to host")
	}
	conn, err := h.c.connect(nodeID(h.name))
	if err == nil {
		h.conns = append(h.conns, conn)
	}
	return conn, err
}

// fakeNet is a network in memory: addresses out of the node's block, and ports that one task may have at a time.
type fakeNet struct {
	networktest.Fake // what it is told, and says of itself

	mu       sync.Mutex
	block    string
	attached map[string]netip.Addr
	ports    map[uint32]string
	last     int // the number in the block that was given last
}

// serviceLabel names the service of a container.
const serviceLabel = "com.docker.swarm.service.id"

func newFakeNet() *fakeNet {
	return &fakeNet{attached: map[string]netip.Addr{}, ports: map[uint32]string{}}
}

// reset is what the loss of power does.
func (n *fakeNet) reset() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.block = ""
	clear(n.attached)
	clear(n.ports)
}

var _ worker.Network = (*fakeNet)(nil)

// owners are the tasks that have an address or a port.
func (n *fakeNet) owners() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append(slices.Collect(maps.Keys(n.attached)), slices.Collect(maps.Values(n.ports))...)
}

func (n *fakeNet) Configure(_ context.Context, cfg *swarmpb.NodeConfig) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.block = cmp.Or(cfg.GetUplinkBlock(), n.block)
	return nil
}

func (n *fakeNet) Attach(_ context.Context, req network.Request) (network.Attachment, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	taskID := req.TaskID
	if n.block == "" {
		return network.Attachment{}, network.ErrNotConfigured
	}
	if _, ok := n.attached[taskID]; !ok {
		address, err := n.free()
		if err != nil {
			return network.Attachment{}, err
		}
		n.attached[taskID] = address
	}
	return network.Attachment{Namespace: "/run/netns/" + taskID, Address: n.attached[taskID]}, nil
}

// free is the next address of the block that no task has. n.mu is held.
func (n *fakeNet) free() (netip.Addr, error) {
	prefix, err := netip.ParsePrefix(n.block)
	if err != nil {
		return netip.Addr{}, err
	}
	taken := slices.Collect(maps.Values(n.attached))
	size := 1 << (prefix.Addr().BitLen() - prefix.Bits())
	for range size {
		n.last++
		if n.last >= size-1 {
			n.last = 2 // the first two are the network's and the node's
		}
		address := prefix.Masked().Addr()
		for range n.last {
			address = address.Next()
		}
		if !slices.Contains(taken, address) {
			return address, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("block %s is used up", n.block)
}

func (n *fakeNet) Publish(_ context.Context, taskID string, ports []*swarmpb.PortConfig) ([]*swarmpb.PortConfig, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range ports {
		if owner, taken := n.ports[p.PublishedPort]; taken && owner != taskID {
			return nil, fmt.Errorf("publish %d: %w by %s", p.PublishedPort, network.ErrPortTaken, owner)
		}
		n.ports[p.PublishedPort] = taskID
	}
	return ports, nil
}

func (n *fakeNet) Detach(_ context.Context, taskID string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.attached, taskID)
	maps.DeleteFunc(n.ports, func(_ uint32, owner string) bool { return owner == taskID })
	return nil
}

func (n *fakeNet) Sweep(_ context.Context, keep []string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	maps.DeleteFunc(n.attached, func(id string, _ netip.Addr) bool { return !slices.Contains(keep, id) })
	maps.DeleteFunc(n.ports, func(_ uint32, id string) bool { return !slices.Contains(keep, id) })
	return nil
}

func (n *fakeNet) Teardown(context.Context) error { return n.Sweep(context.Background(), nil) }
