package sim

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	goruntime "runtime"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

const (
	// modeOperations of a client in seeds of all modes, on one service of each of the kinds.
	modeOperations = 24
	// fewest and most periods of schedules.
	shortestPeriod = 7 * time.Second
	longestPeriod  = 20 * time.Second
)

// kinds of services in seeds of all modes. A service of a client has the name of its kind, and keeps to it.
const (
	kindGlobal = "global"
	kindJob    = "job"
	kindEach   = "each" // a global job
	kindCron   = "cron"
	kindTicks  = "ticks" // a global job with a schedule
	kindWeb    = "web"   // replicated, with a priority, in a zone
	kindBulk   = "bulk"  // replicated, much of the lowest priority
	kindWide   = "wide"  // replicated, many small ones, with a disruption budget
)

var kinds = []string{kindGlobal, kindJob, kindJob, kindEach, kindCron, kindCron, kindTicks, kindWeb, kindWeb, kindBulk, kindWide, kindWide}

// shape is what a service of a kind is like beyond an operation's own fields.
type shape struct {
	kind              string
	total, concurrent uint64        // of a job
	lasts             time.Duration // a job's task
	fails             bool          // it ends with 1, and is tried twice
	every             time.Duration // of a schedule
	overlap           swarmpb.OverlapPolicy
	missed            swarmpb.MissedRunPolicy
	suspended         bool
	priority          int32
	zone              string // its tasks run there alone; empty = anywhere
	large             bool   // a task reserves half of a node's CPUs instead of a sixteenth
	spread            bool   // over the zones
	budget            uint64 // how many may be out at a time; 0 = it does not say
	share             uint32 // instead: of the replicas, in percent
	stays             bool   // none moves for balance
}

func (x *shape) String() string {
	parts := []string{x.kind}
	say := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	if x.total > 0 {
		say("total=%d concurrent=%d", x.total, x.concurrent)
	}
	if x.lasts > 0 {
		say("lasts=%s fails=%t", x.lasts, x.fails)
	}
	if x.every > 0 {
		say("every=%s overlap=%s missed=%s suspended=%t", x.every, x.overlap.Name(), x.missed.Name(), x.suspended)
	}
	if x.priority != 0 || x.zone != "" || x.large {
		say("priority=%d zone=%q large=%t", x.priority, x.zone, x.large)
	}
	if x.spread || x.budget > 0 || x.share > 0 || x.stays {
		say("spread=%t budget=%d share=%d%% stays=%t", x.spread, x.budget, x.share, x.stays)
	}
	return strings.Join(parts, " ")
}

// spec is what an operation writes that has a shape.
func (x *shape) spec(o operation) *swarmpb.ServiceSpec {
	s := spec(o.service, o.replicas)
	s.Labels = map[string]string{valueLabel: o.value}
	s.Task.Container.Image = o.image
	s.Priority = x.priority
	reserve := int64(goruntime.NumCPU()) * 1e9 / 16
	if x.large {
		reserve *= 8
	}
	s.Task.Resources = &swarmpb.ResourceRequirements{Reservations: &swarmpb.Resources{NanoCpus: reserve}}
	if x.zone != "" {
		s.Task.Placement = &swarmpb.Placement{Constraints: []string{"node.labels." + zoneLabel + " == " + x.zone}}
	} else if x.spread {
		s.Task.Placement = &swarmpb.Placement{Preferences: []*swarmpb.PlacementPreference{{Spread: &swarmpb.SpreadOver{Descriptor_: "node.labels." + zoneLabel}}}}
	}
	s.NoRebalance = x.stays
	switch {
	case x.budget > 0:
		s.MaxUnavailable = &swarmpb.DisruptionBudget{Most: &swarmpb.DisruptionBudget_Count{Count: x.budget}}
	case x.share > 0:
		s.MaxUnavailable = &swarmpb.DisruptionBudget{Most: &swarmpb.DisruptionBudget_Percent{Percent: x.share}}
	}
	switch x.kind {
	case kindGlobal:
		s.Mode = &swarmpb.ServiceMode{Mode: &swarmpb.ServiceMode_Global{Global: &swarmpb.GlobalMode{}}}
	case kindJob, kindCron:
		s.Mode = &swarmpb.ServiceMode{Mode: &swarmpb.ServiceMode_ReplicatedJob{
			ReplicatedJob: &swarmpb.ReplicatedJobMode{Total: x.total, MaxConcurrent: x.concurrent}}}
	case kindEach, kindTicks:
		s.Mode = &swarmpb.ServiceMode{Mode: &swarmpb.ServiceMode_GlobalJob{GlobalJob: &swarmpb.GlobalJobMode{}}}
	}
	if !s.IsJob() {
		s.Update = &swarmpb.UpdateConfig{Order: swarmpb.UpdateOrder_UPDATE_ORDER_STOP_FIRST}
		if o.first {
			s.Update.Order = swarmpb.UpdateOrder_UPDATE_ORDER_START_FIRST
		}
		if x.kind == kindWide {
			s.Update.Parallelism, s.Update.Monitor = proto.Uint64(3), durationpb.New(time.Second)
		}
		return s
	}
	s.Task.Container.Args = []string{"sleep", x.lasts.String()}
	if x.fails {
		s.Task.Container.Args = []string{"exit", "1", x.lasts.String()}
		s.Task.Restart = &swarmpb.RestartPolicy{MaxAttempts: 1, Delay: durationpb.New(time.Second)}
	}
	if x.every > 0 {
		s.Schedule = &swarmpb.Schedule{Cron: "@every " + x.every.String(), Overlap: x.overlap, Missed: x.missed, Suspended: x.suspended}
	}
	return s
}

