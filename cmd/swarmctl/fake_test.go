package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

var update = flag.Bool("update", false, "write the golden files anew")

// fake is a swarmd on a socket, and the terminal that swarmctl runs at.
type fake struct {
	t       *testing.T
	socket  string
	control *fakeControl
	local   *fakeLocal
	logs    *fakeLogs
	clock   *fakeClock
	// terminal is whether swarmctl can draw, and its size.
	terminal, colours bool
	width, height     int
	stdin             string
	input             io.Reader          // in place of stdin
	patience          time.Duration      // of calls
	cancel            context.CancelFunc // of the run under way
}

// start serves; a worker has no Control.
func start(t *testing.T, worker bool) *fake {
	t.Helper()
	t.Setenv("SWARM_HOST", "")
	t.Setenv("DOCKER_CONFIG", filepath.Join(t.TempDir(), "docker"))
	f := &fake{t: t, socket: filepath.Join(t.TempDir(), "s"), clock: newFakeClock()}
	f.control = &fakeControl{fake: f, cluster: clusterFixture(), nodes: nodeFixtures(), services: serviceFixtures(), tasks: taskFixtures(), networks: networkFixtures(), watch: map[string][]step{}}
	f.local = &fakeLocal{info: infoFixture(worker), role: roleWorker}
	f.logs = &fakeLogs{}
	listener, err := wire.ListenLocal(f.socket)
	if err != nil {
		t.Fatal(err)
	}
	server := wire.NewServer(wire.ServerConfig{Local: true})
	swarmpb.RegisterLocalServer(server, f.local)
	if !worker {
		swarmpb.RegisterControlServer(server, f.control)
		swarmpb.RegisterLogsServer(server, f.logs)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) { // stopped before it began
			t.Error(err)
		}
	})
	return f
}

// outcome is what a run left.
type outcome struct {
	stdout, stderr string
	code           int
}

// run runs swarmctl; a --host in the arguments is the one that counts.
func (f *fake) run(args ...string) outcome {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), time.Minute)
	defer cancel()
	f.cancel = cancel
	return f.runIn(ctx, args...)
}

// interrupted is a run at whose very beginning somebody presses Ctrl-C.
func (f *fake) interrupted(args ...string) outcome {
	ctx, cancel := context.WithCancel(f.t.Context())
	cancel()
	return f.runIn(ctx, args...)
}

func (f *fake) runIn(ctx context.Context, args ...string) outcome {
	var out, err bytes.Buffer
	a := &app{
		in: strings.NewReader(f.stdin), out: &out, err: &err, terminal: f.terminal, width: f.width, height: f.height,
		now: f.clock.now, ticks: f.clock.ticks, patience: f.patience, author: "ann@desk", colours: f.colours,
	}
	if len(args) > 0 && args[len(args)-1] != "--help" {
		args = append([]string{"--host", "unix://" + f.socket}, args...)
	}
	if f.input != nil {
		a.in = f.input
	}
	code := a.main(ctx, args)
	named := func(b *bytes.Buffer) string { return strings.ReplaceAll(b.String(), f.socket, "/SOCKET") }
	return outcome{named(&out), named(&err), code}
}

// play runs command lines and returns them with what they did, as on a terminal.
func (f *fake) play(lines ...string) string {
	f.t.Helper()
	var out strings.Builder
	for _, line := range lines {
		args, err := splitWords(line)
		if err != nil {
			f.t.Fatal(err)
		}
		o := f.run(args...)
		fmt.Fprintf(&out, "$ swarmctl %s\n%s%s", line, o.stdout, o.stderr)
		if o.code != 0 {
			fmt.Fprintf(&out, "[exit %d]\n", o.code)
		}
		out.WriteByte('\n')
	}
	return strings.ReplaceAll(out.String(), "\x1b", "<ESC>")
}

// golden compares with testdata/NAME.golden.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got == string(want) {
		return
	}
	gotLines, wantLines := strings.Split(got, "\n"), strings.Split(string(want), "\n")
	for i := range max(len(gotLines), len(wantLines)) {
		g, w := "(end)", "(end)"
		if i < len(gotLines) {
			g = gotLines[i]
		}
		if i < len(wantLines) {
			w = wantLines[i]
		}
		if g != w {
			t.Fatalf("%s:%d: got\n%s\nwant\n%s", path, i+1, g, w)
		}
	}
}

