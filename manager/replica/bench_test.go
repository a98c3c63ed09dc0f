package replica

import (
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// BenchmarkReplicaPropose measures three members in one process with real files, TLS and sealing. x-bbolt is the rate
// against bbolt alone committing single puts, measured in the same run; writes/cpu-s counts the CPU of all three.
func BenchmarkReplicaPropose(b *testing.B) {
	single := bboltRate(b)
	members := newTLSCluster(b, 3)
	leader := members[0]
	for _, writers := range []int{1, 64} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			rate := writeAll(b, writers, func(n int64) {
				if _, err := leader.Propose(b.Context(), alarm(fmt.Sprint("bench", n%500), "")); err != nil {
					b.Error(err)
				}
			})
			b.ReportMetric(rate, "writes/s")
			b.ReportMetric(rate/single, "x-bbolt")
		})
	}
	const tasks, batch = 20_000, 200
	var made sync.Once
	b.Run("task-writes", func(b *testing.B) {
		made.Do(func() { makeTasks(b, leader, tasks, batch) })
		start := cpuTime(b)
		rate := writeAll(b, 16, func(n int64) {
			p := &swarmpb.Proposal{Now: n + 1}
			for i := range int64(batch) {
				p.Writes = append(p.Writes, &swarmpb.Write{Op: &swarmpb.Write_MergeStatus{MergeStatus: &swarmpb.TaskStatus{
					TaskId: taskID((n*batch + i) % tasks), State: swarmpb.TaskState_TASK_STATE_RUNNING, At: n + 1, Message: "running",
					Container: &swarmpb.ContainerStatus{ContainerId: "c", Pid: uint32(n), StartedAt: n + 1},
				}}})
			}
			if _, err := leader.Propose(b.Context(), p); err != nil {
				b.Error(err)
			}
		})
		writes := float64(b.N) * batch
		b.ReportMetric(rate*batch, "task-writes/s")
		b.ReportMetric(writes/(cpuTime(b)-start).Seconds(), "task-writes/cpu-s")
	})
}

func taskID(n int64) string { return fmt.Sprintf("task%021d", n) }

func makeTasks(b *testing.B, m *tlsMember, tasks, batch int) {
	b.Helper()
	for from := 0; from < tasks; from += batch {
		p := &swarmpb.Proposal{Now: 1}
		if from == 0 {
			p.Writes = append(p.Writes,
				&swarmpb.Write{Op: &swarmpb.Write_Put{Put: &swarmpb.Row{Row: &swarmpb.Row_Template{Template: &swarmpb.Template{ServiceId: "service", Version: 1}}}}},
				&swarmpb.Write{Op: &swarmpb.Write_Put{Put: &swarmpb.Row{Row: &swarmpb.Row_Service{Service: &swarmpb.Service{
					Id: "service", Spec: &swarmpb.ServiceSpec{Name: "service"}, TemplateVersion: 1,
				}}}}})
		}
		for i := from; i < from+batch; i++ {
			p.Writes = append(p.Writes, &swarmpb.Write{Op: &swarmpb.Write_Put{Put: &swarmpb.Row{Row: &swarmpb.Row_Task{Task: &swarmpb.Task{
				Id: taskID(int64(i)), ServiceId: "service", Slot: uint64(i + 1), Attempt: 1, TemplateVersion: 1, DesiredState: swarmpb.TaskState_TASK_STATE_RUNNING,
			}}}}})
		}
		if _, err := m.Propose(b.Context(), p); err != nil {
			b.Fatal(err)
		}
	}
	b.ResetTimer()
}

// writeAll makes b.N writes from as many writers and returns their rate per second.
func writeAll(b *testing.B, writers int, write func(n int64)) float64 {
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ResetTimer()
	for range writers {
		wg.Go(func() {
			for n := next.Add(1) - 1; n < int64(b.N); n = next.Add(1) - 1 {
				write(n)
			}
		})
	}
	wg.Wait()
	return float64(b.N) / b.Elapsed().Seconds()
}

// bboltRate is how many single puts bbolt alone commits per second on this disk.
func bboltRate(b *testing.B) float64 {
	b.Helper()
	db, err := bbolt.Open(filepath.Join(b.TempDir(), "alone.db"), 0o600, &bbolt.Options{NoFreelistSync: true, FreelistType: bbolt.FreelistMapType})
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	start, n := time.Now(), uint64(0)
	for ; time.Since(start) < time.Second; n++ {
		err := db.Update(func(tx *bbolt.Tx) error {
			bucket, err := tx.CreateBucketIfNotExists(bucketLog)
			if err != nil {
				return err
			}
			return bucket.Put(indexKey(n), make([]byte, 128))
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	rate := float64(n) / time.Since(start).Seconds()
	b.Logf("bbolt alone: %.0f single puts a second", rate)
	return rate
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
