package relay

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

func TestStream_TasksOnNodesOfSeveralManagers_ComeByTimeAndEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "m1", "m2")
		var nodes []*fakeNode
		for i, manager := range []string{"m1", "m2", "m2"} {
			n := w.serve(fmt.Sprintf("node-%d", i+1), manager)
			defer n.disconnect()
			nodes = append(nodes, n)
			id := w.task(uint64(i+1), 1, n.id, running)
			for s := range 100 {
				n.write(id, record(3*s+i, fmt.Sprint(3*s+i)))
			}
		}
		old := w.task(1, 0, "node-3", failed)
		nodes[2].write(old, record(0, "ended"))
		u := w.read("m1", &swarmpb.LogsStreamRequest{Target: "web"})
		<-u.done
		lines, notices := u.has()
		if u.err != nil || len(notices) > 0 || len(lines) != 301 {
			t.Fatalf("%v, %d lines, notices %q", u.err, len(lines), notices)
		}
		lines = slices.DeleteFunc(lines, func(l string) bool { return l == "web.1@node-3: ended" })
		for i, line := range lines {
			if want := fmt.Sprintf("web.%d@node-%d: %d", i%3+1, i%3+1, i); line != want {
				t.Fatalf("line %d is %q, want %q", i, line, want)
			}
		}
		if one := w.read("m2", &swarmpb.LogsStreamRequest{Target: old}); true {
			<-one.done
			if lines, _ := one.has(); len(lines) != 1 || one.err != nil {
				t.Errorf("one task: %q, %v", lines, one.err)
			}
		}
	})
}

func TestStream_NodeIsSilent_NoticeWithinSecondsAndTheOthersComplete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "m1", "m2")
		good, bad := w.serve("node-1", "m1"), w.serve("node-2", "m2")
		defer good.disconnect()
		defer bad.disconnect()
		good.write(w.task(1, 1, "node-1", running), record(1, "a"), record(2, "b"))
		bad.write(w.task(2, 1, "node-2", running), record(1, "x"))
		bad.set(func() { bad.silent = true })
		began := time.Now()
		u := w.read("m1", &swarmpb.LogsStreamRequest{Target: "web"})
		<-u.done
		lines, notices := u.has()
		if u.err != nil || !slices.Equal(lines, []string{"web.1@node-1: a", "web.1@node-1: b"}) {
			t.Errorf("%v %q", u.err, lines)
		}
		if len(notices) != 1 || notices[0] != "node-2: no answer; its logs are missing" {
			t.Errorf("notices %q", notices)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("it took %s", took)
		}
		// One that is known to nobody is told at once.
		w.node("node-3")
		w.task(3, 1, "node-3", running)
		bad.set(func() { bad.silent = false })
		u = w.read("m1", &swarmpb.LogsStreamRequest{Target: "web"})
		<-u.done
		if lines, notices := u.has(); len(lines) != 3 || len(notices) != 1 || !strings.Contains(notices[0], "node-3: no answer") {
			t.Errorf("%q %q", lines, notices)
		}
	})
}

func TestFollow_NodeFallsSilentOrLosesItsManager_GoesOnWhereItWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "m1", "m2", "m3")
		good, bad := w.serve("node-1", "m1"), w.serve("node-2", "m2")
		defer func() { good.disconnect() }()
		defer func() { bad.disconnect() }()
		one, two := w.task(1, 1, "node-1", running), w.task(2, 1, "node-2", running)
		var stale context.CancelFunc = func() {}
		gone := make(chan struct{})
		close(gone)
		defer func() { stale(); <-gone }()
		written := 0
		write := func() {
			good.write(one, record(written, fmt.Sprint(written)))
			bad.write(two, record(written, fmt.Sprint(written)))
			written++
		}
		u := w.read("m1", &swarmpb.LogsStreamRequest{Target: "web", Follow: true})
		of := func(name string) (out []string) {
			lines, _ := u.has()
			for _, l := range lines {
				if strings.HasPrefix(l, name) {
					out = append(out, l)
				}
			}
			return out
		}
		both := func() bool { return len(of("web.1")) == written && len(of("web.2")) == written }
		write()
		until(t, both)
		for round, fault := range []struct{ begin, end func() }{
			{func() { bad.set(func() { bad.silent = true }) }, func() { bad.disconnect(); bad.set(func() { bad.silent = false }); bad.connect("m2") }},
			{func() { w.stop("m2") }, func() { <-bad.done; bad.connect("m3") }},
			{func() { bad.disconnect() }, func() { bad.connect("m1") }},
			// It comes to another manager while the first still takes its stream for alive.
			{func() { bad.set(func() { bad.silent = true }) }, func() {
				stale, gone = bad.cancel, bad.done
				bad.set(func() { bad.silent = false })
				bad.connect("m3")
			}},
		} {
			fault.begin()
			write()
			began := time.Now()
			until(t, func() bool { _, notices := u.has(); return len(notices) == 2*round+1 })
			if took := time.Since(began); took > 8*time.Second {
				t.Errorf("round %d: told after %s", round, took)
			}
			until(t, func() bool { return len(of("web.1")) == written }) // it does not hold up the others
			fault.end()
			write()
			until(t, both)
		}
		_, notices := u.has()
		for i, n := range notices {
			if want := []string{"node-2: no answer; its logs are missing from here on", "node-2: it answers again"}[i%2]; n != want {
				t.Errorf("notice %d is %q, want %q", i, n, want)
			}
		}
		for i, l := range of("web.2") {
			if l != fmt.Sprintf("web.2@node-2: %d", i) {
				t.Fatalf("line %d is %q", i, l)
			}
		}
		u.cancel()
		<-u.done
	})
}

