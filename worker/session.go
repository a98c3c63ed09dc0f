package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// aboutManagers names problems of reaching the managers.
const aboutManagers = "managers"

// link holds a session with some manager at all times, as far as there is one to be had.
type link struct {
	cfg      Config
	log      *slog.Logger
	db       *db
	fleet    *fleet
	reports  *reporter
	issues   *problems
	managers *managers
	bootID   string
	// beatEvery is the beat interval of the last session; run alone uses it.
	beatEvery time.Duration

	space *space
	clock clock
	// described is poked when the description is another one.
	described chan struct{}

	// applied is the version to acknowledge in this session; news is poked when it has grown.
	applied atomic.Uint64
	news    chan struct{}

	mu        sync.Mutex
	connected string
	refused   bool
	// took is the version of the newest set of this session that the tasks were taken from.
	took uint64
}

func newLink(cfg Config, db *db, fleet *fleet, reports *reporter, issues *problems) *link {
	return &link{
		cfg: cfg, log: cfg.Logger, db: db, fleet: fleet, reports: reports, issues: issues,
		managers: newManagers(cfg.Managers, cfg.Seed), news: make(chan struct{}, 1), described: make(chan struct{}, 1),
	}
}

func (l *link) connectedTo() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.connected
}

// describe is what the managers are told of this host.
func (l *link) describe(ctx context.Context) *swarmpb.NodeDescription {
	d := describe(ctx, l.cfg)
	d.TakesNoTasks = l.space.takesNone()
	return d
}

func (l *link) setConnected(address string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.connected = address
	l.fleet.linked.Store(address != "")
}

// run holds one session after the other until ctx ends. The first try after a session that was of use comes quickly
// and elsewhere; after that the pauses grow, also over managers that take a session and then are of no use.
func (l *link) run(ctx context.Context, k kept) error {
	l.bootID = swarmpb.NewID()
	l.refused = false
	if l.managers.learn(k.managers) {
		l.learned(k.managers)
	}
	pause := backoff{min: l.cfg.Limits.ReconnectMin, max: l.cfg.Limits.ReconnectMax}
	for ctx.Err() == nil {
		address, ok := l.managers.pick()
		err, ofUse := errors.New("none is known"), false
		if ok {
			ofUse, err = l.hold(ctx, address)
			l.setConnected("")
			l.managers.outcome(ofUse)
		}
		if ctx.Err() != nil {
			return nil
		}
		if ofUse {
			pause.reset()
		}
		wait := pause.next(l.managers.jitter)
		switch {
		case wire.CodeOf(err) == wire.CodePermissionDenied:
			l.refuse(err)
			wait = refusedPause
		case ofUse && (wire.CodeOf(err) == wire.CodeUnavailable || errors.Is(err, errLeave)):
			wait = time.Duration(l.managers.jitter() * float64(spread(l.fleet.reach.nodes(), l.cfg.Limits.ReconnectMin, l.beatEvery)))
		}
		if l.issues.set(aboutManagers, err) {
			l.log.Warn("no session with a manager", "manager", address, "error", err)
		}
		if !sleep(ctx, wait) {
			return nil
		}
	}
	return nil
}

const (
	// reconnectPerNode is for how long one more node spreads the workers of a manager that stops or is lost: they do not come
	// to the others all in the same instant, where a handshake takes some milliseconds. spreadBeats bounds it in beats: half of
	// the lease after which a manager that lives, and lost the connection alone, would call the node down.
	reconnectPerNode = 800 * time.Microsecond
	spreadBeats      = 3
)

// spread is how long the workers of a manager that stops or is lost take to come to the others, in a cluster of so many nodes.
func spread(nodes int, atLeast, beat time.Duration) time.Duration {
	return max(atLeast, min(time.Duration(nodes)*reconnectPerNode, spreadBeats*beat))
}

// refuse tells once that this node is wanted no more.
func (l *link) refuse(err error) {
	if l.refused || l.cfg.Refused == nil {
		return
	}
	l.refused = true
	l.cfg.Refused(err)
}

