package worker

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
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
