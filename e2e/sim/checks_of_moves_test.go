package sim

import (
	"context"
	"testing"
	"time"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

const (
	moveDrain     = swarmpb.MoveReason_MOVE_REASON_DRAIN
	stateShutdown = swarmpb.TaskState_TASK_STATE_SHUTDOWN
)

// teller tells the checks what comes of commits, one after the other.
type teller struct {
	t   *testing.T
	st  *store.Store
	at  uint64
	now time.Duration
	c   *checks
}

func newTeller(t *testing.T) *teller {
	x := &teller{t: t, st: store.New()}
	x.c = newChecks(func() time.Duration { return x.now })
	return x
}

// commit writes rows at a time, and tells the checks.
func (x *teller) commit(at int64, rows ...*swarmpb.Row) {
	x.t.Helper()
	if _, err := store.NewLocalProposer(x.st).Propose(context.Background(), &swarmpb.Proposal{Writes: put(rows...), Now: at}); err != nil {
		x.t.Fatal(err)
	}
	watch, err := x.st.Watch(x.at, 0)
	if err != nil {
		x.t.Fatal(err)
	}
	defer watch.Close()
	batch, err := watch.Next(context.Background())
	if err != nil {
		x.t.Fatal(err)
	}
	x.c.batch("m1", x.at, batch)
	x.at = batch.View.Index()
}

// wide is a service of four tasks that run on node n1, of which one may be out, in a cluster of three nodes.
func (x *teller) wide(change func(*swarmpb.ServiceSpec)) {
	x.t.Helper()
	s := spec("web", 4)
	s.MaxUnavailable = &swarmpb.DisruptionBudget{Most: &swarmpb.DisruptionBudget_Count{Count: 1}}
	if change != nil {
		change(s)
	}
	rows := []*swarmpb.Row{
		{Row: &swarmpb.Row_Cluster{Cluster: &swarmpb.Cluster{Id: clusterID, Spec: &swarmpb.ClusterSpec{}}}},
		{Row: &swarmpb.Row_Template{Template: &swarmpb.Template{ServiceId: "web", Version: 1, Spec: s.Task}}},
		{Row: &swarmpb.Row_Service{Service: &swarmpb.Service{Id: "web", Spec: s, TemplateVersion: 1}}},
	}
	for _, node := range []string{"n1", "n2", "n3"} {
		rows = append(rows, nodeRows(node, 9)...)
	}
	for i, id := range []string{"t1", "t2", "t3", "t4"} {
		rows = append(rows, taskRows("web", id, uint64(1+i), "n1", "")...)
	}
	x.commit(1, rows...)
	x.now += time.Minute
}

// mover is a task that follows another one of its slot elsewhere.
func mover(slot uint64, move swarmpb.MoveReason) *swarmpb.Row {
	number := string(rune('0' + slot))
	return &swarmpb.Row{Row: &swarmpb.Row_Task{Task: &swarmpb.Task{Id: "u" + number, ServiceId: "web", Slot: slot, Attempt: 10 + slot, TemplateVersion: 1,
		DesiredState: stateReady, Replaces: "t" + number, Beside: true, Move: move}}}
}

func placed(task, node string) *swarmpb.Row {
	return &swarmpb.Row{Row: &swarmpb.Row_TaskPlacement{TaskPlacement: &swarmpb.TaskPlacement{TaskId: task, NodeId: node}}}
}

// done are the rows of a move that is over.
func done(slot uint64, move swarmpb.MoveReason) []*swarmpb.Row {
	number := string(rune('0' + slot))
	next := mover(slot, move)
	next.GetTask().DesiredState = stateRunning
	return []*swarmpb.Row{next,
		{Row: &swarmpb.Row_Task{Task: &swarmpb.Task{Id: "t" + number, ServiceId: "web", Slot: slot, Attempt: slot, TemplateVersion: 1, DesiredState: stateShutdown}}},
		{Row: &swarmpb.Row_TaskPlacement{TaskPlacement: &swarmpb.TaskPlacement{TaskId: "u" + number, NodeId: "n2"}}},
		{Row: &swarmpb.Row_TaskStatus{TaskStatus: &swarmpb.TaskStatus{TaskId: "u" + number, State: stateRunning}}}}
}

func TestChecks_Moves(t *testing.T) {
	for name, test := range map[string]struct {
		spec  func(*swarmpb.ServiceSpec)
		moves func(x *teller)
		want  string
	}{
		"one after the other": {nil, func(x *teller) {
			x.commit(2, mover(1, moveDrain))
			x.commit(3, done(1, moveDrain)...)
			x.commit(4, mover(2, moveDrain))
		}, ""},
		"two at once": {nil, func(x *teller) { x.commit(2, mover(1, moveDrain), mover(2, moveDrain)) }, "may have 1 tasks out at a time"},
		"a second one before the first is done": {nil, func(x *teller) {
			x.commit(2, mover(1, moveDrain))
			x.commit(3, mover(2, moveDrain))
		}, "may have 1 tasks out at a time"},
		"half of them may": {func(s *swarmpb.ServiceSpec) {
			s.MaxUnavailable = &swarmpb.DisruptionBudget{Most: &swarmpb.DisruptionBudget_Percent{Percent: 50}}
		}, func(x *teller) { x.commit(2, mover(1, moveDrain), mover(2, moveDrain)) }, ""},
		"another one is down": {nil, func(x *teller) {
			x.commit(2, &swarmpb.Row{Row: &swarmpb.Row_TaskStatus{TaskStatus: &swarmpb.TaskStatus{TaskId: "t4", State: swarmpb.TaskState_TASK_STATE_FAILED}}})
			x.now += time.Minute
			x.commit(3, mover(1, moveDrain))
		}, "4:is down since"},
		"for balance": {nil, func(x *teller) { x.commit(2, mover(1, moveBalance)) }, ""},
		"for balance, and it opts out": {func(s *swarmpb.ServiceSpec) { s.NoRebalance = true },
			func(x *teller) { x.commit(2, mover(1, moveBalance)) }, "is to be left alone"},
		"two for balance": {func(s *swarmpb.ServiceSpec) {
			s.MaxUnavailable = &swarmpb.DisruptionBudget{Most: &swarmpb.DisruptionBudget_Count{Count: 4}}
		}, func(x *teller) {
			x.commit(2, mover(1, moveBalance))
			x.commit(3, mover(2, moveBalance))
		}, "while slot 1 moves"},
		"for balance, in a cluster that does not by itself": {nil, func(x *teller) {
			x.commit(2, &swarmpb.Row{Row: &swarmpb.Row_Cluster{Cluster: &swarmpb.Cluster{Id: clusterID, Spec: &swarmpb.ClusterSpec{NoRebalance: true}}}})
			x.now += time.Minute
			x.commit(3, mover(1, moveBalance))
		}, "which nobody has asked for"},
		"for balance, to a node that has just come": {nil, func(x *teller) {
			x.commit(time.Now().UnixNano(), nodeRows("n4", 9)...)
			x.commit(3, mover(1, moveBalance))
			x.commit(4, placed("u1", "n4"))
		}, "which has not been there for"},
		"for balance, to a node that has been there": {nil, func(x *teller) {
			x.commit(3, mover(1, moveBalance))
			x.commit(4, placed("u1", "n3"))
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			x := newTeller(t)
			x.wide(test.spec)
			test.moves(x)
			told(t, x.c, test.want)
		})
	}
}
