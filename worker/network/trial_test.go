package network

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

const (
	isActive   = swarmpb.EndpointState_ENDPOINT_STATE_ACTIVE
	isStandby  = swarmpb.EndpointState_ENDPOINT_STATE_STANDBY
	isStarting = swarmpb.EndpointState_ENDPOINT_STATE_STARTING
)

// TestView_Trial_DividesNamesAndVIPs: who is in which answer, for every kind of a side.
func TestView_Trial_DividesNamesAndVIPs(t *testing.T) {
	red := testNetwork("red", 4097, "10.0.4.0/24")
	red.Progress.Subnet6 = "fd00:4097::/64"
	of := func(task string, host int, set uint64, state swarmpb.EndpointState, node string) *swarmpb.AssignmentChange {
		return setEndpoint(&swarmpb.Endpoint{TaskId: task, ServiceId: "websvc", NodeId: node, State: state, Set: set,
			Networks: []*swarmpb.NetworkAddress{{NetworkId: "red", Address: fmt.Sprint("10.0.4.", host)}}})
	}
	hosts := func(addrs []netip.Addr) string {
		var out []string
		for _, a := range addrs {
			out = append(out, a.String()[strings.LastIndex(a.String(), ".")+1:])
		}
		slices.Sort(out)
		return strings.Join(out, " ")
	}
	for _, c := range []struct {
		name      string
		trial     *swarmpb.Trial
		endpoints []*swarmpb.AssignmentChange
		dead      string
		// of the name: without division, or rest and trial; of preview.web; of tasks.web
		plain, rest, trialed, preview, tasks string
	}{
		{"no trial", nil, []*swarmpb.AssignmentChange{of("a", 1, 1, isActive, "n"), of("b", 2, 2, isActive, "n"), of("c", 3, 1, isStandby, "n")}, "", "1 2", "", "", "absent", "1 2"},
		{"no share", &swarmpb.Trial{Set: 2, Preview: true}, []*swarmpb.AssignmentChange{of("a", 1, 1, isActive, "n"), of("b", 2, 2, isActive, "n")}, "", "1", "", "", "2", "1 2"},
		{"a share", &swarmpb.Trial{Set: 2, Share: 500, Preview: true}, []*swarmpb.AssignmentChange{of("a", 1, 1, isActive, "n"), of("b", 2, 2, isActive, "n"), of("c", 3, 2, isStandby, "n"), of("d", 4, 2, isStarting, "n")}, "", "", "1", "2", "2", "1 2"},
		{"all", &swarmpb.Trial{Set: 2, Share: 10000}, []*swarmpb.AssignmentChange{of("a", 1, 1, isActive, "n"), of("b", 2, 2, isActive, "n")}, "", "2", "", "", "absent", "1 2"},
		{"a share, not ready", &swarmpb.Trial{Set: 2, Share: 500, Preview: true}, []*swarmpb.AssignmentChange{of("a", 1, 1, isActive, "n"), of("b", 2, 2, isStandby, "n")}, "", "1", "", "", "", "1"},
		{"all, not ready", &swarmpb.Trial{Set: 2, Share: 10000, Preview: true}, []*swarmpb.AssignmentChange{of("a", 1, 1, isActive, "n"), of("b", 2, 2, isStandby, "n")}, "", "", "", "", "", "1"},
		{"the rest not ready", &swarmpb.Trial{Set: 2, Share: 500, Preview: true}, []*swarmpb.AssignmentChange{of("a", 1, 1, isStandby, "n"), of("b", 2, 2, isActive, "n")}, "", "2", "", "", "2", "2"},
		{"the trial's node is dead", &swarmpb.Trial{Set: 2, Share: 500, Preview: true}, []*swarmpb.AssignmentChange{of("a", 1, 1, isActive, "n"), of("b", 2, 2, isActive, "m")}, "m", "1", "", "", "2", "1"},
		{"all nodes are dead", &swarmpb.Trial{Set: 2, Share: 500, Preview: true}, []*swarmpb.AssignmentChange{of("a", 1, 1, isActive, "m"), of("b", 2, 2, isActive, "m")}, "m", "", "1", "2", "2", "1 2"},
		{"no share, the rest's node is dead", &swarmpb.Trial{Set: 2, Preview: true}, []*swarmpb.AssignmentChange{of("a", 1, 1, isActive, "m"), of("b", 2, 2, isActive, "n")}, "m", "1", "", "", "2", "2"},
	} {
		v := view{told: newTold(), dead: map[string]bool{c.dead: true}}
		s := web(red)
		s.Mode, s.Trial = swarmpb.EndpointMode_ENDPOINT_MODE_DNSRR, c.trial
		v.merge(true, append([]*swarmpb.AssignmentChange{setService(s)}, c.endpoints...))
		names := v.names("red", "websvc")
		preview := hosts(names["preview.web"].addrs)
		if names["preview.web"].absent {
			preview = "absent"
		}
		got := []string{hosts(names["web"].addrs), hosts(names["web"].divided.Rest), hosts(names["web"].divided.Trial), preview, hosts(names["tasks.web"].addrs)}
		if want := []string{c.plain, c.rest, c.trialed, c.preview, c.tasks}; !slices.Equal(got, want) || !names["www"].equal(names["web"]) {
			t.Errorf("%s: plain, rest, trial, preview, tasks are %q, want %q", c.name, got, want)
		}
		if d := names["web"].divided; (d.Share == 0) != (c.trialed == "") || d.Share != 0 && d.Share != c.trial.GetShare() {
			t.Errorf("%s: divided by %d", c.name, d.Share)
		}
		vip := v.sides("red", "websvc").vips(pair{v4: netip.MustParseAddr("10.0.4.100")})[0]
		var leads []netip.Addr
		for _, b := range slices.Concat(vip.Backends, vip.Trial) {
			leads = append(leads, b.Address)
		}
		if want := strings.TrimSpace(c.plain + c.rest + " " + c.trialed); hosts(leads) != want {
			t.Errorf("%s: the VIP leads to %q, want %q", c.name, hosts(leads), want)
		}
	}
}

