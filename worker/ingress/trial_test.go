package ingress

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/ingress/slots"
)

const standby = swarmpb.EndpointState_ENDPOINT_STATE_STANDBY

// ofSet is the pod's endpoint as one of a set.
func (p *pod) ofSet(set uint64, state swarmpb.EndpointState) *swarmpb.Endpoint {
	e := p.endpoint("s", state)
	e.Set = set
	return e
}

// trying is the service with a trial of set 2.
func trying(share uint32, ports ...*swarmpb.PortConfig) *swarmpb.AssignedService {
	s := publishing("s", ports...)
	s.Trial = &swarmpb.Trial{Set: 2, Share: share, Preview: true}
	return s
}

// sample makes so many new connections from the client and tells who answered how often. One that fails fails the test.
func (l *lab) sample(times int, to ...string) map[string]int {
	l.t.Helper()
	seen := map[string]int{}
	must(l.t, in(l.client, func() error {
		for n := range times {
			c, err := net.DialTimeout("tcp", to[n%len(to)], 2*time.Second)
			if err != nil {
				return err
			}
			_ = c.SetDeadline(time.Now().Add(2 * time.Second))
			b := make([]byte, 200)
			size, err := c.Read(b)
			_ = c.Close()
			if err != nil {
				return err
			}
			id, _, _ := strings.Cut(string(b[:size]), " ")
			seen[id]++
		}
		return nil
	}))
	return seen
}

// partOf is what part of all connections the named pods got, in percent.
func partOf(seen map[string]int, names ...string) float64 {
	all, of := 0, 0
	for name, n := range seen {
		all += n
		if slices.Contains(names, name) {
			of += n
		}
	}
	return 100 * float64(of) / float64(all)
}

// dialled is a connection with the pod, and whether it still works.
func (l *lab) dialled(to, id string) func() error {
	l.t.Helper()
	for range 500 {
		if got, echo := established(l.t.(*testing.T), l.client, to); got == id {
			return echo
		}
	}
	l.t.Fatalf("no connection of 500 to %s is with %s", to, id)
	return nil
}

// packets is a flow of UDP with the pod, which tells whom it is with.
func (l *lab) packets(to, id string) func() string {
	l.t.Helper()
	for range 500 {
		var c net.Conn
		must(l.t, in(l.client, func() (err error) { c, err = net.Dial("udp", to); return err }))
		l.t.Cleanup(func() { _ = c.Close() })
		ask := func() string {
			b := make([]byte, 200)
			for range 5 {
				_, _ = c.Write([]byte("?"))
				_ = c.SetReadDeadline(time.Now().Add(time.Second))
				if n, err := c.Read(b); err == nil {
					got, _, _ := strings.Cut(string(b[:n]), " ")
					return got
				}
			}
			return ""
		}
		if ask() == id {
			return ask
		}
	}
	l.t.Fatalf("no flow of 500 to %s is with %s", to, id)
	return nil
}

