package scheduler

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

func benchNodes(n int) []Node {
	nodes := make([]Node, n)
	for i := range nodes {
		has := Resources{NanoCPUs: 64e9, MemoryBytes: 512 << 30}
		nodes[i] = Node{
			ID: fmt.Sprintf("node%06d", i), Hostname: fmt.Sprintf("host%d", i), Ready: true,
			Role: swarmpb.NodeRole_NODE_ROLE_WORKER, OS: "linux", Arch: "amd64", Capacity: has, Free: has,
			Labels: map[string]string{"zone": fmt.Sprintf("z%d", i%3), "disk": []string{"ssd", "hdd"}[i%2]},
		}
	}
	return nodes
}

func benchGroup(service string, count int, q *Requirements) *Group {
	g := &Group{Service: service, Requirements: q, Tasks: make([]Task, count)}
	for i := range g.Tasks {
		g.Tasks[i].ID = fmt.Sprintf("%s.%d", service, i)
	}
	return g
}

func benchRequirements(b *testing.B, constraints []string, spread ...string) *Requirements {
	b.Helper()
	p := &swarmpb.Placement{Constraints: constraints}
	for _, s := range spread {
		p.Preferences = append(p.Preferences, &swarmpb.PlacementPreference{Spread: &swarmpb.SpreadOver{Descriptor_: s}})
	}
	q, err := NewRequirements(&swarmpb.Template{Spec: &swarmpb.TaskSpec{
		Placement: p,
		Resources: &swarmpb.ResourceRequirements{Reservations: &swarmpb.Resources{NanoCpus: 1e8, MemoryBytes: 64 << 20}},
	}})
	if err != nil {
		b.Fatal(err)
	}
	return q
}

// cpuTime is what the process has used, garbage collection and all.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// One iteration places all tasks; the metric is tasks a CPU-second.
func benchPlace(b *testing.B, nodes, groups, tasks int, constraints []string, spread ...string) {
	q := benchRequirements(b, constraints, spread...)
	gs := make([]*Group, groups)
	for i := range gs {
		gs[i] = benchGroup(fmt.Sprintf("service%06d", i), tasks, q)
	}
	all := benchNodes(nodes)
	b.ReportAllocs()
	start := cpuTime(b)
	for b.Loop() {
		n := NewNodes(all)
		for _, g := range gs {
			for _, a := range n.Place(g) {
				if a.Node == "" {
					b.Fatal(a.Rejections)
				}
			}
		}
	}
	b.ReportMetric(float64(b.N*groups*tasks)/(cpuTime(b)-start).Seconds(), "tasks/cpu-s")
}

func BenchmarkPlace(b *testing.B) {
	zone := []string{"node.labels.zone!=z2", "node.labels.disk==ssd"}
	b.Run("1k x 100k, one group", func(b *testing.B) { benchPlace(b, 1_000, 1, 100_000, nil) })
	b.Run("1k x 100k, one group, spread over zones", func(b *testing.B) {
		benchPlace(b, 1_000, 1, 100_000, nil, "node.labels.zone", "node.labels.disk")
	})
	b.Run("10k x 1M, one group", func(b *testing.B) { benchPlace(b, 10_000, 1, 1_000_000, nil) })
	b.Run("10k x 100k, 100 groups", func(b *testing.B) { benchPlace(b, 10_000, 100, 1_000, nil) })
	b.Run("1k x 10k, one-off", func(b *testing.B) { benchPlace(b, 1_000, 10_000, 1, nil) })
	b.Run("1k x 10k, one-off, constraints", func(b *testing.B) { benchPlace(b, 1_000, 10_000, 1, zone) })
}
