package control

import (
	"errors"
	"testing"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

func (w *world) wantPlatforms(t *testing.T, id string, want ...string) {
	t.Helper()
	s := w.view().Service(id)
	got := s.GetSpec().GetTask().GetPlacement().GetPlatforms()
	same := len(got) == len(want)
	for i := 0; same && i < len(got); i++ {
		same = got[i].GetOs()+"/"+got[i].GetArchitecture() == want[i]
	}
	if kept := w.view().Template(id, s.GetTemplateVersion()).GetSpec().GetPlacement().GetPlatforms(); !same || len(kept) != len(want) {
		t.Errorf("platforms %v, of the template %v, want %v", got, kept, want)
	}
}

// The platforms of a service are those of the digest that it is pinned to, whatever the caller's spec says.
func TestImage_PlatformsGoWithTheDigest(t *testing.T) {
	w, f := registryWorld(t)
	f.platforms = map[string][]string{"web:1": {"linux/amd64", "linux/arm64"}, "web:2": {"linux/amd64"}}
	id := w.create("web", 1)
	w.wantPlatforms(t, id, "linux/amd64", "linux/arm64")
	// Something else changes, by a spec that a file may have given and that knows of no platforms, or of wrong ones.
	next := swarmpb.Clone(w.view().Service(id).GetSpec())
	next.Task.Container.Env = []string{"A=1"}
	next.Task.Placement = &swarmpb.Placement{Platforms: []*swarmpb.Platform{{Os: "plan9"}}}
	if _, err := w.server.UpdateService(t.Context(), &swarmpb.UpdateServiceRequest{Service: id, Spec: next}); err != nil {
		t.Fatal(err)
	}
	w.wantPlatforms(t, id, "linux/amd64", "linux/arm64")
	version := w.view().Service(id).GetTemplateVersion()
	next = swarmpb.Clone(w.view().Service(id).GetSpec())
	next.Task.Placement = nil
	if _, err := w.server.UpdateService(t.Context(), &swarmpb.UpdateServiceRequest{Service: id, Spec: next}); err != nil {
		t.Fatal(err)
	}
	w.wantPlatforms(t, id, "linux/amd64", "linux/arm64")
	if got := w.view().Service(id).GetTemplateVersion(); got != version {
		t.Errorf("template %d after nothing changed, want %d", got, version)
	}

	w.update(t, id, &swarmpb.UpdateServiceRequest{}, func(c *swarmpb.ContainerSpec) { c.Image = "web:2" })
	w.wantPlatforms(t, id, "linux/amd64")
	w.update(t, id, &swarmpb.UpdateServiceRequest{NoResolveImage: true}, func(c *swarmpb.ContainerSpec) { c.Image = "web:1" })
	w.wantPlatforms(t, id)
}

// A reference with a digest has the platforms that the registry tells for it, and needs no answer.
func TestImage_AReferenceWithADigest_HasPlatforms(t *testing.T) {
	w, f := registryWorld(t)
	image := "web:1@" + digestOf("7")
	f.platforms = map[string][]string{image: {"linux/arm64"}}
	id := w.create("web", 1)
	w.wantPlatforms(t, id)
	w.update(t, id, &swarmpb.UpdateServiceRequest{}, func(c *swarmpb.ContainerSpec) { c.Image = image })
	w.wantPlatforms(t, id, "linux/arm64")
	w.wantDigest(t, id, image, digestOf("7"), 2)
	// Another change does not ask again, nor lose them.
	f.err = errors.New("the registry is away")
	w.update(t, id, &swarmpb.UpdateServiceRequest{}, func(c *swarmpb.ContainerSpec) { c.Env = []string{"A=1"} })
	w.wantPlatforms(t, id, "linux/arm64")
	w.update(t, id, &swarmpb.UpdateServiceRequest{}, func(c *swarmpb.ContainerSpec) { c.Image = "web@" + digestOf("8") })
	w.wantPlatforms(t, id)
	w.wantDigest(t, id, "web@"+digestOf("8"), digestOf("8"), 4)
}
