package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/swarmd/swarmd/proto/wire"
)

const (
	// patience is how long a call is tried again while the managers have no leader: longer than an election takes.
	patience = 5 * time.Second
	// retryPause is between two tries.
	retryPause = 200 * time.Millisecond
)

// link carries calls to the manager on this host. It tries one again that met a change of leaders, which is safe: each
// write has a request ID, under which it takes effect once. How long one try may take is for the manager to say. It tells
// the user of answers that may be out of date.
type link struct {
	conn grpc.ClientConnInterface
	app  *app
}

// Invoke is a call with one answer.
func (l *link) Invoke(ctx context.Context, method string, req, reply any, opts ...grpc.CallOption) error {
	var lost time.Time // when the first try failed: what it had done until then, such as to ask a registry, is no waiting
	reached := false
	for {
		var header metadata.MD
		var from peer.Peer
		err := l.conn.Invoke(l.wish(ctx), method, req, reply, append(opts[:len(opts):len(opts)], grpc.Header(&header), grpc.Peer(&from))...)
		if err == nil {
			l.app.noteStale(header)
			return nil
		}
		if lost.IsZero() {
			lost = time.Now()
		}
		reached = reached || from.Addr != nil
		// Where no swarmd answered from the start, none runs here, and waiting for one would be in vain.
		if !errors.Is(err, wire.ErrUnavailable) && !errors.Is(err, wire.ErrNotLeader) || !reached || !sleep(ctx, l.app.patience-time.Since(lost)) {
			return err
		}
	}
}

// sleep waits for retryPause; false: ctx has ended, or less than that is left.
func sleep(ctx context.Context, left time.Duration) bool {
	if left < retryPause {
		return false
	}
	select {
	case <-time.After(retryPause):
		return true
	case <-ctx.Done():
		return false
	}
}

// NewStream is a call with many answers. It is not tried again.
func (l *link) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := l.conn.NewStream(l.wish(ctx), desc, method, opts...)
	if err != nil {
		return nil, err
	}
	return &notedStream{ClientStream: s, app: l.app}, nil
}

func (l *link) wish(ctx context.Context) context.Context {
	if l.app.stale {
		return wire.WithStale(ctx)
	}
	return ctx
}

// notedStream looks at the header that comes with the first message.
type notedStream struct {
	grpc.ClientStream
	app   *app
	noted bool
}

func (s *notedStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if err == nil && !s.noted {
		s.noted = true
		if header, err := s.Header(); err == nil {
			s.app.noteStale(header)
		}
	}
	return err
}

// noteStale warns of the first answer of a run that may be out of date.
func (a *app) noteStale(header metadata.MD) {
	read, stale := wire.StaleFrom(header)
	if !stale {
		return
	}
	a.warned.Do(func() {
		_, _ = fmt.Fprintln(a.err, "warning:", staleText(read))
	})
}

func staleText(read wire.StaleRead) string {
	switch age := read.Leaderless.Round(time.Second); {
	case !read.Known:
		return "no leader answers, and this manager has had no contact with one since it started: what is shown may be out of date"
	case age == 0:
		return "the leader was not asked: what is shown may be out of date"
	default:
		return fmt.Sprintf("no leader answers, and this manager has had no contact with one for %s: what is shown may be out of date", age)
	}
}
