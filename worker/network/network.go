// Package network gives every task a network namespace of its own, with eth0 routed to the host: the uplink.
//
// There is no bridge: each task's veth pair is a link of its own with a route to the one address behind it, and
// all are in one device group, which is what the rules match. docs/decisions/0001-uplink-without-a-bridge.md says why.
//
// It promises that attaching and detaching are idempotent, that what it made is known again after a restart of
// the daemon, and that it touches nothing on the host that it did not make: the bridge, the veth pairs and
// namespaces named after tasks, and one nftables table. It alone writes those, and the files under Config.Dir.
package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// Errors that the agent branches on; they are wrapped.
var (
	// ErrNotConfigured: the node has no uplink block yet. Trying again later helps.
	ErrNotConfigured = errors.New("the node has no uplink block yet")
	// ErrPortTaken: something else on this host has the port.
	ErrPortTaken = errors.New("port is taken")
	// ErrBlockFull: no address of the node's block is free.
	ErrBlockFull = errors.New("uplink block is full")
)

// Config is what a Network needs.
type Config struct {
	// Dir keeps namespaces and attachments; it belongs on a tmpfs, as it must not outlive a reboot.
	Dir string
	// MTU of the containers' links; 0 = that of the default route's link less the fabric's overhead of 50.
	MTU    int
	Logger *slog.Logger
}

// Request is what a task needs of the network.
type Request struct {
	TaskID string
	// Networks and the task's addresses in them, in the order of its template.
	Networks []*swarmpb.NetworkAddress
	// DNS is the user's wish; nil = none.
	DNS *swarmpb.DNSConfig
	// Hostname of the container.
	Hostname string
}

// Attachment is a task's place in the network.
type Attachment struct {
	// Path of the network namespace.
	Namespace string
	// Address of eth0 and the gateway.
	Address, Gateway netip.Addr
	// Address6 of eth0; invalid on a host without IPv6.
	Address6 netip.Addr
	// Networks are eth1, eth2 and so on, in this order.
	Networks []*swarmpb.NetworkAddress
	// Ports as bound on the host.
	Ports []*swarmpb.PortConfig
	// ResolvConf is the content of the container's /etc/resolv.conf.
	ResolvConf string
}

// Network is the part of the node that attaches tasks. All methods are safe for concurrent use.
type Network struct {
	cfg   Config
	ports *reservations

	mu       sync.Mutex
	block    netip.Prefix // zero until configured
	pool     netip.Prefix
	cursor   netip.Addr // the address given last: a released one rests until the block has been gone through
	attached map[string]*record
	rules    *ruleset // nil until configured

	told    *told
	gone    map[string]bool // tasks whose process has ended; until they are attached again, or the managers know
	dead    map[string]bool // nodes that gossip calls dead
	changes chan struct{}
}

// New reads what a former process attached. It changes nothing in the kernel before Configure.
func New(cfg Config) (*Network, error) {
	for _, dir := range []string{cfg.namespaces(), cfg.records()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make network directory: %w", err)
		}
	}
	attached, err := readRecords(cfg.records())
	if err != nil {
		return nil, err
	}
	return &Network{cfg: cfg, ports: newReservations(cfg.Logger), attached: attached,
		told: newTold(), gone: map[string]bool{}, dead: map[string]bool{}, changes: make(chan struct{}, 1)}, nil
}

func (c Config) namespaces() string { return filepath.Join(c.Dir, "netns") }
func (c Config) records() string    { return filepath.Join(c.Dir, "attachments") }