func TestFollow_TasksComeAndGo_NewOnesAppearAndItEndsWithTheService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "m1")
		n := w.serve("node-1", "m1")
		defer n.disconnect()
		first := w.task(1, 1, "node-1", running)
		n.write(first, record(1, "old"))
		u := w.read("m1", &swarmpb.LogsStreamRequest{Target: "web", Follow: true})
		alone := w.read("m1", &swarmpb.LogsStreamRequest{Target: first, Follow: true})
		until(t, func() bool { l, _ := u.has(); return len(l) == 1 })
		second := w.task(1, 2, "node-1", running)
		n.write(second, record(2, "new"))
		n.set(func() { n.ended[first] = true })
		until(t, func() bool { l, _ := u.has(); return len(l) == 2 })
		<-alone.done
		if alone.err != nil {
			t.Error(alone.err)
		}
		n.set(func() { n.ended[second] = true })
		synctest.Wait()
		select {
		case <-u.done:
			t.Fatal("it ended before the service")
		default:
		}
		for _, key := range []*swarmpb.RowKey{{Table: swarmpb.Table_TABLE_TASK, Id: first}, {Table: swarmpb.Table_TABLE_TASK, Id: second}, {Table: swarmpb.Table_TABLE_SERVICE, Id: w.service}} {
			if _, err := w.local.Propose(context.Background(), &swarmpb.Proposal{Writes: []*swarmpb.Write{{Op: &swarmpb.Write_Delete{Delete: key}}}}); err != nil {
				t.Fatal(err)
			}
		}
		<-u.done
		if _, notices := u.has(); u.err != nil || len(notices) > 0 {
			t.Errorf("%v %q", u.err, notices)
		}
	})
}

func TestFollow_SlowUser_HoldsTheNodesUpAndNothingPilesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "m1", "m2")
		n := w.serve("node-1", "m2") // over two managers
		defer n.disconnect()
		id := w.task(1, 1, "node-1", running)
		for i := range 500 {
			n.write(id, record(i, fmt.Sprint(i)))
		}
		gate := make(chan struct{})
		u := w.readGated("m1", &swarmpb.LogsStreamRequest{Target: "web", Follow: true}, gate)
		time.Sleep(30 * time.Second)
		n.set(func() {
			if n.sent > window {
				t.Errorf("the node has sent %d frames to a user who reads none, want at most %d", n.sent, window)
			}
		})
		if lines, notices := u.has(); len(lines)+len(notices) > 0 {
			t.Fatalf("%q %q", lines, notices)
		}
		close(gate)
		until(t, func() bool { l, _ := u.has(); return len(l) == 500 })
		if _, notices := u.has(); len(notices) > 0 {
			t.Errorf("a slow user is told %q", notices)
		}
		u.cancel()
		<-u.done
	})
}

func TestAnswer_NotAskedOfTheNode_IsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "m1")
		good, bad := w.serve("node-1", "m1"), w.serve("node-2", "m1")
		defer good.disconnect()
		defer bad.disconnect()
		id := w.task(1, 1, "node-1", running)
		requests := make(chan string, 1)
		good.answer = func(ctx context.Context, req *swarmpb.RelayRequest, _ swarmpb.RelayClient) {
			requests <- req.GetId()
			<-ctx.Done()
		}
		u := w.read("m1", &swarmpb.LogsStreamRequest{Target: id, Follow: true})
		request := <-requests
		conn, err := w.dial("m1", "node-2")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		answer := func(first *swarmpb.RelayFrame) error {
			stream, err := swarmpb.NewRelayClient(conn).Answer(t.Context())
			if err != nil {
				return err
			}
			if first != nil {
				_ = stream.Send(first)
			}
			_, err = stream.Recv()
			return wire.FromStatus(err)
		}
		for name, c := range map[string]struct {
			first *swarmpb.RelayFrame
			want  wire.Code
		}{
			"another node's":    {&swarmpb.RelayFrame{RequestId: request}, wire.CodeNotFound},
			"nobody's":          {&swarmpb.RelayFrame{RequestId: swarmpb.NewID()}, wire.CodeNotFound},
			"without a name":    {&swarmpb.RelayFrame{}, wire.CodeNotFound},
			"that says nothing": {nil, wire.CodeDeadline},
		} {
			if err := answer(c.first); wire.CodeOf(err) != c.want {
				t.Errorf("an answer %s: %v, want %v", name, err, c.want)
			}
		}
		if lines, _ := u.has(); len(lines) > 0 {
			t.Errorf("%q", lines)
		}
		u.cancel()
		<-u.done
		m := w.at("m1")
		m.mu.Lock()
		defer m.mu.Unlock()
		if len(m.asked)+len(m.load)+len(m.anonymous) > 0 {
			t.Errorf("%d requests, %v, %v are left", len(m.asked), m.load, m.anonymous)
		}
	})
}

