package control

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// network makes a network through the API.
func (w *world) network(spec *swarmpb.NetworkSpec) *swarmpb.CreateNetworkResponse {
	w.t.Helper()
	r, err := w.server.CreateNetwork(context.Background(), &swarmpb.CreateNetworkRequest{Spec: spec})
	if err != nil {
		w.t.Fatalf("create network: %v", err)
	}
	return r
}

// describe lets a node say something of its network.
func (w *world) describe(id string, network *swarmpb.NodeNetwork) {
	w.t.Helper()
	status := swarmpb.Clone(w.view().NodeStatus(id))
	status.Description.Network = network
	w.put(&swarmpb.Row{Row: &swarmpb.Row_NodeStatus{NodeStatus: status}})
}

func subnet(name, subnet string) *swarmpb.NetworkSpec {
	return &swarmpb.NetworkSpec{Name: name, Subnets: []*swarmpb.NetworkSubnet{{Subnet: subnet}}}
}

func on(s *swarmpb.ServiceSpec, networks ...string) *swarmpb.ServiceSpec {
	for _, n := range networks {
		s.Task.Networks = append(s.Task.Networks, &swarmpb.NetworkAttachment{Network: n})
	}
	return s
}

func publishing(s *swarmpb.ServiceSpec, ports ...*swarmpb.PortConfig) *swarmpb.ServiceSpec {
	s.Endpoint = &swarmpb.EndpointSpec{Ports: ports}
	return s
}

func TestCreateNetwork_WrongInput_ErrorNamesTheObjectAndWhatToDo(t *testing.T) {
	w := newWorld(t)
	w.describe(self, &swarmpb.NodeNetwork{Routes: []string{"nonsense", "192.168.1.0/24"}})
	cluster := swarmpb.Clone(w.view().Cluster())
	cluster.Spec.FabricPool = "100.64.0.0/10"
	w.put(&swarmpb.Row{Row: &swarmpb.Row_Cluster{Cluster: cluster}})
	w.network(&swarmpb.NetworkSpec{Name: "back"})
	prefix6 := swarmpb.FabricPrefix6(cluster.GetId())
	for _, test := range []struct {
		name  string
		spec  *swarmpb.NetworkSpec
		code  wire.Code
		parts []string
	}{
		{"no spec", nil, wire.CodeInvalid, []string{"network"}},
		{"no name", &swarmpb.NetworkSpec{}, wire.CodeInvalid, []string{"give the network a name"}},
		{"name taken", &swarmpb.NetworkSpec{Name: "back"}, wire.CodeExists, []string{`network "back"`, "choose another name"}},
		{"host's route", subnet("a", "192.168.0.0/16"), wire.CodeInvalid, []string{`network "a"`, "192.168.0.0/16", "192.168.1.0/24", "node boss", "choose another subnet"}},
		{"fabric", subnet("a", "100.65.0.0/24"), wire.CodeInvalid, []string{"100.64.0.0/10", "between its hosts"}},
		{"the cluster's IPv6", &swarmpb.NetworkSpec{Name: "a", Ipv6: true, Subnets: []*swarmpb.NetworkSubnet{{Subnet: netip.PrefixFrom(prefix6.Addr(), 64).Masked().String()}}}, wire.CodeInvalid,
			[]string{prefix6.String(), "its containers' IPv6", "choose another subnet"}},
		{"encrypted", &swarmpb.NetworkSpec{Name: "a", Encrypted: true}, wire.CodeInvalid, []string{`network "a"`, "WireGuard", "leave --encrypted out"}},
	} {
		_, err := w.server.CreateNetwork(context.Background(), &swarmpb.CreateNetworkRequest{Spec: test.spec})
		t.Run(test.name, func(t *testing.T) { expectError(t, err, test.code, test.parts...) })
	}
	if n := w.view().NetworkCount(); n != 1 {
		t.Errorf("%d networks, want 1", n)
	}
	w.network(subnet("b", "10.0.0.0/24"))
	w.network(subnet("c", "10.0.0.0/24")) // networks of the same subnet do not meet
}