// TestTrial_VIPAndNames_FollowTheShare_AbortEndsIt: in real namespaces, from a task on one node to replicas on two.
func TestTrial_VIPAndNames_FollowTheShare_AbortEndsIt(t *testing.T) {
	c := newCluster(t, 2)
	red := testNetwork("red", 4097, "10.0.4.0/24")
	byName := &swarmpb.AssignedService{Id: "rrsvc", Name: "rr", Mode: swarmpb.EndpointMode_ENDPOINT_MODE_DNSRR, Networks: []*swarmpb.NetworkAttachment{{Network: red.Id}}}
	service := web(red)
	c.tellPeers(t, setNetwork(red), setService(service), setService(byName))
	old, fresh := c.nodes[0].task(t, "oldtask", at(red, 5)), c.nodes[1].task(t, "newtask", at(red, 6))
	client := c.nodes[0].task(t, "clienttask", at(red, 9))
	answer(t, old.Namespace, "old")
	answer(t, fresh.Namespace, "new")
	echoes(t, old.Namespace, "old")
	echoes(t, fresh.Namespace, "new")
	one, two := c.nodes[0].endpoint("websvc", "oldtask", 1, old), c.nodes[1].endpoint("websvc", "newtask", 2, fresh)
	one.Set, two.Set = 1, 2
	again := func(e *swarmpb.Endpoint) *swarmpb.Endpoint { // the same, as tasks of the other service
		e = swarmpb.Clone(e)
		e.ServiceId, e.TaskId = "rrsvc", e.GetTaskId()+"2"
		return e
	}
	c.tell(t, false, setEndpoint(one), setEndpoint(two), setEndpoint(again(one)), setEndpoint(again(two)),
		setEndpoint(c.nodes[0].endpoint("client", "clienttask", 1, client)))
	ns := client.Namespace
	share := func(trial *swarmpb.Trial) {
		t.Helper()
		service, byName = swarmpb.Clone(service), swarmpb.Clone(byName)
		service.Trial, byName.Trial = trial, trial
		c.tell(t, false, setService(service), setService(byName))
	}
	unnamed(t, ns, "preview.web")
	share(&swarmpb.Trial{Set: 2, Preview: true})
	named(t, ns, "preview.web", "10.0.4.6")
	named(t, ns, "preview.rr", "10.0.4.6")
	named(t, ns, "rr", "10.0.4.5")
	named(t, ns, "tasks.rr", "10.0.4.5", "10.0.4.6")
	for range 50 {
		wants(t, ns, "10.0.4.100:80", "old 10.0.4.9")
	}
	share(&swarmpb.Trial{Set: 2, Share: 2500, Preview: true})
	const times = 2000
	byVIP, names := 0, 0
	for range times {
		got, err := get(ns, "10.0.4.100:80")
		must(t, err)
		if strings.HasPrefix(got, "new ") {
			byVIP++
		}
		addrs, err := ask(ns, "rr")
		must(t, err)
		if slices.Equal(addrs, []string{"10.0.4.6"}) {
			names++
		}
	}
	t.Logf("of %d connections and answers the trial got %d and %d", times, byVIP, names)
	for what, n := range map[string]int{"connections through the VIP": byVIP, "answers of the name": names} {
		if n < times/5 || n > times*3/10 { // chance has a standard deviation of 1 %
			t.Errorf("of %d %s the trial got %d, want a quarter", times, what, n)
		}
	}
	// A flow of UDP that is with the trial, and connections too.
	udp := flowWith(t, ns, "10.0.4.100:53", "new")
	tcp := connectionWith(t, ns, "10.0.4.100:81", "new")
	share(&swarmpb.Trial{Set: 2, Preview: true})
	for range 100 {
		wants(t, ns, "10.0.4.100:80", "old 10.0.4.9")
	}
	named(t, ns, "rr", "10.0.4.5")
	if got := udp(); got != "old" {
		t.Errorf("a flow of UDP that was with the trial is with %q", got)
	}
	if err := tcp(); err != nil {
		t.Errorf("a connection that was with the trial: %v", err)
	}
	// Not ready: the same.
	share(&swarmpb.Trial{Set: 2, Share: 10000, Preview: true})
	udp, tcp = flowWith(t, ns, "10.0.4.100:53", "new"), connectionWith(t, ns, "10.0.4.100:81", "new")
	share(nil)
	standby := swarmpb.Clone(two)
	standby.State = isStandby
	c.tell(t, false, setEndpoint(standby))
	for range 20 {
		wants(t, ns, "10.0.4.100:80", "old 10.0.4.9")
	}
	named(t, ns, "tasks.web", "10.0.4.5")
	named(t, ns, "web.2", "10.0.4.6") // it can be reached still
	unnamed(t, ns, "preview.web")
	if got := udp(); got != "old" {
		t.Errorf("a flow of UDP that was with a replica that is not ready is with %q", got)
	}
	if err := tcp(); err != nil {
		t.Errorf("a connection with a replica that is not ready: %v", err)
	}
}

