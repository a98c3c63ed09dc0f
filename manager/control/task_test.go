package control

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

const (
	stRunning  = swarmpb.TaskState_TASK_STATE_RUNNING
	stFailed   = swarmpb.TaskState_TASK_STATE_FAILED
	stShutdown = swarmpb.TaskState_TASK_STATE_SHUTDOWN
)

func TestGetTask_ErrorMessageSince(t *testing.T) {
	w := newWorld(t)
	w.node(nodeA, "a", roleWorker, stateReady)
	w.node(nodeB, "b", roleWorker, stateDown)
	id := w.create("web", 9)
	pending, waiting := w.task(id, 1, 1, ""), w.task(id, 2, 1, "")
	w.place(pending, "", "no suitable node (insufficient resources on 2 nodes)")
	assigned, runs, failed, lost := w.task(id, 3, 1, nodeA), w.task(id, 4, 1, nodeA), w.task(id, 5, 1, nodeA), w.task(id, 6, 1, nodeB)
	w.status(&swarmpb.TaskStatus{TaskId: runs, State: stRunning, At: 42, Message: "started"})
	w.status(&swarmpb.TaskStatus{TaskId: failed, State: stFailed, At: 43, Error: "exit code 3"})
	w.status(&swarmpb.TaskStatus{TaskId: lost, State: stRunning, At: 44})
	for _, tc := range []struct {
		ref, name, error, message, host string
		state                           swarmpb.TaskState
		since                           int64
	}{
		{pending, "web.1", "no suitable node (insufficient resources on 2 nodes); `swarmctl service explain web` tells it node by node", "", "", swarmpb.TaskState_TASK_STATE_PENDING, 1},
		{waiting, "web.2", "", "", "", swarmpb.TaskState_TASK_STATE_PENDING, 1},
		{assigned, "web.3", "", "", "a", swarmpb.TaskState_TASK_STATE_ASSIGNED, 7},
		{runs, "web.4", "", "started", "a", stRunning, 42},
		{failed, "web.5", "exit code 3", "", "a", stFailed, 43},
		{lost, "web.6", "node b is down", "", "b", stRunning, 44},
		{"web.4", "web.4", "", "started", "a", stRunning, 42},
	} {
		r, err := w.server.GetTask(ctx, &swarmpb.GetTaskRequest{Task: tc.ref})
		if err != nil {
			t.Fatal(err)
		}
		info := r.GetTask()
		if info.GetName() != tc.name || info.GetError() != tc.error || info.GetMessage() != tc.message || info.GetState() != tc.state ||
			info.GetSince() != tc.since || info.GetNodeHostname() != tc.host || info.GetImage() != "web:1" || info.GetServiceName() != "web" {
			t.Errorf("%s: %v", tc.name, info)
		}
		if r.GetSpec().GetContainer().GetImage() != "web:1" {
			t.Errorf("%s: spec %v", tc.name, r.GetSpec())
		}
	}
}

func TestGetTask_ByName_CurrentAttempt(t *testing.T) {
	w := newWorld(t)
	id := w.create("web", 1)
	old, current := w.task(id, 1, 1, ""), w.task(id, 1, 2, "")
	w.desire(old, stShutdown)
	get := func(ref string) string {
		t.Helper()
		r, err := w.server.GetTask(ctx, &swarmpb.GetTaskRequest{Task: ref})
		if err != nil {
			t.Fatal(err)
		}
		return r.GetTask().GetTask().GetId()
	}
	if get("web.1") != current || get(old[:10]) != old {
		t.Error("wrong task")
	}
	w.desire(current, stShutdown)
	if get("web.1") != current {
		t.Error("of ended tasks the last one is meant")
	}
	for _, ref := range []string{"web.2", "web.x", "web.", "nope.1", "zzzz"} {
		_, err := w.server.GetTask(ctx, &swarmpb.GetTaskRequest{Task: ref})
		expectError(t, err, wire.CodeNotFound, ref)
	}
}

func TestListTasks_WrongInput_Refused(t *testing.T) {
	w := newWorld(t)
	for _, tc := range []struct {
		req  *swarmpb.ListTasksRequest
		code wire.Code
	}{
		{&swarmpb.ListTasksRequest{Service: "nope"}, wire.CodeNotFound},
		{&swarmpb.ListTasksRequest{Node: "nope"}, wire.CodeNotFound},
		{&swarmpb.ListTasksRequest{PageToken: "%%%"}, wire.CodeInvalid},
		{&swarmpb.ListTasksRequest{PageToken: "YWJj"}, wire.CodeInvalid},
		{&swarmpb.ListTasksRequest{PageToken: strings.Repeat("A", 5000)}, wire.CodeInvalid},
	} {
		_, err := w.server.ListTasks(ctx, tc.req)
		expectError(t, err, tc.code)
	}
}

