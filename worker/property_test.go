package worker

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/runtime/runtimetest"
)

// stopped ends a property's run in its bubble: rapid's own Fatalf may only be called outside.
type stopped struct{ reason string }

type recorder struct{ failed *stopped }

func (r *recorder) Helper() {}
func (r *recorder) Errorf(format string, args ...any) {
	if r.failed == nil {
		r.failed = &stopped{fmt.Sprintf(format, args...)}
	}
}
func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	panic(r.failed)
}

// move is one thing that happens to a node.
type move struct {
	what string
	task int
	args []string
	wait time.Duration
}

func drawMoves(rt *rapid.T) []move {
	return rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) move {
		return move{
			what: rapid.SampledFrom([]string{
				"assign", "assign", "tied", "ready", "run", "shutdown", "remove", "exit", "cut", "mend", "restart", "reboot", "stall", "gap", "slow", "flaky", "well",
				"drained", "endpoint", "endpoint", "endpointless", "refuse", "accept", "connect",
			}).Draw(rt, "what"),
			task: rapid.IntRange(0, 7).Draw(rt, "task"),
			args: rapid.SampledFrom([][]string{nil, {"exit", "0", "3s"}, {"exit", "4", "500ms"}, {"ignore-term"}}).Draw(rt, "args"),
			wait: time.Duration(rapid.SampledFrom([]int{0, 0, 1, 90, 300, 2000, 15000, 40000}).Draw(rt, "wait")) * time.Millisecond,
		}
	}), 1, 40).Draw(rt, "moves")
}

func (h *host) play(m move, live map[int]string, made *int) {
	id := live[m.task]
	switch m.what {
	case "assign", "ready", "tied":
		if id != "" {
			return
		}
		*made++
		live[m.task] = fmt.Sprint("task-", *made)
		desired := stateRunning
		if m.what == "ready" {
			desired = stateReady
		}
		if m.what == "tied" {
			h.manager.assignTied(live[m.task], desired, m.args...)
			return
		}
		h.manager.assign(live[m.task], desired, m.args...)
	case "run", "shutdown":
		desired := stateRunning
		if m.what == "shutdown" {
			desired = stateShutdown
		}
		if id != "" && h.manager.tasks[id].DesiredState < desired {
			h.manager.desire(id, desired)
		}
	case "remove":
		if id != "" {
			h.manager.remove(id)
			delete(live, m.task)
		}
	case "exit":
		_ = h.runtime.Exit(id, 9) // it may not run now
	case "cut":
		h.wasCut = true
		h.cut(true)
	case "mend":
		h.cut(false)
	case "restart":
		h.restart()
	case "reboot":
		h.stop()
		h.runtime.Reboot()
		h.start()
	case "stall": // what comes from now on is not on the disk: the next restart is one after a kill
		h.stalled = true
		_ = h.agent.db.bolt.Close()
	case "gap":
		h.manager.mu.Lock()
		h.manager.spoil = true
		h.manager.mu.Unlock()
	case "drained":
		if id != "" {
			h.tell(id, h.manager.tasks[id].DesiredState, true)
		}
	case "connect":
		h.net.SetEstablished(id, m.task%2)
	case "endpoint":
		h.manager.change(serviceRow("s"), endpointRow(fmt.Sprint("far-", m.task), "s", fmt.Sprint("node-", 2+m.wait%3)))
	case "endpointless":
		if m.task == 0 {
			h.manager.change(removeService("s"))
		} else {
			h.manager.change(removeEndpoint(fmt.Sprint("far-", m.task)))
		}
	case "refuse":
		h.net.Refuse(errors.New("refused"))
	case "accept":
		h.net.Refuse(nil)
	case "slow", "flaky":
		h.runtime.SetBefore(trouble(m.what))
	case "well":
		h.runtime.SetBefore(nil)
	}
}

// trouble makes every operation slow, or every third one fail.
func trouble(what string) func(context.Context, runtimetest.Op, string) error {
	var n atomic.Int64
	return func(ctx context.Context, op runtimetest.Op, _ string) error {
		if what == "slow" && op != runtimetest.OpWait {
			sleep(ctx, 700*time.Millisecond)
		} else if n.Add(1)%3 == 0 {
			return errors.New("flaky")
		}
		return nil
	}
}

// wantConverged checks a node whose manager and runtime are well, and have been for a while.
func (h *host) wantConverged(made int) {
	h.Helper()
	var wanted []string
	for id, t := range h.manager.tasks {
		state := h.manager.status(id).GetState()
		switch {
		case t.DesiredState == stateRunning && !state.Ended():
			wanted = append(wanted, id)
			if state != stateRunning {
				h.Errorf("%s should run and is %s", id, state.Name())
			}
		case t.DesiredState == stateShutdown && !state.Ended():
			h.Errorf("%s should have ended and is %s", id, state.Name())
		case t.DesiredState == stateReady && state != stateReady:
			h.Errorf("%s should be ready and is %s", id, state.Name())
		}
	}
	h.wantRunning(wanted...)
	h.wantContainers(wanted...)
	for i := range made {
		id := fmt.Sprint("task-", i+1)
		if h.manager.tasks[id] == nil {
			continue // removed perhaps before its last status came
		}
		if h.stalled && h.wasCut {
			continue // what it did without managers and without a disk is known to nobody
		}
		again := h.manager.status(id).GetContainer().GetLocalRestarts()
		if n := h.runtime.Starts(id); n > 1+int(again) {
			h.Errorf("%s was started %d times, and says that it was started again %d times without managers", id, n, again)
		}
	}
	if len(h.manager.went) > 0 && !h.stalled {
		h.Errorf("states went back: %q", h.manager.went)
	}
	for _, id := range h.net.Attached() {
		if t := h.manager.tasks[id]; t == nil || h.manager.status(id).GetState().Ended() {
			h.Errorf("%s is still on the network", id)
		}
	}
	far := 0
	for at, row := range h.manager.rows {
		if e, is := row.(*swarmpb.Endpoint); is {
			far++
			if !proto.Equal(h.net.Endpoints()[at.key], e) {
				h.Errorf("endpoint %s is %v in the network, want %v", at.key, h.net.Endpoints()[at.key], e)
			}
		}
	}
	if n := len(h.net.Endpoints()); n != far {
		h.Errorf("%d endpoints are in the network, want %d", n, far)
	}
	if h.manager.applied != h.manager.version {
		h.Errorf("version %d is acknowledged, want %d", h.manager.applied, h.manager.version)
	}
}

func TestAgent_AnythingHappens_EndsWithExactlyWhatIsWanted(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		moves := drawMoves(rt)
		dir := t.TempDir()
		r := &recorder{}
		synctest.Test(t, func(*testing.T) {
			h := newHost(r, dir)
			defer h.close()
			defer func() {
				if e := recover(); e != nil && e != any(r.failed) {
					panic(e)
				}
			}()
			h.start()
			h.manager.networked()
			live, made := map[int]string{}, 0
			for _, m := range moves {
				h.play(m, live, &made)
				h.settle(m.wait)
			}
			h.runtime.SetBefore(nil)
			h.net.Refuse(nil)
			h.cut(false)
			if h.stalled {
				h.restart()
			}
			h.settle(3 * time.Minute)
			h.wantConverged(made)
		})
		if r.failed != nil {
			rt.Fatalf("%s", r.failed.reason)
		}
	})
}
