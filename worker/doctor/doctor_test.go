package doctor

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

func TestRun_ChecksThatHangFailOrPanic_KeepNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		forever := make(chan struct{})
		checks := []Check{
			{"hangs", func(context.Context) Finding { <-forever; return OK("") }},
			{"panics", func(context.Context) Finding { panic("oh") }},
			{"heeds its time", func(ctx context.Context) Finding { <-ctx.Done(); return Warning("a\nb", "c") }},
			{"works", func(context.Context) Finding { return OK("%d", 1) }},
		}
		var most, now atomic.Int32
		for i := range 100 {
			checks = append(checks, Check{fmt.Sprint("many ", i), func(context.Context) Finding {
				n := now.Add(1)
				defer now.Add(-1)
				most.Store(max(most.Load(), n))
				time.Sleep(time.Second)
				return OK("")
			}})
		}
		got := map[string]*swarmpb.DoctorResponse{}
		began := time.Now()
		err := Run(t.Context(), checks, func(r *swarmpb.DoctorResponse) error { got[r.Check] = r; return nil })
		if err != nil || len(got) != len(checks) {
			t.Errorf("%d of %d checks told, %v", len(got), len(checks), err)
		}
		for name, want := range map[string]swarmpb.Finding{"hangs": swarmpb.Finding_FINDING_PROBLEM, "panics": swarmpb.Finding_FINDING_PROBLEM,
			"heeds its time": swarmpb.Finding_FINDING_WARNING, "works": swarmpb.Finding_FINDING_OK} {
			if got[name].GetFinding() != want {
				t.Errorf("%s: %v", name, got[name])
			}
		}
		if got["heeds its time"].GetDetail() != "a b" {
			t.Errorf("detail %q", got["heeds its time"].GetDetail())
		}
		if most.Load() > Parallel || time.Since(began) > 10*time.Second {
			t.Errorf("%d at a time, for %s", most.Load(), time.Since(began))
		}
		close(forever)
	})
}

func TestRun_NobodyListens_Ends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gone := errors.New("gone")
		var checks []Check
		for range 100 {
			checks = append(checks, Check{"c", func(context.Context) Finding { time.Sleep(time.Second); return OK("") }})
		}
		told := 0
		err := Run(t.Context(), checks, func(*swarmpb.DoctorResponse) error { told++; return gone })
		if !errors.Is(err, gone) || told != 1 {
			t.Errorf("told %d, %v", told, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := Run(ctx, checks, func(*swarmpb.DoctorResponse) error { return nil }); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}
