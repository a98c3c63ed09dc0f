package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/configfile"
	"github.com/docker/cli/cli/config/types"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/swarmd/swarmd/proto/registries"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

const (
	// hubKey is what docker's configuration calls Docker Hub.
	hubKey = "https://index.docker.io/v1/"
	// maxPassword bounds a password on standard input, and loginTimeout a registry's answer.
	maxPassword  = 16 << 10
	loginTimeout = 15 * time.Second
)

// dockerConfig reads the user's docker configuration, also of a file that is not there yet.
func dockerConfig() (*configfile.ConfigFile, error) {
	c, err := config.Load(os.Getenv("DOCKER_CONFIG"))
	if err != nil {
		return nil, fmt.Errorf("read docker configuration: %w", err)
	}
	return c, nil
}

// keyOf is what the user's docker configuration calls a registry.
func keyOf(host string) string {
	if registries.SameHost(host, registries.Hub) {
		return hubKey
	}
	return host
}

// savedAuth is what the user's docker configuration, or the helper that it names, has for the registry of an image;
// nil without anything.
func savedAuth(image string) (*swarmpb.RegistryAuth, error) {
	host := registries.HostOf(image)
	if host == "" {
		return nil, nil // what is no reference is refused elsewhere, with the reason
	}
	c, err := dockerConfig()
	if err != nil {
		return nil, err
	}
	saved, err := c.GetAuthConfig(keyOf(host))
	if err != nil {
		return nil, fmt.Errorf("read credentials for registry %s: %w", host, err)
	}
	auth := &swarmpb.RegistryAuth{
		Server: host, Username: saved.Username, Password: saved.Password, IdentityToken: saved.IdentityToken, RegistryToken: saved.RegistryToken,
	}
	if auth.Password == "" && auth.IdentityToken == "" && auth.RegistryToken == "" {
		return nil, nil
	}
	return auth, nil
}

// requiredAuth is savedAuth for --with-registry-auth.
func requiredAuth(image string) (*swarmpb.RegistryAuth, error) {
	auth, err := savedAuth(image)
	if err == nil && auth == nil {
		host := registries.HostOf(image)
		return nil, fmt.Errorf("--with-registry-auth: your docker configuration has no credentials for registry %s; log in with `swarmctl login %s` first", host, host)
	}
	return auth, err
}

func (a *app) loginCommand() *cobra.Command {
	var (
		user, configDir          string
		fromInput, plain, unseen bool
	)
	cmd := &cobra.Command{
		Use:   "login [flags] REGISTRY",
		Short: "Keep your credentials for a registry",
		Long: `Check your credentials for a registry and keep them in your own docker configuration ($DOCKER_CONFIG, or
~/.docker/config.json), in docker's format: docker, and helpers that it names in credsStore and credHelpers, share them.
Nothing goes to the cluster before "service create --with-registry-auth". The same --with-registry-auth at an update gives
the cluster newer ones.

The registry is spoken to as registries.toml of this host says.`,
		Example: "  swarmctl login registry.local:5000\n  swarmctl login -u ann --password-stdin registry.local:5000 < password.txt",
		Args:    oneArg("registry"), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			host := args[0]
			if registries.HostOf(host+"/image") != host {
				return fmt.Errorf("login: registry %q: want host or host:port as in an image's reference, for example registry.local:5000", host)
			}
			saved := types.AuthConfig{ServerAddress: keyOf(host), Username: user}
			if err := a.askFor(&saved, fromInput); err != nil {
				return err
			}
			c, err := dockerConfig()
			if err != nil {
				return err
			}
			if !unseen {
				if err := checkLogin(cmd.Context(), host, configDir, plain, saved); err != nil {
					return fmt.Errorf("login: %w; nothing is kept", err)
				}
			}
			if err := c.GetCredentialsStore(saved.ServerAddress).Store(saved); err != nil {
				return fmt.Errorf("login: keep credentials: %w", err)
			}
			_, err = fmt.Fprintf(a.out, "logged in to %s as %s\n", host, saved.Username)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVarP(&user, "username", "u", "", "your `name` at the registry (default: asked for)")
	f.BoolVar(&fromInput, "password-stdin", false, "read the password from standard input instead of asking for it")
	f.BoolVar(&plain, "plain-http", false, "the registry speaks plain HTTP: the password crosses the network in the clear")
	f.BoolVar(&unseen, "no-check", false, "keep the credentials without asking the registry")
	f.StringVar(&configDir, "config-dir", "/etc/swarmd", "`directory` of registries.toml")
	return cmd
}

// askFor completes credentials: from standard input, or at the terminal.
func (a *app) askFor(c *types.AuthConfig, fromInput bool) error {
	file, _ := a.in.(*os.File)
	asks := file != nil && term.IsTerminal(int(file.Fd()))
	if c.Username == "" {
		if fromInput || !asks {
			return errors.New("login: no user is named; use --username")
		}
		_, _ = fmt.Fprint(a.err, "Username: ")
		if _, err := fmt.Fscanln(a.in, &c.Username); err != nil {
			return fmt.Errorf("login: read username: %w", err)
		}
	}
	switch {
	case fromInput:
		text, err := io.ReadAll(io.LimitReader(a.in, maxPassword+1))
		if err != nil {
			return fmt.Errorf("login: read password: %w", err)
		}
		c.Password = strings.TrimRight(string(text), "\r\n")
	case asks:
		_, _ = fmt.Fprint(a.err, "Password: ")
		text, err := term.ReadPassword(int(file.Fd()))
		_, _ = fmt.Fprintln(a.err)
		if err != nil {
			return fmt.Errorf("login: read password: %w", err)
		}
		c.Password = string(text)
	default:
		return errors.New("login: there is no terminal to ask for the password at; use --password-stdin")
	}
	if c.Password == "" || len(c.Password) > maxPassword {
		return fmt.Errorf("login: the password has %d bytes; 1 to %d are taken", len(c.Password), maxPassword)
	}
	return nil
}

// onlyTLS refuses to send anything in the clear, and says instead why TLS did not work.
type onlyTLS struct {
	http.RoundTripper
	refused bool
	failed  error
}

func (o *onlyTLS) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" {
		o.refused = true
		if o.failed != nil {
			return nil, o.failed
		}
		return nil, errors.New("plain HTTP")
	}
	answer, err := o.RoundTripper.RoundTrip(r)
	if err != nil {
		o.failed = err
	}
	return answer, err
}

