package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
	"github.com/swarmd/swarmd/worker/network/networktest"
	"github.com/swarmd/swarmd/worker/runtime/runtimetest"
)

const (
	stateReady    = swarmpb.TaskState_TASK_STATE_READY
	stateRunning  = swarmpb.TaskState_TASK_STATE_RUNNING
	stateComplete = swarmpb.TaskState_TASK_STATE_COMPLETE
	stateShutdown = swarmpb.TaskState_TASK_STATE_SHUTDOWN
	stateFailed   = swarmpb.TaskState_TASK_STATE_FAILED
	stateRejected = swarmpb.TaskState_TASK_STATE_REJECTED
)

// fataler is what the harness needs of *testing.T and *rapid.T.
type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
}

// dispatcher is a manager as a worker sees it.
type dispatcher struct {
	swarmpb.UnimplementedDispatcherServer

	mu       sync.Mutex
	version  uint64
	tasks    map[string]*swarmpb.AssignedTask
	template map[templateKey]*swarmpb.AssignedTemplate
	config   *swarmpb.NodeConfig
	rows     map[dbKey]proto.Message     // how tasks are reached
	log      []*swarmpb.AssignmentChange // of the versions from 1 on
	changed  chan struct{}
	spoil    bool // the next increment names a wrong base
	chunk    int  // changes in a chunk
	refuse   error
	statuses map[string]*swarmpb.TaskStatus
	went     []string                  // each state that went back
	calls    []int                     // statuses in each UpdateStatus call
	bad      string                    // a status of this task is invalid
	hear     func(*swarmpb.TaskStatus) // each that comes; nil = none
	slow     time.Duration
	applied  uint64
	hellos   []*swarmpb.SessionHello
	// described is what the node last said of itself.
	described *swarmpb.NodeDescription
	streams   int
	peers     []*swarmpb.ManagerPeer
	clock     time.Duration // how far it is ahead of the node's
	mute      bool          // it answers no beats
	hangs     bool          // it opens no session, and says nothing
	stop      chan struct{} // closed: the manager stops
	sessions  int           // at present
	renew     chan struct{} // closed and made anew when peers change
}

// setMute has the manager answer beats, or not, as one without a leader.
func (d *dispatcher) setMute(is bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mute = is
}

// setPeers changes the list that sessions tell.
func (d *dispatcher) setPeers(peers ...*swarmpb.ManagerPeer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.peers = peers
	close(d.renew)
	d.renew = make(chan struct{})
}

func newDispatcher() *dispatcher {
	return &dispatcher{
		tasks: map[string]*swarmpb.AssignedTask{}, template: map[templateKey]*swarmpb.AssignedTemplate{},
		statuses: map[string]*swarmpb.TaskStatus{}, changed: make(chan struct{}), chunk: 3, rows: map[dbKey]proto.Message{},
		stop: make(chan struct{}), renew: make(chan struct{}),
		config: &swarmpb.NodeConfig{UplinkBlock: "100.64.0.0/16"},
	}
}

// change makes a new version out of changes.
func (d *dispatcher) change(changes ...*swarmpb.AssignmentChange) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range changes {
		d.version++
		d.log = append(d.log, c)
		switch c := c.Change.(type) {
		case *swarmpb.AssignmentChange_Task:
			d.tasks[c.Task.Id] = c.Task
		case *swarmpb.AssignmentChange_RemoveTask:
			delete(d.tasks, c.RemoveTask)
		case *swarmpb.AssignmentChange_Template:
			d.template[templateKey{c.Template.ServiceId, c.Template.Version}] = c.Template
		case *swarmpb.AssignmentChange_NodeConfig:
			d.config = c.NodeConfig
		}
		if at, row, ok := reachRow(c); ok && row != nil {
			d.rows[at] = row
		} else if ok {
			delete(d.rows, at)
			maps.DeleteFunc(d.rows, func(_ dbKey, row proto.Message) bool {
				e, is := row.(*swarmpb.Endpoint)
				return is && at.bucket == bucketServices && e.GetServiceId() == at.key
			})
		}
	}
	close(d.changed)
	d.changed = make(chan struct{})
}

