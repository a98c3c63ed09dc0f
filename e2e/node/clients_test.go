package node_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"

	"github.com/swarmd/swarmd/e2e/history"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// clients write and read registers through several managers, one client a manager and register, until they are ended.
type clients struct {
	history *history.History
	// acknowledged counts writes; acknowledgedBy those of each manager, by its number.
	acknowledged atomic.Int64

	cancel context.CancelFunc
	all    sync.WaitGroup
}

const (
	registers = 3
	// tries of one write last this long: the time without a leader is bridged.
	writePatience = 15 * time.Second
)

func register(i int) string { return fmt.Sprintf("register-%d", i) }

// newClients makes the registers, services without replicas, and starts to write and read them through the managers.
func newClients(t *testing.T, c *cluster, managers ...int) *clients {
	t.Helper()
	for i := range registers {
		c.ok(t, c.via, "service", "create", "--detach", "--no-resolve-image", "--replicas", "0", "--name", register(i), "whoami:v1")
	}
	ctx, cancel := context.WithCancel(context.Background())
	x := &clients{history: history.New(), cancel: cancel}
	t.Cleanup(x.stop)
	for _, m := range managers {
		conn, err := wire.DialLocal(c.host(m).Socket())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		for i := range registers {
			x.all.Go(func() {
				x.run(ctx, swarmpb.NewControlClient(conn), m*registers+i, register(i), conn.ResetConnectBackoff)
			})
		}
	}
	return x
}

func (x *clients) stop() {
	x.cancel()
	x.all.Wait()
}

// check ends the clients: what they saw must be linearizable, and they must have got something done.
func (x *clients) check(t *testing.T) {
	t.Helper()
	x.stop()
	if n := x.acknowledged.Load(); n == 0 {
		t.Error("no write was acknowledged")
	}
	if err := x.history.Check(time.Minute); err != nil {
		t.Error(err)
	}
	t.Logf("%d operations, %d writes acknowledged", x.history.Len(), x.acknowledged.Load())
}

func (x *clients) run(ctx context.Context, control swarmpb.ControlClient, client int, name string, reconnect func()) {
	for i := 0; ctx.Err() == nil; i++ {
		value := fmt.Sprintf("%d-%d", client, i)
		x.history.Write(client, name, value, func() history.Outcome {
			spec := &swarmpb.ServiceSpec{
				Name: name, Labels: map[string]string{"value": value},
				Task: &swarmpb.TaskSpec{Container: &swarmpb.ContainerSpec{Image: "whoami:v1"}},
				Mode: &swarmpb.ServiceMode{Mode: &swarmpb.ServiceMode_Replicated{Replicated: &swarmpb.ReplicatedMode{}}},
			}
			request := &swarmpb.UpdateServiceRequest{Service: name, Spec: spec, RequestId: swarmpb.NewID()}
			for begun := time.Now(); time.Since(begun) < writePatience; pause(ctx, 20*time.Millisecond) {
				try, cancel := context.WithTimeout(context.WithoutCancel(ctx), writePatience)
				_, err := control.UpdateService(try, request)
				cancel()
				if err == nil {
					x.acknowledged.Add(1)
					return history.Done
				}
				reconnect()
			}
			return history.Unknown
		})
		_, _ = x.history.Read(client, name, func() (string, error) {
			try, cancel := context.WithTimeout(ctx, writePatience)
			defer cancel()
			var header metadata.MD
			r, err := control.GetService(try, &swarmpb.GetServiceRequest{Service: name}, grpcHeader(&header))
			if _, stale := wire.StaleFrom(header); err == nil && stale {
				err = fmt.Errorf("a stale read")
			}
			return r.GetService().GetService().GetSpec().GetLabels()["value"], err
		})
		pause(ctx, 5*time.Millisecond)
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
