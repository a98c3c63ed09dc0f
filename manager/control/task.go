package control

import (
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// GetTask returns one task with its template.
func (s *Server) GetTask(ctx context.Context, req *swarmpb.GetTaskRequest) (*swarmpb.GetTaskResponse, error) {
	view, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	task, err := findTask(view, req.GetTask())
	if err != nil {
		return nil, err
	}
	response := &swarmpb.GetTaskResponse{
		Task: taskInfo(view, task),
		Spec: view.Template(task.GetServiceId(), task.GetTemplateVersion()).GetSpec(),
	}
	for _, a := range response.Task.GetAddresses().GetNetworks() {
		addName(view, &response.NetworkNames, a.GetNetworkId())
	}
	return response, nil
}

// ListTasks returns tasks in pages, by service, slot, attempt and ID. The order does not change while tasks come and
// go, so that a task that is there all the time is on exactly one page.
func (s *Server) ListTasks(ctx context.Context, req *swarmpb.ListTasksRequest) (*swarmpb.ListTasksResponse, error) {
	after, err := parsePosition(req.GetPageToken())
	if err != nil {
		return nil, err
	}
	view, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	query := taskQuery{current: req.GetCurrentOnly(), after: after}
	if req.GetService() != "" {
		service, err := findService(view, req.GetService())
		if err != nil {
			return nil, err
		}
		query.service = service.GetId()
	}
	if req.GetNode() != "" {
		node, err := s.findNode(view, req.GetNode())
		if err != nil {
			return nil, err
		}
		query.node = node.GetId()
	}
	response := &swarmpb.ListTasksResponse{}
	size := 0
	query.walk(view, func(task *swarmpb.Task) bool {
		info := taskInfo(view, task)
		if size += proto.Size(info); len(response.Tasks) == maxPage || len(response.Tasks) > 0 && size > maxPageBytes {
			response.NextPageToken = positionOf(response.Tasks[len(response.Tasks)-1].GetTask()).token()
			return false
		}
		response.Tasks = append(response.Tasks, info)
		return true
	})
	return response, nil
}

// position is a place in the order of tasks.
type position struct {
	service, id   string
	slot, attempt uint64
}

func positionOf(task *swarmpb.Task) position {
	return position{task.GetServiceId(), task.GetId(), task.GetSlot(), task.GetAttempt()}
}

func (p position) compare(q position) int {
	return cmp.Or(cmp.Compare(p.service, q.service), cmp.Compare(p.slot, q.slot), cmp.Compare(p.attempt, q.attempt), cmp.Compare(p.id, q.id))
}

func (p position) token() string {
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%s %d %d %s", p.service, p.slot, p.attempt, p.id))
}

func parsePosition(token string) (position, error) {
	var p position
	if token == "" {
		return p, nil
	}
	bad := wire.Errorf(wire.CodeInvalid, "page token %.40q: not one that this cluster gave; begin again without it", token)
	if len(token) > maxLookup {
		return p, bad
	}
	text, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		return p, bad
	}
	if n, err := fmt.Sscanf(string(text), "%s %d %d %s", &p.service, &p.slot, &p.attempt, &p.id); err != nil || n != 4 {
		return p, bad
	}
	return p, nil
}

// taskQuery picks tasks after a position.
type taskQuery struct {
	service, node string
	current       bool
	after         position
}

// walk gives the tasks in order until yield returns false.
func (q *taskQuery) walk(view *store.View, yield func(*swarmpb.Task) bool) {
	if q.node != "" {
		q.walkNode(view, yield)
		return
	}
	if q.service != "" {
		q.walkService(view, q.service, yield)
		return
	}
	for service := range view.Services() {
		if service.GetId() >= q.after.service && !q.walkService(view, service.GetId(), yield) {
			return
		}
	}
}

func (q *taskQuery) takes(task *swarmpb.Task) bool {
	return (!q.current || wanted(task)) && (q.service == "" || task.GetServiceId() == q.service) && positionOf(task).compare(q.after) > 0
}

func (q *taskQuery) walkService(view *store.View, id string, yield func(*swarmpb.Task) bool) bool {
	var slot uint64
	if id == q.after.service {
		slot = q.after.slot
	}
	for task := range view.TasksFrom(id, slot) {
		if q.takes(task) && !yield(task) {
			return false
		}
	}
	return true
}

// walkNode sorts the tasks of one node, of which there are never many.
func (q *taskQuery) walkNode(view *store.View, yield func(*swarmpb.Task) bool) {
	var tasks []*swarmpb.Task
	for task := range view.TasksOn(q.node) {
		if q.takes(task) {
			tasks = append(tasks, task)
		}
	}
	slices.SortFunc(tasks, func(a, b *swarmpb.Task) int { return positionOf(a).compare(positionOf(b)) })
	for _, task := range tasks {
		if !yield(task) {
			return
		}
	}
}
