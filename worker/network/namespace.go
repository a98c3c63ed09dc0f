package network

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// makeNamespace makes a network namespace and binds it to path, with its loopback down. An old one at the path
// is replaced. Before it can be seen at the path, setup is called on a thread within; nil = nothing to set up.
func makeNamespace(path string, setup func() error) error {
	if err := removeNamespace(path); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o400)
	if err != nil {
		return fmt.Errorf("make namespace: %w", err)
	}
	_ = f.Close()
	err = onThreadOfItsOwn(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		if setup != nil {
			if err := setup(); err != nil {
				return err
			}
		}
		self := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
		if err := unix.Mount(self, path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind: %w", err)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("make namespace %s: %w", path, errors.Join(err, os.Remove(path)))
	}
	return nil
}

// onThreadOfItsOwn runs fn on an OS thread that is thrown away after it, so that no other goroutine ever sees
// what fn did to the thread. The main thread cannot be thrown away, and /proc/self shows its namespaces: when
// fn would land there, it is kept busy while another thread does the work.
func onThreadOfItsOwn(fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			err := onThreadOfItsOwn(fn)
			runtime.UnlockOSThread()
			done <- err
			return
		}
		done <- fn() // never unlocked: the thread ends with the goroutine
	}()
	return <-done
}

func removeNamespace(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount namespace %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove namespace: %w", err)
	}
	return nil
}

func isNamespace(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}
