package worker

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/network/networktest"
	"github.com/swarmd/swarmd/worker/runtime"
	"github.com/swarmd/swarmd/worker/runtime/runtimetest"
)

// imageFleet is a fleet whose disk has 100 units, of which each image takes five beside a base.
func imageFleet(t *testing.T, base *int) (*fleet, *runtimetest.Fake) {
	fake := runtimetest.NewFake(runtimetest.FakeConfig{})
	cfg := Config{NodeID: "n", Dir: t.TempDir(), Runtime: fake, Network: &networktest.Fake{}, Logger: slog.New(slog.DiscardHandler), Disk: func(string) (Disk, error) {
		images, err := fake.Images(t.Context())
		return Disk{Size: 100, Free: uint64(100 - *base - 5*len(images))}, err
	}}
	cfg.Limits = cfg.Limits.withDefaults()
	issues := newProblems()
	return newFleet(cfg, newDB(cfg.Dir, cfg.Logger, issues), newReporter(cfg.Limits, cfg.Logger, issues), issues), fake
}

func TestImageSpace_DiskFills_LongestUnusedGoFirstAndNothingThatIsNeeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		base := 0
		f, fake := imageFleet(t, &base)
		pull := func(name string) string {
			image, err := fake.Pull(t.Context(), runtime.PullRequest{Image: name})
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Hour)
			return image.Digest
		}
		ranOnce, byDigest := pull("a:ran"), pull("b:digest")
		pull("c:old")
		pull("d:newer")
		pull("e:named")
		f.tasks["ended"] = &task{id: "ended", cleaned: true, status: &swarmpb.TaskStatus{
			State: swarmpb.TaskState_TASK_STATE_FAILED, At: time.Now().Add(-time.Minute).UnixNano(), Container: &swarmpb.ContainerStatus{ImageDigest: ranOnce}}}
		f.tasks["runs"] = &task{id: "runs", status: &swarmpb.TaskStatus{
			State: swarmpb.TaskState_TASK_STATE_RUNNING, Container: &swarmpb.ContainerStatus{ImageDigest: byDigest}}}
		f.templates[templateKey{"s", 1}] = &swarmpb.AssignedTemplate{Spec: &swarmpb.TaskSpec{Container: &swarmpb.ContainerSpec{Image: "e:named"}}}
		archive, err := runtimetest.Archive("loaded:by-hand", "", runtimetest.Binary(t))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fake.Import(t.Context(), bytes.NewReader(archive)); err != nil {
			t.Fatal(err)
		}
		wantLeft := func(want ...string) {
			t.Helper()
			if err := f.trimImages(t.Context(), imagesRest); err != nil {
				t.Error(err)
			}
			images, err := fake.Images(t.Context())
			var left []string
			for _, image := range images {
				left = append(left, image.Name)
			}
			for i, name := range want {
				want[i] = "docker.io/library/" + name
			}
			if err != nil || !slices.Equal(left, want) {
				t.Errorf("left are %v, %v, want %v", left, err, want)
			}
		}
		base = 54 // 84 % used: below the watermark
		wantLeft("a:ran", "b:digest", "c:old", "d:newer", "e:named", "loaded:by-hand")
		base = 55 // 85 %: one is enough, the one that was pulled first
		wantLeft("a:ran", "b:digest", "d:newer", "e:named", "loaded:by-hand")
		base = 70 // 95 %: all that may go; what ran a minute ago may not
		wantLeft("a:ran", "b:digest", "e:named", "loaded:by-hand")
		time.Sleep(imagesRest)
		wantLeft("b:digest", "e:named", "loaded:by-hand")
		f.tasks["runs"].status.State, f.tasks["runs"].cleaned = swarmpb.TaskState_TASK_STATE_FAILED, true
		delete(f.templates, templateKey{"s", 1})
		base = 80
		wantLeft("loaded:by-hand")
	})
}

func TestImageSpace_ADiskThatMakesNoSense_IsAnErrorNotARemoval(t *testing.T) {
	base := 0
	f, _ := imageFleet(t, &base)
	for _, disk := range []Disk{{}, {Free: 2, Size: 1}} {
		f.cfg.Disk = func(string) (Disk, error) { return disk, nil }
		if err := f.trimImages(t.Context(), imagesRest); err == nil {
			t.Errorf("%+v is taken", disk)
		}
	}
	broken := errors.New("no disk")
	f.cfg.Disk = func(string) (Disk, error) { return Disk{}, broken }
	if err := f.trimImages(t.Context(), imagesRest); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
}

func TestImageSpace_DiskFull_RoomIsMadeAtOnceAndOnlyTheYoungestStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		base := 0
		f, fake := imageFleet(t, &base)
		disk := newSpace(f.cfg, newProblems())
		pull := func(name string) {
			if _, err := fake.Pull(t.Context(), runtime.PullRequest{Image: name}); err != nil {
				t.Fatal(err)
			}
		}
		pull("a:old")
		time.Sleep(imagesRestFull)
		pull("b:young")
		base = 86 // 96 % used
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { disk.run(ctx, func() {}) })
		running.Go(func() {
			if err := f.boundImages(ctx, disk); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		images, err := fake.Images(ctx)
		if err != nil || len(images) != 1 || images[0].Name != "docker.io/library/b:young" {
			t.Errorf("left are %+v, %v, want the one that was pulled just now", images, err)
		}
		if disk.takesNone() == "" {
			t.Error("the disk was not full")
		}
		time.Sleep(spaceEvery)
		synctest.Wait()
		if why := disk.takesNone(); why != "" {
			t.Error("still", why)
		}
		cancel()
		running.Wait()
	})
}

// stuckImage is a runtime that cannot remove one of its images.
type stuckImage struct {
	*runtimetest.Fake
	name string
}

func (r stuckImage) RemoveImage(ctx context.Context, name string, force bool) ([]string, error) {
	if name == r.name {
		return nil, errStuck
	}
	return r.Fake.RemoveImage(ctx, name, force)
}

func TestImageSpace_OneCannotGo_OthersDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		base := 85
		f, fake := imageFleet(t, &base)
		f.runtime = stuckImage{fake, "docker.io/library/a:v1"}
		for _, name := range []string{"a:v1", "b:v1", "c:v1"} {
			if _, err := fake.Pull(t.Context(), runtime.PullRequest{Image: name}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Hour)
		}
		if err := f.trimImages(t.Context(), imagesRest); !errors.Is(err, errStuck) {
			t.Errorf("error is %v", err)
		}
		if images, err := fake.Images(t.Context()); err != nil || len(images) != 1 || images[0].Name != "docker.io/library/a:v1" {
			t.Errorf("left are %v, %v", images, err)
		}
	})
}
