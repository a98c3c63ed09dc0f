package wire

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// staleServer marks its answer when it is asked to.
type staleServer struct {
	swarmpb.UnimplementedControlServer
	mark *StaleRead
	seen bool
}

func (s *staleServer) GetCluster(ctx context.Context, _ *swarmpb.GetClusterRequest) (*swarmpb.GetClusterResponse, error) {
	s.seen = Stale(ctx)
	if s.mark != nil {
		MarkStale(ctx, *s.mark)
	}
	return &swarmpb.GetClusterResponse{}, nil
}

func TestStale_WishAndMark_CrossTheWire(t *testing.T) {
	server := &staleServer{}
	g := NewServer(ServerConfig{Local: true})
	swarmpb.RegisterControlServer(g, server)
	path := filepath.Join(t.TempDir(), "s")
	listener, err := ListenLocal(path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(listener) }()
	defer func() { g.Stop(); <-done }()
	conn, err := DialLocal(path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := swarmpb.NewControlClient(conn)
	for _, tc := range []struct {
		name string
		mark *StaleRead
		wish bool
	}{
		{"fresh", nil, false},
		{"asked for", &StaleRead{Known: true}, true},
		{"no leader", &StaleRead{Leaderless: 12*time.Second + time.Millisecond, Known: true}, false},
		{"never had one", &StaleRead{}, true},
	} {
		server.mark = tc.mark
		ctx := t.Context()
		if tc.wish {
			ctx = WithStale(ctx)
		}
		var header metadata.MD
		if _, err := client.GetCluster(ctx, &swarmpb.GetClusterRequest{}, grpc.Header(&header)); err != nil {
			t.Fatal(err)
		}
		got, stale := StaleFrom(header)
		if server.seen != tc.wish || stale != (tc.mark != nil) || stale && got != *tc.mark {
			t.Errorf("%s: wish seen %v, mark %v %+v", tc.name, server.seen, stale, got)
		}
	}
}

func TestStale_StrangeHeader_MeansUnknownAge(t *testing.T) {
	for _, value := range []string{"", "soon", "-3s", "12"} {
		if read, stale := StaleFrom(metadata.Pairs(staleHeader, value)); !stale || read != (StaleRead{}) {
			t.Errorf("%q: %v %+v", value, stale, read)
		}
	}
	MarkStale(context.Background(), StaleRead{}) // within the process: no header, no panic
	if Stale(context.Background()) {
		t.Error("a call within the process wishes nothing")
	}
}
