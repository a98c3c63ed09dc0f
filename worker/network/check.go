package network

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	// checkInterval is how often kernel and state are compared when the kernel tells of nothing.
	checkInterval = 10 * time.Second
	// checkPause lets what comes together be repaired together.
	checkPause = 50 * time.Millisecond
	// watchPause is before the kernel is asked for its news again.
	watchPause = time.Second
)

// Check compares the kernel with what was told, and repairs. Before Configure it does nothing.
func (n *Network) Check(context.Context) error {
	err := n.check()
	if problems, looked := n.look(err); looked {
		n.status.Lock()
		n.problems = problems
		n.status.Unlock()
	}
	n.tellStatus()
	if err != nil {
		return fmt.Errorf("check network: %w", err)
	}
	return nil
}

func (n *Network) check() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.configured {
		return nil
	}
	var errs []error
	errs = append(errs, n.makeHost())
	errs = append(errs, n.mendTunnel())
	if n.fabric != nil {
		if err := n.fabric.look(); err != nil {
			n.cfg.Logger.Warn("the link between the nodes is made again", "reason", err)
			n.fabric = nil
		}
	}
	everything := newDelta()
	everything.peers = n.told.everything().peers
	errs = append(errs, n.bringFabric(everything))
	for id, o := range n.overlays {
		if err := o.look(); err != nil {
			n.cfg.Logger.Warn("a network is made again", "network", o.place.name, "reason", err)
			o.close()
			delete(n.overlays, id)
			continue
		}
		errs = append(errs, n.fill(o))
	}
	for _, r := range n.attached {
		if err := n.mendTask(r); err != nil && !errors.Is(err, ErrNotConfigured) {
			errs = append(errs, err)
		}
	}
	errs = append(errs, n.mendRoutes(), n.closeIdleOverlays(), n.names.check(), n.flushAgain(), n.ingress.Check())
	return errors.Join(errs...)
}

// mendRoutes makes the host's routes to tasks that are missing.
func (n *Network) mendRoutes() error {
	have := map[string]bool{}
	for _, family := range families(n.place.prefix6.IsValid()) {
		routes, err := listed(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL)
		})
		if err != nil {
			return fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			if r.Dst != nil && r.Type == unix.RTN_UNICAST {
				have[r.Dst.String()] = true
			}
		}
	}
	var errs []error
	for _, r := range n.attached {
		if r.Guest != nil {
			continue
		}
		place := uplinkPlace{link: linkName(r.TaskID), address: n.place.pair(r.Address), gateway: n.place.gateway()}
		missing := false
		for _, a := range place.address.all() {
			missing = missing || !have[single(a).String()]
		}
		if !missing || r.Internal || !n.place.block.Contains(r.Address) {
			continue
		}
		if link, err := netlink.LinkByName(place.link); err == nil {
			errs = append(errs, netlink.LinkSetUp(link), leadTo(link, place))
		}
	}
	return errors.Join(errs...)
}

func families(ipv6 bool) []int {
	if ipv6 {
		return []int{netlink.FAMILY_V4, netlink.FAMILY_V6}
	}
	return []int{netlink.FAMILY_V4}
}

// Run answers names, and checks at the start, every 10 s, and when the kernel tells of something of ours that has gone.
func (n *Network) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	wake := make(chan struct{}, 1)
	g.Go(func() error { return n.names.resolver.Run(ctx) })
	g.Go(func() error { n.watch(ctx, wake); return nil })
	g.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-n.ingress.Changes():
				n.tellStatus()
			}
		}
	})
	g.Go(func() error {
		tick := time.NewTicker(checkInterval)
		defer tick.Stop()
		for {
			if err := n.Check(ctx); err != nil {
				n.cfg.Logger.Warn("the network is not as it should be; trying again", "error", err)
			}
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			case <-wake:
				pause := time.NewTimer(checkPause)
				select {
				case <-ctx.Done():
				case <-pause.C:
				}
				pause.Stop()
			}
		}
	})
	return g.Wait()
}

// watch wakes when the kernel tells that a link of ours or an nftables table has gone. Where it cannot be asked, the
// checks in between have to do.
func (n *Network) watch(ctx context.Context, wake chan<- struct{}) {
	poke := func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
	tables := make(chan struct{})
	go watchTables(ctx, tables)
	for ctx.Err() == nil {
		n.watchLinks(ctx, tables, poke)
		poke() // something may have been missed
		pause := time.NewTimer(watchPause)
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
		pause.Stop()
	}
}

// watchLinks pokes until ctx ends or the kernel's news of links do, such as when they come faster than they are read.
func (n *Network) watchLinks(ctx context.Context, tables <-chan struct{}, poke func()) {
	done := make(chan struct{})
	var once sync.Once
	end := func() { once.Do(func() { close(done) }) }
	defer context.AfterFunc(ctx, end)()
	defer end()
	links := make(chan netlink.LinkUpdate)
	failed := func(err error) { n.cfg.Logger.Debug("the kernel's news of links end", "error", err) }
	if err := netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{ErrorCallback: failed}); err != nil {
		n.cfg.Logger.Warn("cannot watch links; they are checked every 10 s", "error", err)
		links = nil
	}
	for {
		select {
		case <-ctx.Done():
			if links != nil {
				for range links { // until its goroutine has seen done
				}
			}
			return
		case u, ok := <-links:
			if !ok {
				return
			}
			if u.Header.Type == unix.RTM_DELLINK && n.needs(u.Attrs().Name) {
				poke()
			}
		case <-tables:
			poke()
		}
	}
}

// needs tells whether a link of the host should be there.
func (n *Network) needs(name string) bool {
	if name == Uplink || name == Fabric {
		return true
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for id := range n.attached {
		if linkName(id) == name {
			return true
		}
	}
	return false
}

// watchTables tells of nftables tables that are deleted, until ctx ends.
func watchTables(ctx context.Context, gone chan<- struct{}) {
	s, err := nl.Subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		return
	}
	stop := context.AfterFunc(ctx, s.Close)
	defer stop()
	for ctx.Err() == nil {
		messages, _, err := s.Receive()
		if errors.Is(err, unix.ENOBUFS) {
			messages = nil // something was missed; it is found by the next check
		} else if err != nil {
			return
		}
		for _, m := range messages {
			if m.Header.Type == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_DELTABLE {
				select {
				case gone <- struct{}{}:
				case <-ctx.Done():
				}
				break
			}
		}
	}
}
