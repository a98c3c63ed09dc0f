package containerd

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/swarmd/swarmd/worker/runtime"
)

// A container's own anonymous volumes are in its directory, by the place of their mount in the spec, and go with it. Those that it
// was given are in inherited/<id>, by the hexadecimal digits of their target, as the specs of two containers need not have their mounts at the
// same places. Each is handed on with one rename, so that it is with one or the other whenever a crash comes.

// volumeData is what is mounted of an anonymous volume.
const volumeData = "_data"

func (r *Runtime) anonymousDir(id string) string { return filepath.Join(r.containerDir(id), "volumes") }

func (r *Runtime) heirDir(id string) string { return filepath.Join(r.inheritedDir(), id) }

// inherited is the directory of the volume that a container was given for a target; empty = none.
func (r *Runtime) inherited(spec runtime.Spec, target string) string {
	if !spec.Inherits {
		return ""
	}
	data := filepath.Join(r.heirDir(spec.ID), hex.EncodeToString([]byte(target)), volumeData)
	if info, err := os.Stat(data); err != nil || !info.IsDir() {
		return ""
	}
	return data
}

// TakeVolumes gives the anonymous volumes of from, which has no process any more, to another container.
func (r *Runtime) TakeVolumes(ctx context.Context, from, to string) error {
	if err := errors.Join(checkID(from), checkID(to)); err != nil {
		return fmt.Errorf("take volumes: %w", err)
	}
	defer r.ids.lock(from)()
	s, err := r.readState(from)
	if err == nil && s.started() && r.exitOf(s) == nil {
		return fmt.Errorf("take the volumes of container %s: %w: it runs", from, runtime.ErrInUse)
	}
	own, err := r.ownVolumes(ctx, from)
	if err == nil {
		err = r.handOver(from, to, own)
	}
	if err != nil {
		return fmt.Errorf("take the volumes of container %s: %w", from, err)
	}
	return nil
}

// ownVolumes are the directories of a container's own volumes, by target.
func (r *Runtime) ownVolumes(ctx context.Context, id string) (map[string]string, error) {
	entries, err := os.ReadDir(r.anonymousDir(id))
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	record, err := r.client.ContainerService().Get(r.namespaced(ctx), id)
	if errdefs.IsNotFound(err) {
		return nil, nil // half made, or half removed: nothing ever ran on them, or it was too late before
	}
	if err != nil {
		return nil, translate("look it up", err)
	}
	var spec specs.Spec
	if err := json.Unmarshal(record.Spec.GetValue(), &spec); err != nil {
		return nil, fmt.Errorf("read its specification: %w", err)
	}
	out := map[string]string{}
	for _, m := range spec.Mounts {
		if dir, ok := strings.CutSuffix(m.Source, "/"+volumeData); ok && filepath.Dir(dir) == r.anonymousDir(id) {
			out[m.Destination] = dir
		}
	}
	return out, nil
}

func (r *Runtime) handOver(from, to string, own map[string]string) error {
	moves := map[string]string{}
	for target, dir := range own {
		moves[hex.EncodeToString([]byte(target))] = dir
	}
	given, err := os.ReadDir(r.heirDir(from))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, entry := range given {
		moves[entry.Name()] = filepath.Join(r.heirDir(from), entry.Name())
	}
	if len(moves) == 0 {
		return nil
	}
	if err := os.MkdirAll(r.heirDir(to), 0o711); err != nil {
		return err
	}
	for name, dir := range moves {
		err := os.Rename(dir, filepath.Join(r.heirDir(to), name))
		// One that is there already is newer: it was taken before, and used.
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// RemoveVolumes removes those that a container was given.
func (r *Runtime) RemoveVolumes(_ context.Context, id string) error {
	if checkID(id) != nil {
		return nil
	}
	if err := os.RemoveAll(r.heirDir(id)); err != nil {
		return fmt.Errorf("remove volumes that container %s was given: %w", id, err)
	}
	return nil
}
