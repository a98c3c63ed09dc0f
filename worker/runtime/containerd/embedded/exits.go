package embedded

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	shim "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/process"
	shimrunc "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/runc"
)

// Exit is the record of a container that ended while containerd was down.
type Exit struct {
	Code uint32    `json:"code"`
	At   time.Time `json:"at"`
}

const (
	// exitPatience bounds the wait for the shims of processes that have just ended; only when a shim was killed together
	// with its container does it pass in full.
	exitPatience = time.Second
	exitPoll     = 5 * time.Millisecond
)

// recordExits keeps what the shims wrote down, before containerd starts: it removes the bundles of containers
// that have ended, and their codes with them, while it loads.
func (c *Child) recordExits() error {
	bundles := filepath.Join(c.State, "state", "io.containerd.runtime.v2.task", c.Namespace)
	entries, err := os.ReadDir(bundles)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var failed error
	deadline := time.Now().Add(exitPatience)
	for _, entry := range entries {
		exit, ok, err := awaitExitStatus(filepath.Join(bundles, entry.Name()), deadline)
		if err == nil && ok {
			err = writeExit(c.ExitDir(), entry.Name(), exit)
		}
		failed = errors.Join(failed, err)
	}
	return failed
}

// awaitExitStatus is the exit that the shim wrote down; one of a process that has just ended is on its way.
func awaitExitStatus(bundle string, deadline time.Time) (Exit, bool, error) {
	for {
		gone := ended(bundle) // before the look, so that what is written between the two is found
		exit, err := shimrunc.ReadExitStatus(bundle)
		switch {
		case err == nil:
			return Exit{Code: uint32(exit.Status), At: exit.Timestamp}, true, nil
		case !errors.Is(err, os.ErrNotExist):
			return Exit{}, false, err
		case !gone || !time.Now().Before(deadline):
			return Exit{}, false, nil
		}
		time.Sleep(exitPoll)
	}
}

// ended tells whether the container's first process is gone, or only waits for its shim to take notice.
func ended(bundle string) bool {
	pid, err := os.ReadFile(filepath.Join(bundle, shim.InitPidFile))
	if err != nil {
		return false
	}
	stat, err := os.ReadFile(filepath.Join("/proc", strings.TrimSpace(string(pid)), "stat"))
	if err != nil {
		return errors.Is(err, os.ErrNotExist)
	}
	_, state, _ := bytes.Cut(stat[bytes.LastIndexByte(stat, '(')+1:], []byte(") "))
	return bytes.HasPrefix(state, []byte("Z"))
}

func writeExit(dir, id string, exit Exit) error {
	body, err := json.Marshal(exit)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, id+".json"), body, 0o600)
}

// ReadExit is the record of a container in an ExitDir, if there is one.
func ReadExit(dir, id string) (Exit, bool) {
	body, err := os.ReadFile(filepath.Join(dir, id+".json"))
	if err != nil {
		return Exit{}, false
	}
	var exit Exit
	return exit, json.Unmarshal(body, &exit) == nil && !exit.At.IsZero()
}

// ForgetExit removes the record.
func ForgetExit(dir, id string) error {
	if err := os.Remove(filepath.Join(dir, id+".json")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
