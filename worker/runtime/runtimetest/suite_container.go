package runtimetest

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/runtime"
)

// dockerCaps are the 14 capabilities that a container has unless its spec says otherwise.
const dockerCaps = 0xa80425fb

func imageCases() []testCase {
	return []testCase{
		{"Image_Imported_IsListedAndRemoved", func(s *suite) {
			image := s.load()
			images, err := s.Runtime.Images(s.ctx())
			if err != nil {
				s.Fatalf("images: %v", err)
			}
			at := slices.IndexFunc(images, func(i runtime.Image) bool { return i.Name == ImageName })
			if at < 0 || images[at].Digest != image.Digest || images[at].Size <= 0 {
				s.Fatalf("images are %+v, want %s with its digest and size", images, ImageName)
			}
			s.create(s.spec("uses", "sleep"))
			_, err = s.Runtime.RemoveImage(s.ctx(), ImageName, false)
			s.wantError(err, runtime.ErrInUse, "remove an image in use")
			if err := s.Runtime.Remove(s.ctx(), "uses"); err != nil {
				s.Fatal(err)
			}
			removed, err := s.Runtime.RemoveImage(s.ctx(), ImageName, false)
			if err != nil || len(removed) == 0 {
				s.Fatalf("remove image: %v, %v", removed, err)
			}
			_, err = s.Runtime.RemoveImage(s.ctx(), ImageName, false)
			s.wantError(err, runtime.ErrNotFound, "remove an image that is gone")
		}},
		{"Import_Garbage_Invalid", func(s *suite) {
			_, err := s.Runtime.Import(s.ctx(), strings.NewReader("this is no archive"))
			s.wantError(err, runtime.ErrInvalid, "import garbage")
			_, err = s.Runtime.Import(s.ctx(), bytes.NewReader(nil))
			s.wantError(err, runtime.ErrInvalid, "import nothing")
		}},
		{"Pull_RegistrySilent_LoadedImageIsGoodEnough", func(s *suite) {
			loaded := s.load()
			for _, digest := range []string{"", loaded.Digest} {
				image, err := s.Runtime.Pull(s.ctx(), runtime.PullRequest{Image: ImageName, Digest: digest})
				if err != nil || image.Digest != loaded.Digest {
					s.Fatalf("pull with digest %q: %+v, %v", digest, image, err)
				}
			}
			other := "sha256:" + strings.Repeat("0", 64)
			if _, err := s.Runtime.Pull(s.ctx(), runtime.PullRequest{Image: ImageName, Digest: other}); err == nil {
				s.Fatal("pulled a digest that is nowhere")
			}
		}},
		{"Pull_RegistrySilent_WorthATryLater", func(s *suite) {
			_, err := s.Runtime.Pull(s.ctx(), runtime.PullRequest{Image: "127.0.0.1:1/nothing:here"})
			if err == nil || errors.Is(err, runtime.ErrNotFound) || errors.Is(err, runtime.ErrInvalid) {
				s.Fatalf("error is %v, want one that is neither %q nor %q", err, runtime.ErrNotFound, runtime.ErrInvalid)
			}
		}},
		{"Pull_RegistryHasNone_NotFound", func(s *suite) {
			if s.Registry == "" {
				s.Skip("no registry")
			}
			_, err := s.Runtime.Pull(s.ctx(), runtime.PullRequest{Image: s.Registry + "/nothing:here"})
			s.wantError(err, runtime.ErrNotFound, "pull")
		}},
		{"Pull_PolicyNever_OnlyWhatIsHere", func(s *suite) {
			loaded := s.load()
			if !loaded.Loaded {
				s.Errorf("a loaded image is not known as such: %+v", loaded)
			}
			never := swarmpb.PullPolicy_PULL_POLICY_NEVER
			for _, policy := range []swarmpb.PullPolicy{never, swarmpb.PullPolicy_PULL_POLICY_MISSING} {
				image, err := s.Runtime.Pull(s.ctx(), runtime.PullRequest{Image: ImageName, Policy: policy})
				if err != nil || image.Digest != loaded.Digest {
					s.Fatalf("pull of a loaded image, policy %s: %+v, %v", policy, image, err)
				}
			}
			_, err := s.Runtime.Pull(s.ctx(), runtime.PullRequest{Image: "127.0.0.1:1/nothing:here", Policy: never})
			s.wantError(err, runtime.ErrNotFound, "pull of an image that is not here, policy never")
			if err != nil && !strings.Contains(err.Error(), "its pull policy is never") {
				s.Errorf("%v does not say why", err)
			}
		}},
		{"Pull_BadReference_Invalid", func(s *suite) {
			_, err := s.Runtime.Pull(s.ctx(), runtime.PullRequest{Image: "Not A Reference!"})
			s.wantError(err, runtime.ErrInvalid, "pull")
		}},
		{"Create_ImageMissing_NotFound", func(s *suite) {
			spec := s.spec("missing", "sleep")
			spec.Image = "127.0.0.1:1/nothing:here"
			s.removeLater(spec.ID)
			s.wantError(s.Runtime.Create(s.ctx(), spec), runtime.ErrNotFound, "create")
			if _, ok := s.find("missing"); ok {
				s.Fatal("a container without an image is listed")
			}
		}},
		{"Create_ByDigest_RunsIt", func(s *suite) {
			image := s.load()
			spec := s.spec("digest", "sleep")
			spec.Digest = image.Digest
			s.run(spec)
			if c := s.wantState("digest", runtime.Running); c.Digest != image.Digest {
				s.Errorf("digest is %q, want %q", c.Digest, image.Digest)
			}
		}},
	}
}

