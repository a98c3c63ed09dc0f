package plan

import (
	"cmp"
	"slices"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/claims"
	"github.com/swarmd/swarmd/manager/orchestrator"
	"github.com/swarmd/swarmd/manager/placement"
	"github.com/swarmd/swarmd/manager/store"
	"github.com/swarmd/swarmd/scheduler"
)

// filterNames are the filters as users know them.
var filterNames = map[scheduler.Filter]string{
	scheduler.NotReady:        "availability",
	scheduler.Constrained:     "constraint",
	scheduler.WrongPlatform:   "platform",
	scheduler.CannotEncrypt:   "encryption",
	scheduler.Insufficient:    "resources",
	scheduler.NoGeneric:       "generic-resource",
	scheduler.PortInUse:       "host-port",
	scheduler.TooManyReplicas: "max-replicas-per-node",
}

// Explain judges every node for one more task of the service's present template, as placement does, by node ID.
func (p *Planner) Explain(view *store.View, serviceID string) ([]*swarmpb.NodeVerdict, error) {
	explanation, err := placement.Explain(view, serviceID, p.clock())
	if err != nil {
		return nil, err
	}
	out := make([]*swarmpb.NodeVerdict, 0, len(explanation.Nodes))
	for _, v := range explanation.Nodes {
		verdict := &swarmpb.NodeVerdict{
			NodeId: v.Node, Hostname: view.NodeName(v.Node), Accepted: v.Filter == scheduler.Accepted, Detail: v.Detail,
			ServiceTasks: uint32(max(v.ServiceTasks, 0)), Tasks: uint32(max(v.Tasks, 0)),
		}
		if !verdict.Accepted {
			verdict.Filter = cmp.Or(filterNames[v.Filter], "other")
		}
		if v.Filter == scheduler.NotReady {
			verdict.Detail = cmp.Or(unavailable(view, v.Node), v.Detail)
		}
		out = append(out, verdict)
	}
	return out, nil
}

// unavailable is why a node takes no new tasks, of several reasons the user's own first; empty when it would.
func unavailable(view *store.View, nodeID string) string {
	switch view.Node(nodeID).GetSpec().GetAvailability() {
	case swarmpb.NodeAvailability_NODE_AVAILABILITY_DRAIN:
		return "it is drained"
	case swarmpb.NodeAvailability_NODE_AVAILABILITY_PAUSE:
		return "it is paused: what runs there stays, nothing new comes"
	}
	status := view.NodeStatus(nodeID)
	because := func(text, message string) string {
		if message == "" {
			return text
		}
		return text + ": " + message
	}
	switch state := status.GetState(); state {
	case swarmpb.NodeState_NODE_STATE_READY:
		if why := status.GetDescription().GetTakesNoTasks(); why != "" {
			return because("it takes no new tasks", why)
		}
		return ""
	case swarmpb.NodeState_NODE_STATE_UNSPECIFIED, swarmpb.NodeState_NODE_STATE_UNKNOWN:
		return "it has joined and not connected yet"
	default:
		return because("it is "+state.Name(), status.GetMessage())
	}
}

// Account is what the cluster takes a node to have, divided into what tasks hold and what is left.
func (p *Planner) Account(view *store.View, node *swarmpb.Node) (reserved, free *swarmpb.Resources, notAccepted []string) {
	status := view.NodeStatus(node.GetId())
	empty, now := scheduler.NewNode(node, status), claims.NodeOf(view, node)
	all, free := empty.Left(), now.Left()
	reserved = &swarmpb.Resources{NanoCpus: all.GetNanoCpus() - free.GetNanoCpus(), MemoryBytes: all.GetMemoryBytes() - free.GetMemoryBytes()}
	for i, has := range all.GetGeneric() { // the same kinds in the same order
		left := free.GetGeneric()[i]
		held := &swarmpb.GenericResource{Kind: has.GetKind(), Count: has.GetCount() - left.GetCount()}
		for _, name := range has.GetInstances() {
			if !slices.Contains(left.GetInstances(), name) {
				held.Instances = append(held.Instances, name)
			}
		}
		if held.GetCount() != 0 || len(held.GetInstances()) > 0 {
			reserved.Generic = append(reserved.Generic, held)
		}
	}
	return reserved, free, scheduler.NotAccepted(node, status)
}

// balanceLooks is how many nodes are looked at for one answer about balance: each move costs a look at all of them, of 5 to 15 us
// a node.
const balanceLooks = 500_000

// Rebalance is the moves that the leader would make for balance, one after another, at most so many and fewer in a large cluster,
// whether there are more, and why services are left alone, a line each.
func (p *Planner) Rebalance(view *store.View, most int) (moves []*swarmpb.ProposedMove, more bool, alone []string) {
	most = min(most, balanceLooks/max(1, view.NodeCount())+1)
	moves, alone = orchestrator.Rebalance(view, p.clock(), most+1)
	if more = len(moves) > most; more {
		moves = moves[:most]
	}
	return moves, more, alone
}

// Held says in a line why tasks of a service that are to leave their nodes wait; empty when none has to.
func (p *Planner) Held(view *store.View, serviceID string) string {
	return orchestrator.Held(view, serviceID, p.clock())
}
