package dispatcher

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

func TestAssignment_FullSet_HoldsOwnLiveTasksOnly(t *testing.T) {
	w := testWorld(t, "n1", "n2")
	mine, other, ended, stopping := w.task(1, "n1"), w.task(2, "n2"), w.task(3, "n1"), w.task(4, "n1")
	unplaced := w.task(5, "")
	w.status(ended, stFailed)
	w.status(stopping, stRunning)
	w.desire(stopping, stShutdown, true)
	w.allocate("uplink", "100.64.3.0/24", "n1")
	w.allocate("other", "10.0.0.1", "n1")

	h, a := newHolder(t), newTeller(w, maxEvents, "n1")
	a.deliver(h, "n1")
	h.expect(w.view(), "n1")
	if len(h.tasks) != 2 || h.tasks[mine] == nil || h.tasks[stopping] == nil {
		t.Fatalf("holds %v, want %s and %s without %s, %s, %s", h.tasks, mine, stopping, other, ended, unplaced)
	}
	if got := h.tasks[stopping]; got.GetObservedState() != stRunning || got.GetDesiredState() != stShutdown || !got.GetDraining() {
		t.Errorf("stopping task is told as %v", got)
	}
	if got := h.tasks[mine].GetObservedState(); got != stAssigned {
		t.Errorf("observed state %s, want assigned", got.Name())
	}
	if h.config.GetUplinkBlock() != "100.64.3.0/24" || h.config.GetFabricPool() != "100.64.0.0/10" {
		t.Errorf("node config %v", h.config)
	}
}

func TestAssignment_RegistryAuth_GoesToNodesWithTasksAndAgainWhenItChanges(t *testing.T) {
	w := testWorld(t, "n1", "n2")
	login := func(password string) *swarmpb.RegistryAuth {
		auth := &swarmpb.RegistryAuth{Server: "docker.io", Username: "ann", Password: password}
		w.put(&swarmpb.Row{Row: &swarmpb.Row_Service{Service: &swarmpb.Service{
			Id: serviceWeb, Spec: &swarmpb.ServiceSpec{Name: "web"}, TemplateVersion: 1, RegistryAuth: auth}}})
		return auth
	}
	old := login("old")
	w.task(1, "n1")
	w.task(2, "n1")
	all := newTeller(w, maxEvents, "n1", "n2")
	told := func(node string) []*swarmpb.RegistryAuth {
		var out []*swarmpb.RegistryAuth
		for _, c := range all.next(node) {
			if template := c.GetTemplate(); template != nil {
				out = append(out, template.GetRegistryAuth())
			}
			if strings.Contains(c.String(), "ann") && c.GetTemplate() == nil {
				t.Errorf("credentials outside of a template: %v", c)
			}
		}
		return out
	}
	if got := told("n1"); len(got) != 1 || !proto.Equal(got[0], old) {
		t.Errorf("the node was told %v", got)
	}
	if got := told("n2"); len(got) != 0 {
		t.Errorf("a node without a task was told %v", got)
	}
	login("old") // the same again
	if got := told("n1"); len(got) != 0 {
		t.Errorf("nothing has changed, but the node was told %v", got)
	}
	renewed := login("new")
	if got := told("n1"); len(got) != 1 || !proto.Equal(got[0], renewed) {
		t.Errorf("new credentials: the node was told %v", got)
	}
}

func TestAssignment_RegistryAuth_GoesAlongWithImagesOfItsRegistryAlone(t *testing.T) {
	w := testWorld(t, "n1")
	hub := &swarmpb.RegistryAuth{Server: "docker.io", Username: "ann", Password: "a"}
	other := &swarmpb.RegistryAuth{Server: "other.local", Username: "ann", Password: "b"}
	w.task(1, "n1")
	all := newTeller(w, maxEvents, "n1")
	a := all.told["n1"]
	for i, c := range []struct{ auth, previous, want *swarmpb.RegistryAuth }{
		{other, nil, nil}, {other, hub, hub}, {hub, other, hub},
	} {
		w.put(&swarmpb.Row{Row: &swarmpb.Row_Service{Service: &swarmpb.Service{
			Id: serviceWeb, Spec: &swarmpb.ServiceSpec{Name: "web"}, TemplateVersion: 1, RegistryAuth: c.auth, PreviousRegistryAuth: c.previous}}})
		all.next("n1")
		for key, auth := range a.templates {
			if !proto.Equal(auth, c.want) {
				t.Errorf("%d: template %v went with %v, want %v", i, key, auth, c.want)
			}
		}
		if len(a.templates) != 1 {
			t.Fatalf("%d templates", len(a.templates))
		}
	}
}

func TestAssignment_NoTasks_StillOneFullSet(t *testing.T) {
	w := testWorld(t, "n1")
	h, a := newHolder(t), newTeller(w, maxEvents, "n1")
	if n := a.deliver(h, "n1"); n != 1 || h.config == nil {
		t.Fatalf("%d messages, config %v", n, h.config)
	}
	if n := a.deliver(h, "n1"); n != 0 {
		t.Errorf("%d messages though nothing changed", n)
	}
}

func TestAssignment_OwnStatus_IsNotEchoed(t *testing.T) {
	w := testWorld(t, "n1")
	id := w.task(1, "n1")
	h, a := newHolder(t), newTeller(w, maxEvents, "n1")
	a.deliver(h, "n1")
	w.status(id, stReady)
	w.status(id, stRunning)
	if n := a.deliver(h, "n1"); n != 0 {
		t.Errorf("%d messages after a status", n)
	}
}

