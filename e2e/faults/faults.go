package main

import (
	"context"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/swarmd/swarmd/e2e/measure"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

const (
	service = "web"
	// replicas are three a host, as in the peer's figures.
	replicas = 9
	// retryEvery is the pause between two tries of a write while no manager serves.
	retryEvery = 2 * time.Millisecond
)

// progress goes where it does not disturb the table.
func progress(i, n int, format string, args ...any) {
	fmt.Fprintf(os.Stderr, "  %d/%d "+format+"\n", append([]any{i + 1, n}, args...)...)
}

// settled makes the service and waits until all of it runs.
func settled(ctx context.Context, c *measure.Cluster) (*measure.Watch, error) {
	if err := c.Create(ctx, measure.Service(service, replicas)); err != nil {
		return nil, err
	}
	return resettled(ctx, c)
}

func resettled(ctx context.Context, c *measure.Cluster) (*measure.Watch, error) {
	w, err := c.Watch(ctx, service)
	if err != nil {
		return nil, err
	}
	if err := w.Until((*measure.Picture).Settled); err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

// killContainer: SIGKILL to a replica's first process until its replacement is RUNNING. Each time it is a fresh
// service, so that each death is its slot's first and no backoff is measured.
func killContainer(ctx context.Context, c *measure.Cluster, n int) ([]row, error) {
	var repaired measure.Series
	for i := range n {
		took, err := killOne(ctx, c, i)
		if err != nil {
			return nil, err
		}
		repaired = append(repaired, took)
		progress(i, n, "container killed, replacement running after %s", measure.Seconds(took))
	}
	return []row{{"container killed -> replacement RUNNING (restart delay unset)", repaired, "0.42 s (restart delay 0), 5.43 s (default)"}}, nil
}

func killOne(ctx context.Context, c *measure.Cluster, i int) (time.Duration, error) {
	w, err := settled(ctx, c)
	if err != nil {
		return 0, err
	}
	defer w.Close()
	host := c.Members()[i%len(c.Members())]
	slot, victim := uint64(0), ""
	for id, t := range w.RunningTasks() {
		if t.GetNodeId() == host.NodeID {
			slot, victim = t.GetTask().GetSlot(), id
		}
	}
	if victim == "" {
		return 0, fmt.Errorf("no replica runs on %s", host.Name)
	}
	begin := time.Now()
	if err := host.Kill(victim); err != nil {
		return 0, err
	}
	if err := w.Until(func(p *measure.Picture) bool {
		for id, t := range p.RunningTasks() {
			if id != victim && t.GetTask().GetSlot() == slot {
				return true
			}
		}
		return false
	}); err != nil {
		return 0, err
	}
	took := time.Since(begin)
	if err := c.Remove(ctx, service); err != nil {
		return 0, err
	}
	return took, w.Until(func(p *measure.Picture) bool { return p.Gone })
}

// killHost: everything on a worker dies at once; until the manager calls it down, and until what ran there runs
// elsewhere. The two workers take turns; the dead one comes back before the next run.
func killHost(ctx context.Context, c *measure.Cluster, n int) ([]row, error) {
	w, err := settled(ctx, c)
	if err != nil {
		return nil, err
	}
	w.Close()
	var down, elsewhere measure.Series
	for i := range n {
		victim := c.Members()[1+i%2]
		d, e, err := timeLoss(ctx, c, victim, victim.PowerOff)
		if err != nil {
			return nil, err
		}
		if err := back(ctx, c, victim); err != nil {
			return nil, err
		}
		down, elsewhere = append(down, d), append(elsewhere, e)
		progress(i, n, "host killed, down after %s, replicas elsewhere after %s", measure.Seconds(d), measure.Seconds(e))
	}
	return []row{
		{"worker's host killed -> node down", down, "14.3 to 14.6 s"},
		{"worker's host killed -> its replicas RUNNING elsewhere", elsewhere, "19.5 to 19.9 s, and the count stays wrong"},
	}, nil
}

// timeLoss loses a host, and says when it was called down and when what ran there ran elsewhere.
func timeLoss(ctx context.Context, c *measure.Cluster, victim *measure.Host, lose func() error) (down, elsewhere time.Duration, err error) {
	w, err := resettled(ctx, c)
	if err != nil {
		return 0, 0, err
	}
	defer func() { w.Close() }()
	on := func(p *measure.Picture) (n int) {
		for _, t := range p.RunningTasks() {
			if t.GetNodeId() == victim.NodeID {
				n++
			}
		}
		return n
	}
	if on(&w.Picture) == 0 {
		return 0, 0, fmt.Errorf("no replica runs on %s", victim.Name)
	}
	begin := time.Now()
	if err := lose(); err != nil {
		return 0, 0, err
	}
	seen := make(chan error, 1)
	go func() {
		err := c.Await(ctx, victim, swarmpb.NodeState_NODE_STATE_DOWN)
		down = time.Since(begin)
		seen <- err
	}()
	err = w.Until(func(p *measure.Picture) bool { return p.Settled() && len(p.RunningTasks())-on(p) == replicas })
	elsewhere = time.Since(begin)
	if errDown := <-seen; err == nil {
		err = errDown
	}
	return down, elsewhere, err
}

// back brings a dead host back and gives it a fair share of the replicas for the next run.
func back(ctx context.Context, c *measure.Cluster, h *measure.Host) error {
	if err := h.PowerOn(); err != nil {
		return err
	}
	if err := h.Up(ctx); err != nil {
		return err
	}
	if err := c.Await(ctx, h, swarmpb.NodeState_NODE_STATE_READY); err != nil {
		return err
	}
	w, err := resettled(ctx, c)
	if err != nil {
		return err
	}
	defer w.Close()
	if len(w.RunningTasks()) != replicas {
		return fmt.Errorf("%d replicas run after %s came back, want %d", len(w.RunningTasks()), h.Name, replicas)
	}
	return spread(ctx, c, w)
}

// spread moves a fair share of the replicas onto every host.
func spread(ctx context.Context, c *measure.Cluster, w *measure.Watch) error {
	for _, count := range []uint64{replicas / 3, replicas} {
		if err := c.Scale(ctx, service, count); err != nil {
			return err
		}
		if err := w.Until(func(p *measure.Picture) bool { return p.Settled() && p.Desired == count }); err != nil {
			return err
		}
	}
	return nil
}

// killManager: SIGKILL to the manager's daemon, which is started again at once, until it accepts a write; what
// runs must not be touched.
func killManager(ctx context.Context, c *measure.Cluster, n int) ([]row, error) {
	w, err := settled(ctx, c)
	if err != nil {
		return nil, err
	}
	before := w.RunningTasks()
	w.Close()
	var accepted measure.Series
	for i := range n {
		begin := time.Now()
		if err := c.Manager().SignalSwarmd(syscall.SIGKILL); err != nil {
			return nil, err
		}
		if _, err := c.Manager().WaitSwarmd(); err != nil {
			return nil, err
		}
		if err := c.Manager().StartSwarmd(); err != nil {
			return nil, err
		}
		if err := firstWrite(ctx, c, fmt.Sprintf("probe-%d", i)); err != nil {
			return nil, err
		}
		accepted = append(accepted, time.Since(begin))
		progress(i, n, "manager killed, first write accepted after %s", measure.Seconds(accepted[i]))
		for _, h := range c.Members() {
			if err := c.Await(ctx, h, swarmpb.NodeState_NODE_STATE_READY); err != nil {
				return nil, err
			}
		}
		w, err := resettled(ctx, c)
		if err != nil {
			return nil, err
		}
		w.Close()
		for id := range before {
			if w.RunningTasks()[id] == nil {
				return nil, fmt.Errorf("task %s ran before the manager was killed and does not now", id)
			}
		}
	}
	return []row{{"manager's swarmd killed and started -> first write accepted (1 manager)", accepted, "9.3 to 15.6 s to a new leader (3 managers)"}}, nil
}

// firstWrite repeats a small write until it is accepted.
func firstWrite(ctx context.Context, c *measure.Cluster, name string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	request := &swarmpb.CreateServiceRequest{Spec: measure.Service(name, 0), RequestId: swarmpb.NewID(), NoResolveImage: true}
	for {
		c.Manager().Reconnect()
		_, err := c.Manager().Control.CreateService(ctx, request)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no write is accepted: %w", err)
		case <-time.After(retryEvery):
		}
	}
}
