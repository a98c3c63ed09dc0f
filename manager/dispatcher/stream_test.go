package dispatcher

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

func TestAssignments_ChangesFlow_MergedAndAcknowledged(t *testing.T) {
	inCluster(t, []string{"n1", "n2"}, func(t *testing.T, c *cluster) {
		w := c.mustConnect("n1", "b1")
		h := w.assignments()
		time.Sleep(time.Second)
		began := time.Now()
		id := c.task(1, "n1")
		synctest.Wait()
		if !h.has(id) || time.Since(began) != 0 {
			t.Fatal("a single change after a quiet time is not sent at once")
		}
		first := h.at()
		for slot := uint64(2); slot < 50; slot++ {
			c.task(slot, "n1")
		}
		c.task(50, "n2")
		synctest.Wait()
		if h.at() != first {
			t.Error("a burst is not merged")
		}
		time.Sleep(time.Second)
		synctest.Wait()
		h.expect(c.view(), "n1")
		if acked, ok := c.server.Acked("n1"); !ok || acked != c.view().Index() {
			t.Errorf("acked %d %t, want all up to %d", acked, ok, c.view().Index())
		}
		if _, ok := c.server.Acked("n2"); ok {
			t.Error("a node without a session has acknowledged")
		}
	})
}

func TestAssignments_SecondStreamOrForeignSession_Judged(t *testing.T) {
	inCluster(t, []string{"n1", "n2"}, func(t *testing.T, c *cluster) {
		w := c.mustConnect("n1", "b1")
		first, err := c.client.Assignments(w.ctx, &swarmpb.AssignmentsRequest{SessionId: w.id})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := first.Recv(); err != nil {
			t.Fatal(err)
		}
		second := w.assignments()
		_, err = first.Recv()
		expectCode(t, err, wire.CodeFailedPrecondition, "newer")
		synctest.Wait()
		if second.at() == 0 {
			t.Error("the second stream got no full set")
		}
		c.mustConnect("n2", "b2")
		stolen, err := c.client.Assignments(asNode(c.ctx, "n2"), &swarmpb.AssignmentsRequest{SessionId: w.id})
		if err == nil {
			_, err = stolen.Recv()
		}
		expectCode(t, err, wire.CodeFailedPrecondition, "session is over")
	})
}

func TestUpdateStatus_ManySessions_OneProposalAndRepliesAfterCommit(t *testing.T) {
	inCluster(t, []string{"n1", "n2"}, func(t *testing.T, c *cluster) {
		w1, w2 := c.mustConnect("n1", "b1"), c.mustConnect("n2", "b2")
		a, b, d := c.task(1, "n1"), c.task(2, "n2"), c.task(3, "n2")
		time.Sleep(time.Second)
		before := c.proposed.Load()
		results := make(chan error, 3)
		go func() { results <- w1.update(&swarmpb.TaskStatus{TaskId: a, State: stRunning}) }()
		synctest.Wait()
		go func() { results <- w2.update(&swarmpb.TaskStatus{TaskId: b, State: stReady}) }()
		go func() { results <- w1.update(&swarmpb.TaskStatus{TaskId: a, State: stFailed, Error: "exit 1"}) }()
		go func() {
			results <- w2.update(&swarmpb.TaskStatus{TaskId: d, State: stRunning}, &swarmpb.TaskStatus{TaskId: b, State: stRunning})
		}()
		for range 4 {
			if err := <-results; err != nil {
				t.Fatal(err)
			}
		}
		if c.view().Observed(a) != stFailed || c.view().Observed(b) != stRunning || c.view().Observed(d) != stRunning {
			t.Error("a status was answered and is not there")
		}
		// A session has one update in flight, so that n2's second one may be a proposal of its own.
		if n := c.proposed.Load() - before; n > 3 {
			t.Errorf("%d proposals", n)
		}
		before = c.proposed.Load()
		if err := w1.update(&swarmpb.TaskStatus{TaskId: a, State: stRunning}, &swarmpb.TaskStatus{TaskId: a, State: stFailed, Error: "exit 1"}); err != nil {
			t.Fatal(err)
		}
		if n := c.proposed.Load() - before; n != 0 {
			t.Errorf("%d proposals for what is known", n)
		}
	})
}

