package runtimetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/swarmd/swarmd/worker/runtime"
)

func lifecycleCases() []testCase {
	return []testCase{
		{"Container_FromCreateToRemove_IsListedInEachState", func(s *suite) {
			spec := s.spec("life", "sleep")
			s.create(spec)
			if c := s.wantState("life", runtime.Created); c.Labels["com.docker.swarm.task.id"] != "life" {
				s.Errorf("labels are %v, want those of the spec", c.Labels)
			}
			pid := s.start("life")
			if c := s.wantState("life", runtime.Running); c.Pid != pid {
				s.Errorf("list says pid %d, start said %d", c.Pid, pid)
			}
			if err := s.Runtime.Kill(s.ctx(), "life", "SIGKILL"); err != nil {
				s.Fatalf("kill: %v", err)
			}
			s.wantExit(s.wait("life"), 137)
			if c := s.wantState("life", runtime.Stopped); c.Exit == nil || c.Exit.Code != 137 {
				s.Errorf("list says exit %+v, want code 137", c.Exit)
			}
			for range 2 { // removing what is not there is no error
				if err := s.Runtime.Remove(s.ctx(), "life"); err != nil {
					s.Fatalf("remove: %v", err)
				}
				if _, ok := s.find("life"); ok {
					s.Fatal("still listed after remove")
				}
			}
		}},
		{"Exit_OfItself_KeepsItsCode", func(s *suite) {
			for _, code := range []uint32{0, 3, 255} {
				id := fmt.Sprintf("exit-%d", code)
				before := time.Now()
				s.run(s.spec(id, "exit", fmt.Sprint(code)))
				exit := s.wait(id)
				s.wantExit(exit, code)
				if exit.At.Before(before.Add(-time.Second)) || exit.At.After(time.Now().Add(time.Second)) {
					s.Errorf("%s ended at %v, not between %v and now", id, exit.At, before)
				}
				again := s.wait(id)
				if again.Code != exit.Code || !again.At.Equal(exit.At) {
					s.Errorf("second wait says %+v, the first %+v", again, exit)
				}
			}
		}},
		{"Wait_BeforeTheEnd_ReturnsAtTheEndToAll", func(s *suite) {
			s.run(s.spec("waited", "sleep"))
			var group sync.WaitGroup
			exits := make([]runtime.Exit, 3)
			errs := make([]error, 3)
			ctx := s.ctx()
			for i := range exits {
				group.Go(func() { exits[i], errs[i] = s.Runtime.Wait(ctx, "waited") })
			}
			if err := s.Runtime.Kill(ctx, "waited", "SIGUSR1"); err != nil {
				s.Fatalf("kill: %v", err)
			}
			group.Wait()
			for i := range exits {
				if errs[i] != nil {
					s.Fatalf("wait: %v", errs[i])
				}
				s.wantExit(exits[i], 138)
			}
		}},
		{"Wait_ContextEnds_ReturnsItsError", func(s *suite) {
			s.run(s.spec("waited", "sleep"))
			ctx, cancel := context.WithTimeout(s.ctx(), 100*time.Millisecond)
			defer cancel()
			_, err := s.Runtime.Wait(ctx, "waited")
			s.wantError(err, context.DeadlineExceeded, "wait")
			s.wantState("waited", runtime.Running)
		}},
		{"UnknownContainer_AnyVerb_NotFound", func(s *suite) {
			ctx := s.ctx()
			_, err := s.Runtime.Start(ctx, "nobody")
			s.wantError(err, runtime.ErrNotFound, "start")
			_, err = s.Runtime.Wait(ctx, "nobody")
			s.wantError(err, runtime.ErrNotFound, "wait")
			_, err = s.Runtime.Stop(ctx, "nobody", "SIGTERM", time.Second)
			s.wantError(err, runtime.ErrNotFound, "stop")
			s.wantError(s.Runtime.Kill(ctx, "nobody", "SIGTERM"), runtime.ErrNotFound, "kill")
			if err := s.Runtime.Remove(ctx, "nobody"); err != nil {
				s.Errorf("remove of what is not there: %v", err)
			}
			if err := s.Runtime.RemoveLogs(ctx, "nobody"); err != nil {
				s.Errorf("remove logs of what is not there: %v", err)
			}
		}},
		{"Create_Twice_OneContainer", func(s *suite) {
			spec := s.spec("twice", "sleep")
			s.create(spec)
			if err := s.Runtime.Create(s.ctx(), spec); err != nil {
				s.Fatalf("second create: %v", err)
			}
			s.wantState("twice", runtime.Created)
			s.start("twice")
		}},
		{"Create_WhileRunning_LeavesItAlone", func(s *suite) {
			spec := s.spec("twice", "sleep")
			pid := s.run(spec)
			if err := s.Runtime.Create(s.ctx(), spec); err != nil && !errors.Is(err, runtime.ErrInUse) {
				s.Fatalf("create of a running one: %v, want nil or in use", err)
			}
			if c := s.wantState("twice", runtime.Running); c.Pid != pid {
				s.Errorf("pid is %d, was %d", c.Pid, pid)
			}
		}},
		{"Start_Twice_SameProcess", func(s *suite) {
			pid := s.run(s.spec("twice", "sleep"))
			if again := s.start("twice"); again != pid {
				s.Errorf("second start says pid %d, the first %d", again, pid)
			}
		}},
		{"Start_AfterItEnded_IsRefused", func(s *suite) {
			s.run(s.spec("ended", "exit", "0"))
			s.wait("ended")
			if _, err := s.Runtime.Start(s.ctx(), "ended"); err == nil {
				s.Fatal("started a container a second time")
			}
			if c := s.wantState("ended", runtime.Stopped); c.Exit == nil || c.Exit.Code != 0 {
				s.Errorf("exit is %+v, want code 0", c.Exit)
			}
		}},
		{"Remove_OfARunningOne_EndsIt", func(s *suite) {
			s.run(s.spec("removed", "ignore-term"))
			if err := s.Runtime.Remove(s.ctx(), "removed"); err != nil {
				s.Fatalf("remove: %v", err)
			}
			if _, ok := s.find("removed"); ok {
				s.Fatal("still listed")
			}
			s.run(s.spec("removed", "exit", "4")) // the name is free again
			s.wantExit(s.wait("removed"), 4)
		}},
		{"Containers_ManyAtOnce_EachItsOwn", func(s *suite) {
			s.load()
			var group sync.WaitGroup
			const n = 8
			for i := range n {
				spec := s.spec(fmt.Sprintf("many-%d", i), "exit", fmt.Sprint(10+i))
				s.removeLater(spec.ID)
				ctx := s.ctx()
				group.Go(func() {
					if err := s.Runtime.Create(ctx, spec); err != nil {
						s.Errorf("create %s: %v", spec.ID, err)
						return
					}
					if _, err := s.Runtime.Start(ctx, spec.ID); err != nil {
						s.Errorf("start %s: %v", spec.ID, err)
						return
					}
					exit, err := s.Runtime.Wait(ctx, spec.ID)
					if err != nil || exit.Code != uint32(10+i) {
						s.Errorf("wait %s: %+v, %v", spec.ID, exit, err)
					}
				})
			}
			group.Wait()
		}},
	}
}

