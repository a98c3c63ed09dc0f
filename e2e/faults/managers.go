package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/swarmd/swarmd/e2e/measure"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// swarmLeader is how long the peer's cluster has no leader.
const swarmLeader = "9.3 to 15.6 s"

// loseLeader: SIGKILL, SIGSTOP and a hung disk of the leader of three, until another manager has acknowledged a write.
// What was acknowledged before must be there, and workers with sessions elsewhere must keep them.
func loseLeader(ctx context.Context, c *measure.Cluster, n int) ([]row, error) {
	w, err := settled(ctx, c)
	if err != nil {
		return nil, err
	}
	w.Close()
	var rows []row
	for _, f := range []struct {
		what       string
		begin, end func(*measure.Host) error
	}{
		{"leader of 3 killed -> first write acknowledged", kill, func(h *measure.Host) error { return h.Up(ctx) }},
		{"leader of 3 paused (SIGSTOP) -> first write acknowledged",
			func(h *measure.Host) error { return h.SignalSwarmd(syscall.SIGSTOP) },
			func(h *measure.Host) error { return h.SignalSwarmd(syscall.SIGCONT) }},
		{"leader of 3, disk hangs -> first write acknowledged",
			func(h *measure.Host) error { _, err := h.HangDisk(); return err },
			func(h *measure.Host) error { return h.ReleaseDisk() }},
	} {
		var acknowledged measure.Series
		for i := range n {
			took, err := loseOne(ctx, c, f.begin, f.end)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", f.what, err)
			}
			acknowledged = append(acknowledged, took)
			progress(i, n, "%s after %s", f.what, measure.Seconds(took))
		}
		rows = append(rows, row{f.what, acknowledged, swarmLeader})
	}
	return rows, nil
}

// settle is the time between two faults: a lease, so that the one before is over for every session.
const settle = 3 * time.Second

func kill(h *measure.Host) error { return h.KillSwarmd() }

func loseOne(ctx context.Context, c *measure.Cluster, begin, end func(*measure.Host) error) (time.Duration, error) {
	leader, err := askAnother(ctx, c)
	if err != nil {
		return 0, err
	}
	before, after := swarmpb.NewID(), swarmpb.NewID()
	if err := leader.create(ctx, before); err != nil {
		return 0, err
	}
	sessions, err := sessionsBeside(ctx, c, leader.Host)
	if err != nil {
		return 0, err
	}
	started := time.Now()
	if err := begin(leader.Host); err != nil {
		return 0, err
	}
	if err := firstWrite(ctx, c, "after-"+after); err != nil {
		return 0, err
	}
	took := time.Since(started)
	if _, err := c.Manager().Control.GetService(ctx, &swarmpb.GetServiceRequest{Service: "before-" + before}); err != nil {
		return 0, fmt.Errorf("what the leader acknowledged is lost: %w", err)
	}
	for h, was := range sessions {
		now, err := c.Keeper(ctx, h)
		if err != nil {
			return 0, err
		}
		if now != was {
			return 0, fmt.Errorf("the session of %s was with %s, which lives, and is with %s", h.Name, was.Name, now.Name)
		}
	}
	if err := end(leader.Host); err != nil {
		return 0, err
	}
	for _, name := range []string{"before-" + before, "after-" + after} {
		if err := c.Remove(ctx, name); err != nil {
			return 0, err
		}
	}
	if err := recovered(ctx, c, leader.Host); err != nil {
		return 0, err
	}
	time.Sleep(settle)
	return took, nil
}

// lost is the leader that is to be lost.
type lost struct{ *measure.Host }

// create has the leader itself acknowledge a write.
func (l lost) create(ctx context.Context, id string) error {
	_, err := l.Control.CreateService(ctx, &swarmpb.CreateServiceRequest{Spec: measure.Service("before-"+id, 0), RequestId: id, NoResolveImage: true})
	return err
}

// askAnother has a manager asked that does not lead, and returns the leader.
func askAnother(ctx context.Context, c *measure.Cluster) (lost, error) {
	leader, err := c.Leader(ctx)
	if err != nil {
		return lost{}, err
	}
	for _, h := range c.Members() {
		if _, err := h.Control.GetCluster(ctx, &swarmpb.GetClusterRequest{}); err == nil && h != leader {
			c.Ask(h)
			return lost{leader}, nil
		}
	}
	return lost{}, errors.New("no other manager answers")
}

// sessionsBeside are the hosts whose sessions are with another manager than the given one, by that one.
func sessionsBeside(ctx context.Context, c *measure.Cluster, leader *measure.Host) (map[*measure.Host]*measure.Host, error) {
	out := map[*measure.Host]*measure.Host{}
	for _, h := range c.Members() {
		keeper, err := c.Keeper(ctx, h)
		if err != nil {
			return nil, err
		}
		if h != leader && keeper != leader {
			out[h] = keeper
		}
	}
	return out, nil
}

// recovered waits until the host is a ready manager again, and all nodes are ready.
func recovered(ctx context.Context, c *measure.Cluster, h *measure.Host) error {
	if err := c.AwaitVoter(ctx, h); err != nil {
		return err
	}
	for _, other := range c.Members() {
		if err := c.Await(ctx, other, swarmpb.NodeState_NODE_STATE_READY); err != nil {
			return err
		}
	}
	return nil
}

const (
	// writers of small changes, a third through each manager.
	writers = 12
	// writeRetry is how long one write is tried before it counts as failed: as long as a command of swarmctl tries.
	writeRetry = 5 * time.Second
	// loadBefore and loadAfter is how long the writers write around the stop.
	loadBefore, loadAfter = time.Second, 2 * time.Second
)

