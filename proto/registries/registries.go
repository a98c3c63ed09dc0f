// Package registries reads how a host is to speak to image registries: registries.toml of its configuration directory.
//
//	[[registry]]
//	host = "registry.local:5000"          # as in the images' references
//	ca = "registry-ca.pem"                # who signed its certificate, besides the system's authorities
//	mirrors = ["mirror.local:5000"]       # asked first, in this order
//
//	[[registry]]
//	host = "mirror.local:5000"
//	plain_http = true                     # no TLS at all
//
// It promises that a file with a mistake is refused as a whole, with the file's line, and that what it writes for
// containerd (WriteHosts) says the same as the file. The file may change at any time (Watcher).
package registries

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/distribution/reference"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// FileName is the file's name in the configuration directory.
const FileName = "registries.toml"

// Limits of the file.
const (
	maxFileBytes  = 1 << 20
	maxRegistries = 256
	maxMirrors    = 8
)

// mirrorDial is how long a mirror may take to accept a connection, of which a pull makes several, before the next in line is
// asked. A mirror that is off must not hold up what others have.
const mirrorDial = "2s"

// Hub is what the references of Docker Hub's images begin with, and hubServer who answers for it.
const (
	Hub       = "docker.io"
	hubServer = "registry-1.docker.io"
)

// Registry is how to speak to one registry.
type Registry struct {
	// Host is host[:port], as in the images' references.
	Host string
	// Mirrors are asked before it: host[:port], or a URL with a path. A mirror with an entry of its own is spoken to as that says.
	Mirrors []string
	// CA is the absolute path of PEM certificates that its certificate may be signed by, besides the system's; empty = none.
	CA string
	// PlainHTTP: it is spoken to without TLS.
	PlainHTTP bool
	// Insecure: its certificate is not checked.
	Insecure bool
}

// Set is all that is known of registries. The zero value knows nothing: all are spoken to over TLS.
type Set struct {
	byHost map[string]Registry
}

// Load reads FileName of the directory; that there is none is no error. The registries of plain are spoken to in plain
// HTTP, whatever the file says of their scheme.
func Load(dir string, plain []string) (*Set, error) {
	path := filepath.Join(dir, FileName)
	body, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read registries: %w", err)
	}
	set, err := parse(path, body)
	if err != nil {
		return nil, err
	}
	return set.With(plain)
}

// With returns the set with some more registries of plain HTTP.
func (s *Set) With(plain []string) (*Set, error) {
	out := &Set{byHost: map[string]Registry{}}
	if s != nil {
		for host, r := range s.byHost {
			out.byHost[host] = r
		}
	}
	for _, host := range plain {
		if problem := checkHost(host); problem != "" {
			return nil, fmt.Errorf("insecure registry %q: %s", host, problem)
		}
		r := out.byHost[host]
		r.Host, r.PlainHTTP, r.CA, r.Insecure = host, true, "", false
		out.byHost[host] = r
	}
	return out, nil
}

// Registry is how to speak to a host.
func (s *Set) Registry(host string) Registry {
	if s != nil {
		if r, ok := s.byHost[host]; ok {
			return r
		}
	}
	return Registry{Host: host}
}

// Pool is what a registry's certificate may be signed by; nil = the system's authorities alone.
func (r Registry) Pool() (*x509.CertPool, error) {
	if r.CA == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(r.CA)
	if err != nil {
		return nil, fmt.Errorf("read certificates of registry %s: %w", r.Host, err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("certificates of registry %s: %s holds none in PEM", r.Host, r.CA)
	}
	return pool, nil
}

// WriteHosts writes the set in the form that containerd reads, a hosts.toml below a directory for each registry, and
// removes what else is below root. A file that says the right thing is left alone: a full disk is no reason not to start.
// Pulls may be under way: whoever reads a file sees all of it, the old or the new one.
func (s *Set) WriteHosts(root string) error {
	there, err := os.ReadDir(root)
	if err != nil {
		return fmt.Errorf("write registries: %w", err)
	}
	for _, entry := range there {
		if _, ok := s.byHost[entry.Name()]; ok {
			continue
		}
		if err := os.RemoveAll(filepath.Join(root, entry.Name())); err != nil {
			return fmt.Errorf("write registries: %w", err)
		}
	}
	for host, r := range s.byHost {
		dir := filepath.Join(root, host)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("write registries: %w", err)
		}
		file, body := filepath.Join(dir, "hosts.toml"), s.hostsFile(r)
		if there, err := os.ReadFile(file); err == nil && bytes.Equal(there, body) {
			continue
		}
		whole := file + ".new"
		if err := os.WriteFile(whole, body, 0o644); err != nil {
			return fmt.Errorf("write registries: %w", err)
		}
		if err := os.Rename(whole, file); err != nil {
			return fmt.Errorf("write registries: %w", err)
		}
	}
	return nil
}

