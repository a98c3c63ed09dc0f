package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
	"github.com/swarmd/swarmd/worker/doctor"
)

// Doctor checks what this host needs, also one that belongs to no cluster yet.
func (s *localServer) Doctor(_ *swarmpb.DoctorRequest, stream grpc.ServerStreamingServer[swarmpb.DoctorResponse]) error {
	n := s.node
	var mu sync.Mutex // a stream takes one message at a time
	tell := func(r *swarmpb.DoctorResponse) error {
		mu.Lock()
		defer mu.Unlock()
		return stream.Send(r)
	}
	g, ctx := errgroup.WithContext(stream.Context())
	g.Go(func() error { return doctor.Run(ctx, n.checks(), tell) })
	g.Go(func() error { return n.network.Doctor(ctx, tell) })
	if err := g.Wait(); err != nil {
		return wire.Errorf(wire.CodeUnavailable, "doctor: the checks were broken off: %w", err)
	}
	return nil
}

// checks are those of the host, and of its part in the cluster.
func (n *Node) checks() []doctor.Check {
	checks := n.hostChecks()
	m := n.current()
	if m == nil {
		return append(checks, n.freePortChecks()...)
	}
	return append(checks, m.checks()...)
}

// freePortChecks look whether the ports that a member needs can be had.
func (n *Node) freePortChecks() []doctor.Check {
	host, port, _ := net.SplitHostPort(n.cfg.ListenAddr)
	gossipHost, _, _ := net.SplitHostPort(n.cfg.GossipAddr)
	return []doctor.Check{
		freePort("tcp", net.JoinHostPort(host, port), "--listen-addr"),
		freePort("tcp", net.JoinHostPort(gossipHost, n.gossipPort()), "--gossip-addr"),
		freePort("udp", net.JoinHostPort(gossipHost, n.gossipPort()), "--gossip-addr"),
	}
}

// freePort looks whether an address can be listened on; option is what chooses another one.
func freePort(network, address, option string) doctor.Check {
	_, port, _ := net.SplitHostPort(address)
	return doctor.Check{Name: "port " + port + "/" + network, Run: func(ctx context.Context) doctor.Finding {
		var listen net.ListenConfig
		var err error
		if network == "udp" {
			var c net.PacketConn
			if c, err = listen.ListenPacket(ctx, network, address); err == nil {
				err = c.Close()
			}
		} else {
			var l net.Listener
			if l, err = listen.Listen(ctx, network, address); err == nil {
				err = l.Close()
			}
		}
		if errors.Is(err, syscall.EADDRINUSE) {
			return doctor.Problem("something else on this host has it", fmt.Sprintf("find it with `ss -lnp 'sport = :%s'` and end it, or choose another port with %s", port, option))
		} else if err != nil {
			return doctor.Problem("it cannot be listened on: "+err.Error(), "choose an address of this host with "+option)
		}
		return doctor.OK("free")
	}}
}

// checks are of the node's part in its cluster: the ways to the others, and its clock.
func (m *member) checks() []doctor.Check {
	checks := []doctor.Check{
		{Name: "session with a manager", Run: m.checkSession},
		{Name: "clock", Run: m.checkClock},
		{Name: "gossip", Run: m.checkGossip},
	}
	if !m.isManager() {
		checks = append(checks, freePort("tcp", m.node.cfg.ListenAddr, "--listen-addr")) // it may become one
	}
	for _, address := range m.state().Managers {
		if address != m.advertise {
			_, port, _ := net.SplitHostPort(address)
			checks = append(checks, doctor.Check{Name: fmt.Sprintf("port %s/tcp of manager %s", port, address),
				Run: func(ctx context.Context) doctor.Finding { return dialCheck(ctx, address) }})
		}
	}
	id, _ := m.creds.Identity()
	peers := slices.DeleteFunc(m.agent.Peers(), func(p *swarmpb.Peer) bool { return p.GetNodeId() == id.NodeID })
	slices.SortFunc(peers, func(a, b *swarmpb.Peer) int { return cmp.Compare(a.GetNumber(), b.GetNumber()) })
	for _, p := range peers {
		checks = append(checks, m.peerChecks(p)...)
	}
	return checks
}