func environmentCases() []testCase {
	return []testCase{
		{"Environment_OfSpecAndImage_IsSeenInside", func(s *suite) {
			spec := s.spec("env")
			spec.Container.Env = []string{"FROM_USER=u", "FROM_BOTH=user", "EMPTY="}
			spec.Env = []string{"FROM_CLUSTER=c", "FROM_BOTH=cluster"}
			spec.ResolvConf, spec.Hosts = "nameserver 192.0.2.53\n", "127.0.0.1 localhost\n192.0.2.1 neighbour\n"
			r := s.report(spec)
			for _, want := range []string{ImageEnv, imagePath, "FROM_USER=u", "FROM_CLUSTER=c", "FROM_BOTH=cluster", "EMPTY="} {
				if !slices.Contains(r.Env, want) {
					s.Errorf("environment %q lacks %s", r.Env, want)
				}
			}
			if slices.Contains(r.Env, "FROM_BOTH=user") {
				s.Error("the user's value overrides the cluster's")
			}
			if r.Hostname != "host-env" || r.Dir != ImageDir || r.UID != 0 {
				s.Errorf("hostname %q, directory %q, user %d; want host-env, %s, 0", r.Hostname, r.Dir, r.UID, ImageDir)
			}
			if r.Resolv != spec.ResolvConf || r.Hosts != spec.Hosts {
				s.Errorf("resolv.conf %q and hosts %q are not the spec's", r.Resolv, r.Hosts)
			}
			if want := []string{imageProgram, "report", "/out/report"}; !slices.Equal(r.Args, want) {
				s.Errorf("arguments are %q, want %q", r.Args, want)
			}
		}},
		{"Environment_ImagesLabels_AreNotTheContainers", func(s *suite) {
			s.create(s.spec("labels", "sleep"))
			if c := s.wantState("labels", runtime.Created); c.Labels[ImageLabel] != "" {
				s.Errorf("the image's label is on the container: %v", c.Labels)
			}
		}},
		{"Environment_DirAndUser_AreSet", func(s *suite) {
			for _, user := range []string{ImageUser, "1000", "1000:1000", "app:app"} {
				spec := s.spec("user-" + strings.ReplaceAll(user, ":", "-"))
				spec.Container.User, spec.Container.Dir = user, "/tmp"
				if r := s.report(spec); r.UID != ImageUserID || r.GID != ImageUserID || r.Dir != "/tmp" {
					s.Errorf("user %s runs as %d:%d in %s, want %d:%d in /tmp", user, r.UID, r.GID, r.Dir, ImageUserID, ImageUserID)
				}
			}
		}},
		{"Command_Given_ReplacesEntrypointAndArguments", func(s *suite) {
			spec := s.spec("command")
			spec.Container.Command = []string{imageProgram, "exit", "12"}
			s.run(spec)
			s.wantExit(s.wait("command"), 12)
		}},
		{"Start_WhatCannotRun_Invalid", func(s *suite) {
			bad := map[string]func(*swarmpb.ContainerSpec){
				"no-binary":  func(c *swarmpb.ContainerSpec) { c.Command = []string{"/no/such/binary"} },
				"not-a-file": func(c *swarmpb.ContainerSpec) { c.Command = []string{"/etc"} },
				"no-user":    func(c *swarmpb.ContainerSpec) { c.User = "nobody-here" },
			}
			for id, spoil := range bad {
				spec := s.spec(id, "sleep")
				spoil(spec.Container)
				if !s.loaded {
					s.load()
				}
				s.removeLater(id)
				err := s.Runtime.Create(s.ctx(), spec)
				if err == nil {
					_, err = s.Runtime.Start(s.ctx(), id)
				}
				s.wantError(err, runtime.ErrInvalid, "create or start "+id)
			}
		}},
		{"Security_Unset_DockersDefaults", func(s *suite) {
			r := s.report(s.spec("defaults"), "write:/written")
			if r.CapEff != dockerCaps || r.NoNewPrivs || !r.Seccomp {
				s.Errorf("capabilities %x, no new privileges %v, seccomp %v; want %x, false, true", r.CapEff, r.NoNewPrivs, r.Seccomp, dockerCaps)
			}
			if p := r.Probes["write:/written"]; p.Err != "" {
				s.Errorf("the root is not writable: %s", p.Err)
			}
			if s.Limits && r.PidsLimit <= 0 {
				s.Errorf("pids limit is %d, want the default", r.PidsLimit)
			}
		}},
		{"Security_Tightened_IsKept", func(s *suite) {
			spec := s.spec("tight")
			spec.Container.ReadOnly, spec.Container.NoNewPrivileges = true, true
			spec.Container.CapDrop, spec.Container.CapAdd = []string{"ALL"}, []string{"CAP_NET_BIND_SERVICE"}
			r := s.report(spec, "write:/written")
			if want := uint64(1 << 10); r.CapEff != want || !r.NoNewPrivs {
				s.Errorf("capabilities %x, no new privileges %v; want %x, true", r.CapEff, r.NoNewPrivs, want)
			}
			if p := r.Probes["write:/written"]; p.Err == "" {
				s.Error("the root is writable")
			}
		}},
		{"Limits_Given_AreSetInside", func(s *suite) {
			if !s.Limits {
				s.Skip("limits cannot be read on this machine")
			}
			spec := s.spec("limits")
			spec.Resources = &swarmpb.ResourceRequirements{Limits: &swarmpb.Resources{NanoCpus: 500_000_000, MemoryBytes: 64 << 20}, PidsLimit: 77}
			if r := s.report(spec); r.MemoryLimit != 64<<20 || r.PidsLimit != 77 || r.NanoCPUs != 500_000_000 {
				s.Errorf("memory %d, pids %d, cpu %d; want %d, 77, 500000000", r.MemoryLimit, r.PidsLimit, r.NanoCPUs, 64<<20)
			}
		}},
		{"Limits_MemoryExceeded_KilledAndToldAsSuch", func(s *suite) {
			if !s.Limits {
				s.Skip("limits are not enforced on this machine")
			}
			spec := s.spec("hog", "hog", "268435456")
			spec.Resources = &swarmpb.ResourceRequirements{Limits: &swarmpb.Resources{MemoryBytes: 32 << 20}}
			s.run(spec)
			if exit := s.wait("hog"); !exit.OOMKilled || exit.Code != 137 {
				s.Errorf("exit is %+v, want code 137, killed for memory", exit)
			}
		}},
		{"Logs_OfBothStreams_StayUntilRemoved", func(s *suite) {
			if s.Logs == nil {
				s.Skip("no logs")
			}
			s.run(s.spec("logs", "print", "hello from inside"))
			s.wantExit(s.wait("logs"), 0)
			if err := s.Runtime.Remove(s.ctx(), "logs"); err != nil {
				s.Fatal(err)
			}
			text, err := s.Logs("logs")
			if err != nil || !strings.Contains(text, "hello from inside") || !strings.Contains(text, "err hello from inside") {
				s.Fatalf("logs are %q, %v", text, err)
			}
			if ids, err := s.Runtime.Logged(s.ctx()); err != nil || !slices.Contains(ids, "logs") {
				s.Errorf("logs are there of %q, %v", ids, err)
			}
			if err := s.Runtime.RemoveLogs(s.ctx(), "logs"); err != nil {
				s.Fatal(err)
			}
			if ids, err := s.Runtime.Logged(s.ctx()); err != nil || slices.Contains(ids, "logs") {
				s.Errorf("logs are there of %q, %v", ids, err)
			}
			if text, err := s.Logs("logs"); err == nil && text != "" {
				s.Errorf("logs are still there: %q", text)
			}
		}},
	}
}

