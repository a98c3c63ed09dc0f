package worker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/runtime"
)

func TestExpand_Fields_AreFilledInOrNamed(t *testing.T) {
	task := &swarmpb.AssignedTask{Id: "task1", ServiceId: "s1", ServiceName: "web", Slot: 2}
	f := fieldsOf("node1", "host1", &swarmpb.Platform{Os: "linux", Architecture: "arm64"}, task)
	for text, want := range map[string]string{
		"":                                 "",
		"plain } {":                        "plain } {",
		"{{.Service.Name}}.{{.Task.Slot}}": "web.2",
		"{{ .Task.Name }}":                 "web.2.task1",
		"{{.Node.Hostname}}/{{.Node.ID}}":  "host1/node1",
		"{{.Node.Platform.OS}}-{{.Node.Platform.Architecture}}": "linux-arm64",
		"{{.Service.ID}}{{.Task.ID}}":                           "s1task1",
	} {
		if got, err := f.expand(text); err != nil || got != want {
			t.Errorf("%q: %q, %v; want %q", text, got, err, want)
		}
	}
	for _, text := range []string{"{{", "{{.Task.ID", "{{}}", "{{.Nothing}}", "{{.Task.ID}}{{x}}", "{{{{.Task.ID}}}}"} {
		if got, err := f.expand(text); err == nil {
			t.Errorf("%q: %q and no error", text, got)
		}
	}
	global := fieldsOf("node1", "host1", nil, &swarmpb.AssignedTask{Id: "task2", ServiceName: "web", Slot: swarmpb.NodeSlot("node1"), Global: true})
	if global[".Task.Slot"] != "node1" || global[".Task.Name"] != "web.node1.task2" {
		t.Errorf("a global task has %v", global)
	}
}

func TestExpand_AnyText_NeverPanics(t *testing.T) {
	f := fields{".Task.ID": "x"}
	rapid.Check(t, func(rt *rapid.T) {
		text := rapid.StringMatching(`([{}. a-zA-Z]|\{\{\.Task\.ID\}\})*`).Draw(rt, "text")
		out, err := f.expand(text)
		if err == nil && strings.Contains(out, "{{") {
			rt.Fatalf("%q became %q", text, out)
		}
	})
}

func TestAssembly_ChunksInAnyCut_GiveTheSameSet(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var a assembly
		var base uint64
		for n := range rapid.IntRange(1, 5).Draw(rt, "sets") {
			version := base + rapid.Uint64Range(1, 9).Draw(rt, "step")
			count := rapid.IntRange(0, 12).Draw(rt, "changes")
			left := count
			for {
				k := rapid.IntRange(0, left).Draw(rt, "chunk")
				left -= k
				last := left == 0
				s, err := a.add(&swarmpb.AssignmentsResponse{BaseVersion: base, Version: version, LastChunk: last, Changes: make([]*swarmpb.AssignmentChange, k)})
				if err != nil || (s != nil) != last {
					rt.Fatalf("chunk: %v, %v", s, err)
				}
				if last {
					if s.full != (n == 0) || s.version != version || len(s.changes) != count {
						rt.Fatalf("set is %+v, want version %d with %d changes", s, version, count)
					}
					break
				}
			}
			base = version
		}
	})
}

func TestAssembly_WhatDoesNotFit_IsABadSet(t *testing.T) {
	response := func(base, version uint64, last bool) *swarmpb.AssignmentsResponse {
		return &swarmpb.AssignmentsResponse{BaseVersion: base, Version: version, LastChunk: last}
	}
	for name, chunks := range map[string][]*swarmpb.AssignmentsResponse{
		"increment first":             {response(3, 4, true)},
		"increment on another":        {response(0, 4, true), response(3, 5, true)},
		"another version in between":  {response(0, 4, false), response(0, 5, true)},
		"another base in between":     {response(0, 4, true), response(4, 5, false), response(0, 5, true)},
		"a set that is out of bounds": {response(0, 4, false), {Version: 4, Changes: make([]*swarmpb.AssignmentChange, maxSetChanges+1)}},
	} {
		var a assembly
		var err error
		for _, c := range chunks {
			_, err = a.add(c)
		}
		var bad *badSetError
		if !errors.As(err, &bad) {
			t.Errorf("%s: error is %v, want a bad set", name, err)
		}
	}
}