func TestUpdateStatus_BadInput_RefusedOrIgnored(t *testing.T) {
	inCluster(t, []string{"n1", "n2"}, func(t *testing.T, c *cluster) {
		w := c.mustConnect("n1", "b1")
		mine, other := c.task(1, "n1"), c.task(2, "n2")
		many := make([]*swarmpb.TaskStatus, maxStatuses+1)
		for i := range many {
			many[i] = &swarmpb.TaskStatus{TaskId: mine, State: stRunning}
		}
		for _, tc := range []struct {
			name     string
			statuses []*swarmpb.TaskStatus
			part     string // of the error; empty: accepted
		}{
			{"empty", nil, ""},
			{"too many", many, "at most 500"},
			{"no status", []*swarmpb.TaskStatus{{}}, "malformed"},
			{"bad ID", []*swarmpb.TaskStatus{{TaskId: "../../etc", State: stRunning}}, "malformed"},
			{"a manager's state", []*swarmpb.TaskStatus{{TaskId: mine, State: stAssigned}}, "worker reports"},
			{"orphaned", []*swarmpb.TaskStatus{{TaskId: mine, State: stOrphaned}}, "worker reports"},
			{"no such state", []*swarmpb.TaskStatus{{TaskId: mine, State: 85}}, "worker reports"},
			{"bad port", []*swarmpb.TaskStatus{{TaskId: mine, State: stRunning, HostPorts: []*swarmpb.PortConfig{{PublishedPort: 70000}}}}, "out of range"},
			{"unknown task", []*swarmpb.TaskStatus{{TaskId: swarmpb.NewID(), State: stRunning}}, ""},
			{"another's task", []*swarmpb.TaskStatus{{TaskId: other, State: stRunning}}, ""},
			{"a long dirty text", []*swarmpb.TaskStatus{{TaskId: mine, State: stReady, Message: strings.Repeat("\x00é\n", 2000)}}, ""},
		} {
			err := w.update(tc.statuses...)
			if tc.part == "" {
				if err != nil {
					t.Errorf("%s: %v", tc.name, err)
				}
				continue
			}
			expectCode(t, err, wire.CodeInvalid, tc.part)
		}
		if got := c.view().Observed(other); got != stAssigned {
			t.Errorf("another node's task is %s", got.Name())
		}
		codes := make([]int32, maxLocalExits+1)
		codes[maxLocalExits] = 7
		if err := w.update(&swarmpb.TaskStatus{TaskId: mine, State: stRunning, Container: &swarmpb.ContainerStatus{LocalRestarts: 11, LocalExitCodes: codes}}); err != nil {
			t.Error(err)
		}
		if got := c.view().Status(mine).GetContainer().GetLocalExitCodes(); len(got) != maxLocalExits || got[maxLocalExits-1] != 7 {
			t.Errorf("exit codes of local restarts are %v, want the newest %d", got, maxLocalExits)
		}
		if err := w.update(&swarmpb.TaskStatus{TaskId: mine, State: stRunning, Message: strings.Repeat("\x00é\n", 2000)}); err != nil {
			t.Error(err)
		}
		if text := c.view().Status(mine).GetMessage(); len(text) > maxMessageBytes || strings.ContainsAny(text, "\x00\n") {
			t.Errorf("message of %d bytes: %q", len(text), text[:20])
		}
	})
}

