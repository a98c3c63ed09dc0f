package control

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// fakeRegistry answers with what its tags stand for.
type fakeRegistry struct {
	digests map[string]string
	// platforms by image, OS/ARCH each.
	platforms map[string][]string
	err       error
	takes     time.Duration
	asked     []string
	auth      *swarmpb.RegistryAuth
}

func (f *fakeRegistry) Resolve(ctx context.Context, image string, auth *swarmpb.RegistryAuth) (string, []*swarmpb.Platform, error) {
	f.asked, f.auth = append(f.asked, image), auth
	select {
	case <-time.After(f.takes):
	case <-ctx.Done():
		return "", nil, ctx.Err()
	}
	var platforms []*swarmpb.Platform
	for _, text := range f.platforms[image] {
		os, arch, _ := strings.Cut(text, "/")
		platforms = append(platforms, &swarmpb.Platform{Os: os, Architecture: arch})
	}
	return f.digests[image], platforms, f.err
}

// seenBy is a watcher that goes after the first message.
type seenBy struct {
	grpc.ServerStreamingServer[swarmpb.WatchServiceResponse]
	ctx  context.Context
	stop context.CancelFunc
	sent *swarmpb.WatchServiceResponse
}

func (s *seenBy) Context() context.Context { return s.ctx }

func (s *seenBy) Send(m *swarmpb.WatchServiceResponse) error {
	s.sent = m
	s.stop()
	return nil
}

func digestOf(c string) string { return "sha256:" + strings.Repeat(c, 64) }

func registryWorld(t *testing.T) (*world, *fakeRegistry) {
	w := newWorld(t)
	f := &fakeRegistry{digests: map[string]string{"web:1": digestOf("1"), "web:2": digestOf("2")}}
	w.server.cfg.Resolver = f
	return w, f
}

func (w *world) update(t *testing.T, id string, req *swarmpb.UpdateServiceRequest, edit func(*swarmpb.ContainerSpec)) []string {
	t.Helper()
	req.Service, req.Spec = id, swarmpb.Clone(w.view().Service(id).GetSpec())
	edit(req.Spec.Task.Container)
	r, err := w.server.UpdateService(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	return r.GetWarnings()
}

func (w *world) wantDigest(t *testing.T, id, image, digest string, version uint64) {
	t.Helper()
	s := w.view().Service(id)
	c := s.GetSpec().GetTask().GetContainer()
	kept := w.view().Template(id, s.GetTemplateVersion()).GetSpec().GetContainer()
	if c.GetImage() != image || c.GetImageDigest() != digest || s.GetTemplateVersion() != version || !proto.Equal(c, kept) {
		t.Errorf("image %s, digest %s, template %d (%v), want %s, %s, %d", c.GetImage(), c.GetImageDigest(), s.GetTemplateVersion(), kept, image, digest, version)
	}
}

func TestImage_CreateAndUpdate_KeepTagAndDigest(t *testing.T) {
	w, f := registryWorld(t)
	id := w.create("web", 1)
	w.wantDigest(t, id, "web:1", digestOf("1"), 1)

	// A change of something else neither asks nor follows a tag that has moved.
	f.digests["web:1"] = digestOf("3")
	w.update(t, id, &swarmpb.UpdateServiceRequest{}, func(c *swarmpb.ContainerSpec) { c.Env = []string{"A=1"} })
	w.wantDigest(t, id, "web:1", digestOf("1"), 2)
	if len(f.asked) != 1 {
		t.Errorf("asked for %v, want one question", f.asked)
	}
	// Another image, also where the old digest came along with it.
	w.update(t, id, &swarmpb.UpdateServiceRequest{}, func(c *swarmpb.ContainerSpec) { c.Image = "web:2" })
	w.wantDigest(t, id, "web:2", digestOf("2"), 3)
	// The same image again, with the digest taken out: the tag is looked up anew.
	f.digests["web:2"] = digestOf("4")
	w.update(t, id, &swarmpb.UpdateServiceRequest{}, func(c *swarmpb.ContainerSpec) { c.ImageDigest = "" })
	w.wantDigest(t, id, "web:2", digestOf("4"), 4)
	// A reference with a digest is that digest: the registry is asked for the platforms alone.
	w.update(t, id, &swarmpb.UpdateServiceRequest{}, func(c *swarmpb.ContainerSpec) { c.Image = "web:2@" + digestOf("5") })
	w.wantDigest(t, id, "web:2@"+digestOf("5"), digestOf("5"), 5)
	if len(f.asked) != 4 {
		t.Errorf("asked for %v, want four questions", f.asked)
	}
	w.update(t, id, &swarmpb.UpdateServiceRequest{NoResolveImage: true}, func(c *swarmpb.ContainerSpec) { c.Image = "web:1" })
	w.wantDigest(t, id, "web:1", "", 6)
}

func TestImage_RegistryDoesNotAnswer_IsAWarning(t *testing.T) {
	w, f := registryWorld(t)
	f.err = errors.New("registry docker.io has not answered within 3s")
	r, err := w.server.CreateService(context.Background(), &swarmpb.CreateServiceRequest{Spec: spec("web", "web:1", 1)})
	if err != nil || len(r.GetWarnings()) != 1 || !strings.Contains(r.GetWarnings()[0], "has not answered within 3s") {
		t.Fatalf("%v, %v", r, err)
	}
	w.wantDigest(t, r.GetId(), "web:1", "", 1)
	// Scaling such a service asks nobody; --force does, as it replaces everything anyway.
	f.err = nil
	w.update(t, r.GetId(), &swarmpb.UpdateServiceRequest{}, func(c *swarmpb.ContainerSpec) { c.Env = []string{"A=1"} })
	w.wantDigest(t, r.GetId(), "web:1", "", 2)
	forced := swarmpb.Clone(w.view().Service(r.GetId()).GetSpec())
	forced.Task.ForceUpdate++
	if _, err := w.server.UpdateService(context.Background(), &swarmpb.UpdateServiceRequest{Service: "web", Spec: forced}); err != nil {
		t.Fatal(err)
	}
	w.wantDigest(t, r.GetId(), "web:1", digestOf("1"), 3)
	// A digest that is known stays when it cannot be asked for anew: no task is replaced for that.
	f.err = errors.New("registry docker.io: connection refused")
	said := w.update(t, r.GetId(), &swarmpb.UpdateServiceRequest{}, func(c *swarmpb.ContainerSpec) { c.ImageDigest = "" })
	if len(said) != 1 || !strings.Contains(said[0], "the one from before stays") {
		t.Errorf("warnings %q", said)
	}
	w.wantDigest(t, r.GetId(), "web:1", digestOf("1"), 3)
}

func TestImage_ASlowRegistry_TakesNoneOfTheWritesTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, f := registryWorld(t)
		f.takes = writeTimeout + time.Second
		if _, err := w.server.CreateService(t.Context(), &swarmpb.CreateServiceRequest{Spec: spec("web", "web:1", 1)}); err != nil {
			t.Error(err)
		}
	})
}

