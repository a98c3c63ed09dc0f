package containerd_test

import (
	"context"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/client"

	"github.com/swarmd/swarmd/worker/runtime/containerd"
)

func TestRun_SharedContainerd_OneDataDirectoryHasTheNamespace(t *testing.T) {
	child := shared.open(t)
	services, err := client.New(child.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer services.Close()
	label := func() string {
		labels, err := services.NamespaceService().Labels(t.Context(), containerd.Namespace)
		if err != nil {
			t.Fatal(err)
		}
		return labels["swarmd.owner"]
	}
	free := func() {
		if err := services.NamespaceService().SetLabel(context.Background(), containerd.Namespace, "swarmd.owner", ""); err != nil {
			t.Fatal(err)
		}
	}
	first, second := configure(t, child), configure(t, child)
	first.Shared, second.Shared = true, true
	claim := func(c containerd.Config) {
		t.Helper()
		_, stop := start(t, c)
		defer stop()
		for !strings.HasSuffix(label(), " "+c.Dir) {
			if t.Context().Err() != nil {
				t.Fatalf("%s did not get the namespace", c.Dir)
			}
		}
	}
	claim(first)
	defer free()
	r, err := containerd.New(second)
	if err != nil {
		t.Fatal(err)
	}
	err = r.Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), first.Dir) || !strings.Contains(err.Error(), "namespaces label swarmd swarmd.owner=") {
		t.Fatalf("the second was told %v", err)
	}
	claim(first) // it is its own still
	free()
	claim(second)
}
