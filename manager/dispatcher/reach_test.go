package dispatcher

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"
	"weak"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// teller is a server without gRPC and without time: it sees changes, and delivers, when it is told to.
type teller struct {
	w      *world
	server *Server
	watch  *store.Watch
	told   map[string]*assignment
}

// newTeller has a session of each node, and remembers so many events.
func newTeller(w *world, limit int, nodes ...string) *teller {
	server, err := New(Config{
		NodeID: "m", Store: func() *store.Store { return w.store }, Proposer: w.proposer,
		ReadIndex: func(context.Context) (uint64, error) { return w.view().Index(), nil },
		Managers:  func() []*swarmpb.ManagerPeer { return nil },
		Peer:      func(context.Context) (wire.PeerInfo, bool) { return wire.PeerInfo{}, false },
		Role:      func(string) swarmpb.NodeRole { return swarmpb.NodeRole_NODE_ROLE_WORKER },
	})
	if err != nil {
		w.t.Fatalf("%v", err)
	}
	server.reach = newReach(limit)
	p := &teller{w: w, server: server, told: make(map[string]*assignment)}
	for _, id := range nodes {
		server.sessions[id] = newSession(id, id, id, &Facts{}, time.Now())
		p.told[id] = newAssignment()
	}
	p.resync()
	return p
}

// resync is what follows an overflow.
func (p *teller) resync() {
	view := p.w.view()
	watch, err := p.w.store.Watch(view.Index(), 0)
	if err != nil {
		p.w.t.Fatalf("watch: %v", err)
	}
	p.watch = watch
	p.server.resync(view)
}

// see fans out what has happened. A write that changes nothing is none that a watch tells of: an alarm, which nobody is
// told of, comes last.
func (p *teller) see() {
	p.w.propose(&swarmpb.Write{Op: &swarmpb.Write_RaiseAlarm{RaiseAlarm: &swarmpb.RaiseAlarm{Kind: "test", Object: "test"}}})
	for p.server.reach.view.Index() < p.w.view().Index() {
		batch, err := p.watch.Next(context.Background())
		if err != nil {
			p.w.t.Fatalf("watch: %v", err)
		}
		p.server.fan(batch)
	}
}

// deliver hands a node what it has to be told and returns the number of messages. A node that was not woken must have
// nothing to be told.
func (p *teller) deliver(h *holder, node string) (messages int) {
	p.w.t.Helper()
	p.see()
	x, told := p.server.sessions[node], p.told[node]
	p.server.mu.Lock()
	woken := p.server.peersLater // it will be
	p.server.mu.Unlock()
	x.mu.Lock()
	woken = woken || x.wakes != x.looked
	x.mu.Unlock()
	base, wakes, parts := p.server.nextSet(x, told)
	for m := range chunks(base, told.version, parts) {
		data, err := proto.Marshal(m)
		copied := &swarmpb.AssignmentsResponse{}
		if err == nil {
			err = proto.Unmarshal(data, copied)
		}
		if err != nil {
			p.w.t.Fatalf("message: %v", err)
		}
		h.receive(copied)
		messages++
	}
	if messages > 0 {
		told.base = told.version
	}
	x.delivered(told.version, wakes)
	if messages > 0 && !woken {
		p.w.t.Fatalf("%s was told something of which it was not woken", node)
	}
	return messages
}

// next is what the node has to be told.
func (p *teller) next(node string) []*swarmpb.AssignmentChange {
	p.see()
	x, told := p.server.sessions[node], p.told[node]
	_, wakes, parts := p.server.nextSet(x, told)
	told.base = told.version
	x.delivered(told.version, wakes)
	return decode(p.w.t, slices.Concat(parts...))
}

func decode(t failer, messages []message) []*swarmpb.AssignmentChange {
	all := &swarmpb.AssignmentsResponse{}
	if err := proto.Unmarshal(slices.Concat(messages...), all); err != nil {
		t.Fatalf("messages: %v", err)
	}
	return all.GetChanges()
}

// anew begins the node's stream again.
func (p *teller) anew(node string) {
	p.server.reach.topics.listen(p.server.sessions[node], p.told[node].networks, nil)
	p.told[node] = newAssignment()
	p.server.sessions[node].notify(allOwn)
}