// echoes answers with a name, over UDP on port 53 and over TCP on port 81, where what is sent comes back after it.
func echoes(t *testing.T, ns, name string) {
	t.Helper()
	var pc net.PacketConn
	var li net.Listener
	must(t, in(ns, func() (err error) {
		if pc, err = net.ListenPacket("udp4", ":53"); err == nil {
			li, err = net.Listen("tcp4", ":81")
		}
		return err
	}))
	t.Cleanup(func() { _ = li.Close() })
	go func() {
		for {
			c, err := li.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.WriteString(c, name+" ")
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	t.Cleanup(func() { _ = pc.Close() })
	go func() {
		b := make([]byte, 100)
		for {
			_, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo([]byte(name), from)
		}
	}()
}

// flowWith is a flow of UDP with the task of that name; it asks again who answers.
func flowWith(t *testing.T, ns, to, name string) func() string {
	t.Helper()
	for range 200 {
		var c net.Conn
		must(t, in(ns, func() (err error) { c, err = net.Dial("udp4", to); return err }))
		ask := func() string {
			b := make([]byte, 100)
			for range 3 {
				_, _ = c.Write([]byte("?"))
				_ = c.SetDeadline(time.Now().Add(time.Second))
				if n, err := c.Read(b); err == nil {
					return string(b[:n])
				}
			}
			return ""
		}
		t.Cleanup(func() { _ = c.Close() })
		if ask() == name {
			return ask
		}
	}
	t.Fatalf("no flow of 200 is with %s", name)
	return nil
}

// connectionWith is a connection with the task of that name; it tells whether it still works.
func connectionWith(t *testing.T, ns, to, name string) func() error {
	t.Helper()
	for range 200 {
		var c net.Conn
		must(t, in(ns, func() (err error) { c, err = net.DialTimeout("tcp4", to, time.Second); return err }))
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		b := make([]byte, 100)
		n, err := c.Read(b)
		must(t, err)
		if strings.HasPrefix(string(b[:n]), name+" ") {
			return func() error {
				_ = c.SetDeadline(time.Now().Add(5 * time.Second))
				if _, err := c.Write([]byte("x")); err != nil {
					return err
				}
				_, err := c.Read(b)
				return err
			}
		}
	}
	t.Fatalf("no connection of 200 is with %s", name)
	return nil
}