func signalCases() []testCase {
	return []testCase{
		{"Stop_ProcessObeys_EndsBeforeTheGrace", func(s *suite) {
			s.run(s.spec("stopped", "sleep"))
			begin := time.Now()
			exit, err := s.Runtime.Stop(s.ctx(), "stopped", "SIGTERM", time.Minute)
			if err != nil {
				s.Fatalf("stop: %v", err)
			}
			s.wantExit(exit, 143)
			if took := time.Since(begin); took >= time.Minute {
				s.Errorf("stop waited for all of the grace period (%v)", took)
			}
			s.wantState("stopped", runtime.Stopped)
		}},
		{"Stop_ProcessIgnores_KilledAfterTheGrace", func(s *suite) {
			s.run(s.spec("stubborn", "ignore-term"))
			begin := time.Now()
			exit, err := s.Runtime.Stop(s.ctx(), "stubborn", "SIGTERM", 700*time.Millisecond)
			if err != nil {
				s.Fatalf("stop: %v", err)
			}
			s.wantExit(exit, 137)
			if took := time.Since(begin); took < 700*time.Millisecond {
				s.Errorf("killed after %v, before the grace period was over", took)
			}
		}},
		{"Stop_NoGrace_KilledAtOnce", func(s *suite) {
			s.run(s.spec("stubborn", "ignore-term"))
			exit, err := s.Runtime.Stop(s.ctx(), "stubborn", "SIGTERM", 0)
			if err != nil {
				s.Fatalf("stop: %v", err)
			}
			s.wantExit(exit, 137)
		}},
		{"Stop_OtherSignal_IsSent", func(s *suite) {
			s.run(s.spec("stopped", "sleep"))
			exit, err := s.Runtime.Stop(s.ctx(), "stopped", "SIGUSR2", time.Minute)
			if err != nil {
				s.Fatalf("stop: %v", err)
			}
			s.wantExit(exit, 140)
		}},
		{"Stop_SignalUnset_ImagesIsSent", func(s *suite) {
			s.run(s.spec("stopped", "sleep"))
			exit, err := s.Runtime.Stop(s.ctx(), "stopped", "", time.Minute)
			if err != nil {
				s.Fatalf("stop: %v", err)
			}
			s.wantExit(exit, 130) // the test image says SIGINT
		}},
		{"Stop_AlreadyEnded_ReturnsItsExit", func(s *suite) {
			s.run(s.spec("ended", "exit", "9"))
			s.wait("ended")
			exit, err := s.Runtime.Stop(s.ctx(), "ended", "SIGTERM", time.Minute)
			if err != nil {
				s.Fatalf("stop: %v", err)
			}
			s.wantExit(exit, 9)
		}},
		{"Stop_NeverStarted_IsRefusedAtOnce", func(s *suite) {
			s.create(s.spec("made", "sleep"))
			begin := time.Now()
			if _, err := s.Runtime.Stop(s.ctx(), "made", "SIGTERM", time.Minute); err == nil {
				s.Error("stopped what has no process")
			}
			if took := time.Since(begin); took >= time.Minute {
				s.Errorf("it waited for the grace period (%v)", took)
			}
			s.wantState("made", runtime.Created)
		}},
		{"Kill_UnknownSignal_Invalid", func(s *suite) {
			s.run(s.spec("killed", "sleep"))
			s.wantError(s.Runtime.Kill(s.ctx(), "killed", "SIGNONSENSE"), runtime.ErrInvalid, "kill")
			s.wantState("killed", runtime.Running)
		}},
	}
}

