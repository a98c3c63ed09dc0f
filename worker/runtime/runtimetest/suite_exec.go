package runtimetest

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/runtime"
	"github.com/swarmd/swarmd/worker/runtime/runtimetest/program"
)

// execSoon bounds a process that is to be killed.
const execSoon = 300 * time.Millisecond

func (s *suite) exec(id string, args ...string) runtime.ExecResult {
	s.Helper()
	result, err := s.Runtime.Exec(s.ctx(), id, runtime.ExecSpec{Args: append([]string{imageProgram}, args...)})
	if err != nil {
		s.Fatalf("exec %q in %s: %v", args, id, err)
	}
	return result
}

func execCases() []testCase {
	return []testCase{
		{"Exec_Ends_CodeAndOutput", func(s *suite) {
			s.run(s.spec("exec", "sleep"))
			if got := s.exec("exec", "exit", "3"); got.Code != 3 || len(got.Output) != 0 || got.Truncated {
				s.Errorf("%+v, want code 3 alone", got)
			}
			got := s.exec("exec", "print", "hello")
			if text := string(got.Output); got.Code != 0 || text != "hello\nerr hello\n" && text != "err hello\nhello\n" {
				s.Errorf("code %d, output %q", got.Code, text)
			}
		}},
		{"Exec_InTheContainer_SeesWhatItSees", execSees},
		{"Exec_FloodsAndHangs_BoundedAndKilled", func(s *suite) {
			s.run(s.spec("flood", "sleep"))
			ctx, cancel := context.WithTimeout(s.ctx(), execSoon)
			defer cancel()
			got, err := s.Runtime.Exec(ctx, "flood", runtime.ExecSpec{Args: []string{imageProgram, "flood"}, Limit: 100})
			if !errors.Is(err, context.DeadlineExceeded) || len(got.Output) > 100 || len(got.Output) > 0 && !got.Truncated {
				s.Errorf("%d bytes of output, truncated %t, %v; want at most 100 and a time that is over", len(got.Output), got.Truncated, err)
			}
			if got := s.exec("flood", "exit", "0"); got.Code != 0 {
				s.Errorf("after the flood: %+v", got)
			}
		}},
		{"Exec_NoProcess_NotRunning", func(s *suite) {
			_, err := s.Runtime.Exec(s.ctx(), "nowhere", runtime.ExecSpec{Args: []string{imageProgram}})
			s.wantError(err, runtime.ErrNotFound, "exec in a container that is not there")
			s.create(s.spec("made", "sleep"))
			_, err = s.Runtime.Exec(s.ctx(), "made", runtime.ExecSpec{Args: []string{imageProgram}})
			s.wantError(err, runtime.ErrNotRunning, "exec in a container that was not started")
			s.run(s.spec("over", "exit", "0"))
			s.wait("over")
			_, err = s.Runtime.Exec(s.ctx(), "over", runtime.ExecSpec{Args: []string{imageProgram}})
			s.wantError(err, runtime.ErrNotRunning, "exec in a container that has ended")
		}},
		{"Exec_NoSuchProgram_Invalid", func(s *suite) {
			s.run(s.spec("lacks", "sleep"))
			_, err := s.Runtime.Exec(s.ctx(), "lacks", runtime.ExecSpec{Args: []string{"/no/such/program"}})
			s.wantError(err, runtime.ErrInvalid, "exec of what is not there")
		}},
		{"Exec_ContainerRemoved_EndsWithIt", func(s *suite) {
			s.run(s.spec("gone", "sleep"))
			ended := make(chan error, 1)
			go func() {
				_, err := s.Runtime.Exec(s.ctx(), "gone", runtime.ExecSpec{Args: []string{imageProgram, "ignore-term"}})
				ended <- err
			}()
			time.Sleep(execSoon) // so that it may have begun
			if err := s.Runtime.Remove(s.ctx(), "gone"); err != nil {
				s.Fatal(err)
			}
			select {
			case <-ended:
			case <-s.ctx().Done():
				s.Fatal("it goes on without its container")
			}
		}},
		{"Exec_AfterReopen_Works", func(s *suite) {
			s.run(s.spec("kept", "sleep"))
			s.Runtime = s.Reopen(s.T)
			if _, ok := s.find("kept"); !ok {
				s.Fatal("the container is gone")
			}
			if got := s.exec("kept", "exit", "5"); got.Code != 5 {
				s.Errorf("%+v, want code 5", got)
			}
		}},
		{"Healthcheck_OfTheImage_IsRead", func(s *suite) {
			image := s.load()
			want := &runtime.Healthcheck{
				Test: []string{"CMD", imageProgram, "exit", "0"}, Interval: 7 * time.Second, Timeout: 2 * time.Second, StartPeriod: 3 * time.Second, Retries: 4,
			}
			for _, digest := range []string{"", image.Digest} {
				got, err := s.Runtime.Healthcheck(s.ctx(), ImageName, digest)
				if err != nil || !reflect.DeepEqual(got, want) {
					s.Errorf("digest %q: %+v, %v, want %+v", digest, got, err, want)
				}
			}
			_, err := s.Runtime.Healthcheck(s.ctx(), "127.0.0.1:1/nothing:here", "")
			s.wantError(err, runtime.ErrNotFound, "health check of an image that is not here")
		}},
	}
}