// fakeClock stands until a script moves it.
type fakeClock struct {
	mu    sync.Mutex
	time  time.Time
	asked chan struct{} // closed when somebody asks for the time
	tick  chan time.Time
}

func newFakeClock() *fakeClock {
	return &fakeClock{time: noon, asked: make(chan struct{}), tick: make(chan time.Time)}
}

func (c *fakeClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.asked)
	c.asked = make(chan struct{})
	return c.time
}

func (c *fakeClock) ticks(time.Duration) (<-chan time.Time, func()) { return c.tick, func() {} }

// advance moves the time and returns what is closed when it has been noticed.
func (c *fakeClock) advance(d time.Duration) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.time = c.time.Add(d)
	return c.asked
}

// step is one of a watch: a message, time that passes, or Ctrl-C.
type step struct {
	message   *swarmpb.WatchServiceResponse
	advance   time.Duration
	interrupt bool
	gone      bool // the service is: the stream ends
	lost      bool // the manager is: what follows comes on the next stream
}

// fakeControl answers from lists, and remembers what it was asked to write.
type fakeControl struct {
	swarmpb.UnimplementedControlServer
	fake     *fake
	cluster  *swarmpb.GetClusterResponse
	nodes    []*swarmpb.NodeInfo
	services []*swarmpb.ServiceInfo
	tasks    []*swarmpb.TaskInfo
	fail     error             // of every call
	watch    map[string][]step // by service ID
	created  *swarmpb.ServiceSpec
	// requested is the last request to create one.
	requested *swarmpb.CreateServiceRequest
	updated   []*swarmpb.ServiceSpec
	// conflicts is how many updates are refused first.
	conflicts int
	warnings  []string
	// unavailable is how many calls meet a change of leaders first, stale what marks answers, stages what becomes of a
	// node: each GetNode after an update of it takes the next.
	unavailable int
	stale       *wire.StaleRead
	stages      map[string][]func(*swarmpb.NodeInfo) error
	wished      int // calls that wished for a stale answer
	requests    []string
	changes     []*swarmpb.NodeSpec
	rollouts
	networks []*swarmpb.NetworkInfo
	// network is what becomes of networks: each GetNetwork takes the next.
	network   []func(c *fakeControl)
	made      *swarmpb.NetworkSpec
	connected *swarmpb.ConnectNetworkRequest
	placing
}

// answer is what every call begins with.
func (c *fakeControl) answer(ctx context.Context) error {
	if wire.Stale(ctx) {
		c.wished++
	}
	if c.stale != nil {
		wire.MarkStale(ctx, *c.stale)
	}
	if c.unavailable > 0 {
		c.unavailable--
		return wire.Errorf(wire.CodeUnavailable, "write: leadership was lost while committing")
	}
	return c.fail
}

func (c *fakeControl) GetCluster(ctx context.Context, _ *swarmpb.GetClusterRequest) (*swarmpb.GetClusterResponse, error) {
	return c.cluster, c.answer(ctx)
}

var tokens = &swarmpb.JoinTokens{Worker: "SWMTKN-1-worker", Manager: "SWMTKN-1-manager"}

func (c *fakeControl) GetJoinTokens(context.Context, *swarmpb.GetJoinTokensRequest) (*swarmpb.GetJoinTokensResponse, error) {
	return &swarmpb.GetJoinTokensResponse{Tokens: tokens, ManagerAddress: "10.0.0.1:2377"}, c.fail
}

func (c *fakeControl) RotateJoinToken(context.Context, *swarmpb.RotateJoinTokenRequest) (*swarmpb.RotateJoinTokenResponse, error) {
	fresh := &swarmpb.JoinTokens{Worker: "SWMTKN-1-fresh", Manager: "SWMTKN-1-manager"}
	return &swarmpb.RotateJoinTokenResponse{Tokens: fresh, ManagerAddress: "10.0.0.1:2377"}, c.fail
}

