package containerd

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"
)

const (
	// groupAnnotation of a container's specification names the group whose shim it shares; shims know it.
	groupAnnotation = "io.containerd.runc.v2.group"
	// maxGroup bounds the containers that share a shim, and so those that go down with it.
	maxGroup = 16
)

// groups says which containers share a shim. A shim ends with its last container, and nobody may be sent to one that is
// about to: a group without a started member is given up for good, and its name is never used again. A new process
// begins with new groups; those of a former one end by themselves.
type groups struct {
	mu      sync.Mutex
	settled sync.Cond // a start has succeeded or failed
	open    []*group
	of      map[string]*group // by container
	made    int
}

type group struct {
	name    string
	members int // containers that have it in their specification
	started map[string]bool
	joining int // starts under way; the first is alone, so that others find its shim
	over    bool
}

func newGroups() *groups {
	g := &groups{of: map[string]*group{}}
	g.settled.L = &g.mu
	return g
}

// assign gives the name of the group for a container that is made, or made anew.
func (g *groups) assign(id string) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.drop(id)
	for _, candidate := range g.open {
		if candidate.members < maxGroup {
			return g.add(candidate, id)
		}
	}
	g.made++
	// The time keeps it apart from the groups of former processes.
	fresh := &group{name: fmt.Sprintf("swarmd-%x-%d", time.Now().UnixNano(), g.made), started: map[string]bool{}}
	g.open = append(g.open, fresh)
	return g.add(fresh, id)
}

func (g *groups) add(to *group, id string) string {
	to.members++
	g.of[id] = to
	return to.name
}

// begin says whether the container's group takes it: without, it has to be assigned anew. With, settle has to follow.
func (g *groups) begin(id string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	of := g.of[id]
	for of != nil && !of.over && len(of.started) == 0 && of.joining > 0 {
		g.settled.Wait()
	}
	if of == nil || of.over {
		return false
	}
	of.joining++
	return true
}

// settle says how the start has gone.
func (g *groups) settle(id string, started bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	of := g.of[id]
	of.joining--
	if started {
		of.started[id] = true
	} else if len(of.started) == 0 && of.joining == 0 {
		g.giveUp(of) // its shim has ended again
	}
	g.settled.Broadcast()
}

// leave comes before the container's end in its shim.
func (g *groups) leave(id string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	of := g.of[id]
	if of == nil {
		return
	}
	if of.started[id] {
		delete(of.started, id)
		for len(of.started) == 0 && of.joining > 0 {
			g.settled.Wait()
		}
		if len(of.started) == 0 {
			g.giveUp(of)
		}
	}
	g.drop(id)
}

// drop forgets that the container has a group.
func (g *groups) drop(id string) {
	of := g.of[id]
	if of == nil {
		return
	}
	delete(g.of, id)
	if of.members--; of.members == 0 {
		g.giveUp(of)
	}
}

func (g *groups) giveUp(of *group) {
	of.over = true
	for i, candidate := range g.open {
		if candidate == of {
			g.open = append(g.open[:i], g.open[i+1:]...)
			return
		}
	}
}

// joinShim readies the container for the start of its task and gives what is to be told how that went.
func (r *Runtime) joinShim(ctx context.Context, id string) (func(started bool), error) {
	if !r.SharedShim {
		return func(bool) {}, nil
	}
	for !r.groups.begin(id) {
		// Its group has ended between its making and now, or a former process of ours made it.
		if err := r.regroup(ctx, id, r.groups.assign(id)); err != nil {
			return nil, err
		}
	}
	return func(started bool) { r.groups.settle(id, started) }, nil
}

// regroup writes another group into the container's record.
func (r *Runtime) regroup(ctx context.Context, id, name string) error {
	record, err := r.client.ContainerService().Get(ctx, id)
	if err != nil {
		return err
	}
	var spec specs.Spec
	if err := json.Unmarshal(record.Spec.GetValue(), &spec); err != nil {
		return fmt.Errorf("read its specification: %w", err)
	}
	setGroup(&spec, name)
	encoded, err := typeurl.MarshalAny(&spec)
	if err != nil {
		return fmt.Errorf("encode its specification: %w", err)
	}
	changed := containers.Container{ID: id, Spec: &anypb.Any{TypeUrl: encoded.GetTypeUrl(), Value: encoded.GetValue()}}
	if _, err := r.client.ContainerService().Update(ctx, changed, "spec"); err != nil {
		return fmt.Errorf("record it: %w", err)
	}
	return nil
}

func setGroup(spec *specs.Spec, name string) {
	if spec.Annotations == nil {
		spec.Annotations = map[string]string{}
	}
	spec.Annotations[groupAnnotation] = name
}
