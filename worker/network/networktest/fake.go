// Package networktest has a network for agents in tests: one in memory, which outlives agents as the kernel's does.
package networktest

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/network"
)

// dynamicBase is added to a target port to make the published one that is chosen for it.
const dynamicBase = 32768

// Fake is a worker.Network in memory: addresses out of the node's block, one a task, and host ports that one task may
// have at a time. The zero value is ready for use; all methods are safe for concurrent use.
type Fake struct {
	mu       sync.Mutex
	block    netip.Prefix // zero until configured
	attached map[string]netip.Addr
	ports    map[uint32]string // published port -> task
	last     netip.Addr
	torn     bool

	networks    map[string][]*swarmpb.NetworkAddress // by task
	endpoints   map[string]*swarmpb.Endpoint
	peers       map[string]*swarmpb.Peer
	gone        []string
	established map[string]int
	deaf        map[string]bool
	status      *swarmpb.NodeNetwork
	hint        func(nodeID string) bool
	refuse      error
	changes     chan struct{}
	refused     map[string]error           // of Attach, by task
	requests    map[string]network.Request // the newest, by task
	dial        func(ctx context.Context, taskID string, port uint16) (net.Conn, error)
	left        map[string]chan struct{} // of guests, by task: closed when they have gone
	detaching   time.Duration
}

// Configure takes the node's block; one without a block changes nothing.
func (n *Fake) Configure(_ context.Context, cfg *swarmpb.NodeConfig) error {
	if cfg.GetUplinkBlock() == "" {
		return nil
	}
	block, err := netip.ParsePrefix(cfg.GetUplinkBlock())
	if err != nil {
		return fmt.Errorf("uplink block %q: %w", cfg.GetUplinkBlock(), err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.block = block.Masked()
	return nil
}

// Attach gives a task the next free address of the block, or the one that it has.
func (n *Fake) Attach(_ context.Context, req network.Request) (network.Attachment, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	taskID := req.TaskID
	if n.requests == nil {
		n.requests = map[string]network.Request{}
	}
	n.requests[taskID] = req
	if err := n.refused[taskID]; err != nil {
		return network.Attachment{}, err
	}
	if !n.block.IsValid() {
		return network.Attachment{}, fmt.Errorf("attach %s: %w", taskID, network.ErrNotConfigured)
	}
	if req.Guest != nil {
		return n.attachGuest(req), nil
	}
	if _, ok := n.attached[taskID]; !ok {
		addr, err := n.free()
		if err != nil {
			return network.Attachment{}, fmt.Errorf("attach %s: %w", taskID, err)
		}
		if n.attached == nil {
			n.attached, n.networks = map[string]netip.Addr{}, map[string][]*swarmpb.NetworkAddress{}
		}
		n.last, n.attached[taskID], n.networks[taskID] = addr, addr, req.Networks
	}
	return network.Attachment{Namespace: "/run/netns/" + taskID, Address: n.attached[taskID], Networks: n.networks[taskID]}, nil
}

// RefuseAttach has Attach fail for a task from now on; nil: no more.
func (n *Fake) RefuseAttach(taskID string, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.refused == nil {
		n.refused = map[string]error{}
	}
	n.refused[taskID] = err
}

// SetDial says what becomes of Dial from now on; nil = it connects to who hangs up.
func (n *Fake) SetDial(dial func(ctx context.Context, taskID string, port uint16) (net.Conn, error)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dial = dial
}

// Dial does as SetDial says.
func (n *Fake) Dial(ctx context.Context, taskID string, port uint16) (net.Conn, error) {
	n.mu.Lock()
	dial := n.dial
	n.mu.Unlock()
	if dial != nil {
		return dial(ctx, taskID, port)
	}
	here, there := net.Pipe()
	_ = there.Close()
	return here, nil
}

// Request is what Attach was last asked for a task.
func (n *Fake) Request(taskID string) network.Request {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.requests[taskID]
}

// free is the next address after the one given last that no task has, past the network's own and the gateway.
func (n *Fake) free() (netip.Addr, error) {
	used := map[netip.Addr]bool{}
	for _, addr := range n.attached {
		used[addr] = true
	}
	first := n.block.Addr().Next().Next()
	addr := n.last.Next()
	for range len(used) + 2 { // one of these is free, or lies beyond the block's end
		if !n.block.Contains(addr) {
			addr = first
		}
		if !used[addr] && n.block.Contains(addr) {
			return addr, nil
		}
		addr = addr.Next()
	}
	return netip.Addr{}, network.ErrBlockFull
}

// Publish binds all of the ports or none.
func (n *Fake) Publish(_ context.Context, taskID string, ports []*swarmpb.PortConfig) ([]*swarmpb.PortConfig, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var bound []*swarmpb.PortConfig
	for _, p := range ports {
		p = swarmpb.Clone(p)
		p.PublishedPort = cmp.Or(p.PublishedPort, dynamicBase+p.TargetPort)
		if owner, taken := n.ports[p.PublishedPort]; taken && owner != taskID {
			return nil, fmt.Errorf("publish %d: %w by %s", p.PublishedPort, network.ErrPortTaken, owner)
		}
		bound = append(bound, p)
	}
	if n.ports == nil {
		n.ports = map[uint32]string{}
	}
	for _, p := range bound {
		n.ports[p.PublishedPort] = taskID
	}
	return bound, nil
}

// SlowDetach has Detach take a while from now on.
func (n *Fake) SlowDetach(d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.detaching = d
}

// Detach takes a task's address and ports away.
func (n *Fake) Detach(ctx context.Context, taskID string) error {
	n.mu.Lock()
	takes := n.detaching
	n.mu.Unlock()
	if takes > 0 {
		select {
		case <-time.After(takes):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	n.keep(func(id string) bool { return id != taskID })
	return nil
}

// Sweep detaches every task that is not in keep.
func (n *Fake) Sweep(_ context.Context, keep []string) error {
	n.keep(func(id string) bool { return slices.Contains(keep, id) })
	return nil
}

// Teardown detaches every task and forgets the block.
func (n *Fake) Teardown(context.Context) error {
	n.keep(func(string) bool { return false })
	n.mu.Lock()
	defer n.mu.Unlock()
	n.block, n.torn = netip.Prefix{}, true
	return nil
}

func (n *Fake) keep(wanted func(id string) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	maps.DeleteFunc(n.attached, func(id string, _ netip.Addr) bool { return !wanted(id) })
	maps.DeleteFunc(n.networks, func(id string, _ []*swarmpb.NetworkAddress) bool { return !wanted(id) })
	maps.DeleteFunc(n.ports, func(_ uint32, owner string) bool { return !wanted(owner) })
	maps.DeleteFunc(n.left, func(id string, _ chan struct{}) bool { return !wanted(id) })
}

// Attached are the tasks that are, sorted.
func (n *Fake) Attached() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Sorted(maps.Keys(n.attached))
}

// Ports are the published ports, by the task that has them.
func (n *Fake) Ports() map[uint32]string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.ports)
}

// TornDown tells whether Teardown was called.
func (n *Fake) TornDown() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.torn
}
