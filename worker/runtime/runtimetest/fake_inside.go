package runtimetest

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/runtime"
	"github.com/swarmd/swarmd/worker/runtime/runtimetest/program"
)

// readArchive reads what Archive writes.
func readArchive(archive io.Reader) (ref string, image FakeImage, err error) {
	files := map[string][]byte{}
	for r := tar.NewReader(archive); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", FakeImage{}, err
		}
		body, err := io.ReadAll(r)
		if err != nil {
			return "", FakeImage{}, err
		}
		files[header.Name] = body
		image.size += int64(len(body))
	}
	var manifest []struct {
		Config   string
		RepoTags []string
	}
	if err := json.Unmarshal(files["manifest.json"], &manifest); err != nil {
		return "", FakeImage{}, fmt.Errorf("manifest.json: %w", err)
	}
	if len(manifest) != 1 || len(manifest[0].RepoTags) != 1 {
		return "", FakeImage{}, errors.New("manifest.json: want one image with one name")
	}
	var config v1.ConfigFile
	if err := json.Unmarshal(files[manifest[0].Config], &config); err != nil {
		return "", FakeImage{}, fmt.Errorf("%s: %w", manifest[0].Config, err)
	}
	image.Digest = digestOf(files["manifest.json"])
	image.Entrypoint, image.Cmd = config.Config.Entrypoint, config.Config.Cmd
	image.Env, image.Dir, image.StopSignal = config.Config.Env, config.Config.WorkingDir, config.Config.StopSignal
	if check := config.Config.Healthcheck; check != nil {
		image.Healthcheck = &runtime.Healthcheck{Test: check.Test, Interval: check.Interval, Timeout: check.Timeout, StartPeriod: check.StartPeriod, Retries: check.Retries}
	}
	image.test = slices.Equal(image.Entrypoint, []string{imageProgram})
	return manifest[0].RepoTags[0], image, nil
}

// prepareMounts makes what is behind a container's mounts.
func (f *Fake) prepareMounts(c *fakeContainer) error {
	c.scratch, c.given = map[string]string{}, map[string]string{}
	for _, m := range c.spec.Container.GetMounts() {
		switch m.GetType() {
		case swarmpb.MountType_MOUNT_TYPE_BIND:
			_, err := os.Stat(m.GetSource())
			if err != nil && m.GetBindCreateSource() {
				err = os.MkdirAll(m.GetSource(), 0o755)
			}
			if err != nil {
				return fmt.Errorf("mount %s: %w: %w", m.GetTarget(), err, runtime.ErrInvalid)
			}
		case swarmpb.MountType_MOUNT_TYPE_TMPFS, swarmpb.MountType_MOUNT_TYPE_VOLUME:
			if f.config.Dir == "" {
				continue
			}
			if err := f.prepareDir(c, m); err != nil {
				return fmt.Errorf("mount %s: %w", m.GetTarget(), err)
			}
		}
	}
	return nil
}

func (f *Fake) prepareDir(c *fakeContainer, m *swarmpb.Mount) error {
	isVolume := m.GetType() == swarmpb.MountType_MOUNT_TYPE_VOLUME
	dir := filepath.Join(f.config.Dir, "volumes", m.GetSource())
	filled := false
	if given := f.inherited[c.spec.ID][m.GetTarget()]; isVolume && m.GetSource() == "" && c.spec.Inherits && given != "" {
		c.scratch[m.GetTarget()], c.given[m.GetTarget()] = given, given
		return nil
	}
	if isVolume && m.GetSource() != "" {
		filled = f.volumes[m.GetSource()]
		f.volumes[m.GetSource()] = true
	} else {
		var err error
		if dir, err = os.MkdirTemp(f.config.Dir, "scratch-"); err != nil {
			return err
		}
		c.scratch[m.GetTarget()] = dir
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	seed, inside := strings.CutPrefix(ImageData, m.GetTarget()+"/")
	if isVolume && inside && !filled && !m.GetVolumeNoCopy() && c.image.test {
		return os.WriteFile(filepath.Join(dir, seed), []byte(ImageSeed), 0o644)
	}
	return nil
}

// resolve finds the host's file behind a path in a container, if a mount is there.
func (f *Fake) resolve(c *fakeContainer, path string) (file string, readOnly, mounted bool) {
	var best *swarmpb.Mount
	for _, m := range c.spec.Container.GetMounts() {
		if strings.HasPrefix(path, m.GetTarget()+"/") && (best == nil || len(m.GetTarget()) > len(best.GetTarget())) {
			best = m
		}
	}
	if best == nil {
		return "", c.spec.Container.GetReadOnly(), false
	}
	root := best.GetSource()
	if best.GetType() == swarmpb.MountType_MOUNT_TYPE_VOLUME {
		root = filepath.Join(f.config.Dir, "volumes", best.GetSource())
	}
	if dir, ok := c.scratch[best.GetTarget()]; ok {
		root = dir
	}
	return filepath.Join(root, strings.TrimPrefix(path, best.GetTarget())), best.GetReadOnly(), true
}

func (f *Fake) probe(c *fakeContainer, text string) program.Probe {
	verb, path, _ := strings.Cut(text, ":")
	file, readOnly, mounted := f.resolve(c, path)
	switch {
	case verb == "read" && mounted:
		body, err := os.ReadFile(file)
		if err != nil {
			return program.Probe{Err: err.Error()}
		}
		return program.Probe{Text: string(body)}
	case verb == "read" && path == ImageData && c.image.test:
		return program.Probe{Text: ImageSeed}
	case verb == "read":
		return program.Probe{Err: "no such file"}
	case verb == "write" && readOnly:
		return program.Probe{Err: "read-only file system"}
	case verb == "write" && mounted:
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return program.Probe{Err: err.Error()}
		}
		return program.Probe{}
	case verb == "write":
		return program.Probe{}
	}
	return program.Probe{Err: "unknown probe"}
}

