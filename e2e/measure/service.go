package measure

import (
	"context"
	"fmt"
	"maps"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// Service is the spec of a service of the demo image. Its replicas stop at once, so that no grace period is
// measured.
func Service(name string, replicas uint64) *swarmpb.ServiceSpec {
	return &swarmpb.ServiceSpec{
		Name: name,
		Task: &swarmpb.TaskSpec{Container: &swarmpb.ContainerSpec{Image: Image}},
		Mode: &swarmpb.ServiceMode{Mode: &swarmpb.ServiceMode_Replicated{Replicated: &swarmpb.ReplicatedMode{Replicas: replicas}}},
	}
}

// Create makes a service; it returns once that is written.
func (c *Cluster) Create(ctx context.Context, spec *swarmpb.ServiceSpec) error {
	_, err := c.Manager().Control.CreateService(ctx, &swarmpb.CreateServiceRequest{Spec: spec, RequestId: swarmpb.NewID(), NoResolveImage: true})
	return err
}

// Scale changes a service's replicas; it returns once that is written.
func (c *Cluster) Scale(ctx context.Context, name string, replicas uint64) error {
	_, err := c.Manager().Control.UpdateService(ctx, &swarmpb.UpdateServiceRequest{
		Service: name, Spec: Service(name, replicas), RequestId: swarmpb.NewID(), NoResolveImage: true,
	})
	return err
}

// Remove asks for the end of a service; it returns once that is written.
func (c *Cluster) Remove(ctx context.Context, name string) error {
	_, err := c.Manager().Control.RemoveService(ctx, &swarmpb.RemoveServiceRequest{Service: name, RequestId: swarmpb.NewID()})
	return err
}

// Picture is a service as a watch shows it.
type Picture struct {
	Tasks            map[string]*swarmpb.TaskInfo
	Running, Desired uint64
	// Update is the newest one; nil when there was none.
	Update *swarmpb.UpdateStatus
	// Gone: the service and all its tasks are.
	Gone bool
}

// Settled: what is wanted runs.
func (p *Picture) Settled() bool { return !p.Gone && p.Running == p.Desired }

// RunningTasks are those that run and are to run.
func (p *Picture) RunningTasks() map[string]*swarmpb.TaskInfo {
	out := maps.Clone(p.Tasks)
	maps.DeleteFunc(out, func(_ string, t *swarmpb.TaskInfo) bool {
		return t.GetState() != swarmpb.TaskState_TASK_STATE_RUNNING || t.GetTask().GetDesiredState() > swarmpb.TaskState_TASK_STATE_RUNNING
	})
	return out
}

// Watch follows one service.
type Watch struct {
	Picture
	name   string
	stream interface {
		Recv() (*swarmpb.WatchServiceResponse, error)
	}
	cancel context.CancelFunc
}

// Watch opens a watch and takes the first picture.
func (c *Cluster) Watch(ctx context.Context, name string) (*Watch, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	stream, err := c.Manager().Control.WatchService(ctx, &swarmpb.WatchServiceRequest{Service: name})
	if err != nil {
		cancel()
		return nil, err
	}
	w := &Watch{name: name, stream: stream, cancel: cancel, Picture: Picture{Tasks: map[string]*swarmpb.TaskInfo{}}}
	if err := w.next(); err != nil {
		cancel()
		return nil, err
	}
	return w, nil
}

// Close ends the watch.
func (w *Watch) Close() { w.cancel() }

// next takes one change, in all its messages.
func (w *Watch) next() error {
	for {
		m, err := w.stream.Recv()
		if err != nil {
			return fmt.Errorf("watch service %s (%d of %d running): %w", w.name, w.Running, w.Desired, err)
		}
		for _, t := range m.GetTasks() {
			w.Tasks[t.GetTask().GetId()] = t
		}
		for _, id := range m.GetRemoved() {
			delete(w.Tasks, id)
		}
		if !m.GetMore() {
			w.Gone = m.GetService() == nil
			w.Running, w.Desired = m.GetService().GetRunning(), m.GetService().GetDesired()
			w.Update = m.GetService().GetProgress().GetUpdate()
			return nil
		}
	}
}

// Until follows the service until the condition holds. The picture comes at most ten times a second, so what is
// timed by it is up to a tenth of a second late.
func (w *Watch) Until(cond func(*Picture) bool) error {
	for !cond(&w.Picture) {
		if err := w.next(); err != nil {
			return err
		}
	}
	return nil
}
