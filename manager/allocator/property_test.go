package allocator

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/swarmd/swarmd/manager/reconcile/script"
	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// tb is what a test and a property have in common.
type tb interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

// lab is a cluster in virtual time with the allocator's loops.
type lab struct {
	tb
	*script.World
	tasks map[string]int // made so far, by service
	// previews are the preview ports of the services that are made next.
	previews []*swarmpb.PortConfig
}

func newLab(t tb, spec *swarmpb.ClusterSpec) *lab {
	t.Helper()
	world, err := script.New(Reconcilers()...)
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{tb: t, World: world, tasks: map[string]int{}}
	l.write(putRow(&swarmpb.Row{Row: &swarmpb.Row_Cluster{Cluster: &swarmpb.Cluster{Id: "cluster", Spec: spec}}}))
	return l
}

// try writes; false when the store refuses it.
func (l *lab) try(writes ...*swarmpb.Write) bool {
	l.Helper()
	err := l.World.Write(writes...)
	var conflict *store.ConflictError
	if err != nil && !errors.As(err, &conflict) {
		l.Fatal(err)
	}
	return err == nil
}

func (l *lab) write(writes ...*swarmpb.Write) {
	l.Helper()
	if err := l.World.Write(writes...); err != nil {
		l.Fatal(err)
	}
}

func (l *lab) settle() {
	l.Helper()
	if err := l.Settle(); err != nil {
		l.Fatal(err)
	}
}

func (l *lab) advance(d time.Duration) {
	l.Helper()
	if err := l.Advance(d); err != nil {
		l.Fatal(err)
	}
}

func (l *lab) network(spec *swarmpb.NetworkSpec) bool {
	l.Helper()
	return l.try(putRow(&swarmpb.Row{Row: &swarmpb.Row_Network{Network: &swarmpb.Network{Id: spec.Name, Spec: spec}}}))
}

func (l *lab) removeNetwork(id string) bool {
	l.Helper()
	n := swarmpb.Clone(l.View().Network(id))
	n.Removing = true
	return l.try(putRow(&swarmpb.Row{Row: &swarmpb.Row_Network{Network: n}}))
}

// service makes a service or gives it its next template.
func (l *lab) service(id string, networks []string, mode swarmpb.EndpointMode, ports ...*swarmpb.PortConfig) bool {
	l.Helper()
	spec := &swarmpb.ServiceSpec{Name: id, Task: &swarmpb.TaskSpec{}, Endpoint: &swarmpb.EndpointSpec{Mode: mode, Ports: ports},
		Update: &swarmpb.UpdateConfig{PreviewPorts: l.previews}}
	for _, n := range networks {
		spec.Task.Networks = append(spec.Task.Networks, &swarmpb.NetworkAttachment{Network: n})
	}
	version := l.View().Service(id).GetTemplateVersion() + 1
	return l.try(
		putRow(&swarmpb.Row{Row: &swarmpb.Row_Service{Service: &swarmpb.Service{Id: id, Spec: spec, TemplateVersion: version}}}),
		putRow(&swarmpb.Row{Row: &swarmpb.Row_Template{Template: &swarmpb.Template{ServiceId: id, Version: version, Spec: spec.Task}}}))
}

// scale makes more tasks of a service's newest template.
func (l *lab) scale(service string, n int) {
	l.Helper()
	var writes []*swarmpb.Write
	for range n {
		l.tasks[service]++
		slot := uint64(l.tasks[service])
		writes = append(writes, putRow(&swarmpb.Row{Row: &swarmpb.Row_Task{Task: &swarmpb.Task{
			Id: fmt.Sprintf("%s.%d", service, slot), ServiceId: service, Slot: slot, Attempt: slot,
			TemplateVersion: l.View().Service(service).GetTemplateVersion(), DesiredState: swarmpb.TaskState_TASK_STATE_RUNNING,
		}}}))
	}
	for part := range slices.Chunk(writes, store.MaxWrites) {
		l.write(part...)
	}
}

func (l *lab) endTask(id string) {
	l.Helper()
	l.write(&swarmpb.Write{Op: &swarmpb.Write_MergeStatus{MergeStatus: &swarmpb.TaskStatus{
		TaskId: id, State: swarmpb.TaskState_TASK_STATE_FAILED, At: l.Now().UnixNano(),
	}}})
}

