package network

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// States of a TCP socket as /proc/net/tcp writes them.
const (
	tcpEstablished = "01"
	tcpListen      = "0A"
)

// How long after its start a task is waited for to listen: on the ports that its service publishes on every node, and, where it
// publishes none but is in networks, on any port. A task of the latter kind may well never listen.
const (
	listensPublished = 3 * time.Second
	listensSomewhere = time.Second
)

// Listening tells whether a task listens where its service's clients will connect to over TCP; within is how long after the task's
// start that is worth waiting for. A service that is neither published nor in a network has no clients: it counts as listening.
func (n *Network) Listening(taskID, serviceID string) (listens bool, within time.Duration, err error) {
	n.mu.Lock()
	var ports []uint32
	for _, p := range n.told.services[serviceID].GetPorts() {
		if p.GetMode() != swarmpb.PublishMode_PUBLISH_MODE_HOST && (p.GetProtocol() == swarmpb.Protocol_PROTOCOL_TCP || p.GetProtocol() == swarmpb.Protocol_PROTOCOL_UNSPECIFIED) {
			ports = append(ports, p.GetTargetPort())
		}
	}
	r := n.attached[taskID]
	networked := r != nil && len(r.Networks) > 0
	guest := r != nil && r.Guest != nil // it began before it was attached
	n.mu.Unlock()
	if guest || len(ports) == 0 && !networked {
		return true, 0, nil
	}
	var reachable map[string]bool
	err = inNamespace(n.namespacePath(taskID), func() (err error) {
		_, reachable, err = socketsHere()
		return err
	})
	if err != nil {
		return false, 0, fmt.Errorf("see what task %s listens on: %w", taskID, err)
	}
	for _, p := range ports {
		if !reachable[fmt.Sprintf("%04X", p)] {
			return false, listensPublished, nil
		}
	}
	return len(ports) > 0 || slices.Contains(slices.Collect(maps.Values(reachable)), true), listensSomewhere, nil
}

// Established counts the connections with a task that its clients have opened: the sockets of its namespace that are
// established and whose local port is one that is listened on there.
func (n *Network) Established(taskID string) (int, error) {
	count := 0
	err := inNamespace(n.namespacePath(taskID), func() (err error) {
		count, err = establishedHere()
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("count connections of task %s: %w", taskID, err)
	}
	return count, nil
}

// establishedHere counts in the calling thread's namespace.
func establishedHere() (int, error) {
	ports, listening, err := socketsHere()
	if err != nil {
		return 0, err
	}
	total := 0
	for port := range listening {
		total += ports[port]
	}
	return total, nil
}

// socketsHere reads the tables of the calling thread's namespace: connections by local port, and the ports that are listened on,
// true for those that others can reach.
func socketsHere() (ports map[string]int, listening map[string]bool, err error) {
	ports, listening = map[string]int{}, map[string]bool{}
	for _, table := range []string{"tcp", "tcp6"} {
		f, err := os.Open("/proc/thread-self/net/" + table)
		if errors.Is(err, os.ErrNotExist) && table == "tcp6" {
			continue // a host without IPv6
		}
		if err != nil {
			return nil, nil, err
		}
		err = countSockets(f, ports, listening)
		_ = f.Close()
		if err != nil {
			return nil, nil, fmt.Errorf("read %s: %w", table, err)
		}
	}
	return ports, listening, nil
}

// countSockets adds the established sockets a local port, and the ports that are listened on, false where on loopback alone. A
// port is kept as the table writes it.
func countSockets(table io.Reader, established map[string]int, listening map[string]bool) error {
	s := bufio.NewScanner(table)
	for s.Scan() {
		// sl, local_address, rem_address, st
		line := strings.TrimLeft(s.Text(), " ")
		_, line, _ = strings.Cut(line, " ")
		local, line, _ := strings.Cut(line, " ")
		_, line, _ = strings.Cut(line, " ")
		state, _, _ := strings.Cut(line, " ")
		address, port, _ := strings.Cut(local, ":")
		switch state {
		case tcpEstablished:
			established[port]++
		case tcpListen:
			listening[port] = listening[port] || !onLoopback(address)
		}
	}
	return s.Err()
}

// onLoopback tells whether an address, as the tables write it, is of 127.0.0.0/8 or ::1.
func onLoopback(address string) bool {
	const v4Length, loopback6 = 8, "00000000000000000000000001000000"
	return len(address) == v4Length && strings.HasSuffix(address, "7F") || address == loopback6
}

// inNamespace runs fn on a thread of its own within the namespace at path.
func inNamespace(path string, fn func() error) error {
	return onThreadOfItsOwn(func() error {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open namespace", Path: path, Err: err}
		}
		defer unix.Close(fd)
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter namespace %s: %w", path, err)
		}
		return fn()
	})
}
