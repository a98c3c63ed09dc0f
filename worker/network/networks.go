package network

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/network/wireguard"
)

// overlayOf says how a network is made on this node.
func (n *Network) overlayOf(id string) (overlayPlace, error) {
	told := n.told.networks[id]
	own := n.ownAddress()
	if told.GetProgress().GetVni() == 0 || !own.IsValid() {
		return overlayPlace{}, fmt.Errorf("%w: network %s", ErrNotConfigured, id)
	}
	place := overlayPlace{id: id, name: told.GetSpec().GetName(), vni: told.GetProgress().GetVni(), local: own, port: n.place.port}
	var err error
	if place.subnet, err = netip.ParsePrefix(told.GetProgress().GetSubnet()); err != nil {
		return overlayPlace{}, fmt.Errorf("network %q: subnet: %w", place.name, err)
	}
	if s := told.GetProgress().GetSubnet6(); s != "" && hasIPv6() {
		if place.subnet6, err = netip.ParsePrefix(s); err != nil {
			return overlayPlace{}, fmt.Errorf("network %q: subnet: %w", place.name, err)
		}
	}
	if place.mtu, err = n.mtu(); err != nil {
		return overlayPlace{}, err
	}
	if told.GetSpec().GetEncrypted() {
		if n.tunnel == nil {
			return overlayPlace{}, fmt.Errorf("network %q is encrypted, which this node cannot do: %w", place.name, n.tunnelErr)
		}
		place.encrypted, place.port = true, wireguard.VXLANPort
		place.local = wireguard.Address(n.place.prefix6, n.place.number).Addr()
		place.mtu = n.tunnel.MTU(place.mtu+overheadOf(own)) - overheadOf(place.local)
	}
	if want, err := strconv.Atoi(told.GetSpec().GetOptions()["mtu"]); err == nil && want > 0 {
		place.mtu = min(place.mtu, want)
	}
	if place.subnet6.IsValid() {
		place.mtu = max(place.mtu, swarmpb.MinMTU6)
	}
	return place, nil
}

// ensureOverlay has the network on this node, with all its endpoints, names and VIPs.
func (n *Network) ensureOverlay(id string) (*overlay, error) {
	place, err := n.overlayOf(id)
	if err != nil {
		return nil, err
	}
	if o := n.overlays[id]; o != nil {
		if o.place == place {
			return o, nil
		}
		o.close()
		delete(n.overlays, id)
	}
	o, err := openOverlay(filepath.Join(n.cfg.overlays(), id), place)
	if err != nil {
		return nil, err
	}
	n.overlays[id] = o
	n.names.describe(id, place)
	errs := []error{n.fill(o)}
	changed := map[inNetwork]bool{}
	for service := range n.told.services {
		changed[inNetwork{id, service}] = true
	}
	errs = append(errs, n.names.follow(n.view(), changed))
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("network %q: %w", place.name, err)
	}
	return o, nil
}

// fill brings an overlay to all endpoints that were told, and no other.
func (n *Network) fill(o *overlay) error {
	var errs []error
	for task, e := range n.told.inNetwork[o.place.id] {
		errs = append(errs, o.set(task, n.remoteOf(o, e)))
	}
	for task := range o.have {
		if _, ok := n.told.inNetwork[o.place.id][task]; !ok {
			errs = append(errs, o.forget(task, o.have[task]))
		}
	}
	return errors.Join(errs...)
}

// bringOverlays makes the networks that this node's tasks are in as they were told.
func (n *Network) bringOverlays(d *delta) []error {
	var errs []error
	moved := d.peers[n.own().GetNodeId()] // this node's own address, where all packets come from
	for _, r := range n.attached {
		changed := moved && len(r.Networks) > 0
		for _, a := range r.Networks {
			changed = changed || d.networks[a.GetNetworkId()] && n.told.networks[a.GetNetworkId()] != nil
		}
		if changed {
			if err := n.mendTask(r); err != nil && !errors.Is(err, ErrNotConfigured) {
				errs = append(errs, err)
			}
		}
	}
	return errs
}

// mendTask repairs a task that is attached. One whose namespace is gone cannot be helped.
func (n *Network) mendTask(r *record) error {
	if r.Guest != nil {
		return n.mendGuest(r)
	}
	if !isNamespace(n.namespacePath(r.TaskID)) || !n.place.block.Contains(r.Address) {
		return nil
	}
	if err := n.repair(r); err != nil {
		return fmt.Errorf("repair the network of task %s: %w", r.TaskID, err)
	}
	return nil
}

// wantedOverlays are the networks that tasks of this node are in.
func (n *Network) wantedOverlays() map[string]bool {
	wanted := map[string]bool{}
	for _, r := range n.attached {
		for _, a := range r.Networks {
			wanted[a.GetNetworkId()] = true
		}
	}
	return wanted
}

// closeIdleOverlays removes the networks that no task of this node is in any more.
func (n *Network) closeIdleOverlays() error {
	wanted := n.wantedOverlays()
	var errs []error
	for id, o := range n.overlays {
		if wanted[id] {
			continue
		}
		o.close()
		if err := removeOverlay(o.path); err != nil {
			errs = append(errs, fmt.Errorf("remove network %q: %w", o.place.name, err))
		}
		delete(n.overlays, id)
		n.names.forgetNetwork(id)
	}
	n.names.tell()
	return errors.Join(errs...)
}

// overheadOf is what VXLAN takes of a packet.
func overheadOf(local netip.Addr) int {
	const overIPv4, overIPv6 = 50, 70
	if local.Is6() {
		return overIPv6
	}
	return overIPv4
}
