package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

func shownGeneric(o *options) string {
	var out []string
	for _, g := range o.generic.resources() {
		out = append(out, fmt.Sprintf("%s:%d:%s", g.GetKind(), g.GetCount(), strings.Join(g.GetInstances(), "+")))
	}
	return strings.Join(out, " ")
}

func TestOptions_GenericResources_CountsAndNames(t *testing.T) {
	o, err := resolve(t, "--generic-resource", "gpu=card1,card0", "--generic-resource", "lanes=4", "--generic-resource", "gpu=card2", "--generic-resource", "NVIDIA-GPU=GPU-8932f937")
	if err != nil {
		t.Fatal(err)
	}
	if got := shownGeneric(o); got != "NVIDIA-GPU:0:GPU-8932f937 gpu:0:card0+card1+card2 lanes:4:" {
		t.Errorf("flags: %s", got)
	}

	file := filepath.Join(t.TempDir(), "swarmd.toml")
	text := "generic-resource = [\"gpu=card0,card1\", \"lanes=4\"]\nengine-label = [\"gpu=a100\", \"rack=7\"]\ncdi-spec-dir = [\"/opt/cdi\"]\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if o, err = resolve(t, "--config", file); err != nil {
		t.Fatal(err)
	}
	labels, err := labelsOf(o.engineLabels)
	if got := shownGeneric(o); err != nil || got != "gpu:0:card0+card1 lanes:4:" || len(labels) != 2 || labels["gpu"] != "a100" || labels["rack"] != "7" || strings.Join(o.cdiDirs, " ") != "/opt/cdi" {
		t.Errorf("file: %s, %v, %v, %v", got, labels, o.cdiDirs, err)
	}

	t.Setenv("SWARMD_GENERIC_RESOURCE", "gpu=2,lanes=3")
	if o, err = resolve(t); err != nil || shownGeneric(o) != "gpu:2: lanes:3:" || strings.Join(o.cdiDirs, " ") != "/etc/cdi /var/run/cdi" {
		t.Errorf("environment: %s, %v, %v", shownGeneric(o), o.cdiDirs, err)
	}
}

func TestOptions_GenericResourcesThatCannotBe_AreRefused(t *testing.T) {
	many := make([]string, swarmpb.MaxGenericInstances+1)
	for i := range many {
		many[i] = fmt.Sprintf("n%d", i)
	}
	for text, want := range map[string]string{
		"gpu":                                 "want KIND=NUMBER",
		"=4":                                  "is no kind",
		"a b=4":                               "is no kind",
		"example.com/gpu=0":                   "CDI spec files",
		"gpu=0":                               "use 1 to",
		"gpu=-1":                              "use 1 to",
		"gpu=99999999":                        "use 1 to",
		"gpu=":                                "is no name",
		"gpu=a b":                             "is no name",
		"gpu=a,a":                             "named twice",
		"gpu=4;gpu=4":                         "given twice",
		"gpu=a;gpu=4":                         "given twice",
		"gpu=4;gpu=a":                         "both a count and names",
		"gpu=" + strings.Join(many, ","):      "at most 512 names",
		"k" + strings.Repeat("x", 200) + "=1": "is no kind",
	} {
		var g genericFlag
		var err error
		for _, one := range strings.Split(text, ";") {
			if err = g.Set(one); err != nil {
				break
			}
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40s: %v, want %q", text, err, want)
		}
	}
}

func TestOptions_EngineLabelsAndDirectories_AreChecked(t *testing.T) {
	var many []string
	for i := range swarmpb.MaxEngineLabels + 1 {
		many = append(many, fmt.Sprintf("--engine-label=k%d=v", i))
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--engine-label", "=x"}, "want KEY=VALUE"},
		{[]string{"--engine-label", "k=" + strings.Repeat("x", 600)}, "want KEY=VALUE"},
		{[]string{"--engine-label", "k=1", "--engine-label", "k=2"}, "given twice"},
		{many, "use at most 64"},
		{[]string{"--cdi-spec-dir", "cdi"}, "want an absolute path"},
	} {
		if _, err := resolve(t, c.args...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.60v: %v; want %q", c.args, err, c.want)
		}
	}
}
