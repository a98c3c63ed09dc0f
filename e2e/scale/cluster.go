package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// process is a child with a role.
type process struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *json.Decoder
	ended  chan struct{}
	lost   bool
	client swarmpb.ControlClient
	conn   *grpc.ClientConn
}

func spawn(role string, args ...string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &process{cmd: exec.Command(self, append([]string{role}, args...)...), ended: make(chan struct{})}
	p.cmd.Stderr = os.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.out = json.NewDecoder(bufio.NewReader(out))
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	return p, nil
}

// ask sends a child a word and takes its answer.
func (p *process) ask(word string, answer any) error {
	if err := json.NewEncoder(p.in).Encode(word); err != nil {
		return err
	}
	return p.out.Decode(answer)
}

func (p *process) kill() {
	if p.conn != nil {
		_ = p.conn.Close()
	}
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
	p.lost = true
}

// cpu is what the process has used, in seconds; 0 once it is gone.
func (p *process) cpu() float64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	user, _ := strconv.ParseFloat(fields[11], 64)
	system, _ := strconv.ParseFloat(fields[12], 64)
	return (user + system) / 100
}

func (p *process) rss() int64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	pages, _ := strconv.ParseInt(strings.Fields(string(data))[1], 10, 64)
	return pages * int64(os.Getpagesize())
}

// cluster is the managers, and the simulated workers.
type cluster struct {
	dir      string
	within   time.Duration
	profiles string // a directory; empty = none are written
	managers []*process
	fleet    *process
}

func (c *cluster) end() {
	for _, p := range append(c.managers, c.fleet) {
		if p != nil && !p.lost {
			p.kill()
		}
	}
}

// phase has every process end its profile, and begin one of what follows; empty = none.
func (c *cluster) phase(name string) error {
	if c.profiles == "" {
		return nil
	}
	for i, p := range append(c.managers[:len(c.managers):len(c.managers)], c.fleet) {
		if p == nil || p.lost {
			continue
		}
		path, role := "", fmt.Sprint("m", i)
		if p == c.fleet {
			role = "fleet"
		}
		if name != "" {
			path = filepath.Join(c.profiles, role+"-"+name+".pprof")
		}
		var ok bool
		if err := p.ask("profile "+path, &ok); err != nil {
			return fmt.Errorf("profile of %s: %w", role, err)
		}
	}
	return nil
}

// started is what a manager says when it is one.
type started struct {
	Address, Worker, Manager string // the tokens
}

func (c *cluster) start(ctx context.Context, managers, nodes int) error {
	var first started
	var addresses []string
	for i := range managers {
		dir := filepath.Join(c.dir, fmt.Sprint("m", i))
		p, err := spawn("manager", dir, socket(c.dir, i), first.Address, first.Manager, strconv.Itoa(nodes))
		if err != nil {
			return err
		}
		c.managers = append(c.managers, p)
		var s started
		if err := p.out.Decode(&s); err != nil {
			return fmt.Errorf("manager %d did not start: %w", i, err)
		}
		if i == 0 {
			first = s
		}
		addresses = append(addresses, s.Address)
		conn, err := wire.DialLocal(socket(c.dir, i))
		if err != nil {
			return err
		}
		p.conn, p.client = conn, swarmpb.NewControlClient(conn)
	}
	err := c.until(ctx, "all managers have a vote", func() (bool, error) {
		r, err := c.managers[0].client.GetCluster(ctx, &swarmpb.GetClusterRequest{})
		return err == nil && int(r.GetReachableManagers()) == managers, nil
	})
	if err != nil {
		return err
	}
	if c.fleet, err = spawn("fleet", strings.Join(addresses, ","), first.Worker, strconv.Itoa(nodes)); err != nil {
		return err
	}
	if err := c.phase("join"); err != nil {
		return err
	}
	began, said := time.Now(), time.Now()
	return c.until(ctx, "all workers have sessions", func() (bool, error) {
		var s fleetState
		err := c.fleet.ask("state", &s)
		if time.Since(said) > 10*time.Second {
			said = time.Now()
			fmt.Fprintf(os.Stderr, "%.0f s: %d workers have joined, %d of %d have sessions\n", time.Since(began).Seconds(), s.Joined, s.Connected, nodes)
		}
		return s.Connected == nodes, err
	})
}

// until asks again and again, a few times a second.
func (c *cluster) until(ctx context.Context, what string, done func() (bool, error)) error {
	deadline := time.Now().Add(c.within)
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not within %s: %s", c.within, what)
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}

// cpu of each manager, and of the workers.
func (c *cluster) cpu() []float64 {
	var out []float64
	for _, p := range append(c.managers[:len(c.managers):len(c.managers)], c.fleet) {
		out = append(out, p.cpu())
	}
	return out
}

func (c *cluster) managersCPU() float64 { return sum(c.cpu()[:len(c.managers)]) }

// heap is what lives in each manager after a collection.
func (c *cluster) heap() ([]int64, error) {
	var out []int64
	for _, p := range c.managers {
		var live int64
		if !p.lost {
			if err := p.ask("heap", &live); err != nil {
				return nil, err
			}
		}
		out = append(out, live)
	}
	return out, nil
}