func TestAnswer_HostileFrames_CostANoticeAlone(t *testing.T) {
	frames := map[string][]*swarmpb.RelayFrame{
		"no records":   {{Kind: &swarmpb.RelayFrame_Logs{Logs: &swarmpb.LogFrame{Records: []byte("x\ny")}}}},
		"no end":       {{Kind: &swarmpb.RelayFrame_Logs{Logs: &swarmpb.LogFrame{Records: []byte(strings.Repeat("x", 100))}}}},
		"too large":    {{Kind: &swarmpb.RelayFrame_Logs{Logs: &swarmpb.LogFrame{Records: make([]byte, maxFrame+1)}}}},
		"long error":   {{Error: strings.Repeat("\x1b[31m", 50_000)}},
		"no position":  {{Kind: &swarmpb.RelayFrame_Logs{Logs: &swarmpb.LogFrame{Position: &swarmpb.LogPosition{File: strings.Repeat("f", 500_000)}}}}, {Error: "over"}},
		"many notices": {{Kind: &swarmpb.RelayFrame_Logs{Logs: &swarmpb.LogFrame{Notices: slices.Repeat([]string{"n\n\x00"}, 50_000)}}}, {Error: "over"}},
	}
	for name, frames := range frames {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, "m1")
				n := w.serve("node-1", "m1")
				defer n.disconnect()
				w.task(1, 1, "node-1", running)
				n.answer = func(ctx context.Context, req *swarmpb.RelayRequest, client swarmpb.RelayClient) {
					stream, err := client.Answer(ctx)
					if err != nil {
						return
					}
					_ = stream.Send(&swarmpb.RelayFrame{RequestId: req.GetId()})
					for _, f := range frames {
						_ = stream.Send(f)
					}
					_, _ = stream.Recv()
					_, _ = stream.Recv()
				}
				u := w.read("m1", &swarmpb.LogsStreamRequest{Target: "web"})
				<-u.done
				lines, notices := u.has()
				if u.err != nil || len(lines) > 0 || len(notices) == 0 || len(notices) > maxNotices+1 {
					t.Errorf("%v, lines %.100q, %d notices", u.err, lines, len(notices))
				}
				for _, text := range notices {
					if len(text) > 2*maxErrorBytes || strings.ContainsAny(text, "\n\x00\x1b") {
						t.Errorf("notice %q", text)
					}
				}
			})
		})
	}
}

func TestStream_MoreThanIsRead_SaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "m1")
		n := w.serve("node-1", "m1")
		defer n.disconnect()
		for attempt := range uint64(maxTasks + 50) {
			id := w.task(1, attempt+1, "node-1", failed)
			n.write(id, record(int(attempt), fmt.Sprint(attempt)))
		}
		u := w.read("m1", &swarmpb.LogsStreamRequest{Target: "web"})
		<-u.done
		lines, notices := u.has()
		if u.err != nil || len(lines) != maxTasks || lines[0] != "web.1@node-1: 50" {
			t.Errorf("%v, %d lines", u.err, len(lines))
		}
		if len(notices) != 1 || !strings.Contains(notices[0], "50 older tasks of web") {
			t.Errorf("%q", notices)
		}
		for slot := range uint64(maxTasks + 1) {
			w.task(slot+2, 1, "node-1", running)
		}
		for _, follow := range []bool{false, true} {
			u = w.read("m1", &swarmpb.LogsStreamRequest{Target: "web", Follow: follow})
			<-u.done
			if wire.CodeOf(u.err) != wire.CodeResourceExhausted || !strings.Contains(u.err.Error(), "name a task, such as web.1") {
				t.Errorf("follow %v: %v", follow, u.err)
			}
		}
		for _, target := range []string{"nope", "", strings.Repeat("x", 10_000)} {
			u = w.read("m1", &swarmpb.LogsStreamRequest{Target: target})
			if <-u.done; u.err == nil {
				t.Errorf("%.20q: no error", target)
			}
		}
	})
}

func TestStream_ManagerStops_EndsSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "m1")
		n := w.serve("node-1", "m1")
		defer n.disconnect()
		w.task(1, 1, "node-1", running)
		u := w.read("m1", &swarmpb.LogsStreamRequest{Target: "web", Follow: true})
		time.Sleep(time.Second)
		w.stop("m1")
		<-u.done
		if wire.CodeOf(u.err) != wire.CodeUnavailable {
			t.Error(u.err)
		}
	})
}