// TestTrial_Canary_SharesAreMeasured_AbortStopsNewOnes: from a client outside, through two nodes, with a replica of each set on
// each of them.
func TestTrial_Canary_SharesAreMeasured_AbortStopsNewOnes(t *testing.T) {
	l := newLab(t, 2)
	ports := []*swarmpb.PortConfig{port(tcp, 8080, 80), port(udp, 5353, 53)}
	old := []*pod{l.hosts[0].pod("old0"), l.hosts[1].pod("old1"), l.hosts[0].pod("old2")}
	fresh := []*pod{l.hosts[0].pod("new0"), l.hosts[1].pod("new1")}
	u := Update{Full: true, Services: []*swarmpb.AssignedService{trying(0, ports...)}}
	for _, p := range old {
		u.Endpoints = append(u.Endpoints, p.ofSet(1, active))
	}
	for _, p := range fresh {
		u.Endpoints = append(u.Endpoints, p.ofSet(2, active))
	}
	l.tell(u)
	at := []string{l.hosts[0].at(8080), l.hosts[1].at(8080), l.hosts[0].at6(8080), l.hosts[1].at6(8080)}
	share := func(hundredths uint32) {
		t.Helper()
		l.tell(Update{Services: []*swarmpb.AssignedService{trying(hundredths, ports...)}})
	}
	none := func(when string) {
		t.Helper()
		if seen := l.sample(400, at...); partOf(seen, "new0", "new1") != 0 {
			t.Errorf("%s: connections went to %v", when, seen)
		}
	}
	none("without a share")
	for _, c := range []struct {
		percent uint32
		times   int
	}{{5, 4000}, {25, 10000}} { // 2 points are more than 4.5 times the standard deviation
		percent, times := c.percent, c.times
		share(percent * 100)
		seen := l.sample(times, at...)
		got := partOf(seen, "new0", "new1")
		t.Logf("%d %%: of %d connections %.2f %% went to the trial: %v", percent, times, got, seen)
		if got < float64(percent)-2 || got > float64(percent)+2 {
			t.Errorf("at %d %% the trial got %.2f %%", percent, got)
		}
		if each := partOf(seen, "new0"); each < got*0.3 || each > got*0.7 {
			t.Errorf("at %d %% its replicas got %v", percent, seen)
		}
	}
	var echoes []func() error
	for _, to := range at {
		echoes = append(echoes, l.dialled(to, "new0"), l.dialled(to, "old1"))
	}
	flow, flow6 := l.packets(l.hosts[0].at(5353), "new1"), l.packets(l.hosts[1].at6(5353), "new0")
	kept := l.packets(l.hosts[0].at(5353), "old1")
	share(0)
	none("after the abort")
	for i, echo := range echoes {
		if err := echo(); err != nil {
			t.Errorf("established connection %d: %v", i, err)
		}
	}
	for _, h := range l.hosts {
		for _, p := range fresh {
			if n := flows(t, h.ns, leadingTo(p, unix.IPPROTO_UDP)); n > 0 {
				t.Errorf("host %d: %d UDP entries lead to %s", h.number, n, p.id)
			}
		}
	}
	if a, b, c := flow(), flow6(), kept(); !strings.HasPrefix(a, "old") || !strings.HasPrefix(b, "old") || c != "old1" {
		t.Errorf("flows of UDP are with %q, %q and %q", a, b, c)
	}
	// And back: all to the trial, then its end, in which nothing moves.
	share(10000)
	if seen := l.sample(200, at...); partOf(seen, "new0", "new1") != 100 {
		t.Errorf("with all of them: connections went to %v", seen)
	}
	if got := kept(); !strings.HasPrefix(got, "new") {
		t.Errorf("a flow of UDP is with %q", got)
	}
	before := slices.Clone(l.hosts[0].balances[portKey{unix.IPPROTO_TCP, 8080}].backends)
	l.tell(Update{Services: []*swarmpb.AssignedService{publishing("s", ports...)}, RemovedEndpoints: []string{"old0", "old1", "old2"}})
	if after := l.hosts[0].balances[portKey{unix.IPPROTO_TCP, 8080}].backends; !slices.Equal(after, before) {
		t.Error("slots moved as the trial ended")
	}
}