// checkLogin asks the registry whether it takes the credentials.
func checkLogin(ctx context.Context, host, configDir string, plain bool, c types.AuthConfig) error {
	ctx, cancel := context.WithTimeout(ctx, loginTimeout)
	defer cancel()
	set, err := registries.Load(configDir, nil)
	if err != nil {
		return err
	}
	how := set.Registry(host)
	pool, err := how.Pool()
	if err != nil {
		return err
	}
	plain = plain || how.PlainHTTP
	tripper := http.DefaultTransport.(*http.Transport).Clone()
	tripper.TLSClientConfig = &tls.Config{RootCAs: pool, InsecureSkipVerify: how.Insecure, MinVersion: tls.VersionTLS12}
	var options []name.Option
	var over http.RoundTripper = tripper
	guard := &onlyTLS{RoundTripper: tripper}
	if plain {
		options = append(options, name.Insecure)
	} else {
		over = guard
	}
	registry, err := name.NewRegistry(host, options...)
	if err != nil {
		return err
	}
	with, err := transport.NewWithContext(ctx, registry, &authn.Basic{Username: c.Username, Password: c.Password}, over, nil)
	switch {
	case err != nil && guard.refused && strings.Contains(err.Error(), "HTTP response to HTTPS client"):
		return fmt.Errorf("registry %s speaks plain HTTP: to send the password in the clear, set plain_http for it in %s, or use --plain-http", host, registries.FileName)
	case err != nil:
		return registries.Explain(host, c.Username, err)
	}
	scheme := "https"
	if plain {
		scheme = "http"
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+registry.RegistryStr()+"/v2/", nil)
	if err != nil {
		return err
	}
	answer, err := (&http.Client{Transport: with}).Do(request)
	if err != nil {
		return registries.Explain(host, c.Username, err)
	}
	answer.Body.Close()
	switch answer.StatusCode {
	case http.StatusOK:
		return nil
	case http.StatusUnauthorized, http.StatusForbidden:
		return fmt.Errorf("registry %s does not take this name and password (%s)", host, answer.Status)
	}
	return fmt.Errorf("registry %s answers %s", host, answer.Status)
}

func (a *app) logoutCommand() *cobra.Command {
	return &cobra.Command{
		Use: "logout REGISTRY", Short: "Forget your credentials for a registry",
		Long: "Take the credentials for a registry out of your docker configuration. Services keep those that they were given.",
		Args: oneArg("registry"), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := dockerConfig()
			if err != nil {
				return err
			}
			key := keyOf(args[0])
			if saved, err := c.GetAuthConfig(key); err == nil && saved.Username == "" && saved.Password == "" && saved.IdentityToken == "" && saved.RegistryToken == "" {
				_, err := fmt.Fprintf(a.out, "not logged in to %s\n", args[0])
				return err
			}
			if err := c.GetCredentialsStore(key).Erase(key); err != nil {
				return fmt.Errorf("logout: forget credentials: %w", err)
			}
			_, err = fmt.Fprintf(a.out, "logged out of %s\n", args[0])
			return err
		},
	}
}
