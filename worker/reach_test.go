package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/network"
	"github.com/swarmd/swarmd/worker/runtime/runtimetest"
)

const active = swarmpb.EndpointState_ENDPOINT_STATE_ACTIVE

// networked has the manager tell how tasks are reached, as present versions do.
func (d *dispatcher) networked() {
	d.change(&swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_NodeConfig{NodeConfig: &swarmpb.NodeConfig{
		UplinkBlock: "100.64.0.0/16", Number: 1, DataPathPort: 4789}}})
}

func peerRow(id string, number uint32) *swarmpb.AssignmentChange {
	return rowChange(&swarmpb.Peer{NodeId: id, Number: number, Address: fmt.Sprint("192.0.2.", number)})
}

func serviceRow(id string) *swarmpb.AssignmentChange {
	return rowChange(&swarmpb.AssignedService{Id: id, Name: id})
}

func endpointRow(task, service, node string) *swarmpb.AssignmentChange {
	return rowChange(&swarmpb.Endpoint{TaskId: task, ServiceId: service, NodeId: node, State: active})
}

func removeService(id string) *swarmpb.AssignmentChange {
	return &swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_RemoveService{RemoveService: id}}
}

func removeEndpoint(task string) *swarmpb.AssignmentChange {
	return &swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_RemoveEndpoint{RemoveEndpoint: &swarmpb.RemoveEndpoint{TaskId: task}}}
}

func (h *host) wantEndpoints(tasks ...string) {
	h.Helper()
	if got := slices.Sorted(maps.Keys(h.net.Endpoints())); !slices.Equal(got, tasks) {
		h.Fatalf("endpoints of the network: %q, want %q", got, tasks)
	}
}

func (h *host) wantAcknowledged(is bool) {
	h.Helper()
	h.manager.mu.Lock()
	defer h.manager.mu.Unlock()
	if (h.manager.applied == h.manager.version) != is {
		h.Fatalf("version %d of %d is acknowledged; want the newest: %v", h.manager.applied, h.manager.version, is)
	}
}

func TestReach_Set_IsInTheNetworkBeforeItsTasksStart(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.networked()
		var early []string
		h.runtime.SetBefore(func(_ context.Context, op runtimetest.Op, name string) error {
			if op == runtimetest.OpStart && h.net.Endpoints()["e-"+name] == nil {
				early = append(early, name)
			}
			return nil
		})
		for _, id := range []string{"a", "b"} {
			h.manager.change(
				templateChange(&swarmpb.AssignedTemplate{ServiceId: "s", Version: 1, Spec: &swarmpb.TaskSpec{Container: &swarmpb.ContainerSpec{Image: "nginx:alpine"}}}),
				serviceRow("s"), endpointRow("e-"+id, "s", "node-2"), peerRow("node-2", 2),
				taskChange(&swarmpb.AssignedTask{Id: id, ServiceId: "s", TemplateVersion: 1, DesiredState: stateRunning}),
			)
			h.settle(time.Second)
		}
		h.wantRunning("a", "b")
		h.wantEndpoints("e-a", "e-b")
		h.wantAcknowledged(true)
		if len(early) > 0 {
			t.Errorf("%q were started before the network had their set", early)
		}
	})
}

func TestReach_RestartWithoutManagers_HasWhatWasTold(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.networked()
		h.manager.change(peerRow("node-2", 2), peerRow("node-3", 3), serviceRow("s"), serviceRow("t"),
			endpointRow("a", "s", "node-2"), endpointRow("b", "s", "node-2"), endpointRow("c", "t", "node-3"), endpointRow("d", "t", "node-3"))
		h.settle(time.Second)
		h.manager.change(removeService("t"), removeEndpoint("b"))
		h.settle(time.Second)
		h.wantEndpoints("a")
		h.cut(true)
		h.stop()
		must(t, h.net.Apply(t.Context(), true, nil)) // as a network that knows nothing
		h.start()
		h.wantEndpoints("a")
		if peers := h.net.Peers(); len(peers) != 2 || len(h.agent.Peers()) != 2 {
			t.Errorf("peers of the network: %v", peers)
		}
		h.cut(false)
		h.manager.change(removeEndpoint("a"), endpointRow("e", "s", "node-3"))
		h.settle(10 * time.Second)
		h.wantEndpoints("e")
		h.cut(true)
		h.restart() // the full set has replaced what was kept
		h.wantEndpoints("e")
	})
}

