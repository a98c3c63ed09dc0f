package containerd

import (
	"path"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/swarmd/swarmd/worker/runtime"
)

// initPath is where the init is seen in a container that asks for one.
const initPath = "/sbin/swarm-init"

// apparmorProfile is loaded where the kernel has AppArmor.
const apparmorProfile = "swarmd-default"

// defaultCaps are Docker's.
var defaultCaps = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
	"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

// specInput is what the OCI spec is made from, all looked up beforehand: buildSpec does no I/O.
type specInput struct {
	runtime.Spec
	config ocispec.ImageConfig
	user   specs.User
	mounts []specs.Mount // beside the standard ones, in order
	init   string        // path of the init binary; empty = none
	cgroup string
	pids   int64
	host   host
	oci    OCIRuntime
}

func buildSpec(in specInput) (*specs.Spec, error) {
	args, err := commandLine(in)
	if err != nil {
		return nil, err
	}
	caps, err := capabilities(in.Container.GetCapAdd(), in.Container.GetCapDrop())
	if err != nil {
		return nil, err
	}
	dir := in.Container.GetDir()
	if dir == "" {
		dir = in.config.WorkingDir
	}
	zero := 0
	s := &specs.Spec{
		Version:  in.oci.specVersion(specs.Version),
		Hostname: in.Hostname,
		Root:     &specs.Root{Path: "rootfs", Readonly: in.Container.GetReadOnly()},
		Process: &specs.Process{
			Args: args, Env: environment(in), Cwd: path.Join("/", dir), User: in.user,
			NoNewPrivileges: in.Container.GetNoNewPrivileges(),
			Capabilities:    processCaps(caps, in.user.UID),
			Rlimits:         []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: min(1024, in.host.nofile), Hard: in.host.nofile}},
			OOMScoreAdj:     &zero, // or it would inherit the shim's
		},
		Mounts: append(standardMounts(), in.mounts...),
		Linux: &specs.Linux{
			CgroupsPath:   in.cgroup,
			Namespaces:    namespacesOf(in),
			MaskedPaths:   slices.Clone(maskedPaths),
			ReadonlyPaths: slices.Clone(readonlyPaths),
			Resources:     resources(in.Resources, in.pids, in.host),
			Sysctl: map[string]string{
				// As Docker: a user other than root may listen below 1024 and ping in its own network.
				"net.ipv4.ip_unprivileged_port_start": "0",
				"net.ipv4.ping_group_range":           "0 2147483647",
			},
		},
	}
	if in.host.apparmor {
		s.Process.ApparmorProfile = apparmorProfile
	}
	s.Linux.Seccomp = seccomp.DefaultProfile(withBounding(s, caps)) // after the capabilities: it depends on them
	return s, nil
}

// withBounding shows the seccomp profile what the container may ever hold.
func withBounding(s *specs.Spec, caps []string) *specs.Spec {
	return &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}, Linux: s.Linux}
}

// commandLine follows Docker: a command replaces the image's entrypoint and drops its arguments too, args
// replace the image's arguments.
func commandLine(in specInput) ([]string, error) {
	entrypoint, args := in.config.Entrypoint, in.config.Cmd
	if command := in.Container.GetCommand(); len(command) > 0 {
		entrypoint, args = command, nil
	}
	if given := in.Container.GetArgs(); len(given) > 0 {
		args = given
	}
	line := slices.Concat(entrypoint, args)
	if len(line) == 0 || line[0] == "" {
		return nil, invalid("image %s names no program to run: give the service a command", in.Image)
	}
	if in.init != "" {
		line = append([]string{initPath, "init"}, line...)
	}
	return line, nil
}

// environment: the image's, then the user's, then the cluster's; a later value replaces an earlier one.
func environment(in specInput) []string {
	var env []string
	at := map[string]int{}
	set := func(entries ...string) {
		for _, entry := range entries {
			name, _, _ := strings.Cut(entry, "=")
			if i, ok := at[name]; ok {
				env[i] = entry
				continue
			}
			at[name] = len(env)
			env = append(env, entry)
		}
	}
	set("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	if in.Hostname != "" {
		set("HOSTNAME=" + in.Hostname)
	}
	set(in.config.Env...)
	set(in.Container.GetEnv()...)
	set(in.Env...)
	return env
}

func namespacesOf(in specInput) []specs.LinuxNamespace {
	list := []specs.LinuxNamespace{
		{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
		{Type: specs.NetworkNamespace, Path: in.Namespace},
	}
	if in.host.unified {
		list = append(list, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	return list
}

// processCaps follows execve: a user other than root holds none, but a program with file capabilities may gain
// those of the bounding set. Nothing is inheritable.
func processCaps(caps []string, uid uint32) *specs.LinuxCapabilities {
	if uid != 0 {
		return &specs.LinuxCapabilities{Bounding: caps}
	}
	return &specs.LinuxCapabilities{Bounding: caps, Permitted: caps, Effective: caps}
}

// capabilities applies drop, then add, to the default; ALL and names without CAP_ are understood.
func capabilities(add, drop []string) ([]string, error) {
	set := map[string]bool{}
	for _, name := range defaultCaps {
		set[name] = true
	}
	names := func(list []string) ([]string, error) {
		var out []string
		for _, given := range list {
			name := strings.ToUpper(given)
			if name == "ALL" {
				return append(out, allCaps...), nil
			}
			if !strings.HasPrefix(name, "CAP_") {
				name = "CAP_" + name
			}
			if !slices.Contains(allCaps, name) {
				return nil, invalid("capability %q is not known", given)
			}
			out = append(out, name)
		}
		return out, nil
	}
	dropped, err := names(drop)
	if err != nil {
		return nil, err
	}
	added, err := names(add)
	if err != nil {
		return nil, err
	}
	for _, name := range dropped {
		delete(set, name)
	}
	for _, name := range added {
		set[name] = true
	}
	out := make([]string, 0, len(set))
	for name := range set {
		out = append(out, name)
	}
	slices.Sort(out)
	return out, nil
}

// allCaps are those of Linux 5.9 and above, in the kernel's order.
var allCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW",
	"CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT",
	"CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD",
	"CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG",
	"CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

var maskedPaths = []string{
	"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
	"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
}

var readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}

func standardMounts() []specs.Mount {
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: cgroupRoot, Type: "cgroup", Source: "cgroup", Options: []string{"ro", "nosuid", "noexec", "nodev"}},
	}
}

// checkLabels refuses what containerd would act on, and what it cannot hold.
func checkLabels(labels map[string]string) error {
	for name, value := range labels {
		for _, reserved := range []string{"containerd.io", "io.containerd", "io.cri-containerd"} {
			if name == reserved || strings.HasPrefix(name, reserved+"/") || strings.HasPrefix(name, reserved+".") {
				return invalid("label %q is reserved for containerd; choose another name", name)
			}
		}
		if len(name)+len(value) > maxLabel {
			return invalid("label %q is too long: name and value have %d bytes together, at most %d fit", name, len(name)+len(value), maxLabel)
		}
	}
	return nil
}

// maxLabel is containerd's bound.
const maxLabel = 4096

func labelsOf(spec runtime.Spec) (map[string]string, error) {
	labels := map[string]string{}
	for name, value := range spec.Container.GetLabels() {
		labels[name] = value
	}
	for name, value := range spec.Labels {
		labels[name] = value
	}
	if err := checkLabels(labels); err != nil {
		return nil, makeError(spec.ID, err)
	}
	return labels, nil
}
