package control

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// poolUplink is the pool of the blocks that nodes give their tasks' addresses from; its owners are nodes.
const poolUplink = "uplink"

// taskInfo puts the rows of a task together.
func taskInfo(view *store.View, task *swarmpb.Task) *swarmpb.TaskInfo {
	rows := view.TaskRows(task.GetId())
	service := view.Service(task.GetServiceId()).GetSpec().GetName()
	nodeID := rows.Placement.GetNodeId()
	node := view.NodeStatus(nodeID)
	info := &swarmpb.TaskInfo{
		Task:         task,
		Name:         swarmpb.TaskName(service, task.GetSlot(), task.GetNodeId()),
		ServiceName:  service,
		Image:        view.Template(task.GetServiceId(), task.GetTemplateVersion()).GetSpec().GetContainer().GetImage(),
		State:        rows.Observed,
		NodeId:       nodeID,
		NodeHostname: node.GetDescription().GetHostname(),
		Placement:    rows.Placement,
		Status:       rows.Status,
		Message:      rows.Status.GetMessage(),
		Addresses:    rows.Addresses,
	}
	if guest := view.Template(task.GetServiceId(), task.GetTemplateVersion()).GetSpec().GetGuest(); guest != nil {
		info.Image = guestText(guest)
	}
	switch {
	case rows.Status != nil:
		info.Since = rows.Status.GetAt()
		info.Error = rows.Status.GetError()
	case nodeID != "":
		info.Since = rows.Placement.GetAt()
	default:
		info.Since = task.GetMeta().GetCreatedAt()
		if wanted(task) {
			info.Error = waiting(view, task, &rows)
		}
	}
	if nodeID != "" && !info.State.Ended() && info.Error == "" {
		info.Error = cmp.Or(lostNode(view, nodeID, node), unreachable(view, task, info.State, node))
	}
	if text := history(view, task); text != "" {
		info.Message = strings.TrimSuffix(text+"; "+info.Message, "; ")
	}
	return info
}

// unreachable is why a task that runs may not be reached, or not reach others: what its node says of its network. Empty
// for one that no one sends connections to.
func unreachable(view *store.View, task *swarmpb.Task, state swarmpb.TaskState, node *swarmpb.NodeStatus) string {
	problems := networkProblems(node)
	if len(problems) == 0 || state != swarmpb.TaskState_TASK_STATE_RUNNING || !view.Service(task.GetServiceId()).GetSpec().Reached() {
		return ""
	}
	text := fmt.Sprintf("network of node %s: %s", view.NodeName(node.GetNodeId()), problems[0])
	if len(problems) > 1 {
		text += fmt.Sprintf(" (and %d more: swarmctl node inspect)", len(problems)-1)
	}
	return text
}

func networkProblems(node *swarmpb.NodeStatus) []string {
	return node.GetDescription().GetNetwork().GetProblems()
}

// lostNode is what to know of a task that has not ended, when its node is not there.
func lostNode(view *store.View, nodeID string, status *swarmpb.NodeStatus) string {
	name := view.NodeName(nodeID)
	switch {
	case view.Node(nodeID) == nil:
		return fmt.Sprintf("node %s was removed from the cluster", name)
	case status.GetState() == swarmpb.NodeState_NODE_STATE_DOWN, status.GetState() == swarmpb.NodeState_NODE_STATE_DISCONNECTED:
		text := fmt.Sprintf("node %s is %s", name, status.GetState().Name())
		if status.GetMessage() != "" {
			text += ": " + status.GetMessage()
		}
		return text
	}
	return ""
}

// serviceInfo puts the rows of a service together and counts its tasks; lost are the nodes that are DOWN.
func serviceInfo(view *store.View, service *swarmpb.Service, lost map[string]bool) *swarmpb.ServiceInfo {
	count, isLost := make(tally), func(node string) bool { return lost[node] }
	for rows := range view.RowsOf(service.GetId()) {
		count.add(partOf(&rows, isLost), +1)
	}
	return count.info(view, service)
}

// managers are Raft's configuration and leader as they were at one moment.
type managers struct {
	leader  string
	members []Member
}

func (s *Server) managers() managers { return managers{s.cfg.Leader(), s.cfg.Members()} }

// member is the node's part in Raft's configuration; nil when it has none.
func (m managers) member(id string) *Member {
	for i := range m.members {
		if m.members[i].ID == id {
			return &m.members[i]
		}
	}
	return nil
}

// status is the node's part in Raft, for users; nil when it has none.
func (m managers) status(view *store.View, id string) *swarmpb.ManagerStatus {
	part := m.member(id)
	if part == nil {
		return nil
	}
	return &swarmpb.ManagerStatus{Address: part.Address, Leader: id == m.leader, Voter: part.Voter, Reachable: reachable(view, id)}
}

// reachable tells whether a manager counts as one that answers.
func reachable(view *store.View, id string) bool {
	return view.NodeStatus(id).GetState() == swarmpb.NodeState_NODE_STATE_READY
}
