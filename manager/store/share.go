package store

import (
	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// shareTask makes a new task's strings those of the rows that it names: a million tasks name few services and
// nodes.
func (t *tx) shareTask(row *swarmpb.Task, service *swarmpb.Service) {
	row.ServiceId = service.Id
	if node := t.Node(row.NodeId); node != nil {
		row.NodeId = node.Id
	}
	if replaced := t.Task(row.Replaces); replaced != nil {
		row.Replaces = replaced.Id
	}
}

// sharePart does the same for a row beside a task.
func (t *tx) sharePart(task *taskRow, part proto.Message) {
	switch row := part.(type) {
	case *swarmpb.TaskPlacement:
		row.TaskId = task.task.Id
		if node := t.Node(row.NodeId); node != nil {
			row.NodeId = node.Id
		}
		row.Message = t.strings.share(row.Message)
	case *swarmpb.TaskAddresses:
		row.TaskId = task.task.Id
		row.Message = t.strings.share(row.Message)
		for _, address := range row.Networks {
			if network := t.Network(address.GetNetworkId()); network != nil {
				address.NetworkId = network.Id
			}
		}
	case *swarmpb.TaskStatus:
		row.TaskId = task.task.Id
		row.Message = t.strings.share(row.Message)
		row.Error = t.strings.share(row.Error)
		// A container that was taken over from the status before is published: it is shared already.
		if container := row.Container; container != nil && container != task.status.GetContainer() {
			container.ImageDigest = t.strings.share(container.ImageDigest)
		}
		if health := row.Health; health != nil && health != task.status.GetHealth() {
			health.Output = t.strings.share(health.Output)
		}
	}
}
