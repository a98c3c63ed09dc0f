// Package network gives every task a network namespace of its own: eth0 routed to the host (the uplink), and eth1 and on
// in the cluster's networks (overlays). It joins the nodes by a VXLAN device (the fabric), and has worker/ingress
// balance published ports and VIPs, and worker/network/dns answer names, out of one state: what the node was told.
//
// The uplink has no bridge: each task's veth pair is a link of its own with a route to the one address behind it, and
// all are in one device group, which is what the rules match. docs/decisions/0001-uplink-without-a-bridge.md says why.
//
// It promises that attaching and detaching are idempotent, that what it made is known again after a restart of
// the daemon, and that it touches nothing on the host, or in a guest's namespace, that it did not make: the links swarm-up, swarm-fab and the veth
// pairs and namespaces named after tasks and networks, routes and rules of its own protocol number, forwarding, and (where
// another firewall would drop what it forwards) accepts in that firewall's own chains. It alone writes those, and the
// files under Config.Dir. Teardown leaves none of it.
//
// What is told goes through Apply; the kernel follows in the smallest steps, and Check puts right whatever differs.
package network

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/ingress"
	"github.com/swarmd/swarmd/worker/network/coexist"
	"github.com/swarmd/swarmd/worker/network/wireguard"
)

// Errors that the agent branches on; they are wrapped.
var (
	// ErrNotConfigured: the node has no uplink block yet, or has not been told of a network. Trying again later helps.
	ErrNotConfigured = errors.New("the node is not told all that it needs yet")
	// ErrPortTaken: something else on this host has the port.
	ErrPortTaken = ingress.ErrPortTaken
	// ErrBlockFull: no address of the node's block is free.
	ErrBlockFull = errors.New("uplink block is full")
)

// defaultDataPathPort is VXLAN's.
const defaultDataPathPort = 4789

// Config is what a Network needs.
type Config struct {
	// Dir keeps namespaces and attachments; it belongs on a tmpfs, as it must not outlive a reboot.
	Dir string
	// MTU of the containers' links; 0 = that of the link between the nodes less the fabric's overhead.
	MTU int
	// MarkMask are the bits of packet and connection marks that are ours; 0 = ingress.DefaultMarkMask.
	MarkMask uint32
	// KeyDir keeps the key of what encrypts between nodes; it has to outlive a reboot. Empty = this node takes no task of an
	// encrypted network.
	KeyDir string
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
	// Guest is attached to the networks in place of a namespace of the task's own; nil = none.
	Guest *Guest
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
	// Notes are what a guest's owner should know, one line each.
	Notes []string
}

// hostPlace is what the node was given.
type hostPlace struct {
	number      uint32
	block, pool netip.Prefix
	prefix6     netip.Prefix // not valid: no IPv6 on this host or in this cluster
	port        uint16
}

// gateway is the address that the node's tasks send to.
func (h hostPlace) gateway() pair { return h.pair(gatewayOf(h.block)) }

func (h hostPlace) pair(a netip.Addr) pair {
	p := pair{v4: a}
	if h.prefix6.IsValid() {
		p.v6 = swarmpb.Address6(h.prefix6, a)
	}
	return p
}

func (h hostPlace) blocks() []netip.Prefix {
	if h.prefix6.IsValid() {
		return []netip.Prefix{h.block, block6(h.prefix6, h.block)}
	}
	return []netip.Prefix{h.block}
}

// Network is the part of the node that attaches tasks. All methods are safe for concurrent use.
type Network struct {
	cfg     Config
	ingress *ingress.Ingress
	names   *names
	coexist *coexist.Coexist
	changes chan struct{}

	mu         sync.Mutex
	closed     bool
	configured bool
	place      hostPlace
	cursor     netip.Addr // the address given last: a released one rests until the block has been gone through
	attached   map[string]*record
	told       *told
	unheld     bool // the kernel has not taken all of it
	unended    []flow
	gone       map[string]bool // tasks whose process has ended; until they are attached again, or the managers know
	dead       map[string]bool // nodes that gossip calls dead
	hint       func(nodeID string) bool
	fabric     *fabric // nil until the node's own address is known
	overlays   map[string]*overlay
	tunnel     *wireguard.Device
	tunnelErr  error

	status   sync.Mutex
	problems []string
	attempts []attempt
	tried    bool     // lacks is known
	lacks    []string // lines of what the kernel lacks
	last     *swarmpb.NodeNetwork
}

