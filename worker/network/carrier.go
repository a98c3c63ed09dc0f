package network

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	// carrierWait bounds how long an attachment waits for the kernel to let packets onto links that are up; usually it takes
	// a few milliseconds, in a worker of its own. What is sent before is lost, and costs its sender a second.
	carrierWait = 2 * time.Second
	carrierPoll = time.Millisecond
)

// ends are links of a namespace ("" = the host's) that an attachment is to be reached through: those of the names, and those whose name
// begins with the prefix.
type ends struct {
	namespace string
	names     []string
	prefix    string
}

// endsOf are both ends of all links of a task.
func (n *Network) endsOf(r *record) []ends {
	var out []ends
	inside := ends{namespace: n.namespacePath(r.TaskID)}
	switch {
	case r.Guest != nil:
		inside.namespace, inside.prefix = n.guestPath(r.TaskID), guestDevice
	case !r.Internal:
		inside.names = []string{"eth0"}
		out = append(out, ends{names: []string{linkName(r.TaskID)}})
	}
	for i, a := range r.Networks {
		if r.Guest == nil {
			inside.names = append(inside.names, fmt.Sprintf("eth%d", i+1))
		}
		if o := n.overlays[a.GetNetworkId()]; o != nil {
			out = append(out, ends{namespace: o.path, names: []string{portName(r.TaskID)}})
		}
	}
	return append(out, inside)
}

// awaitCarrier waits until the links take packets. One that does not in time, or is not there, is left to come later.
func awaitCarrier(ctx context.Context, all []ends) {
	ctx, cancel := context.WithTimeout(ctx, carrierWait)
	defer cancel()
	for _, e := range all {
		e.await(ctx)
	}
}

func (e ends) await(ctx context.Context) {
	handle, leave, err := enterNamespace(e.namespace)
	if err != nil {
		return
	}
	defer leave()
	names := e.names
	if e.prefix != "" {
		links, err := listed(handle.LinkList)
		if err != nil {
			return
		}
		for _, l := range links {
			if strings.HasPrefix(l.Attrs().Name, e.prefix) {
				names = append(names, l.Attrs().Name)
			}
		}
	}
	tick := time.NewTicker(carrierPoll)
	defer tick.Stop()
	for _, name := range names {
		for {
			link, err := handle.LinkByName(name)
			if err != nil || link.Attrs().OperState == netlink.OperUp {
				break
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	}
}

// enterNamespace opens netlink in the namespace at path, "" = the host's.
func enterNamespace(path string) (*netlink.Handle, func(), error) {
	if path == "" {
		handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return nil, nil, fmt.Errorf("open netlink: %w", err)
		}
		return handle, handle.Close, nil
	}
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return nil, nil, fmt.Errorf("open namespace: %w", err)
	}
	handle, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	_ = ns.Close()
	if err != nil {
		return nil, nil, fmt.Errorf("enter namespace: %w", err)
	}
	return handle, handle.Close, nil
}
