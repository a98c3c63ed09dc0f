package relay

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// flow is one answer on its way through this manager: frames one way, credit for more the other. It holds no frame: one
// side waits for the other.
type flow struct {
	ctx    context.Context // ends when nobody wants the rest
	frames chan *swarmpb.RelayFrame
	// done is closed when no more frames come, for the reason err: nil at the end of the answer.
	done chan struct{}
	once sync.Once
	err  error

	mu      sync.Mutex
	granted uint32
	credit  chan struct{} // poked when granted has grown
}

func newFlow(ctx context.Context) *flow {
	return &flow{ctx: ctx, frames: make(chan *swarmpb.RelayFrame), done: make(chan struct{}), credit: make(chan struct{}, 1)}
}

func (f *flow) end(err error) {
	f.once.Do(func() {
		f.err = err
		close(f.done)
	})
}

// grant lets the sender send so many more frames.
func (f *flow) grant(frames uint32) {
	f.mu.Lock()
	f.granted += min(frames, 1<<20)
	f.mu.Unlock()
	select {
	case f.credit <- struct{}{}:
	default:
	}
}

func (f *flow) takeCredit() uint32 {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.granted
	f.granted = 0
	return n
}

// carry moves frames from recv into the flow and credit from it to send, until either side has had enough. It returns
// before recv does where recv blocks: its caller then ends the call that recv belongs to.
func (f *flow) carry(ctx context.Context, recv func() (*swarmpb.RelayFrame, error), send func(*swarmpb.RelayCredit) error) {
	over := make(chan error, 1)
	go func() { over <- f.receive(recv) }()
	for {
		select {
		case <-f.credit:
			if n := f.takeCredit(); n > 0 {
				if err := send(&swarmpb.RelayCredit{Frames: n}); err != nil && !errors.Is(err, io.EOF) {
					f.end(err)
					return
				}
			}
		case err := <-over:
			f.end(err)
			return
		case <-f.ctx.Done():
			f.end(f.ctx.Err())
			return
		case <-ctx.Done():
			f.end(wire.Errorf(wire.CodeUnavailable, "the answer was cut off"))
			return
		}
	}
}

func (f *flow) receive(recv func() (*swarmpb.RelayFrame, error)) error {
	for {
		frame, err := recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return wire.FromStatus(err)
		case proto.Size(frame) > maxFrame:
			return wire.Errorf(wire.CodeResourceExhausted, "it sent a frame of %d bytes, more than %d", proto.Size(frame), maxFrame)
		}
		select {
		case f.frames <- frame:
		case <-f.ctx.Done():
			return f.ctx.Err()
		}
	}
}

// next is the next frame; io.EOF at the end. A sender that is silent for limit has failed.
func (f *flow) next(limit time.Duration) (*swarmpb.RelayFrame, error) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case frame := <-f.frames:
		return frame, nil
	case <-f.done:
		if f.err != nil {
			return nil, f.err
		}
		return nil, io.EOF
	case <-f.ctx.Done():
		return nil, f.ctx.Err()
	case <-timer.C:
		return nil, wire.Errorf(wire.CodeDeadline, "no answer")
	}
}