// New reads what a former process attached. It changes nothing in the kernel before Configure.
func New(cfg Config) (*Network, error) {
	for _, dir := range []string{cfg.namespaces(), cfg.records(), cfg.overlays(), cfg.guests()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make network directory: %w", err)
		}
	}
	attached, err := readRecords(cfg.records())
	if err != nil {
		return nil, err
	}
	cfg.MarkMask = cmp.Or(cfg.MarkMask, ingress.DefaultMarkMask)
	in, err := ingress.New(ingress.Config{Logger: cfg.Logger, UplinkGroup: uplinkGroup, FabricLink: Fabric, ReplyRule: fabricPriority, MarkMask: cfg.MarkMask})
	if err != nil {
		return nil, fmt.Errorf("open ingress: %w", err)
	}
	return &Network{
		cfg: cfg, ingress: in, names: newNames(cfg.Logger), changes: make(chan struct{}, 1),
		coexist:  coexist.New(coexist.Config{Logger: cfg.Logger, Links: []string{linkPrefix + "*", Uplink, Fabric}}),
		attempts: attempts(), attached: attached, told: newTold(), gone: map[string]bool{}, dead: map[string]bool{}, overlays: map[string]*overlay{},
	}, nil
}

func (c Config) namespaces() string { return filepath.Join(c.Dir, "netns") }
func (c Config) records() string    { return filepath.Join(c.Dir, "attachments") }
func (c Config) overlays() string   { return filepath.Join(c.Dir, "overlays") }
func (c Config) guests() string     { return filepath.Join(c.Dir, "guests") }

// Configure makes the uplink and the rules for the node's block, or changes them. Running containers keep
// their addresses: a block changes only when the node has joined another cluster.
func (n *Network) Configure(_ context.Context, cfg *swarmpb.NodeConfig) error {
	if cfg.GetUplinkBlock() == "" {
		return nil
	}
	place, err := placeOf(cfg)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return errors.New("configure network: it is closed")
	}
	if n.place == place && n.configured {
		return nil
	}
	first := !n.configured
	n.place = place
	if err := n.makeHost(); err != nil {
		return err
	}
	if first {
		if err := n.adoptPorts(); err != nil {
			return err
		}
	}
	host := ingress.Host{Number: place.number, Block: place.block, Pool: place.pool, Prefix6: place.prefix6, DataPathPort: place.port}
	if err := errors.Join(n.ingress.SetPods(n.pods()), n.ingress.Configure(host)); err != nil {
		return fmt.Errorf("configure published ports: %w", err)
	}
	n.configured = true
	if err := n.openTunnel(); err != nil {
		n.cfg.Logger.Info("this node takes no tasks of encrypted networks", "reason", err)
	}
	n.names.own([]netip.Prefix{place.pool, place.prefix6})
	// What was told before takes its place now. What of that fails is no reason to take no tasks: Check tries again.
	if err := n.bring(n.told.everything()); err != nil {
		n.cfg.Logger.Warn("the network is not complete; trying again", "error", err)
	}
	return nil
}

func placeOf(cfg *swarmpb.NodeConfig) (hostPlace, error) {
	block, err := netip.ParsePrefix(cfg.GetUplinkBlock())
	if err != nil || !block.Addr().Is4() || block.Bits() > 30 {
		return hostPlace{}, fmt.Errorf("uplink block %q: want an IPv4 prefix of at most /30", cfg.GetUplinkBlock())
	}
	place := hostPlace{number: cfg.GetNumber(), block: block.Masked(), pool: block.Masked(), port: defaultDataPathPort}
	if cfg.GetFabricPool() != "" {
		if place.pool, err = netip.ParsePrefix(cfg.GetFabricPool()); err != nil {
			return hostPlace{}, fmt.Errorf("fabric pool %q: %w", cfg.GetFabricPool(), err)
		}
	}
	if p := cfg.GetFabricPrefix6(); p != "" && hasIPv6() {
		if place.prefix6, err = netip.ParsePrefix(p); err != nil || place.prefix6.Bits() != 96 || !place.prefix6.Addr().Is6() {
			return hostPlace{}, fmt.Errorf("fabric prefix %q: want an IPv6 prefix of 96 bits", p)
		}
	}
	if p := cfg.GetDataPathPort(); p != 0 {
		if p > 65535 {
			return hostPlace{}, fmt.Errorf("data path port %d: want 1 to 65535", p)
		}
		place.port = uint16(p)
	}
	return place, nil
}

// makeHost makes what all tasks share: forwarding, and the link with the gateway's addresses.
func (n *Network) makeHost() error {
	if err := enableForwarding(n.place.prefix6.IsValid()); err != nil {
		return err
	}
	mtu, err := n.measureMTU()
	if err != nil {
		return err
	}
	return makeUplink(n.place.gateway(), n.place.blocks(), mtu)
}

