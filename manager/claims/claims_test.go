package claims_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/claims"
	"github.com/swarmd/swarmd/manager/store"
)

const gpu = "example.com/gpu"

// history is a store with tasks that come, replace each other, get nodes, end and go, and what a node has and gives away is
// kept by hand beside it.
type history struct {
	t      *rapid.T
	leader store.Leader
	store  *store.Store
	tasks  []*held
	next   uint64
}

// held is a task as the test knows it.
type held struct {
	row       *swarmpb.Task
	before    *held
	node      string
	instances []string
	ended     bool
}

func (h *held) claims() bool { return h.node != "" && !h.ended }

// base is the task that h takes the place of, and whether it runs beside that.
func (h *held) base() (base *held, beside bool) {
	for at := h; at.before != nil; at = at.before {
		if beside = beside || at.row.Beside; at.before.claims() {
			return at.before, beside
		}
	}
	return nil, false
}

var (
	nodes    = []string{"n1", "n2", "n3"}
	services = []string{"s1", "s2"}
	// cpus and memory of the templates by version, and the host port that the second one binds.
	needs = map[uint64][2]int64{1: {2, 30}, 2: {3, 10}}
)

func (h *history) write(writes ...*swarmpb.Write) {
	if _, err := h.leader.Propose(context.Background(), &swarmpb.Proposal{Term: h.leader.Term(), Writes: writes, Now: 1}); err != nil {
		h.t.Fatal(err)
	}
}

func put(row *swarmpb.Row) *swarmpb.Write {
	return &swarmpb.Write{Op: &swarmpb.Write_Put{Put: row}}
}

func begin(t *rapid.T) *history {
	s := store.New()
	h := &history{t: t, store: s, leader: store.NewLocalProposer(s)}
	for _, id := range nodes {
		h.write(put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: &swarmpb.Node{Id: id, Spec: &swarmpb.NodeSpec{}}}}),
			put(&swarmpb.Row{Row: &swarmpb.Row_NodeStatus{NodeStatus: &swarmpb.NodeStatus{NodeId: id, State: swarmpb.NodeState_NODE_STATE_READY,
				Description: &swarmpb.NodeDescription{Resources: &swarmpb.Resources{NanoCpus: 1000, MemoryBytes: 1000,
					Generic: []*swarmpb.GenericResource{{Kind: gpu, Instances: []string{"a", "b", "c"}}}}}}}}))
	}
	for _, id := range services {
		writes := []*swarmpb.Write{put(&swarmpb.Row{Row: &swarmpb.Row_Service{Service: &swarmpb.Service{Id: id, TemplateVersion: 1, PreviousTemplateVersion: 2, Spec: &swarmpb.ServiceSpec{Name: id}}}})}
		for version, need := range needs {
			template := &swarmpb.Template{ServiceId: id, Version: version, Spec: &swarmpb.TaskSpec{Resources: &swarmpb.ResourceRequirements{
				Reservations: &swarmpb.Resources{NanoCpus: need[0], MemoryBytes: need[1]}}}}
			if version == 2 {
				template.HostPorts = []*swarmpb.PortConfig{{TargetPort: 80, PublishedPort: 8080, Mode: swarmpb.PublishMode_PUBLISH_MODE_HOST}}
			}
			writes = append(writes, put(&swarmpb.Row{Row: &swarmpb.Row_Template{Template: template}}))
		}
		h.write(writes...)
	}
	return h
}

// step lets one thing happen.
func (h *history) step() {
	pick := func(what string, of func(*held) bool) *held {
		fit := slices.DeleteFunc(slices.Clone(h.tasks), func(task *held) bool { return !of(task) })
		if len(fit) == 0 {
			return nil
		}
		return rapid.SampledFrom(fit).Draw(h.t, what)
	}
	switch rapid.IntRange(0, 6).Draw(h.t, "what") {
	case 0, 1: // a task comes, for the newest one of its slot if there is any
		h.next++
		service, slot := rapid.SampledFrom(services).Draw(h.t, "service"), rapid.Uint64Range(1, 2).Draw(h.t, "slot")
		task := &held{row: &swarmpb.Task{Id: fmt.Sprintf("t%03d", h.next), ServiceId: service, Slot: slot, Attempt: h.next,
			TemplateVersion: rapid.Uint64Range(1, 2).Draw(h.t, "template"), DesiredState: swarmpb.TaskState_TASK_STATE_RUNNING}}
		for _, other := range h.tasks {
			if other.row.ServiceId == service && other.row.Slot == slot {
				task.before = other
			}
		}
		if task.before != nil {
			task.row.Replaces, task.row.Beside = task.before.row.Id, rapid.IntRange(0, 2).Draw(h.t, "beside") == 0
		}
		h.tasks = append(h.tasks, task)
		h.write(put(&swarmpb.Row{Row: &swarmpb.Row_Task{Task: swarmpb.Clone(task.row)}}))
	case 2, 3, 4: // one gets a node
		task := pick("placed", func(task *held) bool { return task.node == "" && !task.ended })
		if task == nil {
			return
		}
		node := rapid.SampledFrom(nodes).Draw(h.t, "node")
		if base, beside := task.base(); base != nil && !beside && base.node == node {
			task.instances = base.instances
		} else if free := h.free(node); len(free) > 0 && rapid.Bool().Draw(h.t, "wants") {
			task.instances = free[:1]
		}
		task.node = node
		row := &swarmpb.TaskPlacement{TaskId: task.row.Id, NodeId: node}
		if len(task.instances) > 0 {
			row.Generic = []*swarmpb.GenericResource{{Kind: gpu, Instances: task.instances}}
		}
		h.write(put(&swarmpb.Row{Row: &swarmpb.Row_TaskPlacement{TaskPlacement: row}}))
	case 5: // one ends
		if task := pick("ended", func(task *held) bool { return task.claims() }); task != nil {
			task.ended = true
			h.write(&swarmpb.Write{Op: &swarmpb.Write_MergeStatus{MergeStatus: &swarmpb.TaskStatus{TaskId: task.row.Id, State: swarmpb.TaskState_TASK_STATE_FAILED, At: 1}}})
		}
	case 6: // one that nothing follows goes
		task := pick("gone", func(task *held) bool {
			return !slices.ContainsFunc(h.tasks, func(other *held) bool { return other.before == task })
		})
		if task != nil {
			h.tasks = slices.DeleteFunc(h.tasks, func(other *held) bool { return other == task })
			h.write(&swarmpb.Write{Op: &swarmpb.Write_Delete{Delete: swarmpb.TaskKey(task.row.Id)}})
		}
	}
}

