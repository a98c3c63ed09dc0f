package embedded

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// oomScore keeps the kernel from choosing containerd (and so, by inheritance, the shims) before a container.
const oomScore = -999

func (c Config) configFile() string { return filepath.Join(c.Root, "config.toml") }

// writeConfig writes the configuration and the directory of the shim's link. A running containerd reads
// neither again, but looks the link up for each new shim.
func (c *Child) writeConfig() error {
	config := map[string]any{
		"version":   3,
		"root":      filepath.Join(c.Root, "root"),
		"state":     filepath.Join(c.State, "state"),
		"oom_score": oomScore,
		"debug":     map[string]any{"level": c.LogLevel},
		"grpc":      map[string]any{"address": c.Socket},
		"ttrpc":     map[string]any{"address": c.Socket + ".ttrpc"},
		"plugins": map[string]any{
			"io.containerd.shim.v1.manager": map[string]any{"socket_dir": c.socketDir()},
		},
	}
	body, err := toml.Marshal(config)
	if err != nil {
		return fmt.Errorf("encode containerd's configuration: %w", err)
	}
	// Left alone when it is right already: a full disk must not keep what runs from being adopted.
	if there, err := os.ReadFile(c.configFile()); err != nil || !bytes.Equal(there, body) {
		if err := os.WriteFile(c.configFile(), body, 0o600); err != nil {
			return fmt.Errorf("write containerd's configuration: %w", err)
		}
	}
	return Link(c.Executable, filepath.Join(c.binDir(), shimName))
}

// Link points path at target, without a moment in which it points nowhere.
func Link(target, path string) error {
	if there, err := os.Readlink(path); err == nil && there == target {
		return nil
	}
	next := path + ".next"
	if err := os.Remove(next); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Symlink(target, next); err != nil {
		return fmt.Errorf("link %s: %w", path, err)
	}
	return os.Rename(next, path)
}

// environment is ours without what speaks to a service manager or configures swarmd, and with the shim first
// on the path.
func (c *Child) environment() []string {
	path := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	var env []string
	for _, entry := range os.Environ() {
		name, value, _ := strings.Cut(entry, "=")
		switch {
		case name == "PATH":
			path = value
		case name == "NOTIFY_SOCKET", strings.HasPrefix(name, "LISTEN_"), strings.HasPrefix(name, "SWARMD_"), strings.HasPrefix(name, "WATCHDOG_"):
		default:
			env = append(env, entry)
		}
	}
	return append(env, "PATH="+c.binDir()+":"+path)
}

// Bounds of containerd's log: when it has grown past maxLog, its end is kept and the rest goes to one old file.
const maxLog = 16 << 20

// boundLog copies and truncates rather than renames: containerd holds the file open and appends, also when we
// are not there.
func (c *Child) boundLog(ctx context.Context) error {
	for {
		if err := truncateLog(c.logFile(), maxLog); err != nil {
			c.log.Warn("rotate containerd's log", "file", c.logFile(), "error", err)
		}
		if !sleep(ctx, logEvery) {
			return nil
		}
	}
}

func truncateLog(path string, most int64) error {
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) || err == nil && info.Size() <= most {
		return nil
	}
	if err != nil {
		return err
	}
	from, err := os.Open(path)
	if err != nil {
		return err
	}
	defer from.Close()
	if _, err := from.Seek(-most, io.SeekEnd); err != nil {
		return err
	}
	to, err := os.OpenFile(path+".1", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, io.LimitReader(from, most))
	return errors.Join(err, to.Close(), os.Truncate(path, 0))
}
