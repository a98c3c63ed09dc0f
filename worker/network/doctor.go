package network

import (
	"context"
	"fmt"
	"slices"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/doctor"
)

// Doctor looks at all that networks and published ports need on this host and on the way to the others, and tells what it
// finds one by one.
func (n *Network) Doctor(ctx context.Context, tell func(*swarmpb.DoctorResponse) error) error {
	return doctor.Run(ctx, slices.Concat(kernelChecks(), n.settingChecks(), n.conflictChecks(), n.portCheck(), n.peerChecks()), tell)
}

// conflictChecks tell of published ports that something else on this host has.
func (n *Network) conflictChecks() []doctor.Check {
	var out []doctor.Check
	for _, c := range n.ingress.Conflicts() {
		out = append(out, doctor.Check{Name: fmt.Sprintf("port %d/%s", c.GetPort(), c.GetProtocol().Name()), Run: func(context.Context) doctor.Finding {
			return doctor.Problem("published, and something else on this host has it: "+c.GetProcess(), "stop that here, or publish another port")
		}})
	}
	return out
}
