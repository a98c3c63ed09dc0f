package dns

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// inNamespace runs fn on a thread that has entered the network namespace. What fn opens belongs to that namespace wherever
// it is used.
func inNamespace(namespace *os.File, fn func() error) error {
	return onThreadOfItsOwn(func() error {
		if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter namespace %s: %w", namespace.Name(), err)
		}
		return fn()
	})
}

// onThreadOfItsOwn runs fn on an OS thread that is thrown away after it, so that no other goroutine ever sees what fn did
// to the thread. The main thread cannot be thrown away, and /proc/self shows its namespaces: when fn would land there, it
// is kept busy while another thread does the work.
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

// openNamespace opens the namespace at a path.
func openNamespace(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open namespace: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil || st.Type != unix.NSFS_MAGIC {
		_ = f.Close()
		return nil, fmt.Errorf("open namespace: %s is none", path)
	}
	return f, nil
}