// Configure makes the uplink and the rules for the node's block, or changes them. Running containers keep
// their addresses: a block changes only when the node has joined another cluster.
func (n *Network) Configure(_ context.Context, cfg *swarmpb.NodeConfig) error {
	if cfg.GetUplinkBlock() == "" {
		return nil
	}
	block, err := netip.ParsePrefix(cfg.UplinkBlock)
	if err != nil || !block.Addr().Is4() || block.Bits() > 30 {
		return fmt.Errorf("uplink block %q: want an IPv4 prefix of at most /30", cfg.UplinkBlock)
	}
	pool := block
	if cfg.FabricPool != "" {
		if pool, err = netip.ParsePrefix(cfg.FabricPool); err != nil {
			return fmt.Errorf("fabric pool %q: %w", cfg.FabricPool, err)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.block == block.Masked() && n.pool == pool && n.rules != nil {
		return nil
	}
	if err := enableForwarding(); err != nil {
		return err
	}
	mtu, err := n.mtu()
	if err != nil {
		return err
	}
	if err := makeUplink(gatewayOf(block), block.Masked(), mtu); err != nil {
		return err
	}
	rules, err := openRules(block.Masked())
	if err != nil {
		return err
	}
	var forwards []forward
	for _, r := range n.attached {
		forwards = append(forwards, r.forwards()...)
		for _, p := range r.Ports {
			if err := n.ports.adopt(p, r.Address); err != nil {
				n.cfg.Logger.Warn("cannot reserve a published port again", "task", r.TaskID, "error", err)
			}
		}
	}
	if err := rules.load(forwards); err != nil {
		rules.close()
		return err
	}
	if n.rules != nil {
		n.rules.close()
	}
	n.block, n.pool, n.rules = block.Masked(), pool, rules
	return nil
}

// Attach makes the task's namespace with eth0 on the uplink. Its ports come with Publish.
func (n *Network) Attach(_ context.Context, req Request) (Attachment, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	taskID := req.TaskID
	if n.rules == nil {
		return Attachment{}, fmt.Errorf("attach task %s: %w", taskID, ErrNotConfigured)
	}
	if r, ok := n.attached[taskID]; ok && n.intact(r) {
		return n.attachment(r)
	}
	if err := n.detach(taskID); err != nil {
		return Attachment{}, err
	}
	addr, err := n.freeAddress()
	if err != nil {
		return Attachment{}, err
	}
	r := &record{TaskID: taskID, Address: addr}
	// The record comes first: what a crash leaves half made is found and removed by it.
	n.attached[taskID] = r
	if err := r.write(n.cfg.records()); err != nil {
		return Attachment{}, errors.Join(err, n.detach(taskID))
	}
	if err := n.plug(r); err != nil {
		return Attachment{}, errors.Join(fmt.Errorf("attach task %s: %w", taskID, err), n.detach(taskID))
	}
	return n.attachment(r)
}

// Publish binds host-mode ports and sends them to the task, and returns them as bound: a published port of 0 is
// chosen from the host's ephemeral range. A port that something else has is ErrPortTaken, and none is published.
func (n *Network) Publish(_ context.Context, taskID string, ports []*swarmpb.PortConfig) ([]*swarmpb.PortConfig, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := n.attached[taskID]
	if r == nil || n.rules == nil {
		return nil, fmt.Errorf("publish ports of task %s: %w", taskID, ErrNotConfigured)
	}
	if len(r.Ports) == len(ports) {
		return r.Ports, nil
	}
	var bound []*swarmpb.PortConfig
	for _, want := range ports {
		p, err := n.ports.reserve(want, r.Address)
		if err != nil {
			n.ports.release(bound)
			return nil, fmt.Errorf("publish %d: %w", want.PublishedPort, err)
		}
		bound = append(bound, p)
	}
	r.Ports = bound
	if err := errors.Join(r.write(n.cfg.records()), n.rules.add(r.forwards())); err != nil {
		n.ports.release(bound)
		r.Ports = nil
		return nil, fmt.Errorf("publish ports of task %s: %w", taskID, err)
	}
	return bound, nil
}

func (n *Network) plug(r *record) error {
	mtu, err := n.mtu()
	if err != nil {
		return err
	}
	path := n.namespacePath(r.TaskID)
	if err := makeNamespace(path); err != nil {
		return err
	}
	return plugIn(path, linkName(r.TaskID), r.Address, gatewayOf(n.block), mtu)
}

// Detach takes the task's ports, link and namespace away. A task that is not attached is no error.
func (n *Network) Detach(_ context.Context, taskID string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.detach(taskID)
}

func (n *Network) detach(taskID string) error {
	var errs []error
	r := n.attached[taskID]
	if r != nil && n.rules != nil {
		errs = append(errs, n.rules.remove(r.forwards()))
	}
	if r != nil {
		n.ports.release(r.Ports)
	}
	errs = append(errs, removeLink(linkName(taskID)), removeNamespace(n.namespacePath(taskID)))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("detach task %s: %w", taskID, err)
	}
	delete(n.attached, taskID)
	return removeRecord(n.cfg.records(), taskID)
}

// Sweep detaches every task that is not in keep, also one of which only a trace in the kernel is left.
func (n *Network) Sweep(_ context.Context, keep []string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	wanted := map[string]bool{}
	names := map[string]bool{}
	for _, id := range keep {
		wanted[id] = true
		names[linkName(id)] = true
	}
	var errs []error
	for _, id := range n.known() {
		if !wanted[id] {
			errs = append(errs, n.detach(id))
		}
	}
	errs = append(errs, removeStrayLinks(names))
	return errors.Join(errs...)
}

// known lists the tasks that have a record or a namespace.
func (n *Network) known() []string {
	var ids []string
	for id := range n.attached {
		ids = append(ids, id)
	}
	entries, _ := os.ReadDir(n.cfg.namespaces())
	for _, e := range entries {
		if n.attached[e.Name()] == nil {
			ids = append(ids, e.Name())
		}
	}
	slices.Sort(ids)
	return ids
}

// Teardown removes everything: all attachments, the rules and the uplink. The node has left its cluster.
func (n *Network) Teardown(ctx context.Context) error {
	err := n.Sweep(ctx, nil)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.rules != nil {
		n.rules.close()
		n.rules = nil
	}
	err = errors.Join(err, deleteTable(), removeUplink())
	n.block, n.pool = netip.Prefix{}, netip.Prefix{}
	return err
}

// Close lets go of sockets; containers keep their network, and published ports go on through the kernel's rules.
func (n *Network) Close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.rules != nil {
		n.rules.close()
		n.rules = nil
	}
	n.ports.close()
}