// modeWork is what a client does in a seed of all modes.
func (s *schedule) modeWork(r *rand.Rand, client int) []operation {
	out := make([]operation, modeOperations)
	for i := range out {
		// The first of them early, so that there is something for the faults to meet.
		out[i] = operation{at: between(r, 0, min(storm, time.Duration(i+1)*4*time.Second)), via: r.IntN(s.managers)}
	}
	slices.SortFunc(out, func(a, b operation) int { return cmp.Compare(a.at, b.at) })
	there := map[string]*shape{}
	for i := range out {
		o := &out[i]
		kind := kinds[r.IntN(len(kinds))]
		o.service = fmt.Sprintf("%s%d", kind, client)
		switch old := there[o.service]; {
		case old == nil:
			o.kind, o.shape = opCreate, newShape(r, kind)
		case r.IntN(5) == 0:
			o.kind = opRemove
			delete(there, o.service)
			continue
		case r.IntN(6) == 0:
			o.kind = opLook
			continue
		default:
			o.kind, o.shape = opChange, old.changed(r)
		}
		there[o.service] = o.shape
		o.replicas, o.first = 1+r.Uint64N(3), (kind == kindGlobal || kind == kindWide) && r.IntN(2) == 0
		if kind == kindBulk {
			o.replicas += 2 + r.Uint64N(4)
		}
		if kind == kindWide {
			o.replicas += 4 + r.Uint64N(6)
		}
		o.value, o.image = fmt.Sprintf("c%d.%d", client, i), fmt.Sprintf("nginx:%d", 1+r.IntN(2))
	}
	return out
}

func newShape(r *rand.Rand, kind string) *shape {
	x := &shape{kind: kind}
	switch kind {
	case kindGlobal, kindWeb:
		x.priority, x.zone = int32(10*r.IntN(3)), []string{"", zoneA, zoneB}[r.IntN(3)]
		x.large = kind == kindWeb && r.IntN(3) > 0
		x.limits(r)
	case kindBulk:
		x.large = true
		x.limits(r)
	case kindWide:
		x.zone, x.spread = []string{"", zoneA, zoneB}[r.IntN(3)], r.IntN(3) == 0
		x.limits(r)
	default:
		x.lasts, x.fails = between(r, 2*time.Second, 8*time.Second), r.IntN(5) == 0
		x.priority = int32(10 * r.IntN(2))
	}
	if kind == kindJob || kind == kindCron {
		x.total, x.concurrent = 1+r.Uint64N(5), r.Uint64N(3)
	}
	if kind == kindCron || kind == kindTicks {
		x.every = between(r, shortestPeriod, longestPeriod).Round(time.Second)
		x.overlap = swarmpb.OverlapPolicy(1 + r.IntN(3))
		x.missed = swarmpb.MissedRunPolicy(1 + r.IntN(2))
		x.lasts = between(r, 2*time.Second, 15*time.Second)
		x.priority = 0 // else others would give way again and again, and never come to rest
	}
	return x
}

// limits draws what may be done to a replicated service's tasks.
func (x *shape) limits(r *rand.Rand) {
	if x.kind == kindGlobal {
		return
	}
	x.budget, x.share, x.stays = 0, 0, r.IntN(3) == 0
	switch r.IntN(3) {
	case 0:
		x.budget = 1 + r.Uint64N(3)
	case 1:
		x.share = uint32(10 * (1 + r.IntN(6)))
	}
}

// changed is a shape with other numbers of the same kind. What a run may do at a time, and the policies of a schedule, stay.
func (x *shape) changed(r *rand.Rand) *shape {
	next := *x
	switch x.kind {
	case kindGlobal, kindWeb:
		next.priority = int32(10 * r.IntN(3))
		if r.IntN(2) == 0 {
			next.zone = []string{"", zoneA, zoneB}[r.IntN(3)]
		}
		next.limits(r)
	case kindWide:
		if r.IntN(2) == 0 {
			next.zone = []string{"", zoneA, zoneB}[r.IntN(3)]
		}
		next.limits(r)
	case kindJob:
		next.total = 1 + r.Uint64N(6)
	case kindCron, kindTicks:
		if next.suspended = r.IntN(5) == 0; r.IntN(3) == 0 {
			next.every = between(r, shortestPeriod, longestPeriod).Round(time.Second)
		}
	}
	return &next
}