func (c *fakeControl) ListNodes(ctx context.Context, _ *swarmpb.ListNodesRequest) (*swarmpb.ListNodesResponse, error) {
	return &swarmpb.ListNodesResponse{Nodes: c.nodes}, c.answer(ctx)
}

// UpdateNode writes a spec; a role is refused by what a test says of it.
func (c *fakeControl) UpdateNode(ctx context.Context, req *swarmpb.UpdateNodeRequest) (*swarmpb.UpdateNodeResponse, error) {
	c.requests = append(c.requests, req.RequestId)
	if err := c.answer(ctx); err != nil {
		return nil, err
	}
	if c.conflicts > 0 {
		c.conflicts--
		return nil, wire.Errorf(wire.CodeConflict, "node %s was changed by somebody else at the same time", req.Node)
	}
	for _, n := range c.nodes {
		if n.Node.Id == req.Node {
			n.Node.Spec = req.Spec
			if d := n.Status.GetDescription(); req.Accept {
				n.Node.Spec.Accepted, n.NotAccepted = d.Facts(), nil
			}
			c.changes = append(c.changes, req.Spec)
			return &swarmpb.UpdateNodeResponse{Node: n}, nil
		}
	}
	return nil, wire.Errorf(wire.CodeNotFound, "node %q: not found", req.Node)
}

func (c *fakeControl) GetNode(ctx context.Context, req *swarmpb.GetNodeRequest) (*swarmpb.GetNodeResponse, error) {
	if err := c.answer(ctx); err != nil {
		return nil, err
	}
	for _, n := range c.nodes {
		if stages := c.stages[req.Node]; n.Node.Id == req.Node && len(stages) > 0 {
			c.stages[req.Node] = stages[1:]
			if err := stages[0](n); err != nil {
				return nil, err
			}
		}
		if req.Node == n.Node.Id || req.Node == n.Status.GetDescription().GetHostname() || req.Node == "self" && n.Leader {
			return &swarmpb.GetNodeResponse{Node: n}, nil
		}
	}
	return nil, wire.Errorf(wire.CodeNotFound, "node %q: not found; `swarmctl node ls` shows what there is", req.Node)
}

func (c *fakeControl) RemoveNode(ctx context.Context, req *swarmpb.RemoveNodeRequest) (*swarmpb.RemoveNodeResponse, error) {
	r, err := c.GetNode(ctx, &swarmpb.GetNodeRequest{Node: req.Node})
	if err != nil {
		return nil, err
	}
	if r.Node.Status.State == swarmpb.NodeState_NODE_STATE_READY && !req.Force {
		return nil, wire.Errorf(wire.CodeFailedPrecondition, "node %s: it is ready and not down; stop it first, or remove it with --force", req.Node)
	}
	return &swarmpb.RemoveNodeResponse{Id: r.Node.Node.Id}, nil
}

func (c *fakeControl) ListServices(ctx context.Context, _ *swarmpb.ListServicesRequest) (*swarmpb.ListServicesResponse, error) {
	return &swarmpb.ListServicesResponse{Services: c.services}, c.answer(ctx)
}

func (c *fakeControl) GetService(ctx context.Context, req *swarmpb.GetServiceRequest) (*swarmpb.GetServiceResponse, error) {
	if wire.Stale(ctx) || c.stale != nil || c.unavailable > 0 {
		if err := c.answer(ctx); err != nil {
			return nil, err
		}
	}
	for _, s := range c.services {
		if req.Service == s.Service.Id || req.Service == s.Service.Spec.Name {
			return &swarmpb.GetServiceResponse{Service: s}, nil
		}
	}
	return nil, wire.Errorf(wire.CodeNotFound, "service %q: not found; `swarmctl service ls` shows what there is", req.Service)
}

func (c *fakeControl) CreateService(ctx context.Context, req *swarmpb.CreateServiceRequest) (*swarmpb.CreateServiceResponse, error) {
	c.requests = append(c.requests, req.RequestId)
	if err := c.answer(ctx); err != nil {
		return nil, err
	}
	c.created, c.requested, c.authors = swarmpb.Clone(req.Spec), swarmpb.Clone(req), append(c.authors, req.Author)
	if req.Spec.Name == "" {
		req.Spec.Name = "calm_otter"
	}
	if err := req.Spec.Validate(); err != nil {
		return nil, wire.Errorf(wire.CodeInvalid, "%w", err)
	}
	return &swarmpb.CreateServiceResponse{Id: webID, Warnings: c.warnings}, nil
}

