package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// The universe of the random operations: small, so that they meet.
var (
	someServices = []string{"svc-a", "svc-b"}
	someNodes    = []string{"node-a", "node-b"}
	someNetworks = []string{"net-a", "net-b"}
	someStates   = []swarmpb.TaskState{
		swarmpb.TaskState_TASK_STATE_ACCEPTED, swarmpb.TaskState_TASK_STATE_RUNNING, swarmpb.TaskState_TASK_STATE_COMPLETE,
		swarmpb.TaskState_TASK_STATE_FAILED, swarmpb.TaskState_TASK_STATE_ORPHANED,
	}
)

func drawTask(t *rapid.T) (service string, slot, attempt uint64) {
	return rapid.SampledFrom(someServices).Draw(t, "service"), rapid.Uint64Range(1, 2).Draw(t, "slot"),
		rapid.Uint64Range(1, 4).Draw(t, "attempt")
}

func taskName(service string, slot, attempt uint64) string {
	return fmt.Sprintf("%s.%d.%d", service, slot, attempt)
}

func drawTaskID(t *rapid.T) string {
	return taskName(drawTask(t))
}

func templateOf(service string, version uint64) *swarmpb.Template {
	n := int64(version)
	var networks []*swarmpb.NetworkAttachment
	if version == 2 && slices.Contains(someServices, service) {
		networks = append(networks, &swarmpb.NetworkAttachment{Network: "net-a"})
		if service == "svc-b" {
			networks = append(networks, &swarmpb.NetworkAttachment{Network: "net-b"})
		}
	}
	return &swarmpb.Template{
		ServiceId: service, Version: version,
		Spec: &swarmpb.TaskSpec{Networks: networks, Resources: &swarmpb.ResourceRequirements{
			Reservations: &swarmpb.Resources{NanoCpus: 100 * n, MemoryBytes: 1000 / n},
		}},
		HostPorts: []*swarmpb.PortConfig{
			{TargetPort: 80, PublishedPort: 8080, Mode: swarmpb.PublishMode_PUBLISH_MODE_HOST},
			{TargetPort: 81, PublishedPort: uint32(9000 + n), Mode: swarmpb.PublishMode_PUBLISH_MODE_HOST},
			{TargetPort: 82, Mode: swarmpb.PublishMode_PUBLISH_MODE_HOST},
		},
	}
}