func TestManagers_Pick_FollowsWeightsAndLeavesWhatFailed(t *testing.T) {
	peer := func(address string, weight uint32) *swarmpb.ManagerPeer {
		return &swarmpb.ManagerPeer{Address: address, Weight: weight}
	}
	m := newManagers([]*swarmpb.ManagerPeer{peer("given:1", 1)}, 7)
	if got, ok := m.pick(); !ok || got != "given:1" {
		t.Fatalf("picked %q with nothing learned", got)
	}
	if m.learn(nil) || m.learn([]*swarmpb.ManagerPeer{{NodeId: "no address"}}) {
		t.Error("learned from an empty list")
	}
	list := []*swarmpb.ManagerPeer{peer("a:1", 9), peer("b:1", 1), peer("c:1", 0)}
	if !m.learn(list) || m.learn(list) {
		t.Error("a new list is news, once")
	}
	m.outcome(true)
	seen := map[string]int{}
	for range 2200 {
		address, _ := m.pick()
		seen[address]++
	}
	if seen["a:1"] < 1600 || seen["b:1"] < 120 || seen["c:1"] < 120 || seen["given:1"] != 0 {
		t.Errorf("picked %v of weights 9, 1, 0", seen)
	}
	seen = map[string]int{}
	before, _ := m.pick()
	for range 50 { // all fail: each is tried, also the one of the configuration, and none twice in a row
		m.outcome(false)
		address, _ := m.pick()
		if address == before {
			t.Fatalf("%s was tried again at once", address)
		}
		before = address
		seen[address]++
	}
	if want := []string{"a:1", "b:1", "c:1", "given:1"}; !slices.Equal(slices.Sorted(maps.Keys(seen)), want) {
		t.Errorf("tried %v, want each of %q", seen, want)
	}
	if _, ok := newManagers(nil, 1).pick(); ok {
		t.Error("picked a manager out of none")
	}
}

func TestExplain_Exits_AreOneLine(t *testing.T) {
	for want, exit := range map[string]runtime.Exit{
		"": {OOMKilled: true}, "exit code 3": {Code: 3}, "killed by signal 9": {Code: 137}, "exit code 255": {Code: 255},
		"out of memory": {Code: 137, OOMKilled: true},
		"it ended while nobody watched; its exit code is not known": {Unknown: true},
	} {
		if good := explainExit(runtime.Exit{}); good != "" {
			t.Errorf("a good end: %q", good)
		}
		if got := explainExit(exit); got != want {
			t.Errorf("%+v: %q, want %q", exit, got, want)
		}
	}
	long := oneLine("a\n b\t" + strings.Repeat("ö", 2000))
	if !strings.HasPrefix(long, "a b ö") || len(long) > maxText || !utf8.ValidString(long) || !strings.HasSuffix(long, "...") {
		t.Errorf("%q", long)
	}
}

func TestMemoryBytes_OfMeminfo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "meminfo")
	for body, want := range map[string]int64{
		"MemFree: 1 kB\nMemTotal:       2048 kB\n": 2048 * 1024, "MemTotal: x kB\n": 0, "MemTotal:\n": 0, "": 0,
	} {
		if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := memoryBytes(path); got != want {
			t.Errorf("%q: %d, want %d", body, got, want)
		}
	}
	if memoryBytes(path+"-missing") != 0 {
		t.Error("memory of a missing file")
	}
}

func TestBackoff_Pauses_DoubleWithinBounds(t *testing.T) {
	b := backoff{min: time.Second, max: 5 * time.Second}
	var got []time.Duration
	for range 4 {
		got = append(got, b.next(nil))
	}
	if fmt.Sprint(got) != "[1s 2s 4s 5s]" {
		t.Errorf("pauses are %v", got)
	}
	b.reset()
	if d := b.next(func() float64 { return 0.5 }); d != 750*time.Millisecond {
		t.Errorf("first pause with jitter is %v", d)
	}
}

func TestGrace_UnsetZeroAndNegative(t *testing.T) {
	if graceOf(nil) != 10*time.Second || graceOf(&swarmpb.ContainerSpec{}) != 10*time.Second {
		t.Error("unset is 10 s")
	}
}

func TestPulls_LastWaiterLeaves_PullEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := &hangingRuntime{ended: make(chan struct{})}
		p := newPulls(rt, 1)
		goer := func(fn func(context.Context)) bool { go fn(t.Context()); return true }
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := p.get(ctx, pullKey{image: "a"}, goer); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error is %v", err)
		}
		<-rt.ended
		synctest.Wait()
		if len(p.flight) != 0 {
			t.Error("an abandoned pull is still listed")
		}
		if _, err := p.get(t.Context(), pullKey{image: "a"}, func(func(context.Context)) bool { return false }); err == nil {
			t.Error("pulled with nobody to do it")
		}
	})
}

// hangingRuntime pulls until it is told to stop.
type hangingRuntime struct {
	runtime.Runtime
	ended chan struct{}
}

func (r *hangingRuntime) Pull(ctx context.Context, _ runtime.PullRequest) (runtime.Image, error) {
	<-ctx.Done()
	close(r.ended)
	return runtime.Image{}, ctx.Err()
}

func TestStays_JobThatHasCompletedWithoutManagers_IsNotStartedAgain(t *testing.T) {
	for name, c := range map[string]struct {
		desired swarmpb.TaskState
		code    uint32
		want    bool
	}{
		"job done":     {swarmpb.TaskState_TASK_STATE_COMPLETE, 0, false},
		"job failed":   {swarmpb.TaskState_TASK_STATE_COMPLETE, 1, true},
		"service ends": {swarmpb.TaskState_TASK_STATE_RUNNING, 0, true},
	} {
		if got := (restartPolicy{}).wants(c.desired, runtime.Exit{Code: c.code}); got != c.want {
			t.Errorf("%s: %t, want %t", name, got, c.want)
		}
	}
}
