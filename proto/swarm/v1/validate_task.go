package swarmpb

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/distribution/reference"
	"google.golang.org/protobuf/types/known/durationpb"
)

var (
	imageDigest = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	hostname    = regexp.MustCompile(`^[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?$`)
	volumeName  = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)
	fieldRef    = regexp.MustCompile(`{{[^{}]*}}`)
)

// expanded stands a letter in for each {{field}}, whose value only the node knows.
func expanded(text string) string { return fieldRef.ReplaceAllLiteralString(text, "x") }

// signals are Linux's by name, without SIG.
var signals = strings.Fields(`ABRT ALRM BUS CHLD CLD CONT FPE HUP ILL INT IO IOT KILL PIPE POLL PROF PWR QUIT SEGV
	STKFLT STOP SYS TERM TRAP TSTP TTIN TTOU URG USR1 USR2 VTALRM WINCH XCPU XFSZ`)

// capabilities are Linux's by name, without CAP_.
var capabilities = strings.Fields(`ALL AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND BPF CHECKPOINT_RESTORE CHOWN
	DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE
	MKNOD NET_ADMIN NET_BIND_SERVICE NET_BROADCAST NET_RAW PERFMON SETFCAP SETGID SETPCAP SETUID SYSLOG SYS_ADMIN
	SYS_BOOT SYS_CHROOT SYS_MODULE SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG
	WAKE_ALARM`)

var propagations = []string{"private", "rprivate", "shared", "rshared", "slave", "rslave"}

func (p *problems) task(task *TaskSpec) {
	if task.GetContainer() == nil {
		p.add("image", "it is not set", "name the image to run, for example nginx:alpine")
		return
	}
	p.container(task.Container)
	p.stopAfterDisconnect(task.StopAfterDisconnect)
	p.resources(task.Resources)
	known(p, "restart condition", task.GetRestart().GetCondition(), RestartCondition_name)
	p.duration("restart delay", task.GetRestart().GetDelay())
	p.duration("restart window", task.GetRestart().GetWindow())
	p.placement(task.Placement)
	p.networks(task.Networks)
}

func (p *problems) container(c *ContainerSpec) {
	p.image(c)
	for _, list := range []struct {
		field string
		words []string
	}{{"command", c.Command}, {"argument", c.Args}} {
		if i := slices.IndexFunc(list.words, hasNUL); i >= 0 {
			p.add(fmt.Sprintf("%s %d", list.field, i+1), "it holds a NUL byte", "remove it")
		}
	}
	for _, env := range c.Env {
		name, _, found := strings.Cut(env, "=")
		switch {
		case name == "" || !found:
			p.add(fmt.Sprintf("env %q", env), "it is not NAME=VALUE", "give a name, an equals sign and a value, which may be empty")
		case hasNUL(env):
			p.add("env "+strconv.Quote(name), "it holds a NUL byte", "remove it")
		}
	}
	p.labels("container label", c.Labels)
	if c.Dir != "" && (!path.IsAbs(c.Dir) || hasNUL(c.Dir)) {
		p.add(fmt.Sprintf("working directory %q", c.Dir), "it is not absolute", "begin it with /")
	}
	if strings.ContainsAny(c.User, " \t\n\x00") || strings.HasPrefix(c.User, ":") {
		p.add(fmt.Sprintf("user %q", c.User), "it is not a user", "use USER or USER:GROUP, as names or numbers")
	}
	if name := expanded(c.Hostname); name != "" && (len(name) > MaxNameLength || !hostname.MatchString(name)) {
		p.add(fmt.Sprintf("hostname %q", c.Hostname), "it is not a host name",
			fmt.Sprintf("use at most %d letters, digits, dots and dashes", MaxNameLength))
	}
	p.resolver(c)
	p.mounts(c.Mounts)
	if c.StopSignal != "" && !knownSignal(c.StopSignal) {
		p.add(fmt.Sprintf("stop signal %q", c.StopSignal), "there is no such signal", "use one such as SIGTERM, SIGINT or 15")
	}
	p.duration("stop grace period", c.StopGracePeriod)
	p.stopping(c)
	p.health(c)
	for _, list := range []struct {
		field string
		names []string
	}{{"cap-add", c.CapAdd}, {"cap-drop", c.CapDrop}} {
		for _, name := range list.names {
			if !slices.Contains(capabilities, strings.TrimPrefix(strings.ToUpper(name), "CAP_")) {
				p.add(fmt.Sprintf("%s %q", list.field, name), "there is no such capability", "use one such as NET_ADMIN, or ALL")
			}
		}
	}
}

