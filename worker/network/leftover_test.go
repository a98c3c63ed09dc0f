package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/swarmd/swarmd/worker/network/wireguard"
)

// A leave that was cut short is ended by a process that is told of no cluster any more.
func TestTeardown_ByAProcessThatNeverOpenedTheTunnel_LeavesNothingOfIt(t *testing.T) {
	c := newCluster(t, 1)
	n := c.nodes[0]
	n.end(t)
	n.keys = t.TempDir()
	n.start(t)
	c.tellPeers(t)
	left := func() (out []string) {
		n.do(t, func() error {
			conn, err := nftables.New()
			must(t, err)
			tables, err := conn.ListTables()
			must(t, err)
			for _, table := range tables {
				if table.Name == wireguard.Table {
					out = append(out, "table")
				}
			}
			routes, err := netlink.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Type: unix.RTN_UNREACHABLE}, netlink.RT_FILTER_TYPE)
			must(t, err)
			for _, r := range routes {
				if r.Dst != nil && strings.HasSuffix(r.Dst.String(), "/112") {
					out = append(out, "route")
				}
			}
			if linkExists(wireguard.Link) {
				out = append(out, "link")
			}
			return nil
		})
		files, err := os.ReadDir(n.keys)
		must(t, err)
		for _, f := range files {
			out = append(out, f.Name())
		}
		return out
	}
	if n.tunnel == nil {
		t.Skipf("no encryption here: %v", n.tunnelErr)
	}
	n.end(t)
	if len(left()) == 0 {
		t.Fatal("nothing is left by a process that ends, though its rules and its key are to stay")
	}
	n.do(t, func() error {
		next, err := New(Config{Dir: n.dir, KeyDir: n.keys, Logger: slog.New(slog.DiscardHandler)})
		must(t, err)
		defer next.Close()
		return next.Teardown(context.Background())
	})
	if got := left(); len(got) > 0 {
		t.Errorf("left: %q", got)
	}
	n.start(t)
}

// Something that keeps the fabric from being made, here a link of its name, is no reason for networks not to work.
func TestFabric_CannotBeMade_NetworksWorkAllTheSame(t *testing.T) {
	c := newCluster(t, 2)
	red := testNetwork("red", 4097, "10.0.4.0/24")
	n := c.nodes[0]
	n.do(t, func() error {
		return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: Fabric, TxQLen: -1}})
	})
	all := append(sets(setPeer, c.nodes[0].peer(), c.nodes[1].peer()), setNetwork(red))
	if err := n.try(func() error { return n.Apply(t.Context(), true, all) }); err == nil || !strings.Contains(err.Error(), Fabric) {
		t.Errorf("told: %v; want an error that names the link", err)
	}
	c.nodes[1].do(t, func() error { return c.nodes[1].Apply(t.Context(), true, all) })
	a, b := n.task(t, "atask", at(red, 5)), c.nodes[1].task(t, "btask", at(red, 6))
	answer(t, b.Namespace, "b")
	endpoints := sets(setEndpoint, n.endpoint("s", "atask", 1, a), c.nodes[1].endpoint("s", "btask", 2, b))
	_ = n.try(func() error { return n.Apply(t.Context(), false, endpoints) }) // of the fabric still
	c.nodes[1].do(t, func() error { return c.nodes[1].Apply(t.Context(), false, endpoints) })
	wants(t, a.Namespace, "10.0.4.6:80", "b 10.0.4.5")
}

func TestTunnel_PortTakenForAWhile_IsOpenedOnceItIsFree(t *testing.T) {
	c := newCluster(t, 1)
	n := c.nodes[0]
	n.end(t)
	var other net.PacketConn
	n.do(t, func() (err error) {
		other, err = net.ListenPacket("udp", fmt.Sprintf(":%d", wireguard.DefaultPort))
		return err
	})
	n.keys = t.TempDir()
	n.start(t)
	err := n.try(func() error { return n.Check(t.Context()) })
	if errors.Is(n.tunnelErr, ErrUnsupported) {
		t.Skipf("no encryption here: %v", n.tunnelErr)
	}
	if s := n.Status(); err == nil || s.GetWireguard() != "" || !strings.Contains(fmt.Sprint(s.GetProblems()), "encrypted networks") {
		t.Errorf("with the port taken: %v, status %v; want a problem that names it", err, s)
	}
	must(t, other.Close())
	n.do(t, func() error { return n.Check(t.Context()) })
	if s := n.Status(); s.GetWireguard() == "" || len(s.GetProblems()) > 0 {
		t.Errorf("with the port free: status %v; want it to encrypt", s)
	}
}
