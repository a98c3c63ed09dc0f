package control

import (
	"cmp"
	"context"
	"strings"
	"time"
	"unicode"

	"google.golang.org/protobuf/proto"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// maxAuthor bounds what a caller calls himself, in bytes.
const maxAuthor = 128

// change is all that is decided of a service's new spec before anything is written: a write commits the proposal, a
// dry run hands it to the planner.
type change struct {
	// id is the service's.
	id string
	// before is the spec until now, nil for a new service; after is the spec as it would be stored.
	before, after *swarmpb.ServiceSpec
	// proposal is nil when nothing is to be written.
	proposal *swarmpb.Proposal
	// revision is the service's from then on.
	revision uint64
	warnings []string
	// asked is how long a registry was asked for, which is not the quorum's time.
	asked time.Duration
}

// commit writes the change.
func (s *Server) commit(caller, ctx context.Context, request string, c *change) error {
	if c.proposal == nil {
		return nil
	}
	ctx, done := extended(caller, ctx, c.asked)
	defer done()
	return s.write(ctx, request, c.proposal)
}

// checkAuthor refuses a name that a history cannot show.
func checkAuthor(author string) error {
	switch {
	case len(author) > maxAuthor:
		return wire.Errorf(wire.CodeInvalid, "author: %d bytes; at most %d are allowed", len(author), maxAuthor)
	case strings.ContainsFunc(author, unicode.IsControl):
		return wire.Errorf(wire.CodeInvalid, "author %q: it holds a control character; use one such as root@host", author)
	}
	return nil
}

// creation is the change that makes a service.
func (s *Server) creation(caller context.Context, view *store.View, request string, req *swarmpb.CreateServiceRequest) (*change, error) {
	if req.GetSpec() == nil {
		return nil, wire.Errorf(wire.CodeInvalid, "service: the spec is missing")
	}
	if err := checkAuthor(req.GetAuthor()); err != nil {
		return nil, err
	}
	id, spec := createdID(request), withDefaults(req.GetSpec())
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
	service := &swarmpb.Service{Id: id, Spec: spec, TemplateVersion: 1, RegistryAuth: auth, Revision: 1}
	return &change{
		id: id, after: spec, revision: 1, asked: time.Since(began), warnings: append(warnings(view, spec), said...),
		proposal: &swarmpb.Proposal{
			Guards: []*swarmpb.Guard{guard(swarmpb.ServiceKey(id), 0)},
			Writes: []*swarmpb.Write{putTemplate(id, 1, spec), putService(service), putRevision(service, req.GetAuthor(), "create")},
		},
	}, nil
}

// update is the change that gives a service the spec that its user wrote.
func (s *Server) update(caller context.Context, view *store.View, req *swarmpb.UpdateServiceRequest) (*change, error) {
	if req.GetSpec() == nil {
		return nil, wire.Errorf(wire.CodeInvalid, "service %q: the spec is missing", req.GetService())
	}
	if err := checkAuthor(req.GetAuthor()); err != nil {
		return nil, err
	}
	service, err := findService(view, req.GetService())
	if err != nil {
		return nil, err
	}
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
	c := &change{
		id: service.GetId(), before: service.GetSpec(), after: spec, revision: service.GetRevision(),
		asked: time.Since(began), warnings: append(warnings(view, spec), said...),
	}
	version := cmp.Or(req.GetVersion(), service.GetMeta().GetVersion())
	if proto.Equal(service.GetSpec(), spec) {
		return c, c.unchanged(view, service, auth, req.GetAuthor(), version)
	}
	if larger(service.GetSpec(), spec) {
		if err := s.checkSpace(view, "service \""+spec.GetName()+"\""); err != nil {
			return nil, err
		}
	}
	c.warnings = append(c.warnings, jobWarnings(view, service, spec)...)
	c.replace(view, service, version, replacement{spec: spec, auth: auth, author: req.GetAuthor(), cause: "update"})
	return c, nil
}

// unchanged is an update to the spec that the service has: it resumes one that is paused, and takes new credentials.
func (c *change) unchanged(view *store.View, service *swarmpb.Service, auth *swarmpb.RegistryAuth, author string, version uint64) error {
	next := swarmpb.Clone(service) // the way back stays what it was
	c.warnings = append(c.warnings, takeAuth(next, service, auth)...)
	if update := view.ServiceProgress(service.GetId()).GetUpdate(); update.Paused() {
		command(next, update, swarmpb.RolloutAction_ROLLOUT_ACTION_RESUME, author)
	}
	if !proto.Equal(next, service) {
		c.proposal = &swarmpb.Proposal{
			Guards: []*swarmpb.Guard{guard(swarmpb.ServiceKey(service.GetId()), version)},
			Writes: []*swarmpb.Write{putService(next)},
		}
	}
	return nil
}

// replacement is a spec that a service goes to.
type replacement struct {
	spec *swarmpb.ServiceSpec
	// template is the version that stands for the spec, where there is one already; 0 = as the spec says.
	template uint64
	// auth is for the registry of the spec's image; nil = what the service has for it.
	auth          *swarmpb.RegistryAuth
	author, cause string
}

// replace makes the proposal: the spec becomes the service's, as a new revision, and the one until now its previous one.
func (c *change) replace(view *store.View, service *swarmpb.Service, version uint64, to replacement) {
	id := service.GetId()
	next := &swarmpb.Service{
		Id: id, Spec: to.spec, TemplateVersion: to.template,
		PreviousSpec: service.GetSpec(), PreviousTemplateVersion: service.GetTemplateVersion(),
		Revision: max(service.GetRevision(), 1) + 1, Command: service.GetCommand(),
	}
	c.proposal = &swarmpb.Proposal{Guards: []*swarmpb.Guard{guard(swarmpb.ServiceKey(id), version)}}
	if to.template == 0 {
		next.TemplateVersion = service.GetTemplateVersion()
		if swarmpb.TemplateChanged(service.GetSpec(), to.spec) {
			// A revision brings at most one template, so that its number is none that was ever given, also where all else
			// has forgotten the highest.
			next.TemplateVersion = max(highestTemplate(view, service)+1, next.Revision)
			c.proposal.Writes = append(c.proposal.Writes, putTemplate(id, next.TemplateVersion, to.spec))
		}
	}
	c.warnings = append(c.warnings, takeAuth(next, service, to.auth)...)
	c.revision = next.Revision
	c.proposal.Writes = append(c.proposal.Writes, putService(next))
	if service.GetRevision() == 0 {
		// It was made before histories were kept: what it has been until now is its first version.
		first := swarmpb.Clone(service)
		first.Revision = 1
		c.proposal.Writes = append(c.proposal.Writes, putRevision(first, "", "before its history was kept"))
	}
	c.proposal.Writes = append(c.proposal.Writes, putRevision(next, to.author, to.cause))
}

func putTemplate(serviceID string, version uint64, spec *swarmpb.ServiceSpec) *swarmpb.Write {
	return put(&swarmpb.Row{Row: &swarmpb.Row_Template{Template: &swarmpb.Template{
		ServiceId: serviceID, Version: version, Spec: spec.GetTask(), HostPorts: spec.HostPorts(),
	}}})
}

func putService(service *swarmpb.Service) *swarmpb.Write {
	return put(&swarmpb.Row{Row: &swarmpb.Row_Service{Service: service}})
}

// putRevision writes the service's spec down in its history.
func putRevision(service *swarmpb.Service, author, cause string) *swarmpb.Write {
	at := time.Now().UnixNano()
	if service.GetMeta() != nil {
		at = service.GetMeta().GetUpdatedAt()
	}
	return put(&swarmpb.Row{Row: &swarmpb.Row_ServiceRevision{ServiceRevision: &swarmpb.ServiceRevision{
		ServiceId: service.GetId(), Revision: service.GetRevision(), Spec: service.GetSpec(), TemplateVersion: service.GetTemplateVersion(),
		At: at, Author: author, Cause: cause, RegistryAuth: service.GetRegistryAuth(),
	}}})
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
