package placement

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

var rewrite = flag.Bool("rewrite", false, "write what the scripts in testdata print into them")

// TestScripts runs testdata/*.txt: lines of commands, each block of them followed by what it printed, indented.
//
//	node n1 cpu=4 down pause zone=a gpu=u1,u2 licence=3 key=x      service web cpu=1 port=80 max=1 constraint=node.labels.zone==a
//	tasks web 3   global web n1          replace web.1 [start-first|in-place|rebalance] (as the newest template)
//	down n1   up n1   pause n1   active n1   label n1 zone=b   rmnode n1
//	network front   service web cpu=1 networks=front,back   addresses web.1 front back
//	end web.1   stop web.1   remove web.1 (a successor is called web.1.ATTEMPT)
//	explain web: each node's verdict on one more task
//	place: plans and writes until nothing is left, then prints the proposals' number and each waiting or placed task
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := runScript(t, string(text))
			if *rewrite {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got != string(text) {
				t.Errorf("the script now prints (run with -rewrite to keep it):\n%s", got)
			}
		})
	}
}

func runScript(t *testing.T, text string) string {
	w := newWorld(t)
	var out strings.Builder
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		line := lines.Text()
		if strings.HasPrefix(line, "    ") {
			continue
		}
		fmt.Fprintln(&out, line)
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(line, "#") {
			continue
		}
		if words[0] == "place" {
			for _, l := range append([]string{fmt.Sprintf("proposals: %d", w.place())}, w.table()...) {
				fmt.Fprintln(&out, "    "+l)
			}
			continue
		}
		if words[0] == "explain" {
			for _, l := range w.explain(words[1]) {
				fmt.Fprintln(&out, "    "+l)
			}
			continue
		}
		w.do(words[0], words[1:])
	}
	return out.String()
}

// world is a store and a planner that sees its changes.
type world struct {
	tb interface {
		Helper()
		Fatalf(string, ...any)
	}
	store   *store.Store
	leader  *store.LocalProposer
	watch   *store.Watch
	planner *planner
	now     time.Time
	attempt map[string]uint64 // the highest, by service
	slots   map[string]uint64
}

func newWorld(tb interface {
	Helper()
	Fatalf(string, ...any)
}) *world {
	s := store.New()
	w := &world{tb: tb, store: s, leader: store.NewLocalProposer(s), planner: newPlanner(), now: time.Unix(1_700_000_000, 0), attempt: map[string]uint64{}, slots: map[string]uint64{}}
	var err error
	if w.watch, err = s.Watch(0, 0); err != nil {
		tb.Fatalf("watch: %v", err)
	}
	return w
}

func (w *world) write(writes ...*swarmpb.Write) {
	w.tb.Helper()
	if _, err := w.leader.Propose(context.Background(), &swarmpb.Proposal{Term: 1, Writes: writes, Now: w.now.UnixNano()}); err != nil {
		w.tb.Fatalf("write: %v", err)
	}
}

// observe shows the planner what has changed since it last looked.
func (w *world) observe() {
	w.tb.Helper()
	// A change that concerns nobody: Next waits for one.
	w.write(&swarmpb.Write{Op: &swarmpb.Write_RaiseAlarm{RaiseAlarm: &swarmpb.RaiseAlarm{Kind: "test", Object: "observed"}}})
	batch, err := w.watch.Next(context.Background())
	if err != nil {
		w.tb.Fatalf("watch: %v", err)
	}
	w.planner.observe(batch.View, batch.Changes)
}

// propose writes a decision and tells the planner what became of it.
func (w *world) propose(d *decision) error {
	result, err := w.leader.Propose(context.Background(), &swarmpb.Proposal{Term: 1, Guards: d.guards, Writes: d.writes, Now: w.now.UnixNano()})
	if err != nil {
		w.planner.refused(d)
		return err
	}
	w.planner.applied(d, result.GetIndex())
	return nil
}

// place plans and writes until nothing is left to do, and returns the number of proposals.
func (w *world) place() (proposals int) {
	w.tb.Helper()
	for range 1000 {
		w.observe()
		if !w.planner.waiting() {
			return proposals
		}
		for _, d := range w.planner.plan(w.store.View(), w.now) {
			proposals++
			if err := w.propose(d); err != nil {
				w.tb.Fatalf("propose: %v", err)
			}
		}
	}
	w.tb.Fatalf("placement never comes to rest")
	return 0
}

