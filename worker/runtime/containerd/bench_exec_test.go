package containerd_test

import (
	"bytes"
	"context"
	"os/exec"
	goruntime "runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/runtime"
	"github.com/swarmd/swarmd/worker/runtime/containerd"
	"github.com/swarmd/swarmd/worker/runtime/runtimetest"
)

// BenchmarkExec is what a process beside a container's own costs, with the OCI runtime and the process itself.
func BenchmarkExec(b *testing.B) {
	child := shared.open(b)
	archive, err := runtimetest.Archive(runtimetest.ImageName, goruntime.GOARCH, binary(b))
	if err != nil {
		b.Fatal(err)
	}
	for _, oci := range []string{containerd.Runc, containerd.Crun} {
		b.Run(oci, func(b *testing.B) {
			if _, err := exec.LookPath(oci); err != nil {
				b.Skipf("no %s on this host: apt-get install %s", oci, oci)
			}
			config := configure(b, child)
			config.OCIRuntime = oci
			r, _ := open(b, config)
			ctx := context.Background()
			if _, err := r.Import(ctx, bytes.NewReader(archive)); err != nil {
				b.Fatal(err)
			}
			id := "exec-" + oci
			defer func() {
				if err := r.Remove(ctx, id); err != nil {
					b.Error(err)
				}
			}()
			if err := r.Create(ctx, runtime.Spec{ID: id, Image: runtimetest.ImageName, Container: &swarmpb.ContainerSpec{Args: []string{"sleep"}}}); err != nil {
				b.Fatal(err)
			}
			if _, err := r.Start(ctx, id); err != nil {
				b.Fatal(err)
			}
			before := processorTime(b)
			for b.Loop() {
				if got, err := r.Exec(ctx, id, runtime.ExecSpec{Args: []string{"/testimage", "exit", "0"}}); err != nil || got.Code != 0 {
					b.Fatalf("%+v, %v", got, err)
				}
			}
			b.ReportMetric(float64((processorTime(b)-before).Microseconds())/1000/float64(b.N), "cpu-ms/op")
		})
	}
}

// processorTime of this process and of those that it has waited for.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var total int64
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if err := unix.Getrusage(who, &u); err != nil {
			b.Fatal(err)
		}
		total += u.Utime.Nano() + u.Stime.Nano()
	}
	return time.Duration(total)
}
