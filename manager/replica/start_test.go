package replica

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// Raft writes its term when it starts, and tries until it can: that must not keep the daemon from stopping.
func TestStop_StartedOnAFullDisk_Ends(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, func(m *member) { m.dir = dir })
		m := c.members[0]
		c.leader()
		m.stop()
		m.tuning.BeforeWrite = func() error { return syscall.ENOSPC }
		m.open()
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		time.Sleep(10 * time.Second)
		cancel()
		select {
		case err := <-done:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("Run returned %v", err)
			}
		case <-time.After(time.Minute):
			t.Error("it does not stop")
			m.logs.interrupt()
			<-done
		}
	})
}
