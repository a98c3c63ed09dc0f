package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// testNode is a running daemon with clients of its local socket.
type testNode struct {
	*host
	node    *Node
	local   swarmpb.LocalClient
	control swarmpb.ControlClient
	stop    func()
}

func (h *host) run(t *testing.T) *testNode {
	t.Helper()
	n, local, stop := h.start(t)
	conn, err := wire.DialLocal(n.Socket())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &testNode{host: h, node: n, local: local, control: swarmpb.NewControlClient(conn), stop: stop}
}

// newHosts are hosts at loopback addresses, with one gossip port as hosts have.
func newHosts(t *testing.T, count int) []*host {
	t.Helper()
	_, port, _ := net.SplitHostPort(freeAddress(t, "127.0.0.1"))
	var hosts []*host
	for i := range count {
		ip := fmt.Sprintf("127.0.0.%d", 11+i)
		h := newHostAt(t, ip)
		h.cfg.GossipAddr = net.JoinHostPort(ip, port)
		hosts = append(hosts, h)
	}
	return hosts
}

func (h *host) ip() string {
	ip, _, _ := net.SplitHostPort(h.cfg.ListenAddr)
	return ip
}

// until polls until what holds.
func until(t *testing.T, what string, cond func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		err := cond(ctx)
		if err == nil {
			return
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, err)
		}
	}
}

func (n *testNode) info(ctx context.Context) (*swarmpb.GetInfoResponse, error) {
	return n.local.GetInfo(ctx, &swarmpb.GetInfoRequest{})
}

func (n *testNode) id(t *testing.T) string {
	t.Helper()
	info, err := n.info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return info.GetNodeId()
}

