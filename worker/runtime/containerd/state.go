package containerd

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/swarmd/swarmd/worker/runtime"
)

// state is what we keep of a container, in containers/<id>/state.json: what containerd does not, or would give
// us only together with the whole spec. It is written before containerd's record and removed after it, so
// there is no record without it; Made is set once the record is there.
type state struct {
	ID          string            `json:"id"`
	Made        bool              `json:"made"`
	Snapshotter string            `json:"snapshotter"`
	Image       string            `json:"image"`
	Digest      string            `json:"digest"`
	Labels      map[string]string `json:"labels,omitempty"`
	StopSignal  string            `json:"stopSignal,omitempty"`
	// Pid and its start time, in clock ticks after boot, once started. Ticks 0 = the process cannot be seen from here.
	Pid   uint32        `json:"pid,omitempty"`
	Ticks uint64        `json:"ticks,omitempty"`
	Exit  *runtime.Exit `json:"exit,omitempty"`
}

func (s *state) started() bool { return s.Pid != 0 }

func (r *Runtime) statePath(id string) string {
	return filepath.Join(r.containerDir(id), "state.json")
}

// readState gives ErrNotFound for a container that is not there or was only half made.
func (r *Runtime) readState(id string) (*state, error) {
	if checkID(id) != nil {
		return nil, notFound(id)
	}
	body, err := os.ReadFile(r.statePath(id))
	if errors.Is(err, os.ErrNotExist) {
		return nil, notFound(id)
	}
	if err != nil {
		return nil, fmt.Errorf("read state of container %s: %w", id, err)
	}
	var s state
	if err := json.Unmarshal(body, &s); err != nil || s.ID != id || !s.Made {
		return nil, notFound(id)
	}
	return &s, nil
}

// writeState replaces the file whole. It is not synced: a power cut ends the container too.
func (r *Runtime) writeState(s *state) error {
	body, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode state of container %s: %w", s.ID, err)
	}
	next := r.statePath(s.ID) + ".next"
	if err := os.WriteFile(next, body, 0o600); err != nil {
		return fmt.Errorf("write state of container %s: %w", s.ID, err)
	}
	if err := os.Rename(next, r.statePath(s.ID)); err != nil {
		return fmt.Errorf("write state of container %s: %w", s.ID, err)
	}
	return nil
}

// known are the IDs that have a directory, whole or half made.
func (r *Runtime) known() ([]string, error) {
	entries, err := os.ReadDir(r.containersDir())
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	var ids []string
	for _, entry := range entries {
		if checkID(entry.Name()) == nil {
			ids = append(ids, entry.Name())
		}
	}
	return ids, nil
}

// checkID keeps an ID a name: it becomes part of paths.
func checkID(id string) error {
	if id == "" || len(id) > 76 {
		return invalid("container ID %q is not 1 to 76 characters long", id)
	}
	for i, c := range []byte(id) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && (i == 0 || c != '-' && c != '_' && c != '.') {
			return invalid("container ID %q has a character other than letters, digits, '-', '_' and '.'", id)
		}
	}
	return nil
}