// drawWrites makes what belongs in one proposal.
func drawWrites(t *rapid.T) []*swarmpb.Write {
	switch rapid.IntRange(0, 21).Draw(t, "op") {
	case 21:
		return []*swarmpb.Write{
			{Op: &swarmpb.Write_NoteMoves{NoteMoves: &swarmpb.NoteMoves{
				ServiceId: rapid.SampledFrom(someServices).Draw(t, "moves of"), BalanceSlot: rapid.Uint64Range(0, 2).Draw(t, "slot"),
				MovedAt: rapid.Int64Range(0, 2).Draw(t, "moved"), MovedBefore: rapid.Int64Range(0, 1).Draw(t, "before"), BalancedAt: rapid.Int64Range(0, 2).Draw(t, "balanced"),
			}}},
			put(&swarmpb.Row{Row: &swarmpb.Row_TaskPlacement{TaskPlacement: &swarmpb.TaskPlacement{TaskId: drawTaskID(t), Preempts: []string{drawTaskID(t)}, PreemptsOn: "node-a"}}}),
		}
	case 19:
		return []*swarmpb.Write{put(&swarmpb.Row{Row: &swarmpb.Row_ServiceRevision{ServiceRevision: &swarmpb.ServiceRevision{
			ServiceId: rapid.SampledFrom(someServices).Draw(t, "revision of"), Revision: rapid.Uint64Range(1, 40).Draw(t, "revision"),
			TemplateVersion: rapid.Uint64Range(0, 2).Draw(t, "template"),
		}}})}
	case 20:
		return []*swarmpb.Write{put(&swarmpb.Row{Row: &swarmpb.Row_ServiceMetric{ServiceMetric: &swarmpb.ServiceMetric{
			ServiceId: rapid.SampledFrom(someServices).Draw(t, "metric of"), Value: rapid.SampledFrom([]float64{0, -1.5, math.NaN(), math.Inf(1)}).Draw(t, "value"),
		}}})}
	case 16:
		id := rapid.SampledFrom(someNetworks).Draw(t, "network")
		return []*swarmpb.Write{
			put(&swarmpb.Row{Row: &swarmpb.Row_Network{Network: &swarmpb.Network{
				Id: id, Spec: &swarmpb.NetworkSpec{Name: rapid.SampledFrom([]string{"front", "back"}).Draw(t, "name")},
				Removing: rapid.IntRange(0, 3).Draw(t, "removing") == 0,
			}}}),
			put(&swarmpb.Row{Row: &swarmpb.Row_NetworkProgress{NetworkProgress: &swarmpb.NetworkProgress{
				NetworkId: rapid.SampledFrom(someNetworks).Draw(t, "progress"), Vni: 4096,
			}}}),
		}
	case 17:
		row := &swarmpb.TaskAddresses{TaskId: drawTaskID(t)}
		for _, id := range someNetworks[:rapid.IntRange(0, 2).Draw(t, "networks")] {
			row.Networks = append(row.Networks, &swarmpb.NetworkAddress{NetworkId: id, Address: "10.0.0.2"})
		}
		return []*swarmpb.Write{put(&swarmpb.Row{Row: &swarmpb.Row_TaskAddresses{TaskAddresses: row}})}
	case 18:
		return []*swarmpb.Write{
			{Op: &swarmpb.Write_SetDrained{SetDrained: &swarmpb.SetDrained{
				TaskIds: []string{drawTaskID(t), drawTaskID(t)}, At: rapid.Int64Range(1, 9).Draw(t, "drained"),
			}}},
			put(&swarmpb.Row{Row: &swarmpb.Row_ServiceEndpoint{ServiceEndpoint: &swarmpb.ServiceEndpoint{
				ServiceId: rapid.SampledFrom(someServices).Draw(t, "endpoint"),
			}}}),
		}
	case 0:
		id := rapid.SampledFrom(someNodes).Draw(t, "node")
		return []*swarmpb.Write{
			put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: &swarmpb.Node{Id: id}}}),
			put(&swarmpb.Row{Row: &swarmpb.Row_NodeStatus{NodeStatus: &swarmpb.NodeStatus{NodeId: id}}}),
		}
	case 1:
		return drawService(t)
	case 2, 3, 4:
		service, slot, attempt := drawTask(t)
		row := &swarmpb.Task{
			Id: taskName(service, slot, attempt), ServiceId: service, Slot: slot, Attempt: attempt,
			TemplateVersion: rapid.Uint64Range(1, 2).Draw(t, "template"),
			DesiredState:    rapid.SampledFrom([]swarmpb.TaskState{60, 80, 100}).Draw(t, "desired"),
		}
		if rapid.Bool().Draw(t, "is heir") {
			row.Replaces, row.Beside = drawTaskID(t), rapid.Bool().Draw(t, "beside")
		}
		return []*swarmpb.Write{
			put(&swarmpb.Row{Row: &swarmpb.Row_Task{Task: row}}),
			{Op: &swarmpb.Write_AdvanceAttempt{AdvanceAttempt: &swarmpb.AdvanceAttempt{ServiceId: service, Attempt: attempt}}},
		}
	case 5, 6, 7:
		return []*swarmpb.Write{put(&swarmpb.Row{Row: &swarmpb.Row_TaskPlacement{TaskPlacement: &swarmpb.TaskPlacement{
			TaskId: drawTaskID(t), NodeId: rapid.SampledFrom(append([]string{""}, someNodes...)).Draw(t, "node"),
		}}})}
	case 8, 9, 10:
		return []*swarmpb.Write{{Op: &swarmpb.Write_MergeStatus{MergeStatus: &swarmpb.TaskStatus{
			TaskId: drawTaskID(t), State: rapid.SampledFrom(someStates).Draw(t, "state"), At: rapid.Int64Range(1, 3).Draw(t, "at"),
			Address: rapid.SampledFrom([]string{"", "100.64.0.2"}).Draw(t, "address"), Health: drawHealth(t),
		}}}}
	case 11:
		return []*swarmpb.Write{{Op: &swarmpb.Write_SetTaskState{SetTaskState: &swarmpb.SetTaskState{
			TaskId: drawTaskID(t), DesiredState: rapid.SampledFrom([]swarmpb.TaskState{0, 80, 100}).Draw(t, "desired"),
			Draining: rapid.Bool().Draw(t, "draining"),
		}}}}
	case 12:
		return []*swarmpb.Write{drawDelete(t)}
	case 13:
		return []*swarmpb.Write{put(&swarmpb.Row{Row: &swarmpb.Row_Allocation{Allocation: &swarmpb.Allocation{
			Pool: "uplink", Address: rapid.SampledFrom([]string{"10.0.0.0/24", "10.0.0.1", "10.0.0.2", "10.0.0.3", "7", "0.0.0.8", "08"}).Draw(t, "address"),
			Owner: rapid.SampledFrom([]string{"", "node-a", "node-b"}).Draw(t, "owner"), ReleasedAt: rapid.Int64Range(-1, 1).Draw(t, "released"),
		}}})}
	case 14:
		return []*swarmpb.Write{{Op: &swarmpb.Write_RaiseAlarm{RaiseAlarm: &swarmpb.RaiseAlarm{
			Kind: "test", Object: rapid.SampledFrom(someNodes).Draw(t, "object"),
		}}}}
	default:
		service, slot, _ := drawTask(t)
		return []*swarmpb.Write{
			put(&swarmpb.Row{Row: &swarmpb.Row_SlotProgress{SlotProgress: &swarmpb.SlotProgress{ServiceId: service, Slot: slot}}}),
			put(&swarmpb.Row{Row: &swarmpb.Row_TaskAddresses{TaskAddresses: &swarmpb.TaskAddresses{TaskId: drawTaskID(t)}}}),
			put(&swarmpb.Row{Row: &swarmpb.Row_ServiceProgress{ServiceProgress: &swarmpb.ServiceProgress{
				ServiceId: service,
				Update: &swarmpb.UpdateStatus{
					State:                 swarmpb.UpdateState(rapid.IntRange(0, 6).Draw(t, "update")),
					TemplateVersion:       rapid.Uint64Range(0, 2).Draw(t, "to"),
					FailedTemplateVersion: rapid.Uint64Range(0, 1).Draw(t, "failed"),
					Strategy:              swarmpb.UpdateStrategy(rapid.IntRange(0, 5).Draw(t, "strategy")),
					StableTemplateVersion: rapid.Uint64Range(0, 2).Draw(t, "stable"),
				},
			}}}),
		}
	}
}

