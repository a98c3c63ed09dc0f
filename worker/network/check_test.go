package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/ingress"
)

// repairLab is one host that knows of a peer, with a task in a network; the host is the test's own namespace.
func repairLab(t *testing.T) (*lab, Attachment) {
	l := newLab(t)
	red := testNetwork("red", 4097, "10.0.4.0/24")
	cfg := &swarmpb.NodeConfig{UplinkBlock: "100.64.3.0/24", FabricPool: "100.64.0.0/10", Number: 3, FabricPrefix6: "fd5d:1:2:3:4:5::/96", DataPathPort: 4789}
	must(t, l.Configure(t.Context(), cfg))
	service := web(red)
	service.Ports = []*swarmpb.PortConfig{{Protocol: swarmpb.Protocol_PROTOCOL_TCP, TargetPort: 80, PublishedPort: 8080}}
	told := []*swarmpb.AssignmentChange{
		setPeer(&swarmpb.Peer{NodeId: "n3", Number: 3, Address: hostAddr.String(), UplinkBlock: "100.64.3.0/24"}),
		setPeer(&swarmpb.Peer{NodeId: "n4", Number: 4, Address: clientAddr.String(), UplinkBlock: "100.64.4.0/24"}),
		setNetwork(red), setService(service),
		setEndpoint(&swarmpb.Endpoint{TaskId: "other", ServiceId: "websvc", Slot: 2, NodeId: "n4", State: swarmpb.EndpointState_ENDPOINT_STATE_DRAINING, Networks: []*swarmpb.NetworkAddress{at(red, 6)}}),
	}
	must(t, l.Apply(t.Context(), true, told))
	a, err := l.Attach(t.Context(), Request{TaskID: "web1task", Networks: []*swarmpb.NetworkAddress{at(red, 5)}})
	must(t, err)
	answer(t, a.Namespace, "web")
	mine := &swarmpb.Endpoint{TaskId: "web1task", ServiceId: "websvc", Slot: 1, NodeId: "n3", State: swarmpb.EndpointState_ENDPOINT_STATE_ACTIVE, Address: a.Address.String(), Networks: a.Networks}
	must(t, l.Apply(t.Context(), false, []*swarmpb.AssignmentChange{setEndpoint(mine)}))
	return l, a
}

// whole says what is missing of all that has to be there.
func (l *lab) whole(a Attachment) error {
	if got, err := get(l.client, hostAddr.String()+":8080"); err != nil || got != "web "+clientAddr.String() {
		return fmt.Errorf("published port: %q, %w", got, err)
	}
	if got, err := get(a.Namespace, "10.0.4.100:80"); err != nil || got != "web 10.0.4.5" {
		return fmt.Errorf("VIP: %q, %w", got, err)
	}
	for _, name := range []string{Uplink, Fabric, linkName("web1task")} {
		if !linkExists(name) {
			return fmt.Errorf("no link %s", name)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fabric == nil {
		return errors.New("no fabric")
	}
	if intact, err := l.fabric.returnPathIntact(); err != nil || !intact {
		return fmt.Errorf("the way back: %v, %w", intact, err)
	}
	o := l.overlays["red"]
	if o == nil || !o.plugged("web1task") {
		return errors.New("the task is not in its network")
	}
	entries, err := o.handle.NeighList(o.tunnel, unix.AF_BRIDGE)
	if err != nil || len(entries) == 0 {
		return fmt.Errorf("forwarding entries of the network: %v, %w", entries, err)
	}
	if entries, err = netlink.NeighList(l.fabric.index, unix.AF_BRIDGE); err != nil || len(entries) != 1 {
		return fmt.Errorf("forwarding entries of the fabric: %v, %w", entries, err)
	}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: netOf(netip.MustParsePrefix("100.64.4.0/24"))}, netlink.RT_FILTER_DST)
	if err != nil || len(routes) != 1 {
		return fmt.Errorf("routes to the peer: %v, %w", routes, err)
	}
	return nil
}

func deleteTable(family nftables.TableFamily, name string) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	conn.DelTable(&nftables.Table{Name: name, Family: family})
	return conn.Flush()
}

// within runs fn with a handle into a namespace.
func within(path string, fn func(*netlink.Handle) error) error {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	return fn(h)
}

func deleteLinkAt(path, name string) func() error {
	return func() error {
		return within(path, func(h *netlink.Handle) error {
			link, err := h.LinkByName(name)
			if err != nil {
				return err
			}
			return h.LinkDel(link)
		})
	}
}