func TestReach_NothingKnownAtTheStart_KernelIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	h := newHost(t, dir)
	defer h.close()
	must(t, h.net.Apply(t.Context(), false, []*swarmpb.AssignmentChange{endpointRow("of-a-former-process", "s", "node-2")}))
	reach := newReach(Config{Network: h.net, Logger: slog.New(slog.DiscardHandler)}, newProblems())
	for name, k := range map[string]kept{"unread": {version: 7, unread: true}, "moved aside": {}} {
		reach.restore(t.Context(), k)
		if len(h.net.Endpoints()) != 1 {
			t.Errorf("%s: the network was told that nothing is there", name)
		}
	}
	reach.restore(t.Context(), kept{version: 7})
	if len(h.net.Endpoints()) != 0 {
		t.Error("what is not in the record is still in the network")
	}
}

func TestReach_NetworkRefuses_AcknowledgedOnlyWhenItHoldsAll(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.networked()
		h.settle(time.Second)
		h.net.Refuse(errors.New("nftables: no buffer space available"))
		h.manager.change(serviceRow("s"), endpointRow("a", "s", "node-2"))
		h.settle(100 * time.Millisecond)
		h.manager.assign("task", stateRunning)
		h.settle(3 * time.Second)
		h.wantAcknowledged(false)
		if got := strings.Join(h.agent.Problems(), "\n"); !strings.Contains(got, "no buffer space") {
			t.Errorf("problems are %q", got)
		}
		h.settle(5 * time.Second)
		h.wantRunning("task") // it does not wait for ever
		h.wantAcknowledged(false)
		h.manager.assign("later", stateRunning)
		h.settle(time.Second)
		h.wantRunning("later", "task") // and nobody waits a second time
		h.net.Refuse(nil)
		h.settle(31 * time.Second)
		h.wantAcknowledged(true)
		h.wantEndpoints("a")
		if got := h.agent.Problems(); len(got) != 0 {
			t.Errorf("problems are %q", got)
		}
	})
}

func TestReach_NetworkRefusesForAMoment_TasksWaitForIt(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.networked()
		h.settle(time.Second)
		h.net.Refuse(errors.New("busy"))
		h.manager.change(serviceRow("s"), endpointRow("a", "s", "node-2"))
		h.settle(10 * time.Millisecond)
		h.manager.assign("task", stateRunning)
		h.settle(400 * time.Millisecond)
		h.wantRunning()
		h.net.Refuse(nil)
		h.settle(time.Second)
		h.wantRunning("task")
		h.wantEndpoints("a")
		h.wantAcknowledged(true)
	})
}

func TestReach_RefusedAcrossARestart_IsBroughtInLater(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.networked()
		h.manager.change(serviceRow("s"), endpointRow("a", "s", "node-2"))
		h.manager.assign("task", stateRunning)
		h.settle(time.Second)
		h.cut(true)
		h.stop()
		must(t, h.net.Apply(t.Context(), true, nil))
		h.net.Refuse(errors.New("busy"))
		h.start()
		h.wantRunning("task")
		h.wantEndpoints()
		h.net.Refuse(nil)
		h.settle(10 * time.Second)
		h.wantEndpoints("a")
	})
}

func TestReach_ManagerThatTellsNothingOfIt_LeavesItAlone(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.networked()
		h.manager.change(serviceRow("s"), endpointRow("a", "s", "node-2"))
		h.settle(time.Second)
		h.cut(true)
		h.manager.mu.Lock()
		h.manager.rows, h.manager.config = map[dbKey]proto.Message{}, &swarmpb.NodeConfig{UplinkBlock: "100.64.0.0/16"}
		h.manager.mu.Unlock()
		h.cut(false)
		h.manager.assign("task", stateRunning)
		h.settle(10 * time.Second)
		h.wantRunning("task")
		h.wantEndpoints("a")
		h.wantAcknowledged(true)
		h.manager.networked() // it is of the present version again
		h.cut(true)
		h.cut(false)
		h.settle(10 * time.Second)
		h.wantEndpoints()
	})
}

func TestReach_Rows_AreWrittenOnlyWhenTheyChange(t *testing.T) {
	r := newReach(Config{Network: newHost(t, t.TempDir()).net, Logger: slog.New(slog.DiscardHandler), Limits: Limits{}.withDefaults()}, newProblems())
	var changes []*swarmpb.AssignmentChange
	for i := range 1000 {
		changes = append(changes, endpointRow(fmt.Sprint("t", i), "s", "node-2"))
	}
	for _, c := range []struct {
		name string
		s    set
		want int
	}{
		{"first", set{full: true, reach: changes}, 1000},
		{"the same again", set{full: true, reach: changes}, 0},
		{"one less", set{full: true, reach: changes[1:]}, 1},
		{"one changed", set{reach: []*swarmpb.AssignmentChange{endpointRow("t5", "s", "node-3")}}, 1},
		{"its service goes", set{reach: []*swarmpb.AssignmentChange{removeService("s")}}, 999},
	} {
		rows, err := r.take(t.Context(), &c.s)
		if err != nil || len(rows) != c.want {
			t.Errorf("%s: %d rows are written, %v; want %d", c.name, len(rows), err, c.want)
		}
	}
	var bad *badSetError
	changes = nil
	for i := range maxSetChanges {
		changes = append(changes, endpointRow(fmt.Sprint("t", i), "s", "node-2"))
	}
	if _, err := r.take(t.Context(), &set{reach: changes}); err != nil {
		t.Errorf("as many as there may be: %v", err)
	}
	if _, err := r.take(t.Context(), &set{reach: []*swarmpb.AssignmentChange{endpointRow("more", "s", "node-2")}}); !errors.As(err, &bad) {
		t.Errorf("more than there may be: %v", err)
	}
}

