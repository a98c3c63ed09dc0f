package containerd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// ownerLabel of the namespace holds the ID of the data directory that it belongs to, and the directory's path.
const ownerLabel = "swarmd.owner"

// ownerID is the data directory's, made on the first call. It is on the disk before it is used.
func (r *Runtime) ownerID() (string, error) {
	file := filepath.Join(r.Dir, "containerd-owner")
	body, err := os.ReadFile(file)
	if id := strings.TrimSpace(string(body)); err == nil && id != "" {
		return id, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read this data directory's ID: %w", err)
	}
	id := swarmpb.NewID()
	if err := wire.WriteFile(file, []byte(id+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("write this data directory's ID: %w", err)
	}
	return id, nil
}

// claim makes the namespace ours, or fails when it is another's: each would remove the other's containers. It waits
// for containerd until ctx ends.
func (r *Runtime) claim(ctx context.Context) error {
	id, err := r.ownerID()
	if err != nil {
		return err
	}
	for wait := retryFirst; ; wait = min(2*wait, retryLast) {
		owner, err := r.ownNamespace(ctx, id)
		if err == nil {
			return r.checkOwner(owner, id)
		}
		if errdefs.IsInvalidArgument(err) || errdefs.IsNotImplemented(err) || errdefs.IsPermissionDenied(err) {
			return fmt.Errorf("claim namespace %s of containerd at %s: %w", Namespace, r.Address, err)
		}
		if !sleep(ctx, wait) {
			return nil
		}
	}
}

// ownNamespace labels the namespace when nobody has, and gives its label.
func (r *Runtime) ownNamespace(ctx context.Context, id string) (string, error) {
	service := r.client.NamespaceService()
	label := id + " " + r.Dir
	err := service.Create(ctx, Namespace, map[string]string{ownerLabel: label})
	if err == nil || !errdefs.IsAlreadyExists(err) {
		return label, err
	}
	for {
		labels, err := service.Labels(ctx, Namespace)
		if err != nil || labels[ownerLabel] != "" {
			return labels[ownerLabel], err
		}
		if err := service.SetLabel(ctx, Namespace, ownerLabel, label); err != nil {
			return "", err
		}
	}
}

func (r *Runtime) checkOwner(label, id string) error {
	owner, dir, _ := strings.Cut(label, " ")
	if owner == id {
		return nil
	}
	return fmt.Errorf("namespace %s of containerd at %s belongs to the swarmd with the data directory %s: give this one a containerd of its own; "+
		"if that swarmd is gone, or its data directory was emptied, remove its containers and hand the namespace over with `ctr --address %s namespaces label %s %s=`",
		Namespace, r.Address, dir, r.Address, Namespace, ownerLabel)
}