func (c *fakeControl) UpdateService(_ context.Context, req *swarmpb.UpdateServiceRequest) (*swarmpb.UpdateServiceResponse, error) {
	if c.conflicts > 0 {
		c.conflicts--
		return nil, wire.Errorf(wire.CodeConflict, "service %q: somebody else changed it", req.Service)
	}
	if err := req.Spec.Validate(); err != nil {
		return nil, wire.Errorf(wire.CodeInvalid, "%w", err)
	}
	c.updated, c.authors = append(c.updated, req.Spec), append(c.authors, req.Author)
	return &swarmpb.UpdateServiceResponse{Id: req.Service, Warnings: c.warnings, Revision: c.revision}, nil
}

func (c *fakeControl) RemoveService(ctx context.Context, req *swarmpb.RemoveServiceRequest) (*swarmpb.RemoveServiceResponse, error) {
	if err := c.answer(ctx); err != nil {
		return nil, err
	}
	r, err := c.GetService(ctx, &swarmpb.GetServiceRequest{Service: req.Service})
	return &swarmpb.RemoveServiceResponse{Id: r.GetService().GetService().GetId()}, err
}

func (c *fakeControl) GetTask(_ context.Context, req *swarmpb.GetTaskRequest) (*swarmpb.GetTaskResponse, error) {
	for _, t := range c.tasks {
		if req.Task == t.Task.Id || req.Task == t.Name {
			return &swarmpb.GetTaskResponse{Task: t, Spec: c.services[0].Service.Spec.Task, NetworkNames: networkNamesFixture}, nil
		}
	}
	return nil, wire.Errorf(wire.CodeNotFound, "task %q: not found; `swarmctl task ls` shows what there is", req.Task)
}

// ListTasks gives two tasks a page, in the order of the list.
func (c *fakeControl) ListTasks(ctx context.Context, req *swarmpb.ListTasksRequest) (*swarmpb.ListTasksResponse, error) {
	if err := c.answer(ctx); err != nil {
		return nil, err
	}
	if req.Service != "" {
		if _, err := c.GetService(ctx, &swarmpb.GetServiceRequest{Service: req.Service}); err != nil {
			return nil, err
		}
	}
	var all []*swarmpb.TaskInfo
	for _, t := range c.tasks {
		if (req.Service == "" || req.Service == t.ServiceName) && (req.Node == "" || req.Node == t.NodeHostname || req.Node == "self" && t.NodeHostname == "n1") &&
			(!req.CurrentOnly || t.Task.DesiredState <= running) {
			all = append(all, t)
		}
	}
	from := 0
	_, _ = fmt.Sscan(req.PageToken, &from)
	r := &swarmpb.ListTasksResponse{Tasks: all[from:min(from+2, len(all))]}
	if from+2 < len(all) {
		r.NextPageToken = fmt.Sprint(from + 2)
	}
	return r, nil
}

