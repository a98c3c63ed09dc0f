// Package gossip tells which nodes look dead: hashicorp/memberlist under keys that the managers hand out.
//
// What it says is a hint and no authority: whoever holds a key can speak for any node. Nothing may be decided on it
// alone. It promises that traffic without a key is dropped before anything is made of it, that a holder of a key
// can neither end this process nor fill its memory, as the library is handed only what this node could have sent and
// what its bytes can hold, and that it never speaks unencrypted: without a key it is silent.
//
// A node that stops on purpose says so and is not dead: its session tells the managers what they must know, and the
// lease of a node that is only being restarted must not be cut short.
package gossip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// DefaultPort is that of gossip, the same on all nodes of a cluster.
const DefaultPort = 7946

// What the failure detector is tuned to: with these a dead node is seen in two to three seconds.
const (
	probeInterval  = 400 * time.Millisecond
	probeTimeout   = 150 * time.Millisecond
	suspicionMult  = 3
	gossipInterval = 100 * time.Millisecond
)

const (
	// syncInterval is how often two nodes compare all they know; it grows with the cluster.
	syncInterval = 10 * time.Second
	// streamTimeout bounds one such comparison, and how long a stream without a key can hold its place.
	streamTimeout = 3 * time.Second
	// farewell bounds each of the two messages with which a node leaves.
	farewell = 300 * time.Millisecond
	// openPause is the pause between tries to get the port.
	openPause = 5 * time.Second
	// probeTries: a lost packet is no sign of death.
	probeTries = 3
)

// Limits bound what others can make this node hold. A zero field has the default that its comment says.
type Limits struct {
	// Members known at a time, dead ones included; 20,000.
	Members int
	// Streams that others may have open here at a time, and any one address of them; 8 and 3.
	Streams, StreamsPerAddress int
	// StreamBytes is the largest message in a stream; 4 MiB, twice what 20,000 members need.
	StreamBytes int
	// PacketBytes is the largest packet; 2 KiB, as nodes send at most 1,400 bytes.
	PacketBytes int
	// Handoff is the number of packets' messages that wait to be handled, of each of two kinds; 256.
	Handoff int
}

func (l Limits) withDefaults() Limits {
	for field, value := range map[*int]int{
		&l.Members: 20_000, &l.Streams: 8, &l.StreamsPerAddress: 3, &l.StreamBytes: 4 << 20, &l.PacketBytes: 2 << 10, &l.Handoff: 256,
	} {
		if *field <= 0 {
			*field = value
		}
	}
	return l
}

// Config of a Gossip. Fields without a remark are required.
type Config struct {
	// NodeID is the node's name among the others.
	NodeID string
	// BindAddress is host:port, or a host alone for DefaultPort. The host is an IP address; none, or 0.0.0.0, is all of
	// this host's and takes an AdvertiseAddress.
	BindAddress string
	// AdvertiseAddress is the IP address at which the others reach this node; empty = that of BindAddress.
	AdvertiseAddress string
	// Limits may be left zero.
	Limits Limits
	Logger *slog.Logger
}

// Member is a node that is believed to be alive.
type Member struct {
	NodeID  string
	Address netip.AddrPort
}

// Gossip is this node's part in it. All methods are safe for concurrent use.
type Gossip struct {
	cfg             Config
	log             *slog.Logger
	bind, advertise netip.AddrPort
	ring            *memberlist.Keyring
	roster          *roster
	ran             atomic.Bool
	leaving         atomic.Bool

	keyed chan struct{} // closed once there is a key
	meet  chan struct{} // poked when the seeds have changed

	mu    sync.Mutex
	seeds []string
	list  *memberlist.Memberlist // while it runs
	err   error
}

