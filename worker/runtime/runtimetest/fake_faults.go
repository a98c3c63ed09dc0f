package runtimetest

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/swarmd/swarmd/worker/runtime"
)

// Exit ends a container's process with a code, as if by itself.
func (f *Fake) Exit(id string, code uint32) error { return f.fault(id, runtime.Exit{Code: code}) }

// OOM ends a container's process as the kernel does when memory runs out.
func (f *Fake) OOM(id string) error { return f.fault(id, runtime.Exit{Code: 137, OOMKilled: true}) }

// LoseExit ends a container's process so that nobody will ever know how.
func (f *Fake) LoseExit(id string) error { return f.fault(id, runtime.Exit{Unknown: true}) }

func (f *Fake) fault(id string, exit runtime.Exit) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, err := f.get(id)
	if err != nil {
		return err
	}
	if c.state != runtime.Running {
		return fmt.Errorf("container %s does not run", id)
	}
	f.finish(c, exit)
	return nil
}

// Reboot ends every process, as a host that goes down does: what was running has an unknown exit.
func (f *Fake) Reboot() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.containers {
		f.finish(c, runtime.Exit{Unknown: true, At: time.Now()})
	}
}

// AddImage puts an image into the local store.
func (f *Fake) AddImage(ref string, image FakeImage) error {
	ref, err := canonical(ref)
	if err != nil {
		return err
	}
	if image.Digest == "" {
		image.Digest = digestOf([]byte(ref))
	}
	image.size, image.created = 1<<20, time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.images[ref] = image
	return nil
}

// Running is the IDs of containers with a process, sorted.
func (f *Fake) Running() []string { return f.inState(runtime.Running) }

// Containers is the IDs of all containers, sorted.
func (f *Fake) Containers() []string { return f.inState(0) }

func (f *Fake) inState(state runtime.State) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, id := range slices.Sorted(maps.Keys(f.containers)) {
		if state == 0 || f.containers[id].state == state {
			out = append(out, id)
		}
	}
	return out
}

// Spec is what a container was made from; ok is false when it is not there.
func (f *Fake) Spec(id string) (spec runtime.Spec, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, ok := f.containers[id]
	if !ok {
		return runtime.Spec{}, false
	}
	return c.spec, true
}

// Starts is how often a container of this ID was started, over its removals.
func (f *Fake) Starts(id string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.starts[id]
}

// Calls is how often an operation was asked for.
func (f *Fake) Calls(op Op) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[op]
}

// Logs is what a container has written; empty when nothing is there.
func (f *Fake) Logs(id string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.logs[id]
}
