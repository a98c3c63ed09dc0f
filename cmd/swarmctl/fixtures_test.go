package main

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

const (
	clusterID = "cluster0000000000000000cc"
	n1ID      = "node1000000000000000000n1"
	n2ID      = "node2000000000000000000n2"
	webID     = "web0000000000000000000web"
	apiID     = "api0000000000000000000api"
)

// before is a time so long before noon.
func before(d time.Duration) int64 { return noon.Add(-d).UnixNano() }

func infoFixture(worker bool) *swarmpb.GetInfoResponse {
	info := &swarmpb.GetInfoResponse{
		Membership: swarmpb.Membership_MEMBERSHIP_ACTIVE, NodeId: n1ID, ClusterId: clusterID, Role: swarmpb.NodeRole_NODE_ROLE_MANAGER,
		AdvertiseAddress: "10.0.0.1:2377", Description: description("n1"), Version: "1.0.0", DataDir: "/var/lib/swarmd", RunDir: "/run/swarmd",
		RunningContainers: 2, ContainerdAddress: "/run/swarmd/containerd.sock", CertificateExpiresAt: before(-90 * 24 * time.Hour),
	}
	if worker {
		info.NodeId, info.Role, info.Description = n2ID, swarmpb.NodeRole_NODE_ROLE_WORKER, description("n2")
		info.ConnectedTo, info.AdvertiseAddress = "10.0.0.1:2377", "10.0.0.2:2377"
	}
	return info
}

func clusterFixture() *swarmpb.GetClusterResponse {
	return &swarmpb.GetClusterResponse{
		Id: clusterID, Spec: &swarmpb.ClusterSpec{FabricPool: "100.64.0.0/10"}, RootDigest: strings.Repeat("ab", 32),
		Nodes: 2, Managers: 1, ReachableManagers: 1, Services: 2, Tasks: 3, Leader: n1ID, Drains: &swarmpb.Drains{Noted: 7, Late: 1},
		Alarms: []*swarmpb.Alarm{{Kind: "pool-full", Object: "uplink/" + n2ID, Message: "no address is free", Since: before(2 * time.Hour), Count: 3}},
	}
}

func description(hostname string) *swarmpb.NodeDescription {
	return &swarmpb.NodeDescription{
		Hostname: hostname, Platform: &swarmpb.Platform{Os: "linux", Architecture: "amd64"},
		Resources: &swarmpb.Resources{NanoCpus: 4e9, MemoryBytes: 8 << 30},
		Engine:    &swarmpb.EngineDescription{Version: "1.0.0", ContainerdVersion: "2.1.4", OciRuntime: "runc 1.3.0"},
	}
}

func nodeFixtures() []*swarmpb.NodeInfo {
	node := func(id, hostname, address string, role swarmpb.NodeRole, state swarmpb.NodeState) *swarmpb.NodeInfo {
		return &swarmpb.NodeInfo{
			Node: &swarmpb.Node{
				Id: id, Role: role, CertificateExpiresAt: before(-90 * 24 * time.Hour), Meta: &swarmpb.Meta{Version: 7, CreatedAt: before(72 * time.Hour)},
				Spec: &swarmpb.NodeSpec{DesiredRole: role, Availability: swarmpb.NodeAvailability_NODE_AVAILABILITY_ACTIVE, Labels: map[string]string{"disk": "ssd"}},
			},
			Status:   &swarmpb.NodeStatus{NodeId: id, State: state, Address: address, Description: description(hostname), Since: before(3 * time.Hour)},
			Reserved: &swarmpb.Resources{NanoCpus: 5e8, MemoryBytes: 1 << 30}, Tasks: 2, UplinkBlock: "100.64.1.0/24",
		}
	}
	second := node(n2ID, "n2", "10.0.0.2", swarmpb.NodeRole_NODE_ROLE_WORKER, swarmpb.NodeState_NODE_STATE_DOWN)
	second.Status.Message = "no heartbeat for 3s"
	first := node(n1ID, "n1", "10.0.0.1", swarmpb.NodeRole_NODE_ROLE_MANAGER, swarmpb.NodeState_NODE_STATE_READY)
	first.Leader = true
	first.Manager = &swarmpb.ManagerStatus{Address: "10.0.0.1:2377", Leader: true, Voter: true, Reachable: true}
	return []*swarmpb.NodeInfo{second, first} // not in the order of display
}

