package store

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

const (
	benchTasks    = 1_000_000
	benchServices = 1_000
	benchNodes    = 1_000
	benchBatch    = MaxWrites
	benchMeasured = 100_000
	// benchIDBytes is the size class of a task's ID.
	benchIDBytes = 32
	// gcPercent is the default, which swarmd keeps. The collector's share falls as it rises.
	gcPercent   = 100
	benchDigest = "sha256:6a59f1cbb8d28ac484176d52c473494859a512ddba3ea62a547258cf16c9b3ae"
)

// benchStore is a store filled as a cluster would be. Rows and entries go through the wire format, as they do in
// snapshots and the log.
type benchStore struct {
	b     testing.TB
	store *Store
	tasks []string
	index uint64
	// fresh is the number of the next task to be made.
	fresh int
}

func (s *benchStore) encode(writes []*swarmpb.Write) []byte {
	data, err := proto.Marshal(&swarmpb.Entry{Proposals: []*swarmpb.Proposal{{Writes: writes, Now: 1}}})
	if err != nil {
		s.b.Fatal(err)
	}
	return data
}

func (s *benchStore) decode(data []byte) *swarmpb.Entry {
	entry := new(swarmpb.Entry)
	if err := proto.Unmarshal(data, entry); err != nil {
		s.b.Fatal(err)
	}
	return entry
}

func (s *benchStore) apply(entry *swarmpb.Entry) {
	s.index++
	for _, result := range s.store.Apply(s.index, 1, entry) {
		if result.Outcome != swarmpb.Outcome_OUTCOME_APPLIED {
			s.b.Fatal(result)
		}
	}
}

func put(row *swarmpb.Row) *swarmpb.Write {
	return &swarmpb.Write{Op: &swarmpb.Write_Put{Put: row}}
}

func benchService(i int) string { return swarmpb.DerivedID("service", fmt.Sprint(i)) }
func benchNode(i int) string    { return swarmpb.DerivedID("node", fmt.Sprint(i)) }

func benchTask(i int) *swarmpb.Write {
	service, slot := benchService(i%benchServices), uint64(i/benchServices+1)
	return put(&swarmpb.Row{Row: &swarmpb.Row_Task{Task: &swarmpb.Task{
		Id: swarmpb.TaskID(service, slot, "", 1), ServiceId: service, Slot: slot, TemplateVersion: 1, Attempt: 1,
		DesiredState: swarmpb.TaskState_TASK_STATE_RUNNING,
	}}})
}

func benchPlacement(task string, i int) *swarmpb.Write {
	return put(&swarmpb.Row{Row: &swarmpb.Row_TaskPlacement{TaskPlacement: &swarmpb.TaskPlacement{
		TaskId: task, NodeId: benchNode(i % benchNodes), At: int64(i),
	}}})
}

func benchStatus(task string, i int, state swarmpb.TaskState) *swarmpb.Write {
	return &swarmpb.Write{Op: &swarmpb.Write_MergeStatus{MergeStatus: &swarmpb.TaskStatus{
		TaskId: task, State: state, At: int64(i), Message: state.Name(),
		Container: &swarmpb.ContainerStatus{
			ContainerId: "web.1." + task, Pid: uint32(i + 1), StartedAt: int64(i), ImageDigest: benchDigest,
		},
		Address: fmt.Sprintf("100.%d.%d.%d", 64+i>>16&63, i>>8&255, i&255),
	}}}
}

// newBenchStore has a million tasks, each with a placement and a RUNNING status. It is loaded as from a snapshot:
// that leaves what as many writes would, in a fraction of the time.
func newBenchStore(b testing.TB) *benchStore {
	s := &benchStore{b: b, fresh: benchTasks}
	t := &tx{View: newView(), strings: new(interner)}
	load := func(row *swarmpb.Row) {
		data, err := proto.Marshal(row)
		decoded := new(swarmpb.Row)
		if err = errors.Join(err, proto.Unmarshal(data, decoded)); err != nil {
			b.Fatal(err)
		}
		if err := t.load(decoded); err != nil {
			b.Fatal(err)
		}
	}
	for i := range benchNodes {
		load(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: &swarmpb.Node{Id: benchNode(i)}}})
	}
	for i := range benchServices {
		task := &swarmpb.TaskSpec{
			Container: &swarmpb.ContainerSpec{Image: "web:1", ImageDigest: benchDigest},
			Resources: &swarmpb.ResourceRequirements{Reservations: &swarmpb.Resources{NanoCpus: 1e8, MemoryBytes: 1 << 26}},
		}
		load(&swarmpb.Row{Row: &swarmpb.Row_Template{Template: &swarmpb.Template{ServiceId: benchService(i), Version: 1, Spec: task}}})
		load(&swarmpb.Row{Row: &swarmpb.Row_Service{Service: &swarmpb.Service{
			Id: benchService(i), TemplateVersion: 1, Spec: &swarmpb.ServiceSpec{Name: fmt.Sprintf("web-%d", i), Task: task},
		}}})
	}
	for i := range benchTasks {
		task := benchTask(i).GetPut()
		task.GetTask().Meta = &swarmpb.Meta{Version: 1, CreatedAt: 1, UpdatedAt: 1}
		s.tasks = append(s.tasks, task.GetTask().Id)
		load(task)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for _, i := range random.Perm(benchTasks) {
		load(benchPlacement(s.tasks[i], i).GetPut())
	}
	for _, i := range random.Perm(benchTasks) {
		status := benchStatus(s.tasks[i], i, swarmpb.TaskState_TASK_STATE_RUNNING).GetMergeStatus()
		load(&swarmpb.Row{Row: &swarmpb.Row_TaskStatus{TaskStatus: status}})
	}
	s.store = newStore(t.View)
	return s
}

