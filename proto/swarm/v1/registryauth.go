package swarmpb

import "github.com/distribution/reference"

// RegistryOf is the registry of an image's reference, host[:port]; empty when that is none.
func RegistryOf(image string) string {
	ref, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return ""
	}
	return reference.Domain(ref)
}

// RegistryAuthFor is what the service has for the registry of an image; nil without anything.
func (x *Service) RegistryAuthFor(image string) *RegistryAuth {
	host := RegistryOf(image)
	if host == "" {
		return nil
	}
	for _, auth := range []*RegistryAuth{x.GetRegistryAuth(), x.GetPreviousRegistryAuth()} {
		if auth.GetServer() == host {
			return auth
		}
	}
	return nil
}
