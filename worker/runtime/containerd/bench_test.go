package containerd_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/runtime"
	"github.com/swarmd/swarmd/worker/runtime/containerd"
	"github.com/swarmd/swarmd/worker/runtime/runtimetest"
)

const (
	benchStarts = 100
	benchAtOnce = 4
)

// BenchmarkStart starts 100 containers, 4 at once, each in an empty network namespace of its own: through the
// Runtime, and through a loop over the bare containerd client with the same shim, OCI runtime, logger and
// specification. It reports both times and CPU (of everything: client, containerd, shims, runc) and the ratios.
func BenchmarkStart(b *testing.B) {
	requireRoot(b)
	usage := accountCPU(b) // before containerd starts, so that it is counted
	child := shared.open(b)
	config := configure(b, child)
	r, _ := open(b, config)
	importImage(b, r)
	raw := newRawLoop(b, r, config)
	var spent [2]struct{ time, cpu time.Duration }
	for i := range b.N {
		for k, starter := range []func(context.Context, string) (func() error, error){startThrough(r), raw.start} {
			elapsed, cpu := startAll(b, usage, fmt.Sprintf("bench-%d-%d", i, k), starter)
			spent[k].time += elapsed
			spent[k].cpu += cpu
		}
	}
	n := float64(b.N * benchStarts)
	b.ReportMetric(0, "ns/op")
	for k, name := range []string{"runtime", "raw"} {
		b.ReportMetric(n/spent[k].time.Seconds(), name+"-starts/s")
		b.ReportMetric(spent[k].cpu.Seconds()*1000/n, name+"-cpu-ms")
	}
	b.ReportMetric(spent[0].time.Seconds()/spent[1].time.Seconds(), "time-ratio")
	b.ReportMetric(spent[0].cpu.Seconds()/spent[1].cpu.Seconds(), "cpu-ratio")
}

// startAll measures the starts; what it started is removed outside the measure.
func startAll(b *testing.B, usage func() time.Duration, prefix string, starter func(context.Context, string) (func() error, error)) (elapsed, cpu time.Duration) {
	b.Helper()
	removes := make([]func() error, benchStarts)
	group, ctx := errgroup.WithContext(context.Background())
	group.SetLimit(benchAtOnce)
	begin, before := time.Now(), usage()
	for i := range benchStarts {
		group.Go(func() (err error) {
			removes[i], err = starter(ctx, prefix+"-"+strconv.Itoa(i))
			return err
		})
	}
	if err := group.Wait(); err != nil {
		b.Fatal(err)
	}
	elapsed, cpu = time.Since(begin), usage()-before
	var cleanup errgroup.Group
	cleanup.SetLimit(benchAtOnce)
	for _, remove := range removes {
		cleanup.Go(remove)
	}
	if err := cleanup.Wait(); err != nil {
		b.Fatal(err)
	}
	return elapsed, cpu
}

func startThrough(r *containerd.Runtime) func(context.Context, string) (func() error, error) {
	return func(ctx context.Context, id string) (func() error, error) {
		err := r.Create(ctx, benchSpec(id))
		if err == nil {
			_, err = r.Start(ctx, id)
		}
		return func() error { return r.Remove(context.Background(), id) }, err
	}
}

func importImage(b *testing.B, r *containerd.Runtime) {
	b.Helper()
	archive, err := runtimetest.Archive(runtimetest.ImageName, goruntime.GOARCH, binary(b))
	if err != nil {
		b.Fatal(err)
	}
	if _, err := r.Import(context.Background(), bytes.NewReader(archive)); err != nil {
		b.Fatal(err)
	}
}

func benchSpec(id string) runtime.Spec {
	return runtime.Spec{ID: id, Image: runtimetest.ImageName, Container: &swarmpb.ContainerSpec{}, Hostname: "bench"}
}

// rawLoop is what a program does that knows containerd alone.
type rawLoop struct {
	client   *client.Client
	image    client.Image
	template []byte
	logger   string
	logs     string
	options  *options.Options
}

