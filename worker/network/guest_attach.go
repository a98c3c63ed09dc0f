package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swarmd/swarmd/worker/ingress"
)

// attachGuest is Attach for a guest: nothing is made but its links in its networks, names and VIPs.
func (n *Network) attachGuest(req Request) (Attachment, error) {
	taskID := req.TaskID
	if r := n.attached[taskID]; r != nil && r.fits(req) && nameAt(n.guestPath(taskID)) == r.Guest.Is {
		if err := errors.Join(n.back(taskID), n.repairGuest(r)); err == nil {
			return n.guestAttachment(r), nil
		}
	}
	if err := n.detach(taskID); err != nil {
		return Attachment{}, err
	}
	ns, guest, err := req.Guest.open()
	if err != nil {
		return Attachment{}, err
	}
	defer ns.Close()
	if err := n.admit(guest.Is); err != nil {
		return Attachment{}, err
	}
	r := &record{TaskID: taskID, Networks: req.Networks, Guest: &guest}
	n.attached[taskID] = r
	err = r.write(n.cfg.records())
	if err == nil {
		err = bindNamespace(ns, n.guestPath(taskID))
	}
	if err == nil {
		err = n.repairGuest(r)
	}
	if err != nil {
		return Attachment{}, errors.Join(err, n.detach(taskID))
	}
	return n.guestAttachment(r), nil
}

// bindNamespace binds an open namespace to path.
func bindNamespace(ns *os.File, path string) error {
	if err := removeNamespace(path); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o400)
	if err != nil {
		return fmt.Errorf("bind namespace: %w", err)
	}
	_ = f.Close()
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", ns.Fd()), path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind namespace to %s: %w", path, errors.Join(err, os.Remove(path)))
	}
	return nil
}

// repairGuest makes what is missing of a guest's network; its namespace is bound.
func (n *Network) repairGuest(r *record) error {
	path := n.guestPath(r.TaskID)
	for _, a := range r.Networks {
		o, err := n.ensureOverlay(a.GetNetworkId())
		if err != nil {
			return err
		}
		address, ok := pairOf(a)
		if !ok {
			return fmt.Errorf("network %q: the address %q is none of IPv4", o.place.name, a.GetAddress())
		}
		if o.plugged(r.TaskID) {
			continue
		}
		if err := o.plugGuest(r.TaskID, path, o.usable(address)); err != nil {
			return fmt.Errorf("network %q: %w", o.place.name, err)
		}
	}
	return n.serveGuests(r.Guest.Is, "")
}

// serveGuests has names and VIPs answered in a namespace for all guests that are attached there, but for one that leaves. It
// tells whether any is left.
func (n *Network) serveGuests(namespace, leaves string) error {
	var networks []string
	path := ""
	for _, id := range n.guestsIn(namespace) {
		if id == leaves {
			continue
		}
		path = n.guestPath(id)
		for _, a := range n.attached[id].Networks {
			if !slices.Contains(networks, a.GetNetworkId()) {
				networks = append(networks, a.GetNetworkId())
			}
		}
	}
	if path == "" {
		n.names.closeClient(namespace)
		return nil
	}
	return n.names.openGuest(namespace, path, networks)
}

// guestsIn are the tasks of the guests in a namespace, in order.
func (n *Network) guestsIn(namespace string) (out []string) {
	for id, r := range n.attached {
		if r.Guest != nil && r.Guest.Is == namespace {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// leaveGuest takes away what was made in a guest's namespace, and lets go of it. A task that has no guest is no error.
func (n *Network) leaveGuest(taskID string) error {
	path := n.guestPath(taskID)
	is := ""
	if r := n.attached[taskID]; r != nil && r.Guest != nil {
		is = r.Guest.Is
		n.bindAgain(r)
	}
	if !isNamespace(path) {
		if is != "" {
			n.names.closeClient(is)
		}
		return removeNamespace(path)
	}
	is = nameAt(path)
	others := slices.DeleteFunc(n.guestsIn(is), func(id string) bool { return id == taskID })
	var errs []error
	switch {
	case len(others) == 0:
		n.names.closeClient(is)
		errs = append(errs, ingress.RemoveGuestTable(path))
	case n.configured:
		errs = append(errs, n.serveGuests(is, taskID))
	default:
		n.names.closeClient(is) // they are served again once the node is configured
	}
	errs = append(errs, removeGuestLink(path, taskID))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return removeNamespace(path)
}

func (n *Network) guestPath(taskID string) string { return filepath.Join(n.cfg.guests(), taskID) }

func (n *Network) guestAttachment(r *record) Attachment {
	conf := readResolvers(hostResolvConf).confOf(r)
	return Attachment{Namespace: n.guestPath(r.TaskID), Networks: r.Networks, ResolvConf: conf, Notes: guestNotes(n.guestPath(r.TaskID))}
}

// Guests are the tasks of the guests that are attached, in order.
func (n *Network) Guests() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []string
	for id, r := range n.attached {
		if r.Guest != nil {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// AwaitGuest returns once a guest has gone, and says why; at once for a task that is not attached. The error is ctx's.
func (n *Network) AwaitGuest(ctx context.Context, taskID string) (why string, err error) {
	tick := time.NewTicker(guestLook)
	defer tick.Stop()
	for {
		n.mu.Lock()
		r := n.attached[taskID]
		n.mu.Unlock()
		if r == nil || r.Guest == nil {
			return "it is not attached", nil
		}
		if why := r.Guest.goneFor(); why != "" {
			return why, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

// bindAgain binds the namespace of a guest whose binding somebody has taken away; false when it is not there any more.
func (n *Network) bindAgain(r *record) bool {
	path := n.guestPath(r.TaskID)
	if nameAt(path) == r.Guest.Is {
		return true
	}
	ns, now, err := r.Guest.open()
	if err != nil {
		return false // the guest has gone, which AwaitGuest tells
	}
	defer ns.Close()
	if now.Is != r.Guest.Is || now.Began != r.Guest.Began {
		return false
	}
	if err := bindNamespace(ns, path); err != nil {
		n.cfg.Logger.Warn("cannot bind the namespace of an attached container again", "task", r.TaskID, "error", err)
		return false
	}
	return true
}

// mendGuest repairs a guest's network. One whose namespace is gone cannot be helped.
func (n *Network) mendGuest(r *record) error {
	if !n.bindAgain(r) {
		return nil
	}
	if err := n.repairGuest(r); err != nil {
		return fmt.Errorf("repair the network of attachment %s: %w", r.TaskID, err)
	}
	return nil
}
