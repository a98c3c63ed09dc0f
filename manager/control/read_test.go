package control

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// caller is the other end of a call: it keeps the header.
type caller struct {
	grpc.ServerTransportStream
	header metadata.MD
}

func (c *caller) SetHeader(md metadata.MD) error {
	c.header = metadata.Join(c.header, md)
	return nil
}

// called is the context of a call from another process; wish asks for an answer without the leader.
func called(ctx context.Context, wish bool) (context.Context, *caller) {
	c := &caller{}
	if wish {
		md, _ := metadata.FromOutgoingContext(wire.WithStale(ctx))
		ctx = metadata.NewIncomingContext(ctx, md)
	}
	return grpc.NewContextWithServerTransportStream(ctx, c), c
}

func TestRead_Leader_DecidesWhetherItIsStaleAndHowLongItWaits(t *testing.T) {
	const never = -1
	for _, tc := range []struct {
		name    string
		leader  string
		contact time.Duration
		wish    bool
		fail    error
		stale   bool
		within  time.Duration
	}{
		{name: "there is one", leader: self},
		{name: "there is one, and it is not wanted", leader: self, wish: true, stale: true},
		{name: "just lost", contact: 10 * time.Millisecond, stale: true, within: leaderlessWait + leaderPoll},
		{name: "long lost", contact: time.Minute, stale: true, within: leaderlessLeast + leaderPoll},
		{name: "never seen", contact: never, stale: true, within: leaderlessWait + leaderPoll},
		{name: "lost, and not wanted", contact: time.Minute, wish: true, stale: true},
		{name: "without a majority", leader: self, fail: wire.Errorf(wire.CodeUnavailable, "no majority"), stale: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.leader.Store(tc.leader)
				w.contact, w.fail = tc.contact, tc.fail
				ctx, c := called(t.Context(), tc.wish)
				began := time.Now()
				r, err := w.server.ListNodes(ctx, nil)
				if err != nil || len(r.GetNodes()) != 1 {
					t.Fatalf("%v %v", r, err)
				}
				read, stale := wire.StaleFrom(c.header)
				if stale != tc.stale || stale && (read.Known != (tc.contact != never) || read.Known && read.Leaderless != tc.contact) {
					t.Errorf("stale %v: %+v", stale, read)
				}
				if took := time.Since(began); took > tc.within {
					t.Errorf("took %s, want at most %s", took, tc.within)
				}
			})
		})
	}
}

func TestRead_LeaderHangs_StaleWithinItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.server.cfg.ReadIndex = func(ctx context.Context) (uint64, error) {
			<-ctx.Done()
			return 0, ctx.Err()
		}
		ctx, c := called(t.Context(), false)
		began := time.Now()
		if _, err := w.server.ListServices(ctx, nil); err != nil {
			t.Fatal(err)
		}
		if _, stale := wire.StaleFrom(c.header); !stale || time.Since(began) > readTimeout {
			t.Errorf("stale %v after %s", stale, time.Since(began))
		}
	})
}

func TestRead_LeaderElectedMeanwhile_IsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.leader.Store("")
		w.server.cfg.ReadIndex = func(ctx context.Context) (uint64, error) {
			for w.leads() == "" {
				select {
				case <-ctx.Done():
					return 0, ctx.Err()
				case <-time.After(10 * time.Millisecond):
				}
			}
			return 1, nil
		}
		time.AfterFunc(1500*time.Millisecond, func() { w.leader.Store(self) })
		ctx, c := called(t.Context(), false)
		if _, err := w.server.ListNodes(ctx, nil); err != nil {
			t.Fatal(err)
		}
		if _, stale := wire.StaleFrom(c.header); stale {
			t.Error("stale, though a leader came")
		}
	})
}

func TestRead_CallerGoesOrTheClusterErrs_NoStaleAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.leader.Store("")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := w.server.ListNodes(ctx, nil)
		expectError(t, err, wire.CodeUnavailable, "no leader", "node ls --stale")
		ctx, cancel = context.WithCancel(t.Context())
		cancel()
		_, err = w.server.ListNodes(ctx, nil)
		expectError(t, err, wire.CodeCanceled)
		w.leader.Store(self)
		w.fail = wire.Errorf(wire.CodeInternal, "broken")
		_, err = w.server.ListNodes(t.Context(), nil)
		expectError(t, err, wire.CodeInternal, "broken")
	})
}

func TestRead_BeforeTheClustersRow_ClearError(t *testing.T) {
	w := newWorld(t)
	empty := store.New()
	w.server.cfg.Store = func() *store.Store { return empty }
	for _, wish := range []bool{false, true} {
		ctx, _ := called(t.Context(), wish)
		_, err := w.server.ListNodes(ctx, nil)
		expectError(t, err, wire.CodeUnavailable, "has not received the cluster's state yet", "other managers")
	}
	_, err := w.server.CreateService(t.Context(), &swarmpb.CreateServiceRequest{Spec: spec("web", "web:1", 1)})
	expectError(t, err, wire.CodeUnavailable, "has not received the cluster's state yet")
}

