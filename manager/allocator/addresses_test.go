package allocator

import (
	"fmt"
	"testing"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

func TestAddresses_MoreTasksThanASubnetHas_TheRestSayWhyAndGoOnLater(t *testing.T) {
	l := newLab(t, &swarmpb.ClusterSpec{})
	l.network(&swarmpb.NetworkSpec{Name: "back"})
	l.service("web", []string{"back"}, swarmpb.EndpointMode_ENDPOINT_MODE_DNSRR)
	l.scale("web", 265)
	l.settle()
	l.check()
	want := "network back (10.0.0.0/24) is full: 253 addresses are in use, 12 more are wanted; "
	for i := 254; i <= 265; i++ {
		says(t, l.View().Addresses(fmt.Sprint("web.", i)).GetMessage(), want)
	}
	says(t, l.View().Alarm(PoolFullAlarm, NetworkPool("back")).GetMessage(), want)
	before := l.View().Alarm(PoolFullAlarm, NetworkPool("back")).GetCount()
	l.Relist()
	l.settle()
	if l.View().Alarm(PoolFullAlarm, NetworkPool("back")).GetCount() != before {
		t.Error("the alarm is raised again though nothing has changed")
	}
	for i := range 12 {
		l.endTask(fmt.Sprint("web.", 1+i))
	}
	l.advance(2 * Rest)
	l.check()
	if l.View().Count("web", 1, swarmpb.TaskState_TASK_STATE_NEW) != 0 || l.View().Alarm(PoolFullAlarm, NetworkPool("back")) != nil {
		t.Fatal("tasks wait, or the alarm outlives its cause")
	}
}

func TestAddresses_TaskInSeveralNetworks_GetsOneOfEachInTheirOrder(t *testing.T) {
	l := newLab(t, &swarmpb.ClusterSpec{})
	for _, id := range []string{"c", "a", "b"} {
		l.network(&swarmpb.NetworkSpec{Name: id})
	}
	l.service("web", []string{"b", "c", "a"}, 0)
	l.scale("web", 2)
	l.settle()
	l.check()
	row := l.View().Addresses("web.2")
	if len(row.GetNetworks()) != 3 || row.GetNetworks()[0].GetNetworkId() != "b" || row.GetNetworks()[2].GetNetworkId() != "a" {
		t.Fatalf("addresses %v", row)
	}
}

func TestAddresses_TaskThatIsToStop_GetsNone(t *testing.T) {
	l := newLab(t, &swarmpb.ClusterSpec{})
	l.network(&swarmpb.NetworkSpec{Name: "a"})
	l.service("web", []string{"a"}, 0)
	l.scale("web", 1)
	l.write(&swarmpb.Write{Op: &swarmpb.Write_SetTaskState{SetTaskState: &swarmpb.SetTaskState{
		TaskId: "web.1", DesiredState: swarmpb.TaskState_TASK_STATE_SHUTDOWN,
	}}})
	l.settle()
	if l.View().Addresses("web.1") != nil {
		t.Fatal("it got addresses")
	}
}

func TestAddresses_LeftBehindByAnEarlierLeader_AreReleased(t *testing.T) {
	l := newLab(t, &swarmpb.ClusterSpec{})
	l.network(&swarmpb.NetworkSpec{Name: "net-a"})
	l.settle()
	// Somebody crashed between the release of an owner and that of what it had.
	l.write(allocation(NetworkPool("net-a"), "10.0.0.9", "gone"), allocation(PortPool(0), "30005", "gone"))
	l.Relist()
	l.settle()
	l.check()
	l.removeAll(l.advance)
}

// small is a network of five addresses, all of which a service of its own has.
func (l *lab) small(id string) {
	l.Helper()
	l.network(&swarmpb.NetworkSpec{Name: id, Subnets: []*swarmpb.NetworkSubnet{{Subnet: "10.0.0.0/29"}}})
	l.service("in-"+id, []string{id}, swarmpb.EndpointMode_ENDPOINT_MODE_DNSRR)
	l.scale("in-"+id, 5)
	l.settle()
}

func TestAddresses_TwoNetworksFull_TheOneThatStillIsIsNamed(t *testing.T) {
	for _, first := range []string{"a", "b"} {
		l := newLab(t, &swarmpb.ClusterSpec{})
		l.small("a")
		l.small("b")
		l.service("web", []string{"a", "b"}, swarmpb.EndpointMode_ENDPOINT_MODE_DNSRR)
		l.scale("web", 1)
		l.settle()
		l.deleteTask("in-" + first + ".1")
		l.advance(2 * Rest)
		l.check()
		still := map[string]string{"a": "b", "b": "a"}[first]
		says(t, l.View().Addresses("web.1").GetMessage(), "network "+still+" (10.0.0.0/29) is full: 5 addresses are in use, 1 more are wanted")
		l.deleteTask("in-" + still + ".1")
		l.advance(2 * Rest)
		l.check()
		if row := l.View().Addresses("web.1"); row.GetMessage() != "" || len(row.GetNetworks()) != 2 {
			t.Fatalf("addresses %v", row)
		}
	}
}

func TestAddresses_FullNetworkIsToGo_AlarmEnds(t *testing.T) {
	l := newLab(t, &swarmpb.ClusterSpec{})
	l.small("a")
	l.scale("in-a", 1)
	l.settle()
	l.removeService("in-a")
	if !l.removeNetwork("a") {
		t.Fatal("refused")
	}
	l.settle()
	if alarm := l.View().Alarm(PoolFullAlarm, NetworkPool("a")); alarm != nil {
		t.Fatal(alarm)
	}
}

func TestAddresses_WaiterForAVIPIsToGo_AlarmSaysWhoElseWaits(t *testing.T) {
	l := newLab(t, &swarmpb.ClusterSpec{})
	l.small("a")
	l.service("web", []string{"a"}, 0)
	l.scale("web", 1)
	l.settle()
	says(t, l.View().Alarm(PoolFullAlarm, NetworkPool("a")).GetMessage(), "5 addresses are in use, 2 more are wanted")
	l.removeService("web")
	for i := range 4 {
		l.deleteTask(fmt.Sprint("in-a.", 1+i))
	}
	l.advance(2 * Rest)
	l.check()
	if alarm := l.View().Alarm(PoolFullAlarm, NetworkPool("a")); alarm != nil {
		t.Fatal(alarm)
	}
}

func TestAddresses_LastThatWaitedIsDeleted_AlarmEnds(t *testing.T) {
	l := newLab(t, &swarmpb.ClusterSpec{})
	l.small("a")
	l.scale("in-a", 2)
	l.settle()
	says(t, l.View().Alarm(PoolFullAlarm, NetworkPool("a")).GetMessage(), "2 more are wanted")
	l.deleteTask("in-a.6")
	l.settle()
	says(t, l.View().Alarm(PoolFullAlarm, NetworkPool("a")).GetMessage(), "1 more are wanted")
	l.deleteTask("in-a.7")
	l.settle()
	if alarm := l.View().Alarm(PoolFullAlarm, NetworkPool("a")); alarm != nil {
		t.Fatal(alarm)
	}
}
