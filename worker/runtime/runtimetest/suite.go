// Package runtimetest is what a runtime.Runtime is tested with: Conformance, the suite that every implementation
// passes, and Fake, an implementation in memory that the agent and the whole simulated cluster are tested on.
// Since the fake passes the same suite as the real thing, what is tested on it holds for both.
package runtimetest

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/runtime"
	"github.com/swarmd/swarmd/worker/runtime/runtimetest/program"
)

// System is a fresh runtime without containers, and what the suite must know of its surroundings.
type System struct {
	Runtime runtime.Runtime
	// Reopen gives a runtime on the same state, as the next process makes one. The former is used no more.
	Reopen func(t *testing.T) runtime.Runtime
	// Archive opens the test image's archive (see Archive), named ImageName. The suite imports it itself.
	Archive func() io.Reader
	// Registry is host:port of a registry that answers and holds nothing; empty = none to be had, tests of it are skipped.
	Registry string
	// Logs reads what a container has written so far, in whatever form; an error or nothing when it is gone. Nil =
	// the runtime keeps no logs, tests of them are skipped.
	Logs func(id string) (string, error)
	// Limits says that cgroup limits can be enforced and read here.
	Limits bool
}

// Options of a run of the suite.
type Options struct {
	// Open is called once a test.
	Open func(t *testing.T) System
	// Virtual runs each test in a bubble of virtual time.
	Virtual bool
}

// Conformance runs the suite.
func Conformance(t *testing.T, o Options) {
	for _, c := range cases() {
		t.Run(c.name, func(t *testing.T) {
			run := func(t *testing.T) {
				s := o.Open(t)
				c.run(&suite{T: t, System: s, dir: t.TempDir()})
			}
			if o.Virtual {
				synctest.Test(t, run)
				return
			}
			run(t)
		})
	}
}

type testCase struct {
	name string
	run  func(s *suite)
}

func cases() []testCase {
	return slices.Concat(lifecycleCases(), signalCases(), imageCases(), environmentCases(), mountCases(), reopenCases(), execCases(), inheritCases())
}

// suite is one test with its system. IDs are the test's own: containers of tests never meet.
type suite struct {
	*testing.T
	System
	dir    string
	loaded bool
}

func (s *suite) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	s.Cleanup(cancel)
	return ctx
}

// load imports the test image.
func (s *suite) load() runtime.Image {
	s.Helper()
	images, err := s.Runtime.Import(s.ctx(), s.Archive())
	if err != nil {
		s.Fatalf("import the test image: %v", err)
	}
	if len(images) != 1 || images[0].Name != ImageName || images[0].Digest == "" {
		s.Fatalf("imported %+v, want one image %s with a digest", images, ImageName)
	}
	s.loaded = true
	return images[0]
}

// spec of a container that runs the test binary with args.
func (s *suite) spec(id string, args ...string) runtime.Spec {
	return runtime.Spec{
		ID: id, Image: ImageName,
		Container: &swarmpb.ContainerSpec{Image: ImageName, Args: args},
		Labels:    map[string]string{"com.docker.swarm.task.id": id},
		Hostname:  "host-" + id,
	}
}

// create makes a container and has it removed, with its logs, at the end of the test.
func (s *suite) create(spec runtime.Spec) {
	s.Helper()
	if !s.loaded {
		s.load()
	}
	s.removeLater(spec.ID)
	if err := s.Runtime.Create(s.ctx(), spec); err != nil {
		s.Fatalf("create %s: %v", spec.ID, err)
	}
}

func (s *suite) removeLater(id string) {
	s.Cleanup(func() {
		if err := s.Runtime.Remove(s.ctx(), id); err != nil {
			s.Errorf("remove %s at the end: %v", id, err)
		}
		if err := s.Runtime.RemoveLogs(s.ctx(), id); err != nil {
			s.Errorf("remove logs of %s at the end: %v", id, err)
		}
	})
}

func (s *suite) start(id string) uint32 {
	s.Helper()
	pid, err := s.Runtime.Start(s.ctx(), id)
	if err != nil {
		s.Fatalf("start %s: %v", id, err)
	}
	if pid == 0 {
		s.Fatalf("start %s: no pid", id)
	}
	return pid
}

// run creates and starts.
func (s *suite) run(spec runtime.Spec) uint32 {
	s.Helper()
	s.create(spec)
	return s.start(spec.ID)
}

func (s *suite) wait(id string) runtime.Exit {
	s.Helper()
	exit, err := s.Runtime.Wait(s.ctx(), id)
	if err != nil {
		s.Fatalf("wait for %s: %v", id, err)
	}
	return exit
}

func (s *suite) wantExit(got runtime.Exit, code uint32) {
	s.Helper()
	if got.Code != code || got.Unknown || got.OOMKilled || got.At.IsZero() {
		s.Fatalf("exit is %+v, want code %d with a time", got, code)
	}
}

func (s *suite) wantError(err, target error, doing string) {
	s.Helper()
	if !errors.Is(err, target) {
		s.Fatalf("%s: error is %v, want one that is %q", doing, err, target)
	}
}

// find looks a container up in the list; ok is false when it is not there.
func (s *suite) find(id string) (runtime.Container, bool) {
	s.Helper()
	all, err := s.Runtime.List(s.ctx())
	if err != nil {
		s.Fatalf("list: %v", err)
	}
	found := slices.DeleteFunc(all, func(c runtime.Container) bool { return c.ID != id })
	if len(found) > 1 {
		s.Fatalf("list names %s %d times", id, len(found))
	}
	if len(found) == 0 {
		return runtime.Container{}, false
	}
	return found[0], true
}

func (s *suite) wantState(id string, want runtime.State) runtime.Container {
	s.Helper()
	c, ok := s.find(id)
	if !ok {
		s.Fatalf("list does not name %s", id)
	}
	if c.State != want {
		s.Fatalf("%s is in state %d, want %d", id, c.State, want)
	}
	return c
}

// report runs a container whose process writes down what it sees.
func (s *suite) report(spec runtime.Spec, probes ...string) program.Report {
	s.Helper()
	out := filepath.Join(s.dir, spec.ID)
	if err := os.Mkdir(out, 0o777); err != nil {
		s.Fatal(err)
	}
	if err := os.Chmod(out, 0o777); err != nil { // whatever the umask: the container's user may be any
		s.Fatal(err)
	}
	spec.Container.Mounts = append(spec.Container.Mounts, &swarmpb.Mount{Type: swarmpb.MountType_MOUNT_TYPE_BIND, Source: out, Target: "/out"})
	spec.Container.Args = append([]string{"report", "/out/report"}, probes...)
	s.run(spec)
	s.wantExit(s.wait(spec.ID), 0)
	body, err := os.ReadFile(filepath.Join(out, "report"))
	if err != nil {
		s.Fatal(err)
	}
	var r program.Report
	if err := json.Unmarshal(body, &r); err != nil {
		s.Fatal(err)
	}
	return r
}
