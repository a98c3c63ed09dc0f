package network

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrUnsuited: what was to be attached cannot be, and no other try helps.
var ErrUnsuited = errors.New("it cannot be attached")

// guestLook is how often a guest is looked at whether it is still there.
const guestLook = 250 * time.Millisecond

// Guest is something outside of services that is attached to networks: whatever lives in a network namespace that somebody
// else made. Nothing there is touched but what Attach made, and that goes with Detach.
type Guest struct {
	// PID of a process that lives there: its end is the attachment's. 0: the path counts.
	PID uint32 `json:",omitempty"`
	// Path of the namespace's file: that it leads elsewhere, or nowhere, is the attachment's end.
	Path string `json:",omitempty"`
	// Namespace that it has to be, as the kernel names it (net:[4026532008]); empty = any.
	Namespace string `json:",omitempty"`
}

// guestRecord is what is known of a guest that is attached.
type guestRecord struct {
	Guest
	// Is the namespace's name: the binding keeps it this one's.
	Is string
	// Began is when the process began, as /proc has it: another one may have its pid later.
	Began string `json:",omitempty"`
}

func unsuited(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrUnsuited, fmt.Errorf(format, args...))
}

// open finds the guest's namespace. An error is the user's to mend.
func (g Guest) open() (*os.File, guestRecord, error) {
	r := guestRecord{Guest: g}
	path := g.Path
	if g.PID != 0 {
		path = fmt.Sprintf("/proc/%d/ns/net", g.PID)
		process, err := openProcess(g.PID)
		if err != nil {
			return nil, r, err
		}
		defer process.Close()
		if r.Began, err = begunAt(g.PID); err != nil {
			return nil, r, unsuited("process %d has ended", g.PID)
		}
		ns, is, err := openNetworkNamespace(path)
		if err != nil {
			return nil, r, err
		}
		if hasEnded(process) { // the file may be of a process that came after it
			_ = ns.Close()
			return nil, r, unsuited("process %d has ended", g.PID)
		}
		r.Is = is
		return ns, r, g.expects(ns, is)
	}
	if !filepath.IsAbs(path) || strings.ContainsRune(path, 0) {
		return nil, r, unsuited("%q is no absolute path", path)
	}
	ns, is, err := openNetworkNamespace(path)
	if err != nil {
		return nil, r, err
	}
	r.Is = is
	return ns, r, g.expects(ns, is)
}

// expects closes a namespace that is another one than the user saw.
func (g Guest) expects(ns *os.File, is string) error {
	if g.Namespace == "" || g.Namespace == is {
		return nil
	}
	return errors.Join(unsuited("%s is in namespace %s by now, and was in %s; connect it again", g, is, g.Namespace), ns.Close())
}

func (g Guest) String() string {
	if g.PID != 0 {
		return fmt.Sprintf("process %d", g.PID)
	}
	return g.Path
}

// openProcess opens a pidfd.
func openProcess(pid uint32) (*os.File, error) {
	fd, err := unix.PidfdOpen(int(pid), 0)
	switch {
	case errors.Is(err, unix.ESRCH):
		return nil, unsuited("there is no process %d on this node", pid)
	case errors.Is(err, unix.EINVAL):
		return nil, unsuited("%d is not a process of this node", pid)
	case err != nil:
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	f := os.NewFile(uintptr(fd), fmt.Sprintf("process %d", pid))
	if hasEnded(f) {
		_ = f.Close()
		return nil, unsuited("process %d has ended", pid)
	}
	return f, nil
}

// hasEnded tells whether the process of a pidfd has; what cannot be asked counts as alive.
func hasEnded(process *os.File) bool {
	fds := []unix.PollFd{{Fd: int32(process.Fd()), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return err == nil && n > 0
	}
}

// begunAt is when a process began, in ticks since the host did.
func begunAt(pid uint32) (string, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	// The second field is a name in brackets, which may hold anything.
	const began = 22
	text := string(stat)
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(fields) < began-2 {
		return "", fmt.Errorf("read the start time of process %d: %d fields", pid, len(fields))
	}
	return fields[began-3], nil
}

// openNetworkNamespace opens the file of a network namespace, and no other: nothing else is opened, whatever the path names.
func openNetworkNamespace(path string) (*os.File, string, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return nil, "", unsuited("there is no %s on this node", path)
	case err != nil:
		return nil, "", unsuited("%s cannot be opened: %w", path, err)
	}
	defer unix.Close(fd)
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil || st.Type != unix.NSFS_MAGIC {
		return nil, "", unsuited("%s is not the file of a network namespace", path)
	}
	ns, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return nil, "", unsuited("%s cannot be opened: %w", path, err)
	}
	kind, err := unix.IoctlRetInt(int(ns.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		_ = ns.Close()
		return nil, "", unsuited("%s is the file of a namespace, but not of a network namespace", path)
	}
	var file unix.Stat_t
	if err := unix.Fstat(int(ns.Fd()), &file); err != nil {
		return nil, "", errors.Join(fmt.Errorf("look at %s: %w", path, err), ns.Close())
	}
	return ns, namespaceName(file.Ino), nil
}

// admit refuses a namespace that is none to attach to: the host's, and those that swarmd made.
func (n *Network) admit(is string) error {
	for _, own := range []string{"/proc/self/ns/net", "/proc/thread-self/ns/net"} {
		if nameAt(own) == is {
			return unsuited("that is the network of the host itself, which belongs to no network of the cluster; name a container's process or namespace")
		}
	}
	for _, dir := range []string{n.cfg.namespaces(), n.cfg.overlays()} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return fmt.Errorf("read namespaces: %w", err)
		}
		for _, e := range entries {
			if nameAt(filepath.Join(dir, e.Name())) == is {
				return unsuited("that is the namespace of a service's container; use `swarmctl service update --network-add` for it")
			}
		}
	}
	return nil
}

// nameAt is the name of the namespace that a file is of; empty: of none.
func nameAt(path string) string {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return ""
	}
	return namespaceName(st.Ino)
}

// namespaceName is how the kernel names a network namespace.
func namespaceName(inode uint64) string { return "net:[" + strconv.FormatUint(inode, 10) + "]" }

// goneFor is why a guest is not there any more; empty: it is.
func (g *guestRecord) goneFor() string {
	if g.PID == 0 {
		if nameAt(g.Path) != g.Is {
			return fmt.Sprintf("namespace %s is gone", g.Path)
		}
		return ""
	}
	gone := fmt.Sprintf("process %d has ended", g.PID)
	process, err := openProcess(g.PID)
	if errors.Is(err, ErrUnsuited) {
		return gone
	} else if err != nil {
		return "" // it cannot be asked now
	}
	defer process.Close()
	if began, err := begunAt(g.PID); err == nil && began != g.Began || hasEnded(process) {
		return gone
	}
	return ""
}
