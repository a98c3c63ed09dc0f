package sim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"

	"github.com/swarmd/swarmd/manager"
	"github.com/swarmd/swarmd/manager/control"
	"github.com/swarmd/swarmd/manager/dispatcher"
	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

const (
	managerID = "000000000000000000manager"
	clusterID = "000000000000000000cluster"
)

// cluster is one manager that leads, and its hosts.
type cluster struct {
	t     *testing.T
	dir   string
	store *store.Store
	log   *raftlike
	api   *control.Server

	sessions *dispatcher.Server
	listener *bufconn.Listener
	hosts    map[string]*host
	endTerm  func()
}

// raftlike is a log: each write takes a while before it is applied, and they overtake one another.
type raftlike struct {
	*store.LocalProposer
	mu     sync.Mutex
	random *rand.Rand
	writes atomic.Int64
}

func (l *raftlike) Propose(ctx context.Context, p *swarmpb.Proposal) (*swarmpb.Result, error) {
	l.writes.Add(1)
	l.mu.Lock()
	delay := time.Duration(l.random.IntN(4000)) * time.Microsecond
	l.mu.Unlock()
	select {
	case <-time.After(delay):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return l.LocalProposer.Propose(ctx, p)
}

// inCluster runs a test in virtual time, in a cluster of hosts by name that are all ready.
func inCluster(t *testing.T, hosts []string, test func(t *testing.T, c *cluster)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		c := newCluster(t, dir)
		ran, served := make(chan error, 1), make(chan error, 1)
		server := grpc.NewServer()
		c.sessions.Register(server)
		go func() { ran <- c.sessions.Run(ctx) }()
		go func() { served <- server.Serve(c.listener) }()
		c.lead()
		for _, name := range hosts {
			c.join(name)
		}
		time.Sleep(5 * time.Second)
		defer func() {
			for _, h := range c.hosts {
				h.stop()
			}
			c.endTerm()
			cancel()
			if err := <-ran; err != nil {
				t.Errorf("dispatcher: %v", err)
			}
			server.Stop()
			<-served
		}()
		test(t, c)
	})
}

func newCluster(t *testing.T, dir string) *cluster {
	st := store.New()
	c := &cluster{
		t: t, dir: dir, store: st, listener: bufconn.Listen(1 << 16), hosts: map[string]*host{},
		log: &raftlike{LocalProposer: store.NewLocalProposer(st), random: rand.New(rand.NewPCG(1, 2))},
	}
	current := func() *store.Store { return st }
	readIndex := func(context.Context) (uint64, error) { return st.View().Index(), nil }
	var err error
	c.sessions, err = dispatcher.New(dispatcher.Config{
		NodeID: managerID, Store: current, Proposer: c.log, ReadIndex: readIndex, Peer: caller,
		Managers: func() []*swarmpb.ManagerPeer {
			return []*swarmpb.ManagerPeer{{NodeId: managerID, Address: "192.0.2.1:2377", Weight: 1}}
		},
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	c.api, err = control.New(control.Config{
		NodeID: managerID, Store: current, Proposer: c.log, ReadIndex: readIndex,
		Leader:         func() string { return managerID },
		ManagerAddress: func() string { return "192.0.2.1:2377" },
		NewJoinToken:   func([]byte) (string, error) { return "", errors.New("nobody joins by token here") },
		Logger:         slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	c.put(&swarmpb.Row{Row: &swarmpb.Row_Cluster{Cluster: &swarmpb.Cluster{Id: clusterID, Spec: &swarmpb.ClusterSpec{}}}})
	c.put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: &swarmpb.Node{
		Id: managerID, Role: swarmpb.NodeRole_NODE_ROLE_MANAGER, Spec: &swarmpb.NodeSpec{DesiredRole: swarmpb.NodeRole_NODE_ROLE_MANAGER}}}})
	return c
}

// caller is the node that an agent's connection names.
func caller(ctx context.Context) (wire.PeerInfo, bool) {
	md, _ := metadata.FromIncomingContext(ctx)
	if id := md.Get("node"); len(id) == 1 {
		return wire.PeerInfo{Caller: swarmpb.Caller_CALLER_WORKER, NodeID: id[0], Addr: "192.0.2.7:4711"}, true
	}
	return wire.PeerInfo{}, false
}

// lead begins a term: the leader's loops as a manager runs them.
func (c *cluster) lead() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- manager.Lead(ctx, c.store, c.log, c.sessions, slog.New(slog.DiscardHandler)) }()
	c.endTerm = func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			c.t.Errorf("the leader's loops ended by themselves: %v", err)
		}
	}
}

func (c *cluster) view() *store.View { return c.store.View() }

// put writes rows at once, as if they had always been there.
func (c *cluster) put(row *swarmpb.Row) {
	c.t.Helper()
	write := &swarmpb.Write{Op: &swarmpb.Write_Put{Put: row}}
	if _, err := c.log.LocalProposer.Propose(context.Background(), &swarmpb.Proposal{Writes: []*swarmpb.Write{write}, Now: time.Now().UnixNano()}); err != nil {
		c.t.Fatalf("put: %v", err)
	}
}

// dialer connects the agent of a node to the manager.
func (c *cluster) connect(nodeID string) (*grpc.ClientConn, error) {
	name := func(ctx context.Context) context.Context {
		return metadata.AppendToOutgoingContext(ctx, "node", nodeID)
	}
	return grpc.NewClient("passthrough:///manager", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return c.listener.DialContext(ctx) }),
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			return invoke(name(ctx), method, req, reply, cc, opts...)
		}),
		grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, stream grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			return stream(name(ctx), desc, cc, method, opts...)
		}))
}