func (p *problems) stopAfterDisconnect(d *durationpb.Duration) {
	const field = "stop after disconnect"
	p.duration(field, d)
	switch after := d.AsDuration(); {
	case d == nil || d.CheckValid() != nil || after < 0:
	case after < MinStopAfterDisconnect:
		p.addf(field, fmt.Sprintf("use %s or more, or leave it out to never stop the task", MinStopAfterDisconnect), "%s is too short", after)
	case after > MaxStopAfterDisconnect:
		p.addf(field, fmt.Sprintf("use at most %s", MaxStopAfterDisconnect), "%s is too long", after)
	}
}

func (p *problems) image(c *ContainerSpec) {
	field := fmt.Sprintf("image %q", c.Image)
	if c.Image == "" {
		p.add("image", "it is not set", "name the image to run, for example nginx:alpine")
	} else if _, err := reference.ParseNormalizedNamed(c.Image); err != nil {
		p.add(field, "it is not an image reference ("+err.Error()+")", "use NAME[:TAG][@DIGEST], for example nginx:alpine")
	}
	if c.ImageDigest != "" && !imageDigest.MatchString(c.ImageDigest) {
		p.add(fmt.Sprintf("image digest %q", c.ImageDigest), "it is not a digest", "use sha256: and 64 hexadecimal digits, or leave it out")
	}
}

