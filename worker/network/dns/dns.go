// Package dns answers the names of the cluster's networks for the tasks of a node.
//
// There is one Resolver a node. For each task it has a UDP and a TCP socket on 127.0.0.11 inside the task's network
// namespace, served by this process. What the names of a network stand for comes from Apply alone, so it has the
// version of the state that the managers have told; once Apply has returned, no answer names an address that is gone.
// Everything else is forwarded: to the host's nameservers from the host's namespace, or to those that the task asks
// for, from the task's. Nothing is cached, and answers carry a TTL of zero, so nobody else caches either.
package dns

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"
)

// Config is what a Resolver needs.
type Config struct {
	// Upstream are the host's nameservers in their order, asked anew for each query; see HostUpstream.
	Upstream func() []netip.AddrPort
	Logger   *slog.Logger
	Limits   Limits
}

// Limits bound what tasks can make a Resolver do; a zero is its default.
type Limits struct {
	// Forwards and TaskForwards are the queries being forwarded at a time, of all tasks and of one. Default 1024, 256.
	Forwards, TaskForwards int
	// Conns and TaskConns are the TCP connections of all tasks and of one. Default 1024, 64.
	Conns, TaskConns int
	// Idle is how long a TCP connection may be without a query. Default 10 s.
	Idle time.Duration
	// Try is how long one nameserver has for one answer, Total all of them together. Default 2 s, 8 s.
	Try, Total time.Duration
}

func (l Limits) orDefault() Limits {
	return Limits{
		Forwards: cmp.Or(l.Forwards, 1024), TaskForwards: cmp.Or(l.TaskForwards, 256),
		Conns: cmp.Or(l.Conns, 1024), TaskConns: cmp.Or(l.TaskConns, 64),
		Idle: cmp.Or(l.Idle, 10*time.Second), Try: cmp.Or(l.Try, 2*time.Second), Total: cmp.Or(l.Total, 8*time.Second),
	}
}

// Update is a change of what names stand for. It is applied whole: no answer mixes old and new.
type Update struct {
	// Networks by their ID.
	Networks map[string]NetworkNames
	// RemovedNetworks are forgotten with their names.
	RemovedNetworks []string
	// Own are prefixes besides the networks' subnets whose addresses nobody outside can name (the uplink's pool): reverse
	// lookups of them are never forwarded. nil: unchanged.
	Own []netip.Prefix
}

// NetworkNames are the names of a network, or a change of them. Names are lower-case without a final dot.
type NetworkNames struct {
	// Full: Set is all there is; what is not in it is gone.
	Full bool
	// Set gives names their addresses. A name without any is known still: the answer is empty, and nobody else is asked.
	Set map[string][]netip.Addr
	// Divided are names of Set that besides stand for one of two sides each time that they are asked for.
	Divided map[string][]Division
	// Absent names do not exist, and nobody else is asked; that is an answer to be kept for a second at most.
	Absent []string
	// Removed names; unknown ones are no error.
	Removed []string
	// Name of the network: NAME.NETWORK is found too, as users of Docker know it. Empty: unchanged.
	Name string
	// Subnets of the network: reverse lookups of addresses in them are never forwarded. nil: unchanged.
	Subnets []netip.Prefix
}

// Division is two sets of addresses of which a query gets one: in Share of 10,000 cases Trial, else Rest. A side without
// addresses of the family that is asked for leaves it to the other.
type Division struct {
	Rest, Trial []netip.Addr
	Share       uint32
}

// Client says how a task's queries are answered.
type Client struct {
	// Networks that the task is attached to, by ID; where several have a name, the first one's answer counts.
	Networks []string
	// Nameservers for names outside of the cluster, asked from the task's own namespace. Empty: the host's, from the host's.
	Nameservers []netip.AddrPort
	// Isolated tasks have internal networks alone: the host's nameservers are not asked for them, as a query can carry
	// data out. Names outside of the cluster do not exist, unless the task has nameservers of its own that it reaches.
	Isolated bool
}

// errClosed: Run has ended.
var errClosed = errors.New("the resolver has been closed")

// sweepEvery is how often Run looks for sockets whose namespace is gone.
const sweepEvery = 10 * time.Second

// Resolver answers names for the tasks of this node. All methods are safe for concurrent use.
type Resolver struct {
	cfg   Config
	names table
	host  pool   // the host's nameservers
	total budget // of all tasks

	mu      sync.Mutex
	closed  bool
	clients map[string]*client
}

// New makes a Resolver that knows no names.
func New(cfg Config) *Resolver {
	cfg.Limits = cfg.Limits.orDefault()
	return &Resolver{cfg: cfg, names: newTable(), clients: map[string]*client{}, total: newBudget(cfg.Limits.Forwards, cfg.Limits.Conns)}
}

// Run closes the sockets whose namespaces are gone, and all of them when ctx ends, and returns when nothing of the
// resolver runs any more. Listen fails after it.
func (r *Resolver) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			r.sweep()
		case <-ctx.Done():
			r.mu.Lock()
			r.closed = true
			all := r.clients
			r.clients = map[string]*client{}
			r.mu.Unlock()
			for _, c := range all {
				c.close()
			}
			return nil
		}
	}
}

// sweep closes what nobody can ask any more: an open socket would keep a namespace alive for ever.
func (r *Resolver) sweep() {
	r.mu.Lock()
	var lost []*client
	for id, c := range r.clients {
		if !c.there() {
			lost = append(lost, c)
			delete(r.clients, id)
		}
	}
	r.mu.Unlock()
	for _, c := range lost {
		c.close()
	}
}

// Apply changes what names stand for. Once it has returned, no answer that leaves names an address that is gone.
func (r *Resolver) Apply(u Update) { r.names.apply(u) }

// Listen opens the sockets of a task on 127.0.0.11 inside the network namespace at the path, and answers there until
// Close. Called again for the same task, it takes over the client's settings and, as long as the namespace is the same
// one, keeps the ports.
func (r *Resolver) Listen(taskID, namespace string, settings Client) (udp, tcp uint16, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return 0, 0, fmt.Errorf("answer names for task %s: %w", taskID, errClosed)
	}
	if c := r.clients[taskID]; c != nil {
		if c.path == namespace && c.there() {
			c.settings.Store(newSettings(settings))
			return c.ports()
		}
		delete(r.clients, taskID)
		c.close()
	}
	c, err := r.listen(namespace, settings)
	if err != nil {
		return 0, 0, fmt.Errorf("answer names for task %s: %w", taskID, err)
	}
	r.clients[taskID] = c
	return c.ports()
}

// Close lets go of the task's sockets and waits until nothing answers on them; a task without any is no error.
func (r *Resolver) Close(taskID string) {
	r.mu.Lock()
	c := r.clients[taskID]
	delete(r.clients, taskID)
	r.mu.Unlock()
	if c != nil {
		c.close()
	}
}