func drawHealth(t *rapid.T) *swarmpb.HealthStatus {
	if rapid.Bool().Draw(t, "no health") {
		return nil
	}
	return &swarmpb.HealthStatus{NotReady: rapid.Bool().Draw(t, "not ready"), At: rapid.Int64Range(1, 3).Draw(t, "health at")}
}

func drawService(t *rapid.T) []*swarmpb.Write {
	id := rapid.SampledFrom(someServices).Draw(t, "service")
	service := &swarmpb.Service{
		Id: id, Spec: &swarmpb.ServiceSpec{Name: rapid.SampledFrom([]string{"web", "api", "db"}).Draw(t, "name")},
		TemplateVersion:         rapid.Uint64Range(1, 2).Draw(t, "template"),
		PreviousTemplateVersion: rapid.Uint64Range(0, 2).Draw(t, "previous"),
	}
	writes := []*swarmpb.Write{
		put(&swarmpb.Row{Row: &swarmpb.Row_Service{Service: service}}),
		put(&swarmpb.Row{Row: &swarmpb.Row_Template{Template: templateOf(id, service.TemplateVersion)}}),
	}
	if service.PreviousTemplateVersion != 0 && rapid.Bool().Draw(t, "with previous") {
		writes = append(writes, put(&swarmpb.Row{Row: &swarmpb.Row_Template{Template: templateOf(id, service.PreviousTemplateVersion)}}))
	}
	return writes
}

