package allocator

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/swarmd/swarmd/manager/reconcile"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// benchLab is a network with a /16 and a service whose tasks are in it.
func benchLab(b *testing.B, tasks int) *lab {
	l := newLab(b, &swarmpb.ClusterSpec{})
	l.network(&swarmpb.NetworkSpec{Name: "net-a", Subnets: []*swarmpb.NetworkSubnet{{Subnet: "10.1.0.0/16"}}})
	l.service("svc-a", []string{"net-a"}, 0)
	l.settle()
	l.scale("svc-a", tasks)
	return l
}

// cpu is the CPU that the process has used; on a machine that others use as well, time says little.
func cpu(b *testing.B) time.Duration {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// give lets the reconciler give addresses until it has nothing to do; it answers the CPU spent in plans.
func give(b *testing.B, l *lab) (planning time.Duration) {
	leader := l.Leader()
	for {
		start := cpu(b)
		plan, err := Addresses{}.Reconcile(l.View(), reconcile.ID{Object: "net-a"}, l.Now())
		planning += cpu(b) - start
		if err != nil {
			b.Fatal(err)
		}
		if len(plan.Writes) == 0 {
			return planning
		}
		proposal := &swarmpb.Proposal{Term: leader.Term(), Guards: plan.Guards, Writes: plan.Writes, Now: l.Now().UnixNano()}
		if _, err := leader.Propose(context.Background(), proposal); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkAddresses gives addresses to all tasks of a service: CPU an address, in plans and with the store.
func BenchmarkAddresses(b *testing.B) {
	for _, tasks := range []int{1000, 10_000, 50_000} {
		b.Run(fmt.Sprint(tasks), func(b *testing.B) {
			var planning, all time.Duration
			for b.Loop() {
				b.StopTimer()
				l := benchLab(b, tasks)
				b.StartTimer()
				start := cpu(b)
				planning += give(b, l)
				all += cpu(b) - start
			}
			n := float64(b.N * tasks)
			b.ReportMetric(float64(planning.Nanoseconds())/n, "plan-cpu-ns/address")
			b.ReportMetric(float64(all.Nanoseconds())/n, "cpu-ns/address")
		})
	}
}

// BenchmarkOneAddress is one more task in a pool with 50,000 rows, and one in a pool where 50,000 wait.
func BenchmarkOneAddress(b *testing.B) {
	b.Run("of-50000", func(b *testing.B) {
		l := benchLab(b, 50_000)
		give(b, l)
		l.scale("svc-a", 1)
		benchPlan(b, l, reconcile.ID{Object: "net-a"}, Addresses{})
	})
	b.Run("full", func(b *testing.B) {
		l := newLab(b, &swarmpb.ClusterSpec{})
		l.network(&swarmpb.NetworkSpec{Name: "net-a"})
		l.service("svc-a", []string{"net-a"}, 0)
		l.settle()
		l.scale("svc-a", 50_000)
		give(b, l)
		benchPlan(b, l, reconcile.ID{Object: "net-a"}, Addresses{})
	})
	b.Run("endpoints-of-10000-services", func(b *testing.B) {
		l := newLab(b, &swarmpb.ClusterSpec{})
		l.network(&swarmpb.NetworkSpec{Name: "net-a", Subnets: []*swarmpb.NetworkSubnet{{Subnet: "10.1.0.0/16"}}})
		for i := range 10_000 {
			l.service(fmt.Sprint("svc-", i), []string{"net-a"}, 0, tcp(10_000+uint32(i), 80))
		}
		l.settle()
		l.service("svc-a", []string{"net-a"}, 0, tcp(0, 80))
		benchPlan(b, l, reconcile.ID{Object: endpointsID}, Endpoints{})
	})
}

func benchPlan(b *testing.B, l *lab, id reconcile.ID, r reconcile.Reconciler) {
	view := l.View()
	var plan reconcile.Plan
	start := cpu(b)
	for b.Loop() {
		var err error
		if plan, err = r.Reconcile(view, id, l.Now()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64((cpu(b)-start).Nanoseconds())/float64(b.N), "cpu-ns/plan")
	b.ReportMetric(float64(len(plan.Writes)), "writes")
}
