package node_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/swarmd/swarmd/e2e/image"
)

const registryPassword = "s3cret-of-ann"

// guardedRegistry is a registry on the switch with TLS of its own CA and a user ann.
type guardedRegistry struct {
	c       *cluster
	handler http.Handler
	cert    tls.Certificate
	server  *http.Server
	served  chan error
}

// serveGuarded makes a configuration directory for hosts; start serves.
func serveGuarded(t *testing.T) (r *guardedRegistry, configDir string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	host, _, _ := net.SplitHostPort(registryHost)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "registry"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.ParseIP(host)}, IsCA: true, BasicConstraintsValid: true,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	store := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	guarded := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "ann" || password != registryPassword {
			w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		store.ServeHTTP(w, r)
	})
	configDir = t.TempDir()
	for file, body := range map[string][]byte{
		"ca.pem":          pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}),
		"registries.toml": fmt.Appendf(nil, "[[registry]]\nhost = %q\nca = \"ca.pem\"\n", registryHost),
	} {
		if err := os.WriteFile(filepath.Join(configDir, file), body, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return &guardedRegistry{handler: guarded, cert: tls.Certificate{Certificate: [][]byte{cert}, PrivateKey: key}}, configDir
}

func (r *guardedRegistry) start(t *testing.T, c *cluster) {
	t.Helper()
	l, err := c.lab.Listen("tcp", registryHost)
	if err != nil {
		t.Fatal(err)
	}
	r.c, r.served = c, make(chan error, 1)
	r.server = &http.Server{Handler: r.handler, TLSConfig: &tls.Config{Certificates: []tls.Certificate{r.cert}}, ErrorLog: log.New(io.Discard, "", 0)}
	go func() { r.served <- r.server.ServeTLS(l, "", "") }()
	t.Cleanup(r.stop)
}

func (r *guardedRegistry) stop() {
	if r.served != nil {
		_ = r.server.Close()
		<-r.served
		r.served = nil
	}
}

// push puts an image into the registry as team/app with a tag, and returns its digest.
func (r *guardedRegistry) push(t *testing.T, tag string, spec image.Spec) string {
	t.Helper()
	img, err := image.Build(spec)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(registryHost + "/team/app:" + tag)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.cert.Certificate[0]}))
	over := &http.Transport{DialContext: r.c.lab.Dial, TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}
	if err := remote.Write(ref, img, remote.WithAuth(&authn.Basic{Username: "ann", Password: registryPassword}), remote.WithTransport(over)); err != nil {
		t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return digest.String()
}

func whoami(t *testing.T, version string) image.Spec {
	return image.Whoami(artifact(t, "build/whoami"), version)
}

// user is somebody at a host, with a docker configuration of their own.
type user struct {
	c    *cluster
	home string
}

