package containerd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/contrib/apparmor"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/swarmd/swarmd/worker/runtime"
	"github.com/swarmd/swarmd/worker/runtime/containerd/embedded"
)

const (
	shimRuntime = "io.containerd.runc.v2"
	// gcRoot keeps a snapshot from the collector before its container is there.
	gcRoot = "containerd.io/gc.root"
)

// Create makes the container, not its process. One that was started, or has ended, is left alone; one that
// never was, or is half made, is made anew.
func (r *Runtime) Create(ctx context.Context, spec runtime.Spec) error {
	if err := checkID(spec.ID); err != nil {
		return err
	}
	labels, err := labelsOf(spec)
	if err != nil {
		return err
	}
	if spec.Container.GetStopSignal() != "" {
		if _, err := parseSignal(spec.Container.GetStopSignal()); err != nil {
			return makeError(spec.ID, fmt.Errorf("stop signal: %w", err))
		}
	}
	ctx = r.namespaced(ctx)
	defer r.ids.lock(spec.ID)()
	if s, err := r.readState(spec.ID); err == nil {
		if started, err := r.wasStarted(ctx, s); started || err != nil {
			return err
		}
	}
	if _, err := os.Stat(r.containerDir(spec.ID)); err == nil {
		if err := r.remove(ctx, spec.ID); err != nil {
			return err
		}
	}
	image, err := r.findImage(ctx, spec.Image, spec.Digest)
	if err != nil {
		return makeError(spec.ID, err)
	}
	snapshotter, err := r.snapshotterName(ctx)
	if err != nil {
		return err
	}
	s := &state{
		ID: spec.ID, Snapshotter: snapshotter, Image: image.Name, Digest: image.Target.Digest.String(), Labels: labels,
		StopSignal: spec.Container.GetStopSignal(),
	}
	if err := r.make(ctx, spec, s, image); err != nil {
		if undo := r.remove(context.WithoutCancel(ctx), spec.ID); undo != nil {
			r.log.Warn("remove half-made container", "task", spec.ID, "error", undo)
		}
		return makeError(spec.ID, err)
	}
	return nil
}

func makeError(id string, err error) error {
	return &runtime.ContainerError{Doing: "make", ID: id, Err: err}
}

// wasStarted also finds, and writes down, a start that a crash kept from being written down: the process must not be
// taken for one that never ran and be made a second time.
func (r *Runtime) wasStarted(ctx context.Context, s *state) (bool, error) {
	if s.started() {
		return true, nil
	}
	pid, err := r.halfStarted(ctx, s.ID)
	if pid == 0 || err != nil {
		return false, err
	}
	s.Pid, s.Ticks = pid, ticksOf(pid, s.ID)
	if err := r.writeState(s); err != nil {
		return false, err
	}
	r.watch(s.ID)
	return true, nil
}

// make goes from nothing to containerd's record; whatever it leaves on an error, remove finds by the ID.
func (r *Runtime) make(ctx context.Context, spec runtime.Spec, s *state, image localImage) error {
	if err := os.MkdirAll(r.containerDir(spec.ID), 0o711); err != nil {
		return fmt.Errorf("make its directory: %w", err)
	}
	if err := r.writeState(s); err != nil {
		return err
	}
	info, err := r.imageInfo(ctx, image)
	if err != nil {
		return err
	}
	mounts, err := r.prepare(ctx, s, image, info)
	if err != nil {
		return err
	}
	bundle, err := r.spec(ctx, spec, info, viewOf(mounts))
	if err != nil {
		return err
	}
	if s.StopSignal == "" {
		s.StopSignal = info.config.StopSignal
	}
	record, err := r.record(s, bundle)
	if err == nil {
		err = r.writeExecution(s.ID, bundle.Process)
	}
	if err != nil {
		return err
	}
	if _, err := r.client.ContainerService().Create(ctx, record); err != nil {
		return translate("record it", err)
	}
	s.Made = true
	return r.writeState(s)
}

// prepare makes the writable snapshot, and unpacks the image before if that has not happened.
func (r *Runtime) prepare(ctx context.Context, s *state, image localImage, info *imageInfo) ([]mount.Mount, error) {
	snapshotter := r.client.SnapshotService(s.Snapshotter)
	label := snapshots.WithLabels(map[string]string{gcRoot: time.Now().UTC().Format(time.RFC3339)})
	for attempt := 0; ; attempt++ {
		mounts, err := snapshotter.Prepare(ctx, s.ID, info.chain, label)
		switch {
		case err == nil:
			return mounts, nil
		case attempt == 0 && errdefs.IsNotFound(err):
			err = r.unpack(ctx, image)
		case attempt == 0 && errdefs.IsAlreadyExists(err):
			err = snapshotter.Remove(ctx, s.ID)
		}
		if err != nil {
			return nil, translate("prepare its file system", err)
		}
	}
}

func (r *Runtime) spec(ctx context.Context, spec runtime.Spec, info *imageInfo, root rootfs) (*specs.Spec, error) {
	user, err := r.user(ctx, spec, info, root)
	if err != nil {
		return nil, err
	}
	mounts, err := r.mounts(ctx, spec, root)
	if err != nil {
		return nil, err
	}
	in := specInput{
		Spec: spec, config: info.config, user: user, mounts: mounts,
		cgroup: path.Join(r.CgroupParent, spec.ID), pids: r.PidsLimit, host: r.host, oci: r.oci,
	}
	if spec.Container.GetInit() {
		in.init = r.logger
		in.mounts = append(in.mounts, specs.Mount{Destination: initPath, Type: "bind", Source: r.logger, Options: []string{"bind", "ro", "rprivate"}})
	}
	if r.host.apparmor {
		if err := apparmor.LoadDefaultProfile(apparmorProfile); err != nil {
			return nil, fmt.Errorf("load AppArmor profile: %w", err)
		}
	}
	made, err := buildSpec(in)
	if err == nil {
		err = r.addDevices(made, spec.Devices)
	}
	if err == nil && r.SharedShim {
		setGroup(made, r.groups.assign(spec.ID))
	}
	return made, err
}

