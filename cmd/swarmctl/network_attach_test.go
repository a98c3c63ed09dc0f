package main

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// attachmentFixtures are one that is attached, and one that cannot be.
func attachmentFixtures() []*swarmpb.Attachment {
	return []*swarmpb.Attachment{
		{
			Id: "at1000000000000000000at10", Name: "mongo", Aliases: []string{"docs"}, Guest: &swarmpb.Guest{NodeId: n2ID, Pid: 4711}, NodeHostname: "n2",
			Address: "10.0.5.130", Address6: "fd12:3456:789a:1::82", State: swarmpb.TaskState_TASK_STATE_RUNNING, Message: "attached",
		},
		{
			Id: "at2000000000000000000at20", Name: "tools", Guest: &swarmpb.Guest{NodeId: n1ID, Netns: "/run/netns/tools"}, NodeHostname: "n1",
			State: swarmpb.TaskState_TASK_STATE_REJECTED, Error: "it cannot be attached: there is no /run/netns/tools on this node",
		},
	}
}

func (c *fakeControl) ConnectNetwork(ctx context.Context, req *swarmpb.ConnectNetworkRequest) (*swarmpb.ConnectNetworkResponse, error) {
	if err := c.answer(ctx); err != nil {
		return nil, err
	}
	i, err := c.findNetwork(req.Network)
	if err != nil {
		return nil, err
	}
	if !c.networks[i].Network.Spec.Attachable {
		return nil, wire.Errorf(wire.CodeFailedPrecondition, "network %q: only services may be in it", req.Network)
	}
	c.connected = req
	c.networks[i].Attachments = append(c.networks[i].Attachments, &swarmpb.Attachment{
		Id: "at3000000000000000000at30", Name: req.Name, Guest: req.Guest, State: swarmpb.TaskState_TASK_STATE_NEW})
	return &swarmpb.ConnectNetworkResponse{Id: "at3000000000000000000at30", Name: req.Name}, nil
}

func (c *fakeControl) DisconnectNetwork(ctx context.Context, req *swarmpb.DisconnectNetworkRequest) (*swarmpb.DisconnectNetworkResponse, error) {
	if err := c.answer(ctx); err != nil {
		return nil, err
	}
	i, err := c.findNetwork(req.Network)
	if err != nil {
		return nil, err
	}
	for _, a := range c.networks[i].Attachments {
		if a.Id == req.Attachment || a.Name == req.Attachment {
			a.Removing = true
			return &swarmpb.DisconnectNetworkResponse{Id: a.Id}, nil
		}
	}
	return nil, wire.Errorf(wire.CodeNotFound, "attachment %q: not found; `swarmctl network inspect --pretty %s` shows what there is", req.Attachment, req.Network)
}

// becomes is what the cluster does with the attachment that was made last.
func becomes(state swarmpb.TaskState, message, problem string) func(*fakeControl) {
	return func(c *fakeControl) {
		for _, n := range c.networks {
			if all := n.Attachments; len(all) > 2 {
				a := all[len(all)-1]
				a.State, a.Message, a.Error, a.Address = state, message, problem, "10.0.5.140"
			}
		}
	}
}

func disconnected(c *fakeControl) {
	for _, n := range c.networks {
		n.Attachments = slices.DeleteFunc(n.Attachments, func(a *swarmpb.Attachment) bool { return a.Removing })
	}
}

func TestNetworkConnect_WhatComesOfIt_IsSaid(t *testing.T) {
	f := start(t, false)
	f.patience = time.Minute
	const running, rejected, complete = swarmpb.TaskState_TASK_STATE_RUNNING, swarmpb.TaskState_TASK_STATE_REJECTED, swarmpb.TaskState_TASK_STATE_COMPLETE
	var got strings.Builder
	play := func(line string, then ...func(*fakeControl)) {
		f.control.network = then
		got.WriteString(f.play(line))
		disconnected(f.control)
	}
	play("network connect --netns /nonexistent/web --name web open", func(*fakeControl) {}, becomes(running, "attached", ""))
	play("network disconnect open at3000000000000000000at30", func(*fakeControl) {}, disconnected)
	play("network connect --netns /nonexistent/web --name web open", becomes(running, "attached; its loopback is down", ""))
	play("network disconnect open web", disconnected)
	play("network connect --pid 4000000 --node n2 --name web open", becomes(rejected, "", "there is no process 4000000 on this node"))
	play("network connect --pid 4000000 --node n2 --name web open", becomes(complete, "process 4000000 has ended", ""))
	f.patience = 0
	play("network connect --pid 4000000 --node n2 --name web open", becomes(swarmpb.TaskState_TASK_STATE_STARTING, "", "the network is not complete"))
	play("network disconnect open web", func(*fakeControl) {})
	play("network connect --pid 4000000 --node n2 --name web open", func(*fakeControl) {})
	play("network disconnect open web", disconnected)
	play("network connect --pid 1 back")
	play("network connect back")
	play("network connect --pid 1 --netns /run/netns/a back")
	play("network connect --netns a back")
	play("network connect --pid 1")
	play("network disconnect open")
	play("network disconnect open nobody")
	golden(t, "network_connect", got.String())
}

func TestNetworkConnect_OnThisHost_NamesTheNamespaceThatIsMeant(t *testing.T) {
	f := start(t, false)
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	f.control.network = []func(*fakeControl){becomes(swarmpb.TaskState_TASK_STATE_RUNNING, "attached", "")}
	f.run("network", "connect", "--netns", "/proc/self/ns/net", "--alias", "a", "--alias", "b", "--name", "x", "open")
	if r := f.control.connected; r.GetGuest().GetNamespace() != own || r.GetNode() != "" || !slices.Equal(r.GetAliases(), []string{"a", "b"}) || r.GetRequestId() == "" {
		t.Errorf("asked for %v, want namespace %s", r, own)
	}
	f.run("network", "connect", "--netns", "/proc/self/ns/net", "--node", "n2", "--name", "y", "open")
	if r := f.control.connected; r.GetGuest().GetNamespace() != "" || r.GetNode() != "n2" {
		t.Errorf("asked for %v: this host's namespace is not the other's", r)
	}
}
