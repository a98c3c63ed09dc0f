package ingress

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// Until the managers have told the other nodes that a task has ended, these go on sending it new flows. Its node does not refuse them
// when it has another replica of the service: that one takes them. This ends with the managers' word, or when somebody else
// is given the task's address.

// handOver translates flows from the fabric to tasks that are gone.
func (t *table) handOver(k *loading, pre *nftables.Chain, l layout) {
	for i, f := range families {
		port := reg1 + f.addressRegisters
		rule(k, pre, link(expr.MetaKeyIIFNAME, expr.CmpOpEq, l.fabric), f.is(), f.load(f.dest, reg1), []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg0},
			&expr.Payload{DestRegister: port, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Lookup{SourceRegister: reg0, DestRegister: reg0, IsDestRegSet: true, SetName: t.instead[i].Name, SetID: t.instead[i].ID},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.proto), RegAddrMin: reg0, RegProtoMin: reg0 + f.addressRegisters, Specified: true},
		})
	}
}

// insteadElements are what the maps of instead should hold.
func (i *Ingress) insteadElements() map[*nftables.Set][]nftables.SetElement {
	t := i.table
	want := map[*nftables.Set][]nftables.SetElement{t.instead[0]: nil, t.instead[1]: nil}
	for task := range i.state.handed {
		v := i.state.services[i.state.tasks[task]]
		if v == nil {
			continue
		}
		gone, ok := uplinkAddress(v.endpoints[task])
		if !ok {
			continue
		}
		for at, to := range i.replacements(v) {
			add := func(f int, from, to netip.Addr) {
				key := append([]byte{at.protocol, 0, 0, 0}, from.AsSlice()...)
				key = append(key, byte(at.port>>8), byte(at.port), 0, 0)
				want[t.instead[f]] = append(want[t.instead[f]], nftables.SetElement{Key: key, Val: backendValue(to, at.port)})
			}
			add(0, gone, to)
			if p := i.layout.host.Prefix6; p.IsValid() {
				add(1, swarmpb.Address6(p, gone), swarmpb.Address6(p, to))
			}
		}
	}
	return want
}

// replacements are this node's replicas of a service that get connections, one for each of its ports there.
func (i *Ingress) replacements(v *service) map[portKey]netip.Addr {
	out := map[portKey]netip.Addr{}
	for _, p := range v.ports {
		b := i.state.claims[portKey{protocolNumber(p.GetProtocol()), uint16(p.GetPublishedPort())}][v.id]
		if b == nil {
			continue
		}
		for _, to := range b.backends {
			at := portKey{protocolNumber(p.GetProtocol()), to.Port()}
			if _, ok := out[at]; !ok && i.layout.host.Block.Contains(to.Addr()) {
				out[at] = to.Addr()
			}
		}
	}
	return out
}

// followGone has the flows to tasks that are gone led to those that take them now.
func (i *Ingress) followGone() error {
	if len(i.state.handed) == 0 && len(i.members[i.table.instead[0]]) == 0 {
		return nil
	}
	return i.setMembers(i.insteadElements())
}

// takeBack ends handing over for addresses that somebody else is given.
func (i *Ingress) takeBack(given []netip.Addr) {
	had := map[netip.Addr]bool{}
	for _, a := range i.pods {
		had[a] = true
	}
	for _, a := range given {
		for task := range i.state.handed {
			if of, ok := uplinkAddress(i.state.services[i.state.tasks[task]].endpoints[task]); ok && of == a && !had[a] {
				delete(i.state.handed, task)
			}
		}
	}
}