// stopLeader: SIGTERM to the leader of three while clients write through all three: the longest time without an
// acknowledgement, and the writes that failed though they were tried again, of which there must be none.
func stopLeader(ctx context.Context, c *measure.Cluster, n int) ([]row, error) {
	managers := c.Members()[:3]
	for i := range writers {
		if err := c.Create(ctx, measure.Service(fmt.Sprintf("load-%d", i), 0)); err != nil {
			return nil, err
		}
	}
	var gaps measure.Series
	for i := range n {
		leader, err := askAnother(ctx, c)
		if err != nil {
			return nil, err
		}
		load := startLoad(ctx, managers, leader.Host)
		time.Sleep(loadBefore)
		if err := leader.SignalSwarmd(syscall.SIGTERM); err != nil {
			return nil, err
		}
		if _, err := leader.WaitSwarmd(); err != nil {
			return nil, err
		}
		time.Sleep(loadAfter)
		gap, acknowledged, failed := load.end()
		if failed > 0 {
			return nil, fmt.Errorf("%d writes failed while the leader stopped", failed)
		}
		gaps = append(gaps, gap)
		progress(i, n, "leader stopped under load, longest time without an acknowledged write %s, %d writes", measure.Seconds(gap), acknowledged)
		if err := leader.Up(ctx); err != nil {
			return nil, err
		}
		if err := recovered(ctx, c, leader.Host); err != nil {
			return nil, err
		}
		time.Sleep(settle) // it applies its log again, tens of thousands of writes by now; meanwhile it makes no majority
	}
	return []row{{"leader of 3 stopped (SIGTERM) under load -> longest time without an acknowledged write", gaps, swarmLeader}}, nil
}

// load is writers at work.
type load struct {
	stop   chan struct{}
	all    sync.WaitGroup
	failed atomic.Int64

	mu           sync.Mutex
	last         time.Time
	gap          time.Duration
	acknowledged int
}

// startLoad writes through all managers; a client of the one that stops goes on with the next, as a client does.
func startLoad(ctx context.Context, managers []*measure.Host, leader *measure.Host) *load {
	l := &load{stop: make(chan struct{}), last: time.Now()}
	for i := range writers {
		l.all.Go(func() {
			at := i
			for v := 0; ; v++ {
				select {
				case <-l.stop:
					return
				default:
				}
				spec := measure.Service(fmt.Sprintf("load-%d", i), 0)
				spec.Labels = map[string]string{"value": fmt.Sprint(v)}
				request := &swarmpb.UpdateServiceRequest{Service: spec.GetName(), Spec: spec, RequestId: swarmpb.NewID(), NoResolveImage: true}
				begun := time.Now()
				for {
					_, err := managers[at%len(managers)].Control.UpdateService(ctx, request)
					if err == nil {
						l.ack()
						break
					}
					if time.Since(begun) > writeRetry {
						l.failed.Add(1)
						break
					}
					if managers[at%len(managers)] == leader {
						at++
					}
					time.Sleep(retryEvery)
				}
			}
		})
	}
	return l
}

func (l *load) ack() {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.gap, l.last = max(l.gap, now.Sub(l.last)), now
	l.acknowledged++
}

// end stops the writers and says what they saw.
func (l *load) end() (gap time.Duration, acknowledged int, failed int64) {
	close(l.stop)
	l.all.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.gap, l.acknowledged, l.failed.Load()
}

// killLeaderAndHost: of five managers and three workers the leader and a worker die in the same instant, until the
// worker is called down and its replicas run elsewhere. Which manager kept the worker's session is left to chance.
func killLeaderAndHost(ctx context.Context, c *measure.Cluster, n int) ([]row, error) {
	w, err := settled(ctx, c)
	if err != nil {
		return nil, err
	}
	w.Close()
	var kept, unkept, elsewhere measure.Series
	for i := range n {
		leader, err := askAnother(ctx, c)
		if err != nil {
			return nil, err
		}
		victim := c.Members()[5+i%3]
		keeper, err := c.Keeper(ctx, victim)
		if err != nil {
			return nil, err
		}
		both := func() error {
			died := make(chan error, 1)
			go func() { died <- leader.PowerOff() }()
			return errors.Join(victim.PowerOff(), <-died)
		}
		down, moved, err := timeLoss(ctx, c, victim, both)
		if err != nil {
			return nil, err
		}
		elsewhere = append(elsewhere, moved)
		if keeper == leader.Host {
			unkept = append(unkept, down)
		} else {
			kept = append(kept, down)
		}
		progress(i, n, "leader and a worker killed, down after %s, replicas elsewhere after %s", measure.Seconds(down), measure.Seconds(moved))
		for _, h := range []*measure.Host{leader.Host, victim} {
			if err := h.PowerOn(); err != nil {
				return nil, err
			}
			if err := h.Up(ctx); err != nil {
				return nil, err
			}
		}
		if err := recovered(ctx, c, leader.Host); err != nil {
			return nil, err
		}
		if w, err = resettled(ctx, c); err != nil {
			return nil, err
		}
		if err := spread(ctx, c, w); err != nil {
			return nil, err
		}
		w.Close()
	}
	rows := []row{{"leader of 5 and a worker killed at once -> replicas RUNNING elsewhere", elsewhere, ""}}
	for _, r := range []row{
		{"leader of 5 and a worker killed at once, its keeper lives -> node down", kept, ""},
		{"leader of 5 and a worker killed at once, the leader was its keeper -> node down", unkept, ""},
	} {
		if len(r.Series) > 0 {
			rows = append(rows, r)
		}
	}
	return rows, nil
}
