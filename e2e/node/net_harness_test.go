package node_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/swarmd/swarmd/e2e/lab"
)

// netCluster is a cluster with clients outside of it.
type netCluster struct {
	*cluster
	clients []*lab.Client
}

// newNetCluster makes a cluster of hosts and clients. One manager, unless more of the hosts are to be.
func newNetCluster(t *testing.T, hosts, clients int, flags ...string) *netCluster {
	t.Helper()
	return withClients(t, newCluster(t, hosts, flags...), clients)
}

func withClients(t *testing.T, of *cluster, n int) *netCluster {
	t.Helper()
	c := &netCluster{cluster: of}
	for range n {
		client, err := c.lab.NewClient()
		if err != nil {
			t.Fatal(err)
		}
		c.clients = append(c.clients, client)
	}
	return c
}

// soak tells whether the sizes are those of make soak.
func soak() bool { return os.Getenv("SOAK") != "" }

// sized is a number for make test, and one for make soak.
func sized(test, long int) int {
	if soak() {
		return long
	}
	return test
}

// inTask is a dialer in a task's own network namespace.
func (c *netCluster) inTask(t *testing.T, x task) *lab.Dialer {
	t.Helper()
	d := lab.NewDialer(fmt.Sprintf("/proc/%d/ns/net", c.pid(t, x)))
	t.Cleanup(d.Close)
	return d
}

// on creates a service whose tasks run on one host.
func (c *netCluster) on(t *testing.T, host int, name string, replicas int, flags ...string) []task {
	t.Helper()
	return c.create(t, name, replicas, append([]string{"--constraint", fmt.Sprintf("node.hostname==node-%d", host)}, flags...)...)
}

// url of a port on a host, at its address of either family.
func url4(h *lab.Host, port int, path string) string {
	return "http://" + netip.AddrPortFrom(h.Addr, uint16(port)).String() + path
}

func url6(h *lab.Host, port int, path string) string {
	return "http://" + netip.AddrPortFrom(h.Addr6, uint16(port)).String() + path
}

// who is what /tiny says.
type who struct {
	// Task is the replica's ID, Client its address as the replica sees it, without the port.
	Task, Client string
}

// tiny asks once, over a connection of its own.
func tiny(dial dialer, url string) (who, error) {
	client := &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}, Timeout: 5 * time.Second}
	return askTiny(client, url)
}

func askTiny(client *http.Client, url string) (who, error) {
	r, err := client.Get(url)
	if err != nil {
		return who{}, err
	}
	defer r.Body.Close()
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return who{}, err
	}
	if r.StatusCode != http.StatusNoContent {
		return who{}, fmt.Errorf("%s: %s", url, r.Status)
	}
	host, _, err := net.SplitHostPort(r.Header.Get("Client"))
	if err != nil {
		return who{}, err
	}
	a, err := netip.ParseAddr(host)
	return who{Task: r.Header.Get("Hostname"), Client: a.Unmap().String()}, err
}

// answers waits until a port answers there, and says who did.
func answers(t *testing.T, dial dialer, url string) who {
	t.Helper()
	var out who
	until(t, func() (err error) { out, err = tiny(dial, url); return err })
	return out
}

// serves waits until every one of the tasks has answered at a URL, and nobody else for a while.
func (c *netCluster) serves(t *testing.T, dial dialer, url string, tasks []task) {
	t.Helper()
	until(t, func() error {
		got := map[string]int{}
		for range 40 * len(tasks) {
			w, err := tiny(dial, url)
			if err != nil {
				return fmt.Errorf("%s: %w", url, err)
			}
			got[w.Task]++
		}
		for _, x := range tasks {
			if got[hostnameOf(x)] == 0 {
				return fmt.Errorf("%s: %s never answered: %v", url, x.Name, got)
			}
		}
		if len(got) != len(tasks) {
			return fmt.Errorf("%s: answered by %v, want %s", url, got, describe(tasks))
		}
		return nil
	})
}

// hostnameOf is what a task's container calls itself.
func hostnameOf(x task) string { return x.ID[:12] }

// echo sends a datagram and returns what the replica answers: who it is and whom it sees.
func echo(dial dialer, network, addr string) (who, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	conn, err := dial(ctx, network, addr)
	if err != nil {
		return who{}, err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	if _, err := conn.Write([]byte("hello")); err != nil {
		return who{}, err
	}
	buf := make([]byte, 1500)
	n, err := conn.Read(buf)
	if err != nil {
		return who{}, err
	}
	return parseEcho(string(buf[:n]))
}

func parseEcho(s string) (who, error) {
	words := strings.Fields(s)
	if len(words) != 3 || words[2] != "hello" {
		return who{}, fmt.Errorf("the echo is %q", s)
	}
	a, err := netip.ParseAddrPort(words[1])
	return who{Task: words[0], Client: a.Addr().Unmap().String()}, err
}

// lookup asks the resolver in a task's namespace, as its programs do.
func lookup(d *lab.Dialer, name string) ([]string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return d.Dial(ctx, network, "127.0.0.11:53")
	}}
	out, err := r.LookupHost(ctx, name+".")
	slices.Sort(out)
	return out, err
}

// notFound tells whether a name was answered, with nothing.
func notFound(err error) bool {
	var no *net.DNSError
	return errors.As(err, &no) && no.IsNotFound
}

// inspected is `KIND inspect NAME` as JSON.
func (c *cluster) inspected(t *testing.T, kind, name string) map[string]any {
	t.Helper()
	var out []map[string]any
	text := c.ok(t, c.via, kind, "inspect", name)
	if err := json.Unmarshal([]byte(text), &out); err != nil || len(out) != 1 {
		t.Fatalf("%s inspect %s: %v\n%s", kind, name, err, text)
	}
	return out[0]
}

// dig finds a value by its path in what inspect says.
func dig(x any, path ...string) any {
	for _, p := range path {
		switch v := x.(type) {
		case map[string]any:
			x = v[p]
		case []any:
			i, err := strconv.Atoi(p)
			if err != nil || i >= len(v) {
				return nil
			}
			x = v[i]
		default:
			return nil
		}
	}
	return x
}

// overlayAddresses are a task's addresses in its networks, as it sees them itself on eth1 and on.
func (c *netCluster) overlayAddresses(t *testing.T, x task) []netip.Addr {
	t.Helper()
	var out []netip.Addr
	for i := 1; ; i++ {
		var found []netip.Addr
		err := c.inTask(t, x).Do(func() error {
			l, err := net.InterfaceByName(fmt.Sprintf("eth%d", i))
			if err != nil {
				return err
			}
			addrs, err := l.Addrs()
			for _, a := range addrs {
				if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLinkLocalUnicast() {
					found = append(found, p.Addr())
				}
			}
			return err
		})
		if err != nil {
			return out
		}
		out = append(out, found...)
	}
}

// uplinkAddress is that of a task's eth0.
func (c *netCluster) uplinkAddress(t *testing.T, x task) netip.Addr {
	t.Helper()
	a, err := netip.ParseAddr(x.Address)
	if err != nil {
		t.Fatalf("task %s has the address %q: %v", x.Name, x.Address, err)
	}
	return a
}

// closed wants that nothing answers at an address: refused, or silent for a second.
func closed(t *testing.T, what string, dial dialer, addr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if conn, err := dial(ctx, "tcp", addr); err == nil {
		_ = conn.Close()
		t.Errorf("%s: %s was reached", what, addr)
	}
}
