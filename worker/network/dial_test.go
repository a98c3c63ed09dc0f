package network

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// namespaceWithLoopback makes a namespace whose loopback is up.
func namespaceWithLoopback(tb testing.TB) string {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("namespaces need root")
	}
	path := filepath.Join(tb.TempDir(), "netns", "task")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		tb.Fatal(err)
	}
	err := makeNamespace(path, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := removeNamespace(path); err != nil {
			tb.Error(err)
		}
	})
	return path
}

// networkAt is one whose task has the namespace at the path, and no address but the loopback's.
func networkAt(path string) (n *Network, task string) {
	return &Network{cfg: Config{Dir: filepath.Dir(filepath.Dir(path))}}, filepath.Base(path)
}

func TestDial_ListenerInTheNamespace_IsReachedFromOutside(t *testing.T) {
	path := namespaceWithLoopback(t)
	var l net.Listener
	if err := inNamespace(path, func() (err error) { l, err = net.Listen("tcp4", "127.0.0.1:0"); return err }); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "hello")
			_ = c.Close()
		}
	}()
	for range 50 {
		conn, err := dialAt(t, path, uint16(l.Addr().(*net.TCPAddr).Port))
		if err != nil {
			t.Fatal(err)
		}
		if body, err := io.ReadAll(conn); err != nil || string(body) != "hello" {
			t.Fatalf("%q, %v", body, err)
		}
		_ = conn.Close()
	}
	there, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		if at, err := os.Stat(task); err == nil && os.SameFile(at, there) {
			t.Errorf("%s: a thread stays in the namespace", task)
		}
	}
}

func dialAt(t *testing.T, path string, port uint16) (net.Conn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	n, task := networkAt(path)
	return n.Dial(ctx, task, port)
}

func TestDial_NobodyListens_Refused(t *testing.T) {
	if _, err := dialAt(t, namespaceWithLoopback(t), 9); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("error is %v, want one that says connection refused", err)
	}
}

func TestDial_NoNamespace_SaysSo(t *testing.T) {
	n, _ := networkAt(filepath.Join(t.TempDir(), "netns", "task"))
	if _, err := n.Dial(t.Context(), "nobody", 80); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error is %v, want one that says that there is no namespace", err)
	}
}

// A listener that accepts nobody, and whose queue is full, leaves a connection without an answer.
func TestDial_NoAnswer_EndsWithItsContext(t *testing.T) {
	path := namespaceWithLoopback(t)
	var socket, port int
	err := inNamespace(path, func() (err error) {
		if socket, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0); err != nil {
			return err
		}
		if err = errors.Join(unix.Bind(socket, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(socket, 0)); err != nil {
			return err
		}
		name, err := unix.Getsockname(socket)
		if err == nil {
			port = name.(*unix.SockaddrInet4).Port
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(socket)
	n, task := networkAt(path)
	for range 10 {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		conn, err := n.Dial(ctx, task, uint16(port))
		cancel()
		if err == nil {
			defer conn.Close()
			continue
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("error is %v, want the context's", err)
		}
		return
	}
	t.Error("ten connections to one that accepts nobody were made")
}

func BenchmarkDial(b *testing.B) {
	path := namespaceWithLoopback(b)
	var l net.Listener
	if err := inNamespace(path, func() (err error) { l, err = net.Listen("tcp4", "127.0.0.1:0"); return err }); err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
	n, task := networkAt(path)
	for b.Loop() {
		conn, err := n.Dial(b.Context(), task, uint16(l.Addr().(*net.TCPAddr).Port))
		if err != nil {
			b.Fatal(err)
		}
		_ = conn.Close()
	}
}
