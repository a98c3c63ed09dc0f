package containerd

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// cgroupFiles makes files below a directory that stands for /sys/fs/cgroup.
func cgroupFiles(t *testing.T, files map[string]string) (root string) {
	t.Helper()
	root = t.TempDir()
	for name, body := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestCgroups_OfEitherVersion_TellOfMemoryAndProcesses(t *testing.T) {
	for name, h := range map[string]host{
		"version 1": {cgroups: cgroupFiles(t, map[string]string{
			"memory/swarmd/hog/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n", "memory/swarmd/hog/cgroup.procs": "12\n7\n",
			"memory/swarmd/good/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n", "memory/swarmd/good/cgroup.procs": "",
		})},
		"version 2": {unified: true, cgroups: cgroupFiles(t, map[string]string{
			"swarmd/hog/memory.events": "low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\noom_group_kill 0\n", "swarmd/hog/cgroup.procs": "12\n7\n",
			"swarmd/good/memory.events": "low 0\nhigh 0\nmax 3\noom 0\noom_kill 0\n", "swarmd/good/cgroup.procs": "",
		})},
	} {
		t.Run(name, func(t *testing.T) {
			r := &Runtime{Config: Config{CgroupParent: DefaultCgroupParent}, host: h, seen: map[string]seen{}}
			for id, want := range map[string]struct {
				oom  bool
				pids []int
			}{"hog": {true, []int{7, 12}}, "good": {}, "gone": {}} {
				if oom, pids := r.oomKilled(id), r.processesOf(id); oom != want.oom || !slices.Equal(pids, want.pids) {
					t.Errorf("%s: out of memory %t, processes %v, want %+v", id, oom, pids, want)
				}
			}
		})
	}
}

func TestCgroups_OfEitherVersion_ContainersSeeTheirOwn(t *testing.T) {
	for _, unified := range []bool{false, true} {
		s, err := buildSpec(specInput{config: ocispec.ImageConfig{Cmd: []string{"/x"}}, cgroup: "/swarmd/x", host: host{nofile: noFiles, unified: unified}})
		if err != nil {
			t.Fatal(err)
		}
		own := slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.CgroupNamespace })
		mounted := slices.ContainsFunc(s.Mounts, func(m specs.Mount) bool {
			return m.Destination == cgroupRoot && m.Type == "cgroup" && slices.Contains(m.Options, "ro")
		})
		if own != unified || !mounted {
			t.Errorf("version 2 %t: a namespace of cgroups %t, mounted read-only %t", unified, own, mounted)
		}
	}
}

func TestBoundsSwap_OfEitherVersion_IsWhatTheKernelCan(t *testing.T) {
	for name, test := range map[string]struct {
		unified, want bool
		files         map[string]string
	}{
		"version 1":                         {false, true, map[string]string{"memory/memory.memsw.limit_in_bytes": ""}},
		"version 1, without":                {false, false, map[string]string{"memory/memory.limit_in_bytes": ""}},
		"version 2":                         {true, true, map[string]string{"system.slice/memory.max": "", "system.slice/memory.swap.max": ""}},
		"version 2, without":                {true, false, map[string]string{"system.slice/memory.max": ""}},
		"version 2, nothing is bounded yet": {true, true, map[string]string{"cgroup.procs": ""}},
	} {
		if got := boundsSwap(cgroupFiles(t, test.files), test.unified); got != test.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}
