package control

import (
	"google.golang.org/protobuf/proto"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// AlarmLowSpace is the kind of the alarm on a manager's node whose disk is nearly full; the leader raises it.
const AlarmLowSpace = "low-space"

// checkSpace refuses what would make the state larger while the leader has no room to write it down. What makes it
// smaller, and what an operator needs in order to help, is never refused.
func (s *Server) checkSpace(view *store.View, what string) error {
	leader := s.cfg.Leader()
	alarm := view.Alarm(AlarmLowSpace, leader)
	if leader == "" || alarm == nil {
		return nil
	}
	return wire.Errorf(wire.CodeResourceExhausted, "%s: nothing is made larger while the leader, %s, is short of space: %s; then try again; "+
		"services can be scaled down and removed meanwhile", what, view.NodeName(leader), alarm.GetMessage())
}

// larger tells whether an update adds to what the cluster must keep: a template, replicas, or a longer spec.
func larger(old, next *swarmpb.ServiceSpec) bool {
	return swarmpb.TemplateChanged(old, next) || proto.Size(next) > proto.Size(old) ||
		next.GetMode().GetReplicated().GetReplicas() > old.GetMode().GetReplicated().GetReplicas() ||
		next.GetMode().GetReplicatedJob().GetTotal() > old.GetMode().GetReplicatedJob().GetTotal()
}