func TestReach_StatusOfTheNetwork_IsToldWhenItChanges(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.settle(time.Second)
		status := &swarmpb.NodeNetwork{Problems: []string{"this kernel has no vxlan"},
			Conflicts: []*swarmpb.PortConflict{{Protocol: swarmpb.Protocol_PROTOCOL_TCP, Port: 8080, Process: "nginx (pid 12)"}}}
		h.net.SetStatus(status)
		h.settle(time.Second)
		h.manager.mu.Lock()
		got := h.manager.described.GetNetwork()
		h.manager.mu.Unlock()
		if !proto.Equal(got, status) {
			t.Errorf("the managers were told %v", got)
		}
		want := []string{"network: this kernel has no vxlan", "network: port 8080/tcp is published by a service and taken by nginx (pid 12): it is not served on this host; end that, or publish another port"}
		if got := h.agent.Problems(); !slices.Equal(got, want) {
			t.Errorf("problems are %q", got)
		}
	})
}

func TestAttach_WhatThisHostCannotDo_IsARejectionThatSaysSo(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.networked()
		h.net.RefuseAttach("secret", fmt.Errorf("network \"back\" is encrypted, which this node cannot do: %w", network.ErrUnsupported))
		h.net.RefuseAttach("waits", fmt.Errorf("%w: network n1", network.ErrNotConfigured))
		h.manager.assign("secret", stateRunning)
		h.manager.assign("waits", stateRunning)
		h.settle(2 * time.Second)
		h.wantState("secret", stateRejected, "network \"back\" is encrypted, which this node cannot do: "+network.ErrUnsupported.Error())
		if s := h.manager.status("waits"); s.GetState().Ended() || !strings.Contains(s.GetMessage(), "network n1") {
			t.Errorf("a task that waits for its network is %s: %q", s.GetState().Name(), s.GetMessage())
		}
		h.settle(20 * time.Minute)
		h.net.RefuseAttach("waits", nil)
		h.manager.change(peerRow("node-2", 2)) // any word of the managers has it try at once
		h.settle(time.Second)
		h.wantRunning("waits")
	})
}

func TestHosts_NetworksAddressesStandForTheHostname(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.networked()
		spec := &swarmpb.ContainerSpec{Image: "nginx:alpine", Hostname: "{{.Service.Name}}-{{.Task.Slot}}", Hosts: []string{"192.0.2.7 db  db.local"}}
		h.manager.change(
			templateChange(&swarmpb.AssignedTemplate{ServiceId: "s", Version: 1, Spec: &swarmpb.TaskSpec{Container: spec}}),
			taskChange(&swarmpb.AssignedTask{Id: "plain", ServiceId: "s", ServiceName: "web", Slot: 1, TemplateVersion: 1, DesiredState: stateRunning}),
			taskChange(&swarmpb.AssignedTask{Id: "joined", ServiceId: "s", ServiceName: "web", Slot: 2, TemplateVersion: 1, DesiredState: stateRunning,
				Networks: []*swarmpb.NetworkAddress{{NetworkId: "n1", Address: "10.0.1.5", Address6: "fd00::5"}, {NetworkId: "n2", Address: "10.0.2.5"}}}),
		)
		h.settle(time.Second)
		const begin = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
		plain, _ := h.runtime.Spec("plain")
		if want := begin + h.manager.status("plain").GetAddress() + "\tweb-1\n192.0.2.7\tdb db.local\n"; plain.Hosts != want {
			t.Errorf("hosts of a task without networks are %q, want %q", plain.Hosts, want)
		}
		joined, _ := h.runtime.Spec("joined")
		if want := begin + "10.0.1.5\tweb-2\nfd00::5\tweb-2\n10.0.2.5\tweb-2\n192.0.2.7\tdb db.local\n"; joined.Hosts != want || joined.Hostname != "web-2" {
			t.Errorf("hosts of a task in networks are %q, want %q", joined.Hosts, want)
		}
		if a := h.manager.status("joined").GetAddress(); !strings.HasPrefix(a, "100.64.") {
			t.Errorf("the address that is reported is %q, want the uplink's", a)
		}
		if got := h.net.Request("joined"); got.Hostname != "web-2" || len(got.Networks) != 2 {
			t.Errorf("the network was asked for %v", got)
		}
	})
}
