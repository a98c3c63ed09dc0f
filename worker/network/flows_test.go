package network

import (
	"net"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestTeardown_FlowsOfTheFabricAreForgotten_OthersStay(t *testing.T) {
	l := newLab(t)
	must(t, l.Configure(t.Context(), block))
	trackForOthers(t)
	track := func(src, dst string) {
		forward := netlink.IPTuple{Protocol: unix.IPPROTO_UDP, SrcIP: net.ParseIP(src).To4(), SrcPort: 1, DstIP: net.ParseIP(dst).To4(), DstPort: 2}
		reverse := netlink.IPTuple{Protocol: unix.IPPROTO_UDP, SrcIP: forward.DstIP, SrcPort: 2, DstIP: forward.SrcIP, DstPort: 1}
		must(t, netlink.ConntrackCreate(netlink.ConntrackTable, unix.AF_INET, &netlink.ConntrackFlow{
			FamilyType: unix.AF_INET, Forward: forward, Reverse: reverse, TimeOut: 600}))
	}
	track("100.64.3.1", "224.0.0.22")
	track("192.0.2.1", "100.64.3.7")
	track("192.0.2.1", "192.0.2.2")
	if before, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET); err != nil || len(before) < 3 {
		t.Fatalf("%v are tracked, %v", before, err)
	}
	must(t, l.Teardown(t.Context()))
	left, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	must(t, err)
	others := 0
	for _, f := range left {
		if f.Forward.DstIP.String() == "192.0.2.2" {
			others++
		} else if f.Forward.SrcIP.String() == "100.64.3.1" || f.Forward.DstIP.String() == "100.64.3.7" {
			t.Errorf("left: %v", f)
		}
	}
	if others != 1 {
		t.Errorf("%d flows of others are left, want 1", others)
	}
}

// trackForOthers has the kernel go on tracking when our tables have gone.
func trackForOthers(t *testing.T) {
	t.Helper()
	var c nftables.Conn
	table := c.AddTable(&nftables.Table{Name: "others", Family: nftables.TableFamilyIPv4})
	chain := c.AddChain(&nftables.Chain{Name: "in", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Ct{Register: 1, Key: expr.CtKeySTATE}}})
	must(t, c.Flush())
}