func TestListTasks_LargeAnswers_BoundedPages(t *testing.T) {
	w := newWorld(t)
	w.node(nodeA, "a", roleWorker, stateReady)
	id := w.create("web", 1)
	for slot := uint64(1); slot <= maxPage+5; slot++ {
		task := w.task(id, slot, 1, nodeA)
		w.status(&swarmpb.TaskStatus{TaskId: task, State: stRunning, Message: strings.Repeat("m", 1500)})
	}
	token, total, pages := "", 0, 0
	for {
		r, err := w.server.ListTasks(ctx, &swarmpb.ListTasksRequest{PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		if size := proto.Size(r); size > 3<<20 || len(r.GetTasks()) > maxPage {
			t.Errorf("a page has %d tasks, %d bytes", len(r.GetTasks()), size)
		}
		total += len(r.GetTasks())
		pages++
		if token = r.GetNextPageToken(); token == "" {
			break
		}
	}
	if total != maxPage+5 || pages < 2 {
		t.Errorf("%d tasks on %d pages", total, pages)
	}
}

// TestListTasks_RandomTasks_EachOnExactlyOnePage walks the pages from every task on, which is what a page token says.
func TestListTasks_RandomTasks_EachOnExactlyOnePage(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		w.node(nodeA, "a", roleWorker, stateReady)
		w.node(nodeB, "b", roleWorker, stateReady)
		services := []string{w.create("s1", 1), w.create("s2", 1), w.create("s3", 1)}
		made := make(map[string]bool)
		for range rapid.IntRange(0, 30).Draw(t, "tasks") {
			service := rapid.SampledFrom(services).Draw(t, "service")
			slot, attempt := rapid.Uint64Range(1, 4).Draw(t, "slot"), rapid.Uint64Range(1, 4).Draw(t, "attempt")
			if id := swarmpb.TaskID(service, slot, "", attempt); !made[id] {
				made[id] = true
				w.task(service, slot, attempt, rapid.SampledFrom([]string{"", nodeA, nodeB}).Draw(t, "node"))
				if rapid.Bool().Draw(t, "stop") {
					w.desire(id, stShutdown)
				}
			}
		}
		query := taskQuery{
			service: rapid.SampledFrom([]string{"", services[0]}).Draw(t, "filter service"),
			node:    rapid.SampledFrom([]string{"", nodeA}).Draw(t, "filter node"),
			current: rapid.Bool().Draw(t, "current"),
		}
		want := make(map[string]bool)
		for task := range w.view().Tasks() {
			if query.takes(task) && (query.node == "" || w.view().NodeID(task.GetId()) == query.node) {
				want[task.GetId()] = true
			}
		}
		page := rapid.IntRange(1, 5).Draw(t, "page")
		seen := make(map[string]bool)
		for more := true; more; {
			n := 0
			more = false
			token := ""
			query.walk(w.view(), func(task *swarmpb.Task) bool {
				if n == page {
					more = true
					return false
				}
				n++
				if seen[task.GetId()] {
					t.Fatalf("task %s is on two pages", task.GetId())
				}
				seen[task.GetId()] = true
				token = positionOf(task).token()
				return true
			})
			after, err := parsePosition(token)
			if err != nil {
				t.Fatalf("token: %v", err)
			}
			query.after = after
			// A task that comes in between does not disturb the others.
			w.task(services[1], rapid.Uint64Range(5, 9).Draw(t, "new slot"), uint64(100+len(seen)), "")
		}
		for id := range want {
			if !seen[id] {
				t.Fatalf("task %s is on no page", id)
			}
		}
	})
}

// picture is what a watcher makes of the messages.
type picture struct {
	grpc.ServerStream
	ctx      context.Context
	mu       sync.Mutex
	service  *swarmpb.ServiceInfo
	tasks    map[string]*swarmpb.TaskInfo
	messages int
	times    []time.Time
	block    chan struct{}
}

func (p *picture) Context() context.Context { return p.ctx }

