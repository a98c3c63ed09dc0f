package node

import (
	"context"

	"google.golang.org/grpc"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// logsSwitch serves the user's API of logs on the local socket: by this host's manager, while there is one.
type logsSwitch struct {
	swarmpb.UnsafeLogsServer
	control controlSwitch
}

func (l logsSwitch) Stream(r *swarmpb.LogsStreamRequest, stream grpc.ServerStreamingServer[swarmpb.LogsStreamResponse]) error {
	p, err := l.control.manager()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	go func() {
		select {
		case <-p.over:
			cancel()
		case <-ctx.Done():
		}
	}()
	return p.whileStopping(p.manager.Logs().Stream(r, logStream{stream, ctx}))
}

// logStream is a stream that ends with its manager.
type logStream struct {
	grpc.ServerStreamingServer[swarmpb.LogsStreamResponse]
	ctx context.Context
}

func (s logStream) Context() context.Context { return s.ctx }