func TestCreateNetwork_SameRequestTwice_OneNetwork(t *testing.T) {
	w := newWorld(t)
	req := &swarmpb.CreateNetworkRequest{RequestId: "r1", Spec: &swarmpb.NetworkSpec{Name: "back"}}
	first, err := w.server.CreateNetwork(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	second, err := w.server.CreateNetwork(context.Background(), req)
	if err != nil || first.GetId() != second.GetId() || w.view().NetworkCount() != 1 {
		t.Fatalf("%v, %v; %d networks", second, err, w.view().NetworkCount())
	}
	if driver := w.view().Network(first.GetId()).GetSpec().GetDriver(); driver != "overlay" {
		t.Errorf("driver %q", driver)
	}
}

func TestCreateNetwork_EncryptedInAProcess_SaysWhatItCosts(t *testing.T) {
	w := newWorld(t)
	w.node(nodeA, "a", swarmpb.NodeRole_NODE_ROLE_WORKER, swarmpb.NodeState_NODE_STATE_READY)
	w.describe(self, &swarmpb.NodeNetwork{WireguardKey: make([]byte, 32), Wireguard: "userspace"})
	said := strings.Join(w.network(&swarmpb.NetworkSpec{Name: "safe", Encrypted: true}).GetWarnings(), "\n")
	for _, want := range []string{"1 of 2 nodes", "2 to 11 % of the throughput", "a cannot run WireGuard"} {
		if !strings.Contains(said, want) {
			t.Errorf("warnings %q do not say %q", said, want)
		}
	}
}

func TestRemoveNetwork_InUse_NamesTheServices(t *testing.T) {
	w := newWorld(t)
	id := w.network(&swarmpb.NetworkSpec{Name: "back"}).GetId()
	r, err := w.server.CreateService(context.Background(), &swarmpb.CreateServiceRequest{Spec: on(spec("web", "web:1", 1), "back")})
	if err != nil {
		t.Fatal(err)
	}
	if got := w.view().Service(r.GetId()).GetSpec().GetTask().GetNetworks()[0].GetNetwork(); got != id {
		t.Errorf("the service's network is %q, want the ID %s", got, id)
	}
	_, err = w.server.RemoveNetwork(context.Background(), &swarmpb.RemoveNetworkRequest{Network: "back"})
	expectError(t, err, wire.CodeInUse, `network "back"`, "web", "--network-rm back")
	if w.view().Network(id).GetRemoving() {
		t.Error("the network is being removed all the same")
	}
	if info, err := w.server.GetNetwork(context.Background(), &swarmpb.GetNetworkRequest{Network: id[:8]}); err != nil || info.GetNetwork().GetServices()[0] != "web" {
		t.Errorf("network %v, error %v", info, err)
	}
	_, err = w.server.RemoveNetwork(context.Background(), &swarmpb.RemoveNetworkRequest{Network: "front"})
	expectError(t, err, wire.CodeNotFound, `network "front"`, "swarmctl network ls")

	w.network(&swarmpb.NetworkSpec{Name: "idle"})
	if _, err := w.server.RemoveNetwork(context.Background(), &swarmpb.RemoveNetworkRequest{Network: "idle"}); err != nil {
		t.Fatal(err)
	}
	_, err = w.server.CreateService(context.Background(), &swarmpb.CreateServiceRequest{Spec: on(spec("api", "web:1", 1), "idle")})
	expectError(t, err, wire.CodeFailedPrecondition, `network "idle"`, "being removed")
}

func TestCreateService_Networks_WrongOnesAreNamed(t *testing.T) {
	w := newWorld(t)
	id := w.network(&swarmpb.NetworkSpec{Name: "back", Internal: true}).GetId()
	w.put(&swarmpb.Row{Row: &swarmpb.Row_NetworkProgress{NetworkProgress: &swarmpb.NetworkProgress{NetworkId: id, Vni: 4096, Subnet: "10.20.0.0/24"}}})
	w.network(subnet("same", "10.20.0.0/16")) // is given nothing yet
	w.network(subnet("other", "10.21.0.0/16"))
	if _, err := w.server.CreateService(context.Background(), &swarmpb.CreateServiceRequest{Spec: on(spec("both", "web:1", 1), "back", "other")}); err != nil {
		t.Errorf("networks that do not overlap: %v", err)
	}
	for _, test := range []struct {
		name  string
		spec  *swarmpb.ServiceSpec
		code  wire.Code
		parts []string
	}{
		{"unknown", on(spec("web", "web:1", 1), "front"), wire.CodeNotFound, []string{`network "front"`, "swarmctl network ls"}},
		{"overlap", on(spec("web", "web:1", 1), "same", "back"), wire.CodeInvalid, []string{`network "back"`, "10.20.0.0/24 overlaps 10.20.0.0/16", `network "same"`, "name one of them"}},
		{"twice", on(spec("web", "web:1", 1), "back", id), wire.CodeInvalid, []string{`network "back"`, "twice"}},
		{"internal", publishing(on(spec("web", "web:1", 1), "back"), &swarmpb.PortConfig{PublishedPort: 80, TargetPort: 80}), wire.CodeInvalid, []string{"publish 80:", "internal"}},
		{"internal, any port", publishing(on(spec("web", "web:1", 1), "back"), &swarmpb.PortConfig{TargetPort: 80}), wire.CodeInvalid, []string{"publish (target 80):", "internal"}},
	} {
		_, err := w.server.CreateService(context.Background(), &swarmpb.CreateServiceRequest{Spec: test.spec})
		t.Run(test.name, func(t *testing.T) { expectError(t, err, test.code, test.parts...) })
	}
}

func TestPublish_PortTaken_NamesTheService(t *testing.T) {
	w := newWorld(t)
	const host = swarmpb.PublishMode_PUBLISH_MODE_HOST
	port := func(n uint32, mode swarmpb.PublishMode) *swarmpb.PortConfig {
		return &swarmpb.PortConfig{PublishedPort: n, TargetPort: 80, Mode: mode}
	}
	create := func(name string, p *swarmpb.PortConfig) (string, error) {
		r, err := w.server.CreateService(context.Background(), &swarmpb.CreateServiceRequest{Spec: publishing(spec(name, "web:1", 1), p)})
		return r.GetId(), err
	}
	api, err := create("api", port(8080, 0))
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range []swarmpb.PublishMode{0, host} {
		_, err = create("web", port(8080, mode))
		expectError(t, err, wire.CodeExists, `publish 8080: port is already published by service "api"; choose another port or remove it there`)
	}
	if _, err = create("dns", &swarmpb.PortConfig{PublishedPort: 8080, TargetPort: 80, Protocol: swarmpb.Protocol_PROTOCOL_UDP}); err != nil {
		t.Errorf("another protocol: %v", err)
	}
	for _, name := range []string{"h1", "h2"} {
		if _, err := create(name, port(9090, host)); err != nil {
			t.Errorf("mode host: %v", err)
		}
	}
	web, err := create("web", port(8081, 0))
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.server.UpdateService(context.Background(), &swarmpb.UpdateServiceRequest{Service: web, Spec: publishing(spec("web", "web:1", 1), port(8080, 0))})
	expectError(t, err, wire.CodeExists, `service "api"`)
	if _, err = w.server.UpdateService(context.Background(), &swarmpb.UpdateServiceRequest{Service: api, Spec: publishing(spec("api", "web:2", 1), port(8080, 0))}); err != nil {
		t.Errorf("its own port: %v", err)
	}
	// A port that the allocator chose.
	open, err := create("open", port(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	w.put(&swarmpb.Row{Row: &swarmpb.Row_ServiceEndpoint{ServiceEndpoint: &swarmpb.ServiceEndpoint{ServiceId: open, Ports: []*swarmpb.PortConfig{port(30000, 0)}}}})
	_, err = create("late", port(30000, 0))
	expectError(t, err, wire.CodeExists, `publish 30000`, `service "open"`)
}

func TestPublish_PreviewPortTaken_NamesTheServiceInBothDirections(t *testing.T) {
	w := newWorld(t)
	preview := func(name string, n uint32) *swarmpb.CreateServiceRequest {
		s := spec(name, "web:1", 1)
		s.Update = &swarmpb.UpdateConfig{Strategy: blueGreen, PreviewPorts: []*swarmpb.PortConfig{{PublishedPort: n, TargetPort: 80}}}
		return &swarmpb.CreateServiceRequest{Spec: s}
	}
	published := func(name string, n uint32) *swarmpb.CreateServiceRequest {
		return &swarmpb.CreateServiceRequest{Spec: publishing(spec(name, "web:1", 1), &swarmpb.PortConfig{PublishedPort: n, TargetPort: 80})}
	}
	create := func(req *swarmpb.CreateServiceRequest) (string, error) {
		r, err := w.server.CreateService(ctx, req)
		return r.GetId(), err
	}
	if _, err := create(preview("blue", 8081)); err != nil {
		t.Fatal(err)
	}
	_, err := create(published("web", 8081))
	expectError(t, err, wire.CodeExists, `publish 8081: port is already published by service "blue"`)
	if _, err := create(published("web", 8080)); err != nil {
		t.Fatal(err)
	}
	_, err = create(preview("green", 8080))
	expectError(t, err, wire.CodeExists, `preview publish 8080: port is already published by service "web"`)
	// One that the allocator chose for a preview.
	open, err := create(preview("open", 0))
	if err != nil {
		t.Fatal(err)
	}
	w.put(&swarmpb.Row{Row: &swarmpb.Row_ServiceEndpoint{ServiceEndpoint: &swarmpb.ServiceEndpoint{ServiceId: open,
		PreviewPorts: []*swarmpb.PortConfig{{PublishedPort: 30000, TargetPort: 80}}}}})
	_, err = create(published("late", 30000))
	expectError(t, err, wire.CodeExists, "publish 30000", `service "open"`)
}

func TestCreateService_TwoSetsWithHostPorts_IsWarned(t *testing.T) {
	w := newWorld(t)
	s := publishing(spec("web", "web:1", 1), &swarmpb.PortConfig{PublishedPort: 80, TargetPort: 80, Mode: swarmpb.PublishMode_PUBLISH_MODE_HOST})
	s.Update = &swarmpb.UpdateConfig{Strategy: blueGreen}
	r, err := w.server.CreateService(ctx, &swarmpb.CreateServiceRequest{Spec: s})
	if err != nil || len(r.GetWarnings()) != 1 || !strings.Contains(r.GetWarnings()[0], "publish 80: a host-mode port takes one task a node, and an update of strategy blue-green needs nodes for two sets of 1 tasks, of which 1 are ready") {
		t.Errorf("%v, %v", r, err)
	}
}

// TestPublish_PortMovesFromOneServiceToAnother_AsSoonAsThatAsksForItNoMore: the allocator, which takes it back a moment
// later, gives it to the other one then.
func TestPublish_PortMovesFromOneServiceToAnother_AsSoonAsThatAsksForItNoMore(t *testing.T) {
	w := newWorld(t)
	port := func(n uint32) *swarmpb.PortConfig { return &swarmpb.PortConfig{PublishedPort: n, TargetPort: 80} }
	for _, name := range []string{"old", "going"} {
		r, err := w.server.CreateService(ctx, &swarmpb.CreateServiceRequest{Spec: publishing(spec(name, "web:1", 1), port(8080))})
		if err != nil {
			t.Fatal(err)
		}
		w.put(&swarmpb.Row{Row: &swarmpb.Row_ServiceEndpoint{ServiceEndpoint: &swarmpb.ServiceEndpoint{ServiceId: r.GetId(), Ports: []*swarmpb.PortConfig{port(8080)}}}})
		if name == "old" {
			_, err = w.server.UpdateService(ctx, &swarmpb.UpdateServiceRequest{Service: name, Spec: publishing(spec(name, "web:1", 1), port(8081))})
		} else {
			_, err = w.server.RemoveService(ctx, &swarmpb.RemoveServiceRequest{Service: name})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.server.CreateService(ctx, &swarmpb.CreateServiceRequest{Spec: publishing(spec("new", "web:1", 1), port(8080))}); err != nil {
		t.Error(err)
	}
}

// TestRemoveNetwork_ServiceHasLeftIt_IsTaken: the spec before the service's own may still name it.
func TestRemoveNetwork_ServiceHasLeftIt_IsTaken(t *testing.T) {
	w := newWorld(t)
	w.network(&swarmpb.NetworkSpec{Name: "back"})
	r, err := w.server.CreateService(ctx, &swarmpb.CreateServiceRequest{Spec: on(spec("web", "web:1", 1), "back")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.server.UpdateService(ctx, &swarmpb.UpdateServiceRequest{Service: "web", Spec: spec("web", "web:1", 1)}); err != nil {
		t.Fatal(err)
	}
	updating := func(state swarmpb.UpdateState) {
		w.put(&swarmpb.Row{Row: &swarmpb.Row_ServiceProgress{ServiceProgress: &swarmpb.ServiceProgress{
			ServiceId: r.GetId(), Update: &swarmpb.UpdateStatus{State: state, TemplateVersion: 2}}}})
	}
	updating(swarmpb.UpdateState_UPDATE_STATE_UPDATING)
	_, err = w.server.RemoveNetwork(ctx, &swarmpb.RemoveNetworkRequest{Network: "back"})
	expectError(t, err, wire.CodeInUse, `network "back"`, "web", "an update that is not over")
	updating(swarmpb.UpdateState_UPDATE_STATE_COMPLETED)
	if info, err := w.server.GetNetwork(ctx, &swarmpb.GetNetworkRequest{Network: "back"}); err != nil || len(info.GetNetwork().GetServices()) != 0 {
		t.Errorf("network %v, error %v", info, err)
	}
	if _, err := w.server.RemoveNetwork(ctx, &swarmpb.RemoveNetworkRequest{Network: "back"}); err != nil {
		t.Error(err)
	}
}

// TestCreateNetwork_NodeTellsItsDefaultRoute_IsNoReasonToRefuse: workers of other versions may.
func TestCreateNetwork_NodeTellsItsDefaultRoute_IsNoReasonToRefuse(t *testing.T) {
	w := newWorld(t)
	w.describe(self, &swarmpb.NodeNetwork{Routes: []string{"0.0.0.0/0", "::/0"}})
	w.network(subnet("a", "10.20.0.0/24"))
	_, err := w.server.CreateNetwork(ctx, &swarmpb.CreateNetworkRequest{Spec: subnet("b", "100.64.0.0/24")})
	expectError(t, err, wire.CodeInvalid, swarmpb.DefaultFabricPool) // in force though the cluster's spec does not say so
}

func TestGetService_PortTakenOnANode_IsShownWithNodeAndProcess(t *testing.T) {
	w := newWorld(t)
	id := w.create("web", 1)
	p := &swarmpb.PortConfig{PublishedPort: 8080, TargetPort: 80, Protocol: swarmpb.Protocol_PROTOCOL_TCP}
	w.put(&swarmpb.Row{Row: &swarmpb.Row_ServiceEndpoint{ServiceEndpoint: &swarmpb.ServiceEndpoint{ServiceId: id, Ports: []*swarmpb.PortConfig{p}}}})
	w.describe(self, &swarmpb.NodeNetwork{Conflicts: []*swarmpb.PortConflict{
		{Protocol: swarmpb.Protocol_PROTOCOL_TCP, Port: 8080, Process: "nginx (pid 12)"}, {Protocol: swarmpb.Protocol_PROTOCOL_TCP, Port: 81}}})
	r, err := w.server.GetService(context.Background(), &swarmpb.GetServiceRequest{Service: "web"})
	if err != nil {
		t.Fatal(err)
	}
	got := r.GetService().GetConflicts()
	if len(got) != 1 || got[0].GetHostname() != "boss" || got[0].GetConflict().GetProcess() != "nginx (pid 12)" {
		t.Errorf("conflicts %v", got)
	}
}

func TestGetService_OnANetwork_AnswersItsName(t *testing.T) {
	w := newWorld(t)
	back := w.network(&swarmpb.NetworkSpec{Name: "back"}).GetId()
	id := w.create("web", 1)
	w.put(&swarmpb.Row{Row: &swarmpb.Row_ServiceEndpoint{ServiceEndpoint: &swarmpb.ServiceEndpoint{
		ServiceId: id, Vips: []*swarmpb.NetworkAddress{{NetworkId: back, Address: "10.0.0.254"}, {NetworkId: "gone", Address: "10.0.1.254"}},
	}}})
	r, err := w.server.GetService(context.Background(), &swarmpb.GetServiceRequest{Service: "web"})
	if err != nil {
		t.Fatal(err)
	}
	if got := r.GetService().GetNetworkNames(); len(got) != 1 || got[back] != "back" {
		t.Errorf("names %v", got)
	}
}

func TestGetTask_WithAddresses_AnswersThemAndTheNetworksNames(t *testing.T) {
	w := newWorld(t)
	back := w.network(&swarmpb.NetworkSpec{Name: "back"}).GetId()
	r, err := w.server.CreateService(context.Background(), &swarmpb.CreateServiceRequest{Spec: on(spec("web", "web:1", 1), "back")})
	if err != nil {
		t.Fatal(err)
	}
	task := w.task(r.GetId(), 1, 1, "")
	w.put(&swarmpb.Row{Row: &swarmpb.Row_TaskAddresses{TaskAddresses: &swarmpb.TaskAddresses{
		TaskId: task, Networks: []*swarmpb.NetworkAddress{{NetworkId: back, Address: "10.0.0.2"}},
	}}})
	got, err := w.server.GetTask(context.Background(), &swarmpb.GetTaskRequest{Task: task})
	if err != nil {
		t.Fatal(err)
	}
	if a := got.GetTask().GetAddresses().GetNetworks(); len(a) != 1 || a[0].GetAddress() != "10.0.0.2" || got.GetNetworkNames()[back] != "back" {
		t.Errorf("addresses %v, names %v", a, got.GetNetworkNames())
	}
}

func TestGetNetwork_RouteOfAHostOverlaps_NamesNodeAndRoute(t *testing.T) {
	w := newWorld(t)
	id := w.network(&swarmpb.NetworkSpec{Name: "back"}).GetId()
	w.put(&swarmpb.Row{Row: &swarmpb.Row_NetworkProgress{NetworkProgress: &swarmpb.NetworkProgress{NetworkId: id, Vni: 4096, Subnet: "10.0.4.0/24"}}})
	overlaps := func() []string {
		r, err := w.server.GetNetwork(context.Background(), &swarmpb.GetNetworkRequest{Network: "back"})
		if err != nil {
			t.Fatal(err)
		}
		return r.GetNetwork().GetOverlaps()
	}
	w.describe(self, &swarmpb.NodeNetwork{Routes: []string{"0.0.0.0/0", "10.0.5.0/24"}})
	if got := overlaps(); len(got) > 0 {
		t.Errorf("overlaps %q", got)
	}
	w.describe(self, &swarmpb.NodeNetwork{Routes: []string{"0.0.0.0/0", "10.0.0.0/16"}})
	if got := overlaps(); len(got) != 1 || !strings.Contains(got[0], "node boss reaches 10.0.0.0/16") {
		t.Errorf("overlaps %q", got)
	}
}
