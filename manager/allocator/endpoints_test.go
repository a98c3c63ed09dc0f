package allocator

import (
	"slices"
	"testing"
	"time"

	"github.com/swarmd/swarmd/manager/reconcile"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

func tcp(published, target uint32) *swarmpb.PortConfig {
	return &swarmpb.PortConfig{PublishedPort: published, TargetPort: target}
}

func (l *lab) endpoint(id string) *swarmpb.ServiceEndpoint { return l.View().ServiceEndpoint(id) }

func TestEndpoints_PortTaken_NamesTheOwnerAndRecovers(t *testing.T) {
	l := newLab(t, &swarmpb.ClusterSpec{})
	l.service("api", nil, 0, tcp(8080, 80))
	l.service("web", nil, 0, tcp(8080, 80), tcp(8443, 443))
	l.settle()
	l.check()
	says(t, l.endpoint("web").GetMessage(), `publish 8080: the port is already published by service "api"; choose another port or remove it there`)
	if ports := l.endpoint("web").GetPorts(); len(ports) != 1 || ports[0].GetPublishedPort() != 8443 {
		t.Fatalf("web got %v", ports)
	}
	l.service("api", nil, 0)
	l.settle()
	l.check()
	if web := l.endpoint("web"); len(web.GetPorts()) != 2 || web.GetMessage() != "" {
		t.Fatalf("web got %v", web)
	}
	if l.endpoint("api") != nil {
		t.Fatal("a service that asks for nothing has a row")
	}
	if got := l.endpoint("web").GetServiceVersion(); got != l.View().Service("web").GetMeta().GetVersion() {
		t.Fatalf("made for version %d", got)
	}
}

func TestEndpoints_BothWantThePortAtOnce_OneIsToldWhoHasIt(t *testing.T) {
	l := newLab(t, &swarmpb.ClusterSpec{})
	l.service("a", nil, 0, tcp(30000, 80))
	l.service("b", nil, 0, tcp(0, 80), tcp(0, 80), tcp(30000, 81), &swarmpb.PortConfig{PublishedPort: 9, TargetPort: 9, Protocol: 77})
	l.settle()
	says(t, l.endpoint("b").GetMessage(), `publish 30000: the port is already published by service "a"`, "publish 9: this version does not know the protocol")
	ports := l.endpoint("b").GetPorts()
	if len(ports) != 2 || ports[0].GetPublishedPort() != 30001 || ports[1].GetPublishedPort() != 30002 {
		t.Fatalf("b got %v", ports)
	}
}

func TestEndpoints_ThousandPorts_AreGivenAndTakenBackInParts(t *testing.T) {
	l := newLab(t, &swarmpb.ClusterSpec{})
	var named, open []*swarmpb.PortConfig
	for i := range uint32(1000) {
		named = append(named, tcp(20000+i, 1+i))
		open = append(open, tcp(0, 1+i))
	}
	for _, ports := range [][]*swarmpb.PortConfig{named, open, named[:10], open} {
		l.service("svc-a", nil, 0, ports...)
		l.service("svc-b", nil, 0, tcp(0, 80))
		l.settle()
		l.check()
		if got := l.endpoint("svc-a"); len(got.GetPorts()) != len(ports) || got.GetServiceVersion() != l.View().Service("svc-a").GetMeta().GetVersion() {
			t.Fatalf("%d ports were given of %d", len(got.GetPorts()), len(ports))
		}
	}
	l.removeAll(l.advance)
}

func TestEndpoints_OpenPortsAllTaken_AlarmUntilOneIsFree(t *testing.T) {
	l := newLab(t, &swarmpb.ClusterSpec{})
	services := []string{"a", "b", "c"}
	for i, id := range services {
		var ports []*swarmpb.PortConfig
		for n := range uint32(1000) {
			if at := FirstPort + uint32(i)*1000 + n; at <= LastPort {
				ports = append(ports, tcp(at, 80))
			}
		}
		l.service(id, nil, 0, ports...)
	}
	l.service("late", nil, 0, tcp(0, 80))
	l.settle()
	says(t, l.endpoint("late").GetMessage(), "no port of 30000 to 32767 is free for tcp port 80")
	says(t, l.View().Alarm(PoolFullAlarm, PortPool(0)).GetMessage(), "tcp", "1 more are wanted")
	l.removeService("c")
	l.advance(Rest - time.Second)
	if len(l.endpoint("late").GetPorts()) != 0 {
		t.Fatal("a port was given before it had rested")
	}
	l.advance(time.Minute)
	if got := l.endpoint("late"); len(got.GetPorts()) != 1 || got.GetPorts()[0].GetPublishedPort() != 32000 || l.View().Alarm(PoolFullAlarm, PortPool(0)) != nil {
		t.Fatalf("late got %v", got)
	}
}

// once runs one plan of the endpoints' reconciler.
func (l *lab) once(id string) {
	l.Helper()
	plan, err := Endpoints{}.Reconcile(l.View(), reconcile.ID{Object: id}, l.Now())
	if err != nil || len(plan.Writes) == 0 {
		l.Fatalf("plan %v, error %v", plan, err)
	}
	l.write(plan.Writes...)
}

func TestEndpoints_ServiceAsksForNothingAfterAPart_LetsGoOfIt(t *testing.T) {
	l := newLab(t, &swarmpb.ClusterSpec{})
	var open []*swarmpb.PortConfig
	for i := range uint32(1000) {
		open = append(open, tcp(0, 1+i))
	}
	l.service("web", nil, 0, open...)
	l.once(endpointsID)
	l.service("web", nil, 0)
	l.settle()
	l.check()
	for row := range l.View().AllocationsOf("web") {
		t.Fatalf("a service that asks for nothing has %s of %s", row.GetAddress(), row.GetPool())
	}
}

func TestEndpoints_DataPathPortAmongThoseToChooseFrom_IsGivenToNobody(t *testing.T) {
	l := newLab(t, &swarmpb.ClusterSpec{DataPathPort: 30001})
	udp := &swarmpb.PortConfig{TargetPort: 53, Protocol: swarmpb.Protocol_PROTOCOL_UDP}
	l.service("web", nil, 0, udp, udp, tcp(0, 80), tcp(0, 81))
	l.settle()
	var got []uint32
	for _, port := range l.endpoint("web").GetPorts() {
		got = append(got, port.GetPublishedPort())
	}
	if !slices.Equal(got, []uint32{30000, 30002, 30000, 30001}) {
		t.Fatalf("ports %v", got)
	}
}

func TestEndpoints_OwnerIsGone_PortIsGivenInAMoment(t *testing.T) {
	l := newLab(t, &swarmpb.ClusterSpec{})
	l.service("old", nil, 0, tcp(8080, 80))
	l.settle()
	l.write(remove(swarmpb.ServiceKey("old")))
	l.service("new", nil, 0, tcp(8080, 80))
	l.once(endpointsID)
	says(t, l.endpoint("new").GetMessage(), "publish 8080: a service that was removed has just had the port")
	l.settle()
	if got := l.endpoint("new"); len(got.GetPorts()) != 1 || got.GetMessage() != "" {
		t.Fatalf("new got %v", got)
	}
}

func TestEndpoints_PreviewPorts_AreGivenLikeTheOthersAndStay(t *testing.T) {
	l := newLab(t, &swarmpb.ClusterSpec{})
	l.service("api", nil, 0, tcp(8080, 80))
	l.previews = []*swarmpb.PortConfig{tcp(8080, 80), tcp(8081, 80), tcp(0, 80)}
	l.service("web", nil, 0, tcp(0, 80))
	l.settle()
	l.check()
	web := l.endpoint("web")
	says(t, web.GetMessage(), `publish 8080: the port is already published by service "api"`)
	ports, previews := web.GetPorts(), web.GetPreviewPorts()
	if len(ports) != 1 || ports[0].GetPublishedPort() != 30000 || len(previews) != 2 || previews[0].GetPublishedPort() != 8081 || previews[1].GetPublishedPort() != 30001 {
		t.Fatalf("web got %v", web)
	}

	// A port that comes before the preview takes neither's number.
	l.previews = []*swarmpb.PortConfig{tcp(0, 80)}
	l.service("web", nil, 0, tcp(0, 81), tcp(0, 80))
	l.settle()
	l.check()
	web = l.endpoint("web")
	if ports := web.GetPorts(); len(ports) != 2 || ports[0].GetPublishedPort() != 30002 || ports[1].GetPublishedPort() != 30000 ||
		len(web.GetPreviewPorts()) != 1 || web.GetPreviewPorts()[0].GetPublishedPort() != 30001 || web.GetMessage() != "" {
		t.Fatalf("web got %v", web)
	}

	// With a preview alone it is reached all the same; with neither it lets go of everything.
	l.service("web", nil, 0)
	l.settle()
	l.check()
	if web := l.endpoint("web"); len(web.GetPorts()) != 0 || len(web.GetPreviewPorts()) != 1 {
		t.Fatalf("web got %v", web)
	}
	l.previews = nil
	l.service("web", nil, 0)
	l.settle()
	l.check()
	if l.endpoint("web") != nil {
		t.Fatal("a service that asks for nothing has a row")
	}
}
