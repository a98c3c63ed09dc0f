package control

import (
	"cmp"
	"context"
	"errors"
	"time"

	"google.golang.org/protobuf/proto"

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
	if req.GetSpec() == nil {
		return nil, wire.Errorf(wire.CodeInvalid, "service: the spec is missing")
	}
	view, err := s.fresh(ctx)
	if err != nil {
		return nil, err
	}
	id := swarmpb.DerivedID("service", request)
	if made := view.Service(id); made != nil {
		return &swarmpb.CreateServiceResponse{Id: id, Warnings: warnings(view, made.GetSpec())}, nil
	}
	spec := withDefaults(req.GetSpec())
	if spec.GetName() == "" {
		spec.Name = randomName(func(name string) bool { return view.ServiceByName(name) != nil })
	}
	if err := checkSpec(spec); err != nil {
		return nil, err
	}
	if err := checkReach(view, id, spec); err != nil {
		return nil, err
	}
	if other := view.ServiceByName(spec.GetName()); other != nil {
		return nil, nameTaken(other)
	}
	if err := s.checkSpace(view, "service \""+spec.GetName()+"\""); err != nil {
		return nil, err
	}
	auth, err := checkAuth(req.GetRegistryAuth(), spec)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	said := s.pin(caller, spec, nil, auth, !req.GetNoResolveImage())
	ctx, done := extended(caller, ctx, time.Since(began)) // a registry's time is not the quorum's
	defer done()
	err = s.write(ctx, request, &swarmpb.Proposal{
		Guards: []*swarmpb.Guard{guard(swarmpb.ServiceKey(id), 0)},
		Writes: []*swarmpb.Write{
			putTemplate(id, 1, spec),
			put(&swarmpb.Row{Row: &swarmpb.Row_Service{Service: &swarmpb.Service{Id: id, Spec: spec, TemplateVersion: 1, RegistryAuth: auth}}}),
		},
	})
	var conflict *store.ConflictError
	if errors.As(err, &conflict) {
		if other := s.cfg.Store().View().ServiceByName(spec.GetName()); other != nil && other.GetId() != id {
			return nil, nameTaken(other)
		}
		return nil, conflictError(err, "service \""+spec.GetName()+"\"")
	}
	if err != nil {
		return nil, err
	}
	return &swarmpb.CreateServiceResponse{Id: id, Warnings: append(warnings(view, spec), said...)}, nil
}

func nameTaken(other *swarmpb.Service) error {
	state := ""
	if other.GetRemoving() {
		state = ", which is being removed"
	}
	return wire.Errorf(wire.CodeExists, "service name %q: already taken by service %s%s; choose another name, change that service with `swarmctl service update %s`, or remove it",
		other.GetSpec().GetName(), other.GetId(), state, other.GetSpec().GetName())
}

func putTemplate(serviceID string, version uint64, spec *swarmpb.ServiceSpec) *swarmpb.Write {
	return put(&swarmpb.Row{Row: &swarmpb.Row_Template{Template: &swarmpb.Template{
		ServiceId: serviceID, Version: version, Spec: spec.GetTask(), HostPorts: spec.HostPorts(),
	}}})
}

