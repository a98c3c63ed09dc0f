package manager

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/swarmd/swarmd/manager/control"
	"github.com/swarmd/swarmd/manager/replica"
	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// Kinds of alarms about managers; their object is the manager's node ID.
const (
	// AlarmDiskHangs: the manager gave up leadership several times within a minute because its disk hung.
	AlarmDiskHangs = "disk-hangs"
	// AlarmLowSpace: the disk of the manager's data is nearly full. While it is the leader's, control refuses what
	// makes the state larger.
	AlarmLowSpace = control.AlarmLowSpace
)

const (
	// healthEvery is how often the leader looks at what the managers say of themselves.
	healthEvery = time.Second
	// alarmStepDowns within a minute raise AlarmDiskHangs; it ends when there is none left in the minute.
	alarmStepDowns = 3
	// handOverPause is between attempts to give leadership to a manager that has space.
	handOverPause = 10 * time.Second
	healthTimeout = 5 * time.Second
)

// healthWatch raises and ends the alarms about managers, and has a leader without space hand leadership over.
type healthWatch struct {
	store  *store.Store
	leader store.Leader
	raft   raftGroup
	self   string
	// health is what a manager says of itself; false while it says nothing.
	health func(managerID string) (*swarmpb.ManagerHealth, bool)
	log    *slog.Logger

	handedOver time.Time // the last attempt
}

// run works until ctx ends or the term is over.
func (h *healthWatch) run(ctx context.Context) error {
	ticker := time.NewTicker(healthEvery)
	defer ticker.Stop()
	for {
		err := h.look(ctx, time.Now())
		switch {
		case errors.Is(err, store.ErrStaleTerm):
			return err
		case err != nil && ctx.Err() == nil:
			h.log.Warn("could not write an alarm about a manager; trying again", "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

func (h *healthWatch) look(ctx context.Context, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	view, members := h.store.View(), h.raft.Members()
	if writes := h.alarms(view, members); len(writes) > 0 {
		if _, err := h.leader.Propose(ctx, &swarmpb.Proposal{Term: h.leader.Term(), Now: now.UnixNano(), Writes: writes}); err != nil {
			return err
		}
	}
	if own, ok := h.health(h.self); !ok || !own.GetLowSpace() || now.Sub(h.handedOver) < handOverPause && !h.handedOver.IsZero() {
		return nil
	}
	heir := h.roomier(view, members)
	if heir == "" {
		return nil
	}
	h.handedOver = now
	h.log.Warn("the disk of this manager's data is nearly full; leadership is handed over", "to", heir)
	if err := h.raft.TransferLeadership(ctx, heir); err != nil && ctx.Err() == nil {
		h.log.Warn("leadership could not be handed over; it is tried again", "to", heir, "error", err)
	}
	return nil
}

// roomier is a manager that could lead and has space, empty for none.
func (h *healthWatch) roomier(view *store.View, members []replica.Member) string {
	for _, m := range members {
		health, known := h.health(m.ID)
		desired := view.Node(m.ID).GetSpec().GetDesiredRole() == swarmpb.NodeRole_NODE_ROLE_MANAGER
		if m.ID != h.self && m.Voter && desired && known && !health.GetLowSpace() && h.raft.CaughtUp(m.ID) {
			return m.ID
		}
	}
	return ""
}

// alarms are the alarms to raise and to end. What a manager does not speak about stays as it is.
func (h *healthWatch) alarms(view *store.View, members []replica.Member) (writes []*swarmpb.Write) {
	member := make(map[string]bool)
	for _, m := range members {
		member[m.ID] = true
		health, known := h.health(m.ID)
		if !known {
			continue
		}
		hangs, low := view.Alarm(AlarmDiskHangs, m.ID) != nil, view.Alarm(AlarmLowSpace, m.ID) != nil
		switch n := health.GetStepDowns(); {
		case n >= alarmStepDowns && !hangs:
			writes = append(writes, raise(AlarmDiskHangs, m.ID, fmt.Sprintf("the disk of manager %s hangs: it gave up leadership %d times within a minute, "+
				"because writes of the Raft log took too long; check that disk and what else uses it, or demote the manager", view.NodeName(m.ID), n)))
		case n == 0 && hangs:
			writes = append(writes, end(AlarmDiskHangs, m.ID))
		}
		switch {
		case health.GetLowSpace() && !low:
			writes = append(writes, raise(AlarmLowSpace, m.ID, fmt.Sprintf("the disk of manager %s is nearly full: %d MiB were free for its data; "+
				"free space on it, or make another host a manager in its place", view.NodeName(m.ID), health.GetFreeBytes()>>20)))
		case !health.GetLowSpace() && low:
			writes = append(writes, end(AlarmLowSpace, m.ID))
		}
	}
	for alarm := range view.Alarms() {
		about := alarm.GetKind() == AlarmDiskHangs || alarm.GetKind() == AlarmLowSpace
		if about && !member[alarm.GetObject()] {
			writes = append(writes, end(alarm.GetKind(), alarm.GetObject()))
		}
	}
	return writes[:min(len(writes), store.MaxWrites)]
}

func raise(kind, object, message string) *swarmpb.Write {
	return &swarmpb.Write{Op: &swarmpb.Write_RaiseAlarm{RaiseAlarm: &swarmpb.RaiseAlarm{Kind: kind, Object: object, Message: message}}}
}

func end(kind, object string) *swarmpb.Write {
	return &swarmpb.Write{Op: &swarmpb.Write_Delete{Delete: swarmpb.AlarmKey(kind, object)}}
}
