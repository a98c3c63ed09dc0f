package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/runtime"
)

func TestCommandLine_OfSpecAndImage_AsDocker(t *testing.T) {
	image := ocispec.ImageConfig{Entrypoint: []string{"/entry"}, Cmd: []string{"image", "args"}}
	for _, c := range []struct {
		name          string
		image         ocispec.ImageConfig
		command, args []string
		init          string
		want          []string
	}{
		{"nothing given", image, nil, nil, "", []string{"/entry", "image", "args"}},
		{"args replace the image's", image, nil, []string{"mine"}, "", []string{"/entry", "mine"}},
		{"command drops the image's args too", image, []string{"/mine"}, nil, "", []string{"/mine"}},
		{"both", image, []string{"/mine", "-v"}, []string{"a"}, "", []string{"/mine", "-v", "a"}},
		{"with init", image, nil, nil, "/logger", []string{initPath, "init", "/entry", "image", "args"}},
		{"no program", ocispec.ImageConfig{}, nil, nil, "", nil},
		{"empty program", ocispec.ImageConfig{Cmd: []string{""}}, nil, nil, "/logger", nil},
	} {
		in := specInput{config: c.image, init: c.init, Spec: runtime.Spec{Container: &swarmpb.ContainerSpec{Command: c.command, Args: c.args}}}
		got, err := commandLine(in)
		if !slices.Equal(got, c.want) || (err != nil) != (c.want == nil) || err != nil && !errors.Is(err, runtime.ErrInvalid) {
			t.Errorf("%s: %q, %v; want %q", c.name, got, err, c.want)
		}
	}
}

func TestEnvironment_SameNameTwice_LaterWinsInPlace(t *testing.T) {
	in := specInput{
		config: ocispec.ImageConfig{Env: []string{"PATH=/image", "A=image", "B=image"}},
		Spec:   runtime.Spec{Hostname: "h", Container: &swarmpb.ContainerSpec{Env: []string{"B=user", "C=user"}}, Env: []string{"C=cluster"}},
	}
	want := []string{"PATH=/image", "HOSTNAME=h", "A=image", "B=user", "C=cluster"}
	if got := environment(in); !slices.Equal(got, want) {
		t.Errorf("environment is %q, want %q", got, want)
	}
}

func TestSpec_Unset_SecurityDefaults(t *testing.T) {
	s, err := buildSpec(specInput{config: ocispec.ImageConfig{Cmd: []string{"/x"}}, pids: DefaultPidsLimit, cgroup: "/swarmd/x", host: host{nofile: noFiles}})
	if err != nil {
		t.Fatal(err)
	}
	p := s.Process
	if p.NoNewPrivileges || len(p.Capabilities.Inheritable)+len(p.Capabilities.Ambient) > 0 || !slices.Equal(p.Capabilities.Bounding, defaultCaps) {
		t.Errorf("process: %+v, capabilities %+v", p, p.Capabilities)
	}
	if s.Linux.Seccomp == nil || s.Linux.Seccomp.DefaultAction == specs.ActAllow || len(s.Linux.MaskedPaths) == 0 || len(s.Linux.ReadonlyPaths) == 0 {
		t.Error("seccomp, masked or read-only paths are missing")
	}
	if p.OOMScoreAdj == nil || *p.OOMScoreAdj != 0 || *s.Linux.Resources.Pids.Limit != DefaultPidsLimit || s.Linux.CgroupsPath != "/swarmd/x" {
		t.Errorf("oom score %v, pids %v, cgroup %s", p.OOMScoreAdj, s.Linux.Resources.Pids, s.Linux.CgroupsPath)
	}
	allowed := func(name string) bool {
		return slices.ContainsFunc(s.Linux.Seccomp.Syscalls, func(c specs.LinuxSyscall) bool {
			return c.Action == specs.ActAllow && len(c.Args) == 0 && slices.Contains(c.Names, name)
		})
	}
	if allowed("mount") || allowed("bpf") || !allowed("read") {
		t.Error("the seccomp profile is not the default one")
	}
}

