package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// state is what the node remembers beside its identity: node.json.
type state struct {
	// Advertise is host:port under which the other nodes reach this one.
	Advertise string
	// Managers to begin with: those that it joined at, or itself, and later those that the cluster has.
	Managers []string
}

// maxManagers bounds the list.
const maxManagers = 32

func (s state) peers() []*swarmpb.ManagerPeer {
	var out []*swarmpb.ManagerPeer
	for _, a := range s.Managers {
		out = append(out, &swarmpb.ManagerPeer{Address: a, Weight: 1})
	}
	return out
}

func (n *Node) stateFile() string { return filepath.Join(n.cfg.DataDir, "node.json") }

// load returns the identity, nil when the node belongs to no cluster.
func (n *Node) load() (state, *wire.Identity, error) {
	id, err := wire.LoadIdentity(n.identityDir())
	if errors.Is(err, fs.ErrNotExist) {
		return state{}, nil, nil
	}
	if err != nil {
		return state{}, nil, fmt.Errorf("this node's identity cannot be read: %w", err)
	}
	var st state
	data, err := os.ReadFile(n.stateFile())
	if err == nil {
		err = json.Unmarshal(data, &st)
	}
	if err != nil {
		return state{}, nil, fmt.Errorf("read %s: %w; restore it, or remove %s to make this host leave its cluster", n.stateFile(), err, n.identityDir())
	}
	return st, &id, nil
}

// save makes the membership final: the identity is written last.
func (n *Node) save(st state, id wire.Identity) error {
	if err := n.saveState(st); err != nil {
		return err
	}
	return wire.SaveIdentity(n.identityDir(), id)
}

func (n *Node) saveState(st state) error {
	data, err := json.MarshalIndent(st, "", "  ")
	if err != nil {
		return fmt.Errorf("encode node state: %w", err)
	}
	return wire.WriteFile(n.stateFile(), append(data, '\n'), 0o600)
}

// forgetIdentity ends the membership: once it has returned, no start resumes it, not even after a power cut.
func (n *Node) forgetIdentity() error {
	if err := os.RemoveAll(n.identityDir()); err != nil {
		return fmt.Errorf("forget the cluster: %w", err)
	}
	dir, err := os.Open(n.cfg.DataDir)
	if err != nil {
		return fmt.Errorf("forget the cluster: %w", err)
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil {
		return fmt.Errorf("forget the cluster: %w", err)
	}
	return nil
}

// forget removes every trace of a membership, the identity first.
func (n *Node) forget() error {
	if err := n.forgetIdentity(); err != nil {
		return err
	}
	for _, path := range n.traces() {
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("forget the cluster: %w", err)
		}
	}
	return nil
}

// traces are what a membership has on disk beside the identity.
func (n *Node) traces() []string { return []string{n.stateFile(), n.managerDir(), n.workerDir()} }

// hasTraces says whether a leave, an init or a join was cut short.
func (n *Node) hasTraces() bool {
	return slices.ContainsFunc(n.traces(), func(path string) bool {
		_, err := os.Lstat(path)
		return err == nil
	})
}