// New checks the configuration; nothing is opened before Run.
func New(cfg Config) (*Gossip, error) {
	if !swarmpb.ValidID(cfg.NodeID) {
		return nil, fmt.Errorf("gossip: node ID %q is not valid", cfg.NodeID)
	}
	bind, err := parseAddress(cfg.BindAddress)
	if err != nil {
		return nil, fmt.Errorf("gossip: bind address: %w", err)
	}
	advertise := bind
	if cfg.AdvertiseAddress != "" {
		addr, err := netip.ParseAddr(cfg.AdvertiseAddress)
		if err != nil {
			return nil, fmt.Errorf("gossip: advertise address: %w", err)
		}
		advertise = netip.AddrPortFrom(addr.Unmap(), bind.Port())
	}
	if advertise.Addr().IsUnspecified() {
		return nil, fmt.Errorf("gossip: advertise address: other nodes cannot reach %s; give one of this host's addresses", advertise.Addr())
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	cfg.Limits = cfg.Limits.withDefaults()
	ring, err := memberlist.NewKeyring(nil, nil)
	if err != nil {
		return nil, fmt.Errorf("gossip: %w", err)
	}
	return &Gossip{
		cfg: cfg, log: cfg.Logger, bind: bind, advertise: advertise, ring: ring, roster: newRoster(cfg.NodeID, cfg.Limits.Members),
		keyed: make(chan struct{}), meet: make(chan struct{}, 1),
	}, nil
}

// parseAddress reads IP:port, IP or :port.
func parseAddress(s string) (netip.AddrPort, error) {
	host, port := s, strconv.Itoa(DefaultPort)
	if h, p, err := net.SplitHostPort(s); err == nil {
		host, port = h, p
	}
	addr := netip.IPv4Unspecified()
	if host = strings.Trim(host, "[]"); host != "" {
		var err error
		if addr, err = netip.ParseAddr(host); err != nil {
			return netip.AddrPort{}, err
		}
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return netip.AddrPort{}, fmt.Errorf("port %q is not between 1 and 65535", port)
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(n)), nil
}

// Configure gives the keys, the primary one first, and the nodes (host:port or host) to begin with. The first key
// starts gossip. What was sent under an earlier key is read until the keys no longer name it. Without a valid key the
// present ones stay.
func (g *Gossip) Configure(keys [][]byte, seeds []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	valid := slices.DeleteFunc(slices.Clone(keys), func(k []byte) bool { return memberlist.ValidateKey(k) != nil })
	if len(valid) != len(keys) {
		g.log.Warn("gossip keys that are not of 16, 24 or 32 bytes are left out", "keys", len(keys)-len(valid))
	}
	if len(valid) > 0 {
		if err := install(g.ring, valid); err != nil {
			g.log.Error("cannot install gossip keys", "error", err)
		}
		select {
		case <-g.keyed:
		default:
			close(g.keyed)
		}
	}
	if !slices.Equal(seeds, g.seeds) {
		g.seeds = slices.Clone(seeds)
		poke(g.meet)
	}
}

// install makes the ring hold exactly the keys, the first one for sending: what is new comes in before anything
// goes. A key is taken from the ring's end alone, as the library moves those behind it under the eyes of readers.
func install(ring *memberlist.Keyring, keys [][]byte) error {
	for _, key := range keys {
		if err := ring.AddKey(slices.Clone(key)); err != nil {
			return err
		}
	}
	stale := func(key []byte) bool {
		return !slices.ContainsFunc(keys, func(k []byte) bool { return string(k) == string(key) })
	}
	held := ring.GetKeys()
	if at := slices.IndexFunc(held, stale); at >= 0 && slices.ContainsFunc(held[at:], func(k []byte) bool { return !stale(k) }) {
		// Each key that is used moves to the front, past those that are to go.
		for _, key := range slices.Backward(keys) {
			if err := ring.UseKey(key); err != nil {
				return err
			}
		}
	}
	if err := ring.UseKey(keys[0]); err != nil {
		return err
	}
	for _, key := range slices.Backward(ring.GetKeys()) {
		if stale(key) {
			if err := ring.RemoveKey(key); err != nil {
				return err
			}
		}
	}
	return nil
}

// Run takes part, once there is a key, until ctx ends; it then tells the others that this node stops on purpose. It
// is called once. A port that something else has is no reason to end: Err says it, and it is tried again.
func (g *Gossip) Run(ctx context.Context) error {
	if !g.ran.CompareAndSwap(false, true) {
		return errors.New("gossip: it has already been run")
	}
	select {
	case <-g.keyed:
	case <-ctx.Done():
		return nil
	}
	list, transport := g.open(ctx)
	if list == nil {
		return nil
	}
	g.gather(ctx, list)
	g.close(list, transport)
	return nil
}

// open tries until the port is free; nil when ctx ended first.
func (g *Gossip) open(ctx context.Context) (*memberlist.Memberlist, *transport) {
	for {
		list, transport, err := g.create()
		g.mu.Lock()
		g.list, g.err = list, err
		g.mu.Unlock()
		if err == nil {
			return list, transport
		}
		g.log.Error("cannot take part in gossip; the loss of a node is noticed later", "error", err)
		select {
		case <-time.After(openPause):
		case <-ctx.Done():
			return nil, nil
		}
	}
}

func (g *Gossip) create() (*memberlist.Memberlist, *transport, error) {
	logger := newLogger(g.log)
	transport, err := listen(g.bind, g.advertise, g.cfg.Limits, g.ring, logger)
	if err != nil {
		return nil, nil, fmt.Errorf("listen on %s: %w", g.bind, err)
	}
	c := memberlist.DefaultLANConfig()
	c.Name, c.Transport, c.Keyring = g.cfg.NodeID, transport, g.ring
	c.GossipVerifyIncoming, c.GossipVerifyOutgoing = true, true
	c.ProbeInterval, c.ProbeTimeout, c.SuspicionMult, c.GossipInterval = probeInterval, probeTimeout, suspicionMult, gossipInterval
	c.PushPullInterval, c.TCPTimeout = syncInterval, streamTimeout
	// IDs and addresses do not compress, and the inspector refuses what is compressed.
	c.EnableCompression = false
	// A node that comes back at another address is known again as soon as it is known to have died at the old one.
	c.DeadNodeReclaimTime = time.Millisecond
	c.HandoffQueueDepth = g.cfg.Limits.Handoff
	c.Alive, c.Events, c.Delegate = g.roster, g.roster, delegate{&g.leaving}
	c.LogOutput, c.Logger = nil, logger
	list, err := memberlist.Create(c)
	if err != nil {
		return nil, nil, errors.Join(err, transport.Shutdown())
	}
	return list, transport, nil
}

// close says farewell and stops. The library's own goroutines end within a probe interval.
func (g *Gossip) close(list *memberlist.Memberlist, transport *transport) {
	g.mu.Lock()
	g.list = nil
	g.mu.Unlock()
	if len(g.roster.alive()) > 0 {
		// The library does not tell its users who left from who died: that is what the announcement is for.
		g.leaving.Store(true)
		err := errors.Join(list.UpdateNode(farewell), list.Leave(farewell))
		if err != nil {
			g.log.Debug("leaving gossip", "error", err)
		}
	}
	if err := errors.Join(list.Shutdown(), transport.Shutdown()); err != nil {
		g.log.Warn("cannot stop gossip", "error", err)
	}
}

// running is nil before and after.
func (g *Gossip) running() *memberlist.Memberlist {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.list
}

// Err says why this node does not take part, nil while it does or has no key yet.
func (g *Gossip) Err() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}

