package registry

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	serve "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// imageFor makes an image whose configuration says a platform, OS/ARCH.
func imageFor(t *testing.T, platform string) v1.Image {
	t.Helper()
	image, err := random.Image(64, 1)
	if err != nil {
		t.Fatal(err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, _ = strings.Cut(platform, "/")
	if image, err = mutate.ConfigFile(image, config); err != nil {
		t.Fatal(err)
	}
	return image
}

// indexOf lists images under the platforms; an empty one has none.
func indexOf(t *testing.T, platforms ...string) v1.ImageIndex {
	t.Helper()
	var index v1.ImageIndex
	index, err := random.Index(1, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range platforms {
		add := mutate.IndexAddendum{Add: imageFor(t, text)}
		if text != "" {
			os, arch, _ := strings.Cut(text, "/")
			arch, variant, _ := strings.Cut(arch, "/")
			add.Descriptor.Platform = &v1.Platform{OS: os, Architecture: arch, Variant: variant}
		}
		index = mutate.AppendManifests(index, add)
	}
	return index
}

func TestResolve_AnImage_TellsThePlatformsThatItIsThereFor(t *testing.T) {
	server := httptest.NewServer(serve.New(quiet))
	defer server.Close()
	host := server.Listener.Addr().String()
	r := resolver(t, server, fmt.Sprintf("[[registry]]\nhost = %q\nplain_http = true\n", host))
	many := make([]string, maxPlatforms+1)
	for i := range many {
		many[i] = fmt.Sprintf("linux/a%d", i)
	}
	for tag, c := range map[string]struct {
		index []string
		image string
		want  string
	}{
		"index":       {index: []string{"linux/arm64", "linux/amd64", "linux/arm/v6", "linux/arm/v7", "unknown/unknown"}, want: "linux/amd64 linux/arm linux/arm64"},
		"single":      {image: "linux/s390x", want: "linux/s390x"},
		"says-none":   {image: "/", want: ""},
		"one-unnamed": {index: []string{"linux/arm64", ""}, want: ""},
		"too-many":    {index: many, want: ""},
	} {
		ref, err := name.ParseReference(host + "/team/app:" + tag)
		if err != nil {
			t.Fatal(err)
		}
		if c.index != nil {
			err = remote.WriteIndex(ref, indexOf(t, c.index...))
		} else {
			err = remote.Write(ref, imageFor(t, c.image))
		}
		if err != nil {
			t.Fatal(err)
		}
		digest, platforms, err := r.Resolve(context.Background(), host+"/team/app:"+tag, nil)
		var got []string
		for _, p := range platforms {
			got = append(got, p.GetOs()+"/"+p.GetArchitecture())
		}
		if err != nil || !strings.HasPrefix(digest, "sha256:") || strings.Join(got, " ") != c.want {
			t.Errorf("%s: %s, %q, %v, want %q", tag, digest, got, err, c.want)
		}
		// By its digest, whatever tag stands beside it, it is the same image.
		for _, ref := range []string{"@" + digest, ":other@" + digest} {
			same, its, err := r.Resolve(context.Background(), host+"/team/app"+ref, nil)
			if err != nil || same != digest || len(its) != len(platforms) {
				t.Errorf("%s%s: %s, %v, %v, want %v", tag, ref, same, its, err, platforms)
			}
		}
	}
	unknown := "sha256:" + strings.Repeat("0", 64)
	if digest, platforms, err := r.Resolve(context.Background(), host+"/team/app@"+unknown, nil); err != nil || digest != unknown || len(platforms) > 0 {
		t.Errorf("a digest that the registry does not have: %s, %v, %v", digest, platforms, err)
	}
}

// A registry that tells the digest and then nothing, or something else, has told the digest.
func TestResolve_PlatformsCannotBeHad_TheDigestIsGood(t *testing.T) {
	for what, spoil := range map[string]func(w http.ResponseWriter, r *http.Request){
		"refuses": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) },
		"lies": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"os":"plan9","architecture":"x"}`))
		},
		"hangs": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
	} {
		t.Run(what, func(t *testing.T) {
			registry := serve.New(quiet)
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
					spoil(w, r)
					return
				}
				registry.ServeHTTP(w, r)
			}))
			defer server.Close()
			host := server.Listener.Addr().String()
			ref, err := name.ParseReference(host + "/team/app:v1")
			if err != nil {
				t.Fatal(err)
			}
			if err := remote.Write(ref, imageFor(t, "linux/amd64")); err != nil {
				t.Fatal(err)
			}
			r := resolver(t, server, fmt.Sprintf("[[registry]]\nhost = %q\nplain_http = true\n", host))
			r.cfg.Timeout = 2 * time.Second
			digest, platforms, err := r.Resolve(context.Background(), host+"/team/app:v1", nil)
			if err != nil || !strings.HasPrefix(digest, "sha256:") || len(platforms) > 0 {
				t.Errorf("%s, %v, %v", digest, platforms, err)
			}
		})
	}
}
