package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Dial connects over TCP from inside a task's network namespace to a port of the task: at its own address on the uplink, where its
// clients reach it too, or at its loopback when it has none.
func (n *Network) Dial(ctx context.Context, taskID string, port uint16) (net.Conn, error) {
	n.mu.Lock()
	address := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if r := n.attached[taskID]; r != nil && r.Address.IsValid() {
		address = r.Address
	}
	path := n.namespacePath(taskID)
	n.mu.Unlock()
	at := netip.AddrPortFrom(address, port)
	socket, err := socketIn(path)
	if err != nil {
		return nil, fmt.Errorf("connect to %s of task %s: %w", at, taskID, err)
	}
	conn, err := connect(ctx, socket, at)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", at, err)
	}
	return conn, nil
}

// socketIn makes a socket in a namespace. It belongs there wherever it is used, so that only its making needs a thread within.
func socketIn(namespace string) (socket int, err error) {
	type made struct {
		socket int
		err    error
	}
	done := make(chan made, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() { // /proc/self shows the main thread's namespaces: it stays where it is
			socket, err := socketIn(namespace)
			runtime.UnlockOSThread()
			done <- made{socket, err}
			return
		}
		socket, back, err := socketThere(namespace)
		if back {
			runtime.UnlockOSThread()
		} // else the thread, which is lost in the namespace, ends with the goroutine
		done <- made{socket, err}
	}()
	m := <-done
	return m.socket, m.err
}

// socketThere goes into the namespace and back; back is false when the way back failed.
func socketThere(namespace string) (socket int, back bool, err error) {
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, true, &os.PathError{Op: "open namespace", Path: "/proc/thread-self/ns/net", Err: err}
	}
	defer unix.Close(home)
	there, err := unix.Open(namespace, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, true, &os.PathError{Op: "open namespace", Path: namespace, Err: err}
	}
	defer unix.Close(there)
	if err := unix.Setns(there, unix.CLONE_NEWNET); err != nil {
		return -1, true, fmt.Errorf("enter namespace %s: %w", namespace, err)
	}
	socket, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		err = fmt.Errorf("make a socket: %w", err)
	}
	return socket, unix.Setns(home, unix.CLONE_NEWNET) == nil, err
}

// connect makes a connection of a socket, which it closes on an error.
func connect(ctx context.Context, socket int, to netip.AddrPort) (net.Conn, error) {
	err := unix.Connect(socket, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
	file := os.NewFile(uintptr(socket), "tcp:"+to.String())
	defer file.Close() // FileConn has a descriptor of its own
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return nil, err
	}
	if err != nil {
		if err := connected(ctx, file); err != nil {
			return nil, err
		}
	}
	return net.FileConn(file)
}

// aLongTimeAgo is a deadline that is over.
var aLongTimeAgo = time.Unix(1, 0)

// connected waits for the answer.
func connected(ctx context.Context, file *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = file.SetWriteDeadline(aLongTimeAgo) })
	defer stop()
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Write(func(fd uintptr) bool {
		var number int
		if number, failed = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR); failed != nil {
			return true
		}
		if number != 0 {
			failed = unix.Errno(number)
			return true
		}
		_, unfinished := unix.Getpeername(int(fd))
		return unfinished == nil
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return errors.Join(err, failed)
}