func (l *lab) deleteTask(id string) {
	l.Helper()
	l.write(remove(swarmpb.TaskKey(id)))
}

// removeService marks it, and deletes it once it has no tasks.
func (l *lab) removeService(id string) {
	l.Helper()
	service := swarmpb.Clone(l.View().Service(id))
	if l.View().TaskCountOf(id) == 0 {
		l.write(remove(swarmpb.ServiceKey(id)))
		return
	}
	service.Removing = true
	l.write(putRow(&swarmpb.Row{Row: &swarmpb.Row_Service{Service: service}}))
}

// check compares rows and owners both ways.
func (l *lab) check() {
	l.Helper()
	view := l.View()
	if err := view.Verify(); err != nil {
		l.Fatal(err)
	}
	held := map[string]string{} // pool and address -> owner, as tasks and services say
	claim := func(pool, address, owner string) {
		at := pool + " " + address
		if other := held[at]; other != "" {
			l.Fatalf("%s belongs to %s and %s", at, other, owner)
		}
		held[at] = owner
	}
	l.claimTasks(claim)
	l.claimServices(claim)
	l.claimNetworks(claim)
	for _, pool := range l.pools() {
		for row := range view.Allocations(pool) {
			at := pool + " " + row.GetAddress()
			if row.GetOwner() != held[at] {
				l.Fatalf("%s has the owner %q, and belongs to %q", at, row.GetOwner(), held[at])
			}
			delete(held, at)
		}
	}
	for at, owner := range held {
		l.Fatalf("%s of %s has no row", at, owner)
	}
	l.checkAlarms()
}

// checkAlarms fails when an alarm does not say how many addresses are in use.
func (l *lab) checkAlarms() {
	l.Helper()
	for alarm := range l.View().Alarms() {
		if alarm.GetKind() != PoolFullAlarm || !isNetworkPool(alarm.GetObject()) {
			continue
		}
		used := 0
		for row := range l.View().Allocations(alarm.GetObject()) {
			if row.GetOwner() != "" && row.GetOwner() != Gateway {
				used++
			}
		}
		if text := fmt.Sprintf("full: %d addresses are in use,", used); !strings.Contains(alarm.GetMessage(), text) {
			l.Fatalf("alarm %q, want %q", alarm.GetMessage(), text)
		}
	}
}

// pools are all that the networks' reconcilers use, also those of networks that are gone.
func (l *lab) pools() []string {
	pools := append(portPools(), SubnetPool, VNIPool)
	for _, id := range someNetworks {
		pools = append(pools, NetworkPool(id))
	}
	for n := range l.View().Networks() {
		if pool := NetworkPool(n.GetId()); !slices.Contains(pools, pool) {
			pools = append(pools, pool)
		}
	}
	return pools
}

func (l *lab) claimTasks(claim func(pool, address, owner string)) {
	l.Helper()
	view := l.View()
	for task := range view.Tasks() {
		if view.Observed(task.GetId()).Ended() {
			continue
		}
		for _, a := range view.Addresses(task.GetId()).GetNetworks() {
			claim(NetworkPool(a.GetNetworkId()), a.GetAddress(), task.GetId())
			l.checkAddress(a)
		}
		if view.Observed(task.GetId()) != swarmpb.TaskState_TASK_STATE_NEW {
			if text := view.Addresses(task.GetId()).GetMessage(); text != "" {
				l.Fatalf("task %s has its addresses and says %q", task.GetId(), text)
			}
			continue
		}
		full := 0
		for _, n := range view.Template(task.GetServiceId(), task.GetTemplateVersion()).GetSpec().GetNetworks() {
			if find(view.Addresses(task.GetId()).GetNetworks(), n.GetNetwork()) == nil && l.isFull(n.GetNetwork()) {
				full++
			}
		}
		if view.Service(task.GetServiceId()).GetRemoving() {
			continue // it is about to go, and its network may be as well
		}
		if full == 0 {
			l.Fatalf("task %s has no addresses, and no pool is full", task.GetId())
		}
		if view.Addresses(task.GetId()).GetMessage() == "" {
			l.Fatalf("task %s waits without a message", task.GetId())
		}
	}
}

