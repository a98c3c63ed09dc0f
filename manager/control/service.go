package control

import (
	"context"
	"errors"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// CreateService makes a service with its first template. Its ID follows from the request ID, so that the same
// request makes the same service.
func (s *Server) CreateService(caller context.Context, req *swarmpb.CreateServiceRequest) (*swarmpb.CreateServiceResponse, error) {
	ctx, cancel := writing(caller)
	defer cancel()
	request, err := requestID(req.GetRequestId())
	if err != nil {
		return nil, err
	}
	view, err := s.fresh(ctx)
	if err != nil {
		return nil, err
	}
	if made := view.Service(createdID(request)); made != nil {
		return &swarmpb.CreateServiceResponse{Id: made.GetId(), Warnings: warnings(view, made.GetSpec())}, nil
	}
	c, err := s.creation(caller, view, request, req)
	if err != nil {
		return nil, err
	}
	err = s.commit(caller, ctx, request, c)
	var conflict *store.ConflictError
	if errors.As(err, &conflict) {
		name := c.after.GetName()
		if other := s.cfg.Store().View().ServiceByName(name); other != nil && other.GetId() != c.id {
			return nil, nameTaken(other)
		}
		return nil, conflictError(err, "service \""+name+"\"")
	}
	if err != nil {
		return nil, err
	}
	return &swarmpb.CreateServiceResponse{Id: c.id, Warnings: c.warnings}, nil
}

// createdID is the ID of the service that a request makes.
func createdID(request string) string { return swarmpb.DerivedID("service", request) }

func nameTaken(other *swarmpb.Service) error {
	state := ""
	if other.GetRemoving() {
		state = ", which is being removed"
	}
	return wire.Errorf(wire.CodeExists, "service name %q: already taken by service %s%s; choose another name, change that service with `swarmctl service update %s`, or remove it",
		other.GetSpec().GetName(), other.GetId(), state, other.GetSpec().GetName())
}

// UpdateService replaces the spec. A spec that says the same changes nothing, unless the service's update is paused:
// that goes on then. Only a change of the task's template makes a new template version.
func (s *Server) UpdateService(caller context.Context, req *swarmpb.UpdateServiceRequest) (*swarmpb.UpdateServiceResponse, error) {
	ctx, cancel := writing(caller)
	defer cancel()
	request, err := requestID(req.GetRequestId())
	if err != nil {
		return nil, err
	}
	view, err := s.fresh(ctx)
	if err != nil {
		return nil, err
	}
	c, err := s.update(caller, view, req)
	if err != nil {
		return nil, err
	}
	if err := s.commit(caller, ctx, request, c); err != nil {
		return nil, conflictError(err, "service \""+c.after.GetName()+"\"")
	}
	return &swarmpb.UpdateServiceResponse{Id: c.id, Warnings: c.warnings, Revision: c.revision}, nil
}

// RemoveService marks the service: its tasks stop, then it goes.
func (s *Server) RemoveService(ctx context.Context, req *swarmpb.RemoveServiceRequest) (*swarmpb.RemoveServiceResponse, error) {
	ctx, cancel := writing(ctx)
	defer cancel()
	request, err := requestID(req.GetRequestId())
	if err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		view, err := s.fresh(ctx)
		if err != nil {
			return nil, err
		}
		service, err := findService(view, req.GetService())
		if err != nil {
			return nil, err
		}
		response := &swarmpb.RemoveServiceResponse{Id: service.GetId()}
		if service.GetRemoving() {
			return response, nil
		}
		next := swarmpb.Clone(service)
		next.Removing = true
		err = s.write(ctx, request, &swarmpb.Proposal{
			Guards: []*swarmpb.Guard{guard(swarmpb.ServiceKey(service.GetId()), service.GetMeta().GetVersion())},
			Writes: []*swarmpb.Write{putService(next)},
		})
		var conflict *store.ConflictError
		if err == nil {
			return response, nil
		}
		if !errors.As(err, &conflict) || try == rewrites {
			return nil, conflictError(err, "service \""+service.GetSpec().GetName()+"\"")
		}
	}
}

// GetService returns one service.
func (s *Server) GetService(ctx context.Context, req *swarmpb.GetServiceRequest) (*swarmpb.GetServiceResponse, error) {
	view, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	service, err := findService(view, req.GetService())
	if err != nil {
		return nil, err
	}
	return &swarmpb.GetServiceResponse{Service: withConflicts(view, serviceInfo(view, service, lostNodes(view)))}, nil
}

// ListServices returns all services, by ID, but for those that stand for containers outside of services.
func (s *Server) ListServices(ctx context.Context, _ *swarmpb.ListServicesRequest) (*swarmpb.ListServicesResponse, error) {
	view, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	response, lost := &swarmpb.ListServicesResponse{}, lostNodes(view)
	for service := range view.Services() {
		if service.GetSpec().IsAttachment() {
			continue // GetNetwork shows it
		}
		response.Services = append(response.Services, serviceInfo(view, service, lost))
	}
	return response, nil
}