func drawDelete(t *rapid.T) *swarmpb.Write {
	var key *swarmpb.RowKey
	switch rapid.IntRange(0, 9).Draw(t, "what") {
	case 9:
		key = swarmpb.ServiceRevisionKey(rapid.SampledFrom(someServices).Draw(t, "service"), rapid.Uint64Range(1, 40).Draw(t, "revision"))
	case 8:
		key = swarmpb.ServiceMetricKey(rapid.SampledFrom(someServices).Draw(t, "service"))
	case 7:
		key = swarmpb.AllocationKey("uplink", rapid.SampledFrom([]string{"10.0.0.0/24", "10.0.0.1", "10.0.0.2", "10.0.0.3", "8", "0.0.0.8"}).Draw(t, "address"))
	case 6:
		key = swarmpb.NetworkKey(rapid.SampledFrom(someNetworks).Draw(t, "network"))
	case 0:
		key = swarmpb.NodeKey(rapid.SampledFrom(someNodes).Draw(t, "node"))
	case 1:
		key = swarmpb.ServiceKey(rapid.SampledFrom(someServices).Draw(t, "service"))
	case 2:
		key = swarmpb.AlarmKey("test", rapid.SampledFrom(someNodes).Draw(t, "object"))
	case 3:
		key = swarmpb.TaskStatusKey(drawTaskID(t))
	default:
		key = swarmpb.TaskKey(drawTaskID(t))
	}
	return &swarmpb.Write{Op: &swarmpb.Write_Delete{Delete: key}}
}

func drawEntry(t *rapid.T) *swarmpb.Entry {
	entry := &swarmpb.Entry{}
	for range rapid.IntRange(1, 3).Draw(t, "proposals") {
		proposal := &swarmpb.Proposal{
			Term: rapid.SampledFrom([]uint64{0, 0, 0, 1, 2}).Draw(t, "term"),
			Now:  rapid.Int64Range(1, 100).Draw(t, "now"),
		}
		if rapid.IntRange(0, 4).Draw(t, "has request") == 0 {
			proposal.RequestId = rapid.SampledFrom([]string{"r1", "r2", "r3", "r4"}).Draw(t, "request")
		}
		for range rapid.IntRange(0, 2).Draw(t, "groups") {
			proposal.Writes = append(proposal.Writes, drawWrites(t)...)
		}
		entry.Proposals = append(entry.Proposals, proposal)
	}
	return entry
}

// ground is the entry that most runs begin with, so that tasks can be made at once.
func ground() *swarmpb.Entry {
	var writes []*swarmpb.Write
	for _, id := range someNodes {
		writes = append(writes, put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: &swarmpb.Node{Id: id}}}))
	}
	for _, id := range someNetworks {
		writes = append(writes, put(&swarmpb.Row{Row: &swarmpb.Row_Network{Network: &swarmpb.Network{
			Id: id, Spec: &swarmpb.NetworkSpec{Name: id},
		}}}))
	}
	for _, id := range someServices {
		writes = append(writes,
			put(&swarmpb.Row{Row: &swarmpb.Row_Service{Service: &swarmpb.Service{
				Id: id, Spec: &swarmpb.ServiceSpec{Name: id}, TemplateVersion: 1, PreviousTemplateVersion: 2,
			}}}),
			put(&swarmpb.Row{Row: &swarmpb.Row_Template{Template: templateOf(id, 1)}}),
			put(&swarmpb.Row{Row: &swarmpb.Row_Template{Template: templateOf(id, 2)}}))
	}
	return &swarmpb.Entry{Proposals: []*swarmpb.Proposal{{Writes: writes}}}
}

func drawEntries(t *rapid.T, low, high int) []*swarmpb.Entry {
	var entries []*swarmpb.Entry
	if rapid.IntRange(0, 9).Draw(t, "from nothing") != 0 {
		entries = append(entries, ground())
	}
	for range rapid.IntRange(low, high).Draw(t, "entries") {
		entries = append(entries, drawEntry(t))
	}
	return entries
}

// sameClaims compares both ways to ask for a service's claims.
func sameClaims(t *rapid.T, view *View) {
	for _, service := range someServices {
		want := map[string]int{}
		for _, node := range someNodes {
			if n := view.TasksOnByService(node, service); n > 0 {
				want[node] = n
			}
		}
		for rows := range view.RowsOf(service) {
			if want := view.TaskRows(rows.Task.Id); rows != want {
				t.Fatalf("rows of task %s are %v, want %v", rows.Task.Id, rows, want)
			}
		}
		if got := view.ClaimsOf(service); !maps.Equal(got, want) {
			t.Fatalf("claims of %s are %v, want %v", service, got, want)
		}
	}
}