// isFull tells whether a network has no address to give.
func (l *lab) isFull(networkID string) bool {
	view := l.View()
	if view.Network(networkID).GetRemoving() {
		return true
	}
	s, err := spaceOf(view.NetworkProgress(networkID))
	if err != nil {
		return true
	}
	if _, any := view.FirstFree(s.pool, s.first, s.last); any {
		return false
	}
	for row := range view.Resting(s.pool) {
		return rest(row).After(l.Now())
	}
	return true
}

func (l *lab) checkAddress(a *swarmpb.NetworkAddress) {
	l.Helper()
	progress := l.View().NetworkProgress(a.GetNetworkId())
	subnet := netip.MustParsePrefix(progress.GetSubnet())
	low, high := ends(subnet)
	addr := netip.MustParseAddr(a.GetAddress())
	n := number(addr)
	if !netip.MustParsePrefix(progress.GetIpRange()).Contains(addr) || n == low || n == high || a.GetAddress() == progress.GetGateway() {
		l.Fatalf("address %s was given in %v", a.GetAddress(), progress)
	}
	if progress.GetSubnet6() == "" {
		if a.GetAddress6() != "" {
			l.Fatalf("address %s was given in a network without IPv6", a.GetAddress6())
		}
		return
	}
	addr6 := netip.MustParseAddr(a.GetAddress6())
	host, ok := hostNumber(netip.MustParsePrefix(progress.GetSubnet6()), addr6)
	if !ok || host != n-low || a.GetAddress6() == progress.GetGateway6() {
		l.Fatalf("address %s goes with %s in %v", a.GetAddress6(), a.GetAddress(), progress)
	}
}

func (l *lab) claimServices(claim func(pool, address, owner string)) {
	l.Helper()
	view := l.View()
	for service := range view.Services() {
		endpoint := view.ServiceEndpoint(service.GetId())
		for _, a := range endpoint.GetVips() {
			claim(NetworkPool(a.GetNetworkId()), a.GetAddress(), service.GetId())
			l.checkAddress(a)
		}
		for _, port := range slices.Concat(endpoint.GetPorts(), endpoint.GetPreviewPorts()) {
			claim(PortPool(port.GetProtocol()), fmt.Sprint(port.GetPublishedPort()), service.GetId())
		}
		if service.GetRemoving() {
			continue
		}
		wantedPorts, wantedVIPs := len(ingressPorts(service.GetSpec().GetEndpoint().GetPorts())), 0
		wantedPreviews := len(service.GetSpec().GetUpdate().GetPreviewPorts())
		if hasVIPs(service) {
			wantedVIPs = len(service.GetSpec().GetTask().GetNetworks())
		}
		lacks := len(endpoint.GetPorts()) < wantedPorts || len(endpoint.GetVips()) < wantedVIPs || len(endpoint.GetPreviewPorts()) < wantedPreviews
		if lacks != (endpoint.GetMessage() != "") || len(endpoint.GetPorts()) > wantedPorts || len(endpoint.GetVips()) > wantedVIPs ||
			len(endpoint.GetPreviewPorts()) > wantedPreviews {
			l.Fatalf("service %v got %v", service.GetSpec(), endpoint)
		}
		l.checkLacks(service, endpoint)
	}
}

// checkLacks fails when a service could have what it lacks.
func (l *lab) checkLacks(service *swarmpb.Service, endpoint *swarmpb.ServiceEndpoint) {
	l.Helper()
	view := l.View()
	for _, port := range ingressPorts(slices.Concat(service.GetSpec().GetEndpoint().GetPorts(), service.GetSpec().GetUpdate().GetPreviewPorts())) {
		address := fmt.Sprint(port.GetPublishedPort())
		if port.GetPublishedPort() != 0 && view.Allocation(PortPool(port.GetProtocol()), address).GetOwner() == "" {
			l.Fatalf("service %s lacks port %s, which is free", service.GetId(), address)
		}
	}
	for _, n := range service.GetSpec().GetTask().GetNetworks() {
		if hasVIPs(service) && find(endpoint.GetVips(), n.GetNetwork()) == nil && !l.isFull(n.GetNetwork()) {
			l.Fatalf("service %s lacks a VIP in %s, which is not full", service.GetId(), n.GetNetwork())
		}
	}
}