// expectReach compares with what docs/design-network.md says that a node is told.
func (h *holder) expectReach(view *store.View, node string) {
	h.t.Helper()
	mine := make(map[string]bool)
	for task := range view.TasksOn(node) {
		if !view.Observed(task.GetId()).Ended() {
			for _, n := range view.Template(task.GetServiceId(), task.GetTemplateVersion()).GetSpec().GetNetworks() {
				mine[n.GetNetwork()] = true
			}
		}
	}
	peers, networks := map[string]*swarmpb.Peer{}, map[string]*swarmpb.AssignedNetwork{}
	for row := range view.Allocations("uplink") {
		status := view.NodeStatus(row.GetOwner())
		if row.GetOwner() == "" || view.Node(row.GetOwner()) == nil || status.GetAddress() == "" {
			continue
		}
		var third int
		if _, err := fmt.Sscanf(row.GetAddress(), "100.64.%d.0/24", &third); err != nil {
			h.t.Fatalf("block %s: %v", row.GetAddress(), err)
		}
		peers[row.GetOwner()] = &swarmpb.Peer{NodeId: row.GetOwner(), Number: uint32(third + 1), Address: status.GetAddress(),
			UplinkBlock: row.GetAddress(), WireguardKey: status.GetDescription().GetNetwork().GetWireguardKey()}
	}
	for id := range mine {
		if n := view.Network(id); n != nil {
			networks[id] = &swarmpb.AssignedNetwork{Id: id, Spec: n.GetSpec(), Progress: view.NetworkProgress(id)}
		}
	}
	services, endpoints := map[string]*swarmpb.AssignedService{}, map[string]*swarmpb.Endpoint{}
	for service := range view.Services() {
		if s := modelService(view, service, mine); s != nil {
			services[s.GetId()] = s
			modelEndpoints(view, s.GetId(), endpoints)
		}
	}
	same(h.t, "peer", h.peers, peers)
	same(h.t, "network", h.networks, networks)
	same(h.t, "service", h.services, services)
	same(h.t, "endpoint", h.endpoints, endpoints)
}

func modelService(view *store.View, service *swarmpb.Service, mine map[string]bool) *swarmpb.AssignedService {
	given := view.ServiceEndpoint(service.GetId())
	s := &swarmpb.AssignedService{Id: service.GetId(), Name: service.GetSpec().GetName(), Mode: service.GetSpec().GetEndpoint().GetMode(), Ports: given.GetPorts()}
	if update := view.ServiceProgress(service.GetId()).GetUpdate(); update.Sets() {
		s.Trial = &swarmpb.Trial{Set: update.GetTemplateVersion(), Share: update.GetShare(), Preview: true}
		s.PreviewPorts = given.GetPreviewPorts()
	}
	shared := len(s.GetPorts())+len(s.GetPreviewPorts()) > 0
	seen := map[string]bool{}
	add := func(a *swarmpb.NetworkAttachment) {
		if !seen[a.GetNetwork()] {
			seen[a.GetNetwork()] = true
			s.Networks = append(s.Networks, a)
			shared = shared || mine[a.GetNetwork()]
		}
	}
	for _, a := range service.GetSpec().GetTask().GetNetworks() {
		add(a)
	}
	for t := range view.TemplatesOf(service.GetId()) {
		for _, a := range t.GetSpec().GetNetworks() {
			add(a)
		}
	}
	for _, vip := range given.GetVips() {
		if mine[vip.GetNetworkId()] {
			shared = true
			s.Vips = append(s.Vips, vip)
		}
	}
	if !shared {
		return nil
	}
	return s
}

func modelEndpoints(view *store.View, service string, out map[string]*swarmpb.Endpoint) {
	for task := range view.TasksOf(service) {
		id := task.GetId()
		node, observed := view.NodeID(id), view.Observed(id)
		if node == "" || observed.Ended() || view.Node(node) == nil || view.NodeStatus(node).GetState() == down {
			continue
		}
		e := &swarmpb.Endpoint{TaskId: id, ServiceId: service, Slot: task.GetSlot(), NodeId: node,
			State: swarmpb.EndpointState_ENDPOINT_STATE_STARTING, Address: view.Status(id).GetAddress(), Networks: view.Addresses(id).GetNetworks(), Set: task.GetTemplateVersion()}
		switch {
		case observed != stRunning:
		case view.Status(id).GetHealth().GetNotReady() && task.GetDesiredState() == stRunning && !task.GetDraining():
			e.State = swarmpb.EndpointState_ENDPOINT_STATE_STANDBY
		case task.GetDesiredState() == stRunning && !task.GetDraining():
			e.State = swarmpb.EndpointState_ENDPOINT_STATE_ACTIVE
		default:
			e.State = swarmpb.EndpointState_ENDPOINT_STATE_DRAINING
		}
		out[id] = e
	}
}

