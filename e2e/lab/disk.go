package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// hangArg, as the first argument, makes a process that holds a disk still; see HangDisk.
const hangArg = "swarmd-lab-hang"

// maxHang bounds a hang, whatever becomes of the program that asked for it.
const maxHang = time.Minute

// Inside of a host: where swarmd keeps its data, and the file that a disk of its own is made of.
const (
	dataDir   = "/var/lib/swarmd"
	diskImage = "/run/disk.img"
)

// OwnDisk puts the host's data on an ext4 filesystem of the given size, in place of a directory of this machine. It is called
// before swarmd starts, and dies with the host: PowerOff loses it.
func (h *Host) OwnDisk(mib int) error {
	script := fmt.Sprintf("truncate -s %dM %[2]s && mkfs.ext4 -q -F -m 0 %[2]s && mount -o loop %[2]s %[3]s", mib, diskImage, dataDir)
	out, code, err := h.Run("/bin/sh", "-c", script)
	if err == nil && code != 0 {
		err = fmt.Errorf("exit %d: %s", code, strings.TrimSpace(out))
	}
	if err != nil {
		return fmt.Errorf("make a disk for %s: %w", h.Name, err)
	}
	return nil
}

// HangDisk stops every write to the host's own disk, which waits, until release is called; at most a minute. A process of its
// own holds the disk, so that it is released too when this program dies.
func (h *Host) HangDisk() (release func() error, err error) {
	cmd := exec.Command("/proc/self/exe", hangArg, filepath.Join("/proc", fmt.Sprint(h.node.pid), "root", dataDir))
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("hang the disk of %s: %w", h.Name, err)
	}
	release = sync.OnceValue(func() error {
		return errors.Join(stdin.Close(), cmd.Wait())
	})
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "hangs\n" {
		return nil, fmt.Errorf("hang the disk of %s: %w", h.Name, errors.Join(err, release()))
	}
	h.release = release
	return release, nil
}

// ReleaseDisk ends the last hang of the host's disk.
func (h *Host) ReleaseDisk() error {
	if h.release == nil {
		return nil
	}
	return h.release()
}

// FIFREEZE and FITHAW of linux/fs.h.
const (
	ioctlFreeze = 0xC0045877
	ioctlThaw   = 0xC0045878
)

// runHang holds the disk at path until standard input ends.
func runHang(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.IoctlSetInt(int(dir.Fd()), ioctlFreeze, 0); err != nil {
		return fmt.Errorf("freeze: %w", err)
	}
	fmt.Println("hangs")
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(maxHang):
	}
	if err := unix.IoctlSetInt(int(dir.Fd()), ioctlThaw, 0); err != nil {
		return fmt.Errorf("thaw: %w", err)
	}
	return nil
}