// leader is the manager that leads.
func (c *cluster) leader(ctx context.Context) (int, error) {
	leader := -1
	err := c.until(ctx, "a leader", func() (bool, error) {
		for i, p := range c.managers {
			var leads bool
			if p.lost {
				continue
			}
			if err := p.ask("leads", &leads); err != nil {
				return false, err
			}
			if leads {
				leader = i
			}
		}
		return leader >= 0, nil
	})
	return leader, err
}

func (c *cluster) create(ctx context.Context, manager int, name string, replicas int) error {
	_, err := c.managers[manager].client.CreateService(ctx, &swarmpb.CreateServiceRequest{NoResolveImage: true, Spec: &swarmpb.ServiceSpec{
		Name: name,
		Task: &swarmpb.TaskSpec{
			Container: &swarmpb.ContainerSpec{Image: "simulated:v1"},
			Resources: &swarmpb.ResourceRequirements{Reservations: &swarmpb.Resources{NanoCpus: 10_000_000, MemoryBytes: 16 << 20}},
		},
		Mode: &swarmpb.ServiceMode{Mode: &swarmpb.ServiceMode_Replicated{Replicated: &swarmpb.ReplicatedMode{Replicas: uint64(replicas)}}},
	}})
	return err
}

// reported is how many tasks the workers have reported as running.
func (c *cluster) reported() (int64, error) {
	var s fleetState
	err := c.fleet.ask("state", &s)
	return s.Running, err
}

// running waits until the workers have reported so many tasks more than before, and the manager then says that they run.
func (c *cluster) running(ctx context.Context, manager int, name string, replicas int, before int64) error {
	said := time.Now()
	err := c.until(ctx, fmt.Sprintf("%d tasks of %s are reported", replicas, name), func() (bool, error) {
		var s fleetState
		err := c.fleet.ask("state", &s)
		if time.Since(said) > 10*time.Second {
			said = time.Now()
			fmt.Fprintf(os.Stderr, "%s: %d of %d tasks are reported\n", name, s.Running-before, replicas)
		}
		return s.Running-before >= int64(replicas), err
	})
	if err != nil {
		return err
	}
	return c.until(ctx, fmt.Sprintf("%d tasks of %s run", replicas, name), func() (bool, error) {
		r, err := c.managers[manager].client.GetService(ctx, &swarmpb.GetServiceRequest{Service: name})
		if err != nil {
			return false, nil // an election, perhaps
		}
		return int(r.GetService().GetRunning()) == replicas, nil
	})
}

// small creates a few services of ten replicas, one after another, and says how long each took.
func (c *cluster) small(ctx context.Context, name string) ([]float64, error) {
	leader, err := c.leader(ctx)
	if err != nil {
		return nil, err
	}
	var out []float64
	for i := range 7 {
		began := time.Now()
		service := fmt.Sprintf("%s-%d", name, i)
		before, err := c.reported()
		if err != nil {
			return nil, err
		}
		if err := c.create(ctx, leader, service, 10); err != nil {
			return nil, err
		}
		if err := c.running(ctx, leader, service, 10, before); err != nil {
			return nil, err
		}
		out = append(out, time.Since(began).Seconds())
	}
	return out, nil
}

// downs counts the workers that are called down.
func (c *cluster) downs(ctx context.Context, manager int) (int, error) {
	r, err := c.managers[manager].client.ListNodes(ctx, &swarmpb.ListNodesRequest{})
	if err != nil {
		return 0, err
	}
	down := 0
	for _, n := range r.GetNodes() {
		if n.GetStatus().GetState() == swarmpb.NodeState_NODE_STATE_DOWN && n.GetNode().GetRole() != swarmpb.NodeRole_NODE_ROLE_MANAGER {
			down++
		}
	}
	return down, nil
}

// lose ends the manager that leads, and waits until every worker has a session with another one, and has been told its tasks.
func (c *cluster) lose(ctx context.Context, r *result) error {
	leader, err := c.leader(ctx)
	if err != nil {
		return err
	}
	other := (leader + 1) % len(c.managers)
	r.LeaderRSSBefore = c.managers[leader].rss()
	began, looked := time.Now(), time.Now()
	c.managers[leader].kill()
	var s fleetState
	err = c.until(ctx, "all workers have sessions again", func() (bool, error) {
		err := c.fleet.ask("state", &s)
		if time.Since(looked) > time.Second {
			looked = time.Now()
			if down, err := c.downs(ctx, other); err == nil {
				r.Downs = max(r.Downs, down)
			}
		}
		r.LeaderRSSAt = max(r.LeaderRSSAt, c.managers[other].rss(), c.managers[(leader+2)%len(c.managers)].rss())
		return s.Connected == r.Nodes, err
	})
	r.Reconnect = time.Since(began).Seconds()
	if err != nil {
		return err
	}
	if err := pause(ctx, 20*time.Second); err != nil {
		return err
	}
	r.LeaderRSSAt = max(r.LeaderRSSAt, c.managers[other].rss())
	down, err := c.downs(ctx, other)
	r.Downs = max(r.Downs, down)
	return err
}