// available sets a node's availability.
func (c *cluster) available(name string, availability swarmpb.NodeAvailability) {
	c.t.Helper()
	node := swarmpb.Clone(c.view().Node(nodeID(name)))
	node.Spec.Availability = availability
	c.put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: node}})
}

// label sets a label of a node.
func (c *cluster) label(name, key, value string) {
	c.t.Helper()
	node := swarmpb.Clone(c.view().Node(nodeID(name)))
	node.Spec.Labels = map[string]string{key: value}
	c.put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: node}})
}

// spec is a service's: replicas of an image that does what args say, forever without any.
func spec(name string, replicas uint64, args ...string) *swarmpb.ServiceSpec {
	return &swarmpb.ServiceSpec{
		Name: name,
		Task: &swarmpb.TaskSpec{Container: &swarmpb.ContainerSpec{Image: "nginx:1", Args: args}},
		Mode: &swarmpb.ServiceMode{Mode: &swarmpb.ServiceMode_Replicated{Replicated: &swarmpb.ReplicatedMode{Replicas: replicas}}},
	}
}

// publish has each task bind a port of its node.
func publish(s *swarmpb.ServiceSpec, port uint32) *swarmpb.ServiceSpec {
	s.Endpoint = &swarmpb.EndpointSpec{Ports: []*swarmpb.PortConfig{{
		TargetPort: 80, PublishedPort: port, Mode: swarmpb.PublishMode_PUBLISH_MODE_HOST, Protocol: swarmpb.Protocol_PROTOCOL_TCP}}}
	return s
}

// onEveryNode publishes a port in the mesh, whichever is free.
func onEveryNode(s *swarmpb.ServiceSpec) *swarmpb.ServiceSpec {
	if s.Endpoint == nil {
		s.Endpoint = &swarmpb.EndpointSpec{}
	}
	s.Endpoint.Ports = append(s.Endpoint.Ports, &swarmpb.PortConfig{TargetPort: 8080, Protocol: swarmpb.Protocol_PROTOCOL_TCP})
	return s
}

// attach puts a service's tasks into a network.
func attach(s *swarmpb.ServiceSpec, network string) *swarmpb.ServiceSpec {
	s.Task.Networks = append(s.Task.Networks, &swarmpb.NetworkAttachment{Network: network})
	return s
}

func (c *cluster) create(s *swarmpb.ServiceSpec) string {
	c.t.Helper()
	response, err := c.api.CreateService(context.Background(), &swarmpb.CreateServiceRequest{Spec: s})
	if err != nil {
		c.t.Fatalf("create: %v", err)
	}
	return response.GetId()
}

func (c *cluster) update(name string, change func(*swarmpb.ServiceSpec)) {
	c.t.Helper()
	s := swarmpb.Clone(c.view().ServiceByName(name).GetSpec())
	change(s)
	if _, err := c.api.UpdateService(context.Background(), &swarmpb.UpdateServiceRequest{Service: name, Spec: s}); err != nil {
		c.t.Fatalf("update: %v", err)
	}
}

func (c *cluster) remove(name string) {
	c.t.Helper()
	if _, err := c.api.RemoveService(context.Background(), &swarmpb.RemoveServiceRequest{Service: name}); err != nil {
		c.t.Fatalf("remove: %v", err)
	}
}

// running is what the hosts run, as host/service.slot, in order.
func (c *cluster) running() []string {
	var out []string
	for name, h := range c.hosts {
		for _, id := range h.runtime.Running() {
			task := c.view().Task(id)
			if task == nil {
				out = append(out, name+"/unknown")
				continue
			}
			out = append(out, fmt.Sprintf("%s/%s", name, swarmpb.TaskName(c.view().Service(task.ServiceId).GetSpec().GetName(), task.Slot, task.NodeId)))
		}
	}
	slices.Sort(out)
	return out
}

// awaitRunning waits in virtual time until so many containers have been running for a second.
func (c *cluster) awaitRunning(count int, within time.Duration) {
	c.t.Helper()
	began, since := time.Now(), time.Time{}
	for ; time.Since(began) < within+time.Second; time.Sleep(100 * time.Millisecond) {
		synctest.Wait()
		switch {
		case len(c.running()) != count:
			since = time.Time{}
		case since.IsZero():
			since = time.Now()
		case time.Since(since) >= time.Second:
			return
		}
	}
	c.t.Fatalf("after %s %d containers were to run; there are %v\n%s", within, count, c.running(), c.table())
}

// table is every task with what is known of it, for a failed test.
func (c *cluster) table() string {
	var b strings.Builder
	v := c.view()
	for service := range v.Services() {
		fmt.Fprintf(&b, "%s removing=%t %s\n", service.GetSpec().GetName(), service.GetRemoving(), v.ServiceProgress(service.Id).GetUpdate())
	}
	for task := range v.Tasks() {
		rows := v.TaskRows(task.Id)
		host := v.NodeStatus(rows.Placement.GetNodeId()).GetDescription().GetHostname()
		fmt.Fprintf(&b, "  slot %d attempt %d template %d: %s of %s on %q %s %s%s\n", task.Slot, task.Attempt, task.TemplateVersion,
			rows.Observed.Name(), task.DesiredState.Name(), host, rows.Placement.GetMessage(), rows.Status.GetMessage(), rows.Status.GetError())
	}
	return b.String()
}