func execSees(s *suite) {
	out := filepath.Join(s.dir, "out")
	if err := errors.Join(os.Mkdir(out, 0o777), os.Chmod(out, 0o777)); err != nil {
		s.Fatal(err)
	}
	spec := s.spec("sees", "sleep")
	spec.Container.Env, spec.Container.User, spec.Container.CapDrop = []string{"MODE=container", "KEPT=yes"}, ImageUser, []string{"ALL"}
	spec.Container.Mounts = []*swarmpb.Mount{{Type: swarmpb.MountType_MOUNT_TYPE_BIND, Source: out, Target: "/out"}}
	s.run(spec)
	result, err := s.Runtime.Exec(s.ctx(), "sees", runtime.ExecSpec{Args: []string{imageProgram, "report", "/out/report"}, Env: []string{"MODE=exec"}, Dir: "/data"})
	if err != nil || result.Code != 0 {
		s.Fatalf("%+v, %v", result, err)
	}
	body, err := os.ReadFile(filepath.Join(out, "report"))
	if err != nil {
		s.Fatal(err)
	}
	var r program.Report
	if err := json.Unmarshal(body, &r); err != nil {
		s.Fatal(err)
	}
	for _, want := range []string{"MODE=exec", "KEPT=yes", ImageEnv} {
		if !slices.Contains(r.Env, want) {
			s.Errorf("environment %q lacks %s", r.Env, want)
		}
	}
	if r.UID != ImageUserID || r.Dir != "/data" || r.CapEff != 0 || r.Hostname != "host-sees" || slices.Contains(r.Env, "MODE=container") {
		s.Errorf("it sees %+v", r)
	}
}

func inheritCases() []testCase {
	anonymous := func(target string) *swarmpb.Mount {
		return &swarmpb.Mount{Type: swarmpb.MountType_MOUNT_TYPE_VOLUME, Target: target}
	}
	return []testCase{
		{"TakeVolumes_HeirOfAnotherSpec_HasThemByTarget", func(s *suite) {
			old := s.spec("old", "report", "/v/report", "write:/v/kept")
			old.Container.Mounts = []*swarmpb.Mount{anonymous("/other"), anonymous("/v")}
			s.run(old)
			s.wantExit(s.wait("old"), 0)
			for range 2 { // again, as after a crash
				if err := s.Runtime.TakeVolumes(s.ctx(), "old", "heir"); err != nil {
					s.Fatal(err)
				}
			}
			if err := s.Runtime.Remove(s.ctx(), "old"); err != nil {
				s.Fatal(err)
			}
			heirs := []string{"heir", "second"}
			s.Cleanup(func() {
				for _, id := range heirs {
					if err := s.Runtime.RemoveVolumes(context.Background(), id); err != nil {
						s.Error(err)
					}
				}
			})
			for i, id := range heirs {
				if i > 0 { // handed on, after its holder is gone
					if err := errors.Join(s.Runtime.Remove(s.ctx(), heirs[0]), s.Runtime.TakeVolumes(s.ctx(), heirs[0], id)); err != nil {
						s.Fatal(err)
					}
				}
				heir := s.spec(id)
				heir.Inherits = true
				heir.Container.Mounts = []*swarmpb.Mount{anonymous("/v")}
				if got := s.report(heir, "read:/v/kept").Probes["read:/v/kept"]; got.Text != "write:/v/kept" {
					s.Errorf("%s reads %+v of what its forebear has written", id, got)
				}
			}
		}},
		{"TakeVolumes_OfOneThatRuns_InUse", func(s *suite) {
			s.run(s.spec("runs", "sleep"))
			s.wantError(s.Runtime.TakeVolumes(s.ctx(), "runs", "heir"), runtime.ErrInUse, "take volumes")
			if err := s.Runtime.TakeVolumes(s.ctx(), "never-was", "heir"); err != nil {
				s.Errorf("of a container that is not there: %v", err)
			}
		}},
	}
}
