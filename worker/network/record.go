package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/ingress"
)

// record is what outlives the daemon of an attachment: one JSON file a task.
type record struct {
	TaskID  string
	Address netip.Addr
	Ports   []*swarmpb.PortConfig `json:",omitempty"`
	// Networks and the addresses there, eth1 and on.
	Networks []*swarmpb.NetworkAddress `json:",omitempty"`
	DNS      *swarmpb.DNSConfig        `json:",omitempty"`
	// Internal: all its networks are, so it has no way out.
	Internal bool `json:",omitempty"`
	// Guest is what is attached in place of a container; it has no address on the uplink.
	Guest *guestRecord `json:",omitempty"`
}

// fits tells whether a request asks for what the task has.
func (r *record) fits(req Request) bool {
	if (r.Guest == nil) != (req.Guest == nil) || r.Guest != nil && r.Guest.Guest != *req.Guest {
		return false
	}
	return slices.EqualFunc(r.Networks, req.Networks, func(a, b *swarmpb.NetworkAddress) bool { return proto.Equal(a, b) }) && proto.Equal(r.DNS, req.DNS)
}

func (r *record) forwards() []ingress.Forward {
	var out []ingress.Forward
	for _, p := range r.Ports {
		out = append(out, forwardOf(r.Address, p))
	}
	return out
}

func forwardOf(to netip.Addr, p *swarmpb.PortConfig) ingress.Forward {
	return ingress.Forward{Protocol: p.GetProtocol(), Port: uint16(p.GetPublishedPort()), To: netip.AddrPortFrom(to, uint16(p.GetTargetPort()))}
}

func (r *record) write(dir string) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode attachment: %w", err)
	}
	tmp := filepath.Join(dir, "."+r.TaskID)
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return fmt.Errorf("write attachment: %w", err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, r.TaskID)); err != nil {
		return fmt.Errorf("write attachment: %w", err)
	}
	return nil
}

func removeRecord(dir, taskID string) error {
	if err := os.Remove(filepath.Join(dir, taskID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove attachment: %w", err)
	}
	return nil
}

// readRecords skips and removes what cannot be read: Sweep then finds the task's namespace and link by name.
func readRecords(dir string) (map[string]*record, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read attachments: %w", err)
	}
	out := map[string]*record{}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read attachment: %w", err)
		}
		r := new(record)
		if json.Unmarshal(data, r) != nil || r.TaskID != e.Name() || !r.Address.Is4() && r.Guest == nil {
			if err := os.Remove(path); err != nil {
				return nil, fmt.Errorf("remove attachment: %w", err)
			}
			continue
		}
		out[r.TaskID] = r
	}
	return out, nil
}