// TestTrial_UsableSides_GetWhatTheOthersLeave: not ready, dead, gone, or not there at all.
func TestTrial_UsableSides_GetWhatTheOthersLeave(t *testing.T) {
	l := newLab(t, 2)
	h := l.hosts[0]
	old, fresh := h.pod("old"), l.hosts[1].pod("new")
	l.tell(Update{Full: true, Services: []*swarmpb.AssignedService{trying(5000, port(tcp, 8080, 80), port(udp, 5353, 53))}, Endpoints: []*swarmpb.Endpoint{old.ofSet(1, active), fresh.ofSet(2, active)}})
	goes := func(when string, want ...string) {
		t.Helper()
		seen := map[string]int{}
		for _, h := range l.hosts {
			for id, n := range l.sample(60, h.at(8080)) {
				seen[id] += n
			}
		}
		for _, id := range want {
			if seen[id] == 0 {
				t.Errorf("%s: connections went to %v, want %v", when, seen, want)
			}
		}
		if len(seen) != len(want) {
			t.Errorf("%s: connections went to %v, want %v", when, seen, want)
		}
	}
	goes("both", "new", "old")
	echo, flow := l.dialled(h.at(8080), "new"), l.packets(h.at(5353), "new")
	l.tell(Update{Endpoints: []*swarmpb.Endpoint{fresh.ofSet(2, standby)}})
	goes("the trial is not ready", "old")
	if err := echo(); err != nil {
		t.Errorf("a connection with a replica that is not ready: %v", err)
	}
	if got := flow(); got != "old" {
		t.Errorf("a flow of UDP that was with a replica that is not ready is with %q", got)
	}
	l.tell(Update{Endpoints: []*swarmpb.Endpoint{fresh.ofSet(2, active)}})
	goes("ready again", "new", "old")
	hint := func(dead string) {
		for _, h := range l.hosts {
			must(t, in(h.ns, func() error { return h.Hint(func(id string) bool { return dead != "" && strings.Contains(dead, id) }) }))
		}
	}
	hint("node2")
	goes("the trial's node is dead", "old")
	hint("node1 node2")
	goes("all nodes are dead", "new", "old")
	hint("")
	l.tell(Update{RemovedEndpoints: []string{"old"}})
	goes("the rest is gone", "new")
	l.tell(Update{Services: []*swarmpb.AssignedService{trying(0, port(tcp, 8080, 80))}})
	if got, err := get(l.client, "tcp", h.at(8080)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a trial without a share, alone: %q, %v; want it refused", got, err)
	}
	l.tell(Update{Services: []*swarmpb.AssignedService{trying(10000, port(tcp, 8080, 80))}, Endpoints: []*swarmpb.Endpoint{old.ofSet(1, active), fresh.ofSet(2, standby)}})
	if got, err := get(l.client, "tcp", h.at(8080)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a trial with all, not ready: %q, %v; want it refused", got, err)
	}
}

// TestLoopback_UDP_LeavesWhoGetsNoConnections: a client of 127.0.0.1 that never pauses is the proxy's flow, not the kernel's.
func TestLoopback_UDP_LeavesWhoGetsNoConnections(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	old, fresh := h.pod("old"), h.pod("new")
	service := func(share uint32) []*swarmpb.AssignedService {
		return []*swarmpb.AssignedService{trying(share, port(udp, 5353, 53))}
	}
	l.tell(Update{Full: true, Services: service(10000), Endpoints: []*swarmpb.Endpoint{old.ofSet(1, active), fresh.ofSet(2, active)}})
	c, err := net.Dial("udp", "127.0.0.1:5353")
	must(t, err)
	defer c.Close()
	with := func(when, want string) {
		t.Helper()
		eventually(t, when, func() bool {
			b := make([]byte, 200)
			_, _ = c.Write([]byte("?"))
			_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			n, err := c.Read(b)
			return err == nil && strings.HasPrefix(string(b[:n]), want+" ")
		})
	}
	with("it begins with the trial", "new")
	l.tell(Update{Services: service(0)})
	with("without a share", "old")
	l.tell(Update{Services: service(5000)})
	with("a share that leaves it its slots", "old")
	l.tell(Update{Endpoints: []*swarmpb.Endpoint{old.ofSet(1, draining)}})
	with("draining", "new")
}

