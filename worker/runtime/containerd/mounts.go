package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/continuity/fs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/runtime"
)

// rootfs gives the container's root file system to look at, read-only and only for the call's time.
type rootfs func(ctx context.Context, look func(root string) error) error

func viewOf(mounts []mount.Mount) rootfs {
	return func(ctx context.Context, look func(string) error) error {
		var found error // not in the words of a mount's callback
		err := mount.WithReadonlyTempMount(ctx, mounts, func(root string) error {
			found = look(root)
			return found
		})
		if found != nil {
			return found
		}
		return err
	}
}

// clearViews has views mounted below the run directory, and unmounts those that a killed process has left there.
func (r *Runtime) clearViews() error {
	dir := filepath.Join(r.RunDir, "views")
	if err := mount.SetTempMountLocation(dir); err != nil {
		return fmt.Errorf("make directory of views: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("look for views that are left: %w", err)
	}
	for _, entry := range entries {
		view := filepath.Join(dir, entry.Name())
		err := mount.UnmountAll(view, unix.MNT_DETACH)
		if err == nil {
			err = os.Remove(view) // never what is mounted there
		}
		if err != nil {
			r.log.Warn("remove a view that is left", "path", view, "error", err)
		}
	}
	return nil
}

var propagations = []string{"private", "rprivate", "shared", "rshared", "slave", "rslave"}

// mounts are those of the spec, outermost first, after the files that every container gets.
func (r *Runtime) mounts(ctx context.Context, spec runtime.Spec, root rootfs) ([]specs.Mount, error) {
	files, err := r.writeFiles(spec)
	if err != nil {
		return nil, err
	}
	given := slices.Clone(spec.Container.GetMounts())
	slices.SortStableFunc(given, func(a, b *swarmpb.Mount) int {
		return strings.Count(path.Clean(a.GetTarget()), "/") - strings.Count(path.Clean(b.GetTarget()), "/")
	})
	var out []specs.Mount
	for i, m := range given {
		made, err := r.mount(ctx, spec, i, m, root)
		if err != nil {
			return nil, fmt.Errorf("mount %s: %w", m.GetTarget(), err)
		}
		// A mount of the user's over one of our files wins.
		files = slices.DeleteFunc(files, func(f specs.Mount) bool { return f.Destination == made.Destination })
		out = append(out, made)
	}
	return append(files, out...), nil
}

func (r *Runtime) mount(ctx context.Context, spec runtime.Spec, index int, m *swarmpb.Mount, root rootfs) (specs.Mount, error) {
	target := path.Clean(m.GetTarget())
	if !path.IsAbs(target) || target == "/" {
		return specs.Mount{}, invalid("target %q is not an absolute path below /", m.GetTarget())
	}
	out := specs.Mount{Destination: target}
	switch m.GetType() {
	case swarmpb.MountType_MOUNT_TYPE_TMPFS:
		return tmpfs(out, m), nil
	case swarmpb.MountType_MOUNT_TYPE_BIND:
		if err := checkBind(m); err != nil {
			return specs.Mount{}, err
		}
		out.Source = filepath.Clean(m.GetSource())
	case swarmpb.MountType_MOUNT_TYPE_VOLUME:
		if m.GetSource() == "" {
			out.Source = r.inherited(spec, target)
		}
		if out.Source != "" {
			break
		}
		source, err := r.volume(ctx, spec.ID, index, m, root)
		if err != nil {
			return specs.Mount{}, err
		}
		out.Source = source
	default:
		return specs.Mount{}, invalid("type %s is not bind, volume or tmpfs", m.GetType())
	}
	propagation := m.GetBindPropagation()
	if propagation == "" {
		propagation = "rprivate"
	}
	out.Type, out.Options = "bind", []string{"rbind", propagation}
	if m.GetReadOnly() {
		out.Options = append(out.Options, r.readOnly())
	}
	return out, nil
}

// readOnly makes mounts below the mount read-only too, where the kernel can.
func (r *Runtime) readOnly() string {
	if r.host.recurse && r.oci.Name == "runc" {
		return "rro"
	}
	return "ro"
}

func tmpfs(out specs.Mount, m *swarmpb.Mount) specs.Mount {
	mode := m.GetTmpfsMode()
	if mode == 0 {
		mode = 0o1777
	}
	out.Type, out.Source = "tmpfs", "tmpfs"
	out.Options = []string{"nosuid", "nodev", "noexec", "mode=" + strconv.FormatUint(uint64(mode), 8)}
	if size := m.GetTmpfsSizeBytes(); size > 0 {
		out.Options = append(out.Options, "size="+strconv.FormatInt(size, 10))
	}
	if m.GetReadOnly() {
		out.Options = append(out.Options, "ro")
	}
	return out
}

func checkBind(m *swarmpb.Mount) error {
	source := m.GetSource()
	if !filepath.IsAbs(source) {
		return invalid("bind source %q is not an absolute path on the node", source)
	}
	if p := m.GetBindPropagation(); p != "" && !slices.Contains(propagations, p) {
		return invalid("bind propagation %q is not one of %s", p, strings.Join(propagations, ", "))
	}
	if _, err := os.Stat(source); err == nil {
		return nil
	} else if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("bind source: %w", err)
	}
	if !m.GetBindCreateSource() {
		return invalid("bind source %s does not exist on this node: make it there, or mount with bind-create-src", source)
	}
	if err := os.MkdirAll(source, 0o755); err != nil {
		return fmt.Errorf("make bind source: %w", err)
	}
	return nil
}

