package sim

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/swarmd/swarmd/e2e/history"
	"github.com/swarmd/swarmd/manager/allocator"
	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
	"github.com/swarmd/swarmd/worker/runtime"
	"github.com/swarmd/swarmd/worker/runtime/runtimetest"
)

// Each check is shown what it is there to find.

const (
	stateRunning = swarmpb.TaskState_TASK_STATE_RUNNING
	stateReady   = swarmpb.TaskState_TASK_STATE_READY
)

func put(rows ...*swarmpb.Row) (writes []*swarmpb.Write) {
	for _, row := range rows {
		writes = append(writes, &swarmpb.Write{Op: &swarmpb.Write_Put{Put: row}})
	}
	return writes
}

func nodeRows(id string, cpus int64) []*swarmpb.Row {
	return []*swarmpb.Row{
		{Row: &swarmpb.Row_Node{Node: &swarmpb.Node{Id: id}}},
		{Row: &swarmpb.Row_NodeStatus{NodeStatus: &swarmpb.NodeStatus{NodeId: id, Description: &swarmpb.NodeDescription{
			Resources: &swarmpb.Resources{NanoCpus: cpus * 1e9, MemoryBytes: 1 << 30}}}}},
	}
}

// serviceRows are a service whose tasks reserve one CPU and bind port 80 of their host.
func serviceRows(id string) []*swarmpb.Row {
	task := &swarmpb.TaskSpec{Resources: &swarmpb.ResourceRequirements{Reservations: &swarmpb.Resources{NanoCpus: 1e9}}}
	return []*swarmpb.Row{
		{Row: &swarmpb.Row_Template{Template: &swarmpb.Template{ServiceId: id, Version: 1, Spec: task,
			HostPorts: []*swarmpb.PortConfig{{Protocol: swarmpb.Protocol_PROTOCOL_TCP, PublishedPort: 80}}}}},
		{Row: &swarmpb.Row_Service{Service: &swarmpb.Service{Id: id, Spec: spec(id, 1), TemplateVersion: 1}}},
	}
}

// taskRows are a task that runs on a node under an address.
func taskRows(service, id string, slot uint64, node, address string) []*swarmpb.Row {
	return []*swarmpb.Row{
		{Row: &swarmpb.Row_Task{Task: &swarmpb.Task{Id: id, ServiceId: service, Slot: slot, Attempt: slot, TemplateVersion: 1, DesiredState: stateRunning}}},
		{Row: &swarmpb.Row_TaskPlacement{TaskPlacement: &swarmpb.TaskPlacement{TaskId: id, NodeId: node}}},
		{Row: &swarmpb.Row_TaskStatus{TaskStatus: &swarmpb.TaskStatus{TaskId: id, State: stateRunning, Address: address}}},
	}
}

func block(address, owner string) []*swarmpb.Row {
	return []*swarmpb.Row{{Row: &swarmpb.Row_Allocation{Allocation: &swarmpb.Allocation{Pool: allocator.UplinkPool, Address: address, Owner: owner}}}}
}

func told(t *testing.T, c *checks, want string) {
	t.Helper()
	found := c.failed()
	if want == "" && len(found) == 0 {
		return
	}
	if want == "" || !strings.Contains(strings.Join(found, "\n"), want) {
		t.Errorf("the checks tell %q, want %q", found, want)
	}
}

func idle() *checks { return newChecks(func() time.Duration { return 0 }) }

// given are what the allocator gives a service; inNetwork is a task's address.
func given(service string, port uint32, vip string) []*swarmpb.Row {
	row := &swarmpb.ServiceEndpoint{ServiceId: service, Ports: []*swarmpb.PortConfig{{TargetPort: 80, PublishedPort: port}}}
	if vip != "" {
		row.Vips = []*swarmpb.NetworkAddress{{NetworkId: "net", Address: vip}}
	}
	return []*swarmpb.Row{{Row: &swarmpb.Row_ServiceEndpoint{ServiceEndpoint: row}}}
}

func inNetwork(task, address string) []*swarmpb.Row {
	return []*swarmpb.Row{{Row: &swarmpb.Row_TaskAddresses{TaskAddresses: &swarmpb.TaskAddresses{
		TaskId: task, Networks: []*swarmpb.NetworkAddress{{NetworkId: "net", Address: address}}}}}}
}

