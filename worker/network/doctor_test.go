package network

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/doctor"
)

// findings are what the doctor tells of a node, by check.
func (n *node) findings(t *testing.T) map[string]*swarmpb.DoctorResponse {
	t.Helper()
	out := map[string]*swarmpb.DoctorResponse{}
	n.do(t, func() error {
		return n.Doctor(t.Context(), func(r *swarmpb.DoctorResponse) error { out[r.GetCheck()] = r; return nil })
	})
	return out
}

func TestDoctor_TellsOfKernelFirewallsAndNodesThatDoNotAnswer(t *testing.T) {
	c := newCluster(t, 2)
	nobody := &swarmpb.Peer{NodeId: "nobody", Number: 9, Address: wireAddress(9).String(), UplinkBlock: "100.64.9.0/24"}
	c.tellPeers(t, setPeer(nobody))
	got := c.nodes[0].findings(t)
	const ok, problem = swarmpb.Finding_FINDING_OK, swarmpb.Finding_FINDING_PROBLEM
	for check, want := range map[string]swarmpb.Finding{
		"kernel vxlan": ok, "kernel veth": ok, "kernel bridge": ok, "kernel nf_tables dnat": ok, "kernel nf_tables netdev egress": ok,
		"network": ok, "ip_forward": ok, "rp_filter": ok, "other firewalls": ok,
		"port 4789/udp to 10.99.0.9 (node nobody)": problem,
	} {
		if f := got[check]; f.GetFinding() != want || want == problem && f.GetAdvice() == "" {
			t.Errorf("%s: %v", check, f)
		}
	}
	if problems := c.nodes[0].Status().Problems; len(problems) != 0 {
		t.Errorf("problems are %q", problems)
	}
}

func TestDoctor_WayToAPeer_IsJudgedByWhatComesBack(t *testing.T) {
	c := newCluster(t, 2)
	c.tellPeers(t)
	one, two := c.nodes[0], c.nodes[1]
	judge := func(what string, want swarmpb.Finding, check func() doctor.Finding) {
		t.Helper()
		var got doctor.Finding
		one.do(t, func() error { got = check(); return nil }) // on its thread, in its namespace
		if got.Finding != want {
			t.Errorf("%s: %+v", what, got)
		}
	}
	const ok, problem = swarmpb.Finding_FINDING_OK, swarmpb.Finding_FINDING_PROBLEM
	way := func(mtu int) func() doctor.Finding {
		return func() doctor.Finding {
			return checkFabric(t.Context(), two.address, gatewayOf(two.place.block), 4789, mtu)
		}
	}
	judge("mtu", ok, func() doctor.Finding { return checkMTU(t.Context(), two.address, 1500) })
	judge("fabric", ok, way(1450))
	must(t, in(c.wire, func() error {
		link, err := netlink.LinkByName("w2")
		must(t, err)
		return netlink.LinkSetMTU(link, 1400)
	}))
	judge("mtu of a narrow wire", problem, func() doctor.Finding { return checkMTU(t.Context(), two.address, 1500) })
	judge("fabric on a narrow wire", problem, way(1450))
	judge("nobody there", problem, func() doctor.Finding {
		return checkFabric(t.Context(), wireAddress(9), netip.MustParseAddr("100.64.9.1"), 4789, 1450)
	})
}

func TestDoctor_EndsWithItsListener(t *testing.T) {
	c := newCluster(t, 1)
	if err := c.nodes[0].try(func() error {
		return c.nodes[0].Doctor(t.Context(), func(*swarmpb.DoctorResponse) error { return unix.EPIPE })
	}); !errors.Is(err, unix.EPIPE) {
		t.Errorf("got %v", err)
	}
}

func TestStatus_KernelLacksAFeature_IsAProblem(t *testing.T) {
	l := newLab(t)
	l.status.Lock()
	l.tried, l.lacks = true, []string{"kernel vxlan does not work"}
	l.status.Unlock()
	must(t, l.Check(t.Context()))
	got := strings.Join(l.Status().Problems, "\n")
	if got != "kernel vxlan does not work" {
		t.Errorf("problems are %q", got)
	}
}
