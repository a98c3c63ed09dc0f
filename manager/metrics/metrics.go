// Package metrics asks for the metrics of canaries: while a service is updated step by step, it sends the query that
// the service names to Prometheus, or to what speaks like it, and writes down what that says.
//
// It promises: a value that is out of its bounds is written at once, with since when; no answer, no data or NaN is "not
// known", which is said and never counts as a failure; what changes nothing is not written. Requests are bounded in
// number, time and size. It alone writes ServiceMetric rows, on the leader.
package metrics

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

const (
	// lookEvery is how often the services are looked at.
	lookEvery = time.Second
	// maxAsking is the most queries under way; who waits longest is next.
	maxAsking = 16
	// writeEvery is the least time between two writes of a service that only tell another value.
	writeEvery = 5 * time.Second
	// writeTimeout bounds a write.
	writeTimeout = 5 * time.Second
)

// Config is what an Asker needs.
type Config struct {
	Store  *store.Store
	Leader store.Leader
	// Transport sends the queries; http.DefaultTransport's settings by default.
	Transport http.RoundTripper
	// Logger defaults to slog.Default().
	Logger *slog.Logger
}

// Asker asks for the metrics of all canaries.
type Asker struct {
	store  *store.Store
	leader store.Leader
	client *http.Client
	log    *slog.Logger
}

// New makes an Asker.
func New(cfg Config) (*Asker, error) {
	if cfg.Store == nil || cfg.Leader == nil {
		return nil, errors.New("metrics: store and leader are required")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Asker{store: cfg.Store, leader: cfg.Leader, client: newClient(cfg.Transport), log: cfg.Logger}, nil
}

// turn is when a service's metric is asked for.
type turn struct {
	next time.Time
	// wrote is when its row was last written.
	wrote time.Time
	busy  bool
}

// asked is what came of a turn.
type asked struct {
	service string
	// wrote: there was something new, and it is written; failed: it could not be written.
	wrote, failed bool
}

// Run asks until ctx ends or the term is over. Nothing of it runs when it returns.
func (a *Asker) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	turns, done := make(map[string]*turn), make(chan asked, maxAsking)
	g.Go(func() error {
		ticker := time.NewTicker(lookEvery)
		defer ticker.Stop()
		asking := 0
		for {
			view := a.store.View()
			if err := a.tidy(ctx, view, turns); err != nil {
				return err
			}
			now := time.Now()
			for _, id := range due(turns, now, maxAsking-asking) {
				t, service := turns[id], view.Service(id)
				t.busy, t.next = true, now.Add(service.GetSpec().GetUpdate().GetCanaryMetric().IntervalOr())
				asking++
				update, wrote := subject(view, service), t.wrote
				g.Go(func() error {
					one, err := a.turn(ctx, service, update, wrote)
					done <- one // never blocks: there is room for as many as ask
					return err
				})
			}
			for waiting := true; waiting; {
				select {
				case one := <-done:
					asking--
					a.ended(turns, one)
				case <-ticker.C:
					waiting = false
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
	})
	return g.Wait()
}

func (a *Asker) ended(turns map[string]*turn, one asked) {
	t := turns[one.service]
	if t == nil {
		return
	}
	t.busy = false
	switch {
	case one.wrote:
		t.wrote = time.Now()
	case one.failed:
		t.next = time.Now()
	}
}

// due are the services whose turn it is, at most so many, the longest overdue first.
func due(turns map[string]*turn, now time.Time, most int) []string {
	var ids []string
	for id, t := range turns {
		if !t.busy && !t.next.After(now) {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(x, y string) int { return cmp.Or(turns[x].next.Compare(turns[y].next), cmp.Compare(x, y)) })
	return ids[:min(len(ids), most)]
}

// tidy gives each canary a turn, and takes it and what was known from the services that are none any more.
func (a *Asker) tidy(ctx context.Context, view *store.View, turns map[string]*turn) error {
	for id := range turns {
		if service := view.Service(id); service == nil || subject(view, service) == nil {
			delete(turns, id)
		}
	}
	for service := range view.Services() {
		id := service.GetId()
		switch metric := view.ServiceMetric(id); {
		case subject(view, service) != nil:
			if turns[id] == nil {
				turns[id] = &turn{}
			}
		case metric != nil:
			key := swarmpb.ServiceMetricKey(id)
			if _, err := a.propose(ctx, metric, id, &swarmpb.Write{Op: &swarmpb.Write_Delete{Delete: key}}); err != nil {
				return err
			}
		}
	}
	return nil
}

// subject is the update that a service's metric is about; nil when nobody is to ask: among others while the new version has
// had no connections yet, of which the metric would say what it is without that version.
func subject(view *store.View, service *swarmpb.Service) *swarmpb.UpdateStatus {
	update := view.ServiceProgress(service.GetId()).GetUpdate()
	forward := update.GetState() == swarmpb.UpdateState_UPDATE_STATE_UPDATING || update.GetState() == swarmpb.UpdateState_UPDATE_STATE_PAUSED
	if !forward || update.GetShare() == 0 && !update.Paused() || service.GetRemoving() || update.GetStrategy() != swarmpb.UpdateStrategy_UPDATE_STRATEGY_CANARY ||
		update.GetPhase() == swarmpb.RolloutPhase_ROLLOUT_PHASE_RETURNING || service.GetSpec().GetUpdate().GetCanaryMetric() == nil {
		return nil
	}
	return update
}

// turn asks for the metric of a service's update and writes what is new about it; wrote is when it was last written. What
// is another update, or another query, by the time of the answer has its own turn.
func (a *Asker) turn(ctx context.Context, service *swarmpb.Service, update *swarmpb.UpdateStatus, wrote time.Time) (asked, error) {
	id, metric := service.GetId(), service.GetSpec().GetUpdate().GetCanaryMetric()
	found := a.ask(ctx, metric)
	if ctx.Err() != nil {
		return asked{service: id}, ctx.Err()
	}
	view, now := a.store.View(), time.Now()
	current := view.Service(id)
	if current == nil || subject(view, current).GetStartedAt() != update.GetStartedAt() || !proto.Equal(current.GetSpec().GetUpdate().GetCanaryMetric(), metric) {
		return asked{service: id}, nil
	}
	old := view.ServiceMetric(id)
	next := found.row(current, update, old, now)
	if !news(old, next, now.Sub(wrote) >= writeEvery) {
		return asked{service: id}, nil
	}
	written, err := a.propose(ctx, old, id, &swarmpb.Write{Op: &swarmpb.Write_Put{Put: &swarmpb.Row{Row: &swarmpb.Row_ServiceMetric{ServiceMetric: next}}}})
	return asked{id, written, !written}, err
}

// propose writes the row of a service in place of old. That somebody was faster, or that there is no quorum just now, is
// no error: the next turn tells it anew.
func (a *Asker) propose(ctx context.Context, old *swarmpb.ServiceMetric, service string, write *swarmpb.Write) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	_, err := a.leader.Propose(ctx, &swarmpb.Proposal{
		Term: a.leader.Term(), Now: time.Now().UnixNano(), Writes: []*swarmpb.Write{write},
		Guards: []*swarmpb.Guard{{Key: swarmpb.ServiceMetricKey(service), Version: old.GetMeta().GetVersion()}},
	})
	var conflict *store.ConflictError
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, store.ErrStaleTerm):
		return false, err
	case !errors.As(err, &conflict) && ctx.Err() == nil:
		a.log.Warn("could not write what a canary's metric says; trying again", "service", service, "error", err)
	}
	return false, nil
}
