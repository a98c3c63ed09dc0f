package control

import (
	"errors"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// Find finds what a user names as a service or a task, by full ID, full name or unique prefix of the ID: a service, or a
// task with its service.
func Find(view *store.View, ref string) (*swarmpb.Service, *swarmpb.Task, error) {
	service, err := findService(view, ref)
	if err == nil || !errors.Is(err, wire.ErrNotFound) {
		return service, nil, err
	}
	task, err := findTask(view, ref)
	if err != nil {
		if other := mistaken(view, ref); errors.Is(err, wire.ErrNotFound) && other != "" {
			err = wire.Errorf(wire.CodeNotFound, "%q: there is no such service and no such task; %s", ref, other)
		} else if errors.Is(err, wire.ErrNotFound) {
			err = wire.Errorf(wire.CodeNotFound, "%q: there is no such service and no such task; `swarmctl service ls` and `swarmctl task ls` show what there is", ref)
		}
		return nil, nil, err
	}
	return view.Service(task.GetServiceId()), task, nil
}