func TestAssignment_TaskEndsThenGoes_RemovedOnce(t *testing.T) {
	w := testWorld(t, "n1")
	id := w.task(1, "n1")
	h, a := newHolder(t), newTeller(w, maxEvents, "n1")
	a.deliver(h, "n1")
	w.status(id, stFailed)
	w.desire(id, stShutdown, false)
	a.deliver(h, "n1")
	if len(h.templates) != 0 {
		t.Errorf("templates %v are held for an ended task", h.templates)
	}
	if h.tasks[id] == nil {
		t.Error("the ended task is removed though its row is there")
	}
	w.delete(swarmpb.TaskKey(id))
	a.deliver(h, "n1")
	if len(h.tasks) != 0 {
		t.Errorf("holds %v after the row is gone", h.tasks)
	}
}

func TestChunks_LargeSet_BoundedAndInOrder(t *testing.T) {
	for _, tc := range []struct {
		name           string
		changes, bytes int
		chunks         int
	}{
		{"many small", 3*maxChunkChanges + 1, 10, 4},
		{"few large", 10, 300 << 10, 4},
		{"one beyond the limit", 1, 2 << 20, 1},
		{"none", 0, 0, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var changes []message
			for i := range tc.changes {
				changes = append(changes, encode(&swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_RemoveTask{
					RemoveTask: fmt.Sprint(i) + strings.Repeat("x", tc.bytes)}}))
			}
			got := slices.Collect(chunks(0, 7, [][]message{changes[:0], changes}))
			if len(got) != tc.chunks {
				t.Fatalf("%d chunks, want %d", len(got), tc.chunks)
			}
			var all []*swarmpb.AssignmentChange
			for i, chunk := range got {
				if chunk.GetLastChunk() != (i == len(got)-1) || chunk.GetVersion() != 7 {
					t.Errorf("chunk %d: last %t, version %d", i, chunk.GetLastChunk(), chunk.GetVersion())
				}
				data, err := proto.Marshal(chunk)
				if err == nil {
					err = proto.Unmarshal(data, chunk)
				}
				if err != nil {
					t.Fatalf("chunk %d: %v", i, err)
				}
				if len(data) > maxChunkBytes+4096 && len(chunk.GetChanges()) > 1 {
					t.Errorf("chunk %d has %d bytes", i, len(data))
				}
				all = append(all, chunk.GetChanges()...)
			}
			if !slices.EqualFunc(all, decode(t, changes), func(a, b *swarmpb.AssignmentChange) bool { return proto.Equal(a, b) }) {
				t.Error("the chunks do not make the set")
			}
		})
	}
	if got := slices.Collect(chunks(3, 7, nil)); len(got) != 0 {
		t.Errorf("an increment without changes has %d messages", len(got))
	}
}

// TestAssignment_RandomHistory_ReceiverConverges: however many changes lie between two deliveries, the receiver holds
// what the view says, and a receiver that begins anew holds the same live tasks.
func TestAssignment_RandomHistory_ReceiverConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, "n1", "n2")
		h, a := newHolder(t), newTeller(w, maxEvents, "n1")
		var ids []string
		attempt, template := uint64(0), uint64(1)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			pick := func() string { return rapid.SampledFrom(ids).Draw(t, "task") }
			live := len(ids) > 0
			switch what := rapid.IntRange(0, 7).Draw(t, "what"); {
			case what <= 1 || !live:
				attempt++
				node := rapid.SampledFrom([]string{"", "n1", "n1", "n2"}).Draw(t, "node")
				ids = append(ids, w.taskOf(attempt%3+1, attempt, node, template))
			case what == 2:
				w.desire(pick(), rapid.SampledFrom([]swarmpb.TaskState{stRunning, stShutdown}).Draw(t, "desired"), rapid.Bool().Draw(t, "draining"))
			case what == 3:
				w.status(pick(), rapid.SampledFrom([]swarmpb.TaskState{stReady, stRunning, stFailed}).Draw(t, "status"))
			case what == 4:
				id := pick()
				w.delete(swarmpb.TaskKey(id))
				ids = slices.DeleteFunc(ids, func(s string) bool { return s == id })
			case what == 5:
				template++
				w.propose(w.template(template), &swarmpb.Write{Op: &swarmpb.Write_Put{Put: &swarmpb.Row{Row: &swarmpb.Row_Service{Service: &swarmpb.Service{
					Id: serviceWeb, Spec: &swarmpb.ServiceSpec{Name: "web"}, TemplateVersion: template}}}}})
			case what == 6:
				w.allocate("uplink", "100.64.9.0/24", rapid.SampledFrom([]string{"", "n1"}).Draw(t, "owner"))
			case what == 7:
				a.deliver(h, "n1")
				h.expect(w.view(), "n1")
			}
		}
		a.deliver(h, "n1")
		h.expect(w.view(), "n1")
		fresh := newHolder(t)
		a.anew("n1")
		a.deliver(fresh, "n1")
		fresh.expect(w.view(), "n1")
		for key := range h.templates {
			if !fresh.templates[key] {
				t.Fatalf("template %v is held and nothing needs it", key)
			}
		}
	})
}