// table lists the tasks that hold a node or wait for one.
func (w *world) table() (lines []string) {
	view := w.store.View()
	for s := range view.Services() {
		for t := range view.TasksOf(s.GetId()) {
			if view.Observed(t.GetId()).Ended() || t.GetDesiredState() > swarmpb.TaskState_TASK_STATE_RUNNING {
				continue
			}
			p := view.Placement(t.GetId())
			line := fmt.Sprintf("%-10s %s%s", t.GetId(), p.GetNodeId(), p.GetMessage())
			for _, g := range p.GetGeneric() {
				line += fmt.Sprintf(" %s:%d%s", g.GetKind(), g.GetCount(), strings.Join(g.GetInstances(), ","))
			}
			if p.GetPreemptsOn() != "" {
				line += fmt.Sprintf(" (%s)", strings.Join(p.GetPreempts(), " "))
			}
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// explain lists what each node is to a service.
func (w *world) explain(service string) (lines []string) {
	w.tb.Helper()
	found, err := Explain(w.store.View(), service, w.now)
	if err != nil {
		return []string{err.Error()}
	}
	lines = append(lines, fmt.Sprintf("for template %d", found.TemplateVersion))
	for _, n := range found.Nodes {
		lines = append(lines, fmt.Sprintf("%-4s %d of %d tasks: %s", n.Node, n.ServiceTasks, n.Tasks, n.Detail))
	}
	return lines
}

func put(row *swarmpb.Row) *swarmpb.Write { return &swarmpb.Write{Op: &swarmpb.Write_Put{Put: row}} }

// do runs one command of a script.
func (w *world) do(command string, args []string) {
	w.tb.Helper()
	if len(args) == 0 {
		w.tb.Fatalf("%s: of what?", command)
	}
	id, options := args[0], map[string]string{}
	for _, o := range args[1:] {
		key, value, _ := strings.Cut(o, "=")
		options[key] = value
	}
	switch command {
	case "node":
		w.node(id, options)
	case "down":
		w.nodeState(id, swarmpb.NodeState_NODE_STATE_DOWN)
	case "up":
		w.nodeState(id, swarmpb.NodeState_NODE_STATE_READY)
	case "full": // it takes no new tasks by its own word, until "room"
		w.takesNone(id, "its disk is full")
	case "room":
		w.takesNone(id, "")
	case "pause":
		w.availability(id, swarmpb.NodeAvailability_NODE_AVAILABILITY_PAUSE)
	case "active":
		w.availability(id, swarmpb.NodeAvailability_NODE_AVAILABILITY_ACTIVE)
	case "label":
		node := swarmpb.Clone(w.store.View().Node(id))
		node.Spec.Labels = options
		w.write(put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: node}}))
	case "rmnode":
		w.write(&swarmpb.Write{Op: &swarmpb.Write_Delete{Delete: swarmpb.NodeKey(id)}})
	case "service":
		w.service(id, options)
	case "tasks":
		n, err := strconv.Atoi(args[1])
		if err != nil {
			w.tb.Fatalf("tasks %s: %v", id, err)
		}
		for range n {
			w.slots[id]++
			w.task(&swarmpb.Task{ServiceId: id, Slot: w.slots[id]}, fmt.Sprintf("%s.%d", id, w.slots[id]))
		}
	case "global":
		w.task(&swarmpb.Task{ServiceId: id, Slot: swarmpb.NodeSlot(args[1]), NodeId: args[1]}, id+"."+args[1])
	case "replace":
		old := w.store.View().Task(id)
		t := &swarmpb.Task{ServiceId: old.GetServiceId(), Slot: old.GetSlot(), NodeId: old.GetNodeId(), Replaces: id}
		if len(args) > 1 && args[1] == "in-place" {
			t.SameNode = true
		}
		if len(args) > 1 && args[1] == "start-first" {
			t.DesiredState, t.Beside = swarmpb.TaskState_TASK_STATE_RUNNING, true
		}
		if len(args) > 1 && args[1] == "rebalance" {
			t.Move, t.Beside = swarmpb.MoveReason_MOVE_REASON_REBALANCE, true
		}
		w.task(t, fmt.Sprintf("%s.%d", id, w.attempt[old.GetServiceId()]+1))
	case "end":
		w.write(&swarmpb.Write{Op: &swarmpb.Write_MergeStatus{MergeStatus: &swarmpb.TaskStatus{TaskId: id, State: swarmpb.TaskState_TASK_STATE_FAILED, At: w.now.UnixNano()}}})
	case "stop":
		w.write(&swarmpb.Write{Op: &swarmpb.Write_SetTaskState{SetTaskState: &swarmpb.SetTaskState{TaskId: id, DesiredState: swarmpb.TaskState_TASK_STATE_SHUTDOWN}}})
	case "network":
		_, encrypted := options["encrypted"]
		w.write(put(&swarmpb.Row{Row: &swarmpb.Row_Network{Network: &swarmpb.Network{Id: id, Spec: &swarmpb.NetworkSpec{Name: id, Encrypted: encrypted}}}}))
	case "addresses": // in the networks named
		row := &swarmpb.TaskAddresses{TaskId: id}
		for _, network := range args[1:] {
			row.Networks = append(row.Networks, &swarmpb.NetworkAddress{NetworkId: network, Address: "10.0.0.2"})
		}
		w.write(put(&swarmpb.Row{Row: &swarmpb.Row_TaskAddresses{TaskAddresses: row}}))
	case "remove":
		w.write(&swarmpb.Write{Op: &swarmpb.Write_Delete{Delete: swarmpb.TaskKey(id)}})
	default:
		w.tb.Fatalf("unknown command %q", command)
	}
}

