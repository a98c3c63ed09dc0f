package sim

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/swarmd/swarmd/e2e/history"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

const (
	// patience is how long a user waits for one answer, and persistence how long one tries for the same effect.
	patience    = 6 * time.Second
	persistence = 90 * time.Second
	// valueLabel of a service says which write made its spec.
	valueLabel = "value"
	// networkOfAll is one that services of all clients attach to.
	networkOfAll = "back"
	// journal is the service to whose value everybody appends.
	journal = "journal"
)

// clients work with the cluster as users on the managers do, each through any of them. The registers they share: what
// they see of those is a history. The other services have one client each, which knows what it must see.
type clients struct {
	w       *world
	history *history.History
	// ledgers are by client.
	ledgers [clientCount]ledger
	appends appends
	// answers that were good, that said no, that were stale, and calls without any.
	good, refused, stale, lost atomic.Int64
}

// ledger is what was acknowledged: service name -> the value of its spec, "" for a service that is removed. A service
// of which that is not known is not in it.
type ledger map[string]string

func newClients(w *world) *clients {
	c := &clients{w: w, history: history.New()}
	for i := range c.ledgers {
		c.ledgers[i] = ledger{}
	}
	return c
}

// found makes the registers, the journal, and the services that may run once.
func (c *clients) found() error {
	if err := c.one(operation{}, 0, func(ctx context.Context, api swarmpb.ControlServer) error {
		_, err := api.CreateNetwork(ctx, &swarmpb.CreateNetworkRequest{Spec: &swarmpb.NetworkSpec{Name: networkOfAll}})
		return err
	}); err != nil {
		return err
	}
	for i := range registers + 1 {
		o := operation{kind: opCreate, service: fmt.Sprintf("register%d", i), value: "", replicas: 1, image: "nginx:1", attached: i == 0}
		if i == registers {
			o.service = journal
		}
		if err := c.one(o, 0, func(ctx context.Context, api swarmpb.ControlServer) error {
			_, err := api.CreateService(ctx, &swarmpb.CreateServiceRequest{Spec: o.spec()})
			return err
		}); err != nil {
			return err
		}
	}
	for i := range singles {
		if err := c.makeSingle(fmt.Sprintf("single%d", i)); err != nil {
			return err
		}
	}
	return nil
}

// makeSingle makes a service of one task that stops where it is cut off, so that it never runs twice.
func (c *clients) makeSingle(name string) error {
	single := spec(name, 1)
	single.Task.StopAfterDisconnect = durationpb.New(5 * time.Second)
	return c.one(operation{}, 0, func(ctx context.Context, api swarmpb.ControlServer) error {
		made, err := api.CreateService(ctx, &swarmpb.CreateServiceRequest{Spec: single})
		if err == nil {
			c.w.mu.Lock()
			c.w.singles[made.GetId()] = true
			c.w.mu.Unlock()
		}
		return err
	})
}

// work has every client do its operations, each at its time or when the one before is done.
func (c *clients) work(s *schedule, begin time.Time) *sync.WaitGroup {
	var all sync.WaitGroup
	for i, list := range s.clients {
		all.Go(func() {
			for _, o := range list {
				time.Sleep(time.Until(begin.Add(o.at)))
				c.do(i, o)
			}
		})
	}
	return &all
}

func (c *clients) do(client int, o operation) {
	switch o.kind {
	case opRead:
		c.readRegister(client, o.service, o.via)
	case opWrite:
		c.history.Write(client, o.service, o.value, func() history.Outcome { return c.write(o) })
	case opAppend:
		c.append(o)
	default:
		c.own(client, o)
	}
}