func (s *Set) hostsFile(r Registry) []byte {
	var b bytes.Buffer
	server := r.Host
	if server == Hub {
		server = hubServer
	}
	fmt.Fprintf(&b, "server = %q\n", r.scheme()+"://"+server)
	r.writeTLS(&b)
	for _, mirror := range r.Mirrors {
		at, own := s.mirror(mirror)
		fmt.Fprintf(&b, "\n[host.%q]\ncapabilities = [\"pull\", \"resolve\"]\ndial_timeout = %q\n", at, mirrorDial)
		own.writeTLS(&b)
	}
	return b.Bytes()
}

func (r Registry) writeTLS(b *bytes.Buffer) {
	if r.CA != "" {
		fmt.Fprintf(b, "ca = %q\n", r.CA)
	}
	if r.Insecure {
		b.WriteString("skip_verify = true\n")
	}
}

func (r Registry) scheme() string {
	if r.PlainHTTP {
		return "http"
	}
	return "https"
}

// mirror is a mirror's address and how it is spoken to.
func (s *Set) mirror(text string) (string, Registry) {
	host, withScheme := text, strings.Contains(text, "://")
	if withScheme {
		if u, err := url.Parse(text); err == nil {
			host = u.Host
		}
	}
	own := s.Registry(host)
	if !withScheme {
		text = own.scheme() + "://" + host
	}
	return text, own
}

// checkHost says what is wrong with a registry's name; empty = nothing.
func checkHost(host string) string {
	if strings.Contains(host, "://") {
		return "it is host[:port], without a scheme"
	}
	ref, err := reference.ParseNormalizedNamed(host + "/image")
	if host == "" || err != nil || reference.Domain(ref) != host {
		return "it is not host or host:port as in an image's reference, for example registry.local:5000"
	}
	return ""
}

func checkMirror(mirror, of string) string {
	host := mirror
	if strings.Contains(mirror, "://") {
		u, err := url.Parse(mirror)
		if err != nil || u.Host == "" || !slices.Contains([]string{"http", "https"}, u.Scheme) || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			return "it is not host[:port] or http(s)://host[:port][/path]"
		}
		host = u.Host
	}
	if host == of {
		return "it is the registry itself"
	}
	return checkHost(host)
}

// HostOf is the registry of an image's reference; empty when that is none.
func HostOf(image string) string { return swarmpb.RegistryOf(image) }

// SameHost tells whether two names are of one registry: Docker Hub has several.
func SameHost(a, b string) bool { return canonical(a) == canonical(b) }

func canonical(host string) string {
	if _, rest, ok := strings.Cut(host, "://"); ok {
		host = rest
	}
	host, _, _ = strings.Cut(host, "/")
	switch host {
	case "index.docker.io", hubServer, "registry.hub.docker.com":
		return Hub
	}
	return host
}

// User is the name that credentials show to a host; empty when they are not for it. A token has no name of its own.
func User(auth *swarmpb.RegistryAuth, host string) string {
	switch {
	case auth == nil || !SameHost(auth.GetServer(), host):
		return ""
	case auth.GetIdentityToken() != "":
		return "<token>"
	}
	return auth.GetUsername()
}

// Secret is what credentials show to a host, as containerd wants it: a name and its password, or no name and a token
// that gets access tokens; both empty when they are not for it.
func Secret(auth *swarmpb.RegistryAuth, host string) (user, secret string) {
	switch {
	case auth == nil || !SameHost(auth.GetServer(), host):
		return "", ""
	case auth.GetIdentityToken() != "":
		return "", auth.GetIdentityToken()
	}
	return auth.GetUsername(), auth.GetPassword()
}
