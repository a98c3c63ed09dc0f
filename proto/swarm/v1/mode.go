package swarmpb

import (
	"fmt"
	"time"
)

// IsJob tells whether the service's tasks are to run to their end.
func (x *ServiceSpec) IsJob() bool {
	mode := x.GetMode()
	return mode.GetReplicatedJob() != nil || mode.GetGlobalJob() != nil
}

// IsGlobal tells whether each node that suits has a task: a global service or a global job.
func (x *ServiceSpec) IsGlobal() bool {
	mode := x.GetMode()
	return mode.GetGlobal() != nil || mode.GetGlobalJob() != nil
}

// Name is the mode in the user's words: replicated, global, replicated-job or global-job. A spec without one is replicated.
func (x *ServiceMode) Name() string {
	switch x.GetMode().(type) {
	case *ServiceMode_Global:
		return "global"
	case *ServiceMode_ReplicatedJob:
		return "replicated-job"
	case *ServiceMode_GlobalJob:
		return "global-job"
	default:
		return "replicated"
	}
}

// ParseServiceMode makes a mode of its name: one replica, or a job of one slot.
func ParseServiceMode(s string) (*ServiceMode, error) {
	switch s {
	case "replicated":
		return &ServiceMode{Mode: &ServiceMode_Replicated{Replicated: &ReplicatedMode{Replicas: 1}}}, nil
	case "global":
		return &ServiceMode{Mode: &ServiceMode_Global{Global: &GlobalMode{}}}, nil
	case "replicated-job":
		return &ServiceMode{Mode: &ServiceMode_ReplicatedJob{ReplicatedJob: &ReplicatedJobMode{Total: 1}}}, nil
	case "global-job":
		return &ServiceMode{Mode: &ServiceMode_GlobalJob{GlobalJob: &GlobalJobMode{}}}, nil
	}
	return nil, fmt.Errorf("mode %q: not known; use replicated, global, replicated-job, global-job", s)
}

// Wanted tells, of a desired state, whether the task is to run or to be ready to: at most COMPLETE, which is what a
// job's task is to come to by itself.
func (x TaskState) Wanted() bool { return x <= TaskState_TASK_STATE_COMPLETE }

// Starts tells, of a desired state, whether the task is to be started.
func (x TaskState) Starts() bool {
	return x == TaskState_TASK_STATE_RUNNING || x == TaskState_TASK_STATE_COMPLETE
}

// mode checks the mode and what depends on it.
func (p *problems) mode(x *ServiceSpec) {
	switch mode := x.GetMode().GetMode().(type) {
	case *ServiceMode_Replicated:
		if n := mode.Replicated.GetReplicas(); n > MaxReplicas {
			p.addf("replicas", fmt.Sprintf("use at most %d, or several services", MaxReplicas), "%d are too many", n)
		}
	case *ServiceMode_Global, *ServiceMode_GlobalJob:
		if x.GetTask().GetPlacement().GetMaxReplicasPerNode() > 0 {
			p.add("replicas max per node", "a "+x.Mode.Name()+" service has one task on each node that suits", "leave it out")
		}
		if len(x.GetTask().GetPlacement().GetPreferences()) > 0 {
			p.add("placement preferences", "a "+x.Mode.Name()+" service has one task on each node that suits: nothing is spread", "leave them out, or use constraints")
		}
	case *ServiceMode_ReplicatedJob:
		if n := mode.ReplicatedJob.GetTotal(); n < 1 || n > MaxReplicas {
			p.addf("total", fmt.Sprintf("use 1 to %d", MaxReplicas), "%d is not a number of tasks that a job can have", n)
		}
	default:
		p.add("mode", "it is not set", "use mode replicated with a number of replicas")
	}
	if x.IsJob() {
		p.job(x)
	}
	p.schedule(x)
}

// job refuses what makes no sense for tasks that come to an end.
func (p *problems) job(x *ServiceSpec) {
	if x.GetUpdate() != nil || x.GetRollback() != nil {
		p.add("update", "a job has no rollout: an update of its template begins a new run", "leave the settings of update and rollback out")
	}
	for _, port := range x.GetEndpoint().GetPorts() {
		if port.GetMode() != PublishMode_PUBLISH_MODE_HOST {
			p.addf(fmt.Sprintf("publish %d", port.GetPublishedPort()), "use mode=host, or a service of mode replicated", "nobody balances over a job's tasks, which come to an end")
		}
	}
}

func (p *problems) schedule(x *ServiceSpec) {
	s := x.GetSchedule()
	if s == nil {
		return
	}
	field := fmt.Sprintf("schedule %q", s.GetCron())
	if !x.IsJob() {
		p.add(field, "only a job can have one", "use mode replicated-job or global-job")
	}
	known(p, "overlap", s.GetOverlap(), OverlapPolicy_name)
	known(p, "missed", s.GetMissed(), MissedRunPolicy_name)
	if s.GetHistory() > MaxScheduleHistory {
		p.addf("schedule history", fmt.Sprintf("use at most %d", MaxScheduleHistory), "%d runs are too many", s.GetHistory())
	}
	times, err := s.Timetable()
	switch {
	case err != nil:
		p.list = append(p.list, err)
	case times.Next(time.Unix(0, 0)).IsZero():
		p.add(field, "it has no time at all", "name days that exist")
	}
}

// Name is the strategy in the user's words: spread or binpack. Unspecified means spread.
func (x PlacementStrategy) Name() string {
	if x == PlacementStrategy_PLACEMENT_STRATEGY_UNSPECIFIED {
		return "spread"
	}
	return nameOf(PlacementStrategy_name, int32(x), "PLACEMENT_STRATEGY_")
}

// ParsePlacementStrategy reads spread or binpack.
func ParsePlacementStrategy(s string) (PlacementStrategy, error) {
	return parseName[PlacementStrategy]("placement strategy", s, PlacementStrategy_value, "PLACEMENT_STRATEGY_", PlacementStrategy_name)
}

// Name is the policy in the user's words: allow, forbid or replace. Unspecified means forbid.
func (x OverlapPolicy) Name() string {
	if x == OverlapPolicy_OVERLAP_POLICY_UNSPECIFIED {
		return "forbid"
	}
	return nameOf(OverlapPolicy_name, int32(x), "OVERLAP_POLICY_")
}

// ParseOverlapPolicy reads allow, forbid or replace.
func ParseOverlapPolicy(s string) (OverlapPolicy, error) {
	return parseName[OverlapPolicy]("overlap policy", s, OverlapPolicy_value, "OVERLAP_POLICY_", OverlapPolicy_name)
}

// Name is the policy in the user's words: once or skip. Unspecified means once.
func (x MissedRunPolicy) Name() string {
	if x == MissedRunPolicy_MISSED_RUN_POLICY_UNSPECIFIED {
		return "once"
	}
	return nameOf(MissedRunPolicy_name, int32(x), "MISSED_RUN_POLICY_")
}

// ParseMissedRunPolicy reads once or skip.
func ParseMissedRunPolicy(s string) (MissedRunPolicy, error) {
	return parseName[MissedRunPolicy]("missed-run policy", s, MissedRunPolicy_value, "MISSED_RUN_POLICY_", MissedRunPolicy_name)
}