// harms is everything of ours that somebody may delete by hand.
func (l *lab) harms(a Attachment) map[string]func() error {
	overlay := filepath.Join(l.cfg.overlays(), "red")
	deleteLink := func(name string) func() error {
		return func() error {
			link, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			return netlink.LinkDel(link)
		}
	}
	return map[string]func() error{
		"uplink": deleteLink(Uplink), "fabric": deleteLink(Fabric), "task's link": deleteLink(linkName("web1task")),
		"inet table":     func() error { return deleteTable(nftables.TableFamilyINet, ingress.Table) },
		"fabric's table": func() error { return deleteTable(nftables.TableFamilyNetdev, FabricTable) },
		"table of VIPs": func() error {
			return in(a.Namespace, func() error { return deleteTable(nftables.TableFamilyINet, ingress.Table) })
		},
		"network's bridge": deleteLinkAt(overlay, overlayBridge), "network's tunnel": deleteLinkAt(overlay, overlayTunnel),
		"network's port": deleteLinkAt(overlay, portName("web1task")), "task's eth1": deleteLinkAt(a.Namespace, "eth1"),
		"network's entries": func() error {
			return within(overlay, func(h *netlink.Handle) error {
				link, err := h.LinkByName(overlayTunnel)
				if err != nil {
					return err
				}
				return errors.Join(flushNeighbours(h, link, unix.AF_BRIDGE), flushNeighbours(h, link, unix.AF_INET))
			})
		},
		"fabric's entries": func() error {
			link, err := netlink.LinkByName(Fabric)
			if err != nil {
				return err
			}
			h, err := netlink.NewHandle()
			if err != nil {
				return err
			}
			defer h.Close()
			return errors.Join(flushNeighbours(h, link, unix.AF_BRIDGE), flushNeighbours(h, link, unix.AF_INET))
		},
		"route to the peer": func() error {
			return netlink.RouteDel(&netlink.Route{Dst: netOf(netip.MustParsePrefix("100.64.4.0/24"))})
		},
		"route to the task": func() error {
			return netlink.RouteDel(&netlink.Route{Dst: single(a.Address), Scope: netlink.SCOPE_LINK})
		},
		"rules": func() error {
			rules, err := ourRules(netlink.FAMILY_V4)
			for _, r := range rules {
				err = errors.Join(err, netlink.RuleDel(&r))
			}
			return err
		},
		"forwarding": func() error { return setSysctl("net/ipv4/ip_forward", "0") },
		"task's link down": func() error {
			link, err := netlink.LinkByName(linkName("web1task"))
			if err != nil {
				return err
			}
			return netlink.LinkSetDown(link)
		},
	}
}

func flushNeighbours(h *netlink.Handle, link netlink.Link, family int) error {
	entries, err := h.NeighList(link.Attrs().Index, family)
	for _, e := range entries {
		if family != unix.AF_BRIDGE || e.Flags&netlink.NTF_SELF != 0 {
			e.LinkIndex, e.Family = link.Attrs().Index, family
			err = errors.Join(err, h.NeighDel(&e))
		}
	}
	return err
}

func TestCheck_EachDeletedByHand_IsMadeAgain(t *testing.T) {
	l, a := repairLab(t)
	must(t, l.whole(a))
	for name, harm := range l.harms(a) {
		if err := harm(); err != nil {
			t.Fatalf("%s: cannot do harm: %v", name, err)
		}
		if err := l.Check(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		// A link's carrier takes the kernel up to a second.
		eventually(t, name+": after the check", func() error { return l.whole(a) })
	}
	if again, err := l.Attach(t.Context(), Request{TaskID: "web1task", Networks: a.Networks}); err != nil || again.Address != a.Address {
		t.Errorf("the task was attached anew: %v, %v", again, err)
	}
}

func TestRun_KernelTellsOfWhatHasGone_IsMadeAgain(t *testing.T) {
	l, a := repairLab(t)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	harms := l.harms(a)
	for _, name := range []string{"fabric", "task's link", "inet table", "fabric's table", "uplink"} {
		must(t, harms[name]())
		eventually(t, name, func() error { return l.whole(a) })
	}
	stop()
	must(t, <-ended)
}

// While nobody reads, more happens to links than the kernel keeps for us: the news go on after it.
func TestWatch_MoreNewsThanAreKept_GoesOn(t *testing.T) {
	l, _ := repairLab(t)
	ctx, stop := context.WithCancel(t.Context())
	wake, ended := make(chan struct{}, 1), make(chan struct{})
	go func() { defer close(ended); l.watch(ctx, wake) }()
	hears := func() error {
		must(t, removeLink(Uplink))
		defer func() { must(t, l.makeHost()) }()
		wait := time.NewTimer(200 * time.Millisecond)
		defer wait.Stop()
		select {
		case <-wake:
			return nil
		case <-wait.C:
			return errors.New("nothing is heard")
		}
	}
	eventually(t, "at first", hears)
	l.mu.Lock() // it is asked about every link that goes
	must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "other", TxQLen: -1}}))
	must(t, removeLink("other"))
	uplink, err := netlink.LinkByName(Uplink)
	must(t, err)
	for i := range 2000 {
		must(t, netlink.LinkSetAlias(uplink, strings.Repeat("x", i%200)))
	}
	l.mu.Unlock()
	for range 3 { // one may be of what was missed
		eventually(t, "after that", hears)
	}
	stop()
	<-ended
}

func TestCrash_HalfAttached_IsMadeWholeOrSweptAway(t *testing.T) {
	l, a := repairLab(t)
	cfg := &swarmpb.NodeConfig{UplinkBlock: "100.64.3.0/24", FabricPool: "100.64.0.0/10", Number: 3, FabricPrefix6: "fd5d:1:2:3:4:5::/96", DataPathPort: 4789}
	l.mu.Lock()
	told := l.told
	l.mu.Unlock()
	all := []*swarmpb.AssignmentChange{setNetwork(told.networks["red"]), setService(told.services["websvc"])}
	for _, p := range told.peers {
		all = append(all, setPeer(p))
	}
	for _, e := range told.endpoints {
		all = append(all, setEndpoint(e))
	}
	for name, harm := range l.harms(a) {
		must(t, harm())
		l.Close()
		next, err := New(l.cfg)
		must(t, err)
		l.Network = next
		must(t, l.Configure(t.Context(), cfg))
		must(t, l.Apply(t.Context(), true, all))
		must(t, l.Sweep(t.Context(), []string{"web1task"}))
		again, err := l.Attach(t.Context(), Request{TaskID: "web1task", Networks: a.Networks})
		must(t, err)
		if again.Address != a.Address {
			t.Fatalf("%s: attached anew", name)
		}
		must(t, l.Check(t.Context()))
		eventually(t, name+": after a restart", func() error { return l.whole(a) })
	}
}
