package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/swarmd/swarmd/e2e/lab"
	"github.com/swarmd/swarmd/e2e/measure"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

const (
	publishedPort = 8080
	proxyPort     = 9090
	webPort       = 80
	// The side entrance: addresses of a link of the measuring's own into the replica's namespace. What goes through it meets the same
	// hosts, links and process as what is published, and is not translated: the container's own address.
	sideHost, sideTask = "198.51.100.1", "198.51.100.2"
	// The client's second address; replies to it take the side entrance.
	sideClient = "10.77.0.250"
	attempts   = 300
)

// The other ways' clients, each with an address of its own: a translated connection whose addresses and ports are those of
// another way's that is closed but not yet forgotten (two minutes) has the kernel look for another port, which is a cost of the measuring.
var outsideClients = []string{"10.77.0.246", "10.77.0.247", "10.77.0.248", "10.77.0.249"}

// side is one way to a replica.
type side struct {
	name      string
	namespace string
	to, from  string
}

// comparison is a way, what it is compared with and the target for new and for kept connections; 0 = none.
type comparison struct {
	name, base string
	targets    [2]float64
}

func (b *bench) paths(ctx context.Context) error {
	for range 2 {
		if _, _, err := b.Join(ctx); err != nil {
			return err
		}
	}
	sides, err := b.prepare(ctx)
	if err != nil {
		return err
	}
	comparisons := []comparison{
		{"ingress, local replica", "own address", [2]float64{1.20, 1.20}},
		{"ingress, remote replica", "own address", [2]float64{1.6, 1.9}},
		{"VIP", "own address in the overlay", [2]float64{1.10, 1.10}},
	}
	if b.haproxy != "" {
		comparisons = append(comparisons, comparison{"ingress, local replica", "HAProxy, local replica", [2]float64{1, 1}},
			comparison{"ingress, remote replica", "HAProxy, remote replica", [2]float64{1, 1}}, comparison{"VIP", "HAProxy, overlay", [2]float64{1, 1}})
	}
	for i, keep := range []bool{false, true} {
		kind := map[bool]string{false: "new connections", true: "keep-alive"}[keep]
		fmt.Printf("-- %s (load %s)\n", kind, measure.Load())
		costs, err := b.measure(ctx, sides, keep)
		if err != nil {
			return err
		}
		for _, s := range sides {
			fmt.Printf("%-28s %s\n", s.name, perOperation(costs[s.name]))
		}
		for _, c := range comparisons {
			report(c, kind, c.targets[i], costs)
		}
	}
	return nil
}

func perOperation(s measure.Series) string {
	return fmt.Sprintf("%6.1f us CPU a request, worst %.1f of %d", float64(s.Median().Nanoseconds())/1e3, float64(s.Worst().Nanoseconds())/1e3, len(s))
}

// report compares round by round: the two sides of a round were measured one after the other.
func report(c comparison, kind string, target float64, costs map[string]measure.Series) {
	var ratios []float64
	for i, cost := range costs[c.name] {
		ratios = append(ratios, float64(cost)/float64(costs[c.base][i]))
	}
	slices.Sort(ratios)
	median := ratios[len(ratios)/2]
	verdict := "met"
	if median > target {
		verdict = "MISSED"
	}
	fmt.Printf("   %s / %s, %s: ratio %.2f (%.2f to %.2f), target %.2f %s\n", c.name, c.base, kind, median, ratios[0], ratios[len(ratios)-1], target, verdict)
}

// measure takes all sides in turns; costs are CPU a request.
func (b *bench) measure(ctx context.Context, sides []side, keep bool) (map[string]measure.Series, error) {
	n := b.requests
	if keep {
		n *= 5
	}
	out := map[string]measure.Series{}
	for round := range b.rounds + 1 {
		for i := range sides {
			s := sides[(i+round)%len(sides)]
			before, err := b.CPU()
			if err != nil {
				return nil, err
			}
			if err := b.send(ctx, s, keep, n); err != nil {
				return nil, fmt.Errorf("%s: %w", s.name, err)
			}
			after, err := b.CPU()
			if err != nil {
				return nil, err
			}
			if round > 0 { // the first warms up
				out[s.name] = append(out[s.name], (after-before)/time.Duration(n))
			}
		}
	}
	return out, nil
}

