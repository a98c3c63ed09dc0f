package devices

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, dirs ...string) *Set {
	t.Helper()
	s, err := New(dirs, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

const spec = `cdiVersion: "0.6.0"
kind: example.com/%s
containerEdits:
  env: ["CLASS=%s"]
devices:
%s`

func device(name, edits string) string {
	return fmt.Sprintf("- name: %q\n  containerEdits: {%s}\n", name, edits)
}

func text(s *Set) string {
	var out []string
	for _, r := range s.Resources() {
		out = append(out, r.GetKind()+" "+strings.Join(r.GetInstances(), ","))
	}
	return strings.Join(out, "; ")
}

func TestSet_SpecFilesComeAndGo_ToldAtTheNextLook(t *testing.T) {
	dir, missing := t.TempDir(), filepath.Join(t.TempDir(), "later")
	s := open(t, dir, missing)
	if text(s) != "" || s.Look() {
		t.Fatalf("an empty directory: %s", text(s))
	}
	gpus := filepath.Join(dir, "gpu.yaml")
	write(t, gpus, fmt.Sprintf(spec, "gpu", "gpu", device("1", `env: ["N=1"]`)+device("0", `env: ["N=0"]`)+device("all", `env: ["N=all"]`)))
	if !s.Look() || text(s) != "example.com/gpu 0,1" {
		t.Fatalf("after the file came: %s", text(s))
	}
	if s.Look() {
		t.Error("nothing has changed")
	}
	if err := os.Mkdir(missing, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(missing, "nic.json"), `{"cdiVersion": "0.6.0", "kind": "example.com/nic", "devices": [{"name": "eth5", "containerEdits": {"env": ["A=b"]}}]}`)
	if !s.Look() || text(s) != "example.com/gpu 0,1; example.com/nic eth5" {
		t.Fatalf("after the directory came: %s", text(s))
	}
	if err := os.Remove(gpus); err != nil {
		t.Fatal(err)
	}
	if !s.Look() || text(s) != "example.com/nic eth5" {
		t.Fatalf("after the file went: %s", text(s))
	}
}

func TestSet_BrokenFile_IsToldAndTakesNothingElseAway(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "good.yaml"), fmt.Sprintf(spec, "gpu", "gpu", device("0", `env: ["N=0"]`)))
	write(t, filepath.Join(dir, "bad.yaml"), "cdiVersion: [\n")
	write(t, filepath.Join(dir, "worse.json"), `{"cdiVersion": "9.9.9", "kind": "example.com/x", "devices": []}`)
	s := open(t, dir)
	if text(s) != "example.com/gpu 0" {
		t.Errorf("devices %s", text(s))
	}
	problems := s.Problems()
	if len(problems) != 2 || !strings.Contains(problems[0], "bad.yaml") || !strings.Contains(problems[1], "worse.json") {
		t.Errorf("problems %q", problems)
	}
	for _, p := range problems {
		if strings.Contains(p, "\n") {
			t.Errorf("more than a line: %q", p)
		}
	}
	write(t, filepath.Join(dir, "bad.yaml"), fmt.Sprintf(spec, "fpga", "fpga", device("a", `env: ["N=0"]`)))
	if err := os.Remove(filepath.Join(dir, "worse.json")); err != nil {
		t.Fatal(err)
	}
	if !s.Look() || len(s.Problems()) > 0 || text(s) != "example.com/fpga a; example.com/gpu 0" {
		t.Errorf("after they were mended: %s, %q", text(s), s.Problems())
	}
}

// One device under two names, as generators for GPUs have it, is one; devices without nodes cannot be told to be the same.
func TestSet_DeviceUnderTwoNames_IsOne(t *testing.T) {
	dir := t.TempDir()
	node := func(n int) string { return fmt.Sprintf(`deviceNodes: [{path: "/dev/gpu%d"}]`, n) }
	write(t, filepath.Join(dir, "gpu.yaml"), fmt.Sprintf(spec, "gpu", "gpu",
		device("GPU-8932f937", node(0))+device("0", node(0))+device("1", node(1))+device("GPU-1111aaaa", node(1))))
	write(t, filepath.Join(dir, "seat.yaml"), fmt.Sprintf(spec, "seat", "seat", device("a", `env: ["S=1"]`)+device("b", `env: ["S=1"]`)))
	if s := open(t, dir); text(s) != "example.com/gpu 0,1; example.com/seat a,b" {
		t.Errorf("devices %s", text(s))
	}
}

func TestSet_MoreThanANodeMayHave_AreLeftOutAndTold(t *testing.T) {
	dir := t.TempDir()
	var many strings.Builder
	for i := range swarmpb.MaxGenericInstances + 40 {
		many.WriteString(device(fmt.Sprint(i), fmt.Sprintf(`env: ["N=%d"]`, i)))
	}
	write(t, filepath.Join(dir, "many.yaml"), fmt.Sprintf(spec, "vf", "vf", many.String()))
	s := open(t, dir)
	if n := len(s.Resources()[0].GetInstances()); n != swarmpb.MaxGenericInstances {
		t.Errorf("%d instances", n)
	}
	if n := len(s.Problems()); n != maxProblems || s.Problems()[n-1] != "devices: 25 more problems" {
		t.Errorf("problems %q", s.Problems())
	}
}

func TestInject_Devices_EditsTheSpec(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "gpu.yaml")
	write(t, path, fmt.Sprintf(spec, "gpu", "gpu", device("0", `env: ["N0=x"], mounts: [{hostPath: "/srv", containerPath: "/gpu"}]`)+device("1", `env: ["N1=y"]`)))
	s := open(t, dir)
	container := &specs.Spec{Process: &specs.Process{Env: []string{"PATH=/bin"}}}
	if err := s.Inject(container, []string{Name("example.com/gpu", "0"), Name("example.com/gpu", "1")}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"PATH=/bin", "CLASS=gpu", "N0=x", "N1=y"}; !slices.Equal(container.Process.Env, want) {
		t.Errorf("env %q", container.Process.Env)
	}
	if len(container.Mounts) != 1 || container.Mounts[0].Destination != "/gpu" {
		t.Errorf("mounts %v", container.Mounts)
	}
	// It goes between two looks: it is not handed out as it was.
	write(t, path, fmt.Sprintf(spec, "gpu", "gpu", device("1", `env: ["N1=y"]`)))
	untouched := &specs.Spec{Process: &specs.Process{}}
	err := s.Inject(untouched, []string{"example.com/gpu=0", "example.com/gpu=1"})
	if err == nil || err.Error() != "device example.com/gpu=0 is not there any more" || len(untouched.Process.Env) > 0 {
		t.Errorf("error %v, env %q", err, untouched.Process.Env)
	}
	if !s.Look() { // who tells the managers of devices has not seen it yet
		t.Error("a look says that nothing has changed")
	}
	if s.Look() {
		t.Error("a look says that something has changed again")
	}
	write(t, path, fmt.Sprintf(spec, "gpu", "gpu", device("1", `deviceNodes: [{path: "/dev/there-is-none-such"}]`)))
	if err := s.Inject(&specs.Spec{Process: &specs.Process{}}, []string{"example.com/gpu=1"}); err == nil || !strings.Contains(err.Error(), "there-is-none-such") {
		t.Errorf("a device without its node: %v", err)
	}
}
