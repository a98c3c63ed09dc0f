package allocator

import (
	"fmt"
	"testing"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

func (l *lab) overlapAlarms() (out []string) {
	for a := range l.View().Alarms() {
		if a.GetKind() == RouteOverlapAlarm {
			out = append(out, a.GetMessage())
		}
	}
	return out
}

func TestOverlaps_RouteAppearsAfterTheSubnet_RaisesAnAlarmUntilItHasGone(t *testing.T) {
	l := newLab(t, &swarmpb.ClusterSpec{})
	l.host("n1", "192.168.1.1", "0.0.0.0/0", "192.168.1.0/24")
	l.host("n2", "192.168.1.2", "0.0.0.0/0", "192.168.1.0/24")
	l.network(&swarmpb.NetworkSpec{Name: "back", Ipv6: true, Subnets: []*swarmpb.NetworkSubnet{{Subnet: "10.0.4.0/24"}, {Subnet: "fd00:20::/64"}}})
	l.network(&swarmpb.NetworkSpec{Name: "front"})
	l.settle()
	if got := l.overlapAlarms(); len(got) > 0 {
		t.Fatalf("alarms %q", got)
	}
	l.host("n2", "192.168.1.2", "0.0.0.0/0", "nonsense", "10.0.4.128/25")
	l.settle()
	got := l.overlapAlarms()
	if len(got) != 1 {
		t.Fatalf("alarms %q", got)
	}
	says(t, got[0], "node n2", "10.0.4.128/25", "10.0.4.0/24", `network "back"`, "--subnet")
	l.host("n1", "192.168.1.1", "fd00:20::/32")
	l.settle()
	if got := l.overlapAlarms(); len(got) != 2 {
		t.Errorf("alarms %q", got)
	}
	l.host("n2", "192.168.1.2", "0.0.0.0/0")
	l.settle()
	if got := l.overlapAlarms(); len(got) != 1 {
		t.Errorf("alarms %q", got)
	}
	l.write(remove(swarmpb.NodeKey("n1")))
	l.settle()
	if got := l.overlapAlarms(); len(got) > 0 {
		t.Errorf("alarms %q", got)
	}
}

func TestOverlaps_ManyNodes_AlarmsAreBounded(t *testing.T) {
	l := newLab(t, &swarmpb.ClusterSpec{})
	l.network(&swarmpb.NetworkSpec{Name: "back", Subnets: []*swarmpb.NetworkSubnet{{Subnet: "10.0.4.0/24"}}})
	l.settle()
	for i := range maxOverlapAlarms + 5 {
		l.host(fmt.Sprint("n", i), fmt.Sprint("192.168.1.", i+1), "10.0.0.0/16")
	}
	l.settle()
	if got := l.overlapAlarms(); len(got) != maxOverlapAlarms {
		t.Errorf("%d alarms, want %d", len(got), maxOverlapAlarms)
	}
}
