package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// kept is what a lab that outlives its maker leaves in Dir: lab.json.
type kept struct {
	Name string
	// Pids of the first processes.
	Pids []int
}

func keptFile(dir string) string { return filepath.Join(dir, "lab.json") }

// remember makes Down possible, from now on.
func (l *Lab) remember() error {
	k := kept{Name: l.name, Pids: []int{l.sw.pid}}
	for _, h := range l.hosts {
		if h.node != nil {
			k.Pids = append(k.Pids, h.node.pid)
		}
	}
	for _, c := range l.clients {
		k.Pids = append(k.Pids, c.node.pid)
	}
	data, err := json.Marshal(k)
	if err != nil {
		return err
	}
	return os.WriteFile(keptFile(l.cfg.Dir), data, 0o644)
}

// Up tells whether a kept lab is in dir.
func Up(dir string) bool {
	_, err := os.Stat(keptFile(dir))
	return err == nil
}

// Down ends the lab that is kept in dir and removes all of it. Without one it does nothing.
func Down(dir string) error {
	data, err := os.ReadFile(keptFile(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var k kept
	if err := json.Unmarshal(data, &k); err != nil {
		return fmt.Errorf("read %s: %w", keptFile(dir), err)
	}
	for _, pid := range k.Pids {
		// The number may belong to another process by now: only a first process of a lab is ended.
		cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && strings.Contains(string(cmdline), initArg) {
			(&node{pid: pid}).kill()
		}
	}
	if err := removeCgroups(k.Name); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// Enter is the command line that runs a program in the switch's network, as a client of the cluster.
func (l *Lab) Enter() []string {
	return []string{"nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", l.sw.pid)}
}

// Mounted reports whether anything below dir is still mounted in this process's namespace.
func Mounted(dir string) bool {
	data, _ := os.ReadFile("/proc/self/mounts")
	return strings.Contains(string(data), " "+dir+"/")
}