func same[M proto.Message](t failer, what string, got, want map[string]M) {
	t.Helper()
	for id, w := range want {
		if g, ok := got[id]; !ok || !proto.Equal(g, w) {
			t.Fatalf("%s %s is held as\n%v, want\n%v", what, id, g, w)
		}
	}
	for id := range got {
		if _, ok := want[id]; !ok {
			t.Fatalf("%s %s is held: %v", what, id, got[id])
		}
	}
}

// plane makes random histories of all that nodes are told.
type plane struct {
	*world
	t         *rapid.T
	tasks     []string
	attempt   uint64
	templates map[string]uint64 // the newest of each service
}

var (
	planeServices = []string{serviceWeb, "0000000000000000000000api", "0000000000000000000000job"}
	planeNetworks = []string{"000000000000000000000net1", "000000000000000000000net2"}
	planeNodes    = []string{"n1", "n2", "n3"}
)

func newPlane(t *rapid.T) *plane {
	p := &plane{world: newWorld(t, planeNodes...), t: t, templates: make(map[string]uint64)}
	for i, id := range planeNetworks {
		p.put(&swarmpb.Row{Row: &swarmpb.Row_Network{Network: &swarmpb.Network{Id: id, Spec: &swarmpb.NetworkSpec{Name: fmt.Sprint("net", i)}}}})
	}
	p.templates[serviceWeb] = 1
	return p
}

// try proposes what the store may refuse.
func (p *plane) try(writes ...*swarmpb.Write) bool {
	_, err := p.proposer.Propose(context.Background(), &swarmpb.Proposal{Writes: writes})
	return err == nil
}

func (p *plane) tryPut(row *swarmpb.Row) bool {
	return p.try(&swarmpb.Write{Op: &swarmpb.Write_Put{Put: row}})
}

func (p *plane) of(what string, list []string) string { return rapid.SampledFrom(list).Draw(p.t, what) }

func (p *plane) addressesIn(networks []*swarmpb.NetworkAttachment) (out []*swarmpb.NetworkAddress) {
	for _, n := range networks {
		out = append(out, &swarmpb.NetworkAddress{NetworkId: n.GetNetwork(), Address: fmt.Sprint("10.0.0.", rapid.IntRange(2, 250).Draw(p.t, "host"))})
	}
	return out
}

// change does one random thing.
func (p *plane) change() {
	switch rapid.IntRange(0, 13).Draw(p.t, "what") {
	case 0, 1:
		p.newTask()
	case 2, 3, 4:
		p.moveTask()
	case 5:
		p.writeService(p.of("service", planeServices))
	case 6, 7:
		p.writeEndpoint(p.of("service", planeServices))
	case 8:
		p.writeNode(p.of("node", planeNodes))
	case 9:
		id := p.of("network", planeNetworks)
		if !p.tryPut(&swarmpb.Row{Row: &swarmpb.Row_NetworkProgress{NetworkProgress: &swarmpb.NetworkProgress{
			NetworkId: id, Vni: 4096 + uint32(rapid.IntRange(0, 2).Draw(p.t, "vni"))}}}) {
			p.tryPut(&swarmpb.Row{Row: &swarmpb.Row_Network{Network: &swarmpb.Network{Id: id, Spec: &swarmpb.NetworkSpec{Name: id}}}})
		}
	case 10:
		p.try(&swarmpb.Write{Op: &swarmpb.Write_Delete{Delete: swarmpb.NetworkKey(p.of("network", planeNetworks))}})
	case 11:
		p.try(&swarmpb.Write{Op: &swarmpb.Write_Delete{Delete: swarmpb.ServiceKey(p.of("service", planeServices))}})
	case 12, 13:
		p.writeProgress(p.of("service", planeServices))
	}
}