// UpdateService replaces the spec. A spec that says the same changes nothing, unless the service's update is paused:
// that goes on with any update of the service. Only a change of the task's template makes a new template version.
func (s *Server) UpdateService(caller context.Context, req *swarmpb.UpdateServiceRequest) (*swarmpb.UpdateServiceResponse, error) {
	ctx, cancel := writing(caller)
	defer cancel()
	request, err := requestID(req.GetRequestId())
	if err != nil {
		return nil, err
	}
	if req.GetSpec() == nil {
		return nil, wire.Errorf(wire.CodeInvalid, "service %q: the spec is missing", req.GetService())
	}
	view, err := s.fresh(ctx)
	if err != nil {
		return nil, err
	}
	service, err := findService(view, req.GetService())
	if err != nil {
		return nil, err
	}
	name := service.GetSpec().GetName()
	spec := withDefaults(req.GetSpec())
	if err := checkUpdate(service, spec); err != nil {
		return nil, err
	}
	if err := checkReach(view, service.GetId(), spec); err != nil {
		return nil, err
	}
	auth, err := checkAuth(req.GetRegistryAuth(), spec)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	said := s.pin(caller, spec, service.GetSpec(), cmp.Or(auth, service.RegistryAuthFor(imageOf(spec))), !req.GetNoResolveImage())
	ctx, done := extended(caller, ctx, time.Since(began))
	defer done()
	next := &swarmpb.Service{
		Id:                      service.GetId(),
		Spec:                    spec,
		PreviousSpec:            service.GetSpec(),
		TemplateVersion:         service.GetTemplateVersion(),
		PreviousTemplateVersion: service.GetTemplateVersion(),
	}
	same := proto.Equal(service.GetSpec(), spec)
	if same {
		next = swarmpb.Clone(service) // its new version alone resumes the update; the way back stays what it was
	}
	said = append(said, takeAuth(next, service, auth)...)
	response := &swarmpb.UpdateServiceResponse{Id: service.GetId(), Warnings: append(warnings(view, spec), said...)}
	if same && !updatePaused(view, service) && proto.Equal(service.GetRegistryAuth(), next.GetRegistryAuth()) {
		return response, nil
	}
	if larger(service.GetSpec(), spec) {
		if err := s.checkSpace(view, "service \""+name+"\""); err != nil {
			return nil, err
		}
	}
	version := req.GetVersion()
	if version == 0 {
		version = service.GetMeta().GetVersion()
	}
	proposal := &swarmpb.Proposal{Guards: []*swarmpb.Guard{guard(swarmpb.ServiceKey(service.GetId()), version)}}
	if swarmpb.TemplateChanged(service.GetSpec(), spec) {
		next.TemplateVersion = highestTemplate(view, service) + 1
		proposal.Writes = append(proposal.Writes, putTemplate(service.GetId(), next.TemplateVersion, spec))
	}
	proposal.Writes = append(proposal.Writes, put(&swarmpb.Row{Row: &swarmpb.Row_Service{Service: next}}))
	if err := s.write(ctx, request, proposal); err != nil {
		return nil, conflictError(err, "service \""+name+"\"")
	}
	return response, nil
}

// updatePaused tells whether the service's update, or its rollback, waits for the user.
func updatePaused(view *store.View, service *swarmpb.Service) bool {
	switch view.ServiceProgress(service.GetId()).GetUpdate().GetState() {
	case swarmpb.UpdateState_UPDATE_STATE_PAUSED, swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_PAUSED:
		return true
	default:
		return false
	}
}

// highestTemplate is the highest template version that the service ever had, as far as anything remembers it.
func highestTemplate(view *store.View, service *swarmpb.Service) uint64 {
	highest := max(service.GetTemplateVersion(), service.GetPreviousTemplateVersion())
	update := view.ServiceProgress(service.GetId()).GetUpdate()
	highest = max(highest, update.GetTemplateVersion(), update.GetFailedTemplateVersion())
	for template := range view.TemplatesOf(service.GetId()) {
		highest = max(highest, template.GetVersion())
	}
	for slot := range view.SlotsOf(service.GetId()) {
		highest = max(highest, slot.GetTemplateVersion())
	}
	return highest
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
			Writes: []*swarmpb.Write{put(&swarmpb.Row{Row: &swarmpb.Row_Service{Service: next}})},
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
	return &swarmpb.GetServiceResponse{Service: withConflicts(view, serviceInfo(view, service))}, nil
}

// ListServices returns all services, by ID.
func (s *Server) ListServices(ctx context.Context, _ *swarmpb.ListServicesRequest) (*swarmpb.ListServicesResponse, error) {
	view, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	response := &swarmpb.ListServicesResponse{}
	for service := range view.Services() {
		response.Services = append(response.Services, serviceInfo(view, service))
	}
	return response, nil
}