// free are the instances on a node that no task holds.
func (h *history) free(node string) []string {
	left := []string{"a", "b", "c"}
	for _, task := range h.tasks {
		if task.claims() && task.node == node {
			left = slices.DeleteFunc(left, func(name string) bool { return slices.Contains(task.instances, name) })
		}
	}
	return left
}

// TestClaims_AnyHistory_AreWhatIsCountedByHand: what is left on each node, and who has what there, after any sequence of tasks that
// come, replace each other, get nodes, end and go.
func TestClaims_AnyHistory_AreWhatIsCountedByHand(t *testing.T) {
	shared, through := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		h := begin(t)
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			h.step()
			read := claims.Of(h.store.View())
			onNode := map[string]map[string]int{}
			for _, id := range nodes {
				cpus, memory, tasks := int64(1000), int64(1000), 0
				port, taken := false, map[*held]bool{}
				for _, task := range h.tasks { // by attempt
					if !task.claims() || task.node != id {
						continue
					}
					need := needs[task.row.TemplateVersion]
					port = port || task.row.TemplateVersion == 2
					base, beside := task.base()
					if base != nil && base.node == id && !taken[base] {
						taken[base] = true
						shared++
						if base != task.before {
							through++
						}
						if has := needs[base.row.TemplateVersion]; !beside {
							need = [2]int64{max(0, need[0]-has[0]), max(0, need[1]-has[1])}
						}
					} else {
						tasks++
						if onNode[task.row.ServiceId] == nil {
							onNode[task.row.ServiceId] = map[string]int{}
						}
						onNode[task.row.ServiceId][id]++
					}
					cpus, memory = cpus-need[0], memory-need[1]
				}
				node := read.Nodes().Node(id)
				left := node.Left()
				names := left.GetGeneric()[0].GetInstances()
				if left.GetNanoCpus() != cpus || left.GetMemoryBytes() != memory || node.Tasks != tasks || len(node.Ports) > 0 != port || !slices.Equal(names, h.free(id)) {
					t.Fatalf("%s: %v, %d tasks, ports %v; by hand %d cpus, %d memory, %d tasks, port %t, %v",
						id, left, node.Tasks, node.Ports, cpus, memory, tasks, port, h.free(id))
				}
			}
			for _, service := range services {
				if got := read.OnNode(service); !maps.Equal(got, onNode[service]) {
					t.Fatalf("%s is on %v, by hand %v", service, got, onNode[service])
				}
			}
		}
	})
	if shared == 0 || through == 0 {
		t.Errorf("%d claims were shared, %d of them through a task that held nothing", shared, through)
	}
}

// A node is avoided for a while by a service that has failed there again and again.
func TestFailing_FiveFailuresOnANode_ForFiveMinutes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := begin(t)
		count := map[string]int{}
		at := time.Unix(1_000_000, 0)
		for i := range rapid.IntRange(0, 16).Draw(t, "failures") {
			node := rapid.SampledFrom(nodes).Draw(t, "node")
			age := time.Duration(rapid.IntRange(0, 9).Draw(t, "age")) * time.Minute
			id := fmt.Sprintf("t%03d", i)
			h.write(put(&swarmpb.Row{Row: &swarmpb.Row_Task{Task: &swarmpb.Task{Id: id, ServiceId: "s1", Slot: uint64(i + 1), Attempt: 1, TemplateVersion: 1, DesiredState: swarmpb.TaskState_TASK_STATE_RUNNING}}}),
				put(&swarmpb.Row{Row: &swarmpb.Row_TaskPlacement{TaskPlacement: &swarmpb.TaskPlacement{TaskId: id, NodeId: node}}}),
				&swarmpb.Write{Op: &swarmpb.Write_MergeStatus{MergeStatus: &swarmpb.TaskStatus{TaskId: id, At: at.Add(-age).UnixNano(),
					State: rapid.SampledFrom([]swarmpb.TaskState{swarmpb.TaskState_TASK_STATE_FAILED, swarmpb.TaskState_TASK_STATE_REJECTED}).Draw(t, "how")}}})
			if age <= claims.FailureWindow {
				count[node]++
			}
		}
		got := claims.Of(h.store.View()).Failing("s1", at)
		for _, node := range nodes {
			if want := count[node] >= claims.FailuresToAvoid; got[node] != want {
				t.Fatalf("%s is avoided: %t, after %d failures", node, got[node], count[node])
			}
		}
	})
}