// hold opens a session and keeps it until it ends, for the reason that the error says. It was of use when the manager
// has answered a beat, or, as one of an older version never does, when it lasted for a while.
func (l *link) hold(ctx context.Context, address string) (ofUse bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := l.cfg.Dial(ctx, address)
	if err != nil {
		return false, fmt.Errorf("connect to manager %s: %w", address, err)
	}
	defer conn.Close()
	client := swarmpb.NewDispatcherClient(conn)

	description := l.describe(ctx)
	late := time.AfterFunc(l.managers.patience(l.cfg.Limits.Connect), cancel)
	defer late.Stop()
	stream, first, err := l.greet(ctx, client, description)
	if err != nil {
		if ctx.Err() != nil {
			err = errors.New("no answer in time")
		}
		return false, fmt.Errorf("open a session with manager %s: %w", address, err)
	}
	if !late.Stop() {
		return false, fmt.Errorf("open a session with manager %s: no answer in time", address)
	}
	listed := l.managers.listed(address)
	l.began(address, first)

	l.beatEvery = beatInterval(first)
	b := newBeats(l.beatEvery)
	group, ctx := errgroup.WithContext(ctx)
	interval := make(chan time.Duration, 1)
	interval <- b.interval
	group.Go(func() error { return l.beat(ctx, stream, b, description, interval) })
	group.Go(func() error { return l.hear(stream, address, b, interval) })
	group.Go(func() error { return l.attend(ctx, address, listed, b) })
	group.Go(func() error { return l.follow(ctx, client, first.GetSessionId()) })
	group.Go(func() error { return l.reports.run(ctx, client, first.GetSessionId()) })
	group.Go(func() error { return l.relay(ctx, address) })
	// Whatever ends first ends the streams of the others, even where they block in the transport.
	context.AfterFunc(ctx, cancel)
	err = wire.FromStatus(group.Wait())
	var silence *silentError
	switch {
	case b.answers() > 0:
		ofUse = true
	case errors.As(err, &silence):
		// It may be that an older version has taken the manager's place: the next session does without answers.
		l.managers.answers(address, false)
	case !l.managers.expects(address):
		ofUse = time.Since(b.began) > l.cfg.Limits.Answer
	}
	return ofUse, fmt.Errorf("session with manager %s: %w", address, err)
}

// began notes a new session.
func (l *link) began(address string, first *swarmpb.SessionResponse) {
	l.mu.Lock()
	l.took = 0
	l.applied.Store(0)
	l.mu.Unlock()
	poke(l.news) // the first beat goes at once: its answer is the first contact
	l.setConnected(address)
	l.issues.set(aboutManagers, nil)
	if l.refused {
		l.refused = false
		l.cfg.Refused(nil)
	}
	l.log.Info("session with a manager", "manager", address)
	l.heard(first)
}

type sessionStream = grpc.BidiStreamingClient[swarmpb.SessionRequest, swarmpb.SessionResponse]

func (l *link) greet(ctx context.Context, client swarmpb.DispatcherClient, d *swarmpb.NodeDescription) (sessionStream, *swarmpb.SessionResponse, error) {
	stream, err := client.Session(ctx)
	if err != nil {
		return nil, nil, wire.FromStatus(err)
	}
	hello := &swarmpb.SessionHello{Description: d, BootId: l.bootID, ListenAddress: l.cfg.ListenAddress}
	// An error of Send only says that the stream is over; Recv says why.
	_ = stream.Send(&swarmpb.SessionRequest{Message: &swarmpb.SessionRequest_Hello{Hello: hello}})
	first, err := stream.Recv()
	if err != nil {
		return nil, nil, wire.FromStatus(err)
	}
	if first.GetSessionId() == "" {
		return nil, nil, errors.New("the manager gave the session no ID")
	}
	return stream, first, nil
}

func (l *link) heard(r *swarmpb.SessionResponse) {
	if l.managers.learn(r.GetManagers()) {
		l.db.set(bucketNode, keyManagers, &swarmpb.SessionResponse{Managers: r.GetManagers()})
		l.learned(r.GetManagers())
	}
}

func (l *link) learned(peers []*swarmpb.ManagerPeer) {
	l.fleet.tell.learned(peers)
	if l.cfg.Learned != nil {
		l.cfg.Learned(peers)
	}
}

// follow applies sets of assignments, and asks anew for the full set when one does not fit on what it holds.
func (l *link) follow(ctx context.Context, client swarmpb.DispatcherClient, session string) error {
	pause := backoff{min: l.cfg.Limits.RetryMin, max: l.cfg.Limits.ReconnectMax}
	for {
		err := l.stream(ctx, client, session, &pause)
		var bad *badSetError
		if !errors.As(err, &bad) {
			return err
		}
		l.log.Warn("asking for all assignments anew", "reason", err)
		if !sleep(ctx, pause.next(nil)) {
			return ctx.Err()
		}
	}
}

func (l *link) stream(ctx context.Context, client swarmpb.DispatcherClient, session string, pause *backoff) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := client.Assignments(ctx, &swarmpb.AssignmentsRequest{SessionId: session})
	if err != nil {
		return err
	}
	var assembly assembly
	for {
		chunk, err := stream.Recv()
		if err != nil {
			return err
		}
		set, err := assembly.add(chunk)
		if err != nil {
			return err
		}
		if set == nil {
			continue
		}
		if err := l.fleet.apply(ctx, set); err != nil {
			return err
		}
		pause.reset()
		l.mu.Lock()
		l.took = set.version
		l.mu.Unlock()
		if l.fleet.reach.holds() {
			l.acknowledge()
		}
	}
}

// acknowledge tells the manager of the session's newest set, which the kernel holds now.
func (l *link) acknowledge() {
	l.mu.Lock()
	l.applied.Store(l.took)
	l.mu.Unlock()
	poke(l.news)
}
