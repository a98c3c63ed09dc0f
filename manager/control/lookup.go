package control

import (
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// noun is a kind of object that users name.
type noun struct {
	name string
	// list is the command that shows all of them.
	list string
}

var (
	nounNode    = noun{"node", "swarmctl node ls"}
	nounService = noun{"service", "swarmctl service ls"}
	nounTask    = noun{"task", "swarmctl task ls"}
	nounNetwork = noun{"network", "swarmctl network ls"}
)

func (n noun) check(ref string) error {
	if ref == "" {
		return wire.Errorf(wire.CodeInvalid, "%s: name one by its ID, its name or the beginning of its ID; `%s` shows them", n.name, n.list)
	}
	if len(ref) > maxLookup {
		return wire.Errorf(wire.CodeInvalid, "%s %.40q...: longer than any name; `%s` shows what there is", n.name, ref, n.list)
	}
	return nil
}

func (n noun) notFound(ref string) error {
	return wire.Errorf(wire.CodeNotFound, "%s %q: not found; `%s` shows what there is", n.name, ref, n.list)
}

func (n noun) ambiguous(ref, what string, count int) error {
	return wire.Errorf(wire.CodeInvalid, "%s %q: %d %ss have this %s; name one by its full ID, which `%s` shows", n.name, ref, count, n.name, what, n.list)
}

// byPrefix finds the one object whose ID begins with ref.
func byPrefix[T interface{ GetId() string }](n noun, ref string, all iter.Seq[T]) (T, error) {
	var match T
	count := 0
	for object := range all {
		if strings.HasPrefix(object.GetId(), ref) {
			match = object
			count++
		} else if count > 0 {
			break // The objects are ordered by ID.
		}
	}
	switch count {
	case 0:
		return match, n.notFound(ref)
	case 1:
		return match, nil
	}
	return match, n.ambiguous(ref, "ID prefix", count)
}

// findService finds a service by full ID, full name or unique prefix of the ID.
func findService(view *store.View, ref string) (*swarmpb.Service, error) {
	if err := nounService.check(ref); err != nil {
		return nil, err
	}
	if service := view.Service(ref); service != nil {
		return service, nil
	}
	if service := view.ServiceByName(ref); service != nil {
		return service, nil
	}
	service, err := byPrefix(nounService, ref, view.Services())
	if errors.Is(err, wire.ErrNotFound) {
		if other := mistaken(view, ref); other != "" {
			err = wire.Errorf(wire.CodeNotFound, "service %q: not found; %s", ref, other)
		}
	}
	return service, err
}

// mistaken says what the user names instead of a service; empty = nothing that is there.
func mistaken(view *store.View, ref string) string {
	task := view.Task(ref)
	if task == nil {
		task = taskByName(view, ref)
	}
	if task != nil {
		return fmt.Sprintf("it is a task of service %q: `swarmctl task inspect %s` shows it", view.Service(task.GetServiceId()).GetSpec().GetName(), ref)
	}
	for node := range view.Nodes() {
		if node.GetId() == ref || view.NodeStatus(node.GetId()).GetDescription().GetHostname() == ref {
			return fmt.Sprintf("it is a node: `swarmctl node ps %s` lists its tasks", ref)
		}
	}
	return ""
}

// findNetwork finds a network by full ID, full name or unique prefix of the ID.
func findNetwork(view *store.View, ref string) (*swarmpb.Network, error) {
	if err := nounNetwork.check(ref); err != nil {
		return nil, err
	}
	if network := view.Network(ref); network != nil {
		return network, nil
	}
	if network := view.NetworkByName(ref); network != nil {
		return network, nil
	}
	return byPrefix(nounNetwork, ref, view.Networks())
}

// findNode finds a node by full ID, hostname or unique prefix of the ID; "self" is this manager.
func (s *Server) findNode(view *store.View, ref string) (*swarmpb.Node, error) {
	if err := nounNode.check(ref); err != nil {
		return nil, err
	}
	if ref == "self" {
		ref = s.cfg.NodeID
	}
	if node := view.Node(ref); node != nil {
		return node, nil
	}
	var match *swarmpb.Node
	count := 0
	for node := range view.Nodes() {
		if view.NodeStatus(node.GetId()).GetDescription().GetHostname() == ref {
			match = node
			count++
		}
	}
	switch {
	case count == 1:
		return match, nil
	case count > 1:
		return nil, nounNode.ambiguous(ref, "hostname", count)
	}
	return byPrefix(nounNode, ref, view.Nodes())
}

// findTask finds a task by full ID, name or unique prefix of the ID. Of the tasks of one name it is the one that
// there should be now, or else the last attempt.
func findTask(view *store.View, ref string) (*swarmpb.Task, error) {
	if err := nounTask.check(ref); err != nil {
		return nil, err
	}
	if task := view.Task(ref); task != nil {
		return task, nil
	}
	if task := taskByName(view, ref); task != nil {
		return task, nil
	}
	return byPrefix(nounTask, ref, view.Tasks())
}

func taskByName(view *store.View, name string) *swarmpb.Task {
	service, part, ok := cutLast(name, ".")
	if !ok {
		return nil
	}
	row := view.ServiceByName(service)
	if row == nil {
		return nil
	}
	slot, err := strconv.ParseUint(part, 10, 64)
	var last *swarmpb.Task
	choose := func(task *swarmpb.Task) {
		if last == nil || wanted(task) || !wanted(last) {
			last = task
		}
	}
	if err == nil && slot > 0 {
		for task := range view.TasksIn(row.GetId(), slot) {
			choose(task)
		}
		return last
	}
	for task := range view.TasksOf(row.GetId()) {
		if node := task.GetNodeId(); node != "" && (node == part || view.NodeName(node) == part) {
			choose(task)
		}
	}
	return last
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// wanted tells whether the task is one that there should be: its desired state is at most COMPLETE.
func wanted(task *swarmpb.Task) bool {
	return task.GetDesiredState().Wanted()
}