func (w *world) node(id string, options map[string]string) {
	w.tb.Helper()
	cpus, _ := strconv.ParseInt(options["cpu"], 10, 64)
	labels := map[string]string{}
	if zone := options["zone"]; zone != "" {
		labels["zone"] = zone
	}
	w.write(
		put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: &swarmpb.Node{Id: id, Spec: &swarmpb.NodeSpec{
			Availability: swarmpb.NodeAvailability_NODE_AVAILABILITY_ACTIVE, Labels: labels,
		}}}}),
		put(&swarmpb.Row{Row: &swarmpb.Row_NodeStatus{NodeStatus: &swarmpb.NodeStatus{
			NodeId: id, State: swarmpb.NodeState_NODE_STATE_READY,
			Description: &swarmpb.NodeDescription{
				Resources: &swarmpb.Resources{NanoCpus: cpus * 1e9, MemoryBytes: 1 << 40, Generic: generics(options)},
				Network:   &swarmpb.NodeNetwork{WireguardKey: []byte(options["key"])},
			},
		}}}))
}

// generics reads gpu=u1,u2 (instances) and licence=3 (a count).
func generics(options map[string]string) (out []*swarmpb.GenericResource) {
	for _, kind := range []string{"gpu", "licence"} {
		if text := options[kind]; text != "" {
			g := &swarmpb.GenericResource{Kind: kind}
			var err error
			if g.Count, err = strconv.ParseInt(text, 10, 64); err != nil {
				g.Instances = strings.Split(text, ",")
			}
			out = append(out, g)
		}
	}
	return out
}

func (w *world) nodeState(id string, state swarmpb.NodeState) {
	w.tb.Helper()
	status := swarmpb.Clone(w.store.View().NodeStatus(id))
	status.State = state
	w.write(put(&swarmpb.Row{Row: &swarmpb.Row_NodeStatus{NodeStatus: status}}))
}

func (w *world) takesNone(id, why string) {
	w.tb.Helper()
	status := swarmpb.Clone(w.store.View().NodeStatus(id))
	status.Description.TakesNoTasks = why
	w.write(put(&swarmpb.Row{Row: &swarmpb.Row_NodeStatus{NodeStatus: status}}))
}

func (w *world) availability(id string, a swarmpb.NodeAvailability) {
	w.tb.Helper()
	node := swarmpb.Clone(w.store.View().Node(id))
	node.Spec.Availability = a
	w.write(put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: node}}))
}

// service makes a service, or gives it its next template.
func (w *world) service(id string, options map[string]string) {
	w.tb.Helper()
	cpus, _ := strconv.ParseFloat(options["cpu"], 64)
	most, _ := strconv.ParseUint(options["max"], 10, 64)
	port, _ := strconv.ParseUint(options["port"], 10, 16)
	priority, _ := strconv.ParseInt(options["priority"], 10, 32)
	spec := &swarmpb.TaskSpec{
		Resources: &swarmpb.ResourceRequirements{Reservations: &swarmpb.Resources{NanoCpus: int64(cpus * 1e9), Generic: generics(options)}},
		Placement: &swarmpb.Placement{MaxReplicasPerNode: most},
	}
	if c := options["constraint"]; c != "" {
		spec.Placement.Constraints = []string{c}
	}
	if options["networks"] != "" {
		for _, network := range strings.Split(options["networks"], ",") {
			spec.Networks = append(spec.Networks, &swarmpb.NetworkAttachment{Network: network})
		}
	}
	version := w.store.View().Service(id).GetTemplateVersion() + 1
	template := &swarmpb.Template{ServiceId: id, Version: version, Spec: spec}
	if port > 0 {
		template.HostPorts = []*swarmpb.PortConfig{{PublishedPort: uint32(port), Mode: swarmpb.PublishMode_PUBLISH_MODE_HOST}}
	}
	w.write(
		put(&swarmpb.Row{Row: &swarmpb.Row_Service{Service: &swarmpb.Service{Id: id, Spec: &swarmpb.ServiceSpec{Name: id, Task: spec, Priority: int32(priority)}, TemplateVersion: version}}}),
		put(&swarmpb.Row{Row: &swarmpb.Row_Template{Template: template}}))
}

func (w *world) task(t *swarmpb.Task, id string) {
	w.tb.Helper()
	w.attempt[t.ServiceId]++
	t.Id, t.Attempt, t.DesiredState = id, w.attempt[t.ServiceId], max(t.DesiredState, swarmpb.TaskState_TASK_STATE_READY)
	if t.Replaces == "" {
		t.DesiredState = swarmpb.TaskState_TASK_STATE_RUNNING
	}
	t.TemplateVersion = w.store.View().Service(t.ServiceId).GetTemplateVersion()
	w.write(put(&swarmpb.Row{Row: &swarmpb.Row_Task{Task: t}}))
}