// TestPreview_LeadsToTheTrialsSetAlone_WhileItLasts: from outside and on loopback, whatever the share.
func TestPreview_LeadsToTheTrialsSetAlone_WhileItLasts(t *testing.T) {
	l := newLab(t, 2)
	h := l.hosts[0]
	old, fresh := h.pod("old"), l.hosts[1].pod("new")
	service := func(share uint32) *swarmpb.AssignedService {
		s := trying(share, port(tcp, 8080, 80))
		s.PreviewPorts = []*swarmpb.PortConfig{port(tcp, 8081, 80), port(udp, 5354, 53)}
		return s
	}
	l.tell(Update{Full: true, Services: []*swarmpb.AssignedService{service(0)}, Endpoints: []*swarmpb.Endpoint{old.ofSet(1, active), fresh.ofSet(2, standby)}})
	for _, to := range []string{h.at(8081), l.hosts[1].at6(8081)} {
		if got, err := get(l.client, "tcp", to); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s without a replica that is ready: %q, %v; want it refused", to, got, err)
		}
	}
	l.tell(Update{Endpoints: []*swarmpb.Endpoint{fresh.ofSet(2, active)}})
	for _, share := range []uint32{0, 500, 10000} {
		l.tell(Update{Services: []*swarmpb.AssignedService{service(share)}})
		if seen := l.sample(60, h.at(8081), h.at6(8081), l.hosts[1].at(8081)); seen["new"] != 60 {
			t.Errorf("share %d: connections to the preview went to %v", share, seen)
		}
		for _, to := range []string{"127.0.0.1:8081", "[::1]:8081"} {
			if got, err := get("", "tcp", to); err != nil || !strings.HasPrefix(got, "new ") {
				t.Errorf("share %d: %s: %q, %v", share, to, got, err)
			}
		}
		if got, err := get(l.client, "udp", h.at(5354)); err != nil || !strings.HasPrefix(got, "new ") {
			t.Errorf("share %d: udp: %q, %v", share, got, err)
		}
	}
	if seen := l.sample(20, h.at(8080)); seen["new"] != 20 {
		t.Errorf("with all of them: connections went to %v", seen)
	}
	l.tell(Update{Services: []*swarmpb.AssignedService{publishing("s", port(tcp, 8080, 80))}})
	if got, err := get(l.client, "tcp", h.at(8081)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after it: %q, %v; want it refused", got, err)
	}
	li, err := net.Listen("tcp", ":8081")
	if err != nil {
		t.Fatalf("its port is not free: %v", err)
	}
	defer li.Close()
	// Something else has the port: that is told as for any published one.
	must(t, h.Apply(Update{Services: []*swarmpb.AssignedService{service(0)}}))
	if c := h.Conflicts(); len(c) != 1 || c[0].GetPort() != 8081 || !strings.Contains(c[0].GetProcess(), fmt.Sprintf("(pid %d)", syscall.Getpid())) {
		t.Errorf("conflicts: %v", c)
	}
	must(t, h.Apply(Update{Services: []*swarmpb.AssignedService{publishing("s", port(tcp, 8080, 80))}}))
	if c := h.Conflicts(); len(c) != 0 {
		t.Errorf("conflicts after it: %v", c)
	}
}

