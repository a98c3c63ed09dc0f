package network

import (
	"errors"
	"net/netip"
	"slices"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/ingress"
	"github.com/swarmd/swarmd/worker/ingress/slots"
	"github.com/swarmd/swarmd/worker/network/dns"
)

// given is what a service has one of its names stand for.
type given struct {
	addrs []netip.Addr
	// divided are two sides besides, of which a query gets one. Without a share there are none.
	divided dns.Division
	// absent: the name does not exist, for now.
	absent bool
}

func (g given) equal(o given) bool {
	return g.absent == o.absent && g.divided.Share == o.divided.Share && slices.Equal(g.addrs, o.addrs) &&
		slices.Equal(g.divided.Rest, o.divided.Rest) && slices.Equal(g.divided.Trial, o.divided.Trial)
}

// sides are the tasks of a service that get new connections: those of its trial's set, which together get share of them, and
// the rest. Where only one side gets any, the other is empty and the share says so.
type sides struct {
	rest, trial []backend
	share       uint32
}

// sides leaves out who has no share, and leaves the share of a side without tasks to the other.
func (v view) sides(networkID, serviceID string) sides {
	all := v.usable(networkID, serviceID, func(t *swarmpb.Trial, e *swarmpb.Endpoint) bool { return t.ShareOf(e) > 0 })
	s := sides{share: v.services[serviceID].GetTrial().GetShare()}
	for _, b := range all {
		if b.trial {
			s.trial = append(s.trial, b)
		} else {
			s.rest = append(s.rest, b)
		}
	}
	if len(s.trial) == 0 {
		s.share = 0
	} else if len(s.rest) == 0 {
		s.share = slots.Whole
	}
	return s
}

func (s sides) equal(o sides) bool {
	return s.share == o.share && slices.Equal(s.rest, o.rest) && slices.Equal(s.trial, o.trial)
}

// given is what the service's name stands for without a VIP.
func (s sides) given() given {
	if len(s.rest) == 0 || len(s.trial) == 0 {
		return given{addrs: addressesOf(slices.Concat(s.rest, s.trial))}
	}
	return given{divided: dns.Division{Rest: addressesOf(s.rest), Trial: addressesOf(s.trial), Share: s.share}}
}

// vips are the sides as the kernel has them, one VIP a family.
func (s sides) vips(of pair) []ingress.VIP {
	four, six := ingress.VIP{Address: of.v4, Share: s.share}, ingress.VIP{Address: of.v6, Share: s.share}
	for _, b := range s.rest {
		four.Backends = append(four.Backends, ingress.Backend{Address: b.v4, Weight: b.weight})
		if b.v6.IsValid() {
			six.Backends = append(six.Backends, ingress.Backend{Address: b.v6, Weight: b.weight})
		}
	}
	for _, b := range s.trial {
		four.Trial = append(four.Trial, ingress.Backend{Address: b.v4, Weight: b.weight})
		if b.v6.IsValid() {
			six.Trial = append(six.Trial, ingress.Backend{Address: b.v6, Weight: b.weight})
		}
	}
	if of.v6.IsValid() {
		return []ingress.VIP{four, six}
	}
	return []ingress.VIP{four}
}

// preview is what preview.NAME stands for: the trial's set, whatever its share.
func (v view) preview(networkID, serviceID string) given {
	if !v.services[serviceID].GetTrial().GetPreview() {
		return given{absent: true}
	}
	return given{addrs: addressesOf(v.usable(networkID, serviceID, (*swarmpb.Trial).Has))}
}

func addressesOf(backends []backend) []netip.Addr {
	var all []netip.Addr
	for _, b := range backends {
		all = append(all, b.all()...)
	}
	return all
}

// endLostUDP ends the UDP flows of this node's tasks to endpoints that get no new connections any more: they drain, are not
// ready, or their set has lost its share. What is TCP goes on.
func (n *Network) endLostUDP(d *delta) error {
	lost := map[string][]pair{} // by network
	see := func(was, now *swarmpb.Endpoint) {
		if !n.loses(was, now, d) {
			return
		}
		for _, a := range was.GetNetworks() {
			if p, ok := pairOf(a); ok && n.overlays[a.GetNetworkId()] != nil {
				lost[a.GetNetworkId()] = append(lost[a.GetNetworkId()], p)
			}
		}
	}
	for task, was := range d.endpoints {
		see(was, n.told.endpoints[task])
	}
	for service := range d.trials {
		for task, e := range n.told.ofService[service] {
			if _, changed := d.endpoints[task]; !changed {
				see(e, e)
			}
		}
	}
	var errs []error
	for network, pairs := range lost {
		errs = append(errs, n.flushUDP(network, pairs))
	}
	return errors.Join(errs...)
}

// loses tells whether an endpoint that is there still gets no new connections any more.
func (n *Network) loses(was, now *swarmpb.Endpoint, d *delta) bool {
	const active, starting = swarmpb.EndpointState_ENDPOINT_STATE_ACTIVE, swarmpb.EndpointState_ENDPOINT_STATE_STARTING
	if was == nil || now == nil || now.GetState() == starting {
		return false
	}
	trial := n.told.services[now.GetServiceId()].GetTrial()
	before, changed := d.trials[now.GetServiceId()]
	if !changed {
		before = trial
	}
	return was.GetState() == active && before.ShareOf(was) > 0 && (now.GetState() != active || trial.ShareOf(now) == 0)
}

// flushUDP ends the UDP flows to addresses of a network; what fails is done again by Check.
func (n *Network) flushUDP(network string, pairs []pair) error {
	err := n.names.flushUDP(network, pairs)
	for _, p := range pairs {
		if err != nil && len(n.unended) < maxUnended {
			n.unended = append(n.unended, flow{network, p, true})
		}
	}
	return err
}
