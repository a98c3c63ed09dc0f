package network

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/network/wireguard"
)

// keyLife is how old the key of a node's tunnel becomes, as a node's certificate does. Sessions have keys of their own, which
// live for two minutes.
const keyLife = 90 * 24 * time.Hour

// openTunnel opens what encrypts, once; an error stays, but for one that may pass, with which mendTunnel tries again. Encrypted networks go through it: their VXLAN packets are
// sent to nodes' addresses within the tunnel.
func (n *Network) openTunnel() error {
	if n.tunnel != nil || n.tunnelErr != nil {
		return n.tunnelErr
	}
	switch {
	case n.cfg.KeyDir == "":
		n.tunnelErr = fmt.Errorf("%w: it was started without a place for its key", ErrUnsupported)
	case !n.place.prefix6.IsValid():
		n.tunnelErr = fmt.Errorf("%w: the kernel has no IPv6, which the tunnel between the nodes uses", ErrUnsupported)
	case n.place.port == wireguard.DefaultPort || n.place.port == wireguard.VXLANPort:
		n.tunnelErr = fmt.Errorf("%w: the cluster's data path port %d is one that the tunnel needs; choose another at init", ErrUnsupported, n.place.port)
	default:
		n.tunnel, n.tunnelErr = wireguard.Open(wireguard.Config{Dir: n.cfg.KeyDir, Logger: n.cfg.Logger})
	}
	if n.tunnelErr != nil {
		n.tunnel = nil
		return n.tunnelErr
	}
	return n.setUpTunnel()
}

// setUpTunnel brings the tunnel to the peers that were told.
func (n *Network) setUpTunnel() error {
	if n.tunnel == nil {
		return nil
	}
	mtu, err := n.mtu()
	if err != nil {
		return err
	}
	if err := n.tunnel.Configure(wireguard.Address(n.place.prefix6, n.place.number), mtu+overheadOf(n.ownAddress())); err != nil {
		return fmt.Errorf("configure encryption: %w", err)
	}
	if len(n.told.peers) == 0 {
		return nil // nothing is told yet: sessions of a former process go on
	}
	var peers []wireguard.Peer
	for _, p := range n.told.peers {
		if peer, ok := n.tunnelPeer(p); ok {
			peers = append(peers, peer)
		}
	}
	if err := n.tunnel.SetPeers(peers); err != nil {
		return fmt.Errorf("set the peers of encryption: %w", err)
	}
	return nil
}

// mendTunnel repairs the tunnel, and gives it a new key when the one it has is old: the managers tell the peers of it.
func (n *Network) mendTunnel() error {
	if n.tunnel == nil && n.tunnelErr != nil && !errors.Is(n.tunnelErr, ErrUnsupported) {
		n.tunnelErr = nil // such as its port, which something else had
		if err := n.openTunnel(); err != nil {
			return fmt.Errorf("encrypted networks do not work here: %w", err)
		}
	}
	if n.tunnel == nil {
		return nil
	}
	made, err := n.tunnel.KeyMade()
	if err == nil && time.Since(made) > keyLife {
		if err = n.tunnel.Rotate(); err == nil {
			n.cfg.Logger.Info("the tunnel has a new key", "old", made)
		}
	}
	return errors.Join(err, n.tunnel.Check())
}

// tunnelPeer is false for a node without a key, and this one.
func (n *Network) tunnelPeer(p *swarmpb.Peer) (wireguard.Peer, bool) {
	host, err := netip.ParseAddr(p.GetAddress())
	if err != nil || len(p.GetWireguardKey()) == 0 || p.GetNumber() == 0 || p.GetNumber() == n.place.number {
		return wireguard.Peer{}, false
	}
	return wireguard.Peer{
		PublicKey: p.GetWireguardKey(), Endpoint: netip.AddrPortFrom(host.Unmap(), wireguard.DefaultPort),
		Address: wireguard.Address(n.place.prefix6, p.GetNumber()).Addr(),
	}, true
}