func snapshotOf(t interface{ Fatal(...any) }, view *View) []byte {
	var out bytes.Buffer
	if err := view.WriteSnapshot(&out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// rowsOf is a View's rows by key, as a naive store would hold them.
func rowsOf(view *View) map[string]proto.Message {
	rows := make(map[string]proto.Message)
	for row := range view.allRows {
		if row.GetRequest() == nil {
			rows[row.Key().ID()] = proto.Clone(content(row))
		}
	}
	return rows
}

func sameRows(t *rapid.T, what string, got, want map[string]proto.Message) {
	for key, row := range want {
		if !proto.Equal(got[key], row) {
			t.Fatalf("%s: row %s is %v, want %v", what, key, got[key], row)
		}
	}
	for key, row := range got {
		if want[key] == nil {
			t.Fatalf("%s: row %s should not be there: %v", what, key, row)
		}
	}
}

func TestApply_RandomEntries_DerivedRowsReplicasFeedAndSnapshotsAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := New(), New()
		watch, err := a.Watch(0, 0)
		if err != nil {
			t.Fatal(err)
		}
		model := make(map[string]proto.Message)
		for i, entry := range drawEntries(t, 1, 40) {
			index := uint64(i)
			before, old := a.View(), rowsOf(a.View())
			resultsA := a.Apply(index+1, 1, proto.CloneOf(entry))
			resultsB := b.Apply(index+1, 1, proto.CloneOf(entry))
			for i := range resultsA {
				if !proto.Equal(resultsA[i], resultsB[i]) {
					t.Fatalf("replicas answer %v and %v", resultsA[i], resultsB[i])
				}
			}
			sameRows(t, "an old view changed", rowsOf(before), old)
			if err := a.View().Verify(); err != nil {
				t.Fatal(err)
			}
			sameClaims(t, a.View())
			if err := before.Verify(); err != nil {
				t.Fatalf("an old view changed: %v", err)
			}
			if len(a.feed.segments) > 0 && a.feed.segments[len(a.feed.segments)-1].index == index+1 {
				batch, err := watch.Next(context.Background())
				if err != nil {
					t.Fatal(err)
				}
				replay(t, model, batch)
			}
			sameRows(t, "the changes do not lead to the rows", model, rowsOf(a.View()))
		}
		snapshot := snapshotOf(t, a.View())
		if !bytes.Equal(snapshot, snapshotOf(t, b.View())) {
			t.Fatal("replicas differ")
		}
		restored, err := ReadSnapshot(bytes.NewReader(snapshot))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(snapshot, snapshotOf(t, restored.View())) {
			t.Fatal("the restored store differs")
		}
		// What is remembered and derived must be equal too, so that the next entry has the same end.
		entry, index := drawEntry(t), a.View().Index()+1
		a.Apply(index, 1, proto.CloneOf(entry))
		restored.Apply(index, 1, entry)
		if !bytes.Equal(snapshotOf(t, a.View()), snapshotOf(t, restored.View())) {
			t.Fatal("the restored store goes on in another way")
		}
	})
}

// replay applies a batch to the naive model and checks that each change fits what was there.
func replay(t *rapid.T, model map[string]proto.Message, batch Batch) {
	for _, change := range batch.Changes {
		key := change.RowKey().ID()
		old := model[key]
		if (change.Old == nil) != (old == nil) || (old != nil && !proto.Equal(old, change.Old)) {
			t.Fatalf("change of %s: old is %v, the model has %v", key, change.Old, old)
		}
		if change.New == nil {
			delete(model, key)
			continue
		}
		model[key] = proto.Clone(change.New)
	}
}

