package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// fleetState is what the workers have come to.
type fleetState struct {
	Joined    int64
	Connected int
	Running   int64 // tasks reported
}

const (
	joinsAtOnce = 64
	// fleetGC is the fleet's GOGC: memory for time that the managers have.
	fleetGC = 200
	// coalesce is a worker's window for statuses, reportAtMost what one report holds: as a real one's.
	coalesce     = 100 * time.Millisecond
	reportAtMost = 500
	startPort    = 20_000
	// How long the workers of a lost manager take to come to the others: as real ones.
	reconnectPerNode = 800 * time.Microsecond
	spreadBeats      = 3
)

// runFleet is the role of all simulated workers: the managers' addresses, a token, and how many.
func runFleet(ctx context.Context, out *json.Encoder, in *json.Decoder) error {
	if len(os.Args) < 5 {
		return errors.New("usage: fleet MANAGER,... TOKEN NODES")
	}
	managers := strings.Split(os.Args[2], ",")
	count, err := strconv.Atoi(os.Args[4])
	if err != nil {
		return err
	}
	debug.SetGCPercent(fleetGC)
	workers := make([]*worker, count)
	var reported, joined atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	joins, _ := errgroup.WithContext(ctx)
	joins.SetLimit(joinsAtOnce)
	g.Go(func() error {
		for i := range workers {
			workers[i] = &worker{nodes: count, managers: managers, reported: &reported, listen: fmt.Sprintf("127.0.0.1:%d", startPort+i),
				from: net.IPv4(127, byte(1+i>>16), byte(i>>8), byte(i))}
		}
		for _, w := range workers {
			joins.Go(func() error {
				// What is refused is told when to come again.
				join := wire.JoinConfig{Managers: managers, Token: os.Args[3], Dial: w.dial}
				id, err := wire.Join(ctx, join)
				for err != nil && ctx.Err() == nil {
					slog.Debug("join", "error", err)
					if err := pause(ctx, time.Second); err != nil {
						return err
					}
					id, err = wire.Join(ctx, join)
				}
				if err != nil {
					return err
				}
				joined.Add(1)
				w.id, w.creds = id, wire.NewCredentials()
				w.creds.SetDialer(w.dial)
				w.creds.Set(id)
				g.Go(func() error { return w.run(ctx) })
				return nil
			})
		}
		return joins.Wait()
	})
	g.Go(func() error {
		return answer(in, out, func(word string) (any, error) {
			switch word {
			case "state":
				s := fleetState{Joined: joined.Load(), Running: reported.Load()}
				for _, w := range workers {
					if w != nil && w.connected.Load() {
						s.Connected++
					}
				}
				return s, nil
			}
			return nil, fmt.Errorf("%q is not known", word)
		})
	})
	return g.Wait()
}

// worker is a simulated one.
type worker struct {
	id       wire.Identity
	creds    *wire.Credentials
	managers []string
	listen   string
	// from is the address on loopback that it calls from: managers take each worker for a host of its own.
	from net.IP
	// nodes is how many workers there are.
	nodes int
	every time.Duration // between beats
	// none: why it takes no tasks.
	none     string
	reported *atomic.Int64

	connected atomic.Bool
	applied   atomic.Uint64
	mu        sync.Mutex
	peers     []string
	tasks     map[string]swarmpb.TaskState // reported
	due       map[string]*swarmpb.TaskStatus
	wake      chan struct{}
}

func (w *worker) run(ctx context.Context) error {
	w.peers, w.tasks, w.due, w.wake = w.managers, map[string]swarmpb.TaskState{}, map[string]*swarmpb.TaskStatus{}, make(chan struct{}, 1)
	wait := 100 * time.Millisecond
	for ctx.Err() == nil {
		w.mu.Lock()
		to := w.peers[rand.IntN(len(w.peers))]
		w.mu.Unlock()
		began := time.Now()
		err := w.session(ctx, to)
		lost := w.connected.Swap(false)
		if ctx.Err() != nil {
			return nil
		}
		slog.Debug("session ended", "node", w.id.NodeID, "error", err)
		if time.Since(began) > 5*time.Second {
			wait = 100 * time.Millisecond
		}
		spread := wait
		if lost {
			spread = max(wait, min(time.Duration(w.nodes)*reconnectPerNode, spreadBeats*w.every))
		}
		if pause(ctx, time.Duration(rand.Int64N(int64(spread)))) != nil {
			return nil
		}
		wait = min(2*wait, 2*time.Second)
	}
	return nil
}

func (w *worker) dial(ctx context.Context, addr string) (net.Conn, error) {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: w.from}}
	return dialer.DialContext(ctx, "tcp", addr)
}

func (w *worker) description() *swarmpb.NodeDescription {
	return &swarmpb.NodeDescription{
		Hostname: "sim-" + w.id.NodeID[:8], Platform: &swarmpb.Platform{Os: "linux", Architecture: "amd64"},
		Resources: &swarmpb.Resources{NanoCpus: 64_000_000_000, MemoryBytes: 256 << 30}, Engine: &swarmpb.EngineDescription{Version: "simulated"},
		TakesNoTasks: w.none, Network: &swarmpb.NodeNetwork{},
	}
}