func TestCapabilities_AnyLists_OnlyKnownOnesAndAddWins(t *testing.T) {
	name := rapid.SampledFrom(append(slices.Clone(allCaps), "ALL", "net_admin", "CHOWN", "bogus"))
	rapid.Check(t, func(t *rapid.T) {
		add, drop := rapid.SliceOfN(name, 0, 5).Draw(t, "add"), rapid.SliceOfN(name, 0, 5).Draw(t, "drop")
		got, err := capabilities(add, drop)
		if slices.Contains(add, "bogus") || slices.Contains(drop, "bogus") {
			// A name behind ALL is not looked at.
			if err == nil && !slices.Contains(add, "ALL") && !slices.Contains(drop, "ALL") {
				t.Fatal("an unknown capability is accepted")
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range got {
			if !slices.Contains(allCaps, c) {
				t.Fatalf("unknown %s", c)
			}
		}
		for _, c := range add {
			full := strings.ToUpper(c)
			if full != "ALL" && !strings.HasPrefix(full, "CAP_") {
				full = "CAP_" + full
			}
			if full == "ALL" && len(got) != len(allCaps) || full != "ALL" && !slices.Contains(got, full) {
				t.Fatalf("add %v, drop %v: %s is missing in %v", add, drop, c, got)
			}
		}
	})
}

func TestResources_AnyLimit_WithinTheKernelsBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nano := rapid.Int64Range(1_000_000, 1024_000_000_000).Draw(t, "nano")
		memory := rapid.Int64Range(0, 1<<50).Draw(t, "memory")
		pids := rapid.SampledFrom([]int64{-1, 0, 1, 77}).Draw(t, "pids")
		swap := rapid.Bool().Draw(t, "swap")
		got := resources(&swarmpb.ResourceRequirements{Limits: &swarmpb.Resources{NanoCpus: nano, MemoryBytes: memory}, PidsLimit: pids}, 4096, host{swap: swap})
		quota, period := *got.CPU.Quota, int64(*got.CPU.Period)
		if quota < cpuLeastQuota || period > cpuLongPeriod {
			t.Fatalf("quota %d in %d us", quota, period)
		}
		if given, want := float64(quota)/float64(period), float64(nano)/1e9; given < want*0.99-0.0001 || given > want*1.01+0.0001 {
			t.Fatalf("%g cores for %g", given, want)
		}
		if (got.Memory != nil) != (memory > 0) || got.Memory != nil && (*got.Memory.Limit != memory || (got.Memory.Swap != nil) != swap) {
			t.Fatalf("memory %+v for %d", got.Memory, memory)
		}
		switch {
		case pids < 0 && got.Pids != nil, pids == 0 && *got.Pids.Limit != 4096, pids > 0 && *got.Pids.Limit != pids:
			t.Fatalf("pids %+v for %d", got.Pids, pids)
		}
	})
}