// addDevices comes after everything else in the spec: what a device needs of environment and mounts takes the place of what
// was there.
func (r *Runtime) addDevices(made *specs.Spec, names []string) error {
	if len(names) == 0 {
		return nil
	}
	if r.Devices == nil {
		return invalid("device %s: this host hands out none", names[0])
	}
	if err := r.Devices.Inject(made, names); err != nil {
		return invalid("%s", oneLine(err.Error()))
	}
	return nil
}

// user of the container: the spec's or the image's. What a name means is remembered with the image.
func (r *Runtime) user(ctx context.Context, spec runtime.Spec, info *imageInfo, root rootfs) (specs.User, error) {
	name := spec.Container.GetUser()
	if name == "" {
		name = info.config.User
	}
	if user, ok := numericUser(name); ok {
		return user, nil
	}
	return info.user(name, func() (specs.User, error) { return lookupUser(ctx, name, root) })
}

// record is containerd's. The labels are the spec's alone, never the image's.
func (r *Runtime) record(s *state, bundle *specs.Spec) (containers.Container, error) {
	encoded, err := typeurl.MarshalAny(bundle)
	if err != nil {
		return containers.Container{}, fmt.Errorf("encode its specification: %w", err)
	}
	runtimeOptions, err := typeurl.MarshalAny(&options.Options{BinaryName: r.oci.Path, Root: r.ociRoot()})
	if err != nil {
		return containers.Container{}, fmt.Errorf("encode its runtime's options: %w", err)
	}
	return containers.Container{
		ID: s.ID, Labels: maps.Clone(s.Labels), Image: s.Image, Spec: encoded,
		Snapshotter: s.Snapshotter, SnapshotKey: s.ID,
		Runtime: containers.RuntimeInfo{Name: shimRuntime, Options: runtimeOptions},
	}, nil
}

func (r *Runtime) ociRoot() string { return path.Join(r.RunDir, r.oci.Name) }

// Remove kills what is left and removes container, snapshot and anonymous volumes. Logs stay.
func (r *Runtime) Remove(ctx context.Context, id string) error {
	if checkID(id) != nil {
		return nil // was never made
	}
	defer r.ids.lock(id)()
	return r.remove(r.namespaced(ctx), id)
}

// remove goes in the order in which each step finds the next one's object by the ID alone, the directory
// last, so that it can be repeated after any failure. The caller holds the ID's lock.
func (r *Runtime) remove(ctx context.Context, id string) error {
	s, err := r.readState(id)
	if err != nil && !errors.Is(err, runtime.ErrNotFound) {
		return err
	}
	if err := r.deleteTask(ctx, id); err != nil {
		return err
	}
	if s != nil && s.started() && s.Exit == nil {
		r.unpin(ctx, id) // its exit is of no use any more
	}
	if err := r.client.ContainerService().Delete(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return translate("remove container "+id, err)
	}
	snapshotter, err := r.snapshotterName(ctx)
	if err != nil {
		return err
	}
	if s != nil {
		snapshotter = s.Snapshotter
	}
	if err := r.client.SnapshotService(snapshotter).Remove(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return translate("remove file system of container "+id, err)
	}
	r.collectSoon()
	r.forget(id)
	if r.ExitDir != "" {
		if err := embedded.ForgetExit(r.ExitDir, id); err != nil {
			return fmt.Errorf("remove container %s: %w", id, err)
		}
	}
	if err := os.RemoveAll(r.containerDir(id)); err != nil {
		return fmt.Errorf("remove files of container %s: %w", id, err)
	}
	return nil
}

// RemoveLogs removes what Remove leaves.
func (r *Runtime) RemoveLogs(_ context.Context, id string) error {
	if checkID(id) != nil {
		return nil
	}
	if err := os.RemoveAll(r.LogDir(id)); err != nil {
		return fmt.Errorf("remove logs of container %s: %w", id, err)
	}
	return nil
}

// Logged is the IDs that have logs, or volumes that they were given, also of containers that are gone. What is not named as an ID is not ours.
func (r *Runtime) Logged(context.Context) ([]string, error) {
	var ids []string
	for _, dir := range []string{r.logsDir(), r.inheritedDir()} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, fmt.Errorf("list logs: %w", err)
		}
		for _, entry := range entries {
			if entry.IsDir() && checkID(entry.Name()) == nil {
				ids = append(ids, entry.Name())
			}
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// List is everything of ours, also what a former process made.
func (r *Runtime) List(ctx context.Context) ([]runtime.Container, error) {
	ids, err := r.known()
	if err != nil {
		return nil, err
	}
	if err := r.adopt(ctx); err != nil {
		return nil, err
	}
	var out []runtime.Container
	for _, id := range ids {
		s, err := r.readState(id)
		if errors.Is(err, runtime.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, r.describe(s))
	}
	return out, nil
}

func (r *Runtime) describe(s *state) runtime.Container {
	c := runtime.Container{ID: s.ID, State: runtime.Created, Pid: s.Pid, Labels: s.Labels, Digest: s.Digest}
	if !s.started() {
		return c
	}
	c.State = runtime.Running
	if exit := r.exitOf(s); exit != nil {
		c.State, c.Exit, c.Pid = runtime.Stopped, exit, 0
	}
	return c
}