func (w *worker) session(ctx context.Context, to string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := wire.Dial(to, w.creds)
	if err != nil {
		return err
	}
	defer conn.Close()
	client := swarmpb.NewDispatcherClient(conn)
	greet := time.AfterFunc(10*time.Second, cancel)
	stream, err := client.Session(ctx)
	if err != nil {
		return err
	}
	_ = stream.Send(&swarmpb.SessionRequest{Message: &swarmpb.SessionRequest_Hello{Hello: &swarmpb.SessionHello{
		Description: w.description(), BootId: w.id.NodeID, ListenAddress: w.listen,
	}}})
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	greet.Stop()
	w.learn(first.GetManagers())
	w.connected.Store(true)
	w.applied.Store(0)
	g, ctx := errgroup.WithContext(ctx)
	context.AfterFunc(ctx, cancel)
	w.every = time.Duration(max(first.GetBeatInterval(), int64(100*time.Millisecond)))
	g.Go(func() error { return w.beat(ctx, stream, w.every) })
	g.Go(func() error {
		for {
			r, err := stream.Recv()
			if err != nil {
				return err
			}
			w.learn(r.GetManagers())
		}
	})
	g.Go(func() error { return w.take(ctx, client, first.GetSessionId()) })
	g.Go(func() error { return w.report(ctx, client, first.GetSessionId()) })
	return g.Wait()
}

func (w *worker) learn(managers []*swarmpb.ManagerPeer) {
	if len(managers) == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.peers = nil
	for _, m := range managers {
		w.peers = append(w.peers, m.GetAddress())
	}
}

func (w *worker) beat(ctx context.Context, stream grpc.BidiStreamingClient[swarmpb.SessionRequest, swarmpb.SessionResponse], every time.Duration) error {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for sequence := uint64(1); ; sequence++ {
		err := stream.Send(&swarmpb.SessionRequest{Message: &swarmpb.SessionRequest_Beat{Beat: &swarmpb.SessionBeat{AppliedVersion: w.applied.Load(), Sequence: sequence}}})
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

// take does at once as it is told, and notes what to report.
func (w *worker) take(ctx context.Context, client swarmpb.DispatcherClient, session string) error {
	stream, err := client.Assignments(ctx, &swarmpb.AssignmentsRequest{SessionId: session}, grpc.ForceCodecV2(ownTasks{}))
	if err != nil {
		return err
	}
	for {
		chunk, err := stream.Recv()
		if err != nil {
			return err
		}
		w.mu.Lock()
		for _, c := range chunk.GetChanges() {
			if id := c.GetRemoveTask(); id != "" {
				delete(w.tasks, id)
				delete(w.due, id)
			}
			if t := c.GetTask(); t != nil {
				w.told(t)
			}
		}
		due := len(w.due) > 0
		w.mu.Unlock()
		if due {
			select {
			case w.wake <- struct{}{}:
			default:
			}
		}
		if chunk.GetLastChunk() {
			w.applied.Store(chunk.GetVersion())
		}
	}
}

func (w *worker) told(t *swarmpb.AssignedTask) {
	state := min(t.GetDesiredState(), swarmpb.TaskState_TASK_STATE_SHUTDOWN)
	if state <= max(w.tasks[t.GetId()], t.GetObservedState()) {
		return
	}
	now := time.Now().UnixNano()
	w.due[t.GetId()] = &swarmpb.TaskStatus{TaskId: t.GetId(), State: state, At: now, Message: "started", Address: "100.64.0.2",
		Container: &swarmpb.ContainerStatus{ContainerId: t.GetId(), Pid: 4711, StartedAt: now}}
}

func (w *worker) report(ctx context.Context, client swarmpb.DispatcherClient, session string) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.wake:
		}
		if err := pause(ctx, coalesce); err != nil {
			return err
		}
		for {
			batch := w.batch()
			if len(batch) == 0 {
				break
			}
			if _, err := client.UpdateStatus(ctx, &swarmpb.UpdateStatusRequest{SessionId: session, Statuses: batch}); err != nil {
				w.again(batch)
				return err
			}
			if w.reported != nil {
				w.reported.Add(int64(len(batch)))
			}
		}
	}
}

func (w *worker) batch() []*swarmpb.TaskStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	var batch []*swarmpb.TaskStatus
	for id, s := range w.due {
		if len(batch) == reportAtMost {
			break
		}
		batch = append(batch, s)
		w.tasks[id] = s.GetState()
		delete(w.due, id)
	}
	return batch
}

// again puts back what could not be reported.
func (w *worker) again(batch []*swarmpb.TaskStatus) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range batch {
		delete(w.tasks, s.GetTaskId())
		if w.due[s.GetTaskId()] == nil {
			w.due[s.GetTaskId()] = s
		}
	}
	select {
	case w.wake <- struct{}{}:
	default:
	}
}
