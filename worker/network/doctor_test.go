package network

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
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
		"kernel vxlan": ok, "kernel veth": ok, "kernel bridge": ok, "kernel nftables nat": ok, "kernel nftables egress": ok,
		"network": ok, "fabric": ok, "other firewalls": ok, "mtu to node2": ok, "mtu to nobody": problem,
	} {
		if f := got[check]; f.GetFinding() != want || want == problem && f.GetAdvice() == "" {
			t.Errorf("%s: %v", check, f)
		}
	}
	if problems := c.nodes[0].Status().Problems; len(problems) != 0 {
		t.Errorf("problems are %q", problems)
	}
}

func TestDoctor_EndsWithItsListener(t *testing.T) {
	c := newCluster(t, 1)
	if err := c.nodes[0].try(func() error {
		return c.nodes[0].Doctor(t.Context(), func(*swarmpb.DoctorResponse) error { return unix.EPIPE })
	}); !errors.Is(err, unix.EPIPE) {
		t.Errorf("got %v", err)
	}
}

func TestStatus_KernelLacksAFeature_ProblemSaysWhatDoesNotWorkAndWhatToDo(t *testing.T) {
	l := newLab(t)
	l.status.Lock()
	l.tried = []tried{{features[2], unix.EOPNOTSUPP}}
	l.status.Unlock()
	must(t, l.Check(t.Context()))
	got := strings.Join(l.Status().Problems, "\n")
	for _, want := range []string{"kernel vxlan", "reach no task on another node", "load the module vxlan"} {
		if !strings.Contains(got, want) {
			t.Errorf("problems are %q, want %q in them", got, want)
		}
	}
}