// writeProgress gives a service's update another state, with two sets or without.
func (p *plane) writeProgress(id string) {
	p.tryPut(&swarmpb.Row{Row: &swarmpb.Row_ServiceProgress{ServiceProgress: &swarmpb.ServiceProgress{ServiceId: id, Attempt: 1 << 20, Update: &swarmpb.UpdateStatus{
		State:           rapid.SampledFrom([]swarmpb.UpdateState{updating, updating, completed}).Draw(p.t, "update"),
		Strategy:        rapid.SampledFrom([]swarmpb.UpdateStrategy{canary, canary, swarmpb.UpdateStrategy_UPDATE_STRATEGY_ROLLING}).Draw(p.t, "strategy"),
		TemplateVersion: uint64(rapid.IntRange(1, 3).Draw(p.t, "template")), Share: uint32(rapid.SampledFrom([]int{0, 500, 10000}).Draw(p.t, "share")),
		StartedAt: int64(rapid.IntRange(0, 1).Draw(p.t, "started")),
	}}}})
}

const (
	updating  = swarmpb.UpdateState_UPDATE_STATE_UPDATING
	completed = swarmpb.UpdateState_UPDATE_STATE_COMPLETED
	canary    = swarmpb.UpdateStrategy_UPDATE_STRATEGY_CANARY
)

func (p *plane) newTask() {
	service := p.of("service", planeServices)
	if p.view().Service(service) == nil {
		return
	}
	p.attempt++
	slot := p.attempt%3 + 1
	id := swarmpb.TaskID(service, slot, "", p.attempt)
	version := p.view().Service(service).GetTemplateVersion()
	p.put(&swarmpb.Row{Row: &swarmpb.Row_Task{Task: &swarmpb.Task{
		Id: id, ServiceId: service, Slot: slot, Attempt: p.attempt, TemplateVersion: version, DesiredState: stRunning}}})
	p.tasks = append(p.tasks, id)
	if networks := p.view().Template(service, version).GetSpec().GetNetworks(); len(networks) > 0 {
		p.put(&swarmpb.Row{Row: &swarmpb.Row_TaskAddresses{TaskAddresses: &swarmpb.TaskAddresses{TaskId: id, Networks: p.addressesIn(networks)}}})
	}
	if node := p.of("node", append(planeNodes, "")); node != "" && p.view().Node(node) != nil {
		p.place(id, node)
	}
}

func (p *plane) moveTask() {
	if len(p.tasks) == 0 {
		return
	}
	id := p.of("task", p.tasks)
	switch rapid.IntRange(0, 6).Draw(p.t, "move") {
	case 0:
		p.desire(id, stShutdown, rapid.Bool().Draw(p.t, "draining"))
	case 1:
		p.desire(id, stRunning, rapid.Bool().Draw(p.t, "draining"))
	case 2, 3:
		p.propose(&swarmpb.Write{Op: &swarmpb.Write_MergeStatus{MergeStatus: &swarmpb.TaskStatus{
			TaskId: id, State: rapid.SampledFrom([]swarmpb.TaskState{stReady, stRunning, stRunning, stFailed}).Draw(p.t, "state"),
			Address: p.of("address", []string{"", "100.64.3.7"}),
			Health:  &swarmpb.HealthStatus{NotReady: rapid.Bool().Draw(p.t, "not ready")}}}})
	case 4:
		p.propose(&swarmpb.Write{Op: &swarmpb.Write_SetDrained{SetDrained: &swarmpb.SetDrained{TaskIds: []string{id}, At: 7}}})
	case 5:
		if placed := p.view().NodeID(id); placed == "" {
			if node := p.of("node", planeNodes); p.view().Node(node) != nil {
				p.place(id, node)
			}
		}
	case 6:
		p.delete(swarmpb.TaskKey(id))
		p.tasks = slices.DeleteFunc(p.tasks, func(s string) bool { return s == id })
	}
}

// writeService gives a service another template.
func (p *plane) writeService(id string) {
	var networks []*swarmpb.NetworkAttachment
	for _, n := range planeNetworks {
		if p.view().Network(n) != nil && rapid.Bool().Draw(p.t, "attached") {
			networks = append(networks, &swarmpb.NetworkAttachment{Network: n, Aliases: []string{p.of("alias", []string{"x", "y"})}})
		}
	}
	p.templates[id]++
	version, old := p.templates[id], p.view().Service(id)
	spec := &swarmpb.TaskSpec{Container: &swarmpb.ContainerSpec{Image: "i"}, Networks: networks}
	if !p.try(&swarmpb.Write{Op: &swarmpb.Write_Put{Put: &swarmpb.Row{Row: &swarmpb.Row_Template{Template: &swarmpb.Template{ServiceId: id, Version: version, Spec: spec}}}}},
		&swarmpb.Write{Op: &swarmpb.Write_Put{Put: &swarmpb.Row{Row: &swarmpb.Row_Service{Service: &swarmpb.Service{
			Id: id, Spec: &swarmpb.ServiceSpec{Name: id[22:], Task: spec}, TemplateVersion: version,
			PreviousSpec: old.GetSpec(), PreviousTemplateVersion: old.GetTemplateVersion()}}}}}) {
		p.templates[id]--
	}
}