func (m *member) checkSession(context.Context) doctor.Finding {
	if err := m.refusal(); err != nil {
		return doctor.Problem("the managers refuse this node: "+err.Error(), "leave the cluster with `swarmctl leave --force`, then join it again")
	}
	if at := m.agent.ConnectedTo(); at != "" {
		return doctor.OK("with %s", at)
	}
	return doctor.Problem("there is none: what runs here goes on, and nothing new is started", "see the checks of the managers' ports, and swarmctl info")
}

// clockGood is how far clocks may be apart.
const clockGood = time.Second

func (m *member) checkClock(context.Context) doctor.Finding {
	ahead, within, ok := m.agent.Clock()
	if !ok {
		return doctor.Warning("no manager has answered lately, so that there is nothing to compare with", "see the session with a manager")
	}
	return judgeClock(ahead, within)
}

// judgeClock judges how far this host's clock is ahead of the manager's, give or take within.
func judgeClock(ahead, within time.Duration) doctor.Finding {
	way := "ahead of"
	if ahead < 0 {
		way = "behind"
	}
	text := fmt.Sprintf("%s %s the manager's, give or take %s", ahead.Abs().Round(time.Millisecond), way, max(within, time.Millisecond).Round(time.Millisecond))
	const advice = "have all hosts keep time, for example with chrony"
	switch {
	case ahead.Abs()-within > time.Minute:
		return doctor.Problem(text+": certificates may not be valid yet, or no more", advice)
	case ahead.Abs()-within > clockGood:
		return doctor.Warning(text, advice)
	}
	return doctor.OK("%s", text)
}

func (m *member) checkGossip(context.Context) doctor.Finding {
	if err := m.gossipProblem(); err != nil {
		return doctor.Problem("this node takes no part, so that its loss counts later: "+err.Error(), "choose another address with --gossip-addr, or end what has the port")
	}
	return doctor.OK("%d other nodes are alive", len(m.gossipMembers()))
}

// peerChecks look whether another node's gossip can be reached. An answer to a packet shows that packets pass both ways.
func (m *member) peerChecks(p *swarmpb.Peer) []doctor.Check {
	at := p.GetAddress() + " (node " + p.GetNodeId() + ")"
	port := m.node.gossipPort()
	checks := []doctor.Check{{Name: "port " + port + "/tcp to " + at, Run: func(ctx context.Context) doctor.Finding {
		return dialCheck(ctx, net.JoinHostPort(p.GetAddress(), port))
	}}}
	if m.gossip == nil {
		return checks
	}
	return append(checks, doctor.Check{Name: "port " + port + "/udp to " + at, Run: func(ctx context.Context) doctor.Finding {
		if _, err := netip.ParseAddr(p.GetAddress()); err != nil {
			return doctor.Warning("its address is not known", "")
		}
		if err := m.gossip.Probe(ctx, p.GetNodeId(), p.GetAddress()); err != nil {
			return doctor.Problem("no answer: its loss, or what it sees of others, counts later", "open UDP port "+port+" between all nodes, both ways, and see that swarmd runs there")
		}
		return doctor.OK("answers")
	}})
}

// dialCheck opens a connection.
func dialCheck(ctx context.Context, address string) doctor.Finding {
	_, port, _ := net.SplitHostPort(address)
	var d net.Dialer
	began := time.Now()
	c, err := d.DialContext(ctx, "tcp", address)
	switch {
	case err == nil:
		_ = c.Close()
		return doctor.OK("open, %s", max(time.Since(began), time.Microsecond).Round(10*time.Microsecond))
	case errors.Is(err, syscall.ECONNREFUSED):
		return doctor.Problem("refused", "see that swarmd runs there, and that no firewall rejects TCP port "+port)
	case ctx.Err() != nil:
		return doctor.Problem(fmt.Sprintf("no answer within %s", doctor.Time), "open TCP port "+port+" between all nodes, and see that the host is up")
	}
	return doctor.Problem(err.Error(), "check addresses and routes between the hosts")
}