func TestApply_RefusedProposal_LeavesNoTrace(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := New()
		entries := drawEntries(t, 20, 20)
		for i, entry := range entries {
			s.Apply(uint64(i+1), 1, entry)
		}
		before := rowsOf(s.View())
		proposal := &swarmpb.Proposal{RequestId: "refused"}
		for range 5 {
			proposal.Writes = append(proposal.Writes, drawWrites(t)...)
		}
		proposal.Writes = append(proposal.Writes, &swarmpb.Write{Op: &swarmpb.Write_Delete{Delete: swarmpb.TemplateRowKey("", 0)}},
			&swarmpb.Write{Op: &swarmpb.Write_RaiseAlarm{}})
		result := s.Apply(uint64(len(entries)+1), 1, &swarmpb.Entry{Proposals: []*swarmpb.Proposal{proposal}})[0]
		if result.Outcome == swarmpb.Outcome_OUTCOME_APPLIED {
			t.Fatal("applied an alarm without a kind")
		}
		after := rowsOf(s.View())
		for key, row := range after {
			if alarm, ok := row.(*swarmpb.Alarm); ok && alarm.Kind == AlarmIDConflict {
				delete(after, key)
				delete(before, key)
			}
		}
		sameRows(t, "refused", after, before)
		if err := s.View().Verify(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestApply_AnyBytes_NeverPanics(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := New()
		for index, entry := range drawEntries(t, 1, 10) {
			data, err := proto.Marshal(entry)
			if err != nil {
				t.Fatal(err)
			}
			for range rapid.IntRange(0, 5).Draw(t, "flips") {
				if len(data) > 0 {
					data[rapid.IntRange(0, len(data)-1).Draw(t, "at")] = rapid.Byte().Draw(t, "byte")
				}
			}
			mangled := new(swarmpb.Entry)
			if proto.Unmarshal(data, mangled) == nil {
				s.Apply(uint64(index+1), 1, mangled)
			}
		}
		if err := s.View().Verify(); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzApply(f *testing.F) {
	f.Add([]byte{})
	data, _ := proto.Marshal(&swarmpb.Entry{Proposals: []*swarmpb.Proposal{{Writes: []*swarmpb.Write{
		put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: &swarmpb.Node{Id: "n"}}}), {}, put(&swarmpb.Row{}),
	}}}})
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		entry := new(swarmpb.Entry)
		if proto.Unmarshal(data, entry) != nil {
			return
		}
		s := New()
		s.Apply(1, 1, entry)
		if err := s.View().Verify(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestReadSnapshot_ChangedOrTruncated_IsAnError(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := New()
		for i, entry := range drawEntries(t, 0, 15) {
			s.Apply(uint64(i+1), 1, entry)
		}
		data := snapshotOf(t, s.View())
		switch rapid.IntRange(0, 2).Draw(t, "damage") {
		case 0:
			data = data[:rapid.IntRange(0, len(data)-1).Draw(t, "length")]
		case 1:
			at := rapid.IntRange(0, len(data)-1).Draw(t, "at")
			data[at] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		default:
			data = append(data, rapid.Byte().Draw(t, "more"))
		}
		if _, err := ReadSnapshot(bytes.NewReader(data)); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("error is %v, want ErrCorrupt", err)
		}
	})
}

func TestView_Indexes_ListWhatAWalkFinds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := New()
		for i, entry := range drawEntries(t, 40, 40) {
			s.Apply(uint64(i+1), 1, entry)
		}
		v := s.View()
		walk := func(keep func(*swarmpb.Task) bool) string {
			var ids []string
			for task := range v.Tasks() {
				if keep(task) {
					ids = append(ids, task.Id)
				}
			}
			return strings.Join(ids, " ")
		}
		// Random IDs sort by service, slot and attempt here, as the lists do.
		list := func(seq func(func(*swarmpb.Task) bool)) string {
			var ids []string
			for task := range seq {
				ids = append(ids, task.Id)
			}
			return strings.Join(ids, " ")
		}
		check := func(what, got, want string) {
			if got != want {
				t.Fatalf("%s: got %q, want %q", what, got, want)
			}
		}
		for _, id := range someServices {
			check("tasks of "+id, list(v.TasksOf(id)), walk(func(x *swarmpb.Task) bool { return x.ServiceId == id }))
			check("slot 2", list(v.TasksIn(id, 2)), walk(func(x *swarmpb.Task) bool { return x.ServiceId == id && x.Slot == 2 }))
			check("from slot 2", list(v.TasksFrom(id, 2)), walk(func(x *swarmpb.Task) bool { return x.ServiceId == id && x.Slot >= 2 }))
		}
		for _, id := range someNodes {
			check("tasks on "+id, list(v.TasksOn(id)), walk(func(x *swarmpb.Task) bool { return v.NodeID(x.Id) == id }))
		}
		check("unplaced", list(v.Unplaced()), walk(func(x *swarmpb.Task) bool {
			return v.NodeID(x.Id) == "" && x.DesiredState <= 80 && !v.Observed(x.Id).Ended() && v.Observed(x.Id) != 10
		}))
		checkNetworkIndexes(t, v)
		checkFree(t, v)
		for _, owner := range someNodes {
			var got, want []string
			for a := range v.AllocationsOf(owner) {
				got = append(got, a.Address)
			}
			for a := range v.Allocations("uplink") {
				if a.Owner == owner {
					want = append(want, a.Address)
				}
			}
			if !slices.Equal(got, want) {
				t.Fatalf("allocations of %s: got %v, want %v", owner, got, want)
			}
		}
	})
}