func (p *plane) writeEndpoint(id string) {
	row := &swarmpb.ServiceEndpoint{ServiceId: id}
	if rapid.Bool().Draw(p.t, "publishes") {
		row.Ports = []*swarmpb.PortConfig{{TargetPort: 80, PublishedPort: uint32(8000 + rapid.IntRange(0, 1).Draw(p.t, "port"))}}
	}
	if rapid.Bool().Draw(p.t, "has preview ports") {
		row.PreviewPorts = []*swarmpb.PortConfig{{TargetPort: 80, PublishedPort: uint32(9000 + rapid.IntRange(0, 1).Draw(p.t, "preview port"))}}
	}
	if rapid.Bool().Draw(p.t, "has VIPs") {
		row.Vips = p.addressesIn(p.view().Service(id).GetSpec().GetTask().GetNetworks())
	}
	p.tryPut(&swarmpb.Row{Row: &swarmpb.Row_ServiceEndpoint{ServiceEndpoint: row}})
}

func (p *plane) writeNode(id string) {
	switch rapid.IntRange(0, 4).Draw(p.t, "node's") {
	case 0, 1:
		status := &swarmpb.NodeStatus{NodeId: id, State: rapid.SampledFrom([]swarmpb.NodeState{ready, down, disconnected}).Draw(p.t, "state"),
			Address: p.of("address", []string{"", "10.0.0.1", "10.0.0.2"})}
		if rapid.Bool().Draw(p.t, "key") {
			status.Description = &swarmpb.NodeDescription{Network: &swarmpb.NodeNetwork{WireguardKey: make([]byte, 32)}}
		}
		p.tryPut(&swarmpb.Row{Row: &swarmpb.Row_NodeStatus{NodeStatus: status}})
	case 2, 3:
		block := "100.64." + id[1:] + ".0/24"
		owner := p.of("owner", []string{id, ""})
		p.tryPut(&swarmpb.Row{Row: &swarmpb.Row_Allocation{Allocation: &swarmpb.Allocation{Pool: "uplink", Address: block, Owner: owner}}})
	case 4:
		if id == "n3" { // n1 and n2 are told
			if p.view().Node(id) == nil {
				p.put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: &swarmpb.Node{Id: id, Role: swarmpb.NodeRole_NODE_ROLE_WORKER}}})
			} else {
				p.try(&swarmpb.Write{Op: &swarmpb.Write_Delete{Delete: swarmpb.NodeKey(id)}})
			}
		}
	}
}

// TestReach_RandomHistory_ReceiversHoldWhatTheViewSays: whatever happens between two deliveries, and however little of it
// is remembered, a node holds what the rows say, is told nothing that it could not apply, and is woken for it.
func TestReach_RandomHistory_ReceiversHoldWhatTheViewSays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := newPlane(t)
		nodes := []string{"n1", "n2"}
		limit := rapid.SampledFrom([]int{1, 5, 30, maxEvents}).Draw(t, "limit")
		told := newTeller(p.world, limit, nodes...)
		holders := map[string]*holder{"n1": newHolder(t), "n2": newHolder(t)}
		deliver := func(node string) {
			told.deliver(holders[node], node)
			holders[node].expect(p.view(), node)
		}
		for range rapid.IntRange(1, 150).Draw(t, "steps") {
			switch rapid.IntRange(0, 24).Draw(t, "step") {
			case 24:
				deliver("n1")
			case 23:
				deliver("n2")
			case 22:
				told.resync()
			case 21:
				node := p.of("node", nodes)
				told.anew(node)
				holders[node] = newHolder(t)
			default:
				p.change()
				if rapid.Bool().Draw(t, "seen") {
					told.see()
				}
			}
			if n := len(told.server.reach.topics.order); n > limit {
				t.Fatalf("%d events are remembered, at most %d may be", n, limit)
			}
		}
		for _, node := range nodes {
			deliver(node)
			fresh := newHolder(t)
			told.anew(node)
			told.deliver(fresh, node)
			fresh.expect(p.view(), node)
		}
	})
}

