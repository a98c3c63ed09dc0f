package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// guardedRegistry is a registry that takes ann with the password secret.
func guardedRegistry(t *testing.T) string {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "ann" || password != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

func TestLogin_GoodCredentials_AreKeptInDockersFormatAndUsed(t *testing.T) {
	f := start(t, false)
	host := guardedRegistry(t)
	f.stdin = "secret\n"
	if o := f.run("login", "--plain-http", "-u", "ann", "--password-stdin", host); o.code != 0 || o.stdout != "logged in to "+host+" as ann\n" {
		t.Fatalf("%+v", o)
	}
	kept, err := os.ReadFile(filepath.Join(os.Getenv("DOCKER_CONFIG"), "config.json"))
	if err != nil || !strings.Contains(string(kept), `"auth": "YW5uOnNlY3JldA=="`) || strings.Contains(string(kept), "secret") {
		t.Errorf("%v\n%s", err, kept)
	}
	if info, err := os.Stat(filepath.Join(os.Getenv("DOCKER_CONFIG"), "config.json")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	want := &swarmpb.RegistryAuth{Server: host, Username: "ann", Password: "secret"}
	f.run("service", "create", "--detach", "--with-registry-auth", "--pull", "always", "--no-resolve-image", host+"/app:v1")
	created := f.control.requested
	if !proto.Equal(created.GetRegistryAuth(), want) || !created.GetNoResolveImage() || created.GetSpec().GetTask().GetContainer().GetPullPolicy() != swarmpb.PullPolicy_PULL_POLICY_ALWAYS {
		t.Errorf("created with %v", created)
	}
	f.run("service", "create", "--detach", host+"/app:v1")
	if auth := f.control.requested.GetRegistryAuth(); auth != nil {
		t.Errorf("created without the flag, but with %v", auth)
	}
	f.run("image", "pull", host+"/app:v1")
	if !proto.Equal(f.local.pulled.GetRegistryAuth(), want) {
		t.Errorf("pulled with %v", f.local.pulled)
	}
	f.run("image", "pull", "other.local/app:v1")
	if f.local.pulled.GetRegistryAuth() != nil {
		t.Errorf("another registry is pulled from with %v", f.local.pulled)
	}
	if o := f.run("logout", host); o.code != 0 || o.stdout != "logged out of "+host+"\n" {
		t.Errorf("%+v", o)
	}
	if o := f.run("logout", host); o.stdout != "not logged in to "+host+"\n" {
		t.Errorf("%+v", o)
	}
	if o := f.run("service", "create", "--detach", "--with-registry-auth", host+"/app:v1"); o.code != 1 || !strings.Contains(o.stderr, "log in with `swarmctl login "+host+"` first") {
		t.Errorf("%+v", o)
	}
}

func TestLogin_CredentialHelper_KeepsThem(t *testing.T) {
	f := start(t, false)
	host := guardedRegistry(t)
	dir, bin := os.Getenv("DOCKER_CONFIG"), t.TempDir()
	vault := filepath.Join(bin, "vault")
	helper := "#!/bin/sh\ncase $1 in\nstore) cat > " + vault + ";;\nget) cat " + vault + ";;\nesac\n"
	if err := os.WriteFile(filepath.Join(bin, "docker-credential-test"), []byte(helper), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(`{"credsStore": "test"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	f.stdin = "secret"
	if o := f.run("login", "--plain-http", "-u", "ann", "--password-stdin", host); o.code != 0 {
		t.Fatalf("%+v", o)
	}
	kept, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil || strings.Contains(string(kept), "YW5uOnNlY3JldA") {
		t.Errorf("the password is in the file: %v\n%s", err, kept)
	}
	f.run("service", "create", "--detach", "--with-registry-auth", host+"/app:v1")
	if auth := f.control.requested.GetRegistryAuth(); auth.GetPassword() != "secret" {
		t.Errorf("created with %v", auth)
	}
}

func TestLogout_AToken_IsForgottenToo(t *testing.T) {
	f := start(t, false)
	dir := os.Getenv("DOCKER_CONFIG")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "config.json")
	if err := os.WriteFile(path, []byte(`{"auths": {"registry.local": {"registrytoken": "t0ken"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if o := f.run("logout", "registry.local"); o.stdout != "logged out of registry.local\n" {
		t.Errorf("%+v", o)
	}
	if kept, err := os.ReadFile(path); err != nil || strings.Contains(string(kept), "t0ken") {
		t.Errorf("%v\n%s", err, kept)
	}
}

func TestLogin_Refused_KeepsNothing(t *testing.T) {
	f := start(t, false)
	host := guardedRegistry(t)
	f.stdin = "guess"
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	for want, args := range map[string][]string{
		"connection refused":                   {"-u", "ann", "--password-stdin", gone.Listener.Addr().String()},
		"does not take this name and password": {"--plain-http", "-u", "ann", "--password-stdin", host},
		"or use --plain-http":                  {"-u", "ann", "--password-stdin", host},
		"use --username":                       {"--password-stdin", host},
		"use --password-stdin":                 {"-u", "ann", host},
		"want host or host:port":               {"-u", "ann", "--password-stdin", "https://" + host},
	} {
		if o := f.run(append([]string{"login"}, args...)...); o.code != 1 || !strings.Contains(o.stderr, want) || strings.Contains(o.stderr, "guess") {
			t.Errorf("%v: %+v, want %q", args, o, want)
		}
	}
	if _, err := os.Stat(filepath.Join(os.Getenv("DOCKER_CONFIG"), "config.json")); !os.IsNotExist(err) {
		t.Errorf("something is kept: %v", err)
	}
}

func TestImage_PullAndInspect_ReadAsBefore(t *testing.T) {
	f := start(t, false)
	f.local.images = []*swarmpb.Image{{Name: "docker.io/library/whoami:v1", Digest: "sha256:" + strings.Repeat("1", 64), SizeBytes: 7_812_345}}
	got := f.play("image pull whoami:v1", "image pull -q whoami:v1", "image inspect docker.io/library/whoami:v1 nope",
		"image inspect -f '{{.Digest}} {{join .Platforms `,`}} {{range .Layers}}{{.SizeBytes}}{{end}}' docker.io/library/whoami:v1", "service create --pull sometimes whoami:v1")
	f.terminal = true
	got += f.play("image pull whoami:v1")
	f.local.fail = wire.Errorf(wire.CodeNotFound, "pull whoami:v9: registry docker.io has no such image: check the name and the tag")
	golden(t, "image_pull", got+f.play("image pull whoami:v9"))
}