// checkNetworkIndexes compares what is derived for networks with what a walk finds.
func checkNetworkIndexes(t *rapid.T, v *View) {
	for _, id := range someNetworks {
		in := func(service string, version uint64) bool {
			return slices.ContainsFunc(templateOf(service, version).Spec.Networks, func(a *swarmpb.NetworkAttachment) bool { return a.Network == id })
		}
		tasks := 0
		for task := range v.Tasks() {
			if in(task.ServiceId, task.TemplateVersion) && !v.Observed(task.Id).Ended() {
				tasks++
			}
		}
		if got := v.TasksOnNetwork(id); got != tasks {
			t.Fatalf("tasks on %s: got %d, want %d", id, got, tasks)
		}
		var got, want []string
		for service := range v.ServicesOn(id) {
			got = append(got, service.Id)
		}
		for service := range v.Services() {
			needed := rolloutTemplates(v.ServiceProgress(service.Id))
			target := needed[0]
			back := target != 0 && service.PreviousTemplateVersion != 0 && in(service.Id, service.PreviousTemplateVersion)
			if in(service.Id, service.TemplateVersion) || target != 0 && in(service.Id, target) || needed[1] != 0 && in(service.Id, needed[1]) || back {
				want = append(want, service.Id)
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("services on %s: got %v, want %v", id, got, want)
		}
	}
}

// checkFree compares what is found free with what a walk finds.
func checkFree(t *rapid.T, v *View) {
	base, _ := AddressNumber("10.0.0.0")
	first := base + rapid.Uint64Range(0, 4).Draw(t, "first")
	last := base + rapid.Uint64Range(0, 4).Draw(t, "last")
	var free []uint64
	for n := first; n <= last; n++ {
		if v.Allocation("uplink", NumberedAddress(n)) == nil {
			free = append(free, n)
		}
	}
	low, any1 := v.FirstFree("uplink", first, last)
	high, any2 := v.LastFree("uplink", first, last)
	if any1 != (len(free) > 0) || any2 != any1 || (any1 && (low != free[0] || high != free[len(free)-1])) {
		t.Fatalf("free from %d to %d: %d %t and %d %t, want %v", first-base, last-base, low-base, any1, high-base, any2, free)
	}
	var resting []*swarmpb.Allocation
	for a := range v.Resting("uplink") {
		if a.Owner != "" || (len(resting) > 0 && resting[len(resting)-1].ReleasedAt > a.ReleasedAt) {
			t.Fatalf("resting: %v after %v", a, resting)
		}
		resting = append(resting, a)
	}
	for a := range v.Allocations("uplink") {
		if a.Owner == "" {
			resting = resting[:max(0, len(resting)-1)]
		}
	}
	if len(resting) != 0 {
		t.Fatalf("%d more rest than rows have no owner", len(resting))
	}
}

func TestAddressNumber_Addresses_HaveOneEach(t *testing.T) {
	for address, want := range map[string]uint64{"0": 0, "30001": 30001, "4294967295": 1<<32 - 1, "0.0.0.0": 1 << 32, "255.255.255.255": 1<<33 - 1} {
		if n, ok := AddressNumber(address); !ok || n != want || NumberedAddress(n) != address {
			t.Errorf("%s: %d %t, back %s", address, n, ok, NumberedAddress(n))
		}
	}
	for _, address := range []string{"", "08", "+8", "4294967296", "10.0.0.0/24", "::1", "::ffff:1.2.3.4", "010.0.0.1"} {
		if n, ok := AddressNumber(address); ok {
			t.Errorf("%q: %d", address, n)
		}
	}
}
