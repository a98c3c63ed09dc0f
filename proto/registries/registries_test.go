package registries

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"pgregory.net/rapid"
)

// write makes a configuration directory with the text and a CA in ca.pem.
func write(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour), IsCA: true}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string][]byte{
		FileName: []byte(text), "ca.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), "no.pem": []byte("nothing"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), body, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestLoad_AGoodFile_IsWrittenForContainerd(t *testing.T) {
	dir := write(t, `
[[registry]]
host = "registry.local:5000"
ca = "ca.pem"
mirrors = ["mirror.local:5000", "https://cache.local/hub"]

[[registry]]
host = "mirror.local:5000"
plain_http = true

[[registry]]
host = "docker.io"
mirrors = ["cache.local"]

[[registry]]
host = "cache.local"
insecure = true
`)
	set, err := Load(dir, []string{"lab:5000"})
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "old.local"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := set.WriteHosts(root); err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(dir, "ca.pem")
	for host, want := range map[string]string{
		"registry.local:5000": "server = \"https://registry.local:5000\"\nca = \"" + ca + "\"\n" +
			"\n[host.\"http://mirror.local:5000\"]\ncapabilities = [\"pull\", \"resolve\"]\ndial_timeout = \"2s\"\n" +
			"\n[host.\"https://cache.local/hub\"]\ncapabilities = [\"pull\", \"resolve\"]\ndial_timeout = \"2s\"\nskip_verify = true\n",
		"mirror.local:5000": "server = \"http://mirror.local:5000\"\n",
		"docker.io":         "server = \"https://registry-1.docker.io\"\n\n[host.\"https://cache.local\"]\ncapabilities = [\"pull\", \"resolve\"]\ndial_timeout = \"2s\"\nskip_verify = true\n",
		"cache.local":       "server = \"https://cache.local\"\nskip_verify = true\n",
		"lab:5000":          "server = \"http://lab:5000\"\n",
	} {
		got, err := os.ReadFile(filepath.Join(root, host, "hosts.toml"))
		if err != nil || string(got) != want {
			t.Errorf("%s: %v\n%s\nwant\n%s", host, err, got, want)
		}
	}
	if _, err := os.Stat(filepath.Join(root, "old.local")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a registry that is named no more stays: %v", err)
	}
	if pool, err := set.Registry("registry.local:5000").Pool(); err != nil || pool == nil {
		t.Errorf("pool: %v, %v", pool, err)
	}
}

func TestLoad_NoFile_KnowsNothing(t *testing.T) {
	set, err := Load(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := set.WriteHosts(t.TempDir()); err != nil {
		t.Error(err)
	}
	if r := set.Registry("registry.local"); r.PlainHTTP || r.Insecure {
		t.Errorf("%+v", r)
	}
}

func TestLoad_AMistake_NamesFileAndLine(t *testing.T) {
	for text, want := range map[string]string{
		"[[registry]]\nhost = \"a.local\"\nmirors = []":                                                      `:3: unknown setting "mirors"`,
		"[registry]\nhost = \"a.local\"":                                                                     ":1: ",
		"[[registry]]\nhost = ":                                                                              ":2: ",
		"\n[[registry]]\nca = \"ca.pem\"":                                                                    ":2: the registry has no host",
		"[[registry]]\nhost = \"http://a.local\"":                                                            `:2: host "http://a.local": it is host[:port], without a scheme`,
		"[[registry]]\nhost = \"a b\"":                                                                       `:2: host "a b": it is not host or host:port`,
		"[[registry]]\nhost = \"../../etc\"":                                                                 `:2: host "../../etc": it is not`,
		"[[registry]]\nhost = \"a.local\"\n[[registry]]\n\nhost = \"a.local\"":                               `:5: registry "a.local" is named twice`,
		"[[registry]]\nhost = \"a.local\"\nmirrors = [\"ftp://x.local\"]":                                    `:3: mirror "ftp://x.local"`,
		"[[registry]]\nhost = \"a.local\"\nmirrors = [\"https://u:p@x.local\"]":                              `:3: mirror "https://u:p@x.local"`,
		"[[registry]]\nhost = \"a.local\"\nmirrors = [\"a.local\"]":                                          "it is the registry itself",
		"[[registry]]\nhost = \"a.local\"\nca = \"none.pem\"":                                                ":3: read ca: ",
		"[[registry]]\nhost = \"a.local\"\nca = \"no.pem\"":                                                  "it holds no certificate in PEM",
		"[[registry]]\nhost = \"a.local\"\nplain_http = true\ninsecure = true":                               ":3: plain_http means no TLS",
		"[[registry]]\nhost = \"a.local\"\nplain_http = \"yes\"":                                             ":3: ",
		"[[registry]]\nhost = \"a.local\"\nmirrors = [\"b.local\", \"b.local\"]":                             `:3: mirror "b.local" is named twice`,
		strings.Repeat("[[registry]]\nhost = \"a.local\"\n", maxRegistries+1):                                "at most 256 are read",
		"# " + strings.Repeat("x", maxFileBytes):                                                             "at most 1048576 are read",
		"[[registry]]\nhost = \"a.local\"\nmirrors = [\"" + strings.Repeat("b.local\",\"", 9) + "c.local\"]": "10 mirrors; at most 8",
	} {
		dir := write(t, text)
		_, err := Load(dir, nil)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), filepath.Join(dir, FileName)) {
			t.Errorf("%.80q: %v\nwant %q", text, err, want)
		}
	}
	if _, err := Load(t.TempDir(), []string{"http://x"}); err == nil || !strings.Contains(err.Error(), `insecure registry "http://x"`) {
		t.Errorf("a bad insecure registry: %v", err)
	}
}

