package registry

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	serve "github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/swarmd/swarmd/proto/registries"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// guarded wants the user ann with the password secret, and notes what it was shown.
func guarded(handler http.Handler, shown *[]string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, ok := r.BasicAuth()
		if ok && shown != nil {
			*shown = append(*shown, user+":"+password)
		}
		if user != "ann" || password != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		handler.ServeHTTP(w, r)
	})
}

// push puts an image into the registry and returns its digest.
func push(t *testing.T, server *httptest.Server, tag string, auth authn.Authenticator) string {
	t.Helper()
	image, err := random.Image(64, 1)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(strings.TrimPrefix(strings.TrimPrefix(server.URL, "https://"), "http://") + "/team/app:" + tag)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, image, remote.WithAuth(auth), remote.WithTransport(server.Client().Transport)); err != nil {
		t.Fatal(err)
	}
	digest, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return digest.String()
}

// resolver reads the text as registries.toml, with the CA of server in ca.pem.
func resolver(t *testing.T, server *httptest.Server, text string) *Resolver {
	t.Helper()
	dir, hosts := t.TempDir(), t.TempDir()
	if cert := server.Certificate(); cert != nil {
		if err := os.WriteFile(filepath.Join(dir, "ca.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, registries.FileName), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	set, err := registries.Load(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := set.WriteHosts(hosts); err != nil {
		t.Fatal(err)
	}
	return New(Config{HostDir: hosts, Timeout: time.Minute})
}

var quiet = serve.Logger(log.New(io.Discard, "", 0))

func TestResolve_ATag_IsItsDigestAndFollowsIt(t *testing.T) {
	server := httptest.NewTLSServer(serve.New(quiet))
	defer server.Close()
	host := server.Listener.Addr().String()
	r := resolver(t, server, fmt.Sprintf("[[registry]]\nhost = %q\nca = \"ca.pem\"\n", host))
	for range 2 {
		want := push(t, server, "v1", authn.Anonymous)
		got, _, err := r.Resolve(context.Background(), host+"/team/app:v1", nil)
		if err != nil || got != want {
			t.Errorf("digest %s, %v, want %s", got, err, want)
		}
	}
	if _, _, err := r.Resolve(context.Background(), host+"/team/app:v2", nil); !errors.Is(err, registries.ErrMissing) {
		t.Errorf("a missing tag: %v", err)
	}
	pinned := "sha256:" + strings.Repeat("1", 64)
	if got, _, err := r.Resolve(context.Background(), "nobody.invalid/app@"+pinned, nil); err != nil || got != pinned {
		t.Errorf("a reference with a digest: %s, %v", got, err)
	}
}

func TestResolve_ARegistryWithCredentials_WantsTheRightOnes(t *testing.T) {
	var shown []string
	server := httptest.NewServer(guarded(serve.New(quiet), &shown))
	defer server.Close()
	host := server.Listener.Addr().String()
	want := push(t, server, "v1", &authn.Basic{Username: "ann", Password: "secret"})
	r := resolver(t, server, fmt.Sprintf("[[registry]]\nhost = %q\nplain_http = true\n", host))
	auth := &swarmpb.RegistryAuth{Server: host, Username: "ann", Password: "secret"}
	if got, _, err := r.Resolve(context.Background(), host+"/team/app:v1", auth); err != nil || got != want {
		t.Errorf("digest %s, %v, want %s", got, err, want)
	}
	for what, test := range map[string]struct {
		auth *swarmpb.RegistryAuth
		want string
	}{
		"none":           {nil, "needs credentials"},
		"wrong password": {&swarmpb.RegistryAuth{Server: host, Username: "ann", Password: "guess"}, `refuses it to user "ann"`},
	} {
		_, _, err := r.Resolve(context.Background(), host+"/team/app:v1", test.auth)
		if !errors.Is(err, registries.ErrDenied) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	shown = nil
	elsewhere := &swarmpb.RegistryAuth{Server: "other.local", Username: "ann", Password: "secret"}
	if _, _, err := r.Resolve(context.Background(), host+"/team/app:v1", elsewhere); !errors.Is(err, registries.ErrDenied) || len(shown) > 0 {
		t.Errorf("another registry's credentials: %v; shown: %v", err, shown)
	}
}

func TestResolve_AMirror_IsAskedFirstAndShownNoCredentials(t *testing.T) {
	var shown []string
	mirror := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, _, ok := r.BasicAuth(); ok {
			shown = append(shown, user)
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer mirror.Close()
	server := httptest.NewServer(guarded(serve.New(quiet), nil))
	defer server.Close()
	host := server.Listener.Addr().String()
	want := push(t, server, "v1", &authn.Basic{Username: "ann", Password: "secret"})
	r := resolver(t, server, fmt.Sprintf("[[registry]]\nhost = %q\nplain_http = true\nmirrors = [%q]\n", host, mirror.URL))
	got, _, err := r.Resolve(context.Background(), host+"/team/app:v1", &swarmpb.RegistryAuth{Server: host, Username: "ann", Password: "secret"})
	if err != nil || got != want || len(shown) > 0 {
		t.Errorf("digest %s, %v, want %s; the mirror was shown %v", got, err, want, shown)
	}
}

func TestResolve_ASilentRegistry_IsWaitedForOnce(t *testing.T) {
	var asked atomic.Int32
	hang := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1); <-hang }))
	defer server.Close()
	defer close(hang)
	host := server.Listener.Addr().String()
	r := resolver(t, server, fmt.Sprintf("[[registry]]\nhost = %q\nplain_http = true\n", host))
	r.cfg.Timeout = 50 * time.Millisecond
	for i, want := range []string{"has not answered within 50ms", "did not answer a moment ago"} {
		if _, _, err := r.Resolve(context.Background(), host+"/team/app:v1", nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("question %d: %v, want %q", i+1, err, want)
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("it was asked %d times, want once", n)
	}
	server.CloseClientConnections()
}

func TestResolve_HowItIsSpokenToChanges_ASilentRegistryIsAskedAgain(t *testing.T) {
	server := httptest.NewServer(serve.New(quiet))
	defer server.Close()
	host := server.Listener.Addr().String()
	want := push(t, server, "v1", authn.Anonymous)
	r := resolver(t, server, "")
	r.setSilent(host)
	if !r.isSilent(host) {
		t.Fatal("it is asked though nothing has changed")
	}
	set, err := (&registries.Set{}).With([]string{host})
	if err != nil {
		t.Fatal(err)
	}
	if err := set.WriteHosts(r.cfg.HostDir); err != nil {
		t.Fatal(err)
	}
	if got, _, err := r.Resolve(context.Background(), host+"/team/app:v1", nil); err != nil || got != want {
		t.Errorf("digest %s, %v, want %s", got, err, want)
	}
}

func TestResolve_TooManyQuestionsForASilentRegistry_AreNoFaultOfAnother(t *testing.T) {
	server := httptest.NewServer(serve.New(quiet))
	defer server.Close()
	host := server.Listener.Addr().String()
	want := push(t, server, "v1", authn.Anonymous)
	r := resolver(t, server, fmt.Sprintf("[[registry]]\nhost = %q\nplain_http = true\n", host))
	for range maxAtOnce {
		r.places <- struct{}{}
	}
	r.cfg.Timeout = 20 * time.Millisecond
	if _, _, err := r.Resolve(context.Background(), host+"/team/app:v1", nil); !errors.Is(err, errBusy) {
		t.Errorf("without a place: %v", err)
	}
	<-r.places
	r.cfg.Timeout = time.Minute
	if got, _, err := r.Resolve(context.Background(), host+"/team/app:v1", nil); err != nil || got != want {
		t.Errorf("digest %s, %v, want %s", got, err, want)
	}
}

func TestSilence_OfARegistry_GrowsUntilItIsHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(Config{})
		for _, want := range []time.Duration{15 * time.Second, 30 * time.Second, time.Minute, 2 * time.Minute, 4 * time.Minute, 4 * time.Minute} {
			r.setSilent("a.local")
			time.Sleep(want - time.Millisecond)
			if !r.isSilent("a.local") {
				t.Errorf("it is asked before %s are over", want)
			}
			time.Sleep(2 * time.Millisecond)
			if r.isSilent("a.local") {
				t.Errorf("it is not asked after %s", want)
			}
		}
		r.setHeard("a.local")
		r.setSilent("a.local")
		time.Sleep(minSilent + time.Millisecond)
		if r.isSilent("a.local") {
			t.Error("an answer does not end the long pauses")
		}
	})
}

func TestResolve_NoRegistryThere_SaysSoAtOnce(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	host := server.Listener.Addr().String()
	server.Close()
	r := New(Config{Timeout: time.Minute})
	if _, _, err := r.Resolve(context.Background(), host+"/team/app:v1", nil); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("%v", err)
	}
	if _, _, err := r.Resolve(context.Background(), "not a reference", nil); err == nil || !strings.Contains(err.Error(), "is no reference") {
		t.Errorf("%v", err)
	}
}