// WatchService plays the service's script. It goes on when the client has judged what it was told.
func (c *fakeControl) WatchService(req *swarmpb.WatchServiceRequest, stream grpc.ServerStreamingServer[swarmpb.WatchServiceResponse]) error {
	ctx, clock := stream.Context(), c.fake.clock
	steps := c.watch[req.Service]
	for i, s := range steps {
		noticed := clock.advance(s.advance)
		switch {
		case s.gone:
			return nil
		case s.lost:
			c.watch[req.Service] = steps[i+1:]
			return wire.Errorf(wire.CodeUnavailable, "this manager is stopping; try another manager")
		case s.interrupt:
			c.fake.cancel()
		case s.message != nil:
			if err := stream.Send(s.message); err != nil {
				return err
			}
		default:
			select {
			case clock.tick <- time.Time{}:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		select {
		case <-noticed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	<-ctx.Done()
	return ctx.Err()
}

// fakeLocal answers what it was given.
type fakeLocal struct {
	swarmpb.UnimplementedLocalServer
	info   *swarmpb.GetInfoResponse
	images []*swarmpb.Image
	fail   error
	joined *swarmpb.JoinRequest
	role   swarmpb.NodeRole // that a host joins as
	init   *swarmpb.InitRequest
	loaded []byte
	checks []*swarmpb.DoctorResponse
	pulled *swarmpb.PullImageRequest
}

func (l *fakeLocal) PullImage(req *swarmpb.PullImageRequest, stream grpc.ServerStreamingServer[swarmpb.PullImageResponse]) error {
	l.pulled = req
	for _, done := range []int64{1 << 20, 2 << 20, 0} {
		if err := stream.Send(&swarmpb.PullImageResponse{Done: done, Total: 3 << 20}); err != nil {
			return err
		}
	}
	if l.fail != nil {
		return l.fail
	}
	return stream.Send(&swarmpb.PullImageResponse{Image: &swarmpb.Image{Name: "docker.io/library/" + req.Image, Digest: "sha256:" + strings.Repeat("1", 64), SizeBytes: 3 << 20}})
}

func (l *fakeLocal) InspectImage(_ context.Context, req *swarmpb.InspectImageRequest) (*swarmpb.InspectImageResponse, error) {
	for _, i := range l.images {
		if i.Name == req.Image {
			return &swarmpb.InspectImageResponse{
				Image: i, Platforms: []string{"linux/amd64"}, Config: []byte(`{"os":"linux","config":{"Cmd":["web"]}}`),
				Layers: []string{"sha256:" + strings.Repeat("a", 64)}, LayerSizes: []int64{4096},
			}, nil
		}
	}
	return nil, wire.Errorf(wire.CodeNotFound, "image %q: not found; `swarmctl image ls` lists what this host has", req.Image)
}

func (l *fakeLocal) Init(_ context.Context, req *swarmpb.InitRequest) (*swarmpb.InitResponse, error) {
	l.init = req
	spec := swarmpb.Clone(req.Spec)
	spec.SetDefaults()
	if err := spec.Validate(); err != nil {
		return nil, wire.Errorf(wire.CodeInvalid, "init: %w", err)
	}
	return &swarmpb.InitResponse{NodeId: n1ID, ClusterId: clusterID, Tokens: tokens, ManagerAddress: "10.0.0.1:2377"}, l.fail
}

func (l *fakeLocal) Join(_ context.Context, req *swarmpb.JoinRequest) (*swarmpb.JoinResponse, error) {
	l.joined = req
	return &swarmpb.JoinResponse{NodeId: n2ID, ClusterId: clusterID, Role: l.role}, l.fail
}

func (l *fakeLocal) Leave(_ context.Context, req *swarmpb.LeaveRequest) (*swarmpb.LeaveResponse, error) {
	if l.fail != nil && !req.Force {
		return nil, l.fail
	}
	return &swarmpb.LeaveResponse{}, nil
}

func (l *fakeLocal) GetInfo(context.Context, *swarmpb.GetInfoRequest) (*swarmpb.GetInfoResponse, error) {
	return l.info, l.fail
}

func (l *fakeLocal) LoadImage(stream grpc.ClientStreamingServer[swarmpb.LoadImageRequest, swarmpb.LoadImageResponse]) error {
	if l.fail != nil {
		return l.fail
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return stream.SendAndClose(&swarmpb.LoadImageResponse{Images: l.images})
		}
		l.loaded = append(l.loaded, m.Chunk...)
	}
}

func (l *fakeLocal) ListImages(context.Context, *swarmpb.ListImagesRequest) (*swarmpb.ListImagesResponse, error) {
	return &swarmpb.ListImagesResponse{Images: l.images}, l.fail
}

func (l *fakeLocal) RemoveImage(_ context.Context, req *swarmpb.RemoveImageRequest) (*swarmpb.RemoveImageResponse, error) {
	for _, i := range l.images {
		if i.Name == req.Image {
			return &swarmpb.RemoveImageResponse{Removed: []string{i.Name, i.Digest}}, nil
		}
	}
	return nil, wire.Errorf(wire.CodeNotFound, "image %q: not found; `swarmctl image ls` lists what this host has", req.Image)
}
