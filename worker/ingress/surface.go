// Package ingress is the node's load balancer: published ports, host ports and the fabric's rules in the host's nftables
// tables named swarmd, and VIPs in the tables of that name inside containers' namespaces.
package ingress

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

var errNotBuilt = errors.New("ingress is not built yet")

// ErrPortTaken: something else on this host has the port; errors that wrap it name the port and the process.
var ErrPortTaken = errors.New("port is taken")

// Config is what an Ingress needs.
type Config struct {
	Logger *slog.Logger
	// UplinkGroup is the device group of the host's ends of the tasks' links.
	UplinkGroup uint32
	// FabricLink is the name of the device that joins the nodes; it need not exist yet.
	FabricLink string
	// MarkMask are the bits of packet and connection marks that are ours; 0 = DefaultMarkMask. A node's number must fit.
	MarkMask uint32
}

// DefaultMarkMask is what Config.MarkMask is by default.
const DefaultMarkMask = 0xffff0000

// Host is this node's place in the fabric.
type Host struct {
	Number               uint32
	Block, Pool, Prefix6 netip.Prefix
	DataPathPort         uint16
}

// Node is a member of the cluster that has a block, this one among them.
type Node struct {
	ID      string
	Number  uint32
	Address netip.Addr
	MAC     net.HardwareAddr // of its fabric device
}

// Forward sends a port of this host to a task: a host-mode port. To is the task's IPv4 address; its IPv6 twin follows.
type Forward struct {
	Protocol swarmpb.Protocol
	Port     uint16
	To       netip.AddrPort
}

// Update is what the managers told of services and endpoints.
type Update struct {
	Full             bool
	Services         []*swarmpb.AssignedService
	RemovedServices  []string
	Endpoints        []*swarmpb.Endpoint
	RemovedEndpoints []string
}

// Ingress owns the host's tables. All methods are safe for concurrent use.
type Ingress struct{}

// New changes nothing in the kernel.
func New(Config) (*Ingress, error) { return &Ingress{}, nil }

// Configure loads the whole table in one transaction.
func (*Ingress) Configure(Host) error { return errNotBuilt }

// SetNodes replaces the members.
func (*Ingress) SetNodes([]Node) error { return errNotBuilt }

// SetPods replaces the uplink addresses (IPv4) of this node's tasks.
func (*Ingress) SetPods([]netip.Addr) error { return errNotBuilt }

// AddForwards binds and translates host-mode ports, all or none, and returns them as bound.
func (*Ingress) AddForwards([]Forward) ([]Forward, error) { return nil, errNotBuilt }

// AdoptForwards takes over those of a former process.
func (*Ingress) AdoptForwards([]Forward) error { return errNotBuilt }

// RemoveForwards tolerates those that are not there.
func (*Ingress) RemoveForwards([]Forward) error { return errNotBuilt }

// Apply takes an update over, in one transaction.
func (*Ingress) Apply(Update) error { return errNotBuilt }

// Gone takes a task out at once.
func (*Ingress) Gone(string) error { return errNotBuilt }

// Hint takes over gossip's view of dead nodes.
func (*Ingress) Hint(func(nodeID string) bool) error { return errNotBuilt }

// Conflicts are the published ports that something else on this host has.
func (*Ingress) Conflicts() []*swarmpb.PortConflict { return nil }

// Changes tells that Conflicts has changed.
func (*Ingress) Changes() <-chan struct{} { return nil }

// Check compares kernel and state and repairs.
func (*Ingress) Check() error { return errNotBuilt }

// Close lets go of sockets; the kernel's rules go on.
func (*Ingress) Close() {}

// Teardown removes everything.
func (*Ingress) Teardown() error { return errNotBuilt }

// VIPConfig is what a table in a container's namespace needs.
type VIPConfig struct {
	Logger *slog.Logger
	// ResolverUDP and ResolverTCP are where 127.0.0.11:53 leads, ports on 127.0.0.11 there; 0 = nowhere.
	ResolverUDP, ResolverTCP uint16
}

// VIP is a service's address: every port and protocol, ICMP too, leads to one of the backends; none = refused.
type VIP struct {
	Address  netip.Addr
	Backends []Backend
}

// Backend is a task's address of the VIP's family. Weight: its share in proportion to the others'; 0 = none.
type Backend struct {
	Address netip.Addr
	Weight  uint32
}

// VIPUpdate changes some VIPs, or with Full replaces them all.
type VIPUpdate struct {
	Full    bool
	VIPs    []VIP
	Removed []netip.Addr
}

// VIPs is the table inside one container's namespace.
type VIPs struct{}

// OpenVIPs loads the table into the namespace at the path, taking over the VIPs that one of a former process holds.
func OpenVIPs(string, VIPConfig) (*VIPs, error) { return nil, errNotBuilt }

// Apply takes an update over, in one transaction.
func (*VIPs) Apply(VIPUpdate) error { return errNotBuilt }

// Flush deletes the namespace's connection tracking entries to an address, for all protocols, or for UDP alone.
func (*VIPs) Flush(_ netip.Addr, _ bool) error { return errNotBuilt }

// Check compares kernel and state and repairs.
func (*VIPs) Check() error { return errNotBuilt }

// Close lets go of the socket; the table stays, and goes with the namespace.
func (*VIPs) Close() {}