func TestParse_AnyText_NeverPanics(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.SampledFrom([]string{"", "[[registry]]\n", "[[registry]]\nhost = \"a.local\"\n"}).Draw(t, "head") + rapid.String().Draw(t, "rest")
		_, _ = parse("registries.toml", []byte(text))
	})
}

func TestSameHost_DockerHub_HasSeveralNames(t *testing.T) {
	for _, name := range []string{"docker.io", "index.docker.io", "registry-1.docker.io", "https://index.docker.io/v1/"} {
		if !SameHost(name, HostOf("nginx")) {
			t.Errorf("%s is another host", name)
		}
	}
	if SameHost("registry.local:5000", "registry.local") {
		t.Error("a port makes no difference")
	}
}

func TestExplain_WhatARegistryAnswers_SaysWhatToDo(t *testing.T) {
	for _, test := range []struct {
		user string
		err  error
		is   error
		want string
	}{
		{"", errors.New("pull access denied, authorization failed: 401 Unauthorized"), ErrDenied, "registry r.local:5000 refuses it: the image does not exist, or needs credentials; for those use `swarmctl login r.local:5000`, then --with-registry-auth"},
		{"ann", errors.New("unexpected status 401 Unauthorized"), ErrDenied, `registry r.local:5000 refuses it to user "ann": the password is wrong`},
		{"ann", fmt.Errorf("x: %w", errdefs.ErrNotFound), ErrMissing, "registry r.local:5000 has no such image: check the name and the tag"},
		{"", errors.New("http: server gave HTTP response to HTTPS client"), nil, "speaks plain HTTP"},
		{"", errors.New("tls: failed to verify certificate: x509: certificate signed by unknown authority"), nil, "name its ca in registries.toml"},
		{"", errors.New(`Head "https://r.local:5000/v2/": dial tcp 10.0.0.9:5000: connect: connection refused`), nil, "registry r.local:5000: dial tcp 10.0.0.9:5000: connection refused"},
	} {
		got := Explain("r.local:5000", test.user, test.err)
		if !strings.Contains(got.Error(), test.want) || strings.Contains(got.Error(), "\n") {
			t.Errorf("%v\nbecomes %s,\nwant    %s", test.err, got, test.want)
		}
		for _, sentinel := range []error{ErrDenied, ErrMissing} {
			if errors.Is(got, sentinel) != (sentinel == test.is) {
				t.Errorf("%s: is %v: %v", got, sentinel, errors.Is(got, sentinel))
			}
		}
	}
}

func TestExplain_AnUnreachableRegistry_IsShortAndTheSameAtEveryTry(t *testing.T) {
	const ask = `failed to resolve image: failed to do request: Head "https://registry.lan:5000/v2/library/web/manifests/1": `
	for text, want := range map[string]string{
		ask + `dial tcp: lookup registry.lan on 10.77.0.1:53: read udp 10.77.0.2:51069->10.77.0.1:53: i/o timeout`: "cannot resolve registry.lan: i/o timeout",
		ask + `dial tcp: lookup registry.lan on 127.0.0.53:53: no such host`:                                       "cannot resolve registry.lan: no such host",
		ask + `dial tcp: lookup registry.lan: dial udp 10.0.0.1:53: connect: network is unreachable`:               "cannot resolve registry.lan: connect: network is unreachable",
		ask + `dial tcp 10.77.0.9:5000: connect: connection refused`:                                               "dial tcp 10.77.0.9:5000: connection refused",
		ask + `dial tcp 10.77.0.2:40112->10.77.0.9:5000: i/o timeout`:                                              "dial tcp 10.77.0.9:5000: i/o timeout",
		ask + `read tcp 10.77.0.2:40112->10.77.0.9:5000: read: connection reset by peer`:                           "read tcp 10.77.0.9:5000: connection reset by peer",
		ask + `read tcp [fd00::2]:40112->[fd00::9]:5000: i/o timeout`:                                              "read tcp [fd00::9]:5000: i/o timeout",
		`unexpected status from HEAD request to https://registry.lan:5000/v2/x: 500 Internal Server Error`:         "unexpected status from HEAD request to https://registry.lan:5000/v2/x: 500 Internal Server Error",
	} {
		if got, want := Explain("registry.lan:5000", "", errors.New(text)).Error(), "registry registry.lan:5000: "+want; got != want {
			t.Errorf("%s\nbecomes %q,\nwant    %q", text, got, want)
		}
	}
}