func taskChange(t *swarmpb.AssignedTask) *swarmpb.AssignmentChange {
	return &swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_Task{Task: t}}
}

func templateChange(t *swarmpb.AssignedTemplate) *swarmpb.AssignmentChange {
	return &swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_Template{Template: t}}
}

// assign has the node run a task of a service whose containers run args.
func (d *dispatcher) assign(id string, desired swarmpb.TaskState, args ...string) {
	d.assignSpec(id, desired, &swarmpb.ContainerSpec{Image: "nginx:alpine", Args: args})
}

func (d *dispatcher) assignSpec(id string, desired swarmpb.TaskState, c *swarmpb.ContainerSpec, ports ...*swarmpb.PortConfig) {
	service := "service-of-" + id
	d.change(
		templateChange(&swarmpb.AssignedTemplate{ServiceId: service, Version: 1, Spec: &swarmpb.TaskSpec{Container: c}, HostPorts: ports}),
		taskChange(&swarmpb.AssignedTask{Id: id, ServiceId: service, ServiceName: "web", Slot: 1, TemplateVersion: 1, DesiredState: desired}),
	)
}

// desire changes what is desired of a task.
func (d *dispatcher) desire(id string, desired swarmpb.TaskState) {
	d.mu.Lock()
	t := swarmpb.Clone(d.tasks[id])
	d.mu.Unlock()
	t.DesiredState = desired
	d.change(taskChange(t))
}

func (d *dispatcher) remove(id string) {
	d.change(&swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_RemoveTask{RemoveTask: id}})
}

func (d *dispatcher) status(id string) *swarmpb.TaskStatus {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.statuses[id]
}

func (d *dispatcher) Session(stream grpc.BidiStreamingServer[swarmpb.SessionRequest, swarmpb.SessionResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.hellos = append(d.hellos, first.GetHello())
	d.described = first.GetHello().GetDescription()
	refuse := d.refuse
	id := fmt.Sprint("session-", len(d.hellos))
	if refuse == nil {
		d.sessions++
		defer func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.sessions--
		}()
	}
	d.mu.Unlock()
	if refuse != nil {
		return wire.ToStatus(refuse)
	}
	d.mu.Lock()
	hangs := d.hangs
	d.mu.Unlock()
	if hangs { // it waits for a leader that it will not hear of
		<-stream.Context().Done()
		return stream.Context().Err()
	}
	heard, ended := make(chan uint64), make(chan error, 1)
	go func() { ended <- d.receive(stream, heard) }()
	var answer uint64
	for {
		d.mu.Lock()
		response := &swarmpb.SessionResponse{SessionId: id, BeatInterval: int64(500 * time.Millisecond), Managers: d.peers, HeardSequence: answer,
			SentAt: time.Now().Add(d.clock).UnixNano()}
		renew := d.renew
		d.mu.Unlock()
		if err := stream.Send(response); err != nil {
			return err
		}
		select {
		case answer = <-heard:
		case <-renew:
		case <-d.stop:
			return wire.ToStatus(wire.Errorf(wire.CodeUnavailable, "this manager stops; connect to another one"))
		case err := <-ended:
			return err
		}
	}
}