func TestSignal_AnyForm_IsRead(t *testing.T) {
	for text, want := range map[string]unix.Signal{
		"SIGTERM": unix.SIGTERM, "term": unix.SIGTERM, "15": unix.SIGTERM, "SIGRTMIN+3": 37, "RTMAX-1": 63, "sigusr1": unix.SIGUSR1,
	} {
		if got, err := parseSignal(text); err != nil || got != want {
			t.Errorf("%s is %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "0", "65", "-1", "SIG", "SIGRTMIN+99", "RTMINx", "nonsense"} {
		if got, err := parseSignal(text); !errors.Is(err, runtime.ErrInvalid) {
			t.Errorf("%q is %d, %v; want invalid", text, got, err)
		}
	}
}

func TestLabels_ReservedOrTooLong_Refused(t *testing.T) {
	for name, value := range map[string]string{
		"containerd.io/gc.root": "", "containerd.io/gc.ref.snapshot.overlayfs/x": "", "io.containerd.x": "", "io.cri-containerd.kind": "", "a": strings.Repeat("x", maxLabel),
	} {
		if err := checkLabels(map[string]string{name: value}); !errors.Is(err, runtime.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := checkLabels(map[string]string{"com.docker.swarm.task": "", "my.containerd.io/x": "y"}); err != nil {
		t.Error(err)
	}
}

func TestErrors_APartOfAnImageIsGone_IsNoMissingImage(t *testing.T) {
	for text, missing := range map[string]bool{
		"content digest sha256:12ab: not found":                                               false,
		"failed to extract layer: parent snapshot sha256:12ab does not exist: not found":      false,
		`failed to resolve reference "docker.io/library/nothing:v1": nothing:v1: not found`:   true,
		"content at https://registry.local/v2/app/manifests/sha256:12ab not found: not found": true,
	} {
		err := fmt.Errorf("%s%w", strings.TrimSuffix(text, "not found"), errdefs.ErrNotFound)
		if err := translate("read image", err); errors.Is(err, runtime.ErrNotFound) || errors.Is(err, runtime.ErrInvalid) {
			t.Errorf("of the store, final: %v", err)
		}
		if err := pullError("docker.io", nil, err); errors.Is(err, runtime.ErrNotFound) != missing {
			t.Errorf("of a pull: %v; a missing image: want %v", err, missing)
		}
	}
}

func TestStartError_OfTheOCIRuntime_SaysTheReasonInOneLine(t *testing.T) {
	for text, want := range map[string]string{
		`failed to create task: OCI runtime create failed: runc create failed: unable to start container process: exec: "nope": executable file not found in $PATH: unknown`:                       "executable nope is not in the image's PATH",
		`OCI runtime create failed: runc create failed: unable to start container process: exec: "/nope": stat /nope: no such file or directory: unknown`:                                          "executable /nope is not in the image",
		`OCI runtime create failed: unable to start container process: exec: "/etc/passwd": permission denied: unknown`:                                                                            "executable /etc/passwd may not be executed",
		`runc create failed: unable to start container process: error during container init: exec /x: exec format error`:                                                                           "exec format error: the program is built for another architecture, or is a script without its #! line",
		"OCI runtime create failed: container_linux.go:380: error mounting \"/a\" to rootfs at \"/b\": mount /a:/b (via /proc/self/fd/6), flags: 0x5000: not a directory: unknown\nand more lines": "mount of /a at /b: mount /a:/b (via /proc/self/fd/6), flags: 0x5000: not a directory: unknown",
	} {
		err := startError("x", errors.New(text))
		if !errors.Is(err, runtime.ErrInvalid) || err.Error() != "start container x: "+want {
			t.Errorf("%q becomes %v, want %q", text, err, want)
		}
	}
	if err := startError("x", errors.New("transport is closing")); errors.Is(err, runtime.ErrInvalid) {
		t.Errorf("a passing fault is final: %v", err)
	}
}

func TestReference_AnyText_NeverPanicsAndIsNormal(t *testing.T) {
	for text, want := range map[string]string{
		"nginx": "docker.io/library/nginx:latest", "a/b:v1": "docker.io/a/b:v1", "host:5000/x": "host:5000/x:latest",
	} {
		if got, _, err := parseReference(text); err != nil || got != want {
			t.Errorf("%s is %s, %v", text, got, err)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		name, _, err := parseReference(rapid.String().Draw(t, "text"))
		if err != nil && !errors.Is(err, runtime.ErrInvalid) {
			t.Fatal(err)
		}
		if again, _, err2 := parseReference(name); err == nil && (err2 != nil || again != name) {
			t.Fatalf("%q normalised again is %q, %v", name, again, err2)
		}
	})
}

func TestOOMKills_OfEitherVersion_AreCounted(t *testing.T) {
	for body, want := range map[string]int{
		"oom_kill_disable 0\nunder_oom 0\noom_kill 2\n": 2, "low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\noom_group_kill 0\n": 1, "": 0, "oom_kill x\n": 0,
	} {
		if got := oomKills([]byte(body)); got != want {
			t.Errorf("%q: %d, want %d", body, got, want)
		}
	}
}

func TestPulls_LastWaiterLeaves_PullEndsAndTheNextIsNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pulls
		hung := make(chan error, 1)
		hang := func(ctx context.Context) (runtime.Image, error) {
			<-ctx.Done()
			hung <- ctx.Err()
			return runtime.Image{}, ctx.Err()
		}
		for _, patience := range []time.Duration{time.Second, 2 * time.Second} {
			go func() {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				if _, err := p.do(ctx, t.Context(), "a", hang); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("a pull that hangs: %v", err)
				}
			}()
		}
		time.Sleep(1500 * time.Millisecond) // of the bubble
		if len(hung) != 0 {
			t.Error("it ended though one still waits for it")
		}
		<-hung
		image, err := p.do(t.Context(), t.Context(), "a", func(context.Context) (runtime.Image, error) { return runtime.Image{Name: "a"}, nil })
		if err != nil || image.Name != "a" || len(p.flights) != 0 {
			t.Errorf("the next pull: %v, %v; under way %d", image, err, len(p.flights))
		}
	})
}

func TestVolume_CopyCutShort_IsDoneAnew(t *testing.T) {
	image := t.TempDir()
	for _, name := range []string{"one", "two"} {
		if err := os.MkdirAll(filepath.Join(image, "v", name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r := &Runtime{Config: Config{Dir: t.TempDir()}}
	mount := &swarmpb.Mount{Source: "data", Target: "/v"}
	look := func(_ context.Context, look func(string) error) error { return look(image) }
	cut := func(ctx context.Context, look func(string) error) error {
		if err := os.Mkdir(filepath.Join(r.volumesDir(), "data", "_data", "one"), 0o755); err != nil {
			return err
		}
		return errors.New("no space left on device")
	}
	if _, err := r.volume(t.Context(), "x", 0, mount, cut); err == nil {
		t.Fatal("a copy that failed is no error")
	}
	names := func() (out []string) {
		path, err := r.volume(t.Context(), "x", 0, mount, look)
		if err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			out = append(out, e.Name())
		}
		return out
	}
	if got := names(); !slices.Equal(got, []string{"one", "two"}) {
		t.Errorf("the volume has %v", got)
	}
	if err := os.Remove(filepath.Join(r.volumesDir(), "data", "_data", "two")); err != nil {
		t.Fatal(err)
	}
	if got := names(); !slices.Equal(got, []string{"one"}) {
		t.Errorf("a volume in use was filled again: %v", got)
	}
}
