// Package wireguard joins the nodes by an encrypted tunnel, which encrypted overlay networks send their VXLAN packets
// through.
//
// There is one device a node, Link: the kernel's WireGuard where the kernel has it, else WireGuard in this process over
// a tun device. It alone writes that link, its addresses and routes, Table, and the node's key under Config.Dir.
//
// It fails closed. The addresses within the tunnel are in a range of their own, and a route that refuses the whole range
// stays when the link is gone; encrypted networks have a port of their own, VXLANPort, and rules that drop what goes there
// outside of the tunnel are there before any such network: a packet leaves encrypted or not at all, and none comes in that
// was not. A userspace tunnel dies with the
// process, and is back when the next one has opened it.
//
// Session keys are the protocol's own affair: they are renewed every two minutes and kept nowhere. Rotate replaces the
// node's static key. A peer is greeted when it is added, by a handshake: so a node that has been away is in session again
// before anybody else notices that its sessions were lost.
package wireguard

import (
	"errors"
	"log/slog"
	"net/netip"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// Link is the name of the device on the host.
const Link = "swarm-wg"

// DefaultPort is the UDP port of the tunnel: the first one beyond VXLAN's (4789) that is not taken by its relatives, which
// network cards look into (4790 is VXLAN-GPE, 4791 RoCE). 51820 is what an operator's own WireGuard has.
const DefaultPort = swarmpb.TunnelPort

// KeyLength is the length of a public key in bytes.
const KeyLength = 32

// overhead of a packet in the tunnel: 40 of IPv6, which endpoints may have (IPv4: 20), 8 of UDP, 32 of WireGuard.
const overhead = 80

// Kinds of device.
const (
	KindKernel    = "kernel"
	KindUserspace = "userspace"
)

// ErrUnsupported: neither kind of WireGuard works on this host; the error says what to do.
var ErrUnsupported = errors.New("WireGuard does not work on this host")

// Config is what a Device needs.
type Config struct {
	// Dir keeps the node's key, in a file that root alone may read. It must outlive a reboot, or peers have to learn a new
	// key then.
	Dir string
	// Port of UDP; 0 = DefaultPort.
	Port   uint16
	Logger *slog.Logger
}

// Peer is another node.
type Peer struct {
	PublicKey []byte
	// Endpoint is where its packets go on the underlay.
	Endpoint netip.AddrPort
	// Address within the tunnel: all that it may send from, and all that goes to it.
	Address netip.Addr
}

// Address is a node's address in the tunnel, with the range of all nodes': the number behind the cluster's prefix of IPv6
// (NodeConfig.fabric_prefix6).
//
// It is IPv6 because that prefix is the cluster's own (a ULA made of its ID), so that it collides with nothing the host
// has: 169.254.0.0/16 holds cloud metadata and whatever a link gave itself, every other private range of IPv4 is
// somebody's, and one more pool would be one more thing to configure. It costs 20 bytes of MTU. A host whose kernel has no
// IPv6 takes no part in encrypted networks. Task addresses have an address of IPv4 behind the prefix, which never begins
// with 0.0.
func Address(prefix6 netip.Prefix, number uint32) netip.Prefix {
	a := netip.AddrFrom4([4]byte{0, 0, byte(number >> 8), byte(number)})
	const numbers = 16 // bits
	return netip.PrefixFrom(swarmpb.Address6(prefix6, a), 128-numbers)
}
