package node

import (
	"context"
	"net"
	"net/netip"
	"strconv"

	"github.com/swarmd/swarmd/worker"
	"github.com/swarmd/swarmd/worker/gossip"
)

// newGossip prepares this node's part in gossip, which starts once the managers have handed out keys. It is a hint and
// no more: without it the node works, and its loss is noticed later.
func (n *Node) newGossip(nodeID, advertise string) (*gossip.Gossip, error) {
	host, _, err := net.SplitHostPort(advertise)
	if err != nil {
		return nil, err
	}
	bind := n.cfg.GossipAddr
	if bind == "" {
		// Behind address translation this host does not have the address under which the others reach it.
		at := host
		if addr, err := netip.ParseAddr(host); err != nil || !addr.IsLoopback() && !isLocal(addr) {
			at = ""
		}
		bind = net.JoinHostPort(at, n.gossipPort())
	}
	return gossip.New(gossip.Config{
		NodeID: nodeID, BindAddress: bind, AdvertiseAddress: host, Logger: n.log.With("part", "gossip"),
	})
}

// gossipRun takes part in gossip until ctx ends. That it cannot is a problem to show, and not the end of the node.
func (m *member) gossipRun(ctx context.Context) error {
	if m.gossip == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	if err := m.gossip.Run(ctx); err != nil && ctx.Err() == nil {
		m.node.log.Error("gossip ended", "error", err)
		m.update(func() { m.gossipErr = err })
	}
	<-ctx.Done()
	return ctx.Err()
}

// gossipWith takes keys and seeds from the managers. The port is the same on all nodes: this one's.
func (m *member) gossipWith(c worker.GossipConfig) {
	if m.gossip == nil {
		return
	}
	var seeds []string
	for _, seed := range c.Seeds {
		if host, _, err := net.SplitHostPort(seed); err == nil {
			seed = net.JoinHostPort(host, m.node.gossipPort())
		}
		seeds = append(seeds, seed)
	}
	m.gossip.Configure(c.Keys, seeds)
}

func (n *Node) gossipPort() string {
	if _, port, err := net.SplitHostPort(n.cfg.GossipAddr); err == nil {
		return port
	}
	return strconv.Itoa(gossip.DefaultPort)
}

// gossipProblem is why this node takes no part in gossip; nil while it does, or has no keys.
func (m *member) gossipProblem() error {
	m.mu.Lock()
	err := m.gossipErr
	m.mu.Unlock()
	if err == nil && m.gossip != nil {
		err = m.gossip.Err()
	}
	return err
}