// newRawLoop takes the specification of a container of ours as its template.
func newRawLoop(b *testing.B, r *containerd.Runtime, config containerd.Config) *rawLoop {
	b.Helper()
	c, err := client.New(config.Address, client.WithDefaultNamespace(containerd.Namespace), client.WithDefaultRuntime("io.containerd.runc.v2"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	ctx := namespaces.WithNamespace(context.Background(), containerd.Namespace)
	image, err := c.GetImage(ctx, runtimetest.ImageName)
	if err != nil {
		b.Fatal(err)
	}
	if err := r.Create(ctx, benchSpec("template")); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { r.Remove(context.Background(), "template") })
	record, err := c.ContainerService().Get(ctx, "template")
	if err != nil {
		b.Fatal(err)
	}
	loggers, err := filepath.Glob(filepath.Join(config.Dir, "bin", "logger-*"))
	if err != nil || len(loggers) != 1 {
		b.Fatalf("loggers: %v, %v", loggers, err)
	}
	runc, err := containerd.FindOCIRuntime("")
	if err != nil {
		b.Fatal(err)
	}
	return &rawLoop{
		client: c, image: image, template: record.Spec.GetValue(), logger: loggers[0], logs: filepath.Join(config.Dir, "logs"),
		options: &options.Options{BinaryName: runc.Path, Root: filepath.Join(config.RunDir, "raw")},
	}
}

func (l *rawLoop) start(ctx context.Context, id string) (func() error, error) {
	_, remove, err := l.startWith(ctx, id, cio.BinaryIO(l.logger, map[string]string{"dir": filepath.Join(l.logs, id)}))
	return remove, err
}

// startWith starts a container whose output goes where the creator says.
func (l *rawLoop) startWith(ctx context.Context, id string, output cio.Creator) (client.Task, func() error, error) {
	ctx = namespaces.WithNamespace(ctx, containerd.Namespace)
	var spec specs.Spec
	if err := json.Unmarshal(l.template, &spec); err != nil {
		return nil, nil, err
	}
	spec.Linux.CgroupsPath = filepath.Join(cgroupParent, id)
	c, err := l.client.NewContainer(ctx, id, client.WithNewSnapshot(id, l.image), client.WithSpec(&spec), client.WithRuntime("io.containerd.runc.v2", l.options))
	if err != nil {
		return nil, nil, err
	}
	task, err := c.NewTask(ctx, output)
	if err != nil {
		return nil, nil, err
	}
	exited, err := task.Wait(ctx)
	if err != nil {
		return nil, nil, err
	}
	return task, func() error {
		ctx := namespaces.WithNamespace(context.Background(), containerd.Namespace)
		exited, err = task.Wait(ctx)
		if err != nil {
			return err
		}
		if err := task.Kill(ctx, unix.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		<-exited
		if _, err := task.Delete(ctx); err != nil {
			return err
		}
		return c.Delete(ctx, client.WithSnapshotCleanup)
	}, task.Start(ctx)
}

// accountCPU moves this process into a CPU accounting cgroup of its own, which all that it starts inherits, and
// gives a function that reads what they, and the containers, have used.
func accountCPU(b *testing.B) func() time.Duration {
	b.Helper()
	const controller = "/sys/fs/cgroup/cpuacct"
	if _, err := os.Stat(filepath.Join(controller, "cpuacct.usage")); err != nil {
		b.Skip("no CPU accounting of cgroup v1 on this host")
	}
	own := filepath.Join(controller, strings.TrimPrefix(cgroupParent, "/")+"-bench")
	if err := os.Mkdir(own, 0o755); err != nil && !os.IsExist(err) {
		b.Fatal(err)
	}
	join := func(dir string) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0); err != nil {
			b.Fatal(err)
		}
	}
	join(own)
	b.Cleanup(func() { join(controller) })
	shared.cleanup = []func() error{func() error { return os.Remove(own) }}
	return func() time.Duration {
		var sum time.Duration
		for _, dir := range []string{own, filepath.Join(controller, cgroupParent)} {
			body, err := os.ReadFile(filepath.Join(dir, "cpuacct.usage"))
			if err != nil {
				continue // no container yet
			}
			n, err := strconv.ParseInt(strings.TrimSpace(string(body)), 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			sum += time.Duration(n)
		}
		return sum
	}
}