// adoptPorts has the host ports of a former process's tasks go on.
func (n *Network) adoptPorts() error {
	var forwards []ingress.Forward
	for _, r := range n.attached {
		forwards = append(forwards, r.forwards()...)
	}
	if err := n.ingress.AdoptForwards(forwards); err != nil {
		return fmt.Errorf("adopt host ports: %w", err)
	}
	return nil
}

// pods are the uplink addresses of the tasks that have a way out.
func (n *Network) pods() []netip.Addr {
	var out []netip.Addr
	for _, r := range n.attached {
		if !r.Internal && r.Guest == nil {
			out = append(out, r.Address)
		}
	}
	return out
}

// own is what the node was told of itself.
func (n *Network) own() *swarmpb.Peer {
	for _, p := range n.told.peers {
		if n.place.number != 0 && p.GetNumber() == n.place.number {
			return p
		}
	}
	return nil
}

// ownAddress is where packets to other nodes come from; not valid: not told yet.
func (n *Network) ownAddress() netip.Addr {
	a, err := netip.ParseAddr(n.own().GetAddress())
	if err != nil {
		return netip.Addr{}
	}
	return a.Unmap()
}

// mtu is that of the containers' links: the fabric's, as long as there is one.
func (n *Network) mtu() (int, error) {
	if n.fabric != nil {
		return n.fabric.place.mtu, nil
	}
	return n.measureMTU()
}

// measureMTU is what packets between nodes may hold, and no less than IPv6 needs: the kernel takes it away from links below
// that. Where the underlay has not that much, larger packets travel in two parts.
func (n *Network) measureMTU() (int, error) {
	mtu := n.cfg.MTU
	if mtu == 0 {
		var err error
		if mtu, err = underlayMTU(n.ownAddress()); err != nil {
			return 0, err
		}
	}
	if n.place.prefix6.IsValid() {
		mtu = max(mtu, swarmpb.MinMTU6)
	}
	return mtu, nil
}

// Teardown removes everything: all attachments, overlays, the fabric, the rules and the uplink. The node has left its
// cluster; it may be configured again for another.
func (n *Network) Teardown(ctx context.Context) error {
	err := n.Sweep(ctx, nil)
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, o := range n.overlays {
		o.close()
		delete(n.overlays, id)
	}
	if n.tunnel != nil {
		err = errors.Join(err, n.tunnel.Teardown())
		n.tunnel = nil
	} else if n.cfg.KeyDir != "" {
		err = errors.Join(err, wireguard.Remove(wireguard.Config{Dir: n.cfg.KeyDir}))
	}
	n.tunnelErr = nil // another cluster may have what this one lacked
	n.names.forgetAll()
	err = errors.Join(err, n.ingress.Teardown(), n.coexist.Teardown(), removeLink(Fabric), removeReturnPath(),
		removeStrayOverlays(n.cfg.overlays(), nil), removeUplink())
	err = errors.Join(err, forgetFlows(n.place.pool)) // last: what the links say as they go is tracked too
	n.configured, n.place, n.fabric = false, hostPlace{}, nil
	n.told, n.unended = newTold(), nil
	clear(n.gone)
	clear(n.dead)
	return err
}

// Close lets go of sockets; containers keep their network, and published ports go on through the kernel's rules.
func (n *Network) Close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return
	}
	n.closed, n.configured = true, false
	n.names.close()
	for _, o := range n.overlays {
		o.close()
	}
	clear(n.overlays)
	n.ingress.Close()
	if n.tunnel != nil {
		n.tunnel.Close()
	}
}

// Status is what the managers are told of the node's network. It costs a few messages to the kernel.
func (n *Network) Status() *swarmpb.NodeNetwork {
	s := &swarmpb.NodeNetwork{Routes: hostRoutes(), Addresses: hostAddresses(), Conflicts: n.ingress.Conflicts()}
	n.status.Lock()
	s.Problems = append(s.Problems, n.problems...)
	n.status.Unlock()
	n.mu.Lock()
	if n.tunnel != nil {
		s.WireguardKey, s.Wireguard = n.tunnel.PublicKey(), n.tunnel.Kind()
	}
	n.mu.Unlock()
	return s
}

// Changes has an element when Status may have changed.
func (n *Network) Changes() <-chan struct{} { return n.changes }

// tellStatus has Changes tell when Status says something else than at the last call.
func (n *Network) tellStatus() {
	now := n.Status()
	n.status.Lock()
	same := n.last != nil && proto.Equal(n.last, now)
	n.last = now
	n.status.Unlock()
	if same {
		return
	}
	select {
	case n.changes <- struct{}{}:
	default:
	}
}