func mountCases() []testCase {
	bind := func(source, target string) *swarmpb.Mount {
		return &swarmpb.Mount{Type: swarmpb.MountType_MOUNT_TYPE_BIND, Source: source, Target: target}
	}
	return []testCase{
		{"Mount_Bind_HostsFilesAreSeen", func(s *suite) {
			dir := s.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "file"), []byte("of the host"), 0o644); err != nil {
				s.Fatal(err)
			}
			spec := s.spec("bind")
			readOnly := bind(dir, "/ro")
			readOnly.ReadOnly = true
			spec.Container.Mounts = []*swarmpb.Mount{bind(dir, "/rw"), readOnly}
			r := s.report(spec, "read:/rw/file", "write:/rw/new", "write:/ro/new", "read:/ro/file")
			if r.Probes["read:/rw/file"].Text != "of the host" || r.Probes["read:/ro/file"].Text != "of the host" {
				s.Errorf("probes: %+v", r.Probes)
			}
			if r.Probes["write:/rw/new"].Err != "" || r.Probes["write:/ro/new"].Err == "" {
				s.Errorf("probes: %+v", r.Probes)
			}
			if body, err := os.ReadFile(filepath.Join(dir, "new")); err != nil || string(body) != "write:/rw/new" {
				s.Errorf("the host's new file is %q, %v", body, err)
			}
		}},
		{"Mount_BindSourceMissing_InvalidUnlessToBeMade", func(s *suite) {
			missing := filepath.Join(s.TempDir(), "missing")
			spec := s.spec("missing", "sleep")
			spec.Container.Mounts = []*swarmpb.Mount{bind(missing, "/m")}
			s.load()
			s.removeLater("missing")
			err := s.Runtime.Create(s.ctx(), spec)
			if err == nil {
				_, err = s.Runtime.Start(s.ctx(), "missing")
			}
			s.wantError(err, runtime.ErrInvalid, "create or start with a missing bind source")
			made := s.spec("made")
			mount := bind(missing, "/m")
			mount.BindCreateSource = true
			made.Container.Mounts = []*swarmpb.Mount{mount}
			if r := s.report(made, "write:/m/f"); r.Probes["write:/m/f"].Err != "" {
				s.Errorf("probes: %+v", r.Probes)
			}
		}},
		{"Mount_Tmpfs_IsEmptyAndGoneAfter", func(s *suite) {
			for _, id := range []string{"tmpfs-1", "tmpfs-2"} {
				spec := s.spec(id)
				spec.Container.Mounts = []*swarmpb.Mount{{Type: swarmpb.MountType_MOUNT_TYPE_TMPFS, Target: "/data", TmpfsSizeBytes: 1 << 20}}
				r := s.report(spec, "read:"+ImageData, "read:/data/f", "write:/data/f")
				if r.Probes["read:"+ImageData].Err == "" || r.Probes["read:/data/f"].Err == "" || r.Probes["write:/data/f"].Err != "" {
					s.Errorf("%s: probes: %+v", id, r.Probes)
				}
			}
		}},
		{"Mount_NamedVolume_OutlivesItsContainerAndStartsWithTheImagesContent", func(s *suite) {
			volume := func() []*swarmpb.Mount {
				return []*swarmpb.Mount{{Type: swarmpb.MountType_MOUNT_TYPE_VOLUME, Source: "conformance", Target: "/data"}}
			}
			first := s.spec("volume-1")
			first.Container.Mounts = volume()
			r := s.report(first, "read:"+ImageData, "write:/data/kept")
			if r.Probes["read:"+ImageData].Text != ImageSeed || r.Probes["write:/data/kept"].Err != "" {
				s.Errorf("first: probes: %+v", r.Probes)
			}
			if err := s.Runtime.Remove(s.ctx(), "volume-1"); err != nil {
				s.Fatal(err)
			}
			second := s.spec("volume-2")
			second.Container.Mounts = volume()
			if r := s.report(second, "read:/data/kept"); r.Probes["read:/data/kept"].Text != "write:/data/kept" {
				s.Errorf("second: probes: %+v", r.Probes)
			}
		}},
		{"Mount_AnonymousVolume_IsTheTasksOwn", func(s *suite) {
			for _, id := range []string{"anonymous-1", "anonymous-2"} {
				spec := s.spec(id)
				spec.Container.Mounts = []*swarmpb.Mount{{Type: swarmpb.MountType_MOUNT_TYPE_VOLUME, Target: "/data", VolumeNoCopy: true}}
				r := s.report(spec, "read:"+ImageData, "read:/data/f", "write:/data/f")
				if r.Probes["read:"+ImageData].Err == "" || r.Probes["read:/data/f"].Err == "" || r.Probes["write:/data/f"].Err != "" {
					s.Errorf("%s: probes: %+v", id, r.Probes)
				}
			}
		}},
	}
}
