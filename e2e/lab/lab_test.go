package lab

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	Dispatch()
	os.Exit(m.Run())
}

func newLab(t *testing.T, hosts int) *Lab { t.Helper(); return newLabOf(t, Config{Hosts: hosts}) }

func newLabOf(t *testing.T, cfg Config) *Lab {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("namespaces need root")
	}
	dir, err := os.MkdirTemp("", "lab")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	cfg.Dir = dir
	l, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if left, _ := filepath.Glob("/sys/fs/cgroup/*/" + l.name); len(left) > 0 {
			t.Errorf("cgroups are left: %v", left)
		}
	})
	return l
}

func TestHosts_HaveOwnNamesNetworksAndProcesses_AndReachOneAnother(t *testing.T) {
	l := newLab(t, 2)
	a, b := l.Hosts()[0], l.Hosts()[1]
	out, code, err := a.Run("/bin/sh", "-c", "hostname; ls /proc | grep -c '^[0-9]'; ls /run; exit 7")
	if err != nil || code != 7 || !strings.HasPrefix(out, "node-1\n") || !strings.Contains(out, "swarmd") {
		t.Fatalf("%q %d %v", out, code, err)
	}
	var li net.Listener
	if err := b.Inside(func() (err error) { li, err = net.Listen("tcp", "10.77.0.2:80"); return err }); err != nil {
		t.Fatal(err)
	}
	defer li.Close()
	dial := func() error {
		c, err := net.DialTimeout("tcp", "10.77.0.2:80", 300*time.Millisecond)
		if err == nil {
			_ = c.Close()
		}
		return err
	}
	if err := a.Inside(dial); err != nil {
		t.Error("host to host:", err)
	}
	if c, err := l.Dial(context.Background(), "tcp", "10.77.0.2:80"); err != nil {
		t.Error("client to host:", err)
	} else {
		_ = c.Close()
	}
	if err := b.Cut(); err != nil {
		t.Fatal(err)
	}
	if err := a.Inside(dial); err == nil {
		t.Error("a cut host was reached")
	}
	if err := b.Mend(); err != nil {
		t.Fatal(err)
	}
	if err := until(10*time.Second, func() error { return a.Inside(dial) }); err != nil {
		t.Error("after the wire was mended:", err)
	}
}

func TestPowerOff_EverythingOnTheHostIsGone_DataStays(t *testing.T) {
	l := newLab(t, 1)
	h := l.Hosts()[0]
	if _, _, err := h.Run("/bin/sh", "-c", "echo kept > /var/lib/swarmd/f; echo lost > /run/swarmd/f; setsid sleep 1000 >/dev/null 2>&1 &"); err != nil {
		t.Fatal(err)
	}
	if err := h.PowerOff(); err != nil {
		t.Fatal(err)
	}
	if err := h.PowerOn(); err != nil {
		t.Fatal(err)
	}
	out, _, err := h.Run("/bin/sh", "-c", "cat /var/lib/swarmd/f; ls /run/swarmd; grep -l sleep /proc/[0-9]*/comm")
	if err != nil || out != "kept\n" {
		t.Errorf("%q %v; want the data kept, the run directory empty, the process gone", out, err)
	}
}

func TestOwnDisk_Hangs_WritesWaitUntilItIsReleased(t *testing.T) {
	l := newLab(t, 1)
	h := l.Hosts()[0]
	if err := h.OwnDisk(64); err != nil {
		t.Fatal(err)
	}
	release, err := h.HangDisk()
	if err != nil {
		t.Fatal(err)
	}
	written := make(chan error, 1)
	go func() {
		_, code, err := h.Run("/bin/sh", "-c", "echo data >/var/lib/swarmd/file && sync /var/lib/swarmd/file")
		if err == nil && code != 0 {
			t.Errorf("exit %d", code)
		}
		written <- err
	}()
	select {
	case err := <-written:
		t.Fatalf("a write on a hung disk has returned: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	if _, err := h.HangDisk(); err != nil { // powered off while it hangs: see newLab
		t.Fatal(err)
	}
}