func reopenCases() []testCase {
	return []testCase{
		{"Reopen_ContainersInEveryState_AreFoundAndRuledAsBefore", func(s *suite) {
			s.create(s.spec("made", "sleep"))
			pid := s.run(s.spec("runs", "sleep"))
			s.run(s.spec("ended", "exit", "5"))
			s.wait("ended")
			s.Runtime = s.Reopen(s.T)

			s.wantState("made", runtime.Created)
			if c := s.wantState("runs", runtime.Running); c.Pid != pid || c.Labels["com.docker.swarm.task.id"] != "runs" {
				s.Errorf("running one is %+v, want pid %d and its labels", c, pid)
			}
			if c := s.wantState("ended", runtime.Stopped); c.Exit == nil || c.Exit.Code != 5 {
				s.Errorf("ended one is %+v, want exit code 5", c)
			}
			s.wantExit(s.wait("ended"), 5)
			s.start("made")
			exit, err := s.Runtime.Stop(s.ctx(), "runs", "SIGTERM", time.Minute)
			if err != nil {
				s.Fatalf("stop: %v", err)
			}
			s.wantExit(exit, 143)
		}},
		{"Reopen_EndsMeanwhile_ExitIsSeen", func(s *suite) {
			s.run(s.spec("ends", "exit", "6", "300ms"))
			s.Runtime = s.Reopen(s.T)
			s.wantExit(s.wait("ends"), 6)
		}},
	}
}