// receive takes beats, and hands on those that are to be answered.
func (d *dispatcher) receive(stream grpc.BidiStreamingServer[swarmpb.SessionRequest, swarmpb.SessionResponse], heard chan<- uint64) error {
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		b := r.GetBeat()
		if b == nil {
			d.mu.Lock()
			d.described = r.GetDescription()
			d.mu.Unlock()
			continue
		}
		d.mu.Lock()
		d.applied = b.AppliedVersion
		mute := d.mute
		d.mu.Unlock()
		if mute {
			continue
		}
		select {
		case heard <- b.Sequence:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (d *dispatcher) Assignments(_ *swarmpb.AssignmentsRequest, stream grpc.ServerStreamingServer[swarmpb.AssignmentsResponse]) error {
	var base uint64
	full := true
	for {
		d.mu.Lock()
		d.streams += btoi(full)
		changes := d.since(base, full)
		version, changed, chunk, sent := d.version, d.changed, d.chunk, base
		if d.spoil && !full {
			d.spoil, sent = false, base+100
		}
		d.mu.Unlock()
		if version > base || full {
			for first := true; first || len(changes) > 0; first = false {
				n := min(chunk, len(changes))
				err := stream.Send(&swarmpb.AssignmentsResponse{BaseVersion: sent, Version: version, LastChunk: n == len(changes), Changes: changes[:n]})
				if err != nil {
					return err
				}
				changes = changes[n:]
			}
		}
		base, full = version, false
		select {
		case <-changed:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (d *dispatcher) since(base uint64, full bool) []*swarmpb.AssignmentChange {
	if !full {
		return slices.Clone(d.log[base:])
	}
	out := []*swarmpb.AssignmentChange{{Change: &swarmpb.AssignmentChange_NodeConfig{NodeConfig: d.config}}}
	for _, row := range d.rows {
		out = append(out, rowChange(row))
	}
	for _, t := range d.template {
		out = append(out, templateChange(t))
	}
	for _, id := range slices.Sorted(maps.Keys(d.tasks)) {
		t := swarmpb.Clone(d.tasks[id])
		t.ObservedState = max(t.ObservedState, d.statuses[id].GetState())
		if !t.ObservedState.Ended() {
			out = append(out, taskChange(t))
		}
	}
	return out
}

func (d *dispatcher) UpdateStatus(_ context.Context, r *swarmpb.UpdateStatusRequest) (*swarmpb.UpdateStatusResponse, error) {
	d.mu.Lock()
	slow := d.slow
	d.mu.Unlock()
	time.Sleep(slow)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls = append(d.calls, len(r.Statuses))
	for _, s := range r.Statuses {
		if s.TaskId == d.bad {
			return nil, wire.ToStatus(wire.Errorf(wire.CodeInvalid, "status of %s is bad", s.TaskId))
		}
	}
	for _, s := range r.Statuses {
		if d.hear != nil {
			d.hear(s)
		}
		if before := d.statuses[s.TaskId]; s.State < before.GetState() {
			d.went = append(d.went, fmt.Sprintf("%s: %s to %s", s.TaskId, before.GetState().Name(), s.State.Name()))
			continue // managers keep the higher one
		}
		d.statuses[s.TaskId] = s
	}
	return &swarmpb.UpdateStatusResponse{}, nil
}

// host is a node with one manager, in a bubble of virtual time.
type host struct {
	fataler
	dir      string
	manager  *dispatcher
	runtime  *runtimetest.Fake
	net      *networktest.Fake
	limits   Limits
	refused  []error
	hostname string

	listener *bufconn.Listener
	server   *grpc.Server
	agent    *Agent
	cancel   context.CancelFunc
	done     chan error

	managers []*swarmpb.ManagerPeer // given; nil = one
	disk     func(string) (Disk, error)
	generic  []*swarmpb.GenericResource
	devices  Devices // nil = none
	pull     puller  // nil = the runtime's own
	// stalled: at some time the disk took no writes; wasCut: there were no managers.
	stalled, wasCut bool
	role            []swarmpb.NodeRole // as told
	hints           Hints              // nil = no gossip
	gossip          []GossipConfig     // as told

	mu    sync.Mutex
	isCut bool
	conns []*grpc.ClientConn
	// others are further managers, by address; dials counts tries, by address.
	others map[string]*station
	dials  map[string]int
}

// station is a further manager.
type station struct {
	*dispatcher
	listener *bufconn.Listener
	server   *grpc.Server
}

// addManager makes a manager at an address, besides the one that answers at all others.
func (h *host) addManager(address string) *station {
	s := &station{newDispatcher(), bufconn.Listen(1 << 16), grpc.NewServer()}
	swarmpb.RegisterDispatcherServer(s.server, s.dispatcher)
	go s.server.Serve(s.listener)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.others == nil {
		h.others = map[string]*station{}
	}
	h.others[address] = s
	return s
}

func newHost(t fataler, dir string) *host {
	h := &host{
		fataler: t, dir: dir, manager: newDispatcher(), runtime: runtimetest.NewFake(runtimetest.FakeConfig{}), hostname: "worker-1",
		net:      &networktest.Fake{},
		listener: bufconn.Listen(1 << 16), server: grpc.NewServer(), limits: Limits{Starts: 4, Removals: 4},
	}
	swarmpb.RegisterDispatcherServer(h.server, h.manager)
	go h.server.Serve(h.listener)
	return h
}

// inBubble runs a test with a host whose agent runs.
func inBubble(t *testing.T, test func(t *testing.T, h *host)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, dir)
		defer h.close()
		h.start()
		test(t, h)
	})
}

func (h *host) close() {
	if h.agent != nil {
		h.stop()
	}
	h.server.Stop()
	for _, s := range h.others {
		s.server.Stop()
	}
}

// start runs an agent, as a new process does.
func (h *host) start() {
	h.Helper()
	managers := h.managers
	if managers == nil {
		managers = []*swarmpb.ManagerPeer{{NodeId: "m", Address: "192.0.2.9:2377"}}
	}
	pull := h.pull
	if pull == nil {
		pull = h.runtime.Pull
	}
	agent, err := New(Config{
		NodeID: "node-1", Hostname: h.hostname, ListenAddress: "192.0.2.1:2377", Dir: h.dir, Runtime: pullingRuntime{h.runtime, pull}, Network: h.net, Dial: h.dial,
		Managers: managers, Limits: h.limits, Disk: h.disk, Generic: h.generic, Devices: h.devices,
		Role:    func(r swarmpb.NodeRole) { h.role = append(h.role, r) },
		Gossip:  func(g GossipConfig) { h.gossip = append(h.gossip, g) },
		Hints:   h.hints,
		Refused: func(err error) { h.refused = append(h.refused, err) }, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		h.Fatalf("new agent: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	h.agent, h.cancel, h.done = agent, cancel, make(chan error, 1)
	go func() { h.done <- agent.Run(ctx) }()
	h.settle(time.Second)
}

// stop ends the agent, as a process that is told to stop does.
func (h *host) stop() {
	h.Helper()
	h.cancel()
	if err := <-h.done; err != nil {
		h.Errorf("agent: %v", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.conns {
		_ = c.Close()
	}
	h.agent, h.conns = nil, nil
}

func (h *host) restart() {
	h.stop()
	h.start()
}

func (h *host) dial(_ context.Context, address string) (Conn, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.dials == nil {
		h.dials = map[string]int{}
	}
	h.dials[address]++
	listener := h.listener
	if s := h.others[address]; s != nil {
		listener = s.listener
	}
	if h.isCut {
		return nil, errors.New("no route to host")
	}
	conn, err := grpc.NewClient("passthrough:///manager", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err == nil {
		h.conns = append(h.conns, conn)
	}
	return conn, err
}

// cut takes the managers away, or gives them back.
func (h *host) cut(is bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.isCut = is
	for _, c := range h.conns {
		_ = c.Close()
	}
	h.conns = nil
}

// settle lets virtual time pass.
func (h *host) settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (h *host) wantRunning(ids ...string) {
	h.Helper()
	slices.Sort(ids)
	if got := h.runtime.Running(); !slices.Equal(got, ids) {
		h.Fatalf("containers that run: %q, want %q", got, ids)
	}
}

func (h *host) wantContainers(ids ...string) {
	h.Helper()
	slices.Sort(ids)
	if got := h.runtime.Containers(); !slices.Equal(got, ids) {
		h.Fatalf("containers: %q, want %q", got, ids)
	}
}

func (h *host) wantState(id string, state swarmpb.TaskState, why string) *swarmpb.TaskStatus {
	h.Helper()
	s := h.manager.status(id)
	if s.GetState() != state || s.GetError() != why {
		h.Fatalf("task %s is reported %s with error %q, want %s with %q", id, s.GetState().Name(), s.GetError(), state.Name(), why)
	}
	return s
}