func (n *testNode) initCluster(t *testing.T) *swarmpb.InitResponse {
	t.Helper()
	resp, err := eventually(t, func(ctx context.Context) (*swarmpb.InitResponse, error) {
		return n.local.Init(ctx, &swarmpb.InitRequest{AdvertiseAddress: n.ip()})
	})
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

func (n *testNode) join(t *testing.T, token string, at *testNode) {
	t.Helper()
	if _, err := eventually(t, func(ctx context.Context) (*swarmpb.JoinResponse, error) {
		return n.local.Join(ctx, &swarmpb.JoinRequest{AdvertiseAddress: n.ip(), Token: token, Managers: []string{at.cfg.ListenAddr}})
	}); err != nil {
		t.Fatal(err)
	}
}

// setRole asks this node for another role of the node.
func (n *testNode) setRole(ctx context.Context, nodeID string, role swarmpb.NodeRole) error {
	got, err := n.control.GetNode(ctx, &swarmpb.GetNodeRequest{Node: nodeID})
	if err != nil {
		return err
	}
	spec := got.GetNode().GetNode().GetSpec()
	spec.DesiredRole = role
	_, err = n.control.UpdateNode(ctx, &swarmpb.UpdateNodeRequest{
		Node: nodeID, Version: got.GetNode().GetNode().GetMeta().GetVersion(), Spec: spec, RequestId: swarmpb.NewID(),
	})
	return err
}

// voters waits until these nodes, and no others, are voting managers that answer, as this node sees it.
func (n *testNode) voters(t *testing.T, want ...string) {
	t.Helper()
	slices.Sort(want)
	until(t, "voters", func(ctx context.Context) error {
		list, err := n.control.ListNodes(ctx, &swarmpb.ListNodesRequest{})
		if err != nil {
			return err
		}
		var have []string
		var all []string
		for _, node := range list.GetNodes() {
			all = append(all, fmt.Sprint(node.GetNode().GetId(), " ", node.GetNode().GetRole().Name(), " ", node.GetStatus().GetState(), " ", node.GetManager()))
			if m := node.GetManager(); m.GetVoter() && m.GetReachable() {
				have = append(have, node.GetNode().GetId())
			}
		}
		if slices.Sort(have); !slices.Equal(have, want) {
			return fmt.Errorf("voters are %v; want %v; nodes:\n%s", have, want, strings.Join(all, "\n"))
		}
		return nil
	})
}

// leader is the one of the nodes that leads.
func leader(t *testing.T, nodes ...*testNode) (leading *testNode, others []*testNode) {
	t.Helper()
	until(t, "a leader", func(context.Context) error {
		leading, others = nil, nil
		for _, n := range nodes {
			id, _ := n.node.current().creds.Identity()
			if p, _ := n.node.current().now(); p != nil && p.manager.Leader() == id.NodeID {
				leading = n
			} else {
				others = append(others, n)
			}
		}
		if leading == nil {
			return errors.New("none leads")
		}
		return nil
	})
	return leading, others
}

// isReady waits until this node sees the other one ready.
func (n *testNode) isReady(t *testing.T, nodeID string) {
	t.Helper()
	until(t, "node "+nodeID+" is ready", func(ctx context.Context) error {
		got, err := n.control.GetNode(ctx, &swarmpb.GetNodeRequest{Node: nodeID})
		if err == nil && got.GetNode().GetStatus().GetState() != swarmpb.NodeState_NODE_STATE_READY {
			err = fmt.Errorf("%v", got.GetNode().GetStatus().GetState())
		}
		return err
	})
}

// threeManagers is a cluster with a service, of which the second manager knows the others by its next start.
func threeManagers(t *testing.T) (one, two, three *testNode) {
	t.Helper()
	hosts := newHosts(t, 3)
	one = hosts[0].run(t)
	token := one.initCluster(t).GetTokens().GetManager()
	two, three = hosts[1].run(t), hosts[2].run(t)
	two.join(t, token, one)
	three.join(t, token, one)
	one.voters(t, one.id(t), two.id(t), three.id(t))
	two.knowsOthers(t)
	one.createService(t, "web", 1)
	return one, two, three
}

// knowsOthers waits until the node remembers another manager.
func (n *testNode) knowsOthers(t *testing.T) {
	t.Helper()
	until(t, "the others are remembered", func(context.Context) error {
		if n.node.current().alone() {
			return errors.New("it knows of no other manager")
		}
		return nil
	})
}

func (n *testNode) createService(t *testing.T, name string, replicas uint64) {
	t.Helper()
	request := swarmpb.NewID()
	until(t, "create service "+name, func(ctx context.Context) error {
		_, err := n.control.CreateService(ctx, &swarmpb.CreateServiceRequest{RequestId: request, Spec: &swarmpb.ServiceSpec{
			Name: name,
			Mode: &swarmpb.ServiceMode{Mode: &swarmpb.ServiceMode_Replicated{Replicated: &swarmpb.ReplicatedMode{Replicas: replicas}}},
			Task: &swarmpb.TaskSpec{Container: &swarmpb.ContainerSpec{Image: "nginx:1", Args: []string{"sleep"}}},
		}})
		return err
	})
}

// The story of a cluster's managers: each step is one that an operator takes.
func TestManagers_JoinPromoteDemoteFailLeave(t *testing.T) {
	hosts := newHosts(t, 4)
	one := hosts[0].run(t)
	tokens := one.initCluster(t).GetTokens()
	two, three, four := hosts[1].run(t), hosts[2].run(t), hosts[3].run(t)
	two.join(t, tokens.GetManager(), one)
	three.join(t, tokens.GetManager(), one)
	three.voters(t, one.id(t), two.id(t), three.id(t))

	// A worker with a container becomes a manager, and the container does not notice.
	four.join(t, tokens.GetWorker(), two)
	if _, err := four.control.ListNodes(t.Context(), &swarmpb.ListNodesRequest{}); !errors.Is(err, wire.ErrNotManager) {
		t.Errorf("a worker answers as a manager: %v", err)
	}
	three.isReady(t, four.id(t))
	three.createService(t, "web", 8)
	var running []string
	until(t, "containers on the worker", func(context.Context) error {
		if running = four.runtime.Running(); len(running) == 0 {
			return errors.New("none runs")
		}
		return nil
	})
	if err := two.setRole(t.Context(), four.id(t), roleManager); err != nil {
		t.Fatal(err)
	}
	four.voters(t, one.id(t), two.id(t), three.id(t), four.id(t))
	for _, id := range running {
		if !slices.Contains(four.runtime.Running(), id) || four.runtime.Starts(id) != 1 {
			t.Errorf("container %s was touched by the promotion", id)
		}
	}
	until(t, "no problems", func(ctx context.Context) error {
		info, err := four.info(ctx)
		if err == nil && (len(info.GetProblems()) > 0 || info.GetRole() != roleManager || info.GetMembership() != swarmpb.Membership_MEMBERSHIP_ACTIVE) {
			err = fmt.Errorf("%v", info)
		}
		return err
	})

	// The leader is demoted, through another manager: it goes on as a worker, with nothing of a manager left.
	leading, others := leader(t, one, two, three, four)
	demoted := leading.id(t)
	if err := others[0].setRole(t.Context(), demoted, roleWorker); err != nil {
		t.Fatal(err)
	}
	var rest []string
	for _, n := range others {
		rest = append(rest, n.id(t))
	}
	others[0].voters(t, rest...)
	until(t, "the demoted manager is a worker", func(ctx context.Context) error {
		info, err := leading.info(ctx)
		if err != nil {
			return err
		}
		if _, err := os.Stat(leading.node.managerDir()); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("the manager's data: %w", err)
		}
		if info.GetRole() != roleWorker || info.GetMembership() != swarmpb.Membership_MEMBERSHIP_ACTIVE {
			return fmt.Errorf("%v", info)
		}
		return nil
	})
	if _, err := leading.control.ListNodes(t.Context(), &swarmpb.ListNodesRequest{}); !errors.Is(err, wire.ErrNotManager) {
		t.Errorf("the demoted manager answers as one: %v", err)
	}
	if c, err := net.Dial("tcp", leading.cfg.ListenAddr); err == nil {
		c.Close()
		t.Error("the demoted manager's port is still open")
	}

	// The leader stops: another one takes writes.
	leading, others = leader(t, others...)
	stopped := leading.id(t)
	leading.stop()
	others[1].createService(t, "api", 1)
	back := leading.run(t)
	back.voters(t, stopped, others[0].id(t), others[1].id(t))

	// A manager leaves: first it is demoted, then it goes.
	gone := others[0].id(t)
	if _, err := others[0].local.Leave(t.Context(), &swarmpb.LeaveRequest{}); err != nil {
		t.Fatal(err)
	}
	back.voters(t, stopped, others[1].id(t))
	if others[0].node.hasTraces() {
		t.Error("what left has left traces")
	}
	list, err := back.control.ListNodes(t.Context(), &swarmpb.ListNodesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, node := range list.GetNodes() {
		if node.GetNode().GetId() == gone && node.GetNode().GetRole() != roleWorker {
			t.Errorf("what left is still listed as %s", node.GetNode().GetRole().Name())
		}
	}
	// The addresses that are remembered are those of the managers that are left.
	want := []string{back.cfg.ListenAddr, others[1].cfg.ListenAddr}
	slices.Sort(want)
	until(t, "remembered managers", func(context.Context) error {
		st, _, err := back.node.load()
		if err == nil && !slices.Equal(st.Managers, want) {
			err = fmt.Errorf("remembered are %v; want %v", st.Managers, want)
		}
		return err
	})
}
