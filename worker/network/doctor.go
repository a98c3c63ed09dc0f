package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// look collects what does not work here, one line each; false: nothing can be said before Configure.
func (n *Network) look(err error) ([]string, bool) {
	n.mu.Lock()
	configured := n.configured
	n.mu.Unlock()
	if !configured {
		return nil, false
	}
	var problems []string
	for _, t := range n.features() {
		if t.err != nil && !t.minor {
			problems = append(problems, t.problem())
		}
	}
	for _, e := range flatten(err) {
		problems = append(problems, e.Error())
	}
	problems = append(problems, n.coexist.Check()...)
	slices.Sort(problems)
	problems = slices.Compact(problems)
	return problems[:min(len(problems), maxProblems)], true
}

// flatten are the single errors of a joined one.
func flatten(err error) []error {
	if err == nil {
		return nil
	}
	var joined interface{ Unwrap() []error }
	if !errors.As(err, &joined) {
		return []error{err}
	}
	var out []error
	for _, e := range joined.Unwrap() {
		out = append(out, flatten(e)...)
	}
	return out
}

// Doctor looks at all that networks and published ports need on this host, and tells what it finds one by one.
func (n *Network) Doctor(ctx context.Context, tell func(*swarmpb.DoctorResponse) error) error {
	for _, t := range tryFeatures() {
		if err := tell(t.finding()); err != nil {
			return err
		}
	}
	findings := append(n.diagnose(ctx), n.reach(ctx)...)
	for _, f := range findings {
		if err := errors.Join(ctx.Err(), tell(f)); err != nil {
			return err
		}
	}
	return nil
}

// diagnose compares kernel and state, and looks at what of the host is in the way.
func (n *Network) diagnose(ctx context.Context) []*swarmpb.DoctorResponse {
	const ok, warning, problem = swarmpb.Finding_FINDING_OK, swarmpb.Finding_FINDING_WARNING, swarmpb.Finding_FINDING_PROBLEM
	n.mu.Lock()
	configured, fabric, tunnelErr := n.configured, n.fabric, n.tunnelErr
	n.mu.Unlock()
	if !configured {
		return []*swarmpb.DoctorResponse{{Check: "uplink", Finding: warning, Detail: "this node has no addresses for tasks yet", Advice: "join a cluster, or wait until its managers can be reached"}}
	}
	var out []*swarmpb.DoctorResponse
	add := func(check string, finding swarmpb.Finding, detail, advice string) {
		out = append(out, &swarmpb.DoctorResponse{Check: check, Finding: finding, Detail: detail, Advice: advice})
	}
	errs := flatten(n.Check(ctx))
	for _, err := range errs {
		add("network", problem, err.Error(), "see the log of swarmd; it tries again every 10 s")
	}
	if len(errs) == 0 {
		add("network", ok, "links, routes and rules are as they should be", "")
	}
	if fabric == nil {
		add("fabric", warning, "this node has not been told its own address yet", "wait until managers can be reached")
	} else {
		add("fabric", ok, fmt.Sprintf("%s from %s, UDP port %d, MTU %d", Fabric, fabric.place.address, fabric.place.port, fabric.place.mtu), "")
	}
	lines := n.coexist.Check()
	for _, line := range lines {
		add("other firewalls", problem, line, "do as the line says; it is looked at again every 10 s")
	}
	if len(lines) == 0 {
		add("other firewalls", ok, "none drops what the cluster forwards", "")
	}
	status := n.Status()
	for _, c := range status.Conflicts {
		add(fmt.Sprintf("port %d/%s", c.GetPort(), c.GetProtocol().Name()), problem, "something else on this host has it: "+c.GetProcess(), "stop it, or publish another port")
	}
	if tunnelErr != nil {
		add("encryption", warning, tunnelErr.Error(), "without it this node takes no tasks of encrypted networks")
	} else {
		add("encryption", ok, "WireGuard of the "+status.Wireguard, "")
	}
	return out
}

// reach sends echoes over the fabric to other nodes, small ones and the largest that it takes.
func (n *Network) reach(ctx context.Context) []*swarmpb.DoctorResponse {
	n.mu.Lock()
	f := n.fabric
	if f == nil {
		n.mu.Unlock()
		return nil
	}
	from, mtu, port := gatewayOf(f.place.block), f.place.mtu, f.place.port
	peers := map[string]netip.Addr{}
	for id, p := range f.have {
		if len(peers) < maxEchoed {
			peers[id] = gatewayOf(p.block)
		}
	}
	n.mu.Unlock()
	var out []*swarmpb.DoctorResponse
	answered, err := echoes(ctx, from, peers, mtu)
	if err != nil {
		return []*swarmpb.DoctorResponse{{Check: "other nodes", Finding: swarmpb.Finding_FINDING_WARNING, Detail: "cannot send echoes: " + err.Error()}}
	}
	for _, id := range slices.Sorted(maps.Keys(peers)) {
		r := &swarmpb.DoctorResponse{Check: "mtu to " + id, Finding: swarmpb.Finding_FINDING_OK, Detail: fmt.Sprintf("packets of %d bytes pass", mtu)}
		switch got := answered[id]; {
		case !got.small:
			r.Finding, r.Detail = swarmpb.Finding_FINDING_PROBLEM, "no answer over the fabric"
			r.Advice = fmt.Sprintf("see that it is up, and that no firewall between the nodes drops UDP port %d", port)
		case !got.large:
			r.Finding, r.Detail = swarmpb.Finding_FINDING_PROBLEM, fmt.Sprintf("small packets pass, those of %d bytes do not", mtu)
			r.Advice = "the network between the nodes takes less than the MTU of their links: lower that of the link, here and there"
		}
		out = append(out, r)
	}
	return out
}