func TestRegistryAuth_IsKeptAndShownToNobody(t *testing.T) {
	w, f := registryWorld(t)
	auth := &swarmpb.RegistryAuth{Server: "docker.io", Username: "ann", Password: "s3cret"}
	r, err := w.server.CreateService(context.Background(), &swarmpb.CreateServiceRequest{Spec: spec("web", "web:1", 1), RegistryAuth: auth})
	if err != nil {
		t.Fatal(err)
	}
	id := r.GetId()
	kept := func(want *swarmpb.RegistryAuth) {
		t.Helper()
		if got := w.view().Service(id).GetRegistryAuth(); !proto.Equal(got, want) {
			t.Errorf("kept %v, want %v", got, want)
		}
	}
	kept(auth)
	if !proto.Equal(f.auth, auth) {
		t.Errorf("the registry was asked with %v", f.auth)
	}
	w.update(t, id, &swarmpb.UpdateServiceRequest{}, func(c *swarmpb.ContainerSpec) { c.Image = "web:2" })
	kept(auth)
	if !proto.Equal(f.auth, auth) {
		t.Errorf("at the update, the registry was asked with %v", f.auth)
	}
	newer := &swarmpb.RegistryAuth{Server: "docker.io", IdentityToken: "t0ken"}
	before := w.view().Service(id)
	w.update(t, id, &swarmpb.UpdateServiceRequest{RegistryAuth: newer}, func(*swarmpb.ContainerSpec) {})
	kept(newer)
	if after := w.view().Service(id); after.GetTemplateVersion() != before.GetTemplateVersion() || !proto.Equal(after.GetPreviousSpec(), before.GetPreviousSpec()) {
		t.Error("new credentials are no new version")
	}

	w.task(id, 1, 1, "")
	var answers []proto.Message
	add := func(m proto.Message, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		answers = append(answers, m)
	}
	got, err := w.server.GetService(context.Background(), &swarmpb.GetServiceRequest{Service: "web"})
	add(got, err)
	list, err := w.server.ListServices(context.Background(), &swarmpb.ListServicesRequest{})
	add(list, err)
	tasks, err := w.server.ListTasks(context.Background(), &swarmpb.ListTasksRequest{})
	add(tasks, err)
	watching, stop := context.WithCancel(context.Background())
	seen := &seenBy{ctx: watching, stop: stop}
	if err := w.server.WatchService(&swarmpb.WatchServiceRequest{Service: "web"}, seen); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	add(seen.sent, nil)
	_, err = w.server.CreateService(context.Background(), &swarmpb.CreateServiceRequest{Spec: spec("web", "web:1", 1), RegistryAuth: auth})
	answers = append(answers, &swarmpb.Alarm{Message: err.Error()})
	for _, m := range answers {
		text := prototext.Format(m)
		if strings.Contains(text, "s3cret") || strings.Contains(text, "t0ken") || strings.Contains(text, "ann") {
			t.Errorf("%T shows credentials:\n%s", m, text)
		}
	}
	if _, err := w.server.RemoveService(context.Background(), &swarmpb.RemoveServiceRequest{Service: "web"}); err != nil {
		t.Fatal(err)
	}
	kept(newer) // its nodes may still have to pull what they stop
}

