package swarmpb

import (
	"strings"
	"testing"
)

func TestGenericVariable_Kinds_AreAsInDockerSwarm(t *testing.T) {
	for kind, want := range map[string]string{
		"gpu": "DOCKER_RESOURCE_GPU", "NVIDIA-GPU": "DOCKER_RESOURCE_NVIDIA-GPU", "my_lanes": "DOCKER_RESOURCE_MY_LANES",
		"nvidia.com/gpu": "DOCKER_RESOURCE_NVIDIA_COM_GPU",
	} {
		if got := GenericVariable(kind); got != want {
			t.Errorf("%s: %s, want %s", kind, got, want)
		}
	}
}

func TestGenericNames_OddOnes_AreNone(t *testing.T) {
	for _, kind := range []string{"", "a b", "a=b", "a/b/c", "/a", "a/", "a,b", "x\n", strings.Repeat("x", 129)} {
		if ValidGenericKind(kind) {
			t.Errorf("%q is a kind", kind)
		}
	}
	for _, kind := range []string{"gpu", "GPU", "example.com/gpu", "k8s.io/net-device_1"} {
		if !ValidGenericKind(kind) {
			t.Errorf("%q is no kind", kind)
		}
	}
	for _, name := range []string{"", "a,b", "a b", "a=b", "-a", "x\n", strings.Repeat("x", 129)} {
		if ValidGenericInstance(name) {
			t.Errorf("%q is a name", name)
		}
	}
	for _, name := range []string{"0", "1:0", "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "mig_1.2"} {
		if !ValidGenericInstance(name) {
			t.Errorf("%q is no name", name)
		}
	}
}