func (l *lab) claimNetworks(claim func(pool, address, owner string)) {
	l.Helper()
	view := l.View()
	var chosen []netip.Prefix
	for n := range view.Networks() {
		progress := view.NetworkProgress(n.GetId())
		if progress.GetSubnet() == "" {
			continue
		}
		claim(VNIPool, fmt.Sprint(progress.GetVni()), n.GetId())
		claim(NetworkPool(n.GetId()), progress.GetGateway(), Gateway)
		subnet := netip.MustParsePrefix(progress.GetSubnet())
		if subnet6, err := netip.ParsePrefix(progress.GetSubnet6()); err == nil {
			low, high := ends(subnet)
			host, _ := hostNumber(subnet6, netip.MustParseAddr(progress.GetGateway6()))
			if twin := store.NumberedAddress(low + host); low+host < high && twin != progress.GetGateway() {
				claim(NetworkPool(n.GetId()), twin, Gateway)
			}
		}
		if v4, _ := givenSubnets(n.GetSpec()); v4 != nil {
			continue
		}
		claim(SubnetPool, progress.GetSubnet(), n.GetId())
		for _, other := range chosen {
			if other.Overlaps(subnet) {
				l.Fatalf("network %s got %s, which overlaps %s", n.GetId(), subnet, other)
			}
		}
		chosen = append(chosen, subnet)
	}
}

var (
	someNetworks = []string{"net-a", "net-b", "net-c", "net-d"}
	someServices = []string{"svc-a", "svc-b", "svc-c"}
)

func drawNetwork(t *rapid.T) *swarmpb.NetworkSpec {
	spec := &swarmpb.NetworkSpec{Name: rapid.SampledFrom(someNetworks).Draw(t, "network"), Ipv6: rapid.Bool().Draw(t, "ipv6")}
	if rapid.Bool().Draw(t, "given") {
		spec.Subnets = append(spec.Subnets, &swarmpb.NetworkSubnet{
			Subnet:  "192.168.0.0/28",
			Gateway: rapid.SampledFrom([]string{"", "192.168.0.14", "192.168.0.5"}).Draw(t, "gateway"),
			IpRange: rapid.SampledFrom([]string{"", "192.168.0.0/29", "192.168.0.8/29"}).Draw(t, "range"),
		})
	}
	if spec.Ipv6 && rapid.Bool().Draw(t, "given6") {
		spec.Subnets = append(spec.Subnets, &swarmpb.NetworkSubnet{
			Subnet: "fd00:1::/64", Gateway: rapid.SampledFrom([]string{"", "fd00:1::4", "fd00:1::ffff"}).Draw(t, "gateway6"),
		})
	}
	return spec
}

func drawPorts(t *rapid.T) (ports []*swarmpb.PortConfig) {
	for i := range rapid.IntRange(0, 3).Draw(t, "ports") {
		ports = append(ports, &swarmpb.PortConfig{
			Protocol:      swarmpb.Protocol(rapid.IntRange(0, 2).Draw(t, "protocol")),
			TargetPort:    uint32(80 + i),
			PublishedPort: rapid.SampledFrom([]uint32{0, 8080, 30000, 30001}).Draw(t, "port"),
			Mode:          rapid.SampledFrom([]swarmpb.PublishMode{1, 1, 2}).Draw(t, "mode"),
		})
	}
	return ports
}

