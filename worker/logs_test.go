package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/runtime"
	"github.com/swarmd/swarmd/worker/runtime/runtimetest"
)

// asker is a manager that asks: it records each answer.
type asker struct {
	swarmpb.UnimplementedRelayServer
	requests chan *swarmpb.RelayRequest

	mu      sync.Mutex
	answers map[string]*answered
}

// answered is an answer as it came.
type answered struct {
	records, failed string
	frames, beats   int
	ended           bool
	position        *swarmpb.LogPosition
	credit          chan uint32
	hangUp          chan struct{}
}

func (a *asker) Serve(_ *swarmpb.RelayServeRequest, stream grpc.ServerStreamingServer[swarmpb.RelayRequest]) error {
	for {
		select {
		case req := <-a.requests:
			if err := stream.Send(req); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return nil
		}
	}
}

func (a *asker) Answer(stream grpc.BidiStreamingServer[swarmpb.RelayFrame, swarmpb.RelayCredit]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	x := &answered{credit: make(chan uint32, 100), hangUp: make(chan struct{})}
	a.mu.Lock()
	a.answers[first.GetRequestId()] = x
	a.mu.Unlock()
	over := make(chan struct{})
	go func() {
		defer close(over)
		for {
			frame, err := stream.Recv()
			a.mu.Lock()
			switch {
			case err == io.EOF:
				x.ended = true
			case err != nil:
			case frame.GetError() != "":
				x.failed = frame.GetError()
			case frame.GetLogs() == nil:
				x.beats++
			default:
				x.frames++
				x.position = frame.GetLogs().GetPosition()
				x.records += string(frame.GetLogs().GetRecords())
			}
			a.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	for {
		select {
		case n := <-x.credit:
			if err := stream.Send(&swarmpb.RelayCredit{Frames: n}); err != nil {
				return err
			}
		case <-over:
			return nil
		case <-x.hangUp:
			return nil
		case <-stream.Context().Done():
			return nil
		}
	}
}

// of is a copy of an answer's state.
func (a *asker) of(id string) answered {
	a.mu.Lock()
	defer a.mu.Unlock()
	if x := a.answers[id]; x != nil {
		return *x
	}
	return answered{}
}

// relayHost is a fleet with logs whose manager asks.
type relayHost struct {
	*asker
	t     *testing.T
	dir   string
	fleet *fleet
}

func withRelay(t *testing.T, test func(h *relayHost)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		h := &relayHost{t: t, dir: dir, asker: &asker{requests: make(chan *swarmpb.RelayRequest, 1000), answers: map[string]*answered{}}}
		listener, server := bufconn.Listen(1<<20), grpc.NewServer()
		swarmpb.RegisterRelayServer(server, h.asker)
		go server.Serve(listener)
		defer server.Stop()
		cfg := Config{
			LogDir: func(id string) string { return filepath.Join(dir, id) },
			Dial: func(context.Context, string) (Conn, error) {
				return grpc.NewClient("passthrough:///m", grpc.WithTransportCredentials(insecure.NewCredentials()),
					grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
			},
		}
		h.fleet = &fleet{cfg: cfg, tasks: map[string]*task{}, log: slog.New(slog.DiscardHandler)}
		l := &link{cfg: cfg, log: h.fleet.log, fleet: h.fleet, managers: newManagers(nil, 1)}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- l.relay(ctx, "m") }()
		test(h)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func (h *relayHost) task(state swarmpb.TaskState) string {
	id := swarmpb.NewID()
	h.set(id, state)
	return id
}

func (h *relayHost) set(id string, state swarmpb.TaskState) {
	h.fleet.mu.Lock()
	defer h.fleet.mu.Unlock()
	h.fleet.tasks[id] = &task{id: id, cleaned: true, status: &swarmpb.TaskStatus{TaskId: id, State: state}}
}

// write appends lines to a task's log and returns them.
func (h *relayHost) write(id string, lines ...string) string {
	h.t.Helper()
	var text strings.Builder
	for _, l := range lines {
		fmt.Fprintf(&text, "%s stdout F %s\n", time.Now().UTC().Format("2006-01-02T15:04:05.000000000Z"), l)
	}
	_ = os.MkdirAll(filepath.Join(h.dir, id), 0o700)
	f, err := os.OpenFile(filepath.Join(h.dir, id, "current.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		h.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text.String()); err != nil {
		h.t.Fatal(err)
	}
	return text.String()
}

func (h *relayHost) ask(id string, q *swarmpb.LogQuery) answered {
	h.requests <- &swarmpb.RelayRequest{Id: id, Kind: &swarmpb.RelayRequest_Logs{Logs: q}}
	return h.after(100 * time.Millisecond)(id)
}

// after lets time pass.
func (h *relayHost) after(d time.Duration) func(string) answered {
	time.Sleep(d)
	synctest.Wait()
	return h.of
}

func TestRelay_LogAsked_ComesWithCreditAndEnds(t *testing.T) {
	withRelay(t, func(h *relayHost) {
		id := h.task(swarmpb.TaskState_TASK_STATE_RUNNING)
		var want string
		for range 10 {
			want += h.write(id, strings.Repeat("x", 15<<10))
		}
		if got := h.ask("r1", &swarmpb.LogQuery{TaskId: id}); got.frames > 0 || got.ended {
			t.Fatalf("%d frames without credit", got.frames)
		}
		h.of("r1").credit <- 1
		if got := h.after(time.Minute)("r1"); got.frames != 1 || got.ended {
			t.Fatalf("%d frames with credit for one", got.frames)
		}
		h.of("r1").credit <- 100
		if got := h.after(time.Second)("r1"); got.records != want || !got.ended || got.failed != "" {
			t.Errorf("%d bytes of %d, ended %v, %q", len(got.records), len(want), got.ended, got.failed)
		}
	})
}

func TestRelay_LogFollowed_BeatsAndEndsAfterTheTask(t *testing.T) {
	withRelay(t, func(h *relayHost) {
		id := h.task(swarmpb.TaskState_TASK_STATE_STARTING) // it has no log yet
		if got := h.ask("r1", &swarmpb.LogQuery{TaskId: id, Follow: true}); got.failed != "" || got.ended {
			t.Fatal(got.failed)
		}
		h.of("r1").credit <- 100
		if got := h.after(10 * time.Second)("r1"); got.beats < 8 || got.beats > 11 {
			t.Errorf("%d beats in ten seconds", got.beats)
		}
		want := h.write(id, "a", "b")
		if got := h.after(time.Second)("r1"); got.records != want {
			t.Errorf("%q", got.records)
		}
		h.set(id, swarmpb.TaskState_TASK_STATE_FAILED)
		h.after(300 * time.Millisecond)
		want += h.write(id, "last words")
		if got := h.after(5 * time.Second)("r1"); got.records != want || !got.ended || got.failed != "" {
			t.Errorf("%q, ended %v, %q", got.records, got.ended, got.failed)
		}
	})
}

func TestRelay_LastLinesOfNoneFollowed_ThePlaceIsToldAtOnce(t *testing.T) {
	withRelay(t, func(h *relayHost) {
		id := h.task(swarmpb.TaskState_TASK_STATE_RUNNING)
		h.write(id, "old")
		h.ask("r1", &swarmpb.LogQuery{TaskId: id, Follow: true, Tail: new(uint64(0))})
		h.of("r1").credit <- 100
		got := h.after(time.Second)("r1")
		if got.records != "" || got.position.GetFile() == "" {
			t.Fatalf("%q at %v", got.records, got.position)
		}
		close(h.of("r1").hangUp) // and while nobody reads, a line comes
		want := h.write(id, "meanwhile")
		h.ask("r2", &swarmpb.LogQuery{TaskId: id, Follow: true, After: got.position})
		h.of("r2").credit <- 100
		if got := h.after(time.Second)("r2"); got.records != want {
			t.Errorf("%q, want %q", got.records, want)
		}
	})
}

func TestRelay_WhatCannotBeAnswered_IsSaid(t *testing.T) {
	withRelay(t, func(h *relayHost) {
		ended := h.task(swarmpb.TaskState_TASK_STATE_FAILED)
		for i, c := range []struct {
			query *swarmpb.LogQuery
			want  string
		}{
			{&swarmpb.LogQuery{TaskId: "../../etc/passwd"}, "task's ID"},
			{&swarmpb.LogQuery{}, "task's ID"},
			{&swarmpb.LogQuery{TaskId: swarmpb.NewID()}, "no logs of the task"},
			{&swarmpb.LogQuery{TaskId: ended, Follow: true}, "no logs of the task"},
			{nil, "does not know the request"},
		} {
			id := fmt.Sprint("r", i)
			req := &swarmpb.RelayRequest{Id: id}
			if c.query != nil {
				req.Kind = &swarmpb.RelayRequest_Logs{Logs: c.query}
			}
			h.requests <- req
			if got := h.after(time.Second)(id); !strings.Contains(got.failed, c.want) || !got.ended {
				t.Errorf("%v: %q, ended %v", c.query, got.failed, got.ended)
			}
		}
	})
}

func TestRelay_MoreThanItAnswersAtATime_IsRefusedAndRoomComesBack(t *testing.T) {
	withRelay(t, func(h *relayHost) {
		id := h.task(swarmpb.TaskState_TASK_STATE_RUNNING)
		h.write(id, "x")
		for i := range maxAnswers {
			h.requests <- &swarmpb.RelayRequest{Id: fmt.Sprint(i), Kind: &swarmpb.RelayRequest_Logs{Logs: &swarmpb.LogQuery{TaskId: id, Follow: true}}}
		}
		h.after(time.Second)
		if got := h.ask("more", &swarmpb.LogQuery{TaskId: id, Follow: true}); !strings.Contains(got.failed, "requests already") {
			t.Errorf("%+v", got)
		}
		close(h.of("7").hangUp)
		h.after(time.Second)
		h.ask("again", &swarmpb.LogQuery{TaskId: id})
		h.of("again").credit <- 1
		if got := h.after(time.Second)("again"); got.failed != "" || !got.ended {
			t.Errorf("%+v", got)
		}
	})
}

func TestTrimLogs_MoreThanTheirShare_OldestEndedGoFirst(t *testing.T) {
	dir := t.TempDir()
	f := &fleet{tasks: map[string]*task{}, strangers: map[string]runtime.Container{"stranger": {}}, adopted: make(chan struct{}), log: slog.New(slog.DiscardHandler)}
	close(f.adopted)
	f.cfg.LogDir = func(id string) string { return filepath.Join(dir, id) }
	f.runtime = removedLogs{runtimetest.NewFake(runtimetest.FakeConfig{}), f.cfg.LogDir, ""}
	add := func(id string, state swarmpb.TaskState, at int64, cleaned bool) {
		f.tasks[id] = &task{id: id, cleaned: cleaned, status: &swarmpb.TaskStatus{TaskId: id, State: state, At: at}}
		if err := os.Mkdir(f.cfg.LogDir(id), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(f.cfg.LogDir(id), "current.log"), make([]byte, 1000), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	add("runs", swarmpb.TaskState_TASK_STATE_RUNNING, 1, false)
	add("old", swarmpb.TaskState_TASK_STATE_FAILED, 2, true)
	add("ending", swarmpb.TaskState_TASK_STATE_FAILED, 3, false)
	add("older", swarmpb.TaskState_TASK_STATE_COMPLETE, 1, true)
	add("young", swarmpb.TaskState_TASK_STATE_FAILED, 9, true)
	for _, id := range []string{"forgotten", "stranger"} {
		add(id, swarmpb.TaskState_TASK_STATE_FAILED, 1, true)
		delete(f.tasks, id)
	}
	for _, c := range []struct {
		limit int64
		left  []string
	}{
		{6000, []string{"ending", "forgotten", "old", "older", "runs", "stranger", "young"}},
		{5000, []string{"ending", "old", "older", "runs", "stranger", "young"}},
		{4500, []string{"ending", "old", "runs", "stranger", "young"}},
		{3000, []string{"ending", "runs", "stranger", "young"}},
		{1, []string{"ending", "runs", "stranger"}},
		{0, []string{"ending", "runs", "stranger"}}, // a tenth of the disk
	} {
		f.cfg.Limits.LogBytes = c.limit
		if err := f.trimLogs(t.Context()); err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		var left []string
		for _, e := range entries {
			left = append(left, e.Name())
		}
		if !slices.Equal(left, c.left) {
			t.Errorf("limit %d: %q are left, want %q", c.limit, left, c.left)
		}
	}
}

// removedLogs is a runtime that removes log directories, but for one that is stuck.
type removedLogs struct {
	*runtimetest.Fake
	dir   func(string) string
	stuck string
}

func (r removedLogs) RemoveLogs(_ context.Context, id string) error {
	if id == r.stuck {
		return errStuck
	}
	return os.RemoveAll(r.dir(id))
}

var errStuck = errors.New("it is stuck")

func TestTrimLogs_OneCannotGo_OthersDo(t *testing.T) {
	dir := t.TempDir()
	f := &fleet{tasks: map[string]*task{}, adopted: make(chan struct{}), log: slog.New(slog.DiscardHandler)}
	close(f.adopted)
	f.cfg.Limits.LogBytes = 1
	f.cfg.LogDir = func(id string) string { return filepath.Join(dir, id) }
	r := removedLogs{runtimetest.NewFake(runtimetest.FakeConfig{}), f.cfg.LogDir, "a"}
	f.runtime = r
	for _, id := range []string{"a", "b"} {
		must(t, os.Mkdir(f.cfg.LogDir(id), 0o700))
		must(t, os.WriteFile(filepath.Join(f.cfg.LogDir(id), "current.log"), make([]byte, 1000), 0o600))
	}
	if err := f.trimLogs(t.Context()); !errors.Is(err, errStuck) {
		t.Errorf("error is %v", err)
	}
	if left, err := r.Logged(t.Context()); err != nil || !slices.Equal(left, []string{"a"}) {
		t.Errorf("%q are left, %v", left, err)
	}
}

func (r removedLogs) Logged(context.Context) ([]string, error) {
	entries, err := os.ReadDir(r.dir(""))
	var ids []string
	for _, e := range entries {
		ids = append(ids, e.Name())
	}
	return ids, err
}

// What the node lost its records of goes once the managers have said what it has; before that nobody knows whose it is.
func TestSweepLogs_RecordsLost_LogsWithoutATaskGoAndOthersStay(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.assign("runs", stateRunning, "print", "hello", "1h")
		h.manager.assign("leaves", stateRunning, "print", "hello", "1h")
		h.manager.assign("ended", stateRunning, "print", "hello")
		h.settle(5 * time.Second)
		h.wantState("ended", stateComplete, "")
		h.wantLogs("ended", "leaves", "runs")
		h.restart()
		h.settle(time.Minute)
		h.wantLogs("ended", "leaves", "runs") // it is in the node's history
		h.stop()
		must(t, (&db{path: h.dir + "/worker.db"}).wipe())
		h.cut(true)
		h.start()
		h.settle(time.Minute)
		h.wantLogs("ended", "leaves", "runs")
		h.manager.remove("leaves")
		h.cut(false)
		h.settle(30 * time.Second)
		h.wantRunning("runs")
		h.wantLogs("runs")
	})
}

// A database that cannot be read now says nothing of whose the logs are.
func TestSweepLogs_DatabaseCannotBeOpened_LogsStay(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.assign("ended", stateRunning, "print", "hello")
		h.settle(5 * time.Second)
		h.stop()
		must(t, os.Rename(h.dir+"/worker.db", h.dir+"/aside"))
		must(t, os.Mkdir(h.dir+"/worker.db", 0o700)) // stands for a file that cannot be opened now
		h.start()
		h.settle(time.Minute)
		h.wantLogs("ended")
	})
}

func TestAgent_RemoveAll_LeavesNoLogs(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.assign("ended", stateRunning, "print", "hello")
		h.settle(5 * time.Second)
		agent := h.agent
		h.stop()
		must(t, (&db{path: h.dir + "/worker.db"}).wipe())
		must(t, agent.RemoveAll(t.Context()))
		h.wantLogs()
	})
}

func (h *host) wantLogs(ids ...string) {
	h.Helper()
	got, err := h.runtime.Logged(context.Background())
	if err != nil || !slices.Equal(got, ids) {
		h.Fatalf("logs are there of %q, want %q; %v", got, ids, err)
	}
}

func TestAgent_RestartedWhileATaskIsRemoved_ItsLogsGoToo(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.assign("a", stateRunning, "print", "hello", "1h")
		h.settle(time.Second)
		h.runtime.SetBefore(func(ctx context.Context, op runtimetest.Op, _ string) error {
			if op == runtimetest.OpStop {
				sleep(ctx, 5*time.Second)
			}
			return ctx.Err()
		})
		h.manager.remove("a")
		h.settle(time.Second)
		h.cut(true)
		h.restart()
		h.settle(20 * time.Second)
		h.wantContainers() // it ended before the managers could be asked
		h.wantLogs("a")
		h.cut(false)
		h.settle(30 * time.Second)
		h.wantLogs()
	})
}