// spec is what an operation writes.
func (o operation) spec() *swarmpb.ServiceSpec {
	if o.shape != nil {
		return o.shape.spec(o)
	}
	s := spec(o.service, o.replicas)
	s.Labels = map[string]string{valueLabel: o.value}
	s.Task.Container.Image = o.image
	s.Task.Resources = &swarmpb.ResourceRequirements{Reservations: &swarmpb.Resources{NanoCpus: 250_000_000}}
	s.Update = &swarmpb.UpdateConfig{Order: swarmpb.UpdateOrder_UPDATE_ORDER_STOP_FIRST}
	if o.first {
		s.Update.Order = swarmpb.UpdateOrder_UPDATE_ORDER_START_FIRST
	}
	if s.Update.Strategy = o.strategy; o.strategy != swarmpb.UpdateStrategy_UPDATE_STRATEGY_UNSPECIFIED && o.strategy != swarmpb.UpdateStrategy_UPDATE_STRATEGY_ROLLING {
		s.Update.Order = swarmpb.UpdateOrder_UPDATE_ORDER_UNSPECIFIED
	}
	if o.strategy == swarmpb.UpdateStrategy_UPDATE_STRATEGY_CANARY {
		s.Update.CanarySteps = []*swarmpb.CanaryStep{
			{Share: 2000, Watch: durationpb.New(time.Second)}, {Share: 5000, Watch: durationpb.New(time.Second)}}
	}
	if o.strategy.Sets() {
		s.Update.PromoteGrace = durationpb.New(2 * time.Second)
	}
	if o.port != 0 {
		publish(s, o.port)
	}
	if o.mesh {
		onEveryNode(s)
	}
	if o.attached {
		attach(s, networkOfAll)
	}
	return s
}

// one asks one manager, the number-th from the operation's on.
func (c *clients) one(o operation, number int, ask func(context.Context, swarmpb.ControlServer) error) error {
	err := c.call(o, number, ask)
	switch {
	case err == nil:
		c.good.Add(1)
	case errors.Is(err, errStale):
		c.stale.Add(1)
	case definite(err):
		c.refused.Add(1)
	default:
		c.lost.Add(1)
	}
	return err
}

func (c *clients) call(o operation, number int, ask func(context.Context, swarmpb.ControlServer) error) error {
	managers := c.w.managers()
	api, life, err := managers[(o.via+number)%len(managers)].control()
	if err != nil {
		return errDown
	}
	ctx, cancel := context.WithTimeout(life, patience)
	defer cancel()
	headers := &headers{}
	err = ask(grpc.NewContextWithServerTransportStream(ctx, headers), api)
	if life.Err() != nil && err != nil {
		return fmt.Errorf("swarmd was killed: %v", err) // whatever it said
	}
	if _, stale := wire.StaleFrom(headers.md); stale {
		return errStale
	}
	return err
}

// headers takes those of an answer, as the server's end of a connection does.
type headers struct{ md metadata.MD }

func (h *headers) Method() string                  { return "" }
func (h *headers) SetHeader(md metadata.MD) error  { h.md = metadata.Join(h.md, md); return nil }
func (h *headers) SendHeader(md metadata.MD) error { return h.SetHeader(md) }
func (h *headers) SetTrailer(metadata.MD) error    { return nil }

// errStale: the answer says that it may be old. It says nothing about what was acknowledged.
var errStale = errors.New("the answer is stale")

// errDown: there was nobody to ask.
var errDown = errors.New("swarmd does not run")

// definite tells whether an answer says that nothing was done and nothing will be.
func definite(err error) bool {
	switch wire.CodeOf(err) {
	case wire.CodeConflict, wire.CodeNotFound, wire.CodeExists, wire.CodeInvalid:
		return true
	}
	return false
}

// write sets a register, whatever it is.
func (c *clients) write(o operation) history.Outcome {
	request := &swarmpb.UpdateServiceRequest{Service: o.service, Spec: o.spec(), RequestId: swarmpb.NewID()}
	outcome := history.Refused
	for number := range 4 {
		err := c.one(o, number, func(ctx context.Context, api swarmpb.ControlServer) error {
			_, err := api.UpdateService(ctx, request)
			return err
		})
		switch {
		case err == nil:
			return history.Done
		case errors.Is(err, errDown):
		case definite(err):
			return outcome // after an answer that was lost, this one is about that try too
		default:
			outcome = history.Unknown
		}
	}
	return outcome
}

