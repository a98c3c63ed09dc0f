package control

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// RollbackService makes an earlier spec the service's again. Without a revision that is the previous one, and the two
// change places, as with Docker Swarm.
func (s *Server) RollbackService(caller context.Context, req *swarmpb.RollbackServiceRequest) (*swarmpb.RollbackServiceResponse, error) {
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
	if view.Answered(request) {
		service, err := findService(view, req.GetService())
		if err != nil {
			return nil, err
		}
		return &swarmpb.RollbackServiceResponse{Id: service.GetId(), Revision: service.GetRevision()}, nil
	}
	c, err := s.rollback(view, req)
	if err != nil {
		return nil, err
	}
	if err := s.commit(caller, ctx, request, c); err != nil {
		return nil, conflictError(err, "service \""+c.after.GetName()+"\"")
	}
	return &swarmpb.RollbackServiceResponse{Id: c.id, Warnings: c.warnings, Revision: c.revision}, nil
}

// rollback is the change that a user asks for by a revision, or by none.
func (s *Server) rollback(view *store.View, req *swarmpb.RollbackServiceRequest) (*change, error) {
	if err := checkAuthor(req.GetAuthor()); err != nil {
		return nil, err
	}
	service, err := findService(view, req.GetService())
	if err != nil {
		return nil, err
	}
	name := service.GetSpec().GetName()
	if service.GetRemoving() {
		return nil, wire.Errorf(wire.CodeFailedPrecondition, "service %q: it is being removed", name)
	}
	target, err := rollbackTarget(view, service, req.GetRevision())
	if err != nil {
		return nil, err
	}
	if proto.Equal(target.spec, service.GetSpec()) {
		return nil, sameAsNow(view, service, target)
	}
	version := cmp.Or(req.GetVersion(), service.GetMeta().GetVersion())
	return s.goBack(view, service, version, target, req.GetAuthor(), "rollback"+target.to())
}

// earlier is a spec that a service has had.
type earlier struct {
	// revision is its number; 0 when the history does not have it any more.
	revision uint64
	spec     *swarmpb.ServiceSpec
	template uint64
	auth     *swarmpb.RegistryAuth
}

func (e earlier) to() string {
	if e.revision == 0 {
		return ""
	}
	return fmt.Sprintf(" to version %d", e.revision)
}

// named is the spec in messages.
func (e earlier) named() string {
	if e.revision == 0 {
		return "its previous version"
	}
	return fmt.Sprintf("version %d", e.revision)
}

func earlierOf(revision *swarmpb.ServiceRevision) earlier {
	return earlier{revision.GetRevision(), revision.GetSpec(), revision.GetTemplateVersion(), revision.GetRegistryAuth()}
}

// rollbackTarget finds what a user wants back: a revision, or with 0 the previous spec.
func rollbackTarget(view *store.View, service *swarmpb.Service, number uint64) (earlier, error) {
	name := service.GetSpec().GetName()
	if number == 0 {
		if service.GetPreviousSpec() == nil {
			return earlier{}, wire.Errorf(wire.CodeFailedPrecondition, "service %q: it has no earlier version to go back to, as it has never been updated", name)
		}
		return previous(view, service), nil
	}
	revision := view.ServiceRevision(service.GetId(), number)
	if revision == nil {
		return earlier{}, wire.Errorf(wire.CodeNotFound, "service %q: there is no version %d; kept are %s, which `swarmctl service history %s` shows",
			name, number, keptRevisions(view, service.GetId()), name)
	}
	return earlierOf(revision), nil
}

// previous is the spec before the present one, with its number where the history has it.
func previous(view *store.View, service *swarmpb.Service) earlier {
	target := earlier{spec: service.GetPreviousSpec(), template: service.GetPreviousTemplateVersion()}
	for revision := range view.RevisionsOf(service.GetId()) {
		if revision.GetRevision() < service.GetRevision() && revision.GetTemplateVersion() == target.template && proto.Equal(revision.GetSpec(), target.spec) {
			target.revision, target.auth = revision.GetRevision(), revision.GetRegistryAuth()
		}
	}
	return target
}