func liveHeap() uint64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}

// cpuTime is what the process has used on all cores, the collector's share with it.
func cpuTime(b testing.TB) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// BenchmarkStore1M measures on 1,000,000 running tasks, with as many writes a proposal as it may hold; run it with -benchtime 1x:
//
//	B/task     the live heap of a task with its placement, its status and all indexes
//	us/write   what a write costs on all cores: decode, apply, publish, and the collector's share
//	us-decode  of that, what it takes to decode the entry
//	us-gc      of that, the collector's share: what one collection costs, for as much of the room between two
//	           as a write takes up at gcPercent
//	B/write    what a write allocates
func BenchmarkStore1M(b *testing.B) {
	defer debug.SetGCPercent(debug.SetGCPercent(800)) // for a quick load
	before := liveHeap()
	s := newBenchStore(b)
	live := liveHeap() - before
	// The names in the benchmark's own list share the store's IDs no more than a reader's would.
	live -= uint64(cap(s.tasks))*16 + benchTasks*benchIDBytes
	b.Run("heap", func(b *testing.B) {
		for b.Loop() {
		}
		b.ReportMetric(float64(live)/benchTasks, "B/task")
		b.ReportMetric(0, "ns/op")
	})
	for _, kind := range s.kinds() {
		b.Run(kind.name, func(b *testing.B) { s.measure(b, kind.prepare) })
	}
}

// benchKind is a kind of write to measure.
type benchKind struct {
	name string
	// prepare makes one proposal's writes.
	prepare func() []*swarmpb.Write
}

func (s *benchStore) kinds() []benchKind {
	random := rand.New(rand.NewPCG(5, 6))
	at := benchTasks
	each := func(write func() *swarmpb.Write) func() []*swarmpb.Write {
		return func() []*swarmpb.Write {
			writes := make([]*swarmpb.Write, benchBatch)
			for i := range writes {
				writes[i] = write()
			}
			return writes
		}
	}
	anyTask := func() string { return s.tasks[random.IntN(benchTasks)] }
	newTask := func() *swarmpb.Write { s.fresh++; return benchTask(s.fresh - 1) }
	status := each(func() *swarmpb.Write {
		at++
		return benchStatus(anyTask(), at, swarmpb.TaskState_TASK_STATE_RUNNING)
	})
	// The tasks to be placed are made while the entries are prepared, which is not measured.
	assignment := func() []*swarmpb.Write {
		tasks := each(newTask)()
		s.apply(s.decode(s.encode(tasks)))
		writes := make([]*swarmpb.Write, len(tasks))
		for i, task := range tasks {
			writes[i] = benchPlacement(task.GetPut().GetTask().Id, random.IntN(benchNodes))
		}
		return writes
	}
	state := each(func() *swarmpb.Write {
		return &swarmpb.Write{Op: &swarmpb.Write_SetTaskState{SetTaskState: &swarmpb.SetTaskState{
			TaskId: anyTask(), Draining: random.IntN(2) == 0,
		}}}
	})
	return []benchKind{{"status", status}, {"assignment", assignment}, {"task", each(newTask)}, {"state", state}}
}

// measure holds the collector while it writes, so that its share is not a matter of when a collection happens to
// begin, and lets it run once for what it costs.
func (s *benchStore) measure(b *testing.B, prepare func() []*swarmpb.Write) {
	const ahead = benchMeasured / benchBatch
	var decode, apply, collector time.Duration
	var allocated, room float64
	writes := 0
	for b.Loop() {
		data, entries := make([][]byte, ahead), make([]*swarmpb.Entry, ahead)
		for i := range data {
			data[i] = s.encode(prepare())
		}
		live := liveHeap()
		percent := debug.SetGCPercent(-1)
		bytes, start := totalAlloc(), cpuTime(b)
		for i := range data {
			entries[i] = s.decode(data[i])
		}
		decoded := cpuTime(b)
		for i, entry := range entries {
			s.apply(entry)
			entries[i] = nil
		}
		decode, apply = decode+decoded-start, apply+cpuTime(b)-decoded
		allocated += float64(totalAlloc() - bytes)
		writes += benchMeasured
		start = cpuTime(b)
		runtime.GC()
		collector += cpuTime(b) - start
		room += float64(live) * gcPercent / 100
		debug.SetGCPercent(percent)
	}
	each := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 / float64(writes) }
	share := each(collector) * allocated / room
	b.ReportMetric(each(decode)+each(apply)+share, "us/write")
	b.ReportMetric(each(decode), "us-decode")
	b.ReportMetric(share, "us-gc")
	b.ReportMetric(allocated/float64(writes), "B/write")
	b.ReportMetric(0, "ns/op")
}

func totalAlloc() uint64 {
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.TotalAlloc
}
