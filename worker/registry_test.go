package worker

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/network/networktest"
	"github.com/swarmd/swarmd/worker/runtime"
	"github.com/swarmd/swarmd/worker/runtime/runtimetest"
)

func TestAgent_RegistryAuth_IsPulledWithAndNeverWritten(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, dir)
		defer h.close()
		h.start()
		assign := func(id, image, password string) *swarmpb.RegistryAuth {
			auth := &swarmpb.RegistryAuth{Server: "registry.local", Username: "ann-the-user", Password: password}
			h.manager.change(
				templateChange(&swarmpb.AssignedTemplate{ServiceId: "s", Version: 1, RegistryAuth: auth, Spec: &swarmpb.TaskSpec{Container: &swarmpb.ContainerSpec{
					Image: image, PullPolicy: swarmpb.PullPolicy_PULL_POLICY_ALWAYS}}}),
				taskChange(&swarmpb.AssignedTask{Id: id, ServiceId: "s", ServiceName: "web", Slot: 1, TemplateVersion: 1, DesiredState: stateRunning}),
			)
			h.settle(time.Second)
			return auth
		}
		wantPull := func(want *swarmpb.RegistryAuth) {
			t.Helper()
			got := h.runtime.LastPull()
			if !proto.Equal(got.Auth, want) || got.Policy != swarmpb.PullPolicy_PULL_POLICY_ALWAYS {
				t.Errorf("pulled with %v and policy %s, want %v", got.Auth, got.Policy, want)
			}
		}
		first := assign("a", "registry.local/app:v1", "first-password")
		h.wantState("a", stateRunning, "")
		wantPull(first)
		second := assign("b", "registry.local/app:v1", "second-password") // the login was renewed
		h.wantState("b", stateRunning, "")
		wantPull(second)
		h.settle(time.Second)
		h.stop()
		err := filepath.WalkDir(h.dir, func(path string, entry os.DirEntry, err error) error {
			if err != nil || !entry.Type().IsRegular() {
				return err
			}
			body, err := os.ReadFile(path)
			for _, secret := range []string{"first-password", "second-password", "ann-the-user"} {
				if bytes.Contains(body, []byte(secret)) {
					t.Errorf("%s holds %q", path, secret)
				}
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
		h.start()
	})
}

// slowRegistry gives a megabyte every 300 ms.
type slowRegistry struct {
	*runtimetest.Fake
	size int64
}

func (s slowRegistry) Pull(ctx context.Context, req runtime.PullRequest) (runtime.Image, error) {
	for done := int64(0); done < s.size; done++ {
		if !sleep(ctx, 300*time.Millisecond) {
			return runtime.Image{}, ctx.Err()
		}
		req.Progress(runtime.PullProgress{Done: done * 1_000_000, Total: s.size * 1_000_000})
	}
	return s.Fake.Pull(ctx, req)
}

func TestAgent_SlowPull_IsToldAtMostOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := runtimetest.NewFake(runtimetest.FakeConfig{})
		cfg := Config{NodeID: "n", Dir: t.TempDir(), Runtime: slowRegistry{fake, 40}, Network: &networktest.Fake{}, Logger: slog.New(slog.DiscardHandler)}
		cfg.Limits = cfg.Limits.withDefaults()
		issues := newProblems()
		f := newFleet(cfg, newDB(cfg.Dir, cfg.Logger, issues), newReporter(cfg.Limits, cfg.Logger, issues), issues)
		f.ctx = t.Context()
		tk := &task{id: "a", assigned: &swarmpb.AssignedTask{Id: "a"}, status: &swarmpb.TaskStatus{TaskId: "a", State: swarmpb.TaskState_TASK_STATE_PREPARING}}
		messages, over := map[string]time.Duration{}, make(chan struct{})
		began := time.Now()
		go func() {
			defer close(over)
			if _, err := f.pull(t.Context(), tk, runtime.Spec{Image: "big:v1"}); err != nil {
				t.Error(err)
			}
		}()
		for watching := true; watching; {
			select {
			case <-over:
				watching = false
			case <-time.After(10 * time.Millisecond):
			}
			_, _, status := f.look(tk)
			if m := status.GetMessage(); m != "" {
				if _, seen := messages[m]; !seen {
					messages[m] = time.Since(began)
				}
			}
		}
		if _, ok := messages["pulling big:v1: 2MB of 40MB"]; !ok || len(messages) < 5 || len(messages) > 12 {
			t.Errorf("told in 12 s: %v", messages)
		}
	})
}

// A process that begins has no credentials, as they are not on the disk. That says nothing against the image.
func TestAgent_RestartedDuringAPullWithCredentials_WaitsForThem(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, dir)
		defer h.close()
		h.pull = func(ctx context.Context, req runtime.PullRequest) (runtime.Image, error) {
			if req.Auth.GetPassword() == "" {
				return runtime.Image{}, &runtime.PullError{Reason: "access denied", Err: runtime.ErrNotFound}
			}
			if !sleep(ctx, 10*time.Second) {
				return runtime.Image{}, ctx.Err()
			}
			return h.runtime.Pull(ctx, req)
		}
		h.start()
		assign := func(id string, auth *swarmpb.RegistryAuth) {
			h.manager.change(
				templateChange(&swarmpb.AssignedTemplate{ServiceId: id, Version: 1, RegistryAuth: auth, Spec: &swarmpb.TaskSpec{Container: &swarmpb.ContainerSpec{Image: "registry.local/app:v1"}}}),
				taskChange(&swarmpb.AssignedTask{Id: id, ServiceId: id, ServiceName: "web", Slot: 1, TemplateVersion: 1, DesiredState: stateRunning}),
			)
		}
		assign("a", &swarmpb.RegistryAuth{Server: "registry.local", Username: "ann", Password: "secret"})
		h.settle(2 * time.Second)
		h.stop()
		h.cut(true)
		h.start()
		h.settle(10 * time.Minute)
		_, _, status := h.agent.fleet.look(h.agent.fleet.tasks["a"])
		if status.GetState() != swarmpb.TaskState_TASK_STATE_PREPARING || status.GetMessage() != waitsForCredentials {
			t.Fatalf("status without managers is %v", status)
		}
		h.cut(false)
		h.settle(time.Minute)
		h.wantState("a", stateRunning, "")
		assign("b", nil)
		assign("c", &swarmpb.RegistryAuth{}) // which is none
		h.settle(10 * time.Second)
		h.wantState("b", stateRejected, "image not found: registry.local/app:v1: access denied")
		h.wantState("c", stateRejected, "image not found: registry.local/app:v1: access denied")
	})
}
