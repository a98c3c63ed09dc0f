package lab

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"
)

func TestClients_HaveAddressesOfTheirOwn_OfBothFamilies(t *testing.T) {
	l := newLab(t, 1)
	h := l.Hosts()[0]
	for _, want := range []string{"1", "2"} {
		c, err := l.NewClient()
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range []struct{ listen, client string }{
			{net.JoinHostPort(h.Addr.String(), "80"), c.Addr.String()}, {net.JoinHostPort(h.Addr6.String(), "80"), c.Addr6.String()},
		} {
			var li net.Listener
			if err := h.Inside(func() (err error) { li, err = net.Listen("tcp", at.listen); return err }); err != nil {
				t.Fatal(err)
			}
			for range 2 { // the second uses the first's thread
				conn, err := c.Dial(context.Background(), "tcp", at.listen)
				if err != nil {
					t.Fatal(err)
				}
				if host, _, _ := net.SplitHostPort(conn.LocalAddr().String()); host != at.client || !strings.HasSuffix(c.Name, want) {
					t.Errorf("%s calls %s from %s, want %s", c.Name, at.listen, host, at.client)
				}
				_ = conn.Close()
			}
			_ = li.Close()
		}
	}
}

func TestMTU_LargerPacketsDoNotPass(t *testing.T) {
	l := newLabOf(t, Config{Hosts: 2, MTU: 1400})
	a, b := l.Hosts()[0], l.Hosts()[1]
	for _, x := range []struct {
		h    *Host
		size string
		code int
	}{{a, "1372", 0}, {b, "1373", 1}} {
		other := b.Addr
		if x.h == b {
			other = a.Addr
		}
		if err := x.h.Inside(func() error { return sendWhole(other.String()+":9", x.size) }); (err != nil) != (x.code != 0) {
			t.Errorf("a datagram of %s bytes that may not be cut: %v", x.size, err)
		}
	}
}

func TestDockerFirewall_HostForwardsNothing(t *testing.T) {
	l := newLab(t, 2)
	router, server := l.Hosts()[0], l.Hosts()[1]
	c, err := l.NewClient()
	if err != nil {
		t.Fatal(err)
	}
	var li net.Listener
	if err := server.Inside(func() error { return addressFor(t, "lo", "10.99.0.1/32") }); err != nil {
		t.Fatal(err)
	}
	if err := server.Inside(func() (err error) { li, err = net.Listen("tcp", "10.99.0.1:80"); return err }); err != nil {
		t.Fatal(err)
	}
	defer li.Close()
	if err := router.Inside(func() error { return routeVia(t, "10.99.0.1/32", server.Addr) }); err != nil {
		t.Fatal(err)
	}
	if err := c.Do(func() error { return routeVia(t, "10.99.0.1/32", router.Addr) }); err != nil {
		t.Fatal(err)
	}
	dial := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		conn, err := c.Dial(ctx, "tcp", "10.99.0.1:80")
		if err == nil {
			_ = conn.Close()
		}
		return err
	}
	if err := until(10*time.Second, dial); err != nil {
		t.Fatal("through a router without a firewall:", err)
	}
	if err := router.DockerFirewall(); err != nil {
		t.Fatal(err)
	}
	if err := dial(); err == nil {
		t.Error("a packet was forwarded though Docker's policy is to drop it")
	}
}
