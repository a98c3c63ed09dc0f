package ingress

import (
	"slices"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/ingress/slots"
)

// A trial divides a service's new connections between one set of its endpoints and the others. What is established stays
// where it is, but for UDP: the entries of an endpoint that gets no more connections are deleted, or its clients' packets would
// keep on going there.

// setService takes over what is said of a service; nil: nothing more is.
func (s *state) setService(v *service, m *swarmpb.AssignedService, out leaving) {
	before := *v
	v.ports, v.trial, v.preview = m.GetPorts(), m.GetTrial(), nil
	if v.trial.GetPreview() {
		v.preview = m.GetPreviewPorts()
	}
	if len(v.preview) == 0 {
		v.shown = nil
	}
	if m == nil || !v.takesUDP() || before.trial.GetSet() == v.trial.GetSet() && before.trial.GetShare() == v.trial.GetShare() && (before.trial == nil) == (v.trial == nil) {
		return
	}
	for task, e := range v.endpoints {
		if a, ok := uplinkAddress(e); ok && before.serves(e) && !v.serves(e) && !s.gone[task] {
			out.udp[a] = true
		}
	}
}

func (v *service) takesUDP() bool {
	udp := func(p *swarmpb.PortConfig) bool { return p.GetProtocol() == swarmpb.Protocol_PROTOCOL_UDP }
	return slices.ContainsFunc(v.ports, udp) || slices.ContainsFunc(v.preview, udp)
}

// serves tells whether the endpoint is to get new connections: it is active, and its side has a share.
func (v *service) serves(e *swarmpb.Endpoint) bool {
	return e.GetState() == swarmpb.EndpointState_ENDPOINT_STATE_ACTIVE && v.trial.ShareOf(e) > 0
}

// loses tells whether the endpoint gets no new connections any more. Of one that is told for the first time, a former process
// may have led some there.
func (v *service) loses(before, now *swarmpb.Endpoint) bool {
	if now.GetState() == swarmpb.EndpointState_ENDPOINT_STATE_DRAINING && before.GetState() != now.GetState() {
		return true
	}
	return !v.serves(now) && now.GetState() != swarmpb.EndpointState_ENDPOINT_STATE_STARTING && (before == nil || v.serves(before))
}

// candidates are the endpoints that take new connections, those of the trial and the rest: the active ones with an address, of
// a side that has a share, on nodes that are not said to be dead; all of them when those are all that is left.
func (s *state) candidates(v *service) slots.Candidates {
	all := slots.Candidates{Share: v.trial.GetShare()}
	s.alive(v, v.serves, func(e *swarmpb.Endpoint, c slots.Candidate) {
		if v.trial.Has(e) {
			all.Trial = append(all.Trial, c)
		} else {
			all.Rest = append(all.Rest, c)
		}
	})
	return all
}

// previewed are those that the preview ports lead to: the trial's set, whatever its share.
func (s *state) previewed(v *service) slots.Candidates {
	var all slots.Candidates
	s.alive(v, func(e *swarmpb.Endpoint) bool {
		return e.GetState() == swarmpb.EndpointState_ENDPOINT_STATE_ACTIVE && v.trial.Has(e)
	}, func(_ *swarmpb.Endpoint, c slots.Candidate) { all.Rest = append(all.Rest, c) })
	return all
}

// alive calls for the endpoints that take part and can be used.
func (s *state) alive(v *service, takes func(*swarmpb.Endpoint) bool, each func(*swarmpb.Endpoint, slots.Candidate)) {
	var dead []*swarmpb.Endpoint
	any := false
	candidate := func(e *swarmpb.Endpoint) {
		c := slots.Candidate{ID: e.GetTaskId(), Node: e.GetNodeId(), Weight: e.GetWeight()}
		if c.Weight == 0 {
			c.Weight = defaultWeight
		}
		each(e, c)
	}
	for task, e := range v.endpoints {
		if _, ok := uplinkAddress(e); !ok || s.gone[task] || !takes(e) {
			continue
		}
		if s.dead[e.GetNodeId()] {
			dead = append(dead, e)
			continue
		}
		any = true
		candidate(e)
	}
	if any {
		return
	}
	for _, e := range dead {
		candidate(e)
	}
}
