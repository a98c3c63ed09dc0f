package ingress

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// TestRebalance_CoarserClass_FinerSlotsGoAfterIt: on the host and in tasks' namespaces.
func TestRebalance_CoarserClass_FinerSlotsGoAfterIt(t *testing.T) {
	to := netip.MustParseAddr("10.0.7.9")
	of := func(class int) (*balance, vipBalance) {
		b, v := &balance{kind: byChance}, vipBalance{}
		for range class {
			b.backends, v = append(b.backends, netip.AddrPortFrom(to, 80)), append(v, to)
		}
		return b, v
	}
	fine, fineVIP := of(64)
	coarse, coarseVIP := of(16)
	none, noneVIP := of(0)
	host, names := newTable(), newVIPTable(Table)
	for _, c := range []struct {
		name                 string
		next                 *balance
		nextVIP              vipBalance
		now, after, verdicts int
	}{{"coarser", coarse, coarseVIP, 0, 48, 1}, {"refused", none, noneVIP, 64, 0, 0}} {
		change, vips := newChange(), newChange()
		host.rebalance(change, portKey{unix.IPPROTO_TCP, 80}, fine, c.next, netip.Prefix{})
		names.rebalance(vips, vip4, fineVIP, c.nextVIP, true)
		for what, got := range map[string][3]int{
			"port": {len(change.take[host.backends[0]]), change.rest.taken(host.backends[0]), len(change.given[host.published])},
			"VIP":  {len(vips.take[names.backends[0]]), vips.rest.taken(names.backends[0]), len(vips.given[names.vips[0]])},
		} {
			if want := [3]int{c.now, c.after, c.verdicts}; got != want {
				t.Errorf("%s, %s: slots taken, taken after, and verdicts given are %v, want %v", c.name, what, got, want)
			}
		}
	}
}

func (c *change) taken(s *nftables.Set) int {
	if c == nil {
		return 0
	}
	return len(c.take[s])
}

// TestTrial_ClassShrinksAndGrows_NoConnectionIsRefused: a packet that has read the class of before must find its slot still.
func TestTrial_ClassShrinksAndGrows_NoConnectionIsRefused(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	l.tell(Update{Full: true, Services: []*swarmpb.AssignedService{trying(0, port(tcp, 8080, 80))},
		Endpoints: []*swarmpb.Endpoint{h.pod("old").ofSet(1, active), h.pod("new").ofSet(2, active)}})
	var made, failed atomic.Int64
	var first atomic.Pointer[error]
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			_ = in(l.client, func() error {
				for ctx.Err() == nil {
					c, err := net.DialTimeout("tcp", h.at(8080), 2*time.Second)
					if err != nil {
						failed.Add(1)
						first.CompareAndSwap(nil, &err)
						continue
					}
					_ = c.(*net.TCPConn).SetLinger(0)
					_ = c.Close()
					made.Add(1)
				}
				return nil
			})
		})
	}
	changes := 0
	for made.Load() < 5000 {
		share := uint32(changes % 2 * 500)
		must(t, h.Apply(Update{Services: []*swarmpb.AssignedService{trying(share, port(tcp, 8080, 80))}}))
		changes++
	}
	cancel()
	all.Wait()
	t.Logf("%d connections, %d changes", made.Load(), changes)
	if n := failed.Load(); n > 0 {
		t.Errorf("%d of %d connections failed during %d changes, the first: %v", n, made.Load()+n, changes, *first.Load())
	}
}