// step does something that users, the orchestrator or workers do.
func (l *lab) step(t *rapid.T) {
	view := l.View()
	service := rapid.SampledFrom(someServices).Draw(t, "service")
	switch rapid.IntRange(0, 9).Draw(t, "step") {
	case 0:
		if spec := drawNetwork(t); view.Network(spec.Name) == nil {
			l.network(spec)
		}
	case 1:
		if id := rapid.SampledFrom(someNetworks).Draw(t, "network"); view.Network(id) != nil {
			l.removeNetwork(id)
		}
	case 2, 3:
		if view.Service(service).GetRemoving() {
			return
		}
		networks := slices.DeleteFunc(slices.Clone(someNetworks), func(string) bool { return rapid.Bool().Draw(t, "out") })
		l.previews = nil
		if rapid.Bool().Draw(t, "previews") {
			l.previews = ingressPorts(drawPorts(t))
		}
		l.service(service, networks, swarmpb.EndpointMode(rapid.IntRange(0, 2).Draw(t, "mode")), drawPorts(t)...)
	case 4, 5, 6:
		if s := view.Service(service); s != nil && !s.GetRemoving() {
			l.scale(service, rapid.IntRange(1, 6).Draw(t, "tasks"))
		}
	case 7, 8:
		var ids []string
		for task := range view.TasksOf(service) {
			ids = append(ids, task.GetId())
		}
		for range rapid.IntRange(0, len(ids)).Draw(t, "many") {
			id := rapid.SampledFrom(ids).Draw(t, "task")
			switch {
			case l.View().Task(id) == nil:
			case rapid.Bool().Draw(t, "ends"):
				l.endTask(id)
			default:
				l.deleteTask(id)
			}
		}
	case 9:
		if view.Service(service) != nil {
			l.removeService(service)
		}
	}
}

func TestAllocator_AnyNetworksServicesTasksAndTime_RowsAndOwnersAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := newLab(t, &swarmpb.ClusterSpec{DefaultAddrPools: []string{"10.0.0.0/27"}, DefaultAddrPoolMaskLength: 28})
		freed := map[string]time.Time{}
		owners := map[string]string{}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			l.step(t)
			if rapid.IntRange(0, 9).Draw(t, "new leader") == 0 {
				l.Relist()
			}
			l.settle()
			l.check()
			l.checkRests(owners, freed)
			l.advance(time.Duration(rapid.IntRange(0, 200).Draw(t, "seconds")) * time.Second)
			l.check()
			l.checkRests(owners, freed)
		}
		l.removeAll(l.advance)
	})
}

// checkRests compares who has what with a look before.
func (l *lab) checkRests(owners map[string]string, freed map[string]time.Time) {
	l.Helper()
	now := map[string]string{}
	for _, pool := range l.pools() {
		for row := range l.View().Allocations(pool) {
			if row.GetOwner() != "" {
				now[pool+" "+row.GetAddress()] = row.GetOwner()
			}
		}
	}
	for at, owner := range now {
		was, until := owners[at], freed[at].Add(Rest)
		// Ports that are named, and the rows of a network that is made anew under its old ID, do not rest.
		if was != owner && l.Now().Before(until) && !isPortPool(at) && owner != Gateway && l.View().Service(owner) == nil && !isNew(at, l) {
			l.Fatalf("%s went to %s at %s, before the end of its rest at %s", at, owner, l.Now(), until)
		}
	}
	for at := range owners {
		if now[at] == "" {
			freed[at] = l.Now()
		}
	}
	clear(owners)
	maps.Copy(owners, now)
}

// isNew tells whether the pool is that of a network that was made within the rest.
func isNew(at string, l *lab) bool {
	for n := range l.View().Networks() {
		if pool := NetworkPool(n.GetId()) + " "; len(at) > len(pool) && at[:len(pool)] == pool {
			return l.Now().Sub(time.Unix(0, n.GetMeta().GetCreatedAt())) < Rest
		}
	}
	return false
}

// removeAll removes everything, and fails when something is left once the rests are over.
func (l *lab) removeAll(pass func(time.Duration)) {
	l.Helper()
	for _, id := range someServices {
		if l.View().Service(id) == nil {
			continue
		}
		l.removeService(id)
		var ids []string
		for task := range l.View().TasksOf(id) {
			ids = append(ids, task.GetId())
		}
		for _, task := range ids {
			l.deleteTask(task)
		}
		if l.View().Service(id) != nil {
			l.removeService(id)
		}
	}
	pass(time.Minute)
	for _, id := range someNetworks {
		if l.View().Network(id) != nil && !l.removeNetwork(id) {
			l.Fatalf("network %s is kept: %s", id, l.View().NetworkInUse(id))
		}
	}
	pass(2 * Rest)
	if n := l.View().NetworkCount(); n != 0 {
		l.Fatalf("%d networks are left", n)
	}
	for _, pool := range l.pools() {
		for row := range l.View().Allocations(pool) {
			l.Fatalf("%v is left", row)
		}
	}
	for alarm := range l.View().Alarms() {
		l.Fatalf("alarm %v is left", alarm)
	}
}