func (c *clients) readRegister(client int, name string, via int) {
	_, err := c.history.Read(client, name, func() (string, error) {
		service, err := c.get(operation{service: name, via: via}, 0)
		return service.GetSpec().GetLabels()[valueLabel], err
	})
	if definite(err) {
		c.w.checks.violate("read of %s, which is there: %v", name, err)
	}
}

func (c *clients) get(o operation, number int) (service *swarmpb.Service, err error) {
	err = c.one(o, number, func(ctx context.Context, api swarmpb.ControlServer) error {
		response, err := api.GetService(ctx, &swarmpb.GetServiceRequest{Service: o.service})
		service = response.GetService().GetService()
		return err
	})
	return service, err
}

// own works with a service of the client's own: it tries until it has an answer, so that it knows what is there.
func (c *clients) own(client int, o operation) {
	mine := c.ledgers[client]
	if value, known := mine[o.service]; o.kind != opCreate && (!known || value == "") {
		return // it was never made, or that is not known
	}
	if o.kind == opLook {
		service, err := c.get(o, 0)
		c.compare(o.service, mine[o.service], service, err)
		return
	}
	delete(mine, o.service)
	request := swarmpb.NewID()
	deadline := time.Now().Add(persistence)
	for number := 0; time.Now().Before(deadline); number++ {
		err := c.one(o, number, func(ctx context.Context, api swarmpb.ControlServer) error { return ask(ctx, api, o, request) })
		switch code := wire.CodeOf(err); {
		case err == nil:
			mine[o.service] = o.value
			return
		case o.kind == opRemove && code == wire.CodeNotFound && number > 0:
			mine[o.service] = "" // by an earlier try
			return
		case o.kind == opCreate && code == wire.CodeExists, o.kind == opChange && code == wire.CodeConflict:
			// The one before is on its way out; or the update of an earlier try came between.
		case definite(err):
			c.w.checks.violate("%s: %v", o, err)
			return
		}
		time.Sleep(500 * time.Millisecond)
	}
}

func ask(ctx context.Context, api swarmpb.ControlServer, o operation, request string) (err error) {
	switch o.kind {
	case opCreate:
		_, err = api.CreateService(ctx, &swarmpb.CreateServiceRequest{Spec: o.spec(), RequestId: request})
	case opChange:
		_, err = api.UpdateService(ctx, &swarmpb.UpdateServiceRequest{Service: o.service, Spec: o.spec(), RequestId: request})
	case opRemove:
		_, err = api.RemoveService(ctx, &swarmpb.RemoveServiceRequest{Service: o.service, RequestId: request})
	}
	return err
}

// compare says whether a linearizable read shows what was acknowledged last.
func (c *clients) compare(name, want string, service *swarmpb.Service, err error) {
	switch got := service.GetSpec().GetLabels()[valueLabel]; {
	case err != nil && wire.CodeOf(err) != wire.CodeNotFound:
	case err == nil && service.GetRemoving():
		if want != "" {
			c.w.checks.violate("%s is being removed, its acknowledged spec is %s", name, want)
		}
	case got != want:
		c.w.checks.violate("%s reads %q, acknowledged is %q", name, got, want)
	}
}

// settle reads everything once more, through every manager.
func (c *clients) settle() {
	for via := range c.w.managers() {
		service, err := c.get(operation{service: journal, via: via}, 0)
		if err != nil {
			c.w.checks.violate("read of the journal through m%d: %v", via+1, err)
		} else if err := c.appends.check(service.GetSpec().GetLabels()[valueLabel]); err != nil {
			c.w.checks.violate("the journal through m%d: %v", via+1, err)
		}
		for i := range registers {
			c.readRegister(clientCount, fmt.Sprintf("register%d", i), via)
		}
		for _, mine := range c.ledgers {
			for name, value := range mine {
				service, err := c.get(operation{service: name, via: via}, 0)
				if err != nil && !definite(err) {
					c.w.checks.violate("read of %s through m%d: %v", name, via+1, err)
				}
				c.compare(name, value, service, err)
			}
		}
	}
}
