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
	"google.golang.org/protobuf/proto"

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

	// applied is the version to acknowledge in this session; news is poked when it has grown.
	applied atomic.Uint64
	news    chan struct{}

	mu        sync.Mutex
	connected string
	refused   bool
}

func newLink(cfg Config, db *db, fleet *fleet, reports *reporter, issues *problems) *link {
	return &link{
		cfg: cfg, log: cfg.Logger, db: db, fleet: fleet, reports: reports, issues: issues,
		managers: newManagers(cfg.Managers, cfg.Seed), news: make(chan struct{}, 1),
	}
}

func (l *link) connectedTo() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.connected
}

func (l *link) setConnected(address string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.connected = address
}

// run holds one session after the other until ctx ends. The first try after a lost session comes quickly.
func (l *link) run(ctx context.Context, k kept) error {
	l.bootID = swarmpb.NewID()
	l.refused = false
	if l.managers.learn(k.managers) {
		l.learned(k.managers)
	}
	pause := backoff{min: l.cfg.Limits.ReconnectMin, max: l.cfg.Limits.ReconnectMax}
	for ctx.Err() == nil {
		address, ok := l.managers.pick()
		var err error
		began := false
		if !ok {
			err = errors.New("none is known")
		} else {
			began, err = l.hold(ctx, address)
			l.setConnected("")
			l.managers.outcome(began)
		}
		if ctx.Err() != nil {
			return nil
		}
		if began {
			pause.reset()
		}
		wait := pause.next(l.managers.jitter)
		if wire.CodeOf(err) == wire.CodePermissionDenied {
			l.refuse(err)
			wait = refusedPause
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

// refuse tells once that this node is wanted no more.
func (l *link) refuse(err error) {
	if l.refused || l.cfg.Refused == nil {
		return
	}
	l.refused = true
	l.cfg.Refused(err)
}

// hold opens a session and keeps it; began says whether the manager answered. The error says why it ended.
func (l *link) hold(ctx context.Context, address string) (began bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := l.cfg.Dial(ctx, address)
	if err != nil {
		return false, fmt.Errorf("connect to manager %s: %w", address, err)
	}
	defer conn.Close()
	client := swarmpb.NewDispatcherClient(conn)

	description := describe(ctx, l.cfg)
	silent := time.AfterFunc(l.cfg.Limits.Connect, cancel)
	defer silent.Stop()
	stream, first, err := l.greet(ctx, client, description)
	if err != nil {
		if ctx.Err() != nil {
			err = errors.New("no answer in time")
		}
		return false, fmt.Errorf("open a session with manager %s: %w", address, err)
	}
	if !silent.Stop() {
		return false, fmt.Errorf("open a session with manager %s: no answer in time", address)
	}
	l.applied.Store(0)
	l.setConnected(address)
	l.issues.set(aboutManagers, nil)
	if l.refused {
		l.refused = false
		l.cfg.Refused(nil)
	}
	l.log.Info("session with a manager", "manager", address)
	l.heard(first)

	group, ctx := errgroup.WithContext(ctx)
	interval := make(chan time.Duration, 1)
	interval <- beatInterval(first)
	group.Go(func() error { return l.beat(ctx, stream, description, interval) })
	group.Go(func() error { return l.hear(stream, interval) })
	group.Go(func() error { return l.follow(ctx, client, first.GetSessionId()) })
	group.Go(func() error { return l.reports.run(ctx, client, first.GetSessionId()) })
	// Whatever ends first ends the streams of the others, even where they block in the transport.
	context.AfterFunc(ctx, cancel)
	return true, fmt.Errorf("session with manager %s: %w", address, wire.FromStatus(group.Wait()))
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

// beatInterval is what the manager asks for, within reason.
func beatInterval(r *swarmpb.SessionResponse) time.Duration {
	if r.GetBeatInterval() <= 0 {
		return 500 * time.Millisecond
	}
	return min(max(time.Duration(r.GetBeatInterval()), 10*time.Millisecond), 10*time.Second)
}

// beat alone sends on the stream: beats at the interval and when a version was applied, and a changed description.
func (l *link) beat(ctx context.Context, stream sessionStream, told *swarmpb.NodeDescription, interval <-chan time.Duration) error {
	ticker := time.NewTicker(<-interval)
	defer ticker.Stop()
	look := time.NewTicker(describeEvery)
	defer look.Stop()
	for {
		request := &swarmpb.SessionRequest{}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case d := <-interval:
			ticker.Reset(d)
			continue
		case <-ticker.C:
		case <-l.news:
		case <-look.C:
			now := describe(ctx, l.cfg)
			if proto.Equal(now, told) {
				continue
			}
			told = now
			request.Message = &swarmpb.SessionRequest_Description{Description: now}
		}
		if request.Message == nil {
			request.Message = &swarmpb.SessionRequest_Beat{Beat: &swarmpb.SessionBeat{AppliedVersion: l.applied.Load()}}
		}
		if err := stream.Send(request); err != nil {
			return err
		}
	}
}

// hear takes what the manager says of the managers.
func (l *link) hear(stream sessionStream, interval chan<- time.Duration) error {
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		l.heard(r)
		select {
		case interval <- beatInterval(r):
		default: // one is on its way; the next message, if it matters, comes with another
		}
	}
}

func (l *link) heard(r *swarmpb.SessionResponse) {
	if l.managers.learn(r.GetManagers()) {
		l.db.set(bucketNode, keyManagers, &swarmpb.SessionResponse{Managers: r.GetManagers()})
		l.learned(r.GetManagers())
	}
}

func (l *link) learned(peers []*swarmpb.ManagerPeer) {
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
		l.applied.Store(set.version)
		poke(l.news)
	}
}