func (f *Fake) writeReport(c *fakeContainer) error {
	spec := c.spec.Container
	uid, gid, err := userOf(spec.GetUser())
	if err != nil {
		return err
	}
	limits := c.spec.Resources
	r := program.Report{
		Args: c.argv(), Env: environment(c.image.Env, spec.GetEnv(), c.spec.Env), Dir: c.image.Dir, UID: uid, GID: gid,
		Hostname: c.spec.Hostname, Resolv: c.spec.ResolvConf, Hosts: c.spec.Hosts,
		Probes:      map[string]program.Probe{},
		MemoryLimit: orUnlimited(limits.GetLimits().GetMemoryBytes()), NanoCPUs: orUnlimited(limits.GetLimits().GetNanoCpus()),
		PidsLimit: limits.GetPidsLimit(), CapEff: capabilities(spec), NoNewPrivs: spec.GetNoNewPrivileges(), Seccomp: true,
	}
	if r.PidsLimit == 0 {
		r.PidsLimit = 4096
	}
	if spec.GetDir() != "" {
		r.Dir = spec.GetDir()
	}
	for _, text := range c.program.Probes {
		r.Probes[text] = f.probe(c, text)
	}
	body, err := json.Marshal(r)
	if err != nil {
		return err
	}
	file, readOnly, mounted := f.resolve(c, c.program.File)
	if readOnly || !mounted {
		return errors.New("nowhere to write the report to")
	}
	return os.WriteFile(file, body, 0o644)
}

// environment joins lists of NAME=VALUE; the later wins.
func environment(lists ...[]string) []string {
	var out []string
	for _, entry := range slices.Concat(lists...) {
		key, _, _ := strings.Cut(entry, "=")
		out = slices.DeleteFunc(out, func(e string) bool { return strings.HasPrefix(e, key+"=") })
		out = append(out, entry)
	}
	return out
}

func orUnlimited(n int64) int64 {
	if n == 0 {
		return -1
	}
	return n
}

// capabilities knows the few that the suite asks for.
func capabilities(spec *swarmpb.ContainerSpec) uint64 {
	known := map[string]uint64{"CAP_NET_BIND_SERVICE": 1 << 10, "CAP_CHOWN": 1, "CAP_NET_RAW": 1 << 13, "CAP_SYS_ADMIN": 1 << 21}
	caps := uint64(dockerCaps)
	for _, name := range spec.GetCapDrop() {
		if name == "ALL" {
			caps = 0
		}
		caps &^= known[name]
	}
	for _, name := range spec.GetCapAdd() {
		caps |= known[name]
	}
	return caps
}

// userOf reads user[:group] against the test image's /etc/passwd.
func userOf(user string) (uid, gid int, err error) {
	name, group, both := strings.Cut(user, ":")
	id := func(s string) (int, error) {
		switch s {
		case "", "root":
			return 0, nil
		case ImageUser:
			return ImageUserID, nil
		}
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 {
			return 0, fmt.Errorf("unknown user or group %q: %w", s, runtime.ErrInvalid)
		}
		return n, nil
	}
	if uid, err = id(name); err != nil {
		return 0, 0, err
	}
	if !both {
		return uid, uid, nil // every user of the test image has a group of the same number
	}
	gid, err = id(group)
	return uid, gid, err
}