func (p *picture) Send(m *swarmpb.WatchServiceResponse) error {
	if p.block != nil {
		select {
		case <-p.block:
		case <-p.ctx.Done():
			return p.ctx.Err()
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(m.GetTasks()) > maxPage {
		return fmt.Errorf("%d tasks in a message", len(m.GetTasks()))
	}
	p.service = m.GetService()
	for _, task := range m.GetTasks() {
		p.tasks[task.GetTask().GetId()] = task
	}
	for _, id := range m.GetRemoved() {
		delete(p.tasks, id)
	}
	p.messages++
	p.times = append(p.times, time.Now())
	return nil
}

func (w *world) watch(ref string) (p *picture, done chan error, cancel context.CancelFunc) {
	watching, cancel := context.WithCancel(context.Background())
	p = &picture{ctx: watching, tasks: make(map[string]*swarmpb.TaskInfo)}
	done = make(chan error, 1)
	go func() { done <- w.server.WatchService(&swarmpb.WatchServiceRequest{Service: ref}, p) }()
	synctest.Wait()
	return p, done, cancel
}

// same compares the picture with what a list says.
func (p *picture) same(t *testing.T, w *world, id string) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if want := withConflicts(w.view(), serviceInfo(w.view(), w.view().Service(id), lostNodes(w.view()))); !proto.Equal(p.service, want) {
		t.Errorf("service %v, want %v", p.service, want)
	}
	count := 0
	for task := range w.view().TasksOf(id) {
		count++
		if want := taskInfo(w.view(), task); !proto.Equal(p.tasks[task.GetId()], want) {
			t.Errorf("task %v, want %v", p.tasks[task.GetId()], want)
		}
	}
	if count != len(p.tasks) {
		t.Errorf("%d tasks, want %d", len(p.tasks), count)
	}
}

func TestWatchService_Changes_ConvergeAndAreMerged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.node(nodeA, "a", roleWorker, stateReady)
		id, other := w.create("web", 3), w.create("other", 1)
		for slot := uint64(1); slot <= 2500; slot++ {
			w.task(id, slot, 1, nodeA)
		}
		p, done, cancel := w.watch("web")
		p.same(t, w, id)
		if p.messages != 3 {
			t.Errorf("%d messages for 2500 tasks", p.messages)
		}
		time.Sleep(time.Second)
		before := len(p.times)
		for i := range 100 {
			task := swarmpb.TaskID(id, uint64(i+1), "", 1)
			switch i % 4 {
			case 0:
				w.status(&swarmpb.TaskStatus{TaskId: task, State: stRunning, At: int64(i)})
			case 1:
				w.delete(swarmpb.TaskKey(task))
			case 2:
				w.task(id, uint64(i+1), 2, nodeA)
			case 3:
				w.desire(task, stShutdown)
			}
			w.task(other, 1, uint64(i+1), nodeA)
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(time.Second)
		p.same(t, w, id)
		if n := len(p.times) - before; n > 12 {
			t.Errorf("%d messages in one second", n)
		}
		w.nodeState(nodeA, "a", stateDown)
		time.Sleep(time.Second)
		p.same(t, w, id)
		before = p.messages
		w.task(other, 2, 1, nodeA)
		time.Sleep(time.Minute)
		if p.messages != before {
			t.Error("another service's change was sent")
		}
		cancel()
		<-done
	})
}

func TestWatchService_Removed_EndsWithUnsetService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		id := w.create("web", 1)
		task := w.task(id, 1, 1, "")
		p, done, cancel := w.watch(id)
		defer cancel()
		w.delete(swarmpb.TaskKey(task))
		w.delete(swarmpb.ServiceKey(id))
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if p.service != nil || len(p.tasks) != 0 {
			t.Errorf("picture at the end: %v %v", p.service, p.tasks)
		}
		_, done, cancel2 := w.watch("web")
		defer cancel2()
		expectError(t, <-done, wire.CodeNotFound, "web")
	})
}

func TestWatchService_ReceiverStalls_ListsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		id := w.create("web", 1)
		gone := w.task(id, 1, 1, "")
		p, done, cancel := w.watch(id)
		time.Sleep(time.Second)
		p.block = make(chan struct{})
		w.task(id, 2, 1, "")
		time.Sleep(time.Second)
		// More changes than the feed holds.
		w.delete(swarmpb.TaskKey(gone))
		var writes []*swarmpb.Write
		for i := range 500 {
			writes = append(writes, &swarmpb.Write{Op: &swarmpb.Write_RaiseAlarm{RaiseAlarm: &swarmpb.RaiseAlarm{Kind: "k", Object: fmt.Sprint(i % 3)}}})
		}
		for range 140 {
			if _, err := w.local.Propose(ctx, &swarmpb.Proposal{Writes: writes}); err != nil {
				t.Fatal(err)
			}
		}
		w.status(&swarmpb.TaskStatus{TaskId: w.task(id, 3, 1, ""), State: stRunning})
		close(p.block)
		time.Sleep(time.Second)
		p.same(t, w, id)
		cancel()
		<-done
	})
}
