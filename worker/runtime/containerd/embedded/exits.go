package embedded

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"time"

	shimrunc "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/runc"
)

// Exit is the record of a container that ended while containerd was down.
type Exit struct {
	Code uint32    `json:"code"`
	At   time.Time `json:"at"`
}

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
	for _, entry := range entries {
		exit, err := shimrunc.ReadExitStatus(filepath.Join(bundles, entry.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil {
			err = writeExit(c.ExitDir(), entry.Name(), Exit{Code: uint32(exit.Status), At: exit.Timestamp})
		}
		failed = errors.Join(failed, err)
	}
	return failed
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