// TestTrial_Affinity_ClientsStayUntilTheyMustMove: a share moves as many clients as it has to, the same on every node.
func TestTrial_Affinity_ClientsStayUntilTheyMustMove(t *testing.T) {
	s := newState()
	sticky := port(tcp, 8080, 80)
	sticky.Affinity = swarmpb.Affinity_AFFINITY_CLIENT_IP
	u := Update{Full: true, Services: []*swarmpb.AssignedService{publishing("s", sticky)}}
	addresses := map[netip.Addr]string{}
	for n := range 7 {
		e := endpointAt("s", n, n+1)
		e.Set = 1
		if n >= 5 {
			e.Set = 2
		}
		a, _ := uplinkAddress(e)
		addresses[a] = e.TaskId
		u.Endpoints = append(u.Endpoints, e)
	}
	u.Services[0].Trial = &swarmpb.Trial{Set: 2}
	clients := func(u Update) []string {
		touched, _ := s.take(u)
		s.claim(touched)
		b := s.claimed(portKey{unix.IPPROTO_TCP, 8080})
		out := make([]string, slots.Classes[len(slots.Classes)-1])
		for i := range out {
			out[i] = addresses[b.backends[i*len(b.backends)/len(out)].Addr()]
		}
		return out
	}
	was := clients(u)
	for _, share := range []uint32{500, 2500, 10000, 500, 0} {
		service := publishing("s", sticky)
		service.Trial = &swarmpb.Trial{Set: 2, Share: share}
		now := clients(Update{Services: []*swarmpb.AssignedService{service}})
		trial, moved := 0, 0
		for i := range now {
			if now[i] == "s.5" || now[i] == "s.6" {
				trial++
			}
			if now[i] != was[i] {
				moved++
			}
		}
		before := 0
		for _, id := range was {
			if id == "s.5" || id == "s.6" {
				before++
			}
		}
		if want := int(share) * len(now) / 10000; trial < want-1 || trial > want+1 {
			t.Errorf("share %d: %d clients of %d are with the trial", share, trial, len(now))
		}
		if must := max(trial-before, before-trial); moved != must {
			t.Errorf("share %d: %d clients moved, %d had to", share, moved, must)
		}
		was = now
	}
}

// TestTrial_RestartOfTheDaemon_SlotsStay: what a former process divided is taken over as it is.
func TestTrial_RestartOfTheDaemon_SlotsStay(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	u := Update{Full: true, Services: []*swarmpb.AssignedService{trying(500, port(tcp, 8080, 80))},
		Endpoints: []*swarmpb.Endpoint{h.pod("old").ofSet(1, active), h.pod("new").ofSet(2, active)}}
	l.tell(u)
	key := portKey{unix.IPPROTO_TCP, 8080}
	before := slices.Clone(h.balances[key].backends)
	h.Close()
	h.start()
	l.tell(u)
	if after := h.balances[key].backends; !slices.Equal(after, before) {
		t.Error("slots moved")
	}
	if len(before) < 256 {
		t.Errorf("%d slots are too few for a share of 5 %%", len(before))
	}
	must(t, h.Check())
}

// TestVIP_Trial_SharesAreMeasured: both families, and the trial's end.
func TestVIP_Trial_SharesAreMeasured(t *testing.T) {
	o := newOverlay(t, 4)
	v := o.open(0)
	with := func(share uint32) []VIP {
		all := o.vips(1, 2)
		for i, b := range []netip.Addr{o.addr(3), o.addr6(3)} {
			all[i].Trial, all[i].Share = []Backend{{b, 100}}, share
		}
		return all
	}
	must(t, v.Apply(VIPUpdate{Full: true, VIPs: with(0)}))
	for _, c := range []struct {
		percent uint32
		times   int
	}{{0, 100}, {5, 1000}, {25, 2000}, {100, 100}} { // 5 points are 5 times the standard deviation
		percent, times := c.percent, c.times
		must(t, v.Apply(VIPUpdate{VIPs: with(percent * 100)}))
		for _, vip := range []netip.Addr{vip4, vip6} {
			seen := who(t, o.pods[0], at(vip, 80), times)
			got := partOf(seen, "c3")
			if exact := percent == 0 || percent == 100; exact && got != float64(percent) || got < float64(percent)-5 || got > float64(percent)+5 {
				t.Errorf("%s at %d %%: %.2f %% went to the trial, %v", vip, percent, got, seen)
			}
		}
		must(t, v.Check())
	}
	must(t, v.Apply(VIPUpdate{VIPs: o.vips(3)}))
	if seen := who(t, o.pods[0], at(vip4, 80), 20); seen["c3"] != 20 {
		t.Errorf("after it: answered by %v", seen)
	}
	if err := v.Apply(VIPUpdate{VIPs: []VIP{{Address: vip4, Backends: []Backend{{o.addr(1), 1}}, Trial: []Backend{{o.addr(1), 1}}, Share: 1}}}); err == nil {
		t.Error("a backend on both sides is taken")
	}
}