func TestWrite_NoLeader_FailsWithinItsTime(t *testing.T) {
	lost := func(w *world) {
		w.server.cfg.ReadIndex = func(context.Context) (uint64, error) {
			time.Sleep(time.Second)
			w.leader.Store("")
			return 1, nil
		}
	}
	for name, hang := range map[string]func(*world){"from the start": func(w *world) { w.leader.Store("") }, "lost after the read": lost} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				id := w.create("web", 1)
				hang(w)
				ctx, _ := called(t.Context(), true) // the wish for a stale answer is none of a write's
				began := time.Now()
				_, err := w.server.UpdateService(ctx, &swarmpb.UpdateServiceRequest{Service: id, Spec: spec("web", "web:2", 1)})
				expectError(t, err, wire.CodeUnavailable, "no leader", "try again")
				if took := time.Since(began); took > writeTimeout {
					t.Errorf("failed after %s", took)
				}
			})
		})
	}
}

func TestWatchService_LeaderLost_GoesOnFromHere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.node(nodeA, "a", roleWorker, stateReady)
		id := w.create("web", 2)
		p, done, cancel := w.watch("web")
		defer cancel()
		w.leader.Store("")
		for attempt := range uint64(20) {
			w.task(id, 1, attempt+1, nodeA)
			time.Sleep(watchInterval / 3)
		}
		time.Sleep(2 * watchInterval)
		synctest.Wait()
		p.same(t, w, id)
		// One that begins while there is no leader says that it may be behind.
		ctx, c := called(t.Context(), false)
		late := &picture{ctx: ctx, tasks: make(map[string]*swarmpb.TaskInfo)}
		ctx, stop := context.WithCancel(ctx)
		late.ctx = ctx
		ended := make(chan error, 1)
		go func() { ended <- w.server.WatchService(&swarmpb.WatchServiceRequest{Service: "web"}, late) }()
		time.Sleep(readTimeout)
		synctest.Wait()
		late.same(t, w, id)
		if _, stale := wire.StaleFrom(c.header); !stale {
			t.Error("not marked")
		}
		stop()
		cancel()
		if err := errors.Join(<-ended, <-done); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

func TestLowSpace_WhatGrows_IsRefused(t *testing.T) {
	w := newWorld(t)
	w.node(nodeA, "a", roleWorker, stateReady)
	id := w.create("web", 3)
	w.put(&swarmpb.Row{Row: &swarmpb.Row_Alarm{Alarm: &swarmpb.Alarm{Kind: "low-space", Object: self, Message: "12 MiB were free; free space on it"}}})
	update := func(change func(*swarmpb.ServiceSpec)) error {
		next := swarmpb.Clone(w.view().Service(id).GetSpec())
		change(next)
		_, err := w.server.UpdateService(ctx, &swarmpb.UpdateServiceRequest{Service: id, Spec: next})
		return err
	}
	replicas := func(n uint64) func(*swarmpb.ServiceSpec) {
		return func(s *swarmpb.ServiceSpec) { s.Mode.GetReplicated().Replicas = n }
	}
	create := func() error {
		_, err := w.server.CreateService(ctx, &swarmpb.CreateServiceRequest{Spec: spec("api", "api:1", 1)})
		return err
	}
	image := func(s *swarmpb.ServiceSpec) { s.Task.Container.Image = "web:2" }
	labels := func(s *swarmpb.ServiceSpec) { s.Labels = map[string]string{"a": "b"} }
	for name, err := range map[string]error{"create": create(), "scale up": update(replicas(4)), "template": update(image), "labels": update(labels)} {
		t.Run(name, func(t *testing.T) {
			expectError(t, err, wire.CodeResourceExhausted, "leader, boss", "12 MiB were free", "free space", "scaled down and removed")
		})
	}
	_, node := w.server.UpdateNode(ctx, &swarmpb.UpdateNodeRequest{Node: "a", Spec: &swarmpb.NodeSpec{Availability: swarmpb.NodeAvailability_NODE_AVAILABILITY_DRAIN}})
	_, again := w.server.UpdateService(ctx, &swarmpb.UpdateServiceRequest{Service: id, Spec: w.view().Service(id).GetSpec()})
	down := update(replicas(1))
	_, remove := w.server.RemoveService(ctx, &swarmpb.RemoveServiceRequest{Service: id})
	for name, err := range map[string]error{"scale down": down, "same again": again, "remove": remove, "node update": node} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// An alarm of a manager that does not lead stops nobody.
	w.leader.Store(nodeA)
	if err := create(); err != nil {
		t.Error(err)
	}
}
