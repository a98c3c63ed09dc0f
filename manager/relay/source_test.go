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
)

func TestStream_EmptyLines_AreLinesLikeOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "m1")
		n := w.serve("node-1", "m1")
		defer n.disconnect()
		n.write(w.task(1, 1, "node-1", running), record(1, "a"), record(2, ""), record(3, ""), record(4, "b"))
		for _, follow := range []bool{false, true} {
			u := w.read("m1", &swarmpb.LogsStreamRequest{Target: "web", Follow: follow})
			until(t, func() bool { l, n := u.has(); return len(l) == 4 || len(n) > 0 })
			u.cancel()
			<-u.done
			lines, notices := u.has()
			if len(notices) > 0 || !slices.Equal(lines, []string{"web.1@node-1: a", "web.1@node-1: ", "web.1@node-1: ", "web.1@node-1: b"}) {
				t.Errorf("follow %v: lines %q, notices %q", follow, lines, notices)
			}
		}
	})
}

func TestWellFormed_WhatNoLoggerWrites_IsNot(t *testing.T) {
	good := record(1, "text")
	for name, records := range map[string]string{
		"a time that moves the cursor": strings.Replace(good, "2026", "\x1b[2J", 1),
		"another stream":               strings.Replace(good, "stdout", "stdxxx", 1),
		"another tag":                  strings.Replace(good, " F ", " X ", 1),
		"a second line without a head": good + "x\n",
		"no end":                       good + strings.TrimSuffix(good, "\n"),
		"a head that is too short":     good[:recordHead-1] + "\n",
	} {
		if wellFormed([]byte(records)) {
			t.Errorf("%s: %q counts as a log", name, records)
		}
	}
	for _, records := range []string{"", good, good + record(2, ""), strings.Replace(good, "stdout F", "stderr P", 1)} {
		if !wellFormed([]byte(records)) {
			t.Errorf("%q counts as none", records)
		}
	}
}

func TestFollow_NodeIsLostBeforeItHasLines_ItsTailIsNotCutAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "m1")
		n := w.serve("node-1", "m1")
		defer n.disconnect()
		w.task(1, 1, "node-1", running)
		queries := make(chan *swarmpb.LogQuery, 10)
		n.answer = func(ctx context.Context, req *swarmpb.RelayRequest, client swarmpb.RelayClient) {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			stream, err := client.Answer(ctx)
			if err != nil {
				return
			}
			_ = stream.Send(&swarmpb.RelayFrame{RequestId: req.GetId()})
			_ = stream.Send(&swarmpb.RelayFrame{Kind: &swarmpb.RelayFrame_Logs{Logs: &swarmpb.LogFrame{}}})
			queries <- req.GetLogs()
			time.Sleep(time.Second) // and then the call is cut off
		}
		u := w.read("m1", &swarmpb.LogsStreamRequest{Target: "web", Follow: true, Tail: new(uint64(2))})
		first, second := <-queries, <-queries
		u.cancel()
		<-u.done
		if first.Tail == nil || first.GetTail() != 2 || second.Tail != nil {
			t.Errorf("asked for the last %v lines, then for the last %v", first.Tail, second.Tail)
		}
	})
}

func TestStream_NodeWasRemoved_IsToldOnceAndNotAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "m1")
		n, gone := w.serve("node-1", "m1"), w.serve("node-2", "m1")
		defer n.disconnect()
		defer gone.disconnect()
		for attempt := range uint64(3) {
			w.task(1, attempt+1, "node-2", failed)
		}
		n.write(w.task(1, 4, "node-1", running), record(1, "a"))
		if _, err := w.local.Propose(t.Context(), &swarmpb.Proposal{Now: 1, Writes: []*swarmpb.Write{
			{Op: &swarmpb.Write_Delete{Delete: swarmpb.NodeKey("node-2")}}}}); err != nil {
			t.Fatal(err)
		}
		u := w.read("m1", &swarmpb.LogsStreamRequest{Target: "web"})
		<-u.done
		lines, notices := u.has()
		if u.err != nil || fmt.Sprint(lines) != "[web.1@node-1: a]" || len(notices) != 1 || !strings.HasPrefix(notices[0], "node-2: it is no node of the cluster any more") {
			t.Errorf("%v, lines %q, notices %q", u.err, lines, notices)
		}
		gone.set(func() {
			if gone.asked > 0 {
				t.Error("a node that was removed is asked")
			}
		})
	})
}