var volumeName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}$`)

// volume is the directory of a named or, without a name, an anonymous volume, which lives in the container's
// directory and goes with it. A new or empty one starts with what the image has at the target.
func (r *Runtime) volume(ctx context.Context, id string, index int, m *swarmpb.Mount, root rootfs) (string, error) {
	name, base := m.GetSource(), r.volumesDir()
	if name == "" {
		name, base = strconv.Itoa(index), r.anonymousDir(id)
	} else if !volumeName.MatchString(name) {
		return "", invalid("volume name %q: it starts with a letter or digit and goes on with letters, digits, '_', '.' and '-'", name)
	}
	data := filepath.Join(base, name, "_data")
	defer r.volumes.lock(data)()
	// The mark is there while the image's files are copied: what a crash or a full disk cut short is done anew.
	mark := filepath.Join(base, name, "copying")
	if _, err := os.Lstat(mark); err == nil {
		if err := os.RemoveAll(data); err != nil {
			return "", fmt.Errorf("empty half-filled volume %s: %w", name, err)
		}
	}
	if entries, err := os.ReadDir(data); err == nil && len(entries) > 0 {
		return data, nil
	}
	if err := os.MkdirAll(data, 0o755); err != nil {
		return "", fmt.Errorf("make volume %s: %w", name, err)
	}
	if !m.GetVolumeNoCopy() {
		if err := os.WriteFile(mark, nil, 0o600); err != nil {
			return "", fmt.Errorf("fill volume %s: %w", name, err)
		}
		err := root(ctx, func(mounted string) error { return copyUp(mounted, m.GetTarget(), data) })
		if err != nil {
			return "", fmt.Errorf("copy the image's %s into volume %s: %w", m.GetTarget(), name, err)
		}
	}
	if err := os.Remove(mark); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("fill volume %s: %w", name, err)
	}
	return data, nil
}

// copyUp copies a directory of the image, its owner and mode too; what is no directory there stays empty.
func copyUp(root, target, to string) error {
	from, err := fs.RootPath(root, target) // follows links, never out of the root
	if err != nil {
		return err
	}
	if info, err := os.Stat(from); err != nil || !info.IsDir() {
		return nil
	}
	return fs.CopyDir(to, from)
}

// writeFiles writes /etc/hosts, /etc/hostname and /etc/resolv.conf of the container.
func (r *Runtime) writeFiles(spec runtime.Spec) ([]specs.Mount, error) {
	hosts, resolv := spec.Hosts, spec.ResolvConf
	if hosts == "" {
		hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
	}
	if resolv == "" {
		resolv = hostResolvConf()
	}
	var out []specs.Mount
	for _, file := range []struct{ name, body string }{{"hosts", hosts}, {"hostname", spec.Hostname + "\n"}, {"resolv.conf", resolv}} {
		if file.name == "hostname" && spec.Hostname == "" {
			continue
		}
		path := filepath.Join(r.containerDir(spec.ID), file.name)
		if err := os.WriteFile(path, []byte(file.body), 0o644); err != nil {
			return nil, fmt.Errorf("write %s of container %s: %w", file.name, spec.ID, err)
		}
		if err := os.Chmod(path, 0o644); err != nil { // whatever the umask
			return nil, fmt.Errorf("write %s of container %s: %w", file.name, spec.ID, err)
		}
		options := []string{"rbind", "rprivate"}
		if spec.Container.GetReadOnly() {
			options = append(options, "ro")
		}
		out = append(out, specs.Mount{Destination: "/etc/" + file.name, Type: "bind", Source: path, Options: options})
	}
	return out, nil
}

// hostResolvConf is the host's without servers on its loopback, which a container cannot reach.
func hostResolvConf() string {
	body, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return ""
	}
	var out strings.Builder
	for line := range strings.Lines(string(body)) {
		fields := strings.Fields(line)
		if len(fields) > 1 && fields[0] == "nameserver" && (strings.HasPrefix(fields[1], "127.") || fields[1] == "::1") {
			continue
		}
		out.WriteString(line)
	}
	return out.String()
}
