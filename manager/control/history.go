package control

import (
	"context"
	"slices"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// GetServiceHistory lists what is kept of a service's specs, the newest first, with what became of each.
func (s *Server) GetServiceHistory(ctx context.Context, req *swarmpb.GetServiceHistoryRequest) (*swarmpb.GetServiceHistoryResponse, error) {
	view, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	service, err := findService(view, req.GetService())
	if err != nil {
		return nil, err
	}
	outcomes := make(map[uint64]*swarmpb.RevisionOutcome)
	for _, outcome := range view.ServiceProgress(service.GetId()).GetOutcomes() {
		outcomes[outcome.GetRevision()] = outcome
	}
	// The orchestrator enters an outcome when it changes; how far an update is on its way there, the update says.
	if update := view.ServiceProgress(service.GetId()).GetUpdate(); update.Underway() && update.GetRevision() != 0 {
		outcomes[update.GetRevision()] = &swarmpb.RevisionOutcome{
			Revision: update.GetRevision(), State: update.GetState(), Message: update.GetMessage(), At: update.GetPhaseSince(),
		}
	}
	response := &swarmpb.GetServiceHistoryResponse{}
	for revision := range view.RevisionsOf(service.GetId()) {
		if revision.GetRegistryAuth() != nil {
			revision = swarmpb.Clone(revision)
			revision.RegistryAuth = nil
		}
		response.Revisions = append(response.Revisions, &swarmpb.RevisionInfo{
			Revision: revision, Outcome: outcomes[revision.GetRevision()], Current: revision.GetRevision() == service.GetRevision(),
		})
	}
	slices.Reverse(response.Revisions)
	return response, nil
}