func TestRegistryAuth_ImageMovesToAnotherRegistry_IsNotUsedThere(t *testing.T) {
	w, f := registryWorld(t)
	hub := &swarmpb.RegistryAuth{Server: "docker.io", Username: "ann", Password: "s3cret"}
	r, err := w.server.CreateService(context.Background(), &swarmpb.CreateServiceRequest{Spec: spec("web", "web:1", 1), RegistryAuth: hub})
	if err != nil {
		t.Fatal(err)
	}
	id := r.GetId()
	update := func(image string, given *swarmpb.RegistryAuth, warns bool, want, wantPrevious *swarmpb.RegistryAuth) {
		t.Helper()
		f.auth = &swarmpb.RegistryAuth{Server: "not asked"}
		said := strings.Join(w.update(t, id, &swarmpb.UpdateServiceRequest{RegistryAuth: given}, func(c *swarmpb.ContainerSpec) { c.Image = image }), "\n")
		if got := strings.Contains(said, "another registry than the credentials"); got != warns || strings.Contains(said, "s3cret") {
			t.Errorf("%s: warnings %q", image, said)
		}
		s := w.view().Service(id)
		if !proto.Equal(s.GetRegistryAuth(), want) || !proto.Equal(s.GetPreviousRegistryAuth(), wantPrevious) {
			t.Errorf("%s: kept %v and %v, want %v and %v", image, s.GetRegistryAuth(), s.GetPreviousRegistryAuth(), want, wantPrevious)
		}
		if !proto.Equal(f.auth, want) {
			t.Errorf("%s: the registry was asked with %v", image, f.auth)
		}
		shown, err := w.server.GetService(context.Background(), &swarmpb.GetServiceRequest{Service: "web"})
		if text := prototext.Format(shown); err != nil || strings.Contains(text, "s3cret") {
			t.Errorf("%v, %s", err, text)
		}
	}
	other := &swarmpb.RegistryAuth{Server: "other.local", Username: "ann", Password: "s3cret too"}
	// The way back stays open for one update, no longer.
	update("other.local/web:1", nil, true, nil, hub)
	update("other.local/web:2", other, false, other, nil)
	update("web:1", hub, false, hub, other)
	update("other.local/web:2", nil, false, other, hub)
	update("web:2", nil, false, hub, other)
	update("web:1", nil, false, hub, nil)
}

func TestRegistryAuth_OfNoUse_IsRefused(t *testing.T) {
	w, _ := registryWorld(t)
	for want, auth := range map[string]*swarmpb.RegistryAuth{
		`they are for "other.local", but image "web:1" comes from docker.io`: {Server: "other.local", Username: "ann", Password: "s3cret"},
		"neither a password nor an identity token":                           {Server: "docker.io", Username: "ann"},
		"longer than 256 bytes":                                              {Server: strings.Repeat("x", 300), Password: "s3cret"},
		"longer than 16384 bytes":                                            {Server: "docker.io", Password: "s3cret" + strings.Repeat("x", maxAuthSecret)},
		"a ready access token expires":                                       {Server: "docker.io", RegistryToken: "s3cret"},
		"holds a line's end":                                                 {Server: "docker.io", Password: "s3cret\r\nX-Evil: 1"},
	} {
		_, err := w.server.CreateService(context.Background(), &swarmpb.CreateServiceRequest{Spec: spec("web", "web:1", 1), RegistryAuth: auth})
		expectError(t, err, wire.CodeInvalid, want)
		if strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%v shows the secret", err)
		}
	}
}