// TestUpdateStatus_AddressOfAnothersBlock_IsDropped: every node would send the clients of a published port there.
func TestUpdateStatus_AddressOfAnothersBlock_IsDropped(t *testing.T) {
	var asks func()
	adjust := func(cfg *Config) {
		read := cfg.ReadIndex
		cfg.ReadIndex = func(ctx context.Context) (uint64, error) {
			if asks != nil {
				asks()
				asks = nil
			}
			return read(ctx)
		}
	}
	inClusterWith(t, []string{"n1", "n2"}, adjust, func(t *testing.T, c *cluster) {
		c.allocate("uplink", "100.64.2.0/24", "n2")
		w := c.mustConnect("n1", "b1")
		time.Sleep(100 * time.Millisecond)
		c.endLead() // which reads indexes, too
		report := func(slot uint64, address, want string) {
			t.Helper()
			task := c.task(slot, "n1")
			if err := w.update(&swarmpb.TaskStatus{TaskId: task, State: stRunning, Address: address}); err != nil {
				t.Fatal(err)
			}
			if got := c.view().Status(task); got.GetState() != stRunning || got.GetAddress() != want {
				t.Errorf("%q is reported: the status is %v", address, got)
			}
		}
		report(1, "100.64.1.7", "") // it has no block
		// It has its block from a manager that is ahead of this one.
		asks = func() { c.allocate("uplink", "100.64.1.0/24", "n1") }
		report(2, "100.64.1.7", "100.64.1.7")
		for i, address := range []string{"100.64.2.7", "10.0.0.1", "127.0.0.1", "fd00::1", "nonsense"} {
			report(uint64(3+i), address, "")
		}
		report(9, "", "")
	})
}

func TestUpdateStatus_CommitFails_CallerLearns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1")
		m := newMerger(failing{}, func() *store.Store { return w.store }, time.Millisecond)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- m.run(ctx) }()
		err := m.merge(ctx, nil, []*swarmpb.TaskStatus{{TaskId: w.task(1, "n1"), State: stRunning}})
		expectCode(t, err, wire.CodeUnavailable, "no quorum")
		cancel()
		<-done
		err = m.merge(context.Background(), nil, []*swarmpb.TaskStatus{{TaskId: w.task(2, "n1"), State: stRunning}})
		expectCode(t, err, wire.CodeUnavailable, "stops")
	})
}

type failing struct{}

func (failing) Propose(context.Context, *swarmpb.Proposal) (*swarmpb.Result, error) {
	return nil, errors.New("no quorum")
}

// TestAssignments_NewStream_NothingOlderThanWhatWasCommitted: the node may come from a manager that was ahead of this one.
func TestAssignments_NewStream_NothingOlderThanWhatWasCommitted(t *testing.T) {
	var lags atomic.Bool
	var w *world
	adjust := func(cfg *Config) {
		read := cfg.ReadIndex
		cfg.ReadIndex = func(ctx context.Context) (uint64, error) {
			if lags.Load() { // what is committed elsewhere arrives while it asks
				w.desire(swarmpb.TaskID(serviceWeb, 1, "", 1), stShutdown, false)
				w.propose(&swarmpb.Write{Op: &swarmpb.Write_SetDrained{SetDrained: &swarmpb.SetDrained{TaskIds: []string{"nobody"}, At: 1}}})
			}
			return read(ctx)
		}
	}
	inClusterWith(t, []string{"n1"}, adjust, func(t *testing.T, c *cluster) {
		w = c.world
		task := c.task(1, "n1")
		x := c.mustConnect("n1", "b1")
		time.Sleep(100 * time.Millisecond)
		c.endLead() // which reads indexes, too
		lags.Store(true)
		h := x.assignments()
		synctest.Wait()
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.version != c.view().Index() || h.tasks[task].GetDesiredState() != stShutdown {
			t.Errorf("the first set is of %d and has %v; committed is %d", h.version, h.tasks[task], c.view().Index())
		}
	})
	adjust = func(cfg *Config) {
		cfg.ReadIndex = func(context.Context) (uint64, error) { return 0, errors.New("no leader") }
	}
	inClusterWith(t, []string{"n1"}, adjust, func(t *testing.T, c *cluster) {
		x := c.mustConnect("n1", "b1")
		stream, err := c.client.Assignments(x.ctx, &swarmpb.AssignmentsRequest{SessionId: x.id})
		if err == nil {
			_, err = stream.Recv()
		}
		expectCode(t, err, wire.CodeUnavailable, "another manager")
	})
}