// TestReach_ViewIsFollowedByAnother_IsNotKept: the parts of a view that is kept are kept with it, which in a large cluster
// is another copy of everything in the end.
func TestReach_ViewIsFollowedByAnother_IsNotKept(t *testing.T) {
	w := testWorld(t, "n1")
	w.publish()
	told := newTeller(w, maxEvents, "n1")
	told.deliver(newHolder(t), "n1") // the full set
	old := weak.Make(told.server.reach.view)
	w.task(1, "n1")
	told.see()
	for range 3 {
		runtime.GC()
	}
	if old.Value() != nil {
		t.Error("a view is kept that nobody reads any more")
	}
	runtime.KeepAlive(told)
}

// TestReach_AnotherStoreTakesThePlace_ReceiversHoldWhatItSays: of an index before what nodes were told, or beyond it.
func TestReach_AnotherStoreTakesThePlace_ReceiversHoldWhatItSays(t *testing.T) {
	for _, beyond := range []bool{false, true} {
		w := testWorld(t, "n1", "n2", "n3")
		w.publish()
		w.allocate("uplink", "100.64.3.0/24", "n3")
		kept, goes := w.task(1, "n1"), w.task(2, "n2")
		w.status(kept, stRunning)
		w.status(goes, stRunning)
		told := newTeller(w, maxEvents, "n1", "n2")
		holders := map[string]*holder{"n1": newHolder(t), "n2": newHolder(t)}
		deliver := func() {
			t.Helper()
			for node, h := range holders {
				told.deliver(h, node)
				h.expect(w.view(), node)
			}
		}
		deliver()
		var snapshot bytes.Buffer
		if err := w.view().WriteSnapshot(&snapshot); err != nil {
			t.Fatal(err)
		}
		w.status(goes, stFailed)
		w.task(3, "n1")
		w.delete(swarmpb.NodeKey("n3"))
		w.desire(kept, stShutdown, false)
		deliver()
		reached := w.view().Index()
		restored, err := store.ReadSnapshot(&snapshot)
		if err != nil {
			t.Fatal(err)
		}
		w.store.Close()
		w.store, w.proposer = restored, store.NewLocalProposer(restored)
		for i := 0; beyond && w.view().Index() <= reached; i++ {
			w.propose(&swarmpb.Write{Op: &swarmpb.Write_RaiseAlarm{RaiseAlarm: &swarmpb.RaiseAlarm{Kind: "test", Object: fmt.Sprint(i)}}})
		}
		told.resync()
		if before := w.view().Index() < reached; before == beyond {
			t.Fatalf("the store is at %d, the nodes at %d", w.view().Index(), reached)
		}
		deliver()
		w.status(goes, stFailed)
		w.desire(kept, stShutdown, false)
		deliver()
		if e := holders["n2"].endpoints[kept]; e.GetState() != swarmpb.EndpointState_ENDPOINT_STATE_DRAINING || holders["n1"].endpoints[goes] != nil {
			t.Errorf("held are %v", holders["n2"].endpoints)
		}
	}
}

// A row that changes while a report is begun is compared in that report, or in the next one: what is remembered of the row
// before does not stay.
func TestMakeReport_RowChangesAsItBegins_FactsAreComparedWithTheNewOne(t *testing.T) {
	w := testWorld(t, "n1")
	p := newTeller(w, maxEvents, "n1")
	facts := &Facts{Description: &swarmpb.NodeDescription{Hostname: "h"}, Address: "10.0.0.7"}
	p.server.sessions["n1"].facts = facts
	told := func() *Facts { return p.server.makeReport(time.Now()).Beats[0].Facts }
	if told() == nil {
		t.Fatal("facts that no row has are not told")
	}
	p.server.sessions["n1"].told.stale = true // another row of the node's has changed
	p.server.cfg.Health = func() *swarmpb.ManagerHealth {
		p.server.cfg.Health = nil
		w.put(&swarmpb.Row{Row: &swarmpb.Row_NodeStatus{NodeStatus: &swarmpb.NodeStatus{
			NodeId: "n1", State: ready, Address: facts.Address, Description: facts.Description, First: firstFacts(facts.Description)}}})
		p.see()
		return nil
	}
	told()
	if told() != nil {
		t.Error("facts that the row has are told for ever")
	}
}
