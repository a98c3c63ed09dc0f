package relay

import (
	"context"
	"runtime"
	"strings"
	"testing"

	"google.golang.org/grpc"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// BenchmarkFollow carries the log of one task from its node over two managers to the user, in frames as nodes send them
// and without TLS. It reports MB/s and the heap that has grown by its end.
func BenchmarkFollow(b *testing.B) {
	w := newWorld(b, "m1", "m2")
	n := w.serve("node-1", "m2")
	b.Cleanup(n.disconnect)
	id := w.task(1, 1, "node-1", running)
	frame := strings.Repeat(record(1, strings.Repeat("x", 100)), 64<<10/141)
	n.answer = func(ctx context.Context, req *swarmpb.RelayRequest, client swarmpb.RelayClient) {
		stream, err := client.Answer(ctx)
		if err != nil {
			return
		}
		_ = stream.Send(&swarmpb.RelayFrame{RequestId: req.GetId()})
		for {
			credit, err := stream.Recv()
			if err != nil {
				return
			}
			for range credit.GetFrames() {
				_ = stream.Send(&swarmpb.RelayFrame{Kind: &swarmpb.RelayFrame_Logs{Logs: &swarmpb.LogFrame{Records: []byte(frame)}}})
			}
		}
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	b.SetBytes(int64(len(frame)))
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	got := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = w.at("m1").Stream(&swarmpb.LogsStreamRequest{Target: id, Follow: true}, &countingStream{ctx: ctx, got: got})
	}()
	for b.Loop() {
		<-got
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(int64(after.HeapAlloc)-int64(before.HeapAlloc))/1e6, "MB-heap")
	cancel()
	<-done
}

// countingStream hands out a token for each batch.
type countingStream struct {
	grpc.ServerStreamingServer[swarmpb.LogsStreamResponse]
	ctx context.Context
	got chan struct{}
}

func (s *countingStream) Context() context.Context { return s.ctx }

func (s *countingStream) Send(m *swarmpb.LogsStreamResponse) error {
	if m.GetBatch() == nil {
		return nil
	}
	select {
	case s.got <- struct{}{}:
		return nil
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}
