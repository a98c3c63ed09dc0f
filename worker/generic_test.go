package worker

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/runtime"
	"github.com/swarmd/swarmd/worker/runtime/runtimetest"
)

// fakeDevices are those of one kind.
type fakeDevices struct {
	mu       sync.Mutex
	now, was []string
	problems []string
}

func (d *fakeDevices) set(problems []string, names ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.now, d.problems = names, problems
}

func (d *fakeDevices) Look() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	changed := !slices.Equal(d.now, d.was)
	d.was = d.now
	return changed
}

func (d *fakeDevices) Resources() []*swarmpb.GenericResource {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.was) == 0 {
		return nil
	}
	return []*swarmpb.GenericResource{{Kind: "example.com/gpu", Instances: d.was}}
}

func (d *fakeDevices) Problems() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.problems
}

func (h *host) saidGeneric() string {
	h.manager.mu.Lock()
	defer h.manager.mu.Unlock()
	var out []string
	for _, g := range h.manager.described.GetResources().GetGeneric() {
		out = append(out, fmt.Sprintf("%s:%d:%s", g.GetKind(), g.GetCount(), strings.Join(g.GetInstances(), "+")))
	}
	return strings.Join(out, " ")
}

func TestAgent_DevicesComeAndGo_ManagersAreTold(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		devices := &fakeDevices{now: []string{"0"}, was: []string{"0"}}
		h := newHost(t, dir)
		defer h.close()
		h.generic, h.devices = []*swarmpb.GenericResource{{Kind: "lanes", Count: 4}, {Kind: "disk", Instances: []string{"a"}}}, devices
		h.start()
		if got := h.saidGeneric(); got != "disk:0:a example.com/gpu:0:0 lanes:4:" {
			t.Errorf("at first: %s", got)
		}
		devices.set([]string{"CDI spec /etc/cdi/x.json: is broken"}, "0", "1")
		h.settle(2 * devicesEvery)
		if got := h.saidGeneric(); got != "disk:0:a example.com/gpu:0:0+1 lanes:4:" {
			t.Errorf("after one came: %s", got)
		}
		if got := h.agent.Problems(); !slices.Equal(got, []string{"CDI spec /etc/cdi/x.json: is broken"}) {
			t.Errorf("problems %q", got)
		}
		devices.set(nil)
		h.settle(2 * devicesEvery)
		if got := h.saidGeneric(); got != "disk:0:a lanes:4:" || len(h.agent.Problems()) > 0 {
			t.Errorf("after all went: %s, %q", got, h.agent.Problems())
		}
	})
}

// withGeneric assigns a task that has some of the node's generic resources.
func (d *dispatcher) withGeneric(id string, has ...*swarmpb.GenericResource) {
	d.change(
		templateChange(&swarmpb.AssignedTemplate{ServiceId: "s-" + id, Version: 1, Spec: &swarmpb.TaskSpec{
			Container: &swarmpb.ContainerSpec{Image: "nginx:alpine", Env: []string{"DOCKER_RESOURCE_GPU=mine"}}}}),
		taskChange(&swarmpb.AssignedTask{Id: id, ServiceId: "s-" + id, ServiceName: "web", Slot: 1, TemplateVersion: 1, DesiredState: stateRunning, Generic: has}),
	)
}

// What a task has goes to its container, and still does when its container is made by a later process that no manager has
// told of it.
func TestAgent_TaskWithGenericResources_ContainerHasThem(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		held := make(chan struct{})
		h.runtime.SetBefore(func(ctx context.Context, op runtimetest.Op, _ string) error {
			if op != runtimetest.OpCreate {
				return nil
			}
			select {
			case <-held:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		h.manager.withGeneric("a", &swarmpb.GenericResource{Kind: "GPU", Count: 2, Instances: []string{"card0", "card2"}}, &swarmpb.GenericResource{Kind: "lanes", Count: 3},
			&swarmpb.GenericResource{Kind: "example.com/gpu", Count: 2, Instances: []string{"0", "1"}})
		h.settle(5 * time.Second)
		h.stop()
		h.cut(true)
		close(held)
		h.start()
		h.settle(time.Minute)
		spec, ok := h.runtime.Spec("a")
		if want := []string{"DOCKER_RESOURCE_GPU=card0,card2", "DOCKER_RESOURCE_LANES=3", "DOCKER_RESOURCE_EXAMPLE_COM_GPU=0,1"}; !ok || !slices.Equal(spec.Env, want) {
			t.Errorf("env %q", spec.Env)
		}
		if want := []string{"example.com/gpu=0", "example.com/gpu=1"}; !slices.Equal(spec.Devices, want) {
			t.Errorf("devices %q", spec.Devices)
		}
		h.cut(false)
		h.settle(10 * time.Second)
		h.wantRunning("a")
	})
}

func TestAgent_DeviceIsGone_TaskIsRejectedWithTheReason(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.runtime.SetBefore(func(_ context.Context, op runtimetest.Op, id string) error {
			if op == runtimetest.OpCreate {
				return &runtime.ContainerError{Doing: "make", ID: id, Err: fmt.Errorf("device example.com/gpu=0 is not there any more%w", quiet{runtime.ErrInvalid})}
			}
			return nil
		})
		h.manager.withGeneric("a", &swarmpb.GenericResource{Kind: "example.com/gpu", Count: 1, Instances: []string{"0"}})
		h.settle(10 * time.Second)
		h.wantState("a", stateRejected, "device example.com/gpu=0 is not there any more")
	})
}

// quiet is an error without words of its own.
type quiet struct{ error }

func (quiet) Error() string { return "" }

func (q quiet) Unwrap() error { return q.error }