func serviceFixtures() []*swarmpb.ServiceInfo {
	parallelism := uint64(2)
	spec := &swarmpb.ServiceSpec{
		Name: "web", Labels: map[string]string{"team": "shop", "tier": "front"}, Mode: replicated(2),
		Task: &swarmpb.TaskSpec{
			Container: &swarmpb.ContainerSpec{
				Image: "whoami:v1", ImageDigest: "sha256:" + strings.Repeat("1", 64), Args: []string{"--port", "80"}, Env: []string{"MODE=prod", "LEVEL=info"},
				User: "1000:1000", Mounts: []*swarmpb.Mount{{Type: swarmpb.MountType_MOUNT_TYPE_VOLUME, Source: "data", Target: "/data", ReadOnly: true}},
				StopGracePeriod: durationpb.New(2 * time.Minute), CapAdd: []string{"NET_ADMIN"}, CapDrop: []string{"CHOWN"}, Init: true,
			},
			Resources: &swarmpb.ResourceRequirements{Limits: &swarmpb.Resources{NanoCpus: 5e8, MemoryBytes: 200 << 20}, Reservations: &swarmpb.Resources{NanoCpus: 1e8}},
			Restart:   &swarmpb.RestartPolicy{Condition: swarmpb.RestartCondition_RESTART_CONDITION_ON_FAILURE, Delay: durationpb.New(time.Second), MaxAttempts: 3, Window: durationpb.New(time.Hour)},
			Placement: &swarmpb.Placement{Constraints: []string{"node.labels.disk==ssd"}, MaxReplicasPerNode: 1},
		},
		Priority: 3,
		Update:   &swarmpb.UpdateConfig{Parallelism: &parallelism, Delay: durationpb.New(10 * time.Second), Order: swarmpb.UpdateOrder_UPDATE_ORDER_START_FIRST},
		Endpoint: &swarmpb.EndpointSpec{Ports: []*swarmpb.PortConfig{
			{Protocol: swarmpb.Protocol_PROTOCOL_TCP, TargetPort: 80, PublishedPort: 8080, Mode: swarmpb.PublishMode_PUBLISH_MODE_HOST},
		}},
	}
	return []*swarmpb.ServiceInfo{
		{
			Service: &swarmpb.Service{Id: webID, Spec: spec, TemplateVersion: 1, Meta: &swarmpb.Meta{Version: 42, CreatedAt: before(26 * time.Hour), UpdatedAt: before(5 * time.Minute)}},
			Running: 1, Desired: 2,
			Progress: &swarmpb.ServiceProgress{ServiceId: webID, Attempt: 4, Update: &swarmpb.UpdateStatus{
				State: swarmpb.UpdateState_UPDATE_STATE_PAUSED, StartedAt: before(5 * time.Minute), Message: "task web.2 failed: exit code 1",
			}},
		},
		{
			Service: &swarmpb.Service{Id: apiID, TemplateVersion: 1, Meta: &swarmpb.Meta{Version: 43, CreatedAt: before(time.Minute)}, Spec: &swarmpb.ServiceSpec{
				Name: "api", Mode: replicated(0), Task: &swarmpb.TaskSpec{Container: &swarmpb.ContainerSpec{Image: "api:2"}},
			}},
		},
	}
}

// taskFixtures come in the order of the server: by slot and attempt, the oldest first.
func taskFixtures() []*swarmpb.TaskInfo {
	make := func(slot, attempt uint64, desired, state swarmpb.TaskState, node string, since time.Duration) *swarmpb.TaskInfo {
		id := fmt.Sprintf("web%d%d0000000000000000task", slot, attempt)
		t := &swarmpb.TaskInfo{
			Task: &swarmpb.Task{
				Id: id, ServiceId: webID, Slot: slot, Attempt: attempt, TemplateVersion: 1, DesiredState: desired,
				Meta: &swarmpb.Meta{Version: 50 + attempt, CreatedAt: before(since + time.Minute)},
			},
			Name: fmt.Sprintf("web.%d", slot), ServiceName: "web", Image: "whoami:v1", State: state, Since: before(since), NodeHostname: node,
		}
		if node != "" {
			t.NodeId = map[string]string{"n1": n1ID, "n2": n2ID}[node]
			t.Placement = &swarmpb.TaskPlacement{TaskId: id, NodeId: t.NodeId}
			t.Status = &swarmpb.TaskStatus{TaskId: id, State: state, At: before(since), Address: "100.64.1.5", Container: &swarmpb.ContainerStatus{ContainerId: id, Pid: 99}}
		}
		return t
	}
	first := make(1, 1, running, running, "n1", 2*time.Hour)
	first.Status.HostPorts = []*swarmpb.PortConfig{{TargetPort: 80, PublishedPort: 8080, Mode: swarmpb.PublishMode_PUBLISH_MODE_HOST}}
	crashed := make(2, 2, shutdown, failing, "n2", 10*time.Minute)
	crashed.Error = "exit code 3: cannot open /etc/app.conf: no such file or directory\x1b[31m, and the disk of the host seems to be full as well"
	crashed.Status.Container.ExitCode, crashed.Status.Container.FinishedAt = 3, before(10*time.Minute)
	killed := make(2, 3, shutdown, failing, "n2", 6*time.Minute)
	killed.Error = "out of memory"
	killed.Status.Container.ExitCode, killed.Status.Container.FinishedAt, killed.Status.Container.OomKilled = 137, before(6*time.Minute), true
	waiting := make(2, 4, running, pending, "", 30*time.Second)
	waiting.Message = "no suitable node (insufficient memory on 1 node; 1 node is down)"
	waiting.Task.Replaces = killed.Task.Id
	return []*swarmpb.TaskInfo{first, crashed, killed, waiting}
}