func (b *bench) send(ctx context.Context, s side, keep bool, n int) error {
	args := []string{b.self, loadArg, "-to", s.to, "-n", fmt.Sprint(n), fmt.Sprintf("-keep=%t", keep)}
	if s.from != "" {
		args = append(args, "-from", s.from)
	}
	cmd, err := b.Begin(ctx, s.namespace, args...)
	if err != nil {
		return err
	}
	return cmd.Run()
}

// prepare makes one replica on the second host, published and in a network, three callers in that network on the third, the side
// entrance, and the proxies.
func (b *bench) prepare(ctx context.Context) ([]side, error) {
	hosts := b.Members()
	near, away := hosts[1], hosts[2]
	var err error
	if b.client, err = b.NewClient(); err != nil {
		return nil, err
	}
	network, err := b.CreateNetwork(ctx, "back")
	if err != nil {
		return nil, err
	}
	web, err := b.task(ctx, "web", network, near, publishedPort)
	if err != nil {
		return nil, err
	}
	webSpace, err := namespaceOf(near, web)
	if err != nil {
		return nil, err
	}
	var callSpaces []string
	for i := range 3 {
		calls, err := b.task(ctx, fmt.Sprintf("calls%d", i), network, away, 0)
		if err != nil {
			return nil, err
		}
		space, err := namespaceOf(away, calls)
		if err != nil {
			return nil, err
		}
		callSpaces = append(callSpaces, space)
	}
	if err := b.openSide(near, webSpace); err != nil {
		return nil, fmt.Errorf("make the way to the container's own address: %w", err)
	}
	vip, err := b.vip(ctx, "web")
	if err != nil {
		return nil, err
	}
	overlay := web.GetAddresses().GetNetworks()[0].GetAddress()
	outside := b.client.Namespace()
	sides := []side{
		{"own address", outside, address(sideTask, webPort), sideClient},
		{"ingress, local replica", outside, address(near.Addr.String(), publishedPort), outsideClients[0]},
		{"ingress, remote replica", outside, address(away.Addr.String(), publishedPort), outsideClients[1]},
		{"own address in the overlay", callSpaces[0], address(overlay, webPort), ""},
		{"VIP", callSpaces[1], address(vip, webPort), ""},
	}
	if b.haproxy != "" {
		proxies := []struct{ name, namespace, listen, to, called, from string }{
			{"HAProxy, local replica", hostSpace(near), near.Addr.String(), address(sideTask, webPort), outside, outsideClients[2]},
			{"HAProxy, remote replica", hostSpace(away), away.Addr.String(), address(sideTask, webPort), outside, outsideClients[3]},
			{"HAProxy, overlay", callSpaces[2], "127.0.0.1", address(overlay, webPort), callSpaces[2], ""},
		}
		for i, p := range proxies {
			if err := b.proxy(ctx, i, p.namespace, address(p.listen, proxyPort), p.to); err != nil {
				return nil, err
			}
			sides = append(sides, side{p.name, p.called, address(p.listen, proxyPort), p.from})
		}
	}
	for _, s := range sides {
		if err := b.answers(ctx, s); err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return sides, nil
}

func address(host string, port uint16) string { return net.JoinHostPort(host, fmt.Sprint(port)) }

func hostSpace(h *measure.Host) string { return fmt.Sprintf("/proc/%d/ns/net", h.Pid()) }

func namespaceOf(h *measure.Host, x *swarmpb.TaskInfo) (string, error) {
	pid, err := h.FirstProcess(x.GetTask().GetId())
	return fmt.Sprintf("/proc/%d/ns/net", pid), err
}

// answers waits until a way is open.
func (b *bench) answers(ctx context.Context, s side) error {
	var err error
	for range attempts {
		if err = b.send(ctx, s, false, 1); err == nil || ctx.Err() != nil {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
	return err
}

// task makes a service of one replica on a host and returns that.
func (b *bench) task(ctx context.Context, name, network string, on *measure.Host, port uint32) (*swarmpb.TaskInfo, error) {
	spec := measure.Service(name, 1)
	spec.Task.Networks = []*swarmpb.NetworkAttachment{{Network: network}}
	spec.Task.Placement = &swarmpb.Placement{Constraints: []string{"node.hostname==" + on.Name}}
	if port != 0 {
		spec.Endpoint = &swarmpb.EndpointSpec{Ports: []*swarmpb.PortConfig{{
			Protocol: swarmpb.Protocol_PROTOCOL_TCP, Mode: swarmpb.PublishMode_PUBLISH_MODE_INGRESS, PublishedPort: port, TargetPort: webPort,
		}}}
	}
	if err := b.Create(ctx, spec); err != nil {
		return nil, err
	}
	w, err := b.Watch(ctx, name)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	if err := w.Until(func(p *measure.Picture) bool { return len(p.RunningTasks()) == 1 }); err != nil {
		return nil, err
	}
	for _, x := range w.RunningTasks() {
		return x, nil
	}
	return nil, errors.New("no task")
}

func (b *bench) vip(ctx context.Context, service string) (string, error) {
	r, err := b.Manager().Control.GetService(ctx, &swarmpb.GetServiceRequest{Service: service})
	if err != nil {
		return "", err
	}
	vips := r.GetService().GetEndpoint().GetVips()
	if len(vips) != 1 {
		return "", fmt.Errorf("service %s has %d VIPs, want 1", service, len(vips))
	}
	return vips[0].GetAddress(), nil
}

// openSide makes the link between a host and a replica's namespace, and the routes to it of the client and the other hosts.
func (b *bench) openSide(h *measure.Host, space string) error {
	inside := lab.NewDialer(space)
	defer inside.Close()
	task, err := os.Open(space)
	if err != nil {
		return err
	}
	defer task.Close()
	link := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: "side", PeerNamespace: netlink.NsFd(task.Fd())}
	link.Name = "side"
	err = h.Inside(func() error { return errors.Join(netlink.LinkAdd(link), prefixOn("side", sideHost+"/30")) })
	if err != nil {
		return err
	}
	err = inside.Do(func() error {
		if err := prefixOn("side", sideTask+"/30"); err != nil {
			return err
		}
		to := []string{sideClient}
		for _, other := range b.Members() {
			if other != h {
				to = append(to, other.Addr.String())
			}
		}
		for _, a := range to {
			if err := routeTo(a+"/32", sideHost); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, other := range b.Members() {
		if other == h {
			continue
		}
		if err := other.Inside(func() error { return routeTo(sideTask+"/32", h.Addr.String()) }); err != nil {
			return err
		}
	}
	return b.client.Do(func() error {
		failed := routeTo(sideTask+"/32", h.Addr.String())
		for _, a := range append(outsideClients, sideClient) {
			failed = errors.Join(failed, prefixOn("eth0", a+"/32"))
		}
		return failed
	})
}

func prefixOn(link, prefix string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	p := netip.MustParsePrefix(prefix)
	a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
	return errors.Join(netlink.AddrAdd(l, a), netlink.LinkSetUp(l))
}

func routeTo(prefix, via string) error {
	_, dst, err := net.ParseCIDR(prefix)
	if err != nil {
		return err
	}
	r := &netlink.Route{Dst: dst, Gw: net.ParseIP(via), Scope: unix.RT_SCOPE_UNIVERSE}
	if err := netlink.RouteReplace(r); err != nil {
		return fmt.Errorf("route %s via %s: %w", prefix, via, err)
	}
	return nil
}

// proxy starts HAProxy as a forwarder of TCP, in one thread and without logs, the least that it can do.
func (b *bench) proxy(ctx context.Context, number int, namespace, listen, to string) error {
	config := filepath.Join(b.cfg.Dir, fmt.Sprintf("haproxy-%d.cfg", number))
	lines := []string{
		"global", "  maxconn 4000", "  nbthread 1", "defaults", "  mode tcp", "  timeout connect 5s", "  timeout client 1m", "  timeout server 1m",
		"listen web", "  bind " + listen, "  server web " + to, "",
	}
	if err := os.WriteFile(config, []byte(strings.Join(lines, "\n")), 0o644); err != nil {
		return err
	}
	cmd, err := b.Begin(ctx, namespace, b.haproxy, "-db", "-f", config)
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start HAProxy: %w", err)
	}
	b.children = append(b.children, cmd)
	return nil
}