// ctl runs swarmctl on host 1; the password is its standard input.
func (u user) ctl(t *testing.T, password string, args ...string) (string, int) {
	t.Helper()
	argv := []string{
		"/bin/sh", "-c", `DOCKER_CONFIG=$1; export DOCKER_CONFIG; password=$2; shift 2; printf %s "$password" | "$@"`, "sh", u.home, password,
		artifact(t, "bin/swarmctl"), "--host", "unix:///run/swarmd/swarmd.sock",
	}
	out, code, err := u.c.host(1).Run(append(argv, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return out, code
}

func (u user) ok(t *testing.T, args ...string) string {
	t.Helper()
	out, code := u.ctl(t, "", args...)
	if code != 0 {
		t.Fatalf("swarmctl %s: exit %d\n%s", strings.Join(args, " "), code, out)
	}
	return out
}

func (u user) refused(t *testing.T, words []string, args ...string) {
	t.Helper()
	out, code := u.ctl(t, "", args...)
	t.Logf("swarmctl %s\n%s", strings.Join(args, " "), out)
	if code != 1 {
		t.Errorf("swarmctl %s: exit %d, want 1", strings.Join(args, " "), code)
	}
	wantWords(t, out, words...)
}

func (u user) create(service, path string, flags ...string) []string {
	return append(append([]string{"service", "create", "--name", service, "--update-monitor", "500ms"}, flags...), registryHost+path)
}

// wantEnds checks what `service ps` shows of the tasks that have ended.
func (c *cluster) wantEnds(t *testing.T, service string, words ...string) {
	t.Helper()
	ended := 0
	for _, x := range c.tasks(t, service) {
		if x.State == "failed" || x.State == "rejected" {
			ended++
			wantWords(t, x.Error, words...)
			if strings.Contains(x.Error, "\n") || strings.Contains(x.Error, registryPassword) {
				t.Errorf("the error is %q", x.Error)
			}
		}
	}
	if ended == 0 {
		t.Errorf("no task of %s has ended:\n%s", service, describe(c.tasks(t, service)))
	}
}

func (u user) imageOf(t *testing.T, service string) string {
	t.Helper()
	return strings.TrimSpace(u.ok(t, "service", "inspect", "-f", "{{.Spec.Task.Container.Image}} {{.Spec.Task.Container.ImageDigest}}", service))
}

func TestRegistry_WithCredentialsAndItsOwnCA(t *testing.T) {
	t.Parallel()
	r, configDir := serveGuarded(t)
	c := newHosts(t, 1, "--config-dir", configDir)
	r.start(t, c)
	c.ok(t, 1, "init", "--no-rebalance", "--advertise-addr", c.addr(1))
	c.nodesReady(t, 1)
	first := r.push(t, "v1", whoami(t, "v1"))
	foreign := whoami(t, "v1")
	foreign.Architecture = "s390x"
	r.push(t, "foreign", foreign)
	ann, nobody, forgetful := user{c, t.TempDir()}, user{c, t.TempDir()}, user{c, t.TempDir()}

	login := []string{"login", "--config-dir", configDir, "-u", "ann", "--password-stdin", registryHost}
	if out, code := ann.ctl(t, "guess", login...); code != 1 || !strings.Contains(out, "does not take this name and password") {
		t.Errorf("login with a wrong password: %d, %s", code, out)
	}
	if out, code := ann.ctl(t, registryPassword, login...); code != 0 {
		t.Fatalf("login: %d, %s", code, out)
	}
	if out, code := forgetful.ctl(t, "guess", append([]string{"login", "--no-check"}, login[1:]...)...); code != 0 {
		t.Fatalf("login without a check: %d, %s", code, out)
	}

	ann.ok(t, ann.create("app", "/team/app:v1", "--with-registry-auth")...)
	c.runningAre(t, "app", 1)
	if got := ann.imageOf(t, "app"); got != registryHost+"/team/app:v1 "+first {
		t.Errorf("the service shows %q, want the tag and %s", got, first)
	}
	wantNoSecret(t, c)

	image := []string{"image not found", registryHost}
	nobody.refused(t, append(image, "needs credentials"), nobody.create("open", "/team/app:v9")...)
	c.wantEnds(t, "open", "needs credentials")
	forgetful.refused(t, append(image, `refuses it to user "ann"`), forgetful.create("wrong", "/team/app:v9", "--with-registry-auth")...)
	c.wantEnds(t, "wrong", `refuses it to user "ann"`)
	ann.refused(t, append(image, "no such image"), ann.create("no-tag", "/team/app:v9", "--with-registry-auth")...)
	c.wantEnds(t, "no-tag", "no such image: check the name and the tag")
	ann.refused(t, image, ann.create("no-digest", "/team/app@sha256:"+strings.Repeat("0", 64), "--with-registry-auth")...)
	c.wantEnds(t, "no-digest", "no such image")
	ann.refused(t, []string{"unsupported platform on 1 node", "service explain foreign"}, ann.create("foreign", "/team/app:foreign", "--with-registry-auth")...)
	wantWords(t, c.ok(t, 1, "service", "explain", "foreign"), "the image is for linux/s390x")
	c.remove(t, "foreign")
	// Where nobody has asked the registry, the node finds out.
	ann.refused(t, []string{"s390x"}, ann.create("strange", "/team/app:foreign", "--with-registry-auth", "--no-resolve-image")...)
	c.wantEnds(t, "strange", "is made for linux/s390x, this node is linux/")
	ann.refused(t, []string{"its pull policy is never"}, ann.create("never", "/team/app:v9", "--pull", "never")...)
	c.wantEnds(t, "never", "it is not on this node, and its pull policy is never")

	// A tag that moves is followed by an update of the image alone.
	second := r.push(t, "v1", whoami(t, "v2"))
	ann.ok(t, "service", "scale", "app=2")
	c.runningAre(t, "app", 2)
	if got := ann.imageOf(t, "app"); !strings.HasSuffix(got, first) {
		t.Errorf("scaled, the service shows %q, want %s as before", got, first)
	}
	ann.ok(t, "service", "update", "--image", registryHost+"/team/app:v1", "--update-monitor", "500ms", "app") // with the credentials that it keeps
	c.runningAre(t, "app", 2)
	if got := ann.imageOf(t, "app"); !strings.HasSuffix(got, second) {
		t.Errorf("updated, the service shows %q, want %s", got, second)
	}
	if out := ann.ok(t, "service", "inspect", "app"); strings.Contains(out, registryPassword) || strings.Contains(out, "registryAuth") {
		t.Errorf("the service shows its credentials:\n%s", out)
	}
	if out := ann.ok(t, "image", "pull", registryHost+"/team/app:v1"); !strings.Contains(out, second) {
		t.Errorf("pulled by hand: %s", out)
	}
	ann.ok(t, "image", "inspect", registryHost+"/team/app:v1")

	// With the registry down, what is here goes on being used, and what is not says why.
	r.push(t, "v3", whoami(t, "v3"))
	r.stop()
	ann.ok(t, "service", "update", "--force", "app")
	c.runningAre(t, "app", 2)
	ann.ok(t, ann.create("cached", "/team/app:v1", "--pull", "always", "--with-registry-auth")...)
	c.runningAre(t, "cached", 1)
	ann.refused(t, []string{registryHost, "connection refused"}, ann.create("absent", "/team/app:v3", "--with-registry-auth")...)
	r.start(t, c)
	c.runningAre(t, "absent", 1) // its tries go on until the registry is back
}

// wantNoSecret searches the worker's files; the manager's are sealed.
func wantNoSecret(t *testing.T, c *cluster) {
	t.Helper()
	for _, h := range c.lab.Hosts() {
		err := filepath.WalkDir(h.Dir, func(path string, entry fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil || !entry.Type().IsRegular() {
				return err
			}
			body, err := os.ReadFile(path)
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if bytes.Contains(body, []byte(registryPassword)) {
				t.Errorf("%s holds the password", path)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}
