package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"
)

// Client is a machine outside of the cluster, on the hosts' switch, with addresses of its own. It runs nothing by itself.
type Client struct {
	*Dialer
	Name string
	// Addr and Addr6 are its addresses.
	Addr, Addr6 netip.Addr

	node *node
}

// firstClient is the last byte of the first client's addresses; hosts count from 1.
const firstClient = 200

// NewClient adds a client, named client-1, client-2 and so on. It lives as long as the lab.
func (l *Lab) NewClient() (*Client, error) {
	i := len(l.clients) + 1
	last := byte(firstClient + i - 1)
	c := &Client{Name: fmt.Sprintf("client-%d", i), Addr: address4(last), Addr6: address6(last)}
	dir := filepath.Join(l.cfg.Dir, c.Name)
	for _, d := range []string{"run", "data"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	var err error
	if c.node, err = l.launch(hostConfig{Hostname: c.Name, Dir: dir}, filepath.Join(l.cfg.Dir, c.Name+".log")); err != nil {
		return nil, err
	}
	if err := l.wire(c.Name, c.node.pid, last); err != nil {
		c.node.kill()
		return nil, err
	}
	if err := l.release(c.node, dir); err != nil {
		c.node.kill()
		return nil, err
	}
	c.Dialer = NewDialer(networkOf(c.node.pid))
	l.clients = append(l.clients, c)
	return c, nil
}

// Namespace is the path of the client's network namespace.
func (c *Client) Namespace() string { return networkOf(c.node.pid) }

// Enter is the command line that runs a program in the client's network.
func (c *Client) Enter() []string { return []string{"nsenter", "--net=" + networkOf(c.node.pid)} }

// Dialer connects from a network namespace. It keeps threads there, so that many connections cost no more than one thread each
// that is being made at the same time.
type Dialer struct {
	path string

	mu     sync.Mutex
	idle   []chan<- func()
	closed bool
}

// NewDialer makes a dialer for the namespace at a path; see Close.
func NewDialer(path string) *Dialer { return &Dialer{path: path} }

// Dial connects from the namespace.
func (d *Dialer) Dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	err = d.Do(func() (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// Do runs fn on a thread in the namespace. Sockets that it makes belong there for ever.
func (d *Dialer) Do(fn func() error) error {
	worker, err := d.take()
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	worker <- func() { done <- fn() }
	err = <-done
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		close(worker)
	} else {
		d.idle = append(d.idle, worker)
	}
	return err
}

// Close lets go of the namespace; the dialer may be used no more.
func (d *Dialer) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	for _, worker := range d.idle {
		close(worker)
	}
	d.idle = nil
}

func (d *Dialer) take() (chan<- func(), error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, fmt.Errorf("dial from %s: %w", d.path, net.ErrClosed)
	}
	if n := len(d.idle); n > 0 {
		worker := d.idle[n-1]
		d.idle = d.idle[:n-1]
		return worker, nil
	}
	work, entered := make(chan func()), make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		err := enter(d.path)
		entered <- err
		if err != nil {
			return
		}
		for fn := range work {
			fn()
		}
	}()
	return work, <-entered
}