func (n *Network) attachment(r *record) (Attachment, error) {
	resolv, err := resolvConf("/etc/resolv.conf")
	if err != nil {
		return Attachment{}, err
	}
	return Attachment{
		Namespace: n.namespacePath(r.TaskID), Address: r.Address, Gateway: gatewayOf(n.block),
		Ports: r.Ports, ResolvConf: resolv,
	}, nil
}

func (n *Network) intact(r *record) bool {
	return isNamespace(n.namespacePath(r.TaskID)) && linkExists(linkName(r.TaskID)) && n.block.Contains(r.Address)
}

func (n *Network) namespacePath(taskID string) string {
	return filepath.Join(n.cfg.namespaces(), taskID)
}

func (n *Network) mtu() (int, error) {
	if n.cfg.MTU != 0 {
		return n.cfg.MTU, nil
	}
	return underlayMTU()
}

// freeAddress picks the next address after the one given last, past the network's own and the gateway, short of broadcast.
func (n *Network) freeAddress() (netip.Addr, error) {
	used := map[netip.Addr]bool{gatewayOf(n.block): true}
	for _, r := range n.attached {
		used[r.Address] = true
	}
	first := gatewayOf(n.block)
	last := lastOf(n.block)
	a := n.cursor
	if !n.block.Contains(a) {
		a = first
		for _, r := range n.attached {
			if n.block.Contains(r.Address) && a.Less(r.Address) {
				a = r.Address
			}
		}
	}
	for range 1 << (32 - n.block.Bits()) {
		if a = a.Next(); !a.Less(last) {
			a = first
			continue
		}
		if !used[a] {
			n.cursor = a
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("%w: all %d addresses of %s are in use on this node; run fewer tasks here or choose a shorter fabric block length at init",
		ErrBlockFull, len(used)-1, n.block)
}

func gatewayOf(block netip.Prefix) netip.Addr { return block.Masked().Addr().Next() }

// lastOf is the broadcast address.
func lastOf(block netip.Prefix) netip.Addr {
	b := block.Masked().Addr().As4()
	host := uint32(1)<<(32-block.Bits()) - 1
	v := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3]) | host
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}
