package wireguard

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// errNoKernel: the kernel has no WireGuard.
var errNoKernel = errors.New("the kernel has no WireGuard")

// kernel is the kernel's own WireGuard.
type kernel struct {
	client *wgctrl.Client
	index  int
}

// openKernel makes the kernel's device or takes over one that is there.
func openKernel(Config) (engine, error) {
	link, err := netlink.LinkByName(Link)
	if err == nil && link.Type() != "wireguard" {
		// What a former process left in another form, or has still: then it cannot be made.
		if err := removeLink(); err != nil {
			return nil, err
		}
	}
	if err != nil || link.Type() != "wireguard" {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = Link
		err := netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs})
		if errors.Is(err, unix.EOPNOTSUPP) {
			return nil, errNoKernel
		}
		if err != nil {
			return nil, fmt.Errorf("make %s: %w", Link, err)
		}
		if link, err = netlink.LinkByName(Link); err != nil {
			return nil, fmt.Errorf("find %s: %w", Link, err)
		}
	}
	client, err := wgctrl.New()
	if err != nil {
		return nil, fmt.Errorf("speak to the kernel's WireGuard: %w", err)
	}
	return &kernel{client: client, index: link.Attrs().Index}, nil
}

func (k *kernel) kind() string { return KindKernel }

func (k *kernel) configure(c change) error {
	cfg := wgtypes.Config{PrivateKey: (*wgtypes.Key)(c.private)}
	if c.port != 0 {
		port := int(c.port)
		cfg.ListenPort = &port
	}
	for _, p := range c.peers {
		cfg.Peers = append(cfg.Peers, p.kernel())
	}
	if err := k.client.ConfigureDevice(Link, cfg); err != nil {
		return fmt.Errorf("configure %s: %w", Link, err)
	}
	return nil
}

func (p peerChange) kernel() wgtypes.PeerConfig {
	out := wgtypes.PeerConfig{PublicKey: wgtypes.Key(p.key), Remove: p.remove, UpdateOnly: !p.address.IsValid()}
	if p.endpoint.IsValid() {
		out.Endpoint = net.UDPAddrFromAddrPort(p.endpoint)
	}
	if p.address.IsValid() {
		out.ReplaceAllowedIPs = true
		out.AllowedIPs = []net.IPNet{{IP: p.address.AsSlice(), Mask: net.CIDRMask(p.address.BitLen(), p.address.BitLen())}}
	}
	if p.greet || p.quiet {
		interval := time.Duration(0)
		if p.greet {
			interval = greeting
		}
		out.PersistentKeepaliveInterval = &interval
	}
	return out
}

// peers reads what the kernel has: a peer that does not look as ours do has no address, so it is set anew.
func (k *kernel) peers() (map[key]Peer, bool, error) {
	device, err := k.client.Device(Link)
	if err != nil {
		return nil, false, fmt.Errorf("read %s: %w", Link, err)
	}
	out := make(map[key]Peer, len(device.Peers))
	for _, p := range device.Peers {
		held := Peer{PublicKey: p.PublicKey[:]}
		if p.Endpoint != nil {
			held.Endpoint = p.Endpoint.AddrPort()
			held.Endpoint = netip.AddrPortFrom(held.Endpoint.Addr().Unmap(), held.Endpoint.Port())
		}
		if len(p.AllowedIPs) == 1 {
			if ones, _ := p.AllowedIPs[0].Mask.Size(); ones == 128 {
				held.Address, _ = netip.AddrFromSlice(p.AllowedIPs[0].IP)
			}
		}
		out[key(p.PublicKey)] = held
	}
	return out, true, nil
}

func (k *kernel) alive() bool {
	link, err := netlink.LinkByName(Link)
	return err == nil && link.Attrs().Index == k.index && link.Type() == "wireguard"
}

func (k *kernel) resized(int) {}

func (k *kernel) close() { _ = k.client.Close() }