// Dead tells whether the node is known and looks dead. One that left on purpose does not, nor one never heard of.
func (g *Gossip) Dead(nodeID string) bool { return g.roster.dead(nodeID) }

// Members are the other nodes that are believed to be alive, by ID.
func (g *Gossip) Members() []Member { return g.roster.alive() }

// Changes has something after who is alive or dead has changed; one reader.
func (g *Gossip) Changes() <-chan struct{} { return g.roster.changed }

// Probe asks the node directly, whatever the others believe of it; nil = it answered just now. Of address, an IP
// address with or without a port, only the host counts: gossip's port is the same on all nodes.
func (g *Gossip) Probe(ctx context.Context, nodeID, address string) error {
	host := address
	if h, _, err := net.SplitHostPort(address); err == nil {
		host = h
	}
	addr, err := netip.ParseAddr(strings.Trim(host, "[]"))
	if err != nil {
		return fmt.Errorf("probe node %s: %w", nodeID, err)
	}
	list := g.running()
	if list == nil {
		return fmt.Errorf("probe node %s: this node takes no part in gossip", nodeID)
	}
	target := net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr.Unmap(), g.bind.Port()))
	answered := make(chan error, 1)
	go func() { // the library's ping ends by itself, after probeTimeout
		var err error
		for range probeTries {
			if _, err = list.Ping(nodeID, target); err == nil || ctx.Err() != nil {
				break
			}
		}
		answered <- err
	}()
	select {
	case err = <-answered:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("probe node %s at %s: %w", nodeID, target, err)
	}
	return nil
}

// delegate announces whether this node is leaving, and takes no messages of users.
type delegate struct{ leaving *atomic.Bool }

var _ memberlist.Delegate = delegate{}

func (d delegate) NodeMeta(int) []byte {
	if d.leaving.Load() {
		return []byte(metaLeaving)
	}
	return nil
}

func (delegate) NotifyMsg([]byte)                {}
func (delegate) GetBroadcasts(int, int) [][]byte { return nil }
func (delegate) LocalState(bool) []byte          { return nil }
func (delegate) MergeRemoteState([]byte, bool)   {}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