// TestChecks_DrainedTask_LookedAtOnceUnlessANodeWasLate has the look when a task is noted as drained.
func TestChecks_DrainedTask_LookedAtOnceUnlessANodeWasLate(t *testing.T) {
	now := time.Duration(0)
	c := newChecks(func() time.Duration { return now })
	var looked []string
	c.onDrained = func(_ *store.View, task string) { looked = append(looked, task) }
	stop := func(task string) {
		c.drain(nil, store.Change{New: &swarmpb.Task{Id: task, DesiredState: swarmpb.TaskState_TASK_STATE_SHUTDOWN}})
	}
	drained := func(task string) {
		c.drain(nil, store.Change{New: &swarmpb.TaskStatus{TaskId: task, DrainedAt: 1}})
	}
	stop("in time")
	stop("late")
	now = 4 * time.Second
	drained("in time")
	drained("in time") // as another manager sees it
	now = 6 * time.Second
	drained("late")
	if len(looked) != 1 || looked[0] != "in time" {
		t.Errorf("looked at %q", looked)
	}
	told(t, c, "")
	drained("goes on")
	told(t, c, "is noted as drained and is not to stop")
}

func TestChecks_StatesOfTheStore(t *testing.T) {
	for name, test := range map[string]struct {
		rows [][]*swarmpb.Row
		want string
	}{
		"all is well": {[][]*swarmpb.Row{nodeRows("n1", 2), nodeRows("n2", 2), serviceRows("a"), taskRows("a", "t1", 1, "n1", "10.1.0.2"),
			taskRows("a", "t2", 2, "n2", "10.1.1.2"), block("10.1.0.0/24", "n1"), block("10.1.1.0/24", "n2")}, ""},
		"two tasks of a slot": {[][]*swarmpb.Row{nodeRows("n1", 9), nodeRows("n2", 9), serviceRows("a"), taskRows("a", "t1", 1, "n1", "10.1.0.2"),
			{{Row: &swarmpb.Row_Task{Task: &swarmpb.Task{Id: "t2", ServiceId: "a", Slot: 1, Attempt: 2, TemplateVersion: 1, DesiredState: stateRunning}}}}},
			"2 tasks of slot 1 of service a are to run"},
		"a node over its capacity": {[][]*swarmpb.Row{nodeRows("n1", 1), serviceRows("a"), serviceRows("b"), taskRows("a", "t1", 1, "n1", "10.1.0.2"),
			taskRows("b", "t2", 1, "n1", "10.1.0.3")}, "node n1 is over capacity"},
		"a port of two services": {[][]*swarmpb.Row{nodeRows("n1", 9), serviceRows("a"), serviceRows("b"), taskRows("a", "t1", 1, "n1", "10.1.0.2"),
			taskRows("b", "t2", 1, "n1", "10.1.0.3")}, "port 80 of node n1 belongs to tasks of two slots"},
		"a port bound twice": {[][]*swarmpb.Row{nodeRows("n1", 9), serviceRows("a"), taskRows("a", "t1", 1, "n1", "10.1.0.2"),
			taskRows("a", "t2", 1, "n1", "10.1.0.3")}, "port 80 of node n1 is bound by tasks"},
		"an address of two tasks": {[][]*swarmpb.Row{nodeRows("n1", 9), nodeRows("n2", 9), serviceRows("a"), taskRows("a", "t1", 1, "n1", "10.1.0.2"),
			taskRows("a", "t2", 2, "n2", "10.1.0.2")}, "both have address 10.1.0.2"},
		"a published port of two services": {[][]*swarmpb.Row{serviceRows("a"), serviceRows("b"), given("a", 30000, ""), given("b", 30000, "")},
			"both have published port 30000"},
		"a VIP that is a task's address": {[][]*swarmpb.Row{nodeRows("n1", 9), serviceRows("a"), given("a", 30000, "10.7.0.2"), taskRows("a", "t1", 1, "n1", "10.1.0.2"),
			inNetwork("t1", "10.7.0.2")}, "both have net/10.7.0.2"},
		"two tasks with an address in a network": {[][]*swarmpb.Row{nodeRows("n1", 9), nodeRows("n2", 9), serviceRows("a"), taskRows("a", "t1", 1, "n1", "10.1.0.2"),
			taskRows("a", "t2", 2, "n2", "10.1.1.2"), inNetwork("t1", "10.7.0.2"), inNetwork("t2", "10.7.0.2")}, "both have net/10.7.0.2"},
		"blocks that overlap":  {[][]*swarmpb.Row{block("10.1.0.0/24", "n1"), block("10.1.0.128/25", "n2")}, "overlap"},
		"two blocks of a node": {[][]*swarmpb.Row{block("10.1.0.0/24", "n1"), block("10.1.1.0/24", "n1")}, "node n1 has blocks"},
	} {
		t.Run(name, func(t *testing.T) {
			st := store.New()
			watch, err := st.Watch(0, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer watch.Close()
			propose := store.NewLocalProposer(st)
			for _, rows := range test.rows {
				if _, err := propose.Propose(context.Background(), &swarmpb.Proposal{Writes: put(rows...), Now: 1}); err != nil {
					t.Fatal(err)
				}
			}
			batch, err := watch.Next(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			c := idle()
			c.batch("m1", 0, batch)
			told(t, c, test.want)
		})
	}
}

func TestChecks_StepsOfRows(t *testing.T) {
	task := func(change func(*swarmpb.Task)) *swarmpb.Task {
		t := &swarmpb.Task{Id: "t", ServiceId: "s", Slot: 1, Attempt: 1, TemplateVersion: 1, DesiredState: stateRunning}
		change(t)
		return t
	}
	same := task(func(*swarmpb.Task) {})
	key := store.Key{ID: "t"}
	for name, test := range map[string]struct {
		changes []store.Change
		want    string
	}{
		"the desired state goes back": {[]store.Change{{Table: swarmpb.Table_TABLE_TASK, Key: key, Old: same,
			New: task(func(t *swarmpb.Task) { t.DesiredState = stateReady })}}, "desired state went back"},
		"a task becomes another": {[]store.Change{{Table: swarmpb.Table_TABLE_TASK, Key: key, Old: same,
			New: task(func(t *swarmpb.Task) { t.TemplateVersion = 2 })}}, "was one thing and is another"},
		"the state goes back": {[]store.Change{{Table: swarmpb.Table_TABLE_TASK_STATUS, Key: key, Old: &swarmpb.TaskStatus{State: stateRunning},
			New: &swarmpb.TaskStatus{State: stateReady}}}, "went back from running to ready"},
		"a placed task moves": {[]store.Change{{Table: swarmpb.Table_TABLE_TASK_PLACEMENT, Key: key, Old: &swarmpb.TaskPlacement{NodeId: "n1"},
			New: &swarmpb.TaskPlacement{NodeId: "n2"}}}, "moved from node n1"},
		"an ID comes back": {[]store.Change{{Table: swarmpb.Table_TABLE_TASK, Key: key, New: same, Index: 3},
			{Table: swarmpb.Table_TABLE_TASK, Key: key, Old: same, Index: 4}, {Table: swarmpb.Table_TABLE_TASK, Key: key, New: same, Index: 5}}, "was made by entry 3 and again by 5"},
		"the same entry again, on another manager": {[]store.Change{{Table: swarmpb.Table_TABLE_TASK, Key: key, New: same, Index: 3},
			{Table: swarmpb.Table_TABLE_TASK, Key: key, New: same, Index: 3}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := idle()
			for _, change := range test.changes {
				c.change("m1", change)
			}
			told(t, c, test.want)
		})
	}
}

func TestChecks_ManagersMakeDifferentThingsOfAnEntry(t *testing.T) {
	batches := func(id string) store.Batch {
		st := store.New()
		if _, err := store.NewLocalProposer(st).Propose(context.Background(), &swarmpb.Proposal{Writes: put(nodeRows(id, 1)...), Now: 1}); err != nil {
			t.Fatal(err)
		}
		watch, err := st.Watch(0, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer watch.Close()
		batch, err := watch.Next(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		return batch
	}
	one, other := batches("n1"), batches("n2")
	c := idle()
	c.batch("m1", 0, one)
	c.batch("m2", 0, one)
	c.snapshot("m1", one.View)
	c.snapshot("m2", one.View)
	told(t, c, "")
	c.batch("m3", 0, other)
	told(t, c, "entry 1 is not the same on m1 and m3")
	c.snapshot("m3", other.View)
	told(t, c, "store at 1 is not the same on m1 and m3")
	// One that made nothing of an entry.
	c = idle()
	c.batch("m1", 0, one)
	c.batch("m2", 0, store.Batch{View: one.View})
	told(t, c, "entry 1 is not the same on m1 and m2")
}

func TestChecks_Leaders(t *testing.T) {
	lives := func() (a, b *life) { return &life{m: &machine{name: "m1"}}, &life{m: &machine{name: "m2"}} }
	now := time.Duration(0)
	fresh := func() *checks { now = 0; return newChecks(func() time.Duration { return now }) }

	a, b := lives()
	c := fresh()
	c.leads(a, 5)
	c.leads(b, 5)
	told(t, c, "m1 and m2 both lead in term 5")

	c = fresh()
	c.leads(a, 5)
	c.leads(b, 6)
	now = leadOverlap
	c.leadsNoMore(a, 5)
	told(t, c, "")
	if name, count := c.leader(); name != "m2" || count != 1 {
		t.Errorf("%d lead, the newest is %s", count, name)
	}

	c = fresh()
	c.leads(a, 5)
	c.leads(b, 6)
	now = leadOverlap + time.Second
	c.lifeEnded(a)
	told(t, c, "m1 led in term 5 for 3s after another had begun")

	// What a killed process does, nobody sees.
	c = fresh()
	c.leads(a, 5)
	a.killed.Store(true)
	c.lifeEnded(a)
	c.leads(a, 6)
	c.leads(b, 6)
	told(t, c, "")
}

func TestChecks_ContainersStarted(t *testing.T) {
	w := &world{checks: idle(), singles: map[string]bool{"single": true}, tasks: map[string]string{}}
	w.add("w1", false)
	w.add("w2", false)
	run := func(on *machine, task, service string) {
		ctx := context.Background()
		if _, err := on.fake.Pull(ctx, runtime.PullRequest{Image: "nginx:1"}); err != nil {
			t.Fatal(err)
		}
		err := on.runtime.Create(ctx, runtime.Spec{ID: task, Image: "nginx:1", Container: &swarmpb.ContainerSpec{}, Labels: map[string]string{serviceLabel: service}})
		if err == nil {
			_, err = on.runtime.Start(ctx, task)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	run(w.machines[0], "t1", "web")
	run(w.machines[1], "t2", "web")
	run(w.machines[0], "t3", "single")
	if err := w.machines[0].fake.Exit("t3", 1); err != nil {
		t.Fatal(err)
	}
	run(w.machines[1], "t4", "single")
	told(t, w.checks, "")
	run(w.machines[0], "t5", "single")
	told(t, w.checks, "a service that may run once runs [w1/t5 w2/t4]")
	run(w.machines[1], "t1", "web")
	told(t, w.checks, "task t1 was started on 2 machines")
	w.machines[0].weather.failing.Add(1)
	if err := w.machines[0].before(context.Background(), runtimetest.OpStart, "t6"); err == nil {
		t.Error("a container starts on a host where none does")
	}
}

func TestClients_AcknowledgedSpecIsNotThere_Told(t *testing.T) {
	at := func(value string) *swarmpb.Service {
		return &swarmpb.Service{Spec: &swarmpb.ServiceSpec{Labels: map[string]string{valueLabel: value}}}
	}
	for name, test := range map[string]struct {
		acknowledged string
		service      *swarmpb.Service
		err          error
		want         string
	}{
		"there":            {"a", at("a"), nil, ""},
		"lost":             {"b", at("a"), nil, `reads "a", acknowledged is "b"`},
		"gone":             {"b", nil, wire.ErrNotFound, `reads "", acknowledged is "b"`},
		"removed for good": {"", nil, wire.ErrNotFound, ""},
		"back again":       {"", at("a"), nil, `reads "a", acknowledged is ""`},
		"on its way out":   {"", &swarmpb.Service{Removing: true}, nil, ""},
		"removed by none":  {"a", &swarmpb.Service{Removing: true}, nil, "is being removed"},
		"not known":        {"a", nil, wire.ErrUnavailable, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := &clients{w: &world{checks: idle()}}
			c.compare("web", test.acknowledged, test.service, test.err)
			told(t, c.w.checks, test.want)
		})
	}
}

// Disks that lie: every manager loses what it had written since some moment, and what was acknowledged is gone.
func TestWorld_AllDisksForget_Told(t *testing.T) {
	dir, kept := scratch(t), scratch(t)
	var seen *history.History
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, dir, 1, 3, 1)
		c := newClients(w)
		seen = c.history
		if err := c.found(); err != nil {
			t.Fatal(err)
		}
		create := operation{kind: opCreate, service: "service0a", value: "c0.1", replicas: 1, image: "nginx:1"}
		write := operation{kind: opWrite, service: "register0", value: "c0.2", replicas: 1, image: "nginx:1"}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		for _, m := range w.managers() {
			if err := copyDir(m.dir(), kept+"/"+m.name); err != nil {
				t.Fatal(err)
			}
		}
		var all sync.WaitGroup
		all.Go(func() { c.do(0, create) })
		all.Go(func() { c.do(1, write) })
		all.Wait()
		c.settle()
		told(t, w.checks, "")
		synctest.Wait()
		for _, m := range w.managers() {
			m.kill()
			m.generation++
			if err := copyDir(kept+"/"+m.name, m.dir()); err != nil {
				t.Fatal(err)
			}
		}
		for _, m := range w.managers() {
			if err := m.start(nil); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(20 * time.Second)
		c.do(2, operation{kind: opCreate, service: "service2a", value: "c2.1", replicas: 1, image: "nginx:1"})
		c.settle()
		w.end()
		told(t, w.checks, `service0a reads "", acknowledged is "c0.1"`)
		told(t, w.checks, "is not the same on")
	})
	if err := seen.Check(time.Minute); err == nil {
		t.Error("the register's history is linearizable though an acknowledged write is lost")
	}
}
