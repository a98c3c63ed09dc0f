package worker

import (
	"context"
	"math"
	"sync"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// answerStream is one answer's way to the manager. Its frames wait for credit, so that nobody on the way has to hold more
// than was asked for.
type answerStream struct {
	send func(*swarmpb.RelayFrame) error

	mu     sync.Mutex
	frames uint32
	credit chan struct{} // poked when frames has grown
}

func (s *answerStream) grant(frames uint32) {
	s.mu.Lock()
	s.frames += min(frames, math.MaxUint32-s.frames)
	s.mu.Unlock()
	poke(s.credit)
}

// put sends a frame once there is credit.
func (s *answerStream) put(ctx context.Context, frame *swarmpb.RelayFrame) error {
	for {
		s.mu.Lock()
		ok := s.frames > 0
		if ok {
			s.frames--
		}
		s.mu.Unlock()
		if ok {
			return s.send(frame)
		}
		select {
		case <-s.credit:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// beat says that the answer goes on.
func (s *answerStream) beat() error { return s.send(&swarmpb.RelayFrame{}) }
