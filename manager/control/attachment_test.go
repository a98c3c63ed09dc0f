package control

import (
	"context"
	"strings"
	"testing"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

func connecting(network, name string) *swarmpb.ConnectNetworkRequest {
	return &swarmpb.ConnectNetworkRequest{Network: network, Name: name, Guest: &swarmpb.Guest{Pid: 7, Namespace: "net:[8]"}}
}

// connect attaches a container through the API and returns its service's ID.
func (w *world) connect(req *swarmpb.ConnectNetworkRequest) string {
	w.t.Helper()
	r, err := w.server.ConnectNetwork(context.Background(), req)
	if err != nil {
		w.t.Fatalf("connect: %v", err)
	}
	return r.GetId()
}

func (w *world) attachments(network string) []*swarmpb.Attachment {
	w.t.Helper()
	r, err := w.server.GetNetwork(context.Background(), &swarmpb.GetNetworkRequest{Network: network})
	if err != nil {
		w.t.Fatalf("get network: %v", err)
	}
	return r.GetNetwork().GetAttachments()
}

func TestConnectNetwork_IsAServiceThatNobodySees_AndTheNetworkShows(t *testing.T) {
	w := newWorld(t)
	w.network(&swarmpb.NetworkSpec{Name: "back", Attachable: true})
	req := connecting("back", "db")
	req.Aliases, req.RequestId = []string{"sql", "db"}, "r1"
	id := w.connect(req)
	if again := w.connect(req); again != id {
		t.Errorf("the same request made %s and %s", id, again)
	}
	service := w.view().Service(id)
	spec := service.GetSpec()
	if spec.GetName() != "back/db" || spec.GetTask().GetGuest().GetNodeId() != self || spec.GetTask().GetPlacement().GetConstraints()[0] != "node.id=="+self ||
		spec.GetEndpoint().GetMode() != swarmpb.EndpointMode_ENDPOINT_MODE_DNSRR || strings.Join(spec.GetTask().GetNetworks()[0].GetAliases(), " ") != "db sql" {
		t.Errorf("the service is %v", service)
	}
	all, err := w.server.ListServices(context.Background(), &swarmpb.ListServicesRequest{})
	if err != nil || len(all.GetServices()) != 0 {
		t.Errorf("services are %v, %v", all, err)
	}
	cluster, err := w.server.GetCluster(context.Background(), &swarmpb.GetClusterRequest{})
	if err != nil || cluster.GetServices() != 0 {
		t.Errorf("%d services, %v", cluster.GetServices(), err)
	}
	task := swarmpb.TaskID(id, 1, "", 1)
	w.task(id, 1, 1, "")
	network := w.view().NetworkByName("back").GetId()
	w.put(&swarmpb.Row{Row: &swarmpb.Row_TaskAddresses{TaskAddresses: &swarmpb.TaskAddresses{TaskId: task, Networks: []*swarmpb.NetworkAddress{{NetworkId: network, Address: "10.0.0.9"}}}}})
	w.place(task, self, "")
	w.status(&swarmpb.TaskStatus{TaskId: task, State: swarmpb.TaskState_TASK_STATE_RUNNING, Message: "attached"})
	got := w.attachments("back")
	if len(got) != 1 || got[0].GetName() != "db" || got[0].GetId() != id || got[0].GetNodeHostname() != "boss" || got[0].GetAddress() != "10.0.0.9" ||
		got[0].GetState() != swarmpb.TaskState_TASK_STATE_RUNNING || strings.Join(got[0].GetAliases(), " ") != "sql" || got[0].GetMessage() != "attached" {
		t.Errorf("attachments are %v", got)
	}
	tasks, err := w.server.ListTasks(context.Background(), &swarmpb.ListTasksRequest{})
	if err != nil || len(tasks.GetTasks()) != 1 || tasks.GetTasks()[0].GetImage() != "(attached process)" {
		t.Errorf("tasks are %v, %v", tasks, err)
	}
}

func TestConnectNetwork_WrongInput_ErrorSaysWhatToDo(t *testing.T) {
	w := newWorld(t)
	w.network(&swarmpb.NetworkSpec{Name: "back", Attachable: true})
	w.network(&swarmpb.NetworkSpec{Name: "closed"})
	w.node(nodeB, "lost", swarmpb.NodeRole_NODE_ROLE_WORKER, swarmpb.NodeState_NODE_STATE_DOWN)
	w.connect(connecting("back", "db"))
	if _, err := w.server.CreateService(context.Background(), &swarmpb.CreateServiceRequest{Spec: on(spec("web", "web:1", 1), "back")}); err != nil {
		t.Fatal(err)
	}
	edit := func(edit func(*swarmpb.ConnectNetworkRequest)) *swarmpb.ConnectNetworkRequest {
		req := connecting("back", "x")
		edit(req)
		return req
	}
	for name, x := range map[string]struct {
		req   *swarmpb.ConnectNetworkRequest
		code  wire.Code
		parts []string
	}{
		"not attachable": {connecting("closed", "x"), wire.CodeFailedPrecondition, []string{`network "closed"`, "swarmctl network create --attachable"}},
		"no network":     {connecting("none", "x"), wire.CodeNotFound, []string{`network "none"`}},
		"name taken":     {connecting("back", "DB"), wire.CodeExists, []string{`attachment "db" on node boss`, "swarmctl network disconnect back db"}},
		"service's name": {connecting("back", "web"), wire.CodeExists, []string{`service "web"`, "--name"}},
		"bad name":       {connecting("back", "a/b"), wire.CodeInvalid, []string{`"a/b"`}},
		"bad alias":      {edit(func(r *swarmpb.ConnectNetworkRequest) { r.Aliases = []string{"a b"} }), wire.CodeInvalid, []string{`alias "a b"`}},
		"many aliases":   {edit(func(r *swarmpb.ConnectNetworkRequest) { r.Aliases = make([]string, 33) }), wire.CodeInvalid, []string{"use at most 32"}},
		"no guest":       {edit(func(r *swarmpb.ConnectNetworkRequest) { r.Guest = nil }), wire.CodeInvalid, []string{"not named"}},
		"both":           {edit(func(r *swarmpb.ConnectNetworkRequest) { r.Guest.Netns = "/run/netns/a" }), wire.CodeInvalid, []string{"one of the two"}},
		"pid":            {edit(func(r *swarmpb.ConnectNetworkRequest) { r.Guest.Pid = 1 << 31 }), wire.CodeInvalid, []string{"no process ID"}},
		"relative path":  {edit(func(r *swarmpb.ConnectNetworkRequest) { r.Guest = &swarmpb.Guest{Netns: "a"} }), wire.CodeInvalid, []string{`netns "a"`}},
		"detour":         {edit(func(r *swarmpb.ConnectNetworkRequest) { r.Guest = &swarmpb.Guest{Netns: "/run/../etc"} }), wire.CodeInvalid, []string{"without detours"}},
		"node inside":    {edit(func(r *swarmpb.ConnectNetworkRequest) { r.Guest.NodeId = self }), wire.CodeInvalid, []string{"beside the container"}},
		"unknown node":   {edit(func(r *swarmpb.ConnectNetworkRequest) { r.Node = "nowhere" }), wire.CodeNotFound, []string{`node "nowhere"`}},
		"node is down":   {edit(func(r *swarmpb.ConnectNetworkRequest) { r.Node = nodeB }), wire.CodeFailedPrecondition, []string{"node lost", "down", "nothing can be attached there"}},
	} {
		_, err := w.server.ConnectNetwork(context.Background(), x.req)
		t.Run(name, func(t *testing.T) { expectError(t, err, x.code, x.parts...) })
	}
	_, err := w.server.CreateService(context.Background(), &swarmpb.CreateServiceRequest{Spec: on(spec("db", "web:1", 1), "back")})
	expectError(t, err, wire.CodeExists, `attachment "db"`)
	_, err = w.server.RemoveNetwork(context.Background(), &swarmpb.RemoveNetworkRequest{Network: "back"})
	expectError(t, err, wire.CodeInUse, "web")
}

// What stands for an attachment can be made and changed in no other way.
func TestAttachment_AsAService_IsRefused(t *testing.T) {
	w := newWorld(t)
	w.network(&swarmpb.NetworkSpec{Name: "back", Attachable: true})
	id := w.connect(connecting("back", "db"))
	made := w.view().Service(id).GetSpec()
	own := spec("x", "web:1", 1)
	own.Task.Guest = &swarmpb.Guest{Pid: 1}
	_, err := w.server.CreateService(context.Background(), &swarmpb.CreateServiceRequest{Spec: own})
	expectError(t, err, wire.CodeInvalid, "swarmctl network connect")
	scaled := swarmpb.Clone(made)
	scaled.Mode.GetReplicated().Replicas = 3
	_, err = w.server.UpdateService(context.Background(), &swarmpb.UpdateServiceRequest{Service: "back/db", Spec: scaled})
	expectError(t, err, wire.CodeInvalid, `service "back/db"`, "swarmctl network disconnect")
	turned := spec("back/db", "web:1", 1)
	_, err = w.server.UpdateService(context.Background(), &swarmpb.UpdateServiceRequest{Service: id, Spec: turned})
	expectError(t, err, wire.CodeInvalid, "back/db")
}

func TestDisconnectNetwork_ByNameOrID_RemovesTheService(t *testing.T) {
	w := newWorld(t)
	w.network(&swarmpb.NetworkSpec{Name: "back", Attachable: true})
	first, second := w.connect(connecting("back", "db")), w.connect(connecting("back", "cache"))
	disconnect := func(request, name string) error {
		_, err := w.server.DisconnectNetwork(context.Background(), &swarmpb.DisconnectNetworkRequest{Network: "back", Attachment: name, RequestId: request})
		return err
	}
	_, err := w.server.RemoveNetwork(context.Background(), &swarmpb.RemoveNetworkRequest{Network: "back"})
	expectError(t, err, wire.CodeInUse, "cache, db", "swarmctl network disconnect back NAME")
	if err := disconnect("r1", "db"); err != nil || !w.view().Service(first).GetRemoving() {
		t.Errorf("disconnect: %v", err)
	}
	_, err = w.server.ConnectNetwork(context.Background(), connecting("back", "db"))
	expectError(t, err, wire.CodeExists, "is being disconnected")
	if err := disconnect("r2", second[:9]); err != nil || !w.view().Service(second).GetRemoving() {
		t.Errorf("disconnect: %v", err)
	}
	expectError(t, disconnect("", "web"), wire.CodeNotFound, `attachment "web"`, "swarmctl network inspect --pretty back")
	expectError(t, disconnect("", ""), wire.CodeInvalid, "attachment")
	again, err := w.server.DisconnectNetwork(context.Background(), &swarmpb.DisconnectNetworkRequest{Network: "back", Attachment: "db", RequestId: "r1"})
	if err != nil || again.GetId() != first { // so that who asks again can wait until it has gone
		t.Errorf("a retry while it goes: %v, %v, want %s", again, err, first)
	}
	w.delete(swarmpb.ServiceKey(first))
	if err := disconnect("r1", "db"); err != nil {
		t.Errorf("a retry: %v", err)
	}
}

func TestRemoveNetwork_RetryOnceItIsGone_AnswersAsBefore(t *testing.T) {
	w := newWorld(t)
	id := w.network(&swarmpb.NetworkSpec{Name: "back"}).GetId()
	req := &swarmpb.RemoveNetworkRequest{Network: "back", RequestId: "r1"}
	if _, err := w.server.RemoveNetwork(context.Background(), req); err != nil {
		t.Fatal(err)
	}
	w.delete(swarmpb.NetworkKey(id))
	if _, err := w.server.RemoveNetwork(context.Background(), req); err != nil {
		t.Errorf("a retry: %v", err)
	}
	req.RequestId = "r2"
	_, err := w.server.RemoveNetwork(context.Background(), req)
	expectError(t, err, wire.CodeNotFound, `network "back"`)
}
