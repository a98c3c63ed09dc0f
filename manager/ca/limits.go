package ca

import (
	"container/list"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/swarmd/swarmd/proto/wire"
)

// Limits of the calls that need no certificate. A zero field takes its default.
type Limits struct {
	// PerHost and PerHostBurst: calls a second from one address.
	PerHost      rate.Limit
	PerHostBurst int
	// Overall and OverallBurst: calls a second from all.
	Overall      rate.Limit
	OverallBurst int
	// Hosts is how many addresses are remembered; the one not seen for longest goes first.
	Hosts int
	// NeverReady is how many nodes may have joined without ever becoming ready.
	NeverReady int
	// ExpiredFor is how long after its end a certificate still proves who a node is.
	ExpiredFor time.Duration
}

// DefaultLimits are the limits of a cluster.
func DefaultLimits() Limits {
	return Limits{
		PerHost: 5, PerHostBurst: 40, Overall: 200, OverallBurst: 1000, Hosts: 4096,
		NeverReady: 500, ExpiredFor: 90 * 24 * time.Hour,
	}
}

func (l Limits) orDefault() Limits {
	d := DefaultLimits()
	set(&l.PerHost, d.PerHost)
	set(&l.PerHostBurst, d.PerHostBurst)
	set(&l.Overall, d.Overall)
	set(&l.OverallBurst, d.OverallBurst)
	set(&l.Hosts, d.Hosts)
	set(&l.NeverReady, d.NeverReady)
	set(&l.ExpiredFor, d.ExpiredFor)
	return l
}

func set[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// throttle limits calls per address and overall, in bounded memory.
type throttle struct {
	limits Limits

	mu      sync.Mutex
	overall *rate.Limiter
	hosts   map[string]*list.Element
	order   *list.List // of *hostRate, the one seen last at the front
}

type hostRate struct {
	host string
	rate *rate.Limiter
	seen time.Time
}

func newThrottle(l Limits) *throttle {
	return &throttle{
		limits: l, overall: rate.NewLimiter(l.Overall, l.OverallBurst),
		hosts: make(map[string]*list.Element), order: list.New(),
	}
}

// allow judges the address first, so that one busy host does not use up what there is for all.
func (t *throttle) allow(host string, now time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.host(host, now).AllowN(now, 1) {
		return wire.Errorf(wire.CodeResourceExhausted, "too many join calls from %s; wait some seconds and try again", host)
	}
	if !t.overall.AllowN(now, 1) {
		return wire.Errorf(wire.CodeResourceExhausted, "too many hosts are joining at once; wait some seconds and try again")
	}
	return nil
}

func (t *throttle) host(host string, now time.Time) *rate.Limiter {
	if e, ok := t.hosts[host]; ok {
		t.order.MoveToFront(e)
		h := e.Value.(*hostRate)
		h.seen = now
		return h.rate
	}
	if len(t.hosts) >= t.limits.Hosts {
		t.drop(t.order.Back())
	}
	h := &hostRate{host: host, rate: rate.NewLimiter(t.limits.PerHost, t.limits.PerHostBurst), seen: now}
	t.hosts[host] = t.order.PushFront(h)
	return h.rate
}

func (t *throttle) drop(e *list.Element) {
	t.order.Remove(e)
	delete(t.hosts, e.Value.(*hostRate).host)
}

// sweep forgets addresses that were not seen for long enough that their allowance is whole again.
func (t *throttle) sweep(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	full := time.Duration(float64(t.limits.PerHostBurst) / float64(t.limits.PerHost) * float64(time.Second))
	for e := t.order.Back(); e != nil && now.Sub(e.Value.(*hostRate).seen) > full; e = t.order.Back() {
		t.drop(e)
	}
}
