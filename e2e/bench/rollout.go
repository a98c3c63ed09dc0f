package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/swarmd/swarmd/e2e/measure"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

const (
	// A rolling update of so many replicas, so many at a time, each watched for so long.
	rolledReplicas = 10
	rolledAtATime  = 2
	rolledMonitor  = time.Second
	// targetRollout is as a multiple of the arithmetic minimum.
	targetRollout = 1.1
	// rolloutRounds: one is over in seconds, and the worst of a few says little.
	rolloutRounds = 3
)

// rollout updates a service again and again, in turns with what each batch of it costs at least: so many containers
// stopped and as many started by the bare containerd client on the same host.
func (b *bench) rollout(ctx context.Context) error {
	return b.on(ctx, func(c *measure.Cluster) error {
		if _, err := createAll(ctx, c, template, 1); err != nil {
			return err
		}
		w, err := c.Watch(ctx, template)
		if err != nil {
			return err
		}
		w.Close()
		raw, err := newRawLoop(ctx, c.Manager(), slices.Collect(maps.Keys(w.RunningTasks()))[0], b.cfg.Archive)
		if err != nil {
			return err
		}
		defer raw.close()
		raw.signal = unix.SIGTERM // as the product does
		if _, err := createAll(ctx, c, "rolled", rolledReplicas); err != nil {
			return err
		}
		var updates, stops, starts measure.Series
		for round := range b.rounds * rolloutRounds {
			start, err := raw.startAll(ctx, round, rolledAtATime)
			if err != nil {
				return err
			}
			stop, err := raw.removeAll()
			if err != nil {
				return err
			}
			took, err := updateOnce(ctx, c, "rolled", round)
			if err != nil {
				return err
			}
			updates, stops, starts = append(updates, took), append(stops, stop), append(starts, start)
			fmt.Fprintf(os.Stderr, "  update: %s; raw: %d stopped in %s, started in %s (load %s)\n", short(took), rolledAtATime, short(stop), short(start), measure.Load())
		}
		const batches = rolledReplicas / rolledAtATime
		least := batches * (stops.Median() + starts.Median() + rolledMonitor)
		fmt.Printf("rolling update of %d, %d at a time, monitor %s: %s (Docker Swarm: 9.5 s)\n", rolledReplicas, rolledAtATime, rolledMonitor, updates)
		fmt.Printf("least: %d x (stop %s + start %s, of %d by the bare containerd client, + monitor %s) = %s\n",
			batches, short(stops.Median()), short(starts.Median()), rolledAtATime, rolledMonitor, short(least))
		fmt.Printf("ratio: median %.2f, worst %.2f (target %.2f)\n", float64(updates.Median())/float64(least), float64(updates.Worst())/float64(least), targetRollout)
		return nil
	})
}

// updateOnce changes the environment of a service's tasks, and says how long it took from then until the leader wrote that
// the update has completed.
func updateOnce(ctx context.Context, c *measure.Cluster, name string, round int) (time.Duration, error) {
	spec := measure.Service(name, rolledReplicas)
	atATime := uint64(rolledAtATime)
	spec.Update = &swarmpb.UpdateConfig{Parallelism: &atATime, Monitor: durationpb.New(rolledMonitor)}
	spec.Task.Container.Env = []string{fmt.Sprintf("ROUND=%d", round)}
	w, err := c.Watch(ctx, name)
	if err != nil {
		return 0, err
	}
	defer w.Close()
	begin := time.Now()
	request := &swarmpb.UpdateServiceRequest{Service: name, Spec: spec, RequestId: swarmpb.NewID(), NoResolveImage: true}
	if _, err := c.Manager().Control.UpdateService(ctx, request); err != nil {
		return 0, err
	}
	var end time.Time
	err = w.Until(func(p *measure.Picture) bool {
		end = time.Unix(0, p.Update.GetCompletedAt())
		return p.Update.GetState() == swarmpb.UpdateState_UPDATE_STATE_COMPLETED && end.After(begin) && p.Settled()
	})
	return end.Sub(begin), err
}
