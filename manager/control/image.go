package control

import (
	"context"
	"fmt"
	"strings"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// Bounds of credentials, in bytes. Clouds give tokens of a few thousand.
const (
	maxAuthName   = 256
	maxAuthSecret = 16 << 10
)

// shown is a service without what nobody is to see.
func shown(service *swarmpb.Service) *swarmpb.Service {
	if service.GetRegistryAuth() == nil && service.GetPreviousRegistryAuth() == nil {
		return service
	}
	service = swarmpb.Clone(service)
	service.RegistryAuth, service.PreviousRegistryAuth = nil, nil
	return service
}

// checkAuth refuses credentials that no node could use for the image; nil stays nil. Its errors show nothing of them.
func checkAuth(auth *swarmpb.RegistryAuth, spec *swarmpb.ServiceSpec) (*swarmpb.RegistryAuth, error) {
	if auth == nil {
		return nil, nil
	}
	refuse := func(format string, args ...any) error {
		return wire.Errorf(wire.CodeInvalid, "registry credentials: "+format, args...)
	}
	image := imageOf(spec)
	host, server := swarmpb.RegistryOf(image), auth.GetServer()
	secret := auth.GetPassword() + auth.GetIdentityToken()
	switch {
	case len(server) > maxAuthName || len(auth.GetUsername()) > maxAuthName:
		return nil, refuse("the registry's or the user's name is longer than %d bytes", maxAuthName)
	case len(secret) > maxAuthSecret:
		return nil, refuse("the password or token is longer than %d bytes", maxAuthSecret)
	case host != server:
		return nil, refuse("they are for %.80q, but image %q comes from %s", server, image, host)
	case auth.GetRegistryToken() != "":
		return nil, refuse("a ready access token expires before the last node has pulled with it; use a password or an identity token")
	case secret == "":
		return nil, refuse("there is neither a password nor an identity token for %s; log in with `swarmctl login %s`", server, server)
	case strings.ContainsAny(auth.GetUsername()+secret, "\x00\r\n"):
		return nil, refuse("a name or secret for %s holds a line's end", server)
	}
	return auth, nil
}

// takeAuth gives next, which replaces the service, its credentials: those given, or what the service has for the
// registry of the new image; those of another registry stay beside them for as long as next may go back to an image of
// it. What the user should know is returned.
func takeAuth(next, service *swarmpb.Service, given *swarmpb.RegistryAuth) (warnings []string) {
	image, before := imageOf(next.GetSpec()), imageOf(next.GetPreviousSpec())
	next.RegistryAuth, next.PreviousRegistryAuth = given, nil
	if given == nil {
		next.RegistryAuth = service.RegistryAuthFor(image)
	}
	if swarmpb.RegistryOf(before) != swarmpb.RegistryOf(image) {
		next.PreviousRegistryAuth = service.RegistryAuthFor(before)
	}
	if had := service.GetRegistryAuth(); had != nil && next.GetRegistryAuth() == nil {
		return []string{fmt.Sprintf("image %q: it comes from another registry than the credentials that the service has, which are for %s and not used for it; "+
			"if it needs some, log in with `swarmctl login %s` and update with --with-registry-auth", image, had.GetServer(), swarmpb.RegistryOf(image))}
	}
	return nil
}

func imageOf(spec *swarmpb.ServiceSpec) string { return spec.GetTask().GetContainer().GetImage() }

// pin gives a checked spec the digest that its image stands for; before is the service's spec until now, nil for a new
// service. The registry is asked when the image is another one, or when the caller has taken the digest out; so a
// change of anything else neither waits for it nor replaces a task for a tag that has moved. A digest that the caller
// chose stays. What the user should know is returned: that a registry does not answer is no refusal. The platforms of the
// placement go with the digest that they were found for.
func (s *Server) pin(ctx context.Context, spec, before *swarmpb.ServiceSpec, auth *swarmpb.RegistryAuth, resolve bool) (warnings []string) {
	platforms, warnings := s.pinDigest(ctx, spec, before, auth, resolve)
	is, was := spec.GetTask().GetContainer(), before.GetTask().GetContainer()
	if platforms == nil && is.GetImageDigest() != "" && is.GetImageDigest() == was.GetImageDigest() && is.GetImage() == was.GetImage() {
		platforms = before.GetTask().GetPlacement().GetPlatforms()
	}
	if len(platforms) > 0 && spec.GetTask().GetPlacement() == nil {
		spec.Task.Placement = &swarmpb.Placement{}
	}
	if spec.GetTask().GetPlacement() != nil {
		spec.Task.Placement.Platforms = platforms
	}
	return warnings
}

// pinDigest also returns the platforms where a registry was asked, and knows.
func (s *Server) pinDigest(ctx context.Context, spec, before *swarmpb.ServiceSpec, auth *swarmpb.RegistryAuth, resolve bool) (platforms []*swarmpb.Platform, warnings []string) {
	container, was := spec.GetTask().GetContainer(), before.GetTask().GetContainer()
	image := container.GetImage()
	sameImage := before != nil && was.GetImage() == image
	if !sameImage && before != nil && container.GetImageDigest() == was.GetImageDigest() {
		container.ImageDigest = "" // it came along with the old image
	}
	forced := spec.GetTask().GetForceUpdate() != before.GetTask().GetForceUpdate()
	if _, digest, ok := cutLast(image, "@"); ok {
		if strings.HasPrefix(digest, "sha256:") {
			container.ImageDigest = digest
		}
		settled := sameImage && !(forced && len(before.GetTask().GetPlacement().GetPlatforms()) == 0)
		if settled || !resolve || s.cfg.Resolver == nil {
			return nil, nil
		}
		_, platforms, err := s.cfg.Resolver.Resolve(ctx, image, auth)
		if err != nil {
			return nil, nil // the digest is known, and a node of another platform says so when it has pulled the image
		}
		return platforms, nil
	}
	settled := sameImage && was.GetImageDigest() == container.GetImageDigest() && !(forced && was.GetImageDigest() == "")
	if container.GetImageDigest() != "" || settled || !resolve || s.cfg.Resolver == nil {
		return nil, nil
	}
	digest, platforms, err := s.cfg.Resolver.Resolve(ctx, image, auth)
	if err == nil {
		container.ImageDigest = digest
		return platforms, nil
	}
	if sameImage && was.GetImageDigest() != "" {
		container.ImageDigest = was.GetImageDigest()
		return nil, []string{fmt.Sprintf("image %q: its digest could not be asked for anew, so that the one from before stays: %s", image, err)}
	}
	return nil, []string{fmt.Sprintf("image %q: its digest could not be found, so that each node goes by the tag, which may be another image on each: %s", image, err)}
}
