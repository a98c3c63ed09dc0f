package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// Bounds of what a node answers to its manager.
const (
	// maxAnswers under way at a time; each holds some files open and a few hundred KiB at most. One user may follow 200
	// tasks, which may all be here.
	maxAnswers = 256
	// maxRefusals bounds the answers that only say that there are too many; further requests get none.
	maxRefusals = 16
	// relayBeat is how often an answer with nothing to say shows that it lives.
	relayBeat = time.Second
	// answerEnd is how long the manager has to take note of an answer's end.
	answerEnd = 5 * time.Second
	// relayRetryMin and relayRetryMax bound the pause before the manager is offered requests again, relayOld is the pause
	// after one that knows no requests.
	relayRetryMin, relayRetryMax, relayOld = 200 * time.Millisecond, 5 * time.Second, time.Minute
)

// relay takes the requests of the session's manager and answers them, until ctx ends. It has a connection of its own: what
// it sends must not delay beats.
func (l *link) relay(ctx context.Context, address string) error {
	if l.cfg.LogDir == nil {
		return nil
	}
	pause := backoff{min: relayRetryMin, max: relayRetryMax}
	for {
		began := time.Now()
		err := l.serveRelay(ctx, address)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > relayRetryMax {
			pause.reset()
		}
		wait := pause.next(l.managers.jitter)
		if wire.CodeOf(err) == wire.CodeUnimplemented {
			wait = relayOld
		}
		l.log.Debug("no requests can be taken from the manager", "manager", address, "error", err)
		if !sleep(ctx, wait) {
			return nil
		}
	}
}

func (l *link) serveRelay(ctx context.Context, address string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := l.cfg.Dial(ctx, address)
	if err != nil {
		return err
	}
	defer conn.Close()
	a := &answers{
		fleet: l.fleet, client: swarmpb.NewRelayClient(conn), log: l.log,
		under: make(chan struct{}, maxAnswers), refusals: make(chan struct{}, maxRefusals),
	}
	stream, err := a.client.Serve(ctx, &swarmpb.RelayServeRequest{})
	if err != nil {
		return wire.FromStatus(err)
	}
	defer a.wait()
	defer cancel()
	for {
		req, err := stream.Recv()
		if err != nil {
			return wire.FromStatus(err)
		}
		a.begin(ctx, req)
	}
}

// answers are those under way to one manager.
type answers struct {
	fleet  *fleet
	client swarmpb.RelayClient
	log    *slog.Logger
	// under has one entry an answer, refusals one a refusal.
	under, refusals chan struct{}
}

// wait returns when all have ended.
func (a *answers) wait() {
	for _, c := range []chan struct{}{a.under, a.refusals} {
		for range cap(c) {
			c <- struct{}{}
		}
	}
}

// begin answers in the background.
func (a *answers) begin(ctx context.Context, req *swarmpb.RelayRequest) {
	places, work := a.under, func(ctx context.Context, s *answerStream) error { return a.fleet.answer(ctx, req, s) }
	select {
	case places <- struct{}{}:
	default:
		places, work = a.refusals, func(context.Context, *answerStream) error {
			return fmt.Errorf("it answers %d requests already; try again later, or ask for less", maxAnswers)
		}
		select {
		case places <- struct{}{}:
		default:
			return
		}
	}
	go func() {
		defer func() { <-places }()
		if err := a.answer(ctx, req.GetId(), work); err != nil && ctx.Err() == nil {
			a.log.Debug("an answer to a manager ended early", "error", err)
		}
	}()
}

// answer opens the call, has work fill it, and waits until the manager has it all.
func (a *answers) answer(ctx context.Context, id string, work func(context.Context, *answerStream) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := a.client.Answer(ctx)
	if err != nil {
		return err
	}
	s := &answerStream{send: stream.Send, credit: make(chan struct{}, 1)}
	if err := stream.Send(&swarmpb.RelayFrame{RequestId: id}); err != nil {
		return err
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		defer cancel() // the manager wants no more of it
		for {
			credit, err := stream.Recv()
			if err != nil {
				return
			}
			s.grant(credit.GetFrames())
		}
	}()
	// Nothing of it may go on once answer returns: work uses what belongs to it.
	defer func() { cancel(); <-over }()
	if err := work(ctx, s); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := stream.Send(&swarmpb.RelayFrame{Error: oneLine(err.Error())}); err != nil {
			return err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	select {
	case <-over:
	case <-time.After(answerEnd):
		return errors.New("the manager does not end the call")
	}
	return nil
}

// answer does what is asked.
func (f *fleet) answer(ctx context.Context, req *swarmpb.RelayRequest, s *answerStream) error {
	if q := req.GetLogs(); q != nil {
		return f.streamLogs(ctx, q, s)
	}
	return errors.New("this version of swarmd does not know the request")
}
