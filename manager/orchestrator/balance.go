package orchestrator

import (
	"cmp"
	"slices"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/scheduler"

	"github.com/swarmd/swarmd/manager/claims"
	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/store"
)

const (
	// SettleTime is how long a node must have been as it is before tasks are moved there for balance.
	SettleTime = claims.SettleTime
	// MaxBalancing is how many moves for balance are under way in the cluster at a time; there is one a service.
	MaxBalancing = 5
	// BalancePause is the pause between two moves for balance of a service.
	BalancePause = 5 * time.Second
	// BalanceRetry is how long after a look at which a service was busy there is another one.
	BalanceRetry = 30 * time.Second
	// BalanceFailed is how long the slot of a task is left alone that has failed of late.
	BalanceFailed = 10 * time.Minute
	// AskedFor is how long a user's request for balance is tried to be met.
	AskedFor = claims.AskedFor
	// LoadPatience is how long a skew of nothing but the nodes' load must have been there before tasks are moved for it.
	LoadPatience = time.Minute
	// LoadSkew is by what part of its tasks, in percent, a node must have more than another one for that.
	LoadSkew = 10
)

// balancer is one look for tasks that would be better off elsewhere.
type balancer struct {
	view *store.View
	id   reconcile.ID
	now  time.Time
	plan reconcile.Plan
	read *claims.Claims
	sweep
	part uint64
	// auto: tasks are moved without being asked to. asked: a user has asked, and that is not too long ago.
	auto, asked bool
	// load: this look is for skew of nothing but the nodes' load, too, which was seen a while ago.
	load bool
	// fresh are nodes that have not settled.
	fresh map[string]bool
	// busy: a service was left alone for now.
	busy bool
	// lost are tasks that nothing is expected of any more, by service, if they were asked for.
	lost map[string]lostTasks
	// even are the services that the user's request is done with if nothing moves.
	even []*swarmpb.Service
}

// balance begins moves of tasks that would be better off elsewhere, of the services of a part.
func balance(view *store.View, id reconcile.ID, now time.Time) reconcile.Plan {
	b := &balancer{view: view, id: id, now: now, sweep: sweepOf(view), load: id.Object == loadObject}
	cluster := view.Cluster()
	b.auto = !cluster.GetSpec().GetNoRebalance()
	b.asked = cluster.GetRebalanceAt() != 0 && now.Sub(time.Unix(0, cluster.GetRebalanceAt())) < AskedFor
	if view.NodeCount() < 2 || !b.auto && !b.asked {
		return b.plan
	}
	part, ok := b.sweep.part(id)
	if !ok {
		b.plan.Also = b.ids(id.Object)
		if b.parts == 1 {
			b.plan.Also = []reconcile.Look{{ID: reconcile.ID{Object: id.Object}}}
		}
		return b.plan
	}
	b.part = part
	if at, wait := b.turn(part, now); wait {
		b.wake(at)
		return b.plan
	}
	fresh, settled := claims.Unsettled(view, now)
	if b.fresh = fresh; len(fresh) > 0 {
		b.wake(settled)
	}
	if view.AskingCount() > 0 {
		return b.plan // what gives way comes first: that keeps room which the claims do not show
	}
	b.begin()
	return b.plan
}

func (b *balancer) wake(at time.Time) {
	if b.plan.At.IsZero() || at.Before(b.plan.At) {
		b.plan.At = at
	}
}

