package ca

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/time/rate"
	"pgregory.net/rapid"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

func anyone(addr string) context.Context {
	return wire.WithPeer(context.Background(), wire.PeerInfo{Caller: swarmpb.Caller_CALLER_ANYONE, Addr: addr})
}

func TestLimits_OneBusyHost_IsSlowedAndOthersAreNot(t *testing.T) {
	w := newWorld(t, Limits{PerHost: 1, PerHostBurst: 5, Overall: 1000, OverallBurst: 100})
	root := func(addr string) error {
		_, err := w.server.GetRootCertificate(anyone(addr), &swarmpb.GetRootCertificateRequest{})
		return err
	}
	allowed := 0
	for i := range 50 {
		err := root(fmt.Sprintf("10.0.0.1:%d", 1000+i)) // another port is no other host
		if err == nil {
			allowed++
		} else if wire.CodeOf(err) != wire.CodeResourceExhausted || !strings.Contains(err.Error(), "10.0.0.1") || !strings.Contains(err.Error(), "try again") {
			t.Fatalf("got %v", err)
		}
	}
	if allowed < 5 || allowed > 10 {
		t.Errorf("%d of 50 calls were allowed, the burst is 5", allowed)
	}
	if err := root("10.0.0.2:1"); err != nil {
		t.Errorf("another host: %v", err)
	}
	key, _ := wire.NewKey()
	csr, _ := wire.NewCSR(key)
	_, err := w.server.IssueCertificate(anyone("10.0.0.1:1"), &swarmpb.IssueCertificateRequest{Csr: csr, Token: w.founding.Tokens.GetWorker()})
	if wire.CodeOf(err) != wire.CodeResourceExhausted {
		t.Errorf("the other join call: %v", err)
	}
	worker := wire.WithPeer(context.Background(), wire.PeerInfo{Caller: swarmpb.Caller_CALLER_WORKER, NodeID: "w", Addr: "10.0.0.1:1"})
	if _, err := w.server.GetRootCertificate(worker, &swarmpb.GetRootCertificateRequest{}); err != nil {
		t.Errorf("a node on the same host: %v", err)
	}
	if _, err := w.server.GetRootCertificate(context.Background(), nil); wire.CodeOf(err) != wire.CodeUnauthenticated {
		t.Errorf("no peer: %v", err)
	}
}

func TestThrottle_AnyCalls_KeepMemoryAndRatesBounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limits := Limits{PerHost: 2, PerHostBurst: 3, Overall: 5, OverallBurst: 10, Hosts: 4}.orDefault()
		th := newThrottle(limits)
		start := time.Unix(1000, 0)
		now, allowed := start, 0
		for range rapid.IntRange(1, 200).Draw(t, "calls") {
			now = now.Add(time.Duration(rapid.IntRange(0, 500).Draw(t, "ms")) * time.Millisecond)
			if th.allow(fmt.Sprint(rapid.IntRange(0, 9).Draw(t, "host")), now) == nil {
				allowed++
			}
			if rapid.Bool().Draw(t, "sweep") {
				th.sweep(now)
			}
			if len(th.hosts) > limits.Hosts || len(th.hosts) != th.order.Len() {
				t.Fatalf("%d hosts, %d in order", len(th.hosts), th.order.Len())
			}
		}
		if most := float64(limits.OverallBurst) + float64(limits.Overall)*now.Sub(start).Seconds(); float64(allowed) > most+1 {
			t.Fatalf("%d allowed, at most %v", allowed, most)
		}
		th.sweep(now.Add(time.Hour))
		if len(th.hosts) != 0 {
			t.Fatalf("%d hosts are remembered for ever", len(th.hosts))
		}
	})
}

func TestNeverReady_TooManyJoined_AreRefusedUntilSomeWorkOrGo(t *testing.T) {
	w := newWorld(t, Limits{NeverReady: 3})
	w.setReady(w.founding.Identity.NodeID, swarmpb.NodeState_NODE_STATE_READY)
	var ids []string
	for range 3 {
		ids = append(ids, w.mustJoin(workerRole).NodeID)
	}
	refused := func() {
		t.Helper()
		_, err := w.join(w.founding.Tokens.GetWorker())
		if wire.CodeOf(err) != wire.CodeResourceExhausted || !strings.Contains(err.Error(), "swarmctl node rm") {
			t.Fatalf("got %v", err)
		}
	}
	refused()
	w.setReady(ids[0], swarmpb.NodeState_NODE_STATE_READY)
	w.mustJoin(workerRole)
	refused()
	w.setReady(ids[0], swarmpb.NodeState_NODE_STATE_DOWN) // it was ready once
	refused()
	w.removeNode(ids[1])
	w.mustJoin(workerRole)
}

func TestLimits_ZeroFields_TakeTheirDefaults(t *testing.T) {
	got := Limits{PerHost: 7}.orDefault()
	want := DefaultLimits()
	want.PerHost = rate.Limit(7)
	if got != want {
		t.Errorf("got %+v", got)
	}
}

func TestNew_MissingParts_IsAnError(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("made a server of nothing")
	}
}

func TestServer_BeforeTheFirstRows_SaysTryAgain(t *testing.T) {
	w := newWorld(t, Limits{})
	empty := store.New()
	w.server.cfg.Store = func() *store.Store { return empty }
	_, err := w.server.GetRootCertificate(anyone("10.0.0.1:1"), nil)
	if wire.CodeOf(err) != wire.CodeUnavailable {
		t.Errorf("got %v", err)
	}
}