func knownSignal(s string) bool {
	if n, err := strconv.Atoi(s); err == nil {
		return n >= 1 && n <= 64
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if slices.Contains(signals, name) || name == "RTMIN" || name == "RTMAX" {
		return true
	}
	for _, base := range []string{"RTMIN+", "RTMAX-"} {
		if offset, ok := strings.CutPrefix(name, base); ok {
			n, err := strconv.ParseUint(offset, 10, 8)
			return err == nil && n <= 30
		}
	}
	return false
}

func (p *problems) mounts(mounts []*Mount) {
	seen := make(map[string]bool)
	for i, m := range mounts {
		field := "mount " + m.GetTarget()
		target := path.Clean(m.GetTarget())
		switch {
		case m.GetTarget() == "":
			field = fmt.Sprintf("mount #%d", i+1)
			p.add(field, "it has no target", "give target=/PATH/IN/CONTAINER")
		case !path.IsAbs(m.GetTarget()) || hasNUL(m.GetTarget()):
			p.add(field, "the target is not absolute", "begin it with /")
		case target == "/":
			p.add(field, "the root cannot be mounted over", "choose a directory below it")
		case seen[target]:
			p.add(field, "another mount has the same target", "mount each path once")
		}
		seen[target] = true
		p.mount(field, m)
	}
}

// mount checks a mount's source and the options that belong to one type alone.
func (p *problems) mount(field string, m *Mount) {
	switch m.GetType() {
	case MountType_MOUNT_TYPE_BIND:
		if m.Source == "" {
			p.add(field, "a bind mount needs a source", "give source=/PATH/ON/HOST")
		} else if !path.IsAbs(m.Source) || hasNUL(m.Source) {
			p.add(field, fmt.Sprintf("the source %q is not absolute", m.Source), "begin it with /, or use type=volume")
		}
	case MountType_MOUNT_TYPE_VOLUME:
		if m.Source != "" && !volumeName.MatchString(expanded(m.Source)) {
			p.add(field, fmt.Sprintf("%q is not a volume's name", m.Source),
				"use letters, digits, dots, dashes and underscores, or type=bind for a path")
		}
	case MountType_MOUNT_TYPE_TMPFS:
		if m.Source != "" {
			p.add(field, "a tmpfs has no source", "leave it out")
		}
	default:
		p.add(field, "its type is not known", "use type=bind, volume or tmpfs")
		return
	}
	if m.Type != MountType_MOUNT_TYPE_TMPFS && (m.TmpfsSizeBytes != 0 || m.TmpfsMode != 0) {
		p.add(field, "it has options of a tmpfs", "leave them out, or use type=tmpfs")
	}
	if m.TmpfsSizeBytes < 0 {
		p.addf(field, "use 0 for half of memory, or a size", "the size %d is negative", m.TmpfsSizeBytes)
	}
	if m.TmpfsMode > 0o7777 {
		p.addf(field, "use an octal mode such as 1777", "%o is not a mode", m.TmpfsMode)
	}
	if m.Type != MountType_MOUNT_TYPE_BIND && (m.BindPropagation != "" || m.BindCreateSource) {
		p.add(field, "it has options of a bind mount", "leave them out, or use type=bind")
	} else if m.BindPropagation != "" && !slices.Contains(propagations, m.BindPropagation) {
		p.add(field, fmt.Sprintf("there is no propagation %q", m.BindPropagation), "use "+strings.Join(propagations, ", "))
	}
	if m.Type != MountType_MOUNT_TYPE_VOLUME && m.VolumeNoCopy {
		p.add(field, "it has options of a volume", "leave them out, or use type=volume")
	}
}

func (p *problems) resources(r *ResourceRequirements) {
	limits, reservations := r.GetLimits(), r.GetReservations()
	for _, side := range []struct {
		name   string
		values *Resources
	}{{"limit", limits}, {"reserve", reservations}} {
		if n := side.values.GetNanoCpus(); n != 0 && n < MinNanoCPUs {
			p.addf(side.name+" cpu", "use 0.001 or more", "%s is too little", cpus(n))
		}
		if n := side.values.GetMemoryBytes(); n != 0 && n < MinMemoryBytes {
			p.addf(side.name+" memory", "use 4 MiB or more", "%d bytes is too little", n)
		}
	}
	if l, n := limits.GetNanoCpus(), reservations.GetNanoCpus(); l != 0 && n > l {
		p.addf("reserve cpu", "reserve at most the limit", "%s is more than the limit of %s", cpus(n), cpus(l))
	}
	if l, n := limits.GetMemoryBytes(), reservations.GetMemoryBytes(); l != 0 && n > l {
		p.addf("reserve memory", "reserve at most the limit", "%d bytes is more than the limit of %d", n, l)
	}
	p.generic(r)
	if n := r.GetPidsLimit(); n < -1 {
		p.addf("limit pids", "use a number, 0 for the node's default or -1 for no limit", "%d is negative", n)
	}
}

func cpus(nano int64) string {
	return strconv.FormatFloat(float64(nano)/1e9, 'f', -1, 64)
}

func (p *problems) placement(placement *Placement) {
	known(p, "placement strategy", placement.GetStrategy(), PlacementStrategy_name)
	for _, text := range placement.GetConstraints() {
		if _, err := ParseConstraint(text); err != nil {
			p.list = append(p.list, err)
		}
	}
	for _, preference := range placement.GetPreferences() {
		descriptor := preference.GetSpread().GetDescriptor_()
		lower := strings.ToLower(descriptor)
		if len(lower) <= len("node.labels.") || !strings.HasPrefix(lower, "node.labels.") &&
			(len(lower) <= len("engine.labels.") || !strings.HasPrefix(lower, "engine.labels.")) {
			p.add(fmt.Sprintf("placement preference %q", descriptor), "it cannot be spread over",
				"use spread=node.labels.NAME or engine.labels.NAME")
		}
	}
}