// begin looks at one service after the other, those that have been moved least lately first.
func (b *balancer) begin() {
	var services []*swarmpb.Service
	underWay := 0
	for service := range b.view.Services() {
		if balancing(b.view, service.Id) {
			underWay++
		}
		switch {
		case !b.has(b.part, service.Id):
		case leftAlone(b.view, service) == "":
			services = append(services, service)
		default:
			b.even = append(b.even, service)
		}
	}
	slices.SortStableFunc(services, func(x, y *swarmpb.Service) int {
		return cmp.Or(cmp.Compare(b.movedAt(x), b.movedAt(y)), cmp.Compare(x.Id, y.Id))
	})
	begun := 0
	for _, service := range services {
		if underWay+begun >= MaxBalancing {
			break // there is another look as each is done
		}
		if b.move(service) {
			begun++
		}
	}
	full := underWay+begun >= MaxBalancing
	if b.load && (begun > 0 || full) {
		b.wake(b.now.Add(BalancePause))
	}
	if b.busy && !full {
		b.wake(b.now.Add(BalanceRetry))
	}
	if underWay+begun == 0 {
		b.done()
	}
}

func (b *balancer) movedAt(service *swarmpb.Service) int64 {
	return b.view.ServiceProgress(service.Id).GetMovedAt()
}

// wanted tells whether a user's request holds for a service.
func (b *balancer) wanted(service *swarmpb.Service) bool {
	return b.asked && claims.BalanceAsked(b.view, service, b.now)
}

// move begins the move of one task of a service, if one would be better off elsewhere.
func (b *balancer) move(service *swarmpb.Service) bool {
	asked := b.wanted(service)
	if !asked && !b.auto {
		return false
	}
	if b.restlessWhy(service) != "" {
		b.busy = true
		return false
	}
	s, ok := b.balanceOf(service)
	if ok && !asked {
		s.Avoid = append(s.Avoid, b.fresh)
	}
	if !ok {
		b.even = append(b.even, service)
		return false
	}
	found, task, cut := s.best()
	switch at := time.Unix(0, b.movedAt(service)).Add(BalancePause); {
	case cut:
		b.busy = true
		return false
	case task == nil, !asked && found.Load && !b.worthwhile(found):
		b.even = append(b.even, service)
		return false
	case b.now.Before(at) && at.Sub(b.now) <= BalancePause:
		b.busy = true
		b.wake(at)
		return false
	}
	p := newPlanner(b.view, service, b.now)
	if (&moving{planner: p}).displaced() {
		b.busy = true // what has to move goes first
		return false
	}
	s.made(found)
	p.moved(task.Slot)
	p.replace(readSlot(b.view, service, task.Slot, b.now), &swarmpb.Task{TemplateVersion: task.TemplateVersion, Beside: true, Move: moveBalance})
	b.plan.Writes, b.plan.Guards = append(b.plan.Writes, p.plan.Writes...), append(b.plan.Guards, p.plan.Guards...)
	return true
}

// worthwhile judges a move for nothing but the nodes' load, that nobody has asked for: the nodes must be far enough apart, and
// have been so for a while. One that is seen for the first time is looked at again after that.
func (b *balancer) worthwhile(move scheduler.Move) bool {
	if 100*(move.FromTasks-move.ToTasks) < LoadSkew*move.FromTasks {
		return false
	}
	if !b.load && len(b.plan.Also) == 0 {
		b.plan.Also = []reconcile.Look{{ID: reconcile.ID{Object: loadObject, Slot: b.id.Slot}, At: b.now.Add(LoadPatience)}}
	}
	return b.load
}

// done notes that there is nothing left to move for what a user has asked.
func (b *balancer) done() {
	if !b.asked {
		return
	}
	at := b.view.Cluster().GetRebalanceAt()
	for _, service := range b.even {
		if !b.wanted(service) {
			continue
		}
		if len(b.plan.Writes) == reconcile.MaxWrites/2 {
			b.plan.More = true
			return
		}
		b.plan.Guards = append(b.plan.Guards, &swarmpb.Guard{Key: swarmpb.ServiceKey(service.Id), Version: service.GetMeta().GetVersion()})
		b.plan.Writes = append(b.plan.Writes, &swarmpb.Write{Op: &swarmpb.Write_NoteMoves{NoteMoves: &swarmpb.NoteMoves{ServiceId: service.Id, BalancedAt: at}}})
	}
}