// keptRevisions lists the numbers of a service's history, oldest first.
func keptRevisions(view *store.View, serviceID string) string {
	var numbers []string
	for revision := range view.RevisionsOf(serviceID) {
		numbers = append(numbers, fmt.Sprint(revision.GetRevision()))
	}
	if len(numbers) == 0 {
		return "none"
	}
	return strings.Join(numbers, ", ")
}

// sameAsNow explains that there is nothing to go back to, and what to do where an update to it has failed.
func sameAsNow(view *store.View, service *swarmpb.Service, target earlier) error {
	name, update := service.GetSpec().GetName(), view.ServiceProgress(service.GetId()).GetUpdate()
	what := target.named()
	if target.revision == service.GetRevision() {
		what += " is what it has now"
	} else {
		what += fmt.Sprintf(" is the same as version %d, which it has now", service.GetRevision())
	}
	switch {
	case update.GetFailedTemplateVersion() == service.GetTemplateVersion():
		return wire.Errorf(wire.CodeFailedPrecondition, "service %q: %s; the update to it failed and was rolled back: mend the cause, then try again with `swarmctl service update --force %s`", name, what, name)
	case update.Paused():
		return wire.Errorf(wire.CodeFailedPrecondition, "service %q: %s; the update to it is paused: go on with `swarmctl service resume %s`, or back with `swarmctl service abort %s`", name, what, name, name)
	}
	return wire.Errorf(wire.CodeFailedPrecondition, "service %q: %s; choose another one, which `swarmctl service history %s` shows", name, what, name)
}

// goBack is the change to an earlier spec. Its template is used again where it is kept, so that tasks that have it stay.
func (s *Server) goBack(view *store.View, service *swarmpb.Service, version uint64, target earlier, author, cause string) (*change, error) {
	name, spec := service.GetSpec().GetName(), swarmpb.Clone(target.spec)
	refuse := func(err error) error {
		return wire.Errorf(wire.CodeOf(err), "service %q cannot go back to %s: %w", name, target.named(), err)
	}
	for _, a := range spec.GetTask().GetNetworks() {
		if view.Network(a.GetNetwork()) == nil {
			return nil, refuse(wire.Errorf(wire.CodeFailedPrecondition, "it is in network %s, which is gone; "+
				"update the service to what you want of that version instead, and name the networks that it is to be in", a.GetNetwork()))
		}
	}
	if err := checkUpdate(service, spec); err != nil {
		return nil, refuse(err)
	}
	if err := checkReach(view, service.GetId(), spec); err != nil {
		return nil, refuse(err)
	}
	if spec.GetMode().GetReplicated().GetReplicas() > service.GetSpec().GetMode().GetReplicated().GetReplicas() {
		if err := s.checkSpace(view, "service \""+name+"\""); err != nil {
			return nil, err
		}
	}
	if !standsFor(view.Template(service.GetId(), target.template), spec) {
		target.template = 0
	}
	c := &change{id: service.GetId(), before: service.GetSpec(), after: spec, warnings: warnings(view, spec)}
	c.replace(view, service, version, replacement{
		spec: spec, template: target.template, auth: cmp.Or(service.RegistryAuthFor(imageOf(spec)), target.auth), author: author, cause: cause,
	})
	return c, nil
}

// standsFor tells whether tasks of the spec are made from the template.
func standsFor(template *swarmpb.Template, spec *swarmpb.ServiceSpec) bool {
	return template != nil && !swarmpb.TemplateChanged(
		&swarmpb.ServiceSpec{Task: template.GetSpec(), Endpoint: &swarmpb.EndpointSpec{Ports: template.GetHostPorts()}}, spec)
}
