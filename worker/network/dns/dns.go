// Package dns answers the names of the cluster's networks for the tasks of a node.
//
// There is one Resolver a node. For each task it has a UDP and a TCP socket on 127.0.0.11 inside the task's network
// namespace, served by this process. What the names of a network stand for comes from Apply alone, so it has the
// version of the state that the managers have told; once Apply has returned, no answer names an address that is gone.
// Everything else is forwarded: to the host's nameservers from the host's namespace, or to those that the task asks
// for, from the task's. Nothing is cached, and answers carry a TTL of zero, so nobody else caches either.
package dns

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
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
	Set  map[string][]netip.Addr
	// Removed names; unknown ones are no error.
	Removed []string
	// Name of the network: NAME.NETWORK is found too, as users of Docker know it. Empty: unchanged.
	Name string
	// Subnets of the network: reverse lookups of addresses in them are never forwarded. nil: unchanged.
	Subnets []netip.Prefix
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

// Resolver answers names for the tasks of this node. All methods are safe for concurrent use.
type Resolver struct {
	cfg Config
}

// New makes a Resolver that knows no names.
func New(cfg Config) *Resolver { return &Resolver{cfg: cfg} }

// Run closes the sockets whose namespaces are gone, and all of them when ctx ends, and returns when nothing of the
// resolver runs any more. Listen fails after it.
func (r *Resolver) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// Apply changes what names stand for. Once it has returned, no answer that leaves names an address that is gone.
func (r *Resolver) Apply(Update) {}

// Listen opens the sockets of a task on 127.0.0.11 inside the network namespace at the path, and answers there until
// Close. Called again for the same task, it takes over the client's settings and, as long as the namespace is the same
// one, keeps the ports.
func (r *Resolver) Listen(taskID, namespace string, client Client) (udp, tcp uint16, err error) {
	return 0, 0, errors.New("names are not served yet")
}

// Close lets go of the task's sockets; a task without any is no error.
func (r *Resolver) Close(taskID string) {}

// HostUpstream reads nameservers from a file such as /etc/resolv.conf, anew when it has changed.
func HostUpstream(path string) func() []netip.AddrPort {
	return func() []netip.AddrPort { return nil }
}
